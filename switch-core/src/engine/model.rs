//! A program as plain data: what JSON says, before anything is checked.
//!
//! P4's model. A frame is parsed by [`Parser`] into header instances; the `ingress` control applies tables and decides where the
//! frame goes; for each copy that leaves by a port, `egress` runs with `std.out_port` set. Everything refers to everything else by
//! name; [`validate`](super::validate) says what is wrong, `compile` resolves the names.
//!
//! Field names are `instance.field`, `meta.name`, `std.name`, `ct.name`, or `$parameter` inside an action.
//!
//! | field | bits | meaning |
//! |---|---|---|
//! | `std.in_port` | 16 | port the frame came from |
//! | `std.out_port` | 16 | port the copy leaves by; `egress` only |
//! | `std.frame_bytes` | 32 | length as it is carried; comparisons with constants, parameters and metadata only |
//! | `std.wire_bytes` | 32 | length of the longest piece it will be cut into; likewise |
//! | `std.parse_error` | 8 | 0 none, 1 beyond the copy, 2 truncated, 3 malformed, 4 too deep |
//! | `std.pass` | 8 | how often the frame was resubmitted or recirculated |
//! | `ct.tracked`, `ct.new`, `ct.established`, `ct.related`, `ct.reply`, `ct.invalid`, `ct.snat`, `ct.dnat` | 1 | after `track` |
//! | `ct.mark` | 32 | the connection's mark, after `track` |
//! | `ct.data0` to `ct.data3` | 32 | what `commit` left with the connection |
//! | `instance.valid` | 1 | whether the parser, or an action, made the header part of the frame |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::literal::{Literal, Operand};

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// What it is called.
    pub name: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Kinds of header, besides the built-in ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub header_types: Vec<HeaderType>,
    /// Headers a frame may have, besides the built-in ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderInstance>,
    /// What a frame carries with it while it is processed; zero at the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata: Vec<FieldDecl>,
    /// From bytes to headers. Without one: the built-in parser.
    #[serde(default, skip_serializing_if = "Parser::is_builtin")]
    pub parser: Parser,
    /// Arrays of token buckets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub meters: Vec<ArrayDecl>,
    /// Arrays of counters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counters: Vec<ArrayDecl>,
    /// Weighted groups that `select` chooses from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selectors: Vec<SelectorDecl>,
    /// Tables of stations that `learn` fills and `find` asks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learning: Vec<LearningDecl>,
    /// Actions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<ActionDecl>,
    /// Tables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<TableDecl>,
    /// What happens to each frame.
    pub ingress: Vec<Statement>,
    /// What happens to each copy on its way out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<Statement>,
}

/// A named field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldDecl {
    /// Its name.
    pub name: String,
    /// Its width, 1 to 128.
    pub bits: u16,
    /// How people write it.
    #[serde(default, skip_serializing_if = "Format::is_number")]
    pub format: Format,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A number.
    #[default]
    Number,
    /// `52:54:00:12:34:56`
    Mac,
    /// `10.0.0.1`
    Ipv4,
    /// `2001:db8::1`
    Ipv6,
    /// A port of the switch, by name.
    Port,
}

impl Format {
    /// The default.
    pub fn is_number(&self) -> bool {
        *self == Self::Number
    }
}

/// A kind of header: fields in the order they stand, most significant bit first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderType {
    /// Its name.
    pub name: String,
    /// Its fields; whole bytes together.
    pub fields: Vec<FieldDecl>,
    /// For a header longer than its fields: its whole length. The rest is carried along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<HeaderLength>,
}

/// The length of a header is `(field + plus) * unit_bytes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderLength {
    /// A field of the header.
    pub field: String,
    /// What a unit of it stands for.
    pub unit_bytes: u8,
    /// Added to it first.
    #[serde(default)]
    pub plus: u8,
    /// Longest that is accepted, at most 255.
    pub max_bytes: u8,
}

/// A header that a frame may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderInstance {
    /// Its name.
    pub name: String,
    /// Its kind.
    #[serde(rename = "type")]
    pub header_type: String,
}

/// A parse graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parser {
    /// States, besides or instead of the built-in ones of the same name. The first to run is `start`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<ParserState>,
    /// Cases that are put before those of a built-in state: how a header of one's own is reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extend: Vec<ParserExtension>,
}

impl Parser {
    /// Whether nothing is added to the built-in parser.
    pub fn is_builtin(&self) -> bool {
        self.states.is_empty() && self.extend.is_empty()
    }
}

