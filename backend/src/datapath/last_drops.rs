//! Dropped frames of a port: how many for which reason, and what the latest of them looked like.
//!
//! The latest are always recorded, so that the question why traffic does not arrive has an answer after the fact. What that costs is
//! bounded by time, not by frames: a port records some drops of each millisecond and only counts the others. A port that
//! never dropped a frame has no memory for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use switch_core::{DropReason, Millis, PortId};

/// Frames that are remembered of each port.
pub const LAST_DROPS: usize = 64;
/// Bytes that are remembered of each of them.
pub const DROPPED_HEADER_BYTES: usize = 128;
/// Frames that a port records in a millisecond.
const RECORDS_PER_MS: u64 = 16;

/// Bits of [`PortDrops::window`] that count; the others are the millisecond.
const COUNT_BITS: u32 = 8;
/// No millisecond.
const NEVER: u64 = u64::MAX;

/// A frame that was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppedFrame {
    /// When, by the clock of the data path.
    pub at: Millis,
    /// Why.
    pub reason: DropReason,
    /// The port it came from; `None` when the control side had sent it.
    pub in_port: Option<PortId>,
    /// Its length; 0 when it was refused before it was read.
    pub len_bytes: u32,
    /// Its first bytes, as it came.
    pub header: Vec<u8>,
}

/// The same in place.
#[derive(Debug)]
struct Record {
    at: Millis,
    reason: DropReason,
    in_port: Option<PortId>,
    len_bytes: u32,
    header_bytes: u8,
    header: [u8; DROPPED_HEADER_BYTES],
}

/// What there is to record, besides time and reason.
#[derive(Debug)]
pub struct Dropped<F> {
    /// See [`DroppedFrame::at`].
    pub at: Millis,
    /// See [`DroppedFrame::in_port`].
    pub in_port: Option<PortId>,
    /// See [`DroppedFrame::len_bytes`].
    pub len_bytes: u32,
    /// Writes its first bytes; how many there were.
    pub header: F,
}

/// The latest, oldest first from `next` on once there are as many as there may be.
#[derive(Debug, Default)]
struct Latest {
    records: Vec<Record>,
    next: usize,
}

/// Dropped frames of one port. On cache lines of its own: workers that drop do not slow down those that look up.
#[derive(Debug)]
#[repr(align(128))]
pub struct PortDrops {
    counts: [AtomicU64; DropReason::COUNT],
    /// The millisecond of the latest record, and how many it had.
    window: AtomicU64,
    latest: OnceLock<Box<Mutex<Latest>>>,
}

impl Default for PortDrops {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; DropReason::COUNT],
            window: AtomicU64::new(NEVER),
            latest: OnceLock::new(),
        }
    }
}

