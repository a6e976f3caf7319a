//! What the guest transmits: frames into a guest-tx ring.
//!
//! Called by tests and benches on the thread that owns the queue pair. Keeps true: a frame's bytes stay as they are until the device gave
//! the chain back; with [`Canaries::On`] it is found out when the device changed them.

use std::time::Duration;

use super::arena::{Arena, Slot};
use super::chain_layout::ChainLayout;
use super::wait::{Patience, Waiting, wait_for_used};
use crate::error::{DeviceFault, Error};
use crate::features::Features;
use crate::frame::Frame;
use crate::memory::GuestMemory;
use crate::nic::options::{Canaries, NicOptions};
use crate::ring::{DescriptorTable, Direction, Segment, Virtqueue};

/// One guest-tx ring with its driver.
#[derive(Debug)]
pub struct GuestTx {
    ring: Virtqueue,
    arena: Arena,
    layout: ChainLayout,
    table: DescriptorTable,
    header_bytes: usize,
    waiting: Waiting,
    canaries: Canaries,
    sent: Vec<Sent>,
    pieces: Vec<u32>,
    segments: Vec<Segment>,
    image: Vec<u8>,
}

/// A frame with the device: what its buffer held.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    bytes: usize,
    digest: u64,
}

impl GuestTx {
    pub(crate) fn new(
        index: u16,
        memory: &GuestMemory,
        options: &NicOptions,
        acked: Features,
    ) -> Result<Self, Error> {
        let size = options.guest_tx_ring_size;
        let mut guest_tx = Self {
            ring: Virtqueue::new(index, memory, options.ring_place(), size, acked)?,
            arena: Arena::new(memory, &options.buffer_regions),
            layout: options.guest_tx_layout.clone(),
            table: options.guest_tx_table,
            header_bytes: acked.vnet_header_bytes(),
            waiting: options.waiting,
            canaries: options.canaries,
            sent: Vec::new(),
            pieces: Vec::new(),
            segments: Vec::new(),
            image: Vec::new(),
        };
        guest_tx.decline_calls()?;
        Ok(guest_tx)
    }

    fn decline_calls(&mut self) -> Result<(), Error> {
        match self.waiting {
            Waiting::BusyPoll => self.ring.disarm_call(),
            Waiting::Calls => Ok(()),
        }
    }

    /// The ring below.
    pub fn ring(&self) -> &Virtqueue {
        &self.ring
    }

    /// The ring below, to add chains of one's own.
    pub fn ring_mut(&mut self) -> &mut Virtqueue {
        &mut self.ring
    }

    /// Changes the layout from the next frame on.
    pub fn set_layout(&mut self, layout: ChainLayout, table: DescriptorTable) {
        (self.layout, self.table) = (layout, table);
    }

    /// Takes buffers from these regions only, from now on: after memory was plugged in, or before it is unplugged. Those with the device
    /// stay where they are.
    pub fn use_regions(&mut self, regions: &[usize]) {
        self.arena.use_regions(regions);
    }

    /// Sends one frame now: puts it into the ring, publishes and kicks. Waits for room up to `within`.
    ///
    /// # Errors
    /// [`Error::Timeout`] when the ring stayed full; [`Error::Device`] when the device broke a rule.
    pub fn send(&mut self, frame: &Frame, within: Duration) -> Result<(), Error> {
        self.send_all(std::slice::from_ref(frame), within)
    }

    /// Sends all of them, in order, publishing as the ring fills; waits for room up to `within` in all.
    ///
    /// # Errors
    /// [`Error::Timeout`] when the ring stayed full; [`Error::Device`] when the device broke a rule.
    pub fn send_all(&mut self, frames: &[Frame], within: Duration) -> Result<(), Error> {
        let patience = Patience::of(within);
        for frame in frames {
            loop {
                match self.queue(frame) {
                    Err(Error::RingFull) => {}
                    other => break other?,
                }
                self.publish()?;
                if self.reclaim()? == 0 && !wait_for_used(&mut self.ring, self.waiting, patience)? {
                    return Err(patience.timeout("room in a guest-tx ring"));
                }
            }
        }
        self.publish()
    }

    /// Puts a frame into the ring without showing it to the device.
    ///
    /// # Errors
    /// [`Error::RingFull`] when there is no room now, [`Error::ChainTooLong`] when there never will be.
    pub fn queue(&mut self, frame: &Frame) -> Result<(), Error> {
        let header = frame.header.to_bytes();
        let mut image = std::mem::take(&mut self.image);
        image.clear();
        image.extend_from_slice(&header[..self.header_bytes]);
        image.extend_from_slice(&frame.bytes);
        let outcome = self.queue_image(&image);
        self.image = image;
        outcome
    }

