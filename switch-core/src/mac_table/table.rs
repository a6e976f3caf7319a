//! The bounded MAC table: a hash index over a slab, each port's entries in the order they were last seen.
//!
//! Kept true, so that a port that floods random source addresses fills only its own share:
//! * a port at its limit gives up its own least recently seen entry for a new one;
//! * a full table takes from the port that holds most, if that is more than the learner holds, else from the learner itself;
//! * no operation walks the table: each touches a few entries, whatever the table holds. The index is keyed SipHash, so an
//!   attacker cannot choose addresses that share a chain.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use crate::port::PortId;
use crate::time::Millis;

use super::by_count::PortsByCount;
use super::epochs::{EpochBucket, MacEpochs};
use super::list::{Linked, Links, List, NIL};
use super::moves::{MacMove, MacMoves, MoveLog};
use super::snapshot::Restored;
use super::{MacStats, StationKey};

/// The table's bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Entries in all.
    pub capacity: usize,
    /// Entries of one port.
    pub per_port: usize,
    /// How long after it was last seen a station is forgotten.
    pub ageing: Millis,
    /// How long after it was last noted a station is noted as seen again.
    pub refresh: Millis,
}

/// What became of a frame's source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceAction {
    /// Known on this port, noted less than the refresh interval ago.
    Known,
    /// Known on this port; its age is zero again.
    Refreshed,
    /// New: now known on this port.
    Learned,
    /// Known on another port until now.
    Moved {
        /// That port.
        from: PortId,
    },
    /// Not learned: the port is over its learning rate, is being removed, or has no room of its own.
    Withheld,
}

/// A station that the table knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Station {
    pub port: PortId,
    pub last_seen: Millis,
}

/// The answer to a lookup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lookup {
    /// The station, unless it is unknown or has aged out.
    pub station: Option<Station>,
    /// The epoch that changes with the answer.
    pub bucket: EpochBucket,
}

/// What came of a frame's source address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    pub action: SourceAction,
    /// When the station was last noted, this time included.
    pub last_seen: Millis,
    /// The epoch that changes when the station moves or goes.
    pub bucket: EpochBucket,
}

struct Entry {
    key: StationKey,
    port: PortId,
    bucket: EpochBucket,
    /// False while the slot is on the free list.
    live: bool,
    last_seen: Millis,
    /// The next entry in the same chain of the index, or the next free slot.
    chain: u32,
    links: Links,
    hash: u32,
}

impl Linked for Entry {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// What the table knows of a port.
struct PortShare {
    /// Whether the port takes part: nothing is learned on one that was never added or is being removed.
    attached: bool,
    count: usize,
    /// Its entries, least recently seen first.
    entries: List,
    links: Links,
}

impl Linked for PortShare {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

pub(crate) struct MacTable {
    limits: Limits,
    hasher: RandomState,
    /// First entry of each chain; a power of two of them.
    chains: Vec<u32>,
    slots: Vec<Entry>,
    free: u32,
    ports: Vec<PortShare>,
    by_count: PortsByCount,
    epochs: Arc<MacEpochs>,
    stats: MacStats,
    moves: MoveLog,
}

impl MacTable {
    pub(super) fn new(limits: Limits, epochs: Arc<MacEpochs>) -> Self {
        let capacity = limits.capacity;
        Self {
            limits,
            hasher: RandomState::new(),
            chains: vec![NIL; capacity.next_power_of_two()],
            slots: Vec::with_capacity(capacity),
            free: NIL,
            ports: Vec::new(),
            by_count: PortsByCount::new(capacity.min(limits.per_port)),
            epochs,
            stats: MacStats {
                capacity: capacity as u64,
                ..MacStats::default()
            },
            moves: MoveLog::new(),
        }
    }

    /// The stations that have moved since the last time.
    pub(super) fn take_moves(&mut self) -> MacMoves {
        self.moves.take()
    }

    /// Lets stations be learned on `port`.
    pub(crate) fn attach(&mut self, port: PortId) {
        while self.ports.len() <= port.index() {
            let share = PortShare {
                attached: false,
                count: 0,
                entries: List::EMPTY,
                links: Links::NONE,
            };
            self.ports.push(share);
        }
        if let Some(share) = self.ports.get_mut(port.index()) {
            share.attached = true;
        }
    }

