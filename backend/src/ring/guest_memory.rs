//! A VM's memory, as its front-end described it, mapped into this process.
//!
//! The control thread builds a [`GuestMemory`] from SET_MEM_TABLE or ADD/REM_MEM_REG and shares it by `Arc`; rings keep
//! that `Arc` beside every host address they derive from it, so an address never outlives its mapping. A map never
//! changes: a changed table is a new map that shares the mappings that stayed.

use super::dirty_log::DirtyLog;
use super::iotlb::{Access, Iotlb, NoTranslation, PAGE_BYTES};
use super::mapping::{MAX_TOTAL_BYTES, MapFault, Mapping};
use super::missing::{Arrivals, MissingPages};
use super::record::RingIdentity;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// Memory slots a front-end may fill (VHOST_USER_GET_MAX_MEM_SLOTS); QEMU's own limit is 509 or 512 by accelerator.
pub const MAX_REGIONS: usize = 509;

/// Address space that one VM's memory may take here: larger than any VM.
const MAX_MAP_BYTES: u64 = 8 << 40;
/// One region of SET_MEM_TABLE or ADD_MEM_REG (vhost-user: Memory region description).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionLayout {
    /// Where the guest sees it.
    pub guest_phys_addr: u64,
    /// Its length.
    pub size_bytes: u64,
    /// Where the front-end sees it: what the ring addresses of SET_VRING_ADDR refer to.
    pub user_addr: u64,
    /// Where it starts in its file.
    pub mmap_offset: u64,
}

/// Why a memory table was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// More regions than slots were announced.
    #[error("{0} memory regions; at most {MAX_REGIONS} are supported")]
    TooManyRegions(usize),
    /// A region with no bytes, or one that wraps around the address space.
    #[error(
        "memory region at guest address {guest_phys_addr:#x} has an impossible size of {size_bytes:#x} bytes"
    )]
    BadSize {
        /// The region's guest-physical start.
        guest_phys_addr: u64,
        /// The size asked for.
        size_bytes: u64,
    },
    /// Two regions claim the same guest-physical or front-end addresses.
    #[error("memory regions at guest addresses {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Start of the lower one.
        first: u64,
        /// Start of the higher one.
        second: u64,
    },
    /// The file ends before the region does.
    #[error(
        "the file of the memory region at {guest_phys_addr:#x} has {file_bytes:#x} bytes, {needed_bytes:#x} are needed"
    )]
    FileTooShort {
        /// The region's guest-physical start.
        guest_phys_addr: u64,
        /// What the file has.
        file_bytes: u64,
        /// Offset plus size of the region.
        needed_bytes: u64,
    },
    /// A page fault in such a file could wait for somebody else for ever.
    #[error(
        "the memory region at {guest_phys_addr:#x} is not in a memory file; use memory-backend-memfd,share=on, or a file on \
         tmpfs or hugetlbfs"
    )]
    NotMemory {
        /// The region's guest-physical start.
        guest_phys_addr: u64,
    },
    /// More address space than one VM may have, or than is left.
    #[error(
        "the memory region at {guest_phys_addr:#x} is too large: a VM may have {} TiB, all together {} TiB",
        MAX_MAP_BYTES >> 40,
        MAX_TOTAL_BYTES >> 40
    )]
    TooMuch {
        /// The region's guest-physical start.
        guest_phys_addr: u64,
    },
    /// The kernel refused to describe or map the file.
    #[error("cannot map the memory region at {guest_phys_addr:#x}: {source}")]
    Map {
        /// The region's guest-physical start.
        guest_phys_addr: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// More than a pager has addresses for.
    #[error(
        "the memory region at {guest_phys_addr:#x} cannot be received page by page: too much memory came and went meanwhile"
    )]
    NoPagerAddress {
        /// The region's guest-physical start.
        guest_phys_addr: u64,
    },
    /// REM_MEM_REG named a region that is not there.
    #[error(
        "no memory region with guest address {guest_phys_addr:#x}, size {size_bytes:#x} and that front-end address"
    )]
    NoSuchRegion {
        /// The guest-physical start asked for.
        guest_phys_addr: u64,
        /// The size asked for.
        size_bytes: u64,
    },
}

