//! The oracle: what a program does to a frame, by names, one thing after the other, with no thought of speed.
//!
//! It shares the model's types with the engine, and nothing else.

use std::collections::{BTreeMap, HashMap};

use switch_core::engine::literal::Operand;
use switch_core::engine::model::{
    CaseValue, Condition, HeaderType, NewHeader, ParserState, Primitive, Program, Statement,
    TableDecl,
};

use crate::bytes::{Byte, Fill, Piece, cut, plain, read_bits, sum, values, write_bits};

/// How much of a frame is parsed.
const COPY_BYTES: usize = 256;
const MOST_STATES: usize = 24;
const MOST_PASSES: u32 = 4;
const MOST_GROWTH: usize = 96;
const PORTS: u128 = 1 << 14;

/// What an entry wants of a key field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Any,
    Bits { value: u128, mask: u128 },
    Range { low: u128, high: u128 },
}

impl Want {
    fn matches(self, number: u128) -> bool {
        match self {
            Self::Any => true,
            Self::Bits { value, mask } => number & mask == value,
            Self::Range { low, high } => low <= number && number <= high,
        }
    }

    fn length(self) -> u32 {
        match self {
            Self::Bits { mask, .. } => mask.count_ones(),
            _ => 0,
        }
    }
}

pub type Params = BTreeMap<String, u128>;

/// An action and its arguments.
#[derive(Clone, Debug)]
pub struct Call {
    pub action: String,
    pub params: Params,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub wants: Vec<Want>,
    pub priority: i32,
    pub call: Call,
    /// Tells it from every other, also from one of the same key before or after it.
    pub serial: u64,
}

/// A weighted group; its number changes with its members.
#[derive(Clone, Debug)]
pub struct Group {
    pub version: u64,
    pub members: Vec<Vec<u128>>,
}

/// All that operators put into an engine.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub tables: HashMap<String, Vec<Entry>>,
    pub defaults: HashMap<String, Call>,
    pub multicast: HashMap<u16, Vec<u16>>,
    pub groups: HashMap<(String, u32), Group>,
}

/// Which member a weighted group gives for what was hashed: the engine may choose, but must keep to it.
pub trait Choose {
    fn choose(&mut self, group: &Group, hashed: &[u128]) -> usize;
}

/// A frame that comes in.
#[derive(Clone, Debug)]
pub struct Incoming<'a> {
    pub port: u16,
    pub bytes: &'a [u8],
    pub wire_bytes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum To {
    Port(u16),
    Controller(String, Vec<u128>),
}

/// What becomes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub drop: Option<String>,
    pub copies: Vec<(To, Vec<u8>)>,
    /// Entries that count it, by their serials.
    pub hits: Vec<u64>,
    /// Counters that count it.
    pub counts: Vec<(String, u128)>,
    /// A checksum was 0xffff, which is 0 as well: either form is right.
    pub has_two_forms: bool,
}

enum Flow {
    On,
    Exit,
    End(&'static str),
    Resubmit(Vec<String>),
    Recirculate(Vec<String>),
}

#[derive(Clone)]
enum Destination {
    None,
    Port(u128),
    Group(u128),
}

#[derive(Clone)]
struct Run<'a> {
    program: &'a Program,
    contents: &'a Contents,
    incoming: &'a Incoming<'a>,
    pieces: Vec<Piece>,
    rest: Vec<Byte>,
    tail: Vec<Byte>,
    error: u128,
    pass: u32,
    grown: usize,
    out_port: u16,
    meta: HashMap<String, u128>,
    destination: Destination,
    outcome: Outcome,
}

