//! Frames made whole: every length and checksum right, so that they leave with an all-zero virtio-net header.
//!
//! The one place where services put bytes together. Everything is appended, nothing is patched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{Sum, pseudo_header_v4, pseudo_header_v6};
use crate::mac::MacAddress;
use crate::parse::{
    ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, IPV6_HEADER_BYTES, PROTOCOL_ICMP,
    PROTOCOL_ICMPV6, PROTOCOL_UDP, UDP_HEADER_BYTES,
};

/// The hop limit of what only neighbours may send (RFC 4861 §3.1).
pub(super) const HOP_LIMIT_OF_NEIGHBORS: u8 = 255;
/// The TTL and hop limit of everything else.
pub(super) const DEFAULT_TTL: u8 = 64;
/// The length of an IPv4 header without options.
pub(super) const IPV4_HEADER_BYTES: usize = 20;

/// The VLAN tags of a frame, as they stand behind the source address: at most [`Tags::MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tags {
    bytes: [u8; 4 * Tags::MAX],
    count: u8,
}

impl Tags {
    /// How many tags an answer carries.
    pub(super) const MAX: usize = 2;

    /// The tags in `bytes`, or `None` when there are more than [`Self::MAX`].
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut tags = Self {
            count: (bytes.len() / 4) as u8,
            ..Self::default()
        };
        tags.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(tags)
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.count) * 4)
            .unwrap_or_default()
    }
}

/// A frame's Ethernet header, less the EtherType.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub destination: MacAddress,
    pub source: MacAddress,
    pub tags: Tags,
}

impl Link {
    /// From an interface to a station or group, untagged.
    pub(super) fn untagged(source: MacAddress, destination: MacAddress) -> Self {
        Self {
            destination,
            source,
            tags: Tags::default(),
        }
    }

    /// A frame that starts with this header, with room for `payload_bytes`.
    pub(super) fn frame(&self, ether_type: u16, payload_bytes: usize) -> Vec<u8> {
        let tags = self.tags.as_bytes();
        let mut frame = Vec::with_capacity(14 + tags.len() + payload_bytes);
        frame.extend(self.destination.0);
        frame.extend(self.source.0);
        frame.extend(tags);
        frame.extend(ether_type.to_be_bytes());
        frame
    }
}

/// What an IP header is made of, for either version.
#[derive(Clone, Copy, Debug)]
pub(super) struct IpFields {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    pub protocol: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
}

impl IpFields {
    /// With the default TTL and no class.
    pub(super) fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self {
            source,
            destination,
            ttl: DEFAULT_TTL,
            protocol,
            traffic_class: 0,
        }
    }

    /// The sum of the pseudo-header for a transport segment of this length.
    fn pseudo_header(&self, bytes: usize) -> Option<Sum> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Some(pseudo_header_v4(
                source,
                destination,
                self.protocol,
                u16::try_from(bytes).ok()?,
            )),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Some(pseudo_header_v6(
                source,
                destination,
                self.protocol,
                u32::try_from(bytes).ok()?,
            )),
            _ => None,
        }
    }
}

/// A frame that ends with an IP header announcing `payload_bytes` that the caller is to append. `None` when the payload is too long,
/// or the addresses are not of one family.
pub(super) fn ip_frame(link: &Link, ip: &IpFields, payload_bytes: usize) -> Option<Vec<u8>> {
    match (ip.source, ip.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = u16::try_from(IPV4_HEADER_BYTES + payload_bytes).ok()?;
            let mut frame = link.frame(ETHER_TYPE_IPV4, usize::from(total));
            frame.extend(ipv4_header(ip, (source, destination), total));
            Some(frame)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = u16::try_from(payload_bytes).ok()?;
            let mut frame = link.frame(ETHER_TYPE_IPV6, IPV6_HEADER_BYTES + payload_bytes);
            frame.extend((6 << 28 | u32::from(ip.traffic_class) << 20).to_be_bytes());
            frame.extend(length.to_be_bytes());
            frame.extend([ip.protocol, ip.ttl]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
            Some(frame)
        }
        _ => None,
    }
}

