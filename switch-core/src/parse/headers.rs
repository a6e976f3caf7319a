//! All headers of a frame, layer by layer.
//!
//! Called where an offload is done in software, and later by programs that match on more than addresses. The private copy may end
//! before the headers do: [`ParseEnd`] says where the parse stopped and whose fault it is.

use super::bytes::u16_at;
use super::ethernet::{
    ETHERNET_HEADER_BYTES, EthernetHeader, VLAN_TAG_BYTES, VlanTag, is_vlan_tpid,
};
use super::network::{
    ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, Network, Upper, parse_arp, parse_ipv4,
    parse_ipv6, skip_ipv4_authentication,
};
use super::transport::{Transport, parse_transport};
use crate::drop_reason::DropReason;
use crate::vlan::Tci;

/// How many VLAN tags are followed.
pub const MAX_VLAN_TAGS: usize = 4;

/// A layer of headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Ethernet and VLAN tags.
    Link,
    /// ARP, IPv4, IPv6 and its extension headers.
    Network,
    /// TCP, UDP, ICMP.
    Transport,
}

/// How a parse ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseEnd {
    /// All headers that the core knows were read.
    Complete,
    /// The frame goes on, the private copy does not: this layer's header reaches beyond it.
    BeyondCopy(Layer),
    /// The frame, or the packet by its own account, ends inside this layer's header.
    Truncated(Layer),
    /// This layer's header contradicts itself.
    Malformed(Layer),
    /// More IPv6 extension headers than [`MAX_EXTENSION_HEADERS`](super::MAX_EXTENSION_HEADERS).
    TooManyExtensions,
    /// More VLAN tags than [`MAX_VLAN_TAGS`].
    TooManyTags,
}

/// A frame's headers. Offsets count from the frame's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Addresses and outer tag.
    pub ethernet: EthernetHeader,
    /// How many VLAN tags there are.
    pub vlan_tags: u8,
    /// The tag behind the outer one.
    pub inner_tag: Option<VlanTag>,
    /// The EtherType behind all tags.
    pub ether_type: u16,
    /// Where the network header starts.
    pub network_offset: u16,
    /// The network header.
    pub network: Option<Network>,
    /// The protocol above IP, behind all extension headers.
    pub protocol: Option<u8>,
    /// Where the transport header starts; where the parse stopped, without one.
    pub transport_offset: u16,
    /// The transport header.
    pub transport: Option<Transport>,
    /// The first byte behind the headers that were read.
    pub payload_offset: u16,
    /// How the parse ended.
    pub end: ParseEnd,
}

/// How far a parse may read.
#[derive(Clone, Copy)]
pub(super) struct Reach<'a> {
    /// The private copy.
    pub copy: &'a [u8],
    /// The length of the frame, or of the packet by its own account.
    pub frame_bytes: usize,
}

impl<'a> Reach<'a> {
    /// The same bytes up to `end`.
    #[inline]
    pub(super) fn until(self, end: usize) -> Self {
        let copy = self.copy.get(..end).unwrap_or(self.copy);
        Self {
            copy,
            frame_bytes: self.frame_bytes.min(end),
        }
    }

    /// Why a header of `layer` that reaches up to `needed` was not read.
    #[inline]
    pub(super) fn end_at(self, needed: usize, layer: Layer) -> ParseEnd {
        if needed > self.frame_bytes {
            ParseEnd::Truncated(layer)
        } else {
            ParseEnd::BeyondCopy(layer)
        }
    }
}

