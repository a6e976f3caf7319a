//! Frames, made and checked by `etherparse`.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header,
    LinkSlice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
};

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const FIN: u8 = 1;
pub const RST: u8 = 4;
pub const BROADCAST: [u8; 6] = [255; 6];

/// The MAC address that ends in this byte.
pub const fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// From where to where: MAC addresses by their last byte, addresses.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub macs: ([u8; 6], [u8; 6]),
    pub from: IpAddr,
    pub to: IpAddr,
}

pub fn way(macs: (u8, u8), from: &str, to: &str) -> Way {
    Way {
        macs: (mac(macs.0), mac(macs.1)),
        from: ip(from),
        to: ip(to),
    }
}

macro_rules! built {
    ($way:expr, $ttl:expr, $payload:expr, $($transport:tt)*) => {{
        let way = $way;
        let ethernet = PacketBuilder::ethernet2(way.macs.0, way.macs.1);
        let mut frame = Vec::new();
        match (way.from, way.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet
                .ipv4(from.octets(), to.octets(), $ttl)
                .$($transport)*
                .write(&mut frame, $payload)
                .unwrap(),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet
                .ipv6(from.octets(), to.octets(), $ttl)
                .$($transport)*
                .write(&mut frame, $payload)
                .unwrap(),
            _ => panic!("one family"),
        }
        frame
    }};
}

pub fn udp(way: Way, source: u16, destination: u16) -> Vec<u8> {
    udp_of(way, (source, destination), 64, b"datagram")
}

pub fn udp_of(way: Way, ports: (u16, u16), ttl: u8, payload: &[u8]) -> Vec<u8> {
    built!(way, ttl, payload, udp(ports.0, ports.1))
}

/// A segment with sequence and acknowledgement numbers.
pub fn tcp(way: Way, ports: (u16, u16), flags: u8, numbers: (u32, u32), payload: &[u8]) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(ports.0, ports.1, numbers.0, 65_000);
    header.syn = flags & SYN != 0;
    header.fin = flags & FIN != 0;
    header.rst = flags & RST != 0;
    header.ack = flags & ACK != 0;
    header.acknowledgment_number = numbers.1;
    built!(way, 64, payload, tcp_header(header))
}

pub fn echo_request(way: Way, id: u16) -> Vec<u8> {
    match way.from {
        IpAddr::V4(_) => built!(way, 64, b"ping", icmpv4_echo_request(id, 1)),
        IpAddr::V6(_) => v6(
            way,
            64,
            |builder| builder.icmpv6_echo_request(id, 1),
            b"ping",
        ),
    }
}

pub fn echo_reply(way: Way, id: u16) -> Vec<u8> {
    match way.from {
        IpAddr::V4(_) => built!(way, 64, b"ping", icmpv4_echo_reply(id, 1)),
        IpAddr::V6(_) => v6(way, 64, |builder| builder.icmpv6_echo_reply(id, 1), b"ping"),
    }
}

type Ip = etherparse::PacketBuilderStep<etherparse::IpHeaders>;

pub fn v6<T>(
    way: Way,
    hop_limit: u8,
    transport: impl FnOnce(Ip) -> etherparse::PacketBuilderStep<T>,
    payload: &[u8],
) -> Vec<u8>
where
    etherparse::PacketBuilderStep<T>: WritePacket,
{
    let (IpAddr::V6(from), IpAddr::V6(to)) = (way.from, way.to) else {
        panic!("IPv6");
    };
    let ip = PacketBuilder::ethernet2(way.macs.0, way.macs.1).ipv6(
        from.octets(),
        to.octets(),
        hop_limit,
    );
    let mut frame = Vec::new();
    transport(ip).write_packet(&mut frame, payload);
    frame
}

pub trait WritePacket {
    fn write_packet(self, frame: &mut Vec<u8>, payload: &[u8]);
}

impl WritePacket for etherparse::PacketBuilderStep<etherparse::Icmpv6Header> {
    fn write_packet(self, frame: &mut Vec<u8>, payload: &[u8]) {
        self.write(frame, payload).unwrap();
    }
}

impl WritePacket for etherparse::PacketBuilderStep<etherparse::Icmpv4Header> {
    fn write_packet(self, frame: &mut Vec<u8>, payload: &[u8]) {
        self.write(frame, payload).unwrap();
    }
}

