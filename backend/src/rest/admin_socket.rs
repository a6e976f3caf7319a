//! The admin socket's life.
//!
//! Claimed once at start, before anything else changes. A path is only ever taken from a socket that nobody answers on, and removed at exit only
//! while it is still our own.
use rustix::fs::{FlockOperation, Gid, Mode, chmod, chown, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    sockopt,
};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Connections the kernel holds for us until they are accepted.
const BACKLOG: i32 = 64;
/// How long another instance may take to claim a socket in the same directory.
const CLAIM_WAIT: Duration = Duration::from_secs(2);

/// Why the admin socket cannot be ours. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process answers on it.
    #[error(
        "another ringswitch{} serves {}; stop it, or give this one its own socket with --admin",
        pid_text(.pid),
        .path.display()
    )]
    Live {
        /// The socket.
        path: PathBuf,
        /// The process that listens, when it can be told.
        pid: Option<i32>,
    },
    /// There is something else.
    #[error("{} exists and is not a socket; move it away, or choose another path with --admin", .0.display())]
    NotASocket(PathBuf),
    /// The directory stays locked.
    #[error("{} is locked by another process for over 2 s; find it with `lslocks`", .0.display())]
    Locked(PathBuf),
    /// There is no such group.
    #[error(
        "there is no group {0:?} for the admin socket; name one of /etc/group, or its number, with --admin-group"
    )]
    NoGroup(String),
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; choose a path that may be written with --admin", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn pid_text(pid: &Option<i32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// The claimed socket. Dropping it removes the path, if it is still this socket's.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the path when it was made.
    identity: (u64, u64),
}

impl AdminSocket {
    /// Makes the directory when absent, replaces a dead instance's socket, and listens with mode 0600, or 0660 with a group.
    pub fn claim(path: &Path, group: Option<&str>) -> Result<Self, ClaimError> {
        // Nothing is made for a group that there is not.
        group.map(group_id).transpose()?;
        let failed = |action| {
            move |source| ClaimError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(failed("create the directory of"))?;
        // Held while the path is looked at and taken, so that two instances cannot both find the same dead socket. Released on return.
        let _claim = lock_directory(directory)?;
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at")(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ClaimError::NotASocket(path.to_owned()));
            }
            Ok(_) => {
                refuse_live(path)?;
                std::fs::remove_file(path).map_err(failed("replace"))?;
            }
        }
        let listener = listen_at(path).map_err(failed("listen on"))?;
        let made = std::fs::symlink_metadata(path).map_err(failed("look at"))?;
        let claimed = Self {
            listener,
            path: path.to_owned(),
            identity: (made.dev(), made.ino()),
        };
        claimed.admit(group)?;
        Ok(claimed)
    }

    /// Opens the socket to the members of a group, or to nobody but the daemon's user.
    pub fn admit(&self, group: Option<&str>) -> Result<(), ClaimError> {
        let failed = |error: Errno| ClaimError::Io {
            action: "change the group of",
            path: self.path.clone(),
            source: error.into(),
        };
        let found = std::fs::symlink_metadata(&self.path);
        // A path that somebody took or removed is nothing of ours to change.
        if !found.is_ok_and(|now| (now.dev(), now.ino()) == self.identity) {
            return Ok(());
        }
        // Closed while it changes hands.
        chmod(&self.path, Mode::from_raw_mode(0o600)).map_err(failed)?;
        let Some(group) = group else { return Ok(()) };
        chown(&self.path, None, Some(group_id(group)?)).map_err(failed)?;
        chmod(&self.path, Mode::from_raw_mode(0o660)).map_err(failed)
    }

    /// Takes over the socket that another process listens on, wherever that is: a path that is configured otherwise since holds from the next
    /// start.
    pub fn adopt(listener: OwnedFd, configured: &Path) -> Self {
        let listener = UnixListener::from(listener);
        let bound = listener.local_addr().ok();
        let bound = bound.and_then(|address| address.as_pathname().map(Path::to_owned));
        let path = bound.unwrap_or_else(|| configured.to_owned());
        // A path that somebody removed is nothing of ours to remove.
        let identity = std::fs::symlink_metadata(&path);
        Self {
            listener,
            path,
            identity: identity.map_or((0, 0), |made| (made.dev(), made.ino())),
        }
    }

    /// The listening socket, non-blocking.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// A group's number, from its number or its name in /etc/group.
fn group_id(group: &str) -> Result<Gid, ClaimError> {
    let number = |text: &str| text.parse().ok().filter(|id| *id != u32::MAX);
    let named = || {
        let groups = std::fs::read_to_string("/etc/group").ok()?;
        // group(5): name:password:number:members
        groups.lines().find_map(|line| {
            let mut fields = line.split(':');
            let is_named = fields.next() == Some(group);
            is_named.then(|| number(fields.nth(1)?)).flatten()
        })
    };
    let id = number(group).or_else(named);
    id.map(Gid::from_raw)
        .ok_or_else(|| ClaimError::NoGroup(group.to_owned()))
}

