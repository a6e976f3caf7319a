//! What the runs of a drill showed, and whether that is what is promised.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Mode;
use super::load::{Casualties, Load};
use crate::migration::Account;

/// How much longer than QEMU's downtime the network may be away, at the median.
pub const BLACKOUT_OVER_DOWNTIME_MS: f64 = 50.0;

/// One run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Run {
    /// From 1.
    pub number: u32,
    /// Did the guest go to the other switch?
    pub is_across: bool,
    /// QEMU's account.
    pub account: Account,
    /// The longest time in which the peer got no answer.
    pub blackout_ms: f64,
    /// The same before the migration, in as many probes as come before and after it.
    pub usual_gap_ms: f64,
    /// Probes.
    pub frames_sent: u64,
    /// Probes without answer.
    pub frames_lost: u64,
    /// Answers that were not what was sent.
    pub probes_corrupted: u64,
    /// By both ends.
    pub tcp_retransmits: u64,
    /// What became of the load.
    pub casualties: Casualties,
    /// From the guest's start at the target until the switches were seen to know.
    pub learnt_ms: f64,
    /// What was called off before.
    pub called_off: Option<CalledOff>,
}

/// Migrations that came to nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalledOff {
    /// The longest time in which the peer got no answer.
    pub longest_gap_ms: f64,
    /// Probes without answer.
    pub frames_lost: u64,
}

/// All of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    mode: Mode,
    load: Load,
    queue_pairs: u16,
    /// In order.
    pub runs: Vec<Run>,
}

/// The columns of [`Run`]'s line.
pub const HEADINGS: &str = "run  to      downtime  blocked  blackout  (usual)   over  lost/probes   retrans  broken  corrupt  dgrams lost  MAC moved  rounds   total";

impl Run {
    fn over_ms(&self) -> f64 {
        self.blackout_ms - (self.account.downtime_ms + self.account.blocked_ms) as f64
    }

    fn bytes_corrupted(&self) -> u64 {
        self.casualties.bytes_corrupted + self.probes_corrupted
    }

    /// For a person to read, under [`HEADINGS`]; times in milliseconds.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!(
            "{:>3}  {:<6} {:>9} {:>8} {:>9.1} {:>8.1} {:>7.1}  {:>5}/{:<6} {:>8} {:>7} {:>8} {:>12} {:>10.1} {:>7} {:>7}",
            self.number,
            self.target(),
            self.account.downtime_ms,
            self.account.blocked_ms,
            self.blackout_ms,
            self.usual_gap_ms,
            self.over_ms(),
            self.frames_lost,
            self.frames_sent,
            self.tcp_retransmits,
            self.casualties.connections_broken,
            self.bytes_corrupted(),
            self.casualties.datagrams_lost,
            self.learnt_ms,
            self.account.rounds,
            self.account.total_ms
        );
        if let Some(before) = self.called_off {
            // Writing to a String cannot fail.
            let _ = write!(
                line,
                "  cancelled and failed before: {:.1} ms at most, {} lost",
                before.longest_gap_ms, before.frames_lost
            );
        }
        line
    }

    fn target(&self) -> &'static str {
        if self.is_across { "switch" } else { "port" }
    }

    fn json(&self) -> Value {
        json!({
            "run": self.number,
            "target": self.target(),
            "downtime_ms": self.account.downtime_ms,
            "blocked_ms": self.account.blocked_ms,
            "blackout_ms": self.blackout_ms,
            "usual_gap_ms": self.usual_gap_ms,
            "frames_sent": self.frames_sent,
            "frames_lost": self.frames_lost,
            "tcp_retransmits": self.tcp_retransmits,
            "connections_broken": self.casualties.connections_broken,
            "bytes_corrupted": self.bytes_corrupted(),
            "datagrams_lost": self.casualties.datagrams_lost,
            "mac_moved_ms": self.learnt_ms,
            "rounds": self.account.rounds,
            "total_ms": self.account.total_ms,
            "called_off": self.called_off.map(|before| json!({
                "longest_gap_ms": before.longest_gap_ms,
                "frames_lost": before.frames_lost,
            })),
        })
    }
}

impl Report {
    /// Of no runs yet.
    #[must_use]
    pub fn of(mode: Mode, load: Load, queue_pairs: u16) -> Self {
        Self {
            mode,
            load,
            queue_pairs,
            runs: Vec::new(),
        }
    }

    fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(of).collect())
    }

    fn sum(&self, of: impl Fn(&Run) -> u64) -> u64 {
        self.runs.iter().map(of).sum()
    }

    /// What is not as promised; nothing when all is.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.damage();
        let over_ms = self.median(Run::over_ms);
        if over_ms > BLACKOUT_OVER_DOWNTIME_MS {
            faults.push(format!(
                "the network is away for {over_ms:.1} ms longer than the guest at the median, {BLACKOUT_OVER_DOWNTIME_MS:.0} ms are allowed"
            ));
        }
        faults
    }

    /// Those faults that no slow machine excuses.
    #[must_use]
    pub fn damage(&self) -> Vec<String> {
        let mut damage = Vec::new();
        let broken = self.sum(|run| run.casualties.connections_broken);
        if broken > 0 {
            damage.push(format!("{broken} TCP connections broken"));
        }
        let corrupted = self.sum(Run::bytes_corrupted);
        if corrupted > 0 {
            damage.push(format!("{corrupted} bytes corrupted at least"));
        }
        damage
    }

    /// The closing line, without the program's name.
    #[must_use]
    pub fn closing_line(&self) -> String {
        let faults = self.faults();
        let verdict = if faults.is_empty() {
            "ok".to_owned()
        } else {
            format!("FAILED {};", faults.join(", "))
        };
        format!(
            "{verdict} mode={} load={} queues={} runs={} median: downtime_ms={:.0} blocked_ms={:.0} blackout_ms={:.1} over_ms={:.1} frames_lost={:.0} \
             mac_moved_ms={:.1} all: frames_lost={} of {} retransmits={} datagrams_lost={} connections_broken={} bytes_corrupted={}",
            self.mode.word(),
            self.load.word(),
            self.queue_pairs,
            self.runs.len(),
            self.median(|run| run.account.downtime_ms as f64),
            self.median(|run| run.account.blocked_ms as f64),
            self.median(|run| run.blackout_ms),
            self.median(Run::over_ms),
            self.median(|run| run.frames_lost as f64),
            self.median(|run| run.learnt_ms),
            self.sum(|run| run.frames_lost),
            self.sum(|run| run.frames_sent),
            self.sum(|run| run.tcp_retransmits),
            self.sum(|run| run.casualties.datagrams_lost),
            self.sum(|run| run.casualties.connections_broken),
            self.sum(Run::bytes_corrupted),
        )
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let faults = self.faults();
        json!({
            "ok": faults.is_empty(),
            "faults": faults,
            "mode": self.mode.word(),
            "load": self.load.word(),
            "queues": self.queue_pairs,
            "median": {
                "downtime_ms": self.median(|run| run.account.downtime_ms as f64),
                "blocked_ms": self.median(|run| run.account.blocked_ms as f64),
                "blackout_ms": self.median(|run| run.blackout_ms),
                "over_ms": self.median(Run::over_ms),
                "frames_lost": self.median(|run| run.frames_lost as f64),
                "mac_moved_ms": self.median(|run| run.learnt_ms),
            },
            "runs": self.runs.iter().map(Run::json).collect::<Vec<_>>(),
        })
    }
}

/// Of an even number, between the two in the middle; of none, nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2);
    let lower = values.get(values.len().saturating_sub(1) / 2);
    match (lower, upper) {
        (Some(lower), Some(upper)) => (lower + upper) / 2.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(downtime_ms: u64, blackout_ms: f64) -> Run {
        let account = Account {
            downtime_ms,
            blocked_ms: 0,
            total_ms: 1000,
            rounds: 3,
        };
        Run {
            number: 1,
            is_across: false,
            account,
            blackout_ms,
            usual_gap_ms: 2.0,
            frames_sent: 1000,
            frames_lost: 30,
            probes_corrupted: 0,
            tcp_retransmits: 4,
            casualties: Casualties::default(),
            learnt_ms: 3.0,
            called_off: None,
        }
    }

    fn report(runs: Vec<Run>) -> Report {
        Report {
            runs,
            ..Report::of(Mode::Precopy, Load::All, 1)
        }
    }

    #[test]
    fn the_median_of_what_exceeds_the_downtime_decides() {
        let slow_once = [run(40, 80.0), run(30, 70.0), run(20, 500.0)];
        assert_eq!(report(slow_once.to_vec()).faults(), Vec::<String>::new());
        let slow_twice = report(vec![run(40, 80.0), run(30, 90.1), run(20, 500.0)]);
        assert_eq!(slow_twice.faults().len(), 1);
        assert!(slow_twice.closing_line().starts_with("FAILED the network"));
        assert_eq!(slow_twice.json()["ok"], false);
    }

    #[test]
    fn one_broken_connection_or_wrong_byte_is_one_too_many() {
        let mut broken = run(40, 60.0);
        broken.casualties.connections_broken = 1;
        let mut corrupted = run(40, 60.0);
        corrupted.probes_corrupted = 1;
        for bad in [broken, corrupted] {
            let report = report(vec![run(40, 60.0), bad, run(40, 60.0)]);
            assert_eq!(report.faults().len(), 1);
        }
    }

    #[test]
    fn a_median_of_two_lies_between_them() {
        assert_eq!(median(vec![3.0, 1.0]), 2.0);
        assert_eq!(median(vec![3.0, 1.0, 10.0]), 3.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
