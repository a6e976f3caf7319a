//! What can go wrong in a race, in words that say what to do.

use std::io;
use std::time::Duration;

/// Why a case, or the whole race, could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why not.
        source: io::Error,
    },
    /// A process of the race ended by itself.
    #[error("{name} ended ({how}); the end of what it said:\n{said}")]
    Ended {
        /// Which.
        name: String,
        /// Its status or signal.
        how: String,
        /// The end of its output.
        said: String,
    },
    /// A program that was to do one thing failed.
    #[error("{program} failed ({how}): {said}")]
    Program {
        /// Its command line.
        program: String,
        /// Its status or signal.
        how: String,
        /// Its output.
        said: String,
    },
    /// Something did not happen in time.
    #[error("{what}: not within {within:?}{said}")]
    Deadline {
        /// What was awaited.
        what: String,
        /// For how long.
        within: Duration,
        /// What is known about it, if anything.
        said: String,
    },
    /// A program's output is not what it is known to print.
    #[error("{what} is not in this output:\n{text}")]
    Unparsed {
        /// What was looked for.
        what: &'static str,
        /// Where.
        text: String,
    },
    /// The simulated guest.
    #[error(transparent)]
    Guest(#[from] guest_sim::Error),
    /// A real guest.
    #[error(transparent)]
    Lab(#[from] vm_lab::Error),
    /// This switch, in this build, does not do what the case needs.
    #[error("not offered: {0}")]
    NotOffered(String),
    /// The measurement is not one: too little moved, or in one direction only.
    #[error("{0}")]
    Invalid(String),
}

/// The outcome of everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// Says what was being done when the system refused.
pub(crate) trait Doing<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Io {
            doing: doing(),
            source: error.into(),
        })
    }
}
