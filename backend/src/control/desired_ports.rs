//! The ports there shall be: those of the configuration file and of flags, and over them what was changed at run time.
//!
//! Owned by the control thread. A change is durable, with the port's offer and in one transaction, before anything is done about it;
//! what then cannot be done is taken back. So a change that was acknowledged is in the store, and one in the store is whole.
//!
//! The file stays the operator's. Each change remembers what was configured for its port when it was made:
//!
//! | configured now | the change |
//! |---|---|
//! | what was then, or nothing | holds |
//! | what the change asks for | is part of the file, and forgotten |
//! | something else | is overridden: the file was edited since. Kept, and shown, until `config save` |
use super::frozen_offers::{Frozen, FrozenOffers};
use super::tables::rows::{Row, RowKind};
use super::tables::store::{decode, encode};
use super::tables::{Store, StoreError};
use crate::config::{ConfigFile, Configuration, Origin, PortConfig, PortFields, PortName};
use crate::devices::DeviceRows;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use utoipa::ToSchema;

mod handover;

pub use handover::HandedPorts;

/// Where a port comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PortOrigin {
    /// The configuration file.
    #[default]
    File,
    /// A flag of the command line.
    Flag,
    /// It was added or changed at run time.
    Runtime,
}

impl PortOrigin {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Flag => "flag",
            Self::Runtime => "runtime",
        }
    }
}

/// What became of one port at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortChange {
    /// As it shall be; `None`: it shall not be.
    pub port: Option<PortConfig>,
    /// As it was configured then; `None`: it was not.
    pub based_on: Option<PortConfig>,
}

/// As the store keeps it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<PortFields>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    based_on: Option<PortFields>,
}

/// What a change replaced, so that it can be taken back.
#[derive(Debug)]
pub struct Replaced {
    name: PortName,
    change: Option<PortChange>,
    /// A change that did not hold, and is forgotten by this one.
    overridden: Option<PortChange>,
    offer: Option<Frozen>,
}

/// The ports there shall be.
#[derive(Debug, Default)]
pub struct DesiredPorts {
    file: Option<PathBuf>,
    file_ports: Vec<PortConfig>,
    flags: Vec<PortConfig>,
    changes: BTreeMap<PortName, PortChange>,
    overridden: BTreeMap<PortName, PortChange>,
    offers: FrozenOffers,
    store: Option<Arc<Store>>,
    devices: Arc<DeviceRows>,
}

/// What a change comes to under what is configured now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Holds,
    Obsolete,
    Overridden,
}

impl PortChange {
    fn standing(&self, configured: Option<&PortConfig>) -> Standing {
        if self.port.as_ref() == configured {
            Standing::Obsolete
        } else if configured.is_none() || self.based_on.as_ref() == configured {
            Standing::Holds
        } else {
            Standing::Overridden
        }
    }

    fn row(name: &PortName, change: Option<&Self>) -> Result<Row, StoreError> {
        let record = change.map(|change| {
            encode(&Record {
                port: change.port.as_ref().map(PortFields::from),
                based_on: change.based_on.as_ref().map(PortFields::from),
            })
        });
        Ok(Row {
            kind: RowKind::PortChange,
            name: name.to_string(),
            value: record.transpose()?,
        })
    }

    fn read(name: &str, bytes: &[u8]) -> Result<(PortName, Self), StoreError> {
        let unreadable = |reason: String| StoreError::Content(format!("port {name}: {reason}"));
        let record: Record = decode(bytes).map_err(|error| unreadable(error.to_string()))?;
        let port = |fields: Option<PortFields>| {
            fields
                .map(PortConfig::from_fields)
                .transpose()
                .map_err(|error| unreadable(error.to_string()))
        };
        let name = PortName::parse(name).map_err(|error| unreadable(error.to_string()))?;
        let change = Self {
            port: port(record.port)?,
            based_on: port(record.based_on)?,
        };
        Ok((name, change))
    }
}

