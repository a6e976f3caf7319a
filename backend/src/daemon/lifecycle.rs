//! From a configuration to a running switch, and back.
//!
//! ```text
//! claim admin socket -> start engine -> bring up ports -> READY=1 -> serve -> SIGTERM, SIGINT -> STOPPING=1 -> drain -> exit
//!              take all of that over <- [handover](crate::handover) <- upgrade <-'
//! ```
//! Everything up to READY=1 either succeeds whole or leaves nothing behind.
use super::{notify, process};
use crate::config::{Configuration, Origin, PortName, ProgramFault, ProgramSource, SwitchConfig};
use crate::control::desired_ports::HandedPorts;
use crate::control::execute::ExecuteError;
use crate::control::live::{Beside, LiveEngine};
use crate::control::port_state::signed::{KeyError, StateKey};
use crate::control::port_table::PortTable;
use crate::control::services::{
    ServicesFileFault, ServicesHandle, ServicesOptions, StartServicesError, document,
};
use crate::control::tables::{InPlace, Store, StoreError, Tables, TablesOptions};
use crate::control::{ControlHandle, ControlThread, DesiredPorts, StartError};
use crate::devices::owner::StartDevicesError;
use crate::devices::{Devices, DevicesOptions};
use crate::handover::take::{self, TakeError};
use crate::rest::{
    AdminSocket, ClaimError, Leave, Limits, Remote, RemoteError, Turn, router, serve_all,
};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use switch_core::Millis;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::service::ServicesConfig;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// How long the process before may keep the store, once it serves nothing any more, and how often that is looked at.
const STORE_PATIENCE: Duration = Duration::from_secs(5);
const STORE_RETRY: Duration = Duration::from_millis(10);
/// How long the drain may take before the process ends without it.
const DRAIN: Duration = Duration::from_secs(10);

