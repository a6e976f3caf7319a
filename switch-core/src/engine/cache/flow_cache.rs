//! The cache: exact front first, then the masks of the frame's port and path.
//!
//! What bounds it, because frames decide what is inserted (CVE-2019-25076 is what happens to a cache that nothing bounds):
//!
//! * a lookup tries the masks of its own port and path, no others, and a port has at most so many;
//! * when the cache is full, a port that has its share of the flows pushes out its own, and no faster than at a certain rate;
//! * so does a key that pushes another one out of the exact front;
//! * no operation moves more than a bucket of flows or takes more than one chunk of memory of each kind.
//!
//! Two masks may both match a frame; both verdicts are right, so any answers. Flows under one mask never overlap.

use super::flow::{Flow, FlowRef};
use super::front::{Front, Placing};
use super::hash::KeyedHash;
use super::index::Index;
use super::key::FlowKey;
use super::masks::{self, EXACT, MaskId, MaskWords, Masks};
use super::ports::{Ports, Tables};
use super::records::{AnswerFor, NO_FLOW, Records};
use crate::rate_limit::RateLimit;
use crate::time::Millis;

/// How many of a port's oldest flows may stay, because they were used, before one goes.
const SECOND_CHANCES: usize = 16;

/// How much a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Flows at most, of all ports together; at least 1. A flow takes about 170 bytes with a verdict of up to 40 bytes and a key of
    /// up to eight words, 64 more with a larger verdict, 128 more with a longer key.
    pub max_flows: usize,
    /// Whole keys that the exact front has slots for, rounded up to a power of two; at least 4096. A slot takes 8 bytes.
    pub max_exact: usize,
    /// Masks that a port has at most, over all its paths. A flow under any other is remembered for its exact key only.
    pub max_masks_per_port: usize,
    /// How often a port may push out a flow, its own or another's, and how often it may push a key out of the front.
    pub insert_rate: RateLimit,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            max_flows: 200_000 + 65_536,
            max_exact: 1 << 19,
            max_masks_per_port: 32,
            insert_rate: RateLimit {
                per_second: 20_000,
                burst: 4096,
            },
        }
    }
}

/// Under what a flow is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RememberedUnder {
    /// The mask that was given.
    Mask,
    /// All bits of the key: the port has as many masks as it may.
    ExactKey,
}

/// A flow is in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inserted<V> {
    /// The flow.
    pub flow: FlowRef,
    /// Under what.
    pub under: RememberedUnder,
    /// The flow that had to go for it, or that it replaces, with what was not yet counted elsewhere.
    pub pushed_out: Option<Flow<V>>,
}

/// Why a flow is not in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The cache is full and the port has pushed out as many flows as it may for now.
    OverRate,
    /// The key has no words or too many, or the mask has another length.
    BadKey,
    /// There is no room in the one place where the flow could be found.
    NoRoom,
}

/// A flow is not in the cache; here is its verdict back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotInserted<V> {
    /// What was to be inserted.
    pub value: V,
    /// Why it was not.
    pub why: Refusal,
}

/// A flow where it lies.
pub(crate) struct ShownFlow<'a, V> {
    pub flow: &'a Flow<V>,
    /// The port that its frames come from.
    pub in_port: u16,
    /// Which headers they have.
    pub path: u16,
    index: u32,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows that were shown.
    pub visited: usize,
    /// Those that were not kept.
    pub removed: usize,
    /// The last place was reached: with the next call the sweep starts over.
    pub wrapped: bool,
}

/// What is in a cache and what was asked of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Flows in the cache.
    pub flows: usize,
    /// Hits of the flow that the frame before hit.
    pub latest_hits: u64,
    /// Hits of the flow that was foreseen.
    pub foreseen_hits: u64,
    /// Hits in the exact front.
    pub front_hits: u64,
    /// Hits under a mask.
    pub masked_hits: u64,
    /// Lookups that found nothing.
    pub misses: u64,
    /// Lines of the index that lookups looked at.
    pub probes: u64,
    /// Keys put into the exact front.
    pub promotions: u64,
    /// Keys not put into the exact front, because their set was full and their port over its rate.
    pub unpromoted: u64,
    /// Flows pushed out by others.
    pub pushed_out: u64,
    /// Insertions refused for their port's rate.
    pub over_rate: u64,
    /// Flows remembered for their exact key, because their port had no mask left.
    pub exact_only: u64,
}

