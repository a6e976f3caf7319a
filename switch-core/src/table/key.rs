//! An entry's key: what it is on the way in, the one form it has inside, and which of two keys wins.

use std::cmp::Ordering;

use super::error::TableError;
use super::shape::{KeyField, MAX_FIELDS, MatchKind, TableShape, low_bits};

/// What one field of a frame's key must be.
///
/// Which ones fit a field: [`Exact`](Self::Exact) all kinds; [`Prefix`](Self::Prefix) LPM and ternary; [`Ternary`](Self::Ternary)
/// ternary; [`Range`](Self::Range) range; [`Any`](Self::Any) all but exact. What a table gives back is in canonical form: `Any`
/// for what looks at no bit; otherwise `Exact` for an exact or optional field, `Prefix` for LPM, `Ternary` and `Range` for those.
///
/// The order has no meaning; it breaks ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Matcher {
    /// This value.
    Exact(u128),
    /// A value whose first `bits` bits are those of `value`; the others of `value` are zero.
    Prefix {
        /// The prefix, in place: `10.0.0.0` for 10/8.
        value: u128,
        /// Its length in bits.
        bits: u16,
    },
    /// A value that has the bits of `value` under `mask`; the others of `value` are zero.
    Ternary {
        /// The bits.
        value: u128,
        /// Those that count.
        mask: u128,
    },
    /// A value from `low` to `high`, both included.
    Range {
        /// Lower bound.
        low: u128,
        /// Upper bound.
        high: u128,
    },
    /// Whatever it is.
    Any,
}

impl Matcher {
    /// How many bits of the field it narrows down: the mask's; for a range the width less what its size leaves open.
    pub(super) fn specificity(self, field: KeyField) -> u32 {
        let bits = u32::from(field.bits);
        match self {
            Self::Exact(_) => bits,
            Self::Prefix { bits, .. } => u32::from(bits),
            Self::Ternary { mask, .. } => mask.count_ones(),
            Self::Range { low, high } => bits.saturating_sub(128 - (high - low).leading_zeros()),
            Self::Any => 0,
        }
    }

    /// The bits that count and what they must be; for a range none, which is for its caller to see to.
    pub(super) fn value_and_mask(self, field: KeyField) -> (u128, u128) {
        match self {
            Self::Exact(value) => (value, field.ones()),
            Self::Prefix { value, bits } => (value, prefix_mask(field, bits)),
            Self::Ternary { value, mask } => (value, mask),
            Self::Range { .. } | Self::Any => (0, 0),
        }
    }

    /// The canonical matcher of a field that has these bits under this mask, and no range.
    pub(super) fn of_masked(field: KeyField, value: u128, mask: u128) -> Self {
        match field.kind {
            _ if mask == 0 && field.kind != MatchKind::Exact => Self::Any,
            MatchKind::Exact | MatchKind::Optional => Self::Exact(value),
            MatchKind::Lpm => Self::Prefix {
                value,
                bits: mask.count_ones() as u16,
            },
            MatchKind::Ternary | MatchKind::Range => Self::Ternary { value, mask },
        }
    }

    /// Whether a field of this value matches.
    #[must_use]
    pub fn matches(self, value: u128, field: KeyField) -> bool {
        match self {
            Self::Range { low, high } => (low..=high).contains(&value),
            other => {
                let (wanted, mask) = other.value_and_mask(field);
                value & mask == wanted
            }
        }
    }
}

/// The first `bits` bits of a field.
pub(super) fn prefix_mask(field: KeyField, bits: u16) -> u128 {
    field.ones() & !low_bits(u32::from(field.bits.saturating_sub(bits)))
}

/// What identifies an entry of a table: its matchers, one for each key field, and its priority.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntryKey {
    /// One for each key field, in the shape's order.
    pub matchers: Vec<Matcher>,
    /// Larger wins. 0 in tables of exact and LPM fields alone.
    pub priority: i32,
}

/// A key checked against its table's shape, in canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CanonicalKey {
    matchers: [Matcher; MAX_FIELDS],
    fields: usize,
    pub(super) priority: i32,
    /// Bits narrowed down in all fields together.
    pub(super) specificity: u16,
}

impl CanonicalKey {
    pub(super) fn matchers(&self) -> &[Matcher] {
        self.matchers.get(..self.fields).unwrap_or_default()
    }

    /// Field, lower and upper bound of its ranges.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (usize, u128, u128)> + '_ {
        let matchers = self.matchers().iter().enumerate();
        matchers.filter_map(|(field, matcher)| match *matcher {
            Matcher::Range { low, high } => Some((field, low, high)),
            _ => None,
        })
    }

    pub(super) fn to_entry_key(self) -> EntryKey {
        EntryKey {
            matchers: self.matchers().to_vec(),
            priority: self.priority,
        }
    }

    /// Which of two wins where both match: `Greater` when `self` does.
    pub(super) fn precedence(&self, other: &Self) -> Ordering {
        (self.priority, self.specificity)
            .cmp(&(other.priority, other.specificity))
            .then_with(|| self.matchers().cmp(other.matchers()))
    }
}

