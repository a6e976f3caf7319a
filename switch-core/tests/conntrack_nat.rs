//! Translated connections: which addresses and ports their packets get, both ways, and errors about them.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod conntrack_packets;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use conntrack_packets::{commit, host, ip, packet, segment, table, tcp, udp};
use proptest::prelude::*;
use switch_core::Millis;
use switch_core::conntrack::{
    CommitError, Conntrack, ConntrackConfig, DestinationNat, Direction, Endpoint, NatSpec,
    PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, Packet, PortRange, SourceNat, SourcePorts,
    StateBits, Tracked, Translation, TransportInfo, Tuple,
};

const NOW: Millis = Millis(1000);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const ALL: PortRange = PortRange {
    first: 1024,
    last: 65535,
};

fn default() -> Conntrack {
    table(ConntrackConfig::default())
}

fn open(table: &Conntrack, packet: &Packet, nat: NatSpec) -> Result<Tracked, CommitError> {
    let told = table.preview_commit(packet, &commit(1, nat), NOW);
    let done = table.commit(packet, &commit(1, nat), NOW);
    // What was told before is what is done, but for numbers that are drawn.
    if let (Ok(told), Ok(done)) = (&told, &done) {
        let addresses = |tracked: &Tracked| {
            let Translation {
                source,
                destination,
            } = tracked.translation;
            [source, destination].map(|end| end.map(|end| end.address))
        };
        assert_eq!(addresses(told), addresses(done), "{told:?} {done:?}");
    }
    done
}

/// What a packet looks like after its translation.
fn apply(tuple: Tuple, translation: &Translation) -> Tuple {
    let mut tuple = tuple;
    let echo = tuple.protocol == PROTOCOL_ICMP;
    if let Some(Endpoint { address, port }) = translation.source {
        tuple.addresses = tuple.addresses.with_source(address).expect("its family");
        tuple.source_port = port;
        if echo {
            tuple.destination_port = port;
        }
    }
    if let Some(Endpoint { address, port }) = translation.destination {
        tuple.addresses = tuple
            .addresses
            .with_destination(address)
            .expect("its family");
        tuple.destination_port = port;
        if echo {
            tuple.source_port = port;
        }
    }
    tuple
}

/// Opens a connection, answers it, and checks that the opener sees an answer to what it sent. What went out.
fn round_trip(table: &Conntrack, sent: Tuple, nat: NatSpec) -> Tuple {
    let transports = match sent.protocol {
        PROTOCOL_TCP => [
            TransportInfo::Tcp(segment("S", 100, 0, 0)),
            TransportInfo::Tcp(segment("SA", 500, 101, 0)),
        ],
        PROTOCOL_ICMP => [TransportInfo::EchoRequest, TransportInfo::EchoReply],
        _ => [TransportInfo::Datagram; 2],
    };
    let [there, back] = transports;
    let opened = open(table, &packet(sent, there), nat).expect("a free translation");
    let outside = apply(sent, &opened.translation);
    let answer = table.track(&packet(outside.inverse(), back), NOW);
    assert!(
        answer.state.contains(StateBits::REPLY),
        "{outside:?}: {answer:?}"
    );
    assert_eq!(answer.conn, opened.conn);
    assert_eq!(
        apply(outside.inverse(), &answer.translation),
        sent.inverse()
    );
    // The next packet is translated as the first was.
    let again = table.track(&packet(sent, there), NOW);
    assert_eq!(again.translation, opened.translation);
    outside
}

fn from_inside(protocol: u8, host_number: u8, port: u16) -> Tuple {
    if protocol == PROTOCOL_ICMP {
        Tuple::v4(protocol, (host(host_number), port), (REMOTE, port))
    } else {
        Tuple::v4(protocol, (host(host_number), port), (REMOTE, 80))
    }
}

#[test]
fn many_sources_become_one_each_with_a_port_of_its_own() {
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP] {
        let table = default();
        let mut outside = HashSet::new();
        for host_number in 1..=100 {
            let sent = from_inside(protocol, host_number, 5000);
            let went = round_trip(&table, sent, NatSpec::masquerade(ip(OUTSIDE), ALL));
            assert_eq!(went.addresses.source(), ip(OUTSIDE));
            assert_eq!(went.addresses.destination(), ip(REMOTE));
            if host_number == 1 {
                assert_eq!(went.source_port, 5000, "its own is free");
            }
            assert!(outside.insert(went), "{went:?} twice");
        }
        let first = table.track(
            &packet(from_inside(protocol, 1, 5000), TransportInfo::LaterFragment),
            NOW,
        );
        assert!(first.state.contains(StateBits::SOURCE_NAT));
        assert!(!first.state.contains(StateBits::DESTINATION_NAT));
    }
}

