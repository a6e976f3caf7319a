//! From the store to the engine: at the start everything, after a failed commit what the failed batches touched.
use super::changes::{Changes, Outcome};
use super::engine::TableEngine;
use super::identity::Identity;
use super::port_names::{NamesOfBatch, PortRegistry};
use super::quota::Holdings;
use super::record::read_record;
use super::store::{Aside, Store, StoreError, decode, encode};
use super::writer::{Shapes, identity_of, setting_of};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{SyncSender, sync_channel};
use switch_core::Millis;
use switch_core::engine::control::{EntryName, PortNames, Update, WriteError};

/// Entries that the engine is given at once.
const CHUNK: usize = 5_000;
/// Chunks that are read ahead of the engine.
const READ_AHEAD: usize = 2;

/// What a start found in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Entries that are in place.
    pub entries: usize,
    /// Settings that are in place.
    pub settings: usize,
    /// What does not fit the program, and is kept aside.
    pub aside: usize,
}

/// What entries are restored into.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The key of every table.
    pub shapes: &'a Shapes,
    /// The time.
    pub now: Millis,
    /// The engine has all entries already: they are only counted.
    pub has_entries: bool,
}

struct Restore<'a> {
    engine: &'a dyn TableEngine,
    shapes: &'a Shapes,
    names: NamesOfBatch<'a>,
    now: Millis,
    has_entries: bool,
    restored: Restored,
    aside: Vec<Aside>,
    changes: Changes,
}

/// Gives the engine all that the store has. What does not fit is put aside in the store.
pub fn restore(
    store: &Store,
    engine: &dyn TableEngine,
    registry: &PortRegistry,
    place: Place<'_>,
) -> Result<(Holdings, Restored), StoreError> {
    let mut restore = Restore {
        engine,
        shapes: place.shapes,
        names: NamesOfBatch::new(registry),
        now: place.now,
        has_entries: place.has_entries,
        restored: Restored::default(),
        aside: vec![],
        changes: Changes::default(),
    };
    while store.has_journal() {
        store.fold()?;
    }
    let was_aside = store.aside()?;
    for (name, update) in store.settings()? {
        restore.setting(name, update);
    }
    let mut holdings = Holdings::default();
    std::thread::scope(|scope| {
        let (chunks, read) = sync_channel(READ_AHEAD);
        let reader = scope.spawn(move || read_entries(store, &chunks));
        for chunk in read {
            restore.entries(chunk, &mut holdings)?;
        }
        reader
            .join()
            .unwrap_or_else(|_| Err(StoreError::Content("its reader had panicked".to_owned())))
    })?;
    restore.has_entries = false;
    for aside in was_aside.iter().cloned() {
        restore.again(aside, &mut holdings)?;
    }
    let Restore {
        aside,
        changes,
        mut restored,
        ..
    } = restore;
    if !changes.is_empty() || aside != was_aside {
        store.commit_aside(&changes, &aside)?;
    }
    restored.aside = aside.len();
    Ok((holdings, restored))
}

type Chunk = Vec<(Identity, Update)>;

/// Reads every entry, one chunk while the engine takes another.
fn read_entries(store: &Store, chunks: &SyncSender<Chunk>) -> Result<(), StoreError> {
    let mut chunk = vec![];
    // Nobody takes them any more when the other side has failed.
    store.for_each_entry(|identity, record| {
        let entry = read_record(record)?;
        chunk.push((Identity::from_bytes(identity), Update::Put(entry)));
        if chunk.len() >= CHUNK {
            let _ = chunks.send(std::mem::take(&mut chunk));
        }
        Ok(())
    })?;
    let _ = chunks.send(chunk);
    Ok(())
}

impl Restore<'_> {
    fn write(&self, updates: &[Update]) -> Result<(), WriteError> {
        if self.has_entries {
            return Ok(());
        }
        self.engine.restore(updates, &self.names, self.now)
    }

    fn setting(&mut self, name: String, update: Update) {
        match self.write(std::slice::from_ref(&update)) {
            Ok(()) => self.restored.settings += 1,
            Err(error) => {
                self.changes.set(name, None);
                self.put_aside(update, &error);
            }
        }
    }

    /// All that fit: after each that does not, the rest is tried again, so that each is looked at twice at most.
    fn entries(&mut self, chunk: Chunk, holdings: &mut Holdings) -> Result<(), StoreError> {
        let (stored, updates): (Vec<_>, Vec<_>) = chunk.into_iter().unzip();
        let mut misfits = BTreeMap::new();
        let mut from = 0;
        while from < updates.len() {
            let rest = updates.get(from..).unwrap_or_default();
            let Err(error) = self.write(rest) else { break };
            let fit = error.index.min(rest.len() - 1);
            // What stands before the fault is good by itself; should it not be, it is at fault too.
            match self.write(rest.get(..fit).unwrap_or_default()) {
                Ok(()) => {
                    misfits.insert(from + fit, error);
                    from += fit + 1;
                }
                Err(error) => {
                    misfits.insert(from, error);
                    from += 1;
                }
            }
        }
        for (index, (stored, update)) in stored.into_iter().zip(updates).enumerate() {
            match misfits.remove(&index) {
                Some(error) => {
                    self.changes.remove(&stored);
                    self.put_aside(update, &error);
                }
                None => self.took(Some(stored), &update, holdings)?,
            }
        }
        Ok(())
    }

    /// What was aside, unless something else has its place now.
    fn again(&mut self, aside: Aside, holdings: &mut Holdings) -> Result<(), StoreError> {
        let update = match aside.update.clone() {
            Update::Put(entry) => Update::Insert(entry),
            other => other,
        };
        match self.write(std::slice::from_ref(&update)) {
            Err(error) => self.put_aside(aside.update, &error),
            Ok(()) => match setting_of(&update) {
                Some((name, set)) => {
                    let json = set.then(|| encode(&update)).transpose()?;
                    self.changes.set(name, json);
                    self.restored.settings += 1;
                }
                None => self.took(None, &update, holdings)?,
            },
        }
        Ok(())
    }

    /// The engine has an entry: counts it, and moves it in the store when the program has given its key another shape.
    fn took(
        &mut self,
        stored: Option<Identity>,
        update: &Update,
        holdings: &mut Holdings,
    ) -> Result<(), StoreError> {
        let (Update::Put(entry) | Update::Insert(entry)) = update else {
            return Ok(());
        };
        self.restored.entries += 1;
        let identity = identity_of(entry.into(), self.shapes, &self.names)
            .map_err(|error| StoreError::Content(error.to_string()))?;
        if !self.engine.counts_tenants() {
            holdings.adopt(&identity, entry.tenant.as_deref());
        }
        if stored.as_ref() != Some(&identity) {
            if let Some(stored) = stored {
                self.changes.remove(&stored);
            }
            self.changes.put(&identity, entry);
        }
        Ok(())
    }

    fn put_aside(&mut self, update: Update, error: &WriteError) {
        let reason = format!("{}: {}", error.place, error.reason);
        self.aside.push(Aside { update, reason });
    }
}

