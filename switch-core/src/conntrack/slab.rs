//! Where slots come from: fixed chunks, allocated when first needed and then kept, so that a slot's place never moves and an index
//! finds it without a lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::slot::Slot;

/// Slots of a chunk: small enough that the worker which needs a new one is not held up for long.
const CHUNK_SLOTS: u32 = 1024;
const CHUNK_SHIFT: u32 = CHUNK_SLOTS.trailing_zeros();
/// Queues of free slots.
const QUEUES: usize = 16;
/// Free slots that a queue keeps back. A freed slot is taken again only after as many others of its queue, so a worker that was
/// still writing to it, interrupted in the middle of a refresh, does not write to the next connection in it.
const KEPT_BACK: usize = 64;
/// Slots taken from the unused rest at a time.
const CARVED: u32 = 32;

/// All slots.
#[derive(Debug)]
pub(crate) struct Slab {
    chunks: Box<[OnceLock<Chunk>]>,
    free: Box<[FreeQueue]>,
    /// The first slot that was never used.
    unused: AtomicU32,
    slots: u32,
}

#[derive(Debug)]
struct Chunk {
    slots: Box<[Slot]>,
    /// By slot: the port that the first answer came by, plus one; 0 for none. Written under the slot's lock.
    answerers: Box<[AtomicU16]>,
}

impl Default for Chunk {
    fn default() -> Self {
        Self {
            slots: (0..CHUNK_SLOTS).map(|_| Slot::default()).collect(),
            answerers: (0..CHUNK_SLOTS).map(|_| AtomicU16::new(0)).collect(),
        }
    }
}

/// Free slots, oldest first, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct FreeQueue(Mutex<VecDeque<u32>>);

impl Slab {
    /// Room for `capacity` slots in use, and for those kept back.
    pub(crate) fn new(capacity: u32) -> Self {
        let spare = QUEUES as u32 * (KEPT_BACK as u32 + CARVED);
        let slots = capacity.saturating_add(spare).next_multiple_of(CHUNK_SLOTS);
        Self {
            chunks: (0..slots / CHUNK_SLOTS).map(|_| OnceLock::new()).collect(),
            free: (0..QUEUES).map(|_| FreeQueue::default()).collect(),
            unused: AtomicU32::new(0),
            slots,
        }
    }

    /// The slot of this index, if that was ever used.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&Slot> {
        self.chunks
            .get((index >> CHUNK_SHIFT) as usize)?
            .get()?
            .slots
            .get((index & (CHUNK_SLOTS - 1)) as usize)
    }

    fn answerer(&self, index: u32) -> Option<&AtomicU16> {
        self.chunks
            .get((index >> CHUNK_SHIFT) as usize)?
            .get()?
            .answerers
            .get((index & (CHUNK_SLOTS - 1)) as usize)
    }

    /// The port that a slot's connection was first answered by.
    pub(crate) fn answered_by(&self, index: u32) -> Option<u16> {
        self.answerer(index)?.load(Relaxed).checked_sub(1)
    }

    /// Notes it. To be called with the slot's lock held.
    pub(crate) fn set_answered_by(&self, index: u32, port: Option<u16>) {
        if let Some(answerer) = self.answerer(index) {
            answerer.store(port.map_or(0, |port| port.saturating_add(1)), Relaxed);
        }
    }

    /// The first index that was never used: the end of a sweep.
    pub(crate) fn used_end(&self) -> u32 {
        self.unused.load(Relaxed).min(self.slots)
    }

    /// A free slot, preferably from the queue that `hint` names.
    pub(crate) fn take(&self, hint: u64) -> Option<u32> {
        let own = hint as usize % QUEUES;
        if let Some(index) = self.pop(own, KEPT_BACK) {
            return Some(index);
        }
        if let Some(index) = self.carve(own) {
            return Some(index);
        }
        // All were used once: the other queues, and if need be what is kept back.
        for keep in [KEPT_BACK, 0] {
            for offset in 0..QUEUES {
                if let Some(index) = self.pop((own + offset) % QUEUES, keep) {
                    return Some(index);
                }
            }
        }
        None
    }

    fn pop(&self, queue: usize, keep: usize) -> Option<u32> {
        let mut queue = self.free.get(queue)?.lock();
        if queue.len() > keep {
            queue.pop_front()
        } else {
            None
        }
    }

    fn carve(&self, queue: usize) -> Option<u32> {
        let first = self
            .unused
            .fetch_update(Relaxed, Relaxed, |unused| {
                (unused < self.slots).then_some(unused + CARVED)
            })
            .ok()?;
        // A run never crosses a chunk's end, because both are powers of two.
        self.chunks
            .get((first >> CHUNK_SHIFT) as usize)?
            .get_or_init(Chunk::default);
        let mut queue = self.free.get(queue)?.lock();
        for index in (first + 1..first + CARVED).rev() {
            queue.push_front(index);
        }
        Some(first)
    }

    /// Gives a slot back.
    pub(crate) fn give_back(&self, index: u32, hint: u64) {
        if let Some(queue) = self.free.get(hint as usize % QUEUES) {
            queue.lock().push_back(index);
        }
    }

    /// Bytes of all chunks that were allocated.
    pub(crate) fn memory_bytes(&self) -> usize {
        let chunks = self.chunks.iter().filter(|chunk| chunk.get().is_some());
        let slot_bytes = size_of::<Slot>() + size_of::<AtomicU16>();
        size_of_val::<[_]>(&self.chunks) + chunks.count() * CHUNK_SLOTS as usize * slot_bytes
    }
}

impl FreeQueue {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_slot_is_given_once_and_again_only_after_others() {
        let slab = Slab::new(100);
        let mut taken = HashSet::new();
        while let Some(index) = slab.take(taken.len() as u64) {
            assert!(taken.insert(index));
            assert!(slab.get(index).is_some());
        }
        assert_eq!(taken.len() as u32, slab.slots);
        assert_eq!(slab.used_end(), slab.slots);
        slab.give_back(7, 0);
        assert_eq!(slab.take(5), Some(7));
        for index in 0..=KEPT_BACK as u32 {
            slab.give_back(index, 3);
        }
        assert_eq!(slab.take(3), Some(0));
    }

    #[test]
    fn a_freed_slot_rests_while_there_are_others() {
        let slab = Slab::new(10_000);
        let first = slab.take(0).expect("room");
        slab.give_back(first, 0);
        for _ in 0..KEPT_BACK {
            assert_ne!(slab.take(0), Some(first));
        }
    }
}
