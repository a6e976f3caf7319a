//! A match table, as the control thread and the workers call it.

use std::sync::Arc;

use super::Epoch;
use super::counters::{ChangeCounters, CounterRange, Dependencies};
use super::entry::{Entry, EntryHandle, Hit};
use super::error::TableError;
use super::index::Plan;
use super::key::EntryKey;
use super::shape::{ShapeError, TableShape};
use super::store::{Storage, Store};

/// A match table: entries of type `A` by key, in versions by epoch.
///
/// What it can do is bounded by its [`TableShape`]: entries, and distinct masks. Beyond that at most 256 entries can differ in nothing
/// but their priority, or in nothing but two or more ranges that have no short cover of prefixes.
///
/// Changes come from one thread, in epochs that never go back; lookups from any, at the same time.
pub struct Table<A> {
    shape: TableShape,
    store: Box<dyn Storage<A>>,
}

impl<A: Send + Sync + 'static> Table<A> {
    /// An empty table, which says what changed by the `range` of `counters`. `seed` differs between processes and is nobody's to
    /// know.
    ///
    /// # Errors
    /// When `range` is empty or not within `counters`.
    pub fn new(
        shape: TableShape,
        counters: Arc<ChangeCounters>,
        range: CounterRange,
        seed: u64,
    ) -> Result<Self, ShapeError> {
        let end = u64::from(range.first) + u64::from(range.count);
        if range.count == 0 || end > counters.len() as u64 {
            return Err(ShapeError::Counters {
                first: range.first,
                end,
                available: counters.len(),
            });
        }
        let plan = Plan::new(shape.clone());
        let store: Box<dyn Storage<A>> = match plan.layout.words() {
            0..=1 => Box::new(Store::<A, 1>::new(plan, counters, range, seed)),
            2 => Box::new(Store::<A, 2>::new(plan, counters, range, seed)),
            3 => Box::new(Store::<A, 3>::new(plan, counters, range, seed)),
            // An IPv6 five-tuple is one of five.
            4..=5 => Box::new(Store::<A, 5>::new(plan, counters, range, seed)),
            6..=8 => Box::new(Store::<A, 8>::new(plan, counters, range, seed)),
            _ => Box::new(Store::<A, 16>::new(plan, counters, range, seed)),
        };
        Ok(Self { shape, store })
    }

    /// Its key and limits.
    #[must_use]
    pub fn shape(&self) -> &TableShape {
        &self.shape
    }

    /// Adds an entry, which lookups see from epoch `at` on.
    ///
    /// # Errors
    /// When the key does not fit the shape, when there is such an entry, when a limit is reached, or when `at` has passed.
    pub fn stage_insert(
        &self,
        key: &EntryKey,
        value: impl Into<Arc<A>>,
        at: Epoch,
    ) -> Result<EntryHandle, TableError> {
        let key = self.shape.canonical(key)?;
        self.store.insert(&key, value.into(), at)
    }

    /// Gives an entry another value, which lookups see from epoch `at` on. It keeps its handle.
    ///
    /// # Errors
    /// As for [`stage_insert`](Self::stage_insert); when there is no such entry.
    pub fn stage_replace(
        &self,
        key: &EntryKey,
        value: impl Into<Arc<A>>,
        at: Epoch,
    ) -> Result<EntryHandle, TableError> {
        let key = self.shape.canonical(key)?;
        self.store.replace(&key, value.into(), at)
    }

    /// Removes an entry, which lookups do not see from epoch `at` on; the handle that it had.
    ///
    /// # Errors
    /// When the key does not fit the shape, when there is no such entry, or when `at` has passed.
    pub fn stage_remove(&self, key: &EntryKey, at: Epoch) -> Result<EntryHandle, TableError> {
        let key = self.shape.canonical(key)?;
        self.store.remove(&key, at)
    }

    /// Takes back all that was staged for an epoch that was not published: a batch that failed, or a question.
    pub fn unstage(&self, at: Epoch) {
        self.store.unstage(at);
    }

    /// Bumps the counters of all lookups that what was staged for `at` can have influenced. To be called once the epoch is
    /// published, and before the change is said to be done. Does nothing the second time.
    pub fn bump_staged(&self, at: Epoch) {
        self.store.bump(at);
    }

    /// Frees what no epoch from `oldest` on can see. `oldest` is published; a lookup at an earlier epoch misses entries from here
    /// on, so it has to be done again at a later one.
    pub fn collect(&self, oldest: Epoch) {
        self.store.collect(oldest);
    }

    /// The entry with this key, as it is seen at an epoch.
    ///
    /// # Errors
    /// When the key does not fit the shape.
    pub fn find(&self, key: &EntryKey, at: Epoch) -> Result<Option<Entry<A>>, TableError> {
        let key = self.shape.canonical(key)?;
        Ok(self.store.find(&key, at))
    }

    /// The entry with this handle, as it is seen at an epoch.
    #[must_use]
    pub fn entry(&self, handle: EntryHandle, at: Epoch) -> Option<Entry<A>> {
        self.store.entry(handle, at)
    }

    /// At most `limit` entries as they are seen at an epoch, in the order of their handles, from the one behind `after` on. Fewer
    /// only when there are no more. An entry that is there all the time comes exactly once, page by page.
    #[must_use]
    pub fn scan(&self, after: Option<EntryHandle>, limit: usize, at: Epoch) -> Vec<Entry<A>> {
        self.store.scan(after, limit, at)
    }

    /// How many entries are seen at an epoch.
    #[must_use]
    pub fn len(&self, at: Epoch) -> usize {
        self.store.len(at)
    }

    /// Whether no entry is seen at an epoch.
    #[must_use]
    pub fn is_empty(&self, at: Epoch) -> bool {
        self.len(at) == 0
    }

    /// The entry that wins for these field values (one for each key field, in the shape's order; bits beyond a field are left out)
    /// at an epoch.
    ///
    /// Sets in `looked_at` (again one for each field) the bits that the result depended on: any values with the same bits there
    /// have the same result at this epoch. Adds to `on` the change counters that tell when the result is no longer that of the
    /// published epoch.
    ///
    /// # Panics
    /// Never; missing fields are taken as zero.
    #[inline]
    #[must_use]
    pub fn lookup(
        &self,
        values: &[u128],
        at: Epoch,
        looked_at: &mut [u128],
        on: &mut Dependencies,
    ) -> Option<Hit<A>> {
        let mut hit = None;
        self.look_up((values, at), (looked_at, on), &mut |handle, value| {
            let value = Arc::clone(value);
            hit = Some(Hit { handle, value });
        });
        hit
    }

    /// The same, for whoever needs but a part of what the entry means: `found` is called with that, while the table cannot change.
    ///
    /// With fewer fields in `looked_at` than the key has, those that are missing are not told of.
    #[inline]
    pub fn look_up(
        &self,
        (values, at): (&[u128], Epoch),
        (looked_at, on): (&mut [u128], &mut Dependencies),
        found: &mut dyn FnMut(EntryHandle, &Arc<A>),
    ) {
        self.store.look_up((values, at), (looked_at, on), found);
    }
}
