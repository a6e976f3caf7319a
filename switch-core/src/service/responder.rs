//! All services behind one door: which of them a frame is for, and whose time has come.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::action::{PacketIn, PuntReason, ServiceAction};
use super::arp;
use super::config::{RouterInterface, ServiceConfigError, ServiceLimits, ServicesConfig};
use super::dhcp4::{Dhcp4Lease, Dhcp4Server};
use super::dhcp6::{Dhcp6Lease, Dhcp6Server};
use super::drop::ServiceDrop;
use super::icmp_error::{self, IcmpError};
use super::inbound::Inbound;
use super::interfaces::Interfaces;
use super::neighbor_discovery::{self, Message};
use super::neighbors::{Claim, NeighborInfo, Neighbors, Queued, Waiting, Weight};
use super::outbox::{Budgets, Outbox};
use super::ping;
use super::random::Jitter;
use super::router_advertisement::{self, Timetable};
use super::stats::ServiceStats;
use crate::parse::Transport;
use crate::port::PortId;
use crate::time::Millis;

/// How many timers one [`Services::tick`] serves at most.
const TIMERS_PER_TICK: usize = 64;
/// How often an interface defends an address against another claim (RFC 5227 §2.4: DEFEND_INTERVAL).
const DEFEND_INTERVAL: Millis = Millis(10_000);

const DHCP4_SERVER_PORT: u16 = 67;
const DHCP6_SERVER_PORT: u16 = 547;

/// An outbox over the fields that it needs, so that the other fields stay free to borrow.
macro_rules! outbox {
    ($services:ident, $now:ident, $actions:ident) => {
        Outbox {
            now: $now,
            limits: &$services.limits,
            stats: &mut $services.stats,
            budgets: &mut $services.budgets,
            actions: $actions,
        }
    };
}

/// The services of all router interfaces.
///
/// Everything it keeps is bounded by [`ServiceLimits`] and the configuration; so is the number of actions of a call.
#[derive(Debug)]
pub struct Services {
    limits: ServiceLimits,
    interfaces: Interfaces,
    neighbors: Neighbors,
    dhcp4: Dhcp4Server,
    dhcp6: Dhcp6Server,
    advertisements: Timetable,
    /// When an interface last defended an address.
    defended_at: HashMap<u32, Millis>,
    budgets: Budgets,
    stats: ServiceStats,
    jitter: Jitter,
}

impl Services {
    /// The most actions that one [`Services::handle`] makes beyond the frames that waited for a neighbour
    /// ([`ServiceLimits::queued_frames_per_neighbor`]).
    pub const MAX_ACTIONS: usize = 4;

    /// Services without an interface. `seed` spreads what is periodic; it need not be secret, only differ between switches.
    pub fn new(seed: u64) -> Self {
        Self {
            limits: ServiceLimits::default(),
            interfaces: Interfaces::default(),
            neighbors: Neighbors::default(),
            dhcp4: Dhcp4Server::default(),
            dhcp6: Dhcp6Server::default(),
            advertisements: Timetable::default(),
            defended_at: HashMap::new(),
            budgets: Budgets::default(),
            stats: ServiceStats::default(),
            jitter: Jitter::new(seed),
        }
    }

    /// Takes a whole configuration in place of the last one. Neighbours and leases that still fit stay.
    ///
    /// # Errors
    /// As [`ServicesConfig::check`]; then nothing changed.
    pub fn configure(
        &mut self,
        config: ServicesConfig,
        now: Millis,
        actions: &mut Vec<ServiceAction>,
    ) -> Result<(), ServiceConfigError> {
        config.check()?;
        if config.limits != self.limits {
            self.limits = config.limits;
            self.budgets.clear();
        }
        let gone: Vec<u32> = self
            .interfaces
            .iter()
            .map(|old| old.id)
            .filter(|&id| config.interfaces.iter().all(|new| new.id != id))
            .collect();
        for id in gone {
            self.take_out(id, now, actions);
        }
        for interface in config.interfaces {
            self.put_in(interface, now, actions);
        }
        Ok(())
    }

