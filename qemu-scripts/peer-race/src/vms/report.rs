//! Results as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::Side;
use super::outcome::{Outcome, Turn};
use crate::stats::Spread;

/// One case as text.
pub fn text(outcome: &Outcome) -> String {
    let case = outcome.case;
    let trips = Spread::of(outcome.round_trips_ns.iter().copied());
    let trips = trips.map_or_else(String::new, |trips| {
        format!(
            ", cores' round trip {:.0} ns ({:.0} to {:.0})",
            trips.median, trips.min, trips.max
        )
    });
    let mut text = format!("{}: {} rounds{trips}\n", case.name(), outcome.rounds.len());
    for (side, why) in &outcome.failed {
        let _ = writeln!(text, "  {side:<15} FAILED: {why}");
    }
    for side in Side::ALL {
        if let Some(line) = side_line(outcome, side) {
            let _ = writeln!(text, "  {side:<15}{line}");
        }
    }
    for other in [Side::Ovs, Side::Bridge] {
        let Some(ratio) = outcome.ratio(other, rate) else {
            continue;
        };
        let _ = write!(text, "  Ringswitch / {other}: {}", spread(ratio, 2));
        if let Some(cpu) = outcome.ratio(other, Turn::switch_ns_each) {
            let _ = write!(text, ", CPU for the same traffic: {}", spread(cpu, 2));
        }
        text.push('\n');
    }
    text
}

fn rate(turn: &Turn) -> Option<f64> {
    Some(turn.traffic.per_second)
}

fn side_line(outcome: &Outcome, side: Side) -> Option<String> {
    let (unit, one) = outcome.case.unit();
    let rates = outcome.of_side(side, |turn| Some(rate(turn)? / one))?;
    let mut line = format!("{} {unit}", spread(rates, 2));
    if let Some(lost) = outcome.of_side(side, |turn| Some(100.0 * turn.traffic.lost?)) {
        let _ = write!(line, ", lost {} %", spread(lost, 1));
    }
    match outcome.of_side(side, |turn| Some(100.0 * turn.switch_share()?)) {
        Some(share) => _ = write!(line, ", switch {} % of a core", spread(share, 1)),
        None => line += ", switch n/a (it runs in QEMU's system time)",
    }
    let system = outcome.of_side(side, |turn| Some(100.0 * turn.qemu_system_share()))?;
    let _ = write!(line, ", QEMUs' system time {:.0} %", system.median);
    Some(line)
}

fn spread(spread: Spread, digits: usize) -> String {
    format!(
        "{:.digits$} ({:.digits$} to {:.digits$})",
        spread.median, spread.min, spread.max
    )
}

/// All cases as one document. `seconds` are those of a turn.
pub fn document(processor: &str, seconds: u32, outcomes: &[Outcome]) -> Value {
    json!({
        "processor": processor,
        "seconds_per_turn": seconds,
        "cases": outcomes.iter().map(case).collect::<Vec<_>>(),
    })
}

fn case(outcome: &Outcome) -> Value {
    let mut ratios = Map::new();
    for other in [Side::Ovs, Side::Bridge] {
        if let Some(ratio) = outcome.ratio(other, rate) {
            let cpu = outcome.ratio(other, Turn::switch_ns_each);
            ratios.insert(
                other.key().to_owned(),
                json!({ "rate": spread_value(ratio), "switch_cpu": cpu.map(spread_value) }),
            );
        }
    }
    let failed: Map<String, Value> = outcome
        .failed
        .iter()
        .map(|(side, why)| (side.key().to_owned(), json!(why)))
        .collect();
    json!({
        "name": outcome.case.name(),
        "round_trips_ns": outcome.round_trips_ns,
        "rounds": outcome.rounds.iter().map(|round| round.iter().map(turn).collect()).collect::<Vec<Value>>(),
        "ringswitch_over": ratios,
        "failed": failed,
    })
}

fn spread_value(spread: Spread) -> Value {
    json!({ "median": spread.median, "min": spread.min, "max": spread.max })
}

fn turn(turn: &Turn) -> Value {
    json!({
        "side": turn.side.key(),
        "per_s": turn.traffic.per_second,
        "lost": turn.traffic.lost,
        "switch_share": turn.switch_share(),
        "qemu_system_share": turn.qemu_system_share(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::*;

    #[test]
    fn text_has_every_side_ratio_and_failure() {
        let mut outcome = outcome();
        outcome.failed.push((Side::Bridge, "gone".into()));
        let text = text(&outcome);
        for part in [
            "Ringswitch     4.00 (1.00 to 6.00) Gbit/s, switch 25.0 (25.0 to 25.0) % of a core",
            "Ringswitch / OVS-DPDK: 2.00 (0.50 to 3.00), CPU for the same traffic: 0.12",
            "Ringswitch / kernel bridge: 4.00 (1.00 to 6.00)\n",
            "n/a",
            "FAILED: gone",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn json_has_every_round_and_null_where_nothing_is_known() {
        let value = document("a processor", 4, &[outcome()]);
        let at = |pointer: &str| value.pointer(pointer).cloned();
        assert_eq!(at("/cases/0/rounds/1/0/per_s"), Some(json!(6e9)));
        assert_eq!(at("/cases/0/rounds/1/2/switch_share"), Some(Value::Null));
        let rate = at("/cases/0/ringswitch_over/ovs/rate/median");
        assert_eq!(rate, Some(json!(2.0)));
        let cpu = at("/cases/0/ringswitch_over/bridge/switch_cpu");
        assert_eq!(cpu, Some(Value::Null));
    }
}
