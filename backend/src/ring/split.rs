//! A split virtqueue, device side (VIRTIO 1.3 §2.7).
//!
//! The control thread builds a [`SplitRing`] when a front-end starts a ring; from then on whoever holds it (a worker,
//! behind the lock of its queue) takes heads out, gives used elements back in the same order, and decides about
//! notifications in both directions. Ring addresses are translated once, at start or when memory changes; descriptors are
//! checked on every use. What a driver did wrong is a [`RingError`]: the ring is then stopped, nothing else is.
//!
//! Kept true: used elements are published strictly in the order of their heads in the available ring, and everything
//! taken is given back before the ring changes hands. So `used.idx` alone says where to go on after a crash.

use super::doorbell::{EventSink, EventSource};
use super::error::RingError;
use super::guest_memory::{GuestMemory, RegionWindow};
use super::parts::{DESCRIPTOR_BYTES, Parts, RingAddresses};
use super::segment::{Segment, SegmentArena, SegmentRange};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};

// Ring fields are little-endian, or the guest's own order for legacy drivers: the same on the hosts we run on.
const _: () = assert!(
    cfg!(target_endian = "little"),
    "ring fields are read as they are"
);

/// Largest ring (VIRTIO 1.3 §2.7: "The maximum Queue Size value is 32768").
pub const MAX_RING_SIZE: u16 = 32_768;
/// Descriptors in one chain, direct or indirect: what QEMU's own devices accept (VIRTQUEUE_MAX_SIZE), so every driver stays
/// below it, whatever its ring's size. Without such a bound a guest with a large ring could make a worker walk 32,768
/// descriptors for one frame.
pub const MAX_CHAIN_DESCRIPTORS: u32 = 1_024;

/// All that is needed to start a ring.
#[derive(Debug)]
pub struct RingConfig {
    /// Entries; a power of two, 1 to 32,768.
    pub size: u16,
    /// Where its parts are.
    pub addresses: RingAddresses,
    /// Next available index by SET_VRING_BASE. The used index in memory wins when it disagrees.
    pub base: u16,
    /// Acked virtio features.
    pub features: u64,
    /// What the driver kicks; `None` when the front-end asked for polling.
    pub kick: Option<Arc<EventSource>>,
    /// What tells the driver about used buffers; `None` when it polls.
    pub call: Option<Arc<EventSink>>,
    /// Signalled when the ring is stopped by a [`RingError`].
    pub error: Option<Arc<EventSink>>,
}

/// Which kind of chains a ring carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// guest-tx: device-readable descriptors only.
    Readable,
    /// guest-rx: device-writable descriptors only.
    Writable,
}

/// A chain taken from the available ring.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    /// Index of its first descriptor: its name in the used ring.
    pub head: u16,
    /// Its segments in the arena.
    pub segments: SegmentRange,
    /// Sum of its descriptors' lengths.
    pub len_bytes: u64,
}

/// What taking a chain came to.
#[derive(Clone, Copy, Debug)]
pub enum Taken {
    /// Here it is.
    Chain(Chain),
    /// The driver offers no more for now.
    Empty,
    /// The arena is full: go on with what it holds; the chain stays in the ring.
    ArenaFull,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A started split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    memory: Arc<GuestMemory>,
    parts: Parts,
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
    indirect: bool,
    /// Kicks were asked for, and not asked off since.
    armed: bool,
    /// The region that the last buffer was in: the next one nearly always is, too.
    window: RegionWindow,
    /// Flags of a descriptor that is a whole chain by itself.
    lone_flags: u16,
    direction: Direction,
    addresses: RingAddresses,
    kick: Option<Arc<EventSource>>,
    call: Option<Arc<EventSink>>,
    error: Option<Arc<EventSink>>,
}