    /// Puts in one router interface, in place of the one with its id, if there is one.
    ///
    /// # Errors
    /// As [`RouterInterface::check`], or when another interface of the VRF has one of its addresses, or there are too many; then
    /// nothing changed.
    pub fn set_interface(
        &mut self,
        interface: RouterInterface,
        now: Millis,
        actions: &mut Vec<ServiceAction>,
    ) -> Result<(), ServiceConfigError> {
        interface.check()?;
        let others = self.interfaces.iter().filter(|old| old.id != interface.id);
        let mut config = ServicesConfig {
            interfaces: others.map(RouterInterface::addresses_only).collect(),
            limits: self.limits.clone(),
        };
        config.interfaces.push(interface.addresses_only());
        config.check()?;
        self.put_in(interface, now, actions);
        Ok(())
    }

    /// Takes out a router interface. Says whether there was one.
    pub fn remove_interface(
        &mut self,
        id: u32,
        now: Millis,
        actions: &mut Vec<ServiceAction>,
    ) -> bool {
        let was_there = self.interfaces.get(id).is_some();
        self.take_out(id, now, actions);
        was_there
    }

    /// Forgets what is known of a port that is gone: its neighbours, its frames that wait, its budgets and dynamic leases.
    pub fn forget_port(&mut self, port: PortId, now: Millis, actions: &mut Vec<ServiceAction>) {
        let mut out = outbox!(self, now, actions);
        self.neighbors
            .forget_where(|_, neighbor| neighbor.port() == port, &mut out);
        self.neighbors.forget_frames_of(port);
        self.budgets.forget(port);
        self.dhcp4.forget_port(port);
        self.dhcp6.forget_port(port);
    }

    /// The router interfaces, by id.
    pub fn interfaces(&self) -> impl Iterator<Item = &RouterInterface> {
        self.interfaces.iter()
    }

    /// The limits in force.
    pub fn limits(&self) -> &ServiceLimits {
        &self.limits
    }

    /// What the services did since the start.
    pub fn stats(&self) -> &ServiceStats {
        &self.stats
    }

    /// The neighbours, in no order.
    pub fn neighbors(&self) -> impl Iterator<Item = NeighborInfo> {
        self.neighbors.infos()
    }

    /// The DHCPv4 leases and offers from pools that hold at `now`, in no order.
    pub fn dhcp4_leases(&self, now: Millis) -> impl Iterator<Item = Dhcp4Lease> {
        self.dhcp4.leases(now)
    }

    /// The DHCPv6 leases and offers from pools that hold at `now`, in no order.
    pub fn dhcp6_leases(&self, now: Millis) -> impl Iterator<Item = Dhcp6Lease> {
        self.dhcp6.leases(now)
    }

    /// How many bytes of frames wait for a neighbour.
    pub fn queued_bytes(&self) -> usize {
        self.neighbors.queued_bytes()
    }

    /// Answers one frame. What is to be done is appended to `actions`: at most [`Services::MAX_ACTIONS`] and the frames that waited for
    /// one neighbour.
    pub fn handle(&mut self, packet: PacketIn<'_>, now: Millis, actions: &mut Vec<ServiceAction>) {
        let outcome = Inbound::parse(packet).and_then(|inbound| self.serve(&inbound, now, actions));
        if let Err(reason) = outcome {
            self.stats.count_drop(reason);
            actions.push(ServiceAction::Drop {
                port: packet.port,
                reason,
            });
        }
    }

    /// Does what is due by now, up to a bound: afterwards [`Services::next_deadline`] may still name a time that has come.
    pub fn tick(&mut self, now: Millis, actions: &mut Vec<ServiceAction>) {
        for _ in 0..TIMERS_PER_TICK {
            let waiting = {
                let mut out = outbox!(self, now, actions);
                self.neighbors.advance(&self.interfaces, &mut out)
            };
            match waiting {
                Some(waiting) => self.give_up(waiting, now, actions),
                None => break,
            }
        }
        for _ in 0..TIMERS_PER_TICK {
            match self.advertisements.due(now) {
                Some(id) => self.advertise(id, now, actions),
                None => break,
            }
        }
    }

