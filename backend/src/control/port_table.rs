//! The ports there are. Owned by the control thread alone.
use super::PortId;
use crate::config::{PortConfig, PortName};
use std::collections::BTreeMap;

/// Every port that is in place, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortTable {
    ports: BTreeMap<PortId, PortConfig>,
}

impl PortTable {
    /// Every port, by ascending id.
    pub fn iter(&self) -> impl Iterator<Item = (PortId, &PortConfig)> {
        self.ports.iter().map(|(id, port)| (*id, port))
    }

    /// The port of that name.
    pub fn find(&self, name: &PortName) -> Option<(PortId, &PortConfig)> {
        self.iter().find(|(_, port)| port.name == *name)
    }

    /// The port of that id.
    pub fn get(&self, id: PortId) -> Option<&PortConfig> {
        self.ports.get(&id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ports.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// Records a port that is in place.
    pub(crate) fn insert(&mut self, id: PortId, port: PortConfig) {
        self.ports.insert(id, port);
    }

    /// Records that a port is gone. Only then can its id be given to another.
    pub(super) fn remove(&mut self, id: PortId) {
        self.ports.remove(&id);
    }
}
