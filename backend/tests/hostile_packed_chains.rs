//! A guest that breaks the rules of its packed rings loses that ring, and nobody else notices.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod rig;

use guest_sim::frame::FrameBuilder;
use guest_sim::{EventSuppression, Features, NicOptions, PackedDescriptor, RawPackedRing};
use rig::Rig;
use ringswitch::datapath::{DatapathEvent, QueueIndex};
use ringswitch::ring::{Direction, Ring, RingError, SegmentArena};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const VICTIM: usize = 1;
const MACS: [[u8; 6]; 3] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];
/// Memory of the victim that is mapped, and an address far outside.
const INSIDE: u64 = 0x10_0000;
const OUTSIDE: u64 = 0xdead_0000_0000;

fn packed() -> NicOptions {
    let options = NicOptions::bench();
    NicOptions {
        features: options.features | Features::RING_PACKED,
        ..options
    }
}

fn rig() -> Rig {
    let mut rig = Rig::new(&[packed(), packed(), packed()]);
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
    let mut arrived = false;
    for guest in 0..3 {
        while let Some(received) = rig.guests[guest].pair.guest_rx.try_receive().unwrap() {
            assert_eq!(received.bytes, frame.bytes);
            arrived |= guest == to;
        }
    }
    assert!(arrived, "the frame from {from} to {to} did not arrive");
}

fn descriptor(address: u64, len: u32, flags: u16) -> PackedDescriptor {
    PackedDescriptor {
        address,
        len,
        id: 7,
        flags,
    }
}

fn guest_tx(rig: &Rig) -> RawPackedRing {
    rig.guests[VICTIM]
        .pair
        .guest_tx
        .ring()
        .raw_packed()
        .unwrap()
}

fn assert_stopped(rig: &mut Rig, ring: u16, name: &str, expected: impl Fn(&RingError) -> bool) {
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
    exchange(rig, 0, 2);
    exchange(rig, 2, 0);
    assert!(rig.events().is_empty());
}

#[test]
fn a_broken_guest_tx_chain_stops_that_ring_alone() {
    type Check = fn(&RingError) -> bool;
    let endless = vec![descriptor(INSIDE, 1, NEXT); 1024];
    let cases: Vec<(&str, Vec<PackedDescriptor>, Check)> = vec![
        ("a chain without end", endless, |e| {
            matches!(e, RingError::Loop { .. })
        }),
        (
            "an address outside memory",
            vec![descriptor(OUTSIDE, 64, 0)],
            |e| matches!(e, RingError::BadAddress { .. }),
        ),
        (
            "an address that wraps",
            vec![descriptor(u64::MAX - 10, 64, 0)],
            |e| matches!(e, RingError::BadAddress { .. }),
        ),
        (
            "a length past the region",
            vec![descriptor(INSIDE, u32::MAX, 0)],
            |e| matches!(e, RingError::BadAddress { .. }),
        ),
        (
            "a writable descriptor",
            vec![descriptor(INSIDE, 64, WRITE)],
            |e| matches!(e, RingError::WrongDirection { .. }),
        ),
        (
            "a bad address behind a good one",
            vec![descriptor(INSIDE, 64, NEXT), descriptor(OUTSIDE, 64, 0)],
            |e| matches!(e, RingError::BadAddress { .. }),
        ),
        (
            "an indirect table of odd size",
            vec![descriptor(INSIDE, 17, INDIRECT)],
            |e| matches!(e, RingError::BadIndirect { .. }),
        ),
        (
            "an empty indirect table",
            vec![descriptor(INSIDE, 0, INDIRECT)],
            |e| matches!(e, RingError::BadIndirect { .. }),
        ),
        (
            "an indirect table outside memory",
            vec![descriptor(OUTSIDE, 64, INDIRECT)],
            |e| matches!(e, RingError::BadAddress { .. }),
        ),
        (
            "indirect with next",
            vec![
                descriptor(INSIDE, 32, INDIRECT | NEXT),
                descriptor(INSIDE, 32, 0),
            ],
            |e| matches!(e, RingError::BadIndirect { .. }),
        ),
        (
            "an indirect table behind a buffer",
            vec![
                descriptor(INSIDE, 32, NEXT),
                descriptor(INSIDE, 32, INDIRECT),
            ],
            |e| matches!(e, RingError::BadIndirect { .. }),
        ),
        (
            "an indirect table of 1,025 descriptors",
            vec![descriptor(INSIDE, 16 * 1025, INDIRECT)],
            |e| matches!(e, RingError::TooLong { .. }),
        ),
    ];
    for (name, chain, expected) in cases {
        let mut rig = rig();
        guest_tx(&rig).post(&chain).unwrap();
        rig.run(VICTIM);
        assert_stopped(&mut rig, 1, name, expected);
    }
}

