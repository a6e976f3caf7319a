//! ARP: what router interfaces and proxy entries answer, and what is left alone.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod service_lab;

use etherparse::ArpOperation;
use service_lab::*;
use switch_core::service::{NO_INTERFACE, PacketMetadata, PuntReason, ServiceAction, ServiceDrop};

const PROXIES: &str = r#", "proxies": [
    { "address": "10.0.0.50", "mac": "52:54:00:00:00:02" },
    { "address": "169.254.169.254" } ]"#;

/// The answer among the actions of a request that also teaches the router its sender.
fn reply_of(actions: Vec<ServiceAction>) -> Vec<u8> {
    actions
        .into_iter()
        .find_map(|action| match action {
            ServiceAction::Send { frame, .. } => Some(frame),
            _ => None,
        })
        .unwrap_or_else(|| panic!("an answer"))
}

#[test]
fn a_request_for_the_interface_is_answered_to_its_sender() {
    let mut lab = Lab::new("");
    let actions = lab.punt(
        3,
        PuntReason::Arp,
        &arp_request((VM, "10.0.0.9"), "10.0.0.1"),
    );
    let [
        ServiceAction::LearnNeighbor { .. },
        ServiceAction::Send { port, .. },
    ] = actions.as_slice()
    else {
        panic!("{actions:?}");
    };
    assert_eq!(port.get(), 3);
    let (from, to, reply) = see_arp(&reply_of(actions));
    assert_eq!((from, to), (ROUTER, VM));
    assert_eq!(reply.operation, ArpOperation::REPLY);
    assert_eq!(
        (reply.sender_mac, reply.sender_ipv4),
        (ROUTER, [10, 0, 0, 1])
    );
    assert_eq!((reply.target_mac, reply.target_ipv4), (VM, [10, 0, 0, 9]));
    assert_eq!(lab.services.stats().arp_replies, 1);
}

#[test]
fn an_answer_carries_the_tags_of_the_request() {
    let mut lab = Lab::new("");
    let request = tagged(&tagged(&arp_request((VM, "10.0.0.9"), "10.0.0.1"), 7), 8);
    let reply = reply_of(lab.punt(3, PuntReason::Arp, &request));
    assert_eq!(reply[12..20], request[12..20]);
    assert_eq!(reply.len(), 14 + 8 + 28);
    // Three tags are more than anyone stacks here.
    assert_eq!(
        lab.refusal(PuntReason::Arp, &tagged(&request, 9)),
        ServiceDrop::Malformed
    );
}

#[test]
fn the_interface_is_found_by_its_bridge_domain() {
    let mut lab = Lab::new("");
    let metadata = PacketMetadata {
        interface: NO_INTERFACE,
        domain: 20,
        ..PacketMetadata::default()
    };
    let request = arp_request((VM, "10.0.1.9"), "10.0.1.1");
    let actions = lab.punt_with(3, PuntReason::Arp, (metadata, [0; 12]), &request);
    assert_eq!(see_arp(&reply_of(actions)).2.sender_mac, ROUTER_2);
    let elsewhere = PacketMetadata {
        domain: 30,
        ..metadata
    };
    let actions = lab.punt_with(3, PuntReason::Arp, (elsewhere, [0; 12]), &request);
    assert_eq!(dropped(actions), ServiceDrop::UnknownInterface);
    let contradiction = PacketMetadata {
        interface: 1,
        ..metadata
    };
    let actions = lab.punt_with(3, PuntReason::Arp, (contradiction, [0; 12]), &request);
    assert_eq!(dropped(actions), ServiceDrop::WrongDomain);
}

#[test]
fn proxied_addresses_are_answered_for_their_owners() {
    let mut lab = Lab::new(PROXIES);
    for (address, mac) in [("10.0.0.50", VM_2), ("169.254.169.254", ROUTER)] {
        let request = arp_request((VM, "10.0.0.9"), address);
        let (from, _, reply) = see_arp(&lab.answer(3, PuntReason::Arp, &request));
        assert_eq!((from, reply.sender_mac), (mac, mac));
        assert_eq!(reply.sender_ipv4, v4(address).octets());
    }
    // It is no station of the interface that is asked for, so that nobody is learned.
    assert_eq!(lab.services.neighbors().count(), 0);
}

#[test]
fn the_owner_of_a_proxied_address_is_not_told_that_another_has_it() {
    let mut lab = Lab::new(PROXIES);
    let probe = arp_request((VM_2, "0.0.0.0"), "10.0.0.50");
    assert_eq!(lab.punt(3, PuntReason::Arp, &probe), []);
    // Another station that probes the address learns that it is taken.
    let probe = arp_request((VM, "0.0.0.0"), "10.0.0.50");
    let (_, to, reply) = see_arp(&lab.answer(3, PuntReason::Arp, &probe));
    assert_eq!((to, reply.sender_mac), (VM, VM_2));
}

