//! ARP, IPv4 and IPv6 headers, with the extension headers an IPv6 packet (or an authenticated IPv4 packet) puts before its
//! transport header.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::mac::MacAddress;

use super::bytes::{array_at, u8_at, u16_at, u32_at};
use super::headers::{Layer, ParseEnd, Reach};

/// The EtherType of IPv4.
pub const ETHER_TYPE_IPV4: u16 = 0x0800;
/// The EtherType of ARP.
pub const ETHER_TYPE_ARP: u16 = 0x0806;
/// The EtherType of IPv6.
pub const ETHER_TYPE_IPV6: u16 = 0x86dd;
/// The length of an IPv6 header without extensions (RFC 8200 §3).
pub const IPV6_HEADER_BYTES: usize = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// How many extension headers are followed: more than any honest packet has (RFC 8200 §4.1 names seven), few enough that a
/// hostile one costs little.
pub const MAX_EXTENSION_HEADERS: usize = 8;

/// A network-layer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// ARP for IPv4 over Ethernet.
    Arp(Arp),
    /// IPv4.
    Ipv4(Ipv4),
    /// IPv6.
    Ipv6(Ipv6),
}

/// An ARP packet (RFC 826) that maps IPv4 to Ethernet addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 for a request, 2 for a reply.
    pub operation: u16,
    /// The sender's station.
    pub sender_mac: MacAddress,
    /// The sender's address.
    pub sender_ip: Ipv4Addr,
    /// The target's station; zero in a request.
    pub target_mac: MacAddress,
    /// The target's address.
    pub target_ip: Ipv4Addr,
}

/// An IPv4 header (RFC 791).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Length of the header with its options.
    pub header_bytes: u8,
    /// DSCP and ECN.
    pub type_of_service: u8,
    /// Length of the packet by its own account; 0 in some segmentation-offload frames, which then reach to their end.
    pub total_bytes: u16,
    /// The identification that fragments share.
    pub identification: u16,
    /// The Don't Fragment flag.
    pub dont_fragment: bool,
    /// The More Fragments flag.
    pub more_fragments: bool,
    /// This fragment's place in its datagram.
    pub fragment_offset_bytes: u16,
    /// Time to live.
    pub ttl: u8,
    /// The protocol that follows.
    pub protocol: u8,
    /// The header's checksum, unchecked.
    pub checksum: u16,
    /// Where the packet is from.
    pub source: Ipv4Addr,
    /// Where it is going.
    pub destination: Ipv4Addr,
}

impl Ipv4 {
    /// Whether the packet is a part of a datagram.
    pub const fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset_bytes != 0
    }
}

/// An IPv6 header (RFC 8200) and what its extension headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The flow label, 20 bits.
    pub flow_label: u32,
    /// Length of what follows the header by its own account; 0 in a jumbogram, which then reaches to the frame's end.
    pub payload_bytes: u16,
    /// The first header that follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Where the packet is from.
    pub source: Ipv6Addr,
    /// Where it is going; the next stop, if a routing header names more.
    pub destination: Ipv6Addr,
    /// The extension headers.
    pub extensions: Extensions,
}

/// The extension headers between an IPv6 header and its transport header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// How many there are.
    pub count: u8,
    /// How many bytes they have.
    pub bytes: u16,
    /// How many of those bytes every fragment would repeat: up to the routing header, else the hop-by-hop header
    /// (RFC 8200 §4.5).
    pub unfragmentable_bytes: u16,
    /// The next-header field that announces what follows the unfragmentable part, counted from the start of the IPv6 header.
    pub announcer_offset: u16,
    /// The routing header's Segments Left: where it is not 0, `destination` is not the final one.
    pub routing_segments_left: u8,
    /// The fragment header, if there is one.
    pub fragment: Option<Ipv6Fragment>,
}

/// An IPv6 fragment header (RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Fragment {
    /// This fragment's place in its datagram.
    pub offset_bytes: u16,
    /// Whether more follow.
    pub more_fragments: bool,
    /// The identification that fragments share.
    pub identification: u32,
}

impl Ipv6Fragment {
    /// Whether the packet is a part of a datagram, rather than an atomic fragment (RFC 6946).
    pub const fn is_fragment(&self) -> bool {
        self.more_fragments || self.offset_bytes != 0
    }
}

/// What a network header says of the layer above.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upper {
    pub protocol: u8,
    pub offset: usize,
    /// Where the packet ends.
    pub packet_end: usize,
    /// Whether the transport header stands there: it does not in a fragment other than the first.
    pub has_transport_header: bool,
}

