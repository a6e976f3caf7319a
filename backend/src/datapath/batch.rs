//! Runs one batch to completion: take, decide, deliver, give back.
//!
//! One per worker. A batch's source ring is locked from the first step to the last, each destination's ring only while its
//! frames are written. Destinations are served before the source's chains are given back, so that a driver never
//! reuses a buffer that is still being read.

use super::capture::Onlookers;
use super::counters::{QueueCounters, WorkerCounters};
use super::courier::{Courier, Origin};
use super::cpu_time::{SAMPLED, Sampler, now_ns};
use super::flow_list::FlowQuestion;
use super::frame::{BATCH_FRAMES, Batch, Frame, MIN_FRAME_BYTES, Rest, VNET_HEADER_BYTES};
use super::outbox::{Outbox, PARCELS, Parcel};
use super::packet_in::{PacketIn, PacketInQueue};
use super::ports::{PortTable, TapPort};
use super::queue::{ActiveRing, Queue};
use super::stream_port::{Inbound, StreamEnd, StreamPort};
use super::vnet_header::{NetFeatures, Offload};
use super::worker::ControlFrame;
use super::{DatapathEvent, Shared, guest_tx};
use crate::ring::{BurstEnd, ChainHead, RingError};
use arc_swap::Cache;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use switch_core::{
    Decide, DropReason, FrameInfo, HeaderEdit, Millis, Pipeline, PortId, PuntId, Target, Verdict,
};

/// Frames read from a TAP in one batch: each costs a system call, and others wait.
const TAP_BATCH_FRAMES: usize = 32;

/// What a piece of a chain counts for at least: the descriptor that was read for it.
const PIECE_BYTES: u64 = 16;

/// What a batch came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Frames taken.
    pub frames: u32,
    /// Their bytes, without virtio-net headers; more for chains of many pieces next to empty, which take as long to walk.
    pub bytes: u64,
    /// The batch ended at a bound: more may wait. Of a stream without a frame: there may be the rest of one.
    pub more: bool,
    /// What waits cannot be taken yet; the source is watched anew when it can.
    pub is_pending: bool,
    /// What deciding took, when there were frames among them that had to be decided by tables.
    pub tables_ns: u64,
}

/// A worker's batch machinery, for frames that a `D` decides on.
pub struct BatchRunner<D = Pipeline> {
    shared: Arc<Shared>,
    ports: Cache<Arc<arc_swap::ArcSwap<PortTable>>, Arc<PortTable>>,
    counters: Arc<WorkerCounters>,
    pipeline: D,
    now: Millis,
    batch: Batch,
    delivery: Delivery,
    sampler: Sampler,
    /// Its buffer in captures.
    lane: usize,
}

/// Frames that were decided on, on their way out.
struct Delivery {
    outbox: Outbox,
    /// The frames for the destination in hand.
    run: Vec<Parcel>,
    courier: Courier,
}

impl BatchRunner {
    /// Nothing in hand.
    pub fn new(shared: Arc<Shared>, counters: Arc<WorkerCounters>) -> Self {
        let pipeline = Pipeline::new(Arc::clone(&shared.switch));
        Self::with_pipeline(shared, counters, pipeline)
    }
}

impl<D: Decide> BatchRunner<D> {
    /// Nothing in hand; `pipeline` decides.
    pub fn with_pipeline(shared: Arc<Shared>, counters: Arc<WorkerCounters>, pipeline: D) -> Self {
        let lane = shared.captures.add_worker();
        Self {
            ports: Cache::new(Arc::clone(&shared.ports)),
            pipeline,
            delivery: Delivery {
                outbox: Outbox::default(),
                run: Vec::with_capacity(PARCELS),
                courier: Courier::new(Arc::clone(&shared)),
            },
            shared,
            counters,
            now: Millis(0),
            batch: Batch::default(),
            sampler: Sampler::default(),
            lane,
        }
    }

    /// Asks the ring's driver for kicks; `true` when there is work already, so that it has to be polled on.
    pub fn arm(queue: &Queue) -> bool {
        let mut slot = queue.worker();
        match slot.as_mut() {
            // A broken index is reported by the next batch.
            Some(active) if queue.is_enabled() => {
                let pending = active
                    .ring
                    .arm_notification()
                    .map_or(true, |pending| pending);
                if pending {
                    active.ring.suppress_kicks();
                }
                pending
            }
            _ => false,
        }
    }

