//! A frame as the oracle sees it: bytes in pieces, a header to each, and what follows the headers.

/// What is filled in when the frame leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Here and in the next byte: the number of bytes from so many bytes further on (or before) to the frame's end.
    LengthFrom(isize),
    /// Here and in the next byte: the checksum of the 20 bytes whose eleventh this is.
    Ipv4Checksum,
}

/// A byte, and whether a field that is filled in starts with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Byte {
    pub value: u8,
    pub fill: Option<Fill>,
}

pub fn plain(bytes: &[u8]) -> Vec<Byte> {
    bytes
        .iter()
        .map(|&value| Byte { value, fill: None })
        .collect()
}

pub fn values(bytes: &[Byte]) -> Vec<u8> {
    bytes.iter().map(|byte| byte.value).collect()
}

/// A header, or bytes that were one.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The instance; none when the header is no longer one.
    pub name: Option<String>,
    /// Its type.
    pub kind: String,
    pub bytes: Vec<Byte>,
}

/// Some of the bits, the first of the bytes being the first.
pub fn read_bits(bytes: &[u8], first: usize, count: usize) -> u128 {
    (first..first + count).fold(0, |value, bit| {
        value * 2 + u128::from(bytes[bit / 8] >> (7 - bit % 8) & 1)
    })
}

/// Puts the lowest `count` bits of `value` there.
pub fn write_bits(bytes: &mut [Byte], first: usize, count: usize, value: u128) {
    for offset in 0..count {
        let bit = first + offset;
        let byte = &mut bytes[bit / 8];
        let one = value >> (count - 1 - offset) & 1 == 1;
        let mask = 1 << (7 - bit % 8);
        byte.value = if one {
            byte.value | mask
        } else {
            byte.value & !mask
        };
        byte.fill = None;
    }
}

/// The lowest bits.
pub fn cut(value: u128, bits: u16) -> u128 {
    if bits == 128 {
        value
    } else {
        value % (1 << bits)
    }
}

/// The sum of 16-bit words, modulo 2^16 - 1; an odd last byte is followed by a zero.
pub fn sum(bytes: &[u8]) -> u64 {
    let words = bytes
        .chunks(2)
        .map(|word| u64::from(word[0]) * 256 + u64::from(word.get(1).copied().unwrap_or(0)));
    words.sum::<u64>() % 0xffff
}
