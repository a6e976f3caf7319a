//! The connection table apart from TCP: protocols, zones, errors, time, limits, and what an operator does.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod conntrack_packets;

use std::net::Ipv6Addr;

use conntrack_packets::{
    ZONE, commit, echo_tuple, establish, host, open, packet, port, segment, table, tcp, tcp_tuple,
    udp, udp_tuple,
};
use switch_core::Millis;
use switch_core::conntrack::{
    CommitError, ConnId, ConnState, Conntrack, ConntrackConfig, Direction, ImportError,
    InvalidReason, Leg, NatSpec, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_UDP, Packet, Refreshed,
    StateBits, Timeouts, TransportInfo, Tuple, Zone,
};

const NOW: Millis = Millis(1_000_000_000);

fn default() -> Conntrack {
    table(ConntrackConfig::default())
}

fn is_new(table: &Conntrack, packet: &Packet, now: Millis) -> bool {
    let tracked = table.track(packet, now);
    tracked.state.contains(StateBits::NEW) && tracked.conn.is_none()
}

fn reason(table: &Conntrack, packet: &Packet) -> Option<InvalidReason> {
    table.track(packet, NOW).invalid
}

fn only_state(table: &Conntrack) -> ConnState {
    table.list(None, 0, 10, NOW).connections[0].1.state
}

#[test]
fn a_packet_is_new_until_it_is_committed_and_answered() {
    let table = default();
    let there = udp(udp_tuple(1000));
    let back = udp(udp_tuple(1000).inverse());
    assert!(is_new(&table, &there, NOW));
    assert!(is_new(&table, &there, NOW), "tracking alone opens nothing");
    let conn = open(&table, &there, NOW).conn;
    assert_eq!(only_state(&table), ConnState::UdpSingle);
    let again = table.track(&there, NOW);
    assert_eq!(again.conn, conn);
    assert!(again.state.contains(StateBits::NEW));
    assert!(again.cacheable && again.leg() == Leg::Unanswered);
    let answer = table.track(&back, NOW);
    assert_eq!(answer.conn, conn);
    assert_eq!(
        answer.state,
        StateBits::ESTABLISHED
            .union(StateBits::REPLY)
            .union(StateBits::TRACKED)
    );
    assert!(!answer.cacheable, "it changed the state");
    assert_eq!(only_state(&table), ConnState::UdpStream);
    for (packet, direction) in [(&there, Direction::Original), (&back, Direction::Reply)] {
        let tracked = table.track(packet, NOW);
        assert!(tracked.cacheable);
        assert!(tracked.state.contains(StateBits::ESTABLISHED));
        assert_eq!(tracked.direction, direction);
    }
}

#[test]
fn zones_and_families_and_protocols_are_apart() {
    let table = default();
    let tuple = udp_tuple(1000);
    open(&table, &udp(tuple), NOW);
    let other_zone = Packet {
        zone: Zone(8),
        ..udp(tuple)
    };
    assert!(is_new(&table, &other_zone, NOW));
    let other_protocol = Tuple {
        protocol: 132,
        ..tuple
    };
    assert!(is_new(&table, &udp(other_protocol), NOW));
    let v6 = Tuple::v6(
        PROTOCOL_UDP,
        (host(1).to_ipv6_mapped(), 1000),
        (host(2).to_ipv6_mapped(), 53),
    );
    assert!(is_new(&table, &udp(v6), NOW));
    open(&table, &udp(v6), NOW);
    assert!(
        table
            .track(&udp(v6.inverse()), NOW)
            .state
            .contains(StateBits::REPLY)
    );
    assert_eq!(table.zone_connections(ZONE), 2);
    assert_eq!(table.zone_connections(Zone(8)), 0);
}

#[test]
fn a_packet_from_a_station_to_itself_opens_nothing() {
    let table = default();
    let itself = Tuple::v4(PROTOCOL_UDP, (host(1), 7), (host(1), 7));
    assert_eq!(
        table.commit(&udp(itself), &commit(1, NatSpec::NONE), NOW),
        Err(CommitError::TupleInUse)
    );
    assert_eq!(table.stats().connections, 0);
}

