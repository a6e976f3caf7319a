//! NICs that are not virtio, on stream ports: Linux's own drivers for them, with a virtio guest at the other end.
//!
//! Which of them there are depends on the guests' kernel: Debian's `linux-image-amd64` has all, its cloud kernel vmxnet3 alone.

use vm_lab::lab::{Lab, LabSpec, Station};
use vm_lab::pool::with_lab;
use vm_lab::traffic::{Probes, TcpFlow};
use vm_lab::{Error, Result};

use crate::{MIB, exchange, expect_equal};

/// Models as QEMU names them, each with its driver in Linux.
pub const MODELS: [(&str, &str); 4] = [
    ("vmxnet3", "vmxnet3"),
    ("e1000", "e1000"),
    ("e1000e", "e1000e"),
    ("rtl8139", "8139cp"),
];
const KILLS: usize = 3;
const PROBES_EVERY_US: u32 = 5_000;

/// A virtio guest, and one with another NIC.
fn lab_of(model: &str) -> LabSpec {
    LabSpec::of([Station::new("vm1"), Station::new("vm2").nic_model(model)])
}

/// Runs `act` for each model that the guests' kernel has a driver for.
fn for_each_model(act: impl Fn(&mut Lab) -> Result<()>) {
    let mut tried = Vec::new();
    let mut has_driver = vec![true; MODELS.len()];
    // The first guest to boot tells of all drivers.
    with_lab(&lab_of(MODELS[0].0), |lab| {
        let drivers = lab.host(1)?.0.run("ls /sys/bus/pci/drivers")?;
        let drivers: Vec<&str> = drivers.split_whitespace().collect();
        for (has, (model, driver)) in has_driver.iter_mut().zip(MODELS) {
            *has = drivers.contains(&driver);
            if !*has {
                eprintln!("  skipped: the guests' kernel has no driver for {model}");
            }
        }
        Ok(())
    });
    for (model, driver) in MODELS {
        let at = MODELS.iter().position(|known| known.0 == model);
        if at.is_some_and(|at| has_driver[at]) {
            eprintln!("  {model}:");
            with_lab(&lab_of(model), |lab| {
                let bound = lab
                    .host(2)?
                    .0
                    .run("readlink /sys/class/net/eth0/device/driver")?;
                expect_equal("driver", bound.trim().rsplit('/').next(), Some(driver))?;
                act(lab)
            });
            tried.push(model);
        }
    }
    assert!(!tried.is_empty(), "no model was tried");
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn guests_with_other_nics_exchange_traffic_and_survive_kills_and_upgrades_of_the_switch() {
    for_each_model(|lab| {
        lab.wait_ports_up()?;
        lab.wait_connected(2)?;
        exchange(lab, (1, 2), 2 * MIB)?;
        let ((one, _), (two, address)) = (lab.host(1)?, lab.host(2)?);
        let flow = TcpFlow::start((&one, &two), address, None)?;
        flow.wait_more(MIB)?;
        for _ in 0..KILLS {
            lab.switch()?.crash()?;
            lab.restart_switch()?;
            lab.wait_ports_up()?;
            flow.wait_more(4 * MIB)?;
        }
        // Handed over, not cut: the guests go on over the connections they have.
        let probes = Probes::start(&one, lab.guest(2)?.spec().address(), PROBES_EVERY_US)?;
        probes.wait_more(20)?;
        for _ in 0..KILLS {
            lab.upgrade_switch()?;
            probes.wait_more(20)?;
        }
        probes.stop()?;
        flow.wait_more(MIB)?;
        flow.stop()?;
        let shown = lab.switch()?.cli_json(&["port", "show", "vm2"])?;
        let device = shown
            .get("device")
            .ok_or_else(|| Error::Unexpected(shown.to_string()))?;
        expect_equal(
            "connections since the last kill",
            device
                .pointer("/connections/connects")
                .and_then(|count| count.as_u64()),
            Some(1),
        )?;
        expect_equal(
            "broken framing",
            device
                .get("protocol_errors")
                .and_then(|count| count.as_u64()),
            Some(0),
        )?;
        exchange(lab, (1, 2), MIB)
    });
}
