//! The router interfaces as the services look them up.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};

use super::action::{NO_INTERFACE, PuntReason};
use super::build::link_local_of;
use super::config::{Dhcp4Config, Dhcp6Config, RouterInterface};
use super::drop::ServiceDrop;
use super::inbound::Inbound;
use super::prefix::IpPrefix;
use crate::mac::MacAddress;

/// How an interface has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    /// As its own.
    Own(MacAddress),
    /// For another.
    Proxy(MacAddress),
}

impl RouterInterface {
    /// The IPv4 address with the network that its DHCP clients are in.
    pub(super) fn dhcp4_network(&self) -> Option<IpPrefix> {
        let wanted = self.dhcp4.as_ref().and_then(|dhcp4| dhcp4.server);
        self.addresses
            .iter()
            .find(|prefix| match wanted {
                Some(server) => prefix.v4() == Some(server),
                None => prefix.v4().is_some(),
            })
            .copied()
    }

    /// The IPv6 link-local address.
    pub(super) fn link_local(&self) -> Ipv6Addr {
        self.addresses
            .iter()
            .filter_map(IpPrefix::v6)
            .find(|address| address.is_unicast_link_local())
            .unwrap_or_else(|| link_local_of(self.mac))
    }

    /// Whether the interface speaks IPv6: it has an address, or advertises itself, or serves DHCPv6.
    pub(super) fn speaks_v6(&self) -> bool {
        self.ra.is_some()
            || self.dhcp6.is_some()
            || self.addresses.iter().any(|prefix| prefix.v6().is_some())
    }

    /// Whether it is one of the interface's addresses.
    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.address() == address)
            || (self.speaks_v6() && address == IpAddr::V6(self.link_local()))
    }

    /// Whether a neighbour may have the address: a station of the interface's networks, or any IPv6 link-local address.
    pub(super) fn may_be_neighbor(&self, address: IpAddr) -> bool {
        let is_link_local =
            self.speaks_v6() && matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        (is_link_local || self.addresses.iter().any(|own| own.has_station(address)))
            && !self.has_address(address)
    }

    /// The interface's address to answer a station at `peer` from: of the same network, else one of the same family, an IPv6
    /// link-local one last.
    pub(super) fn address_towards(&self, peer: IpAddr) -> Option<IpAddr> {
        if matches!(peer, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return self.speaks_v6().then(|| self.link_local().into());
        }
        let own = |prefix: &&IpPrefix| prefix.address().is_ipv4() == peer.is_ipv4();
        self.addresses
            .iter()
            .find(|prefix| prefix.contains(peer))
            .or_else(|| {
                self.addresses
                    .iter()
                    .filter(own)
                    .find(|prefix| !matches!(prefix.v6(), Some(v6) if v6.is_unicast_link_local()))
            })
            .map(IpPrefix::address)
            .or_else(|| (peer.is_ipv6() && self.speaks_v6()).then(|| self.link_local().into()))
    }

    pub(super) fn dhcp4(&self) -> Result<&Dhcp4Config, ServiceDrop> {
        self.dhcp4.as_ref().ok_or(ServiceDrop::NotConfigured)
    }

    pub(super) fn dhcp6(&self) -> Result<&Dhcp6Config, ServiceDrop> {
        self.dhcp6.as_ref().ok_or(ServiceDrop::NotConfigured)
    }
}

/// All router interfaces, and who answers for which address.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    by_id: BTreeMap<u32, RouterInterface>,
    /// The interfaces of a bridge domain.
    by_domain: HashMap<u16, Vec<u32>>,
    /// Who answers ARP and neighbour solicitations for an address, of each interface.
    answers: HashMap<(u32, IpAddr), Answers>,
    /// How many interfaces of a VRF have the address.
    local: HashMap<(u32, IpAddr), u32>,
}

impl Interfaces {
    pub(super) fn get(&self, id: u32) -> Option<&RouterInterface> {
        self.by_id.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &RouterInterface> {
        self.by_id.values()
    }

    /// Puts an interface in, in place of the one with its id.
    pub(super) fn insert(&mut self, interface: RouterInterface) {
        self.remove(interface.id);
        let id = interface.id;
        self.by_domain.entry(interface.domain).or_default().push(id);
        for proxy in &interface.proxies {
            let mac = proxy.mac.unwrap_or(interface.mac);
            self.answers
                .insert((id, proxy.address), Answers::Proxy(mac));
        }
        for address in interface.own_addresses() {
            self.answers
                .insert((id, address), Answers::Own(interface.mac));
            *self.local.entry((interface.vrf, address)).or_default() += 1;
        }
        self.by_id.insert(id, interface);
    }

    /// Takes an interface out.
    pub(super) fn remove(&mut self, id: u32) -> Option<RouterInterface> {
        let interface = self.by_id.remove(&id)?;
        if let Some(ids) = self.by_domain.get_mut(&interface.domain) {
            ids.retain(|&other| other != id);
            if ids.is_empty() {
                self.by_domain.remove(&interface.domain);
            }
        }
        for proxy in &interface.proxies {
            self.answers.remove(&(id, proxy.address));
        }
        for address in interface.own_addresses() {
            self.answers.remove(&(id, address));
            let place = (interface.vrf, address);
            if let Some(count) = self.local.get_mut(&place) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.local.remove(&place);
                }
            }
        }
        Some(interface)
    }

    /// What the interface answers to who asks for this address.
    pub(super) fn answer(&self, interface: u32, address: IpAddr) -> Option<Answers> {
        self.answers.get(&(interface, address)).copied()
    }

    /// Whether the router has the address, as one that came in by `interface` sees it: any interface of the same VRF may have it,
    /// but a link-local address only the interface itself.
    pub(super) fn is_local(&self, interface: &RouterInterface, address: IpAddr) -> bool {
        interface.has_address(address) || {
            let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            !is_link_local && self.local.contains_key(&(interface.vrf, address))
        }
    }

    /// The interface that the frame came in by: the one that the program names, else the one of the bridge domain with the frame's
    /// destination address, else, for a frame to a group or one that a rule rejects (which need not be for a router), the domain's
    /// only one.
    pub(super) fn of_frame(&self, inbound: &Inbound<'_>) -> Result<&RouterInterface, ServiceDrop> {
        let metadata = &inbound.packet.metadata;
        if metadata.interface != NO_INTERFACE {
            let interface = self
                .get(metadata.interface)
                .ok_or(ServiceDrop::UnknownInterface)?;
            return if interface.domain == metadata.domain {
                Ok(interface)
            } else {
                Err(ServiceDrop::WrongDomain)
            };
        }
        let destination = inbound.headers.ethernet.destination;
        let ids = self
            .by_domain
            .get(&metadata.domain)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let addressed = ids
            .iter()
            .filter_map(|&id| self.get(id))
            .find(|interface| interface.mac == destination);
        match (addressed, ids) {
            (Some(interface), _) => Ok(interface),
            (None, &[id])
                if destination.is_multicast()
                    || inbound.packet.reason == PuntReason::AdminProhibited =>
            {
                self.get(id).ok_or(ServiceDrop::UnknownInterface)
            }
            _ => Err(ServiceDrop::UnknownInterface),
        }
    }
}

impl RouterInterface {
    /// Its addresses, the link-local one among them.
    fn own_addresses(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<_> = self.addresses.iter().map(IpPrefix::address).collect();
        let link_local = IpAddr::V6(self.link_local());
        if self.speaks_v6() && !addresses.contains(&link_local) {
            addresses.push(link_local);
        }
        addresses
    }
}
