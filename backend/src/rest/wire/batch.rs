//! The JSON of a batch of ports and table entries.
use crate::config::PortFields;
use crate::control::batch::Batched;
use serde::{Deserialize, Serialize};
use switch_core::engine::control::Update;
use utoipa::ToSchema;

/// Body of `POST /v1/batch`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AtomicBatch {
    /// Ports that come and go, each named once; at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortOperation>,
    /// Changes of tables, in order, after ports came and before others go; at most 100,000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub updates: Vec<Update>,
}

/// What shall become of a port.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum PortOperation {
    /// It shall be there. What it takes (socket, interface) has to be free before.
    Add(PortFields),
    /// It shall not.
    Remove {
        /// The port.
        name: String,
    },
}

/// Its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AtomicBatchDone {
    /// Ports that are there now and were not.
    pub added: usize,
    /// Ports that are gone.
    pub removed: usize,
    /// Changes of tables: all of them.
    pub updates: usize,
    /// Whether all of it outlives the process.
    pub durable: bool,
}

impl From<Batched> for AtomicBatchDone {
    fn from(done: Batched) -> Self {
        Self {
            added: done.added,
            removed: done.removed,
            updates: done.updates,
            durable: done.durable,
        }
    }
}
