//! Many devices of many VMs at once.
use super::fake_qemu::{FakeQemu, Manner};
use super::rig::{Switch, on_qemu};

#[test]
fn sixty_four_devices_of_thirty_two_vms_converge_although_one_hangs() {
    let switch = Switch::start();
    let hung = FakeQemu::in_manner(&switch.path("hung.qmp"), Manner::Silent);
    switch.add(&on_qemu("hung", &hung.socket));
    let vms: Vec<FakeQemu> = (0..32)
        .map(|number| FakeQemu::start(&switch.path(&format!("vm{number}.qmp"))))
        .collect();
    for (number, vm) in vms.iter().enumerate() {
        for nic in 0..2 {
            switch.add(&on_qemu(&format!("vm{number}-eth{nic}"), &vm.socket));
        }
    }
    let in_state = |state: &str| {
        let listed = switch.get(&format!("/v1/devices?state={state}"));
        listed["devices"].as_array().unwrap().len()
    };
    switch.wait(|| match in_state("waiting-for-guest") {
        64 => Ok(()),
        other => Err(format!("{other} of 64")),
    });
    assert!(vms.iter().all(|vm| vm.vm().nics.len() == 2));
    for number in 0..32 {
        for nic in 0..2 {
            assert_eq!(switch.delete(&format!("vm{number}-eth{nic}"), "").0, 204);
        }
    }
    vms.iter().for_each(FakeQemu::assert_clean);
}
