//! One virtqueue as its driver sees it, split or packed.
//!
//! Called by `guest_tx`, `guest_rx` and `bounce`, on the driver's thread. Keeps true: what holds for both formats is here and nowhere else:
//! no chain is longer than the ring, none is added without room, none comes back with more bytes than it has room for.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, Completion, DescriptorTable, Segment};
use super::layout::{Format, Place, RingMemory};
use super::notifier::{NotificationCounts, Notifier};
use super::packed::{Overwritten, PackedDriver};
use super::position::{Position, packed_base};
use super::raw::RawRing;
use super::raw_packed::RawPackedRing;
use super::split::SplitDriver;
use super::tables::Tables;
use super::view::{OTHER_FORMAT, View};
use crate::error::{DeviceFault, Error};
use crate::features::Features;
use crate::memory::GuestMemory;

/// One virtqueue as its driver sees it.
#[derive(Debug)]
pub struct Virtqueue {
    index: u16,
    memory: Arc<RingMemory>,
    tables: Tables,
    notifier: Notifier,
    driver: Driver,
}

#[derive(Debug)]
enum Driver {
    Split(SplitDriver),
    Packed(PackedDriver),
}

impl Virtqueue {
    /// A packed one if RING_PACKED is among the features.
    pub(crate) fn new(
        index: u16,
        memory: &GuestMemory,
        place: Place,
        size: u16,
        features: Features,
    ) -> Result<Self, Error> {
        let format = Format::of(features);
        Ok(Self {
            index,
            memory: Arc::new(RingMemory::new(memory, place, format, size)?),
            tables: Tables::new(memory, place.region, format, size),
            notifier: Notifier::new()?,
            driver: match format {
                Format::Split => Driver::Split(SplitDriver::new(index, size, features)),
                Format::Packed => Driver::Packed(PackedDriver::new(index, size, features)),
            },
        })
    }

    /// Which ring of the device: even for guest-rx, odd for guest-tx.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Split or packed.
    pub fn format(&self) -> Format {
        self.memory.format()
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.memory.size()
    }

    /// Where it lies.
    pub fn memory(&self) -> &Arc<RingMemory> {
        &self.memory
    }

    /// The eventfd the driver signals.
    pub fn kick_eventfd(&self) -> &EventFd {
        &self.notifier.kick
    }

    /// The eventfd the device signals.
    pub fn call_eventfd(&self) -> &EventFd {
        &self.notifier.call
    }

    /// Descriptors not in use.
    #[inline]
    pub fn free_descriptors(&self) -> u16 {
        match &self.driver {
            Driver::Split(driver) => driver.free_descriptors(),
            Driver::Packed(driver) => driver.free_descriptors(),
        }
    }

    /// Chains published and not come back.
    pub fn outstanding(&self) -> u16 {
        match &self.driver {
            Driver::Split(driver) => driver.outstanding(),
            Driver::Packed(driver) => driver.outstanding(),
        }
    }

    /// Notifications so far.
    pub fn notification_counts(&self) -> NotificationCounts {
        self.notifier.counts
    }

    /// Unchecked access to the same ring, which is split.
    ///
    /// # Errors
    /// When the ring is packed, or the process has no descriptor left.
    pub fn raw(&self) -> Result<RawRing, Error> {
        RawRing::new(self.memory.clone(), &self.notifier.kick)
    }

    /// Unchecked access to the same ring, which is packed.
    ///
    /// # Errors
    /// When the ring is split, or the process has no descriptor left.
    pub fn raw_packed(&self) -> Result<RawPackedRing, Error> {
        let next = match &self.driver {
            Driver::Split(_) => return Err(OTHER_FORMAT),
            Driver::Packed(driver) => driver.published(),
        };
        RawPackedRing::new(self.memory.clone(), &self.notifier.kick, next)
    }

    /// Back to an empty ring: what a driver does after a device reset.
    pub(crate) fn reset(&mut self, features: Features) {
        self.memory.clear();
        match &mut self.driver {
            Driver::Split(driver) => driver.reset(features),
            Driver::Packed(driver) => driver.reset(features),
        }
        self.notifier.drain();
    }

