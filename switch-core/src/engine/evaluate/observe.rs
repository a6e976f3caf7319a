//! What watches an evaluation: nothing, at no cost, or a recorder that writes down each step for people.

use super::super::compile::{Compiled, Field, Next, Prim, StdField, Value};
use super::super::control::{PortNames, TraceStep};
use super::super::model::Format;
use super::super::packet::Packet;
use super::super::state::{EntryAction, State};
use super::super::text::{action_text, key_text, value_text};
use super::Args;
use crate::conntrack::{StateBits, Tracked, Tuple};
use crate::drop_reason::DropReason;
use crate::mac::MacAddress;
use crate::mac_table::SourceAction;
use crate::table::Entry;

/// What watches an evaluation.
pub(crate) trait Observer {
    /// Whether it does: nobody prepares anything for one that does not.
    const WATCHES: bool;

    fn parsed(&mut self, program: &Compiled, packet: &Packet, trail: &[(u16, u16, Next)]);
    fn pass(&mut self, number: u8);
    fn condition(&mut self, text: &str, holds: bool);
    fn looked_up(
        &mut self,
        table: (&State, u16),
        values: &[u128],
        entry: Option<Entry<EntryAction>>,
        call: Option<&EntryAction>,
    );
    fn done(&mut self, state: &State, primitive: &Prim, args: Args<'_>, drop: Option<DropReason>);
    fn tracked(&mut self, zone: u16, tuple: &Tuple, tracked: &Tracked);
    fn learned(&mut self, address: MacAddress, action: SourceAction);
    fn egress(&mut self, port: u16);
}

/// Watches nothing.
pub(crate) struct Unobserved;

impl Observer for Unobserved {
    const WATCHES: bool = false;

    fn parsed(&mut self, _: &Compiled, _: &Packet, _: &[(u16, u16, Next)]) {}
    fn pass(&mut self, _: u8) {}
    fn condition(&mut self, _: &str, _: bool) {}
    fn looked_up(
        &mut self,
        _: (&State, u16),
        _: &[u128],
        _: Option<Entry<EntryAction>>,
        _: Option<&EntryAction>,
    ) {
    }
    fn done(&mut self, _: &State, _: &Prim, _: Args<'_>, _: Option<DropReason>) {}
    fn tracked(&mut self, _: u16, _: &Tuple, _: &Tracked) {}
    fn learned(&mut self, _: MacAddress, _: SourceAction) {}
    fn egress(&mut self, _: u16) {}
}

/// Writes each step down.
pub(crate) struct Recorder<'a> {
    pub names: &'a dyn PortNames,
    pub steps: Vec<TraceStep>,
}

impl Recorder<'_> {
    fn value(&self, program: &Compiled, value: &Value, args: Args<'_>) -> String {
        match *value {
            Value::Constant(number) => number.to_string(),
            Value::Field(field) => field_name(program, field),
            Value::Param(number) => args
                .get(usize::from(number))
                .map_or_else(String::new, u128::to_string),
        }
    }

    fn note(&mut self, what: String) {
        self.steps.push(TraceStep::Primitive { what });
    }
}

