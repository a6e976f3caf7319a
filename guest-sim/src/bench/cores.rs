//! The machine a bench runs on: which core a thread is on, how far two cores are apart, how much CPU a thread used.
//!
//! Called by benches between rounds, on their own thread. Keeps true: figures come from the kernel or are measured; none is assumed.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::error::{Doing, Error};

/// Moves the calling thread to one core for good.
///
/// # Errors
/// When the core does not exist.
pub fn pin(core: usize) -> Result<(), Error> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).doing("pinning a thread to a core")
}

/// Time a cache line takes from one core to another and back, in nanoseconds: two threads bounce one for a while. The calling thread should
/// be pinned to neither or the first.
///
/// # Errors
/// When a core does not exist.
pub fn round_trip_ns(one: usize, other: usize) -> Result<f64, Error> {
    const TURNS: u32 = 100_000;
    #[repr(align(128))]
    struct Line(AtomicU32);
    let line = Arc::new(Line(AtomicU32::new(0)));
    let partner = {
        let line = line.clone();
        std::thread::spawn(move || {
            pin(other)?;
            for turn in 0..TURNS {
                wait_for(&line.0, 2 * turn + 1);
                line.0.store(2 * turn + 2, Ordering::Release);
            }
            Ok::<_, Error>(())
        })
    };
    pin(one)?;
    line.0.store(1, Ordering::Release);
    wait_for(&line.0, 2);
    // The partner runs: time from here on.
    let start = Instant::now();
    for turn in 1..TURNS {
        line.0.store(2 * turn + 1, Ordering::Release);
        wait_for(&line.0, 2 * turn + 2);
    }
    let elapsed = start.elapsed();
    match partner.join() {
        Ok(outcome) => outcome?,
        Err(_) => {
            return Err(Error::Options(
                "the partner of a cache-line bounce panicked",
            ));
        }
    }
    Ok(elapsed.as_nanos() as f64 / f64::from(TURNS - 1))
}

fn wait_for(word: &AtomicU32, value: u32) {
    while word.load(Ordering::Acquire) != value {
        std::hint::spin_loop();
    }
}

/// The time-stamp counter's frequency in GHz as the kernel gives it (virtual machines: the counter's own; bare metal: the present clock).
///
/// # Errors
/// When `/proc/cpuinfo` does not say.
pub fn clock_ghz() -> Result<f64, Error> {
    let text = fs::read_to_string("/proc/cpuinfo").doing("reading /proc/cpuinfo")?;
    let mhz = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "cpu MHz").then(|| value.trim().parse::<f64>().ok())?
    });
    mhz.map(|mhz| mhz / 1000.0)
        .ok_or(Error::Options("/proc/cpuinfo does not say the clock"))
}

/// What the machine is, for a report: the processor's name.
pub fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(
        || "unknown processor".into(),
        |(_, name)| name.trim().to_owned(),
    )
}

/// CPU time of each thread of a process so far, by name.
///
/// # Errors
/// When the process is gone.
pub fn threads_cpu_time(pid: u32) -> Result<Vec<(String, Duration)>, Error> {
    let tasks = format!("/proc/{pid}/task");
    let mut all = Vec::new();
    for entry in fs::read_dir(&tasks).doing("listing a process's threads")? {
        let folder = entry.doing("listing a process's threads")?.path();
        // A thread may end between the two.
        if let Some(thread) = thread_cpu_time(&folder) {
            all.push(thread);
        }
    }
    Ok(all)
}

fn thread_cpu_time(folder: &Path) -> Option<(String, Duration)> {
    let name = fs::read_to_string(folder.join("comm"))
        .ok()?
        .trim()
        .to_owned();
    let schedstat = fs::read_to_string(folder.join("schedstat")).ok()?;
    let on_cpu_ns = schedstat.split_whitespace().next()?.parse().ok()?;
    Some((name, Duration::from_nanos(on_cpu_ns)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_thread_that_used_the_cpu() {
        let threads = threads_cpu_time(std::process::id()).unwrap();
        assert!(
            threads.iter().any(|(_, time)| !time.is_zero()),
            "{threads:?}"
        );
    }

    #[test]
    fn the_clock_is_a_plausible_number() {
        let ghz = clock_ghz().unwrap();
        assert!((0.1..10.0).contains(&ghz), "{ghz} GHz");
    }
}
