//! What is behind a table's lock: its entries, their versions, and what is staged.
//!
//! A change appends to the list of its epoch what it did: a version added, a version ended. That list is what is undone when the
//! epoch is given up, what tells which change counters to bump when it is published, and, once no lookup can be at an earlier
//! epoch, which versions to free.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Epoch;
use super::buckets::NONE;
use super::entry::{Entry, EntryHandle};
use super::error::TableError;
use super::index::{Index, Plan};
use super::key::CanonicalKey;
use super::slab::{Chunked, Slab};
use super::version::{FOREVER, Ranges, Version, Versions};

/// An entry: the versions of one key from when it is added to when it is removed.
pub(super) struct EntryState {
    /// Its newest version, the first of several for a range; [`NONE`] when the place is free.
    newest: u32,
    pub(super) generation: u32,
    /// Versions that are not freed.
    versions: u32,
    added_at: Epoch,
}

/// A step of a staged change.
#[derive(Clone, Copy)]
pub(super) struct Step(u32);

/// The bit of a step that ended a version; the others added one.
const ENDED: u32 = 1 << 31;

impl Step {
    pub(super) fn version(self) -> u32 {
        self.0 & !ENDED
    }

    pub(super) fn is_end(self) -> bool {
        self.0 & ENDED != 0
    }
}

/// What was staged for an epoch.
pub(super) struct Staged {
    pub(super) steps: Chunked<Step>,
    /// Entries more than before it.
    pub(super) growth: i64,
    pub(super) bumped: bool,
}

pub(super) struct State<A, const W: usize> {
    pub(super) versions: Versions<A, W>,
    pub(super) index: Index<W>,
    pub(super) entries: Slab<EntryState>,
    pub(super) staged: BTreeMap<Epoch, Staged>,
    /// The latest epoch that was freed.
    pub(super) collected: Epoch,
    /// Entries after all that is staged.
    pub(super) live: usize,
    /// The other versions of an entry whose range is stored as prefixes, by the first.
    siblings: BTreeMap<u32, Box<[u32]>>,
    /// Something was added to an empty table since counters were bumped.
    pub(super) was_empty: bool,
}

impl<A, const W: usize> State<A, W> {
    pub(super) fn new(index: Index<W>) -> Self {
        Self {
            versions: Versions::new(),
            index,
            entries: Slab::new(),
            staged: BTreeMap::new(),
            collected: Epoch(0),
            live: 0,
            siblings: BTreeMap::new(),
            was_empty: false,
        }
    }

    /// Adds an entry, seen from `at` on.
    pub(super) fn insert(
        &mut self,
        plan: &Plan,
        key: &CanonicalKey,
        value: Arc<A>,
        at: Epoch,
    ) -> Result<EntryHandle, TableError> {
        self.check_epoch(at)?;
        if self.find(plan, key, at).is_some() {
            return Err(TableError::AlreadyExists);
        }
        let limit = plan.shape.max_entries();
        if self.live >= limit {
            return Err(TableError::Full { limit });
        }
        let entry = self.entries.next_index();
        let generation = self
            .entries
            .get(entry)
            .map_or(0, |freed| freed.generation.wrapping_add(1));
        let handle = EntryHandle::new(entry, generation);
        let newest = self.add_version(plan, key, value, (handle, at))?;
        self.entries.insert(EntryState {
            newest,
            generation,
            versions: 1,
            added_at: at,
        });
        self.live += 1;
        self.staged_at(at).growth += 1;
        Ok(handle)
    }

    /// Gives an entry another value, seen from `at` on.
    pub(super) fn replace(
        &mut self,
        plan: &Plan,
        key: &CanonicalKey,
        value: Arc<A>,
        at: Epoch,
    ) -> Result<EntryHandle, TableError> {
        self.check_epoch(at)?;
        let old = self.find(plan, key, at).ok_or(TableError::NotFound)?;
        let handle = self.handle_of(old).ok_or(TableError::NotFound)?;
        // Ended first, so that what is counted is what will be there.
        self.end_version(old, at);
        match self.add_version(plan, key, value, (handle, at)) {
            Ok(new) => {
                if let Some(entry) = self.entries.get_mut(handle.index()) {
                    entry.newest = new;
                    entry.versions += 1;
                }
                Ok(handle)
            }
            Err(refused) => {
                self.undo_last_step(plan, at);
                Err(refused)
            }
        }
    }

    /// Removes an entry, not seen from `at` on.
    pub(super) fn remove(
        &mut self,
        plan: &Plan,
        key: &CanonicalKey,
        at: Epoch,
    ) -> Result<EntryHandle, TableError> {
        self.check_epoch(at)?;
        let old = self.find(plan, key, at).ok_or(TableError::NotFound)?;
        let handle = self.handle_of(old).ok_or(TableError::NotFound)?;
        self.end_version(old, at);
        self.live = self.live.saturating_sub(1);
        self.staged_at(at).growth -= 1;
        Ok(handle)
    }

    fn check_epoch(&self, at: Epoch) -> Result<(), TableError> {
        let staged = self.staged.last_key_value().map(|(&epoch, _)| epoch);
        let newest = staged.unwrap_or(self.collected).max(self.collected);
        if at < newest {
            return Err(TableError::EpochPassed { at, newest });
        }
        Ok(())
    }

    pub(super) fn find(&self, plan: &Plan, key: &CanonicalKey, at: Epoch) -> Option<u32> {
        self.index.find(plan, &self.versions, key, at)
    }

