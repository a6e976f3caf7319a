"""The tenants' network that the tests of the `vpc` program are about.

Two tenants with the same addresses. Red (VRF 1) has vm1 (10.0.0.1, fd00::1) and vm2 (10.0.0.2, fd00::2) in domain 10 and vm3
(10.0.1.3, fd00:1::3) in domain 11; blue (VRF 2) has vm4 (10.0.0.1, fd00::1) and vm5 (10.0.0.2, fd00::2) in domain 20. The uplink, in
domain 99 and VRF 9, has the gateway 198.51.100.254 behind it. MAC addresses end in the port's number, the uplink's gateway's in 09,
those of the router interfaces 1 (domain 10), 2 (domain 11), 3 (domain 20) and 9 in f1, f2, f3 and f9.
"""

from scapy.layers.inet6 import ICMPv6ND_NA
from scapy.layers.l2 import ARP

from frames import mac, routed, verify
from rig import Switch

ROUTER = {1: 0xF1, 2: 0xF2, 3: 0xF3, 9: 0xF9}
GUESTS = [
    # port, domain, policy, router interface, addresses
    ("vm1", 10, 1, 1, ("10.0.0.1", "fd00::1")),
    ("vm2", 10, 1, 1, ("10.0.0.2", "fd00::2")),
    ("vm3", 11, 1, 2, ("10.0.1.3", "fd00:1::3")),
    ("vm4", 20, 2, 3, ("10.0.0.1", "fd00::1")),
    ("vm5", 20, 2, 3, ("10.0.0.2", "fd00::2")),
]
INTERFACES = [
    # interface, domain, VRF, addresses, networks
    (1, 10, 1, ("10.0.0.254/24", "fd00::fe/64"), ("10.0.0.0/24", "fd00::/64")),
    (2, 11, 1, ("10.0.1.254/24", "fd00:1::fe/64"), ("10.0.1.0/24", "fd00:1::/64")),
    (3, 20, 2, ("10.0.0.254/24", "fd00::fe/64"), ("10.0.0.0/24", "fd00::/64")),
    (9, 99, 9, ("198.51.100.1/24", "2001:db8::1/64"), ("198.51.100.0/24", "2001:db8::/64")),
]


def insert(table, key, action, params=None, **more):
    return {"insert": {"table": table, "key": key, "action": action, "params": params or {}, **more}}


def modify(table, key, action, params=None, **more):
    return {"modify": {"table": table, "key": key, "action": action, "params": params or {}, **more}}


def delete(table, key, **more):
    return {"delete": {"table": table, "key": key, **more}}


def rule(table, priority, key, action="allow", params=None):
    return insert(table, key, action, params, priority=priority)


def neighbor(interface, address, last, port):
    return insert("neighbors", {"interface": interface, "address": address}, "neighbor", {"mac": mac(last), "port": port})


def tables():
    for domain, vrf, options in ((10, 1, 30), (11, 1, 30), (20, 2, 30), (99, 9, 22)):
        yield insert("domains", {"domain": domain}, "describe", {"vrf": vrf, "zone": vrf, "flood": domain, "options": options})
    for port, domain, policy, interface, addresses in GUESTS:
        last = int(port[2:])
        yield insert("ports", {"port": port}, "guest", {"domain": domain, "policy": policy})
        yield insert("stations", {"domain": domain, "mac": mac(last)}, "station", {"port": port})
        for address in ("0", *addresses, f"fe80::{last}"):
            yield insert("port_security", {"port": port, "mac": mac(last), "address": address}, "permit")
        for address in addresses:
            yield neighbor(interface, address, last, port)
    yield insert("ports", {"port": "uplink"}, "attach", {"domain": 99})
    yield neighbor(9, "198.51.100.254", 9, "uplink")
    yield neighbor(9, "2001:db8::fe", 9, "uplink")
    for interface, domain, vrf, addresses, networks in INTERFACES:
        router = mac(ROUTER[interface])
        params = {"domain": domain, "mac": router, "mtu": 1500, "translates": int(interface == 9)}
        yield insert("interfaces", {"interface": interface}, "interface", params)
        yield insert("router_macs", {"domain": domain, "mac": router}, "enter", {"interface": interface})
        for table, address, network in zip(("routes4", "routes6"), addresses, networks):
            address = address.split("/")[0]
            yield insert(table, {"vrf": vrf, "destination": address}, "local")
            yield insert(table, {"vrf": vrf, "destination": network}, "direct", {"interface": interface})
            yield insert("answered", {"domain": domain, "address": address}, "answer", {"interface": interface})
        for protocol, port, action in ((17, 67, "dhcp4"), (17, 547, "dhcp6"), (58, 133, "router_solicitation")):
            key = {"domain": domain, "protocol": protocol, "destination_port": port}
            yield insert("services", key, action, {"interface": interface})
    for vrf in (1, 2, 9):
        yield insert("routes4", {"vrf": vrf}, "via", {"interface": 9, "gateway": "198.51.100.254"})
        yield insert("routes6", {"vrf": vrf, "destination": "2001:db8::/32"}, "via", {"interface": 9, "gateway": "2001:db8::fe"})
    for domain, ports in ((10, ["vm1", "vm2"]), (11, ["vm3"]), (20, ["vm4", "vm5"]), (99, ["uplink"])):
        yield {"set_multicast": {"group": domain, "ports": ports}}


def services():
    """What the router interfaces answer."""
    return {
        "interfaces": [
            {"id": interface, "domain": domain, "vrf": vrf, "mac": mac(ROUTER[interface]), "addresses": list(addresses)}
            for interface, domain, vrf, addresses, _ in INTERFACES
        ]
    }


#: Rules that allow every connection.
OPEN = [rule(table, 1, {"policy": policy}) for policy in (1, 2) for table in ("egress_rules", "ingress_rules")]


def network(binary, *more, extra_ports=(), config=""):
    """The network, with these updates too. Its guests may open nothing yet."""
    ports = {name: "" for name in ("spare", "vm1", "vm2", "vm3", "vm4", "vm5", "uplink", *extra_ports)}
    switch = Switch(binary, ports, "vpc", config)
    try:
        switch.batch(*tables(), *more)
    except BaseException:
        switch.close()
        raise
    return switch


def serving(binary, *more, **options):
    """The network with its services, which have announced their addresses."""
    switch = network(binary, *OPEN, *more, **options)
    try:
        switch.ask("PUT", "/v1/services", services())
        # Each interface announces its addresses in each family, to each port of its domain.
        for port in ("vm1", "vm2", "vm3", "vm4", "vm5", "uplink"):
            for _ in range(2):
                said = switch.receive(port)
                assert ARP in said or ICMPv6ND_NA in said, f"{said!r}"
                verify(said)
        switch.quiet()
        return switch
    except BaseException:
        switch.close()
        raise


def across(switch, frame, way, out, **changes):
    """A routed frame leaves: `way` is from port to port, `out` the router interface and the next hop's MAC address."""
    expected = routed(frame, (ROUTER[out[0]], out[1]), **changes)
    switch.passes(way[0], frame, way[1], expected)
    return expected
