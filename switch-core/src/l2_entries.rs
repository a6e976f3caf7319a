//! What ports' VLAN policies mean in the tables of the program `l2` (`programs/l2.json`).
//!
//! | table | entries |
//! |---|---|
//! | `ingress_port` | one for each port: its policy |
//! | `vlan_admission` | for each trunk, one for each range of VLANs it allows |
//! | `vlan_members` | for each port, one for each range of domains whose frames leave by it in the same way |
//!
//! Multicast group 1 to 4094 has the ports of that VLAN, group [`TRANSPARENT_GROUP`] those without one.
//!
//! Pure: from the policies that were to the policies that are, as one batch of changes. Ports are named by number.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use crate::engine::control::{EntryName, TableEntry, Update};
use crate::engine::literal::Literal;
use crate::engine::model::{KeyMatch, Program};
use crate::port::PortId;
use crate::vlan::{VlanId, VlanPolicy, VlanSet};

/// The multicast group of ports without a VLAN: the identifier that IEEE 802.1Q reserves is no VLAN's.
pub const TRANSPARENT_GROUP: u16 = 4095;

/// The tables that ports' VLAN policies fill.
pub const TABLES: [&str; 3] = ["ingress_port", "vlan_admission", "vlan_members"];

/// Priority of a port's own entries: above what holds for all of a policy, below what holds for all ports.
const PRIORITY: i32 = 1_000;

/// Ports and what they do with VLANs.
pub type Policies = BTreeMap<PortId, VlanPolicy>;

/// Whether a program has the tables that ports' VLAN policies fill, by their names.
pub fn has_tables(program: &Program) -> bool {
    TABLES
        .iter()
        .all(|name| program.tables.iter().any(|table| table.name == *name))
}

/// The entries that follow from a port's policy.
pub fn entries(port: PortId, policy: &VlanPolicy) -> Vec<TableEntry> {
    let (action, vlan) = match policy {
        VlanPolicy::Transparent => ("transparent", None),
        VlanPolicy::Access(vlan) => ("access", Some(*vlan)),
        VlanPolicy::Trunk { native: None, .. } => ("trunk", None),
        VlanPolicy::Trunk { native, .. } => ("trunk_with_native", *native),
    };
    let mut ingress = entry("ingress_port", [("port", number(port))], action);
    if let Some(vlan) = vlan {
        ingress
            .params
            .insert("vlan".to_owned(), Literal::Number(vlan.get().into()));
    }
    let mut entries = vec![ingress];
    let mut member = |domains: RangeInclusive<u16>, action: &str| {
        let key = [("port", number(port)), ("domain", range(&domains))];
        entries.push(with_priority(entry("vlan_members", key, action)));
    };
    match policy {
        VlanPolicy::Transparent => member(0..=0, "member_opaque"),
        VlanPolicy::Access(vlan) => member(only(*vlan), "member_access"),
        VlanPolicy::Trunk { allowed, native } => {
            for vlans in ranges(allowed, |vlan| Some(vlan) != *native) {
                member(vlans, "member_tagged");
            }
            if let Some(native) = native {
                member(only(*native), "member_native");
            }
            let mut admitted = allowed.clone();
            native.iter().for_each(|native| admitted.insert(*native));
            for vlans in ranges(&admitted, |_| true) {
                let key = [
                    ("port", number(port)),
                    ("tag", KeyMatch::Text(Literal::Number(2))),
                    ("vlan", range(&vlans)),
                ];
                entries.push(with_priority(entry("vlan_admission", key, "assign_tagged")));
            }
        }
    }
    entries
}

/// The multicast groups that a port with this policy belongs to, ascending.
pub fn groups(policy: &VlanPolicy) -> Vec<u16> {
    match policy {
        VlanPolicy::Transparent => vec![TRANSPARENT_GROUP],
        VlanPolicy::Access(vlan) => vec![vlan.get()],
        VlanPolicy::Trunk { allowed, native } => {
            let mut all = allowed.clone();
            native.iter().for_each(|native| all.insert(*native));
            all.iter().map(VlanId::get).collect()
        }
    }
}

