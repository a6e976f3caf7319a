//! Ratios on record, and whether this run keeps to them.
//!
//! The record is a table in `docs/performance.md`, in the form in which [`table`] prints it. Keeps true: a run in which nothing could be
//! compared does not pass.

use std::collections::HashSet;
use std::fmt::Write as _;

use crate::machine::Distance;
use crate::race::{Absence, Outcome};
use crate::stats::{self, Spread};
use crate::switch::Side;

/// The heading that the record stands under.
pub const HEADING: &str = "## Recorded ratios";
/// What must be left of a recorded ratio.
pub const LEAST: f64 = 0.9;
/// One round alone proves nothing.
const LEAST_ROUNDS: usize = 2;

/// How many times better Ringswitch was than a peer.
#[derive(Clone, Debug, PartialEq)]
pub struct Ratio {
    /// The case.
    pub case: String,
    /// Of the cores.
    pub distance: Distance,
    /// The peer.
    pub peer: Side,
    /// The median of the rounds' ratios.
    pub times: f64,
}

/// Every ratio of a run that was taken in at least so many rounds.
pub fn ratios(outcomes: &[Outcome], least_rounds: usize) -> Vec<Ratio> {
    let mut all = Vec::new();
    for outcome in outcomes {
        for distance in [Distance::Near, Distance::Far] {
            let rounds = stats::at(&outcome.rounds, distance);
            if rounds.len() < least_rounds {
                continue;
            }
            for peer in Side::PEERS {
                if let Some(Spread { median, .. }) = stats::ratios(&rounds, Side::Ringswitch, peer)
                {
                    all.push(Ratio {
                        case: outcome.case.name.to_owned(),
                        distance,
                        peer,
                        times: median,
                    });
                }
            }
        }
    }
    all
}

/// The ratios as the table that is put on record.
pub fn table(ratios: &[Ratio]) -> String {
    let mut text = String::from(
        "| case | cores | over OVS-DPDK | over I/O forwarding | over its reference |\n|---|---|---|---|---|\n",
    );
    let mut seen = HashSet::new();
    for Ratio { case, distance, .. } in ratios {
        if seen.insert((case, distance)) {
            let times = |peer| {
                ratios
                    .iter()
                    .find(|r| r.case == *case && r.distance == *distance && r.peer == peer)
                    .map_or_else(|| "-".to_owned(), |ratio| format!("{:.2}", ratio.times))
            };
            let [ovs, io, reference] = Side::PEERS.map(times);
            let _ = writeln!(text, "| {case} | {distance} | {ovs} | {io} | {reference} |");
        }
    }
    text
}

/// Reads the table under [`HEADING`] of a document.
///
/// # Errors
/// There is none, or a line of it is not one: which.
pub fn parse(document: &str) -> Result<Vec<Ratio>, String> {
    let (_, rest) = document
        .split_once(HEADING)
        .ok_or_else(|| format!("there is no heading `{HEADING}`"))?;
    let mut record = Vec::new();
    let rows = rest
        .lines()
        .skip_while(|line| !line.starts_with('|') && !line.starts_with("## "))
        .take_while(|line| line.starts_with('|'));
    for row in rows.skip(2) {
        record.extend(parse_row(row).ok_or_else(|| format!("this is not a row of ratios: {row}"))?);
    }
    if record.is_empty() {
        return Err(format!("there are no ratios under `{HEADING}`"));
    }
    Ok(record)
}

fn parse_row(row: &str) -> Option<Vec<Ratio>> {
    let cells: Vec<&str> = row
        .trim()
        .trim_matches('|')
        .split('|')
        .map(str::trim)
        .collect();
    let [case, distance, times @ ..] = cells.as_slice() else {
        return None;
    };
    let distance = [Distance::Near, Distance::Far]
        .into_iter()
        .find(|known| known.to_string() == *distance)?;
    if times.len() != Side::PEERS.len() {
        return None;
    }
    let mut ratios = Vec::new();
    for (peer, cell) in Side::PEERS.into_iter().zip(times) {
        if *cell != "-" {
            let times = cell.parse().ok().filter(|&times: &f64| times > 0.0)?;
            ratios.push(Ratio {
                case: (*case).to_owned(),
                distance,
                peer,
                times,
            });
        }
    }
    Some(ratios)
}

/// What a comparison came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Ratios that were compared.
    pub compared: usize,
    /// What is wrong, by case.
    pub complaints: Vec<String>,
}

impl Verdict {
    /// Whether something was compared and nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.compared > 0 && self.complaints.is_empty()
    }
}

