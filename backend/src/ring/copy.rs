//! How bytes get from one place to another: short copies inline, long ones by the C library's `memmove`.
//!
//! Most frames are short, and a call costs more than the copy of 64 bytes. Both kinds read everything before they write where
//! the two places could overlap: a guest may point both at the same page.

/// What caches move between cores.
pub(super) const CACHE_LINE_BYTES: usize = 64;

/// Copies `len` bytes; the two places may overlap.
///
/// # Safety
/// `len` bytes can be read at `from` and written at `to`. Others may change them meanwhile: what is copied is then some mix of
/// old and new, nothing worse.
#[inline(always)]
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY (of each): the caller vouches for `len` bytes, and `len` is in the range that is asked for.
    match len {
        65..=128 => return unsafe { ends_of_64(from, to, len) },
        32..=64 => return unsafe { ends_of_32(from, to, len) },
        8..=16 => return unsafe { ends_of_8(from, to, len) },
        _ => {}
    }
    // SAFETY: the caller's word is `ptr::copy`'s condition.
    unsafe { std::ptr::copy(from, to, len) }
}

/// The first and the last 64 bytes, which overlap in the middle.
///
/// # Safety
/// As [`copy`], with `len` from 64 to 128.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn ends_of_64(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};
    let tail = len - 64;
    // SAFETY: 64 bytes from the start and 64 before the end are within `len`; the loads and stores need no alignment. Everything
    // is read before anything is written.
    unsafe {
        let (first, last) = (from.cast::<__m128i>(), from.add(tail).cast::<__m128i>());
        let (a, b) = (_mm_loadu_si128(first), _mm_loadu_si128(first.add(1)));
        let (c, d) = (_mm_loadu_si128(first.add(2)), _mm_loadu_si128(first.add(3)));
        let (e, f) = (_mm_loadu_si128(last), _mm_loadu_si128(last.add(1)));
        let (g, h) = (_mm_loadu_si128(last.add(2)), _mm_loadu_si128(last.add(3)));
        let (first, last) = (to.cast::<__m128i>(), to.add(tail).cast::<__m128i>());
        _mm_storeu_si128(first, a);
        _mm_storeu_si128(first.add(1), b);
        _mm_storeu_si128(first.add(2), c);
        _mm_storeu_si128(first.add(3), d);
        _mm_storeu_si128(last, e);
        _mm_storeu_si128(last.add(1), f);
        _mm_storeu_si128(last.add(2), g);
        _mm_storeu_si128(last.add(3), h);
    }
}

/// The first and the last 32 bytes, which overlap in the middle.
///
/// # Safety
/// As [`copy`], with `len` from 32 to 64.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn ends_of_32(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};
    let tail = len - 32;
    // SAFETY: as in `ends_of_64`, with 32 bytes.
    unsafe {
        let (first, last) = (from.cast::<__m128i>(), from.add(tail).cast::<__m128i>());
        let (a, b) = (_mm_loadu_si128(first), _mm_loadu_si128(first.add(1)));
        let (c, d) = (_mm_loadu_si128(last), _mm_loadu_si128(last.add(1)));
        let (first, last) = (to.cast::<__m128i>(), to.add(tail).cast::<__m128i>());
        _mm_storeu_si128(first, a);
        _mm_storeu_si128(first.add(1), b);
        _mm_storeu_si128(last, c);
        _mm_storeu_si128(last.add(1), d);
    }
}

/// The first and the last 8 bytes, which overlap in the middle.
///
/// # Safety
/// As [`copy`], with `len` from 8 to 16.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn ends_of_8(from: *const u8, to: *mut u8, len: usize) {
    let tail = len - 8;
    // SAFETY: as in `ends_of_64`, with 8 bytes.
    unsafe {
        let first = from.cast::<u64>().read_unaligned();
        let last = from.add(tail).cast::<u64>().read_unaligned();
        to.cast::<u64>().write_unaligned(first);
        to.add(tail).cast::<u64>().write_unaligned(last);
    }
}

/// Asks for the cache line at `at`, to be read soon. Any address will do: a prefetch never faults.
#[inline(always)]
pub(super) fn prefetch_read(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 is in every x86-64 processor and has no effect but on caches.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for the cache line at `at` to be this core's alone, to be written soon.
#[inline(always)]
pub(super) fn prefetch_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHW has no effect but on caches, and is a no-op where a 64-bit processor does not know it (Intel SDM vol. 2,
    // PREFETCHW: opcode 0F 0D is a multi-byte NOP before Broadwell). Written as assembly because the intrinsic becomes a
    // read prefetch for the baseline target.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_arrives_also_onto_itself() {
        let original: Vec<u8> = (0..600u32).map(|i| (i * 7 + i / 256) as u8).collect();
        for len in 0..=300 {
            for distance in [0usize, 1, 15, 16, 17, 64, 300] {
                for (from, to) in [(0, distance), (distance, 0)] {
                    let mut bytes = original.clone();
                    // SAFETY: 300 + 300 bytes are there.
                    unsafe {
                        let base = bytes.as_mut_ptr();
                        copy(base.add(from), base.add(to), len);
                    }
                    let mut expected = original.clone();
                    expected.copy_within(from..from + len, to);
                    assert_eq!(bytes, expected, "{len} bytes from {from} to {to}");
                }
            }
        }
    }
}
