//! Answers as text for people. Pure: from the JSON's types to a string.
use super::render_rings;
use super::table::Align::{Left, Right};
use super::table::{Align, Table, printable};
use crate::config::VlanFields;
use crate::metrics::rate_per_second;
use crate::rest::wire::{
    Counters, Drop, Fdb, Port, PortCountersReport, PortList, SourceRow, StatsReport, Worker,
    WorkerList,
};
use serde_json::Value;
use std::time::Duration;

/// `port list`.
pub fn port_list(list: &PortList) -> String {
    let mut table = Table::new(&[
        ("NAME", Left),
        ("TYPE", Left),
        ("ORIGIN", Left),
        ("STATE", Left),
        ("VLAN", Left),
        ("GUEST_TX", Right),
        ("GUEST_RX", Right),
        ("DROPS", Right),
        ("AT", Left),
    ]);
    for port in &list.ports {
        table.row([
            port.name.clone(),
            port.r#type.clone(),
            port.origin.name().to_owned(),
            port.state.clone(),
            vlan_text(port.vlan.as_ref()),
            port.counters.guest_tx_frames.to_string(),
            port.counters.guest_rx_frames.to_string(),
            dropped(&port.counters).to_string(),
            port.socket
                .clone()
                .or_else(|| port.interface.clone())
                .unwrap_or_default(),
        ]);
    }
    table.render()
}

