//! DHCPv4 (RFC 2131): addresses and what goes with them, for clients in the bridge domain of a router interface.
//!
//! * [`message`]: bytes to a request, and a reply to bytes;
//! * this file: what is answered.
//!
//! A client is a MAC address behind a port. Reservations need no memory; leases from the pool do, and are bounded
//! ([`Leases`](super::leases::Leases)). A client that comes with an address that nobody has gets it, so that leases outlive a restart.

mod message;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use super::build::{Link, udp_frame};
use super::config::{Dhcp4Config, RouterInterface};
use super::drop::ServiceDrop;
use super::inbound::Inbound;
use super::leases::{Client, Leases};
use super::outbox::Outbox;
use super::prefix::IpPrefix;
use crate::mac::MacAddress;
use crate::port::PortId;
use crate::time::Millis;

use message::{Reply, ReplyKind, Request, RequestKind, option};

/// How long an offered address is kept for the client that was offered it.
const OFFER: Millis = Millis::from_secs(60);
const DEFAULT_LEASE_S: u32 = 3600;
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Who has a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client4 {
    port: PortId,
    mac: MacAddress,
}

impl Client for Client4 {
    fn port(&self) -> PortId {
        self.port
    }
}

/// A DHCPv4 lease from a pool, as shown to an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dhcp4Lease {
    /// The router interface that serves.
    pub interface: u32,
    /// The port that the client is behind.
    pub port: PortId,
    /// The client's MAC address.
    pub mac: MacAddress,
    /// Its address.
    pub address: Ipv4Addr,
    /// When the lease, or the offer, runs out.
    pub until: Millis,
}

/// The DHCPv4 servers of all interfaces.
#[derive(Debug, Default)]
pub(super) struct Dhcp4Server {
    leases: HashMap<u32, Leases<Client4, Ipv4Addr>>,
}

/// One message to one server.
struct Exchange<'a> {
    interface: &'a RouterInterface,
    config: &'a Dhcp4Config,
    /// The network of the clients; its address is the server's.
    network: IpPrefix,
    server: Ipv4Addr,
    request: Request<'a>,
    client: Client4,
}

impl Dhcp4Server {
    /// Takes in what an interface offers; leases that still fit stay.
    pub(super) fn configure(&mut self, interface: &RouterInterface) {
        let Some(dhcp4) = &interface.dhcp4 else {
            self.leases.remove(&interface.id);
            return;
        };
        let own = interface.addresses.iter().filter_map(IpPrefix::v4);
        let reserved = dhcp4.reservations.iter().map(|entry| entry.address);
        let excluded = own.chain(reserved).chain(dhcp4.router).collect();
        self.leases
            .entry(interface.id)
            .or_default()
            .configure(dhcp4.pool, excluded);
    }

    pub(super) fn remove(&mut self, interface: u32) {
        self.leases.remove(&interface);
    }

    pub(super) fn forget_port(&mut self, port: PortId) {
        for leases in self.leases.values_mut() {
            leases.forget_port(port);
        }
    }

    /// The leases that hold at `now`.
    pub(super) fn leases(&self, now: Millis) -> impl Iterator<Item = Dhcp4Lease> {
        self.leases.iter().flat_map(move |(&interface, leases)| {
            leases
                .iter(now)
                .map(move |(client, address, until)| Dhcp4Lease {
                    interface,
                    port: client.port,
                    mac: client.mac,
                    address,
                    until,
                })
        })
    }

