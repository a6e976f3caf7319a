//! What a worker makes of many ports: idle ones beside two busy ones, waking up, overload.
//!
//! `idle-ports` bounces frames between two guests through one daemon without other ports and one with many connected idle ones, by
//! turns, and prints the ratio of each pair of rounds; then how much CPU the daemon with the idle ports uses when nothing goes on.
//! `wake` measures the time from a kick to the frame in the other guest's ring while the worker sleeps, by turns with a bare
//! eventfd that wakes a thread from epoll on the same core. `fan-in` lets eight senders with frames of several sizes overload one
//! receiver, and prints each one's bytes. Guests are on one core, the worker is on another.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use guest_sim::bench::daemon::{PortArgument, binary};
use guest_sim::bench::{Bounce, Daemon, Treadmill, cores};
use guest_sim::frame::FrameBuilder;
use guest_sim::nic::session::connect;
use guest_sim::{Error, GuestMemory, GuestMemoryLayout, Nic, NicOptions, Refill};
use rustix::event::epoll;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    IdlePorts,
    Wake,
    FanIn,
}

/// Measures one ringswitch worker with many ports.
#[derive(Debug, Parser)]
#[command(name = "bench-workers")]
struct Arguments {
    /// What to measure.
    cases: Vec<Case>,
    /// The program to measure [default: $RINGSWITCH_BIN, or ringswitch beside this program].
    #[arg(long, value_name = "FILE")]
    ringswitch: Option<PathBuf>,
    /// Idle ports.
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Bytes of a frame between the busy guests.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Rounds of idle-ports, each a second without and a second with.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Wake-ups of each kind.
    #[arg(long, default_value_t = 2000)]
    wakes: usize,
    /// The core the guests run on.
    #[arg(long, default_value_t = 0)]
    guest_core: usize,
    /// The core the switch's worker runs on.
    #[arg(long, default_value_t = 1)]
    worker_core: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-workers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let ringswitch = match &arguments.ringswitch {
        Some(path) => path.clone(),
        None => binary()?,
    };
    for case in &arguments.cases {
        // A thread of its own, so that the next daemon does not inherit the core this one pins itself to.
        let measured = std::thread::scope(|scope| {
            let measure = || match case {
                Case::IdlePorts => idle_ports(arguments, &ringswitch),
                Case::Wake => wake(arguments, &ringswitch),
                Case::FanIn => fan_in(arguments, &ringswitch),
            };
            scope.spawn(measure).join()
        });
        match measured {
            Ok(outcome) => outcome?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok(())
}

fn mac(guest: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0, (guest >> 8) as u8, guest as u8]
}

fn name(port: usize) -> String {
    format!("vm{port}")
}

/// A daemon with one pinned worker and `ports` ports.
fn daemon(arguments: &Arguments, ringswitch: &Path, ports: usize) -> Result<Daemon, Error> {
    let names: Vec<String> = (0..ports).map(name).collect();
    let ports: Vec<_> = names.iter().map(|name| PortArgument::named(name)).collect();
    let core = arguments.worker_core.to_string();
    let daemon = Daemon::start(ringswitch, &ports, &["--workers", "1", "--cpus", &core])?;
    // It listens on the last port's socket last.
    if let Some(last) = names.last() {
        connect(&daemon.socket(last), Duration::from_secs(20))?;
    }
    Ok(daemon)
}

/// Two guests that bounce frames, and idle ones beside them.
struct Busy {
    // Dropped first: the guests hang up before the daemon ends.
    guests: Vec<(Nic, Bounce)>,
    _idle: Vec<Nic>,
    daemon: Daemon,
}

impl Busy {
    fn new(arguments: &Arguments, ringswitch: &Path, idle: usize) -> Result<Self, Error> {
        const IN_FLIGHT: usize = 256;
        let daemon = daemon(arguments, ringswitch, idle + 2)?;
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20))?;
        let mut guests = Vec::new();
        for guest in 0..2 {
            let options = Treadmill::options(1024);
            let mut nic = Nic::attach(&memory, options, &daemon.socket(&name(guest)))?;
            let mut bounce = Bounce::new(&memory, &mut nic, 2048, arguments.size, 2 * IN_FLIGHT)?;
            let frame = FrameBuilder::udp4(0).frame_bytes(arguments.size);
            let frame = frame.macs(mac(guest), mac(1 - guest)).build();
            bounce.inject(&mut nic, &frame, IN_FLIGHT)?;
            guests.push((nic, bounce));
        }
        // The others come now: what is flooded meanwhile does not reach them.
        let mut busy = Self {
            guests,
            _idle: Vec::new(),
            daemon,
        };
        busy.bounce_for(Duration::from_millis(50))?;
        for guest in 2..idle + 2 {
            let memory = GuestMemory::new(&GuestMemoryLayout::one_region(2 << 20))?;
            let options = NicOptions {
                guest_rx_buffers: 64,
                guest_rx_ring_size: 256,
                guest_tx_ring_size: 256,
                refill: Refill::Automatic,
                ..NicOptions::bench()
            };
            let nic = Nic::attach(&memory, options, &busy.daemon.socket(&name(guest)))?;
            busy._idle.push(nic);
        }
        Ok(busy)
    }

    /// Frames a second, both directions together.
    fn bounce_for(&mut self, time: Duration) -> Result<f64, Error> {
        let start = Instant::now();
        let mut frames = 0;
        while start.elapsed() < time {
            for _ in 0..64 {
                for (nic, bounce) in &mut self.guests {
                    frames += bounce.turn(nic)?;
                }
            }
        }
        Ok(frames as f64 / start.elapsed().as_secs_f64())
    }

    fn cpu_time(&self) -> Result<Duration, Error> {
        let threads = cores::threads_cpu_time(self.daemon.pid())?;
        Ok(threads.iter().map(|(_, time)| *time).sum())
    }
}

