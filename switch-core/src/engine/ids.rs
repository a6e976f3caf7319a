//! The numbers by which P4Runtime knows what a program declares.
//!
//! An id's first byte says what kind of object it is (P4Runtime 1.4, `P4Ids.Prefix`); the other three are the program's choice
//! (`id`) or follow from the name alone. So an id is the same after a restart, and after whatever else changes in the program. Where
//! two names lead to one id, the program is refused and one of the two must be given an `id`: to evade on our own would let one
//! object's id depend on another's presence. Parameters and key fields are numbered from 1 in their order.

use std::collections::BTreeMap;

use super::model::Program;

/// The kinds of object, with the first byte of their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum IdKind {
    /// An action.
    Action = 0x01,
    /// A table.
    Table = 0x02,
    /// `packet_in` and `packet_out`.
    ControllerHeader = 0x04,
    /// A selector.
    ActionProfile = 0x11,
    /// An array of counters.
    Counter = 0x12,
    /// The counters of a table's entries.
    DirectCounter = 0x13,
    /// An array of meters.
    Meter = 0x14,
}

/// Bits of an id below its kind.
const NUMBER_BITS: u32 = 24;
const NUMBER_MASK: u32 = (1 << NUMBER_BITS) - 1;

impl IdKind {
    /// The id of an object of this kind; only the low three bytes of `number` count.
    pub const fn id(self, number: u32) -> u32 {
        ((self as u32) << NUMBER_BITS) | (number & NUMBER_MASK)
    }

    /// The id that follows from a name.
    pub fn id_of_name(self, name: &str) -> u32 {
        // FNV-1a, folded to 24 bits; 0 is no id.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        self.id(((hash >> NUMBER_BITS) ^ (hash & NUMBER_MASK)).max(1))
    }
}

/// The ids of a program, in the order of its lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    tables: Vec<u32>,
    actions: Vec<u32>,
    selectors: Vec<u32>,
    meters: Vec<u32>,
    counters: Vec<u32>,
}

impl Ids {
    /// Of [`Program::tables`].
    pub fn tables(&self) -> &[u32] {
        &self.tables
    }

    /// Of [`Program::actions`].
    pub fn actions(&self) -> &[u32] {
        &self.actions
    }

    /// Of [`Program::selectors`].
    pub fn selectors(&self) -> &[u32] {
        &self.selectors
    }

    /// Of [`Program::meters`].
    pub fn meters(&self) -> &[u32] {
        &self.meters
    }

    /// Of [`Program::counters`].
    pub fn counters(&self) -> &[u32] {
        &self.counters
    }

    /// Of the counters of a table's entries, by the table's id.
    pub const fn direct_counter(table: u32) -> u32 {
        IdKind::DirectCounter.id(table)
    }

    /// Chooses every id. `fault` hears place, reason and remedy of what is wrong.
    pub(super) fn assign(program: &Program, mut fault: impl FnMut(String, String, String)) -> Self {
        let mut list = |list: &str, kind: IdKind, named: Vec<(&str, Option<u32>)>| {
            assign_list((list, kind), &named, &mut fault)
        };
        Self {
            tables: list(
                "tables",
                IdKind::Table,
                named(&program.tables, |table| (&table.name, table.id)),
            ),
            actions: list(
                "actions",
                IdKind::Action,
                named(&program.actions, |action| (&action.name, action.id)),
            ),
            selectors: list(
                "selectors",
                IdKind::ActionProfile,
                named(&program.selectors, |selector| (&selector.name, selector.id)),
            ),
            meters: list(
                "meters",
                IdKind::Meter,
                named(&program.meters, |meter| (&meter.name, meter.id)),
            ),
            counters: list(
                "counters",
                IdKind::Counter,
                named(&program.counters, |counter| (&counter.name, counter.id)),
            ),
        }
    }
}

fn named<T>(items: &[T], of: impl Fn(&T) -> (&String, Option<u32>)) -> Vec<(&str, Option<u32>)> {
    items
        .iter()
        .map(|item| {
            let (name, id) = of(item);
            (name.as_str(), id)
        })
        .collect()
}

fn assign_list(
    (list, kind): (&str, IdKind),
    named: &[(&str, Option<u32>)],
    fault: &mut impl FnMut(String, String, String),
) -> Vec<u32> {
    let mut taken: BTreeMap<u32, (usize, &str)> = BTreeMap::new();
    let mut ids = Vec::with_capacity(named.len());
    for (index, &(name, explicit)) in named.iter().enumerate() {
        let place = format!("{list}[{index}].id");
        let id = match explicit {
            None => kind.id_of_name(name),
            Some(number) => {
                if number & NUMBER_MASK == 0 || (number > NUMBER_MASK && kind.id(number) != number)
                {
                    fault(
                        place.clone(),
                        format!("{number:#x} is no id of {list}"),
                        format!("use {:#010x} to {:#010x}", kind.id(1), kind.id(NUMBER_MASK)),
                    );
                }
                kind.id(number)
            }
        };
        match taken.get(&id) {
            // The same name twice is another fault, and said elsewhere.
            Some((_, other)) if *other == name && explicit.is_none() => {}
            Some((first, _)) => fault(
                place,
                format!("`{name}` would have the id {id:#010x}, as {list}[{first}] has"),
                "give one of them an `id` of its own".to_owned(),
            ),
            None => {
                taken.insert(id, (index, name));
            }
        }
        ids.push(id);
    }
    ids
}
