//! Where frames move: from guest-tx rings, TAPs and streams, through the switch core, to guest-rx rings, TAPs and streams.
//!
//! In the order a frame meets them:
//!
//! * [`worker`]: the thread: which sources to poll, when to sleep; [`schedule`]: whose turn it is;
//! * [`batch`]: one batch from its source to the last destination;
//! * [`guest_tx`]: chains to private headers; [`frame`]: what a batch holds; [`vnet_header`]: what the sender left undone;
//! * (`switch_core::Pipeline` decides)
//! * [`outbox`]: frames by destination; [`courier`]: one destination, its ring picked ([`flow_hash`]) and locked once;
//! * [`fair_share`]: who may fill a ring that is short of buffers;
//! * [`guest_rx`], [`tap_rx`] and [`stream_rx`]: one frame to a guest, to the host, or to a guest behind a stream; [`edited`]: its header as it leaves;
//!   [`software_offload`]: what the receiver does not do;
//! * [`packet_in`]: frames for the control side; [`last_drops`]: what did not arrive, and why; [`capture`]: all of it, for who looks on;
//! * [`notify`]: the driver told, at most once a batch; the worker's poll window.
//!
//! [`queue`], [`stream_port`] and [`ports`] are where the control thread meets the workers; [`counters`] is what both count, [`carried`] what ports bring along, [`cpu_time`] whose
//! frames took how long, [`flow_list`] what workers remember. With several workers, [`placement`] says which of them serves a source, and [`balance`] when that
//! changes, by the [`loads`]. [`Datapath`] is all of it as the control side sees it.

pub mod balance;
pub mod batch;
pub mod capture;
pub mod carried;
pub mod counters;
pub mod courier;
pub mod cpu_time;
pub mod edited;
pub mod fair_share;
pub mod flow_hash;
pub mod flow_list;
pub mod frame;
pub mod guest_rx;
pub mod guest_tx;
pub mod histogram;
pub mod last_drops;
pub mod loads;
pub mod notify;
pub mod outbox;
pub mod packet_in;
pub mod placement;
pub mod ports;
pub mod queue;
pub mod schedule;
pub mod software_offload;
pub mod stream_port;
pub mod stream_rx;
pub mod tap_rx;
mod vhost_port;
pub mod vnet_header;
pub mod worker;

pub use carried::PortTotals;
pub use counters::{PortCounters, QueueView, WorkerProfile, WorkerStats};
pub use flow_list::{FlowListError, FlowLister, Flows};
pub use last_drops::DroppedFrame;
pub use loads::SourceStats;
pub use packet_in::{PacketIn, PacketInQueue};
pub use placement::{Destination, SourceId};
pub use queue::QueueIndex;
pub use stream_port::{StreamEnd, StreamLink};
pub use vhost_port::VhostPort;

use crate::port::tap::Tap;
use crate::ring::RingError;
use arc_swap::ArcSwap;
use balance::Move;
use capture::Captures;
use carried::CarriedTraffic;
use counters::{QueueCounters, WorkerCounters};
use frame::{MAX_FRAME_BYTES, MIN_FRAME_BYTES, VNET_HEADER_BYTES};
use last_drops::{DROPPED_HEADER_BYTES, Dropped, PortDrops};
use loads::Loads;
use packet_in::PacketInLimits;
use placement::{Placement, SETTLE_TIMEOUT, Seats, Source, Workers};
use ports::{Port, PortTable, TapPort, VhostQueues};
use queue::{ActiveRing, Queue};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use stream_port::StreamPort;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::Engine;
use switch_core::{Decide, DropReason, Millis, Pipeline, PortId, Switch};
use worker::{Command, ControlFrame, Mailbox};

/// How the workers run.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// How many threads; at least 1.
    pub workers: usize,
    /// The CPU of each, or none to let the scheduler choose.
    pub cpus: Vec<usize>,
    /// Longest time to poll a silent ring before asking to be woken, in microseconds.
    pub poll_us: u32,
}

