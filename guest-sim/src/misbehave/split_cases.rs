//! What a guest must not do with the links of a split ring's chains, and with its indices.
//!
//! Part of the tables in `chains`.

use super::chains::{Hostile, HostileChain, Stage, linked, rx, tx};
use crate::error::Error;
use crate::ring::raw::{Descriptor, NEXT, RawRing};

pub(super) fn cases() -> Vec<HostileChain> {
    [LOOPS_AND_LINKS, LINKED_TABLES, INDICES].concat()
}

impl Stage<'_, RawRing> {
    fn chained(&self, next: u16) -> Descriptor {
        linked(self.flagged(self.direction | NEXT), next)
    }

    fn last(&self) -> Descriptor {
        linked(self.good(), 0)
    }

    fn post_linked(&self, descriptors: &[Descriptor]) -> Result<(), Error> {
        self.ring.post(0, descriptors)
    }

    fn post_linked_table(&self, entries: &[Descriptor]) -> Result<(), Error> {
        for (at, entry) in entries.iter().enumerate() {
            self.table.slice(16 * at, 16)?.copy_from(&entry.to_bytes());
        }
        self.ring
            .post_pieces(&[self.table(16 * entries.len() as u32, 0)])
    }

    /// One good chain in each slot, then the index moved as told.
    fn jump(&self, by: u16) -> Result<(), Error> {
        self.ring.set_descriptor(0, self.last())?;
        for slot in 0..self.size() {
            self.ring.set_avail_entry(slot, 0)?;
        }
        let index = self.ring.avail_index()?;
        self.ring.set_avail_index(index.wrapping_add(by))
    }

    fn post_head(&self, head: u16) -> Result<(), Error> {
        self.ring.set_descriptor(0, self.last())?;
        let index = self.ring.avail_index()?;
        self.ring.set_avail_entry(index, head)?;
        self.ring.set_avail_index(index.wrapping_add(1))
    }
}

const LOOPS_AND_LINKS: &[HostileChain] = &[
    tx("a descriptor that is its own successor", |s| {
        s.post_linked(&[s.chained(0)])
    }),
    tx("two descriptors that follow each other", |s| {
        s.post_linked(&[s.chained(1), s.chained(0)])
    }),
    tx("a loop behind a good start", |s| {
        s.post_linked(&[s.chained(1), s.chained(2), s.chained(1)])
    }),
    tx("a loop of empty descriptors", |s| {
        let empty = |next| Descriptor {
            len: 0,
            ..s.chained(next)
        };
        s.post_linked(&[empty(1), empty(0)])
    }),
    tx("a successor just past the table", |s| {
        s.post_linked(&[s.chained(s.size())])
    }),
    tx("a successor of 65,535", |s| {
        s.post_linked(&[s.chained(u16::MAX)])
    }),
    rx("a receive chain that loops", |s| {
        s.post_linked(&[s.chained(0)])
    }),
    rx("a receive successor past the table", |s| {
        s.post_linked(&[s.chained(s.size())])
    }),
];

const LINKED_TABLES: &[HostileChain] = &[
    tx("a loop inside an indirect table", |s| {
        s.post_linked_table(&[s.chained(1), s.chained(0)])
    }),
    tx("a successor past an indirect table", |s| {
        s.post_linked_table(&[s.chained(2), s.last()])
    }),
];

const INDICES: &[HostileChain] = &[
    tx("a head just past the table", |s| s.post_head(s.size())),
    tx("a head of 65,535", |s| s.post_head(u16::MAX)),
    tx("an available index one too far", |s| {
        s.jump(s.size().wrapping_add(1))
    }),
    tx("an available index 32,768 further", |s| s.jump(32768)),
    tx("an available index that goes back", |s| s.jump(u16::MAX)),
    tx("every slot with the same head", |s| s.jump(s.size())),
    rx("a receive head past the table", |s| s.post_head(s.size())),
    rx("a receive index one too far", |s| {
        s.jump(s.size().wrapping_add(1))
    }),
    rx("a receive index that goes back", |s| s.jump(u16::MAX)),
    rx("every receive slot with the same head", |s| {
        s.jump(s.size())
    }),
];
