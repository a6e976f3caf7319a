//! What a frame costs the worker, without threads: batches of 32 frames from one guest's ring into another's; and what a
//! notification costs.
//!
//! The guests' own work (filling and emptying rings) is outside the measured part. `cargo bench -p ringswitch`.
#![allow(
    missing_docs,
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
use measure::{TimeAndCycles, bench, bench_after};
use rig::Rig;
use ringswitch::ring::EventSink;
use rustix::event::{EventfdFlags, eventfd};
use std::cell::RefCell;
use std::time::Instant;
use switch_core::Millis;

type Criterion = criterion::Criterion<TimeAndCycles>;

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const BATCH: usize = 32;

fn bench_case(criterion: &mut Criterion, name: &str, builder: FrameBuilder, receiver: NicOptions) {
    let mut rig = Rig::new(&[NicOptions::bench(), receiver]);
    let hello = FrameBuilder::udp4(22).macs(MACS[1], [0xff; 6]).build();
    rig.guests[1].pair.guest_tx.queue(&hello).unwrap();
    rig.guests[1].pair.guest_tx.publish().unwrap();
    rig.run(1);
    let frame = builder.macs(MACS[0], MACS[1]).build();
    let rig = RefCell::new(rig);
    let mut group = criterion.benchmark_group("batch");
    group.throughput(Throughput::Elements(BATCH as u64));
    bench_after(
        &mut group,
        name,
        || {
            let mut rig = rig.borrow_mut();
            rig.guests[0].pair.guest_tx.reclaim().unwrap();
            while rig.guests[1].pair.guest_rx.try_receive().unwrap().is_some() {}
            for _ in 0..BATCH {
                rig.guests[0].pair.guest_tx.queue(&frame).unwrap();
            }
            rig.guests[0].pair.guest_tx.publish().unwrap();
        },
        || {
            // Long frames take several turns: one is bounded in bytes.
            let mut left = BATCH;
            while left > 0 {
                left -= rig.borrow_mut().run(0);
            }
        },
    );
    group.finish();
    assert_eq!(rig.borrow().counters(1).drops, vec![]);
}

/// Frames that all are dropped: only counted while the clock stands, and some of them recorded while it runs.
fn bench_drops(criterion: &mut Criterion, name: &str, now: impl Fn() -> Millis) {
    let mut rig = Rig::new(&[NicOptions::bench(), NicOptions::bench()]);
    // An address that a bridge never relays.
    let frame = FrameBuilder::udp4(22).macs(MACS[0], [1, 0x80, 0xc2, 0, 0, 0]);
    let frame = frame.build();
    rig.runner.set_time(now());
    let rig = RefCell::new(rig);
    let mut group = criterion.benchmark_group("dropped");
    group.throughput(Throughput::Elements(BATCH as u64));
    bench_after(
        &mut group,
        name,
        || {
            let mut rig = rig.borrow_mut();
            rig.guests[0].pair.guest_tx.reclaim().unwrap();
            for _ in 0..BATCH {
                rig.guests[0].pair.guest_tx.queue(&frame).unwrap();
            }
            rig.guests[0].pair.guest_tx.publish().unwrap();
            rig.runner.set_time(now());
        },
        || {
            rig.borrow_mut().run(0);
        },
    );
    group.finish();
}

fn drops(criterion: &mut Criterion) {
    let started = Instant::now();
    bench_drops(criterion, "clock stands", || Millis(1));
    bench_drops(criterion, "clock runs", || {
        Millis(started.elapsed().as_millis() as u64)
    });
}

fn batches(criterion: &mut Criterion) {
    let plain = NicOptions {
        features: Features::VERSION_1 | Features::MRG_RXBUF,
        ..NicOptions::bench()
    };
    bench_case(
        criterion,
        "64 bytes",
        FrameBuilder::udp4(22),
        NicOptions::bench(),
    );
    bench_case(
        criterion,
        "1518 bytes",
        FrameBuilder::udp4(1476),
        NicOptions::bench(),
    );
    let tso = || FrameBuilder::tcp4(64_000).checksum_offload().segment(1448);
    bench_case(
        criterion,
        "64 KiB TSO as it is",
        tso(),
        NicOptions {
            guest_rx_buffer_bytes: Some(65_562),
            guest_rx_buffers: 64,
            ..NicOptions::bench()
        },
    );
    bench_case(
        criterion,
        "64 KiB TSO cut in software",
        tso(),
        NicOptions {
            guest_rx_ring_size: 4096,
            guest_rx_buffers: 4096,
            ..plain.clone()
        },
    );
    bench_case(
        criterion,
        "1518 bytes, checksum in software",
        FrameBuilder::tcp4(1464).checksum_offload(),
        plain,
    );
}

/// Telling a driver, without ever blocking, beside the plain write that could.
fn notifications(criterion: &mut Criterion) {
    let owned = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    let sink = EventSink::new(owned.try_clone().unwrap()).unwrap();
    let mut group = criterion.benchmark_group("notify");
    bench(&mut group, "signal", || sink.signal());
    bench(&mut group, "plain write", || {
        rustix::io::write(&owned, &1u64.to_ne_bytes())
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = measure::criterion();
    targets = batches, drops, notifications
}
criterion_main!(benches);