#[test]
fn ports_stay_in_their_range() {
    for ports in [
        SourcePorts::PreferOwn(PortRange {
            first: 2000,
            last: 2009,
        }),
        SourcePorts::Hashed(PortRange {
            first: 2000,
            last: 2009,
        }),
        SourcePorts::Random(PortRange {
            first: 2000,
            last: 2009,
        }),
    ] {
        let table = default();
        let nat = NatSpec {
            source: Some(SourceNat {
                first: ip(OUTSIDE),
                last: ip(OUTSIDE),
                ports,
            }),
            destination: None,
        };
        let used: HashSet<_> = (0..10)
            .map(|number| round_trip(&table, from_inside(PROTOCOL_UDP, number, 1), nat).source_port)
            .collect();
        assert_eq!(used, (2000..=2009).collect(), "all of the range, none else");
        let eleventh = udp(from_inside(PROTOCOL_UDP, 11, 1));
        assert_eq!(
            open(&table, &eleventh, nat),
            Err(CommitError::PortsExhausted)
        );
        assert_eq!(table.stats().connections, 10);
        // To another destination the same ports are free.
        let elsewhere = Tuple::v4(PROTOCOL_UDP, (host(11), 1), (ROUTER, 80));
        round_trip(&table, elsewhere, nat);
        // And one that ends can be had again.
        let first = table.track(&udp(from_inside(PROTOCOL_UDP, 0, 1)), NOW);
        assert!(table.delete(first.conn.expect("known")));
        open(&table, &eleventh, nat).expect("one is free");
    }
}

#[test]
fn a_nearly_full_range_is_given_up_after_a_bounded_search() {
    let table = default();
    let nat = NatSpec::masquerade(ip(OUTSIDE), ALL);
    let all = u32::from(ALL.last - ALL.first) + 1;
    let mut opened = 0;
    for number in 0..all {
        let tuple = Tuple::v4(
            PROTOCOL_UDP,
            (Ipv4Addr::from_bits(0x0a00_0000 + number), 5000),
            (REMOTE, 80),
        );
        opened += u32::from(open(&table, &udp(tuple), nat).is_ok());
    }
    // Random probing finds nearly every port, though never all.
    assert!(opened > all * 98 / 100, "{opened} of {all}");
}

#[test]
fn a_source_keeps_its_address_and_goes_to_another_when_that_is_used_up() {
    let nat = NatSpec {
        source: Some(SourceNat {
            first: ip(Ipv4Addr::new(192, 0, 2, 8)),
            last: ip(Ipv4Addr::new(192, 0, 2, 11)),
            ports: SourcePorts::Random(PortRange {
                first: 3000,
                last: 3019,
            }),
        }),
        destination: None,
    };
    let table = default();
    let addresses: Vec<_> = (0..80)
        .map(|port| {
            round_trip(&table, from_inside(PROTOCOL_UDP, 1, port), nat)
                .addresses
                .source()
        })
        .collect();
    let different = |addresses: &[IpAddr]| addresses.iter().collect::<HashSet<_>>().len();
    assert_eq!(different(&addresses[..20]), 1);
    assert_eq!(different(&addresses), 4);
    assert_eq!(
        open(&table, &udp(from_inside(PROTOCOL_UDP, 1, 80)), nat),
        Err(CommitError::PortsExhausted)
    );
    // Many sources spread over all.
    let table = default();
    let spread: Vec<_> = (0..60)
        .map(|host| {
            round_trip(&table, from_inside(PROTOCOL_UDP, host, 1), nat)
                .addresses
                .source()
        })
        .collect();
    assert_eq!(different(&spread), 4);
}

#[test]
fn hashed_ports_are_the_same_for_the_same_flow() {
    let nat = |ports| NatSpec {
        source: Some(SourceNat {
            first: ip(OUTSIDE),
            last: ip(OUTSIDE),
            ports,
        }),
        destination: None,
    };
    let table = default();
    let port_of = |ports| {
        let sent = from_inside(PROTOCOL_UDP, 1, 7);
        let went = round_trip(&table, sent, nat(ports));
        let conn = table.track(&udp(sent), NOW).conn.expect("known");
        assert!(table.delete(conn));
        went.source_port
    };
    let hashed: HashSet<_> = (0..20).map(|_| port_of(SourcePorts::Hashed(ALL))).collect();
    let random: HashSet<_> = (0..20).map(|_| port_of(SourcePorts::Random(ALL))).collect();
    assert_eq!(hashed.len(), 1);
    assert!(random.len() > 15, "{random:?}");
}

