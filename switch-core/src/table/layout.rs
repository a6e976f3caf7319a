//! How key fields lie in the words that are hashed, masked and compared.
//!
//! The fields form one string of bits, the first bit the highest of the first word. A longest-prefix field comes last, so that a
//! prefix of the string is the exact part and a prefix of that field.

use super::key::CanonicalKey;
use super::shape::{KeyField, MAX_FIELDS, MatchKind, TableShape};
use super::trie::STRIDE;

/// A part of a field that lies in one word.
#[derive(Clone, Copy, Debug)]
struct Piece {
    field: u8,
    /// How far the piece's bits are shifted up in the field.
    in_field: u8,
    word: u8,
    /// How far they are shifted up in the word.
    in_word: u8,
    /// As many ones as the piece has bits.
    ones: u64,
}

/// Where each field lies.
#[derive(Debug)]
pub(super) struct Layout {
    pieces: Box<[Piece]>,
    fields: Box<[KeyField]>,
    /// Bits of the whole string.
    bits: u32,
    /// Bits before the longest-prefix field.
    exact_bits: u32,
    /// Zeroes before all fields.
    padding: u32,
}

impl Layout {
    pub(super) fn new(shape: &TableShape) -> Self {
        let mut pieces = Vec::new();
        let padding = padding(shape);
        let mut at = padding;
        let mut exact_bits = 0;
        let is_prefix = |field: &KeyField| field.kind == MatchKind::Lpm;
        let fields = || shape.key().iter().enumerate();
        let others = fields().filter(|(_, field)| !is_prefix(field));
        for (index, field) in others.chain(fields().filter(|(_, field)| is_prefix(field))) {
            if is_prefix(field) {
                exact_bits = at;
            }
            let mut left = u32::from(field.bits);
            while left > 0 {
                let bits = left.min(64 - at % 64);
                left -= bits;
                pieces.push(Piece {
                    field: index as u8,
                    in_field: left as u8,
                    word: (at / 64) as u8,
                    in_word: (64 - at % 64 - bits) as u8,
                    ones: u64::MAX >> (64 - bits),
                });
                at += bits;
            }
        }
        Self {
            pieces: pieces.into(),
            fields: shape.key().into(),
            bits: at,
            exact_bits,
            padding,
        }
    }

    /// Words that the string takes; at least one.
    pub(super) fn words(&self) -> usize {
        self.bits.div_ceil(64).max(1) as usize
    }

    /// Bits before the longest-prefix field.
    pub(super) fn exact_bits(&self) -> u32 {
        self.exact_bits
    }

    /// Zeroes before all fields.
    pub(super) fn padding(&self) -> u32 {
        self.padding
    }

    /// The string of these field values. Bits beyond a field's width are left out, missing fields are zero.
    #[inline]
    pub(super) fn pack<const W: usize>(&self, values: &[u128]) -> [u64; W] {
        let mut words = [0; W];
        for piece in &self.pieces {
            let value = values.get(usize::from(piece.field));
            let value = value.copied().unwrap_or(0);
            // In a single word every field is one piece.
            let part = if W == 1 {
                value as u64
            } else {
                (value >> piece.in_field) as u64
            };
            if let Some(word) = words.get_mut(usize::from(piece.word)) {
                *word |= (part & piece.ones) << piece.in_word;
            }
        }
        words
    }

    /// Adds the bits of a string to the fields they belong to.
    #[inline]
    pub(super) fn unpack_into<const W: usize>(&self, words: &[u64; W], fields: &mut [u128]) {
        for piece in &self.pieces {
            let Some(word) = words.get(usize::from(piece.word)) else {
                continue;
            };
            let part = word >> piece.in_word & piece.ones;
            if part != 0
                && let Some(field) = fields.get_mut(usize::from(piece.field))
            {
                *field |= u128::from(part) << piece.in_field;
            }
        }
    }

    /// The value and the mask that a key has in each field. Ranges are left out.
    pub(super) fn values_and_masks(
        &self,
        key: &CanonicalKey,
    ) -> ([u128; MAX_FIELDS], [u128; MAX_FIELDS]) {
        let (mut values, mut masks) = ([0; MAX_FIELDS], [0; MAX_FIELDS]);
        let slots = values.iter_mut().zip(&mut masks);
        for ((value, mask), (&field, matcher)) in slots.zip(self.fields.iter().zip(key.matchers()))
        {
            (*value, *mask) = matcher.value_and_mask(field);
        }
        (values, masks)
    }

    /// The mask of all fields for which `chosen` holds.
    pub(super) fn mask_of<const W: usize>(
        &self,
        mut chosen: impl FnMut(&KeyField) -> bool,
    ) -> [u64; W] {
        let mut masks = [0; MAX_FIELDS];
        for (mask, field) in masks.iter_mut().zip(&self.fields) {
            if chosen(field) {
                *mask = field.ones();
            }
        }
        self.pack(&masks)
    }
}

/// As many zeroes in front as let the longest-prefix field begin where a trie's nodes can, if they take no word more: then its /24
/// or /48 end where a node does, and most of them need none of their own.
fn padding(shape: &TableShape) -> u32 {
    if !shape.by_longest_prefix() {
        return 0;
    }
    let bits = |prefix: bool| -> u32 {
        let fields = shape.key().iter();
        let chosen = fields.filter(|field| (field.kind == MatchKind::Lpm) == prefix);
        chosen.map(|field| u32::from(field.bits)).sum()
    };
    let padding = bits(false).next_multiple_of(STRIDE) - bits(false);
    let bits = bits(false) + bits(true);
    if (bits + padding).div_ceil(64) > bits.div_ceil(64) {
        return 0;
    }
    padding
}

/// The first `bits` bits of a string.
#[inline]
pub(super) fn first_bits<const W: usize>(bits: u32) -> [u64; W] {
    let mut words = [0; W];
    let mut left = bits;
    for word in &mut words {
        *word = match left {
            0 => break,
            1..64 => !(u64::MAX >> left),
            _ => u64::MAX,
        };
        left = left.saturating_sub(64);
    }
    words
}

#[inline]
pub(super) fn and<const W: usize>(one: &[u64; W], other: &[u64; W]) -> [u64; W] {
    let mut words = *one;
    for (word, other) in words.iter_mut().zip(other) {
        *word &= other;
    }
    words
}

#[inline]
pub(super) fn or_into<const W: usize>(words: &mut [u64; W], other: &[u64; W]) {
    for (word, other) in words.iter_mut().zip(other) {
        *word |= other;
    }
}