impl DesiredPorts {
    /// What is configured, with the changes that the process before has handed over, or the store has. When it returns, every port's offer
    /// is durable.
    pub fn open(
        configuration: &Configuration,
        store: Option<Arc<Store>>,
        handed: Option<HandedPorts>,
    ) -> Result<Self, StoreError> {
        let is_flag = |port: &&crate::config::SourcedPort| matches!(port.origin, Origin::Flag(_));
        let flags = configuration.ports.iter().filter(is_flag);
        let mut desired = Self {
            flags: flags.map(|port| port.config.clone()).collect(),
            store,
            ..Self::default()
        };
        if let Some(file) = &configuration.file {
            desired.file = Some(file.path.clone());
            desired.file_ports.clone_from(&file.ports);
        }
        let mut handed = handed.unwrap_or_default();
        let devices = DeviceRows::open(desired.store.clone(), handed.take_devices())?;
        desired.devices = Arc::new(devices);
        let (mut changes, mut offers) = handed.read()?;
        if let (Some(store), true) = (&desired.store, changes.is_empty() && offers.is_empty()) {
            for (name, bytes) in store.rows(RowKind::PortChange)? {
                let (name, change) = PortChange::read(&name, &bytes)?;
                changes.insert(name, change);
            }
            for (_, bytes) in store.rows(RowKind::Offer)? {
                let (name, offer) = Frozen::read(&bytes)?;
                offers.insert(name, offer);
            }
        }
        let mut rows = desired.adopt(changes)?;
        rows.extend(desired.freeze(offers)?);
        desired.commit(&rows)?;
        Ok(desired)
    }

    /// Sorts changes by what they come to; the rows that are obsolete.
    fn adopt(&mut self, changes: BTreeMap<PortName, PortChange>) -> Result<Vec<Row>, StoreError> {
        let mut rows = vec![];
        for (name, change) in changes {
            match change.standing(self.configured_as(&name)) {
                Standing::Obsolete => rows.push(PortChange::row(&name, None)?),
                Standing::Holds => drop(self.changes.insert(name, change)),
                Standing::Overridden => {
                    log::warn!(
                        "port {name}: it was changed at run time, and in the configuration since: the configuration holds; `ringswitch config diff` shows both"
                    );
                    self.overridden.insert(name, change);
                }
            }
        }
        Ok(rows)
    }

    /// Fixes what ports offer; the rows that are new, other, or of ports that are gone.
    fn freeze(&mut self, mut earlier: BTreeMap<PortName, Frozen>) -> Result<Vec<Row>, StoreError> {
        let mut rows = vec![];
        for port in self.configured().iter().chain(&self.changed()) {
            let was = earlier.remove(&port.name);
            let frozen = Frozen::of(port, was.clone());
            if frozen != was {
                rows.push(Frozen::row(&port.name, frozen.as_ref())?);
            }
            self.offers.set(&port.name, frozen);
        }
        for name in earlier.keys() {
            rows.push(Frozen::row(name, None)?);
        }
        Ok(rows)
    }

    pub(super) fn commit(&self, rows: &[Row]) -> Result<(), StoreError> {
        match &self.store {
            Some(store) if !rows.is_empty() => store.set_rows(rows),
            _ => Ok(()),
        }
    }

    /// What ports offer, for the engine that opens them.
    pub fn offers(&self) -> FrozenOffers {
        self.offers.clone()
    }

    /// The devices there shall be, which have ports: written by the owner of their table.
    pub fn devices(&self) -> Arc<DeviceRows> {
        Arc::clone(&self.devices)
    }

    /// The configuration file that changes are shown against.
    pub fn file(&self) -> Option<&PathBuf> {
        self.file.as_ref()
    }

    /// The ports of that file.
    pub fn file_ports(&self) -> &[PortConfig] {
        &self.file_ports
    }

    /// Whether changes outlive the process.
    pub fn durable(&self) -> bool {
        self.store.is_some()
    }

    /// Changes that do not hold, since the file says otherwise.
    pub fn overridden(&self) -> &BTreeMap<PortName, PortChange> {
        &self.overridden
    }

    /// The ports that are as they are configured.
    pub fn configured(&self) -> Vec<PortConfig> {
        let names: BTreeSet<&PortName> = self.flags.iter().map(|port| &port.name).collect();
        self.file_ports
            .iter()
            .filter(|port| !names.contains(&port.name))
            .chain(&self.flags)
            .filter(|port| !self.changes.contains_key(&port.name))
            .cloned()
            .collect()
    }

    /// The ports that were added or changed at run time.
    pub fn changed(&self) -> Vec<PortConfig> {
        let changes = self.changes.values();
        changes.filter_map(|change| change.port.clone()).collect()
    }

    /// Where the port of this name comes from, or what took it away.
    pub fn origin(&self, name: &PortName) -> PortOrigin {
        if self.changes.contains_key(name) {
            PortOrigin::Runtime
        } else if self.flags.iter().any(|port| port.name == *name) {
            PortOrigin::Flag
        } else {
            PortOrigin::File
        }
    }

    /// What the file or a flag says of a port.
    fn configured_as(&self, name: &PortName) -> Option<&PortConfig> {
        let mut configured = self.flags.iter().chain(&self.file_ports);
        configured.find(|port| port.name == *name)
    }

