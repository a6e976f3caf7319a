//! What holds of the connection table whatever comes: random packets, commits, deletions and time.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod conntrack_packets;

use std::collections::HashSet;
use std::net::Ipv4Addr;

use conntrack_packets::{commit, host, ip, port};
use proptest::prelude::*;
use switch_core::Millis;
use switch_core::conntrack::{
    Conntrack, ConntrackConfig, Direction, NatSpec, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP,
    Packet, PortRange, StateBits, TcpFlags, TcpInfo, Timeouts, TransportInfo, Tuple, Zone,
};

/// Small enough that all are reached.
const CONFIG: (u32, u32, u32) = (12, 8, 10);

#[derive(Clone, Debug)]
enum Operation {
    Packet {
        packet: Packet,
        port: u16,
        nat: u8,
        commit_always: bool,
    },
    Delete(u8),
    Mark(u8),
    Wait(u32),
    Expire(u8),
}

fn tuple() -> impl Strategy<Value = Tuple> {
    (
        prop::sample::select(vec![PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP, 47]),
        0_u8..3,
        0_u8..3,
        0_u16..2,
        0_u16..2,
    )
        .prop_map(|(protocol, from, to, source_port, destination_port)| {
            let (source_port, destination_port) = match protocol {
                PROTOCOL_ICMP => (source_port, source_port),
                47 => (0, 0),
                _ => (source_port, destination_port),
            };
            Tuple::v4(
                protocol,
                (host(from), source_port),
                (host(to), destination_port),
            )
        })
}

fn segment() -> impl Strategy<Value = TcpInfo> {
    let number = || prop::sample::select(vec![0_u32, 1, 2, 3, 1000, 1 << 31, u32::MAX]);
    (
        prop::sample::select(vec![
            0x02_u8, 0x12, 0x10, 0x11, 0x04, 0x14, 0x18, 0x02, 0x10, 0xff, 0,
        ]),
        number(),
        number(),
        any::<u16>(),
        prop::sample::select(vec![0_u32, 1, 1000, 65_000, u32::MAX]),
        prop::option::of(0_u8..20),
    )
        .prop_map(
            |(flags, sequence, acknowledgement, window, payload_bytes, window_scale)| TcpInfo {
                flags: TcpFlags(flags),
                sequence,
                acknowledgement,
                window,
                payload_bytes,
                window_scale,
            },
        )
}

/// Mostly what fits the protocol.
fn transport(protocol: u8) -> BoxedStrategy<TransportInfo> {
    let fitting = match protocol {
        PROTOCOL_TCP => segment().prop_map(TransportInfo::Tcp).boxed(),
        PROTOCOL_ICMP => prop_oneof![
            3 => Just(TransportInfo::EchoRequest),
            2 => Just(TransportInfo::EchoReply),
            1 => tuple().prop_map(TransportInfo::IcmpError),
        ]
        .boxed(),
        _ => Just(TransportInfo::Datagram).boxed(),
    };
    prop_oneof![
        12 => fitting,
        1 => Just(TransportInfo::LaterFragment),
        1 => Just(TransportInfo::Datagram),
        1 => segment().prop_map(TransportInfo::Tcp),
        1 => Just(TransportInfo::OtherIcmp),
    ]
    .boxed()
}

fn operation() -> impl Strategy<Value = Operation> {
    let packet = (tuple(), 0_u16..2, any::<u32>()).prop_flat_map(|(tuple, zone, bytes)| {
        transport(tuple.protocol).prop_map(move |transport| Packet {
            port: port(1),
            zone: Zone(zone),
            tuple,
            transport,
            bytes,
        })
    });
    prop_oneof![
        20 => (packet, 0_u16..3, 0_u8..5, any::<bool>()).prop_map(
            |(packet, port, nat, commit_always)| Operation::Packet {
                packet,
                port,
                nat,
                commit_always,
            }
        ),
        1 => any::<u8>().prop_map(Operation::Delete),
        1 => any::<u8>().prop_map(Operation::Mark),
        2 => (0_u32..40_000).prop_map(Operation::Wait),
        1 => any::<u8>().prop_map(Operation::Expire),
    ]
}

fn nat(kind: u8) -> NatSpec {
    let range = PortRange { first: 0, last: 2 };
    match kind {
        0 | 1 => NatSpec::NONE,
        2 => NatSpec::masquerade(ip(host(2)), range),
        3 => NatSpec::destination(ip(host(1)), Some(1)),
        _ => NatSpec {
            source: NatSpec::masquerade(ip(host(9)), range).source,
            destination: NatSpec::destination(ip(host(0)), None).destination,
        },
    }
}

fn limits_hold(table: &Conntrack) {
    let (capacity, per_port, per_zone) = CONFIG;
    assert!(table.stats().connections <= u64::from(capacity));
    let ports: u32 = (0..3)
        .map(|index| {
            let count = table.port_connections(port(index));
            assert!(count <= per_port);
            count
        })
        .sum();
    let zones: u32 = (0..2)
        .map(|zone| {
            let count = table.zone_connections(Zone(zone));
            assert!(count <= per_zone);
            count
        })
        .sum();
    assert_eq!(u64::from(ports), table.stats().connections);
    assert_eq!(u64::from(zones), table.stats().connections);
}

