//! A match-action engine that matches nothing: it keeps entries and settings, and refuses what a real one would.
use ringswitch::control::tables::engine::{
    ListedConnection, ListedCounter, ListedGroup, ListedMeter, ListedMulticast, Question,
};
use ringswitch::control::tables::identity::Identity;
use ringswitch::control::tables::{KeyShape, TableEngine};
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use switch_core::engine::control::{
    EntryName, ListedEntry, ListedTable, Outcome, PortNames, TableEntry, Trace, TraceStep, Update,
    WriteError, WriteErrorKind,
};
use switch_core::engine::literal::Literal;
use switch_core::engine::model::{ActionCall, Format, Program};
use switch_core::{DropReason, Millis};

/// `acl` has priorities, `routes` prefixes, `stations` is exact.
pub const PROGRAM: &str = r#"{
  "name": "fake",
  "actions": [
    {"name": "allow", "params": [{"name": "mark", "bits": 32}], "do": []},
    {"name": "forward", "params": [{"name": "port", "bits": 16, "format": "port"}], "do": []}
  ],
  "tables": [
    {"name": "acl", "description": "What may pass.", "size": 1000, "actions": ["allow"], "key": [
      {"field": "std.in_port", "name": "port", "match": "optional"},
      {"field": "ipv4.protocol", "name": "protocol", "match": "ternary"},
      {"field": "ipv4.dst", "name": "dst", "match": "ternary"},
      {"field": "tcp.dst_port", "name": "dst_port", "match": "range"}]},
    {"name": "routes", "size": 4194304, "actions": ["forward"], "key": [{"field": "ipv4.dst", "name": "dst", "match": "lpm"}]},
    {"name": "stations", "size": 4194304, "actions": ["forward"], "key": [{"field": "ethernet.dst", "name": "mac", "match": "exact"}]}
  ],
  "ingress": []
}"#;

pub struct FakeEngine {
    program: Program,
    shapes: BTreeMap<String, Vec<KeyShape>>,
    state: Mutex<State>,
}

#[derive(Clone, Default)]
struct State {
    entries: HashMap<Identity, (u64, TableEntry)>,
    by_table: BTreeMap<(String, u64), Identity>,
    next: u64,
    defaults: BTreeMap<String, ActionCall>,
    multicast: BTreeMap<u16, ListedMulticast>,
    groups: BTreeMap<(String, u32), ListedGroup>,
    meters: BTreeMap<(String, u32), ListedMeter>,
    expired: Vec<EntryName>,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self::without(&[])
    }
}

impl FakeEngine {
    /// Of a program that lacks some tables.
    pub fn without(tables: &[&str]) -> Self {
        let mut program: Program = serde_json::from_str(PROGRAM).unwrap();
        program
            .tables
            .retain(|table| !tables.contains(&table.name.as_str()));
        let shape = |key: &switch_core::engine::model::KeyDecl| {
            let (bits, format) = match key.field.as_str() {
                "std.in_port" => (16, Format::Port),
                "ipv4.protocol" => (8, Format::Number),
                "ipv4.dst" => (32, Format::Ipv4),
                "tcp.dst_port" => (16, Format::Number),
                "ethernet.dst" => (48, Format::Mac),
                other => panic!("{other}"),
            };
            KeyShape {
                name: key.name.clone().unwrap(),
                kind: key.kind,
                bits,
                format,
            }
        };
        let shapes = program
            .tables
            .iter()
            .map(|table| (table.name.clone(), table.key.iter().map(shape).collect()))
            .collect();
        Self {
            program,
            shapes,
            state: Mutex::default(),
        }
    }

    /// Has an entry's time be over at the next look.
    pub fn let_expire(&self, name: EntryName) {
        self.state.lock().unwrap().expired.push(name);
    }