/// A worker's cache of verdicts `V`, best a pointer: then a flow is two cache lines. See the [module](super) for how it works.
pub struct FlowCache<V> {
    config: CacheConfig,
    hash: KeyedHash,
    now: Millis,
    /// The flow of the last hit or insertion: frames come in bursts.
    latest: u32,
    /// It was the one before, too: the next frame may well be its.
    is_repeating: bool,
    records: Records<V>,
    masks: Masks,
    front: Front,
    index: Index,
    ports: Ports,
    /// Where the sweep goes on.
    hand: usize,
    stats: CacheStats,
}

impl<V> FlowCache<V> {
    /// An empty cache; `seed` is a random number of this process, so that nobody can make flows collide.
    pub fn new(config: CacheConfig, seed: u64) -> Self {
        Self {
            config,
            hash: KeyedHash::new(seed),
            now: Millis(0),
            latest: NO_FLOW,
            is_repeating: false,
            records: Records::new(),
            masks: Masks::new(),
            front: Front::new(config.max_exact),
            index: Index::new(),
            ports: Ports::new(),
            hand: 0,
            stats: CacheStats::default(),
        }
    }

    /// Sets the time that rates are judged by.
    pub fn set_time(&mut self, now: Millis) {
        self.now = now;
    }

    /// The flow that answers for this frame, if there is one. Whether its verdict still holds is the caller's to judge.
    #[inline]
    pub fn lookup(&mut self, key: &FlowKey) -> Option<FlowRef> {
        if self.is_repeating && self.records.is(self.latest, key, &self.masks) {
            self.stats.latest_hits += 1;
            return Some(FlowRef(self.latest));
        }
        let Some(flow) = self.find(key) else {
            self.stats.misses += 1;
            return None;
        };
        self.is_repeating = flow == self.latest;
        self.latest = flow;
        Some(FlowRef(flow))
    }

    /// The flow that most likely answers for a frame. Nothing waits for it: what was read of it so far goes into `touched`, which
    /// means nothing, and makes the processor fetch it.
    #[inline]
    pub fn foresee(&mut self, key: &FlowKey, touched: &mut u64) -> Option<FlowRef> {
        let in_port = key.in_port()?;
        let flow = match self.ports.tables(in_port, key.path) {
            Tables::None => None,
            Tables::One(mask) => {
                let hash = self.hash_under(mask, key);
                self.index.find(hash, &mut 0, |_| true)
            }
            Tables::Several => self.front.find(self.whole_hash(key), |_| true),
        }?;
        *touched ^= u64::from(self.records.get(flow)?.in_port());
        Some(FlowRef(flow))
    }

    /// [`lookup`](Self::lookup) of a frame that this flow was foreseen for.
    #[inline]
    pub fn lookup_foreseen(&mut self, key: &FlowKey, foreseen: FlowRef) -> Option<FlowRef> {
        if self.records.is(foreseen.0, key, &self.masks) {
            self.stats.foreseen_hits += 1;
            self.latest = foreseen.0;
            return Some(foreseen);
        }
        self.lookup(key)
    }

    /// A flow, while the reference to it is good.
    #[inline]
    pub fn entry(&self, flow: FlowRef) -> Option<&Flow<V>> {
        self.records.get(flow.0)?.flow.as_ref()
    }

    /// A flow, to count a frame or to stamp it. One that is asked for now and then stays longer than one that is not.
    #[inline]
    pub fn entry_mut(&mut self, flow: FlowRef) -> Option<&mut Flow<V>> {
        let record = self.records.get_mut(flow.0)?;
        record.is_used = true;
        record.flow.as_mut()
    }

