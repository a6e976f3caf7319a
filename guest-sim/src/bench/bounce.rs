//! Guests that send every frame back to where it came from, touching only its headers, as a forwarding guest does.
//!
//! Driven by benches on one thread, any number of NICs in turn. Keeps true: a frame's bytes never leave the buffers it arrived in: the
//! receive buffers become the transmit chain. Nothing is allocated once it runs. The device's used elements are checked, its payload is not.

use std::sync::atomic::{Ordering, fence};

use vm_memory::VolatileMemory;

use super::flows::{FLOW_BYTES, Flows};
use crate::error::{DeviceFault, Error};
use crate::features::Features;
use crate::frame::Frame;
use crate::memory::{Block, GuestMemory, Slice};
use crate::nic::Nic;
use crate::ring::view::View;
use crate::ring::{Completion, DescriptorTable, Direction, Segment, Virtqueue};

/// Frames handled per ring before the next ring's turn, unless told otherwise.
const BATCH: usize = 64;
/// Receive buffers are posted when this many, or a quarter of the ring, are missing.
const REFILL: u16 = 32;
/// End of a frame's list of buffers, and of the list of free ones.
const NONE: u32 = u32::MAX;
/// Most buffers one frame is spread over.
const MOST_BUFFERS: usize = 64;

/// What a bouncing guest has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames received.
    pub frames: u64,
    /// Their bytes, without headers.
    pub bytes: u64,
}

/// One NIC's worth of buffers, bouncing on its first queue pair.
#[derive(Debug)]
pub struct Bounce {
    block: Block,
    buffer_bytes: usize,
    header_bytes: usize,
    /// The buffer that follows in the same frame, or in the free list.
    next: Vec<u32>,
    free: u32,
    counts: Counts,
    batch: usize,
    flows: Flows,
}

impl Bounce {
    /// Buffers of `buffer_bytes` each: enough to fill the guest-rx ring while `in_flight` frames of `frame_bytes` are on their way back.
    /// `nic` must not have posted buffers of its own ([`Refill::Manual`](crate::Refill::Manual)).
    ///
    /// # Errors
    /// When guest memory has no room, or a frame would need more buffers than a ring can hold.
    pub fn new(
        memory: &GuestMemory,
        nic: &mut Nic,
        buffer_bytes: usize,
        frame_bytes: usize,
        in_flight: usize,
    ) -> Result<Self, Error> {
        let header_bytes = nic.acked().vnet_header_bytes();
        let per_frame = (frame_bytes + header_bytes).div_ceil(buffer_bytes);
        let ring = usize::from(nic.options().guest_rx_ring_size);
        let mergeable = nic.acked().contains(Features::MRG_RXBUF);
        if per_frame > MOST_BUFFERS || per_frame * in_flight > ring || (per_frame > 1 && !mergeable)
        {
            return Err(Error::Options(
                "too many or too small buffers for frames of that size in flight",
            ));
        }
        let count = ring + per_frame * in_flight;
        let block = memory.allocate(nic.options().ring_region, count * buffer_bytes, 4096)?;
        let next = (1..=count as u32)
            .map(|next| if next == count as u32 { NONE } else { next })
            .collect();
        let mut bounce = Self {
            block,
            buffer_bytes,
            header_bytes,
            next,
            free: 0,
            counts: Counts::default(),
            batch: BATCH,
            flows: Flows::Kept,
        };
        let pair = nic.pair(0);
        pair.guest_tx.ring_mut().disarm_call()?;
        pair.guest_rx.ring_mut().disarm_call()?;
        let memory = pair.guest_rx.ring().memory().clone();
        bounce.fill(pair.guest_rx.ring_mut(), &View::of(&memory)?)?;
        Ok(bounce)
    }

    /// What has arrived so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Handles at most this many frames at a time from now on.
    pub fn set_batch(&mut self, frames: usize) {
        self.batch = frames.max(1);
    }

    /// Sends frames as these flows from now on. Frames must be of the kind that [`Flows`] are about.
    pub fn set_flows(&mut self, flows: Flows) {
        self.flows = flows;
    }

