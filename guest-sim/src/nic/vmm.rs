//! The VMM's half of a NIC: starting and stopping rings, and the migration log.
//!
//! Lent by [`Nic`](super::Nic), while the guest's half, the queue pairs, may be with other threads. Keeps true: no mark is lost when one log
//! takes the place of another; what a log still holds when it is given up is remembered until it is asked for.
//!
//! | event | QEMU | Cloud Hypervisor |
//! |---|---|---|
//! | logging starts | SET_LOG_BASE; per pair SET_FEATURES with LOG_ALL, per ring SET_VRING_ADDR with flags 1 | the same, SET_FEATURES once |
//! | a round | reads the log | SET_LOG_BASE with a new one, reads the old |
//! | rings start while logging | LOG_ALL and flags 1 in the start's own messages, SET_LOG_BASE with a new log behind pair 0's | logging is off then |
//! | memory grows past the log | SET_LOG_BASE with a longer one, the memory's message, reads the old | a longer one comes with the next round |
//! | logging ends | per pair SET_FEATURES, per ring SET_VRING_ADDR with flags 0, no replies wanted | SET_VRING_ADDR with flags 0, SET_FEATURES |

use std::sync::Arc;

use super::device::MemoryUpdate;
use super::dirty_log::DirtyLog;
use super::options::NicOptions;
use super::order::{MessageOrder, Negotiation, Stop};
use super::session::{Ack, RingState, Session};
use crate::error::Error;
use crate::features::Features;
use crate::memory::{GuestMemory, RegionLayout};
use crate::ring::{Logging, RingMemory};

/// What a NIC knows of its log.
#[derive(Debug)]
pub(crate) struct LogState {
    pub log: DirtyLog,
    /// Pages that earlier logs held when they were given up.
    pub unread: Vec<u64>,
}

impl LogState {
    /// Makes `log` the one that counts; the other's marks are kept. The back-end must have let go of that.
    pub fn replace(&mut self, log: DirtyLog) -> Result<(), Error> {
        let old = std::mem::replace(&mut self.log, log);
        self.unread.extend(old.take()?);
        Ok(())
    }
}

/// The VMM's half of a NIC.
#[derive(Debug)]
pub struct Vmm<'a> {
    pub(super) session: &'a mut Session,
    pub(super) options: &'a NicOptions,
    pub(super) memory: &'a GuestMemory,
    pub(super) acked: Features,
    pub(super) rings: Vec<Arc<RingMemory>>,
    pub(super) stopped_at: &'a mut Vec<u32>,
    pub(super) logging: &'a mut Option<LogState>,
}

