//! What a worker's flow cache holds, for people: which frames it knows what to do with, and what.
//!
//! * `walk`: on the worker: a [`FlowWalk`] goes through the cache a step at a time, each of which takes some microseconds at most;
//! * `listed`: on the control side: what it found, in words, as [`ListedFlow`]s.
//!
//! A walk looks and changes nothing. It shows the flows that would answer for a frame now; what is remembered while it goes on may be left
//! out, and what moves within the cache may be shown twice.

mod listed;
mod walk;

pub use listed::{FlowCopy, FlowDecision, LengthRange, ListedFlow, MOST_COPIES_LISTED};
pub(crate) use listed::{port_text, tci_text};
pub use walk::{FLOWS_PER_STEP, FlowWalk, PLACES_PER_STEP};
pub(crate) use walk::{Found, FoundFlow};
