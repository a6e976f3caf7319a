//! Making room: which connection goes when another cannot be opened otherwise.
//!
//! Never one that is assured (a TCP handshake was completed, UDP was answered). At a port's limit only one of the port's own, so that
//! nobody's connections depend on how many others open. When the whole table is full, first one of the port's own, then one of a
//! port that holds more than this one does. Both searches are short: the port's latest connections, of which a flood's are all
//! unanswered, then some slots at random.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::limits::Reached;
use super::slot::{Status, Tick};
use super::table::{Conntrack, NewConnection};
use super::tracked::ConnId;
use crate::port::PortId;
use crate::time::Millis;

/// Connections of a port that are remembered as its latest.
const REMEMBERED: usize = 32;
/// Slots looked at in the second search.
const PROBES: u32 = 32;

/// Each port's latest connections.
#[derive(Debug)]
pub(super) struct RecentlyOpened {
    ports: Box<[OnceLock<Box<Latest>>]>,
}

#[derive(Debug, Default)]
struct Latest {
    count: AtomicU32,
    ids: [AtomicU64; REMEMBERED],
}

impl RecentlyOpened {
    pub(super) fn new() -> Self {
        Self {
            ports: (0..PortId::LIMIT).map(|_| OnceLock::new()).collect(),
        }
    }

    pub(super) fn note(&self, port: u16, id: ConnId) {
        let Some(latest) = self.ports.get(usize::from(port)) else {
            return;
        };
        let latest = latest.get_or_init(Box::default);
        let position = latest.count.fetch_add(1, Relaxed) as usize % REMEMBERED;
        if let Some(place) = latest.ids.get(position) {
            place.store(id.to_bits(), Relaxed);
        }
    }

    /// The latest of `port`, oldest first.
    fn of_port(&self, port: u16) -> impl Iterator<Item = ConnId> + '_ {
        let latest = self.ports.get(usize::from(port)).and_then(OnceLock::get);
        let first = latest.map_or(0, |latest| latest.count.load(Relaxed) as usize);
        (0..REMEMBERED)
            .filter_map(move |offset| latest?.ids.get((first + offset) % REMEMBERED))
            .map(|bits| ConnId::from_bits(bits.load(Relaxed)))
    }
}

impl Conntrack {
    /// Removes a connection so that `new` has room within `limit`. Says whether one was removed.
    pub(super) fn make_room(&self, limit: Reached, new: &NewConnection, now: Millis) -> bool {
        let own = |id| self.replace(id, limit, new, now);
        if self.recent.of_port(new.port).any(own) {
            return true;
        }
        let end = self.slab.used_end();
        if end == 0 {
            return false;
        }
        let start = self.random_number();
        (0..PROBES).any(|probe| {
            let index = (start.wrapping_add(u64::from(probe).wrapping_mul(0x9e37_79b1))
                % u64::from(end)) as u32;
            let Some(slot) = self.slab.get(index) else {
                return false;
            };
            let generation = slot.status().generation();
            self.replace(ConnId { index, generation }, limit, new, now)
        })
    }

    /// Removes a connection if it may be replaced by `new` and would make room for it.
    fn replace(&self, id: ConnId, limit: Reached, new: &NewConnection, now: Millis) -> bool {
        let Some(slot) = self.slab.get(id.index) else {
            return false;
        };
        let cold = slot.lock();
        let status = slot.status();
        if status.is_free() || status.generation() != id.generation {
            return false;
        }
        let (port, zone) = (cold.port, cold.zone);
        drop(cold);
        let over = self.is_overdue(slot, status, Tick::of(now));
        let makes_room = match limit {
            Reached::Port => port == new.port,
            Reached::Zone => zone == new.zone && (over || port == new.port),
            Reached::Capacity => {
                over || port == new.port
                    || self.limits.of_port(port) > self.limits.of_port(new.port)
            }
        };
        if !makes_room || !over && status.has(Status::ASSURED) || !self.remove(id) {
            return false;
        }
        let counter = if over {
            &self.expired
        } else {
            &self.early_dropped
        };
        counter.fetch_add(1, Relaxed);
        true
    }
}
