//! Evaluates a program over one frame: what happens to it, under what that may be remembered, and, when somebody watches, why.
//!
//! One evaluator for all: a worker runs it on a flow-cache miss, the control thread to explain a frame. In the order a frame meets
//! them:
//!
//! * this file: passes, tables, conditions, copies;
//! * [`primitives`]: what actions are made of;
//! * [`headers`]: headers that are pushed and removed;
//! * [`connection`]: connection tracking and translation;
//! * [`observe`]: what watches.

mod connection;
mod headers;
mod observe;
mod primitives;

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic;

use super::compile::{Compiled, Field, HeaderField, Next, StdField, Step, Test, Value};
use super::edit::EditList;
use super::packet::{Packet, within};
use super::params::Unpacked;
use super::parse::{Input, Origin, ParseError, compare, parse};
use super::state::{EntryAction, MeterSetting, Snapshot, State};
use crate::conntrack::{ConnId, Direction, Tracked};
use crate::drop_reason::DropReason;
use crate::mac_table::EpochBucket;
use crate::port::PortId;
use crate::rate_limit::TokenBucket;
use crate::table::Dependencies;
use crate::time::Millis;

pub(crate) use connection::TcpPlace;
pub(crate) use observe::{Observer, Recorder, Unobserved};

/// How often a frame may be resubmitted and recirculated.
pub(crate) const MAX_PASSES: u8 = 4;
/// Most copies one frame may become.
pub(crate) const MAX_COPIES: usize = 4096;
/// Most key fields of a table.
const MAX_KEY_FIELDS: usize = 12;

/// A frame to be decided on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    /// The port it came from.
    pub in_port: PortId,
    /// The private copy of its start.
    pub header: &'a [u8],
    /// Its length.
    pub frame_bytes: u32,
    /// The length of the longest piece it will be cut into.
    pub wire_bytes: u32,
    /// When.
    pub now: Millis,
}

/// What an evaluation may change.
pub(crate) enum Effects<'a> {
    /// What frames change: connections, meters, stations, the latter as fast as the port's rate allows.
    Live(&'a mut TokenBucket),
    /// Nothing: what would happen is only told.
    Preview,
}

/// Where a copy goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Port(u16),
    /// The controller, with a reason and arguments.
    Controller {
        reason: u16,
        args: [u128; 4],
    },
}

/// A copy that leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutCopy {
    pub target: Target,
    pub edits: Option<Arc<EditList>>,
}

/// A meter that a frame has to pass, and which of its copies are not made when it does not.
#[derive(Clone, Debug)]
pub(crate) struct Metered {
    pub setting: Arc<MeterSetting>,
    /// Why they are not.
    pub reason: DropReason,
    /// The first copy that is not made.
    pub from: usize,
    /// The one after the last; none in ingress: there the frame is dropped.
    pub to: Option<usize>,
}

/// What a verdict depends on besides the bits that were looked at.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    /// Counters of tables and groups.
    pub tables: Dependencies,
    /// Counters of stations, and their sum.
    pub stations: Vec<EpochBucket>,
    pub station_sum: u32,
    /// It holds before this instant.
    pub valid_until: Millis,
    /// The connection that has to agree to each frame.
    pub connection: Option<(ConnId, Direction)>,
}

/// The outcome.
#[derive(Clone, Debug)]
pub(crate) struct Evaluation {
    /// Why the frame goes nowhere, when it is so; copies may be sent even then.
    pub drop: Option<DropReason>,
    pub copies: Vec<OutCopy>,
    /// Entries that count the frame.
    pub entries: Vec<Arc<EntryAction>>,
    /// Meters it passed, and why a frame that does not is dropped.
    /// Meters it passed.
    pub meters: Vec<Metered>,
    /// Copies that left by ports, mirrors apart.
    pub sends: usize,
    /// Counters that count it.
    pub counts: Vec<(u16, u32)>,
    /// Under what it may be remembered; `None`: not at all.
    pub conditions: Option<Conditions>,
}

/// How a control goes on after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    On,
    /// This control ends.
    Exit,
    /// So does the frame's way.
    End,
    /// Once more from the start.
    Again(Again),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// The frame as it came.
    Resubmit,
    /// The frame as it is.
    Recirculate,
}

/// Where the frame goes as decided so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    None,
    Port(u16),
    Group(u16),
}

