//! A range as the prefixes that cover it.

use super::shape::low_bits;

/// The fewest value and mask pairs, each a prefix in a field of `bits` bits, that together are `low..=high`. At most twice as many
/// as the field has bits, less two.
pub(super) fn prefixes(low: u128, high: u128, bits: u32) -> Vec<(u128, u128)> {
    let ones = low_bits(bits);
    let mut covered = Vec::new();
    let mut at = low;
    loop {
        // The largest block that starts here and does not end beyond the range.
        let mut free = at.trailing_zeros().min(bits);
        while free > 0 && at | low_bits(free) > high {
            free -= 1;
        }
        covered.push((at, ones & !low_bits(free)));
        let last = at | low_bits(free);
        if last >= high {
            return covered;
        }
        at = last + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_cover_a_range_and_nothing_else() {
        for low in 0..32 {
            for high in low..32 {
                let covered = prefixes(low, high, 5);
                assert!(covered.len() <= 8);
                for value in 0..32 {
                    let matching = covered.iter().filter(|&&(at, mask)| value & mask == at);
                    assert_eq!(matching.count(), usize::from((low..=high).contains(&value)));
                }
            }
        }
    }

    #[test]
    fn the_widest_ranges_end() {
        assert_eq!(prefixes(0, u128::MAX, 128), [(0, 0)]);
        assert_eq!(prefixes(1, u128::MAX - 1, 128).len(), 254);
        assert_eq!(
            prefixes(u128::MAX, u128::MAX, 128),
            [(u128::MAX, u128::MAX)]
        );
    }
}
