//! What a guest can put into its rings that it must not.
//!
//! Walked through by tests on a raw ring that no well-behaved driver uses at the same time. Keeps true: each case leaves the ring with at
//! least one descriptor made available and kicked. Cases that both formats know are in `shared_cases`, the others in
//! `split_cases` and `packed_cases`.

use super::{packed_cases, shared_cases, split_cases};
use crate::error::Error;
use crate::frame::FrameBuilder;
use crate::memory::{Block, GuestMemory};
use crate::ring::layout::RingMemory;
use crate::ring::raw::{Descriptor, INDIRECT, NEXT, RawRing, WRITE};
use crate::ring::raw_packed::{PackedDescriptor, RawPackedRing};

/// For which ring a case is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A guest-tx ring: the device reads.
    GuestTx,
    /// A guest-rx ring: the device writes; what happens, happens when a frame for this guest arrives.
    GuestRx,
}

/// One thing a guest must not do, with a [`RawRing`] or a [`RawPackedRing`].
pub struct HostileChain<R = RawRing> {
    /// What is wrong.
    pub name: &'static str,
    /// On which ring.
    pub side: Side,
    act: Act<R>,
}

type Act<R> = fn(&Stage<'_, R>) -> Result<(), Error>;

// Derived, both would ask the same of the ring.
impl<R> Clone for HostileChain<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for HostileChain<R> {}

impl<R> std::fmt::Debug for HostileChain<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.side, self.name)
    }
}

#[expect(
    private_bounds,
    reason = "implemented for both raw rings and for nothing else"
)]
impl<R: Hostile> HostileChain<R> {
    /// Does it: writes the ring and kicks. The memory it uses stays allocated as long as `memory`.
    ///
    /// # Errors
    /// When guest memory has no room.
    pub fn play(&self, ring: &R, memory: &GuestMemory) -> Result<(), Error> {
        let stage = Stage::new(ring, memory, self.side)?;
        (self.act)(&stage)?;
        let kicked = ring.kick();
        // The device may look at the buffers at any later time.
        std::mem::forget(stage.buffer);
        std::mem::forget(stage.table);
        kicked
    }
}

/// Everything a guest must not do with a chain, an index or a header of a split ring.
pub fn chains() -> Vec<HostileChain> {
    let mut all = shared_cases::cases();
    all.extend(split_cases::cases());
    all
}

/// Everything a guest must not do with a chain, a wrap counter or a header of a packed ring.
pub fn packed_chains() -> Vec<HostileChain<RawPackedRing>> {
    let mut all = shared_cases::cases();
    all.extend(packed_cases::cases());
    all
}

/// A descriptor of either format, before it has its place.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub address: u64,
    pub len: u32,
    /// WRITE, INDIRECT, NEXT and what there is not.
    pub flags: u16,
}

/// A ring of either format on which anything can be posted.
pub(super) trait Hostile {
    fn memory(&self) -> &RingMemory;

    /// Makes the pieces available as they are, one behind the other from the ring's first descriptor on (split), or from where the ring
    /// stands (packed).
    fn post_pieces(&self, pieces: &[Piece]) -> Result<(), Error>;

    /// An entry of an indirect table, linked to `next` where entries are linked.
    fn table_entry(piece: Piece, next: u16) -> [u8; 16];

    fn kick(&self) -> Result<(), Error>;
}

impl Hostile for RawRing {
    fn memory(&self) -> &RingMemory {
        self.memory()
    }

    fn post_pieces(&self, pieces: &[Piece]) -> Result<(), Error> {
        let descriptors: Vec<_> = (1..)
            .zip(pieces)
            .map(|(next, piece)| linked(*piece, next))
            .collect();
        self.post(0, &descriptors)
    }

    fn table_entry(piece: Piece, next: u16) -> [u8; 16] {
        linked(piece, next).to_bytes()
    }

    fn kick(&self) -> Result<(), Error> {
        self.kick()
    }
}

impl Hostile for RawPackedRing {
    fn memory(&self) -> &RingMemory {
        self.memory()
    }

    fn post_pieces(&self, pieces: &[Piece]) -> Result<(), Error> {
        let descriptors: Vec<_> = pieces.iter().map(|piece| packed(*piece)).collect();
        self.post(&descriptors)
    }

    fn table_entry(piece: Piece, _next: u16) -> [u8; 16] {
        packed(piece).to_bytes()
    }

    fn kick(&self) -> Result<(), Error> {
        self.kick()
    }
}

pub(super) fn linked(piece: Piece, next: u16) -> Descriptor {
    let Piece {
        address,
        len,
        flags,
    } = piece;
    Descriptor {
        address,
        len,
        flags,
        next,
    }
}

pub(super) fn packed(piece: Piece) -> PackedDescriptor {
    let Piece {
        address,
        len,
        flags,
    } = piece;
    PackedDescriptor {
        address,
        len,
        id: 0,
        flags,
    }
}

/// A ring, a good buffer that holds a good frame with its header, and room for an indirect table.
pub(super) struct Stage<'a, R> {
    pub ring: &'a R,
    pub buffer: Block,
    pub table: Block,
    /// WRITE on a guest-rx ring.
    pub direction: u16,
    pub frame_bytes: u32,
    pub end_of_region: u64,
}

