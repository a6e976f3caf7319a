//! A version of an entry: what its key is, what it means, and in which epochs it can be seen.

use std::sync::Arc;

use super::Epoch;
use super::buckets::{Chained, NONE};
use super::slab::{Chunked, Slab};

/// The epoch of what has not ended.
pub(super) const FOREVER: u64 = u64::MAX;

/// A version of an entry, as one index holds it. An entry whose range is stored as several prefixes has several of each.
pub(super) struct Version<A, const W: usize> {
    /// The value under its mask.
    pub(super) key: [u64; W],
    /// It is seen at epochs `from..to`.
    pub(super) from: u64,
    pub(super) to: u64,
    /// None in a place that is free.
    pub(super) value: Option<Arc<A>>,
    /// Of the key, as the index has it.
    pub(super) hash: u32,
    /// The next in its chain.
    pub(super) next: u32,
    /// The index's word for its mask.
    pub(super) class: u32,
    pub(super) priority: i32,
    /// The entry it belongs to.
    pub(super) entry: u32,
    pub(super) generation: u32,
}

impl<A, const W: usize> Version<A, W> {
    /// What lies in a place that is free: never seen.
    pub(super) const fn free() -> Self {
        Self {
            key: [0; W],
            from: FOREVER,
            to: 0,
            value: None,
            hash: 0,
            next: NONE,
            class: NONE,
            priority: 0,
            entry: NONE,
            generation: 0,
        }
    }

    #[inline]
    pub(super) fn is_seen_at(&self, at: Epoch) -> bool {
        self.from <= at.0 && at.0 < self.to
    }
}

/// What a version has beyond its key when its table has range fields.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ranges {
    /// Field, lower and upper bound, of all its ranges in the order of the fields.
    pub(super) bounds: Box<[(usize, u128, u128)]>,
    /// Of the whole entry.
    pub(super) specificity: u16,
}

/// All versions of a table's entries.
pub(super) struct Versions<A, const W: usize> {
    slab: Slab<Version<A, W>>,
    /// By the same index; only in tables with range fields.
    ranges: Chunked<Option<Arc<Ranges>>>,
}

impl<A, const W: usize> Versions<A, W> {
    pub(super) const fn new() -> Self {
        Self {
            slab: Slab::new(),
            ranges: Chunked::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&Version<A, W>> {
        self.slab.get(index)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Version<A, W>> {
        self.slab.get_mut(index)
    }

    #[inline]
    pub(super) fn ranges(&self, index: u32) -> Option<&Arc<Ranges>> {
        self.ranges.get(index)?.as_ref()
    }

    pub(super) fn insert(&mut self, version: Version<A, W>, ranges: Option<Arc<Ranges>>) -> u32 {
        let index = self.slab.insert(version);
        if ranges.is_some() {
            while self.ranges.len() <= index as usize {
                self.ranges.push(None);
            }
        }
        if let Some(place) = self.ranges.get_mut(index) {
            *place = ranges;
        }
        index
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<Version<A, W>> {
        if let Some(place) = self.ranges.get_mut(index) {
            *place = None;
        }
        self.slab.remove(index, Version::free())
    }
}

impl<A, const W: usize> Chained for Versions<A, W> {
    fn hash_of(&self, index: u32) -> u32 {
        self.get(index).map_or(0, |version| version.hash)
    }

    fn next_of(&self, index: u32) -> u32 {
        self.get(index).map_or(NONE, |version| version.next)
    }

    fn set_next(&mut self, index: u32, next: u32) {
        if let Some(version) = self.get_mut(index) {
            version.next = next;
        }
    }
}
