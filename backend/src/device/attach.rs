//! The effects of the device's state machine: memory is mapped, rings go to workers and come back.
//!
//! `state` decides and calls an [`Attachment`] on the device thread; [`DatapathAttachment`] carries it out on the real data path.
//! It owns every descriptor and the memory map of the session, so that [`DeviceState`] stays a plain
//! value. Kept true: each call either happens as a whole or changes nothing, except where it says which rings it had to stop.

use super::backend_channel::{BackendChannel, HandedChannel};
use super::descriptors::BackendSocket;
use super::message::{AnsweringDescriptor, Reply};
use super::receiving::Receiving;
use super::state::{DeviceState, Handled, Outcome, Refusal};
use super::state_transfer::{Direction, StateCarrier, StateTransfers, TransferError, Transferred};
use crate::datapath::{QueueIndex, VhostPort};
use crate::handover::descriptors::{Incoming, Outgoing, Slot};
use crate::pager::client::PagerEnd;
use crate::ring::{
    DirtyLog, EventSink, EventSource, GuestMemory, Iotlb, LogCounts, LogError, LogLayout,
    MemoryError, RecordFile, RegionLayout, RingAddresses, RingConfig, RingError, Translation,
    is_packed,
};
use rustix::event::epoll;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// Why an effect did not happen.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A region could not be mapped or found.
    #[error("guest memory cannot be mapped: {0}")]
    Memory(#[from] MemoryError),
    /// The migration log could not be mapped.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The data path does not take the ring.
    #[error("the ring does not start: {0}")]
    Ring(#[from] RingError),
    /// A descriptor is not an eventfd.
    #[error("the file descriptor is not a usable eventfd: {0}")]
    Eventfd(io::Error),
    /// A packed ring has no place for its position.
    #[error("the ring's position cannot be kept: {0}")]
    Record(io::Error),
    /// A ring or a region needs memory that the front-end has not shared.
    #[error("no guest memory is shared")]
    NoMemory,
    /// An I/O address stands for what is not shared.
    #[error(
        "the front-end's address {user_addr:#x} ({size_bytes:#x} bytes) is not inside one memory region"
    )]
    NotShared {
        /// Where it says it is.
        user_addr: u64,
        /// How much.
        size_bytes: u64,
    },
    /// The channel cannot be served.
    #[error("the socket cannot be watched: {0}")]
    Channel(io::Error),
}

impl AttachError {
    /// Whether it is no fault, but something that was asked for and is not there yet.
    pub fn is_pending(&self) -> bool {
        matches!(self, Self::Ring(RingError::Pending { .. }))
    }

    /// Whether the guest's IOMMU forbids it: asking again would only be answered the same.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Ring(RingError::Refused { .. }))
    }
}

/// What a ring needs to start, as the front-end said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingStart {
    /// Descriptors; a power of two unless the ring is packed.
    pub size: u16,
    /// In the front-end's address space.
    pub addresses: RingAddresses,
    /// From SET_VRING_BASE or the last stop.
    pub base: u32,
    /// What the front-end has for it; differs from `base` when the ring was taken back behind its back.
    pub origin: u32,
    /// The front-end was told where the ring stopped, or began anew: no record knows better.
    pub base_is_final: bool,
    /// Acked virtio features.
    pub features: u64,
}

/// A running ring that no longer fits the memory map or the features, and was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRing {
    /// Which.
    pub queue: QueueIndex,
    /// In words.
    pub reason: String,
}

/// What came of [`Attachment::exchange`].
#[derive(Debug, Default)]
pub struct Exchanged {
    /// Rings that could not start should try again.
    pub rings_may_start: bool,
    /// What came of the request that was to be answered later ([`Outcome::Later`]).
    pub late: Option<Handled>,
}

