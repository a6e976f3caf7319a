//! CPU time of processes, as the kernel counts it (proc(5)).

use std::fs;
use std::time::Duration;

use guest_sim::bench::cores;

use crate::error::{Doing, Error, Result};

/// User and system time of all threads of a process so far, to the nanosecond.
///
/// # Errors
/// It is gone.
pub fn of_process(pid: u32) -> Result<Duration> {
    let threads = cores::threads_cpu_time(pid)?;
    Ok(threads.into_iter().map(|(_, time)| time).sum())
}

/// System time alone, to the clock tick of 10 ms.
///
/// # Errors
/// It is gone.
pub fn in_the_kernel(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).doing(|| format!("reading {path}"))?;
    let ticks = system_ticks(&text).ok_or(Error::Unparsed {
        what: "a process's system time",
        text,
    })?;
    let a_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs(ticks) / u32::try_from(a_second).unwrap_or(100))
}

/// Field 15, `stime`. The second is a name in brackets that may hold anything.
fn system_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(15 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_time_is_the_fifteenth_field_whatever_the_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 90 0 1 0 1400 1500 16 17 20 0 9 0 11";
        assert_eq!(system_ticks(stat), Some(1500));
        assert_eq!(system_ticks("7 (a) S 1 7"), None);
    }

    #[test]
    fn this_process_has_used_some_and_not_less_later() {
        let id = std::process::id();
        let before = of_process(id).unwrap();
        assert!(!before.is_zero());
        assert!(of_process(id).unwrap() >= before);
        in_the_kernel(id).unwrap();
    }
}
