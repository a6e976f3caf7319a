//! Tables, as the admin socket and the control thread see them.
//!
//! Reading goes to the engine at once; changes go through a queue to the one thread of [`super::writer`].
use super::changes::Changes;
use super::committer::Committer;
use super::engine::{
    ListedConnection, ListedCounter, ListedGroup, ListedMeter, ListedMulticast, Question,
    TableEngine,
};
use super::port_names::PortRegistry;
use super::quota::{Holdings, Quotas};
use super::restore::{Place, Restored, restore};
use super::rows::Row;
use super::store::{Aside, Store, StoreError};
use super::versions::{Versioned, Versions};
use super::writer::{Beside, Job, Refusal, Shapes, Writer, Written, reclaim};
use crate::config::PortName;
use crate::control::PortId;
use crate::control::clock::monotonic_now;
use crate::control::tags::IfMatch;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use switch_core::engine::control::{
    ListedEntry, ListedTable, PortNames, Trace, Update, WriteError,
};
use switch_core::engine::model::Program;
use tokio::sync::oneshot;

/// Batches that may wait at one time.
pub const QUEUE_CAPACITY: usize = 256;

/// How long batches under way may take before tables are held.
const HOLD_PATIENCE: Duration = Duration::from_secs(5);

/// Tables stay as they are for as long as this is there.
#[derive(Debug)]
pub struct Held {
    _release: SyncSender<()>,
}

/// What an earlier process has left in place, so that the engine has it already.
#[derive(Debug, Default)]
pub struct InPlace {
    /// The numbers of port names.
    pub names: Vec<(PortName, PortId)>,
}

/// How tables are kept.
#[derive(Default)]
pub struct TablesOptions {
    /// Where they are durable; `None`: nowhere.
    pub store: Option<Arc<Store>>,
    /// How many entries each tenant may have.
    pub quotas: Quotas,
    /// The engine has everything from the process before.
    pub in_place: Option<InPlace>,
}

