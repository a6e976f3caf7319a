//! Guest memory: memfds, regions, and the buffers cut from them.
//!
//! Called by the VMM half (which describes the regions to the back-end) and by the driver half (which puts rings and frames into them), on
//! whatever thread the test runs. Keeps true: user addresses never equal guest-physical ones, so that a back-end which confuses the two is
//! found out; allocation is deterministic; page 0 of every region stays unused, so that no ring or buffer ever has address 0.
//!
//! `layout` (where memory lies) -> `region` (its mapping, and blocks of it) -> `dirty` (which pages this process wrote).

pub(crate) mod dirty;
mod layout;
mod region;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::fs::MemfdFlags;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion};

pub use dirty::DirtyPages;
pub(crate) use dirty::Word;
pub use layout::{GuestMemoryLayout, RegionLayout};
pub(crate) use region::{Array, Slice, fill};
pub use region::{Block, Region};

use layout::check_layout;

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
        let others = regions.iter().flatten().map(|region| region.layout());
        check_layout(layout, others)?;
        let memfd = self.memfd(layout)?;
        let file = FileOffset::from_arc(memfd.clone(), layout.mmap_offset_bytes);
        let map = MmapRegion::from_file(file, layout.size_bytes as usize).map_err(|source| {
            MemoryError::Map {
                region: index,
                source,
            }
        })?;
        regions.push(Some(Arc::new(Region::new(layout, memfd, map))));
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
        let offset = region.allocate(len, align).ok_or(MemoryError::Full {
            region: index,
            bytes: len,
        })?;
        let block = Block::new(region, offset, len);
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
        rustix::fs::ftruncate(region.memfd(), len_bytes).map_err(|error| MemoryError::Io {
            doing: "cutting the memfd short",
            source: error.into(),
        })
    }

    /// Starts or stops marking the pages that this process writes; what was marked is forgotten.
    pub fn track_writes(&self, on: bool) {
        for region in self.regions() {
            region.track_writes(on);
        }
    }

    /// Numbers of the 4 KiB guest-physical pages that this process wrote since it was last asked, ascending within each region.
    pub fn take_written(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        for region in self.regions() {
            let first = region.layout().guest_base / PAGE_BYTES;
            region.dirty().take(|page| pages.push(first + page));
        }
        pages
    }

    /// Other memory of the same shape, all zero.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn twin(&self) -> Result<Self, MemoryError> {
        let regions = self.regions();
        let regions = regions.iter().map(|region| region.layout()).collect();
        Self::new(&GuestMemoryLayout { regions })
    }

    /// From now on the same bytes are given out here as there: this memory takes the place of that.
    pub(crate) fn adopt_allocations(&self, other: &Self) {
        for (ours, theirs) in self.regions().iter().zip(other.regions()) {
            ours.adopt_allocations(&theirs);
        }
    }

    fn with_slice(
        &self,
        guest_address: u64,
        len: usize,
        act: impl FnOnce(Slice<'_>),
    ) -> Result<(), MemoryError> {
        let unmapped = MemoryError::Unmapped {
            address: guest_address,
            len,
        };
        for region in self.regions() {
            let Some(offset) = guest_address.checked_sub(region.layout().guest_base) else {
                continue;
            };
            if let Ok(slice) = region.slice(offset as usize, len) {
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

    #[test]
    fn pages_written_through_slices_arrays_and_words_are_marked_while_tracked() {
        use std::sync::atomic::{AtomicU16, Ordering};
        let memory =
            GuestMemory::new(&GuestMemoryLayout::around_pci_hole(1 << 20, 1 << 20)).unwrap();
        memory.write(0x1fff, b"before").unwrap();
        assert!(memory.take_written().is_empty());
        memory.track_writes(true);
        // Across the border of pages 1 and 2, and of pages 63 and 64 of the bitmap's words.
        memory.write(0x1fff, b"ab").unwrap();
        memory.write(0x3_ffff, b"ab").unwrap();
        memory.write((1 << 32) + 0x7000, b"a").unwrap();
        let high = memory.region(1).unwrap();
        high.array::<u64>(0x8ff8, 2).unwrap().store(1, 7);
        high.word::<AtomicU16>(0xa002)
            .unwrap()
            .store(7, Ordering::Release);
        memory.read(0x5000, &mut [0; 8]).unwrap();
        let first = 1 << 20;
        let expected = [1, 2, 63, 64, first + 7, first + 9, first + 10];
        assert_eq!(memory.take_written(), expected);
        assert!(memory.take_written().is_empty());
        memory.track_writes(false);
        memory.write(0x1fff, b"after").unwrap();
        assert!(memory.take_written().is_empty());
    }

    #[test]
    fn memory_that_takes_the_place_of_another_gives_out_what_is_free_there() {
        let source = GuestMemory::new(&GuestMemoryLayout::one_region(1 << 16)).unwrap();
        let block = source.allocate(0, 100, 16).unwrap();
        let twin = source.twin().unwrap();
        twin.adopt_allocations(&source);
        let moved = block.in_memory(&twin).unwrap();
        assert_eq!(moved.guest_address(), block.guest_address());
        let next = twin.allocate(0, 100, 16).unwrap();
        assert_ne!(next.guest_address(), moved.guest_address());
        moved.fill(3);
        let mut there = [0; 100];
        source.read(block.guest_address(), &mut there).unwrap();
        assert_eq!(there, [0; 100], "the two share bytes");
    }
}