#[derive(Clone, Debug)]
struct Region {
    layout: RegionLayout,
    /// Host address of the region's first byte.
    host: NonNull<u8>,
    mapping: Arc<Mapping>,
    /// Which of its pages are there, while it is received.
    arrivals: Option<Arc<Arrivals>>,
}

/// A region that is received page by page, as the port's pager is to map it.
#[derive(Debug)]
pub struct ReceivedRegion {
    /// Where, in the pager: a page's first byte.
    pub pager_addr: u64,
    /// How much.
    pub size_bytes: u64,
    /// From where in its file.
    pub file_offset: u64,
    /// Another descriptor of that.
    pub file: OwnedFd,
    /// The region's first byte in the pager, which the front-end has to know.
    pub first_byte: u64,
}

/// An immutable map of a VM's memory.
#[derive(Debug, Default)]
pub struct GuestMemory {
    /// Sorted by guest-physical address, without overlaps.
    regions: Vec<Region>,
    /// Where writes to it are marked, while its VM migrates.
    log: Option<Arc<DirtyLog>>,
    /// What the addresses of rings and buffers stand for, if they are not the guest's own.
    iotlb: Option<Arc<Iotlb>>,
    /// Asked for pages of regions that are received.
    missing: Option<Arc<MissingPages>>,
}

/// Why nothing can be done at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unavailable {
    /// It is outside what the front-end shared.
    Outside,
    /// The guest's IOMMU does not let the device do that there.
    Refused(Access),
    /// It will be there soon, or refused: it was asked for.
    Pending,
}

/// Where the first region that is received is in a pager's address space: between what the kernel gives to programs and to libraries.
const PAGER_START: u64 = 16 << 40;
/// Where the last one ends at most.
const PAGER_END: u64 = 64 << 40;
/// The largest page that files have: regions begin at such addresses in the pager.
const LARGEST_PAGE_BYTES: u64 = 1 << 30;

/// Where a part of a ring is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In one piece, from here on.
    Whole(NonNull<u8>),
    /// In these pages, so many bytes behind the start of the first.
    Scattered(Vec<NonNull<u8>>, usize),
}

impl From<(NoTranslation, Access)> for Unavailable {
    fn from((why, access): (NoTranslation, Access)) -> Self {
        match why {
            NoTranslation::Pending => Self::Pending,
            NoTranslation::Refused => Self::Refused(access),
        }
    }
}

