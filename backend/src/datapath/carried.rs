//! Traffic that a port had elsewhere: under an earlier process, or on the host it migrated from.
//!
//! It is added when counters are read, not to the counters that workers write: those have one writer, and the balancing of
//! load looks at how they grow.

use super::counters::PortCounters;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// A port's counters as plain data, summed over its queues. See [`PortCounters`], from which they are made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PortTotals {
    /// Frames the guest sent.
    pub guest_tx_frames: u64,
    /// Their bytes.
    pub guest_tx_bytes: u64,
    /// Frames delivered to it.
    pub guest_rx_frames: u64,
    /// Their bytes.
    pub guest_rx_bytes: u64,
    /// Interrupts asked for.
    pub notifications_sent: u64,
    /// Interrupts the driver had asked to be spared.
    pub notifications_saved: u64,
    /// Time that workers spent on the frames it sent, in nanoseconds.
    pub busy_ns: u64,
    /// Dropped frames by reason.
    pub drops: BTreeMap<String, u64>,
}

impl From<PortCounters> for PortTotals {
    fn from(counters: PortCounters) -> Self {
        let drops = counters.drops.into_iter();
        Self {
            guest_tx_frames: counters.guest_tx_frames,
            guest_tx_bytes: counters.guest_tx_bytes,
            guest_rx_frames: counters.guest_rx_frames,
            guest_rx_bytes: counters.guest_rx_bytes,
            notifications_sent: counters.notifications_sent,
            notifications_saved: counters.notifications_saved,
            busy_ns: counters.busy_ns,
            drops: drops
                .map(|(reason, count)| (reason.to_owned(), count))
                .collect(),
        }
    }
}

/// What a port's counters begin with. Drops are not among it: those are counted by many, so they are simply added.
#[derive(Debug, Default)]
pub struct CarriedTraffic(Mutex<PortCounters>);

impl CarriedTraffic {
    /// Adds what a port had elsewhere, but for its drops.
    pub fn add(&self, totals: &PortTotals) {
        let mut carried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let traffic = PortCounters {
            guest_tx_frames: totals.guest_tx_frames,
            guest_tx_bytes: totals.guest_tx_bytes,
            guest_rx_frames: totals.guest_rx_frames,
            guest_rx_bytes: totals.guest_rx_bytes,
            drops: Vec::new(),
            notifications_sent: totals.notifications_sent,
            notifications_saved: totals.notifications_saved,
            busy_ns: totals.busy_ns,
        };
        add(&mut carried, &traffic);
    }

    /// Adds all of it to what was counted here.
    pub fn add_to(&self, sum: &mut PortCounters) {
        add(sum, &self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Wraps around, as the counters themselves do.
fn add(sum: &mut PortCounters, more: &PortCounters) {
    for (sum, more) in [
        (&mut sum.guest_tx_frames, more.guest_tx_frames),
        (&mut sum.guest_tx_bytes, more.guest_tx_bytes),
        (&mut sum.guest_rx_frames, more.guest_rx_frames),
        (&mut sum.guest_rx_bytes, more.guest_rx_bytes),
        (&mut sum.notifications_sent, more.notifications_sent),
        (&mut sum.notifications_saved, more.notifications_saved),
        (&mut sum.busy_ns, more.busy_ns),
    ] {
        *sum = sum.wrapping_add(more);
    }
}
