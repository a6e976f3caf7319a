//! The JSON of requests and responses, and its conversion from and to typed values.
//!
//! Requests refuse unknown fields; responses, which the command line reads back, do not, so that a client may be older than its daemon.
pub mod batch;
pub mod config;
pub mod devices;
pub mod flows;
pub mod paths;
pub mod rings;
pub mod services;
pub mod tables;
pub mod upgrade;

pub use self::batch::*;
pub use self::config::*;
pub use self::devices::*;
pub use self::flows::*;
pub use self::paths::*;
pub use self::rings::*;
pub use self::services::*;
pub use self::tables::*;
pub use self::upgrade::*;
use crate::config::{PortConfig, PortKind, VlanFields};
use crate::control::{FdbEntry, PortOrigin, PortView, SourceView, WorkersView};
use crate::datapath::{PortCounters, WorkerStats};
use crate::device::SocketMode;
use crate::metrics::{Stats, cpu_mhz};
use serde::{Deserialize, Serialize};
use switch_core::{DropReason, VlanId};
use utoipa::ToSchema;

/// `GET /v1/ports`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PortList {
    /// By id.
    pub ports: Vec<Port>,
    /// `after` of the next page; absent: this is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u16>,
}

/// `GET /v1/ports/{name}`: a port as it is configured and as it fares.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its id: dense, reused after its removal.
    pub id: u16,
    /// `vhost-user`, `stream` or `tap`.
    pub r#type: String,
    /// vhost-user and stream only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// vhost-user and stream only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// vhost-user only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_pairs: Option<u16>,
    /// vhost-user only: whether packed rings are wanted; `device` tells whether they are offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<bool>,
    /// vhost-user only: whether what the switch knows of the port migrates with its VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_state: Option<bool>,
    /// tap only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// In bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Absent: untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanFields>,
    /// Where it comes from.
    #[serde(default)]
    pub origin: PortOrigin,
    /// One word: `up`, `listening`, `faulted`...
    pub state: String,
    /// The state in words, when there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// vhost-user and stream only: the whole state of the device, or of the socket, for diagnosis. Its fields may change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub device: Option<serde_json::Value>,
    /// vhost-user only: how full its running rings are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rings: Vec<RingRow>,
    /// Its counters.
    pub counters: Counters,
}

/// Counters of one port, from its guest's viewpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    /// Frames its guest sent.
    pub guest_tx_frames: u64,
    /// Bytes of them, without virtio-net headers.
    pub guest_tx_bytes: u64,
    /// Frames delivered to its guest.
    pub guest_rx_frames: u64,
    /// Bytes of them.
    pub guest_rx_bytes: u64,
    /// Frames dropped, by reason; only reasons that occurred.
    pub drops: Vec<Drop>,
    /// Interrupts sent to its guest.
    pub notifications_sent: u64,
    /// Interrupts its guest did not want.
    pub notifications_saved: u64,
    /// Time that workers spent on the frames its guest sent, delivery included: an estimate from one batch in 16.
    #[serde(default)]
    pub busy_ns: u64,
}

/// Frames dropped for one reason.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Drop {
    /// The reason's stable name.
    pub reason: String,
    /// How many.
    pub frames: u64,
    /// What happened, in one sentence.
    #[serde(default)]
    pub meaning: String,
    /// What to do about it, in one sentence.
    #[serde(default)]
    pub advice: String,
}

/// `GET /v1/stats`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatsReport {
    /// Since the daemon started, read with the counters: what rates are measured against.
    pub uptime_us: u64,
    /// Clock of the CPU, as the kernel gave it when first asked: what cycles are reckoned with. Absent where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_mhz: Option<f64>,
    /// By port id.
    pub ports: Vec<PortCountersReport>,
    /// By worker index.
    pub workers: Vec<Worker>,
}

/// One port's line of `GET /v1/stats`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PortCountersReport {
    /// The port.
    pub name: String,
    /// Its counters.
    #[serde(flatten)]
    pub counters: Counters,
    /// How full its running rings are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rings: Vec<RingRow>,
}

/// One worker's counters.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Worker {
    /// Its index.
    pub worker: usize,
    /// Frames it switched.
    pub frames: u64,
    /// Batches they came in.
    pub batches: u64,
    /// How often it slept.
    pub sleeps: u64,
    /// Time it was not asleep: at work, or polling for some.
    pub awake_ns: u64,
    /// Time it spent on batches: an estimate from one in 16.
    #[serde(default)]
    pub busy_ns: u64,
    /// CPU time of its thread by the kernel's account; absent where that is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ns: Option<u64>,
    /// Rounds over all that it polls that found nothing.
    #[serde(default)]
    pub empty_rounds: u64,
    /// The CPU it is pinned to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<usize>,
    /// Rings, TAPs and streams it polls.
    pub sources: u64,
}

/// Body of `POST /v1/ports/{name}/move`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    /// The queue pair; absent: all of the port's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<u16>,
    /// The worker, which serves it from now on, whatever the load; absent: where it is, until its load says otherwise.
    #[schema(maximum = 63)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<usize>,
}

/// Its answer.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Moved {
    /// What was meant, and where it is now.
    pub sources: Vec<SourceRow>,
}

/// `GET /v1/workers`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WorkerList {
    /// By index.
    pub workers: Vec<Worker>,
    /// What they serve: every guest-tx ring that runs, every TAP, every stream with a peer, and what was put somewhere though it does not run.
    pub sources: Vec<SourceRow>,
    /// See [`StatsReport::cpu_mhz`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_mhz: Option<f64>,
}

