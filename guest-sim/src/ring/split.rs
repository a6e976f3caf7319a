//! The driver's bookkeeping of one split virtqueue: which descriptors are free, which chains are with the device, what came back, and who
//! wants to be notified.
//!
//! Called by `guest_tx`, `guest_rx` and `bounce`, on the driver's thread. Keeps true: what the driver does is legal (VIRTIO 1.3 §2.7), with
//! IN_ORDER too; nothing the device writes is believed before it has been checked, and a broken rule is a [`DeviceFault`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::event::EventfdFlags;
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::EventFd;

use super::layout::{DESCRIPTOR_BYTES, RingMemory};
use super::raw::{self, Descriptor, RawRing};
use super::view::View;
use crate::driver::wait::watch;
use crate::error::{DeviceFault, Doing, Error};
use crate::features::Features;
use crate::memory::{Block, GuestMemory};

/// Who may do what with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads it.
    DeviceReads,
    /// The device writes it.
    DeviceWrites,
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Who may do what.
    pub direction: Direction,
}

/// Where a chain's descriptors are put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DescriptorTable {
    /// In the ring's own table.
    #[default]
    Direct,
    /// In a table of its own, one descriptor of the ring pointing at it. Needs INDIRECT_DESC.
    Indirect,
    /// Like `Direct`, except for chains of more than one descriptor.
    IndirectWhenMany,
}

/// A chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// What the caller gave with the chain.
    pub token: u32,
    /// Bytes the device says it wrote. For a chain that IN_ORDER skipped: all of its writable bytes (VIRTIO 1.3 §2.7.9).
    pub written: u32,
    /// The chain's writable bytes.
    pub writable: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    descriptors: u16,
    writable: u32,
    token: u32,
    outstanding: bool,
}

/// With EVENT_IDX, declining calls lasts for 65,535 chains: it is said again well before.
const DECLINE_AGAIN: u16 = 1 << 14;

/// Notifications of one ring, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotificationCounts {
    /// Times the driver published and the device had asked to be told.
    pub kicks: u64,
    /// Times the driver published and the device had asked not to be told.
    pub kicks_suppressed: u64,
    /// Times the call eventfd was found signalled.
    pub calls: u64,
}

/// One virtqueue as its driver sees it.
#[derive(Debug)]
pub struct SplitRing {
    index: u16,
    memory: Arc<RingMemory>,
    guest_memory: GuestMemory,
    table_region: usize,
    event_idx: bool,
    in_order: bool,
    chains: Vec<Chain>,
    /// Successor of each descriptor in its chain or in the free list: the driver's own copy.
    next: Vec<u16>,
    free_head: u16,
    free_count: u16,
    /// Heads in the order they were made available; kept with IN_ORDER only.
    order: VecDeque<u16>,
    /// The head that ends the IN_ORDER batch being handed out, and its length.
    batch_end: Option<(u16, u32)>,
    tables: Vec<Option<Block>>,
    avail_next: u16,
    avail_published: u16,
    used_next: u16,
    used_seen: u16,
    /// The used index when calls were last declined; `None` while they are wanted.
    declined_at: Option<u16>,
    kick: EventFd,
    call: EventFd,
    call_epoll: Epoll,
    counts: NotificationCounts,
}

impl SplitRing {
    pub(crate) fn new(
        index: u16,
        guest_memory: &GuestMemory,
        region: usize,
        size: u16,
        features: Features,
    ) -> Result<Self, Error> {
        let eventfd =
            || EventFd::new(EventfdFlags::NONBLOCK.bits() as i32).doing("creating an eventfd");
        let call = eventfd()?;
        let mut ring = Self {
            index,
            memory: Arc::new(RingMemory::new(guest_memory, region, size)?),
            guest_memory: guest_memory.clone(),
            table_region: region,
            event_idx: features.contains(Features::EVENT_IDX),
            in_order: features.contains(Features::IN_ORDER),
            chains: vec![Chain::default(); usize::from(size)],
            next: vec![0; usize::from(size)],
            free_head: 0,
            free_count: size,
            order: VecDeque::with_capacity(usize::from(size)),
            batch_end: None,
            tables: Vec::new(),
            avail_next: 0,
            avail_published: 0,
            used_next: 0,
            used_seen: 0,
            declined_at: None,
            kick: eventfd()?,
            call_epoll: watch(&call)?,
            call,
            counts: NotificationCounts::default(),
        };
        ring.tables.resize_with(usize::from(size), || None);
        ring.forget();
        Ok(ring)
    }

