//! Migration drills: a guest moves from QEMU to QEMU, and what its network went through is measured by the peer it talks to.
//!
//! * [`switches`]: two of them, joined by a TAP pair;
//! * [`site`]: these, a peer, and the guest that moves round their ports;
//! * [`load`]: the traffic meanwhile, every byte of it checked;
//! * [`exercise`]: one run of a mode;
//! * [`report`]: the runs, their medians and the verdict.

pub mod exercise;
pub mod load;
pub mod report;
pub mod site;
pub mod switches;

use load::Load;
use report::{Report, Run};
use site::Site;

use crate::Result;

/// What is drilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The guest moves after its memory did.
    Precopy,
    /// The guest moves before all of its memory did.
    Postcopy,
    /// The move is called off, then fails, then succeeds.
    Cancel,
}

impl Mode {
    /// As on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Precopy => "precopy",
            Self::Postcopy => "postcopy",
            Self::Cancel => "cancel",
        }
    }
}

/// Runs a mode `runs` times, and tells `each` of every run that is over.
///
/// # Errors
/// A migration ends otherwise than it should, or the lab does not work.
pub fn drill(
    site: &mut Site,
    (mode, load): (Mode, Load),
    runs: u32,
    mut each: impl FnMut(&Run),
) -> Result<Report> {
    let mut report = Report::of(mode, load, site.guest().spec().queue_pairs);
    for number in 1..=runs {
        let run = exercise::run(site, mode, load, number)?;
        each(&run);
        report.runs.push(run);
    }
    Ok(report)
}
