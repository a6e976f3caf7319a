//! The vhost-user-net device's state machine: a request in, an answer out, effects through an [`Attachment`].
//!
//! `port` calls it on the device thread with what `session` read; tests and the fuzzer call it without a socket. The whole state is
//! a plain value. Kept true: a refused request changes nothing; a ring runs only with a kick, a size, addresses, memory and
//! features; rings past the port's queue pairs are never touched; features never change.
//!
//! What QEMU and Cloud Hypervisor do and depend on:
//! * SET_VRING_ENABLE comes before SET_FEATURES, and stays. SET_FEATURES comes once per queue pair, while rings are live: it changes
//!   neither indices nor enablement.
//! * QEMU calls `abort()` when a SET_FEATURES with LOG_ALL is refused, so it is not, once it was offered.
//! * GET_QUEUE_NUM is pairs to QEMU and rings to Cloud Hypervisor: see [`FrontEnd`].
//! * Memory, descriptors and protocol features outlive RESET_DEVICE and GET_VRING_BASE: QEMU does not send them again.
//! * `iommu`: rings and buffers may be at addresses that only the front-end knows the meaning of.
//! * `postcopy`: memory may arrive while the VM runs already.
//! * `migration`: with LOG_ALL acked and no log mapped, rings are held back.

mod iommu;
mod migration;
mod postcopy;
mod transfer;

pub use postcopy::PostcopyPhase;

use super::attach::{AttachError, Attachment, LostRing, RingStart};
use super::features::{
    MAX_MEMORY_SLOTS, Offer, PROTOCOL_FEATURES, PackedOffer, RING_PACKED, protocol_names,
    virtio_names,
};
use super::message::{Header, Reply, Request, RequestCode, VringAddresses, logs_used_ring};
use super::rarp::{self, RARP_FRAME_BYTES};
use super::ring_state::{RingPhase, RingState};
use super::state_transfer::TransferError;
use crate::datapath::QueueIndex;
use crate::pager::client::PagerEnd;
use crate::ring::{LogLayout, RegionLayout, RingAddresses, is_packed};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

/// The largest ring (VIRTIO 1.3 §2.7, §2.8.10.1: Queue Size is at most 32768).
const MAX_RING_SIZE: u32 = 32_768;
/// Where every packed ring begins: index 0 and a wrap counter of 1, twice (VIRTIO 1.3 §2.8.1).
const PACKED_START: u32 = 0x8000_8000;
/// VIRTIO 1.3 §5.1.4.1: the device must not offer an MTU below 68.
const MIN_MTU: u16 = 68;

/// Who is on the other side, as far as its protocol features show. QEMU acks RARP and NET_MTU whenever they are offered, Cloud
/// Hypervisor never does. The difference matters to GET_QUEUE_NUM, which QEMU compares with its queue pairs and Cloud
/// Hypervisor (with most users of rust-vmm's front-end) with its rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontEnd {
    /// Has not negotiated protocol features.
    #[default]
    Unknown,
    /// Counts queue pairs.
    Qemu,
    /// Counts rings, adds memory slot by slot.
    CloudHypervisor,
    /// Counts rings.
    Other,
}

impl FrontEnd {
    fn guess(protocol_features: u64) -> Self {
        let features = VhostUserProtocolFeatures::from_bits_retain(protocol_features);
        if features.intersects(VhostUserProtocolFeatures::RARP | VhostUserProtocolFeatures::MTU) {
            Self::Qemu
        } else if features.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            Self::CloudHypervisor
        } else {
            Self::Other
        }
    }
}

