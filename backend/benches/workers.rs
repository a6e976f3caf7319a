//! Whether two workers slow each other down: batches of 32 frames on one core alone, on two cores at once between different guests, and on
//! two cores at once to the same guest. Only the switch's part is timed, each batch by itself; printed are medians.
//!
//! `cargo bench -p ringswitch --bench workers`. A false sharing or a common lock would show as the middle figure being higher than the first.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "benches fail by panicking"
)]

#[path = "../tests/rig/mod.rs"]
mod rig;

use guest_sim::NicOptions;
use guest_sim::bench::cores;
use guest_sim::frame::FrameBuilder;
use rig::{Guest, Rig};
use ringswitch::datapath::batch::BatchRunner;
use std::sync::Barrier;
use std::time::{Duration, Instant};

const BATCH: usize = 32;
const ROUND: Duration = Duration::from_millis(700);
const ROUNDS: usize = 5;

fn mac(guest: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, guest as u8]
}

/// One worker's job: a sender, and the receiver if it is this worker that empties its ring.
struct Job<'a> {
    core: usize,
    runner: BatchRunner,
    sender: &'a mut Guest,
    receiver: Option<&'a mut Guest>,
    route: (usize, usize),
}

impl Job<'_> {
    /// Nanoseconds a frame, the median over all batches.
    fn run(&mut self, start: &Barrier) -> f64 {
        cores::pin(self.core).unwrap();
        let (from, to) = self.route;
        let frame = FrameBuilder::udp4(22).macs(mac(from), mac(to)).build();
        let mut times = Vec::new();
        start.wait();
        let begun = Instant::now();
        while begun.elapsed() < ROUND {
            self.sender.pair.guest_tx.reclaim().unwrap();
            for _ in 0..BATCH {
                self.sender.pair.guest_tx.queue(&frame).unwrap();
            }
            self.sender.pair.guest_tx.publish().unwrap();
            let batch = Instant::now();
            let served = self.sender.run_on(&mut self.runner);
            times.push(batch.elapsed().as_nanos() as u64 / u64::from(served.frames.max(1)));
            if let Some(receiver) = &mut self.receiver {
                while receiver.pair.guest_rx.try_receive().unwrap().is_some() {}
            }
        }
        times.sort_unstable();
        times[times.len() / 2] as f64
    }
}

fn rig() -> Rig {
    let mut rig = Rig::new(&vec![NicOptions::bench(); 4]);
    for guest in 0..4 {
        let hello = FrameBuilder::udp4(22).macs(mac(guest), [0xff; 6]).build();
        rig.guests[guest].pair.guest_tx.queue(&hello).unwrap();
        rig.guests[guest].pair.guest_tx.publish().unwrap();
        rig.run(guest);
        for other in &mut rig.guests {
            while other.pair.guest_rx.try_receive().unwrap().is_some() {}
        }
    }
    rig
}

fn at_once(jobs: Vec<Job<'_>>) -> Vec<f64> {
    let start = Barrier::new(jobs.len());
    std::thread::scope(|scope| {
        let run = |mut job: Job<'_>| job.run(&start);
        let threads: Vec<_> = jobs
            .into_iter()
            .map(|job| scope.spawn(move || run(job)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

fn main() {
    let mut rig = rig();
    let mut figures = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (case, figures) in figures.iter_mut().enumerate() {
            let (one, other) = (rig.another_runner(), rig.another_runner());
            let [a, b, c, d] = &mut rig.guests[..] else {
                return;
            };
            let first = Job {
                core: 0,
                runner: one,
                sender: a,
                receiver: Some(b),
                route: (0, 1),
            };
            let second = |route, receiver| Job {
                core: 1,
                runner: other,
                sender: c,
                receiver,
                route,
            };
            let turns = match case {
                // Each core alone: they need not be equally fast.
                0 => vec![vec![first], vec![second((2, 3), Some(d))]],
                1 => vec![vec![first, second((2, 3), Some(d))]],
                _ => vec![vec![first, second((2, 1), None)]],
            };
            turns
                .into_iter()
                .for_each(|jobs| figures.extend(at_once(jobs)));
        }
    }
    let names = [
        "one worker alone",
        "two, between different guests",
        "two, to the same guest",
    ];
    for (name, figures) in names.into_iter().zip(&mut figures) {
        figures.sort_by(f64::total_cmp);
        let median = figures[figures.len() / 2];
        println!(
            "{name:<30} {median:>6.1} ns a frame ({:.1} to {:.1})",
            figures[0],
            figures[figures.len() - 1]
        );
    }
}
