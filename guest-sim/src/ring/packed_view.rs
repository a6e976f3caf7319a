//! The words of a packed virtqueue, by name.
//!
//! Made once per batch from a [`RingMemory`] and used on the driver's thread. Keeps true: the word that holds a descriptor's flags is read
//! with acquire and written with release ordering. Little-endian hosts only, as for split rings.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::volatile_memory::Error as VolatileError;

use super::layout::{DESCRIPTOR_BYTES, RingMemory};
use crate::error::Error;
use crate::memory::{MemoryError, Region, Word};

/// One packed ring's words.
pub(crate) struct PackedView<'m> {
    size: u16,
    region: &'m Region,
    ring_at: usize,
    /// Event offset and wrap counter in the low half, flags in the high half: the driver's wish for calls.
    pub driver_event: Word<'m, AtomicU32>,
    /// The same, the device's wish for kicks.
    pub device_event: Word<'m, AtomicU32>,
}

impl<'m> PackedView<'m> {
    pub fn new(memory: &'m RingMemory) -> Result<Self, VolatileError> {
        let (descriptors, avail, used) = (memory.descriptors(), memory.avail(), memory.used());
        Ok(Self {
            size: memory.size(),
            region: descriptors.region(),
            ring_at: descriptors.offset(),
            driver_event: avail.region().word(avail.offset())?,
            device_event: used.region().word(used.offset())?,
        })
    }

    /// Half 0 of a descriptor is its address; half 1 its length, id and flags, from the low bits up.
    #[inline]
    fn half(&self, offset: u16, half: usize) -> Result<Word<'_, AtomicU64>, Error> {
        let at = self.ring_at + usize::from(offset) * DESCRIPTOR_BYTES + 8 * half;
        let outside = || {
            // Only a caller that counts past the ring's end gets here.
            let len = usize::from(self.size) * DESCRIPTOR_BYTES;
            let address = at as u64;
            Error::from(MemoryError::Unmapped { address, len })
        };
        if offset >= self.size {
            return Err(outside());
        }
        self.region.word(at).map_err(|_| outside())
    }

    #[inline]
    pub fn set_address(&self, offset: u16, address: u64) -> Result<(), Error> {
        self.half(offset, 0)?.store(address, Ordering::Relaxed);
        Ok(())
    }

    #[inline]
    pub fn address(&self, offset: u16) -> Result<u64, Error> {
        Ok(self.half(offset, 0)?.load(Ordering::Relaxed))
    }

    /// Writes length, id and flags at once: whoever sees the flags sees the rest.
    #[inline]
    pub fn set_word(&self, offset: u16, word: u64) -> Result<(), Error> {
        self.half(offset, 1)?.store(word, Ordering::Release);
        Ok(())
    }

    #[inline]
    pub fn word(&self, offset: u16) -> Result<u64, Error> {
        Ok(self.half(offset, 1)?.load(Ordering::Acquire))
    }
}
