//! Learned neighbours in the program's table.
//!
//! They are volatile: written to the engine and never to the store, since after a restart nobody knows whether they are still there.
//! An entry that an operator put there for the same address stays as it is.
use super::counts::{Counts, count};
use crate::control::clock::monotonic_now;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use switch_core::engine::control::{EntryName, PortNames, TableEntry, Update, WriteErrorKind};
use switch_core::engine::literal::Literal;
use switch_core::engine::model::{KeyKind, KeyMatch, Program};
use switch_core::engine::runtime::Engine;
use switch_core::{MacAddress, PortId};

/// The table's name, in every program that routes.
pub const TABLE: &str = "neighbors";
/// Deletions that are one batch.
const BATCH: usize = 1024;

/// No names: everything is written by number.
pub struct Numbers;

impl PortNames for Numbers {
    fn id(&self, _: &str) -> Option<PortId> {
        None
    }

    fn name(&self, _: PortId) -> Option<String> {
        None
    }
}

/// The action of a neighbour's entry, as far as a program has one that can be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    action: String,
    params: Vec<Param>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Param {
    Mac,
    Port,
    Domain,
}

impl Param {
    fn of(name: &str) -> Option<Self> {
        match name {
            "mac" => Some(Self::Mac),
            "port" => Some(Self::Port),
            "domain" => Some(Self::Domain),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Mac => "mac",
            Self::Port => "port",
            Self::Domain => "domain",
        }
    }
}

impl Shape {
    /// `None`: the program has no such table, or one with another key, or no action with these parameters alone.
    fn of(program: &Program) -> Option<Self> {
        let table = program.tables.iter().find(|table| table.name == TABLE)?;
        let keys: HashSet<&str> = table
            .key
            .iter()
            .filter(|key| key.kind == KeyKind::Exact)
            .map(|key| key.name.as_deref().unwrap_or(&key.field))
            .collect();
        if table.key.len() != 2 || keys != HashSet::from(["interface", "address"]) {
            return None;
        }
        table.actions.iter().find_map(|name| {
            let action = program.actions.iter().find(|action| action.name == *name)?;
            let params: Option<Vec<Param>> = action
                .params
                .iter()
                .map(|param| Param::of(&param.name))
                .collect();
            let params = params.filter(|params| params.contains(&Param::Mac))?;
            Some(Self {
                action: name.clone(),
                params,
            })
        })
    }
}

/// A neighbour that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its MAC address.
    pub mac: MacAddress,
    /// The port that it is behind.
    pub port: PortId,
    /// The bridge domain of the router interface.
    pub domain: u16,
}

/// Which neighbour: the router interface, and its address.
pub type NeighborName = (u32, IpAddr);

/// The program's table.
pub struct NeighborTable {
    engine: Arc<Engine>,
    shape: Option<Shape>,
    /// Those whose entries are from here; bounded by the services' own limit.
    own: HashSet<NeighborName>,
    /// Said once.
    warned: bool,
}

impl NeighborTable {
    /// That of the engine's program.
    pub fn new(engine: Arc<Engine>) -> Self {
        let shape = Shape::of(engine.program().source());
        Self {
            engine,
            shape,
            own: HashSet::new(),
            warned: false,
        }
    }

    /// Whether the program has a table for neighbours.
    pub fn is_there(&self) -> bool {
        self.shape.is_some()
    }

    /// Puts a neighbour in. When this returns, it is in force.
    pub fn learn(&mut self, name: NeighborName, known: Known, counts: &Counts) {
        let Some(entry) = self.entry(name, known) else {
            count(&counts.neighbors_refused);
            return;
        };
        let is_own = self.own.contains(&name);
        let mut outcome = if is_own {
            self.write(&[Update::Modify(entry.clone())])
        } else {
            Err(WriteErrorKind::NotFound)
        };
        // One that an operator has taken out comes back.
        if outcome == Err(WriteErrorKind::NotFound) {
            outcome = self.write(&[Update::Insert(entry)]);
        }
        match outcome {
            Ok(()) => {
                self.own.insert(name);
                count(&counts.neighbors_installed);
            }
            Err(WriteErrorKind::AlreadyExists | WriteErrorKind::Constant) => {
                self.own.remove(&name);
                count(&counts.neighbors_left_alone);
            }
            Err(kind) => {
                self.own.remove(&name);
                count(&counts.neighbors_refused);
                if !self.warned {
                    self.warned = true;
                    log::warn!(
                        "table {TABLE} does not take a neighbour ({kind:?}): look at its size and key"
                    );
                }
            }
        }
    }

    /// Takes neighbours out, as far as they are from here.
    pub fn forget(&mut self, names: &[NeighborName], counts: &Counts) {
        let own: Vec<_> = names
            .iter()
            .filter(|name| self.own.remove(name))
            .copied()
            .collect();
        for names in own.chunks(BATCH) {
            let updates: Vec<_> = names
                .iter()
                .map(|name| Update::Delete(entry_name(*name)))
                .collect();
            if self.write(&updates).is_err() {
                // An operator took one of them out.
                for update in &updates {
                    let _ = self.write(std::slice::from_ref(update));
                }
            }
            names.iter().for_each(|_| count(&counts.neighbors_removed));
        }
    }

    fn write(&self, updates: &[Update]) -> Result<(), WriteErrorKind> {
        self.engine
            .write(updates, &Numbers, monotonic_now())
            .map_err(|error| error.kind)
    }

    fn entry(&self, name: NeighborName, known: Known) -> Option<TableEntry> {
        let shape = self.shape.as_ref()?;
        let value = |param: &Param| {
            let number = match param {
                Param::Mac => mac_number(known.mac),
                Param::Port => known.port.get().into(),
                Param::Domain => known.domain.into(),
            };
            (param.name().to_owned(), Literal::Number(number))
        };
        let EntryName { table, key, .. } = entry_name(name);
        Some(TableEntry {
            table,
            key,
            priority: None,
            action: shape.action.clone(),
            params: shape.params.iter().map(value).collect(),
            idle_timeout_ms: 0,
            hard_timeout_ms: 0,
            tenant: None,
        })
    }
}

/// An IPv4 address has the low 32 bits.
fn entry_name((interface, address): NeighborName) -> EntryName {
    let address = match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let exact = |number: u128| KeyMatch::Text(Literal::Number(number));
    EntryName {
        table: TABLE.to_owned(),
        key: BTreeMap::from([
            ("interface".to_owned(), exact(interface.into())),
            ("address".to_owned(), exact(address)),
        ]),
        priority: None,
    }
}

fn mac_number(mac: MacAddress) -> u128 {
    mac.0
        .iter()
        .fold(0, |number, &byte| number << 8 | u128::from(byte))
}
