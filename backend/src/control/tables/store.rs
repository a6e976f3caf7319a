//! The durable copy of everything that operators put into tables: one file, `tables.redb`, in the state folder.
//!
//! Written by the thread that changes tables, and for port numbers by the control thread; read at the start. A transaction is on the
//! disk (fsync) before its commit returns; killed at any moment, the file has every transaction whole or not at all.
//!
//! | table | key | value |
//! |---|---|---|
//! | `entries` | [`Identity`] | the entry as JSON |
//! | `settings` | what is set, such as `meter/rate/7` | the update that sets it, as JSON |
//! | `ports` | port name | its number |
//! | `aside` | number | what does not fit the program, with the reason, as JSON |
//! | `documents` | `services` | the configuration of the services, as JSON |
//! | `meta` | `format` | version of all this |
use super::super::PortId;
use super::identity::{Identity, prefix};
use super::port_names::SavedName;
use crate::config::PortName;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageBackend,
    TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use switch_core::engine::control::Update;

const ENTRIES: TableDefinition<&[u8], &[u8]> = TableDefinition::new("entries");
const SETTINGS: TableDefinition<&str, &[u8]> = TableDefinition::new("settings");
const PORTS: TableDefinition<&str, u16> = TableDefinition::new("ports");
const ASIDE: TableDefinition<u64, &[u8]> = TableDefinition::new("aside");
const DOCUMENTS: TableDefinition<&str, &[u8]> = TableDefinition::new("documents");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// What this version writes and reads.
const FORMAT: u64 = 1;
/// Pages kept in memory: what a large batch touches; the rest is the kernel's page cache.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

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

/// One change of the store.
#[derive(Clone, Debug)]
pub enum StoreChange {
    /// An entry is there, and is this.
    Entry(Identity, Vec<u8>),
    /// An entry is not there.
    NoEntry(Identity),
    /// A table has no entries.
    ClearTable(String),
    /// A setting is this; `None`: as the program says.
    Setting(String, Option<Vec<u8>>),
}

/// What does not fit the program that runs: kept, reported, tried again at the next start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// What was to be done.
    pub update: Update,
    /// Why it could not be.
    pub reason: String,
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    database: Database,
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
        let store = Self { database };
        let transaction = store.begin()?;
        {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get("format")?.map(|value| value.value());
            match found {
                None => drop(meta.insert("format", FORMAT)?),
                Some(FORMAT) => {}
                Some(other) => return Err(StoreError::Format(other)),
            }
            transaction.open_table(ENTRIES)?;
            transaction.open_table(SETTINGS)?;
            transaction.open_table(PORTS)?;
            transaction.open_table(ASIDE)?;
            transaction.open_table(DOCUMENTS)?;
        }
        transaction.commit()?;
        Ok(store)
    }

    fn begin(&self) -> Result<WriteTransaction, StoreError> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        Ok(transaction)
    }

    /// Makes changes durable, all or none.
    pub fn commit(&self, changes: &[StoreChange], names: &[SavedName]) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        write_changes(&transaction, changes)?;
        write_names(&transaction, names)?;
        Ok(transaction.commit()?)
    }

    /// Replaces what is kept aside, in one transaction with changes.
    pub fn commit_aside(&self, changes: &[StoreChange], aside: &[Aside]) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        write_changes(&transaction, changes)?;
        transaction.delete_table(ASIDE)?;
        {
            let mut table = transaction.open_table(ASIDE)?;
            for (number, aside) in (0u64..).zip(aside) {
                table.insert(number, encode(aside)?.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
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

    /// Calls `each` with every entry, as its identity and its JSON, by ascending identity.
    pub fn for_each_entry(
        &self,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(ENTRIES)?;
        for row in table.iter()? {
            let (identity, json) = row?;
            each(identity.value(), json.value())?;
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

    /// How many entries there are.
    pub fn entry_count(&self) -> Result<u64, StoreError> {
        let transaction = self.database.begin_read()?;
        Ok(transaction.open_table(ENTRIES)?.len()?)
    }

    /// An entry's JSON.
    pub fn entry(&self, identity: &Identity) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(ENTRIES)?;
        Ok(table
            .get(identity.as_bytes())?
            .map(|json| json.value().to_vec()))
    }

    /// The JSON of every entry of a table.
    pub fn entries_of(&self, name: &str) -> Result<Vec<Vec<u8>>, StoreError> {
        let prefix = prefix(name);
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(ENTRIES)?;
        let mut entries = vec![];
        for row in table.range(prefix.as_slice()..)? {
            let (identity, json) = row?;
            if !identity.value().starts_with(&prefix) {
                break;
            }
            entries.push(json.value().to_vec());
        }
        Ok(entries)
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn write_changes(
    transaction: &WriteTransaction,
    changes: &[StoreChange],
) -> Result<(), StoreError> {
    let mut entries = transaction.open_table(ENTRIES)?;
    let mut settings = transaction.open_table(SETTINGS)?;
    for change in changes {
        match change {
            StoreChange::Entry(identity, json) => {
                entries.insert(identity.as_bytes(), json.as_slice())?;
            }
            StoreChange::NoEntry(identity) => {
                entries.remove(identity.as_bytes())?;
            }
            StoreChange::ClearTable(name) => {
                let prefix = prefix(name);
                let end = prefix_end(&prefix);
                entries.retain_in(prefix.as_slice()..end.as_slice(), |_, _| false)?;
            }
            StoreChange::Setting(name, Some(json)) => {
                settings.insert(name.as_str(), json.as_slice())?;
            }
            StoreChange::Setting(name, None) => {
                settings.remove(name.as_str())?;
            }
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
pub(super) fn encode(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Content(error.to_string()))
}

/// From what the store kept.
pub(super) fn decode<T: for<'a> Deserialize<'a>>(json: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(json).map_err(|error| StoreError::Content(error.to_string()))
}
