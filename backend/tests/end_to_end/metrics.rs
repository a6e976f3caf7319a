//! `/metrics`: what a scrape says of traffic that was sent, and that Prometheus can read all of it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::rig::{Switch, guest_options, mac, numbered, one_way, until};
use guest_sim::Nic;
use guest_sim::frame::FrameBuilder;

/// Series by name and labels, as they stand in the text.
fn scrape(switch: &Switch) -> BTreeMap<String, f64> {
    let text = switch.command(&["metrics"]);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn value(series: &BTreeMap<String, f64>, name: &str) -> f64 {
    let found = series.get(&format!("ringswitch_{name}"));
    *found.unwrap_or_else(|| panic!("no {name} in {series:#?}"))
}

fn sum(series: &BTreeMap<String, f64>, start: &str) -> f64 {
    let start = format!("ringswitch_{start}");
    let matching = series.iter().filter(|(name, _)| name.starts_with(&start));
    matching.map(|(_, value)| value).sum()
}

fn pair(switch: &Switch) -> (Nic, Nic) {
    let one = switch.guest("vm1", guest_options());
    let other = switch.guest("vm2", guest_options());
    (one, other)
}

#[test]
fn a_scrape_has_what_was_sent_delivered_and_dropped() {
    const FRAMES: u16 = 40;
    let switch = Switch::of(&["vm1", "vm2"]);
    let before = scrape(&switch);
    assert_eq!(value(&before, "port_up{port=\"vm1\"}"), 0.0);
    assert_eq!(
        value(&before, "port_state{port=\"vm1\",state=\"listening\"}"),
        1.0
    );
    let (mut one, mut other) = pair(&switch);
    for number in 0..FRAMES {
        one_way(&numbered(number, 1, 2), &mut one, &mut other);
    }
    let to_nobody = FrameBuilder::udp4(64).macs(mac(1), mac(1)).build();
    one.send(&to_nobody).unwrap();
    until("the drop to be counted", || {
        (switch.drops("vm1", "same_port") == 1).then_some(())
    });
    let after = scrape(&switch);
    let of = |name: &str| value(&after, name);
    let sent = f64::from(FRAMES);
    let bytes: u64 = (0..FRAMES)
        .map(|number| numbered(number, 1, 2).bytes.len() as u64)
        .sum();
    assert_eq!(of("port_up{port=\"vm1\"}"), 1.0);
    assert_eq!(
        of("port_frames_total{port=\"vm1\",direction=\"guest_tx\"}"),
        sent + 1.0
    );
    assert_eq!(
        of("port_frames_total{port=\"vm2\",direction=\"guest_rx\"}"),
        sent
    );
    assert_eq!(
        of("port_bytes_total{port=\"vm2\",direction=\"guest_rx\"}"),
        bytes as f64
    );
    let queue = |name: &str| {
        of(&format!(
            "{name}{{port=\"vm2\",queue=\"0\",direction=\"guest_rx\"}}"
        ))
    };
    assert_eq!(queue("queue_frames_total"), sent);
    let told = queue("queue_notifications_sent_total") + queue("queue_notifications_saved_total");
    assert!((1.0..=sent).contains(&told), "{told}");
    assert_eq!(
        of("port_dropped_frames_total{port=\"vm1\",reason=\"same_port\"}"),
        1.0
    );
    assert_eq!(of("worker_frames_total{worker=\"0\"}"), sent + 1.0);
    let batches = of("worker_batches_total{worker=\"0\"}");
    assert_eq!(of("worker_batch_frames_count{worker=\"0\"}"), batches);
    assert_eq!(of("worker_batch_frames_sum{worker=\"0\"}"), sent + 1.0);
    assert_eq!(
        of("worker_batch_frames_bucket{worker=\"0\",le=\"+Inf\"}"),
        batches
    );
    let misses = of("worker_cache_misses_total{worker=\"0\"}");
    assert!((1.0..=sent + 1.0).contains(&misses), "{misses}");
    assert_eq!(of("stations"), 1.0);
    assert_eq!(of("devices{state=\"ready\"}"), 0.0);
    switch.finish();
}

#[test]
fn a_full_ring_is_told_and_batches_are_timed() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let (mut one, other) = pair(&switch);
    let frame = numbered(0, 1, 2);
    // More than its ring holds, and nobody reads.
    for _ in 0..1000 {
        one.send(&frame).unwrap();
    }
    until("a full ring", || {
        let full = sum(
            &scrape(&switch),
            "queue_full_total{port=\"vm2\",queue=\"0\",direction=\"guest_rx\"",
        );
        let drops = switch.drops("vm2", "rx_ring_full");
        (full > 0.0 && drops as f64 >= full).then_some(())
    });
    let series = scrape(&switch);
    let timed = value(&series, "worker_delivery_seconds_count{worker=\"0\"}");
    let batches = value(&series, "worker_batches_total{worker=\"0\"}");
    assert!(timed >= 1.0 && timed < batches, "{timed} of {batches}");
    assert!(value(&series, "worker_delivery_seconds_sum{worker=\"0\"}") > 0.0);
    drop(other);
    switch.finish();
}

/// What `promtool check metrics` has against it, and what the dashboard asks for that is not there.
#[test]
fn prometheus_can_read_it_and_the_dashboard_finds_what_it_shows() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let (mut one, mut other) = pair(&switch);
    one_way(&numbered(0, 1, 2), &mut one, &mut other);
    one.send(&FrameBuilder::udp4(64).macs(mac(1), mac(1)).build())
        .unwrap();
    until("the drop to be counted", || {
        (switch.drops("vm1", "same_port") == 1).then_some(())
    });
    let text = switch.command(&["metrics"]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let dashboard = std::fs::read_to_string(root.join("docs/grafana.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut asked = 0;
    for target in panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array())
        .flatten()
    {
        let query = target["expr"].as_str().unwrap();
        let names = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in names.filter(|name| name.starts_with("ringswitch_")) {
            let family = name.trim_end_matches("_bucket");
            let is_there = text.contains(&format!("# TYPE {family} "));
            // No migration is under way here, and the default program has no tables until they are asked for.
            let may_lack = family.contains("_migra") || family.starts_with("ringswitch_table_");
            assert!(is_there || may_lack, "{name} of the dashboard is not there");
            asked += 1;
        }
    }
    assert!(asked > 10, "{asked}");
    let promtool = root.join("target/vm-lab/promtool");
    if !promtool.exists() {
        eprintln!("skipped: no promtool (qemu-scripts/setup fetches it)");
        return switch.finish();
    }
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let said = check.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&said.stderr) + String::from_utf8_lossy(&said.stdout);
    assert!(
        said.status.success() && complaints.is_empty(),
        "{complaints}"
    );
    switch.finish();
}
