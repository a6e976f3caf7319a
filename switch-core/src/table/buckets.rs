//! Hash buckets that grow and shrink by one bucket at a time (linear hashing), so that no change ever waits for a rehash.
//!
//! The items of a bucket are chained through the items themselves. The bucket's word holds the first item and a small Bloom filter
//! of the chain, so that most look-ups of what is not there read that word alone.

/// No item.
pub(super) const NONE: u32 = u32::MAX;

/// Buckets that there are at least, a power of two.
const FEWEST: u32 = 64;
/// There are at least so many buckets for each item,
const MIN_BUCKETS_PER_ITEM: usize = 2;
/// and, for as long as there are more than the fewest, at most so many.
const MAX_BUCKETS_PER_ITEM: usize = 8;

/// What can be chained: it keeps its hash and the item behind it.
pub(super) trait Chained {
    fn hash_of(&self, index: u32) -> u32;
    fn next_of(&self, index: u32) -> u32;
    fn set_next(&mut self, index: u32, next: u32);
}

/// A bucket: the first item's index and one in the low half, zero for none; the filter in the high half.
type Word = u64;

pub(super) struct Buckets {
    /// The fewest buckets, then as many again, then as many as both, and so on.
    segments: Vec<Box<[Word]>>,
    len: u32,
    /// All ones; the smallest that is at least `len`.
    mask: u32,
    items: usize,
}

impl Buckets {
    pub(super) fn new() -> Self {
        Self {
            segments: vec![empty_segment(FEWEST)],
            len: FEWEST,
            mask: 2 * FEWEST - 1,
            items: 0,
        }
    }

    /// The first item of the chain in which items of this hash are, [`NONE`] when there can be none.
    #[inline]
    pub(super) fn first(&self, hash: u32) -> u32 {
        let word = self.word(self.address(hash));
        if word & filter_bit(hash) == 0 {
            return NONE;
        }
        first_of(word)
    }

    /// Puts an item into its chain: behind the last that `goes_first`, in front when none does.
    pub(super) fn link<C: Chained>(
        &mut self,
        items: &mut C,
        index: u32,
        goes_first: impl Fn(&C, u32) -> bool,
    ) {
        let address = self.address(items.hash_of(index));
        let mut before = NONE;
        let mut at = first_of(self.word(address));
        while at != NONE {
            if goes_first(items, at) {
                before = at;
            }
            at = items.next_of(at);
        }
        if before == NONE {
            self.push(items, index);
        } else {
            items.set_next(index, items.next_of(before));
            items.set_next(before, index);
        }
        self.items += 1;
        if self.items * MIN_BUCKETS_PER_ITEM > self.len as usize {
            // Twice: the count of buckets that is wanted goes up by two.
            self.split(items);
            self.split(items);
        }
    }

    /// Takes an item out of its chain.
    pub(super) fn unlink(&mut self, items: &mut impl Chained, index: u32) {
        let address = self.address(items.hash_of(index));
        let mut filter = 0;
        let mut first = first_of(self.word(address));
        let mut before = NONE;
        let mut at = first;
        let mut found = false;
        while at != NONE {
            let next = items.next_of(at);
            if at == index {
                found = true;
                if before == NONE {
                    first = next;
                } else {
                    items.set_next(before, next);
                }
            } else {
                filter |= filter_bit(items.hash_of(at));
                before = at;
            }
            at = next;
        }
        self.set_word(address, filter | u64::from(first.wrapping_add(1)));
        if found {
            self.items -= 1;
            for _ in 0..MAX_BUCKETS_PER_ITEM {
                if self.items * MAX_BUCKETS_PER_ITEM < self.len as usize {
                    self.merge(items);
                }
            }
        }
    }

    fn push(&mut self, items: &mut impl Chained, index: u32) {
        let hash = items.hash_of(index);
        let address = self.address(hash);
        let word = self.word(address);
        items.set_next(index, first_of(word));
        let filter = word >> 32 << 32 | filter_bit(hash);
        self.set_word(address, filter | u64::from(index.wrapping_add(1)));
    }

    /// One bucket more, with what belongs there of the bucket that it has been part of.
    fn split(&mut self, items: &mut impl Chained) {
        let new = self.len;
        if new > u32::MAX / 4 {
            return;
        }
        let old = self.address(new);
        if segment_of(new).0 == self.segments.len() {
            // As many as there are.
            self.segments.push(empty_segment(new));
        }
        self.set_len(new + 1);
        self.distribute(items, old);
    }