/// An evaluation under way.
pub(crate) struct Evaluator<'a, O> {
    program: &'a Compiled,
    state: &'a State,
    snapshot: &'a Snapshot,
    frame: Frame<'a>,
    effects: Effects<'a>,
    observer: &'a mut O,
    packet: &'a mut Packet,
    tables: Dependencies,
    stations: Vec<EpochBucket>,
    station_sum: u32,
    valid_until: Millis,
    connection: Option<(ConnId, Direction)>,
    remember: bool,
    parse_error: ParseError,
    pass: u8,
    out_port: u16,
    tracked: Option<Tracked>,
    zone: u16,
    destination: Destination,
    drop: Option<DropReason>,
    copies: Vec<OutCopy>,
    entries: Vec<Arc<EntryAction>>,
    meters: Vec<Metered>,
    sends: usize,
    counts: Vec<(u16, u32)>,
    kept: Vec<(u16, u128)>,
}

/// An action's arguments.
type Args<'a> = &'a [u128];

impl<'a, O: Observer> Evaluator<'a, O> {
    /// Ready to evaluate `frame` in `packet`, which holds it.
    pub(crate) fn new(
        (state, snapshot): (&'a State, &'a Snapshot),
        frame: Frame<'a>,
        effects: Effects<'a>,
        observer: &'a mut O,
        packet: &'a mut Packet,
    ) -> Self {
        packet.reset(frame.header);
        Self {
            program: &state.program,
            state,
            snapshot,
            frame,
            effects,
            observer,
            packet,
            tables: Dependencies::new(),
            stations: Vec::new(),
            station_sum: 0,
            valid_until: Millis(u64::MAX),
            connection: None,
            remember: true,
            parse_error: ParseError::None,
            pass: 0,
            out_port: 0,
            tracked: None,
            zone: 0,
            destination: Destination::None,
            drop: None,
            copies: Vec::new(),
            entries: Vec::new(),
            meters: Vec::new(),
            sends: 0,
            counts: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Evaluates the frame.
    pub(crate) fn run(mut self) -> Evaluation {
        let (program, state) = (self.program, self.state);
        // Groups and defaults are changed as a whole: published first, counted then. One that was overtaken between the two would be
        // remembered under the count of the next.
        self.tables
            .depend_on(&state.changes, super::state::EXTRAS_COUNTER);
        if state.published.load(atomic::Ordering::Acquire) != self.snapshot.epoch.0 {
            self.tables.forbid();
        }
        self.parse(Origin::AsItCame);
        loop {
            match self.steps(&program.ingress, program) {
                Flow::Again(_) if self.pass >= MAX_PASSES => {
                    self.drop = Some(DropReason::TooManyPasses);
                    break;
                }
                Flow::Again(how) => self.begin_pass(how),
                Flow::On | Flow::Exit | Flow::End => break,
            }
        }
        if self.drop.is_none() {
            self.leave();
        }
        let is_repeatable = self.remember && !self.packet.is_once;
        let conditions = (is_repeatable && self.tables.can_be_remembered()).then_some(Conditions {
            tables: self.tables,
            stations: self.stations,
            station_sum: self.station_sum,
            valid_until: self.valid_until,
            connection: self.connection,
        });
        Evaluation {
            drop: self.drop,
            copies: self.copies,
            entries: self.entries,
            meters: self.meters,
            sends: self.sends,
            counts: self.counts,
            conditions,
        }
    }

    fn parse(&mut self, origin: Origin) {
        let program = self.program;
        let mut layout = std::mem::take(&mut self.packet.layout);
        layout.clear();
        let input = Input {
            bytes: self.packet.bytes(),
            frame_bytes: self.packet.changed_length(self.frame.frame_bytes as usize),
            origin,
        };
        if origin == Origin::AsItCame && !O::WATCHES {
            // The way it went is what the cache knows the frame by: nobody else asks.
            self.parse_error = parse(program, input, &mut layout, &mut |_, _, _| {});
            self.packet.layout = layout;
            return;
        }
        let mut trail: Vec<(u16, u16, Next)> = Vec::new();
        self.parse_error = parse(program, input, &mut layout, &mut |state, bytes, next| {
            trail.push((state, bytes, next));
        });
        self.packet.layout = layout;
        if origin == Origin::Changed {
            self.remember &= self.packet.restore_origins();
            // The path of the first parse is part of what a verdict is remembered under, this one is not.
            self.look_at_parse(&trail);
        }
        if O::WATCHES {
            self.observer.parsed(program, self.packet, &trail);
        }
    }

    fn look_at_parse(&mut self, trail: &[(u16, u16, Next)]) {
        let program = self.program;
        // Of a header that was refused, or found more than once, it is not known any more what was looked at.
        let mut extracted = 0u64;
        self.remember &= self.parse_error == ParseError::None;
        for &(number, _, _) in trail {
            let Some(state) = program.states.get(usize::from(number)) else {
                continue;
            };
            if let Some(header) = state.extract {
                let bit = 1u64.checked_shl(header.into()).unwrap_or(0);
                self.remember &= bit != 0 && extracted & bit == 0;
                extracted |= bit;
            }
            for &field in &state.select {
                self.read(field);
            }
            for test in &state.verify {
                self.holds(test, &[]);
            }
            if let Some(header) = state
                .extract
                .and_then(|header| program.headers.get(usize::from(header)))
            {
                if let Some(length) = header.length {
                    self.packet.look_at(length.field);
                }
                // What it says of its length is compared with the frame's.
                for name in ["total_bytes", "payload_bytes"] {
                    if let Some(field) = header.field(name) {
                        self.packet.look_at(field);
                    }
                }
            }
        }
        let length = self.frame.frame_bytes;
        self.packet.frame_lengths = (length, length);
    }

    fn begin_pass(&mut self, how: Again) {
        self.pass += 1;
        let pass = self.pass;
        if O::WATCHES {
            self.observer.pass(pass);
        }
        let kept = std::mem::take(&mut self.kept);
        self.tracked = None;
        self.destination = Destination::None;
        match how {
            Again::Resubmit => {
                self.packet.restart(self.frame.header);
                self.parse(Origin::AsItCame);
            }
            Again::Recirculate => {
                self.packet.settle_checksums(self.program);
                self.parse(Origin::Changed);
            }
        }
        self.packet.meta.fill(0);
        for (index, value) in kept {
            if let Some(slot) = self.packet.meta.get_mut(usize::from(index)) {
                *slot = value;
            }
        }
    }

    fn steps(&mut self, steps: &[Step], program: &'a Compiled) -> Flow {
        for step in steps {
            let flow = match step {
                Step::Apply {
                    table,
                    hit,
                    miss,
                    actions,
                } => self.apply(*table, (hit, miss, actions), program),
                Step::If {
                    test,
                    text,
                    then,
                    otherwise,
                } => {
                    let holds = self.holds(test, &[]);
                    if O::WATCHES {
                        self.observer.condition(text, holds);
                    }
                    self.steps(if holds { then } else { otherwise }, program)
                }
                Step::Do(primitives) => self.primitives(primitives, &[]),
                Step::Find {
                    domain,
                    address,
                    port,
                    hit,
                    miss,
                } => {
                    let (domain, address) = (self.value(*domain, &[]), self.value(*address, &[]));
                    match self.find_station(domain, address) {
                        Some(found) => {
                            self.write(*port, found.into());
                            self.steps(hit, program)
                        }
                        None => self.steps(miss, program),
                    }
                }
                Step::Exit => Flow::Exit,
            };
            if flow != Flow::On {
                return flow;
            }
        }
        Flow::On
    }

    #[allow(clippy::type_complexity)] // Three lists of steps as they stand in `Step::Apply`.
    fn apply(
        &mut self,
        number: u16,
        (hit, miss, actions): (&[Step], &[Step], &[(u16, Vec<Step>)]),
        program: &'a Compiled,
    ) -> Flow {
        let (Some(table), Some(spec)) = (
            self.state.tables.get(usize::from(number)),
            program.tables.get(usize::from(number)),
        ) else {
            return Flow::On;
        };
        let mut values = [0u128; MAX_KEY_FIELDS];
        for (value, key) in values.iter_mut().zip(&spec.key) {
            *value = self.peek(key.field);
        }
        let values = values.get(..spec.key.len()).unwrap_or_default();
        let mut looked_at = [0u128; MAX_KEY_FIELDS];
        let found = table.lookup(
            values,
            self.snapshot.epoch,
            &mut looked_at,
            &mut self.tables,
        );
        for (&bits, key) in looked_at.iter().zip(&spec.key) {
            self.look_at_bits(key.field, bits);
        }
        let is_hit = found.is_some();
        let entry = found
            .as_ref()
            .filter(|_| O::WATCHES)
            .and_then(|hit| table.entry(hit.handle, self.snapshot.epoch));
        let call = match found {
            Some(hit) => {
                let call = Arc::clone(&hit.value);
                if spec.counters || spec.timeouts {
                    self.entries.push(Arc::clone(&call));
                }
                Some(call)
            }
            None => self.snapshot.extras.default_of(number).cloned(),
        };
        if O::WATCHES {
            self.observer
                .looked_up((self.state, number), values, entry, call.as_deref());
        }
        if let Some(call) = &call
            && let Some(action) = program.actions.get(usize::from(call.action))
        {
            let mut unpacked = Unpacked::default();
            let flow = self.primitives(&action.body, call.params.values(&mut unpacked));
            if flow != Flow::On {
                return flow;
            }
            if let Some((_, steps)) = actions.iter().find(|(number, _)| *number == call.action) {
                let flow = self.steps(steps, program);
                if flow != Flow::On {
                    return flow;
                }
            }
        }
        self.steps(if is_hit { hit } else { miss }, program)
    }

    fn holds(&mut self, test: &Test, args: Args<'_>) -> bool {
        match test {
            Test::Compare(how, a, b) => match (a, b) {
                (Value::Field(Field::Std(field)), other) if is_length(*field) => {
                    let other = self.value(*other, args);
                    self.compare_length(*field, |length| compare(*how, length, other), other)
                }
                (other, Value::Field(Field::Std(field))) if is_length(*field) => {
                    let other = self.value(*other, args);
                    self.compare_length(*field, |length| compare(*how, other, length), other)
                }
                (a, b) => {
                    let (a, b) = (self.value(*a, args), self.value(*b, args));
                    compare(*how, a, b)
                }
            },
            Test::Masked(a, mask, wanted) => {
                let value = match a {
                    Value::Field(field) => {
                        let value = self.peek(*field);
                        self.look_at_bits(*field, *mask);
                        value
                    }
                    other => self.value(*other, args),
                };
                value & mask == *wanted
            }
            Test::All(tests) => tests.iter().all(|test| self.holds(test, args)),
            Test::Any(tests) => tests.iter().any(|test| self.holds(test, args)),
            Test::Not(test) => !self.holds(test, args),
        }
    }

    /// Compares a length and notes for which lengths the answer is the same: below `other`, at it, and above it are all the cases.
    fn compare_length(
        &mut self,
        field: StdField,
        answer: impl Fn(u128) -> bool,
        other: u128,
    ) -> bool {
        let (length, range) = match field {
            StdField::WireBytes => (self.frame.wire_bytes, &mut self.packet.wire_lengths),
            _ => (self.frame.frame_bytes, &mut self.packet.frame_lengths),
        };
        let holds = answer(length.into());
        let Ok(edge) = u32::try_from(other) else {
            return holds;
        };
        let below = edge.checked_sub(1);
        let above = edge.checked_add(1);
        let same =
            |length: Option<u32>| length.is_some_and(|length| answer(length.into()) == holds);
        let at_edge = same(Some(edge));
        let lowest = match (length.cmp(&edge), below, above) {
            (Ordering::Less, _, _) => 0,
            (_, below, _) if at_edge && same(below) => 0,
            (Ordering::Equal, _, _) => edge,
            (Ordering::Greater, _, _) if at_edge => edge,
            (Ordering::Greater, _, above) => above.unwrap_or(edge),
        };
        let highest = match (length.cmp(&edge), below, above) {
            (Ordering::Greater, _, _) => u32::MAX,
            (_, _, above) if at_edge && same(above) => u32::MAX,
            (Ordering::Equal, _, _) => edge,
            (Ordering::Less, _, _) if at_edge => edge,
            (Ordering::Less, below, _) => below.unwrap_or(edge),
        };
        *range = (range.0.max(lowest), range.1.min(highest));
        holds
    }

    /// The value of an operand; depends on it from now on.
    fn value(&mut self, value: Value, args: Args<'_>) -> u128 {
        match value {
            Value::Constant(number) => number,
            Value::Field(field) => self.read(field),
            Value::Param(number) => args.get(usize::from(number)).copied().unwrap_or(0),
        }
    }

    fn read(&mut self, field: Field) -> u128 {
        let value = self.peek(field);
        self.look_at_bits(field, u128::MAX);
        value
    }

    /// The value of a field, without depending on it.
    fn peek(&mut self, field: Field) -> u128 {
        match field {
            Field::Header(field) => {
                self.packet.settle_if_checksum(self.program, field);
                self.packet.peek(field)
            }
            Field::Meta { index, .. } => self
                .packet
                .meta
                .get(usize::from(index))
                .copied()
                .unwrap_or(0),
            Field::Std(field) => match field {
                StdField::InPort => self.frame.in_port.get().into(),
                StdField::OutPort => self.out_port.into(),
                StdField::FrameBytes => self.frame.frame_bytes.into(),
                StdField::WireBytes => self.frame.wire_bytes.into(),
                StdField::ParseError => self.parse_error as u128,
                StdField::Pass => self.pass.into(),
            },
            Field::Ct(field) => connection::value_of(field, self.tracked.as_ref()),
            Field::Valid(header) => self.packet.place(header).is_valid().into(),
        }
    }

    /// Depends on some bits of a field.
    fn look_at_bits(&mut self, field: Field, bits: u128) {
        match field {
            Field::Header(field) => self.look_at_header_bits(field, bits),
            // In a place other than a comparison: only this very length.
            Field::Std(StdField::FrameBytes) if bits != 0 => {
                let length = self.frame.frame_bytes;
                self.packet.frame_lengths = (length, length);
            }
            Field::Std(StdField::WireBytes) if bits != 0 => {
                let length = self.frame.wire_bytes;
                self.packet.wire_lengths = (length, length);
            }
            // The port the frame came from and the parser's path always count, the rest follows from what was looked at before.
            _ => {}
        }
    }

    fn look_at_header_bits(&mut self, field: HeaderField, bits: u128) {
        let bits = within(field.bits, bits);
        if bits == within(field.bits, u128::MAX) {
            return self.packet.look_at(field);
        }
        // By runs of ones, from the most significant on, which stands at the top.
        let mut rest = bits.checked_shl(128 - u32::from(field.bits)).unwrap_or(0);
        let mut at = 0;
        while rest != 0 {
            let zeros = rest.leading_zeros();
            rest <<= zeros;
            let ones = rest.leading_ones();
            rest = rest.checked_shl(ones).unwrap_or(0);
            at += zeros as u16;
            self.packet.look_at(HeaderField {
                bit: field.bit + at,
                bits: ones as u16,
                ..field
            });
            at += ones as u16;
        }
    }

    fn write(&mut self, field: Field, value: u128) {
        match field {
            Field::Header(field) => self.packet.set(self.program, field, value),
            Field::Meta { index, bits } => {
                if let Some(slot) = self.packet.meta.get_mut(usize::from(index)) {
                    *slot = within(bits, value);
                }
            }
            Field::Std(_) | Field::Ct(_) | Field::Valid(_) => {}
        }
    }

    /// Sends the frame where ingress decided, through egress.
    fn leave(&mut self) {
        match self.destination {
            Destination::None => {
                // A frame that went to the controller has arrived somewhere; a mirror gets what others get.
                let consumed = self
                    .copies
                    .iter()
                    .any(|copy| matches!(copy.target, Target::Controller { .. }));
                if !consumed {
                    self.drop = Some(DropReason::NoDestination);
                }
            }
            Destination::Port(port) => {
                if let Err(reason) = self.send(port) {
                    self.drop = Some(reason);
                }
            }
            Destination::Group(group) => {
                let members = self.snapshot.extras.multicast(group);
                let (mut sent, mut refused) = (false, DropReason::NoDestination);
                for &port in members.iter().take(MAX_COPIES) {
                    if port == self.frame.in_port.get() {
                        continue;
                    }
                    match self.send(port) {
                        Ok(()) => sent = true,
                        Err(reason) => refused = reason,
                    }
                }
                if !sent {
                    self.drop = Some(refused);
                }
            }
        }
    }

    /// Sends a copy out of a port.
    fn send(&mut self, port: u16) -> Result<(), DropReason> {
        let program = self.program;
        if PortId::new(port).is_none() {
            return Err(DropReason::NoDestination);
        }
        if O::WATCHES {
            self.observer.egress(port);
        }
        let first_meter = self.meters.len();
        if program.egress.is_empty() {
            self.sends += 1;
            let edits = self.packet.is_edited().then(|| self.packet.edits(program));
            self.copies.push(OutCopy {
                target: Target::Port(port),
                edits: edits.map(Arc::new),
            });
            return Ok(());
        }
        // What egress does to one copy is not done to the next.
        let before = self.packet.clone();
        self.out_port = port;
        let flow = self.steps(&program.egress, program);
        let edits = self.packet.is_edited().then(|| self.packet.edits(program));
        let after = std::mem::replace(self.packet, before);
        self.packet.join(&after);
        let dropped = self.drop.take().filter(|_| flow == Flow::End);
        if dropped.is_none() {
            self.sends += 1;
            self.copies.push(OutCopy {
                target: Target::Port(port),
                edits: edits.map(Arc::new),
            });
        }
        let end = self.copies.len();
        for metered in self.meters.iter_mut().skip(first_meter) {
            metered.to = Some(end);
        }
        if let Some(reason) = dropped {
            return Err(reason);
        }
        Ok(())
    }
}

fn is_length(field: StdField) -> bool {
    matches!(field, StdField::FrameBytes | StdField::WireBytes)
}
