//! Survives a front-end that truncates a memory file we have mapped.
//!
//! Touching a page past the end of a file raises SIGBUS on the thread that touched it: a worker that serves every
//! tenant. The handler finds which mapping the address belongs to, puts zero pages over all of that mapping, and marks
//! it lost; the instruction is then repeated and succeeds. The worker sees [`losses`] change, and the port whose memory
//! it was is detached. A SIGBUS anywhere else keeps its default action.
//!
//! Mappings are registered by the control thread; the handler runs on whichever thread faulted and only uses atomics
//! and `mmap`, which are async-signal-safe.

use std::io;
use std::sync::Mutex;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Mappings that can be watched at once, over all ports.
const SLOTS: usize = 16_384;

struct Slot {
    start: AtomicUsize,
    /// Zero while the slot is free.
    len_bytes: AtomicUsize,
    lost: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        len_bytes: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; SLOTS];
/// Slots ever used: how far the handler has to look.
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);
static LOSSES: AtomicU64 = AtomicU64::new(0);
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static INSTALL: Once = Once::new();

/// How many times a mapping was lost since the process started. One relaxed load tells a worker that nothing happened.
pub fn losses() -> u64 {
    LOSSES.load(Ordering::Relaxed)
}

/// Keeps one mapping under watch for as long as it lives.
#[derive(Debug)]
pub(super) struct Watch {
    slot: usize,
}

impl Watch {
    /// Watches `len_bytes` bytes from `start`. The caller keeps the mapping alive for longer than the watch.
    pub(super) fn new(start: usize, len_bytes: usize) -> io::Result<Self> {
        INSTALL.call_once(install);
        let slot = {
            let mut free = FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            match free.pop() {
                Some(slot) => slot,
                None => {
                    let next = HIGH_WATER.load(Ordering::Relaxed);
                    if next == SLOTS {
                        return Err(io::Error::other(format!(
                            "more than {SLOTS} guest memory regions are mapped"
                        )));
                    }
                    HIGH_WATER.store(next + 1, Ordering::Release);
                    next
                }
            }
        };
        let entry = &TABLE[slot];
        entry.lost.store(false, Ordering::Relaxed);
        entry.start.store(start, Ordering::Relaxed);
        entry.len_bytes.store(len_bytes, Ordering::Release);
        Ok(Self { slot })
    }

    /// Whether the file behind the mapping was truncated under us.
    pub(super) fn is_lost(&self) -> bool {
        TABLE[self.slot].lost.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        TABLE[self.slot].len_bytes.store(0, Ordering::Release);
        FREE.lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .push(self.slot);
    }
}

fn install() {
    // SAFETY: the structure is zeroed (a valid value for every field) and then filled; the handler has the signature that
    // SA_SIGINFO asks for, and uses nothing that is not async-signal-safe (upheld by `on_sigbus`).
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut())
    };
    if result != 0 {
        log::error!(
            "cannot watch for truncated guest memory: {}",
            io::Error::last_os_error()
        );
    }
}

extern "C" fn on_sigbus(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a SA_SIGINFO handler, and for SIGBUS its address field is set.
    let fault = unsafe { (*info).si_addr() } as usize;
    for entry in TABLE.iter().take(HIGH_WATER.load(Ordering::Acquire)) {
        let len_bytes = entry.len_bytes.load(Ordering::Acquire);
        let start = entry.start.load(Ordering::Relaxed);
        if len_bytes == 0 || fault.wrapping_sub(start) >= len_bytes {
            continue;
        }
        // SAFETY: `start` and `len_bytes` are exactly one mapping of ours, alive because the faulting thread holds an
        // `Arc` of it (upheld by `guest_memory`); replacing its pages leaves the address range mapped and its owner's
        // later munmap correct.
        let replaced = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if replaced != libc::MAP_FAILED {
            entry.lost.store(true, Ordering::Release);
            LOSSES.fetch_add(1, Ordering::Release);
            return;
        }
    }
    // Not ours: the default action when the instruction is repeated.
    // SAFETY: resetting a disposition is async-signal-safe.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}
