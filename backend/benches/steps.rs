//! What each step of a frame's way costs by itself: a ring's entries taken and given back, bytes copied from chain to chain, a batch
//! delivered to one port, to several in turn, to all.
//!
//! `rings` measures the whole way, `cargo bench -p switch-core` parsing and lookup. The guests' own work is outside the measured part.
#![allow(
    missing_docs,
    clippy::panic,
    clippy::unwrap_used,
    reason = "benches fail by panicking"
)]

#[path = "../../switch-core/benches/measure/mod.rs"]
mod measure;
#[path = "../tests/rig/mod.rs"]
mod rig;

use criterion::{Throughput, criterion_group, criterion_main};
use guest_sim::frame::FrameBuilder;
use guest_sim::{Features, NicOptions};
use measure::{Group, TimeAndCycles, bench, bench_after};
use rig::Rig;
use ringswitch::ring::segment::{ChainWriter, Payload};
use ringswitch::ring::{BurstLimit, Ring, SegmentArena, SegmentRange};
use std::cell::RefCell;
use std::hint::black_box;

type Criterion = criterion::Criterion<TimeAndCycles>;

const BATCH: usize = 32;
const BROADCAST: [u8; 6] = [0xff; 6];
/// Ports of the delivery cases: the sender and seven others.
const GUESTS: usize = 8;

fn mac(guest: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, guest as u8 + 1]
}

/// Each kind of ring.
fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    group.throughput(Throughput::Elements(BATCH as u64));
    let packed = Features::RING_PACKED;
    for (name, format) in [
        ("split, take and give back", Features::NONE),
        ("packed, take and give back", packed),
        (
            "packed in order, take and give back",
            packed | Features::IN_ORDER,
        ),
    ] {
        let bench = NicOptions::bench();
        let features = bench.features | format;
        turn_over(&mut group, name, NicOptions { features, ..bench });
    }
    group.finish();
}

/// Takes a batch of one-descriptor chains, gives them back, publishes them.
fn turn_over(group: &mut Group<'_>, name: &str, options: NicOptions) {
    let rig = Rig::new(&[options]);
    let mut active = rig.take_ring(0, 1);
    let rig = RefCell::new(rig);
    let frame = FrameBuilder::udp4(22).macs(mac(0), mac(1)).build();
    let mut arena = SegmentArena::default();
    let mut chains = Vec::with_capacity(BATCH);
    let limit = BurstLimit {
        chains: BATCH,
        bytes: u64::MAX,
    };
    bench_after(
        group,
        name,
        || {
            let driver = &mut rig.borrow_mut().guests[0].pair.guest_tx;
            driver.reclaim().unwrap();
            for _ in 0..BATCH {
                driver.queue(&frame).unwrap();
            }
            driver.publish().unwrap();
        },
        || {
            active.ring.refresh().unwrap();
            arena.clear();
            active
                .ring
                .take_burst(&mut arena, &mut chains, limit)
                .unwrap();
            assert_eq!(chains.len(), BATCH);
            for chain in chains.drain(..) {
                active.ring.push_used(chain.head, 0);
            }
            black_box(active.ring.publish_used());
        },
    );
}

/// One frame's bytes from a guest's chain into another guest's buffers of 1,536 bytes.
fn copy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("copy");
    for bytes in [64usize, 512, 1518, 9000, 65_000] {
        let mut rig = Rig::new(&[NicOptions::bench(), NicOptions::bench()]);
        let builder = if bytes > 9216 {
            FrameBuilder::tcp4(0).segment(1448)
        } else {
            FrameBuilder::udp4(0)
        };
        let frame = builder.macs(mac(0), mac(1)).frame_bytes(bytes).build();
        rig.guests[0].pair.guest_tx.queue(&frame).unwrap();
        rig.guests[0].pair.guest_tx.publish().unwrap();
        let mut sender = rig.take_ring(0, 1);
        let mut receiver = rig.take_ring(1, 0);
        let (mut from, mut to) = (SegmentArena::default(), SegmentArena::default());
        assert!(take(&mut sender.ring, &mut from) >= bytes as u64);
        let mut room = 0;
        while room < bytes as u64 {
            room += take(&mut receiver.ring, &mut to);
        }
        group.throughput(Throughput::Bytes(bytes as u64));
        bench(&mut group, &format!("{bytes} bytes"), || {
            let payload = Payload::Guest {
                chain: from.chain(all(&from)),
                skip_bytes: 0,
            };
            let mut writer = ChainWriter::new(to.chain(all(&to)), receiver.ring.marks());
            let copied = writer.copy_from(&mut payload.cursor(), bytes);
            assert_eq!(copied, bytes);
        });
    }
    group.finish();
}

/// Takes one chain; its length.
fn take(ring: &mut Ring, arena: &mut SegmentArena) -> u64 {
    let chains = rig::take(ring, arena, 1).unwrap();
    assert_eq!(chains.len(), 1, "a chain should wait");
    chains[0].len_bytes
}

fn all(arena: &SegmentArena) -> SegmentRange {
    SegmentRange {
        start: 0,
        end: arena.len() as u32,
    }
}

/// A batch of 64-byte frames from one of eight ports, which differ in where they go.
fn delivery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("delivery");
    let in_turn = |frame: usize| mac(1 + frame % (GUESTS - 1));
    deliver(&mut group, "to one port", 1, |_| mac(1));
    deliver(&mut group, "to 7 ports in turn", 1, in_turn);
    deliver(&mut group, "flooded to 7 ports", GUESTS - 1, |_| BROADCAST);
    group.finish();
}

fn deliver(
    group: &mut Group<'_>,
    name: &str,
    copies: usize,
    destination: impl Fn(usize) -> [u8; 6],
) {
    let mut rig = Rig::new(&vec![NicOptions::bench(); GUESTS]);
    for guest in 1..GUESTS {
        let hello = FrameBuilder::udp4(22).macs(mac(guest), BROADCAST).build();
        rig.guests[guest].pair.guest_tx.queue(&hello).unwrap();
        rig.guests[guest].pair.guest_tx.publish().unwrap();
        rig.run(guest);
    }
    let frames: Vec<_> = (0..BATCH)
        .map(|frame| {
            FrameBuilder::udp4(22)
                .macs(mac(0), destination(frame))
                .build()
        })
        .collect();
    let rig = RefCell::new(rig);
    group.throughput(Throughput::Elements((BATCH * copies) as u64));
    bench_after(
        group,
        name,
        || {
            let mut rig = rig.borrow_mut();
            for guest in &mut rig.guests {
                while guest.pair.guest_rx.try_receive().unwrap().is_some() {}
            }
            let driver = &mut rig.guests[0].pair.guest_tx;
            driver.reclaim().unwrap();
            for frame in &frames {
                driver.queue(frame).unwrap();
            }
            driver.publish().unwrap();
        },
        || {
            let mut left = BATCH;
            while left > 0 {
                left -= rig.borrow_mut().run(0);
            }
        },
    );
    for guest in 0..GUESTS {
        assert_eq!(rig.borrow().counters(guest).drops, vec![]);
    }
}

criterion_group! {
    name = benches;
    config = measure::criterion();
    targets = ring, copy, delivery
}
criterion_main!(benches);
