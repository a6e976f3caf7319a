//! Which frames a capture is about: an expression in a subset of pcap-filter(7), with words for what a switch knows besides.
//!
//! [`Filter::parse`] (`parse`) makes one on the thread that serves the admin socket; workers ask it about each frame of a captured port, by the
//! private copy of its first bytes. What a question costs is bounded by [`MAX_TESTS`], and its nesting by [`MAX_NESTING`].
//!
//! Other than libpcap's, addresses and ports are looked for behind VLAN tags as well, and `vlan 7` changes nothing for what follows it.

mod parse;

use super::Direction;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use switch_core::parse::{Headers, Network, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Transport};
use switch_core::{DropReason, MacAddress};

/// Longest expression, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024;
/// Most primitives of an expression.
pub const MAX_TESTS: usize = 64;
/// Most parentheses and negations inside each other.
pub const MAX_NESTING: usize = 16;

/// An expression that is none, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {reason}")]
pub struct FilterError {
    /// Of the character where it goes wrong, from 1.
    pub column: usize,
    /// What is wrong, and what to write instead.
    pub reason: String,
}

/// Says of a frame whether it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Expression);

/// What is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The first bytes of the frame.
    pub header: &'a [u8],
    /// Its length.
    pub frame_bytes: usize,
    /// Where it goes, seen from the switch.
    pub direction: Direction,
    /// Why it was dropped, if it was.
    pub dropped: Option<DropReason>,
}

/// Left to right: `and` and `or` bind alike (pcap-filter(7)).
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expression {
    Test(Test),
    Not(Box<Expression>),
    Chain(Box<Expression>, Vec<(Link, Expression)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    And,
    Or,
}

/// Which end of a frame is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
    Either,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Ip,
    Ip6,
    Arp,
    Tcp,
    Udp,
    Icmp,
    Icmp6,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Protocol(Protocol),
    /// Of IPv4, IPv6 or ARP, or of that one of them alone.
    Net(Option<Protocol>, Side, Prefix),
    /// Of TCP and UDP, or of that one of them alone.
    Port(Option<Protocol>, Side, u16),
    Mac(Side, MacAddress),
    /// Any tag, or one of this VLAN.
    Vlan(Option<u16>),
    /// At all, or for this reason.
    Dropped(Option<DropReason>),
    Direction(Direction),
}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix {
    address: IpAddr,
    bits: u8,
}

impl Prefix {
    fn holds(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => {
                (u32::from(mine) ^ u32::from(other)) & v4_mask(self.bits) == 0
            }
            (IpAddr::V6(mine), IpAddr::V6(other)) => {
                (u128::from(mine) ^ u128::from(other)) & v6_mask(self.bits) == 0
            }
            _ => false,
        }
    }

    /// Whether nothing is set behind the prefix.
    fn is_clean(self) -> bool {
        match self.address {
            IpAddr::V4(address) => u32::from(address) & !v4_mask(self.bits) == 0,
            IpAddr::V6(address) => u128::from(address) & !v6_mask(self.bits) == 0,
        }
    }
}

fn v4_mask(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

fn v6_mask(bits: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
}

impl Side {
    fn holds(self, source: bool, destination: bool) -> bool {
        match self {
            Self::Source => source,
            Self::Destination => destination,
            Self::Either => source || destination,
            Self::Both => source && destination,
        }
    }
}

impl Filter {
    /// Reads an expression.
    ///
    /// # Errors
    /// Where it is none, and why.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        parse::expression(text).map(Self)
    }

    /// Whether a frame is wanted.
    pub fn wants(&self, subject: &Subject<'_>) -> bool {
        // Of a frame that is too short to be one, only what became of it is known.
        let headers = Headers::parse(subject.header, subject.frame_bytes).ok();
        self.0.holds(subject, headers.as_ref())
    }
}

