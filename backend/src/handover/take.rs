//! The new process's side: takes everything over, says when it could serve the rings, and serves them when it is told to.
//!
//! Should the old process die on the way, this one goes on: with what it was told, once that was all; before that, as after a crash.

use super::channel::{Channel, Received};
use super::content::{Learned, read_entries};
use super::descriptors::Incoming;
use super::give::TAKE_OVER;
use super::messages::{Formats, FromNew, FromOld, SwitchPort, formats};
use crate::config::{PortConfig, PortFields, PortName, SwitchConfig};
use crate::control::Engine as _;
use crate::control::PortId;
use crate::control::clock::monotonic_now;
use crate::control::live::{Handed, LiveEngine};
use crate::control::port_table::PortTable;
use crate::control::tables::{NamesOfBatch, PortRegistry};
use crate::device::state::DeviceState;
use crate::port::stream::handover::StreamRest;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use switch_core::engine::control::Update;
use switch_core::engine::runtime::Engine;

/// How long the old process may take for its next message. It is the one that has no patience with us.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to leave, once all is told.
const LEAVE: Duration = Duration::from_secs(5);

/// Why nothing is taken over. The old process goes on, or this one starts afresh.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The old process is told, and goes on.
    #[error("{0}")]
    Refused(String),
    /// The old process is gone and has not told all.
    #[error("the process before is gone")]
    Alone,
    /// Nobody is there.
    #[error(
        "{TAKE_OVER} is set, but the standard input is not the channel of a process to take over from: {0}; unset it"
    )]
    NoChannel(io::Error),
}

/// What was taken over, running.
pub struct Taken {
    /// Everything that runs, every port among it.
    pub live: LiveEngine,
    /// The ports.
    pub table: PortTable,
    /// The numbers of port names.
    pub names: Vec<(PortName, PortId)>,
    /// The listening admin socket.
    pub admin: OwnedFd,
    /// The listening socket of the admin interface over TCP.
    pub remote: Option<OwnedFd>,
    /// What the control thread before kept of its own.
    pub control: serde_json::Value,
    /// The configuration of the services before.
    pub services: Option<serde_json::Value>,
}

/// The channel to the process that started this one to take over; `None`: it was started to begin anew.
///
/// # Errors
/// [`TakeError::NoChannel`].
pub fn channel() -> Result<Option<Channel>, TakeError> {
    if std::env::var_os(TAKE_OVER).is_none() {
        return Ok(None);
    }
    take_stdin().map(Some).map_err(TakeError::NoChannel)
}

fn take_stdin() -> io::Result<Channel> {
    let stream = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::net::sockopt::socket_type(&stream)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(Channel::new(UnixStream::from(stream), PATIENCE))
}

/// What was told so far, and done about it.
struct Progress {
    table: PortTable,
    names: Vec<(PortName, PortId)>,
    registry: PortRegistry,
    admin: OwnedFd,
    remote: Option<OwnedFd>,
    control: serde_json::Value,
    services: Option<serde_json::Value>,
}

/// Takes over. `live` is without ports, `engine` what it decides with.
///
/// # Errors
/// See [`TakeError`]; `live` was stopped.
pub fn take_over(
    channel: &mut Channel,
    mut live: LiveEngine,
    (config, engine): (&SwitchConfig, Option<&Arc<Engine>>),
) -> Result<Taken, TakeError> {
    let learned = live.learned();
    let prepared = prepare(channel, &mut live, (config, engine, &learned));
    let progress = match prepared {
        Ok(progress) => progress,
        Err(error) => {
            live.stop();
            if let TakeError::Refused(reason) = &error {
                // It notices by itself when this process is gone.
                let _ = channel.tell(&FromNew::Refused(reason.clone()));
            }
            return Err(error);
        }
    };
    channel.set_patience(PATIENCE);
    let (devices, (rests, bytes)) = commit(channel, &learned);
    live.take_up(devices, (&rests, &bytes));
    if channel.tell(&FromNew::Running).is_ok() {
        channel.set_patience(LEAVE);
        if let Err(error) = count(channel, &live, (engine, &learned, &progress.registry)) {
            log::warn!("not all counters go on from where they were: {error}");
        }
    }
    Ok(Taken {
        live,
        table: progress.table,
        names: progress.names,
        admin: progress.admin,
        remote: progress.remote,
        control: progress.control,
        services: progress.services,
    })
}

