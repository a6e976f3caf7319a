//! An engine and the oracle's view of it, changed alike and asked alike.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use switch_core::conntrack::ConntrackConfig;
use switch_core::engine::control::{self, PortNames, Update};
use switch_core::engine::edit::{EditedFrame, PartialChecksum};
use switch_core::engine::model::Program;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{Decide, FrameInfo, HeaderEdit, Millis, PortId, Target, Verdict};

use crate::bytes::sum;
use crate::choices::Choices;
use crate::frames::{self, interesting};
use crate::oracle::{self, Call, Choose, Contents, Entry, Group, Incoming, To, Want};
use crate::programs::{self, Table, arguments, call, text};

/// Ports are called by their numbers.
pub struct Numbers;

impl PortNames for Numbers {
    fn id(&self, name: &str) -> Option<PortId> {
        PortId::new(name.strip_prefix("vm")?.parse().ok()?)
    }

    fn name(&self, id: PortId) -> Option<String> {
        Some(format!("vm{id}"))
    }
}

/// What can be seen of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub drop: Option<String>,
    pub copies: Vec<(To, Vec<u8>)>,
}

impl From<&oracle::Outcome> for Seen {
    fn from(outcome: &oracle::Outcome) -> Self {
        Self {
            drop: outcome.drop.clone(),
            copies: outcome.copies.clone(),
        }
    }
}

/// What was hashed, for which group.
type Hashed = (u64, Vec<u128>);

/// The oracle's way of choosing as the engine does: it tries, and what the engine is known to do it must do again.
#[derive(Default)]
struct Memory {
    /// What the engine may still choose, by what was hashed for which group.
    possible: HashMap<Hashed, Vec<usize>>,
    /// In this run: which of those possible is taken.
    trial: Vec<(Hashed, usize)>,
}

impl Choose for Memory {
    fn choose(&mut self, group: &Group, hashed: &[u128]) -> usize {
        let key = (group.version, hashed.to_vec());
        let all = || (0..group.members.len()).collect();
        let possible = self.possible.entry(key.clone()).or_insert_with(all);
        let at = match self.trial.iter().find(|(other, _)| *other == key) {
            Some(&(_, at)) => at,
            None => {
                self.trial.push((key, 0));
                0
            }
        };
        possible[at]
    }
}

impl Memory {
    /// Goes on to the next combination; `false` when all were tried.
    fn advance(&mut self) -> bool {
        while let Some((key, at)) = self.trial.pop() {
            if at + 1 < self.possible[&key].len() {
                self.trial.push((key, at + 1));
                return true;
            }
        }
        false
    }

    /// What is chosen in this run.
    fn chosen(&self) -> Vec<(Hashed, usize)> {
        let chosen = |(key, at): &(Hashed, usize)| (key.clone(), self.possible[key][*at]);
        self.trial.iter().map(chosen).collect()
    }

    /// The engine chose in one of these ways.
    fn learn(&mut self, ways: &[Vec<(Hashed, usize)>]) {
        let Some(first) = ways.first() else { return };
        for (key, _) in first {
            let values = |way: &Vec<(Hashed, usize)>| {
                let found = way.iter().find(|(other, _)| other == key);
                found.map(|(_, value)| *value)
            };
            let taken: Option<Vec<usize>> = ways.iter().map(values).collect();
            // Where it makes no difference in one of the ways, nothing is learned of it.
            if let (Some(taken), Some(possible)) = (taken, self.possible.get_mut(key)) {
                possible.retain(|value| taken.contains(value));
            }
        }
    }
}

/// How the engine came to its verdicts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub frames: u64,
    pub hits: u64,
    /// Hits of frames that were never seen before, so that a mask must have let them in.
    pub masked_hits: u64,
    pub copies: u64,
    pub edited: u64,
    pub drops: u64,
    pub batches: u64,
    pub refused: u64,
    pub unfinished: u64,
}

