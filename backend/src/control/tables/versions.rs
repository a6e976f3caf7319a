//! How often what a program has was changed by clients or by time: by this a client's view of it is told from what it is now.
//!
//! Counted by the thread that changes tables, before it answers, and read by whoever shows them: a tag that is read before the table
//! is of that table or of an earlier one, so that a condition on it never holds wrongly.
use crate::control::tags::IfMatch;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use switch_core::engine::control::Update;

/// What has a version of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Versioned {
    /// A table: its entries and its default.
    Table(String),
    /// All multicast groups.
    Multicast,
    /// All weighted groups.
    Groups,
    /// All rates of meters.
    Meters,
}

impl Versioned {
    /// What an update changes.
    pub fn by(update: &Update) -> Self {
        match update {
            Update::Insert(entry) | Update::Modify(entry) | Update::Put(entry) => {
                Self::Table(entry.table.clone())
            }
            Update::Delete(name) => Self::Table(name.table.clone()),
            Update::Clear { table } | Update::SetDefault { table, .. } => {
                Self::Table(table.clone())
            }
            Update::SetMulticast { .. } => Self::Multicast,
            Update::SetGroup { .. } => Self::Groups,
            Update::SetMeter { .. } => Self::Meters,
        }
    }
}

impl fmt::Display for Versioned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(name) => write!(f, "table {name} has"),
            Self::Multicast => f.write_str("multicast groups have"),
            Self::Groups => f.write_str("weighted groups have"),
            Self::Meters => f.write_str("meters have"),
        }
    }
}

/// The version of everything. There are as many as the program has tables.
#[derive(Debug)]
pub struct Versions {
    /// Where this process begins: its versions are no other's.
    first: u64,
    changes: Mutex<HashMap<Versioned, u64>>,
}

impl Versions {
    pub(super) fn new() -> Self {
        Self {
            first: RandomState::new().hash_one(std::process::id()),
            changes: Mutex::default(),
        }
    }

    /// Tells this version of something from all others.
    pub fn tag(&self, of: &Versioned) -> String {
        let changes = self.lock().get(of).copied().unwrap_or(0);
        format!("{:016x}", self.first.wrapping_add(changes))
    }

    pub(super) fn allow(&self, updates: &[Update], if_match: &IfMatch) -> Result<(), Versioned> {
        let changed = updates.iter().map(Versioned::by);
        let mut seen = changed.filter(|what| !if_match.holds(|| self.tag(what)));
        seen.next().map_or(Ok(()), Err)
    }

    pub(super) fn count(&self, changed: impl Iterator<Item = Versioned>) {
        let mut changes = self.lock();
        for what in changed {
            let count = changes.entry(what).or_default();
            *count = count.wrapping_add(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Versioned, u64>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
