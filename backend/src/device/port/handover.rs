//! A port that passes from one process to the next while its front-end stays connected.
//!
//! The old process keeps the port's lock from [`Port::hand_over`] on, so nothing of it changes; [`Port::park`] takes its rings back for the
//! moment in which nobody serves them. In the new process [`Port::adopt`] makes the same port of it, which does nothing before
//! [`Port::go`]. Should the new one fail, [`Port::unpark`] goes on where the old one was.

use super::{Connected, Port, READING, Token};
use crate::device::attach::{DatapathAttachment, HandedAttachment};
use crate::device::endpoint::{Endpoint, RETRY_FIRST, Timer};
use crate::device::listener::Listener;
use crate::device::message::RequestCode;
use crate::device::session::{HandedStream, Session};
use crate::device::state::DeviceState;
use crate::device::status::ConnectionCounters;
use crate::device::status::Logging;
use crate::device::{PortEventSink, SocketMode, VhostPortSpec};
use crate::handover::descriptors::{Incoming, Outgoing, Slot};
use crate::ring::RecordFile;
use event_manager::EventOps;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connected front-end, on its way.
#[derive(Debug, Serialize, Deserialize)]
struct HandedSession {
    stream: HandedStream,
    since_ms: u64,
    /// The last request, and since when.
    last_message: Option<(u32, u64)>,
}

/// A port, on its way.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedPort {
    /// Its device, with its rings as they were when it was written down.
    pub device: DeviceState,
    listener: Option<Slot>,
    session: Option<HandedSession>,
    attached: HandedAttachment,
    connections: ConnectionCounters,
    last_disconnect: Option<String>,
    logging_ms: Option<u64>,
}

impl HandedPort {
    /// Where its packed rings keep their positions, if it has such.
    ///
    /// # Errors
    /// The descriptor did not come.
    pub fn records(
        &self,
        descriptors: &mut Incoming,
        spec: &VhostPortSpec,
    ) -> io::Result<Option<RecordFile>> {
        let folder = spec.packed.as_deref().unwrap_or(Path::new(""));
        self.attached.records(descriptors, (folder, &spec.name))
    }
}

impl Port {
    /// The port as it is, and its descriptors once more.
    ///
    /// # Errors
    /// A descriptor cannot be had, or a request waits for its answer ([`io::ErrorKind::ResourceBusy`]): what works at that stays here.
    pub fn hand_over(&self, descriptors: &mut Outgoing) -> io::Result<HandedPort> {
        if let Some(asked) = self.connected.as_ref().and_then(|it| it.waits) {
            let reason = format!("{} has not answered {} yet", self.name, asked.request);
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, reason));
        }
        if self.device.is_in_postcopy() {
            let reason = format!(
                "the VM of {} is arriving by a postcopy migration",
                self.name
            );
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, reason));
        }
        let listener = match &self.endpoint {
            Endpoint::Server(listener) => Some(descriptors.add(listener.share()?)),
            Endpoint::Client(_) | Endpoint::Closed => None,
        };
        let session = self.connected.as_ref().map(|connected| {
            Ok::<_, io::Error>(HandedSession {
                stream: connected
                    .session
                    .hand_over(descriptors)
                    .map_err(|error| self.named(error))?,
                since_ms: super::elapsed_ms(connected.since),
                last_message: connected
                    .last_message
                    .map(|(request, at)| (request.0, super::elapsed_ms(at))),
            })
        });
        Ok(HandedPort {
            device: self.device.clone(),
            listener,
            session: session.transpose()?,
            attached: self
                .attachment
                .hand_over(descriptors)
                .map_err(|error| self.named(error))?,
            connections: self.connections.clone(),
            last_disconnect: self.last_disconnect.clone(),
            logging_ms: self.logging.as_ref().map(Logging::since_ms),
        })
    }

    fn named(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.name))
    }

    /// Takes the rings of one direction back: nobody serves them from now on. Of all ports first those that guests transmit on: what is
    /// under way to a ring that was taken back would be lost.
    pub fn park(&mut self, guest_tx: bool) {
        self.device.suspend_rings(
            |queue| queue.is_guest_tx() == guest_tx,
            self.attachment.as_mut(),
        );
    }

    /// The device as it is.
    pub fn device(&self) -> &DeviceState {
        &self.device
    }

    /// Serves the rings of one direction again that were taken back. Of all ports last those that guests transmit on.
    pub fn unpark(&mut self, guest_tx: bool) {
        self.device.resume_rings(
            |queue| queue.is_guest_tx() == guest_tx,
            self.attachment.as_mut(),
        );
    }

    /// Makes a port of what was handed over. It waits for [`Self::go`].
    ///
    /// # Errors
    /// A descriptor did not come, or is not what it should be; then the port cannot be taken over.
    pub fn adopt(
        spec: VhostPortSpec,
        handed: HandedPort,
        (mut attachment, descriptors): (DatapathAttachment, &mut Incoming),
        events: PortEventSink,
    ) -> io::Result<Self> {
        let HandedPort {
            device,
            listener,
            session,
            attached,
            connections,
            last_disconnect,
            logging_ms,
        } = handed;
        let endpoint = match (spec.mode, listener) {
            (SocketMode::Server, Some(listener)) => {
                Endpoint::Server(Listener::adopt(descriptors.take(listener)?, &spec.socket))
            }
            (SocketMode::Server, None) => {
                return Err(io::Error::other("the listening socket did not come"));
            }
            (SocketMode::Client, _) => Endpoint::Client(RETRY_FIRST),
        };
        let connected = session.map(|session| {
            let last_message = session.last_message;
            Ok::<_, io::Error>(Connected {
                session: Session::adopt(session.stream, descriptors)?,
                since: ago(session.since_ms),
                last_message: last_message.map(|(request, ms)| (RequestCode(request), ago(ms))),
                watches: READING,
                waits: None,
                refusal_logged: false,
            })
        });
        attachment.adopt(attached, &device, descriptors)?;
        Ok(Self {
            id: spec.id,
            up: device.any_ring_runs(),
            device: device.with_rings_suspended(),
            name: spec.name,
            socket: spec.socket,
            mode: spec.mode,
            endpoint,
            timer: Timer::new()?,
            connected: connected.transpose()?,
            attachment: Box::new(attachment),
            events,
            logging: logging_ms.map(|ms| Logging::since(ago(ms))),
            waits_to_go: true,
            connections,
            connect_error: None,
            last_disconnect,
            logged: None,
        })
    }

    /// The device of an adopted port, as it was parked.
    pub fn set_device(&mut self, device: DeviceState) {
        self.device = device;
    }

    /// Serves the sockets of an adopted port.
    pub fn go(&mut self, ops: &mut EventOps) {
        if !std::mem::take(&mut self.waits_to_go) {
            return;
        }
        if let Endpoint::Server(listener) = &mut self.endpoint {
            listener.own_file();
        }
        self.watch_endpoint(ops);
        match &self.connected {
            Some(connected) => {
                let session = &connected.session;
                if let Err(error) = ops.add(Token::Session.watch(session, READING)) {
                    log::error!("{}: the connection cannot be watched: {error:?}", self.name);
                }
                self.watch_session(ops);
            }
            None if matches!(self.endpoint, Endpoint::Client(_)) => self.connect(ops),
            None => {}
        }
        // What changed while nobody served the rings is told as ever.
        self.tell_change("a ring could not be taken over");
    }
}

/// As long ago as that, as far as the clock reaches back.
fn ago(ms: u64) -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_millis(ms)).unwrap_or(now)
}
