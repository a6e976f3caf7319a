//! A NIC: a vhost-user session, and the queue pairs it describes to the back-end.
//!
//! `options` (what to be) -> `session` (one message at a time) -> `order` (which messages when, as QEMU or Cloud Hypervisor) -> `device`
//! (the NIC itself).

pub mod device;
pub mod iommu;
pub mod options;
pub mod order;
#[cfg(test)]
mod order_tests;
pub mod session;

pub use device::{MemoryUpdate, Nic, QueuePair};
pub use options::{Canaries, NicOptions, ProtocolFeatures, Refill, Settle};
pub use order::{MessageOrder, RingBase};
pub use session::{Ack, Listener, ReplyHabit, RingState, Session};
