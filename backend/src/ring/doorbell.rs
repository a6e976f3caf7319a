//! The eventfds that a front-end hands us for a ring.
//!
//! A front-end keeps a descriptor of its own for the same open file, so it can change the file's flags or counter at any
//! time. Hence two rules: a kick is never read (an edge-triggered epoll entry fires on every write without it), and
//! only true eventfds are taken (polling a FUSE file, say, can block for ever).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// What a driver kicks: watched, never read.
#[derive(Debug)]
pub struct EventSource(OwnedFd);

/// What we signal: a ring's call or error eventfd.
#[derive(Debug)]
pub struct EventSink(OwnedFd);

impl EventSource {
    /// Takes a kick descriptor; anything but an eventfd is refused.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        verified(fd).map(Self)
    }
}

impl AsRawFd for EventSource {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl EventSink {
    /// Takes a call or error descriptor; anything but an eventfd is refused.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        verified(fd).map(Self)
    }

    /// Adds one to the eventfd. A counter that is full already wakes its reader, so a refusal is no loss.
    pub fn signal(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// Checks that `fd` is an eventfd and makes it non-blocking, so that a full counter cannot hold a worker.
fn verified(fd: OwnedFd) -> io::Result<OwnedFd> {
    let kind = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    if kind.as_bytes() != b"anon_inode:[eventfd]" {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "expected an eventfd",
        ));
    }
    let flags = rustix::fs::fcntl_getfl(fd.as_fd())?;
    rustix::fs::fcntl_setfl(fd.as_fd(), flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn a_full_blocking_eventfd_does_not_hold_the_signaller() {
        let fd = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        EventSink::new(fd).unwrap().signal();
    }

    #[test]
    fn what_is_not_an_eventfd_is_refused() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let file =
            rustix::fs::memfd_create("not-an-eventfd", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let epoll =
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        for fd in [reader, file, epoll] {
            assert_eq!(
                EventSource::new(fd).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
        }
    }
}
