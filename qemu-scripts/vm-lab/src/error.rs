//! Why the lab could not do what a test asked.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can go wrong between the harness and its children.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that set-up makes is not there.
    #[error("{0} is missing: run ./qemu-scripts/setup first")]
    NotSetUp(PathBuf),
    /// The daemon was not built.
    #[error(
        "no ringswitch binary beside {0}: run cargo build --release -p ringswitch, or name one in RINGSWITCH_BIN"
    )]
    NoSwitch(PathBuf),
    /// The operating system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was attempted.
        doing: String,
        /// Its answer.
        source: io::Error,
    },
    /// Something awaited did not happen.
    #[error("waited {waited:?} for {what}{}", last.as_deref().map(|last| format!("; last: {last}")).unwrap_or_default())]
    Deadline {
        /// What should have happened.
        what: String,
        /// How long.
        waited: Duration,
        /// What was seen instead.
        last: Option<String>,
    },
    /// A child ended that should be running.
    #[error("{name} ended ({how}); its output ends with:\n{log}")]
    Ended {
        /// Which child.
        name: String,
        /// Exit status or signal.
        how: String,
        /// The end of what it printed.
        log: String,
    },
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {reason}")]
    Qmp {
        /// The command.
        command: String,
        /// Its description of the error.
        reason: String,
    },
    /// The agent could not do it.
    #[error("{agent}: {reason}")]
    Agent {
        /// Which agent.
        agent: String,
        /// What it said.
        reason: String,
    },
    /// A program ended with a status other than 0.
    #[error("{program} ended with status {status}: {output}")]
    Program {
        /// The command line.
        program: String,
        /// Exit status.
        status: i32,
        /// What it printed.
        output: String,
    },
    /// Something answered, but not what it should.
    #[error("{0}")]
    Unexpected(String),
}

/// A result of the lab.
pub type Result<T> = std::result::Result<T, Error>;

/// Says what was being done when the operating system refused.
pub trait Doing<T> {
    /// Adds it.
    ///
    /// # Errors
    /// The same error, with what was being done.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            doing: what(),
            source: source.into(),
        })
    }
}
