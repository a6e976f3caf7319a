//! A verdict that a worker remembers under a program, as people read it.
//!
//! What is needed for that is copied on the worker ([`FoundInProgram::new`]), which takes a few reads; words are made of it on the control side.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::compile::Compiled;
use super::control::PortNames;
use super::edit::EditList;
use super::edit_text::edit_texts;
use super::evaluate::{OutCopy, Target};
use super::layout::read_bits;
use super::packet::{PACKET_BYTES, within};
use super::paths::Shape;
use super::remembered::{ANY_LENGTH, Decision, Remembered};
use super::runtime::Engine;
use super::text::matcher_text;
use crate::conntrack::Leg;
use crate::drop_reason::DropReason;
use crate::flow_list::{
    FlowCopy, FlowDecision, LengthRange, ListedFlow, MOST_COPIES_LISTED, port_text,
};
use crate::port::PortId;
use crate::table::Matcher;

/// What was copied of a remembered verdict.
#[derive(Debug)]
pub(crate) struct FoundInProgram {
    shape: Arc<Shape>,
    /// Where the words of its key are, which are as many as the shape's.
    first_word: usize,
    decision: Decision,
    frame_lengths: (u32, u32),
    wire_lengths: (u32, u32),
    leg: Option<Leg>,
    metered: bool,
}

impl FoundInProgram {
    pub(super) fn new(remembered: &Remembered, shape: &Arc<Shape>, first_word: usize) -> Self {
        Self {
            shape: Arc::clone(shape),
            first_word,
            decision: remembered.rest.decision.clone(),
            frame_lengths: remembered.rest.frame_lengths,
            wire_lengths: remembered.wire_lengths,
            leg: remembered.leg,
            metered: remembered.has_meters,
        }
    }

    /// In words; those of its key are among `words`.
    pub(crate) fn listed(
        &self,
        words: &[(u64, u64)],
        engine: &Engine,
        names: &dyn PortNames,
    ) -> ListedFlow {
        let program = &engine.state.program;
        let headers = self.shape.headers.iter();
        let headers = headers.filter_map(|(header, _)| program.headers.get(usize::from(*header)));
        let range =
            |(least, most)| ((least, most) != ANY_LENGTH).then_some(LengthRange { least, most });
        ListedFlow {
            headers: headers.map(|header| header.name.clone()).collect(),
            r#match: self.fields(words, program, names),
            frame_bytes: range(self.frame_lengths),
            wire_bytes: range(self.wire_lengths),
            connection: self.leg.map(|leg| leg_text(leg).to_owned()),
            metered: self.metered,
            decision: self.decision(program, names),
            ..ListedFlow::undescribed()
        }
    }

    /// The fields that are in the key, with what they are.
    fn fields(
        &self,
        words: &[(u64, u64)],
        program: &Compiled,
        names: &dyn PortNames,
    ) -> BTreeMap<String, String> {
        // The start of a frame, as far as it is known.
        let (mut values, mut known) = ([0; PACKET_BYTES], [0; PACKET_BYTES]);
        let words = words.iter().skip(self.first_word);
        for (&(index, relevant), &(word, mask)) in self.shape.words.iter().zip(words) {
            let (at, mask) = (8 * usize::from(index), mask & relevant);
            for (image, word) in [(&mut values, word & mask), (&mut known, mask)] {
                if let Some(place) = image.get_mut(at..at + 8) {
                    place.copy_from_slice(&word.to_le_bytes());
                }
            }
        }
        let mut fields = BTreeMap::new();
        for &(header, place) in &self.shape.headers {
            let Some(spec) = program.headers.get(usize::from(header)) else {
                continue;
            };
            for named in &spec.fields {
                let read =
                    |image| read_bits(image, place.at.into(), named.field.bit, named.field.bits);
                let (Some(value), Some(mask)) = (read(&values), read(&known)) else {
                    continue;
                };
                let matcher = if mask == within(named.field.bits, u128::MAX) {
                    Matcher::Exact(value)
                } else {
                    Matcher::Ternary { value, mask }
                };
                let text = matcher_text(&matcher, named.field.bits, named.format, names);
                if let (true, Some(text)) = (mask != 0, text) {
                    fields.insert(format!("{}.{}", spec.name, named.name), text);
                }
            }
        }
        fields
    }

    fn decision(&self, program: &Compiled, names: &dyn PortNames) -> FlowDecision {
        let copy = |to: String, edits: Option<&Arc<EditList>>| FlowCopy {
            to,
            edits: edits.map_or_else(Vec::new, |edits| {
                edit_texts(program, &self.shape.headers, edits.edits(), names)
            }),
        };
        match &self.decision {
            Decision::Drop(reason) => FlowDecision::Drop {
                reason: reason.name().to_owned(),
            },
            Decision::Output(port, edits) => FlowDecision::Deliver {
                copies: vec![copy(port_text(*port, names), edits.as_ref())],
                more_copies: 0,
            },
            Decision::Copies(copies, dropped) => {
                let listed = copies.iter().take(MOST_COPIES_LISTED);
                let listed = listed.map(|OutCopy { target, edits }| {
                    copy(target_text(program, target, names), edits.as_ref())
                });
                FlowDecision::Deliver {
                    copies: listed.chain(dropped.map(dropped_copy)).collect(),
                    more_copies: copies.len().saturating_sub(MOST_COPIES_LISTED) as u32,
                }
            }
        }
    }
}

/// What becomes of the frame itself, where only copies of it leave.
fn dropped_copy(reason: DropReason) -> FlowCopy {
    FlowCopy {
        to: format!("drop: {reason}"),
        edits: Vec::new(),
    }
}

fn target_text(program: &Compiled, target: &Target, names: &dyn PortNames) -> String {
    match target {
        Target::Port(port) => {
            let named = PortId::new(*port).map(|port| port_text(port, names));
            named.unwrap_or_else(|| port.to_string())
        }
        Target::Controller { reason, .. } => {
            let reason = program.punt_reasons.get(usize::from(*reason));
            format!("controller: {}", reason.map_or("", String::as_str))
        }
    }
}

fn leg_text(leg: Leg) -> &'static str {
    match leg {
        Leg::Unanswered => "unanswered",
        Leg::Original => "original",
        Leg::Reply => "reply",
    }
}