/// An ICMP error of a type and code about a frame, as its receiver (or a router) sends it.
pub fn icmp_error(way: Way, kind: (u8, u8), about: &[u8]) -> Vec<u8> {
    let quoted = &about[14..about.len().min(14 + 64)];
    match way.from {
        IpAddr::V4(_) => built!(way, 64, quoted, icmpv4_raw(kind.0, kind.1, [0; 4])),
        IpAddr::V6(_) => v6(
            way,
            64,
            |builder| builder.icmpv6_raw(kind.0, kind.1, [0; 4]),
            quoted,
        ),
    }
}

/// A neighbour solicitation (135) or advertisement (136), with a link-layer address option if one is given.
pub fn nd(way: Way, kind: u8, target: &str, option: Option<(u8, [u8; 6])>) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    let mut payload = target.octets().to_vec();
    if let Some((kind, mac)) = option {
        payload.extend([kind, 1]);
        payload.extend(mac);
    }
    v6(
        way,
        255,
        |builder| builder.icmpv6_raw(kind, 0, [0; 4]),
        &payload,
    )
}

/// An ARP packet.
pub fn arp(
    macs: ([u8; 6], [u8; 6]),
    operation: u16,
    sender: ([u8; 6], &str),
    target: &str,
) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation(operation),
        sender_mac: sender.0,
        sender_ipv4: octets(sender.1),
        target_mac: [0; 6],
        target_ipv4: octets(target),
    };
    let mut frame = Vec::new();
    Ethernet2Header {
        source: macs.0,
        destination: macs.1,
        ether_type: EtherType::ARP,
    }
    .write(&mut frame)
    .unwrap();
    frame.extend(packet.to_bytes());
    frame
}

/// The fragments of an IPv4 datagram in a frame, of this many bytes of payload each (a multiple of 8).
pub fn fragments(frame: &[u8], bytes: usize) -> Vec<Vec<u8>> {
    let (header, rest) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    let payload = &rest[..header.payload_len().unwrap() as usize];
    let count = payload.len().div_ceil(bytes);
    payload
        .chunks(bytes)
        .enumerate()
        .map(|(number, part)| {
            let mut header = header.clone();
            header.identification = 77;
            header.dont_fragment = false;
            header.more_fragments = number + 1 < count;
            header.fragment_offset = IpFragOffset::try_new((number * bytes / 8) as u16).unwrap();
            header.set_payload_len(part.len()).unwrap();
            let mut fragment = frame[..14].to_vec();
            header.write(&mut fragment).unwrap();
            fragment.extend(part);
            fragment
        })
        .collect()
}

/// A frame with a VLAN tag put in.
pub fn tagged(frame: &[u8], pcp: u8, vid: u16) -> Vec<u8> {
    let tci = u16::from(pcp) << 13 | vid;
    let mut tagged = frame[..12].to_vec();
    tagged.extend([0x81, 0]);
    tagged.extend(tci.to_be_bytes());
    tagged.extend(&frame[12..]);
    tagged
}

/// What a frame says, as far as tests ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    pub vlan: Option<(u8, u16)>,
    pub from: IpAddr,
    pub to: IpAddr,
    pub ttl: u8,
    pub dscp: u8,
    /// Source and destination port; an echo's identifier twice.
    pub ports: (u16, u16),
}

pub fn seen(frame: &[u8]) -> Seen {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(LinkSlice::Ethernet2(ethernet)) = &sliced.link else {
        panic!("no Ethernet");
    };
    let vlan = sliced.vlan().map(|vlan| {
        let (pcp, vid) = match vlan {
            etherparse::VlanSlice::SingleVlan(single) => {
                (single.priority_code_point(), single.vlan_identifier())
            }
            etherparse::VlanSlice::DoubleVlan(double) => (
                double.outer.priority_code_point(),
                double.outer.vlan_identifier(),
            ),
        };
        (pcp.value(), vid.value())
    });
    let (from, to, ttl, dscp) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                header.ttl(),
                header.dcp().value(),
            )
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                header.hop_limit(),
                header.traffic_class() >> 2,
            )
        }
        other => panic!("no IP: {other:?}"),
    };
    let ports = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Icmpv4(icmp)) => {
            let [_, _, _, _, a, b, ..] = *icmp.slice() else {
                panic!("short");
            };
            let id = u16::from_be_bytes([a, b]);
            (id, id)
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let [_, _, _, _, a, b, ..] = *icmp.slice() else {
                panic!("short");
            };
            let id = u16::from_be_bytes([a, b]);
            (id, id)
        }
        _ => (0, 0),
    };
    Seen {
        source_mac: ethernet.source(),
        destination_mac: ethernet.destination(),
        vlan,
        from,
        to,
        ttl,
        dscp,
        ports,
    }
}

