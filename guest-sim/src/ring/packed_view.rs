//! The words of a packed virtqueue, by name.
//!
//! Made once per batch from a [`RingMemory`] and used on the driver's thread. Keeps true: the word that holds a descriptor's flags is read
//! with acquire and written with release ordering. Little-endian hosts only, as for split rings.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::volatile_memory::Error as VolatileError;
use vm_memory::{VolatileMemory, VolatileSlice};

use super::layout::{DESCRIPTOR_BYTES, RingMemory};
use crate::error::Error;
use crate::memory::MemoryError;

/// One packed ring's words.
pub(crate) struct PackedView<'m> {
    size: u16,
    ring: VolatileSlice<'m>,
    /// Event offset and wrap counter in the low half, flags in the high half: the driver's wish for calls.
    pub driver_event: &'m AtomicU32,
    /// The same, the device's wish for kicks.
    pub device_event: &'m AtomicU32,
}

impl<'m> PackedView<'m> {
    pub fn new(memory: &'m RingMemory) -> Result<Self, VolatileError> {
        let (descriptors, avail, used) = (memory.descriptors(), memory.avail(), memory.used());
        let map = descriptors.region().map();
        Ok(Self {
            size: memory.size(),
            ring: map.get_slice(descriptors.offset(), descriptors.len())?,
            driver_event: avail.region().map().get_atomic_ref(avail.offset())?,
            device_event: used.region().map().get_atomic_ref(used.offset())?,
        })
    }

    /// Half 0 of a descriptor is its address; half 1 its length, id and flags, from the low bits up.
    #[inline]
    fn half(&self, offset: u16, half: usize) -> Result<&AtomicU64, Error> {
        let at = usize::from(offset) * DESCRIPTOR_BYTES + 8 * half;
        self.ring.get_atomic_ref(at).map_err(|_| {
            // Only a caller that counts past the ring's end gets here.
            let len = usize::from(self.size) * DESCRIPTOR_BYTES;
            MemoryError::Unmapped {
                address: at as u64,
                len,
            }
            .into()
        })
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
