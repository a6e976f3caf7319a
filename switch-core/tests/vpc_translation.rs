//! Addresses that stand for others in the `vpc` program: NAT and load balancing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod vpc;

use std::collections::HashMap;

use switch_core::DropReason;
use switch_core::conntrack::Zone;
use switch_core::engine::edit::PartialChecksum;
use vpc::frames::{
    ACK, SYN, Seen, Way, echo_reply, echo_request, icmp_error, ip, mac, quoted, seen, tcp, udp, way,
};
use vpc::{Copy, Lab, open, two_tenants};

/// Both tenants leave by 198.51.100.10 and .11, ports 5000 to 5999.
fn masquerading() -> Lab {
    let lab = open();
    for (vrf, address) in [(1, 10), (2, 11)] {
        lab.insert(
            "source_nat4",
            &format!(r#""vrf": {vrf}, "interface": 9, "source": "10.0.0.0/8""#),
            "masquerade",
            &format!(
                r#""low": "198.51.100.{address}", "high": "198.51.100.{address}", "low_port": 5000, "high_port": 5999"#
            ),
        );
        lab.insert(
            "public_addresses",
            &format!(r#""vrf": 9, "address": "198.51.100.{address}""#),
            "tenant",
            &format!(r#""vrf": {vrf}, "zone": {vrf}"#),
        );
    }
    lab
}

fn out(vm: u8) -> Way {
    let router = if vm < 3 { 0xf1 } else { 0xf3 };
    way((vm, router), "10.0.0.1", "192.0.2.80")
}

/// What comes back to a public address from 192.0.2.80, by the uplink.
fn answer_to(public: &str) -> Way {
    way((9, 0xf9), "192.0.2.80", public)
}

#[test]
fn many_tenants_with_one_address_each_leave_by_their_own() {
    let mut lab = masquerading();
    let mut public = Vec::new();
    for (vm, address) in [(1, "198.51.100.10"), (4, "198.51.100.11")] {
        let (port, left) = lab.passes(vm.into(), &udp(out(vm), 1000, 53));
        let left = seen(&left);
        assert_eq!(
            (port, left.from, left.to),
            (9, ip(address), ip("192.0.2.80"))
        );
        assert!((5000..6000).contains(&left.ports.0) && left.ports.1 == 53);
        assert_eq!(
            (left.source_mac, left.destination_mac, left.ttl),
            (mac(0xf9), mac(9), 63)
        );
        public.push((vm, address, left.ports.0));
    }
    for (vm, address, port) in public {
        let answer = udp(answer_to(address), 53, port);
        let (to, came) = lab.passes(9, &answer);
        let came = seen(&came);
        assert_eq!(
            (to, came.to, came.ports),
            (vm.into(), ip("10.0.0.1"), (53, 1000))
        );
        lab.passes(vm.into(), &udp(out(vm), 1000, 53));
        lab.is_cached(vm.into(), &udp(out(vm), 1000, 53));
        lab.is_cached(9, &answer);
    }
}

#[test]
fn two_guests_with_one_port_get_two() {
    let mut lab = masquerading();
    let one = seen(&lab.passes(1, &udp(out(1), 5500, 53)).1);
    let two = way((2, 0xf1), "10.0.0.2", "192.0.2.80");
    let two = seen(&lab.passes(2, &udp(two, 5500, 53)).1);
    assert_eq!(one.ports.0, 5500);
    assert_ne!(two.ports.0, 5500);
    assert_eq!(one.from, two.from);
}

#[test]
fn tcp_is_translated_both_ways_and_from_the_cache() {
    let mut lab = masquerading();
    let syn = tcp(out(1), (1000, 80), SYN, (100, 0), &[]);
    let left = seen(&lab.passes(1, &syn).1);
    let port = left.ports.0;
    let answer = |flags, numbers, data: &[u8]| {
        tcp(answer_to("198.51.100.10"), (80, port), flags, numbers, data)
    };
    let came = lab.passes(9, &answer(SYN | ACK, (500, 101), &[]));
    assert_eq!((came.0, seen(&came.1).ports), (1, (80, 1000)));
    let ack = tcp(out(1), (1000, 80), ACK, (101, 501), b"get");
    lab.passes(1, &ack);
    lab.is_cached(1, &ack);
    let page = answer(ACK, (501, 104), b"page");
    assert_eq!(seen(&lab.passes(9, &page).1).to, ip("10.0.0.1"));
    lab.is_cached(9, &page);
    // A large segment in one piece, whose checksum is only the pseudo-header's yet.
    let mut large = tcp(out(1), (1000, 80), ACK, (104, 505), &[3; 40_000]);
    let sum = pseudo_header_sum(&large);
    large[50..52].copy_from_slice(&sum.to_be_bytes());
    let copies = lab.large(1, &large, PartialChecksum { start: 34, at: 50 });
    let [Copy::Port(9, left)] = copies.as_slice() else {
        panic!("{copies:?}");
    };
    assert_eq!(
        (left.len(), seen(left).from),
        (large.len(), ip("198.51.100.10"))
    );
    assert_eq!(left[50..52], pseudo_header_sum(left).to_be_bytes());
    assert_ne!(pseudo_header_sum(left), sum);
}

/// The sum that a partial checksum starts from (VIRTIO 1.3 §5.1.6.2), of TCP over IPv4.
fn pseudo_header_sum(frame: &[u8]) -> u16 {
    let length = (frame.len() - 34) as u16;
    let sum = etherparse::checksum::Sum16BitWords::new()
        .add_slice(&frame[26..34])
        .add_2bytes([0, 6])
        .add_2bytes(length.to_be_bytes());
    !sum.ones_complement().to_be()
}

#[test]
fn an_echo_is_translated_by_its_identifier() {
    let mut lab = masquerading();
    let left = seen(&lab.passes(1, &echo_request(out(1), 77)).1);
    assert_eq!(left.from, ip("198.51.100.10"));
    let (port, came) = lab.passes(9, &echo_reply(answer_to("198.51.100.10"), left.ports.0));
    let came = seen(&came);
    assert_eq!((port, came.to, came.ports.0), (1, ip("10.0.0.1"), 77));
}

#[test]
fn an_error_from_outside_is_translated_with_what_it_quotes() {
    let mut lab = masquerading();
    let (_, left) = lab.passes(1, &udp(out(1), 1000, 53));
    let router = Way {
        from: ip("203.0.113.1"),
        ..answer_to("198.51.100.10")
    };
    for (way, kind) in [(router, (11, 0)), (answer_to("198.51.100.10"), (3, 3))] {
        let (port, came) = lab.passes(9, &icmp_error(way, kind, &left));
        assert_eq!(
            (port, seen(&came).to, seen(&came).from),
            (1, ip("10.0.0.1"), way.from)
        );
        let inside = (ip("10.0.0.1"), ip("192.0.2.80"), (1000, 53));
        assert_eq!(quoted(&came), inside);
    }
}

#[test]
fn nobody_outside_opens_a_connection_to_a_shared_address() {
    let mut lab = masquerading();
    let stray = udp(answer_to("198.51.100.10"), 53, 5005);
    lab.drops(9, &stray, DropReason::ConnectionInvalid);
    let stray = tcp(answer_to("198.51.100.10"), (80, 5005), SYN, (1, 0), &[]);
    lab.drops(9, &stray, DropReason::ConnectionInvalid);
}

#[test]
fn when_all_ports_are_taken_a_connection_is_refused() {
    let mut lab = open();
    lab.insert(
        "source_nat4",
        r#""vrf": 1, "interface": 9"#,
        "masquerade",
        r#""low": "198.51.100.10", "high": "198.51.100.10", "low_port": 5000, "high_port": 5001"#,
    );
    for port in [1, 2] {
        lab.passes(1, &udp(out(1), port, 53));
    }
    lab.drops(1, &udp(out(1), 3, 53), DropReason::NatPortsExhausted);
    // Another destination has ports of its own.
    lab.passes(1, &udp(out(1), 3, 54));
}

/// vm2 of red is 198.51.100.20 outside, and so is vm5 of blue 198.51.100.21.
fn floating() -> Lab {
    let lab = masquerading();
    for (vrf, domain_router, address) in [(1, 1, 20), (2, 3, 21)] {
        lab.insert(
            "source_nat4",
            &format!(r#""vrf": {vrf}, "interface": 9, "source": "10.0.0.2/32""#),
            "one_to_one",
            &format!(r#""address": "198.51.100.{address}""#),
        );
        // From outside, and from the tenant's own network (hairpin).
        for from in [9, vrf] {
            lab.insert(
                "public_addresses",
                &format!(r#""vrf": {from}, "address": "198.51.100.{address}""#),
                "inside",
                &format!(r#""vrf": {vrf}, "zone": {vrf}, "address": "10.0.0.2""#),
            );
        }
        lab.insert(
            "source_nat4",
            &format!(r#""vrf": {vrf}, "interface": {domain_router}, "source": "10.0.0.0/24""#),
            "masquerade",
            r#""low": "10.0.0.254", "high": "10.0.0.254", "low_port": 0, "high_port": 0"#,
        );
    }
    lab
}

#[test]
fn one_to_one_holds_from_inside_and_from_outside() {
    let mut lab = floating();
    for (vm, router, address) in [(2, 0xf1, "198.51.100.20"), (5, 0xf3, "198.51.100.21")] {
        let inside = way((vm, router), "10.0.0.2", "192.0.2.80");
        let left = seen(&lab.passes(vm.into(), &udp(inside, 500, 53)).1);
        assert_eq!((left.from, left.ports), (ip(address), (500, 53)));
        let (port, came) = lab.passes(9, &udp(answer_to(address), 53, 500));
        assert_eq!((port, seen(&came).to), (vm.into(), ip("10.0.0.2")));
        let (port, came) = lab.passes(9, &tcp(answer_to(address), (4000, 22), SYN, (1, 0), &[]));
        let came = seen(&came);
        assert_eq!(
            (port, came.to, came.ports),
            (vm.into(), ip("10.0.0.2"), (4000, 22))
        );
        let answer = tcp(inside, (22, 4000), SYN | ACK, (7, 2), &[]);
        let left = seen(&lab.passes(vm.into(), &answer).1);
        assert_eq!((left.from, left.ports), (ip(address), (22, 4000)));
    }
}

#[test]
fn security_rules_see_both_ends_as_they_are() {
    let mut lab = floating();
    lab.remove_rule("ingress_rules", 1, r#""policy": 1"#);
    let syn = tcp(answer_to("198.51.100.20"), (4000, 22), SYN, (1, 0), &[]);
    lab.drops(9, &syn, DropReason::AclDenied);
    lab.rule(
        "ingress_rules",
        1,
        r#""policy": 1, "source": "192.0.2.0/24", "protocol": 6, "destination_port": 22"#,
        "allow",
    );
    lab.passes(9, &syn);
    // What leaves is asked about by where it really goes.
    lab.remove_rule("egress_rules", 1, r#""policy": 1"#);
    lab.drops(1, &udp(out(1), 1, 2), DropReason::AclDenied);
    lab.rule(
        "egress_rules",
        1,
        r#""policy": 1, "destination": "192.0.2.80""#,
        "allow",
    );
    lab.passes(1, &udp(out(1), 1, 2));
}

#[test]
fn a_guest_reaches_its_neighbour_by_the_public_address() {
    let mut lab = floating();
    let hairpin = way((1, 0xf1), "10.0.0.1", "198.51.100.20");
    let (port, came) = lab.passes(1, &udp(hairpin, 1000, 53));
    let came: Seen = seen(&came);
    assert_eq!(
        (port, came.from, came.to),
        (2, ip("10.0.0.254"), ip("10.0.0.2"))
    );
    let back = way((2, 0xf1), "10.0.0.2", "10.0.0.254");
    let answer = udp(back, 53, came.ports.0);
    let (port, came) = lab.passes(2, &answer);
    let came = seen(&came);
    assert_eq!(
        (port, came.from, came.to),
        (1, ip("198.51.100.20"), ip("10.0.0.1"))
    );
    assert_eq!(came.ports, (53, 1000));
    lab.passes(1, &udp(hairpin, 1000, 53));
    lab.is_cached(1, &udp(hairpin, 1000, 53));
    lab.is_cached(2, &answer);
}

#[test]
fn a_forwarded_port_leads_to_another() {
    let mut lab = masquerading();
    lab.insert(
        "virtual_services",
        r#""vrf": 1, "address": "198.51.100.10", "protocol": 6, "port": 8080"#,
        "forward",
        r#""address": "10.0.1.3", "port": 80"#,
    );
    let syn = tcp(answer_to("198.51.100.10"), (4000, 8080), SYN, (1, 0), &[]);
    let (port, came) = lab.passes(9, &syn);
    let came = seen(&came);
    assert_eq!((port, came.to, came.ports), (3, ip("10.0.1.3"), (4000, 80)));
    let answer = tcp(
        way((3, 0xf2), "10.0.1.3", "192.0.2.80"),
        (80, 4000),
        SYN | ACK,
        (7, 2),
        &[],
    );
    let (port, left) = lab.passes(3, &answer);
    let left = seen(&left);
    assert_eq!(
        (port, left.from, left.ports),
        (9, ip("198.51.100.10"), (8080, 4000))
    );
    // An error about the answer finds its way in, and one about the request its way out.
    let refused = icmp_error(
        way((3, 0xf2), "10.0.1.3", "192.0.2.80"),
        (3, 3),
        &lab.passes(9, &syn).1,
    );
    let (port, left) = lab.passes(3, &refused);
    assert_eq!((port, seen(&left).from), (9, ip("198.51.100.10")));
    assert_eq!(
        quoted(&left),
        (ip("192.0.2.80"), ip("198.51.100.10"), (4000, 8080))
    );
}

#[test]
fn ipv6_is_translated_too() {
    let mut lab = open();
    lab.insert(
        "routes6",
        r#""vrf": 1"#,
        "via",
        r#""interface": 9, "gateway": "2001:db8::fe""#,
    );
    lab.insert(
        "neighbors",
        r#""interface": 9, "address": "2001:db8::fe""#,
        "neighbor",
        r#""mac": "02:00:00:00:00:09", "port": "vm9""#,
    );
    lab.insert(
        "source_nat6",
        r#""vrf": 1, "interface": 9, "source": "fd00::/16""#,
        "masquerade",
        r#""low": "2001:db8::10", "high": "2001:db8::10", "low_port": 0, "high_port": 0"#,
    );
    lab.insert(
        "public_addresses",
        r#""vrf": 9, "address": "2001:db8::10""#,
        "tenant",
        r#""vrf": 1, "zone": 1"#,
    );
    let (port, left) = lab.passes(
        1,
        &udp(way((1, 0xf1), "fd00::1", "2001:db8:8::1"), 1000, 53),
    );
    let left_seen = seen(&left);
    assert_eq!((port, left_seen.from), (9, ip("2001:db8::10")));
    let back = way((9, 0xf9), "2001:db8:8::1", "2001:db8::10");
    let (port, came) = lab.passes(9, &udp(back, 53, left_seen.ports.0));
    assert_eq!(
        (port, seen(&came).to, seen(&came).ports),
        (1, ip("fd00::1"), (53, 1000))
    );
    let (port, came) = lab.passes(9, &icmp_error(back, (1, 4), &left));
    assert_eq!((port, seen(&came).to), (1, ip("fd00::1")));
    assert_eq!(
        quoted(&came),
        (ip("fd00::1"), ip("2001:db8:8::1"), (1000, 53))
    );
}

/// 10.9.9.9:80 of red is vm2 (weight 1) and vm3 (weight 3), port 8080.
fn balanced() -> Lab {
    let lab = two_tenants();
    for policy in [1, 2] {
        for table in ["egress_rules", "ingress_rules"] {
            lab.rule(table, 1, &format!(r#""policy": {policy}"#), "allow");
        }
    }
    lab.insert(
        "virtual_services",
        r#""vrf": 1, "address": "10.9.9.9", "protocol": 6, "port": 80"#,
        "balance",
        r#""group": 4"#,
    );
    set_back_ends(&lab, &[("10.0.0.2", 1), ("10.0.1.3", 3)]);
    lab
}

fn set_back_ends(lab: &Lab, back_ends: &[(&str, u16)]) {
    let members: Vec<String> = back_ends
        .iter()
        .map(|(address, weight)| {
            format!(r#"{{"weight": {weight}, "values": {{"address": "{address}", "port": 8080}}}}"#)
        })
        .collect();
    let members = members.join(",");
    lab.write(&format!(
        r#"[{{"set_group": {{"selector": "back_ends", "group": 4, "members": [{members}]}}}}]"#
    ));
}

fn asked(port: u16) -> Vec<u8> {
    let to = way((1, 0xf1), "10.0.0.1", "10.9.9.9");
    tcp(to, (port, 80), SYN, (1, 0), &[])
}

#[test]
fn a_service_spreads_its_connections_by_weight_and_each_stays() {
    let mut lab = balanced();
    let mut of = HashMap::new();
    let mut counts = HashMap::new();
    for port in 1000..1400 {
        let (vm, came) = lab.passes(1, &asked(port));
        assert_eq!(seen(&came).ports, (port, 8080));
        of.insert(port, vm);
        *counts.entry(vm).or_insert(0) += 1;
    }
    assert!((60..140).contains(&counts[&2]), "{counts:?}");
    assert_eq!(counts[&2] + counts[&3], 400);
    // A back-end that goes keeps its connections until they end; new ones go to the other.
    set_back_ends(&lab, &[("10.0.1.3", 3)]);
    for port in 1000..1400 {
        assert_eq!(lab.passes(1, &asked(port)).0, of[&port]);
    }
    for port in 2000..2050 {
        assert_eq!(lab.passes(1, &asked(port)).0, 3);
    }
    set_back_ends(&lab, &[]);
    lab.drops(1, &asked(3000), DropReason::NoBackend);
}

#[test]
fn a_back_end_more_takes_its_share_and_disturbs_few() {
    let mut lab = balanced();
    for host in 4..8 {
        lab.insert(
            "neighbors",
            &format!(r#""interface": 2, "address": "10.0.1.{host}""#),
            "neighbor",
            &format!(r#""mac": "02:00:00:00:01:{host:02}", "port": "vm3""#),
        );
    }
    let mut choice = |back_ends: &[(&str, u16)]| {
        set_back_ends(&lab, back_ends);
        lab.engine.conntrack().delete_zone(Zone(1), lab.now);
        (1000..1400)
            .map(|port| seen(&lab.passes_once(1, &asked(port)).1).to)
            .collect::<Vec<_>>()
    };
    let four = [
        ("10.0.1.4", 1),
        ("10.0.1.5", 1),
        ("10.0.1.6", 1),
        ("10.0.1.7", 1),
    ];
    let (before, after) = (choice(&four[..3]), choice(&four));
    let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    let elsewhere = before
        .iter()
        .zip(&after)
        .filter(|(a, b)| a != b && **b != ip("10.0.1.7"))
        .count();
    // A quarter has to move.
    assert!((60..140).contains(&moved), "{moved}");
    assert!(elsewhere < 20, "{elsewhere}");
}

#[test]
fn a_service_answers_under_its_own_address_and_from_the_cache() {
    let mut lab = balanced();
    set_back_ends(&lab, &[("10.0.1.3", 1)]);
    assert_eq!(lab.passes(1, &asked(1000)).0, 3);
    let from = way((3, 0xf2), "10.0.1.3", "10.0.0.1");
    let (port, came) = lab.passes(3, &tcp(from, (8080, 1000), SYN | ACK, (9, 2), &[]));
    let came = seen(&came);
    assert_eq!(
        (port, came.from, came.ports),
        (1, ip("10.9.9.9"), (80, 1000))
    );
    let to = way((1, 0xf1), "10.0.0.1", "10.9.9.9");
    let ack = tcp(to, (1000, 80), ACK, (2, 10), b"get");
    lab.passes(1, &ack);
    lab.is_cached(1, &ack);
    let page = tcp(from, (8080, 1000), ACK, (10, 5), b"page");
    assert_eq!(seen(&lab.passes(3, &page).1).from, ip("10.9.9.9"));
    lab.is_cached(3, &page);
}

#[test]
fn a_directly_returning_back_end_gets_the_packet_as_it_is() {
    let mut lab = balanced();
    lab.insert(
        "virtual_services",
        r#""vrf": 1, "address": "10.9.9.8", "protocol": 6, "port": 80"#,
        "balance_direct",
        r#""group": 5"#,
    );
    lab.insert(
        "direct_servers",
        r#""vrf": 1, "id": 33"#,
        "back_end",
        r#""interface": 2, "address": "10.0.1.3""#,
    );
    lab.insert(
        "port_security",
        r#""port": "vm3", "mac": "02:00:00:00:00:03", "address": "10.9.9.8""#,
        "permit",
        "",
    );
    lab.write(r#"[{"set_group": {"selector": "direct_back_ends", "group": 5, "members": [{"values": {"id": 33}}]}}]"#);
    let to = way((1, 0xf1), "10.0.0.1", "10.9.9.8");
    let (port, came) = lab.passes(1, &tcp(to, (1000, 80), SYN, (1, 0), &[]));
    let came = seen(&came);
    assert_eq!(
        (port, came.to, came.ttl, came.ports),
        (3, ip("10.9.9.8"), 64, (1000, 80))
    );
    assert_eq!((came.source_mac, came.destination_mac), (mac(0xf2), mac(3)));
    let from = way((3, 0xf2), "10.9.9.8", "10.0.0.1");
    let (port, came) = lab.passes(3, &tcp(from, (80, 1000), SYN | ACK, (9, 2), &[]));
    assert_eq!((port, seen(&came).from), (1, ip("10.9.9.8")));
    let ack = tcp(to, (1000, 80), ACK, (2, 10), b"get");
    assert_eq!(lab.passes(1, &ack).0, 3);
    lab.is_cached(1, &ack);
    // It is the connection that remembers its back-end.
    lab.write(r#"[{"set_group": {"selector": "direct_back_ends", "group": 5, "members": []}}]"#);
    assert_eq!(lab.passes(1, &ack).0, 3);
    lab.drops(
        1,
        &tcp(to, (1001, 80), SYN, (1, 0), &[]),
        DropReason::NoBackend,
    );
    lab.remove("direct_servers", r#""vrf": 1, "id": 33"#);
    lab.drops(1, &ack, DropReason::NoBackend);
}