    /// Before the worker sleeps: what it knows is told to whoever may ask meanwhile. `true`: there is more, so it is not to sleep yet.
    pub fn rest(&mut self) -> bool {
        self.pipeline.rest()
    }

    /// Tells what the cache was asked for whoever looks at the counters.
    pub fn tell_cache_use(&self) {
        let used = self.pipeline.cache_use();
        let flows = used.flows.unwrap_or(u64::MAX);
        self.counters
            .cache_misses
            .store(used.misses, Ordering::Relaxed);
        self.counters.cache_flows.store(flows, Ordering::Relaxed);
    }

    /// Goes on with what the control side wants to know of the flow cache, by one step; `true`: it is to be given back.
    pub fn list_flows(&self, question: &mut FlowQuestion) -> bool {
        question.step(&self.pipeline, self.now)
    }

    /// The time that the next batches happen at.
    pub fn set_time(&mut self, now: Millis) {
        self.now = now;
    }

    /// Lets go of ports that were removed: an idle worker would keep a TAP open until its next batch.
    pub fn forget_removed_ports(&mut self) {
        self.ports.load();
    }

    /// One batch from a guest-tx ring, which ends at the latest behind the frame that passes `limit_bytes`.
    pub fn run_queue(&mut self, queue: &Queue, limit_bytes: u32) -> Served {
        if !queue.is_enabled() {
            return Served::default();
        }
        let mut slot = queue.worker();
        // Asked again with the slot held: once a front-end was told that the ring is disabled, nothing of it is touched.
        let Some(active) = slot.as_mut().filter(|_| queue.is_enabled()) else {
            return Served::default();
        };
        // A silent ring costs one load.
        match active.ring.refresh() {
            Ok(false) => return Served::default(),
            Ok(true) => active.ring.disarm(),
            Err(error) => {
                self.stop_ring(queue, &mut slot, error);
                return Served::default();
            }
        }
        let started = self.sampler.start();
        let bytes_before = queue.counters.bytes.get();
        self.pipeline.begin_batch(self.now);
        let decided_from_ns = Self::clock();
        let port = queue.port;
        let judge = (port, &mut self.pipeline);
        let taken = guest_tx::take_batch(active, &mut self.batch, limit_bytes, judge);
        let tables_ns = self.tables_ns(decided_from_ns);
        self.forward(Some(port));
        guest_tx::complete(active, queue, &self.batch);
        let end = taken.unwrap_or_else(|error| {
            self.stop_ring(queue, &mut slot, error);
            BurstEnd::Empty
        });
        let bytes = queue.counters.bytes.get().wrapping_sub(bytes_before);
        let served = Served {
            frames: self.batch.frames.len() as u32,
            bytes: bytes.max(PIECE_BYTES * self.batch.arena.len() as u64),
            more: !matches!(end, BurstEnd::Empty | BurstEnd::Pending),
            is_pending: end == BurstEnd::Pending,
            tables_ns,
        };
        self.batch.clear();
        self.count(served, started, &queue.counters);
        served
    }

    /// The time, where somebody wants to know how long deciding takes.
    #[inline]
    fn clock() -> u64 {
        if D::HAS_COSTLY_FRAMES { now_ns() } else { 0 }
    }

    /// What the tables took since then, when they were asked.
    #[inline]
    fn tables_ns(&mut self, from_ns: u64) -> u64 {
        if D::HAS_COSTLY_FRAMES && self.pipeline.take_costly() {
            now_ns().saturating_sub(from_ns)
        } else {
            0
        }
    }

    /// One batch from the host, as [`Self::run_queue`] runs a guest's.
    pub fn run_tap(&mut self, port: &TapPort, limit_bytes: u32) -> Served {
        let started = self.sampler.start();
        self.batch.clear();
        self.pipeline.begin_batch(self.now);
        let (mut bytes, mut more) = (0, true);
        let decided_from_ns = Self::clock();
        while self.batch.frames.len() < TAP_BATCH_FRAMES && bytes < limit_bytes as usize {
            match port.tap.read(self.batch.local_room()) {
                Ok(Some(read)) => {
                    self.add_read(read, |pipeline, info| pipeline.decide(port.id, info));
                    bytes += read.saturating_sub(VNET_HEADER_BYTES);
                }
                Ok(None) => {
                    more = false;
                    break;
                }
                Err(error) => {
                    more = false;
                    let reason = format!("reading from {} failed: {error}", port.tap.interface());
                    (self.shared.events)(DatapathEvent::UplinkLost {
                        port: port.id,
                        reason,
                    });
                    break;
                }
            }
        }
        let tables_ns = self.tables_ns(decided_from_ns);
        self.forward(Some(port.id));
        let served = Served {
            frames: self.batch.frames.len() as u32,
            bytes: bytes as u64,
            more,
            is_pending: false,
            tables_ns,
        };
        port.from_host.frames.add(served.frames.into());
        port.from_host.bytes.add(served.bytes);
        self.batch.clear();
        self.count(served, started, &port.from_host);
        served
    }

