//! The one thread that changes tables: carries out batch after batch, and hands them to the `committer`, which makes them
//! durable and answers. Once a second it removes entries whose time is over.
use super::MAX_BATCH_UPDATES;
use super::changes::Changes;
use super::committer::{Committer, Group, Pending};
use super::engine::{KeyShape, TableEngine};
use super::identity::{Identity, Named, NoIdentity};
use super::port_names::{NamesOfBatch, PortRegistry};
use super::quota::{Holdings, Quotas, Undo};
use super::restore;
use super::rows::Row;
use super::store::{Store, StoreError, encode};
use super::versions::{Versioned, Versions};
use crate::control::clock::monotonic_now;
use crate::control::tags::IfMatch;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};
use switch_core::engine::control::{PortNames, Update, WriteError, WriteErrorKind};
use tokio::sync::oneshot;

/// How often entries are looked through for those whose time is over.
const TICK: Duration = Duration::from_secs(1);
/// How soon a commit that failed is noticed.
const GLANCE: Duration = Duration::from_millis(20);

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
    /// It is not as the client saw it.
    #[error("{0} changed since")]
    Changed(Versioned),
    /// The daemon is on its way out.
    #[error("the daemon is stopping")]
    Stopping,
}

type Reply = oneshot::Sender<Result<Written, Refusal>>;

/// What the thread is asked.
#[derive(Debug)]
pub enum Job {
    /// Carry a batch out.
    Write(Vec<Update>, oneshot::Sender<Result<Written, Refusal>>),
    /// The same, under a condition, and with what else is to be durable.
    WriteWith(
        Vec<Update>,
        Beside,
        oneshot::Sender<Result<Written, Refusal>>,
    ),
    /// Forget what is kept aside.
    DiscardAside(oneshot::Sender<Result<usize, Refusal>>),
    /// Make durable what waits, answer, and change nothing until the other end is dropped.
    Hold(SyncSender<()>, Receiver<()>),
    /// Finish what waits, and end.
    Stop,
}

/// What a batch comes with.
#[derive(Debug, Default)]
pub struct Beside {
    /// Rows of ports, durable with it.
    pub rows: Vec<Row>,
    /// What everything that it changes has to be like.
    pub if_match: IfMatch,
}

/// The key of every table.
pub type Shapes = HashMap<String, Vec<KeyShape>>;

/// What the thread owns.
pub struct Writer {
    pub(super) engine: Arc<dyn TableEngine>,
    pub(super) registry: Arc<PortRegistry>,
    pub(super) store: Option<Arc<Store>>,
    /// Where there is a store.
    pub(super) committer: Option<Committer>,
    pub(super) shapes: Shapes,
    pub(super) holdings: Holdings,
    pub(super) quotas: Quotas,
    /// Of each table.
    pub(super) versions: Arc<Versions>,
    /// Why nothing can be stored any more.
    pub(super) broken: Option<String>,
}

