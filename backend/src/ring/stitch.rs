//! A part of a ring whose pages lie here and there in a guest's memory, mapped once more in one piece.
//!
//! Behind an IOMMU, pages that follow each other for the device need not do so in memory: Linux's driver for Intel's gives a ring single pages.
//! [`parts`](super::parts) has such a part mapped when its ring starts. Kept true: as [`mapping`](super::mapping) has it, nothing here hangs
//! or ends us; what is written is marked where the guest has it, page by page.

use super::guest_memory::GuestMemory;
use super::sigbus::Watch;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// What can be mapped apart: a page of a file that is not of huge ones.
pub(super) const PAGE_BYTES: usize = 4096;

/// Pages, mapped in their order for the device.
#[derive(Debug)]
pub(super) struct Stitch {
    /// Dropped before the mapping is undone.
    watch: Option<Watch>,
    base: NonNull<u8>,
    /// Where the first bytes of the pages are mapped otherwise.
    pages: Vec<NonNull<u8>>,
}

impl Stitch {
    /// Maps pages that are mapped in `memory` at these addresses, each a page's first.
    ///
    /// # Errors
    /// A page is of no file that can be mapped page by page.
    pub(super) fn new(pages: Vec<NonNull<u8>>, memory: &GuestMemory) -> io::Result<Self> {
        let bytes = pages.len() * PAGE_BYTES;
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, reserve, -1, 0) };
        let base = NonNull::new(base.cast::<u8>()).filter(|_| base != libc::MAP_FAILED);
        let mut stitch = Self {
            watch: None,
            base: base.ok_or_else(io::Error::last_os_error)?,
            pages,
        };
        for index in 0..stitch.pages.len() {
            stitch.map(index, memory)?;
        }
        // SAFETY: exactly the range mapped above. Guests' memory does not belong in our core dumps; failing to say so is harmless.
        unsafe { libc::madvise(stitch.base.as_ptr().cast(), bytes, libc::MADV_DONTDUMP) };
        stitch.watch = Some(Watch::new(stitch.base.as_ptr() as usize, bytes)?);
        Ok(stitch)
    }

    fn map(&self, index: usize, memory: &GuestMemory) -> io::Result<()> {
        let page = self.pages.get(index).and_then(|page| memory.file_of(*page));
        let (file, offset): (&File, u64) = page.ok_or(io::ErrorKind::InvalidInput)?;
        let place = self.base.as_ptr().wrapping_add(index * PAGE_BYTES);
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
        );
        let (place, offset) = (place.cast(), offset as libc::off_t);
        // SAFETY: the place is a page inside the range that `new` reserved and nobody uses yet.
        let mapped = unsafe {
            libc::mmap(
                place,
                PAGE_BYTES,
                protection,
                flags,
                file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Host address of the first page.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Whether a file of it was truncated under us.
    pub(super) fn is_lost(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::is_lost)
    }

    /// Where else the byte at `host` is mapped, and how many follow it in its page; `None` if it is not in here.
    pub(super) fn origin(&self, host: *const u8) -> Option<(*const u8, usize)> {
        let offset = (host as usize).wrapping_sub(self.base.as_ptr() as usize);
        let page = self.pages.get(offset / PAGE_BYTES)?;
        let within = offset % PAGE_BYTES;
        Some((page.as_ptr().wrapping_add(within), PAGE_BYTES - within))
    }
}

impl Drop for Stitch {
    fn drop(&mut self) {
        self.watch = None;
        // SAFETY: exactly the range that `new` mapped; whoever had addresses in it held this.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.pages.len() * PAGE_BYTES) };
    }
}

// SAFETY: the addresses are of shared mappings that live as long as this, or as the memory map it was made from, which its ring holds as
// well; access is as to any guest memory.
unsafe impl Send for Stitch {}
// SAFETY: as above; nothing in it changes after it was made.
unsafe impl Sync for Stitch {}

#[cfg(test)]
mod tests {
    use super::super::dirty_log::{DirtyLog, LogLayout, Marks};
    use super::super::guest_memory::{Place, RegionLayout};
    use super::super::iotlb::{Access, Iotlb, Translation};
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::io::pread;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    const USER: u64 = 0x7f00_0000_0000;
    const IOVA: u64 = 0xfff0_0000;

    fn memfd(bytes: u64) -> OwnedFd {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, bytes).unwrap();
        fd
    }

    #[test]
    fn scattered_pages_are_written_and_marked_where_they_are_and_may_be_lost() {
        let file = memfd(8 << 12);
        let layout = RegionLayout {
            guest_phys_addr: 0x10_0000,
            size_bytes: 8 << 12,
            user_addr: USER,
            mmap_offset: 0,
        };
        let memory = GuestMemory::map(vec![(layout, file.try_clone().unwrap())]).unwrap();
        let iotlb = Arc::new(Iotlb::new().unwrap());
        // For the device, page after page backwards.
        for page in 0..4 {
            iotlb.insert(Translation {
                iova: IOVA + (page << 12),
                size_bytes: 1 << 12,
                user_addr: USER + ((6 - page) << 12),
                readable: true,
                writable: true,
            });
        }
        let log_file = memfd(4096);
        let layout = LogLayout {
            size_bytes: 4096,
            mmap_offset: 0,
        };
        let log = DirtyLog::map(layout, log_file.try_clone().unwrap(), Arc::default()).unwrap();
        let memory = memory.with_iotlb(Some(iotlb)).with_log(Some(log));
        let located = memory.locate_part(IOVA + 0x80, 0x2000, Access::Write);
        let Ok(Place::Scattered(pages, 0x80)) = located else {
            panic!("{located:?}");
        };
        let one_page = memory.locate_part(IOVA + 0x1080, 0x100, Access::Write);
        assert!(matches!(one_page, Ok(Place::Whole(_))));
        let stitch = Arc::new(Stitch::new(pages, &memory).unwrap());
        let start = stitch.base().as_ptr().wrapping_add(0xffe);
        // SAFETY: four bytes across the first two of three mapped pages.
        unsafe { start.cast::<[u8; 4]>().write_volatile([1, 2, 3, 4]) };
        let mut marks = Marks::new(&memory, std::slice::from_ref(&stitch));
        marks.wrote(start, 4);
        drop(marks);
        let read = |file: &OwnedFd, at: u64, bytes: usize| {
            let mut read = vec![0; bytes];
            assert_eq!(pread(file, &mut read, at).unwrap(), bytes);
            read
        };
        assert_eq!(read(&file, (6 << 12) + 0xffe, 2), [1, 2]);
        assert_eq!(read(&file, 5 << 12, 2), [3, 4]);
        // Pages 0x105 and 0x106.
        assert_eq!(read(&log_file, 0x20, 2), [0b110_0000, 0]);
        assert!(!stitch.is_lost());
        ftruncate(&file, 0).unwrap();
        // SAFETY: as above; the file's end is seen to by the handler.
        unsafe { start.write_volatile(1) };
        assert!(stitch.is_lost());
    }
}
