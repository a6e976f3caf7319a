//! Any word of a split ring, with no rule kept: for guests that misbehave on purpose, and for tests that look at what the device wrote.
//!
//! Used on any thread, beside or instead of the well-behaved driver. Keeps nothing true; that is the point.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmm_sys_util::eventfd::EventFd;

use super::layout::RingMemory;
use super::split_view::SplitView;
use super::view::{OTHER_FORMAT, View};
use crate::error::{Doing, Error};

/// The chain goes on at `next`.
pub const NEXT: u16 = 1;
/// The device may write, and only write.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// A descriptor (VIRTIO 1.3 §2.7.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Its bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next descriptor, with [`NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// The second of the two words a descriptor is.
    #[inline]
    pub(crate) fn word(self) -> u64 {
        u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48
    }

    fn from_words(address: u64, word: u64) -> Self {
        Self {
            address,
            len: word as u32,
            flags: (word >> 32) as u16,
            next: (word >> 48) as u16,
        }
    }

    /// Its 16 bytes, as they stand in an indirect table.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..].copy_from_slice(&self.word().to_le_bytes());
        bytes
    }
}

/// Unchecked access to one split ring. Indices of descriptors and slots are taken modulo the ring's size.
#[derive(Debug)]
pub struct RawRing {
    memory: Arc<RingMemory>,
    kick: EventFd,
}

impl RawRing {
    pub(crate) fn new(memory: Arc<RingMemory>, kick: &EventFd) -> Result<Self, Error> {
        let ring = Self {
            memory,
            kick: kick.try_clone().doing("cloning a kick eventfd")?,
        };
        ring.view()?;
        Ok(ring)
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.memory.size()
    }

    /// Where it lies.
    pub fn memory(&self) -> &RingMemory {
        &self.memory
    }

    fn view(&self) -> Result<SplitView<'_>, Error> {
        match View::of(&self.memory)? {
            View::Split(view) => Ok(view),
            View::Packed(_) => Err(OTHER_FORMAT),
        }
    }

    /// Writes a descriptor.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) -> Result<(), Error> {
        let view = self.view()?;
        view.set_descriptor(index % self.size(), descriptor.address, descriptor.word());
        Ok(())
    }

    /// Reads a descriptor.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn descriptor(&self, index: u16) -> Result<Descriptor, Error> {
        let (address, word) = self.view()?.descriptor(index % self.size());
        Ok(Descriptor::from_words(address, word))
    }

    /// Writes an entry of the available ring; `head` may be anything.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn set_avail_entry(&self, slot: u16, head: u16) -> Result<(), Error> {
        let view = self.view()?;
        view.set_avail_entry(slot % self.size(), head);
        Ok(())
    }

    /// Writes the available index.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn set_avail_index(&self, index: u16) -> Result<(), Error> {
        self.view()?.avail_index.store(index, Ordering::Release);
        Ok(())
    }

    /// Reads the available index.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn avail_index(&self) -> Result<u16, Error> {
        Ok(self.view()?.avail_index.load(Ordering::Acquire))
    }

    /// Reads an entry of the available ring.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn avail_entry(&self, slot: u16) -> Result<u16, Error> {
        Ok(self.view()?.avail_entry(slot % self.size()))
    }

    /// Writes the flags of the available ring (1: no interrupts).
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn set_avail_flags(&self, flags: u16) -> Result<(), Error> {
        self.view()?.avail_flags.store(flags, Ordering::Release);
        Ok(())
    }

    /// Writes `used_event`.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn set_used_event(&self, index: u16) -> Result<(), Error> {
        self.view()?.used_event.store(index, Ordering::Release);
        Ok(())
    }

    /// Reads `avail_event`, the device's.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn avail_event(&self) -> Result<u16, Error> {
        Ok(self.view()?.avail_event.load(Ordering::Acquire))
    }

    /// Reads the flags of the used ring (1: no kicks).
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn used_flags(&self) -> Result<u16, Error> {
        Ok(self.view()?.used_flags.load(Ordering::Acquire))
    }

    /// Reads the used index.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn used_index(&self) -> Result<u16, Error> {
        Ok(self.view()?.load_used_index())
    }

    /// Writes the used index, which is the device's to write: a crashed or lying peer.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn set_used_index(&self, index: u16) -> Result<(), Error> {
        self.view()?.used_index.store(index, Ordering::Release);
        Ok(())
    }

    /// Id and length of a used element.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn used_entry(&self, slot: u16) -> Result<(u32, u32), Error> {
        Ok(self.view()?.used_entry(slot % self.size()))
    }

    /// Writes a used element, which is the device's to write.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn set_used_entry(&self, slot: u16, id: u32, len: u32) -> Result<(), Error> {
        self.view()?.set_used_entry(slot % self.size(), id, len);
        Ok(())
    }

    /// Writes the descriptors from index `first` on, makes `first` available and moves the available index by one. No kick.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn post(&self, first: u16, descriptors: &[Descriptor]) -> Result<(), Error> {
        for (at, descriptor) in (0..).zip(descriptors) {
            self.set_descriptor(first.wrapping_add(at), *descriptor)?;
        }
        let index = self.avail_index()?;
        self.set_avail_entry(index, first)?;
        self.set_avail_index(index.wrapping_add(1))
    }

    /// Kicks, whether or not the device asked for it.
    ///
    /// # Errors
    /// When the eventfd's counter is full.
    pub fn kick(&self) -> Result<(), Error> {
        self.kick.write(1).doing("kicking")
    }
}
