//! The old process's side: starts the new one, tells it everything, takes the rings back for it, and goes on if it fails.

use super::channel::Channel;
use super::content::{self, Learned};
use super::descriptors::Outgoing;
use super::messages::{FromNew, FromOld, SwitchPort, formats};
use crate::config::{PortConfig, PortFields};
use crate::control::PortId;
use crate::control::tables::Tables;
use crate::datapath::{Datapath, PortTotals};
use crate::device::{DeviceThread, Frozen};
use crate::port::stream::handover::{Frozen as FrozenStreams, StreamRest};
use crate::port::stream::ports::StreamPorts;
use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Set for a process that is to take over; the channel is its standard input.
pub const TAKE_OVER: &str = "RINGSWITCH_TAKE_OVER";
/// How long the new process may take to serve the rings, once it has them.
const COMMIT_PATIENCE: Duration = Duration::from_secs(2);
/// How long one that closed its end may take to end.
const END_PATIENCE: Duration = Duration::from_millis(200);
/// How long it may take to read what was counted.
const TAIL_PATIENCE: Duration = Duration::from_secs(10);

/// What an upgrade is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeRequest {
    /// The program to start; `None`: the one that runs, as it is on disk now.
    pub binary: Option<PathBuf>,
    /// How long it may take until it is ready.
    pub patience: Duration,
}

/// What an upgrade came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgraded {
    /// The new process.
    pub pid: u32,
    /// How long no process served the rings.
    pub gap: Duration,
    /// How long all of it took.
    pub took: Duration,
}

/// Why the old process goes on.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The new process does not start.
    #[error("{} cannot be started: {source}", .binary.display())]
    Start {
        /// The program.
        binary: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The new process does not want to go on.
    #[error("the new process refuses: {0}")]
    Refused(String),
    /// It ended.
    #[error("the new process ended ({0}) before it served the rings; its log says why")]
    Ended(String),
    /// It was not ready in time.
    #[error("the new process was not ready within {} ms", .0.as_millis())]
    TooSlow(Duration),
    /// A port does what only the process can end that began it.
    #[error("{0}; try again when that is done")]
    Busy(String),
    /// Something else.
    #[error("the new process cannot be told: {0}")]
    Channel(io::Error),
    /// Table changes that were acknowledged are not written yet.
    #[error("tables cannot be held: {0}")]
    Tables(String),
}

/// All that is handed over.
pub struct Giver<'a> {
    /// Ports and their front-ends.
    pub devices: &'a DeviceThread,
    /// Stream ports and their peers.
    pub streams: &'a StreamPorts,
    /// Their rings and TAPs.
    pub datapath: &'a Datapath,
    /// What was learned.
    pub learned: Learned,
    /// What operators put into tables.
    pub tables: Option<&'a Tables>,
    /// Every port.
    pub ports: Vec<(PortId, PortConfig)>,
    /// The program's name.
    pub program: String,
    /// The listening admin socket.
    pub admin: OwnedFd,
    /// The listening socket of the admin interface over TCP.
    pub remote: Option<OwnedFd>,
    /// What the control thread keeps of its own.
    pub control: serde_json::Value,
    /// The configuration of the services, where there are some.
    pub services: Option<serde_json::Value>,
    /// The keys of the neighbours that they looked up.
    pub looked_up: HashSet<String>,
}

/// Devices as they were parked; connections of streams, and the bytes that were under way.
type ParkedPorts = (
    Vec<(PortId, crate::device::state::DeviceState)>,
    (Vec<StreamRest>, Vec<u8>),
);

