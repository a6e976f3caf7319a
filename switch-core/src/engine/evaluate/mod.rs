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

use super::compile::{Comparison, Compiled, Field, Next, StdField, Step, Test, Value};
use super::edit::EditList;
use super::layout::Place;
use super::packet::{Packet, within};
use super::params::Unpacked;
use super::parse::{Origin, ParseError, compare};
use super::state::{EntryAction, MeterSetting, Seen, Snapshot, State};
use crate::conntrack::{ConnId, Leg, Tracked};
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
    /// The headers of its path, if that is known.
    pub headers: Option<&'a [(u16, Place)]>,
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
#[derive(Debug)]
pub(crate) struct Conditions {
    /// Counters of tables and groups.
    pub tables: Dependencies,
    /// Counters of stations, and their sum.
    pub stations: Vec<EpochBucket>,
    pub station_sum: u32,
    /// It holds before this instant.
    pub valid_until: Millis,
    /// The connection that has to agree to each frame.
    pub connection: Option<(ConnId, Leg)>,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            tables: Dependencies::new(),
            stations: Vec::new(),
            station_sum: 0,
            valid_until: Millis(u64::MAX),
            connection: None,
        }
    }
}

/// The outcome, in memory that one evaluation after the other uses.
#[derive(Debug, Default)]
pub(crate) struct Evaluation {
    /// Why the frame goes nowhere, when it is so; copies may be sent even then.
    pub drop: Option<DropReason>,
    pub copies: Vec<OutCopy>,
    /// Of the entries that count the frame.
    pub seen: Vec<Arc<Seen>>,
    /// Meters it passed.
    pub meters: Vec<Metered>,
    /// Copies that left by ports, mirrors apart.
    pub sends: usize,
    /// Counters that count it.
    pub counts: Vec<(u16, u32)>,
    /// Whether it may be remembered, under these conditions.
    pub is_repeatable: bool,
    pub conditions: Conditions,
    /// Room for the bits of a key that counted in a lookup, and for the arguments of the action that it found.
    looked_at: Vec<u128>,
    args: Vec<u128>,
}

impl Evaluation {
    fn clear(&mut self) {
        self.drop = None;
        self.copies.clear();
        self.seen.clear();
        self.meters.clear();
        self.sends = 0;
        self.counts.clear();
        self.is_repeatable = false;
        let conditions = &mut self.conditions;
        conditions.tables.clear();
        conditions.stations.clear();
        conditions.station_sum = 0;
        conditions.valid_until = Millis(u64::MAX);
        conditions.connection = None;
    }
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

/// What a table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Hit,
    Miss,
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
    out: &'a mut Evaluation,
    remember: bool,
    parse_error: ParseError,
    pass: u8,
    out_port: u16,
    tracked: Option<Tracked>,
    zone: u16,
    destination: Destination,
    kept: Vec<(u16, u128)>,
}

/// An action's arguments.
type Args<'a> = &'a [u128];

impl<'a, O: Observer> Evaluator<'a, O> {
    /// Ready to evaluate `frame` in `packet`, which holds it from then on.
    pub(crate) fn new(
        (state, snapshot): (&'a State, &'a Snapshot),
        frame: Frame<'a>,
        effects: Effects<'a>,
        observer: &'a mut O,
        (packet, out): (&'a mut Packet, &'a mut Evaluation),
    ) -> Self {
        packet.reset(frame.header);
        out.clear();
        Self {
            program: &state.program,
            state,
            snapshot,
            frame,
            effects,
            observer,
            packet,
            out,
            remember: true,
            parse_error: ParseError::None,
            pass: 0,
            out_port: 0,
            tracked: None,
            zone: 0,
            destination: Destination::None,
            kept: Vec::new(),
        }
    }