/// Why a request was not carried out. It changed nothing, except that [`Refusal::RingsLost`] tells what a change cost.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation.
pub enum Refusal {
    #[error("features {} were not offered", .0.join(", "))]
    Features(Vec<String>),
    #[error("protocol features {} were not offered", .0.join(", "))]
    ProtocolFeatures(Vec<String>),
    #[error(
        "ring {index} does not exist: the port has {rings} rings; give the port more queue_pairs or the VM fewer queues"
    )]
    RingBeyondPort { index: u32, rings: usize },
    #[error(
        "ring {queue} of {size} descriptors: a ring has a power of two from 2 to 32768, a packed ring any number up to that"
    )]
    RingSize { queue: u16, size: u32 },
    #[error("ring {queue} is running: stop it with GET_VRING_BASE before its size or base changes")]
    RingRuns { queue: u16 },
    #[error("ring {queue} has base {base}, which is past 16 bits; only a packed ring's is longer")]
    RingBase { queue: u16, base: u32 },
    #[error(
        "ring {queue} has addresses that are not aligned to 16, 2 and 4 bytes, or unknown flags"
    )]
    RingAddresses { queue: u16 },
    #[error("ring {queue}: SET_VRING_ENABLE takes 0 or 1, not {enable}")]
    Enable { queue: u16, enable: u32 },
    #[error("ring {queue}: {error}")]
    Ring { queue: u16, error: AttachError },
    #[error("{0}")]
    Memory(AttachError),
    #[error("a memory table without regions")]
    EmptyMemoryTable,
    #[error("more than {MAX_MEMORY_SLOTS} memory regions")]
    MemorySlots,
    #[error("no such memory region at guest address {guest_phys_addr:#x}")]
    NoSuchRegion { guest_phys_addr: u64 },
    #[error("running rings had to be stopped: {}", .0.iter().map(|ring| format!("ring {}: {}", ring.queue.0, ring.reason)).collect::<Vec<_>>().join("; "))]
    RingsLost(Vec<LostRing>),
    #[error("MTU {mtu} is outside 68..={limit}")]
    Mtu { mtu: u64, limit: u16 },
    #[error("SEND_RARP for an address that no guest can have")]
    RarpAddress,
    #[error("a migration log, but LOG_SHMFD is not acked")]
    NoLog,
    #[error("a migration log without its file")]
    LogWithoutFile,
    #[error("{0}; rings wait until there is a log, or LOG_ALL is taken back")]
    Log(AttachError),
    #[error("the front-end's channel for requests of the back-end cannot be used: {0}")]
    BackendChannel(AttachError),
    #[error("a postcopy migration that is announced twice, or after memory was shared")]
    PostcopyTooLate,
    #[error("a postcopy phase that was not announced")]
    PostcopyOutOfTurn,
    #[error("memory cannot be received page by page: {0}")]
    Postcopy(PagerEnd),
    #[error("an IOTLB message that cannot be, or without ACCESS_PLATFORM and BACKEND_REQ")]
    Iotlb,
    #[error("no such transfer of the port's state: direction {direction}, phase {phase}")]
    StateTransfer { direction: u32, phase: u32 },
    #[error("the port's state goes while its rings are stopped, and some run")]
    StateOfRunningRings,
    #[error("the port's state in the switch: {0}")]
    State(TransferError),
    #[error("this request was not offered")]
    Unsupported,
}

/// What came of a request.
#[derive(Debug)]
pub enum Outcome {
    /// The request has a reply of its own.
    Reply(Reply),
    /// Done; answered only if the front-end asks for it.
    Done,
    /// Not done, and the reply cannot say so.
    Refused(Reply, Refusal),
    /// Under way: what came of it is what [`Attachment::exchange`] hands out later. Nothing else is asked until then.
    Later,
}

/// What came of a request, or why nothing did.
pub type Handled = Result<Outcome, Refusal>;

/// What [`DeviceState::handle`] answers.
#[derive(Debug)]
pub struct Answer {
    /// To be sent, if anything.
    pub reply: Option<Reply>,
    /// Why the request was refused, whether or not the front-end asked.
    pub refusal: Option<Refusal>,
    /// What is not answered yet; [`DeviceState::answer`] does, before any other request is handled.
    pub waits: Option<Asked>,
}

/// A request as far as its answer depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which.
    pub request: RequestCode,
    /// It is answered even if it has no reply of its own.
    pub wants_ack: bool,
}

/// What a front-end negotiated; starts afresh with each connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionState {
    /// SET_OWNER came.
    pub owned: bool,
    /// SET_FEATURES, once it came.
    pub features: Option<u64>,
    /// SET_PROTOCOL_FEATURES.
    pub protocol_features: u64,
    /// Who it seems to be.
    pub front_end: FrontEnd,
    /// All rings of the port, by index.
    pub rings: Vec<RingState>,
    /// The memory map.
    pub memory: Vec<RegionLayout>,
    /// SET_LOG_BASE, while the log is mapped.
    pub log: Option<LogLayout>,
    /// How far a postcopy migration to here came.
    pub postcopy: PostcopyPhase,
    /// NET_SET_MTU.
    pub mtu: Option<u16>,
    /// SEND_RARP that waits for a ring to run.
    pub pending_rarp: Option<[u8; 6]>,
    /// The highest ring index the front-end used that the port does not have.
    pub ring_beyond_port: Option<u32>,
    /// The last request refused, in words.
    pub last_refusal: Option<String>,
    /// What was carried last of the port's state in the switch, in words.
    pub transferred: Option<String>,
    /// Asked whether it was carried well, and the answer waits.
    #[serde(skip)]
    pub awaits_transfer: bool,
}

