//! An action's arguments as entries keep them. There may be a million, so one or two small ones take no room of their own.

/// Arguments of an action, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Params {
    /// One or two small ones, packed.
    Packed(Packed),
    /// Any others, and none.
    Many(Box<[u128]>),
}

/// One value of at most 63 bits; or the topmost bit, six bits that say how many bits the first of two values has, and in the lower
/// 57 bits the first and above it the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packed(u64);

const IS_PAIR: u64 = 1 << 63;
const PAIR_BITS: u32 = 57;

impl Packed {
    fn of(values: &[u128]) -> Option<Self> {
        match *values {
            [one] if one < IS_PAIR.into() => Some(Self(one as u64)),
            [first, second] => {
                let first_bits = 128 - first.leading_zeros();
                let second_bits = 128 - second.leading_zeros();
                if first_bits + second_bits > PAIR_BITS {
                    return None;
                }
                let split = u64::from(first_bits) << PAIR_BITS;
                Some(Self(
                    IS_PAIR | split | (second as u64) << first_bits | first as u64,
                ))
            }
            _ => None,
        }
    }

    /// The values, and how many they are.
    fn values(self) -> ([u128; 2], usize) {
        let Self(word) = self;
        if word & IS_PAIR == 0 {
            return ([word.into(), 0], 1);
        }
        let first_bits = (word >> PAIR_BITS & 63) as u32;
        let both = word & ((1 << PAIR_BITS) - 1);
        let first = both & ((1 << first_bits) - 1);
        ([first.into(), (both >> first_bits).into()], 2)
    }
}

impl From<&[u128]> for Params {
    fn from(values: &[u128]) -> Self {
        Packed::of(values).map_or_else(|| Self::Many(values.into()), Self::Packed)
    }
}

/// Room for arguments that are unpacked.
#[derive(Default)]
pub(crate) struct Unpacked([u128; 2]);

impl Params {
    /// The arguments.
    #[inline]
    pub(crate) fn values<'a>(&'a self, unpacked: &'a mut Unpacked) -> &'a [u128] {
        match self {
            Self::Many(values) => values,
            Self::Packed(packed) => {
                let (values, count) = packed.values();
                unpacked.0 = values;
                unpacked.0.get(..count).unwrap_or_default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_small_values_take_no_room() {
        let most = u128::MAX;
        for (values, packed) in [
            (vec![], false),
            (vec![0], true),
            (vec![(1 << 63) - 1], true),
            (vec![1 << 63], false),
            (vec![most], false),
            (vec![0, 0], true),
            (vec![0, (1 << 57) - 1], true),
            (vec![(1 << 57) - 1, 0], true),
            (vec![0x0a00_0001, 0xffff], true),
            (vec![1 << 56, 1], false),
            (vec![most, most], false),
            (vec![1, 2, 3], false),
        ] {
            let params = Params::from(&values[..]);
            assert_eq!(matches!(params, Params::Packed(_)), packed, "{values:?}");
            assert_eq!(params.values(&mut Unpacked::default()), values);
        }
        assert_eq!(size_of::<Params>(), 16);
    }
}
