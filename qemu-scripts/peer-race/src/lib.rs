//! Ringswitch beside its peers: the same guest on one core, against each switch in turn on another.
//!
//! # The map
//! 1. [`case`]: what is raced, by name, and the rig each case needs.
//! 2. [`machine`]: the cores and how far they are apart. [`process`]: children that end with us, and can be frozen.
//! 3. [`testpmd`] and [`ovs`]: DPDK's testpmd through its prompt; an OVS-DPDK of our own, for other benches as well.
//! 4. [`switch`] and [`guest`]: the three sides, and who drives them.
//! 5. [`network`]: rules and connections, the same for each side.
//! 6. [`wake`]: what waking a bare thread takes.
//! 7. [`vms`]: the same with real guests, and a kernel bridge for a peer.
//! 8. [`race`]: turns and rounds. [`stats`]: medians and ratios. [`report`] and [`json`]: what is printed. [`check`]: what is on record.

pub mod case;
pub mod check;
pub mod error;
pub mod guest;
pub mod json;
pub mod machine;
pub mod network;
pub mod ovs;
pub mod process;
pub mod race;
pub mod report;
pub mod stats;
pub mod switch;
pub mod testpmd;
pub mod vms;
pub mod wake;

pub use error::{Error, Result};