impl Headers {
    /// Reads the headers of a frame of `frame_bytes` that starts with `header`.
    ///
    /// # Errors
    /// As [`EthernetHeader::parse`]. Whatever else is wrong ends the parse, with [`Headers::end`] saying where and why.
    pub fn parse(header: &[u8], frame_bytes: usize) -> Result<Self, DropReason> {
        // Offsets are kept in 16 bits; no header starts beyond.
        let copy = header.get(..usize::from(u16::MAX)).unwrap_or(header);
        let reach = Reach {
            copy,
            frame_bytes: frame_bytes.max(copy.len()),
        };
        let ethernet = EthernetHeader::parse(copy)?;
        let mut headers = Self {
            ethernet,
            vlan_tags: 0,
            inner_tag: None,
            ether_type: ethernet.ether_type,
            network_offset: 0,
            network: None,
            protocol: None,
            transport_offset: 0,
            transport: None,
            payload_offset: 0,
            end: ParseEnd::Complete,
        };
        if let Err(end) = headers.parse_layers(reach) {
            headers.end = end;
        }
        Ok(headers)
    }

    #[inline]
    fn parse_layers(&mut self, reach: Reach<'_>) -> Result<(), ParseEnd> {
        self.parse_tags(reach)?;
        let Some((upper, reach)) = self.parse_network(reach)? else {
            return Ok(());
        };
        self.protocol = Some(upper.protocol);
        self.reach_to(upper.offset);
        if !upper.has_transport_header {
            return Ok(());
        }
        if let Some((transport, bytes)) = parse_transport(reach, upper.offset, upper.protocol)? {
            self.transport = Some(transport);
            self.payload_offset = (upper.offset + bytes) as u16;
        }
        Ok(())
    }

    #[inline]
    fn parse_tags(&mut self, reach: Reach<'_>) -> Result<(), ParseEnd> {
        let mut offset = ETHERNET_HEADER_BYTES;
        if self.ethernet.tag.is_some() {
            self.vlan_tags = 1;
            offset += VLAN_TAG_BYTES;
        }
        self.network_offset = offset as u16;
        self.reach_to(offset);
        while self.vlan_tags > 0 && is_vlan_tpid(self.ether_type) {
            if usize::from(self.vlan_tags) == MAX_VLAN_TAGS {
                return Err(ParseEnd::TooManyTags);
            }
            let (Some(tci), Some(next_type)) =
                (u16_at(reach.copy, offset), u16_at(reach.copy, offset + 2))
            else {
                return Err(reach.end_at(offset + VLAN_TAG_BYTES, Layer::Link));
            };
            self.inner_tag = self.inner_tag.or(Some(VlanTag {
                tpid: self.ether_type,
                tci: Tci(tci),
            }));
            self.vlan_tags += 1;
            self.ether_type = next_type;
            offset += VLAN_TAG_BYTES;
            self.network_offset = offset as u16;
            self.reach_to(offset);
        }
        Ok(())
    }

    /// Returns what is above IP, and how far it may reach.
    #[inline]
    fn parse_network<'a>(
        &mut self,
        reach: Reach<'a>,
    ) -> Result<Option<(Upper, Reach<'a>)>, ParseEnd> {
        let offset = usize::from(self.network_offset);
        let upper = match self.ether_type {
            ETHER_TYPE_ARP => {
                if let Some(arp) = parse_arp(reach, offset)? {
                    self.network = Some(Network::Arp(arp));
                    self.reach_to(offset + 28);
                }
                return Ok(None);
            }
            ETHER_TYPE_IPV4 => {
                let (header, upper) = parse_ipv4(reach, offset)?;
                self.network = Some(Network::Ipv4(header));
                self.reach_to(upper.offset);
                skip_ipv4_authentication(reach.until(upper.packet_end), upper)?
            }
            ETHER_TYPE_IPV6 => {
                let (header, upper) = parse_ipv6(reach, offset)?;
                self.network = Some(Network::Ipv6(header));
                self.reach_to(offset + super::IPV6_HEADER_BYTES);
                upper?
            }
            _ => return Ok(None),
        };
        // The packet says it is longer than the frame that carries it.
        if upper.packet_end > reach.frame_bytes {
            return Err(ParseEnd::Truncated(Layer::Network));
        }
        Ok(Some((upper, reach.until(upper.packet_end))))
    }

    #[inline]
    fn reach_to(&mut self, offset: usize) {
        self.transport_offset = offset as u16;
        self.payload_offset = offset as u16;
    }
}
