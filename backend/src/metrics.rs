//! Counters as one snapshot, and the rates between two of them.
use crate::config::PortName;
use crate::datapath::{PortCounters, QueueView, WorkerProfile, WorkerStats};
use crate::device::status::LoggingStatus;
use std::sync::OnceLock;
use std::time::Duration;
use switch_core::MacStats;

/// Every counter at one moment.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Since the daemon started; what rates are measured against.
    pub uptime: Duration,
    /// By port id.
    pub ports: Vec<PortStats>,
    /// By worker index.
    pub workers: Vec<WorkerStats>,
    /// What their batches are like, by worker index.
    pub profiles: Vec<WorkerProfile>,
    /// Stations that were learned.
    pub stations: MacStats,
}

/// One port's counters.
#[derive(Clone, Debug)]
pub struct PortStats {
    /// The port.
    pub name: PortName,
    /// Its counters.
    pub counters: PortCounters,
    /// Those of its queues, without what the port had elsewhere.
    pub queues: Vec<QueueView>,
    /// How it fares, in one word; `unknown` for one that is being removed.
    pub state: String,
    /// The migration that written pages are marked for.
    pub logging: Option<LoggingStatus>,
}

/// Clock of this machine's first CPU in MHz, as the kernel gave it when first asked (proc(5), `/proc/cpuinfo`). In a virtual machine
/// that is the time-stamp counter's.
pub fn cpu_mhz() -> Option<f64> {
    static MHZ: OnceLock<Option<f64>> = OnceLock::new();
    *MHZ.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let (_, value) = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == "cpu MHz")?;
        value.trim().parse().ok()
    })
}

/// A counter's change per second over `elapsed`. A counter that went down belongs to a port that was added anew: it began at zero.
pub fn rate_per_second(before: u64, after: u64, elapsed: Duration) -> f64 {
    let change = after.checked_sub(before).unwrap_or(after);
    match elapsed.as_secs_f64() {
        seconds if seconds > 0.0 => change as f64 / seconds,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_change_over_the_time() {
        assert_eq!(rate_per_second(100, 300, Duration::from_secs(2)), 100.0);
    }

    #[test]
    fn a_counter_that_began_anew_counts_from_zero() {
        assert_eq!(rate_per_second(1_000, 50, Duration::from_secs(1)), 50.0);
    }

    #[test]
    fn no_time_is_no_rate() {
        assert_eq!(rate_per_second(0, 50, Duration::ZERO), 0.0);
    }
}
