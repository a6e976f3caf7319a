//! Whatever comes in: no panic, no more actions and no more memory than promised, and only good frames out.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod service_lab;

use etherparse::{Icmpv6Type, SlicedPacket};
use proptest::prelude::*;
use service_lab::*;
use switch_core::service::{
    PacketIn, PacketMetadata, PuntReason, ServiceAction, Services, ServicesConfig,
};
use switch_core::{Millis, PortId};

const ALL: &str = r#",
    "proxies": [ { "address": "10.0.0.50" }, { "address": "fd00:1::50" } ],
    "dhcp4": { "pool": { "first": "10.0.0.100", "last": "10.0.0.110" }, "dns": ["10.0.0.1"],
        "routes": [ { "to": "10.9.0.0/16", "via": "10.0.0.2" } ], "router": "10.0.0.1" },
    "dhcp6": { "pool": { "first": "fd00:1::100", "last": "fd00:1::110" }, "dns": ["fd00:1::1"], "rapid_commit": true },
    "ra": { "dns": ["fd00:1::1"] }"#;

fn all() -> ServicesConfig {
    let mut config = config(ALL);
    config.limits.queued_bytes = 65_536;
    config.limits.queued_frames_per_port = 40;
    config.limits.queued_frames_per_neighbor = 8;
    config.limits.neighbors = 20;
    config.limits.leases_per_port = 3;
    config
}

/// A good frame for each service, to be made worse.
fn good_frames() -> Vec<(PuntReason, Vec<u8>)> {
    let dhcp4 = {
        let mut bytes = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0, 0];
        bytes.extend([0; 16]);
        bytes.extend(VM);
        bytes.extend([0; 10 + 64 + 128]);
        bytes.extend([
            99, 130, 83, 99, 53, 1, 3, 50, 4, 10, 0, 0, 101, 61, 7, 1, 1, 2, 3, 4, 5, 6, 57, 2, 2,
            64, 255,
        ]);
        udp(4, (68, 67), &bytes)
    };
    let dhcp6 = {
        let mut bytes = vec![
            1, 1, 2, 3, 0, 1, 0, 10, 0, 3, 0, 1, 1, 2, 3, 4, 5, 6, 0, 14, 0, 0,
        ];
        bytes.extend([0, 3, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 24]);
        bytes.extend(v6("fd00:1::105").octets());
        bytes.extend([0; 8]);
        udp(6, (546, 547), &bytes)
    };
    let rs = icmpv6(
        (VM, [0x33, 0x33, 0, 0, 0, 2]),
        ("fe80::9", "ff02::2"),
        Icmpv6Type::RouterSolicitation,
        &[1, 1, 2, 3, 4, 5, 6, 7],
    );
    let mut ping = udp4("10.0.0.9", "10.0.0.1", 9, &[8; 40]);
    ping[23] = 1;
    ping[34..38].copy_from_slice(&[8, 0, 0, 0]);
    let sum = switch_core::checksum::Sum::of(&ping[14..24])
        .with_bytes(&ping[26..34])
        .checksum();
    ping[24..26].copy_from_slice(&sum.to_be_bytes());
    vec![
        (PuntReason::Arp, arp_request((VM, "10.0.0.9"), "10.0.0.1")),
        (
            PuntReason::NeighborObserved,
            arp_request((VM, "10.0.0.9"), "10.0.0.9"),
        ),
        (
            PuntReason::NeighborDiscovery,
            solicitation(VM, "fd00:1::9", "fd00:1::1"),
        ),
        (PuntReason::RouterSolicitation, rs),
        (PuntReason::LocalInput, ping),
        (
            PuntReason::TtlExceeded,
            udp4("10.0.0.9", "8.8.8.8", 1, &[1; 600]),
        ),
        (
            PuntReason::PacketTooBig,
            udp6("fd00:1::9", "2001:db8::1", 9, &[1; 1400]),
        ),
        (
            PuntReason::NextHopUnresolved,
            udp4("10.0.0.9", "10.0.1.9", 9, &[1; 20]),
        ),
        (
            PuntReason::NextHopUnresolved,
            udp6("fd00:1::9", "fd00:2::9", 9, &[1; 20]),
        ),
        (PuntReason::Dhcp4, dhcp4),
        (PuntReason::Dhcp6, dhcp6),
    ]
}

fn udp(version: u8, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    if version == 4 {
        etherparse::PacketBuilder::ethernet2(VM, BROADCAST)
            .ipv4([0; 4], [255; 4], 64)
            .udp(ports.0, ports.1)
            .write(&mut frame, payload)
            .unwrap();
    } else {
        etherparse::PacketBuilder::ethernet2(VM, [0x33, 0x33, 0, 1, 0, 2])
            .ipv6(v6("fe80::9").octets(), v6("ff02::1:2").octets(), 64)
            .udp(ports.0, ports.1)
            .write(&mut frame, payload)
            .unwrap();
    }
    frame
}

/// That the actions are as few as promised, and the frames in them good.
fn check(services: &Services, from: PortId, actions: &[ServiceAction]) {
    let limits = services.limits();
    let most = Services::MAX_ACTIONS + limits.queued_frames_per_neighbor as usize;
    assert!(actions.len() <= most, "{actions:?}");
    for action in actions {
        match action {
            ServiceAction::Send { port, frame } => {
                assert_eq!(*port, from, "{action:?}");
                assert_is_good(frame);
            }
            ServiceAction::Flood { frame, .. } => assert_is_good(frame),
            ServiceAction::LearnNeighbor { mac, .. } => {
                assert!(!mac.is_multicast() && !mac.is_zero());
            }
            _ => {}
        }
    }
    assert!(services.queued_bytes() <= limits.queued_bytes as usize);
    assert!(services.neighbors().count() <= limits.neighbors as usize);
}

