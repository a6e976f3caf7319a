//! The JSON of flows that workers remember.
use serde::{Deserialize, Serialize};
use switch_core::ListedFlow;
use utoipa::{IntoParams, ToSchema};

/// The query of a listing of flows.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FlowsQuery {
    /// Only flows of frames that come from this port.
    pub port: Option<String>,
    /// How many; 1000 when absent.
    #[param(minimum = 1, maximum = 10_000)]
    pub limit: Option<u32>,
}

/// `GET /v1/flows`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FlowList {
    /// By worker and port.
    pub flows: Vec<Flow>,
    /// Whether there are more than were asked for.
    pub truncated: bool,
}

/// A decision that a worker remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flow {
    /// Which worker.
    pub worker: usize,
    /// The port that the frames come from.
    pub port: String,
    /// Which frames, and what becomes of them.
    #[serde(flatten)]
    pub flow: ListedFlow,
}