    fn apply(
        &self,
        state: &mut State,
        (index, update): (usize, &Update),
        ports: &dyn PortNames,
    ) -> Result<(), WriteError> {
        let refuse = |place: &str, kind, reason: &str| {
            Err(WriteError {
                index,
                place: place.to_owned(),
                kind,
                reason: reason.to_owned(),
                remedy: "write another".to_owned(),
            })
        };
        let identity = |entry: ringswitch::control::tables::identity::Named<'_>| {
            let shape = self
                .shapes
                .get(entry.table)
                .ok_or(("table".to_owned(), "there is no such table".to_owned()))?;
            Identity::of(entry, shape, ports).map_err(|error| (error.place, error.reason))
        };
        let table_decl = |name: &str| self.program.tables.iter().find(|table| table.name == name);
        match update {
            Update::Insert(entry) | Update::Modify(entry) | Update::Put(entry) => {
                let identity = match identity(entry.into()) {
                    Ok(identity) => identity,
                    Err((place, reason)) => {
                        return refuse(&place, WriteErrorKind::Invalid, &reason);
                    }
                };
                let table = table_decl(&entry.table).unwrap();
                if !table.actions.contains(&entry.action) {
                    return refuse(
                        "action",
                        WriteErrorKind::Invalid,
                        "the table has no such action",
                    );
                }
                if let Some(Literal::Text(port)) = entry.params.get("port")
                    && ports.id(port).is_none()
                {
                    return refuse(
                        "params.port",
                        WriteErrorKind::Full,
                        "no port number is left",
                    );
                }
                let old = state.entries.get(&identity).map(|(handle, _)| *handle);
                match (update, old) {
                    (Update::Insert(_), Some(_)) => {
                        return refuse("key", WriteErrorKind::AlreadyExists, "the entry is there");
                    }
                    (Update::Modify(_), None) => {
                        return refuse("key", WriteErrorKind::NotFound, "there is no such entry");
                    }
                    _ => {}
                }
                if old.is_none()
                    && table.size < 10_000
                    && state.count(&entry.table) >= table.size as usize
                {
                    return refuse("table", WriteErrorKind::Full, "the table is full");
                }
                let handle = old.unwrap_or_else(|| {
                    state.next += 1;
                    state.next
                });
                state
                    .by_table
                    .insert((entry.table.clone(), handle), identity.clone());
                state.entries.insert(identity, (handle, entry.clone()));
            }
            Update::Delete(name) => {
                let identity = match identity(name.into()) {
                    Ok(identity) => identity,
                    Err((place, reason)) => {
                        return refuse(&place, WriteErrorKind::Invalid, &reason);
                    }
                };
                let Some((handle, _)) = state.entries.remove(&identity) else {
                    return refuse("key", WriteErrorKind::NotFound, "there is no such entry");
                };
                state.by_table.remove(&(name.table.clone(), handle));
            }
            Update::Clear { table } => {
                let handles: Vec<_> = state
                    .of_table(table)
                    .map(|(key, identity)| (key.clone(), identity.clone()))
                    .collect();
                for (key, identity) in handles {
                    state.by_table.remove(&key);
                    state.entries.remove(&identity);
                }
            }
            Update::SetDefault { table, default } => {
                if table_decl(table).is_none() {
                    return refuse("table", WriteErrorKind::NotFound, "there is no such table");
                }
                match default {
                    Some(call) => drop(state.defaults.insert(table.clone(), call.clone())),
                    None => drop(state.defaults.remove(table)),
                }
            }
            Update::SetMulticast { group, ports } => {
                let listed = ListedMulticast {
                    group: *group,
                    ports: ports.clone(),
                };
                state.multicast.insert(*group, listed);
                state.multicast.retain(|_, group| !group.ports.is_empty());
            }
            Update::SetGroup {
                selector,
                group,
                members,
            } => {
                let listed = ListedGroup {
                    selector: selector.clone(),
                    group: *group,
                    members: members.clone(),
                };
                state.groups.insert((selector.clone(), *group), listed);
                state.groups.retain(|_, group| !group.members.is_empty());
            }
            Update::SetMeter { meter, index, rate } => {
                let key = (meter.clone(), *index);
                match rate {
                    Some(rate) => drop(state.meters.insert(
                        key,
                        ListedMeter {
                            meter: meter.clone(),
                            index: *index,
                            rate: *rate,
                        },
                    )),
                    None => drop(state.meters.remove(&key)),
                }
            }
        }
        Ok(())
    }
}

impl State {
    fn of_table(&self, table: &str) -> impl Iterator<Item = (&(String, u64), &Identity)> {
        self.by_table
            .range((table.to_owned(), 0)..=(table.to_owned(), u64::MAX))
    }

    fn count(&self, table: &str) -> usize {
        self.of_table(table).count()
    }
}

impl TableEngine for FakeEngine {
    fn write(
        &self,
        updates: &[Update],
        ports: &dyn PortNames,
        _: Millis,
    ) -> Result<(), WriteError> {
        let mut state = self.state.lock().unwrap();
        // A copy to go back to, where a real engine stages; none for a large load, which is not refused.
        let before = (updates.len() < 1_000 && state.entries.len() < 10_000).then(|| state.clone());
        for update in updates.iter().enumerate() {
            if let Err(error) = self.apply(&mut state, update, ports) {
                *state = before.expect("a large batch that is refused");
                return Err(error);
            }
        }
        Ok(())
    }

