//! What the switch knows of a port beside its configuration, to be carried to another port: of another host, or of the same one.
//!
//! In the order it travels:
//!
//! * [`PortStates::export`]: from the running switch to a [`PortState`], plain data (`bound`: which entries and settings are the port's);
//! * [`blob`]: to bytes and back, versioned and checked (`parts`: what they hold; `crc32c`);
//! * [`PortStates::import`]: checked whole, then into the running switch.
//!
//! Nothing in it is a number or a time of the host it comes from: the port itself goes by a name that the import replaces, other
//! ports by theirs, and times are ages.
pub mod blob;
mod bound;
mod carrier;
mod crc32c;
mod export;
mod import;
mod parts;
pub mod signed;

pub use blob::{BlobError, MAX_BYTES};
pub use carrier::{Carriers, PortCarrier, StoppedStations};
pub use import::{Conflicts, ImportError, Imported};
pub use parts::{BoundEntry, Connection, Origin, Settings, Station};

use crate::config::PortName;
use crate::control::PortId;
use crate::datapath::{Datapath, PortTotals};
use std::sync::Arc;
use switch_core::Switch;
use switch_core::engine::runtime::Engine;

/// What the switch knows of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortState {
    /// Where it comes from.
    pub origin: Origin,
    /// The port's counters.
    pub totals: PortTotals,
    /// The stations behind it.
    pub stations: Vec<Station>,
    /// The connections that one end of is behind it.
    pub connections: Vec<Connection>,
    /// The entries that name it.
    pub entries: Vec<BoundEntry>,
    /// Groups and rates that it has part in.
    pub settings: Settings,
}

/// A port of this switch.
#[derive(Clone, Debug)]
pub struct NamedPort {
    /// Its number.
    pub id: PortId,
    /// Its name.
    pub name: PortName,
}

/// Where states come from and go to. Cheap to clone; used from any thread that may wait.
#[derive(Clone)]
pub struct PortStates {
    datapath: Arc<Datapath>,
    switch: Arc<Switch>,
    /// What decides on frames, if it is not the default program.
    engine: Option<Arc<Engine>>,
}

impl PortStates {
    /// Of a running switch.
    pub fn new(datapath: Arc<Datapath>, switch: Arc<Switch>, engine: Option<Arc<Engine>>) -> Self {
        Self {
            datapath,
            switch,
            engine,
        }
    }

    /// The name of the program that decides on frames.
    fn program(&self) -> &str {
        match &self.engine {
            Some(engine) => &engine.program().source().name,
            None => "l2",
        }
    }
}

impl std::fmt::Debug for PortStates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortStates")
            .field("program", &self.program())
            .finish_non_exhaustive()
    }
}
