//! A worker's memory of finished verdicts: an exact, associative array of bounded size.
//!
//! Owned by one pipeline, so by one worker; never locked, never moved, never swept. Two slots share a cache line, a set. A key has
//! two sets, the second for when the first is taken: a hit costs one hash, mostly one line, and two reads of epoch counters. A slot is valid while the port tables and the epochs of its two
//! stations are those it was made under, and until its time is up; anything else is a miss, so a change that was acknowledged is
//! never answered from here.
//!
//! The three counters are remembered as their sum: none ever goes back, so the sum differs as soon as one of them does.
//!
//! Few flows use few sets, so that they stay in the first caches and in few pages; when flows push each other out, more sets are
//! used. Nothing is moved then: a verdict that is no longer where its key is looked for is found out again, as it would be a second
//! later anyway.

use std::hash::{BuildHasher, Hasher};

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;

use crate::drop_reason::DropReason;
use crate::flow_key::FlowKey;
use crate::flow_list::{FlowWalk, Found, FoundFlow};
use crate::mac_table::{EpochBucket, MacEpochs};
use crate::port::PortId;
use crate::program::Dependencies;
use crate::time::Millis;
use crate::verdict::{Flood, FrameTag, HeaderEdit, TagStacking, Verdict};
use crate::vlan::{BroadcastDomain, Tci};
use crate::vlan_edit::VlanEdit;

/// Sets in use at first: 64 KiB.
const FIRST_SETS: usize = 1 << 10;
/// Sets in use at most: 8 MiB, of which only the pages of live flows are ever touched.
const MOST_SETS: usize = 1 << 17;
/// Twice as many sets are used once one in so many had to let a live flow go.
const SETS_PER_EVICTION: usize = 4;
/// Words of a set: a cache line.
const SET_WORDS: usize = 2 * SLOT_WORDS;
const SLOT_WORDS: usize = 4;
/// After this long the cache is emptied and its clock starts again at zero, so that 32 bits are enough for it.
const CLOCK_SPAN: Millis = Millis(1 << 30);

/// A remembered verdict. All zeroes in an empty slot, which so is never valid.
#[derive(Clone, Copy)]
struct Slot {
    key: FlowKey,
    /// Sum of the port tables' epoch and the two stations' epochs.
    version: u32,
    /// In milliseconds since `started`.
    valid_until_ms: u32,
    packed: PackedVerdict,
}

impl Slot {
    /// As it lies in the array: plain words, because the allocator gives those zeroed without writing them.
    #[inline]
    fn of([low, high, validity, packed]: [u64; SLOT_WORDS]) -> Self {
        Self {
            key: FlowKey { low, high },
            version: validity as u32,
            valid_until_ms: (validity >> 32) as u32,
            packed: PackedVerdict(packed),
        }
    }

    /// Whether the port tables and its stations are what they were.
    #[inline(always)]
    fn holds(self, tables_epoch: u32, epochs: &MacEpochs) -> bool {
        let (source, destination) = self.packed.buckets();
        let version = tables_epoch
            .wrapping_add(epochs.get(source))
            .wrapping_add(epochs.get(destination));
        self.version == version
    }

    fn words(self) -> [u64; SLOT_WORDS] {
        [
            self.key.low,
            self.key.high,
            u64::from(self.version) | u64::from(self.valid_until_ms) << 32,
            self.packed.0,
        ]
    }
}

pub(crate) struct FlowCache {
    words: Box<[u64]>,
    /// Words before the first cache line that is wholly ours.
    skip: usize,
    /// Sets in use less one; all ones.
    mask: usize,
    hasher: SeedableRandomState,
    started: Millis,
    now_ms: u32,
    /// Which of a key's four slots goes next, when none is free.
    victim: usize,
    /// Live flows that had to go since more sets were taken into use.
    evictions: usize,
}

impl FlowCache {
    /// An empty cache; `seed` differs between processes, so that nobody can tell which flows share a set.
    pub(crate) fn new(seed: u64) -> Self {
        // A cache line more, because the allocator aligns words to words.
        let words = vec![0; (MOST_SETS + 1) * SET_WORDS].into_boxed_slice();
        Self {
            skip: words.as_ptr().align_offset(SET_WORDS * size_of::<u64>()) % SET_WORDS,
            words,
            mask: FIRST_SETS - 1,
            hasher: SeedableRandomState::with_seed(seed, SharedSeed::global_random()),
            started: Millis(0),
            now_ms: 0,
            victim: 0,
            evictions: 0,
        }
    }

