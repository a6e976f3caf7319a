"""The virtual router: longest prefixes, TTLs, equal paths; what it answers itself, and what waits for a neighbour."""

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether

from frames import BROADCAST, arp, changed, echo, mac, routed, tcp, udp, verify, whole
from network import OPEN, across, insert, modify, neighbor, network, services, serving

FORTH = ((1, 0xF1), "10.0.0.1", "10.0.1.3")
BACK = ((3, 0xF2), "10.0.1.3", "10.0.0.1")
FORTH6 = ((1, 0xF1), "fd00::1", "fd00:1::3")
BACK6 = ((3, 0xF2), "fd00:1::3", "fd00::1")


def answer(switch, port, frame, copies=()):
    """What a frame is answered with, at its own port."""
    switch.send(port, frame)
    came = switch.receive(port)
    verify(came)
    switch.quiet(copies)
    return came


def test_packets_go_from_one_network_to_another(binary):
    with network(binary, *OPEN) as switch:
        for forth, back in ((FORTH, BACK), (FORTH6, BACK6)):
            for ports in ((1000, 53), (1001, 54)):
                for _ in range(2):
                    across(switch, udp(*forth, ports), ("vm1", "vm3"), (2, 3))
                    across(switch, udp(*back, ports[::-1]), ("vm3", "vm1"), (1, 1))
            across(switch, tcp(*forth, (1, 80), "S", (100, 0)), ("vm1", "vm3"), (2, 3))
            across(switch, tcp(*back, (80, 1), "SA", (500, 101)), ("vm3", "vm1"), (1, 1))
            across(switch, tcp(*forth, (1, 80), "PA", (101, 501), bytes(1400)), ("vm1", "vm3"), (2, 3))
            across(switch, udp(*forth, ttl=2), ("vm1", "vm3"), (2, 3))


def test_the_longest_prefix_wins_in_each_vrf(binary):
    routes = [
        insert("routes4", {"vrf": 1, "destination": "203.0.113.0/24"}, "direct", {"interface": 2}),
        insert("routes4", {"vrf": 1, "destination": "203.0.113.9/32"}, "blackhole"),
        neighbor(2, "203.0.113.7", 3, "vm3"),
        insert("routes6", {"vrf": 1, "destination": "2001:db8:7::/48"}, "direct", {"interface": 2}),
        insert("routes6", {"vrf": 1, "destination": "2001:db8:7::9/128"}, "blackhole"),
        neighbor(2, "2001:db8:7::7", 3, "vm3"),
    ]
    with network(binary, *OPEN, *routes) as switch:
        for source, prefix in (("10.0.0.1", "203.0.113."), ("fd00::1", "2001:db8:7::")):
            across(switch, udp((1, 0xF1), source, prefix + "7"), ("vm1", "vm3"), (2, 3))
            switch.dropped("vm1", udp((1, 0xF1), source, prefix + "9"), "no_route")
            # Blue has only its default route.
            across(switch, udp((4, 0xF3), source, prefix + "7"), ("vm4", "uplink"), (9, 9))
        switch.batch({"delete": {"table": "routes4", "key": {"vrf": 1, "destination": "203.0.113.9/32"}}}, neighbor(2, "203.0.113.9", 3, "vm3"))
        across(switch, udp((1, 0xF1), "10.0.0.1", "203.0.113.9"), ("vm1", "vm3"), (2, 3))


