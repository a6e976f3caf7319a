//! What ports cost that do nothing: memory, descriptors, the time to start and to attach them, and CPU time.
//!
//! Starts `ringswitch` with a number of vhost-user ports, attaches a simulated guest to each, waits until all rings run, and reads what
//! the daemon holds before and after. Each number of ports has a daemon of its own, so that the cost of one port is the difference of two
//! lines.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use guest_sim::bench::daemon::{PortArgument, binary};
use guest_sim::bench::{Daemon, MemoryUse, cores};
use guest_sim::{Canaries, Error, GuestMemory, GuestMemoryLayout, Nic, NicOptions};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Longest wait for the daemon to be ready.
const START_WITHIN: Duration = Duration::from_secs(60);
/// Time given to the workers to fall asleep before CPU time is measured.
const SETTLE: Duration = Duration::from_millis(200);

/// Attaches guests that do nothing to a ringswitch daemon, and prints what they cost it.
#[derive(Debug, Parser)]
#[command(name = "bench-idle-ports")]
struct Arguments {
    /// The program to measure [default: $RINGSWITCH_BIN, or ringswitch beside this program].
    #[arg(long, value_name = "FILE")]
    ringswitch: Option<PathBuf>,
    /// Numbers of ports.
    #[arg(long, value_delimiter = ',', default_values_t = [2, 64, 1000])]
    ports: Vec<usize>,
    /// Worker threads of the daemon.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// More `key=value` pairs for each port, such as `vlan=10`.
    #[arg(long, default_value = "")]
    port_options: String,
    /// Seconds over which the CPU time of the idle daemon is measured.
    #[arg(long, default_value_t = 2)]
    idle_seconds: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-idle-ports: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    // A guest costs this process about as many descriptors as it costs the daemon.
    let most = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, raised)
        .map_err(|_| Error::Options("the limit of open descriptors cannot be raised"))?;
    let ringswitch = match &arguments.ringswitch {
        Some(path) => path.clone(),
        None => binary()?,
    };
    println!(
        "memory in KiB: of its own, of files, of guests, page tables; `+` once guests are attached"
    );
    println!(
        "{:>7} {:>9} {:>10} {:>8} {:>8} {:>8} {:>8} {:>7} {:>9}",
        "ports", "start ms", "attach ms", "own", "files", "guests", "tables", "fds", "idle CPU"
    );
    for &ports in &arguments.ports {
        measure(arguments, &ringswitch, ports)?;
    }
    Ok(())
}

fn measure(arguments: &Arguments, ringswitch: &Path, count: usize) -> Result<(), Error> {
    let names: Vec<String> = (1..=count).map(|number| format!("vm{number}")).collect();
    let ports: Vec<_> = names
        .iter()
        .map(|name| PortArgument {
            more: &arguments.port_options,
            ..PortArgument::named(name)
        })
        .collect();
    let workers = arguments.workers.to_string();
    let (daemon, start) =
        Daemon::start_timed(ringswitch, &ports, &["--workers", &workers], START_WITHIN)?;
    print(
        &count.to_string(),
        start,
        Duration::ZERO,
        MemoryUse::of(daemon.pid())?,
        "",
    );

    let options = NicOptions {
        canaries: Canaries::Off,
        ..NicOptions::default()
    };
    let began = Instant::now();
    let mut guests = Vec::with_capacity(count);
    for name in &names {
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20))?;
        guests.push(Nic::attach(&memory, options.clone(), &daemon.socket(name))?);
    }
    let attach = began.elapsed();
    std::thread::sleep(SETTLE);
    let interval = Duration::from_secs(arguments.idle_seconds);
    let before = cpu_time(&daemon)?;
    std::thread::sleep(interval);
    let used = cpu_time(&daemon)?.saturating_sub(before);
    let share = 100.0 * used.as_secs_f64() / interval.as_secs_f64().max(1e-9);
    print(
        &format!("{count}+"),
        start,
        attach,
        MemoryUse::of(daemon.pid())?,
        &format!("{share:.3} %"),
    );
    Ok(())
}

fn cpu_time(daemon: &Daemon) -> Result<Duration, Error> {
    let threads = cores::threads_cpu_time(daemon.pid())?;
    Ok(threads.iter().map(|(_, time)| *time).sum())
}

fn print(ports: &str, start: Duration, attach: Duration, held: MemoryUse, idle: &str) {
    println!(
        "{ports:>7} {:>9.1} {:>10.1} {:>8} {:>8} {:>8} {:>8} {:>7} {idle:>9}",
        start.as_secs_f64() * 1e3,
        attach.as_secs_f64() * 1e3,
        held.anonymous_bytes >> 10,
        held.file_bytes >> 10,
        held.shared_bytes >> 10,
        held.page_table_bytes >> 10,
        held.descriptors,
    );
}