/// Holds a run against the record. Ratios at a distance of the cores that was not met, or that is not on record, are not compared.
pub fn compare(outcomes: &[Outcome], record: &[Ratio]) -> Verdict {
    let mut verdict = Verdict::default();
    let now = ratios(outcomes, LEAST_ROUNDS);
    for recorded in record {
        let same = now.iter().find(|ratio| {
            (&ratio.case, ratio.distance, ratio.peer)
                == (&recorded.case, recorded.distance, recorded.peer)
        });
        let Some(ratio) = same else { continue };
        verdict.compared += 1;
        if ratio.times < LEAST * recorded.times {
            verdict.complaints.push(format!(
                "{}, {} cores: {:.2} times {}, below {:.0} % of the {:.2} on record",
                ratio.case,
                ratio.distance,
                ratio.times,
                ratio.peer,
                100.0 * LEAST,
                recorded.times
            ));
        }
    }
    for outcome in outcomes {
        for (side, absence) in &outcome.absent {
            let on_record = record.iter().any(|r| {
                r.case == outcome.case.name && (r.peer == *side || *side == Side::Ringswitch)
            });
            match absence {
                Absence::Failed(why) => verdict
                    .complaints
                    .push(format!("{}: {side} failed: {why}", outcome.case.name)),
                Absence::NotOffered(why) if on_record && *side == Side::Ringswitch => {
                    verdict.complaints.push(format!(
                        "{}: it is on record, and no longer offered: {why}",
                        outcome.case.name
                    ));
                }
                Absence::NotOffered(_) => {}
            }
        }
    }
    if verdict.compared == 0 {
        verdict
            .complaints
            .push("nothing that was measured, in two rounds or more, is on record".into());
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case;
    use crate::guest::{Rate, Seen};
    use crate::stats::{Round, Turn};

    fn outcome(name: &str, distance: Distance, ours: f64, ovs: f64, io: f64) -> Outcome {
        let turn = |side, frames_per_s| Turn {
            side,
            seen: Seen::Rate(Rate {
                frames_per_s,
                ..Rate::default()
            }),
            work: None,
        };
        let case = case::all().into_iter().find(|case| case.name == name);
        let round = Round {
            distance,
            round_trips_ns: vec![50.0],
            bare_wake: None,
            turns: vec![
                turn(Side::Ringswitch, ours),
                turn(Side::Ovs, ovs),
                turn(Side::Io, io),
            ],
        };
        Outcome {
            case: case.unwrap(),
            rounds: vec![round.clone(), round],
            absent: Vec::new(),
        }
    }

    const DOCUMENT: &str = "# Performance\n\n| other | table |\n|---|---|\n| 1 | 2 |\n\n## Recorded ratios\nHow they came about.\n\n\
        | case | cores | over OVS-DPDK | over I/O forwarding | over its reference |\n|---|---|---|---|---|\n| 64 | near | 1.50 | 0.90 | - |\n\
        | 64 | far | 1.00 | - | 0.80 |\n\n## Next\n| 64 | near | 9.00 | 9.00 | - |\n";

    #[test]
    fn what_is_printed_is_what_is_read() {
        let outcomes = [
            outcome("64", Distance::Near, 15.0, 10.0, 20.0),
            outcome("512", Distance::Far, 5.0, 4.0, 5.0),
        ];
        let ratios = ratios(&outcomes, 1);
        assert_eq!(ratios.len(), 4);
        let document = format!("{HEADING}\n{}", table(&ratios));
        assert_eq!(parse(&document), Ok(ratios));
    }

    #[test]
    fn only_the_table_under_its_heading_is_the_record() {
        let record = parse(DOCUMENT).unwrap();
        let times: Vec<f64> = record.iter().map(|ratio| ratio.times).collect();
        assert_eq!(times, [1.5, 0.9, 1.0, 0.8]);
    }

    #[test]
    fn a_document_without_a_record_is_refused() {
        for document in [
            "# Performance\n".to_owned(),
            format!("{HEADING}\n\n## Next\n| 64 | near | 1 | 1 | 1 |\n"),
            DOCUMENT.replace("| 1.50 | 0.90 | - |", "| 1.50 | 0.90 |"),
            DOCUMENT.replace("| near | 1.50", "| near | much"),
            DOCUMENT.replace("| near | 1.50", "| nearby | 1.50"),
        ] {
            assert!(parse(&document).is_err(), "{document}");
        }
    }

    #[test]
    fn below_nine_tenths_of_the_record_fails_and_names_the_case() {
        let record = parse(DOCUMENT).unwrap();
        let good = compare(&[outcome("64", Distance::Near, 13.6, 10.0, 15.0)], &record);
        assert!(good.is_good(), "{good:?}");
        assert_eq!(good.compared, 2);
        let bad = compare(&[outcome("64", Distance::Near, 13.4, 10.0, 13.0)], &record);
        assert_eq!(bad.complaints.len(), 1);
        assert!(bad.complaints[0].starts_with("64, near cores: 1.34 times OVS-DPDK"));
        assert!(!bad.is_good());
    }

    #[test]
    fn distances_are_compared_with_their_own() {
        // 1.2 is too little near, and enough far.
        let record = parse(DOCUMENT).unwrap();
        let far = compare(&[outcome("64", Distance::Far, 12.0, 10.0, 20.0)], &record);
        assert!(far.is_good(), "{far:?}");
        let near = compare(&[outcome("64", Distance::Near, 12.0, 10.0, 13.0)], &record);
        assert!(!near.is_good());
    }

    #[test]
    fn one_round_alone_is_not_compared() {
        let record = parse(DOCUMENT).unwrap();
        let mut single = outcome("64", Distance::Near, 1.0, 10.0, 10.0);
        single.rounds.pop();
        let verdict = compare(&[single], &record);
        assert_eq!(verdict.compared, 0);
        assert!(!verdict.is_good());
    }

    #[test]
    fn nothing_to_compare_and_failed_cases_do_not_pass() {
        let record = parse(DOCUMENT).unwrap();
        assert!(!compare(&[], &record).is_good());
        let other = outcome("128", Distance::Near, 1.0, 1.0, 1.0);
        assert!(!compare(&[other], &record).is_good());
        let mut failed = outcome("64", Distance::Near, 15.0, 10.0, 15.0);
        let absent = (Side::Io, Absence::Failed("it crashed".into()));
        failed.absent.push(absent);
        assert!(!compare(&[failed.clone()], &record).is_good());
        failed.absent = vec![(Side::Io, Absence::NotOffered("no".into()))];
        assert!(compare(&[failed.clone()], &record).is_good());
        failed.absent = vec![(Side::Ringswitch, Absence::NotOffered("no".into()))];
        assert!(!compare(&[failed], &record).is_good());
    }
}
