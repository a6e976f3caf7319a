//! The JSON of an upgrade.
use crate::handover::give::Upgraded;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /v1/upgrade`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeStart {
    /// Absolute path of the program to start. Absent: the one that runs, as it is on disk now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
    /// How long it may take to be ready, 1 to 10000 ms. Absent: 5000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10_000)]
    pub timeout_ms: Option<i64>,
}

/// What an upgrade came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpgradeReport {
    /// The process that serves everything now.
    pub pid: u32,
    /// How long no process served the rings, in microseconds.
    pub gap_us: u64,
    /// How long all of it took, in milliseconds.
    pub took_ms: u64,
}

impl From<Upgraded> for UpgradeReport {
    fn from(upgraded: Upgraded) -> Self {
        Self {
            pid: upgraded.pid,
            gap_us: u64::try_from(upgraded.gap.as_micros()).unwrap_or(u64::MAX),
            took_ms: u64::try_from(upgraded.took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