impl PortDrops {
    /// Counts one dropped frame, from any thread.
    #[inline]
    pub fn count(&self, reason: DropReason) {
        if let Some(counter) = self.counts.get(reason.index()) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts frames that the port lost elsewhere, if the reason of this name is known.
    pub fn add_count(&self, reason: &str, count: u64) {
        let known = DropReason::ALL.iter().zip(&self.counts);
        if let Some((_, counter)) = known.into_iter().find(|(known, _)| known.name() == reason) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Counts one dropped frame and records it, unless enough of this millisecond's are. Any thread; waits for none.
    #[inline]
    pub fn add(
        &self,
        reason: DropReason,
        dropped: Dropped<impl FnOnce(&mut [u8; DROPPED_HEADER_BYTES]) -> usize>,
    ) {
        self.count(reason);
        let now = dropped.at.0 << COUNT_BITS;
        let window = self.window.load(Ordering::Relaxed);
        // Two workers that look at once may let one frame more pass.
        let next = if window & !((1 << COUNT_BITS) - 1) == now {
            window + 1
        } else {
            now + 1
        };
        if next - now <= RECORDS_PER_MS {
            self.window.store(next, Ordering::Relaxed);
            self.record(reason, dropped);
        }
    }

    #[cold]
    #[inline(never)]
    fn record(
        &self,
        reason: DropReason,
        dropped: Dropped<impl FnOnce(&mut [u8; DROPPED_HEADER_BYTES]) -> usize>,
    ) {
        let latest = self.latest.get_or_init(|| {
            Box::new(Mutex::new(Latest {
                records: Vec::with_capacity(LAST_DROPS),
                next: 0,
            }))
        });
        // Somebody else records or reads: this one is only counted.
        let Ok(mut latest) = latest.try_lock() else {
            return;
        };
        let mut record = Record {
            at: dropped.at,
            reason,
            in_port: dropped.in_port,
            len_bytes: dropped.len_bytes,
            header_bytes: 0,
            header: [0; DROPPED_HEADER_BYTES],
        };
        let header_bytes = (dropped.header)(&mut record.header);
        record.header_bytes = header_bytes.min(DROPPED_HEADER_BYTES) as u8;
        let Latest { records, next } = &mut *latest;
        match records.get_mut(*next) {
            Some(oldest) => *oldest = record,
            None => records.push(record),
        }
        *next = (*next + 1) % LAST_DROPS;
    }

    /// The latest recorded, oldest first.
    pub fn latest(&self) -> Vec<DroppedFrame> {
        let Some(latest) = self.latest.get() else {
            return Vec::new();
        };
        let latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
        let (newer, older) = latest
            .records
            .split_at_checked(latest.next)
            .unwrap_or_default();
        let frame = |record: &Record| DroppedFrame {
            at: record.at,
            reason: record.reason,
            in_port: record.in_port,
            len_bytes: record.len_bytes,
            header: record
                .header
                .get(..usize::from(record.header_bytes))
                .unwrap_or_default()
                .to_vec(),
        };
        older.iter().chain(newer).map(frame).collect()
    }

    /// The reasons that were ever given, with how often.
    pub fn nonzero(&self) -> Vec<(&'static str, u64)> {
        DropReason::ALL
            .iter()
            .zip(&self.counts)
            .map(|(reason, count)| (reason.name(), count.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drop_at(drops: &PortDrops, at: u64, number: u8) {
        drops.add(
            DropReason::NoDestination,
            Dropped {
                at: Millis(at),
                in_port: PortId::new(3),
                len_bytes: 60,
                header: |room: &mut [u8; DROPPED_HEADER_BYTES]| {
                    room[0] = number;
                    1
                },
            },
        );
    }

    fn numbers(drops: &PortDrops) -> Vec<u8> {
        drops.latest().iter().map(|frame| frame.header[0]).collect()
    }

    #[test]
    fn the_latest_are_kept_in_order() {
        let drops = PortDrops::default();
        assert_eq!(drops.latest(), []);
        for number in 0..200 {
            drop_at(&drops, u64::from(number), number);
            let first = (u64::from(number) + 1).saturating_sub(LAST_DROPS as u64) as u8;
            assert_eq!(numbers(&drops), (first..=number).collect::<Vec<_>>());
        }
        assert_eq!(drops.nonzero(), [("no_destination", 200)]);
        let last = drops.latest().pop().unwrap();
        assert_eq!((last.at, last.len_bytes), (Millis(199), 60));
        assert_eq!(last.reason, DropReason::NoDestination);
    }

    #[test]
    fn a_flood_of_drops_is_counted_and_sampled() {
        let drops = PortDrops::default();
        for ms in [7, 8] {
            for number in 0..100 {
                drop_at(&drops, ms, number);
            }
        }
        let sample: Vec<u8> = (0..RECORDS_PER_MS as u8).collect();
        assert_eq!(numbers(&drops), [&sample[..], &sample].concat());
        assert_eq!(drops.nonzero(), [("no_destination", 200)]);
    }

    #[test]
    fn a_port_without_drops_takes_little_memory() {
        // A counter for each reason, and next to nothing beside, in whole pairs of cache lines.
        assert!(size_of::<PortDrops>() <= 512);
    }
}
