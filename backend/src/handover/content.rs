//! What the switch has learned and what operators put into it, page by page.

use super::channel::Channel;
use super::messages::FromOld;
use crate::control::clock::monotonic_now;
use crate::control::services::NEIGHBORS;
use crate::control::tables::Tables;
use crate::control::tables::record::{read_record, write_record};
use serde_json::json;
use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use switch_core::conntrack::{ConnRecord, ConntrackStats};
use switch_core::engine::control::{EntryCounters, TableEntry, Update};
use switch_core::engine::model::Program;
use switch_core::engine::runtime::Engine;
use switch_core::{MacPage, MacRecord, MacStats, Millis, Switch};

/// Records in one message.
const PAGE: usize = 5_000;

/// What decides on frames: the default program's switch, or an engine.
#[derive(Clone)]
pub struct Learned {
    /// The default program's.
    pub switch: Arc<Switch>,
    /// Any other's.
    pub engine: Option<Arc<Engine>>,
}

impl Learned {
    fn stations(&self, from: usize, now: Millis) -> MacPage {
        match &self.engine {
            Some(engine) => engine.mac_page(None, from, now),
            None => self.switch.mac_page(None, from, now),
        }
    }

    /// Takes stations in.
    pub(super) fn take_stations(&self, stations: &[MacRecord]) {
        match &self.engine {
            Some(engine) => engine.restore_macs(stations, monotonic_now()),
            None => self.switch.restore_macs(stations, monotonic_now()),
        };
    }

    /// Takes connections in, in the place of what was told of them before.
    pub(super) fn take_connections(&self, records: &[ConnRecord]) {
        if let Some(engine) = &self.engine {
            engine.conntrack().renew(records, monotonic_now());
        }
    }

    /// Goes on counting from there.
    pub(super) fn add_stats(&self, stations: &MacStats, connections: &ConntrackStats) {
        match &self.engine {
            Some(engine) => {
                engine.add_mac_stats(stations);
                engine.conntrack().add_stats(connections);
            }
            None => self.switch.add_mac_stats(stations),
        }
    }

    /// Sends stations and connections that were seen within `age_ms`.
    pub(super) fn send(&self, channel: &Channel, age_ms: u64) -> io::Result<()> {
        let now = monotonic_now();
        let mut next = Some(0);
        while let Some(from) = next {
            let MacPage {
                mut stations,
                next: after,
            } = self.stations(from, now);
            stations.retain(|station| station.age_ms <= age_ms);
            for stations in stations.chunks(PAGE) {
                channel.tell(&FromOld::Stations(stations.to_vec()))?;
            }
            next = after;
        }
        let Some(engine) = &self.engine else {
            return Ok(());
        };
        let mut next = Some(0);
        while let Some(from) = next {
            let recent = |record: &ConnRecord| record.idle_ms <= age_ms;
            let page = engine.conntrack().list_matching(recent, (from, PAGE), now);
            let records = page.connections.into_iter().map(|(_, record)| record);
            channel.tell(&FromOld::Connections(records.collect()))?;
            next = page.next;
        }
        Ok(())
    }

    /// Sends what entries and arrays of counters have counted.
    pub(super) fn send_counts(&self, channel: &Channel, tables: &Tables) -> io::Result<()> {
        let (Some(engine), now) = (&self.engine, monotonic_now()) else {
            return Ok(());
        };
        for table in tables.tables() {
            let mut after = None;
            loop {
                let page = engine.entries_seen(&table.name, (after, PAGE), (tables.names(), now));
                let page = page.map_err(|error| io::Error::other(error.reason))?;
                if !page.entries.is_empty() {
                    channel.tell(&FromOld::Seen(page.entries))?;
                }
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        for array in engine.counter_arrays() {
            let mut from = 0;
            while let Some(listed) = tables.counters(array, from, PAGE)
                && let Some(last) = listed.last()
            {
                from = last.index + 1;
                let counted = listed.iter().map(|counter| {
                    let counted = EntryCounters {
                        frames: counter.frames,
                        bytes: counter.bytes,
                    };
                    (counter.index, counted)
                });
                channel.tell(&FromOld::Counters(array.to_owned(), counted.collect()))?;
            }
        }
        Ok(())
    }
}

/// Sends every entry of every table, but those of neighbours in `looked_up`: who wrote them does not know them any more, and looks again.
/// Nothing changes the others meanwhile.
pub(super) fn send_entries(
    channel: &Channel,
    tables: &Tables,
    looked_up: &HashSet<String>,
) -> io::Result<()> {
    for table in tables.tables() {
        let mut after = None;
        loop {
            let page = tables.entries(&table.name, after, PAGE);
            let page = page.map_err(|error| io::Error::other(error.reason))?;
            let Some(last) = page.last() else { break };
            after = Some(last.handle);
            let (mut bytes, mut record) = (Vec::new(), Vec::new());
            for listed in &page {
                // The program brings its own.
                if listed.constant || is_neighbor(&listed.entry, looked_up) {
                    continue;
                }
                record.clear();
                write_record(&mut record, &listed.entry);
                bytes.extend((record.len() as u32).to_le_bytes());
                bytes.extend(&record);
            }
            channel.send(&FromOld::Entries, (&bytes, &[]))?;
        }
    }
    Ok(())
}

fn is_neighbor(entry: &TableEntry, looked_up: &HashSet<String>) -> bool {
    entry.table == NEIGHBORS
        && serde_json::to_value(&entry.key).is_ok_and(|key| looked_up.contains(&key.to_string()))
}

/// The key of a neighbour's entry, as JSON.
pub fn neighbor_key(interface: u32, address: IpAddr) -> String {
    json!({"interface": interface, "address": address.to_string()}).to_string()
}

/// The entries of a message.
pub(super) fn read_entries(mut bytes: &[u8]) -> io::Result<Vec<Update>> {
    let mut entries = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (record, rest) = rest
            .split_at_checked(u32::from_le_bytes(*length) as usize)
            .ok_or(io::ErrorKind::InvalidData)?;
        bytes = rest;
        let entry = read_record(record).map_err(io::Error::other)?;
        entries.push(Update::Put(entry));
    }
    Ok(entries)
}

/// What is set that is no entry, as updates that set it again.
pub(super) fn settings(tables: &Tables) -> Vec<Update> {
    let program: &Program = tables.program();
    let by_program = |name: &str| {
        let table = program.tables.iter().find(|table| table.name == name);
        table.map(|table| table.default_action.clone())
    };
    let mut settings = Vec::new();
    for table in tables.tables() {
        if by_program(&table.name).flatten() != table.default_action {
            settings.push(Update::SetDefault {
                table: table.name,
                default: table.default_action,
            });
        }
    }
    for group in tables.groups() {
        settings.push(Update::SetGroup {
            selector: group.selector,
            group: group.group,
            members: group.members,
        });
    }
    for group in tables.multicast() {
        settings.push(Update::SetMulticast {
            group: group.group,
            ports: group.ports,
        });
    }
    for meter in tables.meters() {
        settings.push(Update::SetMeter {
            meter: meter.meter,
            index: meter.index,
            rate: Some(meter.rate),
        });
    }
    settings
}
