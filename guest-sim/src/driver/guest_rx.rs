//! What the guest receives: buffers into a guest-rx ring, frames out of it.
//!
//! Called by tests and benches on the thread that owns the queue pair. Keeps true: every frame handed out obeyed the rules of VIRTIO 1.3
//! §5.1.6.4 for the acked features; with [`Canaries::On`], nothing was written outside what the used elements say.

use std::time::Duration;

use super::arena::{Arena, Slot};
use super::wait::{Patience, Waiting, wait_for_used};
use crate::error::{DeviceFault, Error};
use crate::features::Features;
use crate::frame::{Frame, VnetHeader};
use crate::memory::{GuestMemory, fill};
use crate::nic::options::{Canaries, NicOptions, Refill};
use crate::ring::{Completion, DescriptorTable, Direction, Segment, Virtqueue};

/// What a posted buffer is filled with, so that a stray write shows.
const CANARY: u8 = 0xa7;
/// Bytes behind each buffer that belong to nobody.
const GUARD_BYTES: usize = 64;

/// One guest-rx ring with its driver.
#[derive(Debug)]
pub struct GuestRx {
    ring: Virtqueue,
    arena: Arena,
    table: DescriptorTable,
    acked: Features,
    waiting: Waiting,
    canaries: Canaries,
    refill: Refill,
    buffers: u16,
    /// Offset in the slot and length of each piece of a buffer.
    pieces: Vec<(usize, u32)>,
    writable: u32,
    slot_bytes: usize,
    /// Which slots are with the device, and how many.
    posted: Vec<bool>,
    posted_count: usize,
    segments: Vec<Segment>,
}

impl GuestRx {
    pub(crate) fn new(
        index: u16,
        memory: &GuestMemory,
        options: &NicOptions,
        acked: Features,
    ) -> Result<Self, Error> {
        let size = options.guest_rx_ring_size;
        let mut guest_rx = Self {
            ring: Virtqueue::new(index, memory, options.ring_place(), size, acked)?,
            arena: Arena::new(memory, &options.buffer_regions),
            table: options.guest_rx_table,
            acked,
            waiting: options.waiting,
            canaries: options.canaries,
            refill: options.refill,
            buffers: options.guest_rx_buffers,
            pieces: Vec::new(),
            writable: 0,
            slot_bytes: 0,
            posted: Vec::new(),
            posted_count: 0,
            segments: Vec::new(),
        };
        guest_rx.cut(options);
        guest_rx.decline_calls()?;
        Ok(guest_rx)
    }

    fn decline_calls(&mut self) -> Result<(), Error> {
        match self.waiting {
            Waiting::BusyPoll => self.ring.disarm_call(),
            Waiting::Calls => Ok(()),
        }
    }

    fn cut(&mut self, options: &NicOptions) {
        let layout = options.guest_rx_layout(self.acked);
        self.writable = options.guest_rx_buffer_bytes(self.acked);
        let mut lengths = Vec::new();
        layout.cut(
            self.acked.vnet_header_bytes(),
            self.writable as usize,
            &mut lengths,
        );
        self.pieces.clear();
        let mut at = 0;
        for len in lengths {
            self.pieces.push((at, len));
            at += len as usize + layout.gap_bytes();
        }
        self.slot_bytes = at
            + if self.canaries == Canaries::On {
                GUARD_BYTES
            } else {
                0
            };
    }

    /// The ring below.
    pub fn ring(&self) -> &Virtqueue {
        &self.ring
    }

    /// The ring below, to add chains of one's own.
    pub fn ring_mut(&mut self) -> &mut Virtqueue {
        &mut self.ring
    }

    /// Takes buffers from these regions only, from now on: after memory was plugged in, or before it is unplugged. Those with the device
    /// stay where they are.
    pub fn use_regions(&mut self, regions: &[usize]) {
        self.arena.use_regions(regions);
    }

    /// Posts buffers until the ring, or the number the options allow, is full, and publishes them; the answer is how many were posted.
    ///
    /// # Errors
    /// When guest memory has no room, or the kick eventfd cannot be written.
    pub fn refill(&mut self) -> Result<usize, Error> {
        self.post(usize::MAX)
    }

