//! What the two processes tell each other.
//!
//! ```text
//!   old                                    new
//!    | Hello: format, version               |
//!    |------------------------------------->|  can it read that?
//!    |                             Accepted |
//!    |<-------------------------------------|
//!    | Switch, Entries, Connections, Stations, Prepare
//!    |------------------------------------->|  maps memory, adopts ports, fills tables
//!    |                                Ready |
//!    |<-------------------------------------|
//!    | rings are taken back                 |
//!    | Connections, Stations, Streams, Commit |
//!    |------------------------------------->|  rings are taken up
//!    |                              Running |
//!    |<-------------------------------------|
//!    | Totals, Seen, Counters, End          |
//!    |------------------------------------->|
//!    | leaves                               | opens the store, serves the admin socket
//! ```

use super::descriptors::Slot;
use crate::datapath::PortTotals;
use crate::device::HandedPort;
use crate::device::state::DeviceState;
use crate::port::stream::handover::{HandedStream, StreamRest};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use switch_core::conntrack::{ConnRecord, ConntrackStats};
use switch_core::engine::control::{EntryCounters, Update};
use switch_core::engine::seen::EntrySeen;
use switch_core::{MacRecord, MacStats};

/// Which formats of all this a version knows. A format changes when an older version could not read what a newer one writes; fields that
/// come with a default do not change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// What it writes, and the latest that it reads.
    pub latest: u32,
    /// The oldest that it reads.
    pub oldest: u32,
}

impl Formats {
    /// Those of this version.
    pub const OWN: Self = Self {
        latest: 1,
        oldest: 1,
    };

    /// Whether it reads what a version with this format wrote.
    pub fn reads(self, format: u32) -> bool {
        (self.oldest..=self.latest).contains(&format)
    }
}

static FORMATS: OnceLock<Formats> = OnceLock::new();

/// The formats of this program: [`Formats::OWN`], unless it is one that is made to test upgrades between formats.
pub fn formats() -> Formats {
    *FORMATS.get_or_init(|| Formats::OWN)
}

/// Makes this program one of another version. Called before anything else; later it has no effect.
#[doc(hidden)]
pub fn set_formats(formats: Formats) {
    FORMATS.get_or_init(|| formats);
}

/// A port of the switch, on its way.
#[derive(Debug, Serialize, Deserialize)]
pub struct SwitchPort {
    /// Its number.
    pub id: u16,
    /// Its configuration, as the admin socket takes it.
    pub config: serde_json::Value,
    /// The device of a vhost-user port.
    pub device: Option<HandedPort>,
    /// The interface of a TAP port.
    pub tap: Option<Slot>,
    /// The sockets of a stream port.
    #[serde(default)]
    pub stream: Option<HandedStream>,
}

/// What the old process tells.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromOld {
    /// What it will write.
    Hello {
        /// [`Formats::latest`].
        format: u32,
        /// The version of the program.
        version: String,
    },
    /// The ports and all there is one of.
    Switch {
        /// The program that decides on frames.
        program: String,
        /// The listening admin socket.
        admin: Slot,
        /// Where clients over TCP are accepted, if they are.
        #[serde(default)]
        remote: Option<Slot>,
        /// Every port.
        ports: Vec<SwitchPort>,
        /// The numbers of port names, those of ports that are gone included.
        names: Vec<(String, u16)>,
        /// What is set that is no entry.
        settings: Vec<Update>,
        /// What the control thread keeps of its own.
        control: serde_json::Value,
        /// The configuration of the services, where there are some.
        #[serde(default)]
        services: Option<serde_json::Value>,
    },
    /// Table entries: as many records, each behind its length in 4 bytes.
    Entries,
    /// Connections, as they are now.
    Connections(Vec<ConnRecord>),
    /// Learned stations, as they are now.
    Stations(Vec<MacRecord>),
    /// That was all.
    Prepare,
    /// How far streams were read and written; their bytes are beside. Only where there are some.
    Streams(Vec<StreamRest>),
    /// The rings were taken back, and what changed since has been told.
    Commit(Vec<(u16, DeviceState)>),
    /// What ports have counted.
    Totals {
        /// By port.
        ports: Vec<(u16, PortTotals)>,
        /// Of the table of stations.
        stations: MacStats,
        /// Of the table of connections.
        connections: ConntrackStats,
    },
    /// What entries have counted.
    Seen(Vec<EntrySeen>),
    /// What an array of counters has counted.
    Counters(String, Vec<(u32, EntryCounters)>),
    /// That was all; the old process leaves.
    End,
}

/// What the new process answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNew {
    /// It reads that format.
    Accepted,
    /// It does not go on, for this reason.
    Refused(String),
    /// It could take the rings up.
    Ready,
    /// It has.
    Running,
}
