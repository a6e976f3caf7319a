//! Ports that come and go while others are busy.

use vm_lab::lab::{Station, with_lab};
use vm_lab::traffic;

use crate::{MIB, expect, expect_equal, pair, running_flow};

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_port_is_added_used_and_removed_under_load() {
    with_lab(&pair(), |lab| {
        let flow = running_flow(lab)?;
        let third = Station::new("vm3");
        for _ in 0..2 {
            let port = third.port(lab.folder());
            lab.switch()?.add_port(&port)?;
            let guest = lab.start_guest(&third)?;
            guest.wait_booted()?;
            guest.configure_network()?;
            lab.wait_connected(3)?;
            flow.wait_more(MIB)?;

            // With its guest attached and talking.
            lab.switch()?.remove_port("vm3")?;
            let (one, address) = (lab.host(1)?.0, lab.host(3)?.1);
            expect_equal(
                "pings answered",
                traffic::ping(&one, address, 1, 56)?.received,
                0,
            )?;
            expect(
                "its socket is gone",
                !lab.folder().join("vm3.sock").exists(),
            )?;
            flow.wait_more(MIB)?;
            lab.stop_last_guest();
        }
        flow.stop().map(drop)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn the_command_line_shows_ports_counters_and_addresses() {
    with_lab(&pair(), |lab| {
        lab.wait_connected(2)?;
        let macs = [lab.guest(1)?.spec().mac(), lab.guest(2)?.spec().mac()];
        let switch = lab.switch()?;
        for arguments in [&["port", "list"][..], &["port", "show", "vm1"], &["stats"]] {
            let shown = switch.cli(arguments)?;
            expect(
                &format!("{arguments:?} names vm1: {shown}"),
                shown.contains("vm1"),
            )?;
            switch.cli_json(arguments)?;
        }
        let fdb = switch.cli(&["fdb"])?;
        expect(
            &format!("fdb shows both guests: {fdb}"),
            macs.iter().all(|mac| fdb.contains(mac)),
        )?;
        switch.cli_json(&["fdb"]).map(drop)
    });
}
