//! The `vpc` program keeps tenants apart and guests honest.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod vpc;

use switch_core::DropReason;
use vpc::frames::{BROADCAST, arp, echo_request, mac, nd, tagged, udp, udp_of, way};
use vpc::{Copy, Lab, open, ports, two_tenants};

const SPOOFED: DropReason = DropReason::SourceSpoofed;

#[test]
fn a_port_that_is_not_configured_is_mute() {
    let mut lab = two_tenants();
    let frame = udp(way((1, 2), "10.0.0.1", "10.0.0.2"), 1, 2);
    lab.drops(7, &frame, DropReason::PortNotConfigured);
}

#[test]
fn tenants_with_the_same_addresses_reach_their_own_and_nobody_else() {
    let mut lab = open();
    let red = udp(way((1, 2), "10.0.0.1", "10.0.0.2"), 1000, 53);
    assert_eq!(lab.passes(1, &red), (2, red.clone()));
    let blue = udp(way((4, 5), "10.0.0.1", "10.0.0.2"), 1000, 53);
    assert_eq!(lab.passes(4, &blue), (5, blue.clone()));
    // Red knows a station of blue's, and its address.
    let across = udp(way((1, 5), "10.0.0.1", "10.0.0.2"), 1000, 53);
    lab.drops(1, &across, DropReason::NoDestination);
    // The routers lead each into its own network.
    for (vm, router, to) in [(1, 0xf1, 2), (4, 0xf3, 5)] {
        let routed = udp(way((vm, router), "10.0.0.1", "10.0.0.2"), 2000, 53);
        assert_eq!(lab.passes(vm.into(), &routed).0, to);
    }
    for (zone, connections) in [(1, 2), (2, 2), (9, 0)] {
        let zone = switch_core::conntrack::Zone(zone);
        assert_eq!(lab.engine.conntrack().zone_connections(zone), connections);
    }
}

#[test]
fn broadcasts_stay_in_their_domain() {
    let mut lab = open();
    for (vm, others) in [(1, vec![2]), (4, vec![5])] {
        let frame = arp((mac(vm), BROADCAST), 1, (mac(vm), "10.0.0.1"), "10.0.0.77");
        let copies = lab.send(vm.into(), &frame);
        assert_eq!(ports(&copies), others);
    }
}

#[test]
fn a_guest_uses_no_mac_address_but_its_own() {
    let mut lab = open();
    let frame = udp(way((2, 2), "10.0.0.1", "10.0.0.2"), 1000, 53);
    lab.drops(1, &frame, SPOOFED);
    let mut frame = udp(way((1, 2), "10.0.0.1", "10.0.0.2"), 1000, 53);
    frame[6] |= 1;
    lab.drops(1, &frame, DropReason::SourceMulticast);
}

#[test]
fn a_guest_uses_no_ip_address_but_its_own() {
    let mut lab = open();
    lab.drops(1, &udp(way((1, 2), "10.0.0.9", "10.0.0.2"), 1, 2), SPOOFED);
    lab.drops(1, &udp(way((1, 2), "fd00::9", "fd00::2"), 1, 2), SPOOFED);
    // The same number in the other family is another address.
    lab.drops(1, &udp(way((1, 2), "::10.0.0.1", "fd00::2"), 1, 2), SPOOFED);
    lab.drops(1, &udp(way((1, 2), "0.0.0.0", "10.0.0.2"), 1, 2), SPOOFED);
    lab.drops(1, &udp(way((1, 2), "::", "fd00::2"), 1, 2), SPOOFED);
    lab.drops(
        1,
        &echo_request(way((1, 2), "0.0.0.0", "10.0.0.2"), 1),
        SPOOFED,
    );
    lab.passes(1, &udp(way((1, 2), "fd00::1", "fd00::2"), 1, 2));
}

#[test]
fn a_guest_claims_no_address_but_its_own_by_arp() {
    let mut lab = open();
    let request = |sender_mac, sender| {
        arp(
            (mac(1), BROADCAST),
            1,
            (mac(sender_mac), sender),
            "10.0.0.2",
        )
    };
    lab.drops(1, &request(1, "10.0.0.9"), SPOOFED);
    lab.drops(1, &request(9, "10.0.0.1"), SPOOFED);
    assert_eq!(ports(&lab.send(1, &request(1, "10.0.0.1"))), [2]);
    // A probe (RFC 5227) claims nothing.
    assert_eq!(ports(&lab.send(1, &request(1, "0.0.0.0"))), [2]);
    let reply = arp((mac(1), mac(2)), 2, (mac(1), "10.0.0.2"), "10.0.0.2");
    lab.drops(1, &reply, SPOOFED);
}

