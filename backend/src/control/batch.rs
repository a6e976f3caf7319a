//! Ports and table entries that come and go together, or not at all.
//!
//! ```text
//! checks and plan -> new ports are opened -> entries take effect -> one commit of both -> old ports are closed -> answer
//! ```
//! Everything up to the commit is taken back when something after it fails, and nothing of it disturbs a port that was there. Closing
//! cannot fail. On the control thread, which waits for the thread that changes tables.
use super::command::CommandError;
use super::engine::Engine;
use super::events::Event;
use super::port_changes::conflict;
use super::tables::{Refusal, StoreError};
use super::thread::Control;
use crate::config::{PortConfig, PortName};
use std::collections::BTreeSet;
use switch_core::engine::control::Update;

/// Most ports of one batch.
pub const MAX_PORT_CHANGES: usize = 256;

/// What shall happen, all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Ports that come and go, each named once.
    pub ports: Vec<PortStep>,
    /// Changes of tables, in order, after ports came and before others go.
    pub updates: Vec<Update>,
}

/// What shall become of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortStep {
    /// It shall be there; the very same port again is no change.
    Add(PortConfig),
    /// It shall not.
    Remove(PortName),
}

impl PortStep {
    fn name(&self) -> &PortName {
        match self {
            Self::Add(port) => &port.name,
            Self::Remove(name) => name,
        }
    }
}

/// A batch has taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batched {
    /// Ports that are there now and were not.
    pub added: usize,
    /// Ports that are gone.
    pub removed: usize,
    /// Changes of tables.
    pub updates: usize,
    /// Whether all of it outlives the process.
    pub durable: bool,
}

/// Why a batch has not. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// One of its ports, counted from 0.
    #[error("port {0}: {1}")]
    Port(usize, CommandError),
    /// A name is there twice; the second of them.
    #[error("port {0}: it is named twice")]
    Twice(usize),
    /// Its changes of tables.
    #[error(transparent)]
    Tables(#[from] Refusal),
    /// There are no tables to change.
    #[error("this daemon runs no program with tables")]
    NoTables,
    /// It as a whole.
    #[error(transparent)]
    Whole(#[from] CommandError),
}

impl<E: Engine> Control<E> {
    pub(super) fn batch(&mut self, batch: Batch) -> Result<Batched, BatchError> {
        let Batch { ports, updates } = batch;
        if self.tables.is_none() && !updates.is_empty() {
            return Err(BatchError::NoTables);
        }
        let (new, old) = self.sorted(&ports)?;
        let added = self.checked(&ports, &new)?;
        let had = self.desired.stage(&added, &old);
        let result = self.open_and_commit(&ports, &added, &old, &updates);
        if let Err(error) = result {
            self.desired.unstage(had);
            for port in &added {
                if !self.waiting.contains_key(&port.name) {
                    self.name_is_free(&port.name);
                }
            }
            return Err(error);
        }
        self.close(&old);
        for port in &added {
            let name = &port.name;
            self.waiting.remove(name);
            log::info!("port {name} added");
            let port = name.to_string();
            self.events.publish(Event::PortAdded { port });
        }
        Ok(Batched {
            added: added.len(),
            removed: old.len(),
            updates: updates.len(),
            durable: self.desired.durable(),
        })
    }

    /// Those to be there and those to go, each named once, the latter all there.
    fn sorted(&self, ports: &[PortStep]) -> Result<(Vec<PortConfig>, Vec<PortName>), BatchError> {
        let mut names = BTreeSet::new();
        let (mut new, mut old) = (vec![], vec![]);
        for (index, step) in ports.iter().enumerate() {
            let name = step.name();
            if !names.insert(name.clone()) {
                return Err(BatchError::Twice(index));
            }
            match step {
                PortStep::Add(port) => new.push(port.clone()),
                PortStep::Remove(_) => {
                    if self.table.find(name).is_none() && !self.waiting.contains_key(name) {
                        let missing = CommandError::NotFound(name.clone());
                        return Err(BatchError::Port(index, missing));
                    }
                    old.push(name.clone());
                }
            }
        }
        Ok((new, old))
    }

    /// Those of the new that are not there yet; each can be beside what is there and those before it.
    fn checked(
        &self,
        ports: &[PortStep],
        new: &[PortConfig],
    ) -> Result<Vec<PortConfig>, BatchError> {
        let mut there: Vec<PortConfig> = self.table.iter().map(|(_, port)| port.clone()).collect();
        let mut added = vec![];
        for port in new {
            let at_fault = |error| BatchError::Port(place_of(ports, &port.name), error);
            if there.contains(port) {
                continue;
            }
            self.refuse_what_cannot_be(port).map_err(at_fault)?;
            let claims = there
                .iter()
                .find_map(|other| Some((port.claims_of_both(other)?, &other.name)));
            if let Some((field, other)) = claims {
                return Err(at_fault(conflict(field, other)));
            }
            there.push(port.clone());
            added.push(port.clone());
        }
        Ok(added)
    }

    fn open_and_commit(
        &mut self,
        ports: &[PortStep],
        added: &[PortConfig],
        old: &[PortName],
        updates: &[Update],
    ) -> Result<(), BatchError> {
        let rows = self
            .desired
            .rows(added.iter().map(|port| &port.name).chain(old));
        let rows = rows.map_err(CommandError::from)?;
        let present: Vec<PortConfig> = self.table.iter().map(|(_, port)| port.clone()).collect();
        let with_new: Vec<PortConfig> = present.iter().chain(added).cloned().collect();
        let changes = self.planned(&with_new)?;
        self.carry_out_for(&changes)
            .map_err(|(name, error)| BatchError::Port(place_of(ports, &name), error))?;
        let committed = match (&self.tables, updates) {
            (Some(tables), [_, ..]) => tables
                .write_with(updates.to_vec(), rows)
                .map(drop)
                .map_err(BatchError::from),
            _ => self
                .desired
                .commit(&rows)
                .map_err(|error: StoreError| CommandError::from(error).into()),
        };
        if committed.is_err() {
            self.back_to(&present);
        }
        committed
    }

    /// Closes what was opened.
    fn back_to(&mut self, present: &[PortConfig]) {
        let closed = self
            .planned(present)
            .and_then(|changes| self.carry_out(&changes));
        if let Err(error) = closed {
            log::error!("ports of a batch that was refused stay until a restart: {error}");
        }
    }

    fn close(&mut self, old: &[PortName]) {
        let rest: Vec<PortConfig> = self
            .table
            .iter()
            .filter(|(_, port)| !old.contains(&port.name))
            .map(|(_, port)| port.clone())
            .collect();
        self.back_to(&rest);
        for name in old {
            self.waiting.remove(name);
            self.name_is_free(name);
            log::info!("port {name} removed");
            let port = name.to_string();
            self.events.publish(Event::PortRemoved { port });
        }
    }
}

fn place_of(ports: &[PortStep], name: &PortName) -> usize {
    let place = ports.iter().position(|step| step.name() == name);
    place.unwrap_or_default()
}
