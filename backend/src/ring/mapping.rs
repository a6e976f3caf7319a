//! A piece of a front-end's memory file, mapped into this process.
//!
//! [`guest_memory`](super::guest_memory) maps the regions of a VM, [`dirty_log`](super::dirty_log) the log of a migration. Kept true: what is mapped
//! cannot hang us, cannot end us when its file is cut short, and leaves address space for everybody else.

use super::sigbus::Watch;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

/// Address space that all VMs' memory may take: half of what a process has on x86-64. Sparse files cost nothing, so without
/// bounds one front-end could leave no room for anybody's next mapping.
pub(super) const MAX_TOTAL_BYTES: u64 = 64 << 40;
/// What is mapped now, over all ports.
static TOTAL_BYTES: AtomicU64 = AtomicU64::new(0);

/// Why a file was not mapped.
#[derive(Debug)]
pub(super) enum MapFault {
    /// It ends before the piece does.
    TooShort { file_bytes: u64, needed_bytes: u64 },
    /// A page fault in such a file could wait for somebody else for ever.
    NotMemory,
    /// No address space is left.
    TooMuch,
    /// The kernel refused to describe or map it.
    Kernel(io::Error),
}

/// Which file a mapping is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileIdentity {
    /// st_dev.
    pub(super) device: u64,
    /// st_ino.
    pub(super) inode: u64,
}

/// A shared, writable mapping.
#[derive(Debug)]
pub(super) struct Mapping {
    /// Dropped before the mapping is undone: the handler must not look at an address range that is no longer ours.
    watch: Watch,
    region: MmapRegion,
    _share: Share,
    file: FileIdentity,
    /// Where the piece that was asked for starts in the mapping.
    skipped_bytes: usize,
}

impl Mapping {
    /// Maps `size_bytes` bytes of `file` from `offset` on. `offset + size_bytes` is a number (checked by the caller).
    pub(super) fn new(file: OwnedFd, offset: u64, size_bytes: u64) -> Result<Self, MapFault> {
        let kernel = |error: rustix::io::Errno| MapFault::Kernel(error.into());
        // Only files in memory have seals. On FUSE or a network file system, a fault (or a look at the file) waits for whoever
        // serves it.
        if rustix::fs::fcntl_get_seals(&file).is_err() {
            return Err(MapFault::NotMemory);
        }
        let system = rustix::fs::fstatfs(&file).map_err(kernel)?;
        let stat = rustix::fs::fstat(&file).map_err(kernel)?;
        let file_bytes = stat.st_size as u64;
        let needed_bytes = offset + size_bytes;
        if file_bytes < needed_bytes {
            return Err(MapFault::TooShort {
                file_bytes,
                needed_bytes,
            });
        }
        // A huge page file maps whole huge pages only, while QEMU's regions start where the PC's holes end.
        let page_bytes = (system.f_bsize as u64).max(4096).next_power_of_two();
        let file_start = offset & !(page_bytes - 1);
        let map_bytes = (needed_bytes - file_start).next_multiple_of(page_bytes);
        let share = Share::take(map_bytes).ok_or(MapFault::TooMuch)?;
        let region = MmapRegionBuilder::new(map_bytes as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(File::from(file), file_start))
            .build()
            .map_err(|error| MapFault::Kernel(io::Error::other(error)))?;
        let base = region.as_ptr();
        // SAFETY: the range is exactly the mapping made above. Guests' memory does not belong in our core dumps; failing to
        // say so is harmless.
        unsafe { libc::madvise(base.cast(), region.size(), libc::MADV_DONTDUMP) };
        let watch = Watch::new(base as usize, region.size()).map_err(MapFault::Kernel)?;
        Ok(Self {
            watch,
            region,
            _share: share,
            file: FileIdentity {
                device: stat.st_dev,
                inode: stat.st_ino,
            },
            skipped_bytes: (offset - file_start) as usize,
        })
    }

    /// Host address of the piece's first byte; as many bytes as were asked for follow, for as long as the mapping lives.
    pub(super) fn host(&self) -> NonNull<u8> {
        // SAFETY: the mapping starts at `file_start <= offset` and reaches at least to `needed_bytes` (`new`); mmap never returns
        // null without MAP_FIXED.
        unsafe { NonNull::new_unchecked(self.region.as_ptr().add(self.skipped_bytes)) }
    }

    /// All that is mapped, the piece in it: from a page's first byte on.
    pub(super) fn whole(&self) -> (NonNull<u8>, u64) {
        // SAFETY: mmap never returns null without MAP_FIXED.
        let start = unsafe { NonNull::new_unchecked(self.region.as_ptr()) };
        (start, self.region.size() as u64)
    }

    /// Where that starts in the file.
    pub(super) fn file_start(&self) -> u64 {
        self.region.file_offset().map_or(0, FileOffset::start)
    }

    /// Whether this process could open the file to write to it. Of others, the kernel does not tell what is in memory.
    pub(super) fn is_writable_by_name(&self) -> bool {
        let by_name = |file: &FileOffset| {
            let path = format!("/proc/self/fd/{}", file.file().as_raw_fd());
            let flags = rustix::fs::AtFlags::EACCESS;
            rustix::fs::accessat(rustix::fs::CWD, path, rustix::fs::Access::WRITE_OK, flags)
        };
        let file = self.region.file_offset();
        file.is_some_and(|file| by_name(file).is_ok())
    }

    /// In which file the byte at a host address is, and where.
    pub(super) fn file_at(&self, host: NonNull<u8>) -> Option<(&File, u64)> {
        let offset = (host.as_ptr() as usize).wrapping_sub(self.region.as_ptr() as usize);
        let file = self
            .region
            .file_offset()
            .filter(|_| offset < self.region.size())?;
        Some((file.file(), file.start() + offset as u64))
    }

    /// The file it is of.
    pub(super) fn file(&self) -> FileIdentity {
        self.file
    }

    /// Another descriptor of that file.
    pub(super) fn share_file(&self) -> io::Result<OwnedFd> {
        let file = self.region.file_offset();
        let file = file.ok_or_else(|| io::Error::other("a mapping without its file"))?;
        file.file().try_clone().map(OwnedFd::from)
    }

    /// Whether the file was truncated under us.
    pub(super) fn is_lost(&self) -> bool {
        self.watch.is_lost()
    }
}

/// A part of [`MAX_TOTAL_BYTES`], given back when dropped.
#[derive(Debug)]
struct Share(u64);

impl Share {
    fn take(bytes: u64) -> Option<Self> {
        let fits = |total: u64| Some(total + bytes).filter(|sum| *sum <= MAX_TOTAL_BYTES);
        TOTAL_BYTES
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .ok()
            .map(|_| Self(bytes))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        TOTAL_BYTES.fetch_sub(self.0, Ordering::Relaxed);
    }
}
