//! One stream port's socket life: waits for a peer, gives its connection to the workers, hears of its end, waits again.
//!
//! Driven by the device thread's event loop; [`super::ports`] makes and removes it, control threads ask it for its status. It never
//! reads or writes a connection. Kept true: one peer at a time; bounded work per wake-up and per second, however fast a peer
//! connects; at most one line in the log per second for all that a peer can do.
//!
//! ```text
//!   server: Listening <--connection ends-- Up      client: Connecting (100 ms ... 1 s) <--connection ends-- Up
//!               \________accept______________^                     \____________connect______________________^
//! ```

use super::connection::Connection;
use super::handover::Adopted;
use super::ports::StreamSpec;
use super::status::{StreamStatus, Surroundings, describe};
use crate::datapath::{StreamEnd, StreamLink};
use crate::device::endpoint::{ACCEPTS_PER_WAKEUP, Endpoint, RETRY_FIRST, RETRY_LONGEST, Timer};
use crate::device::status::ConnectionCounters;
use crate::device::{PortChange, PortEvent, PortEventSink, listener};
use event_manager::{EventOps, Events, MutEventSubscriber};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::EventSet;

/// Server mode: the least time between two wake-ups by peers that connect. Each connection costs a worker some microseconds.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(10);
/// The least time between two lines in the log about one port.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What woke the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Token {
    Listener,
    Timer,
}

impl Token {
    fn watch(self, socket: &impl AsRawFd, set: EventSet) -> Events {
        Events::with_data(socket, self as u32, set)
    }
}

/// A peer.
pub(super) struct Connected {
    pub(super) connection: Arc<Connection>,
    pub(super) since: Instant,
}

/// One stream port.
pub struct Life {
    spec: StreamSpec,
    pub(super) endpoint: Endpoint,
    timer: Timer,
    pub(super) link: StreamLink,
    pub(super) connected: Option<Connected>,
    events: PortEventSink,
    /// Taken over from another process, which may still serve it.
    pub(super) adopted: Option<Adopted>,
    pub(super) connections: ConnectionCounters,
    pub(super) protocol_errors: u64,
    connect_error: Option<String>,
    pub(super) last_disconnect: Option<String>,
    logged: Option<Instant>,
}

impl Life {
    /// A port without a peer; it starts to look for one when the event loop takes it over.
    ///
    /// # Errors
    /// No timer can be had.
    pub fn new(
        spec: StreamSpec,
        endpoint: Endpoint,
        link: StreamLink,
        events: PortEventSink,
    ) -> io::Result<Self> {
        Ok(Self {
            spec,
            endpoint,
            timer: Timer::new()?,
            link,
            connected: None,
            events,
            adopted: None,
            connections: ConnectionCounters::default(),
            protocol_errors: 0,
            connect_error: None,
            last_disconnect: None,
            logged: None,
        })
    }

    /// For `port show`.
    pub fn status(&self) -> StreamStatus {
        let connected = self.connected.as_ref();
        describe(Surroundings {
            socket: self.spec.socket.clone(),
            mode: self.spec.mode,
            connected_ms: connected.map(|connected| elapsed_ms(connected.since)),
            connect_error: self.connect_error.clone(),
            connections: self.connections.clone(),
            protocol_errors: self.protocol_errors,
            last_disconnect: self.last_disconnect.clone(),
            unsent_bytes: self.link.unsent_bytes(),
        })
    }

    /// A worker found a connection ended. Old news changes nothing.
    pub fn ended(&mut self, connection: u64, end: &StreamEnd) {
        let is_ours = |connected: &Connected| connected.connection.number() == connection;
        if self.connected.as_ref().is_some_and(is_ours) {
            self.end_connection(end);
            self.retry_later();
        }
    }

    /// The port was taken off the event loop: ends its connection and removes its socket.
    pub fn close(&mut self) {
        self.endpoint = Endpoint::Closed;
        if let Some(connected) = self.connected.take() {
            // First, or a peer that sends without pause would have its worker hold what is to be taken away.
            connected.connection.shut_down();
            self.link.disconnect();
            self.connections.disconnects += 1;
            self.tell(PortChange::Down {
                reason: "the port was removed".to_owned(),
            });
        }
    }

    // Connections.

    fn accept(&mut self, ops: &mut EventOps) {
        for _ in 0..ACCEPTS_PER_WAKEUP {
            let Endpoint::Server(listener) = &self.endpoint else {
                return;
            };
            match listener.accept() {
                Ok(Some(stream)) => self.newcomer(stream),
                Ok(None) => break,
                Err(error) => {
                    // Out of descriptors or memory: the connection stays in the backlog, and an armed listener would spin.
                    self.connect_error = Some(error.to_string());
                    self.pause_listener(RETRY_LONGEST, ops);
                    return;
                }
            }
        }
        self.pause_listener(ACCEPT_INTERVAL, ops);
    }

