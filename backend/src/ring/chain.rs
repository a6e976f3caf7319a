//! Chains as every kind of ring has them: how many are taken at once, and the checks of one descriptor.
//!
//! [`split`](super::split) and [`packed`](super::packed) find the descriptors of a chain each its own way and bring each to a `ChainWalker`,
//! which checks it, translates its buffer and puts it into a [`SegmentArena`]. Indirect tables are read here too.
//!
//! Kept true: a descriptor is read once and judged by what was read; a chain is walked in a bounded number of steps.

use super::error::RingError;
use super::guest_memory::{GuestMemory, RegionWindow, Unavailable};
use super::iotlb::{Access, PAGE_BYTES};
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
    /// What the next chain refers to is not available yet: it stays in the ring, and whoever makes it available says so.
    Pending,
}

/// How far ahead of what it takes a ring asks for what is not available: a batch.
pub(super) const ASKED_AHEAD: u16 = 64;
/// Pieces of a chain that are asked for ahead.
pub(super) const PIECES_AHEAD: u16 = 8;
/// Pages of a piece that are: of the largest frame.
const PAGES_AHEAD: u64 = 17;

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
    /// That of the last indirect table, which is read whatever becomes of the buffers.
    table: RegionWindow,
    direction: Direction,
    /// VIRTIO_F_INDIRECT_DESC was acked.
    indirect: bool,
    /// Something was not available when it was looked for.
    waits: bool,
}

impl ChainWalker {
    pub(super) fn new(memory: &Arc<GuestMemory>, direction: Direction, features: u64) -> Self {
        Self {
            memory: Arc::clone(memory),
            window: RegionWindow::NONE,
            table: RegionWindow::NONE,
            direction,
            indirect: has_indirect(features),
            waits: false,
        }
    }

    pub(super) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    pub(super) fn replace_memory(&mut self, memory: &Arc<GuestMemory>) {
        self.memory = Arc::clone(memory);
        self.forget_windows();
    }

    /// Has every address looked up anew.
    pub(super) fn forget_windows(&mut self) {
        self.window = RegionWindow::NONE;
        self.table = RegionWindow::NONE;
    }

    /// Whether something was not available since this was asked last.
    pub(super) fn take_waits(&mut self) -> bool {
        std::mem::take(&mut self.waits)
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
            let (host, contiguous) = self.locate(addr, buffer)?;
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
        let (host, contiguous) = self.locate_table(addr, table)?;
        if contiguous < DESCRIPTOR_BYTES {
            return Err(bad_address(table));
        }
        // SAFETY: 16 bytes are mapped from `host` in a map that `self.memory` keeps alive. A table need not be aligned, so the
        // copy is bytewise.
        Ok(unsafe { host.as_ptr().cast::<[u8; 16]>().read_volatile() })
    }

    /// Asks for what a buffer or a table refers to, if that is not available.
    pub(super) fn ask_for(&mut self, buffer: Buffer) {
        if buffer.flags & INDIRECT == 0 {
            return self.ask_for_pages(buffer.addr, buffer.len);
        }
        let entries = buffer.len / DESCRIPTOR_BYTES as u32;
        for index in 0..PIECES_AHEAD.min(entries as u16) {
            let Ok(entry) = self.table_entry(buffer, index) else {
                return;
            };
            // Address and length are where they are in both kinds of ring.
            let entry = u128::from_le_bytes(entry);
            self.ask_for_pages(entry as u64, (entry >> 64) as u32);
        }
    }

    fn ask_for_pages(&self, addr: u64, len: u32) {
        let access = self.access();
        let (mut at, end) = (addr, addr.saturating_add(len.into()));
        for _ in 0..PAGES_AHEAD {
            if at >= end {
                return;
            }
            // What is wrong with it is reported when it is taken.
            let _ = self.memory.locate(at, access);
            at = (at & !(PAGE_BYTES - 1)).saturating_add(PAGE_BYTES);
        }
    }

    fn access(&self) -> Access {
        match self.direction {
            Direction::Readable => Access::Read,
            Direction::Writable => Access::Write,
        }
    }

    /// Host address of `addr`, which is in `buffer`, and how many bytes follow it in the same region.
    #[inline]
    fn locate(&mut self, addr: u64, buffer: Buffer) -> Result<(NonNull<u8>, u64), RingError> {
        if let Some(found) = self.window.at(addr) {
            return Ok(found);
        }
        self.window = self.look_up(addr, self.access(), buffer)?;
        self.window.at(addr).ok_or(bad_address(buffer))
    }

    /// The same for an address in a table.
    #[inline]
    fn locate_table(&mut self, addr: u64, table: Buffer) -> Result<(NonNull<u8>, u64), RingError> {
        if let Some(found) = self.table.at(addr) {
            return Ok(found);
        }
        self.table = self.look_up(addr, Access::Read, table)?;
        self.table.at(addr).ok_or(bad_address(table))
    }

    fn look_up(
        &mut self,
        addr: u64,
        access: Access,
        buffer: Buffer,
    ) -> Result<RegionWindow, RingError> {
        self.memory.locate(addr, access).map_err(|why| match why {
            Unavailable::Pending => {
                self.waits = true;
                RingError::Pending { addr }
            }
            Unavailable::Refused(access) => RingError::Refused { addr, access },
            Unavailable::Outside => bad_address(buffer),
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