    /// Evaluates the frame.
    pub(crate) fn run(mut self) {
        let (program, state) = (self.program, self.state);
        // Groups and defaults are changed as a whole: published first, counted then. One that was overtaken between the two would be
        // remembered under the count of the next.
        let tables = &mut self.out.conditions.tables;
        tables.depend_on(&state.changes, super::state::EXTRAS_COUNTER);
        if state.published.load(atomic::Ordering::Acquire) != self.snapshot.epoch.0 {
            tables.forbid();
        }
        self.parse(Origin::AsItCame);
        loop {
            match self.steps(&program.ingress, program) {
                Flow::Again(_) if self.pass >= MAX_PASSES => {
                    self.out.drop = Some(DropReason::TooManyPasses);
                    break;
                }
                Flow::Again(how) => self.begin_pass(how),
                Flow::On | Flow::Exit | Flow::End => break,
            }
        }
        if self.out.drop.is_none() {
            self.leave();
        }
        self.out.is_repeatable =
            self.remember && !self.packet.is_once && self.out.conditions.tables.can_be_remembered();
    }

    fn parse(&mut self, origin: Origin) {
        let program = self.program;
        let bytes = self.frame.frame_bytes;
        if let (Origin::AsItCame, Some(headers), false) = (origin, self.frame.headers, O::WATCHES) {
            self.packet.take_headers(program, headers);
            self.parse_error = ParseError::None;
            debug_assert!({
                let found = self.packet.layout.clone();
                let unwatched = &mut |_, _, _| {};
                self.packet.parse(program, (bytes, origin), unwatched) == ParseError::None
                    && self.packet.layout == found
            });
            return;
        }
        if origin == Origin::AsItCame && !O::WATCHES {
            // The way it went is what the cache knows the frame by: nobody else asks.
            let unwatched = &mut |_, _, _| {};
            self.parse_error = self.packet.parse(program, (bytes, origin), unwatched);
            return;
        }
        let mut trail: Vec<(u16, u16, Next)> = Vec::new();
        let watch = &mut |state, bytes, next| trail.push((state, bytes, next));
        self.parse_error = self.packet.parse(program, (bytes, origin), watch);
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

    fn steps(&mut self, mut steps: &[Step], program: &'a Compiled) -> Flow {
        while let Some((step, rest)) = steps.split_first() {
            let (flow, more): (Flow, &[Step]) = match step {
                Step::Apply {
                    table,
                    hit,
                    miss,
                    actions,
                } => match self.apply(*table, actions, program) {
                    (flow, Found::Hit) => (flow, hit),
                    (flow, Found::Miss) => (flow, miss),
                },
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
                    (Flow::On, if holds { then } else { otherwise })
                }
                Step::Do(primitives) => (self.primitives(primitives, &[]), &[]),
                Step::Find {
                    domain,
                    address,
                    port,
                    hit,
                    miss,
                } => {
                    let (domain, address) = (self.value(*domain, &[]), self.value(*address, &[]));
                    let found = self.find_station(domain, address);
                    if let Some(found) = found {
                        self.write(*port, found.into());
                    }
                    (Flow::On, if found.is_some() { hit } else { miss })
                }
                Step::Exit => (Flow::Exit, &[]),
            };
            if flow != Flow::On {
                return flow;
            }
            steps = match (more, rest) {
                ([], rest) => rest,
                // The last of a list goes on in the next.
                (more, []) => more,
                (more, rest) => {
                    let flow = self.steps(more, program);
                    if flow != Flow::On {
                        return flow;
                    }
                    rest
                }
            };
        }
        Flow::On
    }

