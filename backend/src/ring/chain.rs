//! Chains as every kind of ring has them: how many are taken at once, and the checks of one descriptor.
//!
//! [`split`](super::split) and [`packed`](super::packed) find the descriptors of a chain each its own way and bring each to a `ChainWalker`,
//! which checks it, translates its buffer and puts it into a [`SegmentArena`]. Indirect tables are read here too.
//!
//! Kept true: a descriptor is read once and judged by what was read; a chain is walked in a bounded number of steps.

use super::error::RingError;
use super::guest_memory::{GuestMemory, RegionWindow};
use super::parts::DESCRIPTOR_BYTES;
use super::segment::{Segment, SegmentArena, SegmentRange};
use std::ptr::NonNull;
use std::sync::Arc;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_INDIRECT_DESC, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

/// Another descriptor of the chain follows.
pub(super) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// The buffer is for the device to write.
pub(super) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// The buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Descriptors in one chain, direct or indirect: what QEMU's own devices accept (VIRTQUEUE_MAX_SIZE), so every driver stays
/// below it, whatever its ring's size. Without such a bound a guest with a large ring could make a worker walk 32,768
/// descriptors for one frame.
pub const MAX_CHAIN_DESCRIPTORS: u32 = 1_024;

/// Which kind of chains a ring carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// guest-tx: device-readable descriptors only.
    Readable,
    /// guest-rx: device-writable descriptors only.
    Writable,
}

/// What a taken chain is given back by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainHead {
    /// The driver's name for it: the index of its first descriptor, in a packed ring its buffer id.
    pub id: u16,
    /// How many places of the ring it was taken from: one entry of the available ring, or all its descriptors in a packed ring.
    pub places: u16,
}

/// A chain taken from a ring.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    /// To give it back by.
    pub head: ChainHead,
    /// Its segments in the arena.
    pub segments: SegmentRange,
    /// Sum of its descriptors' lengths.
    pub len_bytes: u64,
}

/// How much to take at once.
#[derive(Clone, Copy, Debug)]
pub struct BurstLimit {
    /// Chains.
    pub chains: usize,
    /// The burst ends with the chain that reaches this many bytes.
    pub bytes: u64,
}

/// Why a burst of chains ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BurstEnd {
    /// It reached its limit.
    Limit,
    /// The driver offered no more when the ring was looked at.
    Empty,
    /// The arena is full: the next chain stays in the ring.
    ArenaFull,
}

/// What both kinds of ring say of a buffer or a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    /// Guest-physical address.
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
}

/// Checks and translates the buffers of one ring.
#[derive(Debug)]
pub(super) struct ChainWalker {
    memory: Arc<GuestMemory>,
    /// The region that the last buffer was in: the next one nearly always is, too.
    window: RegionWindow,
    direction: Direction,
    /// VIRTIO_F_INDIRECT_DESC was acked.
    indirect: bool,
}

impl ChainWalker {
    pub(super) fn new(memory: &Arc<GuestMemory>, direction: Direction, features: u64) -> Self {
        Self {
            memory: Arc::clone(memory),
            window: RegionWindow::NONE,
            direction,
            indirect: has_indirect(features),
        }
    }

    pub(super) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    pub(super) fn replace_memory(&mut self, memory: &Arc<GuestMemory>) {
        self.memory = Arc::clone(memory);
        self.window = RegionWindow::NONE;
    }

    pub(super) fn set_features(&mut self, features: u64) {
        self.indirect = has_indirect(features);
    }

    /// The buffer as one segment, when it has bytes and lies in the region used last; otherwise it needs a closer look. Its
    /// flags are the caller's to judge.
    #[inline(always)]
    pub(super) fn translate_lone(&self, addr: u64, len: u32) -> Option<Segment> {
        let (host, left) = self.window.at(addr)?;
        (len != 0 && u64::from(len) <= left).then(|| Segment::new(host, len))
    }

    /// Adds one descriptor's buffer to the arena, in as many pieces as regions it lies in; its length.
    #[inline]
    pub(super) fn add_buffer(
        &mut self,
        head: u16,
        buffer: Buffer,
        arena: &mut SegmentArena,
    ) -> Result<u64, RingError> {
        let Buffer {
            mut addr,
            len,
            flags,
        } = buffer;
        let writable = flags & WRITE != 0;
        if writable != (self.direction == Direction::Writable) {
            return Err(RingError::WrongDirection { head, flags });
        }
        // An empty descriptor costs a place as well, or chains of them would be walked without bound.
        if len == 0 && !arena.push(Segment::new(NonNull::dangling(), 0)) {
            return Err(RingError::TooLong { head });
        }
        let mut left = len;
        while left > 0 {
            let (host, contiguous) = self.locate(addr).ok_or(bad_address(buffer))?;
            let now = u64::from(left).min(contiguous) as u32;
            if !arena.push(Segment::new(host, now)) {
                return Err(RingError::TooLong { head });
            }
            left -= now;
            addr = addr.wrapping_add(u64::from(now));
        }
        Ok(len.into())
    }

    /// How many descriptors an indirect table has (VIRTIO 1.3 §2.7.5.3, §2.8.7): only if negotiated, never together with NEXT,
    /// and not empty.
    pub(super) fn table_entries(&self, head: u16, table: Buffer) -> Result<u32, RingError> {
        let entries = table.len / DESCRIPTOR_BYTES as u32;
        if !self.indirect
            || table.flags & NEXT != 0
            || entries == 0
            || !table.len.is_multiple_of(DESCRIPTOR_BYTES as u32)
        {
            return Err(bad_table(head, table));
        }
        Ok(entries)
    }

    /// One descriptor of an indirect table, read once.
    pub(super) fn table_entry(&mut self, table: Buffer, index: u16) -> Result<[u8; 16], RingError> {
        let addr = table
            .addr
            .checked_add(DESCRIPTOR_BYTES * u64::from(index))
            .ok_or(bad_address(table))?;
        let (host, contiguous) = self.locate(addr).ok_or(bad_address(table))?;
        if contiguous < DESCRIPTOR_BYTES {
            return Err(bad_address(table));
        }
        // SAFETY: 16 bytes are mapped from `host` in a map that `self.memory` keeps alive. A table need not be aligned, so the
        // copy is bytewise.
        Ok(unsafe { host.as_ptr().cast::<[u8; 16]>().read_volatile() })
    }

    /// Host address of `addr`, and how many bytes follow it in the same region.
    #[inline]
    fn locate(&mut self, addr: u64) -> Option<(NonNull<u8>, u64)> {
        self.window.at(addr).or_else(|| {
            self.window = self.memory.window(addr)?;
            self.window.at(addr)
        })
    }
}

fn has_indirect(features: u64) -> bool {
    features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0
}

/// An indirect descriptor that breaks the rules.
pub(super) fn bad_table(head: u16, table: Buffer) -> RingError {
    RingError::BadIndirect {
        head,
        len_bytes: table.len,
        flags: table.flags,
    }
}

fn bad_address(buffer: Buffer) -> RingError {
    RingError::BadAddress {
        addr: buffer.addr,
        len_bytes: buffer.len,
    }
}

/// What is wrong with a chain that went on after as many descriptors as were looked at.
pub(super) fn endless(head: u16, table_size: u32) -> RingError {
    if table_size > MAX_CHAIN_DESCRIPTORS {
        RingError::TooLong { head }
    } else {
        RingError::Loop { head }
    }
}
