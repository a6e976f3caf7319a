//! Two Linux guests on Ringswitch, from nothing to a verdict: `./qemu-scripts/two-vms`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};
use vm_lab::agent::Agent;
use vm_lab::lab::{Lab, LabSpec, Station};
use vm_lab::run_dir::stop_kept;
use vm_lab::traffic::{self, TcpFlow};
use vm_lab::{Error, Result};

const PINGS: u32 = 20;
const TCP_BYTES: u64 = 64 << 20;
const UDP_DATAGRAMS: u64 = 10_000;
const UDP_PAYLOAD_BYTES: u16 = 1400;

/// Boots two Linux guests on Ringswitch and measures between them. Ends with one line; exit status 0 only when
/// every ping was answered, every byte arrived as it was sent and no datagram was lost.
#[derive(Parser)]
#[command(name = "two-vms", args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(flatten)]
    demonstration: Demonstration,
    #[command(subcommand)]
    afterwards: Option<Afterwards>,
}

#[derive(Args)]
struct Demonstration {
    /// Leave the guests and the switch running, and say how to look at them and how to stop them.
    #[arg(long)]
    keep: bool,
    /// Print the result as JSON, and nothing else, on standard output.
    #[arg(long)]
    json: bool,
}

/// For guests that were kept.
#[derive(Subcommand)]
enum Afterwards {
    /// Run a program in a guest that was kept.
    Exec {
        /// The folder that --keep named.
        folder: PathBuf,
        /// vm1 or vm2.
        guest: String,
        /// Program and arguments; the guest has busybox.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Stop guests and switch that were kept, and remove their folder.
    Stop {
        /// The folder that --keep named.
        folder: PathBuf,
    },
}

/// What held, in the terms of the closing line.
struct Measured {
    ping_loss_percent: f64,
    ping_average_us: f64,
    tcp_mbps: f64,
    udp_loss_percent: f64,
}

/// Where progress goes: standard output is for the result alone when that is JSON.
#[derive(Clone, Copy)]
enum Progress {
    Output,
    Errors,
}

impl Progress {
    fn say(self, line: &str) {
        match self {
            Self::Output => println!("{line}"),
            Self::Errors => eprintln!("{line}"),
        }
    }
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    match command_line.afterwards {
        None => demonstrate(&command_line.demonstration),
        Some(Afterwards::Stop { folder }) => match stop_kept(&folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error),
        },
        Some(Afterwards::Exec {
            folder,
            guest,
            command,
        }) => match exec(&folder, &guest, &command) {
            Ok(status) => ExitCode::from(status),
            Err(error) => complain(&error),
        },
    }
}

fn complain(error: &Error) -> ExitCode {
    eprintln!("two-vms: {error}");
    ExitCode::FAILURE
}

fn exec(folder: &Path, guest: &str, command: &[String]) -> Result<u8> {
    let agent = Agent::in_guest(guest, &folder.join(format!("{guest}.agent")))?;
    let (status, output) = agent.exec(command.iter().map(String::as_str))?;
    print!("{output}");
    Ok(u8::try_from(status).unwrap_or(u8::MAX))
}

