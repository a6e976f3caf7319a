//! Segmentation in software: a frame that its sender left whole, for a receiver that takes only pieces.
//!
//! The data path asks for a [`SegmentPlan`] when a receiver did not accept the offload a frame was sent with (VIRTIO 1.3 §5.1.6.2,
//! `gso_type`). The plan works on the private header bytes alone: for each piece it writes that piece's own headers and says
//! which bytes of the payload follow and how to finish the checksum over them. It holds no payload and allocates nothing.
//!
//! Offsets count from the frame's first byte, VLAN tags included: plan on the frame as it came and apply the
//! [`VlanEdit`](crate::VlanEdit) to each piece's headers, or plan on the edited headers and length; both work.
//!
//! Kept true: whatever a guest put into the frame, a plan makes at most [`MAX_SEGMENTS`] pieces, none larger than asked for.

mod fragment;
mod tcp;

use std::ops::Range;

use crate::checksum::Sum;
use crate::drop_reason::DropReason;
use crate::parse::{Headers, Network, ParseEnd, Transport};

use fragment::{FragmentV4, FragmentV6};
use tcp::TcpSegments;

/// How many pieces one frame may become: 64 KiB in pieces of 64 bytes. A frame that asks for more wants to multiply its sender's
/// work.
pub const MAX_SEGMENTS: usize = 1024;

/// How many bytes a piece's headers can be longer than the frame's: an IPv6 fragment header.
pub const MAX_HEADER_GROWTH_BYTES: usize = 8;

/// How a frame is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// TCP over IPv4, `VIRTIO_NET_HDR_GSO_TCPV4`. The ECN bit needs no telling: CWR goes out with the first segment only
    /// (RFC 3168 §6.1.2).
    TcpV4 {
        /// TCP payload of each segment.
        segment_bytes: u16,
    },
    /// TCP over IPv6, `VIRTIO_NET_HDR_GSO_TCPV6`.
    TcpV6 {
        /// TCP payload of each segment.
        segment_bytes: u16,
    },
    /// UDP over either, cut into IP fragments, `VIRTIO_NET_HDR_GSO_UDP`.
    Udp {
        /// IP payload of each fragment; rounded down to a multiple of eight.
        fragment_bytes: u16,
        /// What the fragments share where the frame brings nothing: in IPv6, and in IPv4 when the identification is 0. Must not
        /// come again soon for the same two addresses; a counter does.
        identification: u32,
    },
}

/// A frame, cut.
#[derive(Clone, Debug)]
pub struct SegmentPlan<'a> {
    count: usize,
    kind: Kind<'a>,
}

#[derive(Clone, Debug)]
enum Kind<'a> {
    Tcp(TcpSegments<'a>),
    FragmentV4(FragmentV4<'a>),
    FragmentV6(FragmentV6<'a>),
}

/// One piece of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// How many bytes of the buffer its headers take.
    pub header_bytes: usize,
    /// The bytes of the frame that follow them.
    pub payload: Range<usize>,
    /// The transport checksum that is left to do, in a piece that has a transport header.
    pub checksum: Option<PendingChecksum>,
}

/// A transport checksum that lacks its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingChecksum {
    /// The sum of the pseudo-header and the transport header. Even in length: payload sums are added as they are.
    pub partial: Sum,
    /// The bytes of the frame whose sum is missing. More than the piece's payload in a first fragment, whose checksum covers the
    /// whole datagram.
    pub covers: Range<usize>,
    /// Where in the piece's headers the checksum goes, big-endian.
    pub position: usize,
    /// Whose rule for zero holds.
    pub protocol: ChecksumProtocol,
}

/// A transport protocol with a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumProtocol {
    /// TCP.
    Tcp,
    /// UDP, which sends 0 as `0xffff`.
    Udp,
}

impl PendingChecksum {
    /// The checksum, given the sum of the bytes it [`covers`](Self::covers).
    pub fn finish(&self, payload: Sum) -> u16 {
        let sum = self.partial.then(payload);
        match self.protocol {
            ChecksumProtocol::Tcp => sum.checksum(),
            ChecksumProtocol::Udp => sum.udp_checksum(),
        }
    }
}

