//! Results as one JSON document: every round as it was measured, and the figures made of them.

use serde_json::{Map, Value, json};

use crate::check::Verdict;
use crate::guest::Seen;
use crate::machine::{Distance, Machine};
use crate::race::{Absence, Effort, Outcome};
use crate::stats::{self, Round, Spread, Turn};
use crate::switch::Side;

/// The whole run. `check` is that of `--check`.
pub fn document(
    machine: &Machine,
    processor: &str,
    effort: &Effort,
    outcomes: &[Outcome],
    check: Option<&Verdict>,
) -> Value {
    let mut document = json!({
        "processor": processor,
        "clock_ghz": machine.clock_ghz,
        "guest_core": machine.guest_core,
        "switch_core": machine.switch_core,
        "seconds_per_turn": effort.window.as_secs_f64(),
        "cases": outcomes.iter().map(case).collect::<Vec<_>>(),
    });
    if let (Some(verdict), Some(fields)) = (check, document.as_object_mut()) {
        fields.insert(
            "check".into(),
            json!({
                "ok": verdict.is_good(),
                "compared": verdict.compared,
                "complaints": verdict.complaints,
            }),
        );
    }
    document
}

fn case(outcome: &Outcome) -> Value {
    let mut distances = Map::new();
    for distance in [Distance::Near, Distance::Far] {
        let rounds = stats::at(&outcome.rounds, distance);
        if !rounds.is_empty() {
            distances.insert(distance.to_string(), summary(&rounds));
        }
    }
    let absent: Map<String, Value> = outcome
        .absent
        .iter()
        .map(|(side, absence)| {
            let (kind, why) = match absence {
                Absence::NotOffered(why) => ("not_offered", why),
                Absence::Failed(why) => ("failed", why),
            };
            (side.key().to_owned(), json!({"kind": kind, "why": why}))
        })
        .collect();
    json!({
        "name": outcome.case.name,
        "guest": outcome.case.rig.player.label(),
        "summary": distances,
        "absent": absent,
        "rounds": outcome.rounds.iter().map(round).collect::<Vec<_>>(),
    })
}

fn summary(rounds: &[&Round]) -> Value {
    let sides: Map<String, Value> = Side::ALL
        .into_iter()
        .filter_map(|side| {
            let of = |field: &str| {
                stats::of_side(rounds, side, |t| turn(t).get(field).and_then(Value::as_f64))
                    .map(|spread| (field.to_owned(), spread_value(spread)))
            };
            let fields: Map<String, Value> = FIELDS.iter().filter_map(|field| of(field)).collect();
            (!fields.is_empty()).then(|| (side.key().to_owned(), Value::Object(fields)))
        })
        .collect();
    let ratios: Map<String, Value> = Side::PEERS
        .into_iter()
        .filter_map(|peer| {
            let ratio = stats::ratios(rounds, Side::Ringswitch, peer)?;
            Some((peer.key().to_owned(), spread_value(ratio)))
        })
        .collect();
    json!({ "rounds": rounds.len(), "sides": sides, "ringswitch_over": ratios })
}

/// The numbers of a turn, by name and unit.
const FIELDS: [&str; 10] = [
    "mpps",
    "gbit_per_s",
    "cycles_per_frame",
    "busy",
    "fairness_delivered",
    "fairness_taken",
    "p50_ns",
    "p99_ns",
    "p999_ns",
    "pings_per_s",
];

fn spread_value(spread: Spread) -> Value {
    json!({ "median": spread.median, "min": spread.min, "max": spread.max })
}

fn round(round: &Round) -> Value {
    let mut value = json!({
        "cores": round.distance.to_string(),
        "round_trips_ns": round.round_trips_ns,
        "turns": round.turns.iter().map(turn).collect::<Vec<_>>(),
    });
    if let (Some(wake), Some(fields)) = (&round.bare_wake, value.as_object_mut()) {
        fields.insert("bare_wake_p50_ns".into(), json!(wake.p50_ns));
    }
    value
}

fn turn(turn: &Turn) -> Value {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| {
        fields.insert(name.to_owned(), value);
    };
    put("side", json!(turn.side.key()));
    match &turn.seen {
        Seen::Rate(rate) => {
            put("mpps", json!(rate.frames_per_s / 1e6));
            put("gbit_per_s", json!(rate.bits_per_s / 1e9));
            if let Some(fairness) = &rate.fairness {
                put("fairness_delivered", json!(fairness.delivered));
                put("fairness_taken", json!(fairness.served));
            }
        }
        Seen::Delay(delay) => {
            put("p50_ns", json!(delay.p50_ns));
            put("p99_ns", json!(delay.p99_ns));
            put("p999_ns", json!(delay.p999_ns));
            put("pings_per_s", json!(delay.frames_per_s));
        }
    }
    if let Some(work) = &turn.work {
        put("cycles_per_frame", json!(work.cycles_per_frame));
        put("busy", json!(work.busy));
        put("vain_polls_excluded", json!(work.exact));
    }
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{Delay, Rate};
    use crate::stats::Work;

    fn rounds() -> Vec<Round> {
        let turn = |side, frames_per_s| Turn {
            side,
            seen: Seen::Rate(Rate {
                arrived: None,
                frames_per_s,
                bits_per_s: 512.0 * frames_per_s,
                fairness: None,
            }),
            work: Some(Work {
                cycles_per_frame: 100.0,
                busy: 0.5,
                exact: true,
            }),
        };
        [Distance::Near, Distance::Changed]
            .map(|distance| Round {
                distance,
                round_trips_ns: vec![50.0],
                bare_wake: Some(Delay::default()),
                turns: vec![turn(Side::Ringswitch, 3e6), turn(Side::Ovs, 2e6)],
            })
            .into()
    }

    #[test]
    fn a_case_has_its_summary_and_every_round() {
        let outcome = Outcome {
            case: crate::case::all().remove(0),
            rounds: rounds(),
            absent: vec![(Side::Io, Absence::NotOffered("why".into()))],
        };
        let value = case(&outcome);
        let at = |pointer: &str| value.pointer(pointer).cloned();
        assert_eq!(at("/summary/near/rounds"), Some(json!(1)));
        assert_eq!(at("/summary/changed"), None);
        assert_eq!(at("/summary/near/sides/ovs/mpps/median"), Some(json!(2.0)));
        assert_eq!(
            at("/summary/near/ringswitch_over/ovs/median"),
            Some(json!(1.5))
        );
        assert_eq!(at("/absent/io/kind"), Some(json!("not_offered")));
        assert_eq!(at("/rounds/1/cores"), Some(json!("changed")));
        assert_eq!(at("/rounds/0/turns/0/busy"), Some(json!(0.5)));
    }

    #[test]
    fn every_number_of_a_turn_is_summed_up() {
        let all = rounds();
        let Value::Object(fields) = turn(&all[0].turns[0]) else {
            panic!("a turn is an object");
        };
        let numbers = fields.iter().filter(|(_, value)| value.is_number());
        assert!(
            numbers
                .map(|(name, _)| name.as_str())
                .all(|name| FIELDS.contains(&name))
        );
    }
}
