//! Real Linux guests under QEMU, on a real daemon. Slow to boot, so they are ignored unless asked for:
//! `./qemu-scripts/run-tests` asks, one test at a time, so that booted guests serve all tests that want them.

mod absence;
mod back_to_back;
mod device_state;
mod devices;
mod driver;
mod hotplug;
mod iommu;
mod jumbo;
mod kexec;
mod lifecycle;
mod memory;
mod migration;
mod multiqueue;
mod packed;
mod page;
mod ports;
mod restart;
mod snapshot;
mod stream;
mod tap;
mod transfer;
mod upgrade;
mod vlan;
mod vpc_network;
mod vpc_rates;
mod vpc_routing;
mod vpc_security;
mod vpc_services;
mod vpc_translation;
mod wind_down;

use std::net::SocketAddr;

use guest_agent::protocol::Job;
use vm_lab::agent::RunningJob;
use vm_lab::lab::{Lab, LabSpec, Station};
use vm_lab::traffic::{self, TcpFlow};
use vm_lab::{Error, Result};

/// The lab most tests want: two guests, one queue pair each, nothing special.
fn pair() -> LabSpec {
    LabSpec::of([Station::new("vm1"), Station::new("vm2")]).kept()
}

/// A running transfer from guest 1 to guest 2 that has got going.
fn running_flow(lab: &Lab) -> Result<TcpFlow> {
    flow_between(lab, (1, 2))
}

/// A running transfer from one guest to another that has got going.
fn flow_between(lab: &Lab, (from, to): (usize, usize)) -> Result<TcpFlow> {
    let ((sender, _), (receiver, address)) = (lab.host(from)?, lab.host(to)?);
    traffic::wait_reachable(&sender, address)?;
    let flow = TcpFlow::start((&sender, &receiver), address, None)?;
    flow.wait_more(MIB)?;
    Ok(flow)
}

/// Datagrams from one guest to another that do not care whether anyone takes them: 4 MB a second, until stopped.
fn flood(lab: &Lab, (from, to): (usize, usize)) -> Result<RunningJob> {
    let ((from, _), (_, address)) = (lab.host(from)?, lab.host(to)?);
    traffic::wait_reachable(&from, address)?;
    let flood = from.start(Job::UdpPace {
        to: SocketAddr::new(address, 9),
        payload_bytes: 1400,
        bytes_per_second: 4_000_000,
    })?;
    flood.wait_count(MIB)?;
    Ok(flood)
}

/// TCP over IPv4 and IPv6 and UDP, from one guest to another and back: all of it arrives as it was sent.
fn exchange(lab: &Lab, (left, right): (usize, usize), tcp_bytes: u64) -> Result<()> {
    for (from, to) in [(left, right), (right, left)] {
        let (sender, receiver) = (lab.host(from)?.0, lab.host(to)?.0);
        let spec = lab.guest(to)?.spec();
        let way = format!("{} -> {}", sender.name(), receiver.name());
        traffic::wait_reachable(&sender, spec.address().into())?;
        for address in [spec.address().into(), spec.address_v6().into()] {
            let carried =
                TcpFlow::start((&sender, &receiver), address, Some(tcp_bytes))?.finish()?;
            eprintln!("  {way} {address}: {:.0} Mbit/s", carried.mbps());
        }
        let report = traffic::udp((&sender, &receiver), spec.address().into(), 1000, 1400)?;
        expect_equal(
            "datagrams lost and damaged",
            (report.lost(), report.received.corrupt),
            (0, 0),
        )?;
    }
    Ok(())
}

/// As `assert_eq`, but leaves it to the lab to show its logs.
fn expect_equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Unexpected(format!(
        "{what}: found {found:?}, expected {expected:?}"
    )))
}

/// As `assert`, but leaves it to the lab to show its logs.
fn expect(what: &str, holds: bool) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::Unexpected(format!("does not hold: {what}")))
    }
}

const MIB: u64 = 1 << 20;