impl TableShape {
    /// Which of two entries wins where both match: `Greater` when `one` does.
    ///
    /// The larger priority; among equals the one that narrows down more bits, which for LPM is the longer prefix; among equals
    /// still, the one whose canonical matchers are greater in [`Matcher`]'s order. So it depends on the entries alone, not on the
    /// order in which they came.
    ///
    /// # Errors
    /// When either is no key of this shape.
    pub fn precedence(&self, one: &EntryKey, other: &EntryKey) -> Result<Ordering, TableError> {
        Ok(self.canonical(one)?.precedence(&self.canonical(other)?))
    }

    /// The key in the form in which a table gives it back.
    ///
    /// # Errors
    /// When it is no key of this shape.
    pub fn normalize(&self, key: &EntryKey) -> Result<EntryKey, TableError> {
        Ok(self.canonical(key)?.to_entry_key())
    }

    /// Checks a key and brings it into canonical form.
    pub(super) fn canonical(&self, key: &EntryKey) -> Result<CanonicalKey, TableError> {
        if key.matchers.len() != self.key().len() {
            return Err(TableError::FieldCount {
                expected: self.key().len(),
                given: key.matchers.len(),
            });
        }
        if key.priority != 0 && !self.has_priority() {
            return Err(TableError::PriorityUnused(key.priority));
        }
        let mut matchers = [Matcher::Any; MAX_FIELDS];
        let mut specificity = 0;
        let fields = self.key().iter().zip(&key.matchers).enumerate();
        for (slot, (at, (&field, &matcher))) in matchers.iter_mut().zip(fields) {
            *slot = canonical_matcher(at, field, matcher)?;
            specificity += slot.specificity(field);
        }
        Ok(self.canonical_of(matchers, key.priority, specificity as u16))
    }

    /// A canonical key of matchers known to be canonical.
    pub(super) fn canonical_of(
        &self,
        matchers: [Matcher; MAX_FIELDS],
        priority: i32,
        specificity: u16,
    ) -> CanonicalKey {
        CanonicalKey {
            matchers,
            fields: self.key().len(),
            priority,
            specificity,
        }
    }
}

fn canonical_matcher(at: usize, field: KeyField, matcher: Matcher) -> Result<Matcher, TableError> {
    let fits = |value: u128| {
        if value & !field.ones() == 0 {
            Ok(value)
        } else {
            Err(TableError::TooWide {
                field: at,
                bits: field.bits,
                value,
            })
        }
    };
    let under = |value: u128, mask: u128| {
        if fits(value)? & !mask == 0 {
            Ok(value)
        } else {
            Err(TableError::NotCanonical {
                field: at,
                value,
                send: value & mask,
            })
        }
    };
    let wrong = |send| TableError::WrongMatcher {
        field: at,
        kind: field.kind,
        send,
    };
    let (value, mask) = match matcher {
        Matcher::Exact(value) => (fits(value)?, field.ones()),
        Matcher::Prefix { value, bits } => {
            if bits > field.bits {
                return Err(TableError::TooWide {
                    field: at,
                    bits: field.bits,
                    value: u128::from(bits),
                });
            }
            let mask = prefix_mask(field, bits);
            (under(value, mask)?, mask)
        }
        Matcher::Ternary { value, mask } => (under(value, fits(mask)?)?, mask),
        Matcher::Range { low, high } => {
            if fits(low)? > fits(high)? {
                return Err(TableError::EmptyRange {
                    field: at,
                    low,
                    high,
                });
            }
            if field.kind != MatchKind::Range {
                return Err(wrong(
                    "an exact value, a prefix or a mask, as its kind has it",
                ));
            }
            return Ok(match (low, high) {
                (0, high) if high == field.ones() => Matcher::Any,
                _ => Matcher::Range { low, high },
            });
        }
        Matcher::Any => (0, 0),
    };
    match (field.kind, matcher) {
        (MatchKind::Exact, Matcher::Exact(_)) => Ok(matcher),
        (MatchKind::Exact, _) => Err(wrong("an exact value")),
        (MatchKind::Lpm, Matcher::Ternary { .. }) => Err(wrong("a prefix")),
        (MatchKind::Optional, Matcher::Exact(_) | Matcher::Any) => Ok(matcher),
        (MatchKind::Optional, _) => Err(wrong("an exact value, or nothing for any")),
        (MatchKind::Range, Matcher::Exact(_)) => Ok(Matcher::Range {
            low: value,
            high: value,
        }),
        (MatchKind::Range, Matcher::Any) => Ok(Matcher::Any),
        (MatchKind::Range, _) => Err(wrong("a range")),
        _ if mask == 0 => Ok(Matcher::Any),
        (MatchKind::Lpm, _) => Ok(Matcher::Prefix {
            value,
            bits: mask.count_ones() as u16,
        }),
        (MatchKind::Ternary, _) => Ok(Matcher::Ternary { value, mask }),
    }
}