    /// Goes on in memory that took the place of this one's and has the same bytes, with notifiers of its own.
    pub(crate) fn move_to(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        self.memory = Arc::new(self.memory.in_memory(memory)?);
        self.tables.move_to(memory)?;
        self.notifier = Notifier::new()?;
        Ok(())
    }

    /// Puts a chain behind those before it, unpublished. `token` comes back with it.
    ///
    /// # Errors
    /// [`Error::RingFull`] when the descriptors do not suffice now, [`Error::ChainTooLong`] when they never will.
    pub fn add(
        &mut self,
        segments: &[Segment],
        table: DescriptorTable,
        token: u32,
    ) -> Result<(), Error> {
        let memory = self.memory.clone();
        self.add_with(&View::of(&memory)?, segments, table, token)
    }

    pub(crate) fn add_with(
        &mut self,
        view: &View<'_>,
        segments: &[Segment],
        table: DescriptorTable,
        token: u32,
    ) -> Result<(), Error> {
        // VIRTIO 1.3 §2.7.5.3.1, §2.8.17: no chain is longer than the queue size, indirect or not.
        if segments.is_empty() || segments.len() > usize::from(self.size()) {
            return Err(self.too_long(segments));
        }
        let indirect = table.is_indirect(segments.len());
        let descriptors = if indirect { 1 } else { segments.len() as u16 };
        if self.free_descriptors() < descriptors {
            return Err(Error::RingFull);
        }
        if indirect {
            return self.add_table(view, segments, token);
        }
        match (&mut self.driver, view) {
            (Driver::Split(driver), View::Split(view)) => {
                driver.place(view, segments, token);
                Ok(())
            }
            (Driver::Packed(driver), View::Packed(view)) => driver.place(view, segments, token),
            _ => Err(OTHER_FORMAT),
        }
    }

    fn add_table(
        &mut self,
        view: &View<'_>,
        segments: &[Segment],
        token: u32,
    ) -> Result<(), Error> {
        let chain = Chain {
            descriptors: 1,
            writable: segments.iter().map(Segment::writable).sum(),
            token,
        };
        match (&mut self.driver, view) {
            (Driver::Split(driver), View::Split(view)) => {
                let table = self.tables.fill(driver.next_id(), segments)?;
                driver.place_table(view, table, chain);
                Ok(())
            }
            (Driver::Packed(driver), View::Packed(view)) => {
                let table = self.tables.fill(driver.next_id(), segments)?;
                driver.place_table(view, table, chain)
            }
            _ => Err(OTHER_FORMAT),
        }
    }

    #[cold]
    fn too_long(&self, segments: &[Segment]) -> Error {
        Error::ChainTooLong {
            bytes: segments.iter().map(|segment| segment.len as usize).sum(),
            descriptors: segments.len(),
            ring_size: self.size(),
        }
    }

    /// Makes everything that was added visible to the device, and kicks if it asked for that.
    ///
    /// # Errors
    /// When the kick eventfd cannot be written; [`Error::Device`] when what the device asked for makes no sense.
    pub fn publish(&mut self) -> Result<(), Error> {
        let memory = self.memory.clone();
        self.publish_with(&View::of(&memory)?)
    }

    pub(crate) fn publish_with(&mut self, view: &View<'_>) -> Result<(), Error> {
        let wanted = match (&mut self.driver, view) {
            (Driver::Split(driver), View::Split(view)) => driver.publish(view),
            (Driver::Packed(driver), View::Packed(view)) => driver.publish(view)?,
            _ => return Err(OTHER_FORMAT),
        };
        match wanted {
            Some(wanted) => self.notifier.kick(wanted),
            None => Ok(()),
        }
    }

    /// The next chain that came back, if any.
    ///
    /// # Errors
    /// [`Error::Device`] when the device broke a rule.
    pub fn pop_used(&mut self) -> Result<Option<Completion>, Error> {
        let memory = self.memory.clone();
        self.pop_used_with(&View::of(&memory)?)
    }

