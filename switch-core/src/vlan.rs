//! VLANs: identifiers, tags, and what a port does with them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A VLAN identifier a frame can belong to: 1 to 4094 (IEEE 802.1Q-2018 table 9-2: 0 means priority only, 4095 is reserved).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct VlanId(u16);

/// The number is not a VLAN identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a VLAN identifier: use a number from 1 to 4094")]
pub struct InvalidVlanId(pub u16);

impl VlanId {
    /// The VLAN with this number, or `None` outside 1 to 4094.
    pub const fn new(number: u16) -> Option<Self> {
        if number >= 1 && number <= 4094 {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for VlanId {
    type Error = InvalidVlanId;

    fn try_from(number: u16) -> Result<Self, Self::Error> {
        Self::new(number).ok_or(InvalidVlanId(number))
    }
}

impl From<VlanId> for u16 {
    fn from(vlan: VlanId) -> Self {
        vlan.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A tag's control information: PCP (3 bits), DEI (1 bit), VID (12 bits) (IEEE 802.1Q-2018 §9.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tci(pub u16);

impl Tci {
    const VID_MASK: u16 = 0x0fff;

    /// The VLAN identifier field, which may hold 0 or 4095.
    pub const fn vid(self) -> u16 {
        self.0 & Self::VID_MASK
    }

    /// The VLAN, unless the field holds 0 or 4095.
    pub const fn vlan(self) -> Option<VlanId> {
        VlanId::new(self.vid())
    }

    /// The priority code point, 0 to 7.
    pub const fn priority(self) -> u8 {
        (self.0 >> 13) as u8
    }

    /// The drop eligible indicator.
    pub const fn is_drop_eligible(self) -> bool {
        self.0 & 1 << 12 != 0
    }

    /// The same priority and drop eligibility in another VLAN.
    pub const fn with_vlan(self, vlan: VlanId) -> Self {
        Self((self.0 & !Self::VID_MASK) | vlan.0)
    }
}

impl fmt::Display for Tci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vid {} pcp {}", self.vid(), self.priority())
    }
}

/// A set of VLANs: one bit for each of the 4,096 identifiers.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet(Box<[u64; 64]>);

impl VlanSet {
    /// The empty set.
    pub fn new() -> Self {
        Self(Box::new([0; 64]))
    }

    /// Every VLAN, 1 to 4094.
    pub fn all() -> Self {
        (1..=4094).filter_map(VlanId::new).collect()
    }

    /// Adds `vlan`.
    pub fn insert(&mut self, vlan: VlanId) {
        self.0[usize::from(vlan.0 >> 6) & 63] |= 1 << (vlan.0 & 63);
    }

    /// Whether `vlan` is in the set.
    pub fn contains(&self, vlan: VlanId) -> bool {
        self.0[usize::from(vlan.0 >> 6) & 63] >> (vlan.0 & 63) & 1 != 0
    }

    /// The members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = VlanId> + '_ {
        (1..=4094)
            .filter_map(VlanId::new)
            .filter(|&vlan| self.contains(vlan))
    }
}

impl Default for VlanSet {
    fn default() -> Self {
        Self::new()
    }
}

impl FromIterator<VlanId> for VlanSet {
    fn from_iter<I: IntoIterator<Item = VlanId>>(vlans: I) -> Self {
        let mut set = Self::new();
        for vlan in vlans {
            set.insert(vlan);
        }
        set
    }
}

impl fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(VlanId::get)).finish()
    }
}

/// What a port does with VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanPolicy {
    /// No VLAN configured: all such ports share one broadcast domain of their own, and tags pass as payload, as on a bridge that
    /// knows no VLANs.
    Transparent,
    /// Accepts untagged and priority-tagged frames, into this VLAN; sends untagged.
    Access(VlanId),
    /// Accepts and sends tagged frames of the allowed VLANs. Untagged and priority-tagged frames belong to the native VLAN, whose
    /// frames leave untagged; without one they are dropped.
    Trunk {
        /// The VLANs whose tagged frames pass.
        allowed: VlanSet,
        /// The VLAN of untagged frames; allowed without being named in `allowed`.
        native: Option<VlanId>,
    },
}

/// A broadcast domain: a VLAN, or the one that all [`VlanPolicy::Transparent`] ports share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BroadcastDomain(u16);

impl BroadcastDomain {
    /// The domain of ports without a VLAN.
    pub const TRANSPARENT: Self = Self(0);
    /// One more than the largest domain number.
    pub(crate) const COUNT: usize = 4095;

    /// The VLAN, or `None` for the domain of ports without one.
    pub const fn vlan(self) -> Option<VlanId> {
        VlanId::new(self.0)
    }

    /// The number: 0 or the VLAN identifier.
    pub(crate) const fn get(self) -> u16 {
        self.0
    }

    /// A domain of a program's own, which need not be a VLAN.
    pub(crate) const fn any(number: u16) -> Self {
        Self(number)
    }

    /// The domain in the low 12 bits of `bits`: how a packed verdict holds one.
    pub(crate) const fn from_low_bits(bits: u16) -> Self {
        Self(bits & Tci::VID_MASK)
    }
}

impl From<VlanId> for BroadcastDomain {
    fn from(vlan: VlanId) -> Self {
        Self(vlan.0)
    }
}

impl fmt::Display for BroadcastDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vlan() {
            Some(vlan) => write!(f, "vlan {vlan}"),
            None => f.write_str("no vlan"),
        }
    }
}
