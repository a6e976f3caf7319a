//! What outlives what: the switch, the VM, both.
use super::fake_qemu::{A_WHILE, FakeQemu};
use super::rig::{Switch, on_qemu};
use serde_json::json;

#[test]
fn a_switch_that_was_killed_finds_its_devices_where_they_are() {
    let mut switch = Switch::durable();
    let qemu = FakeQemu::start(&switch.path("vm7.qmp"));
    let before = switch.add(&on_qemu("a", &qemu.socket));
    assert_eq!(before["durable"], true);
    switch.wait_state("a", "waiting-for-guest");
    let commands = qemu.vm().commands.clone();
    switch.crash_and_restart();
    let after = switch.wait_state("a", "waiting-for-guest");
    assert_eq!(
        (&after["mac"], &after["socket"]),
        (&before["mac"], &before["socket"])
    );
    std::thread::sleep(A_WHILE);
    assert_eq!(qemu.vm().commands, commands, "nothing was plugged anew");
    assert_eq!(switch.delete("a", "").0, 204);
    qemu.assert_clean();
    switch.crash_and_restart();
    assert_eq!(switch.get("/v1/devices")["devices"], json!([]));
}

#[test]
fn a_removal_that_was_asked_for_goes_on_after_a_restart() {
    let mut switch = Switch::durable();
    let qemu = FakeQemu::start(&switch.path("vm7.qmp"));
    switch.add(&on_qemu("a", &qemu.socket));
    switch.wait_state("a", "waiting-for-guest");
    qemu.vm().guest_releases = false;
    assert_eq!(switch.delete("a", "?timeout_ms=0").0, 202);
    switch.crash_and_restart();
    qemu.guest_releases_late();
    switch.wait_gone("a");
    qemu.assert_clean();
}

#[test]
fn what_a_switch_left_half_done_is_cleared_before_it_is_done_again() {
    let mut switch = Switch::durable();
    let qemu = FakeQemu::start(&switch.path("vm7.qmp"));
    switch.add(&on_qemu("a", &qemu.socket));
    switch.wait_state("a", "waiting-for-guest");
    switch.crash();
    {
        // As if it had been killed between the netdev and the NIC.
        let mut vm = qemu.vm();
        vm.nics.clear();
        vm.commands.clear();
    }
    switch.restart();
    switch.wait(|| match qemu.vm().nics.len() {
        1 => Ok(()),
        other => Err(format!("{other} NICs")),
    });
    assert_eq!(
        qemu.vm().commands,
        [
            "netdev_del",
            "chardev-remove",
            "chardev-add",
            "netdev_add",
            "device_add"
        ]
    );
}

#[test]
fn a_switch_that_forgot_everything_takes_up_the_same_device_and_clears_another_of_its_name() {
    let mut switch = Switch::start();
    let qemu = FakeQemu::start(&switch.path("vm7.qmp"));
    switch.add(&on_qemu("a", &qemu.socket));
    switch.wait_state("a", "waiting-for-guest");
    let commands = qemu.vm().commands.clone();
    switch.crash_and_restart();
    switch.add(&on_qemu("a", &qemu.socket));
    switch.wait_state("a", "waiting-for-guest");
    assert_eq!(
        qemu.vm().commands,
        commands,
        "the same is taken up as it is"
    );
    let first = qemu.vm().nics.keys().next().unwrap().clone();
    switch.crash_and_restart();
    let other = super::rig::with(on_qemu("a", &qemu.socket), json!({ "mtu": 1400 }));
    switch.add(&other);
    switch.wait_state("a", "waiting-for-guest");
    switch.wait(|| {
        let vm = qemu.vm();
        let only_other =
            vm.nics.len() == 1 && vm.chardevs.len() == 1 && !vm.nics.contains_key(&first);
        if only_other {
            Ok(())
        } else {
            Err(format!("{vm:?}"))
        }
    });
}

#[test]
fn a_vm_that_comes_back_gets_its_devices_back() {
    let switch = Switch::start();
    let socket = switch.path("vm7.qmp");
    switch.add(&on_qemu("a", &socket));
    let device = switch.wait(|| {
        let device = switch.device("a");
        if device["reason"].is_string() {
            Ok(device)
        } else {
            Err(device.to_string())
        }
    });
    assert_eq!(
        (&device["state"], &device["field"]),
        (&json!("pending"), &json!("vm")),
        "{device}"
    );
    for _ in 0..3 {
        let qemu = FakeQemu::start(&socket);
        switch.wait_state("a", "waiting-for-guest");
        assert_eq!(qemu.vm().nics.len(), 1);
        drop(qemu);
        switch.wait_state("a", "pending");
    }
    // Nobody has to come back for it to go.
    assert_eq!(switch.delete("a", "").0, 204);
    switch.wait_gone("a");
}
