//! What a guest's virtual IOMMU lets its device reach (vhost-user: IOMMU support).
//!
//! With VIRTIO_F_ACCESS_PLATFORM the addresses of rings and buffers are I/O virtual addresses (IOVAs). The front-end knows what they stand
//! for, and tells it piece by piece: the device thread puts that in here and takes it out again; workers look it up. What is not here
//! is asked for: it is noted once, however often it is missed, the device thread hears of it by [`Iotlb::bell`] and sends it on.
//!
//! Kept true: nobody waits here for an answer; entries, and questions that wait, are bounded whatever guest and front-end do. Whoever takes an
//! entry out has the rings forget it as well ([`Ring::forget_translations`](super::Ring::forget_translations)) before saying so.

use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{PoisonError, RwLock};

/// Translations kept: 256 MiB in pages of 4 KiB, which is how QEMU tells them.
const MAX_ENTRIES: usize = 64 << 10;
/// Taken out at a time to make room.
const EVICTED: usize = MAX_ENTRIES / 16;
/// Questions that wait for an answer or for somebody to hear it.
const MAX_ASKED: usize = 1024;
/// What a question is about: the smallest page an IOMMU has.
pub(super) const PAGE_BYTES: u64 = 4096;

/// What a device does at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Access {
    /// It reads there.
    Read,
    /// It writes there.
    Write,
}

/// What IOVAs stand for (vhost-user: IOTLB message).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translation {
    /// The first IOVA.
    pub iova: u64,
    /// How many follow, it included; not 0, and the last one is a number.
    pub size_bytes: u64,
    /// What the first stands for, in the front-end's address space.
    pub user_addr: u64,
    /// The device may read there.
    pub readable: bool,
    /// The device may write there.
    pub writable: bool,
}

impl Translation {
    /// Itself, if it is one: not empty, of permissions at all, and with a last address on both sides.
    pub fn checked(self) -> Option<Self> {
        let more = self.size_bytes.checked_sub(1)?;
        self.iova.checked_add(more)?;
        self.user_addr.checked_add(more)?;
        (self.readable || self.writable).then_some(self)
    }

    fn last(&self) -> u64 {
        self.iova.saturating_add(self.size_bytes.saturating_sub(1))
    }

    fn permits(&self, access: Access) -> bool {
        match access {
            Access::Read => self.readable,
            Access::Write => self.writable,
        }
    }
}

/// A question for the front-end: what this page stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// The page's first IOVA.
    pub iova: u64,
    /// What is to be done there.
    pub access: Access,
    /// Tells it from an earlier question about the same.
    number: u64,
}

impl Miss {
    /// The same as a question that nobody asked here: an answer to it says nothing.
    pub fn forgotten(self) -> Self {
        Self { number: 0, ..self }
    }
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTranslation {
    /// It was asked for.
    Pending,
    /// The front-end says that there is none.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Question {
    number: u64,
    /// The answer was no, and nobody has heard it yet.
    is_refused: bool,
    /// It was asked for a driver that is gone: whether it is refused says nothing.
    is_stale: bool,
}

#[derive(Debug, Default)]
struct State {
    /// By first IOVA, without overlaps.
    entries: BTreeMap<u64, Translation>,
    asked: BTreeMap<(u64, Access), Question>,
    unsent: VecDeque<Miss>,
    questions: u64,
    /// Where room is made next.
    evict_from: u64,
}

/// A port's translations.
#[derive(Debug)]
pub struct Iotlb {
    state: RwLock<State>,
    bell: OwnedFd,
}

impl Iotlb {
    /// Knows nothing.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: RwLock::default(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Rings when there are questions to be sent.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Has it be silent until there is one more question.
    pub fn silence(&self) {
        // Nothing to be read is as good as read.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// The translation that holds `iova` and permits `access`; what is missing is asked for.
    pub(super) fn find(&self, iova: u64, access: Access) -> Result<Translation, NoTranslation> {
        if let Some(found) = self.known(iova)
            && found.permits(access)
        {
            return Ok(found);
        }
        let mut state = self.write();
        match state.holding(iova) {
            Some(found) if found.permits(access) => Ok(found),
            // Some IOMMUs tell of what was asked for alone, so one that does not permit this may be asked once more.
            _ => Err(state.ask(iova & !(PAGE_BYTES - 1), access, &self.bell)),
        }
    }

    /// The translation that holds `iova`, without asking.
    pub(super) fn known(&self, iova: u64) -> Option<Translation> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.holding(iova)
    }

