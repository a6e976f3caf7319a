//! Which change counters a table's lookups depend on and its changes bump.

use std::sync::Arc;

use super::MatchKind;
use super::buckets::NONE;
use super::counters::{ChangeCounters, CounterRange, Dependencies};
use super::index::Plan;
use super::layout::{and, first_bits};
use super::seed::Seed;
use super::version::Version;

/// Which change counters are for what.
pub(super) struct CounterPlan<const W: usize> {
    counters: Arc<ChangeCounters>,
    range: CounterRange,
    seed: Seed,
    /// The part of a key whose hash chooses its counter.
    mask: [u64; W],
    /// In a longest-prefix table: shorter ones have the first counter.
    shortest: Option<u32>,
}

impl<const W: usize> CounterPlan<W> {
    pub(super) fn new(
        plan: &Plan,
        counters: Arc<ChangeCounters>,
        range: CounterRange,
        seed: Seed,
    ) -> Self {
        let mut fields = plan.shape.key().iter();
        let prefix = fields.find(|field| field.kind == MatchKind::Lpm);
        let prefix = prefix.filter(|_| plan.shape.by_longest_prefix());
        let shortest = prefix.map(|field| {
            // A /16 of IPv4 and a /48 of IPv6 are what one tenant or site tends to have.
            let bits = u32::from(field.bits);
            let told_apart = if bits > 64 { bits * 3 / 8 } else { bits / 2 };
            plan.layout.exact_bits() + told_apart
        });
        let mask = match shortest {
            Some(bits) => first_bits(bits),
            None => plan.layout.mask_of(|field| field.kind == MatchKind::Exact),
        };
        Self {
            counters,
            range,
            seed,
            mask,
            shortest: shortest.filter(|_| range.count > 1),
        }
    }

    /// The counter of a key with these words.
    #[inline]
    fn counter(&self, words: &[u64; W]) -> u32 {
        let hash = u64::from(self.seed.hash(NONE, &and(words, &self.mask)));
        let keep = u32::from(self.shortest.is_some());
        let scaled = (hash * u64::from(self.range.count - keep)) >> 32;
        self.range.first + keep + scaled as u32
    }

    #[inline]
    pub(super) fn depend(&self, words: &[u64; W], on: &mut Dependencies) {
        on.depend_on(&self.counters, self.counter(words));
        if self.shortest.is_some() {
            on.depend_on(&self.counters, self.range.first);
        }
    }

    /// The bits of a key that say which counters its lookups depend on. A result holds for keys that are the same in these only.
    #[inline]
    pub(super) fn told_apart(&self) -> [u64; W] {
        self.mask
    }

    /// What a lookup in an empty table depends on, whatever the key: that nothing is added.
    #[inline]
    pub(super) fn depend_on_emptiness(&self, on: &mut Dependencies) {
        on.depend_on(&self.counters, self.range.first);
    }

    pub(super) fn bump_emptiness(&self) {
        self.counters.bump(self.range.first);
    }

    pub(super) fn bump<A>(&self, version: &Version<A, W>) {
        let index = match self.shortest {
            Some(shortest) if version.class < shortest => self.range.first,
            _ => self.counter(&version.key),
        };
        self.counters.bump(index);
    }
}
