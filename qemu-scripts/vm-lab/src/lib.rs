//! Real QEMU guests on a real Ringswitch.
//!
//! Who starts what, from the outside in:
//!
//! * [`lab`]: one switch and its guests, booted and wired; what `two-vms` and the tests ask for;
//! * [`pool`]: the labs of a test run, each handed from test to test;
//! * [`switch`]: the `ringswitch` daemon as a child process, and its command line;
//! * [`guest`]: a QEMU process: its command line, [`qmp`] to steer it, [`agent`] to speak with who lives inside;
//! * [`traffic`]: pings and transfers between two agents, verified at the receiver;
//! * [`drill`]: what `migrate-drill` does, with [`migration`] between two QEMUs;
//! * [`process`], [`run_dir`]: children and files that never outlive the harness, however it ends;
//! * [`artefacts`]: what `qemu-scripts/setup` prepared;
//! * [`await_`]: deadlines instead of sleeps.

pub mod agent;
pub mod artefacts;
pub mod await_;
pub mod drill;
pub mod error;
pub mod guest;
pub mod lab;
pub mod migration;
pub mod pool;
pub mod process;
pub mod qmp;
pub mod run_dir;
pub mod switch;
pub mod traffic;

pub use error::{Error, Result};
