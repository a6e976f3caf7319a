//! Typed requests to the control thread, each with the place for its reply, and the handle that sends them.
//!
//! Sent from the runtime that serves the admin socket, never blocking it: a queue that is full is an answer, not a wait.
use super::batch::{Batch, BatchError, Batched};
use super::config_diff::ConfigView;
use super::desired_ports::PortOrigin;
use super::engine::{PortHealth, StepError};
use super::events::EventBus;
use super::port_state::{NamedPort, PortStates};
use super::tags::{IfMatch, tag_of};
use super::{MAX_PORTS, PortId};
use crate::config::{ConfigFile, PortConfig, PortFields, PortName};
use crate::datapath::capture::{Bell, Capture, CaptureOptions};
use crate::datapath::{FlowLister, MoveError, PortCounters, QueueView, SourceStats, WorkerStats};
use crate::handover::give::{UpgradeRequest, Upgraded};
use crate::metrics::Stats;
use std::collections::BTreeMap;
use std::sync::mpsc::{SyncSender, TrySendError};
use switch_core::{DropReason, MacAddress, VlanId};
use tokio::sync::oneshot;

/// Where a reply goes.
pub type Reply<T> = oneshot::Sender<Result<T, CommandError>>;

/// Requests that may wait at one time.
pub const QUEUE_CAPACITY: usize = 64;

/// What can be asked of the control thread.
#[derive(Debug)]
pub enum Command {
    /// Is it alive?
    Ping(Reply<()>),
    /// Add a port.
    AddPort(PortConfig, Reply<AddOutcome>),
    /// Ports and table entries, all or nothing.
    Batch(Batch, oneshot::Sender<Result<Batched, BatchError>>),
    /// Remove a port, if it is as the client saw it.
    RemovePort(PortName, IfMatch, Reply<()>),
    /// Every port.
    ListPorts(Reply<Vec<PortView>>),
    /// One port.
    ShowPort(PortName, Reply<PortView>),
    /// Move a port, or one of its queue pairs, to a worker; `None`: wherever its load says.
    MovePort(PortName, Option<u16>, Option<usize>, Reply<Vec<SourceView>>),
    /// Every worker and what it serves.
    ListWorkers(Reply<WorkersView>),
    /// Every counter.
    Stats(Reply<Stats>),
    /// The latest frames that were dropped at a port.
    LastDrops(PortName, Reply<Vec<DropView>>),
    /// Every learnt address.
    Fdb(Reply<Vec<FdbEntry>>),
    /// A port, and where what is known of it comes from and goes to.
    PortStates(PortName, Reply<(NamedPort, PortStates)>),
    /// Start a capture of a port.
    Capture(PortName, CaptureOptions, Bell, Reply<Capture>),
    /// What lists the flows that workers remember.
    Flows(Reply<FlowLister>),
    /// What ports are called.
    PortNames(Reply<BTreeMap<PortId, PortName>>),
    /// What runs, and what the configuration file has.
    Config(Reply<ConfigView>),
    /// The configuration file was written anew.
    ConfigSaved(ConfigFile, Reply<()>),
    /// Hand everything over to another process.
    Upgrade(UpgradeRequest, Reply<Upgraded>),
    /// Drain and end.
    Stop(Reply<()>),
}

/// A port, as it is configured and as it fares.
#[derive(Clone, Debug)]
pub struct PortView {
    /// Its id.
    pub id: PortId,
    /// As asked for.
    pub config: PortConfig,
    /// Where it comes from.
    pub origin: PortOrigin,
    /// How it fares.
    pub health: PortHealth,
    /// Its counters.
    pub counters: PortCounters,
    /// Those of its queues.
    pub queues: Vec<QueueView>,
}

impl PortView {
    /// Tells this configuration of the port from all others; not its state, not its counters.
    pub fn tag(&self) -> String {
        port_tag(&self.config)
    }
}

/// See [`PortView::tag`].
pub fn port_tag(config: &PortConfig) -> String {
    tag_of(&PortFields::from(config))
}

/// A guest-tx ring or a TAP, and who serves it.
#[derive(Clone, Debug)]
pub struct SourceView {
    /// Its port.
    pub port: PortName,
    /// Where it is served, and what that costs.
    pub stats: SourceStats,
}

/// The workers and what they serve.
#[derive(Clone, Debug)]
pub struct WorkersView {
    /// By index.
    pub workers: Vec<WorkerStats>,
    /// By port id and pair.
    pub sources: Vec<SourceView>,
}

/// What adding a port came to.
#[derive(Clone, Debug)]
pub enum AddOutcome {
    /// It is there now.
    Added(PortView),
    /// The same port was there before.
    AlreadyThere(PortView),
}

/// A frame that was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropView {
    /// Since then.
    pub age_ms: u64,
    /// Why.
    pub reason: DropReason,
    /// The port it came from; `None`: one that is gone, or the control side.
    pub from: Option<PortName>,
    /// Its length; 0 when it was refused before it was read.
    pub frame_bytes: u32,
    /// Its first bytes.
    pub header: Vec<u8>,
}

/// One learnt address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The VLAN it was learnt in; `None`: that of ports without one.
    pub vlan: Option<VlanId>,
    /// The address.
    pub mac: MacAddress,
    /// The port it is behind.
    pub port: PortName,
    /// Since its last frame.
    pub age_ms: u64,
}

