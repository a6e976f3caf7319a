//! Which port holds most entries, in O(1): ports with the same count share a list, and counts change by one.

use super::list::{Linked, List};

/// The lists, indexed by count. Ports that hold nothing are in none.
pub(super) struct PortsByCount {
    lists: Vec<List>,
    /// The largest count that a port has; 0 when none has any.
    largest: usize,
}

impl PortsByCount {
    /// For counts up to `limit`.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            lists: vec![List::EMPTY; limit + 1],
            largest: 0,
        }
    }

    /// Notes that `port` holds `to` entries now and held `from`, one more or less, before.
    pub(super) fn change<T: Linked>(&mut self, ports: &mut [T], port: u32, from: usize, to: usize) {
        if from > 0
            && let Some(list) = self.lists.get_mut(from)
        {
            list.remove(ports, port);
        }
        if to > 0
            && let Some(list) = self.lists.get_mut(to)
        {
            list.push_back(ports, port);
        }
        self.largest = self.largest.max(to);
        if self
            .lists
            .get(self.largest)
            .is_some_and(|list| list.first().is_none())
        {
            // The port that left the largest count has one less, or nothing.
            self.largest = self.largest.saturating_sub(1);
        }
    }

    /// The port that holds most, and how many: among equals, the one that has held as many for longest.
    pub(super) fn largest(&self) -> Option<(u32, usize)> {
        let port = self.lists.get(self.largest)?.first()?;
        Some((port, self.largest))
    }
}
