//! A worker's memory of finished verdicts: a fixed, exact, two-way associative array.
//!
//! Owned by one pipeline, so by one worker; never locked, never grown, never swept. Both slots of a set share a cache line: a hit
//! costs one hash, one line, and two reads of epoch counters. A slot is valid while the port tables and the epochs of its two
//! stations are those it was made under, and until its time is up; anything else is a miss, so a change that was acknowledged is
//! never answered from here.
//!
//! The three counters are remembered as their sum: none ever goes back, so the sum differs as soon as one of them does.

use std::hash::{BuildHasher, Hasher};

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;

use crate::drop_reason::DropReason;
use crate::flow_key::FlowKey;
use crate::mac_table::{EpochBucket, MacEpochs};
use crate::port::PortId;
use crate::program::Dependencies;
use crate::time::Millis;
use crate::verdict::{Flood, FrameTag, TagStacking, Verdict};
use crate::vlan::{BroadcastDomain, Tci};
use crate::vlan_edit::VlanEdit;

/// Sets of two slots of 32 bytes: 1 MiB, of which only the lines of live flows are ever touched.
const SETS: usize = 1 << 14;
/// After this long the cache is emptied and its clock starts again at zero, so that 32 bits are enough for it.
const CLOCK_SPAN: Millis = Millis(1 << 30);

#[derive(Clone, Copy)]
struct Slot {
    key: FlowKey,
    /// Sum of the port tables' epoch and the two stations' epochs.
    version: u32,
    /// In milliseconds since `started`; 0 in an empty slot, which so is never valid.
    valid_until_ms: u32,
    packed: PackedVerdict,
}

impl Slot {
    const EMPTY: Self = Self {
        key: FlowKey { low: 0, high: 0 },
        version: 0,
        valid_until_ms: 0,
        packed: PackedVerdict(0),
    };
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Set([Slot; 2]);

pub(crate) struct FlowCache {
    sets: Box<[Set]>,
    hasher: SeedableRandomState,
    started: Millis,
    now_ms: u32,
    /// Which slot of a set goes next, when neither is stale.
    victim: usize,
}

impl FlowCache {
    /// An empty cache; `seed` differs between processes, so that nobody can tell which flows share a set.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            sets: vec![Set([Slot::EMPTY; 2]); SETS].into_boxed_slice(),
            hasher: SeedableRandomState::with_seed(seed, SharedSeed::global_random()),
            started: Millis(0),
            now_ms: 0,
            victim: 0,
        }
    }

    /// Sets the time that validity is judged by.
    pub(crate) fn set_time(&mut self, now: Millis) {
        if now.since(self.started) >= CLOCK_SPAN || now < self.started {
            self.sets.fill(Set([Slot::EMPTY; 2]));
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
        let set = self.sets.get(self.set_index(key))?;
        let slot = set.0.iter().find(|slot| slot.key == key)?;
        let (source, destination) = slot.packed.buckets();
        let version = tables_epoch
            .wrapping_add(epochs.get(source))
            .wrapping_add(epochs.get(destination));
        (slot.version == version && self.now_ms < slot.valid_until_ms)
            .then(|| slot.packed.verdict(key.in_port()))
    }

    /// Whether remembering this key takes the place of another flow whose time is not up.
    pub(crate) fn would_evict(&self, key: FlowKey) -> bool {
        let now_ms = self.now_ms;
        let set = self.sets.get(self.set_index(key));
        set.is_some_and(|set| {
            set.0
                .iter()
                .all(|slot| slot.key != key && now_ms < slot.valid_until_ms)
        })
    }

    /// Remembers a verdict.
    pub(crate) fn insert(
        &mut self,
        key: FlowKey,
        verdict: Verdict,
        tables_epoch: u32,
        on: &Dependencies,
    ) {
        let now_ms = self.now_ms;
        self.victim ^= 1;
        let victim = self.victim;
        let index = self.set_index(key);
        let Some(Set(slots)) = self.sets.get_mut(index) else {
            return;
        };
        let place = slots
            .iter()
            .position(|slot| slot.key == key)
            .or_else(|| slots.iter().position(|slot| now_ms >= slot.valid_until_ms))
            .unwrap_or(victim);
        if let Some(slot) = slots.get_mut(place) {
            *slot = Slot {
                key,
                version: tables_epoch.wrapping_add(on.mac_epochs),
                valid_until_ms: u32::try_from(on.valid_until.since(self.started).0)
                    .unwrap_or(u32::MAX),
                packed: PackedVerdict::new(verdict, on),
            };
        }
    }

    #[inline]
    fn set_index(&self, key: FlowKey) -> usize {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(key.low);
        hasher.write_u64(key.high);
        hasher.finish() as usize % SETS
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
    fn new(verdict: Verdict, on: &Dependencies) -> Self {
        let (kind, variant, stacking, value, tci) = match verdict {
            Verdict::Drop(reason) => (KIND_DROP, 0, 0, reason.index() as u64, Tci(0)),
            Verdict::Output { port, edit } => {
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
        Self(decision | on.source.get() << 40 | on.destination.get() << 52)
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
            KIND_OUTPUT => {
                let edit = match variant {
                    0 => VlanEdit::None,
                    1 => VlanEdit::Pop,
                    2 => VlanEdit::Push(tci),
                    _ => VlanEdit::Retag(tci),
                };
                Verdict::Output {
                    port: PortId::from_low_bits(value),
                    edit,
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