pub struct World {
    pub made: programs::Made,
    pub program: Program,
    pub engine: Arc<Engine>,
    cached: EnginePipeline,
    uncached: EnginePipeline,
    contents: Contents,
    memory: Memory,
    serial: u64,
    now: Millis,
    seen: std::collections::HashSet<(u16, Vec<u8>)>,
    hits: HashMap<u64, u64>,
    counts: HashMap<u128, u64>,
    /// Choices that nobody could see made a difference to what was counted.
    is_count_uncertain: bool,
    pub totals: Totals,
}

impl World {
    pub fn new(made: programs::Made) -> Self {
        let valid = Program::from_json(&made.json.to_string())
            .unwrap_or_else(|errors| panic!("{errors}\n{:#}", made.json));
        let program = valid.program().clone();
        let config = EngineConfig {
            conntrack: ConntrackConfig {
                capacity: 64,
                per_port_limit: 64,
                ..ConntrackConfig::default()
            },
            mac_table_capacity: 64,
            ..EngineConfig::default()
        };
        let engine = Arc::new(Engine::new(valid, config).expect("a valid program"));
        let mut contents = Contents::default();
        for table in &made.tables {
            if let Some((action, values)) = &table.default {
                let call = oracle_call(&made.actions[*action], values);
                contents.defaults.insert(table.name.clone(), call);
            }
        }
        Self {
            cached: EnginePipeline::new(Arc::clone(&engine)),
            uncached: EnginePipeline::new(Arc::clone(&engine)),
            made,
            program,
            engine,
            contents,
            memory: Memory::default(),
            serial: 0,
            now: Millis(1),
            seen: std::collections::HashSet::new(),
            hits: HashMap::new(),
            counts: HashMap::new(),
            is_count_uncertain: false,
            totals: Totals::default(),
        }
    }

    /// A batch of random changes.
    pub fn change(&mut self, choices: &mut Choices<'_>, pool: &[frames::Made]) {
        let mut after = self.contents.clone();
        let mut updates = Vec::new();
        let mut is_refused = false;
        for _ in 0..1 + choices.below(5) {
            let (json, ok) = self.update(choices, pool, &mut after);
            updates.push(json);
            is_refused |= !ok;
        }
        let parsed: Vec<Update> = serde_json::from_value(json!(updates))
            .unwrap_or_else(|error| panic!("{error}: {}", json!(updates)));
        let result = self.engine.write(&parsed, &Numbers, self.now);
        if std::env::var_os("ENGINE_ORACLE_REPLAY").is_some() {
            println!("{} -> {result:?}", json!(updates));
        }
        assert_eq!(
            result.is_err(),
            is_refused,
            "{result:?} for {:#}",
            json!(updates)
        );
        self.totals.batches += 1;
        if is_refused {
            self.totals.refused += 1;
        } else {
            self.contents = after;
        }
        self.now = Millis(self.now.0 + choices.below(3) as u64);
    }

