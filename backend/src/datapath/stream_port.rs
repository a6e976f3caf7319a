//! The data path's half of a stream port: its peer's connection, read by one worker and written to by any.
//!
//! The control side gives it connections through a [`StreamLink`]; the worker that finds one ended says so with
//! [`DatapathEvent::StreamEnded`](super::DatapathEvent). Kept true: nobody waits for the peer. What it does not read waits in the
//! port's own buffer, and what does not fit there, or still waits there when the peer goes, is dropped and counted.
//!
//! ```text
//!                    frame                  the socket takes not all of it
//!   nothing waits  --------->  one send(2)  ------------------------------>  wants room: its worker watches for it,
//!        ^                                                                   frames are added without a system call
//!        +----------------------------- all sent ---------------------------------------+
//! ```
//!
//! Lock order: the inbound half, then an outbound half of any port; never the other way round.

use super::carried::CarriedTraffic;
use super::counters::QueueCounters;
use super::frame::MAX_FRAME_BYTES;
use super::last_drops::PortDrops;
use super::placement::{Placement, Source, Workers};
use crate::port::stream::connection::Connection;
use crate::port::stream::framing::{BadLength, READ_BUFFER_BYTES, Unread};
use crate::port::stream::handover::{Parked, UnderWay};
use crate::port::stream::unsent::{NotTaken, Unsent};
use crate::ring::segment::PayloadCursor;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use switch_core::{DropReason, PortId};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a connection is over, in words for `port show`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamEnd {
    /// The peer closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer does not keep to the framing.
    #[error(
        "the peer broke the framing: {0}; connect one that speaks QEMU's -netdev stream framing"
    )]
    BadLength(#[from] BadLength),
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Socket(String),
    /// It came from another process, which did not say how far it had read it.
    #[error(
        "the process before did not hand it over to the end, and nobody knows where in a frame it was"
    )]
    Lost,
    /// The peer of the next connection had closed this one.
    #[error("the peer connected anew")]
    Replaced,
}

/// What comes from the peer.
#[derive(Debug)]
pub struct Inbound {
    /// The peer, if there is one.
    pub connection: Option<Arc<Connection>>,
    /// What is read into; as long as [`READ_BUFFER_BYTES`].
    pub buffer: Vec<u8>,
    /// What of it is not switched yet.
    pub unread: Unread,
}

/// What goes to the peer.
#[derive(Debug, Default)]
struct Outbound {
    connection: Option<Arc<Connection>>,
    unsent: Unsent,
}

/// A stream port with its traffic.
#[derive(Debug)]
pub struct StreamPort {
    /// The port.
    pub id: PortId,
    /// Who reads it.
    pub placement: Placement,
    /// Frames its peer sent into the switch. One worker reads the connection, so it alone writes these.
    pub from_peer: QueueCounters,
    /// Frames that its socket took. Written with the outbound half locked.
    pub to_peer: QueueCounters,
    /// What it had elsewhere.
    pub carried: CarriedTraffic,
    /// Why frames from or for it were dropped.
    pub drops: PortDrops,
    /// Longest frame the port takes, from its MTU.
    pub max_frame_bytes: u32,
    inbound: Mutex<Inbound>,
    outbound: Mutex<Outbound>,
    /// The peer's socket took not all: the port's worker is to watch for room. Changed with the outbound half locked.
    wants_room: AtomicBool,
    /// There is a peer. Changed with the inbound half locked; for those who must not wait for the worker that has it.
    is_connected: AtomicBool,
    /// Bytes that wait for the peer, alike.
    unsent_bytes: AtomicUsize,
    /// Tells that worker, whoever found out.
    bell: EventFd,
}

