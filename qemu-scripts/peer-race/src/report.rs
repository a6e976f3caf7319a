//! Results as text.

use std::fmt::Write as _;

use crate::guest::{Delay, Rate, Seen};
use crate::machine::Distance;
use crate::race::{Absence, Outcome};
use crate::stats::{self, Round, Spread};
use crate::switch::Side;

/// Above this share of its core's time a switch is the limit; below it the guest is.
const SWITCH_BOUND: f64 = 0.95;

/// One case, every distance that was met.
pub fn text(outcome: &Outcome) -> String {
    let mut text = format!(
        "{} ({})\n",
        outcome.case.name,
        outcome.case.rig.player.label()
    );
    for (side, absence) in &outcome.absent {
        let _ = match absence {
            Absence::NotOffered(why) => writeln!(text, "  {side:<15} not offered: {why}"),
            Absence::Failed(why) => writeln!(text, "  {side:<15} FAILED: {why}"),
        };
    }
    for distance in [Distance::Near, Distance::Far] {
        let rounds = stats::at(&outcome.rounds, distance);
        if !rounds.is_empty() {
            let _ = write!(text, "{}", at_distance(&rounds, distance));
        }
    }
    let changed = stats::at(&outcome.rounds, Distance::Changed).len();
    if changed > 0 {
        let _ = writeln!(
            text,
            "  {changed} rounds dropped: the cores moved during them"
        );
    }
    text
}

fn at_distance(rounds: &[&Round], distance: Distance) -> String {
    let trips = Spread::of(rounds.iter().flat_map(|r| r.round_trips_ns.iter().copied()));
    let trip = trips.map_or(0.0, |trips| trips.median);
    let mut text = format!(
        "  {distance} cores (round trip {trip:.0} ns), {} rounds\n",
        rounds.len()
    );
    for side in Side::ALL {
        if let Some(line) = side_line(rounds, side) {
            let _ = writeln!(text, "    {side:<15}{line}");
        }
    }
    let wakes = Spread::of(
        rounds
            .iter()
            .filter_map(|r| Some(r.bare_wake?.p50_ns / 1000.0)),
    );
    if let Some(wake) = wakes {
        let _ = writeln!(
            text,
            "    a bare wake    p50 {:>7.3} us ({:.3} to {:.3})",
            wake.median, wake.min, wake.max
        );
    }
    for peer in Side::PEERS {
        if let Some(ratio) = stats::ratios(rounds, Side::Ringswitch, peer) {
            let _ = writeln!(
                text,
                "    Ringswitch / {peer}: {:.2} ({:.2} to {:.2})",
                ratio.median, ratio.min, ratio.max
            );
        }
    }
    text
}

fn side_line(rounds: &[&Round], side: Side) -> Option<String> {
    match rounds.iter().find_map(|round| round.turn(side))?.seen {
        Seen::Rate(_) => rate_line(rounds, side),
        Seen::Delay(_) => delay_line(rounds, side),
    }
}

fn delay_line(rounds: &[&Round], side: Side) -> Option<String> {
    let value = |value: fn(&Delay) -> f64| {
        stats::of_side(rounds, side, |turn| match &turn.seen {
            Seen::Delay(delay) => Some(value(delay) / 1000.0),
            Seen::Rate(_) => None,
        })
    };
    let p50 = value(|delay| delay.p50_ns)?;
    Some(format!(
        "p50 {:>7.3} us ({:.3} to {:.3}), p99 {:.3} us, p99.9 {:.3} us",
        p50.median,
        p50.min,
        p50.max,
        value(|delay| delay.p99_ns)?.median,
        value(|delay| delay.p999_ns)?.median
    ))
}

fn rate_line(rounds: &[&Round], side: Side) -> Option<String> {
    let value = |value: fn(&Rate) -> Option<f64>| {
        stats::of_side(rounds, side, |turn| match &turn.seen {
            Seen::Rate(rate) => value(rate),
            Seen::Delay(_) => None,
        })
    };
    let mpps = value(|rate| Some(rate.frames_per_s / 1e6))?;
    let gbit = value(|rate| Some(rate.bits_per_s / 1e9))?;
    let mut line = format!(
        "{:>8.3} Mpps ({:.3} to {:.3}) {:>7.1} Gbit/s",
        mpps.median, mpps.min, mpps.max, gbit.median
    );
    let _ = write!(line, "{}", work_text(rounds, side).unwrap_or_default());
    let delivered = value(|rate| Some(rate.fairness?.delivered));
    let served = value(|rate| Some(rate.fairness?.served));
    if let Some((delivered, served)) = delivered.zip(served) {
        let _ = write!(
            line,
            ", least sender / most: {:.2} delivered, {:.2} taken",
            delivered.median, served.median
        );
    }
    Some(line)
}

fn work_text(rounds: &[&Round], side: Side) -> Option<String> {
    let works = || rounds.iter().filter_map(|round| round.turn(side)?.work);
    let cycles = Spread::of(works().map(|work| work.cycles_per_frame))?;
    let busy = Spread::of(works().map(|work| work.busy))?;
    let exact = works().all(|work| work.exact);
    let at_most = if exact { "" } else { "<=" };
    let bound = if exact && busy.median < SWITCH_BOUND {
        " (guest-bound)"
    } else {
        ""
    };
    Some(format!(
        " {at_most}{:>6.0} cycles/frame, busy {at_most}{:.0} %{bound}",
        cycles.median,
        100.0 * busy.median
    ))
}
