//! File descriptors that a front-end passes where something else is due.
//!
//! Made on the test's thread, one per message. Keeps true: each is open and valid as a descriptor; only its kind is wrong.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;
use rustix::pipe::PipeFlags;

use crate::error::{Doing, Error};

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassedDescriptor {
    /// What is due for rings: a non-blocking eventfd.
    EventFd,
    /// An eventfd that blocks, with its counter at the maximum: whoever writes to it without care sleeps for ever.
    FullBlockingEventFd,
    /// What is due for memory: a memfd of this many bytes.
    Memfd(u64),
    /// A memfd sealed against writing.
    SealedMemfd(u64),
    /// The end of a pipe that can be read, its writer gone.
    PipeReadEnd,
    /// The end of a pipe that can be written to, its reader gone: writing raises SIGPIPE.
    BrokenPipe,
    /// The end of a pipe that is full and blocks.
    FullBlockingPipe,
    /// A regular file, opened for reading only.
    ReadOnlyFile,
    /// A directory.
    Directory,
    /// `/dev/null`.
    DevNull,
    /// A socket whose other end is closed.
    Socket,
    /// An epoll instance.
    Epoll,
}

impl PassedDescriptor {
    /// Every wrong kind for a ring's eventfd.
    pub const NOT_EVENTFDS: &'static [Self] = &[
        Self::FullBlockingEventFd,
        Self::Memfd(4096),
        Self::PipeReadEnd,
        Self::BrokenPipe,
        Self::FullBlockingPipe,
        Self::ReadOnlyFile,
        Self::Directory,
        Self::DevNull,
        Self::Socket,
        Self::Epoll,
    ];

    /// Every wrong kind for memory of 64 KiB.
    pub const NOT_MEMORY: &'static [Self] = &[
        Self::EventFd,
        Self::Memfd(0),
        Self::Memfd(4096),
        Self::SealedMemfd(1 << 16),
        Self::PipeReadEnd,
        Self::BrokenPipe,
        Self::ReadOnlyFile,
        Self::Directory,
        Self::DevNull,
        Self::Socket,
        Self::Epoll,
    ];

    /// Makes one.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn make(self) -> Result<OwnedFd, Error> {
        match self {
            Self::EventFd => eventfd(EventfdFlags::NONBLOCK),
            Self::FullBlockingEventFd => {
                let fd = eventfd(EventfdFlags::empty())?;
                rustix::io::write(&fd, &(u64::MAX - 1).to_le_bytes())
                    .doing("filling an eventfd")?;
                Ok(fd)
            }
            Self::Memfd(bytes) => memfd(bytes, MemfdFlags::CLOEXEC),
            Self::SealedMemfd(bytes) => {
                let fd = memfd(bytes, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
                rustix::fs::fcntl_add_seals(&fd, rustix::fs::SealFlags::WRITE)
                    .doing("sealing a memfd")?;
                Ok(fd)
            }
            Self::PipeReadEnd => Ok(pipe()?.0),
            Self::BrokenPipe => Ok(pipe()?.1),
            Self::FullBlockingPipe => full_pipe(),
            Self::ReadOnlyFile => Ok(File::open("/proc/self/exe").doing("opening a file")?.into()),
            Self::Directory => Ok(File::open("/").doing("opening a directory")?.into()),
            Self::DevNull => Ok(File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .doing("opening a file")?
                .into()),
            Self::Socket => {
                let (one, other) =
                    std::os::unix::net::UnixStream::pair().doing("making a socket pair")?;
                drop(other);
                Ok(one.into())
            }
            Self::Epoll => rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)
                .doing("creating an epoll instance"),
        }
    }
}

fn eventfd(flags: EventfdFlags) -> Result<OwnedFd, Error> {
    rustix::event::eventfd(0, flags | EventfdFlags::CLOEXEC).doing("creating an eventfd")
}

fn memfd(bytes: u64, flags: MemfdFlags) -> Result<OwnedFd, Error> {
    let fd = rustix::fs::memfd_create("guest-sim-odd", flags).doing("creating a memfd")?;
    rustix::fs::ftruncate(&fd, bytes).doing("sizing a memfd")?;
    Ok(fd)
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).doing("making a pipe")
}

/// The reader must stay, or the pipe would be broken instead of full; it stays as long as the process.
fn full_pipe() -> Result<OwnedFd, Error> {
    let (reader, writer) = pipe()?;
    let size = rustix::pipe::fcntl_getpipe_size(&writer).doing("asking a pipe's size")?;
    rustix::io::write(&writer, &vec![0; size]).doing("filling a pipe")?;
    std::mem::forget(reader);
    Ok(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_can_be_made() {
        for kind in PassedDescriptor::NOT_EVENTFDS
            .iter()
            .chain(PassedDescriptor::NOT_MEMORY)
        {
            kind.make()
                .unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        }
    }
}
