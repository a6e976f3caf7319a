//! What happens to a frame.
//!
//! A pure library: no unsafe code, no threads, no file descriptors, no clock. The data path gives it a private copy of a frame's
//! first bytes (from the Ethernet header on) and the port it came from; the core answers with a [`Verdict`].
//!
//! In the order a frame meets them:
//!
//! 1. [`parse`]: bytes to fields;
//! 2. [`Pipeline`]: a worker's way through the switch: its flow cache, and on a miss
//! 3. the program: tables and actions ([`Step`] lists them), over the [`Switch`]'s port tables and its MAC table;
//! 4. [`Verdict`]: drop with a [`DropReason`], leave by a port, or by all of a broadcast domain;
//! 5. [`VlanEdit`]: the change to the frame's outer tag on the way out;
//! 6. [`segment`] and [`checksum`]: the offloads that its receiver did not take.
//!
//! That is the default program, which is compiled in; [`programs`] has it as data too, and [`l2_entries`] says what ports mean in its tables. Any other
//! runs in the [`engine`], which parses, asks its cache and evaluates in the same places;
//! [`table`] holds its entries, [`conntrack`] its connections, [`maglev`] and [`meter`] choose and limit. [`Decide`] is what the data path
//! sees of either.
//!
//! Beside that way, [`service`] answers what a program sends to the controller.
//!
//! [`Switch`] is what workers and control thread share; each worker has a [`Pipeline`] of its own.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod conntrack;
pub mod engine;
pub mod l2_entries;
pub mod maglev;
pub mod meter;
#[cfg(feature = "openapi")]
pub mod openapi;
pub mod parse;
pub mod programs;
pub mod segment;
pub mod service;
pub mod table;

mod decide;
mod drop_reason;
mod flow_cache;
mod flow_key;
mod flow_list;
mod mac;
mod mac_table;
mod outcomes;
mod pipeline;
mod port;
mod port_tables;
mod program;
mod rate_limit;
mod switch;
mod time;
mod verdict;
mod vlan;
mod vlan_edit;

pub use decide::{CacheUse, Decide, FrameInfo};
pub use drop_reason::DropReason;
pub use flow_list::{
    FLOWS_PER_STEP, FlowCopy, FlowDecision, FlowWalk, LengthRange, ListedFlow, MOST_COPIES_LISTED,
    PLACES_PER_STEP,
};
pub use mac::{InvalidMacAddress, MacAddress};
pub use mac_table::{
    MacEntry, MacMove, MacMoves, MacPage, MacRecord, MacStats, MacsRestored, SourceAction,
};
pub use outcomes::{
    CopiesId, EditListId, MAX_COPIES_PER_BATCH, MAX_COPIES_PER_FRAME, Outcomes, PuntId,
};
pub use pipeline::{Pipeline, PipelineStats};
pub use port::PortId;
pub use port_tables::EgressTagging;
pub use program::{FieldSet, Step};
pub use rate_limit::{RateLimit, TokenBucket};
pub use switch::{Explanation, PortError, Switch, SwitchConfig};
pub use time::Millis;
pub use verdict::{
    Flood, FrameCopy, FrameTag, HeaderEdit, Punt, PuntReason, TagStacking, Target, Verdict,
};
pub use vlan::{BroadcastDomain, InvalidVlanId, Tci, VlanId, VlanPolicy, VlanSet};
pub use vlan_edit::{Rewrite, VlanEdit};
