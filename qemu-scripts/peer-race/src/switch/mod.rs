//! The three sides of the race, each started, frozen, thawed and asked the same way.
//!
//! `ringswitch` (ours, and once more as its own reference), `ovs` (OVS-DPDK, `NORMAL`), `io` (DPDK's vhost I/O forwarding). Keeps true: whatever a side reports as busy is time or
//! cycles in polls that found frames; where it cannot tell, it says so.

mod io;
mod ovs;
mod ringswitch;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::case::Rig;
use crate::error::Result;
use crate::machine::Machine;
use crate::process::Process;

/// Who races.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Ringswitch with one worker.
    Ringswitch,
    /// OVS-DPDK with one polling thread, forwarding by MAC address.
    Ovs,
    /// testpmd forwarding between two `net_vhost` ports: no switch, the limit of copying twice.
    Io,
    /// Ringswitch once more, without what the case is about.
    Reference,
}

impl Side {
    /// All, in the order of their turns.
    pub const ALL: [Self; 4] = [Self::Ringswitch, Self::Ovs, Self::Io, Self::Reference];
    /// Those that Ringswitch is compared with.
    pub const PEERS: [Self; 3] = [Self::Ovs, Self::Io, Self::Reference];

    /// Short and stable, for JSON and flags.
    pub fn key(self) -> &'static str {
        match self {
            Self::Ringswitch => "ringswitch",
            Self::Ovs => "ovs",
            Self::Io => "io",
            Self::Reference => "reference",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ringswitch => "Ringswitch",
            Self::Ovs => "OVS-DPDK",
            Self::Io => "I/O forwarding",
            Self::Reference => "its reference",
        })
    }
}

/// What the switch's core spent on some frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spent {
    /// Cycles of polls that found frames, or of all time awake: see `exact`.
    pub cycles: f64,
    /// Frames taken from guests.
    pub frames: f64,
    /// False: vain polls are in the cycles, which are then an upper bound.
    pub exact: bool,
    /// Frames of the two ports that are raced that were dropped, where it is known port by port.
    pub dropped: Option<f64>,
}

/// A running switch.
pub trait Switch {
    /// Which.
    fn side(&self) -> Side;
    /// Where the guest's port number `port` connects.
    fn socket(&self, port: usize) -> PathBuf;
    /// Whether the guest listens on the sockets, and the switch connects.
    fn connects(&self) -> bool {
        false
    }
    /// What forwards.
    fn process(&mut self) -> &mut Process;
    /// Off its core.
    ///
    /// # Errors
    /// It ended.
    fn freeze(&mut self) -> Result<()> {
        self.process().freeze()
    }
    /// Back on its core.
    ///
    /// # Errors
    /// It ended.
    fn thaw(&mut self) -> Result<()> {
        self.process().thaw()
    }
    /// How many settings it has for traffic of many flows; the first is the default.
    fn settings(&self) -> usize {
        1
    }
    /// Takes one of them, from now on.
    ///
    /// # Errors
    /// It does not answer.
    fn choose(&mut self, _setting: usize) -> Result<()> {
        Ok(())
    }
    /// Connections that it tracks, counted no further than `most`; `None`: it cannot tell.
    ///
    /// # Errors
    /// It does not answer.
    fn connections(&mut self, _most: usize) -> Result<Option<usize>> {
        Ok(None)
    }
    /// Forgets its connections, where it can be told to.
    ///
    /// # Errors
    /// It does not answer.
    fn forget_connections(&mut self) -> Result<()> {
        Ok(())
    }
    /// Counts from here.
    ///
    /// # Errors
    /// It does not answer.
    fn begin(&mut self) -> Result<()>;
    /// What was spent since [`Self::begin`].
    ///
    /// # Errors
    /// It does not answer.
    fn end(&mut self) -> Result<Spent>;
    /// Ends it.
    ///
    /// # Errors
    /// It cannot be signalled.
    fn stop(self: Box<Self>) -> Result<()>;
}

/// Starts one side for a rig, in a fresh folder of its own.
///
/// # Errors
/// It does not start, or does not offer what the rig needs.
pub fn start(side: Side, machine: &Machine, folder: &Path, rig: &Rig) -> Result<Box<dyn Switch>> {
    Ok(match side {
        Side::Ringswitch | Side::Reference => {
            Box::new(ringswitch::Ringswitch::start(machine, folder, rig, side)?)
        }
        Side::Ovs => Box::new(ovs::Ovs::start(machine, folder, rig)?),
        Side::Io => Box::new(io::Io::start(machine, folder, rig)?),
    })
}
