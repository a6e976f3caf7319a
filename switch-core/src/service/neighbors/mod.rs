//! Which MAC address a next hop has, and the frames that wait until that is known.
//!
//! ```text
//!            first frame                 answer                 reachable time over
//!  (none) ----------------> Incomplete ----------> Reachable ------------------------> Probing
//!     ^                        | 3 unanswered        ^    \___ told again: starts anew    |   |
//!     |   failed time over     v                     |                   answer           |   | 3 unanswered
//!     +--------------------- Failed                  +------------------------------------+   +--> (none)
//! ```
//!
//! Entering Reachable puts the neighbour into the engine's table and gives its queue back to the program; leaving Probing unanswered
//! takes it out. All of it is bounded: neighbours in all, known and sought by port, frames by neighbour and port, bytes in all.

mod shares;
mod table;

use std::net::IpAddr;

use super::action::{ServiceAction, VNET_HEADER_BYTES};
use super::arp;
use super::build::{Link, Tags};
use super::config::RouterInterface;
use super::drop::ServiceDrop;
use super::inbound::Inbound;
use super::interfaces::Interfaces;
use super::neighbor_discovery;
use super::outbox::Outbox;
use super::random::Jitter;
use crate::mac::MacAddress;
use crate::port::PortId;
use crate::time::Millis;

pub(super) use table::{Neighbor, NeighborKey, Neighbors, Waiting};
pub use table::{NeighborInfo, NeighborState};

use table::State;

/// How often a neighbour is asked before it is given up (RFC 4861 §10: MAX_MULTICAST_SOLICIT, MAX_UNICAST_SOLICIT).
const MAX_REQUESTS: u8 = 3;
/// The time between two requests (RFC 4861 §10: RETRANS_TIMER).
const RETRANSMIT: Millis = Millis(1000);
/// How long a neighbour keeps its MAC address against other claims.
const LOCK: Millis = Millis(1000);
/// How many frames of a known neighbour may come back in a second because its table entry is not there yet.
const MAX_REPEATS: u32 = 64;

/// What a station told about an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub address: IpAddr,
    pub mac: MacAddress,
    pub weight: Weight,
}

/// How much a claim counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// The station asked for the interface's own address: it is learned even if nobody sought it.
    AsksForUs,
    /// It told its address: of use where it is sought or known.
    Told,
    /// It told its address, and says not to take it in place of another (RFC 4861 §7.2.5: Override not set).
    DoesNotOverride,
}

/// How a frame for a next hop fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queued {
    /// It waits, or was given back at once.
    Kept,
    /// The next hop is known not to answer: the sender may be told.
    Unreachable,
}

impl Neighbors {
    /// Takes in a frame whose next hop is not in the engine's table.
    pub(super) fn enqueue(
        &mut self,
        inbound: &Inbound<'_>,
        (egress, next_hop): (&RouterInterface, IpAddr),
        out: &mut Outbox<'_>,
    ) -> Result<Queued, ServiceDrop> {
        if !egress.may_be_neighbor(next_hop) {
            return Err(ServiceDrop::NotOnLink);
        }
        let key = NeighborKey {
            interface: egress.id,
            address: next_hop,
        };
        let packet = &inbound.packet;
        match self.get_mut(&key) {
            Some(neighbor) => match neighbor.state {
                State::Reachable | State::Probing => {
                    if !neighbor.may_repeat(out.now, MAX_REPEATS) {
                        return Err(ServiceDrop::NeighborNotInstalled);
                    }
                    out.actions.push(learned(&key, egress, neighbor));
                    out.stats.frames_reinjected += 1;
                    out.actions.push(ServiceAction::Reinject {
                        port: packet.port,
                        vnet_header: packet.vnet_header,
                        frame: packet.frame.to_vec(),
                    });
                    Ok(Queued::Kept)
                }
                State::Failed => Ok(Queued::Unreachable),
                State::Incomplete => {
                    self.wait(&key, packet, out.limits)?;
                    out.stats.frames_queued += 1;
                    Ok(Queued::Kept)
                }
            },
            None => {
                let neighbor = Neighbor::sought(packet.port, out.now.after(RETRANSMIT));
                self.insert_sought(key, neighbor, out.limits)?;
                if let Err(reason) = self.wait(&key, packet, out.limits) {
                    self.remove(&key);
                    return Err(reason);
                }
                out.stats.frames_queued += 1;
                ask(&key, egress, None, out);
                Ok(Queued::Kept)
            }
        }
    }

