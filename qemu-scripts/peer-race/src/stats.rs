//! From rounds to figures: medians, spreads, and ratios taken round by round, apart for each distance of the cores.
//!
//! Pure. Keeps true: a ratio compares turns of the same round only, and rounds of different distances never meet.

use std::time::Duration;

use crate::guest::{Delay, Seen};
use crate::machine::Distance;
use crate::switch::{Side, Spent};

/// What a switch's core spent on its frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Of each frame taken from a guest.
    pub cycles_per_frame: f64,
    /// Share of its core's time, 0 to 1.
    pub busy: f64,
    /// False: vain polls are in it, so both are upper bounds.
    pub exact: bool,
}

impl Work {
    /// From what was spent while traffic flowed for a time. `None` of no frames.
    pub fn of(spent: &Spent, flowed: Duration, clock_ghz: f64) -> Option<Self> {
        let all = flowed.as_nanos() as f64 * clock_ghz;
        (spent.frames > 0.0 && all > 0.0).then(|| Self {
            cycles_per_frame: spent.cycles / spent.frames,
            // The switch counts a little longer than the time is taken.
            busy: (spent.cycles / all).min(1.0),
            exact: spent.exact,
        })
    }
}

/// One side's turn in a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// Who.
    pub side: Side,
    /// What its guest saw.
    pub seen: Seen,
    /// What its core spent; `None` where that says nothing.
    pub work: Option<Work>,
}

/// One round: every side's turn, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// Of the cores, throughout.
    pub distance: Distance,
    /// Cache-line round trips before, between and after the turns.
    pub round_trips_ns: Vec<f64>,
    /// What waking a thread on the other core takes, where the case is about that.
    pub bare_wake: Option<Delay>,
    /// In order.
    pub turns: Vec<Turn>,
}

/// Middle and ends of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle value, or the mean of the two middle ones.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// `None` of no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        let median = f64::midpoint(lower, upper);
        Some(Self { median, min, max })
    }
}

impl Turn {
    /// What is compared: frames a second, or pings a second of the median ping. More is better.
    pub fn score(&self) -> f64 {
        match &self.seen {
            Seen::Rate(rate) => rate.frames_per_s,
            Seen::Delay(delay) => 1e9 / delay.p50_ns.max(1.0),
        }
    }
}

impl Round {
    /// One side's turn, if it took part.
    pub fn turn(&self, side: Side) -> Option<&Turn> {
        self.turns.iter().find(|turn| turn.side == side)
    }

    /// How many times better `one` was than `other` in this round.
    pub fn ratio(&self, one: Side, other: Side) -> Option<f64> {
        let (one, other) = (self.turn(one)?.score(), self.turn(other)?.score());
        (other > 0.0).then_some(one / other)
    }
}

/// The rounds of one distance.
pub fn at(rounds: &[Round], distance: Distance) -> Vec<&Round> {
    rounds
        .iter()
        .filter(|round| round.distance == distance)
        .collect()
}

/// The ratio in each of these rounds that has both sides.
pub fn ratios(rounds: &[&Round], one: Side, other: Side) -> Option<Spread> {
    Spread::of(rounds.iter().filter_map(|round| round.ratio(one, other)))
}

/// Some value of one side's turns.
pub fn of_side(
    rounds: &[&Round],
    side: Side,
    value: impl Fn(&Turn) -> Option<f64>,
) -> Option<Spread> {
    Spread::of(rounds.iter().filter_map(|round| value(round.turn(side)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Rate;

    fn round(distance: Distance, ours: f64, theirs: f64) -> Round {
        let turn = |side, frames_per_s| Turn {
            side,
            seen: Seen::Rate(Rate {
                frames_per_s,
                ..Rate::default()
            }),
            work: None,
        };
        Round {
            distance,
            round_trips_ns: Vec::new(),
            bare_wake: None,
            turns: vec![turn(Side::Ringswitch, ours), turn(Side::Ovs, theirs)],
        }
    }

    #[test]
    fn the_median_is_the_middle_of_any_order() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        let expected = Spread {
            median: 2.0,
            min: 1.0,
            max: 9.0,
        };
        assert_eq!(of(&[9.0, 1.0, 2.0]), Some(expected));
        assert_eq!(of(&[4.0, 1.0, 2.0, 9.0]).map(|s| s.median), Some(3.0));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_ratio_is_taken_within_each_round_not_between_medians() {
        // Between medians it would be 20 / 10; but in most rounds it was 3.
        let rounds = [
            round(Distance::Near, 30.0, 10.0),
            round(Distance::Near, 15.0, 5.0),
            round(Distance::Near, 20.0, 40.0),
        ];
        let near = at(&rounds, Distance::Near);
        let ratio = ratios(&near, Side::Ringswitch, Side::Ovs).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (3.0, 0.5, 3.0));
        assert_eq!(ratios(&near, Side::Ringswitch, Side::Io), None);
    }

    #[test]
    fn work_is_measured_against_the_time_in_which_traffic_flowed() {
        let spent = Spent {
            cycles: 1e9,
            frames: 1e7,
            exact: true,
            dropped: None,
        };
        let work = Work::of(&spent, Duration::from_secs(1), 2.0).unwrap();
        assert_eq!((work.cycles_per_frame, work.busy), (100.0, 0.5));
        let none = Spent {
            frames: 0.0,
            ..spent
        };
        assert_eq!(Work::of(&none, Duration::from_secs(1), 2.0), None);
    }

    #[test]
    fn rounds_of_different_distances_never_meet() {
        let rounds = [
            round(Distance::Near, 10.0, 5.0),
            round(Distance::Far, 4.0, 4.0),
            round(Distance::Changed, 1000.0, 1.0),
        ];
        let ratio = |distance| ratios(&at(&rounds, distance), Side::Ringswitch, Side::Ovs).unwrap();
        assert_eq!(ratio(Distance::Near).max, 2.0);
        assert_eq!(ratio(Distance::Far).max, 1.0);
        let ours = of_side(&at(&rounds, Distance::Near), Side::Ringswitch, |turn| {
            Some(turn.score())
        });
        assert_eq!(
            ours.map(|spread| (spread.min, spread.max)),
            Some((10.0, 10.0))
        );
    }
}
