//! A port's state on its way with a migrating VM ([`StateCarrier`]): exported and signed, opened and imported.
//!
//! What comes in passed through a VMM, which may be anybody's. So it must be signed by a switch with the same key, be of a port of the same
//! name, and be fresh; entries that are here already stay. A state that is too old, or this switch's own, is no fault: a VM may be brought
//! back from a snapshot. It then goes on with what the switch has.
use super::signed::{OVERHEAD_BYTES, Opened, StateKey, SwitchMark};
use super::{Conflicts, Imported, NamedPort, PortStates, Station, blob};
use crate::control::PortId;
use crate::control::clock::monotonic_now;
use crate::control::tables::Tables;
use crate::device::state_transfer::{MAX_STATE_BYTES, StateCarrier};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use switch_core::{MacRecord, Millis};

/// How far hosts' clocks may be apart.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// What the carriers of all ports share.
pub struct Carriers {
    /// What all hosts share.
    pub key: StateKey,
    /// Whose own states are not taken in again.
    pub here: SwitchMark,
    /// Older ones are not taken in.
    pub max_age: Duration,
    /// Where entries come from and go to, once that is known.
    pub tables: OnceLock<Option<Tables>>,
}

/// Stations of ports whose rings are stopped. A switch forgets them then; a VM that migrates is stopped before its state is asked for.
#[derive(Debug, Default)]
pub struct StoppedStations(Mutex<HashMap<PortId, Stopped>>);

#[derive(Debug, Default)]
struct Stopped {
    stations: Vec<MacRecord>,
    since: Millis,
}

impl StoppedStations {
    /// Those of a port are kept from now on.
    pub fn keep(&self, port: PortId) {
        self.lock().insert(port, Stopped::default());
    }

    /// Not any more.
    pub fn leave(&self, port: PortId) {
        self.lock().remove(&port);
    }

    /// Whether those of a port are kept.
    pub fn keeps(&self, port: PortId) -> bool {
        self.lock().contains_key(&port)
    }

    /// The port's rings were stopped, and these were forgotten; none: they run.
    pub fn set(&self, port: PortId, stations: Vec<MacRecord>, now: Millis) {
        if let Some(stopped) = self.lock().get_mut(&port) {
            *stopped = Stopped {
                stations,
                since: now,
            };
        }
    }

    /// Adds those of a port to what is known of it.
    fn add_to(&self, port: PortId, stations: &mut Vec<Station>, now: Millis) {
        let known: HashSet<_> = stations.iter().map(|it| (it.domain, it.mac)).collect();
        let kept = self.lock();
        let Some(stopped) = kept.get(&port) else {
            return;
        };
        let ago = now.since(stopped.since).0;
        let gone = stopped.stations.iter().map(Station::of);
        let gone = gone.filter(|station| !known.contains(&(station.domain, station.mac)));
        stations.extend(gone.map(|station| Station {
            age_ms: station.age_ms.saturating_add(ago),
            ..station
        }));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PortId, Stopped>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Carries one port's state.
pub struct PortCarrier {
    /// Which port.
    pub port: NamedPort,
    /// Where the state is.
    pub states: PortStates,
    /// Its stations, when it is stopped.
    pub stopped: Arc<StoppedStations>,
    /// What all ports share.
    pub shared: Arc<Carriers>,
}

impl fmt::Debug for PortCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PortCarrier").field(&self.port).finish()
    }
}

impl PortCarrier {
    fn tables(&self) -> Result<Option<&Tables>, String> {
        let tables = self.shared.tables.get();
        Ok(tables.ok_or("the switch is starting")?.as_ref())
    }
}

impl StateCarrier for PortCarrier {
    fn save(&self) -> Result<(Vec<u8>, String), String> {
        let mut state = self.states.export(&self.port, self.tables()?);
        self.stopped
            .add_to(self.port.id, &mut state.stations, monotonic_now());
        let room = MAX_STATE_BYTES - OVERHEAD_BYTES;
        let written = blob::write_within(&state, room).map_err(|error| error.to_string())?;
        let bytes = self.shared.key.sign(&written, now_ms(), &self.shared.here);
        let done = format!(
            "a migration took the port's state along: {} bytes, {} entries, {} stations",
            bytes.len(),
            state.entries.len(),
            state.stations.len(),
        );
        Ok((bytes, done))
    }

    fn load(&self, bytes: &[u8]) -> Result<String, String> {
        let opened = self.shared.key.open(bytes);
        let opened = opened.map_err(|error| error.to_string())?;
        let state = blob::read(opened.state).map_err(|error| error.to_string())?;
        let (here, there) = (self.port.name.as_str(), &state.origin.port);
        if here != there {
            return Err(format!(
                "the state is of port {there:?}: a migration carries it only between ports of the same name"
            ));
        }
        if let Some(reason) = self.stale(&opened, now_ms()) {
            return Ok(format!(
                "the state that came with the VM was not taken in: {reason}; the VM goes on with what the switch has"
            ));
        }
        let with = (self.tables()?, Conflicts::Keep);
        let imported = self.states.import(&self.port, &state, with);
        imported
            .map(|imported| told(&imported))
            .map_err(|error| format!("{error}; {}", error.remedy()))
    }
}

impl PortCarrier {
    /// Why a state says nothing new.
    fn stale(&self, opened: &Opened<'_>, now_ms: u64) -> Option<String> {
        if opened.switch == self.shared.here {
            return Some("it is of this very switch, which knows better".to_owned());
        }
        let limit = u64::try_from(self.shared.max_age.as_millis()).unwrap_or(u64::MAX);
        let age_ms = now_ms.saturating_sub(opened.exported_ms);
        if age_ms > limit {
            let (age, limit) = (age_ms / 1000, limit / 1000);
            return Some(format!(
                "it is {age} s old, and device_state_max_age_s is {limit}"
            ));
        }
        let ahead = Duration::from_millis(opened.exported_ms.saturating_sub(now_ms));
        (ahead > CLOCK_SKEW).then(|| {
            format!(
                "it is of {} s from now: set the hosts' clocks",
                ahead.as_secs()
            )
        })
    }
}

fn told(imported: &Imported) -> String {
    format!(
        "the port's state came with the VM, from a switch of version {}: {} entries and settings ({} were here), {} stations, {} connections",
        imported.version,
        imported.written,
        imported.unchanged,
        imported.stations.taken,
        imported.connections.taken,
    )
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
