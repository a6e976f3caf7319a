//! What the switch decided for a frame.

use crate::drop_reason::DropReason;
use crate::port::PortId;
use crate::vlan::{BroadcastDomain, Tci};
use crate::vlan_edit::VlanEdit;

/// What happens to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing more, for this reason.
    Drop(DropReason),
    /// It leaves by one port.
    Output {
        /// The port.
        port: PortId,
        /// The change its outer VLAN tag undergoes.
        edit: VlanEdit,
    },
    /// It leaves by every other port of its broadcast domain:
    /// [`Pipeline::flood_members`](crate::Pipeline::flood_members) names them.
    Flood(Flood),
}

/// A frame that goes to all; valid for the batch it was classified in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    pub(crate) in_port: PortId,
    pub(crate) domain: BroadcastDomain,
    pub(crate) tag: FrameTag,
    pub(crate) stacking: TagStacking,
}

impl Flood {
    /// The domain it goes to.
    pub const fn domain(&self) -> BroadcastDomain {
        self.domain
    }
}

/// A frame's outer tag, as it concerns its VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameTag {
    /// There is none.
    Untagged,
    /// Priority alone: VLAN identifier 0.
    Priority(Tci),
    /// A VLAN.
    Tagged(Tci),
}

/// Whether another tag follows the outer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TagStacking {
    /// At most one tag.
    Single,
    /// Two or more (QinQ).
    Stacked,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_fits_into_two_registers() {
        assert!(size_of::<Verdict>() <= 16);
    }
}
