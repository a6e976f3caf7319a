//! Entries as those who use a table see them.

use std::sync::Arc;

use super::Epoch;
use super::key::EntryKey;

/// Identifies an entry for as long as it lives, also when its value is replaced. Not used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryHandle(u64);

impl EntryHandle {
    pub(super) fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(generation) | u64::from(index) << 32)
    }

    /// A small number that no other living entry of the table has: freed ones are used again, so it indexes arrays.
    #[must_use]
    pub fn index(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) fn generation(self) -> u32 {
        self.0 as u32
    }

    /// As a number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// Of a number from [`get`](Self::get); any other is the handle of no entry.
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// What a lookup found.
#[derive(Debug)]
pub struct Hit<A> {
    /// The entry.
    pub handle: EntryHandle,
    /// What it means.
    pub value: Arc<A>,
}

/// An entry as the control side sees it.
#[derive(Debug)]
pub struct Entry<A> {
    /// Its handle.
    pub handle: EntryHandle,
    /// Its key in canonical form.
    pub key: EntryKey,
    /// What it means.
    pub value: Arc<A>,
    /// The epoch in which it was added.
    pub added_at: Epoch,
    /// The epoch in which its value was last replaced, or in which it was added.
    pub changed_at: Epoch,
}