impl Writer {
    /// Serves until told to stop.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let mut patience = next_tick.saturating_duration_since(Instant::now());
            if self.committer.as_ref().is_some_and(Committer::is_busy) {
                patience = patience.min(GLANCE);
            }
            let job = jobs.recv_timeout(patience);
            self.take_back_failed();
            match job {
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(Job::DiscardAside(reply)) => drop(reply.send(self.discard_aside())),
                Ok(Job::Write(updates, reply)) => self.write(updates, Beside::default(), reply),
                Ok(Job::WriteWith(updates, beside, reply)) => self.write(updates, beside, reply),
                Ok(Job::Hold(held, release)) => self.hold(&held, &release),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= next_tick {
                self.expire();
                next_tick = Instant::now() + TICK;
            }
        }
        if let Some(committer) = &mut self.committer {
            committer.end();
        }
        self.take_back_failed();
    }

    fn hold(&mut self, held: &SyncSender<()>, release: &Receiver<()>) {
        while self.committer.as_ref().is_some_and(Committer::is_busy) {
            std::thread::sleep(GLANCE / 20);
            self.take_back_failed();
        }
        if held.send(()).is_ok() {
            // Nothing is ever sent: this ends when the other end goes.
            let _ = release.recv();
        }
    }

    fn write(&mut self, updates: Vec<Update>, beside: Beside, reply: Reply) {
        let Beside { rows, if_match } = beside;
        if let Err(what) = self.versions.allow(&updates, &if_match) {
            return drop(reply.send(Err(Refusal::Changed(what))));
        }
        let mut changes = Changes::default();
        match self.apply(&updates, &mut changes) {
            Ok(undo) => {
                self.versions.count(updates.iter().map(Versioned::by));
                changes.add_rows(rows);
                let updates = updates.len();
                let reply = Some(reply);
                let batch = Pending {
                    updates,
                    undo,
                    reply,
                };
                self.hand_over(batch, changes);
            }
            // A client that has gone needs no answer.
            Err(refusal) => drop(reply.send(Err(refusal))),
        }
    }

    fn hand_over(&mut self, batch: Pending, changes: Changes) {
        if let Some(committer) = &self.committer {
            committer.add(|group| {
                group.changes.append(changes);
                group.add(batch);
            });
            return;
        }
        self.registry.take_unsaved();
        let written = Written {
            updates: batch.updates,
            durable: false,
        };
        batch.reply.map(|reply| reply.send(Ok(written)));
    }

    /// Quota and engine: the batch takes effect in memory, or nothing has happened.
    fn apply(&mut self, updates: &[Update], changes: &mut Changes) -> Result<Undo, Refusal> {
        if let Some(reason) = &self.broken {
            return Err(Refusal::Store(reason.clone()));
        }
        let (registry, engine) = (Arc::clone(&self.registry), Arc::clone(&self.engine));
        let had = changes.mark();
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

    /// Counts the batch against quotas, and says what it changes in the store.
    fn prepare(
        &mut self,
        updates: &[Update],
        names: &NamesOfBatch<'_>,
        (changes, undo): (&mut Changes, &mut Undo),
    ) -> Result<(), Refusal> {
        let durable = self.store.is_some();
        let counts = !self.engine.counts_tenants();
        if !durable && !counts {
            return Ok(());
        }
        for (index, update) in updates.iter().enumerate() {
            match update {
                Update::Insert(entry) | Update::Modify(entry) | Update::Put(entry) => {
                    let identity = identity_of(entry.into(), &self.shapes, names)
                        .map_err(|error| no_identity(index, error))?;
                    if durable {
                        changes.put(&identity, entry);
                    }
                    if counts {
                        let tenant = entry.tenant.as_deref();
                        self.holdings
                            .assign(identity, tenant, &self.quotas, undo)
                            .map_err(|over| over_quota(index, &over.tenant, over.most))?;
                    }
                }
                Update::Delete(name) => {
                    let identity = identity_of(name.into(), &self.shapes, names)
                        .map_err(|error| no_identity(index, error))?;
                    if durable {
                        changes.remove(&identity);
                    }
                    if counts {
                        self.release(identity, undo);
                    }
                }
                Update::Clear { table } => {
                    if durable {
                        changes.clear_table(table);
                    }
                    self.holdings.clear(table, undo);
                }
                other => {
                    if let Some((name, set)) = setting_of(other).filter(|_| durable) {
                        let json = set.then(|| encode(other)).transpose();
                        let json = json.map_err(|error| Refusal::Store(error.to_string()))?;
                        changes.set(name, json);
                    }
                }
            }
        }
        Ok(())
    }

    fn release(&mut self, identity: Identity, undo: &mut Undo) {
        // Giving an entry to nobody is never over anybody's quota.
        let _ = self.holdings.assign(identity, None, &self.quotas, undo);
    }

    fn take_back_failed(&mut self) {
        let failed = self.committer.as_ref().and_then(Committer::failed);
        if let Some((group, error)) = failed {
            self.take_back(group, &error);
        }
    }

    /// Nothing of the group is to have happened.
    fn take_back(&mut self, group: Group, error: &StoreError) {
        log::error!("tables cannot be changed any more: {error}");
        self.broken = Some(error.to_string());
        let back = match &self.store {
            Some(store) => restore::take_back(store, &group.changes),
            None => Ok(vec![]),
        };
        let names = NamesOfBatch::new(&self.registry);
        let undone = back.map_err(|error| error.to_string()).and_then(|back| {
            // In pieces: a table that was cleared may have had more than one batch may hold.
            back.chunks(MAX_BATCH_UPDATES).try_for_each(|piece| {
                self.engine
                    .restore(piece, &names, monotonic_now())
                    .map_err(|error| error.to_string())
            })
        });
        if let Err(reason) = undone {
            log::error!("changes that were refused are still in effect until a restart: {reason}");
        }
        for batch in group.batches.into_iter().rev() {
            self.holdings.take_back(batch.undo);
            let refusal = Refusal::Store(error.to_string());
            batch.reply.map(|reply| reply.send(Err(refusal)));
        }
    }

    fn expire(&mut self) {
        let expired = self.engine.expire(monotonic_now(), &*self.registry);
        if expired.is_empty() {
            return;
        }
        let tables = expired.iter().map(|name| name.table.clone());
        self.versions.count(tables.map(Versioned::Table));
        let mut changes = Changes::default();
        let mut undo = Undo::default();
        for name in &expired {
            if let Ok(identity) = identity_of(name.into(), &self.shapes, &*self.registry) {
                changes.remove(&identity);
                self.release(identity, &mut undo);
            }
        }
        if self.broken.is_some() {
            return;
        }
        let batch = Pending {
            updates: expired.len(),
            undo,
            reply: None,
        };
        self.hand_over(batch, changes);
    }

    fn discard_aside(&self) -> Result<usize, Refusal> {
        let Some(store) = &self.store else {
            return Ok(0);
        };
        let discard = || -> Result<usize, StoreError> {
            let count = store.aside()?.len();
            store.commit_aside(&Changes::default(), &[])?;
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