/// Counted over the port's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceCounters {
    /// Requests handled.
    pub messages: u64,
    /// Requests refused, whether or not the front-end asked for a reply.
    pub refused: u64,
    /// Refusals that were sent.
    pub nacks: u64,
    /// Requests this port does not know or did not offer.
    pub unsupported: u64,
    /// SEND_RARPs carried out or kept.
    pub rarps: u64,
}

/// A port's device: what it offers for good, what the present front-end negotiated, and counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    queue_pairs: u16,
    mtu_limit: Option<u16>,
    packed: PackedOffer,
    offer: Offer,
    session: SessionState,
    counters: DeviceCounters,
}

impl DeviceState {
    /// A device that no front-end has seen. `mtu_limit`: the largest MTU a front-end may set.
    pub fn new(queue_pairs: u16, mtu_limit: Option<u16>, packed: PackedOffer) -> Self {
        Self {
            queue_pairs,
            mtu_limit,
            offer: Offer::new(queue_pairs, &packed),
            packed,
            session: fresh_session(queue_pairs),
            counters: DeviceCounters::default(),
        }
    }

    /// Offers what the port offered in an earlier life; packed rings only where their positions can be kept in this one too.
    #[must_use]
    pub fn with_offer(mut self, earlier: Offer) -> Self {
        let packed = self.offer.virtio & RING_PACKED;
        self.offer = Offer {
            virtio: earlier.virtio & (!RING_PACKED | packed),
            ..earlier
        };
        self
    }

    /// Offers to carry the port's state in the switch.
    #[must_use]
    pub fn with_device_state(self) -> Self {
        let offer = self.offer.with_device_state();
        Self { offer, ..self }
    }

    /// Frozen for the port's life.
    pub fn offer(&self) -> Offer {
        self.offer
    }

    /// Whether packed rings are part of that, and if not, why.
    pub fn packed(&self) -> &PackedOffer {
        &self.packed
    }

    /// What the present front-end negotiated.
    pub fn session(&self) -> &SessionState {
        &self.session
    }

    /// Counted over the port's life.
    pub fn counters(&self) -> DeviceCounters {
        self.counters
    }

    /// Whether a worker has any ring.
    pub fn any_ring_runs(&self) -> bool {
        self.session
            .rings
            .iter()
            .any(|ring| ring.phase == RingPhase::Running)
    }

    /// Carries a request out and answers it. A request with a reply of its own gets that and nothing else; any other gets 0 or 1
    /// if it asks for a reply and REPLY_ACK is acked (vhost-user: VHOST_USER_PROTOCOL_F_REPLY_ACK).
    pub fn handle(
        &mut self,
        header: &Header,
        request: Request,
        attachment: &mut dyn Attachment,
    ) -> Answer {
        self.counters.messages += 1;
        let handled = self.dispatch(request, attachment);
        // Asked after the request: SET_PROTOCOL_FEATURES that acks REPLY_ACK may itself ask for a reply.
        let wants_ack = header.need_reply && self.acked(VhostUserProtocolFeatures::REPLY_ACK);
        let request = header.request;
        self.answer(Asked { request, wants_ack }, handled)
    }

    /// Answers what was asked, at once or later.
    pub fn answer(&mut self, asked: Asked, handled: Handled) -> Answer {
        let wants_ack = asked.wants_ack;
        let (reply, refusal) = match handled {
            Ok(Outcome::Reply(reply)) => (Some(reply), None),
            Ok(Outcome::Done) => (wants_ack.then_some(Reply::Value(0)), None),
            Ok(Outcome::Refused(reply, refusal)) => (Some(reply), Some(refusal)),
            Ok(Outcome::Later) => {
                return Answer {
                    reply: None,
                    refusal: None,
                    waits: Some(asked),
                };
            }
            Err(refusal) => {
                self.counters.nacks += u64::from(wants_ack);
                (wants_ack.then_some(Reply::Value(1)), Some(refusal))
            }
        };
        if let Some(refusal) = &refusal {
            self.note_refusal(asked.request, refusal);
        }
        Answer {
            reply,
            refusal,
            waits: None,
        }
    }

