//! How full rings are: what is told of it, and that a ring which stands still is found.

use crate::rig::{Switch, arrival, guest_options, numbered, until};
use guest_sim::{Nic, NicOptions};
use serde_json::{Value, json};
use std::process::Command;

const RING_SIZE: u16 = 128;

fn options() -> NicOptions {
    NicOptions {
        guest_tx_ring_size: RING_SIZE,
        guest_rx_ring_size: RING_SIZE,
        ..guest_options()
    }
}

fn pair(switch: &Switch) -> (Nic, Nic) {
    (
        switch.guest("vm1", options()),
        switch.guest("vm2", options()),
    )
}

/// Frames to vm2 that vm1's driver offers without a kick, as if its VMM had lost it.
fn offer_unheard(one: &mut Nic, frames: u16) {
    let raw = one.raw_ring(1).unwrap();
    for number in 0..frames {
        one.pair(0).guest_tx.queue(&numbered(number, 1, 2)).unwrap();
    }
    let index = raw.avail_index().unwrap();
    raw.set_avail_index(index.wrapping_add(frames)).unwrap();
}

fn ring(switch: &Switch, port: &str, direction: &str) -> Value {
    let shown = switch.show(port);
    let rings = shown["rings"].as_array().unwrap();
    let found = rings.iter().find(|ring| ring["direction"] == direction);
    found.unwrap_or_else(|| panic!("{shown}")).clone()
}

/// What `doctor` finds about rings of a port, and its exit code.
fn doctor(switch: &Switch, port: &str) -> (Option<i32>, Vec<String>) {
    let output = Command::new(env!("CARGO_BIN_EXE_ringswitch"))
        .arg("--admin")
        .arg(switch.daemon.socket("admin"))
        .args(["doctor", port, "--json"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().iter();
    let bad = findings.filter(|found| found["check"] == "rings" && found["level"] == "problem");
    let texts = bad.map(|found| format!("{} -> {}", found["finding"], found["advice"]));
    (output.status.code(), texts.collect())
}

#[test]
fn a_guest_tx_ring_that_nobody_looks_at_is_told_and_found_and_looking_again_helps() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let (mut one, mut other) = pair(&switch);
    // Its worker sleeps by then: nothing has come for a second.
    assert_eq!(doctor(&switch, "vm1").1, Vec::<String>::new());
    offer_unheard(&mut one, 3);
    let told = ring(&switch, "vm1", "guest_tx");
    let expected = json!({"pair": 0, "direction": "guest_tx", "size": RING_SIZE, "offered": 3, "frames": told["frames"], "full": 0});
    assert_eq!(told, expected);
    let shown = switch.command(&["port", "show", "vm1"]);
    assert!(
        shown.contains("PAIR  TX_WAITING  TX_SIZE  RX_FREE  RX_SIZE\n     0           3      128"),
        "{shown}"
    );
    let page = switch.command(&["top", "--once", "--interval", "0.1"]);
    let line = page.lines().find(|line| line.starts_with("vm1")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    // 3 of 128.
    assert_eq!(cells[6], "2", "{page}");
    let metrics = switch.command(&["metrics"]);
    let series = "ringswitch_queue_offered{port=\"vm1\",queue=\"0\",direction=\"guest_tx\"} 3\n";
    assert!(metrics.contains(series), "{metrics}");
    let (code, found) = doctor(&switch, "vm1");
    assert_eq!(code, Some(6), "{found:?}");
    assert!(
        found[0].contains("ring 1 (guest_tx) is stuck: 3 frames wait")
            && found[0].contains("worker move vm1/0 --auto"),
        "{found:?}"
    );
    // What it advises.
    switch.command(&["worker", "move", "vm1/0", "--auto"]);
    for _ in 0..3 {
        arrival(&mut other);
    }
    assert_eq!(ring(&switch, "vm1", "guest_tx")["offered"], 0);
    assert_eq!(doctor(&switch, "vm1").1, Vec::<String>::new());
    switch.finish();
}

#[test]
fn a_guest_rx_ring_that_stays_empty_is_told_and_found() {
    let switch = Switch::of(&["vm1", "vm2"]);
    let (mut one, other) = pair(&switch);
    let free = || {
        ring(&switch, "vm2", "guest_rx")["offered"]
            .as_u64()
            .unwrap()
    };
    let before = free();
    assert!(before > 0 && before <= u64::from(RING_SIZE), "{before}");
    let frame = numbered(0, 1, 2);
    // Nobody reads.
    for _ in 0..2 * RING_SIZE {
        one.send(&frame).unwrap();
    }
    until("the ring to be empty", || (free() == 0).then_some(()));
    // Without traffic that is nobody's problem.
    assert_eq!(doctor(&switch, "vm2").1, Vec::<String>::new());
    let done = std::sync::atomic::AtomicBool::new(false);
    let found = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                one.send(&frame).unwrap();
                std::thread::yield_now();
            }
        });
        let found = doctor(&switch, "vm2");
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        found
    });
    let (code, found) = found;
    assert_eq!(code, Some(6), "{found:?}");
    assert!(
        found[0].contains("ring 0 (guest_rx) is stuck: it has no free buffer"),
        "{found:?}"
    );
    drop(other);
    switch.finish();
}
