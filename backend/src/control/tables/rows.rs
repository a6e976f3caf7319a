//! What the store keeps by name besides tables: one row a name, each set or removed as a whole.
//!
//! Written by the control thread, and of devices by the owner of their table, before what they describe is done; read at the start. Another kind is another table here.
use super::store::{Store, StoreError};
use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

const PORT_CHANGES: TableDefinition<&str, &[u8]> = TableDefinition::new("port_changes");
const DEVICES: TableDefinition<&str, &[u8]> = TableDefinition::new("devices");
const OFFERS: TableDefinition<&str, &[u8]> = TableDefinition::new("offers");

/// What is kept by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// A port's change at run time.
    PortChange,
    /// What a port offers to its front-end.
    Offer,
    /// A device that a VM shall have.
    Device,
}

impl RowKind {
    const ALL: [Self; 3] = [Self::PortChange, Self::Offer, Self::Device];

    fn table(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        match self {
            Self::PortChange => PORT_CHANGES,
            Self::Offer => OFFERS,
            Self::Device => DEVICES,
        }
    }
}

/// A row as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is.
    pub kind: RowKind,
    /// Whose.
    pub name: String,
    /// `None`: there shall be none.
    pub value: Option<Vec<u8>>,
}

impl Store {
    /// Every row of a kind, by name. A store of an earlier version has none.
    pub fn rows(&self, kind: RowKind) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(kind.table()) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(vec![]),
            table => table?,
        };
        table
            .iter()?
            .map(|row| {
                let (name, value) = row?;
                Ok((name.value().to_owned(), value.value().to_vec()))
            })
            .collect()
    }

    /// Makes rows durable, all or none. Waits for a commit under way.
    pub fn set_rows(&self, rows: &[Row]) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        write_rows(&transaction, rows)?;
        Ok(transaction.commit()?)
    }
}

/// As a part of a transaction.
pub(super) fn write_rows(transaction: &WriteTransaction, rows: &[Row]) -> Result<(), StoreError> {
    for kind in RowKind::ALL {
        let mut of_kind = rows.iter().filter(|row| row.kind == kind).peekable();
        if of_kind.peek().is_none() {
            continue;
        }
        let mut table = transaction.open_table(kind.table())?;
        for row in of_kind {
            match &row.value {
                Some(value) => table.insert(row.name.as_str(), value.as_slice())?,
                None => table.remove(row.name.as_str())?,
            };
        }
    }
    Ok(())
}
