//! The one thread that changes tables: takes what waits, carries it out, makes it durable in one commit, answers.
//!
//! Batches that wait while a commit is under way share the next one, so that the disk's latency bounds the time of a change, not
//! their number. Once a second it removes entries whose time is over.
use super::MAX_BATCH_UPDATES;
use super::engine::{KeyShape, TableEngine};
use super::identity::{Identity, Named, NoIdentity};
use super::port_names::{NamesOfBatch, PortRegistry};
use super::quota::{Holdings, Quotas, Undo};
use super::restore;
use super::store::{Store, StoreChange, StoreError, encode};
use crate::control::clock::monotonic_now;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use switch_core::engine::control::{PortNames, Update, WriteError, WriteErrorKind};
use tokio::sync::oneshot;

/// How often entries are looked through for those whose time is over.
const TICK: Duration = Duration::from_secs(1);
/// Updates after which a commit does not wait for more batches.
const GROUP_UPDATES: usize = 100_000;
/// Batches that share a commit at most.
const GROUP_BATCHES: usize = 256;

/// A batch has taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// How many updates it had.
    pub updates: usize,
    /// Whether it outlives the process.
    pub durable: bool,
}

/// A batch has not taken effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It cannot.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// It could not be made durable.
    #[error("{0}")]
    Store(String),
    /// Too many batches wait.
    #[error("too many batches wait")]
    Busy,
    /// The daemon is on its way out.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What the thread is asked.
#[derive(Debug)]
pub enum Job {
    /// Carry a batch out.
    Write(Vec<Update>, oneshot::Sender<Result<Written, Refusal>>),
    /// Forget what is kept aside.
    DiscardAside(oneshot::Sender<Result<usize, Refusal>>),
    /// Finish what waits, and end.
    Stop,
}

/// The key of every table.
pub type Shapes = HashMap<String, Vec<KeyShape>>;

/// What the thread owns.
pub struct Writer {
    pub(super) engine: Arc<dyn TableEngine>,
    pub(super) registry: Arc<PortRegistry>,
    pub(super) store: Option<Arc<Store>>,
    pub(super) shapes: Shapes,
    pub(super) holdings: Holdings,
    pub(super) quotas: Quotas,
    /// Why nothing can be stored any more.
    pub(super) broken: Option<String>,
}

/// Batches that the engine has and the store does not yet.
#[derive(Default)]
struct Group {
    batches: Vec<Pending>,
    changes: Vec<StoreChange>,
    updates: usize,
}

struct Pending {
    updates: Vec<Update>,
    undo: Undo,
    reply: oneshot::Sender<Result<Written, Refusal>>,
}

