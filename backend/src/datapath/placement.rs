//! Which worker serves a source, and how a source changes hands while frames flow.
//!
//! Control threads only. A source (a guest-tx ring, a TAP or a stream) is told to forget it to the worker that has it, which does so between
//! two batches and answers; only then the other is told to serve it, and looks at it at least once whether it is kicked or
//! not. So frames neither overtake each other nor wait unheard, and the rings themselves never notice.

use super::ports::{Port, PortTable, TapPort};
use super::queue::Queue;
use super::stream_port::StreamPort;
use super::worker::{Command, Mailbox};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use switch_core::PortId;

/// How long a worker may take to answer. A batch takes microseconds; only a stopped process takes this long.
pub const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a source is served. Changed by control threads, with [`Workers`] locked.
#[derive(Debug, Default)]
pub struct Placement {
    worker: AtomicU32,
    pinned: AtomicBool,
}

impl Placement {
    /// The worker's index.
    pub fn worker(&self) -> usize {
        self.worker.load(Ordering::Relaxed) as usize
    }

    /// Whether an operator put it there, so that it stays.
    pub fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Relaxed)
    }

    pub(super) fn place(&self, worker: usize) {
        self.worker.store(worker as u32, Ordering::Relaxed);
    }

    fn pin(&self, pinned: bool) {
        self.pinned.store(pinned, Ordering::Relaxed);
    }
}

/// A source by name: a queue pair's guest-tx ring; a TAP or a stream is its port's pair 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId {
    /// The port.
    pub port: PortId,
    /// The queue pair.
    pub pair: u16,
}

/// Where frames come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A guest-tx ring.
    Ring(Arc<Queue>),
    /// A TAP.
    Tap(Arc<TapPort>),
    /// What a stream port's peer sends.
    Stream(Arc<StreamPort>),
}

impl Source {
    /// A port's sources, by pair.
    pub fn of_port(port: &Port) -> Vec<Self> {
        match port {
            Port::Vhost(port) => {
                let guest_tx = port.queues.iter().filter(|queue| queue.index.is_guest_tx());
                guest_tx.cloned().map(Self::Ring).collect()
            }
            Port::Tap(port) => vec![Self::Tap(Arc::clone(port))],
            Port::Stream(port) => vec![Self::Stream(Arc::clone(port))],
        }
    }

    /// Every port's sources.
    pub fn of_all(ports: &PortTable) -> impl Iterator<Item = Self> + '_ {
        ports.iter().flat_map(Self::of_port)
    }

    /// Its name.
    pub fn id(&self) -> SourceId {
        match self {
            Self::Ring(queue) => SourceId {
                port: queue.port,
                pair: queue.index.pair(),
            },
            Self::Tap(port) => SourceId {
                port: port.id,
                pair: 0,
            },
            Self::Stream(port) => SourceId {
                port: port.id,
                pair: 0,
            },
        }
    }

    /// Where it is served.
    pub fn placement(&self) -> &Placement {
        match self {
            Self::Ring(queue) => &queue.placement,
            Self::Tap(port) => &port.placement,
            Self::Stream(port) => &port.placement,
        }
    }

    /// Time that workers spent on its frames so far.
    pub fn busy_ns(&self) -> u64 {
        match self {
            Self::Ring(queue) => queue.counters.busy_ns.get(),
            Self::Tap(port) => port.from_host.busy_ns.get(),
            Self::Stream(port) => port.from_peer.busy_ns.get(),
        }
    }

    /// Frames taken from it so far.
    pub fn frames(&self) -> u64 {
        match self {
            Self::Ring(queue) => queue.counters.frames.get(),
            Self::Tap(port) => port.from_host.frames.get(),
            Self::Stream(port) => port.from_peer.frames.get(),
        }
    }

    /// Whether frames are taken from it: a TAP always is read, a ring once its front-end started it, a stream while a
    /// peer is connected.
    pub fn runs(&self) -> bool {
        match self {
            Self::Ring(queue) => queue.control(|slot| slot.is_some()),
            Self::Tap(_) => true,
            Self::Stream(port) => port.is_connected(),
        }
    }

    /// Whether both are the very same.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ring(queue), Self::Ring(other)) => Arc::ptr_eq(queue, other),
            (Self::Tap(port), Self::Tap(other)) => Arc::ptr_eq(port, other),
            (Self::Stream(port), Self::Stream(other)) => Arc::ptr_eq(port, other),
            _ => false,
        }
    }
}

/// Where a source is to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// By this worker, and to stay there.
    Pinned(usize),
    /// By this worker for now.
    Worker(usize),
    /// Where it is, until its load says otherwise.
    Automatic,
}