def test_equal_paths_share_connections_and_each_keeps_to_its_own(binary):
    def members(*paths):
        values = [{"weight": weight, "values": {"interface": 2, "gateway": f"10.0.1.{last}"}} for last, weight in paths]
        return {"set_group": {"selector": "next_hops", "group": 7, "members": values}}

    route = insert("routes4", {"vrf": 1, "destination": "192.0.2.0/24"}, "equal_cost", {"group": 7})
    hops = [neighbor(2, f"10.0.1.{last}", last, "vm3") for last in (11, 12, 13)]
    with network(binary, *OPEN, members((11, 1), (12, 1), (13, 2)), route, *hops) as switch:
        def paths(count):
            found = {}
            frames = [udp((1, 0xF1), "10.0.0.1", "192.0.2.9", (2000 + number, 53)) for number in range(count)]
            for frame in frames:
                switch.send("vm1", frame)
            for number, frame in enumerate(frames):
                came = switch.receive("vm3")
                last = int(came.dst[-2:], 16)
                assert bytes(came) == bytes(routed(frame, (0xF2, last))), f"{came!r}"
                found[number] = last
            return found

        before = paths(100)
        shares = [list(before.values()).count(last) for last in (11, 12, 13)]
        assert 8 < shares[0] < 45 and 8 < shares[1] < 45 and 30 < shares[2] < 70, f"{shares}"
        assert paths(100) == before
        switch.batch(members((12, 1), (13, 2)))
        after = paths(100)
        moved = [number for number in before if before[number] not in (11, after[number])]
        assert 11 not in after.values() and len(moved) <= 10, f"{moved}"


def test_the_router_answers_arp_and_neighbour_solicitations(binary):
    with serving(binary) as switch:
        asked = arp((1, None), 1, "10.0.0.1", "10.0.0.254")
        told = answer(switch, "vm1", asked)
        expected = Ether(src=mac(0xF1), dst=mac(1)) / ARP(op=2, hwsrc=mac(0xF1), psrc="10.0.0.254", hwdst=mac(1), pdst="10.0.0.1")
        assert bytes(told).startswith(bytes(expected)), f"{told!r}"
        for target, group, group_mac in (("fd00::fe", "ff02::1:ff00:fe", "33:33:ff:00:00:fe"), ("fe80::ff:fe00:f1", "ff02::1:ff00:f1", "33:33:ff:00:00:f1")):
            option = ICMPv6NDOptSrcLLAddr(lladdr=mac(1))
            asked = whole(Ether(src=mac(1), dst=group_mac) / IPv6(src="fd00::1", dst=group, hlim=255) / ICMPv6ND_NS(tgt=target) / option)
            if target.startswith("fe80"):
                switch.batch(insert("answered", {"domain": 10, "address": target}, "answer", {"interface": 1}))
            told = answer(switch, "vm1", asked)
            expected = (
                Ether(src=mac(0xF1), dst=mac(1))
                / IPv6(src=target, dst="fd00::1", hlim=255)
                / ICMPv6ND_NA(tgt=target, R=1, S=1, O=1)
                / ICMPv6NDOptDstLLAddr(lladdr=mac(0xF1))
            )
            assert bytes(told) == bytes(whole(expected)), f"{told!r}"
        # Other addresses are not its business.
        request = arp((1, None), 1, "10.0.0.1", "10.0.0.2")
        switch.passes("vm1", request, "vm2")


def test_the_router_answers_ping(binary):
    with serving(binary) as switch:
        for source, target in (("10.0.0.1", "10.0.0.254"), ("10.0.0.1", "10.0.1.254"), ("fd00::1", "fd00::fe"), ("fe80::1", "fe80::ff:fe00:f1")):
            for size in (0, 8, 1400):
                asked = echo((1, 0xF1), source, target, data=bytes(size))
                told = answer(switch, "vm1", asked)
                expected = echo((0xF1, 1), target, source, reply=True, data=bytes(size))
                # Whatever it says of TTL and identification is its own.
                for frame in (told, expected):
                    if IP in frame:
                        frame[IP].ttl, frame[IP].id, frame[IP].flags, frame[IP].chksum = 64, 1, 0, 0
                    else:
                        frame[IPv6].hlim = 64
                assert bytes(told) == bytes(expected), f"{told!r}\nshould be\n{expected!r}"


def is_error(told, router, frame, of):
    """An ICMP error from the router to the sender of a frame, that quotes it as it came."""
    assert (told.src, told.dst) == (mac(router[0]), frame.src), f"{told!r}"
    packet, quoted = told[type(frame.payload)], bytes(frame.payload)
    assert (packet.src, packet.dst) == (router[1], frame.payload.src), f"{told!r}"
    message = packet.payload
    assert isinstance(message, of), f"{told!r}"
    quote = bytes(message)[8:]
    longest = 576 if IP in frame else 1280
    assert quoted.startswith(quote) and len(quote) >= min(len(quoted), longest - 68), f"{told!r}"
    assert len(packet) <= longest, f"{told!r}"
    return message


