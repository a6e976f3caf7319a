//! The switch replaced by another process, again and again, under guests that ping each other and the host every millisecond.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;
use vm_lab::lab::{Lab, LabSpec};
use vm_lab::pool::with_lab;
use vm_lab::switch::Network;
use vm_lab::traffic::{self, Probes, TcpFlow};
use vm_lab::{Error, Result};

use crate::{MIB, exchange, expect, expect_equal, pair};

const UPGRADES: usize = 5;
const PROBES_EVERY_US: u32 = 1_000;
const INTERFACE: &str = "rs-host0";
const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn guests_that_ping_every_millisecond_lose_nothing_to_upgrades() {
    with_lab(&pair(), |lab| {
        lab.wait_connected(2)?;
        let ((one, _), (two, address)) = (lab.host(1)?, lab.host(2)?);
        traffic::wait_reachable(&one, address)?;
        let flow = TcpFlow::start((&two, &one), lab.guest(1)?.spec().address().into(), None)?;
        flow.wait_more(MIB)?;
        let carriers = |lab: &Lab| -> Result<Vec<String>> {
            let changes = "cat /sys/class/net/eth0/carrier_changes";
            [1, 2]
                .map(|number| lab.host(number)?.0.run(changes))
                .into_iter()
                .collect()
        };
        let before = carriers(lab)?;
        let probes = Probes::start(&one, lab.guest(2)?.spec().address(), PROBES_EVERY_US)?;
        probes.wait_more(50)?;
        upgrade_repeatedly(lab, &probes)?;
        flow.wait_more(4 * MIB)?;
        flow.stop()?;
        lost_nothing(probes)?;
        expect_equal("changes of the carrier", carriers(lab)?, before)?;
        for port in ["vm1", "vm2"] {
            let shown = lab.switch()?.cli_json(&["port", "show", port])?;
            let connections = shown.pointer("/device/connections/connects");
            expect_equal("connections", connections.and_then(Value::as_u64), Some(1))?;
        }
        exchange(lab, (1, 2), MIB)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_and_the_host_lose_nothing_to_upgrades() {
    if !Network::private_is_allowed() {
        eprintln!("skipped: needs root, or user namespaces for everyone");
        return;
    }
    let spec = LabSpec {
        taps: vec![INTERFACE.to_owned()],
        ..pair()
    };
    with_lab(&spec, |lab| {
        let host = lab.host_agent()?;
        host.run(&format!(
            "ip addr replace {HOST_ADDRESS}/24 dev {INTERFACE}"
        ))?;
        host.run(&format!("ip link set {INTERFACE} up"))?;
        let guest = lab.host(1)?.0;
        traffic::wait_reachable(&guest, IpAddr::from(HOST_ADDRESS))?;
        let probes = Probes::start(&guest, HOST_ADDRESS, PROBES_EVERY_US)?;
        probes.wait_more(50)?;
        upgrade_repeatedly(lab, &probes)?;
        lost_nothing(probes)
    });
}

fn upgrade_repeatedly(lab: &mut Lab, probes: &Probes) -> Result<()> {
    let mut gaps_us = Vec::new();
    for _ in 0..UPGRADES {
        let report = lab.upgrade_switch()?;
        let gap = report.get("gap_us").and_then(Value::as_u64);
        gaps_us.push(gap.ok_or_else(|| Error::Unexpected(format!("upgrade: {report}")))?);
        probes.wait_more(50)?;
    }
    gaps_us.sort_unstable();
    eprintln!("  {UPGRADES} upgrades: nobody served the rings for {gaps_us:?} us");
    Ok(())
}

fn lost_nothing(probes: Probes) -> Result<()> {
    let seen = probes.stop()?;
    eprintln!(
        "  {} of {} pings answered, at most {:.1} ms apart",
        seen.frames,
        seen.sent,
        seen.longest_gap_seconds * 1000.0
    );
    // The last ones were on their way when they were asked to end.
    expect("every ping was answered", seen.sent - seen.frames <= 3)
}