/// What the device state machine does to the world. Called on the device thread only; no call may block on a guest.
pub trait Attachment: Send {
    /// Maps a whole new table and moves the running rings into it. On error the old map and all rings stay as they were.
    fn set_memory(
        &mut self,
        regions: Vec<(RegionLayout, OwnedFd)>,
    ) -> Result<Vec<LostRing>, AttachError>;
    /// Maps one more region. On error nothing changes.
    fn add_region(
        &mut self,
        layout: RegionLayout,
        file: OwnedFd,
    ) -> Result<Vec<LostRing>, AttachError>;
    /// Unmaps one region, given exactly as it was added. On error nothing changes.
    fn remove_region(&mut self, layout: RegionLayout) -> Result<Vec<LostRing>, AttachError>;
    /// Marks what rings write in this log from now on, instead of another. On error nothing changes.
    fn set_log(&mut self, layout: LogLayout, file: OwnedFd) -> Result<(), AttachError>;
    /// Stops that; when this returns nothing touches the log.
    fn drop_log(&mut self);
    /// What was counted since the first of the present run of logs.
    fn log_counts(&self) -> Option<Arc<LogCounts>>;
    /// Whether the front-end truncated memory that it shares.
    fn memory_lost(&self) -> bool;
    /// Keeps the ring's kick, also on a live ring; `None`: the ring is polled.
    fn set_kick(&mut self, queue: QueueIndex, kick: Option<OwnedFd>) -> Result<(), AttachError>;
    /// Keeps the ring's call; on a live ring it is signalled once.
    fn set_call(&mut self, queue: QueueIndex, call: Option<OwnedFd>) -> Result<(), AttachError>;
    /// Keeps what is signalled when the ring breaks.
    fn set_error(&mut self, queue: QueueIndex, error: Option<OwnedFd>) -> Result<(), AttachError>;
    /// Hands a stopped ring to a worker.
    fn start_ring(&mut self, queue: QueueIndex, start: &RingStart) -> Result<(), AttachError>;
    /// Takes the ring back: when this returns no worker touches it. Its base, if the data path knows one.
    fn stop_ring(&mut self, queue: QueueIndex) -> Option<u32>;
    /// Whether a worker has the ring.
    fn is_running(&self, queue: QueueIndex) -> bool;
    /// Lets frames through the ring; sticky across start and stop.
    fn enable_ring(&mut self, queue: QueueIndex);
    /// The opposite of [`Self::enable_ring`].
    fn disable_ring(&mut self, queue: QueueIndex);
    /// Features acked again while rings are live. They change how rings are read; one whose parts no longer fit is stopped.
    fn set_features(&mut self, features: u64) -> Vec<LostRing>;
    /// From now on the addresses of rings and buffers are I/O addresses, or are not.
    fn translate(&mut self, on: bool) -> Vec<LostRing>;
    /// Where to ask what they stand for, instead of another place.
    fn set_backend_channel(&mut self, socket: BackendSocket) -> Result<(), AttachError>;
    /// Takes in what some stand for. When this returns nothing that contradicts it is used, but by the rings it names, which have to be
    /// stopped.
    fn map_io(&mut self, translation: Translation) -> Result<Vec<QueueIndex>, AttachError>;
    /// Forgets what those from `first` to `last` stand for. When this returns none of that is used, but by the rings it names.
    fn unmap_io(&mut self, first: u64, last: u64) -> Vec<QueueIndex>;
    /// The VM's memory may arrive page by page. [`Self::exchange`] hands out the answer, with what the front-end hears of missing pages by.
    fn prepare_to_receive(&mut self) -> Result<(), PagerEnd> {
        Err(PagerEnd::Start(io::ErrorKind::Unsupported.into()))
    }
    /// Regions that are added from now on arrive page by page, until [`Self::all_received`].
    fn receive_from_now_on(&mut self) {}
    /// Where the front-end will see faults in a region that arrives page by page.
    fn fault_address(&self, _region: &RegionLayout) -> Option<u64> {
        None
    }
    /// The front-end understands faults in all regions: missing pages may be asked for.
    fn regions_known(&mut self) {}
    /// All pages are here.
    fn all_received(&mut self) -> Vec<LostRing> {
        Vec::new()
    }
    /// Becomes readable when [`Self::exchange`] is to be called.
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Asks and hears what there is to be asked and heard.
    fn exchange(&mut self) -> Exchanged {
        Exchanged::default()
    }
    /// Begins to carry the port's state in the switch through a pipe.
    fn begin_transfer(
        &mut self,
        _direction: Direction,
        _pipe: BackendSocket,
    ) -> Result<(), TransferError> {
        Err(TransferError::NotOffered)
    }
    /// What became of that, told once; `None`: it is under way, and [`Self::exchange`] will be called when it is not any more.
    fn transferred(&mut self) -> Option<Transferred> {
        Some(Err(TransferError::NotBegun))
    }
    /// Sends a frame as if the guest had.
    fn inject(&mut self, frame: &[u8]);
    /// The session is over and every ring was stopped: closes its descriptors, unmaps its memory, gives up what it still had to answer.
    fn forget_session(&mut self);
    /// Where rings were is of no use to anybody any more.
    fn discard_positions(&mut self) {}
    /// What is attached, and its descriptors once more.
    fn hand_over(&self, _descriptors: &mut Outgoing) -> io::Result<HandedAttachment> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// What is attached to a port, on its way to another process.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedAttachment {
    memory: Vec<(RegionLayout, Slot)>,
    log: Option<Slot>,
    events: Vec<HandedEvents>,
    records: Option<Slot>,
    /// Addresses are I/O addresses, which stand for these.
    #[serde(default)]
    translations: Option<Vec<Translation>>,
    #[serde(default)]
    channel: Option<HandedChannel>,
}

