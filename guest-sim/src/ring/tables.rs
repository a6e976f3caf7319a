//! Indirect descriptor tables of one ring, used again and again.
//!
//! Called by `virtqueue`, on the driver's thread. Keeps true: a table belongs to one head (split) or buffer id (packed), so it is not
//! written while the device has it; after the first chains of a length nothing is allocated.

use super::chain::Segment;
use super::layout::{DESCRIPTOR_BYTES, Format};
use super::raw::{Descriptor, NEXT};
use super::raw_packed::PackedDescriptor;
use crate::memory::{Block, GuestMemory, MemoryError};

/// A table as the descriptor in the ring refers to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
}

#[derive(Debug)]
pub(super) struct Tables {
    memory: GuestMemory,
    region: usize,
    format: Format,
    blocks: Vec<Option<Block>>,
}

impl Tables {
    pub fn new(memory: &GuestMemory, region: usize, format: Format, size: u16) -> Self {
        let mut blocks = Vec::new();
        blocks.resize_with(usize::from(size), || None);
        Self {
            memory: memory.clone(),
            region,
            format,
            blocks,
        }
    }

    /// The same tables in memory that took the place of this one.
    pub fn move_to(&mut self, memory: &GuestMemory) -> Result<(), MemoryError> {
        for block in self.blocks.iter_mut().flatten() {
            *block = block.in_memory(memory)?;
        }
        self.memory = memory.clone();
        Ok(())
    }

    /// Writes the table of chain `id`.
    pub fn fill(&mut self, id: u16, segments: &[Segment]) -> Result<Table, MemoryError> {
        let bytes = segments.len() * DESCRIPTOR_BYTES;
        let slot = &mut self.blocks[usize::from(id)];
        let block = match slot {
            Some(block) if block.len() >= bytes => block,
            _ => {
                let room = bytes.next_power_of_two().max(256);
                slot.insert(self.memory.allocate(self.region, room, 16)?)
            }
        };
        for (at, segment) in segments.iter().enumerate() {
            let flags = segment.direction.flag();
            let entry = match self.format {
                // VIRTIO 1.3 §2.7.5.3: linked with NEXT.
                Format::Split => {
                    let more = at + 1 < segments.len();
                    Descriptor {
                        address: segment.address,
                        len: segment.len,
                        flags: flags | if more { NEXT } else { 0 },
                        next: if more { at as u16 + 1 } else { 0 },
                    }
                    .to_bytes()
                }
                // VIRTIO 1.3 §2.8.7: one behind the other; WRITE is the only flag.
                Format::Packed => PackedDescriptor {
                    address: segment.address,
                    len: segment.len,
                    id: 0,
                    flags,
                }
                .to_bytes(),
            };
            block
                .slice(at * DESCRIPTOR_BYTES, DESCRIPTOR_BYTES)?
                .copy_from(&entry);
        }
        Ok(Table {
            address: block.guest_address(),
            len: bytes as u32,
        })
    }
}
