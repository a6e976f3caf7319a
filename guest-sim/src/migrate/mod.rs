//! Migrating a VM without a second machine: whether a back-end marks every page it writes, seen by comparing all of memory.
//!
//! `dice` (random timing that can be repeated) -> `load` (two guests that talk to each other, and notice what is lost, repeated or changed)
//! -> `shadow` (the copy of memory that a destination would have) -> `migration` (rounds, as QEMU and Cloud Hypervisor make them).
//!
//! ```no_run
//! # use std::path::Path;
//! # use guest_sim::migrate::Migration;
//! # use guest_sim::{Error, GuestMemory, GuestMemoryLayout, Nic, NicOptions, nic::session::connect};
//! # fn main() -> Result<(), Error> {
//! # let within = std::time::Duration::from_secs(20);
//! let memory = GuestMemory::new(&GuestMemoryLayout::one_region(16 << 20))?;
//! let mut nic = Nic::attach(&memory, NicOptions::default(), Path::new("vm1.sock"))?;
//! let mut migration = Migration::begin(&mut nic.vmm())?;
//! for _ in 0..10 {
//!     // Here the guest sends and receives, or does so on other threads with the pairs of `Nic::halves`.
//!     migration.round(&mut nic.vmm())?;
//! }
//! // Fails with `DeviceFault::NotMarked` if any byte differs.
//! migration.finish(&mut nic.vmm())?;
//! nic.arrive(migration.memory(), connect(Path::new("vm1-elsewhere.sock"), within)?)?;
//! # Ok(())
//! # }
//! ```

mod dice;
mod load;
mod migration;
mod shadow;

pub use dice::Dice;
pub use load::{Load, Phase, Progress, Stage, TalkError, Talker, conversation};
pub use migration::{Migration, Round};
pub use shadow::Shadow;
