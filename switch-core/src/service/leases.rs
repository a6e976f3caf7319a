//! Addresses lent from a range: who has which until when, the same for both versions of DHCP.
//!
//! Bounded by the range and by port. An address is found in constant time: one that was never lent, else the lowest that came back.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::config::AddressRange;
use super::drop::ServiceDrop;
use crate::port::PortId;
use crate::time::Millis;

/// How long an address that somebody else turned out to have is left alone.
const DECLINED: Millis = Millis::from_secs(600);

/// An address with a place in a range.
pub(super) trait RangeAddress: Copy + Ord + Hash {
    /// How far the address is behind `first`, if that is a 32-bit number.
    fn offset_from(self, first: Self) -> Option<u32>;
    /// The address so far behind `self`.
    fn plus(self, offset: u32) -> Self;
}

impl RangeAddress for Ipv4Addr {
    fn offset_from(self, first: Self) -> Option<u32> {
        self.to_bits().checked_sub(first.to_bits())
    }

    fn plus(self, offset: u32) -> Self {
        Self::from_bits(self.to_bits().saturating_add(offset))
    }
}

impl RangeAddress for Ipv6Addr {
    fn offset_from(self, first: Self) -> Option<u32> {
        let offset = self.to_bits().checked_sub(first.to_bits())?;
        u32::try_from(offset).ok()
    }

    fn plus(self, offset: u32) -> Self {
        Self::from_bits(self.to_bits().saturating_add(u128::from(offset)))
    }
}

/// Who may have a lease: something behind a port.
pub(super) trait Client: Clone + Eq + Hash {
    fn port(&self) -> PortId;
}

#[derive(Clone, Copy, Debug)]
struct Lease<A> {
    address: A,
    until: Millis,
}

/// The leases of one range.
#[derive(Debug)]
pub(super) struct Leases<C, A> {
    range: Option<AddressRange<A>>,
    /// Addresses of the range that are not lent: the router's own, and reservations.
    excluded: HashSet<A>,
    by_client: HashMap<C, Lease<A>>,
    /// Whose the address is; nobody's when it was declined.
    by_address: HashMap<A, Option<C>>,
    expiries: BTreeSet<(Millis, A)>,
    by_port: HashMap<PortId, u32>,
    /// The addresses from this offset on were never lent.
    fresh: u32,
    /// Addresses below `fresh` that came back.
    returned: BTreeSet<u32>,
}

impl<C: Client, A: RangeAddress> Default for Leases<C, A> {
    fn default() -> Self {
        Self {
            range: None,
            excluded: HashSet::new(),
            by_client: HashMap::new(),
            by_address: HashMap::new(),
            expiries: BTreeSet::new(),
            by_port: HashMap::new(),
            fresh: 0,
            returned: BTreeSet::new(),
        }
    }
}

impl<C: Client, A: RangeAddress> Leases<C, A> {
    /// Takes a new range. Leases that it still has room for stay.
    pub(super) fn configure(&mut self, range: Option<AddressRange<A>>, excluded: HashSet<A>) {
        let old = std::mem::take(self);
        self.range = range;
        self.excluded = excluded;
        for (client, lease) in old.by_client {
            if self.may_lend(lease.address) {
                self.put(&client, lease);
            }
        }
        for (until, address) in old.expiries {
            if old.by_address.get(&address).is_some_and(Option::is_none) && self.may_lend(address) {
                self.by_address.insert(address, None);
                self.expiries.insert((until, address));
            }
        }
    }

    /// Whether there is anything to lend.
    pub(super) fn has_range(&self) -> bool {
        self.range.is_some()
    }

    /// The leases that hold at `now`.
    pub(super) fn iter(&self, now: Millis) -> impl Iterator<Item = (&C, A, Millis)> {
        self.by_client
            .iter()
            .filter(move |(_, lease)| lease.until > now)
            .map(|(client, lease)| (client, lease.address, lease.until))
    }

