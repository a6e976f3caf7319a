//! A worker's memory of verdicts, each under just the bits that it depended on.
//!
//! The engine evaluates a frame once and says which bits of it were looked at; every later frame that is the same in those bits is
//! answered from here. A worker owns one cache: no locks. In the order a frame meets them:
//!
//! * `key`: a frame's words, and when two keys are the same under a mask;
//! * [`flow_cache`]: lookup, insertion, removal, the sweep, and the order between the rest;
//! * `front`: hints by the whole key, to answer with one probe however many masks there are;
//! * `index`: all flows by what their masks leave of the key, hashed by `hash`;
//! * `records`: the flows themselves, `masks`: the masks they are under;
//! * `ports`: each port's own list of masks, its share of the flows, and its rates.

pub mod flow_cache;

mod chunks;
mod flow;
mod front;
mod hash;
mod index;
mod key;
mod masks;
mod ports;
mod records;

pub use flow::{Flow, FlowRef};
pub use flow_cache::{
    CacheConfig, CacheStats, FlowCache, Inserted, NotInserted, Refusal, RememberedUnder, Swept,
};
pub(crate) use key::HEAD_WORDS;
pub use key::{FlowKey, MOST_KEY_WORDS};
