//! Whether a configuration makes sense, all of it, before any of it is used.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    AddressRange, AdvertisedPrefix, Dhcp4Config, Dhcp6Config, RouterAdvertisementConfig,
    RouterInterface, ServiceLimits, ServicesConfig,
};
use crate::mac::MacAddress;
use crate::port::PortId;
use crate::service::action::NO_INTERFACE;

/// What is wrong in a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ServiceConfigError {
    /// The place, as a path in the JSON form: `interfaces[2].dhcp4.pool`.
    pub place: String,
    /// What is wrong there, and what to write instead.
    pub problem: String,
}

type Checked = Result<(), ServiceConfigError>;

fn refuse(place: &str, problem: impl Into<String>) -> Checked {
    Err(ServiceConfigError {
        place: place.to_owned(),
        problem: problem.into(),
    })
}

fn at_most<T>(place: &str, list: &[T], most: usize) -> Checked {
    if list.len() > most {
        refuse(
            place,
            format!("{} entries; at most {most} are allowed", list.len()),
        )
    } else {
        Ok(())
    }
}

fn within<N: PartialOrd + std::fmt::Display>(place: &str, value: N, bounds: (N, N)) -> Checked {
    if value < bounds.0 || value > bounds.1 {
        refuse(
            place,
            format!(
                "{value} is out of bounds; use a number from {} to {}",
                bounds.0, bounds.1
            ),
        )
    } else {
        Ok(())
    }
}

/// That no value stands twice in a list of `what`.
fn unique<T: Hash + Eq + std::fmt::Display>(
    place: &str,
    what: &str,
    values: impl IntoIterator<Item = T>,
) -> Checked {
    let mut seen = HashSet::new();
    for value in values {
        if seen.contains(&value) {
            return refuse(
                place,
                format!("{what} {value} stands there twice; remove one"),
            );
        }
        seen.insert(value);
    }
    Ok(())
}

impl ServicesConfig {
    /// Whether the configuration can be used.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn check(&self) -> Result<(), ServiceConfigError> {
        self.limits.check()?;
        at_most("interfaces", &self.interfaces, Self::MAX_INTERFACES)?;
        for (index, interface) in self.interfaces.iter().enumerate() {
            interface.check_at(&format!("interfaces[{index}]"))?;
        }
        unique(
            "interfaces",
            "id",
            self.interfaces.iter().map(|interface| interface.id),
        )?;
        // Two interfaces of a VRF with one address would both answer for it. Link-local addresses are their link's own affair.
        let mut seen = HashSet::new();
        for (index, interface) in self.interfaces.iter().enumerate() {
            for prefix in &interface.addresses {
                let address = prefix.address();
                let is_link_local = prefix.v6().is_some_and(|v6| v6.is_unicast_link_local());
                if !is_link_local && !seen.insert((interface.vrf, address)) {
                    return refuse(
                        &format!("interfaces[{index}].addresses"),
                        format!(
                            "{address} is an address of another interface of VRF {}; give each its own",
                            interface.vrf
                        ),
                    );
                }
            }
        }
        Ok(())
    }
}

impl ServiceLimits {
    fn check(&self) -> Checked {
        let million = (1, 1_000_000);
        within(
            "limits.answers_per_second",
            self.answers_per_second,
            million,
        )?;
        within("limits.answers_burst", self.answers_burst, million)?;
        within(
            "limits.icmp_errors_per_second",
            self.icmp_errors_per_second,
            million,
        )?;
        within("limits.icmp_errors_burst", self.icmp_errors_burst, million)?;
        within("limits.neighbors", self.neighbors, million)?;
        within(
            "limits.neighbors_per_port",
            self.neighbors_per_port,
            million,
        )?;
        within(
            "limits.resolutions_per_port",
            self.resolutions_per_port,
            million,
        )?;
        within(
            "limits.queued_frames_per_neighbor",
            self.queued_frames_per_neighbor,
            (1, 256),
        )?;
        within(
            "limits.queued_frames_per_port",
            self.queued_frames_per_port,
            (1, 65_536),
        )?;
        within("limits.queued_bytes", self.queued_bytes, (65_536, 1 << 30))?;
        within(
            "limits.neighbor_reachable_ms",
            self.neighbor_reachable_ms,
            (1000, 86_400_000),
        )?;
        within(
            "limits.neighbor_failed_ms",
            self.neighbor_failed_ms,
            (100, 600_000),
        )?;
        within("limits.leases_per_port", self.leases_per_port, (1, 65_536))
    }
}

