//! One port's socket life: waits for a front-end, serves its session, cleans up, waits again.
//!
//! Driven by the device thread's event loop; `thread` makes and removes it, control threads ask it for its status. Kept true: one
//! session at a time; a request that is answered later is answered before the next is read; bounded work per wake-up, so that a flooding
//! front-end delays nobody; at most one line in the log per second for all that a front-end can do.
//!
//! ```text
//!   server: Listening <--session ends-- Session      client: Connecting (100 ms ... 1 s) <--session ends-- Session
//!               \________accept__________^                        \____________connect___________________^
//! ```

mod handover;
#[cfg(test)]
mod tests;

pub use handover::HandedPort;

use super::attach::Attachment;
use super::endpoint::{ACCEPTS_PER_WAKEUP, Endpoint, RETRY_FIRST, RETRY_LONGEST, Timer};
use super::features::PackedOffer;
use super::listener;
use super::message::RequestCode;
use super::session::{Received, Session, SessionEnd};
use super::state::{Answer, Asked, DeviceState, Handled};
use super::status::{
    ConnectionCounters, DeviceStatus, LastMessage, Logging, Surroundings, describe,
};
use super::{PortChange, PortEvent, PortEventSink, PortId, SocketMode, VhostPortSpec};
use crate::datapath::{DatapathEvent, QueueIndex};
use event_manager::{EventOps, Events, MutEventSubscriber};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::EventSet;

/// Reads of a session's socket per wake-up. A message takes two; the rest waits until the other ports had their turn.
const READS_PER_WAKEUP: usize = 64;
/// The least time between two lines in the log about one port.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What is watched of a session that is read.
const READING: EventSet = EventSet::IN.union(EventSet::READ_HANG_UP);

/// What woke the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Token {
    Listener,
    Session,
    Timer,
    Attachment,
}

impl Token {
    fn of(events: &Events) -> Option<Self> {
        [Self::Listener, Self::Session, Self::Timer, Self::Attachment]
            .into_iter()
            .find(|token| *token as u32 == events.data())
    }

    fn watch(self, socket: &impl AsRawFd, set: EventSet) -> Events {
        Events::with_data(socket, self as u32, set)
    }
}

/// A connection and what is known of it.
struct Connected {
    session: Session,
    since: Instant,
    last_message: Option<(RequestCode, Instant)>,
    /// What is armed.
    watches: EventSet,
    /// What is not answered yet; nothing more is read until it is.
    waits: Option<Asked>,
    /// A refusal of this connection is in the log already.
    refusal_logged: bool,
}

/// One vhost-user port.
pub struct Port {
    id: PortId,
    name: String,
    socket: PathBuf,
    mode: SocketMode,
    endpoint: Endpoint,
    timer: Timer,
    connected: Option<Connected>,
    device: DeviceState,
    attachment: Box<dyn Attachment>,
    events: PortEventSink,
    up: bool,
    logging: Option<Logging>,
    /// Adopted from another process, which may still serve it.
    waits_to_go: bool,
    connections: ConnectionCounters,
    connect_error: Option<String>,
    last_disconnect: Option<String>,
    logged: Option<Instant>,
}

impl Port {
    /// A port without a connection; it starts to look for one when the event loop takes it over.
    pub fn new(
        spec: VhostPortSpec,
        packed: PackedOffer,
        endpoint: Endpoint,
        attachment: Box<dyn Attachment>,
        events: PortEventSink,
    ) -> io::Result<Self> {
        let mut device = DeviceState::new(spec.queue_pairs, spec.mtu, packed);
        if spec.carrier.is_some() {
            device = device.with_device_state();
        }
        Ok(Self {
            id: spec.id,
            device: match spec.offer {
                Some(earlier) => device.with_offer(earlier),
                None => device,
            },
            name: spec.name,
            socket: spec.socket,
            mode: spec.mode,
            endpoint,
            timer: Timer::new()?,
            connected: None,
            attachment,
            events,
            up: false,
            logging: None,
            waits_to_go: false,
            connections: ConnectionCounters::default(),
            connect_error: None,
            last_disconnect: None,
            logged: None,
        })
    }

