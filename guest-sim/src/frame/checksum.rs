//! The Internet checksum (RFC 1071).
//!
//! Called by `build` and `verify`. Keeps true: written the slow and obvious way, to be right rather than fast.

/// One's complement sum of big-endian words, not complemented.
pub fn sum(bytes: &[u8], start: u32) -> u32 {
    let mut total = start;
    for pair in bytes.chunks(2) {
        let word = u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        total += word;
        total = (total & 0xffff) + (total >> 16);
    }
    total
}

/// The checksum itself: the complement of the folded sum.
pub fn finish(total: u32) -> u16 {
    !fold(total)
}

/// The sum in 16 bits, not complemented: what a partial checksum field holds (VIRTIO 1.3 §5.1.6.2).
pub fn fold(total: u32) -> u16 {
    let once = (total & 0xffff) + (total >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// Sum of the pseudo-header of TCP or UDP over IPv4 (4-byte addresses) or IPv6 (16-byte ones): RFC 9293 §3.1, RFC 8200 §8.1.
pub fn pseudo_header(source: &[u8], destination: &[u8], protocol: u8, length: usize) -> u32 {
    let mut total = sum(source, 0);
    total = sum(destination, total);
    total = sum(&(length as u32).to_be_bytes(), total);
    sum(&[0, protocol], total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes, 0)), 0xddf2);
    }

    #[test]
    fn a_known_ipv4_header_has_its_known_checksum() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(finish(sum(&header, 0)), 0xb861);
    }
}
