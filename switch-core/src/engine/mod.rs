//! The match-action engine: runs any program over frames.
//!
//! What a program is:
//!
//! * [`model`]: a program as plain data, and [`literal`] the numbers in it;
//! * [`library`]: the headers and parser states that every program has;
//! * [`schema`]: the JSON Schema of its JSON form;
//! * [`validate`]: whether a program is one, [`ids`] its P4Runtime numbers, [`p4info`] how P4Runtime describes it.
//!
//! What runs it, in the order a frame meets them:
//!
//! * [`pipeline`]: a worker's way through it: path, key, cache, and on a miss
//! * `evaluate`: the one evaluator, over a `packet` that `parse` laid out, and over the tables and groups of `state`;
//! * [`cache`]: a worker's memory of verdicts, each under the bits that it depended on;
//! * `params`: an action's arguments, packed;
//! * [`edit`]: what a verdict does to the bytes of a frame.
//!
//! What operators see of it:
//!
//! * [`control`]: what the control side says to an engine and hears from it;
//! * [`runtime`]: the [`Engine`](runtime::Engine): batches, listings, timeouts, and explanations (`explain`);
//! * `listed`: what a worker remembers, in words; `edit_text`: what becomes of a frame's fields;
//! * [`existing`]: what there is in place of an entry; [`seen`]: what entries and counters have counted, for another engine to go on from.

pub mod cache;
mod compile;
pub mod control;
pub mod edit;
mod edit_text;
mod entry;
mod evaluate;
pub mod existing;
mod explain;
mod foreseen;
pub mod ids;
mod key_match;
mod known;
mod layout;
pub mod library;
pub(crate) mod listed;
pub mod literal;
pub mod model;
pub mod p4info;
mod packet;
mod params;
mod parse;
mod paths;
mod pattern;
pub mod pipeline;
mod remembered;
pub mod runtime;
pub mod schema;
pub mod seen;
mod state;
mod text;
pub mod validate;