#[test]
fn a_guest_claims_no_address_but_its_own_by_neighbour_discovery() {
    let mut lab = open();
    let all = vpc::frames::Way {
        macs: (mac(1), [0x33, 0x33, 0, 0, 0, 1]),
        ..way((1, 1), "fd00::1", "ff02::1")
    };
    let advertise = |target, option| nd(all, 136, target, option);
    lab.drops(1, &advertise("fd00::2", Some((2, mac(1)))), SPOOFED);
    lab.drops(1, &advertise("fd00::1", Some((2, mac(2)))), SPOOFED);
    let honest = advertise("fd00::1", Some((2, mac(1))));
    assert_eq!(ports(&lab.send(1, &honest)), [2]);
    let ask = |from: &str, option| {
        let solicited = vpc::frames::Way {
            macs: (mac(1), [0x33, 0x33, 0xff, 0, 0, 2]),
            ..way((1, 1), from, "ff02::1:ff00:2")
        };
        nd(solicited, 135, "fd00::2", option)
    };
    lab.drops(1, &ask("fd00::2", Some((1, mac(1)))), SPOOFED);
    lab.drops(1, &ask("fd00::1", Some((1, mac(2)))), SPOOFED);
    assert_eq!(ports(&lab.send(1, &ask("fd00::1", Some((1, mac(1)))))), [2]);
    // Duplicate address detection has no source yet.
    assert_eq!(ports(&lab.send(1, &ask("::", None))), [2]);
    // Router advertisements are for routers.
    let advertisement = vpc::frames::v6(all, 255, |ip| ip.icmpv6_raw(134, 0, [0; 4]), &[0; 8]);
    lab.drops(1, &advertisement, SPOOFED);
}

#[test]
fn dhcp_goes_to_the_router_and_guests_serve_none() {
    let mut lab = open();
    let discover = |ports| {
        let broadcast = vpc::frames::Way {
            macs: (mac(1), BROADCAST),
            ..way((1, 1), "0.0.0.0", "255.255.255.255")
        };
        udp_of(broadcast, ports, 64, b"discover")
    };
    let args = lab.punts(1, &discover((68, 67)), "dhcp4");
    assert_eq!(args, [1, 10, 0, 0]);
    lab.drops(
        1,
        &udp(way((1, 2), "10.0.0.1", "10.0.0.2"), 67, 68),
        SPOOFED,
    );
    let solicit = vpc::frames::Way {
        macs: (mac(1), [0x33, 0x33, 0, 1, 0, 2]),
        ..way((1, 1), "fe80::1", "ff02::1:2")
    };
    assert_eq!(
        lab.punts(1, &udp(solicit, 546, 547), "dhcp6"),
        [1, 10, 0, 0]
    );
    let routers = vpc::frames::Way {
        macs: (mac(1), [0x33, 0x33, 0, 0, 0, 2]),
        ..way((1, 1), "fe80::1", "ff02::2")
    };
    let rs = vpc::frames::v6(routers, 255, |ip| ip.icmpv6_raw(133, 0, [0; 4]), &[]);
    assert_eq!(lab.punts(1, &rs, "router_solicitation"), [1, 10, 0, 0]);
}

