//! A guest behind a virtual IOMMU: its driver maps each buffer for its device, and takes that back when it is done.

use vm_lab::lab::{Ats, Lab, LabSpec, Station, with_lab};
use vm_lab::{Result, agent::Agent};

use crate::{MIB, exchange, expect, running_flow};

/// VIRTIO 1.3 §6.
const F_ACCESS_PLATFORM: usize = 33;

/// 1: behind an IOMMU. 2: not.
fn one_behind(ats: Ats) -> LabSpec {
    LabSpec::of([Station::new("vm1").behind_iommu(ats), Station::new("vm2")])
}

/// The guest's driver really goes by the IOMMU, and the front-end knows.
fn expect_translated(lab: &mut Lab) -> Result<()> {
    expect(
        "ACCESS_PLATFORM",
        lab.guest(1)?.negotiated(F_ACCESS_PLATFORM)?,
    )?;
    let groups = lab.guest(1)?.agent().run("ls /sys/kernel/iommu_groups")?;
    expect("the guest has IOMMU groups", !groups.trim().is_empty())?;
    let show = lab.switch()?.cli_json(&["port", "show", "vm1"])?;
    let acked = show["device"]["features_acked"].to_string();
    expect(
        &format!("the front-end acked it: {acked}"),
        acked.contains("ACCESS_PLATFORM"),
    )
}

/// Takes the NIC's driver away and gives it back.
fn rebind(agent: &Agent) -> Result<()> {
    let script = "cd /sys/bus/virtio/drivers/virtio_net && for d in virtio*; do echo $d > unbind && echo $d > bind; done";
    let (status, output) = agent.exec(["sh", "-c", script])?;
    expect(&format!("the driver is bound again: {output}"), status == 0)
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_behind_an_iommu_has_a_network() {
    with_lab(&one_behind(Ats::On), |lab| {
        expect_translated(lab)?;
        exchange(lab, (1, 2), 4 * MIB)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_behind_an_iommu_may_lose_its_driver_and_reboot() {
    with_lab(&one_behind(Ats::On), |lab| {
        let flow = running_flow(lab)?;
        flow.stop()?;
        for _ in 0..3 {
            rebind(lab.guest(1)?.agent())?;
            lab.guest(1)?.configure_network()?;
            exchange(lab, (1, 2), MIB)?;
        }
        lab.guest(1)?.agent().reboot()?;
        lab.guest(1)?.configure_network()?;
        expect_translated(lab)?;
        exchange(lab, (1, 2), MIB)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_behind_an_iommu_without_ats_outlives_the_switch() {
    with_lab(&one_behind(Ats::Off), |lab| {
        let flow = running_flow(lab)?;
        expect_translated(lab)?;
        lab.switch()?.crash()?;
        lab.restart_switch()?;
        flow.wait_more(MIB)?;
        flow.stop()?;
        exchange(lab, (1, 2), MIB)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn packed_rings_of_several_pairs_work_behind_an_iommu() {
    let station = Station::new("vm1").packed().queue_pairs(2);
    let spec = LabSpec::of([station.behind_iommu(Ats::On), Station::new("vm2")]);
    with_lab(&spec, |lab| {
        expect_translated(lab)?;
        exchange(lab, (1, 2), 2 * MIB)
    });
}
