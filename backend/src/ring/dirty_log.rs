//! The log of a migration: a bit for each page of a VM's memory that was written (vhost-user: Migration).
//!
//! A front-end that moves a VM shares a bitmap (SET_LOG_BASE), reads and clears it round by round, and copies the pages it finds. A
//! [`GuestMemory`] knows its [`DirtyLog`]; each ring collects what it wrote in its [`Marks`] and tells the log once a batch.
//! Kept true: a page is marked after what was written to it can be seen, or its last copy could lack that; a bit is looked at
//! only after a full fence, for the same reason; nothing beyond the bitmap is touched.

use super::guest_memory::{GuestMemory, RegionWindow};
use super::mapping::{MapFault, Mapping};
use super::stitch::Stitch;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Bytes that a bit stands for (vhost-user: Migration).
const PAGE_SHIFT: u32 = 12;
/// Bytes that a log may have: a bit a page of the largest memory a VM may share.
const MAX_LOG_BYTES: u64 = 256 << 20;
/// Runs of pages that wait in a ring's [`Marks`]: a batch of short frames.
const RUNS: usize = 64;

/// Where the log is in its file (vhost-user: Log description).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLayout {
    /// Bytes of the bitmap.
    pub size_bytes: u64,
    /// Where it starts in its file; a multiple of 8.
    pub mmap_offset: u64,
}

/// Why a log was refused.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No bitmap has this size or place.
    #[error(
        "a migration log of {size_bytes:#x} bytes at offset {mmap_offset:#x} cannot be: it has 1 byte to 256 MiB, at a multiple of 8"
    )]
    BadLayout {
        /// Asked for.
        size_bytes: u64,
        /// Asked for.
        mmap_offset: u64,
    },
    /// The file ends before the log does.
    #[error(
        "the file of the migration log has {file_bytes:#x} bytes, {needed_bytes:#x} are needed"
    )]
    FileTooShort {
        /// What the file has.
        file_bytes: u64,
        /// Offset plus size.
        needed_bytes: u64,
    },
    /// A page fault in such a file could wait for somebody else for ever.
    #[error("the migration log is not in a memory file: let the hypervisor use memfd")]
    NotMemory,
    /// No address space is left.
    #[error("the migration log does not fit: all guests' memory together takes too much")]
    TooMuch,
    /// The kernel refused.
    #[error("cannot map the migration log: {0}")]
    Map(io::Error),
}

/// What was counted since logging began; outlives a log that is replaced by the next.
#[derive(Debug, Default)]
pub struct LogCounts {
    pages_marked: AtomicU64,
    rounds: AtomicU64,
    overrun: AtomicBool,
}

impl LogCounts {
    /// Pages whose bit was set that was clear.
    pub fn pages_marked(&self) -> u64 {
        self.pages_marked.load(Ordering::Relaxed)
    }

    /// How often the front-end was seen to have read the log out: it cleared a bit that is watched, or shared another log.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Whether a page was written that the log has no bit for.
    pub fn has_overrun(&self) -> bool {
        self.overrun.load(Ordering::Relaxed)
    }

    /// The front-end shared another log.
    pub fn begin_round(&self) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// No page is watched yet.
const NO_PAGE: u64 = u64::MAX;

/// A mapped log.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: Mapping,
    words: NonNull<u64>,
    /// Bits it has.
    pages: u64,
    /// The first page that was marked: when its bit is found clear again, the front-end has read the log.
    watched: AtomicU64,
    counts: Arc<LogCounts>,
}

