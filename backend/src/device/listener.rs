//! Where connections come from: a listening socket of ours, or a front-end's that we connect to.
//!
//! A port calls it on the device thread; [`Listener::bind`] runs on the control thread that adds the port. Kept true: a path
//! that is not a dead socket is never removed, and a socket file of ours is removed only while it is still ours.

use super::DeviceError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Resource, getrlimit};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A Unix socket's path and its terminating zero fit in 108 bytes (unix(7)).
const MAX_PATH_BYTES: usize = 107;
/// Owner and group: the hypervisor usually runs as another user of the same group.
const SOCKET_MODE: u32 = 0o660;
/// Connections the kernel keeps until they are accepted.
const BACKLOG: i32 = 16;
/// How long another process may hold the folder while it binds its own socket.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Number from which on listening sockets have their descriptors. The kernel's table of them takes 8 bytes for each number below.
const LISTENERS_ABOVE: u64 = 16_384;

/// The identity of no file.
const NOBODYS_FILE: (u64, u64) = (0, 0);

/// A listening socket and its file.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file, to know it again before it is removed.
    file: (u64, u64),
}

impl Listener {
    /// Listens at `path`. The socket of a dead instance is replaced; a live one, or a file that is no socket, is an error.
    ///
    /// Two instances that start at once are kept apart by a lock on the folder, held only meanwhile.
    pub fn bind(path: &Path) -> Result<Self, DeviceError> {
        let address = address(path)?;
        let folder = lock_folder(path)?;
        clear_stale(path, &address)?;
        let failed = |error: Errno| DeviceError::Bind {
            path: path.to_owned(),
            source: error.into(),
        };
        let socket = stream_socket().map_err(failed)?;
        let mode = Mode::from_raw_mode(SOCKET_MODE);
        // On the socket first: its file is then never open to more than `mode`; on the file after, because of the umask.
        rustix::fs::fchmod(&socket, mode).map_err(failed)?;
        rustix::net::bind(&socket, &address).map_err(failed)?;
        rustix::fs::chmod(path, mode).map_err(failed)?;
        rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
        let file = identity(&rustix::fs::lstat(path).map_err(failed)?);
        drop(folder);
        Ok(Self {
            socket: closed_first(socket),
            path: path.to_owned(),
            file,
        })
    }

    /// Takes over a socket that another process bound to `path`, and whose file is that process's until [`Self::own_file`].
    pub fn adopt(socket: OwnedFd, path: &Path) -> Self {
        Self {
            socket: closed_first(socket),
            path: path.to_owned(),
            file: NOBODYS_FILE,
        }
    }

    /// From now on the file of a socket that was taken over is to go with it.
    pub fn own_file(&mut self) {
        // A path that somebody removed is nothing of ours to remove.
        self.file = rustix::fs::lstat(&self.path).map_or(NOBODYS_FILE, |file| identity(&file));
    }

    /// Another descriptor of the socket.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// The next waiting connection, non-blocking; `None` when there is none.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(stream) => Ok(Some(stream)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let still_ours =
            rustix::fs::lstat(&self.path).is_ok_and(|file| identity(&file) == self.file);
        if !still_ours {
            return;
        }
        if let Err(error) = rustix::fs::unlink(&self.path) {
            log::warn!(
                "{}: the socket cannot be removed: {error}",
                self.path.display()
            );
        }
    }
}

/// The same socket under a number above those of connections, if there is room. The kernel closes a killed process's descriptors from the
/// highest down. A front-end that hears of its connection's end could otherwise connect anew to a process that is dying, and Cloud Hypervisor
/// gives up for good where such a connection breaks; one that is refused it tries again.
fn closed_first(socket: OwnedFd) -> OwnedFd {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let above = (limit / 2).min(LISTENERS_ABOVE) as RawFd;
    rustix::io::fcntl_dupfd_cloexec(&socket, above).unwrap_or(socket)
}

/// Connects to a front-end that listens; never blocks. A Unix socket connects at once or not at all.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = stream_socket()?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Whether the other side of a connected socket has closed it, even if bytes of it are still unread.
pub fn is_hung_up(socket: &impl AsFd) -> bool {
    let mut sockets = [PollFd::new(socket, PollFlags::RDHUP)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let polled = poll(&mut sockets, Some(&now));
    let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    polled.is_ok()
        && sockets
            .iter()
            .any(|socket| socket.revents().intersects(gone))
}

/// Whether `path` can name a socket at all; said when the port is added, in both modes.
pub fn address(path: &Path) -> Result<SocketAddrUnix, DeviceError> {
    let bytes = path.as_os_str().len();
    if bytes > MAX_PATH_BYTES {
        return Err(DeviceError::PathTooLong {
            path: path.to_owned(),
            bytes,
        });
    }
    SocketAddrUnix::new(path)
        .ok()
        .filter(|_| path.file_name().is_some())
        .ok_or_else(|| DeviceError::NotASocketPath {
            path: path.to_owned(),
        })
}

fn stream_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn identity(file: &Stat) -> (u64, u64) {
    (file.st_dev, file.st_ino)
}

/// An exclusive lock on the folder of `path`, released by being dropped.
fn lock_folder(path: &Path) -> Result<OwnedFd, DeviceError> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let failed = |error: Errno| DeviceError::Folder {
        folder: folder.to_owned(),
        source: error.into(),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = rustix::fs::open(folder, flags, Mode::empty()).map_err(failed)?;
    let started = Instant::now();
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK | Errno::INTR) if started.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_RETRY)
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Makes room at `path`, called with the folder locked.
fn clear_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), DeviceError> {
    let failed = |error: Errno| DeviceError::Bind {
        path: path.to_owned(),
        source: error.into(),
    };
    let file = match rustix::fs::lstat(path) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if FileType::from_raw_mode(file.st_mode) != FileType::Socket {
        return Err(DeviceError::NotASocket {
            path: path.to_owned(),
        });
    }
    let probe = stream_socket().map_err(failed)?;
    match rustix::net::connect(&probe, address) {
        // Nobody listens: the instance that bound it is dead.
        Err(Errno::CONNREFUSED) => rustix::fs::unlink(path).map_err(failed),
        Err(Errno::NOENT) => Ok(()),
        // A full backlog or a socket of another type is somebody's too.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(DeviceError::InUse {
            path: path.to_owned(),
        }),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempdir::TempDir;

    #[test]
    fn a_socket_that_was_taken_over_is_removed_only_by_who_owns_its_file() {
        let prefix = std::env::temp_dir().join("ringswitch-listener-");
        let folder = TempDir::new_with_prefix(prefix).unwrap();
        let path = folder.as_path().join("socket");
        let theirs = Listener::bind(&path).unwrap();
        drop(Listener::adopt(theirs.share().unwrap(), &path));
        assert!(path.exists(), "refused before it served it");
        let mut ours = Listener::adopt(theirs.share().unwrap(), &path);
        ours.own_file();
        drop(ours);
        assert!(!path.exists());
    }
}
