//! DHCPv6 (RFC 8415): addresses, DNS servers and search domains, for clients in the bridge domain of a router interface.
//!
//! * [`message`]: bytes to a request, and a reply to bytes;
//! * this file: what is answered.
//!
//! A client is an identity association of a DUID behind a port. A reservation goes by the MAC address that the client's frames come
//! from, to the lowest of its identity associations in a message.

mod message;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};

use super::build::udp_frame;
use super::config::{Dhcp6Config, RouterInterface};
use super::drop::ServiceDrop;
use super::inbound::Inbound;
use super::leases::{Client, Leases};
use super::outbox::Outbox;
use super::prefix::IpPrefix;
use crate::mac::MacAddress;
use crate::port::PortId;
use crate::time::Millis;

use message::{
    Association, Granted, Lifetimes, Reply, ReplyKind, Request, RequestKind, Status, option,
};

/// How long an advertised address is kept for the client that it was advertised to.
const OFFER: Millis = Millis::from_secs(60);
const DEFAULT_LEASE_S: u32 = 3600;
const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;
/// All DHCP relay agents and servers (RFC 8415 §7.1).
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Who has a lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client6 {
    port: PortId,
    duid: Vec<u8>,
    association: [u8; 4],
}

impl Client for Client6 {
    fn port(&self) -> PortId {
        self.port
    }
}

/// A DHCPv6 lease from a pool, as shown to an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dhcp6Lease {
    /// The router interface that serves.
    pub interface: u32,
    /// The port that the client is behind.
    pub port: PortId,
    /// The client's DHCP unique identifier.
    pub duid: Vec<u8>,
    /// The client's address.
    pub address: Ipv6Addr,
    /// When the lease, or the offer, runs out.
    pub until: Millis,
}

/// The DHCPv6 servers of all interfaces.
#[derive(Debug, Default)]
pub(super) struct Dhcp6Server {
    leases: HashMap<u32, Leases<Client6, Ipv6Addr>>,
}

/// One message to one server.
struct Exchange<'a> {
    interface: &'a RouterInterface,
    config: &'a Dhcp6Config,
    request: Request<'a>,
    source: Ipv6Addr,
    port: PortId,
    mac: MacAddress,
}

