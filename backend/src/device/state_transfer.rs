//! A port's state in the switch, through a pipe that its front-end has the other end of (vhost-user: Migrating back-end state).
//!
//! An attachment begins a transfer on the device thread and hears of its end through a bell; the bytes are carried, made and taken in on
//! a thread of the transfer's own. Kept true: a port has one such thread at most, all ports together `MAX_TRANSFERS`; no call on a
//! pipe waits, whatever its flags are, but in a poll that the session's end wakes; no more than [`MAX_STATE_BYTES`] are
//! carried; a state that did not come whole is not looked at.
//!
//! The front-end shares the pipe's open file, flags and all, so calls on it must not depend on O_NONBLOCK: bytes are moved with
//! splice(2), which is told each time, between its pipe and one of the thread's own.

use super::descriptors::BackendSocket;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The largest state that a migration carries.
pub const MAX_STATE_BYTES: usize = 4 * 1024 * 1024;
/// Transfers of all ports at a time.
const MAX_TRANSFERS: usize = 16;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes at a time: what a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// A thread that parses a state needs little.
const STACK_BYTES: usize = 512 * 1024;

static TRANSFERS: AtomicUsize = AtomicUsize::new(0);

/// Where a port's state comes from and goes to. Called on a transfer's thread, and may wait. Both say in words what was done, or why
/// nothing was.
pub trait StateCarrier: fmt::Debug + Send + Sync {
    /// The state, at most [`MAX_STATE_BYTES`].
    ///
    /// # Errors
    /// Why there is none.
    fn save(&self) -> Result<(Vec<u8>, String), String>;
    /// Takes in a state, whole or not at all. It may be anything.
    ///
    /// # Errors
    /// Why nothing was taken in.
    fn load(&self, bytes: &[u8]) -> Result<String, String>;
}

/// Which way a state goes (vhost-user: VHOST_USER_SET_DEVICE_STATE_FD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the switch to the front-end.
    Save,
    /// The other way.
    Load,
}

/// Why a transfer did not come about, or to a good end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation.
pub enum TransferError {
    #[error("the port's state is not offered")]
    NotOffered,
    #[error("another transfer of the port's state is under way")]
    UnderWay,
    #[error("{MAX_TRANSFERS} transfers of ports' states are under way already")]
    TooMany,
    #[error("the descriptor is not the right end of a pipe")]
    NotAPipe,
    #[error("no transfer of the port's state was begun")]
    NotBegun,
    #[error("the front-end ended before the state was carried")]
    Cancelled,
    #[error("the front-end closed the pipe before it had read the state")]
    Closed,
    #[error("the state was not carried within {} s", PATIENCE.as_secs())]
    TooSlow,
    #[error("the state has more than {MAX_STATE_BYTES} bytes")]
    TooLarge,
    #[error("the state cannot be carried: {0}")]
    Io(String),
    #[error("{0}")]
    Refused(String),
}

impl From<Errno> for TransferError {
    fn from(error: Errno) -> Self {
        Self::Io(error.to_string())
    }
}

/// What became of a transfer: what was done, in words.
pub type Transferred = Result<String, TransferError>;

/// The transfers of one port, one at a time.
#[derive(Debug)]
pub struct StateTransfers {
    carrier: Arc<dyn StateCarrier>,
    /// Rung when one has ended.
    bell: Arc<OwnedFd>,
    /// The last thread is still there.
    busy: Arc<AtomicBool>,
    current: Option<Transfer>,
}

/// One that was begun and not asked about since.
#[derive(Debug)]
struct Transfer {
    cancel: Arc<OwnedFd>,
    ended: Arc<Mutex<Option<Transferred>>>,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        ring(&self.cancel);
    }
}

