//! What senders leave undone (checksums, TSO, UFO) against what receivers do.

use guest_sim::frame::FrameBuilder;
use guest_sim::{ChainLayout, Features, Frame, Nic, NicOptions};

use crate::rig::{Switch, guest_options, mac, named, one_way, verify_quiet};

/// Every legal set of receive offloads: the others depend on GUEST_CSUM, ECN on one of TSO (VIRTIO 1.3 §5.1.3.1).
fn receive_offloads() -> Vec<Features> {
    let bits = [
        Features::GUEST_CSUM,
        Features::GUEST_TSO4,
        Features::GUEST_TSO6,
        Features::GUEST_ECN,
        Features::GUEST_UFO,
    ];
    let every = (0..1 << bits.len()).map(|set: usize| {
        let chosen = bits.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1);
        chosen.fold(Features::NONE, |all, (_, bit)| all | *bit)
    });
    every
        .filter(|set| {
            let has = |bit| set.contains(bit);
            let needs_checksum =
                has(Features::GUEST_TSO4) || has(Features::GUEST_TSO6) || has(Features::GUEST_UFO);
            let has_tso = has(Features::GUEST_TSO4) || has(Features::GUEST_TSO6);
            (!needs_checksum || has(Features::GUEST_CSUM)) && (!has(Features::GUEST_ECN) || has_tso)
        })
        .collect()
}

/// Everything a sender can leave undone, in sizes around what matters; `tags` are put before.
fn unfinished(tags: &[u16]) -> Vec<Frame> {
    let mut builders = Vec::new();
    for payload in [0, 1, 2, 63, 64, 181, 182, 183, 201, 202, 203, 1400] {
        builders.extend([
            FrameBuilder::tcp4(payload).checksum_offload(),
            FrameBuilder::tcp6(payload).checksum_offload(),
            FrameBuilder::udp4(payload).checksum_offload(),
            FrameBuilder::udp6(payload).checksum_offload(),
        ]);
    }
    for (payload, segment) in [
        (1449, 1448),
        (2896, 1448),
        (9000, 1447),
        (20_001, 536),
        (64_000, 1400),
        (65_000, 1400),
        // The first pieces lie in the private copy, or half of them.
        (200, 64),
        (201, 33),
        (700, 190),
        (1, 1448),
    ] {
        builders.extend([
            FrameBuilder::tcp4(payload).segment(segment),
            FrameBuilder::tcp6(payload).segment(segment.min(1428)),
            FrameBuilder::tcp4(payload)
                .timestamps()
                .segment(segment)
                .sequence(u32::MAX - 1000),
            FrameBuilder::tcp4(payload).segment(segment).ecn(),
            FrameBuilder::tcp6(payload).segment(segment.min(1428)).ecn(),
        ]);
    }
    for (payload, segment) in [(1473, 1400), (9000, 1400), (30_000, 512), (65_000, 1400)] {
        builders.extend([
            FrameBuilder::udp4(payload)
                .segment(segment)
                .identification(77),
            FrameBuilder::udp6(payload).segment(segment),
        ]);
    }
    let frames = builders.into_iter().zip(1..).map(|(builder, number)| {
        let builder = builder.macs(mac(1), mac(2)).ports(number, 5001);
        tags.iter()
            .fold(builder, |builder, &id| builder.vlan(id))
            .build()
    });
    frames.collect()
}

fn rings(mergeable: bool) -> Features {
    let rings = Features::INDIRECT_DESC | Features::EVENT_IDX;
    if mergeable {
        rings | Features::MRG_RXBUF
    } else {
        rings
    }
}

fn receiver(offloads: Features, mergeable: bool, modern: bool) -> NicOptions {
    let version = if modern {
        Features::VERSION_1
    } else {
        Features::NONE
    };
    NicOptions {
        features: version | rings(mergeable) | offloads,
        guest_rx_ring_size: 512,
        guest_rx_buffers: if mergeable { u16::MAX } else { 256 },
        ..guest_options()
    }
}

fn sender(modern: bool) -> NicOptions {
    let (version, layout) = if modern {
        (Features::VERSION_1, ChainLayout::Single)
    } else {
        (Features::NONE, ChainLayout::HeaderAlone)
    };
    NicOptions {
        features: version | rings(true) | Features::OFFLOADS,
        guest_tx_layout: layout,
        ..guest_options()
    }
}

fn verify_every(frames: &[Frame], from: &mut Nic, to: &mut Nic) {
    for frame in frames {
        named(&(frame.bytes.len(), frame.header), || {
            one_way(frame, from, to)
        });
    }
    verify_quiet(&mut [from, to]);
}

fn every_receiver(mergeable: bool) {
    let switch = Switch::of(&["vm1", "vm2"]);
    let frames = unfinished(&[]);
    for (turn, offloads) in receive_offloads().into_iter().enumerate() {
        for modern in [true, false] {
            named(&(offloads, mergeable, modern), || {
                let mut from = switch.guest("vm1", sender((turn % 2 == 0) == modern));
                let mut to = switch.guest("vm2", receiver(offloads, mergeable, modern));
                verify_every(&frames, &mut from, &mut to);
            });
        }
    }
    switch.finish();
}

#[test]
fn every_receiver_with_merged_buffers_gets_what_it_can_take_and_the_rest_finished() {
    every_receiver(true);
}

#[test]
fn every_receiver_without_merged_buffers_gets_what_it_can_take_and_the_rest_finished() {
    every_receiver(false);
}

#[test]
fn tagged_frames_keep_their_tags_when_they_are_cut_or_finished() {
    let switch = Switch::of(&["vm1", "vm2"]);
    for offloads in [
        Features::NONE,
        Features::GUEST_CSUM,
        Features::GUEST_CSUM | Features::GUEST_TSO4,
        Features::OFFLOADS,
    ] {
        for tags in [&[10][..], &[10, 20]] {
            named(&(offloads, tags), || {
                let mut from = switch.guest("vm1", sender(true));
                let mut to = switch.guest("vm2", receiver(offloads, true, true));
                verify_every(&unfinished(tags), &mut from, &mut to);
            });
        }
    }
    switch.finish();
}

#[test]
fn a_flooded_frame_is_finished_for_those_who_need_it_and_left_to_those_who_do_it() {
    let switch = Switch::of(&["vm1", "vm2", "vm3", "vm4"]);
    let mut from = switch.guest("vm1", sender(true));
    let mut to = [
        switch.guest("vm2", receiver(Features::OFFLOADS, true, true)),
        switch.guest("vm3", receiver(Features::NONE, true, true)),
        switch.guest("vm4", receiver(Features::GUEST_CSUM, false, false)),
    ];
    for frame in unfinished(&[]) {
        named(&(frame.bytes.len(), frame.header), || {
            from.send(&frame).unwrap();
            for nic in &mut to {
                crate::rig::verify_arrival(&frame, nic);
            }
        });
    }
    switch.finish();
}

#[test]
fn a_frame_too_long_for_a_receivers_buffers_is_dropped_and_the_next_arrives() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let mut from = switch.guest("vm1", sender(true));
    let mut to = switch.guest("vm2", receiver(Features::NONE, false, true));
    let builder = FrameBuilder::raw(0x88b5, 0).macs(mac(1), mac(2));
    let fits = builder.clone().frame_bytes(1518).build();
    from.send(&builder.frame_bytes(1519).build()).unwrap();
    one_way(&fits, &mut from, &mut to);
    assert_eq!(switch.all_drops("vm2"), [("rx_buffer_too_small".into(), 1)]);
    verify_quiet(&mut [&mut from, &mut to]);
    switch.finish();
}