pub(super) const TABLE_BYTES: usize = 1 << 14;

impl<'a, R: Hostile> Stage<'a, R> {
    fn new(ring: &'a R, memory: &GuestMemory, side: Side) -> Result<Self, Error> {
        let buffer = memory.allocate(0, 1 << 16, 4096)?;
        let table = memory.allocate(0, TABLE_BYTES, 16)?;
        let frame = FrameBuilder::udp4(100).build();
        let mut image = frame.header.to_bytes().to_vec();
        image.extend_from_slice(&frame.bytes);
        buffer.slice(0, image.len())?.copy_from(&image);
        let layout = buffer.region().layout();
        let end_of_region = layout.guest_base + layout.size_bytes;
        let direction = if side == Side::GuestRx { WRITE } else { 0 };
        Ok(Self {
            ring,
            buffer,
            table,
            direction,
            frame_bytes: image.len() as u32,
            end_of_region,
        })
    }

    pub fn size(&self) -> u16 {
        self.ring.memory().size()
    }

    /// The good buffer, in the direction that is due.
    pub fn good(&self) -> Piece {
        Piece {
            address: self.buffer.guest_address(),
            len: self.frame_bytes,
            flags: self.direction,
        }
    }

    /// This many bytes of the good buffer.
    pub fn sized(&self, len: u32) -> Piece {
        Piece { len, ..self.good() }
    }

    pub fn at(&self, address: u64, len: u32) -> Piece {
        Piece {
            address,
            len,
            ..self.good()
        }
    }

    pub fn flagged(&self, flags: u16) -> Piece {
        Piece {
            flags,
            ..self.good()
        }
    }

    /// One chain of these.
    pub fn post(&self, pieces: &[Piece]) -> Result<(), Error> {
        let last = pieces.len() - 1;
        let mut chain = pieces.to_vec();
        chain[..last]
            .iter_mut()
            .for_each(|piece| piece.flags |= NEXT);
        self.ring.post_pieces(&chain)
    }

    /// A table of these, linked in order, and the descriptor that refers to `len` bytes of it.
    pub fn post_table(&self, entries: &[Piece], len: u32, flags: u16) -> Result<(), Error> {
        let last = entries.len() - 1;
        for (at, entry) in entries.iter().enumerate() {
            let chained = if at < last { NEXT } else { 0 };
            let entry = Piece {
                flags: entry.flags | chained,
                ..*entry
            };
            let bytes = R::table_entry(entry, at as u16 + 1);
            self.table.slice(16 * at, 16)?.copy_from(&bytes);
        }
        self.post(&[self.table(len, flags)])
    }

    /// A descriptor that refers to this many bytes of the table.
    pub fn table(&self, len: u32, flags: u16) -> Piece {
        Piece {
            address: self.table.guest_address(),
            len,
            flags: INDIRECT | flags,
        }
    }
}

pub(super) const fn tx<R>(name: &'static str, act: Act<R>) -> HostileChain<R> {
    HostileChain {
        name,
        side: Side::GuestTx,
        act,
    }
}

pub(super) const fn rx<R>(name: &'static str, act: Act<R>) -> HostileChain<R> {
    HostileChain {
        name,
        side: Side::GuestRx,
        act,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::Features;
    use crate::memory::GuestMemoryLayout;
    use crate::ring::Place;
    use crate::ring::Virtqueue;

    const PACKED: Features =
        Features::from_bits(Features::LINUX.bits() | Features::RING_PACKED.bits());

    fn ring(size: u16, features: Features) -> (Virtqueue, GuestMemory) {
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(1 << 20)).unwrap();
        let ring = Virtqueue::new(0, &memory, Place::region(0), size, features).unwrap();
        (ring, memory)
    }

    /// Plays every case on a fresh ring of each size; `looked_at` says whether a device would see something in it.
    fn play<R: Hostile>(
        cases: &[HostileChain<R>],
        features: Features,
        raw: fn(&Virtqueue) -> R,
        looked_at: fn(&R) -> bool,
    ) {
        let mut names = HashSet::new();
        for case in cases {
            assert!(names.insert(case.name), "{} twice", case.name);
            for size in [256, 4] {
                let (ring, memory) = ring(size, features);
                let raw = raw(&ring);
                case.play(&raw, &memory)
                    .unwrap_or_else(|error| panic!("{}: {error}", case.name));
                assert!(looked_at(&raw), "{} on {size}", case.name);
                assert!(ring.kick_eventfd().read().is_ok(), "{}", case.name);
            }
        }
    }

    #[test]
    fn every_case_makes_something_available_and_kicks() {
        play(
            &chains(),
            Features::LINUX,
            |ring| ring.raw().unwrap(),
            |raw| raw.avail_index().unwrap() != 0,
        );
    }

    #[test]
    fn every_packed_case_writes_descriptors_and_kicks() {
        play(
            &packed_chains(),
            PACKED,
            |ring| ring.raw_packed().unwrap(),
            |raw| {
                (0..raw.size()).any(|at| raw.descriptor(at).unwrap() != PackedDescriptor::default())
            },
        );
    }
}