impl HandedAttachment {
    /// Where packed rings keep their positions, for a port of that name; `None` without any.
    ///
    /// # Errors
    /// The descriptor did not come.
    pub fn records(
        &self,
        descriptors: &mut Incoming,
        (folder, name): (&Path, &str),
    ) -> io::Result<Option<RecordFile>> {
        let file = descriptors.take_some(self.records)?;
        Ok(file.map(|file| RecordFile::adopt(file, folder, name)))
    }
}

/// A ring's eventfds, on their way.
#[derive(Debug, Serialize, Deserialize)]
struct HandedEvents {
    queue: u16,
    kick: Option<Slot>,
    call: Option<Slot>,
    error: Option<Slot>,
}

#[derive(Debug, Default)]
struct RingEvents {
    kick: Option<Arc<EventSource>>,
    call: Option<Arc<EventSink>>,
    error: Option<Arc<EventSink>>,
}

/// [`Attachment`] to a port of the data path.
pub struct DatapathAttachment {
    port: Arc<VhostPort>,
    memory: Option<Arc<GuestMemory>>,
    log: Option<Arc<DirtyLog>>,
    events: BTreeMap<QueueIndex, RingEvents>,
    records: Option<RecordFile>,
    iotlb: Arc<Iotlb>,
    is_translating: bool,
    channel: Option<BackendChannel>,
    /// Memory that arrives page by page, or may.
    receiving: Option<Receiving>,
    /// Regions that are added do.
    receives: bool,
    /// Where the port's state migrates with its VM.
    transfers: Option<StateTransfers>,
    /// Watches the channel and the pager, whether there is something to be asked, and whether a transfer has ended.
    ready: OwnedFd,
}

