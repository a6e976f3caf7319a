//! Which translation a new connection gets: the choice of addresses and ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::tuple::{Addresses, Tuple, TupleHasher, Zone};

/// Tuples that are tried for a connection's translation at most. A range of no more ports than this is searched whole.
pub const NAT_PROBES: u32 = 256;
/// Of these, at most so many on one address while the range has others.
const PROBES_PER_ADDRESS: u32 = NAT_PROBES / 4;
/// The ports that a connection whose tuple is taken may move to when nothing was said about its source.
const FALLBACK_PORTS: PortRange = PortRange {
    first: 1024,
    last: 65535,
};

/// How a new connection is to be translated. Both at once is hairpin NAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatSpec {
    /// The source, for example to a router's own address.
    pub source: Option<SourceNat>,
    /// The destination, for example from a virtual IP to a back-end.
    pub destination: Option<DestinationNat>,
}

impl NatSpec {
    /// No translation.
    pub const NONE: Self = Self {
        source: None,
        destination: None,
    };

    /// The source to this address, ports from this range, many to one.
    pub const fn masquerade(address: IpAddr, ports: PortRange) -> Self {
        Self {
            source: Some(SourceNat {
                first: address,
                last: address,
                ports: SourcePorts::PreferOwn(ports),
            }),
            destination: None,
        }
    }

    /// The source to this address, whole: one-to-one NAT on the way out.
    pub const fn one_to_one_source(address: IpAddr) -> Self {
        Self {
            source: Some(SourceNat {
                first: address,
                last: address,
                ports: SourcePorts::Keep,
            }),
            destination: None,
        }
    }

    /// The destination to this address, and port if given. Without a port: one-to-one NAT on the way in.
    pub const fn destination(address: IpAddr, port: Option<u16>) -> Self {
        Self {
            source: None,
            destination: Some(DestinationNat { address, port }),
        }
    }
}

/// Ports from `first` to `last`, both included. Empty if they are the wrong way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl PortRange {
    const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    const fn count(self) -> u32 {
        if self.first <= self.last {
            (self.last - self.first) as u32 + 1
        } else {
            0
        }
    }

    /// The `number`th port of a walk that `start` chooses, which comes by each once. Its steps are wide, because ports that are taken
    /// lie together; a prime larger than any count of ports has no divisor in common with it.
    const fn nth(self, start: u64, number: u32) -> u16 {
        const STEPS: [u64; 4] = [1_000_003, 1_299_709, 15_485_863, 32_452_843];
        let count = self.count() as u64;
        let step = STEPS[(start >> 62) as usize];
        let offset = (start % count + number as u64 * step) % count;
        self.first + offset as u16
    }
}

/// How the source is translated. Addresses from `first` to `last`, both included; a source keeps to one of them (RFC 4787 REQ-2)
/// while that has free ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceNat {
    /// The lowest address.
    pub first: IpAddr,
    /// The highest address.
    pub last: IpAddr,
    /// What becomes of the port.
    pub ports: SourcePorts,
}

/// What becomes of a translated source's port. TCP, UDP and echo identifiers are chosen from the range alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourcePorts {
    /// It stays.
    Keep,
    /// It stays if it is in the range and free, else another one.
    PreferOwn(PortRange),
    /// One that follows from a keyed hash of the flow: equal flows get equal ports while these are free.
    Hashed(PortRange),
    /// One that cannot be guessed from earlier ones (RFC 6056).
    Random(PortRange),
}

/// How the destination is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationNat {
    /// The new address.
    pub address: IpAddr,
    /// The new port, or the packet's own.
    pub port: Option<u16>,
}

/// The tuples that a new connection's packets may leave with, best first, at most [`NAT_PROBES`].
///
/// What is wanted is one whose inverse, the reply tuple, nobody has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidates {
    /// With the destination translated.
    base: Tuple,
    source: Option<SourceNat>,
    ports: PortChoice,
    address_offset: u128,
    address_count: u128,
    port_start: u64,
}

#[derive(Clone, Copy, Debug)]
enum PortChoice {
    /// Its own and no other.
    Own,
    /// Its own if in the range, then the range's.
    OwnThen(PortRange),
    /// The range's.
    From(PortRange),
}

