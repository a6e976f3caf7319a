//! What a frame is looked up by, and under which bits two frames are the same.

/// Words of a key at most.
pub const MOST_KEY_WORDS: usize = 24;
/// Words that lie in a flow's own cache line; the others are kept elsewhere.
pub(super) const HEAD_WORDS: usize = 8;
/// The other words, at most.
pub(super) const REST_WORDS: usize = MOST_KEY_WORDS - HEAD_WORDS;
/// Where a key's first word holds the port: these bits count under every mask.
pub(super) const IN_PORT_BITS: u64 = 0xffff;

/// A frame as the cache sees it.
#[derive(Clone, Copy, Debug)]
pub struct FlowKey<'a> {
    /// Which headers the frame has: a dense number that the engine gives each distinct result of parsing.
    pub path: u16,
    /// 1 to [`MOST_KEY_WORDS`] words. The low 16 bits of the first are the port that the frame came from.
    pub words: &'a [u64],
}

impl FlowKey<'_> {
    /// The port, or `None` for a key that no flow can have: empty or too long.
    #[inline]
    pub(super) fn in_port(&self) -> Option<u16> {
        match self.words {
            [first, ..] if self.words.len() <= MOST_KEY_WORDS => {
                Some((first & IN_PORT_BITS) as u16)
            }
            _ => None,
        }
    }

    /// The words that lie in a flow's own cache line.
    #[inline]
    pub(super) fn head(&self) -> &[u64] {
        self.words.get(..HEAD_WORDS).unwrap_or(self.words)
    }

    /// The words beyond those.
    #[inline]
    pub(super) fn rest(&self) -> &[u64] {
        self.words.get(HEAD_WORDS..).unwrap_or_default()
    }
}

/// The bits in which `words` and `flow` differ under `mask`, or'ed together: zero when they are the same.
#[inline]
pub(super) fn difference(words: &[u64], flow: &[u64], mask: &[u64]) -> u64 {
    words
        .iter()
        .zip(flow)
        .zip(mask)
        .fold(0, |all, ((word, flow), mask)| all | (word ^ flow) & mask)
}

/// The same for the words of a flow's own cache line, unrolled: their number hardly ever changes from frame to frame.
#[inline(always)]
pub(super) fn head_difference(
    words: &[u64],
    flow: &[u64; HEAD_WORDS],
    mask: &[u64; MOST_KEY_WORDS],
) -> u64 {
    match words.len() {
        1 => first_difference::<1>(words, flow, mask),
        2 => first_difference::<2>(words, flow, mask),
        3 => first_difference::<3>(words, flow, mask),
        4 => first_difference::<4>(words, flow, mask),
        5 => first_difference::<5>(words, flow, mask),
        6 => first_difference::<6>(words, flow, mask),
        7 => first_difference::<7>(words, flow, mask),
        _ => first_difference::<8>(words, flow, mask),
    }
}

#[inline(always)]
fn first_difference<const N: usize>(
    words: &[u64],
    flow: &[u64; HEAD_WORDS],
    mask: &[u64; MOST_KEY_WORDS],
) -> u64 {
    match (
        words.first_chunk::<N>(),
        flow.first_chunk::<N>(),
        mask.first_chunk::<N>(),
    ) {
        (Some(words), Some(flow), Some(mask)) => {
            let mut all = 0;
            let mut at = 0;
            while let (Some(word), Some(flow), Some(mask)) =
                (words.get(at), flow.get(at), mask.get(at))
            {
                all |= (word ^ flow) & mask;
                at += 1;
            }
            all
        }
        _ => u64::MAX,
    }
}