/// What an ICMP error quotes, as it would be seen in a frame.
pub fn quoted(frame: &[u8]) -> (IpAddr, IpAddr, (u16, u16)) {
    let at = match seen(frame).from {
        IpAddr::V4(_) => 14 + 20 + 8,
        IpAddr::V6(_) => 14 + 40 + 8,
    };
    let inner = &frame[at..];
    let port = |at: usize| u16::from_be_bytes([inner[at], inner[at + 1]]);
    match inner[0] >> 4 {
        4 => {
            let (header, _) = Ipv4Header::from_slice(inner).unwrap();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            (
                std::net::Ipv4Addr::from(header.source).into(),
                std::net::Ipv4Addr::from(header.destination).into(),
                (port(20), port(22)),
            )
        }
        _ => {
            let (header, _) = etherparse::Ipv6Header::from_slice(inner).unwrap();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                (port(40), port(42)),
            )
        }
    }
}

/// Checks every checksum.
pub fn verify(frame: &[u8]) {
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else {
        panic!("{frame:02x?}");
    };
    match (&sliced.net, &sliced.transport) {
        (Some(NetSlice::Ipv4(ip)), transport) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            if header.is_fragmenting_payload() {
                return;
            }
            match transport {
                Some(TransportSlice::Tcp(tcp)) => assert_eq!(
                    tcp.checksum(),
                    tcp.calc_checksum_ipv4(header.source, header.destination)
                        .unwrap()
                ),
                Some(TransportSlice::Udp(udp)) => assert_eq!(
                    udp.checksum(),
                    udp.to_header()
                        .calc_checksum_ipv4_raw(header.source, header.destination, udp.payload())
                        .unwrap()
                ),
                Some(TransportSlice::Icmpv4(icmp)) => {
                    assert_eq!(
                        etherparse::checksum::Sum16BitWords::new()
                            .add_slice(icmp.slice())
                            .ones_complement(),
                        0
                    );
                }
                _ => {}
            }
            assert_ne!(header.protocol, IpNumber(255));
        }
        (Some(NetSlice::Ipv6(ip)), transport) => {
            let (source, destination) = (ip.header().source(), ip.header().destination());
            match transport {
                Some(TransportSlice::Tcp(tcp)) => assert_eq!(
                    tcp.checksum(),
                    tcp.calc_checksum_ipv6(source, destination).unwrap()
                ),
                Some(TransportSlice::Udp(udp)) => assert_eq!(
                    udp.checksum(),
                    udp.to_header()
                        .calc_checksum_ipv6_raw(source, destination, udp.payload())
                        .unwrap()
                ),
                Some(TransportSlice::Icmpv6(icmp)) => {
                    assert!(icmp.is_checksum_valid(source, destination));
                }
                _ => {}
            }
        }
        _ => {}
    }
}

/// A frame with an IPv6 extension header put behind the IPv6 header: `kind` is its number, `bytes` what follows its next header.
pub fn extended(frame: &[u8], kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut extended = frame[..54].to_vec();
    let next = std::mem::replace(&mut extended[20], kind);
    let payload = (frame.len() - 54 + 1 + bytes.len()) as u16;
    extended[18..20].copy_from_slice(&payload.to_be_bytes());
    extended.push(next);
    extended.extend(bytes);
    extended.extend(&frame[54..]);
    extended
}

/// The fragments of an IPv6 packet in a frame, of this many bytes of payload each (a multiple of 8).
pub fn fragments6(frame: &[u8], bytes: usize) -> Vec<Vec<u8>> {
    let payload = &frame[54..];
    let count = payload.len().div_ceil(bytes);
    payload
        .chunks(bytes)
        .enumerate()
        .map(|(number, part)| {
            let more = u16::from(number + 1 < count);
            let offset = ((number * bytes) as u16 | more).to_be_bytes();
            let header = [0, offset[0], offset[1], 0, 0, 0, 77];
            extended(&[&frame[..54], part].concat(), 44, &header)
        })
        .collect()
}
