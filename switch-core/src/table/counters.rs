//! Change counters: how a flow cache learns that what it remembers no longer holds.
//!
//! A lookup says which counters its result depends on; a change adds one to each counter of the lookups that it can influence:
//!
//! * exact tables: a counter by the hash of the key;
//! * tables with a priority: a counter by the hash of their exact fields' values, so one for the table when it has none;
//! * longest-prefix tables: a counter by the hash of the exact part and of the first 16 bits of a prefix field of 32 (48 of 128),
//!   and one for all prefixes shorter than that.
//!
//! The order that keeps a cache from serving what has changed:
//!
//! 1. the engine stages a batch, publishes its epoch, then calls [`Table::bump_staged`](super::Table::bump_staged) on each table,
//!    and only then says that the batch is done;
//! 2. a worker takes the published epoch and looks up; each lookup reads its counters before the table;
//! 3. the result may be remembered when [`Dependencies::can_be_remembered`], with the counters and their sum. It holds while the sum does.
//!
//! A lookup at an epoch that was overtaken between the two reads could remember an old result under new counters. It notices, as
//! the table says up to which epoch it has bumped before it bumps: then the result cannot be remembered.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Most counters that one result can depend on.
const MAX_DEPENDENCIES: usize = 48;

/// The counters, shared by all tables and workers of a switch.
pub struct ChangeCounters {
    counters: Box<[AtomicU32]>,
    changes: OwnLines<AtomicU64>,
}

/// Shares no cache line with anything else, nor the line that processors fetch along with its own.
#[repr(align(128))]
struct OwnLines<T>(T);

impl ChangeCounters {
    /// So many counters, all zero.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self {
            counters: (0..count).map(|_| AtomicU32::new(0)).collect(),
            changes: OwnLines(AtomicU64::new(0)),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counters.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counters.is_empty()
    }

    /// A counter; 0 for one that does not exist. Who sees a new count sees the change it stands for.
    #[inline]
    #[must_use]
    pub fn get(&self, index: u32) -> u32 {
        self.counters
            .get(index as usize)
            .map_or(0, |counter| counter.load(Ordering::Acquire))
    }

    /// A count of all changes to any counter. While it stands still, a result that held just before holds again: read it, then
    /// compare [`Dependencies::is_current`], then keep it.
    #[inline]
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.0.load(Ordering::Acquire)
    }

    /// The sum of some counters, wrapping: counters only go up, so it differs as soon as one of them does.
    #[inline]
    #[must_use]
    pub fn sum(&self, indices: &[u32]) -> u32 {
        indices
            .iter()
            .fold(0, |sum: u32, &index| sum.wrapping_add(self.get(index)))
    }

    /// Makes stale what depends on a counter.
    pub fn bump(&self, index: u32) {
        if let Some(counter) = self.counters.get(index as usize) {
            counter.fetch_add(1, Ordering::AcqRel);
            self.changes.0.fetch_add(1, Ordering::Release);
        }
    }
}

/// A table's part of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRange {
    /// The first.
    pub first: u32,
    /// How many; a table of many entries wants some thousands.
    pub count: u32,
}

/// The counters that the result of one walk through the tables depends on, and their sum from before the walk read the tables.
///
/// More than 48 counters, or an overtaken epoch, make a result that cannot be remembered.
#[derive(Clone, Debug)]
pub struct Dependencies {
    counters: [u32; MAX_DEPENDENCIES],
    len: usize,
    sum: u32,
    can_be_remembered: bool,
}

impl Default for Dependencies {
    fn default() -> Self {
        Self::new()
    }
}

impl Dependencies {
    /// No dependencies.
    #[must_use]
    pub fn new() -> Self {
        Self {
            counters: [0; MAX_DEPENDENCIES],
            len: 0,
            sum: 0,
            can_be_remembered: true,
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.len = 0;
        self.sum = 0;
        self.can_be_remembered = true;
    }

    /// Reads a counter and depends on it from now on. To be called before what it stands for is read.
    #[inline]
    pub fn depend_on(&mut self, counters: &ChangeCounters, index: u32) {
        match self.counters.get_mut(self.len) {
            Some(slot) => {
                *slot = index;
                self.len += 1;
                self.sum = self.sum.wrapping_add(counters.get(index));
            }
            None => self.can_be_remembered = false,
        }
    }

    /// Says that the result must not be remembered.
    #[inline]
    pub fn forbid(&mut self) {
        self.can_be_remembered = false;
    }

    /// Whether the result may be remembered.
    #[must_use]
    pub fn can_be_remembered(&self) -> bool {
        self.can_be_remembered
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> &[u32] {
        self.counters.get(..self.len).unwrap_or_default()
    }

    /// Their sum, wrapping, when they were read.
    #[must_use]
    pub fn sum(&self) -> u32 {
        self.sum
    }

    /// Whether nothing it depends on has changed since, and it may be remembered.
    #[must_use]
    pub fn is_current(&self, counters: &ChangeCounters) -> bool {
        self.can_be_remembered && counters.sum(self.counters()) == self.sum
    }
}
