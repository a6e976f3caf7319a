//! Jumbo frames: 9,000-byte MTU offered by the device, taken by the guests.

use vm_lab::agent::Agent;
use vm_lab::lab::{LabSpec, Station, with_lab};
use vm_lab::{Error, Result, traffic};

use crate::{MIB, exchange, expect_equal};

const MTU: u16 = 9000;
const IPV4_AND_ICMP_HEADERS: u16 = 28;

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn frames_of_nine_thousand_bytes_cross_in_one_piece() {
    let spec = LabSpec::of([Station::new("vm1").mtu(MTU), Station::new("vm2").mtu(MTU)]);
    with_lab(&spec, |lab| {
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
