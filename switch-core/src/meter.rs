//! Token buckets that workers share: rates in bytes and in frames a second.
//!
//! A bucket is one number: how many tokens were ever taken, on the scale of how many the rate has ever given. What the rate gave up
//! to a moment follows from the moment alone, in one multiplication, so nothing is rounded twice and no error adds up: a rate holds
//! over a second as it does over a day. Tokens are taken with one compare-and-exchange.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// Bits after the point of a rate in tokens a nanosecond.
const FRACTION_BITS: u32 = 48;
const NS_PER_SECOND: u128 = 1_000_000_000;
/// No frame is larger, with room to spare.
const MAX_FRAME_BYTES: u32 = 1 << 18;
/// Tokens of a frame, in the bucket that counts frames.
const FRAME_PARTS: u32 = 1 << 10;
const MAX_FRAMES_PER_SECOND: u64 = 1_000_000_000;
/// A worker's time may be this much behind, if it was held up after it looked at its clock. Time from before that means a clock that
/// was set back.
const CLOCK_SKEW_NS: u64 = 4_000_000_000;

/// What a meter lets pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeterConfig {
    /// Bytes a second; no limit if `None`. At most 10^12 (2^40) count.
    pub bytes_per_second: Option<u64>,
    /// Bytes that may pass at once after a quiet time. Less than what the rate gives between two calls, or than a few of the largest
    /// frames, makes the rate lower.
    pub burst_bytes: u64,
    /// Frames a second; no limit if `None`. At most 10^9 count.
    pub frames_per_second: Option<u64>,
    /// Frames that may pass at once after a quiet time; 0 counts as 1.
    pub burst_frames: u64,
}

/// What a meter says of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeterColor {
    /// Within the rate: it passes, and its tokens are taken.
    Green,
    /// Beyond the rate: nothing is taken.
    Red,
}

/// A meter, shared by workers.
#[derive(Debug)]
pub struct Meter {
    bytes: Option<Bucket>,
    frames: Option<Bucket>,
}

impl Meter {
    /// A meter whose buckets are full at its first frame.
    pub fn new(config: &MeterConfig) -> Self {
        Self {
            bytes: config
                .bytes_per_second
                .map(|rate| Bucket::new(rate, config.burst_bytes, MAX_FRAME_BYTES)),
            // Frames are counted in small parts, so that it does not matter where in the time of one a bucket began.
            frames: config.frames_per_second.map(|rate| {
                let rate = rate.min(MAX_FRAMES_PER_SECOND) * u64::from(FRAME_PARTS);
                let burst = config.burst_frames.max(1);
                Bucket::new(
                    rate,
                    burst.saturating_mul(u64::from(FRAME_PARTS)),
                    FRAME_PARTS,
                )
            }),
        }
    }

    /// Asks for a frame of this many bytes to pass at `now_ns`, nanoseconds on a clock that all callers share.
    ///
    /// A frame larger than the burst passes when the bucket is full, and the next ones wait until it is paid for: 64 KiB frames keep
    /// to a rate however small the burst is.
    #[inline]
    pub fn offer(&self, bytes: u32, now_ns: u64) -> MeterColor {
        let bytes = u64::from(bytes.min(MAX_FRAME_BYTES));
        if let Some(bucket) = &self.bytes
            && !bucket.take(bytes, now_ns)
        {
            return MeterColor::Red;
        }
        if let Some(bucket) = &self.frames
            && !bucket.take(u64::from(FRAME_PARTS), now_ns)
        {
            if let Some(bucket) = &self.bytes {
                bucket.give_back(bytes);
            }
            return MeterColor::Red;
        }
        MeterColor::Green
    }
}

/// One rate.
#[derive(Debug)]
struct Bucket {
    /// Tokens ever taken; a time's worth of tokens that nobody took before the bucket was full counts as taken.
    taken: AtomicU64,
    /// Tokens a nanosecond, as a fixed-point number.
    rate: u64,
    burst: u64,
    /// If more than this was taken beyond what was given, the clock was set back.
    most_owed: u64,
}

/// Nothing was asked for so far: the bucket is full. One in 2^64 other values looks so too, and then is worth a burst.
const UNTOUCHED: u64 = 1 << 63;

impl Bucket {
    const MAX_RATE: u64 = 1 << 40;
    const MAX_BURST: u64 = 1 << 60;

