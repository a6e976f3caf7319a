//! Any word of a packed ring, with no rule kept: for guests that misbehave on purpose, and for tests that look at what the device wrote or
//! play it.
//!
//! Used on any thread, beside or instead of the well-behaved driver. Keeps nothing true; that is the point.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::layout::RingMemory;
use super::packed_view::PackedView;
use super::position::Position;
use super::raw::{INDIRECT, NEXT, WRITE};
use super::view::{OTHER_FORMAT, View};
use crate::error::{Doing, Error};

/// Equal to the driver's wrap counter in an available descriptor, to the device's in a used one.
pub const AVAIL: u16 = 1 << 7;
/// The opposite of the driver's wrap counter in an available descriptor, equal to the device's in a used one.
pub const USED: u16 = 1 << 15;

/// A descriptor of a packed ring or of its indirect tables (VIRTIO 1.3 §2.8.13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedDescriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Its bytes; in a used descriptor, those written.
    pub len: u32,
    /// Buffer id; counts in the last descriptor of a chain and in a used one.
    pub id: u16,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`], [`AVAIL`], [`USED`].
    pub flags: u16,
}

impl PackedDescriptor {
    /// The second of the two words a descriptor is.
    #[inline]
    pub(crate) fn word(self) -> u64 {
        u64::from(self.len) | u64::from(self.id) << 32 | u64::from(self.flags) << 48
    }

    #[inline]
    pub(crate) fn from_words(address: u64, word: u64) -> Self {
        Self {
            address,
            len: word as u32,
            id: (word >> 32) as u16,
            flags: (word >> 48) as u16,
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

/// An event suppression structure (VIRTIO 1.3 §2.8.14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventSuppression {
    /// Offset in bits 0 to 14, wrap counter in bit 15; counts with [`Self::DESC`].
    pub position: u16,
    /// [`Self::ENABLE`], [`Self::DISABLE`], [`Self::DESC`]; everything above bit 1 is reserved.
    pub flags: u16,
}

impl EventSuppression {
    /// Every notification is wanted.
    pub const ENABLE: u16 = 0;
    /// None is.
    pub const DISABLE: u16 = 1;
    /// The one for the descriptor at `position`; needs EVENT_IDX.
    pub const DESC: u16 = 2;

    pub(crate) fn word(self) -> u32 {
        u32::from(self.position) | u32::from(self.flags) << 16
    }

    pub(crate) fn from_word(word: u32) -> Self {
        Self {
            position: word as u16,
            flags: (word >> 16) as u16,
        }
    }
}

/// Unchecked access to one packed ring. Offsets of descriptors are taken modulo the ring's size.
#[derive(Debug)]
pub struct RawPackedRing {
    memory: Arc<RingMemory>,
    kick: EventFd,
    /// Where [`Self::post`] goes on, as [`Position::word`] has it: the ring itself does not say.
    next: AtomicU16,
}

impl RawPackedRing {
    pub(crate) fn new(
        memory: Arc<RingMemory>,
        kick: &EventFd,
        next: Position,
    ) -> Result<Self, Error> {
        let ring = Self {
            memory,
            kick: kick.try_clone().doing("cloning a kick eventfd")?,
            next: AtomicU16::new(next.word()),
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

    fn view(&self) -> Result<PackedView<'_>, Error> {
        match View::of(&self.memory)? {
            View::Packed(view) => Ok(view),
            View::Split(_) => Err(OTHER_FORMAT),
        }
    }

    /// Reads a descriptor.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn descriptor(&self, offset: u16) -> Result<PackedDescriptor, Error> {
        let (view, offset) = (self.view()?, offset % self.size());
        let word = view.word(offset)?;
        Ok(PackedDescriptor::from_words(view.address(offset)?, word))
    }

    /// Writes a descriptor, its flags last.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn set_descriptor(&self, offset: u16, descriptor: PackedDescriptor) -> Result<(), Error> {
        let (view, offset) = (self.view()?, offset % self.size());
        view.set_address(offset, descriptor.address)?;
        view.set_word(offset, descriptor.word())
    }

    /// Where [`Self::post`] goes on: at first, where the driver had got to when this access was made.
    pub fn next(&self) -> Position {
        Position::from_word(self.next.load(Ordering::Relaxed))
    }

    /// Lets [`Self::post`] go on elsewhere.
    pub fn set_next(&self, next: Position) {
        self.next.store(next.word(), Ordering::Relaxed);
    }

    /// Writes these descriptors at [`Self::next`] and makes them available: AVAIL and USED are set as they must be at each place, all other
    /// flags are as given. No kick.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn post(&self, descriptors: &[PackedDescriptor]) -> Result<(), Error> {
        self.set_next(self.post_at(self.next(), descriptors)?);
        Ok(())
    }

    /// The same at any place; the answer is the place behind them.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn post_at(
        &self,
        at: Position,
        descriptors: &[PackedDescriptor],
    ) -> Result<Position, Error> {
        let places: Vec<_> = std::iter::successors(Some(at), |at| Some(at.advance(1, self.size())))
            .take(descriptors.len() + 1)
            .collect();
        // The first one last: nobody sees half a chain.
        for (place, descriptor) in places.iter().zip(descriptors).rev() {
            let flags = descriptor.flags & !(AVAIL | USED) | place.available_flags();
            self.set_descriptor(
                place.offset,
                PackedDescriptor {
                    flags,
                    ..*descriptor
                },
            )?;
        }
        Ok(places.last().copied().unwrap_or(at))
    }

    /// Plays the device: marks buffer `id` used at `at`, with `written` bytes and WRITE if that is not 0.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn set_used(&self, at: Position, id: u16, written: u32) -> Result<(), Error> {
        let wrote = if written == 0 { 0 } else { WRITE };
        let descriptor = PackedDescriptor {
            address: 0,
            len: written,
            id,
            flags: wrote | at.used_flags(),
        };
        self.set_descriptor(at.offset, descriptor)
    }

    /// The chain made available at `at`, as a device reads it: its descriptors, or `None` if there is none. Looks at no more of them than
    /// the ring has.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn chain(&self, at: Position) -> Result<Option<Vec<PackedDescriptor>>, Error> {
        let mut place = at;
        let mut chain = Vec::new();
        for _ in 0..self.size() {
            let descriptor = self.descriptor(place.offset)?;
            if descriptor.flags & (AVAIL | USED) != place.available_flags() {
                break;
            }
            chain.push(descriptor);
            if descriptor.flags & NEXT == 0 || descriptor.flags & INDIRECT != 0 {
                return Ok(Some(chain));
            }
            place = place.advance(1, self.size());
        }
        Ok(None)
    }

    /// Reads the driver's wish for calls.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn driver_event(&self) -> Result<EventSuppression, Error> {
        let word = self.view()?.driver_event.load(Ordering::Acquire);
        Ok(EventSuppression::from_word(word))
    }

    /// Writes the driver's wish for calls.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn set_driver_event(&self, event: EventSuppression) -> Result<(), Error> {
        let view = self.view()?;
        view.driver_event.store(event.word(), Ordering::Release);
        Ok(())
    }

    /// Reads the device's wish for kicks.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn device_event(&self) -> Result<EventSuppression, Error> {
        let word = self.view()?.device_event.load(Ordering::Acquire);
        Ok(EventSuppression::from_word(word))
    }

    /// Writes the device's wish for kicks, which is the device's to write.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn set_device_event(&self, event: EventSuppression) -> Result<(), Error> {
        let view = self.view()?;
        view.device_event.store(event.word(), Ordering::Release);
        Ok(())
    }

    /// Kicks, whether or not the device asked for it.
    ///
    /// # Errors
    /// When the eventfd's counter is full.
    pub fn kick(&self) -> Result<(), Error> {
        self.kick.write(1).doing("kicking")
    }
}
