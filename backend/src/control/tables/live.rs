//! [`TableEngine`] over the real engine.
use super::engine::{
    KeyShape, ListedConnection, ListedCounter, ListedGroup, ListedMeter, ListedMulticast, Question,
    TableEngine,
};
use crate::control::PortId;
use std::net::{IpAddr, SocketAddr};
use switch_core::Millis;
use switch_core::conntrack::{Addresses, ConnRecord, Tuple};
use switch_core::engine::control::{
    EntryName, ListedEntry, ListedTable, PortNames, Trace, Update, WriteError,
};
use switch_core::engine::literal::Literal;
use switch_core::engine::model::Program;
use switch_core::engine::p4info::p4info;
use switch_core::engine::runtime::Engine;

impl TableEngine for Engine {
    fn write(
        &self,
        updates: &[Update],
        ports: &dyn PortNames,
        now: Millis,
    ) -> Result<(), WriteError> {
        Self::write(self, updates, ports, now)
    }

    fn restore(
        &self,
        updates: &[Update],
        ports: &dyn PortNames,
        now: Millis,
    ) -> Result<(), WriteError> {
        Self::restore(self, updates, ports, now)
    }

    fn counts_tenants(&self) -> bool {
        true
    }

    fn tables(&self, ports: &dyn PortNames) -> Vec<ListedTable> {
        Self::tables(self, ports)
    }

    fn key(&self, table: &str) -> Option<Vec<KeyShape>> {
        let valid = Self::program(self);
        let table = valid
            .program()
            .tables
            .iter()
            .find(|declared| declared.name == table)?;
        let shape = |key: &switch_core::engine::model::KeyDecl| {
            let field = valid.field(&key.field)?;
            Some(KeyShape {
                name: key.name.clone().unwrap_or_else(|| key.field.clone()),
                kind: key.kind,
                bits: field.bits,
                format: field.format,
            })
        };
        table.key.iter().map(shape).collect()
    }

    fn entries(
        &self,
        table: &str,
        after: Option<u64>,
        limit: usize,
        ports: &dyn PortNames,
    ) -> Result<Vec<ListedEntry>, WriteError> {
        Self::entries(self, table, (after, limit), ports)
    }

    fn explain(
        &self,
        question: Question<'_>,
        ports: &dyn PortNames,
        now: Millis,
    ) -> Result<Trace, WriteError> {
        let frame = (question.in_port, question.frame);
        Self::explain(self, frame, question.what_if, ports, now)
    }

    fn expire(&self, now: Millis, ports: &dyn PortNames) -> Vec<EntryName> {
        Self::expire(self, now, ports)
    }

    fn program(&self) -> &Program {
        Self::program(self).source()
    }

    fn p4info(&self) -> String {
        p4info(Self::program(self))
    }

    fn groups(&self, ports: &dyn PortNames) -> Vec<ListedGroup> {
        let listed = |(selector, group, members)| ListedGroup {
            selector,
            group,
            members,
        };
        Self::groups(self, ports).into_iter().map(listed).collect()
    }

    fn multicast(&self, ports: &dyn PortNames) -> Vec<ListedMulticast> {
        let name = |port: u16| {
            PortId::new(port)
                .and_then(|id| ports.name(id))
                .map_or(Literal::Number(port.into()), Literal::Text)
        };
        Self::multicast_groups(self)
            .into_iter()
            .map(|(group, ports)| ListedMulticast {
                group,
                ports: ports.into_iter().map(name).collect(),
            })
            .collect()
    }

    fn meters(&self) -> Vec<ListedMeter> {
        let listed = |(meter, index, rate)| ListedMeter { meter, index, rate };
        Self::meters(self).into_iter().map(listed).collect()
    }

    fn counters(&self, counter: &str, from: u32, limit: usize) -> Option<Vec<ListedCounter>> {
        let counters = Self::counters(self, counter, from, limit)?;
        let listed = counters.into_iter().map(|(index, counts)| ListedCounter {
            counter: counter.to_owned(),
            index,
            frames: counts.frames,
            bytes: counts.bytes,
        });
        Some(listed.collect())
    }

    fn connections(
        &self,
        from: u32,
        limit: usize,
        now: Millis,
    ) -> (Vec<ListedConnection>, Option<u32>) {
        let mut connections = vec![];
        let mut from = Some(from);
        while let Some(next) = from {
            let left = limit.saturating_sub(connections.len());
            if left == 0 {
                break;
            }
            let page = self.conntrack().list(None, next, left, now);
            connections.extend(page.connections.iter().map(|(_, record)| listed(record)));
            from = page.next;
        }
        (connections, from)
    }
}

fn listed(record: &ConnRecord) -> ListedConnection {
    ListedConnection {
        zone: record.zone.0.into(),
        flow: flow(&record.original),
        state: serde_json::to_value(record.state)
            .ok()
            .and_then(|state| state.as_str().map(str::to_owned))
            .unwrap_or_default(),
        mark: record.mark,
        expires_in_ms: record.expires_in_ms,
    }
}

/// As `ringswitch explain` takes it.
fn flow(tuple: &Tuple) -> String {
    let (from, to): (IpAddr, IpAddr) = match tuple.addresses {
        Addresses::V4 {
            source,
            destination,
        } => (source.into(), destination.into()),
        Addresses::V6 {
            source,
            destination,
        } => (source.into(), destination.into()),
    };
    let with_ports = |name: &str| {
        let from = SocketAddr::new(from, tuple.source_port);
        let to = SocketAddr::new(to, tuple.destination_port);
        format!("{name} {from} > {to}")
    };
    match tuple.protocol {
        6 => with_ports("tcp"),
        17 => with_ports("udp"),
        1 | 58 => format!("icmp {from} > {to}"),
        other => with_ports(&format!("protocol {other}")),
    }
}
