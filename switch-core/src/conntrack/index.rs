//! Where a tuple's connection is: a hash table in shards, each under a lock of its own.
//!
//! A shard is one array with linear probing. An entry holds 32 bits of the hash, from which it can be moved without looking at its
//! connection, the connection's slot and the direction. A removal moves later entries up, so nothing is left behind that would
//! make look-ups longer, however often entries come and go.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::tuple::Direction;

/// Shards: many more than there are workers.
pub(crate) const SHARDS: usize = 256;
/// Entries that a shard begins with.
const FIRST_ENTRIES: usize = 16;

/// All shards.
#[derive(Debug)]
pub(crate) struct Index {
    shards: Box<[PaddedShard]>,
}

/// A shard in cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct PaddedShard(Mutex<Shard>);

/// What a shard says of a hash: perhaps this slot, found by the tuple of this direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) slot: u32,
    pub(crate) direction: Direction,
}

/// A part of the index.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    /// A power of two of them, or none.
    entries: Box<[Entry]>,
    used: usize,
}

/// Zero, or 32 bits of hash above 31 bits of slot above the direction, plus one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const EMPTY: Self = Self(0);

    const fn new(hash: u64, place: Place) -> Self {
        let low = (place.slot as u64) << 1 | place.direction as u64;
        Self(hash << 32 | (low + 1))
    }

    const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    const fn place(self) -> Place {
        let low = (self.0 as u32).wrapping_sub(1);
        Place {
            slot: low >> 1,
            direction: if low & 1 == 0 {
                Direction::Original
            } else {
                Direction::Reply
            },
        }
    }
}

impl Index {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| PaddedShard::default()).collect(),
        }
    }

    /// The number of the shard that a hash belongs to. Locks are taken in the order of these numbers.
    pub(crate) const fn shard_of(hash: u64) -> usize {
        (hash >> 56) as usize % SHARDS
    }

    /// Locks a hash's shard. A thread that panicked in it left entries that are checked wherever they are followed.
    pub(crate) fn lock(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // The mask keeps the number within the array, whose length never changes.
        self.shards[Self::shard_of(hash)]
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the shards of two hashes, lower number first. The second is `None` when both are in one shard.
    pub(crate) fn lock_two(&self, one: u64, other: u64) -> TwoShards<'_> {
        match Self::shard_of(one).cmp(&Self::shard_of(other)) {
            std::cmp::Ordering::Less => {
                let first = self.lock(one);
                TwoShards {
                    first,
                    second: Some(self.lock(other)),
                }
            }
            std::cmp::Ordering::Equal => TwoShards {
                first: self.lock(one),
                second: None,
            },
            std::cmp::Ordering::Greater => {
                let second = self.lock(other);
                TwoShards {
                    first: self.lock(one),
                    second: Some(second),
                }
            }
        }
    }

    /// Bytes of all shards.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| {
                let shard = shard.0.lock().unwrap_or_else(PoisonError::into_inner);
                size_of::<PaddedShard>() + size_of_val::<[Entry]>(&shard.entries)
            })
            .sum()
    }
}

/// The locked shards of a connection's two tuples.
pub(crate) struct TwoShards<'a> {
    first: MutexGuard<'a, Shard>,
    second: Option<MutexGuard<'a, Shard>>,
}

impl TwoShards<'_> {
    /// The first hash's shard.
    pub(crate) fn first(&mut self) -> &mut Shard {
        &mut self.first
    }

    /// The second hash's shard.
    pub(crate) fn second(&mut self) -> &mut Shard {
        self.second.as_mut().unwrap_or(&mut self.first)
    }
}

impl Shard {
    /// The first place under `hash` that `matches`.
    #[inline]
    pub(crate) fn find<T>(
        &self,
        hash: u64,
        mut matches: impl FnMut(Place) -> Option<T>,
    ) -> Option<T> {
        let mask = self.entries.len().wrapping_sub(1);
        let tag = hash as u32;
        let mut position = tag as usize & mask;
        for _ in 0..self.entries.len() {
            let entry = *self.entries.get(position)?;
            if entry.is_empty() {
                return None;
            }
            if entry.tag() == tag
                && let Some(found) = matches(entry.place())
            {
                return Some(found);
            }
            position = (position + 1) & mask;
        }
        None
    }

