//! A stream port that passes from one process to the next while its peer stays connected.
//!
//! The old process keeps the port's lock from `Life::hand_over` on, so nothing of its socket changes. Its workers stop reading
//! ([`Frozen::hold`]), and once no ring is served any more the connection is taken from them, with what is half read and half sent
//! ([`Frozen::park`]): to the byte where the next one goes on. In the new process `Life::adopt` makes the same port of it, which gets its connection
//! with `Life::take_up` and is served from `Life::go` on. Without the old one's last word nobody knows where in a frame the stream is, so
//! the connection is closed, and the peer connects anew.

use super::connection::Connection;
use super::life::{Connected, Life, elapsed_ms};
use super::ports::StreamSpec;
use super::unsent::Begun;
use crate::datapath::{StreamEnd, StreamLink};
use crate::device::endpoint::{Endpoint, RETRY_FIRST};
use crate::device::listener::Listener;
use crate::device::status::ConnectionCounters;
use crate::device::{PortEventSink, SocketMode};
use crate::handover::descriptors::{Incoming, Outgoing, Slot};
use event_manager::EventOps;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};
use switch_core::PortId;

/// A port, on its way.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedStream {
    listener: Option<Slot>,
    /// Its connection, and since when.
    connection: Option<(Slot, u64)>,
    connections: ConnectionCounters,
    protocol_errors: u64,
    last_disconnect: Option<String>,
}

/// A connection in the moment in which nobody serves it.
#[derive(Debug)]
pub struct Parked {
    pub(crate) connection: Arc<Connection>,
    /// What was read of it and is not switched.
    pub(crate) unread: Vec<u8>,
    /// What is to be sent before anything else.
    pub(crate) unsent: Vec<u8>,
    /// How much of the first frame of that has gone.
    pub(crate) begun: Begun,
}

/// Where the bytes of a parked connection are among those of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRest {
    /// Whose.
    pub port: u16,
    unread_bytes: usize,
    unsent_bytes: usize,
    /// A version that does not count frames does not say it.
    begun: Option<Begun>,
}

impl StreamRest {
    /// Takes its bytes from the front of those of all.
    fn take<'a>(&self, bytes: &mut &'a [u8]) -> Option<UnderWay<'a>> {
        let (mine, rest) =
            bytes.split_at_checked(self.unread_bytes.checked_add(self.unsent_bytes)?)?;
        *bytes = rest;
        let (unread, unsent) = mine.split_at_checked(self.unread_bytes)?;
        Some(UnderWay {
            unread,
            unsent,
            begun: self.begun.unwrap_or(Begun::unknown(self.unsent_bytes)),
        })
    }
}

/// Bytes of a connection that belong to neither side yet.
#[derive(Clone, Copy, Debug)]
pub struct UnderWay<'a> {
    /// They were read and not switched.
    pub unread: &'a [u8],
    /// They are still to be sent.
    pub unsent: &'a [u8],
    /// How much of the first frame of those has gone.
    pub begun: Begun,
}

/// Every connection's bytes by port, from what one message says.
pub fn read_rests<'a>(rests: &[StreamRest], mut bytes: &'a [u8]) -> Vec<(PortId, UnderWay<'a>)> {
    let read = |rest: &StreamRest| Some((PortId::new(rest.port)?, rest.take(&mut bytes)?));
    rests.iter().map_while(read).collect()
}

/// Every port, locked.
pub struct Frozen<'a> {
    pub(super) ports: Vec<(PortId, MutexGuard<'a, Life>)>,
    pub(super) parked: Vec<(PortId, Parked)>,
}

