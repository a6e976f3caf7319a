//! A guest that keeps the switch busy with next to no work of its own.
//!
//! Driven by tests and benches of overload. Every chain of its guest-tx ring is the same frame, every chain of its guest-rx ring the same
//! buffer: filling a ring again costs a descriptor each. What it receives is counted by the device alone, and overwritten.

use crate::error::Error;
use crate::frame::Frame;
use crate::memory::{Block, GuestMemory};
use crate::nic::{Nic, NicOptions, Refill};

use crate::ring::{DescriptorTable, Direction, Segment, Virtqueue};

/// Bytes of the receive buffer: a TSO frame of 64 KiB with its header.
const BUFFER_BYTES: usize = 65_600;

/// A NIC whose rings are filled with one frame and one buffer.
#[derive(Debug)]
pub struct Treadmill {
    nic: Nic,
    block: Block,
    image_bytes: usize,
}

impl Treadmill {
    /// What a NIC must be like for this: it posts no buffers itself, asks for no calls.
    pub fn options(ring_size: u16) -> NicOptions {
        NicOptions {
            refill: Refill::Manual,
            guest_rx_ring_size: ring_size,
            guest_tx_ring_size: ring_size,
            ..NicOptions::bench()
        }
    }

    /// Sends `frame` again and again over `nic`, which has memory `memory` and [`Self::options`].
    ///
    /// # Errors
    /// When guest memory has no room.
    pub fn new(memory: &GuestMemory, mut nic: Nic, frame: &Frame) -> Result<Self, Error> {
        let block = memory.allocate(nic.options().ring_region, 2 * BUFFER_BYTES, 4096)?;
        let mut image = frame.header.to_bytes()[..nic.acked().vnet_header_bytes()].to_vec();
        image.extend_from_slice(&frame.bytes);
        block.slice(0, image.len())?.copy_from(&image);
        for pair in nic.pairs() {
            pair.guest_rx.ring_mut().disarm_call()?;
            pair.guest_tx.ring_mut().disarm_call()?;
        }
        Ok(Self {
            nic,
            block,
            image_bytes: image.len(),
        })
    }

    /// Fills the guest-tx rings up again; how many frames were sent since the last time.
    ///
    /// # Errors
    /// [`Error::Device`] when the device broke a rule.
    pub fn send(&mut self) -> Result<usize, Error> {
        let segment = Segment {
            address: self.block.guest_address(),
            len: self.image_bytes as u32,
            direction: Direction::DeviceReads,
        };
        let mut sent = 0;
        for pair in self.nic.pairs() {
            sent += fill(pair.guest_tx.ring_mut(), segment, usize::MAX)?;
        }
        Ok(sent)
    }

    /// Gives back up to `most` of the receive buffers that were filled.
    ///
    /// # Errors
    /// [`Error::Device`] when the device broke a rule.
    pub fn receive(&mut self, most: usize) -> Result<usize, Error> {
        let segment = Segment {
            address: self.block.guest_address() + BUFFER_BYTES as u64,
            len: BUFFER_BYTES as u32,
            direction: Direction::DeviceWrites,
        };
        let mut received = 0;
        for pair in self.nic.pairs() {
            received += fill(pair.guest_rx.ring_mut(), segment, most)?;
        }
        Ok(received)
    }
}

/// Takes back what was used and adds as many chains again, `most` at a time.
fn fill(ring: &mut Virtqueue, segment: Segment, most: usize) -> Result<usize, Error> {
    let mut used = 0;
    while used < most && ring.pop_used()?.is_some() {
        used += 1;
    }
    for _ in 0..ring.free_descriptors() {
        ring.add(&[segment], DescriptorTable::Direct, 0)?;
    }
    ring.publish()?;
    Ok(used)
}
