//! The slow path: what answers the frames that a program sends to the controller.
//!
//! Pure code: a frame and the time go in, [`ServiceAction`]s come out. Called on one control-plane thread; whoever calls it moves
//! frames between it and the workers, bounded and rate-limited by port. In the order a frame meets them:
//!
//! 1. [`PacketIn`]: the frame, the [`PuntReason`] and the metadata that the program sent it with;
//! 2. [`Services`]: finds the router interface and the service;
//! 3. the services: ARP, neighbour discovery, ping, ICMP errors, neighbour resolution, DHCPv4, DHCPv6, router advertisements;
//! 4. frames are built in one place, with all checksums whole;
//! 5. [`ServiceAction`]: what is to be done, or a [`ServiceDrop`] that says why nothing is.
//!
//! [`ServicesConfig`] is what an operator says, and `docs/services.md` what it means.

mod action;
mod arp;
mod build;
mod config;
mod dhcp4;
mod dhcp6;
mod drop;
mod icmp_error;
mod inbound;
mod interfaces;
mod leases;
mod neighbor_discovery;
mod neighbors;
mod outbox;
mod ping;
mod prefix;
mod random;
mod responder;
mod router_advertisement;
mod stats;

pub use action::{
    NO_INTERFACE, PacketIn, PacketMetadata, PuntReason, ServiceAction, VNET_HEADER_BYTES,
};
pub use config::{
    AddressRange, AdvertisedPrefix, Dhcp4Config, Dhcp4Reservation, Dhcp4Route, Dhcp6Config,
    Dhcp6Reservation, ProxyEntry, RouterAdvertisementConfig, RouterInterface, ServiceConfigError,
    ServiceLimits, ServicesConfig,
};
pub use dhcp4::Dhcp4Lease;
pub use dhcp6::Dhcp6Lease;
pub use drop::ServiceDrop;
pub use neighbors::{NeighborInfo, NeighborState};
pub use prefix::{InvalidIpPrefix, IpPrefix};
pub use responder::Services;
pub use stats::ServiceStats;