    /// Lets nothing be learned on `port` any more.
    pub(crate) fn detach(&mut self, port: PortId) {
        if let Some(share) = self.ports.get_mut(port.index()) {
            share.attached = false;
        }
    }

    pub(crate) fn stats(&self) -> MacStats {
        self.stats
    }

    /// What the table knows of a destination.
    pub(crate) fn lookup(&self, key: StationKey, now: Millis) -> Lookup {
        let hash = self.hash(key);
        Lookup {
            bucket: bucket_of(hash),
            station: self.station(self.find(key, hash), now),
        }
    }

    /// What [`observe`](Self::observe) would do, were the port within its learning rate.
    pub(crate) fn preview(&self, key: StationKey, port: PortId, now: Millis) -> Observation {
        let hash = self.hash(key);
        self.judge(self.find(key, hash), hash, port, now)
    }

    /// Notes that a frame from this station came in on `port`. `admit` says whether the port may learn one more now; it is asked
    /// only when something new would be learned.
    pub(crate) fn observe(
        &mut self,
        key: StationKey,
        port: PortId,
        now: Millis,
        admit: impl FnOnce() -> bool,
    ) -> Observation {
        let hash = self.hash(key);
        let slot = self.find(key, hash);
        let seen = self.judge(slot, hash, port, now);
        match (seen.action, slot) {
            (SourceAction::Known, _) => return seen,
            (SourceAction::Refreshed, Some(slot)) => {
                self.touch(slot, now);
                return seen;
            }
            (SourceAction::Withheld, _) => return self.withhold(seen),
            _ if !admit() => return self.withhold(seen),
            // Moved, or aged out and seen again before it was removed.
            (_, Some(slot)) => {
                self.unlink_from_port(slot);
                self.keep_within_limit(port);
                self.link_to_port(slot, port, now);
            }
            (_, None) => {
                if !self.make_room(port) {
                    return self.withhold(seen);
                }
                self.insert(key, hash, port, now);
            }
        }
        match seen.action {
            SourceAction::Moved { from } => {
                self.stats.moved += 1;
                self.moves.note(MacMove {
                    vlan: key.domain().vlan(),
                    mac: key.mac(),
                    from,
                    to: port,
                });
            }
            _ => self.stats.learned += 1,
        }
        self.epochs.advance(seen.bucket);
        seen
    }

    /// Removes up to `budget` of `port`'s entries; returns how many.
    pub(crate) fn flush(&mut self, port: PortId, budget: usize) -> usize {
        for removed in 0..budget {
            match self.oldest(port) {
                Some(slot) => self.remove(slot),
                None => return removed,
            }
        }
        budget
    }

    /// As [`Self::flush`]; shows those that had not aged out: key, age.
    pub(crate) fn take(
        &mut self,
        port: PortId,
        now: Millis,
        budget: usize,
        mut show: impl FnMut(StationKey, Millis),
    ) -> usize {
        for removed in 0..budget {
            let Some(slot) = self.oldest(port) else {
                return removed;
            };
            let entry = self.slots.get(slot as usize);
            if let Some(entry) = entry.filter(|entry| self.is_live(entry, now)) {
                show(entry.key, now.since(entry.last_seen));
            }
            self.remove(slot);
        }
        budget
    }

    /// Removes up to `budget` aged entries of the ports from `port` on; returns where to go on, unless all are done.
    pub(crate) fn expire_from(&mut self, mut port: u16, now: Millis, budget: usize) -> Option<u16> {
        for _ in 0..budget {
            let id = PortId::new(port).filter(|id| id.index() < self.ports.len())?;
            let aged = self.oldest(id).filter(|&slot| {
                self.slots
                    .get(slot as usize)
                    .is_some_and(|entry| !self.is_live(entry, now))
            });
            match aged {
                Some(slot) => {
                    self.remove(slot);
                    self.stats.aged += 1;
                }
                None => port += 1,
            }
        }
        Some(port)
    }

