//! The JSON of the virtual-device table.
use crate::devices::status::Transition;
use crate::devices::{DeviceFields, DeviceView};
use serde::{Deserialize, Serialize};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use utoipa::ToSchema;

/// `GET /v1/devices`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceList {
    /// By name.
    pub devices: Vec<DeviceReport>,
    /// `after` of the next page; absent: this is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `GET /v1/devices/{name}`: a device as it shall be and as it fares.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceReport {
    /// As it was asked for, with everything that was chosen.
    #[serde(flatten)]
    pub device: DeviceFields,
    /// `pending`, `plugging`, `waiting-for-guest`, `ready`, `unplugging` or `failed`.
    pub state: String,
    /// Why it is not ready, when there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The field that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// When it is tried again, in so many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_in_ms: Option<u64>,
    /// The port it owns.
    pub port: String,
    /// That it shall go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removal: Option<RemovalReport>,
    /// Whether it outlives the process.
    pub durable: bool,
    /// The latest transitions, oldest first.
    pub history: Vec<TransitionReport>,
}

/// A removal that is under way.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct RemovalReport {
    /// Whether it goes although its guest does not let go of it.
    pub force: bool,
    /// How long the guest may take.
    pub timeout_ms: u64,
}

/// One transition.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TransitionReport {
    /// When, in milliseconds since 1970 (UTC).
    pub at_ms: u64,
    /// To which state.
    pub state: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl From<DeviceView> for DeviceReport {
    fn from(view: DeviceView) -> Self {
        let status = view.actual.status();
        let fault = status.fault.as_ref();
        let until = |retry: Instant| {
            let left = retry.saturating_duration_since(Instant::now());
            u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
        };
        Self {
            state: status.state.to_string(),
            reason: fault.map(|fault| fault.reason.clone()),
            field: fault.and_then(|fault| fault.field).map(str::to_owned),
            remedy: fault.map(|fault| fault.remedy.clone()),
            retry_in_ms: status.retry.map(until),
            port: view.device.name().to_string(),
            removal: view.removal.map(|removal| RemovalReport {
                force: removal.force,
                timeout_ms: u64::try_from(removal.timeout.as_millis()).unwrap_or(u64::MAX),
            }),
            durable: view.durable,
            history: view.actual.history().map(Into::into).collect(),
            device: view.device.fields(),
        }
    }
}

impl From<&Transition> for TransitionReport {
    fn from(transition: &Transition) -> Self {
        Self {
            at_ms: since_1970_ms(transition.at),
            state: transition.state.to_string(),
            reason: transition.reason.clone(),
        }
    }
}

fn since_1970_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