impl StreamPort {
    /// Without a peer.
    ///
    /// # Errors
    /// When its eventfd cannot be made.
    pub fn new(id: PortId, max_frame_bytes: u32) -> io::Result<Self> {
        Ok(Self {
            id,
            placement: Placement::default(),
            from_peer: QueueCounters::default(),
            to_peer: QueueCounters::default(),
            carried: CarriedTraffic::default(),
            drops: PortDrops::default(),
            max_frame_bytes: max_frame_bytes.min(MAX_FRAME_BYTES as u32),
            inbound: Mutex::new(Inbound {
                connection: None,
                buffer: vec![0; READ_BUFFER_BYTES],
                unread: Unread::default(),
            }),
            outbound: Mutex::default(),
            wants_room: AtomicBool::new(false),
            is_connected: AtomicBool::new(false),
            unsent_bytes: AtomicUsize::new(0),
            bell: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        })
    }

    /// What comes from the peer, for its worker, for a batch.
    pub fn inbound(&self) -> MutexGuard<'_, Inbound> {
        self.inbound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer, if there is one.
    pub fn connection(&self) -> Option<Arc<Connection>> {
        self.inbound().connection.clone()
    }

    /// Whether there is one.
    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    fn set_connection(&self, inbound: &mut Inbound, connection: Option<Arc<Connection>>) {
        self.is_connected
            .store(connection.is_some(), Ordering::Relaxed);
        inbound.connection = connection;
    }

    /// Where frames for the peer go, for a run of them.
    pub fn sender(&self) -> Sender<'_> {
        let outbound = self.outbound.lock();
        Sender {
            port: self,
            outbound: outbound.unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Whether something waits for the peer's socket to take it.
    #[inline]
    pub fn wants_room(&self) -> bool {
        self.wants_room.load(Ordering::Acquire)
    }

    /// Rings when that begins.
    pub fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// Gives up the connection of `inbound`, and with it what is half read and half sent; its number.
    pub fn end(&self, inbound: &mut Inbound) -> Option<u64> {
        let connection = inbound.connection.clone()?;
        self.set_connection(inbound, None);
        inbound.unread = Unread::default();
        connection.shut_down();
        self.sender().replace(None);
        Some(connection.number())
    }
}

/// The outbound half, locked.
pub struct Sender<'a> {
    port: &'a StreamPort,
    outbound: MutexGuard<'a, Outbound>,
}

impl Sender<'_> {
    /// Whether a frame of `frame_bytes`, or the first piece of one, can go at all.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, frame_bytes: usize) -> Result<(), DropReason> {
        if self.outbound.connection.is_none() {
            return Err(DropReason::PeerNotConnected);
        }
        if self.port.wants_room() && !self.outbound.unsent.has_room(frame_bytes) {
            return Err(DropReason::PeerNotReading);
        }
        Ok(())
    }

    /// Adds a frame: `start` is its first bytes, `payload` the rest.
    ///
    /// # Errors
    /// Why it cannot go; nothing of it does then.
    pub fn add(
        &mut self,
        start: &[u8],
        payload: (PayloadCursor<'_>, usize),
    ) -> Result<(), DropReason> {
        let frame_bytes = start.len() + payload.1;
        self.check(frame_bytes)?;
        if !self.outbound.unsent.has_room(frame_bytes) {
            self.send();
            self.check(frame_bytes)?;
        }
        match self.outbound.unsent.add(start, payload) {
            Ok(()) => Ok(()),
            Err(NotTaken::Full) => Err(DropReason::PeerNotReading),
            Err(NotTaken::Unreadable) => Err(DropReason::BadChain),
        }
    }

    /// Ends a run.
    pub fn finish(&mut self) {
        if !self.port.wants_room() {
            self.send();
        }
    }

    /// Gives the socket what waits for it.
    pub fn send(&mut self) {
        let Outbound { connection, unsent } = &mut *self.outbound;
        let Some(open) = connection else { return };
        match unsent.send(|bytes| open.send(bytes)) {
            Ok(sent) => {
                let all = unsent.is_empty();
                self.port.to_peer.frames.add(sent.frames);
                self.port.to_peer.bytes.add(sent.bytes);
                let wanted = self.port.wants_room.swap(!all, Ordering::AcqRel);
                if !all && !wanted {
                    // A full counter rings as well.
                    let _ = self.port.bell.write(1);
                }
            }
            Err(_) => {
                // Who reads it finds its end.
                open.shut_down();
                self.replace(None);
            }
        }
    }

    /// Sends to another peer from now on, or to none.
    fn replace(&mut self, connection: Option<Arc<Connection>>) {
        self.outbound.connection = connection;
        let lost = self.outbound.unsent.clear();
        let reason = DropReason::PeerNotConnected.name();
        self.port.drops.add_count(reason, lost);
        self.port.wants_room.store(false, Ordering::Release);
    }
}

