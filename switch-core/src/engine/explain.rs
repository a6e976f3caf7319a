//! Why a frame goes where it goes: the evaluator, watched, with effects withheld.

use super::compile::Compiled;
use super::control::{Outcome, PortNames, Trace, TracedCopy, Update, WriteError};
use super::edit::EditedFrame;
use super::evaluate::{Effects, Evaluation, Evaluator, Frame, OutCopy, Recorder, Target};
use super::layout::Layout;
use super::model::Format;
use super::packet::Packet;
use super::parse::{Input, Origin, parse};
use super::runtime::Engine;
use super::text::value_text;
use crate::port::PortId;
use crate::time::Millis;

impl Engine {
    /// What would happen to a frame that came from `in_port` at `now`, if `what_if` were written before. Changes nothing.
    ///
    /// # Errors
    /// When `what_if` could not be written.
    pub fn explain(
        &self,
        (in_port, frame): (PortId, &[u8]),
        what_if: &[Update],
        names: &dyn PortNames,
        now: Millis,
    ) -> Result<Trace, WriteError> {
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let frame = Frame {
            in_port,
            header: frame,
            frame_bytes: length,
            wire_bytes: length,
            now,
            headers: None,
        };
        let program = &self.state.program;
        self.what_if(what_if, (names, now), |snapshot| {
            let mut recorder = Recorder {
                names,
                steps: Vec::new(),
            };
            let mut packet = Packet::new(frame.header, program.metadata.len());
            let mut evaluation = Evaluation::default();
            Evaluator::new(
                (&self.state, snapshot),
                frame,
                Effects::Preview,
                &mut recorder,
                (&mut packet, &mut evaluation),
            )
            .run();
            let outcome = match evaluation.drop {
                Some(reason) if evaluation.copies.is_empty() => Outcome::Drop {
                    reason,
                    meaning: reason.meaning(),
                    advice: reason.advice(),
                },
                dropped => Outcome::Deliver {
                    copies: evaluation
                        .copies
                        .iter()
                        .map(|copy| traced(program, frame.header, copy, names))
                        .chain(dropped.map(|reason| TracedCopy {
                            to: format!("drop: {reason}"),
                            changes: Vec::new(),
                            header: String::new(),
                        }))
                        .collect(),
                },
            };
            Trace {
                steps: recorder.steps,
                outcome,
                looked_at: looked_at(program, frame.header, &packet),
            }
        })
    }
}

fn layout_of(program: &Compiled, bytes: &[u8]) -> Layout {
    let mut layout = Layout::default();
    let input = Input {
        bytes,
        frame_bytes: bytes.len(),
        origin: Origin::AsItCame,
    };
    parse(program, input, &mut layout, &mut |_, _, _| {});
    layout
}

/// The fields that were looked at, with the bits of them where it was not all.
fn looked_at(program: &Compiled, frame: &[u8], packet: &Packet) -> Vec<String> {
    let layout = layout_of(program, frame);
    let mut fields = Vec::new();
    for &header in layout.order() {
        let Some(spec) = program.headers.get(usize::from(header)) else {
            continue;
        };
        let at = usize::from(layout.place(header).at);
        for named in &spec.fields {
            let mask =
                super::layout::read_bits(packet.looked_at(), at, named.field.bit, named.field.bits)
                    .unwrap_or(0);
            let whole = super::packet::within(named.field.bits, u128::MAX);
            if mask == whole {
                fields.push(format!("{}.{}", spec.name, named.name));
            } else if mask != 0 {
                fields.push(format!("{}.{} & {mask:#x}", spec.name, named.name));
            }
        }
    }
    fields
}

fn traced(program: &Compiled, frame: &[u8], copy: &OutCopy, names: &dyn PortNames) -> TracedCopy {
    let mut buffer = frame
        .get(..super::packet::PACKET_BYTES)
        .unwrap_or(frame)
        .to_vec();
    let header_bytes = buffer.len();
    buffer.resize(header_bytes + super::edit::MAX_GROWTH_BYTES, 0);
    let mut edited = EditedFrame {
        buffer: &mut buffer,
        header_bytes,
        frame_bytes: frame.len(),
        partial_checksum: None,
    };
    if let Some(edits) = &copy.edits {
        // A frame that the edits do not fit is shown as it came.
        let _ = edits.apply(&mut edited);
    }
    let bytes = edited.header_bytes;
    buffer.truncate(bytes);
    TracedCopy {
        to: match &copy.target {
            Target::Port(port) => value_text((*port).into(), 16, Format::Port, names),
            Target::Controller { reason, args } => {
                let reason = program
                    .punt_reasons
                    .get(usize::from(*reason))
                    .map_or("", String::as_str);
                let args: Vec<String> = args.iter().map(u128::to_string).collect();
                format!("controller: {reason}({})", args.join(", "))
            }
        },
        changes: changes(program, frame, &buffer, names),
        header: buffer.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn changes(program: &Compiled, before: &[u8], after: &[u8], names: &dyn PortNames) -> Vec<String> {
    let (old, new) = (layout_of(program, before), layout_of(program, after));
    let mut changes = Vec::new();
    for (number, spec) in program.headers.iter().enumerate() {
        let (was, is) = (old.place(number as u16), new.place(number as u16));
        match (was.is_valid(), is.is_valid()) {
            (false, false) => {}
            (true, false) => changes.push(format!("{} removed", spec.name)),
            (false, true) => changes.push(format!("{} added", spec.name)),
            (true, true) => {
                for named in &spec.fields {
                    let value = |bytes, at: u16| {
                        super::layout::read_bits(
                            bytes,
                            at.into(),
                            named.field.bit,
                            named.field.bits,
                        )
                    };
                    if let (Some(was), Some(is)) = (value(before, was.at), value(after, is.at))
                        && was != is
                    {
                        let text = |value| value_text(value, named.field.bits, named.format, names);
                        changes.push(format!(
                            "{}.{}: {} -> {}",
                            spec.name,
                            named.name,
                            text(was),
                            text(is)
                        ));
                    }
                }
            }
        }
    }
    changes
}