    pub(crate) fn pop_used_with(&mut self, view: &View<'_>) -> Result<Option<Completion>, Error> {
        let completion = match (&mut self.driver, view) {
            (Driver::Split(driver), View::Split(view)) => driver.pop_used(view),
            (Driver::Packed(driver), View::Packed(view)) => driver.pop_used(view),
            _ => return Err(OTHER_FORMAT),
        };
        Ok(completion?)
    }

    /// Asks for a call on the next used chain. True if some came back meanwhile: then look before waiting.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn arm_call(&mut self) -> Result<bool, Error> {
        match (&mut self.driver, &View::of(&self.memory)?) {
            (Driver::Split(driver), View::Split(view)) => driver.arm_call(view),
            (Driver::Packed(driver), View::Packed(view)) => driver.arm_call(view),
            _ => return Err(OTHER_FORMAT),
        }
        // The wish is visible before the ring is looked at, as the device looks the other way round.
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks for no calls, as a polling driver does.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn disarm_call(&mut self) -> Result<(), Error> {
        match (&mut self.driver, &View::of(&self.memory)?) {
            (Driver::Split(driver), View::Split(view)) => driver.disarm_call(view),
            (Driver::Packed(driver), View::Packed(view)) => driver.disarm_call(view),
            _ => return Err(OTHER_FORMAT),
        }
        Ok(())
    }

    pub(crate) fn call_epoll(&self) -> &Epoll {
        &self.notifier.call_epoll
    }

    /// Whether chains came back that were not handed out yet.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn has_used(&self) -> Result<bool, Error> {
        match (&self.driver, &View::of(&self.memory)?) {
            (Driver::Split(driver), View::Split(view)) => Ok(driver.has_used(view)),
            (Driver::Packed(driver), View::Packed(view)) => driver.has_used(view),
            _ => Err(OTHER_FORMAT),
        }
    }

    /// Checks that the device wrote no descriptor of a packed ring that was not its to write. Only sure while nothing is on its way.
    ///
    /// # Errors
    /// [`DeviceFault::DescriptorOverwritten`].
    pub fn verify_untouched(&self) -> Result<(), Error> {
        let (Driver::Packed(driver), View::Packed(view)) = (&self.driver, &View::of(&self.memory)?)
        else {
            return Ok(());
        };
        if driver.has_used(view)? {
            return Ok(());
        }
        match driver.find_overwritten(view)? {
            None => Ok(()),
            Some(Overwritten {
                slot,
                expected,
                found,
            }) => Err(DeviceFault::DescriptorOverwritten {
                ring: self.index,
                slot,
                found,
                expected,
            }
            .into()),
        }
    }

    /// Takes what the call eventfd holds; true if it was signalled.
    pub fn take_call(&mut self) -> bool {
        self.notifier.take_call()
    }

    /// The ring base of an empty ring: 0, or both wrap counters.
    pub fn start_base(&self) -> u32 {
        match self.format() {
            Format::Split => 0,
            Format::Packed => packed_base(Position::START, Position::START),
        }
    }

    /// The ring base of a device that has read all that was published, and used what the ring shows as used.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn avail_base(&self) -> Result<u32, Error> {
        match (&self.driver, &View::of(&self.memory)?) {
            (Driver::Split(driver), _) => Ok(driver.avail_index().into()),
            (Driver::Packed(driver), View::Packed(view)) => {
                Ok(packed_base(driver.published(), driver.device_used(view)?))
            }
            _ => Err(OTHER_FORMAT),
        }
    }

    /// The ring base of a device that has used what the ring shows as used, and read nothing more. A VMM sees it in a split ring, as the
    /// used index; in a packed ring only the driver knows.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn used_base(&self) -> Result<u32, Error> {
        match (&self.driver, &View::of(&self.memory)?) {
            (Driver::Split(_), View::Split(view)) => Ok(view.load_used_index().into()),
            (Driver::Packed(driver), View::Packed(view)) => {
                let used = driver.device_used(view)?;
                Ok(packed_base(used, used))
            }
            _ => Err(OTHER_FORMAT),
        }
    }
}
