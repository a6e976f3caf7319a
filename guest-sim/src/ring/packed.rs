//! The driver's bookkeeping of one packed virtqueue: which descriptors and buffer ids are free, which chains are with the device, what came
//! back.
//!
//! Called by `virtqueue`, on the driver's thread. Keeps true: what the driver does is legal (VIRTIO 1.3 §2.8); a batch becomes visible as
//! one, since its first descriptor is made available last; nothing the device writes is believed before it has been checked, and a broken
//! rule is a [`DeviceFault`].
//!
//! ```text
//!   used ........... published ........... avail            (positions; each wraps with a counter of its own)
//!    |  with the device  |  added, not shown  |  free ...
//! ```

use std::sync::atomic::{Ordering, fence};

use super::chain::{Chain, Completion, Segment, Used};
use super::packed_view::PackedView;
use super::position::Position;
use super::raw::{INDIRECT, NEXT, WRITE};
use super::raw_packed::{AVAIL, EventSuppression, PackedDescriptor, USED};
use super::tables::Table;
use crate::error::{DeviceFault, Error};
use crate::features::Features;

/// What stands for a buffer id in descriptors where none counts: a device that takes it for one is found out.
const NO_ID: u16 = u16::MAX;

#[derive(Debug)]
pub(super) struct PackedDriver {
    ring: u16,
    size: u16,
    event_idx: bool,
    in_order: bool,
    /// By buffer id.
    chains: Vec<Entry>,
    /// Length, id and flags that each descriptor must have, after what both sides wrote.
    words: Vec<u64>,
    /// Ids not in use, the next one last; without IN_ORDER.
    free_ids: Vec<u16>,
    /// With IN_ORDER ids go round as the ring does: the next one, and the oldest with the device.
    next_id: u16,
    oldest_id: u16,
    free_count: u16,
    /// Where the next chain goes.
    avail: Position,
    /// The first descriptor the device has not been shown.
    published: Position,
    /// The word that shows it, and with it all that was added since.
    first_word: Option<u64>,
    /// Where the device writes the next used descriptor.
    used: Position,
    /// The id that ends the IN_ORDER batch being handed out, and its length.
    batch_end: Option<(u16, u32)>,
    /// Chains added, published, and come back, since the start.
    added: u64,
    shown: u64,
    returned: u64,
}

/// A descriptor that is not as it was left: its second word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overwritten {
    pub slot: u16,
    pub expected: u64,
    pub found: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    chain: Chain,
    in_use: bool,
    /// `added` when it was added.
    number: u64,
}

impl PackedDriver {
    pub fn new(ring: u16, size: u16, features: Features) -> Self {
        let mut driver = Self {
            ring,
            size,
            event_idx: false,
            in_order: false,
            chains: vec![Entry::default(); usize::from(size)],
            words: vec![0; usize::from(size)],
            free_ids: Vec::with_capacity(usize::from(size)),
            next_id: 0,
            oldest_id: 0,
            free_count: size,
            avail: Position::START,
            published: Position::START,
            first_word: None,
            used: Position::START,
            batch_end: None,
            added: 0,
            shown: 0,
            returned: 0,
        };
        driver.reset(features);
        driver
    }

    /// An empty ring at its start.
    pub fn reset(&mut self, features: Features) {
        self.event_idx = features.contains(Features::EVENT_IDX);
        self.in_order = features.contains(Features::IN_ORDER);
        self.chains.fill(Entry::default());
        self.words.fill(0);
        // Ids count down or start in the middle while places count up: a device that confuses the two is found out.
        self.free_ids.clear();
        self.free_ids.extend(0..self.size);
        (self.next_id, self.oldest_id) = (self.size / 2, self.size / 2);
        self.free_count = self.size;
        (self.avail, self.published) = (Position::START, Position::START);
        self.first_word = None;
        self.used = Position::START;
        self.batch_end = None;
        (self.added, self.shown, self.returned) = (0, 0, 0);
    }

