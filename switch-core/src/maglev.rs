//! Weighted choice by a flow's hash: the same flow gets the same member, and a change of members moves few flows.
//!
//! Two ways, for two uses:
//!
//! * [`Maglev`] is a pure function of the members: every host that knows them has the same table, whatever happened before. A change
//!   moves the changed member's share and a few percent more. For load balancing, where connection tracking keeps those few.
//! * [`WeightedGroup`] is changed in place of being made anew: a member's removal moves its own flows and no others, its arrival
//!   only those it gets. For ECMP without connection tracking.
//!
//! Both are read-only while in use; whoever changes members makes a new one and swaps it in.
//!
//! The population algorithm is that of Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016),
//! §3.4, with the members' turns spread by weight.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde::{Deserialize, Serialize};

/// Who may be chosen: a back-end, a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(pub u32);

/// A member and its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its id, unique in its group.
    pub id: MemberId,
    /// Its share, relative to the others'. 0: it is chosen by no flow.
    pub weight: u16,
}

/// Why a group was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The table's size is of no use.
    #[error("a table of {0} entries is not possible: give a prime from 2 to {max}", max = TableSize::MAX)]
    TableSize(u32),
    /// More members than entries, so some would never be chosen.
    #[error("{members} members do not fit a table of {entries} entries: give a larger table")]
    TooManyMembers {
        /// Members with a weight.
        members: usize,
        /// Entries of the table.
        entries: u32,
    },
    /// A member is there twice.
    #[error("member {} is given twice: add up its weights and give it once", .0.0)]
    Repeated(MemberId),
}

/// Entries of a table: a prime, so that every step through the table comes by all of them. A hundred entries for each member keep the
/// shares within about one percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize(u32);

impl TableSize {
    /// No table is larger.
    pub const MAX: u32 = 1 << 20;
    /// For groups of a few next hops.
    pub const SMALL: Self = Self(1021);
    /// For services with up to some hundred back-ends.
    pub const LARGE: Self = Self(65537);

    /// A table of this many entries.
    ///
    /// # Errors
    ///
    /// When it is not a prime or more than [`TableSize::MAX`].
    pub fn new(entries: u32) -> Result<Self, GroupError> {
        let divisors = (2..).take_while(|&divisor: &u32| divisor * divisor <= entries);
        if (2..=Self::MAX).contains(&entries)
            && !divisors
                .into_iter()
                .any(|divisor| entries.is_multiple_of(divisor))
        {
            Ok(Self(entries))
        } else {
            Err(GroupError::TableSize(entries))
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// What both kinds of group are while in use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    /// Those with a weight, by id.
    members: Box<[Member]>,
    /// Positions in `members`. Empty when there are none.
    entries: Box<[u16]>,
}

/// No position in `members`: an entry that nobody has so far.
const NOBODY: u16 = u16::MAX;

impl Table {
    /// A table of entries that nobody has.
    fn blank(members: &[Member], size: TableSize) -> Result<Self, GroupError> {
        let mut members: Vec<_> = members.iter().filter(|m| m.weight > 0).copied().collect();
        members.sort_unstable_by_key(|member| member.id);
        for pair in members.windows(2) {
            if let [one, other] = pair
                && one.id == other.id
            {
                return Err(GroupError::Repeated(one.id));
            }
        }
        if members.len() > (size.get() as usize).min(usize::from(NOBODY)) {
            return Err(GroupError::TooManyMembers {
                members: members.len(),
                entries: size.get(),
            });
        }
        let entries = if members.is_empty() { 0 } else { size.get() };
        Ok(Self {
            members: members.into(),
            entries: vec![NOBODY; entries as usize].into(),
        })
    }

    #[inline]
    fn select(&self, hash: u64) -> Option<MemberId> {
        // The hash as a fraction of one, times the size: a multiplication instead of a division.
        let position = (u128::from(hash) * self.entries.len() as u128) >> 64;
        self.member_at(position as usize)
    }

    #[inline]
    fn member_at(&self, position: usize) -> Option<MemberId> {
        let member = *self.entries.get(position)?;
        Some(self.members.get(usize::from(member))?.id)
    }
}

/// A table that follows from its members alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maglev(Table);

impl Maglev {
    /// The table of these members. Takes some milliseconds for 65,537 entries.
    ///
    /// # Errors
    ///
    /// When a member is repeated, or there are more than entries.
    pub fn build(members: &[Member], size: TableSize) -> Result<Self, GroupError> {
        let mut table = Table::blank(members, size)?;
        let mut preferences: Vec<_> = table
            .members
            .iter()
            .map(|member| Preference::of(member.id, size))
            .collect();
        let mut turns = Turns::new(&table.members);
        for _ in 0..table.entries.len() {
            let Some(member) = turns.next() else {
                break;
            };
            let Some(preference) = preferences.get_mut(usize::from(member)) else {
                break;
            };
            // While an entry is free, a member's preferences come by it before they repeat.
            for _ in 0..table.entries.len() {
                if let Some(entry) = table.entries.get_mut(preference.next())
                    && *entry == NOBODY
                {
                    *entry = member;
                    break;
                }
            }
        }
        Ok(Self(table))
    }

    /// The member for a flow of this hash, all of whose bits should be good. `None` when no member has a weight.
    #[inline]
    pub fn select(&self, hash: u64) -> Option<MemberId> {
        self.0.select(hash)
    }

    /// Who has each entry, for tests and for showing.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Option<MemberId>> + '_ {
        (0..self.0.entries.len()).map(|position| self.0.member_at(position))
    }
}

/// The order in which a member would like the entries: all of them, in steps of a length of its own.
struct Preference {
    position: u32,
    step: u32,
    size: u32,
}

impl Preference {
    /// Follows from the id alone, so that every host and every start makes the same table.
    fn of(id: MemberId, size: TableSize) -> Self {
        let size = size.get();
        let one = mix(u64::from(id.0));
        let other = mix(one ^ 0x5bf0_3635_dcf3_8f8b);
        Self {
            position: (one % u64::from(size)) as u32,
            step: (other % u64::from(size - 1)) as u32 + 1,
            size,
        }
    }

