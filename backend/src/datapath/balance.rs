//! When a source moves to another worker by itself.
//!
//! Decided once a second by the control thread, from the time that workers spent on each source meanwhile; carried out by
//! [`placement`](super::placement). [`Balancer::plan`] is a pure function of loads and of what was decided before.
//!
//! Moving is cheap (the two workers finish a batch), but each move costs a guest's ring its place in a cache, so it must be
//! worth while: the busiest worker must be at work for [`BUSY`] of the time, the move must take a [`LEAST_GAIN`]th of the gap
//! from it without making the other the busier one, and that must have been so for [`SUSTAINED`] windows. One source moves
//! at a time, and not again for [`REST`] windows. Since each move lowers the higher of two loads, steady loads come to rest.

use super::placement::SourceId;
use std::collections::HashMap;

/// A source's load in one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Which.
    pub source: SourceId,
    /// Who served it.
    pub worker: usize,
    /// Share of the window that the worker spent on its frames, in thousandths.
    pub busy_permille: u64,
    /// Whether an operator put it there, so that it stays.
    pub pinned: bool,
}

/// A source to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub source: SourceId,
    /// From this worker.
    pub from: usize,
    /// To this one.
    pub to: usize,
}

/// Below this load, in thousandths, a worker is not relieved: it has time for everything.
pub const BUSY: u64 = 400;
/// Windows in a row for which a move must be worth while.
pub const SUSTAINED: u32 = 3;
/// The busiest worker must be relieved of the gap divided by this, or more.
pub const LEAST_GAIN: u64 = 5;
/// Windows for which a source that was moved stays.
pub const REST: u64 = 30;
/// Smallest gain, in thousandths, whatever the gap: what is less is noise.
const NOISE: u64 = 50;

/// What was seen and decided in earlier windows.
#[derive(Clone, Debug, Default)]
pub struct Balancer {
    window: u64,
    /// Windows in a row in which a move was worth while.
    sustained: u32,
    /// The window in which a source was moved, while it rests.
    moved: HashMap<SourceId, u64>,
}

impl Balancer {
    /// One window has passed: what to move, if anything.
    pub fn plan(&mut self, workers: usize, loads: &[Load]) -> Option<Move> {
        self.window += 1;
        let window = self.window;
        self.moved.retain(|_, moved| window - *moved < REST);
        let Some(found) = self.best(workers, loads) else {
            self.sustained = 0;
            return None;
        };
        self.sustained += 1;
        if self.sustained < SUSTAINED {
            return None;
        }
        // The next move has to prove itself under the new loads; but that there is an imbalance is known.
        self.sustained = SUSTAINED - 2;
        self.moved.insert(found.source, window);
        Some(found)
    }

