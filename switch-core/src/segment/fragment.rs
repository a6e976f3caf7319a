//! UDP fragmentation (UFO): one datagram as a row of IP fragments.

use std::ops::Range;

use crate::checksum::{Sum, pseudo_header_v4, pseudo_header_v6};
use crate::drop_reason::DropReason;
use crate::parse::{IPV6_HEADER_BYTES, Ipv4, Ipv6, Network, PROTOCOL_UDP, UDP_HEADER_BYTES};

use super::{
    ChecksumProtocol, Layout, PendingChecksum, Segment, check_whole, put, put_ipv4_checksum,
};

const UDP_LENGTH_OFFSET: usize = 4;
const UDP_CHECKSUM_OFFSET: usize = 6;
const IPV4_FIXED_BYTES: usize = 20;
const FRAGMENT_HEADER: u8 = 44;
const FRAGMENT_HEADER_BYTES: usize = 8;

/// How a run of bytes is cut at multiples of eight (RFC 791 §3.2, RFC 8200 §4.5). It starts with headers, which the first
/// fragment takes, and goes on with payload.
#[derive(Clone, Copy, Debug)]
struct Cut {
    header_bytes: usize,
    total_bytes: usize,
    piece_bytes: usize,
}

impl Cut {
    /// The cut of what starts `header_bytes` before the payload.
    fn new(
        header_bytes: usize,
        payload_bytes: usize,
        fragment_bytes: u16,
    ) -> Result<Self, DropReason> {
        let piece_bytes = usize::from(fragment_bytes & !7);
        // RFC 7112 §5: the first fragment has the whole header chain. In IPv4 it is the UDP header alone.
        if piece_bytes == 0 || piece_bytes < header_bytes {
            return Err(DropReason::BadVnetHeader);
        }
        Ok(Self {
            header_bytes,
            total_bytes: header_bytes + payload_bytes,
            piece_bytes,
        })
    }

    fn count(&self) -> usize {
        self.total_bytes.div_ceil(self.piece_bytes)
    }

    fn is_last(&self, index: usize) -> bool {
        index + 1 >= self.count()
    }

    /// Piece `index`, as a range of the run.
    fn piece(&self, index: usize) -> Range<usize> {
        let start = index * self.piece_bytes;
        start..self.total_bytes.min(start + self.piece_bytes)
    }

    /// The payload in `piece`, given where in the frame the payload starts.
    fn payload(&self, piece: &Range<usize>, payload_offset: usize) -> Range<usize> {
        let in_frame = |at: usize| payload_offset + at.saturating_sub(self.header_bytes);
        in_frame(piece.start)..in_frame(piece.end)
    }
}

/// The datagram's UDP length, if it and the IP header fit into one IP datagram.
fn udp_bytes(layout: &Layout<'_>, counted_header_bytes: usize) -> Result<u16, DropReason> {
    let udp_bytes = UDP_HEADER_BYTES + layout.payload.len();
    if udp_bytes + counted_header_bytes > usize::from(u16::MAX) {
        return Err(DropReason::FrameTooLong);
    }
    Ok(udp_bytes as u16)
}

/// Completes the UDP header of a first fragment, whose place in `buffer` is `offset`, and says what its checksum still lacks.
fn finish_udp(
    buffer: &mut [u8],
    offset: usize,
    layout: &Layout<'_>,
    pseudo_header: Sum,
) -> Option<PendingChecksum> {
    let udp_bytes = (UDP_HEADER_BYTES + layout.payload.len()) as u16;
    put(buffer, offset + UDP_LENGTH_OFFSET, &udp_bytes.to_be_bytes())?;
    put(buffer, offset + UDP_CHECKSUM_OFFSET, &[0, 0])?;
    let udp_header = buffer.get(offset..)?.get(..UDP_HEADER_BYTES)?;
    Some(PendingChecksum {
        partial: pseudo_header.then(Sum::of(udp_header)),
        covers: layout.payload.clone(),
        position: offset + UDP_CHECKSUM_OFFSET,
        protocol: ChecksumProtocol::Udp,
    })
}

/// A UDP datagram over IPv4, cut.
#[derive(Clone, Debug)]
pub(super) struct FragmentV4<'a> {
    layout: Layout<'a>,
    ip: Ipv4,
    identification: u16,
    pseudo_header: Sum,
    cut: Cut,
}