    #[inline]
    pub fn free_descriptors(&self) -> u16 {
        self.free_count
    }

    /// Chains published and not come back.
    #[inline]
    pub fn outstanding(&self) -> u16 {
        (self.shown - self.returned) as u16
    }

    /// The first descriptor the device has not been shown.
    pub fn published(&self) -> Position {
        self.published
    }

    /// The buffer id of the chain added next.
    #[inline]
    pub fn next_id(&self) -> u16 {
        match self.free_ids.last() {
            Some(&id) if !self.in_order => id,
            _ => self.next_id,
        }
    }

    #[inline]
    fn take_id(&mut self) -> u16 {
        let id = self.next_id();
        if self.in_order {
            self.next_id = self.following(id);
        } else {
            self.free_ids.pop();
        }
        id
    }

    #[inline]
    fn following(&self, id: u16) -> u16 {
        if id + 1 == self.size { 0 } else { id + 1 }
    }

    /// Puts a chain, for which there is room, behind those before it, unpublished.
    #[inline]
    pub fn place(
        &mut self,
        view: &PackedView<'_>,
        segments: &[Segment],
        token: u32,
    ) -> Result<(), Error> {
        let id = self.take_id();
        let last = segments.len() - 1;
        let mut chain = Chain {
            descriptors: segments.len() as u16,
            writable: 0,
            token,
        };
        let mut at = self.avail;
        let mut first_word = 0;
        for (position, segment) in segments.iter().enumerate() {
            let chained = if position < last { NEXT } else { 0 };
            let descriptor = PackedDescriptor {
                address: segment.address,
                len: segment.len,
                // VIRTIO 1.3 §2.8.6: the id is in the last descriptor of the list.
                id: if position < last { NO_ID } else { id },
                flags: chained | segment.direction.flag() | at.available_flags(),
            };
            view.set_address(at.offset, segment.address)?;
            if position == 0 {
                first_word = descriptor.word();
            } else {
                self.write(view, at, descriptor.word())?;
            }
            chain.writable += segment.writable();
            at = at.advance(1, self.size);
        }
        self.make_available(view, id, first_word, chain)
    }

    /// The same for a chain in an indirect table.
    pub fn place_table(
        &mut self,
        view: &PackedView<'_>,
        table: Table,
        chain: Chain,
    ) -> Result<(), Error> {
        let id = self.take_id();
        view.set_address(self.avail.offset, table.address)?;
        let descriptor = PackedDescriptor {
            address: table.address,
            len: table.len,
            id,
            flags: INDIRECT | self.avail.available_flags(),
        };
        self.make_available(view, id, descriptor.word(), chain)
    }

    /// Writes the chain's first descriptor after the rest of it (VIRTIO 1.3 §2.8.17), and that of a batch's first chain not before
    /// [`Self::publish`].
    // Always: otherwise `chain` passes through memory, written in parts and read as a whole, which stalls.
    #[inline(always)]
    fn make_available(
        &mut self,
        view: &PackedView<'_>,
        id: u16,
        first_word: u64,
        chain: Chain,
    ) -> Result<(), Error> {
        if self.added == self.shown {
            self.first_word = Some(first_word);
        } else {
            self.write(view, self.avail, first_word)?;
        }
        self.chains[usize::from(id)] = Entry {
            chain,
            in_use: true,
            number: self.added,
        };
        self.added += 1;
        self.free_count -= chain.descriptors;
        self.avail = self.avail.advance(chain.descriptors, self.size);
        Ok(())
    }

    #[inline]
    fn write(&mut self, view: &PackedView<'_>, place: Position, word: u64) -> Result<(), Error> {
        self.words[usize::from(place.offset)] = word;
        view.set_word(place.offset, word)
    }

