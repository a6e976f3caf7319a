//! Frames that wait for a next hop, and what is known of neighbours over time.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod service_lab;

use etherparse::{ArpOperation, Icmpv6Type, icmpv6::NeighborAdvertisementHeader};
use service_lab::*;
use switch_core::service::{NeighborState, PacketMetadata, PuntReason, ServiceAction, ServiceDrop};

const VNET: [u8; 12] = [1, 1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0];

fn routed(next_hop: u128) -> PacketMetadata {
    PacketMetadata {
        interface: 1,
        egress_interface: 2,
        domain: 10,
        next_hop,
        ..PacketMetadata::default()
    }
}

/// A frame from port 3, on its way out by interface 2.
fn unresolved(lab: &mut Lab, next_hop: u128, frame: &[u8]) -> Vec<ServiceAction> {
    lab.punt_with(
        3,
        PuntReason::NextHopUnresolved,
        (routed(next_hop), VNET),
        frame,
    )
}

/// What the router does when a frame comes in by interface 2 from port 8.
fn heard(lab: &mut Lab, frame: &[u8]) -> Vec<ServiceAction> {
    let metadata = PacketMetadata {
        interface: 2,
        domain: 20,
        ..PacketMetadata::default()
    };
    lab.punt_with(8, PuntReason::NeighborObserved, (metadata, [0; 12]), frame)
}

fn arp_reply(address: &str) -> Vec<u8> {
    arp(
        ArpOperation::REPLY,
        ROUTER_2,
        (VM_2, address),
        (ROUTER_2, "10.0.1.1"),
    )
}

/// The frame that asks domain 20 for a neighbour.
fn asked(actions: &[ServiceAction]) -> Vec<u8> {
    let [
        ServiceAction::Flood {
            domain: 20,
            except: None,
            frame,
        },
    ] = actions
    else {
        panic!("a request: {actions:?}");
    };
    frame.clone()
}

fn assert_learned(action: &ServiceAction, address: &str) {
    let ServiceAction::LearnNeighbor {
        interface: 2,
        address: learned,
        mac,
        domain: 20,
        port,
    } = action
    else {
        panic!("a neighbour: {action:?}");
    };
    assert_eq!((*learned, mac.0, port.get()), (ip(address), VM_2, 8));
}

fn assert_reinjected(action: &ServiceAction, sent: &[u8]) {
    let ServiceAction::Reinject {
        port,
        vnet_header,
        frame,
    } = action
    else {
        panic!("a frame given back: {action:?}");
    };
    assert_eq!(
        (port.get(), *vnet_header, frame.as_slice()),
        (3, VNET, sent)
    );
}

#[test]
fn frames_wait_for_an_arp_reply_and_leave_in_order() {
    let mut lab = Lab::new("");
    let frames: Vec<_> = (0..5_u8)
        .map(|number| udp4("10.0.0.9", "10.0.1.9", 9, &[number; 4]))
        .collect();
    let request = asked(&unresolved(&mut lab, 0, &frames[0]));
    let (from, to, packet) = see_arp(&request);
    assert_eq!((from, to), (ROUTER_2, BROADCAST));
    assert_eq!(packet.operation, ArpOperation::REQUEST);
    assert_eq!(
        (packet.sender_mac, packet.sender_ipv4),
        (ROUTER_2, [10, 0, 1, 1])
    );
    assert_eq!(
        (packet.target_mac, packet.target_ipv4),
        ([0; 6], [10, 0, 1, 9])
    );
    for frame in &frames[1..] {
        assert_eq!(unresolved(&mut lab, 0, frame), []);
    }
    assert_eq!(lab.services.queued_bytes(), frames.concat().len());
    let actions = heard(&mut lab, &arp_reply("10.0.1.9"));
    assert_learned(&actions[0], "10.0.1.9");
    for (action, frame) in actions[1..].iter().zip(&frames) {
        assert_reinjected(action, frame);
    }
    assert_eq!(actions.len(), 6);
    assert_eq!(lab.services.queued_bytes(), 0);
    let stats = lab.services.stats();
    assert_eq!((stats.frames_queued, stats.frames_reinjected), (5, 5));
    assert_eq!((stats.neighbors_learned, stats.neighbor_requests), (1, 1));
}

