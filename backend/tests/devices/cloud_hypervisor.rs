//! Devices of a Cloud Hypervisor, against a double of its API.
use super::fake_cloud_hypervisor::FakeCloudHypervisor;
use super::fake_qemu::FakeQemu;
use super::rig::{Switch, on_qemu, with};
use serde_json::{Value, json};
use std::path::Path;

fn on_ch(name: &str, api: &Path) -> Value {
    with(
        on_qemu(name, api),
        json!({ "vm": { "hypervisor": "cloud-hypervisor", "socket": api } }),
    )
}

#[test]
fn a_vm_is_given_a_nic_and_loses_it_without_a_trace() {
    let switch = Switch::start();
    let ch = FakeCloudHypervisor::start(&switch.path("vm7.api"));
    let more = json!({ "mac": "52:54:00:12:34:56", "queue_pairs": 2, "mtu": 1400 });
    switch.add(&with(on_ch("a", &ch.socket), more));
    switch.wait_state("a", "waiting-for-guest");
    let (id, net) = {
        let vm = ch.vm();
        assert!(vm.violations.is_empty(), "{:?}", vm.violations);
        let (id, net) = vm.nets.first_key_value().unwrap();
        (id.clone(), net.clone())
    };
    let expected = json!({
        "id": id, "vhost_user": true, "vhost_socket": switch.path("device-a.sock"), "vhost_mode": "Client", "num_queues": 4,
        "queue_size": 256, "mac": "52:54:00:12:34:56", "mtu": 1400,
    });
    assert_eq!(net, expected);
    assert_eq!(switch.delete("a", "").0, 204);
    switch.wait_gone("a");
    assert_eq!(ch.vm().requests, ["add-net", "remove-device"]);
    assert!(ch.vm().nets.is_empty() && !switch.path("device-a.sock").exists());
}

#[test]
fn a_removal_is_over_when_the_guest_has_ejected_the_device() {
    let switch = Switch::start();
    let ch = FakeCloudHypervisor::start(&switch.path("vm7.api"));
    switch.add(&on_ch("a", &ch.socket));
    switch.wait_state("a", "waiting-for-guest");
    ch.vm().guest_ejects = false;
    let (status, device) = switch.delete("a", "?timeout_ms=100");
    assert_eq!(
        (status, &device["state"]),
        (202, &json!("failed")),
        "{device}"
    );
    assert!(
        switch.path("device-a.sock").exists(),
        "its port serves it until then"
    );
    ch.vm().nets.clear();
    switch.wait_gone("a");
}

#[test]
fn a_vm_in_another_state_is_waited_for() {
    let switch = Switch::start();
    let ch = FakeCloudHypervisor::start(&switch.path("vm7.api"));
    ch.vm().state = None;
    switch.add(&on_ch("a", &ch.socket));
    for (state, says) in [
        (None, "no VM yet"),
        (Some("Created"), "Created"),
        (Some("Paused"), "Paused"),
    ] {
        ch.vm().state = state;
        let device = switch.wait(|| {
            let device = switch.device("a");
            let is = device["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains(says));
            if is {
                Ok(device)
            } else {
                Err(format!("{says}: {device}"))
            }
        });
        assert_eq!(device["state"], "pending");
    }
    assert!(ch.vm().requests.is_empty());
    ch.vm().state = Some("Running");
    switch.wait_state("a", "waiting-for-guest");
}

#[test]
fn what_a_vm_cannot_take_is_a_problem_to_act_on() {
    let switch = Switch::start();
    let ch = FakeCloudHypervisor::start(&switch.path("vm7.api"));
    ch.vm().memory = json!({ "size": 1 << 28, "shared": false });
    switch.add(&on_ch("a", &ch.socket));
    let device = switch.wait_state("a", "failed");
    assert!(
        device["remedy"].as_str().unwrap().contains("shared=on"),
        "{device}"
    );
    switch.add(&with(on_ch("b", &ch.socket), json!({ "queue_pairs": 4 })));
    ch.vm().memory = json!({ "size": 0, "zones": [{ "id": "z", "shared": true }] });
    let device = switch.wait_state("b", "failed");
    assert!(
        device["field"] == "queue_pairs" || device["field"] == "vm",
        "{device}"
    );
    switch.wait_state("a", "waiting-for-guest");
    assert_eq!(ch.vm().requests, ["add-net"]);
}

#[test]
fn an_api_that_hangs_or_lies_holds_up_only_its_own_devices() {
    let switch = Switch::start();
    let hung = FakeCloudHypervisor::start(&switch.path("hung.api"));
    hung.vm().hangs = true;
    let liar = FakeCloudHypervisor::start(&switch.path("liar.api"));
    liar.vm().instead = Some("SSH-2.0-OpenSSH_9.2\r\n");
    switch.add(&on_ch("hung", &hung.socket));
    switch.add(&on_ch("liar", &liar.socket));
    let good = FakeQemu::start(&switch.path("good.qmp"));
    switch.add(&on_qemu("good", &good.socket));
    switch.wait_state("good", "waiting-for-guest");
    assert_eq!(switch.delete("good", "").0, 204);
    for name in ["hung", "liar"] {
        let device = switch.wait_state(name, "failed");
        assert!(device["remedy"].is_string(), "{device}");
    }
    hung.vm().hangs = false;
    liar.vm().instead = None;
    switch.wait_state("hung", "waiting-for-guest");
    switch.wait_state("liar", "waiting-for-guest");
}

#[test]
fn a_vm_that_comes_back_gets_its_devices_back() {
    let switch = Switch::start();
    let socket = switch.path("vm7.api");
    switch.add(&on_ch("a", &socket));
    for _ in 0..2 {
        let ch = FakeCloudHypervisor::start(&socket);
        switch.wait_state("a", "waiting-for-guest");
        assert_eq!(ch.vm().nets.len(), 1);
        drop(ch);
        switch.wait_state("a", "pending");
    }
}
