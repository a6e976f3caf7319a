//! The rings of one vhost-user port, as the control thread handles them.

use super::frame::VNET_HEADER_BYTES;
use super::placement::{Source, Workers};
use super::ports::VhostQueues;
use super::queue::{ActiveRing, Queue};
use super::vnet_header::NetFeatures;
use super::worker::{Command, ControlFrame};
use super::{DatapathEvent, QueueIndex, Shared};
use crate::ring::{Direction, EventSink, EventSource, GuestMemory, Ring, RingConfig, RingError};
use std::sync::Arc;
use switch_core::DropReason;

/// Starts, changes and stops rings. Each call takes a ring from its worker for a bounded moment.
pub struct VhostPort {
    queues: Arc<VhostQueues>,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
}

impl VhostPort {
    pub(super) fn new(
        queues: Arc<VhostQueues>,
        shared: Arc<Shared>,
        workers: Arc<Workers>,
    ) -> Self {
        Self {
            queues,
            shared,
            workers,
        }
    }

    /// Checks and translates the ring's addresses and hands it to a worker, which polls it at least once. A running ring of the
    /// same index is replaced.
    ///
    /// # Errors
    /// Sizes or addresses that cannot be; an index the port does not have is a ring of no size.
    pub fn start_ring(
        &self,
        index: QueueIndex,
        memory: &Arc<GuestMemory>,
        config: RingConfig,
    ) -> Result<(), RingError> {
        let queue = self.queue(index).ok_or(RingError::BadSize(0))?;
        let features = NetFeatures::new(config.features);
        let direction = if index.is_guest_tx() {
            Direction::Readable
        } else {
            Direction::Writable
        };
        self.stop_ring(index);
        let ring = Ring::start(config, direction, memory)?;
        // Whoever served the ring before may have died between showing used buffers and telling the driver.
        ring.signal_call();
        let unread = DropReason::RingDiscarded.name();
        self.queues.drops.add_count(unread, ring.unread().into());
        queue.control(|slot| *slot = Some(ActiveRing::new(ring, features)));
        self.queues.update_active(queue);
        self.watch(queue);
        if memory.is_lost() {
            (self.shared.events)(DatapathEvent::MemoryLost {
                port: self.queues.id,
            });
        }
        Ok(())
    }

    /// Stops a ring; once this returns no worker touches it. Its base, or `None` when it was neither running nor broken by its
    /// driver since it was last started.
    pub fn stop_ring(&self, index: QueueIndex) -> Option<u32> {
        let queue = self.queue(index)?;
        let running = queue.control(Option::take);
        let broken = queue.take_broken_base();
        let base = running.map(|active| active.ring.stop()).or(broken);
        self.queues.update_active(queue);
        if index.is_guest_tx() {
            self.workers.forget(&Source::Ring(Arc::clone(queue)));
        }
        base
    }

    /// Lets frames through (VHOST_USER_SET_VRING_ENABLE 1); stays so across stop and start.
    pub fn enable_ring(&self, index: QueueIndex) {
        if let Some(queue) = self.queue(index) {
            queue.enable();
            self.queues.update_active(queue);
            self.watch(queue);
        }
    }

    /// Holds frames back (VHOST_USER_SET_VRING_ENABLE 0): what a guest sends waits in its ring, what is sent to it is dropped.
    pub fn disable_ring(&self, index: QueueIndex) {
        if let Some(queue) = self.queue(index) {
            queue.disable();
            self.queues.update_active(queue);
        }
    }

    /// Whether a ring runs.
    pub fn is_running(&self, index: QueueIndex) -> bool {
        self.queue(index)
            .is_some_and(|queue| queue.control(|slot| slot.is_some()))
    }

    /// Moves every running ring to another memory map. A ring that does not fit is stopped and named.
    pub fn replace_memory(&self, memory: &Arc<GuestMemory>) -> Vec<(QueueIndex, RingError)> {
        self.change_running(|active| active.ring.replace_memory(memory))
    }

