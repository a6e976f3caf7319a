//! Memory that is plugged in while frames are under way: SET_MEM_TABLE on live rings.

use vm_lab::Result;
use vm_lab::agent::Agent;
use vm_lab::await_::{SOON, eventually};
use vm_lab::lab::with_lab;

use crate::{MIB, pair, running_flow};

const MODULE_MIB: u64 = 128;

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn memory_plugged_in_under_load_is_used_without_a_wrong_byte() {
    with_lab(&pair(), |lab| {
        // Fresh guests: those of another test may have their slots in use.
        for number in [1, 2] {
            lab.replace_guest(number)?;
        }
        let flow = running_flow(lab)?;
        for number in [2, 1] {
            let agent = lab.host(number)?.0;
            let before = memory_mib(&agent)?;
            lab.guest_mut(number)?.plug_memory("module0", MODULE_MIB)?;
            eventually(
                SOON,
                "the guest to use the new memory",
                || match memory_mib(&agent) {
                    Ok(now) if now > before + MODULE_MIB / 2 => Ok(()),
                    Ok(now) => Err(format!("{now} MiB, {before} before")),
                    Err(error) => Err(error.to_string()),
                },
            )?;
            // The new memory lies above 4 GiB, where Linux takes its buffers from first.
            flow.wait_more(32 * MIB)?;
        }
        flow.stop().map(drop)
    });
}

fn memory_mib(agent: &Agent) -> Result<u64> {
    let total = agent.run("grep MemTotal /proc/meminfo")?;
    Ok(total
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024)
}
