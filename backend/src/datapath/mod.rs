//! INTERFACE SKETCH (the integrator replaces this file): the data path as the control side sees it.
#![allow(missing_docs)]
use crate::ring::{EventSink, GuestMemory, RingConfig, RingError};
use std::sync::Arc;
use switch_core_sketch::{PortId, Switch};

/// Stand-ins until switch-core lands with the real ones (same names).
pub mod switch_core_sketch {
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct PortId(pub u16);
    pub struct Switch {}
}

#[derive(Clone, Debug)]
pub struct WorkerOptions {
    pub workers: usize,
    pub cpus: Vec<usize>,
    pub poll_us: u32,
}

/// vhost-user ring index: even = guest_rx, odd = guest_tx; pair = index / 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct QueueIndex(pub u16);

/// What a worker tells the control side, through the callback given to `Datapath::start` (called on a worker thread; must not block).
#[derive(Clone, Debug)]
pub enum DatapathEvent {
    /// The ring was stopped by a guest's fault; its error eventfd has been signalled.
    RingFault {
        port: PortId,
        queue: QueueIndex,
        error: RingError,
    },
    /// The front-end truncated its memory: detach the port.
    MemoryLost { port: PortId },
    /// A TAP's device vanished.
    UplinkLost { port: PortId, reason: String },
}

/// All workers and ports. Shared by `Arc`; every method is callable from any control thread and returns in bounded time.
pub struct Datapath {}

impl Datapath {
    pub fn start(
        _options: &WorkerOptions,
        _switch: Arc<Switch>,
        _events: Arc<dyn Fn(DatapathEvent) + Send + Sync>,
    ) -> std::io::Result<Arc<Self>> {
        unimplemented!()
    }
    pub fn add_vhost_port(&self, _id: PortId, _queue_pairs: u16) -> Arc<VhostPort> {
        unimplemented!()
    }
    pub fn add_tap_port(&self, _id: PortId, _tap: crate::port::tap::Tap) -> std::io::Result<()> {
        unimplemented!()
    }
    /// Stops its rings, leaves nothing of it in any worker.
    pub fn remove_port(&self, _id: PortId) {
        unimplemented!()
    }
    /// Per-port counters; `None` for an unknown port.
    pub fn counters(&self, _id: PortId) -> Option<PortCounters> {
        unimplemented!()
    }
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        unimplemented!()
    }
    /// Finishes the batch in hand, stops and joins the workers.
    pub fn stop(&self) {
        unimplemented!()
    }
}

#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct PortCounters {
    pub guest_tx_frames: u64,
    pub guest_tx_bytes: u64,
    pub guest_rx_frames: u64,
    pub guest_rx_bytes: u64,
    /// Drops by `DropReason::name()`; only non-zero ones.
    pub drops: Vec<(&'static str, u64)>,
    pub notifications_sent: u64,
    pub notifications_saved: u64,
}

#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct WorkerStats {
    pub frames: u64,
    pub batches: u64,
    pub sleeps: u64,
    pub busy_ns: u64,
}

/// The rings of one vhost-user port. Called by the control thread; each call takes the ring from its worker for a bounded moment.
pub struct VhostPort {}

impl VhostPort {
    /// Translates and checks the addresses, then hands the ring to a worker, which polls it once. Replaces a running ring of that index.
    pub fn start_ring(
        &self,
        _queue: QueueIndex,
        _memory: &Arc<GuestMemory>,
        _config: RingConfig,
    ) -> Result<(), RingError> {
        unimplemented!()
    }
    /// After it returns no worker touches the ring. The next available index, or `None` when it was not running.
    pub fn stop_ring(&self, _queue: QueueIndex) -> Option<u16> {
        unimplemented!()
    }
    /// SET_VRING_ENABLE; sticky across start and stop.
    pub fn enable_ring(&self, _queue: QueueIndex) {}
    pub fn disable_ring(&self, _queue: QueueIndex) {}
    pub fn is_running(&self, _queue: QueueIndex) -> bool {
        unimplemented!()
    }
    /// Re-translates every running ring into the new map. A ring that does not fit is stopped and reported.
    pub fn replace_memory(&self, _memory: &Arc<GuestMemory>) -> Vec<(QueueIndex, RingError)> {
        unimplemented!()
    }
    /// New call eventfd on a live ring: signalled once, since a notification may have gone to the old one.
    pub fn set_call(&self, _queue: QueueIndex, _call: Option<Arc<EventSink>>) {}
    pub fn set_kick(&self, _queue: QueueIndex, _kick: Option<Arc<EventSource>>) {}
    pub fn set_error(&self, _queue: QueueIndex, _error: Option<Arc<EventSink>>) {}
    /// SET_FEATURES on live rings: changes how the next batch is read, never indices or enablement.
    pub fn set_features(&self, _features: u64) {}
    /// Sends a frame (no virtio header) as if this port's guest had: SEND_RARP.
    pub fn inject(&self, _frame: &[u8]) {}
}
use crate::ring::EventSource;
