//! Which ports the later fragments of a datagram belong to: only its first fragment carries them.
//!
//! A fragment that comes before the first of its datagram, or long after, has no ports; it is invalid to the connection table, and
//! the caller drops it. Senders and routers keep the order, so that is rare; waiting for the first would mean keeping frames.
//!
//! Each port has a small table of its own, made when its first fragment comes. It forgets only its own port's datagrams, the oldest
//! first, so no port can make another's fragments fail.

use std::sync::{Mutex, OnceLock, PoisonError};

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;
use std::hash::{BuildHasher, Hash};

use super::tuple::{Addresses, PROTOCOL_TCP, Tuple, Zone};
use crate::port::PortId;
use crate::time::Millis;

/// Sets of a port's table.
const SETS: usize = 32;
/// Datagrams in a set.
const WAYS: usize = 4;

/// What fragments of one datagram have in common (RFC 791 §3.2, RFC 8200 §4.5), and where they came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// The port they came in by.
    pub port: PortId,
    /// The zone.
    pub zone: Zone,
    /// The addresses.
    pub addresses: Addresses,
    /// IPv4 identification (16 bits) or that of the IPv6 fragment header.
    pub identification: u32,
    /// The transport protocol.
    pub protocol: u8,
}

/// A datagram whose first fragment was seen.
#[derive(Clone, Copy, Debug)]
struct Datagram {
    key: FragmentKey,
    source_port: u16,
    destination_port: u16,
    seen: Millis,
}

/// The table. Shared by workers; a port's part is locked for each fragment, no more.
#[derive(Debug)]
pub struct FragmentTable {
    hasher: SeedableRandomState,
    ports: Box<[OnceLock<Mutex<PortFragments>>]>,
    timeout: Millis,
}

type PortFragments = Box<[[Option<Datagram>; WAYS]]>;

impl FragmentTable {
    /// How many datagrams of one port are known at a time, at most.
    pub const PER_PORT: usize = SETS * WAYS;
    /// How long a datagram is known by default. Fragments of one datagram come together.
    pub const DEFAULT_TIMEOUT: Millis = Millis::from_secs(5);

    /// An empty table that knows a datagram for `timeout` after its first fragment. `seed` as in
    /// [`Conntrack::new`](super::Conntrack::new).
    pub fn new(timeout: Millis, seed: u64) -> Self {
        Self {
            hasher: SeedableRandomState::with_seed(seed, SharedSeed::global_random()),
            ports: (0..PortId::LIMIT).map(|_| OnceLock::new()).collect(),
            timeout,
        }
    }

    /// Notes the ports that a datagram's first fragment carries. A datagram with the same key that was known before is forgotten.
    pub fn first(&self, key: &FragmentKey, tuple: &Tuple, now: Millis) {
        let Some(port) = self.ports.get(key.port.index()) else {
            return;
        };
        let table = port.get_or_init(|| Mutex::new(vec![[None; WAYS]; SETS].into_boxed_slice()));
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(set) = table.get_mut(self.set_of(key)) else {
            return;
        };
        let rank = |way: &Option<Datagram>| match way {
            Some(datagram) if datagram.key == *key => (0, Millis(0)),
            None => (1, Millis(0)),
            // Expired ones are the oldest.
            Some(datagram) => (2, datagram.seen),
        };
        if let Some(way) = set.iter_mut().min_by_key(|way| rank(way)) {
            *way = Some(Datagram {
                key: *key,
                source_port: tuple.source_port,
                destination_port: tuple.destination_port,
                seen: now,
            });
        }
    }

