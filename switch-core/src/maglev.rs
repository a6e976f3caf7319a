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
        if (2..=Self::MAX).contains(&entries) && !divisors.into_iter().any(|d| entries % d == 0) {
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
    /// The table of these members. Takes about a millisecond for 65,537 entries.
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
        let wanted = targets(&table.members, table.entries.len());
        fill(&mut table, wanted);
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
        let mut wanted = targets(&table.members, table.entries.len());
        // Entries are looked at in an order that has nothing to do with their hashes, so that none are favoured.
        for position in scattered(table.entries.len()) {
            let Some(member) = self.0.member_at(position) else {
                continue;
            };
            let Ok(now_at) = table.members.binary_search_by_key(&member, |m| m.id) else {
                continue;
            };
            if let (Some(entry), Some(wanted @ 1..)) =
                (table.entries.get_mut(position), wanted.get_mut(now_at))
            {
                *entry = now_at as u16;
                *wanted -= 1;
            }
        }
        fill(&mut table, wanted);
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

/// How many entries each member is to have: by weight, and what is left over by rounding to those who lost most by it. Each has one at
/// least.
fn targets(members: &[Member], entries: usize) -> Vec<usize> {
    let total: u64 = members.iter().map(|m| u64::from(m.weight)).sum();
    let shared = (entries - members.len().min(entries)) as u64;
    let exact = |member: &Member| u64::from(member.weight) * shared;
    let mut targets: Vec<_> = members
        .iter()
        .map(|member| 1 + (exact(member) / total.max(1)) as usize)
        .collect();
    let mut by_loss: Vec<_> = (0..members.len()).collect();
    by_loss.sort_by_key(|&at| Reverse(members.get(at).map_or(0, |m| exact(m) % total.max(1))));
    let left = entries.saturating_sub(targets.iter().sum());
    for at in by_loss.into_iter().take(left) {
        if let Some(target) = targets.get_mut(at) {
            *target += 1;
        }
    }
    targets
}

/// Gives each free entry to a member that wants more.
fn fill(table: &mut Table, wanted: Vec<usize>) {
    let mut takers = wanted
        .into_iter()
        .zip(0_u16..)
        .flat_map(|(count, member)| std::iter::repeat_n(member, count));
    for position in scattered(table.entries.len()) {
        if let Some(entry) = table.entries.get_mut(position)
            && *entry == NOBODY
            && let Some(member) = takers.next()
        {
            *entry = member;
        }
    }
}

/// Every position once: steps of about the golden ratio of the size, which is prime.
fn scattered(entries: usize) -> impl Iterator<Item = usize> {
    let step = (entries * 618 / 1000).max(1);
    (0..entries).map(move |number| number * step % entries)
}
