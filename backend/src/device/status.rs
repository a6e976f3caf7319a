//! A port's device in plain values, for `port show`: what happened, and if it is not up, why not, in words.
//!
//! `port` fills it in when a control thread asks; REST serialises it as it is. It is built from the device state alone, so what an
//! operator reads is what the state machine works with.

use super::SocketMode;
use super::features::{PackedOffer, protocol_names, virtio_names};
use super::ring_state::{RingPhase, RingState};
use super::state::{DeviceCounters, DeviceState, FrontEnd, SessionState};
use crate::ring::LogCounts;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A port in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// Waits for a front-end.
    Listening,
    /// Tries to reach a front-end.
    Connecting,
    /// A front-end is connected; no ring carries frames yet.
    Negotiating,
    /// At least one ring carries frames.
    Up,
    /// Something broke that waits for somebody else.
    Faulted,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listening => "listening",
            Self::Connecting => "connecting",
            Self::Negotiating => "negotiating",
            Self::Up => "up",
            Self::Faulted => "faulted",
        })
    }
}

/// The last request of the present connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastMessage {
    /// Its name in the vhost-user specification.
    pub name: String,
    /// Since it came.
    pub age_ms: u64,
}

/// One ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RingStatus {
    /// vhost-user ring index.
    pub index: u16,
    /// `guest_rx` or `guest_tx`.
    pub direction: &'static str,
    /// Descriptors, once the driver said.
    pub size: Option<u16>,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
    /// Where it is in its life.
    pub phase: RingPhase,
    /// Whether a worker has it.
    pub running: bool,
    /// Where it last started or stopped, as SET_VRING_BASE and GET_VRING_BASE have it.
    pub base: u32,
    /// Why it does not run although it was started.
    pub fault: Option<String>,
}

/// The log of a migration that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoggingStatus {
    /// Since what rings write is marked.
    pub since_ms: u64,
    /// Pages marked that were clear.
    pub pages_marked: u64,
    /// The same a second, of late.
    pub pages_per_second: u64,
    /// How often the front-end was seen to have read the log out.
    pub rounds: u64,
}

/// What the port knows of a log that is on.
#[derive(Debug)]
pub struct Logging {
    since: Instant,
    /// When pages were last counted, how many there were, and how many a second came before.
    counted: (Instant, u64, u64),
}

impl Logging {
    /// The least time over which pages a second are told.
    const WINDOW: Duration = Duration::from_secs(1);

    /// It is on from then.
    pub fn since(since: Instant) -> Self {
        Self {
            since,
            counted: (since, 0, 0),
        }
    }

    /// For how long it is on.
    pub fn since_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// For `port show`.
    pub fn status(&mut self, counts: &LogCounts) -> LoggingStatus {
        let pages_marked = counts.pages_marked();
        let (at, before, rate) = self.counted;
        let elapsed = at.elapsed();
        let is_first = at == self.since;
        let pages_per_second = if elapsed >= Self::WINDOW || is_first {
            let pages = u128::from(pages_marked.saturating_sub(before));
            let rate = pages * 1000 / elapsed.as_millis().max(1);
            u64::try_from(rate).unwrap_or(u64::MAX)
        } else {
            rate
        };
        if elapsed >= Self::WINDOW {
            self.counted = (Instant::now(), pages_marked, pages_per_second);
        }
        LoggingStatus {
            since_ms: self.since_ms(),
            pages_marked,
            pages_per_second,
            rounds: counts.rounds(),
        }
    }
}

/// What happened to the port's socket over its life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionCounters {
    /// Front-ends accepted, or reached.
    pub connects: u64,
    /// Sessions that ended.
    pub disconnects: u64,
    /// Newcomers turned away because a front-end was connected.
    pub rejected: u64,
}