    fn tables(&self, _: &dyn PortNames) -> Vec<ListedTable> {
        let state = self.state.lock().unwrap();
        (1..)
            .zip(&self.program.tables)
            .map(|(id, table)| ListedTable {
                name: table.name.clone(),
                id,
                description: table.description.clone(),
                key: table
                    .key
                    .iter()
                    .map(|key| (key.name.clone().unwrap(), key.kind))
                    .collect(),
                actions: table.actions.clone(),
                entries: state.count(&table.name),
                size: table.size as usize,
                default_action: state.defaults.get(&table.name).cloned(),
            })
            .collect()
    }

    fn key(&self, table: &str) -> Option<Vec<KeyShape>> {
        self.shapes.get(table).cloned()
    }

    fn entries(
        &self,
        table: &str,
        after: Option<u64>,
        limit: usize,
        _: &dyn PortNames,
    ) -> Result<Vec<ListedEntry>, WriteError> {
        let state = self.state.lock().unwrap();
        let from = after.map_or(0, |after| after + 1);
        Ok(state
            .by_table
            .range((table.to_owned(), from)..=(table.to_owned(), u64::MAX))
            .take(limit)
            .map(|((_, handle), identity)| ListedEntry {
                handle: *handle,
                entry: state.entries[identity].1.clone(),
                constant: false,
                counters: None,
            })
            .collect())
    }

    /// A trace that says what was asked.
    fn explain(
        &self,
        question: Question<'_>,
        ports: &dyn PortNames,
        _: Millis,
    ) -> Result<Trace, WriteError> {
        let mut state = self.state.lock().unwrap().clone();
        for update in question.what_if.iter().enumerate() {
            self.apply(&mut state, update, ports)?;
        }
        let reason = DropReason::NoDestination;
        Ok(Trace {
            steps: vec![
                TraceStep::Parse {
                    state: "start".into(),
                    header: Some("ethernet".into()),
                    fields: vec![("frame".into(), hex(question.frame))],
                    next: "accept".into(),
                },
                TraceStep::Table {
                    table: "acl".into(),
                    key: vec![(
                        "port".into(),
                        ports.name(question.in_port).unwrap_or_default(),
                    )],
                    entry: None,
                    action: None,
                },
                TraceStep::Condition {
                    condition: "acl entries".into(),
                    holds: state.count("acl") > 0,
                },
            ],
            outcome: Outcome::Drop {
                reason,
                meaning: reason.meaning(),
                advice: reason.advice(),
            },
            looked_at: vec!["ethernet.dst".into()],
        })
    }

    fn expire(&self, now: Millis, ports: &dyn PortNames) -> Vec<EntryName> {
        let names = std::mem::take(&mut self.state.lock().unwrap().expired);
        for name in &names {
            self.write(&[Update::Delete(name.clone())], ports, now)
                .unwrap();
        }
        names
    }

    fn program(&self) -> &Program {
        &self.program
    }

    fn p4info(&self) -> String {
        "pkg_info {\n  name: \"fake\"\n}\n".to_owned()
    }

    fn groups(&self, _: &dyn PortNames) -> Vec<ListedGroup> {
        self.state
            .lock()
            .unwrap()
            .groups
            .values()
            .cloned()
            .collect()
    }

    fn multicast(&self, _: &dyn PortNames) -> Vec<ListedMulticast> {
        self.state
            .lock()
            .unwrap()
            .multicast
            .values()
            .cloned()
            .collect()
    }

    fn meters(&self) -> Vec<ListedMeter> {
        self.state
            .lock()
            .unwrap()
            .meters
            .values()
            .cloned()
            .collect()
    }

    fn counters(&self, counter: &str, from: u32, limit: usize) -> Option<Vec<ListedCounter>> {
        (counter == "c").then(|| {
            (from..3)
                .take(limit)
                .map(|index| ListedCounter {
                    counter: "c".into(),
                    index,
                    frames: 1,
                    bytes: 64,
                })
                .collect()
        })
    }

    fn connections(
        &self,
        from: u32,
        limit: usize,
        _: Millis,
    ) -> (Vec<ListedConnection>, Option<u32>) {
        let connection = |zone| ListedConnection {
            zone,
            flow: "tcp 10.0.0.5:1234 > 10.0.1.9:443".into(),
            state: "established".into(),
            mark: 5,
            expires_in_ms: 1000,
        };
        let last = 3;
        let next = from.saturating_add(limit as u32);
        let page = (from..last.min(next)).map(connection);
        (page.collect(), (next < last).then_some(next))
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
