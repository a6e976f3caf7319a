//! Everything control can do to the outside world, so that tests can put a recording double in its place.
use super::PortId;
use super::events::EventBus;
use super::plan::Step;
use super::port_state::PortStates;
use crate::config::PortConfig;
use crate::datapath::capture::Captures;
use crate::datapath::{
    Destination, DroppedFrame, FlowLister, MoveError, PortCounters, QueueView, SourceStats,
    WorkerProfile, WorkerStats,
};
use crate::device::status::LoggingStatus;
use crate::handover::give::{UpgradeError, UpgradeRequest, Upgraded};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use switch_core::{MacEntry, MacMoves, MacStats, Millis};

/// A step that the outside world refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct StepError {
    /// The field of the port's configuration that caused it.
    pub field: &'static str,
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

/// How a port fares, as its own side tells it.
#[derive(Clone, Debug)]
pub struct PortHealth {
    /// One word: `up`, `listening`, `faulted`...
    pub state: String,
    /// In words, when there is something to say.
    pub reason: Option<String>,
    /// The whole device state as JSON, for a vhost-user port.
    pub device: Option<serde_json::Value>,
}

/// What the control thread keeps of its own, for the process that follows.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Every port there is.
    pub ports: Vec<(PortId, PortConfig)>,
    /// The ports there shall be.
    pub control: serde_json::Value,
}

/// The outside world. Called on the control thread only; every method returns in bounded time.
pub trait Engine: Send + 'static {
    /// Carries out one step. A step that fails has left nothing behind.
    fn apply(&mut self, step: &Step) -> Result<(), StepError>;
    /// How a port fares; `None` for an unknown one.
    fn health(&self, id: PortId) -> Option<PortHealth>;
    /// A port's counters; zeros for an unknown one.
    fn counters(&self, id: PortId) -> PortCounters;
    /// Those of its queues; none for an unknown one.
    fn queues(&self, _id: PortId) -> Vec<QueueView> {
        Vec::new()
    }
    /// How a port fares in one word, and the migration that written pages are marked for; `None` for an unknown one.
    fn summary(&self, id: PortId) -> Option<(String, Option<LoggingStatus>)> {
        self.health(id).map(|health| (health.state, None))
    }
    /// What every worker's batches are like.
    fn worker_profiles(&self) -> Vec<WorkerProfile> {
        Vec::new()
    }
    /// How many stations were learned.
    fn stations(&self) -> MacStats {
        MacStats::default()
    }
    /// The counters of every worker.
    fn worker_stats(&self) -> Vec<WorkerStats>;
    /// Who serves which guest-tx ring or TAP.
    fn sources(&self) -> Vec<SourceStats>;
    /// Has a port's sources, or that of one pair, served elsewhere.
    fn move_sources(
        &mut self,
        id: PortId,
        pair: Option<u16>,
        destination: Destination,
    ) -> Result<Vec<SourceStats>, MoveError>;
    /// The latest frames that were dropped at a port, oldest first, and what time it is by the clock that they were noted with.
    fn last_drops(&self, id: PortId) -> (Millis, Vec<DroppedFrame>);
    /// Every learnt address.
    fn fdb(&self) -> Vec<MacEntry>;
    /// Where what is known of ports comes from and goes to; `None`: nothing can be carried over.
    fn port_states(&self) -> Option<PortStates> {
        None
    }
    /// Where to tell what happens to ports, from now on.
    fn tell(&mut self, _events: EventBus) {}
    /// Ports whose writes are marked for a migration, and how that goes.
    fn migrations(&self) -> Vec<(PortId, LoggingStatus)> {
        vec![]
    }
    /// Ports whose interface is gone, and why.
    fn lost_uplinks(&self) -> BTreeMap<PortId, String> {
        BTreeMap::new()
    }
    /// Stations that have moved to another port since the last time.
    fn mac_moves(&mut self) -> MacMoves {
        MacMoves::default()
    }
    /// Where captures of ports are started; `None`: nothing can be captured.
    fn captures(&self) -> Option<Arc<Captures>> {
        None
    }
    /// What lists the flows that workers remember; `None`: there are no workers.
    fn flows(&self) -> Option<FlowLister> {
        None
    }
    /// Called about once a second: forgets addresses past their age, relieves overloaded workers.
    fn tick(&mut self);
    /// Hands everything over to another process. On success `leave` is called, which does not return before this process ends.
    ///
    /// # Errors
    /// See [`UpgradeError`]; everything is as before.
    fn upgrade(
        &mut self,
        _request: &UpgradeRequest,
        _kept: Kept,
        _leave: &mut dyn FnMut(Upgraded),
    ) -> Result<(), UpgradeError> {
        Err(UpgradeError::Channel(io::ErrorKind::Unsupported.into()))
    }
    /// Stops sessions, then workers after the batch in hand; removes the ports' sockets.
    fn stop(&mut self);
}
