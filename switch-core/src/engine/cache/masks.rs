//! The masks under which flows are remembered.

use super::chunks::Chunks;
use super::key::{HEAD_WORDS, Head, IN_PORT_BITS, REST_WORDS};

/// Names a mask of one port and path, or [`EXACT`].
pub(super) type MaskId = u32;

/// The mask of all bits, which every port and path has: for flows that a port has no mask left for.
pub(super) const EXACT: MaskId = 0;

/// A mask's words: as many as a key of its path has; ones beyond.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct MaskWords {
    pub(super) head: Head,
    pub(super) rest: [u64; REST_WORDS],
}

/// A mask.
#[derive(Clone)]
pub(super) struct Mask {
    pub(super) words: MaskWords,
    /// Flows that are remembered under it; it goes with the last.
    pub(super) flows: u32,
}

const ALL: MaskWords = MaskWords {
    head: [u64::MAX; HEAD_WORDS],
    rest: [u64::MAX; REST_WORDS],
};

const NONE: Mask = Mask {
    words: ALL,
    flows: 0,
};

/// A mask's words as they are kept: those of the key, with the port's bits always set.
pub(super) fn complete(mask: &[u64]) -> MaskWords {
    let mut words = ALL;
    let places = words.head.iter_mut().chain(&mut words.rest);
    for (word, given) in places.zip(mask) {
        *word = *given;
    }
    let [first, ..] = &mut words.head;
    *first |= IN_PORT_BITS;
    words
}

pub(super) struct Masks {
    masks: Chunks<Mask, 16>,
    used: u32,
    free: Vec<MaskId>,
}

impl Masks {
    pub(super) fn new() -> Self {
        let mut masks = Chunks::new();
        masks.grow(|| NONE);
        Self {
            masks,
            used: 1,
            free: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn get(&self, id: MaskId) -> Option<&Mask> {
        self.masks.get(id as usize)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: MaskId) -> Option<&mut Mask> {
        self.masks.get_mut(id as usize)
    }

    pub(super) fn add(&mut self, words: MaskWords) -> MaskId {
        let id = self.free.pop().unwrap_or_else(|| {
            let id = self.used;
            self.used += 1;
            if self.masks.len() <= id as usize {
                self.masks.grow(|| NONE);
            }
            id
        });
        if let Some(mask) = self.masks.get_mut(id as usize) {
            *mask = Mask { words, flows: 0 };
        }
        id
    }

    /// Gives the place of a mask that no flow is under any more to others.
    pub(super) fn remove(&mut self, id: MaskId) {
        if id != EXACT {
            self.free.push(id);
        }
    }
}
