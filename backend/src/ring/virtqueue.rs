//! A started ring, split or packed as the driver asked, with the eventfds around it.
//!
//! The control thread builds a [`Ring`] when a front-end starts one; from then on whoever holds it (a worker, behind the lock
//! of its queue) takes chains out, gives them back in the same order, and decides about notifications in both directions.
//! What a driver did wrong is a [`RingError`]: the ring is then stopped, nothing else is.

use super::chain::{BurstEnd, BurstLimit, Chain, ChainHead, Direction};
use super::dirty_log::Marks;
use super::doorbell::{EventSink, EventSource};
use super::error::RingError;
use super::guest_memory::GuestMemory;
use super::packed::PackedRing;
use super::parts::RingAddresses;
use super::record::RingRecord;
use super::segment::SegmentArena;
use super::split::SplitRing;
use std::sync::Arc;
use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;

/// Largest ring (VIRTIO 1.3 §2.7, §2.8.10.1: "The maximum Queue Size value is 32768").
pub const MAX_RING_SIZE: u16 = 32_768;

/// All that is needed to start a ring.
#[derive(Debug)]
pub struct RingConfig {
    /// Entries, 1 to 32,768; a power of two unless the ring is packed.
    pub size: u16,
    /// Where its parts are.
    pub addresses: RingAddresses,
    /// Where to go on, as SET_VRING_BASE says it. Split: the next available index; the used index in memory wins when it disagrees.
    /// Packed: both indices with their wrap counters.
    pub base: u32,
    /// What the front-end believes `base` to be: by this a packed ring's record is known again.
    pub origin: u32,
    /// The front-end knows where the ring stopped last, or that it begins anew: its base wins over the record.
    pub base_is_final: bool,
    /// Where a packed ring keeps its position; without it there is none.
    pub record: Option<RingRecord>,
    /// Acked virtio features.
    pub features: u64,
    /// What the driver kicks; `None` when the front-end asked for polling.
    pub kick: Option<Arc<EventSource>>,
    /// What tells the driver about used buffers; `None` when it polls.
    pub call: Option<Arc<EventSink>>,
    /// Signalled when the ring is stopped by a [`RingError`].
    pub error: Option<Arc<EventSink>>,
}

/// How full a ring is at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFill {
    /// Its entries.
    pub size: u16,
    /// What the driver offers and nobody has taken: chains of a split ring, descriptors of a packed one; at most `size`.
    pub offered: u16,
}

/// Where a ring's chains come from.
#[derive(Debug)]
enum Kind {
    /// VIRTIO 1.3 §2.7.
    Split(SplitRing),
    /// VIRTIO 1.3 §2.8.
    Packed(PackedRing),
}

/// A started virtqueue, device side.
#[derive(Debug)]
pub struct Ring {
    kind: Kind,
    addresses: RingAddresses,
    kick: Option<Arc<EventSource>>,
    call: Option<Arc<EventSink>>,
    error: Option<Arc<EventSink>>,
}

impl Ring {
    /// Translates and checks the ring's parts, and takes up where the one who served it before left off.
    ///
    /// # Errors
    /// A size that no such ring has, or a part that is misaligned or not inside one region.
    pub fn start(
        mut config: RingConfig,
        direction: Direction,
        memory: &Arc<GuestMemory>,
    ) -> Result<Self, RingError> {
        let kind = if is_packed(config.features) {
            let record = config.record.take();
            let record = record.ok_or(RingError::Kind { packed: true })?;
            Kind::Packed(PackedRing::start(&config, record, direction, memory)?)
        } else {
            Kind::Split(SplitRing::start(&config, direction, memory)?)
        };
        Ok(Self {
            kind,
            addresses: config.addresses,
            kick: config.kick,
            call: config.call,
            error: config.error,
        })
    }

    /// Moves a running ring to another memory map. On error nothing has changed, and the ring must be stopped.
    pub fn replace_memory(&mut self, memory: &Arc<GuestMemory>) -> Result<(), RingError> {
        match &mut self.kind {
            Kind::Split(ring) => ring.replace_memory(&self.addresses, memory),
            Kind::Packed(ring) => ring.replace_memory(&self.addresses, memory),
        }
    }

