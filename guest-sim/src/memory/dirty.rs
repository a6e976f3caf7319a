//! Which pages this process wrote: what a hypervisor knows of a guest's own writes while it migrates.
//!
//! Every write of the driver passes a [`Slice`](super::Slice), an array or a [`Word`], which mark here. Keeps true: a mark comes after the
//! bytes are visible, so that whoever takes the mark and then reads the page reads them; while nobody migrates, a write costs one branch.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::AtomicInteger;
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

use super::PAGE_BYTES;

/// Pages of one region, one bit each.
#[derive(Debug, Default)]
pub struct DirtyPages {
    on: AtomicBool,
    words: Vec<AtomicU64>,
}

impl DirtyPages {
    /// Starts or stops marking; what was marked is forgotten.
    pub(super) fn track(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
        self.take(|_| {});
    }

    /// Hands each marked page (counted from the region's start) to `each`, and clears its mark.
    pub(super) fn take(&self, mut each: impl FnMut(u64)) {
        for (at, word) in (0..).zip(&self.words) {
            if word.load(Ordering::Relaxed) != 0 {
                each_bit(at, word.swap(0, Ordering::AcqRel), &mut each);
            }
        }
    }

    #[cold]
    fn mark(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let (first, last) = (
            offset as u64 / PAGE_BYTES,
            (offset + len - 1) as u64 / PAGE_BYTES,
        );
        for page in first..=last {
            if let Some(word) = self.words.get((page / 64) as usize) {
                word.fetch_or(1 << (page % 64), Ordering::AcqRel);
            }
        }
    }
}

/// The number of each bit of word `at` of a bitmap.
pub(crate) fn each_bit(at: u64, mut word: u64, each: &mut impl FnMut(u64)) {
    while word != 0 {
        each(64 * at + u64::from(word.trailing_zeros()));
        word &= word - 1;
    }
}

impl NewBitmap for DirtyPages {
    fn with_len(len: usize) -> Self {
        let words = (len as u64).div_ceil(64 * PAGE_BYTES);
        Self {
            on: AtomicBool::new(false),
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyPages {
    type S = DirtySlice<'a>;
}

impl Bitmap for DirtyPages {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        if self.on.load(Ordering::Relaxed) {
            self.mark(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset as u64 / PAGE_BYTES;
        let word = self.words.get((page / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (page % 64) & 1 == 1)
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice {
            pages: self,
            offset,
        }
    }
}

/// The same from some byte of the region on.
#[derive(Clone, Copy, Debug)]
pub struct DirtySlice<'a> {
    pages: &'a DirtyPages,
    offset: usize,
}

impl WithBitmapSlice<'_> for DirtySlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtySlice<'_> {}

impl Bitmap for DirtySlice<'_> {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.pages.mark_dirty(self.offset + offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages.dirty_at(self.offset + offset)
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> Self {
        Self {
            pages: self.pages,
            offset: self.offset + offset,
        }
    }
}

/// A word that both sides use, read and written as one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word<'a, A> {
    atomic: &'a A,
    pages: DirtySlice<'a>,
}

impl<'a, A: AtomicInteger> Word<'a, A> {
    pub(super) fn new(atomic: &'a A, pages: DirtySlice<'a>) -> Self {
        Self { atomic, pages }
    }

    #[inline]
    pub fn load(&self, order: Ordering) -> A::V {
        self.atomic.load(order)
    }

    #[inline]
    pub fn store(&self, value: A::V, order: Ordering) {
        self.atomic.store(value, order);
        self.pages.mark_dirty(0, size_of::<A>());
    }
}