#[test]
fn echo_requests_open_and_replies_answer() {
    let table = default();
    let there = packet(echo_tuple(9), TransportInfo::EchoRequest);
    let reply = packet(echo_tuple(9).inverse(), TransportInfo::EchoReply);
    assert_eq!(reason(&table, &reply), Some(InvalidReason::IcmpUnexpected));
    open(&table, &there, NOW);
    assert!(table.track(&reply, NOW).state.contains(StateBits::REPLY));
    assert!(table.track(&there, NOW).cacheable);
    assert!(table.track(&reply, NOW).cacheable);
    // The same identifier the other way round is another connection.
    let other = packet(echo_tuple(9).inverse(), TransportInfo::EchoRequest);
    assert!(is_new(&table, &other, NOW));
    let opened = open(&table, &other, NOW);
    assert_ne!(opened.conn, table.track(&there, NOW).conn);
    let answer = packet(echo_tuple(9), TransportInfo::EchoReply);
    assert_eq!(table.track(&answer, NOW).conn, opened.conn);
    // Fragments show no type: they belong to one of the two.
    let fragment = packet(echo_tuple(9), TransportInfo::LaterFragment);
    assert!(table.track(&fragment, NOW).conn.is_some());
}

#[test]
fn what_contradicts_itself_is_invalid() {
    let table = default();
    let different = Tuple {
        destination_port: 8,
        ..echo_tuple(9)
    };
    for packet in [
        udp(tcp_tuple(1)),
        tcp(udp_tuple(1), segment("S", 1, 0, 0)),
        udp(echo_tuple(1)),
        packet(udp_tuple(1), TransportInfo::EchoRequest),
        packet(udp_tuple(1), TransportInfo::EchoReply),
        packet(different, TransportInfo::EchoRequest),
    ] {
        assert_eq!(reason(&table, &packet), Some(InvalidReason::Contradiction));
        table
            .commit(&packet, &commit(1, NatSpec::NONE), NOW)
            .expect_err("nothing to open");
    }
    let other = packet(echo_tuple(1), TransportInfo::OtherIcmp);
    assert_eq!(reason(&table, &other), Some(InvalidReason::IcmpUnexpected));
    assert_eq!(table.stats().connections, 0);
}

#[test]
fn an_icmp_error_is_related_to_the_connection_it_quotes() {
    let table = default();
    let v6 = |port| {
        Tuple::v6(
            PROTOCOL_UDP,
            (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), port),
            (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2), 53),
        )
    };
    for (sent, icmp) in [
        (udp_tuple(1000), PROTOCOL_ICMP),
        (v6(1000), PROTOCOL_ICMPV6),
    ] {
        let conn = open(&table, &udp(sent), NOW).conn;
        let error = |quoted: Tuple| {
            // From the quoted packet's destination, to its sender.
            let tuple = Tuple {
                protocol: icmp,
                source_port: 0,
                destination_port: 0,
                ..quoted.inverse()
            };
            packet(tuple, TransportInfo::IcmpError(quoted))
        };
        let related = table.track(&error(sent), NOW);
        assert_eq!(related.conn, conn);
        assert_eq!(
            related.state,
            StateBits::RELATED
                .union(StateBits::REPLY)
                .union(StateBits::TRACKED)
        );
        assert!(related.translation.is_none() && related.embedded.is_none());
        assert!(!related.cacheable);
        // About an answer: it goes the original way.
        let about_answer = table.track(&error(sent.inverse()), NOW);
        assert_eq!(about_answer.conn, conn);
        assert!(about_answer.state.contains(StateBits::RELATED));
        assert!(!about_answer.state.contains(StateBits::REPLY));
        // An error moves no state.
        let again = table.track(&udp(sent), NOW);
        assert!(again.state.contains(StateBits::NEW));

        let unknown = Tuple {
            source_port: 1001,
            ..sent
        };
        assert_eq!(
            reason(&table, &error(unknown)),
            Some(InvalidReason::IcmpErrorUnrelated)
        );
        let to_another = Packet {
            tuple: error(sent).tuple.inverse(),
            ..error(sent)
        };
        assert_eq!(
            reason(&table, &to_another),
            Some(InvalidReason::IcmpErrorUnrelated)
        );
    }
    let ping = packet(echo_tuple(5), TransportInfo::EchoRequest);
    let conn = open(&table, &ping, NOW).conn;
    let quoting = packet(
        echo_tuple(0).inverse(),
        TransportInfo::IcmpError(echo_tuple(5)),
    );
    assert_eq!(table.track(&quoting, NOW).conn, conn);
}

