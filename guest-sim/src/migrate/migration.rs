//! A migration without a destination: rounds of copying what was written, and in the end a comparison of everything.
//!
//! Called on the thread that sends messages, while the guest's driver and the back-end go on on theirs. Keeps true: a page's mark is
//! cleared before the page is copied, so that whatever is written later marks it again.

use super::shadow::Shadow;
use crate::error::{DeviceFault, Error};
use crate::memory::{GuestMemory, RegionLayout};
use crate::nic::device::MemoryUpdate;
use crate::nic::{MessageOrder, Vmm};

/// What one round copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Pages the guest wrote.
    pub guest: usize,
    /// Pages the back-end marked.
    pub device: usize,
}

/// Which of the back-end's marks a broken reader would miss.
type Blindness = Box<dyn FnMut(u64) -> bool + Send>;

/// A migration under way.
pub struct Migration {
    shadow: Shadow,
    blind: Option<Blindness>,
    rounds: Vec<Round>,
}

impl std::fmt::Debug for Migration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Migration");
        debug.field("rounds", &self.rounds).finish_non_exhaustive()
    }
}

impl Migration {
    /// Starts logging, and copies everything once.
    ///
    /// # Errors
    /// As [`Vmm::start_logging`].
    pub fn begin(vmm: &mut Vmm<'_>) -> Result<Self, Error> {
        let shadow = Shadow::new(vmm.memory())?;
        vmm.memory().track_writes(true);
        vmm.start_logging()?;
        shadow.copy_all()?;
        Ok(Self {
            shadow,
            blind: None,
            rounds: Vec::new(),
        })
    }

    /// From now on marks of the back-end for pages that `ignored` says are ignored: what a back-end is like that does not set them.
    pub fn ignore(&mut self, ignored: impl FnMut(u64) -> bool + Send + 'static) {
        self.blind = Some(Box::new(ignored));
    }

    /// One round: copies every page written since the last.
    ///
    /// # Errors
    /// As [`Vmm::take_logged`]; [`MemoryError::Unmapped`](crate::memory::MemoryError::Unmapped) when a page is marked that is none.
    pub fn round(&mut self, vmm: &mut Vmm<'_>) -> Result<Round, Error> {
        let mut marked = vmm.take_logged()?;
        if let Some(blind) = &mut self.blind {
            marked.retain(|&page| !blind(page));
        }
        let written = vmm.memory().take_written();
        self.shadow.copy_pages(&marked)?;
        self.shadow.copy_pages(&written)?;
        let round = Round {
            guest: written.len(),
            device: marked.len(),
        };
        self.rounds.push(round);
        Ok(round)
    }

    /// Memory is plugged in meanwhile.
    ///
    /// # Errors
    /// As [`Vmm::add_region`].
    pub fn add_region(
        &mut self,
        vmm: &mut Vmm<'_>,
        layout: RegionLayout,
        how: MemoryUpdate,
    ) -> Result<usize, Error> {
        let index = vmm.add_region(layout, how)?;
        vmm.memory().region(index)?.track_writes(true);
        self.shadow.add_region(layout)?;
        Ok(index)
    }

    /// The guest is paused (its driver must be): stops the rings, copies what is left, and compares all of memory.
    ///
    /// # Errors
    /// [`DeviceFault::NotMarked`] when a byte differs; [`DeviceFault::MarkedAfterStop`] when pages were marked behind the last round.
    pub fn finish(&mut self, vmm: &mut Vmm<'_>) -> Result<(), Error> {
        vmm.pause()?;
        self.round(vmm)?;
        if vmm.order() == MessageOrder::CloudHypervisor {
            self.round(vmm)?;
        }
        vmm.memory().track_writes(false);
        self.shadow.compare()?;
        // The log is still the back-end's: stopped rings have nothing to mark.
        let late = vmm.log().map(|log| log.take()).transpose()?;
        match late.unwrap_or_default().as_slice() {
            [] => Ok(()),
            pages => Err(DeviceFault::MarkedAfterStop {
                page: pages[0],
                pages: pages.len(),
            }
            .into()),
        }
    }

    /// Compares all of memory once more: nobody may have written to the source since [`Self::finish`], nor yet to the copy.
    ///
    /// # Errors
    /// [`DeviceFault::NotMarked`].
    pub fn compare(&self) -> Result<(), Error> {
        self.shadow.compare()
    }

    /// The copy: what a destination has.
    pub fn memory(&self) -> &GuestMemory {
        self.shadow.copy()
    }

    /// What each round copied.
    pub fn rounds(&self) -> &[Round] {
        &self.rounds
    }
}
