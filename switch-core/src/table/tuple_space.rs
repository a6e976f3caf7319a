//! The index of exact, ternary, range and optional keys: tuple space search (Srinivasan et al., SIGCOMM 1999).
//!
//! Entries with the same mask form a group, and a group is one hash look-up of the masked key. Groups are tried from the one with
//! the best entry on; when what was found beats the best entry of the next group, no other group is tried.
//!
//! **Ranges.** One value, or one prefix, is a mask like any other. Any other range is left to a comparison, as long as few entries
//! share the rest of their key; beyond [`MOST_COMPARED`] of them, entries are put into the index once for each prefix of their
//! range instead. Of several such ranges in one key, so many are taken apart as give at most [`MOST_PREFIXES`]. So there is never
//! a long list to compare; a key that would need one is refused.

use std::collections::{BTreeMap, HashMap};

use super::Epoch;
use super::buckets::Buckets;
use super::error::TableError;
use super::index::{Plan, Wanted};
use super::key::{CanonicalKey, Matcher};
use super::layout::{and, or_into};
use super::range;
use super::seed::Seed;
use super::shape::MAX_FIELDS;
use super::version::{FOREVER, Versions};

/// Entries that differ only in range or priority and are told apart one by one, before their ranges are taken apart.
const MOST_COMPARED: usize = 16;
/// Entries that differ only in priority, or in a range that could not be taken apart.
const MOST_OVERLAPS: usize = 256;
/// Prefixes that stand for one entry.
const MOST_PREFIXES: usize = 128;

/// Priority and specificity.
type Rank = (i32, u16);

/// Where a key is in the index.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place<const W: usize> {
    pub(super) value: [u64; W],
    pub(super) mask: [u64; W],
    /// The fields, a bit each, whose ranges are left to a comparison.
    compared: u16,
}

impl<const W: usize> Place<W> {
    /// The only one that a key without ranges can have.
    pub(super) fn of_prefix(plan: &Plan, key: &CanonicalKey) -> Self {
        let (values, masks) = plan.layout.values_and_masks(key);
        Self {
            value: plan.layout.pack(&values),
            mask: plan.layout.pack(&masks),
            compared: 0,
        }
    }
}

struct Group<const W: usize> {
    mask: [u64; W],
    compared: u16,
    /// How many versions have each rank.
    ranks: BTreeMap<Rank, u32>,
    /// The best of them, as the order has it.
    best: Option<Rank>,
}

/// A group as a lookup needs it.
struct Tried<const W: usize> {
    mask: [u64; W],
    /// The fields whose ranges are compared.
    compared: [u64; W],
    /// The best rank in the group. Specificity is the mask's when there are no ranges.
    best: Rank,
    class: u32,
    has_ranges: bool,
}

/// The groups, and the buckets that they share.
pub(super) struct TupleSpace<const W: usize> {
    buckets: Buckets,
    groups: Vec<Option<Group<W>>>,
    by_mask: HashMap<([u64; W], u16), u32>,
    /// From the best on.
    order: Vec<Tried<W>>,
    max_groups: usize,
    seed: Seed,
}

impl<const W: usize> TupleSpace<W> {
    pub(super) fn new(max_groups: usize, seed: Seed) -> Self {
        Self {
            buckets: Buckets::new(),
            groups: Vec::new(),
            by_mask: HashMap::new(),
            order: Vec::new(),
            max_groups,
            seed,
        }
    }

    /// The best version that is seen and matches. Adds to `looked` the bits that this depended on.
    #[inline]
    pub(super) fn lookup<A>(
        &self,
        plan: &Plan,
        versions: &Versions<A, W>,
        wanted: &Wanted<'_, W>,
        looked: &mut [u64; W],
    ) -> Option<u32> {
        let mut found: Option<(u32, Rank)> = None;
        for group in &self.order {
            if found.is_some_and(|(_, rank)| rank > group.best) {
                break;
            }
            or_into(looked, &group.mask);
            let key = and(&wanted.words, &group.mask);
            let hash = self.seed.hash(group.class, &key);
            let mut at = self.buckets.first(hash);
            while let Some(version) = versions.get(at) {
                let index = at;
                at = version.next;
                if version.hash != hash
                    || version.class != group.class
                    || version.key != key
                    || !version.is_seen_at(wanted.at)
                {
                    continue;
                }
                let mut rank = (version.priority, group.best.1);
                if group.has_ranges {
                    or_into(looked, &group.compared);
                    let Some(specificity) = in_ranges(plan, versions, index, wanted.values) else {
                        continue;
                    };
                    rank.1 = specificity;
                }
                let wins = match found {
                    None => true,
                    Some((_, best)) if rank != best => rank > best,
                    Some((other, _)) => self.beats(plan, versions, index, other),
                };
                if wins {
                    found = Some((index, rank));
                }
                // The others of this key come after it in rank.
                break;
            }
        }
        found.map(|(index, _)| index)
    }

