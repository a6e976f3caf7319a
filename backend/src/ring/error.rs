//! What a driver or its front-end can do wrong with a ring.
//!
//! Made by a [`Ring`](super::Ring) on a worker or the device thread; shown by `port show`.

use super::chain::MAX_CHAIN_DESCRIPTORS;
use super::iotlb::Access;

/// A part of a ring, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingPart {
    /// Descriptor table.
    Descriptors,
    /// Available ring.
    Available,
    /// Used ring.
    Used,
    /// Driver event suppression structure of a packed ring.
    DriverEvents,
    /// Device event suppression structure of a packed ring.
    DeviceEvents,
}

impl std::fmt::Display for RingPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "descriptor table",
            Self::Available => "available ring",
            Self::Used => "used ring",
            Self::DriverEvents => "driver event suppression structure",
            Self::DeviceEvents => "device event suppression structure",
        })
    }
}

/// Why a ring cannot start or go on. Each is the guest's or its front-end's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// SET_VRING_NUM with an impossible size.
    #[error(
        "ring size {0} is not between 1 and 32768, and a power of two unless the ring is packed"
    )]
    BadSize(u16),
    /// SET_VRING_BASE with an index that the ring does not have.
    #[error("ring base {base:#x} points outside a packed ring of {size}")]
    BadBase {
        /// As given.
        base: u32,
        /// Entries of the ring.
        size: u16,
    },
    /// RING_PACKED was acked though it cannot have been offered, or it changed while the ring ran.
    #[error("the ring cannot be {} now: RING_PACKED is acked before rings start, and only where it was offered", if *.packed { "packed" } else { "split" })]
    Kind {
        /// What was asked for.
        packed: bool,
    },
    /// A part is not in one region of the memory table.
    #[error(
        "the {part} at front-end address {addr:#x} ({len_bytes} bytes) is not inside one memory region"
    )]
    NotMapped {
        /// Which part.
        part: RingPart,
        /// Its address in the front-end.
        addr: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// Pages of a part are in order for the device, but not in memory, and cannot be mapped one by one.
    #[error(
        "the {part} at I/O address {addr:#x} is scattered in the guest's memory, which works only without huge pages: give the VM \
         other memory, or smaller rings (rx_queue_size, tx_queue_size)"
    )]
    Scattered {
        /// Which part.
        part: RingPart,
        /// Its address for the device.
        addr: u64,
    },
    /// No fault, as far as is known: what is there was asked for, and the ring has to wait.
    #[error("waiting for the front-end to make address {addr:#x} available")]
    Pending {
        /// Where.
        addr: u64,
    },
    /// The guest's IOMMU has no such mapping.
    #[error("the guest's IOMMU does not let its device {} I/O address {addr:#x}: its driver unmapped that, or never mapped it",
        match access { Access::Read => "read", Access::Write => "write to" })]
    Refused {
        /// Where.
        addr: u64,
        /// What was to be done there.
        access: Access,
    },
    /// VIRTIO 1.3 §2.7: descriptor table 16, available ring 2, used ring 4.
    #[error("the {part} at front-end address {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which part.
        part: RingPart,
        /// Its address in the front-end.
        addr: u64,
        /// What is required.
        align: u64,
    },
    /// More heads offered than the ring has entries.
    #[error("the available index jumped to {avail} while {next} comes next in a ring of {size}")]
    AvailJump {
        /// The driver's available index.
        avail: u16,
        /// The next one we would take.
        next: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// More descriptors of a packed ring offered than it has, some of them not given back yet.
    #[error("more descriptors are offered than a packed ring of {size} has")]
    Overrun {
        /// Entries of the ring.
        size: u16,
    },
    /// A head or a `next` field names no descriptor of the table.
    #[error("descriptor {index} does not exist in a table of {size}")]
    NoSuchDescriptor {
        /// The index found.
        index: u16,
        /// Entries of the table.
        size: u32,
    },
    /// More descriptors than the table has: a loop.
    #[error("the chain at head {head} does not end")]
    Loop {
        /// Where the chain starts.
        head: u16,
    },
    /// A buffer (or a piece of it) outside the guest's memory.
    #[error(
        "descriptor of {len_bytes} bytes at guest address {addr:#x} reaches outside the guest's memory"
    )]
    BadAddress {
        /// Guest-physical address.
        addr: u64,
        /// Length in the descriptor.
        len_bytes: u32,
    },
    /// Device-writable in a guest-tx chain, or device-readable in a guest-rx chain.
    #[error("the chain at head {head} has a descriptor of the wrong direction (flags {flags:#x})")]
    WrongDirection {
        /// Where the chain starts.
        head: u16,
        /// The descriptor's flags.
        flags: u16,
    },
    /// VIRTIO 1.3 §2.7.5.3: a table inside a table, NEXT beside INDIRECT, a table of no or odd length, or one without the feature.
    #[error(
        "the indirect descriptor at head {head} is malformed ({len_bytes} bytes, flags {flags:#x})"
    )]
    BadIndirect {
        /// Where the chain starts.
        head: u16,
        /// Length of the table.
        len_bytes: u32,
        /// The descriptor's flags.
        flags: u16,
    },
    /// More than [`MAX_CHAIN_DESCRIPTORS`].
    #[error("the chain at head {head} has more than {MAX_CHAIN_DESCRIPTORS} descriptors")]
    TooLong {
        /// Where the chain starts.
        head: u16,
    },
}