def test_packets_whose_ttl_ends_are_told_of(binary):
    with serving(binary) as switch:
        for forth, router, of in ((FORTH, "10.0.0.254", ICMP), (FORTH6, "fd00::fe", ICMPv6TimeExceeded)):
            for frame in (udp(*forth, (40000, 33434), ttl=1), udp(*forth, (40000, 33434), bytes(1300), ttl=1), echo(*forth, ttl=1)):
                message = is_error(answer(switch, "vm1", frame), (0xF1, router), frame, of)
                assert (message.type, message.code) == ((11, 0) if of is ICMP else (3, 0)), f"{message!r}"
        # About an error no error is sent.
        from frames import error_about

        asked = udp((3, 1), "10.0.1.3", "10.0.0.1")
        stray = changed(error_about((1, 0xF1), "10.0.0.1", asked, (3, 3)), ttl=1)
        switch.send("vm1", stray)
        switch.await_that("the error was dropped", lambda: switch.drops("vm1"))
        switch.quiet()


def test_packets_that_are_too_big_are_told_of(binary):
    entries = [modify("interfaces", {"interface": 2}, "interface", {"domain": 11, "mac": mac(0xF2), "mtu": 1400, "translates": 0})]
    with serving(binary, *entries) as switch:
        told = services()
        told["interfaces"][1]["mtu"] = 1400
        switch.ask("PUT", "/v1/services", told)
        while switch.stations["vm3"].take(0.2):
            pass  # announcements of the changed interface
        for forth, router, of, headers in ((FORTH, "10.0.0.254", ICMP, 28), (FORTH6, "fd00::fe", ICMPv6PacketTooBig, 48)):
            more = {"flags": "DF"} if of is ICMP else {}
            across(switch, udp(*forth, (5, 6), bytes(1400 - headers), **more), ("vm1", "vm3"), (2, 3))
            frame = udp(*forth, (5, 6), bytes(1401 - headers), **more)
            message = is_error(answer(switch, "vm1", frame), (0xF1, router), frame, of)
            if of is ICMP:
                assert (message.type, message.code, message.nexthopmtu) == (3, 4, 1400), f"{message!r}"
            else:
                assert (message.code, message.mtu) == (0, 1400), f"{message!r}"
        switch.dropped("vm1", udp(*FORTH, (5, 6), bytes(1401 - 28)), "packet_too_big")


def test_destinations_without_a_route_are_told_of(binary):
    entries = [
        insert("routes4", {"vrf": 1, "destination": "203.0.113.0/24"}, "unreachable"),
        insert("routes6", {"vrf": 1, "destination": "2001:db8:7::/48"}, "unreachable"),
    ]
    with serving(binary, *entries) as switch:
        for source, destination, router, of in (
            ("10.0.0.1", "203.0.113.9", "10.0.0.254", ICMP),
            ("fd00::1", "2001:db8:7::9", "fd00::fe", ICMPv6DestUnreach),
        ):
            frame = udp((1, 0xF1), source, destination)
            message = is_error(answer(switch, "vm1", frame), (0xF1, router), frame, of)
            assert (message.type, message.code) == ((3, 0) if of is ICMP else (1, 0)), f"{message!r}"


