//! Pages of a guest's memory that are still on their way (vhost-user: postcopy).
//!
//! After a migration's switch to postcopy a VM runs before all its memory is here. To touch a page that is not there would put zeroes in its
//! place, which the front-end could not replace any more. So whoever looks up an address learns first whether its page is there; one that is
//! not is noted here once, however often it is missed, and the device thread, woken by [`MissingPages::bell`], has the port's
//! [`pager`](crate::pager) fetch it.
//!
//! Kept true: a page is touched only after it was seen, and one that was seen does not go again; nobody waits here; what is noted is bounded.

use rustix::event::{EventfdFlags, eventfd};
use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is missing or not: the smallest page.
pub(super) const PAGE_BYTES: u64 = 4096;
/// Pages of a word of the map of those that are there.
const PAGES_OF_WORD: u64 = u64::BITS as u64;
/// Questions that wait for an answer or for somebody to hear it.
const MAX_ASKED: usize = 1024;

#[derive(Debug, Default)]
struct State {
    asked: HashSet<u64>,
    unsent: VecDeque<u64>,
}

/// A port's questions for pages, each named by its address in the pager.
#[derive(Debug)]
pub struct MissingPages {
    state: Mutex<State>,
    bell: OwnedFd,
}

impl MissingPages {
    /// Nothing is asked for.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Rings when there are questions.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Has it be silent until there is one more question.
    pub fn silence(&self) {
        // Nothing to be read is as good as read.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// The next page to be fetched.
    pub fn next(&self) -> Option<u64> {
        self.lock().unsent.pop_front()
    }

    fn ask(&self, page: u64) {
        let mut state = self.lock();
        // One that finds no room is asked for again when something came.
        if state.asked.len() < MAX_ASKED && state.asked.insert(page) {
            state.unsent.push_back(page);
            if state.unsent.len() == 1 {
                // A full counter rings as well.
                let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
            }
        }
    }

    fn answered(&self, page: u64) {
        self.lock().asked.remove(&page);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which pages of one mapping are there.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// A bit for each page that was seen.
    seen: Vec<AtomicU64>,
    /// The mapping in this process.
    host: NonNull<u8>,
    bytes: u64,
    /// The mapping in the pager.
    pager: u64,
    /// The kernel tells whether a page of the file is there.
    can_look: bool,
    missing: Arc<MissingPages>,
}

// SAFETY: the address is of a shared mapping that whoever holds this holds as well (`guest_memory`); it is only asked about.
unsafe impl Send for Arrivals {}
// SAFETY: as above; what changes is atomic.
unsafe impl Sync for Arrivals {}

impl Arrivals {
    /// None was seen yet of `bytes` from `host` on, a page's first byte, which the pager has at `pager`. `can_look`: the file is one that this
    /// process may write to by name; of others mincore(2) says that all pages are there.
    pub(super) fn new(
        (host, bytes): (NonNull<u8>, u64),
        pager: u64,
        can_look: bool,
        missing: &Arc<MissingPages>,
    ) -> Self {
        let words = bytes.div_ceil(PAGE_BYTES * PAGES_OF_WORD);
        Self {
            seen: (0..words).map(|_| AtomicU64::new(0)).collect(),
            host,
            bytes,
            pager,
            can_look,
            missing: Arc::clone(missing),
        }
    }

    /// Host addresses in one piece around `host` that may be touched, as start and end; otherwise it is asked for.
    pub(super) fn around(&self, host: NonNull<u8>) -> Option<(u64, u64)> {
        let base = self.host.as_ptr() as u64;
        let page = (host.as_ptr() as u64).checked_sub(base)? / PAGE_BYTES;
        let (word, bit) = (page / PAGES_OF_WORD, page % PAGES_OF_WORD);
        let mut seen = self.seen.get(word as usize)?.load(Ordering::Relaxed);
        if seen & 1 << bit == 0 {
            seen = self.look(word);
        }
        if seen & 1 << bit == 0 {
            self.missing.ask(self.pager + page * PAGE_BYTES);
            return None;
        }
        let below = (seen << (PAGES_OF_WORD - 1 - bit)).leading_ones();
        let above = (seen >> bit).trailing_ones();
        let first = base + (page + 1 - u64::from(below)) * PAGE_BYTES;
        Some((first, base + (page + u64::from(above)) * PAGE_BYTES))
    }

    /// Looks which pages of a word have come.
    fn look(&self, word: u64) -> u64 {
        let Some(known) = self.seen.get(word as usize) else {
            return 0;
        };
        let first = word * PAGES_OF_WORD * PAGE_BYTES;
        let bytes = (PAGES_OF_WORD * PAGE_BYTES).min(self.bytes.saturating_sub(first));
        let mut resident = [0u8; PAGES_OF_WORD as usize];
        if self.can_look && bytes > 0 {
            let start = self.host.as_ptr().wrapping_add(first as usize);
            // SAFETY: mincore writes a byte for each page of a range that is inside the mapping; there are no more of them than bytes.
            let told =
                unsafe { libc::mincore(start.cast(), bytes as usize, resident.as_mut_ptr()) };
            if told != 0 {
                resident = [0; PAGES_OF_WORD as usize];
            }
        }
        let bits = (0..).zip(resident);
        let bits = bits.fold(0, |bits, (at, page)| bits | u64::from(page & 1) << at);
        known.fetch_or(bits, Ordering::Relaxed) | bits
    }

    /// The pager saw a page; whether it is one of these.
    pub(super) fn arrived(&self, page: u64) -> bool {
        let offset = page.wrapping_sub(self.pager);
        if offset >= self.bytes {
            return false;
        }
        let page_number = offset / PAGE_BYTES;
        if let Some(word) = self.seen.get((page_number / PAGES_OF_WORD) as usize) {
            word.fetch_or(1 << (page_number % PAGES_OF_WORD), Ordering::Relaxed);
        }
        self.missing.answered(page);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::mapping::Mapping;
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::io::pwrite;

    const PAGER: u64 = 0x1000_0000_0000;

    fn mapped(pages: u64, can_look: bool) -> (OwnedFd, Mapping, Arrivals, Arc<MissingPages>) {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, pages * PAGE_BYTES).unwrap();
        let mapping = Mapping::new(file.try_clone().unwrap(), 0, pages * PAGE_BYTES).unwrap();
        let missing = Arc::new(MissingPages::new().unwrap());
        let whole = (mapping.host(), pages * PAGE_BYTES);
        let arrivals = Arrivals::new(whole, PAGER, can_look, &missing);
        (file, mapping, arrivals, missing)
    }

    #[test]
    fn only_pages_that_are_there_may_be_touched_and_the_others_are_asked_for_once() {
        let (file, mapping, arrivals, missing) = mapped(200, true);
        for page in [3, 4, 5, 63, 64, 199] {
            pwrite(&file, &[1; PAGE_BYTES as usize], page * PAGE_BYTES).unwrap();
        }
        let base = mapping.host().as_ptr() as u64;
        let at = |page: u64| {
            let host = mapping
                .host()
                .as_ptr()
                .wrapping_add((page * PAGE_BYTES) as usize + 7);
            let around = arrivals.around(NonNull::new(host).unwrap());
            around.map(|(start, end)| ((start - base) / PAGE_BYTES, (end - base) / PAGE_BYTES))
        };
        assert_eq!(at(4), Some((3, 6)));
        assert_eq!(
            (at(63), at(64), at(199)),
            (Some((63, 64)), Some((64, 65)), Some((199, 200)))
        );
        assert_eq!((at(6), at(6), at(150)), (None, None, None));
        assert_eq!(missing.next(), Some(PAGER + 6 * PAGE_BYTES));
        assert_eq!(missing.next(), Some(PAGER + 150 * PAGE_BYTES));
        assert_eq!(missing.next(), None);
        // It came, and is noticed without the pager; or with it.
        pwrite(&file, &[1; PAGE_BYTES as usize], 6 * PAGE_BYTES).unwrap();
        assert_eq!(at(6), Some((3, 7)));
        assert!(arrivals.arrived(PAGER + 150 * PAGE_BYTES));
        assert!(!arrivals.arrived(PAGER + 200 * PAGE_BYTES) && !arrivals.arrived(0));
        assert_eq!(at(150), Some((150, 151)));
        assert_eq!(missing.next(), None);
    }

    #[test]
    fn a_file_whose_pages_cannot_be_looked_at_has_each_fetched() {
        let (file, mapping, arrivals, missing) = mapped(2, false);
        pwrite(&file, &[1; 2 * PAGE_BYTES as usize], 0).unwrap();
        assert_eq!(arrivals.around(mapping.host()), None);
        assert_eq!(missing.next(), Some(PAGER));
        assert!(arrivals.arrived(PAGER));
        assert!(arrivals.around(mapping.host()).is_some());
    }

    #[test]
    fn questions_are_bounded_and_ring_once() {
        let (_file, mapping, arrivals, missing) = mapped(3000, true);
        for page in 0..3000 {
            let host = mapping.host().as_ptr().wrapping_add(page << 12);
            assert_eq!(arrivals.around(NonNull::new(host).unwrap()), None);
        }
        let mut rung = [0; 8];
        rustix::io::read(missing.bell(), &mut rung).unwrap();
        assert_eq!(u64::from_ne_bytes(rung), 1);
        assert_eq!(std::iter::from_fn(|| missing.next()).count(), MAX_ASKED);
        assert!(arrivals.arrived(PAGER));
        let host = mapping.host().as_ptr().wrapping_add(2999 << 12);
        assert_eq!(arrivals.around(NonNull::new(host).unwrap()), None);
        assert_eq!(missing.next(), Some(PAGER + (2999 << 12)));
    }
}