// SAFETY: the part pointers refer to shared mappings kept alive by `memory`; the ring itself is used by one thread at a time
// (it is moved, or behind the lock of its queue), and accesses through the pointers are volatile or atomic.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Translates and checks the ring's parts, and takes up where its used index says.
    ///
    /// # Errors
    /// A size that is no power of two, or a part that is misaligned or not inside one region.
    pub fn start(
        config: RingConfig,
        direction: Direction,
        memory: &Arc<GuestMemory>,
    ) -> Result<Self, RingError> {
        let RingConfig {
            size,
            addresses,
            base,
            features,
            kick,
            call,
            error,
        } = config;
        if !size.is_power_of_two() || size > MAX_RING_SIZE {
            return Err(RingError::BadSize(size));
        }
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let parts = Parts::translate(&addresses, size, event_idx, memory)?;
        let mut ring = Self {
            memory: Arc::clone(memory),
            parts,
            mask: size - 1,
            size,
            next_avail: base,
            avail_seen: base,
            next_used: 0,
            published_used: 0,
            event_idx,
            indirect: features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0,
            armed: false,
            window: RegionWindow::NONE,
            lone_flags: match direction {
                Direction::Readable => 0,
                Direction::Writable => VRING_DESC_F_WRITE as u16,
            },
            direction,
            addresses,
            kick,
            call,
            error,
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
        ring.suppress_kicks();
        Ok(ring)
    }

    /// Moves a running ring to another memory map. On error nothing has changed, and the ring must be stopped.
    pub fn replace_memory(&mut self, memory: &Arc<GuestMemory>) -> Result<(), RingError> {
        self.parts = Parts::translate(&self.addresses, self.size, self.event_idx, memory)?;
        self.memory = Arc::clone(memory);
        self.window = RegionWindow::NONE;
        Ok(())
    }

    /// Applies acked features to a running ring; indices stay.
    pub fn set_features(&mut self, features: u64) -> Result<(), RingError> {
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.parts = Parts::translate(&self.addresses, self.size, event_idx, &self.memory)?;
        self.event_idx = event_idx;
        self.indirect = features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0;
        Ok(())
    }

    /// Lets go of the ring: asks for kicks, so that whoever serves it next hears of what comes, and tells where to go on.
    pub fn stop(mut self) -> u16 {
        debug_assert_eq!(
            self.next_used, self.published_used,
            "a chain was taken and not given back"
        );
        self.request_kicks();
        self.next_avail
    }

    /// The memory map its addresses are in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The next index to take from the available ring.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// What the driver kicks.
    pub fn kick(&self) -> Option<&Arc<EventSource>> {
        self.kick.as_ref()
    }

    /// Another kick eventfd.
    pub fn set_kick(&mut self, kick: Option<Arc<EventSource>>) {
        self.kick = kick;
    }

    /// Another call eventfd, signalled once: a notification may have gone to the old one unheard.
    pub fn set_call(&mut self, call: Option<Arc<EventSink>>) {
        self.call = call;
        self.signal_call();
    }

    /// Another error eventfd.
    pub fn set_error(&mut self, error: Option<Arc<EventSink>>) {
        self.error = error;
    }

    /// Tells the front-end that the ring is broken (vhost-user: VHOST_USER_SET_VRING_ERR).
    pub fn signal_error(&self) {
        if let Some(error) = &self.error {
            error.signal();
        }
    }

    /// Notifies the driver without asking whether it wants to be; `false` when it gave no eventfd for that.
    pub fn signal_call(&self) -> bool {
        let Some(call) = &self.call else { return false };
        call.signal();
        true
    }

    /// Reads the driver's available index; the number of chains that wait.
    ///
    /// # Errors
    /// [`RingError::AvailJump`] when it is further ahead than the ring is long.
    #[inline]
    pub fn refresh(&mut self) -> Result<u16, RingError> {
        self.avail_seen = self.available_index().load(Ordering::Acquire);
        let waiting = self.avail_seen.wrapping_sub(self.next_avail);
        if waiting > self.size {
            return Err(RingError::AvailJump {
                avail: self.avail_seen,
                next: self.next_avail,
                size: self.size,
            });
        }
        Ok(waiting)
    }

    /// Takes the next chain and adds its segments to `arena`. Looks at the available index again only when what was seen
    /// last is used up.
    ///
    /// # Errors
    /// Whatever is wrong with the chain; it is then still in the ring, and the ring must be stopped.
    #[inline(always)]
    pub fn take(&mut self, arena: &mut SegmentArena) -> Result<Taken, RingError> {
        if self.next_avail == self.avail_seen && self.refresh()? == 0 {
            return Ok(Taken::Empty);
        }
        arena.hold(&self.memory);
        let start = arena.len() as u32;
        let head = self.available_entry(self.next_avail);
        if let Some(len_bytes) = self.walk_lone(head, arena) {
            self.next_avail = self.next_avail.wrapping_add(1);
            let segments = SegmentRange {
                start,
                end: start + 1,
            };
            return Ok(Taken::Chain(Chain {
                head,
                segments,
                len_bytes: len_bytes.into(),
            }));
        }
        self.take_any(head, arena)
    }

    /// A chain that is one direct descriptor in the region used last: what most drivers make of most frames.
    #[inline(always)]
    fn walk_lone(&self, head: u16, arena: &mut SegmentArena) -> Option<u32> {
        if head >= self.size {
            return None;
        }
        let descriptor = self.descriptor(head);
        if descriptor.flags != self.lone_flags || descriptor.len == 0 {
            return None;
        }
        let (host, left) = self.window.at(descriptor.addr)?;
        if u64::from(descriptor.len) > left {
            return None;
        }
        arena
            .push(Segment::new(host, descriptor.len))
            .then_some(descriptor.len)
    }

    /// A chain of any shape, or the reason why it is none.
    #[cold]
    #[inline(never)]
    fn take_any(&mut self, head: u16, arena: &mut SegmentArena) -> Result<Taken, RingError> {
        let start = arena.len();
        match self.walk(head, arena) {
            Ok(len_bytes) => {
                self.next_avail = self.next_avail.wrapping_add(1);
                let segments = SegmentRange {
                    start: start as u32,
                    end: arena.len() as u32,
                };
                Ok(Taken::Chain(Chain {
                    head,
                    segments,
                    len_bytes,
                }))
            }
            Err(error) => {
                arena.truncate(start);
                match error {
                    RingError::TooLong { .. } if start > 0 => Ok(Taken::ArenaFull),
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
        self.used_index().store(new, Ordering::Release);
        self.published_used = new;
        // The index must be visible before the driver's wish is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
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
        self.armed = true;
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
            if descriptor.flags & VRING_DESC_F_INDIRECT as u16 != 0 {
                return Ok(len_bytes + self.walk_indirect(head, descriptor, arena)?);
            }
            len_bytes += self.add_buffer(head, descriptor, arena)?;
            if descriptor.flags & VRING_DESC_F_NEXT as u16 == 0 {
                return Ok(len_bytes);
            }
            index = descriptor.next;
        }
        Err(endless(head, self.size.into()))
    }

    fn walk_indirect(
        &mut self,
        head: u16,
        table: Descriptor,
        arena: &mut SegmentArena,
    ) -> Result<u64, RingError> {
        let malformed = |d: Descriptor| RingError::BadIndirect {
            head,
            len_bytes: d.len,
            flags: d.flags,
        };
        let count = table.len / DESCRIPTOR_BYTES as u32;
        // VIRTIO 1.3 §2.7.5.3.1: only if negotiated, never together with NEXT; §2.7.5.3.2 leaves WRITE to be ignored.
        if !self.indirect
            || table.flags & VRING_DESC_F_NEXT as u16 != 0
            || count == 0
            || !table.len.is_multiple_of(DESCRIPTOR_BYTES as u32)
        {
            return Err(malformed(table));
        }
        let mut len_bytes = 0u64;
        let mut index = 0u16;
        for _ in 0..count.min(MAX_CHAIN_DESCRIPTORS) {
            if u32::from(index) >= count {
                return Err(RingError::NoSuchDescriptor { index, size: count });
            }
            let descriptor = self.descriptor_in_guest(&table, index)?;
            if descriptor.flags & VRING_DESC_F_INDIRECT as u16 != 0 {
                return Err(malformed(descriptor));
            }
            len_bytes += self.add_buffer(head, descriptor, arena)?;
            if descriptor.flags & VRING_DESC_F_NEXT as u16 == 0 {
                return Ok(len_bytes);
            }
            index = descriptor.next;
        }
        Err(endless(head, count))
    }

    /// Adds one descriptor's buffer to the arena, in as many pieces as regions it lies in; its length.
    #[inline]
    fn add_buffer(
        &mut self,
        head: u16,
        descriptor: Descriptor,
        arena: &mut SegmentArena,
    ) -> Result<u64, RingError> {
        let Descriptor {
            mut addr,
            len,
            flags,
            ..
        } = descriptor;
        let writable = flags & VRING_DESC_F_WRITE as u16 != 0;
        if writable != (self.direction == Direction::Writable) {
            return Err(RingError::WrongDirection { head, flags });
        }
        let bad_address = RingError::BadAddress {
            addr: descriptor.addr,
            len_bytes: len,
        };
        // An empty descriptor costs a place as well, or chains of them would be walked without bound.
        if len == 0 && !arena.push(Segment::new(NonNull::dangling(), 0)) {
            return Err(RingError::TooLong { head });
        }
        let mut left = len;
        while left > 0 {
            let (host, contiguous) = self.locate(addr).ok_or(bad_address)?;
            let now = u64::from(left).min(contiguous) as u32;
            if !arena.push(Segment::new(host, now)) {
                return Err(RingError::TooLong { head });
            }
            left -= now;
            addr = addr.wrapping_add(u64::from(now));
        }
        Ok(len.into())
    }

    /// Host address of `addr`, and how many bytes follow it in the same region.
    #[inline]
    fn locate(&mut self, addr: u64) -> Option<(NonNull<u8>, u64)> {
        self.window.at(addr).or_else(|| {
            self.window = self.memory.window(addr)?;
            self.window.at(addr)
        })
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

    fn descriptor_in_guest(
        &mut self,
        table: &Descriptor,
        index: u16,
    ) -> Result<Descriptor, RingError> {
        let bad_address = RingError::BadAddress {
            addr: table.addr,
            len_bytes: table.len,
        };
        let addr = table
            .addr
            .checked_add(DESCRIPTOR_BYTES * u64::from(index))
            .ok_or(bad_address)?;
        let (host, contiguous) = self.locate(addr).ok_or(bad_address)?;
        if contiguous < DESCRIPTOR_BYTES {
            return Err(bad_address);
        }
        // SAFETY: 16 bytes are mapped from `host`. A table need not be aligned, so the copy is bytewise; it is read once.
        let bytes = unsafe { host.as_ptr().cast::<[u8; 16]>().read_volatile() };
        // SAFETY: every bit pattern is a Descriptor, and both have 16 bytes.
        Ok(unsafe { std::mem::transmute::<[u8; 16], Descriptor>(bytes) })
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
        // mapping lives as long as `self.memory`, hence as long as the reference.
        unsafe { AtomicU16::from_ptr(part.as_ptr().add(offset).cast()) }
    }
}

/// What is wrong with a chain that went on after as many descriptors as were looked at.
fn endless(head: u16, table_size: u32) -> RingError {
    if table_size > MAX_CHAIN_DESCRIPTORS {
        RingError::TooLong { head }
    } else {
        RingError::Loop { head }
    }
}
