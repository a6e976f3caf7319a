//! What runs, compared with the configuration file. Pure.
use super::desired_ports::{PortChange, PortOrigin};
use crate::config::edit::PortEdit;
use crate::config::{PortConfig, PortName};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A port that there shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningPort {
    /// The port.
    pub config: PortConfig,
    /// Where it comes from.
    pub origin: PortOrigin,
    /// Why it cannot be opened; it is tried again.
    pub fault: Option<String>,
}

/// Ports as they run, and as the file has them.
#[derive(Clone, Debug, Default)]
pub struct ConfigView {
    /// The file, as it was last read.
    pub file: Option<PathBuf>,
    /// Its ports.
    pub file_ports: Vec<PortConfig>,
    /// Whether changes at run time outlive the process.
    pub durable: bool,
    /// What runs, by name.
    pub running: BTreeMap<PortName, RunningPort>,
    /// Where each port of the file that does not run as it is there has gone.
    pub origins: BTreeMap<PortName, PortOrigin>,
    /// Changes that do not hold, since the file says otherwise.
    pub overridden: BTreeMap<PortName, PortChange>,
}

/// A port that runs otherwise than the file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The port.
    pub name: PortName,
    /// Why: a change at run time, a flag, or the file was written since the start.
    pub cause: PortOrigin,
    /// As the file has it; `None`: not at all.
    pub file: Option<PortConfig>,
    /// As it runs; `None`: not at all.
    pub running: Option<PortConfig>,
}

impl ConfigView {
    /// A port that runs for a virtual device is kept with that, unless the file has it too.
    pub fn leave_to_its_device(&mut self, name: &PortName) {
        if !self.file_ports.iter().any(|port| port.name == *name) {
            self.running.remove(name);
        }
    }

    /// Every difference, by name.
    pub fn differences(&self) -> Vec<Difference> {
        let mut by_name: BTreeMap<&PortName, Difference> = BTreeMap::new();
        for port in &self.file_ports {
            let origin = self.origins.get(&port.name);
            let difference = Difference {
                name: port.name.clone(),
                cause: origin.copied().unwrap_or(PortOrigin::File),
                file: Some(port.clone()),
                running: None,
            };
            by_name.insert(&port.name, difference);
        }
        for (name, port) in &self.running {
            let difference = by_name.entry(name).or_insert_with(|| Difference {
                name: name.clone(),
                cause: port.origin,
                file: None,
                running: None,
            });
            difference.cause = port.origin;
            difference.running = Some(port.config.clone());
        }
        by_name
            .into_values()
            .filter(|difference| difference.file != difference.running)
            .collect()
    }
}

/// What has to be written into the file so that it says what runs. Where the file itself is the newer, it stays.
pub fn edits_of(differences: &[Difference]) -> Vec<PortEdit> {
    differences
        .iter()
        .filter(|difference| difference.cause != PortOrigin::File)
        .map(|difference| (difference.name.clone(), difference.running.clone()))
        .collect()
}
