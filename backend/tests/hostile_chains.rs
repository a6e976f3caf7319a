//! A guest that breaks the rules of its rings loses that ring, and nobody else notices.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod rig;

use guest_sim::frame::FrameBuilder;
use guest_sim::{
    Descriptor, Features, GuestMemory, GuestMemoryLayout, NicOptions, QueuePair, RawRing,
};
use rig::Rig;
use ringswitch::datapath::{DatapathEvent, QueueIndex};
use ringswitch::ring::{Direction, Ring, RingError, SegmentArena};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const VICTIM: usize = 1;
const BYSTANDERS: [usize; 2] = [0, 2];
const MACS: [[u8; 6]; 3] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];

fn rig() -> Rig {
    let mut rig = Rig::new(&[
        NicOptions::bench(),
        NicOptions::bench(),
        NicOptions::bench(),
    ]);
    for guest in 0..3 {
        exchange(&mut rig, guest, (guest + 1) % 3);
    }
    rig
}

/// One frame from one guest to another, checked.
fn exchange(rig: &mut Rig, from: usize, to: usize) {
    let frame = FrameBuilder::udp4(100).macs(MACS[from], MACS[to]).build();
    rig.guests[from].pair.guest_tx.queue(&frame).unwrap();
    rig.guests[from].pair.guest_tx.publish().unwrap();
    assert_eq!(rig.run(from), 1);
    rig.guests[from].pair.guest_tx.reclaim().unwrap();
    // Flooded copies are taken out as well: the next exchange starts with empty rings.
    let mut arrived = false;
    for guest in 0..3 {
        while let Some(received) = rig.guests[guest].pair.guest_rx.try_receive().unwrap() {
            assert_eq!(received.bytes, frame.bytes);
            arrived |= guest == to;
        }
    }
    assert!(arrived, "the frame from {from} to {to} did not arrive");
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        len,
        flags,
        next,
    }
}

/// Memory of the victim that is mapped, and an address far outside.
const INSIDE: u64 = 0x10_0000;
const OUTSIDE: u64 = 0xdead_0000_0000;

#[test]
fn a_broken_guest_tx_chain_stops_that_ring_alone() {
    type Check = fn(&RingError) -> bool;
    let cases: Vec<(&str, Vec<Descriptor>, Check)> = vec![
        (
            "a loop",
            vec![
                descriptor(INSIDE, 64, NEXT, 1),
                descriptor(INSIDE, 64, NEXT, 0),
            ],
            |e| matches!(e, RingError::Loop { .. }),
        ),
        (
            "a loop of empty descriptors",
            vec![descriptor(INSIDE, 0, NEXT, 0)],
            |e| matches!(e, RingError::Loop { .. }),
        ),
        (
            "an address outside memory",
            vec![descriptor(OUTSIDE, 64, 0, 0)],
            |e| matches!(e, RingError::BadAddress { .. }),
        ),
        (
            "an address that wraps",
            vec![descriptor(u64::MAX - 10, 64, 0, 0)],
            |e| matches!(e, RingError::BadAddress { .. }),
        ),
        (
            "a length past the region",
            vec![descriptor(INSIDE, u32::MAX, 0, 0)],
            |e| matches!(e, RingError::BadAddress { .. }),
        ),
        (
            "a writable descriptor",
            vec![descriptor(INSIDE, 64, WRITE, 0)],
            |e| matches!(e, RingError::WrongDirection { .. }),
        ),
        (
            "next outside the table",
            vec![descriptor(INSIDE, 64, NEXT, 5000)],
            |e| matches!(e, RingError::NoSuchDescriptor { .. }),
        ),
        (
            "an indirect table of odd size",
            vec![descriptor(INSIDE, 17, INDIRECT, 0)],
            |e| matches!(e, RingError::BadIndirect { .. }),
        ),
        (
            "an empty indirect table",
            vec![descriptor(INSIDE, 0, INDIRECT, 0)],
            |e| matches!(e, RingError::BadIndirect { .. }),
        ),
        (
            "an indirect table outside memory",
            vec![descriptor(OUTSIDE, 64, INDIRECT, 0)],
            |e| matches!(e, RingError::BadAddress { .. }),
        ),
        (
            "indirect with next",
            vec![descriptor(INSIDE, 32, INDIRECT | NEXT, 1)],
            |e| matches!(e, RingError::BadIndirect { .. }),
        ),
    ];
    for (name, chain, expected) in cases {
        let mut rig = rig();
        let ring = rig.guests[VICTIM].raw_guest_tx();
        post_at_head(&ring, &chain);
        rig.run(VICTIM);
        assert_stopped(&rig, 1, name, expected);
        bystanders_go_on(&mut rig);
    }
}