    /// The front-end is gone or sent away: every ring is taken back, descriptors are closed, memory is unmapped. Features stay.
    pub fn end_session(&mut self, attachment: &mut dyn Attachment) {
        for queue in self.queues() {
            self.stop(queue, attachment);
            attachment.disable_ring(queue);
        }
        attachment.forget_session();
        self.session = fresh_session(self.queue_pairs);
    }

    /// A worker gave up a ring. Ignored when the ring runs again: the news is older than its restart.
    pub fn ring_faulted(&mut self, queue: QueueIndex, reason: String, attachment: &dyn Attachment) {
        if attachment.is_running(queue) {
            return;
        }
        if let Some(ring) = self
            .ring_mut(queue)
            .filter(|ring| ring.phase == RingPhase::Running)
        {
            ring.phase = RingPhase::Faulted;
            ring.fault = Some(reason);
        }
    }

    /// Whether a ring that should run was taken from its worker without a fault of its own: its memory is gone.
    pub fn has_lost_rings(&self, attachment: &dyn Attachment) -> bool {
        let rings = self.queues().zip(&self.session.rings);
        let mut running = rings.filter(|(_, ring)| ring.phase == RingPhase::Running);
        running.any(|(queue, _)| !attachment.is_running(queue))
    }

    fn dispatch(&mut self, request: Request, attachment: &mut dyn Attachment) -> Handled {
        match request {
            Request::GetFeatures => value(self.offer.virtio),
            Request::SetFeatures(features) => self.set_features(features, attachment),
            Request::SetOwner => {
                self.session.owned = true;
                Ok(Outcome::Done)
            }
            Request::ResetOwner => Ok(self.reset_owner(attachment)),
            Request::GetProtocolFeatures => value(self.offer.protocol),
            Request::SetProtocolFeatures(features) => {
                self.set_protocol_features(features, attachment)
            }
            Request::GetQueueNum => value(self.queue_num()),
            Request::SetMemTable(regions) => self.set_memory(regions, attachment),
            Request::GetMaxMemSlots => value(self.offer.memory_slots),
            Request::AddMemReg(layout, file) => self.add_region(layout, file, attachment),
            Request::RemMemReg(layout) => self.remove_region(layout, attachment),
            Request::SetVringNum { index, size } => self.set_ring_size(index, size, attachment),
            Request::SetVringAddr(addresses) => self.set_ring_addresses(&addresses, attachment),
            Request::SetVringBase { index, base } => self.set_ring_base(index, base),
            Request::GetVringBase { index } => Ok(self.get_ring_base(index, attachment)),
            Request::SetVringKick(index, kick) => self.kick(index, kick, attachment),
            Request::SetVringCall(index, call) => {
                let queue = self.queue(index)?;
                attachment
                    .set_call(queue, call)
                    .map_err(|error| ring_refusal(queue, error))?;
                Ok(Outcome::Done)
            }
            Request::SetVringErr(index, event) => {
                let queue = self.queue(index)?;
                attachment
                    .set_error(queue, event)
                    .map_err(|error| ring_refusal(queue, error))?;
                Ok(Outcome::Done)
            }
            Request::SetVringEnable { index, enable } => self.enable(index, enable, attachment),
            Request::SendRarp(address) => self.send_rarp(address, attachment),
            Request::NetSetMtu(mtu) => self.set_mtu(mtu),
            Request::ResetDevice => Ok(self.reset_device(attachment)),
            Request::SetLogBase(layout, file) => self.set_log(layout, file, attachment),
            Request::SetBackendReqFd(socket) => self.set_backend_channel(socket, attachment),
            Request::Iotlb(change) => Ok(self.change_iotlb(change, attachment)),
            Request::PostcopyAdvise => self.postcopy_advise(attachment),
            Request::PostcopyListen => self.postcopy_listen(attachment),
            Request::PostcopyEnd => self.postcopy_end(attachment),
            Request::PostcopyAck => self.postcopy_ack(attachment),
            Request::SetDeviceStateFd(asked, pipe) => self.begin_transfer(asked, pipe, attachment),
            Request::CheckDeviceState => self.check_transfer(attachment),
            Request::Unsupported => Err(Refusal::Unsupported),
        }
    }

    // Features.

