//! Where the control thread and the workers meet: a ring in a slot.
//!
//! The control thread puts a started ring into its slot and takes it out again; a worker locks the slot once per batch. A
//! worker that polls without pause would win that lock for ever, so whoever wants it for control says so first
//! (`wanted`), and workers stay away until it is done. A holder's work is bounded: a batch for a worker, a translation for
//! control.
//!
//! Lock order: a worker holds at most one guest-tx slot and, inside it, one guest-rx slot at a time. Control holds one slot.

use super::counters::QueueCounters;
use super::fair_share::FairShare;
use super::placement::Placement;
use super::vnet_header::NetFeatures;
use crate::ring::{Ring, RingFill};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use switch_core::PortId;

/// A vhost-user ring index: even for guest-rx, odd for guest-tx; its pair is half of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct QueueIndex(pub u16);

impl QueueIndex {
    /// The queue pair it belongs to.
    pub fn pair(self) -> u16 {
        self.0 / 2
    }

    /// Whether the guest transmits on it.
    pub fn is_guest_tx(self) -> bool {
        self.0 % 2 == 1
    }
}

/// A started ring with what its batches need to know.
#[derive(Debug)]
pub struct ActiveRing {
    /// The virtqueue.
    pub ring: Ring,
    /// Acked features.
    pub features: NetFeatures,
    /// Who got how much of it while it was short of buffers.
    pub share: FairShare,
    /// What its first chains refer to was asked for.
    has_asked: bool,
}

impl ActiveRing {
    /// Nobody has served it yet.
    pub fn new(ring: Ring, features: NetFeatures) -> Self {
        Self {
            ring,
            features,
            share: FairShare::default(),
            has_asked: false,
        }
    }

    /// Asks for what the first chains refer to, once the driver has offered any: Linux does so after the ring has started, and a frame
    /// for a buffer that nobody asked for is dropped.
    pub fn ask_for_first(&mut self) {
        if !self.has_asked && self.ring.refresh().is_ok_and(|offered| offered) {
            self.has_asked = true;
            self.ring.ask_ahead();
        }
    }
}

/// No ring base.
const NO_BASE: u64 = u64::MAX;

/// One ring of one port, running or not. On cache lines of its own: a worker that serves it does not slow down those that serve its
/// neighbours.
#[derive(Debug)]
#[repr(align(128))]
pub struct Queue {
    /// The port it belongs to.
    pub port: PortId,
    /// Which of the port's rings it is.
    pub index: QueueIndex,
    /// Its traffic.
    pub counters: QueueCounters,
    /// Who serves it, if the guest transmits on it.
    pub placement: Placement,
    ring: Mutex<Option<ActiveRing>>,
    /// Where a ring that was broken by its driver came to, until it is asked for; [`NO_BASE`] otherwise.
    broken_at: AtomicU64,
    wanted: AtomicU32,
    enabled: AtomicBool,
}

impl Queue {
    /// A stopped, disabled queue.
    pub fn new(port: PortId, index: QueueIndex) -> Self {
        Self {
            port,
            index,
            counters: QueueCounters::default(),
            placement: Placement::default(),
            ring: Mutex::new(None),
            broken_at: AtomicU64::new(NO_BASE),
            wanted: AtomicU32::new(0),
            enabled: AtomicBool::new(false),
        }
    }

    /// Runs `change` on the slot, ahead of any worker. Control threads only.
    pub fn control<R>(&self, change: impl FnOnce(&mut Option<ActiveRing>) -> R) -> R {
        self.wanted.fetch_add(1, Ordering::SeqCst);
        let result = change(&mut self.lock());
        self.wanted.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// How full its ring is; `None`: it does not run. Control threads only.
    pub fn fill(&self) -> Option<RingFill> {
        self.control(|slot| slot.as_ref().map(|active| active.ring.fill()))
    }

    /// Takes a broken ring out of its slot and remembers where it came to. Called with the slot locked.
    pub fn abandon(&self, slot: &mut Option<ActiveRing>) {
        if let Some(active) = slot.take() {
            self.broken_at
                .store(active.ring.base().into(), Ordering::Release);
            active.ring.signal_error();
        }
    }

    /// The base of a broken ring; asked once.
    pub fn take_broken_base(&self) -> Option<u32> {
        u32::try_from(self.broken_at.swap(NO_BASE, Ordering::AcqRel)).ok()
    }

    /// The slot for one batch. Waits while the control thread has business with it. Workers only.
    #[inline]
    pub fn worker(&self) -> MutexGuard<'_, Option<ActiveRing>> {
        while self.wanted.load(Ordering::Relaxed) != 0 {
            std::thread::yield_now();
        }
        self.lock()
    }

    /// Whether the front-end enabled it (VHOST_USER_SET_VRING_ENABLE).
    #[inline]
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Enables the queue. Control threads only, under [`Self::control`]'s ordering: the next batch sees it.
    pub fn enable(&self) {
        self.enabled.store(true, Ordering::Release);
    }

    /// Disables the queue; once this returns, no batch of it is under way.
    pub fn disable(&self) {
        self.enabled.store(false, Ordering::Release);
        self.control(|_| ());
    }

    /// A panic elsewhere leaves a ring in a state that was valid when it was last written; the process is about to end anyway.
    fn lock(&self) -> MutexGuard<'_, Option<ActiveRing>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
