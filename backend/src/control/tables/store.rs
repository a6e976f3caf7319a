//! The durable copy of everything that operators put into tables: one file, `tables.redb`, in the state folder.
//!
//! Written by the thread that changes tables, and for ports by the control thread; read at the start. A transaction is on the
//! disk (fsync) before its commit returns; killed at any moment, the file has every transaction whole or not at all.
//!
//! | table | key | value |
//! |---|---|---|
//! | `entries` | [`Identity`](super::identity::Identity) | the entry's [record](super::record) |
//! | `journal` | number | changes of entries that are not yet in `entries`, in their order |
//! | `settings` | what is set, such as `meter/rate/7` | the update that sets it, as JSON |
//! | `ports` | port name | its number |
//! | `aside` | number | what does not fit the program, with the reason, as JSON |
//! | `documents` | `services` | the configuration of the services, as JSON |
//! | `port_changes`, `offers`, `devices` | port or device name | see [rows](super::rows), as JSON |
//! | `meta` | `format` | version of all this |
//!
//! A commit appends to the journal, so that it costs what its changes are long, wherever in a table of a million they fall. From
//! there they go to `entries` many at a time, when no commit waits ([`Store::fold`]).
use super::super::PortId;
use super::changes::{Changes, Outcome};
use super::port_names::SavedName;
use super::rows::write_rows;
use crate::config::PortName;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use switch_core::engine::control::Update;
use utoipa::ToSchema;

const ENTRIES: TableDefinition<&[u8], &[u8]> = TableDefinition::new("entries");
const JOURNAL: TableDefinition<u64, &[u8]> = TableDefinition::new("journal");
const SETTINGS: TableDefinition<&str, &[u8]> = TableDefinition::new("settings");
const PORTS: TableDefinition<&str, u16> = TableDefinition::new("ports");
const ASIDE: TableDefinition<u64, &[u8]> = TableDefinition::new("aside");
const DOCUMENTS: TableDefinition<&str, &[u8]> = TableDefinition::new("documents");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// What this version writes; it also reads the one before, which had JSON for records and no journal.
const FORMAT: u64 = 2;
/// Journal that one transaction folds: what it takes in memory is a few times that.
const FOLD_BYTES: usize = 16 * 1024 * 1024;
/// Journal that is folded although commits wait.
const MAX_JOURNAL_BYTES: usize = 128 * 1024 * 1024;
/// Pages kept in memory: what a large batch touches; the rest is the kernel's page cache.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// The file's name in the state folder.
pub const FILE_NAME: &str = "tables.redb";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder.
    #[error("state folder {}: {source}; make it writable for the daemon's user, or name another with --state-dir", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("{} is in use by another process; give each daemon a state folder of its own", .0.display())]
    InUse(PathBuf),
    /// It is of another version.
    #[error(
        "the store has format {0}, and this version knows {FORMAT}; use the version that wrote it, or move the file away"
    )]
    Format(u64),
    /// What it has cannot be read.
    #[error(
        "the store cannot be read: {0}; restore it from a copy, or move the file away to start without entries"
    )]
    Content(String),
    /// A transaction failed.
    #[error("the store cannot be written: {0}; look at the disk, then start the switch again")]
    Transaction(#[from] redb::Error),
}

macro_rules! into_transaction {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Transaction(error.into())
            }
        }
    )*};
}
into_transaction!(
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);

/// What does not fit the program that runs: kept, reported, tried again at the next start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Aside {
    /// What was to be done.
    pub update: Update,
    /// Why it could not be.
    pub reason: String,
}

/// An entry as it lies in the store: its identity and its record.
pub type StoredEntry = (Vec<u8>, Vec<u8>);

/// An open store.
#[derive(Debug)]
pub struct Store {
    pub(super) database: Database,
    /// Bytes of the journal.
    journal_bytes: AtomicUsize,
}