    /// The move that relieves the busiest worker most.
    fn best(&self, workers: usize, loads: &[Load]) -> Option<Move> {
        let mut sums = vec![0u64; workers];
        for load in loads {
            if let Some(sum) = sums.get_mut(load.worker) {
                *sum += load.busy_permille;
            }
        }
        // Of equals the first.
        let (from, most) = sums
            .iter()
            .copied()
            .enumerate()
            .rev()
            .max_by_key(|&(_, sum)| sum)?;
        let (to, least) = sums
            .iter()
            .copied()
            .enumerate()
            .min_by_key(|&(_, sum)| sum)?;
        if most < BUSY {
            return None;
        }
        let gain = |load: &Load| {
            let after = (most - load.busy_permille).max(least + load.busy_permille);
            most.saturating_sub(after)
        };
        let movable = loads.iter().filter(|load| {
            load.worker == from && !load.pinned && !self.moved.contains_key(&load.source)
        });
        let best = movable.rev().max_by_key(|load| gain(load))?;
        let worth_while = gain(best) >= NOISE.max((most - least) / LEAST_GAIN);
        worth_while.then_some(Move {
            source: best.source,
            from,
            to,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use switch_core::PortId;

    fn load(port: u16, worker: usize, busy_permille: u64) -> Load {
        Load {
            source: SourceId {
                port: PortId::new(port).unwrap(),
                pair: 0,
            },
            worker,
            busy_permille,
            pinned: false,
        }
    }

    /// Windows in which something moved, with the loads following the moves.
    fn run(
        balancer: &mut Balancer,
        workers: usize,
        loads: &mut [Load],
        windows: u64,
    ) -> Vec<(u64, Move)> {
        let mut moves = Vec::new();
        for window in 1..=windows {
            if let Some(found) = balancer.plan(workers, loads) {
                let moved = loads
                    .iter_mut()
                    .find(|load| load.source == found.source)
                    .unwrap();
                assert_eq!(moved.worker, found.from);
                moved.worker = found.to;
                moves.push((window, found));
            }
        }
        moves
    }

    fn highest(workers: usize, loads: &[Load]) -> u64 {
        let sum = |worker| {
            loads
                .iter()
                .filter(|l| l.worker == worker)
                .map(|l| l.busy_permille)
                .sum()
        };
        (0..workers).map(sum).max().unwrap()
    }

    #[test]
    fn two_busy_sources_on_one_worker_separate_after_some_windows() {
        let mut loads = [load(1, 0, 500), load(2, 0, 500)];
        let moves = run(&mut Balancer::default(), 2, &mut loads, 100);
        assert_eq!(moves.len(), 1, "{moves:?}");
        assert_eq!(moves[0].0, u64::from(SUSTAINED));
        assert_eq!(highest(2, &loads), 500);
    }

    #[test]
    fn an_imbalance_that_does_not_last_moves_nothing() {
        let mut balancer = Balancer::default();
        for window in 0..100 {
            let busy = if window % 3 == 0 { 100 } else { 500 };
            let loads = [load(1, 0, busy), load(2, 0, busy)];
            assert_eq!(balancer.plan(2, &loads), None);
        }
    }

    #[test]
    fn what_is_not_worth_while_is_left_alone() {
        let cases: [&[Load]; 5] = [
            // One source that fills a worker is nowhere better off.
            &[load(1, 0, 1000), load(2, 1, 0)],
            // Everybody has time.
            &[load(1, 0, 190), load(2, 0, 190)],
            // Balanced but for noise.
            &[load(1, 0, 500), load(2, 0, 40), load(3, 1, 480)],
            // It would only turn the imbalance round.
            &[load(1, 0, 800), load(2, 0, 10), load(3, 1, 100)],
            &[],
        ];
        for loads in cases {
            let mut loads = loads.to_vec();
            assert_eq!(
                run(&mut Balancer::default(), 2, &mut loads, 50),
                [],
                "{loads:?}"
            );
        }
    }

    #[test]
    fn a_pinned_source_stays_and_others_make_room() {
        let mut loads = [load(1, 0, 500), load(2, 0, 450), load(3, 1, 0)];
        loads[0].pinned = true;
        run(&mut Balancer::default(), 2, &mut loads, 50);
        assert_eq!(loads.map(|load| load.worker), [0, 1, 1]);
        loads[1].pinned = true;
        loads[1].worker = 0;
        assert_eq!(run(&mut Balancer::default(), 2, &mut loads, 50), []);
    }

    #[test]
    fn a_source_whose_load_swings_is_not_sent_to_and_fro() {
        let mut balancer = Balancer::default();
        let (mut worker, mut moves) = (0, 0);
        // Others come and go on whichever worker it is at, as if to chase it.
        for _ in 0..300 {
            let loads = [load(1, worker, 400), load(2 + worker as u16, worker, 550)];
            if let Some(found) = balancer.plan(2, &loads) {
                moves += 1;
                if found.source.port.get() == 1 {
                    worker = found.to;
                }
            }
        }
        assert!(moves <= 2 * 300 / REST + 2, "{moves} moves in 300 windows");
    }

    proptest! {
        /// Whatever the loads, if they stay as they are: few moves, each of use, then rest.
        #[test]
        fn steady_loads_come_to_rest(
            workers in 1usize..6,
            sources in proptest::collection::vec((0usize..6, 0u64..700, any::<bool>()), 0..40),
        ) {
            let mut loads: Vec<Load> = (0u16..).zip(&sources).map(|(port, &(worker, busy, pinned))| Load {
                pinned,
                ..load(port, worker % workers, busy)
            }).collect();
            let before = loads.clone();
            let mut balancer = Balancer::default();
            let mut highest_so_far = highest(workers, &loads);
            let mut moves = 0;
            for _ in 0..40 * 40 {
                let Some(found) = balancer.plan(workers, &loads) else { continue };
                let moved = loads.iter_mut().find(|l| l.source == found.source).unwrap();
                prop_assert!(!moved.pinned);
                prop_assert_eq!(moved.worker, found.from);
                prop_assert!(found.to != found.from && found.to < workers);
                moved.worker = found.to;
                moves += 1;
                prop_assert!(highest(workers, &loads) <= highest_so_far);
                highest_so_far = highest(workers, &loads);
            }
            prop_assert!(moves <= 4 * sources.len(), "{} moves of {} sources", moves, sources.len());
            prop_assert_eq!(run(&mut balancer, workers, &mut loads, 2 * REST), []);
            for (old, new) in before.iter().zip(&loads) {
                prop_assert!(!old.pinned || old.worker == new.worker);
            }
        }

        /// Sources that take what they can get, and loads that show only what they got.
        #[test]
        fn greedy_sources_spread_and_stay(workers in 2usize..5, demands in proptest::collection::vec(0u64..1000, 1..24)) {
            let mut at = vec![0usize; demands.len()];
            let mut balancer = Balancer::default();
            let mut last_move = 0;
            let mut moves = 0;
            for window in 0..1500 {
                let mut loads = Vec::new();
                for worker in 0..workers {
                    let here: Vec<usize> = (0..at.len()).filter(|&n| at[n] == worker).collect();
                    let wanted: u64 = here.iter().map(|&n| demands[n]).sum();
                    for n in here {
                        let got = if wanted > 1000 { demands[n] * 1000 / wanted } else { demands[n] };
                        loads.push(load(n as u16, worker, got));
                    }
                }
                if let Some(found) = balancer.plan(workers, &loads) {
                    at[usize::from(found.source.port.get())] = found.to;
                    last_move = window;
                    moves += 1;
                }
            }
            prop_assert!(last_move < 1000, "still moving in window {}", last_move);
            prop_assert!(moves <= 6 * demands.len(), "{} moves", moves);
        }
    }
}
