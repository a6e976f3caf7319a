//! A NIC: a vhost-user session, and the queue pairs it describes to the back-end.
//!
//! `options` (what to be) -> `session` (one message at a time; `arrival`: when memory comes page by page) -> `order` (which messages when, as QEMU or Cloud Hypervisor) -> `vmm` (the
//! VMM's half: rings, and the `dirty_log` of a migration) -> `device` (the NIC itself).

pub mod arrival;
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

pub use arrival::{Arrival, Fault};
pub use device::{MemoryUpdate, Nic, QueuePair};
pub use dirty_log::DirtyLog;
pub use options::{Canaries, NicOptions, ProtocolFeatures, Refill, Settle};
pub use order::{MessageOrder, RingBase};
pub use session::{Ack, Listener, ReplyHabit, RingState, Session};
pub use vmm::Vmm;
