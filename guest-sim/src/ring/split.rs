//! The driver's bookkeeping of one split virtqueue: which descriptors are free, which chains are with the device, what came back.
//!
//! Called by `virtqueue`, on the driver's thread. Keeps true: what the driver does is legal (VIRTIO 1.3 §2.7), with IN_ORDER too; nothing
//! the device writes is believed before it has been checked, and a broken rule is a [`DeviceFault`].

use std::sync::atomic::{Ordering, fence};

use super::chain::{Chain, Completion, Segment, Used};
use super::raw::{Descriptor, INDIRECT, NEXT};
use super::split_view::SplitView;
use super::tables::Table;
use crate::error::DeviceFault;
use crate::features::Features;

/// With EVENT_IDX, declining calls lasts for 65,535 chains: it is said again well before.
const DECLINE_AGAIN: u16 = 1 << 14;

#[derive(Debug)]
pub(super) struct SplitDriver {
    ring: u16,
    size: u16,
    event_idx: bool,
    in_order: bool,
    /// By head.
    chains: Vec<Entry>,
    /// Successor of each descriptor in its chain or in the free list: the driver's own copy.
    next: Vec<u16>,
    free_head: u16,
    free_count: u16,
    /// With IN_ORDER heads go round as the ring does: the oldest with the device.
    oldest: u16,
    /// The head that ends the IN_ORDER batch being handed out, and its length.
    batch_end: Option<(u16, u32)>,
    avail_next: u16,
    avail_published: u16,
    used_next: u16,
    used_seen: u16,
    /// The used index when calls were last declined; `None` while they are wanted.
    declined_at: Option<u16>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    chain: Chain,
    /// Whether it is with the device.
    outstanding: bool,
    /// The available index it has.
    number: u16,
}

impl SplitDriver {
    pub fn new(ring: u16, size: u16, features: Features) -> Self {
        let entries = usize::from(size);
        let mut driver = Self {
            ring,
            size,
            event_idx: false,
            in_order: false,
            chains: vec![Entry::default(); entries],
            next: vec![0; entries],
            free_head: 0,
            free_count: size,
            oldest: 0,
            batch_end: None,
            avail_next: 0,
            avail_published: 0,
            used_next: 0,
            used_seen: 0,
            declined_at: None,
        };
        driver.reset(features);
        driver
    }

    /// An empty ring at index 0.
    pub fn reset(&mut self, features: Features) {
        self.event_idx = features.contains(Features::EVENT_IDX);
        self.in_order = features.contains(Features::IN_ORDER);
        self.chains.fill(Entry::default());
        for (next, at) in self.next.iter_mut().zip(1..) {
            *next = if at == self.size { 0 } else { at };
        }
        self.free_head = 0;
        self.free_count = self.size;
        self.oldest = 0;
        self.batch_end = None;
        (self.avail_next, self.avail_published) = (0, 0);
        (self.used_next, self.used_seen) = (0, 0);
        self.declined_at = None;
    }

    #[inline]
    pub fn free_descriptors(&self) -> u16 {
        self.free_count
    }

    /// Chains published and not come back.
    pub fn outstanding(&self) -> u16 {
        self.avail_published.wrapping_sub(self.used_next)
    }

    pub fn avail_index(&self) -> u16 {
        self.avail_published
    }

    /// The head of the chain added next.
    pub fn next_id(&self) -> u16 {
        self.free_head
    }

    /// Puts a chain, for which there is room, into the next slot of the available ring, unpublished.
    #[inline]
    pub fn place(&mut self, view: &SplitView<'_>, segments: &[Segment], token: u32) {
        let head = self.free_head;
        let last = segments.len() - 1;
        let mut chain = Chain {
            descriptors: segments.len() as u16,
            writable: 0,
            token,
        };
        let mut at = head;
        for (position, segment) in segments.iter().enumerate() {
            // With IN_ORDER the free list is the table's own order, so `next` is x+1, or 0 at the end (VIRTIO 1.3 §2.7.9).
            let next = self.next[usize::from(at)];
            let chained = if position < last { NEXT } else { 0 };
            let descriptor = Descriptor {
                address: segment.address,
                len: segment.len,
                flags: chained | segment.direction.flag(),
                next: if position < last { next } else { 0 },
            };
            view.set_descriptor(at, segment.address, descriptor.word());
            chain.writable += segment.writable();
            at = next;
        }
        self.free_head = at;
        self.make_available(view, head, chain);
    }

    /// The same for a chain in an indirect table.
    pub fn place_table(&mut self, view: &SplitView<'_>, table: Table, chain: Chain) {
        let head = self.free_head;
        let descriptor = Descriptor {
            address: table.address,
            len: table.len,
            flags: INDIRECT,
            next: 0,
        };
        view.set_descriptor(head, table.address, descriptor.word());
        self.free_head = self.next[usize::from(head)];
        self.make_available(view, head, chain);
    }

    // Always: otherwise `chain` passes through memory, written in parts and read as a whole, which stalls.
    #[inline(always)]
    fn make_available(&mut self, view: &SplitView<'_>, head: u16, chain: Chain) {
        self.free_count -= chain.descriptors;
        self.chains[usize::from(head)] = Entry {
            chain,
            outstanding: true,
            number: self.avail_next,
        };
        view.set_avail_entry(view.slot(self.avail_next), head);
        self.avail_next = self.avail_next.wrapping_add(1);
    }

