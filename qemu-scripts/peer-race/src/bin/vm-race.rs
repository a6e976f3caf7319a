//! Races Ringswitch against OVS-DPDK and a kernel bridge with real guests; `qemu-scripts/bench-peers --real-guests` sets the machine up for it.

use std::process::ExitCode;

use clap::Parser;
use guest_sim::bench::{cores, daemon};
use peer_race::machine::Machine;
use peer_race::vms::Side;
use peer_race::vms::iperf::Case;
use peer_race::vms::outcome::Outcome;
use peer_race::vms::pair::Pair;
use peer_race::vms::report;
use peer_race::{Error, Result};
use vm_lab::artefacts::Artefacts;
use vm_lab::run_dir::RunDir;

/// iperf3 between two Linux VMs, on Ringswitch, OVS-DPDK and a kernel bridge in turn: guests on one core, each switch on another.
#[derive(Debug, Parser)]
#[command(name = "vm-race")]
struct Arguments {
    /// Run these cases: tcp-1, tcp-4, udp-64.
    #[arg(long, value_name = "CASE", value_delimiter = ',', value_parser = case)]
    only: Vec<Case>,
    /// Shorter turns: 3 minutes in all.
    #[arg(long)]
    quick: bool,
    /// Rounds of each case [default: 5; 3 with --quick].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds of each turn [default: 8; 3 with --quick].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The core of the guests.
    #[arg(long, default_value_t = 0)]
    guest_core: usize,
    /// The core of the switch.
    #[arg(long, default_value_t = 1)]
    switch_core: usize,
}

fn case(name: &str) -> std::result::Result<Case, String> {
    let known = Case::ALL.into_iter().find(|case| case.name() == name);
    known.ok_or_else(|| "there are tcp-1, tcp-4 and udp-64".to_owned())
}

fn say(line: &str) {
    eprintln!("vm-race: {line}");
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Whether everything ran.
fn run(arguments: &Arguments) -> Result<bool> {
    let machine = Machine {
        guest_core: arguments.guest_core,
        switch_core: arguments.switch_core,
        clock_ghz: cores::clock_ghz()?,
        ringswitch: daemon::binary()?,
        vpc: "vpc".into(),
        far_ns: f64::INFINITY,
    };
    let (rounds, seconds) = if arguments.quick { (3, 3) } else { (5, 8) };
    let rounds = arguments.rounds.unwrap_or(rounds);
    let seconds = arguments.seconds.unwrap_or(seconds);
    let artefacts = Artefacts::find()?;
    let folder = RunDir::create("vm-race")?;
    let mut all_ran = true;
    let mut pairs = Vec::new();
    for side in Side::ALL {
        say(&format!("booting two guests on {side}"));
        match Pair::start(side, &machine, &artefacts, &folder) {
            Ok(pair) => pairs.push(pair),
            Err(Error::NotOffered(why)) => say(&format!("without {side}: {why}")),
            Err(error) => {
                say(&format!("without {side}: {error}"));
                all_ran = false;
            }
        }
    }
    let mut outcomes = Vec::new();
    for case in Case::ALL {
        if !arguments.only.is_empty() && !arguments.only.contains(&case) {
            continue;
        }
        let outcome = race(&machine, &mut pairs, case, rounds, seconds)?;
        all_ran &= outcome.failed.is_empty();
        if !arguments.json {
            print!("{}", report::text(&outcome));
        }
        outcomes.push(outcome);
    }
    if arguments.json {
        let document = report::document(&cores::processor(), seconds, &outcomes);
        println!("{document:#}");
    }
    Ok(all_ran && !pairs.is_empty())
}

/// Some rounds of one case: every side in turn. A side that fails sits the rest of the case out.
fn race(
    machine: &Machine,
    pairs: &mut [Pair],
    case: Case,
    rounds: u32,
    seconds: u32,
) -> Result<Outcome> {
    let mut outcome = Outcome {
        case,
        round_trips_ns: vec![machine.round_trip_ns()?],
        rounds: Vec::new(),
        failed: Vec::new(),
    };
    for round in 1..=rounds {
        say(&format!("{}: round {round} of {rounds}", case.name()));
        let mut turns = Vec::new();
        for pair in pairs.iter_mut() {
            let side = pair.side();
            if outcome.failed.iter().any(|(failed, _)| *failed == side) {
                continue;
            }
            match pair.turn(case, seconds) {
                Ok(turn) => turns.push(turn),
                Err(error) => {
                    say(&format!("{}: {side}: {error}", case.name()));
                    outcome.failed.push((side, error.to_string()));
                }
            }
        }
        outcome.rounds.push(turns);
        outcome.round_trips_ns.push(machine.round_trip_ns()?);
    }
    Ok(outcome)
}