impl DatapathAttachment {
    /// Nothing attached yet. `records` is where packed rings keep their positions, if the port offers any.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(port: Arc<VhostPort>, records: Option<RecordFile>) -> io::Result<Self> {
        let iotlb = Arc::new(Iotlb::new()?);
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let event = epoll::EventData::new_u64(0);
        epoll::add(&ready, iotlb.bell(), event, epoll::EventFlags::IN)?;
        Ok(Self {
            port,
            memory: None,
            log: None,
            events: BTreeMap::new(),
            records,
            iotlb,
            is_translating: false,
            channel: None,
            receiving: None,
            receives: false,
            transfers: None,
            ready,
        })
    }

    /// Carries the port's state in the switch for a front-end that migrates its VM.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn with_carrier(mut self, carrier: Option<Arc<dyn StateCarrier>>) -> io::Result<Self> {
        self.transfers = carrier.map(StateTransfers::new).transpose()?;
        if let Some(transfers) = &self.transfers {
            let event = epoll::EventData::new_u64(2);
            epoll::add(&self.ready, transfers.bell(), event, epoll::EventFlags::IN)?;
        }
        Ok(self)
    }

    /// Moves the running rings into `memory`, with the log that there is.
    fn install(&mut self, memory: &GuestMemory) -> Vec<LostRing> {
        let iotlb = self.is_translating.then(|| Arc::clone(&self.iotlb));
        let memory = memory.with_log(self.log.clone()).with_iotlb(iotlb);
        let lost = self.port.replace_memory(&memory);
        self.memory = Some(memory);
        lost_rings(lost)
    }

    /// The running rings stay where they are, so none is lost.
    fn install_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.log = log;
        if let Some(memory) = self.memory.clone() {
            self.install(&memory);
        }
    }

    /// Attaches what was handed over, but starts no ring. `device` is as it was handed over with it.
    ///
    /// # Errors
    /// A descriptor did not come, or memory cannot be mapped.
    pub fn adopt(
        &mut self,
        handed: HandedAttachment,
        device: &DeviceState,
        descriptors: &mut Incoming,
    ) -> io::Result<()> {
        if let Some(translations) = handed.translations {
            self.is_translating = true;
            for translation in translations {
                self.iotlb.insert(translation);
            }
        }
        if let Some(channel) = handed.channel {
            let channel = BackendChannel::adopt(channel, descriptors)?;
            watch(&self.ready, &channel, true)?;
            self.channel = Some(channel);
        }
        let regions = handed.memory.into_iter();
        let regions = regions.map(|(layout, slot)| Ok((layout, descriptors.take(slot)?)));
        let regions = regions.collect::<io::Result<Vec<_>>>()?;
        if !regions.is_empty() {
            self.set_memory(regions).map_err(io::Error::other)?;
        }
        if let (Some(layout), Some(slot)) = (device.session().log, handed.log) {
            self.set_log(layout, descriptors.take(slot)?)
                .map_err(io::Error::other)?;
        }
        for events in handed.events {
            let queue = QueueIndex(events.queue);
            for (kind, slot) in [
                (Self::set_kick as SetEvent, events.kick),
                (Self::set_call, events.call),
                (Self::set_error, events.error),
            ] {
                let descriptor = descriptors.take_some(slot)?;
                kind(self, queue, descriptor).map_err(io::Error::other)?;
            }
        }
        for (index, ring) in (0..).zip(&device.session().rings) {
            if ring.enabled {
                self.enable_ring(QueueIndex(index));
            }
        }
        Ok(())
    }

    /// Rings that waited look again, whatever it was that came.
    fn translations_changed(&mut self, some_went: bool) -> Vec<QueueIndex> {
        let lost = if some_went {
            self.port.forget_translations()
        } else {
            Vec::new()
        };
        self.port.look_again();
        lost
    }

    fn drop_channel(&mut self) {
        let channel = self.channel.take();
        if let Some((socket, _)) = channel.as_ref().and_then(BackendChannel::watched)
            && let Err(error) = epoll::delete(&self.ready, socket)
        {
            log::error!("a front-end's channel cannot be unwatched: {error}");
        }
    }

    /// Serves the channel, if there is one; whether answers came.
    fn talk(&mut self) -> bool {
        let Some(channel) = &mut self.channel else {
            // Asked when there is somebody to ask: until then the bell is not to ring on.
            self.iotlb.silence();
            return false;
        };
        let heard = channel.hear(&self.iotlb);
        let asked = heard.and_then(|heard| channel.ask(&self.iotlb).map(|()| heard > 0));
        let watched = asked.and_then(|heard| {
            watch(&self.ready, channel, false)?;
            Ok(heard)
        });
        watched.unwrap_or_else(|end| {
            log::debug!("{end}");
            self.drop_channel();
            false
        })
    }

    /// `memory`, of which regions that are new arrive page by page, if any do at all.
    fn receive(
        &mut self,
        memory: Arc<GuestMemory>,
        is_new: impl Fn(&RegionLayout) -> bool,
    ) -> Result<Arc<GuestMemory>, AttachError> {
        match &mut self.receiving {
            Some(receiving) if self.receives => Ok(receiving.receive(&memory, is_new)?),
            _ => Ok(memory),
        }
    }

    /// Serves the pager, if there is one; whether pages came, and what came of the request that wanted one.
    fn talk_to_pager(&mut self) -> (bool, Option<Handled>) {
        let Some(receiving) = &mut self.receiving else {
            return (false, None);
        };
        let had_pager = receiving.watched().is_some();
        let news = receiving.talk(self.memory.as_ref());
        // One that is gone was closed, and so is not watched any more.
        if had_pager && let Some(watched) = receiving.watched() {
            let again = rewatch(&self.ready, watched, (PAGER, false));
            if let Err(error) = again {
                log::error!("a pager cannot be watched: {error}");
            }
        }
        let late = news.ready.map(|ready| match ready {
            Ok(faults) => Ok(Outcome::Reply(Reply::Descriptor(AnsweringDescriptor(
                faults,
            )))),
            Err(end) => Ok(Outcome::Refused(
                Reply::Body(Vec::new()),
                Refusal::Postcopy(end),
            )),
        });
        (news.arrived, late)
    }

    fn events(&mut self, queue: QueueIndex) -> &mut RingEvents {
        self.events.entry(queue).or_default()
    }
}

