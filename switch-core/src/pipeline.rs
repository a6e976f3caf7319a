//! A worker's way through the switch: flow cache first, tables on a miss.
//!
//! Each worker owns one, calls [`Pipeline::begin_batch`] before the frames of a batch and [`Pipeline::classify`] for each. Frames of
//! one flow mostly come in a row, so the latest verdict is asked first, before the flow cache. A hit takes no lock and writes
//! nothing shared. Kept true: a verdict from either is the one that the tables would have given.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use crate::drop_reason::DropReason;
use crate::flow_cache::FlowCache;
use crate::flow_key::FlowKey;
use crate::flow_list::FlowWalk;
use crate::mac_table::MacEpochs;
use crate::outcomes::Outcomes;
use crate::port::PortId;
use crate::port_tables::PortTables;
use crate::program::{Learning, Program, Unobserved};
use crate::rate_limit::TokenBucket;
use crate::switch::Switch;
use crate::time::Millis;
use crate::verdict::{Flood, Verdict};
use crate::vlan_edit::VlanEdit;

/// What a port may still make this worker do.
#[derive(Clone, Copy)]
struct PortBudget {
    learn: TokenBucket,
    flow: TokenBucket,
}

/// The latest verdict that may be given again, within its millisecond and port tables.
struct Latest {
    key: FlowKey,
    verdict: Verdict,
    /// The MAC table's changes when it was given; [`NEVER`] for none.
    changes: u64,
}

/// No count of changes.
const NEVER: u64 = u64::MAX;

impl Latest {
    const NONE: Self = Self {
        key: FlowKey { low: 0, high: 0 },
        verdict: Verdict::Drop(DropReason::NoDestination),
        changes: NEVER,
    };
}

/// How a pipeline came to its verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipelineStats {
    /// Frames that were decided by the tables rather than from the cache.
    pub misses: u64,
    /// Verdicts put into the cache.
    pub remembered: u64,
    /// Verdicts not put there because their port was over its rate.
    pub over_rate: u64,
}

/// One worker's view of a [`Switch`].
pub struct Pipeline {
    switch: Arc<Switch>,
    tables: Arc<PortTables>,
    epochs: Arc<MacEpochs>,
    latest: Latest,
    cache: FlowCache,
    budgets: Vec<PortBudget>,
    now: Millis,
    stats: PipelineStats,
    /// Stays empty: the built-in program changes tags alone, and has no copies but floods.
    outcomes: Outcomes,
}

impl Pipeline {
    /// A pipeline with an empty cache. All the memory it will need is taken here, but for a port's budget when one is added.
    pub fn new(switch: Arc<Switch>) -> Self {
        let seed = RandomState::new().hash_one(0);
        let mut pipeline = Self {
            tables: switch.tables(),
            epochs: Arc::clone(switch.macs().epochs()),
            switch,
            latest: Latest::NONE,
            cache: FlowCache::new(seed),
            budgets: Vec::new(),
            now: Millis(0),
            stats: PipelineStats::default(),
            outcomes: Outcomes::new(),
        };
        pipeline.fit_budgets();
        pipeline
    }

    /// Starts a batch: sets the time, and picks up the port configuration if it changed.
    pub fn begin_batch(&mut self, now: Millis) {
        if now != self.now {
            self.now = now;
            self.cache.set_time(now);
            self.latest = Latest::NONE;
        }
        if self.switch.tables_epoch() != self.tables.epoch() {
            self.tables = self.switch.tables();
            self.latest = Latest::NONE;
            self.fit_budgets();
        }
    }

    /// Decides what happens to a frame that came from `in_port`. `header` is a private copy of the frame's start: at least its
    /// first 18 bytes, or all of a shorter frame.
    #[inline]
    pub fn classify(&mut self, in_port: PortId, header: &[u8]) -> Verdict {
        match FlowKey::parse(in_port, header) {
            Ok(key) if self.latest.key == key && self.latest.changes == self.epochs.changes() => {
                self.latest.verdict
            }
            Ok(key) => self.look_up(key),
            Err(reason) => Verdict::Drop(reason),
        }
    }

    #[inline]
    fn look_up(&mut self, key: FlowKey) -> Verdict {
        // Before anything is read that a change may concern.
        let changes = self.epochs.changes();
        match self.cache.get(key, self.tables.epoch(), &self.epochs) {
            Some(verdict) => {
                self.latest = Latest {
                    key,
                    verdict,
                    changes,
                };
                verdict
            }
            None => {
                self.latest = Latest::NONE;
                self.classify_by_tables(key)
            }
        }
    }

    /// The ports a flooded frame leaves by, each with its edit; never the one it came from. For a flood of this batch.
    #[inline]
    pub fn flood_members(&self, flood: Flood) -> impl Iterator<Item = (PortId, VlanEdit)> + '_ {
        self.tables.flood_members(flood)
    }

    /// What the verdicts of this batch refer to.
    #[inline]
    pub fn outcomes(&self) -> &Outcomes {
        &self.outcomes
    }

    /// How the verdicts so far came about.
    pub fn stats(&self) -> PipelineStats {
        self.stats
    }

    /// The switch this pipeline serves.
    pub fn switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// Goes on with a walk through the flow cache, by one step: shows the verdicts that a frame would get from it at `now`.
    pub fn list_flows(&self, walk: &mut FlowWalk, now: Millis) {
        walk.begin_step();
        let tables_epoch = self.switch.tables_epoch();
        self.cache.list(walk, now, tables_epoch, &self.epochs);
    }

    #[cold]
    #[inline(never)]
    fn classify_by_tables(&mut self, key: FlowKey) -> Verdict {
        self.stats.misses += 1;
        let Some(budget) = self.budgets.get_mut(key.in_port().index()) else {
            return Verdict::Drop(DropReason::PortGone);
        };
        let program = Program {
            ports: &self.tables,
            macs: self.switch.macs(),
            now: self.now,
        };
        let evaluation =
            program.evaluate(key, Learning::Limited(&mut budget.learn), &mut Unobserved);
        if let Some(dependencies) = evaluation.dependencies {
            if !self.cache.would_evict(key) || budget.flow.take(self.now) {
                self.cache
                    .insert(key, evaluation.verdict, self.tables.epoch(), &dependencies);
                self.stats.remembered += 1;
            } else {
                self.stats.over_rate += 1;
            }
        }
        evaluation.verdict
    }

    fn fit_budgets(&mut self) {
        let config = self.switch.config();
        let full = PortBudget {
            learn: TokenBucket::full(config.learn_rate, self.now),
            flow: TokenBucket::full(config.flow_rate, self.now),
        };
        self.budgets.resize(self.tables.port_span(), full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_is_shared_and_a_pipeline_can_be_given_to_its_worker() {
        fn assert_shared<T: Send + Sync>() {}
        fn assert_movable<T: Send>() {}
        assert_shared::<Switch>();
        assert_movable::<Pipeline>();
    }
}
