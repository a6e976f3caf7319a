//! The JSON of tables and explanations. Requests refuse unknown fields; responses, which the command line reads back, do not.
use crate::control::DropView;
use crate::control::frames::encoding::to_hex;
use crate::control::tables::engine::{
    ListedConnection, ListedCounter, ListedGroup, ListedMeter, ListedMulticast,
};
use crate::control::tables::store::Aside;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use switch_core::engine::control::{
    EntryCounters, EntryName, GroupMember, ListedEntry, ListedTable, TableEntry, Trace, Update,
};
use switch_core::engine::literal::Literal;
use switch_core::engine::model::{ActionCall, KeyKind, KeyMatch, Program};
use utoipa::ToSchema;

/// `GET /v1/program`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProgramInfo {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The P4Runtime id of each table.
    pub table_ids: BTreeMap<String, u32>,
    /// The program itself: docs/program.schema.json is its schema.
    #[schema(value_type = Object)]
    pub program: Program,
}

/// `GET /v1/tables`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TableList {
    /// In the program's order.
    pub tables: Vec<Table>,
    /// Whether changes outlive the process.
    pub durable: bool,
    /// Entries and settings that do not fit the program.
    pub aside: usize,
}

/// `GET /v1/tables/{table}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its P4Runtime id.
    pub id: u32,
    /// What it is for.
    pub description: String,
    /// Its key, in order.
    pub key: Vec<TableKey>,
    /// Actions of entries.
    pub actions: Vec<String>,
    /// Entries it has.
    pub entries: usize,
    /// Most entries.
    pub size: usize,
    /// What happens when none matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_action: Option<ActionCall>,
}

/// A key field of a table.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TableKey {
    /// What entries call it.
    pub name: String,
    /// How it is compared.
    pub r#match: KeyKind,
}

impl From<ListedTable> for Table {
    fn from(table: ListedTable) -> Self {
        Self {
            name: table.name,
            id: table.id,
            description: table.description,
            key: table
                .key
                .into_iter()
                .map(|(name, kind)| TableKey {
                    name,
                    r#match: kind,
                })
                .collect(),
            actions: table.actions,
            entries: table.entries,
            size: table.size,
            default_action: table.default_action,
        }
    }
}

/// `GET /v1/tables/{table}/count`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct CountRow {
    /// Entries it has.
    pub entries: usize,
    /// Most entries.
    pub size: usize,
}

/// `GET /v1/tables/{table}/entries`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EntryPage {
    /// By ascending handle.
    pub entries: Vec<Entry>,
    /// `after` of the next page; absent: this is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// An entry as it is listed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// Names it until it is deleted.
    pub handle: u64,
    /// What it matches.
    pub key: BTreeMap<String, KeyMatch>,
    /// Which of several wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// What it does.
    pub action: String,
    /// The action's arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, Literal>,
    /// 0: none.
    #[serde(default)]
    pub idle_timeout_ms: u32,
    /// 0: none.
    #[serde(default)]
    pub hard_timeout_ms: u32,
    /// Whose quota it counts against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Whether it belongs to the program.
    #[serde(default)]
    pub constant: bool,
    /// Frames it decided on, in tables that count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<u64>,
    /// Their bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl From<ListedEntry> for Entry {
    fn from(listed: ListedEntry) -> Self {
        let entry = listed.entry;
        let count = |of: fn(&EntryCounters) -> u64| listed.counters.as_ref().map(of);
        Self {
            handle: listed.handle,
            key: entry.key,
            priority: entry.priority,
            action: entry.action,
            params: entry.params,
            idle_timeout_ms: entry.idle_timeout_ms,
            hard_timeout_ms: entry.hard_timeout_ms,
            tenant: entry.tenant,
            constant: listed.constant,
            frames: count(|counters| counters.frames),
            bytes: count(|counters| counters.bytes),
        }
    }
}

/// Body of `POST`, `PUT` and `PATCH /v1/tables/{table}/entries`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EntryBody {
    /// What it matches.
    #[serde(default)]
    pub key: BTreeMap<String, KeyMatch>,
    /// Which of several wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// What it does.
    pub action: String,
    /// The action's arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, Literal>,
    /// Removed after this long without a frame; 0: never.
    #[serde(default)]
    pub idle_timeout_ms: u32,
    /// Removed after this long; 0: never.
    #[serde(default)]
    pub hard_timeout_ms: u32,
    /// Whose quota it counts against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