// SAFETY: the pointers refer to shared mappings that live as long as the `Arc<Mapping>` beside them; every access through
// them is a raw copy that allows for concurrent writers (the guest is always one), upheld by `segment` and `split`.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; nothing in the map itself changes after it was built.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Maps every region. Nothing stays mapped when one of them is refused.
    pub fn map(regions: Vec<(RegionLayout, OwnedFd)>) -> Result<Arc<Self>, MemoryError> {
        let mut map = Self::default();
        for (layout, file) in regions {
            map.insert(layout, file)?;
        }
        Ok(Arc::new(map))
    }

    /// This map with one more region (ADD_MEM_REG).
    pub fn with_region(
        &self,
        layout: RegionLayout,
        file: OwnedFd,
    ) -> Result<Arc<Self>, MemoryError> {
        let mut map = self.like(self.regions.clone());
        map.insert(layout, file)?;
        Ok(Arc::new(map))
    }

    /// This map without one region (REM_MEM_REG): guest address, front-end address and size must match.
    pub fn without_region(&self, layout: RegionLayout) -> Result<Arc<Self>, MemoryError> {
        let same = |r: &Region| {
            (
                r.layout.guest_phys_addr,
                r.layout.user_addr,
                r.layout.size_bytes,
            ) == (layout.guest_phys_addr, layout.user_addr, layout.size_bytes)
        };
        if !self.regions.iter().any(same) {
            return Err(MemoryError::NoSuchRegion {
                guest_phys_addr: layout.guest_phys_addr,
                size_bytes: layout.size_bytes,
            });
        }
        let regions = self.regions.iter().filter(|r| !same(r)).cloned().collect();
        Ok(Arc::new(self.like(regions)))
    }

    fn like(&self, regions: Vec<Region>) -> Self {
        Self {
            regions,
            log: self.log.clone(),
            iotlb: self.iotlb.clone(),
            missing: self.missing.clone(),
        }
    }

    /// This map, whose regions with these are received page by page from now on: none of their pages is touched before it was seen. What a pager
    /// has to map for that; `pager_end` is where those before end.
    ///
    /// # Errors
    /// No descriptor or address is left.
    pub fn receiving(
        &self,
        missing: &Arc<MissingPages>,
        pager_end: &mut u64,
        is_new: impl Fn(&RegionLayout) -> bool,
    ) -> Result<(Arc<Self>, Vec<ReceivedRegion>), MemoryError> {
        let mut map = self.like(self.regions.clone());
        map.missing = Some(Arc::clone(missing));
        let mut received = Vec::new();
        for region in map.regions.iter_mut().filter(|r| is_new(&r.layout)) {
            let guest_phys_addr = region.layout.guest_phys_addr;
            let pager_addr = (*pager_end)
                .max(PAGER_START)
                .next_multiple_of(LARGEST_PAGE_BYTES);
            let (host, size_bytes) = region.mapping.whole();
            let end = pager_addr.saturating_add(size_bytes);
            if end > PAGER_END {
                return Err(MemoryError::NoPagerAddress { guest_phys_addr });
            }
            let kernel = |source| MemoryError::Map {
                guest_phys_addr,
                source,
            };
            let file = region.mapping.share_file().map_err(kernel)?;
            let can_look = region.mapping.is_writable_by_name();
            let arrivals = Arrivals::new((host, size_bytes), pager_addr, can_look, missing);
            region.arrivals = Some(Arc::new(arrivals));
            received.push(ReceivedRegion {
                pager_addr,
                size_bytes,
                file_offset: region.mapping.file_start(),
                file,
                first_byte: pager_addr + (region.host.as_ptr() as u64 - host.as_ptr() as u64),
            });
            *pager_end = end;
        }
        Ok((Arc::new(map), received))
    }

    /// This map, of which all pages are there.
    pub fn received(&self) -> Arc<Self> {
        let mut map = self.like(self.regions.clone());
        map.missing = None;
        for region in &mut map.regions {
            region.arrivals = None;
        }
        Arc::new(map)
    }

    /// A page that is received was seen, by its address in the pager.
    pub fn page_arrived(&self, page: u64) {
        let mut arrivals = self.regions.iter().filter_map(|r| r.arrivals.as_ref());
        arrivals.any(|arrivals| arrivals.arrived(page));
    }

    /// This map with another log, or without one.
    pub fn with_log(&self, log: Option<Arc<DirtyLog>>) -> Arc<Self> {
        Arc::new(Self {
            log,
            ..self.like(self.regions.clone())
        })
    }

    /// This map for rings and buffers whose addresses are IOVAs, or for such whose addresses are the guest's.
    pub fn with_iotlb(&self, iotlb: Option<Arc<Iotlb>>) -> Arc<Self> {
        Arc::new(Self {
            iotlb,
            ..self.like(self.regions.clone())
        })
    }

    /// Whether these bytes of the front-end's address space lie in one region.
    pub fn shares(&self, user_addr: u64, size_bytes: u64) -> bool {
        self.region_of_user(user_addr, size_bytes).is_some()
    }

    /// Whether an address may be valid and yet not available.
    pub(super) fn is_patient(&self) -> bool {
        self.iotlb.is_some() || self.missing.is_some()
    }

    /// Where writes are marked.
    pub fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }

    /// What is mapped, by guest-physical address.
    pub fn regions(&self) -> Vec<RegionLayout> {
        self.regions.iter().map(|r| r.layout).collect()
    }

    /// What is mapped, with another descriptor of each file: what it takes to map it once more.
    pub fn share(&self) -> io::Result<Vec<(RegionLayout, OwnedFd)>> {
        let share = |region: &Region| Ok((region.layout, region.mapping.share_file()?));
        self.regions.iter().map(share).collect()
    }

    /// Whether any file was truncated under us: the port has to be detached, its VM's memory is gone.
    pub fn is_lost(&self) -> bool {
        let log_lost = self.log.as_ref().is_some_and(|log| log.is_lost());
        log_lost || self.regions.iter().any(|r| r.mapping.is_lost())
    }

    fn insert(&mut self, layout: RegionLayout, file: OwnedFd) -> Result<(), MemoryError> {
        if self.regions.len() == MAX_REGIONS {
            return Err(MemoryError::TooManyRegions(MAX_REGIONS + 1));
        }
        let RegionLayout {
            guest_phys_addr,
            size_bytes,
            user_addr,
            mmap_offset,
        } = layout;
        let ends =
            [guest_phys_addr, user_addr, mmap_offset].map(|start| start.checked_add(size_bytes));
        if size_bytes == 0 || size_bytes > isize::MAX as u64 || ends.contains(&None) {
            return Err(MemoryError::BadSize {
                guest_phys_addr,
                size_bytes,
            });
        }
        let overlaps = |a: u64, b: u64, b_size: u64| a < b + b_size && b < a + size_bytes;
        if let Some(other) = self.regions.iter().find(|r| {
            overlaps(
                guest_phys_addr,
                r.layout.guest_phys_addr,
                r.layout.size_bytes,
            ) || overlaps(user_addr, r.layout.user_addr, r.layout.size_bytes)
        }) {
            let other = other.layout.guest_phys_addr;
            return Err(MemoryError::Overlap {
                first: other.min(guest_phys_addr),
                second: other.max(guest_phys_addr),
            });
        }
        let mapped: u64 = self.regions.iter().map(|r| r.layout.size_bytes).sum();
        if size_bytes > MAX_MAP_BYTES.saturating_sub(mapped) {
            return Err(MemoryError::TooMuch { guest_phys_addr });
        }
        let region = map_region(layout, file)?;
        let at = self
            .regions
            .partition_point(|r| r.layout.guest_phys_addr < guest_phys_addr);
        self.regions.insert(at, region);
        Ok(())
    }

    fn region(&self, addr: u64) -> Option<&Region> {
        let above = self
            .regions
            .partition_point(|r| r.layout.guest_phys_addr <= addr);
        let region = self.regions.get(above.checked_sub(1)?)?;
        region.window().at(addr).is_some().then_some(region)
    }

    /// The region that holds `addr` of the guest's address space.
    #[cfg(test)]
    pub(super) fn window(&self, addr: u64) -> Option<RegionWindow> {
        self.region(addr).map(Region::window)
    }

    /// What is in one piece around `addr`, an address of a buffer, and may be accessed like that.
    pub(super) fn locate(&self, addr: u64, access: Access) -> Result<RegionWindow, Unavailable> {
        let Some(iotlb) = &self.iotlb else {
            let region = self.region(addr).ok_or(Unavailable::Outside)?;
            return region.present(region.window(), addr);
        };
        let found = iotlb.find(addr, access).map_err(|why| (why, access))?;
        let region = self.region_of_user(found.user_addr, found.size_bytes);
        let (region, host) = region.ok_or(Unavailable::Outside)?;
        let window = RegionWindow {
            guest: found.iova,
            size_bytes: found.size_bytes,
            host,
        };
        region.present(window, addr)
    }

    /// Where a part of a ring is, of `len` bytes; what is missing of it is asked for all at once.
    pub(super) fn locate_part(
        &self,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<Place, Unavailable> {
        if self.iotlb.is_none() {
            let part = self.region_of_user(addr, len);
            let (region, host) = part.ok_or(Unavailable::Outside)?;
            return region.present_part(host, len).map(Place::Whole);
        }
        let end = addr.checked_add(len).ok_or(Unavailable::Outside)?;
        let skipped = addr % PAGE_BYTES;
        let (mut pages, mut missing) = (Vec::new(), None);
        for at in (addr - skipped..end).step_by(PAGE_BYTES as usize) {
            match self.locate(at, access) {
                Ok(window) => {
                    let (host, left) = window.at(at).ok_or(Unavailable::Outside)?;
                    if left < PAGE_BYTES.min(end - at) {
                        return Err(Unavailable::Outside);
                    }
                    pages.push(host);
                }
                Err(why) => drop(missing.get_or_insert(why)),
            }
        }
        if let Some(why) = missing {
            return Err(why);
        }
        let first = *pages.first().ok_or(Unavailable::Outside)?;
        let behind_first = |bytes: usize| first.as_ptr().wrapping_add(bytes);
        let mut in_order = pages.iter().enumerate();
        if in_order.all(|(index, page)| page.as_ptr() == behind_first(index * PAGE_BYTES as usize))
        {
            let host = NonNull::new(behind_first(skipped as usize));
            return host.map(Place::Whole).ok_or(Unavailable::Outside);
        }
        Ok(Place::Scattered(pages, skipped as usize))
    }

    /// In which file the byte at a host address is, and where.
    pub(super) fn file_of(&self, host: NonNull<u8>) -> Option<(&File, u64)> {
        let mut regions = self.regions.iter();
        regions.find_map(|region| region.mapping.file_at(host))
    }

    /// The region that this process sees `host` in.
    pub(super) fn window_of_host(&self, host: *const u8) -> Option<RegionWindow> {
        let mut windows = self.regions.iter().map(Region::window);
        windows.find(|window| window.guest_of(host).is_some())
    }

    /// Host address of `len` bytes that lie in one region, by the front-end's own address of them, and that region.
    fn region_of_user(&self, addr: u64, len: u64) -> Option<(&Region, NonNull<u8>)> {
        self.regions.iter().find_map(|region| {
            let window = RegionWindow {
                guest: region.layout.user_addr,
                size_bytes: region.layout.size_bytes,
                host: region.host,
            };
            let (host, left) = window.at(addr)?;
            (left >= len).then_some((region, host))
        })
    }

    /// In which file the first byte of a part of a ring is, and where.
    pub(super) fn identify_part(&self, addr: u64) -> Option<RingIdentity> {
        let addr = match &self.iotlb {
            Some(iotlb) => {
                let found = iotlb.known(addr)?;
                found.user_addr.checked_add(addr - found.iova)?
            }
            None => addr,
        };
        self.regions.iter().find_map(|region| {
            let at = addr.wrapping_sub(region.layout.user_addr);
            let file = region.mapping.file();
            (at < region.layout.size_bytes).then(|| RingIdentity {
                device: file.device,
                inode: file.inode,
                offset: region.layout.mmap_offset + at,
            })
        })
    }
}

