//! The internet checksum (RFC 1071): sums over pieces, pseudo-headers, incremental updates.
//!
//! Called by the data path where a receiver did not take a checksum offload, once for each payload byte: the one place where the
//! core's speed is counted in bytes.
//!
//! A [`Sum`] is a ones' complement sum that is not yet folded. Pieces may have any length: one that starts at an odd offset is
//! added with its bytes exchanged (RFC 1071 §2 B), so header and payload can be summed where they lie.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A ones' complement sum of 16-bit words, and whether it ends in the middle of one.
///
/// The words are read as little-endian and the bytes exchanged at the end, which the sum allows (RFC 1071 §2 B).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    folded: u64,
    odd: bool,
}

impl Sum {
    /// The sum of nothing.
    pub const fn new() -> Self {
        Self {
            folded: 0,
            odd: false,
        }
    }

    /// The sum of `bytes`.
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            folded: sum_words(bytes),
            odd: !bytes.len().is_multiple_of(2),
        }
    }

    /// The sum with `bytes` after what it holds.
    #[inline]
    #[must_use]
    pub fn with_bytes(self, bytes: &[u8]) -> Self {
        self.then(Self::of(bytes))
    }

    /// The sum with `next`, the sum of the bytes that follow, after what it holds.
    #[inline]
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        let folded = if self.odd {
            u64::from(fold(next.folded).swap_bytes())
        } else {
            next.folded
        };
        Self {
            folded: add_with_carry(self.folded, folded),
            odd: self.odd != next.odd,
        }
    }

    /// The sum with a 16-bit field added; for a sum of whole words.
    #[inline]
    #[must_use]
    pub fn with_word(self, word: u16) -> Self {
        Self {
            folded: add_with_carry(self.folded, u64::from(word.swap_bytes())),
            ..self
        }
    }

    /// The checksum: the complement of the sum, as a number to be stored big-endian.
    #[inline]
    pub fn checksum(self) -> u16 {
        !fold(self.folded).swap_bytes()
    }

    /// The checksum for UDP, where 0 means that there is none, so that a computed 0 is sent as `0xffff` (RFC 768).
    #[inline]
    pub fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }

    /// The sum itself, folded but not complemented: what a partial checksum (`VIRTIO_NET_HDR_F_NEEDS_CSUM`) stands with in its
    /// field.
    #[inline]
    pub fn partial(self) -> u16 {
        fold(self.folded).swap_bytes()
    }

    /// Whether the bytes summed contain their own checksum, and it is right.
    #[inline]
    pub fn verifies(self) -> bool {
        fold(self.folded) == 0xffff
    }
}

/// The sum of the IPv4 pseudo-header (RFC 9293 §3.1, RFC 768); `length` counts the transport header and its payload.
pub fn pseudo_header_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: u16) -> Sum {
    Sum::of(&source.octets())
        .with_bytes(&destination.octets())
        .with_word(u16::from(protocol))
        .with_word(length)
}

/// The sum of the IPv6 pseudo-header (RFC 8200 §8.1); `length` counts the transport header and its payload.
pub fn pseudo_header_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, length: u32) -> Sum {
    Sum::of(&source.octets())
        .with_bytes(&destination.octets())
        .with_word(u16::from(protocol))
        .with_word((length >> 16) as u16)
        .with_word(length as u16)
}

/// The checksum after one of the 16-bit words that it covers changed (RFC 1624 eq. 3: HC' = ~(~HC + ~m + m')).
pub fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    !fold(u64::from(sum))
}

/// Adds with end-around carry: in ones' complement 2^64 counts as 1.
#[inline]
const fn add_with_carry(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(carry as u64)
}

/// The 16-bit ones' complement sum of the four words in `sum`.
#[inline]
const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// Sums eight bytes at a time, in four chains that the processor runs side by side.
#[inline]
fn sum_words(bytes: &[u8]) -> u64 {
    let mut blocks = bytes.chunks_exact(32);
    let mut chains = [0_u64; 4];
    for block in &mut blocks {
        for (chain, word) in chains.iter_mut().zip(block.chunks_exact(8)) {
            *chain = add_with_carry(*chain, word_of(word));
        }
    }
    let [a, b, c, d] = chains;
    let mut sum = add_with_carry(add_with_carry(a, b), add_with_carry(c, d));
    let mut words = blocks.remainder().chunks_exact(8);
    for word in &mut words {
        sum = add_with_carry(sum, word_of(word));
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(words.remainder()) {
        *to = *from;
    }
    add_with_carry(sum, u64::from_le_bytes(last))
}

/// The eight bytes of a chunk as one number.
#[inline]
fn word_of(chunk: &[u8]) -> u64 {
    chunk.first_chunk().copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §4.1, in the most literal form.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071_sums_as_it_says() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), 0xddf2);
        assert_eq!(sum.checksum(), !0xddf2);
    }

    #[test]
    fn a_udp_checksum_is_never_zero() {
        assert_eq!(Sum::of(&[0xff, 0xff]).checksum(), 0);
        assert_eq!(Sum::of(&[0xff, 0xff]).udp_checksum(), 0xffff);
    }

    #[test]
    fn long_runs_of_ones_carry_all_the_way() {
        for len in [2, 8, 32, 64, 1460, 65_534] {
            assert_eq!(Sum::of(&vec![0xff; len]).partial(), 0xffff, "{len}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_sum_as_the_reference_says(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Sum::of(&bytes).checksum(), reference(&bytes));
        }

        #[test]
        fn pieces_of_any_length_sum_as_the_whole(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..10),
        ) {
            let sum = pieces.iter().fold(Sum::new(), |sum, piece| sum.with_bytes(piece));
            prop_assert_eq!(sum.checksum(), reference(&pieces.concat()));
        }

        #[test]
        fn an_updated_checksum_is_that_of_the_changed_bytes(
            words in proptest::collection::vec(1..=u16::MAX, 2..20),
            place in any::<proptest::sample::Index>(),
            new in 1..=u16::MAX,
        ) {
            let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
            let mut changed = words.clone();
            *place.get_mut(&mut changed) = new;
            let checksum = updated(reference(&bytes(&words)), *place.get(&words), new);
            prop_assert_eq!(checksum, reference(&bytes(&changed)));
        }

        #[test]
        fn pseudo_headers_sum_as_the_bytes_they_stand_for(
            from in any::<[u8; 16]>(), to in any::<[u8; 16]>(), protocol: u8, length: u32,
        ) {
            let v6 = [&from[..], &to, &length.to_be_bytes(), &[0, 0, 0, protocol]].concat();
            prop_assert_eq!(pseudo_header_v6(from.into(), to.into(), protocol, length).checksum(), reference(&v6));
            let (from, to) = ([from[0], from[1], from[2], from[3]], [to[0], to[1], to[2], to[3]]);
            let v4 = [&from[..], &to, &[0, protocol], &(length as u16).to_be_bytes()].concat();
            let sum = pseudo_header_v4(from.into(), to.into(), protocol, length as u16);
            prop_assert_eq!(sum.checksum(), reference(&v4));
        }
    }
}