impl EntryBody {
    /// In a table.
    pub fn into_entry(self, table: String) -> TableEntry {
        TableEntry {
            table,
            key: self.key,
            priority: self.priority,
            action: self.action,
            params: self.params,
            idle_timeout_ms: self.idle_timeout_ms,
            hard_timeout_ms: self.hard_timeout_ms,
            tenant: self.tenant,
        }
    }
}

/// Body of `DELETE /v1/tables/{table}/entries`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EntryNameBody {
    /// What it matches.
    #[serde(default)]
    pub key: BTreeMap<String, KeyMatch>,
    /// Its priority, where there are priorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
}

impl EntryNameBody {
    /// In a table.
    pub fn into_name(self, table: String) -> EntryName {
        EntryName {
            table,
            key: self.key,
            priority: self.priority,
        }
    }
}

/// Body of `POST /v1/tables/batch`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// In order.
    pub updates: Vec<Update>,
}

/// The answer to every change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchDone {
    /// How many updates took effect: all of them.
    pub updates: usize,
    /// Whether they outlive the process.
    pub durable: bool,
}

/// `GET /v1/aside`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AsideList {
    /// What does not fit the program.
    pub aside: Vec<Aside>,
}

/// `DELETE /v1/aside`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct Discarded {
    /// How much that was.
    pub discarded: usize,
}

/// `GET /v1/groups`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GroupList {
    /// Those that have members.
    pub groups: Vec<ListedGroup>,
}

/// Body of `PUT /v1/groups/{selector}/{group}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupBody {
    /// None: the group is empty.
    pub members: Vec<GroupMember>,
}

/// `GET /v1/multicast`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MulticastList {
    /// Those that have ports.
    pub groups: Vec<ListedMulticast>,
}

/// Body of `PUT /v1/multicast/{group}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MulticastBody {
    /// By name or number; none: the group is empty.
    pub ports: Vec<Literal>,
}

/// `GET /v1/meters`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MeterList {
    /// Those that have a rate.
    pub meters: Vec<ListedMeter>,
}

/// `GET /v1/counters/{counter}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CounterList {
    /// Those that are not zero.
    pub counters: Vec<ListedCounter>,
}

/// `GET /v1/connections`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConnectionList {
    /// Tracked connections.
    pub connections: Vec<ListedConnection>,
    /// `after` of the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
}

/// Body of `POST /v1/explain`. Exactly one of `frame`, `flow` and `pcap`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainBody {
    /// The port the frame comes from.
    pub port: String,
    /// A frame in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// A flow in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
    /// A capture in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcap: Option<String>,
    /// A batch that is not committed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub what_if: Vec<Update>,
}

/// Its answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Explained {
    /// One for each frame.
    pub traces: Vec<TracedFrame>,
}

/// A frame and its way.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TracedFrame {
    /// The frame in hex.
    pub frame: String,
    /// Its way.
    #[serde(flatten)]
    pub trace: Trace,
}

/// `GET /v1/ports/{name}/last-drops`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LastDrops {
    /// Newest first.
    pub drops: Vec<LastDrop>,
}

/// A frame that was dropped.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LastDrop {
    /// Since then.
    pub age_ms: u64,
    /// The reason's stable name.
    pub reason: String,
    /// What happened, in one sentence.
    pub meaning: String,
    /// What to do about it, in one sentence.
    pub advice: String,
    /// The port it came from; absent: one that is gone, or the control side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The frame's length; 0 when it was refused before it was read.
    pub frame_bytes: u32,
    /// Its first bytes, in hex.
    pub header: String,
}

impl From<DropView> for LastDrop {
    fn from(drop: DropView) -> Self {
        Self {
            age_ms: drop.age_ms,
            reason: drop.reason.name().to_owned(),
            meaning: drop.reason.meaning().to_owned(),
            advice: drop.reason.advice().to_owned(),
            from: drop.from.map(|name| name.to_string()),
            frame_bytes: drop.frame_bytes,
            header: to_hex(&drop.header),
        }
    }
}

/// `GET /v1/drop-reasons`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReasonList {
    /// Every reason.
    pub reasons: Vec<Reason>,
}

/// Why frames are dropped.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// Its stable name.
    pub name: String,
    /// What happened, in one sentence.
    pub meaning: String,
    /// What to do about it, in one sentence.
    pub advice: String,
}
