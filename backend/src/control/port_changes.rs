//! What the control thread does about ports: brings them up, adds and removes them, and tries again what could not be opened.
//!
//! ```text
//! add, remove: checks and plan -> durable -> execute -> answer        what fails then is taken back
//! ```
//! Ports of the configuration come up all or none. One that was added at run time and cannot be opened any more keeps no other from
//! running: it waits, says why, and is tried again.
use super::command::{AddOutcome, CommandError, PortView};
use super::config_diff::{ConfigView, RunningPort};
use super::engine::{Engine, PortHealth};
use super::events::Event;
use super::execute::execute;
use super::plan::{self, Change, PlanError};
use super::tables::StoreError;
use super::tags::IfMatch;
use super::thread::{Control, StartError};
use super::{PortId, PortOrigin};
use crate::config::{ConfigFile, PortConfig, PortName};
use crate::datapath::PortCounters;
use std::collections::BTreeMap;

/// A port that was added at run time and cannot be opened.
#[derive(Clone, Debug)]
pub(super) struct WaitingPort {
    port: PortConfig,
    reason: String,
}

impl<E: Engine> Control<E> {
    pub(super) fn bring_up(&mut self) -> Result<(), StartError> {
        let configured = self.desired.configured();
        let changed = self.desired.changed();
        // Those that are in place were handed over by the process before.
        let in_place = changed.iter().filter(|port| {
            let there = self.table.find(&port.name);
            there.is_some_and(|(_, there)| there == *port)
        });
        let first: Vec<PortConfig> = configured.iter().chain(in_place).cloned().collect();
        let reserved = self.reserve(&first)?;
        let changes = plan::plan(&self.table, &first, &reserved)?;
        execute(&mut self.engine, &mut self.table, &changes)?;
        // So that one that has to wait has its number; one without waits for that.
        let _ = self.reserve(&changed);
        for port in changed {
            if self.table.find(&port.name).is_none() {
                self.open_or_wait(port);
            }
        }
        Ok(())
    }

    /// The ids that the names of ports have for good.
    fn reserve(&self, ports: &[PortConfig]) -> Result<BTreeMap<PortName, PortId>, StartError> {
        let Some(tables) = &self.tables else {
            return Ok(BTreeMap::new());
        };
        let names: Vec<PortName> = ports.iter().map(|port| port.name.clone()).collect();
        let ids = tables
            .reserve_ports(&names)
            .map_err(|error| StartError::Ids(error.to_string()))?;
        names
            .into_iter()
            .zip(ids)
            .map(|(name, id)| Ok((name, id.ok_or(PlanError::Full)?)))
            .collect()
    }

    fn open_or_wait(&mut self, port: PortConfig) {
        let name = port.name.clone();
        let opened = self
            .planned_with(&port)
            .and_then(|changes| self.carry_out(&changes));
        match opened {
            Ok(()) => {
                if self.waiting.remove(&name).is_some() {
                    log::info!("port {name} could be opened");
                }
            }
            Err(error) => {
                let reason = error.to_string();
                let before = self.waiting.get(&name);
                if before.is_none_or(|waiting| waiting.reason != reason) {
                    log::warn!(
                        "port {name} was added at run time and cannot be opened: {reason}. It is kept, and tried again until `ringswitch port remove {name}`"
                    );
                }
                self.waiting.insert(name, WaitingPort { port, reason });
            }
        }
    }

    pub(super) fn retry_waiting(&mut self) {
        let waiting: Vec<PortConfig> = self.waiting.values().map(|w| w.port.clone()).collect();
        for port in waiting {
            self.open_or_wait(port);
        }
    }

    pub(super) fn add_port(&mut self, port: PortConfig) -> Result<AddOutcome, CommandError> {
        if let Some((id, present)) = self.table.find(&port.name)
            && *present == port
        {
            return Ok(AddOutcome::AlreadyThere(self.view(id, present)));
        }
        let name = port.name.clone();
        self.refuse_what_waiting_ports_have(&port)?;
        let changes = self.planned_with(&port)?;
        let added = match self.desired.add(&port) {
            Ok(replaced) => self
                .carry_out(&changes)
                .map_err(|error| (error, Some(replaced))),
            Err(error) => Err((CommandError::from(error), None)),
        };
        if let Err((error, replaced)) = added {
            if let Some(replaced) = replaced
                && let Err(lost) = self.desired.take_back(replaced)
            {
                log::error!("port {name} was refused and stays in the store: {lost}");
            }
            if !self.waiting.contains_key(&name) {
                self.name_is_free(&name);
            }
            return Err(error);
        }
        self.waiting.remove(&name);
        log::info!("port {name} added");
        self.events.publish(Event::PortAdded {
            port: name.to_string(),
        });
        self.show_port(&name).map(AddOutcome::Added)
    }

    /// What no port may be, whatever else there is to be.
    pub(super) fn refuse_what_cannot_be(&self, port: &PortConfig) -> Result<(), CommandError> {
        self.refuse_what_waiting_ports_have(port)?;
        self.refuse_admin_socket(port)
    }

    fn refuse_admin_socket(&self, port: &PortConfig) -> Result<(), CommandError> {
        if port.socket() == Some(&self.admin) {
            return Err(CommandError::Conflict {
                field: "socket",
                reason: format!("{} is the admin socket", self.admin),
                remedy: "use another path".to_owned(),
            });
        }
        Ok(())
    }

    /// A port that waits is there already, but for being opened.
    fn refuse_what_waiting_ports_have(&self, port: &PortConfig) -> Result<(), CommandError> {
        for waiting in self.waiting.values().filter(|w| w.port != *port) {
            if let Some(field) = port.claims_of_both(&waiting.port) {
                return Err(conflict(field, &waiting.port.name));
            }
        }
        Ok(())
    }