    /// Every translation.
    pub fn all(&self) -> Vec<Translation> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.entries.values().copied().collect()
    }

    /// Keeps a translation. Whether others had to go: those that said otherwise, or to make room.
    pub fn insert(&self, mut new: Translation) -> bool {
        let mut state = self.write();
        if let Some(same) = state.entries.get_mut(&new.iova)
            && (same.size_bytes, same.user_addr) == (new.size_bytes, new.user_addr)
        {
            new.readable |= same.readable;
            new.writable |= same.writable;
            *same = new;
            state.answer(&new);
            return false;
        }
        let displaced = state.remove(new.iova, new.last());
        let evicted = state.entries.len() >= MAX_ENTRIES && state.evict();
        state.entries.insert(new.iova, new);
        state.answer(&new);
        displaced || evicted
    }

    /// Forgets every translation that reaches into `first..=last`; whether there was one.
    pub fn remove(&self, first: u64, last: u64) -> bool {
        self.write().remove(first, last)
    }

    /// The next question to send.
    pub fn next_miss(&self) -> Option<Miss> {
        let mut state = self.write();
        let miss = state.unsent.pop_front();
        if miss.is_none() {
            self.silence();
        }
        miss
    }

    /// The front-end's answer to a question. A translation that it found came before.
    pub fn answered(&self, miss: Miss, found: bool) {
        let mut state = self.write();
        let key = (miss.iova, miss.access);
        match state.asked.get_mut(&key) {
            Some(question) if question.number == miss.number && !found && !question.is_stale => {
                question.is_refused = true;
            }
            // Found, and taken away again: whoever needs it asks anew.
            Some(question) if question.number == miss.number => {
                state.asked.remove(&key);
            }
            _ => {}
        }
    }

    /// Forgets answers that nobody heard: a driver that begins anew may have mapped there what the one before had not. An answer that is still
    /// to come counts neither; who needs to know asks again.
    pub fn forget_refusals(&self) {
        let mut state = self.write();
        state.asked.retain(|_, question| !question.is_refused);
        // Those that are not sent yet as well: the driver may unmap it before they are.
        for question in state.asked.values_mut() {
            question.is_stale = true;
        }
    }

