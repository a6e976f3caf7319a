//! The NIC itself: a session, the queue pairs, and the events in a VM's life.
//!
//! Called by tests and benches; messages go over the socket on the calling thread, queue pairs may be lent to other threads
//! ([`Nic::split`]). Keeps true: the state of driver and back-end change together.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures as Bits;

use super::dirty_log::DirtyLog;
use super::options::{NicOptions, Refill, Settle};
use super::order::{MessageOrder, Negotiation, RingBase, Start, Stop};
use super::session::{Ack, RingState, Session, connect};
use super::vmm::{LogState, Vmm};
use crate::driver::{GuestRx, GuestTx};
use crate::error::Error;
use crate::features::Features;
use crate::frame::Frame;
use crate::memory::{GuestMemory, Region, RegionLayout};
use crate::ring::{Format, RawPackedRing, RawRing, Virtqueue};

/// A guest-rx ring (2n) and a guest-tx ring (2n + 1).
#[derive(Debug)]
pub struct QueuePair {
    /// What the guest receives.
    pub guest_rx: GuestRx,
    /// What the guest transmits.
    pub guest_tx: GuestTx,
}

impl QueuePair {
    /// The rings of pair number `pair`, before any message about them. Without a session this is all that a test needs which
    /// drives a device's rings in process.
    ///
    /// # Errors
    /// When the memory has no room for them.
    pub fn new(
        pair: u16,
        memory: &GuestMemory,
        options: &NicOptions,
        acked: Features,
    ) -> Result<Self, Error> {
        Ok(Self {
            guest_rx: GuestRx::new(2 * pair, memory, options, acked)?,
            guest_tx: GuestTx::new(2 * pair + 1, memory, options, acked)?,
        })
    }
}

/// How a change of memory is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryUpdate {
    /// SET_MEM_TABLE with every region.
    WholeTable,
    /// ADD_MEM_REG or REM_MEM_REG; needs CONFIGURE_MEM_SLOTS.
    OneRegion,
}

/// A simulated guest's NIC. Dropping it hangs up at once, as a killed VMM does.
#[derive(Debug)]
pub struct Nic {
    memory: GuestMemory,
    options: NicOptions,
    session: Session,
    acked: Features,
    pairs: Vec<QueuePair>,
    stopped_at: Vec<u32>,
    logging: Option<LogState>,
}

/// Whether rings that start while pages are logged are told where, or held by the back-end until they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogBase {
    Told,
    Withheld,
}

impl Nic {
    /// Connects to a back-end that listens at `socket`, negotiates, and starts the rings.
    ///
    /// # Errors
    /// Whatever goes wrong first.
    pub fn attach(memory: &GuestMemory, options: NicOptions, socket: &Path) -> Result<Self, Error> {
        let stream = connect(socket, options.deadline)?;
        let mut nic = Self::introduce(memory, options, stream)?;
        nic.start()?;
        Ok(nic)
    }

    /// Everything up to the moment before the driver is ready: negotiates over a connected socket and lays the rings out.
    ///
    /// # Errors
    /// [`Error::NotOffered`], [`Error::TooFewQueues`], or what the session says.
    pub fn introduce(
        memory: &GuestMemory,
        options: NicOptions,
        stream: UnixStream,
    ) -> Result<Self, Error> {
        options.check()?;
        let mut session = Session::new(stream, options.deadline)?;
        let acked = Negotiation {
            session: &mut session,
            options: &options,
        }
        .introduce()?;
        let pairs: Vec<QueuePair> = (0..options.queue_pairs)
            .map(|pair| QueuePair::new(pair, memory, &options, acked))
            .collect::<Result<_, _>>()?;
        let mut nic = Self {
            memory: memory.clone(),
            options,
            session,
            acked,
            pairs,
            stopped_at: Vec::new(),
            logging: None,
        };
        nic.stopped_at = nic.start_bases();
        Ok(nic)
    }

    /// The driver is ready: sends the start messages with the ring bases this front-end would send, and posts receive buffers.
    ///
    /// # Errors
    /// What the session says.
    pub fn start(&mut self) -> Result<(), Error> {
        self.start_from(RingBase::known_to(self.options.order))
    }

