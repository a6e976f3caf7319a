//! A remembered verdict, as the engine sees it.

/// Names a flow of one cache until the next insertion, removal or sweep; after that it may name another flow or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRef(pub(super) u32);

/// A flow: its verdict, what tells whether that still holds, and what it has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow<V> {
    /// The verdict and whatever else the engine keeps with it, such as the counters that it depends on.
    pub value: V,
    /// When the verdict was last known to be right: a generation of the engine's. The cache does not look at it.
    pub stamp: u64,
    counted: Counted,
}

/// Frames and bytes in one word, to keep a flow in two cache lines: 24 bits of frames above 40 of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted(u64);

impl Counted {
    const BYTES_BITS: u32 = 40;
    const FRAME: u64 = 1 << Self::BYTES_BITS;
    /// The last bit of either.
    const FULL: u64 = 1 << 63 | 1 << (Self::BYTES_BITS - 1);
}

impl<V> Flow<V> {
    pub(super) fn new(value: V, stamp: u64) -> Self {
        Self {
            value,
            stamp,
            counted: Counted::default(),
        }
    }

    /// Counts a frame. Counts have to be [taken](Self::take_counts) before there are more frames once the flow [is full](Self::is_full).
    #[inline]
    pub fn count(&mut self, frame_bytes: u32) {
        let added = Counted::FRAME + u64::from(frame_bytes);
        self.counted.0 = self.counted.0.wrapping_add(added);
    }

    /// Whether frames were counted and not taken.
    #[inline]
    pub fn has_counted(&self) -> bool {
        self.counted.0 != 0
    }

    /// Whether the next frame may be too much: after 2^23 frames, or 2^39 bytes.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.counted.0 & Counted::FULL != 0
    }

    /// What was counted since the last call: frames and bytes.
    pub fn take_counts(&mut self) -> (u64, u64) {
        let Counted(counted) = std::mem::take(&mut self.counted);
        (
            counted >> Counted::BYTES_BITS,
            counted & (Counted::FRAME - 1),
        )
    }
}