#[test]
fn the_router_answers_for_its_addresses_and_learns_from_answers() {
    let mut lab = two_tenants();
    let ask = arp((mac(1), BROADCAST), 1, (mac(1), "10.0.0.1"), "10.0.0.254");
    assert_eq!(lab.punts(1, &ask, "arp"), [1, 10, 0, 0]);
    let reply = arp((mac(1), mac(0xf1)), 2, (mac(1), "10.0.0.1"), "10.0.0.254");
    assert_eq!(lab.punts(1, &reply, "arp"), [1, 10, 0, 0]);
    let solicited = vpc::frames::Way {
        macs: (mac(1), [0x33, 0x33, 0xff, 0, 0, 0xfe]),
        ..way((1, 1), "fd00::1", "ff02::1:ff00:fe")
    };
    let ask = nd(solicited, 135, "fd00::fe", Some((1, mac(1))));
    assert_eq!(lab.punts(1, &ask, "neighbor_discovery"), [1, 10, 0, 0]);
    let answer = nd(
        way((1, 0xf1), "fd00::1", "fd00::fe"),
        136,
        "fd00::1",
        Some((2, mac(1))),
    );
    assert_eq!(lab.punts(1, &answer, "neighbor_discovery"), [1, 10, 0, 0]);
    // Who announces itself is heard by all, the router among them.
    let announce = arp((mac(1), BROADCAST), 1, (mac(1), "10.0.0.1"), "10.0.0.1");
    let copies = lab.send(1, &announce);
    assert_eq!(ports(&copies), [2]);
    assert!(matches!(copies.last(), Some(Copy::Controller(reason, _)) if reason == "neighbor"));
}

#[test]
fn a_proxied_address_is_answered_by_the_router() {
    let mut lab = two_tenants();
    let ask = arp((mac(1), BROADCAST), 1, (mac(1), "10.0.0.1"), "10.0.0.50");
    assert_eq!(ports(&lab.send(1, &ask)), [2]);
    lab.insert(
        "answered",
        r#""domain": 10, "address": "10.0.0.50""#,
        "answer",
        r#""interface": 1"#,
    );
    assert_eq!(lab.punts(1, &ask, "arp"), [1, 10, 0, 0]);
}