/// One guest-tx ring, TAP or stream.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SourceRow {
    /// The port's name.
    pub port: String,
    /// Its queue pair; 0 for a TAP or a stream.
    pub pair: u16,
    /// The worker that serves it.
    pub worker: usize,
    /// Whether it was put there, so that it stays.
    pub pinned: bool,
    /// Share of the last second that its worker spent on it, in thousandths.
    pub busy_permille: u64,
    /// Time that workers spent on it.
    pub busy_ns: u64,
    /// Frames taken from it.
    pub frames: u64,
}

/// `GET /v1/fdb`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Fdb {
    /// By VLAN, that of ports without one last, and address.
    pub entries: Vec<FdbRow>,
    /// `after` of the next page; absent: this is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One learnt address.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FdbRow {
    /// `null`: that of ports without a VLAN.
    pub vlan: Option<u16>,
    /// `52:54:00:12:34:56`.
    pub mac: String,
    /// The port's name.
    pub port: String,
    /// Since its last frame.
    pub age_s: u64,
}

/// `GET /healthz`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The daemon's version.
    pub version: String,
}

impl From<PortView> for Port {
    fn from(view: PortView) -> Self {
        let PortView {
            id,
            origin,
            config:
                PortConfig {
                    name,
                    kind,
                    mtu,
                    vlan,
                },
            health,
            counters,
            queues,
        } = view;
        let r#type = kind.type_name().to_owned();
        let (socket, mode, queue_pairs, packed, device_state, interface) = match kind {
            PortKind::VhostUser {
                socket,
                mode,
                queue_pairs,
                packed,
                device_state,
            } => (
                Some(socket.to_string()),
                Some(mode_name(mode).to_owned()),
                Some(queue_pairs.get()),
                Some(packed),
                Some(device_state),
                None,
            ),
            PortKind::Tap { interface } => {
                (None, None, None, None, None, Some(interface.to_string()))
            }
            PortKind::Stream { socket, mode } => (
                Some(socket.to_string()),
                Some(mode_name(mode).to_owned()),
                None,
                None,
                None,
                None,
            ),
        };
        Self {
            name: name.to_string(),
            id: id.get(),
            r#type,
            socket,
            mode,
            queue_pairs,
            packed,
            device_state,
            interface,
            mtu: mtu.map(|mtu| mtu.get()),
            vlan: VlanFields::of(&vlan),
            origin,
            state: health.state,
            reason: health.reason,
            device: health.device,
            rings: RingRow::of(&queues),
            counters: counters.into(),
        }
    }
}

fn mode_name(mode: SocketMode) -> &'static str {
    match mode {
        SocketMode::Server => "server",
        SocketMode::Client => "client",
    }
}

impl From<PortCounters> for Counters {
    fn from(counters: PortCounters) -> Self {
        Self {
            guest_tx_frames: counters.guest_tx_frames,
            guest_tx_bytes: counters.guest_tx_bytes,
            guest_rx_frames: counters.guest_rx_frames,
            guest_rx_bytes: counters.guest_rx_bytes,
            drops: counters
                .drops
                .into_iter()
                .map(|(reason, frames)| drop_row(reason, frames))
                .collect(),
            notifications_sent: counters.notifications_sent,
            notifications_saved: counters.notifications_saved,
            busy_ns: counters.busy_ns,
        }
    }
}

fn drop_row(name: &str, frames: u64) -> Drop {
    let reason = DropReason::ALL
        .into_iter()
        .find(|reason| reason.name() == name);
    Drop {
        reason: name.to_owned(),
        frames,
        meaning: reason
            .map(DropReason::meaning)
            .unwrap_or_default()
            .to_owned(),
        advice: reason
            .map(DropReason::advice)
            .unwrap_or_default()
            .to_owned(),
    }
}

impl From<Stats> for StatsReport {
    fn from(stats: Stats) -> Self {
        Self {
            uptime_us: u64::try_from(stats.uptime.as_micros()).unwrap_or(u64::MAX),
            cpu_mhz: cpu_mhz(),
            ports: stats
                .ports
                .into_iter()
                .map(|port| PortCountersReport {
                    name: port.name.to_string(),
                    rings: RingRow::of(&port.queues),
                    counters: port.counters.into(),
                })
                .collect(),
            workers: worker_rows(stats.workers),
        }
    }
}

impl From<WorkersView> for WorkerList {
    fn from(view: WorkersView) -> Self {
        Self {
            workers: worker_rows(view.workers),
            sources: view.sources.into_iter().map(Into::into).collect(),
            cpu_mhz: cpu_mhz(),
        }
    }
}

impl From<SourceView> for SourceRow {
    fn from(view: SourceView) -> Self {
        let SourceView { port, stats } = view;
        Self {
            port: port.to_string(),
            pair: stats.source.pair,
            worker: stats.worker,
            pinned: stats.pinned,
            busy_permille: stats.busy_permille,
            busy_ns: stats.busy_ns,
            frames: stats.frames,
        }
    }
}

fn worker_rows(workers: Vec<WorkerStats>) -> Vec<Worker> {
    workers.into_iter().enumerate().map(worker_row).collect()
}

fn worker_row((worker, stats): (usize, WorkerStats)) -> Worker {
    let WorkerStats {
        frames,
        batches,
        sleeps,
        awake_ns,
        busy_ns,
        cpu_ns,
        empty_rounds,
        cpu,
        sources,
    } = stats;
    Worker {
        busy_ns,
        cpu_ns,
        empty_rounds,
        cpu,
        worker,
        frames,
        batches,
        sleeps,
        awake_ns,
        sources,
    }
}

impl From<FdbEntry> for FdbRow {
    fn from(entry: FdbEntry) -> Self {
        Self {
            vlan: entry.vlan.map(VlanId::get),
            mac: entry.mac.to_string(),
            port: entry.port.to_string(),
            age_s: entry.age_ms / 1_000,
        }
    }
}