impl<'a> SegmentPlan<'a> {
    /// Plans how to cut a frame of `frame_bytes` that starts with `header`, whose parse is `headers`.
    ///
    /// # Errors
    /// [`DropReason::HeadersTooLong`]: the headers reach beyond `header`. [`DropReason::BadVnetHeader`]: the frame is not what
    /// `gso` says, or the segment size is no size. [`DropReason::TooManySegments`]. [`DropReason::FrameTooLong`]: no IP datagram
    /// is as long. [`DropReason::OffloadUnsupported`]: a routing header hides the final destination from the checksum.
    pub fn new(
        header: &'a [u8],
        headers: &Headers,
        gso: Gso,
        frame_bytes: usize,
    ) -> Result<Self, DropReason> {
        match headers.end {
            ParseEnd::Complete => {}
            ParseEnd::BeyondCopy(_) | ParseEnd::TooManyExtensions | ParseEnd::TooManyTags => {
                return Err(DropReason::HeadersTooLong);
            }
            ParseEnd::Truncated(_) | ParseEnd::Malformed(_) => {
                return Err(DropReason::BadVnetHeader);
            }
        }
        let payload_offset = usize::from(headers.payload_offset);
        let layout = Layout {
            header: header
                .get(..payload_offset)
                .ok_or(DropReason::HeadersTooLong)?,
            network_offset: headers.network_offset.into(),
            transport_offset: headers.transport_offset.into(),
            payload: payload_offset..frame_bytes,
        };
        if frame_bytes < payload_offset {
            return Err(DropReason::BadVnetHeader);
        }
        let kind = match (gso, headers.network, headers.transport) {
            (
                Gso::TcpV4 { segment_bytes },
                Some(network @ Network::Ipv4(_)),
                Some(Transport::Tcp(tcp)),
            )
            | (
                Gso::TcpV6 { segment_bytes },
                Some(network @ Network::Ipv6(_)),
                Some(Transport::Tcp(tcp)),
            ) => Kind::Tcp(TcpSegments::new(layout, network, tcp, segment_bytes)?),
            (
                Gso::Udp {
                    fragment_bytes,
                    identification,
                },
                Some(Network::Ipv4(ip)),
                Some(Transport::Udp(_)),
            ) => Kind::FragmentV4(FragmentV4::new(
                layout,
                &ip,
                fragment_bytes,
                identification,
            )?),
            (
                Gso::Udp {
                    fragment_bytes,
                    identification,
                },
                Some(Network::Ipv6(ip)),
                Some(Transport::Udp(_)),
            ) => Kind::FragmentV6(FragmentV6::new(
                layout,
                &ip,
                fragment_bytes,
                identification,
            )?),
            _ => return Err(DropReason::BadVnetHeader),
        };
        let count = match &kind {
            Kind::Tcp(plan) => plan.count(),
            Kind::FragmentV4(plan) => plan.count(),
            Kind::FragmentV6(plan) => plan.count(),
        };
        if count > MAX_SEGMENTS {
            Err(DropReason::TooManySegments)
        } else {
            Ok(Self { count, kind })
        }
    }

    /// How many pieces there are; at least one.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Writes the headers of piece `index` to the start of `buffer`, which holds as many bytes as the frame's headers and
    /// [`MAX_HEADER_GROWTH_BYTES`] more. `None` when the buffer is smaller or there is no such piece.
    pub fn write(&self, index: usize, buffer: &mut [u8]) -> Option<Segment> {
        if index >= self.count {
            return None;
        }
        match &self.kind {
            Kind::Tcp(plan) => plan.write(index, buffer),
            Kind::FragmentV4(plan) => plan.write(index, buffer),
            Kind::FragmentV6(plan) => plan.write(index, buffer),
        }
    }
}

/// Where things are in the frame.
#[derive(Clone, Debug)]
struct Layout<'a> {
    /// All headers.
    header: &'a [u8],
    network_offset: usize,
    transport_offset: usize,
    payload: Range<usize>,
}

/// Writes `bytes` at `offset`.
fn put(buffer: &mut [u8], offset: usize, bytes: &[u8]) -> Option<()> {
    buffer
        .get_mut(offset..)?
        .get_mut(..bytes.len())?
        .copy_from_slice(bytes);
    Some(())
}

/// Puts the checksum of the IPv4 header at `offset` into it (RFC 791 §3.1).
fn put_ipv4_checksum(buffer: &mut [u8], offset: usize, header_bytes: usize) -> Option<()> {
    put(buffer, offset + 10, &[0, 0])?;
    let checksum = Sum::of(buffer.get(offset..)?.get(..header_bytes)?).checksum();
    put(buffer, offset + 10, &checksum.to_be_bytes())
}

/// Refuses what one transport checksum cannot cover: a piece of a datagram, or an address that is not the final one.
fn check_whole(network: &Network) -> Result<(), DropReason> {
    match network {
        Network::Ipv4(ip) if ip.is_fragment() => Err(DropReason::BadVnetHeader),
        Network::Ipv6(ip) if ip.extensions.fragment.is_some() => Err(DropReason::BadVnetHeader),
        // RFC 8200 §8.1: the pseudo-header has the final destination, which only the routing header names.
        Network::Ipv6(ip) if ip.extensions.routing_segments_left != 0 => {
            Err(DropReason::OffloadUnsupported)
        }
        _ => Ok(()),
    }
}