impl Region {
    fn window(&self) -> RegionWindow {
        RegionWindow {
            guest: self.layout.guest_phys_addr,
            size_bytes: self.layout.size_bytes,
            host: self.host,
        }
    }

    /// Of `window`, which is in this region, what is there around `addr`, which is in that.
    fn present(&self, window: RegionWindow, addr: u64) -> Result<RegionWindow, Unavailable> {
        let Some(arrivals) = &self.arrivals else {
            return Ok(window);
        };
        let (host, _) = window.at(addr).ok_or(Unavailable::Outside)?;
        let (start, end) = arrivals.around(host).ok_or(Unavailable::Pending)?;
        Ok(window.within(start, end))
    }

    /// The same of a part of a ring, which has to be there as a whole; all that is missing is asked for.
    fn present_part(&self, host: NonNull<u8>, len: u64) -> Result<NonNull<u8>, Unavailable> {
        let Some(arrivals) = &self.arrivals else {
            return Ok(host);
        };
        let first = host.as_ptr() as u64;
        let (mut at, mut is_whole) = (first, true);
        while at < first + len {
            // The part is in one region, so each of its bytes is at an offset from its first one.
            let here = host.as_ptr().wrapping_add((at - first) as usize);
            let around = NonNull::new(here).and_then(|here| arrivals.around(here));
            is_whole &= around.is_some();
            at = around.map_or(at / PAGE_BYTES * PAGE_BYTES + PAGE_BYTES, |(_, end)| end);
        }
        is_whole.then_some(host).ok_or(Unavailable::Pending)
    }
}