    /// One bucket less: what is in the last goes to the one it was part of.
    fn merge(&mut self, items: &mut impl Chained) {
        if self.len <= FEWEST {
            return;
        }
        let last = self.len - 1;
        self.set_len(last);
        self.distribute(items, last);
        if segment_of(last) == (self.segments.len() - 1, 0) {
            self.segments.pop();
        }
    }

    fn set_len(&mut self, len: u32) {
        self.len = len;
        self.mask = (len + 1).next_power_of_two() - 1;
    }

    /// Puts each item of a bucket where it belongs now. Those that stay together keep their order.
    fn distribute(&mut self, items: &mut impl Chained, address: u32) {
        let mut backwards = NONE;
        let mut at = first_of(self.word(address));
        while at != NONE {
            let next = items.next_of(at);
            items.set_next(at, backwards);
            backwards = at;
            at = next;
        }
        let mut at = backwards;
        self.set_word(address, 0);
        while at != NONE {
            let next = items.next_of(at);
            self.push(items, at);
            at = next;
        }
    }

    #[inline]
    fn address(&self, hash: u32) -> u32 {
        let address = hash & self.mask;
        if address < self.len {
            address
        } else {
            hash & self.mask >> 1
        }
    }

    #[inline]
    fn word(&self, address: u32) -> Word {
        let (segment, at) = segment_of(address);
        let word = self.segments.get(segment).and_then(|words| words.get(at));
        word.copied().unwrap_or(0)
    }

    fn set_word(&mut self, address: u32, word: Word) {
        let (segment, at) = segment_of(address);
        if let Some(place) = self
            .segments
            .get_mut(segment)
            .and_then(|words| words.get_mut(at))
        {
            *place = word;
        }
    }
}

fn empty_segment(words: u32) -> Box<[Word]> {
    // Comes zeroed from the system: pages are first touched when a bucket in them is.
    vec![0; words as usize].into_boxed_slice()
}

/// The segment of a bucket, and its place there.
#[inline]
fn segment_of(address: u32) -> (usize, usize) {
    let segment = (address / FEWEST).checked_ilog2().map_or(0, |log| log + 1);
    let start = match segment {
        0 => 0,
        segment => FEWEST << (segment - 1),
    };
    (segment as usize, (address - start) as usize)
}

#[inline]
fn first_of(word: Word) -> u32 {
    (word as u32).wrapping_sub(1)
}

#[inline]
fn filter_bit(hash: u32) -> u64 {
    1 << (32 + (hash >> 27))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Items(Vec<(u32, u32)>);

    impl Chained for Items {
        fn hash_of(&self, index: u32) -> u32 {
            self.0[index as usize].0
        }
        fn next_of(&self, index: u32) -> u32 {
            self.0[index as usize].1
        }
        fn set_next(&mut self, index: u32, next: u32) {
            self.0[index as usize].1 = next;
        }
    }

    fn is_there(buckets: &Buckets, items: &Items, index: u32) -> bool {
        let mut at = buckets.first(items.hash_of(index));
        while at != NONE && at != index {
            at = items.next_of(at);
        }
        at == index
    }

    #[test]
    fn items_stay_findable_while_buckets_come_and_go() {
        const ITEMS: u32 = 5_000;
        let hash = |index: u32| index.wrapping_mul(0x9e37_79b1);
        let mut items = Items((0..ITEMS).map(|index| (hash(index), NONE)).collect());
        let mut buckets = Buckets::new();
        for index in 0..ITEMS {
            buckets.link(&mut items, index, |_, _| false);
            assert!(buckets.len as usize >= buckets.items * MIN_BUCKETS_PER_ITEM);
        }
        assert!((0..ITEMS).all(|index| is_there(&buckets, &items, index)));
        for index in 0..ITEMS {
            buckets.unlink(&mut items, index);
            assert!(!is_there(&buckets, &items, index));
            assert!(index + 1 == ITEMS || is_there(&buckets, &items, ITEMS - 1));
            assert!(
                (index + 1..ITEMS)
                    .step_by(97)
                    .all(|index| is_there(&buckets, &items, index))
            );
        }
        assert_eq!(buckets.items, 0);
        assert!(buckets.len < 100, "{}", buckets.len);
        assert!(buckets.segments.len() <= 2);
    }
}
