//! What happens to a guest: reboot, reset, pulled cable, pause, death.

use serde_json::json;
use vm_lab::await_::{SOON, eventually};
use vm_lab::guest::{Guest, Link};
use vm_lab::pool::with_lab;
use vm_lab::qmp::Qmp;
use vm_lab::{Result, traffic};

use crate::{MIB, exchange, expect, flood, pair, running_flow};

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_that_reboots_or_is_reset_under_load_has_its_network_again() {
    with_lab(&pair(), |lab| {
        let flood = flood(lab, (1, 2))?;
        lab.guest(2)?.agent().reboot()?;
        lab.guest(2)?.configure_network()?;
        lab.wait_connected(2)?;
        let boots = lab.guest(2)?.agent().boots();
        lab.guest_mut(2)?.qmp().execute("system_reset", json!({}))?;
        lab.guest(2)?.agent().wait_boot(boots + 1)?;
        lab.guest(2)?.configure_network()?;
        lab.wait_connected(2)?;
        flood.stop()?;
        exchange(lab, (1, 2), 2 * MIB)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_killed_qemu_frees_its_port_for_the_next() {
    with_lab(&pair(), |lab| {
        lab.wait_connected(2)?;
        for _ in 0..2 {
            lab.replace_guest(2)?;
            exchange(lab, (1, 2), 2 * MIB)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_cable_pulled_and_plugged_in_again_carries_a_transfer_on() {
    with_lab(&pair(), |lab| {
        let flow = running_flow(lab)?;
        let (one, (two, address)) = (lab.host(1)?.0, lab.host(2)?);
        lab.guest_mut(2)?.set_link(Link::Down)?;
        wait_carrier(&two, "0")?;
        expect("no ping is answered", traffic::is_silent(&one, address)?)?;
        lab.guest_mut(2)?.set_link(Link::Up)?;
        wait_carrier(&two, "1")?;
        flow.wait_more(4 * MIB)?;
        flow.stop().map(drop)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_paused_guest_goes_on_where_it_was() {
    with_lab(&pair(), |lab| {
        let flow = running_flow(lab)?;
        for number in [1, 2, 1, 2] {
            pause(lab.guest_mut(number)?)?;
            resume(lab.guest_mut(number)?)?;
            flow.wait_more(2 * MIB)?;
        }
        flow.stop().map(drop)
    });
}

/// Stops a guest, all its CPUs at once.
pub fn pause(guest: &mut Guest) -> Result<()> {
    change(guest.qmp(), "stop", "STOP")
}

/// Lets it go on.
pub fn resume(guest: &mut Guest) -> Result<()> {
    change(guest.qmp(), "cont", "RESUME")
}

fn change(qmp: &mut Qmp, command: &str, event: &str) -> Result<()> {
    qmp.clear_events();
    qmp.execute(command, json!({}))?;
    qmp.wait_event(event, |_| true).map(drop)
}

fn wait_carrier(agent: &vm_lab::agent::Agent, wanted: &str) -> Result<()> {
    eventually(SOON, "the carrier to change", || {
        match agent.run("cat /sys/class/net/eth0/carrier") {
            Ok(carrier) if carrier.trim() == wanted => Ok(()),
            Ok(carrier) => Err(carrier),
            Err(error) => Err(error.to_string()),
        }
    })
}
