//! The NIC itself: a session, the queue pairs, and the events in a VM's life.
//!
//! Called by tests and benches; messages go over the socket on the calling thread, queue pairs may be lent to other threads
//! ([`Nic::split`]). Keeps true: the state of driver and back-end change together.

mod life;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures as Bits;

use super::options::NicOptions;
use super::order::Negotiation;
use super::session::{Ack, RingState, Session, connect};
use super::vmm::{LogState, Vmm};
use crate::driver::{GuestRx, GuestTx};
use crate::error::Error;
use crate::features::Features;
use crate::frame::Frame;
use crate::memory::{GuestMemory, Region, RegionLayout};
use crate::ring::{RawPackedRing, RawRing, Virtqueue};

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
