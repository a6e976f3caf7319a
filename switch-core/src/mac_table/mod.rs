//! Which station is behind which port: the learning switch's one piece of shared, changing state.
//!
//! * [`epochs`]: counters that tell the flow caches which of their verdicts a change here may have touched;
//! * [`table`]: the bounded table itself;
//! * [`by_count`]: which port holds most entries, so that a full table takes from the largest holder;
//! * [`list`]: the intrusive index lists both are made of;
//! * [`snapshot`]: stations as plain data, to be known by another table.
//!
//! Workers come here on a flow-cache miss and about once a second for each live flow; the control thread comes to expire, flush
//! and list. [`MacStore`] holds the lock, which is a leaf: nothing else is locked, and nothing unbounded done, under it.

mod by_count;
mod epochs;
mod list;
mod moves;
mod snapshot;
mod table;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::mac::MacAddress;
use crate::port::PortId;
use crate::time::Millis;
use crate::vlan::{BroadcastDomain, VlanId};

pub(crate) use epochs::{EpochBucket, MacEpochs};
pub use moves::{MacMove, MacMoves};
pub use snapshot::{MacPage, MacRecord, MacsRestored};
pub use table::SourceAction;
pub(crate) use table::{Limits, MacTable};

/// How many entries one hold of the lock may remove or copy.
const ENTRIES_PER_LOCK: usize = 256;

/// A learned station, as `fdb` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacEntry {
    /// The VLAN it was seen in; `None` among ports without one.
    pub vlan: Option<VlanId>,
    /// Its address.
    pub mac: MacAddress,
    /// The port it is behind.
    pub port: PortId,
    /// How long ago it was last seen; exact to the refresh interval.
    pub age: Millis,
}

/// What the MAC table has done since the switch was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacStats {
    /// Entries now in the table.
    pub entries: u64,
    /// Entries it can hold.
    pub capacity: u64,
    /// Stations learned.
    pub learned: u64,
    /// Stations that turned up behind another port.
    pub moved: u64,
    /// Entries removed because they were not seen for the ageing time.
    pub aged: u64,
    /// Entries removed to make room for another.
    pub evicted: u64,
    /// Frames whose source was not learned: their port was over its rate, or had no room of its own.
    pub withheld: u64,
}

/// The shared MAC table: the lock, and the epochs that are read without it.
pub(crate) struct MacStore {
    table: Mutex<MacTable>,
    limits: Limits,
    epochs: Arc<MacEpochs>,
}

impl MacStore {
    pub(crate) fn new(limits: Limits) -> Self {
        let epochs = Arc::new(MacEpochs::new());
        Self {
            table: Mutex::new(MacTable::new(limits, Arc::clone(&epochs))),
            limits,
            epochs,
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn epochs(&self) -> &Arc<MacEpochs> {
        &self.epochs
    }

    /// Takes the lock. A thread that panicked while holding it left a table whose lists may be short of an entry but whose
    /// indexes are all checked, so the others go on.
    pub(crate) fn lock(&self) -> MutexGuard<'_, MacTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stations that have moved since the last time.
    pub(crate) fn take_moves(&self) -> MacMoves {
        self.lock().take_moves()
    }

    /// Removes what has not been seen for the ageing time.
    pub(crate) fn expire(&self, now: Millis) {
        let mut port = 0;
        while let Some(next) = {
            let mut table = self.lock();
            table.expire_from(port, now, ENTRIES_PER_LOCK)
        } {
            port = next;
        }
    }

    /// Removes what was learned on `port`.
    pub(crate) fn flush(&self, port: PortId) {
        while self.lock().flush(port, ENTRIES_PER_LOCK) == ENTRIES_PER_LOCK {}
    }

    /// The live entries. Taken in pieces: the table may change between two of them.
    pub(crate) fn entries(&self, now: Millis) -> Vec<MacEntry> {
        let mut entries = Vec::new();
        let mut slot = 0;
        loop {
            let mut show = |key: StationKey, port, age| {
                entries.push(MacEntry {
                    vlan: key.domain().vlan(),
                    mac: key.mac(),
                    port,
                    age,
                });
            };
            let table = self.lock();
            let Some(next) = table.entries_from(slot, now, ENTRIES_PER_LOCK, &mut show) else {
                return entries;
            };
            slot = next;
        }
    }
}

/// A station's place in the table: its address within a broadcast domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StationKey(u64);

impl StationKey {
    pub(crate) const fn new(domain: BroadcastDomain, mac: MacAddress) -> Self {
        Self((domain.get() as u64) << 48 | mac.as_u64())
    }

    const fn domain(self) -> BroadcastDomain {
        BroadcastDomain::any((self.0 >> 48) as u16)
    }

    const fn mac(self) -> MacAddress {
        MacAddress::from_u64(self.0)
    }
}
