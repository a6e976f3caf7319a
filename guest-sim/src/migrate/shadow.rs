//! The memory a destination would have: a copy, page by page.
//!
//! Used by `migration`, while the guest and the back-end write to the source. Keeps true: nothing but these copies ever changes it.

use std::sync::Arc;

use crate::error::{DeviceFault, Error};
use crate::memory::{GuestMemory, MemoryError, PAGE_BYTES, Region, RegionLayout};

/// Bytes compared or copied at once.
const STEP_BYTES: usize = 64 << 10;

/// A VM's memory and the copy of it.
#[derive(Debug)]
pub struct Shadow {
    source: GuestMemory,
    copy: GuestMemory,
}

impl Shadow {
    /// An empty copy.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn new(source: &GuestMemory) -> Result<Self, Error> {
        Ok(Self {
            source: source.clone(),
            copy: source.twin()?,
        })
    }

    /// The copy.
    pub fn copy(&self) -> &GuestMemory {
        &self.copy
    }

    /// Memory was plugged into the source: so it is into the copy, and copied whole.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn add_region(&mut self, layout: RegionLayout) -> Result<(), Error> {
        let index = self.copy.add_region(layout)?;
        let copy = self.copy.region(index)?;
        for source in self.source.regions() {
            if source.layout() == layout {
                copy_region(&source, &copy)?;
            }
        }
        Ok(())
    }

    /// Copies everything.
    ///
    /// # Errors
    /// When memory has gone.
    pub fn copy_all(&self) -> Result<(), Error> {
        for (source, copy) in self.pairs() {
            copy_region(&source, &copy)?;
        }
        Ok(())
    }

    /// Copies these pages. Pages outside of memory are an error: who marked them?
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`].
    pub fn copy_pages(&self, pages: &[u64]) -> Result<(), Error> {
        let mut bytes = [0; PAGE_BYTES as usize];
        for page in pages {
            let address = page * PAGE_BYTES;
            self.source.read(address, &mut bytes)?;
            self.copy.write(address, &bytes)?;
        }
        Ok(())
    }

    /// Compares every byte. Neither side may be written to meanwhile.
    ///
    /// # Errors
    /// [`DeviceFault::NotMarked`] with the first byte that differs.
    pub fn compare(&self) -> Result<(), Error> {
        let (mut first, mut pages) = (None, 0);
        for (source, copy) in self.pairs() {
            for_each_step(&source, |at, bytes| {
                let mut copied = vec![0; bytes.len()];
                read(&copy, at, &mut copied)?;
                if *bytes == copied {
                    return Ok(());
                }
                let starts = (0..bytes.len()).step_by(PAGE_BYTES as usize);
                for start in starts {
                    let end = (start + PAGE_BYTES as usize).min(bytes.len());
                    let (ours, theirs) = (&bytes[start..end], &copied[start..end]);
                    let differs = ours
                        .iter()
                        .zip(theirs)
                        .position(|(one, other)| one != other);
                    let Some(offset) = differs else { continue };
                    let address = source.layout().guest_base + (at + start + offset) as u64;
                    first.get_or_insert((address, ours[offset], theirs[offset]));
                    pages += 1;
                }
                Ok(())
            })?;
        }
        match first {
            None => Ok(()),
            Some((address, source, copy)) => Err(DeviceFault::NotMarked {
                address,
                source_byte: source,
                copied_byte: copy,
                pages,
            }
            .into()),
        }
    }

    fn pairs(&self) -> Vec<(Arc<Region>, Arc<Region>)> {
        let regions = self.source.regions().into_iter();
        regions.zip(self.copy.regions()).collect()
    }
}

fn copy_region(source: &Region, copy: &Region) -> Result<(), Error> {
    for_each_step(source, |at, bytes| {
        // What was never written stays without a page of its own.
        let mut there = vec![0; bytes.len()];
        read(copy, at, &mut there)?;
        if there != *bytes {
            let slice = copy.slice(at, bytes.len());
            slice.map_err(|_| unmapped(copy, at))?.copy_from(bytes);
        }
        Ok(())
    })
}

fn for_each_step(
    region: &Region,
    mut act: impl FnMut(usize, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let size = region.layout().size_bytes as usize;
    let mut bytes = vec![0; STEP_BYTES];
    for at in (0..size).step_by(STEP_BYTES) {
        let step = STEP_BYTES.min(size - at);
        read(region, at, &mut bytes[..step])?;
        act(at, &bytes[..step])?;
    }
    Ok(())
}

fn read(region: &Region, at: usize, bytes: &mut [u8]) -> Result<(), Error> {
    let slice = region.slice(at, bytes.len());
    slice.map_err(|_| unmapped(region, at))?.copy_to(bytes);
    Ok(())
}

fn unmapped(region: &Region, at: usize) -> Error {
    let address = region.layout().guest_base + at as u64;
    let len = STEP_BYTES;
    MemoryError::Unmapped { address, len }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemoryLayout;

    #[test]
    fn one_byte_that_was_not_copied_again_is_found() {
        let memory =
            GuestMemory::new(&GuestMemoryLayout::around_pci_hole(1 << 20, 1 << 20)).unwrap();
        let shadow = Shadow::new(&memory).unwrap();
        memory.write(0x5000, b"before").unwrap();
        shadow.copy_all().unwrap();
        shadow.compare().unwrap();
        let address = (1 << 32) + 0x1_2345;
        memory.write(address, b"!").unwrap();
        memory.write((1 << 32) + 0x2_0000, b"!").unwrap();
        let found = shadow.compare().unwrap_err();
        let expected = DeviceFault::NotMarked {
            address,
            source_byte: b'!',
            copied_byte: 0,
            pages: 2,
        };
        assert!(matches!(found, Error::Device(fault) if fault == expected));
        let pages = [address >> 12, ((1 << 32) + 0x2_0000) >> 12];
        shadow.copy_pages(&pages).unwrap();
        shadow.compare().unwrap();
        assert!(
            shadow.copy_pages(&[1 << 12]).is_err(),
            "a page of no region"
        );
    }
}