/// Why the daemon does not run. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The admin socket.
    #[error(transparent)]
    Admin(#[from] ClaimError),
    /// Workers or device thread.
    #[error("cannot start the data path: {0}; lower `workers`, or correct `cpus`")]
    Engine(io::Error),
    /// A port cannot come up.
    #[error("{origin}: {source}")]
    Port {
        /// Where the operator wrote it.
        origin: Origin,
        /// The port and why.
        source: Box<ExecuteError>,
    },
    /// The ports or the control thread.
    #[error(transparent)]
    Start(Box<StartError>),
    /// The program.
    #[error(transparent)]
    Program(#[from] ProgramFault),
    /// The program cannot be run.
    #[error("program {program}: {reason}")]
    Tables {
        /// Which.
        program: String,
        /// Why.
        reason: String,
    },
    /// The store of table entries.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file that `services` names.
    #[error(transparent)]
    ServicesFile(#[from] ServicesFileFault),
    /// The services.
    #[error(transparent)]
    Services(#[from] StartServicesError),
    /// The key that signs what migrates of ports.
    #[error(transparent)]
    StateKey(#[from] KeyError),
    /// The admin interface over TCP.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The device table.
    #[error(transparent)]
    Devices(#[from] StartDevicesError),
    /// The process before.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// The runtime of the main thread.
    #[error("cannot serve signals and the admin socket: {0}")]
    Runtime(io::Error),
}

/// How a daemon that ran has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Drained: nothing is left.
    Drained,
    /// A second signal came, or the drain took too long.
    CutShort,
    /// Another process serves everything.
    HandedOver,
}

/// Runs the daemon until a signal ends it, or another process takes everything over.
pub fn run(configuration: &Configuration) -> Result<Ending, DaemonError> {
    process::end_on_panic();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    let remote = remote(&configuration.switch)?;
    let mut begun = begin(configuration)?;
    // From here on a signal is caught: one that comes during the start is served right after it.
    let (signals, listener, remote) = {
        let _runtime = runtime.enter();
        let signals = Signals::catch().map_err(DaemonError::Runtime)?;
        let listener = begun
            .admin
            .listener()
            .and_then(tokio::net::UnixListener::from_std)
            .map_err(DaemonError::Runtime)?;
        // Closed if there is to be none any more.
        let before = begun.remote.take();
        let remote = remote.map(|remote| turn(remote, begun.handed.is_some(), before));
        (signals, listener, remote.transpose()?)
    };
    let Begun {
        admin,
        live,
        engine,
        table,
        handed,
        services,
        ..
    } = begun;
    let (handed, in_place) = handed.unzip();
    let folder = configuration.switch.state_dir.as_deref();
    let store = folder.map(|folder| open_store(folder, handed.is_some()));
    let store = store.transpose()?.map(Arc::new);
    let desired = DesiredPorts::open(configuration, store.clone(), handed)?;
    process::raise_descriptor_limit(desired.configured().iter().chain(&desired.changed()));
    let live = live.with_offers(desired.offers());
    let tables = match live.default_tables() {
        // Nothing of them is stored: they follow from the ports.
        Some(shown) => {
            let options = TablesOptions {
                in_place,
                ..TablesOptions::default()
            };
            Some(Tables::start(shown, options)?)
        }
        None => engine
            .clone()
            .map(|engine| start_tables(&configuration.switch, engine, (store, in_place)))
            .transpose()?,
    };
    let left = Arc::new(Notify::new());
    let live = live.with_beside(Beside {
        tables: tables.clone(),
        admin: admin.listener().map_err(DaemonError::Runtime)?.into(),
        remote: remote.as_ref().map(|(remote, _)| remote.socket()),
        program: configuration.switch.program.to_string(),
        left: Arc::clone(&left),
    });
    let ports = desired.configured().len() + desired.changed().len();
    let rows = desired.devices();
    let (control, services) = start_control(
        configuration,
        (desired, services),
        (live, table, engine),
        tables.clone(),
    )?;
    let devices = Devices::start(DevicesOptions {
        control: control.handle(),
        rows,
        folder: run_folder(&configuration.switch),
    })?;
    log::info!(
        "ready: {ports} ports, {} workers, admin socket {}",
        configuration.switch.workers,
        configuration.switch.admin
    );
    notify::service_manager("READY=1");
    let ending = runtime.block_on(serve_until_signal(
        (listener, remote),
        router(
            control.handle(),
            tables.clone(),
            services,
            Some(devices.handle()),
        ),
        (control.handle(), signals, &left, devices),
    ));
    match ending {
        Ending::Drained => {
            control.join();
            if let Some(tables) = &tables {
                tables.stop();
            }
            log::info!("stopped");
        }
        // Sockets, memory and interfaces are another's now: nothing of them may be closed in order.
        Ending::HandedOver => {
            log::logger().flush();
            std::process::exit(0);
        }
        Ending::CutShort => {}
    }
    Ok(ending)
}

/// What runs before ports are configured: nothing, or what the process before has handed over.
struct Begun {
    admin: AdminSocket,
    live: LiveEngine,
    engine: Option<Arc<Engine>>,
    table: PortTable,
    handed: Option<(HandedPorts, InPlace)>,
    /// Where the process before accepted clients over TCP.
    remote: Option<OwnedFd>,
    services: Option<ServicesConfig>,
}

fn begin(configuration: &Configuration) -> Result<Begun, DaemonError> {
    let switch = &configuration.switch;
    let start = |engine: &Option<Arc<Engine>>| {
        let key = state_key(switch)?;
        let live = LiveEngine::start(switch, engine.clone()).map_err(DaemonError::Engine)?;
        Ok::<_, DaemonError>(live.with_state_key(key, switch))
    };
    if let Some(mut channel) = take::channel()? {
        // Its descriptors come before it is known how many.
        process::raise_descriptor_limit(std::iter::empty());
        let engine = start_engine(switch)?;
        match take::take_over(&mut channel, start(&engine)?, (switch, engine.as_ref())) {
            Ok(taken) => {
                let handed = serde_json::from_value(taken.control).map_err(|error| {
                    DaemonError::Take(TakeError::Refused(format!("ports: {error}")))
                })?;
                let services = taken.services.map(serde_json::from_value);
                let services = services.transpose().map_err(|error| {
                    DaemonError::Take(TakeError::Refused(format!("services: {error}")))
                })?;
                let names = taken.names;
                let admin = AdminSocket::adopt(taken.admin, switch.admin.as_path());
                admin.admit(switch.admin_group.as_deref())?;
                return Ok(Begun {
                    admin,
                    live: taken.live,
                    engine,
                    table: taken.table,
                    handed: Some((handed, InPlace { names })),
                    remote: taken.remote,
                    services,
                });
            }
            Err(TakeError::Alone) => log::warn!("the process before died: starting afresh"),
            Err(error) => return Err(error.into()),
        }
    }
    let admin = AdminSocket::claim(switch.admin.as_path(), switch.admin_group.as_deref())?;
    let engine = start_engine(switch)?;
    Ok(Begun {
        admin,
        live: start(&engine)?,
        engine,
        table: PortTable::default(),
        handed: None,
        remote: None,
        services: None,
    })
}

/// Opens the store. The process before may take a moment to let go of it.
fn open_store(folder: &Path, is_handed_over: bool) -> Result<Store, StoreError> {
    let deadline = Instant::now() + STORE_PATIENCE;
    loop {
        match Store::open(folder) {
            Err(StoreError::InUse(_)) if is_handed_over && Instant::now() < deadline => {
                std::thread::sleep(STORE_RETRY);
            }
            other => return other,
        }
    }
}

/// The engine of the configured program; `None`: the default program, which is compiled in.
fn start_engine(switch: &SwitchConfig) -> Result<Option<Arc<Engine>>, DaemonError> {
    let program = switch.program.load()?;
    if switch.program.is_compiled_in() {
        return Ok(None);
    }
    let quotas = &switch.quotas;
    let config = EngineConfig {
        conntrack: switch.connections,
        mac_table_capacity: switch.mac_capacity as usize,
        mac_limit_per_port: switch.mac_limit_per_port as usize,
        mac_ageing: Millis::from_secs(u64::from(switch.mac_ageing_s)),
        tenant_quota: quotas.default as usize,
        tenant_quotas: quotas
            .by_tenant
            .iter()
            .map(|(tenant, most)| (tenant.clone(), *most as usize))
            .collect(),
        ..EngineConfig::default()
    };
    let engine = Engine::new(program, config).map_err(|error| DaemonError::Tables {
        program: switch.program.to_string(),
        reason: error.to_string(),
    })?;
    Ok(Some(Arc::new(engine)))
}

/// Gives the engine what the store has.
fn start_tables(
    switch: &SwitchConfig,
    engine: Arc<Engine>,
    (store, in_place): (Option<Arc<Store>>, Option<InPlace>),
) -> Result<Tables, DaemonError> {
    let options = TablesOptions {
        store,
        quotas: switch.quotas.clone(),
        in_place,
    };
    let tables = Tables::start(engine, options)?;
    let restored = tables.restored();
    log::info!(
        "program {}: {} entries and {} settings from the store, {} kept aside",
        switch.program,
        restored.entries,
        restored.settings,
        restored.aside
    );
    Ok(tables)
}

fn start_control(
    configuration: &Configuration,
    (desired, services): (DesiredPorts, Option<ServicesConfig>),
    (live, table, engine): (LiveEngine, PortTable, Option<Arc<Engine>>),
    tables: Option<Tables>,
) -> Result<(ControlThread, Option<ServicesHandle>), DaemonError> {
    // Those of the process before hold, as those of the store do after a restart.
    let initial = match services {
        Some(services) => Some(services),
        None => initial_services(&configuration.switch)?,
    };
    let services = match (engine, &tables) {
        (Some(engine), Some(tables)) => Some(ServicesHandle::start(ServicesOptions {
            datapath: live.datapath(),
            engine,
            tables: tables.clone(),
            initial,
        })?),
        _ => None,
    };
    let live = live.with_services(services.clone());
    let admin = configuration.switch.admin.clone();
    let control =
        ControlThread::start((live, table), desired, admin, tables).map_err(
            |error| match error {
                StartError::Execute(source) => DaemonError::Port {
                    origin: origin_of(configuration, &source.port),
                    source: Box::new(source),
                },
                other => DaemonError::Start(Box::new(other)),
            },
        )?;
    Ok((control, services))
}

/// The key that signs what migrates of ports, if there is one.
pub fn state_key(switch: &SwitchConfig) -> Result<Option<StateKey>, KeyError> {
    let path = switch.device_state_key_file.as_deref();
    path.map(StateKey::read).transpose()
}

/// What the file of `services` says; it is refused with a program that sends nothing to the controller.
pub fn initial_services(
    switch: &SwitchConfig,
) -> Result<Option<ServicesConfig>, ServicesFileFault> {
    let Some(path) = &switch.services else {
        return Ok(None);
    };
    let config = document::read(path)?;
    if switch.program == ProgramSource::default() {
        return Err(ServicesFileFault {
            path: path.clone(),
            reason: format!(
                "program {} has no services; choose another with `program`, or leave `services` out",
                switch.program
            ),
        });
    }
    Ok(Some(config))
}

/// The admin interface over TCP, if there is one: its files are read and checked.
pub fn remote(switch: &SwitchConfig) -> Result<Option<Remote>, RemoteError> {
    switch.remote.as_ref().map(Remote::read).transpose()
}

/// Goes on where the process before listened, if that is where it is to be; otherwise listens, as soon as that process has let go of
/// what may be in the way. Within the runtime.
fn turn(
    remote: Remote,
    is_handed_over: bool,
    before: Option<OwnedFd>,
) -> Result<(Remote, Turn), RemoteError> {
    let turn = match before.and_then(|listener| remote.adopt(listener)) {
        Some(listener) => Turn::Listening(listener),
        None => match remote.listen() {
            Err(_) if is_handed_over => Turn::AfterAnother,
            listener => Turn::Listening(listener?),
        },
    };
    Ok((remote, turn))
}

/// Where sockets are put that nobody names.
fn run_folder(switch: &SwitchConfig) -> PathBuf {
    let folder = switch.admin.as_path().parent();
    folder.unwrap_or(Path::new("/")).to_owned()
}

fn origin_of(configuration: &Configuration, name: &PortName) -> Origin {
    let port = configuration
        .ports
        .iter()
        .find(|port| port.config.name == *name);
    port.map_or(Origin::Default, |port| port.origin.clone())
}

/// The signals that concern a daemon. SIGPIPE is ignored by Rust's own start-up.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal that asks for the end.
    async fn end(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => log::info!("SIGHUP changes nothing: ports are changed with `ringswitch port`, and `ringswitch upgrade` takes up a changed configuration"),
            }
        }
    }
}

async fn serve_until_signal(
    listeners: (tokio::net::UnixListener, Option<(Remote, Turn)>),
    router: axum::Router,
    (control, mut signals, left, devices): (ControlHandle, Signals, &Notify, Devices),
) -> Ending {
    let mut has_left = false;
    let stop = async {
        tokio::select! {
            name = signals.end() => {
                log::info!("{name}: draining; once more to end at once");
                notify::service_manager("STOPPING=1");
                Leave::Drain
            }
            () = left.notified() => {
                has_left = true;
                Leave::HandedOver
            }
        }
    };
    serve_all(listeners, router, Limits::default(), stop).await;
    if has_left {
        return Ending::HandedOver;
    }
    // So that it does not take a port that is drained for one that is missing. What it waits for it waits for without a thread.
    devices.stop().await;
    tokio::select! {
        _ = control.stop() => Ending::Drained,
        name = signals.end() => {
            log::warn!("{name} again: ending at once");
            Ending::CutShort
        }
        () = tokio::time::sleep(DRAIN) => {
            log::error!("the drain did not end within {} s: ending without it", DRAIN.as_secs());
            Ending::CutShort
        }
    }
}
