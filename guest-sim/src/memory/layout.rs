//! Where a VM's memory lies and what backs it.
//!
//! Read when memory is made. Keeps true: regions are page-aligned, apart from each other and below 2^46.

use super::{MemoryError, PAGE_BYTES};

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

pub(super) fn check_layout(
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
