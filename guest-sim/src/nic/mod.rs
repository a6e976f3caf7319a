//! A NIC: a vhost-user session, and the queue pairs it describes to the back-end.
//!
//! `options` (what to be) -> `session` (one message at a time) -> `order` (which messages when, as QEMU or Cloud Hypervisor) -> `vmm` (the
//! VMM's half: rings, and the `dirty_log` of a migration) -> `device` (the NIC itself).

pub mod device;
pub mod dirty_log;
pub mod iommu;
#[cfg(test)]
mod logging_tests;
pub mod options;
pub mod order;
#[cfg(test)]
mod order_tests;
pub mod session;
pub mod vmm;
mod watchdog;

#[cfg(test)]
mod logging_tests;
#[cfg(test)]
mod order_tests;

pub use device::{MemoryUpdate, Nic, QueuePair};
pub use dirty_log::DirtyLog;
pub use options::{Canaries, NicOptions, ProtocolFeatures, Refill, Settle};
pub use order::{MessageOrder, RingBase};
pub use session::{Ack, Listener, ReplyHabit, RingState, Session};
pub use vmm::Vmm;
