//! A split virtqueue, device side (VIRTIO 1.3 §2.7).
//!
//! One kind of [`Ring`](super::Ring), which calls it. Ring addresses are translated once, at start or when memory changes;
//! descriptors are checked on every use.
//!
//! Kept true: used elements are published strictly in the order of their heads in the available ring, and everything
//! taken is given back before the ring changes hands. So `used.idx` alone says where to go on after a crash.

use super::chain::{
    ASKED_AHEAD, Buffer, BurstEnd, BurstLimit, Chain, ChainHead, ChainWalker, Direction, INDIRECT,
    MAX_CHAIN_DESCRIPTORS, NEXT, PIECES_AHEAD, WRITE, bad_table, endless,
};
use super::copy::{CACHE_LINE_BYTES, prefetch_read, prefetch_write};
use super::dirty_log::Marks;
use super::error::RingError;
use super::guest_memory::GuestMemory;
use super::parts::{Parts, RingAddresses};
use super::segment::{SegmentArena, SegmentRange};
use super::virtqueue::{MAX_RING_SIZE, RingConfig, RingFill};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY,
};

// Ring fields are little-endian, or the guest's own order for legacy drivers: the same on the hosts we run on.
const _: () = assert!(
    cfg!(target_endian = "little"),
    "ring fields are read as they are"
);

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn from_bytes(bytes: [u8; 16]) -> Self {
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            l0,
            l1,
            l2,
            l3,
            f0,
            f1,
            n0,
            n1,
        ] = bytes;
        Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    #[inline(always)]
    fn buffer(self) -> Buffer {
        Buffer {
            addr: self.addr,
            len: self.len,
            flags: self.flags,
        }
    }
}

/// A started split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    chains: ChainWalker,
    parts: Parts,
    marks: Marks,
    mask: u16,
    size: u16,
    next_avail: u16,
    /// Available index as last read.
    avail_seen: u16,
    /// Used index including what is not published yet.
    next_used: u16,
    /// Used index as the driver sees it.
    published_used: u16,
    event_idx: bool,
    /// Kicks were asked for, and not asked off since.
    armed: bool,
    /// Flags of a descriptor that is a whole chain by itself.
    lone_flags: u16,
}