impl Writer {
    /// Serves until told to stop.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            match jobs.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Job::DiscardAside(reply)) => drop(reply.send(self.discard_aside())),
                Ok(Job::Write(updates, reply)) => {
                    if let Some(other) = self.write_group((updates, reply), jobs) {
                        match other {
                            Job::DiscardAside(reply) => drop(reply.send(self.discard_aside())),
                            Job::Stop | Job::Write(..) => return,
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= next_tick {
                self.expire();
                next_tick = Instant::now() + TICK;
            }
        }
    }

    /// Carries out this batch and those that wait behind it. Returns what came that is none.
    fn write_group(
        &mut self,
        first: (Vec<Update>, oneshot::Sender<Result<Written, Refusal>>),
        jobs: &Receiver<Job>,
    ) -> Option<Job> {
        let mut group = Group::default();
        let mut next = Some(first);
        let mut other = None;
        while let Some((updates, reply)) = next.take() {
            self.add_to(&mut group, updates, reply);
            if group.updates >= GROUP_UPDATES || group.batches.len() >= GROUP_BATCHES {
                break;
            }
            match jobs.try_recv() {
                Ok(Job::Write(updates, reply)) => next = Some((updates, reply)),
                Ok(job) => other = Some(job),
                Err(_) => {}
            }
        }
        self.finish(group);
        other
    }

    fn add_to(
        &mut self,
        group: &mut Group,
        updates: Vec<Update>,
        reply: oneshot::Sender<Result<Written, Refusal>>,
    ) {
        match self.apply(&updates, &mut group.changes) {
            Ok(undo) => {
                group.updates += updates.len();
                group.batches.push(Pending {
                    updates,
                    undo,
                    reply,
                });
            }
            // A client that has gone needs no answer; so below.
            Err(refusal) => drop(reply.send(Err(refusal))),
        }
    }

    /// Quota and engine: the batch takes effect in memory, or nothing has happened.
    fn apply(
        &mut self,
        updates: &[Update],
        changes: &mut Vec<StoreChange>,
    ) -> Result<Undo, Refusal> {
        if let Some(reason) = &self.broken {
            return Err(Refusal::Store(reason.clone()));
        }
        let (registry, engine) = (Arc::clone(&self.registry), Arc::clone(&self.engine));
        let had = changes.len();
        for last in [false, true] {
            let names = NamesOfBatch::new(&registry);
            let mut undo = Undo::default();
            let result = self
                .prepare(updates, &names, (&mut *changes, &mut undo))
                .and_then(|()| {
                    engine
                        .write(updates, &names, monotonic_now())
                        .map_err(Refusal::Write)
                });
            let Err(refusal) = result else {
                return Ok(undo);
            };
            let exhausted = names.exhausted();
            names.take_back();
            self.holdings.take_back(undo);
            changes.truncate(had);
            if last || !exhausted || reclaim(&*engine, &registry) == 0 {
                return Err(refusal);
            }
        }
        Err(Refusal::Stopping)
    }

    /// Counts the batch against quotas, and says what it changes in the store: one change for each update.
    fn prepare(
        &mut self,
        updates: &[Update],
        names: &NamesOfBatch<'_>,
        (changes, undo): (&mut Vec<StoreChange>, &mut Undo),
    ) -> Result<(), Refusal> {
        let durable = self.store.is_some();
        for (index, update) in updates.iter().enumerate() {
            let change = match update {
                Update::Insert(entry) | Update::Modify(entry) | Update::Put(entry) => {
                    let identity = identity_of(entry.into(), &self.shapes, names)
                        .map_err(|error| no_identity(index, error))?;
                    self.holdings
                        .assign(
                            identity.clone(),
                            entry.tenant.as_deref(),
                            &self.quotas,
                            undo,
                        )
                        .map_err(|over| over_quota(index, &over.tenant, over.most))?;
                    durable
                        .then(|| encode(entry).map(|json| StoreChange::Entry(identity, json)))
                        .transpose()
                }
                Update::Delete(name) => {
                    let identity = identity_of(name.into(), &self.shapes, names)
                        .map_err(|error| no_identity(index, error))?;
                    self.release(&identity, undo);
                    Ok(durable.then_some(StoreChange::NoEntry(identity)))
                }
                Update::Clear { table } => {
                    self.holdings.clear(table, undo);
                    Ok(durable.then(|| StoreChange::ClearTable(table.clone())))
                }
                other => match setting_of(other) {
                    Some((name, set)) if durable => set
                        .then(|| encode(other))
                        .transpose()
                        .map(|json| Some(StoreChange::Setting(name, json))),
                    _ => Ok(None),
                },
            };
            changes.extend(change.map_err(|error: StoreError| Refusal::Store(error.to_string()))?);
        }
        Ok(())
    }

    fn release(&mut self, identity: &Identity, undo: &mut Undo) {
        // Giving an entry to nobody is never over anybody's quota.
        let _ = self
            .holdings
            .assign(identity.clone(), None, &self.quotas, undo);
    }

    /// Makes a group durable, and answers.
    fn finish(&mut self, group: Group) {
        if group.batches.is_empty() {
            return;
        }
        let durable = self.store.is_some();
        match self.commit(&group.changes) {
            Ok(()) => {
                for batch in group.batches {
                    let updates = batch.updates.len();
                    let written = Written { updates, durable };
                    let _ = batch.reply.send(Ok(written));
                }
            }
            Err(error) => self.take_back(group, &error),
        }
    }

    fn commit(&self, changes: &[StoreChange]) -> Result<(), StoreError> {
        let Some(store) = &self.store else {
            self.registry.take_unsaved();
            return Ok(());
        };
        let names = self.registry.take_unsaved();
        store
            .commit(changes, &names)
            .inspect_err(|_| self.registry.not_saved(names))
    }

    /// Nothing of the group is to have happened.
    fn take_back(&mut self, group: Group, error: &StoreError) {
        log::error!("tables cannot be changed any more: {error}");
        self.broken = Some(error.to_string());
        let updates: Vec<&Update> = group
            .batches
            .iter()
            .flat_map(|batch| &batch.updates)
            .collect();
        let back = match &self.store {
            Some(store) => restore::take_back(store, &updates, &group.changes),
            None => Ok(vec![]),
        };
        let names = NamesOfBatch::new(&self.registry);
        let undone = back.map_err(|error| error.to_string()).and_then(|back| {
            // In pieces: a table that was cleared may have had more than one batch may hold.
            back.chunks(MAX_BATCH_UPDATES).try_for_each(|piece| {
                self.engine
                    .write(piece, &names, monotonic_now())
                    .map_err(|error| error.to_string())
            })
        });
        if let Err(reason) = undone {
            log::error!("changes that were refused are still in effect until a restart: {reason}");
        }
        for batch in group.batches.into_iter().rev() {
            self.holdings.take_back(batch.undo);
            let _ = batch.reply.send(Err(Refusal::Store(error.to_string())));
        }
    }

    fn expire(&mut self) {
        let expired = self.engine.expire(monotonic_now(), &*self.registry);
        if expired.is_empty() {
            return;
        }
        let mut changes = vec![];
        for name in &expired {
            if let Ok(identity) = identity_of(name.into(), &self.shapes, &*self.registry) {
                self.release(&identity, &mut Undo::default());
                changes.push(StoreChange::NoEntry(identity));
            }
        }
        if let Err(error) = self.commit(&changes) {
            log::error!("entries whose time is over will be back after a restart: {error}");
            self.broken.get_or_insert(error.to_string());
        }
    }

    fn discard_aside(&self) -> Result<usize, Refusal> {
        let Some(store) = &self.store else {
            return Ok(0);
        };
        let discard = || -> Result<usize, StoreError> {
            let count = store.aside()?.len();
            store.commit_aside(&[], &[])?;
            Ok(count)
        };
        discard().map_err(|error| Refusal::Store(error.to_string()))
    }
}

/// Frees numbers of port names that nothing means. Returns how many.
pub(super) fn reclaim(engine: &dyn TableEngine, registry: &PortRegistry) -> usize {
    let before = registry.now();
    let meant = restore::meant_names(engine, registry);
    registry.reclaim(&meant, before)
}

/// The identity of an entry of any table.
pub(super) fn identity_of(
    entry: Named<'_>,
    shapes: &Shapes,
    ports: &dyn PortNames,
) -> Result<Identity, NoIdentity> {
    match shapes.get(entry.table) {
        Some(shape) => Identity::of(entry, shape, ports),
        None => Err(NoIdentity {
            place: "table".to_owned(),
            reason: format!("there is no table {}", entry.table),
        }),
    }
}

/// Under which name the store keeps what an update sets, and whether it sets it or takes it back to what the program says. `None`:
/// it is about entries.
pub(super) fn setting_of(update: &Update) -> Option<(String, bool)> {
    match update {
        Update::SetDefault { table, default } => {
            Some((format!("default/{table}"), default.is_some()))
        }
        Update::SetMulticast { group, ports } => {
            Some((format!("multicast/{group}"), !ports.is_empty()))
        }
        Update::SetGroup {
            selector,
            group,
            members,
        } => Some((format!("group/{selector}/{group}"), !members.is_empty())),
        Update::SetMeter { meter, index, rate } => {
            Some((format!("meter/{meter}/{index}"), rate.is_some()))
        }
        Update::Insert(_)
        | Update::Modify(_)
        | Update::Put(_)
        | Update::Delete(_)
        | Update::Clear { .. } => None,
    }
}

fn no_identity(index: usize, error: NoIdentity) -> Refusal {
    let (kind, remedy) = if error.place == "table" {
        (
            WriteErrorKind::NotFound,
            "`ringswitch table list` shows those there are",
        )
    } else {
        (
            WriteErrorKind::Invalid,
            "`ringswitch table show TABLE` shows the key",
        )
    };
    Refusal::Write(WriteError {
        index,
        place: error.place,
        kind,
        reason: error.reason,
        remedy: remedy.to_owned(),
    })
}

fn over_quota(index: usize, tenant: &str, most: u32) -> Refusal {
    Refusal::Write(WriteError {
        index,
        place: "tenant".to_owned(),
        kind: WriteErrorKind::Full,
        reason: format!("tenant {tenant} has {most} entries, which is the most it may have"),
        remedy: format!(
            "delete some of its entries, or raise max_entries in [tenant.{tenant}] of the configuration"
        ),
    })
}
