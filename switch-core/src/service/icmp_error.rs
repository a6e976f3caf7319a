//! ICMP errors about packets that could not be forwarded or delivered (RFC 792, RFC 1812 §4.3, RFC 1191, RFC 4443 §3).

use std::net::IpAddr;

use super::build::{IcmpMessage, IpFields, icmp_frame};
use super::config::RouterInterface;
use super::drop::ServiceDrop;
use super::inbound::Inbound;
use super::ping::may_be_answered;
use crate::parse::{Network, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Transport};

/// The longest ICMP error of IPv4, with its IP header (RFC 1812 §4.3.2.3).
const LONGEST_V4: usize = 576;
/// The longest ICMP error of IPv6, with its IP header (RFC 4443 §2.4 c).
const LONGEST_V6: usize = 1280;
/// Internetwork control, the precedence of ICMP errors (RFC 1812 §4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IcmpError {
    /// Its TTL or hop limit ended here.
    TtlExceeded,
    /// It is longer than this, the MTU of its way out.
    TooBig { mtu_bytes: u16 },
    /// There is no route to its destination.
    NoRoute,
    /// Its destination does not answer.
    HostUnreachable,
    /// A rule rejects it.
    AdminProhibited,
    /// Nobody serves its port.
    PortUnreachable,
}

impl IcmpError {
    /// Type, code and the last four bytes of the header for IPv4 (RFC 792; code 13: RFC 1812 §5.2.7.1).
    fn of_v4(self) -> (u8, u8, [u8; 4]) {
        match self {
            Self::TtlExceeded => (11, 0, [0; 4]),
            Self::TooBig { mtu_bytes } => {
                let [m0, m1] = mtu_bytes.to_be_bytes();
                (3, 4, [0, 0, m0, m1])
            }
            Self::NoRoute => (3, 0, [0; 4]),
            Self::HostUnreachable => (3, 1, [0; 4]),
            Self::AdminProhibited => (3, 13, [0; 4]),
            Self::PortUnreachable => (3, 3, [0; 4]),
        }
    }

    /// The same for IPv6 (RFC 4443 §3).
    fn of_v6(self) -> (u8, u8, [u8; 4]) {
        match self {
            Self::TtlExceeded => (3, 0, [0; 4]),
            // No IPv6 link has a smaller MTU (RFC 8200 §5).
            Self::TooBig { mtu_bytes } => (2, 0, u32::from(mtu_bytes.max(1280)).to_be_bytes()),
            Self::NoRoute => (1, 0, [0; 4]),
            Self::HostUnreachable => (1, 3, [0; 4]),
            Self::AdminProhibited => (1, 1, [0; 4]),
            Self::PortUnreachable => (1, 4, [0; 4]),
        }
    }
}

/// The frame that tells the sender, through the port that its packet came from.
pub(super) fn about(
    inbound: &Inbound<'_>,
    interface: &RouterInterface,
    error: IcmpError,
) -> Result<Vec<u8>, ServiceDrop> {
    let (source, destination) = inbound.addresses().ok_or(ServiceDrop::Malformed)?;
    inbound.ip_header_must_hold()?;
    if !is_allowed(inbound, interface, error) {
        return Err(ServiceDrop::ErrorNotAllowed);
    }
    // About its own port the router speaks as the address that was asked.
    let own = if error == IcmpError::PortUnreachable && interface.has_address(destination) {
        destination
    } else {
        interface
            .address_towards(source)
            .ok_or(ServiceDrop::NoAddress)?
    };
    let (kind, code, rest) = if source.is_ipv4() {
        error.of_v4()
    } else {
        error.of_v6()
    };
    let (room, traffic_class) = if source.is_ipv4() {
        (LONGEST_V4 - 20 - 8, INTERNETWORK_CONTROL)
    } else {
        (LONGEST_V6 - 40 - 8, 0)
    };
    let packet = inbound.ip_packet();
    let message = IcmpMessage {
        kind,
        code,
        rest,
        body: packet.get(..room).unwrap_or(packet),
    };
    let ip = IpFields {
        traffic_class,
        ..IpFields::new(own, source, 0)
    };
    icmp_frame(&inbound.answer_link(interface.mac), ip, &message).ok_or(ServiceDrop::Malformed)
}

/// Whether an error may be sent about the packet (RFC 1812 §4.3.2.7, RFC 4443 §2.4 e).
fn is_allowed(inbound: &Inbound<'_>, interface: &RouterInterface, error: IcmpError) -> bool {
    let Some((source, destination)) = inbound.addresses() else {
        return false;
    };
    let is_v6_too_big = destination.is_ipv6() && matches!(error, IcmpError::TooBig { .. });
    let is_to_group = inbound.headers.ethernet.destination.is_multicast()
        || destination.is_multicast()
        || is_broadcast(interface, destination);
    let source_is_one_station = may_be_answered(source)
        && !is_broadcast(interface, source)
        && !interface.has_address(source)
        && !inbound.source_mac().is_multicast();
    let may_have_df = match inbound.headers.network {
        // RFC 1191 §4: the packet that must not be cut.
        Some(Network::Ipv4(ip)) => !matches!(error, IcmpError::TooBig { .. }) || ip.dont_fragment,
        _ => true,
    };
    (is_v6_too_big || !is_to_group)
        && source_is_one_station
        && may_have_df
        && !inbound.is_later_fragment()
        && !is_icmp_error(inbound)
}

fn is_broadcast(interface: &RouterInterface, address: IpAddr) -> bool {
    let IpAddr::V4(v4) = address else {
        return false;
    };
    v4.is_broadcast()
        || interface.addresses.iter().any(|own| {
            own.broadcast() == Some(v4)
                || (own.length() < 31 && own.network() == address && own.contains(address))
        })
}

/// Whether the packet is an ICMP error, or ICMP of a type that cannot be told: only what is known to be a query is not.
fn is_icmp_error(inbound: &Inbound<'_>) -> bool {
    match (inbound.headers.transport, inbound.headers.protocol) {
        // Echo, router discovery, timestamp, information and mask (RFC 1122 §3.2.2).
        (Some(Transport::Icmp(icmp)), _) => !matches!(icmp.kind, 0 | 8..=10 | 13..=18),
        // RFC 4443 §2.1: errors are below 128. 137 is redirect (§2.4 e.2).
        (Some(Transport::Icmpv6(icmp)), _) => icmp.kind < 128 || icmp.kind == 137,
        (None, Some(PROTOCOL_ICMP | PROTOCOL_ICMPV6)) => true,
        _ => false,
    }
}
