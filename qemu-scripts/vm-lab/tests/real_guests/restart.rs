//! The switch goes and comes back under running guests.

use std::time::{Duration, Instant};

use vm_lab::Result;
use vm_lab::lab::{Lab, LabSpec, Station};
use vm_lab::pool::with_lab;
use vm_lab::traffic::{Probes, TcpFlow};

use crate::packed::expect_packed;
use crate::{MIB, exchange, expect, expect_equal, pair};

const KILLS: usize = 50;
const PROBES_EVERY_US: u32 = 1000;
/// What shows that a transfer goes on: more than is left to read where it arrives.
const SIGN_OF_LIFE_BYTES: u64 = MIB;
/// A few milliseconds on an idle machine. Whoever waited for a kick or a call that was lost would wait for a retry, or for ever.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Kills the switch again and again under a transfer each way. No byte of them is lost, and neither guest's driver notices more than that
/// the cable was out. How long it was beyond what it took to find each other again is said, and is for no test to judge.
pub fn crashes_under_load_cost_no_byte(lab: &mut Lab, kills: usize) -> Result<()> {
    lab.wait_connected(2)?;
    let (one, two) = (lab.host(1)?, lab.host(2)?);
    let two_v6 = lab.guest(2)?.spec().address_v6().into();
    let before = boots_and_interfaces(lab)?;
    // Left to find its neighbour by itself, every time: it need not get far between two kills, but it does not end.
    let slow = TcpFlow::start((&one.0, &two.0), two_v6, None)?;
    slow.wait_more(MIB)?;
    keep_neighbours(lab)?;
    let flows = [
        TcpFlow::start((&one.0, &two.0), two.1, None)?,
        TcpFlow::start((&two.0, &one.0), one.1, None)?,
    ];
    flows.iter().try_for_each(|flow| flow.wait_more(MIB))?;
    let probes = Probes::start(&one.0, lab.guest(2)?.spec().address(), PROBES_EVERY_US)?;
    let outages = (0..kills)
        .map(|_| crash(lab, &probes, &flows))
        .collect::<Result<Vec<_>>>()?;
    probes.stop()?;
    for flow in flows.into_iter().chain([slow]) {
        flow.wait_more(4 * MIB)?;
        flow.stop()?;
    }
    let rest = say(&outages);
    expect("traffic is back soon after the ports", rest < BACK_WITHIN)?;
    expect_equal("boots and interfaces", boots_and_interfaces(lab)?, before)?;
    exchange(lab, (1, 2), MIB)?;
    forget_neighbours(lab)
}

/// What a crash cost.
struct Outage {
    /// From the kill until both ports are up again.
    reconnect: Duration,
    /// Beyond that, until the guests hear each other.
    rest: Duration,
}

/// One crash, from which both transfers go on.
fn crash(lab: &mut Lab, probes: &Probes, flows: &[TcpFlow]) -> Result<Outage> {
    probes.longest_gap(1)?;
    let killed = Instant::now();
    lab.switch()?.crash()?;
    lab.restart_switch()?;
    lab.wait_ports_up()?;
    let reconnect = killed.elapsed();
    let silence = probes.longest_gap(5)?;
    // Both at once: each goes on when TCP tries again.
    let so_far: Vec<u64> = flows.iter().map(TcpFlow::arrived).collect::<Result<_>>()?;
    for (flow, so_far) in flows.iter().zip(so_far) {
        flow.wait_arrived(so_far + SIGN_OF_LIFE_BYTES)?;
    }
    Ok(Outage {
        reconnect,
        rest: silence.saturating_sub(reconnect),
    })
}

/// The median of what came after the ports were up.
fn say(outages: &[Outage]) -> Duration {
    let of = |time: fn(&Outage) -> Duration| {
        let mut times: Vec<Duration> = outages.iter().map(time).collect();
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        (median, times.last().copied().unwrap_or_default())
    };
    let (reconnect, rest) = (of(|outage| outage.reconnect), of(|outage| outage.rest));
    let wanted = Duration::from_millis(100);
    let timely = outages.iter().filter(|outage| outage.rest <= wanted);
    eprintln!(
        "  {} kills: ports up again after {:.0?} (median), {:.0?} (longest), traffic {:.0?} later (median), {:.0?} (longest), {} times within {wanted:?}",
        outages.len(),
        reconnect.0,
        reconnect.1,
        rest.0,
        rest.1,
        timely.count(),
    );
    rest.0
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

fn forget_neighbours(lab: &Lab) -> Result<()> {
    for (number, other) in [(1, 2), (2, 1)] {
        let address = lab.guest(other)?.spec().address();
        lab.host(number)?.0.run(&format!("arp -d {address}"))?;
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

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn transfers_outlive_the_switch_being_killed_and_restarted_fifty_times() {
    with_lab(&pair(), |lab| crashes_under_load_cost_no_byte(lab, KILLS));
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn transfers_outlive_it_fifty_times_when_qemu_listens_and_the_port_is_the_client() {
    let listens = |name| Station::new(name).qemu_listens().queue_pairs(2);
    let spec = LabSpec::of([listens("vm1"), listens("vm2").packed()]);
    with_lab(&spec, |lab| {
        lab.wait_connected(2)?;
        expect_packed(lab, "vm2")?;
        crashes_under_load_cost_no_byte(lab, KILLS)
    });
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
