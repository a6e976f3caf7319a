//! The switch's clock.
use rustix::time::{ClockId, clock_gettime};
use switch_core::Millis;

/// CLOCK_MONOTONIC, the same that workers pass.
pub fn monotonic_now() -> Millis {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
    Millis(
        seconds
            .saturating_mul(1_000)
            .saturating_add(nanoseconds / 1_000_000),
    )
}
