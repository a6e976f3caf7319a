//! The name of a port inside the core.

use std::fmt;

/// A port's dense index: small numbers, reused after a port is gone, usable as an array index by whoever holds per-port data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(u16);

impl PortId {
    /// How many ports a switch can have. A flow key packs the id into 14 bits beside two tag flags.
    pub const LIMIT: usize = 1 << 14;

    /// The port with this index, or `None` at [`PortId::LIMIT`] and beyond.
    pub const fn new(index: u16) -> Option<Self> {
        if (index as usize) < Self::LIMIT {
            Some(Self(index))
        } else {
            None
        }
    }

    /// The index, as a number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The index, for arrays.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The port in the low 14 bits of `bits`: how a packed verdict holds one.
    pub(crate) const fn from_low_bits(bits: u16) -> Self {
        Self(bits & (Self::LIMIT as u16 - 1))
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