fn assert_is_good(frame: &[u8]) {
    let packet =
        SlicedPacket::from_ethernet(frame).unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
    if let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net {
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
    }
    assert!(frame[6] & 1 == 0, "a station sends it");
}

#[test]
fn every_good_frame_is_served() {
    for (reason, frame) in good_frames() {
        let mut lab = Lab::with(all());
        let metadata = PacketMetadata {
            interface: 1,
            egress_interface: 2,
            domain: 10,
            ..PacketMetadata::default()
        };
        let actions = lab.punt_with(3, reason, (metadata, [1; 12]), &frame);
        assert!(
            !actions
                .iter()
                .any(|action| matches!(action, ServiceAction::Drop { .. })),
            "{reason:?}: {actions:?}"
        );
    }
}

#[test]
fn every_truncated_frame_ends_somewhere() {
    for (reason, frame) in good_frames() {
        for length in 0..frame.len() {
            let mut lab = Lab::with(all());
            let metadata = PacketMetadata {
                interface: 1,
                egress_interface: 2,
                domain: 10,
                ..PacketMetadata::default()
            };
            let actions = lab.punt_with(3, reason, (metadata, [1; 12]), &frame[..length]);
            check(&lab.services, port(3), &actions);
        }
    }
}

#[derive(Clone, Debug)]
struct Step {
    which: usize,
    reason: Option<usize>,
    changes: Vec<(prop::sample::Index, u8)>,
    length: Option<prop::sample::Index>,
    extra: Vec<u8>,
    from: u16,
    /// Which interfaces, next hop and MTU the program names.
    named: (u32, u32, u128, u16),
    flags: u8,
    wait_ms: u64,
}

fn step() -> impl Strategy<Value = Step> {
    let named = (
        prop_oneof![6 => Just(1_u32), 1 => 0..4_u32],
        prop_oneof![6 => Just(2_u32), 1 => 0..4_u32],
        prop_oneof![4 => Just(0_u128), 2 => 0x0a00_0100..0x0a00_0110_u128, 1 => any::<u128>()],
        any::<u16>(),
    );
    (
        (
            0..11_usize,
            proptest::option::weighted(0.2, 0..PuntReason::ALL.len()),
        ),
        proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        proptest::option::weighted(0.1, any::<prop::sample::Index>()),
        proptest::collection::vec(any::<u8>(), 0..8),
        (0..4_u16, named, any::<u8>()),
        prop_oneof![3 => Just(0_u64), 1 => 0..5000_u64],
    )
        .prop_map(
            |((which, reason), changes, length, extra, (from, named, flags), wait_ms)| Step {
                which,
                reason,
                changes,
                length,
                extra,
                from,
                named,
                flags,
                wait_ms,
            },
        )
}

proptest! {
    #[test]
    fn any_bytes_for_any_reason_are_served_within_bounds(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        reason in 0..PuntReason::ALL.len(),
        ether_type in prop_oneof![Just(None), Just(Some(0x0800_u16)), Just(Some(0x86dd)), Just(Some(0x0806))],
        flags: u8,
    ) {
        let mut lab = Lab::with(all());
        let mut bytes = bytes;
        if let (Some(ether_type), Some(place)) = (ether_type, bytes.get_mut(12..14)) {
            place.copy_from_slice(&ether_type.to_be_bytes());
        }
        let metadata = PacketMetadata { interface: 1, egress_interface: 2, domain: 10, ..PacketMetadata::default() };
        let actions = lab.punt_with(3, PuntReason::ALL[reason], (metadata, [flags; 12]), &bytes);
        check(&lab.services, port(3), &actions);
    }

    /// Frames that are nearly good, one after the other, with time going on: all that is kept stays bounded, and ends.
    #[test]
    fn nearly_good_frames_leave_nothing_behind(steps in proptest::collection::vec(step(), 1..80)) {
        let good = good_frames();
        let mut lab = Lab::with(all());
        for step in steps {
            let (reason, mut frame) = good[step.which].clone();
            let reason = step.reason.map_or(reason, |reason| PuntReason::ALL[reason]);
            for (place, value) in &step.changes {
                *place.get_mut(&mut frame) = *value;
            }
            if let Some(length) = step.length {
                frame.truncate(length.index(frame.len() + 1));
            }
            frame.extend(&step.extra);
            let (interface, egress_interface, next_hop, mtu_bytes) = step.named;
            let packet = PacketIn {
                port: port(step.from),
                reason,
                metadata: PacketMetadata { interface, egress_interface, domain: 10, next_hop, mtu_bytes },
                vnet_header: [step.flags; 12],
                frame: &frame,
            };
            let mut actions = Vec::new();
            lab.services.handle(packet, lab.now, &mut actions);
            check(&lab.services, port(step.from), &actions);
            for action in lab.wait(step.wait_ms) {
                match action {
                    ServiceAction::Send { frame, .. } | ServiceAction::Flood { frame, .. } => assert_is_good(&frame),
                    _ => {}
                }
            }
        }
        // When nothing comes in any more, nothing is kept: but for leases, all ends within the reachable time.
        let config = config("");
        lab.services.configure(config, lab.now, &mut Vec::new()).unwrap();
        let end = lab.now.after(Millis(400_000));
        for _ in 0..10_000 {
            match lab.services.next_deadline() {
                Some(deadline) if deadline <= end => {
                    lab.now = lab.now.max(deadline);
                    lab.wait(0);
                }
                _ => break,
            }
        }
        prop_assert_eq!(lab.services.next_deadline(), None);
        prop_assert_eq!(lab.services.neighbors().count(), 0);
        prop_assert_eq!(lab.services.queued_bytes(), 0);
    }
}