    /// Sets the time that validity is judged by.
    pub(crate) fn set_time(&mut self, now: Millis) {
        if now.since(self.started) >= CLOCK_SPAN || now < self.started {
            let used = self.skip + (self.mask + 1) * SET_WORDS;
            if let Some(words) = self.words.get_mut(..used) {
                words.fill(0);
            }
            self.started = now;
        }
        self.now_ms = now.since(self.started).0 as u32;
    }

    /// The remembered verdict for this key, if it still holds.
    #[inline]
    pub(crate) fn get(
        &self,
        key: FlowKey,
        tables_epoch: u32,
        epochs: &MacEpochs,
    ) -> Option<Verdict> {
        let (first, second) = self.places(key);
        let slot = match self.find(first, key) {
            Some(slot) => slot,
            None => self.find(second, key)?,
        };
        (slot.holds(tables_epoch, epochs) && self.now_ms < slot.valid_until_ms)
            .then(|| slot.packed.verdict(key.in_port()))
    }

    /// Shows a walk the flows in the next places: those that [`get`](Self::get) would answer with at `now`.
    pub(crate) fn list(
        &self,
        walk: &mut FlowWalk,
        now: Millis,
        tables_epoch: u32,
        epochs: &MacEpochs,
    ) {
        let now_ms = now.since(self.started).0;
        while let Some(number) = walk.next_place(2 * (self.mask + 1)) {
            let place = self.skip + number * SLOT_WORDS;
            let Some(slot) = self.slot(place) else {
                continue;
            };
            let valid_until_ms = u64::from(slot.valid_until_ms);
            let in_port = slot.key.in_port();
            if now_ms >= valid_until_ms || !walk.wants(in_port.get()) {
                continue;
            }
            // What was left behind when more sets were taken into use is not found there.
            let set = place - number % 2 * SLOT_WORDS;
            let (first, second) = self.places(slot.key);
            if (set != first && set != second) || !slot.holds(tables_epoch, epochs) {
                continue;
            }
            walk.add(FoundFlow {
                in_port,
                valid_for: Some(Millis(valid_until_ms - now_ms)),
                what: Found::Default(slot.key, slot.packed.verdict(in_port)),
            });
        }
    }

    /// Whether remembering this key takes the place of another flow whose time is not up.
    pub(crate) fn would_evict(&self, key: FlowKey) -> bool {
        self.free_slot(key).is_none()
    }

    /// Remembers a verdict.
    pub(crate) fn insert(
        &mut self,
        key: FlowKey,
        verdict: Verdict,
        tables_epoch: u32,
        on: &Dependencies,
    ) {
        let Some(packed) = PackedVerdict::new(verdict, on) else {
            return;
        };
        let place = match self.free_slot(key) {
            Some(free) => free,
            None => {
                self.evictions += 1;
                self.use_more_sets();
                self.next_victim(key)
            }
        };
        let slot = Slot {
            key,
            version: tables_epoch.wrapping_add(on.mac_epochs),
            valid_until_ms: u32::try_from(on.valid_until.since(self.started).0).unwrap_or(u32::MAX),
            packed,
        };
        if let Some(words) = self.words.get_mut(place..place + SLOT_WORDS) {
            words.copy_from_slice(&slot.words());
        }
    }

    fn use_more_sets(&mut self) {
        let sets = self.mask + 1;
        if self.evictions >= sets / SETS_PER_EVICTION && sets < MOST_SETS {
            self.mask = 2 * sets - 1;
            self.evictions = 0;
        }
    }

    fn next_victim(&mut self, key: FlowKey) -> usize {
        self.victim = (self.victim + 1) % 4;
        let (first, second) = self.places(key);
        let set = if self.victim < 2 { first } else { second };
        set + self.victim % 2 * SLOT_WORDS
    }

    /// Where a key can be remembered without another live flow having to go: where it is, or where a verdict's time is up.
    fn free_slot(&self, key: FlowKey) -> Option<usize> {
        let (first, second) = self.places(key);
        let slots = || {
            [first, second]
                .into_iter()
                .flat_map(|set| [set, set + SLOT_WORDS])
                .filter_map(|place| Some((place, self.slot(place)?)))
        };
        let same = slots().find(|(_, slot)| slot.key == key);
        let free = same.or_else(|| slots().find(|(_, slot)| self.now_ms >= slot.valid_until_ms));
        free.map(|(place, _)| place)
    }

