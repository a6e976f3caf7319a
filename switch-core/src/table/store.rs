//! The entries of one table behind its lock: their versions, what is staged, and what can be freed.
//!
//! A change appends to the list of its epoch what it did: a version added, a version ended. That list is what is undone when the
//! epoch is given up, what tells which change counters to bump when it is published, and, once no lookup can be at an earlier
//! epoch, which versions to free.
//!
//! [`Store`] is made for a number of words, so that keys are compared and hashed without loops; [`Storage`] is what they all can.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::Epoch;
use super::buckets::NONE;
use super::counters::{ChangeCounters, Dependencies};
use super::error::TableError;
use super::index::{Index, Plan, Wanted};
use super::key::{CanonicalKey, EntryKey};
use super::layout::{and, first_bits};
use super::seed::Seed;
use super::slab::{Chunked, Slab};
use super::version::{FOREVER, Ranges, Version, Versions};
use super::{CounterRange, MatchKind};

/// How many steps of a list one hold of the lock takes.
const STEPS_PER_LOCK: usize = 64;
/// How many entries one hold of the lock copies out.
const ENTRIES_PER_LOCK: usize = 64;

/// Identifies an entry for as long as it lives, also when its value is replaced. Not used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryHandle(pub(super) u64);

impl EntryHandle {
    fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(generation) | u64::from(index) << 32)
    }

    /// A small number that no other living entry of the table has: freed ones are used again, so it indexes arrays.
    #[must_use]
    pub fn index(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn generation(self) -> u32 {
        self.0 as u32
    }

    /// As a number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// Of a number from [`get`](Self::get); any other is the handle of no entry.
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// What a lookup found.
#[derive(Debug)]
pub struct Hit<A> {
    /// The entry.
    pub handle: EntryHandle,
    /// What it means.
    pub value: Arc<A>,
}

/// An entry as the control side sees it.
#[derive(Debug)]
pub struct Entry<A> {
    /// Its handle.
    pub handle: EntryHandle,
    /// Its key in canonical form.
    pub key: EntryKey,
    /// What it means.
    pub value: Arc<A>,
    /// The epoch in which it was added.
    pub added_at: Epoch,
    /// The epoch in which its value was last replaced, or in which it was added.
    pub changed_at: Epoch,
}

/// What [`Table`](super::Table) asks of its store, whatever the number of words of its keys.
pub(super) trait Storage<A>: Send + Sync {
    fn insert(
        &self,
        key: &CanonicalKey,
        value: Arc<A>,
        at: Epoch,
    ) -> Result<EntryHandle, TableError>;
    fn replace(
        &self,
        key: &CanonicalKey,
        value: Arc<A>,
        at: Epoch,
    ) -> Result<EntryHandle, TableError>;
    fn remove(&self, key: &CanonicalKey, at: Epoch) -> Result<EntryHandle, TableError>;
    fn unstage(&self, at: Epoch);
    fn bump(&self, at: Epoch);
    fn collect(&self, oldest: Epoch);
    fn find(&self, key: &CanonicalKey, at: Epoch) -> Option<Entry<A>>;
    fn entry(&self, handle: EntryHandle, at: Epoch) -> Option<Entry<A>>;
    fn scan(&self, after: Option<EntryHandle>, limit: usize, at: Epoch) -> Vec<Entry<A>>;
    fn len(&self, at: Epoch) -> usize;
    fn lookup(
        &self,
        values: &[u128],
        at: Epoch,
        looked_at: &mut [u128],
        on: &mut Dependencies,
    ) -> Option<Hit<A>>;
}

/// An entry: the versions of one key from when it is added to when it is removed.
struct EntryState {
    /// Its newest version, the first of several for a range; [`NONE`] when the place is free.
    newest: u32,
    generation: u32,
    /// Versions that are not freed.
    versions: u32,
    added_at: Epoch,
}

/// A step of a staged change.
#[derive(Clone, Copy)]
struct Step(u32);

/// The bit of a step that ended a version; the others added one.
const ENDED: u32 = 1 << 31;

impl Step {
    fn version(self) -> u32 {
        self.0 & !ENDED
    }

    fn is_end(self) -> bool {
        self.0 & ENDED != 0
    }
}

/// What was staged for an epoch.
struct Staged {
    steps: Chunked<Step>,
    /// Entries more than before it.
    growth: i64,
    bumped: bool,
}

/// Which change counters are for what.
struct CounterPlan<const W: usize> {
    counters: Arc<ChangeCounters>,
    range: CounterRange,
    seed: Seed,
    /// The part of a key whose hash chooses its counter.
    mask: [u64; W],
    /// In a longest-prefix table: shorter ones have the first counter.
    shortest: Option<u32>,
}

pub(super) struct Store<A, const W: usize> {
    plan: Plan,
    counters: CounterPlan<W>,
    /// The latest epoch whose counters were bumped, or are about to be.
    bumped: AtomicU64,
    state: RwLock<State<A, W>>,
}

struct State<A, const W: usize> {
    versions: Versions<A, W>,
    index: Index<W>,
    entries: Slab<EntryState>,
    staged: BTreeMap<Epoch, Staged>,
    /// The latest epoch that was freed.
    collected: Epoch,
    /// Entries after all that is staged.
    live: usize,
    /// The other versions of an entry whose range is stored as prefixes, by the first.
    siblings: BTreeMap<u32, Box<[u32]>>,
}

impl<A, const W: usize> Store<A, W> {
    pub(super) fn new(
        plan: Plan,
        counters: Arc<ChangeCounters>,
        range: CounterRange,
        seed: u64,
    ) -> Self {
        let seed = Seed::new(seed);
        let counters = CounterPlan::new(&plan, counters, range, seed);
        let index = Index::new(&plan, seed);
        Self {
            plan,
            counters,
            bumped: AtomicU64::new(0),
            state: RwLock::new(State {
                versions: Versions::new(),
                index,
                entries: Slab::new(),
                staged: BTreeMap::new(),
                collected: Epoch(0),
                live: 0,
                siblings: BTreeMap::new(),
            }),
        }
    }

    /// A thread that panicked while it held the lock left indices that are all checked, so the others go on.
    fn read(&self) -> RwLockReadGuard<'_, State<A, W>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<A, W>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bumps for some steps of an epoch, from the one given on; the one to go on with.
    fn bump_steps(&self, at: Epoch, from: u32) -> Option<u32> {
        let state = self.read();
        let staged = state.staged.get(&at)?;
        for step in from..from + STEPS_PER_LOCK as u32 {
            let index = staged.steps.get(step)?.version();
            self.counters.bump(state.versions.get(index)?);
        }
        Some(from + STEPS_PER_LOCK as u32)
    }
}

impl<A: Send + Sync, const W: usize> Storage<A> for Store<A, W> {
    fn insert(
        &self,
        key: &CanonicalKey,
        value: Arc<A>,
        at: Epoch,
    ) -> Result<EntryHandle, TableError> {
        let mut state = self.write();
        state.check_epoch(at)?;
        if state.find(&self.plan, key, at).is_some() {
            return Err(TableError::AlreadyExists);
        }
        let limit = self.plan.shape.max_entries();
        if state.live >= limit {
            return Err(TableError::Full { limit });
        }
        let entry = state.entries.next_index();
        let generation = state
            .entries
            .get(entry)
            .map_or(0, |freed| freed.generation.wrapping_add(1));
        let handle = EntryHandle::new(entry, generation);
        let newest = state.add_version(&self.plan, key, value, (handle, at))?;
        state.entries.insert(EntryState {
            newest,
            generation,
            versions: 1,
            added_at: at,
        });
        state.live += 1;
        state.staged_at(at).growth += 1;
        Ok(handle)
    }

    fn replace(
        &self,
        key: &CanonicalKey,
        value: Arc<A>,
        at: Epoch,
    ) -> Result<EntryHandle, TableError> {
        let mut state = self.write();
        state.check_epoch(at)?;
        let old = state
            .find(&self.plan, key, at)
            .ok_or(TableError::NotFound)?;
        let handle = state.handle_of(old).ok_or(TableError::NotFound)?;
        // Ended first, so that what is counted is what will be there.
        state.end_version(old, at);
        match state.add_version(&self.plan, key, value, (handle, at)) {
            Ok(new) => {
                if let Some(entry) = state.entries.get_mut(handle.index()) {
                    entry.newest = new;
                    entry.versions += 1;
                }
                Ok(handle)
            }
            Err(refused) => {
                state.undo_last_step(&self.plan, at);
                Err(refused)
            }
        }
    }

    fn remove(&self, key: &CanonicalKey, at: Epoch) -> Result<EntryHandle, TableError> {
        let mut state = self.write();
        state.check_epoch(at)?;
        let old = state
            .find(&self.plan, key, at)
            .ok_or(TableError::NotFound)?;
        let handle = state.handle_of(old).ok_or(TableError::NotFound)?;
        state.end_version(old, at);
        state.live = state.live.saturating_sub(1);
        state.staged_at(at).growth -= 1;
        Ok(handle)
    }

    fn unstage(&self, at: Epoch) {
        loop {
            let mut dropped = Vec::with_capacity(STEPS_PER_LOCK);
            let mut state = self.write();
            for _ in 0..STEPS_PER_LOCK {
                match state.undo_last_step(&self.plan, at) {
                    Some(freed) => dropped.extend(freed),
                    None => {
                        if let Some(staged) = state.staged.remove(&at) {
                            state.live = state.live.saturating_add_signed(-staged.growth as isize);
                        }
                        return;
                    }
                }
            }
        }
    }

    fn bump(&self, at: Epoch) {
        match self.write().staged.get_mut(&at) {
            Some(staged) if !staged.bumped => staged.bumped = true,
            _ => return,
        }
        // Before the counters: who sees one of them bumped sees this too.
        self.bumped.fetch_max(at.0, Ordering::AcqRel);
        let mut from = Some(0);
        while let Some(step) = from {
            from = self.bump_steps(at, step);
        }
    }

    fn collect(&self, oldest: Epoch) {
        loop {
            let due = {
                let mut state = self.write();
                state.collected = state.collected.max(oldest);
                match state.staged.first_key_value() {
                    Some((&at, _)) if at <= oldest => at,
                    _ => return,
                }
            };
            // What was forgotten would be served from caches for ever.
            self.bump(due);
            loop {
                // Freed values are dropped when the lock is no longer held.
                let mut dropped = Vec::with_capacity(STEPS_PER_LOCK);
                let mut state = self.write();
                let mut step = None;
                for _ in 0..STEPS_PER_LOCK {
                    step = state
                        .staged
                        .get_mut(&due)
                        .and_then(|staged| staged.steps.pop());
                    match step {
                        Some(step) if step.is_end() => {
                            state.free(&self.plan, step.version(), &mut dropped);
                        }
                        Some(_) => {}
                        None => break,
                    }
                }
                if step.is_none() {
                    state.staged.remove(&due);
                    break;
                }
            }
        }
    }

    fn find(&self, key: &CanonicalKey, at: Epoch) -> Option<Entry<A>> {
        let state = self.read();
        let index = state.find(&self.plan, key, at)?;
        state.entry_of(&self.plan, index)
    }

    fn entry(&self, handle: EntryHandle, at: Epoch) -> Option<Entry<A>> {
        let state = self.read();
        let entry = state.entries.get(handle.index())?;
        if entry.generation != handle.generation() {
            return None;
        }
        state.entry_at(&self.plan, handle.index(), at)
    }

    fn scan(&self, after: Option<EntryHandle>, limit: usize, at: Epoch) -> Vec<Entry<A>> {
        let mut found = Vec::new();
        let mut next = after.map_or(0, |after| after.index().saturating_add(1));
        loop {
            let state = self.read();
            for _ in 0..ENTRIES_PER_LOCK {
                if found.len() >= limit || next >= state.entries.end() {
                    return found;
                }
                found.extend(state.entry_at(&self.plan, next, at));
                next += 1;
            }
        }
    }

    fn len(&self, at: Epoch) -> usize {
        let state = self.read();
        let later = (std::ops::Bound::Excluded(at), std::ops::Bound::Unbounded);
        let growth: i64 = state
            .staged
            .range(later)
            .map(|(_, staged)| staged.growth)
            .sum();
        state.live.saturating_add_signed(-growth as isize)
    }

    #[inline]
    fn lookup(
        &self,
        values: &[u128],
        at: Epoch,
        looked_at: &mut [u128],
        on: &mut Dependencies,
    ) -> Option<Hit<A>> {
        let wanted = Wanted {
            words: self.plan.layout.pack(values),
            values,
            at,
        };
        self.counters.depend(&wanted.words, on);
        if self.bumped.load(Ordering::Acquire) > at.0 {
            on.forbid();
        }
        let mut looked = [0; W];
        let state = self.read();
        let hit = state
            .index
            .lookup(&self.plan, &state.versions, &wanted, &mut looked)
            .and_then(|index| {
                let version = state.versions.get(index)?;
                Some(Hit {
                    handle: EntryHandle::new(version.entry, version.generation),
                    value: Arc::clone(version.value.as_ref()?),
                })
            });
        drop(state);
        self.plan.layout.unpack_into(&looked, looked_at);
        hit
    }
}

impl<A, const W: usize> State<A, W> {
    fn check_epoch(&self, at: Epoch) -> Result<(), TableError> {
        let staged = self.staged.last_key_value().map(|(&epoch, _)| epoch);
        let newest = staged.unwrap_or(self.collected).max(self.collected);
        if at < newest {
            return Err(TableError::EpochPassed { at, newest });
        }
        Ok(())
    }

    fn find(&self, plan: &Plan, key: &CanonicalKey, at: Epoch) -> Option<u32> {
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
    fn undo_last_step(&mut self, plan: &Plan, at: Epoch) -> Option<Vec<Arc<A>>> {
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
    fn free(&mut self, plan: &Plan, first: u32, dropped: &mut Vec<Arc<A>>) -> u32 {
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
    fn entry_at(&self, plan: &Plan, entry: u32, at: Epoch) -> Option<Entry<A>> {
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

    fn entry_of(&self, plan: &Plan, index: u32) -> Option<Entry<A>> {
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

impl<const W: usize> CounterPlan<W> {
    fn new(plan: &Plan, counters: Arc<ChangeCounters>, range: CounterRange, seed: Seed) -> Self {
        let prefix = plan
            .shape
            .key()
            .iter()
            .find(|_| plan.shape.by_longest_prefix());
        let prefix = prefix.and_then(|_| {
            let mut fields = plan.shape.key().iter();
            fields.find(|field| field.kind == MatchKind::Lpm)
        });
        let shortest = prefix.map(|field| {
            // A /16 of IPv4 and a /48 of IPv6 are what one tenant or site tends to have.
            let bits = u32::from(field.bits);
            let told_apart = if bits > 64 { bits * 3 / 8 } else { bits / 2 };
            plan.layout.exact_bits() + told_apart
        });
        let mask = match shortest {
            Some(bits) => first_bits(bits),
            None => plan.layout.mask_of(|field| field.kind == MatchKind::Exact),
        };
        Self {
            counters,
            range,
            seed,
            mask,
            shortest: shortest.filter(|_| range.count > 1),
        }
    }

    /// The counter of a key with these words.
    #[inline]
    fn counter(&self, words: &[u64; W]) -> u32 {
        let hash = u64::from(self.seed.hash(NONE, &and(words, &self.mask)));
        let keep = u32::from(self.shortest.is_some());
        let scaled = (hash * u64::from(self.range.count - keep)) >> 32;
        self.range.first + keep + scaled as u32
    }

    #[inline]
    fn depend(&self, words: &[u64; W], on: &mut Dependencies) {
        on.depend_on(&self.counters, self.counter(words));
        if self.shortest.is_some() {
            on.depend_on(&self.counters, self.range.first);
        }
    }

    fn bump<A>(&self, version: &Version<A, W>) {
        let index = match self.shortest {
            Some(shortest) if version.class < shortest => self.range.first,
            _ => self.counter(&version.key),
        };
        self.counters.bump(index);
    }
}
