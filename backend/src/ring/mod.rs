//! Guest memory and virtqueues: the only folder of the project that may contain `unsafe`.
//!
//! In the order a frame meets them:
//!
//! * [`guest_memory`]: a VM's memory as the front-end described it, bounds-checked, translated to host addresses; `mapping`: how its
//!   files are mapped;
//! * [`iotlb`]: what the addresses of a guest behind an IOMMU stand for;
//! * [`missing`]: which of its pages are there, while it arrives from another host; [`userfault`]: how those that are not are waited for;
//! * [`dirty_log`]: which of its pages were written, while it migrates;
//! * [`sigbus`]: what happens when a front-end truncates that memory under us;
//! * [`doorbell`]: the eventfds of a ring (kick, call, error); `signaller`: how one is signalled without ever blocking;
//! * [`virtqueue`]: a started ring: chains out, used elements in, notifications suppressed both ways;
//!   [`split`] and [`packed`]: the two kinds, device side; `parts`: where they lie, `stitch`: in pieces perhaps; [`error`]: what their drivers can do wrong;
//! * [`record`]: where packed rings came to, in memory that outlives the process;
//! * [`chain`]: a chain taken from a ring, and the checks of each of its descriptors;
//! * [`segment`]: descriptor chains as host memory, and the only functions that read or write it; `copy`: how;
//! * [`syscalls`]: the few system calls that take raw pointers (vectored I/O from guest memory, TAP ioctls).
//!
//! Everything public here is safe to call with whatever a guest or a front-end may have put in memory.

pub mod chain;
mod copy;
pub mod dirty_log;
pub mod doorbell;
pub mod error;
pub mod guest_memory;
pub mod iotlb;
#[cfg(test)]
mod kill;
mod mapping;
pub mod missing;
pub mod packed;
#[cfg(test)]
mod packed_tests;
mod parts;
pub mod record;
pub mod segment;
pub mod sigbus;
mod signaller;
pub mod split;
mod stitch;
pub mod syscalls;
pub mod userfault;
pub mod virtqueue;

pub use chain::{BurstEnd, BurstLimit, Chain, ChainHead, Direction};
pub use dirty_log::{DirtyLog, LogCounts, LogError, LogLayout};
pub use doorbell::{EventSink, EventSource};
pub use error::RingError;
pub use guest_memory::{GuestMemory, MemoryError, ReceivedRegion, RegionLayout};
pub use iotlb::{Access, Iotlb, Miss, Translation};
pub use missing::MissingPages;
pub use parts::RingAddresses;
pub use record::{RecordError, RecordFile, RingRecord};
pub use segment::{SegmentArena, SegmentRange};
pub use virtqueue::{Ring, RingConfig, RingFill, is_packed};