/// One region by one kind of address: what a ring remembers of the last translation, since the next buffer nearly always lies
/// in the same region. Whoever keeps one keeps the map it came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct RegionWindow {
    guest: u64,
    size_bytes: u64,
    host: NonNull<u8>,
}

impl RegionWindow {
    /// Holds no address.
    pub(super) const NONE: Self = Self {
        guest: 0,
        size_bytes: 0,
        host: NonNull::dangling(),
    };

    /// Host address of `addr`, and how many bytes are left from there.
    #[inline]
    pub(super) fn at(&self, addr: u64) -> Option<(NonNull<u8>, u64)> {
        let offset = addr.wrapping_sub(self.guest);
        if offset >= self.size_bytes {
            return None;
        }
        // SAFETY: offset < size_bytes, and the mapping covers the whole region (upheld by `Mapping::new`).
        Some((
            unsafe { self.host.add(offset as usize) },
            self.size_bytes - offset,
        ))
    }

    /// What of it is at host addresses from `start` to `end`.
    fn within(&self, start: u64, end: u64) -> Self {
        let base = self.host.as_ptr() as u64;
        let skipped = start.saturating_sub(base).min(self.size_bytes);
        let size_bytes = (end.saturating_sub(base).min(self.size_bytes)).saturating_sub(skipped);
        // SAFETY: `skipped` is at most the window's size, and the mapping covers it whole (upheld by whoever made it).
        let host = unsafe { self.host.add(skipped as usize) };
        Self {
            guest: self.guest.wrapping_add(skipped),
            size_bytes,
            host,
        }
    }

