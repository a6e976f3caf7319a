//! The control thread: receives commands one at a time, and alone owns the port table and the engine.
//!
//! Started by the daemon, which hands it the ports to begin with; ends on [`Command::Stop`] or when every handle is gone.
use super::PortId;
use super::command::{
    Command, CommandError, ControlHandle, DropView, FdbEntry, QUEUE_CAPACITY, Reply, SourceView,
    WorkersView,
};
use super::desired_ports::DesiredPorts;
use super::engine::{Engine, Kept};
use super::events::EventBus;
use super::execute::ExecuteError;
use super::plan::PlanError;
use super::port_changes::WaitingPort;
use super::port_state::{NamedPort, PortStates};
use super::port_table::PortTable;
use super::tables::Tables;
use super::watch::Watched;
use crate::config::{PortConfig, PortName, SocketPath};
use crate::datapath::capture::{Bell, Capture, CaptureOptions, TooManyCaptures};
use crate::datapath::{Destination, DroppedFrame, SourceStats};
use crate::handover::give::{UpgradeRequest, Upgraded};
use crate::metrics::{PortStats, Stats};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use switch_core::MacEntry;

/// How often learnt addresses are looked through for those past their age.
const TICK: Duration = Duration::from_secs(1);
/// How often ports that could not be opened are tried again.
const RETRY: Duration = Duration::from_secs(5);

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

/// What the thread owns. What it does about ports: [`port_changes`](super::port_changes).
pub(super) struct Control<E> {
    pub(super) engine: E,
    pub(super) table: PortTable,
    /// The ports there shall be.
    pub(super) desired: DesiredPorts,
    /// Those of them that cannot be opened.
    pub(super) waiting: BTreeMap<PortName, WaitingPort>,
    /// The admin socket, which no port may take.
    pub(super) admin: SocketPath,
    /// Which gives port names their ids, where there are tables; otherwise ids are those of the plan.
    pub(super) tables: Option<Tables>,
    pub(super) events: EventBus,
    pub(super) watched: Watched,
    started: Instant,
}

impl ControlThread {
    /// Brings ports up, those that are configured all or none, then starts the thread. `table` has those that are up already. On an error
    /// the engine is stopped.
    pub fn start<E: Engine>(
        (engine, table): (E, PortTable),
        desired: DesiredPorts,
        admin: SocketPath,
        tables: Option<Tables>,
    ) -> Result<Self, StartError> {
        let mut control = Control {
            engine,
            table,
            desired,
            waiting: BTreeMap::new(),
            admin,
            tables,
            events: EventBus::default(),
            watched: Watched::default(),
            started: Instant::now(),
        };
        let events = control.events.clone();
        control.engine.tell(events.clone());
        if let Err(error) = control.bring_up() {
            control.engine.stop();
            return Err(error);
        }
        let (sender, commands) = sync_channel(QUEUE_CAPACITY);
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || control.run(&commands))
            .map_err(|error| StartError::Thread(error.to_string()))?;
        Ok(Self {
            handle: ControlHandle::new(sender, events),
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
    fn run(mut self, commands: &Receiver<Command>) {
        let mut next_tick = Instant::now() + TICK;
        let mut next_retry = Instant::now() + RETRY;
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
                self.watch();
                next_tick = Instant::now() + TICK;
            }
            if Instant::now() >= next_retry {
                self.retry_waiting();
                next_retry = Instant::now() + RETRY;
            }
        }
    }