    /// One update, and whether it can be made.
    fn update(
        &mut self,
        choices: &mut Choices<'_>,
        pool: &[frames::Made],
        after: &mut Contents,
    ) -> (Value, bool) {
        self.serial += 1;
        let serial = self.serial;
        let at = choices.below(self.made.tables.len());
        let table = self.made.tables[at].clone();
        let entries = after.tables.entry(table.name.clone()).or_default();
        let existing = (!entries.is_empty()).then(|| choices.below(entries.len().max(1)));
        match (choices.below(16), existing) {
            (0..=6, _) | (7..=11, None) => {
                // Now and then one that is there.
                let (wants, priority) = match existing {
                    Some(existing) if choices.chance(4) => {
                        (entries[existing].wants.clone(), entries[existing].priority)
                    }
                    _ => {
                        let wants = self.wants(choices, pool, &table);
                        (
                            wants,
                            if table.has_priorities() {
                                serial as i32
                            } else {
                                0
                            },
                        )
                    }
                };
                let entries = after.tables.get_mut(&table.name).expect("made above");
                let known = entries
                    .iter()
                    .position(|entry| entry.wants == wants && entry.priority == priority);
                let (action, values) = self.action(choices, &table);
                let call = oracle_call(&self.made.actions[action], &values);
                let json = self.entry(choices, &table, (&wants, priority), (action, &values));
                let is_full = entries.len() >= table.size;
                if choices.chance(15) {
                    match known {
                        Some(known) => entries[known].call = call,
                        None if is_full => return (json!({"put": json}), false),
                        None => entries.push(Entry {
                            wants,
                            priority,
                            call,
                            serial,
                        }),
                    }
                    return (json!({"put": json}), true);
                }
                let ok = known.is_none() && !is_full;
                if ok {
                    entries.push(Entry {
                        wants,
                        priority,
                        call,
                        serial,
                    });
                }
                (json!({"insert": json}), ok)
            }
            (7..=9, Some(existing)) => {
                let (mut priority, wants) =
                    (entries[existing].priority, entries[existing].wants.clone());
                let is_missing = table.has_priorities() && choices.chance(4);
                if is_missing {
                    priority += 1_000_000;
                }
                let (action, values) = self.action(choices, &table);
                let call = oracle_call(&self.made.actions[action], &values);
                let json = self.entry(choices, &table, (&wants, priority), (action, &values));
                if !is_missing {
                    after.tables.get_mut(&table.name).expect("made above")[existing].call = call;
                }
                (json!({"modify": json}), !is_missing)
            }
            (10..=11, Some(existing)) => {
                let (mut priority, wants) =
                    (entries[existing].priority, entries[existing].wants.clone());
                let is_missing = table.has_priorities() && choices.chance(4);
                if is_missing {
                    priority += 1_000_000;
                } else {
                    entries.remove(existing);
                }
                let mut json =
                    json!({"table": table.name, "key": written(choices, &table, &wants)});
                if table.has_priorities() {
                    json["priority"] = json!(priority);
                }
                (json!({"delete": json}), !is_missing)
            }
            (12, _) => self.set_default(choices, &table, after),
            (13, _) => {
                let group = 1 + choices.below(3) as u16;
                let mut ports = Vec::new();
                for _ in 0..choices.below(4) {
                    let port = 1 + choices.below(5) as u16;
                    if !ports.contains(&port) {
                        ports.push(port);
                    }
                }
                let json = json!({"set_multicast": {"group": group, "ports": ports}});
                after.multicast.insert(group, ports);
                (json, true)
            }
            (14, _) => {
                let group = choices.below(4) as u32;
                let mut members = Vec::new();
                for _ in 0..choices.below(4) {
                    let member = vec![interesting(choices, "", 16), interesting(choices, "", 32)];
                    if !members.contains(&member) {
                        members.push(member);
                    }
                }
                let written: Vec<Value> = members
                    .iter()
                    .map(|member| {
                        let weight = 1 + choices.below(3);
                        json!({"weight": weight, "values": {"x": text(member[0]), "y": text(member[1])}})
                    })
                    .collect();
                let json =
                    json!({"set_group": {"selector": "pool", "group": group, "members": written}});
                let version = serial;
                let made = Group { version, members };
                after.groups.insert(("pool".to_owned(), group), made);
                (json, true)
            }
            _ if choices.chance(20) => {
                entries.clear();
                (json!({"clear": {"table": table.name}}), true)
            }
            _ => self.set_default(choices, &table, after),
        }
    }

    fn set_default(
        &self,
        choices: &mut Choices<'_>,
        table: &Table,
        after: &mut Contents,
    ) -> (Value, bool) {
        if choices.chance(40) {
            match &table.default {
                Some((action, values)) => {
                    let call = oracle_call(&self.made.actions[*action], values);
                    after.defaults.insert(table.name.clone(), call);
                }
                None => {
                    after.defaults.remove(&table.name);
                }
            }
            return (json!({"set_default": {"table": table.name}}), true);
        }
        let action = match &table.default {
            Some((action, _)) if choices.chance(30) => *action,
            _ => choices.pick(&table.actions),
        };
        let values = arguments(choices, &self.made.actions[action].params);
        let written = call(&self.made.actions[action], &values);
        let made = oracle_call(&self.made.actions[action], &values);
        after.defaults.insert(table.name.clone(), made);
        (
            json!({"set_default": {"table": table.name, "default": written}}),
            true,
        )
    }

