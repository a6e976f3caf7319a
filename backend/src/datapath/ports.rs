//! The ports that workers deliver to, as one immutable table that the control thread replaces.
//!
//! A worker picks up the current table once a batch. A frame for a port that was removed meanwhile finds nothing under its
//! id, or a queue without a ring.

use super::carried::{CarriedTraffic, PortTotals};
use super::counters::{PortCounters, QueueCounters, QueueView};
use super::last_drops::PortDrops;
use super::placement::Placement;
use super::queue::{Queue, QueueIndex};
use super::stream_port::StreamPort;
use crate::port::tap::Tap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use switch_core::PortId;

/// Queue pairs a port may have: one bit of a word for each guest-rx ring.
pub const MAX_QUEUE_PAIRS: u16 = 64;

/// The rings of one vhost-user port.
#[derive(Debug)]
pub struct VhostQueues {
    /// The port.
    pub id: PortId,
    /// By ring index.
    pub queues: Box<[Arc<Queue>]>,
    /// Guest-rx rings that run and are enabled, a bit a pair.
    active_guest_rx: AtomicU64,
    /// What it had elsewhere.
    pub carried: CarriedTraffic,
    /// Why frames from or for it were dropped.
    pub drops: PortDrops,
    /// Longest frame the port takes, from its MTU.
    pub max_frame_bytes: u32,
}

impl VhostQueues {
    /// Stopped queues for `queue_pairs` pairs.
    pub fn new(id: PortId, queue_pairs: u16, max_frame_bytes: u32) -> Self {
        let rings = 2 * queue_pairs.clamp(1, MAX_QUEUE_PAIRS);
        Self {
            id,
            queues: (0..rings)
                .map(|index| Arc::new(Queue::new(id, QueueIndex(index))))
                .collect(),
            active_guest_rx: AtomicU64::new(0),
            carried: CarriedTraffic::default(),
            drops: PortDrops::default(),
            max_frame_bytes,
        }
    }

    /// The guest-rx rings that can be delivered to.
    #[inline]
    pub fn active_guest_rx(&self) -> ActivePairs {
        ActivePairs(self.active_guest_rx.load(Ordering::Acquire))
    }

    /// The guest-rx ring of a pair.
    #[inline]
    pub fn guest_rx(&self, pair: u32) -> Option<&Arc<Queue>> {
        self.queues.get(2 * pair as usize)
    }

    /// Notes that a ring was stopped by the worker that holds it.
    pub fn ring_stopped(&self, index: QueueIndex) {
        self.active_guest_rx
            .fetch_and(!(1 << index.pair()), Ordering::Release);
    }

    /// Notes whether a guest-rx ring may be delivered to.
    pub fn update_active(&self, queue: &Queue) {
        if queue.index.is_guest_tx() {
            return;
        }
        // With the slot held, as a worker that breaks the ring does it: the two cannot overtake each other.
        queue.control(|ring| {
            if ring.is_some() && queue.is_enabled() {
                let bit = 1u64 << queue.index.pair();
                self.active_guest_rx.fetch_or(bit, Ordering::Release);
            } else {
                self.ring_stopped(queue.index);
            }
        });
    }
}

/// Pairs whose guest-rx ring runs and is enabled.
#[derive(Clone, Copy, Debug)]
pub struct ActivePairs(u64);

impl ActivePairs {
    /// How many.
    #[inline]
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// All but one of them.
    #[inline]
    pub fn without(self, pair: u32) -> Self {
        Self(self.0 & !(1 << pair))
    }

    /// The `n`th of them, counted from 0.
    #[inline]
    pub fn pick(self, n: u32) -> Option<u32> {
        let mut rest = self.0;
        for _ in 0..n {
            rest &= rest.wrapping_sub(1);
        }
        (rest != 0).then(|| rest.trailing_zeros())
    }
}

/// A TAP interface with its traffic.
#[derive(Debug)]
pub struct TapPort {
    /// The port.
    pub id: PortId,
    /// Who reads it.
    pub placement: Placement,
    /// The open interface.
    pub tap: Tap,
    /// Frames the host sent into the switch. One worker reads the TAP, so it alone writes these.
    pub from_host: QueueCounters,
    /// Frames delivered to the host; any worker may, so these are behind a lock taken once a batch.
    pub to_host: std::sync::Mutex<QueueCounters>,
    /// What it had elsewhere.
    pub carried: CarriedTraffic,
    /// Why frames from or for it were dropped.
    pub drops: PortDrops,
}

