//! How often a number was how large, in powers of two.
//!
//! Counted by one thread at a time, as a [`Counter`] is: a load and a store a number. Read by any.

use super::counters::Counter;

/// Counts numbers by size: bucket `i` of `N` has those up to 2^(`FIRST` + i), the last one all that are above.
#[derive(Debug)]
pub struct Histogram<const FIRST: u32, const N: usize> {
    buckets: [Counter; N],
    sum: Counter,
}

impl<const FIRST: u32, const N: usize> Default for Histogram<FIRST, N> {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| Counter::default()),
            sum: Counter::default(),
        }
    }
}

impl<const FIRST: u32, const N: usize> Histogram<FIRST, N> {
    /// Counts a number.
    #[inline]
    pub fn record(&self, value: u64) {
        let power = u64::BITS - value.saturating_sub(1).leading_zeros();
        let bucket = (power.saturating_sub(FIRST) as usize).min(N - 1);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.add(1);
        }
        self.sum.add(value);
    }

    /// What was counted so far.
    pub fn view(&self) -> HistogramView {
        let bounded = self.buckets.iter().take(N.saturating_sub(1));
        let bounds = bounded
            .zip(FIRST..)
            .map(|(bucket, power)| (1 << power, bucket.get()));
        HistogramView {
            bounds: bounds.collect(),
            above: self.buckets.last().map_or(0, Counter::get),
            sum: self.sum.get(),
        }
    }
}

/// A histogram at one moment. Its parts may be a moment apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramView {
    /// Upper bounds, ascending, and how many numbers were up to there and above the bound before.
    pub bounds: Vec<(u64, u64)>,
    /// How many were above the last bound.
    pub above: u64,
    /// All of them added up.
    pub sum: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_counted_in_the_bucket_that_it_fits() {
        let histogram = Histogram::<1, 4>::default();
        for value in [0, 1, 2, 3, 4, 5, 8, 9, u64::MAX >> 1] {
            histogram.record(value);
        }
        let view = histogram.view();
        assert_eq!(view.bounds, [(2, 3), (4, 2), (8, 2)]);
        assert_eq!(view.above, 2);
        assert_eq!(view.sum, 32 + (u64::MAX >> 1));
    }
}