impl Observer for Recorder<'_> {
    const WATCHES: bool = true;

    fn parsed(&mut self, program: &Compiled, packet: &Packet, trail: &[(u16, u16, Next)]) {
        for &(number, bytes, next) in trail {
            let Some(state) = program.states.get(usize::from(number)) else {
                continue;
            };
            let header = state
                .extract
                .and_then(|header| program.headers.get(usize::from(header)))
                .filter(|_| bytes > 0);
            let fields = header.map_or_else(Vec::new, |header| {
                header
                    .fields
                    .iter()
                    .map(|named| {
                        let value = packet.peek(named.field);
                        let text = value_text(value, named.field.bits, named.format, self.names);
                        (named.name.clone(), text)
                    })
                    .collect()
            });
            self.steps.push(TraceStep::Parse {
                state: state.name.clone(),
                header: header.map(|header| header.name.clone()),
                fields,
                next: match next {
                    Next::State(next) => program
                        .states
                        .get(usize::from(next))
                        .map_or_else(String::new, |state| state.name.clone()),
                    Next::Accept => "accept".to_owned(),
                    Next::Reject => "reject".to_owned(),
                },
            });
        }
    }

    fn pass(&mut self, number: u8) {
        self.steps.push(TraceStep::Pass { number });
    }

    fn condition(&mut self, text: &str, holds: bool) {
        self.steps.push(TraceStep::Condition {
            condition: text.to_owned(),
            holds,
        });
    }

    fn looked_up(
        &mut self,
        table: (&State, u16),
        values: &[u128],
        entry: Option<Entry<EntryAction>>,
        call: Option<&EntryAction>,
    ) {
        let (state, number) = table;
        let program = &state.program;
        let Some(spec) = program.tables.get(usize::from(number)) else {
            return;
        };
        let key = spec
            .key
            .iter()
            .zip(values)
            .map(|(key, &value)| {
                let text = value_text(value, key.field.bits(), key.format, self.names);
                (key.name.clone(), text)
            })
            .collect();
        self.steps.push(TraceStep::Table {
            table: spec.name.clone(),
            key,
            entry: entry.map(|entry| key_text(spec, &entry.key, self.names)),
            action: call.map(|call| action_text(program, call, self.names)),
        });
    }

    fn done(&mut self, state: &State, primitive: &Prim, args: Args<'_>, drop: Option<DropReason>) {
        let program = &state.program;
        let text = match primitive {
            Prim::Set(field, value) => format!(
                "set {} to {}",
                field_name(program, *field),
                self.value(program, value, args)
            ),
            Prim::Add(field, value) => format!(
                "add {} to {}",
                self.value(program, value, args),
                field_name(program, *field)
            ),
            Prim::Subtract(field, value) => format!(
                "subtract {} from {}",
                self.value(program, value, args),
                field_name(program, *field)
            ),
            Prim::PushVlan { vid, .. } => {
                format!("push VLAN {}", self.value(program, vid, args))
            }
            Prim::PopVlan => "pop VLAN".to_owned(),
            Prim::PushMpls { label, .. } => {
                format!("push MPLS label {}", self.value(program, label, args))
            }
            Prim::PopMpls { .. } => "pop MPLS".to_owned(),
            Prim::Output(port) => {
                let port = match *port {
                    Value::Constant(number) => port_text(self.names, number as u16),
                    Value::Param(index) => args
                        .get(usize::from(index))
                        .map_or_else(String::new, |&number| port_text(self.names, number as u16)),
                    Value::Field(field) => field_name(program, field),
                };
                format!("output to {port}")
            }
            Prim::Multicast(group) => {
                format!("multicast to group {}", self.value(program, group, args))
            }
            Prim::Mirror(port) => format!("mirror to port {}", self.value(program, port, args)),
            Prim::Resubmit(_) => "resubmit".to_owned(),
            Prim::Recirculate(_) => "recirculate".to_owned(),
            Prim::Drop(reason) => format!("drop: {reason}"),
            Prim::Controller { reason, .. } => format!(
                "send to the controller: {}",
                program
                    .punt_reasons
                    .get(usize::from(*reason))
                    .map_or("", String::as_str)
            ),
            Prim::Meter { meter, index, .. } => format!(
                "meter {}[{}]",
                array_name(&program.meters, *meter),
                self.value(program, index, args)
            ),
            Prim::Count { counter, index } => format!(
                "count {}[{}]",
                array_name(&program.counters, *counter),
                self.value(program, index, args)
            ),
            // Tells more itself.
            Prim::Track(_) | Prim::Learn { .. } => return,
            Prim::Commit(_) => "commit the connection, if it is new".to_owned(),
            Prim::Nat => "translate as the connection says".to_owned(),
            Prim::Select {
                selector, group, ..
            } => format!(
                "select from {} group {}",
                program
                    .selectors
                    .get(usize::from(*selector))
                    .map_or("", |selector| selector.name.as_str()),
                self.value(program, group, args)
            ),
            Prim::Encapsulate(headers) => {
                let names: Vec<&str> = headers
                    .iter()
                    .filter_map(|pushed| program.headers.get(usize::from(pushed.header)))
                    .map(|header| header.name.as_str())
                    .collect();
                format!("encapsulate in {}", names.join(", "))
            }
            Prim::Decapsulate(header) => format!(
                "decapsulate to {}",
                program
                    .headers
                    .get(usize::from(*header))
                    .map_or("", |header| header.name.as_str())
            ),
        };
        match (primitive, drop) {
            (Prim::Drop(_), _) | (_, None) => self.note(text),
            (_, Some(reason)) => self.note(format!("{text}: refused, drop: {reason}")),
        }
    }

    fn tracked(&mut self, zone: u16, tuple: &Tuple, tracked: &Tracked) {
        let names = [
            (StateBits::NEW, "new"),
            (StateBits::ESTABLISHED, "established"),
            (StateBits::RELATED, "related"),
            (StateBits::REPLY, "reply"),
            (StateBits::INVALID, "invalid"),
            (StateBits::SOURCE_NAT, "source NAT"),
            (StateBits::DESTINATION_NAT, "destination NAT"),
        ];
        let state: Vec<&str> = names
            .into_iter()
            .filter(|&(bit, _)| tracked.state.contains(bit))
            .map(|(_, name)| name)
            .collect();
        let why = tracked
            .invalid
            .map_or_else(String::new, |why| format!(" ({why:?})"));
        self.note(format!(
            "track in zone {zone}: protocol {} {} to {}: {}{why}",
            tuple.protocol,
            end(tuple.addresses.source(), tuple.source_port),
            end(tuple.addresses.destination(), tuple.destination_port),
            state.join(", ")
        ));
    }

    fn learned(&mut self, address: MacAddress, action: SourceAction) {
        self.note(format!("learn {address}: {action:?}"));
    }

    fn egress(&mut self, port: u16) {
        self.steps.push(TraceStep::Egress {
            port: port_text(self.names, port),
        });
    }
}

