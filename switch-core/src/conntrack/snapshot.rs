//! Going on with the connections of another table: of the process before, or of another host.
//!
//! They are read page by page with [`Conntrack::list_matching`], as [`ConnRecord`]s, whose times are relative. A connection is bound
//! to the port that opened it and to the one that it was first answered by: those are where its two ends are. Flow caches, and the
//! fragments of datagrams under way, are not taken along: the first are rebuilt by the next frame, the second live for seconds.

use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use super::control::{ConnRecord, ImportError};
use super::slot::Status;
use super::table::{Conntrack, ConntrackStats, Key};
use super::tuple::Direction;
use crate::time::Millis;

/// What became of connections that were to be restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConnsRestored {
    /// In the table now.
    pub taken: u64,
    /// There already, as a migration within one switch finds them: their state stays, their ends are where the record says.
    pub known: u64,
    /// Another connection has their addresses and ports.
    pub in_the_way: u64,
    /// No room, by the table's limits.
    pub no_room: u64,
    /// Their records contradict themselves.
    pub inconsistent: u64,
}

impl Conntrack {
    /// Takes connections in, one by one as [`Conntrack::import`] does. They are bound to the ports that their records name.
    pub fn restore(&self, records: &[ConnRecord], now: Millis) -> ConnsRestored {
        let mut restored = ConnsRestored::default();
        for record in records {
            *match self.import(record, now) {
                Ok(_) => &mut restored.taken,
                Err(ImportError::Exists) if self.rebind(record, now) => &mut restored.known,
                Err(ImportError::Exists) => &mut restored.in_the_way,
                Err(ImportError::NoRoom(_)) => &mut restored.no_room,
                Err(ImportError::Inconsistent(_)) => &mut restored.inconsistent,
            } += 1;
        }
        restored
    }

    /// As [`Conntrack::restore`], but a record takes the place of what the table has of the same connection.
    pub fn renew(&self, records: &[ConnRecord], now: Millis) {
        for record in records {
            let Err(ImportError::Exists) = self.import(record, now) else {
                continue;
            };
            let key = Key::of_direction(record.zone, &record.original, Direction::Original);
            let there = self
                .find(&key, self.hash_of(&key), now)
                .map(|found| found.id());
            if there.is_some_and(|there| self.delete(there)) {
                // Nobody else is at the table yet that could come in between.
                let _ = self.import(record, now);
            }
        }
    }

    /// Lets what an earlier table did count as done by this one; its connections do not count.
    pub fn add_stats(&self, stats: &ConntrackStats) {
        self.opened.fetch_add(stats.opened, Relaxed);
        self.expired.fetch_add(stats.expired, Relaxed);
        self.early_dropped.fetch_add(stats.early_dropped, Relaxed);
    }

    /// Binds a connection of the table to the ports that a record of the same one names. Says whether it is there. It stays on the
    /// account of its port if the other has no room.
    fn rebind(&self, record: &ConnRecord, now: Millis) -> bool {
        let key = Key::of_direction(record.zone, &record.original, Direction::Original);
        let Some(mut found) = self.find(&key, self.hash_of(&key), now) else {
            return false;
        };
        if found.direction != Direction::Original || found.cold.tuples[1] != record.reply {
            return false;
        }
        if record.answered_by.is_some() {
            self.slab.set_answered_by(found.index, record.answered_by);
        }
        let before = found.cold.port;
        if before != record.port && self.limits.take(record.port, record.zone).is_ok() {
            found.cold.port = record.port;
            if !found.slot.status().has(Status::ASSURED) {
                self.recent.note(record.port, found.id());
            }
            self.limits.give_back(before, record.zone);
        }
        true
    }
}
