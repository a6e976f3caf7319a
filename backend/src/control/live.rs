//! The [`Engine`] over the real data path, device thread, streams, TAPs and switch.
//!
//! Owned by the control thread. The one thing it shares is the list of uplinks that were lost, which a worker writes.
use super::PortId;
use super::clock::monotonic_now;
use super::engine::{Engine, Kept, PortHealth, StepError};
use super::events::{Event, EventBus};
use super::frozen_offers::FrozenOffers;
use super::plan::Step;
use super::port_state::signed::StateKey;
use super::port_state::{Carriers, NamedPort, PortCarrier, PortStates, StoppedStations};
use super::services::ServicesHandle;
use super::tables::DefaultTables;
use super::tables::l2::VlanEntries;
use crate::config::{
    InterfaceName, Mtu, NO_STATE_KEY, PortConfig, PortKind, STATE_KEY_REMEDY, SocketPath,
    SwitchConfig,
};
use crate::datapath::capture::Captures;
use crate::datapath::{
    Datapath, DatapathEvent, Destination, DroppedFrame, EventSinkFn, FlowLister, MoveError,
    PortCounters, Program, QueueView, SourceStats, WorkerOptions, WorkerProfile, WorkerStats,
};
use crate::device::state_transfer::StateCarrier;
use crate::device::status::LoggingStatus;
use crate::device::{
    DeviceError, DeviceThread, PortChange, PortEventSink, SocketMode, VhostPortSpec,
};
use crate::handover::give::{UpgradeError, UpgradeRequest, Upgraded};
use crate::port::stream::ports::{StreamPorts, StreamSpec};
use crate::port::tap::{Tap, TapError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use switch_core::engine::model::Program as Model;
use switch_core::engine::runtime::Engine as TableEngine;
use switch_core::l2_entries::{TABLES, has_tables};
use switch_core::programs::builtin;
use switch_core::{MacEntry, MacMoves, MacStats, Millis, Switch, VlanPolicy};

mod handover;

pub use handover::{Beside, Handed};

/// Uplinks whose device vanished, with the reason.
type LostUplinks = Arc<Mutex<BTreeMap<PortId, String>>>;

/// Where ports' VLAN policies go besides the switch.
enum Vlans {
    /// The default program's tables, which show them.
    Shown(Arc<DefaultTables>),
    /// The entries of a program that has tables for them.
    Entries(VlanEntries),
    /// Nowhere: the program knows nothing of them.
    Nowhere,
}

impl Vlans {
    fn of(engine: Option<&Arc<TableEngine>>, switch: &Switch) -> io::Result<Self> {
        let Some(engine) = engine else {
            let program = Model::from_json(builtin("l2").unwrap_or_default())
                .map_err(|errors| io::Error::other(errors.to_string()))?;
            let tables = DefaultTables::new(program, switch).map_err(io::Error::other)?;
            return Ok(Self::Shown(Arc::new(tables)));
        };
        Ok(if has_tables(engine.program().source()) {
            Self::Entries(VlanEntries::new(Arc::clone(engine)))
        } else {
            Self::Nowhere
        })
    }

    fn join(&self, id: PortId, vlan: &VlanPolicy) -> Result<(), StepError> {
        match self {
            Self::Shown(tables) => tables.note(id, Some(vlan.clone())),
            Self::Entries(entries) => {
                entries
                    .put(id, Some(vlan.clone()))
                    .map_err(|error| StepError {
                        field: "vlan",
                        reason: format!("the program's tables do not take it: {error}"),
                        remedy: format!("let {} be as in the program l2", TABLES.join(", ")),
                    })?;
            }
            Self::Nowhere if *vlan == VlanPolicy::Transparent => {}
            Self::Nowhere => {
                return Err(StepError {
                    field: "vlan",
                    reason: "the program has no tables for ports' VLANs".to_owned(),
                    remedy: format!(
                        "leave the port's VLANs out and say in the program's own tables what they are, or give it the tables {} of the program l2",
                        TABLES.join(", ")
                    ),
                });
            }
        }
        Ok(())
    }

    fn leave(&self, id: PortId) {
        match self {
            Self::Shown(tables) => tables.note(id, None),
            Self::Entries(entries) => {
                if let Err(error) = entries.put(id, None) {
                    log::error!("entries of port {id} stay in the program's tables: {error}");
                }
            }
            Self::Nowhere => {}
        }
    }
}

/// Everything that runs.
pub struct LiveEngine {
    switch: Arc<Switch>,
    /// What decides on frames, if it is not the default program.
    engine: Option<Arc<TableEngine>>,
    vlans: Vlans,
    datapath: Arc<Datapath>,
    devices: Arc<DeviceThread>,
    streams: StreamPorts,
    taps: BTreeSet<PortId>,
    /// Where packed rings keep their positions.
    ring_state: PathBuf,
    lost_uplinks: LostUplinks,
    /// Stations of stopped ports whose state migrates.
    stopped: Arc<StoppedStations>,
    /// What carries ports' states; none without a key.
    carriers: Option<Arc<Carriers>>,
    /// What ports offer, as it was before this process.
    offers: FrozenOffers,
    /// What answers frames for the controller, where a program sends some.
    services: Option<ServicesHandle>,
    /// What an upgrade hands over besides; none: it cannot be done.
    beside: Option<Beside>,
    /// Where what happens to ports is told.
    told: Arc<OnceLock<EventBus>>,
}

impl LiveEngine {
    /// Starts the device thread and the workers, without a port. Frames are decided on by `engine`, or by the default program.
    pub fn start(config: &SwitchConfig, engine: Option<Arc<TableEngine>>) -> io::Result<Self> {
        let switch = Arc::new(Switch::new(switch_core::SwitchConfig {
            mac_table_capacity: config.mac_capacity as usize,
            mac_limit_per_port: config.mac_limit_per_port as usize,
            mac_ageing: Millis::from_secs(u64::from(config.mac_ageing_s)),
            ..Default::default()
        }));
        let vlans = Vlans::of(engine.as_ref(), &switch)?;
        let stopped = Arc::new(StoppedStations::default());
        let learned = (Arc::clone(&switch), engine.clone());
        let told = Arc::new(OnceLock::new());
        let forget = forget_stations(learned, Arc::clone(&stopped));
        let port_events = tell_too(Arc::clone(&told), forget);
        let devices = DeviceThread::start_with(Arc::clone(&port_events))?;
        let streams = StreamPorts::new(&devices, port_events);
        let lost_uplinks = LostUplinks::default();
        let others = (streams.datapath_events(), devices.datapath_events());
        let events = sort_events(Arc::clone(&lost_uplinks), others);
        let options = WorkerOptions {
            workers: config.workers,
            cpus: config.cpus.clone(),
            poll_us: config.poll_us,
        };
        let program = engine.clone().map_or(Program::L2, Program::Engine);
        let datapath = Datapath::start(&options, (Arc::clone(&switch), program), events)
            .inspect_err(|_| devices.stop())?;
        Ok(Self {
            switch,
            engine,
            vlans,
            datapath,
            devices,
            streams,
            taps: BTreeSet::new(),
            ring_state: config.ring_state.clone(),
            lost_uplinks,
            stopped,
            carriers: None,
            offers: FrozenOffers::default(),
            services: None,
            beside: None,
            told,
        })
    }

    /// The data path, for what else works with it.
    pub fn datapath(&self) -> Arc<Datapath> {
        Arc::clone(&self.datapath)
    }

    /// Has the services told of ports that go, and ended with the rest.
    #[must_use]
    pub fn with_services(self, services: Option<ServicesHandle>) -> Self {
        Self { services, ..self }
    }

    /// Has ports' states migrate with their VMs, signed with `key`.
    #[must_use]
    pub fn with_state_key(self, key: Option<StateKey>, config: &SwitchConfig) -> Self {
        let carriers = key.map(|key| {
            Arc::new(Carriers {
                here: key.switch_mark(config.admin.as_path()),
                key,
                max_age: Duration::from_secs(config.device_state_max_age_s.into()),
                tables: OnceLock::new(),
            })
        });
        Self { carriers, ..self }
    }

    /// Has ports offer what they did before.
    #[must_use]
    pub fn with_offers(self, offers: FrozenOffers) -> Self {
        Self { offers, ..self }
    }

    /// The default program's tables, if it is what runs.
    pub fn default_tables(&self) -> Option<Arc<DefaultTables>> {
        match &self.vlans {
            Vlans::Shown(tables) => Some(Arc::clone(tables)),
            Vlans::Entries(_) | Vlans::Nowhere => None,
        }
    }

    /// Gives a port its place. What fails leaves nothing behind.
    fn join(&self, id: PortId, vlan: &VlanPolicy) -> Result<(), StepError> {
        self.switch
            .add_port(id, vlan.clone())
            .map_err(port_refused)?;
        if let Some(engine) = &self.engine {
            engine.attach_port(id);
        }
        self.vlans
            .join(id, vlan)
            .inspect_err(|_| drop(self.leave(id)))
    }

    fn leave(&self, id: PortId) -> Result<(), StepError> {
        self.vlans.leave(id);
        if let Some(engine) = &self.engine {
            engine.detach_port(id);
        }
        if let Some(services) = &self.services {
            services.forget_port(id);
        }
        self.switch.remove_port(id).map_err(port_refused)
    }

    /// What carries the state of a port that asks for it.
    fn carrier(
        &self,
        id: PortId,
        port: &PortConfig,
    ) -> Result<Option<Arc<dyn StateCarrier>>, StepError> {
        let wanted =
            matches!(&port.kind, PortKind::VhostUser { device_state, .. } if *device_state);
        if !wanted {
            return Ok(None);
        }
        let shared = self.carriers.as_ref().ok_or_else(no_state_key)?;
        let port = NamedPort {
            id,
            name: port.name.clone(),
        };
        Ok(Some(Arc::new(PortCarrier {
            port,
            states: self.states(),
            stopped: Arc::clone(&self.stopped),
            shared: Arc::clone(shared),
        })))
    }

    fn states(&self) -> PortStates {
        PortStates::new(
            Arc::clone(&self.datapath),
            Arc::clone(&self.switch),
            self.engine.clone(),
        )
    }

    /// What the device thread is told of a vhost-user port.
    fn spec(&self, id: PortId, port: &PortConfig) -> Result<Option<VhostPortSpec>, StepError> {
        let PortKind::VhostUser {
            socket,
            mode,
            queue_pairs,
            packed,
            device_state: _,
        } = &port.kind
        else {
            return Ok(None);
        };
        let carrier = self.carrier(id, port)?;
        match &carrier {
            Some(_) => self.stopped.keep(id),
            None => self.stopped.leave(id),
        }
        Ok(Some(VhostPortSpec {
            id,
            name: port.name.to_string(),
            socket: socket.as_path().to_owned(),
            mode: *mode,
            queue_pairs: queue_pairs.get(),
            mtu: port.mtu.map(Mtu::get),
            packed: packed.then(|| self.ring_state.clone()),
            carrier,
            offer: self.offers.get(&port.name),
        }))
    }

    fn open(&mut self, id: PortId, port: &PortConfig) -> Result<(), StepError> {
        match &port.kind {
            PortKind::VhostUser { .. } => match self.spec(id, port)? {
                Some(spec) => self
                    .devices
                    .add_port(&self.datapath, spec)
                    .map_err(|error| device_refused(&error)),
                None => Ok(()),
            },
            PortKind::Tap { interface } => {
                self.open_tap(id, interface, port.mtu)
                    .map_err(|error| tap_refused(&error))?;
                self.taps.insert(id);
                Ok(())
            }
            PortKind::Stream { socket, mode } => {
                let spec = stream_spec(id, port, (socket, *mode));
                self.streams
                    .add_port(&self.datapath, spec)
                    .map_err(|error| device_refused(&error))
            }
        }
    }

    fn open_tap(
        &self,
        id: PortId,
        interface: &InterfaceName,
        mtu: Option<Mtu>,
    ) -> Result<(), TapError> {
        let tap = Tap::open(interface.as_str())?;
        if let Some(mtu) = mtu {
            tap.set_mtu(mtu.get())?;
        }
        self.datapath.add_tap_port(id, tap);
        Ok(())
    }

    fn close(&mut self, id: PortId, port: &PortConfig) -> Result<(), StepError> {
        match port.kind {
            PortKind::VhostUser { .. } => {
                let removed = self.devices.remove_port(id);
                self.stopped.leave(id);
                removed.map_err(|error| device_refused(&error))
            }
            PortKind::Tap { .. } => {
                self.taps.remove(&id);
                self.datapath.remove_port(id);
                lock(&self.lost_uplinks).remove(&id);
                Ok(())
            }
            PortKind::Stream { .. } => self
                .streams
                .remove_port(id)
                .map_err(|error| device_refused(&error)),
        }
    }

    fn tap_health(&self, id: PortId) -> PortHealth {
        match lock(&self.lost_uplinks).get(&id) {
            None => PortHealth {
                state: "up".to_owned(),
                reason: None,
                device: None,
            },
            Some(lost) => PortHealth {
                state: "faulted".to_owned(),
                reason: Some(format!(
                    "{lost}; remove the port and add it again to create the interface anew"
                )),
                device: None,
            },
        }
    }
}

impl Engine for LiveEngine {
    fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::Join { id, vlan } => self.join(*id, vlan),
            Step::Open { id, port } => self.open(*id, port),
            Step::Close { id, port } => self.close(*id, port),
            Step::Leave { id, .. } => self.leave(*id),
        }
    }

    fn port_states(&self) -> Option<PortStates> {
        Some(self.states())
    }

    fn health(&self, id: PortId) -> Option<PortHealth> {
        if self.taps.contains(&id) {
            return Some(self.tap_health(id));
        }
        // The device's state is shown as it is; what it has to say first is part of that.
        let device = match self.streams.status(id) {
            Some(stream) => serde_json::to_value(stream),
            None => serde_json::to_value(self.devices.status(id)?),
        };
        let device = device.ok()?;
        let text = |field: &str| {
            device
                .get(field)
                .and_then(|value| value.as_str())
                .map(str::to_owned)
        };
        Some(PortHealth {
            state: text("state").unwrap_or_else(|| "unknown".to_owned()),
            reason: text("reason"),
            device: Some(device),
        })
    }

    fn counters(&self, id: PortId) -> PortCounters {
        self.datapath.counters(id).unwrap_or_default()
    }

    fn queues(&self, id: PortId) -> Vec<QueueView> {
        self.datapath.queues(id)
    }

    fn summary(&self, id: PortId) -> Option<(String, Option<LoggingStatus>)> {
        if self.taps.contains(&id) {
            return Some((self.tap_health(id).state, None));
        }
        if let Some(stream) = self.streams.status(id) {
            return Some((stream.state.to_string(), None));
        }
        let status = self.devices.status(id)?;
        Some((status.state.to_string(), status.logging))
    }

    fn worker_profiles(&self) -> Vec<WorkerProfile> {
        self.datapath.worker_profiles()
    }

    fn stations(&self) -> MacStats {
        match &self.engine {
            None => self.switch.mac_stats(),
            Some(engine) => engine.mac_stats(),
        }
    }

    fn worker_stats(&self) -> Vec<WorkerStats> {
        self.datapath.worker_stats()
    }

    fn sources(&self) -> Vec<SourceStats> {
        self.datapath.sources()
    }

    fn move_sources(
        &mut self,
        id: PortId,
        pair: Option<u16>,
        destination: Destination,
    ) -> Result<Vec<SourceStats>, MoveError> {
        self.datapath.move_sources(id, pair, destination)
    }

    fn last_drops(&self, id: PortId) -> (Millis, Vec<DroppedFrame>) {
        (self.datapath.now(), self.datapath.last_drops(id))
    }

    fn captures(&self) -> Option<Arc<Captures>> {
        Some(self.datapath.captures())
    }

    fn flows(&self) -> Option<FlowLister> {
        Some(self.datapath.flows())
    }

    fn fdb(&self) -> Vec<MacEntry> {
        match &self.engine {
            None => self.switch.mac_entries(monotonic_now()),
            Some(engine) => engine.mac_entries(monotonic_now()),
        }
    }

    fn tell(&mut self, events: EventBus) {
        // Once: there is one control thread.
        let _ = self.told.set(events);
    }

    fn migrations(&self) -> Vec<(PortId, LoggingStatus)> {
        self.devices.migrations()
    }

    fn lost_uplinks(&self) -> BTreeMap<PortId, String> {
        lock(&self.lost_uplinks).clone()
    }

    fn mac_moves(&mut self) -> MacMoves {
        match &self.engine {
            None => self.switch.take_mac_moves(),
            Some(engine) => engine.take_mac_moves(),
        }
    }

    fn tick(&mut self) {
        self.switch.expire(monotonic_now());
        self.datapath.rebalance();
    }

    fn upgrade(
        &mut self,
        request: &UpgradeRequest,
        kept: Kept,
        leave: &mut dyn FnMut(Upgraded),
    ) -> Result<(), UpgradeError> {
        self.hand_over(request, kept, leave)
    }

    fn stop(&mut self) {
        if let Some(services) = &self.services {
            services.stop();
        }
        // The workers first: while ports go one by one, a guest whose peer is gone already would lose what waits in its ring.
        // Left there, it is what the next instance starts with.
        self.datapath.stop();
        self.streams.stop();
        self.devices.stop();
    }
}

