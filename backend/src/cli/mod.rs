//! The command line: `ringswitch run`, and the client of a running daemon.
//!
//! In the order a call flows:
//!
//! * [`arguments`]: what can be said;
//! * [`exit`]: what every error means for the exit code;
//! * [`client`]: one HTTP request over the admin socket;
//! * [`commands`]: each subcommand: ask, then print;
//! * [`render`] and [`table`]: answers as text for people.
pub mod arguments;
pub mod client;
pub mod commands;
pub mod exit;
pub mod render;
pub mod table;

pub use arguments::Arguments;
pub use commands::execute;
