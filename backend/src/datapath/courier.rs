//! Takes frames of a batch to one port: picks its ring, locks it once, writes them all, publishes and notifies once.

use super::Shared;
use super::flow_hash::ring_of;
use super::frame::{BATCH_FRAMES, Batch, payload};
use super::guest_rx::{Outgoing, Undelivered, Writer};
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

/// A worker's means of delivery.
pub struct Courier {
    shared: Arc<Shared>,
    writer: Writer,
    /// Rings of the run in hand, by frame: computed once for a port with several.
    rings: [u32; BATCH_FRAMES],
    /// A frame in too many pieces for one system call.
    joined: Vec<u8>,
}

impl Courier {
    /// Nothing in hand.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            writer: Writer::default(),
            rings: [0; BATCH_FRAMES],
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
        match rings.count() {
            0 => frames.for_each(|_| port.drops.add(DropReason::RxRingNotReady)),
            1 => {
                if let Some(queue) = rings.pick(0).and_then(|pair| port.guest_rx(pair)) {
                    self.fill_ring(port, queue, batch, frames);
                }
            }
            count => {
                for (frame, _) in frames.clone() {
                    if let (Some(ring), Some(header)) =
                        (self.rings.get_mut(frame), batch.headers.get(frame))
                    {
                        *ring = ring_of(header.frame(), count);
                    }
                }
                let rings_of = self.rings;
                for nth in 0..count {
                    let mut mine = frames
                        .clone()
                        .filter(|(frame, _)| rings_of.get(*frame) == Some(&nth))
                        .peekable();
                    let Some(queue) = rings.pick(nth).and_then(|pair| port.guest_rx(pair)) else {
                        continue;
                    };
                    if mine.peek().is_some() {
                        self.fill_ring(port, queue, batch, mine);
                    }
                }
            }
        }
    }

    /// Writes frames to one guest-rx ring.
    fn fill_ring(
        &mut self,
        port: &VhostQueues,
        queue: &Queue,
        batch: &mut Batch,
        frames: impl Iterator<Item = (usize, VlanEdit)>,
    ) {
        let mut slot = queue.worker();
        // Once the ring ran out of buffers, what still fits is known: asking again for each frame would make a slow guest
        // expensive.
        let mut room_bytes = u64::MAX;
        let (mut delivered, mut bytes) = (0, 0);
        let mut broken = None;
        for (index, edit) in frames {
            let (Some(active), Some(frame), Some(header)) = (
                slot.as_mut(),
                batch.frames.get(index),
                batch.headers.get_mut(index),
            ) else {
                port.drops.add(DropReason::RxRingNotReady);
                continue;
            };
            if u64::from(frame.len_bytes) > room_bytes {
                port.drops.add(DropReason::RxRingFull);
                continue;
            }
            let out = Outgoing {
                header,
                payload: payload(&batch.arena, &batch.local, frame),
                payload_bytes: frame.rest_bytes,
                offload: frame.offload,
                edit,
            };
            match self.writer.write(active, out, port.max_frame_bytes) {
                Ok(written) => {
                    delivered += u64::from(written.frames);
                    bytes += written.bytes;
                }
                Err(Undelivered::Dropped(reason)) => {
                    if reason == DropReason::RxRingFull {
                        room_bytes = self.writer.room_bytes();
                    }
                    port.drops.add(reason);
                }
                Err(Undelivered::Broken(error)) => {
                    port.drops.add(DropReason::BadChain);
                    broken = Some(error);
                    break;
                }
            }
        }
        self.writer.finish();
        if let Some(active) = slot.as_mut() {
            queue.counters.frames.add(delivered);
            queue.counters.bytes.add(bytes);
            notify::publish(&mut active.ring, &queue.counters);
        }
        if let Some(error) = broken {
            port.ring_stopped(queue.index);
            self.shared.break_ring(queue, &mut slot, error);
        }
    }

    fn deliver_to_tap(
        &mut self,
        port: &TapPort,
        batch: &mut Batch,
        frames: impl Iterator<Item = (usize, VlanEdit)>,
    ) {
        let (mut delivered, mut bytes) = (0, 0);
        for (index, edit) in frames {
            let (Some(frame), Some(header)) =
                (batch.frames.get(index), batch.headers.get_mut(index))
            else {
                continue;
            };
            let out = Outgoing {
                header,
                payload: payload(&batch.arena, &batch.local, frame),
                payload_bytes: frame.rest_bytes,
                offload: frame.offload,
                edit,
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