// SAFETY: `words` points into `mapping`, which lives as long; all access is atomic.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Maps the log. What is counted is added to `counts`.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn map(
        layout: LogLayout,
        file: OwnedFd,
        counts: Arc<LogCounts>,
    ) -> Result<Arc<Self>, LogError> {
        let LogLayout {
            size_bytes,
            mmap_offset,
        } = layout;
        let ends = mmap_offset.checked_add(size_bytes);
        let valid = (1..=MAX_LOG_BYTES).contains(&size_bytes)
            && mmap_offset.is_multiple_of(8)
            && ends.is_some_and(|end| end <= i64::MAX as u64);
        if !valid {
            return Err(LogError::BadLayout {
                size_bytes,
                mmap_offset,
            });
        }
        let mapping = Mapping::new(file, mmap_offset, size_bytes).map_err(|fault| match fault {
            MapFault::TooShort {
                file_bytes,
                needed_bytes,
            } => LogError::FileTooShort {
                file_bytes,
                needed_bytes,
            },
            MapFault::NotMemory => LogError::NotMemory,
            MapFault::TooMuch => LogError::TooMuch,
            MapFault::Kernel(source) => LogError::Map(source),
        })?;
        Ok(Arc::new(Self {
            words: mapping.host().cast(),
            mapping,
            pages: size_bytes * 8,
            watched: AtomicU64::new(NO_PAGE),
            counts,
        }))
    }

    /// Another descriptor of its file.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.mapping.share_file()
    }

    /// Counts since logging began.
    pub fn counts(&self) -> &Arc<LogCounts> {
        &self.counts
    }

    /// Whether its file was truncated under us.
    pub(super) fn is_lost(&self) -> bool {
        self.mapping.is_lost()
    }

    /// Marks the pages from `first` to `last`. Called after a full fence behind what was written.
    fn mark(&self, first: u64, last: u64) {
        let Some(end) = self.pages.checked_sub(1) else {
            return;
        };
        if last > end {
            self.counts.overrun.store(true, Ordering::Relaxed);
        }
        let last = last.min(end);
        let mut page = first;
        while page <= last {
            let word_last = last.min(page | 63);
            let bits = u64::MAX >> (63 - (word_last - page)) << (page % 64);
            self.set(page / 64, bits);
            page = word_last + 1;
        }
    }

    /// Sets bits of one word, unless they are set: most pages are written many times a round, and others may read the log meanwhile.
    #[inline]
    fn set(&self, word: u64, bits: u64) {
        // SAFETY: `word` holds at least one page below `pages` (`mark`), so it begins inside the bitmap. That is in whole pages of
        // memory, at a multiple of 8 (both upheld by `map`), so all eight bytes are mapped. Bits past the bitmap's end are never set.
        let word_at = unsafe { AtomicU64::from_ptr(self.words.as_ptr().add(word as usize)) };
        if word_at.load(Ordering::Relaxed) & bits == bits {
            return;
        }
        // The front-end's own order: what it does between reading this word and copying the pages is after this mark or before.
        let new = bits & !word_at.fetch_or(bits, Ordering::SeqCst);
        self.count(word, new);
    }

    fn count(&self, word: u64, new: u64) {
        if new == 0 {
            return;
        }
        let pages = u64::from(new.count_ones());
        self.counts.pages_marked.fetch_add(pages, Ordering::Relaxed);
        let first = word * 64 + u64::from(new.trailing_zeros());
        match self.watched.load(Ordering::Relaxed) {
            NO_PAGE => self.watched.store(first, Ordering::Relaxed),
            watched if watched / 64 == word && new & 1 << (watched % 64) != 0 => {
                self.counts.begin_round();
            }
            _ => {}
        }
    }
}

/// Pages from the first to the last.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    last: u64,
}

/// What a ring wrote and has not told the log. Without a log it is nothing at all.
#[derive(Debug, Default)]
pub struct Marks(Option<Box<Logged>>);

#[derive(Debug)]
struct Logged {
    memory: Arc<GuestMemory>,
    /// What the ring has mapped once more.
    stitches: Vec<Arc<Stitch>>,
    log: Arc<DirtyLog>,
    /// The region that was written last: the next write nearly always is there, too.
    window: RegionWindow,
    runs: [Run; RUNS],
    count: usize,
}

impl Marks {
    /// Nothing written yet to `memory`.
    pub(super) fn new(memory: &Arc<GuestMemory>, stitches: &[Arc<Stitch>]) -> Self {
        Self(memory.log().map(|log| {
            Box::new(Logged {
                memory: Arc::clone(memory),
                stitches: stitches.to_vec(),
                log: Arc::clone(log),
                window: RegionWindow::NONE,
                runs: [Run { first: 0, last: 0 }; RUNS],
                count: 0,
            })
        }))
    }

    /// Whether writes are logged.
    #[inline(always)]
    pub(super) fn are_on(&self) -> bool {
        self.0.is_some()
    }

    /// `len` bytes at `host`, in one region, were written.
    #[inline(always)]
    pub(super) fn wrote(&mut self, host: *const u8, len: usize) {
        if let Some(logged) = &mut self.0 {
            logged.wrote(host, len as u64);
        }
    }

    /// Tells the log of everything written so far.
    #[inline(always)]
    pub(super) fn flush(&mut self) {
        if let Some(logged) = &mut self.0 {
            fence(Ordering::SeqCst);
            logged.tell();
        }
    }

    /// [`Self::flush`] right behind a full fence of the caller's.
    #[inline(always)]
    pub(super) fn flush_fenced(&mut self) {
        if let Some(logged) = &mut self.0 {
            logged.tell();
        }
    }
}

impl Drop for Marks {
    /// A ring that breaks off in the middle of a batch has written all the same.
    fn drop(&mut self) {
        self.flush();
    }
}

impl Logged {
    fn wrote(&mut self, host: *const u8, len: u64) {
        let guest = self.window.guest_of(host).or_else(|| {
            self.window = self.memory.window_of_host(host)?;
            self.window.guest_of(host)
        });
        let (Some(guest), Some(more)) = (guest, len.checked_sub(1)) else {
            return self.wrote_stitched(host, len);
        };
        let (first, last) = (
            guest >> PAGE_SHIFT,
            guest.saturating_add(more) >> PAGE_SHIFT,
        );
        let before = self
            .count
            .checked_sub(1)
            .and_then(|at| self.runs.get_mut(at));
        match before {
            // Buffers mostly follow each other.
            Some(run) if run.first <= first && first <= run.last + 1 => {
                run.last = run.last.max(last)
            }
            _ => self.add(Run { first, last }),
        }
    }

