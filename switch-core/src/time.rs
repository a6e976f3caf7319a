//! Time as the core sees it: an argument, in milliseconds.
//!
//! The core owns no clock. Every call that depends on time takes a [`Millis`] from its caller, so a test can let three hundred
//! seconds pass in a line.

/// Milliseconds on a monotonic clock whose origin the caller chooses; every caller of one [`Switch`](crate::Switch) uses the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// `seconds` as milliseconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// The time from `earlier` to `self`, zero when `earlier` is later: two workers' clocks may be read in either order.
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }

    /// The instant `duration` after `self`.
    pub const fn after(self, duration: Self) -> Self {
        Self(self.0.saturating_add(duration.0))
    }
}
