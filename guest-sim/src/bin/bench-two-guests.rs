//! How fast two guests exchange frames through the switch: both on one core, the switch's worker on another.
//!
//! Starts `ringswitch` with two vhost-user ports, attaches a bouncing guest to each, and for each frame size measures a number of rounds:
//! frames a second (both directions together), bits of frames a second, CPU cycles of the worker per frame, and how far the two cores were
//! apart at the time, since on virtual machines that changes. Prints each round and the medians; `--json` prints one JSON document.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use guest_sim::bench::bounce::Counts;
use guest_sim::bench::daemon::{PortArgument, binary};
use guest_sim::bench::{Bounce, Daemon, cores};
use guest_sim::frame::FrameBuilder;
use guest_sim::frame::build::{DEFAULT_DESTINATION, DEFAULT_SOURCE};
use guest_sim::{Error, Features, GuestMemory, GuestMemoryLayout, Nic, NicOptions, Refill};

/// Bounces frames between two simulated guests through a ringswitch daemon.
#[derive(Debug, Parser)]
#[command(name = "bench-two-guests")]
struct Arguments {
    /// The program to measure [default: $RINGSWITCH_BIN, or ringswitch beside this program].
    #[arg(long, value_name = "FILE")]
    ringswitch: Option<PathBuf>,
    /// Seconds per round.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Rounds per frame size.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Frame sizes in bytes; those above 9,216 travel as TCP segmentation offload.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1518, 65_000])]
    sizes: Vec<usize>,
    /// The core the guests run on.
    #[arg(long, default_value_t = 0)]
    guest_core: usize,
    /// The core the switch's worker runs on.
    #[arg(long, default_value_t = 1)]
    worker_core: usize,
    /// Entries of each ring, a power of two.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(64..=32768))]
    ring_size: u16,
    /// Bytes of each mergeable receive buffer.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1536..=65_600))]
    buffer_bytes: u32,
    /// Ack IN_ORDER.
    #[arg(long)]
    in_order: bool,
    /// After each round, one with the migration log of both guests on and read every 100 ms.
    #[arg(long, conflicts_with = "json")]
    logging: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How often a log is read out.
const LOG_READ: Duration = Duration::from_millis(100);

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("use a number of seconds from 0.05 to 600".to_owned()),
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Round {
    frames: u64,
    bytes: u64,
    elapsed: Duration,
    /// CPU time of the busiest thread of the daemon.
    worker: Duration,
    /// Mean of the cores' round trip before and after.
    round_trip_ns: f64,
}

impl Round {
    fn mpps(&self) -> f64 {
        self.frames as f64 / self.elapsed.as_secs_f64() / 1e6
    }

    fn gbit_per_s(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64() / 1e9
    }

    fn cycles_per_frame(&self, ghz: f64) -> f64 {
        self.worker.as_nanos() as f64 * ghz / self.frames.max(1) as f64
    }