impl RouterInterface {
    /// Whether the interface by itself can be used.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn check(&self) -> Result<(), ServiceConfigError> {
        self.check_at(&format!("interface {}", self.id))
    }

    fn check_at(&self, place: &str) -> Checked {
        let at = |field: &str| format!("{place}.{field}");
        if self.id == NO_INTERFACE {
            return refuse(&at("id"), "0 means no interface; use a number from 1 on");
        }
        if self.mac.is_multicast() || self.mac.is_zero() {
            return refuse(
                &at("mac"),
                format!("{} is no station's address; use a unicast one", self.mac),
            );
        }
        within(&at("mtu"), self.mtu, (68, 9216))?;
        at_most(&at("addresses"), &self.addresses, 16)?;
        unique(
            &at("addresses"),
            "address",
            self.addresses.iter().map(|prefix| prefix.address()),
        )?;
        for (index, prefix) in self.addresses.iter().enumerate() {
            let place = at(&format!("addresses[{index}]"));
            if !prefix.has_station(prefix.address()) || !is_unicast(prefix.address()) {
                return refuse(
                    &place,
                    format!(
                        "no station can have the address of {prefix}; use another address of the network"
                    ),
                );
            }
            if prefix.v6().is_some() && self.mtu < 1280 {
                return refuse(
                    &at("mtu"),
                    "IPv6 needs at least 1280 (RFC 8200 §5); raise the MTU",
                );
            }
        }
        self.check_proxies(place)?;
        if let Some(dhcp4) = &self.dhcp4 {
            dhcp4.check(&at("dhcp4"), self)?;
        }
        if let Some(dhcp6) = &self.dhcp6 {
            dhcp6.check(&at("dhcp6"), self)?;
        }
        match &self.ra {
            Some(ra) => ra.check(&at("ra"), self),
            None => Ok(()),
        }
    }

    fn check_proxies(&self, place: &str) -> Checked {
        let list = format!("{place}.proxies");
        at_most(&list, &self.proxies, 4096)?;
        unique(
            &list,
            "address",
            self.proxies.iter().map(|proxy| proxy.address),
        )?;
        for (index, proxy) in self.proxies.iter().enumerate() {
            let place = format!("{list}[{index}]");
            if !is_unicast(proxy.address) {
                return refuse(&place, format!("{} is no station's address", proxy.address));
            }
            if self
                .addresses
                .iter()
                .any(|own| own.address() == proxy.address)
            {
                return refuse(
                    &place,
                    format!(
                        "{} is the interface's own address, which it answers for anyway",
                        proxy.address
                    ),
                );
            }
            if proxy
                .mac
                .is_some_and(|mac| mac.is_multicast() || mac.is_zero())
            {
                return refuse(&place, "the MAC address is no station's; use a unicast one");
            }
        }
        Ok(())
    }
}

/// Whether a station may have the address at all.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_loopback()
                || v4.octets()[0] == 0
                || v4.octets()[0] >= 240)
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified() || v6.is_multicast() || v6.is_loopback())
                && v6.to_ipv4_mapped().is_none()
        }
    }
}

fn check_lease(place: &str, lease_s: Option<u32>) -> Checked {
    match lease_s {
        Some(lease_s) => within(&format!("{place}.lease_s"), lease_s, (60, u32::MAX - 1)),
        None => Ok(()),
    }
}

