//! The cache's keyed hash, over 64-bit words: products of pairs of words, to which secrets were added, folded and summed.
//!
//! The products are those of UMAC's NH (RFC 4418, section 5.2.2); folding each to 64 bits is what foldhash does, and spares carrying sums
//! of 128. They do not wait for each other. Where two keys fall depends on a secret for each word, so nobody outside can make
//! flows collide.

use std::hash::BuildHasher;

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;

use super::key::MOST_KEY_WORDS;

/// The secret of one process.
#[derive(Clone)]
pub(super) struct KeyedHash {
    words: [u64; MOST_KEY_WORDS],
    tweak: [u64; 2],
    fold: [u64; 2],
}

impl KeyedHash {
    pub(super) fn new(seed: u64) -> Self {
        let source = SeedableRandomState::with_seed(seed, SharedSeed::global_random());
        let word = |index: usize| source.hash_one(index as u64);
        Self {
            words: std::array::from_fn(word),
            tweak: [100, 101].map(word),
            fold: [102, 103].map(word),
        }
    }

    /// Of the words as they are; `tweak` tells apart keys with the same words.
    #[inline(always)]
    pub(super) fn of(&self, words: &[u64], tweak: u64) -> u64 {
        self.masked(words, &[u64::MAX; MOST_KEY_WORDS], tweak)
    }

    /// Of `words & mask`.
    #[inline(always)]
    pub(super) fn masked(&self, words: &[u64], mask: &[u64; MOST_KEY_WORDS], tweak: u64) -> u64 {
        let head = match words.len() {
            1 => self.first::<1>(words, mask),
            2 => self.first::<2>(words, mask),
            3 => self.first::<3>(words, mask),
            4 => self.first::<4>(words, mask),
            5 => self.first::<5>(words, mask),
            6 => self.first::<6>(words, mask),
            7 => self.first::<7>(words, mask),
            8 => self.first::<8>(words, mask),
            _ => self.sum(words, mask),
        };
        let [tweak_0, tweak_1] = self.tweak;
        let [fold_0, fold_1] = self.fold;
        let told_apart = folded_product(
            tweak.wrapping_add(tweak_0),
            (words.len() as u64).wrapping_add(tweak_1),
        );
        folded_product(head.wrapping_add(told_apart) ^ fold_0, fold_1)
    }

    /// Unrolled, because the number of words hardly ever changes from frame to frame.
    #[inline(always)]
    fn first<const N: usize>(&self, words: &[u64], mask: &[u64; MOST_KEY_WORDS]) -> u64 {
        match words.first_chunk::<N>() {
            Some(words) => self.sum(words, mask),
            None => 0,
        }
    }

    #[inline(always)]
    fn sum(&self, words: &[u64], mask: &[u64; MOST_KEY_WORDS]) -> u64 {
        let mut sum = 0_u64;
        let mut at = 0;
        while at < words.len() {
            let first = self.hidden(words, mask, at);
            let second = self.hidden(words, mask, at + 1);
            sum = sum.wrapping_add(folded_product(first, second));
            at += 2;
        }
        sum
    }

    /// A masked word with a secret added; of a word that is not there, the secret alone.
    #[inline(always)]
    fn hidden(&self, words: &[u64], mask: &[u64; MOST_KEY_WORDS], at: usize) -> u64 {
        match (words.get(at), mask.get(at), self.words.get(at)) {
            (Some(word), Some(mask), Some(secret)) => (word & mask).wrapping_add(*secret),
            (None, _, Some(secret)) => *secret,
            _ => 1,
        }
    }
}

/// Both halves of the product, one over the other.
#[inline(always)]
fn folded_product(one: u64, other: u64) -> u64 {
    let product = u128::from(one).wrapping_mul(u128::from(other));
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_key_counts_and_every_bit_of_a_hash_comes_up() {
        let hash = KeyedHash::new(1);
        for words in 1..=MOST_KEY_WORDS {
            let plain = vec![0; words];
            let (mut ones, mut zeroes) = (0, u64::MAX);
            for bit in 0..64 * words {
                let mut changed = plain.clone();
                changed[bit / 64] ^= 1 << (bit % 64);
                assert_ne!(hash.of(&plain, 0), hash.of(&changed, 0), "{words} {bit}");
                ones |= hash.of(&changed, 0);
                zeroes &= hash.of(&changed, 0);
            }
            assert_eq!((ones, zeroes), (u64::MAX, 0));
            assert_ne!(hash.of(&plain, 0), hash.of(&plain, 1));
        }
        assert_ne!(hash.of(&[0; 3], 0), hash.of(&[0; 4], 0));
    }

    #[test]
    fn masked_bits_do_not_count() {
        let hash = KeyedHash::new(1);
        let mut mask = [u64::MAX; MOST_KEY_WORDS];
        mask[1] = 0xff00;
        assert_eq!(
            hash.masked(&[1, 0x1234, 3], &mask, 7),
            hash.of(&[1, 0x1200, 3], 7)
        );
    }
}
