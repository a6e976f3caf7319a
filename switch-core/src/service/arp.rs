//! ARP (RFC 826): answers for router interfaces and proxy entries, and what may be learned from it.

use std::net::IpAddr;

use super::build::{ArpFields, Link, arp_frame};
use super::config::RouterInterface;
use super::drop::ServiceDrop;
use super::inbound::Inbound;
use super::interfaces::{Answers, Interfaces};
use crate::mac::MacAddress;
use crate::parse::Arp;

const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// What an ARP packet asks for and tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Answer with this frame, through the same port.
    Answer(Vec<u8>),
    /// The sender claims an address of the interface.
    Conflict,
    /// There is nothing to answer. The sender told its own address, which is of use if it is sought or known.
    Told,
    /// The address it asks for is not ours.
    NotOurs,
}

/// The ARP packet of the frame, if it is one that makes sense.
pub(super) fn checked(inbound: &Inbound<'_>) -> Result<Arp, ServiceDrop> {
    let arp = inbound.arp().ok_or(ServiceDrop::Malformed)?;
    if !matches!(arp.operation, REQUEST | REPLY) {
        return Err(ServiceDrop::NotServed);
    }
    if arp.sender_mac.is_multicast() || arp.sender_mac.is_zero() {
        return Err(ServiceDrop::InvalidSource);
    }
    Ok(arp)
}

/// Whether the packet asks for an address of the interface itself: who does is about to talk to it (RFC 826).
pub(super) fn asks_for_interface(arp: &Arp, interface: &RouterInterface) -> bool {
    arp.operation == REQUEST && interface.has_address(arp.target_ip.into())
}

/// What is to be answered.
pub(super) fn answer(
    inbound: &Inbound<'_>,
    arp: &Arp,
    interfaces: &Interfaces,
    interface: &RouterInterface,
) -> Asked {
    let is_own = |address| interface.has_address(IpAddr::V4(address));
    if is_own(arp.sender_ip) && arp.sender_mac != interface.mac {
        return Asked::Conflict;
    }
    // A reply, or a gratuitous request, tells the sender's own address.
    if arp.operation == REPLY || arp.sender_ip == arp.target_ip {
        return Asked::Told;
    }
    let mac = match interfaces.answer(interface.id, arp.target_ip.into()) {
        Some(Answers::Own(mac)) => mac,
        // Whoever has the address asks whether another has it too (RFC 5227 §2.1.1).
        Some(Answers::Proxy(mac)) if mac == arp.sender_mac => return Asked::Told,
        Some(Answers::Proxy(mac)) => mac,
        None => return Asked::NotOurs,
    };
    let fields = ArpFields {
        operation: REPLY,
        sender: (mac, arp.target_ip),
        target: (arp.sender_mac, arp.sender_ip),
    };
    Asked::Answer(arp_frame(&inbound.answer_link(mac), &fields))
}

/// A request for a neighbour's address: to all, or to the station that last had it.
pub(super) fn request(
    interface: &RouterInterface,
    own: std::net::Ipv4Addr,
    sought: std::net::Ipv4Addr,
    link: &Link,
) -> Vec<u8> {
    let fields = ArpFields {
        operation: REQUEST,
        sender: (interface.mac, own),
        target: (MacAddress::default(), sought),
    };
    arp_frame(link, &fields)
}

/// An announcement of an address of the interface (RFC 5227 §3), which also defends it.
pub(super) fn announcement(interface: &RouterInterface, own: std::net::Ipv4Addr) -> Vec<u8> {
    let link = Link::untagged(interface.mac, MacAddress::BROADCAST);
    request(interface, own, own, &link)
}