    /// Of two versions with the same rank.
    #[cold]
    fn beats<A>(&self, plan: &Plan, versions: &Versions<A, W>, one: u32, other: u32) -> bool {
        match (
            self.key_of(plan, versions, one),
            self.key_of(plan, versions, other),
        ) {
            (Some(one), Some(other)) => one.precedence(&other).is_gt(),
            _ => false,
        }
    }

    /// The key of a version.
    pub(super) fn key_of<A>(
        &self,
        plan: &Plan,
        versions: &Versions<A, W>,
        index: u32,
    ) -> Option<CanonicalKey> {
        let group = self.group(versions.get(index)?.class)?;
        Self::key_in(plan, versions, index, &group.mask)
    }

    /// The key of a version in a group of this mask.
    fn key_in<A>(
        plan: &Plan,
        versions: &Versions<A, W>,
        index: u32,
        mask: &[u64; W],
    ) -> Option<CanonicalKey> {
        let version = versions.get(index)?;
        let (mut values, mut masks) = ([0; MAX_FIELDS], [0; MAX_FIELDS]);
        plan.layout.unpack_into(&version.key, &mut values);
        plan.layout.unpack_into(mask, &mut masks);
        let mut matchers = [Matcher::Any; MAX_FIELDS];
        let mut specificity = 0;
        for ((matcher, &field), (value, mask)) in matchers
            .iter_mut()
            .zip(plan.shape.key())
            .zip(values.into_iter().zip(masks))
        {
            *matcher = Matcher::of_masked(field, value, mask);
            specificity += matcher.specificity(field) as u16;
        }
        if let Some(ranges) = versions.ranges(index) {
            for &(field, low, high) in &ranges.bounds {
                if let Some(matcher) = matchers.get_mut(field) {
                    *matcher = Matcher::Range { low, high };
                }
            }
            specificity = ranges.specificity;
        }
        Some(
            plan.shape
                .canonical_of(matchers, version.priority, specificity),
        )
    }

    /// The version with this key that is seen.
    pub(super) fn find<A>(
        &self,
        plan: &Plan,
        versions: &Versions<A, W>,
        key: &CanonicalKey,
        at: Epoch,
    ) -> Option<u32> {
        let compact = compact(plan, key);
        self.find_at(versions, &compact, key, at).or_else(|| {
            let first = expanded(plan, key).into_iter().next()?;
            (compact.compared != 0)
                .then(|| self.find_at(versions, &first, key, at))
                .flatten()
        })
    }

    fn find_at<A>(
        &self,
        versions: &Versions<A, W>,
        place: &Place<W>,
        key: &CanonicalKey,
        at: Epoch,
    ) -> Option<u32> {
        let class = *self.by_mask.get(&(place.mask, place.compared))?;
        self.same(versions, class, &place.value).find(|&index| {
            versions.get(index).is_some_and(|version| {
                version.priority == key.priority
                    && version.is_seen_at(at)
                    && versions
                        .ranges(index)
                        .is_none_or(|ranges| ranges.bounds.iter().copied().eq(key.ranges()))
            })
        })
    }

