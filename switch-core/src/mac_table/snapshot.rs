//! Stations as plain data: what another table, on this host or another, goes on with.
//!
//! Times are ages, since no two hosts' clocks agree. Pages are bounded, and so is what is done under the lock.

use serde::{Deserialize, Serialize};

use super::{ENTRIES_PER_LOCK, MacStats, MacStore, StationKey};
use crate::engine::runtime::Engine;
use crate::mac::MacAddress;
use crate::port::PortId;
use crate::switch::Switch;
use crate::time::Millis;
use crate::vlan::BroadcastDomain;

/// Slots that one page looks at.
const SLOTS_PER_PAGE: usize = 1 << 16;

/// A learned station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MacRecord {
    /// The number of its broadcast domain: 0, a VLAN, or what a program of its own chose.
    pub domain: u16,
    /// Its address.
    pub mac: MacAddress,
    /// The port it is behind.
    pub port: u16,
    /// How long ago it was last seen, in milliseconds; exact to the refresh interval.
    pub age_ms: u64,
}

/// Some of the stations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MacPage {
    /// The stations.
    pub stations: Vec<MacRecord>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<usize>,
}

/// What became of stations that were to be restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MacsRestored {
    /// Known now.
    pub taken: u64,
    /// Seen here later, and left as they are.
    pub known_since: u64,
    /// Not seen for the ageing time.
    pub too_old: u64,
    /// Their port is not there, it or the table has no room (nothing is removed for them), or it is no station's address.
    pub refused: u64,
}

/// What became of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restored {
    Taken,
    KnownSince,
    TooOld,
    Refused,
}

impl MacStore {
    /// The stations from slot `from` on (0 for the first page), of `port` if given.
    fn page(&self, port: Option<PortId>, from: usize, now: Millis) -> MacPage {
        let mut page = MacPage::default();
        let mut slot = from;
        while slot - from < SLOTS_PER_PAGE {
            let stations = &mut page.stations;
            let show = |key: StationKey, holder: PortId, age: Millis| {
                if port.is_none_or(|port| port == holder) {
                    stations.push(MacRecord {
                        domain: key.domain().get(),
                        mac: key.mac(),
                        port: holder.get(),
                        age_ms: age.0,
                    });
                }
            };
            match self.lock().entries_from(slot, now, ENTRIES_PER_LOCK, show) {
                Some(next) => slot = next,
                None => return page,
            }
        }
        page.next = Some(slot);
        page
    }

    fn take(&self, port: PortId, now: Millis) -> Vec<MacRecord> {
        let mut stations = Vec::new();
        let mut show = |key: StationKey, age: Millis| {
            stations.push(MacRecord {
                domain: key.domain().get(),
                mac: key.mac(),
                port: port.get(),
                age_ms: age.0,
            });
        };
        while self.lock().take(port, now, ENTRIES_PER_LOCK, &mut show) == ENTRIES_PER_LOCK {}
        stations
    }

    fn restore(&self, stations: &[MacRecord], now: Millis) -> MacsRestored {
        // Youngest first, so that those of a port end up in order.
        let mut stations = stations.to_vec();
        stations.sort_unstable_by_key(|station| station.age_ms);
        let mut restored = MacsRestored::default();
        for stations in stations.chunks(ENTRIES_PER_LOCK) {
            let mut table = self.lock();
            for station in stations {
                let key = StationKey::new(BroadcastDomain::any(station.domain), station.mac);
                let age = Millis(station.age_ms);
                let outcome = PortId::new(station.port)
                    .map_or(Restored::Refused, |port| table.restore(key, port, age, now));
                *match outcome {
                    Restored::Taken => &mut restored.taken,
                    Restored::KnownSince => &mut restored.known_since,
                    Restored::TooOld => &mut restored.too_old,
                    Restored::Refused => &mut restored.refused,
                } += 1;
            }
        }
        restored
    }
}

/// Of the default program.
impl Switch {
    /// The stations from `from` on (0 for the first page), of `port` if given. The table may change between two pages; a station
    /// that stays is shown once.
    pub fn mac_page(&self, port: Option<PortId>, from: usize, now: Millis) -> MacPage {
        self.macs().page(port, from, now)
    }

    /// Takes in stations that another table knew. What was seen here later stays, limits hold, and nothing is removed or learned on a
    /// port that is not there.
    pub fn restore_macs(&self, stations: &[MacRecord], now: Millis) -> MacsRestored {
        self.macs().restore(stations, now)
    }

    /// Forgets the stations behind a port, as [`Self::flush_port`] does, and tells which they were.
    pub fn take_port(&self, port: PortId, now: Millis) -> Vec<MacRecord> {
        self.macs().take(port, now)
    }

    /// Lets what an earlier switch did count as done by this one; its entries and capacity do not count.
    pub fn add_mac_stats(&self, stats: &MacStats) {
        self.macs().lock().add_stats(stats);
    }
}

/// Of any other program.
impl Engine {
    /// As [`Switch::take_port`].
    pub fn take_port(&self, port: PortId, now: Millis) -> Vec<MacRecord> {
        self.state.macs.take(port, now)
    }

    /// As [`Switch::mac_page`].
    pub fn mac_page(&self, port: Option<PortId>, from: usize, now: Millis) -> MacPage {
        self.state.macs.page(port, from, now)
    }

    /// As [`Switch::restore_macs`].
    pub fn restore_macs(&self, stations: &[MacRecord], now: Millis) -> MacsRestored {
        self.state.macs.restore(stations, now)
    }

    /// As [`Switch::add_mac_stats`].
    pub fn add_mac_stats(&self, stats: &MacStats) {
        self.state.macs.lock().add_stats(stats);
    }
}
