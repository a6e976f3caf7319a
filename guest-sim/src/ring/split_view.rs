//! The words of a split virtqueue, by name.
//!
//! Made once per batch from a [`RingMemory`] (bounds are checked then, not per access) and used on the driver's thread. Keeps true: indices
//! are read with acquire and written with release ordering. Little-endian hosts only, as VIRTIO 1.x rings and x86 legacy rings are.

use std::sync::atomic::{AtomicU16, Ordering};

use vm_memory::volatile_memory::Error as VolatileError;

use super::layout::RingMemory;
use crate::memory::{Array, Word};

/// One split ring's words.
pub(crate) struct SplitView<'m> {
    mask: u16,
    descriptors: Array<'m, u64>,
    avail_ring: Array<'m, u16>,
    used_ring: Array<'m, u32>,
    pub avail_flags: Word<'m, AtomicU16>,
    pub avail_index: Word<'m, AtomicU16>,
    /// The driver's "tell me when you pass this" (VIRTIO 1.3 §2.7.7).
    pub used_event: Word<'m, AtomicU16>,
    pub used_flags: Word<'m, AtomicU16>,
    pub used_index: Word<'m, AtomicU16>,
    /// The device's "tell me when you pass this" (VIRTIO 1.3 §2.7.10).
    pub avail_event: Word<'m, AtomicU16>,
}

impl<'m> SplitView<'m> {
    pub fn new(memory: &'m RingMemory) -> Result<Self, VolatileError> {
        let entries = usize::from(memory.size());
        let (descriptors, avail, used) = (memory.descriptors(), memory.avail(), memory.used());
        let (avail_in, avail_at) = (avail.region(), avail.offset());
        let (used_in, used_at) = (used.region(), used.offset());
        Ok(Self {
            mask: memory.size().wrapping_sub(1),
            descriptors: descriptors
                .region()
                .array(descriptors.offset(), 2 * entries)?,
            avail_ring: avail_in.array(avail_at + 4, entries)?,
            used_ring: used_in.array(used_at + 4, 2 * entries)?,
            avail_flags: avail_in.word(avail_at)?,
            avail_index: avail_in.word(avail_at + 2)?,
            used_event: avail_in.word(avail_at + 4 + 2 * entries)?,
            used_flags: used_in.word(used_at)?,
            used_index: used_in.word(used_at + 2)?,
            avail_event: used_in.word(used_at + 4 + 8 * entries)?,
        })
    }

    #[inline]
    pub fn slot(&self, index: u16) -> u16 {
        index & self.mask
    }

    #[inline]
    pub fn set_descriptor(&self, index: u16, address: u64, word: u64) {
        let at = 2 * usize::from(index);
        self.descriptors.store(at, address);
        self.descriptors.store(at + 1, word);
    }

    #[inline]
    pub fn descriptor(&self, index: u16) -> (u64, u64) {
        let at = 2 * usize::from(index);
        (self.descriptors.load(at), self.descriptors.load(at + 1))
    }

    #[inline]
    pub fn set_avail_entry(&self, slot: u16, head: u16) {
        self.avail_ring.store(usize::from(slot), head);
    }

    #[inline]
    pub fn avail_entry(&self, slot: u16) -> u16 {
        self.avail_ring.load(usize::from(slot))
    }

    /// Id and length of a used element.
    #[inline]
    pub fn used_entry(&self, slot: u16) -> (u32, u32) {
        let at = 2 * usize::from(slot);
        (self.used_ring.load(at), self.used_ring.load(at + 1))
    }

    pub fn set_used_entry(&self, slot: u16, id: u32, len: u32) {
        let at = 2 * usize::from(slot);
        self.used_ring.store(at, id);
        self.used_ring.store(at + 1, len);
    }

    #[inline]
    pub fn load_used_index(&self) -> u16 {
        self.used_index.load(Ordering::Acquire)
    }
}
