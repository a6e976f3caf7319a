//! Tables and explanations as text for people. Pure: from the JSON's types to a string.
use super::entry_text::{key_text, params_text};
use super::table::Align::{Left, Right};
use super::table::{Table as TextTable, printable};
use crate::rest::wire::{
    AsideList, BatchDone, ConnectionList, CounterList, Entry, GroupList, LastDrops, MeterList,
    MulticastList, ReasonList, Table, TableList,
};
use serde_json::Value;
use switch_core::engine::literal::Literal;
use switch_core::engine::model::{ActionCall, KeyKind};

/// The answer to a change.
pub fn done(done: BatchDone) -> String {
    let durable = if done.durable {
        ""
    } else {
        ", not durable: the daemon has no state_dir"
    };
    format!("ok{durable}\n")
}

/// `table list`.
pub fn table_list(list: &TableList) -> String {
    let mut rows = TextTable::new(&[
        ("TABLE", Left),
        ("ENTRIES", Right),
        ("SIZE", Right),
        ("KEY", Left),
        ("DEFAULT", Left),
    ]);
    for table in &list.tables {
        rows.row([
            table.name.clone(),
            table.entries.to_string(),
            table.size.to_string(),
            keys(table),
            call(table.default_action.as_ref()),
        ]);
    }
    let mut text = rows.render();
    if list.aside > 0 {
        text.push_str(&format!(
            "{} entries or settings do not fit the program: `ringswitch table aside` shows them\n",
            list.aside
        ));
    }
    text
}

/// `table show`.
pub fn table(table: &Table) -> String {
    let mut text = String::new();
    for (label, value) in [
        ("name", table.name.clone()),
        ("id", format!("{:#010x}", table.id)),
        ("description", table.description.clone()),
        ("key", keys(table)),
        ("actions", table.actions.join(", ")),
        ("default", call(table.default_action.as_ref())),
        ("entries", format!("{} of {}", table.entries, table.size)),
    ] {
        if !value.is_empty() {
            text.push_str(&format!("{label}: {}\n", printable(&value)));
        }
    }
    text
}