    /// Posts at most `count` buffers and publishes them; the answer is how many were posted.
    ///
    /// # Errors
    /// When guest memory has no room, or the kick eventfd cannot be written.
    pub fn post(&mut self, count: usize) -> Result<usize, Error> {
        let mut done = 0;
        while done < count && self.posted_count < usize::from(self.buffers) {
            let slot = self.arena.take(self.slot_bytes)?;
            if self.canaries == Canaries::On {
                fill(&self.arena.slice(slot, 0, self.slot_bytes)?, CANARY);
            }
            let address = self.arena.address(slot);
            self.segments.clear();
            self.segments
                .extend(self.pieces.iter().map(|&(at, len)| Segment {
                    address: address + at as u64,
                    len,
                    direction: Direction::DeviceWrites,
                }));
            match self.ring.add(&self.segments, self.table, slot) {
                Ok(()) => self.mark_posted(slot),
                Err(error) => {
                    self.arena.give_back(slot);
                    match error {
                        Error::RingFull => break,
                        other => return Err(other),
                    }
                }
            }
            done += 1;
        }
        self.ring.publish()?;
        Ok(done)
    }

    /// Buffers with the device.
    pub fn posted(&self) -> usize {
        self.posted_count
    }

    fn mark_posted(&mut self, slot: Slot) {
        let at = slot as usize;
        if self.posted.len() <= at {
            self.posted.resize(at + 1, false);
        }
        self.posted[at] = true;
        self.posted_count += 1;
    }

    /// The next frame, if one has arrived.
    ///
    /// # Errors
    /// [`Error::Device`] when the device broke a rule.
    pub fn try_receive(&mut self) -> Result<Option<Frame>, Error> {
        let Some(first) = self.ring.pop_used()? else {
            return Ok(None);
        };
        let frame = self.collect(first)?;
        if self.refill == Refill::Automatic
            && self.posted_count * 4 <= usize::from(self.buffers) * 3
        {
            self.refill()?;
        }
        Ok(Some(frame))
    }

    /// The next frame, or `None` when nothing arrives within `within`.
    ///
    /// # Errors
    /// [`Error::Device`] when the device broke a rule.
    pub fn receive(&mut self, within: Duration) -> Result<Option<Frame>, Error> {
        let patience = Patience::of(within);
        loop {
            if let Some(frame) = self.try_receive()? {
                return Ok(Some(frame));
            }
            if !wait_for_used(&mut self.ring, self.waiting, patience)? {
                return Ok(None);
            }
        }
    }

    /// The next `count` frames.
    ///
    /// # Errors
    /// [`Error::Timeout`] when fewer arrive; [`Error::Device`] when the device broke a rule.
    pub fn receive_count(&mut self, count: usize, within: Duration) -> Result<Vec<Frame>, Error> {
        let patience = Patience::of(within);
        let mut frames = Vec::with_capacity(count);
        while frames.len() < count {
            match self.receive(patience.left())? {
                Some(frame) => frames.push(frame),
                None => return Err(patience.timeout("frames on a guest-rx ring")),
            }
        }
        Ok(frames)
    }

    /// Checks that no byte of a posted buffer changed that the device has not reported (with [`Canaries::On`]), and no descriptor that it
    /// has not used. Only sure while no frame is on its way.
    ///
    /// # Errors
    /// [`DeviceFault::MemoryOverwritten`], [`DeviceFault::DescriptorOverwritten`].
    pub fn verify_untouched(&self) -> Result<(), Error> {
        self.ring.verify_untouched()?;
        if self.canaries == Canaries::On && !self.ring.has_used()? {
            for (slot, _) in (0..).zip(&self.posted).filter(|&(_, &posted)| posted) {
                self.check_canary(slot, 0)?;
            }
        }
        Ok(())
    }

    /// Goes on in memory that took the place of this one's and has the same bytes.
    pub(crate) fn move_to(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        self.ring.move_to(memory)?;
        self.arena.move_to_memory(memory)?;
        Ok(())
    }