impl Store {
    /// Opens the store in a folder; both are made when absent, for the daemon's user alone.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let refused = |source| StoreError::Folder {
            folder: folder.to_owned(),
            source,
        };
        if !folder.is_dir() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(refused)?;
        }
        let path = folder.join(FILE_NAME);
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(refused)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(refused)?;
        drop(file);
        let database = builder().create(&path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.clone()),
            other => StoreError::Content(other.to_string()),
        })?;
        Self::with(database)
    }

    /// A store over anything; tests make one whose writes fail.
    #[doc(hidden)]
    pub fn over(backend: impl StorageBackend) -> Result<Self, StoreError> {
        let database = builder()
            .create_with_backend(backend)
            .map_err(|error| StoreError::Content(error.to_string()))?;
        Self::with(database)
    }

    fn with(database: Database) -> Result<Self, StoreError> {
        let store = Self {
            database,
            journal_bytes: AtomicUsize::new(0),
        };
        let transaction = store.begin()?;
        {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get("format")?.map(|value| value.value());
            match found {
                None | Some(1) => drop(meta.insert("format", FORMAT)?),
                Some(FORMAT) => {}
                Some(other) => return Err(StoreError::Format(other)),
            }
            transaction.open_table(ENTRIES)?;
            for row in transaction.open_table(JOURNAL)?.iter()? {
                let bytes = row?.1.value().len();
                store.journal_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            transaction.open_table(SETTINGS)?;
            transaction.open_table(PORTS)?;
            transaction.open_table(ASIDE)?;
            transaction.open_table(DOCUMENTS)?;
        }
        transaction.commit()?;
        Ok(store)
    }

    pub(super) fn begin(&self) -> Result<WriteTransaction, StoreError> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        Ok(transaction)
    }

    /// Makes changes durable, all or none.
    pub fn commit(&self, changes: &Changes, names: &[SavedName]) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        write_changes(&transaction, changes)?;
        write_rows(&transaction, changes.rows())?;
        write_names(&transaction, names)?;
        transaction.commit()?;
        self.journal_bytes
            .fetch_add(changes.journal().len(), Ordering::Relaxed);
        Ok(())
    }

    /// Whether there is a journal to fold.
    pub fn has_journal(&self) -> bool {
        self.journal_bytes.load(Ordering::Relaxed) > 0
    }

    /// Whether the journal is so long that it is to be folded before it grows.
    pub fn is_journal_long(&self) -> bool {
        self.journal_bytes.load(Ordering::Relaxed) > MAX_JOURNAL_BYTES
    }

    /// Moves the beginning of the journal to where its entries belong.
    pub fn fold(&self) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        let mut rows = vec![];
        let mut bytes = 0;
        {
            let mut journal = transaction.open_table(JOURNAL)?;
            while bytes < FOLD_BYTES
                && let Some((_, row)) = journal.pop_first()?
            {
                bytes += row.value().len();
                rows.push(row.value().to_vec());
            }
        }
        write_outcome(&transaction, &rows)?;
        transaction.commit()?;
        self.journal_bytes.fetch_sub(
            bytes.min(self.journal_bytes.load(Ordering::Relaxed)),
            Ordering::Relaxed,
        );
        Ok(())
    }

    /// Replaces what is kept aside, in one transaction with changes.
    pub fn commit_aside(&self, changes: &Changes, aside: &[Aside]) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        write_changes(&transaction, changes)?;
        transaction.delete_table(ASIDE)?;
        {
            let mut table = transaction.open_table(ASIDE)?;
            for (number, aside) in (0u64..).zip(aside) {
                table.insert(number, encode(aside)?.as_slice())?;
            }
        }
        transaction.commit()?;
        self.journal_bytes
            .fetch_add(changes.journal().len(), Ordering::Relaxed);
        Ok(())
    }

    /// A document: what belongs to no table, and is set as a whole.
    pub fn document(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(DOCUMENTS)?;
        Ok(table.get(name)?.map(|text| text.value().to_vec()))
    }

    /// Makes a document durable, in place of the one of this name.
    pub fn set_document(&self, name: &str, text: &[u8]) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        transaction.open_table(DOCUMENTS)?.insert(name, text)?;
        Ok(transaction.commit()?)
    }

    /// Every port name with its number.
    pub fn port_names(&self) -> Result<Vec<(PortName, PortId)>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(PORTS)?;
        let mut names = vec![];
        for row in table.iter()? {
            let (name, id) = row?;
            if let (Ok(name), Some(id)) = (PortName::parse(name.value()), PortId::new(id.value())) {
                names.push((name, id));
            }
        }
        Ok(names)
    }

    /// Calls `each` with every entry that is in its place, as its identity and its record, by ascending identity. To be called when
    /// the journal is folded.
    pub fn for_each_entry(
        &self,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(ENTRIES)?;
        for row in table.iter()? {
            let (identity, record) = row?;
            each(identity.value(), record.value())?;
        }
        Ok(())
    }

    /// Every setting.
    pub fn settings(&self) -> Result<BTreeMap<String, Update>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(SETTINGS)?;
        let mut settings = BTreeMap::new();
        for row in table.iter()? {
            let (name, json) = row?;
            settings.insert(name.value().to_owned(), decode(json.value())?);
        }
        Ok(settings)
    }

    /// What is kept aside.
    pub fn aside(&self) -> Result<Vec<Aside>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(ASIDE)?;
        table
            .iter()?
            .map(|row| decode(row?.1.value()))
            .collect::<Result<Vec<_>, _>>()
    }

    /// The entries that are not in their places yet, as rows of the journal in their order.
    pub fn journal(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(JOURNAL)?;
        table
            .iter()?
            .map(|row| Ok(row?.1.value().to_vec()))
            .collect()
    }

    /// An entry's record, as far as the journal says nothing of it.
    pub fn entry(&self, identity: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(ENTRIES)?;
        Ok(table.get(identity)?.map(|record| record.value().to_vec()))
    }

    /// Identity and record of every entry whose identity begins with `prefix`, as far as the journal says nothing of them.
    pub fn entries_of(&self, prefix: &[u8]) -> Result<Vec<StoredEntry>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(ENTRIES)?;
        let mut entries = vec![];
        for row in table.range(prefix..)? {
            let (identity, record) = row?;
            if !identity.value().starts_with(prefix) {
                break;
            }
            entries.push((identity.value().to_vec(), record.value().to_vec()));
        }
        Ok(entries)
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn write_changes(transaction: &WriteTransaction, changes: &Changes) -> Result<(), StoreError> {
    if !changes.journal().is_empty() {
        let mut journal = transaction.open_table(JOURNAL)?;
        let last = journal.last()?.map(|(number, _)| number.value());
        let number = last.map_or(0, |last| last.wrapping_add(1));
        journal.insert(number, changes.journal())?;
    }
    let mut settings = transaction.open_table(SETTINGS)?;
    for (name, json) in changes.settings() {
        match json {
            Some(json) => drop(settings.insert(name.as_str(), json.as_slice())?),
            None => drop(settings.remove(name.as_str())?),
        }
    }
    Ok(())
}