    /// Puts `count` copies of a frame on their way.
    ///
    /// # Errors
    /// When there are too few buffers.
    pub fn inject(&mut self, nic: &mut Nic, frame: &Frame, count: usize) -> Result<(), Error> {
        let mut image = frame.header.to_bytes()[..self.header_bytes].to_vec();
        image.extend_from_slice(&frame.bytes);
        let ring = nic.pair(0).guest_tx.ring_mut();
        for _ in 0..count {
            let mut segments = [NO_SEGMENT; MOST_BUFFERS];
            let (mut used, mut first, mut last) = (0, NONE, NONE);
            for piece in image.chunks(self.buffer_bytes) {
                let buffer = self.take().ok_or(Error::RingFull)?;
                self.block
                    .slice(self.offset(buffer), piece.len())?
                    .copy_from(piece);
                segments[used] = self.segment(buffer, piece.len() as u32, Direction::DeviceReads);
                used += 1;
                match last {
                    NONE => first = buffer,
                    previous => self.next[previous as usize] = buffer,
                }
                self.next[buffer as usize] = NONE;
                last = buffer;
            }
            ring.add(&segments[..used], DescriptorTable::Direct, first)?;
        }
        ring.publish()
    }

    /// One turn: takes back what was transmitted, sends back what was received, posts free buffers. The answer is the number of frames.
    ///
    /// # Errors
    /// [`Error::Device`] when the device broke a rule.
    pub fn turn(&mut self, nic: &mut Nic) -> Result<usize, Error> {
        let pair = nic.pair(0);
        let (guest_rx, guest_tx) = (pair.guest_rx.ring_mut(), pair.guest_tx.ring_mut());
        let (rx_memory, tx_memory) = (guest_rx.memory().clone(), guest_tx.memory().clone());
        let (rx_view, tx_view) = (View::of(&rx_memory)?, View::of(&tx_memory)?);
        self.reclaim(guest_tx, &tx_view)?;
        let mut frames = 0;
        while frames < self.batch {
            let Some(first) = guest_rx.pop_used_with(&rx_view)? else {
                break;
            };
            self.turn_round(guest_rx, &rx_view, first, |segments, token| {
                guest_tx.add_with(&tx_view, segments, DescriptorTable::Direct, token)
            })?;
            frames += 1;
        }
        guest_tx.publish_with(&tx_view)?;
        // A few at a time: each time costs the device a cache line.
        if guest_rx.free_descriptors() >= REFILL.min(guest_rx.size() / 4) {
            self.fill(guest_rx, &rx_view)?;
        }
        Ok(frames)
    }

    fn reclaim(&mut self, ring: &mut Virtqueue, view: &View<'_>) -> Result<(), Error> {
        for _ in 0..2 * BATCH {
            let Some(completion) = ring.pop_used_with(view)? else {
                break;
            };
            let mut buffer = completion.token;
            while buffer != NONE {
                let next = self.next[buffer as usize];
                self.next[buffer as usize] = self.free;
                self.free = buffer;
                buffer = next;
            }
        }
        Ok(())
    }

    /// Makes a received frame one to transmit.
    fn turn_round(
        &mut self,
        ring: &mut Virtqueue,
        view: &View<'_>,
        first: Completion,
        add: impl FnOnce(&[Segment], u32) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let header = self
            .block
            .slice(self.offset(first.token), self.header_bytes + 16)?;
        let buffers = swap_addresses(&header, self.header_bytes).ok_or(Error::RingFull)?;
        if !matches!(self.flows, Flows::Kept) {
            let at = self.offset(first.token) + self.header_bytes;
            self.flows.write(&self.block.slice(at, FLOW_BYTES)?)?;
        }
        let mut segments = [NO_SEGMENT; MOST_BUFFERS];
        segments[0] = self.segment(first.token, first.written, Direction::DeviceReads);
        let (mut last, mut bytes) = (first.token, u64::from(first.written));
        let count = usize::from(buffers).clamp(1, MOST_BUFFERS);
        for segment in &mut segments[1..count] {
            let why = "fewer buffers than that were used together";
            let fault = DeviceFault::NumBuffers {
                ring: ring.index(),
                num_buffers: buffers,
                why,
            };
            let more = ring.pop_used_with(view)?.ok_or(fault)?;
            *segment = self.segment(more.token, more.written, Direction::DeviceReads);
            self.next[last as usize] = more.token;
            last = more.token;
            bytes += u64::from(more.written);
        }
        self.next[last as usize] = NONE;
        self.counts.frames += 1;
        self.counts.bytes += bytes - self.header_bytes as u64;
        add(&segments[..count], first.token)
    }

