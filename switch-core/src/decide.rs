//! What a worker asks for each frame, whichever program answers.

use crate::engine::edit::PartialChecksum;
use crate::flow_list::FlowWalk;
use crate::outcomes::Outcomes;
use crate::pipeline::Pipeline;
use crate::port::PortId;
use crate::time::Millis;
use crate::verdict::{Flood, Verdict};
use crate::vlan_edit::VlanEdit;

/// What a frame is decided on.
#[derive(Clone, Copy, Debug)]
pub struct FrameInfo<'a> {
    /// A private copy of its start: at least its first 18 bytes, or all of a shorter frame.
    pub header: &'a [u8],
    /// Its length.
    pub frame_bytes: u32,
    /// Length of the longest piece that it will be cut into; its own when it is not to be cut.
    pub wire_bytes: u32,
    /// The checksum that its receiver is to finish.
    pub partial_checksum: Option<PartialChecksum>,
}

/// What a worker's cache of verdicts was asked, and what is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// Frames that were decided by the tables.
    pub misses: u64,
    /// Flows that are remembered; `None` where that is not counted.
    pub flows: Option<u64>,
}

/// Decides what happens to frames, batch by batch. Each worker has its own.
pub trait Decide {
    /// Begins a batch: ids of the one before are good no longer.
    fn begin_batch(&mut self, now: Millis);

    /// Tells of frames that are to be decided on next, in this order, so that what is known of them can be fetched for all at once.
    #[inline(always)]
    fn foresee<'a>(&mut self, _: PortId, _: impl Iterator<Item = FrameInfo<'a>>) {}

    /// Decides what happens to a frame that came from `in_port`.
    fn decide(&mut self, in_port: PortId, frame: &FrameInfo<'_>) -> Verdict;

    /// Whether some frames take as long as dozens of others, so that their port has to be held to a budget.
    const HAS_COSTLY_FRAMES: bool = false;

    /// Whether there was such a frame since the last call.
    fn take_costly(&mut self) -> bool {
        false
    }

    /// No batch comes for a while: what was counted here is told to whoever may ask meanwhile. `true` when there is more of it than can be
    /// told at once: to be called again, if no batch came.
    fn rest(&mut self) -> bool {
        false
    }

    /// The ports a flooded frame leaves by, each with its edit; never the one it came from. For a flood of this batch.
    fn flood_members(&self, flood: Flood) -> impl Iterator<Item = (PortId, VlanEdit)> + '_;

    /// What the verdicts of this batch refer to.
    fn outcomes(&self) -> &Outcomes;

    /// What its cache was asked so far.
    fn cache_use(&self) -> CacheUse {
        CacheUse::default()
    }

    /// Goes on with a walk through what is remembered, by one step; between two batches. Looks, and changes nothing.
    fn list_flows(&self, walk: &mut FlowWalk, _now: Millis) {
        walk.end();
    }
}

impl Decide for Pipeline {
    #[inline]
    fn begin_batch(&mut self, now: Millis) {
        Self::begin_batch(self, now);
    }

    #[inline(always)]
    fn decide(&mut self, in_port: PortId, frame: &FrameInfo<'_>) -> Verdict {
        self.classify(in_port, frame.header)
    }

    #[inline]
    fn flood_members(&self, flood: Flood) -> impl Iterator<Item = (PortId, VlanEdit)> + '_ {
        Self::flood_members(self, flood)
    }

    #[inline]
    fn outcomes(&self) -> &Outcomes {
        Self::outcomes(self)
    }

    fn cache_use(&self) -> CacheUse {
        CacheUse {
            misses: self.stats().misses,
            flows: None,
        }
    }

    fn list_flows(&self, walk: &mut FlowWalk, now: Millis) {
        Self::list_flows(self, walk, now);
    }
}
