//! Addresses that stand for others on the `vpc` program: NAT to and from the world outside, and services of several guests.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use guest_agent::protocol::{Job, Outcome};
use serde_json::{Value, json};
use vm_lab::agent::{Agent, RunningJob};
use vm_lab::await_::{PATIENCE, SOON, eventually};
use vm_lab::error::Doing;
use vm_lab::guest::Link;
use vm_lab::traffic;
use vm_lab::{Error, Result};

use crate::vpc_network::{RED, RED_BACK, UPLINK, Vpc, insert, with_network};
use crate::{MIB, expect, expect_equal};

/// The tenant's one address outside.
const PUBLIC_HOST: u8 = 10;
const PORTS: std::ops::RangeInclusive<u16> = 5000..=5999;

/// Red leaves by one address, and whoever is outside asks the router for it.
fn translate(vpc: &mut Vpc<'_>) -> Result<()> {
    let public = UPLINK.v4(PUBLIC_HOST).to_string();
    let zone = vpc.zone(RED.vrf);
    vpc.write(&[
        insert(
            "routes4",
            json!({ "vrf": RED.vrf, "destination": "0.0.0.0/0" }),
            ("direct", json!({ "interface": UPLINK.interface })),
        ),
        insert(
            "source_nat4",
            json!({ "vrf": RED.vrf, "interface": UPLINK.interface, "source": "10.0.0.0/8" }),
            (
                "masquerade",
                json!({ "low": public, "high": public, "low_port": PORTS.start(), "high_port": PORTS.end() }),
            ),
        ),
        insert(
            "public_addresses",
            json!({ "vrf": UPLINK.vrf, "address": public }),
            ("tenant", json!({ "vrf": RED.vrf, "zone": zone })),
        ),
        insert(
            "answered",
            json!({ "domain": UPLINK.domain, "address": public }),
            ("answer", json!({ "interface": UPLINK.interface })),
        ),
    ])?;
    vpc.set_services(|config| {
        config["interfaces"][3]["proxies"] = json!([{ "address": public }]);
    })
}

