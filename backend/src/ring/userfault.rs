//! Memory whose missing pages somebody else provides (userfaultfd(2)), as a process has it that serves nothing else.
//!
//! Whoever holds a process's userfaultfd may have any of its memory fault, and fill what was never touched. A front-end gets one, so it must not
//! be the daemon's: the [`pager`](crate::pager) process calls this, for one port. Kept true: only what [`Windows::map`] mapped is touched.

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// linux/userfaultfd.h: faults of the kernel are not of interest, so no privilege is needed.
const USER_MODE_ONLY: libc::c_int = 1;
/// UFFD_API.
const API: u64 = 0xaa;
/// UFFD_FEATURE_MISSING_SHMEM and UFFD_FEATURE_MISSING_HUGETLBFS.
const FEATURES: u64 = 1 << 5 | 1 << 4;
/// UFFDIO_REGISTER_MODE_MISSING.
const MISSING: u64 = 1;
/// _IOWR(UFFDIO, _UFFDIO_API, struct uffdio_api).
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// _IOWR(UFFDIO, _UFFDIO_REGISTER, struct uffdio_register).
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// _IOR(UFFDIO, _UFFDIO_WAKE, struct uffdio_range).
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;

/// Windows that can be mapped: more than memory slots, as one that goes is not unmapped while threads may wait in it.
const MAX_WINDOWS: usize = 4096;

/// A new userfaultfd of this process, for pages of shared memory that are missing.
///
/// # Errors
/// The kernel has none, or not for shared memory.
pub fn open() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | USER_MODE_ONLY;
    // SAFETY: the call takes flags and gives a descriptor or -1.
    let descriptor = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave it to us, and nobody else has it.
    let faults = unsafe { OwnedFd::from_raw_fd(descriptor as libc::c_int) };
    // struct uffdio_api: api, features, ioctls.
    let mut api = [API, 0, 0];
    // SAFETY: UFFDIO_API reads and writes the three words.
    check(unsafe { libc::ioctl(faults.as_raw_fd(), UFFDIO_API, &mut api) })?;
    let [_, features, _] = api;
    if features & FEATURES != FEATURES {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(faults)
}

/// Lets threads go on that wait for a page from `start` on; what the provider of pages does after each.
///
/// # Errors
/// It is no userfaultfd, or the range is none.
pub fn wake(faults: BorrowedFd<'_>, start: u64, bytes: u64) -> io::Result<()> {
    let range = [start, bytes];
    // SAFETY: UFFDIO_WAKE reads the two words of a struct uffdio_range.
    check(unsafe { libc::ioctl(faults.as_raw_fd(), UFFDIO_WAKE, &range) })
}

/// What this process has mapped to be touched. Fixed in size: a process that gave its userfaultfd away had better not allocate.
#[derive(Debug)]
pub struct Windows {
    /// Start and length of each.
    all: [(AtomicU64, AtomicU64); MAX_WINDOWS],
    count: AtomicUsize,
}

impl Windows {
    /// None.
    #[allow(clippy::new_without_default, reason = "it is a constant")]
    pub const fn new() -> Self {
        Self {
            all: [const { (AtomicU64::new(0), AtomicU64::new(0)) }; MAX_WINDOWS],
            count: AtomicUsize::new(0),
        }
    }

    /// Maps `bytes` of `file` from `offset` on at exactly `start`, where nothing is yet, and has missing pages told by `faults`.
    ///
    /// # Errors
    /// What the kernel says, or too many.
    pub fn map(
        &self,
        (file, faults): (BorrowedFd<'_>, BorrowedFd<'_>),
        (start, bytes, offset): (u64, u64, u64),
    ) -> io::Result<()> {
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        let place = start as *mut libc::c_void;
        // SAFETY: MAP_FIXED_NOREPLACE touches nothing that is mapped already.
        let mapped = unsafe {
            libc::mmap(
                place,
                bytes as usize,
                libc::PROT_READ,
                flags,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range was mapped just now. Without huge pages one page is asked for at a time; and guests' memory is not for core dumps.
        // Failing to say so is harmless.
        unsafe {
            libc::madvise(place, bytes as usize, libc::MADV_NOHUGEPAGE);
            libc::madvise(place, bytes as usize, libc::MADV_DONTDUMP);
        }
        // struct uffdio_register: start, length, mode, ioctls.
        let mut register = [start, bytes, MISSING, 0];
        // SAFETY: UFFDIO_REGISTER reads and writes the four words.
        check(unsafe { libc::ioctl(faults.as_raw_fd(), UFFDIO_REGISTER, &mut register) })?;
        let free = self.count.fetch_add(1, Ordering::Relaxed);
        let window = self.all.get(free).ok_or(io::ErrorKind::StorageFull)?;
        window.0.store(start, Ordering::Relaxed);
        window.1.store(bytes, Ordering::Release);
        Ok(())
    }

    /// Reads a byte at `address`, and so waits until its page is there. `false`: it is in no window.
    pub fn touch(&self, address: u64) -> bool {
        let within = |(start, bytes): &(AtomicU64, AtomicU64)| {
            let bytes = bytes.load(Ordering::Acquire);
            address.wrapping_sub(start.load(Ordering::Relaxed)) < bytes
        };
        if !self.all.iter().any(within) {
            return false;
        }
        // SAFETY: the address is inside of a window, and those stay mapped for as long as the process lives. Their pages are other processes'
        // to write, so the read is volatile and its value is not looked at.
        let _ = unsafe { (address as *const u8).read_volatile() };
        true
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::io::{pwrite, read};

    static WINDOWS: Windows = Windows::new();
    const START: u64 = 0x2000_0000_0000;

    #[test]
    fn a_page_that_is_missing_is_waited_for_and_one_that_is_there_is_not() {
        let faults = open().unwrap();
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 4 << 12).unwrap();
        pwrite(&file, &[1], 0).unwrap();
        let both = (file.as_fd(), faults.as_fd());
        WINDOWS.map(both, (START, 4 << 12, 0)).unwrap();
        assert!(WINDOWS.map(both, (START, 1 << 12, 0)).is_err());
        assert!(WINDOWS.touch(START + 5));
        assert!(!WINDOWS.touch(START + (4 << 12)) && !WINDOWS.touch(0));
        let waiting = std::thread::spawn(|| WINDOWS.touch(START + (2 << 12) + 9));
        // struct uffd_msg: an event of type 0x12, whose address is its third word.
        let mut event = [0; 32];
        assert_eq!(read(&faults, &mut event).unwrap(), 32);
        assert_eq!(event[0], 0x12);
        let address = u64::from_ne_bytes(event[16..24].try_into().unwrap());
        assert_eq!(address, START + (2 << 12));
        assert!(!waiting.is_finished());
        pwrite(&file, &[7; 4096], 2 << 12).unwrap();
        wake(faults.as_fd(), address, 1 << 12).unwrap();
        assert!(waiting.join().unwrap());
    }
}