/// Tracks or refreshes just before and just after a timeout.
#[test]
fn a_connection_is_not_found_after_its_states_timeout() {
    let timeouts = Timeouts::default();
    let answered = |table: &Conntrack| {
        open(table, &udp(udp_tuple(1)), NOW);
        table.track(&udp(udp_tuple(1).inverse()), NOW);
    };
    type Case<'a> = (&'a str, Millis, &'a dyn Fn(&Conntrack));
    let cases: [Case; 6] = [
        ("UDP", timeouts.udp_single, &|table| {
            open(table, &udp(udp_tuple(1)), NOW);
        }),
        ("UDP, answered", timeouts.udp_stream, &answered),
        ("echo", timeouts.icmp, &|table| {
            open(
                table,
                &packet(echo_tuple(1), TransportInfo::EchoRequest),
                NOW,
            );
        }),
        ("SYN", timeouts.tcp_syn_sent, &|table| {
            open(table, &tcp(tcp_tuple(1), segment("S", 100, 0, 0)), NOW);
        }),
        ("TCP", timeouts.tcp_established, &|table| {
            establish(table, tcp_tuple(1), NOW);
        }),
        ("TCP, closed", timeouts.tcp_close, &|table| {
            establish(table, tcp_tuple(1), NOW);
            table.track(&tcp(tcp_tuple(1), segment("R", 101, 0, 0)), NOW);
        }),
    ];
    for (name, timeout, make) in cases {
        let table = default();
        make(&table);
        let listed = |now| table.list(None, 0, 10, now).connections.len();
        let before = NOW.after(timeout);
        let after = before.after(Millis(129));
        assert_eq!(listed(before), 1, "{name}");
        assert_eq!(table.expire(before, u32::MAX).expired, 0, "{name}");
        assert_eq!(listed(after), 0, "{name}");
        assert_eq!(table.stats().connections, 1, "{name}: not swept so far");
        let swept = table.expire(after, u32::MAX);
        assert_eq!((swept.expired, swept.finished), (1, true), "{name}");
        assert_eq!(table.stats().connections, 0, "{name}");
        assert_eq!(table.stats().expired, 1, "{name}");
    }
}

#[test]
fn packets_on_either_path_keep_a_connection_alive() {
    let table = default();
    let conn = establish(&table, tcp_tuple(1), NOW).conn.expect("open");
    let timeout = table.config().timeouts.tcp_established;
    let mut now = NOW;
    let ack = segment("A", 101, 501, 0);
    for _ in 0..3 {
        now = now.after(timeout);
        let refreshed = table.refresh(conn, Direction::Original, (Some(&ack), 64), now);
        assert_eq!(refreshed, Refreshed::Valid);
        now = now.after(timeout);
        assert!(table.track(&tcp(tcp_tuple(1), ack), now).conn.is_some());
    }
    now = now.after(timeout).after(Millis(129));
    let refreshed = table.refresh(conn, Direction::Original, (Some(&ack), 64), now);
    assert_eq!(refreshed, Refreshed::Changed);
}

#[test]
fn an_expired_connection_makes_place_for_one_with_its_tuples() {
    let table = default();
    let old = open(&table, &udp(udp_tuple(1)), NOW).conn.expect("open");
    let later = NOW.after(Millis::from_secs(3600));
    assert!(is_new(&table, &udp(udp_tuple(1)), later));
    // From the other end this time, so that each tuple changes its part.
    let new = open(&table, &udp(udp_tuple(1).inverse()), later).conn;
    assert_ne!(new, Some(old));
    assert_eq!(table.stats().connections, 1);
    assert!(
        table
            .track(&udp(udp_tuple(1)), later)
            .state
            .contains(StateBits::REPLY)
    );
    assert!(!table.delete(old), "a stale id names nothing");
}

