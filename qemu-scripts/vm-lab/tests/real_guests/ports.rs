//! Ports that come and go while others are busy.

use vm_lab::lab::Station;
use vm_lab::pool::with_lab;
use vm_lab::traffic;

use crate::{MIB, exchange, expect, pair, running_flow};

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_port_is_added_used_and_removed_under_load() {
    with_lab(&pair(), |lab| {
        let third = Station::new("vm3");
        let port = third.port(lab.folder());
        let flow = running_flow(lab)?;
        lab.switch()?.add_port(&port)?;
        flow.wait_more(MIB)?;
        // A guest boots slowly beside a transfer that takes all there is.
        flow.stop()?;
        let guest = lab.start_guest(&third)?;
        guest.wait_booted()?;
        guest.configure_network()?;
        let flow = running_flow(lab)?;
        lab.wait_connected(3)?;
        for _ in 0..3 {
            // With its guest attached and talking.
            lab.switch()?.remove_port("vm3")?;
            let (one, address) = (lab.host(1)?.0, lab.host(3)?.1);
            expect("no ping is answered", traffic::is_silent(&one, address)?)?;
            expect(
                "its socket is gone",
                !lab.folder().join("vm3.sock").exists(),
            )?;
            flow.wait_more(MIB)?;
            // It comes to the new port by itself.
            lab.switch()?.add_port(&port)?;
            lab.wait_connected(3)?;
            flow.wait_more(MIB)?;
        }
        flow.stop()?;
        exchange(lab, (1, 3), MIB)?;
        lab.stop_last_guest();
        lab.switch()?.remove_port("vm3")
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
