//! Where all flows lie: a slab, each flow two cache lines side by side, and what lookups do without elsewhere.

use super::chunks::Chunks;
use super::flow::Flow;
use super::index::IsWanted;
use super::key::{self, FlowKey, HEAD_WORDS, Head, REST_WORDS};
use super::masks::{EXACT, MaskId, MaskWords, Masks};

/// No flow.
pub(super) const NO_FLOW: u32 = u32::MAX;

/// A length that no key has.
const NO_KEY: u8 = u8::MAX;

/// A flow and what it is found by: what a lookup reads, as few cache lines as can be.
///
/// Words first, so that they are one cache line and the rest is the next one.
#[repr(C, align(64))]
pub(super) struct Record<V> {
    /// What its mask leaves of the key's first words.
    words: Head,
    pub(super) flow: Option<Flow<V>>,
    pub(super) mask: MaskId,
    pub(super) path: u16,
    /// Words of its key; [`NO_KEY`] when no flow is here.
    length: u8,
    /// Used since it became the newest of its port.
    pub(super) is_used: bool,
}

impl<V> Record<V> {
    fn vacant() -> Self {
        Self {
            words: [0; HEAD_WORDS],
            flow: None,
            mask: EXACT,
            path: 0,
            length: NO_KEY,
            is_used: false,
        }
    }

    /// The port that its frames come from.
    pub(super) fn in_port(&self) -> u16 {
        let [first, ..] = self.words;
        (first & key::IN_PORT_BITS) as u16
    }
}

/// What else is known of a flow: its place in its port's queue, and what only some lookups need.
pub(super) struct Link {
    /// The index knows it by this.
    pub(super) hash: u32,
    pub(super) older: u32,
    /// The next free record, when no flow is here.
    pub(super) newer: u32,
    /// The other words' place, if it has any.
    rest: u32,
}

impl Link {
    const fn vacant() -> Self {
        Self {
            hash: 0,
            older: NO_FLOW,
            newer: NO_FLOW,
            rest: NO_FLOW,
        }
    }
}

pub(super) struct Records<V> {
    records: Chunks<Record<V>, 256>,
    links: Chunks<Link, 256>,
    /// Words beyond the first eight of those keys that have them.
    rests: Chunks<[u64; REST_WORDS], 64>,
    free: u32,
    free_rests: Vec<u32>,
    used_rests: u32,
    live: usize,
}

impl<V> Records<V> {
    pub(super) fn new() -> Self {
        Self {
            records: Chunks::new(),
            links: Chunks::new(),
            rests: Chunks::new(),
            free: NO_FLOW,
            free_rests: Vec::new(),
            used_rests: 0,
            live: 0,
        }
    }

    /// How many flows there are.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Every flow's number is less than this.
    pub(super) fn places(&self) -> usize {
        self.records.len()
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&Record<V>> {
        self.records.get(index as usize)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Record<V>> {
        self.records.get_mut(index as usize)
    }

    #[inline]
    pub(super) fn link(&self, index: u32) -> Option<&Link> {
        self.links.get(index as usize)
    }

    #[inline]
    pub(super) fn link_mut(&mut self, index: u32) -> Option<&mut Link> {
        self.links.get_mut(index as usize)
    }

    /// The words of a flow's key, each with its mask; only the bits of that mean anything.
    pub(super) fn words<'a>(
        &'a self,
        index: u32,
        masks: &'a Masks,
    ) -> impl Iterator<Item = (u64, u64)> + 'a {
        let record = self.get(index);
        let mask = record.and_then(|record| masks.get(record.mask));
        let rest = self
            .link(index)
            .and_then(|link| self.rests.get(link.rest as usize));
        let length = record.map_or(0, |record| usize::from(record.length));
        let words = record.into_iter().flat_map(|record| record.words);
        let words = words.chain(rest.into_iter().flatten().copied());
        let masks = mask.into_iter().flat_map(|mask| {
            let MaskWords { head, rest } = &mask.words;
            head.iter().chain(rest).copied()
        });
        words.zip(masks).take(length)
    }

    /// Whether the frame is one of this flow's.
    #[inline(always)]
    pub(super) fn is(&self, index: u32, key: &FlowKey, masks: &Masks) -> bool {
        let Some(record) = self.get(index) else {
            return false;
        };
        let Some(mask) = masks.get(record.mask) else {
            return false;
        };
        (record.path, record.length) == (key.path, key.length)
            && key::is_same(&key::masked(&key.head, &mask.words.head), &record.words)
            && (usize::from(key.length) <= HEAD_WORDS || self.rest_is(index, key, &mask.words.rest))
    }

    #[inline(never)]
    fn rest_is(&self, index: u32, key: &FlowKey, mask: &[u64]) -> bool {
        self.link(index)
            .and_then(|link| self.rests.get(link.rest as usize))
            .is_some_and(|rest| key::difference(key.rest(), rest, mask) == 0)
    }

    /// A new flow's number; its value back should there be no place for it.
    pub(super) fn insert(
        &mut self,
        key: &FlowKey,
        (mask, head): (MaskId, &Head),
        hash: u32,
        flow: Flow<V>,
    ) -> Result<u32, V> {
        if self.free == NO_FLOW {
            self.grow();
        }
        let index = self.free;
        let rest = match key.rest() {
            [] => NO_FLOW,
            words => self.add_rest(words),
        };
        let at = index as usize;
        let (Some(record), Some(link)) = (self.records.get_mut(at), self.links.get_mut(at)) else {
            return Err(flow.value);
        };
        self.free = link.newer;
        *link = Link {
            hash,
            rest,
            ..Link::vacant()
        };
        *record = Record {
            words: key::masked(&key.head, head),
            flow: Some(flow),
            mask,
            path: key.path,
            length: key.length,
            is_used: false,
        };
        self.live += 1;
        Ok(index)
    }

    /// Takes a flow out.
    pub(super) fn remove(&mut self, index: u32) -> Option<Flow<V>> {
        let free = self.free;
        let record = self.get_mut(index)?;
        let flow = record.flow.take()?;
        record.length = NO_KEY;
        let link = self.link_mut(index)?;
        link.newer = free;
        let rest = std::mem::replace(&mut link.rest, NO_FLOW);
        self.free = index;
        self.live -= 1;
        if rest != NO_FLOW {
            self.free_rests.push(rest);
        }
        Some(flow)
    }

    fn grow(&mut self) {
        let first = self.records.len();
        self.records.grow(Record::vacant);
        self.links.grow(Link::vacant);
        for index in (first..self.records.len()).rev() {
            let free = self.free;
            if let Some(link) = self.links.get_mut(index) {
                link.newer = free;
                self.free = index as u32;
            }
        }
    }

    fn add_rest(&mut self, words: &[u64]) -> u32 {
        let place = self.free_rests.pop().unwrap_or_else(|| {
            let place = self.used_rests;
            self.used_rests += 1;
            if self.rests.len() <= place as usize {
                self.rests.grow(|| [0; REST_WORDS]);
            }
            place
        });
        if let Some(rest) = self.rests.get_mut(place as usize) {
            for (word, given) in rest.iter_mut().zip(words) {
                *word = *given;
            }
        }
        place
    }
}

/// Any flow that answers for a frame.
pub(super) struct AnswerFor<'a, V> {
    pub(super) key: &'a FlowKey,
    pub(super) records: &'a Records<V>,
    pub(super) masks: &'a Masks,
}

impl<V> IsWanted for AnswerFor<'_, V> {
    #[inline(always)]
    fn is_wanted(&self, flow: u32) -> bool {
        self.records.is(flow, self.key, self.masks)
    }
}
