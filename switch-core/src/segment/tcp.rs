//! TCP segmentation (TSO): each segment a packet of its own.

use crate::checksum::{Sum, pseudo_header_v4, pseudo_header_v6};
use crate::drop_reason::DropReason;
use crate::parse::{IPV6_HEADER_BYTES, Network, PROTOCOL_TCP, Tcp, TcpFlags};

use super::{
    ChecksumProtocol, Layout, PendingChecksum, Segment, check_whole, put, put_ipv4_checksum,
};

const SEQUENCE_OFFSET: usize = 4;
const FLAGS_OFFSET: usize = 13;
const CHECKSUM_OFFSET: usize = 16;

/// A TCP frame, cut.
#[derive(Clone, Debug)]
pub(super) struct TcpSegments<'a> {
    layout: Layout<'a>,
    network: Network,
    tcp: Tcp,
    segment_bytes: usize,
}

impl<'a> TcpSegments<'a> {
    pub(super) fn new(
        layout: Layout<'a>,
        network: Network,
        tcp: Tcp,
        segment_bytes: u16,
    ) -> Result<Self, DropReason> {
        check_whole(&network)?;
        let plan = Self {
            layout,
            network,
            tcp,
            segment_bytes: segment_bytes.into(),
        };
        if segment_bytes == 0 {
            return Err(DropReason::BadVnetHeader);
        }
        // Both length fields have 16 bits; an IPv4 total length counts its own header.
        let longest = plan.layout.payload.len().min(plan.segment_bytes);
        let packet_bytes = plan.layout.header.len() - plan.layout.network_offset + longest;
        if packet_bytes > usize::from(u16::MAX) {
            Err(DropReason::FrameTooLong)
        } else {
            Ok(plan)
        }
    }

    pub(super) fn count(&self) -> usize {
        self.layout
            .payload
            .len()
            .div_ceil(self.segment_bytes)
            .max(1)
    }

    pub(super) fn write(&self, index: usize, buffer: &mut [u8]) -> Option<Segment> {
        let Layout {
            header,
            network_offset,
            transport_offset,
            payload,
        } = &self.layout;
        let from = payload.start + index * self.segment_bytes;
        let to = payload.end.min(from + self.segment_bytes);
        put(buffer, 0, header)?;

        let sequence = self
            .tcp
            .sequence
            .wrapping_add((index * self.segment_bytes) as u32);
        put(
            buffer,
            transport_offset + SEQUENCE_OFFSET,
            &sequence.to_be_bytes(),
        )?;
        put(
            buffer,
            transport_offset + FLAGS_OFFSET,
            &[self.flags(index).0],
        )?;
        put(buffer, transport_offset + CHECKSUM_OFFSET, &[0, 0])?;

        let tcp_bytes = header.len() - transport_offset + (to - from);
        let network_bytes = transport_offset - network_offset;
        let pseudo_header = match &self.network {
            Network::Ipv4(ip) => {
                let total_bytes = (network_bytes + tcp_bytes) as u16;
                put(buffer, network_offset + 2, &total_bytes.to_be_bytes())?;
                // Each packet is one of its own, with an identification of its own.
                let identification = ip.identification.wrapping_add(index as u16);
                put(buffer, network_offset + 4, &identification.to_be_bytes())?;
                put_ipv4_checksum(buffer, *network_offset, ip.header_bytes.into())?;
                pseudo_header_v4(ip.source, ip.destination, PROTOCOL_TCP, tcp_bytes as u16)
            }
            Network::Ipv6(ip) => {
                let payload_bytes = (network_bytes - IPV6_HEADER_BYTES + tcp_bytes) as u16;
                put(buffer, network_offset + 4, &payload_bytes.to_be_bytes())?;
                pseudo_header_v6(ip.source, ip.destination, PROTOCOL_TCP, tcp_bytes as u32)
            }
            Network::Arp(_) => return None,
        };
        let tcp_header = buffer.get(*transport_offset..header.len())?;
        Some(Segment {
            header_bytes: header.len(),
            payload: from..to,
            checksum: Some(PendingChecksum {
                partial: pseudo_header.then(Sum::of(tcp_header)),
                covers: from..to,
                position: transport_offset + CHECKSUM_OFFSET,
                protocol: ChecksumProtocol::Tcp,
            }),
        })
    }

    /// FIN and PSH concern the end of the data, CWR (RFC 3168 §6.1.2) is said once.
    fn flags(&self, index: usize) -> TcpFlags {
        let mut flags = self.tcp.flags;
        if index > 0 {
            flags = flags.without(TcpFlags::CWR);
        }
        if index + 1 < self.count() {
            flags = flags.without(TcpFlags::FIN.with(TcpFlags::PSH));
        }
        flags
    }
}
