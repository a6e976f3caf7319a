//! Keyed hashing.

use std::hash::Hasher;

use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;

/// A process's secret, so that nobody can choose keys that collide.
#[derive(Clone, Copy)]
pub(super) struct Seed {
    own: u64,
    shared: &'static SharedSeed,
}

impl Seed {
    pub(super) fn new(own: u64) -> Self {
        Self {
            own,
            shared: SharedSeed::global_random(),
        }
    }

    /// The hash of some words, another one for each class.
    #[inline]
    pub(super) fn hash<const W: usize>(&self, class: u32, words: &[u64; W]) -> u32 {
        let own = u64::from(class).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.own;
        let mut hasher = FoldHasher::with_seed(own, self.shared);
        for &word in words {
            hasher.write_u64(word);
        }
        let hash = hasher.finish();
        (hash ^ hash >> 32) as u32
    }
}