    /// Shows the live entries among the `budget` slots from `slot` on: key, port, age. Returns where to go on, unless all are done.
    pub(crate) fn entries_from(
        &self,
        slot: usize,
        now: Millis,
        budget: usize,
        mut show: impl FnMut(StationKey, PortId, Millis),
    ) -> Option<usize> {
        let rest = self.slots.get(slot..).filter(|rest| !rest.is_empty())?;
        for entry in rest.iter().take(budget) {
            if entry.live && self.is_live(entry, now) {
                show(entry.key, entry.port, now.since(entry.last_seen));
            }
        }
        Some(slot + budget)
    }

    /// Takes in a station that another table knew. Nothing is removed for it, and what was seen here later stays.
    ///
    /// A port's entries are kept in the order they were last seen. One that is older than the port's latest goes to the front, so
    /// stations that are restored youngest first end up in order; otherwise they are only the first to go when there is no room.
    pub(crate) fn restore(
        &mut self,
        key: StationKey,
        port: PortId,
        age: Millis,
        now: Millis,
    ) -> Restored {
        let last_seen = Millis(now.0.saturating_sub(age.0));
        if age.0 >= self.limits.ageing.0 {
            return Restored::TooOld;
        }
        let hash = self.hash(key);
        let slot = self.find(key, hash);
        if self
            .station(slot, now)
            .is_some_and(|known| known.last_seen >= last_seen)
        {
            return Restored::KnownSince;
        }
        let own = slot
            .and_then(|slot| self.slots.get(slot as usize))
            .is_some_and(|entry| entry.port == port);
        let is_full =
            slot.is_none() && self.free == NIL && self.slots.len() >= self.limits.capacity;
        if is_full
            || !self.may_learn(port)
            || !own && self.count(port) >= self.limits.per_port
            || key.mac().is_multicast()
        {
            return Restored::Refused;
        }
        let latest = self.latest(port);
        match slot {
            Some(slot) => {
                self.unlink_from_port(slot);
                self.link_to_port(slot, port, last_seen);
            }
            None => self.insert(key, hash, port, last_seen),
        }
        if latest.is_some_and(|latest| latest > last_seen)
            && let Some(slot) = self.find(key, hash)
            && let Some(share) = self.ports.get_mut(port.index())
        {
            share.entries.remove(&mut self.slots, slot);
            share.entries.push_front(&mut self.slots, slot);
        }
        self.epochs.advance(bucket_of(hash));
        Restored::Taken
    }

    /// When the latest of the port's entries was seen.
    fn latest(&self, port: PortId) -> Option<Millis> {
        let slot = self.ports.get(port.index())?.entries.last()?;
        Some(self.slots.get(slot as usize)?.last_seen)
    }

    /// What another table has done counts as done by this one.
    pub(crate) fn add_stats(&mut self, stats: &MacStats) {
        let own = &mut self.stats;
        for (own, more) in [
            (&mut own.learned, stats.learned),
            (&mut own.moved, stats.moved),
            (&mut own.aged, stats.aged),
            (&mut own.evicted, stats.evicted),
            (&mut own.withheld, stats.withheld),
        ] {
            *own = own.wrapping_add(more);
        }
    }

    fn judge(&self, slot: Option<u32>, hash: u64, port: PortId, now: Millis) -> Observation {
        let (action, last_seen) = match self.station(slot, now) {
            Some(Station {
                port: known,
                last_seen,
            }) if known == port => {
                if now.since(last_seen) < self.limits.refresh {
                    (SourceAction::Known, last_seen)
                } else {
                    (SourceAction::Refreshed, now)
                }
            }
            _ if !self.may_learn(port) => (SourceAction::Withheld, now),
            Some(Station { port: from, .. }) => (SourceAction::Moved { from }, now),
            None => (SourceAction::Learned, now),
        };
        Observation {
            action,
            last_seen,
            bucket: bucket_of(hash),
        }
    }

    fn station(&self, slot: Option<u32>, now: Millis) -> Option<Station> {
        let entry = self.slots.get(slot? as usize)?;
        self.is_live(entry, now).then_some(Station {
            port: entry.port,
            last_seen: entry.last_seen,
        })
    }

    fn withhold(&mut self, seen: Observation) -> Observation {
        self.stats.withheld += 1;
        Observation {
            action: SourceAction::Withheld,
            ..seen
        }
    }

