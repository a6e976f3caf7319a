//! Guests with packed rings: whatever happens to others happens to them.

use vm_lab::Result;
use vm_lab::lab::{Lab, LabSpec, Station, with_lab};

use crate::lifecycle::{pause, resume};
use crate::restart::crashes_under_load_cost_no_byte;
use crate::{MIB, exchange, expect, running_flow};

pub fn packed_pair() -> LabSpec {
    LabSpec::of([Station::new("vm1").packed(), Station::new("vm2").packed()])
}

/// Both guests really have packed rings.
fn expect_packed(lab: &mut Lab) -> Result<()> {
    for port in ["vm1", "vm2"] {
        let show = lab.switch()?.cli_json(&["port", "show", port])?;
        let acked = show["device"]["features_acked"].to_string();
        expect(
            &format!("{port} has acked RING_PACKED: {acked}"),
            acked.contains("RING_PACKED"),
        )?;
    }
    Ok(())
}

fn crashes_cost_packed_rings_no_byte(spec: &LabSpec) {
    with_lab(spec, |lab| {
        lab.wait_connected(2)?;
        expect_packed(lab)?;
        crashes_under_load_cost_no_byte(lab)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn transfers_on_packed_rings_outlive_the_switch_being_killed_and_restarted() {
    crashes_cost_packed_rings_no_byte(&packed_pair());
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn transfers_on_several_packed_rings_outlive_it_when_qemu_listens() {
    let spec = LabSpec::of([
        Station::new("vm1").packed().qemu_listens(),
        Station::new("vm2").packed().qemu_listens().queue_pairs(2),
    ]);
    crashes_cost_packed_rings_no_byte(&spec);
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_with_packed_rings_may_pause_reboot_and_be_replaced() {
    with_lab(&packed_pair(), |lab| {
        let flow = running_flow(lab)?;
        expect_packed(lab)?;
        for number in [1, 2] {
            pause(lab.guest_mut(number)?)?;
            resume(lab.guest_mut(number)?)?;
            flow.wait_more(2 * MIB)?;
        }
        flow.stop()?;
        // Told where its rings stopped, QEMU is killed or begins anew; the switch is killed in between.
        lab.guest(2)?.agent().reboot()?;
        lab.guest(2)?.configure_network()?;
        exchange(lab, (1, 2), MIB)?;
        lab.switch()?.crash()?;
        lab.restart_switch()?;
        lab.wait_connected(2)?;
        exchange(lab, (1, 2), MIB)?;
        lab.replace_guest(2)?;
        exchange(lab, (1, 2), MIB)
    });
}