    pub(super) fn remove_port(
        &mut self,
        name: &PortName,
        if_match: &IfMatch,
    ) -> Result<(), CommandError> {
        let view = self.show_port(name)?;
        if !if_match.holds(|| view.tag()) {
            return Err(CommandError::Changed(name.clone()));
        }
        let rest: Vec<PortConfig> = self
            .table
            .iter()
            .filter(|(_, port)| port.name != *name)
            .map(|(_, port)| port.clone())
            .collect();
        let changes = self.planned(&rest)?;
        self.desired.remove(name)?;
        self.carry_out(&changes)?;
        self.waiting.remove(name);
        self.name_is_free(name);
        log::info!("port {name} removed");
        self.events.publish(Event::PortRemoved {
            port: name.to_string(),
        });
        Ok(())
    }

    pub(super) fn name_is_free(&self, name: &PortName) {
        if let Some(tables) = &self.tables {
            tables.port_gone(name);
        }
    }

    fn planned_with(&self, port: &PortConfig) -> Result<Vec<Change>, CommandError> {
        self.refuse_admin_socket(port)?;
        let present = self.table.iter().map(|(_, port)| port.clone());
        let desired: Vec<PortConfig> = present.chain([port.clone()]).collect();
        self.planned(&desired)
    }

    pub(super) fn planned(&self, desired: &[PortConfig]) -> Result<Vec<Change>, CommandError> {
        let refused = |error| match error {
            PlanError::Collision { field, other, .. } => conflict(field, &other),
            PlanError::Full => CommandError::Full,
        };
        // What collides takes no number.
        plan::plan(&self.table, desired, &BTreeMap::new()).map_err(refused)?;
        let reserved = self.reserve(desired).map_err(|error| match error {
            StartError::Plan(error) => refused(error),
            other => CommandError::Store(other.to_string()),
        })?;
        plan::plan(&self.table, desired, &reserved).map_err(refused)
    }

    /// All or none; says which port it was.
    pub(super) fn carry_out_for(
        &mut self,
        changes: &[Change],
    ) -> Result<(), (PortName, CommandError)> {
        execute(&mut self.engine, &mut self.table, changes)
            .map_err(|failed| (failed.port, CommandError::Refused(failed.error)))
    }

    pub(super) fn carry_out(&mut self, changes: &[Change]) -> Result<(), CommandError> {
        execute(&mut self.engine, &mut self.table, changes)
            .map_err(|failed| CommandError::Refused(failed.error))
    }

    pub(super) fn list_ports(&self) -> Vec<PortView> {
        let waiting = self.waiting.values();
        let mut ports: Vec<PortView> = self
            .table
            .iter()
            .map(|(id, port)| self.view(id, port))
            .chain(waiting.filter_map(|waiting| self.view_waiting(waiting)))
            .collect();
        ports.sort_by_key(|port| port.id);
        ports
    }

    pub(super) fn show_port(&self, name: &PortName) -> Result<PortView, CommandError> {
        let waiting = || self.view_waiting(self.waiting.get(name)?);
        self.table
            .find(name)
            .map(|(id, port)| self.view(id, port))
            .or_else(waiting)
            .ok_or_else(|| CommandError::NotFound(name.clone()))
    }

    pub(super) fn view(&self, id: PortId, port: &PortConfig) -> PortView {
        let gone = || PortHealth {
            state: "faulted".to_owned(),
            reason: Some("its thread does not know it".to_owned()),
            device: None,
        };
        PortView {
            id,
            origin: self.desired.origin(&port.name),
            config: port.clone(),
            health: self.engine.health(id).unwrap_or_else(gone),
            counters: self.engine.counters(id),
            queues: self.engine.queues(id),
        }
    }

    /// `None`: there was no number left for it.
    fn view_waiting(&self, waiting: &WaitingPort) -> Option<PortView> {
        Some(PortView {
            id: self.tables.as_ref()?.port_id(&waiting.port.name)?,
            origin: PortOrigin::Runtime,
            config: waiting.port.clone(),
            health: PortHealth {
                state: "faulted".to_owned(),
                reason: Some(format!("it cannot be opened: {}", waiting.reason)),
                device: None,
            },
            counters: PortCounters::default(),
            queues: Vec::new(),
        })
    }

    pub(super) fn config(&self) -> ConfigView {
        let running = |port: &PortConfig, fault| {
            let running = RunningPort {
                config: port.clone(),
                origin: self.desired.origin(&port.name),
                fault,
            };
            (port.name.clone(), running)
        };
        let waiting = self.waiting.values();
        let file_ports = self.desired.file_ports().to_vec();
        ConfigView {
            file: self.desired.file().cloned(),
            durable: self.desired.durable(),
            running: self
                .table
                .iter()
                .map(|(_, port)| running(port, None))
                .chain(waiting.map(|w| running(&w.port, Some(w.reason.clone()))))
                .collect(),
            origins: file_ports
                .iter()
                .map(|port| (port.name.clone(), self.desired.origin(&port.name)))
                .collect(),
            file_ports,
            overridden: self.desired.overridden().clone(),
        }
    }

    pub(super) fn config_saved(&mut self, file: ConfigFile) -> Result<(), CommandError> {
        Ok(self.desired.saved(file)?)
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

pub(super) fn conflict(field: &'static str, other: &PortName) -> CommandError {
    let (reason, remedy) = match field {
        "name" => (
            format!("port {other} is there already, with another configuration"),
            "choose another name".to_owned(),
        ),
        _ => (
            format!("port {other} has it already"),
            format!("choose another {field}"),
        ),
    };
    CommandError::Conflict {
        field,
        reason,
        remedy: format!("{remedy}, or remove port {other} first"),
    }
}
