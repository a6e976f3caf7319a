//! Clients of the hypervisors that NICs are plugged into.
//!
//! * [`qmp`]: QEMU's machine protocol, one line of JSON each way; [`qemu`]: what is asked of a QEMU over it;
//! * [`cloud_hypervisor`]: Cloud Hypervisor's HTTP API over a UNIX socket.
//!
//! Called by the tasks of [`crate::devices`], one for each hypervisor, on their thread. What it keeps true: every call ends within its
//! deadline, an answer takes bounded memory, and nothing that a hypervisor says can do more than end its own connection.
pub mod cloud_hypervisor;
pub mod qemu;
pub mod qmp;

use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;

/// How long a hypervisor may take for an answer. A QEMU that emulates everything on a busy machine still answers within a second.
pub const ANSWER: Duration = Duration::from_secs(10);

/// Why a hypervisor did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HypervisorError {
    /// Nobody listens on its socket.
    #[error("no hypervisor listens on its socket ({0})")]
    Absent(String),
    /// Its socket may not be used.
    #[error("its socket cannot be opened: {0}")]
    Forbidden(String),
    /// It listens, and says nothing.
    #[error("it did not answer {what} within {} s", .within.as_secs())]
    Silent {
        /// What was asked.
        what: String,
        /// For how long it was waited for.
        within: Duration,
    },
    /// It closed the connection.
    #[error("it closed the connection while it was asked for {0}")]
    Closed(String),
    /// What it says is not what such a hypervisor says.
    #[error("it does not speak the protocol: {0}")]
    Protocol(String),
    /// It refused.
    #[error("it refused {what}: {reason}")]
    Refused {
        /// What was asked.
        what: String,
        /// The kind of refusal: QEMU's error class, or the HTTP status.
        class: String,
        /// In its own words.
        reason: String,
    },
}

impl HypervisorError {
    /// Whether the connection is of no more use.
    pub fn ends_connection(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }

    /// Whether what it was asked about is not there.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Refused { class, reason, .. } => {
                class == "DeviceNotFound" || reason.ends_with("not found")
            }
            _ => false,
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Absent(_) => "start the VM, or correct `vm.socket`",
            Self::Forbidden(_) => "let the daemon's user read and write the socket",
            Self::Silent { .. } => {
                "give Ringswitch a monitor of its own, since each serves one client at a time; if it has one, the hypervisor hangs"
            }
            Self::Closed(_) => "see whether the VM still runs",
            Self::Protocol(_) => {
                "check that `vm.socket` is the QMP or API socket of the hypervisor that `vm.hypervisor` names"
            }
            Self::Refused { .. } => "see the hypervisor's reason",
        }
    }

    fn of_io(error: &io::Error, what: &str) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::UnexpectedEof => Self::Closed(what.to_owned()),
            _ => Self::Protocol(format!("{what}: {error}")),
        }
    }
}

/// Connects to a hypervisor's socket. Its path may be a file that is no socket, or a socket nobody accepts from.
pub(crate) async fn connect(socket: &Path) -> Result<UnixStream, HypervisorError> {
    match tokio::time::timeout(ANSWER, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(of_connecting(&error)),
        Err(_) => Err(unaccepted()),
    }
}

/// That nobody listens means that the VM has ended. One that hangs listens still, with clients waiting that it does not accept.
fn of_connecting(error: &io::Error) -> HypervisorError {
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::ConnectionRefused => HypervisorError::Absent(error.to_string()),
        io::ErrorKind::PermissionDenied => HypervisorError::Forbidden(error.to_string()),
        io::ErrorKind::WouldBlock => unaccepted(),
        _ => HypervisorError::Protocol(format!("connecting: {error}")),
    }
}

fn unaccepted() -> HypervisorError {
    HypervisorError::Silent {
        what: "a connection".to_owned(),
        within: ANSWER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_nobody_listens_the_vm_has_ended() {
        let of = |kind: io::ErrorKind| of_connecting(&io::Error::from(kind));
        for ended in [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused] {
            assert!(matches!(of(ended), HypervisorError::Absent(_)), "{ended}");
        }
        // Clients wait that it does not accept.
        assert!(matches!(
            of(io::ErrorKind::WouldBlock),
            HypervisorError::Silent { .. }
        ));
        const EMFILE: i32 = 24;
        let ours = of_connecting(&io::Error::from_raw_os_error(EMFILE));
        assert!(matches!(ours, HypervisorError::Protocol(_)));
    }
}