    /// Makes everything that was added visible to the device: whether it wants a kick, or `None` when nothing was added.
    pub fn publish(&mut self, view: &PackedView<'_>) -> Result<Option<bool>, Error> {
        let Some(word) = self.first_word.take() else {
            return Ok(None);
        };
        self.write(view, self.published, word)?;
        let old = std::mem::replace(&mut self.published, self.avail);
        self.shown = self.added;
        // VIRTIO 1.3 §2.8.21.2.1: the descriptors are visible before the device's wish is read.
        fence(Ordering::SeqCst);
        let event = EventSuppression::from_word(view.device_event.load(Ordering::Relaxed));
        Ok(Some(self.wants_kick(event, old)?))
    }

    /// Whether the device wants to hear of what was published since `old` (VIRTIO 1.3 §2.8.10).
    fn wants_kick(&self, event: EventSuppression, old: Position) -> Result<bool, DeviceFault> {
        let wrong = |why| DeviceFault::EventSuppression {
            ring: self.ring,
            position: event.position,
            flags: event.flags,
            why,
        };
        match event.flags {
            EventSuppression::ENABLE => Ok(true),
            EventSuppression::DISABLE => Ok(false),
            EventSuppression::DESC if !self.event_idx => {
                Err(wrong("flags 2 need EVENT_IDX, which was not acked"))
            }
            EventSuppression::DESC => {
                let wanted = Position::from_word(event.position);
                if wanted.offset >= self.size {
                    return Err(wrong("the offset is past the ring"));
                }
                let added = old.distance_to(self.published, self.size);
                Ok(old.distance_to(wanted, self.size) < added)
            }
            3 => Err(wrong("flags 3 are reserved")),
            _ => Err(wrong("the bits above the flags are reserved and 0")),
        }
    }

    /// Takes back the next chain that came back, if any; one that breaks a rule stays with the device.
    #[inline]
    pub fn pop_used(&mut self, view: &PackedView<'_>) -> Result<Option<Completion>, DeviceFault> {
        let Some(used) = self.next_used(view)? else {
            return Ok(None);
        };
        let completion = used.completion(self.ring)?;
        self.release(&used);
        Ok(Some(completion))
    }

    #[inline]
    fn next_used(&mut self, view: &PackedView<'_>) -> Result<Option<Used>, DeviceFault> {
        let end = match self.batch_end {
            Some(end) => Some(end),
            None => self.read_used(view)?,
        };
        let Some((end, written)) = end else {
            return Ok(None);
        };
        // VIRTIO 1.3 §2.8.8: one used descriptor may stand for a batch; it names the batch's last buffer.
        let id = if self.in_order { self.oldest_id } else { end };
        self.batch_end = (id != end).then_some((end, written));
        Ok(Some(Used {
            id,
            written: (id == end).then_some(written),
            chain: self.chains[usize::from(id)].chain,
        }))
    }

    /// Id and length of the next used descriptor, if there is one.
    #[inline]
    fn read_used(&mut self, view: &PackedView<'_>) -> Result<Option<(u16, u32)>, DeviceFault> {
        let slot = self.used.offset;
        // The place is inside the ring, so that this does not fail.
        let word = view.word(slot).unwrap_or_default();
        let descriptor = PackedDescriptor::from_words(0, word);
        let (id, flags) = (descriptor.id, descriptor.flags);
        if !self.is_used(flags)? {
            return Ok(None);
        }
        let entry = self.chains.get(usize::from(id));
        let Some(entry) = entry.filter(|entry| self.is_with_device(entry)) else {
            return Err(DeviceFault::UnknownUsedId {
                ring: self.ring,
                slot,
                id: id.into(),
            });
        };
        let wrote = flags & WRITE != 0;
        if wrote && entry.chain.writable == 0 {
            return Err(self.bad_flags(
                flags,
                "WRITE says that the device wrote, and it may not write anything of that chain",
            ));
        }
        self.words[usize::from(slot)] = word;
        // VIRTIO 1.3 §2.8.4: without WRITE the length is reserved, and ignored.
        Ok(Some((id, if wrote { descriptor.len } else { 0 })))
    }