impl StateTransfers {
    /// None yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(carrier: Arc<dyn StateCarrier>) -> io::Result<Self> {
        Ok(Self {
            carrier,
            bell: Arc::new(new_bell()?),
            busy: Arc::default(),
            current: None,
        })
    }

    /// Readable when a transfer may have ended, until [`Self::silence`].
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Its ringing was heard.
    pub fn silence(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// Begins one. What became of one that ended before is forgotten.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn begin(
        &mut self,
        direction: Direction,
        pipe: BackendSocket,
    ) -> Result<(), TransferError> {
        check(direction, &pipe)?;
        if self.busy.swap(true, Ordering::AcqRel) {
            return Err(TransferError::UnderWay);
        }
        // From here on whoever drops it frees the place.
        let place = Place::take(Arc::clone(&self.busy))?;
        let transfer = Transfer {
            cancel: Arc::new(new_bell()?),
            ended: Arc::default(),
        };
        let work = Work {
            carrier: Arc::clone(&self.carrier),
            direction,
            pipe,
            cancel: Arc::clone(&transfer.cancel),
            end: End {
                ended: Arc::clone(&transfer.ended),
                bell: Arc::clone(&self.bell),
                place: Some(place),
            },
        };
        std::thread::Builder::new()
            .name("port-state".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || work.run())
            .map_err(|error| TransferError::Io(error.to_string()))?;
        self.current = Some(transfer);
        Ok(())
    }

    /// What became of the one that was begun, which is forgotten by that; `None`: it is under way.
    pub fn outcome(&mut self) -> Option<Transferred> {
        let Some(transfer) = &self.current else {
            return Some(Err(TransferError::NotBegun));
        };
        let ended = lock(&transfer.ended).take()?;
        self.current = None;
        Some(ended)
    }

    /// Whether one is under way.
    pub fn is_under_way(&self) -> bool {
        let current = self.current.as_ref();
        current.is_some_and(|transfer| lock(&transfer.ended).is_none())
    }

    /// The session is over: nobody waits for what is under way.
    pub fn forget(&mut self) {
        self.current = None;
    }
}

/// A front-end passes the reading end of a pipe to load from, and the writing end to save to. Of a named pipe not even that is asked:
/// it may be on a file system that does not answer.
fn check(direction: Direction, pipe: &BackendSocket) -> Result<(), TransferError> {
    let descriptor = pipe.get().ok_or(TransferError::NotAPipe)?;
    let is_pipe = super::descriptors::is_pipe(descriptor);
    let flags = rustix::fs::fcntl_getfl(descriptor)?;
    let wanted = match direction {
        Direction::Save => OFlags::WRONLY,
        Direction::Load => OFlags::RDONLY,
    };
    if is_pipe && flags & OFlags::RWMODE == wanted {
        Ok(())
    } else {
        Err(TransferError::NotAPipe)
    }
}

/// A place among all transfers, and the port's own.
struct Place(Arc<AtomicBool>);

impl Place {
    fn take(busy: Arc<AtomicBool>) -> Result<Self, TransferError> {
        // Made before it is known to be within the bound: dropping it makes good either way.
        let place = Self(busy);
        if TRANSFERS.fetch_add(1, Ordering::AcqRel) < MAX_TRANSFERS {
            Ok(place)
        } else {
            Err(TransferError::TooMany)
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TRANSFERS.fetch_sub(1, Ordering::AcqRel);
        self.0.store(false, Ordering::Release);
    }
}

/// What a transfer's thread owns.
struct Work {
    carrier: Arc<dyn StateCarrier>,
    direction: Direction,
    pipe: BackendSocket,
    cancel: Arc<OwnedFd>,
    end: End,
}

/// Tells that the thread has ended, however it did.
struct End {
    ended: Arc<Mutex<Option<Transferred>>>,
    bell: Arc<OwnedFd>,
    place: Option<Place>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.place = None;
        let panicked = || Err(TransferError::Io("its thread ended".to_owned()));
        lock(&self.ended).get_or_insert_with(panicked);
        ring(&self.bell);
    }
}

