//! The virtio-net header in front of every frame (VIRTIO 1.3 §5.1.6): what a sender left to be done, and whether a receiver
//! will do it.
//!
//! A header is a guest's claim. It is checked against the frame's own headers before it may reach another guest's driver.

use switch_core::DropReason;
use switch_core::engine::edit;
use switch_core::parse::{Headers, Network, ParseEnd, Transport};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP,
};

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const MRG_RXBUF: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const GUEST_OFFLOADS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_UFO;
const HOST_OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_UFO;

/// From a TCP header's start to its checksum (RFC 9293 §3.1).
const TCP_CHECKSUM_OFFSET: u16 = 16;
/// From a UDP header's start to its checksum (RFC 768).
pub const UDP_CHECKSUM_OFFSET: u16 = 6;

/// Acked virtio features, as far as frames depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetFeatures(u64);

impl NetFeatures {
    /// What a TAP interface does: the 12-byte header, and every offload in both directions.
    pub const TAP: Self = Self(VERSION_1 | GUEST_OFFLOADS | HOST_OFFLOADS);
    /// A receiver that finishes nothing.
    pub const NONE: Self = Self(VERSION_1);

    /// From the acked feature bits.
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// Length of the header: `num_buffers` is there only with VERSION_1 or MRG_RXBUF.
    #[inline]
    pub const fn header_bytes(self) -> usize {
        if self.0 & (VERSION_1 | MRG_RXBUF) != 0 {
            12
        } else {
            10
        }
    }

    /// Whether a frame may be spread over several guest-rx chains.
    #[inline]
    pub const fn has_mergeable_buffers(self) -> bool {
        self.0 & MRG_RXBUF != 0
    }

    const fn has(self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }

    /// Whether the driver may ask for `segmentation` on what it sends.
    fn may_send(self, segmentation: Segmentation) -> bool {
        (match segmentation.kind {
            GsoKind::Tcp4 => self.has(VIRTIO_NET_F_HOST_TSO4),
            GsoKind::Tcp6 => self.has(VIRTIO_NET_F_HOST_TSO6),
            GsoKind::Udp => self.has(VIRTIO_NET_F_HOST_UFO),
        }) && (!segmentation.ecn || self.has(VIRTIO_NET_F_HOST_ECN))
    }

    /// Whether the driver takes frames with `segmentation` left to be done.
    fn takes(self, segmentation: Segmentation) -> bool {
        (match segmentation.kind {
            GsoKind::Tcp4 => self.has(VIRTIO_NET_F_GUEST_TSO4),
            GsoKind::Tcp6 => self.has(VIRTIO_NET_F_GUEST_TSO6),
            GsoKind::Udp => self.has(VIRTIO_NET_F_GUEST_UFO),
        }) && self.has(VIRTIO_NET_F_GUEST_CSUM)
            && (!segmentation.ecn || self.has(VIRTIO_NET_F_GUEST_ECN))
    }
}

/// A checksum of which the pseudo-header's part is in place: the sum from `start` to the frame's end goes into the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte that is summed.
    pub start: u16,
    /// From there to the checksum field.
    pub offset: u16,
}

/// How a frame that stands for several is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// A UDP datagram into IP fragments.
    Udp,
}

/// A frame that stands for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// How it is to be cut.
    pub kind: GsoKind,
    /// Payload of each piece, never 0.
    pub segment_bytes: u16,
    /// The first piece alone carries CWR (RFC 3168).
    pub ecn: bool,
    /// Bytes before the payload, as found in the frame rather than as the sender claims.
    pub header_bytes: u16,
}

/// What a frame's sender left to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    /// A checksum to be finished.
    pub checksum: Option<PartialChecksum>,
    /// Pieces to be cut.
    pub segmentation: Option<Segmentation>,
}

/// How a frame can reach a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// As its sender made it: the receiver does what is left.
    AsIs,
    /// Once its checksum is finished.
    Checksum(PartialChecksum),
    /// Cut into pieces.
    Segment(Segmentation),
}

impl Offload {
    /// Nothing: the frame is complete.
    pub const NONE: Self = Self {
        checksum: None,
        segmentation: None,
    };