#[test]
fn a_probe_for_the_interfaces_address_is_answered_and_teaches_nothing() {
    let mut lab = Lab::new("");
    let probe = arp_request((VM, "0.0.0.0"), "10.0.0.1");
    let (_, to, reply) = see_arp(&lab.answer(3, PuntReason::Arp, &probe));
    assert_eq!((to, reply.target_ipv4), (VM, [0; 4]));
    assert_eq!(lab.services.neighbors().count(), 0);
}

#[test]
fn requests_for_others_are_left_alone() {
    let mut lab = Lab::new("");
    let request = arp_request((VM, "10.0.0.9"), "10.0.0.10");
    assert_eq!(
        lab.refusal(PuntReason::Arp, &request),
        ServiceDrop::NotForRouter
    );
}

#[test]
fn an_address_of_the_interface_is_defended_once_in_ten_seconds() {
    let mut lab = Lab::new("");
    let claim = arp_request((VM, "10.0.0.1"), "10.0.0.1");
    let actions = lab.punt(3, PuntReason::Arp, &claim);
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
    let (from, to, packet) = see_arp(frame);
    assert_eq!((from, to), (ROUTER, BROADCAST));
    assert_eq!(packet.sender_ipv4, packet.target_ipv4);
    assert_eq!(packet.sender_mac, ROUTER);
    assert_eq!(
        dropped(lab.punt(3, PuntReason::Arp, &claim)),
        ServiceDrop::AddressConflict
    );
    lab.wait(10_000);
    assert_eq!(lab.punt(3, PuntReason::Arp, &claim).len(), 2);
}

#[test]
fn what_is_no_arp_that_makes_sense_is_refused() {
    let mut lab = Lab::new("");
    let good = arp_request((VM, "10.0.0.9"), "10.0.0.1");
    let with = |offset: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[offset..offset + bytes.len()].copy_from_slice(bytes);
        frame
    };
    for (frame, reason) in [
        (with(20, &[0, 9]), ServiceDrop::NotServed),
        (with(22, &[0xff; 6]), ServiceDrop::InvalidSource),
        (with(22, &[0; 6]), ServiceDrop::InvalidSource),
        (with(14, &[0, 6]), ServiceDrop::NotServed),
        (good[..41].to_vec(), ServiceDrop::NotServed),
        (good[..13].to_vec(), ServiceDrop::Malformed),
        (Vec::new(), ServiceDrop::Malformed),
    ] {
        assert_eq!(lab.refusal(PuntReason::Arp, &frame), reason, "{frame:02x?}");
    }
}

#[test]
fn a_port_is_answered_only_so_often() {
    let mut lab = Lab::new("");
    let burst = lab.services.limits().answers_burst;
    let probe = arp_request((VM, "0.0.0.0"), "10.0.0.1");
    for _ in 0..burst {
        lab.answer(3, PuntReason::Arp, &probe);
    }
    assert_eq!(
        lab.refusal(PuntReason::Arp, &probe),
        ServiceDrop::RateLimited
    );
    // Another port has a budget of its own, and this one's comes back.
    lab.answer(4, PuntReason::Arp, &probe);
    lab.wait(1);
    lab.answer(3, PuntReason::Arp, &probe);
}

#[test]
fn interfaces_announce_themselves_when_they_are_put_in() {
    let mut lab = Lab::new("");
    let mut actions = Vec::new();
    let mut config = config("");
    config.interfaces[0].mac = "02:00:00:00:00:aa".parse().unwrap();
    let now = lab.now;
    lab.services
        .configure(config.clone(), now, &mut actions)
        .unwrap();
    let [
        ServiceAction::Flood {
            domain: 10,
            frame: four,
            ..
        },
        ServiceAction::Flood {
            domain: 10,
            frame: six,
            ..
        },
    ] = actions.as_slice()
    else {
        panic!("{actions:?}");
    };
    let (_, _, announced) = see_arp(four);
    assert_eq!(announced.sender_mac, [2, 0, 0, 0, 0, 0xaa]);
    assert_eq!(announced.target_ipv4, [10, 0, 0, 1]);
    assert_eq!(see(six).selector, (136, 0));
    // What did not change says nothing.
    actions.clear();
    lab.services.configure(config, now, &mut actions).unwrap();
    assert_eq!(actions, []);
}