impl Giver<'_> {
    /// Hands everything over. On success `leave` is called while nothing of the ports moves, and is not to return before the process ends.
    ///
    /// # Errors
    /// See [`UpgradeError`]: this process serves everything as before, and the other one is gone.
    pub fn hand_over(
        self,
        request: &UpgradeRequest,
        leave: &mut dyn FnMut(Upgraded),
    ) -> Result<(), UpgradeError> {
        let started = Instant::now();
        // Released when this returns.
        let _held = self.tables.map(Tables::hold).transpose();
        let _held = _held.map_err(UpgradeError::Tables)?;
        let (mut channel, theirs) =
            Channel::pair(request.patience).map_err(UpgradeError::Channel)?;
        let mut child = start(request, theirs)?;
        let pid = child.id();
        let (devices, streams) = (self.devices, self.streams);
        let both = |act: &mut dyn FnMut(&mut Frozen<'_>, &mut FrozenStreams<'_>) -> _| {
            streams.frozen(|streams| devices.frozen(|frozen| act(frozen, streams)))
        };
        both(&mut |frozen, streams| {
            let result = self.prepare(&channel, (frozen, streams)).and_then(|()| {
                channel.set_patience(COMMIT_PATIENCE);
                let parked_at = Instant::now();
                streams.hold();
                self.datapath.hold_taps();
                let devices = frozen.park();
                let told = self.commit(&channel, (devices, streams.park()), started);
                let is_told = told.is_ok();
                let result = told.and_then(|()| expect(&channel, &FromNew::Running));
                if result.is_err() {
                    // Before the rings are served again: there is never more than one who does.
                    end(&mut child);
                    // Rings say themselves how far the other came. A stream does not.
                    if is_told {
                        streams.abandon();
                    } else {
                        streams.unpark();
                    }
                    frozen.unpark();
                    streams.release();
                    self.datapath.release_taps();
                }
                result.map(|()| parked_at.elapsed())
            });
            let gap = result.map_err(|error| explain(error, &mut child, request.patience))?;
            channel.set_patience(TAIL_PATIENCE);
            if let Err(error) = self.tail(&channel) {
                log::warn!("counters begin anew: {error}");
            }
            leave(Upgraded {
                pid,
                gap,
                took: started.elapsed(),
            });
            Ok(())
        })
    }

    fn prepare(
        &self,
        channel: &Channel,
        (frozen, streams): (&Frozen<'_>, &FrozenStreams<'_>),
    ) -> io::Result<()> {
        channel.tell(&FromOld::Hello {
            format: formats().latest,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })?;
        expect(channel, &FromNew::Accepted)?;
        let mut descriptors = Outgoing::default();
        let mut devices = frozen.hand_over(&mut descriptors)?;
        let mut streams = streams.hand_over(&mut descriptors)?;
        let ports = self.ports.iter().map(|(id, config)| {
            let device = devices.iter().position(|(other, _)| other == id);
            let stream = streams.iter().position(|(other, _)| other == id);
            let tap = self.datapath.share_tap(*id).transpose()?;
            Ok(SwitchPort {
                id: id.get(),
                config: serde_json::to_value(PortFields::from(config))?,
                device: device.map(|at| devices.swap_remove(at).1),
                tap: tap.map(|tap| descriptors.add(tap)),
                stream: stream.map(|at| streams.swap_remove(at).1),
            })
        });
        let ports = ports.collect::<io::Result<_>>()?;
        let remote = self.remote.as_ref().map(OwnedFd::try_clone).transpose()?;
        let names = self.tables.map(Tables::port_numbers).unwrap_or_default();
        let names = names
            .into_iter()
            .map(|(name, id)| (name.to_string(), id.get()));
        let switch = FromOld::Switch {
            program: self.program.clone(),
            admin: descriptors.add(self.admin.try_clone()?),
            remote: remote.map(|remote| descriptors.add(remote)),
            ports,
            names: names.collect(),
            settings: self.tables.map(content::settings).unwrap_or_default(),
            control: self.control.clone(),
            services: self.services.clone(),
        };
        channel.send(&switch, (&[], descriptors.as_slice()))?;
        if let (Some(tables), Some(_)) = (self.tables, &self.learned.engine) {
            content::send_entries(channel, tables, &self.looked_up)?;
        }
        self.learned.send(channel, u64::MAX)?;
        channel.tell(&FromOld::Prepare)?;
        expect(channel, &FromNew::Ready)
    }

    fn commit(
        &self,
        channel: &Channel,
        (parked, (rests, bytes)): ParkedPorts,
        started: Instant,
    ) -> io::Result<()> {
        // What was seen since it was told. Ages are coarse.
        const COARSE: Duration = Duration::from_secs(2);
        let age = started.elapsed() + COARSE;
        self.learned.send(channel, age.as_millis() as u64)?;
        if !rests.is_empty() {
            channel.send(&FromOld::Streams(rests), (&bytes, &[]))?;
        }
        let parked = parked.into_iter().map(|(id, device)| (id.get(), device));
        channel.tell(&FromOld::Commit(parked.collect()))
    }

    /// What only adds up; the rings are served meanwhile.
    fn tail(&self, channel: &Channel) -> io::Result<()> {
        let totals = self.ports.iter().filter_map(|(id, _)| {
            let counters = self.datapath.counters(*id)?;
            Some((id.get(), PortTotals::from(counters)))
        });
        let (stations, connections) = match &self.learned.engine {
            Some(engine) => (engine.mac_stats(), engine.conntrack().stats()),
            None => (self.learned.switch.mac_stats(), Default::default()),
        };
        channel.tell(&FromOld::Totals {
            ports: totals.collect(),
            stations,
            connections,
        })?;
        if let Some(tables) = self.tables {
            self.learned.send_counts(channel, tables)?;
        }
        channel.tell(&FromOld::End)
    }
}