impl Frozen<'_> {
    /// All that another process needs to serve the ports, but for what is on its way when it does.
    ///
    /// # Errors
    /// A descriptor cannot be had.
    pub fn hand_over(&self, descriptors: &mut Outgoing) -> io::Result<Vec<(PortId, HandedStream)>> {
        let hand_over =
            |(id, life): &(PortId, MutexGuard<'_, Life>)| Ok((*id, life.hand_over(descriptors)?));
        self.ports.iter().map(hand_over).collect()
    }

    /// No worker reads them from now on.
    pub fn hold(&self) {
        for (_, life) in &self.ports {
            life.link.hold();
        }
    }

    /// Takes all connections from the workers, which must not serve any ring; what the new process is to know of them, and the bytes.
    pub fn park(&mut self) -> (Vec<StreamRest>, Vec<u8>) {
        let parked = self.ports.iter();
        self.parked = parked
            .filter_map(|(id, life)| Some((*id, life.link.park()?)))
            .collect();
        let (mut rests, mut bytes) = (Vec::new(), Vec::new());
        for (id, parked) in &self.parked {
            rests.push(StreamRest {
                port: id.get(),
                unread_bytes: parked.unread.len(),
                unsent_bytes: parked.unsent.len(),
                begun: Some(parked.begun),
            });
            bytes.extend_from_slice(&parked.unread);
            bytes.extend_from_slice(&parked.unsent);
        }
        (rests, bytes)
    }

    /// Gives them back; they are read again once they are [watched](Self::release).
    pub fn unpark(&mut self) {
        for (id, parked) in self.parked.drain(..) {
            if let Some((_, life)) = self.ports.iter().find(|(other, _)| *other == id) {
                let rest = UnderWay {
                    unread: &parked.unread,
                    unsent: &parked.unsent,
                    begun: parked.begun,
                };
                life.link.resume(parked.connection, rest);
            }
        }
    }

    /// Ends them: another process may have read and sent on them, so that nobody knows where they are. Peers connect anew.
    pub fn abandon(&mut self) {
        for (_, parked) in &mut self.parked {
            parked.connection.shut_down();
            parked.unread.clear();
            parked.unsent.clear();
        }
        self.unpark();
    }

    /// Has workers read them again.
    pub fn release(&self) {
        for (_, life) in &self.ports {
            life.link.release();
        }
    }
}

impl Life {
    /// The port as it is, and its descriptors once more.
    ///
    /// # Errors
    /// A descriptor cannot be had.
    pub fn hand_over(&self, descriptors: &mut Outgoing) -> io::Result<HandedStream> {
        let listener = match &self.endpoint {
            Endpoint::Server(listener) => Some(descriptors.add(listener.share()?)),
            Endpoint::Client(_) | Endpoint::Closed => None,
        };
        let connection = self.connected.as_ref().map(|connected| {
            let socket = connected.connection.share()?;
            Ok::<_, io::Error>((descriptors.add(socket), elapsed_ms(connected.since)))
        });
        Ok(HandedStream {
            listener,
            connection: connection.transpose()?,
            connections: self.connections.clone(),
            protocol_errors: self.protocol_errors,
            last_disconnect: self.last_disconnect.clone(),
        })
    }

    /// Makes a port of what was handed over. It waits for [`Self::take_up`] and [`Self::go`].
    ///
    /// # Errors
    /// A descriptor did not come; then the port cannot be taken over.
    pub fn adopt(
        spec: StreamSpec,
        (handed, descriptors): (HandedStream, &mut Incoming),
        link: StreamLink,
        events: PortEventSink,
    ) -> io::Result<Self> {
        let endpoint = match (spec.mode, handed.listener) {
            (SocketMode::Server, Some(listener)) => {
                Endpoint::Server(Listener::adopt(descriptors.take(listener)?, &spec.socket))
            }
            (SocketMode::Server, None) => {
                return Err(io::Error::other("the listening socket did not come"));
            }
            (SocketMode::Client, _) => Endpoint::Client(RETRY_FIRST),
        };
        let connection = handed.connection.map(|(slot, since_ms)| {
            let since = Instant::now().checked_sub(Duration::from_millis(since_ms));
            let since = since.unwrap_or_else(Instant::now);
            Ok::<_, io::Error>((descriptors.take(slot)?, since))
        });
        let mut life = Self::new(spec, endpoint, link, events)?;
        life.adopted = Some(Adopted {
            connection: connection.transpose()?,
        });
        life.connections = handed.connections;
        life.protocol_errors = handed.protocol_errors;
        life.last_disconnect = handed.last_disconnect;
        Ok(life)
    }

    /// Gives an adopted port its connection, which `rest` is to be read and sent of first; no rest: it ended, or cannot be followed.
    pub fn take_up(&mut self, rest: Option<UnderWay<'_>>) {
        let Some(Adopted { connection }) = &mut self.adopted else {
            return;
        };
        let Some((socket, since)) = connection.take() else {
            return;
        };
        let connection = Arc::new(Connection::new(socket, self.link.next_number()));
        let connected = Connected {
            connection: Arc::clone(&connection),
            since,
        };
        self.connected = Some(connected);
        match rest {
            Some(rest) => self.link.resume(connection, rest),
            None => {
                connection.shut_down();
                self.end_connection(&StreamEnd::Lost);
            }
        }
    }

    /// Serves an adopted port.
    pub fn go(&mut self, ops: &mut EventOps) {
        if self.adopted.take().is_some() {
            if let Endpoint::Server(listener) = &mut self.endpoint {
                listener.own_file();
            }
            self.link.release();
            self.watch_endpoint(ops);
        }
    }
}

/// What an adopted port has until it is served.
#[derive(Debug)]
pub(super) struct Adopted {
    connection: Option<(OwnedFd, Instant)>,
}
