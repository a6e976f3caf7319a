//! Devices of a QEMU: given, taken, checked before, rolled back.
use super::fake_qemu::{A_WHILE, FakeQemu};
use super::rig::{Switch, on_qemu, with};
use serde_json::{Value, json};

fn vm7(switch: &Switch) -> FakeQemu {
    FakeQemu::start(&switch.path("vm7.qmp"))
}

#[test]
fn a_vm_is_given_a_nic_and_loses_it_without_a_trace() {
    let switch = Switch::start();
    let qemu = vm7(&switch);
    let body = with(
        on_qemu("vm7-eth1", &qemu.socket),
        json!({ "mac": "52:54:00:12:34:56", "queue_pairs": 2, "mtu": 1500, "vlan": { "access": 10 } }),
    );
    let device = switch.add(&body);
    assert_eq!(
        (&device["port"], &device["durable"]),
        (&json!("vm7-eth1"), &json!(false))
    );
    let device = switch.wait_state("vm7-eth1", "waiting-for-guest");
    let socket = switch.path("device-vm7-eth1.sock");
    assert_eq!(device["socket"], json!(socket));
    let port = switch.get("/v1/ports/vm7-eth1");
    assert_eq!(
        (&port["queue_pairs"], &port["vlan"]),
        (&json!(2), &json!({ "access": 10 }))
    );
    // It is the device's, so nobody is asked to write it down.
    assert_eq!(switch.get("/v1/config/diff")["differences"], json!([]));
    let (id, arguments) = {
        let vm = qemu.vm();
        assert_eq!(vm.commands, ["chardev-add", "netdev_add", "device_add"]);
        let (id, arguments) = vm.arguments.first_key_value().unwrap();
        assert_eq!(vm.chardevs[id], socket);
        (id.clone(), arguments.clone())
    };
    let expected = json!({
        "driver": "virtio-net-pci", "id": id, "netdev": id, "bus": "rp1", "mac": "52:54:00:12:34:56", "mq": true, "vectors": 6,
        "rx_queue_size": 1024, "tx_queue_size": 1024, "ctrl_guest_offloads": false, "host_mtu": 1500,
    });
    assert_eq!(arguments, expected);
    let states: Vec<Value> = device["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["state"].clone())
        .collect();
    assert_eq!(states, ["pending", "plugging", "waiting-for-guest"]);

    assert_eq!(switch.delete("vm7-eth1", "").0, 204);
    switch.wait_gone("vm7-eth1");
    qemu.assert_clean();
    assert!(!socket.exists());
}

#[test]
fn a_refusal_at_any_step_is_taken_back_and_tried_again() {
    for refuses in ["chardev-add", "netdev_add", "device_add"] {
        let switch = Switch::start();
        let qemu = vm7(&switch);
        qemu.vm().refuses = Some(refuses);
        switch.add(&on_qemu("a", &qemu.socket));
        let device = switch.wait_state("a", "failed");
        assert!(
            device["reason"].as_str().unwrap().contains(refuses),
            "{device}"
        );
        assert!(device["retry_in_ms"].is_u64(), "{device}");
        qemu.assert_clean();
        assert_eq!(switch.get("/v1/ports")["ports"], json!([]));
        assert!(!switch.path("device-a.sock").exists());
        qemu.vm().refuses = None;
        switch.wait_state("a", "waiting-for-guest");
    }
}

#[test]
fn what_a_vm_cannot_take_is_a_problem_to_act_on_and_nothing_is_done() {
    type Case = (&'static str, fn(&FakeQemu), &'static str);
    let cases: [Case; 3] = [
        (
            "memory is not shared",
            |qemu| qemu.vm().memory_is_shared = false,
            "share=on",
        ),
        (
            "queue pairs",
            |qemu| qemu.vm().vcpus = 1,
            "queue_pairs of at most 1",
        ),
        (
            "root port",
            |qemu| qemu.vm().root_ports.clear(),
            "pcie-root-port",
        ),
    ];
    for (reason, spoil, remedy) in cases {
        let switch = Switch::start();
        let qemu = vm7(&switch);
        spoil(&qemu);
        switch.add(&with(
            on_qemu("a", &qemu.socket),
            json!({ "queue_pairs": 2 }),
        ));
        let device = switch.wait_state("a", "failed");
        assert!(
            device["reason"].as_str().unwrap().contains(reason),
            "{device}"
        );
        assert!(
            device["remedy"].as_str().unwrap().contains(remedy),
            "{device}"
        );
        assert!(qemu.vm().commands.is_empty());
        assert_eq!(switch.get("/v1/ports")["ports"], json!([]));
        assert_eq!(switch.delete("a", "").0, 204);
    }
}

#[test]
fn every_slot_is_used_and_the_one_too_many_waits_for_a_free_one() {
    let switch = Switch::start();
    let qemu = vm7(&switch);
    for number in 1..=4 {
        let name = format!("eth{number}");
        switch.add(&on_qemu(&name, &qemu.socket));
        switch.wait_state(&name, "waiting-for-guest");
    }
    switch.add(&on_qemu("eth5", &qemu.socket));
    let device = switch.wait_state("eth5", "failed");
    assert!(
        device["reason"]
            .as_str()
            .unwrap()
            .contains("every PCIe root port"),
        "{device}"
    );
    assert_eq!(switch.delete("eth2", "").0, 204);
    switch.wait_state("eth5", "waiting-for-guest");
    assert!(qemu.vm().violations.is_empty());
}

#[test]
fn a_migration_is_waited_for() {
    let switch = Switch::start();
    let qemu = vm7(&switch);
    qemu.vm().migration = Some("active");
    switch.add(&on_qemu("a", &qemu.socket));
    let device = switch.wait(|| {
        let device = switch.device("a");
        let is = device["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("migrating (active)"));
        if is {
            Ok(device)
        } else {
            Err(device.to_string())
        }
    });
    assert_eq!(device["state"], "pending");
    assert!(qemu.vm().commands.is_empty());
    qemu.vm().migration = None;
    switch.wait_state("a", "waiting-for-guest");
    assert!(qemu.vm().violations.is_empty());
}

#[test]
fn a_guest_that_never_lets_go_is_told_of_truthfully_until_it_does() {
    let switch = Switch::start();
    let qemu = vm7(&switch);
    switch.add(&on_qemu("a", &qemu.socket));
    switch.wait_state("a", "waiting-for-guest");
    qemu.vm().guest_releases = false;
    let (status, device) = switch.delete("a", "?timeout_ms=100");
    assert_eq!(
        (status, &device["state"]),
        (202, &json!("failed")),
        "{device}"
    );
    assert!(
        device["reason"]
            .as_str()
            .unwrap()
            .contains("has not let go of it within 100 ms"),
        "{device}"
    );
    // Its port serves it for as long as it is there.
    assert_eq!(switch.get("/v1/ports/a")["name"], "a");
    let (status, problem) = switch.post(&on_qemu("a", &qemu.socket));
    assert_eq!(
        (status, &problem["field"]),
        (409, &json!("name")),
        "{problem}"
    );
    qemu.guest_releases_late();
    switch.wait_gone("a");
    qemu.assert_clean();
}

#[test]
fn force_takes_a_nic_away_whatever_its_guest_does() {
    let switch = Switch::start();
    let qemu = vm7(&switch);
    switch.add(&on_qemu("a", &qemu.socket));
    switch.wait_state("a", "waiting-for-guest");
    let first = qemu.vm().nics.keys().next().unwrap().clone();
    qemu.vm().guest_releases = false;
    assert_eq!(switch.delete("a", "?force=true&timeout_ms=100").0, 204);
    switch.wait_gone("a");
    assert!(!switch.path("device-a.sock").exists());
    assert!(qemu.vm().netdevs.is_empty());
    // The guest was asked.
    assert!(qemu.vm().commands.contains(&"device_del".to_owned()));
    // The same again is another NIC: what the guest has kept has no netdev any more. It goes first, for its socket is the same.
    switch.add(&on_qemu("a", &qemu.socket));
    switch.wait_state("a", "waiting-for-guest");
    assert!(qemu.vm().nics.keys().any(|id| *id != first));
}

#[test]
fn a_port_that_somebody_removed_by_hand_comes_back() {
    let switch = Switch::start();
    let qemu = vm7(&switch);
    switch.add(&on_qemu("a", &qemu.socket));
    switch.wait_state("a", "waiting-for-guest");
    assert_eq!(switch.request("DELETE", "/v1/ports/a", "").0, 204);
    switch.wait(|| match switch.request("GET", "/v1/ports/a", "") {
        (200, _) => Ok(()),
        (_, problem) => Err(problem.to_string()),
    });
    assert_eq!(
        qemu.vm().commands.len(),
        3,
        "QEMU was not asked for anything"
    );
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let switch = Switch::start();
    let qemu = vm7(&switch);
    {
        let mut vm = qemu.vm();
        // The operator's own, and that of another switch.
        for (id, path) in [
            ("net0", "/run/own.sock"),
            ("rsw-00000000-b", "/run/other/device-b.sock"),
        ] {
            vm.chardevs.insert(id.to_owned(), path.into());
            vm.netdevs.insert(id.to_owned());
        }
        vm.nics.insert("net0".to_owned(), "pcie.0".to_owned());
    }
    switch.add(&on_qemu("a", &qemu.socket));
    switch.wait_state("a", "waiting-for-guest");
    std::thread::sleep(A_WHILE);
    assert_eq!(switch.delete("a", "").0, 204);
    let vm = qemu.vm();
    assert_eq!(
        (vm.chardevs.len(), vm.netdevs.len(), vm.nics.len()),
        (2, 2, 1),
        "{vm:?}"
    );
}

#[test]
fn a_hundred_times_given_and_taken_leaves_nothing() {
    let switch = Switch::start();
    let qemu = vm7(&switch);
    for _ in 0..100 {
        switch.add(&on_qemu("a", &qemu.socket));
        switch.wait_state("a", "waiting-for-guest");
        assert_eq!(switch.delete("a", "").0, 204);
    }
    qemu.assert_clean();
    assert_eq!(switch.get("/v1/devices")["devices"], json!([]));
    assert_eq!(switch.get("/v1/ports")["ports"], json!([]));
}