    fn fill(&mut self, ring: &mut Virtqueue, view: &View<'_>) -> Result<(), Error> {
        while ring.free_descriptors() > 0 {
            let Some(buffer) = self.take() else { break };
            let segment = self.segment(buffer, self.buffer_bytes as u32, Direction::DeviceWrites);
            ring.add_with(view, &[segment], DescriptorTable::Direct, buffer)?;
        }
        ring.publish_with(view)
    }

    fn take(&mut self) -> Option<u32> {
        let buffer = self.free;
        if buffer == NONE {
            return None;
        }
        self.free = self.next[buffer as usize];
        Some(buffer)
    }

    fn offset(&self, buffer: u32) -> usize {
        buffer as usize * self.buffer_bytes
    }

    fn segment(&self, buffer: u32, len: u32, direction: Direction) -> Segment {
        Segment {
            address: self.block.guest_address() + self.offset(buffer) as u64,
            len,
            direction,
        }
    }
}

const NO_SEGMENT: Segment = Segment {
    address: 0,
    len: 0,
    direction: Direction::DeviceReads,
};

/// Swaps the MAC addresses and makes the header one to transmit (no DATA_VALID, no `num_buffers`); the answer is the received
/// `num_buffers`. `None` only if the slice is too short.
fn swap_addresses(bytes: &Slice<'_>, header_bytes: usize) -> Option<u16> {
    let flags = bytes.get_ref::<u8>(0).ok()?;
    flags.store(flags.load() & 1);
    let mut num_buffers = 1;
    if header_bytes == 12 {
        let word = bytes.get_ref::<u16>(10).ok()?;
        num_buffers = word.load();
        word.store(0);
    }
    // Bytes 0..6 are the destination, 6..12 the source.
    let low = bytes.get_ref::<u64>(header_bytes).ok()?;
    let high = bytes.get_ref::<u32>(header_bytes + 8).ok()?;
    let both = u128::from(low.load()) | u128::from(high.load()) << 64;
    let swapped = both >> 48 | (both & ((1 << 48) - 1)) << 48;
    low.store(swapped as u64);
    high.store((swapped >> 64) as u32);
    fence(Ordering::Release);
    Some(num_buffers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameBuilder;
    use crate::memory::GuestMemoryLayout;

    #[test]
    fn addresses_are_swapped_and_nothing_else() {
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(1 << 16)).unwrap();
        let block = memory.allocate(0, 256, 64).unwrap();
        let frame = FrameBuilder::udp4(50).build();
        let mut header = frame.header.to_bytes();
        header[0] = 2;
        header[10] = 3;
        block.slice(0, 12).unwrap().copy_from(&header);
        block
            .slice(12, frame.bytes.len())
            .unwrap()
            .copy_from(&frame.bytes);
        assert_eq!(swap_addresses(&block.slice(0, 28).unwrap(), 12), Some(3));
        let mut after = vec![0; 12 + frame.bytes.len()];
        block.slice(0, after.len()).unwrap().copy_to(&mut after);
        assert_eq!(after[..12], [0; 12]);
        assert_eq!(after[12..18], frame.bytes[6..12]);
        assert_eq!(after[18..24], frame.bytes[..6]);
        assert_eq!(after[24..], frame.bytes[12..]);
    }
}