#[test]
fn a_broken_indirect_table_stops_that_ring_alone() {
    for (name, table) in [
        (
            "a table inside a table",
            descriptor(INSIDE, 16, INDIRECT, 0),
        ),
        ("a loop inside the table", descriptor(INSIDE, 16, NEXT, 0)),
        ("next outside the table", descriptor(INSIDE, 16, NEXT, 7)),
    ] {
        let mut rig = rig();
        let place = INSIDE + 0x4000;
        rig.guests[VICTIM]
            .memory
            .write(place, &table.to_bytes())
            .unwrap();
        post_at_head(
            &rig.guests[VICTIM].raw_guest_tx(),
            &[descriptor(place, 16, INDIRECT, 0)],
        );
        rig.run(VICTIM);
        assert_stopped(&rig, 1, name, |_| true);
        bystanders_go_on(&mut rig);
    }
}

#[test]
fn an_available_index_that_jumps_stops_that_ring_alone() {
    let mut rig = rig();
    let ring = rig.guests[VICTIM].raw_guest_tx();
    ring.set_avail_index(ring.avail_index().unwrap().wrapping_add(5000))
        .unwrap();
    rig.run(VICTIM);
    assert_stopped(&rig, 1, "a jump", |e| {
        matches!(e, RingError::AvailJump { .. })
    });
    bystanders_go_on(&mut rig);
}

#[test]
fn a_broken_guest_rx_chain_stops_that_ring_and_the_sender_goes_on() {
    for (name, bad) in [
        ("a readable buffer", descriptor(INSIDE, 2048, 0, 0)),
        (
            "a buffer outside memory",
            descriptor(OUTSIDE, 2048, WRITE, 0),
        ),
        (
            "a buffer past the region",
            descriptor(INSIDE, u32::MAX, WRITE, 0),
        ),
        ("a loop", descriptor(INSIDE, 1, WRITE | NEXT, 0)),
    ] {
        let mut rig = rig();
        let ring = rig.guests[VICTIM].raw_guest_rx();
        for index in 0..ring.size() {
            let next = if bad.flags & NEXT == 0 { 0 } else { index };
            ring.set_descriptor(index, Descriptor { next, ..bad })
                .unwrap();
        }
        let frame = FrameBuilder::udp4(100).macs(MACS[0], MACS[VICTIM]).build();
        rig.guests[0].pair.guest_tx.queue(&frame).unwrap();
        rig.guests[0].pair.guest_tx.publish().unwrap();
        assert_eq!(rig.run(0), 1, "{name}");
        assert_stopped(&rig, 0, name, |_| true);
        assert_eq!(rig.counters(VICTIM).drops, vec![("bad_chain", 1)], "{name}");
        bystanders_go_on(&mut rig);
    }
}

#[test]
fn a_frame_in_a_thousand_descriptors_passes_and_one_in_more_is_refused() {
    for (descriptors, passes) in [(1024u16, true), (1025, false)] {
        let options = NicOptions {
            guest_tx_ring_size: 4096,
            ..NicOptions::bench()
        };
        let mut rig = Rig::new(&[NicOptions::bench(), options, NicOptions::bench()]);
        let image = [
            vec![0; 12],
            FrameBuilder::udp4(2000)
                .macs(MACS[1], MACS[0])
                .build()
                .bytes,
        ]
        .concat();
        rig.guests[1].memory.write(INSIDE, &image).unwrap();
        let ring = rig.guests[1].raw_guest_tx();
        let chain: Vec<Descriptor> = (0..descriptors)
            .map(|i| {
                let last = i + 1 == descriptors;
                let len = if last {
                    image.len() as u32 - u32::from(i)
                } else {
                    1
                };
                descriptor(
                    INSIDE + u64::from(i),
                    len,
                    if last { 0 } else { NEXT },
                    i + 1,
                )
            })
            .collect();
        post_at_head(&ring, &chain);
        rig.run(1);
        assert_eq!(
            rig.guests[1].is_running(1),
            passes,
            "{descriptors} descriptors"
        );
        let arrived = rig.guests[0].pair.guest_rx.try_receive().unwrap();
        assert_eq!(
            arrived.is_some_and(|frame| frame.bytes == image[12..]),
            passes
        );
    }
}

