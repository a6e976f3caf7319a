//! What the vpc tests stand on: two tenants, red and blue, with the same addresses, a way out by a TAP, and guests that sit where a
//! test wants them. The tables are filled by the command line, as docs/vpc.md describes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::{Value, json};
use vm_lab::agent::Agent;
use vm_lab::await_::{PATIENCE, eventually};
use vm_lab::lab::{Lab, LabSpec, Station};
use vm_lab::pool::with_lab;
use vm_lab::switch::Network;
use vm_lab::traffic::TcpFlow;
use vm_lab::{Error, Result};

/// The TAP: the world outside.
pub const UPLINK_PORT: &str = "rs-up0";
/// A router interface's last byte, in each of its addresses.
const ROUTER_HOST: u8 = 254;

/// A bridge domain with its router interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    pub domain: u16,
    pub vrf: u16,
    pub interface: u32,
    v4: [u8; 3],
    v6: [u16; 4],
}

pub const RED: Subnet = Subnet {
    domain: 10,
    vrf: 1,
    interface: 1,
    v4: [10, 0, 0],
    v6: [0xfd00, 0, 0, 0],
};
/// Red's other network.
pub const RED_BACK: Subnet = Subnet {
    domain: 11,
    vrf: 1,
    interface: 2,
    v4: [10, 0, 1],
    v6: [0xfd00, 0, 0, 1],
};
/// The same addresses as red's.
pub const BLUE: Subnet = Subnet {
    domain: 20,
    vrf: 2,
    interface: 3,
    v4: [10, 0, 0],
    v6: [0xfd00, 0, 0, 0],
};
pub const UPLINK: Subnet = Subnet {
    domain: 99,
    vrf: 9,
    interface: 9,
    v4: [198, 51, 100],
    v6: [0x2001, 0xdb8, 0, 0],
};
const SUBNETS: [Subnet; 4] = [RED, RED_BACK, BLUE, UPLINK];

impl Subnet {
    pub fn v4(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.v4;
        Ipv4Addr::new(a, b, c, host)
    }

    pub fn v6(&self, host: u8) -> Ipv6Addr {
        self.v6_of([0, 0, 0, host.into()])
    }

    /// The address that a guest makes of its MAC address.
    pub fn v6_by_mac(&self, guest: u8) -> Ipv6Addr {
        self.v6_of(by_mac(guest))
    }

    fn v6_of(&self, [e, f, g, h]: [u16; 4]) -> Ipv6Addr {
        let [a, b, c, d] = self.v6;
        Ipv6Addr::new(a, b, c, d, e, f, g, h)
    }

    pub fn router(&self) -> Ipv4Addr {
        self.v4(ROUTER_HOST)
    }

    pub fn router_v6(&self) -> Ipv6Addr {
        self.v6(ROUTER_HOST)
    }

    pub fn router_mac(&self) -> String {
        format!("02:00:00:00:00:{:02x}", 0xf0 + self.interface)
    }
}

/// RFC 4291 §2.5.1, for 52:54:00:00:00:NN.
fn by_mac(guest: u8) -> [u16; 4] {
    [0x5054, 0x00ff, 0xfe00, guest.into()]
}

/// Where a guest is: its number, its network, its address there.
pub type Seat = (u8, Subnet, u8);

/// A network laid out in a lab.
pub struct Vpc<'lab> {
    pub lab: &'lab mut Lab,
    seats: Vec<Seat>,
    zone: u16,
}

