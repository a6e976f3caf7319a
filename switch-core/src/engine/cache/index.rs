//! Where flows are found by the hash of what their masks leave of a key: one table for all masks, which forgets nothing.
//!
//! Linear hashing (Litwin, VLDB 1980): the table grows by a bucket at a time, so no insertion ever waits for the rest of it to move. A bucket
//! is a cache line of seven slots; the few that overflow go on in spill lines. A slot holds 32 bits of the hash, which are
//! all that splitting a bucket needs. Hashes are keyed, so nobody can fill one bucket on purpose; should one be full all
//! the same, the insertion is refused.

use super::chunks::Chunks;

/// Slots of a line.
const SLOTS: usize = 7;
/// Lines that one bucket can have.
const MOST_LINES: usize = 6;
/// Flows a bucket holds on average before there is one bucket more.
const FLOWS_PER_BUCKET: usize = 3;
/// Buckets at first.
const FIRST_BUCKETS: usize = 64;

/// The slots in two arrays, so that all are compared at once.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line {
    /// 32 bits of each hash. The last is not used.
    hashes: [u32; SLOTS + 1],
    /// The flows' numbers plus one; 0: empty.
    flows: [u32; SLOTS],
    /// The spill line that goes on, plus one; 0: none.
    next: u32,
}

const EMPTY: Line = Line {
    hashes: [0; SLOTS + 1],
    flows: [0; SLOTS],
    next: 0,
};

/// What a slot holds: a hash and a flow's number plus one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slot {
    hash: u32,
    flow: u32,
}

impl Line {
    fn slots(&self) -> impl Iterator<Item = Slot> {
        let pairs = self.hashes.into_iter().zip(self.flows);
        pairs.map(|(hash, flow)| Slot { hash, flow })
    }

    /// Where `slot` is.
    fn position(&self, slot: Slot) -> Option<usize> {
        self.slots().position(|other| other == slot)
    }

    fn vacancy(&self) -> Option<usize> {
        self.flows.iter().position(|flow| *flow == 0)
    }

    /// Takes the last slot's out.
    fn take_last(&mut self) -> Option<Slot> {
        let place = self.flows.iter().rposition(|flow| *flow != 0)?;
        let last = self.slots().nth(place);
        self.set(place, Slot { hash: 0, flow: 0 });
        last
    }

    fn set(&mut self, place: usize, slot: Slot) {
        if let (Some(hash), Some(flow)) = (self.hashes.get_mut(place), self.flows.get_mut(place)) {
            *hash = slot.hash;
            *flow = slot.flow;
        }
    }
}

/// Tells which of the flows with one hash is meant.
pub(super) trait IsWanted {
    fn is_wanted(&self, flow: u32) -> bool;
}

impl<F: Fn(u32) -> bool> IsWanted for F {
    fn is_wanted(&self, flow: u32) -> bool {
        self(flow)
    }
}

/// There is no room in the one bucket that a flow can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BucketFull;

pub(super) struct Index {
    lines: Chunks<Line, 256>,
    spill: Chunks<Line, 64>,
    /// The first spill line not in use, plus one, linked by `next`.
    free: u32,
    buckets: usize,
    /// The power of two up to which all buckets were split.
    level: usize,
    flows: usize,
}

fn slot(hash: u32, flow: u32) -> Slot {
    Slot {
        hash,
        flow: flow.wrapping_add(1),
    }
}

impl Index {
    pub(super) fn new() -> Self {
        Self {
            lines: Chunks::new(),
            spill: Chunks::new(),
            free: 0,
            buckets: FIRST_BUCKETS,
            level: FIRST_BUCKETS,
            flows: 0,
        }
    }

    /// The flow with this hash that is `wanted`. Counts the lines looked at in `probes`.
    #[inline(always)]
    pub(super) fn find(&self, hash: u32, probes: &mut u64, wanted: impl IsWanted) -> Option<u32> {
        let mut line = self.lines.get(self.bucket(hash))?;
        for _ in 0..MOST_LINES {
            *probes += 1;
            let mut found = 0_u32;
            for (index, other) in line.hashes.iter().enumerate() {
                found |= u32::from(*other == hash) << index;
            }
            found &= (1 << SLOTS) - 1;
            while found != 0 {
                // An empty slot's zero wraps to a flow that is not there.
                let flow = line
                    .flows
                    .get(found.trailing_zeros() as usize)?
                    .wrapping_sub(1);
                if wanted.is_wanted(flow) {
                    return Some(flow);
                }
                found &= found - 1;
            }
            line = self.spill.get(line.next.checked_sub(1)? as usize)?;
        }
        None
    }