    /// The client's lease, for longer; else the address that it wants, if that is free; else any.
    pub(super) fn claim(
        &mut self,
        client: &C,
        wanted: Option<A>,
        (now, until): (Millis, Millis),
        most_of_port: u32,
    ) -> Result<A, ServiceDrop> {
        self.expire(now);
        if let Some(lease) = self.by_client.get(client).copied() {
            // An offer that is repeated does not shorten a lease.
            let until = until.max(lease.until);
            self.put(client, Lease { until, ..lease });
            return Ok(lease.address);
        }
        self.must_have_room(client.port(), most_of_port)?;
        let wanted = wanted.filter(|&address| self.is_free(address));
        let address = wanted
            .or_else(|| self.next_free())
            .ok_or(ServiceDrop::NoFreeAddress)?;
        self.put(client, Lease { address, until });
        Ok(address)
    }

    /// Exactly this address, which the client has already, or which is free while the client has none.
    pub(super) fn claim_exactly(
        &mut self,
        client: &C,
        address: A,
        (now, until): (Millis, Millis),
        most_of_port: u32,
    ) -> Result<(), ServiceDrop> {
        self.expire(now);
        match self.by_client.get(client) {
            Some(lease) if lease.address == address => {}
            Some(_) => return Err(ServiceDrop::NoFreeAddress),
            None => {
                self.must_have_room(client.port(), most_of_port)?;
                if !self.is_free(address) {
                    return Err(ServiceDrop::NoFreeAddress);
                }
            }
        }
        self.put(client, Lease { address, until });
        Ok(())
    }

    /// Takes the client's lease back, if it is of this address. Says whether it was.
    pub(super) fn release(&mut self, client: &C, address: A) -> bool {
        let is_its = self
            .by_client
            .get(client)
            .is_some_and(|lease| lease.address == address);
        if is_its {
            self.take_back(client);
        }
        is_its
    }

    /// Takes the client's lease back, and lends the address to nobody for a while.
    pub(super) fn decline(&mut self, client: &C, address: A, now: Millis) -> bool {
        if !self.release(client, address) {
            return false;
        }
        self.take_place(address);
        let until = now.after(DECLINED);
        self.by_address.insert(address, None);
        self.expiries.insert((until, address));
        true
    }

    /// Takes back all leases of a port.
    pub(super) fn forget_port(&mut self, port: PortId) {
        if !self.by_port.contains_key(&port) {
            return;
        }
        let clients: Vec<C> = self
            .by_client
            .keys()
            .filter(|client| client.port() == port)
            .cloned()
            .collect();
        for client in clients {
            self.take_back(&client);
        }
    }

    fn must_have_room(&self, port: PortId, most_of_port: u32) -> Result<(), ServiceDrop> {
        if self.by_port.get(&port).copied().unwrap_or_default() < most_of_port {
            Ok(())
        } else {
            Err(ServiceDrop::NoFreeAddress)
        }
    }

    /// The address's place in the range.
    fn offset(&self, address: A) -> Option<u32> {
        let range = self.range?;
        let offset = address.offset_from(range.first)?;
        (address <= range.last).then_some(offset)
    }

    fn may_lend(&self, address: A) -> bool {
        self.offset(address).is_some() && !self.excluded.contains(&address)
    }

    fn is_free(&self, address: A) -> bool {
        self.may_lend(address) && !self.by_address.contains_key(&address)
    }

    /// A free address: each step passes one for good, or ends.
    fn next_free(&mut self) -> Option<A> {
        let range = self.range?;
        let size = range.last.offset_from(range.first)?.saturating_add(1);
        while self.fresh < size {
            let address = range.first.plus(self.fresh);
            if self.is_free(address) {
                return Some(address);
            }
            self.fresh += 1;
        }
        let offset = *self.returned.first()?;
        Some(range.first.plus(offset))
    }

