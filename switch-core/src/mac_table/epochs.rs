//! Change counters for parts of the MAC table.
//!
//! Every station hashes to one of 4,096 buckets; a change to the station (learned, moved, gone) adds one to its bucket, under
//! the table's lock and after the change. A cached verdict remembers the counters of the two stations it depends on, read under
//! the same lock, and is stale as soon as either differs. So a tenant that learns addresses fast invalidates a 4,096th of the
//! others' verdicts with each, not all of them; and a hit reads two counters that hardly ever change and writes nothing shared.
//!
//! One more counter counts all changes: while it stands still, a verdict that held just before holds again.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// How many buckets there are: 16 KiB of counters, which stay in a worker's first-level cache.
const BUCKETS: usize = 1 << EpochBucket::BITS;

/// The index of a bucket, below 4,096.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochBucket(u16);

impl EpochBucket {
    /// How many bits an index has.
    pub(crate) const BITS: u32 = 12;

    /// The bucket in the low bits of `bits`.
    pub(crate) const fn from_low_bits(bits: u64) -> Self {
        Self((bits & (BUCKETS as u64 - 1)) as u16)
    }

    /// The index.
    pub(crate) const fn get(self) -> u64 {
        self.0 as u64
    }
}

/// The counters.
pub(crate) struct MacEpochs {
    buckets: [AtomicU32; BUCKETS],
    changes: OwnLines<AtomicU64>,
}

/// Shares no cache line with anything else, nor the line that processors fetch along with its own.
#[repr(align(128))]
struct OwnLines<T>(T);

impl MacEpochs {
    pub(crate) fn new() -> Self {
        Self {
            buckets: [const { AtomicU32::new(0) }; BUCKETS],
            changes: OwnLines(AtomicU64::new(0)),
        }
    }

    /// The bucket's counter. Acquire: who sees the new count sees the change it stands for.
    #[inline]
    pub(crate) fn get(&self, bucket: EpochBucket) -> u32 {
        self.buckets[usize::from(bucket.0) % BUCKETS].load(Ordering::Acquire)
    }

    /// How many changes there were, to any station; never [`u64::MAX`].
    #[inline]
    pub(crate) fn changes(&self) -> u64 {
        self.changes.0.load(Ordering::Acquire)
    }

    /// Makes the verdicts that depend on the bucket stale.
    pub(crate) fn advance(&self, bucket: EpochBucket) {
        self.buckets[usize::from(bucket.0) % BUCKETS].fetch_add(1, Ordering::Release);
        self.changes.0.fetch_add(1, Ordering::Release);
    }
}
