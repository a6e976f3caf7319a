//! The default program, `l2`: a learning switch with VLANs, table by table.
//!
//! | table | key | actions |
//! |---|---|---|
//! | `ingress_port` | port (exact) | the port's VLAN policy; miss: drop |
//! | `reserved_destination` | destination (first 44 bits) | drop; miss: go on |
//! | `source_address` | source (class) | drop; miss: go on |
//! | `vlan_admission` | policy, outer tag, stacking | assign a broadcast domain; drop |
//! | `mac_source` | domain, source (exact) | know, refresh, learn, move, withhold |
//! | `mac_destination` | domain, destination (exact) | output to a port; miss or multicast: flood |
//! | `vlan_members` | domain, port (exact) | the egress tagging; miss: flood |
//! | `egress_tag` | tagging, outer tag, stacking | a VLAN edit; drop |
//!
//! Run by a worker on a flow-cache miss and by the control thread to explain a frame: the same evaluator, with another
//! [`Observer`]. It notes which fields it looked at, which epochs its verdict depends on, and until when the verdict holds.

use std::fmt;

use crate::drop_reason::DropReason;
use crate::flow_key::FlowKey;
use crate::mac::MacAddress;
use crate::mac_table::{EpochBucket, MacStore, SourceAction, StationKey};
use crate::port::PortId;
use crate::port_tables::{EgressTagging, PortTables};
use crate::rate_limit::TokenBucket;
use crate::time::Millis;
use crate::verdict::{Flood, FrameTag, TagStacking, Verdict};
use crate::vlan::{BroadcastDomain, VlanPolicy};
use crate::vlan_edit::VlanEdit;

/// One table's part in a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Table `ingress_port`.
    IngressPort {
        /// Key: the port the frame came from.
        port: PortId,
        /// Its policy; `None` when there is no such port.
        policy: Option<VlanPolicy>,
    },
    /// Table `reserved_destination`.
    ReservedDestination {
        /// Key: where the frame is going.
        destination: MacAddress,
        /// The drop, if the address is reserved.
        drop: Option<DropReason>,
    },
    /// Table `source_address`.
    SourceAddress {
        /// Key: who sent the frame.
        source: MacAddress,
        /// The drop, if no station can have the address.
        drop: Option<DropReason>,
    },
    /// Table `vlan_admission`.
    VlanAdmission {
        /// Key: the frame's outer tag.
        tag: FrameTag,
        /// Key: whether another follows.
        stacking: TagStacking,
        /// The domain the frame belongs to, or why it may not enter.
        action: Result<BroadcastDomain, DropReason>,
    },
    /// Table `mac_source`.
    MacSource {
        /// Key: the frame's domain.
        domain: BroadcastDomain,
        /// Key: who sent it.
        source: MacAddress,
        /// What the table learned from it.
        action: SourceAction,
    },
    /// Table `mac_destination`.
    MacDestination {
        /// Key: the frame's domain.
        domain: BroadcastDomain,
        /// Key: where it is going.
        destination: MacAddress,
        /// The port that station is behind, if it is known.
        port: Option<PortId>,
    },
    /// Table `vlan_members`.
    VlanMembers {
        /// Key: the frame's domain.
        domain: BroadcastDomain,
        /// Key: the port it would leave by.
        port: PortId,
        /// How it leaves there; `None` when the port is not a member.
        tagging: Option<EgressTagging>,
    },
    /// Table `egress_tag`.
    EgressTag {
        /// Key: how the domain's frames leave.
        tagging: EgressTagging,
        /// The edit, or why the frame may not leave.
        action: Result<VlanEdit, DropReason>,
    },
}

impl Step {
    /// The name of the table.
    pub const fn table(&self) -> &'static str {
        match self {
            Self::IngressPort { .. } => "ingress_port",
            Self::ReservedDestination { .. } => "reserved_destination",
            Self::SourceAddress { .. } => "source_address",
            Self::VlanAdmission { .. } => "vlan_admission",
            Self::MacSource { .. } => "mac_source",
            Self::MacDestination { .. } => "mac_destination",
            Self::VlanMembers { .. } => "vlan_members",
            Self::EgressTag { .. } => "egress_tag",
        }
    }
}

/// Fields of a frame, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(u8);

impl FieldSet {
    /// The port the frame came from.
    pub const IN_PORT: Self = Self(1);
    /// The destination address.
    pub const DESTINATION: Self = Self(1 << 1);
    /// The source address.
    pub const SOURCE: Self = Self(1 << 2);
    /// The outer tag: presence, priority, VLAN.
    pub const TAG: Self = Self(1 << 3);
    /// Whether a second tag follows.
    pub const STACKING: Self = Self(1 << 4);

    /// Whether all of `fields` are in the set.
    pub const fn contains(self, fields: Self) -> bool {
        self.0 & fields.0 == fields.0
    }
}

