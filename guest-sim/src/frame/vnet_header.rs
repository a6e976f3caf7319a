//! `virtio_net_hdr` (VIRTIO 1.3 §5.1.6.1), and which of its values a driver must not see.
//!
//! Called per frame by `guest_tx` and `guest_rx`. Keeps true: the check depends on the acked features alone.

use virtio_bindings::virtio_net as net;

use crate::features::Features;

/// `flags`: the checksum from `csum_start` on is to be finished.
pub const NEEDS_CSUM: u8 = net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
/// `flags`: the device has checked the checksum.
pub const DATA_VALID: u8 = net::VIRTIO_NET_HDR_F_DATA_VALID as u8;
/// Longest header.
pub const MAX_HEADER_BYTES: usize = 12;

const GSO_ECN: u8 = net::VIRTIO_NET_HDR_GSO_ECN as u8;

/// The kind of segmentation, without the ECN bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoType {
    /// One frame as it is.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP, to be fragmented by IP.
    Udp,
}

impl GsoType {
    /// As the header has it.
    pub const fn code(self) -> u8 {
        (match self {
            Self::None => net::VIRTIO_NET_HDR_GSO_NONE,
            Self::Tcp4 => net::VIRTIO_NET_HDR_GSO_TCPV4,
            Self::Tcp6 => net::VIRTIO_NET_HDR_GSO_TCPV6,
            Self::Udp => net::VIRTIO_NET_HDR_GSO_UDP,
        }) as u8
    }
}

/// A `virtio_net_hdr`. The default asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// [`GsoType::code`], with the ECN bit (0x80).
    pub gso_type: u8,
    /// Bytes of all headers, a hint.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where checksumming starts.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
    /// How many buffers the frame is spread over; only in the 12-byte form.
    pub num_buffers: u16,
}

impl VnetHeader {
    /// The 12 bytes; the legacy header is the first 10 of them.
    pub fn to_bytes(self) -> [u8; MAX_HEADER_BYTES] {
        let mut bytes = [0; MAX_HEADER_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let words = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        ];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From 10 or 12 bytes; with 10, `num_buffers` is 1. Fewer bytes count as zeroes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let word = |at: usize| u16::from_le_bytes([byte(at), byte(at + 1)]);
        Self {
            flags: byte(0),
            gso_type: byte(1),
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: if bytes.len() >= MAX_HEADER_BYTES {
                word(10)
            } else {
                1
            },
        }
    }

    /// The kind of segmentation; `None` in the outer option for a code that does not exist.
    pub fn gso(self) -> Option<GsoType> {
        let code = self.gso_type & !GSO_ECN;
        [GsoType::None, GsoType::Tcp4, GsoType::Tcp6, GsoType::Udp]
            .into_iter()
            .find(|kind| kind.code() == code)
    }

    /// Whether the ECN bit is set.
    pub fn has_ecn(self) -> bool {
        self.gso_type & GSO_ECN != 0
    }

    /// Sets the ECN bit.
    pub fn set_ecn(&mut self) {
        self.gso_type |= GSO_ECN;
    }

    /// Checks a received header against the features the driver acked (VIRTIO 1.3 §5.1.6.4.1).
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn check_received(self, acked: Features, frame_bytes: usize) -> Result<(), &'static str> {
        let needs_csum = self.flags & NEEDS_CSUM != 0;
        if self.flags & !(NEEDS_CSUM | DATA_VALID) != 0 {
            return Err("a flag that was not negotiated");
        }
        if self.flags != 0 && !acked.contains(Features::GUEST_CSUM) {
            return Err("NEEDS_CSUM or DATA_VALID without GUEST_CSUM");
        }
        if needs_csum {
            let end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
            if end > frame_bytes {
                return Err("csum_start + csum_offset + 2 is past the frame");
            }
        }
        self.check_received_gso(acked, frame_bytes)
    }

    fn check_received_gso(self, acked: Features, frame_bytes: usize) -> Result<(), &'static str> {
        let acked_by = match self.gso().ok_or("a gso_type that does not exist")? {
            GsoType::None if self.has_ecn() => return Err("ECN without segmentation"),
            GsoType::None => return Ok(()),
            GsoType::Tcp4 => Features::GUEST_TSO4,
            GsoType::Tcp6 => Features::GUEST_TSO6,
            GsoType::Udp => Features::GUEST_UFO,
        };
        if !acked.contains(acked_by) {
            return Err("a gso_type whose GUEST_ feature was not acked");
        }
        if self.has_ecn() && !acked.contains(Features::GUEST_ECN) {
            return Err("ECN without GUEST_ECN");
        }
        if self.flags & NEEDS_CSUM == 0 {
            return Err("segmentation without NEEDS_CSUM");
        }
        if self.gso_size == 0 {
            return Err("segmentation with gso_size 0");
        }
        if usize::from(self.hdr_len) > frame_bytes {
            return Err("hdr_len is past the frame");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tso4() -> VnetHeader {
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GsoType::Tcp4.code(),
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 2,
        }
    }

    #[test]
    fn a_header_survives_its_bytes() {
        assert_eq!(VnetHeader::from_bytes(&tso4().to_bytes()), tso4());
        assert_eq!(
            VnetHeader::from_bytes(&tso4().to_bytes()[..10]).num_buffers,
            1
        );
    }

    #[test]
    fn each_rule_for_received_headers_is_kept() {
        let all = Features::LINUX;
        let tso = Features::GUEST_CSUM | Features::GUEST_TSO4;
        let mut ecn = tso4();
        ecn.set_ecn();
        let cases: &[(&str, VnetHeader, Features, bool)] = &[
            ("all acked", tso4(), all, true),
            ("nothing asked", VnetHeader::default(), Features::NONE, true),
            (
                "no GUEST_CSUM",
                VnetHeader {
                    flags: DATA_VALID,
                    ..Default::default()
                },
                Features::NONE,
                false,
            ),
            (
                "unknown flag",
                VnetHeader {
                    flags: 8,
                    ..Default::default()
                },
                all,
                false,
            ),
            ("no GUEST_TSO4", tso4(), Features::GUEST_CSUM, false),
            ("ECN not acked", ecn, tso, false),
            ("ECN acked", ecn, tso | Features::GUEST_ECN, true),
            (
                "gso without csum",
                VnetHeader { flags: 0, ..tso4() },
                all,
                false,
            ),
            (
                "gso_size 0",
                VnetHeader {
                    gso_size: 0,
                    ..tso4()
                },
                all,
                false,
            ),
            (
                "csum past frame",
                VnetHeader {
                    csum_start: 1999,
                    ..tso4()
                },
                all,
                false,
            ),
            (
                "no such gso",
                VnetHeader {
                    gso_type: 2,
                    ..tso4()
                },
                all,
                false,
            ),
        ];
        for (name, header, acked, legal) in cases {
            assert_eq!(
                header.check_received(*acked, 2000).is_ok(),
                *legal,
                "{name}"
            );
        }
    }
}