/// More cases for a built-in state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParserExtension {
    /// The state.
    pub state: String,
    /// The cases, of as many values as the state selects on.
    pub cases: Vec<ParserCase>,
}

/// A state of the parser.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParserState {
    /// Its name.
    pub name: String,
    /// The header that starts here; none for a state that only decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extract: Option<String>,
    /// What must hold of it; otherwise the parse ends with `malformed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<Condition>,
    /// The fields that decide what follows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub select: Vec<String>,
    /// The first that matches is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cases: Vec<ParserCase>,
    /// Otherwise: a state, `accept`, or `reject` (malformed).
    #[serde(default = "accept")]
    pub default: String,
}

fn accept() -> String {
    "accept".to_owned()
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParserCase {
    /// One for each selected field.
    pub values: Vec<CaseValue>,
    /// A state, `accept`, or `reject`.
    pub next: String,
}

/// What a selected field must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum CaseValue {
    /// This.
    Exact(Literal),
    /// This, in these bits; `{"value": 0, "mask": 0}` is anything.
    Masked {
        /// The bits.
        value: Literal,
        /// Which of them count.
        mask: Literal,
    },
}

/// An indexed array of meters or counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArrayDecl {
    /// Its name.
    pub name: String,
    /// Its P4Runtime id; chosen by the name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// How many there are; at most 1,048,576.
    pub size: u32,
}

/// Weighted groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectorDecl {
    /// The name.
    pub name: String,
    /// Its P4Runtime id; chosen by the name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// What a member is made of.
    pub member: Vec<FieldDecl>,
    /// How many groups there may be.
    pub max_groups: u32,
    /// How many members one may have.
    pub max_members: u32,
}

/// A table of stations: (domain, address) to port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningDecl {
    /// The name.
    pub name: String,
}

/// An action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionDecl {
    /// Its name.
    pub name: String,
    /// Its P4Runtime id; chosen by the name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Its parameters; an entry brings their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<FieldDecl>,
    /// What it does, in order.
    #[serde(rename = "do")]
    pub body: Vec<Primitive>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableDecl {
    /// Its name.
    pub name: String,
    /// Its P4Runtime id; chosen by the name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What is compared.
    pub key: Vec<KeyDecl>,
    /// Actions its entries may have, by name.
    pub actions: Vec<String>,
    /// What happens when nothing matches. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_action: Option<ActionCall>,
    /// Whether the default can be changed at run time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub const_default: bool,
    /// Most entries; at most 4,194,304.
    pub size: u32,
    /// Whether entries count frames and bytes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub counters: bool,
    /// Whether entries may have timeouts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timeouts: bool,
    /// Entries that are always there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub const_entries: Vec<ConstEntry>,
}

/// A key field of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyDecl {
    /// The field.
    pub field: String,
    /// How it is compared.
    #[serde(rename = "match")]
    pub kind: KeyKind,
    /// What it is called in entries; the field's full name (`ipv4.dst`) when absent. See [`Self::key_name`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl KeyDecl {
    /// What it is called in entries.
    pub fn key_name(&self) -> &str {
        self.name.as_ref().unwrap_or(&self.field)
    }
}

/// How a key field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// As a whole.
    Exact,
    /// The longest prefix wins.
    Lpm,
    /// Under a mask; the highest priority wins.
    Ternary,
    /// From a lowest to a highest value; the highest priority wins.
    Range,
    /// As a whole or not at all; the highest priority wins.
    Optional,
}

impl KeyKind {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Lpm => "lpm",
            Self::Ternary => "ternary",
            Self::Range => "range",
            Self::Optional => "optional",
        }
    }

    /// Whether several entries of a table with such a field can match, so that they need priorities. A prefix beside such a field is
    /// no more than a mask.
    pub const fn needs_priority(self) -> bool {
        matches!(self, Self::Ternary | Self::Range | Self::Optional)
    }
}

/// An action with its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ActionCall {
    /// The action.
    pub action: String,
    /// Its arguments, by parameter.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, Literal>,
}

/// An entry that belongs to the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConstEntry {
    /// What it matches, by key name; what is left out of a ternary, range or optional key matches anything.
    pub key: BTreeMap<String, KeyMatch>,
    /// Which of several wins: the largest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// What it does.
    pub action: String,
    /// The action's arguments, by parameter.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, Literal>,
}

