//! From the ports there are to the ports there shall be: a list of steps. Pure; a test compares plans as values.
use super::port_table::PortTable;
use super::{MAX_PORTS, PortId};
use crate::config::port::first_collision;
use crate::config::{PortConfig, PortName};
use std::collections::{BTreeMap, HashMap};
use switch_core::VlanPolicy;

/// One effect. Each carries what it needs to be done and to be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Gives the port its place in the switch.
    Join {
        /// The port.
        id: PortId,
        /// Its VLANs.
        vlan: VlanPolicy,
    },
    /// Opens its other end: socket and rings, or TAP.
    Open {
        /// The port.
        id: PortId,
        /// What to open.
        port: PortConfig,
    },
    /// Closes its other end; nothing of it is left in any worker.
    Close {
        /// The port.
        id: PortId,
        /// What was opened.
        port: PortConfig,
    },
    /// Takes it out of the switch, with every address learnt on it.
    Leave {
        /// The port.
        id: PortId,
        /// Its VLANs.
        vlan: VlanPolicy,
    },
}

impl Step {
    /// The step that takes this one back.
    pub fn inverse(&self) -> Self {
        match self.clone() {
            Self::Join { id, vlan } => Self::Leave { id, vlan },
            Self::Open { id, port } => Self::Close { id, port },
            Self::Close { id, port } => Self::Open { id, port },
            Self::Leave { id, vlan } => Self::Join { id, vlan },
        }
    }
}

/// All that has to happen to one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It comes.
    Add {
        /// The id it gets.
        id: PortId,
        /// The port.
        port: PortConfig,
    },
    /// It goes.
    Remove {
        /// The id it had.
        id: PortId,
        /// The port.
        port: PortConfig,
    },
}

impl Change {
    /// The effects, in order. A port joins the switch before its first frame can come, and leaves after the last.
    pub fn steps(&self) -> [Step; 2] {
        match self.clone() {
            Self::Add { id, port } => [
                Step::Join {
                    id,
                    vlan: port.vlan.clone(),
                },
                Step::Open { id, port },
            ],
            Self::Remove { id, port } => {
                let vlan = port.vlan.clone();
                [Step::Close { id, port }, Step::Leave { id, vlan }]
            }
        }
    }

    /// The port it is about.
    pub fn port(&self) -> &PortConfig {
        match self {
            Self::Add { port, .. } | Self::Remove { port, .. } => port,
        }
    }
}

/// What cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Two ports cannot both be.
    #[error("`{field}` of port {port} is that of port {other} already; give each port its own")]
    Collision {
        /// The port that is refused.
        port: PortName,
        /// `name`, `socket` or `interface`.
        field: &'static str,
        /// The port that has it.
        other: PortName,
    },
    /// No id is left.
    #[error("there are {MAX_PORTS} ports already, which is the most; remove one first")]
    Full,
}

/// The changes from `actual` to `desired`: removals first, in table order, then additions, in the order given.
///
/// A port whose configuration differs is removed and added. An addition gets the id that `reserved` has for its name, else the lowest that neither
/// `actual` nor `reserved` has, so an id is free for another port only after a plan that removed it has been carried out.
pub fn plan(
    actual: &PortTable,
    desired: &[PortConfig],
    reserved: &BTreeMap<PortName, PortId>,
) -> Result<Vec<Change>, PlanError> {
    refuse_collisions(desired)?;
    let wanted = by_name(desired.iter());
    let there = by_name(actual.iter().map(|(_, port)| port));
    let removed = actual
        .iter()
        .filter(|(_, port)| wanted.get(&port.name) != Some(port));
    let mut changes: Vec<Change> = removed
        .map(|(id, port)| Change::Remove {
            id,
            port: port.clone(),
        })
        .collect();
    let is_new = |port: &&PortConfig| there.get(&port.name) != Some(port);
    let mut free = (0..=u16::MAX)
        .map_while(PortId::new)
        .take(MAX_PORTS)
        .filter(|id| actual.get(*id).is_none() && !reserved.values().any(|taken| taken == id));
    for port in desired.iter().filter(is_new) {
        let id = match reserved.get(&port.name) {
            Some(id) => *id,
            None => free.next().ok_or(PlanError::Full)?,
        };
        changes.push(Change::Add {
            id,
            port: port.clone(),
        });
    }
    Ok(changes)
}

/// Ports by their names, of which no two are equal.
fn by_name<'a>(
    ports: impl Iterator<Item = &'a PortConfig>,
) -> HashMap<&'a PortName, &'a PortConfig> {
    ports.map(|port| (&port.name, port)).collect()
}