    /// Answers a client's message.
    pub(super) fn handle(
        &mut self,
        inbound: &Inbound<'_>,
        interface: &RouterInterface,
        out: &mut Outbox<'_>,
    ) -> Result<(), ServiceDrop> {
        let exchange = Exchange::read(inbound, interface)?;
        let leases = self.leases.entry(interface.id).or_default();
        match exchange.request.kind {
            RequestKind::Discover => {
                out.take_answer(exchange.client.port)?;
                let address = exchange.offered(leases, out)?;
                out.stats.dhcp4_offers += 1;
                exchange.reply(inbound, (ReplyKind::Offer, address), out)
            }
            RequestKind::Request => {
                out.take_answer(exchange.client.port)?;
                match exchange.granted(leases, out)? {
                    Some(address) => {
                        out.stats.dhcp4_acks += 1;
                        exchange.reply(inbound, (ReplyKind::Ack, address), out)
                    }
                    None => {
                        out.stats.dhcp4_naks += 1;
                        exchange.reply(inbound, (ReplyKind::Nak, Ipv4Addr::UNSPECIFIED), out)
                    }
                }
            }
            RequestKind::Inform => {
                out.take_answer(exchange.client.port)?;
                if !exchange
                    .network
                    .has_station(exchange.request.client_address.into())
                {
                    return Err(ServiceDrop::NotOnLink);
                }
                out.stats.dhcp4_acks += 1;
                exchange.reply(inbound, (ReplyKind::Ack, Ipv4Addr::UNSPECIFIED), out)
            }
            // Neither is answered (RFC 2131 §4.3.3, §4.3.4). A reservation is neither given back nor declined.
            RequestKind::Release => {
                exchange.must_be_for_us()?;
                leases.release(&exchange.client, exchange.request.client_address);
                Ok(())
            }
            RequestKind::Decline => {
                exchange.must_be_for_us()?;
                let address = exchange.request.requested.ok_or(ServiceDrop::Malformed)?;
                leases.decline(&exchange.client, address, out.now);
                Ok(())
            }
        }
    }
}

impl<'a> Exchange<'a> {
    fn read(inbound: &Inbound<'a>, interface: &'a RouterInterface) -> Result<Self, ServiceDrop> {
        let config = interface.dhcp4()?;
        let network = interface
            .dhcp4_network()
            .ok_or(ServiceDrop::NotConfigured)?;
        let server = network.v4().ok_or(ServiceDrop::NotConfigured)?;
        let ip = inbound.ipv4().ok_or(ServiceDrop::Malformed)?;
        let is_for_us = ip.destination.is_broadcast()
            || network.broadcast() == Some(ip.destination)
            || interface.has_address(ip.destination.into());
        if !is_for_us {
            return Err(ServiceDrop::NotForRouter);
        }
        let request = Request::read(inbound.udp_payload()?)?;
        if !request.relay.is_unspecified() {
            return Err(ServiceDrop::Relayed);
        }
        // The lease goes to whom the frame is from.
        let mac = inbound.source_mac();
        if request.mac != mac || mac.is_multicast() || mac.is_zero() {
            return Err(ServiceDrop::InvalidSource);
        }
        let client = Client4 {
            port: inbound.packet.port,
            mac,
        };
        Ok(Self {
            interface,
            config,
            network,
            server,
            request,
            client,
        })
    }

    fn lease_s(&self) -> u32 {
        self.config.lease_s.unwrap_or(DEFAULT_LEASE_S)
    }

    /// The client's own address and host name: the reservation for its port goes before the one for any.
    fn reservation(&self) -> Option<(Ipv4Addr, Option<&str>)> {
        let of_client = |port: Option<u16>| {
            self.config
                .reservations
                .iter()
                .find(|entry| entry.mac == self.client.mac && entry.port == port)
        };
        of_client(Some(self.client.port.get()))
            .or_else(|| of_client(None))
            .map(|entry| (entry.address, entry.hostname.as_deref()))
    }

    fn must_be_for_us(&self) -> Result<(), ServiceDrop> {
        match self.request.server {
            Some(server) if server == self.server => Ok(()),
            Some(_) => Err(ServiceDrop::OtherServer),
            None => Err(ServiceDrop::Malformed),
        }
    }

    /// The address to offer.
    fn offered(
        &self,
        leases: &mut Leases<Client4, Ipv4Addr>,
        out: &Outbox<'_>,
    ) -> Result<Ipv4Addr, ServiceDrop> {
        if let Some((address, _)) = self.reservation() {
            return Ok(address);
        }
        let times = (out.now, out.now.after(OFFER));
        leases.claim(
            &self.client,
            self.request.requested,
            times,
            out.limits.leases_per_port,
        )
    }

    /// The address that the client asks for, if it may have it (RFC 2131 §4.3.2); `None` is to be refused.
    fn granted(
        &self,
        leases: &mut Leases<Client4, Ipv4Addr>,
        out: &Outbox<'_>,
    ) -> Result<Option<Ipv4Addr>, ServiceDrop> {
        // It answers offers: ours, or another server's.
        if self
            .request
            .server
            .is_some_and(|server| server != self.server)
        {
            return Err(ServiceDrop::OtherServer);
        }
        let own = self.request.client_address;
        let wanted = match self.request.requested {
            Some(requested) => requested,
            None if !own.is_unspecified() => own,
            None => return Err(ServiceDrop::Malformed),
        };
        let may_have = match self.reservation() {
            Some((address, _)) => address == wanted,
            None => {
                let lease = Millis::from_secs(u64::from(self.lease_s()));
                let times = (out.now, out.now.after(lease));
                leases
                    .claim_exactly(&self.client, wanted, times, out.limits.leases_per_port)
                    .is_ok()
            }
        };
        Ok(may_have.then_some(wanted))
    }

