//! The match tables of the pipeline: what a key is, how entries are stored, found and changed.
//!
//! In the order in which a lookup meets them:
//!
//! * `shape`: the key fields of a table and its limits;
//! * `key`: an entry's key, its canonical form, and which of two matching entries wins;
//! * `layout`: how the fields lie in the words that are hashed and compared;
//! * `counters`: change counters, by which a flow cache learns that a remembered result is stale;
//! * `table`: [`Table`], what the control thread and the workers call;
//! * `entry`: entries and hits;
//! * `store`: the lock, and how long it is held;
//! * `counter_plan`: which counters a lookup depends on and a change bumps;
//! * `state`: what is behind the lock: entries, their versions, what is staged;
//! * `version`: one version of an entry;
//! * `index`: which of two indexes a table has;
//! * `tuple_space`: the index of exact, ternary, range and optional keys: a hash look-up for each set of masks;
//! * `buckets`: the hash buckets below it, which grow by one bucket at a time;
//! * `range`: a range as prefixes;
//! * `trie`: the index of longest-prefix tables;
//! * `blocks`: what its nodes lead to;
//! * `seed`: keyed hashing;
//! * `slab`: storage with small steps of growth.
//!
//! **Epochs.** A change is staged for an epoch that is not published yet. Each version of an entry holds the epochs `from..to` in
//! which it can be seen, and a lookup says at which epoch it looks. So a batch across several tables takes effect at once, when the
//! engine publishes its epoch, and what-if questions are answered at an epoch that never is. [`Table::collect`] frees what no
//! epoch in use can see.
//!
//! **Threads.** One control thread stages, publishes, bumps and collects; workers look up meanwhile. A lookup holds the table's
//! lock for reading, a change holds it for writing for one entry or a few dozen; nothing waits for more, and nothing in a table is
//! ever rebuilt as a whole.

mod blocks;
mod buckets;
mod counter_plan;
mod counters;
mod entry;
mod error;
mod index;
mod key;
mod layout;
mod range;
mod seed;
mod shape;
mod slab;
mod state;
mod store;
#[expect(
    clippy::module_inception,
    reason = "the file of the type that the folder is named for"
)]
mod table;
mod trie;
mod tuple_space;
mod version;

pub use counters::{ChangeCounters, CounterRange, Dependencies};
pub use entry::{Entry, EntryHandle, Hit};
pub use error::TableError;
pub use key::{EntryKey, Matcher};
pub use shape::{KeyField, MatchKind, ShapeError, TableShape};
pub use table::Table;

/// A version of the whole set of tables. The engine counts them up; a lookup happens at one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);