    fn action(&self, choices: &mut Choices<'_>, table: &Table) -> (usize, Vec<u128>) {
        let action = choices.pick(&table.actions);
        (
            action,
            arguments(choices, &self.made.actions[action].params),
        )
    }

    fn wants(&self, choices: &mut Choices<'_>, pool: &[frames::Made], table: &Table) -> Vec<Want> {
        let frame = &pool[choices.below(pool.len())];
        table
            .key
            .iter()
            .map(|(_, field, bits, kind)| {
                let value = if choices.chance(60) && !field.starts_with("std.out") {
                    oracle::field_of(&self.program, &frame.bytes, field)
                } else {
                    interesting(choices, field, *bits)
                };
                want(choices, value, *bits, kind)
            })
            .collect()
    }

    fn entry(
        &self,
        choices: &mut Choices<'_>,
        table: &Table,
        (wants, priority): (&[Want], i32),
        (action, values): (usize, &[u128]),
    ) -> Value {
        let mut json = call(&self.made.actions[action], values);
        json["table"] = json!(table.name);
        json["key"] = written(choices, table, wants);
        if table.has_priorities() {
            json["priority"] = json!(priority);
        }
        json
    }

    /// Sends a frame through everything.
    pub fn send(&mut self, port: u16, frame: &frames::Made, wire_bytes: u32) {
        let is_new = self.seen.insert((port, frame.bytes.clone()));
        let in_port = PortId::new(port).expect("a port");
        let misses = self.cached.stats().misses;
        let cached = decide(
            &mut self.cached,
            (in_port, &frame.bytes, wire_bytes),
            self.now,
        );
        let is_hit = self.cached.stats().misses == misses;
        if std::env::var_os("ENGINE_ORACLE_REPLAY").is_some() {
            println!(
                "port {port}, a hit: {is_hit}: {:02x?}: {cached:?}",
                frame.bytes
            );
        }
        self.uncached.forget();
        let uncached = decide(
            &mut self.uncached,
            (in_port, &frame.bytes, wire_bytes),
            self.now,
        );
        let incoming = Incoming {
            port,
            bytes: &frame.bytes,
            wire_bytes,
        };
        let expected = self.expected(&incoming, &uncached);
        for hit in &expected.hits {
            *self.hits.entry(*hit).or_default() += 2;
        }
        for (_, index) in &expected.counts {
            *self.counts.entry(*index).or_default() += 2;
        }
        if !expected.has_two_forms {
            let wanted = Seen::from(&expected);
            assert_eq!(
                uncached,
                wanted,
                "uncached, then the oracle: {}",
                self.told(&incoming)
            );
        }
        assert_eq!(
            cached,
            uncached,
            "cached (a hit: {is_hit}), then uncached: {}",
            self.told(&incoming)
        );
        if wire_bytes as usize == frame.bytes.len() {
            let explained = self.explain(in_port, &frame.bytes);
            assert_eq!(
                explained,
                uncached,
                "explained, then uncached: {}",
                self.told(&incoming)
            );
        }
        self.totals.frames += 1;
        self.totals.hits += u64::from(is_hit);
        self.totals.masked_hits += u64::from(is_hit && is_new);
        self.totals.drops += u64::from(expected.drop.is_some());
        self.totals.copies += expected.copies.len() as u64;
        let is_edited = |(_, bytes): &&(To, Vec<u8>)| *bytes != frame.bytes;
        self.totals.edited += expected.copies.iter().filter(is_edited).count() as u64;
        if let Some(checksum) = frame.checksum
            && !self.made.is_delicate
        {
            // Another evaluation of the same frame: it counts in the same way.
            self.send_unfinished(in_port, (&frame.bytes, wire_bytes), checksum, &expected);
        }
    }

    /// What the oracle says, with the engine's choices where there are some.
    fn expected(&mut self, incoming: &Incoming<'_>, seen: &Seen) -> oracle::Outcome {
        self.memory.trial.clear();
        let mut ways = Vec::new();
        let mut fits: Vec<oracle::Outcome> = Vec::new();
        let mut last;
        loop {
            last = oracle::run(&self.program, &self.contents, incoming, &mut self.memory);
            if Seen::from(&last) == *seen {
                ways.push(self.memory.chosen());
                fits.push(last.clone());
            }
            if !self.memory.advance() {
                break;
            }
        }
        self.memory.learn(&ways);
        let counted = |outcome: &oracle::Outcome| (outcome.hits.clone(), outcome.counts.clone());
        let first = fits.first().map(counted);
        self.is_count_uncertain |= fits.iter().any(|fit| Some(counted(fit)) != first);
        fits.into_iter().next().unwrap_or(last)
    }