    /// Reads the header `vnet` of a frame of `len_bytes` that starts with `frame`, sent by a driver that acked `features`.
    ///
    /// # Errors
    /// [`DropReason::BadVnetHeader`] when it asks for what was not negotiated or does not fit the frame;
    /// [`DropReason::HeadersTooLong`] when the frame's headers do not end in `frame`.
    #[inline]
    pub fn parse(
        vnet: &[u8],
        frame: &[u8],
        len_bytes: u32,
        features: NetFeatures,
    ) -> Result<Self, DropReason> {
        if Self::is_asked_for(vnet) {
            Self::parse_offloads(vnet, frame, len_bytes, features)
        } else {
            Ok(Self::NONE)
        }
    }

    /// Whether the header `vnet` asks for anything. §5.1.6.2.2: other flags are not for drivers to set and are ignored.
    #[inline(always)]
    pub fn is_asked_for(vnet: &[u8]) -> bool {
        !matches!(vnet, [flags, 0, ..] if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8 == 0)
    }

    fn parse_offloads(
        vnet: &[u8],
        frame: &[u8],
        len_bytes: u32,
        features: NetFeatures,
    ) -> Result<Self, DropReason> {
        let &[
            flags,
            gso_type,
            _,
            _,
            gso0,
            gso1,
            start0,
            start1,
            offset0,
            offset1,
            ..,
        ] = vnet
        else {
            return Err(DropReason::BadVnetHeader);
        };
        // A segmented frame leaves its checksum, too (§5.1.6.2.1).
        if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8 == 0 || !features.has(VIRTIO_NET_F_CSUM) {
            return Err(DropReason::BadVnetHeader);
        }
        let checksum = PartialChecksum {
            start: u16::from_le_bytes([start0, start1]),
            offset: u16::from_le_bytes([offset0, offset1]),
        };
        if u32::from(checksum.start) + u32::from(checksum.offset) + 2 > len_bytes {
            return Err(DropReason::BadVnetHeader);
        }
        let headers = Headers::parse(frame, len_bytes as usize)?;
        // A checksum belongs to the transport layer. Anywhere before that, writing it would change what was decided on: a VLAN
        // tag, an address.
        if checksum.start < headers.transport_offset {
            return Err(DropReason::BadVnetHeader);
        }
        let segmentation = match u32::from(gso_type) {
            VIRTIO_NET_HDR_GSO_NONE => None,
            gso => Some(parse_segmentation(
                gso,
                u16::from_le_bytes([gso0, gso1]),
                &headers,
                checksum,
            )?),
        };
        if segmentation.is_some_and(|s| !features.may_send(s)) {
            return Err(DropReason::BadVnetHeader);
        }
        Ok(Self {
            checksum: Some(checksum),
            segmentation,
        })
    }

    /// Whether nothing is left to be done.
    #[inline(always)]
    pub fn is_none(&self) -> bool {
        self.checksum.is_none() && self.segmentation.is_none()
    }

    /// Length of the longest frame that a link carries for one of `len_bytes`.
    #[inline(always)]
    pub fn wire_bytes(&self, len_bytes: u32) -> u32 {
        self.segmentation.map_or(len_bytes, |s| {
            len_bytes.min(u32::from(s.header_bytes) + u32::from(s.segment_bytes))
        })
    }

    /// The checksum that its receiver is to finish, as edits name it.
    #[inline(always)]
    pub fn partial_checksum(&self) -> Option<edit::PartialChecksum> {
        self.checksum.map(|c| edit::PartialChecksum {
            start: c.start,
            at: c.start.saturating_add(c.offset),
        })
    }