/// Reads an ARP packet. One for other kinds of address is none the core knows: `None`.
#[inline]
pub(super) fn parse_arp(reach: Reach<'_>, offset: usize) -> Result<Option<Arp>, ParseEnd> {
    let end = || reach.end_at(offset + 28, Layer::Network);
    let fixed: [u8; 8] =
        array_at(reach.copy, offset).ok_or_else(|| reach.end_at(offset + 8, Layer::Network))?;
    let [0, 1, 0x08, 0, 6, 4, operation @ ..] = fixed else {
        return Ok(None);
    };
    Ok(Some(Arp {
        operation: u16::from_be_bytes(operation),
        sender_mac: MacAddress(array_at(reach.copy, offset + 8).ok_or_else(end)?),
        sender_ip: array_at::<4>(reach.copy, offset + 14)
            .ok_or_else(end)?
            .into(),
        target_mac: MacAddress(array_at(reach.copy, offset + 18).ok_or_else(end)?),
        target_ip: array_at::<4>(reach.copy, offset + 24)
            .ok_or_else(end)?
            .into(),
    }))
}

/// Reads an IPv4 header.
#[inline]
pub(super) fn parse_ipv4(reach: Reach<'_>, offset: usize) -> Result<(Ipv4, Upper), ParseEnd> {
    let fixed: [u8; 20] =
        array_at(reach.copy, offset).ok_or_else(|| reach.end_at(offset + 20, Layer::Network))?;
    let [
        version_ihl,
        type_of_service,
        l0,
        l1,
        i0,
        i1,
        f0,
        f1,
        ttl,
        protocol,
        c0,
        c1,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ] = fixed;
    let header_bytes = (version_ihl & 0xf) * 4;
    let total_bytes = u16::from_be_bytes([l0, l1]);
    let fragment = u16::from_be_bytes([f0, f1]);
    let header = Ipv4 {
        header_bytes,
        type_of_service,
        total_bytes,
        identification: u16::from_be_bytes([i0, i1]),
        dont_fragment: fragment & 0x4000 != 0,
        more_fragments: fragment & 0x2000 != 0,
        fragment_offset_bytes: (fragment & 0x1fff) << 3,
        ttl,
        protocol,
        checksum: u16::from_be_bytes([c0, c1]),
        source: Ipv4Addr::new(s0, s1, s2, s3),
        destination: Ipv4Addr::new(d0, d1, d2, d3),
    };
    // RFC 791 §3.1: version 4, at least five words of header, a total length that covers them.
    let total_is_wrong = total_bytes != 0 && total_bytes < u16::from(header_bytes);
    if version_ihl >> 4 != 4 || header_bytes < 20 || total_is_wrong {
        return Err(ParseEnd::Malformed(Layer::Network));
    }
    let upper_offset = offset + usize::from(header_bytes);
    if upper_offset > reach.copy.len() {
        return Err(reach.end_at(upper_offset, Layer::Network));
    }
    let packet_end = if total_bytes == 0 {
        reach.frame_bytes
    } else {
        offset + usize::from(total_bytes)
    };
    let upper = Upper {
        protocol,
        offset: upper_offset,
        packet_end,
        has_transport_header: header.fragment_offset_bytes == 0,
    };
    Ok((header, upper))
}

/// Follows the authentication header of an IPv4 packet (RFC 4302), if it has one.
#[inline]
pub(super) fn skip_ipv4_authentication(reach: Reach<'_>, upper: Upper) -> Result<Upper, ParseEnd> {
    if upper.protocol != AUTHENTICATION || !upper.has_transport_header {
        return Ok(upper);
    }
    let (next, bytes) = extension(reach, upper.offset, AUTHENTICATION)?;
    Ok(Upper {
        protocol: next,
        offset: upper.offset + bytes,
        ..upper
    })
}

