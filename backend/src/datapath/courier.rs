//! Takes frames of a batch to one port: picks its ring, locks it once, writes them all, publishes and notifies once.

use super::Shared;
use super::fair_share::Outcome;
use super::flow_hash::ring_of;
use super::frame::{BATCH_FRAMES, Batch, Frame, PLAIN_FRAME_HEADER_BYTES};
use super::guest_rx::{Undelivered, Writer, Written};
use super::notify;
use super::outbox::Parcel;
use super::ports::{Port, PortTable, TapPort, VhostQueues};
use super::queue::Queue;
use super::tap_rx;
use std::sync::Arc;
use switch_core::{DropReason, PortId};

/// From where to where a run of frames goes.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The port they came from.
    pub from: PortId,
    /// The port they go to.
    pub to: PortId,
}

/// A parcel of a run, and which of its port's rings it goes to.
#[derive(Clone, Copy, Debug)]
struct Pending {
    parcel: Parcel,
    ring: u32,
}

/// A worker's means of delivery.
pub struct Courier {
    shared: Arc<Shared>,
    writer: Writer,
    /// Who sent the run in hand.
    from: Option<PortId>,
    /// The run in hand, for a port with several rings.
    pending: Vec<Pending>,
    /// What of it goes to one of them.
    share: Vec<Parcel>,
    /// A frame in too many pieces for one system call.
    joined: Vec<u8>,
}

impl Courier {
    /// Nothing in hand.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            writer: Writer::default(),
            from: None,
            pending: Vec::with_capacity(BATCH_FRAMES),
            share: Vec::with_capacity(BATCH_FRAMES),
            joined: Vec::new(),
        }
    }

    /// Delivers the batch's frames that are in `run`, in order.
    pub fn deliver(&mut self, ports: &PortTable, route: Route, batch: &mut Batch, run: &[Parcel]) {
        self.from = Some(route.from);
        match ports.get(route.to) {
            Some(Port::Vhost(port)) => self.deliver_to_guest(port, batch, run),
            Some(Port::Tap(port)) => self.deliver_to_tap(port, batch, run),
            None => {
                if let Some(from) = ports.get(route.from) {
                    run.iter()
                        .for_each(|_| from.drops().add(DropReason::PortGone));
                }
            }
        }
    }

    fn deliver_to_guest(&mut self, port: &VhostQueues, batch: &mut Batch, run: &[Parcel]) {
        let rings = port.active_guest_rx();
        let lone = rings.pick(0).and_then(|pair| port.guest_rx(pair));
        match lone.filter(|_| rings.count() == 1) {
            Some(queue) if self.fill_ring(port, queue, batch, run) => {}
            _ => self.spread_over_rings(port, batch, run),
        }
    }

    /// Each flow to a ring of its own. A ring that was disabled or stopped since it was picked leaves its share to the others.
    fn spread_over_rings(&mut self, port: &VhostQueues, batch: &mut Batch, run: &[Parcel]) {
        let mut rings = port.active_guest_rx();
        let mut pending = std::mem::take(&mut self.pending);
        let mut share = std::mem::take(&mut self.share);
        pending.extend(run.iter().map(|&parcel| Pending { parcel, ring: 0 }));
        while !pending.is_empty() && rings.count() > 0 {
            for pending in &mut pending {
                let frame = pending.parcel.frame;
                let len_bytes = batch.frames.get(frame).map_or(0, |f| f.len_bytes as usize);
                let header = batch.headers.get(frame).map_or(&[][..], |h| h.frame());
                // Of some frames more is there: a flow's frames must all be told apart by the same bytes.
                let header = header.get(..PLAIN_FRAME_HEADER_BYTES).unwrap_or(header);
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
                share.clear();
                let mine = pending.iter().filter(|pending| pending.ring == nth);
                share.extend(mine.map(|pending| pending.parcel));
                if share.is_empty() {
                    continue;
                }
                if self.fill_ring(port, queue, batch, &share) {
                    pending.retain(|pending| pending.ring != nth);
                } else {
                    left = left.without(pair);
                }
            }
            rings = left;
        }
        pending
            .drain(..)
            .for_each(|_| port.drops.add(DropReason::RxRingNotReady));
        self.pending = pending;
        self.share = share;
    }

    /// Writes frames to one guest-rx ring; `false` when the ring is not to be written to, and nothing happened.
    fn fill_ring(
        &mut self,
        port: &VhostQueues,
        queue: &Queue,
        batch: &mut Batch,
        run: &[Parcel],
    ) -> bool {
        let mut slot = queue.worker();
        // Asked with the slot held: once a front-end was told that the ring is disabled, nothing of it is touched.
        let Some(active) = slot.as_mut().filter(|_| queue.is_enabled()) else {
            return false;
        };
        // Once a frame found no room, what is too long for this run is known: asking again for each frame would make a slow
        // guest expensive.
        let mut too_long = (u64::MAX, DropReason::RxRingFull);
        let mut written = Written::default();
        let mut broken = None;
        let mut outcome = Outcome::Room;
        let mut allowance = self
            .from
            .map_or(u64::MAX, |from| active.share.allowance(from));
        if allowance != u64::MAX && active.ring.offers_half() {
            allowance = u64::MAX;
        }
        self.writer.expect(run.len());
        for &parcel in run {
            let (room_bytes, reason) = too_long;
            if room_bytes != u64::MAX || broken.is_some() || written.bytes >= allowance {
                let len_bytes = batch.frames.get(parcel.frame).map_or(0, |f| f.len_bytes);
                if broken.is_some() {
                    port.drops.add(DropReason::RxRingNotReady);
                    continue;
                }
                if written.bytes >= allowance {
                    port.drops.add(DropReason::RxRingFull);
                    outcome = Outcome::Short;
                    continue;
                }
                if u64::from(len_bytes) > room_bytes {
                    port.drops.add(reason);
                    continue;
                }
            }
            let result =
                self.writer
                    .write(active, batch, parcel, port.max_frame_bytes, &mut written);
            match result {
                Ok(()) => {}
                Err(Undelivered::Dropped(reason)) => {
                    match reason {
                        DropReason::RxRingFull => {
                            too_long = (self.writer.room_bytes(), reason);
                            outcome = Outcome::Short;
                        }
                        DropReason::RxBufferTooSmall => {
                            // A frame that is cut needs less room than its length.
                            let whole = |f: &&Frame| f.offload.segmentation.is_none();
                            if let Some(f) = batch.frames.get(parcel.frame).filter(whole) {
                                too_long = (u64::from(f.len_bytes).saturating_sub(1), reason);
                            }
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
        self.writer.finish(active);
        if let Some(from) = self.from {
            active.share.note(from, written.bytes, outcome);
        }
        queue.counters.frames.add(written.frames);
        queue.counters.bytes.add(written.bytes);
        notify::publish(&mut active.ring, &queue.counters);
        // The next batch most likely brings as many.
        active.ring.prefetch_next(run.len());
        if let Some(error) = broken {
            port.ring_stopped(queue.index);
            self.shared.break_ring(queue, &mut slot, error);
        }
        true
    }

    fn deliver_to_tap(&mut self, port: &TapPort, batch: &mut Batch, run: &[Parcel]) {
        let (mut delivered, mut bytes) = (0, 0);
        for parcel in run {
            let Some(out) = batch.outgoing(parcel.frame, parcel.edit) else {
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