impl Drop for Sender<'_> {
    fn drop(&mut self) {
        let waiting = self.outbound.unsent.len();
        self.port.unsent_bytes.store(waiting, Ordering::Relaxed);
    }
}

/// A stream port, as the device thread handles it.
pub struct StreamLink {
    port: Arc<StreamPort>,
    workers: Arc<Workers>,
    connections: AtomicU64,
}

impl StreamLink {
    pub(super) fn new(port: Arc<StreamPort>, workers: Arc<Workers>) -> Self {
        Self {
            port,
            workers,
            connections: AtomicU64::new(0),
        }
    }

    /// Exchanges frames over `socket` from now on, instead of the one before.
    pub fn connect(&self, socket: OwnedFd) -> Arc<Connection> {
        self.disconnect();
        let connection = Arc::new(Connection::new(socket, self.next_number()));
        self.port.sender().replace(Some(Arc::clone(&connection)));
        self.port
            .set_connection(&mut self.port.inbound(), Some(Arc::clone(&connection)));
        self.workers.watch(&Source::Stream(Arc::clone(&self.port)));
        connection
    }

    /// Exchanges no more frames; when this returns, no worker reads the socket, and soon none holds it.
    pub fn disconnect(&self) {
        self.port.end(&mut self.port.inbound());
        self.workers.forget(&Source::Stream(Arc::clone(&self.port)));
    }

    /// Bytes that wait for the peer to read.
    pub fn unsent_bytes(&self) -> usize {
        self.port.unsent_bytes.load(Ordering::Relaxed)
    }

    /// The number of the next connection.
    pub fn next_number(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    // For an upgrade.

    /// Has no worker read the connection from now on; frames are still sent.
    pub fn hold(&self) {
        self.workers.forget(&Source::Stream(Arc::clone(&self.port)));
    }

    /// Takes the connection as it is; no worker touches it any more.
    pub fn park(&self) -> Option<Parked> {
        let mut inbound = self.port.inbound();
        let mut sender = self.port.sender();
        let connection = inbound.connection.clone()?;
        self.port.set_connection(&mut inbound, None);
        let parked = Parked {
            unread: inbound.unread.bytes(&inbound.buffer).to_vec(),
            unsent: sender.outbound.unsent.bytes().to_vec(),
            begun: sender.outbound.unsent.begun(),
            connection,
        };
        inbound.unread = Unread::default();
        // Not lost: somebody goes on with it.
        sender.outbound.unsent = Unsent::default();
        sender.replace(None);
        Some(parked)
    }

    /// Goes on with a connection where another process, or this one, was with it: bytes that were read, and bytes to be sent.
    /// Workers read it once they are told to ([`Self::release`]).
    pub fn resume(&self, connection: Arc<Connection>, rest: UnderWay<'_>) {
        let mut inbound = self.port.inbound();
        let mut sender = self.port.sender();
        self.port
            .set_connection(&mut inbound, Some(Arc::clone(&connection)));
        let Inbound {
            buffer, unread: at, ..
        } = &mut *inbound;
        *at = Unread::of(rest.unread, buffer);
        sender.replace(Some(connection));
        sender.outbound.unsent.refill(rest.unsent, rest.begun);
        sender.send();
    }

    /// Has its worker read the connection.
    pub fn release(&self) {
        self.workers.watch(&Source::Stream(Arc::clone(&self.port)));
    }
}