    /// The same for a frame that an edit list made `delta` bytes longer, `checksum` being what became of the unfinished checksum;
    /// `None` when the edited frame, of `len_bytes` and starting with `frame`, is not one that a receiver can finish: its
    /// outer headers are not those that the offload is about.
    pub fn edited(
        self,
        checksum: Option<edit::PartialChecksum>,
        delta: isize,
        (frame, len_bytes): (&[u8], u32),
    ) -> Option<Self> {
        let Some(checksum) = checksum else {
            // Gone with the header it was in.
            return self.segmentation.is_none().then_some(Self::NONE);
        };
        let checksum = PartialChecksum {
            start: checksum.start,
            offset: checksum.at.checked_sub(checksum.start)?,
        };
        let headers = Headers::parse(frame, len_bytes as usize).ok()?;
        if headers.transport.is_none() || headers.transport_offset != checksum.start {
            return None;
        }
        let segmentation = match self.segmentation {
            None => None,
            Some(s) => {
                let header_bytes = s.header_bytes.checked_add_signed(delta as i16)?;
                let kind_holds = matches!(
                    (s.kind, headers.network, headers.transport),
                    (
                        GsoKind::Tcp4,
                        Some(Network::Ipv4(_)),
                        Some(Transport::Tcp(_))
                    ) | (
                        GsoKind::Tcp6,
                        Some(Network::Ipv6(_)),
                        Some(Transport::Tcp(_))
                    ) | (
                        GsoKind::Udp,
                        Some(Network::Ipv4(_) | Network::Ipv6(_)),
                        Some(Transport::Udp(_))
                    )
                );
                if !kind_holds
                    || headers.end != ParseEnd::Complete
                    || headers.payload_offset != header_bytes
                {
                    return None;
                }
                Some(Segmentation { header_bytes, ..s })
            }
        };
        Some(Self {
            checksum: Some(checksum),
            segmentation,
        })
    }

    /// How the frame can reach a receiver that acked `features`.
    #[inline]
    pub fn fit(&self, features: NetFeatures) -> Fit {
        match (self.segmentation, self.checksum) {
            (None, None) => Fit::AsIs,
            (Some(segmentation), _) if !features.takes(segmentation) => Fit::Segment(segmentation),
            (_, Some(checksum)) if !features.has(VIRTIO_NET_F_GUEST_CSUM) => {
                Fit::Checksum(checksum)
            }
            _ => Fit::AsIs,
        }
    }

    /// The same for a frame whose start became `delta` bytes longer.
    #[inline]
    pub fn shifted(self, delta: isize) -> Self {
        if delta == 0 {
            return self;
        }
        let shift = |at: u16| at.saturating_add_signed(delta as i16);
        Self {
            checksum: self.checksum.map(|c| PartialChecksum {
                start: shift(c.start),
                ..c
            }),
            segmentation: self.segmentation.map(|s| Segmentation {
                header_bytes: shift(s.header_bytes),
                ..s
            }),
        }
    }

    /// The header for the receiver, `num_buffers` still to be set ([`set_num_buffers`]).
    #[inline]
    pub fn header(&self) -> [u8; 12] {
        let mut header = [0u8; 12];
        if let Some(PartialChecksum { start, offset }) = self.checksum {
            let [flags, _, _, _, _, _, start0, start1, offset0, offset1, _, _] = &mut header;
            *flags = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
            [*start0, *start1] = start.to_le_bytes();
            [*offset0, *offset1] = offset.to_le_bytes();
        }
        if let Some(segmentation) = self.segmentation {
            let [_, gso_type, len0, len1, size0, size1, ..] = &mut header;
            let kind = match segmentation.kind {
                GsoKind::Tcp4 => VIRTIO_NET_HDR_GSO_TCPV4,
                GsoKind::Tcp6 => VIRTIO_NET_HDR_GSO_TCPV6,
                GsoKind::Udp => VIRTIO_NET_HDR_GSO_UDP,
            };
            *gso_type = kind as u8
                | if segmentation.ecn {
                    VIRTIO_NET_HDR_GSO_ECN as u8
                } else {
                    0
                };
            [*len0, *len1] = segmentation.header_bytes.to_le_bytes();
            [*size0, *size1] = segmentation.segment_bytes.to_le_bytes();
        }
        header
    }
}

/// How many guest-rx chains the frame is in; 1 for a driver without mergeable buffers (§5.1.6.4.1).
#[inline]
pub fn set_num_buffers(header: &mut [u8; 12], chains: u16) {
    let [.., low, high] = header;
    [*low, *high] = chains.to_le_bytes();
}