/// A port's device for `port show`, serialised as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceStatus {
    /// One of [`PortState`], as a word.
    pub state: String,
    /// Why it is not up.
    pub reason: Option<String>,
    /// What an operator should know even though the port may be up.
    pub notes: Vec<String>,
    /// Path of the socket.
    pub socket: PathBuf,
    /// Who listens.
    pub mode: SocketMode,
    /// Who seems to be on the other side.
    pub front_end: FrontEnd,
    /// The last request.
    pub last_message: Option<LastMessage>,
    /// Since the front-end connected.
    pub connected_ms: Option<u64>,
    /// Why the last session ended.
    pub last_disconnect: Option<String>,
    /// Virtio features, frozen for the port's life.
    pub features_offered: Vec<String>,
    /// Virtio features the driver took; none before SET_FEATURES.
    pub features_acked: Option<Vec<String>>,
    /// vhost-user protocol features, frozen for the port's life.
    pub protocol_features_offered: Vec<String>,
    /// vhost-user protocol features the front-end took.
    pub protocol_features_acked: Vec<String>,
    /// NET_SET_MTU.
    pub mtu: Option<u16>,
    /// All rings of the port.
    pub rings: Vec<RingStatus>,
    /// Regions of guest memory mapped.
    pub memory_regions: usize,
    /// Their sizes added up.
    pub memory_bytes: u64,
    /// While a migration has what rings write marked.
    pub logging: Option<LoggingStatus>,
    /// Connections.
    pub connections: ConnectionCounters,
    /// Requests.
    pub requests: DeviceCounters,
}

/// What the port knows besides the device's state.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Who listens.
    pub mode: SocketMode,
    /// Since the front-end connected; `None` without one.
    pub connected_ms: Option<u64>,
    /// The last request of this connection.
    pub last_message: Option<LastMessage>,
    /// Why the last session ended.
    pub last_disconnect: Option<String>,
    /// Why there is no connection although there should be one.
    pub connect_error: Option<String>,
    /// The log of a migration.
    pub logging: Option<LoggingStatus>,
    /// Whether that log is too small for the memory.
    pub log_overrun: bool,
    /// Connections.
    pub connections: ConnectionCounters,
}

/// The whole picture.
pub fn describe(device: &DeviceState, around: Surroundings) -> DeviceStatus {
    let session = device.session();
    let state = port_state(session, &around);
    let reason = (state != PortState::Up).then(|| explain(device, &around));
    DeviceStatus {
        state: state.to_string(),
        reason,
        notes: notes(device, &around),
        front_end: session.front_end,
        features_offered: virtio_names(device.offer().virtio),
        features_acked: session.features.map(virtio_names),
        protocol_features_offered: protocol_names(device.offer().protocol),
        protocol_features_acked: protocol_names(session.protocol_features),
        mtu: session.mtu,
        rings: (0..)
            .zip(&session.rings)
            .map(|(index, ring)| ring_status(index, ring))
            .collect(),
        memory_regions: session.memory.len(),
        memory_bytes: session
            .memory
            .iter()
            .fold(0, |sum: u64, region| sum.saturating_add(region.size_bytes)),
        requests: device.counters(),
        socket: around.socket,
        mode: around.mode,
        connected_ms: around.connected_ms,
        last_message: around.last_message,
        last_disconnect: around.last_disconnect,
        logging: around.logging,
        connections: around.connections,
    }
}

fn ring_status(index: u16, ring: &RingState) -> RingStatus {
    RingStatus {
        index,
        direction: if index.is_multiple_of(2) {
            "guest_rx"
        } else {
            "guest_tx"
        },
        size: ring.size,
        enabled: ring.enabled,
        phase: ring.phase,
        running: ring.phase == RingPhase::Running,
        base: ring.base.unwrap_or_default(),
        fault: ring.fault.clone(),
    }
}

fn port_state(session: &SessionState, around: &Surroundings) -> PortState {
    if around.connected_ms.is_none() {
        return match around.mode {
            SocketMode::Server if around.connect_error.is_some() => PortState::Faulted,
            SocketMode::Server => PortState::Listening,
            SocketMode::Client => PortState::Connecting,
        };
    }
    let in_phase = |phase| session.rings.iter().any(|ring| ring.phase == phase);
    if session.rings.iter().any(RingState::carries_frames) {
        PortState::Up
    } else if in_phase(RingPhase::Faulted) && !in_phase(RingPhase::Running) {
        PortState::Faulted
    } else {
        PortState::Negotiating
    }
}