    fn serve(&mut self, command: Command) {
        match command {
            Command::Ping(reply) => drop(reply.send(Ok(()))),
            Command::AddPort(port, reply) => drop(reply.send(self.add_port(port))),
            Command::Batch(batch, reply) => drop(reply.send(self.batch(batch))),
            Command::RemovePort(name, if_match, reply) => {
                drop(reply.send(self.remove_port(&name, &if_match)));
            }
            Command::ListPorts(reply) => drop(reply.send(Ok(self.list_ports()))),
            Command::ShowPort(name, reply) => drop(reply.send(self.show_port(&name))),
            Command::MovePort(name, pair, worker, reply) => {
                drop(reply.send(self.move_port(&name, pair, worker)));
            }
            Command::ListWorkers(reply) => drop(reply.send(Ok(self.list_workers()))),
            Command::Stats(reply) => drop(reply.send(Ok(self.stats()))),
            Command::LastDrops(name, reply) => drop(reply.send(self.last_drops(&name))),
            Command::PortStates(name, reply) => drop(reply.send(self.port_states(&name))),
            Command::Capture(name, options, bell, reply) => {
                drop(reply.send(self.capture(&name, options, bell)));
            }
            Command::Flows(reply) => {
                drop(reply.send(self.engine.flows().ok_or(CommandError::Stopping)));
            }
            Command::PortNames(reply) => drop(reply.send(Ok(self.port_names()))),
            Command::Fdb(reply) => drop(reply.send(Ok(self.fdb()))),
            Command::Config(reply) => drop(reply.send(Ok(self.config()))),
            Command::ConfigSaved(file, reply) => drop(reply.send(self.config_saved(file))),
            Command::Upgrade(request, reply) => self.upgrade(&request, reply),
            Command::Stop(reply) => drop(reply.send(Ok(()))),
        }
    }

    /// Answers once another process serves everything, and then never does anything again; or says why not.
    fn upgrade(&mut self, request: &UpgradeRequest, reply: Reply<Upgraded>) {
        let control = match self.desired.hand_over().map(serde_json::to_value) {
            Ok(Ok(control)) => control,
            Ok(Err(error)) => return drop(reply.send(Err(CommandError::Store(error.to_string())))),
            Err(error) => return drop(reply.send(Err(error.into()))),
        };
        let ports = self.table.iter().map(|(id, port)| (id, port.clone()));
        let kept = Kept {
            ports: ports.collect(),
            control,
        };
        log::info!("handing over to another process");
        let mut reply = Some(reply);
        let mut leave = |upgraded: Upgraded| {
            log::info!(
                "process {} serves all ports; nobody did for {} us",
                upgraded.pid,
                upgraded.gap.as_micros()
            );
            reply.take().map(|reply| reply.send(Ok(upgraded)));
            // The ports are another's: nothing here may touch them until the process ends.
            loop {
                std::thread::park();
            }
        };
        if let Err(error) = self.engine.upgrade(request, kept, &mut leave) {
            log::warn!("not upgraded: {error}");
            let refused = CommandError::NotUpgraded(error.to_string());
            reply.map(|reply| reply.send(Err(refused)));
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

    fn port_states(&self, name: &PortName) -> Result<(NamedPort, PortStates), CommandError> {
        let (id, port) = self
            .table
            .find(name)
            .ok_or_else(|| CommandError::NotFound(name.clone()))?;
        let name = port.name.clone();
        let states = self.engine.port_states().ok_or(CommandError::Stopping)?;
        Ok((NamedPort { id, name }, states))
    }

    fn capture(
        &self,
        name: &PortName,
        options: CaptureOptions,
        bell: Bell,
    ) -> Result<Capture, CommandError> {
        let (id, _) = self
            .table
            .find(name)
            .ok_or_else(|| CommandError::NotFound(name.clone()))?;
        let captures = self.engine.captures().ok_or(CommandError::Stopping)?;
        let refused = |error: TooManyCaptures| CommandError::NotCaptured(error.to_string());
        captures.start(id, options, bell).map_err(refused)
    }

    fn port_names(&self) -> BTreeMap<PortId, PortName> {
        let named = |(id, port): (PortId, &PortConfig)| (id, port.name.clone());
        self.table.iter().map(named).collect()
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
        let port = |(id, port): (PortId, &PortConfig)| {
            let summary = self.engine.summary(id);
            let (state, logging) = summary.unwrap_or_else(|| ("unknown".to_owned(), None));
            PortStats {
                name: port.name.clone(),
                counters: self.engine.counters(id),
                queues: self.engine.queues(id),
                state,
                logging,
            }
        };
        Stats {
            uptime: self.started.elapsed(),
            ports: self.table.iter().map(port).collect(),
            workers: self.engine.worker_stats(),
            profiles: self.engine.worker_profiles(),
            stations: self.engine.stations(),
        }
    }
}