fn check_port(place: &str, port: Option<u16>) -> Checked {
    match port {
        Some(port) => within(
            &format!("{place}.port"),
            port,
            (0, (PortId::LIMIT - 1) as u16),
        ),
        None => Ok(()),
    }
}

/// That a host or domain name is one (RFC 1123 §2.1): labels of letters, digits and hyphens.
fn check_name(place: &str, name: &str, most_bytes: usize) -> Checked {
    let label_is_good = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= most_bytes && name.split('.').all(label_is_good) {
        Ok(())
    } else {
        refuse(
            place,
            format!(
                "{name:?} is no name; use labels of letters, digits and hyphens, at most {most_bytes} bytes in all"
            ),
        )
    }
}

impl Dhcp4Config {
    fn check(&self, place: &str, interface: &RouterInterface) -> Checked {
        let at = |field: &str| format!("{place}.{field}");
        let Some(network) = interface.dhcp4_network() else {
            return refuse(
                &at("server"),
                "it is no IPv4 address of the interface; use one of `addresses`",
            );
        };
        if network.length() > 30 {
            return refuse(
                &at("server"),
                "its network has no room for clients; use a prefix of at most 30 bits",
            );
        }
        let has_client = |address: Ipv4Addr| {
            network.has_station(address.into())
                && !interface
                    .addresses
                    .iter()
                    .any(|own| own.v4() == Some(address))
        };
        if let Some(AddressRange { first, last }) = self.pool {
            let place = at("pool");
            if first > last {
                return refuse(&place, format!("{first} is behind {last}; exchange them"));
            }
            if last.to_bits() - first.to_bits() >= 65_536 {
                return refuse(&place, "it has more than 65536 addresses; use fewer");
            }
            if !network.has_station(first.into()) || !network.has_station(last.into()) {
                return refuse(&place, format!("it goes beyond the stations of {network}"));
            }
        }
        let list = at("reservations");
        at_most(&list, &self.reservations, 4096)?;
        for (index, reservation) in self.reservations.iter().enumerate() {
            let place = format!("{list}[{index}]");
            if !has_client(reservation.address) {
                return refuse(
                    &place,
                    format!("no client of {network} can have {}", reservation.address),
                );
            }
            check_port(&place, reservation.port)?;
            if let Some(hostname) = &reservation.hostname {
                check_name(&format!("{place}.hostname"), hostname, 63)?;
            }
        }
        unique(
            &list,
            "address",
            self.reservations.iter().map(|entry| entry.address),
        )?;
        check_keys(
            &list,
            self.reservations
                .iter()
                .map(|entry| (entry.mac, entry.port)),
        )?;
        if self
            .router
            .is_some_and(|router| !network.has_station(router.into()))
        {
            return refuse(&at("router"), format!("it is outside {network}"));
        }
        at_most(&at("dns"), &self.dns, 8)?;
        at_most(&at("ntp"), &self.ntp, 8)?;
        at_most(&at("routes"), &self.routes, 16)?;
        for (index, route) in self.routes.iter().enumerate() {
            let is_clean = route.to.address().is_ipv4() && route.to.network() == route.to.address();
            if !is_clean {
                return refuse(
                    &at(&format!("routes[{index}].to")),
                    format!(
                        "{} is no IPv4 network; clear the bits beyond the prefix",
                        route.to
                    ),
                );
            }
        }
        if let Some(name) = &self.domain_name {
            check_name(&at("domain_name"), name, 253)?;
        }
        if let Some(mtu) = self.mtu {
            within(&at("mtu"), mtu, (68, 9216))?;
        }
        check_lease(place, self.lease_s)
    }
}

/// That no client has two reservations, and that those for any port have no rival for one port.
fn check_keys(place: &str, keys: impl Iterator<Item = (MacAddress, Option<u16>)>) -> Checked {
    let mut seen = HashSet::new();
    for (mac, port) in keys {
        if !seen.insert((mac, port)) {
            return refuse(
                place,
                format!("{mac} has two reservations for the same port; remove one"),
            );
        }
    }
    Ok(())
}