#[test]
fn flags_that_mean_nothing_in_an_indirect_table_are_passed_over() {
    let mut rig = rig();
    let frame = FrameBuilder::udp4(100).macs(MACS[VICTIM], MACS[0]).build();
    let image = [vec![0; 12], frame.bytes.clone()].concat();
    let memory = &rig.guests[VICTIM].memory;
    memory.write(INSIDE, &image).unwrap();
    let table = INSIDE + 0x4000;
    // VIRTIO 1.3 §2.8.7: only WRITE counts there.
    let halves = [(INSIDE, 20), (INSIDE + 20, image.len() as u32 - 20)];
    let entries = halves.map(|(at, len)| descriptor(at, len, NEXT | INDIRECT | 0x8080).to_bytes());
    memory.write(table, entries.as_flattened()).unwrap();
    guest_tx(&rig)
        .post(&[descriptor(table, 32, INDIRECT)])
        .unwrap();
    assert_eq!(rig.run(VICTIM), 1);
    let arrived = rig.guests[0].pair.guest_rx.try_receive().unwrap().unwrap();
    assert_eq!(arrived.bytes, frame.bytes);
}

#[test]
fn more_on_offer_than_the_ring_has_stops_that_ring_alone() {
    let options = packed();
    let memory =
        guest_sim::GuestMemory::new(&guest_sim::GuestMemoryLayout::one_region(64 << 20)).unwrap();
    let options = NicOptions {
        guest_tx_ring_size: 4,
        ..options
    };
    let pair = guest_sim::QueuePair::new(0, &memory, &options, options.features).unwrap();
    let config = rig::config(pair.guest_tx.ring(), options.features);
    let mut ring = Ring::start(config, Direction::Readable, &rig::map(&memory)).unwrap();
    let raw = pair.guest_tx.ring().raw_packed().unwrap();
    let mut arena = SegmentArena::default();
    raw.post(&[descriptor(INSIDE, 64, 0); 4]).unwrap();
    assert_eq!(rig::take(&mut ring, &mut arena, 64).unwrap().len(), 4);
    assert_eq!(rig::take(&mut ring, &mut arena, 64).unwrap().len(), 0);
    // Offered again although nothing came back.
    raw.post(&[descriptor(INSIDE, 64, 0)]).unwrap();
    assert!(matches!(
        rig::take(&mut ring, &mut arena, 64),
        Err(RingError::Overrun { size: 4 })
    ));
}

#[test]
fn a_broken_guest_rx_chain_stops_that_ring_and_the_sender_goes_on() {
    for (name, bad) in [
        ("a readable buffer", descriptor(INSIDE, 2048, 0)),
        ("a buffer outside memory", descriptor(OUTSIDE, 2048, WRITE)),
        (
            "a buffer past the region",
            descriptor(INSIDE, u32::MAX, WRITE),
        ),
        ("a chain without end", descriptor(INSIDE, 1, WRITE | NEXT)),
    ] {
        let mut rig = rig();
        let ring = rig.guests[VICTIM]
            .pair
            .guest_rx
            .ring()
            .raw_packed()
            .unwrap();
        for index in 0..ring.size() {
            let offered = ring.descriptor(index).unwrap().flags & 0x8080;
            let flags = bad.flags | offered;
            ring.set_descriptor(index, PackedDescriptor { flags, ..bad })
                .unwrap();
        }
        let frame = FrameBuilder::udp4(100).macs(MACS[0], MACS[VICTIM]).build();
        rig.guests[0].pair.guest_tx.queue(&frame).unwrap();
        rig.guests[0].pair.guest_tx.publish().unwrap();
        assert_eq!(rig.run(0), 1, "{name}");
        assert_eq!(rig.counters(VICTIM).drops, vec![("bad_chain", 1)], "{name}");
        assert_stopped(&mut rig, 0, name, |_| true);
    }
}