/// What puts the engine back to what the store has, after these changes took effect in it and could not be stored.
pub fn take_back(store: &Store, changes: &Changes) -> Result<Vec<Update>, StoreError> {
    let journal = store.journal()?;
    let mut stored = Outcome::default();
    for row in &journal {
        stored.add(row)?;
    }
    let mut refused = Outcome::default();
    refused.add(changes.journal())?;
    let mut back = vec![];
    for prefix in &refused.cleared {
        let table = prefix.get(1..).unwrap_or_default();
        back.push(Update::Clear {
            table: String::from_utf8_lossy(table).into_owned(),
        });
        for (identity, record) in store.entries_of(prefix)? {
            if !stored.has_cleared(&identity) && !stored.entries.contains_key(&identity[..]) {
                back.push(Update::Put(read_record(&record)?));
            }
        }
        for (_, record) in stored
            .entries
            .iter()
            .filter(|(identity, _)| identity.starts_with(prefix))
        {
            if let Some(record) = record {
                back.push(Update::Put(read_record(record)?));
            }
        }
    }
    for (identity, record) in &refused.entries {
        if refused.has_cleared(identity) {
            continue;
        }
        let was = match stored.entries.get(identity) {
            Some(was) => was.map(<[u8]>::to_vec),
            None if stored.has_cleared(identity) => None,
            None => store.entry(identity)?,
        };
        match (was, record) {
            (Some(was), _) => back.push(Update::Put(read_record(&was)?)),
            (None, Some(record)) => {
                let entry = read_record(record)?;
                back.push(Update::Delete(EntryName {
                    table: entry.table,
                    key: entry.key,
                    priority: entry.priority,
                }));
            }
            (None, None) => {}
        }
    }
    let settings = store.settings()?;
    let mut set = BTreeMap::new();
    for (name, json) in changes.settings() {
        if let Some(json) = json {
            set.insert(name.clone(), reset(&decode(json)?));
        } else if let Some(was) = settings.get(name) {
            set.insert(name.clone(), was.clone());
        }
    }
    for (name, reset) in set {
        back.push(settings.get(&name).cloned().unwrap_or(reset));
    }
    Ok(back)
}

/// The update that takes a setting back to what the program says.
fn reset(update: &Update) -> Update {
    let mut update = update.clone();
    match &mut update {
        Update::SetDefault { default, .. } => *default = None,
        Update::SetMulticast { ports, .. } => ports.clear(),
        Update::SetGroup { members, .. } => members.clear(),
        Update::SetMeter { rate, .. } => *rate = None,
        _ => {}
    }
    update
}

/// The names of ports that the engine's entries and groups mean, as far as they are written as text.
pub fn meant_names(engine: &dyn TableEngine, ports: &dyn PortNames) -> BTreeSet<String> {
    use switch_core::engine::literal::Literal;
    use switch_core::engine::model::KeyMatch;
    let mut meant = BTreeSet::new();
    let mut mean = |literal: &Literal| {
        if let Literal::Text(text) = literal {
            meant.insert(text.clone());
        }
    };
    for table in engine.tables(ports) {
        for literal in table
            .default_action
            .iter()
            .flat_map(|call| call.params.values())
        {
            mean(literal);
        }
        let mut after = None;
        while let Ok(page) = engine.entries(&table.name, after, CHUNK, ports) {
            let Some(last) = page.last() else { break };
            after = Some(last.handle);
            for listed in &page {
                listed.entry.params.values().for_each(&mut mean);
                for matched in listed.entry.key.values() {
                    if let KeyMatch::Text(literal) = matched {
                        mean(literal);
                    }
                }
            }
        }
    }
    for group in engine.groups(ports) {
        for member in group.members {
            member.values.values().for_each(&mut mean);
        }
    }
    for group in engine.multicast(ports) {
        group.ports.iter().for_each(&mut mean);
    }
    meant
}