    /// A port shall be there. Durable when it returns, with what it offers.
    pub fn add(&mut self, port: &PortConfig) -> Result<Replaced, StoreError> {
        // An offer that is there already is that of this very port, which could not be opened yet.
        let offer = Frozen::of(port, self.offers.frozen(&port.name));
        self.change(&port.name, Some(port.clone()), offer)
    }

    /// A port shall not be there. Durable when it returns.
    pub fn remove(&mut self, name: &PortName) -> Result<(), StoreError> {
        self.change(name, None, None).map(drop)
    }

    /// Ports shall be there, and others not; what was so far. Nothing is durable yet.
    pub(super) fn stage(&mut self, added: &[PortConfig], removed: &[PortName]) -> Vec<Replaced> {
        let mut had = vec![];
        for port in added {
            let offer = Frozen::of(port, self.offers.frozen(&port.name));
            let new = self.changed_to(&port.name, Some(port.clone()), offer);
            had.push(self.put(new));
        }
        for name in removed {
            let new = self.changed_to(name, None, None);
            had.push(self.put(new));
        }
        had
    }

    /// As it was.
    pub(super) fn unstage(&mut self, had: Vec<Replaced>) {
        for replaced in had.into_iter().rev() {
            self.put(replaced);
        }
    }

    /// What the store is to have of ports, as they are staged.
    pub(super) fn rows<'a>(
        &self,
        names: impl Iterator<Item = &'a PortName>,
    ) -> Result<Vec<Row>, StoreError> {
        let mut rows = vec![];
        for name in names.filter(|_| self.durable()) {
            rows.push(PortChange::row(name, self.changes.get(name))?);
            rows.push(Frozen::row(name, self.offers.frozen(name).as_ref())?);
        }
        Ok(rows)
    }

    fn change(
        &mut self,
        name: &PortName,
        port: Option<PortConfig>,
        offer: Option<Frozen>,
    ) -> Result<Replaced, StoreError> {
        self.replace(self.changed_to(name, port, offer))
    }

    fn changed_to(
        &self,
        name: &PortName,
        port: Option<PortConfig>,
        offer: Option<Frozen>,
    ) -> Replaced {
        let configured = self.configured_as(name);
        let change = (port.as_ref() != configured).then(|| PortChange {
            port,
            based_on: configured.cloned(),
        });
        Replaced {
            name: name.clone(),
            change,
            overridden: None,
            offer,
        }
    }

    /// Puts back what a change replaced, since it could not be carried out.
    pub fn take_back(&mut self, replaced: Replaced) -> Result<(), StoreError> {
        self.replace(replaced).map(drop)
    }

    fn replace(&mut self, new: Replaced) -> Result<Replaced, StoreError> {
        self.commit(&[
            PortChange::row(&new.name, new.change.as_ref())?,
            Frozen::row(&new.name, new.offer.as_ref())?,
        ])?;
        Ok(self.put(new))
    }

    /// In memory alone.
    fn put(&mut self, new: Replaced) -> Replaced {
        let Replaced {
            name,
            change,
            overridden,
            offer,
        } = new;
        let was_offer = self.offers.frozen(&name);
        self.offers.set(&name, offer);
        let was_overridden = self.overridden.remove(&name);
        if let Some(overridden) = overridden {
            self.overridden.insert(name.clone(), overridden);
        }
        let was = match change {
            Some(change) => self.changes.insert(name.clone(), change),
            None => self.changes.remove(&name),
        };
        Replaced {
            name,
            change: was,
            overridden: was_overridden,
            offer: was_offer,
        }
    }

    /// The file has been written anew: changes that it has now are forgotten, and so are those that it overrides. No port changes.
    pub fn saved(&mut self, file: ConfigFile) -> Result<(), StoreError> {
        let mut saved = Self {
            file: Some(file.path),
            file_ports: file.ports,
            flags: self.flags.clone(),
            offers: self.offers.clone(),
            store: self.store.clone(),
            devices: Arc::clone(&self.devices),
            ..Self::default()
        };
        let mut rows = vec![];
        for (name, change) in &self.changes {
            match change.standing(saved.configured_as(name)) {
                Standing::Obsolete => rows.push(PortChange::row(name, None)?),
                // Shown as overridden from the next start on, when the file begins to hold.
                Standing::Holds | Standing::Overridden => {
                    saved.changes.insert(name.clone(), change.clone());
                }
            }
        }
        for name in self.overridden.keys() {
            rows.push(PortChange::row(name, None)?);
        }
        self.commit(&rows)?;
        *self = saved;
        Ok(())
    }
}