/// An IPv4 header without options. Identification 0 with Don't Fragment: an atomic datagram (RFC 6864 §4.1).
fn ipv4_header(
    ip: &IpFields,
    addresses: (Ipv4Addr, Ipv4Addr),
    total: u16,
) -> [u8; IPV4_HEADER_BYTES] {
    let header = |checksum: u16| {
        let [l0, l1] = total.to_be_bytes();
        let [c0, c1] = checksum.to_be_bytes();
        let [s0, s1, s2, s3] = addresses.0.octets();
        let [d0, d1, d2, d3] = addresses.1.octets();
        [
            0x45,
            ip.traffic_class,
            l0,
            l1,
            0,
            0,
            0x40,
            0,
            ip.ttl,
            ip.protocol,
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
        ]
    };
    header(Sum::of(&header(0)).checksum())
}

/// A UDP datagram in a frame.
pub(super) fn udp_frame(
    link: &Link,
    ip: (IpAddr, IpAddr),
    ports: (u16, u16),
    payload: &[u8],
) -> Option<Vec<u8>> {
    let ip = IpFields::new(ip.0, ip.1, PROTOCOL_UDP);
    let length = u16::try_from(UDP_HEADER_BYTES + payload.len()).ok()?;
    let checksum = ip
        .pseudo_header(usize::from(length))?
        .with_word(ports.0)
        .with_word(ports.1)
        .with_word(length)
        .with_bytes(payload)
        .udp_checksum();
    let mut frame = ip_frame(link, &ip, usize::from(length))?;
    for field in [ports.0, ports.1, length, checksum] {
        frame.extend(field.to_be_bytes());
    }
    frame.extend(payload);
    Some(frame)
}

/// An ICMP or ICMPv6 message, less its checksum.
#[derive(Clone, Copy, Debug)]
pub(super) struct IcmpMessage<'a> {
    pub kind: u8,
    pub code: u8,
    /// The header's last four bytes.
    pub rest: [u8; 4],
    pub body: &'a [u8],
}

/// An ICMP message in a frame; ICMPv6 when the addresses are of IPv6. `ip.protocol` is set here.
pub(super) fn icmp_frame(link: &Link, ip: IpFields, message: &IcmpMessage<'_>) -> Option<Vec<u8>> {
    let is_v4 = ip.source.is_ipv4();
    let ip = IpFields {
        protocol: if is_v4 {
            PROTOCOL_ICMP
        } else {
            PROTOCOL_ICMPV6
        },
        ..ip
    };
    let bytes = 8 + message.body.len();
    let pseudo = if is_v4 {
        Sum::new()
    } else {
        ip.pseudo_header(bytes)?
    };
    let checksum = pseudo
        .with_bytes(&[message.kind, message.code])
        .with_bytes(&message.rest)
        .with_bytes(message.body)
        .checksum();
    let mut frame = ip_frame(link, &ip, bytes)?;
    frame.extend([message.kind, message.code]);
    frame.extend(checksum.to_be_bytes());
    frame.extend(message.rest);
    frame.extend(message.body);
    Some(frame)
}

/// Who is who in an ARP packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct ArpFields {
    /// 1 for a request, 2 for a reply.
    pub operation: u16,
    pub sender: (MacAddress, Ipv4Addr),
    pub target: (MacAddress, Ipv4Addr),
}

/// An ARP packet in a frame (RFC 826).
pub(super) fn arp_frame(link: &Link, arp: &ArpFields) -> Vec<u8> {
    let mut frame = link.frame(ETHER_TYPE_ARP, 28);
    frame.extend([0, 1, 0x08, 0, 6, 4]);
    frame.extend(arp.operation.to_be_bytes());
    for (mac, address) in [arp.sender, arp.target] {
        frame.extend(mac.0);
        frame.extend(address.octets());
    }
    frame
}

/// The MAC address of an IPv6 multicast group (RFC 2464 §7).
pub(super) fn multicast_mac(group: Ipv6Addr) -> MacAddress {
    let [.., a, b, c, d] = group.octets();
    MacAddress([0x33, 0x33, a, b, c, d])
}

/// The group that the station with this address listens to (RFC 4291 §2.7.1).
pub(super) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let base = 0xff02_0000_0000_0000_0000_0001_ff00_0000_u128;
    Ipv6Addr::from_bits(base | (address.to_bits() & 0xff_ffff))
}

/// The link-local address that a MAC address makes (RFC 4291 appendix A).
pub(super) fn link_local_of(mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ])
}

/// All nodes on the link, `ff02::1`.
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
