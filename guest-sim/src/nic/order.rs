//! Which messages when: as QEMU 10.0 and Cloud Hypervisor v53 were seen to send them.
//!
//! Called by [`Nic`](super::Nic) on the test's thread. Keeps true: order, repetition and wish for replies are the front-end's own, since a
//! back-end that only works with a tidier order does not work.
//!
//! | event | QEMU | Cloud Hypervisor |
//! |---|---|---|
//! | connect | per pair: GET_FEATURES, GET/SET_PROTOCOL_FEATURES, GET_QUEUE_NUM (pair 0), GET_MAX_MEM_SLOTS, SET_OWNER (pair 0), GET_FEATURES, per ring CALL, ERR; then ENABLE(1) for pair 0 and ENABLE(0) for the others | SET_OWNER, GET_FEATURES, GET/SET_PROTOCOL_FEATURES, GET_QUEUE_NUM |
//! | start (see `vmm` for when pages are logged) | NET_SET_MTU; per pair: ENABLE(1), SET_FEATURES, memory (pair 0), per ring NUM, BASE, ADDR, KICK, CALL | SET_FEATURES, SET_MEM_TABLE, NUM for all, per ring ADDR, BASE, CALL, KICK, then ENABLE(1) for all |
//! | pause | GET_VRING_BASE per ring | ENABLE(0) per ring |
//! | reset | GET_VRING_BASE per ring, RESET_DEVICE, then ENABLE as at connect | per ring ENABLE(0), GET_VRING_BASE |
//! | reconnect | as connect | SET_OWNER, GET_FEATURES, SET_PROTOCOL_FEATURES |
//! | shutdown | GET_VRING_BASE per ring, close | a stray ENABLE(1) per ring, close |

use vhost::VringConfigData;
use vhost::vhost_user::VhostUserProtocolFeatures as Bits;
use vmm_sys_util::eventfd::EventFd;

use super::dirty_log::DirtyLog;
use super::iommu;
use super::options::NicOptions;
use super::session::{Ack, ReplyHabit, RingState, Session};
use crate::error::{Doing, Error};
use crate::features::Features;
use crate::memory::GuestMemory;
use crate::ring::{Logging, Virtqueue};

/// Whose messages, in whose order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MessageOrder {
    /// QEMU 10.0's virtio-net.
    #[default]
    Qemu,
    /// Cloud Hypervisor v53's.
    CloudHypervisor,
}

/// What SET_VRING_BASE says when a ring starts. Of a split ring, the next available index; of a packed ring, where the device reads and
/// where it uses next, each with its wrap counter ([`packed_base`](crate::ring::packed_base)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingBase {
    /// The answer to the last GET_VRING_BASE, or that of an empty ring: QEMU. Of a packed ring it is also all that QEMU knows after a
    /// back-end died, so that the device may have gone on since.
    Stopped,
    /// The guest's available index: Cloud Hypervisor at activation and restore, which skips buffers posted before unless the back-end
    /// knows better. (That front-end has no packed rings; there it is where the driver stands.)
    AvailIndex,
    /// The used index in memory: both, after a back-end died. Of a packed ring no VMM sees it: it is what the driver knows.
    UsedIndex,
    /// This, for every ring.
    Value(u32),
}

impl RingBase {
    /// What this front-end says when a driver is ready or a guest arrives from elsewhere.
    pub(crate) fn known_to(order: MessageOrder) -> Self {
        match order {
            MessageOrder::Qemu => Self::Stopped,
            MessageOrder::CloudHypervisor => Self::AvailIndex,
        }
    }
}

/// One connection's negotiation, in progress or done.
#[derive(Debug)]
pub(crate) struct Negotiation<'a> {
    pub session: &'a mut Session,
    pub options: &'a NicOptions,
}

