//! The frame that SEND_RARP asks for: it teaches every switch on the way where a migrated guest now is.
//!
//! Called by `state` on the device thread. QEMU builds the same announcement for devices it emulates itself.

/// The least Ethernet frame without its check sequence (IEEE 802.3 §3.2.8).
pub const RARP_FRAME_BYTES: usize = 60;

/// A broadcast reverse-ARP request for `address` by `address` (RFC 903; operation 3, "request reverse").
pub fn announcement(address: [u8; 6]) -> [u8; RARP_FRAME_BYTES] {
    const BROADCAST: [u8; 6] = [0xff; 6];
    const ETHERTYPE_RARP: [u8; 2] = [0x80, 0x35];
    /// Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4, operation 3.
    const ARP_HEAD: [u8; 8] = [0, 1, 0x08, 0x00, 6, 4, 0, 3];
    const NO_IPV4: [u8; 4] = [0; 4];
    let fields: [&[u8]; 8] = [
        &BROADCAST,
        &address,
        &ETHERTYPE_RARP,
        &ARP_HEAD,
        &address,
        &NO_IPV4,
        &address,
        &NO_IPV4,
    ];
    let mut frame = [0; RARP_FRAME_BYTES];
    for (to, from) in frame.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announcement_is_a_broadcast_reverse_arp_request() {
        let frame = announcement([2, 0, 0, 0, 0, 7]);
        let expected = [
            255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 7, 0x80, 0x35, // Ethernet
            0, 1, 8, 0, 6, 4, 0, 3, // request reverse
            2, 0, 0, 0, 0, 7, 0, 0, 0, 0, // sender
            2, 0, 0, 0, 0, 7, 0, 0, 0, 0, // target
        ];
        assert_eq!(frame[..42], expected);
        assert_eq!(frame[42..], [0; 18]);
    }
}
