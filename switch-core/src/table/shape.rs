//! What the key of a table looks like, and how much the table may hold.

use serde::{Deserialize, Serialize};

/// Most key fields of a table.
pub(super) const MAX_FIELDS: usize = 12;
/// Most bits of all key fields together.
pub(super) const MAX_KEY_BITS: u32 = 1024;
/// Most bits of one field.
const MAX_FIELD_BITS: u16 = 128;
/// Most entries of a table: version indices have 31 bits, and there are more versions than entries.
const MAX_ENTRIES: usize = 1 << 26;
/// Distinct masks that a table takes unless told otherwise: what bounds the work of one lookup.
const DEFAULT_MAX_MASKS: usize = 1024;

/// How a key field is matched (P4_16 `match_kind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchKind {
    /// All bits.
    Exact,
    /// The first bits; the longest prefix wins.
    Lpm,
    /// The bits under a mask; the entry of the highest priority wins.
    Ternary,
    /// From a low to a high bound, both included; by priority.
    Range,
    /// All bits or none; by priority.
    Optional,
}

/// One field of a table's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyField {
    /// Its width, 1 to 128.
    pub bits: u16,
    /// How it is matched.
    pub kind: MatchKind,
}

impl KeyField {
    /// All ones in the field's width.
    pub(super) fn ones(self) -> u128 {
        low_bits(u32::from(self.bits))
    }
}

/// The low `bits` bits, 0 to 128.
pub(super) fn low_bits(bits: u32) -> u128 {
    match bits {
        0 => 0,
        bits => u128::MAX >> 128u32.saturating_sub(bits),
    }
}

/// A key that a table can have, and the table's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableShape {
    key: Vec<KeyField>,
    max_entries: usize,
    max_masks: usize,
}

/// Why there can be no such table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Too many fields.
    #[error("a key of {0} fields; leave out fields until there are at most {MAX_FIELDS}")]
    TooManyFields(usize),
    /// A field of no or too many bits.
    #[error("key field {field} has {bits} bits; give it 1 to {MAX_FIELD_BITS}, or split it in two")]
    FieldWidth {
        /// Its place in the key.
        field: usize,
        /// Its width.
        bits: u16,
    },
    /// The key is too wide.
    #[error("a key of {0} bits; leave out fields until there are at most {MAX_KEY_BITS}")]
    KeyWidth(u32),
    /// More than one longest-prefix field.
    #[error(
        "key fields {first} and {second} are both lpm; make one of them ternary and give entries a priority"
    )]
    TwoPrefixes {
        /// The first one's place in the key.
        first: usize,
        /// The second one's.
        second: usize,
    },
    /// No or too many entries.
    #[error("a table of {0} entries; ask for 1 to {MAX_ENTRIES}")]
    MaxEntries(usize),
    /// The table's part of the change counters lies outside of them, or is empty.
    #[error(
        "change counters {first}..{end} of {available}; give the table at least one of those that exist"
    )]
    Counters {
        /// The first.
        first: u32,
        /// The one behind the last.
        end: u64,
        /// How many there are.
        available: usize,
    },
}

impl TableShape {
    /// A table of this key and of at most so many entries.
    ///
    /// # Errors
    /// When the key has more than 12 fields or 1024 bits, or two LPM fields; when a field has no or more than 128 bits; when no
    /// entries are asked for, or more than 67,108,864.
    pub fn new(key: Vec<KeyField>, max_entries: usize) -> Result<Self, ShapeError> {
        if key.len() > MAX_FIELDS {
            return Err(ShapeError::TooManyFields(key.len()));
        }
        let mut prefix = None;
        for (field, of) in key.iter().enumerate() {
            if !(1..=MAX_FIELD_BITS).contains(&of.bits) {
                return Err(ShapeError::FieldWidth {
                    field,
                    bits: of.bits,
                });
            }
            if of.kind == MatchKind::Lpm
                && let Some(first) = prefix.replace(field)
            {
                return Err(ShapeError::TwoPrefixes {
                    first,
                    second: field,
                });
            }
        }
        let bits = key.iter().map(|field| u32::from(field.bits)).sum();
        if bits > MAX_KEY_BITS {
            return Err(ShapeError::KeyWidth(bits));
        }
        if !(1..=MAX_ENTRIES).contains(&max_entries) {
            return Err(ShapeError::MaxEntries(max_entries));
        }
        Ok(Self {
            key,
            max_entries,
            max_masks: DEFAULT_MAX_MASKS,
        })
    }

    /// The same with another bound on the distinct masks of its entries (1,024 by default). A lookup may have to try each of them.
    #[must_use]
    pub fn with_max_masks(mut self, max_masks: usize) -> Self {
        self.max_masks = max_masks.max(1);
        self
    }

    /// The fields of the key.
    #[must_use]
    pub fn key(&self) -> &[KeyField] {
        &self.key
    }

    /// How many entries the table can hold.
    #[must_use]
    pub fn max_entries(&self) -> usize {
        self.max_entries
    }

    /// How many distinct masks its entries can have.
    #[must_use]
    pub fn max_masks(&self) -> usize {
        self.max_masks
    }

    /// Whether entries have a priority: when any field is ternary, range or optional (P4Runtime 1.4 §9.1.1).
    #[must_use]
    pub fn has_priority(&self) -> bool {
        self.key.iter().any(|field| {
            matches!(
                field.kind,
                MatchKind::Ternary | MatchKind::Range | MatchKind::Optional
            )
        })
    }

    /// Whether the longest prefix wins: exact fields and one LPM field, nothing that needs a priority.
    pub(super) fn by_longest_prefix(&self) -> bool {
        !self.has_priority() && self.key.iter().any(|field| field.kind == MatchKind::Lpm)
    }
}
