//! A token bucket: how often a port may make the switch do something that costs others.

use crate::time::Millis;

/// So many times a second, and so many at once after a quiet time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Tokens that come back each second.
    pub per_second: u32,
    /// Tokens that a full bucket holds.
    pub burst: u32,
}

impl RateLimit {
    /// No limit worth the name.
    pub const UNLIMITED: Self = Self {
        per_second: u32::MAX,
        burst: u32::MAX,
    };
}

/// The bucket. Counts thousandths of a token, because a millisecond brings as many as a second brings tokens.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    limit: RateLimit,
    thousandths: u64,
    filled_at: Millis,
}

impl TokenBucket {
    /// A full bucket.
    pub fn full(limit: RateLimit, now: Millis) -> Self {
        Self {
            limit,
            thousandths: u64::from(limit.burst) * 1000,
            filled_at: now,
        }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Millis) -> bool {
        let elapsed_ms = now.since(self.filled_at).0;
        if elapsed_ms > 0 {
            let gained = elapsed_ms.saturating_mul(u64::from(self.limit.per_second));
            self.thousandths = self
                .thousandths
                .saturating_add(gained)
                .min(u64::from(self.limit.burst) * 1000);
            self.filled_at = now;
        }
        match self.thousandths.checked_sub(1000) {
            Some(rest) => {
                self.thousandths = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(bucket: &mut TokenBucket, now: Millis) -> usize {
        (0..1000).take_while(|_| bucket.take(now)).count()
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::full(
            RateLimit {
                per_second: 10,
                burst: 5,
            },
            Millis(0),
        );
        assert_eq!(taken(&mut bucket, Millis(0)), 5);
        assert_eq!(taken(&mut bucket, Millis(99)), 0);
        assert_eq!(taken(&mut bucket, Millis(100)), 1);
        assert_eq!(taken(&mut bucket, Millis(350)), 2);
        assert_eq!(taken(&mut bucket, Millis(400)), 1);
        assert_eq!(taken(&mut bucket, Millis(u64::MAX)), 5);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let mut bucket = TokenBucket::full(
            RateLimit {
                per_second: 1000,
                burst: 1,
            },
            Millis(1000),
        );
        assert!(bucket.take(Millis(1000)));
        assert!(!bucket.take(Millis(0)));
    }
}