    /// Share of the round that the worker was on its core. Near 1, it also spun: cycles per frame are then an upper bound.
    fn worker_share(&self) -> f64 {
        self.worker.as_secs_f64() / self.elapsed.as_secs_f64()
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-two-guests: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let ringswitch = match &arguments.ringswitch {
        Some(path) => path.clone(),
        None => binary()?,
    };
    let ghz = cores::clock_ghz()?;
    if !arguments.json {
        println!(
            "{}, {ghz:.3} GHz; guests on core {}, worker on core {}",
            cores::processor(),
            arguments.guest_core,
            arguments.worker_core
        );
        println!(
            "{:>7} {:>6} {:>8} {:>8} {:>9} {:>7} {:>9}",
            "bytes", "round", "Mpps", "Gbit/s", "cycles/fr", "worker", "cores ns"
        );
    }
    let mut report = Vec::new();
    for &size in &arguments.sizes {
        // A thread of its own, so that the next daemon does not inherit the core this one pins itself to.
        let measured = std::thread::scope(|scope| {
            let thread = scope.spawn(|| measure(arguments, &ringswitch, size, ghz));
            thread.join()
        });
        match measured {
            Ok(rounds) => report.push((size, rounds?)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    if arguments.json {
        println!("{}", json(&report, ghz));
    } else {
        println!(
            "Mpps and Gbit/s count both directions; a worker near 100 % may have spun, so its cycles are an upper bound."
        );
    }
    Ok(())
}

/// All rounds of one frame size, with a daemon of their own.
fn measure(
    arguments: &Arguments,
    ringswitch: &Path,
    size: usize,
    ghz: f64,
) -> Result<Vec<Round>, Error> {
    let mut setup = Setup::new(arguments, ringswitch, size)?;
    setup.bounce_for(Duration::from_secs_f64(arguments.seconds.min(0.5)))?;
    let (mut rounds, mut logged) = (Vec::new(), Vec::new());
    for number in 1..=arguments.rounds {
        let round = setup.round(arguments)?;
        if !arguments.json {
            print_line(size, &number.to_string(), &[round], ghz);
        }
        rounds.push(round);
        if arguments.logging {
            let round = setup.logged_round(arguments)?;
            print_line(size, "logged", &[round], ghz);
            logged.push(round);
        }
    }
    if !arguments.json {
        print_line(size, "median", &rounds, ghz);
    }
    if arguments.logging {
        print_line(size, "logged", &logged, ghz);
        let kept = median(&logged, Round::mpps) / median(&rounds, Round::mpps);
        println!("{size:>7} with the log on {:.1} % stays", 100.0 * kept);
    }
    Ok(rounds)
}

struct Setup {
    // Dropped first: the guests hang up before the daemon ends.
    guests: Vec<(Nic, Bounce)>,
    daemon: Daemon,
    /// When the logs were last read, while they are on.
    log_read: Option<Instant>,
}

impl Setup {
    fn new(arguments: &Arguments, ringswitch: &Path, size: usize) -> Result<Self, Error> {
        let worker_core = arguments.worker_core.to_string();
        let ports = [PortArgument::named("vm1"), PortArgument::named("vm2")];
        let daemon = Daemon::start(
            ringswitch,
            &ports,
            &["--workers", "1", "--cpus", &worker_core],
        )?;
        cores::pin(arguments.guest_core)?;
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(512 << 20))?;
        let in_order = if arguments.in_order {
            Features::IN_ORDER
        } else {
            Features::NONE
        };
        let options = NicOptions {
            features: Features::LINUX | in_order,
            guest_rx_ring_size: arguments.ring_size,
            guest_tx_ring_size: arguments.ring_size,
            refill: Refill::Manual,
            ..NicOptions::bench()
        };
        let buffer_bytes = arguments.buffer_bytes as usize;
        // However the frames gather at one guest, its receive ring has buffers for all of them.
        let per_frame = (size + 12).div_ceil(buffer_bytes);
        let in_flight = (usize::from(arguments.ring_size) / per_frame / 4).clamp(1, 256);
        let mut guests = Vec::new();
        for (source, destination) in [
            (DEFAULT_SOURCE, DEFAULT_DESTINATION),
            (DEFAULT_DESTINATION, DEFAULT_SOURCE),
        ] {
            let socket = daemon.socket(if guests.is_empty() { "vm1" } else { "vm2" });
            let mut nic = Nic::attach(&memory, options.clone(), &socket)?;
            let bounce = Bounce::new(&memory, &mut nic, buffer_bytes, size, 2 * in_flight)?;
            guests.push((nic, bounce, frame(size).macs(source, destination).build()));
        }
        let mut ready = Vec::new();
        for (mut nic, mut bounce, frame) in guests {
            bounce.inject(&mut nic, &frame, in_flight)?;
            ready.push((nic, bounce));
        }
        Ok(Self {
            guests: ready,
            daemon,
            log_read: None,
        })
    }

    fn logged_round(&mut self, arguments: &Arguments) -> Result<Round, Error> {
        for (nic, _) in &mut self.guests {
            nic.start_logging()?;
        }
        self.log_read = Some(Instant::now());
        let round = self.round(arguments);
        self.log_read = None;
        for (nic, _) in &mut self.guests {
            nic.vmm().stop_logging()?;
        }
        round
    }

    fn read_logs(&mut self, now: Instant) -> Result<(), Error> {
        if self.log_read.is_some_and(|last| now - last >= LOG_READ) {
            self.log_read = Some(now);
            for (nic, _) in &mut self.guests {
                nic.vmm().take_logged()?;
            }
        }
        Ok(())
    }

    fn round(&mut self, arguments: &Arguments) -> Result<Round, Error> {
        let before = cores::round_trip_ns(arguments.guest_core, arguments.worker_core)?;
        // Whatever the measurement cooled down is warm again.
        self.bounce_for(Duration::from_millis(20))?;
        let cpu = cores::threads_cpu_time(self.daemon.pid())?;
        let (counts, elapsed) = self.bounce_for(Duration::from_secs_f64(arguments.seconds))?;
        let worker = busiest(&cpu, &cores::threads_cpu_time(self.daemon.pid())?);
        let after = cores::round_trip_ns(arguments.guest_core, arguments.worker_core)?;
        let round_trip_ns = f64::midpoint(before, after);
        Ok(Round {
            frames: counts.frames,
            bytes: counts.bytes,
            elapsed,
            worker,
            round_trip_ns,
        })
    }

    fn bounce_for(&mut self, time: Duration) -> Result<(Counts, Duration), Error> {
        let start_counts = self.counts();
        let start = Instant::now();
        let mut last_frame = start;
        loop {
            // Asking for the time costs about as much as a frame: do it once for many turns.
            let mut frames = 0;
            for _ in 0..64 {
                for (nic, bounce) in &mut self.guests {
                    frames += bounce.turn(nic)?;
                }
            }
            let now = Instant::now();
            self.read_logs(now)?;
            if frames > 0 {
                last_frame = now;
            } else if now - last_frame > Duration::from_secs(2) {
                return Err(Error::Timeout {
                    waiting_for: "frames to come back",
                    within: now - last_frame,
                });
            }
            if now - start >= time {
                let counts = self.counts();
                let frames = counts.frames - start_counts.frames;
                let bytes = counts.bytes - start_counts.bytes;
                return Ok((Counts { frames, bytes }, now - start));
            }
        }
    }

    fn counts(&self) -> Counts {
        let all = self.guests.iter().map(|(_, bounce)| bounce.counts());
        all.fold(Counts::default(), |sum, one| Counts {
            frames: sum.frames + one.frames,
            bytes: sum.bytes + one.bytes,
        })
    }
}

fn frame(size: usize) -> FrameBuilder {
    if size > 9216 {
        FrameBuilder::tcp4(0).segment(1448).frame_bytes(size)
    } else {
        FrameBuilder::udp4(0).frame_bytes(size)
    }
}

/// The CPU time of the thread that used most of it between the two readings.
fn busiest(before: &[(String, Duration)], after: &[(String, Duration)]) -> Duration {
    let used = after.iter().enumerate().map(|(at, (_, time))| {
        let start = before.get(at).map_or(Duration::ZERO, |(_, time)| *time);
        time.saturating_sub(start)
    });
    used.max().unwrap_or_default()
}

fn median(rounds: &[Round], value: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<_> = rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

fn print_line(size: usize, round: &str, rounds: &[Round], ghz: f64) {
    println!(
        "{size:>7} {round:>6} {:>8.3} {:>8.2} {:>9.0} {:>6.0}% {:>9.0}",
        median(rounds, Round::mpps),
        median(rounds, Round::gbit_per_s),
        median(rounds, |round| round.cycles_per_frame(ghz)),
        100.0 * median(rounds, Round::worker_share),
        median(rounds, |round| round.round_trip_ns),
    );
}

fn json(report: &[(usize, Vec<Round>)], ghz: f64) -> String {
    let object = |rounds: &[Round]| {
        format!(
            r#""mpps":{:.4},"gbit_per_s":{:.3},"worker_cycles_per_frame":{:.1},"worker_share":{:.3},"core_round_trip_ns":{:.1}"#,
            median(rounds, Round::mpps),
            median(rounds, Round::gbit_per_s),
            median(rounds, |round| round.cycles_per_frame(ghz)),
            median(rounds, Round::worker_share),
            median(rounds, |round| round.round_trip_ns),
        )
    };
    let sizes: Vec<_> = report
        .iter()
        .map(|(size, rounds)| {
            let each: Vec<_> = rounds
                .iter()
                .map(|round| format!("{{{}}}", object(&[*round])))
                .collect();
            format!(
                r#"{{"frame_bytes":{size},{},"rounds":[{}]}}"#,
                object(rounds),
                each.join(",")
            )
        })
        .collect();
    let processor = cores::processor().replace(['"', '\\'], "'");
    format!(
        r#"{{"processor":"{processor}","clock_ghz":{ghz:.3},"sizes":[{}]}}"#,
        sizes.join(",")
    )
}
