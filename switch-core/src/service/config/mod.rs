//! What an operator says: router interfaces, what each of them offers, and the limits of it all.
//!
//! Plain data with a JSON form (docs/services.md). [`ServicesConfig::check`] looks at all of it before anything changes, and names the
//! place of what is wrong.

mod check;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::prefix::IpPrefix;
use crate::mac::MacAddress;

pub use check::ServiceConfigError;

/// All that the services are configured with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ServicesConfig {
    /// The router interfaces, each with its own `id`; at most [`ServicesConfig::MAX_INTERFACES`].
    pub interfaces: Vec<RouterInterface>,
    /// How much the services keep, and how often they answer.
    pub limits: ServiceLimits,
}

impl ServicesConfig {
    /// How many router interfaces there may be.
    pub const MAX_INTERFACES: usize = 4096;
}

/// A router interface: the router's foot in a bridge domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RouterInterface {
    /// The number by which the program's tables name it; from 1 on.
    pub id: u32,
    /// The bridge domain that it is in.
    pub domain: u16,
    /// The VRF that it routes in.
    #[serde(default)]
    pub vrf: u32,
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its addresses, each with the length of its network's prefix: `"10.0.0.1/24"`. The IPv6 link-local address that the MAC
    /// address makes (RFC 4291 appendix A) is added unless one is given. At most 16.
    pub addresses: Vec<IpPrefix>,
    /// The longest IP packet on the link, in bytes: 68 to 9216, at least 1280 with an IPv6 address.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// Addresses of others that the interface answers ARP and neighbour solicitations for; at most 4096.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxies: Vec<ProxyEntry>,
    /// Serves addresses by DHCPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp4: Option<Dhcp4Config>,
    /// Serves addresses by DHCPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp6: Option<Dhcp6Config>,
    /// Sends router advertisements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ra: Option<RouterAdvertisementConfig>,
}

/// An address that a router interface answers ARP and neighbour solicitations for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ProxyEntry {
    /// The address.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::openapi::IpText))]
    pub address: IpAddr,
    /// The MAC address that the answer gives; the interface's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// A range of addresses, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AddressRange<A> {
    /// The first address.
    pub first: A,
    /// The last address.
    pub last: A,
}

/// DHCPv4 on a router interface (RFC 2131, options of RFC 2132).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Dhcp4Config {
    /// The interface's address that serves; its network is the clients'. The first IPv4 address when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::openapi::Ipv4Text>))]
    pub server: Option<Ipv4Addr>,
    /// Addresses for any client; at most 65,536.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<AddressRange<crate::openapi::Ipv4Text>>))]
    pub pool: Option<AddressRange<Ipv4Addr>>,
    /// Addresses for clients known by their MAC address; at most 4096.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reservations: Vec<Dhcp4Reservation>,
    /// The default router (option 3); none when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::openapi::Ipv4Text>))]
    pub router: Option<Ipv4Addr>,
    /// DNS servers (option 6); at most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<crate::openapi::Ipv4Text>))]
    pub dns: Vec<Ipv4Addr>,
    /// The domain name (option 15).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_name: Option<String>,
    /// NTP servers (option 42); at most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<crate::openapi::Ipv4Text>))]
    pub ntp: Vec<Ipv4Addr>,
    /// Static routes (option 121, RFC 3442); at most 16. The default route by `router` is added to them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Dhcp4Route>,
    /// How long an address is lent, in seconds: 60 to 4294967294; 3600 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_s: Option<u32>,
    /// The MTU (option 26) in bytes; the interface's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// An IPv4 address for one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Dhcp4Reservation {
    /// The client's MAC address.
    pub mac: MacAddress,
    /// The index of the only port that the client may be behind; any port when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The client's address.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::openapi::Ipv4Text))]
    pub address: Ipv4Addr,
    /// The client's host name (option 12).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
}

/// A route that clients get (RFC 3442).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Dhcp4Route {
    /// The destination.
    pub to: IpPrefix,
    /// The router to it; `0.0.0.0` when it is on the link.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::openapi::Ipv4Text))]
    pub via: Ipv4Addr,
}

/// DHCPv6 on a router interface (RFC 8415). Without pool and reservations it only informs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Dhcp6Config {
    /// Addresses for any client; at most 65,536.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<AddressRange<crate::openapi::Ipv6Text>>))]
    pub pool: Option<AddressRange<Ipv6Addr>>,
    /// Addresses for clients known by their MAC address; at most 4096.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reservations: Vec<Dhcp6Reservation>,
    /// DNS servers (option 23, RFC 3646); at most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<crate::openapi::Ipv6Text>))]
    pub dns: Vec<Ipv6Addr>,
    /// Domains to search (option 24, RFC 3646); at most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// How long an address is lent, in seconds: 60 to 4294967294; 3600 when absent. It is preferred for half as long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_s: Option<u32>,
    /// Lends at once to clients that ask for it (rapid commit, RFC 8415 §18.3.1).
    pub rapid_commit: bool,
}

