//! Guests with packed rings: whatever happens to others happens to them.

use vm_lab::Result;
use vm_lab::lab::{Lab, LabSpec, Station};
use vm_lab::pool::with_lab;

use crate::lifecycle::{pause, resume};
use crate::restart::crashes_under_load_cost_no_byte;
use crate::{MIB, exchange, expect, running_flow};

pub fn packed_pair() -> LabSpec {
    LabSpec::of([Station::new("vm1").packed(), Station::new("vm2").packed()]).kept()
}

/// The guest really has packed rings.
pub fn expect_packed(lab: &mut Lab, port: &str) -> Result<()> {
    let show = lab.switch()?.cli_json(&["port", "show", port])?;
    let acked = show["device"]["features_acked"].to_string();
    expect(
        &format!("{port} has acked RING_PACKED: {acked}"),
        acked.contains("RING_PACKED"),
    )
}

fn expect_both_packed(lab: &mut Lab) -> Result<()> {
    expect_packed(lab, "vm1")?;
    expect_packed(lab, "vm2")
}

/// Beside the fifty of `restart`, in which one guest has packed rings and the other has not.
const KILLS: usize = 10;

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn transfers_between_packed_rings_outlive_the_switch_being_killed_and_restarted() {
    with_lab(&packed_pair(), |lab| {
        lab.wait_connected(2)?;
        expect_both_packed(lab)?;
        crashes_under_load_cost_no_byte(lab, KILLS)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_with_packed_rings_may_pause_reboot_and_be_replaced() {
    with_lab(&packed_pair(), |lab| {
        let flow = running_flow(lab)?;
        expect_both_packed(lab)?;
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
