//! The switch goes and comes back under running guests.

use vm_lab::lab::{LabSpec, Station, with_lab};

use crate::{MIB, exchange, expect, pair, running_flow};

fn a_crash_under_load_costs_no_byte(spec: &LabSpec) {
    with_lab(spec, |lab| {
        let flow = running_flow(lab)?;
        for _ in 0..2 {
            lab.switch()?.crash()?;
            lab.restart_switch()?;
            flow.wait_more(8 * MIB)?;
        }
        flow.stop()?;
        exchange(lab, (1, 2), MIB)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_transfer_outlives_the_switch_being_killed_and_restarted() {
    a_crash_under_load_costs_no_byte(&pair());
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_transfer_outlives_it_when_qemu_listens_and_the_port_is_the_client() {
    let spec = LabSpec::of([
        Station::new("vm1").qemu_listens(),
        Station::new("vm2").qemu_listens().queue_pairs(2),
    ]);
    a_crash_under_load_costs_no_byte(&spec);
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_switch_told_to_end_removes_its_sockets_and_its_successor_serves_the_same_guests() {
    with_lab(&pair(), |lab| {
        lab.wait_connected(2)?;
        lab.switch()?.terminate()?;
        for socket in ["vm1.sock", "vm2.sock", "admin.sock"] {
            expect(
                &format!("{socket} is gone"),
                !lab.folder().join(socket).exists(),
            )?;
        }
        lab.restart_switch()?;
        exchange(lab, (1, 2), MIB)
    });
}
