//! Packets for the tests of connection tracking, in few words.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::net::{IpAddr, Ipv4Addr};

use switch_core::conntrack::{
    Commit, Conntrack, ConntrackConfig, NatSpec, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, Packet,
    TcpFlags, TcpInfo, Tracked, TransportInfo, Tuple, Zone,
};
use switch_core::{Millis, PortId};

pub const ZONE: Zone = Zone(7);
pub const SEED: u64 = 42;

pub fn port(index: u16) -> PortId {
    PortId::new(index).expect("a small index")
}

/// 10.0.0.`host`.
pub fn host(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host)
}

pub fn ip(address: Ipv4Addr) -> IpAddr {
    IpAddr::V4(address)
}

/// From 10.0.0.1 to 10.0.0.2, port 80.
pub fn tcp_tuple(source_port: u16) -> Tuple {
    Tuple::v4(PROTOCOL_TCP, (host(1), source_port), (host(2), 80))
}

pub fn udp_tuple(source_port: u16) -> Tuple {
    Tuple::v4(PROTOCOL_UDP, (host(1), source_port), (host(2), 53))
}

pub fn echo_tuple(identifier: u16) -> Tuple {
    Tuple::v4(PROTOCOL_ICMP, (host(1), identifier), (host(2), identifier))
}

pub fn packet(tuple: Tuple, transport: TransportInfo) -> Packet {
    Packet {
        port: port(1),
        zone: ZONE,
        tuple,
        transport,
        bytes: 100,
    }
}

pub fn udp(tuple: Tuple) -> Packet {
    packet(tuple, TransportInfo::Datagram)
}

/// Flags by their letters, as tcpdump shows them, with `A` for acknowledgement.
pub fn flags(letters: &str) -> TcpFlags {
    letters.chars().fold(TcpFlags(0), |flags, letter| {
        flags.union(match letter {
            'F' => TcpFlags::FIN,
            'S' => TcpFlags::SYN,
            'R' => TcpFlags::RST,
            'P' => TcpFlags::PSH,
            'A' => TcpFlags::ACK,
            'U' => TcpFlags::URG,
            'E' => TcpFlags::ECE,
            'W' => TcpFlags::CWR,
            other => panic!("no flag {other}"),
        })
    })
}

/// A segment with a window of 1000 and no scaling.
pub fn segment(letters: &str, sequence: u32, acknowledgement: u32, payload_bytes: u32) -> TcpInfo {
    TcpInfo {
        flags: flags(letters),
        sequence,
        acknowledgement,
        window: 1000,
        payload_bytes,
        window_scale: None,
    }
}

pub fn tcp(tuple: Tuple, segment: TcpInfo) -> Packet {
    packet(tuple, TransportInfo::Tcp(segment))
}

pub fn commit(port_index: u16, nat: NatSpec) -> Commit {
    Commit {
        port: port(port_index),
        mark: 0,
        data: [0; 4],
        nat,
    }
}

pub fn table(config: ConntrackConfig) -> Conntrack {
    Conntrack::new(config, SEED)
}

/// Opens the connection of a packet, which must be new.
pub fn open(table: &Conntrack, packet: &Packet, now: Millis) -> Tracked {
    table
        .commit(packet, &commit(1, NatSpec::NONE), now)
        .expect("room for a connection")
}

/// Opens a TCP connection and completes its handshake: 101 and 501 come next.
pub fn establish(table: &Conntrack, tuple: Tuple, now: Millis) -> Tracked {
    open(table, &tcp(tuple, segment("S", 100, 0, 0)), now);
    table.track(&tcp(tuple.inverse(), segment("SA", 500, 101, 0)), now);
    table.track(&tcp(tuple, segment("A", 101, 501, 0)), now);
    let tracked = table.track(&tcp(tuple, segment("A", 101, 501, 0)), now);
    assert!(tracked.cacheable, "{tracked:?}");
    tracked
}
