//! The match-action engine: runs any program over frames.
//!
//! * [`model`]: a program as plain data, and [`literal`] the numbers in it;
//! * [`library`]: the headers and parser states that every program has;
//! * [`validate`]: whether a program is one, and [`ids`] its P4Runtime numbers;
//! * [`control`]: what the control side says to an engine and hears from it;
//! * [`cache`]: a worker's memory of verdicts, each under the bits that it depended on;
//! * [`edit`]: what a verdict does to the bytes of a frame.

pub mod cache;
mod compile;
pub mod control;
pub mod edit;
mod entry;
mod evaluate;
pub mod ids;
mod known;
mod layout;
pub mod library;
pub mod literal;
pub mod model;
mod packet;
mod parse;
pub mod runtime;
mod state;
mod text;
pub mod validate;
