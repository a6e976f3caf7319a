//! Sweeping: connections that were quiet for too long are not found any more from then on, and their slots are freed here.

use std::sync::atomic::Ordering::Relaxed;

use super::slot::Tick;
use super::table::Conntrack;
use super::tracked::ConnId;
use crate::time::Millis;

/// What a part of a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Connections removed.
    pub expired: u32,
    /// Whether the sweep came to the table's end; the next one begins at its start.
    pub finished: bool,
}

impl Conntrack {
    /// Looks at the next `budget` slots and frees those whose connections have expired. Called from the control thread, as often as
    /// memory is to come back soon; what a packet sees does not depend on it.
    pub fn expire(&self, now: Millis, budget: u32) -> Swept {
        let tick = Tick::of(now);
        let end = self.slab.used_end();
        let first = self.sweep_position.load(Relaxed).min(end);
        let last = first.saturating_add(budget).min(end);
        let mut swept = Swept {
            expired: 0,
            finished: last == end,
        };
        for index in first..last {
            let Some(slot) = self.slab.get(index) else {
                continue;
            };
            let status = slot.status();
            if status.is_free() || !self.is_overdue(slot, status, tick) {
                continue;
            }
            let generation = status.generation();
            if self.remove(ConnId { index, generation }) {
                swept.expired += 1;
            }
        }
        self.expired.fetch_add(u64::from(swept.expired), Relaxed);
        let next = if swept.finished { 0 } else { last };
        self.sweep_position.store(next, Relaxed);
        swept
    }
}