fn demonstrate(options: &Demonstration) -> ExitCode {
    let progress = if options.json {
        Progress::Errors
    } else {
        Progress::Output
    };
    let mut lab = None;
    let measured = start(&mut lab, progress).and_then(|lab| measure(lab, progress));
    if let (Err(_), Some(lab)) = (&measured, &lab) {
        eprint!("{}", lab.logs());
    }
    let kept = match lab {
        Some(lab) if options.keep && measured.is_ok() => keep(lab, progress),
        _ => None,
    };
    if options.json {
        println!("{}", as_json(&measured, kept.as_deref()));
    } else {
        println!("{}", closing_line(&measured));
    }
    if measured.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn start(lab: &mut Option<Lab>, progress: Progress) -> Result<&mut Lab> {
    progress.say("starting the switch and booting two guests");
    let began = Instant::now();
    let spec = LabSpec::of([Station::new("vm1"), Station::new("vm2")]);
    let lab = lab.insert(Lab::start("two-vms", &spec)?);
    lab.wait_connected(2)?;
    for number in [1, 2] {
        let (agent, address) = lab.host(number)?;
        let kernel = agent.run("uname -r")?;
        progress.say(&format!(
            "{} runs Linux {}, is {address}",
            agent.name(),
            kernel.trim()
        ));
    }
    progress.say(&format!(
        "both reach each other {:.1} s after the start",
        began.elapsed().as_secs_f64()
    ));
    Ok(lab)
}

fn measure(lab: &mut Lab, progress: Progress) -> Result<Measured> {
    let (one, two) = (lab.host(1)?, lab.host(2)?);
    let mut measured = Measured {
        ping_loss_percent: 0.0,
        ping_average_us: 0.0,
        tcp_mbps: f64::INFINITY,
        udp_loss_percent: 0.0,
    };
    // Of the two directions, the worse counts.
    for (from, to) in [(&one, &two), (&two, &one)] {
        measure_direction((&from.0, &to.0), to.1, &mut measured, progress)?;
    }
    let ports = lab.switch()?.cli(&["port", "list"])?;
    progress.say(&format!("the switch's ports:\n{}", ports.trim_end()));
    Ok(measured)
}

fn measure_direction(
    (from, to): (&Agent, &Agent),
    address: IpAddr,
    worst: &mut Measured,
    progress: Progress,
) -> Result<()> {
    let way = format!("{} -> {}", from.name(), to.name());
    let pings = traffic::ping(from, address, PINGS, 56)?;
    progress.say(&format!(
        "ping {way}: {} of {} answered, {:.0} us on average",
        pings.received, pings.sent, pings.average_us
    ));
    held(pings.received == pings.sent, || {
        format!(
            "{} of {} pings lost {way}",
            pings.sent - pings.received,
            pings.sent
        )
    })?;
    let carried = TcpFlow::start((from, to), address, Some(TCP_BYTES))?.finish()?;
    progress.say(&format!(
        "tcp  {way}: {} MiB in {:.1} s, {:.0} Mbit/s, every byte as it was sent",
        carried.bytes >> 20,
        carried.seconds,
        carried.mbps()
    ));
    let report = traffic::udp((from, to), address, UDP_DATAGRAMS, UDP_PAYLOAD_BYTES)?;
    progress.say(&format!(
        "udp  {way}: {} of {} datagrams, {} damaged, {} out of order, {:.0} Mbit/s",
        report.received.frames,
        report.sent.frames,
        report.received.corrupt,
        report.received.reordered,
        report.received.mbps()
    ));
    held(report.received.corrupt == 0, || {
        format!("{} datagrams damaged {way}", report.received.corrupt)
    })?;
    held(report.lost() == 0, || {
        format!(
            "{} of {} datagrams lost {way}",
            report.lost(),
            report.sent.frames
        )
    })?;
    worst.ping_loss_percent = worst.ping_loss_percent.max(pings.loss_percent());
    worst.ping_average_us = worst.ping_average_us.max(pings.average_us);
    worst.tcp_mbps = worst.tcp_mbps.min(carried.mbps());
    worst.udp_loss_percent = worst.udp_loss_percent.max(report.loss_percent());
    Ok(())
}

fn held(condition: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if condition {
        Ok(())
    } else {
        Err(Error::Unexpected(otherwise()))
    }
}

fn keep(mut lab: Lab, progress: Progress) -> Option<PathBuf> {
    let binary = lab.switch().ok()?.binary().display().to_string();
    let folder = lab.keep();
    let shown = folder.display();
    progress.say(&format!(
        "Guests and switch keep running. Look at them:\n  \
         {binary} port list --admin {shown}/admin.sock\n  \
         {binary} stats --watch --admin {shown}/admin.sock\n  \
         ./qemu-scripts/two-vms exec {shown} vm1 ping -c 3 10.0.0.2\n  \
         tail {shown}/ringswitch.log {shown}/vm1.console\n\
         Stop them:\n  \
         ./qemu-scripts/two-vms stop {shown}"
    ));
    Some(folder)
}

fn closing_line(measured: &Result<Measured>) -> String {
    match measured {
        Ok(measured) => format!(
            "two-vms: ok ping_loss={:.0}% ping_avg_us={:.0} tcp_mbps={:.0} udp_loss={:.0}%",
            measured.ping_loss_percent,
            measured.ping_average_us,
            measured.tcp_mbps,
            measured.udp_loss_percent
        ),
        Err(error) => format!("two-vms: FAILED {}", one_line(error)),
    }
}

fn as_json(measured: &Result<Measured>, kept: Option<&Path>) -> Value {
    let mut result = match measured {
        Ok(measured) => json!({
            "ok": true,
            "ping_loss": measured.ping_loss_percent,
            "ping_avg_us": measured.ping_average_us.round(),
            "tcp_mbps": measured.tcp_mbps.round(),
            "udp_loss": measured.udp_loss_percent,
        }),
        Err(error) => json!({ "ok": false, "reason": one_line(error) }),
    };
    if let (Some(kept), Some(result)) = (kept, result.as_object_mut()) {
        result.insert("kept".to_owned(), json!(kept));
    }
    result
}

fn one_line(error: &Error) -> String {
    error
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}
