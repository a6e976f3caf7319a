//! Where a split virtqueue's three parts lie in guest memory.
//!
//! Called when a ring is made and when its addresses are told to the back-end. Keeps true: the parts have the sizes and alignments of
//! VIRTIO 1.3 §2.7 for any size from 1 to 32768.

use vhost::VringConfigData;

use crate::memory::{Block, GuestMemory, MemoryError};

/// Bytes of one descriptor.
pub const DESCRIPTOR_BYTES: usize = 16;

/// The three parts of a split virtqueue of `size` entries.
#[derive(Debug)]
pub struct RingMemory {
    size: u16,
    descriptors: Block,
    avail: Block,
    used: Block,
}

impl RingMemory {
    /// Zeroed parts for a ring of `size` entries in one region.
    ///
    /// # Errors
    /// When the region has no room.
    pub fn new(memory: &GuestMemory, region: usize, size: u16) -> Result<Self, MemoryError> {
        let entries = usize::from(size);
        Ok(Self {
            size,
            // VIRTIO 1.3 §2.7: 16 bytes each, aligned to 16.
            descriptors: memory.allocate(region, DESCRIPTOR_BYTES * entries, 16)?,
            // flags, idx, ring, used_event; aligned to 2. A cache line of its own, as real guests give it.
            avail: memory.allocate(region, 6 + 2 * entries, 64)?,
            // flags, idx, ring of (id, len), avail_event; aligned to 4.
            used: memory.allocate(region, 6 + 8 * entries, 64)?,
        })
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor table.
    pub fn descriptors(&self) -> &Block {
        &self.descriptors
    }

    /// The available ring.
    pub fn avail(&self) -> &Block {
        &self.avail
    }

    /// The used ring.
    pub fn used(&self) -> &Block {
        &self.used
    }

    /// What SET_VRING_ADDR says of it: user addresses, and the used ring's guest address for the log when asked to log.
    pub fn message_addresses(&self) -> VringConfigData {
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: 0,
            desc_table_addr: self.descriptors.user_address(),
            used_ring_addr: self.used.user_address(),
            avail_ring_addr: self.avail.user_address(),
            log_addr: None,
        }
    }

    /// Back to all zeroes, as a driver hands a ring over.
    pub fn clear(&self) {
        self.descriptors.fill(0);
        self.avail.fill(0);
        self.used.fill(0);
    }
}