/// Reads an IPv6 header and follows its extension headers.
#[inline]
pub(super) fn parse_ipv6(
    reach: Reach<'_>,
    offset: usize,
) -> Result<(Ipv6, Result<Upper, ParseEnd>), ParseEnd> {
    let missing = || reach.end_at(offset + IPV6_HEADER_BYTES, Layer::Network);
    let first_word = u32_at(reach.copy, offset).ok_or_else(missing)?;
    let payload_bytes = u16_at(reach.copy, offset + 4).ok_or_else(missing)?;
    let [next_header, hop_limit] = array_at(reach.copy, offset + 6).ok_or_else(missing)?;
    let mut header = Ipv6 {
        traffic_class: (first_word >> 20) as u8,
        flow_label: first_word & 0xf_ffff,
        payload_bytes,
        next_header,
        hop_limit,
        source: array_at::<16>(reach.copy, offset + 8)
            .ok_or_else(missing)?
            .into(),
        destination: array_at::<16>(reach.copy, offset + 24)
            .ok_or_else(missing)?
            .into(),
        extensions: Extensions {
            announcer_offset: 6,
            ..Extensions::default()
        },
    };
    if first_word >> 28 != 6 {
        return Err(ParseEnd::Malformed(Layer::Network));
    }
    let start = offset + IPV6_HEADER_BYTES;
    let packet_end = if payload_bytes == 0 {
        reach.frame_bytes
    } else {
        start + usize::from(payload_bytes)
    };
    let upper = follow_extensions(
        reach.until(packet_end),
        start,
        next_header,
        &mut header.extensions,
    );
    let upper = upper.map(|upper| Upper {
        packet_end,
        ..upper
    });
    Ok((header, upper))
}

/// Walks the extension headers from `start` on (RFC 8200 §4), noting in `extensions` what they say.
#[inline]
fn follow_extensions(
    reach: Reach<'_>,
    start: usize,
    first: u8,
    extensions: &mut Extensions,
) -> Result<Upper, ParseEnd> {
    let (mut protocol, mut offset) = (first, start);
    let mut has_transport_header = true;
    while has_transport_header
        && matches!(
            protocol,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
        )
    {
        if usize::from(extensions.count) == MAX_EXTENSION_HEADERS {
            return Err(ParseEnd::TooManyExtensions);
        }
        // RFC 8200 §4.1: the hop-by-hop header only comes first.
        if protocol == HOP_BY_HOP && offset != start {
            return Err(ParseEnd::Malformed(Layer::Network));
        }
        let (next, bytes) = extension(reach, offset, protocol)?;
        match protocol {
            HOP_BY_HOP | ROUTING => {
                extensions.unfragmentable_bytes = (offset + bytes - start) as u16;
                extensions.announcer_offset = (offset - start + IPV6_HEADER_BYTES) as u16;
                if protocol == ROUTING {
                    extensions.routing_segments_left =
                        u8_at(reach.copy, offset + 3).unwrap_or_default();
                }
            }
            FRAGMENT => {
                let fragment = parse_fragment(reach, offset)?;
                has_transport_header = fragment.offset_bytes == 0;
                extensions.fragment = Some(fragment);
            }
            _ => {}
        }
        (protocol, offset) = (next, offset + bytes);
        extensions.count += 1;
        extensions.bytes = (offset - start) as u16;
    }
    Ok(Upper {
        protocol,
        offset,
        packet_end: 0,
        has_transport_header,
    })
}

#[inline]
fn parse_fragment(reach: Reach<'_>, offset: usize) -> Result<Ipv6Fragment, ParseEnd> {
    let missing = || reach.end_at(offset + 8, Layer::Network);
    let place = u16_at(reach.copy, offset + 2).ok_or_else(missing)?;
    let identification = u32_at(reach.copy, offset + 4).ok_or_else(missing)?;
    Ok(Ipv6Fragment {
        offset_bytes: place & !7,
        more_fragments: place & 1 != 0,
        identification,
    })
}

/// The next header and the length of the extension header at `offset`, all of which the copy holds.
#[inline]
fn extension(reach: Reach<'_>, offset: usize, protocol: u8) -> Result<(u8, usize), ParseEnd> {
    let [next, length] =
        array_at(reach.copy, offset).ok_or_else(|| reach.end_at(offset + 8, Layer::Network))?;
    let bytes = match protocol {
        FRAGMENT => 8,
        // RFC 4302 §2.2: in words of four bytes, less two. The fixed part is twelve bytes.
        AUTHENTICATION if length == 0 => return Err(ParseEnd::Malformed(Layer::Network)),
        AUTHENTICATION => (usize::from(length) + 2) * 4,
        // RFC 8200 §4.3: in units of eight bytes, not counting the first.
        _ => (usize::from(length) + 1) * 8,
    };
    if offset + bytes > reach.copy.len() {
        return Err(reach.end_at(offset + bytes, Layer::Network));
    }
    Ok((next, bytes))
}
