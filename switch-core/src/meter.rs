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
/// Workers' clocks may differ by this much. A clock that goes back further has been set.
const CLOCK_SKEW_NS: u64 = 10_000_000;

/// What a meter lets pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeterConfig {
    /// Bytes a second; no limit if `None`. At most 10^12 count.
    pub bytes_per_second: Option<u64>,
    /// Bytes that may pass at once after a quiet time. Less than the rate gives between two calls makes the rate lower.
    pub burst_bytes: u64,
    /// Frames a second; no limit if `None`. At most 10^12 count.
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
        let bucket =
            |rate: Option<u64>, burst: u64| rate.map(|rate| Bucket::new(rate, burst.max(1)));
        Self {
            bytes: bucket(config.bytes_per_second, config.burst_bytes),
            frames: bucket(config.frames_per_second, config.burst_frames),
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
            && !bucket.take(1, now_ns)
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
    /// More than was ever given, by at least so much: the clock was set back.
    set_back: u64,
}

impl Bucket {
    const MAX_RATE: u64 = 1_000_000_000_000;
    const MAX_BURST: u64 = 1 << 60;

    fn new(per_second: u64, burst: u64) -> Self {
        let per_second = per_second.min(Self::MAX_RATE);
        let burst = burst.min(Self::MAX_BURST);
        let rate = ((u128::from(per_second) << FRACTION_BITS) / NS_PER_SECOND) as u64;
        let skew = (u128::from(CLOCK_SKEW_NS) * u128::from(rate)) >> FRACTION_BITS;
        Self {
            // Far behind anything that is given, as after a long idle time.
            taken: AtomicU64::new(1 << 63),
            rate,
            burst,
            set_back: skew as u64 + u64::from(MAX_FRAME_BYTES),
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
            if level > self.burst as i64 || level == i64::MIN {
                level = self.burst as i64;
            } else if level < -(self.set_back as i64) {
                level = 0;
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
