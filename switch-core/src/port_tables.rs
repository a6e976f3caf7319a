//! The tables that configuration fills: what each port does with VLANs, and who belongs to each broadcast domain.
//!
//! A snapshot: built by the control thread when a port comes or goes, never changed afterwards, read by workers without a lock
//! until they pick up the next one at the start of a batch.

use std::ops::Range;

use crate::drop_reason::DropReason;
use crate::port::PortId;
use crate::verdict::{Flood, FrameTag, TagStacking};
use crate::vlan::{BroadcastDomain, Tci, VlanId, VlanPolicy};
use crate::vlan_edit::VlanEdit;

/// How a domain's frames leave by a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressTagging {
    /// As they came: the port knows no VLANs.
    Opaque,
    /// Without an outer tag, to an access port: the VLAN ends there.
    Access,
    /// Without an outer tag, to a trunk's native VLAN: whatever is behind would read an inner tag as a VLAN.
    Native,
    /// With the VLAN's tag.
    Tagged,
}

impl EgressTagging {
    /// The edit that makes a frame of `domain` with this tag fit the port.
    pub(crate) fn edit(
        self,
        domain: BroadcastDomain,
        tag: FrameTag,
        stacking: TagStacking,
    ) -> Result<VlanEdit, DropReason> {
        Ok(match (self, tag) {
            (Self::Opaque, _) | (Self::Tagged, FrameTag::Tagged(_)) => VlanEdit::None,
            (Self::Access | Self::Native, FrameTag::Untagged) => VlanEdit::None,
            (Self::Native, _) if stacking == TagStacking::Stacked => {
                return Err(DropReason::InnerTagExposed);
            }
            (Self::Access | Self::Native, FrameTag::Priority(_) | FrameTag::Tagged(_)) => {
                VlanEdit::Pop
            }
            (Self::Tagged, FrameTag::Untagged) => match domain.vlan() {
                Some(vlan) => VlanEdit::Push(Tci(vlan.get())),
                None => VlanEdit::None,
            },
            (Self::Tagged, FrameTag::Priority(tci)) => match domain.vlan() {
                Some(vlan) => VlanEdit::Retag(tci.with_vlan(vlan)),
                None => VlanEdit::None,
            },
        })
    }
}

/// A port in a broadcast domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub port: PortId,
    pub tagging: EgressTagging,
}

/// A snapshot of the port configuration.
pub(crate) struct PortTables {
    /// Which snapshot this is; each has a larger number than the one before.
    epoch: u32,
    /// Table `ingress_port`: port to VLAN policy.
    policies: Vec<Option<VlanPolicy>>,
    /// Table `vlan_members`: domain to its ports, as a range of `members`.
    domains: Vec<Range<usize>>,
    members: Vec<Member>,
}

impl PortTables {
    /// The tables of a switch without ports.
    pub(crate) fn empty() -> Self {
        Self::build(0, Vec::new())
    }

    /// The tables for these ports, indexed by port.
    pub(crate) fn build(epoch: u32, policies: Vec<Option<VlanPolicy>>) -> Self {
        let mut memberships: Vec<(BroadcastDomain, Member)> = Vec::new();
        for (port, policy) in (0..).map_while(PortId::new).zip(&policies) {
            let Some(policy) = policy else { continue };
            for_each_membership(policy, |domain, tagging| {
                memberships.push((domain, Member { port, tagging }));
            });
        }
        // Stable: within a domain the ports stay in the order of their numbers.
        memberships.sort_by_key(|(domain, _)| *domain);
        let mut domains = vec![0..0; BroadcastDomain::COUNT];
        let mut start = 0;
        for of_domain in memberships.chunk_by(|(one, _), (next, _)| one == next) {
            let end = start + of_domain.len();
            if let [(domain, _), ..] = of_domain
                && let Some(range) = domains.get_mut(usize::from(domain.get()))
            {
                *range = start..end;
            }
            start = end;
        }
        let members = memberships.into_iter().map(|(_, member)| member).collect();
        Self {
            epoch,
            policies,
            domains,
            members,
        }
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// How many port indexes the tables span.
    pub(crate) fn port_span(&self) -> usize {
        self.policies.len()
    }

    /// The policies, to build the next snapshot from.
    pub(crate) fn policies(&self) -> &[Option<VlanPolicy>] {
        &self.policies
    }

    /// The port's VLAN policy, if the port exists.
    pub(crate) fn policy(&self, port: PortId) -> Option<&VlanPolicy> {
        self.policies.get(port.index())?.as_ref()
    }

    /// How frames of `domain` leave by `port`, if it is a member.
    pub(crate) fn tagging(&self, port: PortId, domain: BroadcastDomain) -> Option<EgressTagging> {
        match (self.policy(port)?, domain.vlan()) {
            (VlanPolicy::Transparent, None) => Some(EgressTagging::Opaque),
            (VlanPolicy::Access(own), Some(vlan)) if *own == vlan => Some(EgressTagging::Access),
            (VlanPolicy::Trunk { native, .. }, Some(vlan)) if *native == Some(vlan) => {
                Some(EgressTagging::Native)
            }
            (VlanPolicy::Trunk { allowed, .. }, Some(vlan)) if allowed.contains(vlan) => {
                Some(EgressTagging::Tagged)
            }
            _ => None,
        }
    }

    /// The ports a flooded frame leaves by, each with its edit. Without the port it came from, and without trunks whose native
    /// VLAN would expose an inner tag.
    pub(crate) fn flood_members(
        &self,
        flood: Flood,
    ) -> impl Iterator<Item = (PortId, VlanEdit)> + '_ {
        let range = self
            .domains
            .get(usize::from(flood.domain.get()))
            .cloned()
            .unwrap_or_default();
        let members = self.members.get(range).unwrap_or_default();
        members
            .iter()
            .filter(move |member| member.port != flood.in_port)
            .filter_map(move |member| {
                Some((
                    member.port,
                    member
                        .tagging
                        .edit(flood.domain, flood.tag, flood.stacking)
                        .ok()?,
                ))
            })
    }
}

/// Calls `note` for each domain that a port with this policy belongs to.
fn for_each_membership(policy: &VlanPolicy, mut note: impl FnMut(BroadcastDomain, EgressTagging)) {
    match policy {
        VlanPolicy::Transparent => note(BroadcastDomain::TRANSPARENT, EgressTagging::Opaque),
        VlanPolicy::Access(vlan) => note((*vlan).into(), EgressTagging::Access),
        VlanPolicy::Trunk { allowed, native } => {
            let tagged = allowed.iter().filter(|&vlan| Some(vlan) != *native);
            tagged.for_each(|vlan: VlanId| note(vlan.into(), EgressTagging::Tagged));
            if let Some(native) = *native {
                note(native.into(), EgressTagging::Native);
            }
        }
    }
}
