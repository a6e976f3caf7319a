//! Every stream port, as `control` calls them; their sockets are served on the device thread.
//!
//! Kept true: a port is served only between [`StreamPorts::add_port`] and [`StreamPorts::remove_port`], and what a worker tells of one
//! that is gone is for nobody.

use super::handover::{Frozen, HandedStream, StreamRest, read_rests};
use super::life::Life;
use super::status::StreamStatus;
use crate::datapath::{Datapath, DatapathEvent};
use crate::device::endpoint::Endpoint;
use crate::device::thread::{Loop, Subscriber, loop_error};
use crate::device::{DeviceError, DeviceThread, PortEventSink, SocketMode};
use crate::handover::descriptors::Incoming;
use event_manager::SubscriberId;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use switch_core::PortId;

/// A stream port to be added.
#[derive(Clone, Debug)]
pub struct StreamSpec {
    /// Its number in the switch.
    pub id: PortId,
    /// Its name in the log.
    pub name: String,
    /// Path of the UNIX socket.
    pub socket: PathBuf,
    /// Who listens on it.
    pub mode: SocketMode,
    /// The largest MTU of frames that are delivered to it; none: any.
    pub mtu: Option<u16>,
}

type SharedLife = Arc<Mutex<Life>>;

/// A port on the event loop.
struct Served {
    life: SharedLife,
    subscriber: SubscriberId,
    datapath: Arc<Datapath>,
}

/// Every stream port.
pub struct StreamPorts {
    event_loop: Loop,
    ports: Arc<Mutex<HashMap<PortId, Served>>>,
    events: PortEventSink,
}

impl StreamPorts {
    /// None yet. They are served by `devices`' thread, where `events` hears when one comes up or goes down, and must not block.
    pub fn new(devices: &DeviceThread, events: PortEventSink) -> Self {
        Self {
            event_loop: devices.event_loop(),
            ports: Arc::default(),
            events,
        }
    }

    /// Where [`DatapathEvent::StreamEnded`] goes. Called on a worker, it queues the event and returns.
    pub fn datapath_events(&self) -> Arc<dyn Fn(DatapathEvent) + Send + Sync> {
        let event_loop = self.event_loop.clone();
        let ports = Arc::clone(&self.ports);
        Arc::new(move |event| {
            let DatapathEvent::StreamEnded {
                port,
                connection,
                end,
            } = event
            else {
                return;
            };
            let ports = Arc::clone(&ports);
            // Fails only once the thread has stopped, when nobody is left to tell.
            let _ = event_loop.fire(move |_| {
                let found = lock(&ports).get(&port).map(|it| Arc::clone(&it.life));
                if let Some(life) = found {
                    lock(&life).ended(connection, &end);
                }
            });
        })
    }

    /// Listens (or starts connecting) before it returns, and gives the port its place in `datapath`.
    ///
    /// # Errors
    /// Nothing of the port is left then.
    pub fn add_port(&self, datapath: &Arc<Datapath>, spec: StreamSpec) -> Result<(), DeviceError> {
        let id = spec.id;
        if lock(&self.ports).contains_key(&id) {
            return Err(DeviceError::PortExists { id });
        }
        // The socket first: a port that cannot have it leaves nothing in the data path.
        let endpoint = Endpoint::open(spec.mode, &spec.socket)?;
        let link = datapath
            .add_stream_port(id, spec.mtu)
            .map_err(DeviceError::Thread)?;
        Life::new(spec, endpoint, link, Arc::clone(&self.events))
            .map_err(DeviceError::Thread)
            .and_then(|life| self.take_on(id, life, datapath))
            .inspect_err(|_| datapath.remove_port(id))
    }