/// Runs a program, with everything built-in made explicit, over a frame.
pub fn run(
    program: &Program,
    contents: &Contents,
    incoming: &Incoming<'_>,
    choose: &mut dyn Choose,
) -> Outcome {
    let copied = incoming.bytes.len().min(COPY_BYTES);
    let mut run = Run {
        program,
        contents,
        incoming,
        pieces: Vec::new(),
        rest: plain(&incoming.bytes[..copied]),
        tail: plain(&incoming.bytes[copied..]),
        error: 0,
        pass: 0,
        grown: 0,
        out_port: 0,
        meta: HashMap::new(),
        destination: Destination::None,
        outcome: Outcome::default(),
    };
    run.parse();
    loop {
        let (is_again, kept) = match run.statements(&program.ingress, choose) {
            Flow::End(reason) => {
                run.outcome.drop = Some(reason.to_owned());
                return run.outcome;
            }
            Flow::On | Flow::Exit => break,
            Flow::Resubmit(kept) => (true, kept),
            Flow::Recirculate(kept) => (false, kept),
        };
        if run.pass == MOST_PASSES {
            run.outcome.drop = Some("too_many_passes".to_owned());
            return run.outcome;
        }
        run.pass += 1;
        run.destination = Destination::None;
        run.meta = kept
            .iter()
            .map(|name| {
                let name = name.trim_start_matches("meta.").to_owned();
                let value = run.meta.get(&name).copied().unwrap_or(0);
                (name, value)
            })
            .collect();
        if is_again {
            run.rest = plain(&incoming.bytes[..copied]);
            run.grown = 0;
        } else {
            let pieces = std::mem::take(&mut run.pieces);
            let mut bytes: Vec<Byte> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
            bytes.append(&mut run.rest);
            run.rest = bytes;
        }
        run.parse();
    }
    run.leave(choose);
    run.outcome
}