/// What the data path tells the control side. The callback is called on a worker and must not block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatapathEvent {
    /// A ring was stopped because of what its guest did; its error eventfd was signalled.
    RingFault {
        /// Whose.
        port: PortId,
        /// Which.
        queue: QueueIndex,
        /// What the guest did.
        error: RingError,
    },
    /// A front-end truncated its memory: the port must be detached.
    MemoryLost {
        /// Whose.
        port: PortId,
    },
    /// A TAP cannot be read any more.
    UplinkLost {
        /// Whose.
        port: PortId,
        /// In words.
        reason: String,
    },
    /// A stream port's connection has ended: nobody reads or writes it any more.
    StreamEnded {
        /// Whose.
        port: PortId,
        /// Which of its connections.
        connection: u64,
        /// Why.
        end: StreamEnd,
    },
}

/// Where [`DatapathEvent`]s go.
pub type EventSinkFn = Arc<dyn Fn(DatapathEvent) + Send + Sync>;

/// What the workers and the control side share.
pub struct Shared {
    /// The decisions.
    pub switch: Arc<Switch>,
    /// The ports by id.
    pub ports: Arc<ArcSwap<PortTable>>,
    /// Where events go.
    pub events: EventSinkFn,
    /// Frames for the control side.
    pub packet_ins: PacketInQueue,
    /// What decides on frames.
    pub program: Program,
    /// Who looks on.
    pub captures: Arc<Captures>,
}

/// What decides on frames.
#[derive(Clone)]
pub enum Program {
    /// The default program, which is compiled in.
    L2,
    /// Any other.
    Engine(Arc<Engine>),
}

impl Shared {
    /// Of a data path without ports.
    ///
    /// # Errors
    /// When an eventfd cannot be made.
    pub fn new(switch: Arc<Switch>, program: Program, events: EventSinkFn) -> io::Result<Self> {
        Ok(Self {
            switch,
            program,
            ports: Arc::default(),
            events,
            packet_ins: PacketInQueue::new(PacketInLimits::default())?,
            captures: Arc::default(),
        })
    }

    /// Takes a ring out of service because of what its driver did, and says so to everyone concerned.
    pub fn break_ring(&self, queue: &Queue, slot: &mut Option<ActiveRing>, error: RingError) {
        queue.abandon(slot);
        (self.events)(DatapathEvent::RingFault {
            port: queue.port,
            queue: queue.index,
            error,
        });
    }

    /// Finds the ports whose memory was truncated, and stops their rings.
    pub fn report_lost_memory(&self) {
        for port in self.ports.load().vhost_ports() {
            let mut lost = false;
            for queue in &port.queues {
                let mut slot = queue.worker();
                if slot.as_ref().is_some_and(|active| active.ring.is_lost()) {
                    *slot = None;
                    port.ring_stopped(queue.index);
                    lost = true;
                }
            }
            if lost {
                (self.events)(DatapathEvent::MemoryLost { port: port.id });
            }
        }
    }
}

/// Why a source was not moved. Nothing has changed, unless it says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// There are fewer workers.
    #[error("there is no worker {worker}: they are numbered from 0 to {last}")]
    NoSuchWorker {
        /// Asked for.
        worker: usize,
        /// The last there is.
        last: usize,
    },
    /// The port has fewer queue pairs.
    #[error("the port has no queue pair {pair}: they are numbered from 0 to {last}")]
    NoSuchPair {
        /// Asked for.
        pair: u16,
        /// The last it has.
        last: u16,
    },
    /// The port went away meanwhile.
    #[error("the port is gone")]
    NoSuchPort,
    /// A worker did not let go in time, and keeps what it has.
    #[error("worker {worker} did not answer within {} s, and keeps what it has", placement::SETTLE_TIMEOUT.as_secs())]
    NoAnswer {
        /// Which.
        worker: usize,
    },
}

/// Why a frame of the control side was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no such port.
    #[error("the port is gone: forget what it was wanted for")]
    NoSuchPort,
    /// It is no frame.
    #[error("a frame of {0} bytes cannot be: send {MIN_FRAME_BYTES} to {MAX_FRAME_BYTES}")]
    BadLength(usize),
    /// Too many wait for the worker.
    #[error("too many frames of the control side wait: send less, or again later")]
    Busy,
}