fn idle_ports(arguments: &Arguments, ringswitch: &Path) -> Result<(), Error> {
    const REST: Duration = Duration::from_secs(10);
    // Several descriptors each, here and in the daemon, which raises its own limit.
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit).map_err(|errno| Error::Io {
        doing: "raising the limit of open files",
        source: errno.into(),
    })?;
    let mut alone = Busy::new(arguments, ringswitch, 0)?;
    let mut crowd = Busy::new(arguments, ringswitch, arguments.idle)?;
    cores::pin(arguments.guest_core)?;
    println!("{} bytes, {} idle ports", arguments.size, arguments.idle);
    println!(
        "{:>5} {:>12} {:>12} {:>7} {:>8}",
        "round", "alone Mpps", "with Mpps", "ratio", "cores ns"
    );
    let mut ratios = Vec::new();
    for round in 1..=arguments.rounds {
        let distance = cores::round_trip_ns(arguments.guest_core, arguments.worker_core)?;
        let mut each = [0.0; 2];
        // By turns which comes first.
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let busy = if which == 0 { &mut alone } else { &mut crowd };
            busy.bounce_for(Duration::from_millis(50))?;
            each[which] = busy.bounce_for(Duration::from_secs(1))?;
        }
        let ratio = each[1] / each[0];
        println!(
            "{round:>5} {:>12.3} {:>12.3} {ratio:>7.3} {distance:>8.0}",
            each[0] / 1e6,
            each[1] / 1e6
        );
        ratios.push(ratio);
    }
    println!("median ratio {:.3}", percentile(&mut ratios, 50));
    let before = crowd.cpu_time()?;
    std::thread::sleep(REST);
    let used = crowd.cpu_time()? - before;
    println!(
        "at rest with {} ports connected: {:.4} % of a core over {} s",
        arguments.idle + 2,
        100.0 * used.as_secs_f64() / REST.as_secs_f64(),
        REST.as_secs()
    );
    Ok(())
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = values.len() * percent / 100;
    values
        .get(at.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}

/// A thread that sleeps in epoll on an eventfd, and says so when it was woken.
fn sleeper(core: usize, bell: &impl AsFd, woken: &AtomicU64) -> Result<(), Error> {
    cores::pin(core)?;
    let failed = |source: rustix::io::Errno| Error::Io {
        doing: "waiting for an eventfd",
        source: source.into(),
    };
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&epoll, bell, epoll::EventData::new_u64(0), flags).map_err(failed)?;
    let mut events = Vec::with_capacity(1);
    while woken.load(Ordering::Acquire) != u64::MAX {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).map_err(failed)?;
        // Not after the end was announced.
        let _ = woken.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count != u64::MAX).then(|| count + 1)
        });
    }
    Ok(())
}

fn wake(arguments: &Arguments, ringswitch: &Path) -> Result<(), Error> {
    /// Far longer than a worker polls, so that it sleeps.
    const PAUSE: Duration = Duration::from_millis(2);
    let daemon = daemon(arguments, ringswitch, 2)?;
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20))?;
    let mut from = Nic::attach(&memory, NicOptions::bench(), &daemon.socket(&name(0)))?;
    let mut to = Nic::attach(&memory, NicOptions::bench(), &daemon.socket(&name(1)))?;
    let bell =
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| Error::Io {
            doing: "making an eventfd",
            source: errno.into(),
        })?;
    let woken = AtomicU64::new(0);
    let (mut bare, mut through) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| sleeper(arguments.worker_core, &bell, &woken));
        let ring = || rustix::io::write(&bell, &1u64.to_ne_bytes());
        let mut measure = || -> Result<(), Error> {
            cores::pin(arguments.guest_core)?;
            let frame = FrameBuilder::udp4(0)
                .frame_bytes(64)
                .macs(mac(0), mac(1))
                .build();
            let hello = FrameBuilder::udp4(0)
                .frame_bytes(64)
                .macs(mac(1), mac(0))
                .build();
            to.send(&hello)?;
            while from.receive(Duration::from_millis(200))?.is_none() {}
            for number in 0..arguments.wakes as u64 {
                std::thread::sleep(PAUSE);
                let start = Instant::now();
                let _ = ring();
                while woken.load(Ordering::Acquire) <= number {
                    std::hint::spin_loop();
                }
                bare.push(start.elapsed().as_nanos() as f64 / 1e3);
                std::thread::sleep(PAUSE);
                from.pair(0).guest_tx.reclaim()?;
                from.pair(0).guest_tx.queue(&frame)?;
                let start = Instant::now();
                from.pair(0).guest_tx.publish()?;
                while !to.pair(0).guest_rx.ring().has_used()? {
                    std::hint::spin_loop();
                }
                through.push(start.elapsed().as_nanos() as f64 / 1e3);
                while to.pair(0).guest_rx.try_receive()?.is_some() {}
            }
            Ok(())
        };
        let measured = measure();
        woken.store(u64::MAX, Ordering::Release);
        let _ = ring();
        match thread.join() {
            Ok(outcome) => measured.and(outcome),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    for (what, values) in [
        ("bare epoll wake", &mut bare),
        ("kick to frame", &mut through),
    ] {
        println!(
            "{what:<16} p50 {:>7.1} us, p90 {:>7.1} us, p99 {:>7.1} us",
            percentile(values, 50),
            percentile(values, 90),
            percentile(values, 99)
        );
    }
    println!(
        "ratio of p50s {:.2}",
        percentile(&mut through, 50) / percentile(&mut bare, 50)
    );
    Ok(())
}