    /// The same with these ring bases.
    ///
    /// # Errors
    /// What the session says.
    pub fn start_from(&mut self, base: RingBase) -> Result<(), Error> {
        self.start_rings(base, LogBase::Told)
    }

    /// QEMU's start while pages are logged, up to the moment before SET_LOG_BASE: the back-end has to hold the rings until that comes, with
    /// [`Vmm::set_log_base`].
    ///
    /// # Errors
    /// What the session says.
    pub fn start_without_log(&mut self, base: RingBase) -> Result<(), Error> {
        self.start_rings(base, LogBase::Withheld)
    }

    fn start_rings(&mut self, base: RingBase, log_base: LogBase) -> Result<(), Error> {
        let (acked, log) = self.log_to_start(log_base)?;
        let mut starts = Vec::new();
        for ring in self.rings() {
            let base = match base {
                RingBase::Stopped => self.stopped_at[usize::from(ring.index())],
                RingBase::AvailIndex => ring.avail_base()?,
                RingBase::UsedIndex => ring.used_base()?,
                RingBase::Value(value) => value,
            };
            starts.push((ring.index(), base));
        }
        let rings = self
            .pairs
            .iter()
            .flat_map(|pair| [pair.guest_rx.ring(), pair.guest_tx.ring()]);
        let starts: Vec<_> = rings
            .zip(starts)
            .map(|(ring, (_, base))| Start { ring, base })
            .collect();
        Negotiation {
            session: &mut self.session,
            options: &self.options,
        }
        .start(&self.memory, &starts, acked, log.as_ref())?;
        if let (Some(state), Some(log)) = (&mut self.logging, log) {
            state.replace(log)?;
        }
        if self.options.refill == Refill::Automatic {
            self.refill()?;
        }
        if self.options.order == MessageOrder::Qemu && self.options.settle == Settle::RoundTrip {
            self.session.get_features()?;
        }
        Ok(())
    }

    /// What rings start with: QEMU makes a new log for them, Cloud Hypervisor forgets that pages are logged.
    fn log_to_start(&self, log_base: LogBase) -> Result<(Features, Option<DirtyLog>), Error> {
        let logged = self.acked | Features::LOG_ALL;
        Ok(match (self.options.order, log_base) {
            (MessageOrder::Qemu, LogBase::Withheld) => (logged, None),
            (MessageOrder::Qemu, LogBase::Told) if self.logging.is_some() => {
                let log = DirtyLog::covering(&self.memory, MessageOrder::Qemu)?;
                (logged, Some(log))
            }
            _ => (self.acked, None),
        })
    }

    /// Posts receive buffers on every pair.
    ///
    /// # Errors
    /// When guest memory has no room.
    pub fn refill(&mut self) -> Result<(), Error> {
        for pair in &mut self.pairs {
            pair.guest_rx.refill()?;
        }
        Ok(())
    }

    /// The VM is paused: QEMU stops the rings, Cloud Hypervisor disables them.
    ///
    /// # Errors
    /// What the session says.
    pub fn pause(&mut self) -> Result<(), Error> {
        self.vmm().pause()
    }

    /// The VM goes on after [`Self::pause`].
    ///
    /// # Errors
    /// What the session says.
    pub fn resume(&mut self) -> Result<(), Error> {
        match self.options.order {
            MessageOrder::Qemu => self.start(),
            MessageOrder::CloudHypervisor => self.enable_all(RingState::Enabled),
        }
    }

    /// The driver resets the device (its own reset, reboot, unplug): rings are stopped and empty afterwards, and can be started again.
    ///
    /// # Errors
    /// What the session says.
    pub fn reset(&mut self) -> Result<(), Error> {
        self.vmm().stop(Stop::Reset)?;
        self.forget_rings()
    }

    /// The VM ends in an orderly way.
    ///
    /// # Errors
    /// What the session says.
    pub fn shut_down(mut self) -> Result<(), Error> {
        self.vmm().stop(Stop::Shutdown)
    }

    /// Rings in memory as a driver leaves them after a reset, without a message.
    ///
    /// # Errors
    /// When the rings' memory is gone.
    pub fn forget_rings(&mut self) -> Result<(), Error> {
        for pair in &mut self.pairs {
            pair.guest_rx
                .reset(&self.memory, &self.options, self.acked)?;
            pair.guest_tx
                .reset(&self.memory, &self.options, self.acked)?;
        }
        self.stopped_at = self.start_bases();
        Ok(())
    }