    fn is_live(&self, entry: &Entry, now: Millis) -> bool {
        now.since(entry.last_seen) < self.limits.ageing
    }

    fn may_learn(&self, port: PortId) -> bool {
        self.limits.per_port > 0
            && self
                .ports
                .get(port.index())
                .is_some_and(|share| share.attached)
    }

    fn count(&self, port: PortId) -> usize {
        self.ports.get(port.index()).map_or(0, |share| share.count)
    }

    fn oldest(&self, port: PortId) -> Option<u32> {
        self.ports.get(port.index())?.entries.first()
    }

    /// Makes room for one more entry of `port`; false when there is none to be had.
    fn make_room(&mut self, port: PortId) -> bool {
        self.keep_within_limit(port);
        if self.free != NIL || self.slots.len() < self.limits.capacity {
            return true;
        }
        let victim = match self.by_count.largest() {
            Some((holder, count)) if count > self.count(port) => {
                u16::try_from(holder).ok().and_then(PortId::new)
            }
            _ => Some(port),
        };
        match victim.and_then(|port| self.oldest(port)) {
            Some(slot) => {
                self.remove(slot);
                self.stats.evicted += 1;
                true
            }
            None => false,
        }
    }

    /// Makes a port at its limit give up its least recently seen entry.
    fn keep_within_limit(&mut self, port: PortId) {
        if self.count(port) >= self.limits.per_port
            && let Some(slot) = self.oldest(port)
        {
            self.remove(slot);
            self.stats.evicted += 1;
        }
    }

    fn hash(&self, key: StationKey) -> u64 {
        self.hasher.hash_one(key.0)
    }

    fn chain_index(&self, hash: u32) -> usize {
        hash as usize & (self.chains.len() - 1)
    }

    fn find(&self, key: StationKey, hash: u64) -> Option<u32> {
        let mut slot = *self.chains.get(self.chain_index(hash as u32))?;
        while let Some(entry) = self.slots.get(slot as usize) {
            if entry.key == key {
                return Some(slot);
            }
            slot = entry.chain;
        }
        None
    }

    fn insert(&mut self, key: StationKey, hash: u64, port: PortId, now: Millis) {
        let chain_index = self.chain_index(hash as u32);
        let Some(chain) = self.chains.get_mut(chain_index) else {
            return;
        };
        let entry = Entry {
            key,
            port,
            bucket: bucket_of(hash),
            live: true,
            last_seen: now,
            chain: *chain,
            links: Links::NONE,
            hash: hash as u32,
        };
        let slot = match self.slots.get_mut(self.free as usize) {
            Some(unused) => {
                let slot = self.free;
                self.free = unused.chain;
                *unused = entry;
                slot
            }
            None => {
                self.slots.push(entry);
                self.slots.len() as u32 - 1
            }
        };
        *chain = slot;
        self.stats.entries += 1;
        self.link_to_port(slot, port, now);
    }

    fn remove(&mut self, slot: u32) {
        self.unlink_from_port(slot);
        self.unlink_from_chain(slot);
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return;
        };
        entry.live = false;
        entry.chain = std::mem::replace(&mut self.free, slot);
        self.stats.entries -= 1;
        self.epochs.advance(entry.bucket);
    }

    fn unlink_from_chain(&mut self, slot: u32) {
        let Some(entry) = self.slots.get(slot as usize) else {
            return;
        };
        let (next, chain_index) = (entry.chain, self.chain_index(entry.hash));
        let Some(head) = self.chains.get_mut(chain_index) else {
            return;
        };
        if *head == slot {
            *head = next;
            return;
        }
        let mut before = *head;
        while let Some(entry) = self.slots.get_mut(before as usize) {
            if entry.chain == slot {
                entry.chain = next;
                return;
            }
            before = entry.chain;
        }
    }

    /// Makes the entry the most recently seen of its port.
    fn touch(&mut self, slot: u32, now: Millis) {
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return;
        };
        entry.last_seen = now;
        let Some(share) = self.ports.get_mut(entry.port.index()) else {
            return;
        };
        share.entries.remove(&mut self.slots, slot);
        share.entries.push_back(&mut self.slots, slot);
    }

