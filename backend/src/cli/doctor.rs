//! `ringswitch doctor`: looks a host and its ports over, and says of each finding what to do.
//!
//! It looks twice, a second apart, so that what happens now is told from what once happened. `host` has what concerns the daemon and the machine,
//! `port` what concerns one port, `stuck` its rings that stand still; all are decisions about what was read. The exit code is that of the worst finding.
mod host;
mod port;
mod stuck;

use super::client::{Client, ClientError};
use super::commands::{Format, port_path, print};
use super::exit::CliError;
use super::table::printable;
use crate::rest::wire::{ConfigReport, Health, Port, PortList, StatsReport};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// Between the two looks.
const BETWEEN: Duration = Duration::from_secs(1);

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or not for long.
    Warning,
    /// Something does not work.
    Problem,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// `host`, or the port's name.
    pub about: String,
    /// What was looked at: a word that stays the same.
    pub check: &'static str,
    /// How it is.
    pub finding: String,
    /// What to do; absent when there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// All of them, as JSON.
#[derive(Serialize)]
struct Report<'a> {
    worst: Level,
    findings: &'a [Finding],
}

/// Finds things about one subject.
#[derive(Debug)]
struct Findings {
    about: String,
    list: Vec<Finding>,
}

impl Findings {
    fn about(what: &str) -> Self {
        Self {
            about: what.to_owned(),
            list: Vec::new(),
        }
    }

    fn ok(&mut self, check: &'static str, finding: impl Into<String>) {
        self.add(Level::Ok, check, finding.into(), None);
    }

    fn warn(&mut self, check: &'static str, finding: impl Into<String>, advice: &str) {
        self.add(Level::Warning, check, finding.into(), Some(advice));
    }

    fn problem(&mut self, check: &'static str, finding: impl Into<String>, advice: &str) {
        self.add(Level::Problem, check, finding.into(), Some(advice));
    }

    fn add(&mut self, level: Level, check: &'static str, finding: String, advice: Option<&str>) {
        self.list.push(Finding {
            level,
            about: self.about.clone(),
            check,
            finding,
            advice: advice.filter(|text| !text.is_empty()).map(str::to_owned),
        });
    }
}

/// What the daemon says of itself at one time.
#[derive(Debug)]
struct Look {
    stats: StatsReport,
    ports: Vec<Port>,
}

/// Looks everything over, or one port and the host.
pub async fn doctor(
    (only, socket): (Option<&str>, &Path),
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    let mut findings = host::socket(socket);
    match examine(only, client).await {
        Ok(more) => findings.extend(more),
        Err(CliError::Client(
            error @ (ClientError::Unreachable { .. } | ClientError::Answer { .. }),
        )) => {
            let mut host = Findings::about("host");
            host.problem("daemon", error.to_string(), "");
            findings.extend(host.list);
        }
        Err(other) => return Err(other),
    }
    findings.extend(host::machine());
    let worst = findings.iter().map(|finding| finding.level).max();
    let worst = worst.unwrap_or(Level::Ok);
    match format {
        Format::Text => print(&text(&findings))?,
        Format::Json => {
            let report = Report {
                worst,
                findings: &findings,
            };
            let json = serde_json::to_string(&report).map_err(|error| CliError::Io {
                action: "write the report",
                source: error.into(),
            })?;
            print(&format!("{json}\n"))?;
        }
    }
    let count = |level| findings.iter().filter(|found| found.level == level).count();
    match worst {
        Level::Ok => Ok(()),
        Level::Warning | Level::Problem => Err(CliError::Unwell {
            problems: count(Level::Problem),
            warnings: count(Level::Warning),
        }),
    }
}

async fn examine(only: Option<&str>, client: &Client) -> Result<Vec<Finding>, CliError> {
    let health: Health = client.decode(&client.get("/healthz").await?)?;
    let mut findings = host::daemon(&health);
    let before = look(only, client).await?;
    tokio::time::sleep(BETWEEN).await;
    let now = look(only, client).await?;
    let config: ConfigReport = client.decode(&client.get("/v1/config").await?)?;
    findings.extend(host::workers(&before.stats, &now.stats));
    findings.extend(host::configuration(&config));
    for port in &now.ports {
        let earlier = before.ports.iter().find(|other| other.name == port.name);
        findings.extend(port::examine(earlier, port));
    }
    Ok(findings)
}

async fn look(only: Option<&str>, client: &Client) -> Result<Look, CliError> {
    let ports = match only {
        Some(name) => vec![client.decode(&client.get(&port_path(name)?).await?)?],
        None => {
            let list: PortList = client.decode(&client.get("/v1/ports").await?)?;
            list.ports
        }
    };
    let stats = client.decode(&client.get("/v1/stats").await?)?;
    Ok(Look { stats, ports })
}

/// A line for each finding, and one for what to do.
fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for found in findings {
        let level = match found.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Problem => "problem",
        };
        let (about, what) = (printable(&found.about), printable(&found.finding));
        text += &format!("{level}  {about}: {}: {what}\n", found.check);
        if let Some(advice) = &found.advice {
            text += &format!("         -> {}\n", printable(advice));
        }
    }
    text
}
