//! What the default program can tell two frames apart by, in 16 bytes.
//!
//! The key of the flow cache, and all that the slow path sees of a frame: a verdict cannot depend on what the cache does not
//! compare. Built by the worker for each frame.

use crate::drop_reason::DropReason;
use crate::mac::MacAddress;
use crate::parse::{EthernetHeader, is_vlan_tpid};
use crate::port::PortId;
use crate::verdict::{FrameTag, TagStacking};
use crate::vlan::Tci;

/// `low`: destination and the first two bytes of the source. `high`: the rest of the source, the outer tag's TCI (0 without
/// one), the port in 14 bits, and two flags: tagged, stacked. Byte order is the frame's own, read as little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowKey {
    pub low: u64,
    pub high: u64,
}

const TCI_SHIFT: u32 = 32;
const PORT_SHIFT: u32 = 48;
const TAGGED: u64 = 1 << 62;
const STACKED: u64 = 1 << 63;

impl FlowKey {
    /// The key of a frame that came from `in_port` and starts with `header`.
    #[inline]
    pub(crate) fn parse(in_port: PortId, header: &[u8]) -> Result<Self, DropReason> {
        let Some(
            &[
                d0,
                d1,
                d2,
                d3,
                d4,
                d5,
                s0,
                s1,
                s2,
                s3,
                s4,
                s5,
                t0,
                t1,
                c0,
                c1,
                i0,
                i1,
            ],
        ) = header.first_chunk::<18>()
        else {
            return Self::of_short_frame(in_port, header);
        };
        let mut key = Self {
            low: u64::from_le_bytes([d0, d1, d2, d3, d4, d5, s0, s1]),
            high: u64::from(u32::from_le_bytes([s2, s3, s4, s5]))
                | u64::from(in_port.get()) << PORT_SHIFT,
        };
        if is_vlan_tpid(u16::from_be_bytes([t0, t1])) {
            key.high |= TAGGED | u64::from(u16::from_be_bytes([c0, c1])) << TCI_SHIFT;
            if is_vlan_tpid(u16::from_be_bytes([i0, i1])) {
                key.high |= STACKED;
            }
        }
        Ok(key)
    }

    #[cold]
    fn of_short_frame(in_port: PortId, header: &[u8]) -> Result<Self, DropReason> {
        let ethernet = EthernetHeader::parse(header)?;
        let mut padded = [0; 18];
        let [destination @ .., _, _, _, _, _, _, _, _, _, _, _, _] = &mut padded;
        *destination = ethernet.destination.0;
        let [_, _, _, _, _, _, source @ .., _, _, _, _, _, _] = &mut padded;
        *source = ethernet.source.0;
        // A frame this short that parses has no tag: a tag takes it to 18 bytes.
        Self::parse(in_port, &padded)
    }

    pub(crate) fn in_port(self) -> PortId {
        PortId::from_low_bits((self.high >> PORT_SHIFT) as u16)
    }

    pub(crate) fn destination(self) -> MacAddress {
        let [a, b, c, d, e, f, _, _] = self.low.to_le_bytes();
        MacAddress([a, b, c, d, e, f])
    }

    pub(crate) fn source(self) -> MacAddress {
        let [.., a, b] = self.low.to_le_bytes();
        let [c, d, e, f, ..] = self.high.to_le_bytes();
        MacAddress([a, b, c, d, e, f])
    }

    pub(crate) fn tag(self) -> FrameTag {
        let tci = Tci((self.high >> TCI_SHIFT) as u16);
        match (self.high & TAGGED != 0, tci.vid()) {
            (false, _) => FrameTag::Untagged,
            (true, 0) => FrameTag::Priority(tci),
            (true, _) => FrameTag::Tagged(tci),
        }
    }

    pub(crate) fn stacking(self) -> TagStacking {
        if self.high & STACKED != 0 {
            TagStacking::Stacked
        } else {
            TagStacking::Single
        }
    }
}