    /// One batch from a stream port's peer, as [`Self::run_queue`] runs a guest's: what one read gave, or is left of it.
    pub fn run_stream(&mut self, port: &StreamPort, limit_bytes: u32) -> Served {
        let started = self.sampler.start();
        if port.wants_room() {
            port.sender().send();
        }
        let mut inbound = port.inbound();
        let Inbound {
            connection,
            buffer,
            unread,
        } = &mut *inbound;
        let Some(connection) = connection else {
            return Served::default();
        };
        let (mut next, mut end) = (unread.next(buffer), None);
        let (mut has_read, mut at_bound) = (false, false);
        if next == Ok(None) {
            let room = unread.room(buffer);
            let room_bytes = room.len();
            match connection.receive(room) {
                Ok(Some(0)) => end = Some(StreamEnd::Closed),
                Ok(Some(read)) => {
                    (has_read, at_bound) = (true, read == room_bytes);
                    unread.filled(read);
                    next = unread.next(buffer);
                }
                Ok(None) => {}
                Err(error) => end = Some(StreamEnd::Socket(error.to_string())),
            }
        }
        self.batch.clear();
        self.pipeline.begin_batch(self.now);
        let mut bytes = 0;
        let decided_from_ns = Self::clock();
        // Frames stay where they were read until they were delivered.
        std::mem::swap(&mut self.batch.local, buffer);
        loop {
            match next {
                Ok(Some(place)) => {
                    bytes += place.len() as u64;
                    self.add_local((place, 0), |pipeline, info| pipeline.decide(port.id, info));
                }
                Ok(None) => break,
                Err(error) => {
                    end = Some(error.into());
                    break;
                }
            }
            if self.batch.frames.len() >= BATCH_FRAMES || bytes >= u64::from(limit_bytes) {
                at_bound = true;
                break;
            }
            next = unread.next(&self.batch.local);
        }
        let tables_ns = self.tables_ns(decided_from_ns);
        self.forward(Some(port.id));
        std::mem::swap(&mut self.batch.local, buffer);
        let frames = self.batch.frames.len() as u32;
        let served = Served {
            frames,
            bytes,
            more: end.is_none() && (at_bound || (frames == 0 && has_read)),
            is_pending: false,
            tables_ns,
        };
        port.from_peer.frames.add(frames.into());
        port.from_peer.bytes.add(bytes);
        self.batch.clear();
        if let Some(end) = end
            && let Some(connection) = port.end(&mut inbound)
        {
            (self.shared.events)(DatapathEvent::StreamEnded {
                port: port.id,
                connection,
                end,
            });
        }
        drop(inbound);
        self.count(served, started, &port.from_peer);
        served
    }

    /// Switches one frame of the control side as if its port had sent it.
    pub fn run_injected(&mut self, frame: &ControlFrame) {
        let port = frame.port;
        self.pipeline.begin_batch(self.now);
        if let Some(read_bytes) = self.put_local(frame) {
            self.add_read(read_bytes, |pipeline, info| pipeline.decide(port, info));
            self.forward(Some(port));
        }
        self.batch.clear();
    }

    /// Sends one frame of the control side straight out of its port.
    pub fn run_sent(&mut self, frame: &ControlFrame) {
        let verdict = Verdict::Output {
            port: frame.port,
            edit: HeaderEdit::NONE,
        };
        self.pipeline.begin_batch(self.now);
        if let Some(read_bytes) = self.put_local(frame) {
            self.add_read(read_bytes, |_, _| verdict);
            let added = self.batch.frames.first().map(|frame| frame.verdict);
            match added {
                // Nobody sent it: its own port tells of it.
                Some(Verdict::Drop(reason)) => self.count_drop(frame.port, reason),
                _ => self.forward(None),
            }
        }
        self.batch.clear();
    }

