//! What workers' flow caches hold, for the control side.
//!
//! A cache is its worker's alone, so the worker is asked: a [`FlowQuestion`] goes into its mailbox with a page to be filled, and comes back full, or
//! when the whole cache was looked at. The worker fills it by steps of some microseconds that allocate nothing: one each time that it asks epoll
//! while it has frames, one after the other while it has none. Nobody waits for the asker: one who is gone is noticed at the next step.
//!
//! What bounds it: [`MAX_LISTINGS`] at a time, with one page at each worker.

use super::Program;
use super::placement::Workers;
use super::worker::Command;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use switch_core::engine::control::PortNames;
use switch_core::{Decide, FlowWalk, ListedFlow, Millis, PortId};

/// Listings at one time.
pub const MAX_LISTINGS: usize = 2;
/// Flows that a worker copies before it is asked to go on: a hundred kilobytes at most.
const PAGE_FLOWS: usize = 256;
/// How long workers may take for all. A full cache of a busy one takes it a second at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowListError {
    /// As many listings are under way as may be.
    #[error("{MAX_LISTINGS} listings of flows are under way, which is the most")]
    Busy,
    /// A worker has not answered in time.
    #[error("a worker did not answer within {} s", PATIENCE.as_secs())]
    NoAnswer,
    /// Workers have ended.
    #[error("the daemon is stopping")]
    Stopping,
}

/// A listing under way. Held by whoever asks and by the questions at the workers: as long as there is one of them, it counts.
#[derive(Debug)]
pub struct Listing {
    given_up: AtomicBool,
    under_way: Arc<AtomicUsize>,
}

impl Listing {
    /// Nobody wants it any more.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a worker is asked, with the page that it is to fill.
#[derive(Debug)]
pub struct FlowQuestion {
    worker: usize,
    walk: FlowWalk,
    listing: Arc<Listing>,
    answers: SyncSender<FlowQuestion>,
}

impl FlowQuestion {
    /// On the worker, between two batches: fills some more of the page. `true`: it is to be given back.
    pub fn step(&mut self, decider: &impl Decide, now: Millis) -> bool {
        if !self.listing.is_given_up() {
            decider.list_flows(&mut self.walk, now);
        }
        self.listing.is_given_up() || self.walk.rests()
    }

    /// Gives it back. There is room for it: each worker has one question of a listing.
    pub fn answer(self) {
        let answers = self.answers.clone();
        // Who gave up waiting takes nothing any more.
        drop(answers.try_send(self));
    }
}

/// The flows that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// With the worker that has it, and the port that its frames come from.
    pub flows: Vec<(usize, PortId, ListedFlow)>,
    /// There are more than were asked for.
    pub has_more: bool,
}

/// Asks workers. Cheap to clone.
#[derive(Clone)]
pub struct FlowLister {
    workers: Arc<Workers>,
    program: Program,
    under_way: Arc<AtomicUsize>,
}

impl fmt::Debug for FlowLister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowLister").finish_non_exhaustive()
    }
}

impl FlowLister {
    /// For these workers, on which this program runs.
    pub(super) fn new(workers: Arc<Workers>, program: Program) -> Self {
        Self {
            workers,
            program,
            under_way: Arc::default(),
        }
    }

    /// Makes place for a listing.
    ///
    /// # Errors
    /// [`FlowListError::Busy`].
    pub fn begin(&self) -> Result<Arc<Listing>, FlowListError> {
        let one_more = |count: usize| (count < MAX_LISTINGS).then_some(count + 1);
        self.under_way
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .map_err(|_| FlowListError::Busy)?;
        Ok(Arc::new(Listing {
            given_up: AtomicBool::new(false),
            under_way: Arc::clone(&self.under_way),
        }))
    }

    /// The flows that the workers' caches hold, of one port or of all: at most `limit`, in no order. Waits for the workers, so not to be called on
    /// the control thread.
    ///
    /// # Errors
    /// See [`FlowListError`].
    pub fn list(
        &self,
        listing: &Arc<Listing>,
        (port, limit): (Option<PortId>, usize),
        names: &dyn PortNames,
    ) -> Result<Flows, FlowListError> {
        let deadline = Instant::now() + PATIENCE;
        let (answers, answered) = sync_channel(self.workers.count());
        // One more than is wanted tells that there are more.
        let page_flows = PAGE_FLOWS.min(limit.saturating_add(1));
        for worker in 0..self.workers.count() {
            self.ask(FlowQuestion {
                worker,
                walk: FlowWalk::new(port, page_flows),
                listing: Arc::clone(listing),
                answers: answers.clone(),
            });
        }
        // From here on a worker that ends, and its question with it, is noticed.
        drop(answers);
        let engine = match &self.program {
            Program::L2 => None,
            Program::Engine(engine) => Some(&**engine),
        };
        let mut flows = Flows::default();
        let mut waiting = self.workers.count();
        while waiting > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut question = answered.recv_timeout(left).map_err(|error| {
                listing.give_up();
                match error {
                    RecvTimeoutError::Timeout => FlowListError::NoAnswer,
                    RecvTimeoutError::Disconnected => FlowListError::Stopping,
                }
            })?;
            if !listing.is_given_up() {
                let worker = question.worker;
                let found = question.walk.take(engine, names);
                let found = found.into_iter().map(|(port, flow)| (worker, port, flow));
                flows.flows.extend(found);
            }
            if flows.flows.len() > limit {
                flows.has_more = true;
                // The others are waited for, so that what they hold is freed here.
                listing.give_up();
            }
            if listing.is_given_up() || question.walk.has_ended() {
                waiting -= 1;
            } else {
                self.ask(question);
            }
        }
        flows.flows.truncate(limit);
        Ok(flows)
    }

    fn ask(&self, question: FlowQuestion) {
        let worker = question.worker;
        self.workers.ask(worker, Command::ListFlows(question));
    }
}
