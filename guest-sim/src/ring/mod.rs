//! Split virtqueues, the driver's half: where a ring lies in memory, what its words mean, and which chains are with the device.
//!
//! `layout` (where) -> `view` (the words) -> `split` (the driver's bookkeeping), and `raw` (any word, for misbehaviour).

pub mod layout;
pub mod raw;
pub mod split;
#[cfg(test)]
mod split_tests;
pub(crate) mod view;

pub use layout::RingMemory;
pub use raw::{Descriptor, RawRing};
pub use split::{Completion, Direction, Segment, SplitRing};