impl std::ops::BitOr for FieldSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for FieldSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["in_port", "destination", "source", "tag", "stacking"];
        let present = names
            .iter()
            .enumerate()
            .filter(|&(bit, _)| self.0 >> bit & 1 != 0);
        for (position, (_, name)) in present.enumerate() {
            write!(f, "{}{name}", if position == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What watches an evaluation.
pub(crate) trait Observer {
    fn step(&mut self, step: impl FnOnce() -> Step);
}

/// Watches nothing; costs nothing.
pub(crate) struct Unobserved;

impl Observer for Unobserved {
    fn step(&mut self, _: impl FnOnce() -> Step) {}
}

impl Observer for Vec<Step> {
    fn step(&mut self, step: impl FnOnce() -> Step) {
        self.push(step());
    }
}

/// What the evaluation may do to the MAC table.
pub(crate) enum Learning<'a> {
    /// Learn, as fast as the port's rate allows.
    Limited(&'a mut TokenBucket),
    /// Change nothing; say what would be learned.
    Preview,
}

/// What a cached verdict depends on besides its key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dependencies {
    pub source: EpochBucket,
    pub destination: EpochBucket,
    /// The sum of the two counters when the table was read.
    pub mac_epochs: u32,
    /// The verdict holds before this instant: then the source is due to be noted again, or the destination has aged out.
    pub valid_until: Millis,
}

/// The outcome.
pub(crate) struct Evaluation {
    pub verdict: Verdict,
    /// The fields that the verdict may depend on.
    pub looked_at: FieldSet,
    /// Under what the verdict may be remembered; `None`: not at all, because a repetition may end otherwise.
    pub dependencies: Option<Dependencies>,
}

/// A frame's fields, and which of them were asked for.
struct Fields {
    key: FlowKey,
    looked_at: FieldSet,
}

impl Fields {
    fn in_port(&mut self) -> PortId {
        self.looked_at = self.looked_at | FieldSet::IN_PORT;
        self.key.in_port()
    }

    fn destination(&mut self) -> MacAddress {
        self.looked_at = self.looked_at | FieldSet::DESTINATION;
        self.key.destination()
    }

    fn source(&mut self) -> MacAddress {
        self.looked_at = self.looked_at | FieldSet::SOURCE;
        self.key.source()
    }

    fn tag(&mut self) -> FrameTag {
        self.looked_at = self.looked_at | FieldSet::TAG;
        self.key.tag()
    }

    fn stacking(&mut self) -> TagStacking {
        self.looked_at = self.looked_at | FieldSet::STACKING;
        self.key.stacking()
    }
}

/// The program over one state of its tables.
pub(crate) struct Program<'a> {
    pub ports: &'a PortTables,
    pub macs: &'a MacStore,
    pub now: Millis,
}