    /// Adds a flow, and now and then a bucket.
    pub(super) fn insert(&mut self, hash: u32, flow: u32) -> Result<(), BucketFull> {
        if self.lines.len() == 0 {
            self.lines.grow(|| EMPTY);
        }
        self.put(slot(hash, flow))?;
        self.flows += 1;
        if self.flows > self.buckets * FLOWS_PER_BUCKET {
            self.split();
        }
        Ok(())
    }

    /// Removes a flow, if it is there. The last one of its bucket takes its slot, so that only the last line has empty slots.
    pub(super) fn remove(&mut self, hash: u32, flow: u32) {
        let wanted = slot(hash, flow);
        let mut hole = None;
        let mut before = None;
        let mut at = Place::Bucket(self.bucket(hash));
        for _ in 0..MOST_LINES {
            let Some(line) = self.line(at) else {
                return;
            };
            if let (None, Some(place)) = (hole, line.position(wanted)) {
                hole = Some((at, place));
            }
            let Some(next) = line.next.checked_sub(1) else {
                break;
            };
            before = Some(at);
            at = Place::Spill(next as usize);
        }
        if let Some((hole_at, hole)) = hole {
            let last = self.line_mut(at).and_then(Line::take_last);
            if let (Some(last), Some(line)) =
                (last.filter(|last| *last != wanted), self.line_mut(hole_at))
            {
                line.set(hole, last);
            }
            self.flows -= 1;
            self.drop_line_if_empty(at, before);
        }
    }

    /// Takes an empty spill line out of its bucket.
    fn drop_line_if_empty(&mut self, at: Place, before: Option<Place>) {
        let is_empty = self
            .line(at)
            .is_some_and(|line| line.slots().all(|slot| slot.flow == 0));
        if let (true, Place::Spill(index), Some(before)) = (is_empty, at, before) {
            if let Some(line) = self.line_mut(before) {
                line.next = 0;
            }
            self.give_spill_line(index as u32);
        }
    }

    #[inline]
    fn bucket(&self, hash: u32) -> usize {
        let index = hash as usize & (2 * self.level - 1);
        if index < self.buckets {
            index
        } else {
            index & (self.level - 1)
        }
    }

    fn line(&self, at: Place) -> Option<&Line> {
        match at {
            Place::Bucket(index) => self.lines.get(index),
            Place::Spill(index) => self.spill.get(index),
        }
    }

    fn line_mut(&mut self, at: Place) -> Option<&mut Line> {
        match at {
            Place::Bucket(index) => self.lines.get_mut(index),
            Place::Spill(index) => self.spill.get_mut(index),
        }
    }

    fn put(&mut self, slot: Slot) -> Result<(), BucketFull> {
        let mut at = Place::Bucket(self.bucket(slot.hash));
        for lines in 1..=MOST_LINES {
            let line = self.line_mut(at).ok_or(BucketFull)?;
            if let Some(place) = line.vacancy() {
                line.set(place, slot);
                return Ok(());
            }
            let next = match line.next.checked_sub(1) {
                Some(next) => next,
                None if lines < MOST_LINES => {
                    let next = self.take_spill_line().ok_or(BucketFull)?;
                    self.line_mut(at).ok_or(BucketFull)?.next = next + 1;
                    next
                }
                None => return Err(BucketFull),
            };
            at = Place::Spill(next as usize);
        }
        Err(BucketFull)
    }

    fn take_spill_line(&mut self) -> Option<u32> {
        if self.free == 0 {
            let first = self.spill.len() as u32;
            self.spill.grow(|| EMPTY);
            for index in (first..self.spill.len() as u32).rev() {
                self.give_spill_line(index);
            }
        }
        let taken = self.free.checked_sub(1)?;
        let line = self.spill.get_mut(taken as usize)?;
        self.free = line.next;
        line.next = 0;
        Some(taken)
    }