    /// Puts a frame of the control side into an empty batch's buffer; its length there. `None` when it is too long for a frame.
    fn put_local(&mut self, frame: &ControlFrame) -> Option<usize> {
        self.batch.clear();
        let room = self.batch.local_room();
        let (header, rest) = room.split_first_chunk_mut::<VNET_HEADER_BYTES>()?;
        *header = frame.vnet_header;
        rest.get_mut(..frame.bytes.len())?
            .copy_from_slice(&frame.bytes);
        Some(VNET_HEADER_BYTES + frame.bytes.len())
    }

    fn count(&self, served: Served, started: Option<Instant>, source: &QueueCounters) {
        if served.frames > 0 {
            self.counters.frames.add(served.frames.into());
            self.counters.batches.add(1);
            self.counters.batch_frames.record(served.frames.into());
        }
        if let Some(started) = started {
            let took_ns = Sampler::elapsed_ns(started);
            if served.frames > 0 {
                self.counters.delivery_ns.record(took_ns);
            }
            let busy_ns = took_ns * SAMPLED;
            self.counters.busy_ns.add(busy_ns);
            source.busy_ns.add(busy_ns);
        }
    }

    /// Adds the frame that lies, after its virtio-net header, in the next `read_bytes` bytes of the batch's buffer.
    fn add_read(
        &mut self,
        read_bytes: usize,
        judge: impl FnOnce(&mut D, &FrameInfo<'_>) -> Verdict,
    ) {
        let start = self.batch.local_bytes;
        let end = start + read_bytes;
        self.add_local((start..end, VNET_HEADER_BYTES), judge);
        self.batch.local_bytes = end;
    }

    /// Adds the frame at that place in the batch's buffer, whose first bytes are a virtio-net header of that length, or none.
    fn add_local(
        &mut self,
        (place, vnet_bytes): (Range<usize>, usize),
        judge: impl FnOnce(&mut D, &FrameInfo<'_>) -> Verdict,
    ) {
        let start = place.start;
        let bytes = self.batch.local.get(place).unwrap_or_default();
        let len_bytes = bytes.len().saturating_sub(vnet_bytes);
        let Some(header) = self.batch.headers.get_mut(self.batch.frames.len()) else {
            return;
        };
        let copied = header.fill(vnet_bytes, |room| {
            let len = room.len().min(bytes.len());
            if let (Some(to), Some(from)) = (room.get_mut(..len), bytes.get(..len)) {
                to.copy_from_slice(from);
            }
            len
        });
        let vnet = header.vnet(vnet_bytes);
        let offload = match u32::try_from(len_bytes) {
            Ok(_) if len_bytes >= MIN_FRAME_BYTES && vnet_bytes == 0 => Ok(Offload::NONE),
            Ok(len) if len_bytes >= MIN_FRAME_BYTES => {
                Offload::parse(vnet, header.frame(), len, NetFeatures::TAP)
            }
            _ => Err(DropReason::FrameTooShort),
        };
        let mut frame = Frame {
            head: ChainHead::default(),
            len_bytes: len_bytes as u32,
            rest_bytes: len_bytes.saturating_sub(copied) as u32,
            rest: Rest::Local {
                start: (start + vnet_bytes + copied) as u32,
            },
            offload: offload.unwrap_or(Offload::NONE),
            verdict: Verdict::Drop(DropReason::FrameTooShort),
        };
        frame.verdict = match offload {
            Ok(_) => judge(&mut self.pipeline, &frame.info(header)),
            Err(reason) => Verdict::Drop(reason),
        };
        self.batch.frames.push(frame);
    }

    /// Sends every frame of the batch where its verdict says.
    fn forward(&mut self, from: Option<PortId>) {
        let Self {
            shared,
            ports,
            pipeline,
            now,
            batch,
            delivery,
            lane,
            ..
        } = self;
        let captures = shared.captures.current();
        let onlookers = captures.map(|sessions| Onlookers::new(sessions, *lane));
        let origin = Origin {
            ports: ports.load(),
            from,
            outcomes: pipeline.outcomes(),
            now: *now,
            onlookers: onlookers.as_ref(),
        };
        if let (Some(onlookers), Some(from)) = (&onlookers, from) {
            onlookers.sent(from, batch, origin.outcomes);
        }
        if let Some(to) = batch.lone_destination() {
            // What most batches are: all of one guest's frames go to one other.
            let Delivery { run, courier, .. } = delivery;
            run.clear();
            let frames = batch.frames.iter().enumerate();
            run.extend(frames.map(|(frame, f)| match f.verdict {
                Verdict::Output { edit, .. } => Parcel { frame, edit },
                // There is none.
                _ => Parcel {
                    frame,
                    edit: HeaderEdit::NONE,
                },
            }));
            courier.deliver(&origin, to, batch, run);
            return;
        }
        let mut at = 0;
        while let Some(frame) = batch.frames.get(at) {
            let verdict = frame.verdict;
            match verdict {
                Verdict::Drop(reason) => origin.drop_as_decided((batch, at), reason),
                Verdict::Output { port, edit } => {
                    delivery.add(&origin, batch, port, Parcel { frame: at, edit });
                }
                Verdict::Flood(flood) => {
                    // What came before goes out before, or a flow that was just learned would be reordered.
                    delivery.flush(&origin, batch);
                    let Delivery { run, courier, .. } = delivery;
                    let frames = batch.frames.iter().skip(at);
                    let count = frames.take_while(|f| f.verdict == verdict).count();
                    for (to, edit) in pipeline.flood_members(flood) {
                        let edit = edit.into();
                        run.clear();
                        let frames = at..at + count;
                        run.extend(frames.map(|frame| Parcel { frame, edit }));
                        courier.deliver(&origin, to, batch, run);
                    }
                    at += count;
                    continue;
                }
                Verdict::Copies(id) => {
                    for copy in origin.outcomes.copies(id) {
                        let parcel = Parcel {
                            frame: at,
                            edit: copy.edit,
                        };
                        match copy.target {
                            Target::Port(port) => delivery.add(&origin, batch, port, parcel),
                            Target::Drop(reason) => origin.drop_at_source((batch, at), reason),
                            Target::Controller(punt) => {
                                let taken =
                                    punt_frame(&shared.packet_ins, &origin, batch, (at, punt));
                                if let Err(reason) = taken {
                                    origin.drop_at_source((batch, at), reason);
                                }
                            }
                        }
                    }
                }
            }
            at += 1;
        }
        delivery.flush(&origin, batch);
    }

    /// Counts a drop of which there is no frame to show.
    fn count_drop(&mut self, port: PortId, reason: DropReason) {
        if let Some(port) = self.ports.load().get(port) {
            port.drops().count(reason);
        }
    }

    /// Stops a guest-tx ring that its driver broke.
    fn stop_ring(&mut self, queue: &Queue, slot: &mut Option<ActiveRing>, error: RingError) {
        self.count_drop(queue.port, DropReason::BadChain);
        self.shared.break_ring(queue, slot, error);
    }
}

impl Delivery {
    /// Adds a parcel for a port; delivers what waits if there is no room for it.
    #[inline]
    fn add(&mut self, origin: &Origin<'_>, batch: &mut Batch, port: PortId, parcel: Parcel) {
        if self.outbox.is_full() {
            self.flush(origin, batch);
        }
        self.outbox.add(port, parcel);
    }

    /// Delivers what the outbox holds.
    fn flush(&mut self, origin: &Origin<'_>, batch: &mut Batch) {
        while let Some(to) = self.outbox.pop(&mut self.run) {
            self.courier.deliver(origin, to, batch, &self.run);
        }
    }
}

/// Hands a frame of the batch to the control side, as it came.
#[cold]
fn punt_frame(
    packet_ins: &PacketInQueue,
    origin: &Origin<'_>,
    batch: &Batch,
    (index, punt): (usize, PuntId),
) -> Result<(), DropReason> {
    let (Some(in_port), Some(frame), Some(punt)) = (
        origin.from,
        batch.frames.get(index),
        origin.outcomes.punt(punt),
    ) else {
        return Ok(());
    };
    let len_bytes = frame.len_bytes as usize;
    packet_ins.put(origin.now, (in_port, len_bytes), || {
        let mut bytes = vec![0; len_bytes];
        let read = batch.read_start(index, &mut bytes);
        bytes.truncate(read);
        PacketIn {
            in_port,
            punt: *punt,
            vnet_header: frame.offload.header(),
            frame: bytes.into(),
        }
    })
}
