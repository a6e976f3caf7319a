//! From a state into the running switch.
//!
//! Entries go first, as one batch through the same checks as an operator's, and are durable like one; if it is refused, nothing has
//! changed. What comes after cannot be refused as a whole: a station or connection that finds no room is counted.
use super::bound::{PortFields, meters_by_port};
use super::parts::Connection;
use super::{BlobError, NamedPort, PortState, PortStates};
use crate::control::clock::monotonic_now;
use crate::control::tables::{Refusal, Tables};
use serde::{Deserialize, Serialize};
use switch_core::conntrack::{ConnRecord, ConnsRestored};
use switch_core::engine::control::{EntryName, TableEntry, Update};
use switch_core::engine::existing::Existing;
use switch_core::engine::literal::Literal;
use switch_core::engine::runtime::Engine;
use switch_core::engine::seen::EntrySeen;
use switch_core::{MacRecord, MacsRestored};
use utoipa::ToSchema;

/// What to do with an entry that is there and does something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conflicts {
    /// Nothing is imported.
    #[default]
    Refuse,
    /// The imported one takes its place.
    Replace,
    /// It stays, and the imported one is passed over.
    Keep,
}

/// What an import has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    /// What the port was called.
    pub from: String,
    /// The version of the switch that it comes from.
    pub version: String,
    /// Entries and settings added or replaced.
    pub written: usize,
    /// Entries and settings that were there already, or were kept.
    pub unchanged: usize,
    /// Whether they outlive the process.
    pub durable: bool,
    /// Stations.
    pub stations: MacsRestored,
    /// Connections.
    pub connections: ConnsRestored,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The bytes.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// It is of another program.
    #[error("the state is of program {there}, and this switch runs {here}")]
    Program {
        /// Which it is of.
        there: String,
        /// Which runs.
        here: String,
    },
    /// A connection that cannot be.
    #[error("a connection of the state has {0}")]
    Connection(&'static str),
    /// Entries that are there do something else.
    #[error("{count} entries or settings are there and say something else, such as {first}")]
    Conflict {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// The program has an entry with this key.
    #[error("the program itself has {0}, which cannot be changed")]
    Constant(String),
    /// The batch.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl ImportError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Blob(error) => error.remedy(),
            Self::Program { .. } => "import it where that program runs",
            Self::Connection(_) => "export it again",
            Self::Conflict { .. } => {
                "import with --replace (conflicts=replace) to have those of the state, or with --keep (conflicts=keep) to have those there are"
            }
            Self::Constant(_) => {
                "delete it where the state comes from, or import with --keep (conflicts=keep)"
            }
            Self::Refused(_) => "correct what the batch says, or import into an empty switch",
        }
    }
}

impl PortStates {
    /// Gives a port what another had, whole or not at all. Waits for entries to be durable: not to be called on a thread that must not.
    ///
    /// # Errors
    /// When it does not fit this switch. Nothing has changed then.
    pub fn import(
        &self,
        port: &NamedPort,
        state: &PortState,
        (tables, conflicts): (Option<&Tables>, Conflicts),
    ) -> Result<Imported, ImportError> {
        if state.origin.program != self.program() {
            return Err(ImportError::Program {
                there: state.origin.program.clone(),
                here: self.program().to_owned(),
            });
        }
        let connections = records(&state.connections, port)?;
        let mut imported = Imported {
            from: state.origin.port.clone(),
            version: state.origin.version.clone(),
            ..Imported::default()
        };
        if let (Some(engine), Some(tables)) = (&self.engine, tables) {
            write(engine, tables, (port, state), conflicts, &mut imported)?;
        }
        let stations: Vec<MacRecord> = state
            .stations
            .iter()
            .map(|station| station.at(port.id))
            .collect();
        let now = monotonic_now();
        match &self.engine {
            Some(engine) => {
                imported.stations = engine.restore_macs(&stations, now);
                imported.connections = engine.conntrack().restore(&connections, now);
            }
            None => imported.stations = self.switch.restore_macs(&stations, now),
        }
        self.datapath.add_totals(port.id, &state.totals);
        Ok(imported)
    }
}

fn records(connections: &[Connection], port: &NamedPort) -> Result<Vec<ConnRecord>, ImportError> {
    let records = connections
        .iter()
        .map(|connection| connection.at(port.id).map_err(ImportError::Connection));
    records.collect()
}

