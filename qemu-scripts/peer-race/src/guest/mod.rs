//! The guest, on its core: testpmd where it can play the part, guest-sim elsewhere.
//!
//! Keeps true: what a guest reports is what arrived at it, in a time taken next to its counters.

mod testpmd;

use std::path::Path;
use std::time::Duration;

use crate::case::{Load, Player, Rig};
use crate::error::Result;
use crate::machine::Machine;
use crate::switch::Switch;

/// What a guest saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seen {
    /// Traffic.
    Rate(Rate),
}

/// Traffic that arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// At all ports together.
    pub frames_per_s: f64,
    /// Of frame bytes, without FCS.
    pub bits_per_s: f64,
}

/// A guest with all its ports connected to one switch.
pub trait Guest {
    /// Off its core.
    ///
    /// # Errors
    /// It ended.
    fn freeze(&mut self) -> Result<()>;
    /// Back on its core.
    ///
    /// # Errors
    /// It ended.
    fn thaw(&mut self) -> Result<()>;
    /// Puts this on its way instead of what was before.
    ///
    /// # Errors
    /// The traffic does not flow.
    fn load(&mut self, load: &Load) -> Result<()>;
    /// Lets it flow for a time.
    ///
    /// # Errors
    /// It ended, or traffic stopped.
    fn warm_up(&mut self, time: Duration) -> Result<()>;
    /// Lets it flow for a time and looks.
    ///
    /// # Errors
    /// It ended, or traffic stopped.
    fn measure(&mut self, time: Duration) -> Result<Seen>;
    /// Ends it.
    ///
    /// # Errors
    /// It cannot be signalled.
    fn stop(self: Box<Self>) -> Result<()>;
}

/// Starts a rig's guest and connects it to a running switch.
///
/// # Errors
/// It does not start, or the switch does not take it.
pub fn start(
    machine: &Machine,
    folder: &Path,
    rig: &Rig,
    switch: &dyn Switch,
) -> Result<Box<dyn Guest>> {
    Ok(match rig.player {
        Player::Testpmd => Box::new(testpmd::TestpmdGuest::start(machine, folder, rig, switch)?),
        Player::GuestSim => unimplemented!(),
    })
}
