//! A VM's memory that arrives page by page, as a port's attachment has it: the pages that are missing, and the pager that fetches them.
//!
//! From the front-end's announcement of a postcopy phase (POSTCOPY_ADVISE) to its end. Served on the device thread when its descriptors are ready.

use crate::pager::client::{Pager, PagerEnd};
use crate::ring::{GuestMemory, MemoryError, MissingPages, RegionLayout};
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Regions that a pager is told of at most, those that went again included: each is a descriptor until it is mapped there.
const MAX_TOLD: usize = 1024;

/// What was heard of the pager.
#[derive(Debug, Default)]
pub struct News {
    /// It is ready, and this is its userfaultfd; or it will never be, and why.
    pub ready: Option<Result<OwnedFd, PagerEnd>>,
    /// Pages came.
    pub arrived: bool,
}

/// Memory that arrives.
#[derive(Debug)]
pub struct Receiving {
    pager: Option<Pager>,
    missing: Arc<MissingPages>,
    /// The front-end was told.
    is_ready: bool,
    /// Where the pager's last region ends.
    pager_end: u64,
    /// Regions so far.
    told: usize,
    /// Where the pager has the first byte of each region, by guest-physical address.
    first_bytes: BTreeMap<u64, u64>,
}

impl Receiving {
    /// Starts a pager.
    ///
    /// # Errors
    /// No process or descriptor is to be had.
    pub fn start() -> Result<Self, PagerEnd> {
        let missing = MissingPages::new().map_err(PagerEnd::Start)?;
        Ok(Self {
            pager: Some(Pager::start()?),
            missing: Arc::new(missing),
            is_ready: false,
            pager_end: 0,
            told: 0,
            first_bytes: BTreeMap::new(),
        })
    }

    /// The same map, whose new regions are received.
    ///
    /// # Errors
    /// The pager cannot have them.
    pub fn receive(
        &mut self,
        memory: &GuestMemory,
        is_new: impl Fn(&RegionLayout) -> bool,
    ) -> Result<Arc<GuestMemory>, MemoryError> {
        let layouts: Vec<_> = memory.regions().into_iter().filter(&is_new).collect();
        self.told += layouts.len();
        if let Some(layout) = layouts.first().filter(|_| self.told > MAX_TOLD) {
            let guest_phys_addr = layout.guest_phys_addr;
            return Err(MemoryError::NoPagerAddress { guest_phys_addr });
        }
        let (memory, regions) = memory.receiving(&self.missing, &mut self.pager_end, &is_new)?;
        for (layout, region) in layouts.iter().zip(&regions) {
            let guest_phys_addr = layout.guest_phys_addr;
            self.first_bytes.insert(guest_phys_addr, region.first_byte);
        }
        if let Some(pager) = &mut self.pager {
            pager.map(regions);
        }
        Ok(memory)
    }

    /// Where the front-end will see faults of the region that starts there.
    pub fn first_byte(&self, guest_phys_addr: u64) -> Option<u64> {
        self.first_bytes.get(&guest_phys_addr).copied()
    }

    /// The front-end knows where all regions are: pages may be fetched.
    pub fn allow_fetching(&mut self) {
        if let Some(pager) = &mut self.pager {
            pager.allow_fetching();
        }
    }

    /// Rings when pages are missing.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.missing.bell()
    }

    /// What is to be watched of the pager, and whether something waits for room there.
    pub fn watched(&self) -> Option<(BorrowedFd<'_>, bool)> {
        self.pager.as_ref().map(Pager::watched)
    }

    /// Says and hears what there is to be. A pager that fails is let go of: what is missing then comes with the end of the phase, and rings that
    /// need it wait for that.
    pub fn talk(&mut self, memory: Option<&Arc<GuestMemory>>) -> News {
        self.missing.silence();
        let Some(pager) = &mut self.pager else {
            return News::default();
        };
        let mut heard = match pager.hear() {
            Ok(heard) => heard,
            Err(end) => return self.fail(end),
        };
        for page in &heard.pages {
            if let Some(memory) = memory {
                memory.page_arrived(*page);
            }
        }
        if let Err(end) = pager.ask(&self.missing) {
            return self.fail(end);
        }
        self.is_ready |= heard.faults.is_some();
        News {
            ready: heard.faults.take().map(Ok),
            arrived: !heard.pages.is_empty(),
        }
    }

    fn fail(&mut self, end: PagerEnd) -> News {
        self.pager = None;
        log::warn!("{end}; what is missing of a guest's memory is waited for until all of it came");
        News {
            ready: (!self.is_ready).then_some(Err(end)),
            arrived: false,
        }
    }
}