    /// The same frame, whose checksum its receiver is to finish.
    fn send_unfinished(
        &mut self,
        in_port: PortId,
        (bytes, wire_bytes): (&[u8], u32),
        (start, place): (usize, usize),
        expected: &oracle::Outcome,
    ) {
        let mut unfinished = bytes.to_vec();
        unfinished[place..place + 2].fill(0);
        // The sum of the pseudo-header is what is left of a right checksum without the rest.
        let rest = sum(&unfinished[start..]);
        let whole = u64::from(bytes[place]) << 8 | u64::from(bytes[place + 1]);
        let pseudo = ((0xffff * 2 - whole - rest) % 0xffff) as u16;
        unfinished[place..place + 2].copy_from_slice(&pseudo.to_be_bytes());
        let partial = PartialChecksum {
            start: start as u16,
            at: place as u16,
        };
        self.cached.begin_batch(self.now);
        let info = FrameInfo {
            header: &unfinished,
            frame_bytes: bytes.len() as u32,
            wire_bytes,
            partial_checksum: Some(partial),
        };
        let verdict = self.cached.decide(in_port, &info);
        for hit in &expected.hits {
            *self.hits.entry(*hit).or_default() += 1;
        }
        for (_, index) in &expected.counts {
            *self.counts.entry(*index).or_default() += 1;
        }
        let seen = observe(&self.cached, verdict, &unfinished, Some(partial));
        if !expected.has_two_forms {
            let incoming = Incoming {
                port: in_port.get(),
                bytes: &unfinished,
                wire_bytes,
            };
            assert_eq!(
                seen,
                Seen::from(expected),
                "with an unfinished checksum, then the oracle: {}",
                self.told(&incoming)
            );
        }
        self.totals.unfinished += 1;
    }

    fn explain(&self, port: PortId, bytes: &[u8]) -> Seen {
        let trace = self
            .engine
            .explain((port, bytes), &[], &Numbers, self.now)
            .expect("no change");
        let mut seen = Seen {
            drop: None,
            copies: Vec::new(),
        };
        match trace.outcome {
            control::Outcome::Drop { reason, .. } => seen.drop = Some(reason.name().to_owned()),
            control::Outcome::Deliver { copies } => {
                for copy in copies {
                    if let Some(reason) = copy.to.strip_prefix("drop: ") {
                        seen.drop = Some(reason.to_owned());
                        continue;
                    }
                    let to = match copy.to.strip_prefix("controller: ") {
                        Some(told) => {
                            let (reason, args) = told.split_once('(').expect("arguments");
                            let args = args.trim_end_matches(')').split(", ");
                            let args = args.map(|arg| arg.parse().expect("a number"));
                            To::Controller(reason.to_owned(), args.collect())
                        }
                        None => To::Port(Numbers.id(&copy.to).expect("a port").get()),
                    };
                    let mut out: Vec<u8> = (0..copy.header.len() / 2)
                        .map(|at| {
                            u8::from_str_radix(&copy.header[at * 2..at * 2 + 2], 16).expect("hex")
                        })
                        .collect();
                    out.extend(&bytes[bytes.len().min(256)..]);
                    seen.copies.push((to, out));
                }
            }
        }
        seen
    }

