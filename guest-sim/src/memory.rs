//! Guest memory: memfds, regions, and the buffers cut from them.
//!
//! Called by the VMM half (which describes the regions to the back-end) and by the driver half (which puts rings and frames into them), on
//! whatever thread the test runs. Keeps true: user addresses never equal guest-physical ones, so that a back-end which confuses the two is
//! found out; allocation is deterministic; page 0 of every region stays unused, so that no ring or buffer ever has address 0.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::MemfdFlags;
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Size and alignment of everything that is mapped.
pub const PAGE_BYTES: u64 = 4096;

/// User addresses count down from here while guest addresses count up: no order of regions is the same in both.
const USER_TOP: u64 = 0x7f00_0000_0000;

/// Why guest memory could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A system call failed.
    #[error("guest memory: {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A region could not be mapped.
    #[error("guest memory: mapping region {region}: {source}")]
    Map {
        /// Which region.
        region: usize,
        /// Why it failed.
        source: MmapRegionError,
    },
    /// The layout is not page-aligned, overlaps itself, or is too high.
    #[error(
        "guest memory: region at {guest_base:#x} of {size_bytes:#x} bytes is not a page-aligned, free range below 2^46"
    )]
    Layout {
        /// Start of the region.
        guest_base: u64,
        /// Its size.
        size_bytes: u64,
    },
    /// There is no such region.
    #[error("guest memory has no region {0}")]
    NoRegion(usize),
    /// No room.
    #[error("guest memory: no {bytes} bytes left in region {region}: give the layout more")]
    Full {
        /// Which region.
        region: usize,
        /// Bytes asked for.
        bytes: usize,
    },
    /// An address outside every region.
    #[error("guest memory: {len} bytes at {address:#x} are in no region")]
    Unmapped {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        len: usize,
    },
}

/// One region of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// First guest-physical address, page-aligned.
    pub guest_base: u64,
    /// Size in bytes, a multiple of a page.
    pub size_bytes: u64,
    /// Which memfd backs it; regions with the same number share one.
    pub memfd: usize,
    /// Where in the memfd it starts, page-aligned.
    pub mmap_offset_bytes: u64,
}

/// The shape of a VM's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestMemoryLayout {
    /// The regions, in the order in which messages name them.
    pub regions: Vec<RegionLayout>,
}

impl GuestMemoryLayout {
    /// One region at guest address 0, as a small VM has.
    pub fn one_region(size_bytes: u64) -> Self {
        let region = RegionLayout {
            guest_base: 0,
            size_bytes,
            memfd: 0,
            mmap_offset_bytes: 0,
        };
        Self {
            regions: vec![region],
        }
    }

    /// Two regions of one memfd, below and above the PCI hole at 4 GiB, as a PC has: the second has an mmap offset.
    pub fn around_pci_hole(low_bytes: u64, high_bytes: u64) -> Self {
        let low = RegionLayout {
            guest_base: 0,
            size_bytes: low_bytes,
            memfd: 0,
            mmap_offset_bytes: 0,
        };
        let high = RegionLayout {
            guest_base: 1 << 32,
            size_bytes: high_bytes,
            memfd: 0,
            mmap_offset_bytes: low_bytes,
        };
        Self {
            regions: vec![low, high],
        }
    }

    /// One memfd for each size, 1 GiB apart (or as far as the sizes need): hot-plugged memory.
    pub fn separate_memfds(sizes_bytes: &[u64]) -> Self {
        let mut guest_base = 0;
        let mut regions = Vec::new();
        for (memfd, &size_bytes) in sizes_bytes.iter().enumerate() {
            regions.push(RegionLayout {
                guest_base,
                size_bytes,
                memfd,
                mmap_offset_bytes: 0,
            });
            guest_base += size_bytes.next_multiple_of(1 << 30) + (1 << 30);
        }
        Self { regions }
    }

    /// One memfd for each size, guest addresses adjacent: a buffer may cross from one region into the next.
    pub fn adjacent(sizes_bytes: &[u64]) -> Self {
        let mut guest_base = 0;
        let mut regions = Vec::new();
        for (memfd, &size_bytes) in sizes_bytes.iter().enumerate() {
            regions.push(RegionLayout {
                guest_base,
                size_bytes,
                memfd,
                mmap_offset_bytes: 0,
            });
            guest_base += size_bytes;
        }
        Self { regions }
    }
}

/// One mapped region.
#[derive(Debug)]
pub struct Region {
    layout: RegionLayout,
    memfd: Arc<File>,
    map: MmapRegion,
    allocator: Mutex<Allocator>,
}

#[derive(Debug)]
struct Allocator {
    next: usize,
    /// Blocks given back, to be given out again when the size and alignment fit exactly.
    free: Vec<(usize, usize)>,
}

impl Region {
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