    /// Gives the entry to `port`, as its most recently seen.
    fn link_to_port(&mut self, slot: u32, port: PortId, now: Millis) {
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return;
        };
        entry.port = port;
        entry.last_seen = now;
        let Some(share) = self.ports.get_mut(port.index()) else {
            return;
        };
        share.entries.push_back(&mut self.slots, slot);
        let count = share.count;
        share.count = count + 1;
        self.by_count
            .change(&mut self.ports, u32::from(port.get()), count, count + 1);
    }

    fn unlink_from_port(&mut self, slot: u32) {
        let Some(port) = self.slots.get(slot as usize).map(|entry| entry.port) else {
            return;
        };
        let Some(share) = self.ports.get_mut(port.index()) else {
            return;
        };
        share.entries.remove(&mut self.slots, slot);
        let count = share.count;
        share.count = count.saturating_sub(1);
        self.by_count.change(
            &mut self.ports,
            u32::from(port.get()),
            count,
            count.saturating_sub(1),
        );
    }
}

/// The bucket of a station with this hash. The index uses the low bits, the bucket the high ones.
fn bucket_of(hash: u64) -> EpochBucket {
    EpochBucket::from_low_bits(hash >> (u64::BITS - EpochBucket::BITS))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mac::MacAddress;
    use crate::vlan::BroadcastDomain;

    const CAPACITY: usize = 12;
    const PER_PORT: usize = 7;
    const PORTS: u16 = 4;

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Known {
        key: StationKey,
        port: PortId,
        last_seen: Millis,
    }

    fn key(number: u64) -> StationKey {
        StationKey::new(
            BroadcastDomain::TRANSPARENT,
            MacAddress::from_u64(0x0200_0000_0000 | number),
        )
    }

    fn port(index: u16) -> PortId {
        PortId::new(index).unwrap()
    }

    /// The entries of each port in the order of its list, found by walking the lists forward.
    fn walk(table: &MacTable) -> Vec<Known> {
        let mut known = Vec::new();
        for share in &table.ports {
            let before = known.len();
            let mut next = share.entries.first();
            while let Some(slot) = next {
                let entry = &table.slots[slot as usize];
                assert!(entry.live);
                assert_eq!(
                    table.find(entry.key, table.hash(entry.key)),
                    Some(slot),
                    "the index finds it"
                );
                known.push(Known {
                    key: entry.key,
                    port: entry.port,
                    last_seen: entry.last_seen,
                });
                next = entry.links.next();
            }
            assert_eq!(known.len() - before, share.count);
        }
        let largest = table
            .ports
            .iter()
            .map(|share| share.count)
            .max()
            .filter(|&count| count > 0);
        assert_eq!(table.by_count.largest().map(|(_, count)| count), largest);
        assert_eq!(table.stats.entries as usize, known.len());
        assert_eq!(
            table.slots.iter().filter(|entry| entry.live).count(),
            known.len()
        );
        known
    }

    /// What `observe` may have removed from `before` to make room for a new station of `learner`.
    fn check_victim(before: &[Known], victim: &Known, learner: PortId) {
        let count = |port: PortId| before.iter().filter(|known| known.port == port).count();
        let oldest = before
            .iter()
            .find(|known| known.port == victim.port)
            .unwrap();
        assert_eq!(victim, oldest, "the oldest of its port");
        if count(learner) == PER_PORT {
            assert_eq!(victim.port, learner);
        } else {
            assert_eq!(before.len(), CAPACITY, "there was room");
            let largest = (0..PORTS).map(|index| count(port(index))).max().unwrap();
            if largest > count(learner) {
                assert_eq!(count(victim.port), largest);
            } else {
                assert_eq!(victim.port, learner);
            }
        }
    }

    proptest! {
        #[test]
        fn the_table_keeps_its_bounds_and_takes_only_from_whom_it_may(
            events in prop::collection::vec((0..30_u64, 0..PORTS, 0..40_u64, 0..20_u8), 1..300),
        ) {
            let limits =
                Limits { capacity: CAPACITY, per_port: PER_PORT, ageing: Millis(300), refresh: Millis(10) };
            let mut table = MacTable::new(limits, Arc::new(MacEpochs::new()));
            (0..PORTS).for_each(|index| table.attach(port(index)));
            let mut now = Millis(0);
            for (number, index, wait, event) in events {
                now = now.after(Millis(wait));
                let before = walk(&table);
                match event {
                    0 => {
                        table.flush(port(index), usize::MAX);
                        prop_assert!(walk(&table).iter().all(|known| known.port != port(index)));
                    }
                    1 => {
                        let mut from = Some(0);
                        while let Some(index) = from {
                            from = table.expire_from(index, now, 3);
                        }
                        let live = before.into_iter().filter(|known| now.since(known.last_seen) < Millis(300));
                        prop_assert_eq!(walk(&table), live.collect::<Vec<_>>());
                    }
                    _ => {
                        let seen = table.observe(key(number), port(index), now, || true);
                        let after = walk(&table);
                        prop_assert_ne!(seen.action, SourceAction::Withheld);
                        prop_assert!(after.len() <= CAPACITY);
                        prop_assert!(after.iter().filter(|known| known.port == port(index)).count() <= PER_PORT);
                        let station = table.lookup(key(number), now).station;
                        prop_assert_eq!(station, Some(Station { port: port(index), last_seen: seen.last_seen }));
                        let lost: Vec<_> = before
                            .iter()
                            .filter(|old| old.key != key(number) && !after.iter().any(|new| new.key == old.key))
                            .collect();
                        prop_assert!(lost.len() <= 1);
                        if let [victim] = lost[..] {
                            check_victim(&before, victim, port(index));
                        }
                    }
                }
            }
        }
    }

    proptest! {
        /// Stations that come from elsewhere, among those that are seen here.
        #[test]
        fn what_is_restored_takes_nothing_from_what_was_seen(
            events in prop::collection::vec((0..30_u64, 0..PORTS, 0..40_u64, any::<bool>(), 0..350_u64), 1..200),
        ) {
            let limits =
                Limits { capacity: CAPACITY, per_port: PER_PORT, ageing: Millis(300), refresh: Millis(10) };
            let mut table = MacTable::new(limits, Arc::new(MacEpochs::new()));
            (0..PORTS).for_each(|index| table.attach(port(index)));
            let mut now = Millis(1_000);
            for (number, index, wait, seen_here, age) in events {
                now = now.after(Millis(wait));
                let before = walk(&table);
                if seen_here {
                    table.observe(key(number), port(index), now, || true);
                    walk(&table);
                    continue;
                }
                let outcome = table.restore(key(number), port(index), Millis(age), now);
                let after = walk(&table);
                prop_assert!(after.len() <= CAPACITY);
                prop_assert!(after.iter().filter(|known| known.port == port(index)).count() <= PER_PORT);
                let last_seen = Millis(now.0 - age);
                for old in before.iter().filter(|old| old.key != key(number)) {
                    prop_assert!(after.contains(old), "{old:?} is gone");
                }
                let old = before.iter().find(|old| old.key == key(number));
                let new = after.iter().find(|new| new.key == key(number));
                if outcome == Restored::Taken {
                    let expected = Known { key: key(number), port: port(index), last_seen };
                    prop_assert_eq!(new, Some(&expected));
                } else {
                    prop_assert_eq!(new, old);
                }
                if old.is_some_and(|old| now.since(old.last_seen) < Millis(300) && old.last_seen >= last_seen) && age < 300 {
                    prop_assert_eq!(outcome, Restored::KnownSince);
                }
            }
        }
    }

    #[test]
    fn nothing_is_learned_on_a_port_that_is_not_attached() {
        let limits = Limits {
            capacity: 4,
            per_port: 4,
            ageing: Millis(300),
            refresh: Millis(10),
        };
        let mut table = MacTable::new(limits, Arc::new(MacEpochs::new()));
        table.attach(port(1));
        table.detach(port(1));
        for index in 0..3 {
            let seen = table.observe(key(1), port(index), Millis(0), || true);
            assert_eq!(seen.action, SourceAction::Withheld);
        }
        assert_eq!((table.stats.entries, table.stats.withheld), (0, 3));
    }
}