    /// Remembers a verdict for all frames that are the same as `key` in the bits of `mask`, which has as many words. The path and
    /// the port count without being in the mask.
    pub fn insert(
        &mut self,
        key: &FlowKey,
        mask: &[u64],
        value: V,
        stamp: u64,
    ) -> Result<Inserted<V>, NotInserted<V>> {
        let refused = |value, why| Err(NotInserted { value, why });
        let (Some(in_port), true) = (key.in_port(), mask.len() == usize::from(key.length)) else {
            return refused(value, Refusal::BadKey);
        };
        let mask = masks::complete(mask);
        let flow = Flow::new(value, stamp);
        if let Some((index, under)) = self.find_same(key, in_port, &mask) {
            let record = self.records.get_mut(index);
            let pushed_out = record.and_then(|record| record.flow.replace(flow));
            self.latest = index;
            return Ok(Inserted {
                flow: FlowRef(index),
                under,
                pushed_out,
            });
        }
        let limit = self.config.insert_rate;
        if self.ports.get_or_add(in_port, limit, self.now).is_none() {
            return refused(flow.value, Refusal::NoRoom);
        }
        let pushed_out = match self.make_room(in_port) {
            Ok(pushed_out) => pushed_out,
            Err(why) => return refused(flow.value, why),
        };
        let id = self.mask_for(key, in_port, &mask);
        match self.add(key, in_port, id, flow) {
            Ok(index) => {
                self.latest = index;
                self.promote(key, in_port, index);
                let under = match id {
                    EXACT => RememberedUnder::ExactKey,
                    _ => RememberedUnder::Mask,
                };
                self.stats.exact_only += u64::from(id == EXACT);
                Ok(Inserted {
                    flow: FlowRef(index),
                    under,
                    pushed_out,
                })
            }
            Err(value) => refused(value, Refusal::NoRoom),
        }
    }

    /// Removes a flow: its verdict no longer holds.
    pub fn remove(&mut self, flow: FlowRef) -> Option<Flow<V>> {
        self.take_out(flow.0)
    }

    /// Forgets everything at once, counts included; sweep first to collect them. The time it takes grows with the number of flows.
    pub fn clear(&mut self) {
        self.latest = NO_FLOW;
        self.records = Records::new();
        self.masks = Masks::new();
        self.front = Front::new(self.config.max_exact);
        self.index = Index::new();
        self.ports.clear();
        self.hand = 0;
    }

    /// Shows the flows in the next `budget` places to `keep`, and removes those that it says no to. The calls of
    /// [`places`](Self::places)` / budget` rounds show every flow that was there all the time.
    pub fn sweep(&mut self, budget: usize, mut keep: impl FnMut(&mut Flow<V>) -> bool) -> Swept {
        let mut swept = Swept::default();
        let places = self.records.places();
        let end = self.hand.saturating_add(budget).min(places);
        for place in self.hand..end {
            let index = place as u32;
            let flow = self.records.get_mut(index);
            let Some(flow) = flow.and_then(|record| record.flow.as_mut()) else {
                continue;
            };
            swept.visited += 1;
            if !keep(flow) {
                swept.removed += 1;
                self.take_out(index);
            }
        }
        swept.wrapped = end == places;
        self.hand = if swept.wrapped { 0 } else { end };
        swept
    }