#[test]
fn a_sweep_goes_on_where_it_stopped() {
    let table = default();
    for source_port in 0..1000 {
        open(&table, &udp(udp_tuple(source_port)), NOW);
    }
    let later = NOW.after(Millis::from_secs(3600));
    let mut expired = 0;
    let mut calls = 0;
    loop {
        let swept = table.expire(later, 100);
        assert!(swept.expired <= 100);
        expired += swept.expired;
        calls += 1;
        if swept.finished {
            break;
        }
    }
    assert_eq!(expired, 1000);
    assert!(calls >= 10);
    assert_eq!(table.stats().connections, 0);
    assert_eq!(table.zone_connections(ZONE), 0);
    assert_eq!(table.port_connections(port(1)), 0);
}

fn try_open(table: &Conntrack, port_index: u16, packet: &Packet) -> Result<ConnId, CommitError> {
    table
        .commit(packet, &commit(port_index, NatSpec::NONE), NOW)
        .map(|tracked| tracked.conn.expect("committed"))
}

/// Answers a connection, so that it is not given up for another.
fn assure(table: &Conntrack, tuple: Tuple) {
    assert!(table.track(&udp(tuple.inverse()), NOW).conn.is_some());
}

#[test]
fn each_limit_has_its_own_error() {
    for (config, error) in [
        (
            ConntrackConfig {
                capacity: 3,
                ..Default::default()
            },
            CommitError::TableFull,
        ),
        (
            ConntrackConfig {
                per_port_limit: 3,
                ..Default::default()
            },
            CommitError::PortLimit,
        ),
        (
            ConntrackConfig {
                per_zone_limit: 3,
                ..Default::default()
            },
            CommitError::ZoneLimit,
        ),
    ] {
        let table = table(config);
        for source_port in 0..3 {
            try_open(&table, 1, &udp(udp_tuple(source_port))).expect("room");
            assure(&table, udp_tuple(source_port));
        }
        assert_eq!(try_open(&table, 1, &udp(udp_tuple(3))), Err(error));
        assert_eq!(table.stats().connections, 3);
        // What goes makes room.
        let first = table.track(&udp(udp_tuple(0)), NOW).conn.expect("known");
        assert!(table.delete(first));
        try_open(&table, 1, &udp(udp_tuple(3))).expect("room again");
    }
}

#[test]
fn a_port_at_its_limit_replaces_its_own_unanswered_connections() {
    let table = table(ConntrackConfig {
        per_port_limit: 10,
        ..Default::default()
    });
    for source_port in 0..5 {
        try_open(&table, 1, &udp(udp_tuple(source_port))).expect("room");
        assure(&table, udp_tuple(source_port));
    }
    try_open(&table, 2, &udp(udp_tuple(5000))).expect("room");
    // A flood from port 1.
    for source_port in 100..1000 {
        try_open(&table, 1, &udp(udp_tuple(source_port))).expect("replaces the oldest");
        assert!(table.port_connections(port(1)) <= 10);
    }
    assert!(table.track(&udp(udp_tuple(999)), NOW).conn.is_some());
    for source_port in 0..5 {
        assert!(
            table
                .track(&udp(udp_tuple(source_port)), NOW)
                .conn
                .is_some()
        );
    }
    assert!(table.track(&udp(udp_tuple(5000)), NOW).conn.is_some());
    assert_eq!(table.port_connections(port(2)), 1);
    assert_eq!(table.stats().early_dropped, 895);
}

#[test]
fn a_full_table_takes_only_from_a_port_that_holds_more() {
    let table = table(ConntrackConfig {
        capacity: 40,
        ..Default::default()
    });
    for source_port in 0..5 {
        try_open(&table, 2, &udp(udp_tuple(5000 + source_port))).expect("room");
    }
    // A flood from port 1 fills the rest, and then replaces its own.
    for source_port in 0..500 {
        try_open(&table, 1, &udp(udp_tuple(source_port))).expect("replaces its own");
    }
    assert_eq!(table.port_connections(port(2)), 5);
    assert_eq!(table.stats().connections, 40);
    // Port 3 has none: it takes from port 1, as soon as a probe hits.
    let opened = (0..100)
        .any(|source_port| try_open(&table, 3, &udp(udp_tuple(6000 + source_port))).is_ok());
    assert!(opened);
    assert_eq!(table.port_connections(port(3)), 1);
    assert!(table.stats().connections <= 40);
}