/// Why a request was not carried out. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Another port has this already.
    #[error("{reason}; {remedy}")]
    Conflict {
        /// `name`, `socket` or `interface`.
        field: &'static str,
        /// Which port has it.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// There is no such port.
    #[error("there is no port {0}")]
    NotFound(PortName),
    /// It is not as the client saw it.
    #[error("port {0} has changed since")]
    Changed(PortName),
    /// It stays where it is served.
    #[error(transparent)]
    NotMoved(#[from] MoveError),
    /// The outside world refused it.
    #[error(transparent)]
    Refused(StepError),
    /// What was asked for cannot be made durable.
    #[error("{0}")]
    Store(String),
    /// It cannot be captured.
    #[error("{0}")]
    NotCaptured(String),
    /// As many ports as there can be.
    #[error("there are {MAX_PORTS} ports already, which is the most")]
    Full,
    /// This process goes on.
    #[error("{0}")]
    NotUpgraded(String),
    /// Too many requests wait.
    #[error("the control thread has {QUEUE_CAPACITY} requests waiting")]
    Busy,
    /// The daemon is on its way out.
    #[error("the daemon is stopping")]
    Stopping,
}

/// Sends commands to the control thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    commands: SyncSender<Command>,
    events: EventBus,
}

impl ControlHandle {
    pub(super) fn new(commands: SyncSender<Command>, events: EventBus) -> Self {
        Self { commands, events }
    }

    /// What happens: to be listened to, and to be told.
    pub fn events(&self) -> &EventBus {
        &self.events
    }

    /// Answers when the control thread does.
    pub async fn ping(&self) -> Result<(), CommandError> {
        self.ask(Command::Ping).await
    }

    /// Adds a port. The same port again is no error.
    pub async fn add_port(&self, port: PortConfig) -> Result<AddOutcome, CommandError> {
        self.ask(|reply| Command::AddPort(port, reply)).await
    }

    /// Removes a port; when it answers, nothing of it is left.
    pub async fn remove_port(&self, name: PortName) -> Result<(), CommandError> {
        self.remove_port_if(name, IfMatch::default()).await
    }

    /// The same, if its configuration is as the client saw it.
    pub async fn remove_port_if(
        &self,
        name: PortName,
        if_match: IfMatch,
    ) -> Result<(), CommandError> {
        self.ask(|reply| Command::RemovePort(name, if_match, reply))
            .await
    }

    /// Every port, by id.
    pub async fn list_ports(&self) -> Result<Vec<PortView>, CommandError> {
        self.ask(Command::ListPorts).await
    }

    /// One port.
    pub async fn show_port(&self, name: PortName) -> Result<PortView, CommandError> {
        self.ask(|reply| Command::ShowPort(name, reply)).await
    }

    /// Moves a port, or one of its queue pairs, to a worker for good; without a worker, leaves it to the load again.
    pub async fn move_port(
        &self,
        name: PortName,
        pair: Option<u16>,
        worker: Option<usize>,
    ) -> Result<Vec<SourceView>, CommandError> {
        self.ask(|reply| Command::MovePort(name, pair, worker, reply))
            .await
    }

    /// The workers and what they serve.
    pub async fn list_workers(&self) -> Result<WorkersView, CommandError> {
        self.ask(Command::ListWorkers).await
    }

    /// Every counter.
    pub async fn stats(&self) -> Result<Stats, CommandError> {
        self.ask(Command::Stats).await
    }

    /// The latest frames that were dropped at a port, newest first.
    pub async fn last_drops(&self, name: PortName) -> Result<Vec<DropView>, CommandError> {
        self.ask(|reply| Command::LastDrops(name, reply)).await
    }

    /// A port, and where what is known of it comes from and goes to.
    pub async fn port_states(
        &self,
        name: PortName,
    ) -> Result<(NamedPort, PortStates), CommandError> {
        self.ask(|reply| Command::PortStates(name, reply)).await
    }

    /// Starts a capture of a port.
    pub async fn capture(
        &self,
        name: PortName,
        options: CaptureOptions,
        bell: Bell,
    ) -> Result<Capture, CommandError> {
        self.ask(|reply| Command::Capture(name, options, bell, reply))
            .await
    }

    /// What lists the flows that workers remember.
    pub async fn flows(&self) -> Result<FlowLister, CommandError> {
        self.ask(Command::Flows).await
    }

    /// What ports are called.
    pub async fn port_names(&self) -> Result<BTreeMap<PortId, PortName>, CommandError> {
        self.ask(Command::PortNames).await
    }

    /// Every learnt address.
    pub async fn fdb(&self) -> Result<Vec<FdbEntry>, CommandError> {
        self.ask(Command::Fdb).await
    }

    /// What runs, and what the configuration file has.
    pub async fn config(&self) -> Result<ConfigView, CommandError> {
        self.ask(Command::Config).await
    }

    /// The configuration file was written anew: what it says now is no change at run time any more. No port changes.
    pub async fn config_saved(&self, file: ConfigFile) -> Result<(), CommandError> {
        self.ask(|reply| Command::ConfigSaved(file, reply)).await
    }

    /// Hands everything over to another process. When it answers, that one serves all ports, and this one is to end.
    pub async fn upgrade(&self, request: UpgradeRequest) -> Result<Upgraded, CommandError> {
        self.ask(|reply| Command::Upgrade(request, reply)).await
    }

    /// Drains and ends the control thread.
    pub async fn stop(&self) -> Result<(), CommandError> {
        self.ask(Command::Stop).await
    }

    /// Ports and table entries, all or nothing.
    pub async fn batch(&self, batch: Batch) -> Result<Batched, BatchError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Batch(batch, reply))?;
        answer
            .await
            .unwrap_or(Err(BatchError::Whole(CommandError::Stopping)))
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.unwrap_or(Err(CommandError::Stopping))
    }

    fn send(&self, command: Command) -> Result<(), CommandError> {
        let sent = self.commands.try_send(command);
        sent.map_err(|error| match error {
            TrySendError::Full(_) => CommandError::Busy,
            TrySendError::Disconnected(_) => CommandError::Stopping,
        })
    }
}