fn start(request: &UpgradeRequest, channel: OwnedFd) -> Result<Child, UpgradeError> {
    let binary = match &request.binary {
        Some(binary) => binary.clone(),
        None => this_program().map_err(|source| UpgradeError::Start {
            binary: PathBuf::from("/proc/self/exe"),
            source,
        })?,
    };
    Command::new(&binary)
        .args(std::env::args_os().skip(1))
        .env(TAKE_OVER, "1")
        .stdin(Stdio::from(channel))
        .spawn()
        .map_err(|source| UpgradeError::Start { binary, source })
}

/// Where this program was started from: what a package has put there since.
fn this_program() -> io::Result<PathBuf> {
    const DELETED: &str = " (deleted)";
    let path = std::fs::read_link("/proc/self/exe")?;
    Ok(
        match path.to_str().and_then(|text| text.strip_suffix(DELETED)) {
            Some(replaced) => Path::new(replaced).to_owned(),
            None => path,
        },
    )
}

/// Waits for an answer.
fn expect(channel: &Channel, expected: &FromNew) -> io::Result<()> {
    match channel.receive::<FromNew>()? {
        Some(received) if received.message == *expected => Ok(()),
        Some(received) => match received.message {
            FromNew::Refused(reason) => {
                Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
            }
            other => Err(io::Error::other(format!(
                "an answer out of turn: {other:?}"
            ))),
        },
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Ends the new process; when this returns it is gone.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// What went wrong, in the operator's terms; the new process is gone then.
fn explain(error: io::Error, child: &mut Child, patience: Duration) -> UpgradeError {
    // One that closed its end is on its way out.
    let deadline = Instant::now() + END_PATIENCE;
    let mut ended = child.try_wait().ok().flatten();
    while ended.is_none() && is_closed(&error) && Instant::now() < deadline {
        std::thread::sleep(END_PATIENCE / 100);
        ended = child.try_wait().ok().flatten();
    }
    end(child);
    match (error.kind(), ended) {
        (io::ErrorKind::PermissionDenied, _) => UpgradeError::Refused(error.to_string()),
        (io::ErrorKind::ResourceBusy, _) => UpgradeError::Busy(error.to_string()),
        (io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock, _) => UpgradeError::TooSlow(patience),
        (_, Some(status)) => UpgradeError::Ended(status.to_string()),
        _ if is_closed(&error) => UpgradeError::Ended("it closed its end".to_owned()),
        _ => UpgradeError::Channel(error),
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}
