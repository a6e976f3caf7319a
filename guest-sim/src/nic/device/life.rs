//! The events in a VM's life that start and stop a NIC's rings, each as the chosen front-end words it.

use std::os::unix::net::UnixStream;

use super::Nic;
use crate::error::Error;
use crate::features::Features;
use crate::memory::GuestMemory;
use crate::nic::dirty_log::DirtyLog;
use crate::nic::options::{Refill, Settle};
use crate::nic::order::{MessageOrder, Negotiation, RingBase, Start, Stop};
use crate::nic::session::{RingState, Session};
use crate::ring::Format;

/// Whether rings that start while pages are logged are told where, or held by the back-end until they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogBase {
    Told,
    Withheld,
}

impl Nic {
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
    /// [`Vmm::set_log_base`](super::super::Vmm::set_log_base).
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
        self.reintroduce(stream)?;
        self.start_from(base)
    }

    fn reintroduce(&mut self, stream: UnixStream) -> Result<(), Error> {
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
        Ok(())
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
        self.move_to(memory)?;
        self.reconnect_from(stream, base)
    }

    /// [`Self::arrive`] before `memory` has any of the bytes: whoever serves [`Arrival`](crate::nic::Arrival) puts them there page by page, as
    /// the back-end needs them, and the rest before [`Session::postcopy_end`]. The driver must not be used before that.
    ///
    /// # Errors
    /// As [`Self::arrive`].
    pub fn arrive_by_postcopy(
        &mut self,
        memory: &GuestMemory,
        stream: UnixStream,
    ) -> Result<(), Error> {
        self.move_to(memory)?;
        self.reintroduce(stream)?;
        self.session.postcopy_begin()?;
        let refill = std::mem::replace(&mut self.options.refill, Refill::Manual);
        let started = self.start_from(RingBase::known_to(self.options.order));
        self.options.refill = refill;
        started
    }

    fn move_to(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        memory.adopt_allocations(&self.memory);
        self.memory = memory.clone();
        self.logging = None;
        for pair in &mut self.pairs {
            pair.guest_rx.move_to(memory)?;
            pair.guest_tx.move_to(memory)?;
        }
        Ok(())
    }
}
