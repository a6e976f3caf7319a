//! The host as one more neighbour, over a TAP port. In a network namespace of the test's own: it vanishes with the
//! switch, and no interface of this machine is touched.

use std::net::IpAddr;

use vm_lab::lab::LabSpec;
use vm_lab::pool::with_lab;
use vm_lab::switch::Network;
use vm_lab::traffic::{self, TcpFlow};

use crate::{MIB, expect_equal, pair};

const INTERFACE: &str = "rs-host0";
const HOST_ADDRESS: &str = "10.0.0.100";

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn the_host_reaches_a_guest_and_the_guest_the_host() {
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
        let (guest, guest_address) = lab.host(1)?;
        let host_address = IpAddr::from([10, 0, 0, 100]);
        traffic::wait_reachable(&host, guest_address)?;
        for (from, to, address) in [
            (&host, &guest, guest_address),
            (&guest, &host, host_address),
        ] {
            let pings = traffic::ping(from, address, 5, 1472)?;
            expect_equal("pings answered", pings.received, 5)?;
            let carried = TcpFlow::start((from, to), address, Some(32 * MIB))?.finish()?;
            eprintln!(
                "  {} -> {}: {:.0} Mbit/s",
                from.name(),
                to.name(),
                carried.mbps()
            );
            let report = traffic::udp((from, to), address, 1000, 1400)?;
            expect_equal(
                "datagrams lost and damaged",
                (report.lost(), report.received.corrupt),
                (0, 0),
            )?;
        }
        Ok(())
    });
}