    /// Adds an entry. The caller knows that the tuple is not there.
    pub(crate) fn insert(&mut self, hash: u64, place: Place) {
        // At most three quarters full, so that a free entry is near.
        if (self.used + 1) * 4 > self.entries.len() * 3 {
            self.grow();
        }
        put(&mut self.entries, Entry::new(hash, place));
        self.used += 1;
    }

    fn grow(&mut self) {
        let count = (self.entries.len() * 2).max(FIRST_ENTRIES);
        let mut entries = vec![Entry::EMPTY; count].into_boxed_slice();
        for &entry in &self.entries {
            if !entry.is_empty() {
                put(&mut entries, entry);
            }
        }
        self.entries = entries;
    }

    /// Removes an entry; says whether it was there.
    pub(crate) fn remove(&mut self, hash: u64, place: Place) -> bool {
        let mask = self.entries.len().wrapping_sub(1);
        let wanted = Entry::new(hash, place);
        let mut hole = wanted.tag() as usize & mask;
        loop {
            match self.entries.get(hole) {
                Some(entry) if entry.is_empty() => return false,
                Some(&entry) if entry == wanted => break,
                Some(_) => hole = (hole + 1) & mask,
                None => return false,
            }
        }
        // Each later entry of the run that may lie in the hole moves there.
        let mut position = hole;
        loop {
            position = (position + 1) & mask;
            let entry = self.entries.get(position).copied().unwrap_or_default();
            if entry.is_empty() {
                break;
            }
            let home = entry.tag() as usize & mask;
            let from_home = position.wrapping_sub(home) & mask;
            let from_hole = position.wrapping_sub(hole) & mask;
            if from_home >= from_hole {
                if let Some(target) = self.entries.get_mut(hole) {
                    *target = entry;
                }
                hole = position;
            }
        }
        if let Some(target) = self.entries.get_mut(hole) {
            *target = Entry::EMPTY;
        }
        self.used -= 1;
        true
    }
}

/// Writes `entry` to the next free place from its home on. The array is never full.
fn put(entries: &mut [Entry], entry: Entry) {
    let mask = entries.len().wrapping_sub(1);
    let mut position = entry.tag() as usize & mask;
    for _ in 0..entries.len() {
        match entries.get_mut(position) {
            Some(place) if place.is_empty() => {
                *place = entry;
                return;
            }
            _ => position = (position + 1) & mask,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn place(slot: u32) -> Place {
        Place {
            slot,
            direction: if slot.is_multiple_of(2) {
                Direction::Original
            } else {
                Direction::Reply
            },
        }
    }

    proptest! {
        /// Few hashes, so that runs are long and wrap around the end.
        #[test]
        fn a_shard_holds_what_a_map_holds(
            operations in prop::collection::vec((any::<bool>(), 0_u64..24, 0_u32..4), 0..400)
        ) {
            let mut shard = Shard::default();
            let mut model = HashMap::new();
            for (insert, hash, slot) in operations {
                // Homes at the array's end, too.
                let hash = hash.wrapping_mul(0xffff_fffb);
                let key = (hash, slot);
                if insert {
                    if model.insert(key, ()).is_none() {
                        shard.insert(hash, place(slot));
                    }
                } else {
                    prop_assert_eq!(shard.remove(hash, place(slot)), model.remove(&key).is_some());
                }
                prop_assert_eq!(shard.used, model.len());
                for hash in (0_u64..24).map(|hash| hash.wrapping_mul(0xffff_fffb)) {
                    for slot in 0..4 {
                        let found = shard.find(hash, |found| (found == place(slot)).then_some(()));
                        prop_assert_eq!(found.is_some(), model.contains_key(&(hash, slot)));
                    }
                }
            }
        }
    }

    #[test]
    fn an_empty_shard_finds_and_removes_nothing() {
        let mut shard = Shard::default();
        assert_eq!(shard.find(7, Some), None);
        assert!(!shard.remove(7, place(1)));
    }

    #[test]
    fn two_hashes_of_one_shard_are_locked_once() {
        let index = Index::new();
        index.lock_two(1, 2).second().insert(2, place(3));
        assert_eq!(
            index.lock_two(2, 1 << 56).first().find(2, Some),
            Some(place(3))
        );
        assert_eq!(
            index.lock_two(1 << 56, 2).second().find(2, Some),
            Some(place(3))
        );
    }
}
