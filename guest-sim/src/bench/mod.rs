//! What benches need beside a driver: a guest that forwards as fast as it can, the state of the machine, and the program under test.
//!
//! `daemon` (the program) -> `cores` (pinning, the distance between two cores, CPU time) and `memory_use` -> `flows` (whose frames they
//! are) -> `bounce` (two guests that swap frames), `traffic` (guests that only send or only receive), `treadmill` (guests that overload the switch).

pub mod bounce;
pub mod cores;
pub mod daemon;
pub mod flows;
pub mod memory_use;
pub mod traffic;
pub mod treadmill;

pub use bounce::Bounce;
pub use daemon::Daemon;
pub use flows::{Flow, Flows};
pub use memory_use::MemoryUse;
pub use traffic::{Sink, Source};
pub use treadmill::Treadmill;