    fn set_features(&mut self, features: u64, attachment: &mut dyn Attachment) -> Handled {
        refuse_bits(
            features & !self.offer.virtio,
            virtio_names,
            Refusal::Features,
        )?;
        let (logged, translating) = (self.wants_log(), self.is_translating());
        self.session.features = Some(features);
        self.translate_after(translating, attachment);
        self.forget_unwatched_translations(attachment);
        self.log_after_features(logged, attachment);
        let lost = if self.any_ring_runs() {
            attachment.set_features(features)
        } else {
            Vec::new()
        };
        self.settle(lost, attachment)
    }

    fn set_protocol_features(&mut self, features: u64, attachment: &mut dyn Attachment) -> Handled {
        refuse_bits(
            features & !self.offer.protocol,
            protocol_names,
            Refusal::ProtocolFeatures,
        )?;
        let translating = self.is_translating();
        self.session.protocol_features = features;
        self.translate_after(translating, attachment);
        self.session.front_end = FrontEnd::guess(features);
        Ok(Outcome::Done)
    }

    fn acked(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.session.protocol_features & feature.bits() != 0
    }

    fn queue_num(&self) -> u64 {
        let pairs = u64::from(self.queue_pairs);
        match self.session.front_end {
            FrontEnd::Unknown | FrontEnd::Qemu => pairs,
            FrontEnd::CloudHypervisor | FrontEnd::Other => 2 * pairs,
        }
    }

    /// Deprecated; back-ends ignore it or disable all rings (vhost-user: VHOST_USER_RESET_OWNER). Without SET_VRING_ENABLE nobody
    /// could enable them again.
    fn reset_owner(&mut self, attachment: &mut dyn Attachment) -> Outcome {
        self.session.owned = false;
        if !self.rings_start_enabled() {
            for queue in self.queues() {
                self.set_enabled(queue, false, attachment);
            }
        }
        Outcome::Done
    }

    /// Rings stop and are disabled; memory, descriptors and negotiated features stay.
    fn reset_device(&mut self, attachment: &mut dyn Attachment) -> Outcome {
        for queue in self.queues() {
            self.stop(queue, attachment);
            self.set_enabled(queue, false, attachment);
            if let Some(ring) = self.ring_mut(queue) {
                ring.base = None;
                ring.origin = None;
                ring.base_is_final = true;
            }
        }
        self.forget_unwatched_translations(attachment);
        Outcome::Done
    }

    // Memory.

    fn set_memory(
        &mut self,
        regions: Vec<(RegionLayout, OwnedFd)>,
        attachment: &mut dyn Attachment,
    ) -> Handled {
        if regions.is_empty() {
            return Err(Refusal::EmptyMemoryTable);
        }
        self.postcopy_stays_away(attachment);
        let layouts: Vec<_> = regions.iter().map(|(layout, _)| *layout).collect();
        let shared = attachment.set_memory(regions).map_err(Refusal::Memory);
        let shared = shared.and_then(|lost| {
            self.session.memory.clone_from(&layouts);
            self.settle(lost, attachment)
        });
        self.answer_with_regions((&layouts, true), shared, attachment)
    }

    fn add_region(
        &mut self,
        layout: RegionLayout,
        file: OwnedFd,
        attachment: &mut dyn Attachment,
    ) -> Handled {
        self.postcopy_stays_away(attachment);
        let shared = if self.session.memory.len() < MAX_MEMORY_SLOTS {
            let added = attachment.add_region(layout, file);
            added.map_err(Refusal::Memory)
        } else {
            Err(Refusal::MemorySlots)
        };
        let shared = shared.and_then(|lost| {
            self.session.memory.push(layout);
            self.settle(lost, attachment)
        });
        self.answer_with_regions((&[layout], false), shared, attachment)
    }

    /// The region is known by its addresses and size; front-ends do not repeat the offset in its file.
    fn remove_region(&mut self, asked: RegionLayout, attachment: &mut dyn Attachment) -> Handled {
        let key =
            |layout: &RegionLayout| (layout.guest_phys_addr, layout.size_bytes, layout.user_addr);
        let found = self
            .session
            .memory
            .iter()
            .position(|layout| key(layout) == key(&asked));
        let found = found.and_then(|at| self.session.memory.get(at).map(|layout| (at, *layout)));
        let Some((at, layout)) = found else {
            let guest_phys_addr = asked.guest_phys_addr;
            return Err(Refusal::NoSuchRegion { guest_phys_addr });
        };
        let lost = attachment.remove_region(layout).map_err(Refusal::Memory)?;
        self.session.memory.remove(at);
        self.settle(lost, attachment)
    }

