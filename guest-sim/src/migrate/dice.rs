//! Random numbers that can be had again.
//!
//! Used by tests with random timing. Keeps true: the same seed gives the same numbers, and a test that fails has said its seed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Names the seed to repeat a run with.
const SEED_VARIABLE: &str = "GUEST_SIM_SEED";

/// A source of random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// Numbers that follow from this seed.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// With the seed in `$GUEST_SIM_SEED`, else a new one, which is printed.
    pub fn shaken() -> Self {
        let named = std::env::var(SEED_VARIABLE).ok();
        let seed = named.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.map_or(1, |now| now.as_nanos() as u64)
        });
        eprintln!("the dice are loaded with {SEED_VARIABLE}={seed}");
        Self::new(seed)
    }

    /// The next number.
    pub fn throw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.throw().checked_rem(end).unwrap_or(0)
    }

    /// Whether one throw in `many` is a hit.
    pub fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    /// Waits for a random time below `most`, often a very short one.
    pub fn pause(&mut self, most: Duration) {
        let most = most.as_micros() as u64 >> self.below(8);
        let pause = Duration::from_micros(self.below(most + 1));
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}
