//! Several queue pairs a NIC.

use vm_lab::agent::Agent;
use vm_lab::lab::{LabSpec, Station};
use vm_lab::pool::with_lab;
use vm_lab::traffic::TcpFlow;
use vm_lab::{Error, Result};

use crate::{MIB, exchange, expect, expect_equal};

fn spec() -> LabSpec {
    LabSpec::of([
        Station::new("vm1").queue_pairs(2),
        Station::new("vm2").queue_pairs(4),
    ])
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn two_and_four_queue_pairs_carry_many_flows_at_once() {
    with_lab(&spec(), |lab| {
        lab.wait_connected(2)?;
        let (one, two) = (lab.host(1)?, lab.host(2)?);
        for ((agent, _), pairs) in [(&one, 2), (&two, 4)] {
            let queues = agent.run("ls /sys/class/net/eth0/queues")?;
            expect_equal("queues", queues.split_whitespace().count(), 2 * pairs)?;
        }
        let mut flows = Vec::new();
        for _ in 0..4 {
            flows.push(TcpFlow::start((&one.0, &two.0), two.1, Some(8 * MIB))?);
            flows.push(TcpFlow::start((&two.0, &one.0), one.1, Some(8 * MIB))?);
        }
        for flow in flows {
            flow.finish()?;
        }
        for (agent, _) in [&one, &two] {
            let busy = busy_receive_queues(agent)?;
            expect(
                &format!(
                    "{}: more than one of its receive queues was used ({busy})",
                    agent.name()
                ),
                busy > 1,
            )?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_that_reboots_gets_all_its_queue_pairs_again() {
    with_lab(&spec(), |lab| {
        lab.wait_connected(2)?;
        lab.guest(2)?.agent().reboot()?;
        lab.guest(2)?.configure_network()?;
        exchange(lab, (1, 2), 4 * MIB)
    });
}

/// Receive queues whose interrupt has fired since boot.
fn busy_receive_queues(agent: &Agent) -> Result<usize> {
    let interrupts = agent.run("cat /proc/interrupts")?;
    let lines: Vec<&str> = interrupts
        .lines()
        .filter(|line| line.contains("-input."))
        .collect();
    if lines.is_empty() {
        return Err(Error::Unexpected(format!(
            "no receive interrupts: {interrupts}"
        )));
    }
    let fired = |line: &&&str| {
        line.split_whitespace()
            .skip(1)
            .map_while(|n| n.parse::<u64>().ok())
            .any(|n| n > 0)
    };
    Ok(lines.iter().filter(fired).count())
}
