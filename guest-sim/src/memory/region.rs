//! One region: its mapping, the blocks cut from it, and the pages that were written.
//!
//! Made by [`GuestMemory`](super::GuestMemory); blocks are used on any thread. Keeps true: its mapping is reached through slices, arrays and
//! words that mark the pages they write, and through nothing else.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::VhostUserMemoryRegionInfo;
use vm_memory::bitmap::Bitmap;
use vm_memory::volatile_memory::Error as VolatileError;
use vm_memory::{
    AtomicInteger, ByteValued, MmapRegion, VolatileArrayRef, VolatileMemory, VolatileSlice,
};

use super::dirty::{DirtyPages, DirtySlice, Word};
use super::layout::RegionLayout;
use super::{GuestMemory, MemoryError, PAGE_BYTES, USER_TOP};

/// Some bytes of a region.
pub(crate) type Slice<'a> = VolatileSlice<'a, DirtySlice<'a>>;
/// Some values in a region.
pub(crate) type Array<'a, T> = VolatileArrayRef<'a, T, DirtySlice<'a>>;

/// One mapped region.
#[derive(Debug)]
pub struct Region {
    layout: RegionLayout,
    memfd: Arc<File>,
    map: MmapRegion<DirtyPages>,
    allocator: Mutex<Allocator>,
}

/// Which bytes of a region are given out.
#[derive(Clone, Debug)]
struct Allocator {
    next: usize,
    /// Blocks given back, to be given out again when the size and alignment fit exactly.
    free: Vec<(usize, usize)>,
}

impl Region {
    /// Page 0 stays unused.
    pub(super) fn new(layout: RegionLayout, memfd: Arc<File>, map: MmapRegion<DirtyPages>) -> Self {
        let allocator = Mutex::new(Allocator {
            next: PAGE_BYTES as usize,
            free: Vec::new(),
        });
        Self {
            layout,
            memfd,
            map,
            allocator,
        }
    }

    /// Where it is and what backs it.
    pub fn layout(&self) -> RegionLayout {
        self.layout
    }

    /// The address that messages give for its first byte: the VMM's, not the guest's.
    pub fn user_base(&self) -> u64 {
        USER_TOP - self.layout.guest_base - self.layout.size_bytes
    }

    /// How a message describes it.
    pub fn message_region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.layout.guest_base,
            memory_size: self.layout.size_bytes,
            userspace_addr: self.user_base(),
            mmap_offset: self.layout.mmap_offset_bytes,
            mmap_handle: self.memfd.as_raw_fd(),
        }
    }

    /// The memfd behind it.
    pub fn memfd(&self) -> &Arc<File> {
        &self.memfd
    }

    /// Some of its bytes.
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Result<Slice<'_>, VolatileError> {
        self.map.get_slice(offset, len)
    }

    /// `count` values, one behind the other.
    pub(crate) fn array<T: ByteValued>(
        &self,
        offset: usize,
        count: usize,
    ) -> Result<Array<'_, T>, VolatileError> {
        self.map.get_array_ref(offset, count)
    }

    /// A word that both sides use.
    pub(crate) fn word<A: AtomicInteger>(
        &self,
        offset: usize,
    ) -> Result<Word<'_, A>, VolatileError> {
        let atomic = self.map.get_atomic_ref(offset)?;
        Ok(Word::new(atomic, self.map.bitmap().slice_at(offset)))
    }

    /// Starts or stops marking the pages that this process writes; what was marked is forgotten.
    pub(crate) fn track_writes(&self, on: bool) {
        self.dirty().track(on);
    }

    /// The pages this process wrote.
    pub(super) fn dirty(&self) -> &DirtyPages {
        self.map.bitmap()
    }

    /// The place of `len` free bytes, if there are as many in one piece.
    pub(super) fn allocate(&self, len: usize, align: usize) -> Option<usize> {
        let mut allocator = self.allocator();
        let fits = |&(offset, size): &(usize, usize)| size == len && offset % align == 0;
        if let Some(at) = allocator.free.iter().position(fits) {
            return Some(allocator.free.swap_remove(at).0);
        }
        let offset = allocator.next.next_multiple_of(align);
        allocator.next = offset
            .checked_add(len)
            .filter(|&end| end <= self.map.size())?;
        Some(offset)
    }

    /// From now on the same bytes are given out here as there.
    pub(super) fn adopt_allocations(&self, other: &Self) {
        let allocations = other.allocator().clone();
        *self.allocator() = allocations;
    }

    fn allocator(&self) -> MutexGuard<'_, Allocator> {
        self.allocator
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece of one region, given back when dropped.
#[derive(Debug)]
pub struct Block {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

impl Block {
    pub(super) fn new(region: Arc<Region>, offset: usize, len: usize) -> Self {
        Self {
            region,
            offset,
            len,
        }
    }

    /// The block at the same guest address of a memory that took the place of this one's.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`] when that memory has no such region.
    pub(crate) fn in_memory(&self, memory: &GuestMemory) -> Result<Self, MemoryError> {
        let same = |region: &Arc<Region>| region.layout == self.region.layout;
        let region = memory.regions().into_iter().find(same);
        let region = region.ok_or(MemoryError::Unmapped {
            address: self.guest_address(),
            len: self.len,
        })?;
        Ok(Self::new(region, self.offset, self.len))
    }

    /// Guest-physical address of its first byte.
    pub fn guest_address(&self) -> u64 {
        self.region.layout.guest_base + self.offset as u64
    }

    /// User (VMM) address of its first byte, as ring addresses are given in messages.
    pub fn user_address(&self) -> u64 {
        self.region.user_base() + self.offset as u64
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The region it is part of.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// `len` bytes at `offset` of the block.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`] when that is not inside the block.
    pub fn slice(&self, offset: usize, len: usize) -> Result<Slice<'_>, MemoryError> {
        let unmapped = MemoryError::Unmapped {
            address: self.guest_address().wrapping_add(offset as u64),
            len,
        };
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {}
            _ => return Err(unmapped),
        }
        self.region
            .slice(self.offset + offset, len)
            .map_err(|_| unmapped)
    }

    /// Sets every byte of the block.
    pub fn fill(&self, value: u8) {
        if let Ok(slice) = self.slice(0, self.len) {
            fill(&slice, value);
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.region.allocator().free.push((self.offset, self.len));
    }
}

/// Sets every byte of a slice of guest memory.
pub(crate) fn fill(slice: &Slice<'_>, value: u8) {
    let page = [value; 4096];
    let mut rest = *slice;
    while !rest.is_empty() {
        let step = rest.len().min(page.len());
        rest.copy_from(&page[..step]);
        match rest.offset(step) {
            Ok(next) => rest = next,
            Err(_) => return,
        }
    }
}
