//! What names a connection: a zone and, for each direction, addresses, ports and protocol.

use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use serde::{Deserialize, Serialize};

/// The protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// The protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// The protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// The protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// A space of connections: equal tuples in two zones are two connections. Tenants with overlapping addresses have a zone each.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Zone(pub u16);

/// Which of a connection's two directions a packet goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Direction {
    /// From the end that opened the connection.
    Original = 0,
    /// From the end that answers.
    Reply = 1,
}

impl Direction {
    /// Both, the original one first.
    pub const BOTH: [Self; 2] = [Self::Original, Self::Reply];

    /// The other direction.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }

    /// 0 for the original direction, 1 for replies: for arrays of two.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A packet's network addresses, both of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Addresses {
    /// IPv4.
    V4 {
        /// Who sends.
        source: Ipv4Addr,
        /// Who is to receive.
        destination: Ipv4Addr,
    },
    /// IPv6.
    V6 {
        /// Who sends.
        source: Ipv6Addr,
        /// Who is to receive.
        destination: Ipv6Addr,
    },
}

impl Addresses {
    /// The source address.
    pub const fn source(&self) -> IpAddr {
        match *self {
            Self::V4 { source, .. } => IpAddr::V4(source),
            Self::V6 { source, .. } => IpAddr::V6(source),
        }
    }

    /// The destination address.
    pub const fn destination(&self) -> IpAddr {
        match *self {
            Self::V4 { destination, .. } => IpAddr::V4(destination),
            Self::V6 { destination, .. } => IpAddr::V6(destination),
        }
    }

    /// Source and destination exchanged.
    #[must_use]
    pub const fn inverse(self) -> Self {
        match self {
            Self::V4 {
                source,
                destination,
            } => Self::V4 {
                source: destination,
                destination: source,
            },
            Self::V6 {
                source,
                destination,
            } => Self::V6 {
                source: destination,
                destination: source,
            },
        }
    }

    /// With another source; `None` when that is of the other family.
    pub const fn with_source(self, address: IpAddr) -> Option<Self> {
        match (self, address) {
            (Self::V4 { destination, .. }, IpAddr::V4(source)) => Some(Self::V4 {
                source,
                destination,
            }),
            (Self::V6 { destination, .. }, IpAddr::V6(source)) => Some(Self::V6 {
                source,
                destination,
            }),
            _ => None,
        }
    }

    /// With another destination; `None` when that is of the other family.
    pub const fn with_destination(self, address: IpAddr) -> Option<Self> {
        match self.inverse().with_source(address) {
            Some(inverse) => Some(inverse.inverse()),
            None => None,
        }
    }
}

/// A packet's addresses, ports and protocol, as the packet itself carries them.
///
/// ICMP and ICMPv6 echo have their identifier in both ports; protocols without ports have 0 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuple {
    /// Network addresses.
    pub addresses: Addresses,
    /// IPv4 protocol or last IPv6 next-header number.
    pub protocol: u8,
    /// Source port, or echo identifier.
    pub source_port: u16,
    /// Destination port, or echo identifier.
    pub destination_port: u16,
}

impl Tuple {
    /// A tuple of IPv4 sockets.
    pub const fn v4(protocol: u8, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Self {
        Self {
            addresses: Addresses::V4 {
                source: source.0,
                destination: destination.0,
            },
            protocol,
            source_port: source.1,
            destination_port: destination.1,
        }
    }

    /// A tuple of IPv6 sockets.
    pub const fn v6(protocol: u8, source: (Ipv6Addr, u16), destination: (Ipv6Addr, u16)) -> Self {
        Self {
            addresses: Addresses::V6 {
                source: source.0,
                destination: destination.0,
            },
            protocol,
            source_port: source.1,
            destination_port: destination.1,
        }
    }

    /// The tuple of an answer to this packet.
    #[must_use]
    pub const fn inverse(self) -> Self {
        Self {
            addresses: self.addresses.inverse(),
            protocol: self.protocol,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }

    /// Whether it is ICMP or ICMPv6, whose one identifier is in both ports.
    pub const fn is_echo(&self) -> bool {
        matches!(self.protocol, PROTOCOL_ICMP | PROTOCOL_ICMPV6)
    }

    /// Whether the protocol has something in the ports that address translation may change.
    pub const fn has_ports(&self) -> bool {
        matches!(
            self.protocol,
            PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_ICMP | PROTOCOL_ICMPV6
        )
    }
}

/// The keyed hash of a tuple within a zone. The key is the process's own, so nobody outside can aim for collisions.
#[derive(Clone, Debug)]
pub(crate) struct TupleHasher(SeedableRandomState);

impl TupleHasher {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SeedableRandomState::with_seed(
            seed,
            SharedSeed::global_random(),
        ))
    }

    #[inline]
    pub(crate) fn hash(&self, zone: Zone, tuple: &Tuple) -> u64 {
        let mut hasher = self.0.build_hasher();
        match tuple.addresses {
            Addresses::V4 {
                source,
                destination,
            } => hasher
                .write_u64(u64::from(source.to_bits()) << 32 | u64::from(destination.to_bits())),
            Addresses::V6 {
                source,
                destination,
            } => {
                hasher.write_u128(source.to_bits());
                hasher.write_u128(destination.to_bits());
            }
        }
        hasher.write_u64(
            u64::from(tuple.source_port) << 48
                | u64::from(tuple.destination_port) << 32
                | u64::from(zone.0) << 16
                | u64::from(tuple.protocol),
        );
        hasher.finish()
    }

    /// A number for a choice that is to look random from outside, but is the same for equal words.
    #[inline]
    pub(crate) fn hash_words(&self, words: [u64; 2]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write_u64(words[0]);
        hasher.write_u64(words[1]);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_of_the_inverse_is_the_tuple() {
        let tuple = Tuple::v4(
            PROTOCOL_TCP,
            (Ipv4Addr::new(10, 0, 0, 1), 1234),
            (Ipv4Addr::new(10, 0, 0, 2), 80),
        );
        assert_ne!(tuple.inverse(), tuple);
        assert_eq!(tuple.inverse().inverse(), tuple);
        assert_eq!(tuple.inverse().source_port, 80);
    }

    #[test]
    fn the_same_tuple_hashes_differently_in_another_zone_and_under_another_seed() {
        let tuple = Tuple::v6(
            PROTOCOL_UDP,
            (Ipv6Addr::LOCALHOST, 1),
            (Ipv6Addr::LOCALHOST, 2),
        );
        let hasher = TupleHasher::new(1);
        assert_ne!(hasher.hash(Zone(0), &tuple), hasher.hash(Zone(1), &tuple));
        assert_ne!(
            hasher.hash(Zone(0), &tuple),
            TupleHasher::new(2).hash(Zone(0), &tuple)
        );
    }

    #[test]
    fn an_address_of_the_other_family_does_not_fit() {
        let tuple = Tuple::v4(
            PROTOCOL_UDP,
            (Ipv4Addr::LOCALHOST, 1),
            (Ipv4Addr::LOCALHOST, 2),
        );
        assert_eq!(
            tuple.addresses.with_source(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            None
        );
        let other = IpAddr::V4(Ipv4Addr::new(1, 2, 3, 4));
        let changed = tuple.addresses.with_destination(other).expect("fits");
        assert_eq!(changed.destination(), other);
        assert_eq!(changed.source(), tuple.addresses.source());
    }
}