    /// After a change that all rings feel: notes those that it cost, starts those that waited for it.
    fn settle(&mut self, lost: Vec<LostRing>, attachment: &mut dyn Attachment) -> Handled {
        for LostRing { queue, reason } in &lost {
            if let Some(ring) = self.ring_mut(*queue) {
                ring.phase = RingPhase::Faulted;
                ring.fault = Some(reason.clone());
            }
        }
        self.start_waiting_rings(attachment);
        if lost.is_empty() {
            Ok(Outcome::Done)
        } else {
            Err(Refusal::RingsLost(lost))
        }
    }

    // Rings.

    fn set_ring_size(&mut self, index: u32, size: u32, attachment: &mut dyn Attachment) -> Handled {
        let queue = self.queue(index)?;
        let ring_size = u16::try_from(size).ok();
        let valid = if self.rings_are_packed() {
            (1..=MAX_RING_SIZE).contains(&size)
        } else {
            size.is_power_of_two() && (2..=MAX_RING_SIZE).contains(&size)
        };
        let Some(ring_size) = ring_size.filter(|_| valid) else {
            return Err(Refusal::RingSize {
                queue: queue.0,
                size,
            });
        };
        if let Some(ring) = self.ring_mut(queue) {
            if ring.phase == RingPhase::Running && ring.size != Some(ring_size) {
                return Err(Refusal::RingRuns { queue: queue.0 });
            }
            ring.size = Some(ring_size);
        }
        self.try_start(queue, attachment)
    }

    fn set_ring_addresses(
        &mut self,
        asked: &VringAddresses,
        attachment: &mut dyn Attachment,
    ) -> Handled {
        let queue = self.queue(asked.index)?;
        let logged = logs_used_ring(asked.flags);
        // VIRTIO 1.3 §2.7: alignment of the descriptor table, the available ring and the used ring.
        let aligned = asked.descriptor_table.is_multiple_of(16)
            && asked.available_ring.is_multiple_of(2)
            && asked.used_ring.is_multiple_of(4);
        let Some(logged) = logged.filter(|_| aligned) else {
            return Err(Refusal::RingAddresses { queue: queue.0 });
        };
        // A driver that leaves a ring unused leaves its descriptor table at 0.
        let addresses = (asked.descriptor_table != 0).then_some(RingAddresses {
            descriptor_table: asked.descriptor_table,
            available_ring: asked.available_ring,
            used_ring: asked.used_ring,
            used_log: logged.then_some(asked.log),
        });
        let Some(ring) = self.ring_mut(queue) else {
            return Ok(Outcome::Done);
        };
        // Whether the used ring is logged does not move the ring.
        let place = |addresses: RingAddresses| RingAddresses {
            used_log: None,
            ..addresses
        };
        let moved = ring.addresses.map(place) != addresses.map(place);
        ring.addresses = addresses;
        if moved && ring.phase == RingPhase::Running {
            self.suspend(queue, attachment);
        }
        self.try_start(queue, attachment)
    }

    fn set_ring_base(&mut self, index: u32, base: u32) -> Handled {
        let queue = self.queue(index)?;
        // Bits 16..31 belong to packed rings (vhost-user: Vring state description), which are not offered.
        if base > u16::MAX.into() && !self.rings_are_packed() {
            return Err(Refusal::RingBase {
                queue: queue.0,
                base,
            });
        }
        if let Some(ring) = self.ring_mut(queue) {
            if ring.phase == RingPhase::Running {
                return Err(Refusal::RingRuns { queue: queue.0 });
            }
            ring.base = Some(base);
            ring.origin = None;
        }
        Ok(Outcome::Done)
    }

    /// Stops the ring and answers with its final index; a ring that never ran answers what SET_VRING_BASE said.
    fn get_ring_base(&mut self, index: u32, attachment: &mut dyn Attachment) -> Outcome {
        let base = match self.queue(index) {
            Ok(queue) => {
                self.stop(queue, attachment);
                if let Some(ring) = self.ring_mut(queue) {
                    ring.base_is_final = true;
                    ring.origin = None;
                }
                self.log_after_stop(attachment);
                self.forget_unwatched_translations(attachment);
                self.base_of(queue)
            }
            // The request has only its own reply, so a ring that does not exist is told as one that never moved.
            Err(_) => self.first_base(),
        };
        Outcome::Reply(Reply::Vring { index, base })
    }