/// The entries and settings of the state as one batch, then what the entries had seen.
fn write(
    engine: &Engine,
    tables: &Tables,
    (port, state): (&NamedPort, &PortState),
    conflicts: Conflicts,
    imported: &mut Imported,
) -> Result<(), ImportError> {
    let mut batch = Batch {
        conflicts,
        updates: Vec::new(),
        unchanged: 0,
        in_the_way: Vec::new(),
    };
    let fields = PortFields::of(engine.program());
    let mut seen = Vec::new();
    for bound in &state.entries {
        let entry = bound.entry.clone();
        let entry = fields.renamed(entry, &state.origin.port, port.name.as_str());
        if let Some(had) = bound.seen {
            seen.push(EntrySeen {
                entry: EntryName {
                    table: entry.table.clone(),
                    key: entry.key.clone(),
                    priority: entry.priority,
                },
                counted: had.counted,
                age_ms: had.age_ms,
                idle_ms: had.idle_ms,
            });
        }
        batch.add_entry(engine, tables, entry)?;
    }
    batch.add_settings(engine, tables, (port, state));
    if let Some(first) = batch.in_the_way.first() {
        return Err(ImportError::Conflict {
            count: batch.in_the_way.len(),
            first: first.clone(),
        });
    }
    imported.unchanged = batch.unchanged;
    imported.durable = tables.durable();
    if !batch.updates.is_empty() {
        let written = tables.write_waiting(batch.updates)?;
        imported.written = written.updates;
        imported.durable = written.durable;
    }
    engine.restore_seen(&seen, (tables.names(), monotonic_now()));
    Ok(())
}

struct Batch {
    conflicts: Conflicts,
    updates: Vec<Update>,
    unchanged: usize,
    in_the_way: Vec<String>,
}

impl Batch {
    fn add_entry(
        &mut self,
        engine: &Engine,
        tables: &Tables,
        entry: TableEntry,
    ) -> Result<(), ImportError> {
        match (engine.existing(&entry, tables.names()), self.conflicts) {
            (Existing::None, _) => self.updates.push(Update::Insert(entry)),
            (Existing::Same, _) | (Existing::Other | Existing::Constant, Conflicts::Keep) => {
                self.unchanged += 1;
            }
            (Existing::Constant, _) => return Err(ImportError::Constant(described(&entry))),
            (Existing::Other, Conflicts::Replace) => self.updates.push(Update::Put(entry)),
            (Existing::Other, Conflicts::Refuse) => self.in_the_way.push(described(&entry)),
        }
        Ok(())
    }

    fn add_settings(
        &mut self,
        engine: &Engine,
        tables: &Tables,
        (port, state): (&NamedPort, &PortState),
    ) {
        let name = Literal::Text(port.name.to_string());
        let groups = tables.multicast();
        for &number in &state.settings.multicast {
            let group = groups.iter().find(|group| group.group == number);
            let mut ports = group.map(|group| group.ports.clone()).unwrap_or_default();
            if ports.contains(&name) {
                self.unchanged += 1;
                continue;
            }
            ports.push(name.clone());
            self.updates.push(Update::SetMulticast {
                group: number,
                ports,
            });
        }
        let arrays = meters_by_port(engine.program().source());
        let meters = tables.meters();
        let index = u32::from(port.id.get());
        for (meter, rate) in &state.settings.meters {
            // A newer program of the same name may ask it by something else.
            if !arrays.contains(meter) {
                continue;
            }
            let there = meters
                .iter()
                .find(|there| there.meter == *meter && there.index == index);
            match (there.map(|there| there.rate == *rate), self.conflicts) {
                (Some(true), _) | (Some(false), Conflicts::Keep) => self.unchanged += 1,
                (Some(false), Conflicts::Refuse) => {
                    self.in_the_way.push(format!("the rate of meter {meter}"));
                }
                (None, _) | (Some(false), Conflicts::Replace) => {
                    self.updates.push(Update::SetMeter {
                        meter: meter.clone(),
                        index,
                        rate: Some(*rate),
                    });
                }
            }
        }
    }
}

/// An entry as a person names it.
fn described(entry: &TableEntry) -> String {
    let key = serde_json::to_string(&entry.key).unwrap_or_default();
    format!("an entry of table {} with key {key}", entry.table)
}
