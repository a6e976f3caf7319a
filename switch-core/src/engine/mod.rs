//! The match-action engine: runs any program over frames.
//!
//! * [`model`]: a program as plain data, and [`literal`] the numbers in it;
//! * [`library`]: the headers and parser states that every program has;
//! * [`validate`]: whether a program is one, [`ids`] its P4Runtime numbers, [`p4info`] how P4Runtime describes it;
//! * [`schema`]: the JSON Schema of its JSON form;
//! * [`control`]: what the control side says to an engine and hears from it;
//! * [`edit`]: what a verdict does to the bytes of a frame.

pub mod control;
pub mod edit;
pub mod ids;
pub mod library;
pub mod literal;
pub mod model;
pub mod p4info;
pub mod schema;
pub mod validate;
