//! IPv6 neighbour discovery (RFC 4861): solicitations answered for router interfaces and proxy entries, duplicate address detection
//! included (RFC 4862), and what may be learned from solicitations and advertisements.

use std::net::{IpAddr, Ipv6Addr};

use super::build::{
    ALL_NODES, HOP_LIMIT_OF_NEIGHBORS, IcmpMessage, IpFields, Link, icmp_frame, multicast_mac,
    solicited_node,
};
use super::config::RouterInterface;
use super::drop::ServiceDrop;
use super::inbound::Inbound;
use super::interfaces::{Answers, Interfaces};
use crate::mac::MacAddress;

/// The ICMPv6 types of neighbour discovery (RFC 4861 §4).
pub(super) const ROUTER_SOLICITATION: u8 = 133;
pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
pub(super) const NEIGHBOR_SOLICITATION: u8 = 135;
pub(super) const NEIGHBOR_ADVERTISEMENT: u8 = 136;

const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;

const FLAG_ROUTER: u8 = 0x80;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;

/// A neighbour discovery message that passed the checks of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Who has this address?
    Solicitation {
        source: Ipv6Addr,
        target: Ipv6Addr,
        /// The source link-layer address option.
        mac: Option<MacAddress>,
    },
    /// This station has this address.
    Advertisement {
        target: Ipv6Addr,
        /// The target link-layer address option; the frame's source without one.
        mac: MacAddress,
        overrides: bool,
    },
    /// Which routers are there?
    RouterSolicitation { source: Ipv6Addr },
}

/// Reads a neighbour discovery message (RFC 4861 §6.1.1, §7.1.1, §7.1.2).
pub(super) fn read(inbound: &Inbound<'_>) -> Result<Message, ServiceDrop> {
    let ip = inbound.ipv6().ok_or(ServiceDrop::Malformed)?;
    let message = inbound.icmp_message()?;
    // A hop limit of 255 proves that no router passed it on; fragments are not allowed (RFC 6980).
    if ip.hop_limit != HOP_LIMIT_OF_NEIGHBORS || ip.extensions.fragment.is_some() {
        return Err(ServiceDrop::InvalidSource);
    }
    let (&[kind, 0, _, _, flags, ..], false) = (
        message.first_chunk::<8>().ok_or(ServiceDrop::Malformed)?,
        ip.source.is_multicast(),
    ) else {
        return Err(ServiceDrop::Malformed);
    };
    if kind == ROUTER_SOLICITATION {
        let mac = link_layer_option(message, 8, SOURCE_LINK_LAYER_ADDRESS)?;
        return if ip.source.is_unspecified() && mac.is_some() {
            Err(ServiceDrop::Malformed)
        } else {
            Ok(Message::RouterSolicitation { source: ip.source })
        };
    }
    let target = message
        .get(8..)
        .and_then(|rest| rest.first_chunk::<16>())
        .map(|bytes| Ipv6Addr::from(*bytes))
        .filter(|target| !target.is_multicast() && !target.is_unspecified())
        .ok_or(ServiceDrop::Malformed)?;
    match kind {
        NEIGHBOR_SOLICITATION => {
            let mac = link_layer_option(message, 24, SOURCE_LINK_LAYER_ADDRESS)?;
            let is_probe = ip.source.is_unspecified();
            if is_probe && (mac.is_some() || ip.destination != solicited_node(target)) {
                return Err(ServiceDrop::Malformed);
            }
            Ok(Message::Solicitation {
                source: ip.source,
                target,
                mac,
            })
        }
        NEIGHBOR_ADVERTISEMENT => {
            if ip.destination.is_multicast() && flags & FLAG_SOLICITED != 0 {
                return Err(ServiceDrop::Malformed);
            }
            let mac = link_layer_option(message, 24, TARGET_LINK_LAYER_ADDRESS)?;
            Ok(Message::Advertisement {
                target,
                mac: mac.unwrap_or(inbound.source_mac()),
                overrides: flags & FLAG_OVERRIDE != 0,
            })
        }
        _ => Err(ServiceDrop::NotServed),
    }
}

