//! Who may talk to whom on the `vpc` program: security groups, and tenants that do not know of each other.

use std::net::{Ipv4Addr, SocketAddr};

use guest_agent::protocol::Job;
use serde_json::{Value, json};
use vm_lab::agent::RunningJob;
use vm_lab::{Result, traffic};

use crate::vpc_network::{BLUE, RED, mac, no_rule, rule, with_network};
use crate::{MIB, expect, expect_equal};

const TCP: u8 = 6;
const ICMP: u8 = 1;
const DENIED: &str = "acl_denied";
const DATAGRAMS: u32 = 20;

fn tcp_of_red() -> Value {
    json!({ "policy": RED.vrf, "protocol": TCP })
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_security_group_that_is_closed_stops_a_live_connection_and_lets_it_go_on_once_opened() {
    with_network(&[(1, RED, 1), (2, RED, 2)], |vpc| {
        vpc.write(&[
            no_rule("ingress_rules", 1, json!({ "policy": RED.vrf })),
            rule(
                "ingress_rules",
                1,
                json!({ "policy": RED.vrf, "protocol": ICMP }),
                "allow",
            ),
            rule("ingress_rules", 2, tcp_of_red(), "allow"),
        ])?;
        let live = vpc.flow((1, 2), None)?;
        live.wait_more(MIB)?;

        vpc.write(&[no_rule("ingress_rules", 2, tcp_of_red())])?;
        // What was under way has arrived once the sender sends again what did not.
        vpc.wait_dropped(1, DENIED, 2)?;
        let before = live.arrived()?;
        let new = vpc.flow((1, 2), Some(MIB))?;
        vpc.wait_dropped(1, DENIED, 3)?;
        expect_equal("bytes of the live connection", live.arrived()?, before)?;
        expect_equal("bytes of a new one", new.arrived()?, 0)?;
        let pings = traffic::ping(&vpc.agent(1)?, vpc.address(2)?, 3, 56)?;
        expect_equal("pings answered, which are still allowed", pings.received, 3)?;

        vpc.write(&[rule("ingress_rules", 2, tcp_of_red(), "allow")])?;
        new.finish()?;
        vpc.flow((1, 2), Some(MIB))?.finish()?;
        live.wait_more(MIB)?;
        live.stop().map(drop)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn what_a_group_does_not_let_in_may_still_be_asked_for_from_inside() {
    with_network(&[(1, RED, 1), (2, RED, 2)], |vpc| {
        // vm2 may be asked nothing. It asks, and its answers come.
        vpc.write(&[
            no_rule("ingress_rules", 1, json!({ "policy": RED.vrf })),
            rule(
                "ingress_rules",
                1,
                json!({ "policy": RED.vrf, "source": "10.0.0.2" }),
                "allow",
            ),
        ])?;
        let silent = traffic::is_silent(&vpc.agent(1)?, vpc.address(2)?)?;
        expect("one who may not ask is not answered", silent)?;
        let asking = traffic::ping(&vpc.agent(2)?, vpc.address(1)?, 3, 56)?;
        expect_equal("pings answered to one who may", asking.received, 3)?;
        vpc.flow((2, 1), Some(MIB))?.finish().map(drop)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn tenants_with_the_same_addresses_each_have_a_network_of_their_own() {
    let seats = [(1, RED, 1), (2, RED, 2), (3, BLUE, 1), (4, BLUE, 2)];
    with_network(&seats, |vpc| {
        for (from, to) in [(1, 2), (3, 4)] {
            let (sender, address) = (vpc.agent(from)?, vpc.address(to)?);
            traffic::wait_reachable(&sender, address)?;
            traffic::wait_reachable(&sender, vpc.address_v6(to)?)?;
        }
        // The same connections but for their ports at the sender, at the same time: each byte is checked against its tenant's own.
        let port = 7000;
        let start = |(from, to): (u8, u8), seed| -> Result<(RunningJob, RunningJob)> {
            let receiver = vpc.agent(to)?.start(Job::TcpReceive { port, seed })?;
            let sender = vpc.agent(from)?.start(Job::TcpSend {
                to: SocketAddr::new(vpc.address(to)?, port),
                seed,
                bytes: Some(8 * MIB),
                bytes_per_second: None,
            })?;
            Ok((sender, receiver))
        };
        let (red, blue) = (start((1, 2), 71)?, start((3, 4), 72)?);
        for (sender, receiver) in [red, blue] {
            sender.wait()?;
            expect_equal("bytes arrived", receiver.wait()?.bytes, 8 * MIB)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn nothing_of_one_tenant_arrives_at_another() {
    let seats = [(1, RED, 1), (2, RED, 2), (3, BLUE, 1), (4, BLUE, 2)];
    with_network(&seats, |vpc| {
        let settle = || -> Result<()> {
            for (from, to) in [(1, 2), (3, 4)] {
                traffic::wait_reachable(&vpc.agent(from)?, vpc.address(to)?)?;
            }
            Ok(())
        };
        let red = vpc.agent(1)?;
        settle()?;
        // Aimed at blue's guest by its MAC address, which red should not even know.
        red.shell(&format!("arp -i eth0 -s 10.0.0.9 {}", mac(4)))?;
        let markers = [
            (Ipv4Addr::new(10, 0, 0, 2), "red-to-address"),
            (Ipv4Addr::new(10, 0, 0, 255), "red-to-everyone"),
            (Ipv4Addr::new(10, 0, 0, 9), "red-to-mac-of-blue"),
        ];
        let (mut red_heard, mut blue_heard) = (Vec::new(), 0);
        for (to, text) in markers {
            let sniffers =
                [2, 3, 4].map(|guest| vpc.agent(guest).and_then(|agent| agent.sniff(text)));
            red.shout(SocketAddr::from((to, 9)), text, DATAGRAMS)?;
            // Frames keep their order: what was sent before has arrived by then, or never will.
            settle()?;
            let [two, three, four] = sniffers;
            red_heard.push(two?.stop()?.frames);
            blue_heard += three?.stop()?.frames + four?.stop()?.frames;
        }
        red.shell("arp -i eth0 -d 10.0.0.9")?;
        expect_equal("frames of red at blue's guests", blue_heard, 0)?;
        let all = u64::from(DATAGRAMS);
        // What vm2 says about those that nobody wanted quotes them.
        expect(
            &format!("red's own guest has heard its own: {red_heard:?}"),
            red_heard[0] >= all && red_heard[1] >= all && red_heard[2] == 0,
        )
    });
}