#[test]
fn one_to_one_keeps_ports_and_fails_if_they_are_taken() {
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP] {
        let table = default();
        let out = NatSpec::one_to_one_source(ip(OUTSIDE));
        let went = round_trip(&table, from_inside(protocol, 1, 5000), out);
        assert_eq!(went.source_port, 5000);
        let transport = match protocol {
            PROTOCOL_TCP => TransportInfo::Tcp(segment("S", 1, 0, 0)),
            PROTOCOL_ICMP => TransportInfo::EchoRequest,
            _ => TransportInfo::Datagram,
        };
        let clash = packet(from_inside(protocol, 2, 5000), transport);
        assert_eq!(open(&table, &clash, out), Err(CommitError::PortsExhausted));
        // On the way in.
        let incoming = from_inside(protocol, 0, 6000).inverse();
        let incoming = Tuple {
            addresses: incoming
                .addresses
                .with_destination(ip(OUTSIDE))
                .expect("its family"),
            ..incoming
        };
        let went = round_trip(&table, incoming, NatSpec::destination(ip(host(1)), None));
        assert_eq!(went.addresses.destination(), ip(host(1)));
        assert_eq!(went.destination_port, 6000);
        assert_eq!(went.addresses.source(), ip(REMOTE));
    }
}

#[test]
fn a_virtual_address_becomes_a_back_end_and_its_answers_the_virtual_address() {
    let table = default();
    let vip = Tuple::v4(PROTOCOL_TCP, (REMOTE, 5000), (OUTSIDE, 80));
    let went = round_trip(&table, vip, NatSpec::destination(ip(host(3)), Some(8080)));
    assert_eq!(
        went,
        Tuple::v4(PROTOCOL_TCP, (REMOTE, 5000), (host(3), 8080))
    );
    // The same client port to another virtual address with the same back-end: the source port must give way.
    let other = Tuple::v4(PROTOCOL_TCP, (REMOTE, 5000), (ROUTER, 80));
    let went = round_trip(&table, other, NatSpec::destination(ip(host(3)), Some(8080)));
    assert_eq!(went.addresses.source(), ip(REMOTE));
    assert_eq!(went.destination_port, 8080);
    assert_ne!(went.source_port, 5000);
}

