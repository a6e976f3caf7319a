//! Changes on their way to the store, in the order in which they were made.
//!
//! Those of entries are bytes already: that is how they are kept in the journal, and a large batch needs no room beside them.
use super::identity::{Identity, prefix};
use super::record::{Reader, write_bytes, write_record};
use super::rows::Row;
use super::store::StoreError;
use std::collections::BTreeMap;
use switch_core::engine::control::TableEntry;

const PUT: u8 = 0;
const REMOVE: u8 = 1;
const CLEAR: u8 = 2;

/// Changes of the store.
#[derive(Debug, Default)]
pub struct Changes {
    journal: Vec<u8>,
    settings: Vec<(String, Option<Vec<u8>>)>,
    /// What else is to be durable with them.
    rows: Vec<Row>,
    /// One entry's record, while it is written.
    record: Vec<u8>,
}

/// A place among changes.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    journal: usize,
    settings: usize,
}

impl Changes {
    /// An entry is there, and is this.
    pub fn put(&mut self, identity: &Identity, entry: &TableEntry) {
        self.record.clear();
        write_record(&mut self.record, entry);
        self.journal.push(PUT);
        write_bytes(&mut self.journal, identity.as_bytes());
        write_bytes(&mut self.journal, &self.record);
    }

    /// An entry is not there.
    pub fn remove(&mut self, identity: &Identity) {
        self.journal.push(REMOVE);
        write_bytes(&mut self.journal, identity.as_bytes());
    }

    /// A table has no entries.
    pub fn clear_table(&mut self, table: &str) {
        self.journal.push(CLEAR);
        write_bytes(&mut self.journal, &prefix(table));
    }

    /// A setting is this; `None`: as the program says.
    pub fn set(&mut self, name: String, json: Option<Vec<u8>>) {
        self.settings.push((name, json));
    }

    /// Rows of ports, that are to be durable with the rest or not at all.
    pub fn add_rows(&mut self, rows: Vec<Row>) {
        self.rows.extend(rows);
    }

    /// Those rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.journal.is_empty() && self.settings.is_empty() && self.rows.is_empty()
    }

    /// After all so far.
    pub fn mark(&self) -> Mark {
        Mark {
            journal: self.journal.len(),
            settings: self.settings.len(),
        }
    }

    /// Forgets what came after.
    pub fn truncate(&mut self, mark: Mark) {
        self.journal.truncate(mark.journal);
        self.settings.truncate(mark.settings);
    }

    /// Adds later changes.
    pub fn append(&mut self, later: Self) {
        self.journal.extend(later.journal);
        self.settings.extend(later.settings);
        self.rows.extend(later.rows);
    }

    /// Those of entries, as the journal keeps them.
    pub fn journal(&self) -> &[u8] {
        &self.journal
    }

    /// Those of settings.
    pub fn settings(&self) -> &[(String, Option<Vec<u8>>)] {
        &self.settings
    }
}

/// What changes of entries amount to.
#[derive(Debug, Default)]
pub struct Outcome<'a> {
    /// What the identities of tables begin with that lost all entries before the rest.
    pub cleared: Vec<&'a [u8]>,
    /// By identity, the record of the entry that is there then; `None`: none is.
    pub entries: BTreeMap<&'a [u8], Option<&'a [u8]>>,
}

impl<'a> Outcome<'a> {
    /// Adds what came next in the journal.
    pub fn add(&mut self, journal: &'a [u8]) -> Result<(), StoreError> {
        let mut reader = Reader(journal);
        while !reader.0.is_empty() {
            self.add_one(&mut reader)
                .ok_or_else(|| StoreError::Content("its journal is damaged".to_owned()))?;
        }
        Ok(())
    }

    fn add_one(&mut self, reader: &mut Reader<'a>) -> Option<()> {
        let [kind] = reader.array()?;
        let identity = reader.bytes()?;
        match kind {
            PUT => drop(self.entries.insert(identity, Some(reader.bytes()?))),
            REMOVE => drop(self.entries.insert(identity, None)),
            CLEAR => {
                self.entries.retain(|entry, _| !entry.starts_with(identity));
                self.cleared.push(identity);
            }
            _ => return None,
        }
        Some(())
    }

    /// Whether an entry was in a table that was cleared.
    pub fn has_cleared(&self, identity: &[u8]) -> bool {
        self.cleared
            .iter()
            .any(|prefix| identity.starts_with(prefix))
    }
}