    /// The key's slot in the set that starts at word `set`.
    #[inline]
    fn find(&self, set: usize, key: FlowKey) -> Option<Slot> {
        let words = self.words.get(set..set + SET_WORDS)?;
        let &[_, _, _, _, low, high, _, _] = words.first_chunk()?;
        // Which of the two it is cannot be predicted, so it is computed: a wrong guess would wait for the cache line.
        let at = usize::from((low ^ key.low) | (high ^ key.high) == 0) * SLOT_WORDS;
        let slot = Slot::of(*words.get(at..)?.first_chunk()?);
        (slot.key == key).then_some(slot)
    }

    fn slot(&self, place: usize) -> Option<Slot> {
        let words = self.words.get(place..)?;
        Some(Slot::of(*words.first_chunk()?))
    }

    /// Where the two sets of a key start.
    #[inline]
    fn places(&self, key: FlowKey) -> (usize, usize) {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(key.low);
        hasher.write_u64(key.high);
        let hash = hasher.finish();
        let place = |bits: u64| self.skip + (bits as usize & self.mask) * SET_WORDS;
        (place(hash), place(hash >> 32))
    }
}

/// A verdict and its two epoch buckets in 64 bits, low to high: kind (2 bits), tag or edit (2), stacking (1), unused (3), port,
/// domain or reason (16), TCI (16), source bucket (12), destination bucket (12).
#[derive(Clone, Copy)]
struct PackedVerdict(u64);

const KIND_DROP: u64 = 0;
const KIND_OUTPUT: u64 = 1;
const KIND_FLOOD: u64 = 2;

impl PackedVerdict {
    /// `None` for a verdict that refers to what is there for one batch alone.
    fn new(verdict: Verdict, on: &Dependencies) -> Option<Self> {
        let (kind, variant, stacking, value, tci) = match verdict {
            Verdict::Drop(reason) => (KIND_DROP, 0, 0, reason.index() as u64, Tci(0)),
            Verdict::Copies(_)
            | Verdict::Output {
                edit: HeaderEdit::List(_),
                ..
            } => return None,
            Verdict::Output {
                port,
                edit: HeaderEdit::Vlan(edit),
            } => {
                let (variant, tci) = match edit {
                    VlanEdit::None => (0, Tci(0)),
                    VlanEdit::Pop => (1, Tci(0)),
                    VlanEdit::Push(tci) => (2, tci),
                    VlanEdit::Retag(tci) => (3, tci),
                };
                (KIND_OUTPUT, variant, 0, u64::from(port.get()), tci)
            }
            Verdict::Flood(Flood {
                domain,
                tag,
                stacking,
                ..
            }) => {
                let (variant, tci) = match tag {
                    FrameTag::Untagged => (0, Tci(0)),
                    FrameTag::Priority(tci) => (1, tci),
                    FrameTag::Tagged(tci) => (2, tci),
                };
                (
                    KIND_FLOOD,
                    variant,
                    u64::from(stacking == TagStacking::Stacked),
                    u64::from(domain.get()),
                    tci,
                )
            }
        };
        let decision = kind | variant << 2 | stacking << 4 | value << 8 | u64::from(tci.0) << 24;
        Some(Self(
            decision | on.source.get() << 40 | on.destination.get() << 52,
        ))
    }

    #[inline]
    fn buckets(self) -> (EpochBucket, EpochBucket) {
        (
            EpochBucket::from_low_bits(self.0 >> 40),
            EpochBucket::from_low_bits(self.0 >> 52),
        )
    }