fn end(address: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

fn port_text(names: &dyn PortNames, port: u16) -> String {
    value_text(port.into(), 16, Format::Port, names)
}

fn array_name(arrays: &[(String, u32)], number: u16) -> &str {
    arrays
        .get(usize::from(number))
        .map_or("", |(name, _)| name.as_str())
}

/// A field as programs name it.
pub(crate) fn field_name(program: &Compiled, field: Field) -> String {
    match field {
        Field::Header(field) => {
            let header = program.headers.get(usize::from(field.header));
            let named = header.and_then(|header| {
                header
                    .fields
                    .iter()
                    .find(|named| named.field == field)
                    .map(|named| format!("{}.{}", header.name, named.name))
            });
            named.unwrap_or_default()
        }
        Field::Meta { index, .. } => program
            .metadata
            .get(usize::from(index))
            .map_or_else(String::new, |meta| format!("meta.{}", meta.name)),
        Field::Std(field) => match field {
            StdField::InPort => "std.in_port",
            StdField::OutPort => "std.out_port",
            StdField::FrameBytes => "std.frame_bytes",
            StdField::WireBytes => "std.wire_bytes",
            StdField::ParseError => "std.parse_error",
            StdField::Pass => "std.pass",
        }
        .to_owned(),
        Field::Ct(field) => format!("ct.{field:?}").to_lowercase(),
        Field::Valid(header) => program
            .headers
            .get(usize::from(header))
            .map_or_else(String::new, |header| format!("{}.valid", header.name)),
    }
}
