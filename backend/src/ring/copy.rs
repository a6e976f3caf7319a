//! How bytes get from one place to another: short copies inline, long ones by the C library's `memmove`.
//!
//! Most frames are short, and a call costs more than the copy of 64 bytes. Both kinds read everything before they write where
//! the two places could overlap: a guest may point both at the same page.

type Block = [u8; 16];

/// Copies `len` bytes; the two places may overlap.
///
/// # Safety
/// `len` bytes can be read at `from` and written at `to`. Others may change them meanwhile: what is copied is then some mix of
/// old and new, nothing worse.
#[inline(always)]
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY (of each): the caller vouches for `len` bytes, and each arm stays below the length that chose it.
    match len {
        65..=128 => unsafe { ends::<4>(from, to, len) },
        33..=64 => unsafe { ends::<2>(from, to, len) },
        16..=32 => unsafe { ends::<1>(from, to, len) },
        _ => unsafe { other(from, to, len) },
    }
}

/// The first and the last `N` blocks, which overlap in the middle.
///
/// # Safety
/// As [`copy`], with `len` at least that of `N` blocks; 2 `N` blocks cover `len`.
#[inline(always)]
unsafe fn ends<const N: usize>(from: *const u8, to: *mut u8, len: usize) {
    let tail = len - N * size_of::<Block>();
    // SAFETY: N blocks from the start and N blocks before the end are within `len`, by the caller's word.
    unsafe {
        let first = from.cast::<[Block; N]>().read_unaligned();
        let last = from.add(tail).cast::<[Block; N]>().read_unaligned();
        to.cast::<[Block; N]>().write_unaligned(first);
        to.add(tail).cast::<[Block; N]>().write_unaligned(last);
    }
}

/// Lengths that are rarer.
///
/// # Safety
/// As [`copy`].
#[inline]
unsafe fn other(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's word is `ptr::copy`'s condition.
    unsafe { std::ptr::copy(from, to, len) }
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