    /// All versions with this masked key.
    fn same<'a, A>(
        &self,
        versions: &'a Versions<A, W>,
        class: u32,
        value: &'a [u64; W],
    ) -> impl Iterator<Item = u32> + use<'a, A, W> {
        let mut at = self.buckets.first(self.seed.hash(class, value));
        std::iter::from_fn(move || {
            loop {
                let index = at;
                let version = versions.get(index)?;
                at = version.next;
                if version.class == class && version.key == *value {
                    return Some(index);
                }
            }
        })
    }

    /// Where to put a new key: in one place, or in several for its ranges. Refuses what would make lookups slow.
    pub(super) fn places<A>(
        &self,
        plan: &Plan,
        versions: &Versions<A, W>,
        key: &CanonicalKey,
    ) -> Result<Vec<Place<W>>, TableError> {
        let compact = compact(plan, key);
        let mut places = vec![compact];
        if compact.compared != 0 && self.overlaps(versions, &compact) >= MOST_COMPARED {
            places = expanded(plan, key);
        }
        let is_new = |place: &Place<W>| !self.by_mask.contains_key(&(place.mask, place.compared));
        let mut masks: Vec<_> = places.iter().filter(|place| is_new(place)).collect();
        if !masks.is_empty() {
            masks.sort_unstable_by_key(|place| place.mask);
            masks.dedup_by_key(|place| place.mask);
            if self.order.len() + masks.len() > self.max_groups {
                return Err(TableError::TooManyMasks {
                    limit: self.max_groups,
                });
            }
        }
        let is_crowded = |place| self.overlaps(versions, place) >= MOST_OVERLAPS;
        if plan.shape.has_priority() && places.iter().any(is_crowded) {
            return Err(TableError::TooManyOverlaps {
                limit: MOST_OVERLAPS,
            });
        }
        Ok(places)
    }

    /// Entries that have this masked key and have not ended.
    fn overlaps<A>(&self, versions: &Versions<A, W>, place: &Place<W>) -> usize {
        let Some(&class) = self.by_mask.get(&(place.mask, place.compared)) else {
            return 0;
        };
        self.same(versions, class, &place.value)
            .filter(|&index| {
                versions
                    .get(index)
                    .is_some_and(|version| version.to == FOREVER)
            })
            .count()
    }

    /// Puts a version of a key at one of its places.
    pub(super) fn link<A>(
        &mut self,
        plan: &Plan,
        versions: &mut Versions<A, W>,
        index: u32,
        (key, place): (&CanonicalKey, &Place<W>),
    ) {
        let class = match self.by_mask.get(&(place.mask, place.compared)) {
            Some(&class) => class,
            None => self.add_group(plan, place),
        };
        let Some(version) = versions.get_mut(index) else {
            return;
        };
        version.class = class;
        version.hash = self.seed.hash(class, &place.value);
        let rank = (version.priority, key.specificity);
        let (first, value) = (plan.shape.has_priority(), place.value);
        let goes_first = |versions: &Versions<A, W>, other: u32| {
            first
                && versions.get(other).is_some_and(|other| {
                    other.class == class && other.key == value && other.priority >= key.priority
                })
                && Self::key_in(plan, versions, other, &place.mask)
                    .is_some_and(|other| other.precedence(key).is_gt())
        };
        self.buckets.link(versions, index, goes_first);
        if let Some(group) = self.group_mut(class) {
            *group.ranks.entry(rank).or_default() += 1;
        }
        self.reorder(class);
    }

    /// Takes a version out.
    pub(super) fn unlink<A>(&mut self, plan: &Plan, versions: &mut Versions<A, W>, index: u32) {
        let (Some(version), Some(key)) = (versions.get(index), self.key_of(plan, versions, index))
        else {
            return;
        };
        let (class, rank) = (version.class, (key.priority, key.specificity));
        self.buckets.unlink(versions, index);
        if let Some(group) = self.group_mut(class)
            && let Some(count) = group.ranks.get_mut(&rank)
        {
            *count -= 1;
            if *count == 0 {
                group.ranks.remove(&rank);
            }
        }
        self.reorder(class);
    }

    fn group(&self, class: u32) -> Option<&Group<W>> {
        self.groups.get(class as usize)?.as_ref()
    }

    fn group_mut(&mut self, class: u32) -> Option<&mut Group<W>> {
        self.groups.get_mut(class as usize)?.as_mut()
    }

    /// A group without versions, which is tried last until it has one.
    fn add_group(&mut self, plan: &Plan, place: &Place<W>) -> u32 {
        let &Place { mask, compared, .. } = place;
        let group = Group {
            mask,
            compared,
            ranks: BTreeMap::new(),
            best: None,
        };
        let class = match self.groups.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.groups.push(None);
                self.groups.len() - 1
            }
        };
        if let Some(free) = self.groups.get_mut(class) {
            *free = Some(group);
        }
        let class = class as u32;
        self.by_mask.insert((mask, compared), class);
        let mut at = 0..;
        self.order.push(Tried {
            mask,
            compared: plan.layout.mask_of(|_| {
                let field = at.next().unwrap_or(0);
                compared >> field & 1 != 0
            }),
            best: (i32::MIN, 0),
            class,
            has_ranges: plan.has_ranges(),
        });
        class
    }

    /// Puts a group where its best rank belongs, and away when it is empty.
    fn reorder(&mut self, class: u32) {
        let Some(group) = self.group_mut(class) else {
            return;
        };
        let best = group.ranks.last_key_value().map(|(&rank, _)| rank);
        if group.best == best {
            return;
        }
        group.best = best;
        let (mask, compared) = (group.mask, group.compared);
        let Some(at) = self.order.iter().position(|tried| tried.class == class) else {
            return;
        };
        match best {
            Some(best) => {
                let mut tried = self.order.remove(at);
                tried.best = best;
                let to = self.order.partition_point(|other| other.best >= best);
                self.order.insert(to, tried);
            }
            None => {
                self.order.remove(at);
                self.by_mask.remove(&(mask, compared));
                if let Some(place) = self.groups.get_mut(class as usize) {
                    *place = None;
                }
            }
        }
    }
}

