//! Takes frames of a batch to one port: picks its ring, locks it once, writes them all, publishes and notifies once.

use super::Shared;
use super::capture::{Direction, Onlookers};
use super::fair_share::Outcome;
use super::flow_hash::ring_of;
use super::frame::{Batch, Frame, PLAIN_FRAME_HEADER_BYTES};
use super::guest_rx::{Undelivered, Writer, Written};
use super::last_drops::{DROPPED_HEADER_BYTES, Dropped, PortDrops};
use super::notify;
use super::outbox::{PARCELS, Parcel};
use super::ports::{Port, PortTable, TapPort, VhostQueues};
use super::queue::Queue;
use super::stream_port::StreamPort;
use super::stream_rx::StreamWriter;
use super::tap_rx::{TapWriter, ToHost};
use std::sync::Arc;
use switch_core::{DropReason, HeaderEdit, Millis, Outcomes, PortId};

/// Where a batch comes from, and what its delivery needs to know.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    /// The ports there are.
    pub ports: &'a PortTable,
    /// The one its frames came from; `None`: the control side.
    pub from: Option<PortId>,
    /// What its verdicts refer to.
    pub outcomes: &'a Outcomes,
    /// The time.
    pub now: Millis,
    /// Those who capture, if there are any.
    pub onlookers: Option<&'a Onlookers>,
}

impl Origin<'_> {
    /// Counts, records and shows a frame of the batch that was dropped, at the port that caused it.
    #[inline]
    pub fn drop(
        &self,
        (port, drops): (PortId, &PortDrops),
        frame: (&Batch, usize),
        reason: DropReason,
    ) {
        if let Some(onlookers) = self.onlookers {
            let direction = if self.from == Some(port) {
                Direction::In
            } else {
                Direction::Out
            };
            onlookers.dropped((port, direction), frame, reason);
        }
        self.note_drop(drops, frame, reason);
    }

    /// Tells those who capture of a frame that was delivered.
    #[inline]
    fn delivered(&self, to: PortId, parcel: (&Batch, Parcel)) {
        if let Some(onlookers) = self.onlookers {
            onlookers.delivered(to, self.from, parcel, self.outcomes);
        }
    }

    fn note_drop(&self, at: &PortDrops, (batch, frame): (&Batch, usize), reason: DropReason) {
        let dropped = Dropped {
            at: self.now,
            in_port: self.from,
            len_bytes: batch.frames.get(frame).map_or(0, |f| f.len_bytes),
            header: |room: &mut [u8; DROPPED_HEADER_BYTES]| batch.read_start(frame, room),
        };
        at.add(reason, dropped);
    }

    /// The same, at the port it came from.
    #[inline]
    pub fn drop_at_source(&self, frame: (&Batch, usize), reason: DropReason) {
        if let Some((from, port)) = self
            .from
            .and_then(|from| Some((from, self.ports.get(from)?)))
        {
            self.drop((from, port.drops()), frame, reason);
        }
    }

    /// The same for a frame that was decided to be dropped: those who capture know already.
    #[inline]
    pub fn drop_as_decided(&self, frame: (&Batch, usize), reason: DropReason) {
        if let Some(port) = self.from.and_then(|from| self.ports.get(from)) {
            self.note_drop(port.drops(), frame, reason);
        }
    }
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
    /// The run in hand, for a port with several rings.
    pending: Vec<Pending>,
    /// What of it goes to one of them.
    share: Vec<Parcel>,
    tap_writer: TapWriter,
    stream_writer: StreamWriter,
}

