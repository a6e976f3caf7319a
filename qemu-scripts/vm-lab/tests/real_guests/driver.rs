//! What happens to a guest's driver while frames are under way: it is taken from its device and given back, again and again.

use vm_lab::Result;
use vm_lab::lab::Lab;
use vm_lab::pool::with_lab;

use crate::{MIB, exchange, expect, flood, pair, running_flow};

const ROUNDS: u32 = 5;

/// Takes the driver from the NIC and gives it back: the device is reset, the interface goes and comes without an address.
pub fn rebind(lab: &Lab, number: usize) -> Result<()> {
    let agent = lab.host(number)?.0;
    let path = agent.run("readlink /sys/class/net/eth0/device")?;
    let device = path.trim().rsplit('/').next().unwrap_or_default();
    for act in ["unbind", "bind"] {
        let line = format!("echo {device} >/sys/bus/virtio/drivers/virtio_net/{act}");
        let (status, output) = agent.exec(["sh", "-c", &line])?;
        expect(&format!("{line} works: {output}"), status == 0)?;
        let (there, _) = agent.exec(["test", "-e", "/sys/class/net/eth0"])?;
        expect(
            &format!("after {act}, eth0 is as it should"),
            (there == 0) == (act == "bind"),
        )?;
    }
    lab.guest(number)?.configure_network()
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_driver_unbound_and_bound_again_and_again_under_load_carries_a_transfer_on() {
    with_lab(&pair(), |lab| {
        let flow = running_flow(lab)?;
        let flood = flood(lab, (1, 2))?;
        for _ in 0..ROUNDS {
            // The receiver of the load, then its sender.
            for number in [2, 1] {
                rebind(lab, number)?;
            }
            lab.wait_connected(2)?;
            flow.wait_more(MIB)?;
        }
        flood.stop()?;
        flow.stop()?;
        exchange(lab, (1, 2), MIB)
    });
}
