//! VLANs keep guests apart: seen from the receiver, by counting what arrives at its NIC at all.

use std::net::{Ipv4Addr, SocketAddr};

use vm_lab::agent::{Agent, RunningJob};
use vm_lab::lab::{Lab, LabSpec, Station};
use vm_lab::pool::with_lab;
use vm_lab::switch::Vlan;
use vm_lab::{Result, traffic};

use crate::{expect, expect_equal};

const DATAGRAMS: u32 = 20;
const EVERYONE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 255);

/// 1 and 2: access 10. 3: access 20. 4: trunk of both.
fn spec() -> LabSpec {
    LabSpec::of([
        Station::new("vm1").vlan(Vlan::Access(10)),
        Station::new("vm2").vlan(Vlan::Access(10)),
        Station::new("vm3").vlan(Vlan::Access(20)),
        Station::new("vm4").vlan(Vlan::Trunk(vec![10, 20])),
    ])
    .kept()
}

/// Runs `test` with the trunk guest's VLAN interfaces up: 10.0.10.4 and 10.0.20.4, vm1 being 10.0.10.1, vm3 10.0.20.3.
fn with_trunk(test: impl FnOnce(&Lab) -> Result<()>) {
    with_lab(&spec(), |lab| {
        let trunk = lab.host(4)?.0;
        if trunk.run("ip link show eth0.10").is_err() {
            add_vlan_interface(&trunk, 10, "10.0.10.4")?;
            add_vlan_interface(&trunk, 20, "10.0.20.4")?;
            lab.host(1)?.0.run("ip addr add 10.0.10.1/24 dev eth0")?;
            lab.host(3)?.0.run("ip addr add 10.0.20.3/24 dev eth0")?;
        }
        settle(lab)?;
        test(lab)
    });
}

fn add_vlan_interface(agent: &Agent, id: u16, address: &str) -> Result<()> {
    agent.run(&format!(
        "ip link add link eth0 name eth0.{id} type vlan id {id}"
    ))?;
    agent.run(&format!("ip addr add {address}/24 dev eth0.{id}"))?;
    agent.run(&format!("ip link set eth0.{id} up")).map(drop)
}

/// Pings along every allowed path. Frames keep their order, so what was sent before has arrived by then, or never will.
fn settle(lab: &Lab) -> Result<()> {
    let trunk = lab.host(4)?.0;
    traffic::wait_reachable(&lab.host(1)?.0, lab.host(2)?.1)?;
    traffic::wait_reachable(&trunk, Ipv4Addr::new(10, 0, 10, 1).into())?;
    traffic::wait_reachable(&trunk, Ipv4Addr::new(10, 0, 20, 3).into())
}

/// Frames with `text` that arrived at guests 1 to 4 while `send` ran.
fn heard(lab: &Lab, text: &str, send: impl FnOnce() -> Result<()>) -> Result<Vec<u64>> {
    let sniffers: Vec<RunningJob> = (1..=4)
        .map(|number| lab.host(number)?.0.sniff(text))
        .collect::<Result<_>>()?;
    send()?;
    settle(lab)?;
    sniffers
        .iter()
        .map(|sniffer| Ok(sniffer.stop()?.frames))
        .collect()
}

fn shout(from: &Agent, to: Ipv4Addr, text: &str) -> Result<()> {
    from.shout(SocketAddr::from((to, 9)), text, DATAGRAMS)
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_broadcast_reaches_its_own_vlan_and_no_other() {
    with_trunk(|lab| {
        let heard = heard(lab, "from-vlan-10", || {
            shout(&lab.host(1)?.0, EVERYONE, "from-vlan-10")
        })?;
        let all = u64::from(DATAGRAMS);
        expect_equal("frames at vm2, same VLAN", heard[1], all)?;
        expect_equal("frames at vm3, another VLAN", heard[2], 0)?;
        // Once at the NIC, once more at the VLAN interface the tag names.
        expect_equal("frames at vm4, trunk", heard[3], 2 * all)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_unicast_to_a_known_address_in_another_vlan_does_not_arrive() {
    with_trunk(|lab| {
        let (one, target) = (lab.host(1)?.0, lab.guest(3)?.spec().clone());
        one.run(&format!(
            "arp -i eth0 -s {} {}",
            target.address(),
            target.mac()
        ))?;
        let heard = heard(lab, "aimed-at-vm3", || {
            shout(&one, target.address(), "aimed-at-vm3")
        })?;
        expect_equal("frames at vm3", heard[2], 0)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_on_an_access_port_cannot_tag_its_way_into_another_vlan() {
    with_trunk(|lab| {
        let one = lab.host(1)?.0;
        add_vlan_interface(&one, 20, "10.0.20.1")?;
        let heard = heard(lab, "tagged-20-by-vm1", || {
            shout(&one, Ipv4Addr::new(10, 0, 20, 255), "tagged-20-by-vm1")
        })?;
        one.run("ip link del eth0.20")?;
        expect_equal("frames at vm3, VLAN 20", heard[2], 0)?;
        expect_equal("frames at vm4, trunk", heard[3], 0)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_trunk_guest_talks_to_each_vlan_through_its_own_tag() {
    with_trunk(|lab| {
        let trunk = lab.host(4)?.0;
        for (from, address) in [
            (&trunk, [10, 0, 10, 1]),
            (&trunk, [10, 0, 20, 3]),
            (&lab.host(1)?.0, [10, 0, 10, 4]),
        ] {
            let pings = traffic::ping(from, address.into(), 5, 1472)?;
            expect_equal("pings answered", pings.received, 5)?;
        }
        let (one, (three, _)) = (lab.host(1)?.0, lab.host(3)?);
        for (access, address) in [(&one, [10, 0, 10, 1]), (&three, [10, 0, 20, 3])] {
            let carried = traffic::TcpFlow::start((&trunk, access), address.into(), Some(8 << 20))?
                .finish()?;
            eprintln!("  trunk -> {}: {:.0} Mbit/s", access.name(), carried.mbps());
        }
        Ok(())
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn untagged_frames_of_a_trunk_without_native_vlan_go_nowhere() {
    with_trunk(|lab| {
        let trunk = lab.host(4)?.0;
        // By its NIC itself, not by a VLAN interface.
        let heard = heard(lab, "untagged-by-vm4", || {
            shout(&trunk, EVERYONE, "untagged-by-vm4")
        })?;
        expect(
            "none arrives anywhere",
            heard[..3].iter().all(|frames| *frames == 0),
        )
    });
}