    /// Whether entries and counters have counted what the oracle did.
    pub fn check_counts(&mut self) {
        self.cached.count_all();
        self.uncached.count_all();
        if self.is_count_uncertain {
            return;
        }
        for table in self.made.tables.iter().filter(|table| table.is_counting) {
            let listed = self
                .engine
                .entries(&table.name, (None, 10_000), &Numbers)
                .expect("a table");
            let mut counted: Vec<(i32, u64)> = listed
                .iter()
                .map(|entry| {
                    let frames = entry.counters.expect("it counts").frames;
                    (entry.entry.priority.unwrap_or(0), frames)
                })
                .collect();
            let entries = self.contents.tables.get(&table.name);
            let mut expected: Vec<(i32, u64)> = entries
                .into_iter()
                .flatten()
                .map(|entry| {
                    let frames = self.hits.get(&entry.serial).copied().unwrap_or(0);
                    (entry.priority, frames)
                })
                .collect();
            counted.sort_unstable();
            expected.sort_unstable();
            assert_eq!(
                counted, expected,
                "frames of {}: {:#}",
                table.name, self.made.json
            );
        }
        let counted = self.engine.counters("seen", 0, 100).expect("an array");
        let mut counted: Vec<(u128, u64)> = counted
            .iter()
            .map(|(index, counts)| (u128::from(*index), counts.frames))
            .collect();
        let mut expected: Vec<(u128, u64)> = self
            .counts
            .iter()
            .map(|(index, frames)| (*index, *frames))
            .collect();
        counted.sort_unstable();
        expected.sort_unstable();
        assert_eq!(counted, expected, "counters: {:#}", self.made.json);
    }

    /// A case for whoever mends it.
    fn told(&self, incoming: &Incoming<'_>) -> String {
        let frame: String = incoming
            .bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let trace = self.engine.explain(
            (PortId::new(incoming.port).expect("a port"), incoming.bytes),
            &[],
            &Numbers,
            self.now,
        );
        let trace = trace.map(|trace| serde_json::to_string(&trace).unwrap_or_default());
        format!(
            "port {} frame {frame} wire {}\n{}\n{:?}\n{trace:?}",
            incoming.port, incoming.wire_bytes, self.made.json, self.contents
        )
    }
}

impl Table {
    fn has_priorities(&self) -> bool {
        let kinds = ["ternary", "range", "optional"];
        self.key.iter().any(|(.., kind)| kinds.contains(kind))
    }
}

fn oracle_call(action: &programs::Action, values: &[u128]) -> Call {
    Call {
        action: action.name.clone(),
        params: action
            .params
            .iter()
            .zip(values)
            .map(|((name, _), &value)| (name.clone(), value))
            .collect(),
    }
}

fn largest(bits: u16) -> u128 {
    crate::bytes::cut(u128::MAX, bits)
}

fn want(choices: &mut Choices<'_>, value: u128, bits: u16, kind: &str) -> Want {
    let whole = Want::Bits {
        value,
        mask: largest(bits),
    };
    let prefix = |length: usize| {
        let mask = largest(bits) & !(largest(bits).checked_shr(length as u32).unwrap_or(0));
        Want::Bits {
            value: value & mask,
            mask,
        }
    };
    match kind {
        "exact" => whole,
        "optional" if choices.chance(30) => Want::Any,
        "optional" => whole,
        "lpm" => match choices.below(bits as usize + 1) {
            0 => Want::Any,
            length => prefix(length),
        },
        "ternary" => match choices.below(5) {
            0 => Want::Any,
            1 => prefix(1 + choices.below(bits.into())),
            2..=3 => {
                let mask = choices.number(bits) | 1;
                Want::Bits {
                    value: value & mask,
                    mask,
                }
            }
            _ => whole,
        },
        _ => match choices.below(4) {
            0 => Want::Any,
            1 => Want::Range {
                low: value,
                high: value,
            },
            _ => {
                let other = interesting(choices, "", bits);
                let (low, high) = (value.min(other), value.max(other));
                if low == 0 && high == largest(bits) {
                    return Want::Any;
                }
                Want::Range { low, high }
            }
        },
    }
}

