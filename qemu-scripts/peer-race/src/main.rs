//! Races Ringswitch against its peers and prints what came out; `qemu-scripts/bench-peers` sets the machine up for it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use guest_sim::bench::memory_use::raise_descriptor_limit;
use guest_sim::bench::{cores, daemon};
use peer_race::case::{self, Case};
use peer_race::check;
use peer_race::machine::Machine;
use peer_race::race::{self, Absence, Effort, Outcome, Track};
use peer_race::switch::Side;
use peer_race::{Error, Result, json, report, testpmd};

/// What `--quick` takes at most, the wait for processes to end left out.
const QUICK: Duration = Duration::from_secs(160);

/// Races Ringswitch against OVS-DPDK and DPDK's vhost I/O forwarding: the same guest on one core, each switch in turn on another.
#[derive(Debug, Parser)]
#[command(name = "peer-race")]
struct Arguments {
    /// The program to measure [default: $RINGSWITCH_BIN, or ringswitch beside this program].
    #[arg(long, value_name = "FILE")]
    ringswitch: Option<PathBuf>,
    /// What Ringswitch is given as --program where there are rules: vpc, or its JSON in a file.
    #[arg(long, value_name = "PROGRAM", default_value = "vpc")]
    vpc: String,
    /// Run these cases, by name; --list names them.
    #[arg(long, value_name = "CASE", value_delimiter = ',')]
    only: Vec<String>,
    /// Name the cases and end.
    #[arg(long)]
    list: bool,
    /// Fewer cases, rounds and seconds: 3 minutes in all.
    #[arg(long)]
    quick: bool,
    /// Rounds of each case [default: 5; 3 with --quick].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds of each turn [default: 2; 0.5 with --quick].
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Who takes part.
    #[arg(long, value_delimiter = ',', default_values = ["ringswitch", "ovs", "io"])]
    sides: Vec<SideName>,
    /// Who plays the guest; testpmd is replaced where it cannot, or is not installed.
    #[arg(long, default_value = "testpmd")]
    guest: GuestName,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Fail when a ratio is below 90 % of that on record.
    #[arg(long)]
    check: bool,
    /// Where the record is.
    #[arg(long, value_name = "FILE", default_value = "docs/performance.md")]
    record: PathBuf,
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SideName {
    Ringswitch,
    Ovs,
    Io,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GuestName {
    Testpmd,
    GuestSim,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("use a number of seconds from 0.05 to 600".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for case in case::all() {
            let quick = if case.quick { ", quick" } else { "" };
            println!("{} ({}{quick})", case.name, case.rig.player.label());
        }
        return ExitCode::SUCCESS;
    }
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peer-race: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything ran, and kept to the record if that was asked.
fn run(arguments: &Arguments) -> Result<bool> {
    // What may be refused is refused before anything is measured.
    let record = if arguments.check {
        Some(read_record(arguments)?)
    } else {
        None
    };
    let cases = chosen(arguments)?;
    // A thousand idle guests are in this process.
    raise_descriptor_limit()?;
    let machine = Machine {
        guest_core: arguments.guest_core,
        switch_core: arguments.switch_core,
        clock_ghz: cores::clock_ghz()?,
        ringswitch: match &arguments.ringswitch {
            Some(path) => path.clone(),
            None => daemon::binary()?,
        },
        vpc: arguments.vpc.clone(),
        far_ns: arguments.far_ns,
    };
    let (rounds, seconds) = if arguments.quick { (3, 0.5) } else { (5, 2.0) };
    let effort = Effort {
        rounds: arguments.rounds.map_or(rounds, |rounds| rounds as usize),
        window: Duration::from_secs_f64(arguments.seconds.unwrap_or(seconds)),
        warm_up: Duration::from_millis(200),
        until: arguments.quick.then(|| Instant::now() + QUICK),
    };
    if !arguments.json {
        println!(
            "{}, {:.3} GHz; guest on core {}, switch on core {}",
            cores::processor(),
            machine.clock_ghz,
            machine.guest_core,
            machine.switch_core
        );
    }
    let outcomes = race_all(arguments, &machine, &effort, &cases)?;
    let verdict = record.map(|record| check::compare(&outcomes, &record));
    if arguments.json {
        let processor = cores::processor();
        let document = json::document(&machine, &processor, &effort, &outcomes, verdict.as_ref());
        println!("{document:#}");
    } else {
        println!("\n{}", check::table(&check::ratios(&outcomes, 1)));
    }
    for complaint in verdict.iter().flat_map(|verdict| &verdict.complaints) {
        eprintln!("peer-race: {complaint}");
    }
    let kept = verdict.is_none_or(|verdict| verdict.is_good());
    Ok(kept && !outcomes.iter().any(has_failed))
}

fn read_record(arguments: &Arguments) -> Result<Vec<check::Ratio>> {
    let path = arguments.record.display();
    let text = fs::read_to_string(&arguments.record).map_err(|source| Error::Io {
        doing: format!("reading the record, {path}"),
        source,
    })?;
    check::parse(&text).map_err(|why| Error::Invalid(format!("{path}: {why}")))
}

fn chosen(arguments: &Arguments) -> Result<Vec<Case>> {
    let mut cases = case::all();
    for name in &arguments.only {
        if !cases.iter().any(|case| case.name == name) {
            let why = format!("there is no case {name}: --list names them");
            return Err(Error::Invalid(why));
        }
    }
    cases.retain(|case| match arguments.only.as_slice() {
        [] => !arguments.quick || case.quick,
        only => only.iter().any(|name| name == case.name),
    });
    let forced = arguments.guest == GuestName::GuestSim;
    if forced || !is_installed(testpmd::PROGRAM) {
        if !forced {
            eprintln!(
                "peer-race: {} is not installed (Debian: dpdk-dev): guest-sim plays the guest, and there is no I/O forwarding",
                testpmd::PROGRAM
            );
        }
        cases = cases.into_iter().map(Case::played_by_guest_sim).collect();
    }
    Ok(cases)
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn race_all(
    arguments: &Arguments,
    machine: &Machine,
    effort: &Effort,
    cases: &[Case],
) -> Result<Vec<Outcome>> {
    // In memory: Ringswitch keeps the positions of packed rings beside its admin socket, and offers such rings only where that is tmpfs.
    let parent =
        std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let folder = parent.join(format!("peer-race-{}", std::process::id()));
    let doing = |what| {
        move |source| Error::Io {
            doing: format!("{what} a private folder"),
            source,
        }
    };
    let sides: Vec<Side> = Side::ALL
        .into_iter()
        .filter(|&side| {
            let key = if side == Side::Reference {
                Side::Ringswitch
            } else {
                side
            };
            arguments.sides.iter().any(|&name| key == name.into())
        })
        .collect();
    let mut outcomes = Vec::new();
    for group in cases.chunk_by(|a, b| a.rig == b.rig) {
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(doing("making"))?;
        let track = Track {
            machine,
            folder: &folder,
            sides: &sides,
            effort,
        };
        let ended = race::run(&track, group, &mut |line| {
            eprintln!("peer-race: {line}");
        });
        fs::remove_dir_all(&folder).map_err(doing("removing"))?;
        if !arguments.json {
            ended
                .iter()
                .for_each(|ended| print!("{}", report::text(ended)));
        }
        outcomes.extend(ended);
    }
    Ok(outcomes)
}

impl From<SideName> for Side {
    fn from(name: SideName) -> Self {
        match name {
            SideName::Ringswitch => Self::Ringswitch,
            SideName::Ovs => Self::Ovs,
            SideName::Io => Self::Io,
        }
    }
}

fn has_failed(outcome: &Outcome) -> bool {
    outcome
        .absent
        .iter()
        .any(|(_, absence)| matches!(absence, Absence::Failed(_)))
}
