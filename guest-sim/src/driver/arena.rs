//! Buffers for frames, in powers of two, cut from guest memory and used again.
//!
//! Called by `guest_tx` and `guest_rx` of one ring, on the driver's thread. Keeps true: after the first frames of a size, no allocation; the
//! regions named in the options are used in turn.

use crate::memory::{Block, GuestMemory, MemoryError, Slice};

const SMALLEST_SHIFT: usize = 8;
const CLASSES: usize = 20;
const CHUNK_BYTES: usize = 256 << 10;

/// Which buffer; index into the arena.
pub(crate) type Slot = u32;

#[derive(Debug)]
struct Place {
    chunk: usize,
    offset: usize,
    class: usize,
}

/// One ring's buffers.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: GuestMemory,
    /// Regions to use in turn; all that exist when empty.
    regions: Vec<usize>,
    next_region: usize,
    /// Buffers before this one are not given out again.
    retired: usize,
    chunks: Vec<Block>,
    places: Vec<Place>,
    free: [Vec<Slot>; CLASSES],
}

impl Arena {
    /// Buffers from these regions in turn; from all that exist when none is named.
    pub fn new(memory: &GuestMemory, regions: &[usize]) -> Self {
        let regions = if regions.is_empty() {
            memory.indices()
        } else {
            regions.to_vec()
        };
        Self {
            memory: memory.clone(),
            regions: regions.to_vec(),
            next_region: 0,
            retired: 0,
            chunks: Vec::new(),
            places: Vec::new(),
            free: Default::default(),
        }
    }

    /// A buffer of at least `len` bytes.
    ///
    /// # Errors
    /// When no region has room left.
    pub fn take(&mut self, len: usize) -> Result<Slot, MemoryError> {
        let shift = (len.max(1).next_power_of_two().trailing_zeros() as usize).max(SMALLEST_SHIFT);
        let class = shift - SMALLEST_SHIFT;
        if class >= CLASSES {
            return Err(MemoryError::Full {
                region: 0,
                bytes: len,
            });
        }
        if self.free[class].is_empty() {
            self.grow(class)?;
        }
        self.free[class].pop().ok_or(MemoryError::Full {
            region: 0,
            bytes: len,
        })
    }

    /// Gives a buffer back.
    pub fn give_back(&mut self, slot: Slot) {
        if slot as usize >= self.retired {
            self.free[self.places[slot as usize].class].push(slot);
        }
    }

    /// From now on gives out buffers of these regions only; those of others are given up as they come back.
    pub fn use_regions(&mut self, regions: &[usize]) {
        self.regions = regions.to_vec();
        self.retired = self.places.len();
        self.free.iter_mut().for_each(Vec::clear);
    }

    /// The same buffers in memory that took the place of this one.
    pub fn move_to_memory(&mut self, memory: &GuestMemory) -> Result<(), MemoryError> {
        for chunk in &mut self.chunks {
            *chunk = chunk.in_memory(memory)?;
        }
        self.memory = memory.clone();
        Ok(())
    }

    /// Guest-physical address of a buffer.
    #[inline]
    pub fn address(&self, slot: Slot) -> u64 {
        let place = &self.places[slot as usize];
        self.chunks[place.chunk].guest_address() + place.offset as u64
    }

    /// Some bytes of a buffer.
    #[inline]
    pub fn slice(&self, slot: Slot, offset: usize, len: usize) -> Result<Slice<'_>, MemoryError> {
        let place = &self.places[slot as usize];
        self.chunks[place.chunk].slice(place.offset + offset, len)
    }

    fn grow(&mut self, class: usize) -> Result<(), MemoryError> {
        let size = 1usize << (class + SMALLEST_SHIFT);
        let block = self
            .chunk(size.max(CHUNK_BYTES))
            .or_else(|_| self.chunk(size))?;
        let (chunk, count) = (self.chunks.len(), block.len() / size);
        // Pushed from the end, so that buffers come out in ascending order.
        for piece in (0..count).rev() {
            self.free[class].push(self.places.len() as Slot);
            self.places.push(Place {
                chunk,
                offset: piece * size,
                class,
            });
        }
        self.chunks.push(block);
        Ok(())
    }

    fn chunk(&mut self, len: usize) -> Result<Block, MemoryError> {
        let mut refusal = MemoryError::Full {
            region: 0,
            bytes: len,
        };
        let regions = if self.regions.is_empty() {
            self.memory.indices()
        } else {
            self.regions.clone()
        };
        for _ in 0..regions.len() {
            let region = regions[self.next_region % regions.len()];
            self.next_region += 1;
            match self.memory.allocate(region, len, 4096) {
                Ok(block) => return Ok(block),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }
}
