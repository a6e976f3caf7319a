//! Where the parts of a ring are: checked and translated once, when it starts or its memory changes.

use super::error::{RingError, RingPart};
use super::guest_memory::{GuestMemory, Place, Unavailable};
use super::iotlb::Access;
use super::stitch::Stitch;
use serde::{Deserialize, Serialize};
use std::ptr::NonNull;
use std::sync::Arc;

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
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) descriptors: NonNull<u8>,
    pub(super) available: NonNull<u8>,
    pub(super) used: NonNull<u8>,
    pub(super) pieces: Pieces,
}

impl Parts {
    /// Checks and translates the three parts (VIRTIO 1.3 §2.7: sizes and alignments).
    pub(super) fn translate(
        addresses: &RingAddresses,
        size: u16,
        event_idx: bool,
        memory: &GuestMemory,
    ) -> Result<Self, RingError> {
        let places = Self::places(addresses, size, event_idx, memory)?;
        let ([descriptors, available, used], pieces) = Pieces::map(places, memory)?;
        Ok(Self {
            descriptors,
            available,
            used,
            pieces,
        })
    }

    /// Where they are now.
    pub(super) fn places(
        addresses: &RingAddresses,
        size: u16,
        event_idx: bool,
        memory: &GuestMemory,
    ) -> Result<[PartPlace; 3], RingError> {
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
        let RingAddresses {
            descriptor_table,
            available_ring,
            used_ring,
            ..
        } = *addresses;
        let [table, available, used] = [
            DESCRIPTOR_BYTES * size,
            4 + 2 * size + event_bytes,
            4 + 8 * size + event_bytes,
        ];
        Ok([
            part(RingPart::Descriptors, descriptor_table, table, 16)?,
            part(RingPart::Available, available_ring, available, 2)?,
            part(RingPart::Used, used_ring, used, 4)?,
        ])
    }
}

/// Host addresses of a packed ring's three parts, valid while the ring's `memory` is held.
#[derive(Clone, Debug)]
pub(super) struct PackedParts {
    pub(super) descriptors: NonNull<u8>,
    /// Driver event suppression structure.
    pub(super) driver: NonNull<u8>,
    /// Device event suppression structure.
    pub(super) device: NonNull<u8>,
    pub(super) pieces: Pieces,
}

impl PackedParts {
    /// Checks and translates the three parts (VIRTIO 1.3 §2.8.10.1: sizes and alignments).
    pub(super) fn translate(
        addresses: &RingAddresses,
        size: u16,
        memory: &GuestMemory,
    ) -> Result<Self, RingError> {
        let places = Self::places(addresses, size, memory)?;
        let ([descriptors, driver, device], pieces) = Pieces::map(places, memory)?;
        Ok(Self {
            descriptors,
            driver,
            device,
            pieces,
        })
    }

    /// Where they are now.
    pub(super) fn places(
        addresses: &RingAddresses,
        size: u16,
        memory: &GuestMemory,
    ) -> Result<[PartPlace; 3], RingError> {
        let part = |part, addr, len_bytes, align| {
            // VIRTIO 1.3 §2.8: only the driver's event suppression is not the device's to write.
            let access = if part == RingPart::DriverEvents {
                Access::Read
            } else {
                Access::Write
            };
            locate((memory, access), part, addr, (len_bytes, align))
        };
        let table = DESCRIPTOR_BYTES * u64::from(size);
        Ok([
            part(RingPart::Descriptors, addresses.descriptor_table, table, 16)?,
            part(RingPart::DriverEvents, addresses.available_ring, 4, 4)?,
            part(RingPart::DeviceEvents, addresses.used_ring, 4, 4)?,
        ])
    }
}

/// Which part is where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartPlace {
    part: RingPart,
    addr: u64,
    place: Place,
}

/// Where the parts of a ring were found, and those of them mapped that do not lie in one piece.
#[derive(Clone, Debug)]
pub(super) struct Pieces {
    places: [PartPlace; 3],
    stitches: Vec<Arc<Stitch>>,
}

impl Pieces {
    fn map(
        places: [PartPlace; 3],
        memory: &GuestMemory,
    ) -> Result<([NonNull<u8>; 3], Self), RingError> {
        let mut stitches = Vec::new();
        let mut host = |at: &PartPlace| match &at.place {
            Place::Whole(host) => Ok(*host),
            Place::Scattered(pages, skipped) => {
                let scattered = |_| RingError::Scattered {
                    part: at.part,
                    addr: at.addr,
                };
                let stitch = Stitch::new(pages.clone(), memory).map_err(scattered)?;
                let host = stitch.base().as_ptr().wrapping_add(*skipped);
                stitches.push(Arc::new(stitch));
                NonNull::new(host).ok_or(RingError::Scattered {
                    part: at.part,
                    addr: at.addr,
                })
            }
        };
        let [first, second, third] = &places;
        let hosts = [host(first)?, host(second)?, host(third)?];
        Ok((hosts, Self { places, stitches }))
    }

    /// Whether the parts are where they were found.
    pub(super) fn are_at(&self, places: &[PartPlace; 3]) -> bool {
        self.places == *places
    }

    /// What was mapped for them.
    pub(super) fn stitches(&self) -> &[Arc<Stitch>] {
        &self.stitches
    }

    /// Whether a file of it was truncated under us.
    pub(super) fn are_lost(&self) -> bool {
        self.stitches.iter().any(|stitch| stitch.is_lost())
    }
}

/// Where one part is, at its alignment; that and its length are in bytes.
fn locate(
    (memory, access): (&GuestMemory, Access),
    part: RingPart,
    addr: u64,
    (len_bytes, align): (u64, u64),
) -> Result<PartPlace, RingError> {
    if !addr.is_multiple_of(align) {
        return Err(RingError::Misaligned { part, addr, align });
    }
    let place = memory.locate_part(addr, len_bytes, access);
    let place = place.map_err(|why| match why {
        Unavailable::Outside => RingError::NotMapped {
            part,
            addr,
            len_bytes,
        },
        Unavailable::Pending => RingError::Pending { addr },
        Unavailable::Refused(access) => RingError::Refused { addr, access },
    })?;
    // A front-end can place the region itself at an odd offset of its file.
    match place {
        Place::Whole(host) if !(host.as_ptr() as u64).is_multiple_of(align) => {
            Err(RingError::Misaligned { part, addr, align })
        }
        place => Ok(PartPlace { part, addr, place }),
    }
}
