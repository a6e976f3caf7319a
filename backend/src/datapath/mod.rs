//! Where frames move: from guest-tx rings and TAPs, through the switch core, to guest-rx rings and TAPs.
//!
//! In the order a frame meets them:
//!
//! * [`worker`]: the thread: which sources to poll, when to sleep;
//! * [`batch`]: one batch from its source to the last destination;
//! * [`guest_tx`]: chains to private headers; [`frame`]: what a batch holds; [`vnet_header`]: what the sender left undone;
//! * (`switch_core::Pipeline` decides)
//! * [`outbox`]: frames by destination; [`courier`]: one destination, its ring picked ([`flow_hash`]) and locked once;
//! * [`guest_rx`] and [`tap_rx`]: one frame to a guest or to the host; [`software_offload`]: what the receiver does not do;
//! * [`notify`]: the driver told, at most once a batch; the worker's poll window.
//!
//! [`queue`] and [`ports`] are where the control thread meets the workers; [`counters`] is what both count. [`Datapath`] is
//! all of it as the control side sees it.

pub mod batch;
pub mod counters;
pub mod courier;
pub mod flow_hash;
pub mod frame;
pub mod guest_rx;
pub mod guest_tx;
pub mod notify;
pub mod outbox;
pub mod ports;
pub mod queue;
pub mod software_offload;
pub mod tap_rx;
mod vhost_port;
pub mod vnet_header;
pub mod worker;

pub use counters::{PortCounters, WorkerStats};
pub use queue::QueueIndex;
pub use vhost_port::VhostPort;

use crate::port::tap::Tap;
use crate::ring::RingError;
use arc_swap::ArcSwap;
use counters::{DropCounters, QueueCounters, WorkerCounters};
use frame::MAX_FRAME_BYTES;
use ports::{Port, PortTable, TapPort, VhostQueues};
use queue::{ActiveRing, Queue};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use switch_core::{PortId, Switch};
use worker::{Command, Mailbox};

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
}

impl Shared {
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
                if slot
                    .as_ref()
                    .is_some_and(|active| active.ring.memory().is_lost())
                {
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

/// How long a worker may take to answer. A batch takes microseconds; only a stopped process takes this long.
const SETTLE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

struct WorkerHandle {
    mailbox: Arc<Mailbox>,
    counters: Arc<WorkerCounters>,
}

/// All workers and ports. Every method returns in bounded time and may be called from any control thread.
pub struct Datapath {
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Serialises changes of the port table.
    changing: Mutex<()>,
}

impl Datapath {
    /// Starts the workers.
    ///
    /// # Errors
    /// When a thread, its epoll or its eventfd cannot be made, or a CPU cannot be had.
    pub fn start(
        options: &WorkerOptions,
        switch: Arc<Switch>,
        events: EventSinkFn,
    ) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            switch,
            ports: Arc::default(),
            events,
        });
        let mut datapath = Self {
            shared,
            workers: Vec::new(),
            threads: Mutex::new(Vec::new()),
            changing: Mutex::new(()),
        };
        for index in 0..options.workers.max(1) {
            let started = datapath.start_worker(index, options);
            if let Err(error) = started {
                datapath.stop();
                return Err(error);
            }
        }
        Ok(Arc::new(datapath))
    }

    fn start_worker(&mut self, index: usize, options: &WorkerOptions) -> io::Result<()> {
        let mailbox = Arc::new(Mailbox::new()?);
        let counters = Arc::new(WorkerCounters::default());
        let (shared, inbox, counted) = (
            Arc::clone(&self.shared),
            Arc::clone(&mailbox),
            Arc::clone(&counters),
        );
        let (poll_us, cpu) = (options.poll_us, options.cpus.get(index).copied());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let started = pin(cpu).and_then(|()| {
                    worker::Worker::new(shared, inbox, counted, poll_us).map_err(io::Error::other)
                });
                match started {
                    Ok(mut worker) => {
                        let _ = ready.send(Ok(()));
                        worker.run();
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            })?;
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
        is_ready.recv().map_err(io::Error::other)??;
        self.workers.push(WorkerHandle { mailbox, counters });
        Ok(())
    }

    /// Adds a port with stopped rings. `mtu` bounds what is delivered to it.
    pub fn add_vhost_port(&self, id: PortId, queue_pairs: u16, mtu: Option<u16>) -> Arc<VhostPort> {
        let max_frame_bytes = mtu.map_or(MAX_FRAME_BYTES as u32, max_frame_bytes);
        let queues = Arc::new(VhostQueues::new(id, queue_pairs, max_frame_bytes));
        self.replace(id, Some(Port::Vhost(Arc::clone(&queues))));
        let mailboxes = self
            .workers
            .iter()
            .map(|worker| Arc::clone(&worker.mailbox))
            .collect();
        Arc::new(VhostPort::new(queues, Arc::clone(&self.shared), mailboxes))
    }

    /// Adds a TAP port; a worker reads it from now on.
    pub fn add_tap_port(&self, id: PortId, tap: Tap) {
        let port = Arc::new(TapPort {
            id,
            tap,
            from_host: QueueCounters::default(),
            to_host: Mutex::new(QueueCounters::default()),
            drops: DropCounters::default(),
        });
        self.replace(id, Some(Port::Tap(Arc::clone(&port))));
        if let Some(worker) = self.workers.get(id.index() % self.workers.len().max(1)) {
            worker.mailbox.post(Command::WatchTap(port));
        }
    }

    /// Removes a port: its rings are stopped, and when this returns no worker holds anything of it.
    pub fn remove_port(&self, id: PortId) {
        let port = self.shared.ports.load().get(id).cloned();
        self.replace(id, None);
        match port {
            Some(Port::Vhost(port)) => {
                for queue in &port.queues {
                    queue.control(|slot| slot.take().map(|active| active.ring.stop()));
                    port.ring_stopped(queue.index);
                    self.tell_all(|| Command::ForgetQueue(Arc::clone(queue)));
                }
            }
            Some(Port::Tap(port)) => {
                drop(port);
                self.tell_all(|| Command::ForgetTap(id));
            }
            None => {}
        }
        self.settle();
    }

    /// A port's counters; `None` when there is no such port.
    pub fn counters(&self, id: PortId) -> Option<PortCounters> {
        self.shared.ports.load().get(id).map(Port::counters)
    }

    /// What each worker did so far.
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        self.workers
            .iter()
            .map(|worker| worker.counters.stats())
            .collect()
    }

    /// Ends the workers after the batch in hand, and waits for them.
    pub fn stop(&self) {
        self.tell_all(|| Command::Stop);
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
        let (done, settled) = std::sync::mpsc::channel();
        self.tell_all(|| Command::Settle(done.clone()));
        drop(done);
        for _ in &self.workers {
            if settled.recv_timeout(SETTLE_TIMEOUT).is_err() {
                log::warn!("a worker did not answer within {SETTLE_TIMEOUT:?}");
                return;
            }
        }
    }

    fn tell_all(&self, command: impl Fn() -> Command) {
        self.workers
            .iter()
            .for_each(|worker| worker.mailbox.post(command()));
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