/// Posts a chain that starts at descriptor 0.
fn post_at_head(ring: &RawRing, chain: &[Descriptor]) {
    for (index, descriptor) in (0..).zip(chain) {
        ring.set_descriptor(index, *descriptor).unwrap();
    }
    let avail = ring.avail_index().unwrap();
    ring.set_avail_entry(avail, 0).unwrap();
    ring.set_avail_index(avail.wrapping_add(1)).unwrap();
}

fn assert_stopped(rig: &Rig, ring: u16, name: &str, expected: impl Fn(&RingError) -> bool) {
    assert!(
        !rig.guests[VICTIM].is_running(ring.into()),
        "{name}: the ring goes on"
    );
    match rig.events().as_slice() {
        [DatapathEvent::RingFault { queue, error, .. }] => {
            assert_eq!(*queue, QueueIndex(ring), "{name}");
            assert!(expected(error), "{name}: {error}");
        }
        other => panic!("{name}: {other:?}"),
    }
}

fn bystanders_go_on(rig: &mut Rig) {
    let [a, b] = BYSTANDERS;
    exchange(rig, a, b);
    exchange(rig, b, a);
    assert!(rig.events().is_empty());
}

#[test]
fn a_jump_is_told_also_to_whoever_asks_after_somebody_else_saw_it() {
    let options = NicOptions::bench();
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
    let pair = QueuePair::new(0, &memory, &options, options.features).unwrap();
    let config = rig::config(pair.guest_rx.ring(), options.features);
    let mut ring = Ring::start(config, Direction::Writable, &rig::map(&memory)).unwrap();
    let raw = pair.guest_rx.ring().raw().unwrap();
    let far = raw.avail_index().unwrap().wrapping_add(5000);
    raw.set_avail_index(far).unwrap();
    assert!(!ring.offers_half());
    let taken = rig::take(&mut ring, &mut SegmentArena::default(), 1);
    assert!(
        matches!(taken, Err(RingError::AvailJump { avail, .. }) if avail == far),
        "{taken:?}"
    );
}

#[test]
fn a_batch_of_chains_that_are_long_and_next_to_empty_counts_for_what_was_walked() {
    let mut rig = rig();
    let raw = rig.guests[VICTIM].raw_guest_tx();
    let pieces = raw.size() - 1;
    for index in 0..pieces {
        let next = if index == pieces - 1 { 0 } else { NEXT };
        raw.set_descriptor(index, descriptor(INSIDE, 0, next, index + 1))
            .unwrap();
    }
    let avail = raw.avail_index().unwrap();
    raw.set_avail_entry(avail, 0).unwrap();
    raw.set_avail_index(avail.wrapping_add(1)).unwrap();
    let served = rig.serve(VICTIM, 1 << 20);
    assert_eq!(served.frames, 1);
    assert!(served.bytes >= 16 * u64::from(pieces), "{served:?}");
}

#[test]
fn empty_descriptors_count_towards_what_a_batch_walks() {
    let options = NicOptions::bench();
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20)).unwrap();
    let pair = QueuePair::new(0, &memory, &options, options.features).unwrap();
    let config = rig::config(pair.guest_rx.ring(), options.features);
    let mut ring = Ring::start(config, Direction::Writable, &rig::map(&memory)).unwrap();
    let raw = pair.guest_rx.ring().raw().unwrap();
    for index in 0..1000 {
        let next = if index == 999 { 0 } else { NEXT };
        raw.set_descriptor(index, descriptor(INSIDE, 0, WRITE | next, index + 1))
            .unwrap();
    }
    for slot in 0..8 {
        raw.set_avail_entry(slot, 0).unwrap();
    }
    raw.set_avail_index(8).unwrap();
    let mut arena = SegmentArena::default();
    let chains = rig::take(&mut ring, &mut arena, 64).unwrap();
    assert_eq!(chains.len(), 4, "the arena has room for 4,096 pieces");
}

#[test]
fn a_driver_without_event_idx_does_not_kick_a_ring_that_is_polled_again() {
    const NO_NOTIFY: u16 = 1;
    let options = NicOptions {
        features: Features::VERSION_1 | Features::MRG_RXBUF,
        ..NicOptions::bench()
    };
    let mut rig = Rig::new(&[options, NicOptions::bench(), NicOptions::bench()]);
    let ring = rig.guests[0].raw_guest_tx();
    assert_eq!(ring.used_flags().unwrap(), NO_NOTIFY);
    assert!(!rig.arm(0), "nothing waits");
    assert_eq!(ring.used_flags().unwrap(), 0);
    exchange(&mut rig, 0, 1);
    assert_eq!(ring.used_flags().unwrap(), NO_NOTIFY);
}
