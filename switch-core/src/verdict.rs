//! What the switch decided for a frame.

use crate::drop_reason::DropReason;
use crate::outcomes::{CopiesId, EditListId, PuntId};
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
        /// How its header changes.
        edit: HeaderEdit,
    },
    /// It leaves by every other port of its broadcast domain:
    /// [`Pipeline::flood_members`](crate::Pipeline::flood_members) names them.
    Flood(Flood),
    /// Each of these copies, of any number, leaves by itself: [`Outcomes::copies`](crate::Outcomes::copies) lists them.
    Copies(CopiesId),
}

/// How a header changes on the way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderEdit {
    /// At most in its outer VLAN tag.
    Vlan(VlanEdit),
    /// As a list says: [`Outcomes::edit_list`](crate::Outcomes::edit_list).
    List(EditListId),
}

impl HeaderEdit {
    /// Not at all.
    pub const NONE: Self = Self::Vlan(VlanEdit::None);

    /// Whether it does not change at all.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        // One number tells; a derived comparison takes them one by one.
        matches!(self, Self::Vlan(VlanEdit::None))
    }
}

impl From<VlanEdit> for HeaderEdit {
    fn from(edit: VlanEdit) -> Self {
        Self::Vlan(edit)
    }
}

/// One of several copies of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameCopy {
    /// Where it goes.
    pub target: Target,
    /// How its header changes; what goes to the controller is the frame as it came.
    pub edit: HeaderEdit,
}

/// Where a copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Out of a port.
    Port(PortId),
    /// To the control side, with what [`Outcomes::punt`](crate::Outcomes::punt) says.
    Controller(PuntId),
    /// Nowhere: the frame itself was dropped, whatever copies of it went elsewhere. Counted, not sent.
    Drop(DropReason),
}

/// What the control side is told about a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Punt {
    /// Why it gets the frame.
    pub reason: PuntReason,
    /// Numbers that belong to the reason; 0 where there is none.
    pub args: [u128; 4],
}

/// The number of a reason, by the order of a program's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PuntReason(pub u16);

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
        assert_eq!(size_of::<HeaderEdit>(), size_of::<VlanEdit>());
    }
}
