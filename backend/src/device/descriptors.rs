//! What becomes of a descriptor as soon as it is received.
//!
//! A front-end may pass anything. Looking at some kinds of files can block until whoever serves them answers (FUSE), and so
//! can closing them (FUSE again, a socket that lingers, a pipe while somebody writes from memory that does not come). The device thread serves
//! every port, so it keeps only the two kinds that vhost-user needs and that never block: eventfds, and files in memory (memfd, tmpfs, hugetlbfs). Both are
//! told apart without touching the file itself. Anything else is closed on a thread of its own, and an inert descriptor takes
//! its place, so that counts stay right and the request that carried it is refused in its own words. One request carries a socket and one
//! a pipe ([`BackendSocket`]), which are kept until that request is known, used without ever waiting, and closed elsewhere as well.

use super::message::RequestCode;
use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketType, sockopt};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use vhost::vhost_user::message::FrontendReq;

/// Descriptors that wait to be closed. More are left open: a front-end that makes closing block gains nothing by sending more.
const MAX_WAITING: usize = 1024;

/// The descriptor itself if it is of a kind that never blocks, otherwise an inert one.
pub fn admit(descriptor: OwnedFd) -> OwnedFd {
    let is_simple = is_eventfd(&descriptor) || is_memory(&descriptor);
    if is_simple || is_local_stream(&descriptor) || is_pipe(descriptor.as_fd()) {
        return descriptor;
    }
    replace(descriptor)
}

/// The same for one that was admitted, once it is known what it belongs to.
pub fn admit_for(request: RequestCode, descriptor: OwnedFd) -> OwnedFd {
    let is = |other: FrontendReq| request.0 == other as u32;
    let is_channel = is_local_stream(&descriptor) && !is(FrontendReq::SET_BACKEND_REQ_FD)
        || is_pipe(descriptor.as_fd()) && !is(FrontendReq::SET_DEVICE_STATE_FD);
    match is_channel {
        true => replace(descriptor),
        false => descriptor,
    }
}

/// Closes what may be a socket or a pipe.
pub fn discard(descriptor: OwnedFd) {
    drop(BackendSocket::new(descriptor));
}

/// A socket for requests of the back-end, or a pipe for a port's state, as a front-end passed it. What it holds unread may be of the kinds
/// that block when they are closed, so it is closed elsewhere.
#[derive(Debug)]
pub struct BackendSocket(Option<OwnedFd>);

impl BackendSocket {
    /// Takes over a descriptor that was admitted.
    pub fn new(descriptor: OwnedFd) -> Self {
        Self(Some(descriptor))
    }

    /// The descriptor, which is there until this is dropped.
    pub fn get(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }

    /// The descriptor, for a thread that may wait when it closes it.
    pub fn take(mut self) -> Option<OwnedFd> {
        self.0.take()
    }
}

impl Drop for BackendSocket {
    fn drop(&mut self) {
        if let Some(descriptor) = self.0.take() {
            close_elsewhere(descriptor);
        }
    }
}

fn replace(descriptor: OwnedFd) -> OwnedFd {
    match epoll::create(epoll::CreateFlags::CLOEXEC) {
        Ok(inert) => {
            close_elsewhere(descriptor);
            inert
        }
        // Without a spare descriptor the original is refused all the same, later.
        Err(_) => descriptor,
    }
}

fn is_eventfd(descriptor: &OwnedFd) -> bool {
    let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    rustix::fs::readlink(link, Vec::new())
        .is_ok_and(|kind| kind.as_bytes() == b"anon_inode:[eventfd]")
}

/// A pipe without a name, as the kernel calls it: what is on a file system has a path. Asking does not reach the pipe.
pub fn is_pipe(descriptor: BorrowedFd<'_>) -> bool {
    let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    rustix::fs::readlink(link, Vec::new()).is_ok_and(|kind| kind.as_bytes().starts_with(b"pipe:["))
}

/// Asking a file that is no socket does not reach a file system.
fn is_local_stream(descriptor: &OwnedFd) -> bool {
    sockopt::socket_domain(descriptor) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(descriptor) == Ok(SocketType::STREAM)
}

/// Only files in memory have seals (fcntl(2): F_GET_SEALS), and asking for them does not reach a file system.
fn is_memory(descriptor: &OwnedFd) -> bool {
    rustix::fs::fcntl_get_seals(descriptor).is_ok()
}

fn close_elsewhere(descriptor: OwnedFd) {
    static CLOSER: OnceLock<Option<SyncSender<OwnedFd>>> = OnceLock::new();
    let closer = CLOSER.get_or_init(|| {
        let (sender, receiver) = sync_channel::<OwnedFd>(MAX_WAITING);
        std::thread::Builder::new()
            .name("closer".to_owned())
            .spawn(move || receiver.into_iter().for_each(drop))
            .is_ok()
            .then_some(sender)
    });
    let Some(closer) = closer else { return };
    if let Err(TrySendError::Full(descriptor) | TrySendError::Disconnected(descriptor)) =
        closer.try_send(descriptor)
    {
        log::warn!("a front-end's descriptor could not be closed and stays open");
        std::mem::forget(descriptor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};

    #[test]
    fn eventfds_and_memory_are_kept_and_anything_else_is_replaced() {
        let kept: [OwnedFd; 2] = [
            eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            memfd_create("memory", MemfdFlags::CLOEXEC).unwrap(),
        ];
        for descriptor in kept {
            let number = descriptor.as_raw_fd();
            assert_eq!(admit(descriptor).as_raw_fd(), number);
        }
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        // It is known what it belongs to only later.
        let number = reader.as_raw_fd();
        let admitted = admit(reader);
        assert_eq!(admitted.as_raw_fd(), number);
        let admitted = admit_for(
            RequestCode(FrontendReq::SET_DEVICE_STATE_FD as u32),
            admitted,
        );
        assert_eq!(admitted.as_raw_fd(), number);
        let admitted = admit_for(RequestCode(FrontendReq::SET_VRING_KICK as u32), admitted);
        assert!(!is_eventfd(&admitted) && !is_memory(&admitted) && !is_pipe(admitted.as_fd()));
        // The original is closed: its other end hears of it.
        let mut sockets = [rustix::event::PollFd::new(
            &writer,
            rustix::event::PollFlags::ERR,
        )];
        let deadline = rustix::event::Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        assert_eq!(
            rustix::event::poll(&mut sockets, Some(&deadline)).unwrap(),
            1
        );
    }
}
