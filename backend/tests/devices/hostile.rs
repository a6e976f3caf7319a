//! Hypervisors that hang, lie and die: each holds up nobody but itself.
use super::fake_qemu::{FakeQemu, Manner};
use super::rig::{Switch, on_qemu};
use std::time::{Duration, Instant};

const MANNERS: [Manner; 7] = [
    Manner::Silent,
    Manner::Mute,
    Manner::Garbage,
    Manner::EndlessLine,
    Manner::ClosesMidAnswer,
    Manner::NoMonitor,
    Manner::Flood,
];

#[test]
fn a_monitor_that_misbehaves_holds_up_only_its_own_devices() {
    let switch = Switch::start();
    let hostile: Vec<FakeQemu> = (0..)
        .zip(MANNERS)
        .map(|(number, manner)| {
            FakeQemu::in_manner(&switch.path(&format!("bad{number}.qmp")), manner)
        })
        .collect();
    for (number, qemu) in hostile.iter().enumerate() {
        switch.add(&on_qemu(&format!("bad{number}"), &qemu.socket));
    }
    let good = FakeQemu::start(&switch.path("good.qmp"));
    let begun = Instant::now();
    for round in 0..5 {
        switch.add(&on_qemu("good", &good.socket));
        switch.wait_state("good", "waiting-for-guest");
        assert_eq!(switch.delete("good", "").0, 204, "round {round}");
    }
    // Less than any of the others is waited for even once.
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    good.assert_clean();
    for (number, manner) in MANNERS.iter().enumerate() {
        let name = format!("bad{number}");
        let device = switch.wait(|| {
            let device = switch.device(&name);
            if device["remedy"].is_string() {
                Ok(device)
            } else {
                Err(format!("{manner:?}: {device}"))
            }
        });
        assert!(
            ["failed", "pending"].contains(&device["state"].as_str().unwrap()),
            "{device}"
        );
        assert_eq!(
            switch.delete(&name, "?force=true&timeout_ms=0").0,
            204,
            "{manner:?}"
        );
        switch.wait_gone(&name);
    }
}

#[test]
fn a_monitor_that_comes_to_its_senses_is_used_again() {
    let switch = Switch::start();
    let qemu = FakeQemu::in_manner(&switch.path("vm7.qmp"), Manner::Garbage);
    switch.add(&on_qemu("a", &qemu.socket));
    let device = switch.wait_state("a", "failed");
    assert!(
        device["reason"].as_str().unwrap().contains("not JSON"),
        "{device}"
    );
    qemu.vm().manner = Manner::Proper;
    switch.wait_state("a", "waiting-for-guest");
}
