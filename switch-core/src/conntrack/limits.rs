//! How many connections there are: in all, by the port that opened them, by zone. A count is raised before its connection exists, so
//! no number of workers together goes over a limit.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::config::ConntrackConfig;
use super::tuple::Zone;
use crate::port::PortId;

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    Capacity,
    Port,
    Zone,
}

#[derive(Debug)]
pub(crate) struct Limits {
    total: AtomicU32,
    ports: Box<[AtomicU32]>,
    zones: Box<[AtomicU32]>,
    capacity: u32,
    per_port: u32,
    per_zone: u32,
}

impl Limits {
    pub(crate) fn new(config: &ConntrackConfig) -> Self {
        let zeroes = |count| (0..count).map(|_| AtomicU32::new(0)).collect();
        Self {
            total: AtomicU32::new(0),
            ports: zeroes(PortId::LIMIT),
            zones: zeroes(1 << 16),
            capacity: config.capacity.min(ConntrackConfig::MAX_CAPACITY),
            per_port: config.per_port_limit,
            per_zone: config.per_zone_limit,
        }
    }

    /// Counts a connection that is about to be made.
    pub(crate) fn take(&self, port: u16, zone: Zone) -> Result<(), Reached> {
        if !raise(self.port(port), self.per_port) {
            return Err(Reached::Port);
        }
        if !raise(self.zone(zone), self.per_zone) {
            lower(self.port(port));
            return Err(Reached::Zone);
        }
        if !raise(Some(&self.total), self.capacity) {
            lower(self.port(port));
            lower(self.zone(zone));
            return Err(Reached::Capacity);
        }
        Ok(())
    }

    /// A connection is gone, or was not made after all.
    pub(crate) fn give_back(&self, port: u16, zone: Zone) {
        lower(self.port(port));
        lower(self.zone(zone));
        lower(Some(&self.total));
    }

    pub(crate) fn total(&self) -> u32 {
        self.total.load(Relaxed)
    }

    pub(crate) fn of_port(&self, port: u16) -> u32 {
        self.port(port).map_or(0, |count| count.load(Relaxed))
    }

    pub(crate) fn of_zone(&self, zone: Zone) -> u32 {
        self.zone(zone).map_or(0, |count| count.load(Relaxed))
    }

    fn port(&self, port: u16) -> Option<&AtomicU32> {
        self.ports.get(usize::from(port))
    }

    fn zone(&self, zone: Zone) -> Option<&AtomicU32> {
        self.zones.get(usize::from(zone.0))
    }
}

/// One more, unless that would be more than `limit`.
fn raise(count: Option<&AtomicU32>, limit: u32) -> bool {
    let Some(count) = count else {
        return false;
    };
    if count.fetch_add(1, Relaxed) < limit {
        return true;
    }
    count.fetch_sub(1, Relaxed);
    false
}

fn lower(count: Option<&AtomicU32>) {
    if let Some(count) = count {
        count.fetch_sub(1, Relaxed);
    }
}