fn keys(table: &Table) -> String {
    let one = |key: &crate::rest::wire::TableKey| format!("{}:{}", key.name, kind(key.r#match));
    table.key.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn kind(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Exact => "exact",
        KeyKind::Lpm => "lpm",
        KeyKind::Ternary => "ternary",
        KeyKind::Range => "range",
        KeyKind::Optional => "optional",
    }
}

fn call(call: Option<&ActionCall>) -> String {
    match call {
        None => "-".to_owned(),
        Some(call) => format!("{}({})", call.action, params_text(&call.params)),
    }
}

/// A page of `table entries`. Each page is aligned by itself.
pub fn entries(entries: &[Entry], first: bool) -> String {
    let mut rows = TextTable::new(&[
        ("HANDLE", Right),
        ("PRIORITY", Right),
        ("KEY", Left),
        ("ACTION", Left),
        ("FRAMES", Right),
        ("BYTES", Right),
        ("NOTES", Left),
    ]);
    let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
    for entry in entries {
        let mut notes = vec![];
        if entry.constant {
            notes.push("constant".to_owned());
        }
        if entry.idle_timeout_ms > 0 {
            notes.push(format!("idle {} ms", entry.idle_timeout_ms));
        }
        if entry.hard_timeout_ms > 0 {
            notes.push(format!("at most {} ms", entry.hard_timeout_ms));
        }
        notes.extend(entry.tenant.iter().map(|tenant| format!("of {tenant}")));
        rows.row([
            entry.handle.to_string(),
            entry
                .priority
                .map_or("-".to_owned(), |priority| priority.to_string()),
            key_text(&entry.key),
            format!("{}({})", entry.action, params_text(&entry.params)),
            number(entry.frames),
            number(entry.bytes),
            notes.join(", "),
        ]);
    }
    page(rows, first)
}

/// `table aside`.
pub fn aside(list: &AsideList) -> String {
    if list.aside.is_empty() {
        return "everything fits the program\n".to_owned();
    }
    let mut text = String::new();
    for aside in &list.aside {
        let update = serde_json::to_string(&aside.update).unwrap_or_default();
        text.push_str(&format!(
            "{}\n  {}\n",
            printable(&update),
            printable(&aside.reason)
        ));
    }
    text
}

/// `group list`.
pub fn groups(list: &GroupList) -> String {
    let mut rows = TextTable::new(&[
        ("SELECTOR", Left),
        ("GROUP", Right),
        ("WEIGHT", Right),
        ("MEMBER", Left),
    ]);
    for group in &list.groups {
        for member in &group.members {
            rows.row([
                group.selector.clone(),
                group.group.to_string(),
                member.weight.to_string(),
                params_text(&member.values),
            ]);
        }
    }
    rows.render()
}

/// `multicast list`.
pub fn multicast(list: &MulticastList) -> String {
    let mut rows = TextTable::new(&[("GROUP", Right), ("PORTS", Left)]);
    for group in &list.groups {
        let ports: Vec<String> = group.ports.iter().map(Literal::to_string).collect();
        rows.row([group.group.to_string(), ports.join(" ")]);
    }
    rows.render()
}

/// `meter list`.
pub fn meters(list: &MeterList) -> String {
    let mut rows = TextTable::new(&[
        ("METER", Left),
        ("INDEX", Right),
        ("BYTES/S", Right),
        ("BURST_BYTES", Right),
        ("FRAMES/S", Right),
        ("BURST_FRAMES", Right),
    ]);
    let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
    for meter in &list.meters {
        rows.row([
            meter.meter.clone(),
            meter.index.to_string(),
            number(meter.rate.bytes_per_second),
            number(meter.rate.burst_bytes),
            number(meter.rate.frames_per_second),
            number(meter.rate.burst_frames),
        ]);
    }
    rows.render()
}

/// `counter list`; a page of it.
pub fn counters(list: &CounterList, first: bool) -> String {
    let mut rows = TextTable::new(&[
        ("COUNTER", Left),
        ("INDEX", Right),
        ("FRAMES", Right),
        ("BYTES", Right),
    ]);
    for counter in &list.counters {
        rows.row([
            counter.counter.clone(),
            counter.index.to_string(),
            counter.frames.to_string(),
            counter.bytes.to_string(),
        ]);
    }
    page(rows, first)
}

/// Headings stand on the first page alone.
fn page(rows: TextTable, is_first: bool) -> String {
    let text = rows.render();
    match (is_first, text.split_once('\n')) {
        (false, Some((_, rows))) => rows.to_owned(),
        _ => text,
    }
}

/// `connection list`.
pub fn connections(list: &ConnectionList) -> String {
    let mut rows = TextTable::new(&[
        ("ZONE", Right),
        ("FLOW", Left),
        ("STATE", Left),
        ("MARK", Right),
        ("EXPIRES_S", Right),
    ]);
    for connection in &list.connections {
        rows.row([
            connection.zone.to_string(),
            connection.flow.clone(),
            connection.state.clone(),
            connection.mark.to_string(),
            (connection.expires_in_ms / 1_000).to_string(),
        ]);
    }
    rows.render()
}

/// `port show --last-drops`.
pub fn last_drops(list: &LastDrops) -> String {
    if list.drops.is_empty() {
        return "no frame was dropped lately\n".to_owned();
    }
    let mut text = String::new();
    for drop in &list.drops {
        let seconds = drop.age_ms as f64 / 1e3;
        let from = drop.from.as_deref().unwrap_or("nowhere");
        text.push_str(&format!(
            "{seconds:.1} s ago: {}, {} bytes from {from}\n  {}\n  {} {}\n",
            drop.reason, drop.frame_bytes, drop.header, drop.meaning, drop.advice
        ));
    }
    text
}

/// `drop-reasons`.
pub fn reasons(list: &ReasonList) -> String {
    let mut text = String::new();
    for reason in &list.reasons {
        text.push_str(&format!(
            "{}\n  {}\n  {}\n",
            reason.name, reason.meaning, reason.advice
        ));
    }
    text
}

/// `explain`: each step on a line, what belongs to it below.
pub fn explained(answer: &Value) -> String {
    let mut text = String::new();
    let traces = answer.get("traces").and_then(Value::as_array);
    for (number, trace) in traces.into_iter().flatten().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        push(&mut text, 0, &format!("frame {}", string(trace, "frame")));
        for step in array(trace, "steps") {
            push_step(&mut text, step);
        }
        push_outcome(&mut text, trace.get("outcome").unwrap_or(&Value::Null));
        let looked_at = joined(trace, "looked_at", ", ");
        push(&mut text, 0, &format!("depends on {looked_at}"));
    }
    text
}

fn push_step(text: &mut String, step: &Value) {
    match string(step, "step") {
        "parse" => {
            let header = match string(step, "header") {
                "" => String::new(),
                header => format!(" {header}"),
            };
            let (state, next) = (string(step, "state"), string(step, "next"));
            push(text, 0, &format!("parse {state}:{header}, then {next}"));
            push_pairs(text, &pairs(step, "fields"));
        }
        "table" => {
            let table = string(step, "table");
            push(text, 0, &format!("table {table}: {}", pairs(step, "key")));
            let entry = match string(step, "entry") {
                "" => "no entry matches".to_owned(),
                entry => format!("entry {entry}"),
            };
            push(text, 1, &entry);
            let action = match string(step, "action") {
                "" => "no action".to_owned(),
                action => format!("action {action}"),
            };
            push(text, 1, &action);
        }
        "condition" => {
            let holds = step.get("holds").and_then(Value::as_bool) == Some(true);
            let decided = if holds { "holds" } else { "does not hold" };
            push(
                text,
                0,
                &format!("if {}: {decided}", string(step, "condition")),
            );
        }
        "primitive" => push(text, 1, string(step, "what")),
        "pass" => {
            let number = step.get("number").and_then(Value::as_u64).unwrap_or(0);
            push(text, 0, &format!("pass {number}"));
        }
        "egress" => push(text, 0, &format!("egress by {}", string(step, "port"))),
        other => push(text, 0, &format!("{other} {step}")),
    }
}

fn push_outcome(text: &mut String, outcome: &Value) {
    match string(outcome, "outcome") {
        "drop" => {
            push(text, 0, &format!("dropped: {}", string(outcome, "reason")));
            push(text, 1, string(outcome, "meaning"));
            push(text, 1, string(outcome, "advice"));
        }
        _ => {
            for copy in array(outcome, "copies") {
                push(text, 0, &format!("delivered to {}", string(copy, "to")));
                for change in array(copy, "changes") {
                    push(text, 1, change.as_str().unwrap_or_default());
                }
                push(text, 1, &format!("header {}", string(copy, "header")));
            }
        }
    }
}

fn push(text: &mut String, depth: usize, line: &str) {
    text.push_str(&"  ".repeat(depth));
    text.push_str(printable(line).trim_end());
    text.push('\n');
}

fn push_pairs(text: &mut String, pairs: &str) {
    if !pairs.is_empty() {
        push(text, 1, pairs);
    }
}

fn string<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn array<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    let items = value.get(field).and_then(Value::as_array);
    items.into_iter().flatten()
}

fn joined(value: &Value, field: &str, between: &str) -> String {
    array(value, field)
        .filter_map(Value::as_str)
        .collect::<Vec<_>>()
        .join(between)
}

/// `[["name", "value"], ...]` as `name=value name=value`.
fn pairs(value: &Value, field: &str) -> String {
    let one = |pair: &Value| {
        let part = |index| pair.get(index).and_then(Value::as_str).unwrap_or_default();
        format!("{}={}", part(0), part(1))
    };
    array(value, field).map(one).collect::<Vec<_>>().join(" ")
}