/// What an entry wants of a key field: `5`, `"10.0.0.0/8"`, `"0x0800&0xff00"`, `"80..443"`, or the same as an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum KeyMatch {
    /// A literal, a prefix, a value and mask, or a range, in one string or number.
    Text(Literal),
    /// A prefix.
    Prefix {
        /// The address.
        value: Literal,
        /// How many of its first bits count.
        prefix_bits: u16,
    },
    /// Under a mask.
    Masked {
        /// The bits.
        value: Literal,
        /// Which of them count.
        mask: Literal,
    },
    /// From `low` to `high`, both included.
    Range {
        /// The lowest.
        low: Literal,
        /// The highest.
        high: Literal,
    },
}

/// A step of a control.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Statement {
    /// Looks a table up and runs the action it answers with.
    Apply(Apply),
    /// One of two ways.
    If(Branch),
    /// Primitives outside any action.
    Do(Vec<Primitive>),
    /// Looks a learning table up.
    Find(Find),
    /// Ends the control.
    Exit,
}

/// A table's turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    /// The table.
    pub table: String,
    /// What follows when an entry matched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hit: Vec<Statement>,
    /// What follows when none did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub miss: Vec<Statement>,
    /// What follows a certain action, by its name; before `hit` or `miss`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub actions: BTreeMap<String, Vec<Statement>>,
}