#[test]
fn the_next_hop_is_asked_for_rather_than_the_destination() {
    let mut lab = Lab::new("");
    let frame = udp4("10.0.0.9", "8.8.8.8", 9, b"x");
    let next_hop = u128::from(v4("10.0.1.77").to_bits());
    let request = asked(&unresolved(&mut lab, next_hop, &frame));
    assert_eq!(see_arp(&request).2.target_ipv4, [10, 0, 1, 77]);
    // A next hop that is not on the link is nobody's neighbour.
    for elsewhere in [
        "10.0.2.1",
        "10.0.1.0",
        "10.0.1.255",
        "10.0.1.1",
        "224.0.0.1",
    ] {
        let next_hop = u128::from(v4(elsewhere).to_bits());
        assert_eq!(
            dropped(unresolved(&mut lab, next_hop, &frame)),
            ServiceDrop::NotOnLink,
            "{elsewhere}"
        );
    }
}

#[test]
fn ipv6_neighbours_are_solicited_and_advertise_themselves() {
    let mut lab = Lab::new("");
    for (next_hop, destination, own) in [
        (0, "fd00:2::9", "fd00:2::1"),
        (v6("fe80::99").to_bits(), "2001:db8::1", "fe80::ff:fe00:fd"),
    ] {
        let frame = udp6("fd00:1::9", destination, 9, b"x");
        let sought = if next_hop == 0 {
            destination
        } else {
            "fe80::99"
        };
        let request = see(&asked(&unresolved(&mut lab, next_hop, &frame)));
        let (group, group_mac) = solicited_node(sought);
        assert_eq!((request.from, request.to), (ROUTER_2, group_mac));
        assert_eq!((request.source, request.destination), (ip(own), ip(&group)));
        assert_eq!((request.selector, request.ttl), ((135, 0), 255));
        let body = [&v6(sought).octets()[..], &[1, 1], &ROUTER_2].concat();
        assert_eq!(request.payload, body);
        let reply = icmpv6(
            (VM_2, ROUTER_2),
            (sought, own),
            Icmpv6Type::NeighborAdvertisement(NeighborAdvertisementHeader {
                router: false,
                solicited: true,
                r#override: true,
            }),
            &[&v6(sought).octets()[..], &[2, 1], &VM_2].concat(),
        );
        let actions = heard(&mut lab, &reply);
        assert_learned(&actions[0], sought);
        assert_reinjected(&actions[1], &frame);
    }
}

#[test]
fn any_gratuitous_arp_resolves_a_neighbour_that_is_sought() {
    let mut lab = Lab::new("");
    let frame = udp4("10.0.0.9", "10.0.1.9", 9, b"x");
    let gratuitous = arp_request((VM_2, "10.0.1.9"), "10.0.1.9");
    // Nobody is sought yet.
    assert_eq!(heard(&mut lab, &gratuitous), []);
    unresolved(&mut lab, 0, &frame);
    let actions = heard(&mut lab, &gratuitous);
    assert_learned(&actions[0], "10.0.1.9");
    assert_reinjected(&actions[1], &frame);
    // Told again, there is nothing new.
    assert_eq!(heard(&mut lab, &gratuitous), []);
}

#[test]
fn who_asks_for_the_router_is_learned_at_once() {
    let mut lab = Lab::new("");
    let actions = heard(&mut lab, &arp_request((VM_2, "10.0.1.9"), "10.0.1.1"));
    assert_learned(&actions[0], "10.0.1.9");
    assert!(matches!(actions[1], ServiceAction::Send { .. }));
    // A frame that the program sent before it knew is given back, and the neighbour told again in case it got lost.
    let frame = udp4("10.0.0.9", "10.0.1.9", 9, b"x");
    let actions = unresolved(&mut lab, 0, &frame);
    assert_learned(&actions[0], "10.0.1.9");
    assert_reinjected(&actions[1], &frame);
}

#[test]
fn a_neighbour_that_the_table_does_not_take_ends_in_no_loop() {
    let mut lab = Lab::new("");
    heard(&mut lab, &arp_request((VM_2, "10.0.1.9"), "10.0.1.1"));
    let frame = udp4("10.0.0.9", "10.0.1.9", 9, b"x");
    let given_back = (0..1000)
        .filter(|_| unresolved(&mut lab, 0, &frame).len() == 2)
        .count();
    assert_eq!(given_back, 64);
    assert_eq!(
        dropped(unresolved(&mut lab, 0, &frame)),
        ServiceDrop::NeighborNotInstalled
    );
    lab.wait(1000);
    assert_eq!(unresolved(&mut lab, 0, &frame).len(), 2);
}