    /// Sends a reply that gives the client this address, if it is one.
    fn reply(
        &self,
        inbound: &Inbound<'_>,
        (kind, address): (ReplyKind, Ipv4Addr),
        out: &mut Outbox<'_>,
    ) -> Result<(), ServiceDrop> {
        let request = &self.request;
        let own = match kind {
            ReplyKind::Ack => request.client_address,
            ReplyKind::Offer | ReplyKind::Nak => Ipv4Addr::UNSPECIFIED,
        };
        let mut reply = Reply::new(request, kind, (own, address));
        reply.addresses(option::SERVER, &[self.server]);
        if let Some(client) = request.client {
            // RFC 6842 §3.
            reply.option(option::CLIENT, client);
        }
        if kind != ReplyKind::Nak {
            self.append_options(&mut reply, address);
        }
        let (to, mac) = self.way_back(kind, address);
        let link: Link = inbound.answer_link_to(self.interface.mac, mac);
        let addresses = (IpAddr::V4(self.server), IpAddr::V4(to));
        let ports = (SERVER_PORT, CLIENT_PORT);
        let frame =
            udp_frame(&link, addresses, ports, &reply.finish()).ok_or(ServiceDrop::Malformed)?;
        out.send(self.client.port, frame);
        Ok(())
    }

    /// Where a reply goes (RFC 2131 §4.1): to the client's address if it has one, to all if it must, else to its new address.
    fn way_back(&self, kind: ReplyKind, address: Ipv4Addr) -> (Ipv4Addr, MacAddress) {
        let own = self.request.client_address;
        if kind == ReplyKind::Nak {
            (Ipv4Addr::BROADCAST, MacAddress::BROADCAST)
        } else if self.network.has_station(own.into()) {
            (own, self.client.mac)
        } else if self.request.wants_broadcast() || address.is_unspecified() {
            (Ipv4Addr::BROADCAST, MacAddress::BROADCAST)
        } else {
            (address, self.client.mac)
        }
    }

    /// Appends what goes with an address, the most important first.
    fn append_options(&self, reply: &mut Reply, address: Ipv4Addr) {
        let config = self.config;
        if !address.is_unspecified() {
            let lease_s = self.lease_s();
            reply.number(option::LEASE_TIME, lease_s);
            // RFC 2131 §4.4.5: half and seven eighths.
            reply.number(option::RENEWAL_TIME, lease_s / 2);
            reply.number(option::REBINDING_TIME, lease_s / 8 * 7);
        }
        reply.addresses(option::SUBNET_MASK, self.network.netmask().as_slice());
        reply.addresses(option::ROUTER, config.router.as_slice());
        reply.option(option::ROUTES, &self.routes());
        reply.addresses(option::DNS, &config.dns);
        let mtu = config.mtu.unwrap_or(self.interface.mtu);
        reply.option(option::MTU, &mtu.to_be_bytes());
        if let Some((_, Some(hostname))) = self.reservation() {
            reply.option(option::HOST_NAME, hostname.as_bytes());
        }
        if let Some(name) = &config.domain_name {
            reply.option(option::DOMAIN_NAME, name.as_bytes());
        }
        reply.addresses(option::BROADCAST, self.network.broadcast().as_slice());
        reply.addresses(option::NTP, &config.ntp);
    }

    /// The routes in the form of RFC 3442, the default route among them: a client that reads them ignores the router option.
    fn routes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for route in &self.config.routes {
            let IpAddr::V4(network) = route.to.network() else {
                continue;
            };
            let length = route.to.length();
            let significant = usize::from(length.div_ceil(8));
            bytes.push(length);
            bytes.extend(network.octets().into_iter().take(significant));
            bytes.extend(route.via.octets());
        }
        let has_default = self
            .config
            .routes
            .iter()
            .any(|route| route.to.length() == 0);
        if let Some(router) = self
            .config
            .router
            .filter(|_| !bytes.is_empty() && !has_default)
        {
            bytes.push(0);
            bytes.extend(router.octets());
        }
        bytes
    }
}