/// Runs `test` with guests in these seats, everything allowed within each tenant, and nothing else in the tables. Guests without a
/// seat are unplugged.
pub fn with_network(seats: &[Seat], test: impl FnOnce(&mut Vpc<'_>) -> Result<()>) {
    if !Network::private_is_allowed() {
        eprintln!("skipped: needs root, or user namespaces for everyone");
        return;
    }
    let spec = LabSpec {
        taps: vec![UPLINK_PORT.to_owned()],
        program: Some("vpc".to_owned()),
        ..LabSpec::of(["vm1", "vm2", "vm3", "vm4"].map(Station::new)).kept()
    };
    with_lab(&spec, |lab| {
        // Connections of earlier tests are in zones of their own.
        static ZONES: AtomicU16 = AtomicU16::new(1);
        let zone = ZONES.fetch_add(16, Ordering::Relaxed);
        let mut vpc = Vpc {
            lab,
            seats: seats.to_vec(),
            zone,
        };
        vpc.lay_out()?;
        test(&mut vpc)
    });
}

impl Vpc<'_> {
    /// A guest's agent.
    pub fn agent(&self, guest: u8) -> Result<Agent> {
        Ok(self.lab.host(guest.into())?.0)
    }

    /// A guest's IPv4 address.
    pub fn address(&self, guest: u8) -> Result<IpAddr> {
        let (_, subnet, host) = self.seat(guest)?;
        Ok(subnet.v4(host).into())
    }

    /// Its IPv6 address.
    pub fn address_v6(&self, guest: u8) -> Result<IpAddr> {
        let (_, subnet, host) = self.seat(guest)?;
        Ok(subnet.v6(host).into())
    }

    fn seat(&self, guest: u8) -> Result<Seat> {
        let mut seats = self.seats.iter().copied();
        seats
            .find(|(number, ..)| *number == guest)
            .ok_or_else(|| Error::Unexpected(format!("guest {guest} has no seat")))
    }

    /// The zone of a VRF's connections.
    pub fn zone(&self, vrf: u16) -> u16 {
        self.zone + vrf
    }

    /// A transfer from one guest to another.
    pub fn flow(&self, (from, to): (u8, u8), bytes: Option<u64>) -> Result<TcpFlow> {
        let (sender, receiver) = (self.agent(from)?, self.agent(to)?);
        TcpFlow::start((&sender, &receiver), self.address(to)?, bytes)
    }

    /// Changes tables, all at once.
    pub fn write(&mut self, updates: &[Value]) -> Result<()> {
        self.lab.switch()?.batch(updates)
    }

    /// Configures the services, after `change` has said what is different from the plain network.
    pub fn set_services(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let interfaces: Vec<Value> = SUBNETS
            .iter()
            .map(|subnet| {
                let addresses = [
                    format!("{}/24", subnet.router()),
                    format!("{}/64", subnet.router_v6()),
                ];
                json!({
                    "id": subnet.interface, "domain": subnet.domain, "vrf": subnet.vrf,
                    "mac": subnet.router_mac(), "addresses": addresses, "mtu": 1500,
                })
            })
            .collect();
        let mut config = json!({ "interfaces": interfaces });
        change(&mut config);
        self.lab.switch()?.put("/v1/services", &config).map(drop)
    }

    /// The host's agent, in the network namespace that the uplink is in, with the uplink's address 198.51.100.100.
    pub fn outside(&mut self) -> Result<(Agent, IpAddr)> {
        let host = self.lab.host_agent()?;
        let address = UPLINK.v4(100);
        host.run(&format!("ip addr replace {address}/24 dev {UPLINK_PORT}"))?;
        host.run(&format!("ip link set {UPLINK_PORT} up"))?;
        Ok((host, address.into()))
    }

    /// What the switch says about a guest's port.
    pub fn port(&mut self, guest: u8) -> Result<Value> {
        let name = port_name(guest);
        self.lab.switch()?.cli_json(&["port", "show", &name])
    }

    /// Frames from a guest that were dropped for this reason.
    pub fn dropped(&mut self, guest: u8, reason: &str) -> Result<u64> {
        let port = self.port(guest)?;
        let drops = port["counters"]["drops"].as_array();
        let frames = drops
            .into_iter()
            .flatten()
            .find(|drop| drop["reason"] == reason)
            .and_then(|drop| drop["frames"].as_u64());
        Ok(frames.unwrap_or(0))
    }

    /// Waits until so many more frames from a guest were dropped for this reason.
    pub fn wait_dropped(&mut self, guest: u8, reason: &str, more: u64) -> Result<()> {
        let enough = self.dropped(guest, reason)? + more;
        let what = format!("{reason} at vm{guest}");
        eventually(PATIENCE, &what, || match self.dropped(guest, reason) {
            Ok(dropped) if dropped >= enough => Ok(Ok(())),
            Ok(dropped) => Err(format!("{dropped} of {enough}")),
            Err(error) => Ok(Err(error)),
        })?
    }

    fn lay_out(&mut self) -> Result<()> {
        let mut updates: Vec<Value> = CLEARED
            .map(|table| json!({ "clear": { "table": table } }))
            .into();
        for subnet in SUBNETS {
            self.put_subnet(subnet, &mut updates);
        }
        for seat in &self.seats {
            put_guest(*seat, &mut updates);
        }
        updates.push(insert(
            "ports",
            json!({ "port": UPLINK_PORT }),
            ("attach", json!({ "domain": UPLINK.domain })),
        ));
        // Red's policy is 1, blue's 2.
        for policy in [RED.vrf, BLUE.vrf] {
            for table in ["egress_rules", "ingress_rules"] {
                updates.push(rule(table, 1, json!({ "policy": policy }), "allow"));
            }
        }
        self.write(&updates)?;
        self.set_services(|_| {})?;
        for guest in 1..=4 {
            let seat = self.seat(guest).ok();
            self.agent(guest)?.shell(&addresses_of(seat))?;
        }
        Ok(())
    }

    fn put_subnet(&self, subnet: Subnet, updates: &mut Vec<Value>) {
        let Subnet {
            domain,
            vrf,
            interface,
            ..
        } = subnet;
        let mac = subnet.router_mac();
        let is_uplink = subnet == UPLINK;
        let options = if is_uplink { 22 } else { 30 };
        let describe =
            json!({ "vrf": vrf, "zone": self.zone(vrf), "flood": domain, "options": options });
        updates.extend([
            insert("domains", json!({ "domain": domain }), ("describe", describe)),
            insert(
                "interfaces",
                json!({ "interface": interface }),
                (
                    "interface",
                    json!({ "domain": domain, "mac": mac, "mtu": 1500, "translates": u8::from(is_uplink) }),
                ),
            ),
            insert(
                "router_macs",
                json!({ "domain": domain, "mac": mac }),
                ("enter", json!({ "interface": interface })),
            ),
        ]);
        let mut members: Vec<String> = self
            .seats
            .iter()
            .filter(|(_, seat, _)| *seat == subnet)
            .map(|(guest, ..)| port_name(*guest))
            .collect();
        if is_uplink {
            members.push(UPLINK_PORT.to_owned());
        }
        updates.push(json!({ "set_multicast": { "group": domain, "ports": members } }));
        let router: [(&str, IpAddr, String); 2] = [
            (
                "routes4",
                subnet.router().into(),
                format!("{}/24", subnet.v4(0)),
            ),
            (
                "routes6",
                subnet.router_v6().into(),
                format!("{}/64", subnet.v6(0)),
            ),
        ];
        for (routes, address, network) in router {
            updates.extend([
                insert(
                    routes,
                    json!({ "vrf": vrf, "destination": address.to_string() }),
                    ("local", json!({})),
                ),
                insert(
                    routes,
                    json!({ "vrf": vrf, "destination": network }),
                    ("direct", json!({ "interface": interface })),
                ),
                insert(
                    "answered",
                    json!({ "domain": domain, "address": address.to_string() }),
                    ("answer", json!({ "interface": interface })),
                ),
            ]);
        }
        for (protocol, port, action) in [
            (17, 67, "dhcp4"),
            (17, 547, "dhcp6"),
            (58, 133, "router_solicitation"),
        ] {
            updates.push(insert(
                "services",
                json!({ "domain": domain, "protocol": protocol, "destination_port": port }),
                (action, json!({ "interface": interface })),
            ));
        }
    }
}

