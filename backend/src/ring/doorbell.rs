//! The eventfds that a front-end hands us for a ring.
//!
//! A front-end keeps a descriptor of its own for the same open file, so it can change the file's flags or counter at any
//! time. Hence three rules: a kick is never read (an edge-triggered epoll entry fires on every write without it), a call
//! is never written (that can block: see `signaller`), and only true eventfds are taken (polling a FUSE
//! file, say, can block for ever).

use super::signaller;
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

    /// Another descriptor of the same eventfd.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
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

    /// Another descriptor of the same eventfd.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Adds one to the eventfd, without ever blocking: see `signaller`.
    pub fn signal(&self) {
        signaller::signal(self.0.as_fd());
    }
}

/// Checks that `fd` is an eventfd.
fn verified(fd: OwnedFd) -> io::Result<OwnedFd> {
    let kind = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    if kind.as_bytes() != b"anon_inode:[eventfd]" {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "expected an eventfd",
        ));
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn a_full_eventfd_made_blocking_by_its_owner_does_not_hold_the_signaller() {
        let owned = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let sink = EventSink::new(owned.try_clone().unwrap()).unwrap();
        rustix::fs::fcntl_setfl(&owned, rustix::fs::OFlags::empty()).unwrap();
        rustix::io::write(&owned, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            sink.signal();
            done.send(()).unwrap();
        });
        is_done
            .recv_timeout(std::time::Duration::from_secs(10))
            .unwrap();
    }

    #[test]
    fn each_signal_counts_one() {
        let owned = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let sink = EventSink::new(owned.try_clone().unwrap()).unwrap();
        // More than fit into the kernel's completion ring at once.
        for _ in 0..1000 {
            sink.signal();
        }
        let mut count = [0; 8];
        rustix::io::read(&owned, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1000);
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