impl Vmm<'_> {
    /// The connection.
    pub fn session(&mut self) -> &mut Session {
        self.session
    }

    /// The VM's memory.
    pub fn memory(&self) -> &GuestMemory {
        self.memory
    }

    /// The rings, by their numbers.
    pub fn rings(&self) -> &[Arc<RingMemory>] {
        &self.rings
    }

    pub(crate) fn order(&self) -> MessageOrder {
        self.options.order
    }

    /// Has the back-end mark the pages it writes from now on.
    ///
    /// # Errors
    /// [`Error::NotOffered`] when it cannot, or what the session says.
    pub fn start_logging(&mut self) -> Result<(), Error> {
        self.set_log_base()?;
        self.tell_logging(Logging::On, Ack::Wanted)
    }

    /// SET_LOG_BASE alone, with a new log: what follows LOG_ALL when rings were started before it.
    ///
    /// # Errors
    /// As [`Self::start_logging`].
    pub fn set_log_base(&mut self) -> Result<(), Error> {
        let offered = self.session.offered();
        let (missing, shared) = (Features::LOG_ALL - offered, self.session.logs_are_shared());
        if !missing.is_empty() || !shared {
            // QEMU and Cloud Hypervisor refuse to migrate then.
            return Err(Error::NotOffered { missing, offered });
        }
        let log = DirtyLog::covering(self.memory, self.order())?;
        self.use_log(log)
    }

    /// SET_LOG_BASE with this log. What the one before holds is kept for [`Self::take_logged`].
    ///
    /// # Errors
    /// What the session says.
    pub fn use_log(&mut self, log: DirtyLog) -> Result<(), Error> {
        self.session.set_log_base(&log)?;
        match self.logging {
            Some(state) => state.replace(log),
            None => {
                let unread = Vec::new();
                *self.logging = Some(LogState { log, unread });
                Ok(())
            }
        }
    }

    /// One round: the pages marked since the last, each at least once.
    ///
    /// # Errors
    /// When nothing is logged, or what the session says.
    pub fn take_logged(&mut self) -> Result<Vec<u64>, Error> {
        if self.order() == MessageOrder::CloudHypervisor {
            self.set_log_base()?;
            let state = self.logging.as_mut().ok_or(NOT_LOGGING)?;
            return Ok(std::mem::take(&mut state.unread));
        }
        let state = self.logging.as_mut().ok_or(NOT_LOGGING)?;
        let mut pages = std::mem::take(&mut state.unread);
        pages.extend(state.log.take()?);
        Ok(pages)
    }

    /// The log that is in use.
    pub fn log(&self) -> Option<&DirtyLog> {
        self.logging.as_ref().map(|state| &state.log)
    }

    /// The migration was given up: nothing is to be marked any more. The answer is the last log, to see that nothing is. Of QEMU's messages
    /// none is answered: [`Session::get_features`] tells when they have been dealt with.
    ///
    /// # Errors
    /// What the session says.
    pub fn stop_logging(&mut self) -> Result<DirtyLog, Error> {
        let state = self.logging.take().ok_or(NOT_LOGGING)?;
        self.tell_logging(Logging::Off, Ack::NotWanted)?;
        Ok(state.log)
    }

    fn tell_logging(&mut self, logging: Logging, ack: Ack) -> Result<(), Error> {
        let features = match logging {
            Logging::On => self.acked | Features::LOG_ALL,
            Logging::Off => self.acked,
        };
        match (self.order(), logging) {
            (MessageOrder::Qemu, _) => {
                for pair in 0..self.rings.len() / 2 {
                    self.session.set_features(features, ack)?;
                    self.tell_addresses(2 * pair..2 * pair + 2, logging, ack)?;
                }
                Ok(())
            }
            (MessageOrder::CloudHypervisor, Logging::On) => {
                self.session.set_features(features, ack)?;
                self.tell_addresses(0..self.rings.len(), logging, ack)
            }
            (MessageOrder::CloudHypervisor, Logging::Off) => {
                self.tell_addresses(0..self.rings.len(), logging, ack)?;
                self.session.set_features(features, ack)
            }
        }
    }

    fn tell_addresses(
        &mut self,
        rings: std::ops::Range<usize>,
        logging: Logging,
        ack: Ack,
    ) -> Result<(), Error> {
        for index in rings {
            let addresses = self.rings[index].message_addresses(logging);
            self.session.set_vring_addr(index as u16, &addresses, ack)?;
        }
        Ok(())
    }

    /// Plugs memory in while the rings run and pages may be logged; the answer is the region's index.
    ///
    /// # Errors
    /// When the layout is wrong or the back-end refuses.
    pub fn add_region(&mut self, layout: RegionLayout, how: MemoryUpdate) -> Result<usize, Error> {
        let index = self.memory.add_region(layout)?;
        if self.order() == MessageOrder::Qemu
            && let Some(state) = self.logging.as_ref()
            && let Some(log) = state.log.grown(self.memory)?
        {
            self.use_log(log)?;
        }
        match how {
            MemoryUpdate::WholeTable => self.session.set_mem_table(self.memory, Ack::Wanted)?,
            MemoryUpdate::OneRegion => {
                let message = self.memory.region(index)?.message_region();
                self.session.add_mem_reg(&message, Ack::Wanted)?;
            }
        }
        Ok(index)
    }

    /// The VM is paused: QEMU stops the rings, Cloud Hypervisor disables them.
    ///
    /// # Errors
    /// What the session says.
    pub fn pause(&mut self) -> Result<(), Error> {
        self.stop(Stop::Pause)
    }

    /// SET_VRING_ENABLE for every ring.
    ///
    /// # Errors
    /// What the session says.
    pub fn enable_all(&mut self, state: RingState) -> Result<(), Error> {
        let mut negotiation = self.negotiation();
        (0..negotiation.options.queue_pairs)
            .try_for_each(|pair| negotiation.enable_pair(pair, state))
    }

    pub(super) fn stop(&mut self, how: Stop) -> Result<(), Error> {
        let rings = self.rings.len() as u16;
        let bases = self.negotiation().stop(rings, how)?;
        if !bases.is_empty() {
            *self.stopped_at = bases;
        }
        Ok(())
    }

    pub(super) fn negotiation(&mut self) -> Negotiation<'_> {
        Negotiation {
            session: self.session,
            options: self.options,
        }
    }
}

const NOT_LOGGING: Error = Error::Options("nothing is logged: start_logging comes first");
