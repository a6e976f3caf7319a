//! Takes frames of a batch to one port: picks its ring, locks it once, writes them all, publishes and notifies once.

use super::Shared;
use super::flow_hash::ring_of;
use super::frame::{BATCH_FRAMES, Batch};
use super::guest_rx::{Undelivered, Writer, Written};
use super::notify;
use super::ports::{Port, PortTable, TapPort, VhostQueues};
use super::queue::Queue;
use super::tap_rx;
use std::sync::Arc;
use switch_core::{DropReason, PortId, VlanEdit};

/// From where to where a run of frames goes.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The port they came from.
    pub from: PortId,
    /// The port they go to.
    pub to: PortId,
}

/// A frame of a run, and which of its port's rings it goes to.
#[derive(Clone, Copy, Debug)]
struct Pending {
    frame: usize,
    edit: VlanEdit,
    ring: u32,
}

/// A worker's means of delivery.
pub struct Courier {
    shared: Arc<Shared>,
    writer: Writer,
    /// The run in hand, for a port with several rings.
    run: Vec<Pending>,
    /// A frame in too many pieces for one system call.
    joined: Vec<u8>,
}

impl Courier {
    /// Nothing in hand.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            writer: Writer::default(),
            run: Vec::with_capacity(BATCH_FRAMES),
            joined: Vec::new(),
        }
    }

    /// Delivers the batch's `frames` (number and tag edit), in order.
    pub fn deliver(
        &mut self,
        ports: &PortTable,
        route: Route,
        batch: &mut Batch,
        frames: impl Iterator<Item = (usize, VlanEdit)> + Clone,
    ) {
        match ports.get(route.to) {
            Some(Port::Vhost(port)) => self.deliver_to_guest(port, batch, frames),
            Some(Port::Tap(port)) => self.deliver_to_tap(port, batch, frames),
            None => {
                if let Some(from) = ports.get(route.from) {
                    frames.for_each(|_| from.drops().add(DropReason::PortGone));
                }
            }
        }
    }

    fn deliver_to_guest(
        &mut self,
        port: &VhostQueues,
        batch: &mut Batch,
        frames: impl Iterator<Item = (usize, VlanEdit)> + Clone,
    ) {
        let rings = port.active_guest_rx();
        let lone = rings.pick(0).and_then(|pair| port.guest_rx(pair));
        match lone.filter(|_| rings.count() == 1) {
            Some(queue) if self.fill_ring(port, queue, batch, frames.clone()) => {}
            _ => self.spread_over_rings(port, batch, frames),
        }
    }

    /// Each flow to a ring of its own. A ring that was disabled or stopped since it was picked leaves its share to the others.
    fn spread_over_rings(
        &mut self,
        port: &VhostQueues,
        batch: &mut Batch,
        frames: impl Iterator<Item = (usize, VlanEdit)>,
    ) {
        let mut rings = port.active_guest_rx();
        let mut run = std::mem::take(&mut self.run);
        run.extend(frames.map(|(frame, edit)| Pending {
            frame,
            edit,
            ring: 0,
        }));
        while !run.is_empty() && rings.count() > 0 {
            for pending in &mut run {
                let len_bytes = batch
                    .frames
                    .get(pending.frame)
                    .map_or(0, |f| f.len_bytes as usize);
                let header = batch
                    .headers
                    .get(pending.frame)
                    .map_or(&[][..], |h| h.frame());
                pending.ring = ring_of(header, len_bytes, rings.count());
            }
            let mut left = rings;
            for nth in 0..rings.count() {
                let Some((pair, queue)) = rings
                    .pick(nth)
                    .and_then(|pair| Some((pair, port.guest_rx(pair)?)))
                else {
                    continue;
                };
                let mine = |pending: &&Pending| pending.ring == nth;
                if !run.iter().any(|pending| mine(&pending)) {
                    continue;
                }
                let frames = run
                    .iter()
                    .filter(mine)
                    .map(|pending| (pending.frame, pending.edit));
                if self.fill_ring(port, queue, batch, frames) {
                    run.retain(|pending| pending.ring != nth);
                } else {
                    left = left.without(pair);
                }
            }
            rings = left;
        }
        run.drain(..)
            .for_each(|_| port.drops.add(DropReason::RxRingNotReady));
        self.run = run;
    }

    /// Writes frames to one guest-rx ring; `false` when the ring is not to be written to, and nothing happened.
    fn fill_ring(
        &mut self,
        port: &VhostQueues,
        queue: &Queue,
        batch: &mut Batch,
        frames: impl Iterator<Item = (usize, VlanEdit)>,
    ) -> bool {
        let mut slot = queue.worker();
        // Asked with the slot held: once a front-end was told that the ring is disabled, nothing of it is touched.
        if slot.is_none() || !queue.is_enabled() {
            return false;
        }
        // Once a frame found no room, what is too long for this run is known: asking again for each frame would make a slow
        // guest expensive.
        let mut too_long = (u64::MAX, DropReason::RxRingFull);
        let mut written = Written::default();
        let mut broken = None;
        for (index, edit) in frames {
            let (Some(active), Some(frame), None) =
                (slot.as_mut(), batch.frames.get(index).copied(), broken)
            else {
                port.drops.add(DropReason::RxRingNotReady);
                continue;
            };
            let (room_bytes, reason) = too_long;
            if u64::from(frame.len_bytes) > room_bytes {
                port.drops.add(reason);
                continue;
            }
            let Some(out) = batch.outgoing(index, edit) else {
                continue;
            };
            match self
                .writer
                .write(active, out, port.max_frame_bytes, &mut written)
            {
                Ok(()) => {}
                Err(Undelivered::Dropped(reason)) => {
                    match reason {
                        DropReason::RxRingFull => too_long = (self.writer.room_bytes(), reason),
                        // A frame that is cut needs less room than its length.
                        DropReason::RxBufferTooSmall if frame.offload.segmentation.is_none() => {
                            too_long = (u64::from(frame.len_bytes).saturating_sub(1), reason);
                        }
                        _ => {}
                    }
                    port.drops.add(reason);
                }
                Err(Undelivered::Broken(error)) => {
                    port.drops.add(DropReason::BadChain);
                    broken = Some(error);
                }
            }
        }
        self.writer.finish();
        if let Some(active) = slot.as_mut() {
            queue.counters.frames.add(written.frames);
            queue.counters.bytes.add(written.bytes);
            notify::publish(&mut active.ring, &queue.counters);
        }
        if let Some(error) = broken {
            port.ring_stopped(queue.index);
            self.shared.break_ring(queue, &mut slot, error);
        }
        true
    }

    fn deliver_to_tap(
        &mut self,
        port: &TapPort,
        batch: &mut Batch,
        frames: impl Iterator<Item = (usize, VlanEdit)>,
    ) {
        let (mut delivered, mut bytes) = (0, 0);
        for (index, edit) in frames {
            let Some(out) = batch.outgoing(index, edit) else {
                continue;
            };
            match tap_rx::write(&port.tap, out, &mut self.joined) {
                Ok(written) => {
                    delivered += 1;
                    bytes += written;
                }
                Err(_) => port.drops.add(DropReason::UplinkError),
            }
        }
        let counters = port
            .to_host
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        counters.frames.add(delivered);
        counters.bytes.add(bytes);
    }
}
