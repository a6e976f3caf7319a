//! Router advertisements (RFC 4861 §6.2, RFC 8106): asked for, and from time to time.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv6Addr;

use super::build::{ALL_NODES, IcmpMessage, Link, icmp_frame, multicast_mac};
use super::config::{AdvertisedPrefix, RouterAdvertisementConfig, RouterInterface};
use super::inbound::Inbound;
use super::neighbor_discovery::{ROUTER_ADVERTISEMENT, of_neighbors, source_link_layer};
use super::prefix::IpPrefix;
use super::random::Jitter;
use crate::time::Millis;

/// The first advertisements follow each other faster (RFC 4861 §6.2.4: MAX_INITIAL_RTR_ADVERTISEMENTS,
/// MAX_INITIAL_RTR_ADVERT_INTERVAL).
const INITIAL: u8 = 3;
const INITIAL_INTERVAL_MS: u64 = 16_000;

const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_DNS: u8 = 25;
const FLAG_MANAGED: u8 = 0x80;
const FLAG_OTHER: u8 = 0x40;
const FLAG_ON_LINK: u8 = 0x80;
const FLAG_AUTONOMOUS: u8 = 0x40;

/// The advertisement that answers a solicitation, through the same port: to its sender, or to all nodes when it has no address yet.
pub(super) fn answer(
    inbound: &Inbound<'_>,
    source: Ipv6Addr,
    interface: &RouterInterface,
) -> Option<Vec<u8>> {
    let (destination, mac) = if source.is_unspecified() {
        (ALL_NODES, multicast_mac(ALL_NODES))
    } else {
        (source, inbound.source_mac())
    };
    let link = inbound.answer_link_to(interface.mac, mac);
    advertisement(interface, destination, &link)
}

/// The advertisement to all nodes.
pub(super) fn unasked(interface: &RouterInterface) -> Option<Vec<u8>> {
    let link = Link::untagged(interface.mac, multicast_mac(ALL_NODES));
    advertisement(interface, ALL_NODES, &link)
}

/// The advertisement that says that the router is none any more (RFC 4861 §6.2.5).
pub(super) fn farewell(interface: &RouterInterface) -> Option<Vec<u8>> {
    let mut last = interface.clone();
    if let Some(ra) = &mut last.ra {
        ra.lifetime_s = 0;
    }
    unasked(&last)
}

/// An advertisement (RFC 4861 §4.2); `None` when the interface sends none.
fn advertisement(
    interface: &RouterInterface,
    destination: Ipv6Addr,
    link: &Link,
) -> Option<Vec<u8>> {
    let ra = interface.ra.as_ref()?;
    let mut flags = 0;
    if ra.managed {
        flags |= FLAG_MANAGED;
    }
    if ra.other {
        flags |= FLAG_OTHER;
    }
    let [l0, l1] = ra.lifetime_s.to_be_bytes();
    // Reachable time and retransmission timer: unspecified.
    let mut body = vec![0; 8];
    body.extend(source_link_layer(interface.mac));
    body.extend([OPTION_MTU, 1, 0, 0]);
    body.extend(u32::from(interface.mtu).to_be_bytes());
    for prefix in prefixes(interface, ra) {
        append_prefix(&mut body, &prefix);
    }
    append_dns(&mut body, ra);
    let message = IcmpMessage {
        kind: ROUTER_ADVERTISEMENT,
        code: 0,
        rest: [ra.hop_limit, flags, l0, l1],
        body: &body,
    };
    let ip = of_neighbors(interface.link_local(), destination);
    icmp_frame(link, ip, &message)
}

/// The prefixes that the operator named, else those of the interface's global addresses.
fn prefixes(interface: &RouterInterface, ra: &RouterAdvertisementConfig) -> Vec<AdvertisedPrefix> {
    if let Some(prefixes) = &ra.prefixes {
        return prefixes.clone();
    }
    let mut networks: Vec<IpPrefix> = interface
        .addresses
        .iter()
        .filter(|own| matches!(own.v6(), Some(v6) if !v6.is_unicast_link_local()))
        .filter_map(|own| IpPrefix::new(own.network(), own.length()).ok())
        .collect();
    networks.sort_unstable();
    networks.dedup();
    networks.into_iter().map(AdvertisedPrefix::of).collect()
}

