//! Guests that only send or only receive, touching headers as they do: what fan-out, fan-in, flooding and pings are made of.
//!
//! Driven by benches on one thread, any number of NICs in turn. Keeps true: nothing is allocated once it runs; a source's frames keep their
//! order and take turns; the device's used elements are checked, its payload is not.

use std::collections::VecDeque;

use vm_memory::VolatileMemory;

use super::bounce::Counts;
use super::flows::{FLOW_BYTES, Flows};
use crate::error::{DeviceFault, Error};
use crate::features::Features;
use crate::frame::Frame;
use crate::memory::{Block, GuestMemory};
use crate::nic::Nic;
use crate::ring::view::View;
use crate::ring::{DescriptorTable, Direction, Segment};

/// Used chains taken back at a time.
const RECLAIM: usize = 256;
/// Receive buffers are posted again when this many came back, or a quarter of the ring.
const REFILL: usize = 32;

/// Sends copies of some frames, one after the other, on a NIC's first guest-tx ring.
#[derive(Debug)]
pub struct Source {
    block: Block,
    stride: usize,
    header_bytes: usize,
    /// Bytes of each buffer's frame, header included.
    lengths: Vec<u32>,
    free: VecDeque<u32>,
    served: Counts,
    flows: Flows,
}

impl Source {
    /// As many buffers as the ring has entries, holding `frames` in turn.
    ///
    /// # Errors
    /// When there are no frames, or guest memory has no room.
    pub fn new(memory: &GuestMemory, nic: &mut Nic, frames: &[Frame]) -> Result<Self, Error> {
        let header_bytes = nic.acked().vnet_header_bytes();
        let longest = frames.iter().map(|frame| frame.bytes.len()).max();
        let longest = longest.ok_or(Error::Options("a source needs a frame to send"))?;
        let stride = (header_bytes + longest).next_multiple_of(256);
        let count = usize::from(nic.options().guest_tx_ring_size);
        let block = memory.allocate(nic.options().ring_region, count * stride, 4096)?;
        let mut lengths = Vec::with_capacity(count);
        for (buffer, frame) in frames.iter().cycle().take(count).enumerate() {
            let header = frame.header.to_bytes();
            let at = buffer * stride;
            block
                .slice(at, header_bytes)?
                .copy_from(&header[..header_bytes]);
            block
                .slice(at + header_bytes, frame.bytes.len())?
                .copy_from(&frame.bytes);
            lengths.push((header_bytes + frame.bytes.len()) as u32);
        }
        nic.pair(0).guest_tx.ring_mut().disarm_call()?;
        Ok(Self {
            block,
            stride,
            header_bytes,
            lengths,
            free: (0..count as u32).collect(),
            served: Counts::default(),
            flows: Flows::Kept,
        })
    }

    /// What the device has taken so far.
    pub fn served(&self) -> Counts {
        self.served
    }

    /// Sends frames as these flows from now on. Frames must be of the kind that [`Flows`] are about.
    pub fn set_flows(&mut self, flows: Flows) {
        self.flows = flows;
    }

    /// One turn: takes back what the device is done with, sends at most `most` frames. The answer is how many were sent.
    ///
    /// # Errors
    /// [`Error::Device`] when the device broke a rule.
    pub fn turn(&mut self, nic: &mut Nic, most: usize) -> Result<usize, Error> {
        let ring = nic.pair(0).guest_tx.ring_mut();
        let ring_memory = ring.memory().clone();
        let view = View::of(&ring_memory)?;
        for _ in 0..RECLAIM {
            let Some(completion) = ring.pop_used_with(&view)? else {
                break;
            };
            let bytes = self.lengths[completion.token as usize] as usize - self.header_bytes;
            self.served.frames += 1;
            self.served.bytes += bytes as u64;
            self.free.push_back(completion.token);
        }
        let mut sent = 0;
        while sent < most {
            let Some(buffer) = self.free.pop_front() else {
                break;
            };
            let at = buffer as usize * self.stride;
            // A guest writes its headers anew for every frame: the device finds their cache line on this core.
            let line = self.block.slice(at + self.header_bytes, 8)?;
            let address = line.get_ref::<u64>(0).map_err(|_| Error::RingFull)?;
            address.store(address.load());
            if !matches!(self.flows, Flows::Kept) {
                let frame = self.block.slice(at + self.header_bytes, FLOW_BYTES)?;
                self.flows.write(&frame)?;
            }
            let segment = Segment {
                address: self.block.guest_address() + at as u64,
                len: self.lengths[buffer as usize],
                direction: Direction::DeviceReads,
            };
            ring.add_with(&view, &[segment], DescriptorTable::Direct, buffer)?;
            sent += 1;
        }
        ring.publish_with(&view)?;
        Ok(sent)
    }
}