/// Every worker's mailbox, and the lock that keeps what is posted in the order of what was decided.
#[derive(Debug)]
pub struct Workers {
    mailboxes: Vec<Arc<Mailbox>>,
    placing: Mutex<()>,
}

impl Workers {
    /// These workers, by index; at least one.
    pub fn new(mailboxes: Vec<Arc<Mailbox>>) -> Self {
        Self {
            mailboxes,
            placing: Mutex::new(()),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.mailboxes.len()
    }

    /// Tells every worker.
    pub fn tell_all(&self, command: impl Fn() -> Command) {
        for mailbox in &self.mailboxes {
            mailbox.post(command());
        }
    }

    /// Has the worker that a source is assigned to look at it, with what it is now.
    pub fn watch(&self, source: &Source) {
        let _placing = self.placing();
        self.post(source.placement().worker(), Command::Watch(source.clone()));
    }

    /// Has it let go of the source.
    pub fn forget(&self, source: &Source) {
        let _placing = self.placing();
        self.post(source.placement().worker(), Command::Forget(source.clone()));
    }

    /// Has a worker do something with a frame of the control side, the same one for all frames of a port. `false` when too many wait
    /// there.
    pub fn hand_over(&self, port: PortId, command: Command) -> bool {
        self.post(port.index() % self.count().max(1), command)
    }

    /// Has one worker do something.
    pub fn ask(&self, worker: usize, command: Command) {
        self.post(worker, command);
    }

    /// Moves a source while frames flow; the worker it is at afterwards, which is the old one if that did not answer. It is looked at there
    /// also when it stays.
    pub fn place(&self, source: &Source, destination: Destination) -> usize {
        let _placing = self.placing();
        let placement = source.placement();
        let from = placement.worker();
        let to = match destination {
            Destination::Pinned(worker) | Destination::Worker(worker) => worker,
            Destination::Automatic => from,
        };
        if to != from && to < self.mailboxes.len() {
            self.post(from, Command::Forget(source.clone()));
            if self.settled(from) {
                placement.place(to);
            }
            // Watched also where it was: should the answer come after all, this follows it.
            self.post(placement.worker(), Command::Watch(source.clone()));
        } else if to == from {
            // Looked at anew, so that a kick which got lost is made good.
            self.post(from, Command::Watch(source.clone()));
        }
        placement.pin(matches!(destination, Destination::Pinned(_)));
        placement.worker()
    }

    /// Whether a worker has done what it was told so far: a batch at most.
    fn settled(&self, worker: usize) -> bool {
        let (done, settled) = channel();
        self.post(worker, Command::Settle(done));
        settled.recv_timeout(SETTLE_TIMEOUT).is_ok()
    }

    /// Whether every worker has.
    pub fn all_settled(&self) -> bool {
        let (done, settled) = channel();
        self.tell_all(|| Command::Settle(done.clone()));
        drop(done);
        self.mailboxes
            .iter()
            .all(|_| settled.recv_timeout(SETTLE_TIMEOUT).is_ok())
    }

    fn post(&self, worker: usize, command: Command) -> bool {
        self.mailboxes
            .get(worker)
            .is_some_and(|mailbox| mailbox.post(command))
    }

    fn placing(&self) -> MutexGuard<'_, ()> {
        self.placing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Chooses workers for new sources: those with the least to do, and of these the one with the fewest sources.
#[derive(Debug)]
pub struct Seats {
    /// Busy tenths in the last window, and sources, by worker.
    taken: Vec<(u64, usize)>,
}

impl Seats {
    /// What workers are at: their busy share of the last window in thousandths, and every source there is.
    pub fn new(busy_permille: &[u64], ports: &PortTable) -> Self {
        let mut taken: Vec<_> = busy_permille.iter().map(|busy| (busy / 100, 0)).collect();
        for source in Source::of_all(ports) {
            if let Some((_, sources)) = taken.get_mut(source.placement().worker()) {
                *sources += 1;
            }
        }
        Self { taken }
    }

    /// The worker for one more source.
    pub fn take(&mut self) -> usize {
        let least = (0..).zip(&mut self.taken).min_by_key(|(_, taken)| **taken);
        let Some((worker, (_, sources))) = least else {
            return 0;
        };
        *sources += 1;
        worker
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_sources_go_where_there_is_least_to_do() {
        let ports = PortTable::default();
        let seats = |busy: &[u64], count| {
            let mut seats = Seats::new(busy, &ports);
            (0..count).map(|_| seats.take()).collect::<Vec<_>>()
        };
        assert_eq!(seats(&[0, 0, 0], 6), [0, 1, 2, 0, 1, 2]);
        assert_eq!(seats(&[950, 120, 880], 2), [1, 1]);
        assert_eq!(seats(&[5, 90], 2), [0, 1], "next to nothing is nothing");
    }
}