/// Forgets the stations behind a port whose last ring stopped: its VM is gone, or will announce itself anew. Called on the device
/// thread.
fn forget_stations(
    (switch, engine): (Arc<Switch>, Option<Arc<TableEngine>>),
    stopped: Arc<StoppedStations>,
) -> PortEventSink {
    Arc::new(move |event| {
        let (port, now) = (event.port, monotonic_now());
        match event.change {
            PortChange::LoggingBegan | PortChange::LoggingEnded { .. } => {}
            PortChange::Up | PortChange::Left => stopped.set(port, Vec::new(), now),
            PortChange::Down { .. } if stopped.keeps(port) => {
                let learned = switch.take_port(port, now);
                let learned = match &engine {
                    Some(engine) => engine.take_port(port, now),
                    None => learned,
                };
                stopped.set(port, learned, now);
            }
            PortChange::Down { .. } => {
                switch.flush_port(port);
                if let Some(engine) = &engine {
                    engine.flush_port(port);
                }
            }
        }
    })
}

fn stream_spec(
    id: PortId,
    port: &PortConfig,
    (socket, mode): (&SocketPath, SocketMode),
) -> StreamSpec {
    StreamSpec {
        id,
        name: port.name.to_string(),
        socket: socket.as_path().to_owned(),
        mode,
        mtu: port.mtu.map(Mtu::get),
    }
}

