//! The devices there shall be, as they are kept: by name, in the store, and for the process that takes over.
//!
//! Shared by the owner of the table, which writes, and the control thread, which hands them over in an upgrade.
use crate::control::tables::rows::{Row, RowKind};
use crate::control::tables::{Store, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::device::DeviceFields;
use super::status::Removal;

/// A device, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRow {
    /// As asked for, with what was chosen.
    pub device: DeviceFields,
    /// See [`super::Device::generation`].
    #[serde(default)]
    pub generation: u32,
    /// That it shall go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removal: Option<RemovalRow>,
}

/// A removal, as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemovalRow {
    force: bool,
    timeout_ms: u64,
}

impl From<Removal> for RemovalRow {
    fn from(removal: Removal) -> Self {
        Self {
            force: removal.force,
            timeout_ms: u64::try_from(removal.timeout.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl From<RemovalRow> for Removal {
    fn from(row: RemovalRow) -> Self {
        Self {
            force: row.force,
            timeout: Duration::from_millis(row.timeout_ms),
        }
    }
}

/// Every row.
#[derive(Debug, Default)]
pub struct DeviceRows {
    store: Option<Arc<Store>>,
    rows: Mutex<BTreeMap<String, Value>>,
}

impl DeviceRows {
    /// Those of the store; without one, those that the process before has handed over.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn open(
        store: Option<Arc<Store>>,
        handed: BTreeMap<String, Value>,
    ) -> Result<Self, StoreError> {
        let rows = match &store {
            Some(store) => store
                .rows(RowKind::Device)?
                .into_iter()
                .map(|(name, bytes)| {
                    let row = serde_json::from_slice(&bytes)
                        .map_err(|error| unreadable(&name, &error))?;
                    Ok((name, row))
                })
                .collect::<Result<_, StoreError>>()?,
            None => handed,
        };
        Ok(Self {
            store,
            rows: Mutex::new(rows),
        })
    }

    /// Whether they outlive the process.
    pub fn durable(&self) -> bool {
        self.store.is_some()
    }

    /// As the next process takes them.
    pub fn hand_over(&self) -> BTreeMap<String, Value> {
        self.lock().clone()
    }

    /// Every device, by name.
    ///
    /// # Errors
    /// A row is not what this version writes.
    pub fn read(&self) -> Result<Vec<DeviceRow>, StoreError> {
        self.lock()
            .iter()
            .map(|(name, row)| {
                DeviceRow::deserialize(row).map_err(|error| unreadable(name, &error))
            })
            .collect()
    }

    /// Sets or removes a row. Durable when it returns.
    ///
    /// # Errors
    /// It cannot be written; nothing has changed then.
    pub fn set(&self, name: &str, row: Option<&DeviceRow>) -> Result<(), StoreError> {
        let value = row
            .map(serde_json::to_value)
            .transpose()
            .map_err(|error| unreadable(name, &error))?;
        if let Some(store) = &self.store {
            store.set_rows(&[Row {
                kind: RowKind::Device,
                name: name.to_owned(),
                value: value.as_ref().map(|value| value.to_string().into_bytes()),
            }])?;
        }
        let mut rows = self.lock();
        match value {
            Some(value) => rows.insert(name.to_owned(), value),
            None => rows.remove(name),
        };
        Ok(())
    }

    /// Never held while anything is waited for.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Value>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unreadable(name: &str, error: &serde_json::Error) -> StoreError {
    StoreError::Content(format!("device {name}: {error}"))
}
