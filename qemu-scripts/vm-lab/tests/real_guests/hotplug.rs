//! NICs that running guests are given by the device table, and lose again.

use std::path::PathBuf;

use serde_json::Value;
use vm_lab::Result;
use vm_lab::await_::{SOON, eventually};
use vm_lab::lab::{Lab, Station};
use vm_lab::pool::with_lab;
use vm_lab::switch::Switch;
use vm_lab::traffic::{self, TcpFlow};

use crate::stream::MODELS;
use crate::{MIB, expect, expect_equal, pair};

/// Where the switch steers a guest's QEMU: a monitor beside the lab's own.
pub fn monitor(lab: &Lab, name: &str) -> PathBuf {
    lab.folder().join(&format!("{name}.hotplug"))
}

/// A guest with two free slots.
fn with_slots(lab: &Lab, name: &str) -> Station {
    Station::new(name).qemu(&format!(
        "-device pcie-root-port,id=slot1,chassis=1 -device pcie-root-port,id=slot2,chassis=2 \
         -chardev socket,id=hotplug,path={},server=on,wait=off -mon chardev=hotplug,mode=control",
        monitor(lab, name).display()
    ))
}

/// Boots it as the lab's third guest.
pub fn start_third(lab: &mut Lab) -> Result<()> {
    let third = with_slots(lab, "vm3");
    let port = third.port(lab.folder());
    lab.switch()?.add_port(&port)?;
    let guest = lab.start_guest(&third)?;
    guest.wait_booted()?;
    guest.configure_network()
}

pub fn stop_third(lab: &mut Lab) -> Result<()> {
    lab.stop_last_guest();
    lab.switch()?.remove_port("vm3")
}

fn add(lab: &mut Lab, name: &str, more: &[&str]) -> Result<Value> {
    let vm = format!("qemu:{}", monitor(lab, "vm3").display());
    let arguments = [&["device", "add", name, "--vm", &vm][..], more].concat();
    lab.switch()?.cli_json(&arguments)
}

fn wait_state(switch: &Switch, name: &str, wanted: &str) -> Result<()> {
    eventually(SOON, &format!("device {name} to be {wanted}"), || {
        let device = switch
            .get(&format!("/v1/devices/{name}"))
            .map_err(|error| error.to_string())?;
        match device.get("state").and_then(Value::as_str) {
            Some(state) if state == wanted => Ok(()),
            _ => Err(device.to_string()),
        }
    })
}

/// What the switch put into the third guest's QEMU, by the lab's own monitor.
pub fn traces(lab: &mut Lab) -> Result<Vec<String>> {
    let qmp = lab.guest_mut(3)?.qmp();
    let chardevs = qmp.execute("query-chardev", serde_json::json!({}))?;
    let devices = qmp.execute(
        "qom-list",
        serde_json::json!({ "path": "/machine/peripheral" }),
    )?;
    let network = qmp.execute(
        "human-monitor-command",
        serde_json::json!({ "command-line": "info network" }),
    )?;
    let network = network.as_str().unwrap_or_default().split_whitespace();
    let names = |list: &Value, key: &str| -> Vec<String> {
        let items = list.as_array().into_iter().flatten();
        let names = items.filter_map(|item| item.get(key)?.as_str());
        names.map(str::to_owned).collect()
    };
    let mut all = names(&chardevs, "label");
    all.extend(names(&devices, "name"));
    all.extend(network.map(str::to_owned));
    all.retain(|name| name.starts_with("rsw-"));
    Ok(all)
}

