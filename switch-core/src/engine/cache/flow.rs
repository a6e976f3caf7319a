//! A remembered verdict, as the engine sees it.

use crate::time::Millis;

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
    /// Frames counted here and not yet elsewhere.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the last of them came, or when the flow was inserted.
    pub last_used: Millis,
}

impl<V> Flow<V> {
    /// Counts a frame.
    #[inline]
    pub fn count(&mut self, frame_bytes: u32, now: Millis) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(u64::from(frame_bytes));
        self.last_used = now;
    }

    /// What was counted since the last call: frames and bytes.
    pub fn take_counts(&mut self) -> (u64, u64) {
        (
            std::mem::take(&mut self.packets),
            std::mem::take(&mut self.bytes),
        )
    }
}