#[test]
fn hairpin_translates_both_ends() {
    let table = default();
    let nat = NatSpec {
        source: NatSpec::masquerade(ip(OUTSIDE), ALL).source,
        destination: Some(DestinationNat {
            address: ip(host(3)),
            port: Some(8080),
        }),
    };
    let went = round_trip(
        &table,
        Tuple::v4(PROTOCOL_TCP, (host(1), 5000), (OUTSIDE, 80)),
        nat,
    );
    assert_eq!(
        went,
        Tuple::v4(PROTOCOL_TCP, (OUTSIDE, 5000), (host(3), 8080))
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let table = default();
    let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let empty = PortRange { first: 9, last: 8 };
    let range = |first, last| NatSpec {
        source: Some(SourceNat {
            first,
            last,
            ports: SourcePorts::Keep,
        }),
        destination: None,
    };
    for nat in [
        NatSpec::masquerade(v6, ALL),
        NatSpec::destination(v6, None),
        NatSpec::masquerade(ip(OUTSIDE), empty),
        range(ip(OUTSIDE), v6),
        range(ip(host(9)), ip(host(8))),
    ] {
        let packet = udp(from_inside(PROTOCOL_UDP, 1, 1));
        assert_eq!(open(&table, &packet, nat), Err(CommitError::BadTranslation));
    }
    assert_eq!(table.stats().connections, 0);
}

#[test]
fn ipv6_is_translated_too() {
    let table = default();
    let inside = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    let remote = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let outside = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
    let sent = Tuple::v6(PROTOCOL_UDP, (inside, 5000), (remote, 53));
    let nat = NatSpec::masquerade(IpAddr::V6(outside), ALL);
    let went = round_trip(&table, sent, nat);
    assert_eq!(went, Tuple::v6(PROTOCOL_UDP, (outside, 5000), (remote, 53)));
}

#[test]
fn an_icmp_error_about_a_translated_packet_is_translated_back() {
    // Outwards through a source translation: a router's error comes to the outside address.
    for protocol in [PROTOCOL_UDP, PROTOCOL_ICMP] {
        let table = default();
        round_trip(
            &table,
            from_inside(protocol, 2, 5000),
            NatSpec::masquerade(ip(OUTSIDE), ALL),
        );
        let sent = from_inside(protocol, 1, 5000);
        let went = round_trip(&table, sent, NatSpec::masquerade(ip(OUTSIDE), ALL));
        assert_ne!(went.source_port, 5000);
        let error = Tuple::v4(PROTOCOL_ICMP, (ROUTER, 0), (OUTSIDE, 0));
        let tracked = table.track(&packet(error, TransportInfo::IcmpError(went)), NOW);
        assert!(tracked.state.contains(StateBits::RELATED), "{tracked:?}");
        assert_eq!(tracked.direction, Direction::Reply);
        assert_eq!(apply(went, &tracked.embedded), sent);
        let destination = tracked.translation.destination.expect("translated");
        assert_eq!(destination.address, ip(host(1)));
        assert_eq!(tracked.translation.source, None, "the router is itself");
    }
    // A back-end's own error to the client comes from the virtual address.
    let table = default();
    let sent = Tuple::v4(PROTOCOL_UDP, (REMOTE, 5000), (OUTSIDE, 80));
    let went = round_trip(&table, sent, NatSpec::destination(ip(host(3)), Some(8080)));
    let error = Tuple::v4(PROTOCOL_ICMP, (host(3), 0), (REMOTE, 0));
    let tracked = table.track(&packet(error, TransportInfo::IcmpError(went)), NOW);
    assert_eq!(apply(went, &tracked.embedded), sent);
    let source = tracked.translation.source.expect("translated");
    assert_eq!(source.address, ip(OUTSIDE));
    assert_eq!(tracked.translation.destination, None);
}

#[test]
fn the_state_machine_sees_both_sides_of_a_translation() {
    let table = default();
    let sent = from_inside(PROTOCOL_TCP, 1, 5000);
    let went = round_trip(&table, sent, NatSpec::masquerade(ip(OUTSIDE), ALL));
    let ack = table.track(&tcp(sent, segment("A", 101, 501, 0)), NOW);
    assert!(ack.state.contains(StateBits::ESTABLISHED));
    let data = tcp(went.inverse(), segment("PA", 501, 101, 100));
    assert!(table.track(&data, NOW).cacheable);
    let outside = tcp(went.inverse(), segment("PA", 90_000, 101, 100));
    assert!(table.track(&outside, NOW).invalid.is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Few hosts, ports and addresses, so that much collides.
    #[test]
    fn no_two_connections_look_alike_outside(
        flows in prop::collection::vec((0_u8..6, 0_u16..4, 0_u8..3, 0_u8..5), 1..80)
    ) {
        let table = default();
        let range = PortRange { first: 0, last: 5 };
        let mut outside = HashSet::new();
        let mut inside = HashSet::new();
        for (source, port, remote, kind) in flows {
            let sent = Tuple::v4(PROTOCOL_UDP, (host(source), port), (host(100 + remote), 1));
            let nat = match kind {
                0 => NatSpec::NONE,
                1 => NatSpec::masquerade(ip(host(0)), range),
                2 => NatSpec::one_to_one_source(ip(host(1))),
                3 => NatSpec::destination(ip(host(100)), Some(1)),
                _ => NatSpec {
                    source: NatSpec::masquerade(ip(host(2)), range).source,
                    destination: NatSpec::destination(ip(host(101)), None).destination,
                },
            };
            let known = table.track(&udp(sent), NOW).conn.is_some();
            let Ok(opened) = open(&table, &udp(sent), nat) else { continue };
            prop_assert_eq!(known, !inside.insert(sent) || opened.direction == Direction::Reply);
            if !known {
                let went = apply(sent, &opened.translation);
                prop_assert!(outside.insert(went), "{:?} twice", went);
                let back = table.track(&udp(went.inverse()), NOW);
                prop_assert_eq!(back.conn, opened.conn);
                prop_assert_eq!(apply(went.inverse(), &back.translation), sent.inverse());
            }
        }
        prop_assert_eq!(table.stats().connections, outside.len() as u64);
    }
}

#[test]
fn what_a_new_connection_would_become_is_told_without_opening_it() {
    let table = default();
    let range = PortRange {
        first: 5000,
        last: 5000,
    };
    let nat = NatSpec::masquerade(ip(OUTSIDE), range);
    let tuple = |port| Tuple::v4(PROTOCOL_UDP, (host(1), port), (REMOTE, 53));
    for _ in 0..2 {
        let told = table.preview_commit(&udp(tuple(7)), &commit(1, nat), NOW);
        let expected = Endpoint {
            address: ip(OUTSIDE),
            port: 5000,
        };
        let told = told.expect("the port is free");
        assert_eq!(told.translation.source, Some(expected));
        assert_eq!(told.translation.destination, None);
        assert_eq!(table.stats().connections, 0);
    }
    open(&table, &udp(tuple(7)), nat).expect("the port is free");
    let told = table.preview_commit(&udp(tuple(8)), &commit(1, nat), NOW);
    assert_eq!(told.err(), Some(CommitError::PortsExhausted));
}
