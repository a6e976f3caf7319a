//! Real guests beside each other: two Linux VMs on Ringswitch, two on OVS-DPDK, two on a kernel bridge, and `iperf3` between them in turns.
//!
//! # The map
//! 1. [`iperf`]: what the guests run, and what it says.
//! 2. [`pair`]: two guests and what is between them, and their turn. [`usage`]: CPU time, as the kernel counts it.
//! 3. [`outcome`]: turns, rounds and ratios. [`report`]: what is printed.
//!
//! Everything of a guest runs on the guest's core: vCPU, devices, and with the bridge also the forwarding, which the kernel does in the context
//! of the QEMU that sends. The switches have a core to themselves, which the bridge leaves idle.

pub mod iperf;
pub mod outcome;
pub mod pair;
pub mod report;
pub mod usage;

use std::fmt;

/// What is between the guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Ringswitch with one worker.
    Ringswitch,
    /// OVS-DPDK with one polling thread, forwarding by MAC address, TSO enabled.
    Ovs,
    /// The kernel's bridge, two TAPs, no vhost-net.
    Bridge,
}

impl Side {
    /// All, in the order of their turns.
    pub const ALL: [Self; 3] = [Self::Ringswitch, Self::Ovs, Self::Bridge];

    /// Short and stable, for names and JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::Ringswitch => "ringswitch",
            Self::Ovs => "ovs",
            Self::Bridge => "bridge",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ringswitch => "Ringswitch",
            Self::Ovs => "OVS-DPDK",
            Self::Bridge => "kernel bridge",
        })
    }
}