#[test]
fn nobody_loses_a_connection_to_a_port_that_holds_more() {
    for (config, error) in [
        (
            ConntrackConfig {
                per_port_limit: 30,
                ..Default::default()
            },
            CommitError::PortLimit,
        ),
        (
            ConntrackConfig {
                capacity: 40,
                ..Default::default()
            },
            CommitError::TableFull,
        ),
    ] {
        let table = table(config);
        for source_port in 0..30 {
            try_open(&table, 1, &udp(udp_tuple(source_port))).expect("room");
            assure(&table, udp_tuple(source_port));
        }
        for source_port in 0..10 {
            try_open(&table, 2, &udp(udp_tuple(5000 + source_port))).expect("room");
        }
        // None of port 1's own may go.
        for source_port in 100..300 {
            let refused = try_open(&table, 1, &udp(udp_tuple(source_port)));
            assert_eq!(refused, Err(error));
        }
        assert_eq!(table.port_connections(port(2)), 10);
    }
}

#[test]
fn assured_connections_are_never_replaced() {
    let table = table(ConntrackConfig {
        capacity: 10,
        ..Default::default()
    });
    for source_port in 0..10 {
        establish(&table, tcp_tuple(source_port), NOW);
    }
    for source_port in 0..100 {
        let refused = try_open(&table, 1, &udp(udp_tuple(source_port)));
        assert_eq!(refused, Err(CommitError::TableFull));
    }
    assert_eq!(table.stats().connections, 10);
    // Expired ones are, whoever opened them.
    let later = NOW
        .after(table.config().timeouts.tcp_established)
        .after(Millis(200));
    let opened = (0..100).any(|source_port| {
        table
            .commit(
                &udp(udp_tuple(source_port)),
                &commit(2, NatSpec::NONE),
                later,
            )
            .is_ok()
    });
    assert!(opened);
}

#[test]
fn a_connection_that_was_reset_is_replaced_before_a_live_one() {
    let table = table(ConntrackConfig {
        per_port_limit: 3,
        ..Default::default()
    });
    for source_port in 0..3 {
        establish(&table, tcp_tuple(source_port), NOW);
    }
    table.track(&tcp(tcp_tuple(1), segment("R", 101, 0, 0)), NOW);
    try_open(&table, 1, &udp(udp_tuple(9))).expect("takes the place of the closed one");
    for (source_port, live) in [(0, true), (1, false), (2, true)] {
        let ack = tcp(tcp_tuple(source_port), segment("A", 101, 501, 0));
        assert_eq!(table.track(&ack, NOW).conn.is_some(), live);
    }
}

#[test]
fn deleting_or_marking_a_connection_ends_cached_verdicts_at_once() {
    let table = default();
    let ack = segment("A", 101, 501, 0);
    let refresh = |conn| table.refresh(conn, Direction::Original, (Some(&ack), 64), NOW);
    let conn = establish(&table, tcp_tuple(1), NOW).conn.expect("open");
    assert_eq!(refresh(conn), Refreshed::Valid);
    let marked = table.set_mark(conn, 77).expect("live");
    assert_eq!(refresh(conn), Refreshed::Changed);
    assert_eq!(table.set_mark(conn, 78), None, "a stale id changes nothing");
    let tracked = table.track(&tcp(tcp_tuple(1), ack), NOW);
    assert_eq!((tracked.conn, tracked.mark), (Some(marked), 77));
    assert!(tracked.cacheable);
    assert_eq!(refresh(marked), Refreshed::Valid);
    let changed = table.set_data(marked, [1, 2, 3, 4]).expect("live");
    assert_eq!(refresh(marked), Refreshed::Changed);
    assert_eq!(table.track(&tcp(tcp_tuple(1), ack), NOW).data, [1, 2, 3, 4]);
    assert!(table.delete(changed));
    assert_eq!(refresh(changed), Refreshed::Changed);
    assert!(!table.delete(changed));
    assert_eq!(table.export(changed, NOW), None);
    assert_eq!(
        reason(&table, &tcp(tcp_tuple(1), ack)),
        Some(InvalidReason::TcpNoConnection)
    );
    for bits in [0, 1, u64::MAX, changed.to_bits()] {
        assert_eq!(refresh(ConnId::from_bits(bits)), Refreshed::Changed);
        assert!(!table.delete(ConnId::from_bits(bits)));
    }
}

