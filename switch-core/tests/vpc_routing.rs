//! The `vpc` program as a router.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod vpc;

use std::collections::{HashMap, HashSet};

use switch_core::DropReason;
use switch_core::engine::edit::PartialChecksum;
use vpc::frames::{ACK, SYN, Way, echo_request, mac, seen, tcp, udp, udp_of, way};
use vpc::{Copy, Lab, open};

/// From vm1 by its router to vm3.
fn forth() -> Way {
    way((1, 0xf1), "10.0.0.1", "10.0.1.3")
}

fn back() -> Way {
    way((3, 0xf2), "10.0.1.3", "10.0.0.1")
}

fn forth6() -> Way {
    way((1, 0xf1), "fd00::1", "fd00:1::3")
}

/// No translations, so that routes alone count.
fn plain() -> Lab {
    let lab = open();
    for (domain, vrf) in [(10, 1), (11, 1), (20, 2), (99, 9)] {
        lab.write(&format!(
            r#"[{{"modify": {{"table": "domains", "key": {{"domain": {domain}}}, "action": "describe", "params": {{"vrf": {vrf}, "zone": {vrf}, "flood": {domain}, "options": 16}}}}}}]"#
        ));
    }
    lab
}

#[test]
fn a_packet_goes_from_one_network_to_another() {
    for mut lab in [plain(), open()] {
        for (way, way_back) in [
            (forth(), back()),
            (forth6(), way((3, 0xf2), "fd00:1::3", "fd00::1")),
        ] {
            let (port, frame) = lab.passes(1, &udp(way, 1000, 53));
            let routed = seen(&frame);
            assert_eq!(port, 3);
            assert_eq!(
                (routed.source_mac, routed.destination_mac),
                (mac(0xf2), mac(3))
            );
            assert_eq!((routed.from, routed.to, routed.ttl), (way.from, way.to, 63));
            let (port, frame) = lab.passes(3, &udp(way_back, 53, 1000));
            let routed = seen(&frame);
            assert_eq!(
                (port, routed.source_mac, routed.destination_mac),
                (1, mac(0xf1), mac(1))
            );
            lab.passes(1, &udp(way, 1000, 53));
            lab.is_cached(1, &udp(way, 1000, 53));
            lab.is_cached(3, &udp(way_back, 53, 1000));
        }
    }
}

#[test]
fn the_longest_prefix_wins_and_vrfs_are_apart() {
    let mut lab = plain();
    lab.insert(
        "routes4",
        r#""vrf": 1, "destination": "203.0.113.0/24""#,
        "direct",
        r#""interface": 2"#,
    );
    lab.insert(
        "routes4",
        r#""vrf": 1, "destination": "203.0.113.9/32""#,
        "blackhole",
        "",
    );
    lab.insert(
        "routes4",
        r#""vrf": 1, "destination": "203.0.113.8/32""#,
        "unreachable",
        "",
    );
    lab.insert(
        "neighbors",
        r#""interface": 2, "address": "203.0.113.7""#,
        "neighbor",
        r#""mac": "02:00:00:00:00:03", "port": "vm3""#,
    );
    let to = |host: u8| {
        udp(
            way((1, 0xf1), "10.0.0.1", &format!("203.0.113.{host}")),
            1,
            2,
        )
    };
    assert_eq!(lab.passes(1, &to(7)).0, 3);
    lab.drops(1, &to(9), DropReason::NoRoute);
    assert_eq!(lab.punts(1, &to(8), "no_route"), [1, 10, 0, 0]);
    // Blue has only its default route.
    let blue = udp(way((4, 0xf3), "10.0.0.1", "203.0.113.7"), 1, 2);
    assert_eq!(lab.passes(4, &blue).0, 9);
}

#[test]
fn a_packet_without_a_route_is_answered_by_the_control_side() {
    let mut lab = plain();
    let frame = udp(way((1, 0xf1), "fd00::1", "2001:db8:9::1"), 1, 2);
    assert_eq!(lab.punts(1, &frame, "no_route"), [1, 10, 0, 0]);
}

#[test]
fn a_packet_for_the_router_itself_goes_to_the_control_side() {
    let mut lab = plain();
    for to in ["10.0.0.254", "10.0.1.254"] {
        let frame = echo_request(way((1, 0xf1), "10.0.0.1", to), 9);
        assert_eq!(lab.punts(1, &frame, "local_input"), [1, 10, 0, 0]);
    }
    for to in ["fd00::fe", "fe80::ff:fe00:f1"] {
        let frame = echo_request(way((1, 0xf1), "fe80::1", to), 9);
        assert_eq!(lab.punts(1, &frame, "local_input"), [1, 10, 0, 0]);
    }
}

