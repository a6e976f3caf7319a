//! What is raced: the cases by name, and the rig each needs.
//!
//! A table, read by the race. Keeps true: cases with the same rig follow each other, so that switches and guests are started once for all of them.

use crate::switch::Side;

/// What kind of ring the guest offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Split, mergeable buffers.
    Split,
    /// Packed, in order, mergeable buffers.
    Packed,
    /// Packed, in order, no mergeable buffers: what testpmd's vectorised driver takes.
    PackedVectorised,
}

impl Ring {
    /// Whether RING_PACKED is wanted.
    pub fn is_packed(self) -> bool {
        self != Self::Split
    }
}

/// How long the rig's frames get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Up to 1,518 bytes.
    Standard,
    /// Up to 9,000 bytes.
    Jumbo,
    /// TCP segmentation offload.
    Tso,
}

/// Who plays the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Player {
    /// DPDK's testpmd, which is nobody's of the three.
    Testpmd,
    /// The repository's own, where testpmd cannot.
    GuestSim,
}

impl Player {
    /// As results are labelled.
    pub fn label(self) -> &'static str {
        match self {
            Self::Testpmd => "testpmd",
            Self::GuestSim => "guest-sim",
        }
    }
}

/// What has to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rig {
    /// Of every port.
    pub ring: Ring,
    /// Of every port.
    pub frames: Frames,
    /// Ports that take part.
    pub ports: usize,
    /// Ports that are connected and silent.
    pub idle: usize,
    /// Of every port that takes part.
    pub player: Player,
}

/// OVS-DPDK is given no more ports than this: attaching takes a time that grows with their number (62: 23 s).
const OVS_MOST_PORTS: usize = 66;

impl Rig {
    const fn of(player: Player) -> Self {
        Self {
            ring: Ring::Split,
            frames: Frames::Standard,
            ports: 2,
            idle: 0,
            player,
        }
    }

    /// Idle ports that a side gets of those the case asks for.
    pub fn idle_for(&self, side: Side) -> usize {
        match side {
            Side::Ovs => self.idle.min(OVS_MOST_PORTS - self.ports),
            Side::Ringswitch | Side::Io => self.idle,
        }
    }
}

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Two ports send each other's frames back: frames go both ways all the time.
    Bounce {
        /// Of each frame, without FCS.
        frame_bytes: usize,
        /// Frames the guest takes and gives at a time.
        burst: usize,
    },
}

impl Load {
    /// Whether a switch may choose the best of its settings for it.
    pub fn wants_best_setting(&self) -> bool {
        false
    }
}

/// One line of the result.
#[derive(Clone, Debug)]
pub struct Case {
    /// For `--only`, the records and JSON.
    pub name: &'static str,
    /// What it runs on.
    pub rig: Rig,
    /// What is done.
    pub load: Load,
    /// Whether `--quick` has it.
    pub quick: bool,
}

const fn bounce(name: &'static str, rig: Rig, frame_bytes: usize, quick: bool) -> Case {
    Case {
        name,
        rig,
        load: Load::Bounce {
            frame_bytes,
            burst: 32,
        },
        quick,
    }
}

/// Every case, in the order in which they are run.
pub fn all() -> Vec<Case> {
    let plain = Rig::of(Player::Testpmd);
    vec![
        bounce("64", plain, 64, true),
        bounce("128", plain, 128, false),
        bounce("256", plain, 256, false),
        bounce("512", plain, 512, true),
        bounce("1024", plain, 1024, false),
        bounce("1518", plain, 1518, true),
        Case {
            name: "64-burst-4",
            rig: plain,
            load: Load::Bounce {
                frame_bytes: 64,
                burst: 4,
            },
            quick: false,
        },
    ]
}