impl Program<'_> {
    /// Decides what happens to a frame.
    pub(crate) fn evaluate(
        &self,
        key: FlowKey,
        learning: Learning<'_>,
        observer: &mut impl Observer,
    ) -> Evaluation {
        let mut fields = Fields {
            key,
            looked_at: FieldSet::default(),
        };
        let domain = match self.admit(&mut fields, observer) {
            Ok(domain) => domain,
            // Not remembered: admission takes no lock, and a sender that is refused shall not fill the cache.
            Err(reason) => {
                return Evaluation {
                    verdict: Verdict::Drop(reason),
                    looked_at: fields.looked_at,
                    dependencies: None,
                };
            }
        };
        let (target, dependencies) = self.find_target(&mut fields, domain, learning, observer);
        let verdict = self.forward(&mut fields, domain, target, observer);
        Evaluation {
            verdict,
            looked_at: fields.looked_at,
            dependencies,
        }
    }

    /// Tables `ingress_port` to `vlan_admission`: whether the frame may enter, and where it belongs.
    fn admit(
        &self,
        fields: &mut Fields,
        observer: &mut impl Observer,
    ) -> Result<BroadcastDomain, DropReason> {
        let port = fields.in_port();
        let policy = self.ports.policy(port);
        observer.step(|| Step::IngressPort {
            port,
            policy: policy.cloned(),
        });
        let policy = policy.ok_or(DropReason::PortGone)?;

        let destination = fields.destination();
        let drop = destination
            .is_bridge_reserved()
            .then_some(DropReason::BridgeReserved);
        observer.step(|| Step::ReservedDestination { destination, drop });
        drop.map_or(Ok(()), Err)?;

        let source = fields.source();
        let drop = match source {
            _ if source.is_multicast() => Some(DropReason::SourceMulticast),
            _ if source.is_zero() => Some(DropReason::SourceZero),
            _ => None,
        };
        observer.step(|| Step::SourceAddress { source, drop });
        drop.map_or(Ok(()), Err)?;

        if *policy == VlanPolicy::Transparent {
            return Ok(BroadcastDomain::TRANSPARENT);
        }
        let (tag, stacking) = (fields.tag(), fields.stacking());
        let action = admit_to_vlan(policy, tag, stacking);
        observer.step(|| Step::VlanAdmission {
            tag,
            stacking,
            action,
        });
        action
    }

    /// Tables `mac_source` and `mac_destination`, under the lock.
    fn find_target(
        &self,
        fields: &mut Fields,
        domain: BroadcastDomain,
        learning: Learning<'_>,
        observer: &mut impl Observer,
    ) -> (Option<PortId>, Option<Dependencies>) {
        let (port, source, destination) = (fields.in_port(), fields.source(), fields.destination());
        let mut table = self.macs.lock();
        let station = StationKey::new(domain, source);
        let seen = match learning {
            Learning::Limited(budget) => {
                table.observe(station, port, self.now, || budget.take(self.now))
            }
            Learning::Preview => table.preview(station, port, self.now),
        };
        // A group address is never looked up: nothing is learned under one.
        let found = (!destination.is_multicast())
            .then(|| table.lookup(StationKey::new(domain, destination), self.now));
        // Read under the lock, so that they belong to the answers above.
        let destination_bucket = found.map_or(seen.bucket, |found| found.bucket);
        let epochs = self.macs.epochs();
        let mac_epochs = epochs
            .get(seen.bucket)
            .wrapping_add(epochs.get(destination_bucket));
        drop(table);

        let target = found.and_then(|found| found.station);
        observer.step(|| Step::MacSource {
            domain,
            source,
            action: seen.action,
        });
        observer.step(|| Step::MacDestination {
            domain,
            destination,
            port: target.map(|station| station.port),
        });

        let limits = self.macs.limits();
        let refresh_due = seen.last_seen.after(limits.refresh);
        let ages_out = target.map_or(refresh_due, |station| {
            station.last_seen.after(limits.ageing)
        });
        let dependencies = (seen.action != SourceAction::Withheld).then_some(Dependencies {
            source: seen.bucket,
            destination: destination_bucket,
            mac_epochs,
            valid_until: refresh_due.min(ages_out),
        });
        (target.map(|station| station.port), dependencies)
    }

    /// Tables `vlan_members` and `egress_tag`: how the frame leaves.
    fn forward(
        &self,
        fields: &mut Fields,
        domain: BroadcastDomain,
        target: Option<PortId>,
        observer: &mut impl Observer,
    ) -> Verdict {
        let in_port = fields.in_port();
        // On ports without VLANs a tag is payload, which a verdict does not depend on.
        let (tag, stacking) = match domain.vlan() {
            Some(_) => (fields.tag(), fields.stacking()),
            None => (FrameTag::Untagged, TagStacking::Single),
        };
        if let Some(port) = target {
            if port == in_port {
                return Verdict::Drop(DropReason::SamePort);
            }
            let tagging = self.ports.tagging(port, domain);
            observer.step(|| Step::VlanMembers {
                domain,
                port,
                tagging,
            });
            if let Some(tagging) = tagging {
                let action = tagging.edit(domain, tag, stacking);
                observer.step(|| Step::EgressTag { tagging, action });
                return action.map_or_else(Verdict::Drop, |edit| Verdict::Output {
                    port,
                    edit: edit.into(),
                });
            }
            // Learned before its port left the domain, and about to be flushed: as unknown.
        }
        let flood = Flood {
            in_port,
            domain,
            tag,
            stacking,
        };
        if self.ports.flood_members(flood).next().is_none() {
            return Verdict::Drop(DropReason::NoDestination);
        }
        Verdict::Flood(flood)
    }
}

/// Table `vlan_admission`.
fn admit_to_vlan(
    policy: &VlanPolicy,
    tag: FrameTag,
    stacking: TagStacking,
) -> Result<BroadcastDomain, DropReason> {
    match (policy, tag) {
        (VlanPolicy::Transparent, _) => Ok(BroadcastDomain::TRANSPARENT),
        // The priority tag will be removed or replaced; what is behind it must not become the frame's VLAN.
        (_, FrameTag::Priority(_)) if stacking == TagStacking::Stacked => {
            Err(DropReason::InnerTagExposed)
        }
        (_, FrameTag::Tagged(tci)) if tci.vid() == 4095 => Err(DropReason::VlanReserved),
        (VlanPolicy::Access(vlan), FrameTag::Untagged | FrameTag::Priority(_)) => {
            Ok((*vlan).into())
        }
        (VlanPolicy::Access(_), FrameTag::Tagged(_)) => Err(DropReason::VlanTagOnAccessPort),
        (VlanPolicy::Trunk { native, .. }, FrameTag::Untagged | FrameTag::Priority(_)) => {
            native.map(Into::into).ok_or(DropReason::NoNativeVlan)
        }
        (VlanPolicy::Trunk { allowed, native }, FrameTag::Tagged(tci)) => {
            let admitted = |vlan: &_| allowed.contains(*vlan) || *native == Some(*vlan);
            tci.vlan()
                .filter(admitted)
                .map(Into::into)
                .ok_or(DropReason::VlanNotAllowed)
        }
    }
}