/// A learning table's turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Find {
    /// The learning table.
    pub table: String,
    /// The domain.
    pub domain: Operand,
    /// The station.
    pub address: Operand,
    /// The field that gets its port.
    pub port: String,
    /// What follows when it is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hit: Vec<Statement>,
    /// What follows when it is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub miss: Vec<Statement>,
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Branch {
    /// On what.
    #[serde(rename = "if")]
    pub condition: Condition,
    /// When it holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<Statement>,
    /// When it does not.
    #[serde(default, rename = "else", skip_serializing_if = "Vec::is_empty")]
    pub otherwise: Vec<Statement>,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Condition {
    /// The header is part of the frame.
    Valid(String),
    /// Equal.
    Eq(Operand, Operand),
    /// Not equal.
    Ne(Operand, Operand),
    /// Less than.
    Lt(Operand, Operand),
    /// Less than or equal.
    Le(Operand, Operand),
    /// Greater than.
    Gt(Operand, Operand),
    /// Greater than or equal.
    Ge(Operand, Operand),
    /// The first, in the bits of the second, equals the third.
    Masked(Operand, Literal, Literal),
    /// All of them.
    All(Vec<Condition>),
    /// One of them at least.
    Any(Vec<Condition>),
    /// The opposite.
    Not(Box<Condition>),
}

/// What actions are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Primitive {
    /// `field = to`, cut or extended with zeroes to the field's width. Checksums of built-in headers follow.
    Set {
        /// The field.
        field: String,
        /// Its new value: a constant, a parameter, another field.
        to: Operand,
    },
    /// `field += value`, modulo its width.
    Add {
        /// The field.
        field: String,
        /// What is added.
        value: Operand,
    },
    /// `field -= value`, modulo its width.
    Subtract {
        /// The field.
        field: String,
        /// What is taken away.
        value: Operand,
    },
    /// Puts a VLAN tag before the others.
    PushVlan {
        /// Its identifier.
        vid: Operand,
        /// Its priority.
        #[serde(default)]
        pcp: Operand,
        /// Its TPID; 0x8100 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tpid: Option<Operand>,
    },
    /// Removes the outer VLAN tag, if there is one.
    PopVlan {},
    /// Puts an MPLS label before the others, or before the network header.
    PushMpls {
        /// The label.
        label: Operand,
        /// Its traffic class.
        #[serde(default)]
        tc: Operand,
        /// Its TTL.
        ttl: Operand,
    },
    /// Removes the outer MPLS label, if there is one.
    PopMpls {
        /// The EtherType of what follows the last label.
        ether_type: Operand,
    },
    /// Leaves by this port, instead of what was decided before.
    Output {
        /// The port.
        port: Operand,
    },
    /// Leaves by all ports of a multicast group but the one it came from, instead of what was decided before.
    Multicast {
        /// The group.
        group: Operand,
    },
    /// A copy of the frame as it came goes to this port, whatever else happens.
    Mirror {
        /// The port.
        port: Operand,
    },
    /// The frame as it came runs through `ingress` again, with the metadata named; at most 4 times.
    Resubmit {
        /// Metadata that is kept, each as `meta.name`.
        #[serde(default)]
        keep: Vec<String>,
    },
    /// The frame as it is now is parsed and runs through `ingress` again, with the metadata named; at most 4 times.
    Recirculate {
        /// Metadata that is kept, each as `meta.name`.
        #[serde(default)]
        keep: Vec<String>,
    },
    /// The end, for this reason.
    Drop {
        /// Its name.
        reason: String,
    },
    /// The frame as it came goes to the controller.
    Controller {
        /// Why, by name.
        reason: String,
        /// What the controller is told, up to four numbers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        args: Vec<Operand>,
    },
    /// Takes tokens; the frame is dropped when there are none.
    Meter {
        /// The array.
        meter: String,
        /// Which of it; 0 is none.
        index: Operand,
        /// Why the frame is dropped, by name; `rate_exceeded` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Counts frame and bytes.
    Count {
        /// The array.
        counter: String,
        /// Which of it.
        index: Operand,
    },
    /// Finds the frame's connection and sets `ct.*`.
    Track {
        /// The zone.
        zone: Operand,
    },
    /// Makes the tracked, new connection known; the frame is dropped when that is refused.
    Commit(Commit),
    /// Translates the frame as its connection says.
    Nat {},
    /// Learns that a station is behind the port the frame came from.
    Learn {
        /// The learning table.
        table: String,
        /// The domain.
        domain: Operand,
        /// The station.
        address: Operand,
    },
    /// Chooses a member of a weighted group by the hash of fields; 0 in each field when the group is empty.
    Select {
        /// The selector.
        selector: String,
        /// The group.
        group: Operand,
        /// What is hashed.
        hash: Vec<String>,
        /// The fields that get what the member is made of, in order.
        into: Vec<String>,
    },
    /// Puts headers before the frame, outermost first. Lengths and checksums of IPv4, IPv6 and UDP are filled in.
    Encapsulate {
        /// The headers.
        headers: Vec<NewHeader>,
    },
    /// Removes everything before a header.
    Decapsulate {
        /// The header that becomes the first.
        to: String,
    },
}

impl Primitive {
    /// As it is written.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Set { .. } => "set",
            Self::Add { .. } => "add",
            Self::Subtract { .. } => "subtract",
            Self::PushVlan { .. } => "push_vlan",
            Self::PopVlan {} => "pop_vlan",
            Self::PushMpls { .. } => "push_mpls",
            Self::PopMpls { .. } => "pop_mpls",
            Self::Output { .. } => "output",
            Self::Multicast { .. } => "multicast",
            Self::Mirror { .. } => "mirror",
            Self::Resubmit { .. } => "resubmit",
            Self::Recirculate { .. } => "recirculate",
            Self::Drop { .. } => "drop",
            Self::Controller { .. } => "controller",
            Self::Meter { .. } => "meter",
            Self::Count { .. } => "count",
            Self::Track { .. } => "track",
            Self::Commit(_) => "commit",
            Self::Nat {} => "nat",
            Self::Learn { .. } => "learn",
            Self::Select { .. } => "select",
            Self::Encapsulate { .. } => "encapsulate",
            Self::Decapsulate { .. } => "decapsulate",
        }
    }

    /// Whether it has a place in `ingress` only: it says where the frame goes, or concerns the frame rather than a copy of it.
    pub const fn is_ingress_only(&self) -> bool {
        matches!(
            self,
            Self::Output { .. }
                | Self::Multicast { .. }
                | Self::Resubmit { .. }
                | Self::Recirculate { .. }
                | Self::Track { .. }
                | Self::Commit(_)
                | Self::Learn { .. }
        )
    }
}

/// A header that is put before a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewHeader {
    /// Its instance.
    pub header: String,
    /// Its fields; what is left out is zero, or follows from the rest.
    #[serde(default)]
    pub fields: BTreeMap<String, Operand>,
}

/// What a new connection is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// Its mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Operand>,
    /// What is kept with it, up to four numbers of 32 bits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<Operand>,
    /// Translation of its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceNat>,
    /// Translation of its destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<DestinationNat>,
}

/// Many to one, or to a few. A lowest address of 0 is no translation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceNat {
    /// The lowest address.
    pub low: Operand,
    /// The highest.
    pub high: Operand,
    /// The lowest port; 0: any.
    #[serde(default)]
    pub low_port: Operand,
    /// The highest.
    #[serde(default)]
    pub high_port: Operand,
}

/// To another station. An address of 0 is no translation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DestinationNat {
    /// The address.
    pub address: Operand,
    /// The port; 0: as it is.
    #[serde(default)]
    pub port: Operand,
}