    /// The other way around: the address of what is at `host` in this process.
    #[inline]
    pub(super) fn guest_of(&self, host: *const u8) -> Option<u64> {
        let offset = (host as u64).wrapping_sub(self.host.as_ptr() as u64);
        (offset < self.size_bytes).then(|| self.guest.wrapping_add(offset))
    }
}

fn map_region(layout: RegionLayout, file: OwnedFd) -> Result<Region, MemoryError> {
    let guest_phys_addr = layout.guest_phys_addr;
    let mapping = Mapping::new(file, layout.mmap_offset, layout.size_bytes);
    let mapping = Arc::new(mapping.map_err(|fault| match fault {
        MapFault::TooShort {
            file_bytes,
            needed_bytes,
        } => MemoryError::FileTooShort {
            guest_phys_addr,
            file_bytes,
            needed_bytes,
        },
        MapFault::NotMemory => MemoryError::NotMemory { guest_phys_addr },
        MapFault::TooMuch => MemoryError::TooMuch { guest_phys_addr },
        MapFault::Kernel(source) => MemoryError::Map {
            guest_phys_addr,
            source,
        },
    })?);
    Ok(Region {
        layout,
        host: mapping.host(),
        mapping,
        arrivals: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn memfd(bytes: u64) -> OwnedFd {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, bytes).unwrap();
        fd
    }

    fn layout(guest_phys_addr: u64, size_bytes: u64) -> RegionLayout {
        RegionLayout {
            guest_phys_addr,
            size_bytes,
            user_addr: guest_phys_addr + 0x7f00_0000_0000,
            mmap_offset: 0,
        }
    }

    #[test]
    fn an_address_is_found_in_its_region_and_nowhere_else() {
        let map = GuestMemory::map(vec![
            (layout(0x10_0000, 0x2000), memfd(0x2000)),
            (layout(0, 0x1000), memfd(0x1000)),
        ])
        .unwrap();
        for (addr, left) in [
            (0, Some(0x1000)),
            (0xfff, Some(1)),
            (0x1000, None),
            (0xf_ffff, None),
        ]
        .into_iter()
        .chain([
            (0x10_0000, Some(0x2000)),
            (0x10_1fff, Some(1)),
            (0x10_2000, None),
            (u64::MAX, None),
        ]) {
            assert_eq!(
                map.window(addr)
                    .and_then(|w| w.at(addr))
                    .map(|(_, left)| left),
                left,
                "{addr:#x}"
            );
        }
        assert!(map.region_of_user(0x7f00_0010_0ff0, 0x20).is_some());
        assert!(
            map.region_of_user(0x7f00_0010_1ff0, 0x20).is_none(),
            "crosses the region's end"
        );
    }

    #[test]
    fn impossible_tables_are_refused() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        for (name, table) in [
            ("empty region", vec![(layout(0, 0), memfd(0x1000))]),
            (
                "wraps",
                vec![(
                    RegionLayout {
                        user_addr: u64::MAX - 4,
                        ..layout(0, 0x1000)
                    },
                    memfd(0x1000),
                )],
            ),
            ("file too short", vec![(layout(0, 0x2000), memfd(0x1000))]),
            (
                "overlap",
                vec![
                    (layout(0, 0x2000), memfd(0x2000)),
                    (layout(0x1000, 0x1000), memfd(0x1000)),
                ],
            ),
            ("a pipe", vec![(layout(0, 0x1000), reader)]),
            (
                "larger than any VM",
                vec![(layout(0, 1 << 46), memfd(1 << 46))],
            ),
            (
                "a device",
                vec![(layout(0, 0x1000), File::open("/dev/zero").unwrap().into())],
            ),
        ] {
            assert!(GuestMemory::map(table).is_err(), "{name}");
        }
    }

    #[test]
    fn regions_come_and_go_one_by_one() {
        let map = GuestMemory::map(vec![(layout(0, 0x1000), memfd(0x1000))]).unwrap();
        let grown = map
            .with_region(layout(0x10_0000, 0x1000), memfd(0x1000))
            .unwrap();
        assert_eq!(grown.regions().len(), 2);
        let shrunk = grown.without_region(layout(0, 0x1000)).unwrap();
        assert_eq!(shrunk.regions(), vec![layout(0x10_0000, 0x1000)]);
        assert!(shrunk.without_region(layout(0, 0x1000)).is_err());
    }

    #[test]
    fn a_truncated_file_is_noticed_and_survived() {
        let fd = memfd(0x4000);
        let map = GuestMemory::map(vec![(layout(0, 0x4000), fd.try_clone().unwrap())]).unwrap();
        let other = GuestMemory::map(vec![(layout(0, 0x4000), memfd(0x4000))]).unwrap();
        let losses = super::super::sigbus::losses();
        ftruncate(&fd, 0).unwrap();
        let (host, _) = map.window(0x2000).unwrap().at(0x2000).unwrap();
        // SAFETY: inside the mapping; the fault it raises is what is tested.
        unsafe { host.write_volatile(1) };
        assert!(map.is_lost());
        assert!(!other.is_lost());
        assert!(super::super::sigbus::losses() > losses);
    }
}