/// An IPv6 address for one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Dhcp6Reservation {
    /// The client's MAC address: the one its frames come from.
    pub mac: MacAddress,
    /// The index of the only port that the client may be behind; any port when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The client's address.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::openapi::Ipv6Text))]
    pub address: Ipv6Addr,
}

/// Router advertisements of a router interface (RFC 4861 §6.2.1, RFC 8106).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RouterAdvertisementConfig {
    /// The longest time between two unasked advertisements, in seconds: 4 to 1800. The shortest is a third of it.
    pub interval_s: u16,
    /// How long hosts keep the router as their default, in seconds: 0 (it is none), or `interval_s` to 9000.
    pub lifetime_s: u16,
    /// Hosts ask DHCPv6 for addresses (the M flag).
    pub managed: bool,
    /// Hosts ask DHCPv6 for other things (the O flag).
    pub other: bool,
    /// The hop limit that hosts are to use; 0 says nothing.
    pub hop_limit: u8,
    /// The prefixes; those of the interface's global addresses when absent, on link and, at 64 bits, autonomous. At most 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<Vec<AdvertisedPrefix>>,
    /// DNS servers (RFC 8106); at most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<crate::openapi::Ipv6Text>))]
    pub dns: Vec<Ipv6Addr>,
}

impl Default for RouterAdvertisementConfig {
    fn default() -> Self {
        Self {
            interval_s: 600,
            lifetime_s: 1800,
            managed: false,
            other: false,
            hop_limit: 64,
            prefixes: None,
            dns: Vec::new(),
        }
    }
}

/// A prefix in a router advertisement (RFC 4861 §4.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AdvertisedPrefix {
    /// The prefix: `"fd00:1::/64"`.
    pub prefix: IpPrefix,
    /// Whether its addresses are on the link (the L flag).
    #[serde(default = "yes")]
    pub on_link: bool,
    /// Whether hosts make addresses of it by themselves (the A flag); for prefixes of 64 bits.
    #[serde(default = "yes")]
    pub autonomous: bool,
    /// How long such addresses are valid, in seconds.
    #[serde(default = "default_valid")]
    pub valid_s: u32,
    /// How long such addresses are preferred, in seconds; at most `valid_s`.
    #[serde(default = "default_preferred")]
    pub preferred_s: u32,
}

/// How much the services keep, and how often they answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ServiceLimits {
    /// Answers to ARP, neighbour discovery, ping and DHCP that a port may cause in a second.
    pub answers_per_second: u32,
    /// Such answers at once, after a quiet time.
    pub answers_burst: u32,
    /// ICMP errors that a port may cause in a second (RFC 1812 §4.3.2.8, RFC 4443 §2.4 f).
    pub icmp_errors_per_second: u32,
    /// ICMP errors at once, after a quiet time.
    pub icmp_errors_burst: u32,
    /// Neighbours in all, known and sought.
    pub neighbors: u32,
    /// Neighbours known behind one port.
    pub neighbors_per_port: u32,
    /// Neighbours that one port may have sought for it at a time.
    pub resolutions_per_port: u32,
    /// Frames that wait for one neighbour.
    pub queued_frames_per_neighbor: u32,
    /// Frames of one port that wait.
    pub queued_frames_per_port: u32,
    /// Bytes of frames that wait, in all.
    pub queued_bytes: u32,
    /// How long a known neighbour is taken to be there, in milliseconds; then it is asked, and forgotten if it does not answer.
    pub neighbor_reachable_ms: u64,
    /// How long a neighbour that does not answer is taken not to be there, in milliseconds.
    pub neighbor_failed_ms: u64,
    /// DHCP leases of one port, for each version of DHCP.
    pub leases_per_port: u32,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self {
            answers_per_second: 1000,
            answers_burst: 200,
            icmp_errors_per_second: 100,
            icmp_errors_burst: 50,
            neighbors: 65_536,
            neighbors_per_port: 4096,
            resolutions_per_port: 64,
            queued_frames_per_neighbor: 32,
            queued_frames_per_port: 256,
            queued_bytes: 16 << 20,
            neighbor_reachable_ms: 300_000,
            neighbor_failed_ms: 3000,
            leases_per_port: 64,
        }
    }
}

const fn default_mtu() -> u16 {
    1500
}

pub(super) const fn default_valid() -> u32 {
    2_592_000
}

pub(super) const fn default_preferred() -> u32 {
    604_800
}

const fn yes() -> bool {
    true
}