/// One of `set_kick`, `set_call` and `set_error`.
type SetEvent = fn(&mut DatapathAttachment, QueueIndex, Option<OwnedFd>) -> Result<(), AttachError>;

/// What is watched, for nobody but who debugs it.
const CHANNEL: u64 = 1;
const PAGER: u64 = 2;
const MISSING: u64 = 3;

fn watch(ready: &OwnedFd, channel: &BackendChannel, is_new: bool) -> io::Result<()> {
    match channel.watched() {
        Some(watched) => rewatch(ready, watched, (CHANNEL, is_new)),
        None => Ok(()),
    }
}

/// Waits for answers always, and for room only while questions wait for it.
fn rewatch(
    ready: &OwnedFd,
    (socket, has_unsent): (BorrowedFd<'_>, bool),
    (what, is_new): (u64, bool),
) -> io::Result<()> {
    let mut flags = epoll::EventFlags::IN;
    flags.set(epoll::EventFlags::OUT, has_unsent);
    let event = epoll::EventData::new_u64(what);
    if is_new {
        epoll::add(ready, socket, event, flags)?;
    } else {
        epoll::modify(ready, socket, event, flags)?;
    }
    Ok(())
}

fn lost_rings(lost: Vec<(QueueIndex, RingError)>) -> Vec<LostRing> {
    lost.into_iter()
        .map(|(queue, error)| LostRing {
            queue,
            reason: error.to_string(),
        })
        .collect()
}

fn sink(descriptor: Option<OwnedFd>) -> Result<Option<Arc<EventSink>>, AttachError> {
    descriptor
        .map(|descriptor| EventSink::new(descriptor).map(Arc::new))
        .transpose()
        .map_err(AttachError::Eventfd)
}

impl Attachment for DatapathAttachment {
    fn set_memory(
        &mut self,
        regions: Vec<(RegionLayout, OwnedFd)>,
    ) -> Result<Vec<LostRing>, AttachError> {
        let memory = GuestMemory::map(regions)?;
        let memory = self.receive(memory, |_| true)?;
        Ok(self.install(&memory))
    }

    fn add_region(
        &mut self,
        layout: RegionLayout,
        file: OwnedFd,
    ) -> Result<Vec<LostRing>, AttachError> {
        let memory = match &self.memory {
            Some(memory) => memory.with_region(layout, file)?,
            None => GuestMemory::map(vec![(layout, file)])?,
        };
        let memory = self.receive(memory, |added| *added == layout)?;
        Ok(self.install(&memory))
    }

    fn remove_region(&mut self, layout: RegionLayout) -> Result<Vec<LostRing>, AttachError> {
        let memory = self.memory.as_ref().ok_or(AttachError::NoMemory)?;
        let memory = memory.without_region(layout)?;
        Ok(self.install(&memory))
    }

    fn set_log(&mut self, layout: LogLayout, file: OwnedFd) -> Result<(), AttachError> {
        let before = self.log_counts();
        let counts = before.clone().unwrap_or_default();
        let log = DirtyLog::map(layout, file, counts)?;
        if let Some(counts) = before {
            counts.begin_round();
        }
        self.install_log(Some(log));
        Ok(())
    }

    fn drop_log(&mut self) {
        if self.log.is_some() {
            self.install_log(None);
        }
    }

    fn log_counts(&self) -> Option<Arc<LogCounts>> {
        self.log.as_ref().map(|log| Arc::clone(log.counts()))
    }

    fn memory_lost(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.is_lost())
    }

    fn set_kick(&mut self, queue: QueueIndex, kick: Option<OwnedFd>) -> Result<(), AttachError> {
        let kick = kick
            .map(|descriptor| EventSource::new(descriptor).map(Arc::new))
            .transpose()
            .map_err(AttachError::Eventfd)?;
        self.events(queue).kick.clone_from(&kick);
        if self.port.is_running(queue) {
            self.port.set_kick(queue, kick);
        }
        Ok(())
    }

    fn set_call(&mut self, queue: QueueIndex, call: Option<OwnedFd>) -> Result<(), AttachError> {
        let call = sink(call)?;
        self.events(queue).call.clone_from(&call);
        if self.port.is_running(queue) {
            self.port.set_call(queue, call);
        }
        Ok(())
    }

    fn set_error(&mut self, queue: QueueIndex, error: Option<OwnedFd>) -> Result<(), AttachError> {
        let error = sink(error)?;
        self.events(queue).error.clone_from(&error);
        if self.port.is_running(queue) {
            self.port.set_error(queue, error);
        }
        Ok(())
    }

    fn start_ring(&mut self, queue: QueueIndex, start: &RingStart) -> Result<(), AttachError> {
        let memory = self.memory.clone().ok_or(AttachError::NoMemory)?;
        // The place may be mapped once only: whoever has the ring lets go of it first.
        self.port.stop_ring(queue);
        let record = self
            .records
            .as_ref()
            .filter(|_| is_packed(start.features))
            .map(|records| records.ring(queue.0, start.size))
            .transpose()
            .map_err(AttachError::Record)?;
        let events = self.events(queue);
        let config = RingConfig {
            size: start.size,
            addresses: start.addresses,
            base: start.base,
            origin: start.origin,
            base_is_final: start.base_is_final,
            record,
            features: start.features,
            kick: events.kick.clone(),
            call: events.call.clone(),
            error: events.error.clone(),
        };
        self.port.start_ring(queue, &memory, config)?;
        if self.is_translating || self.receives {
            self.port.ask_ahead(queue);
        }
        Ok(())
    }

    fn stop_ring(&mut self, queue: QueueIndex) -> Option<u32> {
        self.iotlb.forget_refusals();
        self.port.stop_ring(queue)
    }

    fn is_running(&self, queue: QueueIndex) -> bool {
        self.port.is_running(queue)
    }

    fn enable_ring(&mut self, queue: QueueIndex) {
        self.port.enable_ring(queue);
    }

    fn disable_ring(&mut self, queue: QueueIndex) {
        self.port.disable_ring(queue);
    }

    fn set_features(&mut self, features: u64) -> Vec<LostRing> {
        lost_rings(self.port.set_features(features))
    }

    fn translate(&mut self, on: bool) -> Vec<LostRing> {
        self.is_translating = on;
        match self.memory.clone() {
            Some(memory) => self.install(&memory),
            None => Vec::new(),
        }
    }

    fn set_backend_channel(&mut self, socket: BackendSocket) -> Result<(), AttachError> {
        let channel = BackendChannel::new(socket);
        // The one before is let go of first: what watches it would not notice, as it is closed elsewhere.
        self.drop_channel();
        watch(&self.ready, &channel, true).map_err(AttachError::Channel)?;
        self.channel = Some(channel);
        // Whoever was asked before will not answer any more.
        self.iotlb.ask_anew();
        self.port.look_again();
        Ok(())
    }

    fn map_io(&mut self, translation: Translation) -> Result<Vec<QueueIndex>, AttachError> {
        let Translation {
            user_addr,
            size_bytes,
            ..
        } = translation;
        let shared = self.memory.as_ref();
        if !shared.is_some_and(|memory| memory.shares(user_addr, size_bytes)) {
            return Err(AttachError::NotShared {
                user_addr,
                size_bytes,
            });
        }
        let some_went = self.iotlb.insert(translation);
        Ok(self.translations_changed(some_went))
    }

    fn unmap_io(&mut self, first: u64, last: u64) -> Vec<QueueIndex> {
        if self.iotlb.remove(first, last) {
            self.translations_changed(true)
        } else {
            Vec::new()
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.as_fd())
    }

    fn prepare_to_receive(&mut self) -> Result<(), PagerEnd> {
        // One that an earlier announcement left is let go of.
        self.receiving = None;
        let receiving = Receiving::start()?;
        let event = epoll::EventData::new_u64(MISSING);
        let watched = epoll::add(&self.ready, receiving.bell(), event, epoll::EventFlags::IN)
            .map_err(io::Error::from);
        let pager = receiving.watched();
        let watched = watched.and_then(|()| match pager {
            Some(pager) => rewatch(&self.ready, pager, (PAGER, true)),
            None => Ok(()),
        });
        watched.map_err(PagerEnd::Start)?;
        self.receiving = Some(receiving);
        Ok(())
    }

    fn receive_from_now_on(&mut self) {
        self.receives = self.receiving.is_some();
    }

    fn fault_address(&self, region: &RegionLayout) -> Option<u64> {
        let receiving = self.receiving.as_ref()?;
        receiving.first_byte(region.guest_phys_addr)
    }

    fn regions_known(&mut self) {
        if let Some(receiving) = &mut self.receiving {
            receiving.allow_fetching();
        }
        let _ = self.talk_to_pager();
    }

    fn all_received(&mut self) -> Vec<LostRing> {
        self.receives = false;
        if self.receiving.take().is_none() {
            return Vec::new();
        }
        let Some(memory) = self.memory.clone() else {
            return Vec::new();
        };
        let lost = self.install(&memory.received());
        self.port.look_again();
        lost
    }

    fn exchange(&mut self) -> Exchanged {
        if let Some(transfers) = &self.transfers {
            transfers.silence();
        }
        let heard = self.talk();
        let (arrived, late) = self.talk_to_pager();
        if heard || arrived {
            self.port.look_again();
        }
        Exchanged {
            rings_may_start: heard || arrived,
            late,
        }
    }

    fn begin_transfer(
        &mut self,
        direction: Direction,
        pipe: BackendSocket,
    ) -> Result<(), TransferError> {
        let transfers = self.transfers.as_mut();
        let transfers = transfers.ok_or(TransferError::NotOffered)?;
        transfers.begin(direction, pipe)
    }

    fn transferred(&mut self) -> Option<Transferred> {
        match &mut self.transfers {
            Some(transfers) => transfers.outcome(),
            None => Some(Err(TransferError::NotOffered)),
        }
    }

    fn inject(&mut self, frame: &[u8]) {
        self.port.inject(frame);
    }

    fn forget_session(&mut self) {
        self.events.clear();
        self.memory = None;
        self.log = None;
        self.drop_channel();
        self.is_translating = false;
        self.iotlb.clear();
        self.receiving = None;
        self.receives = false;
        if let Some(transfers) = &mut self.transfers {
            transfers.forget();
        }
    }

    fn hand_over(&self, descriptors: &mut Outgoing) -> io::Result<HandedAttachment> {
        if self
            .transfers
            .as_ref()
            .is_some_and(StateTransfers::is_under_way)
        {
            let reason = "a port's state is on its way to or from its front-end";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, reason));
        }
        let memory = self.memory.as_ref().map(|memory| memory.share());
        let memory = memory.transpose()?.unwrap_or_default().into_iter();
        let memory = memory.map(|(layout, file)| (layout, descriptors.add(file)));
        let memory = memory.collect();
        let mut add = |shared: Option<io::Result<OwnedFd>>| {
            let descriptor = shared.transpose()?;
            Ok::<_, io::Error>(descriptor.map(|descriptor| descriptors.add(descriptor)))
        };
        let log = add(self.log.as_ref().map(|log| log.share()))?;
        let records = add(self.records.as_ref().map(RecordFile::share))?;
        let events = self.events.iter().map(|(queue, events)| {
            Ok(HandedEvents {
                queue: queue.0,
                kick: add(events.kick.as_ref().map(|kick| kick.share()))?,
                call: add(events.call.as_ref().map(|call| call.share()))?,
                error: add(events.error.as_ref().map(|error| error.share()))?,
            })
        });
        let events = events.collect::<io::Result<_>>()?;
        let channel = self.channel.as_ref();
        let channel = channel.map(|channel| channel.hand_over(descriptors));
        Ok(HandedAttachment {
            memory,
            log,
            events,
            records,
            translations: self.is_translating.then(|| self.iotlb.all()),
            channel: channel.transpose()?.flatten(),
        })
    }

    fn discard_positions(&mut self) {
        if let Some(records) = &self.records {
            records.remove();
        }
    }
}
