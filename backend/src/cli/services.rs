//! `ringswitch services ...`: ask the daemon, then print.
use super::arguments::ServicesCommand;
use super::client::Client;
use super::commands::{Format, print, print_json, show};
use super::exit::CliError;
use super::table::Align::{Left, Right};
use super::table::Table;
use crate::control::services::document::MAX_DOCUMENT_BYTES;
use crate::rest::wire::{LeaseList, NeighborList, ServicesReport, ServicesSet};
use hyper::Method;
use std::io::{self, Read};
use std::path::Path;
use switch_core::service::ServicesConfig;

/// Does what the arguments say.
pub async fn ask(
    command: &ServicesCommand,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    match command {
        ServicesCommand::Show => {
            let body = client.get("/v1/services").await?;
            if format == Format::Json {
                return print_json(&body);
            }
            let config: ServicesConfig = client.decode(&body)?;
            let text = serde_json::to_string_pretty(&config).map_err(|error| CliError::Io {
                action: "write the configuration",
                source: error.into(),
            })?;
            print(&format!("{text}\n"))
        }
        ServicesCommand::Set { file } => {
            let text = read(file)?;
            let body = client.request(Method::PUT, "/v1/services", text).await?;
            show(client, format, &body, |set: &ServicesSet| {
                let durable = if set.durable {
                    ""
                } else {
                    ", not durable: the daemon has no state_dir"
                };
                format!("ok: {} router interfaces{durable}\n", set.interfaces)
            })
        }
        ServicesCommand::Leases => {
            let body = client.get("/v1/services/leases").await?;
            show(client, format, &body, leases)
        }
        ServicesCommand::Neighbors => {
            let body = client.get("/v1/services/neighbors").await?;
            show(client, format, &body, neighbors)
        }
        ServicesCommand::Stats => {
            let body = client.get("/v1/services/stats").await?;
            show(client, format, &body, stats)
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    let unreadable = |source| CliError::Io {
        action: "read the configuration of services",
        source,
    };
    let input: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let named = |error: io::Error| {
            let text = format!("{}: {error}", file.display());
            unreadable(io::Error::new(error.kind(), text))
        };
        Box::new(std::fs::File::open(file).map_err(named)?)
    };
    let mut text = vec![];
    input
        .take(MAX_DOCUMENT_BYTES as u64 + 1)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    if text.len() > MAX_DOCUMENT_BYTES {
        return Err(unreadable(io::Error::other("it is larger than 8 MiB")));
    }
    Ok(text)
}

fn seconds(ms: u64) -> String {
    format!("{} s", ms / 1000)
}

fn leases(list: &LeaseList) -> String {
    let mut rows = Table::new(&[
        ("INTERFACE", Right),
        ("ADDRESS", Left),
        ("PORT", Left),
        ("CLIENT", Left),
        ("EXPIRES", Right),
    ]);
    for lease in &list.dhcp4 {
        rows.row([
            lease.interface.to_string(),
            lease.address.to_string(),
            lease.port.clone(),
            lease.mac.to_string(),
            seconds(lease.expires_in_ms),
        ]);
    }
    for lease in &list.dhcp6 {
        rows.row([
            lease.interface.to_string(),
            lease.address.to_string(),
            lease.port.clone(),
            format!("DUID {}", lease.duid),
            seconds(lease.expires_in_ms),
        ]);
    }
    rows.render()
}

fn neighbors(list: &NeighborList) -> String {
    let mut rows = Table::new(&[
        ("INTERFACE", Right),
        ("ADDRESS", Left),
        ("STATE", Left),
        ("MAC", Left),
        ("PORT", Left),
        ("QUEUED", Right),
    ]);
    for neighbor in &list.neighbors {
        rows.row([
            neighbor.interface.to_string(),
            neighbor.address.to_string(),
            neighbor.state.clone(),
            neighbor.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            neighbor.port.clone().unwrap_or_default(),
            neighbor.queued_frames.to_string(),
        ]);
    }
    rows.render()
}

fn stats(report: &ServicesReport) -> String {
    let mut text = String::new();
    let mut counters = Table::new(&[("COUNTER", Left), ("COUNT", Right)]);
    let frames = serde_json::to_value(report.frames).unwrap_or_default();
    for (name, count) in frames.as_object().into_iter().flatten() {
        counters.row([name.clone(), count.to_string()]);
    }
    for (name, count) in &report.services {
        counters.row([name.clone(), count.to_string()]);
    }
    text.push_str(&counters.render());
    if !report.drops.is_empty() {
        text.push('\n');
        let mut drops = Table::new(&[("NOT ANSWERED", Left), ("FRAMES", Right), ("DO", Left)]);
        for drop in &report.drops {
            drops.row([
                drop.reason.clone(),
                drop.frames.to_string(),
                drop.advice.clone(),
            ]);
        }
        text.push_str(&drops.render());
    }
    text
}