    /// A new connection after the back-end was lost; rings and buffers stay, and start at the used index. Packed rings start where they
    /// last stopped, since no VMM knows better: a back-end that wants to go on has to remember where it was.
    ///
    /// # Errors
    /// What the session says; [`Error::NotOffered`] when the new back-end offers less.
    pub fn reconnect(&mut self, stream: UnixStream) -> Result<(), Error> {
        let base = match Format::of(self.acked) {
            Format::Split => RingBase::UsedIndex,
            Format::Packed => RingBase::Stopped,
        };
        self.reconnect_from(stream, base)
    }

    /// The same with other ring bases: [`RingBase::AvailIndex`] is Cloud Hypervisor's restore from a snapshot.
    ///
    /// # Errors
    /// As [`Self::reconnect`].
    pub fn reconnect_from(&mut self, stream: UnixStream, base: RingBase) -> Result<(), Error> {
        let protocol_acked = self.session.protocol_acked();
        self.session = Session::new(stream, self.options.deadline)?;
        let mut negotiation = Negotiation {
            session: &mut self.session,
            options: &self.options,
        };
        let acked = negotiation.reintroduce(protocol_acked)?;
        let missing = self.acked - acked;
        if !missing.is_empty() {
            return Err(Error::NotOffered {
                missing,
                offered: self.session.offered(),
            });
        }
        self.start_from(base)
    }

    /// Plugs memory in while the rings run; the answer is the region's index.
    ///
    /// # Errors
    /// When the layout is wrong or the back-end refuses.
    pub fn add_region(&mut self, layout: RegionLayout, how: MemoryUpdate) -> Result<usize, Error> {
        self.vmm().add_region(layout, how)
    }

    /// Unplugs memory while the rings run. Buffers in it must not be with the device.
    ///
    /// # Errors
    /// When there is no such region or the back-end refuses.
    pub fn remove_region(&mut self, index: usize, how: MemoryUpdate) -> Result<Arc<Region>, Error> {
        let region = self.memory.remove_region(index)?;
        match how {
            MemoryUpdate::WholeTable => self.session.set_mem_table(&self.memory, Ack::Wanted)?,
            MemoryUpdate::OneRegion => self
                .session
                .rem_mem_reg(&region.message_region(), Ack::Wanted)?,
        }
        Ok(region)
    }

    /// SET_VRING_ENABLE for both rings of a pair: what a guest's change of its number of queues becomes.
    ///
    /// # Errors
    /// What the session says.
    pub fn enable_pair(&mut self, pair: u16, state: RingState) -> Result<(), Error> {
        Negotiation {
            session: &mut self.session,
            options: &self.options,
        }
        .enable_pair(pair, state)
    }

    /// SET_VRING_ENABLE for every ring.
    ///
    /// # Errors
    /// What the session says.
    pub fn enable_all(&mut self, state: RingState) -> Result<(), Error> {
        self.vmm().enable_all(state)
    }

    /// What the driver acked.
    pub fn acked(&self) -> Features {
        self.acked
    }

    /// What the back-end offers.
    pub fn offered(&self) -> Features {
        self.session.offered()
    }

    /// Whether a protocol feature was negotiated.
    pub fn has(&self, feature: Bits) -> bool {
        self.session.has(feature)
    }

    /// The options it was made from.
    pub fn options(&self) -> &NicOptions {
        &self.options
    }

    /// The VM's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The connection, for messages of one's own.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// A queue pair.
    ///
    /// # Panics
    /// When the NIC has fewer pairs.
    pub fn pair(&mut self, pair: usize) -> &mut QueuePair {
        &mut self.pairs[pair]
    }

    /// Every queue pair.
    pub fn pairs(&mut self) -> &mut [QueuePair] {
        &mut self.pairs
    }

