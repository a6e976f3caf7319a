//! What each source costs its worker, window by window, and what follows from it.
//!
//! Control thread only. A window is the time between two calls of [`Loads::measure`], about a second.

use super::balance::{Balancer, Load, Move};
use super::cpu_time::now_ns;
use super::placement::{Source, SourceId};
use super::ports::PortTable;
use std::collections::HashMap;

/// A source, where it is served and what that costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceStats {
    /// Which.
    pub source: SourceId,
    /// The worker that serves it.
    pub worker: usize,
    /// Whether an operator put it there.
    pub pinned: bool,
    /// Frames taken from it.
    pub frames: u64,
    /// Time that workers spent on them, in nanoseconds.
    pub busy_ns: u64,
    /// Share of the last window that its worker spent on it, in thousandths.
    pub busy_permille: u64,
}

impl SourceStats {
    /// As it is now, with the share it had.
    pub fn of(source: &Source, busy_permille: u64) -> Self {
        let placement = source.placement();
        Self {
            source: source.id(),
            worker: placement.worker(),
            pinned: placement.is_pinned(),
            frames: source.frames(),
            busy_ns: source.busy_ns(),
            busy_permille,
        }
    }
}

/// The last window, and the policy that it is shown to.
#[derive(Debug)]
pub struct Loads {
    workers: usize,
    started_ns: u64,
    /// Frames of all workers at the window's start.
    frames: u64,
    /// By source: busy time at the window's start, and its share of the last window in thousandths.
    busy: HashMap<SourceId, (u64, u64)>,
    balancer: Balancer,
}

impl Loads {
    /// Nothing measured yet.
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            started_ns: now_ns(),
            frames: 0,
            busy: HashMap::new(),
            balancer: Balancer::default(),
        }
    }

    /// Ends a window; what is to be moved. `frames` is the sum over all workers: when it has not changed nothing else is looked at,
    /// so that an idle switch with a thousand ports costs nothing.
    pub fn measure(&mut self, ports: &PortTable, frames: u64) -> Option<Move> {
        let now = now_ns();
        let window_ns = now
            .saturating_sub(std::mem::replace(&mut self.started_ns, now))
            .max(1);
        let idle = std::mem::replace(&mut self.frames, frames) == frames;
        if idle {
            self.busy
                .values_mut()
                .for_each(|(_, permille)| *permille = 0);
            return self.balancer.plan(self.workers, &[]);
        }
        let mut loads = Vec::new();
        let mut busy = HashMap::with_capacity(self.busy.len());
        for source in Source::of_all(ports) {
            let (id, busy_ns) = (source.id(), source.busy_ns());
            if busy_ns == 0 {
                continue;
            }
            // A counter that went down is that of a port that was added anew.
            let before = self.busy.get(&id).map_or(0, |&(before, _)| before);
            let spent_ns = busy_ns.checked_sub(before).unwrap_or(busy_ns);
            let busy_permille = spent_ns.saturating_mul(1000) / window_ns;
            busy.insert(id, (busy_ns, busy_permille));
            if busy_permille > 0 {
                loads.push(Load {
                    source: id,
                    worker: source.placement().worker(),
                    busy_permille,
                    pinned: source.placement().is_pinned(),
                });
            }
        }
        self.busy = busy;
        self.balancer.plan(self.workers, &loads)
    }

    /// A source's share of the last window, in thousandths.
    pub fn busy_permille(&self, source: SourceId) -> u64 {
        self.busy.get(&source).map_or(0, |&(_, permille)| permille)
    }

    /// Each worker's share of the last window, in thousandths.
    pub fn by_worker(&self, ports: &PortTable) -> Vec<u64> {
        let mut sums = vec![0; self.workers];
        for source in Source::of_all(ports) {
            if let Some(sum) = sums.get_mut(source.placement().worker()) {
                *sum += self.busy_permille(source.id());
            }
        }
        sums
    }
}