    /// Which ring of the device: even for guest-rx, odd for guest-tx.
    pub fn index(&self) -> u16 {
        self.index
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
        &self.kick
    }

    /// The eventfd the device signals.
    pub fn call_eventfd(&self) -> &EventFd {
        &self.call
    }

    /// Descriptors not in use.
    pub fn free_descriptors(&self) -> u16 {
        self.free_count
    }

    /// Chains published and not come back.
    pub fn outstanding(&self) -> u16 {
        self.avail_published.wrapping_sub(self.used_next)
    }

    /// The available index as last published: what Cloud Hypervisor puts into SET_VRING_BASE.
    pub fn avail_index(&self) -> u16 {
        self.avail_published
    }

    /// Notifications so far.
    pub fn notification_counts(&self) -> NotificationCounts {
        self.counts
    }

    /// Unchecked access to the same ring.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn raw(&self) -> Result<RawRing, Error> {
        RawRing::new(self.memory.clone(), &self.kick)
    }

    /// Back to an empty ring at index 0: what a driver does after a device reset.
    pub(crate) fn reset(&mut self, features: Features) {
        self.event_idx = features.contains(Features::EVENT_IDX);
        self.in_order = features.contains(Features::IN_ORDER);
        self.memory.clear();
        self.forget();
        drain(&self.kick);
        drain(&self.call);
    }

    fn forget(&mut self) {
        let size = self.size();
        self.chains.fill(Chain::default());
        for (next, at) in self.next.iter_mut().zip(1..) {
            *next = if at == size { 0 } else { at };
        }
        self.free_head = 0;
        self.free_count = size;
        self.order.clear();
        self.batch_end = None;
        (self.avail_next, self.avail_published) = (0, 0);
        (self.used_next, self.used_seen) = (0, 0);
        self.declined_at = None;
    }

    pub(crate) fn view(&self) -> Result<View<'_>, Error> {
        View::of(&self.memory)
    }

    /// Puts a chain into the next slot of the available ring, unpublished. `token` comes back with it.
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
        let view = View::of(&memory)?;
        self.add_with(&view, segments, table, token)
    }

    pub(crate) fn add_with(
        &mut self,
        view: &View<'_>,
        segments: &[Segment],
        table: DescriptorTable,
        token: u32,
    ) -> Result<(), Error> {
        let indirect = match table {
            DescriptorTable::Direct => false,
            DescriptorTable::Indirect => true,
            DescriptorTable::IndirectWhenMany => segments.len() > 1,
        };
        // VIRTIO 1.3 §2.7.5.3.1: no chain is longer than the queue size, indirect or not.
        if segments.is_empty() || segments.len() > usize::from(self.size()) {
            let bytes = segments.iter().map(|segment| segment.len as usize).sum();
            return Err(Error::ChainTooLong {
                bytes,
                descriptors: segments.len(),
                ring_size: self.size(),
            });
        }
        let needed = if indirect { 1 } else { segments.len() as u16 };
        if self.free_count < needed {
            return Err(Error::RingFull);
        }
        let head = self.free_head;
        if indirect {
            let address = self.fill_table(head, segments)?;
            let len = (segments.len() * DESCRIPTOR_BYTES) as u32;
            let descriptor = Descriptor {
                address,
                len,
                flags: raw::INDIRECT,
                next: 0,
            };
            view.set_descriptor(head, address, descriptor.word());
            self.free_head = self.next[usize::from(head)];
        } else {
            self.fill_direct(view, segments);
        }
        self.free_count -= needed;
        let writable = segments
            .iter()
            .filter(|s| s.direction == Direction::DeviceWrites)
            .map(|s| s.len)
            .sum();
        self.chains[usize::from(head)] = Chain {
            descriptors: needed,
            writable,
            token,
            outstanding: true,
        };
        if self.in_order {
            self.order.push_back(head);
        }
        view.set_avail_entry(view.slot(self.avail_next), head);
        self.avail_next = self.avail_next.wrapping_add(1);
        Ok(())
    }

    fn fill_direct(&mut self, view: &View<'_>, segments: &[Segment]) {
        let last = segments.len() - 1;
        let mut at = self.free_head;
        for (position, segment) in segments.iter().enumerate() {
            // With IN_ORDER the free list is the table's own order, so `next` is x+1, or 0 at the end (VIRTIO 1.3 §2.7.9).
            let next = self.next[usize::from(at)];
            let chained = if position < last { raw::NEXT } else { 0 };
            let descriptor = Descriptor {
                address: segment.address,
                len: segment.len,
                flags: chained | direction_flag(segment.direction),
                next: if position < last { next } else { 0 },
            };
            view.set_descriptor(at, segment.address, descriptor.word());
            at = next;
        }
        self.free_head = at;
    }

    fn fill_table(&mut self, head: u16, segments: &[Segment]) -> Result<u64, Error> {
        let bytes = segments.len() * DESCRIPTOR_BYTES;
        let slot = &mut self.tables[usize::from(head)];
        let table = match slot {
            Some(table) if table.len() >= bytes => table,
            _ => {
                let room = bytes.next_power_of_two().max(256);
                slot.insert(self.guest_memory.allocate(self.table_region, room, 16)?)
            }
        };
        let last = segments.len() - 1;
        for (position, segment) in segments.iter().enumerate() {
            let more = position < last;
            let descriptor = Descriptor {
                address: segment.address,
                len: segment.len,
                flags: if more { raw::NEXT } else { 0 } | direction_flag(segment.direction),
                next: if more { position as u16 + 1 } else { 0 },
            };
            table
                .slice(position * DESCRIPTOR_BYTES, DESCRIPTOR_BYTES)?
                .copy_from(&descriptor.to_bytes());
        }
        Ok(table.guest_address())
    }

    /// Makes everything that was added visible to the device, and kicks if it asked for that.
    ///
    /// # Errors
    /// When the kick eventfd cannot be written.
    pub fn publish(&mut self) -> Result<(), Error> {
        let memory = self.memory.clone();
        let view = View::of(&memory)?;
        self.publish_with(&view)
    }

    pub(crate) fn publish_with(&mut self, view: &View<'_>) -> Result<(), Error> {
        let (old, new) = (self.avail_published, self.avail_next);
        if old == new {
            return Ok(());
        }
        view.avail_index.store(new, Ordering::Release);
        self.avail_published = new;
        // VIRTIO 1.3 §2.7.13.4.1: the index is visible before the device's wish is read.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            crossed(view.avail_event.load(Ordering::Relaxed), new, old)
        } else {
            view.used_flags.load(Ordering::Relaxed) & 1 == 0
        };
        if wanted {
            self.counts.kicks += 1;
            self.kick.write(1).doing("kicking")
        } else {
            self.counts.kicks_suppressed += 1;
            Ok(())
        }
    }

    /// The next chain that came back, if any.
    ///
    /// # Errors
    /// [`Error::Device`] when the device broke a rule.
    pub fn pop_used(&mut self) -> Result<Option<Completion>, Error> {
        let memory = self.memory.clone();
        let view = View::of(&memory)?;
        self.pop_used_with(&view)
    }

    pub(crate) fn pop_used_with(&mut self, view: &View<'_>) -> Result<Option<Completion>, Error> {
        if self.used_next == self.used_seen {
            let used = view.load_used_index();
            let outstanding = self.outstanding();
            if used.wrapping_sub(self.used_next) > outstanding {
                let seen = self.used_next;
                return Err(DeviceFault::UsedIndexAhead {
                    ring: self.index,
                    used,
                    seen,
                    outstanding,
                }
                .into());
            }
            self.used_seen = used;
            if used == self.used_next {
                return Ok(None);
            }
        }
        let (head, len) = self.next_used(view)?;
        let chain = self.chains[usize::from(head)];
        let written = len.unwrap_or(chain.writable);
        if written > chain.writable {
            let writable = chain.writable;
            return Err(DeviceFault::WrittenTooLong {
                ring: self.index,
                id: head,
                written,
                writable,
            }
            .into());
        }
        self.release(head, chain.descriptors);
        self.used_next = self.used_next.wrapping_add(1);
        if let Some(at) = self.declined_at
            && self.used_next.wrapping_sub(at) >= DECLINE_AGAIN
        {
            self.disarm_call_with(view);
        }
        Ok(Some(Completion {
            token: chain.token,
            written,
            writable: chain.writable,
        }))
    }

    /// Head of the next used chain, and its length unless IN_ORDER skipped its element.
    fn next_used(&mut self, view: &View<'_>) -> Result<(u16, Option<u32>), DeviceFault> {
        if let Some((end, len)) = self.batch_end {
            return Ok(self.next_of_batch(end, len));
        }
        let slot = view.slot(self.used_next);
        let (id, len) = view.used_entry(slot);
        let known = u16::try_from(id)
            .ok()
            .filter(|&id| id < self.size() && self.chains[usize::from(id)].outstanding);
        let Some(head) = known else {
            return Err(DeviceFault::UnknownUsedId {
                ring: self.index,
                slot,
                id,
            });
        };
        if !self.in_order {
            return Ok((head, Some(len)));
        }
        // VIRTIO 1.3 §2.7.9: one element may stand for a batch; it names the batch's last chain, and the index moves by its length.
        let waiting = self.used_seen.wrapping_sub(self.used_next);
        if !self
            .order
            .iter()
            .take(usize::from(waiting))
            .any(|&other| other == head)
        {
            return Err(DeviceFault::OutOfOrder {
                ring: self.index,
                slot,
                id,
            });
        }
        Ok(self.next_of_batch(head, len))
    }

    fn next_of_batch(&mut self, end: u16, len: u32) -> (u16, Option<u32>) {
        let head = self.order.pop_front().unwrap_or(end);
        if head == end {
            self.batch_end = None;
            (head, Some(len))
        } else {
            self.batch_end = Some((end, len));
            (head, None)
        }
    }

    fn release(&mut self, head: u16, descriptors: u16) {
        self.chains[usize::from(head)].outstanding = false;
        if !self.in_order {
            let mut last = head;
            for _ in 1..descriptors {
                last = self.next[usize::from(last)];
            }
            self.next[usize::from(last)] = self.free_head;
            self.free_head = head;
        }
        // With IN_ORDER the free descriptors are always the run from `free_head` on: nothing to link.
        self.free_count += descriptors;
    }

    /// Asks for a call on the next used chain. True if some came back meanwhile: then look before waiting.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn arm_call(&mut self) -> Result<bool, Error> {
        self.declined_at = None;
        let view = self.view()?;
        if self.event_idx {
            view.used_event.store(self.used_next, Ordering::Release);
        } else {
            view.avail_flags.store(0, Ordering::Release);
        }
        fence(Ordering::SeqCst);
        Ok(view.load_used_index() != self.used_next)
    }

    /// Asks for no calls, as a polling driver does.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn disarm_call(&mut self) -> Result<(), Error> {
        let memory = self.memory.clone();
        self.disarm_call_with(&View::of(&memory)?);
        Ok(())
    }

    fn disarm_call_with(&mut self, view: &View<'_>) {
        self.declined_at = Some(self.used_next);
        if self.event_idx {
            // VIRTIO 1.3 §2.7.7.1: flags stay 0 with EVENT_IDX; an index just passed will not be crossed for 65,535 more.
            view.used_event
                .store(self.used_next.wrapping_sub(1), Ordering::Release);
        } else {
            view.avail_flags.store(1, Ordering::Release);
        }
    }

    pub(crate) fn call_epoll(&self) -> &Epoll {
        &self.call_epoll
    }

    /// Whether chains came back that were not handed out yet.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn has_used(&self) -> Result<bool, Error> {
        Ok(self.view()?.load_used_index() != self.used_next)
    }

    /// Takes what the call eventfd holds; true if it was signalled.
    pub fn take_call(&mut self) -> bool {
        let signalled = drain(&self.call);
        if signalled {
            self.counts.calls += 1;
        }
        signalled
    }

    /// The used index in memory: what a VMM puts into SET_VRING_BASE after its back-end died.
    ///
    /// # Errors
    /// When the ring's memory is gone.
    pub fn used_index(&self) -> Result<u16, Error> {
        Ok(self.view()?.load_used_index())
    }
}

fn direction_flag(direction: Direction) -> u16 {
    match direction {
        Direction::DeviceReads => 0,
        Direction::DeviceWrites => raw::WRITE,
    }
}

/// Whether moving from `old` to `new` passes `event` (VIRTIO 1.3 §2.7.13.4.1).
fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn drain(eventfd: &EventFd) -> bool {
    eventfd.read().is_ok()
}