    /// For `port show`.
    pub fn status(&mut self) -> DeviceStatus {
        let counts = self.attachment.log_counts();
        let logging = self.logging.as_mut().zip(counts.as_ref());
        let logging = logging.map(|(logging, counts)| logging.status(counts));
        let last_message = self
            .connected
            .as_ref()
            .and_then(|connected| connected.last_message);
        let around = Surroundings {
            socket: self.socket.clone(),
            mode: self.mode,
            connected_ms: self
                .connected
                .as_ref()
                .map(|connected| elapsed_ms(connected.since)),
            last_message: last_message.map(|(request, at)| LastMessage {
                name: request.to_string(),
                age_ms: elapsed_ms(at),
            }),
            last_disconnect: self.last_disconnect.clone(),
            connect_error: self.connect_error.clone(),
            logging,
            log_overrun: counts.is_some_and(|counts| counts.has_overrun()),
            connections: self.connections.clone(),
        };
        describe(&self.device, around)
    }

    /// News from a worker. Old news about a session that is gone changes nothing.
    pub fn datapath_event(&mut self, event: DatapathEvent, ops: &mut EventOps) {
        match event {
            DatapathEvent::RingFault { queue, error, .. } => {
                self.ring_faulted(queue, error.to_string())
            }
            DatapathEvent::MemoryLost { .. } => {
                // The front-end may have shared other memory meanwhile; the rings that stopped are lost all the same.
                let attachment = self.attachment.as_ref();
                if attachment.memory_lost() || self.device.has_lost_rings(attachment) {
                    self.end_session(SessionEnd::MemoryLost, ops);
                }
            }
            DatapathEvent::UplinkLost { .. } | DatapathEvent::StreamEnded { .. } => {}
        }
    }

    /// The port was taken off the event loop: ends its session and removes its socket.
    pub fn close(&mut self) {
        self.endpoint = Endpoint::Closed;
        if self.connected.take().is_some() {
            self.connections.disconnects += 1;
            self.device.end_session(self.attachment.as_mut());
            self.tell_change("the port was removed");
        }
    }

    /// The port goes for good. Without a front-end there is no VM that could come back to it.
    pub fn discard_unused_positions(&mut self) {
        if self.connected.is_none() {
            self.attachment.discard_positions();
        }
    }

    fn ring_faulted(&mut self, queue: QueueIndex, reason: String) {
        self.device
            .ring_faulted(queue, reason.clone(), self.attachment.as_ref());
        if self.may_log() {
            log::warn!("{}: ring {} stopped: {reason}", self.name, queue.0);
        }
        self.tell_change(&reason);
    }

    // Connections.

    fn accept(&mut self, ops: &mut EventOps) {
        for _ in 0..ACCEPTS_PER_WAKEUP {
            let Endpoint::Server(listener) = &self.endpoint else {
                return;
            };
            match listener.accept() {
                Ok(Some(stream)) => self.newcomer(stream, ops),
                Ok(None) => return,
                Err(error) => {
                    // Out of descriptors or memory: the connection stays in the backlog, and an armed listener would spin.
                    self.connect_error = Some(SessionEnd::from_accept(error).to_string());
                    self.watch_listener(EventSet::empty(), ops);
                    self.arm_timer(RETRY_LONGEST);
                    return;
                }
            }
        }
    }

    /// A hypervisor that closes and connects again may be seen connecting before it is seen closing; a live front-end keeps its place.
    fn newcomer(&mut self, stream: OwnedFd, ops: &mut EventOps) {
        match &self.connected {
            Some(incumbent) if incumbent.session.is_dead() => {
                self.end_session(SessionEnd::Replaced, ops)
            }
            Some(_) => {
                self.connections.rejected += 1;
                if self.may_log() {
                    log::warn!(
                        "{}: a second front-end was turned away: one is connected",
                        self.name
                    );
                }
                return;
            }
            None => {}
        }
        self.begin_session(stream, ops);
    }

    fn connect(&mut self, ops: &mut EventOps) {
        match listener::connect(&self.socket) {
            Ok(stream) => self.begin_session(stream, ops),
            Err(error) => {
                self.connect_error = Some(error.to_string());
                self.retry_later();
            }
        }
    }

    fn retry_later(&mut self) {
        if let Endpoint::Client(wait) = &mut self.endpoint {
            let now = *wait;
            *wait = (now * 2).min(RETRY_LONGEST);
            self.arm_timer(now);
        }
    }

