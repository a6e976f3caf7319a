//! IPv6 neighbour discovery and router advertisements.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod service_lab;

use etherparse::{Icmpv6Type, icmpv6::NeighborAdvertisementHeader};
use service_lab::*;
use switch_core::service::{PuntReason, ServiceAction, ServiceDrop};

const PROXIES: &str = r#", "proxies": [ { "address": "fd00:1::50", "mac": "52:54:00:00:00:02" } ]"#;
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

fn reply_of(actions: Vec<ServiceAction>) -> Seen {
    let frame = actions.into_iter().find_map(|action| match action {
        ServiceAction::Send { frame, .. } => Some(frame),
        _ => None,
    });
    see(&frame.unwrap_or_else(|| panic!("an answer")))
}

/// The target and the target link-layer address option of an advertisement.
fn told(advertisement: &Seen) -> (Vec<u8>, Vec<u8>) {
    let (target, option) = advertisement.payload.split_at(16);
    (target.to_vec(), option.to_vec())
}

fn link_layer(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

#[test]
fn a_solicitation_for_the_interface_is_answered_to_its_sender() {
    let mut lab = Lab::new("");
    for target in ["fd00:1::1", ROUTER_LINK_LOCAL] {
        let request = solicitation(VM, "fd00:1::9", target);
        let reply = reply_of(lab.punt(3, PuntReason::NeighborDiscovery, &request));
        assert_eq!((reply.from, reply.to), (ROUTER, VM));
        assert_eq!(
            (reply.source, reply.destination),
            (ip(target), ip("fd00:1::9"))
        );
        assert_eq!((reply.selector, reply.ttl), ((136, 0), 255));
        // Router, solicited, override.
        assert_eq!(reply.rest, [0xe0, 0, 0, 0]);
        assert_eq!(
            told(&reply),
            (v6(target).octets().to_vec(), link_layer(2, ROUTER))
        );
    }
    assert_eq!(lab.services.stats().neighbor_advertisements, 2);
}

#[test]
fn duplicate_address_detection_is_answered_to_all_nodes() {
    let mut lab = Lab::new(PROXIES);
    for (target, mac, flags) in [("fd00:1::1", ROUTER, 0xa0), ("fd00:1::50", VM_2, 0)] {
        let probe = solicitation(VM, "::", target);
        let reply = see(&lab.answer(3, PuntReason::NeighborDiscovery, &probe));
        assert_eq!((reply.from, reply.to), (mac, ALL_NODES_MAC));
        assert_eq!(
            (reply.source, reply.destination),
            (ip(target), ip("ff02::1"))
        );
        assert_eq!(reply.rest, [flags, 0, 0, 0]);
        assert_eq!(told(&reply).1, link_layer(2, mac));
    }
    // The owner of a proxied address is not told that another has it.
    let probe = solicitation(VM_2, "::", "fd00:1::50");
    assert_eq!(
        lab.refusal(PuntReason::NeighborDiscovery, &probe),
        ServiceDrop::NotForRouter
    );
    assert_eq!(lab.services.neighbors().count(), 0);
}

#[test]
fn a_proxy_answers_without_overriding() {
    let mut lab = Lab::new(PROXIES);
    let request = solicitation(VM, "fd00:1::9", "fd00:1::50");
    let reply = see(&lab.answer(3, PuntReason::NeighborDiscovery, &request));
    assert_eq!((reply.from, reply.source), (VM_2, ip("fd00:1::50")));
    assert_eq!(
        reply.rest,
        [0x40, 0, 0, 0],
        "solicited, neither router nor override"
    );
}

#[test]
fn solicitations_that_rfc_4861_calls_invalid_are_refused() {
    let mut lab = Lab::new("");
    let (group, group_mac) = solicited_node("fd00:1::1");
    let target = v6("fd00:1::1").octets();
    let make = |addresses: (&str, &str), payload: &[u8]| {
        icmpv6(
            (VM, group_mac),
            addresses,
            Icmpv6Type::NeighborSolicitation,
            payload,
        )
    };
    let option = link_layer(1, VM);
    let good = make(("fd00:1::9", &group), &[&target[..], &option].concat());
    assert_eq!(lab.punt(3, PuntReason::NeighborDiscovery, &good).len(), 2);
    let with = |offset: usize, value: u8| {
        let mut frame = good.clone();
        frame[offset] = value;
        frame
    };
    let multicast = v6("ff02::1").octets();
    for (what, frame, reason) in [
        (
            "a hop limit below 255",
            with(21, 254),
            ServiceDrop::InvalidSource,
        ),
        (
            "a wrong checksum",
            with(56, !good[56]),
            ServiceDrop::BadChecksum,
        ),
        (
            "no whole target",
            make(("fd00:1::9", &group), &target[..15]),
            ServiceDrop::Malformed,
        ),
        (
            "a group as its target",
            make(("fd00:1::9", &group), &multicast),
            ServiceDrop::Malformed,
        ),
        (
            "an option of length 0",
            make(
                ("fd00:1::9", &group),
                &[&target[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat(),
            ),
            ServiceDrop::Malformed,
        ),
        (
            "an option that is longer than the message",
            make(("fd00:1::9", &group), &[&target[..], &[1, 2], &VM].concat()),
            ServiceDrop::Malformed,
        ),
        (
            "half an option",
            make(("fd00:1::9", &group), &[&target[..], &[1]].concat()),
            ServiceDrop::Malformed,
        ),
        (
            "a probe with a link-layer address",
            make(("::", &group), &[&target[..], &option].concat()),
            ServiceDrop::Malformed,
        ),
        (
            "a probe to one station",
            make(("::", "fd00:1::1"), &target),
            ServiceDrop::Malformed,
        ),
        (
            "a group as its link-layer address",
            make(
                ("fd00:1::9", &group),
                &[&target[..], &link_layer(1, ALL_NODES_MAC)].concat(),
            ),
            ServiceDrop::InvalidSource,
        ),
        (
            "a group as its source",
            make(("ff02::9", &group), &target),
            ServiceDrop::Malformed,
        ),
    ] {
        assert_eq!(
            lab.refusal(PuntReason::NeighborDiscovery, &frame),
            reason,
            "{what}"
        );
    }
    // Unknown options are skipped.
    let odd = make(
        ("fd00:1::9", &group),
        &[&target[..], &[14, 2], &[9; 14], &option].concat(),
    );
    assert_eq!(lab.punt(3, PuntReason::NeighborDiscovery, &odd).len(), 1);
}

fn advertisement(mac: [u8; 6], target: &str, flags: (bool, bool)) -> Vec<u8> {
    let header = NeighborAdvertisementHeader {
        router: false,
        solicited: flags.0,
        r#override: flags.1,
    };
    let payload = [&v6(target).octets()[..], &link_layer(2, mac)].concat();
    icmpv6(
        (mac, ROUTER),
        (target, "fd00:1::1"),
        Icmpv6Type::NeighborAdvertisement(header),
        &payload,
    )
}

#[test]
fn an_advertisement_of_our_address_is_a_conflict_and_is_answered_to_all() {
    let mut lab = Lab::new("");
    let claim = advertisement(VM, "fd00:1::1", (false, true));
    let actions = lab.punt(3, PuntReason::NeighborObserved, &claim);
    let [
        ServiceAction::Flood {
            domain: 10, frame, ..
        },
        ServiceAction::Drop {
            reason: ServiceDrop::AddressConflict,
            ..
        },
    ] = actions.as_slice()
    else {
        panic!("{actions:?}");
    };
    let seen = see(frame);
    assert_eq!(
        (seen.from, seen.to, seen.rest),
        (ROUTER, ALL_NODES_MAC, [0xa0, 0, 0, 0])
    );
}

#[test]
fn the_override_flag_decides_whether_a_neighbour_moves() {
    let mut lab = Lab::new("");
    lab.punt(
        3,
        PuntReason::NeighborDiscovery,
        &solicitation(VM, "fd00:1::9", "fd00:1::1"),
    );
    lab.wait(2000);
    let told = |lab: &mut Lab, flags| {
        lab.punt(
            4,
            PuntReason::NeighborObserved,
            &advertisement(VM_2, "fd00:1::9", flags),
        )
    };
    assert_eq!(told(&mut lab, (true, false)), []);
    let actions = told(&mut lab, (false, true));
    let [
        ServiceAction::LearnNeighbor {
            mac,
            port,
            address,
            interface: 1,
            domain: 10,
        },
    ] = actions.as_slice()
    else {
        panic!("{actions:?}");
    };
    assert_eq!((mac.0, port.get(), *address), (VM_2, 4, ip("fd00:1::9")));
    // Nobody sought this one.
    assert_eq!(
        lab.punt(
            4,
            PuntReason::NeighborObserved,
            &advertisement(VM_2, "fd00:1::77", (false, true))
        ),
        []
    );
}

const ADVERTISING: &str = r#", "ra": { "interval_s": 200, "lifetime_s": 1800, "managed": true, "other": true,
    "dns": ["fd00:1::53", "fd00:1::54"] }"#;

fn router_solicitation(mac: [u8; 6], source: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    if source != "::" {
        payload.extend(link_layer(1, mac));
    }
    icmpv6(
        (mac, [0x33, 0x33, 0, 0, 0, 2]),
        (source, "ff02::2"),
        Icmpv6Type::RouterSolicitation,
        &payload,
    )
}

/// The options of a router advertisement, by an own small reader.
fn options(seen: &Seen) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &seen.payload[8..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let bytes = usize::from(rest[1]) * 8;
        assert!(bytes > 0);
        found.push((rest[0], rest[2..bytes].to_vec()));
        rest = &rest[bytes..];
    }
    found
}

fn assert_is_advertisement(seen: &Seen) {
    assert_eq!((seen.from, seen.source), (ROUTER, ip(ROUTER_LINK_LOCAL)));
    assert_eq!((seen.selector, seen.ttl), ((134, 0), 255));
    assert_eq!(seen.rest, [64, 0xc0, 0x07, 0x08]);
    let prefix = [
        &[64, 0xc0][..],
        &2_592_000_u32.to_be_bytes(),
        &604_800_u32.to_be_bytes(),
        &[0; 4],
        &v6("fd00:1::").octets(),
    ]
    .concat();
    let dns = [
        &[0, 0][..],
        &600_u32.to_be_bytes(),
        &v6("fd00:1::53").octets(),
        &v6("fd00:1::54").octets(),
    ]
    .concat();
    assert_eq!(
        options(seen),
        [
            (1, ROUTER.to_vec()),
            (5, vec![0, 0, 0, 0, 0x05, 0xdc]),
            (3, prefix),
            (25, dns),
        ]
    );
}

#[test]
fn a_router_solicitation_is_answered_at_once() {
    let mut lab = Lab::new(ADVERTISING);
    for (source, to, destination) in [("fe80::9", VM, "fe80::9"), ("::", ALL_NODES_MAC, "ff02::1")]
    {
        let request = router_solicitation(VM, source);
        let seen = see(&lab.answer(3, PuntReason::RouterSolicitation, &request));
        assert_eq!((seen.to, seen.destination), (to, ip(destination)));
        assert_is_advertisement(&seen);
    }
    // An interface that advertises nothing says so.
    let mut lab = Lab::new("");
    assert_eq!(
        lab.refusal(
            PuntReason::RouterSolicitation,
            &router_solicitation(VM, "fe80::9")
        ),
        ServiceDrop::NotConfigured
    );
    // A solicitation without a source address has no link-layer address (RFC 4861 §6.1.1).
    let mut lab = Lab::new(ADVERTISING);
    let odd = icmpv6(
        (VM, [0x33, 0x33, 0, 0, 0, 2]),
        ("::", "ff02::2"),
        Icmpv6Type::RouterSolicitation,
        &link_layer(1, VM),
    );
    assert_eq!(
        lab.refusal(PuntReason::RouterSolicitation, &odd),
        ServiceDrop::Malformed
    );
}

#[test]
fn advertisements_come_quickly_at_first_and_then_at_random_within_the_interval() {
    let mut lab = Lab::new(ADVERTISING);
    let mut gaps = Vec::new();
    for _ in 0..40 {
        let due = lab.services.next_deadline().unwrap();
        let gap = due.since(lab.now).0;
        gaps.push(gap);
        if gap > 0 {
            assert_eq!(lab.wait(gap - 1), []);
            lab.now = due;
        }
        let actions = lab.wait(0);
        let [
            ServiceAction::Flood {
                domain: 10,
                except: None,
                frame,
            },
        ] = actions.as_slice()
        else {
            panic!("{actions:?}");
        };
        let seen = see(frame);
        assert_eq!((seen.to, seen.destination), (ALL_NODES_MAC, ip("ff02::1")));
        assert_is_advertisement(&seen);
    }
    assert_eq!(gaps[0], 0);
    assert!(gaps[1..3].iter().all(|gap| *gap <= 16_000), "{gaps:?}");
    assert!(
        gaps[3..].iter().all(|gap| (66_666..=200_000).contains(gap)),
        "{gaps:?}"
    );
    let different: std::collections::HashSet<_> = gaps[3..].iter().collect();
    assert!(different.len() > 30, "they are spread: {gaps:?}");
}

#[test]
fn a_router_that_goes_says_so() {
    let mut lab = Lab::new(ADVERTISING);
    let mut actions = Vec::new();
    assert!(lab.services.remove_interface(1, lab.now, &mut actions));
    let [
        ServiceAction::Flood {
            domain: 10, frame, ..
        },
    ] = actions.as_slice()
    else {
        panic!("{actions:?}");
    };
    assert_eq!(see(frame).rest, [64, 0xc0, 0, 0], "a lifetime of 0");
    assert_eq!(lab.services.next_deadline(), None);
    assert!(!lab.services.remove_interface(1, lab.now, &mut actions));
}

#[test]
fn prefixes_that_are_named_take_the_place_of_those_of_the_addresses() {
    let mut lab = Lab::new(
        r#", "ra": { "prefixes": [ { "prefix": "fd00:7::/56", "autonomous": false, "on_link": false,
            "valid_s": 100, "preferred_s": 50 } ] }"#,
    );
    let request = router_solicitation(VM, "fe80::9");
    let seen = see(&lab.answer(3, PuntReason::RouterSolicitation, &request));
    let prefix = [
        &[56, 0, 0, 0, 0, 100, 0, 0, 0, 50, 0, 0, 0, 0][..],
        &v6("fd00:7::").octets(),
    ]
    .concat();
    assert_eq!(options(&seen)[2..], [(3, prefix)]);
    assert_eq!(seen.rest, [64, 0, 0x07, 0x08]);
}