/// All workers and ports. Every method returns in bounded time and may be called from any control thread.
pub struct Datapath {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    /// Each worker's counters, and the CPU it is pinned to.
    counters: Vec<(Arc<WorkerCounters>, Option<usize>)>,
    loads: Mutex<Loads>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    flows: FlowLister,
    /// Serialises changes of the port table.
    changing: Mutex<()>,
    /// TAPs are not read: another process does, or will.
    holds_taps: AtomicBool,
}

/// A worker's life, on its thread.
fn work<D: Decide>(
    (shared, inbox, counters): (Arc<Shared>, Arc<Mailbox>, Arc<WorkerCounters>),
    decider: (D, u32),
    ready: &std::sync::mpsc::Sender<io::Result<()>>,
) {
    match worker::Worker::new(shared, inbox, counters, decider) {
        Ok(mut worker) => {
            let _ = ready.send(Ok(()));
            worker.run();
        }
        Err(error) => {
            let _ = ready.send(Err(io::Error::other(error)));
        }
    }
}

impl Datapath {
    /// Starts the workers.
    ///
    /// # Errors
    /// When a thread, its epoll or its eventfd cannot be made, or a CPU cannot be had.
    pub fn start(
        options: &WorkerOptions,
        (switch, program): (Arc<Switch>, Program),
        events: EventSinkFn,
    ) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared::new(switch, program, events)?);
        let count = options.workers.max(1);
        let mailboxes = (0..count).map(|_| Mailbox::new().map(Arc::new));
        let mailboxes = mailboxes.collect::<io::Result<Vec<_>>>()?;
        let workers = Arc::new(Workers::new(mailboxes.clone()));
        let mut datapath = Self {
            flows: FlowLister::new(Arc::clone(&workers), shared.program.clone()),
            shared,
            workers,
            counters: Vec::new(),
            loads: Mutex::new(Loads::new(count)),
            threads: Mutex::new(Vec::new()),
            changing: Mutex::new(()),
            holds_taps: AtomicBool::new(false),
        };
        for (index, mailbox) in mailboxes.into_iter().enumerate() {
            let started = datapath.start_worker(index, mailbox, options);
            if let Err(error) = started {
                datapath.stop();
                return Err(error);
            }
        }
        Ok(Arc::new(datapath))
    }

    fn start_worker(
        &mut self,
        index: usize,
        inbox: Arc<Mailbox>,
        options: &WorkerOptions,
    ) -> io::Result<()> {
        let counters = Arc::new(WorkerCounters::default());
        let (shared, counted) = (Arc::clone(&self.shared), Arc::clone(&counters));
        let (poll_us, cpu) = (options.poll_us, options.cpus.get(index).copied());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let id = rustix::thread::gettid().as_raw_nonzero().get();
                counted.thread.get_or_init(|| id);
                if let Err(error) = pin(cpu) {
                    let _ = ready.send(Err(error));
                    return;
                }
                let place = (shared, inbox, counted);
                match place.0.program.clone() {
                    Program::L2 => {
                        let pipeline = Pipeline::new(Arc::clone(&place.0.switch));
                        work(place, (pipeline, poll_us), &ready);
                    }
                    Program::Engine(engine) => {
                        work(place, (EnginePipeline::new(engine), poll_us), &ready);
                    }
                }
            })?;
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
        is_ready.recv().map_err(io::Error::other)??;
        self.counters.push((counters, cpu));
        Ok(())
    }

    /// Adds a port with stopped rings. `mtu` bounds what is delivered to it.
    pub fn add_vhost_port(&self, id: PortId, queue_pairs: u16, mtu: Option<u16>) -> Arc<VhostPort> {
        let max_frame_bytes = mtu.map_or(MAX_FRAME_BYTES as u32, max_frame_bytes);
        let queues = Arc::new(VhostQueues::new(id, queue_pairs, max_frame_bytes));
        self.add(id, Port::Vhost(Arc::clone(&queues)));
        let (shared, workers) = (Arc::clone(&self.shared), Arc::clone(&self.workers));
        Arc::new(VhostPort::new(queues, shared, workers))
    }

    /// Adds a TAP port; a worker reads it from now on.
    pub fn add_tap_port(&self, id: PortId, tap: Tap) {
        let port = Arc::new(TapPort {
            id,
            placement: Placement::default(),
            tap,
            from_host: QueueCounters::default(),
            to_host: Mutex::new(QueueCounters::default()),
            carried: CarriedTraffic::default(),
            drops: PortDrops::default(),
        });
        self.add(id, Port::Tap(Arc::clone(&port)));
        if !self.holds_taps.load(Ordering::Acquire) {
            self.workers.watch(&Source::Tap(port));
        }
    }

    /// Adds a stream port without a peer. `mtu` bounds what is delivered to it.
    ///
    /// # Errors
    /// When no eventfd can be had.
    pub fn add_stream_port(&self, id: PortId, mtu: Option<u16>) -> io::Result<StreamLink> {
        let max_frame_bytes = mtu.map_or(MAX_FRAME_BYTES as u32, max_frame_bytes);
        let port = Arc::new(StreamPort::new(id, max_frame_bytes)?);
        self.add(id, Port::Stream(Arc::clone(&port)));
        Ok(StreamLink::new(port, Arc::clone(&self.workers)))
    }

    /// Reads no TAP from now on, those that are added included: what comes waits in the kernel. When this returns no worker reads one.
    pub fn hold_taps(&self) {
        self.holds_taps.store(true, Ordering::Release);
        self.each_tap(|workers, tap| workers.forget(tap));
        self.settle();
    }

    /// Reads them again.
    pub fn release_taps(&self) {
        self.holds_taps.store(false, Ordering::Release);
        self.each_tap(Workers::watch);
    }

    fn each_tap(&self, tell: impl Fn(&Workers, &Source)) {
        let ports = self.shared.ports.load();
        let sources = Source::of_all(&ports);
        for tap in sources.filter(|source| matches!(source, Source::Tap(_))) {
            tell(&self.workers, &tap);
        }
    }

    /// The open interface of a TAP port, once more.
    ///
    /// # Errors
    /// No descriptor can be had; `None`: no such port, or it is no TAP.
    pub fn share_tap(&self, id: PortId) -> Option<io::Result<OwnedFd>> {
        match self.shared.ports.load().get(id)? {
            Port::Tap(port) => Some(port.tap.share()),
            Port::Vhost(_) | Port::Stream(_) => None,
        }
    }

    /// Puts a port into the table, its sources where there is least to do.
    fn add(&self, id: PortId, port: Port) {
        let ports = self.shared.ports.load();
        let mut seats = Seats::new(&self.loads().by_worker(&ports), &ports);
        for source in Source::of_port(&port) {
            source.placement().place(seats.take());
        }
        self.replace(id, Some(port));
    }

    /// Removes a port: its rings are stopped, and when this returns no worker holds anything of it.
    pub fn remove_port(&self, id: PortId) {
        let port = self.shared.ports.load().get(id).cloned();
        self.replace(id, None);
        self.shared.captures.end_port(id);
        match port {
            Some(Port::Vhost(port)) => {
                for queue in &port.queues {
                    queue.control(|slot| slot.take().map(|active| active.ring.stop()));
                    port.ring_stopped(queue.index);
                    self.workers.forget(&Source::Ring(Arc::clone(queue)));
                }
            }
            Some(Port::Tap(port)) => self.workers.forget(&Source::Tap(port)),
            Some(Port::Stream(port)) => {
                port.end(&mut port.inbound());
                self.workers.forget(&Source::Stream(port));
            }
            None => {}
        }
        self.settle();
    }

    /// Serves a port's sources, or that of one queue pair, elsewhere; frames that are on their way neither get lost nor overtake
    /// each other. Where they are now. Called on the control thread, like [`Self::rebalance`].
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn move_sources(
        &self,
        port: PortId,
        pair: Option<u16>,
        destination: Destination,
    ) -> Result<Vec<SourceStats>, MoveError> {
        if let Destination::Pinned(worker) | Destination::Worker(worker) = destination
            && worker >= self.workers.count()
        {
            let last = self.workers.count().saturating_sub(1);
            return Err(MoveError::NoSuchWorker { worker, last });
        }
        let ports = self.shared.ports.load();
        let all = Source::of_port(ports.get(port).ok_or(MoveError::NoSuchPort)?);
        let last = all.last().map_or(0, |source| source.id().pair);
        let mut sources = all;
        if let Some(pair) = pair {
            sources.retain(|source| source.id().pair == pair);
            if sources.is_empty() {
                return Err(MoveError::NoSuchPair { pair, last });
            }
        }
        for source in &sources {
            let at = self.workers.place(source, destination);
            if let Destination::Pinned(wanted) | Destination::Worker(wanted) = destination
                && at != wanted
            {
                return Err(MoveError::NoAnswer { worker: at });
            }
        }
        let loads = self.loads();
        let stats = |source: &Source| SourceStats::of(source, loads.busy_permille(source.id()));
        Ok(sources.iter().map(stats).collect())
    }

    /// Ends a window of measuring, and moves a source if its worker is overloaded and another is not. To be called once a second.
    pub fn rebalance(&self) {
        let frames = self
            .counters
            .iter()
            .map(|(counters, _)| counters.frames.get());
        let ports = self.shared.ports.load();
        let planned = self.loads().measure(&ports, frames.sum());
        if let Some(Move { source, from, to }) = planned {
            let (port, pair) = (source.port, source.pair);
            match self.move_sources(port, Some(pair), Destination::Worker(to)) {
                Ok(_) => log::info!(
                    "port {port}, pair {pair}: from worker {from} to {to}, which has more time"
                ),
                Err(error) => {
                    log::warn!("port {port}, pair {pair}, stays on worker {from}: {error}")
                }
            }
        }
    }

    /// Every source that runs or was put somewhere by an operator, by port and pair.
    pub fn sources(&self) -> Vec<SourceStats> {
        let loads = self.loads();
        let ports = self.shared.ports.load();
        Source::of_all(&ports)
            .filter(|source| source.runs() || source.placement().is_pinned())
            .map(|source| SourceStats::of(&source, loads.busy_permille(source.id())))
            .collect()
    }

    /// A port's counters; `None` when there is no such port.
    pub fn counters(&self, id: PortId) -> Option<PortCounters> {
        self.shared.ports.load().get(id).map(Port::counters)
    }

    /// The counters of a port's queues; none for an unknown port.
    pub fn queues(&self, id: PortId) -> Vec<QueueView> {
        let ports = self.shared.ports.load();
        ports.get(id).map(Port::queues).unwrap_or_default()
    }

    /// Lets a port's counters go on from what it had under an earlier process or on another host. Says whether the port is there.
    pub fn add_totals(&self, id: PortId, totals: &PortTotals) -> bool {
        let ports = self.shared.ports.load();
        let port = ports.get(id);
        port.inspect(|port| port.add_totals(totals)).is_some()
    }

    /// The frames that were dropped at a port of late, oldest first: all of them where there are few, a sample of many.
    pub fn last_drops(&self, id: PortId) -> Vec<DroppedFrame> {
        let ports = self.shared.ports.load();
        ports
            .get(id)
            .map(|port| port.drops().latest())
            .unwrap_or_default()
    }

    /// Counts a frame from a port that ended on the control side, and records it unless there is nothing of it to show.
    pub fn count_drop(&self, port: PortId, reason: DropReason, frame: &[u8]) {
        let ports = self.shared.ports.load();
        let Some(drops) = ports.get(port).map(Port::drops) else {
            return;
        };
        if frame.is_empty() {
            return drops.count(reason);
        }
        capture::dropped_by_control(&self.shared.captures, port, reason, frame);
        let dropped = Dropped {
            at: self.now(),
            in_port: Some(port),
            len_bytes: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            header: |room: &mut [u8; DROPPED_HEADER_BYTES]| {
                let header_bytes = frame.len().min(room.len());
                let (to, from) = (room.get_mut(..header_bytes), frame.get(..header_bytes));
                if let (Some(to), Some(from)) = (to, from) {
                    to.copy_from_slice(from);
                }
                header_bytes
            },
        };
        drops.add(reason, dropped);
    }

    /// The clock of the data path now, by which it tells when a frame was dropped.
    pub fn now(&self) -> Millis {
        Millis(cpu_time::now_ns() / 1_000_000)
    }

    /// Where captures are started.
    pub fn captures(&self) -> Arc<Captures> {
        Arc::clone(&self.shared.captures)
    }

    /// What lists the flows that workers remember.
    pub fn flows(&self) -> FlowLister {
        self.flows.clone()
    }

    /// Frames for the control side.
    pub fn packet_ins(&self) -> &PacketInQueue {
        &self.shared.packet_ins
    }

    /// Sends a frame straight out of a port. Frames of one port, sent or injected, keep their order.
    ///
    /// # Errors
    /// See [`SendError`]. What is wrong with its headers is found later, and counted as a drop of the port.
    pub fn send(
        &self,
        port: PortId,
        vnet_header: &[u8; VNET_HEADER_BYTES],
        frame: &[u8],
    ) -> Result<(), SendError> {
        self.hand_over((port, vnet_header, frame), Command::Send)
    }

    /// Switches a frame as if it had come from a port.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn inject(
        &self,
        port: PortId,
        vnet_header: &[u8; VNET_HEADER_BYTES],
        frame: &[u8],
    ) -> Result<(), SendError> {
        self.hand_over((port, vnet_header, frame), Command::Inject)
    }

    fn hand_over(
        &self,
        (port, vnet_header, frame): (PortId, &[u8; VNET_HEADER_BYTES], &[u8]),
        command: fn(ControlFrame) -> Command,
    ) -> Result<(), SendError> {
        if self.shared.ports.load().get(port).is_none() {
            return Err(SendError::NoSuchPort);
        }
        if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&frame.len()) {
            return Err(SendError::BadLength(frame.len()));
        }
        let frame = ControlFrame {
            port,
            vnet_header: *vnet_header,
            bytes: frame.into(),
        };
        if self.workers.hand_over(port, command(frame)) {
            Ok(())
        } else {
            Err(SendError::Busy)
        }
    }

    /// What each worker did so far.
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        self.counters
            .iter()
            .map(|(counters, cpu)| counters.stats(*cpu))
            .collect()
    }

    /// What every worker's batches are like, by index.
    pub fn worker_profiles(&self) -> Vec<WorkerProfile> {
        let counters = self.counters.iter();
        counters.map(|(counters, _)| counters.profile()).collect()
    }

    /// Ends the workers after the batch in hand, and waits for them.
    pub fn stop(&self) {
        self.workers.tell_all(|| Command::Stop);
        for thread in self
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            if thread.join().is_err() {
                log::error!("a worker thread ended in a panic");
            }
        }
    }

    /// Waits until every worker has done what it was told so far: a batch at most.
    fn settle(&self) {
        // Workers that have ended hold nothing, and would never answer.
        let ended = self
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty();
        if ended {
            return;
        }
        if !self.workers.all_settled() {
            log::warn!("a worker did not answer within {SETTLE_TIMEOUT:?}");
        }
    }

    fn loads(&self) -> MutexGuard<'_, Loads> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, id: PortId, port: Option<Port>) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.shared.ports.load().with(id, port);
        self.shared.ports.store(Arc::new(table));
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Ethernet header, two VLAN tags, and the MTU's payload.
fn max_frame_bytes(mtu: u16) -> u32 {
    u32::from(mtu) + 14 + 8
}

/// Binds this thread to one CPU.
fn pin(cpu: Option<usize>) -> io::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    if cpu >= rustix::thread::CpuSet::MAX_CPU {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("there is no CPU {cpu}"),
        ));
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|error| io::Error::other(format!("cannot pin a worker to CPU {cpu}: {error}")))
}
