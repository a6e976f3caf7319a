//! Signals an eventfd that somebody else holds as well, without ever blocking.
//!
//! write(2) on an eventfd sleeps when its counter is full and the file is not in non-blocking mode. The front-end that passed
//! us the eventfd can arrange both, at any moment, so a worker that writes could be held for ever. The kernel's own way to
//! signal an eventfd never sleeps, and asynchronous I/O offers it to us: an operation submitted with IOCB_FLAG_RESFD
//! signals that eventfd when it completes (io_submit(2)). The operation here is a read of /dev/null, which completes at once.
//!
//! Each thread has a context of its own, made at its first signal.

use rustix::fs::{Mode, OFlags};
use std::cell::RefCell;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Completions that a context keeps until they are taken out.
const CONTEXT_EVENTS: usize = 128;

/// linux/aio_abi.h: struct iocb, little-endian.
#[repr(C)]
#[derive(Default)]
struct ControlBlock {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_eventfd: u32,
}

/// linux/aio_abi.h: struct io_event.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Completion([u64; 4]);

/// IOCB_CMD_PREAD.
const READ: u16 = 0;
/// IOCB_FLAG_RESFD.
const SIGNAL_EVENTFD: u32 = 1;

struct Context {
    id: libc::c_ulong,
    null: OwnedFd,
    /// Completions not taken out yet.
    waiting: usize,
}

thread_local! {
    static CONTEXT: RefCell<Option<Context>> = RefCell::new(Context::new());
}

/// Adds one to `eventfd`, which is one.
pub fn signal(eventfd: BorrowedFd<'_>) {
    CONTEXT.with_borrow_mut(|context| {
        if let Some(context) = context {
            context.signal(eventfd);
        } else {
            // A kernel without asynchronous I/O: better a signal that could be held up than none.
            let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
        }
    });
}

impl Context {
    fn new() -> Option<Self> {
        let null =
            rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut id: libc::c_ulong = 0;
        // SAFETY: io_setup writes one context id.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, CONTEXT_EVENTS, &raw mut id) };
        if made != 0 {
            log::warn!(
                "no asynchronous I/O ({}): a hostile front-end could hold up notifications; raise fs.aio-max-nr",
                std::io::Error::last_os_error()
            );
            return None;
        }
        Some(Self {
            id,
            null,
            waiting: 0,
        })
    }

    fn signal(&mut self, eventfd: BorrowedFd<'_>) {
        if self.waiting == CONTEXT_EVENTS / 2 {
            self.take_completions();
        }
        let mut nothing = 0u8;
        let mut block = ControlBlock {
            opcode: READ,
            file: self.null.as_raw_fd() as u32,
            buffer: (&raw mut nothing) as u64,
            bytes: 1,
            flags: SIGNAL_EVENTFD,
            result_eventfd: eventfd.as_raw_fd() as u32,
            ..ControlBlock::default()
        };
        let mut blocks = [&raw mut block];
        // SAFETY: one control block, which the kernel copies before it returns; reading /dev/null completes within the call and
        // writes nothing to its buffer.
        let submitted =
            unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1, blocks.as_mut_ptr()) };
        if submitted == 1 {
            self.waiting += 1;
        }
    }

    fn take_completions(&mut self) {
        let mut events = [Completion::default(); CONTEXT_EVENTS];
        let mut no_wait = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: room for CONTEXT_EVENTS completions, which io_getevents fills without waiting.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                0,
                CONTEXT_EVENTS,
                events.as_mut_ptr(),
                &raw mut no_wait,
            )
        };
        self.waiting = 0;
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours and nothing is under way in it.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}
