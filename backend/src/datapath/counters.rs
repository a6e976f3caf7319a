//! What the data path counts.
//!
//! Each counter of a queue has one writer at a time (whoever holds the queue's lock), so counting is a plain load and store;
//! readers on other threads see each number whole, if a moment old. Drops have many writers and are counted elsewhere
//! ([`super::last_drops`]).

use super::histogram::{Histogram, HistogramView};
use crate::ring::RingFill;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread at a time adds to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the thread that holds the counter's queue calls this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Traffic of one ring, or of one direction of a TAP.
#[derive(Debug, Default)]
pub struct QueueCounters {
    /// Frames taken from, or delivered to, the ring.
    pub frames: Counter,
    /// Their bytes, without virtio-net headers.
    pub bytes: Counter,
    /// Call eventfds written.
    pub notifications_sent: Counter,
    /// Batches that the driver did not want to hear of.
    pub notifications_saved: Counter,
    /// Batches of which a guest-rx ring had no room for a part.
    pub ring_full: Counter,
    /// Time of workers on batches taken from here, in nanoseconds, from those that were timed ([`super::cpu_time`]).
    pub busy_ns: Counter,
}

/// One ring's counters at one moment, or those of one direction of a TAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueView {
    /// The queue pair.
    pub pair: u16,
    /// Whether the guest sends here.
    pub is_guest_tx: bool,
    /// See [`QueueCounters::frames`].
    pub frames: u64,
    /// See [`QueueCounters::bytes`].
    pub bytes: u64,
    /// See [`QueueCounters::notifications_sent`].
    pub notifications_sent: u64,
    /// See [`QueueCounters::notifications_saved`].
    pub notifications_saved: u64,
    /// See [`QueueCounters::ring_full`].
    pub ring_full: u64,
    /// See [`QueueCounters::busy_ns`].
    pub busy_ns: u64,
    /// How full the ring is; `None`: it does not run, or there is none.
    pub fill: Option<RingFill>,
}

impl QueueCounters {
    /// A snapshot, of a queue of this pair and direction.
    pub fn view(&self, pair: u16, is_guest_tx: bool) -> QueueView {
        QueueView {
            pair,
            is_guest_tx,
            frames: self.frames.get(),
            bytes: self.bytes.get(),
            notifications_sent: self.notifications_sent.get(),
            notifications_saved: self.notifications_saved.get(),
            ring_full: self.ring_full.get(),
            busy_ns: self.busy_ns.get(),
            fill: None,
        }
    }
}

/// What a worker's batches are like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerProfile {
    /// Frames of a batch; every batch with frames.
    pub batch_frames: HistogramView,
    /// From when the worker saw a batch until all of it was delivered, in nanoseconds; of the batches that were timed
    /// ([`super::cpu_time`]).
    pub delivery_ns: HistogramView,
    /// Frames decided by the tables rather than by the worker's cache.
    pub cache_misses: u64,
    /// Flows in that cache; `None` where it does not say.
    pub cache_flows: Option<u64>,
}

/// A port's counters, summed over its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PortCounters {
    /// Frames the guest (or the host behind a TAP) sent.
    pub guest_tx_frames: u64,
    /// Their bytes.
    pub guest_tx_bytes: u64,
    /// Frames delivered to it.
    pub guest_rx_frames: u64,
    /// Their bytes.
    pub guest_rx_bytes: u64,
    /// Dropped frames by [`DropReason::name`](switch_core::DropReason::name); reasons never given are left out. A frame is counted at the port that caused
    /// the drop: its source, or the destination that could not take it.
    pub drops: Vec<(&'static str, u64)>,
    /// Interrupts asked for.
    pub notifications_sent: u64,
    /// Interrupts the driver had asked to be spared.
    pub notifications_saved: u64,
    /// Time that workers spent on the frames it sent, delivery included, in nanoseconds: an estimate, see
    /// [`super::cpu_time`].
    pub busy_ns: u64,
}

/// What one worker did since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct WorkerStats {
    /// Frames taken from rings and TAPs.
    pub frames: u64,
    /// Batches they came in.
    pub batches: u64,
    /// Times it went to sleep for want of work.
    pub sleeps: u64,
    /// Time it was awake, in nanoseconds: polling counts as awake.
    pub awake_ns: u64,
    /// Time it spent on batches, in nanoseconds: an estimate, see [`super::cpu_time`].
    pub busy_ns: u64,
    /// CPU time of its thread, in nanoseconds, as the kernel accounts for it; `None` where that is not told.
    pub cpu_ns: Option<u64>,
    /// Rounds over all polled sources that found nothing.
    pub empty_rounds: u64,
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
    /// Guest-tx rings and TAPs it serves.
    pub sources: u64,
}

/// The live form of [`WorkerStats`]; the worker alone writes it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// See [`WorkerStats::frames`].
    pub frames: Counter,
    /// See [`WorkerStats::batches`].
    pub batches: Counter,
    /// See [`WorkerStats::sleeps`].
    pub sleeps: Counter,
    /// See [`WorkerStats::awake_ns`].
    pub awake_ns: Counter,
    /// See [`WorkerStats::busy_ns`].
    pub busy_ns: Counter,
    /// See [`WorkerStats::empty_rounds`].
    pub empty_rounds: Counter,
    /// See [`WorkerProfile::batch_frames`]: up to 64.
    pub batch_frames: Histogram<0, 8>,
    /// See [`WorkerProfile::delivery_ns`]: from a microsecond to 17 milliseconds.
    pub delivery_ns: Histogram<10, 16>,
    /// See [`WorkerProfile::cache_misses`].
    pub cache_misses: AtomicU64,
    /// See [`WorkerProfile::cache_flows`]; [`u64::MAX`] for none.
    pub cache_flows: AtomicU64,
    /// See [`WorkerStats::sources`].
    pub sources: AtomicU64,
    /// The thread's id in the kernel, once it runs.
    pub thread: OnceLock<i32>,
}

impl WorkerCounters {
    /// What its batches are like.
    pub fn profile(&self) -> WorkerProfile {
        let flows = self.cache_flows.load(Ordering::Relaxed);
        WorkerProfile {
            batch_frames: self.batch_frames.view(),
            delivery_ns: self.delivery_ns.view(),
            cache_misses: self.cache_misses.load(Ordering::Relaxed),
            cache_flows: (flows != u64::MAX).then_some(flows),
        }
    }

    /// A snapshot, of the worker pinned to `cpu`.
    pub fn stats(&self, cpu: Option<usize>) -> WorkerStats {
        WorkerStats {
            busy_ns: self.busy_ns.get(),
            cpu_ns: self.thread.get().and_then(|&id| thread_cpu_ns(id)),
            empty_rounds: self.empty_rounds.get(),
            cpu,
            frames: self.frames.get(),
            batches: self.batches.get(),
            sleeps: self.sleeps.get(),
            awake_ns: self.awake_ns.get(),
            sources: self.sources.load(Ordering::Relaxed),
        }
    }
}

/// CPU time of a thread of this process (proc(5), `/proc/pid/schedstat`: the first number).
fn thread_cpu_ns(id: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{id}/schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}