impl Negotiation<'_> {
    fn wants_protocol_features(&self) -> bool {
        self.options.protocol.bits() != 0
            && self.session.offered().contains(Features::PROTOCOL_FEATURES)
    }

    fn set_reply_habit(&mut self) {
        self.session.set_reply_habit(match self.options.order {
            MessageOrder::Qemu => ReplyHabit::AsNeeded,
            MessageOrder::CloudHypervisor => ReplyHabit::Always,
        });
    }

    /// Everything from the connection to the moment before the driver is ready; the answer is what the driver will ack.
    pub fn introduce(&mut self) -> Result<Features, Error> {
        self.set_reply_habit();
        match self.options.order {
            MessageOrder::Qemu => self.introduce_qemu()?,
            MessageOrder::CloudHypervisor => self.introduce_cloud_hypervisor()?,
        }
        self.features_to_ack()
    }

    /// The same on a connection that replaces a lost one, with the protocol features of that one.
    pub fn reintroduce(&mut self, protocol_acked: u64) -> Result<Features, Error> {
        self.set_reply_habit();
        match self.options.order {
            MessageOrder::Qemu => self.introduce_qemu()?,
            MessageOrder::CloudHypervisor => {
                self.session.set_owner(Ack::NotWanted)?;
                self.session.get_features()?;
                if self.wants_protocol_features() {
                    // No GET_PROTOCOL_FEATURES and no GET_QUEUE_NUM: the answers are remembered.
                    self.session
                        .set_protocol_features(protocol_acked, Ack::NotWanted)?;
                }
            }
        }
        self.features_to_ack()
    }

    fn features_to_ack(&self) -> Result<Features, Error> {
        let offered = self.session.offered();
        let mut required = self.options.features;
        if self.options.queue_pairs > 1 {
            required = required | Features::MQ;
        }
        let missing = required - offered;
        if !missing.is_empty() {
            return Err(Error::NotOffered { missing, offered });
        }
        let mut acked = required | (self.options.optional_features & offered);
        if self.wants_protocol_features() {
            acked = acked | Features::PROTOCOL_FEATURES;
        }
        Ok(acked)
    }

    fn introduce_qemu(&mut self) -> Result<(), Error> {
        for pair in 0..self.options.queue_pairs {
            self.session.get_features()?;
            if self.wants_protocol_features() {
                self.negotiate_protocol(Ack::NotWanted)?;
                if pair == 0 && self.session.has(Bits::MQ) {
                    self.check_queue_num()?;
                }
                if self.session.has(Bits::CONFIGURE_MEM_SLOTS) {
                    self.session.get_max_mem_slots()?;
                }
            }
            if pair == 0 {
                self.session.set_owner(Ack::NotWanted)?;
            }
            self.session.get_features()?;
            for ring in [2 * pair, 2 * pair + 1] {
                // The notifier of a masked vector: nobody listens to it.
                let masked = EventFd::new(0).doing("creating an eventfd")?;
                self.session.set_vring_call(ring, &masked, Ack::NotWanted)?;
                let error = EventFd::new(0).doing("creating an eventfd")?;
                self.session.set_vring_err(ring, &error, Ack::NotWanted)?;
            }
        }
        self.enable_as_at_reset()
    }

    /// What QEMU says at machine reset, before any SET_FEATURES: pair 0 on, the others off.
    pub fn enable_as_at_reset(&mut self) -> Result<(), Error> {
        if !self.wants_protocol_features() {
            return Ok(());
        }
        for pair in 0..self.options.queue_pairs {
            let state = if pair == 0 {
                RingState::Enabled
            } else {
                RingState::Disabled
            };
            self.enable_pair(pair, state)?;
        }
        Ok(())
    }

    fn introduce_cloud_hypervisor(&mut self) -> Result<(), Error> {
        self.session.set_owner(Ack::NotWanted)?;
        self.session.get_features()?;
        if self.wants_protocol_features() {
            self.negotiate_protocol(Ack::NotWanted)?;
            if self.session.has(Bits::MQ) {
                self.check_queue_num()?;
            }
        }
        Ok(())
    }

    fn negotiate_protocol(&mut self, ack: Ack) -> Result<(), Error> {
        let offered = self.session.get_protocol_features()?;
        self.session
            .set_protocol_features(offered & self.options.protocol.bits(), ack)
    }

    /// QEMU compares the answer with its pairs, Cloud Hypervisor with its rings.
    fn check_queue_num(&mut self) -> Result<(), Error> {
        let answered = self.session.get_queue_num()?;
        let wanted = match self.options.order {
            MessageOrder::Qemu => self.options.queue_pairs,
            MessageOrder::CloudHypervisor => 2 * self.options.queue_pairs,
        };
        if u64::from(wanted) > answered {
            return Err(Error::TooFewQueues {
                wanted: self.options.queue_pairs,
                answered,
            });
        }
        Ok(())
    }

    pub fn enable_pair(&mut self, pair: u16, state: RingState) -> Result<(), Error> {
        for ring in [2 * pair, 2 * pair + 1] {
            self.session.set_vring_enable(ring, state, Ack::Wanted)?;
        }
        Ok(())
    }

    /// The driver is ready: features, memory, rings. `acked` has LOG_ALL when pages are logged, and `log` is where, once that is said.
    pub fn start(
        &mut self,
        memory: &GuestMemory,
        rings: &[Start<'_>],
        acked: Features,
        log: Option<&DirtyLog>,
    ) -> Result<(), Error> {
        match self.options.order {
            MessageOrder::Qemu => self.start_qemu(memory, rings, acked, log),
            MessageOrder::CloudHypervisor => self.start_cloud_hypervisor(memory, rings, acked),
        }
    }

    fn start_qemu(
        &mut self,
        memory: &GuestMemory,
        rings: &[Start<'_>],
        acked: Features,
        log: Option<&DirtyLog>,
    ) -> Result<(), Error> {
        if let Some(mtu) = self.options.mtu
            && self.session.has(Bits::MTU)
            && acked.contains(Features::MTU)
        {
            self.session.net_set_mtu(mtu, Ack::Wanted)?;
        }
        for (pair, rings) in (0..).zip(rings.chunks(2)) {
            if acked.contains(Features::PROTOCOL_FEATURES) {
                self.enable_pair(pair, RingState::Enabled)?;
            }
            // From pair 1 on, this arrives while the rings of pair 0 are live.
            let (ack, logging) = if acked.contains(Features::LOG_ALL) {
                (Ack::Wanted, Logging::On)
            } else {
                (Ack::NotWanted, Logging::Off)
            };
            self.session.set_features(acked, ack)?;
            if pair == 0 {
                self.tell_memory(memory)?;
            }
            for start in rings {
                let (index, ring) = (start.ring.index(), start.ring);
                self.session
                    .set_vring_num(index, ring.size(), Ack::NotWanted)?;
                self.session
                    .set_vring_base(index, start.base, Ack::NotWanted)?;
                let addresses = self.addresses(ring, logging);
                self.session.set_vring_addr(index, &addresses, ack)?;
                self.session
                    .set_vring_kick(index, ring.kick_eventfd(), Ack::NotWanted)?;
                self.call(start, Ack::NotWanted)?;
            }
            if let (0, Some(log)) = (pair, log) {
                self.session.set_log_base(log)?;
            }
        }
        Ok(())
    }

    fn start_cloud_hypervisor(
        &mut self,
        memory: &GuestMemory,
        rings: &[Start<'_>],
        acked: Features,
    ) -> Result<(), Error> {
        self.session.set_features(acked, Ack::Wanted)?;
        self.session.set_mem_table(memory, Ack::Wanted)?;
        for start in rings {
            self.session
                .set_vring_num(start.ring.index(), start.ring.size(), Ack::Wanted)?;
        }
        for start in rings {
            let (index, ring) = (start.ring.index(), start.ring);
            let addresses = self.addresses(ring, Logging::Off);
            self.session
                .set_vring_addr(index, &addresses, Ack::Wanted)?;
            self.session
                .set_vring_base(index, start.base, Ack::Wanted)?;
            self.call(start, Ack::Wanted)?;
            self.session
                .set_vring_kick(index, ring.kick_eventfd(), Ack::Wanted)?;
        }
        if acked.contains(Features::PROTOCOL_FEATURES) {
            for start in rings {
                self.session.set_vring_enable(
                    start.ring.index(),
                    RingState::Enabled,
                    Ack::Wanted,
                )?;
            }
        }
        Ok(())
    }

    fn addresses(&self, ring: &Virtqueue, logging: Logging) -> VringConfigData {
        if iommu::is_behind(self.session.acked()) {
            ring.memory().io_addresses(logging)
        } else {
            ring.memory().message_addresses(logging)
        }
    }

    fn call(&mut self, start: &Start<'_>, ack: Ack) -> Result<(), Error> {
        let index = start.ring.index();
        if self.options.rings_without_call.contains(&index) {
            return Ok(());
        }
        self.session
            .set_vring_call(index, start.ring.call_eventfd(), ack)
    }

    /// QEMU adds regions one by one where it can, and never twice on one connection.
    fn tell_memory(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        if !self.session.has(Bits::CONFIGURE_MEM_SLOTS) {
            return self.session.set_mem_table(memory, Ack::Wanted);
        }
        for region in memory.regions() {
            let message = region.message_region();
            if self
                .session
                .told_regions()
                .contains(&message.guest_phys_addr)
            {
                continue;
            }
            self.session.add_mem_reg(&message, Ack::Wanted)?;
        }
        self.session.acknowledge_regions()
    }

    /// Stops the rings; the answers to GET_VRING_BASE, where it is sent.
    pub fn stop(&mut self, rings: u16, how: Stop) -> Result<Vec<u32>, Error> {
        let mut bases = Vec::new();
        for ring in 0..rings {
            let enabled = match (self.options.order, how) {
                (MessageOrder::Qemu, _) => None,
                (MessageOrder::CloudHypervisor, Stop::Pause | Stop::Reset) => {
                    Some(RingState::Disabled)
                }
                (MessageOrder::CloudHypervisor, Stop::Shutdown) => Some(RingState::Enabled),
            };
            if let (Some(state), true) = (
                enabled,
                self.session.acked().contains(Features::PROTOCOL_FEATURES),
            ) {
                self.session.set_vring_enable(ring, state, Ack::Wanted)?;
            }
            if self.options.order == MessageOrder::Qemu || how == Stop::Reset {
                bases.push(self.session.get_vring_base(ring)?);
            }
        }
        if self.options.order == MessageOrder::Qemu && how == Stop::Reset {
            if self.session.has(Bits::RESET_DEVICE) {
                self.session.reset_device(Ack::Wanted)?;
            }
            self.enable_as_at_reset()?;
        }
        Ok(bases)
    }
}

/// A ring about to start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start<'a> {
    pub ring: &'a Virtqueue,
    pub base: u32,
}

/// Why rings stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Pause,
    Reset,
    Shutdown,
}