// SAFETY: the part pointers refer to shared mappings kept alive by the memory of `chains`; the ring itself is used by one
// thread at a time (it is moved, or behind the lock of its queue), and accesses through the pointers are volatile or atomic.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Translates and checks the ring's parts, and takes up where its used index says.
    ///
    /// # Errors
    /// A size that is no power of two, or a part that is misaligned or not inside one region.
    pub fn start(
        config: &RingConfig,
        direction: Direction,
        memory: &Arc<GuestMemory>,
    ) -> Result<Self, RingError> {
        let RingConfig { size, features, .. } = *config;
        // Bits 16 to 31 belong to packed rings (vhost-user: Vring state description).
        let base = config.base as u16;
        if !size.is_power_of_two() || size > MAX_RING_SIZE {
            return Err(RingError::BadSize(size));
        }
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let parts = Parts::translate(&config.addresses, size, event_idx, memory)?;
        let marks = Marks::new(memory, parts.pieces.stitches());
        let mut ring = Self {
            chains: ChainWalker::new(memory, direction, features),
            parts,
            marks,
            mask: size - 1,
            size,
            next_avail: base,
            avail_seen: base,
            next_used: 0,
            published_used: 0,
            event_idx,
            armed: false,
            lone_flags: match direction {
                Direction::Readable => 0,
                Direction::Writable => WRITE,
            },
        };
        let used = ring.used_index().load(Ordering::Acquire);
        if used != base {
            // Cloud Hypervisor sends the available index at activation, so buffers that were posted before would never be
            // used; and after a crash of ours the used index alone tells the truth.
            log::debug!(
                "ring base {base} disagrees with the used index {used} in guest memory: going on from {used}"
            );
        }
        ring.next_avail = used;
        ring.avail_seen = used;
        ring.next_used = used;
        ring.published_used = used;
        ring.mark_whole();
        ring.suppress_kicks();
        Ok(ring)
    }

    /// As [`Ring::replace_memory`](super::Ring::replace_memory).
    pub fn replace_memory(
        &mut self,
        addresses: &RingAddresses,
        memory: &Arc<GuestMemory>,
    ) -> Result<(), RingError> {
        self.parts = Parts::translate(addresses, self.size, self.event_idx, memory)?;
        self.chains.replace_memory(memory);
        self.marks = Marks::new(memory, self.parts.pieces.stitches());
        Ok(())
    }

    /// As [`Ring::set_features`](super::Ring::set_features).
    pub fn set_features(
        &mut self,
        addresses: &RingAddresses,
        features: u64,
    ) -> Result<(), RingError> {
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.parts = Parts::translate(addresses, self.size, event_idx, self.chains.memory())?;
        self.marks = Marks::new(self.chains.memory(), self.parts.pieces.stitches());
        self.event_idx = event_idx;
        self.chains.set_features(features);
        Ok(())
    }

    /// As [`Ring::stop`](super::Ring::stop).
    pub fn stop(mut self) -> u32 {
        debug_assert_eq!(
            self.next_used, self.published_used,
            "a chain was taken and not given back"
        );
        self.request_kicks();
        self.base()
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

    /// The next index to take from the available ring.
    pub fn base(&self) -> u32 {
        self.next_avail.into()
    }

    /// Reads the driver's available index; the number of chains that wait.
    ///
    /// # Errors
    /// [`RingError::AvailJump`] when it is further ahead than the ring is long.
    #[inline]
    pub fn refresh(&mut self) -> Result<u16, RingError> {
        let avail = self.available_index().load(Ordering::Acquire);
        let waiting = avail.wrapping_sub(self.next_avail);
        if waiting > self.size {
            return Err(RingError::AvailJump {
                avail,
                next: self.next_avail,
                size: self.size,
            });
        }
        // A broken index is not kept: whoever asks next is to be told of it, too.
        self.avail_seen = avail;
        Ok(waiting)
    }

    /// As [`Ring::fill`](super::Ring::fill).
    pub fn fill(&self) -> RingFill {
        let avail = self.available_index().load(Ordering::Relaxed);
        RingFill {
            size: self.size,
            offered: avail.wrapping_sub(self.next_avail).min(self.size),
        }
    }

    /// As [`Ring::offers_half`](super::Ring::offers_half).
    pub fn offers_half(&mut self) -> bool {
        // A broken index is reported when a chain is taken.
        self.refresh().is_ok_and(|waiting| waiting >= self.size / 2)
    }

    /// As [`Ring::take_burst`](super::Ring::take_burst).
    pub fn take_burst(
        &mut self,
        arena: &mut SegmentArena,
        chains: &mut Vec<Chain>,
        limit: BurstLimit,
    ) -> Result<BurstEnd, RingError> {
        if self.next_avail == self.avail_seen && self.refresh()? == 0 {
            return Ok(BurstEnd::Empty);
        }
        arena.hold(self.chains.memory());
        let waiting = usize::from(self.avail_seen.wrapping_sub(self.next_avail));
        let count = waiting.min(limit.chains);
        // The driver's core has had these lines last. All are asked for before the first is waited for.
        for index in 0..count as u16 {
            let head = self.available_entry(self.next_avail.wrapping_add(index));
            self.prefetch_descriptor(head);
        }
        self.prefetch_used(count);
        let burst = limit.bytes;
        let first = chains.len();
        let mut bytes = 0u64;
        while chains.len() - first < count && bytes < burst {
            let left = count - (chains.len() - first);
            bytes += self.take_lone(arena, chains, left, burst - bytes);
            if chains.len() - first == count || bytes >= burst {
                break;
            }
            let head = self.available_entry(self.next_avail);
            match self.take_any(head, arena)? {
                Ok(chain) => {
                    bytes += chain.len_bytes;
                    arena.prefetch(chain.segments.start, self.lone_flags == WRITE);
                    chains.push(chain);
                }
                Err(end) => return Ok(end),
            }
        }
        Ok(if chains.len() - first == count && count < limit.chains {
            BurstEnd::Empty
        } else {
            BurstEnd::Limit
        })
    }

    /// As [`Ring::ask_ahead`](super::Ring::ask_ahead).
    #[cold]
    pub fn ask_ahead(&mut self) {
        // A broken index is reported when a chain is taken.
        let waiting = self.refresh().unwrap_or_default();
        for ahead in 0..waiting.min(ASKED_AHEAD) {
            let mut index = self.available_entry(self.next_avail.wrapping_add(ahead));
            for _ in 0..PIECES_AHEAD {
                if index >= self.size {
                    break;
                }
                let descriptor = self.descriptor(index);
                self.chains.ask_for(descriptor.buffer());
                if descriptor.flags & NEXT == 0 {
                    break;
                }
                index = descriptor.next;
            }
        }
    }

    /// As [`Ring::forget_translations`](super::Ring::forget_translations).
    pub fn forget_translations(&mut self, addresses: &RingAddresses) -> bool {
        self.chains.forget_windows();
        let places = Parts::places(addresses, self.size, self.event_idx, self.chains.memory());
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

    /// Asks the caches for what taking `count` chains more will read, as far as the driver is known to have them there. That their
    /// heads follow each other is a guess; a wrong one costs nothing but its prefetch.
    pub fn prefetch_next(&self, count: usize) {
        let waiting = self.avail_seen.wrapping_sub(self.next_avail);
        let count = count.min(usize::from(waiting)) as u16;
        if count == 0 {
            return;
        }
        for index in (0..count).step_by(CACHE_LINE_BYTES / 2) {
            let slot = usize::from(self.next_avail.wrapping_add(index) & self.mask);
            prefetch_read(self.parts.available.as_ptr().wrapping_add(4 + 2 * slot));
        }
        let last = self.available_entry(self.next_avail.wrapping_sub(1));
        for index in (1..=count).step_by(CACHE_LINE_BYTES / size_of::<Descriptor>()) {
            self.prefetch_descriptor(last.wrapping_add(index));
        }
    }

    #[inline(always)]
    fn prefetch_descriptor(&self, head: u16) {
        let table = self.parts.descriptors.as_ptr().cast::<Descriptor>();
        prefetch_read(table.wrapping_add(usize::from(head & self.mask)).cast());
    }

    /// Asks the caches for where the next `count` used elements go.
    #[inline(always)]
    fn prefetch_used(&self, count: usize) {
        let slot = usize::from(self.next_used & self.mask);
        let first = self.parts.used.as_ptr().wrapping_add(4 + 8 * slot);
        let room = 8 * count.min(usize::from(self.size) - slot);
        for at in (0..room).step_by(CACHE_LINE_BYTES) {
            prefetch_write(first.wrapping_add(at));
        }
    }

    /// Takes up to `count` chains of one direct descriptor each in the region used last, which is what most drivers make of most
    /// frames, until one that is not such or `limit_bytes`; their bytes.
    #[inline(always)]
    fn take_lone(
        &mut self,
        arena: &mut SegmentArena,
        chains: &mut Vec<Chain>,
        count: usize,
        limit_bytes: u64,
    ) -> u64 {
        let to_write = self.lone_flags == WRITE;
        let mut bytes = 0u64;
        let mut at = self.next_avail;
        arena.push_lone(chains, count, || {
            if bytes >= limit_bytes {
                return None;
            }
            let id = self.available_entry(at);
            if id >= self.size {
                return None;
            }
            let descriptor = self.descriptor(id);
            if descriptor.flags != self.lone_flags {
                return None;
            }
            let segment = self
                .chains
                .translate_lone(descriptor.addr, descriptor.len)?;
            segment.prefetch(to_write);
            bytes += u64::from(descriptor.len);
            at = at.wrapping_add(1);
            Some((lone_head(id), segment))
        });
        self.next_avail = at;
        bytes
    }

    /// A chain of any shape, or the reason why it is none; why it stays in the ring, if there is nothing wrong with it.
    #[cold]
    #[inline(never)]
    fn take_any(
        &mut self,
        head: u16,
        arena: &mut SegmentArena,
    ) -> Result<Result<Chain, BurstEnd>, RingError> {
        let start = arena.len();
        match self.walk(head, arena) {
            Ok(len_bytes) => {
                self.next_avail = self.next_avail.wrapping_add(1);
                let segments = SegmentRange {
                    start: start as u32,
                    end: arena.len() as u32,
                };
                Ok(Ok(Chain {
                    head: lone_head(head),
                    segments,
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

    /// Gives the last `chains` taken chains back to the available ring, unused.
    pub fn undo_take(&mut self, chains: u16) {
        self.next_avail = self.next_avail.wrapping_sub(chains);
    }

    /// Hands a chain back to the driver, `written_bytes` of it filled. Not seen before [`Self::publish_used`].
    #[inline]
    pub fn push_used(&mut self, head: u16, written_bytes: u32) {
        let slot = usize::from(self.next_used & self.mask);
        let element = u64::from(head) | u64::from(written_bytes) << 32;
        // SAFETY: slot < size, and the used ring has 4 + 8 * size bytes mapped (upheld by `Parts::translate`); it is aligned
        // to 4 bytes only, hence the unaligned write.
        unsafe {
            self.parts
                .used
                .as_ptr()
                .add(4 + 8 * slot)
                .cast::<u64>()
                .write_unaligned(element)
        };
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver all used elements pushed so far; whether it wants a notification (VIRTIO 1.3 §2.7.7.2, §2.7.10), or
    /// `None` when there was nothing new.
    #[inline]
    #[must_use]
    pub fn publish_used(&mut self) -> Option<bool> {
        let (old, new) = (self.published_used, self.next_used);
        if old == new {
            return None;
        }
        if self.marks.are_on() {
            // A process that is killed behind the next store must not have kept to itself what it wrote to the buffers.
            self.marks.flush();
        }
        #[cfg(test)]
        super::kill::point();
        self.used_index().store(new, Ordering::Release);
        self.published_used = new;
        #[cfg(test)]
        super::kill::point();
        // The index must be visible before the driver's wish is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        if self.marks.are_on() {
            self.mark_used(old, new);
            self.marks.flush_fenced();
        }
        Some(if self.event_idx {
            let event = self.used_event().load(Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.available_flags().load(Ordering::Relaxed) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0
        })
    }

    /// Asks the driver to kick for the next chain; whether some wait already (VIRTIO 1.3 §2.7.10.1).
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub fn arm_notification(&mut self) -> Result<bool, RingError> {
        self.request_kicks();
        // The wish must be visible before the index is read once more, or a chain added in between is never kicked for.
        fence(Ordering::SeqCst);
        Ok(self.refresh()? > 0)
    }

    /// Asks the driver not to kick while the ring is being polled. With EVENT_IDX the old event index does that: the driver
    /// kicks again only when it crosses it.
    pub fn suppress_kicks(&mut self) {
        let flags = if self.event_idx {
            0
        } else {
            VRING_USED_F_NO_NOTIFY as u16
        };
        self.used_flags().store(flags, Ordering::Relaxed);
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
        if self.event_idx {
            self.avail_event().store(self.next_avail, Ordering::Relaxed);
        }
        self.used_flags().store(0, Ordering::Relaxed);
        self.mark_wish();
        self.armed = true;
    }

    /// Notes all that is written of the ring itself: whoever served it before may have been killed between a store and its mark.
    fn mark_whole(&mut self) {
        let used = self.parts.used.as_ptr().cast_const();
        self.marks.wrote(used, 4 + 8 * usize::from(self.size));
    }

    /// Notes the used elements from index `old` to before `new`, and the index.
    #[cold]
    fn mark_used(&mut self, old: u16, new: u16) {
        let used = self.parts.used.as_ptr().cast_const();
        let first = usize::from(old & self.mask);
        let count = usize::from(new.wrapping_sub(old));
        let before_end = count.min(usize::from(self.size) - first);
        for (slot, elements) in [(first, before_end), (0, count - before_end)] {
            self.marks
                .wrote(used.wrapping_add(4 + 8 * slot), 8 * elements);
        }
        self.marks.wrote(used, 4);
    }

    /// Tells the log that what the driver is asked for has changed: the flags, and the event index.
    #[inline]
    fn mark_wish(&mut self) {
        if !self.marks.are_on() {
            return;
        }
        let used = self.parts.used.as_ptr().cast_const();
        self.marks.wrote(used, 2);
        if self.event_idx {
            let event = used.wrapping_add(4 + 8 * usize::from(self.size));
            self.marks.wrote(event, 2);
        }
        self.marks.flush();
    }

    /// Adds the segments of the chain at `head` to the arena; the sum of its lengths.
    #[inline]
    fn walk(&mut self, head: u16, arena: &mut SegmentArena) -> Result<u64, RingError> {
        let mut len_bytes = 0u64;
        let mut index = head;
        // A chain may not visit a descriptor twice, so it ends within the table's size (VIRTIO 1.3 §2.7.5.2).
        for _ in 0..u32::from(self.size).min(MAX_CHAIN_DESCRIPTORS) {
            if index >= self.size {
                return Err(RingError::NoSuchDescriptor {
                    index,
                    size: self.size.into(),
                });
            }
            let descriptor = self.descriptor(index);
            if descriptor.flags & INDIRECT != 0 {
                return Ok(len_bytes + self.walk_table(head, descriptor.buffer(), arena)?);
            }
            len_bytes += self.chains.add_buffer(head, descriptor.buffer(), arena)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(len_bytes);
            }
            index = descriptor.next;
        }
        Err(endless(head, self.size.into()))
    }

    /// VIRTIO 1.3 §2.7.5.3: the table's descriptors are chained by `next`; §2.7.5.3.2 leaves WRITE of the table to be ignored.
    fn walk_table(
        &mut self,
        head: u16,
        table: Buffer,
        arena: &mut SegmentArena,
    ) -> Result<u64, RingError> {
        let entries = self.chains.table_entries(head, table)?;
        let mut len_bytes = 0u64;
        let mut index = 0u16;
        for _ in 0..entries.min(MAX_CHAIN_DESCRIPTORS) {
            if u32::from(index) >= entries {
                return Err(RingError::NoSuchDescriptor {
                    index,
                    size: entries,
                });
            }
            let descriptor = Descriptor::from_bytes(self.chains.table_entry(table, index)?);
            if descriptor.flags & INDIRECT != 0 {
                return Err(bad_table(head, descriptor.buffer()));
            }
            len_bytes += self.chains.add_buffer(head, descriptor.buffer(), arena)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(len_bytes);
            }
            index = descriptor.next;
        }
        Err(endless(head, entries))
    }

    #[inline]
    fn descriptor(&self, index: u16) -> Descriptor {
        // SAFETY: index < size (checked by `walk`), the table has 16 * size bytes mapped and is 16-aligned (upheld by
        // `Parts::translate`). Volatile: the driver may write it meanwhile; it is read once and then judged.
        unsafe {
            self.parts
                .descriptors
                .as_ptr()
                .cast::<Descriptor>()
                .add(usize::from(index))
                .read_volatile()
        }
    }

    /// Entry of the available ring that `index` (free-running) stands for.
    #[inline]
    fn available_entry(&self, index: u16) -> u16 {
        let slot = usize::from(index & self.mask);
        self.u16_at(self.parts.available, 4 + 2 * slot)
            .load(Ordering::Relaxed)
    }

    #[inline]
    fn available_flags(&self) -> &AtomicU16 {
        self.u16_at(self.parts.available, 0)
    }

    #[inline]
    fn available_index(&self) -> &AtomicU16 {
        self.u16_at(self.parts.available, 2)
    }

    /// After which used index the driver wants to be notified (EVENT_IDX only).
    #[inline]
    fn used_event(&self) -> &AtomicU16 {
        self.u16_at(self.parts.available, 4 + 2 * usize::from(self.size))
    }

    #[inline]
    fn used_flags(&self) -> &AtomicU16 {
        self.u16_at(self.parts.used, 0)
    }

    #[inline]
    fn used_index(&self) -> &AtomicU16 {
        self.u16_at(self.parts.used, 2)
    }

    /// After which available index we want to be kicked (EVENT_IDX only).
    #[inline]
    fn avail_event(&self) -> &AtomicU16 {
        self.u16_at(self.parts.used, 4 + 8 * usize::from(self.size))
    }

    #[inline]
    fn u16_at(&self, part: NonNull<u8>, offset: usize) -> &AtomicU16 {
        // SAFETY: the offsets above lie within the lengths that `Parts::translate` checked, at an alignment of two bytes; the
        // mapping lives as long as the memory of `self.chains`, hence as long as the reference.
        unsafe { AtomicU16::from_ptr(part.as_ptr().add(offset).cast()) }
    }
}

/// A chain is one entry of the available ring, however many descriptors it has.
#[inline(always)]
fn lone_head(id: u16) -> ChainHead {
    ChainHead { id, places: 1 }
}