    /// The VMM's half and the guest's, so that one thread can migrate while others move frames.
    pub fn halves(&mut self) -> (Vmm<'_>, &mut [QueuePair]) {
        let rings = self.pairs.iter();
        let rings = rings.flat_map(|pair| [pair.guest_rx.ring(), pair.guest_tx.ring()]);
        let vmm = Vmm {
            rings: rings.map(|ring| ring.memory().clone()).collect(),
            session: &mut self.session,
            options: &self.options,
            memory: &self.memory,
            acked: self.acked,
            stopped_at: &mut self.stopped_at,
            logging: &mut self.logging,
        };
        (vmm, &mut self.pairs)
    }

    /// The VMM's half.
    pub fn vmm(&mut self) -> Vmm<'_> {
        self.halves().0
    }

    /// Has the back-end mark the pages it writes from now on: [`Vmm::take_logged`] reads them, [`Vmm::stop_logging`] ends it.
    ///
    /// # Errors
    /// [`Error::NotOffered`] when it cannot, or what the session says.
    pub fn start_logging(&mut self) -> Result<(), Error> {
        self.vmm().start_logging()
    }

    /// The guest goes on where it has migrated to: in `memory`, which has the bytes of the memory it was in, on another connection. Rings
    /// start with the bases that this front-end knows there; nothing is logged any more.
    ///
    /// # Errors
    /// As [`Self::reconnect`]; and when that memory has another shape.
    pub fn arrive(&mut self, memory: &GuestMemory, stream: UnixStream) -> Result<(), Error> {
        let base = RingBase::known_to(self.options.order);
        self.arrive_from(memory, stream, base)
    }

    /// The same with other ring bases.
    ///
    /// # Errors
    /// As [`Self::arrive`].
    pub fn arrive_from(
        &mut self,
        memory: &GuestMemory,
        stream: UnixStream,
        base: RingBase,
    ) -> Result<(), Error> {
        memory.adopt_allocations(&self.memory);
        self.memory = memory.clone();
        self.logging = None;
        for pair in &mut self.pairs {
            pair.guest_rx.move_to(memory)?;
            pair.guest_tx.move_to(memory)?;
        }
        self.reconnect_from(stream, base)
    }

    /// The session and the queue pairs apart, so that messages can go out while other threads move frames.
    pub fn split(&mut self) -> (&mut Session, &mut [QueuePair]) {
        (&mut self.session, &mut self.pairs)
    }

    /// What GET_VRING_BASE answered last, per ring.
    pub fn stopped_at(&self) -> &[u32] {
        &self.stopped_at
    }

    /// Unchecked access to one split ring.
    ///
    /// # Errors
    /// When the rings are packed, or the process has no descriptor left.
    pub fn raw_ring(&self, ring: u16) -> Result<RawRing, Error> {
        self.ring(ring)?.raw()
    }

    /// Unchecked access to one packed ring.
    ///
    /// # Errors
    /// When the rings are split, or the process has no descriptor left.
    pub fn raw_packed_ring(&self, ring: u16) -> Result<RawPackedRing, Error> {
        self.ring(ring)?.raw_packed()
    }

    /// One ring, by its number on the device.
    ///
    /// # Errors
    /// When the NIC has fewer.
    pub fn ring(&self, ring: u16) -> Result<&Virtqueue, Error> {
        let rings = self.rings();
        let found = rings.get(usize::from(ring)).copied();
        found.ok_or(Error::Options("the NIC has no such ring"))
    }

    /// Sends on pair 0, with the options' deadline.
    ///
    /// # Errors
    /// As [`GuestTx::send`].
    pub fn send(&mut self, frame: &Frame) -> Result<(), Error> {
        let within = self.options.deadline;
        self.pair(0).guest_tx.send(frame, within)
    }

    /// The next frame on pair 0, or `None` when none comes.
    ///
    /// # Errors
    /// As [`GuestRx::receive`].
    pub fn receive(&mut self, within: Duration) -> Result<Option<Frame>, Error> {
        self.pair(0).guest_rx.receive(within)
    }

    fn rings(&self) -> Vec<&Virtqueue> {
        self.pairs
            .iter()
            .flat_map(|pair| [pair.guest_rx.ring(), pair.guest_tx.ring()])
            .collect()
    }

    fn start_bases(&self) -> Vec<u32> {
        self.rings().iter().map(|ring| ring.start_base()).collect()
    }
}
