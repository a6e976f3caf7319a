//! A port's pager as the daemon has it.
//!
//! The port's attachment starts it when the front-end announces a postcopy phase, and serves it on the device thread when its socket is ready.

use super::ARGUMENT;
use super::message::{Message, receive, send};
use super::process::THREADS;
use crate::ring::{MissingPages, ReceivedRegion};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

/// Answers read per wake-up; other ports wait.
const ANSWERS_PER_WAKEUP: usize = 256;
/// Pages it is asked for at once: the threads are never idle between two answers, and what the socket holds stays small.
const MAX_UNDER_WAY: usize = 4 * THREADS;

/// Why a pager is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum PagerEnd {
    /// It cannot be started.
    #[error("the process that is to fetch pages cannot be started: {0}")]
    Start(io::Error),
    /// It said so.
    #[error("the process that fetches pages failed: {0}; is userfaultfd allowed here?")]
    Failed(io::Error),
    /// It is gone.
    #[error("the process that fetches pages ended")]
    Ended,
    /// The socket, or what came by it.
    #[error("the process that fetches pages cannot be talked to: {0}")]
    Socket(#[from] io::Error),
}

/// What a pager said.
#[derive(Debug, Default)]
pub struct Heard {
    /// Its userfaultfd, for the front-end.
    pub faults: Option<OwnedFd>,
    /// Pages that came.
    pub pages: Vec<u64>,
}

/// A port's pager.
#[derive(Debug)]
pub struct Pager {
    process: Option<Child>,
    socket: OwnedFd,
    /// Regions that it was not told of yet.
    untold: Vec<ReceivedRegion>,
    /// Regions that it is mapping.
    unmapped: HashSet<u64>,
    under_way: usize,
    /// The front-end knows where the pager has each region: only then does it understand faults there.
    may_fetch: bool,
}

impl Pager {
    /// Starts one; it says when it is ready.
    ///
    /// # Errors
    /// No process or descriptor is to be had.
    pub fn start() -> Result<Self, PagerEnd> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|error| PagerEnd::Start(error.into()))?;
        let process = Command::new("/proc/self/exe")
            .arg(ARGUMENT)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(PagerEnd::Start)?;
        Ok(Self {
            process: Some(process),
            socket: ours,
            untold: Vec::new(),
            unmapped: HashSet::new(),
            under_way: 0,
            may_fetch: false,
        })
    }

    /// Has it map regions; from now on until [`Self::allow_fetching`] it fetches nothing.
    pub fn map(&mut self, regions: Vec<ReceivedRegion>) {
        self.may_fetch = false;
        self.untold.extend(regions);
    }

    /// The front-end knows of the regions.
    pub fn allow_fetching(&mut self) {
        self.may_fetch = true;
    }

    /// Sends what is to be mapped and fetched, as far as it may and the socket takes it.
    ///
    /// # Errors
    /// The pager is of no use any more.
    pub fn ask(&mut self, missing: &MissingPages) -> Result<(), PagerEnd> {
        while let Some(region) = self.untold.last() {
            let map = Message::Map {
                start: region.pager_addr,
                bytes: region.size_bytes,
                offset: region.file_offset,
            };
            if !self.tell(map, Some(region.file.as_fd()))? {
                return Ok(());
            }
            self.unmapped.insert(region.pager_addr);
            self.untold.pop();
        }
        let is_ready = self.may_fetch && self.unmapped.is_empty();
        while is_ready
            && self.under_way < MAX_UNDER_WAY
            && let Some(page) = missing.next()
        {
            // A socket holds more than may be under way.
            if !self.tell(Message::Fetch(page), None)? {
                return Err(PagerEnd::Socket(Errno::NOBUFS.into()));
            }
            self.under_way += 1;
        }
        Ok(())
    }

    /// What it said since.
    ///
    /// # Errors
    /// The pager is of no use any more.
    pub fn hear(&mut self) -> Result<Heard, PagerEnd> {
        let mut heard = Heard::default();
        for _ in 0..ANSWERS_PER_WAKEUP {
            let (message, descriptor) = match receive(&self.socket, RecvFlags::DONTWAIT) {
                Ok(Some(received)) => received,
                Ok(None) => return Err(PagerEnd::Ended),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            match message {
                Message::Ready => heard.faults = descriptor,
                Message::Mapped(start) => drop(self.unmapped.remove(&start)),
                Message::Here(page) => {
                    self.under_way = self.under_way.saturating_sub(1);
                    heard.pages.push(page);
                }
                Message::Failed(error) => {
                    return Err(PagerEnd::Failed(io::Error::from_raw_os_error(error)));
                }
                Message::Map { .. } | Message::Fetch(_) => {
                    return Err(io::Error::from(io::ErrorKind::InvalidData).into());
                }
            }
        }
        Ok(heard)
    }

    /// Whether it has room for one more question.
    pub fn has_room(&self) -> bool {
        self.may_fetch && self.unmapped.is_empty() && self.under_way < MAX_UNDER_WAY
    }

    /// What is to be watched, and whether something waits for room there.
    pub fn watched(&self) -> (BorrowedFd<'_>, bool) {
        (self.socket.as_fd(), !self.untold.is_empty())
    }

    fn tell(&self, message: Message, descriptor: Option<BorrowedFd<'_>>) -> Result<bool, PagerEnd> {
        match send(&self.socket, message, descriptor, SendFlags::DONTWAIT) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(PagerEnd::Ended),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        // It may wait for a page that never comes. Its end takes as long as unmapping a VM's memory does: nobody here waits for it.
        let _ = process.kill();
        let reap = move || drop(process.wait());
        if let Err(error) = std::thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(reap)
        {
            log::error!("a pager that ended is left as a zombie: {error}");
        }
    }
}
