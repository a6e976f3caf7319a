//! The machine the race runs on: its cores and clock, and whether the two cores are near each other or far apart.
//!
//! Filled in once at the start. Keeps true: rounds of different states are told apart by measurement.

use std::fmt;
use std::path::PathBuf;

use guest_sim::bench::cores;

use crate::error::Result;

/// Where and with what the race runs.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The guest's core.
    pub guest_core: usize,
    /// The switch's core.
    pub switch_core: usize,
    /// Of the time-stamp counter.
    pub clock_ghz: f64,
    /// The program under test.
    pub ringswitch: PathBuf,
    /// What it is given as `--program` where there are rules: `vpc`, or a file.
    pub vpc: String,
    /// Cache-line round trips above this are another state.
    pub far_ns: f64,
}

/// How far the two cores are apart. Virtual cores move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Distance {
    /// They share a cache.
    Near,
    /// They do not.
    Far,
    /// It changed during the round: its figures belong to neither.
    Changed,
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Near => "near",
            Self::Far => "far",
            Self::Changed => "changed",
        })
    }
}

impl Distance {
    /// From every round trip measured before, during and after a round.
    pub fn of_round(round_trips_ns: &[f64], far_ns: f64) -> Self {
        let far = round_trips_ns.iter().filter(|&&ns| ns > far_ns).count();
        match far {
            0 => Self::Near,
            all if all == round_trips_ns.len() => Self::Far,
            _ => Self::Changed,
        }
    }
}

impl Machine {
    /// The cores' cache-line round trip now, in nanoseconds. Both must be free.
    ///
    /// # Errors
    /// When a core does not exist.
    pub fn round_trip_ns(&self) -> Result<f64> {
        on_a_thread(|| Ok(cores::round_trip_ns(self.guest_core, self.switch_core)?))
    }
}

/// Runs `act` on a thread of its own, so that the core it pins itself to is not inherited by processes started later.
///
/// # Errors
/// Those of `act`.
pub fn on_a_thread<T: Send>(act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    match std::thread::scope(|scope| scope.spawn(act).join()) {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_a_distance_only_if_it_had_one_throughout() {
        let of = |trips: &[f64]| Distance::of_round(trips, 150.0);
        assert_eq!(of(&[50.0, 60.0, 149.0]), Distance::Near);
        assert_eq!(of(&[330.0, 310.0]), Distance::Far);
        assert_eq!(of(&[50.0, 330.0, 50.0]), Distance::Changed);
    }
}