/// The changes from the tables of some ports to those of others; none when they are the same.
pub fn changes(before: &Policies, after: &Policies) -> Vec<Update> {
    let differing = |one: &Policies, other: &Policies| -> Vec<(PortId, VlanPolicy)> {
        let changed = one
            .iter()
            .filter(|(port, policy)| other.get(port) != Some(policy));
        changed
            .map(|(port, policy)| (*port, policy.clone()))
            .collect()
    };
    let (gone, come) = (differing(before, after), differing(after, before));
    let mut touched: BTreeSet<u16> = BTreeSet::new();
    let mut updates = Vec::new();
    for (port, policy) in &gone {
        touched.extend(groups(policy));
        updates.extend(entries(*port, policy).into_iter().map(|entry| {
            Update::Delete(EntryName {
                table: entry.table,
                key: entry.key,
                priority: entry.priority,
            })
        }));
    }
    for (port, policy) in &come {
        touched.extend(groups(policy));
        updates.extend(entries(*port, policy).into_iter().map(Update::Put));
    }
    let mut members: BTreeMap<u16, Vec<Literal>> =
        touched.into_iter().map(|group| (group, vec![])).collect();
    for (port, policy) in after {
        for group in groups(policy) {
            if let Some(ports) = members.get_mut(&group) {
                ports.push(Literal::Number(port.get().into()));
            }
        }
    }
    updates.extend(
        members
            .into_iter()
            .map(|(group, ports)| Update::SetMulticast { group, ports }),
    );
    updates
}

fn entry<const N: usize>(table: &str, key: [(&str, KeyMatch); N], action: &str) -> TableEntry {
    TableEntry {
        table: table.to_owned(),
        key: key
            .into_iter()
            .map(|(name, wanted)| (name.to_owned(), wanted))
            .collect(),
        priority: None,
        action: action.to_owned(),
        params: BTreeMap::new(),
        idle_timeout_ms: 0,
        hard_timeout_ms: 0,
        tenant: None,
    }
}

fn with_priority(entry: TableEntry) -> TableEntry {
    TableEntry {
        priority: Some(PRIORITY),
        ..entry
    }
}

fn number(port: PortId) -> KeyMatch {
    KeyMatch::Text(Literal::Number(port.get().into()))
}

fn range(numbers: &RangeInclusive<u16>) -> KeyMatch {
    let bound = |number: &u16| Literal::Number((*number).into());
    KeyMatch::Range {
        low: bound(numbers.start()),
        high: bound(numbers.end()),
    }
}

fn only(vlan: VlanId) -> RangeInclusive<u16> {
    vlan.get()..=vlan.get()
}

/// The wanted VLANs of a set, neighbours together.
fn ranges(vlans: &VlanSet, wanted: impl Fn(VlanId) -> bool) -> Vec<RangeInclusive<u16>> {
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for vlan in vlans.iter().filter(|vlan| wanted(*vlan)).map(VlanId::get) {
        match ranges.last_mut() {
            Some(last) if *last.end() + 1 == vlan => *last = *last.start()..=vlan,
            _ => ranges.push(vlan..=vlan),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16) -> PortId {
        PortId::new(number).expect("a small number")
    }

    fn vlans(numbers: &[u16]) -> VlanSet {
        numbers.iter().copied().filter_map(VlanId::new).collect()
    }

    #[test]
    fn neighbouring_vlans_are_one_entry_but_for_the_native_one() {
        let policy = VlanPolicy::Trunk {
            allowed: vlans(&[1, 2, 3, 4, 9]),
            native: VlanId::new(3),
        };
        let made: Vec<(String, String, Option<String>)> = entries(port(7), &policy)
            .into_iter()
            .map(|entry| {
                let range = entry.key.get("domain").or(entry.key.get("vlan")).cloned();
                let text = range.map(|range| match range {
                    KeyMatch::Range { low, high } => format!("{low}..{high}"),
                    other => panic!("{other:?}"),
                });
                (entry.table, entry.action, text)
            })
            .collect();
        let row = |table: &str, action: &str, range: Option<&str>| {
            (
                table.to_owned(),
                action.to_owned(),
                range.map(str::to_owned),
            )
        };
        let expected = [
            row("ingress_port", "trunk_with_native", None),
            row("vlan_members", "member_tagged", Some("1..2")),
            row("vlan_members", "member_tagged", Some("4..4")),
            row("vlan_members", "member_tagged", Some("9..9")),
            row("vlan_members", "member_native", Some("3..3")),
            row("vlan_admission", "assign_tagged", Some("1..4")),
            row("vlan_admission", "assign_tagged", Some("9..9")),
        ];
        assert_eq!(made, expected);
    }

    #[test]
    fn what_stays_the_same_is_not_written_again() {
        let one: Policies = [(port(1), VlanPolicy::Transparent)].into();
        let mut both = one.clone();
        both.insert(port(2), VlanPolicy::Transparent);
        assert_eq!(changes(&both, &both), []);
        let added = changes(&one, &both);
        assert_eq!(added.len(), 3, "two entries and a group: {added:?}");
        let ports = [1, 2].map(Literal::Number).to_vec();
        let group = TRANSPARENT_GROUP;
        assert!(added.contains(&Update::SetMulticast { group, ports }));
        let removed = changes(&both, &BTreeMap::new());
        let ports = vec![];
        assert!(removed.contains(&Update::SetMulticast { group, ports }));
    }
}