    /// The same for what is no region, but pages of some; anything else is nothing that a migration would copy.
    #[cold]
    fn wrote_stitched(&mut self, mut host: *const u8, mut len: u64) {
        while len > 0 {
            let mut stitches = self.stitches.iter();
            let Some((origin, room)) = stitches.find_map(|stitch| stitch.origin(host)) else {
                return;
            };
            let now = len.min(room as u64);
            // Only what lies in a region is gone on with, so this ends.
            if self.memory.window_of_host(origin).is_some() {
                self.wrote(origin, now);
            }
            host = host.wrapping_add(now as usize);
            len -= now;
        }
    }

    fn add(&mut self, run: Run) {
        if self.count == RUNS {
            fence(Ordering::SeqCst);
            self.tell();
        }
        if let Some(slot) = self.runs.get_mut(self.count) {
            *slot = run;
            self.count += 1;
        }
    }

    fn tell(&mut self) {
        for run in self.runs.iter().take(self.count) {
            self.log.mark(run.first, run.last);
        }
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::guest_memory::RegionLayout;
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::io::{pread, pwrite};

    fn memfd(bytes: u64) -> OwnedFd {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, bytes).unwrap();
        fd
    }

    fn log(file: &OwnedFd, size_bytes: u64, mmap_offset: u64) -> Result<Arc<DirtyLog>, LogError> {
        let layout = LogLayout {
            size_bytes,
            mmap_offset,
        };
        DirtyLog::map(layout, file.try_clone().unwrap(), Arc::default())
    }

    fn bits(file: &OwnedFd, at: u64, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        assert_eq!(pread(file, &mut read, at).unwrap(), bytes);
        read
    }

    #[test]
    fn a_run_of_pages_is_its_bits_and_nothing_past_the_end() {
        let file = memfd(4096);
        let log = log(&file, 21, 8).unwrap();
        log.mark(3, 3);
        log.mark(62, 65);
        log.mark(120, 400);
        let mut expected = [0u8; 4096];
        let mut set = |page: usize| expected[8 + page / 8] |= 1 << (page % 8);
        set(3);
        (62..=65).for_each(&mut set);
        (120..21 * 8).for_each(&mut set);
        assert_eq!(bits(&file, 0, 4096), expected);
        assert!(log.counts().has_overrun());
        assert_eq!(log.counts().pages_marked(), 1 + 4 + 48);
    }

    #[test]
    fn a_bit_that_was_read_out_is_set_again_and_tells_a_round() {
        let file = memfd(64);
        let log = log(&file, 64, 0).unwrap();
        for round in 0..5 {
            for _ in 0..3 {
                log.mark(17, 17);
                log.mark(9, 10);
            }
            assert_eq!(bits(&file, 0, 3), [0, 0b110, 0b10]);
            assert_eq!(log.counts().rounds(), round);
            pwrite(&file, &[0; 64], 0).unwrap();
        }
        assert_eq!(log.counts().pages_marked(), 5 * 3);
    }

    #[test]
    fn logs_that_cannot_be_are_refused() {
        let file = memfd(4096);
        for (size, offset) in [
            (0, 0),
            (4097, 0),
            (8, 4096),
            (8, 4),
            (u64::MAX, 0),
            (8, u64::MAX - 7),
            (MAX_LOG_BYTES + 1, 0),
        ] {
            assert!(
                log(&file, size, offset).is_err(),
                "{size:#x} at {offset:#x}"
            );
        }
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(matches!(log(&reader, 8, 0), Err(LogError::NotMemory)));
    }

    #[test]
    fn what_a_ring_wrote_is_found_in_every_region() {
        let file = memfd(4096);
        let region = |guest_phys_addr: u64| RegionLayout {
            guest_phys_addr,
            size_bytes: 0x4000,
            user_addr: 0x7f00_0000_0000 + guest_phys_addr,
            mmap_offset: 0,
        };
        let starts = [0x2000u64, 0x10_0000];
        let regions = starts.map(|start| (region(start), memfd(0x4000)));
        let memory = GuestMemory::map(regions.into()).unwrap();
        assert!(!Marks::new(&memory, &[]).are_on());
        let memory = memory.with_log(Some(log(&file, 4096, 0).unwrap()));
        let mut marks = Marks::new(&memory, &[]);
        let host = |addr: u64| memory.window(addr).unwrap().at(addr).unwrap().0.as_ptr();
        for round in 0..40 {
            // More runs than wait at a time, in both regions, across pages.
            marks.wrote(host(0x2fff), 2 + round);
            marks.wrote(host(0x10_3ffc), 4);
        }
        marks.wrote(&raw const ELSEWHERE, 1);
        drop(marks);
        let mut expected = [0u8; 64];
        for page in [2, 3, 0x103] {
            expected[page / 8] |= 1 << (page % 8);
        }
        assert_eq!(bits(&file, 0, 64), expected);
    }

    /// What is no guest's memory.
    static ELSEWHERE: u8 = 0;
}
