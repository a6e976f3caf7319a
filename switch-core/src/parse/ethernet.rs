//! The Ethernet header and its VLAN tags: all that the switching decision reads.
//!
//! Called once for each frame, on the worker that read it, so it looks at the first 18 bytes at most.

use crate::drop_reason::DropReason;
use crate::mac::MacAddress;
use crate::vlan::Tci;

use super::bytes::{array_at, u16_at};

/// The length of an Ethernet header without tags.
pub const ETHERNET_HEADER_BYTES: usize = 14;
/// The length of one VLAN tag.
pub const VLAN_TAG_BYTES: usize = 4;
/// The TPID of a customer tag (IEEE 802.1Q-2018 table 9-1); the one the switch pushes.
pub const TPID_CUSTOMER: u16 = 0x8100;
/// The TPID of a service tag (IEEE 802.1Q-2018 table 9-1).
pub const TPID_SERVICE: u16 = 0x88a8;
/// The TPID that equipment older than IEEE 802.1ad uses for stacked tags.
pub const TPID_LEGACY_STACKED: u16 = 0x9100;

/// Whether this EtherType announces a VLAN tag.
#[inline]
pub const fn is_vlan_tpid(ether_type: u16) -> bool {
    matches!(
        ether_type,
        TPID_CUSTOMER | TPID_SERVICE | TPID_LEGACY_STACKED
    )
}

/// A VLAN tag as it stands in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VlanTag {
    /// The tag's protocol identifier.
    pub tpid: u16,
    /// Its priority and VLAN.
    pub tci: Tci,
}

/// The part of a frame that a switch looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EthernetHeader {
    /// The station the frame is for.
    pub destination: MacAddress,
    /// The station the frame is from.
    pub source: MacAddress,
    /// The outer VLAN tag.
    pub tag: Option<VlanTag>,
    /// The EtherType behind the outer tag, if any. A further tag's TPID when tags are stacked.
    pub ether_type: u16,
}

impl EthernetHeader {
    /// Reads the header at the start of `frame`.
    ///
    /// # Errors
    /// [`DropReason::FrameTooShort`] below 14 bytes, [`DropReason::VlanTagTruncated`] when the frame ends inside its tag.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<Self, DropReason> {
        let (Some(destination), Some(source), Some(first_type)) =
            (array_at(frame, 0), array_at(frame, 6), u16_at(frame, 12))
        else {
            return Err(DropReason::FrameTooShort);
        };
        let (tag, ether_type) = if is_vlan_tpid(first_type) {
            let (Some(tci), Some(inner_type)) = (u16_at(frame, 14), u16_at(frame, 16)) else {
                return Err(DropReason::VlanTagTruncated);
            };
            (
                Some(VlanTag {
                    tpid: first_type,
                    tci: Tci(tci),
                }),
                inner_type,
            )
        } else {
            (None, first_type)
        };
        Ok(Self {
            destination: MacAddress(destination),
            source: MacAddress(source),
            tag,
            ether_type,
        })
    }

    /// Whether a second tag follows the first.
    #[inline]
    pub const fn has_stacked_tag(&self) -> bool {
        self.tag.is_some() && is_vlan_tpid(self.ether_type)
    }
}