/// Checks a segmentation request against the frame: the receiver's driver will take the claim for granted.
fn parse_segmentation(
    gso_type: u32,
    segment_bytes: u16,
    headers: &Headers,
    checksum: PartialChecksum,
) -> Result<Segmentation, DropReason> {
    let ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN != 0;
    let kind = match gso_type & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_TCPV4 => GsoKind::Tcp4,
        VIRTIO_NET_HDR_GSO_TCPV6 => GsoKind::Tcp6,
        VIRTIO_NET_HDR_GSO_UDP if !ecn => GsoKind::Udp,
        _ => return Err(DropReason::BadVnetHeader),
    };
    match headers.end {
        ParseEnd::Complete => {}
        ParseEnd::BeyondCopy(_) => return Err(DropReason::HeadersTooLong),
        _ => return Err(DropReason::BadVnetHeader),
    }
    let checksum_offset = match (kind, headers.network, headers.transport) {
        (GsoKind::Tcp4, Some(Network::Ipv4(_)), Some(Transport::Tcp(_)))
        | (GsoKind::Tcp6, Some(Network::Ipv6(_)), Some(Transport::Tcp(_))) => TCP_CHECKSUM_OFFSET,
        (GsoKind::Udp, Some(Network::Ipv4(_) | Network::Ipv6(_)), Some(Transport::Udp(_))) => {
            UDP_CHECKSUM_OFFSET
        }
        _ => return Err(DropReason::BadVnetHeader),
    };
    let expected = PartialChecksum {
        start: headers.transport_offset,
        offset: checksum_offset,
    };
    if segment_bytes == 0 || checksum != expected {
        return Err(DropReason::BadVnetHeader);
    }
    Ok(Segmentation {
        kind,
        segment_bytes,
        ecn,
        header_bytes: headers.payload_offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: NetFeatures = NetFeatures::TAP;

    /// IPv4 and UDP behind `tags` VLAN tags: where its UDP header starts, and its bytes.
    fn udp(tags: usize) -> (u16, Vec<u8>) {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for _ in 0..tags {
            frame.extend([0x81, 0, 0, 10]);
        }
        frame.extend([8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0]);
        frame.extend([
            10, 0, 0, 1, 10, 0, 0, 2, 0, 99, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4,
        ]);
        (34 + 4 * tags as u16, frame)
    }

    fn request(start: u16, offset: u16) -> [u8; 12] {
        Offload {
            checksum: Some(PartialChecksum { start, offset }),
            segmentation: None,
        }
        .header()
    }

    #[test]
    fn a_checksum_cannot_be_aimed_at_headers_that_decisions_read() {
        for tags in 0..=2 {
            let (transport, frame) = udp(tags);
            let parse = |start, offset| {
                Offload::parse(&request(start, offset), &frame, frame.len() as u32, ALL)
            };
            for start in 0..transport {
                for offset in [0, 2, 6] {
                    assert_eq!(
                        parse(start, offset),
                        Err(DropReason::BadVnetHeader),
                        "{start} + {offset}"
                    );
                }
            }
            assert!(parse(transport, UDP_CHECKSUM_OFFSET).is_ok());
            assert_eq!(
                parse(transport, 11),
                Err(DropReason::BadVnetHeader),
                "ends past the frame"
            );
        }
    }

    #[test]
    fn a_request_that_was_not_negotiated_is_refused() {
        let (transport, frame) = udp(0);
        let vnet = request(transport, UDP_CHECKSUM_OFFSET);
        let without = NetFeatures::new(VERSION_1);
        assert_eq!(
            Offload::parse(&vnet, &frame, frame.len() as u32, without),
            Err(DropReason::BadVnetHeader)
        );
    }

    #[test]
    fn what_is_left_undone_moves_with_the_tag() {
        let left = Offload {
            checksum: Some(PartialChecksum {
                start: 34,
                offset: 16,
            }),
            segmentation: None,
        };
        assert_eq!(left.shifted(4).checksum.map(|c| c.start), Some(38));
        assert_eq!(left.shifted(-4).checksum.map(|c| c.start), Some(30));
    }

    #[test]
    fn segmentation_without_checksums_is_not_taken() {
        let tcp = Segmentation {
            kind: GsoKind::Tcp4,
            segment_bytes: 1448,
            ecn: false,
            header_bytes: 54,
        };
        let left = Offload {
            checksum: Some(PartialChecksum {
                start: 34,
                offset: 16,
            }),
            segmentation: Some(tcp),
        };
        let tso_alone = NetFeatures::new(VERSION_1 | 1 << VIRTIO_NET_F_GUEST_TSO4);
        assert_eq!(left.fit(tso_alone), Fit::Segment(tcp));
        assert_eq!(left.fit(ALL), Fit::AsIs);
    }
}