    fn next(&mut self) -> usize {
        let position = self.position;
        self.position = (position + self.step) % self.size;
        position as usize
    }
}

/// Spreads a number over all bits, one to one: shifts and odd multipliers.
const fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed = (mixed ^ mixed >> 29).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

/// Whose turn it is: of each member as often as its weight says, spread evenly.
struct Turns {
    /// When each is next: turns so far plus one over the weight, in parts of 2^32; and who.
    due: BinaryHeap<Reverse<(u64, u16)>>,
    weights: Vec<u64>,
    turns: Vec<u64>,
}

impl Turns {
    fn new(members: &[Member]) -> Self {
        let weights: Vec<_> = members.iter().map(|m| u64::from(m.weight)).collect();
        let due = weights
            .iter()
            .zip(0_u16..)
            .map(|(&weight, member)| Reverse((due_at(1, weight), member)))
            .collect();
        Self {
            due,
            turns: vec![1; weights.len()],
            weights,
        }
    }

    fn next(&mut self) -> Option<u16> {
        let Reverse((_, member)) = self.due.pop()?;
        let turns = self.turns.get_mut(usize::from(member))?;
        *turns += 1;
        let weight = *self.weights.get(usize::from(member))?;
        self.due.push(Reverse((due_at(*turns, weight), member)));
        Some(member)
    }
}

const fn due_at(turn: u64, weight: u64) -> u64 {
    (turn << 32) / weight
}

/// A table that a change of members changes as little as possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedGroup(Table);

impl WeightedGroup {
    /// A table of these members.
    ///
    /// # Errors
    ///
    /// When a member is repeated, or there are more than entries.
    pub fn new(members: &[Member], size: TableSize) -> Result<Self, GroupError> {
        let mut table = Table::blank(members, size)?;
        let shares = Shares::of(&table);
        let kept = vec![None; table.members.len()];
        fill(&mut table, &shares, &kept);
        Ok(Self(table))
    }

    /// The table after a change of members or weights, of the same size if it had any members. Entries move only from members that
    /// are gone or now have too many, only to members that have too few.
    ///
    /// # Errors
    ///
    /// When a member is repeated, or there are more than entries.
    pub fn changed(&self, members: &[Member], size: TableSize) -> Result<Self, GroupError> {
        let mut table = Table::blank(members, size)?;
        let shares = Shares::of(&table);
        // One more than the share is no reason to move.
        let mut most: Vec<_> = shares.lower.iter().map(|lower| lower + 1).collect();
        let mut kept = self.keep(&mut table, &most);
        let free = table.entries.iter().filter(|e| **e == NOBODY).count();
        let needed = shares.missing(&kept).iter().sum::<usize>();
        if needed > free {
            let over =
                |at: &&usize| kept.get(**at).copied().flatten() > shares.lower.get(**at).copied();
            for &at in shares.by_loss.iter().rev().filter(over).take(needed - free) {
                if let Some(most) = most.get_mut(at) {
                    *most -= 1;
                }
            }
            table.entries.fill(NOBODY);
            kept = self.keep(&mut table, &most);
        }
        fill(&mut table, &shares, &kept);
        Ok(Self(table))
    }

