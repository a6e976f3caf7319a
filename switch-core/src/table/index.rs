//! Which index a table has, by its shape.

use super::Epoch;
use super::error::TableError;
use super::key::CanonicalKey;
use super::layout::Layout;
use super::seed::Seed;
use super::shape::{MatchKind, TableShape};
use super::trie::{self, Prefix, Trie};
use super::tuple_space::{Place, TupleSpace};
use super::version::Versions;

/// What a table's keys are, and how they lie in words.
pub(super) struct Plan {
    pub(super) shape: TableShape,
    pub(super) layout: Layout,
}

impl Plan {
    pub(super) fn new(shape: TableShape) -> Self {
        Self {
            layout: Layout::new(&shape),
            shape,
        }
    }

    pub(super) fn has_ranges(&self) -> bool {
        let mut fields = self.shape.key().iter();
        fields.any(|field| field.kind == MatchKind::Range)
    }
}

/// What a lookup looks for.
pub(super) struct Wanted<'a, const W: usize> {
    pub(super) words: [u64; W],
    pub(super) values: &'a [u128],
    pub(super) at: Epoch,
}

/// Finds versions by key. Versions that have ended stay in it until they are freed.
pub(super) enum Index<const W: usize> {
    Tuples(TupleSpace<W>),
    Trie(Trie<W>),
}

impl<const W: usize> Index<W> {
    pub(super) fn new(plan: &Plan, seed: Seed) -> Self {
        if plan.shape.by_longest_prefix() {
            return Self::Trie(Trie::new());
        }
        Self::Tuples(TupleSpace::new(plan.shape.max_masks(), seed))
    }

    /// The best version that is seen and matches. Adds to `looked` the bits that this depended on.
    #[inline]
    pub(super) fn lookup<A>(
        &self,
        plan: &Plan,
        versions: &Versions<A, W>,
        wanted: &Wanted<'_, W>,
        looked: &mut [u64; W],
    ) -> Option<u32> {
        match self {
            Self::Tuples(tuples) => tuples.lookup(plan, versions, wanted, looked),
            Self::Trie(trie) => trie.lookup(versions, &wanted.words, wanted.at, looked),
        }
    }

    /// The version with this key that is seen.
    pub(super) fn find<A>(
        &self,
        plan: &Plan,
        versions: &Versions<A, W>,
        key: &CanonicalKey,
        at: Epoch,
    ) -> Option<u32> {
        match self {
            Self::Tuples(tuples) => tuples.find(plan, versions, key, at),
            Self::Trie(trie) => {
                let mut version = trie.find(versions, &Prefix::of_key(plan, key))?;
                while !versions.get(version)?.is_seen_at(at) {
                    version = versions.get(version)?.next;
                }
                Some(version)
            }
        }
    }

    /// Where to put a new key: in one place, or in several for its ranges. Refuses what would make lookups slow.
    pub(super) fn places<A>(
        &self,
        plan: &Plan,
        versions: &Versions<A, W>,
        key: &CanonicalKey,
    ) -> Result<Vec<Place<W>>, TableError> {
        match self {
            Self::Tuples(tuples) => tuples.places(plan, versions, key),
            Self::Trie(_) => Ok(vec![Place::of_prefix(plan, key)]),
        }
    }

    /// Puts a version of a key at one of its places.
    pub(super) fn link<A>(
        &mut self,
        plan: &Plan,
        versions: &mut Versions<A, W>,
        index: u32,
        (key, place): (&CanonicalKey, &Place<W>),
    ) {
        match self {
            Self::Tuples(tuples) => tuples.link(plan, versions, index, (key, place)),
            Self::Trie(trie) => trie.link(versions, index, Prefix::<W>::of_key(plan, key).bits),
        }
    }

    /// Takes a version out.
    pub(super) fn unlink<A>(&mut self, plan: &Plan, versions: &mut Versions<A, W>, index: u32) {
        match self {
            Self::Tuples(tuples) => tuples.unlink(plan, versions, index),
            Self::Trie(trie) => trie.unlink(versions, index),
        }
    }

    /// The key of a version.
    pub(super) fn key_of<A>(
        &self,
        plan: &Plan,
        versions: &Versions<A, W>,
        index: u32,
    ) -> Option<CanonicalKey> {
        match self {
            Self::Tuples(tuples) => tuples.key_of(plan, versions, index),
            Self::Trie(_) => Some(trie::key_of(plan, versions.get(index)?)),
        }
    }
}