    fn new(per_second: u64, burst: u64, at_once: u32) -> Self {
        let per_second = per_second.min(Self::MAX_RATE);
        let burst = burst.clamp(1, Self::MAX_BURST);
        let rate = ((u128::from(per_second) << FRACTION_BITS) / NS_PER_SECOND) as u64;
        let skew = (u128::from(CLOCK_SKEW_NS) * u128::from(rate)) >> FRACTION_BITS;
        Self {
            taken: AtomicU64::new(UNTOUCHED),
            rate,
            burst,
            most_owed: skew as u64 + u64::from(at_once),
        }
    }

    /// All that the rate has given up to a moment, from zero on and around the end of 64 bits.
    #[inline]
    fn given(&self, now_ns: u64) -> u64 {
        ((u128::from(now_ns) * u128::from(self.rate)) >> FRACTION_BITS) as u64
    }

    #[inline]
    fn take(&self, tokens: u64, now_ns: u64) -> bool {
        let given = self.given(now_ns);
        let mut taken = self.taken.load(Relaxed);
        loop {
            let mut level = given.wrapping_sub(taken) as i64;
            if level > self.burst as i64 || taken == UNTOUCHED {
                level = self.burst as i64;
            } else if level < -(self.most_owed as i64) {
                // The scale begins anew at this clock, with an empty bucket.
                let empty = self.taken.compare_exchange(taken, given, Relaxed, Relaxed);
                taken = empty.map_or_else(|other| other, |_| given);
                continue;
            }
            if level < tokens.min(self.burst) as i64 {
                return false;
            }
            let next = given.wrapping_sub(level as u64).wrapping_add(tokens);
            match self
                .taken
                .compare_exchange_weak(taken, next, Relaxed, Relaxed)
            {
                Ok(_) => return true,
                Err(other) => taken = other,
            }
        }
    }