impl Dhcp6Server {
    /// Takes in what an interface offers; leases that still fit stay.
    pub(super) fn configure(&mut self, interface: &RouterInterface) {
        let Some(dhcp6) = &interface.dhcp6 else {
            self.leases.remove(&interface.id);
            return;
        };
        let own = interface.addresses.iter().filter_map(IpPrefix::v6);
        let reserved = dhcp6.reservations.iter().map(|entry| entry.address);
        let excluded: HashSet<_> = own.chain(reserved).collect();
        self.leases
            .entry(interface.id)
            .or_default()
            .configure(dhcp6.pool, excluded);
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
    pub(super) fn leases(&self, now: Millis) -> impl Iterator<Item = Dhcp6Lease> {
        self.leases.iter().flat_map(move |(&interface, leases)| {
            leases
                .iter(now)
                .map(move |(client, address, until)| Dhcp6Lease {
                    interface,
                    port: client.port,
                    duid: client.duid.clone(),
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
        let lends = leases.has_range() || !exchange.config.reservations.is_empty();
        let request = &exchange.request;
        if !lends && request.kind != RequestKind::InformationRequest {
            return Err(ServiceDrop::NotConfigured);
        }
        out.take_answer(exchange.port)?;
        let is_committed = request.kind != RequestKind::Solicit
            || (request.wants_rapid_commit && exchange.config.rapid_commit);
        let kind = if is_committed {
            ReplyKind::Reply
        } else {
            ReplyKind::Advertise
        };
        let mut reply = Reply::new(kind, request, &duid_of(interface.mac));
        match request.kind {
            RequestKind::Solicit if is_committed => {
                reply.option(option::RAPID_COMMIT, &[]);
                exchange.lend(leases, &mut reply, (exchange.lease(), out));
            }
            RequestKind::Solicit => exchange.lend(leases, &mut reply, (OFFER, out)),
            RequestKind::Request | RequestKind::Renew | RequestKind::Rebind => {
                exchange.lend(leases, &mut reply, (exchange.lease(), out));
            }
            RequestKind::Confirm => reply.status(exchange.confirmed()?),
            RequestKind::Release | RequestKind::Decline => {
                exchange.take_back(leases, out.now);
                reply.status(Status::Success);
            }
            RequestKind::InformationRequest => {}
        }
        exchange.append_options(&mut reply);
        match kind {
            ReplyKind::Advertise => out.stats.dhcp6_advertises += 1,
            ReplyKind::Reply => out.stats.dhcp6_replies += 1,
        }
        let link = inbound.answer_link(interface.mac);
        let addresses = (
            IpAddr::V6(interface.link_local()),
            IpAddr::V6(exchange.source),
        );
        let frame = udp_frame(
            &link,
            addresses,
            (SERVER_PORT, CLIENT_PORT),
            &reply.finish(),
        )
        .ok_or(ServiceDrop::Malformed)?;
        out.send(exchange.port, frame);
        Ok(())
    }
}

impl<'a> Exchange<'a> {
    fn read(inbound: &Inbound<'a>, interface: &'a RouterInterface) -> Result<Self, ServiceDrop> {
        let config = interface.dhcp6()?;
        let ip = inbound.ipv6().ok_or(ServiceDrop::Malformed)?;
        // RFC 8415 §18.4: clients that were not told otherwise send to the group, from the link.
        if ip.destination != ALL_SERVERS {
            return Err(ServiceDrop::NotForRouter);
        }
        let mac = inbound.source_mac();
        if !ip.source.is_unicast_link_local() || mac.is_multicast() || mac.is_zero() {
            return Err(ServiceDrop::InvalidSource);
        }
        let request = Request::read(inbound.udp_payload()?)?;
        if request
            .server
            .is_some_and(|server| server != duid_of(interface.mac))
        {
            return Err(ServiceDrop::OtherServer);
        }
        Ok(Self {
            interface,
            config,
            request,
            source: ip.source,
            port: inbound.packet.port,
            mac,
        })
    }

    fn lease_s(&self) -> u32 {
        self.config.lease_s.unwrap_or(DEFAULT_LEASE_S)
    }

    fn lease(&self) -> Millis {
        Millis::from_secs(u64::from(self.lease_s()))
    }

    fn client(&self, association: &Association) -> Client6 {
        Client6 {
            port: self.port,
            duid: self.request.client.unwrap_or_default().to_vec(),
            association: association.id,
        }
    }

    /// The client's own address: the reservation for its port goes before the one for any.
    fn reservation(&self) -> Option<Ipv6Addr> {
        let of_client = |port: Option<u16>| {
            self.config
                .reservations
                .iter()
                .find(|entry| entry.mac == self.mac && entry.port == port)
        };
        of_client(Some(self.port.get()))
            .or_else(|| of_client(None))
            .map(|entry| entry.address)
    }

    /// Gives each identity association an address for so long, or says why not (RFC 8415 §18.3.1, §18.3.2, §18.3.4, §18.3.5).
    fn lend(
        &self,
        leases: &mut Leases<Client6, Ipv6Addr>,
        reply: &mut Reply,
        (duration, out): (Millis, &Outbox<'_>),
    ) {
        let times = (out.now, out.now.after(duration));
        let most = out.limits.leases_per_port;
        // To the lowest of its associations, as a client may put them in another order next time.
        let lowest = self.request.associations.iter().map(|entry| entry.id).min();
        let mut reserved = self.reservation();
        for association in &self.request.associations {
            let client = self.client(association);
            let wanted = association.addresses.first().copied();
            let reserved = reserved.take_if(|_| Some(association.id) == lowest);
            let address = match (reserved, wanted, self.request.kind) {
                (Some(address), _, _) => Ok(address),
                // What a client has already it gets again, or learns that it is not its own.
                (None, Some(wanted), RequestKind::Renew | RequestKind::Rebind) => leases
                    .claim_exactly(&client, wanted, times, most)
                    .map(|()| wanted),
                (None, wanted, _) => leases.claim(&client, wanted, times, most),
            };
            let ended: Vec<_> = association
                .addresses
                .iter()
                .copied()
                .filter(|&old| address != Ok(old) && self.request.kind != RequestKind::Solicit)
                .collect();
            let status = match (address, self.request.kind) {
                (Ok(_), _) => None,
                (Err(_), RequestKind::Renew) => Some(Status::NoBinding),
                (Err(_), RequestKind::Rebind) if !ended.is_empty() => None,
                (Err(_), _) => Some(Status::NoAddressAvailable),
            };
            let lease_s = self.lease_s();
            let granted = Granted {
                address: address.ok(),
                lifetimes: Lifetimes {
                    preferred_s: lease_s / 2,
                    valid_s: lease_s,
                },
                ended: if status.is_none() { &ended } else { &[] },
                status,
            };
            reply.association(association.id, &granted);
        }
    }

    /// Whether the client's addresses are of this link (RFC 8415 §18.3.3). Without any the question makes no sense.
    fn confirmed(&self) -> Result<Status, ServiceDrop> {
        let mut addresses = self
            .request
            .associations
            .iter()
            .flat_map(|association| &association.addresses)
            .peekable();
        addresses.peek().ok_or(ServiceDrop::Malformed)?;
        let is_on_link = |address: &Ipv6Addr| {
            self.interface
                .addresses
                .iter()
                .any(|own| own.has_station(IpAddr::V6(*address)))
        };
        if addresses.all(is_on_link) {
            Ok(Status::Success)
        } else {
            Ok(Status::NotOnLink)
        }
    }

    /// Takes back what the client releases or declines.
    fn take_back(&self, leases: &mut Leases<Client6, Ipv6Addr>, now: Millis) {
        for association in &self.request.associations {
            let client = self.client(association);
            for &address in &association.addresses {
                if self.request.kind == RequestKind::Decline {
                    leases.decline(&client, address, now);
                } else {
                    leases.release(&client, address);
                }
            }
        }
    }

    fn append_options(&self, reply: &mut Reply) {
        if !self.config.dns.is_empty() {
            let servers: Vec<u8> = self.config.dns.iter().flat_map(Ipv6Addr::octets).collect();
            reply.option(option::DNS, &servers);
        }
        if !self.config.search.is_empty() {
            let names: Vec<u8> = self
                .config
                .search
                .iter()
                .flat_map(|name| encoded(name))
                .collect();
            reply.option(option::SEARCH, &names);
        }
    }
}

/// A domain name as DNS writes it (RFC 1035 §3.1), without compression (RFC 8415 §10).
fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

/// The server's DUID: its link-layer address, of Ethernet (RFC 8415 §11.4).
fn duid_of(mac: MacAddress) -> [u8; 10] {
    let [a, b, c, d, e, f] = mac.0;
    [0, 3, 0, 1, a, b, c, d, e, f]
}
