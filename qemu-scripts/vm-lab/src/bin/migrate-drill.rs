//! Live migrations under load, measured by the guest's peer: `./qemu-scripts/migrate-drill`.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use vm_lab::drill::load::Load;
use vm_lab::drill::report::{HEADINGS, Report};
use vm_lab::drill::site::{Nic, Site};
use vm_lab::drill::{self, Mode, exercise};
use vm_lab::{Error, Result};

/// Migrates a guest between two QEMUs, in turn to another port of its switch and to a second switch, while it talks with a peer.
/// Exit status 0 only when no TCP connection broke, no byte was damaged, and the peer missed the guest for at most 50 ms longer
/// than QEMU says it stood still, at the median.
#[derive(Parser)]
#[command(name = "migrate-drill")]
struct CommandLine {
    /// What is drilled.
    #[arg(long, value_enum, default_value = "precopy")]
    mode: ModeWord,
    /// How often.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Traffic meanwhile, besides the probes that measure.
    #[arg(long, value_enum, default_value = "all")]
    load: LoadWord,
    /// Queue pairs of the guest that moves.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=8))]
    queues: u16,
    /// Print the result as JSON, and nothing else, on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeWord {
    /// The guest moves after its memory did.
    Precopy,
    /// The guest moves before all of its memory did.
    Postcopy,
    /// A migration is cancelled, the next one's target dies, the third succeeds.
    Cancel,
}

#[derive(Clone, Copy, ValueEnum)]
enum LoadWord {
    /// A TCP connection each way.
    Tcp,
    /// Datagrams each way.
    Udp,
    /// Nothing more.
    Ping,
    /// TCP and UDP.
    All,
}

enum Ending {
    Drilled(Report),
    Skipped(String),
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let ending = drill(&command_line);
    if command_line.json {
        println!("{}", as_json(&ending));
    } else {
        println!("migrate-drill: {}", closing_line(&ending));
    }
    match ending {
        Ok(Ending::Drilled(report)) if report.faults().is_empty() => ExitCode::SUCCESS,
        Ok(Ending::Skipped(_)) => ExitCode::SUCCESS,
        Ok(Ending::Drilled(_)) | Err(_) => ExitCode::FAILURE,
    }
}

fn drill(command_line: &CommandLine) -> Result<Ending> {
    // Standard output is for the result alone when that is JSON.
    let say = |line: &str| {
        if command_line.json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    };
    let mode = match command_line.mode {
        ModeWord::Precopy => Mode::Precopy,
        ModeWord::Postcopy => Mode::Postcopy,
        ModeWord::Cancel => Mode::Cancel,
    };
    let load = match command_line.load {
        LoadWord::Tcp => Load::Tcp,
        LoadWord::Udp => Load::Udp,
        LoadWord::Ping => Load::Ping,
        LoadWord::All => Load::All,
    };
    let queue_pairs = command_line.queues;
    if mode == Mode::Postcopy && queue_pairs > 1 {
        return Err(Error::Unexpected(
            "postcopy is for one queue pair: with more, QEMU itself fails. Leave out --queues"
                .to_owned(),
        ));
    }
    say("starting the switches and booting two guests");
    let mut site = Site::start(Nic {
        queue_pairs,
        properties: Vec::new(),
    })?;
    if !site.switches().are_two() {
        say(
            "one switch only: no right to a network namespace, where a second one could be joined to it",
        );
    }
    if let Some(reason) = exercise::obstacle(&site, mode)? {
        return Ok(Ending::Skipped(reason));
    }
    say(&format!(
        "times in ms; a blackout is measured with a probe every {} us, by the peer\n{HEADINGS}",
        exercise::PROBE_INTERVAL_US
    ));
    let drilled = drill::drill(&mut site, (mode, load), command_line.runs, |run| {
        say(&run.line());
    });
    if drilled.is_err() {
        eprint!("{}", site.logs());
    }
    drilled.map(Ending::Drilled)
}

fn closing_line(ending: &Result<Ending>) -> String {
    match ending {
        Ok(Ending::Drilled(report)) => report.closing_line(),
        Ok(Ending::Skipped(reason)) => format!("skipped: {reason}"),
        Err(error) => format!("FAILED {}", one_line(error)),
    }
}

fn as_json(ending: &Result<Ending>) -> Value {
    match ending {
        Ok(Ending::Drilled(report)) => report.json(),
        Ok(Ending::Skipped(reason)) => json!({ "skipped": reason }),
        Err(error) => json!({ "ok": false, "reason": one_line(error) }),
    }
}

fn one_line(error: &Error) -> String {
    error
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}
