//! How long rings wait, and what is lost, while the switch is replaced by another process under loaded ports.
//!
//! Starts `ringswitch` with a number of vhost-user ports, a bouncing guest on each, in pairs that exchange frames, and has it replaced again
//! and again. For each upgrade: the longest time that any guest saw no frame, beside the longest in as much time right before it, and for how
//! long nobody served the rings by the daemon's own account. At the end frames sent and frames delivered are compared. The guests
//! share one core, so with many of them a turn alone takes a while: that is what the time before it shows.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use guest_sim::bench::daemon::{PortArgument, binary};
use guest_sim::bench::memory_use::raise_descriptor_limit;
use guest_sim::bench::{Bounce, Daemon, cores};
use guest_sim::frame::FrameBuilder;
use guest_sim::{Error, GuestMemory, GuestMemoryLayout, Nic, NicOptions, Refill};

/// Frames on their way between two guests.
const IN_FLIGHT: usize = 32;
const BUFFER_BYTES: usize = 2048;

/// Has a ringswitch daemon replaced under loaded ports, and prints how long their rings waited.
#[derive(Debug, Parser)]
#[command(name = "bench-upgrade")]
struct Arguments {
    /// The program to measure [default: $RINGSWITCH_BIN, or ringswitch beside this program].
    #[arg(long, value_name = "FILE")]
    ringswitch: Option<PathBuf>,
    /// Numbers of ports; even ones.
    #[arg(long, value_delimiter = ',', default_values_t = [2, 64])]
    ports: Vec<usize>,
    /// Upgrades of each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

/// What one upgrade did.
struct Round {
    gap_ms: f64,
    before_ms: f64,
    told_ms: f64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-upgrade: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    raise_descriptor_limit()?;
    let ringswitch = match &arguments.ringswitch {
        Some(path) => path.clone(),
        None => binary()?,
    };
    println!(
        "{:>6} {:>7} {:>15} {:>15} {:>15} {:>10} {:>7}",
        "ports", "round", "longest gap ms", "before ms", "unserved ms", "frames", "lost"
    );
    for &ports in &arguments.ports {
        measure(&ringswitch, ports.next_multiple_of(2), arguments.rounds)?;
    }
    Ok(())
}

fn measure(ringswitch: &Path, ports: usize, rounds: u32) -> Result<(), Error> {
    let names: Vec<String> = (0..ports).map(|port| format!("vm{port}")).collect();
    // A VLAN for each pair: what is flooded before stations are known does not go round.
    let vlans: Vec<String> = (0..ports)
        .map(|port| format!("vlan={}", 1 + port / 2))
        .collect();
    let wanted: Vec<_> = names
        .iter()
        .zip(&vlans)
        .map(|(name, more)| PortArgument {
            more,
            ..PortArgument::named(name)
        })
        .collect();
    let mut daemon = Daemon::start(ringswitch, &wanted, &["--cpus", "1"])?;
    cores::pin(0)?;
    let mut guests = names
        .iter()
        .enumerate()
        .map(|(port, name)| guest(&daemon, port, name))
        .collect::<Result<Vec<_>, Error>>()?;
    let never = AtomicBool::new(false);
    bounce(&mut guests, Duration::from_millis(500), &never)?;
    // What was sent before its receiver was there has nothing to do with upgrades.
    let (sent_before, delivered_before) = totals(&daemon)?;
    let mut seen = Vec::new();
    for number in 1..=rounds {
        let (gap, told, pid) = upgrade(&daemon, &mut guests)?;
        daemon.succeed_by(pid)?;
        let (before, _) = bounce(&mut guests, Duration::from_millis(200), &never)?;
        let round = Round {
            gap_ms: 1e3 * gap.as_secs_f64(),
            before_ms: 1e3 * before.as_secs_f64(),
            told_ms: told as f64 / 1e3,
        };
        print_line(ports, &number.to_string(), &[&round], "");
        seen.push(round);
    }
    let (sent, delivered) = totals(&daemon)?;
    let (sent, delivered) = (sent - sent_before, delivered - delivered_before);
    let rest = format!("{sent:>10} {:>7}", sent.saturating_sub(delivered));
    print_line(ports, "median", &seen.iter().collect::<Vec<_>>(), &rest);
    Ok(())
}

/// Frames sent and delivered so far. Nothing is sent any more; what is on its way arrives.
fn totals(daemon: &Daemon) -> Result<(u64, u64), Error> {
    std::thread::sleep(Duration::from_millis(200));
    let stats = daemon.command(&["stats", "--json"])?;
    Ok((
        sum(&stats, "guest_tx_frames"),
        sum(&stats, "guest_rx_frames"),
    ))
}

fn guest(daemon: &Daemon, port: usize, name: &str) -> Result<(Nic, Bounce), Error> {
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(8 << 20))?;
    let options = NicOptions {
        refill: Refill::Manual,
        ..NicOptions::bench()
    };
    let mut nic = Nic::attach(&memory, options, &daemon.socket(name))?;
    let mut guest = Bounce::new(&memory, &mut nic, BUFFER_BYTES, 64, 2 * IN_FLIGHT)?;
    let mac = |port: usize| [0x52, 0x54, 0, 0, (port >> 8) as u8, port as u8];
    let frame = FrameBuilder::udp4(0)
        .frame_bytes(64)
        .macs(mac(port), mac(port ^ 1))
        .build();
    guest.inject(&mut nic, &frame, IN_FLIGHT)?;
    Ok((nic, guest))
}

