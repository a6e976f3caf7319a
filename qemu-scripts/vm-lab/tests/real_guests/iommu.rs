//! A guest behind a virtual IOMMU: its driver maps each buffer for its device, and takes that back when it is done.

use vm_lab::lab::{Ats, Lab, LabSpec, Station};
use vm_lab::pool::with_lab;
use vm_lab::{Result, agent::Agent};

use crate::{MIB, exchange, expect, flow_between};

/// VIRTIO 1.3 §6.
const F_ACCESS_PLATFORM: usize = 33;

/// Those behind one, each of its own kind. The second is not.
const WITH_ATS: usize = 1;
const WITHOUT: usize = 2;
const WITHOUT_ATS: usize = 3;
const PACKED: usize = 4;

fn spec() -> LabSpec {
    let packed = Station::new("vm4").packed().queue_pairs(2);
    LabSpec::of([
        Station::new("vm1").behind_iommu(Ats::On),
        Station::new("vm2"),
        Station::new("vm3").behind_iommu(Ats::Off),
        packed.behind_iommu(Ats::On),
    ])
}

/// The guest's driver really goes by the IOMMU, and the front-end knows.
fn expect_translated(lab: &mut Lab, number: usize) -> Result<()> {
    let guest = lab.guest(number)?;
    let name = guest.spec().name.clone();
    expect("ACCESS_PLATFORM", guest.negotiated(F_ACCESS_PLATFORM)?)?;
    let groups = guest.agent().run("ls /sys/kernel/iommu_groups")?;
    expect("the guest has IOMMU groups", !groups.trim().is_empty())?;
    let show = lab.switch()?.cli_json(&["port", "show", &name])?;
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
    with_lab(&spec(), |lab| {
        expect_translated(lab, WITH_ATS)?;
        exchange(lab, (WITH_ATS, WITHOUT), 4 * MIB)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_behind_an_iommu_may_lose_its_driver_and_reboot() {
    with_lab(&spec(), |lab| {
        let flow = flow_between(lab, (WITH_ATS, WITHOUT))?;
        flow.stop()?;
        for _ in 0..3 {
            rebind(lab.guest(WITH_ATS)?.agent())?;
            lab.guest(WITH_ATS)?.configure_network()?;
            exchange(lab, (WITH_ATS, WITHOUT), MIB)?;
        }
        lab.guest(WITH_ATS)?.agent().reboot()?;
        lab.guest(WITH_ATS)?.configure_network()?;
        expect_translated(lab, WITH_ATS)?;
        exchange(lab, (WITH_ATS, WITHOUT), MIB)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_behind_an_iommu_without_ats_outlives_the_switch() {
    with_lab(&spec(), |lab| {
        let flow = flow_between(lab, (WITHOUT_ATS, WITHOUT))?;
        expect_translated(lab, WITHOUT_ATS)?;
        lab.switch()?.crash()?;
        lab.restart_switch()?;
        flow.wait_more(MIB)?;
        flow.stop()?;
        exchange(lab, (WITHOUT_ATS, WITHOUT), MIB)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn packed_rings_of_several_pairs_work_behind_an_iommu() {
    with_lab(&spec(), |lab| {
        lab.wait_connected(PACKED)?;
        expect_translated(lab, PACKED)?;
        exchange(lab, (PACKED, WITHOUT), 2 * MIB)
    });
}