    /// Gives members of `table` what they have in this one, each no more than `most`. How many each has; `None` of new ones.
    fn keep(&self, table: &mut Table, most: &[usize]) -> Vec<Option<usize>> {
        let mut kept = vec![None; table.members.len()];
        for position in scattered(table.entries.len()) {
            let Some(member) = self.0.member_at(position) else {
                continue;
            };
            let Ok(now_at) = table.members.binary_search_by_key(&member, |m| m.id) else {
                continue;
            };
            if let (Some(entry), Some(kept), Some(&most)) = (
                table.entries.get_mut(position),
                kept.get_mut(now_at),
                most.get(now_at),
            ) {
                let has = kept.get_or_insert(0);
                if *has < most {
                    *has += 1;
                    *entry = now_at as u16;
                }
            }
        }
        kept
    }

    /// The member for a flow of this hash, all of whose bits should be good. `None` when no member has a weight.
    #[inline]
    pub fn select(&self, hash: u64) -> Option<MemberId> {
        self.0.select(hash)
    }

    /// Who has each entry, for tests and for showing.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Option<MemberId>> + '_ {
        (0..self.0.entries.len()).map(|position| self.0.member_at(position))
    }
}

/// How many entries each member should have.
struct Shares {
    /// Rounded down, but one at least.
    lower: Vec<usize>,
    /// Members in the order of what they lose by that.
    by_loss: Vec<usize>,
}

impl Shares {
    fn of(table: &Table) -> Self {
        let members = &table.members;
        let total = members.iter().map(|m| u64::from(m.weight)).sum::<u64>();
        let shared = (table.entries.len().saturating_sub(members.len())) as u64;
        let exact = |member: &Member| u64::from(member.weight) * shared;
        let lower = members
            .iter()
            .map(|member| 1 + (exact(member) / total.max(1)) as usize)
            .collect();
        let mut by_loss: Vec<_> = (0..members.len()).collect();
        by_loss.sort_by_key(|&at| Reverse(members.get(at).map_or(0, |m| exact(m) % total.max(1))));
        Self { lower, by_loss }
    }

    /// What each must get. One less than the share is no reason to take from others, but for a new member.
    fn missing(&self, kept: &[Option<usize>]) -> Vec<usize> {
        self.lower
            .iter()
            .zip(kept)
            .map(|(lower, kept)| match kept {
                Some(kept) => lower.saturating_sub(kept + 1),
                None => *lower,
            })
            .collect()
    }
}

/// Gives each free entry to a member: first to those who miss most, then to those who lose most by rounding.
fn fill(table: &mut Table, shares: &Shares, kept: &[Option<usize>]) {
    let missing = shares.missing(kept);
    let short_of_one = |at: usize| {
        let has = kept.get(at).copied().flatten().unwrap_or(0) + missing.get(at).unwrap_or(&0);
        shares.lower.get(at).is_some_and(|lower| has < *lower)
    };
    let at_share = |at: usize| kept.get(at).copied().flatten() <= shares.lower.get(at).copied();
    let mut takers: Vec<usize> = missing
        .iter()
        .enumerate()
        .flat_map(|(at, &count)| std::iter::repeat_n(at, count))
        .collect();
    takers.extend((0..missing.len()).filter(|&at| short_of_one(at)));
    takers.extend(shares.by_loss.iter().filter(|at| at_share(**at)));
    // What rounding may still leave.
    let mut takers = takers
        .into_iter()
        .chain(shares.by_loss.iter().copied().cycle());
    for position in scattered(table.entries.len()) {
        if let Some(entry) = table.entries.get_mut(position)
            && *entry == NOBODY
            && let Some(member) = takers.next()
        {
            *entry = member as u16;
        }
    }
}