    /// When [`Services::tick`] next has something to do.
    pub fn next_deadline(&self) -> Option<Millis> {
        [
            self.neighbors.next_deadline(),
            self.advertisements.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn serve(
        &mut self,
        inbound: &Inbound<'_>,
        now: Millis,
        actions: &mut Vec<ServiceAction>,
    ) -> Result<(), ServiceDrop> {
        match inbound.packet.reason {
            PuntReason::NextHopUnresolved => self.resolve(inbound, now, actions),
            PuntReason::TtlExceeded => self.report(inbound, IcmpError::TtlExceeded, now, actions),
            PuntReason::NoRoute => self.report(inbound, IcmpError::NoRoute, now, actions),
            PuntReason::AdminProhibited => {
                self.report(inbound, IcmpError::AdminProhibited, now, actions)
            }
            PuntReason::HostUnreachable => {
                self.report(inbound, IcmpError::HostUnreachable, now, actions)
            }
            PuntReason::PortUnreachable => {
                self.report(inbound, IcmpError::PortUnreachable, now, actions)
            }
            PuntReason::PacketTooBig => {
                let mtu_bytes = self.mtu_of(inbound)?;
                self.report(inbound, IcmpError::TooBig { mtu_bytes }, now, actions)
            }
            // What is for an interface says itself what it is.
            PuntReason::Arp
            | PuntReason::NeighborDiscovery
            | PuntReason::NeighborObserved
            | PuntReason::RouterSolicitation
            | PuntReason::LocalInput
            | PuntReason::Dhcp4
            | PuntReason::Dhcp6 => self.receive(inbound, now, actions),
        }
    }

    /// Serves a frame that is for an interface.
    fn receive(
        &mut self,
        inbound: &Inbound<'_>,
        now: Millis,
        actions: &mut Vec<ServiceAction>,
    ) -> Result<(), ServiceDrop> {
        if inbound.arp().is_some() {
            return self.receive_arp(inbound, now, actions);
        }
        if let Some(Transport::Icmpv6(icmp)) = inbound.headers.transport
            && matches!(
                icmp.kind,
                neighbor_discovery::ROUTER_SOLICITATION
                    | neighbor_discovery::NEIGHBOR_SOLICITATION
                    | neighbor_discovery::NEIGHBOR_ADVERTISEMENT
            )
        {
            return self.receive_neighbor_discovery(inbound, now, actions);
        }
        let (_, destination) = inbound.addresses().ok_or(ServiceDrop::NotServed)?;
        let interface = self.interfaces.of_frame(inbound)?;
        let mut out = outbox!(self, now, actions);
        if let Some(Transport::Udp(udp)) = inbound.headers.transport {
            match (udp.destination_port, destination) {
                (DHCP4_SERVER_PORT, IpAddr::V4(_)) if interface.dhcp4.is_some() => {
                    return self.dhcp4.handle(inbound, interface, &mut out);
                }
                (DHCP6_SERVER_PORT, IpAddr::V6(_)) if interface.dhcp6.is_some() => {
                    return self.dhcp6.handle(inbound, interface, &mut out);
                }
                _ => {}
            }
        }
        if matches!(inbound.packet.reason, PuntReason::Dhcp4 | PuntReason::Dhcp6) {
            return Err(ServiceDrop::NotConfigured);
        }
        if !self.interfaces.is_local(interface, destination) {
            return Err(ServiceDrop::NotForRouter);
        }
        if ping::is_ping(inbound) {
            out.take_answer(inbound.packet.port)?;
            let frame = ping::reply(inbound, interface)?;
            out.stats.echo_replies += 1;
            out.send(inbound.packet.port, frame);
            return Ok(());
        }
        match inbound.headers.transport {
            Some(Transport::Udp(_)) => {
                self.report(inbound, IcmpError::PortUnreachable, now, actions)
            }
            _ => Err(ServiceDrop::NotServed),
        }
    }

    fn receive_arp(
        &mut self,
        inbound: &Inbound<'_>,
        now: Millis,
        actions: &mut Vec<ServiceAction>,
    ) -> Result<(), ServiceDrop> {
        let arp = arp::checked(inbound)?;
        let interface = self.interfaces.of_frame(inbound)?;
        let asked = arp::answer(inbound, &arp, &self.interfaces, interface);
        let mut out = outbox!(self, now, actions);
        if asked == arp::Asked::Conflict {
            let frame = arp::announcement(interface, arp.sender_ip);
            let (id, domain) = (interface.id, interface.domain);
            if is_time_to_defend(&mut self.defended_at, id, now) {
                out.flood(domain, frame);
            }
            return Err(ServiceDrop::AddressConflict);
        }
        let weight = if arp::asks_for_interface(&arp, interface) {
            Weight::AsksForUs
        } else {
            Weight::Told
        };
        let claim = Claim {
            address: arp.sender_ip.into(),
            mac: arp.sender_mac,
            weight,
        };
        // A probe tells no address (RFC 5227 §1.1).
        let learned = if arp.sender_ip.is_unspecified() {
            Ok(false)
        } else {
            self.neighbors
                .learn(inbound, interface, claim, (&mut out, &mut self.jitter))
        };
        match asked {
            arp::Asked::Answer(frame) => {
                out.take_answer(inbound.packet.port)?;
                out.stats.arp_replies += 1;
                out.send(inbound.packet.port, frame);
                Ok(())
            }
            arp::Asked::NotOurs if learned == Ok(false) => Err(ServiceDrop::NotForRouter),
            _ => learned.map(|_| ()),
        }
    }

    fn receive_neighbor_discovery(
        &mut self,
        inbound: &Inbound<'_>,
        now: Millis,
        actions: &mut Vec<ServiceAction>,
    ) -> Result<(), ServiceDrop> {
        let message = neighbor_discovery::read(inbound)?;
        let interface = self.interfaces.of_frame(inbound)?;
        let port = inbound.packet.port;
        let mut out = outbox!(self, now, actions);
        match message {
            Message::RouterSolicitation { source } => {
                if interface.ra.is_none() {
                    return Err(ServiceDrop::NotConfigured);
                }
                out.take_answer(port)?;
                let frame = router_advertisement::answer(inbound, source, interface)
                    .ok_or(ServiceDrop::Malformed)?;
                out.stats.router_advertisements += 1;
                out.send(port, frame);
                Ok(())
            }
            Message::Solicitation {
                source,
                target,
                mac,
            } => {
                let is_own = interface.has_address(target.into());
                // Somebody else is about to take an address of ours for its own.
                let is_conflict = interface.has_address(source.into());
                let mut learned = Ok(false);
                if let Some(mac) = mac.filter(|_| !is_conflict) {
                    let claim = Claim {
                        address: source.into(),
                        mac,
                        weight: if is_own {
                            Weight::AsksForUs
                        } else {
                            Weight::Told
                        },
                    };
                    learned = self.neighbors.learn(
                        inbound,
                        interface,
                        claim,
                        (&mut out, &mut self.jitter),
                    );
                }
                let addresses = (source, target);
                match neighbor_discovery::answer(inbound, addresses, &self.interfaces, interface) {
                    Some(frame) => {
                        out.take_answer(port)?;
                        out.stats.neighbor_advertisements += 1;
                        out.send(port, frame);
                        Ok(())
                    }
                    None if learned == Ok(false) => Err(ServiceDrop::NotForRouter),
                    None => learned.map(|_| ()),
                }
            }
            Message::Advertisement {
                target,
                mac,
                overrides,
            } => {
                if interface.has_address(target.into()) {
                    let frame = neighbor_discovery::announcement(interface, target);
                    let (id, domain) = (interface.id, interface.domain);
                    if let Some(frame) = frame
                        && is_time_to_defend(&mut self.defended_at, id, now)
                    {
                        out.flood(domain, frame);
                    }
                    return Err(ServiceDrop::AddressConflict);
                }
                let weight = if overrides {
                    Weight::Told
                } else {
                    Weight::DoesNotOverride
                };
                let claim = Claim {
                    address: target.into(),
                    mac,
                    weight,
                };
                self.neighbors
                    .learn(inbound, interface, claim, (&mut out, &mut self.jitter))
                    .map(|_| ())
            }
        }
    }

    /// Queues a frame for its next hop, or tells its sender that there is none.
    fn resolve(
        &mut self,
        inbound: &Inbound<'_>,
        now: Millis,
        actions: &mut Vec<ServiceAction>,
    ) -> Result<(), ServiceDrop> {
        let metadata = &inbound.packet.metadata;
        let egress = self
            .interfaces
            .get(metadata.egress_interface)
            .ok_or(ServiceDrop::UnknownInterface)?;
        let (_, destination) = inbound.addresses().ok_or(ServiceDrop::Malformed)?;
        let next_hop = match (metadata.next_hop, destination) {
            (0, destination) => destination,
            (bits, IpAddr::V4(_)) => Ipv4Addr::from_bits(bits as u32).into(),
            (bits, IpAddr::V6(_)) => Ipv6Addr::from_bits(bits).into(),
        };
        let queued = {
            let mut out = outbox!(self, now, actions);
            self.neighbors
                .enqueue(inbound, (egress, next_hop), &mut out)?
        };
        match queued {
            Queued::Kept => Ok(()),
            Queued::Unreachable => {
                self.tell(inbound, IcmpError::HostUnreachable, now, actions);
                Err(ServiceDrop::NeighborUnreachable)
            }
        }
    }

    /// Tells the senders of frames that waited in vain.
    fn give_up(&mut self, waiting: Vec<Waiting>, now: Millis, actions: &mut Vec<ServiceAction>) {
        for waiting in waiting {
            let packet = PacketIn {
                port: waiting.port,
                reason: PuntReason::HostUnreachable,
                metadata: waiting.metadata,
                vnet_header: waiting.vnet_header,
                frame: &waiting.frame,
            };
            if let Ok(inbound) = Inbound::parse(packet) {
                self.tell(&inbound, IcmpError::HostUnreachable, now, actions);
            }
            let mut out = outbox!(self, now, actions);
            out.drop(waiting.port, ServiceDrop::NeighborUnreachable);
        }
    }

    /// Sends an ICMP error about a frame that ends here for a reason of its own.
    fn tell(
        &mut self,
        inbound: &Inbound<'_>,
        error: IcmpError,
        now: Millis,
        actions: &mut Vec<ServiceAction>,
    ) {
        // The frame is counted under its own reason; that nobody was told is no second one.
        let _ = self.report(inbound, error, now, actions);
    }

    /// Sends an ICMP error about a frame.
    fn report(
        &mut self,
        inbound: &Inbound<'_>,
        error: IcmpError,
        now: Millis,
        actions: &mut Vec<ServiceAction>,
    ) -> Result<(), ServiceDrop> {
        let interface = self.interfaces.of_frame(inbound)?;
        let frame = icmp_error::about(inbound, interface, error)?;
        let mut out = outbox!(self, now, actions);
        out.take_error(inbound.packet.port)?;
        out.stats.icmp_errors += 1;
        out.send(inbound.packet.port, frame);
        Ok(())
    }

    /// The MTU of the way out that a frame is too big for.
    fn mtu_of(&self, inbound: &Inbound<'_>) -> Result<u16, ServiceDrop> {
        let metadata = &inbound.packet.metadata;
        match metadata.mtu_bytes {
            0 => self
                .interfaces
                .get(metadata.egress_interface)
                .map(|egress| egress.mtu)
                .ok_or(ServiceDrop::UnknownInterface),
            mtu_bytes => Ok(mtu_bytes),
        }
    }

    /// Sends an unasked router advertisement.
    fn advertise(&mut self, id: u32, now: Millis, actions: &mut Vec<ServiceAction>) {
        let Some((interface, ra)) = self
            .interfaces
            .get(id)
            .and_then(|interface| Some((interface, interface.ra.as_ref()?)))
        else {
            self.advertisements.stop(id);
            return;
        };
        self.advertisements.sent(id, ra, (now, &mut self.jitter));
        if let Some(frame) = router_advertisement::unasked(interface) {
            let mut out = outbox!(self, now, actions);
            out.stats.router_advertisements += 1;
            out.flood(interface.domain, frame);
        }
    }

    /// Puts in an interface that was checked.
    fn put_in(
        &mut self,
        interface: RouterInterface,
        now: Millis,
        actions: &mut Vec<ServiceAction>,
    ) {
        let id = interface.id;
        let old = self.interfaces.remove(id);
        if old.as_ref() == Some(&interface) {
            self.interfaces.insert(interface);
            return;
        }
        let stays = old
            .as_ref()
            .is_some_and(|old| old.domain == interface.domain && old.mac == interface.mac);
        let mut out = outbox!(self, now, actions);
        self.neighbors.forget_where(
            |key, _| key.interface == id && !(stays && interface.may_be_neighbor(key.address)),
            &mut out,
        );
        if let Some(old) = old.filter(|old| old.ra.is_some() && !(stays && interface.ra.is_some()))
            && let Some(frame) = router_advertisement::farewell(&old)
        {
            out.flood(old.domain, frame);
        }
        for frame in interface.announcements() {
            out.flood(interface.domain, frame);
        }
        self.dhcp4.configure(&interface);
        self.dhcp6.configure(&interface);
        if interface.ra.is_some() {
            self.advertisements.start(id, now);
        } else {
            self.advertisements.stop(id);
        }
        self.interfaces.insert(interface);
    }

    /// Takes out an interface and all that is known of it.
    fn take_out(&mut self, id: u32, now: Millis, actions: &mut Vec<ServiceAction>) {
        let mut out = outbox!(self, now, actions);
        self.neighbors
            .forget_where(|key, _| key.interface == id, &mut out);
        if let Some(old) = self.interfaces.remove(id)
            && let Some(frame) = router_advertisement::farewell(&old)
        {
            out.flood(old.domain, frame);
        }
        self.dhcp4.remove(id);
        self.dhcp6.remove(id);
        self.advertisements.stop(id);
        self.defended_at.remove(&id);
    }
}

/// Whether the interface may defend its address now; then it does.
fn is_time_to_defend(defended_at: &mut HashMap<u32, Millis>, id: u32, now: Millis) -> bool {
    let is_time = defended_at
        .get(&id)
        .is_none_or(|last| now.since(*last) >= DEFEND_INTERVAL);
    if is_time {
        defended_at.insert(id, now);
    }
    is_time
}

impl RouterInterface {
    /// The interface with its addresses only: what other interfaces can be in conflict with.
    fn addresses_only(&self) -> Self {
        Self {
            addresses: self.addresses.clone(),
            proxies: Vec::new(),
            dhcp4: None,
            dhcp6: None,
            ra: None,
            ..*self
        }
    }

    /// Frames that tell the link whose the interface's addresses are.
    fn announcements(&self) -> impl Iterator<Item = Vec<u8>> {
        self.addresses.iter().filter_map(|own| match own.address() {
            IpAddr::V4(own) => Some(arp::announcement(self, own)),
            IpAddr::V6(own) => neighbor_discovery::announcement(self, own),
        })
    }
}