    /// Whether these flags, at the next place the device uses, say used.
    #[inline]
    fn is_used(&self, flags: u16) -> Result<bool, DeviceFault> {
        let state = flags & (AVAIL | USED);
        if state == self.used.used_flags() {
            Ok(true)
        } else if state == self.used.available_flags() || self.outstanding() == 0 {
            // Without a chain at the device, what stands there is from the turn before.
            Ok(false)
        } else {
            Err(self.bad_flags(flags, "AVAIL and USED are those of another turn"))
        }
    }

    fn bad_flags(&self, flags: u16, why: &'static str) -> DeviceFault {
        DeviceFault::UsedFlags {
            ring: self.ring,
            slot: self.used.offset,
            flags,
            why,
        }
    }

    #[inline]
    fn is_with_device(&self, entry: &Entry) -> bool {
        entry.in_use && entry.number < self.shown
    }

    /// Takes the chain back that [`Self::next_used`] named.
    #[inline]
    fn release(&mut self, used: &Used) {
        self.chains[usize::from(used.id)].in_use = false;
        if self.in_order {
            self.oldest_id = self.following(used.id);
        } else {
            self.free_ids.push(used.id);
        }
        self.free_count += used.chain.descriptors;
        self.returned += 1;
        self.used = self.used.advance(used.chain.descriptors, self.size);
    }

    pub fn arm_call(&self, view: &PackedView<'_>) {
        let event = if self.event_idx {
            EventSuppression {
                position: self.used.word(),
                flags: EventSuppression::DESC,
            }
        } else {
            EventSuppression::default()
        };
        view.driver_event.store(event.word(), Ordering::Release);
    }

    pub fn disarm_call(&self, view: &PackedView<'_>) {
        let event = EventSuppression {
            position: 0,
            flags: EventSuppression::DISABLE,
        };
        view.driver_event.store(event.word(), Ordering::Release);
    }

    /// Whether there is something to hear of: a used chain, or a broken rule.
    pub fn has_used(&self, view: &PackedView<'_>) -> Result<bool, Error> {
        let flags = PackedDescriptor::from_words(0, view.word(self.used.offset)?).flags;
        Ok(self.batch_end.is_some() || self.is_used(flags).unwrap_or(true))
    }

    /// Checks that the device has written no descriptor but those it has used: neither the rest of a list or batch that one used
    /// descriptor stands for, nor one that it has not got to (VIRTIO 1.3 §2.8.2, §2.8.15). The answer is the first that differs, as it
    /// must be and as it is. Only sure while nothing is on its way.
    pub fn find_overwritten(&self, view: &PackedView<'_>) -> Result<Option<Overwritten>, Error> {
        for (slot, &expected) in (0..).zip(&self.words) {
            let found = view.word(slot)?;
            if found != expected {
                return Ok(Some(Overwritten {
                    slot,
                    expected,
                    found,
                }));
            }
        }
        Ok(None)
    }

    /// How far the device has got with using chains, as the ring shows it: from where the driver is, over all that it has not taken back.
    pub fn device_used(&self, view: &PackedView<'_>) -> Result<Position, Error> {
        let mut at = self.used;
        let mut oldest = self.oldest_id;
        let mut named = self.batch_end.map(|(end, _)| end);
        for _ in 0..self.outstanding() {
            let descriptor = PackedDescriptor::from_words(0, view.word(at.offset)?);
            let is_used = descriptor.flags & (AVAIL | USED) == at.used_flags();
            let end = match named {
                Some(end) => end,
                None if is_used => descriptor.id,
                None => break,
            };
            let id = if self.in_order { oldest } else { end };
            let entry = self.chains.get(usize::from(id));
            let Some(entry) = entry.filter(|entry| self.is_with_device(entry)) else {
                break;
            };
            named = (id != end).then_some(end);
            oldest = self.following(id);
            at = at.advance(entry.chain.descriptors, self.size);
        }
        Ok(at)
    }
}