/// Frames of these sizes, one to a sender.
const SIZES: [usize; 8] = [64, 64, 256, 512, 1024, 1518, 1518, 9000];

/// The one that all the others send to.
enum Receiver {
    /// Gives its buffers back as they are: the worker is the bottleneck.
    Fast(Box<Treadmill>),
    /// Copies each frame out and looks at it: it cannot keep up.
    Slow(Box<Nic>),
}

fn fan_in(arguments: &Arguments, ringswitch: &Path) -> Result<(), Error> {
    let daemon = daemon(arguments, ringswitch, SIZES.len() + 2)?;
    for slow in [false, true] {
        let at = SIZES.len() + usize::from(slow);
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(64 << 20))?;
        let hello = FrameBuilder::udp4(0).frame_bytes(64);
        let hello = hello.macs(mac(at), mac(0xffff)).build();
        let socket = daemon.socket(&name(at));
        let mut receiver = if slow {
            let mut nic = Nic::attach(&memory, NicOptions::bench(), &socket)?;
            nic.send(&hello)?;
            Receiver::Slow(Box::new(nic))
        } else {
            let nic = Nic::attach(&memory, Treadmill::options(1024), &socket)?;
            Receiver::Fast(Box::new(Treadmill::new(&memory, nic, &hello)?))
        };
        let mut senders = Vec::new();
        for (guest, size) in SIZES.into_iter().enumerate() {
            let memory = GuestMemory::new(&GuestMemoryLayout::one_region(16 << 20))?;
            let nic = Nic::attach(
                &memory,
                Treadmill::options(1024),
                &daemon.socket(&name(guest)),
            )?;
            let frame = FrameBuilder::udp4(0).frame_bytes(size);
            let frame = frame.macs(mac(guest), mac(at)).build();
            senders.push(Treadmill::new(&memory, nic, &frame)?);
        }
        cores::pin(arguments.guest_core)?;
        let (sent, arrived, seconds) = overload(&mut senders, &mut receiver)?;
        println!(
            "Mbit/s of each sender, {}",
            if slow {
                "to a receiver that cannot keep up"
            } else {
                "the worker being overloaded"
            }
        );
        for (guest, size) in SIZES.into_iter().enumerate() {
            let mbit = |bytes: usize| bytes as f64 * 8.0 / 1e6 / seconds;
            println!(
                "{size:>6} bytes: served {:>9.1}, arrived {:>9.1}",
                mbit(sent[guest] * size),
                mbit(arrived[guest])
            );
        }
    }
    println!(
        "{}\n{}",
        daemon.command(&["stats"])?,
        daemon.command(&["worker", "list"])?
    );
    Ok(())
}

/// Frames taken from each sender, bytes of each that arrived where that is looked at, and the seconds it took.
fn overload(
    senders: &mut [Treadmill],
    receiver: &mut Receiver,
) -> Result<([usize; 8], [usize; 8], f64), Error> {
    let (mut sent, mut arrived) = ([0; 8], [0; 8]);
    if let Receiver::Fast(receiver) = receiver {
        receiver.receive(0)?;
        receiver.send()?;
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        for (sender, count) in senders.iter_mut().zip(&mut sent) {
            *count += sender.send()?;
            match receiver {
                Receiver::Fast(receiver) => {
                    receiver.receive(usize::MAX)?;
                }
                Receiver::Slow(nic) => {
                    for _ in 0..16 {
                        let Some(frame) = nic.pair(0).guest_rx.try_receive()? else {
                            break;
                        };
                        if let Some(bytes) = arrived.get_mut(usize::from(frame.bytes[11])) {
                            *bytes += frame.bytes.len();
                        }
                    }
                }
            }
        }
    }
    Ok((sent, arrived, start.elapsed().as_secs_f64()))
}
