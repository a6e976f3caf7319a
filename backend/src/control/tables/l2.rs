//! Ports' VLAN policies as entries of the tables that the program `l2` has.
//!
//! Under the default program, which is compiled in, the tables are there to look at: [`DefaultTables`] is the same program as data
//! beside the switch, whose stations it shares. It is filled when somebody looks, so that ports come and go without its cost.
//! Under another program that declares these tables, [`VlanEntries`] fills them before a port's first frame.
use super::super::PortId;
use super::engine::{
    KeyShape, ListedConnection, ListedCounter, ListedGroup, ListedMeter, ListedMulticast, Question,
    TableEngine,
};
use std::sync::{Arc, Mutex, PoisonError};
use switch_core::conntrack::ConntrackConfig;
use switch_core::engine::control::{
    EntryName, ListedEntry, ListedTable, PortNames, Trace, Update, WriteError, WriteErrorKind,
};
use switch_core::engine::model::Program;
use switch_core::engine::runtime::{Engine, EngineConfig, EngineError, MAX_UPDATES};
use switch_core::engine::validate::ValidProgram;
use switch_core::l2_entries::{Policies, changes};
use switch_core::{Millis, Switch, VlanPolicy};

/// The entries of an engine that follow from ports.
#[derive(Debug, Default)]
struct State {
    /// Of the ports there are.
    wanted: Policies,
    /// Of the ports whose entries the engine has.
    written: Policies,
}

/// Keeps the entries of an engine that follow from ports.
pub struct VlanEntries {
    engine: Arc<Engine>,
    state: Mutex<State>,
}

impl VlanEntries {
    /// Of no port yet.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self {
            engine,
            state: Mutex::default(),
        }
    }

    /// A port is there, or gone: what follows is in effect when this returns.
    ///
    /// # Errors
    /// What the engine says; nothing has changed then.
    pub fn put(&self, port: PortId, policy: Option<VlanPolicy>) -> Result<(), WriteError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.wanted.clone();
        note(&mut state.wanted, port, policy);
        self.write(&mut state)
            .inspect_err(|_| state.wanted = before)
    }

    /// A port is there, or gone: what follows is written by the next [`Self::settle`].
    pub fn note(&self, port: PortId, policy: Option<VlanPolicy>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        note(&mut state.wanted, port, policy);
    }

    /// Writes what was noted.
    pub fn settle(&self) -> Result<(), WriteError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(&mut state)
    }

    fn write(&self, state: &mut State) -> Result<(), WriteError> {
        if state.written == state.wanted {
            return Ok(());
        }
        let updates = changes(&state.written, &state.wanted);
        for piece in updates.chunks(MAX_UPDATES) {
            self.engine.write_derived(piece, &NoNames, Millis(0))?;
        }
        state.written = state.wanted.clone();
        Ok(())
    }
}

fn note(policies: &mut Policies, port: PortId, policy: Option<VlanPolicy>) {
    match policy {
        Some(policy) => policies.insert(port, policy),
        None => policies.remove(&port),
    };
}

/// Ports are named by number here.
struct NoNames;

impl PortNames for NoNames {
    fn id(&self, _: &str) -> Option<PortId> {
        None
    }

    fn name(&self, _: PortId) -> Option<String> {
        None
    }
}

/// The default program's tables, to look at.
pub struct DefaultTables {
    engine: Arc<Engine>,
    entries: VlanEntries,
}

impl DefaultTables {
    /// Beside `switch`, whose stations they are.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn new(program: ValidProgram, switch: &Switch) -> Result<Self, EngineError> {
        let config = EngineConfig {
            // It tracks no connections.
            conntrack: ConntrackConfig {
                capacity: 1,
                ..ConntrackConfig::default()
            },
            ..EngineConfig::default()
        };
        let engine = Arc::new(Engine::beside(program, config, switch)?);
        Ok(Self {
            entries: VlanEntries::new(Arc::clone(&engine)),
            engine,
        })
    }

    /// A port is there, or gone.
    pub fn note(&self, port: PortId, policy: Option<VlanPolicy>) {
        self.entries.note(port, policy);
    }

    fn settled(&self) -> &dyn TableEngine {
        if let Err(error) = self.entries.settle() {
            log::error!("the tables do not show every port: {error}");
        }
        &*self.engine
    }
}

impl TableEngine for DefaultTables {
    fn write(&self, _: &[Update], _: &dyn PortNames, _: Millis) -> Result<(), WriteError> {
        Err(WriteError {
            index: 0,
            place: "updates".to_owned(),
            kind: WriteErrorKind::Constant,
            reason: "the tables of the default program follow from the ports' configuration"
                .to_owned(),
            remedy: "change the ports, or run another program (`--program`) to change tables"
                .to_owned(),
        })
    }

    fn tables(&self, ports: &dyn PortNames) -> Vec<ListedTable> {
        self.settled().tables(ports)
    }

    fn key(&self, table: &str) -> Option<Vec<KeyShape>> {
        self.engine.key(table)
    }

    fn entries(
        &self,
        table: &str,
        after: Option<u64>,
        limit: usize,
        ports: &dyn PortNames,
    ) -> Result<Vec<ListedEntry>, WriteError> {
        self.settled().entries(table, after, limit, ports)
    }

    fn explain(
        &self,
        question: Question<'_>,
        ports: &dyn PortNames,
        now: Millis,
    ) -> Result<Trace, WriteError> {
        self.settled().explain(question, ports, now)
    }

    fn expire(&self, _: Millis, _: &dyn PortNames) -> Vec<EntryName> {
        // Stations are the switch's, and no entry goes by itself.
        vec![]
    }

    fn program(&self) -> &Program {
        TableEngine::program(&*self.engine)
    }

    fn p4info(&self) -> String {
        self.engine.p4info()
    }

    fn groups(&self, ports: &dyn PortNames) -> Vec<ListedGroup> {
        TableEngine::groups(&*self.engine, ports)
    }

    fn multicast(&self, ports: &dyn PortNames) -> Vec<ListedMulticast> {
        self.settled().multicast(ports)
    }

    fn meters(&self) -> Vec<ListedMeter> {
        TableEngine::meters(&*self.engine)
    }

    fn counters(&self, counter: &str, from: u32, limit: usize) -> Option<Vec<ListedCounter>> {
        TableEngine::counters(&*self.engine, counter, from, limit)
    }

    fn connections(&self, _: u32, _: usize, _: Millis) -> (Vec<ListedConnection>, Option<u32>) {
        (vec![], None)
    }
}