    /// The tuple of the datagram that a later fragment, `offset_bytes` into it, belongs to.
    ///
    /// `None` when the first fragment was not seen, and when this one would overwrite the transport header that the first was judged
    /// by (RFC 1858 §4, RFC 3128).
    pub fn later(&self, key: &FragmentKey, offset_bytes: u32, now: Millis) -> Option<Tuple> {
        let header_bytes = if key.protocol == PROTOCOL_TCP { 20 } else { 8 };
        if offset_bytes < header_bytes {
            return None;
        }
        let table = self.ports.get(key.port.index())?.get()?;
        let table = table.lock().unwrap_or_else(PoisonError::into_inner);
        let datagram = table
            .get(self.set_of(key))?
            .iter()
            .flatten()
            .find(|datagram| datagram.key == *key)?;
        if now.since(datagram.seen) > self.timeout {
            return None;
        }
        Some(Tuple {
            addresses: key.addresses,
            protocol: key.protocol,
            source_port: datagram.source_port,
            destination_port: datagram.destination_port,
        })
    }

    fn set_of(&self, key: &FragmentKey) -> usize {
        self.hasher.hash_one(key) as usize % SETS
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::conntrack::PROTOCOL_UDP;

    fn key(port: u16, identification: u32, protocol: u8) -> (FragmentKey, Tuple) {
        let tuple = Tuple::v4(
            protocol,
            (Ipv4Addr::new(10, 0, 0, 1), 4000),
            (Ipv4Addr::new(10, 0, 0, 2), 53),
        );
        let key = FragmentKey {
            port: PortId::new(port).expect("small"),
            zone: Zone(1),
            addresses: tuple.addresses,
            identification,
            protocol,
        };
        (key, tuple)
    }

    #[test]
    fn a_later_fragment_has_the_ports_of_the_first_until_the_timeout() {
        let table = FragmentTable::new(FragmentTable::DEFAULT_TIMEOUT, 1);
        let (key, tuple) = key(3, 77, PROTOCOL_UDP);
        assert_eq!(table.later(&key, 1480, Millis(0)), None);
        table.first(&key, &tuple, Millis(0));
        assert_eq!(table.later(&key, 1480, Millis(5000)), Some(tuple));
        assert_eq!(table.later(&key, 1480, Millis(5001)), None);
        for other in [
            FragmentKey {
                zone: Zone(2),
                ..key
            },
            FragmentKey {
                identification: 78,
                ..key
            },
            FragmentKey {
                port: PortId::new(4).expect("small"),
                ..key
            },
        ] {
            assert_eq!(table.later(&other, 1480, Millis(0)), None);
        }
    }

    #[test]
    fn a_fragment_over_the_transport_header_has_no_ports() {
        let table = FragmentTable::new(FragmentTable::DEFAULT_TIMEOUT, 1);
        for (protocol, inside, outside) in [(PROTOCOL_TCP, 16, 24), (PROTOCOL_UDP, 0, 8)] {
            let (key, tuple) = key(3, 77, protocol);
            table.first(&key, &tuple, Millis(0));
            assert_eq!(table.later(&key, inside, Millis(0)), None);
            assert_eq!(table.later(&key, outside, Millis(0)), Some(tuple));
        }
    }

    #[test]
    fn a_port_that_sends_many_first_fragments_forgets_only_its_own() {
        let table = FragmentTable::new(FragmentTable::DEFAULT_TIMEOUT, 1);
        let (quiet, tuple) = key(1, 1, PROTOCOL_UDP);
        table.first(&quiet, &tuple, Millis(0));
        for identification in 0..10_000 {
            let (key, tuple) = key(2, identification, PROTOCOL_UDP);
            table.first(&key, &tuple, Millis(u64::from(identification) / 10));
        }
        assert_eq!(table.later(&quiet, 1480, Millis(1000)), Some(tuple));
        let known = (0..10_000)
            .filter(|&id| {
                table
                    .later(&key(2, id, PROTOCOL_UDP).0, 1480, Millis(1000))
                    .is_some()
            })
            .count();
        assert!((1..=FragmentTable::PER_PORT).contains(&known), "{known}");
        assert_eq!(
            table.later(&key(2, 9_999, PROTOCOL_UDP).0, 1480, Millis(1000)),
            Some(tuple)
        );
    }
}