impl Courier {
    /// Nothing in hand.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            writer: Writer::default(),
            pending: Vec::with_capacity(PARCELS),
            share: Vec::with_capacity(PARCELS),
            tap_writer: TapWriter::default(),
            stream_writer: StreamWriter::default(),
        }
    }

    /// Delivers the batch's frames that are in `run` to one port, in order.
    pub fn deliver(&mut self, origin: &Origin<'_>, to: PortId, batch: &mut Batch, run: &[Parcel]) {
        match origin.ports.get(to) {
            Some(Port::Vhost(port)) => self.deliver_to_guest(origin, port, batch, run),
            Some(Port::Tap(port)) => self.deliver_to_tap(origin, port, batch, run),
            Some(Port::Stream(port)) => self.deliver_to_stream(origin, port, batch, run),
            None => {
                for parcel in run {
                    origin.drop_at_source((batch, parcel.frame), DropReason::PortGone);
                }
            }
        }
    }

    fn deliver_to_guest(
        &mut self,
        origin: &Origin<'_>,
        port: &VhostQueues,
        batch: &mut Batch,
        run: &[Parcel],
    ) {
        let rings = port.active_guest_rx();
        let lone = rings.pick(0).and_then(|pair| port.guest_rx(pair));
        match lone.filter(|_| rings.count() == 1) {
            Some(queue) if self.fill_ring(origin, (port, queue), batch, run) => {}
            _ => self.spread_over_rings(origin, port, batch, run),
        }
    }

    /// Each flow to a ring of its own. A ring that was disabled or stopped since it was picked leaves its share to the others.
    ///
    /// By its header as it came, which tells flows apart as well as the edited one does, and is there before the edit is.
    fn spread_over_rings(
        &mut self,
        origin: &Origin<'_>,
        port: &VhostQueues,
        batch: &mut Batch,
        run: &[Parcel],
    ) {
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
                if self.fill_ring(origin, (port, queue), batch, &share) {
                    pending.retain(|pending| pending.ring != nth);
                } else {
                    left = left.without(pair);
                }
            }
            rings = left;
        }
        for pending in pending.drain(..) {
            let frame = (&*batch, pending.parcel.frame);
            origin.drop((port.id, &port.drops), frame, DropReason::RxRingNotReady);
        }
        self.pending = pending;
        self.share = share;
    }

    /// Writes frames to one guest-rx ring; `false` when the ring is not to be written to, and nothing happened.
    fn fill_ring(
        &mut self,
        origin: &Origin<'_>,
        (port, queue): (&VhostQueues, &Queue),
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
        let mut allowance = origin
            .from
            .map_or(u64::MAX, |from| active.share.allowance(from));
        if allowance != u64::MAX && active.ring.offers_half() {
            allowance = u64::MAX;
        }
        self.writer.expect(run.len(), port.max_frame_bytes);
        for &parcel in run {
            let (room_bytes, reason) = too_long;
            if room_bytes != u64::MAX || broken.is_some() || written.bytes >= allowance {
                let len_bytes = batch.frames.get(parcel.frame).map_or(0, |f| f.len_bytes);
                let refused = if broken.is_some() {
                    Some(DropReason::RxRingNotReady)
                } else if written.bytes >= allowance {
                    outcome = Outcome::Short;
                    Some(DropReason::RxRingFull)
                } else {
                    (u64::from(len_bytes) > room_bytes && keeps_length(parcel)).then_some(reason)
                };
                if let Some(reason) = refused {
                    origin.drop((port.id, &port.drops), (batch, parcel.frame), reason);
                    continue;
                }
            }
            let frames = (&mut *batch, origin.outcomes);
            match self.writer.write(active, frames, parcel, &mut written) {
                Ok(()) => origin.delivered(port.id, (batch, parcel)),
                Err(Undelivered::Dropped(reason)) => {
                    match reason {
                        DropReason::RxRingFull => {
                            too_long = (self.writer.room_bytes(), reason);
                            outcome = Outcome::Short;
                        }
                        DropReason::RxBufferTooSmall => {
                            // A frame that is cut needs less room than its length.
                            let whole = |f: &&Frame| f.offload.segmentation.is_none();
                            if let Some(f) = batch.frames.get(parcel.frame).filter(whole)
                                && keeps_length(parcel)
                            {
                                too_long = (u64::from(f.len_bytes).saturating_sub(1), reason);
                            }
                        }
                        _ => {}
                    }
                    origin.drop((port.id, &port.drops), (batch, parcel.frame), reason);
                }
                Err(Undelivered::Broken(error)) => {
                    origin.drop(
                        (port.id, &port.drops),
                        (batch, parcel.frame),
                        DropReason::BadChain,
                    );
                    broken = Some(error);
                }
            }
        }
        self.writer.finish(active);
        if let Some(from) = origin.from {
            active.share.note(from, written.bytes, outcome);
        }
        if outcome == Outcome::Short {
            queue.counters.ring_full.add(1);
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

    fn deliver_to_tap(
        &mut self,
        origin: &Origin<'_>,
        port: &TapPort,
        batch: &mut Batch,
        run: &[Parcel],
    ) {
        let mut written = ToHost::default();
        for &parcel in run {
            let Some(out) = batch.outgoing(parcel, origin.outcomes) else {
                continue;
            };
            match self.tap_writer.write(&port.tap, out, &mut written) {
                Ok(()) => origin.delivered(port.id, (batch, parcel)),
                Err(reason) => {
                    origin.drop((port.id, &port.drops), (batch, parcel.frame), reason);
                }
            }
        }
        let counters = port
            .to_host
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        counters.frames.add(written.frames);
        counters.bytes.add(written.bytes);
    }

    fn deliver_to_stream(
        &mut self,
        origin: &Origin<'_>,
        port: &StreamPort,
        batch: &mut Batch,
        run: &[Parcel],
    ) {
        let mut sender = port.sender();
        for &parcel in run {
            let Some(out) = batch.outgoing(parcel, origin.outcomes) else {
                continue;
            };
            let to = (&mut sender, port.max_frame_bytes);
            match self.stream_writer.write(to, out) {
                Ok(()) => origin.delivered(port.id, (batch, parcel)),
                Err(reason) => {
                    origin.drop((port.id, &port.drops), (batch, parcel.frame), reason);
                }
            }
        }
        sender.finish();
    }
}

/// Whether a frame leaves about as long as it came: an edit list may make it shorter.
fn keeps_length(parcel: Parcel) -> bool {
    matches!(parcel.edit, HeaderEdit::Vlan(_))
}