    /// A hypervisor that closes and connects again may be seen connecting before it is seen closing; a live peer keeps its place.
    fn newcomer(&mut self, stream: OwnedFd) {
        match &self.connected {
            Some(incumbent) if incumbent.connection.is_dead() => {
                self.end_connection(&StreamEnd::Replaced);
            }
            Some(_) => {
                self.connections.rejected += 1;
                if self.may_log() {
                    log::warn!(
                        "{}: a second peer was turned away: one is connected",
                        self.spec.name
                    );
                }
                return;
            }
            None => {}
        }
        self.begin_connection(stream);
    }

    fn connect(&mut self) {
        match listener::connect(&self.spec.socket) {
            Ok(stream) => self.begin_connection(stream),
            Err(error) => {
                self.connect_error = Some(error.to_string());
                self.retry_later();
            }
        }
    }

    fn begin_connection(&mut self, stream: OwnedFd) {
        self.connect_error = None;
        self.connections.connects += 1;
        self.connected = Some(Connected {
            connection: self.link.connect(stream),
            since: Instant::now(),
        });
        self.tell(PortChange::Up);
    }

    pub(super) fn end_connection(&mut self, end: &StreamEnd) {
        let Some(connected) = self.connected.take() else {
            return;
        };
        self.link.disconnect();
        self.connections.disconnects += 1;
        self.protocol_errors += u64::from(matches!(end, StreamEnd::BadLength(_)));
        let reason = end.to_string();
        if self.may_log() {
            log::info!("{}: the connection ended: {reason}", self.spec.name);
        }
        self.tell(PortChange::Down {
            reason: reason.clone(),
        });
        self.tell(PortChange::Left);
        self.last_disconnect = Some(reason);
        if let Endpoint::Client(wait) = &mut self.endpoint {
            // A peer that accepts and closes at once is not hurried.
            if connected.since.elapsed() >= RETRY_LONGEST {
                *wait = RETRY_FIRST;
            }
        }
    }

    // The event loop.

    fn retry_later(&mut self) {
        if let Endpoint::Client(wait) = &mut self.endpoint {
            let now = *wait;
            *wait = (now * 2).min(RETRY_LONGEST);
            self.arm_timer(now);
        }
    }

    fn pause_listener(&self, pause: Duration, ops: &mut EventOps) {
        self.watch_listener(EventSet::empty(), ops);
        self.arm_timer(pause);
    }

    fn watch_listener(&self, set: EventSet, ops: &mut EventOps) {
        let Endpoint::Server(listener) = &self.endpoint else {
            return;
        };
        if let Err(error) = ops.modify(Token::Listener.watch(listener, set)) {
            log::error!(
                "{}: the listener cannot be watched: {error:?}",
                self.spec.name
            );
        }
    }

    fn timer_expired(&mut self, ops: &mut EventOps) {
        self.timer.hear();
        match &self.endpoint {
            Endpoint::Server(_) => {
                self.connect_error = None;
                self.watch_listener(EventSet::IN, ops);
            }
            Endpoint::Client(_) if self.connected.is_none() => self.connect(),
            Endpoint::Client(_) | Endpoint::Closed => {}
        }
    }

    fn arm_timer(&self, wait: Duration) {
        if let Err(error) = self.timer.arm(wait) {
            log::error!("{}: the timer cannot be set: {error}", self.spec.name);
        }
    }

    fn tell(&self, change: PortChange) {
        (self.events)(PortEvent {
            port: self.spec.id,
            change,
        });
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

impl MutEventSubscriber for Life {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            token if token == Token::Listener as u32 => self.accept(ops),
            token if token == Token::Timer as u32 => self.timer_expired(ops),
            _ => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if self.adopted.is_none() {
            self.watch_endpoint(ops);
        }
    }
}

impl Life {
    /// Looks for a peer from now on, or for the next.
    pub(super) fn watch_endpoint(&mut self, ops: &mut EventOps) {
        let timer = Token::Timer.watch(&self.timer, EventSet::IN);
        let watched = match &self.endpoint {
            Endpoint::Server(listener) => ops
                .add(timer)
                .and(ops.add(Token::Listener.watch(listener, EventSet::IN))),
            Endpoint::Client(_) | Endpoint::Closed => ops.add(timer),
        };
        if let Err(error) = watched {
            self.connect_error = Some(format!("the socket cannot be watched: {error:?}"));
            log::error!(
                "{}: the socket cannot be watched: {error:?}",
                self.spec.name
            );
        }
        if matches!(self.endpoint, Endpoint::Client(_)) && self.connected.is_none() {
            self.connect();
        }
    }
}

/// Since then, in milliseconds.
pub(super) fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
