//! Where a virtqueue's three parts lie in guest memory.
//!
//! Called when a ring is made and when its addresses are told to the back-end. Keeps true: the parts have the sizes and alignments of
//! VIRTIO 1.3 §2.7 (split) and §2.8.10.1 (packed) for any size from 1 to 32768.

use vhost::VringConfigData;

use crate::features::Features;
use crate::memory::{Block, GuestMemory, MemoryError};

/// Bytes of one descriptor, split or packed.
pub const DESCRIPTOR_BYTES: usize = 16;
/// Bytes of one event suppression structure (VIRTIO 1.3 §2.8.14).
const EVENT_SUPPRESSION_BYTES: usize = 4;

/// How a virtqueue is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Descriptor table, available ring, used ring (VIRTIO 1.3 §2.7).
    Split,
    /// One ring of descriptors that both sides write, and two event suppression structures (VIRTIO 1.3 §2.8).
    Packed,
}

impl Format {
    /// What these features make it.
    pub fn of(features: Features) -> Self {
        if features.contains(Features::RING_PACKED) {
            Self::Packed
        } else {
            Self::Split
        }
    }
}

/// Whether the back-end is to mark the pages it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logging {
    /// It is not.
    Off,
    /// It is: VHOST_F_LOG_ALL and VHOST_VRING_F_LOG.
    On,
}

/// Where in a VM's memory a ring is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which region.
    pub region: usize,
    /// The driver's and the device's part start at multiples of this, a power of two of at least 64: a cache line of its own each, as real
    /// guests give it.
    pub align: usize,
}

impl Place {
    /// In this region, at cache lines.
    pub const fn region(region: usize) -> Self {
        Self { region, align: 64 }
    }
}

/// The three parts of a virtqueue of `size` entries.
#[derive(Debug)]
pub struct RingMemory {
    format: Format,
    size: u16,
    descriptors: Block,
    avail: Block,
    used: Block,
}

impl RingMemory {
    /// Zeroed parts for a ring of `size` entries.
    ///
    /// # Errors
    /// When the region has no room.
    pub fn new(
        memory: &GuestMemory,
        place: Place,
        format: Format,
        size: u16,
    ) -> Result<Self, MemoryError> {
        let Place { region, align } = place;
        let entries = usize::from(size);
        let (avail_bytes, used_bytes) = match format {
            // flags, idx, ring, used_event; flags, idx, ring of (id, len), avail_event. Aligned to 2 and 4.
            Format::Split => (6 + 2 * entries, 6 + 8 * entries),
            // Both aligned to 4.
            Format::Packed => (EVENT_SUPPRESSION_BYTES, EVENT_SUPPRESSION_BYTES),
        };
        Ok(Self {
            format,
            size,
            // 16 bytes each, aligned to 16; a packed ring to a cache line, as real guests have it, so that no descriptor shares one.
            descriptors: memory.allocate(
                region,
                DESCRIPTOR_BYTES * entries,
                match format {
                    Format::Split if align <= 64 => 16,
                    Format::Split | Format::Packed => align,
                },
            )?,
            avail: memory.allocate(region, avail_bytes, align)?,
            used: memory.allocate(region, used_bytes, align)?,
        })
    }

    /// Split or packed.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor area: the descriptor table, or the packed ring.
    pub fn descriptors(&self) -> &Block {
        &self.descriptors
    }

    /// The driver area: the available ring, or the driver event suppression structure.
    pub fn avail(&self) -> &Block {
        &self.avail
    }

    /// The device area: the used ring, or the device event suppression structure.
    pub fn used(&self) -> &Block {
        &self.used
    }

    /// The same ring in memory that took the place of this one's.
    pub(crate) fn in_memory(&self, memory: &GuestMemory) -> Result<Self, MemoryError> {
        Ok(Self {
            format: self.format,
            size: self.size,
            descriptors: self.descriptors.in_memory(memory)?,
            avail: self.avail.in_memory(memory)?,
            used: self.used.in_memory(memory)?,
        })
    }

    /// What SET_VRING_ADDR says of it: user addresses, and where to log the used ring if that is wanted.
    pub fn message_addresses(&self, logging: Logging) -> VringConfigData {
        let (flags, log_addr) = match logging {
            Logging::Off => (0, None),
            // VHOST_VRING_F_LOG.
            Logging::On => (1, Some(self.used.guest_address())),
        };
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags,
            desc_table_addr: self.descriptors.user_address(),
            used_ring_addr: self.used.user_address(),
            avail_ring_addr: self.avail.user_address(),
            log_addr,
        }
    }

    /// The same behind an IOMMU: the driver's own addresses.
    pub fn io_addresses(&self, logging: Logging) -> VringConfigData {
        VringConfigData {
            desc_table_addr: self.descriptors.guest_address(),
            used_ring_addr: self.used.guest_address(),
            avail_ring_addr: self.avail.guest_address(),
            ..self.message_addresses(logging)
        }
    }

    /// Back to all zeroes, as a driver hands a ring over.
    pub fn clear(&self) {
        self.descriptors.fill(0);
        self.avail.fill(0);
        self.used.fill(0);
    }
}