/// Receives on a NIC's first guest-rx ring, and counts by sender.
#[derive(Debug)]
pub struct Sink {
    block: Block,
    buffer_bytes: usize,
    header_bytes: usize,
    mergeable: bool,
    /// Buffers that came back and are not posted again yet.
    free: Vec<u32>,
    received: Counts,
    /// By the last byte of the sender's MAC address.
    by_sender: Vec<Counts>,
}

impl Sink {
    /// Buffers of `buffer_bytes` each for the whole ring. `nic` must not have posted buffers of its own
    /// ([`Refill::Manual`](crate::Refill::Manual)).
    ///
    /// # Errors
    /// When guest memory has no room.
    pub fn new(memory: &GuestMemory, nic: &mut Nic, buffer_bytes: usize) -> Result<Self, Error> {
        let count = usize::from(nic.options().guest_rx_ring_size);
        let block = memory.allocate(nic.options().ring_region, count * buffer_bytes, 4096)?;
        let mut sink = Self {
            block,
            buffer_bytes,
            header_bytes: nic.acked().vnet_header_bytes(),
            mergeable: nic.acked().contains(Features::MRG_RXBUF),
            free: (0..count as u32).rev().collect(),
            received: Counts::default(),
            by_sender: vec![Counts::default(); 256],
        };
        nic.pair(0).guest_rx.ring_mut().disarm_call()?;
        sink.post(nic)?;
        Ok(sink)
    }

    /// What has arrived so far.
    pub fn received(&self) -> Counts {
        self.received
    }

    /// What has arrived from senders whose MAC address ends in `last_byte`.
    pub fn received_from(&self, last_byte: u8) -> Counts {
        self.by_sender[usize::from(last_byte)]
    }

    /// One turn: takes at most `most` frames, posts buffers. The answer is how many were taken.
    ///
    /// # Errors
    /// [`Error::Device`] when the device broke a rule.
    pub fn turn(&mut self, nic: &mut Nic, most: usize) -> Result<usize, Error> {
        let ring = nic.pair(0).guest_rx.ring_mut();
        let ring_memory = ring.memory().clone();
        let view = View::of(&ring_memory)?;
        let mut taken = 0;
        while taken < most {
            let Some(first) = ring.pop_used_with(&view)? else {
                break;
            };
            let start = self.block.slice(
                first.token as usize * self.buffer_bytes,
                self.header_bytes + 12,
            )?;
            let mut head = [0; 24];
            start.copy_to(&mut head[..self.header_bytes + 12]);
            self.free.push(first.token);
            let mut bytes = u64::from(first.written);
            let num_buffers = u16::from_le_bytes([head[10], head[11]]);
            let more = if self.mergeable {
                num_buffers.max(1) - 1
            } else {
                0
            };
            for _ in 0..more {
                let why = "fewer buffers than that were used together";
                let fault = DeviceFault::NumBuffers {
                    ring: ring.index(),
                    num_buffers,
                    why,
                };
                let part = ring.pop_used_with(&view)?.ok_or(fault)?;
                self.free.push(part.token);
                bytes += u64::from(part.written);
            }
            let bytes = bytes.saturating_sub(self.header_bytes as u64);
            let sender = usize::from(head[self.header_bytes + 11]);
            for counts in [&mut self.received, &mut self.by_sender[sender]] {
                counts.frames += 1;
                counts.bytes += bytes;
            }
            taken += 1;
        }
        if self.free.len() >= REFILL.min(usize::from(ring.size()) / 4) {
            self.post(nic)?;
        }
        Ok(taken)
    }

    fn post(&mut self, nic: &mut Nic) -> Result<(), Error> {
        let ring = nic.pair(0).guest_rx.ring_mut();
        let ring_memory = ring.memory().clone();
        let view = View::of(&ring_memory)?;
        while let Some(buffer) = self.free.pop() {
            let at = buffer as usize * self.buffer_bytes;
            let segment = Segment {
                address: self.block.guest_address() + at as u64,
                len: self.buffer_bytes as u32,
                direction: Direction::DeviceWrites,
            };
            ring.add_with(&view, &[segment], DescriptorTable::Direct, buffer)?;
        }
        ring.publish_with(&view)
    }
}