type Into<'a> = (&'a SwitchConfig, Option<&'a Arc<Engine>>, &'a Learned);

/// Hears everything there is, and does what can be done while the other process serves the rings.
fn prepare(
    channel: &Channel,
    live: &mut LiveEngine,
    (config, engine, learned): Into<'_>,
) -> Result<Progress, TakeError> {
    let mut progress = None;
    loop {
        let Some(received) = hear(channel)? else {
            return Err(TakeError::Alone);
        };
        match (received.message, &progress) {
            (FromOld::Hello { format, version }, None) => {
                let Formats { oldest, latest } = formats();
                if !formats().reads(format) {
                    return Err(TakeError::Refused(format!(
                        "version {version} hands over in format {format}, and version {} reads {oldest} to {latest}; restart instead",
                        env!("CARGO_PKG_VERSION")
                    )));
                }
                answer(channel, &FromNew::Accepted)?;
            }
            (
                FromOld::Switch {
                    program,
                    admin,
                    remote,
                    ports,
                    names,
                    settings,
                    control,
                    services,
                },
                None,
            ) => {
                if program != config.program.to_string() {
                    return Err(TakeError::Refused(format!(
                        "the program that runs is {program}, and {} is configured now; restart instead",
                        config.program
                    )));
                }
                let mut descriptors = Incoming::new(received.descriptors);
                let admin = descriptors.take(admin).map_err(refused)?;
                let remote = descriptors.take_some(remote).map_err(refused)?;
                let names = read_names(names)?;
                let registry = PortRegistry::with(names.iter().cloned());
                let table = adopt(live, ports, &mut descriptors)?;
                restore(engine, &settings, &registry)?;
                progress = Some(Progress {
                    table,
                    names,
                    registry,
                    admin,
                    remote,
                    control,
                    services,
                });
            }
            (FromOld::Entries, Some(progress)) => {
                let entries = read_entries(&received.bytes).map_err(refused)?;
                restore(engine, &entries, &progress.registry)?;
            }
            (FromOld::Connections(records), Some(_)) => learned.take_connections(&records),
            (FromOld::Stations(stations), Some(_)) => learned.take_stations(&stations),
            (FromOld::Prepare, Some(_)) => break,
            (other, _) => {
                return Err(TakeError::Refused(format!(
                    "a message out of turn: {other:?}"
                )));
            }
        }
    }
    answer(channel, &FromNew::Ready)?;
    progress.ok_or(TakeError::Alone)
}

/// Devices as they were parked; connections of streams, and the bytes that were under way.
type Parked = (HashMap<PortId, DeviceState>, (Vec<StreamRest>, Vec<u8>));

/// Hears what changed since, and how the rings were left. Without the last word of a process that died, they go on from what guests'
/// memory says.
fn commit(channel: &Channel, learned: &Learned) -> Parked {
    let mut streams = Default::default();
    loop {
        match hear(channel) {
            Ok(Some(received)) => match received.message {
                FromOld::Connections(records) => learned.take_connections(&records),
                FromOld::Stations(stations) => learned.take_stations(&stations),
                FromOld::Streams(rests) => streams = (rests, received.bytes),
                FromOld::Commit(devices) => {
                    let devices = devices.into_iter();
                    let devices =
                        devices.filter_map(|(id, device)| Some((PortId::new(id)?, device)));
                    return (devices.collect(), streams);
                }
                other => log::error!("a message out of turn: {other:?}"),
            },
            Ok(None) | Err(_) => {
                log::warn!("the process before died: its rings are taken up as after a crash");
                // Streams are followed only from where a last word says: it would have come before this one.
                return (HashMap::new(), Default::default());
            }
        }
    }
}

