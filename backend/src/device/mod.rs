//! vhost-user: front-ends connect here, and their rings go to the workers.
//!
//! In the order a request meets them, all on the one device thread:
//!
//! * `thread`: the event loop that serves every port; what `control` calls.
//! * `endpoint` and `listener`: where connections come from, as a server or as a client; those of stream ports, too.
//! * `port`: one port's socket life: one session at a time, reconnects, limits.
//! * [`session`]: bytes and descriptors to messages, replies to bytes.
//! * `descriptors`: what came with it, of kinds that never block.
//! * [`message`]: a message to a typed request.
//! * [`state`]: the device's state machine, with [`ring_state`], [`features`] and `rarp`.
//! * [`state_transfer`]: what a migration carries of a port, beside everything else;
//! * [`attach`]: its effects: memory is mapped, rings go to workers and come back.
//! * [`backend_channel`]: what front-ends are asked;
//! * `receiving`: their memory, while it arrives page by page;
//! * [`status`]: all of it in words, for `port show`.
//!
//! Protocol code never touches a frame; data-path code never touches a socket.

pub mod attach;
pub mod backend_channel;
pub mod descriptors;
pub(crate) mod endpoint;
pub mod features;
pub(crate) mod listener;
pub mod message;
mod port;
mod rarp;
mod receiving;
#[doc(hidden)]
pub mod recording;
pub mod ring_state;
pub mod session;
pub mod state;
pub mod state_transfer;
pub mod status;
pub(crate) mod thread;

pub use port::HandedPort;
pub use status::DeviceStatus;
pub use switch_core::PortId;
pub use thread::{DeviceThread, Frozen, MAX_QUEUE_PAIRS};

use features::Offer;
use rustix::io::Errno;
use state_transfer::StateCarrier;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Who listens on a port's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketMode {
    /// Ringswitch listens; the hypervisor connects.
    Server,
    /// The hypervisor listens; Ringswitch connects, again and again.
    Client,
}

/// A vhost-user port to be added.
#[derive(Clone, Debug)]
pub struct VhostPortSpec {
    /// Its number in the switch.
    pub id: PortId,
    /// Its name in the log.
    pub name: String,
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// Who listens on it.
    pub mode: SocketMode,
    /// One guest-rx and one guest-tx ring each; 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u16,
    /// The largest MTU a front-end may set; none: any that virtio has.
    pub mtu: Option<u16>,
    /// For a port that offers packed rings: the folder in which they keep their positions.
    pub packed: Option<PathBuf>,
    /// For a port whose state in the switch migrates with its VM: where that comes from and goes to.
    pub carrier: Option<Arc<dyn StateCarrier>>,
    /// What the port offered in an earlier life; none: what this version offers.
    pub offer: Option<Offer>,
}

/// A port came up or went down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortEvent {
    /// Which.
    pub port: PortId,
    /// What happened.
    pub change: PortChange,
}

/// What happened to a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortChange {
    /// Its first ring runs.
    Up,
    /// Its last ring stopped: what was learned about it is stale.
    Down {
        /// In words.
        reason: String,
    },
    /// Its front-end left, and the next may be another VM's.
    Left,
}

/// Hears of [`PortEvent`]s, on the device thread; must not block.
pub type PortEventSink = Arc<dyn Fn(PortEvent) + Send + Sync>;

/// Why a port cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel's limit for a Unix socket.
    #[error("{} is {bytes} bytes long, a socket's path has at most 107: choose a shorter one", .path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Empty, or with a zero byte, or a folder.
    #[error("{:?} cannot name a socket: give the path of a file", .path)]
    NotASocketPath {
        /// The path.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} exists and is not a socket: remove it or choose another path", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A live process listens.
    #[error("{} is served by a running process: stop that or choose another path", .path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The folder of the socket.
    #[error("the folder {} cannot be used: {source}: create it, or stop what holds it locked", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket itself.
    #[error("{} cannot be listened on: {source}", .path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// More than vhost-user can name, or none.
    #[error("{queue_pairs} queue pairs: a port has 1 to {MAX_QUEUE_PAIRS}")]
    QueuePairs {
        /// What was asked for.
        queue_pairs: u16,
    },
    /// Twice the same id.
    #[error("{id:?} exists already")]
    PortExists {
        /// The id.
        id: PortId,
    },
    /// Never added, or removed.
    #[error("{id:?} does not exist")]
    NoSuchPort {
        /// The id.
        id: PortId,
    },
    /// The device thread cannot take the port.
    #[error("the vhost-user thread does not take the port: {0}")]
    Thread(io::Error),
}

impl DeviceError {
    /// Whether the process holds as many descriptors as it may.
    pub fn is_out_of_descriptors(&self) -> bool {
        match self {
            Self::Folder { source, .. } | Self::Bind { source, .. } | Self::Thread(source) => {
                Errno::from_io_error(source) == Some(Errno::MFILE)
            }
            _ => false,
        }
    }
}