/// Traffic between the first guest and what the third was given as eth1.
pub fn exchange_over_eth1(lab: &Lab) -> Result<()> {
    let ((one, _), (three, _)) = (lab.host(1)?, lab.host(3)?);
    one.shell("ip addr replace 10.0.1.1/24 dev eth0")?;
    three.shell("ip addr replace 10.0.1.3/24 dev eth1\nip link set eth1 up")?;
    let address = [10, 0, 1, 3].into();
    traffic::wait_reachable(&one, address)?;
    TcpFlow::start((&one, &three), address, Some(MIB))?.finish()?;
    TcpFlow::start((&three, &one), [10, 0, 1, 1].into(), Some(MIB))?.finish()?;
    Ok(())
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_running_guest_is_given_a_nic_uses_it_and_loses_it_again() {
    with_lab(&pair(), |lab| {
        start_third(lab)?;
        let device = add(lab, "vm3-eth1", &["--wait", "60"])?;
        expect_equal("state", device["state"].as_str(), Some("ready"))?;
        let mac = device["mac"].as_str().unwrap_or_default().to_owned();
        let (three, _) = lab.host(3)?;
        let seen = three.shell("cat /sys/class/net/eth1/address")?;
        expect_equal("the guest's address", seen.trim(), mac.as_str())?;
        exchange_over_eth1(lab)?;
        expect("QEMU has it", !traces(lab)?.is_empty())?;
        let socket = lab.folder().join("device-vm3-eth1.sock");
        expect("its socket is there", socket.exists())?;
        lab.switch()?.cli(&["device", "remove", "vm3-eth1"])?;
        expect_equal("what is left in QEMU", traces(lab)?, vec![])?;
        expect("its socket is gone", !socket.exists())?;
        let left = three.shell("ls /sys/class/net")?;
        expect(
            &format!("the guest has lost it: {left}"),
            !left.contains("eth1"),
        )?;
        let ports = lab.switch()?.get("/v1/ports")?.to_string();
        expect("its port is gone", !ports.contains("vm3-eth1"))?;
        stop_third(lab)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_hundred_nics_given_and_taken_leave_nothing_in_a_running_vm() {
    with_lab(&pair(), |lab| {
        start_third(lab)?;
        for round in 1..=100 {
            add(lab, "vm3-eth1", &["--wait", "60"])?;
            lab.switch()?.cli(&["device", "remove", "vm3-eth1"])?;
            expect_equal(
                &format!("what is left in round {round}"),
                traces(lab)?,
                vec![],
            )?;
        }
        let devices = lab.switch()?.get("/v1/devices")?;
        expect_equal("devices", &devices["devices"], &Value::Array(vec![]))?;
        stop_third(lab)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_running_guest_is_given_each_model_uses_it_and_loses_it_again() {
    with_lab(&pair(), |lab| {
        start_third(lab)?;
        let (three, _) = lab.host(3)?;
        let drivers = three.shell("ls /sys/bus/pci/drivers")?;
        for (model, driver) in MODELS {
            let network_cards = "for device in /sys/bus/pci/devices/*; do
                     case $(cat $device/class) in 0x0200*) echo $device $(cat $device/vendor) ;; esac
                 done";
            let before = three.shell(network_cards)?;
            add(lab, "vm3-eth1", &["--model", model, "--wait", "60"])?;
            eventually(SOON, &format!("the guest to see its {model}"), || {
                let seen = three
                    .shell(network_cards)
                    .map_err(|error| error.to_string())?;
                if seen.lines().count() == before.lines().count() + 1 {
                    Ok(())
                } else {
                    Err(seen)
                }
            })?;
            if drivers.split_whitespace().any(|known| known == driver) {
                let bound = "readlink /sys/class/net/eth1/device/driver";
                eventually(SOON, &format!("{driver} to drive it"), || {
                    let bound = three.shell(bound).map_err(|error| error.to_string())?;
                    match bound.trim().rsplit('/').next() == Some(driver) {
                        true => Ok(()),
                        false => Err(bound),
                    }
                })?;
                exchange_over_eth1(lab)?;
            } else {
                eprintln!("  not used: the guests' kernel has no driver for {model}");
            }
            lab.switch()?.cli(&["device", "remove", "vm3-eth1"])?;
            expect_equal(model, traces(lab)?, vec![])?;
            expect_equal("cards of the guest", three.shell(network_cards)?, before)?;
        }
        stop_third(lab)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_nic_outlives_crash_and_upgrade_of_the_switch_and_comes_back_with_its_vm() {
    with_lab(&pair(), |lab| {
        start_third(lab)?;
        add(lab, "vm3-eth1", &["--wait", "60"])?;
        let plugged = traces(lab)?;
        // This switch has no state folder: it forgets, and finds again what it is told of.
        lab.switch()?.crash()?;
        lab.restart_switch()?;
        let port = with_slots(lab, "vm3").port(lab.folder());
        lab.switch()?.add_port(&port)?;
        add(lab, "vm3-eth1", &["--wait", "60"])?;
        expect_equal("what is plugged", traces(lab)?, plugged.clone())?;
        exchange_over_eth1(lab)?;
        lab.upgrade_switch()?;
        wait_state(lab.switch()?, "vm3-eth1", "ready")?;
        exchange_over_eth1(lab)?;
        lab.replace_guest(3)?;
        wait_state(lab.switch()?, "vm3-eth1", "ready")?;
        expect_equal("what is plugged", traces(lab)?, plugged)?;
        exchange_over_eth1(lab)?;
        lab.switch()?.cli(&["device", "remove", "vm3-eth1"])?;
        expect_equal("what is left in QEMU", traces(lab)?, vec![])?;
        stop_third(lab)
    });
}