#[test]
fn a_trunk_s_vlans_are_domains_of_their_own() {
    let mut lab = open();
    lab.insert("ports", r#""port": "vm8""#, "trunk", r#""features": 0"#);
    for (vid, domain) in [(100, 10), (200, 20)] {
        lab.insert(
            "subports",
            &format!(r#""port": "vm8", "vid": {vid}"#),
            "subport",
            &format!(r#""domain": {domain}, "policy": 0"#),
        );
        lab.insert(
            "tags_out",
            &format!(r#""port": "vm8", "domain": {domain}"#),
            "tag",
            &format!(r#""vid": {vid}, "policy": 0"#),
        );
        lab.insert(
            "stations",
            &format!(r#""domain": {domain}, "mac": "02:00:00:00:00:08""#),
            "station",
            r#""port": "vm8""#,
        );
    }
    let plain = udp(way((8, 2), "10.0.0.8", "10.0.0.2"), 1000, 53);
    assert_eq!(lab.passes(8, &tagged(&plain, 3, 100)), (2, plain.clone()));
    let plain = udp(way((8, 5), "10.0.0.8", "10.0.0.2"), 1000, 53);
    assert_eq!(lab.passes(8, &tagged(&plain, 3, 200)), (5, plain.clone()));
    lab.drops(8, &tagged(&plain, 3, 300), DropReason::VlanNotAllowed);
    lab.drops(8, &plain, DropReason::VlanNotAllowed);
    let back = udp(way((5, 8), "10.0.0.2", "10.0.0.8"), 53, 1000);
    assert_eq!(lab.passes(5, &back), (8, tagged(&back, 0, 200)));
    lab.drops(1, &tagged(&plain, 0, 100), DropReason::VlanTagOnAccessPort);
}

#[test]
fn unknown_stations_are_not_flooded_unless_the_domain_says_so() {
    let mut lab = open();
    let frame = echo_request(way((1, 0x77), "10.0.0.1", "10.0.0.77"), 5);
    lab.drops(1, &frame, DropReason::NoDestination);
    lab.write(r#"[{"modify": {"table": "domains", "key": {"domain": 10}, "action": "describe", "params": {"vrf": 1, "zone": 1, "flood": 10, "options": 31}}}]"#);
    assert_eq!(ports(&lab.send(1, &frame)), [2]);
}

#[test]
fn stations_are_learned_where_a_port_may() {
    let mut lab = Lab::with(
        r#"[{"insert": {"table": "domains", "key": {"domain": 5}, "action": "describe", "params": {"vrf": 5, "zone": 0, "flood": 5, "options": 3}}},
            {"insert": {"table": "ports", "key": {"port": "vm1"}, "action": "custom", "params": {"domain": 5, "policy": 0, "features": 8}}},
            {"insert": {"table": "ports", "key": {"port": "vm2"}, "action": "custom", "params": {"domain": 5, "policy": 0, "features": 8}}},
            {"insert": {"table": "ports", "key": {"port": "vm3"}, "action": "attach", "params": {"domain": 5}}},
            {"set_multicast": {"group": 5, "ports": [1, 2, 3]}}]"#,
    );
    for port in [1, 2, 3] {
        lab.engine
            .attach_port(switch_core::PortId::new(port).unwrap());
    }
    let forth = udp(way((1, 2), "10.0.0.1", "10.0.0.2"), 1, 2);
    assert_eq!(ports(&lab.send(1, &forth)), [2, 3]);
    let back = udp(way((2, 1), "10.0.0.2", "10.0.0.1"), 2, 1);
    assert_eq!(ports(&lab.send(2, &back)), [1]);
    assert_eq!(ports(&lab.send(1, &forth)), [2]);
}

#[test]
fn rules_are_not_gone_round_by_what_is_no_ip() {
    let mut lab = open();
    let mut frame = udp(way((1, 2), "10.0.0.1", "10.0.0.2"), 1, 2);
    frame[12..14].copy_from_slice(&[0x88, 0xb6]);
    lab.drops(1, &frame, DropReason::AclDenied);
}

#[test]
fn in_a_domain_without_connections_many_share_one_verdict() {
    let mut lab = Lab::with(
        r#"[{"insert": {"table": "domains", "key": {"domain": 5}, "action": "describe", "params": {"vrf": 5, "zone": 0, "flood": 5, "options": 0}}},
            {"insert": {"table": "ports", "key": {"port": "vm1"}, "action": "attach", "params": {"domain": 5}}},
            {"insert": {"table": "ports", "key": {"port": "vm2"}, "action": "attach", "params": {"domain": 5}}},
            {"insert": {"table": "stations", "key": {"domain": 5, "mac": "02:00:00:00:00:02"}, "action": "station", "params": {"port": "vm2"}}}]"#,
    );
    for number in 0..500 {
        let from = format!("10.0.{}.{}", number / 200, number % 200);
        let frame = udp(way((1, 2), &from, "10.0.0.2"), 1000 + number, 53);
        assert_eq!(lab.passes_once(1, &frame).0, 2);
    }
    assert!(lab.stats().misses < 4, "{:?}", lab.stats());
}

#[test]
fn what_does_not_parse_or_is_for_bridges_ends_here() {
    let mut lab = open();
    let mut frame = udp(way((1, 2), "10.0.0.1", "10.0.0.2"), 1, 2);
    frame[14] = 0x44;
    lab.drops(1, &frame, DropReason::ParseError);
    let mut frame = udp(way((1, 2), "10.0.0.1", "10.0.0.2"), 1, 2);
    frame[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, 0x0e]);
    lab.drops(1, &frame, DropReason::BridgeReserved);
}

#[test]
fn a_trunk_carries_frames_between_its_vlans_and_a_port_none_back_to_itself() {
    let mut lab = open();
    lab.insert(
        "stations",
        r#""domain": 10, "mac": "02:00:00:00:00:11""#,
        "station",
        r#""port": "vm1""#,
    );
    let frame = udp(way((1, 0x11), "10.0.0.1", "10.0.0.2"), 1, 2);
    lab.drops(1, &frame, DropReason::SamePort);
    lab.insert("ports", r#""port": "vm8""#, "trunk", r#""features": 0"#);
    for vid in [100, 200] {
        lab.insert(
            "subports",
            &format!(r#""port": "vm8", "vid": {vid}"#),
            "subport",
            r#""domain": 10, "policy": 0"#,
        );
    }
    lab.insert(
        "tags_out",
        r#""port": "vm8", "domain": 10"#,
        "tag",
        r#""vid": 200, "policy": 0"#,
    );
    lab.insert(
        "stations",
        r#""domain": 10, "mac": "02:00:00:00:00:08""#,
        "station",
        r#""port": "vm8""#,
    );
    let frame = udp(way((7, 8), "10.0.0.7", "10.0.0.8"), 1, 2);
    assert_eq!(
        lab.passes(8, &tagged(&frame, 0, 100)),
        (8, tagged(&frame, 0, 200))
    );
}
