//! Jumbo frames: 9,000-byte MTU offered by the device, taken by the guests.

use vm_lab::agent::Agent;
use vm_lab::lab::{LabSpec, Station};
use vm_lab::pool::with_lab;
use vm_lab::{Error, Result, traffic};

use crate::{MIB, exchange, expect_equal, running_flow};

const MTU: u16 = 9000;
const IPV4_AND_ICMP_HEADERS: u16 = 28;

fn spec() -> LabSpec {
    LabSpec::of([Station::new("vm1").mtu(MTU), Station::new("vm2").mtu(MTU)])
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn frames_of_nine_thousand_bytes_cross_in_one_piece() {
    with_lab(&spec(), |lab| {
        lab.wait_connected(2)?;
        let ((one, _), (two, address)) = (lab.host(1)?, lab.host(2)?);
        for agent in [&one, &two] {
            expect_equal(
                "MTU",
                agent.run("cat /sys/class/net/eth0/mtu")?.trim(),
                "9000",
            )?;
        }
        let before = fragments(&one)?;
        let payload_bytes = MTU - IPV4_AND_ICMP_HEADERS;
        let pings = traffic::ping(&one, address, 10, u32::from(payload_bytes))?;
        expect_equal("pings answered", pings.received, 10)?;
        let report = traffic::udp((&one, &two), address, 1000, payload_bytes)?;
        expect_equal(
            "datagrams lost and damaged",
            (report.lost(), report.received.corrupt),
            (0, 0),
        )?;
        expect_equal("fragments made", fragments(&one)?, before)?;
        exchange(lab, (1, 2), 16 * MIB)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn an_mtu_that_is_changed_under_a_transfer_holds_at_once_and_costs_no_byte() {
    with_lab(&spec(), |lab| {
        let flow = running_flow(lab)?;
        let ((one, _), (two, address)) = (lab.host(1)?, lab.host(2)?);
        let longest = |mtu: u16| u32::from(mtu - IPV4_AND_ICMP_HEADERS);
        for mtu in [1500, 4000, MTU] {
            // Between the two they differ, and the transfer goes on all the same.
            for agent in [&one, &two] {
                agent.run(&format!("ip link set eth0 mtu {mtu}"))?;
                flow.wait_more(2 * MIB)?;
            }
            let before = fragments(&one)?;
            expect_equal(
                "pings answered",
                traffic::ping(&one, address, 3, longest(mtu))?.received,
                3,
            )?;
            expect_equal("fragments made", fragments(&one)?, before)?;
        }
        flow.stop()?;
        exchange(lab, (1, 2), 4 * MIB)
    });
}

/// `FragCreates` of the guest's IPv4 counters: a line of names, then one of values. Newer kernels have more of them.
fn fragments(agent: &Agent) -> Result<String> {
    let counters = agent.run("grep ^Ip: /proc/net/snmp")?;
    let mut lines = counters.lines().map(str::split_whitespace);
    let (Some(names), Some(mut values)) = (lines.next(), lines.next()) else {
        return Err(Error::Unexpected(counters));
    };
    let index = names.into_iter().position(|name| name == "FragCreates");
    let value = index.and_then(|index| values.nth(index));
    value
        .map(str::to_owned)
        .ok_or(Error::Unexpected(counters.clone()))
}
