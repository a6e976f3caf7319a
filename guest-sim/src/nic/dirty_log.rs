//! The bitmap in which a back-end marks the pages it writes.
//!
//! Made by the VMM half when logging starts and whenever a new one is wanted; read by it while the back-end marks. Keeps true: a mark is
//! taken and cleared in one step, so that none is lost between.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::order::MessageOrder;
use crate::error::{Doing, Error};
use crate::memory::dirty::each_bit;
use crate::memory::{GuestMemory, MemoryError, PAGE_BYTES};

/// QEMU makes its log this much longer than it has to when it grows (VHOST_LOG_BUFFER).
const SPARE_BYTES: u64 = 4096;

/// A log: bit `page % 8` of byte `page / 8` for each 4 KiB guest-physical page (vhost-user: Migration).
#[derive(Debug)]
pub struct DirtyLog {
    file: File,
    map: MmapRegion,
    bytes: u64,
}

impl DirtyLog {
    /// A log of this many bytes.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(bytes: u64) -> Result<Self, Error> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file: OwnedFd =
            rustix::fs::memfd_create("guest-sim-log", flags).doing("creating a log's memfd")?;
        let file = File::from(file);
        rustix::fs::ftruncate(&file, bytes).doing("sizing a log's memfd")?;
        let copy = file.try_clone().doing("cloning a log's memfd")?;
        let map =
            MmapRegion::from_file(FileOffset::new(copy, 0), bytes as usize).map_err(|source| {
                let region = 0;
                MemoryError::Map { region, source }
            })?;
        Ok(Self { file, map, bytes })
    }

    /// As long as that front-end makes it for this memory.
    pub(crate) fn covering(memory: &GuestMemory, order: MessageOrder) -> Result<Self, Error> {
        let log = Self::new(Self::bytes_for(memory, order))?;
        if order == MessageOrder::CloudHypervisor {
            let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&log.file, seals).doing("sealing a log's memfd")?;
        }
        Ok(log)
    }

    /// QEMU counts in words of 64 pages, Cloud Hypervisor in bytes.
    pub(crate) fn bytes_for(memory: &GuestMemory, order: MessageOrder) -> u64 {
        let layouts = memory.regions().into_iter().map(|region| region.layout());
        let last = layouts.map(|layout| layout.guest_base + layout.size_bytes - 1);
        let last_page = last.max().unwrap_or(0) / PAGE_BYTES;
        match order {
            MessageOrder::Qemu => (last_page / 64 + 1) * 8,
            MessageOrder::CloudHypervisor => last_page / 8 + 1,
        }
    }

    /// QEMU's next log when this one does not reach the end of memory any more.
    pub(crate) fn grown(&self, memory: &GuestMemory) -> Result<Option<Self>, Error> {
        let needed = Self::bytes_for(memory, MessageOrder::Qemu);
        (needed > self.bytes)
            .then(|| Self::new(needed + SPARE_BYTES))
            .transpose()
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What goes over the socket.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The marked pages, ascending; their marks are cleared.
    ///
    /// # Errors
    /// Never, unless the log is not as it was made.
    pub fn take(&self) -> Result<Vec<u64>, Error> {
        let unmapped = |_| MemoryError::Unmapped {
            address: 0,
            len: self.bytes as usize,
        };
        let mut pages = Vec::new();
        let words = self.bytes / 8;
        for at in 0..words {
            let word = self
                .map
                .get_atomic_ref::<AtomicU64>(8 * at as usize)
                .map_err(unmapped)?;
            // Most are 0: reading them does not take the cache line from the back-end.
            if word.load(Ordering::Relaxed) != 0 {
                let word = u64::from_le(word.swap(0, Ordering::AcqRel));
                each_bit(at, word, &mut |page| pages.push(page));
            }
        }
        // Of a log that is no multiple of 8 bytes.
        for at in 8 * words..self.bytes {
            let byte = self
                .map
                .get_atomic_ref::<AtomicU8>(at as usize)
                .map_err(unmapped)?;
            let byte = byte.swap(0, Ordering::AcqRel);
            each_bit(0, byte.into(), &mut |bit| pages.push(8 * at + bit));
        }
        Ok(pages)
    }

    /// Cuts its file short, so that marking the pages behind raises SIGBUS: in the back-end, and here as well. It must not be read again.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn truncate(&self, bytes: u64) -> Result<(), Error> {
        rustix::fs::ftruncate(&self.file, bytes).doing("cutting a log short")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemoryLayout;
    use std::os::unix::fs::FileExt;

    #[test]
    fn marks_are_taken_once_each_to_the_last_byte() {
        for bytes in [8, 11, 64, 4097] {
            let log = DirtyLog::new(bytes).unwrap();
            let mut expected = Vec::new();
            for page in [0, 7, 8, 63, 64, 80, 8 * bytes - 1] {
                if page >= 8 * bytes || expected.contains(&page) {
                    continue;
                }
                let mut byte = [0];
                log.file.read_exact_at(&mut byte, page / 8).unwrap();
                byte[0] |= 1 << (page % 8);
                log.file.write_all_at(&byte, page / 8).unwrap();
                expected.push(page);
            }
            assert_eq!(log.take().unwrap(), expected, "{bytes} bytes");
            assert!(log.take().unwrap().is_empty());
        }
    }

    #[test]
    fn a_log_reaches_the_last_page_of_memory_and_grows_with_it() {
        let layout = GuestMemoryLayout::around_pci_hole(1 << 20, 1 << 20);
        let memory = GuestMemory::new(&layout).unwrap();
        let pages = ((1 << 32) + (1 << 20)) / PAGE_BYTES;
        let qemu = DirtyLog::covering(&memory, MessageOrder::Qemu).unwrap();
        assert_eq!(qemu.bytes(), pages / 8);
        let other = DirtyLog::covering(&memory, MessageOrder::CloudHypervisor).unwrap();
        assert_eq!(other.bytes(), pages / 8);
        assert!(other.truncate(0).is_err(), "it is not sealed");
        assert!(qemu.grown(&memory).unwrap().is_none());
        let more = crate::memory::RegionLayout {
            guest_base: 8 << 30,
            size_bytes: 4096,
            memfd: 1,
            mmap_offset_bytes: 0,
        };
        memory.add_region(more).unwrap();
        let needed = (8 << 30) / PAGE_BYTES / 8;
        assert_eq!(
            DirtyLog::bytes_for(&memory, MessageOrder::CloudHypervisor),
            needed + 1
        );
        let grown = qemu.grown(&memory).unwrap().unwrap();
        assert_eq!(grown.bytes(), needed + 8 + SPARE_BYTES);
    }
}