#[test]
fn a_frame_in_a_thousand_descriptors_passes_and_one_in_more_is_refused() {
    for (descriptors, passes) in [(1024u16, true), (1025, false)] {
        let options = NicOptions {
            guest_tx_ring_size: 4096,
            ..packed()
        };
        let mut rig = Rig::new(&[packed(), options, packed()]);
        let frame = FrameBuilder::udp4(2000).macs(MACS[1], MACS[0]).build();
        let image = [vec![0; 12], frame.bytes.clone()].concat();
        rig.guests[VICTIM].memory.write(INSIDE, &image).unwrap();
        let chain: Vec<_> = (0..descriptors)
            .map(|i| {
                let last = i + 1 == descriptors;
                let rest = image.len() as u32 - u32::from(i);
                descriptor(
                    INSIDE + u64::from(i),
                    if last { rest } else { 1 },
                    if last { 0 } else { NEXT },
                )
            })
            .collect();
        guest_tx(&rig).post(&chain).unwrap();
        rig.run(VICTIM);
        assert_eq!(rig.guests[VICTIM].is_running(1), passes, "{descriptors}");
        let arrived = rig.guests[0].pair.guest_rx.try_receive().unwrap();
        assert_eq!(arrived.is_some_and(|a| a.bytes == frame.bytes), passes);
    }
}

#[test]
fn empty_descriptors_count_towards_what_a_batch_walks() {
    let options = NicOptions {
        guest_rx_ring_size: 8000,
        ..packed()
    };
    let memory =
        guest_sim::GuestMemory::new(&guest_sim::GuestMemoryLayout::one_region(64 << 20)).unwrap();
    let pair = guest_sim::QueuePair::new(0, &memory, &options, options.features).unwrap();
    let config = rig::config(pair.guest_rx.ring(), options.features);
    let mut ring = Ring::start(config, Direction::Writable, &rig::map(&memory)).unwrap();
    let raw = pair.guest_rx.ring().raw_packed().unwrap();
    let mut chain = vec![descriptor(INSIDE, 0, WRITE | NEXT); 1000];
    chain[999].flags = WRITE;
    for _ in 0..8 {
        raw.post(&chain).unwrap();
    }
    let mut arena = SegmentArena::default();
    let chains = rig::take(&mut ring, &mut arena, 64).unwrap();
    assert_eq!(chains.len(), 4, "the arena has room for 4,096 pieces");
}

#[test]
fn a_driver_is_asked_for_kicks_only_while_nobody_looks() {
    for (event_idx, wish) in [
        (Features::NONE, EventSuppression::ENABLE),
        (Features::EVENT_IDX, EventSuppression::DESC),
    ] {
        let options = NicOptions {
            features: Features::VERSION_1 | Features::RING_PACKED | Features::MRG_RXBUF | event_idx,
            ..packed()
        };
        let mut rig = Rig::new(&[options, packed(), packed()]);
        let ring = rig.guests[0].pair.guest_tx.ring().raw_packed().unwrap();
        let flags = || ring.device_event().unwrap().flags;
        assert_eq!(flags(), EventSuppression::DISABLE);
        assert!(!rig.arm(0), "nothing waits");
        assert_eq!(flags(), wish);
        exchange(&mut rig, 0, 1);
        assert_eq!(flags(), EventSuppression::DISABLE);
    }
}
