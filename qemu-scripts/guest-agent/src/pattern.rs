//! The bytes that travel: a stream that a seed and an offset determine, so that the receiver knows every byte.
//!
//! Word `i` is the `i`-th output of SplitMix64. No part of it repeats, so bytes that are lost, doubled or moved show.

/// A position in the stream of one seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
    offset_bytes: u64,
}

impl Pattern {
    /// The start of the stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            offset_bytes: 0,
        }
    }

    /// Bytes handed out or checked so far.
    #[must_use]
    pub fn offset_bytes(&self) -> u64 {
        self.offset_bytes
    }

    /// Goes back to an earlier position: what was handed out was not all sent.
    pub fn rewind(&mut self, bytes: u64) {
        self.offset_bytes = self.offset_bytes.saturating_sub(bytes);
    }

    /// The next `buffer.len()` bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let skipped = (self.offset_bytes % 8) as usize;
        let mut index = self.offset_bytes / 8;
        let head_bytes = if skipped == 0 {
            0
        } else {
            (8 - skipped).min(buffer.len())
        };
        let (head, rest) = buffer.split_at_mut(head_bytes);
        if !head.is_empty() {
            let word = word(self.seed, index).to_le_bytes();
            for (to, from) in head.iter_mut().zip(word.iter().skip(skipped)) {
                *to = *from;
            }
            index += 1;
        }
        for chunk in rest.chunks_mut(8) {
            let word = word(self.seed, index).to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(word) {
                *to = from;
            }
            index += 1;
        }
        self.offset_bytes += buffer.len() as u64;
    }

    /// Checks that `received` are the next bytes. On a difference: its offset in the stream.
    ///
    /// `expected` is scratch space that the caller keeps, so that no call allocates twice.
    ///
    /// # Errors
    /// The stream offset of the first byte that differs.
    pub fn check(&mut self, received: &[u8], expected: &mut Vec<u8>) -> Result<(), u64> {
        let start = self.offset_bytes;
        expected.resize(received.len(), 0);
        self.fill(expected);
        if expected == received {
            return Ok(());
        }
        let same = expected
            .iter()
            .zip(received)
            .take_while(|(a, b)| a == b)
            .count();
        Err(start + same as u64)
    }
}

fn word(seed: u64, index: u64) -> u64 {
    mix(seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// SplitMix64's output function (Steele, Lea and Flood 2014): a bijection that scatters its input.
#[must_use]
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_make_the_same_stream() {
        let mut whole = vec![0; 1000];
        Pattern::new(7).fill(&mut whole);
        for piece_bytes in [1, 3, 7, 8, 9, 64, 333] {
            let mut pattern = Pattern::new(7);
            let mut pieces = vec![0; 1000];
            pieces
                .chunks_mut(piece_bytes)
                .for_each(|piece| pattern.fill(piece));
            assert_eq!(pieces, whole, "in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn a_changed_byte_is_found_at_its_offset() {
        let mut bytes = vec![0; 200];
        Pattern::new(1).fill(&mut bytes);
        bytes[123] ^= 1;
        let (mut pattern, mut scratch) = (Pattern::new(1), Vec::new());
        assert_eq!(pattern.check(&bytes[..100], &mut scratch), Ok(()));
        assert_eq!(pattern.check(&bytes[100..], &mut scratch), Err(123));
    }

    #[test]
    fn a_rewound_stream_repeats_itself() {
        let (mut first, mut again) = ([0; 16], [0; 5]);
        let mut pattern = Pattern::new(3);
        pattern.fill(&mut first);
        pattern.rewind(5);
        pattern.fill(&mut again);
        assert_eq!(again, first[11..]);
    }
}