    fn kick(
        &mut self,
        index: u32,
        kick: Option<OwnedFd>,
        attachment: &mut dyn Attachment,
    ) -> Handled {
        let queue = self.queue(index)?;
        attachment
            .set_kick(queue, kick)
            .map_err(|error| ring_refusal(queue, error))?;
        if let Some(ring) = self
            .ring_mut(queue)
            .filter(|ring| ring.phase == RingPhase::Stopped)
        {
            ring.phase = RingPhase::Waiting;
        }
        self.try_start(queue, attachment)
    }

    fn enable(&mut self, index: u32, enable: u32, attachment: &mut dyn Attachment) -> Handled {
        let queue = self.queue(index)?;
        match enable {
            0 | 1 => self.set_enabled(queue, enable == 1, attachment),
            _ => {
                return Err(Refusal::Enable {
                    queue: queue.0,
                    enable,
                });
            }
        }
        Ok(Outcome::Done)
    }

    fn set_enabled(&mut self, queue: QueueIndex, enabled: bool, attachment: &mut dyn Attachment) {
        if let Some(ring) = self.ring_mut(queue) {
            ring.enabled = enabled;
        }
        if enabled {
            attachment.enable_ring(queue);
        } else {
            attachment.disable_ring(queue);
        }
    }

    /// vhost-user: Ring states. Without VHOST_USER_F_PROTOCOL_FEATURES there is no SET_VRING_ENABLE and rings start enabled.
    fn rings_start_enabled(&self) -> bool {
        self.session
            .features
            .is_some_and(|features| features & PROTOCOL_FEATURES == 0)
    }

    fn rings_are_packed(&self) -> bool {
        self.session.features.is_some_and(is_packed)
    }

    /// Where a ring begins that nobody has said anything about.
    fn first_base(&self) -> u32 {
        if self.rings_are_packed() {
            PACKED_START
        } else {
            0
        }
    }

    fn base_of(&self, queue: QueueIndex) -> u32 {
        let base = self.ring(queue).and_then(|ring| ring.base);
        base.unwrap_or_else(|| self.first_base())
    }

    /// Hands a waiting ring to a worker if every piece is there. A ring that does not start keeps waiting for a better piece.
    fn try_start(&mut self, queue: QueueIndex, attachment: &mut dyn Attachment) -> Handled {
        let (Some(features), false) = (self.session.features, self.session.memory.is_empty())
        else {
            return Ok(Outcome::Done);
        };
        if self.is_held() {
            return Ok(Outcome::Done);
        }
        let base = self.base_of(queue);
        let Some(ring) = self
            .ring_mut(queue)
            .filter(|ring| ring.phase == RingPhase::Waiting)
        else {
            return Ok(Outcome::Done);
        };
        let (Some(size), Some(addresses)) = (ring.size, ring.addresses) else {
            return Ok(Outcome::Done);
        };
        let start = RingStart {
            size,
            addresses,
            base,
            origin: ring.origin.unwrap_or(base),
            base_is_final: ring.base_is_final,
            features,
        };
        if let Err(error) = attachment.start_ring(queue, &start) {
            ring.fault = Some(error.to_string());
            if error.is_pending() {
                return Ok(Outcome::Done);
            }
            if error.is_refused() {
                ring.phase = RingPhase::Faulted;
            }
            return Err(ring_refusal(queue, error));
        }
        ring.phase = RingPhase::Running;
        ring.base_is_final = false;
        ring.fault = None;
        if self.rings_start_enabled() {
            self.set_enabled(queue, true, attachment);
        }
        if let Some(address) = self.session.pending_rarp.take() {
            attachment.inject(&rarp::announcement(address));
        }
        Ok(Outcome::Done)
    }

    /// After a piece that all rings share. A ring that still does not start says so in its own state.
    fn start_waiting_rings(&mut self, attachment: &mut dyn Attachment) {
        self.resume_rings(|_| true, attachment);
    }

    /// Takes the ring back. It starts again with a new kick.
    fn stop(&mut self, queue: QueueIndex, attachment: &mut dyn Attachment) {
        let Some(ring) = self.ring_mut(queue) else {
            return;
        };
        if ring.was_handed_over() {
            ring.base = attachment.stop_ring(queue).or(ring.base);
        }
        ring.phase = RingPhase::Stopped;
        ring.fault = None;
    }

    /// Takes running rings back that are `wanted`; they wait to be started where they are.
    pub fn suspend_rings(
        &mut self,
        wanted: impl Fn(QueueIndex) -> bool,
        attachment: &mut dyn Attachment,
    ) {
        for queue in self.queues().filter(|queue| wanted(*queue)) {
            self.suspend(queue, attachment);
        }
    }