impl<'a> FragmentV4<'a> {
    pub(super) fn new(
        layout: Layout<'a>,
        ip: &Ipv4,
        fragment_bytes: u16,
        identification: u32,
    ) -> Result<Self, DropReason> {
        check_whole(&Network::Ipv4(*ip))?;
        if ip.protocol != PROTOCOL_UDP {
            // An authentication header covers the packet as it was.
            return Err(DropReason::OffloadUnsupported);
        }
        let udp_bytes = udp_bytes(&layout, ip.header_bytes.into())?;
        Ok(Self {
            cut: Cut::new(UDP_HEADER_BYTES, layout.payload.len(), fragment_bytes)?,
            pseudo_header: pseudo_header_v4(ip.source, ip.destination, PROTOCOL_UDP, udp_bytes),
            // RFC 6864 §4.1: a packet that was not to be fragmented may have any identification, also none.
            identification: if ip.identification == 0 {
                identification as u16
            } else {
                ip.identification
            },
            ip: *ip,
            layout,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.cut.count()
    }

    pub(super) fn write(&self, index: usize, buffer: &mut [u8]) -> Option<Segment> {
        let Layout {
            header,
            network_offset,
            transport_offset,
            payload,
        } = &self.layout;
        let piece = self.cut.piece(index);
        let header_bytes = if index == 0 {
            header.len()
        } else {
            *transport_offset
        };
        put(buffer, 0, header.get(..header_bytes)?)?;

        let total_bytes = usize::from(self.ip.header_bytes) + piece.len();
        let more_fragments = if self.cut.is_last(index) { 0 } else { 0x2000 };
        let place = more_fragments | (piece.start / 8) as u16;
        put(
            buffer,
            network_offset + 2,
            &(total_bytes as u16).to_be_bytes(),
        )?;
        put(
            buffer,
            network_offset + 4,
            &self.identification.to_be_bytes(),
        )?;
        put(buffer, network_offset + 6, &place.to_be_bytes())?;
        if index > 0 {
            blank_uncopied_options(
                buffer.get_mut(network_offset + IPV4_FIXED_BYTES..*transport_offset)?,
            );
        }
        put_ipv4_checksum(buffer, *network_offset, self.ip.header_bytes.into())?;
        let checksum = match index {
            0 => Some(finish_udp(
                buffer,
                *transport_offset,
                &self.layout,
                self.pseudo_header,
            )?),
            _ => None,
        };
        Some(Segment {
            header_bytes,
            payload: self.cut.payload(&piece, payload.start),
            checksum,
        })
    }
}

/// Replaces the options that only the first fragment has by no-operations (RFC 791 §3.1, the copied flag).
fn blank_uncopied_options(mut options: &mut [u8]) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    while let Some(&kind) = options.first() {
        let bytes = match kind {
            END => return,
            NO_OPERATION => 1,
            _ => options.get(1).map_or(0, |&length| usize::from(length)),
        };
        // An option that ends before its own length field, or beyond the header, is none: leave the rest alone.
        if bytes == 0 || (kind != NO_OPERATION && bytes < 2) {
            return;
        }
        let Some((option, rest)) = options.split_at_mut_checked(bytes) else {
            return;
        };
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        options = rest;
    }
}

/// A UDP datagram over IPv6, cut. The unfragmentable part is repeated, a fragment header follows it, and the rest of the extension
/// headers goes with the UDP header (RFC 8200 §4.5).
#[derive(Clone, Debug)]
pub(super) struct FragmentV6<'a> {
    layout: Layout<'a>,
    /// Where the unfragmentable part ends.
    split: usize,
    /// The next-header field that will announce the fragment header, and what it announces now.
    announcer: usize,
    announced: u8,
    identification: u32,
    pseudo_header: Sum,
    cut: Cut,
}

impl<'a> FragmentV6<'a> {
    pub(super) fn new(
        layout: Layout<'a>,
        ip: &Ipv6,
        fragment_bytes: u16,
        identification: u32,
    ) -> Result<Self, DropReason> {
        check_whole(&Network::Ipv6(*ip))?;
        let unfragmentable_bytes = usize::from(ip.extensions.unfragmentable_bytes);
        let udp_bytes = udp_bytes(
            &layout,
            usize::from(ip.extensions.bytes) + FRAGMENT_HEADER_BYTES,
        )?;
        let split = layout.network_offset + IPV6_HEADER_BYTES + unfragmentable_bytes;
        let announcer = layout.network_offset + usize::from(ip.extensions.announcer_offset);
        let fragmentable_header_bytes = layout.header.len().saturating_sub(split);
        Ok(Self {
            cut: Cut::new(
                fragmentable_header_bytes,
                layout.payload.len(),
                fragment_bytes,
            )?,
            pseudo_header: pseudo_header_v6(
                ip.source,
                ip.destination,
                PROTOCOL_UDP,
                udp_bytes.into(),
            ),
            announced: *layout
                .header
                .get(announcer)
                .ok_or(DropReason::BadVnetHeader)?,
            split,
            announcer,
            identification,
            layout,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.cut.count()
    }

    pub(super) fn write(&self, index: usize, buffer: &mut [u8]) -> Option<Segment> {
        let Layout {
            header,
            network_offset,
            transport_offset,
            payload,
        } = &self.layout;
        let piece = self.cut.piece(index);
        let (unfragmentable, fragmentable) = header.split_at_checked(self.split)?;
        put(buffer, 0, unfragmentable)?;
        put(buffer, self.announcer, &[FRAGMENT_HEADER])?;

        let more_fragments = u16::from(!self.cut.is_last(index));
        let [place_high, place_low] = (piece.start as u16 | more_fragments).to_be_bytes();
        let [a, b, c, d] = self.identification.to_be_bytes();
        put(
            buffer,
            self.split,
            &[self.announced, 0, place_high, place_low, a, b, c, d],
        )?;

        let after_fragment_header = self.split + FRAGMENT_HEADER_BYTES;
        let packet_bytes = after_fragment_header - network_offset + piece.len();
        let payload_bytes = (packet_bytes - IPV6_HEADER_BYTES) as u16;
        put(buffer, network_offset + 4, &payload_bytes.to_be_bytes())?;
        let (header_bytes, checksum) = match index {
            0 => {
                put(buffer, after_fragment_header, fragmentable)?;
                let udp_offset = transport_offset + FRAGMENT_HEADER_BYTES;
                let checksum = finish_udp(buffer, udp_offset, &self.layout, self.pseudo_header)?;
                (header.len() + FRAGMENT_HEADER_BYTES, Some(checksum))
            }
            _ => (after_fragment_header, None),
        };
        Some(Segment {
            header_bytes,
            payload: self.cut.payload(&piece, payload.start),
            checksum,
        })
    }
}
