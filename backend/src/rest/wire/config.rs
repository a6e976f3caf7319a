//! The JSON of what runs and of the configuration file.
use crate::config::{PortConfig, PortFields};
use crate::control::PortOrigin;
use crate::control::config_diff::{ConfigView, Difference, RunningPort};
use crate::control::desired_ports::PortChange;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/config`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConfigReport {
    /// The configuration file; absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Whether changes at run time outlive the process.
    pub durable: bool,
    /// What runs, by name.
    pub ports: Vec<ConfiguredPort>,
}

/// A port that there shall be.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConfiguredPort {
    /// Where it comes from.
    pub origin: PortOrigin,
    /// Its keys, without those that are as by default.
    pub port: PortFields,
    /// Why it cannot be opened; it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// `GET /v1/config/diff`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConfigDiff {
    /// The configuration file; absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Whether changes at run time outlive the process.
    pub durable: bool,
    /// Ports that run otherwise than the file has them, by name.
    pub differences: Vec<PortDifference>,
    /// Changes at run time that do not hold, since the file says otherwise.
    pub overridden: Vec<OverriddenChange>,
    /// Ports that cannot be opened.
    pub faults: Vec<PortFault>,
}

/// A port that runs otherwise than the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortDifference {
    /// The port.
    pub name: String,
    /// `runtime`, `flag`; or `file`: the file was written since, and holds from the next start on.
    pub cause: PortOrigin,
    /// As the file has it; absent: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PortFields>,
    /// As it runs; absent: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<PortFields>,
}

/// A change at run time that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OverriddenChange {
    /// The port.
    pub name: String,
    /// As it was to be; absent: removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortFields>,
}

/// A port that cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortFault {
    /// The port.
    pub name: String,
    /// Why.
    pub reason: String,
}

impl From<ConfigView> for ConfigReport {
    fn from(view: ConfigView) -> Self {
        let port = |port: RunningPort| ConfiguredPort {
            origin: port.origin,
            port: PortFields::from(&port.config),
            fault: port.fault,
        };
        Self {
            file: view.file.map(|path| path.display().to_string()),
            durable: view.durable,
            ports: view.running.into_values().map(port).collect(),
        }
    }
}

impl From<ConfigView> for ConfigDiff {
    fn from(view: ConfigView) -> Self {
        let fields = |port: Option<PortConfig>| port.as_ref().map(PortFields::from);
        let difference = |difference: Difference| PortDifference {
            name: difference.name.to_string(),
            cause: difference.cause,
            file: fields(difference.file),
            running: fields(difference.running),
        };
        let differences = view.differences().into_iter().map(difference).collect();
        let overridden = |(name, change): (_, PortChange)| OverriddenChange {
            name: ToString::to_string(&name),
            port: fields(change.port),
        };
        let fault = |port: RunningPort| {
            Some(PortFault {
                name: port.config.name.to_string(),
                reason: port.fault?,
            })
        };
        Self {
            file: view.file.map(|path| path.display().to_string()),
            durable: view.durable,
            differences,
            overridden: view.overridden.into_iter().map(overridden).collect(),
            faults: view.running.into_values().filter_map(fault).collect(),
        }
    }
}
