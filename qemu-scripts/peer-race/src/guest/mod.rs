//! The guest, on its core: testpmd where it can play the part, guest-sim elsewhere.
//!
//! Keeps true: what a guest reports is what arrived at it, in a time taken next to its counters.

mod sim;
mod stream;
mod talk;
mod testpmd;

use std::path::Path;
use std::time::Duration;

use guest_sim::{GuestMemory, GuestMemoryLayout, Nic, NicOptions};

use crate::case::{Load, Player, Rig};
use crate::error::Result;
use crate::machine::Machine;
use crate::switch::Switch;

/// What a guest saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seen {
    /// Traffic.
    Rate(Rate),
    /// The time frames took.
    Delay(Delay),
}

/// Traffic that arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// At all ports together.
    pub frames_per_s: f64,
    /// Of frame bytes, without FCS.
    pub bits_per_s: f64,
    /// Frames in all, where they are counted one by one.
    pub arrived: Option<u64>,
    /// Where several send to one.
    pub fairness: Option<Fairness>,
}

/// The least any sender got as a share of the most any got, in bytes: 1 is fair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fairness {
    /// Of what arrived.
    pub delivered: f64,
    /// Of what the switch took from them, dropped frames included.
    pub served: f64,
}

/// From a frame's publication by one port to its arrival at the other, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Delay {
    /// The median.
    pub p50_ns: f64,
    /// All but one in 100.
    pub p99_ns: f64,
    /// All but one in 1,000.
    pub p999_ns: f64,
    /// Frames a second meanwhile.
    pub frames_per_s: f64,
}

impl Delay {
    /// `None` of no samples.
    pub fn of(samples_ns: &mut [u32], elapsed: Duration) -> Option<Self> {
        samples_ns.sort_unstable();
        // Nearest rank.
        let percentile = |p: f64| {
            let rank = (p * samples_ns.len() as f64).ceil() as usize;
            samples_ns.get(rank.max(1) - 1).map(|&ns| f64::from(ns))
        };
        Some(Self {
            p50_ns: percentile(0.5)?,
            p99_ns: percentile(0.99)?,
            p999_ns: percentile(0.999)?,
            frames_per_s: samples_ns.len() as f64 / elapsed.as_secs_f64(),
        })
    }
}

impl Seen {
    /// Frames a second.
    pub fn frames_per_s(&self) -> f64 {
        match self {
            Self::Rate(rate) => rate.frames_per_s,
            Self::Delay(delay) => delay.frames_per_s,
        }
    }
}

/// A guest with all its ports connected to one switch.
pub trait Guest {
    /// Off its core.
    ///
    /// # Errors
    /// It ended.
    fn freeze(&mut self) -> Result<()>;
    /// Back on its core.
    ///
    /// # Errors
    /// It ended.
    fn thaw(&mut self) -> Result<()>;
    /// Puts this on its way instead of what was before.
    ///
    /// # Errors
    /// The traffic does not flow.
    fn load(&mut self, load: &Load) -> Result<()>;
    /// Lets it flow for a time.
    ///
    /// # Errors
    /// It ended, or traffic stopped.
    fn warm_up(&mut self, time: Duration) -> Result<()>;
    /// Lets it flow for a time and looks.
    ///
    /// # Errors
    /// It ended, or traffic stopped.
    fn measure(&mut self, time: Duration) -> Result<Seen>;
    /// Whether its traffic flows all the time, rather than only while it is measured.
    fn flows_by_itself(&self) -> bool;
    /// Ends it.
    ///
    /// # Errors
    /// It cannot be signalled.
    fn stop(self: Box<Self>) -> Result<()>;
}

/// The MAC address of a port, as text.
pub fn mac_text(port: usize) -> String {
    let bytes = sim::mac(port).map(|byte| format!("{byte:02x}"));
    bytes.join(":")
}

/// Starts a rig's guest and connects it to a running switch.
///
/// # Errors
/// It does not start, or the switch does not take it.
pub fn start(
    machine: &Machine,
    folder: &Path,
    rig: &Rig,
    switch: &dyn Switch,
) -> Result<Box<dyn Guest>> {
    Ok(match rig.player {
        Player::Testpmd => Box::new(testpmd::TestpmdGuest::start(machine, folder, rig, switch)?),
        Player::GuestSim => Box::new(sim::SimGuest::start(machine, rig, switch)?),
    })
}

/// Idle ports: connected NICs with posted buffers and silent guests.
///
/// # Errors
/// The switch does not take them.
pub fn idle_ports(rig: &Rig, switch: &dyn Switch) -> Result<Vec<Nic>> {
    let idle = rig.idle_for(switch.side());
    if idle == 0 {
        return Ok(Vec::new());
    }
    // One memory for all of them: only its rings and buffers are ever touched.
    let memory = GuestMemory::new(&GuestMemoryLayout::one_region(1 << 30))
        .map_err(guest_sim::Error::from)?;
    let options = NicOptions {
        guest_rx_ring_size: 64,
        guest_tx_ring_size: 64,
        ..sim::options(rig)
    };
    (rig.ports..rig.ports + idle)
        .map(|port| {
            let mut nic = Nic::attach(&memory, options.clone(), &switch.socket(port))?;
            nic.refill()?;
            Ok(nic)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_at_their_rank() {
        let mut samples: Vec<u32> = (1..=1000).rev().collect();
        let delay = Delay::of(&mut samples, Duration::from_secs(2)).unwrap();
        assert_eq!(
            (delay.p50_ns, delay.p99_ns, delay.p999_ns),
            (500.0, 990.0, 999.0)
        );
        assert_eq!(delay.frames_per_s, 500.0);
        let one = Delay::of(&mut [7], Duration::from_secs(1)).unwrap();
        assert_eq!((one.p50_ns, one.p999_ns), (7.0, 7.0));
        assert_eq!(Delay::of(&mut [], Duration::from_secs(1)), None);
    }
}