def test_frames_wait_for_a_neighbour_in_their_order(binary):
    with serving(binary) as switch:
        frames = [udp((1, 0xF1), "10.0.0.1", "10.0.1.77", (1000 + number, 53)) for number in range(5)]
        for frame in frames:
            switch.send("vm1", frame)
        asked = switch.receive("vm3")
        assert (asked.src, asked.dst) == (mac(0xF2), BROADCAST), f"{asked!r}"
        assert (asked[ARP].op, asked[ARP].hwsrc, asked[ARP].psrc, asked[ARP].pdst) == (1, mac(0xF2), "10.0.1.254", "10.0.1.77"), f"{asked!r}"
        # Port security has to allow the new address first.
        switch.batch(insert("port_security", {"port": "vm3", "mac": mac(3), "address": "10.0.1.77"}, "permit"))
        switch.send("vm3", arp((3, 0xF2), 2, "10.0.1.77", "10.0.1.254"))
        for frame in frames:
            came = switch.receive("vm3")
            while ARP in came:  # asked once more meanwhile
                came = switch.receive("vm3")
            assert bytes(came) == bytes(routed(frame, (0xF2, 3))), f"{came!r}"
            verify(came)
        across(switch, udp((1, 0xF1), "10.0.0.1", "10.0.1.77", (2000, 53)), ("vm1", "vm3"), (2, 3))
        known = switch.ask("GET", "/v1/services/neighbors")["neighbors"]
        assert [(entry["address"], entry["mac"], entry["port"]) for entry in known if entry["state"] == "known"] == [("10.0.1.77", mac(3), "vm3")], f"{known}"


def test_frames_wait_for_a_neighbour_over_ipv6(binary):
    with serving(binary, insert("port_security", {"port": "vm3", "mac": mac(3), "address": "fd00:1::77"}, "permit")) as switch:
        frame = udp((1, 0xF1), "fd00::1", "fd00:1::77")
        switch.send("vm1", frame)
        asked = switch.receive("vm3")
        assert (asked.src, asked.dst) == (mac(0xF2), "33:33:ff:00:00:77"), f"{asked!r}"
        assert (asked[ICMPv6ND_NS].tgt, asked[ICMPv6NDOptSrcLLAddr].lladdr) == ("fd00:1::77", mac(0xF2)), f"{asked!r}"
        assert (asked[IPv6].hlim, asked[IPv6].dst) == (255, "ff02::1:ff00:77"), f"{asked!r}"
        verify(asked)
        told = ICMPv6ND_NA(tgt="fd00:1::77", R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=mac(3))
        switch.send("vm3", whole(Ether(src=mac(3), dst=mac(0xF2)) / IPv6(src="fd00:1::77", dst=asked[IPv6].src, hlim=255) / told))
        came = switch.receive("vm3")
        while ICMPv6ND_NS in came:
            came = switch.receive("vm3")
        assert bytes(came) == bytes(routed(frame, (0xF2, 3))), f"{came!r}"


def test_a_next_hop_that_nobody_is_told_of(binary):
    with serving(binary) as switch:
        frame = udp((1, 0xF1), "10.0.0.1", "10.0.1.99")
        switch.send("vm1", frame)
        told = switch.receive("vm1")  # after three questions, a second apart
        message = is_error(told, (0xF1, "10.0.0.254"), frame, ICMP)
        assert (message.type, message.code) == (3, 1), f"{message!r}"
        for _ in range(3):
            assert switch.receive("vm3")[ARP].pdst == "10.0.1.99"


def test_traceroute_to_the_router_ends_there(binary):
    with serving(binary) as switch:
        frame = udp((1, 0xF1), "10.0.0.1", "10.0.1.254", (40000, 33436))
        told = answer(switch, "vm1", frame)
        message = is_error(told, (0xF1, told[IP].src), frame, ICMP)
        assert (message.type, message.code) == (3, 3) and UDP in frame, f"{message!r}"


def test_a_metadata_address_is_served_by_a_port(binary):
    entries = [
        insert("ports", {"port": "spare"}, "attach", {"domain": 10}),
        insert("routes4", {"vrf": 1, "destination": "169.254.169.254"}, "hand_to", {"port": "spare", "mac": mac(0x30)}),
    ]
    with network(binary, *OPEN, *entries) as switch:
        frame = tcp((1, 0xF1), "10.0.0.1", "169.254.169.254", (1000, 80), "S", (5, 0))
        switch.passes("vm1", frame, "spare", changed(frame, src_mac=mac(0xF1), dst_mac=mac(0x30)))
        back = tcp((0x30, 0xF1), "169.254.169.254", "10.0.0.1", (80, 1000), "SA", (9, 6))
        across(switch, back, ("spare", "vm1"), (1, 1))
