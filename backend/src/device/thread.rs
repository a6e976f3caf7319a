//! The one thread that serves every port's socket: those of vhost-user ports, and those of stream ports, which `crate::port::stream` adds to
//! its event loop.
//!
//! Control threads add and remove ports and ask for their status; workers post what happened to rings. Everything a front-end
//! does is handled here, on an event loop that never blocks. Kept true: a port is served only between `add_port` and
//! `remove_port`; no lock is held while a worker waits.

use super::attach::{Attachment, DatapathAttachment};
use super::endpoint::Endpoint;
use super::features::PackedOffer;
use super::port::{HandedPort, Port};
use super::state::DeviceState;
use super::status::DeviceStatus;
use super::{DeviceError, PortEventSink, PortId, VhostPortSpec};
use crate::datapath::{Datapath, DatapathEvent};
use crate::handover::descriptors::{Incoming, Outgoing};
use crate::ring::RecordFile;
use event_manager::{
    EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

pub use crate::datapath::ports::MAX_QUEUE_PAIRS;

type SharedPort = Arc<Mutex<Port>>;
/// What the event loop calls: a port of either kind.
pub(crate) type Subscriber = Box<dyn MutEventSubscriber + Send>;
pub(crate) type Loop = RemoteEndpoint<Subscriber>;
type Ports = Arc<Mutex<HashMap<PortId, Served>>>;

/// A port on the event loop.
struct Served {
    port: SharedPort,
    subscriber: SubscriberId,
    /// Whose rings go with the port; none in tests that attach something else.
    datapath: Option<Arc<Datapath>>,
}

/// The thread that serves every port's vhost-user socket. Stops when it is dropped.
pub struct DeviceThread {
    event_loop: Loop,
    ports: Ports,
    events: PortEventSink,
    stopping: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl DeviceThread {
    /// Starts the thread, without a port.
    pub fn start() -> io::Result<Arc<Self>> {
        Self::start_with(Arc::new(|_| {}))
    }

    /// Like [`Self::start`]; `events` hears on the device thread when a port comes up or goes down, and must not block.
    pub fn start_with(events: PortEventSink) -> io::Result<Arc<Self>> {
        let mut manager = EventManager::<Subscriber>::new().map_err(loop_error)?;
        let event_loop = manager.remote_endpoint();
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let thread = std::thread::Builder::new()
            .name("vhost-user".to_owned())
            .spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    if let Err(error) = manager.run() {
                        log::error!(
                            "the vhost-user thread cannot wait for events and stops: {error:?}"
                        );
                        return;
                    }
                }
            })?;
        Ok(Arc::new(Self {
            event_loop,
            ports: Ports::default(),
            events,
            stopping,
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// The event loop, for ports of another kind to be served on.
    pub(crate) fn event_loop(&self) -> Loop {
        self.event_loop.clone()
    }

    /// The sink to give to [`Datapath::start`]. Called on a worker, it queues the event and returns.
    pub fn datapath_events(&self) -> Arc<dyn Fn(DatapathEvent) + Send + Sync> {
        let event_loop = self.event_loop.clone();
        let ports = Arc::clone(&self.ports);
        Arc::new(move |event| {
            let ports = Arc::clone(&ports);
            // Fails only once the thread has stopped, when nobody is left to tell.
            let _ = event_loop.fire(move |ops| deliver(&ports, event, ops));
        })
    }

    /// Listens (or starts connecting) before it returns, and gives the port its rings in `datapath`.
    pub fn add_port(
        &self,
        datapath: &Arc<Datapath>,
        spec: VhostPortSpec,
    ) -> Result<(), DeviceError> {
        check_queue_pairs(&spec)?;
        self.check_new(&spec)?;
        // The socket first: a port that cannot have it leaves nothing in the data path.
        let endpoint = Endpoint::open(spec.mode, &spec.socket)?;
        let id = spec.id;
        let (records, packed) = open_records(&spec);
        let rings = datapath.add_vhost_port(id, spec.queue_pairs, spec.mtu);
        let attachment = DatapathAttachment::new(rings, records)
            .and_then(|attachment| attachment.with_carrier(spec.carrier.clone()))
            .inspect_err(|_| datapath.remove_port(id))
            .map_err(DeviceError::Thread)?;
        let place = Place {
            endpoint,
            packed,
            datapath: Some(Arc::clone(datapath)),
        };
        self.serve(spec, place, Box::new(attachment))
            .inspect_err(|_| datapath.remove_port(id))
    }

    /// A port over something other than the data path: what tests use.
    pub fn add_attached(
        &self,
        attachment: Box<dyn Attachment>,
        spec: VhostPortSpec,
    ) -> Result<(), DeviceError> {
        check_queue_pairs(&spec)?;
        self.check_new(&spec)?;
        let place = Place {
            endpoint: Endpoint::open(spec.mode, &spec.socket)?,
            packed: match spec.packed {
                Some(_) => PackedOffer::Made,
                None => PackedOffer::NotWanted,
            },
            datapath: None,
        };
        self.serve(spec, place, attachment)
    }

    /// Takes a port over from another process. It is served from [`Self::take_up`] on.
    ///
    /// # Errors
    /// A descriptor did not come or cannot be used; the port is not there then.
    pub fn adopt_port(
        &self,
        datapath: &Arc<Datapath>,
        spec: VhostPortSpec,
        (handed, descriptors): (HandedPort, &mut Incoming),
    ) -> Result<(), DeviceError> {
        check_queue_pairs(&spec)?;
        self.check_new(&spec)?;
        let (id, events) = (spec.id, Arc::clone(&self.events));
        let rings = datapath.add_vhost_port(id, spec.queue_pairs, spec.mtu);
        let port = handed
            .records(descriptors, &spec)
            .and_then(|records| {
                let attachment = DatapathAttachment::new(rings, records)?;
                let attachment = attachment.with_carrier(spec.carrier.clone())?;
                Port::adopt(spec, handed, (attachment, descriptors), events)
            })
            .map_err(DeviceError::Thread);
        port.and_then(|port| self.take_on(id, port, Some(Arc::clone(datapath))))
            .inspect_err(|_| datapath.remove_port(id))
    }

    /// Serves every adopted port: its rings as its device was parked, then its sockets. A port without a device goes on as it was handed
    /// over.
    pub fn take_up(&self, mut devices: HashMap<PortId, DeviceState>) {
        let ports: Vec<_> = self
            .ports()
            .iter()
            .map(|(id, served)| (*id, Arc::clone(&served.port), served.subscriber))
            .collect();
        // The rings of all ports first: frames wait in them.
        for (id, port, _) in &ports {
            if let Some(device) = devices.remove(id) {
                lock(port).set_device(device);
            }
        }
        for guest_tx in [false, true] {
            for (_, port, _) in &ports {
                lock(port).unpark(guest_tx);
            }
        }
        let went = self.event_loop.call_blocking(move |ops| {
            for (_, port, subscriber) in ports {
                let mut ops = ops.event_ops(subscriber)?;
                lock(&port).go(&mut ops);
            }
            Ok::<_, event_manager::Error>(())
        });
        if let Err(error) = went {
            log::error!("ports that were taken over are not served: {error:?}");
        }
    }

    /// Runs `act` on every port while nothing of them changes: what front-ends send meanwhile waits in their sockets.
    pub fn frozen<R>(&self, act: impl FnOnce(&mut Frozen<'_>) -> R) -> R {
        let ports: Vec<_> = self
            .ports()
            .iter()
            .map(|(id, served)| (*id, Arc::clone(&served.port)))
            .collect();
        let locked = ports.iter().map(|(id, port)| (*id, lock(port)));
        act(&mut Frozen(locked.collect()))
    }

    /// Closes the session, removes the socket, removes the rings. A VM that is still there may come back to a port of that name and find
    /// its packed rings as it left them.
    pub fn remove_port(&self, id: PortId) -> Result<(), DeviceError> {
        if let Some(served) = self.ports().get(&id) {
            lock(&served.port).discard_unused_positions();
        }
        self.close_port(id)
    }

    fn close_port(&self, id: PortId) -> Result<(), DeviceError> {
        let served = self
            .ports()
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
        lock(&served.port).close();
        drop(served.port);
        if let Some(datapath) = served.datapath {
            datapath.remove_port(id);
        }
        Ok(())
    }

    /// For `port show`; `None` for an unknown port.
    pub fn status(&self, id: PortId) -> Option<DeviceStatus> {
        let port = self
            .ports()
            .get(&id)
            .map(|served| Arc::clone(&served.port))?;
        Some(lock(&port).status())
    }

    /// Removes every port, with sessions, sockets and rings, and ends the thread. Again: nothing.
    pub fn stop(&self) {
        let ids: Vec<PortId> = self.ports().keys().copied().collect();
        for id in ids {
            // Someone else may have removed it meanwhile.
            let _ = self.close_port(id);
        }
        self.stopping.store(true, Ordering::Release);
        let _ = self.event_loop.kick();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            log::error!("the vhost-user thread ended with a panic");
        }
    }

    /// A port, locked.
    #[cfg(test)]
    pub(super) fn locked<R>(&self, id: PortId, act: impl FnOnce(&mut Port) -> R) -> R {
        let port = self.ports().get(&id).map(|served| Arc::clone(&served.port));
        act(&mut lock(&port.expect("it is served")))
    }

    fn serve(
        &self,
        spec: VhostPortSpec,
        place: Place,
        attachment: Box<dyn Attachment>,
    ) -> Result<(), DeviceError> {
        let id = spec.id;
        let Place {
            endpoint,
            packed,
            datapath,
        } = place;
        let events = Arc::clone(&self.events);
        let port =
            Port::new(spec, packed, endpoint, attachment, events).map_err(DeviceError::Thread)?;
        self.take_on(id, port, datapath)
    }

    fn take_on(
        &self,
        id: PortId,
        port: Port,
        datapath: Option<Arc<Datapath>>,
    ) -> Result<(), DeviceError> {
        let port = Arc::new(Mutex::new(port));
        let ports = Arc::clone(&self.ports);
        let subscriber: Subscriber = Box::new(Arc::clone(&port));
        self.event_loop
            .call_blocking(move |ops| {
                // Entered in the same step as it is served, so that no event finds it half there.
                let subscriber = ops.add_subscriber(subscriber);
                let served = Served {
                    port,
                    subscriber,
                    datapath,
                };
                lock(&ports).insert(id, served);
                Ok::<_, event_manager::Error>(())
            })
            .map_err(|error| DeviceError::Thread(loop_error(error)))
    }

    fn check_new(&self, spec: &VhostPortSpec) -> Result<(), DeviceError> {
        if self.ports().contains_key(&spec.id) {
            return Err(DeviceError::PortExists { id: spec.id });
        }
        Ok(())
    }

    fn ports(&self) -> MutexGuard<'_, HashMap<PortId, Served>> {
        lock(&self.ports)
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Every port, locked.
pub struct Frozen<'a>(Vec<(PortId, MutexGuard<'a, Port>)>);

impl Frozen<'_> {
    /// All that another process needs to serve the ports.
    ///
    /// # Errors
    /// A descriptor cannot be had.
    pub fn hand_over(&self, descriptors: &mut Outgoing) -> io::Result<Vec<(PortId, HandedPort)>> {
        let hand_over =
            |(id, port): &(PortId, MutexGuard<'_, Port>)| Ok((*id, port.hand_over(descriptors)?));
        self.0.iter().map(hand_over).collect()
    }

    /// Takes all rings back; the devices as they are then.
    pub fn park(&mut self) -> Vec<(PortId, DeviceState)> {
        for guest_tx in [true, false] {
            self.0.iter_mut().for_each(|(_, port)| port.park(guest_tx));
        }
        let devices = self.0.iter();
        devices
            .map(|(id, port)| (*id, port.device().clone()))
            .collect()
    }

    /// Serves them again.
    pub fn unpark(&mut self) {
        for guest_tx in [false, true] {
            self.0
                .iter_mut()
                .for_each(|(_, port)| port.unpark(guest_tx));
        }
    }
}

/// On the device thread: hands a worker's news to its port.
fn deliver(
    ports: &Ports,
    event: DatapathEvent,
    ops: &mut dyn SubscriberOps<Subscriber = Subscriber>,
) {
    let (DatapathEvent::RingFault { port, .. }
    | DatapathEvent::MemoryLost { port }
    | DatapathEvent::UplinkLost { port, .. }
    | DatapathEvent::StreamEnded { port, .. }) = &event;
    let found = lock(ports)
        .get(port)
        .map(|served| (Arc::clone(&served.port), served.subscriber));
    let Some((port, subscriber)) = found else {
        return;
    };
    if let Ok(mut ops) = ops.event_ops(subscriber) {
        lock(&port).datapath_event(event, &mut ops);
    }
}

/// What a port is served with.
struct Place {
    endpoint: Endpoint,
    packed: PackedOffer,
    datapath: Option<Arc<Datapath>>,
}

/// Opens what packed rings need. A port that cannot have it works with split rings alone, and says so.
fn open_records(spec: &VhostPortSpec) -> (Option<RecordFile>, PackedOffer) {
    let Some(folder) = &spec.packed else {
        return (None, PackedOffer::NotWanted);
    };
    match RecordFile::open(folder, &spec.name, 2 * spec.queue_pairs) {
        Ok(records) => (Some(records), PackedOffer::Made),
        Err(error) => {
            log::warn!("{}: packed rings are not offered: {error}", spec.name);
            (None, PackedOffer::Withheld(error.to_string()))
        }
    }
}

fn check_queue_pairs(spec: &VhostPortSpec) -> Result<(), DeviceError> {
    match spec.queue_pairs {
        1..=MAX_QUEUE_PAIRS => Ok(()),
        queue_pairs => Err(DeviceError::QueuePairs { queue_pairs }),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn loop_error(error: event_manager::Error) -> io::Error {
    io::Error::other(format!("the event loop refused: {error:?}"))
}