#[test]
fn a_neighbour_that_does_not_answer_is_asked_three_times_and_its_senders_are_told() {
    let mut lab = Lab::new("");
    let frames = [
        udp4("10.0.0.9", "10.0.1.9", 9, b"first"),
        udp4("10.0.0.9", "10.0.1.9", 9, b"second"),
    ];
    asked(&unresolved(&mut lab, 0, &frames[0]));
    unresolved(&mut lab, 0, &frames[1]);
    assert_eq!(lab.wait(999), []);
    see_arp(&asked(&lab.wait(1)));
    see_arp(&asked(&lab.wait(1000)));
    let actions = lab.wait(1000);
    for (pair, frame) in actions.chunks(2).zip(&frames) {
        let [
            ServiceAction::Send { port, frame: error },
            ServiceAction::Drop { reason, .. },
        ] = pair
        else {
            panic!("{pair:?}");
        };
        let error = see(error);
        assert_eq!(port.get(), 3);
        assert_eq!((error.source, error.to), (ip("10.0.0.1"), VM));
        assert_eq!(
            (error.selector, &error.payload),
            ((3, 1), &frame[14..].to_vec())
        );
        assert_eq!(*reason, ServiceDrop::NeighborUnreachable);
    }
    assert_eq!(actions.len(), 4);
    // It is known not to be there, for a while.
    let actions = unresolved(&mut lab, 0, &frames[0]);
    assert_eq!(actions.len(), 2, "{actions:?}");
    assert_eq!(
        lab.services.neighbors().next().unwrap().state,
        NeighborState::Failed
    );
    lab.wait(3000);
    assert_eq!(lab.services.neighbors().count(), 0);
    asked(&unresolved(&mut lab, 0, &frames[0]));
    assert_eq!(lab.services.stats().neighbors_failed, 1);
}

#[test]
fn a_neighbour_that_is_given_up_comes_back_when_it_is_heard() {
    let mut lab = Lab::new("");
    unresolved(&mut lab, 0, &udp4("10.0.0.9", "10.0.1.9", 9, b"x"));
    for _ in 0..3 {
        lab.wait(1000);
    }
    let actions = heard(&mut lab, &arp_request((VM_2, "10.0.1.9"), "10.0.1.9"));
    assert_learned(&actions[0], "10.0.1.9");
}

#[test]
fn neighbours_are_probed_when_their_time_is_over_and_forgotten_without_an_answer() {
    let mut lab = Lab::new("");
    let request = tagged(&arp_request((VM_2, "10.0.1.9"), "10.0.1.1"), 7);
    heard(&mut lab, &request);
    for round in 0..2 {
        let due = lab.services.next_deadline().unwrap();
        let gap = due.since(lab.now).0;
        assert!((225_000..=300_000).contains(&gap), "{gap}");
        let probe = match lab.wait(gap).as_slice() {
            [ServiceAction::Send { port, frame }] if port.get() == 8 => frame.clone(),
            other => panic!("{other:?}"),
        };
        // To the station alone, with the tag that it uses.
        assert_eq!(probe[12..16], request[12..16]);
        let untagged = [&probe[..12], &probe[16..]].concat();
        let (from, to, packet) = see_arp(&untagged);
        assert_eq!((from, to), (ROUTER_2, VM_2));
        assert_eq!(packet.target_ipv4, [10, 0, 1, 9]);
        if round == 0 {
            assert_eq!(heard(&mut lab, &tagged(&arp_reply("10.0.1.9"), 7)), []);
        }
    }
    assert!(matches!(
        lab.wait(1000).as_slice(),
        [ServiceAction::Send { .. }]
    ));
    assert!(matches!(
        lab.wait(1000).as_slice(),
        [ServiceAction::Send { .. }]
    ));
    let forgotten = ServiceAction::ForgetNeighbor {
        interface: 2,
        address: ip("10.0.1.9"),
    };
    assert_eq!(lab.wait(1000), [forgotten]);
    assert_eq!(lab.services.next_deadline(), None);
}