    fn staged_at(&mut self, at: Epoch) -> &mut Staged {
        self.staged.entry(at).or_insert_with(|| Staged {
            steps: Chunked::new(),
            growth: 0,
            bumped: false,
        })
    }

    fn handle_of(&self, version: u32) -> Option<EntryHandle> {
        let version = self.versions.get(version)?;
        Some(EntryHandle::new(version.entry, version.generation))
    }

    /// Adds a version, or the several of a range; the first of them.
    fn add_version(
        &mut self,
        plan: &Plan,
        key: &CanonicalKey,
        value: Arc<A>,
        (handle, at): (EntryHandle, Epoch),
    ) -> Result<u32, TableError> {
        let limit = plan.max_versions();
        if self.versions.len() >= limit {
            return Err(TableError::TooManyVersions { limit });
        }
        self.was_empty |= self.versions.len() == 0;
        let places = self.index.places(plan, &self.versions, key)?;
        let ranges = plan.ranges_of(key);
        let mut added = Vec::with_capacity(places.len());
        for place in &places {
            let version = Version {
                key: place.value,
                from: at.0,
                to: FOREVER,
                value: Some(Arc::clone(&value)),
                hash: 0,
                next: NONE,
                class: NONE,
                priority: key.priority,
                entry: handle.index(),
                generation: handle.generation(),
            };
            let index = self.versions.insert(version, ranges.clone());
            self.index
                .link(plan, &mut self.versions, index, (key, place));
            added.push(index);
        }
        let mut added = added.into_iter();
        let first = added.next().unwrap_or(NONE);
        if added.len() > 0 {
            self.siblings.insert(first, added.collect());
        }
        self.staged_at(at).steps.push(Step(first));
        Ok(first)
    }

    fn end_version(&mut self, index: u32, at: Epoch) {
        self.set_end(index, at.0);
        self.staged_at(at).steps.push(Step(index | ENDED));
    }

    fn set_end(&mut self, index: u32, to: u64) {
        let siblings = self.siblings.get(&index).map_or(&[][..], |all| all);
        for &index in std::iter::once(&index).chain(siblings) {
            if let Some(version) = self.versions.get_mut(index) {
                version.to = to;
            }
        }
    }

    /// Takes the last step of an epoch back, and with a new value the end of the old one. The values to drop; none when there is
    /// no step.
    pub(super) fn undo_last_step(&mut self, plan: &Plan, at: Epoch) -> Option<Vec<Arc<A>>> {
        let mut step = self.staged.get_mut(&at)?.steps.pop()?;
        let mut dropped = Vec::new();
        if !step.is_end() {
            if self.free(plan, step.version(), &mut dropped) == 0 {
                return Some(dropped);
            }
            step = self.staged.get_mut(&at)?.steps.pop()?;
        }
        self.set_end(step.version(), FOREVER);
        if let Some(version) = self.versions.get(step.version())
            && let Some(entry) = self.entries.get_mut(version.entry)
        {
            entry.newest = step.version();
        }
        Some(dropped)
    }

    /// Frees a version, and its entry when it is the last. How many versions the entry has left.
    pub(super) fn free(&mut self, plan: &Plan, first: u32, dropped: &mut Vec<Arc<A>>) -> u32 {
        let siblings = self.siblings.remove(&first).unwrap_or_default();
        let Some(entry) = self.versions.get(first).map(|version| version.entry) else {
            return 0;
        };
        for &index in std::iter::once(&first).chain(&siblings) {
            self.index.unlink(plan, &mut self.versions, index);
            let freed = self.versions.remove(index);
            dropped.extend(freed.and_then(|version| version.value));
        }
        let Some(state) = self.entries.get_mut(entry) else {
            return 0;
        };
        state.versions -= 1;
        if state.versions > 0 {
            return state.versions;
        }
        let rest = EntryState {
            newest: NONE,
            ..*state
        };
        self.entries.remove(entry, rest);
        0
    }

    /// An entry as it is seen at an epoch.
    pub(super) fn entry_at(&self, plan: &Plan, entry: u32, at: Epoch) -> Option<Entry<A>> {
        let newest = self.entries.get(entry)?.newest;
        let version = self.versions.get(newest)?;
        if version.is_seen_at(at) {
            return self.entry_of(plan, newest);
        }
        let key = self.index.key_of(plan, &self.versions, newest)?;
        let seen = self.find(plan, &key, at)?;
        // Another entry may have had the same key before.
        if self.versions.get(seen)?.entry != entry {
            return None;
        }
        self.entry_of(plan, seen)
    }

    pub(super) fn entry_of(&self, plan: &Plan, index: u32) -> Option<Entry<A>> {
        let version = self.versions.get(index)?;
        Some(Entry {
            handle: self.handle_of(index)?,
            key: self
                .index
                .key_of(plan, &self.versions, index)?
                .to_entry_key(),
            value: Arc::clone(version.value.as_ref()?),
            added_at: self.entries.get(version.entry)?.added_at,
            changed_at: Epoch(version.from),
        })
    }
}

impl Plan {
    /// All entries replaced in one batch, and some for ranges.
    fn max_versions(&self) -> usize {
        let each = if self.has_ranges() { 32 } else { 3 };
        (self.shape.max_entries() * each + 1024).min(ENDED as usize - 1024)
    }

    fn ranges_of(&self, key: &CanonicalKey) -> Option<Arc<Ranges>> {
        self.has_ranges().then(|| {
            Arc::new(Ranges {
                bounds: key.ranges().collect(),
                specificity: key.specificity,
            })
        })
    }
}