    /// Notes that the address is no longer free.
    fn take_place(&mut self, address: A) {
        if let Some(offset) = self.offset(address) {
            self.returned.remove(&offset);
        }
    }

    /// Notes that the address is free again.
    fn leave_place(&mut self, address: A) {
        self.by_address.remove(&address);
        if let Some(offset) = self.offset(address)
            && offset < self.fresh
            && !self.excluded.contains(&address)
        {
            self.returned.insert(offset);
        }
    }

    fn put(&mut self, client: &C, lease: Lease<A>) {
        self.take_back(client);
        self.take_place(lease.address);
        self.expiries.insert((lease.until, lease.address));
        self.by_address.insert(lease.address, Some(client.clone()));
        *self.by_port.entry(client.port()).or_default() += 1;
        self.by_client.insert(client.clone(), lease);
    }

    fn take_back(&mut self, client: &C) {
        let Some(lease) = self.by_client.remove(client) else {
            return;
        };
        self.expiries.remove(&(lease.until, lease.address));
        self.leave_place(lease.address);
        let port = client.port();
        if let Some(count) = self.by_port.get_mut(&port) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_port.remove(&port);
            }
        }
    }

    fn expire(&mut self, now: Millis) {
        while let Some(&(until, address)) = self.expiries.first()
            && until <= now
        {
            match self.by_address.get(&address).cloned().flatten() {
                Some(client) => self.take_back(&client),
                None => {
                    self.expiries.remove(&(until, address));
                    self.leave_place(address);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Client for (PortId, u8) {
        fn port(&self) -> PortId {
            self.0
        }
    }

    type Small = Leases<(PortId, u8), Ipv4Addr>;

    fn client(number: u8) -> (PortId, u8) {
        (PortId::new(u16::from(number % 2)).unwrap(), number)
    }

    fn range(first: u8, last: u8) -> Option<AddressRange<Ipv4Addr>> {
        let at = |low| Ipv4Addr::new(10, 0, 0, low);
        Some(AddressRange {
            first: at(first),
            last: at(last),
        })
    }

    #[derive(Clone, Debug)]
    enum Step {
        Claim(u8, Option<u8>),
        Exactly(u8, u8),
        Release(u8, u8),
        Decline(u8, u8),
        Forget(u8),
        Wait(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (who, low) = (0..12_u8, 0..12_u8);
        prop_oneof![
            (who.clone(), proptest::option::of(low.clone())).prop_map(|(c, a)| Step::Claim(c, a)),
            (who.clone(), low.clone()).prop_map(|(c, a)| Step::Exactly(c, a)),
            (who.clone(), low.clone()).prop_map(|(c, a)| Step::Release(c, a)),
            (who, low).prop_map(|(c, a)| Step::Decline(c, a)),
            (0..2_u8).prop_map(Step::Forget),
            (0..700_u16).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// No two clients have one address; nobody gets an excluded one, or one outside the range; a claim fails only when nothing is free.
        #[test]
        fn leases_are_exclusive_and_none_is_lost(steps in proptest::collection::vec(step(), 0..200)) {
            let mut leases = Small::default();
            let at = |low| Ipv4Addr::new(10, 0, 0, low);
            leases.configure(range(2, 9), [at(3), at(9)].into());
            let mut now = Millis(0);
            let mut oracle: HashMap<u8, (u8, Millis)> = HashMap::new();
            let mut declined: HashMap<u8, Millis> = HashMap::new();
            for step in steps {
                oracle.retain(|_, (_, until)| *until > now);
                declined.retain(|_, until| *until > now);
                let until = now.after(Millis(100_000));
                let times = (now, until);
                let free = |oracle: &HashMap<u8, (u8, Millis)>| (2..9_u8)
                    .filter(|low| *low != 3)
                    .filter(|low| !declined.contains_key(low) && oracle.values().all(|(other, _)| other != low))
                    .collect::<Vec<_>>();
                match step {
                    Step::Claim(who, wanted) => {
                        let got = leases.claim(&client(who), wanted.map(at), times, 100);
                        match (oracle.get(&who), got) {
                            (Some((low, _)), Ok(address)) => prop_assert_eq!(address, at(*low)),
                            (None, Ok(address)) => {
                                let free = free(&oracle);
                                let low = address.octets()[3];
                                prop_assert!(free.contains(&low));
                                if let Some(wanted) = wanted.filter(|wanted| free.contains(wanted)) {
                                    prop_assert_eq!(low, wanted);
                                }
                            }
                            (_, Err(_)) => prop_assert!(!oracle.contains_key(&who) && free(&oracle).is_empty()),
                        }
                        if let Ok(address) = got {
                            oracle.insert(who, (address.octets()[3], until));
                        }
                    }
                    Step::Exactly(who, low) => {
                        let may = match oracle.get(&who) {
                            Some((own, _)) => *own == low,
                            None => free(&oracle).contains(&low),
                        };
                        let got = leases.claim_exactly(&client(who), at(low), times, 100);
                        prop_assert_eq!(got.is_ok(), may);
                        if may {
                            oracle.insert(who, (low, until));
                        }
                    }
                    Step::Release(who, low) => {
                        let is_its = oracle.get(&who).is_some_and(|(own, _)| *own == low);
                        leases.expire(now);
                        prop_assert_eq!(leases.release(&client(who), at(low)), is_its);
                        if is_its {
                            oracle.remove(&who);
                        }
                    }
                    Step::Decline(who, low) => {
                        let is_its = oracle.get(&who).is_some_and(|(own, _)| *own == low);
                        leases.expire(now);
                        prop_assert_eq!(leases.decline(&client(who), at(low), now), is_its);
                        if is_its {
                            oracle.remove(&who);
                            declined.insert(low, now.after(DECLINED));
                        }
                    }
                    Step::Forget(port) => {
                        leases.forget_port(PortId::new(u16::from(port)).unwrap());
                        oracle.retain(|who, _| who % 2 != port);
                    }
                    Step::Wait(seconds) => now = now.after(Millis::from_secs(u64::from(seconds))),
                }
                prop_assert!(leases.returned.len() + leases.by_address.len() <= 8);
                prop_assert_eq!(leases.expiries.len(), leases.by_address.len());
            }
        }
    }

    #[test]
    fn a_port_has_only_its_share() {
        let mut leases = Small::default();
        leases.configure(range(2, 9), HashSet::new());
        let times = (Millis(0), Millis(1000));
        assert!(leases.claim(&client(0), None, times, 2).is_ok());
        assert!(leases.claim(&client(2), None, times, 2).is_ok());
        assert!(leases.claim(&client(4), None, times, 2).is_err());
        assert!(leases.claim(&client(1), None, times, 2).is_ok());
        // Its leases run out, and with them its share.
        assert!(
            leases
                .claim(&client(4), None, (Millis(1000), Millis(2000)), 2)
                .is_ok()
        );
    }

    #[test]
    fn leases_that_still_fit_survive_a_new_range() {
        let mut leases = Small::default();
        leases.configure(range(2, 9), HashSet::new());
        let times = (Millis(0), Millis(1000));
        let at = |low| Ipv4Addr::new(10, 0, 0, low);
        assert_eq!(leases.claim(&client(1), Some(at(4)), times, 9), Ok(at(4)));
        assert_eq!(leases.claim(&client(2), Some(at(8)), times, 9), Ok(at(8)));
        leases.configure(range(2, 5), HashSet::new());
        assert_eq!(leases.iter(Millis(1)).count(), 1);
        assert_eq!(leases.claim(&client(1), None, times, 9), Ok(at(4)));
        assert_ne!(leases.claim(&client(3), Some(at(4)), times, 9), Ok(at(4)));
    }
}