/// Every live connection is found by both its tuples, in the right direction, and by nothing else is anything found.
fn found_by_its_tuples_alone(table: &Conntrack, now: Millis) {
    let listed = table.list(None, 0, 1000, now).connections;
    let mut keys = HashSet::new();
    for (id, record) in &listed {
        for (tuple, direction) in [
            (record.original, Direction::Original),
            (record.reply, Direction::Reply),
        ] {
            let transport = match (tuple.protocol, direction) {
                (PROTOCOL_ICMP, Direction::Original) => TransportInfo::EchoRequest,
                (PROTOCOL_ICMP, Direction::Reply) => TransportInfo::EchoReply,
                _ => TransportInfo::LaterFragment,
            };
            let packet = Packet {
                port: port(1),
                zone: record.zone,
                tuple,
                transport,
                bytes: 0,
            };
            let tracked = table.track(&packet, now);
            assert_eq!(tracked.conn, Some(*id), "{record:?}");
            assert_eq!(tracked.direction, direction, "{record:?}");
            assert!(
                keys.insert((record.zone, tuple, transport == TransportInfo::EchoReply)),
                "{tuple:?} twice"
            );
        }
    }
    for zone in [Zone(0), Zone(1)] {
        for number in 0..9 * 4 * 3_u16 {
            let protocol = [PROTOCOL_TCP, PROTOCOL_UDP, 47][usize::from(number % 3)];
            let ports = if protocol == 47 {
                (0, 0)
            } else {
                (number / 3 % 2, number / 6 % 2)
            };
            let hosts = (number / 12 % 3, number / 36 % 3);
            let tuple = Tuple::v4(
                protocol,
                (host(hosts.0 as u8), ports.0),
                (host(hosts.1 as u8), ports.1),
            );
            let packet = Packet {
                port: port(1),
                zone,
                tuple,
                transport: TransportInfo::LaterFragment,
                bytes: 0,
            };
            let found = table.track(&packet, now).conn.is_some();
            assert_eq!(found, keys.contains(&(zone, tuple, false)), "{tuple:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn limits_hold_and_connections_are_found_by_their_tuples_alone(
        operations in prop::collection::vec(operation(), 1..150)
    ) {
        let (capacity, per_port_limit, per_zone_limit) = CONFIG;
        let table = Conntrack::new(
            ConntrackConfig {
                capacity,
                per_port_limit,
                per_zone_limit,
                timeouts: Timeouts::default(),
                ..Default::default()
            },
            9,
        );
        let mut now = Millis(77_000);
        for operation in operations {
            let any = |which: u8| {
                let listed = table.list(None, 0, 1000, now).connections;
                listed.get(usize::from(which) % listed.len().max(1)).map(|(id, _)| *id)
            };
            match operation {
                Operation::Packet { packet, port, nat: kind, commit_always } => {
                    let tracked = table.track(&packet, now);
                    let new = tracked.state.contains(StateBits::NEW);
                    prop_assert_eq!(tracked.invalid.is_some(), tracked.state.contains(StateBits::INVALID));
                    if new || commit_always {
                        let committed = table.commit(&packet, &commit(port, nat(kind)), now);
                        if let Ok(committed) = committed {
                            prop_assert!(committed.conn.is_some());
                            let again = table.track(&packet, now);
                            prop_assert!(again.conn == committed.conn || again.conn.is_none() || !new);
                        }
                    }
                }
                Operation::Delete(which) => {
                    if let Some(id) = any(which) {
                        prop_assert!(table.delete(id));
                        prop_assert!(!table.delete(id));
                    }
                }
                Operation::Mark(which) => {
                    if let Some(id) = any(which) {
                        let marked = table.set_mark(id, u32::from(which)).expect("live");
                        prop_assert_eq!(table.export(id, now), None);
                        prop_assert_eq!(table.export(marked, now).expect("live").mark, u32::from(which));
                    }
                }
                Operation::Wait(ms) => now = now.after(Millis(u64::from(ms))),
                Operation::Expire(budget) => {
                    table.expire(now, u32::from(budget));
                }
            }
            limits_hold(&table);
        }
        found_by_its_tuples_alone(&table, now);
        // And all goes when all is deleted.
        table.delete_matching(|_| true, now);
        table.expire(now, u32::MAX);
        table.expire(now, u32::MAX);
        prop_assert_eq!(table.stats().connections, 0);
        limits_hold(&table);
    }

    /// An exported connection, imported elsewhere, answers every packet as the one it was taken from.
    #[test]
    fn an_imported_connection_behaves_as_the_exported_one(
        before in prop::collection::vec((any::<bool>(), segment()), 0..20),
        after in prop::collection::vec((any::<bool>(), segment()), 1..20),
    ) {
        let now = Millis(0);
        let one = Conntrack::new(ConntrackConfig::default(), 1);
        let tuple = Tuple::v4(
            PROTOCOL_TCP,
            (Ipv4Addr::new(10, 0, 0, 1), 1),
            (Ipv4Addr::new(10, 0, 0, 2), 2),
        );
        let send = |table: &Conntrack, (reply, segment): &(bool, TcpInfo)| {
            let tuple = if *reply { tuple.inverse() } else { tuple };
            let packet = Packet {
                port: port(1),
                zone: Zone(0),
                tuple,
                transport: TransportInfo::Tcp(*segment),
                bytes: 1,
            };
            let mut tracked = table.track(&packet, now);
            if tracked.state.contains(StateBits::NEW) {
                tracked = table.commit(&packet, &commit(1, NatSpec::NONE), now).expect("room");
            }
            tracked.conn = None;
            tracked
        };
        for packet in &before {
            send(&one, packet);
        }
        let other = Conntrack::new(ConntrackConfig::default(), 2);
        for (_, record) in one.list(None, 0, 10, now).connections {
            other.import(&record, now).expect("room");
        }
        for packet in &after {
            prop_assert_eq!(send(&one, packet), send(&other, packet));
        }
    }
}