/// The longest time that any guest saw nothing, for how long nobody served the rings (microseconds), and the new process.
fn upgrade(daemon: &Daemon, guests: &mut [(Nic, Bounce)]) -> Result<(Duration, u64, u32), Error> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let told = scope.spawn(|| {
            let told = daemon.command(&["upgrade", "--json"]);
            done.store(true, Ordering::Release);
            told
        });
        let (gap, _) = bounce(guests, Duration::from_secs(20), &done)?;
        let told = told.join().unwrap_or(Err(Error::Options("no answer")))?;
        let pid = u32::try_from(sum(&told, "pid")).unwrap_or_default();
        Ok((gap, sum(&told, "gap_us"), pid))
    })
}

/// Keeps frames bouncing for some time or until told: the longest time that any guest saw none, and frames.
fn bounce(
    guests: &mut [(Nic, Bounce)],
    time: Duration,
    done: &AtomicBool,
) -> Result<(Duration, usize), Error> {
    let start = Instant::now();
    let mut last = vec![start; guests.len()];
    let (mut longest, mut frames) = (Duration::ZERO, 0);
    while start.elapsed() < time && !done.load(Ordering::Acquire) {
        for ((nic, guest), last) in guests.iter_mut().zip(&mut last) {
            let turn = guest.turn(nic)?;
            if turn > 0 {
                let now = Instant::now();
                longest = longest.max(now - *last);
                *last = now;
                frames += turn;
            }
        }
    }
    Ok((longest, frames))
}

/// The numbers behind every `"name":`, added up.
fn sum(json: &str, name: &str) -> u64 {
    let name = format!("\"{name}\":");
    let numbers = json.split(&name).skip(1).filter_map(|rest| {
        let digits = rest.trim_start();
        let end = digits.find(|c: char| !c.is_ascii_digit())?;
        digits.get(..end)?.parse::<u64>().ok()
    });
    numbers.sum()
}

fn print_line(ports: usize, number: &str, rounds: &[&Round], rest: &str) {
    let median = |value: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(|round| value(round)).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    println!(
        "{ports:>6} {number:>7} {:>15.3} {:>15.3} {:>15.3} {rest}",
        median(|round| round.gap_ms),
        median(|round| round.before_ms),
        median(|round| round.told_ms),
    );
}
