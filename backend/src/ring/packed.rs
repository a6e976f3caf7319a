//! A packed virtqueue, device side (VIRTIO 1.3 §2.8).
//!
//! One kind of [`Ring`](super::Ring), which calls it. Driver and device write the same ring of descriptors; a descriptor's AVAIL and USED
//! bits, against the side's wrap counter, say whose it is. Descriptors are read once each and checked on every use.
//!
//! Kept true: chains are given back in the order they were taken in, and everything taken is given back before the ring changes hands.
//! So one position says where to go on: the next descriptor to give back is the next to take. It is kept in a [`RingRecord`], which
//! outlives the process, together with the used elements being written: killed at any instruction, the ring goes on where the driver
//! believes it to be (docs/adr/0006).

mod resume;

use super::chain::{
    ASKED_AHEAD, Buffer, BurstEnd, BurstLimit, Chain, ChainHead, ChainWalker, Direction, INDIRECT,
    MAX_CHAIN_DESCRIPTORS, NEXT, WRITE, bad_table, endless,
};
use super::copy::{CACHE_LINE_BYTES, prefetch_write};
use super::dirty_log::Marks;
use super::error::RingError;
use super::guest_memory::GuestMemory;
use super::parts::{DESCRIPTOR_BYTES, PackedParts, RingAddresses};
use super::record::{Position, RingRecord, State, UsedElement};
use super::segment::{SegmentArena, SegmentRange};
use super::virtqueue::{MAX_RING_SIZE, RingConfig, RingFill};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence, fence};
use virtio_bindings::virtio_config::VIRTIO_F_IN_ORDER;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_FLAG_DESC, VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
};

const AVAIL: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;
/// What tells a lone descriptor in the right direction from any other.
const LONE: u16 = AVAIL | USED | NEXT | INDIRECT | WRITE;

/// The flags of an event suppression structure that count.
const EVENT_FLAGS: u32 = 3;