/// Puts entries where they belong, by ascending identity.
fn write_outcome(transaction: &WriteTransaction, rows: &[Vec<u8>]) -> Result<(), StoreError> {
    let mut outcome = Outcome::default();
    for row in rows {
        outcome.add(row)?;
    }
    let mut entries = transaction.open_table(ENTRIES)?;
    for prefix in outcome.cleared {
        let end = prefix_end(prefix);
        entries.retain_in(prefix..end.as_slice(), |_, _| false)?;
    }
    for (identity, record) in outcome.entries {
        match record {
            Some(record) => drop(entries.insert(identity, record)?),
            None => drop(entries.remove(identity)?),
        }
    }
    Ok(())
}

/// The first bytes after all that begin with `prefix`, which begins with a length below 255.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

fn write_names(transaction: &WriteTransaction, names: &[SavedName]) -> Result<(), StoreError> {
    let mut table = transaction.open_table(PORTS)?;
    for (name, id) in names {
        match id {
            Some(id) => table.insert(name.as_str(), id.get())?,
            None => table.remove(name.as_str())?,
        };
    }
    Ok(())
}

/// As the store keeps it.
pub(in crate::control) fn encode(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Content(error.to_string()))
}

/// From what the store kept.
pub(in crate::control) fn decode<T: for<'a> Deserialize<'a>>(json: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(json).map_err(|error| StoreError::Content(error.to_string()))
}