    #[inline]
    fn verdict(self, in_port: PortId) -> Verdict {
        let Self(bits) = self;
        let value = (bits >> 8) as u16;
        let tci = Tci((bits >> 24) as u16);
        let variant = bits >> 2 & 3;
        match bits & 3 {
            // Nearly all frames.
            KIND_OUTPUT if variant == 0 => Verdict::Output {
                port: PortId::from_low_bits(value),
                edit: HeaderEdit::NONE,
            },
            KIND_OUTPUT => {
                let edit = match variant {
                    1 => VlanEdit::Pop,
                    2 => VlanEdit::Push(tci),
                    _ => VlanEdit::Retag(tci),
                };
                Verdict::Output {
                    port: PortId::from_low_bits(value),
                    edit: HeaderEdit::Vlan(edit),
                }
            }
            KIND_FLOOD => {
                let tag = match variant {
                    0 => FrameTag::Untagged,
                    1 => FrameTag::Priority(tci),
                    _ => FrameTag::Tagged(tci),
                };
                let stacking = if bits >> 4 & 1 != 0 {
                    TagStacking::Stacked
                } else {
                    TagStacking::Single
                };
                Verdict::Flood(Flood {
                    in_port,
                    domain: BroadcastDomain::from_low_bits(value),
                    tag,
                    stacking,
                })
            }
            _ => Verdict::Drop(
                DropReason::ALL
                    .get(usize::from(value))
                    .copied()
                    .unwrap_or(DropReason::NoDestination),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::control::PortNames;
    use crate::flow_list::ListedFlow;

    fn key(number: u64) -> FlowKey {
        FlowKey {
            low: 0x0100_5452 | number << 48,
            high: number >> 16,
        }
    }

    fn verdict(number: u64) -> Verdict {
        Verdict::Output {
            port: PortId::from_low_bits(number as u16),
            edit: HeaderEdit::NONE,
        }
    }

    fn dependencies(number: u64) -> Dependencies {
        Dependencies {
            source: EpochBucket::from_low_bits(1),
            destination: EpochBucket::from_low_bits(2 + number % 2),
            mac_epochs: 0,
            valid_until: Millis(1000),
        }
    }

    /// How many of `flows` are found, each with its own verdict, when each comes up twice.
    fn found_at_the_second_pass(cache: &mut FlowCache, flows: u64) -> usize {
        let epochs = MacEpochs::new();
        let mut found = 0;
        for pass in 0..2 {
            for number in 0..flows {
                match cache.get(key(number), 0, &epochs) {
                    Some(remembered) => {
                        assert_eq!(remembered, verdict(number));
                        found += pass;
                    }
                    None => cache.insert(key(number), verdict(number), 0, &dependencies(number)),
                }
            }
        }
        found
    }

    struct NoNames;

    impl PortNames for NoNames {
        fn id(&self, _: &str) -> Option<PortId> {
            None
        }

        fn name(&self, _: PortId) -> Option<String> {
            None
        }
    }

    /// Before and after a change of some stations, and when time has passed.
    fn lists_what_it_finds(cache: &FlowCache, flows: u64) {
        let epochs = MacEpochs::new();
        let mut found = [0; 3];
        for (round, found) in (0..).zip(&mut found) {
            if round == 1 {
                epochs.advance(EpochBucket::from_low_bits(2));
            }
            let now = cache
                .started
                .after(Millis(u64::from(cache.now_ms) + round / 2 * 2000));
            let mut walk = FlowWalk::new(None, 1 << 18);
            while !walk.has_ended() {
                walk.begin_step();
                cache.list(&mut walk, now, 0, &epochs);
            }
            let listed = walk.take(None, &NoNames);
            let name = |(_, flow): (PortId, ListedFlow)| flow.r#match;
            let mut listed: Vec<_> = listed.into_iter().map(name).collect();
            listed.sort();
            let held = |number: &u64| round < 2 && cache.get(key(*number), 0, &epochs).is_some();
            let addresses = |number: u64| {
                let (key, text) = (key(number), str::to_owned);
                BTreeMap::from([
                    (text("ethernet.dst"), key.destination().to_string()),
                    (text("ethernet.src"), key.source().to_string()),
                ])
            };
            let mut expected: Vec<_> = (0..flows).filter(held).map(addresses).collect();
            expected.sort();
            *found = listed.len();
            assert!(
                listed == expected,
                "{} and {}",
                listed.len(),
                expected.len()
            );
        }
        let [all, after_change, later] = found;
        assert!(
            all > 90_000 && (1..all).contains(&after_change),
            "{found:?}"
        );
        assert_eq!(later, 0);
    }

    #[test]
    fn sets_are_whole_cache_lines() {
        let cache = FlowCache::new(1);
        for number in 0..100 {
            let first = &cache.words[cache.places(key(number)).0];
            assert_eq!(std::ptr::from_ref(first).addr() % 64, 0);
        }
        assert!(cache.skip + (MOST_SETS * SET_WORDS) <= cache.words.len());
    }

    #[test]
    fn a_hundred_thousand_flows_fit_and_few_use_few_sets() {
        let mut cache = FlowCache::new(1);
        assert!(found_at_the_second_pass(&mut cache, 100) >= 90);
        assert!(cache.mask < 4 * FIRST_SETS);
        // The first pass takes all sets into use; what it had to forget meanwhile, later ones find.
        for _ in 0..3 {
            found_at_the_second_pass(&mut cache, 100_000);
        }
        let found = found_at_the_second_pass(&mut cache, 100_000);
        assert!(found > 95_000, "{found}");
        assert_eq!(cache.mask, MOST_SETS - 1);
        // What is listed is what is found: nothing twice, nothing that was left behind or does not hold.
        lists_what_it_finds(&cache, 100_000);
        // However many there are, it stays within its bounds.
        found_at_the_second_pass(&mut cache, 400_000);
        assert_eq!(cache.mask, MOST_SETS - 1);
    }
}
