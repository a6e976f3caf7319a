//! The control thread: receives commands one at a time, and alone owns the port table and the engine.
//!
//! Started by the daemon, which hands it the ports to begin with; ends on [`Command::Stop`] or when every handle is gone.
use super::PortId;
use super::command::{
    AddOutcome, Command, CommandError, ControlHandle, DropView, FdbEntry, PortView, QUEUE_CAPACITY,
    SourceView, WorkersView,
};
use super::engine::{Engine, PortHealth};
use super::execute::{ExecuteError, execute};
use super::plan::{self, PlanError};
use super::port_table::PortTable;
use super::tables::Tables;
use crate::config::{PortConfig, PortName, SocketPath};
use crate::datapath::{Destination, DroppedFrame, SourceStats};
use crate::metrics::{PortStats, Stats};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use switch_core::MacEntry;

/// How often learnt addresses are looked through for those past their age.
const TICK: Duration = Duration::from_secs(1);

/// The ports to begin with cannot all come up. Nothing of them is left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Two of them collide, or there are too many.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// One of them was refused.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    /// A port's number cannot be made durable.
    #[error("{0}")]
    Ids(String),
    /// The thread itself.
    #[error("the control thread cannot be started: {0}")]
    Thread(String),
}

/// The running thread.
#[derive(Debug)]
pub struct ControlThread {
    handle: ControlHandle,
    thread: JoinHandle<()>,
}

/// What the thread owns.
struct Control<E> {
    engine: E,
    table: PortTable,
    /// The admin socket, which no port may take.
    admin: SocketPath,
    /// Which gives port names their ids, where there are tables; otherwise ids are those of the plan.
    tables: Option<Tables>,
    started: Instant,
}

impl ControlThread {
    /// Brings `ports` up, all or none, then starts the thread. On an error the engine is stopped.
    pub fn start<E: Engine>(
        engine: E,
        ports: &[PortConfig],
        admin: SocketPath,
        tables: Option<Tables>,
    ) -> Result<Self, StartError> {
        let mut control = Control {
            engine,
            table: PortTable::default(),
            admin,
            tables,
            started: Instant::now(),
        };
        if let Err(error) = control.bring_up(ports) {
            control.engine.stop();
            return Err(error);
        }
        let (sender, commands) = sync_channel(QUEUE_CAPACITY);
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || control.run(&commands))
            .map_err(|error| StartError::Thread(error.to_string()))?;
        Ok(Self {
            handle: ControlHandle::new(sender),
            thread,
        })
    }

    /// A handle to send commands with.
    pub fn handle(&self) -> ControlHandle {
        self.handle.clone()
    }

    /// Waits for its end, after [`ControlHandle::stop`].
    pub fn join(self) {
        drop(self.handle);
        if self.thread.join().is_err() {
            log::error!("the control thread had panicked");
        }
    }
}

impl<E: Engine> Control<E> {
    fn bring_up(&mut self, ports: &[PortConfig]) -> Result<(), StartError> {
        let reserved = self.reserve(ports)?;
        let changes = plan::plan(&self.table, ports, &reserved)?;
        Ok(execute(&mut self.engine, &mut self.table, &changes)?)
    }

    /// The ids that the names of ports have for good.
    fn reserve(&self, ports: &[PortConfig]) -> Result<BTreeMap<PortName, PortId>, StartError> {
        let Some(tables) = &self.tables else {
            return Ok(BTreeMap::new());
        };
        let names: Vec<PortName> = ports.iter().map(|port| port.name.clone()).collect();
        let ids = tables
            .reserve_ports(&names)
            .map_err(|error| StartError::Ids(error.to_string()))?;
        names
            .into_iter()
            .zip(ids)
            .map(|(name, id)| Ok((name, id.ok_or(PlanError::Full)?)))
            .collect()
    }

