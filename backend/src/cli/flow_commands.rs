//! What workers remember of frames: ask the daemon, then print.
use super::client::Client;
use super::commands::{Format, show};
use super::exit::CliError;
use super::table::Align::{Left, Right};
use super::table::Table;
use crate::config::PortName;
use crate::rest::wire::{Flow, FlowList};
use clap::Subcommand;
use switch_core::{FlowCopy, FlowDecision, LengthRange};

/// What to do with flows.
#[derive(Clone, Debug, Subcommand)]
pub enum FlowCommand {
    /// List the flows that workers' caches hold at this moment, with what becomes of their frames.
    List {
        /// Only flows of frames that come from this port.
        #[arg(long)]
        port: Option<String>,
        /// At most so many, 1 to 10000.
        #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
}

/// `ringswitch flow ...`
pub async fn ask(
    FlowCommand::List { port, limit }: &FlowCommand,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    // A port's name needs no escaping in a query: only its own characters pass.
    let port = port.as_deref().map(PortName::parse).transpose()?;
    let of_port = port.map_or_else(String::new, |port| format!("&port={port}"));
    let path = format!("/v1/flows?limit={limit}{of_port}");
    let body = client.get(&path).await?;
    show(client, format, &body, flow_list)
}

fn flow_list(list: &FlowList) -> String {
    let mut rows = Table::new(&[
        ("WORKER", Right),
        ("PORT", Left),
        ("MATCH", Left),
        ("DECISION", Left),
        ("VALID_S", Right),
    ]);
    for flow in &list.flows {
        let valid = flow.flow.valid_for_ms;
        rows.row([
            flow.worker.to_string(),
            flow.port.clone(),
            match_text(flow),
            decision_text(&flow.flow.decision, flow.flow.metered),
            valid.map_or("-".to_owned(), |ms| format!("{:.1}", ms as f64 / 1e3)),
        ]);
    }
    let mut text = rows.render();
    if list.truncated {
        text.push_str("there are more: use --port, or a larger --limit\n");
    }
    text
}

/// Headers, then fields with what they are.
fn match_text(Flow { flow, .. }: &Flow) -> String {
    let mut parts = vec![flow.headers.join("/")];
    let fields = flow.r#match.iter();
    parts.extend(fields.map(|(field, value)| format!("{field}={value}")));
    for (name, range) in [
        ("frame_bytes", flow.frame_bytes),
        ("wire_bytes", flow.wire_bytes),
    ] {
        parts.extend(range.map(|range| format!("{name}={}", range_text(range))));
    }
    parts.extend(
        flow.connection
            .iter()
            .map(|leg| format!("connection={leg}")),
    );
    parts.join(" ")
}

fn range_text(LengthRange { least, most }: LengthRange) -> String {
    match most {
        u32::MAX => format!("{least}.."),
        most => format!("{least}..{most}"),
    }
}

fn decision_text(decision: &FlowDecision, is_metered: bool) -> String {
    let text = match decision {
        FlowDecision::Drop { reason } => format!("drop: {reason}"),
        FlowDecision::Flood { vlan: None } => "flood".to_owned(),
        FlowDecision::Flood { vlan: Some(vlan) } => format!("flood VLAN {vlan}"),
        FlowDecision::Deliver {
            copies,
            more_copies,
        } => {
            let mut texts: Vec<String> = copies.iter().map(copy_text).collect();
            if *more_copies > 0 {
                texts.push(format!("{more_copies} more"));
            }
            texts.join("; ")
        }
    };
    if is_metered {
        format!("{text} (metered)")
    } else {
        text
    }
}

/// What is done to it, then where it goes.
fn copy_text(FlowCopy { to, edits }: &FlowCopy) -> String {
    let steps = edits.iter().chain([to]);
    let steps: Vec<&str> = steps.map(String::as_str).collect();
    format!("-> {}", steps.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_a_line_and_the_last_says_that_there_are_more() {
        let list: FlowList = serde_json::from_str(
            r#"{"truncated": true, "flows": [
                {"worker": 1, "port": "vm1", "headers": ["ethernet", "ipv4"], "match": {"ipv4.dst": "10.0.0.0/8"}, "metered": true,
                 "wire_bytes": {"least": 0, "most": 1514}, "connection": "reply", "valid_for_ms": 900,
                 "decision": {"outcome": "deliver", "copies": [{"to": "vm2", "edits": ["push VLAN 10"]}, {"to": "vm3"}], "more_copies": 5}},
                {"worker": 1, "port": "vm2", "headers": ["ethernet"], "match": {}, "decision": {"outcome": "drop", "reason": "acl_denied"}},
                {"worker": 1, "port": "vm3", "headers": ["ethernet"], "match": {}, "decision": {"outcome": "flood", "vlan": 10}}]}"#,
        )
        .unwrap();
        let text = flow_list(&list);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|cell| !cell.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            lines,
            [
                vec!["WORKER", "PORT", "MATCH", "DECISION", "VALID_S"],
                vec![
                    "1",
                    "vm1",
                    "ethernet/ipv4 ipv4.dst=10.0.0.0/8 wire_bytes=0..1514 connection=reply",
                    "-> push VLAN 10, vm2; -> vm3; 5 more (metered)",
                    "0.9"
                ],
                vec!["1", "vm2", "ethernet", "drop: acl_denied", "-"],
                vec!["1", "vm3", "ethernet", "flood VLAN 10", "-"],
                vec!["there are more: use --port, or a larger --limit"],
            ]
        );
    }
}