    /// Takes a port over from another process. It is served from [`Self::take_up`] and [`Self::go`] on.
    ///
    /// # Errors
    /// A descriptor did not come; the port is not there then.
    pub fn adopt_port(
        &self,
        datapath: &Arc<Datapath>,
        spec: StreamSpec,
        handed: (HandedStream, &mut Incoming),
    ) -> Result<(), DeviceError> {
        let id = spec.id;
        let link = datapath
            .add_stream_port(id, spec.mtu)
            .map_err(DeviceError::Thread)?;
        Life::adopt(spec, handed, link, Arc::clone(&self.events))
            .map_err(DeviceError::Thread)
            .and_then(|life| self.take_on(id, life, datapath))
            .inspect_err(|_| datapath.remove_port(id))
    }

    /// Gives every adopted port its connection, with what the process before had read and not sent of it. They are not read yet: first
    /// whoever they send to has to be there.
    pub fn take_up(&self, rests: &[StreamRest], bytes: &[u8]) {
        let rests: HashMap<_, _> = read_rests(rests, bytes).into_iter().collect();
        for (id, life, _) in self.all() {
            lock(&life).take_up(rests.get(&id).copied());
        }
    }

    /// Serves every adopted port.
    pub fn go(&self) {
        let all = self.all();
        let went = self.event_loop.call_blocking(move |ops| {
            for (_, life, subscriber) in all {
                lock(&life).go(&mut ops.event_ops(subscriber)?);
            }
            Ok::<_, event_manager::Error>(())
        });
        if let Err(error) = went {
            log::error!("stream ports that were taken over are not served: {error:?}");
        }
    }

    /// Runs `act` on every port while nothing of their sockets changes.
    pub fn frozen<R>(&self, act: impl FnOnce(&mut Frozen<'_>) -> R) -> R {
        let all = self.all();
        let ports = all.iter().map(|(id, life, _)| (*id, lock(life))).collect();
        let parked = Vec::new();
        act(&mut Frozen { ports, parked })
    }

    fn all(&self) -> Vec<(PortId, SharedLife, SubscriberId)> {
        let ports = lock(&self.ports);
        let ports = ports.iter();
        ports
            .map(|(id, served)| (*id, Arc::clone(&served.life), served.subscriber))
            .collect()
    }

    /// Ends the connection, removes the socket, and takes the port out of the data path.
    ///
    /// # Errors
    /// There is no such port.
    pub fn remove_port(&self, id: PortId) -> Result<(), DeviceError> {
        let served = lock(&self.ports)
            .remove(&id)
            .ok_or(DeviceError::NoSuchPort { id })?;
        let subscriber = served.subscriber;
        let unsubscribed = self
            .event_loop
            .call_blocking(move |ops| ops.remove_subscriber(subscriber));
        if let Err(error) = unsubscribed {
            // The thread has stopped: nobody else serves the port, and what follows is safe.
            log::debug!("{id:?} was no longer served: {error:?}");
        }
        lock(&served.life).close();
        served.datapath.remove_port(id);
        Ok(())
    }

    /// For `port show`; `None` for a port that is not one of these.
    pub fn status(&self, id: PortId) -> Option<StreamStatus> {
        let life = lock(&self.ports).get(&id).map(|it| Arc::clone(&it.life))?;
        Some(lock(&life).status())
    }

    /// Removes every port. Again: nothing.
    pub fn stop(&self) {
        let ids: Vec<PortId> = lock(&self.ports).keys().copied().collect();
        for id in ids {
            // Someone else may have removed it meanwhile.
            let _ = self.remove_port(id);
        }
    }

    fn take_on(&self, id: PortId, life: Life, datapath: &Arc<Datapath>) -> Result<(), DeviceError> {
        let life = Arc::new(Mutex::new(life));
        let (ports, datapath) = (Arc::clone(&self.ports), Arc::clone(datapath));
        let subscriber: Subscriber = Box::new(Arc::clone(&life));
        self.event_loop
            .call_blocking(move |ops| {
                // Entered in the same step as it is served, so that no event finds it half there.
                let subscriber = ops.add_subscriber(subscriber);
                let served = Served {
                    life,
                    subscriber,
                    datapath,
                };
                lock(&ports).insert(id, served);
                Ok::<_, event_manager::Error>(())
            })
            .map_err(|error| DeviceError::Thread(loop_error(error)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