/// The link-layer address option of this kind among the options from `offset` on. An option of length 0 makes the message invalid;
/// each other one moves on by at least eight bytes.
fn link_layer_option(
    message: &[u8],
    offset: usize,
    wanted: u8,
) -> Result<Option<MacAddress>, ServiceDrop> {
    let mut rest = message.get(offset..).ok_or(ServiceDrop::Malformed)?;
    let mut found = None;
    while let &[kind, units, ..] = rest {
        let bytes = usize::from(units) * 8;
        if bytes == 0 || bytes > rest.len() {
            return Err(ServiceDrop::Malformed);
        }
        let (option, after) = rest.split_at(bytes);
        if kind == wanted && units == 1 && found.is_none() {
            found = option
                .get(2..)
                .and_then(|address| address.first_chunk())
                .map(|address| MacAddress(*address));
        }
        rest = after;
    }
    if !rest.is_empty() {
        return Err(ServiceDrop::Malformed);
    }
    match found {
        Some(mac) if mac.is_multicast() || mac.is_zero() => Err(ServiceDrop::InvalidSource),
        found => Ok(found),
    }
}

/// The advertisement that answers a solicitation, to be sent through the same port; `None` when the address is not ours to answer for.
///
/// A solicitation from the unspecified address is somebody's duplicate address detection: the answer goes to all nodes.
pub(super) fn answer(
    inbound: &Inbound<'_>,
    (source, target): (Ipv6Addr, Ipv6Addr),
    interfaces: &Interfaces,
    interface: &RouterInterface,
) -> Option<Vec<u8>> {
    let (mac, own_flags) = match interfaces.answer(interface.id, target.into())? {
        Answers::Own(mac) => (mac, FLAG_ROUTER | FLAG_OVERRIDE),
        // The owner itself asks whether another has its address.
        Answers::Proxy(mac) if mac == inbound.source_mac() => return None,
        // RFC 4861 §7.2.8: a proxy does not override.
        Answers::Proxy(mac) => (mac, 0),
    };
    let is_probe = source.is_unspecified();
    let (destination, destination_mac, flags) = if is_probe {
        (ALL_NODES, multicast_mac(ALL_NODES), own_flags)
    } else {
        (source, inbound.source_mac(), own_flags | FLAG_SOLICITED)
    };
    let link = inbound.answer_link_to(mac, destination_mac);
    advertisement(&link, (target, destination), flags)
}

/// A neighbour advertisement of `addresses.0` to `addresses.1`; the link's source is the target's MAC address.
fn advertisement(link: &Link, addresses: (Ipv6Addr, Ipv6Addr), flags: u8) -> Option<Vec<u8>> {
    let (target, destination) = addresses;
    let body = [
        target.octets().as_slice(),
        &link_layer(TARGET_LINK_LAYER_ADDRESS, link.source),
    ]
    .concat();
    let message = IcmpMessage {
        kind: NEIGHBOR_ADVERTISEMENT,
        code: 0,
        rest: [flags, 0, 0, 0],
        body: &body,
    };
    icmp_frame(link, of_neighbors(target, destination), &message)
}

/// An announcement of an address of the interface to all nodes (RFC 4861 §7.2.6), which also defends it.
pub(super) fn announcement(interface: &RouterInterface, own: Ipv6Addr) -> Option<Vec<u8>> {
    let link = Link::untagged(interface.mac, multicast_mac(ALL_NODES));
    advertisement(&link, (own, ALL_NODES), FLAG_ROUTER | FLAG_OVERRIDE)
}

/// A solicitation for a neighbour's address: to its group, or to the station that last had it.
pub(super) fn solicitation(
    interface: &RouterInterface,
    own: Ipv6Addr,
    sought: Ipv6Addr,
    link: Option<&Link>,
) -> Option<Vec<u8>> {
    let group = solicited_node(sought);
    let to_group = Link::untagged(interface.mac, multicast_mac(group));
    let (link, destination) = match link {
        Some(link) => (link, sought),
        None => (&to_group, group),
    };
    let body = [
        sought.octets().as_slice(),
        &link_layer(SOURCE_LINK_LAYER_ADDRESS, interface.mac),
    ]
    .concat();
    let message = IcmpMessage {
        kind: NEIGHBOR_SOLICITATION,
        code: 0,
        rest: [0; 4],
        body: &body,
    };
    icmp_frame(link, of_neighbors(own, destination), &message)
}

/// A source link-layer address option.
pub(super) fn source_link_layer(mac: MacAddress) -> [u8; 8] {
    link_layer(SOURCE_LINK_LAYER_ADDRESS, mac)
}

fn link_layer(kind: u8, mac: MacAddress) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.0;
    [kind, 1, a, b, c, d, e, f]
}

/// The IP header of a message that only neighbours may send.
pub(super) fn of_neighbors(source: Ipv6Addr, destination: Ipv6Addr) -> IpFields {
    IpFields {
        ttl: HOP_LIMIT_OF_NEIGHBORS,
        ..IpFields::new(IpAddr::V6(source), IpAddr::V6(destination), 0)
    }
}
