//! A router with two interfaces and the frames of its neighbours, made and read by `etherparse`.
#![allow(
    dead_code,
    clippy::expect_used,
    clippy::panic,
    reason = "each test file uses a part of this, and a test fails by panicking"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, ArpPacket, EtherType, Icmpv4Slice, Icmpv6Slice, Icmpv6Type,
    LinkSlice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
};
use switch_core::service::{
    PacketIn, PacketMetadata, PuntReason, ServiceAction, ServiceDrop, Services, ServicesConfig,
};
use switch_core::{Millis, PortId};

pub const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
pub const ROUTER_2: [u8; 6] = [2, 0, 0, 0, 0, 0xfd];
pub const VM: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
pub const VM_2: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
pub const BROADCAST: [u8; 6] = [0xff; 6];
/// The link-local address of [`ROUTER`].
pub const ROUTER_LINK_LOCAL: &str = "fe80::ff:fe00:fe";

pub fn port(index: u16) -> PortId {
    PortId::new(index).expect("in range")
}

pub fn v4(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

pub fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Interface 1 in domain 10 and interface 2 in domain 20; `extra` is JSON that is added to interface 1.
pub fn config(extra: &str) -> ServicesConfig {
    let text = format!(
        r#"{{ "interfaces": [
            {{ "id": 1, "domain": 10, "mac": "02:00:00:00:00:fe",
               "addresses": ["10.0.0.1/24", "fd00:1::1/64"] {extra} }},
            {{ "id": 2, "domain": 20, "mac": "02:00:00:00:00:fd", "mtu": 1400,
               "addresses": ["10.0.1.1/24", "fd00:2::1/64"] }} ] }}"#
    );
    serde_json::from_str(&text).expect("a configuration")
}

/// The router, and the time.
pub struct Lab {
    pub services: Services,
    pub now: Millis,
}

impl Lab {
    pub fn new(extra: &str) -> Self {
        Self::with(config(extra))
    }

    pub fn with(config: ServicesConfig) -> Self {
        let mut services = Services::new(7);
        let now = Millis(1_000_000);
        services
            .configure(config, now, &mut Vec::new())
            .expect("a good configuration");
        Self { services, now }
    }

    /// What the router does about a frame from domain 10.
    pub fn punt(&mut self, from: u16, reason: PuntReason, frame: &[u8]) -> Vec<ServiceAction> {
        let metadata = PacketMetadata {
            interface: 1,
            domain: 10,
            ..PacketMetadata::default()
        };
        self.punt_with(from, reason, (metadata, [0; 12]), frame)
    }

    pub fn punt_with(
        &mut self,
        from: u16,
        reason: PuntReason,
        (metadata, vnet_header): (PacketMetadata, [u8; 12]),
        frame: &[u8],
    ) -> Vec<ServiceAction> {
        let packet = PacketIn {
            port: port(from),
            reason,
            metadata,
            vnet_header,
            frame,
        };
        let mut actions = Vec::new();
        self.services.handle(packet, self.now, &mut actions);
        actions
    }

    /// The one frame that the router sends back through the port.
    pub fn answer(&mut self, from: u16, reason: PuntReason, frame: &[u8]) -> Vec<u8> {
        sent(from, self.punt(from, reason, frame))
    }

    /// The reason why the router does nothing.
    pub fn refusal(&mut self, reason: PuntReason, frame: &[u8]) -> ServiceDrop {
        dropped(self.punt(3, reason, frame))
    }

    /// What the router does after so many milliseconds.
    pub fn wait(&mut self, milliseconds: u64) -> Vec<ServiceAction> {
        self.now = self.now.after(Millis(milliseconds));
        let mut actions = Vec::new();
        self.services.tick(self.now, &mut actions);
        actions
    }
}

pub fn sent(to: u16, actions: Vec<ServiceAction>) -> Vec<u8> {
    match <[_; 1]>::try_from(actions) {
        Ok([ServiceAction::Send { port, frame }]) => {
            assert_eq!(port.get(), to);
            frame
        }
        other => panic!("one frame to send, not {other:?}"),
    }
}

pub fn dropped(actions: Vec<ServiceAction>) -> ServiceDrop {
    match actions.as_slice() {
        [ServiceAction::Drop { reason, .. }] => *reason,
        other => panic!("a drop, not {other:?}"),
    }
}

/// A frame that is right in every length and checksum, as `etherparse` sees it.
#[derive(Debug)]
pub struct Seen {
    pub from: [u8; 6],
    pub to: [u8; 6],
    pub tags: Vec<u16>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    pub ip_bytes: usize,
    /// Type and code of ICMP, or the ports of UDP.
    pub selector: (u16, u16),
    /// The last four bytes of an ICMP header.
    pub rest: [u8; 4],
    /// What follows the eight bytes of header.
    pub payload: Vec<u8>,
}