/// A prefix information option (RFC 4861 §4.6.2).
fn append_prefix(body: &mut Vec<u8>, entry: &AdvertisedPrefix) {
    let Some(prefix) = entry.prefix.v6() else {
        return;
    };
    let mut flags = 0;
    if entry.on_link {
        flags |= FLAG_ON_LINK;
    }
    if entry.autonomous {
        flags |= FLAG_AUTONOMOUS;
    }
    body.extend([OPTION_PREFIX, 4, entry.prefix.length(), flags]);
    body.extend(entry.valid_s.to_be_bytes());
    body.extend(entry.preferred_s.to_be_bytes());
    body.extend([0; 4]);
    body.extend(prefix.octets());
}

/// A recursive DNS server option (RFC 8106 §5.1), good for three intervals.
fn append_dns(body: &mut Vec<u8>, ra: &RouterAdvertisementConfig) {
    let count = ra.dns.len() as u8;
    if count == 0 {
        return;
    }
    body.extend([OPTION_DNS, 1 + 2 * count, 0, 0]);
    body.extend((u32::from(ra.interval_s) * 3).to_be_bytes());
    for server in &ra.dns {
        body.extend(server.octets());
    }
}

impl AdvertisedPrefix {
    /// The prefix on link and, at 64 bits, autonomous, with the lifetimes of RFC 4861 §6.2.1.
    fn of(prefix: IpPrefix) -> Self {
        Self {
            prefix,
            on_link: true,
            autonomous: prefix.length() == 64,
            valid_s: super::config::default_valid(),
            preferred_s: super::config::default_preferred(),
        }
    }
}

/// When each interface advertises itself next.
#[derive(Debug, Default)]
pub(super) struct Timetable {
    due: BTreeSet<(Millis, u32)>,
    by_interface: HashMap<u32, Entry>,
}

#[derive(Debug)]
struct Entry {
    next: Millis,
    sent: u8,
}

impl Timetable {
    pub(super) fn next_deadline(&self) -> Option<Millis> {
        self.due.first().map(|&(next, _)| next)
    }

    /// Begins anew for an interface: the first advertisement is due now.
    pub(super) fn start(&mut self, interface: u32, now: Millis) {
        self.stop(interface);
        self.due.insert((now, interface));
        self.by_interface
            .insert(interface, Entry { next: now, sent: 0 });
    }

    pub(super) fn stop(&mut self, interface: u32) {
        if let Some(entry) = self.by_interface.remove(&interface) {
            self.due.remove(&(entry.next, interface));
        }
    }

    /// The interface whose time came, if there is one.
    pub(super) fn due(&self, now: Millis) -> Option<u32> {
        self.due
            .first()
            .filter(|&&(next, _)| next <= now)
            .map(|&(_, interface)| interface)
    }

    /// Notes that the interface advertised itself: next a random time from a third of its interval to all of it, less at first.
    pub(super) fn sent(
        &mut self,
        interface: u32,
        ra: &RouterAdvertisementConfig,
        (now, jitter): (Millis, &mut Jitter),
    ) {
        let Some(entry) = self.by_interface.get_mut(&interface) else {
            return;
        };
        self.due.remove(&(entry.next, interface));
        let longest = u64::from(ra.interval_s) * 1000;
        let mut wait = jitter.between(longest / 3, longest);
        entry.sent = entry.sent.saturating_add(1);
        if entry.sent < INITIAL {
            wait = wait.min(INITIAL_INTERVAL_MS);
        }
        entry.next = now.after(Millis(wait));
        self.due.insert((entry.next, interface));
    }
}