    fn begin_session(&mut self, stream: OwnedFd, ops: &mut EventOps) {
        let session = Session::new(stream);
        if let Err(error) = ops.add(Token::Session.watch(&session, READING)) {
            self.connect_error = Some(format!("the connection cannot be watched: {error:?}"));
            self.retry_later();
            return;
        }
        self.connect_error = None;
        self.connections.connects += 1;
        self.connected = Some(Connected {
            session,
            since: Instant::now(),
            last_message: None,
            watches: READING,
            waits: None,
            refusal_logged: false,
        });
    }

    fn end_session(&mut self, end: SessionEnd, ops: &mut EventOps) {
        let Some(connected) = self.connected.take() else {
            return;
        };
        if let Err(error) = ops.remove(Token::Session.watch(&connected.session, EventSet::empty()))
        {
            log::error!(
                "{}: the connection cannot be unwatched: {error:?}",
                self.name
            );
        }
        let negotiated = connected.last_message.is_some();
        drop(connected);
        self.device.end_session(self.attachment.as_mut());
        self.connections.disconnects += 1;
        let reason = end.to_string();
        if self.may_log() {
            log::info!("{}: the session ended: {reason}", self.name);
        }
        self.tell_change(&reason);
        self.tell(PortChange::Left);
        self.last_disconnect = Some(reason);
        if let Endpoint::Client(wait) = &mut self.endpoint {
            // A peer that accepts and says nothing is not hurried.
            if negotiated {
                *wait = RETRY_FIRST;
            }
            self.retry_later();
        }
    }

    // Messages.

    fn serve(&mut self, ops: &mut EventOps) {
        if let Err(end) = self.exchange() {
            self.end_session(end, ops);
            return;
        }
        self.watch_session(ops);
    }

    fn exchange(&mut self) -> Result<(), SessionEnd> {
        let Some(connected) = &mut self.connected else {
            return Ok(());
        };
        connected.session.flush()?;
        for _ in 0..READS_PER_WAKEUP {
            let Some(connected) = &mut self.connected else {
                return Ok(());
            };
            if connected.waits.is_some() {
                // Nobody reads, so nobody else would see the end.
                return match connected.session.is_dead() {
                    true => Err(SessionEnd::Closed),
                    false => Ok(()),
                };
            }
            let message = match connected.session.receive()? {
                Received::Message(message) => message,
                Received::Piece => continue,
                Received::Nothing => return Ok(()),
            };
            let header = message.header;
            connected.last_message = Some((header.request, Instant::now()));
            let answer = self
                .device
                .handle(&header, message.decode()?, self.attachment.as_mut());
            self.send_answer(header.request, answer)?;
            self.tell_change("the driver stopped the device");
        }
        Ok(())
    }

    fn send_answer(&mut self, request: RequestCode, answer: Answer) -> Result<(), SessionEnd> {
        let Some(connected) = &mut self.connected else {
            return Ok(());
        };
        connected.waits = answer.waits;
        if let Some(reply) = answer.reply {
            connected.session.send(request, reply)?;
        }
        if let Some(refusal) = answer.refusal {
            let first = !std::mem::replace(&mut connected.refusal_logged, true);
            if first && self.may_log() {
                log::warn!("{}: {request} refused: {refusal}", self.name);
            }
        }
        Ok(())
    }

    /// What came of the request that waits. Of one whose session is over nobody wants to hear.
    fn answer_late(&mut self, handled: Handled) -> Result<(), SessionEnd> {
        let waits = self.connected.as_ref().and_then(|it| it.waits);
        let Some(asked) = waits else {
            log::debug!("{}: nobody waits for {handled:?}", self.name);
            return Ok(());
        };
        let answer = self.device.answer(asked, handled);
        self.send_answer(asked.request, answer)
    }

    /// Waits for room in the socket only while replies wait for it, and for requests only while none waits for its answer.
    fn watch_session(&mut self, ops: &mut EventOps) {
        let Some(connected) = &mut self.connected else {
            return;
        };
        let mut set = READING;
        set.set(EventSet::IN, connected.waits.is_none());
        set.set(EventSet::OUT, connected.session.has_unsent());
        if set == connected.watches {
            return;
        }
        match ops.modify(Token::Session.watch(&connected.session, set)) {
            Ok(()) => connected.watches = set,
            Err(error) => self.end_session(
                SessionEnd::Socket(io::Error::other(format!("{error:?}"))),
                ops,
            ),
        }
    }

