//! The lock around a table's entries: lookups take it for reading, changes for one entry or a few dozen steps.
//!
//! [`Store`] is made for a number of words, so that keys are compared and hashed without loops; [`Storage`] is what they all can.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::Epoch;
use super::counter_plan::CounterPlan;
use super::counters::{ChangeCounters, CounterRange, Dependencies};
use super::entry::{Entry, EntryHandle};
use super::error::TableError;
use super::index::{Index, Plan, Wanted};
use super::key::CanonicalKey;
use super::layout::or_into;
use super::seed::Seed;
use super::state::State;

/// How many steps of a list one hold of the lock takes.
const STEPS_PER_LOCK: usize = 64;
/// How many entries one hold of the lock copies out.
const ENTRIES_PER_LOCK: usize = 64;

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
    fn look_up(
        &self,
        key: (&[u128], Epoch),
        depended: (&mut [u128], &mut Dependencies),
        found: &mut dyn FnMut(EntryHandle, &Arc<A>),
    );
}

pub(super) struct Store<A, const W: usize> {
    plan: Plan,
    counters: CounterPlan<W>,
    /// The latest epoch whose counters were bumped, or are about to be.
    bumped: AtomicU64,
    /// Whether there may be versions. Not before an epoch is published in which there are any.
    has_versions: AtomicBool,
    state: RwLock<State<A, W>>,
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
            has_versions: AtomicBool::new(false),
            state: RwLock::new(State::new(index)),
        }
    }

    /// A thread that panicked while it held the lock left indices that are all checked, so the others go on.
    fn read(&self) -> RwLockReadGuard<'_, State<A, W>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<A, W>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// After the counters were read: at an epoch that was overtaken they may count a change that is not seen.
    #[inline]
    fn forbid_if_bumped(&self, at: Epoch, on: &mut Dependencies) {
        if self.bumped.load(Ordering::Acquire) > at.0 {
            on.forbid();
        }
    }

    /// To be called while nothing can be added.
    fn note_versions(&self, state: &State<A, W>) {
        let has_versions = state.versions.len() > 0;
        self.has_versions.store(has_versions, Ordering::Release);
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
        self.has_versions.store(true, Ordering::Release);
        state.insert(&self.plan, key, value, at)
    }

    fn replace(
        &self,
        key: &CanonicalKey,
        value: Arc<A>,
        at: Epoch,
    ) -> Result<EntryHandle, TableError> {
        self.write().replace(&self.plan, key, value, at)
    }

    fn remove(&self, key: &CanonicalKey, at: Epoch) -> Result<EntryHandle, TableError> {
        self.write().remove(&self.plan, key, at)
    }

    fn unstage(&self, at: Epoch) {
        loop {
            let mut dropped = Vec::with_capacity(STEPS_PER_LOCK);
            let mut state = self.write();
            for _ in 0..STEPS_PER_LOCK {
                match state.undo_last_step(&self.plan, at) {
                    Some(freed) => dropped.extend(freed),
                    None => {
                        self.note_versions(&state);
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
        let was_empty = {
            let mut state = self.write();
            match state.staged.get_mut(&at) {
                Some(staged) if !staged.bumped => staged.bumped = true,
                _ => return,
            }
            std::mem::take(&mut state.was_empty)
        };
        // Before the counters: who sees one of them bumped sees this too.
        self.bumped.fetch_max(at.0, Ordering::AcqRel);
        if was_empty {
            self.counters.bump_emptiness();
        }
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
                    self.note_versions(&state);
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

    fn look_up(
        &self,
        (values, at): (&[u128], Epoch),
        (looked_at, on): (&mut [u128], &mut Dependencies),
        found: &mut dyn FnMut(EntryHandle, &Arc<A>),
    ) {
        if !self.has_versions.load(Ordering::Acquire) {
            // Read before the table, as the others: so it is asked once more.
            self.counters.depend_on_emptiness(on);
            if !self.has_versions.load(Ordering::Acquire) {
                return self.forbid_if_bumped(at, on);
            }
        }
        let wanted = Wanted {
            words: self.plan.layout.pack(values),
            values,
            at,
        };
        let mut looked = [0; W];
        {
            // Nothing is staged while this is held, so counters that are read now are read before any change that they do not count.
            let state = self.read();
            let is_empty = state.versions.len() == 0;
            if is_empty {
                self.counters.depend_on_emptiness(on);
            } else {
                self.counters.depend(&wanted.words, on);
            }
            self.forbid_if_bumped(at, on);
            if is_empty {
                return;
            }
            let (plan, versions) = (&self.plan, &state.versions);
            let index = state.index.lookup(plan, versions, &wanted, &mut looked);
            if let Some(version) = index.and_then(|index| versions.get(index))
                && let Some(value) = &version.value
            {
                found(EntryHandle::new(version.entry, version.generation), value);
            }
        }
        if !looked_at.is_empty() {
            // The counters are those of this key: of another that differs in these bits they say nothing.
            or_into(&mut looked, &self.counters.told_apart());
            self.plan.layout.unpack_into(&looked, looked_at);
        }
    }
}