fn refuse_collisions(desired: &[PortConfig]) -> Result<(), PlanError> {
    let pair = first_collision(desired.iter()).and_then(|found| {
        let (port, other) = (desired.get(found.port)?, desired.get(found.earlier)?);
        Some((port, other, found.field))
    });
    match pair {
        None => Ok(()),
        Some((port, other, field)) => Err(PlanError::Collision {
            port: port.name.clone(),
            field,
            other: other.name.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::parse_port;

    /// With no id reserved.
    fn plan(actual: &PortTable, desired: &[PortConfig]) -> Result<Vec<Change>, PlanError> {
        super::plan(actual, desired, &BTreeMap::new())
    }

    fn port(text: &str) -> PortConfig {
        PortConfig::from_fields(parse_port(text).unwrap()).unwrap()
    }

    fn id(index: u16) -> PortId {
        PortId::new(index).unwrap()
    }

    fn vm(number: u16) -> PortConfig {
        port(&format!(
            "name=vm{number},type=vhost-user,socket=/run/vm{number}.sock"
        ))
    }

    fn table(ports: &[(u16, &PortConfig)]) -> PortTable {
        let mut table = PortTable::default();
        ports
            .iter()
            .for_each(|(index, port)| table.insert(id(*index), (*port).clone()));
        table
    }

    #[test]
    fn a_name_gets_the_id_that_is_reserved_for_it_and_no_other_name_does() {
        let reserved = BTreeMap::from([(vm(2).name, id(0)), (vm(9).name, id(1))]);
        let changes = super::plan(&PortTable::default(), &[vm(1), vm(2)], &reserved).unwrap();
        let add = |index, port| Change::Add {
            id: id(index),
            port,
        };
        assert_eq!(changes, [add(2, vm(1)), add(0, vm(2))]);
    }

    #[test]
    fn what_is_there_already_needs_no_change() {
        assert_eq!(
            plan(&table(&[(0, &vm(1)), (1, &vm(2))]), &[vm(2), vm(1)]),
            Ok(vec![])
        );
    }

    #[test]
    fn additions_get_the_lowest_free_ids_in_order() {
        let changes = plan(&table(&[(1, &vm(1))]), &[vm(1), vm(2), vm(3)]).unwrap();
        let expected = [
            Change::Add {
                id: id(0),
                port: vm(2),
            },
            Change::Add {
                id: id(2),
                port: vm(3),
            },
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn an_id_is_not_reused_by_the_plan_that_frees_it() {
        let changes = plan(&table(&[(0, &vm(1))]), &[vm(2)]).unwrap();
        let expected = [
            Change::Remove {
                id: id(0),
                port: vm(1),
            },
            Change::Add {
                id: id(1),
                port: vm(2),
            },
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn a_changed_port_is_removed_and_added() {
        let changed = port("name=vm1,type=vhost-user,socket=/run/vm1.sock,vlan=10");
        let changes = plan(&table(&[(0, &vm(1))]), std::slice::from_ref(&changed)).unwrap();
        let expected = [
            Change::Remove {
                id: id(0),
                port: vm(1),
            },
            Change::Add {
                id: id(1),
                port: changed,
            },
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn a_collision_names_the_port_that_was_there_first() {
        let second = port("name=other,type=vhost-user,socket=/run/vm1.sock");
        let error = plan(&PortTable::default(), &[vm(1), second.clone()]).unwrap_err();
        assert_eq!(
            error,
            PlanError::Collision {
                port: second.name,
                field: "socket",
                other: vm(1).name
            }
        );
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let ports: Vec<_> = (0..=u16::try_from(MAX_PORTS).unwrap()).map(vm).collect();
        assert_eq!(plan(&PortTable::default(), &ports), Err(PlanError::Full));
    }

    #[test]
    fn a_port_joins_before_it_opens_and_closes_before_it_leaves() {
        let (id, port) = (id(3), vm(1));
        let vlan = port.vlan.clone();
        let add = Change::Add {
            id,
            port: port.clone(),
        }
        .steps();
        assert_eq!(
            add,
            [
                Step::Join {
                    id,
                    vlan: vlan.clone()
                },
                Step::Open {
                    id,
                    port: port.clone()
                }
            ]
        );
        let undone: Vec<_> = add.iter().rev().map(Step::inverse).collect();
        assert_eq!(undone, Change::Remove { id, port }.steps());
    }
}
