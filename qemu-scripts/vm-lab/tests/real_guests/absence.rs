//! What happens to a guest while the switch is away: the one that comes back finds it as it is then, not as it was.

use vm_lab::Result;
use vm_lab::guest::Link;
use vm_lab::lab::{Lab, LabSpec};
use vm_lab::pool::with_lab;

use crate::driver::rebind;
use crate::lifecycle::{pause, resume};
use crate::memory::{MODULE_MIB, put_to_use};
use crate::packed::packed_pair;
use crate::{MIB, exchange, pair, running_flow};

/// What a transfer from the first guest to the second one outlives.
const EVENTS: [fn(&mut Lab) -> Result<()>; 5] = [
    |lab| {
        pause(lab.guest_mut(2)?)?;
        resume(lab.guest_mut(2)?)
    },
    |lab| {
        lab.guest_mut(2)?.set_link(Link::Down)?;
        lab.guest_mut(2)?.set_link(Link::Up)
    },
    |lab| lab.guest_mut(2)?.plug_memory("meanwhile", MODULE_MIB),
    |lab| lab.guest_mut(2)?.unplug_memory("meanwhile"),
    // The rings begin anew, at the same place.
    |lab| [1, 2].iter().try_for_each(|&number| rebind(lab, number)),
];

fn meanwhile(spec: &LabSpec) {
    with_lab(spec, |lab| {
        let flow = running_flow(lab)?;
        put_to_use(&lab.host(2)?.0, "online_movable")?;
        for event in EVENTS {
            lab.switch()?.crash()?;
            event(lab)?;
            lab.restart_switch()?;
            flow.wait_more(2 * MIB)?;
        }
        // It comes back to a guest that stands still.
        pause(lab.guest_mut(2)?)?;
        lab.switch()?.crash()?;
        lab.restart_switch()?;
        resume(lab.guest_mut(2)?)?;
        flow.wait_more(2 * MIB)?;
        flow.stop()?;
        lab.switch()?.crash()?;
        lab.guest(2)?.agent().reboot()?;
        lab.guest(2)?.configure_network()?;
        lab.restart_switch()?;
        lab.wait_ports_up()?;
        lab.wait_connected(2)?;
        exchange(lab, (1, 2), MIB)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn whatever_happens_to_a_guest_while_the_switch_is_away_a_transfer_goes_on() {
    meanwhile(&pair());
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn whatever_happens_to_packed_rings_while_the_switch_is_away_a_transfer_goes_on() {
    meanwhile(&packed_pair());
}