    /// An empty ring again, after a device reset; buffers with the device are forgotten.
    pub(crate) fn reset(
        &mut self,
        memory: &GuestMemory,
        options: &NicOptions,
        acked: Features,
    ) -> Result<(), Error> {
        self.ring.reset(acked);
        self.arena = Arena::new(memory, &options.buffer_regions);
        self.acked = acked;
        self.posted.clear();
        self.posted_count = 0;
        self.cut(options);
        self.decline_calls()
    }

    fn collect(&mut self, first: Completion) -> Result<Frame, Error> {
        let (ring, header_bytes) = (self.ring.index(), self.acked.vnet_header_bytes());
        if (first.written as usize) < header_bytes {
            let fault = DeviceFault::ShorterThanHeader {
                ring,
                written: first.written,
                header: header_bytes,
            };
            return Err(fault.into());
        }
        let mut bytes = Vec::with_capacity(first.written as usize);
        self.take_buffer(first, &mut bytes)?;
        let header = VnetHeader::from_bytes(&bytes[..header_bytes]);
        self.collect_rest(header, first, &mut bytes)?;
        bytes.drain(..header_bytes);
        header
            .check_received(self.acked, bytes.len())
            .map_err(|why| DeviceFault::IllegalHeader {
                ring,
                why,
                flags: header.flags,
                gso_type: header.gso_type,
            })?;
        Ok(Frame { header, bytes })
    }

    /// The other buffers of a merged frame (VIRTIO 1.3 §5.1.6.4.1: all of them are used together, and all but the last are full).
    fn collect_rest(
        &mut self,
        header: VnetHeader,
        first: Completion,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let (ring, num_buffers) = (self.ring.index(), header.num_buffers);
        let wrong = |why| {
            Error::from(DeviceFault::NumBuffers {
                ring,
                num_buffers,
                why,
            })
        };
        if num_buffers == 0 {
            return Err(wrong(
                "it counts the buffer it stands in, so it is at least 1",
            ));
        }
        if num_buffers > 1 && !self.acked.contains(Features::MRG_RXBUF) {
            return Err(wrong("it must be 1 without MRG_RXBUF"));
        }
        let mut previous = first;
        for part in 1..num_buffers {
            if previous.written != previous.writable {
                let (written, room) = (previous.written, previous.writable);
                return Err(DeviceFault::PartNotFull {
                    ring,
                    part: part - 1,
                    num_buffers,
                    written,
                    room,
                }
                .into());
            }
            previous = self
                .ring
                .pop_used()?
                .ok_or_else(|| wrong("fewer buffers than that were used together"))?;
            self.take_buffer(previous, bytes)?;
        }
        Ok(())
    }

    fn take_buffer(&mut self, completion: Completion, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let slot = completion.token;
        let mut left = completion.written as usize;
        for &(at, len) in &self.pieces {
            let step = left.min(len as usize);
            let end = bytes.len();
            bytes.resize(end + step, 0);
            self.arena.slice(slot, at, step)?.copy_to(&mut bytes[end..]);
            left -= step;
        }
        if self.canaries == Canaries::On {
            self.check_canary(slot, completion.written as usize)?;
        }
        self.posted[slot as usize] = false;
        self.posted_count -= 1;
        self.arena.give_back(slot);
        Ok(())
    }

    /// Everything in the slot but the first `written` bytes of its pieces is as it was.
    fn check_canary(&self, slot: Slot, written: usize) -> Result<(), Error> {
        let mut copy = vec![0; self.slot_bytes];
        self.arena
            .slice(slot, 0, self.slot_bytes)?
            .copy_to(&mut copy);
        let mut left = written;
        for &(at, len) in &self.pieces {
            let step = left.min(len as usize);
            copy[at..at + step].fill(CANARY);
            left -= step;
        }
        match copy.iter().position(|&byte| byte != CANARY) {
            None => Ok(()),
            Some(at) => Err(DeviceFault::MemoryOverwritten {
                ring: self.ring.index(),
                address: self.arena.address(slot) + at as u64,
                found: copy[at],
                expected: CANARY,
                what: "a receive buffer outside what the used element says",
            }
            .into()),
        }
    }
}
