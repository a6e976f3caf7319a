//! What the control side says to an engine and hears from it: entries, batches, pages, explanations, as plain data.
//!
//! Every value has the form that people write: field and port names, addresses, prefixes. The engine resolves them against its
//! program; a [`WriteError`] says which update and which part of it is at fault.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::literal::Literal;
use super::model::{ActionCall, KeyMatch};
use crate::drop_reason::DropReason;
use crate::port::PortId;

/// Names of ports, which values of format `port` are written with.
pub trait PortNames {
    /// The id of a port; also of one that is not there now, if its name is known to come back under this id.
    fn id(&self, name: &str) -> Option<PortId>;
    /// The name of a port.
    fn name(&self, id: PortId) -> Option<String>;
}

/// An entry of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TableEntry {
    /// The table.
    pub table: String,
    /// What it matches, by key name; what is left out of a ternary, range or optional key matches anything.
    #[serde(default)]
    pub key: BTreeMap<String, KeyMatch>,
    /// Which of several wins: the largest. In tables with ternary, range or optional keys only, and there from 1 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// What it does.
    pub action: String,
    /// The action's arguments, by parameter.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, Literal>,
    /// Removed after this long without a frame; 0: never.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub idle_timeout_ms: u32,
    /// Removed after this long; 0: never.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hard_timeout_ms: u32,
    /// Whose quota it counts against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // What serde asks for.
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Which entry of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EntryName {
    /// The table.
    pub table: String,
    /// What it matches.
    #[serde(default)]
    pub key: BTreeMap<String, KeyMatch>,
    /// Its priority, where there are priorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
}

/// One change. A batch of them takes effect whole or not at all, and no frame sees half of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Update {
    /// A new entry; refused when it is there.
    Insert(TableEntry),
    /// Another action for an entry; refused when it is not there.
    Modify(TableEntry),
    /// Either.
    Put(TableEntry),
    /// No such entry any more; refused when it is not there.
    Delete(EntryName),
    /// Every entry of a table goes, but those of the program.
    Clear {
        /// The table.
        table: String,
    },
    /// What happens when no entry matches; without `default`: what the program says.
    SetDefault {
        /// The table.
        table: String,
        /// The action.
        #[serde(default)]
        default: Option<ActionCall>,
    },
    /// The ports of a multicast group; none: the group is empty.
    SetMulticast {
        /// The group, 1 to 65535.
        group: u16,
        /// Its ports, by name or number.
        ports: Vec<Literal>,
    },
    /// The members of a weighted group; none: the group is empty.
    SetGroup {
        /// The selector.
        selector: String,
        /// The group, from 1 on.
        group: u32,
        /// Its members.
        members: Vec<GroupMember>,
    },
    /// The rate of a meter.
    SetMeter {
        /// The array.
        meter: String,
        /// Which of it.
        index: u32,
        /// The rate; none: unlimited.
        #[serde(default)]
        rate: Option<MeterRate>,
    },
}

/// A member of a weighted group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GroupMember {
    /// Its share, against those of the others; 1 to 65535.
    #[serde(default = "one")]
    pub weight: u16,
    /// What it is made of, by field.
    pub values: BTreeMap<String, Literal>,
}

fn one() -> u16 {
    1
}

/// A rate. At least one of bytes and frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MeterRate {
    /// Bytes of frames a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// How many at once; a tenth of a second's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_bytes: Option<u64>,
    /// Frames a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames_per_second: Option<u64>,
    /// How many at once; a tenth of a second's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_frames: Option<u64>,
}

/// Why a batch was refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("update {index}: {place}: {reason}; {remedy}")]
pub struct WriteError {
    /// Which update, from 0.
    pub index: usize,
    /// Which part of it, such as `key.destination` or `params.port`.
    pub place: String,
    /// What kind of fault it is.
    pub kind: WriteErrorKind,
    /// What is wrong with it.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

/// What kind of fault a batch has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteErrorKind {
    /// It does not fit the program.
    Invalid,
    /// What it names is not there.
    NotFound,
    /// It is there already.
    AlreadyExists,
    /// A table, a quota or a limit is full.
    Full,
    /// It belongs to the program and cannot be changed.
    Constant,
}

/// What was seen of an entry since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EntryCounters {
    /// Frames that it decided on.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// An entry as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedEntry {
    /// Names it until it is deleted; the place to go on listing from.
    pub handle: u64,
    /// The entry.
    #[serde(flatten)]
    pub entry: TableEntry,
    /// Whether it belongs to the program.
    pub constant: bool,
    /// In tables that count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<EntryCounters>,
}

/// A table as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedTable {
    /// Its name.
    pub name: String,
    /// Its P4Runtime id.
    pub id: u32,
    /// What it is for.
    pub description: String,
    /// Its key: name and how it is matched.
    pub key: Vec<(String, super::model::KeyKind)>,
    /// Its actions.
    pub actions: Vec<String>,
    /// Entries it has.
    pub entries: usize,
    /// Most entries.
    pub size: usize,
    /// What happens when none matches.
    pub default_action: Option<ActionCall>,
}

/// What would happen to a frame, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Trace {
    /// Each step, in order.
    pub steps: Vec<TraceStep>,
    /// Where it ends up.
    pub outcome: Outcome,
    /// The fields, and the bits of them, that the outcome depends on: `field` or `field & mask`.
    pub looked_at: Vec<String>,
}

/// A step of a frame's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum TraceStep {
    /// The parser was in this state.
    Parse {
        /// The state.
        state: String,
        /// The header it extracted, and the values of its fields.
        header: Option<String>,
        /// By name.
        fields: Vec<(String, String)>,
        /// What it went on to.
        next: String,
    },
    /// A table was asked.
    Table {
        /// Which.
        table: String,
        /// With these values, by key name.
        key: Vec<(String, String)>,
        /// The entry that matched, as it is written; none: the default.
        entry: Option<String>,
        /// The action, with its arguments.
        action: Option<String>,
    },
    /// A condition was decided.
    Condition {
        /// As it is written.
        condition: String,
        /// How.
        holds: bool,
    },
    /// A primitive did something.
    Primitive {
        /// What, with values.
        what: String,
    },
    /// Another pass begins.
    Pass {
        /// Its number; the first is 0 and not mentioned.
        number: u8,
    },
    /// A copy on its way out.
    Egress {
        /// The port it leaves by.
        port: String,
    },
}

/// Where a frame ends up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// Nowhere.
    Drop {
        /// Why.
        #[serde(serialize_with = "reason_name")]
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        reason: DropReason,
        /// What that means.
        meaning: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
    /// There.
    Deliver {
        /// Each copy.
        copies: Vec<TracedCopy>,
    },
}

fn reason_name<S: serde::Serializer>(
    reason: &DropReason,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.name())
}

/// A copy that leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TracedCopy {
    /// The port, `controller: reason`, or `drop: reason` where the frame itself is dropped and copies of it are not.
    pub to: String,
    /// How its header differs: field, before, after; and headers that came or went.
    pub changes: Vec<String>,
    /// The header bytes that leave, in hex.
    pub header: String,
}
