//! A thread that makes durable what the engine has, and answers: while it commits one group of batches, the next is carried out.
//!
//! Batches that come while a commit is under way share the next one, so that the disk's latency bounds the time of a change, not
//! their number. When nothing waits it folds the store's journal.
use super::changes::Changes;
use super::port_names::PortRegistry;
use super::quota::Undo;
use super::store::{Store, StoreError};
use super::writer::{Refusal, Written};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// Updates that wait for a commit at most.
const MAX_WAITING: usize = 200_000;
/// How long nothing is to come before the journal is folded.
const IDLE: Duration = Duration::from_millis(200);

/// A batch that the engine has and the store does not yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub updates: usize,
    pub undo: Undo,
    /// `None`: nobody asked for it.
    pub reply: Option<oneshot::Sender<Result<Written, Refusal>>>,
}

/// Batches that share a commit.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub batches: Vec<Pending>,
    pub changes: Changes,
    updates: usize,
}

impl Group {
    pub(super) fn add(&mut self, batch: Pending) {
        self.updates += batch.updates;
        self.batches.push(batch);
    }

    fn append(&mut self, later: Self) {
        self.batches.extend(later.batches);
        self.changes.append(later.changes);
    }
}

#[derive(Debug, Default)]
struct Waiting {
    next: Group,
    failed: Option<(Group, StoreError)>,
    committing: bool,
    ending: bool,
    /// Folding has failed; the next commit will say why.
    unfoldable: bool,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    store: Arc<Store>,
    registry: Arc<PortRegistry>,
}

/// The thread's handle.
#[derive(Debug)]
pub(super) struct Committer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    pub(super) fn start(
        store: Arc<Store>,
        registry: Arc<PortRegistry>,
    ) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            changed: Condvar::new(),
            store,
            registry,
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("tables-store".to_owned())
            .spawn(move || of_thread.run())
            .map_err(|source| StoreError::Content(source.to_string()))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Adds batches to the next group: `add` puts in what it has done. Waits while too much is waiting.
    pub(super) fn add<T>(&self, add: impl FnOnce(&mut Group) -> T) -> T {
        let mut waiting = self.shared.lock();
        while waiting.next.updates >= MAX_WAITING && waiting.failed.is_none() {
            waiting = self.shared.wait(waiting);
        }
        let done = add(&mut waiting.next);
        drop(waiting);
        self.shared.changed.notify_all();
        done
    }

    /// What could not be committed, and all that came after it. The thread has ended then.
    pub(super) fn failed(&self) -> Option<(Group, StoreError)> {
        let mut waiting = self.shared.lock();
        let (mut group, error) = waiting.failed.take()?;
        group.append(std::mem::take(&mut waiting.next));
        Some((group, error))
    }

    /// Whether a commit waits or is under way.
    pub(super) fn is_busy(&self) -> bool {
        let waiting = self.shared.lock();
        waiting.committing || !waiting.next.batches.is_empty() || waiting.failed.is_some()
    }

    /// Commits what waits, and ends the thread.
    pub(super) fn end(&mut self) {
        self.shared.lock().ending = true;
        self.shared.changed.notify_all();
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            log::error!("the thread that writes the store had panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, waiting: MutexGuard<'a, Waiting>) -> MutexGuard<'a, Waiting> {
        let waited = self.changed.wait(waiting);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(group) = self.next() {
            if let Err(error) = self.commit(&group.changes) {
                let mut waiting = self.lock();
                waiting.failed = Some((group, error));
                waiting.committing = false;
                drop(waiting);
                self.changed.notify_all();
                return;
            }
            for batch in group.batches {
                let updates = batch.updates;
                let written = Written {
                    updates,
                    durable: true,
                };
                // A client that has gone needs no answer.
                batch.reply.map(|reply| reply.send(Ok(written)));
            }
            self.lock().committing = false;
            if self.store.is_journal_long() && !self.lock().unfoldable {
                self.fold();
            }
        }
    }

    /// The next group; `None`: the end.
    fn next(&self) -> Option<Group> {
        let mut waiting = self.lock();
        loop {
            if !waiting.next.batches.is_empty() {
                let group = std::mem::take(&mut waiting.next);
                waiting.committing = true;
                drop(waiting);
                self.changed.notify_all();
                return Some(group);
            }
            if waiting.ending {
                return None;
            }
            if waiting.unfoldable || !self.store.has_journal() {
                waiting = self.wait(waiting);
                continue;
            }
            let (still, waited) = self
                .changed
                .wait_timeout(waiting, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            waiting = still;
            if waited.timed_out() && waiting.next.batches.is_empty() && !waiting.ending {
                drop(waiting);
                self.fold();
                waiting = self.lock();
            }
        }
    }

    fn commit(&self, changes: &Changes) -> Result<(), StoreError> {
        let names = self.registry.take_unsaved();
        self.store
            .commit(changes, &names)
            .inspect_err(|_| self.registry.not_saved(names))
    }

    /// Nothing is lost when it fails.
    fn fold(&self) {
        if let Err(error) = self.store.fold() {
            log::error!("the journal of the store stays as it is: {error}");
            self.lock().unfoldable = true;
        }
    }
}