impl Work {
    fn run(self) {
        let Self {
            carrier,
            direction,
            pipe,
            cancel,
            mut end,
        } = self;
        // Closed here, on a thread that may wait: its end is what the other side waits for.
        let Some(pipe) = pipe.take() else { return };
        let line = Line {
            pipe,
            cancel: &cancel,
            until: Instant::now() + PATIENCE,
        };
        let transferred = match direction {
            Direction::Save => save(&*carrier, line),
            Direction::Load => load(&*carrier, line),
        };
        // Before anybody can hear of the end, who may begin the next at once.
        end.place = None;
        *lock(&end.ended) = Some(transferred);
    }
}

fn save(carrier: &dyn StateCarrier, line: Line<'_>) -> Transferred {
    let (bytes, done) = carrier.save().map_err(TransferError::Refused)?;
    if bytes.len() > MAX_STATE_BYTES {
        return Err(TransferError::TooLarge);
    }
    line.send(&bytes)?;
    Ok(done)
}

fn load(carrier: &dyn StateCarrier, line: Line<'_>) -> Transferred {
    let bytes = line.receive()?;
    if line.is_cancelled()? {
        return Err(TransferError::Cancelled);
    }
    carrier.load(&bytes).map_err(TransferError::Refused)
}

/// The front-end's pipe, and what ends the wait for it.
struct Line<'a> {
    pipe: OwnedFd,
    cancel: &'a OwnedFd,
    until: Instant,
}

impl Line<'_> {
    /// Everything up to the end of the pipe.
    fn receive(&self) -> Result<Vec<u8>, TransferError> {
        let (from, into) = own_pipe()?;
        let mut bytes = Vec::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let flags = SpliceFlags::NONBLOCK;
            match splice(&self.pipe, None, &into, None, CHUNK_BYTES, flags) {
                Ok(0) => return Ok(bytes),
                Ok(mut moved) => {
                    if bytes.len() + moved > MAX_STATE_BYTES {
                        return Err(TransferError::TooLarge);
                    }
                    while moved > 0 {
                        let room = chunk.get_mut(..moved).unwrap_or_default();
                        let read = rustix::io::read(&from, room)?;
                        bytes.extend_from_slice(chunk.get(..read).unwrap_or_default());
                        moved = moved.saturating_sub(read.max(1));
                    }
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::IN)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn send(&self, mut bytes: &[u8]) -> Result<(), TransferError> {
        let (from, into) = own_pipe()?;
        while !bytes.is_empty() {
            let chunk = bytes.get(..CHUNK_BYTES).unwrap_or(bytes);
            let mut ready = rustix::io::write(&into, chunk)?;
            bytes = bytes.get(ready..).unwrap_or_default();
            while ready > 0 {
                match splice(&from, None, &self.pipe, None, ready, SpliceFlags::NONBLOCK) {
                    Ok(moved) => ready = ready.saturating_sub(moved),
                    Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                    Err(Errno::INTR) => {}
                    Err(Errno::PIPE) => return Err(TransferError::Closed),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Until the pipe may be ready. Also called in turn with it by a front-end that takes away what it has written.
    fn wait(&self, ready: PollFlags) -> Result<(), TransferError> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(TransferError::TooSlow);
        }
        if self.poll(&mut [PollFd::new(&self.pipe, ready)], left)? {
            return Err(TransferError::Cancelled);
        }
        Ok(())
    }

    fn is_cancelled(&self) -> Result<bool, TransferError> {
        self.poll(&mut [], Duration::ZERO)
    }

    /// Waits for `others` or the end of the session; whether it was that.
    fn poll(&self, others: &mut [PollFd<'_>], at_most: Duration) -> Result<bool, TransferError> {
        let timeout = Timespec {
            tv_sec: i64::try_from(at_most.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: at_most.subsec_nanos().into(),
        };
        let mut polled = vec![PollFd::new(self.cancel, PollFlags::IN)];
        polled.extend(others.iter().cloned());
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let cancelled = polled.first();
        Ok(cancelled.is_some_and(|cancel| cancel.revents().contains(PollFlags::IN)))
    }
}

fn own_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
}

fn new_bell() -> Result<OwnedFd, Errno> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
}

fn ring(bell: &OwnedFd) {
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
