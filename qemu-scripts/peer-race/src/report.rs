//! Results as text.

use std::fmt::Write as _;

use crate::machine::Distance;
use crate::race::{Absence, Outcome};
use crate::guest::Seen;
use crate::stats::{self, Round, Spread, Turn};
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
    for peer in [Side::Ovs, Side::Io] {
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
    let value = |value: fn(&Turn) -> Option<f64>| stats::of_side(rounds, side, value);
    let mpps = value(|turn| {
        let Seen::Rate(rate) = &turn.seen;
        Some(rate.frames_per_s / 1e6)
    })?;
    let gbit = value(|turn| {
        let Seen::Rate(rate) = &turn.seen;
        Some(rate.bits_per_s / 1e9)
    })?;
    let mut line = format!(
        "{:>8.3} Mpps ({:.3} to {:.3}) {:>7.1} Gbit/s",
        mpps.median, mpps.min, mpps.max, gbit.median
    );
    let cycles = value(|turn| Some(turn.work?.cycles_per_frame));
    let busy = value(|turn| Some(turn.work?.busy));
    if let Some((cycles, busy)) = cycles.zip(busy) {
        let exact = rounds
            .iter()
            .filter_map(|round| round.turn(side)?.work)
            .all(|work| work.exact);
        let _ = write!(
            line,
            " {}{:>6.0} cycles/frame, busy {}{:.0} %{}",
            if exact { "" } else { "<=" },
            cycles.median,
            if exact { "" } else { "<=" },
            100.0 * busy.median,
            if exact && busy.median < SWITCH_BOUND {
                " (guest-bound)"
            } else {
                ""
            }
        );
    }
    Some(line)
}