fn lock_directory(directory: &Path) -> Result<File, ClaimError> {
    let failed = |source| ClaimError::Io {
        action: "lock",
        path: directory.to_owned(),
        source,
    };
    let file = File::open(directory).map_err(failed)?;
    let deadline = Instant::now() + CLAIM_WAIT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10))
            }
            Err(Errno::WOULDBLOCK) => return Err(ClaimError::Locked(directory.to_owned())),
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Whether somebody listens there: connects without waiting, since a live instance may be too busy to accept.
fn refuse_live(path: &Path) -> Result<(), ClaimError> {
    let failed = |error: Errno| ClaimError::Io {
        action: "probe",
        path: path.to_owned(),
        source: error.into(),
    };
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let probe = stream_socket().map_err(failed)?;
    match connect(&probe, &address) {
        Ok(()) => {
            let pid = sockopt::socket_peercred(&probe)
                .ok()
                .map(|peer| peer.pid.as_raw_nonzero().get());
            Err(ClaimError::Live {
                path: path.to_owned(),
                pid,
            })
        }
        // Its backlog is full (unix(7)): it lives.
        Err(Errno::AGAIN) => Err(ClaimError::Live {
            path: path.to_owned(),
            pid: None,
        }),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn stream_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let socket = stream_socket()?;
    // A path takes its socket's mode when it is bound, so that it is never open to others, not even for a moment.
    fchmod(&socket, Mode::from_raw_mode(0o600))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use vmm_sys_util::tempdir::TempDir;

    fn folder() -> TempDir {
        TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-admin-")).unwrap()
    }

    #[test]
    fn the_socket_is_for_its_owner_alone_and_its_directory_is_made() {
        let folder = folder();
        let path = folder.as_path().join("made/admin.sock");
        let _socket = AdminSocket::claim(&path, None).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_group_may_use_it_too() {
        let folder = folder();
        let path = folder.as_path().join("admin.sock");
        let look = || {
            let found = std::fs::metadata(&path).unwrap();
            (found.permissions().mode() & 0o777, found.gid())
        };
        // Whoever runs this may at least give it to a group of its own.
        let own = std::fs::metadata(folder.as_path()).unwrap().gid();
        let socket = AdminSocket::claim(&path, Some(&own.to_string())).unwrap();
        assert_eq!(look(), (0o660, own));
        socket.admit(None).unwrap();
        assert_eq!(look().0, 0o600);
        drop(socket);
        assert_eq!(group_id("root").unwrap(), Gid::ROOT);
        for group in ["no-such-group", "-1", "4294967295"] {
            let refused = AdminSocket::claim(&path, Some(group));
            assert!(matches!(refused, Err(ClaimError::NoGroup(_))), "{group}");
            assert!(!path.exists());
        }
    }

    #[test]
    fn it_is_removed_when_dropped() {
        let folder = folder();
        let path = folder.as_path().join("admin.sock");
        drop(AdminSocket::claim(&path, None).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_instances_socket_is_replaced() {
        let folder = folder();
        let path = folder.as_path().join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        let _socket = AdminSocket::claim(&path, None).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_live_instances_socket_is_left_alone_and_its_process_named() {
        let folder = folder();
        let path = folder.as_path().join("admin.sock");
        let _live = AdminSocket::claim(&path, None).unwrap();
        let error = AdminSocket::claim(&path, None).unwrap_err();
        let expected = format!(
            "another ringswitch (pid {}) serves {}",
            std::process::id(),
            path.display()
        );
        assert!(error.to_string().starts_with(&expected), "{error}");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_live_instance_too_busy_to_accept_is_live_still() {
        let folder = folder();
        let path = folder.as_path().join("admin.sock");
        let _live = AdminSocket::claim(&path, None).unwrap();
        let address = SocketAddrUnix::new(path.as_path()).unwrap();
        let mut waiting = vec![];
        loop {
            let client = stream_socket().unwrap();
            match connect(&client, &address) {
                Ok(()) => waiting.push(client),
                Err(error) => break assert_eq!(error, Errno::AGAIN),
            }
        }
        assert!(matches!(
            AdminSocket::claim(&path, None),
            Err(ClaimError::Live { pid: None, .. })
        ));
    }

    #[test]
    fn what_is_not_a_socket_is_never_removed() {
        let folder = folder();
        let file = folder.as_path().join("file");
        std::fs::write(&file, "precious").unwrap();
        let link = folder.as_path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link, &folder.as_path().to_owned()] {
            assert!(
                matches!(
                    AdminSocket::claim(path, None),
                    Err(ClaimError::NotASocket(_))
                ),
                "{}",
                path.display()
            );
        }
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "precious");
    }

    #[test]
    fn a_path_that_another_took_meanwhile_is_not_removed() {
        let folder = folder();
        let path = folder.as_path().join("admin.sock");
        let socket = AdminSocket::claim(&path, None).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
