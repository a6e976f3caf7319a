//! The services as the admin socket and the control thread see them.
use super::counts::{Counts, CountsView};
use super::document;
use super::thread::Thread;
use crate::control::PortId;
use crate::control::clock::monotonic_now;
use crate::control::tables::{StoreError, Tables};
use crate::control::tags::{IfMatch, tag_of};
use crate::datapath::Datapath;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use switch_core::engine::runtime::Engine;
use switch_core::service::{
    Dhcp4Lease, Dhcp6Lease, NeighborInfo, ServiceAction, ServiceConfigError, ServiceStats,
    Services, ServicesConfig,
};
use switch_core::{MacAddress, Millis};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Actions of changes that wait for the thread: beyond, changes are refused until it has caught up.
const MOST_PENDING: usize = 1 << 18;

/// What the services are started with.
pub struct ServicesOptions {
    /// Where frames come from and go to.
    pub datapath: Arc<Datapath>,
    /// Whose program sends them.
    pub engine: Arc<Engine>,
    /// The tables: their store, and the names of ports.
    pub tables: Tables,
    /// What they do until somebody says otherwise.
    pub initial: Option<ServicesConfig>,
}

/// Why the services do not run.
#[derive(Debug, thiserror::Error)]
pub enum StartServicesError {
    /// The thread, or what it needs.
    #[error("cannot start the thread of the services: {0}; raise the limits of the process")]
    Thread(#[from] io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The configuration.
    #[error("services: {0}")]
    Config(#[from] ServiceConfigError),
}

/// Why a configuration was not taken. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServicesError {
    /// It cannot be used.
    #[error(transparent)]
    Config(#[from] ServiceConfigError),
    /// It could not be made durable.
    #[error("{0}")]
    Store(String),
    /// It is not as the client saw it.
    #[error("the configuration has changed since")]
    Changed,
    /// What earlier changes said is still being carried out.
    #[error("earlier changes are still being carried out")]
    Busy,
}

/// The services, and what changes said that is not carried out yet.
pub(super) struct Desk {
    pub services: Services,
    pub pending: Vec<ServiceAction>,
}

impl Desk {
    /// Asks the services something. What changes said before comes first, so that actions are carried out in the order in which the
    /// services said them.
    pub fn ask(
        &mut self,
        actions: &mut Vec<ServiceAction>,
        question: impl FnOnce(&mut Services, &mut Vec<ServiceAction>),
    ) {
        actions.append(&mut self.pending);
        question(&mut self.services, actions);
    }
}

pub(super) struct Inner {
    desk: Mutex<Desk>,
    pub counts: Counts,
    /// Wakes the thread.
    pub bell: EventFd,
    pub stopping: AtomicBool,
    tables: Tables,
    /// Serialises changes of the configuration, the store included.
    changing: Mutex<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Inner {
    /// Held for one question; never while anything is waited for.
    pub fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // A full counter wakes as well.
        let _ = self.bell.write(1);
    }
}

/// A lease of either protocol, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leases {
    /// Of DHCPv4, by interface and address.
    pub dhcp4: Vec<Dhcp4Lease>,
    /// Of DHCPv6, likewise.
    pub dhcp6: Vec<Dhcp6Lease>,
    /// What time it is by the leases' clock.
    pub now: Millis,
}

/// The services at run time. Cheap to clone; every method may be called from any thread.
#[derive(Clone)]
pub struct ServicesHandle(Arc<Inner>);

impl ServicesHandle {
    /// Starts the thread, with the configuration that the store has, else the initial one.
    ///
    /// # Errors
    /// See [`StartServicesError`]. Nothing runs then.
    pub fn start(options: ServicesOptions) -> Result<Self, StartServicesError> {
        let ServicesOptions {
            datapath,
            engine,
            tables,
            initial,
        } = options;
        let stored = match tables.store() {
            Some(store) => document::stored(store)?,
            None => None,
        };
        if stored.is_some() && initial.is_some() {
            log::info!("services: as they were last set, not as the file of `services` says");
        }
        let mut desk = Desk {
            services: Services::new(seed()),
            pending: vec![],
        };
        if let Some(config) = stored.or(initial) {
            desk.services
                .configure(config, monotonic_now(), &mut desk.pending)?;
        }
        let inner = Arc::new(Inner {
            desk: Mutex::new(desk),
            counts: Counts::default(),
            bell: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            stopping: AtomicBool::new(false),
            tables,
            changing: Mutex::new(()),
            thread: Mutex::new(None),
        });
        let thread = Thread::new(Arc::clone(&inner), datapath, &engine)?;
        if thread.lacks_neighbors() {
            log::warn!(
                "the program asks for next hops, but has no table `neighbors` with the keys `interface` and `address` and an action with `mac`: frames that wait for them will not arrive"
            );
        }
        let thread = std::thread::Builder::new()
            .name("services".to_owned())
            .spawn(move || thread.run())?;
        *lock(&inner.thread) = Some(thread);
        Ok(Self(inner))
    }

