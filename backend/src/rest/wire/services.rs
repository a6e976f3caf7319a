//! The JSON of services. The configuration itself is [`switch_core::service::ServicesConfig`].
use crate::control::frames::encoding::to_hex;
use crate::control::services::counts::CountsView;
use crate::control::services::handle::{Leases, known};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use switch_core::openapi::{IpText, Ipv4Text, Ipv6Text};
use switch_core::service::{NeighborInfo, NeighborState, ServiceDrop, ServiceStats};
use switch_core::{MacAddress, Millis, PortId};
use utoipa::ToSchema;

/// Answer to `PUT /v1/services`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServicesSet {
    /// How many router interfaces there are.
    pub interfaces: usize,
    /// Whether the configuration outlives the process.
    pub durable: bool,
}

/// `GET /v1/services/leases`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseList {
    /// By interface and address.
    pub dhcp4: Vec<Lease4>,
    /// By interface and address.
    pub dhcp6: Vec<Lease6>,
}

/// A DHCPv4 lease or offer from a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease4 {
    /// The router interface that serves.
    pub interface: u32,
    /// The client's port: its name, or its number when it has none.
    pub port: String,
    /// The client's MAC address.
    pub mac: MacAddress,
    /// The client's address.
    #[schema(value_type = Ipv4Text)]
    pub address: Ipv4Addr,
    /// How long it still holds, in milliseconds.
    pub expires_in_ms: u64,
}

/// A DHCPv6 lease or offer from a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease6 {
    /// The router interface that serves.
    pub interface: u32,
    /// The client's port: its name, or its number when it has none.
    pub port: String,
    /// The client's DHCP unique identifier, in hex.
    pub duid: String,
    /// The client's address.
    #[schema(value_type = Ipv6Text)]
    pub address: Ipv6Addr,
    /// How long it still holds, in milliseconds.
    pub expires_in_ms: u64,
}

/// `GET /v1/services/neighbors`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NeighborList {
    /// By interface and address.
    pub neighbors: Vec<Neighbor>,
}

/// A neighbour of a router interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Neighbor {
    /// The router interface.
    pub interface: u32,
    /// The neighbour's address.
    #[schema(value_type = IpText)]
    pub address: IpAddr,
    /// `known`, `sought`, or `failed`: it does not answer.
    pub state: String,
    /// Its MAC address, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The port that it is behind, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Frames that wait for it.
    pub queued_frames: usize,
}

/// `GET /v1/services/stats`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServicesReport {
    /// What became of frames for the controller.
    pub frames: CountsView,
    /// What the services did, by name.
    pub services: BTreeMap<String, u64>,
    /// Why frames were not answered: each reason that was given.
    pub drops: Vec<ServiceDropRow>,
}

/// A reason why a service did not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceDropRow {
    /// Its name.
    pub reason: String,
    /// How many frames.
    pub frames: u64,
    /// What happened.
    pub meaning: String,
    /// What to do about it.
    pub advice: String,
}

/// A port by the name that it has now.
pub type NameOf<'a> = &'a dyn Fn(PortId) -> Option<String>;

fn name(port: PortId, name_of: NameOf<'_>) -> String {
    name_of(port).unwrap_or_else(|| port.to_string())
}

fn left_ms(until: Millis, now: Millis) -> u64 {
    until.0.saturating_sub(now.0)
}

impl LeaseList {
    /// From what the services say.
    pub fn new(leases: &Leases, name_of: NameOf<'_>) -> Self {
        let now = leases.now;
        let dhcp4 = leases.dhcp4.iter().map(|lease| Lease4 {
            interface: lease.interface,
            port: name(lease.port, name_of),
            mac: lease.mac,
            address: lease.address,
            expires_in_ms: left_ms(lease.until, now),
        });
        let dhcp6 = leases.dhcp6.iter().map(|lease| Lease6 {
            interface: lease.interface,
            port: name(lease.port, name_of),
            duid: to_hex(&lease.duid),
            address: lease.address,
            expires_in_ms: left_ms(lease.until, now),
        });
        Self {
            dhcp4: dhcp4.collect(),
            dhcp6: dhcp6.collect(),
        }
    }
}

impl Neighbor {
    /// From what the services say.
    pub fn new(info: &NeighborInfo, name_of: NameOf<'_>) -> Self {
        let state = match info.state {
            NeighborState::Sought => "sought",
            NeighborState::Known(..) => "known",
            NeighborState::Failed => "failed",
        };
        let known = known(info);
        Self {
            interface: info.interface,
            address: info.address,
            state: state.to_owned(),
            mac: known.map(|(mac, _)| mac),
            port: known.map(|(_, port)| name(port, name_of)),
            queued_frames: info.queued_frames,
        }
    }
}

impl ServicesReport {
    /// From what the services and those that carry out their actions counted.
    pub fn new(stats: &ServiceStats, frames: CountsView) -> Self {
        let services = [
            ("arp_replies", stats.arp_replies),
            ("neighbor_advertisements", stats.neighbor_advertisements),
            ("echo_replies", stats.echo_replies),
            ("icmp_errors", stats.icmp_errors),
            ("neighbor_requests", stats.neighbor_requests),
            ("neighbors_learned", stats.neighbors_learned),
            ("neighbors_forgotten", stats.neighbors_forgotten),
            ("neighbors_failed", stats.neighbors_failed),
            ("frames_queued", stats.frames_queued),
            ("frames_reinjected", stats.frames_reinjected),
            ("dhcp4_offers", stats.dhcp4_offers),
            ("dhcp4_acks", stats.dhcp4_acks),
            ("dhcp4_naks", stats.dhcp4_naks),
            ("dhcp6_advertises", stats.dhcp6_advertises),
            ("dhcp6_replies", stats.dhcp6_replies),
            ("router_advertisements", stats.router_advertisements),
        ];
        let drops = ServiceDrop::ALL
            .into_iter()
            .map(|reason| (reason, stats.drops(reason)))
            .filter(|(_, frames)| *frames > 0)
            .map(|(reason, frames)| ServiceDropRow {
                reason: reason.name().to_owned(),
                frames,
                meaning: reason.meaning().to_owned(),
                advice: reason.advice().to_owned(),
            });
        Self {
            frames,
            services: services
                .into_iter()
                .map(|(name, count)| (name.to_owned(), count))
                .collect(),
            drops: drops.collect(),
        }
    }
}
