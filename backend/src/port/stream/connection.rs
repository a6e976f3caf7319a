//! The socket of one peer. Every call returns at once.
//!
//! Shared by the worker that reads it, the workers that write to it and the device thread; closed when the last of them lets go.

use crate::device::listener;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// A connected socket, by number.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    number: u64,
}

impl Connection {
    /// The port's connection of this number over `socket`, which does not block.
    pub fn new(socket: OwnedFd, number: u64) -> Self {
        Self { socket, number }
    }

    /// Which of its port's connections it is: news of an earlier one may be late.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Reads what there is into `room`: how many bytes, 0 once the peer has closed it; `None` when there is nothing now.
    ///
    /// # Errors
    /// What recv(2) says.
    pub fn receive(&self, room: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::net::recv(&self.socket, room, RecvFlags::DONTWAIT) {
            Ok((bytes, _)) => Ok(Some(bytes)),
            // It left something unread.
            Err(Errno::CONNRESET) => Ok(Some(0)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends what the peer takes now; how many bytes that was.
    ///
    /// # Errors
    /// What send(2) says.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.socket, bytes, flags) {
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it for both sides; the socket itself is closed when nobody holds it any more.
    pub fn shut_down(&self) {
        // One that the peer has closed is shut down already.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// Another descriptor of the socket.
    ///
    /// # Errors
    /// None can be had.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Whether the other side has closed, even if bytes of it are still unread.
    pub fn is_dead(&self) -> bool {
        listener::is_hung_up(&self.socket)
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