    /// Takes a whole configuration in place of the last one: durable, if anything is, before it is in effect. Says whether it is
    /// durable. Waits for the disk.
    ///
    /// # Errors
    /// See [`ServicesError`].
    pub fn set(&self, config: ServicesConfig, if_match: &IfMatch) -> Result<bool, ServicesError> {
        config.check()?;
        let _changing = lock(&self.0.changing);
        if !if_match.holds(|| self.tag()) {
            return Err(ServicesError::Changed);
        }
        if self.0.desk().pending.len() > MOST_PENDING {
            return Err(ServicesError::Busy);
        }
        let store = self.0.tables.store();
        if let Some(store) = store {
            document::store(store, &config)
                .map_err(|error| ServicesError::Store(error.to_string()))?;
        }
        let mut desk = self.0.desk();
        let Desk { services, pending } = &mut *desk;
        services.configure(config, monotonic_now(), pending)?;
        drop(desk);
        self.0.wake();
        Ok(store.is_some())
    }

    /// Tells the configuration in effect from all others.
    pub fn tag(&self) -> String {
        tag_of(&self.config())
    }

    /// The configuration in effect.
    pub fn config(&self) -> ServicesConfig {
        let desk = self.0.desk();
        ServicesConfig {
            interfaces: desk.services.interfaces().cloned().collect(),
            limits: desk.services.limits().clone(),
        }
    }

    /// Forgets what is known of a port that is gone.
    pub fn forget_port(&self, port: PortId) {
        let mut desk = self.0.desk();
        let Desk { services, pending } = &mut *desk;
        services.forget_port(port, monotonic_now(), pending);
        drop(desk);
        self.0.wake();
    }

    /// The neighbours, by interface and address.
    pub fn neighbors(&self) -> Vec<NeighborInfo> {
        let mut neighbors: Vec<_> = self.0.desk().services.neighbors().collect();
        neighbors.sort_unstable_by_key(|neighbor| (neighbor.interface, neighbor.address));
        neighbors
    }

    /// The leases from pools.
    pub fn leases(&self) -> Leases {
        let now = monotonic_now();
        let desk = self.0.desk();
        let mut dhcp4: Vec<_> = desk.services.dhcp4_leases(now).collect();
        let mut dhcp6: Vec<_> = desk.services.dhcp6_leases(now).collect();
        drop(desk);
        dhcp4.sort_unstable_by_key(|lease| (lease.interface, lease.address));
        dhcp6.sort_unstable_by_key(|lease| (lease.interface, lease.address));
        Leases { dhcp4, dhcp6, now }
    }

    /// What was done so far: by the services, and about what they said.
    pub fn stats(&self) -> (ServiceStats, CountsView) {
        let stats = self.0.desk().services.stats().clone();
        (stats, self.0.counts.view())
    }

    /// A port's name.
    pub fn port_name(&self, port: PortId) -> Option<String> {
        self.0.tables.port_name(port)
    }

    /// Ends the thread. Frames that wait for a neighbour are lost.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.wake();
        let thread = lock(&self.0.thread).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            log::error!("the thread of the services had panicked");
        }
    }
}

/// A neighbour's MAC address and port, where they are known.
pub fn known(neighbor: &NeighborInfo) -> Option<(MacAddress, PortId)> {
    match neighbor.state {
        switch_core::service::NeighborState::Known(mac, port) => Some((mac, port)),
        _ => None,
    }
}

/// Differs between switches, and need not be secret.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