    /// Forgets questions and answers, not translations: there is somebody else to ask.
    pub fn ask_anew(&self) {
        let mut state = self.write();
        state.asked.clear();
        state.unsent.clear();
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut state = self.write();
        // Numbers go on: answers to old questions must not be taken for those to new ones.
        *state = State {
            questions: state.questions,
            ..State::default()
        };
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn holding(&self, iova: u64) -> Option<Translation> {
        let (_, entry) = self.entries.range(..=iova).next_back()?;
        (iova <= entry.last()).then_some(*entry)
    }

    fn ask(&mut self, iova: u64, access: Access, bell: &OwnedFd) -> NoTranslation {
        if let Some(question) = self.asked.get(&(iova, access)) {
            if question.is_refused {
                // Heard once: a driver that maps it later is not to suffer for that.
                self.asked.remove(&(iova, access));
                return NoTranslation::Refused;
            }
            return NoTranslation::Pending;
        }
        if self.asked.len() >= MAX_ASKED {
            self.asked.retain(|_, question| !question.is_refused);
        }
        if self.asked.len() < MAX_ASKED {
            self.questions += 1;
            let question = Question {
                number: self.questions,
                is_refused: false,
                is_stale: false,
            };
            self.asked.insert((iova, access), question);
            self.unsent.push_back(Miss {
                iova,
                access,
                number: question.number,
            });
            if self.unsent.len() == 1 {
                // A full counter rings as well.
                let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
            }
        }
        NoTranslation::Pending
    }

    /// Notes what questions a translation answers; it refuses those that it does not permit.
    fn answer(&mut self, new: &Translation) {
        let from = new.iova & !(PAGE_BYTES - 1);
        let range = (from, Access::Read)..=(new.last(), Access::Write);
        let covered: Vec<_> = self.asked.range(range).map(|(key, _)| *key).collect();
        if covered.is_empty() {
            return;
        }
        for key in covered {
            if new.permits(key.1) {
                self.asked.remove(&key);
            } else if let Some(question) = self.asked.get_mut(&key).filter(|asked| !asked.is_stale)
            {
                question.is_refused = true;
            }
        }
        let asked = &self.asked;
        self.unsent
            .retain(|miss| asked.contains_key(&(miss.iova, miss.access)));
    }

    fn remove(&mut self, first: u64, last: u64) -> bool {
        let before = self.entries.range(..first).next_back();
        let before = before.filter(|(_, entry)| entry.last() >= first);
        let from = before.map_or(first, |(iova, _)| *iova);
        if from > last {
            return false;
        }
        let gone: Vec<u64> = self.entries.range(from..=last).map(|(at, _)| *at).collect();
        for iova in &gone {
            self.entries.remove(iova);
        }
        !gone.is_empty()
    }

    /// Makes room, at another place each time.
    fn evict(&mut self) -> bool {
        let next = self.entries.range(self.evict_from..).take(EVICTED);
        let mut gone: Vec<u64> = next.map(|(iova, _)| *iova).collect();
        if gone.len() < EVICTED {
            let first = self.entries.keys().take(EVICTED - gone.len());
            gone.extend(first.copied());
        }
        for iova in &gone {
            self.entries.remove(iova);
        }
        self.evict_from = gone.last().map_or(0, |last| last.saturating_add(1));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64) -> Translation {
        Translation {
            iova: number * PAGE_BYTES,
            size_bytes: PAGE_BYTES,
            user_addr: 0x7f00_0000_0000 + number * PAGE_BYTES,
            readable: true,
            writable: true,
        }
    }

    #[test]
    fn what_is_missing_is_asked_for_once_and_found_when_it_came() {
        let iotlb = Iotlb::new().unwrap();
        for _ in 0..100 {
            let missed = iotlb.find(0x5123, Access::Read);
            assert_eq!(missed, Err(NoTranslation::Pending));
        }
        let miss = iotlb.next_miss().unwrap();
        assert_eq!((miss.iova, miss.access), (0x5000, Access::Read));
        assert_eq!(iotlb.next_miss(), None);
        assert!(!iotlb.insert(page(5)));
        iotlb.answered(miss, true);
        assert_eq!(iotlb.find(0x5fff, Access::Write), Ok(page(5)));
        assert!(iotlb.find(0x6000, Access::Write).is_err());
    }

    #[test]
    fn a_refusal_is_heard_once_and_then_asked_for_again() {
        let iotlb = Iotlb::new().unwrap();
        let _ = iotlb.find(0x5000, Access::Write);
        let miss = iotlb.next_miss().unwrap();
        iotlb.answered(miss, false);
        let heard = [0; 2].map(|_| iotlb.find(0x5000, Access::Write));
        assert_eq!(
            heard,
            [Err(NoTranslation::Refused), Err(NoTranslation::Pending)]
        );
        // An answer to the earlier question is none to this one.
        iotlb.answered(miss, false);
        let again = iotlb.find(0x5000, Access::Write);
        assert_eq!(again, Err(NoTranslation::Pending));
        iotlb.ask_anew();
        assert_eq!(iotlb.next_miss(), None);
    }

    #[test]
    fn a_refusal_of_what_an_earlier_driver_wanted_says_nothing() {
        let iotlb = Iotlb::new().unwrap();
        let _ = iotlb.find(0x5000, Access::Read);
        let sent = iotlb.next_miss().unwrap();
        let _ = iotlb.find(0x6000, Access::Read);
        iotlb.forget_refusals();
        let later = iotlb.next_miss().unwrap();
        for (miss, iova) in [(sent, 0x5000), (later, 0x6000)] {
            iotlb.answered(miss, false);
            let asked = iotlb.find(iova, Access::Read);
            assert_eq!(asked, Err(NoTranslation::Pending), "{iova:#x}");
            let again = iotlb.next_miss().unwrap();
            iotlb.answered(again.forgotten(), false);
            let waiting = iotlb.find(iova, Access::Read);
            assert_eq!(waiting, Err(NoTranslation::Pending), "{iova:#x}");
        }
    }

    #[test]
    fn a_write_where_only_reads_are_permitted_is_asked_for_and_refused() {
        let iotlb = Iotlb::new().unwrap();
        let read_only = Translation {
            writable: false,
            ..page(1)
        };
        iotlb.insert(read_only);
        assert!(iotlb.find(0x1000, Access::Read).is_ok());
        let asked = iotlb.find(0x1000, Access::Write);
        assert_eq!(asked, Err(NoTranslation::Pending));
        iotlb.insert(read_only);
        let refused = iotlb.find(0x1000, Access::Write);
        assert_eq!(refused, Err(NoTranslation::Refused));
        // An IOMMU that tells of what was asked for alone.
        let _ = iotlb.find(0x1000, Access::Write);
        assert!(!iotlb.insert(Translation {
            readable: false,
            ..page(1)
        }));
        assert!(iotlb.find(0x1000, Access::Write).is_ok());
        assert!(iotlb.find(0x1000, Access::Read).is_ok());
    }

    #[test]
    fn what_is_invalidated_is_gone_with_all_that_reaches_into_it() {
        let iotlb = Iotlb::new().unwrap();
        let large = Translation {
            size_bytes: 4 * PAGE_BYTES,
            ..page(8)
        };
        iotlb.insert(page(2));
        iotlb.insert(large);
        iotlb.insert(page(20));
        assert!(!iotlb.remove(0x3000, 0x7fff));
        assert!(iotlb.remove(0xa000, 0xa000), "in the middle of one");
        assert!(iotlb.known(0x8000).is_none() && iotlb.known(0xbfff).is_none());
        assert!(iotlb.known(0x2000).is_some() && iotlb.known(20 << 12).is_some());
        assert!(iotlb.remove(0, u64::MAX));
        assert!(!iotlb.remove(0, u64::MAX));
    }

    #[test]
    fn a_translation_replaces_those_that_say_otherwise() {
        let iotlb = Iotlb::new().unwrap();
        iotlb.insert(page(1));
        let moved = Translation {
            user_addr: 0x6000_0000_0000,
            ..page(1)
        };
        assert!(iotlb.insert(moved));
        assert_eq!(iotlb.known(0x1000), Some(moved));
        let last = Translation {
            iova: u64::MAX - 0xfff,
            ..page(1)
        };
        iotlb.insert(last);
        assert_eq!(iotlb.known(u64::MAX), Some(last));
    }

    #[test]
    fn neither_translations_nor_questions_grow_without_bound() {
        let iotlb = Iotlb::new().unwrap();
        let mut evictions = 0;
        for number in 0..2 * MAX_ENTRIES as u64 {
            evictions += usize::from(iotlb.insert(page(number)));
        }
        assert!((1..100).contains(&evictions));
        assert!(iotlb.write().entries.len() <= MAX_ENTRIES);
        let newest = page(2 * MAX_ENTRIES as u64 - 1);
        assert_eq!(iotlb.known(newest.iova), Some(newest));
        for number in 0..2 * MAX_ASKED as u64 {
            let _ = iotlb.find((1 << 40) + number * PAGE_BYTES, Access::Read);
        }
        assert_eq!(iotlb.write().unsent.len(), MAX_ASKED);
        while let Some(miss) = iotlb.next_miss() {
            iotlb.answered(miss, false);
        }
        // Refusals that nobody waits for do not keep others from asking.
        assert!(iotlb.find(1 << 50, Access::Read).is_err());
        assert!(iotlb.next_miss().is_some());
    }
}