impl Dhcp6Config {
    fn check(&self, place: &str, interface: &RouterInterface) -> Checked {
        let at = |field: &str| format!("{place}.{field}");
        let network_of = |address: Ipv6Addr| {
            interface
                .addresses
                .iter()
                .find(|network| network.has_station(address.into()))
        };
        if let Some(AddressRange { first, last }) = self.pool {
            let place = at("pool");
            if first > last {
                return refuse(&place, format!("{first} is behind {last}; exchange them"));
            }
            if last.to_bits() - first.to_bits() >= 65_536 {
                return refuse(&place, "it has more than 65536 addresses; use fewer");
            }
            if network_of(first).is_none() || network_of(first) != network_of(last) {
                return refuse(
                    &place,
                    "it is not in one network of the interface's addresses",
                );
            }
        }
        let list = at("reservations");
        at_most(&list, &self.reservations, 4096)?;
        for (index, reservation) in self.reservations.iter().enumerate() {
            let place = format!("{list}[{index}]");
            let is_own = interface
                .addresses
                .iter()
                .any(|own| own.v6() == Some(reservation.address));
            if is_own || network_of(reservation.address).is_none() {
                return refuse(
                    &place,
                    format!(
                        "no client of the interface can have {}",
                        reservation.address
                    ),
                );
            }
            check_port(&place, reservation.port)?;
        }
        unique(
            &list,
            "address",
            self.reservations.iter().map(|entry| entry.address),
        )?;
        check_keys(
            &list,
            self.reservations
                .iter()
                .map(|entry| (entry.mac, entry.port)),
        )?;
        at_most(&at("dns"), &self.dns, 8)?;
        at_most(&at("search"), &self.search, 8)?;
        for (index, name) in self.search.iter().enumerate() {
            check_name(&at(&format!("search[{index}]")), name, 253)?;
        }
        // A reply has to fit into one packet of IPv6's smallest MTU.
        let bytes: usize = self.search.iter().map(|name| name.len() + 2).sum();
        if bytes > 512 {
            return refuse(
                &at("search"),
                format!("its names have {bytes} bytes; at most 512 fit"),
            );
        }
        check_lease(place, self.lease_s)
    }
}

impl RouterAdvertisementConfig {
    fn check(&self, place: &str, interface: &RouterInterface) -> Checked {
        let at = |field: &str| format!("{place}.{field}");
        if interface.mtu < 1280 {
            return refuse(
                place,
                "IPv6 needs an MTU of at least 1280 (RFC 8200 §5); raise the interface's",
            );
        }
        within(&at("interval_s"), self.interval_s, (4, 1800))?;
        if self.lifetime_s != 0 {
            within(&at("lifetime_s"), self.lifetime_s, (self.interval_s, 9000))?;
        }
        at_most(&at("dns"), &self.dns, 8)?;
        let prefixes = self.prefixes.as_deref().unwrap_or_default();
        at_most(&at("prefixes"), prefixes, 16)?;
        for (index, entry) in prefixes.iter().enumerate() {
            entry.check(&at(&format!("prefixes[{index}]")))?;
        }
        Ok(())
    }
}

impl AdvertisedPrefix {
    fn check(&self, place: &str) -> Checked {
        let prefix = self.prefix;
        let is_clean = prefix
            .v6()
            .is_some_and(|address| !address.is_multicast() && !address.is_unicast_link_local())
            && prefix.network() == prefix.address();
        if !is_clean {
            return refuse(
                place,
                format!(
                    "{prefix} is no IPv6 network to advertise; clear the bits beyond the prefix"
                ),
            );
        }
        if self.autonomous && prefix.length() != 64 {
            return refuse(
                place,
                format!(
                    "hosts make addresses of 64-bit prefixes only; set `autonomous` to false for {prefix}"
                ),
            );
        }
        if self.preferred_s > self.valid_s {
            return refuse(
                place,
                "`preferred_s` is longer than `valid_s` (RFC 4861 §4.6.2); shorten it",
            );
        }
        Ok(())
    }
}