    /// Puts these bytes into the ring as they are, header first: any header, any length.
    ///
    /// # Errors
    /// As [`Self::queue`].
    pub fn queue_image(&mut self, image: &[u8]) -> Result<(), Error> {
        self.pieces.clear();
        self.layout
            .cut(self.header_bytes, image.len(), &mut self.pieces);
        let gap = self.layout.gap_bytes();
        let slot = self.arena.take(image.len() + gap * self.pieces.len())?;
        let outcome = self.place(slot, image, gap);
        if outcome.is_err() {
            self.arena.give_back(slot);
        }
        outcome
    }

    fn place(&mut self, slot: Slot, image: &[u8], gap: usize) -> Result<(), Error> {
        self.segments.clear();
        let address = self.arena.address(slot);
        let (mut at, mut rest) = (0, image);
        for &len in &self.pieces {
            let (piece, more) = rest.split_at(len as usize);
            self.arena.slice(slot, at, piece.len())?.copy_from(piece);
            let direction = Direction::DeviceReads;
            self.segments.push(Segment {
                address: address + at as u64,
                len,
                direction,
            });
            at += piece.len() + gap;
            rest = more;
        }
        self.ring.add(&self.segments, self.table, slot)?;
        if self.canaries == Canaries::On {
            if self.sent.len() <= slot as usize {
                self.sent.resize(slot as usize + 1, Sent::default());
            }
            self.sent[slot as usize] = Sent {
                bytes: at,
                digest: self.digest(slot, at)?,
            };
        }
        Ok(())
    }

    /// Shows what was queued to the device, and kicks if it asked for that.
    ///
    /// # Errors
    /// When the kick eventfd cannot be written.
    pub fn publish(&mut self) -> Result<(), Error> {
        self.ring.publish()
    }

    /// Takes back what the device is done with; the answer is the number of frames.
    ///
    /// # Errors
    /// [`Error::Device`] when the device broke a rule.
    pub fn reclaim(&mut self) -> Result<usize, Error> {
        let mut count = 0;
        while let Some(completion) = self.ring.pop_used()? {
            let slot = completion.token;
            if self.canaries == Canaries::On {
                self.check_unchanged(slot)?;
            }
            self.arena.give_back(slot);
            count += 1;
        }
        Ok(count)
    }

    /// Waits until the device has given back every frame.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it did not; [`Error::Device`] when the device broke a rule.
    pub fn drain(&mut self, within: Duration) -> Result<(), Error> {
        let patience = Patience::of(within);
        loop {
            self.reclaim()?;
            if self.ring.outstanding() == 0 {
                return self.ring.verify_untouched();
            }
            if !wait_for_used(&mut self.ring, self.waiting, patience)? {
                return Err(patience.timeout("guest-tx chains to come back"));
            }
        }
    }

    /// Goes on in memory that took the place of this one's and has the same bytes.
    pub(crate) fn move_to(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        self.ring.move_to(memory)?;
        self.arena.move_to_memory(memory)?;
        Ok(())
    }

    /// An empty ring again, after a device reset; frames with the device are lost.
    pub(crate) fn reset(
        &mut self,
        memory: &GuestMemory,
        options: &NicOptions,
        acked: Features,
    ) -> Result<(), Error> {
        self.ring.reset(acked);
        self.arena = Arena::new(memory, &options.buffer_regions);
        self.header_bytes = acked.vnet_header_bytes();
        self.sent.clear();
        self.decline_calls()
    }

    fn check_unchanged(&self, slot: Slot) -> Result<(), Error> {
        let sent = self.sent[slot as usize];
        if self.digest(slot, sent.bytes)? == sent.digest {
            return Ok(());
        }
        let address = self.arena.address(slot);
        let what = "a transmit buffer, which the device may only read, has changed";
        Err(DeviceFault::MemoryOverwritten {
            ring: self.ring.index(),
            address,
            found: 0,
            expected: 0,
            what,
        }
        .into())
    }

    /// FNV-1a of the buffer, gaps included.
    fn digest(&self, slot: Slot, bytes: usize) -> Result<u64, Error> {
        let mut copy = vec![0; bytes];
        self.arena.slice(slot, 0, bytes)?.copy_to(&mut copy);
        let fold = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Ok(copy.iter().fold(0xcbf2_9ce4_8422_2325, fold))
    }
}