#[test]
fn connections_are_listed_in_pages_and_deleted_by_zone_port_or_any_rule() {
    let table = default();
    for source_port in 0..300 {
        let packet = Packet {
            zone: Zone(source_port % 3),
            ..udp(udp_tuple(source_port))
        };
        try_open(&table, source_port % 2, &packet).expect("room");
    }
    let mut listed = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let page = table.list(Some(Zone(1)), from, 7, NOW);
        assert!(page.connections.len() <= 7);
        listed.extend(page.connections);
        next = page.next;
    }
    assert_eq!(listed.len(), 100);
    let ids: std::collections::HashSet<_> = listed.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.len(), 100);
    for (id, record) in &listed {
        assert_eq!(record.zone, Zone(1));
        assert_eq!(record.port, record.original.source_port % 2);
        assert_eq!(table.export(*id, NOW), Some(*record));
    }
    assert_eq!(table.delete_zone(Zone(1), NOW), 100);
    assert_eq!(table.zone_connections(Zone(1)), 0);
    assert_eq!(table.delete_port(port(0), NOW), 100);
    assert_eq!(
        table.delete_matching(|record| record.original.source_port < 100, NOW),
        33
    );
    assert_eq!(table.stats().connections, 67);
}

#[test]
fn a_connection_goes_on_in_another_table() {
    let table = default();
    let tuple = tcp_tuple(1);
    let conn = establish(&table, tuple, NOW).conn.expect("open");
    let conn = table.set_mark(conn, 9).expect("live");
    let conn = table.set_data(conn, [4, 3, 2, 1]).expect("live");
    let record = table.export(conn, NOW.after(Millis(64_000))).expect("live");
    assert_eq!(record.idle_ms, 64_000);

    let other = Conntrack::new(ConntrackConfig::default(), 777);
    // Another clock, too.
    let now = Millis(5_000_000);
    let imported = other.import(&record, now).expect("room");
    assert_eq!(other.export(imported, now), Some(record));
    assert_eq!(other.import(&record, now), Err(ImportError::Exists));
    assert_eq!(other.stats().connections, 1);
    let inside = segment("PA", 101, 501, 1000);
    let refreshed = other.refresh(imported, Direction::Original, (Some(&inside), 64), now);
    assert_eq!(refreshed, Refreshed::Valid);
    let outside = tcp(tuple, segment("PA", 9_101, 501, 1));
    assert_eq!(
        other.track(&outside, now).invalid,
        Some(InvalidReason::TcpWindow)
    );
}

#[test]
fn a_record_that_contradicts_itself_is_refused() {
    let table = default();
    let conn = open(&table, &udp(udp_tuple(1)), NOW).conn.expect("open");
    let good = table.export(conn, NOW).expect("live");
    let other = default();
    for bad in [
        switch_core::conntrack::ConnRecord {
            port: u16::MAX,
            ..good
        },
        switch_core::conntrack::ConnRecord {
            state: ConnState::Established,
            ..good
        },
        switch_core::conntrack::ConnRecord {
            reply: Tuple {
                protocol: 6,
                ..good.reply
            },
            ..good
        },
    ] {
        assert!(
            matches!(other.import(&bad, NOW), Err(ImportError::Inconsistent(_))),
            "{bad:?}"
        );
    }
    assert_eq!(other.stats().connections, 0);
    other.import(&good, NOW).expect("the good one fits");
}

#[test]
fn counters_count_both_directions() {
    let table = default();
    let conn = open(&table, &udp(udp_tuple(1)), NOW).conn.expect("open");
    for _ in 0..3 {
        table.track(&udp(udp_tuple(1).inverse()), NOW);
    }
    table.refresh(conn, Direction::Original, (None, 50), NOW);
    let record = table.export(conn, NOW).expect("live");
    assert_eq!((record.packets, record.bytes), ([2, 3], [150, 300]));
}

#[test]
fn a_connection_takes_no_more_memory_than_promised() {
    let table = table(ConntrackConfig {
        capacity: 200_000,
        ..Default::default()
    });
    for flow in 0..200_000_u32 {
        let packet = Packet {
            zone: Zone((flow >> 16) as u16),
            ..udp(udp_tuple(flow as u16))
        };
        open(&table, &packet, NOW);
    }
    let each = table.stats().memory_bytes / table.stats().connections;
    assert!(each <= 256, "{each} bytes");
}
