//! Where the parts of a ring are: checked and translated once, when it starts or its memory changes.

use super::error::{RingError, RingPart};
use super::guest_memory::{GuestMemory, Unavailable};
use super::iotlb::Access;
use serde::{Deserialize, Serialize};
use std::ptr::NonNull;

/// Bytes of a descriptor (VIRTIO 1.3 §2.7.5).
pub(super) const DESCRIPTOR_BYTES: u64 = 16;

/// Where a ring's three parts are, in the front-end's address space (VHOST_USER_SET_VRING_ADDR). In brackets what they are in a packed
/// ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingAddresses {
    /// Descriptor table (descriptor ring).
    pub descriptor_table: u64,
    /// Available ring (driver event suppression structure).
    pub available_ring: u64,
    /// Used ring (device event suppression structure).
    pub used_ring: u64,
    /// Guest-physical address of the used ring for the migration log, when the front-end asks for logging.
    pub used_log: Option<u64>,
}

/// Host addresses of a split ring's three parts, valid while the ring's `memory` is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) descriptors: NonNull<u8>,
    pub(super) available: NonNull<u8>,
    pub(super) used: NonNull<u8>,
}

impl Parts {
    /// Checks and translates the three parts (VIRTIO 1.3 §2.7: sizes and alignments).
    pub(super) fn translate(
        addresses: &RingAddresses,
        size: u16,
        event_idx: bool,
        memory: &GuestMemory,
    ) -> Result<Self, RingError> {
        let size = u64::from(size);
        let event_bytes = if event_idx { 2 } else { 0 };
        let part = |part, addr, len_bytes, align| {
            // VIRTIO 1.3 §2.7: only the used ring is the device's to write.
            let access = if part == RingPart::Used {
                Access::Write
            } else {
                Access::Read
            };
            locate((memory, access), part, addr, (len_bytes, align))
        };
        Ok(Self {
            descriptors: part(
                RingPart::Descriptors,
                addresses.descriptor_table,
                DESCRIPTOR_BYTES * size,
                16,
            )?,
            available: part(
                RingPart::Available,
                addresses.available_ring,
                4 + 2 * size + event_bytes,
                2,
            )?,
            used: part(
                RingPart::Used,
                addresses.used_ring,
                4 + 8 * size + event_bytes,
                4,
            )?,
        })
    }
}

/// Host addresses of a packed ring's three parts, valid while the ring's `memory` is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackedParts {
    pub(super) descriptors: NonNull<u8>,
    /// Driver event suppression structure.
    pub(super) driver: NonNull<u8>,
    /// Device event suppression structure.
    pub(super) device: NonNull<u8>,
}

impl PackedParts {
    /// Checks and translates the three parts (VIRTIO 1.3 §2.8.10.1: sizes and alignments).
    pub(super) fn translate(
        addresses: &RingAddresses,
        size: u16,
        memory: &GuestMemory,
    ) -> Result<Self, RingError> {
        let part = |part, addr, len_bytes, align| {
            // VIRTIO 1.3 §2.8: only the driver's event suppression is not the device's to write.
            let access = if part == RingPart::DriverEvents {
                Access::Read
            } else {
                Access::Write
            };
            locate((memory, access), part, addr, (len_bytes, align))
        };
        Ok(Self {
            descriptors: part(
                RingPart::Descriptors,
                addresses.descriptor_table,
                DESCRIPTOR_BYTES * u64::from(size),
                16,
            )?,
            driver: part(RingPart::DriverEvents, addresses.available_ring, 4, 4)?,
            device: part(RingPart::DeviceEvents, addresses.used_ring, 4, 4)?,
        })
    }
}

/// Host address of one part, which must lie in one region at its alignment; both are in bytes.
fn locate(
    (memory, access): (&GuestMemory, Access),
    part: RingPart,
    addr: u64,
    (len_bytes, align): (u64, u64),
) -> Result<NonNull<u8>, RingError> {
    if !addr.is_multiple_of(align) {
        return Err(RingError::Misaligned { part, addr, align });
    }
    let host = memory.locate_part(addr, len_bytes, access);
    let host = host.map_err(|why| match why {
        Unavailable::Outside => RingError::NotMapped {
            part,
            addr,
            len_bytes,
        },
        Unavailable::Scattered => RingError::Scattered {
            part,
            addr,
            len_bytes,
        },
        Unavailable::Pending => RingError::Pending { addr },
        Unavailable::Refused(access) => RingError::Refused { addr, access },
    })?;
    // A front-end can place the region itself at an odd offset of its file.
    if !(host.as_ptr() as u64).is_multiple_of(align) {
        return Err(RingError::Misaligned { part, addr, align });
    }
    Ok(host)
}
