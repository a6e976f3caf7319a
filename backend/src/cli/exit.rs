//! What an error means for the exit code, in one place.
use super::client::ClientError;
use crate::config::edit::EditFault;
use crate::config::{ConfigError, InvalidField, ProgramFault};
use crate::daemon::DaemonError;
use crate::rest::RemoteError;
use std::io;
use std::path::PathBuf;

/// Everything that can end a call, other than success.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An argument is refused.
    #[error(transparent)]
    Argument(#[from] InvalidField),
    /// The program is refused.
    #[error(transparent)]
    Program(#[from] ProgramFault),
    /// The daemon does not start.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The daemon was ended before it had drained.
    #[error(
        "ended before the drain was complete; sockets may be left, which the next start replaces"
    )]
    CutShort,
    /// The daemon did not do what was asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// `config diff` has found something.
    #[error(
        "what runs differs from the configuration file; `ringswitch config save` writes it there"
    )]
    Differs,
    /// `doctor` has found something.
    #[error("{problems} problems and {warnings} warnings")]
    Unwell {
        /// What does not work.
        problems: usize,
        /// What could be better.
        warnings: usize,
    },
    /// A configuration file cannot be edited.
    #[error("{}: {fault}", .path.display())]
    Edit {
        /// The file.
        path: PathBuf,
        /// Why not.
        fault: EditFault,
    },
    /// A device that was to be waited for.
    #[error("device {0} is not ready; `ringswitch device show {0}` says why, and what to do")]
    NotReady(String),
    /// A device that was removed is there still.
    #[error(
        "device {0} is not gone yet; `ringswitch device show {0}` says how it fares, and what to do"
    )]
    NotGone(String),
    /// A stream that was listened to is over.
    #[error("the stream has ended: {reason}; {}", going_on(.after))]
    StreamEnded {
        /// Why.
        reason: String,
        /// The event to go on after; empty: there was none.
        after: String,
    },
    /// There is no file to write to.
    #[error("the daemon was started without a configuration file; name one with --file")]
    NoFile,
    /// Something of this machine.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn going_on(after: &str) -> String {
    match after {
        "" => "`ringswitch events` listens again".to_owned(),
        id => format!(
            "`ringswitch events --after {id}` goes on there, or says that events were missed"
        ),
    }
}

impl CliError {
    /// 1: the operation failed; 2: wrong usage or configuration; 3: the daemon cannot be reached, or went away; 4: differences were found; 5, 6: `doctor`
    /// found warnings, problems.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Argument(_)
            | Self::Program(_)
            | Self::NoFile
            | Self::Client(ClientError::Reach(_)) => 2,
            Self::Differs => 4,
            Self::Unwell { problems: 0, .. } => 5,
            Self::Unwell { .. } => 6,
            Self::Daemon(
                DaemonError::Program(_)
                | DaemonError::ServicesFile(_)
                | DaemonError::Remote(RemoteError::Tokens(_) | RemoteError::Tls(_)),
            ) => 2,
            Self::Client(ClientError::Unreachable { .. }) | Self::StreamEnded { .. } => 3,
            Self::Daemon(_)
            | Self::CutShort
            | Self::NotReady(_)
            | Self::NotGone(_)
            | Self::Client(_)
            | Self::Edit { .. }
            | Self::Io { .. } => 1,
        }
    }
}
