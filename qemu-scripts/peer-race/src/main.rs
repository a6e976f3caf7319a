//! Races Ringswitch against its peers and prints what came out; `qemu-scripts/bench-peers` sets the machine up for it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use guest_sim::bench::{cores, daemon};
use peer_race::case::{self, Case};
use peer_race::machine::Machine;
use peer_race::race::{self, Absence, Effort, Outcome};
use peer_race::report;
use peer_race::switch::Side;

/// Races Ringswitch against OVS-DPDK and DPDK's vhost I/O forwarding: the same guest on one core, each switch in turn on another.
#[derive(Debug, Parser)]
#[command(name = "peer-race")]
struct Arguments {
    /// The program to measure [default: $RINGSWITCH_BIN, or ringswitch beside this program].
    #[arg(long, value_name = "FILE")]
    ringswitch: Option<PathBuf>,
    /// Cases to run, by name; none: all.
    #[arg(long, value_name = "CASE", value_delimiter = ',')]
    only: Vec<String>,
    /// Fewer cases, rounds and seconds: 3 minutes in all.
    #[arg(long)]
    quick: bool,
    /// Rounds of each case.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds of each turn.
    #[arg(long)]
    seconds: Option<f64>,
    /// A mounted hugetlbfs for DPDK.
    #[arg(long, value_name = "FOLDER")]
    huge_dir: Option<PathBuf>,
    /// The core of the guest.
    #[arg(long, default_value_t = 0)]
    guest_core: usize,
    /// The core of the switch.
    #[arg(long, default_value_t = 1)]
    switch_core: usize,
    /// Cache-line round trips above this many nanoseconds are those of cores far apart.
    #[arg(long, default_value_t = 150.0)]
    far_ns: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peer-race: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> peer_race::Result<bool> {
    let machine = Machine {
        guest_core: arguments.guest_core,
        switch_core: arguments.switch_core,
        clock_ghz: cores::clock_ghz()?,
        huge_dir: arguments.huge_dir.clone(),
        ringswitch: match &arguments.ringswitch {
            Some(path) => path.clone(),
            None => daemon::binary()?,
        },
        far_ns: arguments.far_ns,
    };
    let (rounds, seconds) = if arguments.quick { (3, 0.5) } else { (5, 2.0) };
    let effort = Effort {
        rounds: arguments.rounds.map_or(rounds, |rounds| rounds as usize),
        window: Duration::from_secs_f64(arguments.seconds.unwrap_or(seconds)),
        warm_up: Duration::from_millis(200),
    };
    let mut cases = case::all();
    cases.retain(|case| {
        if arguments.only.is_empty() {
            !arguments.quick || case.quick
        } else {
            arguments.only.iter().any(|name| name == case.name)
        }
    });
    let folder = std::env::temp_dir().join(format!("peer-race-{}", std::process::id()));
    println!(
        "{}, {:.3} GHz; guest on core {}, switch on core {}",
        cores::processor(),
        machine.clock_ghz,
        machine.guest_core,
        machine.switch_core
    );
    let mut good = true;
    for group in cases.chunk_by(|a: &Case, b: &Case| a.rig == b.rig) {
        let outcomes = race::run(&machine, &folder, group, &Side::ALL, &effort, &mut |line| {
            eprintln!("peer-race: {line}")
        });
        for outcome in &outcomes {
            print!("{}", report::text(outcome));
            good &= !failed(outcome);
        }
        let _removed = std::fs::remove_dir_all(&folder);
    }
    Ok(good)
}

fn failed(outcome: &Outcome) -> bool {
    outcome
        .absent
        .iter()
        .any(|(_, absence)| matches!(absence, Absence::Failed(_)))
}
