//! What a guest is told about its network on the `vpc` program: by DHCP, and by router advertisements.

use std::net::IpAddr;

use serde_json::json;
use vm_lab::agent::Agent;
use vm_lab::await_::{PATIENCE, eventually};
use vm_lab::{Result, traffic};

use crate::vpc_network::{RED, RED_BACK, with_network};
use crate::{expect, expect_equal};

/// Does what it is told, and writes it down.
const LEASE_SCRIPT: &str = "cat >/tmp/lease.sh <<'END'
#!/bin/sh
[ \"$1\" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
echo \"$ip/$mask router=$router dns=$dns domain=$domain lease=$lease mtu=$mtu\" >/tmp/lease
END
chmod +x /tmp/lease.sh; rm -f /tmp/lease";

/// Nothing but a NIC that is plugged in again.
fn forget_addresses(guest: &Agent) -> Result<()> {
    guest
        .shell("ip link set eth0 down; ip addr flush dev eth0; ip link set eth0 up")
        .map(drop)
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn udhcpc_gets_an_address_a_router_and_a_name_server_and_then_reaches_other_networks() {
    with_network(&[(1, RED, 1), (3, RED_BACK, 3)], |vpc| {
        vpc.set_services(|config| {
            config["interfaces"][0]["dhcp4"] = json!({
                "pool": { "first": "10.0.0.1", "last": "10.0.0.1" },
                "router": RED.router(), "dns": ["10.0.0.53"], "domain_name": "red.example",
                "lease_s": 1200, "mtu": 1450,
            });
        })?;
        let guest = vpc.agent(1)?;
        forget_addresses(&guest)?;
        guest.shell(LEASE_SCRIPT)?;
        guest.run("udhcpc -i eth0 -f -n -q -t 20 -T 1 -O mtu -s /tmp/lease.sh")?;
        expect_equal(
            "the lease",
            guest.shell("cat /tmp/lease")?.trim(),
            "10.0.0.1/24 router=10.0.0.254 dns=10.0.0.53 domain=red.example lease=1200 mtu=1450",
        )?;
        traffic::wait_reachable(&guest, RED.router().into())?;
        let pings = traffic::ping(&guest, vpc.address(3)?, 3, 56)?;
        expect_equal("pings answered from another network", pings.received, 3)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_makes_its_ipv6_address_of_what_the_router_advertises() {
    with_network(&[(1, RED, 1), (3, RED_BACK, 3)], |vpc| {
        vpc.set_services(|config| {
            config["interfaces"][0]["ra"] = json!({ "dns": ["fd00::53"] });
        })?;
        let guest = vpc.agent(1)?;
        forget_addresses(&guest)?;
        let own = RED.v6_by_mac(1).to_string();
        let routes = eventually(PATIENCE, "an address by router advertisement", || {
            let look = || -> Result<(String, String)> {
                Ok((
                    guest.shell("ip -6 addr show dev eth0")?,
                    guest.shell("ip -6 route show")?,
                ))
            };
            match look() {
                Ok((addresses, routes)) if addresses.contains(&own) => Ok(Ok(routes)),
                Ok((addresses, _)) => Err(addresses),
                Err(error) => Ok(Err(error)),
            }
        })??;
        expect(
            &format!("the default route is by the router: {routes}"),
            routes
                .lines()
                .any(|route| route.starts_with("default via fe80::ff:fe00:f1 ")),
        )?;
        traffic::wait_reachable(&guest, RED.router_v6().into())?;
        let other: IpAddr = vpc.address_v6(3)?;
        let pings = traffic::ping(&guest, other, 3, 56)?;
        expect_equal("pings answered from another network", pings.received, 3)
    });
}
