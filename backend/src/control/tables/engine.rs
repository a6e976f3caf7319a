//! Everything wanted of the match-action engine, so that tests can put a simple one in its place.
use super::super::PortId;
use serde::{Deserialize, Serialize};
use switch_core::Millis;
use switch_core::engine::control::{
    EntryName, GroupMember, ListedEntry, ListedTable, MeterRate, PortNames, Trace, Update,
    WriteError,
};
use switch_core::engine::literal::Literal;
use switch_core::engine::model::{Format, KeyKind, Program};
use utoipa::ToSchema;

/// A key field of a table, as far as two ways of writing it can be told to mean the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyShape {
    /// What entries call it.
    pub name: String,
    /// How it is compared.
    pub kind: KeyKind,
    /// Its width, 1 to 128.
    pub bits: u16,
    /// How it is written.
    pub format: Format,
}

/// A weighted group as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedGroup {
    /// The selector.
    pub selector: String,
    /// The group.
    pub group: u32,
    /// Its members.
    pub members: Vec<GroupMember>,
}

/// A multicast group as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedMulticast {
    /// The group.
    pub group: u16,
    /// Its ports, by name where they have one.
    pub ports: Vec<Literal>,
}

/// A meter that has a rate, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedMeter {
    /// The array.
    pub meter: String,
    /// Which of it.
    pub index: u32,
    /// The rate.
    pub rate: MeterRate,
}

/// A counter that is not zero, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedCounter {
    /// The array.
    pub counter: String,
    /// Which of it.
    pub index: u32,
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A tracked connection as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedConnection {
    /// Its zone.
    pub zone: u32,
    /// `tcp 10.0.0.5:1234 > 10.0.1.9:443`.
    pub flow: String,
    /// Its state: `new`, `established`, `time_wait`...
    pub state: String,
    /// Its mark.
    pub mark: u32,
    /// How long it is kept without another frame, in milliseconds.
    pub expires_in_ms: u64,
}

/// A frame that is explained, and what would have changed before it.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The port it comes from.
    pub in_port: PortId,
    /// Its bytes.
    pub frame: &'a [u8],
    /// A batch that is not committed.
    pub what_if: &'a [Update],
}

/// The engine. Every method may be called from any thread.
pub trait TableEngine: Send + Sync + 'static {
    /// Carries a batch out, whole or not at all.
    fn write(
        &self,
        updates: &[Update],
        ports: &dyn PortNames,
        now: Millis,
    ) -> Result<(), WriteError>;
    /// As [`Self::write`], for what was acknowledged by an earlier process: quotas that were lowered since take nothing away.
    fn restore(
        &self,
        updates: &[Update],
        ports: &dyn PortNames,
        now: Millis,
    ) -> Result<(), WriteError> {
        self.write(updates, ports, now)
    }
    /// Whether it counts tenants' entries against their quotas by itself.
    fn counts_tenants(&self) -> bool {
        false
    }
    /// Every table.
    fn tables(&self, ports: &dyn PortNames) -> Vec<ListedTable>;
    /// The key of a table; `None`: there is no such table.
    fn key(&self, table: &str) -> Option<Vec<KeyShape>>;
    /// Up to `limit` entries of a table, after the one with the handle `after`.
    fn entries(
        &self,
        table: &str,
        after: Option<u64>,
        limit: usize,
        ports: &dyn PortNames,
    ) -> Result<Vec<ListedEntry>, WriteError>;
    /// What would happen to a frame, and why.
    fn explain(
        &self,
        question: Question<'_>,
        ports: &dyn PortNames,
        now: Millis,
    ) -> Result<Trace, WriteError>;
    /// Removes the entries whose time is over, and says which.
    fn expire(&self, now: Millis, ports: &dyn PortNames) -> Vec<EntryName>;
    /// The program that runs.
    fn program(&self) -> &Program;
    /// Its P4Info document, in protobuf text form.
    fn p4info(&self) -> String;
    /// Every weighted group that has members.
    fn groups(&self, ports: &dyn PortNames) -> Vec<ListedGroup>;
    /// Every multicast group that has ports.
    fn multicast(&self, ports: &dyn PortNames) -> Vec<ListedMulticast>;
    /// Every meter that has a rate.
    fn meters(&self) -> Vec<ListedMeter>;
    /// Counters that are not zero: at most `limit` of an array, from index `from` on. `None`: there is no such array.
    fn counters(&self, counter: &str, from: u32, limit: usize) -> Option<Vec<ListedCounter>>;
    /// At most `limit` tracked connections from place `from` on, and the place of the next, if there may be more. One that stays is
    /// listed once.
    fn connections(
        &self,
        from: u32,
        limit: usize,
        now: Millis,
    ) -> (Vec<ListedConnection>, Option<u32>);
}
