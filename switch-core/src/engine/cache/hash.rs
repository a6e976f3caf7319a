//! The cache's keyed hash, over 64-bit words: products of pairs of words, to which secrets were added, folded and summed.
//!
//! The products are those of UMAC's NH (RFC 4418, section 5.2.2); folding each to 64 bits is what foldhash does, and spares carrying sums
//! of 128. They do not wait for each other. Where two keys fall depends on a secret for each word, so nobody outside can make
//! flows collide.

use std::hash::BuildHasher;

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;

use super::key::{self, FlowKey, HEAD_WORDS, Head, REST_WORDS};
use super::masks::MaskWords;

/// The secret of one process.
#[derive(Clone)]
pub(super) struct KeyedHash {
    head: Head,
    rest: [u64; REST_WORDS],
    tweak: [u64; 2],
    fold: [u64; 2],
}

impl KeyedHash {
    pub(super) fn new(seed: u64) -> Self {
        let source = SeedableRandomState::with_seed(seed, SharedSeed::global_random());
        let word = |index: usize| source.hash_one(index as u64);
        Self {
            head: std::array::from_fn(word),
            rest: std::array::from_fn(|index| word(HEAD_WORDS + index)),
            tweak: [100, 101].map(word),
            fold: [102, 103].map(word),
        }
    }

    /// Of what a mask leaves of a key; `tweak` tells apart keys with the same words.
    #[inline(always)]
    pub(super) fn of(&self, key: &FlowKey, mask: &MaskWords, tweak: u64) -> u64 {
        let head = key::masked(&key.head, &mask.head);
        let mut sum = 0_u64;
        for (words, secrets) in head.chunks_exact(2).zip(self.head.chunks_exact(2)) {
            if let (&[first, second], &[one, other]) = (words, secrets) {
                let product = folded_product(first.wrapping_add(one), second.wrapping_add(other));
                sum = sum.wrapping_add(product);
            }
        }
        if usize::from(key.length) > HEAD_WORDS {
            sum = sum.wrapping_add(self.of_rest(key.rest(), &mask.rest));
        }
        let [tweak_0, tweak_1] = self.tweak;
        let [fold_0, fold_1] = self.fold;
        let told_apart = folded_product(
            tweak.wrapping_add(tweak_0),
            u64::from(key.length).wrapping_add(tweak_1),
        );
        folded_product(sum.wrapping_add(told_apart) ^ fold_0, fold_1)
    }

    #[inline(never)]
    fn of_rest(&self, words: &[u64], mask: &[u64; REST_WORDS]) -> u64 {
        let mut hidden = self.rest;
        for ((secret, word), mask) in hidden.iter_mut().zip(words).zip(mask) {
            *secret = secret.wrapping_add(word & mask);
        }
        let pairs = hidden.chunks_exact(2).take(words.len().div_ceil(2));
        pairs.fold(0, |sum: u64, pair| match pair {
            &[first, second] => sum.wrapping_add(folded_product(first, second)),
            _ => sum,
        })
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
    use super::super::key::MOST_KEY_WORDS;
    use super::super::masks::complete;
    use super::*;

    fn of(hash: &KeyedHash, words: &[u64], tweak: u64) -> u64 {
        hash.of(&FlowKey::new(0, words), &complete(&[]), tweak)
    }

    #[test]
    fn every_bit_of_a_key_counts_and_every_bit_of_a_hash_comes_up() {
        let hash = KeyedHash::new(1);
        for words in 1..=MOST_KEY_WORDS {
            let plain = vec![0; words];
            let (mut ones, mut zeroes) = (0, u64::MAX);
            for bit in 0..64 * words {
                let mut changed = plain.clone();
                changed[bit / 64] ^= 1 << (bit % 64);
                assert_ne!(
                    of(&hash, &plain, 0),
                    of(&hash, &changed, 0),
                    "{words} {bit}"
                );
                ones |= of(&hash, &changed, 0);
                zeroes &= of(&hash, &changed, 0);
            }
            assert_eq!((ones, zeroes), (u64::MAX, 0));
            assert_ne!(of(&hash, &plain, 0), of(&hash, &plain, 1));
        }
        assert_ne!(of(&hash, &[0; 3], 0), of(&hash, &[0; 4], 0));
    }

    #[test]
    fn masked_bits_do_not_count() {
        let hash = KeyedHash::new(1);
        for (word, words) in [(1, 3), (9, 12)] {
            let (mut mask, mut key) = (vec![u64::MAX; words], vec![7; words]);
            (mask[word], key[word]) = (0xff00, 0x1234);
            let masked = hash.of(&FlowKey::new(0, &key), &complete(&mask), 7);
            key[word] = 0x1200;
            assert_eq!(masked, of(&hash, &key, 7));
        }
    }
}