impl Expression {
    fn holds(&self, subject: &Subject<'_>, headers: Option<&Headers>) -> bool {
        match self {
            Self::Test(test) => test.holds(subject, headers),
            Self::Not(inner) => !inner.holds(subject, headers),
            Self::Chain(first, rest) => {
                let mut value = first.holds(subject, headers);
                for (link, next) in rest {
                    value = match link {
                        Link::And => value && next.holds(subject, headers),
                        Link::Or => value || next.holds(subject, headers),
                    };
                }
                value
            }
        }
    }
}

impl Test {
    fn holds(&self, subject: &Subject<'_>, headers: Option<&Headers>) -> bool {
        match (self, headers) {
            (Self::Dropped(None), _) => subject.dropped.is_some(),
            (Self::Dropped(reason), _) => subject.dropped == *reason,
            (Self::Direction(direction), _) => subject.direction == *direction,
            (_, None) => false,
            (Self::Protocol(protocol), Some(headers)) => protocol.is_that_of(headers),
            (Self::Net(protocol, side, prefix), Some(headers)) => addresses(headers, *protocol)
                .is_some_and(|(from, to)| side.holds(prefix.holds(from), prefix.holds(to))),
            (Self::Port(protocol, side, port), Some(headers)) => ports(headers, *protocol)
                .is_some_and(|(from, to)| side.holds(from == *port, to == *port)),
            (Self::Mac(side, mac), Some(headers)) => {
                let ethernet = &headers.ethernet;
                side.holds(ethernet.source == *mac, ethernet.destination == *mac)
            }
            (Self::Vlan(None), Some(headers)) => headers.ethernet.tag.is_some(),
            (Self::Vlan(Some(id)), Some(headers)) => {
                let tags = [headers.ethernet.tag, headers.inner_tag];
                // The VLAN is the low 12 bits of the tag (IEEE 802.1Q-2018 §9.6).
                tags.iter().flatten().any(|tag| tag.tci.0 & 0xfff == *id)
            }
        }
    }
}

impl Protocol {
    fn is_that_of(self, headers: &Headers) -> bool {
        match self {
            Self::Ip => matches!(headers.network, Some(Network::Ipv4(_))),
            Self::Ip6 => matches!(headers.network, Some(Network::Ipv6(_))),
            Self::Arp => headers.ether_type == switch_core::parse::ETHER_TYPE_ARP,
            Self::Tcp => headers.protocol == Some(switch_core::parse::PROTOCOL_TCP),
            Self::Udp => headers.protocol == Some(switch_core::parse::PROTOCOL_UDP),
            Self::Icmp => {
                headers.protocol == Some(PROTOCOL_ICMP)
                    && matches!(headers.network, Some(Network::Ipv4(_)))
            }
            Self::Icmp6 => {
                headers.protocol == Some(PROTOCOL_ICMPV6)
                    && matches!(headers.network, Some(Network::Ipv6(_)))
            }
        }
    }
}

/// Source and destination, of the protocol asked for. ARP's are sender and target.
fn addresses(headers: &Headers, only: Option<Protocol>) -> Option<(IpAddr, IpAddr)> {
    let is_asked = |protocol| only.is_none_or(|only| only == protocol);
    let v4 = |from: Ipv4Addr, to: Ipv4Addr| (from.into(), to.into());
    let v6 = |from: Ipv6Addr, to: Ipv6Addr| (from.into(), to.into());
    match headers.network? {
        Network::Ipv4(ip) if is_asked(Protocol::Ip) => Some(v4(ip.source, ip.destination)),
        Network::Ipv6(ip) if is_asked(Protocol::Ip6) => Some(v6(ip.source, ip.destination)),
        Network::Arp(arp) if is_asked(Protocol::Arp) => Some(v4(arp.sender_ip, arp.target_ip)),
        _ => None,
    }
}

fn ports(headers: &Headers, only: Option<Protocol>) -> Option<(u16, u16)> {
    match headers.transport? {
        Transport::Tcp(tcp) if only != Some(Protocol::Udp) => {
            Some((tcp.source_port, tcp.destination_port))
        }
        Transport::Udp(udp) if only != Some(Protocol::Tcp) => {
            Some((udp.source_port, udp.destination_port))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