    fn run(mut self, commands: &Receiver<Command>) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            match commands.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(Command::Stop(reply)) => {
                    self.engine.stop();
                    // A client that has gone needs no answer; so below.
                    let _ = reply.send(Ok(()));
                    return;
                }
                Ok(command) => self.serve(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.engine.stop();
                    return;
                }
            }
            if Instant::now() >= next_tick {
                self.engine.tick();
                next_tick = Instant::now() + TICK;
            }
        }
    }

    fn serve(&mut self, command: Command) {
        match command {
            Command::Ping(reply) => drop(reply.send(Ok(()))),
            Command::AddPort(port, reply) => drop(reply.send(self.add_port(port))),
            Command::RemovePort(name, reply) => drop(reply.send(self.remove_port(&name))),
            Command::ListPorts(reply) => drop(reply.send(Ok(self.list_ports()))),
            Command::ShowPort(name, reply) => drop(reply.send(self.show_port(&name))),
            Command::MovePort(name, pair, worker, reply) => {
                drop(reply.send(self.move_port(&name, pair, worker)));
            }
            Command::ListWorkers(reply) => drop(reply.send(Ok(self.list_workers()))),
            Command::Stats(reply) => drop(reply.send(Ok(self.stats()))),
            Command::LastDrops(name, reply) => drop(reply.send(self.last_drops(&name))),
            Command::Fdb(reply) => drop(reply.send(Ok(self.fdb()))),
            Command::Stop(reply) => drop(reply.send(Ok(()))),
        }
    }

    fn add_port(&mut self, port: PortConfig) -> Result<AddOutcome, CommandError> {
        match self.table.find(&port.name) {
            Some((id, present)) if *present == port => {
                return Ok(AddOutcome::AlreadyThere(self.view(id, present)));
            }
            _ => {}
        }
        if port.socket() == Some(&self.admin) {
            return Err(CommandError::Conflict {
                field: "socket",
                reason: format!("{} is the admin socket", self.admin),
                remedy: "use another path".to_owned(),
            });
        }
        let name = port.name.clone();
        let desired: Vec<PortConfig> = self
            .table
            .iter()
            .map(|(_, port)| port.clone())
            .chain([port])
            .collect();
        if let Err(error) = self.change_to(&desired) {
            if let (Some(tables), None) = (&self.tables, self.table.find(&name)) {
                tables.port_gone(&name);
            }
            return Err(error);
        }
        log::info!("port {name} added");
        self.show_port(&name).map(AddOutcome::Added)
    }

    fn remove_port(&mut self, name: &PortName) -> Result<(), CommandError> {
        if self.table.find(name).is_none() {
            return Err(CommandError::NotFound(name.clone()));
        }
        let desired: Vec<PortConfig> = self
            .table
            .iter()
            .filter(|(_, port)| port.name != *name)
            .map(|(_, port)| port.clone())
            .collect();
        self.change_to(&desired)?;
        if let Some(tables) = &self.tables {
            tables.port_gone(name);
        }
        log::info!("port {name} removed");
        Ok(())
    }

    fn change_to(&mut self, desired: &[PortConfig]) -> Result<(), CommandError> {
        let refused = |error| match error {
            PlanError::Collision { field, other, .. } => conflict(field, &other),
            PlanError::Full => CommandError::Full,
        };
        // What collides takes no number.
        plan::plan(&self.table, desired, &BTreeMap::new()).map_err(refused)?;
        let reserved = self.reserve(desired).map_err(|error| match error {
            StartError::Plan(error) => refused(error),
            other => CommandError::Store(other.to_string()),
        })?;
        let changes = plan::plan(&self.table, desired, &reserved).map_err(refused)?;
        execute(&mut self.engine, &mut self.table, &changes)
            .map_err(|failed| CommandError::Refused(failed.error))
    }

    fn list_ports(&self) -> Vec<PortView> {
        self.table
            .iter()
            .map(|(id, port)| self.view(id, port))
            .collect()
    }

    fn show_port(&self, name: &PortName) -> Result<PortView, CommandError> {
        let (id, port) = self
            .table
            .find(name)
            .ok_or_else(|| CommandError::NotFound(name.clone()))?;
        Ok(self.view(id, port))
    }

    fn view(&self, id: PortId, port: &PortConfig) -> PortView {
        let gone = || PortHealth {
            state: "faulted".to_owned(),
            reason: Some("its thread does not know it".to_owned()),
            device: None,
        };
        PortView {
            id,
            config: port.clone(),
            health: self.engine.health(id).unwrap_or_else(gone),
            counters: self.engine.counters(id),
        }
    }

    fn move_port(
        &mut self,
        name: &PortName,
        pair: Option<u16>,
        worker: Option<usize>,
    ) -> Result<Vec<SourceView>, CommandError> {
        let (id, _) = self
            .table
            .find(name)
            .ok_or_else(|| CommandError::NotFound(name.clone()))?;
        let destination = worker.map_or(Destination::Automatic, Destination::Pinned);
        let moved = self.engine.move_sources(id, pair, destination)?;
        Ok(self.named(moved))
    }

    fn list_workers(&self) -> WorkersView {
        WorkersView {
            workers: self.engine.worker_stats(),
            sources: self.named(self.engine.sources()),
        }
    }

    fn named(&self, sources: Vec<SourceStats>) -> Vec<SourceView> {
        let named = |stats: SourceStats| {
            let port = self.table.get(stats.source.port)?.name.clone();
            Some(SourceView { port, stats })
        };
        sources.into_iter().filter_map(named).collect()
    }

    fn last_drops(&self, name: &PortName) -> Result<Vec<DropView>, CommandError> {
        let (id, _) = self
            .table
            .find(name)
            .ok_or_else(|| CommandError::NotFound(name.clone()))?;
        let (now, frames) = self.engine.last_drops(id);
        let view = |frame: DroppedFrame| DropView {
            age_ms: now.0.saturating_sub(frame.at.0),
            reason: frame.reason,
            from: frame
                .in_port
                .and_then(|port| Some(self.table.get(port)?.name.clone())),
            frame_bytes: frame.len_bytes,
            header: frame.header,
        };
        Ok(frames.into_iter().rev().map(view).collect())
    }

    fn fdb(&self) -> Vec<FdbEntry> {
        let named = |entry: MacEntry| {
            let port = self.table.get(entry.port)?.name.clone();
            Some(FdbEntry {
                vlan: entry.vlan,
                mac: entry.mac,
                port,
                age_ms: entry.age.0,
            })
        };
        self.engine.fdb().into_iter().filter_map(named).collect()
    }

    fn stats(&self) -> Stats {
        let port = |(id, port): (PortId, &PortConfig)| PortStats {
            name: port.name.clone(),
            counters: self.engine.counters(id),
        };
        Stats {
            uptime: self.started.elapsed(),
            ports: self.table.iter().map(port).collect(),
            workers: self.engine.worker_stats(),
        }
    }
}

fn conflict(field: &'static str, other: &PortName) -> CommandError {
    let (reason, remedy) = match field {
        "name" => (
            format!("port {other} is there already, with another configuration"),
            "choose another name".to_owned(),
        ),
        _ => (
            format!("port {other} has it already"),
            format!("choose another {field}"),
        ),
    };
    CommandError::Conflict {
        field,
        reason,
        remedy: format!("{remedy}, or remove port {other} first"),
    }
}