/// Tables at run time. Cheap to clone; every method may be called from any thread.
#[derive(Clone)]
pub struct Tables {
    engine: Arc<dyn TableEngine>,
    registry: Arc<PortRegistry>,
    store: Option<Arc<Store>>,
    jobs: SyncSender<Job>,
    versions: Arc<Versions>,
    restored: Restored,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Tables {
    /// Gives the engine what the store has, then starts the thread that changes tables.
    pub fn start(engine: Arc<dyn TableEngine>, options: TablesOptions) -> Result<Self, StoreError> {
        let store = options.store;
        let names = store.as_ref().map(|store| store.port_names()).transpose()?;
        let has_entries = options.in_place.is_some();
        let names = match options.in_place {
            Some(in_place) => in_place.names,
            None => names.unwrap_or_default().into_iter().collect(),
        };
        let registry = Arc::new(PortRegistry::with(names));
        let shapes: Shapes = engine
            .tables(&*registry)
            .into_iter()
            .filter_map(|table| Some((table.name.clone(), engine.key(&table.name)?)))
            .collect();
        let (holdings, restored) = match &store {
            None => (Holdings::default(), Restored::default()),
            Some(store) => {
                let place = Place {
                    shapes: &shapes,
                    now: monotonic_now(),
                    has_entries,
                };
                restore(store, &*engine, &registry, place)?
            }
        };
        if restored.aside > 0 {
            log::warn!(
                "{} entries or settings do not fit the program; they are kept aside: `ringswitch table aside` shows them",
                restored.aside
            );
        }
        let committer = store
            .as_ref()
            .map(|store| Committer::start(Arc::clone(store), Arc::clone(&registry)))
            .transpose()?;
        let versions = Arc::new(Versions::new());
        let writer = Writer {
            committer,
            engine: Arc::clone(&engine),
            registry: Arc::clone(&registry),
            store: store.clone(),
            shapes,
            holdings,
            quotas: options.quotas,
            versions: Arc::clone(&versions),
            broken: None,
        };
        let (jobs, queue) = sync_channel(QUEUE_CAPACITY);
        let thread = std::thread::Builder::new()
            .name("tables".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(|source| StoreError::Content(source.to_string()))?;
        Ok(Self {
            engine,
            registry,
            store,
            jobs,
            versions,
            restored,
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// What the start found in the store.
    pub fn restored(&self) -> Restored {
        self.restored
    }

    /// Whether changes outlive the process.
    pub fn durable(&self) -> bool {
        self.store.is_some()
    }

    /// Where changes are durable.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_deref()
    }

    /// Carries a batch out. When it answers, it is in effect, and durable if anything is.
    pub async fn write(&self, updates: Vec<Update>) -> Result<Written, Refusal> {
        self.ask(|reply| Job::Write(updates, reply)).await
    }

    /// Forgets what is kept aside. Returns how much that was.
    pub async fn discard_aside(&self) -> Result<usize, Refusal> {
        self.ask(Job::DiscardAside).await
    }

    /// As [`Self::write`], for a thread that may wait, of no runtime.
    pub fn write_waiting(&self, updates: Vec<Update>) -> Result<Written, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Write(updates, reply))?;
        answer.blocking_recv().unwrap_or(Err(Refusal::Stopping))
    }

    /// The same, if what is changed is as the client saw it.
    pub async fn write_if(
        &self,
        updates: Vec<Update>,
        if_match: IfMatch,
    ) -> Result<Written, Refusal> {
        let beside = Beside {
            if_match,
            ..Beside::default()
        };
        self.ask(|reply| Job::WriteWith(updates, beside, reply))
            .await
    }

    /// The tag of a table or of what else a program has, to be read before what it is of.
    pub fn tag(&self, of: &Versioned) -> String {
        self.versions.tag(of)
    }

    /// As [`Self::write`]; makes rows of ports durable in the same commit.
    pub(in crate::control) fn write_with(
        &self,
        updates: Vec<Update>,
        rows: Vec<Row>,
    ) -> Result<Written, Refusal> {
        let (reply, answer) = oneshot::channel();
        let beside = Beside {
            rows,
            ..Beside::default()
        };
        self.send(Job::WriteWith(updates, beside, reply))?;
        answer.blocking_recv().unwrap_or(Err(Refusal::Stopping))
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Job,
    ) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(job(reply))?;
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }

    fn send(&self, job: Job) -> Result<(), Refusal> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::Busy,
            TrySendError::Disconnected(_) => Refusal::Stopping,
        })
    }

    /// Every table.
    pub fn tables(&self) -> Vec<ListedTable> {
        self.engine.tables(&*self.registry)
    }

    /// One table.
    pub fn table(&self, name: &str) -> Option<ListedTable> {
        self.tables().into_iter().find(|table| table.name == name)
    }

    /// Entries of a table.
    pub fn entries(
        &self,
        table: &str,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<ListedEntry>, WriteError> {
        self.engine.entries(table, after, limit, &*self.registry)
    }

    /// What would happen to a frame from a port.
    pub fn explain(
        &self,
        in_port: PortId,
        frame: &[u8],
        what_if: &[Update],
    ) -> Result<Trace, WriteError> {
        let question = Question {
            in_port,
            frame,
            what_if,
        };
        self.engine
            .explain(question, &*self.registry, monotonic_now())
    }

    /// The program that runs.
    pub fn program(&self) -> &Program {
        self.engine.program()
    }

    /// Its P4Info document.
    pub fn p4info(&self) -> String {
        self.engine.p4info()
    }

    /// Weighted groups.
    pub fn groups(&self) -> Vec<ListedGroup> {
        self.engine.groups(&*self.registry)
    }

    /// Multicast groups.
    pub fn multicast(&self) -> Vec<ListedMulticast> {
        self.engine.multicast(&*self.registry)
    }

    /// Meters that have a rate.
    pub fn meters(&self) -> Vec<ListedMeter> {
        self.engine.meters()
    }

    /// Counters that are not zero.
    pub fn counters(&self, counter: &str, from: u32, limit: usize) -> Option<Vec<ListedCounter>> {
        self.engine.counters(counter, from, limit)
    }

    /// Tracked connections: see [`TableEngine::connections`].
    pub fn connections(&self, from: u32, limit: usize) -> (Vec<ListedConnection>, Option<u32>) {
        self.engine.connections(from, limit, monotonic_now())
    }

    /// What does not fit the program.
    pub fn aside(&self) -> Result<Vec<Aside>, StoreError> {
        match &self.store {
            Some(store) => store.aside(),
            None => Ok(vec![]),
        }
    }

    /// The number of a port's name, if it has one.
    pub fn port_id(&self, name: &PortName) -> Option<PortId> {
        self.registry.id(name.as_str())
    }

    /// The name of a port's number, if one has it.
    pub fn port_name(&self, id: PortId) -> Option<String> {
        self.registry.name(id)
    }

    /// The numbers of ports that are to be there, durable before they are used. `None` for a port: all numbers are taken. Called by
    /// the control thread; waits for a commit under way.
    pub fn reserve_ports(&self, names: &[PortName]) -> Result<Vec<Option<PortId>>, StoreError> {
        let mut ids: Vec<_> = names
            .iter()
            .map(|name| self.registry.reserve(name))
            .collect();
        if ids.contains(&None) && reclaim(&*self.engine, &self.registry) > 0 {
            ids = names
                .iter()
                .map(|name| self.registry.reserve(name))
                .collect();
        }
        let unsaved = self.registry.take_unsaved();
        if let Some(store) = &self.store
            && !unsaved.is_empty()
        {
            store
                .commit(&Changes::default(), &unsaved)
                .inspect_err(|_| self.registry.not_saved(unsaved))?;
        }
        Ok(ids)
    }

    /// A port is gone; its name keeps its number.
    pub fn port_gone(&self, name: &PortName) {
        self.registry.port_gone(name);
    }

    /// Keeps every table as it is until what is returned is dropped; batches wait meanwhile. Everything acknowledged is durable then.
    ///
    /// # Errors
    /// The thread that changes tables does not answer, in words.
    pub fn hold(&self) -> Result<Held, String> {
        let (held, is_held) = sync_channel(1);
        let (release, released) = sync_channel(0);
        self.jobs
            .try_send(Job::Hold(held, released))
            .map_err(|_| "too many batches wait; try again".to_owned())?;
        is_held
            .recv_timeout(HOLD_PATIENCE)
            .map_err(|_| "batches are still being written; try again".to_owned())?;
        Ok(Held { _release: release })
    }

    /// The names of ports, for what has to be resolved.
    pub fn names(&self) -> &dyn PortNames {
        &*self.registry
    }

    /// Every port name that has a number, those of ports that are gone included.
    pub fn port_numbers(&self) -> Vec<(PortName, PortId)> {
        self.registry.all()
    }

    /// Finishes the batches that wait, and ends the thread.
    pub fn stop(&self) {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // A queue that is full is being worked on: this waits for its turn.
            let _ = self.jobs.send(Job::Stop);
            if thread.join().is_err() {
                log::error!("the thread that changes tables had panicked");
            }
        }
    }
}