    /// Has every running ring look its addresses up anew: once this returns, nothing of an earlier translation is used, but by the
    /// rings it names, which have lost a part of themselves and are to be stopped.
    pub fn forget_translations(&self) -> Vec<QueueIndex> {
        let mut lost = Vec::new();
        for queue in &self.queues.queues {
            let forget = |active: &mut ActiveRing| active.ring.forget_translations();
            if queue.control(|slot| slot.as_mut().map(forget)) == Some(false) {
                lost.push(queue.index);
            }
        }
        lost
    }

    /// Has rings that left chains where they were, because something was not available, looked at again. A guest whose first frame needs
    /// something has offered its buffers by then.
    pub fn look_again(&self) {
        for queue in &self.queues.queues {
            let waits = |active: &mut ActiveRing| {
                active.ask_for_first();
                active.ring.take_waits()
            };
            if queue.control(|slot| slot.as_mut().is_some_and(waits)) {
                self.watch(queue);
            }
        }
    }

    /// Asks for what the chains in a ring that has just started refer to, before they are needed.
    pub fn ask_ahead(&self, index: QueueIndex) {
        self.change(index, ActiveRing::ask_for_first);
    }

    /// Another call eventfd, signalled once.
    pub fn set_call(&self, index: QueueIndex, call: Option<Arc<EventSink>>) {
        self.change(index, |active| active.ring.set_call(call));
    }

    /// Another kick eventfd; the ring is polled once.
    pub fn set_kick(&self, index: QueueIndex, kick: Option<Arc<EventSource>>) {
        self.change(index, |active| active.ring.set_kick(kick));
        if let Some(queue) = self.queue(index) {
            self.watch(queue);
        }
    }

    /// Another error eventfd.
    pub fn set_error(&self, index: QueueIndex, error: Option<Arc<EventSink>>) {
        self.change(index, |active| active.ring.set_error(error));
    }

    /// Acked features for running rings: how the next batch is read, nothing else.
    pub fn set_features(&self, features: u64) -> Vec<(QueueIndex, RingError)> {
        self.change_running(|active| {
            active.features = NetFeatures::new(features);
            active.ring.set_features(features)
        })
    }

    /// Switches a frame (without virtio-net header) as if this port's guest had sent it; drops it when too many wait.
    pub fn inject(&self, frame: &[u8]) {
        let port = self.queues.id;
        let frame = ControlFrame {
            port,
            vnet_header: [0; VNET_HEADER_BYTES],
            bytes: frame.into(),
        };
        if !self.workers.hand_over(port, Command::Inject(frame)) {
            log::debug!("port {port}: a frame of its own was dropped, too many wait");
        }
    }

    fn queue(&self, index: QueueIndex) -> Option<&Arc<Queue>> {
        self.queues.queues.get(usize::from(index.0))
    }

    fn change(&self, index: QueueIndex, change: impl FnOnce(&mut ActiveRing)) {
        if let Some(queue) = self.queue(index) {
            queue.control(|slot| slot.as_mut().map(change));
        }
    }

    fn change_running(
        &self,
        change: impl Fn(&mut ActiveRing) -> Result<(), RingError>,
    ) -> Vec<(QueueIndex, RingError)> {
        let mut stopped = Vec::new();
        for queue in &self.queues.queues {
            queue.control(|slot| {
                let Some(Err(error)) = slot.as_mut().map(&change) else {
                    return;
                };
                queue.abandon(slot);
                stopped.push((queue.index, error));
            });
            self.queues.update_active(queue);
        }
        stopped
    }

    /// Has a worker look at a guest-tx ring, with the kick eventfd it has now.
    fn watch(&self, queue: &Arc<Queue>) {
        if queue.index.is_guest_tx() {
            self.workers.watch(&Source::Ring(Arc::clone(queue)));
        }
    }
}