/// Every position once: steps of about the golden ratio of the size, which is prime.
fn scattered(entries: usize) -> impl Iterator<Item = usize> {
    let step = (entries * 618 / 1000).max(1);
    (0..entries).map(move |number| number * step % entries)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn members(weights: &[u16]) -> Vec<Member> {
        (10..)
            .zip(weights)
            .map(|(id, &weight)| Member {
                id: MemberId(id),
                weight,
            })
            .collect()
    }

    fn counts(entries: impl Iterator<Item = Option<MemberId>>) -> HashMap<MemberId, usize> {
        let mut counts = HashMap::new();
        for entry in entries {
            *counts.entry(entry.expect("all are given")).or_default() += 1;
        }
        counts
    }

    /// The fraction of entries that a member of this weight should have.
    fn share(members: &[Member], weight: u16) -> f64 {
        let total: u32 = members.iter().map(|member| u32::from(member.weight)).sum();
        f64::from(weight) / f64::from(total)
    }

    #[test]
    fn only_primes_are_table_sizes() {
        for size in [TableSize::SMALL, TableSize::LARGE] {
            assert_eq!(TableSize::new(size.get()), Ok(size));
        }
        for size in [0, 1, 4, 1024, 65_536, 1_048_583] {
            assert_eq!(TableSize::new(size), Err(GroupError::TableSize(size)));
        }
    }

    #[test]
    fn groups_that_make_no_sense_are_refused() {
        let twice = [members(&[1]), members(&[2])].concat();
        assert_eq!(
            Maglev::build(&twice, TableSize::SMALL),
            Err(GroupError::Repeated(MemberId(10)))
        );
        let size = TableSize::new(3).expect("prime");
        assert!(matches!(
            WeightedGroup::new(&members(&[1, 1, 1, 1]), size),
            Err(GroupError::TooManyMembers {
                members: 4,
                entries: 3
            })
        ));
    }

    #[test]
    fn nobody_is_chosen_from_nobody() {
        for weights in [&[][..], &[0, 0]] {
            let maglev = Maglev::build(&members(weights), TableSize::SMALL).expect("valid");
            let group = WeightedGroup::new(&members(weights), TableSize::SMALL).expect("valid");
            assert_eq!(maglev.select(u64::MAX), None);
            assert_eq!(group.select(0), None);
        }
    }

    #[test]
    fn the_order_of_members_does_not_matter_to_maglev() {
        let mut some = members(&[3, 5, 7, 1]);
        let table = Maglev::build(&some, TableSize::SMALL);
        some.reverse();
        assert_eq!(Maglev::build(&some, TableSize::SMALL), table);
    }

    #[test]
    fn every_hash_selects_an_entry_as_often_as_any_other() {
        let group = WeightedGroup::new(&members(&[1, 1]), TableSize::SMALL).expect("valid");
        assert!(group.select(0).is_some());
        assert!(group.select(u64::MAX).is_some());
        let chosen = (0..100_000_u64)
            .filter(|&flow| group.select(mix(flow)) == Some(MemberId(10)))
            .count();
        assert!((49_000..51_000).contains(&chosen), "{chosen}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn shares_are_as_the_weights(weights in prop::collection::vec(1_u16..100, 1..40)) {
            let members = members(&weights);
            let maglev = Maglev::build(&members, TableSize::LARGE).expect("valid");
            let group = WeightedGroup::new(&members, TableSize::LARGE).expect("valid");
            for (name, counts) in [("Maglev", counts(maglev.entries())), ("group", counts(group.entries()))] {
                for member in &members {
                    let wanted = share(&members, member.weight) * 65_537.0;
                    let has = counts.get(&member.id).copied().unwrap_or(0) as f64;
                    prop_assert!((has - wanted).abs() <= wanted * 0.02 + 2.0, "{name}: {has} not {wanted}");
                }
            }
        }

        #[test]
        fn a_maglev_member_more_or_less_moves_its_share_and_little_more(
            weights in prop::collection::vec(1_u16..20, 2..40),
            which in any::<prop::sample::Index>(),
        ) {
            let all = members(&weights);
            let mut fewer = all.clone();
            let gone = fewer.remove(which.index(all.len()));
            let one = Maglev::build(&all, TableSize::LARGE).expect("valid");
            let other = Maglev::build(&fewer, TableSize::LARGE).expect("valid");
            let others_moved = one
                .entries()
                .zip(other.entries())
                .filter(|(before, after)| *before != Some(gone.id) && before != after)
                .count();
            prop_assert!(others_moved as f64 <= 0.05 * 65_537.0, "{others_moved}");
        }

        #[test]
        fn a_member_that_leaves_a_group_moves_only_its_own_entries(
            weights in prop::collection::vec(1_u16..100, 2..40),
            which in any::<prop::sample::Index>(),
        ) {
            let all = members(&weights);
            let mut fewer = all.clone();
            let gone = fewer.remove(which.index(all.len()));
            let before = WeightedGroup::new(&all, TableSize::SMALL).expect("valid");
            let after = before.changed(&fewer, TableSize::SMALL).expect("valid");
            for (one, other) in before.entries().zip(after.entries()) {
                prop_assert!(one == Some(gone.id) || one == other);
                prop_assert!(other.is_some() && other != Some(gone.id));
            }
            // And back: only what it gets moves.
            let again = after.changed(&all, TableSize::SMALL).expect("valid");
            for (one, other) in after.entries().zip(again.entries()) {
                prop_assert!(other == Some(gone.id) || one == other);
            }
            for (group, members) in [(&after, &fewer), (&again, &all)] {
                let counts = counts(group.entries());
                for member in members {
                    let wanted = share(members, member.weight) * 1021.0;
                    let has = counts.get(&member.id).copied().unwrap_or(0) as f64;
                    prop_assert!((has - wanted).abs() <= 3.0 + wanted * 0.01, "{has} not {wanted}: {members:?}");
                }
            }
        }
    }
}