/// A transfer to this address; what the receiver says of it.
fn transfer((from, to): (&Agent, &Agent), address: SocketAddr, port: u16) -> Result<Outcome> {
    let seed = u64::from(address.port());
    let receiver = to.start(Job::TcpReceive { port, seed })?;
    let bytes = Some(8 * MIB);
    let to = address;
    from.start(Job::TcpSend {
        to,
        seed,
        bytes,
        bytes_per_second: None,
    })?
    .wait()?;
    receiver.wait()
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn guests_reach_the_host_over_a_tap_under_the_tenants_public_address() {
    with_network(&[(1, RED, 1), (2, RED, 2)], |vpc| {
        translate(vpc)?;
        let (host, outside) = vpc.outside()?;
        for guest in [1, 2] {
            let agent = vpc.agent(guest)?;
            traffic::wait_reachable(&agent, outside)?;
            let carried = transfer((&agent, &host), SocketAddr::new(outside, 8000), 8000)?;
            eprintln!(
                "  vm{guest} -> host, translated: {:.0} Mbit/s",
                carried.mbps()
            );
            let seen = carried
                .peer
                .map(|peer| (peer.ip().to_canonical(), peer.port()));
            expect(
                &format!("the server sees the public address and a port of its range: {seen:?}"),
                seen.is_some_and(|(ip, port)| {
                    ip == UPLINK.v4(PUBLIC_HOST) && PORTS.contains(&port)
                }),
            )?;
            let report = traffic::udp((&agent, &host), outside, 500, 1400)?;
            expect_equal(
                "datagrams lost and damaged",
                (report.lost(), report.received.corrupt),
                (0, 0),
            )?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_guest_fetches_a_page_from_a_server_outside() {
    with_network(&[(1, RED, 1)], |vpc| {
        translate(vpc)?;
        let (host, outside) = vpc.outside()?;
        let busybox = host.busybox();
        let page_bytes = 4 * MIB;
        let page = vpc.lab.folder().join("page");
        let text: Vec<u8> = (0..page_bytes).map(|byte| (byte % 251) as u8).collect();
        fs::write(&page, text).doing(|| format!("writing {}", page.display()))?;
        let page = page.display();
        let sum = host.shell(&format!("{busybox} md5sum <{page}"))?;
        // One server, one request, which is read to its empty line: a connection that is closed with anything unread is reset.
        let answer = format!(
            "while read -r line && [ ${{#line}} -gt 1 ]; do :; done;
             printf 'HTTP/1.0 200 OK\\r\\nContent-Length: {page_bytes}\\r\\n\\r\\n'; cat {page}"
        );
        let serve = [
            "timeout", "120", &busybox, "nc", "-l", "-p", "8081", "-e", &busybox, "sh", "-c",
            &answer,
        ];
        let serve: Vec<&str> = std::iter::once(busybox.as_str()).chain(serve).collect();
        let guest = vpc.agent(1)?;
        let fetched = std::thread::scope(|scope| {
            let server = scope.spawn(|| host.exec(serve));
            let fetched = eventually(SOON, "a page", || {
                // Refused as long as the server does not listen yet.
                let fetch =
                    format!("wget -q -O /tmp/page http://{outside}:8081/ && md5sum </tmp/page");
                guest.shell(&fetch).map_err(|error| error.to_string())
            });
            let _ = server.join();
            fetched
        })?;
        expect_equal("the page's sum", fetched, sum)
    });
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_forwarded_port_leads_from_outside_to_a_guest() {
    with_network(&[(2, RED, 2)], |vpc| {
        translate(vpc)?;
        let public = UPLINK.v4(PUBLIC_HOST);
        vpc.write(&[insert(
            "virtual_services",
            json!({ "vrf": RED.vrf, "address": public.to_string(), "protocol": 6, "port": 8080 }),
            ("forward", json!({ "address": "10.0.0.2", "port": 80 })),
        )])?;
        let (host, outside) = vpc.outside()?;
        let guest = vpc.agent(2)?;
        let carried = transfer((&host, &guest), SocketAddr::from((public, 8080)), 80)?;
        eprintln!("  host -> vm2, translated: {:.0} Mbit/s", carried.mbps());
        expect_equal("bytes arrived", carried.bytes, 8 * MIB)?;
        let peer = carried.peer.map(|peer| peer.ip().to_canonical());
        expect_equal("whom the guest sees", peer, Some(outside))
    });
}

/// An address that no guest has.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);

fn back_ends(members: &[u8]) -> Value {
    let members: Vec<Value> = members
        .iter()
        .map(|guest| json!({ "values": { "address": RED_BACK.v4(*guest).to_string(), "port": 0 } }))
        .collect();
    json!({ "set_group": { "selector": "back_ends", "group": 4, "members": members } })
}

/// An endless transfer from vm1 to the service, and the back-end that has it.
struct Connection {
    sender: RunningJob,
    receiver: RunningJob,
    back_end: u8,
}

const BACK_ENDS: [u8; 2] = [2, 3];

/// Each connection is to a port of its own, so that one receiver at each back-end is enough.
fn connect(vpc: &mut Vpc<'_>, port: u16) -> Result<Connection> {
    vpc.write(&[insert(
        "virtual_services",
        json!({ "vrf": RED.vrf, "address": SERVICE.to_string(), "protocol": 6, "port": port }),
        ("balance", json!({ "group": 4 })),
    )])?;
    let seed = u64::from(port);
    let mut receivers = Vec::new();
    for guest in BACK_ENDS {
        let receiver = vpc.agent(guest)?.start(Job::TcpReceive { port, seed })?;
        receivers.push((guest, receiver));
    }
    let to = (SERVICE, port).into();
    let sender = vpc.agent(1)?.start(Job::TcpSend {
        to,
        seed,
        bytes: None,
        bytes_per_second: None,
    })?;
    let chosen = eventually(PATIENCE, "a back-end to be chosen", || {
        for (index, (_, receiver)) in receivers.iter().enumerate() {
            match receiver.poll() {
                Ok(progress) if progress.count > 0 => return Ok(Ok(index)),
                Ok(_) => {}
                Err(error) => return Ok(Err(error)),
            }
        }
        Err(String::new())
    })??;
    let (back_end, receiver) = receivers.swap_remove(chosen);
    for (_, idle) in receivers {
        idle.stop()?;
    }
    Ok(Connection {
        sender,
        receiver,
        back_end,
    })
}

impl Connection {
    fn wait_more(&self, bytes: u64) -> Result<()> {
        let so_far = self.receiver.poll()?.count;
        self.receiver.wait_count(so_far + bytes)
    }

    /// Everything that was sent has arrived, or does now.
    fn end(self) -> Result<()> {
        let sent = self.sender.stop()?;
        expect_equal("bytes arrived", self.receiver.wait()?.bytes, sent.bytes)
    }
}

#[test]
#[ignore = "boots guests: ./qemu-scripts/run-tests"]
fn a_service_that_loses_a_back_end_gives_new_connections_to_the_other_and_keeps_its_old_ones() {
    with_network(&[(1, RED, 1), (2, RED_BACK, 2), (3, RED_BACK, 3)], |vpc| {
        vpc.write(&[back_ends(&BACK_ENDS)])?;
        let mut ports = 6000..;
        let (mut surviving, mut lost) = (None, None);
        for port in ports.by_ref().take(32) {
            let connection = connect(vpc, port)?;
            let first = match connection.back_end {
                2 => &mut surviving,
                _ => &mut lost,
            };
            if first.is_none() {
                *first = Some(connection);
            } else {
                connection.end()?;
            }
            if surviving.is_some() && lost.is_some() {
                break;
            }
        }
        let (Some(surviving), Some(lost)) = (surviving, lost) else {
            return Err(Error::Unexpected(
                "32 connections went to the same back-end of two".to_owned(),
            ));
        };

        vpc.lab.guest_mut(3)?.set_link(Link::Down)?;
        vpc.write(&[back_ends(&[2])])?;
        for port in ports.by_ref().take(8) {
            let connection = connect(vpc, port)?;
            expect_equal("the back-end of a new connection", connection.back_end, 2)?;
            connection.end()?;
        }
        surviving.wait_more(MIB)?;

        // Back again: its connections are still its own.
        vpc.lab.guest_mut(3)?.set_link(Link::Up)?;
        vpc.write(&[back_ends(&BACK_ENDS)])?;
        lost.wait_more(MIB)?;
        lost.end()?;
        surviving.wait_more(MIB)?;
        surviving.end()
    });
}