/// Tables that a network is made of. Not the neighbours, which the switch finds by itself and knows from then on.
const CLEARED: [&str; 15] = [
    "ports",
    "domains",
    "port_security",
    "answered",
    "services",
    "router_macs",
    "stations",
    "public_addresses",
    "virtual_services",
    "routes4",
    "routes6",
    "interfaces",
    "source_nat4",
    "egress_rules",
    "ingress_rules",
];

fn put_guest((guest, subnet, host): Seat, updates: &mut Vec<Value>) {
    let Subnet { domain, vrf, .. } = subnet;
    let port = port_name(guest);
    let mac = mac(guest);
    updates.extend([
        insert(
            "ports",
            json!({ "port": port }),
            ("guest", json!({ "domain": domain, "policy": vrf })),
        ),
        insert(
            "stations",
            json!({ "domain": domain, "mac": mac }),
            ("station", json!({ "port": port })),
        ),
    ]);
    let [e, f, g, h] = by_mac(guest);
    let addresses: [IpAddr; 4] = [
        subnet.v4(host).into(),
        subnet.v6(host).into(),
        subnet.v6_by_mac(guest).into(),
        Ipv6Addr::new(0xfe80, 0, 0, 0, e, f, g, h).into(),
    ];
    let addresses = addresses.map(|address| address.to_string());
    for address in addresses.iter().map(String::as_str).chain(["0"]) {
        updates.push(insert(
            "port_security",
            json!({ "port": port, "mac": mac, "address": address }),
            ("permit", json!({})),
        ));
    }
}

fn addresses_of(seat: Option<Seat>) -> String {
    let down = "ip link set eth0 down; ip addr flush dev eth0".to_owned();
    let Some((_, subnet, host)) = seat else {
        return down;
    };
    format!(
        "{down}; ip addr add {}/24 dev eth0; ip addr add {}/64 dev eth0; ip link set eth0 up;
         ip route add default via {}; ip -6 route add default via {}",
        subnet.v4(host),
        subnet.v6(host),
        subnet.router(),
        subnet.router_v6(),
    )
}

/// A guest's port.
pub fn port_name(guest: u8) -> String {
    format!("vm{guest}")
}

/// A guest's MAC address.
pub fn mac(guest: u8) -> String {
    format!("52:54:00:00:00:{guest:02x}")
}

/// A new entry.
pub fn insert(table: &str, key: Value, (action, params): (&str, Value)) -> Value {
    json!({ "insert": { "table": table, "key": key, "action": action, "params": params } })
}

/// A new security rule.
pub fn rule(table: &str, priority: u32, key: Value, action: &str) -> Value {
    json!({ "insert": { "table": table, "key": key, "priority": priority, "action": action } })
}

/// A security rule that goes.
pub fn no_rule(table: &str, priority: u32, key: Value) -> Value {
    json!({ "delete": { "table": table, "key": key, "priority": priority } })
}