    /// Looks a table up and does what it says.
    #[inline(never)] // What it needs of the stack would be part of every list of steps.
    fn apply(
        &mut self,
        number: u16,
        actions: &[(u16, Vec<Step>)],
        program: &'a Compiled,
    ) -> (Flow, Found) {
        let (Some(table), Some(spec)) = (
            self.state.tables.get(usize::from(number)),
            program.tables.get(usize::from(number)),
        ) else {
            return (Flow::On, Found::Miss);
        };
        // Of metadata nothing is to be marked: its values come from bits that are.
        let mut is_of_frame = false;
        let mut values = [0u128; MAX_KEY_FIELDS];
        for (value, key) in values.iter_mut().zip(&spec.key) {
            *value = self.peek(key.field);
            is_of_frame |= !matches!(key.field, Field::Meta { .. });
        }
        let values = values.get(..spec.key.len()).unwrap_or_default();
        let mut args = std::mem::take(&mut self.out.args);
        let Evaluation {
            looked_at,
            seen,
            conditions,
            ..
        } = &mut *self.out;
        looked_at.clear();
        if is_of_frame {
            looked_at.resize(values.len(), 0);
        }
        let (mut found, mut watched) = (None, None);
        table.look_up(
            (values, self.snapshot.epoch),
            (looked_at, &mut conditions.tables),
            &mut |handle, call: &Arc<EntryAction>| {
                found = Some(call.action);
                args.clear();
                args.extend_from_slice(call.params.values(&mut Unpacked::default()));
                if let Some(counts) = &call.seen {
                    seen.push(Arc::clone(counts));
                }
                if O::WATCHES {
                    watched = Some((handle, Arc::clone(call)));
                }
            },
        );
        if is_of_frame {
            for (at, key) in spec.key.iter().enumerate() {
                let bits = self.out.looked_at.get(at).copied().unwrap_or(0);
                self.look_at_bits(key.field, bits);
            }
        }
        let default = match found {
            Some(_) => None,
            None => self.snapshot.extras.default_of(number),
        };
        if O::WATCHES {
            let (handle, call) = watched.unzip();
            let entry = handle.and_then(|handle| table.entry(handle, self.snapshot.epoch));
            let call = call.as_ref().or(default);
            let call = call.map(|call| &**call);
            self.observer
                .looked_up((self.state, number), values, entry, call);
        }
        let mut flow = Flow::On;
        let action = found.or(default.map(|call| call.action));
        if let Some(number) = action
            && let Some(action) = program.actions.get(usize::from(number))
        {
            let mut unpacked = Unpacked::default();
            let args = match default {
                Some(call) => call.params.values(&mut unpacked),
                None => &args,
            };
            flow = self.primitives(&action.body, args);
        }
        self.out.args = args;
        if flow == Flow::On
            && let Some((_, steps)) = actions.iter().find(|(number, _)| Some(*number) == action)
        {
            flow = self.steps(steps, program);
        }
        let found = found.map_or(Found::Miss, |_| Found::Hit);
        (flow, found)
    }

    #[inline]
    fn holds(&mut self, test: &Test, args: Args<'_>) -> bool {
        match test {
            // Most of them.
            Test::Masked(Value::Field(Field::Meta { index, .. }), mask, wanted) => {
                self.packet.meta(*index) & mask == *wanted
            }
            Test::Compare(how, Value::Field(Field::Meta { index, .. }), Value::Constant(b)) => {
                compare(*how, self.packet.meta(*index), *b)
            }
            Test::Compare(how, Value::Field(Field::Valid(header)), Value::Constant(b)) => {
                compare(*how, self.packet.place(*header).is_valid().into(), *b)
            }
            other => self.test(other, args),
        }
    }

    #[inline(never)]
    fn test(&mut self, test: &Test, args: Args<'_>) -> bool {
        match test {
            Test::Compare(how, a, b) if is_length(*a) || is_length(*b) => {
                self.compare_lengths(*how, (*a, *b), args)
            }
            Test::Compare(how, a, b) => {
                let (a, b) = (self.value(*a, args), self.value(*b, args));
                compare(*how, a, b)
            }
            Test::Masked(Value::Field(field), mask, wanted) => {
                self.look_at_bits(*field, *mask);
                self.peek(*field) & mask == *wanted
            }
            Test::Masked(value, mask, wanted) => self.value(*value, args) & mask == *wanted,
            Test::All(tests) => tests.iter().all(|test| self.holds(test, args)),
            Test::Any(tests) => tests.iter().any(|test| self.holds(test, args)),
            Test::Not(test) => !self.holds(test, args),
        }
    }