/// A port to deliver to.
#[derive(Clone, Debug)]
pub enum Port {
    /// A VM's NIC.
    Vhost(Arc<VhostQueues>),
    /// The host's network stack.
    Tap(Arc<TapPort>),
    /// A VM's NIC behind a stream socket.
    Stream(Arc<StreamPort>),
}

impl Port {
    /// Why frames from or for it were dropped.
    #[inline]
    pub fn drops(&self) -> &PortDrops {
        match self {
            Self::Vhost(port) => &port.drops,
            Self::Tap(port) => &port.drops,
            Self::Stream(port) => &port.drops,
        }
    }

    fn carried(&self) -> &CarriedTraffic {
        match self {
            Self::Vhost(port) => &port.carried,
            Self::Tap(port) => &port.carried,
            Self::Stream(port) => &port.carried,
        }
    }

    /// Lets its counters go on from what the port had elsewhere. Reasons of drops that are not known here are left out.
    pub fn add_totals(&self, totals: &PortTotals) {
        self.carried().add(totals);
        for (reason, count) in &totals.drops {
            self.drops().add_count(reason, *count);
        }
    }

    /// Sums over its queues.
    pub fn counters(&self) -> PortCounters {
        let mut sum = PortCounters {
            drops: self.drops().nonzero(),
            ..PortCounters::default()
        };
        match self {
            Self::Vhost(port) => {
                for queue in &port.queues {
                    add(&mut sum, &queue.counters, queue.index.is_guest_tx());
                }
            }
            Self::Tap(port) => {
                add(&mut sum, &port.from_host, true);
                add(
                    &mut sum,
                    &port
                        .to_host
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner),
                    false,
                );
            }
            Self::Stream(port) => {
                add(&mut sum, &port.from_peer, true);
                add(&mut sum, &port.to_peer, false);
            }
        }
        self.carried().add_to(&mut sum);
        sum
    }
}

impl Port {
    /// Counters of its queues, in the order of their pairs, and how full their rings are: each is taken from its worker for a moment.
    pub fn queues(&self) -> Vec<QueueView> {
        match self {
            Self::Vhost(port) => {
                let queues = port.queues.iter();
                let view = |queue: &Arc<Queue>| {
                    let index = queue.index;
                    let counters = queue.counters.view(index.pair(), index.is_guest_tx());
                    QueueView {
                        fill: queue.fill(),
                        ..counters
                    }
                };
                queues.map(view).collect()
            }
            Self::Tap(port) => {
                let to_host = port.to_host.lock();
                let to_host = to_host.unwrap_or_else(std::sync::PoisonError::into_inner);
                vec![to_host.view(0, false), port.from_host.view(0, true)]
            }
            Self::Stream(port) => vec![port.to_peer.view(0, false), port.from_peer.view(0, true)],
        }
    }
}

fn add(sum: &mut PortCounters, queue: &QueueCounters, guest_tx: bool) {
    let (frames, bytes) = if guest_tx {
        (&mut sum.guest_tx_frames, &mut sum.guest_tx_bytes)
    } else {
        (&mut sum.guest_rx_frames, &mut sum.guest_rx_bytes)
    };
    *frames += queue.frames.get();
    *bytes += queue.bytes.get();
    sum.notifications_sent += queue.notifications_sent.get();
    sum.notifications_saved += queue.notifications_saved.get();
    sum.busy_ns += queue.busy_ns.get();
}

/// All ports by id.
#[derive(Clone, Debug, Default)]
pub struct PortTable(Vec<Option<Port>>);

impl PortTable {
    /// The port, if it is there.
    #[inline]
    pub fn get(&self, id: PortId) -> Option<&Port> {
        self.0.get(id.index())?.as_ref()
    }

    /// The vhost-user ports.
    pub fn vhost_ports(&self) -> impl Iterator<Item = &Arc<VhostQueues>> {
        self.0.iter().flatten().filter_map(|port| match port {
            Port::Vhost(port) => Some(port),
            Port::Tap(_) | Port::Stream(_) => None,
        })
    }

    /// Every port.
    pub fn iter(&self) -> impl Iterator<Item = &Port> {
        self.0.iter().flatten()
    }

    /// This table with `port` under `id`.
    pub fn with(&self, id: PortId, port: Option<Port>) -> Self {
        let mut ports = self.0.clone();
        if ports.len() <= id.index() {
            ports.resize(id.index() + 1, None);
        }
        if let Some(slot) = ports.get_mut(id.index()) {
            *slot = port;
        }
        Self(ports)
    }
}