impl Run<'_> {
    fn header_type(&self, instance: &str) -> &HeaderType {
        let instance = self.program.headers.iter().find(|it| it.name == instance);
        let kind = &instance.expect("an instance").header_type;
        let found = self.program.header_types.iter().find(|it| it.name == *kind);
        found.expect("its type")
    }

    /// First bit and number of bits of a field.
    fn bits_of(&self, instance: &str, field: &str) -> (usize, u16) {
        let mut first = 0;
        for declared in &self.header_type(instance).fields {
            if declared.name == field {
                return (first, declared.bits);
            }
            first += usize::from(declared.bits);
        }
        panic!("no field {instance}.{field}");
    }

    fn piece(&self, instance: &str) -> Option<usize> {
        self.pieces
            .iter()
            .position(|piece| piece.name.as_deref() == Some(instance))
    }

    fn rename(&mut self, from: &str, to: Option<&str>) {
        if let Some(at) = self.piece(from) {
            self.pieces[at].name = to.map(str::to_owned);
        }
    }

    fn length(&self) -> usize {
        let pieces: usize = self.pieces.iter().map(|piece| piece.bytes.len()).sum();
        pieces + self.rest.len() + self.tail.len()
    }

    /// Takes the headers off the front of `rest`, which holds the whole frame but its tail.
    fn parse(&mut self) {
        self.pieces.clear();
        let mut end = self.rest.len() + self.tail.len();
        let mut taken = 0;
        let mut name = "start".to_owned();
        self.error = 4;
        for _ in 0..MOST_STATES {
            let states = &self.program.parser.states;
            let state = states.iter().find(|it| it.name == name).expect("a state");
            if let Some(instance) = &state.extract {
                match self.extract(instance, taken, &mut end) {
                    Ok(bytes) => taken += bytes,
                    Err(error) => {
                        self.error = error;
                        return;
                    }
                }
            }
            if !state.verify.iter().all(|condition| self.holds(condition)) {
                self.error = 3;
                return;
            }
            name = self.next(state);
            if name == "accept" || name == "reject" {
                self.error = if name == "accept" { 0 } else { 3 };
                return;
            }
        }
    }

    fn extract(&mut self, instance: &str, taken: usize, end: &mut usize) -> Result<usize, u128> {
        let kind = self.header_type(instance).clone();
        let left = values(&self.rest);
        let reach = |bytes: usize| -> Result<(), u128> {
            if taken + bytes > *end {
                Err(2)
            } else if bytes > left.len() {
                Err(1)
            } else {
                Ok(())
            }
        };
        let bits: usize = kind
            .fields
            .iter()
            .map(|field| usize::from(field.bits))
            .sum();
        let fixed = bits / 8;
        reach(fixed)?;
        let number = |field: &str| {
            let (first, bits) = self.bits_of(instance, field);
            read_bits(&left, first, bits.into()) as usize
        };
        let mut bytes = fixed;
        if let Some(length) = &kind.length {
            bytes = (number(&length.field).saturating_add(length.plus.into()))
                .saturating_mul(length.unit_bytes.into());
            if bytes < fixed || bytes > length.max_bytes.into() {
                return Err(3);
            }
            reach(bytes)?;
        }
        // What a packet says of its own length; 0 when it is to be cut.
        let stated = match kind.name.as_str() {
            "ipv4" => number("total_bytes"),
            "ipv6" => match number("payload_bytes") {
                0 => 0,
                payload => payload + 40,
            },
            _ => 0,
        };
        if stated != 0 {
            if taken + stated > *end {
                return Err(2);
            }
            if stated < bytes {
                return Err(3);
            }
            *end = taken + stated;
        }
        let behind = self.rest.split_off(bytes);
        let bytes_of_it = std::mem::replace(&mut self.rest, behind);
        self.rename(instance, None);
        self.pieces.push(Piece {
            name: Some(instance.to_owned()),
            kind: kind.name,
            bytes: bytes_of_it,
        });
        Ok(bytes)
    }

    fn next(&self, state: &ParserState) -> String {
        for case in &state.cases {
            let matches = state.select.iter().zip(&case.values).all(|(field, value)| {
                let number = self.field(field);
                match value {
                    CaseValue::Exact(wanted) => Some(number) == wanted.number(),
                    CaseValue::Masked { value, mask } => {
                        Some(number & mask.number().expect("a mask")) == value.number()
                    }
                }
            });
            if matches {
                return case.next.clone();
            }
        }
        state.default.clone()
    }

    fn field(&self, name: &str) -> u128 {
        let (instance, field) = name.split_once('.').expect("a field");
        match (instance, field) {
            ("meta", field) => self.meta.get(field).copied().unwrap_or(0),
            ("std", "in_port") => self.incoming.port.into(),
            ("std", "out_port") => self.out_port.into(),
            ("std", "frame_bytes") => self.incoming.bytes.len() as u128,
            ("std", "wire_bytes") => self.incoming.wire_bytes.into(),
            ("std", "parse_error") => self.error,
            ("std", "pass") => self.pass.into(),
            ("ct", _) => 0,
            (instance, "valid") => self.piece(instance).is_some().into(),
            (instance, field) => match self.piece(instance) {
                None => 0,
                Some(at) => {
                    let (first, bits) = self.bits_of(instance, field);
                    read_bits(&values(&self.pieces[at].bytes), first, bits.into())
                }
            },
        }
    }

    fn bits_of_any(&self, name: &str) -> u16 {
        let (instance, field) = name.split_once('.').expect("a field");
        if instance == "meta" {
            let metadata = &self.program.metadata;
            return metadata
                .iter()
                .find(|it| it.name == field)
                .expect("metadata")
                .bits;
        }
        self.bits_of(instance, field).1
    }

    fn operand(&self, operand: &Operand, params: &Params) -> u128 {
        match operand {
            Operand::Constant(number) => *number,
            Operand::Field(name) => self.field(name),
            Operand::Param(name) => params[name],
        }
    }

    fn holds(&self, condition: &Condition) -> bool {
        let value = |operand: &Operand| self.operand(operand, &Params::new());
        match condition {
            Condition::Valid(header) => self.piece(header).is_some(),
            Condition::Eq(a, b) => value(a) == value(b),
            Condition::Ne(a, b) => value(a) != value(b),
            Condition::Lt(a, b) => value(a) < value(b),
            Condition::Le(a, b) => value(a) <= value(b),
            Condition::Gt(a, b) => value(a) > value(b),
            Condition::Ge(a, b) => value(a) >= value(b),
            Condition::Masked(a, mask, wanted) => {
                Some(value(a) & mask.number().expect("a mask")) == wanted.number()
            }
            Condition::All(parts) => parts.iter().all(|part| self.holds(part)),
            Condition::Any(parts) => parts.iter().any(|part| self.holds(part)),
            Condition::Not(part) => !self.holds(part),
        }
    }

    fn set(&mut self, name: &str, value: u128) {
        let (instance, field) = name.split_once('.').expect("a field");
        let value = cut(value, self.bits_of_any(name));
        if instance == "meta" {
            self.meta.insert(field.to_owned(), value);
            return;
        }
        let Some(at) = self.piece(instance) else {
            return;
        };
        let before: Vec<_> = (0..self.pieces.len()).map(|at| self.checksum(at)).collect();
        let (first, bits) = self.bits_of(instance, field);
        write_bits(&mut self.pieces[at].bytes, first, bits.into(), value);
        // From the innermost out: a checksum is part of what those before it cover.
        for (covering, before) in before.into_iter().enumerate().rev() {
            let is_the_checksum = covering == at && field == "checksum";
            if !is_the_checksum && let Some((place, total)) = before {
                self.mend(covering, place, total);
            }
        }
    }

    /// Where a header's checksum is, and what everything that it covers sums up to, itself included; none when it has none.
    fn checksum(&self, at: usize) -> Option<(usize, u64)> {
        let piece = &self.pieces[at];
        let instance = piece.name.as_ref()?;
        let place = match piece.kind.as_str() {
            "ipv4" => 10,
            "tcp" => 16,
            "udp" => 6,
            "icmp" | "icmpv6" => 2,
            _ => return None,
        };
        if piece.bytes[place].fill.is_some() {
            return None;
        }
        let stored = read_bits(&values(&piece.bytes), place * 8, 16);
        if piece.kind == "udp" && stored == 0 {
            return None;
        }
        if piece.kind == "ipv4" {
            return Some((place, sum(&values(&piece.bytes))));
        }
        let mut covered: Vec<u8> = self.pieces[at..]
            .iter()
            .flat_map(|piece| values(&piece.bytes))
            .collect();
        covered.extend(values(&self.rest));
        covered.extend(values(&self.tail));
        let mut total = sum(&covered);
        if piece.kind != "icmp" {
            total += self.pseudo_header(at);
        }
        let _ = instance;
        Some((place, total % 0xffff))
    }

    /// The sum of the addresses that a transport header's checksum covers. Its other parts never change under it.
    fn pseudo_header(&self, at: usize) -> u64 {
        let ends = ["ethernet", "icmp", "tcp", "udp", "icmpv6"];
        for piece in self.pieces[..at].iter().rev() {
            if piece.name.is_none() {
                continue;
            }
            match piece.kind.as_str() {
                "ipv4" => return sum(&values(&piece.bytes[12..20])),
                "ipv6" => return sum(&values(&piece.bytes[8..40])),
                kind if ends.contains(&kind) => return 0,
                _ => {}
            }
        }
        0
    }

    /// Changes a checksum so that what it covers sums up to what it did before.
    fn mend(&mut self, at: usize, place: usize, wanted: u64) {
        let Some((_, total)) = self.checksum(at) else {
            return;
        };
        if total == wanted {
            return;
        }
        let stored = read_bits(&values(&self.pieces[at].bytes), place * 8, 16) as u64;
        self.outcome.has_two_forms |= stored == 0xffff && self.pieces[at].kind != "udp";
        let mut new = (stored + 0xffff + wanted - total) % 0xffff;
        if new == 0 && self.pieces[at].kind == "udp" {
            new = 0xffff;
        }
        write_bits(&mut self.pieces[at].bytes, place * 8, 16, new.into());
    }

    fn statements(&mut self, statements: &[Statement], choose: &mut dyn Choose) -> Flow {
        for statement in statements {
            let flow = match statement {
                Statement::Apply(apply) => {
                    let tables = &self.program.tables;
                    let table = tables.iter().find(|it| it.name == apply.table);
                    let table = table.expect("a table");
                    let entry = self.lookup(table);
                    let call = match &entry {
                        Some(entry) => {
                            self.outcome.hits.push(entry.serial);
                            Some(entry.call.clone())
                        }
                        None => self.contents.defaults.get(&table.name).cloned(),
                    };
                    let mut flow = Flow::On;
                    if let Some(call) = call {
                        let actions = &self.program.actions;
                        let action = actions.iter().find(|it| it.name == call.action);
                        let body = &action.expect("an action").body;
                        flow = self.primitives(body, &call.params, choose);
                        if let (Flow::On, Some(steps)) = (&flow, apply.actions.get(&call.action)) {
                            flow = self.statements(steps, choose);
                        }
                    }
                    match flow {
                        Flow::On if entry.is_some() => self.statements(&apply.hit, choose),
                        Flow::On => self.statements(&apply.miss, choose),
                        other => other,
                    }
                }
                Statement::If(branch) => {
                    let steps = if self.holds(&branch.condition) {
                        &branch.then
                    } else {
                        &branch.otherwise
                    };
                    self.statements(steps, choose)
                }
                Statement::Do(primitives) => self.primitives(primitives, &Params::new(), choose),
                Statement::Find(_) => panic!("stations are not the oracle's"),
                Statement::Exit => Flow::Exit,
            };
            if !matches!(flow, Flow::On) {
                return flow;
            }
        }
        Flow::On
    }

    fn lookup(&self, table: &TableDecl) -> Option<Entry> {
        let numbers: Vec<u128> = table.key.iter().map(|key| self.field(&key.field)).collect();
        let rank = |entry: &Entry| {
            let lengths: u32 = entry.wants.iter().map(|want| want.length()).sum();
            // Without priorities only prefixes differ.
            if entry.priority != 0 {
                (entry.priority, 0)
            } else {
                (0, lengths)
            }
        };
        self.contents
            .tables
            .get(&table.name)?
            .iter()
            .filter(|entry| {
                let mut pairs = entry.wants.iter().zip(&numbers);
                pairs.all(|(want, &number)| want.matches(number))
            })
            .max_by_key(|entry| rank(entry))
            .cloned()
    }

    fn primitives(
        &mut self,
        primitives: &[Primitive],
        params: &Params,
        choose: &mut dyn Choose,
    ) -> Flow {
        for primitive in primitives {
            let flow = self.primitive(primitive, params, choose);
            if !matches!(flow, Flow::On) {
                return flow;
            }
        }
        Flow::On
    }

    fn primitive(
        &mut self,
        primitive: &Primitive,
        params: &Params,
        choose: &mut dyn Choose,
    ) -> Flow {
        let value = |run: &Self, operand: &Operand| run.operand(operand, params);
        match primitive {
            Primitive::Set { field, to } => self.set(field, value(self, to)),
            Primitive::Add { field, value: by } => {
                let bits = self.bits_of_any(field);
                let new = self.field(field).wrapping_add(value(self, by));
                self.set(field, cut(new, bits));
            }
            Primitive::Subtract { field, value: by } => {
                let bits = self.bits_of_any(field);
                let new = self.field(field).wrapping_sub(value(self, by));
                self.set(field, cut(new, bits));
            }
            Primitive::PushVlan { vid, pcp, tpid } => {
                let tpid = tpid.as_ref().map_or(0x8100, |tpid| value(self, tpid));
                return self.push_vlan(tpid, value(self, pcp), value(self, vid));
            }
            Primitive::PopVlan {} => self.pop_vlan(),
            Primitive::PushMpls { label, tc, ttl } => {
                return self.push_mpls(value(self, label), value(self, tc), value(self, ttl));
            }
            Primitive::PopMpls { ether_type } => self.pop_mpls(value(self, ether_type)),
            Primitive::Output { port } => {
                self.destination = Destination::Port(cut(value(self, port), 16));
            }
            Primitive::Multicast { group } => {
                self.destination = Destination::Group(cut(value(self, group), 16));
            }
            Primitive::Mirror { port } => {
                let port = cut(value(self, port), 16);
                if port < PORTS {
                    self.copy_as_it_came(To::Port(port as u16));
                }
            }
            Primitive::Controller { reason, args } => {
                let mut args: Vec<u128> = args.iter().map(|arg| value(self, arg)).collect();
                args.resize(4, 0);
                self.copy_as_it_came(To::Controller(reason.clone(), args));
            }
            Primitive::Resubmit { keep } => return Flow::Resubmit(keep.clone()),
            Primitive::Recirculate { keep } => return Flow::Recirculate(keep.clone()),
            Primitive::Drop { reason } => return Flow::End(reason.clone().leak()),
            Primitive::Count { counter, index } => {
                let index = cut(value(self, index), 32);
                self.outcome.counts.push((counter.clone(), index));
            }
            Primitive::Select {
                selector,
                group,
                hash,
                into,
            } => {
                let number = cut(value(self, group), 32) as u32;
                let hashed: Vec<u128> = hash.iter().map(|name| self.field(name)).collect();
                let contents = self.contents;
                let chosen = match contents.groups.get(&(selector.clone(), number)) {
                    Some(group) if !group.members.is_empty() => {
                        group.members[choose.choose(group, &hashed)].clone()
                    }
                    _ => vec![0; into.len()],
                };
                for (name, value) in into.iter().zip(chosen) {
                    self.set(name, value);
                }
            }
            Primitive::Encapsulate { headers } => return self.encapsulate(headers, params),
            Primitive::Decapsulate { to } => {
                if let Some(at) = self.piece(to) {
                    self.pieces.drain(..at);
                }
            }
            Primitive::Meter { .. }
            | Primitive::Track { .. }
            | Primitive::Commit(_)
            | Primitive::Nat {}
            | Primitive::Learn { .. } => panic!("not the oracle's"),
        }
        Flow::On
    }

    fn copy_as_it_came(&mut self, to: To) {
        let bytes = self.incoming.bytes.to_vec();
        self.outcome.copies.push((to, bytes));
    }

    /// Notes that the frame gets longer; `false` when it gets too long.
    fn grow(&mut self, bytes: usize) -> bool {
        let has_room = self.grown + bytes <= MOST_GROWTH;
        if has_room {
            self.grown += bytes;
        }
        has_room
    }

    fn push_vlan(&mut self, tpid: u128, pcp: u128, vid: u128) -> Flow {
        let Some(ethernet) = self.piece("ethernet") else {
            return Flow::On;
        };
        if !self.grow(4) {
            return Flow::End("headers_too_long");
        }
        let mut tag = plain(&[0; 4]);
        write_bits(&mut tag, 0, 3, pcp);
        write_bits(&mut tag, 4, 12, vid);
        write_bits(&mut tag, 16, 16, self.field("ethernet.ether_type"));
        if self.piece("vlan").is_some() {
            self.rename("vlan_inner", None);
            self.rename("vlan", Some("vlan_inner"));
        }
        write_bits(&mut self.pieces[ethernet].bytes, 96, 16, tpid);
        let tag = Piece {
            name: Some("vlan".to_owned()),
            kind: "vlan".to_owned(),
            bytes: tag,
        };
        self.pieces.insert(ethernet + 1, tag);
        Flow::On
    }

    fn pop_vlan(&mut self) {
        let (Some(ethernet), Some(vlan)) = (self.piece("ethernet"), self.piece("vlan")) else {
            return;
        };
        if vlan != ethernet + 1 {
            return;
        }
        let ether_type = self.field("vlan.ether_type");
        write_bits(&mut self.pieces[ethernet].bytes, 96, 16, ether_type);
        self.pieces.remove(vlan);
        self.rename("vlan_inner", Some("vlan"));
    }

    /// The last header that has an EtherType in front of the network header.
    fn last_tag(&self) -> Option<&'static str> {
        ["vlan_skipped", "vlan_inner", "vlan", "ethernet"]
            .into_iter()
            .find(|name| self.piece(name).is_some())
    }

    fn push_mpls(&mut self, label: u128, tc: u128, ttl: u128) -> Flow {
        let Some(tag) = self.last_tag() else {
            return Flow::On;
        };
        if !self.grow(4) {
            return Flow::End("headers_too_long");
        }
        let mut bytes = plain(&[0; 4]);
        let is_bottom = self.piece("mpls").is_none();
        write_bits(&mut bytes, 0, 20, label);
        write_bits(&mut bytes, 20, 3, tc);
        write_bits(&mut bytes, 23, 1, is_bottom.into());
        write_bits(&mut bytes, 24, 8, ttl);
        if !is_bottom {
            self.rename("mpls_inner", None);
            self.rename("mpls", Some("mpls_inner"));
        }
        let at = self.piece(tag).expect("found above") + 1;
        let label = Piece {
            name: Some("mpls".to_owned()),
            kind: "mpls".to_owned(),
            bytes,
        };
        self.pieces.insert(at, label);
        self.set(&format!("{tag}.ether_type"), 0x8847);
        Flow::On
    }

    fn pop_mpls(&mut self, behind: u128) {
        let (Some(tag), Some(mpls)) = (self.last_tag(), self.piece("mpls")) else {
            return;
        };
        let is_bottom = self.field("mpls.bottom") == 1;
        self.pieces.remove(mpls);
        self.rename("mpls_inner", Some("mpls"));
        if is_bottom {
            self.set(&format!("{tag}.ether_type"), behind);
        }
    }

    fn encapsulate(&mut self, headers: &[NewHeader], params: &Params) -> Flow {
        let mut made = Vec::new();
        let first = self.pieces.iter().find(|piece| piece.name.is_some());
        let mut next = first.map_or(String::new(), |piece| piece.kind.clone());
        for header in headers.iter().rev() {
            let piece = self.new_header(header, &next, params);
            next.clone_from(&piece.kind);
            made.insert(0, piece);
        }
        if !self.grow(made.iter().map(|piece| piece.bytes.len()).sum()) {
            return Flow::End("headers_too_long");
        }
        for header in headers {
            self.rename(&header.header, None);
        }
        made.append(&mut self.pieces);
        self.pieces = made;
        Flow::On
    }

    /// A header that stands before one of type `next`.
    fn new_header(&self, header: &NewHeader, next: &str, params: &Params) -> Piece {
        let kind = self.header_type(&header.header).clone();
        let bits: usize = kind
            .fields
            .iter()
            .map(|field| usize::from(field.bits))
            .sum();
        let mut bytes = plain(&vec![0; bits / 8]);
        let ether_type = match next {
            "vlan" => 0x8100,
            "ipv4" => 0x0800,
            "ipv6" => 0x86dd,
            "mpls" => 0x8847,
            "ethernet" => 0x6558,
            _ => 0,
        };
        let protocol = match next {
            "ipv4" => 4,
            "ipv6" => 41,
            "tcp" => 6,
            "udp" => 17,
            _ => 0,
        };
        let filled: &[(&str, u128)] = match kind.name.as_str() {
            "ethernet" | "vlan" => &[("ether_type", ether_type)],
            "ipv4" => &[
                ("version", 4),
                ("ihl", 5),
                ("ttl", 64),
                ("protocol", protocol),
            ],
            "ipv6" => &[("version", 6), ("hop_limit", 64), ("next_header", protocol)],
            "vxlan" => &[("flags", 8)],
            "geneve" | "gre" => &[("protocol", ether_type)],
            _ => &[],
        };
        let mut put = |name: &str, value: u128| {
            let (first, bits) = self.bits_of(&header.header, name);
            write_bits(&mut bytes, first, bits.into(), value);
        };
        for (name, value) in filled {
            put(name, *value);
        }
        for (name, operand) in &header.fields {
            put(name, self.operand(operand, params));
        }
        let fills: &[(&str, usize, Fill)] = match kind.name.as_str() {
            "ipv4" => &[
                ("total_bytes", 2, Fill::LengthFrom(-2)),
                ("checksum", 10, Fill::Ipv4Checksum),
            ],
            "ipv6" => &[("payload_bytes", 4, Fill::LengthFrom(36))],
            "udp" => &[("length", 4, Fill::LengthFrom(-4))],
            _ => &[],
        };
        for (name, at, fill) in fills {
            if !header.fields.contains_key(*name) {
                bytes[*at].fill = Some(*fill);
            }
        }
        Piece {
            name: Some(header.header.clone()),
            kind: kind.name,
            bytes,
        }
    }

    fn leave(&mut self, choose: &mut dyn Choose) {
        match self.destination.clone() {
            Destination::None => {
                let is_told = |(to, _): &(To, Vec<u8>)| matches!(to, To::Controller(..));
                if !self.outcome.copies.iter().any(is_told) {
                    self.outcome.drop = Some("no_destination".to_owned());
                }
            }
            Destination::Port(port) => self.outcome.drop = self.send(port, choose),
            Destination::Group(group) => {
                let contents = self.contents;
                let ports = contents.multicast.get(&(group as u16));
                let mut drop = Some("no_destination".to_owned());
                let mut was_sent = false;
                for &port in ports.into_iter().flatten() {
                    if port != self.incoming.port {
                        match self.send(port.into(), choose) {
                            None => was_sent = true,
                            refused => drop = refused,
                        }
                    }
                }
                self.outcome.drop = if was_sent { None } else { drop };
            }
        }
    }

    /// Sends a copy through egress; the reason when it is dropped.
    fn send(&mut self, port: u128, choose: &mut dyn Choose) -> Option<String> {
        if port >= PORTS {
            return Some("no_destination".to_owned());
        }
        let mut copy = self.clone();
        copy.out_port = port as u16;
        let flow = copy.statements(&self.program.egress, choose);
        self.outcome = copy.outcome.clone();
        if let Flow::End(reason) = flow {
            return Some(reason.to_owned());
        }
        let bytes = copy.finished();
        self.outcome.copies.push((To::Port(port as u16), bytes));
        None
    }

    /// The frame as it leaves.
    fn finished(&self) -> Vec<u8> {
        let mut bytes: Vec<Byte> = self
            .pieces
            .iter()
            .flat_map(|piece| piece.bytes.iter().copied())
            .collect();
        bytes.extend(&self.rest);
        bytes.extend(&self.tail);
        let whole = bytes.len() as isize;
        debug_assert_eq!(whole as usize, self.length());
        for at in 0..bytes.len() {
            if let Some(Fill::LengthFrom(from)) = bytes[at].fill {
                let length = (whole - (at as isize + from)).max(0);
                write_bits(&mut bytes[at..], 0, 16, length as u128);
            }
        }
        for at in 0..bytes.len() {
            if bytes[at].fill == Some(Fill::Ipv4Checksum) {
                let header = values(&bytes[at - 10..at + 10]);
                // All ones and zero are the same sum; the sum of something is the former.
                let checksum = (0xffff - sum(&header)) % 0xffff;
                write_bits(&mut bytes[at..], 0, 16, checksum.into());
            }
        }
        values(&bytes)
    }
}

/// What a field of a frame is when it comes in.
pub fn field_of(program: &Program, bytes: &[u8], field: &str) -> u128 {
    let contents = Contents::default();
    let incoming = Incoming {
        port: 1,
        bytes,
        wire_bytes: 0,
    };
    let copied = bytes.len().min(COPY_BYTES);
    let mut run = Run {
        program,
        contents: &contents,
        incoming: &incoming,
        pieces: Vec::new(),
        rest: plain(&bytes[..copied]),
        tail: plain(&bytes[copied..]),
        error: 0,
        pass: 0,
        grown: 0,
        out_port: 0,
        meta: HashMap::new(),
        destination: Destination::None,
        outcome: Outcome::default(),
    };
    run.parse();
    run.field(field)
}