    fn give_spill_line(&mut self, index: u32) {
        if let Some(line) = self.spill.get_mut(index as usize) {
            *line = EMPTY;
            line.next = self.free;
            self.free = index + 1;
        }
    }

    /// One bucket more: the flows of the next unsplit one are spread over both.
    fn split(&mut self) {
        if self.lines.len() <= self.buckets {
            self.lines.grow(|| EMPTY);
        }
        let mut held = [None; SLOTS * MOST_LINES];
        let mut room = held.iter_mut();
        let mut at = Place::Bucket(self.buckets - self.level);
        for _ in 0..MOST_LINES {
            let Some(line) = self.line_mut(at) else {
                break;
            };
            let line = std::mem::replace(line, EMPTY);
            for slot in line.slots().filter(|slot| slot.flow != 0) {
                if let Some(place) = room.next() {
                    *place = Some(slot);
                }
            }
            if let Place::Spill(index) = at {
                self.give_spill_line(index as u32);
            }
            let Some(next) = line.next.checked_sub(1) else {
                break;
            };
            at = Place::Spill(next as usize);
        }
        self.buckets += 1;
        if self.buckets == 2 * self.level {
            self.level *= 2;
        }
        for slot in held.into_iter().map_while(|slot| slot) {
            // Two buckets hold what one held.
            let _ = self.put(slot);
        }
    }
}

#[derive(Clone, Copy)]
enum Place {
    Bucket(usize),
    Spill(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that looks random.
    fn hash(flow: u32) -> u32 {
        (u64::from(flow)
            .wrapping_add(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            >> 29) as u32
    }

    fn find(index: &Index, flow: u32) -> Option<u32> {
        index.find(hash(flow), &mut 0, |found| found == flow)
    }

    #[test]
    fn every_flow_is_found_until_it_is_removed_while_the_table_grows() {
        let mut index = Index::new();
        for flow in 0..50_000 {
            assert_eq!(index.insert(hash(flow), flow), Ok(()));
            if flow % 97 == 0 {
                assert_eq!(find(&index, flow / 2), Some(flow / 2));
            }
        }
        assert!(index.buckets * FLOWS_PER_BUCKET >= 49_000);
        for flow in (0..50_000).step_by(2) {
            index.remove(hash(flow), flow);
        }
        for flow in 0..50_000 {
            assert_eq!(find(&index, flow), (flow % 2 == 1).then_some(flow));
        }
    }

    #[test]
    fn one_bucket_takes_so_many_flows_and_refuses_more() {
        let mut index = Index::new();
        let fit = (0..100)
            .take_while(|flow| index.insert(7, *flow).is_ok())
            .count();
        assert_eq!(fit, SLOTS * MOST_LINES);
        assert_eq!(index.insert(8, 1000), Ok(()));
        let mut probes = 0;
        assert_eq!(index.find(7, &mut probes, |_| false), None);
        assert_eq!(probes, MOST_LINES as u64);
    }

    #[test]
    fn spill_lines_are_used_again() {
        let mut index = Index::new();
        for _ in 0..100 {
            for flow in 0..40 {
                assert_eq!(index.insert(7, flow), Ok(()));
            }
            for flow in 0..40 {
                index.remove(7, flow);
            }
        }
        assert_eq!(index.spill.len(), 64);
        let mut probes = 0;
        assert_eq!(index.find(7, &mut probes, |_| true), None);
        assert_eq!(probes, 1);
    }

    #[test]
    fn a_bucket_that_was_full_once_is_as_quick_as_before() {
        let mut index = Index::new();
        for flow in 0..40 {
            assert_eq!(index.insert(7, flow), Ok(()));
        }
        for flow in 0..36 {
            index.remove(7, flow * 7 % 40);
        }
        for flow in 0..40 {
            let mut probes = 0;
            let found = index.find(7, &mut probes, |found| found == flow);
            let stays = (36..40).any(|kept| kept * 7 % 40 == flow);
            assert_eq!((found, probes), (stays.then_some(flow), 1));
        }
    }
}
