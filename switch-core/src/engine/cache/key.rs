//! What a frame is looked up by, and under which bits two frames are the same.

/// Words of a key at most.
pub const MOST_KEY_WORDS: usize = HEAD_WORDS + REST_WORDS;
/// Words that lie in a flow's own cache line; the others are kept elsewhere.
pub(crate) const HEAD_WORDS: usize = 8;
/// The other words, at most.
pub(crate) const REST_WORDS: usize = 16;
/// Where a key's first word holds the port: these bits count under every mask.
pub(super) const IN_PORT_BITS: u64 = 0xffff;

/// The first words of a key, those that it does not have being zero: always as many, so that nothing loops over their number.
pub(crate) type Head = [u64; HEAD_WORDS];

/// A frame as the cache sees it.
#[derive(Clone, Debug)]
pub struct FlowKey {
    /// Which headers the frame has: a dense number that the engine gives each distinct result of parsing.
    pub(crate) path: u16,
    /// How many words there are; 0 of a key that no flow can have.
    pub(crate) length: u8,
    /// The low 16 bits of the first are the port that the frame came from.
    pub(crate) head: Head,
    /// The words beyond those; what is behind them is of no account.
    pub(crate) rest: [u64; REST_WORDS],
}

impl FlowKey {
    /// A key of 1 to [`MOST_KEY_WORDS`] words, in the low 16 bits of the first of which is the port that the frame came from; of
    /// another number of words, a key that no flow can have. The path tells which headers the frame has, and how many words.
    pub fn new(path: u16, words: &[u64]) -> Self {
        let mut key = Self {
            path,
            length: match words.len() {
                length @ 1..=MOST_KEY_WORDS => length as u8,
                _ => 0,
            },
            head: [0; HEAD_WORDS],
            rest: [0; REST_WORDS],
        };
        let places = key.head.iter_mut().chain(&mut key.rest);
        for (place, word) in places.zip(words) {
            *place = *word;
        }
        key
    }

    /// The port, or `None` for a key that no flow can have: empty or too long.
    #[inline]
    pub(super) fn in_port(&self) -> Option<u16> {
        let [first, ..] = self.head;
        (self.length != 0).then_some((first & IN_PORT_BITS) as u16)
    }

    /// The words beyond the first ones.
    #[inline]
    pub(super) fn rest(&self) -> &[u64] {
        let words = usize::from(self.length).saturating_sub(HEAD_WORDS);
        self.rest.get(..words).unwrap_or_default()
    }
}

/// What a mask leaves of a key's first words.
#[inline(always)]
pub(super) fn masked(head: &Head, mask: &Head) -> Head {
    let mut left = *head;
    for (word, mask) in left.iter_mut().zip(mask) {
        *word &= mask;
    }
    left
}

/// Whether two keys' first words are the same; compared here, where a call would take longer.
#[inline(always)]
pub(super) fn is_same(one: &Head, other: &Head) -> bool {
    let pairs = one.iter().zip(other);
    pairs.fold(0, |all, (one, other)| all | one ^ other) == 0
}

/// The bits in which `words` and `flow` differ under `mask`, or'ed together: zero when they are the same.
#[inline(always)]
pub(super) fn difference(words: &[u64], flow: &[u64], mask: &[u64]) -> u64 {
    words
        .iter()
        .zip(flow)
        .zip(mask)
        .fold(0, |all, ((word, flow), mask)| all | (word ^ flow) & mask)
}
