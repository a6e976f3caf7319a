//! The daemon's life, from its configuration to its exit code.
//!
//! In the order it happens:
//!
//! * [`logging`]: where log lines go;
//! * [`process`]: what is asked of the operating system first: descriptors, and an end to the whole process when any thread panics;
//! * [`lifecycle`]: claim the admin socket, start everything, serve, drain;
//! * [`notify`]: telling the service manager.
//!
//! Runs on the main thread, whose runtime has one thread and serves signals and the admin socket.
pub mod lifecycle;
pub mod logging;
pub mod notify;
pub mod process;

pub use lifecycle::{DaemonError, Ending, run};