    /// The flow in a place below [`places`](Self::places), if there is one.
    #[inline]
    pub(crate) fn shown(&self, place: usize) -> Option<ShownFlow<'_, V>> {
        let index = u32::try_from(place).ok()?;
        let record = self.records.get(index)?;
        Some(ShownFlow {
            flow: record.flow.as_ref()?,
            in_port: record.in_port(),
            path: record.path,
            index,
        })
    }

    /// The words of a flow's key behind the port, each with its mask; only the bits of that mean anything.
    pub(crate) fn words_of(
        &self,
        shown: &ShownFlow<'_, V>,
    ) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.records.words(shown.index, &self.masks).skip(1)
    }

    /// How many places a whole sweep visits, taken and free ones.
    pub fn places(&self) -> usize {
        self.records.places()
    }

    /// What is in the cache and what was asked of it.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            flows: self.records.live(),
            ..self.stats
        }
    }

    /// Masks that a port has now.
    pub fn masks_of_port(&self, in_port: u16) -> usize {
        self.ports.get(in_port).map_or(0, |port| port.masks)
    }

    /// Flows that a port has now.
    pub fn flows_of_port(&self, in_port: u16) -> usize {
        self.ports.get(in_port).map_or(0, |port| port.flows)
    }

    #[inline(always)]
    fn find(&mut self, key: &FlowKey) -> Option<u32> {
        let in_port = key.in_port()?;
        match self.ports.tables(in_port, key.path) {
            Tables::None => None,
            // As quick as the front, and needs no place in it.
            Tables::One(mask) => {
                let flow = self.find_under(mask, key);
                self.stats.masked_hits += u64::from(flow.is_some());
                flow
            }
            Tables::Several => self
                .find_in_front(key)
                .or_else(|| self.find_behind(key, in_port)),
        }
    }

    #[inline(always)]
    fn find_in_front(&mut self, key: &FlowKey) -> Option<u32> {
        let hash = self.whole_hash(key);
        let flow = self.front.find(
            hash,
            AnswerFor {
                key,
                records: &self.records,
                masks: &self.masks,
            },
        );
        self.stats.front_hits += u64::from(flow.is_some());
        flow
    }

    #[inline(never)]
    fn find_behind(&mut self, key: &FlowKey, in_port: u16) -> Option<u32> {
        let mut tried = 0;
        let flow = loop {
            let port = self.ports.get(in_port)?;
            match port.masks_of(key.path).get(tried) {
                Some(mask) => {
                    if let Some(flow) = self.find_under(*mask, key) {
                        break flow;
                    }
                }
                None if port.exact > 0 => break self.find_under(EXACT, key)?,
                None => return None,
            }
            tried += 1;
        };
        self.stats.masked_hits += 1;
        if tried > 0
            && let Some(port) = self.ports.get_mut(in_port)
        {
            port.move_to_front(key.path, tried);
        }
        self.promote(key, in_port, flow);
        Some(flow)
    }

    #[inline(always)]
    fn find_under(&mut self, id: MaskId, key: &FlowKey) -> Option<u32> {
        let hash = self.hash_under(id, key);
        let wanted = AnswerFor {
            key,
            records: &self.records,
            masks: &self.masks,
        };
        self.index.find(hash, &mut self.stats.probes, wanted)
    }

    /// Of a whole key.
    #[inline(always)]
    fn whole_hash(&self, key: &FlowKey) -> u64 {
        self.hash_of(EXACT, key)
    }

    /// Of what a mask leaves of a key.
    #[inline(always)]
    fn hash_under(&self, id: MaskId, key: &FlowKey) -> u32 {
        self.hash_of(id, key) as u32
    }

    #[inline(always)]
    fn hash_of(&self, id: MaskId, key: &FlowKey) -> u64 {
        let tweak = match id {
            EXACT => u64::from(key.path),
            // A mask is one path's.
            id => u64::from(id) << 16,
        };
        match self.masks.get(id) {
            Some(mask) => self.hash.of(key, &mask.words, tweak),
            None => 0,
        }
    }

    /// Puts a whole key into the front, where the port's tables are not found as quickly without it.
    fn promote(&mut self, key: &FlowKey, in_port: u16, flow: u32) {
        if self.ports.tables(in_port, key.path) != Tables::Several {
            return;
        }
        let (hash, now) = (self.whole_hash(key), self.now);
        let Some(port) = self.ports.get_mut(in_port) else {
            return;
        };
        let promotions = &mut port.promotions;
        match self.front.insert(hash, flow, || promotions.take(now)) {
            Placing::Placed => self.stats.promotions += 1,
            Placing::NoRoom => self.stats.unpromoted += 1,
        }
    }

    /// The mask of this port and path with these words.
    fn known_mask(&self, key: &FlowKey, in_port: u16, mask: &MaskWords) -> Option<MaskId> {
        let same = |id: &&MaskId| self.masks.get(**id).is_some_and(|at| at.words == *mask);
        let port = self.ports.get(in_port)?;
        port.masks_of(key.path).iter().find(same).copied()
    }

    /// The flow with the same key under the same mask.
    fn find_same(
        &mut self,
        key: &FlowKey,
        in_port: u16,
        mask: &MaskWords,
    ) -> Option<(u32, RememberedUnder)> {
        let known = self.known_mask(key, in_port, mask);
        let id = match known {
            Some(id) => id,
            None if self.ports.get(in_port)?.exact > 0 => EXACT,
            None => return None,
        };
        let hash = self.hash_under(id, key);
        let flow = self.index.find(hash, &mut 0, |flow| {
            let has_mask = |at: &super::records::Record<V>| at.mask == id;
            self.records.get(flow).is_some_and(has_mask) && self.records.is(flow, key, &self.masks)
        })?;
        let under = match known {
            Some(_) => RememberedUnder::Mask,
            None => RememberedUnder::ExactKey,
        };
        Some((flow, under))
    }

    /// The mask that a new flow goes under.
    fn mask_for(&mut self, key: &FlowKey, in_port: u16, mask: &MaskWords) -> MaskId {
        if let Some(known) = self.known_mask(key, in_port, mask) {
            return known;
        }
        match self.ports.get_mut(in_port) {
            Some(port) if port.masks < self.config.max_masks_per_port => {
                let id = self.masks.add(mask.clone());
                port.add_mask(key.path, id);
                self.ports.masks_changed();
                id
            }
            _ => EXACT,
        }
    }

    /// Lets a flow go, if the cache is full.
    fn make_room(&mut self, in_port: u16) -> Result<Option<Flow<V>>, Refusal> {
        let most = self.config.max_flows.clamp(1, NO_FLOW as usize - 1);
        if self.records.live() < most {
            return Ok(None);
        }
        let now = self.now;
        let port = self.ports.get_mut(in_port).ok_or(Refusal::NoRoom)?;
        if !port.insertions.take(now) {
            self.stats.over_rate += 1;
            return Err(Refusal::OverRate);
        }
        let payer = self.ports.payer(in_port, most);
        let pushed_out = self.push_out(payer).ok_or(Refusal::NoRoom)?;
        self.stats.pushed_out += 1;
        Ok(Some(pushed_out))
    }

    /// Takes out the oldest of a port's flows that was not used since it was the newest; those that were become the newest.
    fn push_out(&mut self, port: u16) -> Option<Flow<V>> {
        for _ in 0..SECOND_CHANCES {
            let oldest = self.ports.get(port)?.oldest;
            let record = self.records.get_mut(oldest)?;
            if !std::mem::take(&mut record.is_used) {
                break;
            }
            self.unlink(oldest, port);
            self.link(oldest, port);
        }
        self.take_out(self.ports.get(port)?.oldest)
    }

    /// Adds a flow that is not there; gives its value back if the index has no room for it.
    fn add(&mut self, key: &FlowKey, in_port: u16, id: MaskId, flow: Flow<V>) -> Result<u32, V> {
        let hash = self.hash_under(id, key);
        let Some(mask) = self.masks.get(id) else {
            return Err(flow.value);
        };
        let index = (self.records).insert(key, (id, &mask.words.head), hash, flow)?;
        self.link(index, in_port);
        self.ports.count_flow(in_port);
        match id {
            EXACT => {
                if let Some(port) = self.ports.get_mut(in_port) {
                    port.exact += 1;
                    self.ports.masks_changed();
                }
            }
            id => {
                if let Some(mask) = self.masks.get_mut(id) {
                    mask.flows += 1;
                }
            }
        }
        match self.index.insert(hash, index) {
            Ok(()) => Ok(index),
            Err(_) => match self.take_out(index) {
                Some(flow) => Err(flow.value),
                None => Ok(index),
            },
        }
    }

    /// Takes a flow out of everything but the front, which does not mind; with it goes its mask, if no other flow is under it.
    fn take_out(&mut self, index: u32) -> Option<Flow<V>> {
        let record = self.records.get(index)?;
        let (in_port, path, id) = (record.in_port(), record.path, record.mask);
        record.flow.as_ref()?;
        let hash = self.records.link(index)?.hash;
        self.unlink(index, in_port);
        self.index.remove(hash, index);
        self.ports.discount_flow(in_port);
        if id == EXACT {
            if let Some(port) = self.ports.get_mut(in_port) {
                port.exact -= 1;
            }
            self.ports.masks_changed();
        } else if let Some(mask) = self.masks.get_mut(id) {
            mask.flows -= 1;
            if mask.flows == 0 {
                self.masks.remove(id);
                self.ports.masks_changed();
                if let Some(port) = self.ports.get_mut(in_port) {
                    port.remove_mask(path, id);
                }
            }
        }
        self.records.remove(index)
    }

    /// Makes a flow the newest of its port.
    fn link(&mut self, index: u32, in_port: u16) {
        let Some(port) = self.ports.get_mut(in_port) else {
            return;
        };
        let before = std::mem::replace(&mut port.newest, index);
        match self.records.link_mut(before) {
            Some(link) => link.newer = index,
            None => port.oldest = index,
        }
        if let Some(link) = self.records.link_mut(index) {
            link.older = before;
            link.newer = NO_FLOW;
        }
    }

    fn unlink(&mut self, index: u32, in_port: u16) {
        let Some(link) = self.records.link(index) else {
            return;
        };
        let (older, newer) = (link.older, link.newer);
        let Some(port) = self.ports.get_mut(in_port) else {
            return;
        };
        match self.records.link_mut(older) {
            Some(link) => link.newer = newer,
            None => port.oldest = newer,
        }
        match self.records.link_mut(newer) {
            Some(link) => link.older = older,
            None => port.newest = older,
        }
    }
}
