//! A frame that came in, parsed once for all services.

use std::net::IpAddr;

use super::action::PacketIn;
use super::build::{Link, Tags};
use super::drop::ServiceDrop;
use crate::checksum::{Sum, pseudo_header_v4, pseudo_header_v6};
use crate::mac::MacAddress;
use crate::parse::{Arp, ETHERNET_HEADER_BYTES, Headers, Ipv4, Ipv6, Network, ParseEnd, Transport};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` and `VIRTIO_NET_HDR_F_DATA_VALID` (VIRTIO 1.3 §5.1.6): the frame's checksum is not there yet, or need
/// not be looked at.
const CHECKSUM_IS_NOT_ON_US: u8 = 1 | 2;

/// A frame and its headers.
pub(super) struct Inbound<'a> {
    pub packet: PacketIn<'a>,
    pub headers: Headers,
    pub tags: Tags,
}

impl<'a> Inbound<'a> {
    pub(super) fn parse(packet: PacketIn<'a>) -> Result<Self, ServiceDrop> {
        let headers =
            Headers::parse(packet.frame, packet.frame.len()).map_err(|_| ServiceDrop::Malformed)?;
        let tags_end = usize::from(headers.network_offset).saturating_sub(2);
        let tags = packet
            .frame
            .get(ETHERNET_HEADER_BYTES - 2..tags_end)
            .and_then(Tags::read)
            .ok_or(ServiceDrop::Malformed)?;
        Ok(Self {
            packet,
            headers,
            tags,
        })
    }

    /// The station that sent the frame.
    pub(super) fn source_mac(&self) -> MacAddress {
        self.headers.ethernet.source
    }

    /// The Ethernet header of an answer to the sender, from `source`.
    pub(super) fn answer_link(&self, source: MacAddress) -> Link {
        self.answer_link_to(source, self.source_mac())
    }

    /// The Ethernet header of an answer through the same port to another address.
    pub(super) fn answer_link_to(&self, source: MacAddress, destination: MacAddress) -> Link {
        Link {
            destination,
            source,
            tags: self.tags,
        }
    }

    pub(super) fn arp(&self) -> Option<Arp> {
        match self.headers.network {
            Some(Network::Arp(arp)) => Some(arp),
            _ => None,
        }
    }

    pub(super) fn ipv4(&self) -> Option<Ipv4> {
        match self.headers.network {
            Some(Network::Ipv4(header)) => Some(header),
            _ => None,
        }
    }

    pub(super) fn ipv6(&self) -> Option<Ipv6> {
        match self.headers.network {
            Some(Network::Ipv6(header)) => Some(header),
            _ => None,
        }
    }

    /// Where the packet is from and where it is going.
    pub(super) fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        match self.headers.network {
            Some(Network::Ipv4(ip)) => Some((ip.source.into(), ip.destination.into())),
            Some(Network::Ipv6(ip)) => Some((ip.source.into(), ip.destination.into())),
            _ => None,
        }
    }

    /// Whether the packet is a part of a datagram.
    pub(super) fn is_fragment(&self) -> bool {
        match self.headers.network {
            Some(Network::Ipv4(ip)) => ip.is_fragment(),
            Some(Network::Ipv6(ip)) => ip
                .extensions
                .fragment
                .is_some_and(|fragment| fragment.is_fragment()),
            _ => false,
        }
    }

    /// Whether the packet is a part of a datagram, and not its first.
    pub(super) fn is_later_fragment(&self) -> bool {
        match self.headers.network {
            Some(Network::Ipv4(ip)) => ip.fragment_offset_bytes != 0,
            Some(Network::Ipv6(ip)) => ip
                .extensions
                .fragment
                .is_some_and(|fragment| fragment.offset_bytes != 0),
            _ => false,
        }
    }

    /// The IP packet, from its header to its end by its own account, without Ethernet's padding. What is there of it, when it is
    /// cut short.
    pub(super) fn ip_packet(&self) -> &'a [u8] {
        let start = usize::from(self.headers.network_offset);
        let bytes = match self.headers.network {
            Some(Network::Ipv4(ip)) if ip.total_bytes != 0 => usize::from(ip.total_bytes),
            Some(Network::Ipv6(ip)) if ip.payload_bytes != 0 => 40 + usize::from(ip.payload_bytes),
            _ => usize::MAX,
        };
        let rest = self.packet.frame.get(start..).unwrap_or_default();
        rest.get(..bytes).unwrap_or(rest)
    }

    /// The transport header and its payload.
    pub(super) fn transport_bytes(&self) -> &'a [u8] {
        let skipped = self
            .headers
            .transport_offset
            .saturating_sub(self.headers.network_offset);
        self.ip_packet()
            .get(usize::from(skipped)..)
            .unwrap_or_default()
    }

    /// The payload of a UDP datagram by its own account, once everything about it is right.
    pub(super) fn udp_payload(&self) -> Result<&'a [u8], ServiceDrop> {
        let Some(Transport::Udp(udp)) = self.headers.transport else {
            return Err(ServiceDrop::Malformed);
        };
        self.must_be_whole()?;
        let datagram = self
            .transport_bytes()
            .get(..usize::from(udp.length_bytes))
            .ok_or(ServiceDrop::Malformed)?;
        // RFC 768: 0 says that there is none, which IPv6 does not allow (RFC 8200 §8.1).
        let has_none = udp.checksum == 0 && self.ipv4().is_some();
        if !has_none && !self.checksum_holds(datagram) {
            return Err(ServiceDrop::BadChecksum);
        }
        datagram.get(8..).ok_or(ServiceDrop::Malformed)
    }

    /// The whole ICMP or ICMPv6 message, once its checksum is known to be right.
    pub(super) fn icmp_message(&self) -> Result<&'a [u8], ServiceDrop> {
        if !matches!(
            self.headers.transport,
            Some(Transport::Icmp(_) | Transport::Icmpv6(_))
        ) {
            return Err(ServiceDrop::Malformed);
        }
        self.must_be_whole()?;
        let message = self.transport_bytes();
        if self.checksum_holds(message) {
            Ok(message)
        } else {
            Err(ServiceDrop::BadChecksum)
        }
    }

    /// Whether the parse came to its end, and the IPv4 header's checksum holds.
    pub(super) fn must_be_whole(&self) -> Result<(), ServiceDrop> {
        if self.headers.end != ParseEnd::Complete {
            return Err(ServiceDrop::Malformed);
        }
        self.ip_header_must_hold()
    }

    /// Whether the IPv4 header's checksum holds; nobody offloads that one.
    pub(super) fn ip_header_must_hold(&self) -> Result<(), ServiceDrop> {
        let Some(ip) = self.ipv4() else {
            return Ok(());
        };
        let header = self.ip_packet().get(..usize::from(ip.header_bytes));
        // A segmentation offload frame with a total length of 0 has no checksum over it yet.
        if ip.total_bytes == 0 || header.is_some_and(|header| Sum::of(header).verifies()) {
            Ok(())
        } else {
            Err(ServiceDrop::BadChecksum)
        }
    }

    /// Whether `segment`, the packet's transport header and payload, has the right checksum, or one that is not to be looked at.
    fn checksum_holds(&self, segment: &[u8]) -> bool {
        let [flags, ..] = self.packet.vnet_header;
        if flags & CHECKSUM_IS_NOT_ON_US != 0 {
            return true;
        }
        let protocol = self.headers.protocol.unwrap_or_default();
        let pseudo = match (self.headers.network, self.headers.transport) {
            (Some(Network::Ipv4(_)), Some(Transport::Icmp(_))) => Sum::new(),
            (Some(Network::Ipv4(ip)), _) => {
                pseudo_header_v4(ip.source, ip.destination, protocol, segment.len() as u16)
            }
            (Some(Network::Ipv6(ip)), _) => {
                pseudo_header_v6(ip.source, ip.destination, protocol, segment.len() as u32)
            }
            _ => return false,
        };
        pseudo.with_bytes(segment).verifies()
    }
}