/// `port show`.
pub fn port(port: &Port) -> String {
    let mut text = String::new();
    let number = |value: Option<u16>| value.map(|value| value.to_string());
    let lines = [
        ("name", Some(port.name.clone())),
        ("id", Some(port.id.to_string())),
        ("type", Some(port.r#type.clone())),
        ("socket", port.socket.clone()),
        ("mode", port.mode.clone()),
        ("queue pairs", number(port.queue_pairs)),
        ("packed", port.packed.map(|packed| packed.to_string())),
        (
            "device_state",
            port.device_state.map(|offered| offered.to_string()),
        ),
        ("interface", port.interface.clone()),
        ("mtu", number(port.mtu)),
        ("vlan", Some(vlan_text(port.vlan.as_ref()))),
        ("origin", Some(port.origin.name().to_owned())),
        ("state", Some(port.state.clone())),
        ("reason", port.reason.clone()),
    ];
    for (label, value) in lines {
        if let Some(value) = value {
            line(&mut text, 0, label, &value);
        }
    }
    if let Some(Value::Object(device)) = &port.device {
        // Shown above already.
        let untold = |(key, _): &(&String, &Value)| {
            !["state", "reason", "socket", "mode"].contains(&key.as_str())
        };
        device
            .iter()
            .filter(untold)
            .for_each(|(key, value)| field(&mut text, 0, key, value));
    }
    if !port.rings.is_empty() {
        text.push_str("ring fill:\n");
        indented(&mut text, 1, &render_rings::pairs(&port.rings));
    }
    text.push_str("counters:\n");
    let counters = &port.counters;
    line(
        &mut text,
        1,
        "guest tx",
        &format!(
            "{} frames, {} bytes",
            counters.guest_tx_frames, counters.guest_tx_bytes
        ),
    );
    line(
        &mut text,
        1,
        "guest rx",
        &format!(
            "{} frames, {} bytes",
            counters.guest_rx_frames, counters.guest_rx_bytes
        ),
    );
    let notifications = format!(
        "{} sent, {} saved",
        counters.notifications_sent, counters.notifications_saved
    );
    line(&mut text, 1, "notifications", &notifications);
    let worker_time = format!(
        "{:.3} s, {} ns for each frame it sent",
        counters.busy_ns as f64 / 1e9,
        tenths(per_frame(counters.busy_ns, counters.guest_tx_frames))
    );
    line(&mut text, 1, "worker time", &worker_time);
    if !counters.drops.is_empty() {
        text.push_str("drops:\n");
    }
    for drop in &counters.drops {
        line(
            &mut text,
            1,
            &drop.reason,
            &format!("{} frames. {} {}", drop.frames, drop.meaning, drop.advice),
        );
    }
    text
}

/// `worker list`.
pub fn worker_list(list: &WorkerList) -> String {
    let mut workers = Table::new(&[
        ("WORKER", Right),
        ("CPU", Right),
        ("SOURCES", Right),
        ("BUSY_%", Right),
        ("FRAMES", Right),
        ("FRAMES/BATCH", Right),
        ("NS/FRAME", Right),
        ("CYCLES/FRAME", Right),
        ("SLEEPS", Right),
    ]);
    for worker in &list.workers {
        let mine = list.sources.iter().filter(|s| s.worker == worker.worker);
        let busy: u64 = mine.map(|source| source.busy_permille).sum();
        let ns = per_frame(worker.busy_ns, worker.frames);
        let cycles = ns.zip(list.cpu_mhz).map(|(ns, mhz)| ns * mhz / 1e3);
        workers.row([
            worker.worker.to_string(),
            worker
                .cpu
                .map_or_else(|| "-".to_owned(), |cpu| cpu.to_string()),
            worker.sources.to_string(),
            percent(busy),
            worker.frames.to_string(),
            frames_per_batch(worker),
            tenths(ns),
            tenths(cycles),
            worker.sleeps.to_string(),
        ]);
    }
    let mut busiest_first = list.sources.clone();
    busiest_first.sort_by_key(|source| std::cmp::Reverse(source.busy_permille));
    format!("{}\n{}", workers.render(), sources(&busiest_first))
}

/// Guest-tx rings and TAPs with their workers: `worker move`, and the second half of `worker list`.
pub fn sources(sources: &[SourceRow]) -> String {
    let mut table = Table::new(&[
        ("PORT", Left),
        ("PAIR", Right),
        ("WORKER", Right),
        ("PINNED", Left),
        ("BUSY_%", Right),
        ("FRAMES", Right),
        ("NS/FRAME", Right),
    ]);
    for source in sources {
        table.row([
            source.port.clone(),
            source.pair.to_string(),
            source.worker.to_string(),
            if source.pinned { "yes" } else { "no" }.to_owned(),
            percent(source.busy_permille),
            source.frames.to_string(),
            tenths(per_frame(source.busy_ns, source.frames)),
        ]);
    }
    table.render()
}

fn per_frame(busy_ns: u64, frames: u64) -> Option<f64> {
    (frames > 0).then(|| busy_ns as f64 / frames as f64)
}

fn percent(permille: u64) -> String {
    format!("{:.1}", permille as f64 / 10.0)
}

fn tenths(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

fn frames_per_batch(worker: &Worker) -> String {
    format!("{:.1}", worker.frames as f64 / worker.batches.max(1) as f64)
}

/// `fdb`.
pub fn fdb(fdb: &Fdb) -> String {
    let mut table = Table::new(&[
        ("VLAN", Right),
        ("MAC", Left),
        ("PORT", Left),
        ("AGE_S", Right),
    ]);
    for entry in &fdb.entries {
        let vlan = entry
            .vlan
            .map_or_else(|| "-".to_owned(), |vlan| vlan.to_string());
        table.row([
            vlan,
            entry.mac.clone(),
            entry.port.clone(),
            entry.age_s.to_string(),
        ]);
    }
    table.render()
}

/// `stats`.
pub fn stats(stats: &StatsReport) -> String {
    let mut ports = Table::new(&[
        ("PORT", Left),
        ("GUEST_TX", Right),
        ("TX_BYTES", Right),
        ("GUEST_RX", Right),
        ("RX_BYTES", Right),
        ("DROPS", Right),
        ("BUSY_S", Right),
        ("NS/FRAME", Right),
    ]);
    let mut drops = Table::new(&[("PORT", Left), ("DROP_REASON", Left), ("FRAMES", Right)]);
    for port in &stats.ports {
        let counters = &port.counters;
        ports.row([
            port.name.clone(),
            counters.guest_tx_frames.to_string(),
            counters.guest_tx_bytes.to_string(),
            counters.guest_rx_frames.to_string(),
            counters.guest_rx_bytes.to_string(),
            dropped(counters).to_string(),
            format!("{:.1}", counters.busy_ns as f64 / 1e9),
            tenths(per_frame(counters.busy_ns, counters.guest_tx_frames)),
        ]);
        for Drop { reason, frames, .. } in &counters.drops {
            drops.row([port.name.clone(), reason.clone(), frames.to_string()]);
        }
    }
    let mut workers = Table::new(&[
        ("WORKER", Right),
        ("FRAMES", Right),
        ("FRAMES/BATCH", Right),
        ("SLEEPS", Right),
        ("AWAKE_S", Right),
        ("BUSY_S", Right),
        ("NS/FRAME", Right),
    ]);
    for worker in &stats.workers {
        workers.row([
            worker.worker.to_string(),
            worker.frames.to_string(),
            frames_per_batch(worker),
            worker.sleeps.to_string(),
            format!("{:.1}", worker.awake_ns as f64 / 1e9),
            format!("{:.1}", worker.busy_ns as f64 / 1e9),
            tenths(per_frame(worker.busy_ns, worker.frames)),
        ]);
    }
    let dropping = stats
        .ports
        .iter()
        .any(|port| !port.counters.drops.is_empty());
    let drops = if dropping {
        format!("\n{}", drops.render())
    } else {
        String::new()
    };
    format!("{}{drops}\n{}", ports.render(), workers.render())
}

/// A page of `stats --watch`: rates between two reports. A port that was not there before counts from zero.
pub fn rates(before: &StatsReport, now: &StatsReport) -> String {
    // A daemon that was started anew in between has counted for its whole uptime.
    let elapsed_us = now
        .uptime_us
        .checked_sub(before.uptime_us)
        .unwrap_or(now.uptime_us);
    let elapsed = Duration::from_micros(elapsed_us);
    let mut ports = Table::new(&[
        ("PORT", Left),
        ("GUEST_TX/S", Right),
        ("TX_MBIT/S", Right),
        ("GUEST_RX/S", Right),
        ("RX_MBIT/S", Right),
        ("DROPS/S", Right),
        ("TX_RING_%", Right),
        ("RX_FREE_%", Right),
        ("BUSY_%", Right),
        ("NS/FRAME", Right),
    ]);
    let none = Counters::default();
    for PortCountersReport {
        name,
        counters,
        rings,
    } in &now.ports
    {
        let old = before
            .ports
            .iter()
            .find(|port| port.name == *name)
            .map_or(&none, |port| &port.counters);
        let frames = |of: fn(&Counters) -> u64| {
            format!("{:.0}", rate_per_second(of(old), of(counters), elapsed))
        };
        let mbits = |of: fn(&Counters) -> u64| {
            format!(
                "{:.1}",
                rate_per_second(of(old), of(counters), elapsed) * 8.0 / 1e6
            )
        };
        let [waiting, free] = render_rings::worst(rings);
        ports.row([
            name.clone(),
            frames(|counters| counters.guest_tx_frames),
            mbits(|counters| counters.guest_tx_bytes),
            frames(|counters| counters.guest_rx_frames),
            mbits(|counters| counters.guest_rx_bytes),
            frames(dropped),
            waiting,
            free,
            format!(
                "{:.1}",
                rate_per_second(old.busy_ns, counters.busy_ns, elapsed) / 1e7
            ),
            tenths(per_frame(
                counters.busy_ns.saturating_sub(old.busy_ns),
                counters.guest_tx_frames.saturating_sub(old.guest_tx_frames),
            )),
        ]);
    }
    let mut workers = Table::new(&[
        ("WORKER", Right),
        ("FRAMES/S", Right),
        ("SLEEPS/S", Right),
        ("AWAKE_%", Right),
        ("BUSY_%", Right),
        ("NS/FRAME", Right),
    ]);
    for worker in &now.workers {
        let old = before
            .workers
            .iter()
            .find(|old| old.worker == worker.worker);
        let rate = |old: Option<u64>, new| rate_per_second(old.unwrap_or(0), new, elapsed);
        workers.row([
            worker.worker.to_string(),
            format!("{:.0}", rate(old.map(|old| old.frames), worker.frames)),
            format!("{:.0}", rate(old.map(|old| old.sleeps), worker.sleeps)),
            format!(
                "{:.1}",
                rate(old.map(|old| old.awake_ns), worker.awake_ns) / 1e7
            ),
            format!(
                "{:.1}",
                rate(old.map(|old| old.busy_ns), worker.busy_ns) / 1e7
            ),
            tenths(per_frame(
                worker
                    .busy_ns
                    .saturating_sub(old.map_or(0, |old| old.busy_ns)),
                worker
                    .frames
                    .saturating_sub(old.map_or(0, |old| old.frames)),
            )),
        ]);
    }
    format!("{}\n{}", ports.render(), workers.render())
}

fn dropped(counters: &Counters) -> u64 {
    counters.drops.iter().map(|drop| drop.frames).sum()
}

/// As in the flags: `10`, `trunk:10+20 native=1`; `-` for none.
fn vlan_text(vlan: Option<&VlanFields>) -> String {
    let Some(vlan) = vlan else {
        return "-".to_owned();
    };
    if let Some(access) = vlan.access {
        return access.to_string();
    }
    let trunk: Vec<String> = vlan.trunk.iter().flatten().map(i64::to_string).collect();
    let native = vlan
        .native
        .map(|native| format!(" native={native}"))
        .unwrap_or_default();
    format!("trunk:{}{native}", trunk.join("+"))
}

const INDENT: &str = "  ";

fn line(text: &mut String, depth: usize, label: &str, value: &str) {
    let line = format!(
        "{}{}: {}",
        INDENT.repeat(depth),
        printable(label),
        printable(value)
    );
    text.push_str(line.trim_end());
    text.push('\n');
}

fn indented(text: &mut String, depth: usize, lines: &str) {
    for line in lines.lines() {
        text.extend([&INDENT.repeat(depth), line, "\n"]);
    }
}

/// One field of the device's state, whatever it holds: nested objects are indented, lists of plain values stand on one line.
fn field(text: &mut String, depth: usize, key: &str, value: &Value) {
    let label = key.replace('_', " ");
    match value {
        Value::Null => {}
        Value::Array(items) if items.is_empty() => {}
        Value::Object(fields) => {
            line(text, depth, &label, "");
            fields
                .iter()
                .for_each(|(key, value)| field(text, depth + 1, key, value));
        }
        Value::Array(items) if items.iter().all(Value::is_object) => {
            line(text, depth, &label, "");
            indented(text, depth + 1, &object_rows(items).render());
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            line(text, depth, &label, "");
            items
                .iter()
                .enumerate()
                .for_each(|(index, item)| field(text, depth + 1, &index.to_string(), item));
        }
        Value::Array(items) => line(
            text,
            depth,
            &label,
            &items.iter().map(plain).collect::<Vec<_>>().join(", "),
        ),
        plain_value => line(text, depth, &label, &plain(plain_value)),
    }
}

/// Objects with the same fields as rows under those fields' names.
fn object_rows(items: &[Value]) -> Table {
    let first = items.first().and_then(Value::as_object);
    let keys: Vec<&String> = first
        .map(|fields| fields.keys().collect())
        .unwrap_or_default();
    let headings: Vec<String> = keys.iter().map(|key| key.to_ascii_uppercase()).collect();
    let columns: Vec<(&str, Align)> = headings
        .iter()
        .map(|heading| (heading.as_str(), Left))
        .collect();
    let mut table = Table::new(&columns);
    for item in items {
        let cell = |key: &&String| match item.get(key.as_str()) {
            None | Some(Value::Null) => "-".to_owned(),
            Some(value) => plain(value),
        };
        table.row(keys.iter().map(cell));
    }
    table
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_state_is_shown_whatever_it_holds() {
        let device = serde_json::json!({
            "state": "up", "last_message": {"name": "SET_VRING_KICK", "age_ms": 7}, "mtu": null, "notes": [],
            "features_acked": ["CSUM", "MQ"], "rings": [{"index": 0, "size": null}, {"index": 1, "size": 256}],
        });
        let mut text = String::new();
        field(&mut text, 0, "device", &device);
        let expected = "\
device:
  features acked: CSUM, MQ
  last message:
    age ms: 7
    name: SET_VRING_KICK
  rings:
    INDEX  SIZE
    0      -
    1      256
  state: up
";
        assert_eq!(text, expected);
    }

    #[test]
    fn rates_are_per_second_and_a_new_port_counts_from_zero() {
        let port = |name: &str, frames| PortCountersReport {
            name: name.to_owned(),
            counters: Counters {
                guest_tx_frames: frames,
                guest_tx_bytes: frames * 1_000,
                ..Counters::default()
            },
            rings: vec![],
        };
        let report = |uptime_us, ports| StatsReport {
            uptime_us,
            cpu_mhz: None,
            ports,
            workers: vec![],
        };
        let before = report(1_000_000, vec![port("vm1", 1_000)]);
        let now = report(3_000_000, vec![port("vm1", 5_000), port("vm2", 10)]);
        let shown = rates(&before, &now);
        let cells: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(cells[1][..3], ["vm1", "2000", "16.0"]);
        assert_eq!(cells[2][..3], ["vm2", "5", "0.0"]);
    }
}