/// Why the port is not up, with what to do about it.
fn explain(device: &DeviceState, around: &Surroundings) -> String {
    let session = device.session();
    if around.connected_ms.is_none() {
        return explain_unconnected(around);
    }
    let Some(last) = &around.last_message else {
        return "a front-end is connected but has not sent a message".to_owned();
    };
    let last = format!("last message {} {} ago", last.name, age(last.age_ms));
    if session.features.is_none() {
        return format!(
            "connected, but the driver has not started the device (no SET_FEATURES yet); {last}"
        );
    }
    if session.memory.is_empty() {
        return format!(
            "guest memory is not shared: the driver has started the device, but no SET_MEM_TABLE came; give the VM \
             memory-backend-memfd,share=on (QEMU) or --memory shared=on (Cloud Hypervisor); {last}"
        );
    }
    let broken = (0..)
        .zip(&session.rings)
        .find_map(|(index, ring): (u16, _)| ring.fault.as_ref().map(|fault| (index, fault)));
    if let Some((index, fault)) = broken {
        return format!("ring {index} does not run: {fault}; {last}");
    }
    if session
        .rings
        .iter()
        .any(|ring| ring.phase == RingPhase::Running)
    {
        return format!(
            "rings run, but the front-end keeps them disabled (SET_VRING_ENABLE 0; is the VM paused?); {last}"
        );
    }
    if device.is_held() {
        return format!(
            "rings wait for the migration log: the front-end acked LOG_ALL, but no usable SET_LOG_BASE came; {last}"
        );
    }
    let waiting = (0..)
        .zip(&session.rings)
        .find(|(_, ring): &(u16, _)| ring.phase == RingPhase::Waiting);
    if let Some((index, ring)) = waiting {
        let missing = if ring.size.is_none() {
            "SET_VRING_NUM"
        } else {
            "SET_VRING_ADDR"
        };
        return format!("ring {index} was kicked, but its {missing} has not come; {last}");
    }
    format!("connected, but the driver has not started the device (no SET_VRING_KICK yet); {last}")
}

fn explain_unconnected(around: &Surroundings) -> String {
    let socket = around.socket.display();
    let before = around
        .last_disconnect
        .as_ref()
        .map_or_else(String::new, |reason| {
            format!("; the last one left: {reason}")
        });
    match (around.mode, &around.connect_error) {
        (SocketMode::Server, None) => format!("waiting for a front-end on {socket}{before}"),
        (SocketMode::Server, Some(error)) => {
            format!("cannot accept a front-end on {socket}: {error}{before}")
        }
        (SocketMode::Client, None) => format!("connecting to the front-end at {socket}{before}"),
        (SocketMode::Client, Some(error)) => {
            format!(
                "no front-end listens at {socket}: {error}; trying again until one does{before}"
            )
        }
    }
}

fn notes(device: &DeviceState, around: &Surroundings) -> Vec<String> {
    let (session, connections) = (device.session(), &around.connections);
    let mut notes = Vec::new();
    if let PackedOffer::Withheld(reason) = device.packed() {
        notes.push(format!("packed rings are not offered: {reason}"));
    }
    if let Some(index) = session.ring_beyond_port {
        notes.push(format!(
            "the front-end uses rings up to {index}, the port has {}: those past it are ignored; give the port more queue_pairs or \
             the VM fewer queues",
            session.rings.len()
        ));
    }
    for (index, ring) in session.rings.iter().enumerate() {
        if let Some(fault) = &ring.fault {
            notes.push(format!("ring {index}: {fault}"));
        }
    }
    if let Some(refusal) = &session.last_refusal {
        notes.push(format!("last request refused: {refusal}"));
    }
    if let Some(transferred) = &session.transferred {
        notes.push(transferred.clone());
    }
    if around.log_overrun {
        notes.push(
            "the migration log has no bits for some of the memory: those pages do not migrate; cancel the migration".to_owned(),
        );
    }
    if connections.rejected > 0 {
        notes.push(format!(
            "{} connections were turned away because a front-end was connected",
            connections.rejected
        ));
    }
    notes
}

fn age(ms: u64) -> String {
    if ms < 1000 {
        format!("{ms} ms")
    } else {
        format!("{} s", ms / 1000)
    }
}