/// Tells everybody who listens, after `before`. Called on the device thread.
fn tell_too(told: Arc<OnceLock<EventBus>>, before: PortEventSink) -> PortEventSink {
    Arc::new(move |event| {
        let port = event.name.clone();
        let happened = match &event.change {
            PortChange::Up => Some(Event::PortUp { port }),
            PortChange::Down { reason } => Some(Event::PortDown {
                port,
                reason: reason.clone(),
            }),
            PortChange::LoggingBegan => Some(Event::MigrationStarted { port }),
            PortChange::LoggingEnded { took_ms } => Some(Event::MigrationEnded {
                port,
                took_ms: *took_ms,
            }),
            PortChange::Left => None,
        };
        before(event);
        if let Some((events, happened)) = told.get().zip(happened) {
            events.publish(happened);
        }
    })
}

fn no_state_key() -> StepError {
    StepError {
        field: "device_state",
        reason: NO_STATE_KEY.to_owned(),
        remedy: STATE_KEY_REMEDY.to_owned(),
    }
}

/// Notes lost uplinks here and passes every other event on to the device thread, to those whom it concerns. Called on a worker; the lock is
/// held for one insertion.
fn sort_events(lost: LostUplinks, (streams, devices): (EventSinkFn, EventSinkFn)) -> EventSinkFn {
    Arc::new(move |event| match event {
        DatapathEvent::UplinkLost { port, reason } => {
            lock(&lost).insert(port, reason);
        }
        ended @ DatapathEvent::StreamEnded { .. } => streams(ended),
        other => devices(other),
    })
}

fn lock(lost: &LostUplinks) -> std::sync::MutexGuard<'_, BTreeMap<PortId, String>> {
    lost.lock().unwrap_or_else(PoisonError::into_inner)
}

fn port_refused(error: switch_core::PortError) -> StepError {
    StepError {
        field: "name",
        reason: error.to_string(),
        remedy: "report this as a fault of Ringswitch".to_owned(),
    }
}

fn device_refused(error: &DeviceError) -> StepError {
    let remedy = if error.is_out_of_descriptors() {
        "raise the limit of open descriptors (LimitNOFILE= of the service, or `ulimit -Hn`), or remove a port"
    } else {
        "use a socket whose directory exists and may be written, and that no other process serves"
    };
    StepError {
        field: "socket",
        reason: error.to_string(),
        remedy: remedy.to_owned(),
    }
}

fn tap_refused(error: &TapError) -> StepError {
    StepError {
        field: "interface",
        reason: error.to_string(),
        remedy: "run with CAP_NET_ADMIN, and name an interface that is free or a TAP that nobody has open".to_owned(),
    }
}
