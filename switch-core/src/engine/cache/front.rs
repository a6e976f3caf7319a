//! The exact front: for whole keys, which flow answered last.
//!
//! What it says is a hint that is checked against the flow itself, so it need not be told of flows that go. It may forget.
//! Eight slots share a cache line, a set; few keys use few sets. More sets are used once half the slots are taken; nothing is moved
//! then: a key that is no longer where it is looked for is found behind and put in again.

use super::index::IsWanted;

/// Slots of a set.
const SLOTS: usize = 8;
/// Sets that memory is taken for at once: 32 KiB.
const SETS_PER_CHUNK: usize = 512;
/// Sets in use at first.
const FIRST_SETS: usize = SETS_PER_CHUNK;

/// The slots of each in two arrays, so that all are compared at once.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Set {
    /// Upper halves of hashes.
    tags: [u32; SLOTS],
    /// The flows' numbers plus one; 0: empty.
    flows: [u32; SLOTS],
}

const EMPTY: Set = Set {
    tags: [0; SLOTS],
    flows: [0; SLOTS],
};

type Chunk = Box<[Set; SETS_PER_CHUNK]>;

/// What became of a key that was put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placing {
    /// It has a place.
    Placed,
    /// Its set is full, and nothing was to be pushed out.
    NoRoom,
}

pub(super) struct Front {
    /// Those that no key has come to yet are absent.
    chunks: Vec<Option<Chunk>>,
    /// Sets in use less one; all ones.
    mask: usize,
    most_sets: usize,
    taken: usize,
    /// Which slot of a full set goes next.
    victim: usize,
}

impl Front {
    /// A front with at most `most_keys` slots, rounded up to a power of two.
    pub(super) fn new(most_keys: usize) -> Self {
        let most_sets = (most_keys / SLOTS)
            .clamp(FIRST_SETS, 1 << 26)
            .next_power_of_two();
        Self {
            chunks: vec![None; FIRST_SETS / SETS_PER_CHUNK],
            mask: FIRST_SETS - 1,
            most_sets,
            taken: 0,
            victim: 0,
        }
    }

    /// The first flow remembered for this hash that is `wanted`.
    #[inline(always)]
    pub(super) fn find(&self, hash: u64, wanted: impl IsWanted) -> Option<u32> {
        let set = self.set(hash)?;
        let tag = tag(hash);
        let mut found = 0_u32;
        for (index, other) in set.tags.iter().enumerate() {
            found |= u32::from(*other == tag) << index;
        }
        while found != 0 {
            // An empty slot's zero wraps to a flow that is not there.
            let flow = set
                .flows
                .get(found.trailing_zeros() as usize)?
                .wrapping_sub(1);
            if wanted.is_wanted(flow) {
                return Some(flow);
            }
            found &= found - 1;
        }
        None
    }

    /// Remembers a flow, if there is room; `may_push_out` is asked before another key goes.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        flow: u32,
        may_push_out: impl FnOnce() -> bool,
    ) -> Placing {
        let victim = self.victim;
        let Some(set) = self.set_mut(hash) else {
            return Placing::NoRoom;
        };
        let tag = tag(hash);
        let slots = || set.tags.iter().zip(&set.flows);
        let same = slots().position(|(other, flow)| *other == tag && *flow != 0);
        let empty = || set.flows.iter().position(|flow| *flow == 0);
        let (place, is_new) = match (same, empty) {
            (Some(place), _) => (place, false),
            (None, empty) => match empty() {
                Some(place) => (place, true),
                None if may_push_out() => (victim % SLOTS, false),
                None => return Placing::NoRoom,
            },
        };
        if let (Some(tag_there), Some(flow_there)) =
            (set.tags.get_mut(place), set.flows.get_mut(place))
        {
            *tag_there = tag;
            *flow_there = flow.wrapping_add(1);
        }
        self.victim = victim.wrapping_add(3);
        self.taken += usize::from(is_new);
        self.use_more_sets();
        Placing::Placed
    }

    fn use_more_sets(&mut self) {
        let sets = self.mask + 1;
        if self.taken > sets * SLOTS / 2 && sets < self.most_sets {
            self.mask = 2 * sets - 1;
            self.chunks.resize(2 * sets / SETS_PER_CHUNK, None);
        }
    }

    #[inline]
    fn set(&self, hash: u64) -> Option<&Set> {
        let index = hash as usize & self.mask;
        self.chunks
            .get(index / SETS_PER_CHUNK)?
            .as_ref()?
            .get(index % SETS_PER_CHUNK)
    }

    fn set_mut(&mut self, hash: u64) -> Option<&mut Set> {
        let index = hash as usize & self.mask;
        let chunk = self.chunks.get_mut(index / SETS_PER_CHUNK)?;
        if chunk.is_none() {
            // Exactly as many as a chunk has, so this is never refused.
            *chunk = vec![EMPTY; SETS_PER_CHUNK]
                .into_boxed_slice()
                .try_into()
                .ok();
        }
        chunk.as_mut()?.get_mut(index % SETS_PER_CHUNK)
    }
}

fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}