    /// Applies acked features to a running ring; where it is stays.
    pub fn set_features(&mut self, features: u64) -> Result<(), RingError> {
        match (&mut self.kind, is_packed(features)) {
            (Kind::Split(ring), false) => ring.set_features(&self.addresses, features),
            (Kind::Packed(ring), true) => {
                ring.set_features(features);
                Ok(())
            }
            (_, packed) => Err(RingError::Kind { packed }),
        }
    }

    /// Lets go of the ring: asks for kicks, so that whoever serves it next hears of what comes, and tells where to go on.
    pub fn stop(self) -> u32 {
        match self.kind {
            Kind::Split(ring) => ring.stop(),
            Kind::Packed(ring) => ring.stop(),
        }
    }

    /// Chains that were given back unread when it was started: while nobody served the ring, the front-end gave back some behind them.
    pub fn unread(&self) -> u16 {
        match &self.kind {
            Kind::Split(_) => 0,
            Kind::Packed(ring) => ring.unread(),
        }
    }

    /// The memory map its addresses are in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        match &self.kind {
            Kind::Split(ring) => ring.memory(),
            Kind::Packed(ring) => ring.memory(),
        }
    }

    /// What was written to that and not told its log. Empty once used elements were published.
    #[inline(always)]
    pub fn marks(&mut self) -> &mut Marks {
        match &mut self.kind {
            Kind::Split(ring) => ring.marks(),
            Kind::Packed(ring) => ring.marks(),
        }
    }

    /// Where to go on, as GET_VRING_BASE tells it.
    pub fn base(&self) -> u32 {
        match &self.kind {
            Kind::Split(ring) => ring.base(),
            Kind::Packed(ring) => ring.base(),
        }
    }

    /// What the driver kicks.
    pub fn kick(&self) -> Option<&Arc<EventSource>> {
        self.kick.as_ref()
    }

    /// Another kick eventfd.
    pub fn set_kick(&mut self, kick: Option<Arc<EventSource>>) {
        self.kick = kick;
    }

    /// Another call eventfd, signalled once: a notification may have gone to the old one unheard.
    pub fn set_call(&mut self, call: Option<Arc<EventSink>>) {
        self.call = call;
        self.signal_call();
    }

    /// Another error eventfd.
    pub fn set_error(&mut self, error: Option<Arc<EventSink>>) {
        self.error = error;
    }

    /// Tells the front-end that the ring is broken (vhost-user: VHOST_USER_SET_VRING_ERR).
    pub fn signal_error(&self) {
        if let Some(error) = &self.error {
            error.signal();
        }
    }

    /// Notifies the driver without asking whether it wants to be; `false` when it gave no eventfd for that.
    pub fn signal_call(&self) -> bool {
        let Some(call) = &self.call else { return false };
        call.signal();
        true
    }

    /// Looks for what the driver added; whether any chain waits.
    ///
    /// # Errors
    /// The driver offers more than the ring holds.
    #[inline]
    pub fn refresh(&mut self) -> Result<bool, RingError> {
        match &mut self.kind {
            Kind::Split(ring) => ring.refresh().map(|waiting| waiting > 0),
            Kind::Packed(ring) => Ok(ring.refresh()),
        }
    }

    /// How full it is, as its driver has it now. Changes nothing: an index that cannot be counts as full, and is reported when a chain is
    /// taken.
    pub fn fill(&self) -> RingFill {
        match &self.kind {
            Kind::Split(ring) => ring.fill(),
            Kind::Packed(ring) => ring.fill(),
        }
    }

    /// Whether the driver offers at least half as many chains as the ring has places.
    pub fn offers_half(&mut self) -> bool {
        match &mut self.kind {
            Kind::Split(ring) => ring.offers_half(),
            Kind::Packed(ring) => ring.offers_half(),
        }
    }

    /// Takes the chains that wait, up to `limit`: adds them to `chains` and their segments to `arena`, and asks the caches for what
    /// their first bytes will be in. The ring is asked for new ones only when all that were seen before are taken, and once.
    ///
    /// # Errors
    /// Whatever is wrong with the chain after those that were added; it is still in the ring, and the ring must be stopped.
    #[inline]
    pub fn take_burst(
        &mut self,
        arena: &mut SegmentArena,
        chains: &mut Vec<Chain>,
        limit: BurstLimit,
    ) -> Result<BurstEnd, RingError> {
        match &mut self.kind {
            Kind::Split(ring) => ring.take_burst(arena, chains, limit),
            Kind::Packed(ring) => ring.take_burst(arena, chains, limit),
        }
    }

    /// Asks for what the chains that wait refer to, as far as that is not available; a batch of them at most.
    pub fn ask_ahead(&mut self) {
        match &mut self.kind {
            Kind::Split(ring) => ring.ask_ahead(),
            Kind::Packed(ring) => ring.ask_ahead(),
        }
    }

    /// Has every address looked up anew from now on. `false` when a part of the ring itself is not where it was: the ring must then
    /// be stopped.
    pub fn forget_translations(&mut self) -> bool {
        match &mut self.kind {
            Kind::Split(ring) => ring.forget_translations(&self.addresses),
            Kind::Packed(ring) => ring.forget_translations(&self.addresses),
        }
    }

    /// Whether memory that it lies or works in was truncated by the front-end.
    pub fn is_lost(&self) -> bool {
        match &self.kind {
            Kind::Split(ring) => ring.is_lost(),
            Kind::Packed(ring) => ring.is_lost(),
        }
    }

    /// Whether a chain was left in the ring because something was not available, since this was asked last.
    pub fn take_waits(&mut self) -> bool {
        match &mut self.kind {
            Kind::Split(ring) => ring.take_waits(),
            Kind::Packed(ring) => ring.take_waits(),
        }
    }

    /// Asks for what taking `count` chains more will read: the caches, and whoever else has to be asked.
    #[inline]
    pub fn prefetch_next(&mut self, count: usize) {
        if self.memory().is_patient() {
            self.ask_ahead();
        }
        match &self.kind {
            Kind::Split(ring) => ring.prefetch_next(count),
            Kind::Packed(ring) => ring.prefetch_next(count),
        }
    }

    /// Gives the chains taken last back to the driver's side, unused: as many as have `places` places together.
    pub fn undo_take(&mut self, places: u16) {
        match &mut self.kind {
            Kind::Split(ring) => ring.undo_take(places),
            Kind::Packed(ring) => ring.undo_take(places),
        }
    }

    /// Hands a chain back to the driver, `written_bytes` of it filled; chains go back in the order they were taken in. Not seen
    /// before [`Self::publish_used`].
    #[inline]
    pub fn push_used(&mut self, head: ChainHead, written_bytes: u32) {
        match &mut self.kind {
            Kind::Split(ring) => ring.push_used(head.id, written_bytes),
            Kind::Packed(ring) => ring.push_used(head, written_bytes),
        }
    }

    /// Shows the driver everything pushed so far; whether it wants a notification, or `None` when there was nothing new.
    #[inline]
    #[must_use]
    pub fn publish_used(&mut self) -> Option<bool> {
        match &mut self.kind {
            Kind::Split(ring) => ring.publish_used(),
            Kind::Packed(ring) => ring.publish_used(),
        }
    }

    /// Asks the driver to kick for the next chain; whether some wait already.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub fn arm_notification(&mut self) -> Result<bool, RingError> {
        match &mut self.kind {
            Kind::Split(ring) => ring.arm_notification(),
            Kind::Packed(ring) => Ok(ring.arm_notification()),
        }
    }

    /// Asks the driver not to kick while the ring is being polled.
    pub fn suppress_kicks(&mut self) {
        match &mut self.kind {
            Kind::Split(ring) => ring.suppress_kicks(),
            Kind::Packed(ring) => ring.suppress_kicks(),
        }
    }

    /// [`Self::suppress_kicks`] for a ring that was armed, now that it has work.
    #[inline]
    pub fn disarm(&mut self) {
        match &mut self.kind {
            Kind::Split(ring) => ring.disarm(),
            Kind::Packed(ring) => ring.disarm(),
        }
    }
}

/// Whether RING_PACKED is among acked features.
pub fn is_packed(features: u64) -> bool {
    features & 1 << VIRTIO_F_RING_PACKED != 0
}