#[test]
fn a_neighbour_that_moves_is_learned_anew_but_not_at_any_rate() {
    let mut lab = Lab::new("");
    heard(&mut lab, &arp_request((VM, "10.0.1.9"), "10.0.1.1"));
    // Two stations that fight for an address do not make the table flap.
    assert_eq!(heard(&mut lab, &arp_reply("10.0.1.9")), []);
    lab.wait(1000);
    let actions = heard(&mut lab, &arp_reply("10.0.1.9"));
    assert_learned(&actions[0], "10.0.1.9");
    assert_eq!(lab.services.neighbors().count(), 1);
}

#[test]
fn only_stations_of_the_interfaces_networks_and_domain_are_learned() {
    let mut lab = Lab::new("");
    for (sender, reason) in [
        ("10.0.2.9", ServiceDrop::NotOnLink),
        ("10.0.1.255", ServiceDrop::NotOnLink),
        ("10.0.1.0", ServiceDrop::NotOnLink),
        ("10.0.1.1", ServiceDrop::AddressConflict),
    ] {
        let reply = arp(
            ArpOperation::REPLY,
            ROUTER_2,
            (VM_2, sender),
            (ROUTER_2, "10.0.1.1"),
        );
        let actions = heard(&mut lab, &reply);
        assert!(
            matches!(actions.last(), Some(ServiceAction::Drop { reason: dropped, .. }) if *dropped == reason),
            "{sender}: {actions:?}"
        );
    }
    unresolved(&mut lab, 0, &udp4("10.0.0.9", "10.0.1.9", 9, b"x"));
    let elsewhere = PacketMetadata {
        interface: 2,
        domain: 10,
        ..PacketMetadata::default()
    };
    let actions = lab.punt_with(
        8,
        PuntReason::NeighborObserved,
        (elsewhere, [0; 12]),
        &arp_reply("10.0.1.9"),
    );
    assert_eq!(dropped(actions), ServiceDrop::WrongDomain);
    // The router's own MAC address is nobody else's.
    let own = arp(
        ArpOperation::REPLY,
        ROUTER_2,
        (ROUTER_2, "10.0.1.9"),
        (ROUTER_2, "10.0.1.1"),
    );
    assert_eq!(dropped(heard(&mut lab, &own)), ServiceDrop::InvalidSource);
    assert!(matches!(
        lab.services.neighbors().next().unwrap().state,
        NeighborState::Sought
    ));
}

#[test]
fn queues_are_bounded_by_neighbour_by_port_and_in_bytes() {
    let mut config = config("");
    config.limits.queued_frames_per_neighbor = 4;
    config.limits.queued_frames_per_port = 10;
    config.limits.queued_bytes = 100_000;
    config.limits.resolutions_per_port = 6;
    let mut lab = Lab::with(config);
    let to =
        |last: u8, bytes: usize| udp4("10.0.0.9", &format!("10.0.1.{last}"), 9, &vec![0; bytes]);
    for _ in 0..4 {
        unresolved(&mut lab, 0, &to(10, 10));
    }
    assert_eq!(
        dropped(unresolved(&mut lab, 0, &to(10, 10))),
        ServiceDrop::NeighborQueueFull
    );
    for _ in 0..4 {
        unresolved(&mut lab, 0, &to(11, 10));
    }
    unresolved(&mut lab, 0, &to(12, 10));
    unresolved(&mut lab, 0, &to(12, 10));
    // The port has its ten: not even another neighbour is sought for it.
    assert_eq!(
        dropped(unresolved(&mut lab, 0, &to(13, 10))),
        ServiceDrop::NeighborQueueFull
    );
    assert_eq!(lab.services.neighbors().count(), 3);
    // Another port waits for the same neighbour, up to so many bytes.
    let big = to(12, 60_000);
    let from_4 = |lab: &mut Lab, frame: &[u8]| {
        lab.punt_with(4, PuntReason::NextHopUnresolved, (routed(0), VNET), frame)
    };
    assert_eq!(from_4(&mut lab, &big), []);
    assert_eq!(
        dropped(from_4(&mut lab, &big)),
        ServiceDrop::NeighborQueueFull
    );
    assert!(lab.services.queued_bytes() <= 100_000);
    // An answer makes room.
    assert_eq!(heard(&mut lab, &arp_reply("10.0.1.10")).len(), 5);
    asked(&unresolved(&mut lab, 0, &to(13, 10)));
    // Neighbours sought for one port are bounded too.
    for last in 14..17 {
        asked(&unresolved(&mut lab, 0, &to(last, 10)));
    }
    assert_eq!(
        dropped(unresolved(&mut lab, 0, &to(17, 10))),
        ServiceDrop::NeighborLimit
    );
    asked(&from_4(&mut lab, &to(17, 10)));
}

