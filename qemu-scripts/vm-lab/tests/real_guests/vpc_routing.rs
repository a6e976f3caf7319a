//! The virtual router of the `vpc` program, as ping, traceroute and path MTU discovery see it.

use std::net::IpAddr;

use serde_json::json;
use vm_lab::agent::Agent;
use vm_lab::{Result, traffic};

use crate::vpc_network::{RED, RED_BACK, Seat, with_network};
use crate::{MIB, expect, expect_equal};

const SEATS: [Seat; 2] = [(1, RED, 1), (3, RED_BACK, 3)];

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn the_router_answers_pings_and_carries_them_to_another_network() {
    with_network(&SEATS, |vpc| {
        let guest = vpc.agent(1)?;
        let routers: [IpAddr; 4] = [
            RED.router().into(),
            RED_BACK.router().into(),
            RED.router_v6().into(),
            RED_BACK.router_v6().into(),
        ];
        let others = [vpc.address(3)?, vpc.address_v6(3)?];
        for address in routers.into_iter().chain(others) {
            traffic::wait_reachable(&guest, address)?;
            for payload_bytes in [56, 1400] {
                let pings = traffic::ping(&guest, address, 3, payload_bytes)?;
                expect_equal(&format!("pings answered by {address}"), pings.received, 3)?;
            }
        }
        for address in others {
            let (from, to) = (vpc.agent(1)?, vpc.agent(3)?);
            let carried = traffic::TcpFlow::start((&from, &to), address, Some(16 * MIB))?;
            eprintln!(
                "  routed to {address}: {:.0} Mbit/s",
                carried.finish()?.mbps()
            );
        }
        Ok(())
    });
}

/// Who answered, hop by hop.
fn hops(traceroute: &str) -> Vec<String> {
    // " 1  10.0.0.254  0.512 ms"
    let hops = traceroute.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next()?.parse::<u8>().ok()?;
        words.next().map(str::to_owned)
    });
    hops.collect()
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn traceroute_shows_the_router_and_then_the_target() {
    with_network(&SEATS, |vpc| {
        let guest = vpc.agent(1)?;
        let traces = [
            ("traceroute", vpc.address(3)?, IpAddr::from(RED.router())),
            ("traceroute6", vpc.address_v6(3)?, RED.router_v6().into()),
        ];
        for (program, target, router) in traces {
            traffic::wait_reachable(&guest, target)?;
            let traced = guest.run(&format!("{program} -n -q 1 -w 10 -m 4 {target}"))?;
            expect_equal(
                &format!("hops of {traced}"),
                hops(&traced),
                vec![router.to_string(), target.to_string()],
            )?;
        }
        Ok(())
    });
}

/// ICMP errors about unreachable destinations that the guest's kernel has taken.
fn errors_received(guest: &Agent) -> Result<u64> {
    // Two lines "Icmp: …": names, then numbers.
    let counted = guest.shell("grep ^Icmp: /proc/net/snmp")?;
    let mut lines = counted.lines().map(str::split_whitespace);
    let (names, numbers) = (lines.next(), lines.next());
    let of = names
        .into_iter()
        .flatten()
        .zip(numbers.into_iter().flatten())
        .find(|(name, _)| *name == "InDestUnreachs");
    Ok(of.and_then(|(_, number)| number.parse().ok()).unwrap_or(0))
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_packet_too_large_for_the_way_is_answered_and_its_sender_then_sends_smaller_ones() {
    with_network(&SEATS, |vpc| {
        let (interface, domain) = (RED_BACK.interface, RED_BACK.domain);
        let narrow =
            json!({ "domain": domain, "mac": RED_BACK.router_mac(), "mtu": 1400, "translates": 0 });
        vpc.write(&[json!({ "modify": {
            "table": "interfaces", "key": { "interface": interface }, "action": "interface", "params": narrow,
        } })])?;
        vpc.set_services(|config| config["interfaces"][1]["mtu"] = json!(1400))?;
        let (guest, target) = (vpc.agent(1)?, vpc.address(3)?);
        traffic::wait_reachable(&guest, target)?;
        let fits = traffic::ping(&guest, target, 3, 1400 - 28)?;
        expect_equal("pings that fit and are answered", fits.received, 3)?;
        let before = errors_received(&guest)?;
        // The first is refused, and with it the guest learns of the way's MTU.
        let large = traffic::ping(&guest, target, 4, 1401 - 28)?;
        expect_equal("pings that do not fit and are answered", large.received, 3)?;
        expect_equal("errors that came", errors_received(&guest)? - before, 1)?;
        for address in [target, vpc.address_v6(3)?] {
            let (from, to) = (vpc.agent(1)?, vpc.agent(3)?);
            let carried =
                traffic::TcpFlow::start((&from, &to), address, Some(8 * MIB))?.finish()?;
            expect(
                &format!("a transfer to {address} finds its size"),
                carried.bytes == 8 * MIB,
            )?;
        }
        Ok(())
    });
}