/// The second half of a descriptor: length, buffer id, flags, in one word that either side writes last.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    #[inline(always)]
    fn len(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    fn id(self) -> u16 {
        (self.0 >> 32) as u16
    }

    #[inline(always)]
    fn flags(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

/// A started packed virtqueue.
#[derive(Debug)]
pub struct PackedRing {
    chains: ChainWalker,
    parts: PackedParts,
    marks: Marks,
    size: u16,
    /// The next descriptor to take, and the AVAIL and USED bits it has when it is the driver's offer.
    next: u16,
    offered: u16,
    /// Where the driver was given everything back, as the record has it.
    state: State,
    /// Places between that and `next`.
    taken: u16,
    /// Elements in the record's log that the driver has not seen, and their places.
    pushed: u16,
    pushed_places: u16,
    /// WRITE if that is this ring's direction.
    direction: u16,
    event_idx: bool,
    /// IN_ORDER was acked and nothing is written to the buffers: one used element stands for a batch (VIRTIO 1.3 §2.8.9).
    batches: bool,
    /// Kicks were asked for, and not asked off since.
    armed: bool,
    /// Chains given back unread when it was started.
    unread: u16,
    record: RingRecord,
}

// SAFETY: the part pointers refer to shared mappings kept alive by the memory of `chains`; the ring itself is used by one
// thread at a time (it is moved, or behind the lock of its queue), and accesses through the pointers are volatile or atomic.
unsafe impl Send for PackedRing {}

impl PackedRing {
    /// Translates and checks the ring's parts, and takes up where the front-end or the record says.
    ///
    /// # Errors
    /// An impossible size or base, or a part that is misaligned or not inside one region.
    pub fn start(
        config: &RingConfig,
        record: RingRecord,
        direction: Direction,
        memory: &Arc<GuestMemory>,
    ) -> Result<Self, RingError> {
        let RingConfig {
            size,
            features,
            base,
            ..
        } = *config;
        if size == 0 || size > MAX_RING_SIZE || record.size() != size {
            return Err(RingError::BadSize(size));
        }
        let parts = PackedParts::translate(&config.addresses, size, memory)?;
        let position = position_of(base, size)?;
        let origin = position_of(config.origin, size)?;
        let marks = Marks::new(memory, parts.pieces.stitches());
        let mut ring = Self {
            chains: ChainWalker::new(memory, direction, features),
            parts,
            marks,
            size,
            next: 0,
            offered: 0,
            state: State::at(position),
            taken: 0,
            pushed: 0,
            pushed_places: 0,
            direction: match direction {
                Direction::Readable => 0,
                Direction::Writable => WRITE,
            },
            event_idx: has(features, VIRTIO_RING_F_EVENT_IDX),
            batches: has(features, VIRTIO_F_IN_ORDER) && direction == Direction::Readable,
            armed: false,
            unread: 0,
            record,
        };
        ring.resume(config, origin);
        ring.mark_whole();
        ring.go_to(ring.state.position);
        ring.suppress_kicks();
        Ok(ring)
    }

    /// As [`Ring::replace_memory`](super::Ring::replace_memory).
    pub fn replace_memory(
        &mut self,
        addresses: &RingAddresses,
        memory: &Arc<GuestMemory>,
    ) -> Result<(), RingError> {
        self.parts = PackedParts::translate(addresses, self.size, memory)?;
        self.chains.replace_memory(memory);
        self.marks = Marks::new(memory, self.parts.pieces.stitches());
        if let Some(identity) = memory.identify_part(addresses.descriptor_table) {
            self.record.set_identity(identity);
        }
        Ok(())
    }

    /// As [`Ring::set_features`](super::Ring::set_features).
    pub fn set_features(&mut self, features: u64) {
        self.event_idx = has(features, VIRTIO_RING_F_EVENT_IDX);
        self.batches = has(features, VIRTIO_F_IN_ORDER) && self.direction == 0;
        self.chains.set_features(features);
    }

    /// As [`Ring::stop`](super::Ring::stop).
    pub fn stop(mut self) -> u32 {
        debug_assert_eq!(
            (self.taken, self.pushed),
            (0, 0),
            "a chain was taken and not given back"
        );
        self.request_kicks();
        self.base()
    }

    /// As [`Ring::unread`](super::Ring::unread).
    pub fn unread(&self) -> u16 {
        self.unread
    }

    /// The memory map its addresses are in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        self.chains.memory()
    }

    /// As [`Ring::marks`](super::Ring::marks).
    #[inline(always)]
    pub(super) fn marks(&mut self) -> &mut Marks {
        &mut self.marks
    }

    /// Both positions, which are one (vhost-user: Vring descriptor indices for packed virtqueues).
    pub fn base(&self) -> u32 {
        let position = u32::from(self.state.position.0);
        position | position << 16
    }

    /// Whether the next descriptor is the driver's offer.
    #[inline]
    pub fn refresh(&self) -> bool {
        let word = self.word(self.next).load(Ordering::Relaxed);
        (Word(word).flags() ^ self.offered) & (AVAIL | USED) == 0
    }

    /// As [`Ring::offers_half`](super::Ring::offers_half): whether the driver offers the descriptor half a ring further on, too.
    pub fn offers_half(&self) -> bool {
        self.offers(self.size / 2)
    }

    /// As [`Ring::fill`](super::Ring::fill). Drivers offer descriptors one after the other, so that the first which is no offer is found by
    /// halving: some 15 looks in the largest ring.
    pub fn fill(&self) -> RingFill {
        let (mut offered, mut others) = (0, self.size);
        while offered < others {
            let middle = offered + (others - offered) / 2;
            if self.offers(middle) {
                offered = middle + 1;
            } else {
                others = middle;
            }
        }
        RingFill {
            size: self.size,
            offered,
        }
    }

    /// Whether the descriptor so many behind the next, less than the ring has, is the driver's offer.
    fn offers(&self, behind: u16) -> bool {
        let mut offered = self.offered;
        let mut index = u32::from(self.next) + u32::from(behind);
        if index >= u32::from(self.size) {
            index -= u32::from(self.size);
            offered ^= AVAIL | USED;
        }
        let word = Word(self.word(index as u16).load(Ordering::Relaxed));
        (word.flags() ^ offered) & (AVAIL | USED) == 0
    }

    /// As [`Ring::prefetch_next`](super::Ring::prefetch_next). Each descriptor taken is written over by a used element later.
    pub fn prefetch_next(&self, count: usize) {
        let count = (count as u16).min(self.size - self.next);
        let descriptors = (CACHE_LINE_BYTES as u64 / DESCRIPTOR_BYTES) as usize;
        for index in (0..count).step_by(descriptors) {
            let at = DESCRIPTOR_BYTES as usize * usize::from(self.next + index);
            prefetch_write(self.parts.descriptors.as_ptr().wrapping_add(at).cast());
        }
    }

    /// As [`Ring::ask_ahead`](super::Ring::ask_ahead).
    #[cold]
    pub fn ask_ahead(&mut self) {
        let (mut index, mut offered) = (self.next, self.offered);
        for _ in 0..ASKED_AHEAD.min(self.size) {
            let word = Word(self.word(index).load(Ordering::Acquire));
            if (word.flags() ^ offered) & (AVAIL | USED) != 0 {
                return;
            }
            self.chains.ask_for(Buffer {
                addr: self.address(index),
                len: word.len(),
                flags: word.flags(),
            });
            index += 1;
            if index == self.size {
                index = 0;
                offered ^= AVAIL | USED;
            }
        }
    }

    /// As [`Ring::forget_translations`](super::Ring::forget_translations).
    pub fn forget_translations(&mut self, addresses: &RingAddresses) -> bool {
        self.chains.forget_windows();
        let places = PackedParts::places(addresses, self.size, self.chains.memory());
        places.is_ok_and(|places| self.parts.pieces.are_at(&places))
    }

    /// As [`Ring::is_lost`](super::Ring::is_lost).
    pub fn is_lost(&self) -> bool {
        self.memory().is_lost() || self.parts.pieces.are_lost()
    }

    /// As [`Ring::take_waits`](super::Ring::take_waits).
    pub fn take_waits(&mut self) -> bool {
        self.chains.take_waits()
    }

    /// As [`Ring::take_burst`](super::Ring::take_burst).
    pub fn take_burst(
        &mut self,
        arena: &mut SegmentArena,
        chains: &mut Vec<Chain>,
        limit: BurstLimit,
    ) -> Result<BurstEnd, RingError> {
        if !self.refresh() {
            return Ok(BurstEnd::Empty);
        }
        arena.hold(self.chains.memory());
        let first = chains.len();
        let mut bytes = 0u64;
        loop {
            let left = limit.chains.saturating_sub(chains.len() - first);
            bytes += self.take_lone(arena, chains, left, limit.bytes.saturating_sub(bytes));
            if chains.len() - first >= limit.chains || bytes >= limit.bytes {
                return Ok(BurstEnd::Limit);
            }
            let word = Word(self.word(self.next).load(Ordering::Acquire));
            if (word.flags() ^ self.offered) & (AVAIL | USED) != 0 {
                return Ok(BurstEnd::Empty);
            }
            match self.take_any(word, arena)? {
                Ok(chain) => {
                    bytes += chain.len_bytes;
                    arena.prefetch(chain.segments.start, self.direction == WRITE);
                    chains.push(chain);
                }
                Err(end) => return Ok(end),
            }
        }
    }

    /// Takes up to `count` chains of one descriptor each, until one that is not or `limit_bytes`; their bytes.
    #[inline(always)]
    fn take_lone(
        &mut self,
        arena: &mut SegmentArena,
        chains: &mut Vec<Chain>,
        count: usize,
        limit_bytes: u64,
    ) -> u64 {
        let to_write = self.direction == WRITE;
        let mut bytes = 0u64;
        let (mut next, mut offered) = (self.next, self.offered);
        let mut free = self.size - self.taken;
        arena.push_lone(chains, count, || {
            if bytes >= limit_bytes || free == 0 {
                return None;
            }
            let word = Word(self.word(next).load(Ordering::Acquire));
            if (word.flags() ^ (offered | self.direction)) & LONE != 0 {
                return None;
            }
            let segment = self.chains.translate_lone(self.address(next), word.len())?;
            segment.prefetch(to_write);
            bytes += u64::from(word.len());
            free -= 1;
            next += 1;
            if next == self.size {
                next = 0;
                offered ^= AVAIL | USED;
            }
            let head = ChainHead {
                id: word.id(),
                places: 1,
            };
            Some((head, segment))
        });
        (self.next, self.offered) = (next, offered);
        self.taken = self.size - free;
        bytes
    }

    /// A chain of any shape, or the reason why it is none; why it stays in the ring, if there is nothing wrong with it.
    #[cold]
    #[inline(never)]
    fn take_any(
        &mut self,
        first: Word,
        arena: &mut SegmentArena,
    ) -> Result<Result<Chain, BurstEnd>, RingError> {
        let start = arena.len();
        match self.walk(first, arena) {
            Ok((head, len_bytes)) => {
                self.taken += head.places;
                for _ in 0..head.places {
                    self.step();
                }
                Ok(Ok(Chain {
                    head,
                    segments: SegmentRange {
                        start: start as u32,
                        end: arena.len() as u32,
                    },
                    len_bytes,
                }))
            }
            Err(error) => {
                arena.truncate(start);
                match error {
                    RingError::TooLong { .. } if start > 0 => Ok(Err(BurstEnd::ArenaFull)),
                    RingError::Pending { .. } => {
                        self.ask_ahead();
                        Ok(Err(BurstEnd::Pending))
                    }
                    error => Err(error),
                }
            }
        }
    }

    /// Gives back to the driver's side the last chains taken, which have `places` places together.
    pub fn undo_take(&mut self, places: u16) {
        debug_assert!(places + self.pushed_places <= self.taken, "taken before");
        self.taken = self.taken.saturating_sub(places);
        self.go_to(self.state.position.advanced(self.taken, self.size));
    }

    /// Hands a chain back to the driver, `written_bytes` of it filled. Not seen before [`Self::publish_used`].
    #[inline]
    pub fn push_used(&mut self, head: ChainHead, written_bytes: u32) {
        if self.batches && self.pushed > 0 && self.extend_batch(head) {
            return;
        }
        let element = UsedElement::new(head.id, head.places, written_bytes);
        self.record.set_element(self.pushed, element);
        self.pushed += 1;
        self.pushed_places += head.places;
    }

    /// Lets the last element stand for this chain as well (VIRTIO 1.3 §2.8.9), unless one of them is behind the ring's end: then the
    /// element after that is what tells the two laps apart after a crash.
    #[inline]
    fn extend_batch(&mut self, head: ChainHead) -> bool {
        let at = self.pushed - 1;
        let last = self.record.element(at);
        let end = u32::from(self.state.position.index()) + u32::from(self.pushed_places);
        let start = end - u32::from(last.places());
        let size = u32::from(self.size);
        if start < size && end >= size {
            return false;
        }
        let places = last.places() + head.places;
        self.record
            .set_element(at, UsedElement::new(head.id, places, 0));
        self.pushed_places += head.places;
        true
    }

    /// Shows the driver all elements pushed so far, at once; whether it wants a notification (VIRTIO 1.3 §2.8.10), or `None` when
    /// there was nothing new.
    #[inline]
    #[must_use]
    pub fn publish_used(&mut self) -> Option<bool> {
        if self.pushed == 0 {
            return None;
        }
        self.record.set_state(State {
            writing: self.pushed,
            ..self.state
        });
        if self.marks.are_on() {
            // A process that is killed behind one of the next stores must not have kept to itself what it wrote to the buffers.
            self.marks.flush();
        }
        // Nothing of the batch may reach the ring before the record says that it will.
        compiler_fence(Ordering::SeqCst);
        let places = std::mem::take(&mut self.pushed_places);
        let from = self.state.position;
        self.state = if places == self.pushed {
            self.write_lone(self.state.position, places)
        } else {
            self.write_used(self.state.position, self.pushed)
        };
        self.record.set_state(self.state);
        self.pushed = 0;
        self.taken -= places;
        // The elements must be visible before the driver's wish is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        if self.marks.are_on() {
            self.mark_used(from, places);
            self.marks.flush_fenced();
        }
        Some(self.driver_wants_notification(places))
    }

    /// Whether the driver asked to hear of the `places` places just given back (VIRTIO 1.3 §2.8.10).
    #[inline]
    fn driver_wants_notification(&self, places: u16) -> bool {
        let events = self.driver_events().load(Ordering::Relaxed);
        match events >> 16 & EVENT_FLAGS {
            VRING_PACKED_EVENT_FLAG_DISABLE => false,
            VRING_PACKED_EVENT_FLAG_DESC if self.event_idx => {
                let (event, now) = (Position(events as u16), self.state.position);
                let lap = if event.wrap() == now.wrap() {
                    0
                } else {
                    self.size
                };
                let behind = now.index().wrapping_sub(event.index()).wrapping_add(lap);
                behind.wrapping_sub(1) < places
            }
            _ => true,
        }
    }

    /// Asks the driver to kick for the next chain; whether one waits already (VIRTIO 1.3 §2.8.10).
    pub fn arm_notification(&mut self) -> bool {
        self.request_kicks();
        // The wish must be visible before the ring is looked at once more, or a chain added in between is never kicked for.
        fence(Ordering::SeqCst);
        self.refresh()
    }

    /// Asks the driver not to kick while the ring is being polled.
    pub fn suppress_kicks(&mut self) {
        self.device_events()
            .store(VRING_PACKED_EVENT_FLAG_DISABLE << 16, Ordering::Relaxed);
        self.mark_wish();
        self.armed = false;
    }

    /// [`Self::suppress_kicks`] for a ring that was armed, now that it has work.
    #[inline]
    pub fn disarm(&mut self) {
        if self.armed {
            self.suppress_kicks();
        }
    }

    fn request_kicks(&mut self) {
        let events = if self.event_idx {
            let next = Position::new(self.next, self.offered == AVAIL);
            u32::from(next.0) | VRING_PACKED_EVENT_FLAG_DESC << 16
        } else {
            VRING_PACKED_EVENT_FLAG_ENABLE << 16
        };
        self.device_events().store(events, Ordering::Relaxed);
        self.mark_wish();
        self.armed = true;
    }

    /// Notes all that is written of the ring itself: whoever served it before may have been killed between a store and its mark.
    fn mark_whole(&mut self) {
        let ring = self.parts.descriptors.as_ptr().cast_const();
        let bytes = DESCRIPTOR_BYTES as usize * usize::from(self.size);
        self.marks.wrote(ring, bytes);
    }

    /// Notes the used elements in `places` places from `from` on.
    #[cold]
    fn mark_used(&mut self, from: Position, places: u16) {
        let ring = self.parts.descriptors.as_ptr().cast_const();
        let before_end = places.min(self.size - from.index());
        for (index, places) in [(from.index(), before_end), (0, places - before_end)] {
            let start = ring.wrapping_add(DESCRIPTOR_BYTES as usize * usize::from(index));
            let bytes = DESCRIPTOR_BYTES as usize * usize::from(places);
            self.marks.wrote(start, bytes);
        }
    }

    /// Tells the log that what the driver is asked for has changed.
    #[inline]
    fn mark_wish(&mut self) {
        if self.marks.are_on() {
            let events = self.parts.device.as_ptr().cast_const();
            self.marks.wrote(events, size_of::<u32>());
            self.marks.flush();
        }
    }

    // Descriptors.

    /// Writes the log's first `count` elements into the ring from `from` on; the state after. Backwards: the first one shows them all, and what
    /// a kill leaves of them is their end.
    fn write_used(&self, from: Position, count: u16) -> State {
        let after = self.after(from, count);
        let mut places = (0..count).map(|at| self.record.element(at).places()).sum();
        for at in (0..count).rev() {
            let element = self.record.element(at);
            places -= element.places();
            let order = match at {
                0 => Ordering::Release,
                _ => Ordering::Relaxed,
            };
            self.put_used(from.advanced(places, self.size), element, order);
        }
        after
    }

    /// [`Self::write_used`] for elements of one place each: each cache line is written in one go.
    #[inline]
    fn write_lone(&self, from: Position, count: u16) -> State {
        let before_end = count.min(self.size - from.index());
        for at in (before_end..count).rev() {
            let position = Position::new(at - before_end, !from.wrap());
            self.put_used(position, self.record.element(at), Ordering::Relaxed);
        }
        for at in (1..before_end).rev() {
            let position = Position::new(from.index() + at, from.wrap());
            self.put_used(position, self.record.element(at), Ordering::Relaxed);
        }
        self.put_used(from, self.record.element(0), Ordering::Release);
        State::at(from.advanced(count - 1, self.size))
            .past(self.record.element(count - 1), self.size)
    }

    /// The state once the log's first `count` elements are in the ring from `from` on.
    fn after(&self, from: Position, count: u16) -> State {
        (0..count).fold(State::at(from), |state, at| {
            state.past(self.record.element(at), self.size)
        })
    }

    #[inline(always)]
    fn put_used(&self, position: Position, element: UsedElement, order: Ordering) {
        #[cfg(test)]
        super::kill::point();
        self.word(position.index())
            .store(self.used_word(position, element), order);
    }

    #[inline(always)]
    fn used_word(&self, position: Position, element: UsedElement) -> u64 {
        // VIRTIO 1.3 §2.8.5: WRITE says that something was written, and without it there is no length.
        element.without_places() | u64::from(used(position.wrap()) | self.direction) << 48
    }

    #[inline]
    fn go_to(&mut self, position: Position) {
        self.next = position.index();
        self.offered = offered(position.wrap());
    }

    #[inline(always)]
    fn step(&mut self) {
        self.next += 1;
        if self.next == self.size {
            self.next = 0;
            self.offered ^= AVAIL | USED;
        }
    }

    /// Adds the segments of the chain that begins with `first` to the arena; what to give it back by, and the sum of its lengths.
    fn walk(
        &mut self,
        first: Word,
        arena: &mut SegmentArena,
    ) -> Result<(ChainHead, u64), RingError> {
        let head = self.next;
        let mut index = head;
        let mut word = first;
        let mut len_bytes = 0u64;
        let most = u32::from(self.size).min(MAX_CHAIN_DESCRIPTORS) as u16;
        for places in 1..=most {
            if self.taken + places > self.size {
                return Err(RingError::Overrun { size: self.size });
            }
            let buffer = Buffer {
                addr: self.address(index),
                len: word.len(),
                flags: word.flags(),
            };
            let chain = ChainHead {
                id: word.id(),
                places,
            };
            if buffer.flags & INDIRECT != 0 {
                // VIRTIO 1.3 §2.8.19: no table inside a chain.
                if places > 1 {
                    return Err(bad_table(head, buffer));
                }
                return Ok((chain, self.walk_table(head, buffer, arena)?));
            }
            len_bytes += self.chains.add_buffer(head, buffer, arena)?;
            // VIRTIO 1.3 §2.8.6: the buffer id is in the chain's last descriptor.
            if buffer.flags & NEXT == 0 {
                return Ok((chain, len_bytes));
            }
            index += 1;
            if index == self.size {
                index = 0;
            }
            word = Word(self.word(index).load(Ordering::Relaxed));
        }
        Err(endless(head, self.size.into()))
    }

    /// VIRTIO 1.3 §2.8.7: the table's descriptors follow each other; of their flags only WRITE counts.
    fn walk_table(
        &mut self,
        head: u16,
        table: Buffer,
        arena: &mut SegmentArena,
    ) -> Result<u64, RingError> {
        let entries = self.chains.table_entries(head, table)?;
        if entries > MAX_CHAIN_DESCRIPTORS {
            return Err(RingError::TooLong { head });
        }
        let mut len_bytes = 0u64;
        for index in 0..entries as u16 {
            let entry = u128::from_le_bytes(self.chains.table_entry(table, index)?);
            let word = Word((entry >> 64) as u64);
            let buffer = Buffer {
                addr: entry as u64,
                len: word.len(),
                flags: word.flags() & WRITE,
            };
            len_bytes += self.chains.add_buffer(head, buffer, arena)?;
        }
        Ok(len_bytes)
    }

    /// Guest-physical address in the descriptor `index`, which is below the ring's size.
    #[inline(always)]
    fn address(&self, index: u16) -> u64 {
        self.half(index, 0).load(Ordering::Relaxed)
    }

    /// The other half of the descriptor `index`, which is below the ring's size.
    #[inline(always)]
    fn word(&self, index: u16) -> &AtomicU64 {
        self.half(index, 1)
    }

    #[inline(always)]
    fn half(&self, index: u16, half: usize) -> &AtomicU64 {
        debug_assert!(index < self.size);
        // SAFETY: index < size: `next` and what is derived from it wrap at `size`, positions are checked by `position_of` and
        // `RingRecord::recall` and wrap at `size` after that. The ring has 16 * size bytes mapped and is 16-aligned (upheld by
        // `PackedParts::translate`); the mapping lives as long as the memory of `chains`, hence as long as the reference.
        unsafe {
            AtomicU64::from_ptr(
                self.parts
                    .descriptors
                    .as_ptr()
                    .cast::<u64>()
                    .add(2 * usize::from(index) + half),
            )
        }
    }

    #[inline]
    fn driver_events(&self) -> &AtomicU32 {
        self.events(self.parts.driver)
    }

    #[inline]
    fn device_events(&self) -> &AtomicU32 {
        self.events(self.parts.device)
    }

    #[inline]
    fn events(&self, part: NonNull<u8>) -> &AtomicU32 {
        // SAFETY: both structures have 4 bytes mapped and are 4-aligned (upheld by `PackedParts::translate`), for as long as the
        // memory of `chains`, hence as long as the reference.
        unsafe { AtomicU32::from_ptr(part.as_ptr().cast()) }
    }
}

fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

/// AVAIL and USED of a descriptor on offer in a lap with this wrap counter (VIRTIO 1.3 §2.8.1).
#[inline(always)]
fn offered(wrap: bool) -> u16 {
    if wrap { AVAIL } else { USED }
}

/// The same of a descriptor that was given back in such a lap.
#[inline(always)]
fn used(wrap: bool) -> u16 {
    if wrap { AVAIL | USED } else { 0 }
}

/// Where a base says to go on (vhost-user: Vring descriptor indices for packed virtqueues). Chains between its two halves were taken by
/// another back-end and never given back, so they are taken again. DPDK's virtio_user fills the lower half alone, so an upper half of 0
/// counts for nothing, unless the ring shows that it does: see `resume`.
fn position_of(base: u32, size: u16) -> Result<Position, RingError> {
    let (avail, used) = (Position(base as u16), Position((base >> 16) as u16));
    if avail.index() >= size || used.index() >= size {
        return Err(RingError::BadBase { base, size });
    }
    Ok(if used.0 == 0 { avail } else { used })
}
