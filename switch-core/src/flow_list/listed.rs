//! A remembered flow as people read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::walk::{Found, FoundFlow};
use crate::engine::control::PortNames;
use crate::engine::runtime::Engine;
use crate::flow_key::FlowKey;
use crate::port::PortId;
use crate::verdict::{FrameTag, HeaderEdit, TagStacking, Verdict};
use crate::vlan::Tci;
use crate::vlan_edit::VlanEdit;

/// Copies of a flow that are listed one by one.
pub const MOST_COPIES_LISTED: usize = 16;

/// A decision that a worker remembers, and the frames that it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListedFlow {
    /// The headers that these frames have, in order: those that were parsed.
    pub headers: Vec<String>,
    /// Fields by name, and what they are: a value, a prefix, or `value&mask`. Others may be anything.
    pub r#match: BTreeMap<String, String>,
    /// How long these frames are, in bytes; absent: any length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame_bytes: Option<LengthRange>,
    /// How long the longest piece is that such a frame is cut into, in bytes; absent: any length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire_bytes: Option<LengthRange>,
    /// Of frames of a tracked connection: `unanswered`, `original` or `reply`, by who sends them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// Whether meters may still have some of them dropped.
    #[serde(default, skip_serializing_if = "is_false")]
    pub metered: bool,
    /// What becomes of them.
    pub decision: FlowDecision,
    /// When it is found out anew at the latest; absent: when something changes that it depends on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_for_ms: Option<u64>,
}

/// Lengths, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LengthRange {
    /// The shortest.
    pub least: u32,
    /// The longest.
    pub most: u32,
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum FlowDecision {
    /// It is dropped.
    Drop {
        /// The reason's stable name.
        reason: String,
    },
    /// It leaves by all other ports of its broadcast domain, with or without a tag as each of them wants it.
    Flood {
        /// The VLAN; absent: that of ports without one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vlan: Option<u16>,
    },
    /// It, or copies of it, go there.
    Deliver {
        /// Each copy; of many, the first.
        copies: Vec<FlowCopy>,
        /// How many are not listed.
        #[serde(default, skip_serializing_if = "is_zero")]
        more_copies: u32,
    },
}

#[allow(clippy::trivially_copy_pass_by_ref)] // What serde asks for.
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // What serde asks for.
fn is_false(truth: &bool) -> bool {
    !truth
}

/// A copy that leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FlowCopy {
    /// The port, `controller: reason`, or `drop: reason` where the frame itself is dropped and copies of it are not.
    pub to: String,
    /// How its header is changed, in order. Lengths and checksums follow from that, and are not mentioned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<String>,
}

impl ListedFlow {
    /// What was found, whose key's words are among `words`, in words.
    pub(super) fn new(
        flow: &FoundFlow,
        words: &[(u64, u64)],
        engine: Option<&Engine>,
        names: &dyn PortNames,
    ) -> Self {
        let listed = match (&flow.what, engine) {
            (Found::Default(key, verdict), _) => of_default_program(*key, *verdict, names),
            (Found::Program(found), Some(engine)) => found.listed(words, engine, names),
            // A worker runs one or the other.
            (Found::Program(_), None) => Self::undescribed(),
        };
        Self {
            valid_for_ms: flow.valid_for.map(|left| left.0),
            ..listed
        }
    }

    /// Of which all is still to be said.
    pub(crate) fn undescribed() -> Self {
        Self {
            headers: Vec::new(),
            r#match: BTreeMap::new(),
            frame_bytes: None,
            wire_bytes: None,
            connection: None,
            metered: false,
            decision: FlowDecision::Deliver {
                copies: Vec::new(),
                more_copies: 0,
            },
            valid_for_ms: None,
        }
    }
}

/// The default program looks at addresses and the outer tag, and at whether another follows.
fn of_default_program(key: FlowKey, verdict: Verdict, names: &dyn PortNames) -> ListedFlow {
    let mut headers = vec!["ethernet".to_owned()];
    let mut fields = BTreeMap::from([
        ("ethernet.dst".to_owned(), key.destination().to_string()),
        ("ethernet.src".to_owned(), key.source().to_string()),
    ]);
    if let FrameTag::Priority(tci) | FrameTag::Tagged(tci) = key.tag() {
        headers.push("vlan".to_owned());
        let drop_eligible = u16::from(tci.is_drop_eligible());
        for (field, value) in [
            ("vlan.vid", tci.vid()),
            ("vlan.pcp", tci.priority().into()),
            ("vlan.dei", drop_eligible),
        ] {
            fields.insert(field.to_owned(), value.to_string());
        }
    }
    if key.stacking() == TagStacking::Stacked {
        headers.push("vlan_inner".to_owned());
    }
    ListedFlow {
        headers,
        r#match: fields,
        decision: decision_of(verdict, names),
        ..ListedFlow::undescribed()
    }
}

fn decision_of(verdict: Verdict, names: &dyn PortNames) -> FlowDecision {
    match verdict {
        Verdict::Drop(reason) => FlowDecision::Drop {
            reason: reason.name().to_owned(),
        },
        Verdict::Flood(flood) => FlowDecision::Flood {
            vlan: flood.domain().vlan().map(|vlan| vlan.get()),
        },
        Verdict::Output { port, edit } => FlowDecision::Deliver {
            copies: vec![FlowCopy {
                to: port_text(port, names),
                edits: match edit {
                    HeaderEdit::Vlan(edit) => vlan_edit_text(edit).into_iter().collect(),
                    // Is never remembered without its list.
                    HeaderEdit::List(_) => Vec::new(),
                },
            }],
            more_copies: 0,
        },
        // Neither are its copies.
        Verdict::Copies(_) => FlowDecision::Deliver {
            copies: Vec::new(),
            more_copies: 0,
        },
    }
}

/// A port by its name, or by its number when it has none.
pub(crate) fn port_text(port: PortId, names: &dyn PortNames) -> String {
    names.name(port).unwrap_or_else(|| port.to_string())
}

fn vlan_edit_text(edit: VlanEdit) -> Option<String> {
    match edit {
        VlanEdit::None => None,
        VlanEdit::Pop => Some("pop VLAN".to_owned()),
        VlanEdit::Push(tci) => Some(format!("push VLAN {}", tci_text(tci))),
        VlanEdit::Retag(tci) => Some(format!("set VLAN {}", tci_text(tci))),
    }
}

/// The VLAN, and its priority unless that is the usual one.
pub(crate) fn tci_text(tci: Tci) -> String {
    match tci.priority() {
        0 => tci.vid().to_string(),
        priority => format!("{}, priority {priority}", tci.vid()),
    }
}