    fn give_back(&self, tokens: u64) {
        self.taken.fetch_sub(tokens, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn bytes(rate: u64, burst_bytes: u64) -> Meter {
        Meter::new(&MeterConfig {
            bytes_per_second: Some(rate),
            burst_bytes,
            ..Default::default()
        })
    }

    fn frames(rate: u64, burst_frames: u64) -> Meter {
        Meter::new(&MeterConfig {
            frames_per_second: Some(rate),
            burst_frames,
            ..Default::default()
        })
    }

    /// Frames that pass when as many are offered as will.
    fn passed(meter: &Meter, bytes: u32, now_ns: u64) -> u64 {
        (0..1_000_000)
            .take_while(|_| meter.offer(bytes, now_ns) == MeterColor::Green)
            .count() as u64
    }

    #[test]
    fn without_a_rate_everything_passes() {
        let meter = Meter::new(&MeterConfig::default());
        assert_eq!(passed(&meter, u32::MAX, 0), 1_000_000);
    }

    #[test]
    fn a_meter_gives_its_burst_and_then_its_rate() {
        let meter = frames(10, 5);
        let start = 77 * SECOND_NS;
        assert_eq!(passed(&meter, 64, start), 5);
        assert_eq!(passed(&meter, 64, start + 99_000_000), 0);
        assert_eq!(passed(&meter, 64, start + 100_001_000), 1);
        assert_eq!(passed(&meter, 64, start + 350_001_000), 2);
        assert_eq!(passed(&meter, 64, start + 400_001_000), 1);
    }

    #[test]
    fn no_idle_time_and_no_leap_of_the_clock_gives_more_than_a_burst() {
        for start in [0, 1, SECOND_NS, u64::MAX / 2, u64::MAX - SECOND_NS] {
            for leap in [SECOND_NS, 86_400 * SECOND_NS, u64::MAX / 3] {
                for rate in [1_000, 125_000_000, 12_500_000_000] {
                    let meter = bytes(rate, 6400);
                    let first = passed(&meter, 64, start);
                    assert_eq!(first, 100, "the first burst");
                    let then = passed(&meter, 64, start.wrapping_add(leap));
                    assert!(then <= 100, "{then} after {leap} ns at {rate} from {start}");
                }
            }
        }
    }

    #[test]
    fn a_clock_set_back_gives_nothing_but_does_not_block() {
        let meter = bytes(1_000_000, 10_000);
        assert_eq!(passed(&meter, 100, 5000 * SECOND_NS), 100);
        assert_eq!(passed(&meter, 100, SECOND_NS), 0, "nothing is given");
        let passed: u64 = (0..2000)
            .map(|ms| passed(&meter, 100, SECOND_NS + ms * 1_000_000))
            .sum();
        assert!((19_900..=20_100).contains(&passed), "{passed}");
    }

    #[test]
    fn clocks_that_differ_a_little_don_t_add_up() {
        let meter = bytes(100_000_000, 100_000);
        let mut passed_bytes = 0;
        for us in 0..1_000_000_u64 {
            // One worker is 3 ms behind the other.
            let now_ns = SECOND_NS * 9 + us * 1000 - us % 2 * 3_000_000;
            if meter.offer(1000, now_ns) == MeterColor::Green {
                passed_bytes += 1000;
            }
        }
        assert!(
            (99_000_000..=101_000_000).contains(&passed_bytes),
            "{passed_bytes}"
        );
    }

    #[test]
    fn a_frame_larger_than_the_burst_passes_and_is_paid_for() {
        let meter = bytes(1_000_000, 1500);
        let sent: u64 = (0..10_000_u64)
            .filter(|ms| meter.offer(65_536, ms * 1_000_000) == MeterColor::Green)
            .count() as u64
            * 65_536;
        assert!((9_900_000..=10_100_000).contains(&sent), "{sent}");
    }

    #[test]
    fn both_rates_hold_and_what_one_refuses_costs_the_other_nothing() {
        let meter = Meter::new(&MeterConfig {
            bytes_per_second: Some(1000),
            burst_bytes: 10_000,
            frames_per_second: Some(100),
            burst_frames: 2,
        });
        // Frames are the limit: bytes refused along with them are given back.
        assert_eq!(passed(&meter, 1000, 0), 2);
        for _ in 0..100 {
            assert_eq!(meter.offer(1000, 0), MeterColor::Red);
        }
        assert_eq!(meter.offer(8000, 10_001_000), MeterColor::Green);
        // Now bytes are the limit: the frames are there.
        let later = 10 * SECOND_NS;
        assert_eq!(meter.offer(9000, later), MeterColor::Green);
        assert_eq!(meter.offer(9000, later), MeterColor::Red);
        assert_eq!(meter.offer(900, later), MeterColor::Green);
    }

    #[test]
    fn threads_together_keep_to_the_rate() {
        let meter = bytes(1_000_000_000, 100_000);
        let green_bytes: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4_u64)
                .map(|thread| {
                    let meter = &meter;
                    scope.spawn(move || {
                        // Each offers the whole rate by itself: a frame a microsecond, for a second.
                        (0..1_000_000_u64)
                            .filter(|us| {
                                meter.offer(1000, SECOND_NS + us * 1000 + thread)
                                    == MeterColor::Green
                            })
                            .count() as u64
                            * 1000
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .sum()
        });
        // Threads' clocks are not in step here, so those behind may find nothing left: never more than the rate and a burst.
        assert!(green_bytes <= 1_000_100_000, "{green_bytes}");
        assert!(green_bytes >= 900_000_000, "{green_bytes}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Frames of any size come at twice the rate, each as long after the last as its size takes.
        #[test]
        fn a_rate_holds_within_a_hundredth_over_a_second(
            rate in 1_000_000_u64..12_500_000_000,
            sizes in prop::collection::vec(64_u32..65_536, 1..50),
            start_ns in any::<u64>(),
        ) {
            let mean = sizes.iter().map(|&size| u64::from(size)).sum::<u64>() / sizes.len() as u64;
            prop_assume!(2 * rate / mean < 1_000_000);
            // Room for what adds up while frames too large for it are refused.
            let meter = bytes(rate, rate / 500 + 4 * 65_536);
            let start_ns = start_ns / 2;
            let (mut offered, mut frame) = (0_u128, 0);
            // A second in which the burst is used up, then the one that is measured.
            let mut green_bytes = [0; 2];
            loop {
                let after_ns = (offered * u128::from(SECOND_NS) / u128::from(2 * rate)) as u64;
                let Some(green_bytes) = green_bytes.get_mut((after_ns / SECOND_NS) as usize) else {
                    break;
                };
                let size = sizes[frame % sizes.len()];
                if meter.offer(size, start_ns + after_ns) == MeterColor::Green {
                    *green_bytes += u64::from(size);
                }
                offered += u128::from(size);
                frame += 1;
            }
            let error = green_bytes[1].abs_diff(rate);
            // Which frame is the second's last is worth one frame.
            prop_assert!(error <= rate / 100 + 65_536, "{} of {rate}", green_bytes[1]);
        }
    }
}