#[test]
fn a_ttl_that_ends_here_is_answered_by_the_control_side() {
    for mut lab in [plain(), open()] {
        for way in [forth(), forth6()] {
            for ttl in [0, 1] {
                let frame = udp_of(way, (1, 33434), ttl, b"trace");
                assert_eq!(lab.punts(1, &frame, "ttl_exceeded"), [1, 10, 0, 0]);
            }
            assert_eq!(
                seen(&lab.passes(1, &udp_of(way, (1, 33434), 2, b"trace")).1).ttl,
                1
            );
        }
        assert_eq!(
            lab.engine
                .conntrack()
                .zone_connections(switch_core::conntrack::Zone(1)),
            2
        );
    }
}

#[test]
fn a_packet_beyond_the_mtu_is_answered_by_the_control_side() {
    let mut lab = plain();
    lab.write(r#"[{"modify": {"table": "interfaces", "key": {"interface": 2}, "action": "interface", "params": {"domain": 11, "mac": "02:00:00:00:00:f2", "mtu": 1400, "translates": 0}}}]"#);
    for (way, header) in [(forth(), 28), (forth6(), 48)] {
        let fits = udp_of(way, (1, 2), 64, &vec![0; 1400 - header]);
        assert_eq!(lab.passes(1, &fits).0, 3);
        let mut long = udp_of(way, (1, 2), 64, &vec![0; 1401 - header]);
        if way.from.is_ipv4() {
            // Don't Fragment.
            long[20] |= 0x40;
            let header = etherparse::Ipv4Header::from_slice(&long[14..]).unwrap().0;
            long[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        }
        let args = lab.punts(1, &long, "packet_too_big");
        assert_eq!(args, [1, 10, 2, 0]);
        assert_eq!(lab.passes(1, &fits).0, 3);
    }
}

#[test]
fn without_dont_fragment_a_long_packet_is_dropped() {
    let mut lab = plain();
    let mut long = udp_of(forth(), (1, 2), 64, &[0; 1473]);
    long[20] &= !0x40;
    let header = etherparse::Ipv4Header::from_slice(&long[14..]).unwrap().0;
    long[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    lab.drops(1, &long, DropReason::PacketTooBig);
}

#[test]
fn a_large_segment_is_routed_in_one_piece_by_what_it_will_be_cut_into() {
    let mut lab = open();
    lab.passes(1, &tcp(forth(), (1000, 80), SYN, (1000, 0), &[]));
    lab.passes(3, &tcp(back(), (80, 1000), SYN | ACK, (5000, 1001), &[]));
    lab.passes(1, &tcp(forth(), (1000, 80), ACK, (1001, 5001), &[]));
    let frame = tcp(forth(), (1000, 80), ACK, (1001, 5001), &[1; 60_000]);
    let partial = PartialChecksum { start: 34, at: 50 };
    let copies = lab.large(1, &frame, partial);
    let [Copy::Port(3, routed)] = copies.as_slice() else {
        panic!("{copies:?}");
    };
    assert_eq!(routed.len(), frame.len());
    assert_eq!(seen(routed).ttl, 63);
}

#[test]
fn an_unknown_next_hop_is_asked_for_and_then_taken() {
    let mut lab = plain();
    for (from, to, next_hop) in [
        ("10.0.0.1", "10.0.1.77", u128::from(0x0a00_014d_u32)),
        (
            "fd00::1",
            "fd00:1::77",
            "fd00:1::77".parse::<std::net::Ipv6Addr>().unwrap().into(),
        ),
    ] {
        let frame = udp(way((1, 0xf1), from, to), 1, 2);
        let args = lab.punts(1, &frame, "next_hop_unresolved");
        assert_eq!(args, [1, 10, 2, next_hop]);
        lab.insert(
            "neighbors",
            &format!(r#""interface": 2, "address": "{to}""#),
            "neighbor",
            r#""mac": "02:00:00:00:00:77", "port": "vm3""#,
        );
        let (port, routed) = lab.passes(1, &frame);
        assert_eq!((port, seen(&routed).destination_mac), (3, mac(0x77)));
        lab.remove(
            "neighbors",
            &format!(r#""interface": 2, "address": "{to}""#),
        );
        lab.punts(1, &frame, "next_hop_unresolved");
    }
}

#[test]
fn a_gateway_is_the_next_hop_of_its_route() {
    let mut lab = plain();
    let frame = udp(way((1, 0xf1), "10.0.0.1", "192.0.2.7"), 1, 2);
    let (port, routed) = lab.passes(1, &frame);
    let routed = seen(&routed);
    assert_eq!(
        (port, routed.source_mac, routed.destination_mac),
        (9, mac(0xf9), mac(9))
    );
}

#[test]
fn equal_paths_share_the_connections_and_each_keeps_to_its_own() {
    let mut lab = plain();
    let member = |gateway: u8, weight: u8| {
        lab.insert(
            "neighbors",
            &format!(r#""interface": 2, "address": "10.0.1.{gateway}""#),
            "neighbor",
            &format!(r#""mac": "02:00:00:00:01:{gateway:02}", "port": "vm3""#),
        );
        format!(
            r#"{{"weight": {weight}, "values": {{"interface": 2, "gateway": "10.0.1.{gateway}"}}}}"#
        )
    };
    let all = [member(11, 1), member(12, 1), member(13, 2)];
    let set = |lab: &Lab, members: &[String]| {
        lab.write(&format!(
            r#"[{{"set_group": {{"selector": "next_hops", "group": 7, "members": [{}]}}}}]"#,
            members.join(",")
        ));
    };
    set(&lab, &all);
    lab.insert(
        "routes4",
        r#""vrf": 1, "destination": "192.0.2.0/24""#,
        "equal_cost",
        r#""group": 7"#,
    );
    let flow = |number: u16| udp(way((1, 0xf1), "10.0.0.1", "192.0.2.9"), 1024 + number, 53);
    let mut paths = HashMap::new();
    let mut counts = HashMap::new();
    for number in 0..400 {
        let path = seen(&lab.passes(1, &flow(number)).1).destination_mac[5];
        paths.insert(number, path);
        *counts.entry(path).or_insert(0) += 1;
    }
    assert!((60..140).contains(&counts[&0x11]), "{counts:?}");
    assert!((60..140).contains(&counts[&0x12]), "{counts:?}");
    assert!((150..250).contains(&counts[&0x13]), "{counts:?}");
    // Without one of them, only its connections move, but for a few.
    set(&lab, &all[1..]);
    let moved: HashSet<u16> = (0..400)
        .filter(|number| {
            let path = seen(&lab.passes(1, &flow(*number)).1).destination_mac[5];
            assert_ne!(path, 0x11);
            paths[number] != path && paths[number] != 0x11
        })
        .collect();
    assert!(moved.len() < 20, "{}", moved.len());
    // No next hop is left.
    set(&lab, &[]);
    lab.drops(1, &flow(1), DropReason::NoRoute);
}

#[test]
fn a_metadata_address_is_served_by_a_port() {
    let mut lab = plain();
    lab.insert("ports", r#""port": "vm30""#, "attach", r#""domain": 10"#);
    lab.insert(
        "routes4",
        r#""vrf": 1, "destination": "169.254.169.254/32""#,
        "hand_to",
        r#""port": "vm30", "mac": "02:00:00:00:00:30""#,
    );
    let frame = tcp(
        way((1, 0xf1), "10.0.0.1", "169.254.169.254"),
        (1000, 80),
        SYN,
        (1, 0),
        &[],
    );
    let (port, handed) = lab.passes(1, &frame);
    let handed = seen(&handed);
    assert_eq!(
        (port, handed.destination_mac, handed.ttl),
        (30, mac(0x30), 64)
    );
    // Its answer is routed like any other.
    let answer = tcp(
        way((0x30, 0xf1), "169.254.169.254", "10.0.0.1"),
        (80, 1000),
        SYN | ACK,
        (1, 2),
        &[],
    );
    assert_eq!(lab.passes(30, &answer).0, 1);
}

#[test]
fn what_is_no_ip_is_not_routed() {
    let mut lab = plain();
    let mut frame = udp(forth(), 1, 2);
    frame[12..14].copy_from_slice(&[0x88, 0xb6]);
    let copies = lab.send(1, &frame);
    assert!(matches!(copies.as_slice(), [Copy::Drop(_)]));
}
