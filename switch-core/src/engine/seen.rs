//! What entries and counter arrays have counted, as plain data: for the next process, or another host, to go on from.
//!
//! Entries themselves are the operator's, and travel as such. Times are ages, since no two hosts' clocks agree. How full a meter's
//! bucket is does not travel: it fills within its burst.

use serde::{Deserialize, Serialize};

use super::control::{EntryCounters, EntryName, PortNames, WriteError};
use super::entry::resolve_key;
use super::runtime::Engine;
use crate::table::EntryHandle;
use crate::time::Millis;

/// What an entry has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntrySeen {
    /// Which entry.
    pub entry: EntryName,
    /// Frames that it decided on, and their bytes.
    pub counted: EntryCounters,
    /// How long ago it was made, in milliseconds.
    pub age_ms: u64,
    /// How long ago its last frame came, or it was made, in milliseconds.
    pub idle_ms: u64,
}

/// Some of what a table's entries have seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenPage {
    /// Entries that count or have timeouts.
    pub entries: Vec<EntrySeen>,
    /// The handle behind which the next page begins; `None` after the last.
    pub next: Option<u64>,
}

impl Engine {
    /// What the entries of a table have seen, of at most `limit` behind handle `after`.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn entries_seen(
        &self,
        table: &str,
        (after, limit): (Option<u64>, usize),
        (names, now): (&dyn PortNames, Millis),
    ) -> Result<SeenPage, WriteError> {
        let (number, spec) = self.table(table).map_err(|fault| fault.at(0))?;
        let Some(table) = self.state.tables.get(number) else {
            return Ok(SeenPage::default());
        };
        let after = after.map(EntryHandle::from_number);
        let scanned = table.scan(after, limit, self.snapshot().epoch);
        let next = scanned
            .last()
            .filter(|_| scanned.len() >= limit)
            .map(|entry| entry.handle.get());
        let entries = scanned
            .iter()
            .filter_map(|entry| {
                let seen = entry.value.seen.as_ref()?;
                let written = self.written(spec, entry, names);
                Some(EntrySeen {
                    entry: EntryName {
                        table: written.table,
                        key: written.key,
                        priority: written.priority,
                    },
                    counted: seen.counters(),
                    age_ms: now.since(seen.added()).0,
                    idle_ms: now.since(seen.last()).0,
                })
            })
            .collect();
        Ok(SeenPage { entries, next })
    }

    /// Has entries go on from what they had seen elsewhere: counts are added, ages are those, and an entry that has met no frame here
    /// is as long idle. Says how many are there; the others, and those that cannot be, are passed over.
    pub fn restore_seen(
        &self,
        entries: &[EntrySeen],
        (names, now): (&dyn PortNames, Millis),
    ) -> usize {
        let epoch = self.snapshot().epoch;
        let ago = |age_ms: u64| Millis(now.0.saturating_sub(age_ms));
        let restored = entries.iter().filter(|entry| {
            let name = &entry.entry;
            let found = self.table(&name.table).and_then(|(number, spec)| {
                let key = resolve_key(spec, &name.key, name.priority, names)?;
                let table = self.state.tables.get(number);
                Ok(table.and_then(|table| table.find(&key, epoch).ok().flatten()))
            });
            let Ok(Some(found)) = found else { return false };
            if let Some(seen) = &found.value.seen {
                seen.restore(entry.counted, ago(entry.age_ms), ago(entry.idle_ms));
            }
            true
        });
        restored.count()
    }

    /// The names of the program's counter arrays.
    pub fn counter_arrays(&self) -> impl Iterator<Item = &str> {
        self.state.program.counters.iter().map(|(name, _)| &**name)
    }

    /// Adds to the counters of an array, by index. Says whether there is such an array; an index beyond its end is passed over.
    pub fn add_counters(&self, name: &str, counted: &[(u32, EntryCounters)]) -> bool {
        let mut arrays = self.counter_arrays();
        let number = arrays.position(|counter| counter == name);
        let Some(counts) = number.and_then(|number| self.state.counts.get(number)) else {
            return false;
        };
        for &(index, counted) in counted {
            counts.add(index, counted.frames, counted.bytes);
        }
        true
    }
}
