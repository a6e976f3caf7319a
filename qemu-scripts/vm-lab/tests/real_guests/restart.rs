//! The switch goes and comes back under running guests.

use std::time::{Duration, Instant};

use serde_json::Value;
use vm_lab::Result;
use vm_lab::await_::{SOON, eventually};
use vm_lab::lab::{Lab, LabSpec, Station, with_lab};
use vm_lab::traffic::{Probes, TcpFlow};

use crate::{MIB, exchange, expect, expect_equal, pair};

const KILLS: usize = 6;
const PROBES_EVERY_US: u32 = 1000;
/// A few milliseconds on an idle machine. Whoever waited for a kick or a call that was lost would wait for a retry, or for ever.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Kills the switch again and again under a transfer each way. No byte of them is lost, and neither guest's driver notices more than that
/// the cable was out. How long it was beyond what it took to find each other again is said, and is for no test to judge.
pub fn crashes_under_load_cost_no_byte(lab: &mut Lab) -> Result<()> {
    lab.wait_connected(2)?;
    let (one, two) = (lab.host(1)?, lab.host(2)?);
    keep_neighbours(lab)?;
    let two_v6 = lab.guest(2)?.spec().address_v6().into();
    let before = boots_and_interfaces(lab)?;
    let flows = [
        TcpFlow::start((&one.0, &two.0), two_v6, None)?,
        TcpFlow::start((&two.0, &one.0), one.1, None)?,
    ];
    flows.iter().try_for_each(|flow| flow.wait_more(MIB))?;
    let outages = (0..KILLS).map(|_| crash(lab)).collect::<Result<Vec<_>>>()?;
    for flow in flows {
        flow.wait_more(4 * MIB)?;
        flow.stop()?;
    }
    let (reconnect, rest): (Vec<_>, Vec<_>) = outages.into_iter().unzip();
    let longest = rest.iter().max().copied().unwrap_or_default();
    let (reconnect, rest) = (median(reconnect), median(rest));
    eprintln!(
        "  {KILLS} kills: ports up again after {reconnect:.0?} (median), traffic {rest:.0?} later (median), {longest:.0?} (longest)"
    );
    expect("traffic is back soon after the ports", rest < BACK_WITHIN)?;
    expect_equal("boots and interfaces", boots_and_interfaces(lab)?, before)?;
    exchange(lab, (1, 2), MIB)
}

/// One crash: how long it takes until both ports are up again, and how much longer until the guests hear each other.
fn crash(lab: &mut Lab) -> Result<(Duration, Duration)> {
    let ((one, _), (two, address)) = (lab.host(1)?, lab.host(2)?);
    let probes = Probes::start((&one, &two), address, PROBES_EVERY_US)?;
    probes.wait_more(10)?;
    let killed = Instant::now();
    lab.switch()?.crash()?;
    lab.restart_switch()?;
    eventually(SOON, "both ports to be up", || {
        match lab.switch().and_then(|switch| switch.get("/v1/ports")) {
            Ok(ports) if ports_up(&ports) == 2 => Ok(()),
            Ok(ports) => Err(ports.to_string()),
            Err(error) => Err(error.to_string()),
        }
    })?;
    let reconnected = killed.elapsed();
    probes.wait_more(10)?;
    let silence = Duration::from_secs_f64(probes.stop()?.longest_gap_seconds);
    Ok((reconnected, silence.saturating_sub(reconnected)))
}

fn ports_up(ports: &Value) -> usize {
    let up = |port: &&Value| port.get("state").is_some_and(|state| state == "up");
    let ports = ports.get("ports").and_then(Value::as_array);
    ports.map_or(0, |ports| ports.iter().filter(up).count())
}

/// A Linux that finds its cable out forgets its neighbours, and asks for them again once a second: no measure of a switch.
fn keep_neighbours(lab: &Lab) -> Result<()> {
    for (number, other) in [(1, 2), (2, 1)] {
        let spec = lab.guest(other)?.spec();
        let (address, mac) = (spec.address(), spec.mac());
        lab.host(number)?
            .0
            .run(&format!("arp -s {address} {mac}"))?;
    }
    Ok(())
}

/// What would change with a reboot, or with a driver that is loaded again.
fn boots_and_interfaces(lab: &Lab) -> Result<Vec<(usize, String)>> {
    [1, 2]
        .map(|number| {
            let agent = lab.host(number)?.0;
            let interface = agent.run("cat /sys/class/net/eth0/ifindex")?;
            Ok((agent.boots(), interface))
        })
        .into_iter()
        .collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn transfers_outlive_the_switch_being_killed_and_restarted() {
    with_lab(&pair(), crashes_under_load_cost_no_byte);
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn transfers_outlive_it_when_qemu_listens_and_the_port_is_the_client() {
    let spec = LabSpec::of([
        Station::new("vm1").qemu_listens(),
        Station::new("vm2").qemu_listens().queue_pairs(2),
    ]);
    with_lab(&spec, crashes_under_load_cost_no_byte);
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_switch_told_to_end_removes_its_sockets_and_its_successor_serves_the_same_guests() {
    with_lab(&pair(), |lab| {
        lab.wait_connected(2)?;
        lab.switch()?.terminate()?;
        for socket in ["vm1.sock", "vm2.sock", "admin.sock"] {
            expect(
                &format!("{socket} is gone"),
                !lab.folder().join(socket).exists(),
            )?;
        }
        lab.restart_switch()?;
        exchange(lab, (1, 2), MIB)
    });
}
