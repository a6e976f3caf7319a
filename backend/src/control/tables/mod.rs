//! Tables at run time: what operators put into the program's tables, kept through restarts.
//!
//! In the order a change flows:
//!
//! * [`service`]: what the admin socket calls; the queue to the one thread that changes tables;
//! * [`writer`]: that thread: quota and engine;
//! * `committer`: a second one: store and answer, for many batches at once;
//! * [`quota`]: how many entries each tenant has and may have;
//! * [`identity`]: which two ways to write a key mean the same entry;
//! * [`engine`]: everything wanted of the match-action engine, as one trait;
//! * [`live`]: that trait over the real engine;
//! * [`l2`]: ports' VLAN policies as entries, and the default program's tables;
//! * [`changes`]: changes on their way to the store, [`record`] an entry as it keeps it;
//! * [`store`]: the durable copy, one transaction for each group of batches; [`rows`]: what it keeps of ports;
//! * [`restore`]: from the durable copy to the engine at the start, and what does not fit any more;
//! * [`versions`]: which state of a table a client has seen;
//! * [`port_names`]: which number each port name has, for good.
//!
//! # In which order a change takes effect
//!
//! ```text
//! queue -> quota -> engine (checks and publishes, whole or not at all) -> store (commit, fsync) -> answer
//! ```
//!
//! The engine comes first because only it can say whether a batch fits; frames may see a change some milliseconds before it is
//! durable and acknowledged. Killed in between, the switch starts again without it: nobody was told that it holds. When the commit
//! fails (a full disk), the engine is put back to what the store has, every batch of the group is refused, and later changes are
//! refused too until a restart, since nobody knows what a failing disk still holds. What it keeps true: an acknowledged change is in
//! the store, and the store never holds part of a batch.
pub mod changes;
mod committer;
pub mod engine;
pub mod identity;
pub mod l2;
pub mod live;
pub mod port_names;
pub mod quota;
pub mod record;
pub mod restore;
pub mod rows;
pub mod service;
pub mod store;
pub mod versions;
pub mod writer;

pub use engine::{KeyShape, TableEngine};
pub use l2::DefaultTables;
pub use port_names::{NamesOfBatch, PortRegistry};
pub use quota::Quotas;
pub use service::{InPlace, Tables, TablesOptions};
pub use store::{Store, StoreError};
pub use versions::Versioned;
pub use writer::{Refusal, Written};

/// Most updates in one batch.
pub const MAX_BATCH_UPDATES: usize = 100_000;
