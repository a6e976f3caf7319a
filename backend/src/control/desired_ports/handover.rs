//! The changes of the process before, which has them whether or not there is a store.

use super::{DesiredPorts, PortChange};
use crate::config::PortName;
use crate::control::frozen_offers::Frozen;
use crate::control::tables::StoreError;
use crate::control::tables::rows::Row;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What was changed at run time, and what ports offer: as the store has it, row by row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HandedPorts {
    changes: BTreeMap<String, Value>,
    offers: BTreeMap<String, Value>,
    devices: BTreeMap<String, Value>,
}

type Read = (BTreeMap<PortName, PortChange>, BTreeMap<PortName, Frozen>);

impl HandedPorts {
    pub(super) fn take_devices(&mut self) -> BTreeMap<String, Value> {
        std::mem::take(&mut self.devices)
    }

    pub(super) fn read(&self) -> Result<Read, StoreError> {
        let changes = self.changes.iter();
        let changes = changes.map(|(name, row)| PortChange::read(name, row.to_string().as_bytes()));
        let offers = self.offers.values();
        let offers = offers.map(|row| Frozen::read(row.to_string().as_bytes()));
        Ok((
            changes.collect::<Result<_, _>>()?,
            offers.collect::<Result<_, _>>()?,
        ))
    }
}

impl DesiredPorts {
    /// What the next process goes on with.
    ///
    /// # Errors
    /// None that could happen: what is written was read before.
    pub fn hand_over(&self) -> Result<HandedPorts, StoreError> {
        let changes = self.changes.iter().chain(&self.overridden);
        let changes = changes.map(|(name, change)| PortChange::row(name, Some(change)));
        let offers = self.configured().into_iter().chain(self.changed());
        let offers = offers.filter_map(|port| {
            let offer = self.offers.frozen(&port.name)?;
            Some(Frozen::row(&port.name, Some(&offer)))
        });
        Ok(HandedPorts {
            changes: values(changes)?,
            offers: values(offers)?,
            devices: self.devices.hand_over(),
        })
    }
}

fn values(
    rows: impl Iterator<Item = Result<Row, StoreError>>,
) -> Result<BTreeMap<String, Value>, StoreError> {
    let value = |row: Row| {
        let json = serde_json::from_slice(&row.value.unwrap_or_default());
        let json = json.map_err(|error| StoreError::Content(error.to_string()))?;
        Ok((row.name, json))
    };
    rows.map(|row| row.and_then(value)).collect()
}