    /// What the attachment talks about with the front-end goes on; rings may start by it, and a request may get its answer.
    fn attachment_ready(&mut self, ops: &mut EventOps) {
        let late = self.device.attachment_ready(self.attachment.as_mut());
        self.tell_change("its rings wait for the front-end");
        if let Some(handled) = late {
            if let Err(end) = self.answer_late(handled) {
                self.end_session(end, ops);
            }
            // What came meanwhile wakes the port again.
            self.watch_session(ops);
        }
    }

    // The event loop.

    fn watch_endpoint(&mut self, ops: &mut EventOps) {
        let timer = Token::Timer.watch(&self.timer, EventSet::IN);
        let ready = self.attachment.readiness().map(|ready| {
            let token = Token::Attachment as u32;
            ops.add(Events::with_data_raw(
                ready.as_raw_fd(),
                token,
                EventSet::IN,
            ))
        });
        if let Some(Err(error)) = ready {
            log::error!(
                "{}: the IOMMU's channel cannot be watched: {error:?}",
                self.name
            );
        }
        let watched = match &self.endpoint {
            Endpoint::Server(listener) => ops
                .add(timer)
                .and(ops.add(Token::Listener.watch(listener, EventSet::IN))),
            Endpoint::Client(_) | Endpoint::Closed => ops.add(timer),
        };
        if let Err(error) = watched {
            self.connect_error = Some(format!("the socket cannot be watched: {error:?}"));
            log::error!("{}: the socket cannot be watched: {error:?}", self.name);
        }
    }

    fn watch_listener(&self, set: EventSet, ops: &mut EventOps) {
        let Endpoint::Server(listener) = &self.endpoint else {
            return;
        };
        if let Err(error) = ops.modify(Token::Listener.watch(listener, set)) {
            log::error!("{}: the listener cannot be watched: {error:?}", self.name);
        }
    }

    fn timer_expired(&mut self, ops: &mut EventOps) {
        self.timer.hear();
        match &self.endpoint {
            Endpoint::Server(_) => {
                self.connect_error = None;
                self.watch_listener(EventSet::IN, ops);
            }
            Endpoint::Client(_) if self.connected.is_none() => self.connect(ops),
            Endpoint::Client(_) | Endpoint::Closed => {}
        }
    }

    fn arm_timer(&self, wait: Duration) {
        if let Err(error) = self.timer.arm(wait) {
            log::error!("{}: the timer cannot be set: {error}", self.name);
        }
    }

    fn tell_change(&mut self, reason: &str) {
        self.note_logging();
        let up = self.device.any_ring_runs();
        if up != std::mem::replace(&mut self.up, up) {
            let change = if up {
                PortChange::Up
            } else {
                PortChange::Down {
                    reason: reason.to_owned(),
                }
            };
            self.tell(change);
        }
    }

    fn tell(&self, change: PortChange) {
        (self.events)(PortEvent {
            port: self.id,
            change,
        });
    }

    /// Keeps since when the migration log is on.
    fn note_logging(&mut self) {
        match (self.device.is_logging(), &self.logging) {
            (true, None) => self.logging = Some(Logging::since(Instant::now())),
            (false, Some(_)) => self.logging = None,
            _ => return,
        }
        if self.may_log() {
            let state = if self.logging.is_some() { "on" } else { "off" };
            log::info!("{}: the migration log is {state}", self.name);
        }
    }

    fn may_log(&mut self) -> bool {
        let now = Instant::now();
        let due = self
            .logged
            .is_none_or(|last| now.duration_since(last) >= LOG_INTERVAL);
        if due {
            self.logged = Some(now);
        }
        due
    }
}

impl MutEventSubscriber for Port {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match Token::of(&events) {
            Some(Token::Listener) => self.accept(ops),
            Some(Token::Session) => self.serve(ops),
            Some(Token::Timer) => self.timer_expired(ops),
            Some(Token::Attachment) => self.attachment_ready(ops),
            None => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if self.waits_to_go {
            return;
        }
        self.watch_endpoint(ops);
        if let Endpoint::Client(_) = self.endpoint {
            self.connect(ops);
        }
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