impl Candidates {
    /// `None` when the translation is to another address family, or a range is empty.
    pub(crate) fn new(
        hasher: &TupleHasher,
        zone: Zone,
        tuple: &Tuple,
        nat: &NatSpec,
        entropy: u64,
    ) -> Option<Self> {
        let mut base = *tuple;
        if let Some(destination) = nat.destination {
            base.addresses = base.addresses.with_destination(destination.address)?;
            // An echo has only the one identifier, which is the source's business.
            if let (Some(port), true, false) = (destination.port, base.has_ports(), base.is_echo())
            {
                base.destination_port = port;
            }
        }
        let mut ports = match nat.source.map(|source| source.ports) {
            None if nat.destination.is_some() => PortChoice::OwnThen(FALLBACK_PORTS),
            None | Some(SourcePorts::Keep) => PortChoice::Own,
            Some(SourcePorts::PreferOwn(range)) => PortChoice::OwnThen(range),
            Some(SourcePorts::Hashed(range) | SourcePorts::Random(range)) => {
                PortChoice::From(range)
            }
        };
        if let PortChoice::OwnThen(range) | PortChoice::From(range) = ports
            && range.count() == 0
        {
            return None;
        }
        if !base.has_ports() {
            ports = PortChoice::Own;
        }
        let (address_offset, address_count) = match nat.source {
            None => (0, 1),
            Some(source) => {
                base.addresses.with_source(source.first)?;
                let count = distance(source.first, source.last)?.checked_add(1)?;
                let [low, high] = address_words(tuple.addresses.source());
                let word = hasher.hash_words([low ^ u64::from(zone.0) << 48, high]);
                (u128::from(word) % count, count)
            }
        };
        let port_start = match nat.source.map(|source| source.ports) {
            Some(SourcePorts::Hashed(_)) => hasher.hash(zone, &base),
            _ => hasher.hash_words([hasher.hash(zone, &base), entropy]),
        };
        Some(Self {
            base,
            source: nat.source,
            ports,
            address_offset,
            address_count,
            port_start,
        })
    }

    /// The candidate of this number, or `None` after the last.
    pub(crate) fn get(&self, number: u32) -> Option<Tuple> {
        if number >= NAT_PROBES {
            return None;
        }
        let per_address = self.per_address();
        let address_number = u128::from(number / per_address);
        if address_number >= self.address_count {
            return None;
        }
        let mut tuple = self.base;
        if let Some(source) = self.source {
            let offset = (self.address_offset + address_number) % self.address_count;
            tuple.addresses = tuple.addresses.with_source(add(source.first, offset))?;
        }
        let within = number % per_address;
        let port = match self.ports {
            PortChoice::Own => tuple.source_port,
            PortChoice::From(range) => range.nth(self.port_start, within),
            PortChoice::OwnThen(range) if range.contains(tuple.source_port) => {
                // Its own comes round again somewhere, which costs a probe, no more.
                if within == 0 {
                    tuple.source_port
                } else {
                    range.nth(self.port_start, within - 1)
                }
            }
            // Nothing was said about the source: it moves only if it must.
            PortChoice::OwnThen(_) if self.source.is_none() && within == 0 => tuple.source_port,
            PortChoice::OwnThen(range) => range.nth(self.port_start, within),
        };
        tuple.source_port = port;
        if tuple.is_echo() {
            tuple.destination_port = port;
        }
        Some(tuple)
    }

    /// How many ports of an address are tried before the next address is.
    fn per_address(&self) -> u32 {
        let ports = match self.ports {
            PortChoice::Own => return 1,
            PortChoice::From(range) => range.count(),
            PortChoice::OwnThen(range) => range.count() + 1,
        };
        if self.address_count > 1 {
            ports.min(PROBES_PER_ADDRESS)
        } else {
            ports.min(NAT_PROBES)
        }
    }
}

fn address_words(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    [bits as u64, (bits >> 64) as u64]
}

fn distance(first: IpAddr, last: IpAddr) -> Option<u128> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            last.to_bits().checked_sub(first.to_bits()).map(u128::from)
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => last.to_bits().checked_sub(first.to_bits()),
        _ => None,
    }
}

fn add(first: IpAddr, offset: u128) -> IpAddr {
    match first {
        IpAddr::V4(first) => IpAddr::V4(Ipv4Addr::from_bits(
            first.to_bits().wrapping_add(offset as u32),
        )),
        IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(first.to_bits().wrapping_add(offset))),
    }
}

/// Whether two tuples' addresses are of one family.
pub(crate) const fn same_family(one: &Addresses, other: &Addresses) -> bool {
    matches!(
        (one, other),
        (Addresses::V4 { .. }, Addresses::V4 { .. }) | (Addresses::V6 { .. }, Addresses::V6 { .. })
    )
}