    #[inline(never)]
    fn compare_lengths(&mut self, how: Comparison, (a, b): (Value, Value), args: Args<'_>) -> bool {
        match (a, b) {
            (Value::Field(Field::Std(field)), other) if is_length(a) => {
                let other = self.value(other, args);
                self.compare_length(field, |length| compare(how, length, other), other)
            }
            (other, Value::Field(Field::Std(field))) => {
                let other = self.value(other, args);
                self.compare_length(field, |length| compare(how, other, length), other)
            }
            _ => false,
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
    #[inline]
    fn value(&mut self, value: Value, args: Args<'_>) -> u128 {
        match value {
            Value::Constant(number) => number,
            Value::Field(Field::Meta { index, .. }) => self.packet.meta(index),
            Value::Field(field) => self.read(field),
            Value::Param(number) => args.get(usize::from(number)).copied().unwrap_or(0),
        }
    }

    fn read(&mut self, field: Field) -> u128 {
        if let Field::Header(field) = field {
            self.packet.settle_if_checksum(self.program, field);
            return self.packet.get(field);
        }
        self.look_at_bits(field, u128::MAX);
        self.peek(field)
    }

    /// The value of a field, without depending on it.
    #[inline]
    fn peek(&mut self, field: Field) -> u128 {
        match field {
            Field::Meta { index, .. } => self.packet.meta(index),
            other => self.peek_at(other),
        }
    }

    #[inline(never)]
    fn peek_at(&mut self, field: Field) -> u128 {
        match field {
            Field::Header(field) => {
                self.packet.settle_if_checksum(self.program, field);
                self.packet.peek(field)
            }
            Field::Meta { index, .. } => self.packet.meta(index),
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
    #[inline]
    fn look_at_bits(&mut self, field: Field, bits: u128) {
        match field {
            Field::Header(field) => self.packet.look_at_bits(field, bits),
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

    #[inline]
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
                let mut copies = self.out.copies.iter();
                if !copies.any(|copy| matches!(copy.target, Target::Controller { .. })) {
                    self.out.drop = Some(DropReason::NoDestination);
                }
            }
            Destination::Port(port) => {
                if let Err(reason) = self.send(port) {
                    self.out.drop = Some(reason);
                }
            }
            Destination::Group(group) => {
                let members = self.snapshot.extras.multicast(group);
                let (mut sent, mut refused) = (false, DropReason::NoDestination);
                for &port in members.iter().take(MAX_COPIES) {
                    if port == self.frame.in_port.get() {
                        continue;
                    }
                    // What egress does to one copy is not done to the next.
                    let before = (!self.program.egress.is_empty()).then(|| self.packet.clone());
                    let result = self.send(port);
                    if let Some(before) = before {
                        let after = std::mem::replace(self.packet, before);
                        self.packet.join(&after);
                    }
                    match result {
                        Ok(()) => sent = true,
                        Err(reason) => refused = reason,
                    }
                }
                if !sent {
                    self.out.drop = Some(refused);
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
        let first_meter = self.out.meters.len();
        self.out_port = port;
        let flow = self.steps(&program.egress, program);
        let dropped = self.out.drop.take().filter(|_| flow == Flow::End);
        if dropped.is_none() {
            self.out.sends += 1;
            let edits = self.packet.is_edited().then(|| self.packet.edits(program));
            self.out.copies.push(OutCopy {
                target: Target::Port(port),
                edits: edits.map(Arc::new),
            });
        }
        let end = self.out.copies.len();
        for metered in self.out.meters.iter_mut().skip(first_meter) {
            metered.to = Some(end);
        }
        if let Some(reason) = dropped {
            return Err(reason);
        }
        Ok(())
    }
}

#[inline]
fn is_length(value: Value) -> bool {
    use StdField::{FrameBytes, WireBytes};
    matches!(value, Value::Field(Field::Std(FrameBytes | WireBytes)))
}
