//! From the running switch to a state. Tables are read page by page while frames go on: what changes meanwhile is in it or not.
use super::bound::{PortFields, meters_by_port};
use super::parts::{BoundEntry, Connection, Origin, Seen, Settings, Station};
use super::{NamedPort, PortState, PortStates};
use crate::control::clock::monotonic_now;
use crate::control::tables::Tables;
use crate::datapath::PortTotals;
use std::collections::BTreeMap;
use switch_core::engine::control::{EntryName, ListedEntry};
use switch_core::engine::literal::Literal;
use switch_core::engine::runtime::Engine;
use switch_core::{MacPage, MacRecord};

/// Entries or connections that are read at a time.
const PAGE: usize = 4096;

impl PortStates {
    /// All that is known of a port.
    pub fn export(&self, port: &NamedPort, tables: Option<&Tables>) -> PortState {
        let (entries, settings) = match (&self.engine, tables) {
            (Some(engine), Some(tables)) => (
                entries(engine, port, tables),
                settings(engine, port, tables),
            ),
            // The default program has no entries but those that follow from ports.
            _ => (Vec::new(), Settings::default()),
        };
        PortState {
            origin: Origin {
                port: port.name.to_string(),
                program: self.program().to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                connections_left_out: 0,
            },
            totals: self
                .datapath
                .counters(port.id)
                .map(PortTotals::from)
                .unwrap_or_default(),
            stations: self.stations(port),
            connections: self
                .engine
                .as_ref()
                .map(|engine| connections(engine, port))
                .unwrap_or_default(),
            entries,
            settings,
        }
    }

    fn stations(&self, port: &NamedPort) -> Vec<Station> {
        let mut stations = Vec::new();
        let mut from = Some(0);
        while let Some(next) = from {
            let now = monotonic_now();
            let MacPage {
                stations: page,
                next,
            } = match &self.engine {
                Some(engine) => engine.mac_page(Some(port.id), next, now),
                None => self.switch.mac_page(Some(port.id), next, now),
            };
            stations.extend(page.iter().map(|record: &MacRecord| Station::of(record)));
            from = next;
        }
        stations
    }
}

fn connections(engine: &Engine, port: &NamedPort) -> Vec<Connection> {
    let mut connections = Vec::new();
    let mut from = Some(0);
    while let Some(next) = from {
        let page = engine.conntrack().list_matching(
            |record| record.is_bound_to(port.id),
            (next, PAGE),
            monotonic_now(),
        );
        let records = page.connections.iter();
        connections.extend(records.map(|(_, record)| Connection::of(record, port.id)));
        from = page.next;
    }
    connections
}

fn entries(engine: &Engine, port: &NamedPort, tables: &Tables) -> Vec<BoundEntry> {
    let fields = PortFields::of(engine.program());
    let mut bound = Vec::new();
    for table in tables.tables() {
        if !fields.may_be_in(&table.name, &table.actions) {
            continue;
        }
        let mut after = None;
        while let Ok(page) = tables.entries(&table.name, after, PAGE) {
            let Some(last) = page.last() else { break };
            let next = Some(last.handle);
            let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
            let is_bound = |listed: &ListedEntry| {
                !listed.constant && fields.names(&listed.entry, port.name.as_str())
            };
            if page.iter().any(is_bound) {
                seen = seen_of(engine, tables, (&table.name, after));
            }
            bound.extend(page.into_iter().filter(is_bound).map(|listed| BoundEntry {
                seen: seen.remove(&name_of(&EntryName {
                    table: listed.entry.table.clone(),
                    key: listed.entry.key.clone(),
                    priority: listed.entry.priority,
                })),
                entry: listed.entry,
            }));
            after = next;
        }
    }
    bound
}

/// What the entries of a page have seen.
fn seen_of(
    engine: &Engine,
    tables: &Tables,
    (table, after): (&str, Option<u64>),
) -> BTreeMap<String, Seen> {
    let at = (tables.names(), monotonic_now());
    let page = engine.entries_seen(table, (after, PAGE), at);
    let entries = page.map(|page| page.entries).unwrap_or_default();
    let seen = entries.into_iter().map(|seen| {
        let of = Seen {
            counted: seen.counted,
            age_ms: seen.age_ms,
            idle_ms: seen.idle_ms,
        };
        (name_of(&seen.entry), of)
    });
    seen.collect()
}

/// Tells entries of a listing apart, which are all written in one way.
fn name_of(entry: &EntryName) -> String {
    format!("{:?} {:?}", entry.key, entry.priority)
}

fn settings(engine: &Engine, port: &NamedPort, tables: &Tables) -> Settings {
    let name = Literal::Text(port.name.to_string());
    let groups = tables.multicast().into_iter();
    let arrays = meters_by_port(engine.program().source());
    let meters = tables.meters().into_iter();
    Settings {
        multicast: groups
            .filter(|group| group.ports.contains(&name))
            .map(|group| group.group)
            .collect(),
        meters: meters
            .filter(|meter| {
                meter.index == u32::from(port.id.get()) && arrays.contains(&meter.meter)
            })
            .map(|meter| (meter.meter, meter.rate))
            .collect(),
    }
}