    /// Makes everything that was added visible to the device: whether it wants a kick, or `None` when nothing was added.
    pub fn publish(&mut self, view: &SplitView<'_>) -> Option<bool> {
        let (old, new) = (self.avail_published, self.avail_next);
        if old == new {
            return None;
        }
        view.avail_index.store(new, Ordering::Release);
        self.avail_published = new;
        // VIRTIO 1.3 §2.7.13.4.1: the index is visible before the device's wish is read.
        fence(Ordering::SeqCst);
        Some(if self.event_idx {
            crossed(view.avail_event.load(Ordering::Relaxed), new, old)
        } else {
            view.used_flags.load(Ordering::Relaxed) & 1 == 0
        })
    }

    /// Takes back the next chain that came back, if any; one that breaks a rule stays with the device.
    #[inline]
    pub fn pop_used(&mut self, view: &SplitView<'_>) -> Result<Option<Completion>, DeviceFault> {
        let Some(used) = self.next_used(view)? else {
            return Ok(None);
        };
        let completion = used.completion(self.ring)?;
        self.release(view, &used);
        Ok(Some(completion))
    }

    #[inline]
    fn next_used(&mut self, view: &SplitView<'_>) -> Result<Option<Used>, DeviceFault> {
        if self.used_next == self.used_seen {
            let used = view.load_used_index();
            let outstanding = self.outstanding();
            if used.wrapping_sub(self.used_next) > outstanding {
                let seen = self.used_next;
                return Err(DeviceFault::UsedIndexAhead {
                    ring: self.ring,
                    used,
                    seen,
                    outstanding,
                });
            }
            self.used_seen = used;
            if used == self.used_next {
                return Ok(None);
            }
        }
        let (head, written) = self.read_used(view)?;
        Ok(Some(Used {
            id: head,
            written,
            chain: self.chains[usize::from(head)].chain,
        }))
    }

    /// Head of the next used chain, and its length unless IN_ORDER skipped its element.
    #[inline]
    fn read_used(&mut self, view: &SplitView<'_>) -> Result<(u16, Option<u32>), DeviceFault> {
        if let Some((end, len)) = self.batch_end {
            return Ok(self.next_of_batch(end, len));
        }
        let slot = view.slot(self.used_next);
        let (id, len) = view.used_entry(slot);
        let entry = self.chains.get(id as usize);
        let Some(entry) = entry.filter(|entry| entry.outstanding) else {
            return Err(DeviceFault::UnknownUsedId {
                ring: self.ring,
                slot,
                id,
            });
        };
        let head = id as u16;
        if !self.in_order {
            return Ok((head, Some(len)));
        }
        // VIRTIO 1.3 §2.7.9: one element may stand for a batch; it names the batch's last chain, and the index moves by its length.
        let waiting = self.used_seen.wrapping_sub(self.used_next);
        if entry.number.wrapping_sub(self.used_next) >= waiting {
            return Err(DeviceFault::OutOfOrder {
                ring: self.ring,
                slot,
                id,
            });
        }
        Ok(self.next_of_batch(head, len))
    }

    #[inline]
    fn next_of_batch(&mut self, end: u16, len: u32) -> (u16, Option<u32>) {
        let head = self.oldest;
        self.batch_end = (head != end).then_some((end, len));
        (head, (head == end).then_some(len))
    }

    /// Takes the chain back that [`Self::next_used`] named.
    #[inline]
    fn release(&mut self, view: &SplitView<'_>, used: &Used) {
        let (head, descriptors) = (used.id, used.chain.descriptors);
        self.chains[usize::from(head)].outstanding = false;
        if self.in_order {
            // The free descriptors are always the run from `free_head` on: nothing to link.
            self.oldest = view.slot(head.wrapping_add(descriptors));
        } else {
            let mut last = head;
            for _ in 1..descriptors {
                last = self.next[usize::from(last)];
            }
            self.next[usize::from(last)] = self.free_head;
            self.free_head = head;
        }
        self.free_count += descriptors;
        self.used_next = self.used_next.wrapping_add(1);
        if let Some(at) = self.declined_at
            && self.used_next.wrapping_sub(at) >= DECLINE_AGAIN
        {
            self.disarm_call(view);
        }
    }

    pub fn arm_call(&mut self, view: &SplitView<'_>) {
        self.declined_at = None;
        if self.event_idx {
            view.used_event.store(self.used_next, Ordering::Release);
        } else {
            view.avail_flags.store(0, Ordering::Release);
        }
    }

    pub fn disarm_call(&mut self, view: &SplitView<'_>) {
        self.declined_at = Some(self.used_next);
        if self.event_idx {
            // VIRTIO 1.3 §2.7.7.1: flags stay 0 with EVENT_IDX; an index just passed will not be crossed for 65,535 more.
            view.used_event
                .store(self.used_next.wrapping_sub(1), Ordering::Release);
        } else {
            view.avail_flags.store(1, Ordering::Release);
        }
    }

    pub fn has_used(&self, view: &SplitView<'_>) -> bool {
        view.load_used_index() != self.used_next
    }
}

/// Whether moving from `old` to `new` passes `event` (VIRTIO 1.3 §2.7.13.4.1).
fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
