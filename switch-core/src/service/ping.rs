//! Ping: echo requests to a router's address (RFC 792, RFC 1812 §4.3.3.6, RFC 4443 §4.2).
//!
//! A whole request is answered with everything computed anew, since a guest with checksum offload may have left the checksum to us. A
//! request in fragments is answered fragment by fragment, with nothing kept: only the first holds the ICMP header, whose type changes
//! by a known amount and takes the checksum along (RFC 1624).

use std::net::IpAddr;

use super::build::{DEFAULT_TTL, IcmpMessage, IpFields, icmp_frame};
use super::config::RouterInterface;
use super::drop::ServiceDrop;
use super::inbound::Inbound;
use crate::checksum::{Sum, updated};
use crate::parse::{
    ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, Icmp, Ipv4, Ipv6, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Transport,
};

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// Whether the packet is an echo request, or a later fragment of something that may be one.
pub(super) fn is_ping(inbound: &Inbound<'_>) -> bool {
    match inbound.headers.transport {
        Some(Transport::Icmp(icmp)) => icmp.kind == ECHO_REQUEST,
        Some(Transport::Icmpv6(icmp)) => icmp.kind == ECHO_REQUEST_V6,
        Some(_) => false,
        None => {
            let protocol = inbound.headers.protocol;
            let is_icmp = (inbound.ipv4().is_some() && protocol == Some(PROTOCOL_ICMP))
                || (inbound.ipv6().is_some() && protocol == Some(PROTOCOL_ICMPV6));
            is_icmp && inbound.is_later_fragment()
        }
    }
}

/// The frame that answers an echo request to an address of the router.
pub(super) fn reply(
    inbound: &Inbound<'_>,
    interface: &RouterInterface,
) -> Result<Vec<u8>, ServiceDrop> {
    let (source, destination) = inbound.addresses().ok_or(ServiceDrop::Malformed)?;
    if !may_be_answered(source) || inbound.source_mac().is_multicast() {
        return Err(ServiceDrop::InvalidSource);
    }
    if inbound.is_fragment() {
        return match (inbound.ipv4(), inbound.ipv6()) {
            (Some(ip), _) => reply_to_fragment_v4(inbound, interface, &ip),
            (_, Some(ip)) => reply_to_fragment_v6(inbound, interface, &ip),
            _ => Err(ServiceDrop::Malformed),
        };
    }
    let traffic_class = inbound.ipv4().map_or(0, |ip| ip.type_of_service);
    let message = inbound.icmp_message()?;
    let (&[_, code, _, _, rest @ ..], body) = message
        .split_first_chunk::<8>()
        .ok_or(ServiceDrop::Malformed)?;
    let kind = if source.is_ipv4() {
        ECHO_REPLY
    } else {
        ECHO_REPLY_V6
    };
    let ip = IpFields {
        traffic_class,
        ..IpFields::new(destination, source, 0)
    };
    let message = IcmpMessage {
        kind,
        code,
        rest,
        body,
    };
    icmp_frame(&inbound.answer_link(interface.mac), ip, &message).ok_or(ServiceDrop::Malformed)
}

/// Whether a station can have the address, so that an answer reaches just that one.
pub(super) fn may_be_answered(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.octets()[0] == 0 || v4.octets()[0] >= 224),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast() || v6.is_loopback()),
    }
}

/// The fragment's ICMP bytes with the type changed to `kind`, if it is the first one.
fn answered_bytes(bytes: &[u8], icmp: Option<Icmp>, kind: u8) -> Result<Vec<u8>, ServiceDrop> {
    let Some(icmp) = icmp else {
        return Ok(bytes.to_vec());
    };
    let word = |kind| u16::from_be_bytes([kind, icmp.code]);
    let checksum = updated(icmp.checksum, word(icmp.kind), word(kind));
    let rest = bytes.get(4..).ok_or(ServiceDrop::Malformed)?;
    let [c0, c1] = checksum.to_be_bytes();
    Ok([&[kind, icmp.code, c0, c1], rest].concat())
}

fn reply_to_fragment_v4(
    inbound: &Inbound<'_>,
    interface: &RouterInterface,
    ip: &Ipv4,
) -> Result<Vec<u8>, ServiceDrop> {
    inbound.must_be_whole()?;
    let icmp = match inbound.headers.transport {
        Some(Transport::Icmp(icmp)) => Some(icmp),
        _ => None,
    };
    // Options are for the way here, not for the way back.
    if ip.header_bytes != 20 {
        return Err(ServiceDrop::NotServed);
    }
    let bytes = answered_bytes(inbound.transport_bytes(), icmp, ECHO_REPLY)?;
    let packet = inbound.ip_packet();
    let head = packet.first_chunk::<8>().ok_or(ServiceDrop::Malformed)?;
    let sum = Sum::of(head)
        .with_bytes(&[DEFAULT_TTL, PROTOCOL_ICMP])
        .with_bytes(&ip.source.octets())
        .with_bytes(&ip.destination.octets());
    let mut frame = inbound
        .answer_link(interface.mac)
        .frame(ETHER_TYPE_IPV4, packet.len());
    frame.extend(head);
    frame.extend([DEFAULT_TTL, PROTOCOL_ICMP]);
    frame.extend(sum.checksum().to_be_bytes());
    frame.extend(ip.destination.octets());
    frame.extend(ip.source.octets());
    frame.extend(bytes);
    Ok(frame)
}

fn reply_to_fragment_v6(
    inbound: &Inbound<'_>,
    interface: &RouterInterface,
    ip: &Ipv6,
) -> Result<Vec<u8>, ServiceDrop> {
    inbound.must_be_whole()?;
    let icmp = match inbound.headers.transport {
        Some(Transport::Icmpv6(icmp)) => Some(icmp),
        _ => None,
    };
    // The fragment header alone: others are for the way here.
    if ip.extensions.count != 1 || ip.extensions.bytes != 8 {
        return Err(ServiceDrop::NotServed);
    }
    let bytes = answered_bytes(inbound.transport_bytes(), icmp, ECHO_REPLY_V6)?;
    let packet = inbound.ip_packet();
    let head = packet.first_chunk::<7>().ok_or(ServiceDrop::Malformed)?;
    let fragment = packet.get(40..48).ok_or(ServiceDrop::Malformed)?;
    let mut frame = inbound
        .answer_link(interface.mac)
        .frame(ETHER_TYPE_IPV6, packet.len());
    frame.extend(head);
    frame.push(DEFAULT_TTL);
    frame.extend(ip.destination.octets());
    frame.extend(ip.source.octets());
    frame.extend(fragment);
    frame.extend(bytes);
    Ok(frame)
}