#[test]
fn a_scan_by_one_port_fills_only_its_share_and_ends() {
    let mut lab = Lab::new("");
    let mut asked = 0;
    for last in 2..255 {
        let frame = udp4("10.0.0.9", &format!("10.0.1.{last}"), 9, b"x");
        asked += unresolved(&mut lab, 0, &frame)
            .iter()
            .filter(|action| matches!(action, ServiceAction::Flood { .. }))
            .count();
    }
    assert_eq!(asked, 64);
    for _ in 0..10 {
        lab.wait(1000);
    }
    assert_eq!(lab.services.neighbors().count(), 0);
    assert_eq!(lab.services.queued_bytes(), 0);
    assert_eq!(lab.services.next_deadline(), None);
}

#[test]
fn neighbours_of_a_port_are_bounded() {
    let mut config = config("");
    config.limits.neighbors_per_port = 3;
    let mut lab = Lab::with(config);
    let learned = (2..10)
        .filter(|last| {
            let request = arp_request((VM_2, &format!("10.0.1.{last}")), "10.0.1.1");
            heard(&mut lab, &request)
                .iter()
                .any(|action| matches!(action, ServiceAction::LearnNeighbor { .. }))
        })
        .count();
    assert_eq!(learned, 3);
    // They are answered all the same, as ARP has no other way to say no.
    assert_eq!(lab.services.stats().arp_replies, 8);
}

#[test]
fn what_is_known_of_a_port_or_interface_goes_with_it() {
    let mut lab = Lab::new("");
    heard(&mut lab, &arp_request((VM_2, "10.0.1.9"), "10.0.1.1"));
    unresolved(&mut lab, 0, &udp4("10.0.0.9", "10.0.1.20", 9, b"x"));
    let mut actions = Vec::new();
    lab.services.forget_port(port(8), lab.now, &mut actions);
    let forgotten = ServiceAction::ForgetNeighbor {
        interface: 2,
        address: ip("10.0.1.9"),
    };
    assert_eq!(actions, std::slice::from_ref(&forgotten));
    heard(&mut lab, &arp_request((VM_2, "10.0.1.9"), "10.0.1.1"));
    actions.clear();
    lab.services.remove_interface(2, lab.now, &mut actions);
    assert_eq!(actions.len(), 2, "{actions:?}");
    assert_eq!(actions[0], forgotten);
    assert!(matches!(
        actions[1],
        ServiceAction::Drop {
            reason: ServiceDrop::NeighborUnreachable,
            ..
        }
    ));
    assert_eq!(lab.services.queued_bytes(), 0);
    assert_eq!(lab.services.neighbors().count(), 0);
}

#[test]
fn frames_of_a_port_that_is_gone_wait_no_longer() {
    let mut lab = Lab::new("");
    let frame = udp4("10.0.0.9", "10.0.1.9", 9, b"x");
    for from in [4, 3, 4, 3] {
        lab.punt_with(
            from,
            PuntReason::NextHopUnresolved,
            (routed(0), VNET),
            &frame,
        );
    }
    // The neighbour is sought for port 4, which stays.
    lab.services.forget_port(port(3), lab.now, &mut Vec::new());
    assert_eq!(lab.services.queued_bytes(), 2 * frame.len());
    let actions = heard(&mut lab, &arp_reply("10.0.1.9"));
    assert_eq!(actions.len(), 3, "{actions:?}");
    assert_eq!(lab.services.queued_bytes(), 0);
}

#[test]
fn a_new_network_on_an_interface_keeps_the_neighbours_that_it_still_has() {
    let mut lab = Lab::new("");
    for address in ["10.0.1.9", "10.0.1.200"] {
        heard(&mut lab, &arp_request((VM_2, address), "10.0.1.1"));
        lab.wait(1);
    }
    let mut config = config("");
    config.interfaces[1].addresses = vec!["10.0.1.1/25".parse().unwrap()];
    let mut actions = Vec::new();
    lab.services
        .configure(config, lab.now, &mut actions)
        .unwrap();
    let forgotten: Vec<_> = actions
        .iter()
        .filter_map(|action| match action {
            ServiceAction::ForgetNeighbor { address, .. } => Some(*address),
            _ => None,
        })
        .collect();
    assert_eq!(forgotten, [ip("10.0.1.200")]);
}
