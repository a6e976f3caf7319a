//! Runs cases: one set of switches and guests for all cases that share a rig, one switch with its guest at a time, turn by turn.
//!
//! Called by the program on its main thread. Keeps true: while one side has its turn every other process of the race is frozen, and while the
//! cores' distance is measured all of them are; a side that fails loses its case, not the race.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::case::{Case, Load, Rig};
use crate::error::{Doing, Error, Result};
use crate::guest::{self, Guest, Rate, Seen};
use crate::machine::{Distance, Machine};
use crate::stats::{Round, Turn, Work};
use crate::switch::{self, Side, Spent, Switch};
use crate::wake;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of each case that count.
    pub rounds: usize,
    /// Of each turn.
    pub window: Duration,
    /// Before each turn.
    pub warm_up: Duration,
    /// No case is begun, and no round repeated, after this; `None`: whatever it takes.
    pub until: Option<Instant>,
}

/// What became of a case.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which.
    pub case: Case,
    /// Those that were completed, of any distance.
    pub rounds: Vec<Round>,
    /// Sides that did not take part, and why.
    pub absent: Vec<(Side, Absence)>,
}

/// Why a side has no figures in a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// It does not do this.
    NotOffered(String),
    /// It should have.
    Failed(String),
}

impl Effort {
    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

impl From<Error> for Absence {
    fn from(error: Error) -> Self {
        match error {
            Error::NotOffered(why) => Self::NotOffered(why),
            Error::Guest(missing @ guest_sim::Error::NotOffered { .. }) => {
                Self::NotOffered(missing.to_string())
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// What a race is run with.
#[derive(Clone, Copy, Debug)]
pub struct Track<'a> {
    /// Its cores.
    pub machine: &'a Machine,
    /// Empty, private, and removed by the caller.
    pub folder: &'a Path,
    /// Who takes part.
    pub sides: &'a [Side],
    /// How much is measured.
    pub effort: &'a Effort,
}

/// A switch and its guest.
struct Entry {
    // Dropped first: it hangs up.
    guest: Box<dyn Guest>,
    switch: Box<dyn Switch>,
}

impl Entry {
    fn start(side: Side, machine: &Machine, folder: &Path, rig: &Rig) -> Result<Self> {
        let folder = folder.join(side.key());
        if folder.exists() {
            // It failed before.
            fs::remove_dir_all(&folder).doing(|| format!("removing {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).doing(|| format!("making {}", folder.display()))?;
        let switch = switch::start(side, machine, &folder, rig)?;
        let guest = guest::start(machine, &folder, rig, switch.as_ref())?;
        let mut entry = Self { guest, switch };
        entry.freeze()?;
        Ok(entry)
    }

    fn freeze(&mut self) -> Result<()> {
        self.guest.freeze()?;
        self.switch.freeze()
    }

    fn thaw(&mut self) -> Result<()> {
        self.switch.thaw()?;
        self.guest.thaw()
    }

    /// Its turn, from frozen to frozen.
    fn turn(&mut self, case: &Case, effort: &Effort, clock_ghz: f64, loaded: bool) -> Result<Turn> {
        self.thaw()?;
        let side = self.switch.side();
        let load = case.load.for_side(side, case.rig.reference);
        if !loaded {
            self.guest.load(&load)?;
        }
        let mut best: Option<Turn> = None;
        let settings = if case.load.wants_best_setting() {
            self.switch.settings()
        } else {
            1
        };
        for setting in 0..settings {
            if settings > 1 {
                self.switch.choose(setting)?;
            }
            if load == Load::Open {
                // Else those of the turn before fill its table.
                self.switch.forget_connections()?;
            }
            self.guest.warm_up(effort.warm_up)?;
            self.switch.begin()?;
            let begun = Instant::now();
            let seen = self.guest.measure(effort.window)?;
            let flowed = if self.guest.flows_by_itself() {
                begun.elapsed()
            } else {
                effort.window
            };
            let spent = self.switch.end()?;
            if load.must_arrive() {
                check_arrived(&load, &spent, &seen)?;
                check_connections(&load, self.switch.as_mut())?;
            }
            let work = match seen {
                Seen::Rate(_) => Some(Work::of(&spent, flowed, clock_ghz).ok_or_else(|| {
                    Error::Invalid("the switch says that it switched no frame".into())
                })?),
                // Between pings everybody waits.
                Seen::Delay(_) => None,
            };
            let turn = Turn {
                side: self.switch.side(),
                seen,
                work,
            };
            if best.is_none_or(|best| turn.score() > best.score()) {
                best = Some(turn);
            }
        }
        if settings > 1 {
            self.switch.choose(0)?;
        }
        self.freeze()?;
        best.ok_or_else(|| Error::Invalid("nothing was measured".into()))
    }

    fn stop(self) -> Result<()> {
        self.guest.stop()?;
        self.switch.stop()
    }
}

/// Frames that may be on their way, or be counted on one side only, when a measurement begins or ends.
const UNDER_WAY: f64 = 2_048.0;
/// What share of the frames taken must arrive.
const ARRIVES: f64 = 0.995;

/// That a switch forwards what it takes: who drops is fast.
fn check_arrived(load: &Load, spent: &Spent, seen: &Seen) -> Result<()> {
    let lost = |how: &str| Err(Error::Invalid(format!("frames are lost: {how}")));
    if let Some(dropped) = spent.dropped
        && dropped > 0.0
    {
        return lost(&format!("the switch says that it dropped {dropped}"));
    }
    // What an attacker sends need not arrive.
    match seen {
        Seen::Rate(Rate {
            arrived: Some(arrived),
            ..
        }) if !load.is_attacked() && *arrived as f64 + UNDER_WAY < ARRIVES * spent.frames => {
            lost(&format!("of {} taken {arrived} arrived", spent.frames))
        }
        _ => Ok(()),
    }
}

/// That connections are tracked at all.
fn check_connections(load: &Load, switch: &mut dyn Switch) -> Result<()> {
    let wanted = load.connections();
    if wanted == 0 {
        return Ok(());
    }
    match switch.connections(wanted)? {
        Some(tracked) if tracked < wanted => Err(Error::Invalid(format!(
            "{tracked} connections are tracked, of {wanted}"
        ))),
        _ => Ok(()),
    }
}

/// Runs all cases of one rig; `say` hears what goes on.
pub fn run(track: &Track<'_>, cases: &[Case], say: &mut dyn FnMut(&str)) -> Vec<Outcome> {
    let Track {
        machine,
        folder,
        sides,
        effort,
    } = *track;
    let Some(first) = cases.first() else {
        return Vec::new();
    };
    if effort.is_over() {
        return out_of_time(cases, sides);
    }
    let mut entries = Vec::new();
    let mut absent = Vec::new();
    for &side in sides.iter().filter(|&&side| first.rig.is_for(side)) {
        match Entry::start(side, machine, folder, &first.rig) {
            Ok(entry) => entries.push((side, entry)),
            Err(error) => {
                say(&format!("{side}: {error}"));
                absent.push((side, Absence::from(error)));
            }
        }
    }
    let mut outcomes = Vec::new();
    for (at, case) in cases.iter().enumerate() {
        if effort.is_over() {
            outcomes.extend(out_of_time(cases.get(at..).unwrap_or_default(), sides));
            break;
        }
        say(&format!("case {}", case.name));
        let mut outcome = Outcome {
            case: case.clone(),
            rounds: Vec::new(),
            absent: absent.clone(),
        };
        run_case(machine, &mut entries, effort, &mut outcome, say);
        restart_failed(track, &outcome, &mut entries, &mut absent, say);
        outcomes.push(outcome);
    }
    for (side, entry) in entries {
        if let Err(error) = entry.stop() {
            say(&format!("{side} did not stop: {error}"));
        }
    }
    outcomes
}

/// What a side that failed left behind may be anything: it starts anew for the next case.
fn restart_failed(
    track: &Track<'_>,
    outcome: &Outcome,
    entries: &mut Vec<(Side, Entry)>,
    absent: &mut Vec<(Side, Absence)>,
    say: &mut dyn FnMut(&str),
) {
    let failed = |side: &Side| outcome.absent.iter().any(|(other, _)| other == side);
    let sides: Vec<Side> = entries
        .iter()
        .map(|(side, _)| *side)
        .filter(failed)
        .collect();
    for side in sides {
        entries.retain(|(other, _)| *other != side);
        match Entry::start(side, track.machine, track.folder, &outcome.case.rig) {
            Ok(entry) => entries.push((side, entry)),
            Err(error) => {
                say(&format!("{side}, again: {error}"));
                absent.push((side, Absence::from(error)));
            }
        }
    }
    entries.sort_by_key(|(side, _)| Side::ALL.iter().position(|known| known == side));
}

fn out_of_time(cases: &[Case], sides: &[Side]) -> Vec<Outcome> {
    let why = "no time was left for it: run fewer cases, with --only";
    let outcome = |case: &Case| Outcome {
        case: case.clone(),
        rounds: Vec::new(),
        absent: sides
            .iter()
            .map(|&side| (side, Absence::Failed(why.into())))
            .collect(),
    };
    cases.iter().map(outcome).collect()
}

/// As many rounds in which the cores stayed as wanted, or twice as many of any.
fn run_case(
    machine: &Machine,
    entries: &mut [(Side, Entry)],
    effort: &Effort,
    outcome: &mut Outcome,
    say: &mut dyn FnMut(&str),
) {
    let mut loaded = false;
    for _ in 0..2 * effort.rounds {
        let absent = outcome.absent.clone();
        let taking_part = entries
            .iter_mut()
            .filter(|(side, _)| !absent.iter().any(|(other, _)| other == side));
        let mut turns = Vec::new();
        let mut trips = Vec::new();
        measure_distance(machine, &mut trips, say);
        let bare_wake = if outcome.case.load.is_from_sleep() {
            wake::measure(machine, &outcome.case.load, effort.window)
                .inspect_err(|error| say(&error.to_string()))
                .ok()
        } else {
            None
        };
        for (side, entry) in taking_part {
            match entry.turn(&outcome.case, effort, machine.clock_ghz, loaded) {
                Ok(turn) => turns.push(turn),
                Err(error) => {
                    say(&format!("{side}, {}: {error}", outcome.case.name));
                    outcome.absent.push((*side, Absence::from(error)));
                    // It must not run beside the others.
                    let _frozen = entry.freeze();
                }
            }
            measure_distance(machine, &mut trips, say);
        }
        loaded = true;
        if turns.is_empty() {
            return;
        }
        let distance = Distance::of_round(&trips, machine.far_ns);
        outcome.rounds.push(Round {
            distance,
            round_trips_ns: trips,
            bare_wake,
            turns,
        });
        let whole = outcome
            .rounds
            .iter()
            .filter(|round| round.distance != Distance::Changed)
            .count();
        let enough = outcome.rounds.len() >= effort.rounds && effort.is_over();
        if whole >= effort.rounds || enough {
            return;
        }
    }
}

fn measure_distance(machine: &Machine, trips: &mut Vec<f64>, say: &mut dyn FnMut(&str)) {
    match machine.round_trip_ns() {
        Ok(ns) => trips.push(ns),
        Err(error) => say(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::About;

    fn checked(attack: bool, taken: f64, arrived: f64, dropped: Option<f64>) -> Result<()> {
        let load = Load::Talk {
            about: About::OwnRules,
            flows: 1000,
            attack,
        };
        let spent = Spent {
            cycles: 1.0,
            frames: taken,
            exact: true,
            dropped,
        };
        let seen = Seen::Rate(Rate {
            arrived: Some(arrived as u64),
            ..Rate::default()
        });
        check_arrived(&load, &spent, &seen)
    }

    #[test]
    fn a_switch_that_loses_frames_has_failed() {
        assert!(checked(false, 1e6, 1e6, Some(0.0)).is_ok());
        assert!(
            checked(false, 1e6, 1e6 - 1000.0, None).is_ok(),
            "some are under way"
        );
        assert!(checked(false, 1e6, 0.9e6, None).is_err());
        assert!(checked(false, 1e6, 1e6, Some(1.0)).is_err());
    }

    #[test]
    fn an_attackers_frames_need_not_arrive_and_the_others_must() {
        assert!(checked(true, 1e6, 0.9e6, Some(0.0)).is_ok());
        assert!(checked(true, 1e6, 0.9e6, Some(1.0)).is_err());
    }
}