/// A key in one of the ways that people write it.
fn written(choices: &mut Choices<'_>, table: &Table, wants: &[Want]) -> Value {
    let mut key = Map::new();
    for ((name, _, bits, kind), want) in table.key.iter().zip(wants) {
        let is_object = choices.chance(50);
        let json = match *want {
            Want::Any => continue,
            Want::Range { low, high } if low == high && is_object => text(low),
            Want::Range { low, high } if is_object => {
                json!({"low": text(low), "high": text(high)})
            }
            Want::Range { low, high } => json!(format!("{low}..{high}")),
            Want::Bits { value, mask } if mask == largest(*bits) => text(value),
            Want::Bits { value, mask } => {
                let ones = mask.count_ones();
                let is_prefix = mask.trailing_zeros() + ones == u32::from(*bits);
                match (is_prefix && (is_object || *kind == "lpm"), is_object) {
                    (true, true) => json!({"value": text(value), "prefix_bits": ones}),
                    (true, false) => json!(format!("{value:#x}/{ones}")),
                    (false, true) => json!({"value": text(value), "mask": text(mask)}),
                    (false, false) => json!(format!("{value:#x}&{mask:#x}")),
                }
            }
        };
        key.insert(name.clone(), json);
    }
    Value::Object(key)
}

fn decide(
    pipeline: &mut EnginePipeline,
    (port, bytes, wire_bytes): (PortId, &[u8], u32),
    now: Millis,
) -> Seen {
    pipeline.begin_batch(now);
    let info = FrameInfo {
        header: bytes,
        frame_bytes: bytes.len() as u32,
        wire_bytes,
        partial_checksum: None,
    };
    let verdict = pipeline.decide(port, &info);
    observe(pipeline, verdict, bytes, None)
}

/// What leaves, as bytes.
pub fn observe(
    pipeline: &EnginePipeline,
    verdict: Verdict,
    bytes: &[u8],
    partial: Option<PartialChecksum>,
) -> Seen {
    let outcomes = pipeline.outcomes();
    let leave = |edit: HeaderEdit| {
        let list = match edit {
            HeaderEdit::NONE => return finished(bytes.to_vec(), partial),
            HeaderEdit::List(list) => outcomes.edit_list(list).expect("of this batch"),
            HeaderEdit::Vlan(_) => panic!("programs edit by lists"),
        };
        let copied = bytes.len().min(256);
        let mut buffer = bytes[..copied].to_vec();
        buffer.resize(copied + 96, 0xee);
        let mut edited = EditedFrame {
            buffer: &mut buffer,
            header_bytes: copied,
            frame_bytes: bytes.len(),
            partial_checksum: partial,
        };
        list.apply(&mut edited).expect("it fits");
        let (header_bytes, frame_bytes) = (edited.header_bytes, edited.frame_bytes);
        let partial = edited.partial_checksum;
        buffer.truncate(header_bytes);
        buffer.extend(&bytes[copied..]);
        assert_eq!(buffer.len(), frame_bytes, "the length that is told");
        finished(buffer, partial)
    };
    let mut seen = Seen {
        drop: None,
        copies: Vec::new(),
    };
    match verdict {
        Verdict::Drop(reason) => seen.drop = Some(reason.name().to_owned()),
        Verdict::Output { port, edit } => seen.copies.push((To::Port(port.get()), leave(edit))),
        Verdict::Flood(_) => panic!("programs flood to groups"),
        Verdict::Copies(copies) => {
            for copy in outcomes.copies(copies) {
                let to = match copy.target {
                    Target::Drop(reason) => {
                        seen.drop = Some(reason.name().to_owned());
                        continue;
                    }
                    Target::Port(port) => To::Port(port.get()),
                    Target::Controller(punt) => {
                        let punt = outcomes.punt(punt).expect("of this batch");
                        let reasons = pipeline.engine().punt_reasons();
                        To::Controller(
                            reasons[usize::from(punt.reason.0)].clone(),
                            punt.args.to_vec(),
                        )
                    }
                };
                seen.copies.push((to, leave(copy.edit)));
            }
        }
    }
    seen
}

/// Finishes a checksum, as the receiver does.
fn finished(mut bytes: Vec<u8>, partial: Option<PartialChecksum>) -> Vec<u8> {
    if let Some(PartialChecksum { start, at }) = partial {
        let (start, at) = (usize::from(start), usize::from(at));
        let mut checksum = ((0xffff - sum(&bytes[start..])) % 0xffff) as u16;
        if checksum == 0 && at == start + 6 {
            checksum = 0xffff;
        }
        bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    bytes
}
