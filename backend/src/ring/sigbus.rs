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
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

const PAGE_BYTES: usize = 4096;
/// Mappings that can be watched at once, over all ports.
const SLOTS: usize = 16_384;

struct Slot {
    /// Odd while the slot changes hands: a handler that read across a change reads again.
    generation: AtomicU32,
    start: AtomicUsize,
    /// Zero while the slot is free.
    len_bytes: AtomicUsize,
    lost: AtomicBool,
}

impl Slot {
    /// Takes the slot into or out of use. Only its owner calls this.
    fn change(&self, start: usize, len_bytes: usize) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.lost.store(false, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
        self.len_bytes.store(len_bytes, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// The mapping watched, or `None` while that is changing.
    fn read(&self) -> Option<(usize, usize)> {
        let before = self.generation.load(Ordering::SeqCst);
        let range = (
            self.start.load(Ordering::SeqCst),
            self.len_bytes.load(Ordering::SeqCst),
        );
        (before.is_multiple_of(2) && self.generation.load(Ordering::SeqCst) == before)
            .then_some(range)
    }
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        generation: AtomicU32::new(0),
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
        TABLE[slot].change(start, len_bytes);
        Ok(Self { slot })
    }

    /// Whether the file behind the mapping was truncated under us.
    pub(super) fn is_lost(&self) -> bool {
        TABLE[self.slot].lost.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        TABLE[self.slot].change(0, 0);
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
    // A slot that is changing hands may be the one: its owner is running on another thread and soon done.
    for _ in 0..1_000_000 {
        match replace_mapping_of(fault) {
            Found::Replaced => return,
            Found::Nothing => break,
            Found::Changing => std::hint::spin_loop(),
        }
    }
    // Not ours: the default action when the instruction is repeated.
    // SAFETY: resetting a disposition is async-signal-safe.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}

enum Found {
    /// The mapping was ours and has zero pages now.
    Replaced,
    /// No mapping of ours, or nothing could be put there.
    Nothing,
    /// Some slot could not be read.
    Changing,
}

fn replace_mapping_of(fault: usize) -> Found {
    let mut found = Found::Nothing;
    for entry in TABLE.iter().take(HIGH_WATER.load(Ordering::Acquire)) {
        let Some((start, len_bytes)) = entry.read() else {
            found = Found::Changing;
            continue;
        };
        if fault.wrapping_sub(start) >= len_bytes {
            continue;
        }
        // A host that does not overcommit may refuse that much private memory: then the one page must do.
        let page = fault & !(PAGE_BYTES - 1);
        if map_zero_pages(start, len_bytes) || map_zero_pages(page, PAGE_BYTES) {
            entry.lost.store(true, Ordering::SeqCst);
            LOSSES.fetch_add(1, Ordering::SeqCst);
            return Found::Replaced;
        }
    }
    found
}

/// Puts private zero pages over part of a mapping of ours.
fn map_zero_pages(start: usize, len_bytes: usize) -> bool {
    // SAFETY: the range is inside one mapping that is watched, hence alive: the faulting thread holds an `Arc` of it (upheld by
    // `guest_memory`). Replacing its pages leaves the address range mapped and its owner's later munmap correct.
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
    replaced != libc::MAP_FAILED
}