/// Hears what was counted, until the other process has left.
fn count(
    channel: &Channel,
    live: &LiveEngine,
    (engine, learned, registry): (Option<&Arc<Engine>>, &Learned, &PortRegistry),
) -> io::Result<()> {
    let names = NamesOfBatch::new(registry);
    while let Some(received) = channel.receive::<FromOld>()? {
        match (received.message, engine) {
            (
                FromOld::Totals {
                    ports,
                    stations,
                    connections,
                },
                _,
            ) => {
                for (id, totals) in &ports {
                    if let Some(id) = PortId::new(*id) {
                        live.datapath().add_totals(id, totals);
                    }
                }
                learned.add_stats(&stations, &connections);
            }
            (FromOld::Seen(entries), Some(engine)) => {
                engine.restore_seen(&entries, (&names, monotonic_now()));
            }
            (FromOld::Counters(array, counted), Some(engine)) => {
                engine.add_counters(&array, &counted);
            }
            // From here on nothing more is said: the end of the channel is the end of the process.
            _ => {}
        }
    }
    Ok(())
}

/// Makes the ports that were handed over, without serving them.
fn adopt(
    live: &mut LiveEngine,
    ports: Vec<SwitchPort>,
    descriptors: &mut Incoming,
) -> Result<PortTable, TakeError> {
    let mut table = PortTable::default();
    for port in ports {
        let id = PortId::new(port.id).ok_or_else(|| refused("a port without a number"))?;
        let fields: PortFields = serde_json::from_value(port.config).map_err(refused)?;
        let config = PortConfig::from_fields(fields).map_err(refused)?;
        let tap = descriptors.take_some(port.tap).map_err(refused)?;
        let handed = Handed {
            device: port.device,
            tap,
            stream: port.stream,
        };
        live.adopt(id, &config, (handed, descriptors))
            .map_err(|error| TakeError::Refused(format!("port {}: {error}", config.name)))?;
        table.insert(id, config);
    }
    Ok(table)
}

fn restore(
    engine: Option<&Arc<Engine>>,
    updates: &[Update],
    registry: &PortRegistry,
) -> Result<(), TakeError> {
    let Some(engine) = engine else { return Ok(()) };
    let names = NamesOfBatch::new(registry);
    engine
        .restore(updates, &names, monotonic_now())
        .map_err(|error| {
            TakeError::Refused(format!(
                "table entries do not fit the program any more: {}; restart instead",
                error.reason
            ))
        })
}

fn read_names(names: Vec<(String, u16)>) -> Result<Vec<(PortName, PortId)>, TakeError> {
    let names = names.into_iter().map(|(name, id)| {
        let name = PortName::parse(&name).map_err(refused)?;
        let id = PortId::new(id).ok_or_else(|| refused("a name without a number"))?;
        Ok((name, id))
    });
    names.collect()
}

fn refused(error: impl std::fmt::Display) -> TakeError {
    TakeError::Refused(error.to_string())
}

/// The next message; `None` when the other process has died.
fn hear(channel: &Channel) -> Result<Option<Received<FromOld>>, TakeError> {
    match channel.receive() {
        Err(error) if has_gone(&error) => Ok(None),
        other => other.map_err(refused),
    }
}

fn answer(channel: &Channel, message: &FromNew) -> Result<(), TakeError> {
    match channel.tell(message) {
        Err(error) if has_gone(&error) => Ok(()),
        other => other.map_err(refused),
    }
}

fn has_gone(error: &io::Error) -> bool {
    let gone = [
        ErrorKind::UnexpectedEof,
        ErrorKind::BrokenPipe,
        ErrorKind::ConnectionReset,
    ];
    gone.contains(&error.kind())
}