    /// Takes in what a station told about an address. Says whether it was of use.
    pub(super) fn learn(
        &mut self,
        inbound: &Inbound<'_>,
        interface: &RouterInterface,
        claim: Claim,
        (out, jitter): (&mut Outbox<'_>, &mut Jitter),
    ) -> Result<bool, ServiceDrop> {
        let Claim {
            address,
            mac,
            weight,
        } = claim;
        if mac.is_multicast() || mac.is_zero() || mac == interface.mac {
            return Err(ServiceDrop::InvalidSource);
        }
        if !interface.may_be_neighbor(address) {
            return Err(ServiceDrop::NotOnLink);
        }
        let key = NeighborKey {
            interface: interface.id,
            address,
        };
        let port = inbound.packet.port;
        let place = (mac, port, inbound.tags);
        let is_news = match self.get(&key) {
            None if weight != Weight::AsksForUs => return Ok(false),
            None => true,
            Some(old) if !old.is_known() => true,
            Some(old) if old.mac != mac => {
                // A claim that would take the address from a station that just had it may be a flood of them.
                if weight == Weight::DoesNotOverride || out.now < old.changed_at.after(LOCK) {
                    return Ok(false);
                }
                true
            }
            Some(old) => old.port != port,
        };
        let reachable = out.limits.neighbor_reachable_ms;
        // RFC 4861 §6.3.2: the time is spread, so that not all are asked at once.
        let until = out
            .now
            .after(Millis(jitter.between(reachable / 4 * 3, reachable)));
        self.set_reachable(key, place, (out.now, until), out.limits)?;
        if !is_news {
            return Ok(true);
        }
        out.stats.neighbors_learned += 1;
        let Some(neighbor) = self.get(&key) else {
            return Ok(true);
        };
        out.actions.push(learned(&key, interface, neighbor));
        for waiting in self.take_queue(&key) {
            out.stats.frames_reinjected += 1;
            out.actions.push(ServiceAction::Reinject {
                port: waiting.port,
                vnet_header: waiting.vnet_header,
                frame: waiting.frame,
            });
        }
        Ok(true)
    }

    /// Does what the first due neighbour waits for. Says which frames now have nowhere to go, and whether there was one due.
    pub(super) fn advance(
        &mut self,
        interfaces: &Interfaces,
        out: &mut Outbox<'_>,
    ) -> Option<Vec<Waiting>> {
        let key = self.due(out.now)?;
        let neighbor = self.get(&key)?;
        let (state, requests) = (neighbor.state, neighbor.requests);
        let place = (neighbor.mac, neighbor.port, neighbor.tags);
        let Some(interface) = interfaces.get(key.interface) else {
            self.remove(&key);
            return Some(Vec::new());
        };
        let next = out.now.after(RETRANSMIT);
        match state {
            State::Incomplete if requests < MAX_REQUESTS => {
                self.set_asked(&key, (State::Incomplete, requests + 1), next);
                ask(&key, interface, None, out);
            }
            State::Incomplete => {
                out.stats.neighbors_failed += 1;
                let failed = out.now.after(Millis(out.limits.neighbor_failed_ms));
                self.set_asked(&key, (State::Failed, requests), failed);
                return Some(self.take_queue(&key).into());
            }
            State::Failed => {
                self.remove(&key);
            }
            State::Reachable => {
                self.set_asked(&key, (State::Probing, 1), next);
                ask(&key, interface, Some(place), out);
            }
            State::Probing if requests < MAX_REQUESTS => {
                self.set_asked(&key, (State::Probing, requests + 1), next);
                ask(&key, interface, Some(place), out);
            }
            State::Probing => {
                self.remove(&key);
                forget(&key, out);
            }
        }
        Some(Vec::new())
    }

    /// Takes out all neighbours that `is_gone` names: from the engine's table those that are in it, and their frames.
    pub(super) fn forget_where(
        &mut self,
        is_gone: impl Fn(&NeighborKey, &Neighbor) -> bool,
        out: &mut Outbox<'_>,
    ) {
        for key in self.keys_where(is_gone) {
            let Some(neighbor) = self.remove(&key) else {
                continue;
            };
            if neighbor.is_known() {
                forget(&key, out);
            }
            for waiting in neighbor.queue {
                out.drop(waiting.port, ServiceDrop::NeighborUnreachable);
            }
        }
    }
}

fn learned(key: &NeighborKey, interface: &RouterInterface, neighbor: &Neighbor) -> ServiceAction {
    ServiceAction::LearnNeighbor {
        interface: key.interface,
        address: key.address,
        mac: neighbor.mac,
        domain: interface.domain,
        port: neighbor.port,
    }
}

fn forget(key: &NeighborKey, out: &mut Outbox<'_>) {
    out.stats.neighbors_forgotten += 1;
    out.actions.push(ServiceAction::ForgetNeighbor {
        interface: key.interface,
        address: key.address,
    });
}

/// Asks for a neighbour's MAC address: the whole bridge domain, or just the place where it was.
fn ask(
    key: &NeighborKey,
    interface: &RouterInterface,
    place: Option<(MacAddress, PortId, Tags)>,
    out: &mut Outbox<'_>,
) {
    let unicast = place.map(|(mac, _, tags)| Link {
        destination: mac,
        source: interface.mac,
        tags,
    });
    let frame = match (interface.address_towards(key.address), key.address) {
        (Some(IpAddr::V4(own)), IpAddr::V4(sought)) => {
            let broadcast = Link::untagged(interface.mac, MacAddress::BROADCAST);
            let link = unicast.unwrap_or(broadcast);
            Some(arp::request(interface, own, sought, &link))
        }
        (Some(IpAddr::V6(own)), IpAddr::V6(sought)) => {
            neighbor_discovery::solicitation(interface, own, sought, unicast.as_ref())
        }
        _ => None,
    };
    let Some(frame) = frame else {
        return;
    };
    out.stats.neighbor_requests += 1;
    match place {
        Some((_, port, _)) => out.send(port, frame),
        None => out.flood(interface.domain, frame),
    }
}

/// A virtio-net header that is carried along.
type VnetHeader = [u8; VNET_HEADER_BYTES];
