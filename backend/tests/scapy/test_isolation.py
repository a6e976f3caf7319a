"""Tenants that use the same addresses are apart, and no port sends what it may not."""

from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from frames import BROADCAST, arp, echo, mac, tagged, udp, whole
from network import OPEN, insert, network


def test_overlapping_tenants_do_not_meet(binary):
    with network(binary, *OPEN) as switch:
        red = udp((1, 2), "10.0.0.1", "10.0.0.2")
        blue = udp((4, 5), "10.0.0.1", "10.0.0.2")
        switch.passes("vm1", red, "vm2")
        switch.passes("vm4", blue, "vm5")
        # The other tenant's answer to the very same connection is nobody's.
        switch.passes("vm5", udp((5, 4), "10.0.0.2", "10.0.0.1", (53, 1000)), "vm4")
        # The other tenant's stations are not there.
        switch.dropped("vm1", udp((1, 5), "10.0.0.1", "10.0.0.2"), "no_destination")
        request = arp((1, None), 1, "10.0.0.1", "10.0.0.2")
        switch.passes("vm1", request, "vm2")
        request = arp((4, None), 1, "10.0.0.1", "10.0.0.2")
        switch.passes("vm4", request, "vm5")
        for source, destination in (("10.0.0.1", "10.0.0.255"), ("fd00::1", "ff02::1")):
            frame = udp((1, 1), source, destination)
            frame.dst = BROADCAST if "." in source else "33:33:00:00:00:01"
            switch.passes("vm1", frame, "vm2")
        # A port that no table knows.
        switch.dropped("spare", udp((9, 2), "10.0.0.9", "10.0.0.2"), "port_not_configured")
        switch.dropped("vm1", tagged(red, (20, 0)), "vlan_tag_on_access_port")


def test_sources_are_those_of_the_port(binary):
    with network(binary, *OPEN) as switch:
        for frame in (
            udp((2, 2), "10.0.0.1", "10.0.0.2"),
            udp((1, 2), "10.0.0.3", "10.0.0.2"),
            udp((1, 2), "0.0.0.0", "10.0.0.2"),
            udp((1, 2), "fd00::2", "fd00::2"),
            udp((1, 2), "::", "fd00::2"),
            echo((1, 2), "fe80::2", "fd00::2"),
            arp((1, None), 1, "10.0.0.2", "10.0.0.254"),
            arp((1, 2), 2, "10.0.0.254", "10.0.0.2"),
            arp((1, None), 1, "10.0.0.1", "10.0.0.2", sender_mac=mac(2)),
        ):
            switch.dropped("vm1", frame, "source_spoofed")
        switch.passes("vm1", udp((1, 2), "fd00::1", "fd00::2"), "vm2")
        # Before it has an address: a probe.
        switch.passes("vm1", arp((1, None), 1, "0.0.0.0", "10.0.0.1"), "vm2")
        # One that is permitted later.
        later = udp((1, 2), "10.0.0.77", "10.0.0.2")
        switch.dropped("vm1", later, "source_spoofed")
        switch.cli("table", "add", "port_security", f"port=vm1,mac={mac(1)},address=10.0.0.77", "--action", "permit")
        switch.passes("vm1", later, "vm2")
        switch.cli("table", "delete", "port_security", f"port=vm1,mac={mac(1)},address=10.0.0.77")
        switch.dropped("vm1", later, "source_spoofed")


def nd(macs, source, destination, message, **fields):
    header = IPv6(src=source, dst=destination, hlim=255, **fields)
    return whole(Ether(src=mac(macs[0]), dst=mac(macs[1])) / header / message)


def test_neighbour_discovery_says_only_what_is_so(binary):
    with network(binary, *OPEN) as switch:
        def solicitation(target, last=1):
            return ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=mac(last))

        def advertisement(target, last=1):
            return ICMPv6ND_NA(tgt=target, R=0) / ICMPv6NDOptDstLLAddr(lladdr=mac(last))

        switch.passes("vm1", nd((1, 2), "fd00::1", "fd00::2", solicitation("fd00::2")), "vm2")
        switch.passes("vm1", nd((1, 2), "fe80::1", "fd00::2", solicitation("fd00::2")), "vm2")
        switch.passes("vm1", nd((1, 2), "fd00::1", "fd00::2", advertisement("fd00::1")), "vm2")
        for source, message in (
            ("fd00::1", solicitation("fd00::2", 2)),
            ("fd00::1", advertisement("fd00::2")),
            ("fd00::1", advertisement("fd00::1", 2)),
            ("fd00::2", advertisement("fd00::1")),
            ("fe80::1", ICMPv6ND_RA()),
            # An option of a length that hides the one behind it.
            ("fd00::1", ICMPv6ND_NA(tgt="fd00::1", R=0) / Raw(b"\x0e\x01" + bytes(6) + b"\x02\x01" + bytes.fromhex("020000000002") + bytes(8))),
        ):
            switch.dropped("vm1", nd((1, 2), source, "fd00::2", message), "source_spoofed")


def test_a_trunk_s_vlans_are_in_their_domains(binary):
    entries = [
        insert("ports", {"port": "spare"}, "trunk", {"features": 0}),
        insert("stations", {"domain": 10, "mac": mac(8)}, "station", {"port": "spare"}),
        insert("stations", {"domain": 20, "mac": mac(8)}, "station", {"port": "spare"}),
        {"set_multicast": {"group": 10, "ports": ["vm1", "vm2", "spare"]}},
    ]
    for vid, domain in ((100, 10), (200, 20)):
        entries.append(insert("subports", {"port": "spare", "vid": vid}, "subport", {"domain": domain, "policy": 0}))
        entries.append(insert("tags_out", {"port": "spare", "domain": domain}, "tag", {"vid": vid, "policy": 0}))
    with network(binary, *OPEN, *entries) as switch:
        for vid, port, last in ((100, "vm2", 2), (200, "vm5", 5)):
            frame = udp((8, last), "10.0.0.8", "10.0.0.2")
            switch.passes("spare", tagged(frame, (vid, 0)), port, frame)
            back = udp((last, 8), "10.0.0.2", "10.0.0.8", (53, 1000))
            switch.passes(port, back, "spare", tagged(back, (vid, 0)))
        request = arp((1, None), 1, "10.0.0.1", "10.0.0.8")
        switch.becomes("vm1", request, {"vm2": request, "spare": tagged(request, (100, 0))})
        switch.dropped("spare", tagged(udp((8, 2), "10.0.0.8", "10.0.0.2"), (300, 0)), "vlan_not_allowed")
        switch.dropped("spare", udp((8, 2), "10.0.0.8", "10.0.0.2"), "vlan_not_allowed")
