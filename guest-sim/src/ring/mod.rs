//! Virtqueues, the driver's half: where a ring lies in memory, what its words mean, and which chains are with the device.
//!
//! `layout` (where) -> `split_view` and `packed_view` (the words), `view` (either) -> `split` and `packed` (which descriptors are whose)
//! -> `virtqueue` (what the driver above works with), which also needs `chain` (what goes in and comes back), `tables` (indirect ones) and
//! `notifier` (kicks and calls). `raw` and `raw_packed` are for misbehaviour: any word.

pub mod chain;
pub mod layout;
mod notifier;
mod packed;
#[cfg(test)]
mod packed_tests;
mod packed_view;
pub mod position;
pub mod raw;
pub mod raw_packed;
mod split;
#[cfg(test)]
mod split_tests;
mod split_view;
mod tables;
pub(crate) mod view;
mod virtqueue;

pub use chain::{Completion, DescriptorTable, Direction, Segment};
pub use layout::{Format, Logging, Place, RingMemory};
pub use notifier::NotificationCounts;
pub use position::{Position, packed_base};
pub use raw::{Descriptor, RawRing};
pub use raw_packed::{EventSuppression, PackedDescriptor, RawPackedRing};
pub use virtqueue::Virtqueue;