    pub(crate) fn map(&self) -> &MmapRegion {
        &self.map
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
    pub fn slice(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, MemoryError> {
        let unmapped = MemoryError::Unmapped {
            address: self.guest_address().wrapping_add(offset as u64),
            len,
        };
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {}
            _ => return Err(unmapped),
        }
        self.region
            .map
            .get_slice(self.offset + offset, len)
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
pub(crate) fn fill(slice: &VolatileSlice<'_>, value: u8) {
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

/// A VM's memory. Cloning gives another handle to the same memory.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    memfds: Mutex<Vec<Option<Arc<File>>>>,
    regions: RwLock<Vec<Option<Arc<Region>>>>,
}

impl GuestMemory {
    /// Creates the memfds, sizes them and maps every region.
    ///
    /// # Errors
    /// When the layout overlaps itself or the system refuses.
    pub fn new(layout: &GuestMemoryLayout) -> Result<Self, MemoryError> {
        let shared = Shared {
            memfds: Mutex::new(Vec::new()),
            regions: RwLock::new(Vec::new()),
        };
        let memory = Self {
            shared: Arc::new(shared),
        };
        for region in &layout.regions {
            memory.add_region(*region)?;
        }
        Ok(memory)
    }

    /// Adds a region, growing or creating its memfd; the answer is its index. It tells no back-end: see `Nic::add_region`.
    ///
    /// # Errors
    /// When it overlaps another or the system refuses.
    pub fn add_region(&self, layout: RegionLayout) -> Result<usize, MemoryError> {
        let mut regions = self
            .shared
            .regions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let index = regions.len();
        let others = regions.iter().flatten().map(|region| region.layout);
        check_layout(layout, others)?;
        let memfd = self.memfd(layout)?;
        let file = FileOffset::from_arc(memfd.clone(), layout.mmap_offset_bytes);
        let map = MmapRegion::from_file(file, layout.size_bytes as usize).map_err(|source| {
            MemoryError::Map {
                region: index,
                source,
            }
        })?;
        let allocator = Mutex::new(Allocator {
            next: PAGE_BYTES as usize,
            free: Vec::new(),
        });
        regions.push(Some(Arc::new(Region {
            layout,
            memfd,
            map,
            allocator,
        })));
        Ok(index)
    }

    /// Forgets a region: it is in no later memory table, and nothing more is allocated from it. Blocks that exist keep it mapped here.
    ///
    /// # Errors
    /// When there is no such region.
    pub fn remove_region(&self, index: usize) -> Result<Arc<Region>, MemoryError> {
        let mut regions = self
            .shared
            .regions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        regions
            .get_mut(index)
            .and_then(Option::take)
            .ok_or(MemoryError::NoRegion(index))
    }

    /// One region.
    ///
    /// # Errors
    /// When there is no such region.
    pub fn region(&self, index: usize) -> Result<Arc<Region>, MemoryError> {
        let regions = self
            .shared
            .regions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        regions
            .get(index)
            .cloned()
            .flatten()
            .ok_or(MemoryError::NoRegion(index))
    }

    /// Every region there is, in order of index.
    pub fn regions(&self) -> Vec<Arc<Region>> {
        let regions = self
            .shared
            .regions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        regions.iter().flatten().cloned().collect()
    }

    /// Index and region of every region there is.
    pub(crate) fn indices(&self) -> Vec<usize> {
        let regions = self
            .shared
            .regions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        (0..regions.len())
            .filter(|&index| regions[index].is_some())
            .collect()
    }

    /// `len` zeroed bytes of one region; `align` is a power of two.
    ///
    /// # Errors
    /// When the region is full or not there.
    pub fn allocate(&self, region: usize, len: usize, align: usize) -> Result<Block, MemoryError> {
        let index = region;
        let region = self.region(index)?;
        let offset = {
            let mut allocator = region.allocator();
            let fits = |&(offset, size): &(usize, usize)| size == len && offset % align == 0;
            match allocator.free.iter().position(fits) {
                Some(at) => allocator.free.swap_remove(at).0,
                None => {
                    let offset = allocator.next.next_multiple_of(align);
                    let end = offset
                        .checked_add(len)
                        .filter(|&end| end <= region.map.size());
                    allocator.next = end.ok_or(MemoryError::Full {
                        region: index,
                        bytes: len,
                    })?;
                    offset
                }
            }
        };
        let block = Block {
            region,
            offset,
            len,
        };
        block.fill(0);
        Ok(block)
    }

    /// Copies guest memory out.
    ///
    /// # Errors
    /// When the range is not inside one region.
    pub fn read(&self, guest_address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.with_slice(guest_address, bytes.len(), |slice| {
            slice.copy_to(bytes);
        })
    }

    /// Copies bytes into guest memory.
    ///
    /// # Errors
    /// When the range is not inside one region.
    pub fn write(&self, guest_address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.with_slice(guest_address, bytes.len(), |slice| slice.copy_from(bytes))
    }

    /// Cuts a region's memfd short, so that touching the pages behind `len_bytes` raises SIGBUS: in the back-end, and here as well.
    /// The caller must not read or write that region again.
    ///
    /// # Errors
    /// When there is no such region or the system refuses.
    pub fn truncate_memfd(&self, region: usize, len_bytes: u64) -> Result<(), MemoryError> {
        let region = self.region(region)?;
        rustix::fs::ftruncate(&*region.memfd, len_bytes).map_err(|error| MemoryError::Io {
            doing: "cutting the memfd short",
            source: error.into(),
        })
    }

    fn with_slice(
        &self,
        guest_address: u64,
        len: usize,
        act: impl FnOnce(VolatileSlice<'_>),
    ) -> Result<(), MemoryError> {
        let unmapped = MemoryError::Unmapped {
            address: guest_address,
            len,
        };
        for region in self.regions() {
            let Some(offset) = guest_address.checked_sub(region.layout.guest_base) else {
                continue;
            };
            if let Ok(slice) = region.map.get_slice(offset as usize, len) {
                act(slice);
                return Ok(());
            }
        }
        Err(unmapped)
    }

    fn memfd(&self, layout: RegionLayout) -> Result<Arc<File>, MemoryError> {
        let io = |doing| {
            move |error: rustix::io::Errno| MemoryError::Io {
                doing,
                source: error.into(),
            }
        };
        let mut memfds = self
            .shared
            .memfds
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if memfds.len() <= layout.memfd {
            memfds.resize(layout.memfd + 1, None);
        }
        let memfd = match &memfds[layout.memfd] {
            Some(memfd) => memfd.clone(),
            None => {
                let memfd: OwnedFd = rustix::fs::memfd_create("guest-sim", MemfdFlags::CLOEXEC)
                    .map_err(io("creating a memfd"))?;
                let memfd = Arc::new(File::from(memfd));
                memfds[layout.memfd] = Some(memfd.clone());
                memfd
            }
        };
        let wanted = layout.mmap_offset_bytes + layout.size_bytes;
        let size = rustix::fs::fstat(&*memfd)
            .map_err(io("asking the memfd's size"))?
            .st_size as u64;
        if size < wanted {
            rustix::fs::ftruncate(&*memfd, wanted).map_err(io("sizing the memfd"))?;
        }
        Ok(memfd)
    }
}

fn check_layout(
    layout: RegionLayout,
    others: impl Iterator<Item = RegionLayout>,
) -> Result<(), MemoryError> {
    let RegionLayout {
        guest_base,
        size_bytes,
        mmap_offset_bytes,
        ..
    } = layout;
    let aligned = [guest_base, size_bytes, mmap_offset_bytes]
        .iter()
        .all(|value| value % PAGE_BYTES == 0);
    let end = guest_base
        .checked_add(size_bytes)
        .filter(|&end| end <= 1 << 46);
    let fits = match end {
        Some(end) => {
            let mut others = others;
            !others.any(|other| {
                guest_base < other.guest_base + other.size_bytes && other.guest_base < end
            })
        }
        None => false,
    };
    if aligned && fits && size_bytes > 0 {
        Ok(())
    } else {
        Err(MemoryError::Layout {
            guest_base,
            size_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_of_one_memfd_do_not_share_bytes() {
        let memory =
            GuestMemory::new(&GuestMemoryLayout::around_pci_hole(1 << 16, 1 << 16)).unwrap();
        memory.write(0x2000, b"low").unwrap();
        memory.write((1 << 32) + 0x2000, b"top").unwrap();
        let mut bytes = [0; 3];
        memory.read(0x2000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"low");
        let regions = memory.regions();
        assert!(Arc::ptr_eq(regions[0].memfd(), regions[1].memfd()));
    }

    #[test]
    fn user_addresses_differ_from_guest_addresses_and_do_not_overlap() {
        let memory = GuestMemory::new(&GuestMemoryLayout::separate_memfds(&[
            1 << 16,
            1 << 16,
            1 << 16,
        ]))
        .unwrap();
        let mut ranges: Vec<_> = memory
            .regions()
            .iter()
            .map(|r| (r.user_base(), r.user_base() + r.layout().size_bytes))
            .collect();
        assert!(
            memory
                .regions()
                .iter()
                .all(|r| r.user_base() != r.layout().guest_base)
        );
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }

    #[test]
    fn an_overlapping_region_is_refused() {
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(1 << 16)).unwrap();
        let layout = RegionLayout {
            guest_base: 0x8000,
            size_bytes: 0x10000,
            memfd: 1,
            mmap_offset_bytes: 0,
        };
        assert!(matches!(
            memory.add_region(layout),
            Err(MemoryError::Layout { .. })
        ));
    }

    #[test]
    fn a_dropped_block_is_given_out_again_zeroed() {
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(1 << 16)).unwrap();
        let block = memory.allocate(0, 100, 16).unwrap();
        let address = block.guest_address();
        block.fill(7);
        drop(block);
        let block = memory.allocate(0, 100, 16).unwrap();
        assert_eq!(block.guest_address(), address);
        let mut bytes = [9; 100];
        memory.read(address, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 100]);
    }

    #[test]
    fn a_range_across_two_regions_is_refused() {
        let memory = GuestMemory::new(&GuestMemoryLayout::adjacent(&[1 << 16, 1 << 16])).unwrap();
        assert!(matches!(
            memory.write(0xffff, b"ab"),
            Err(MemoryError::Unmapped { .. })
        ));
    }
}
