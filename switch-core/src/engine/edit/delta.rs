//! The change of a ones' complement sum (RFC 1624): what checksum edits carry.

use crate::checksum::Sum;

/// The ones' complement sum of new minus old words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u16);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0);

    /// The change from `old` to `new`, which start at an even distance from the start of what the checksum covers. They may differ
    /// in length as long as what follows them moves by an even number of bytes.
    pub fn of(old: &[u8], new: &[u8]) -> Self {
        if old == new {
            return Self::NONE;
        }
        Self(add(Sum::of(new).partial(), !Sum::of(old).partial()))
    }

    /// The same change at an odd distance: each byte counts in the other half of its word (RFC 1071 §2 B).
    #[must_use]
    pub const fn at_odd(self) -> Self {
        Self(self.0.swap_bytes())
    }

    /// Both changes.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(add(self.0, other.0))
    }

    /// The number that an [`Edit`](super::Edit) carries.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// The ones' complement sum of two words.
#[inline]
pub(super) const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(carry as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_checksum_follows_a_change_at_any_place(
            mut bytes in proptest::collection::vec(any::<u8>(), 41..80),
            new in proptest::collection::vec(any::<u8>(), 1..20),
            at in 0..20_usize,
        ) {
            // Never all zero, as no header is: a sum of nothing has two forms.
            bytes[40] = 1;
            let before = Sum::of(&bytes).checksum();
            let place = &mut bytes[at..at + new.len()];
            let even = Delta::of(place, &new);
            place.copy_from_slice(&new);
            let delta = if at % 2 == 0 { even } else { even.at_odd() };
            prop_assert_eq!(!add(!before, delta.get()), Sum::of(&bytes).checksum());
        }

        #[test]
        fn changes_add_up(a: [u8; 4], b: [u8; 4], c: [u8; 4]) {
            let two = Delta::of(&a, &b).and(Delta::of(&b, &c)).get();
            let one = Delta::of(&a, &c).get();
            // 0 and 0xffff are the same change.
            prop_assert_eq!(two % 0xffff, one % 0xffff);
        }
    }
}