pub fn see(frame: &[u8]) -> Seen {
    let packet = SlicedPacket::from_ethernet(frame).expect("a good frame");
    let Some(LinkSlice::Ethernet2(link)) = &packet.link else {
        panic!("Ethernet");
    };
    let (source, destination, ttl, ip_bytes): (IpAddr, IpAddr, u8, usize) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            (
                header.source.into(),
                header.destination.into(),
                header.time_to_live,
                usize::from(header.total_len),
            )
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            (
                header.source.into(),
                header.destination.into(),
                header.hop_limit,
                40 + usize::from(header.payload_length),
            )
        }
        other => panic!("IP, not {other:?}"),
    };
    let (selector, rest, payload) = match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => see_icmp(icmp),
        Some(TransportSlice::Icmpv6(icmp)) => see_icmpv6(icmp, source, destination),
        Some(TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            let sum = match (source, destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => header.calc_checksum_ipv4_raw(
                    source.octets(),
                    destination.octets(),
                    udp.payload(),
                ),
                (IpAddr::V6(source), IpAddr::V6(destination)) => header.calc_checksum_ipv6_raw(
                    source.octets(),
                    destination.octets(),
                    udp.payload(),
                ),
                _ => panic!("one family"),
            };
            assert_eq!(header.checksum, sum.expect("a length that fits"));
            let ports = (header.source_port, header.destination_port);
            (ports, [0; 4], udp.payload().to_vec())
        }
        other => panic!("ICMP or UDP, not {other:?}"),
    };
    let link_bytes = frame.len() - ip_bytes;
    let tags: Vec<u16> = packet.vlan_ids().iter().map(|id| id.value()).collect();
    assert_eq!(link_bytes, 14 + 4 * tags.len(), "no padding, nothing cut");
    Seen {
        from: link.source(),
        to: link.destination(),
        tags,
        source,
        destination,
        ttl,
        ip_bytes,
        selector,
        rest,
        payload,
    }
}

type SeenTransport = ((u16, u16), [u8; 4], Vec<u8>);

fn see_icmp(icmp: &Icmpv4Slice<'_>) -> SeenTransport {
    let sum = icmp.icmp_type().calc_checksum(icmp.payload());
    assert_eq!(icmp.checksum(), sum);
    let selector = (u16::from(icmp.type_u8()), u16::from(icmp.code_u8()));
    (selector, icmp.bytes5to8(), icmp.payload().to_vec())
}

fn see_icmpv6(icmp: &Icmpv6Slice<'_>, source: IpAddr, destination: IpAddr) -> SeenTransport {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) else {
        panic!("ICMPv6 over IPv6");
    };
    assert!(icmp.is_checksum_valid(source.octets(), destination.octets()));
    let selector = (u16::from(icmp.type_u8()), u16::from(icmp.code_u8()));
    (selector, icmp.bytes5to8(), icmp.payload().to_vec())
}

/// An ARP packet from `sender` to `to`.
pub fn arp(
    operation: ArpOperation,
    to: [u8; 6],
    sender: ([u8; 6], &str),
    target: ([u8; 6], &str),
) -> Vec<u8> {
    let packet = ArpPacket::from(ArpEthIpv4Packet {
        operation,
        sender_mac: sender.0,
        sender_ipv4: v4(sender.1).octets(),
        target_mac: target.0,
        target_ipv4: v4(target.1).octets(),
    });
    let builder = PacketBuilder::ethernet2(sender.0, to).arp(packet);
    let mut frame = Vec::new();
    builder.write(&mut frame).expect("a vector takes it");
    frame
}

pub fn arp_request(sender: ([u8; 6], &str), target: &str) -> Vec<u8> {
    arp(ArpOperation::REQUEST, BROADCAST, sender, ([0; 6], target))
}

/// The Ethernet addresses and the ARP packet of a frame.
pub fn see_arp(frame: &[u8]) -> ([u8; 6], [u8; 6], ArpEthIpv4Packet) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a good frame");
    let (Some(LinkSlice::Ethernet2(link)), Some(NetSlice::Arp(arp))) = (&packet.link, &packet.net)
    else {
        panic!("ARP over Ethernet");
    };
    assert_eq!(arp.proto_addr_type(), EtherType::IPV4);
    let arp = arp
        .to_packet()
        .try_eth_ipv4()
        .expect("of Ethernet and IPv4");
    (link.source(), link.destination(), arp)
}

/// The group that the station with this address listens to.
pub fn solicited_node(address: &str) -> (String, [u8; 6]) {
    let [.., a, b, c] = v6(address).octets();
    (
        format!("ff02::1:ff{a:02x}:{:x}", u16::from_be_bytes([b, c])),
        [0x33, 0x33, 0xff, a, b, c],
    )
}

/// An ICMPv6 message between neighbours.
pub fn icmpv6(
    macs: ([u8; 6], [u8; 6]),
    addresses: (&str, &str),
    kind: Icmpv6Type,
    payload: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs.0, macs.1)
        .ipv6(v6(addresses.0).octets(), v6(addresses.1).octets(), 255)
        .icmpv6(kind);
    let mut frame = Vec::new();
    builder
        .write(&mut frame, payload)
        .expect("a vector takes it");
    frame
}

/// A neighbour solicitation for `target`.
pub fn solicitation(mac: [u8; 6], source: &str, target: &str) -> Vec<u8> {
    let (group, group_mac) = solicited_node(target);
    let mut payload = v6(target).octets().to_vec();
    if source != "::" {
        payload.extend([1, 1]);
        payload.extend(mac);
    }
    icmpv6(
        (mac, group_mac),
        (source, &group),
        Icmpv6Type::NeighborSolicitation,
        &payload,
    )
}

/// A UDP datagram over IPv4 from [`VM`] to [`ROUTER`].
pub fn udp4(source: &str, destination: &str, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(VM, ROUTER)
        .ipv4(v4(source).octets(), v4(destination).octets(), ttl)
        .udp(40_000, 33_434);
    let mut frame = Vec::new();
    builder
        .write(&mut frame, payload)
        .expect("a vector takes it");
    frame
}

/// A UDP datagram over IPv6 from [`VM`] to [`ROUTER`].
pub fn udp6(source: &str, destination: &str, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(VM, ROUTER)
        .ipv6(v6(source).octets(), v6(destination).octets(), ttl)
        .udp(40_000, 33_434);
    let mut frame = Vec::new();
    builder
        .write(&mut frame, payload)
        .expect("a vector takes it");
    frame
}

/// The same frame with a VLAN tag.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    let [high, low] = vlan.to_be_bytes();
    [addresses, &[0x81, 0, high, low], rest].concat()
}