/// The specificity of a version whose ranges all hold the values.
#[inline]
fn in_ranges<A, const W: usize>(
    plan: &Plan,
    versions: &Versions<A, W>,
    index: u32,
    values: &[u128],
) -> Option<u16> {
    let ranges = versions.ranges(index)?;
    let holds = ranges.bounds.iter().all(|&(field, low, high)| {
        let value = values.get(field).copied().unwrap_or(0);
        let ones = plan.shape.key().get(field).map_or(0, |field| field.ones());
        (low..=high).contains(&(value & ones))
    });
    holds.then_some(ranges.specificity)
}

/// A key in one place: ranges that are no prefix are compared.
fn compact<const W: usize>(plan: &Plan, key: &CanonicalKey) -> Place<W> {
    let (mut values, mut masks) = plan.layout.values_and_masks(key);
    let mut compared = 0;
    for (field, low, high) in key.ranges() {
        match range_prefixes(plan, field, low, high).as_slice() {
            &[(value, mask)] => set(&mut values, &mut masks, field, (value, mask)),
            _ => compared |= 1 << field,
        }
    }
    Place {
        value: plan.layout.pack(&values),
        mask: plan.layout.pack(&masks),
        compared,
    }
}

/// A key in a place for each combination of its ranges' prefixes; ranges that would make too many are compared.
fn expanded<const W: usize>(plan: &Plan, key: &CanonicalKey) -> Vec<Place<W>> {
    let (values, masks) = plan.layout.values_and_masks(key);
    let mut ranges: Vec<_> = key
        .ranges()
        .map(|(field, low, high)| (field, range_prefixes(plan, field, low, high)))
        .collect();
    ranges.sort_by_key(|(_, prefixes)| prefixes.len());
    let mut compared = 0;
    let mut all = vec![(values, masks)];
    for (field, prefixes) in ranges {
        if all.len() * prefixes.len() > MOST_PREFIXES {
            compared |= 1 << field;
            continue;
        }
        let each = |(values, masks)| {
            prefixes.iter().map(move |&prefix| {
                let (mut values, mut masks) = (values, masks);
                set(&mut values, &mut masks, field, prefix);
                (values, masks)
            })
        };
        all = all.into_iter().flat_map(each).collect();
    }
    let place = |(values, masks): ([u128; MAX_FIELDS], [u128; MAX_FIELDS])| Place {
        value: plan.layout.pack(&values),
        mask: plan.layout.pack(&masks),
        compared,
    };
    all.into_iter().map(place).collect()
}

fn range_prefixes(plan: &Plan, field: usize, low: u128, high: u128) -> Vec<(u128, u128)> {
    let bits = plan.shape.key().get(field).map_or(128, |field| field.bits);
    range::prefixes(low, high, u32::from(bits))
}

fn set(
    values: &mut [u128; MAX_FIELDS],
    masks: &mut [u128; MAX_FIELDS],
    field: usize,
    prefix: (u128, u128),
) {
    if let (Some(value), Some(mask)) = (values.get_mut(field), masks.get_mut(field)) {
        (*value, *mask) = prefix;
    }
}
