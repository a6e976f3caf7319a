//! When to wake whom: the driver after a batch, the worker after a silence.

use super::counters::QueueCounters;
use crate::ring::Ring;

/// Shows the driver what was used since the last call; at most one notification, and only if it asked for one.
#[inline]
pub fn publish(ring: &mut Ring, counters: &QueueCounters) {
    match ring.publish_used() {
        Some(true) if ring.signal_call() => counters.notifications_sent.add(1),
        Some(_) => counters.notifications_saved.add(1),
        None => {}
    }
}

/// How long a worker goes on polling a silent ring before it asks to be woken.
///
/// Polling pays when the next frame comes sooner than a wake-up would take. So the window halves each time it was spent
/// in vain (the sleep after it was long), and doubles, up to its bound, each time the sleep was so short that a little more
/// polling would have spared it.
#[derive(Clone, Copy, Debug)]
pub struct PollWindow {
    now_ns: u64,
    max_ns: u64,
}

impl PollWindow {
    /// Shortest window, unless polling is off: long enough for a burst's next frame.
    const MIN_NS: u64 = 2_000;

    /// A window of at most `max_us` microseconds; 0 turns polling off.
    pub fn new(max_us: u32) -> Self {
        let max_ns = u64::from(max_us) * 1000;
        Self {
            now_ns: max_ns,
            max_ns,
        }
    }

    /// The window now, in nanoseconds.
    pub fn ns(&self) -> u64 {
        self.now_ns
    }

    /// Learns from a sleep that lasted `slept_ns`.
    pub fn adapt(&mut self, slept_ns: u64) {
        self.now_ns = if slept_ns <= 2 * self.max_ns {
            self.now_ns.saturating_mul(2)
        } else {
            self.now_ns / 2
        }
        .clamp(Self::MIN_NS.min(self.max_ns), self.max_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sleeps_shorten_the_window_and_short_ones_restore_it() {
        let mut window = PollWindow::new(50);
        for _ in 0..20 {
            window.adapt(1_000_000_000);
        }
        assert_eq!(window.ns(), 2_000);
        for _ in 0..20 {
            window.adapt(60_000);
        }
        assert_eq!(window.ns(), 50_000);
    }

    #[test]
    fn polling_can_be_off() {
        let mut window = PollWindow::new(0);
        window.adapt(10);
        assert_eq!(window.ns(), 0);
    }
}
