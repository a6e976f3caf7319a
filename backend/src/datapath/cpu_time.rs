//! Whose frames a worker's time goes to.
//!
//! Reading the clock around every batch would cost more than a frame does, so one batch in [`SAMPLED`] on average is timed, and
//! counts for as many. Which one is next is drawn anew each time: batches come in a rhythm, and a fixed step could always
//! meet the same port. A number is thus an estimate without bias; a ring that has its batches by the thousand has it within a
//! percent or two.
//!
//! Time is that of the monotonic clock, on the worker that ran the batch: what the host takes away in the middle of a batch
//! counts as well. Give workers CPUs of their own.

use rustix::time::{ClockId, clock_gettime};
use std::time::Instant;

/// One batch in so many is timed.
pub const SAMPLED: u64 = 16;

/// CLOCK_MONOTONIC in nanoseconds.
#[inline]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Decides which batches are timed. One per worker.
#[derive(Debug)]
pub struct Sampler {
    /// Batches until the next that is timed.
    left: u32,
    /// Of a xorshift generator (Marsaglia 2003); never 0.
    random: u32,
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            left: 0,
            random: 0x9e37_79b9,
        }
    }
}

impl Sampler {
    /// Called at the start of a batch that has frames: the time, if this one is timed.
    #[inline]
    pub fn start(&mut self) -> Option<Instant> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                None
            }
            None => Some(self.start_timed()),
        }
    }

    #[cold]
    fn start_timed(&mut self) -> Instant {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        // 0 to 30 pass by, 15 on average: one in 16 is timed.
        self.left = self.random % (2 * SAMPLED as u32 - 1);
        Instant::now()
    }

    /// What a timed batch took, now that it is done; it counts for [`SAMPLED`] of them.
    #[inline]
    pub fn elapsed_ns(started: Instant) -> u64 {
        started.elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_several_ports_in_turn_is_timed_equally_often() {
        for ports in [1, 2, 3, 16, 31] {
            let mut sampler = Sampler::default();
            let mut timed = vec![0u64; ports];
            let batches = 200_000 * ports;
            for batch in 0..batches {
                timed[batch % ports] += u64::from(sampler.start().is_some());
            }
            let expected = 200_000 / SAMPLED;
            for (port, &timed) in timed.iter().enumerate() {
                let off = timed.abs_diff(expected) * 100 / expected;
                assert!(
                    off < 5,
                    "port {port} of {ports}: {timed} instead of {expected}"
                );
            }
        }
    }
}