    /// Takes a ring back if it runs; it waits to be started where it is, and the front-end knows nothing of that.
    fn suspend(&mut self, queue: QueueIndex, attachment: &mut dyn Attachment) {
        let runs = |ring: &RingState| ring.phase == RingPhase::Running;
        if !self.ring(queue).is_some_and(runs) {
            return;
        }
        let started_at = self.base_of(queue);
        self.stop(queue, attachment);
        if let Some(ring) = self.ring_mut(queue) {
            ring.phase = RingPhase::Waiting;
            ring.origin.get_or_insert(started_at);
        }
    }

    /// Starts the rings that are `wanted`, wait, and have all they need.
    pub fn resume_rings(
        &mut self,
        wanted: impl Fn(QueueIndex) -> bool,
        attachment: &mut dyn Attachment,
    ) {
        for queue in self.queues().filter(|queue| wanted(*queue)) {
            if let Err(refusal) = self.try_start(queue, attachment) {
                self.session.last_refusal = Some(refusal.to_string());
            }
        }
    }

    /// The same device in a process that has not started its rings.
    #[must_use]
    pub fn with_rings_suspended(mut self) -> Self {
        for ring in &mut self.session.rings {
            if ring.phase == RingPhase::Running {
                ring.phase = RingPhase::Waiting;
            }
        }
        self
    }

    fn queues(&self) -> impl Iterator<Item = QueueIndex> + use<> {
        (0..2 * self.queue_pairs).map(QueueIndex)
    }

    fn queue(&mut self, index: u32) -> Result<QueueIndex, Refusal> {
        let rings = self.session.rings.len();
        match u16::try_from(index) {
            Ok(queue) if usize::from(queue) < rings => Ok(QueueIndex(queue)),
            _ => {
                self.session.ring_beyond_port = self.session.ring_beyond_port.max(Some(index));
                Err(Refusal::RingBeyondPort { index, rings })
            }
        }
    }

    fn ring(&self, queue: QueueIndex) -> Option<&RingState> {
        self.session.rings.get(usize::from(queue.0))
    }

    fn ring_mut(&mut self, queue: QueueIndex) -> Option<&mut RingState> {
        self.session.rings.get_mut(usize::from(queue.0))
    }

    // Net.

    fn send_rarp(&mut self, address: [u8; 6], attachment: &mut dyn Attachment) -> Handled {
        let [first, ..] = address;
        if first & 1 != 0 || address == [0; 6] {
            return Err(Refusal::RarpAddress);
        }
        self.counters.rarps += 1;
        if self.any_ring_runs() {
            let frame: [u8; RARP_FRAME_BYTES] = rarp::announcement(address);
            attachment.inject(&frame);
        } else {
            self.session.pending_rarp = Some(address);
        }
        Ok(Outcome::Done)
    }

    fn set_mtu(&mut self, mtu: u64) -> Handled {
        let limit = self.mtu_limit.unwrap_or(u16::MAX);
        match u16::try_from(mtu) {
            Ok(mtu) if (MIN_MTU..=limit).contains(&mtu) => self.session.mtu = Some(mtu),
            _ => return Err(Refusal::Mtu { mtu, limit }),
        }
        Ok(Outcome::Done)
    }

    fn note_refusal(&mut self, request: RequestCode, refusal: &Refusal) {
        self.counters.refused += 1;
        if matches!(refusal, Refusal::Unsupported) {
            self.counters.unsupported += 1;
        }
        self.session.last_refusal = Some(format!("{request}: {refusal}"));
    }
}

fn fresh_session(queue_pairs: u16) -> SessionState {
    SessionState {
        rings: vec![RingState::default(); 2 * usize::from(queue_pairs)],
        ..SessionState::default()
    }
}

fn value(value: u64) -> Handled {
    Ok(Outcome::Reply(Reply::Value(value)))
}

fn ring_refusal(queue: QueueIndex, error: AttachError) -> Refusal {
    let queue = queue.0;
    Refusal::Ring { queue, error }
}

fn refuse_bits(
    bits: u64,
    names: fn(u64) -> Vec<String>,
    refusal: fn(Vec<String>) -> Refusal,
) -> Result<(), Refusal> {
    if bits == 0 {
        Ok(())
    } else {
        Err(refusal(names(bits)))
    }
}
