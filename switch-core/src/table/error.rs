//! Why a change to a table was refused.

use super::Epoch;
use super::shape::MatchKind;

/// Why a change was refused. Nothing was changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// There is an entry with the same matchers and the same priority.
    #[error("an entry with this key and priority exists; modify it instead")]
    AlreadyExists,
    /// There is no entry with these matchers and this priority.
    #[error("no entry has this key and priority; read the table to see what it has")]
    NotFound,
    /// The table holds as many entries as its shape allows.
    #[error(
        "the table is full with {limit} entries; delete some, or raise its size in the program"
    )]
    Full {
        /// The shape's limit.
        limit: usize,
    },
    /// Another mask than those of the entries there are, and as many masks as the shape allows.
    #[error(
        "the entries have {limit} distinct masks already, which all have to be tried for a frame; use masks that other entries have, or raise the table's limit of masks"
    )]
    TooManyMasks {
        /// The shape's limit.
        limit: usize,
    },
    /// Too many entries that all have to be compared one by one.
    #[error(
        "{limit} entries match the same values and differ only in priority or in ranges; merge some of them"
    )]
    TooManyOverlaps {
        /// How many there can be.
        limit: usize,
    },
    /// Too many versions of entries that were replaced or removed are still in use.
    #[error(
        "the table keeps {limit} versions of entries; send smaller batches, or try again when earlier ones are done"
    )]
    TooManyVersions {
        /// How many there can be.
        limit: usize,
    },
    /// Another number of matchers than the table's key has fields.
    #[error("{given} matchers for a key of {expected} fields; give one for each field")]
    FieldCount {
        /// Fields of the key.
        expected: usize,
        /// Matchers of the entry.
        given: usize,
    },
    /// A matcher that the field's kind has no use for.
    #[error("key field {field} is {kind:?}, which this matcher does not fit; send {send}")]
    WrongMatcher {
        /// The field's place in the key.
        field: usize,
        /// What the field is.
        kind: MatchKind,
        /// What fits.
        send: &'static str,
    },
    /// A value, mask, bound or prefix length beyond the field.
    #[error(
        "key field {field} has {bits} bits, and {value:#x} does not fit; send a smaller number"
    )]
    TooWide {
        /// The field's place in the key.
        field: usize,
        /// Its width.
        bits: u16,
        /// What was sent.
        value: u128,
    },
    /// Bits of the value that the prefix or mask does not look at (P4Runtime 1.4 §9.1.1 wants them zero).
    #[error(
        "key field {field}: {value:#x} has bits set that the prefix or mask leaves out; send {send:#x}"
    )]
    NotCanonical {
        /// The field's place in the key.
        field: usize,
        /// What was sent.
        value: u128,
        /// The same without those bits.
        send: u128,
    },
    /// A range that holds nothing.
    #[error(
        "key field {field}: the range {low:#x} to {high:#x} is empty; send the lower bound first"
    )]
    EmptyRange {
        /// The field's place in the key.
        field: usize,
        /// Lower bound.
        low: u128,
        /// Upper bound.
        high: u128,
    },
    /// A priority in a table whose entries have none.
    #[error("priority {0} in a table whose entries have none; send 0")]
    PriorityUnused(i32),
    /// A change for an epoch before one that has changes.
    #[error("a change for epoch {} after changes for {}; stage it for the latest", .at.0, .newest.0)]
    EpochPassed {
        /// The epoch it was staged for.
        at: Epoch,
        /// The latest epoch with changes.
        newest: Epoch,
    },
}
