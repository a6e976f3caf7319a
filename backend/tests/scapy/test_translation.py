"""Addresses that stand for others: NAT and load balancing."""

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror, UDPerror
from scapy.layers.inet6 import IPerror6, IPv6
from scapy.layers.l2 import Ether

from frames import changed, echo, error_about, mac, rebuilt, routed, tcp, udp, verify, whole
from network import OPEN, ROUTER, across, delete, insert, neighbor, network, rule

OUT = ((1, 0xF1), "10.0.0.1", "192.0.2.80")
OUT_BLUE = ((4, 0xF3), "10.0.0.1", "192.0.2.80")
#: Both tenants leave by addresses of their own.
MASQUERADE = [
    entry
    for vrf, last in ((1, 10), (2, 11))
    for entry in (
        insert(
            "source_nat4",
            {"vrf": vrf, "interface": 9, "source": "10.0.0.0/8"},
            "masquerade",
            {"low": f"198.51.100.{last}", "high": f"198.51.100.{last}", "low_port": 5000, "high_port": 5999},
        ),
        insert("public_addresses", {"vrf": 9, "address": f"198.51.100.{last}"}, "tenant", {"vrf": vrf, "zone": vrf}),
    )
]


def back(public, source="192.0.2.80"):
    return ((9, 0xF9), source, public)


def leaves(switch, port, frame, public):
    """A frame leaves by the uplink with this source address; its source port is answered with."""
    switch.send(port, frame)
    came = switch.receive("uplink")
    verify(came)
    sport = came.sport if ICMP not in came else came[ICMP].id
    name = "id" if ICMP in came else "sport"
    assert bytes(came) == bytes(routed(frame, (ROUTER[9], 9), src=public, **{name: sport})), f"{came!r}"
    switch.quiet()
    return sport


def test_tenants_leave_by_their_addresses_and_answers_come_back(binary):
    with network(binary, *OPEN, *MASQUERADE) as switch:
        for port, out, public, last, router in (("vm1", OUT, "198.51.100.10", 1, 1), ("vm4", OUT_BLUE, "198.51.100.11", 4, 3)):
            sport = leaves(switch, port, udp(*out, (1000, 53)), public)
            assert 5000 <= sport < 6000
            for _ in range(2):
                assert leaves(switch, port, udp(*out, (1000, 53)), public) == sport
                answer = udp(*back(public), (53, sport))
                across(switch, answer, ("uplink", port), (router, last), dst="10.0.0.1", dport=1000)
            # A port in the range is kept, unless another has it.
            assert leaves(switch, port, udp(*out, (5500, 53)), public) == 5500
        other = leaves(switch, "vm2", udp((2, 0xF1), "10.0.0.2", "192.0.2.80", (5500, 53)), "198.51.100.10")
        assert 5000 <= other < 6000 and other != 5500
        # Nobody outside opens anything.
        switch.dropped("uplink", udp(*back("198.51.100.10"), (53, 5999)), "connection_invalid")
        switch.dropped("uplink", tcp(*back("198.51.100.10"), (53, 5999), "S"), "connection_invalid")


def test_tcp_is_translated_both_ways(binary):
    with network(binary, *OPEN, *MASQUERADE) as switch:
        sport = leaves(switch, "vm1", tcp(*OUT, (1000, 80), "S", (100, 0)), "198.51.100.10")
        inward = {"dst": "10.0.0.1", "dport": 1000}
        across(switch, tcp(*back("198.51.100.10"), (80, sport), "SA", (500, 101)), ("uplink", "vm1"), (1, 1), **inward)
        for number in range(3):
            data = tcp(*OUT, (1000, 80), "PA", (101 + 1000 * number, 501 + 4 * number), bytes(range(250)) * 4)
            across(switch, data, ("vm1", "uplink"), (9, 9), src="198.51.100.10", sport=sport)
            page = tcp(*back("198.51.100.10"), (80, sport), "PA", (501 + 4 * number, 1101 + 1000 * number), b"page")
            across(switch, page, ("uplink", "vm1"), (1, 1), **inward)


def test_a_large_segment_is_translated_in_one_piece(binary):
    with network(binary, *OPEN, *MASQUERADE) as switch:
        sport = leaves(switch, "vm1", tcp(*OUT, (1000, 80), "S", (100, 0)), "198.51.100.10")
        answer = tcp(*back("198.51.100.10"), (80, sport), "SA", (500, 101))
        answer[TCP].window = 65535
        across(switch, rebuilt(answer), ("uplink", "vm1"), (1, 1), dst="10.0.0.1", dport=1000)
        data = bytes(number * 7 & 255 for number in range(60000))
        frame = tcp(*OUT, (1000, 80), "PA", (101, 501), data)
        # As a driver hands it over: the checksum is the pseudo-header's alone, NEEDS_CSUM, GSO_TCPV4.
        partial = whole(frame)
        partial[TCP].chksum = _pseudo_header_sum(partial)
        switch.stations["vm1"].send(partial, (1, 1, 54, 1448, 34, 16))
        expected, came = routed(frame, (0xF9, 9), src="198.51.100.10", sport=sport), b""
        pieces = 0
        while len(came) < len(data):
            taken = switch.stations["uplink"].take()
            assert taken is not None, f"{len(came)} bytes came in {pieces} pieces"
            header, piece = taken
            pieces += 1
            piece = Ether(piece)
            assert (piece[IP].src, piece[TCP].sport, piece[IP].ttl) == ("198.51.100.10", sport, 63), f"{piece!r}"
            if header[0] & 1:
                assert piece[TCP].chksum == _pseudo_header_sum(piece), f"{header} {piece[TCP].chksum}"
            else:
                verify(piece)
            assert piece[TCP].seq == 101 + len(came)
            came += bytes(piece[TCP].payload)
        assert came == data and bytes(expected[TCP].payload) == data
        assert pieces == 1, f"it came in {pieces} pieces"
        switch.quiet()


def _pseudo_header_sum(frame):
    """What a partial checksum starts from: RFC 9293's pseudo-header, folded, not inverted."""
    from scapy.layers.inet import in4_pseudoheader
    from scapy.utils import checksum

    length = frame[IP].len - 4 * frame[IP].ihl
    return ~checksum(in4_pseudoheader(6, frame[IP], length)) & 0xFFFF


def test_an_echo_is_translated_by_its_identifier(binary):
    with network(binary, *OPEN, *MASQUERADE) as switch:
        identifier = leaves(switch, "vm1", echo(*OUT, identifier=77), "198.51.100.10")
        reply = echo(*back("198.51.100.10"), identifier=identifier, reply=True)
        across(switch, reply, ("uplink", "vm1"), (1, 1), dst="10.0.0.1", id=77)


def test_errors_are_translated_with_what_they_quote(binary):
    with network(binary, *OPEN, *MASQUERADE) as switch:
        for asked, layer in ((udp(*OUT, (1000, 53), b"odd"), UDPerror), (tcp(*OUT, (1000, 80), "S", (100, 0)), TCPerror)):
            sport = leaves(switch, "vm1", asked, "198.51.100.10")
            left = routed(asked, (0xF9, 9), src="198.51.100.10", sport=sport)
            for source, kind in (("203.0.113.1", (11, 0)), ("192.0.2.80", (3, 3))):
                error = error_about((9, 0xF9), source, left, kind)
                switch.send("uplink", error)
                came = switch.receive("vm1")
                verify(came)
                assert (came.src, came.dst, came[IP].src, came[IP].dst, came[IP].ttl) == (mac(0xF1), mac(1), source, "10.0.0.1", 63), f"{came!r}"
                assert (came[ICMP].type, came[ICMP].code) == kind
                # The quote is the packet as its sender knows it, but for the TTL, with right checksums.
                inner = came[IPerror]
                assert (inner.src, inner.dst, came[layer].sport, came[layer].dport) == ("10.0.0.1", "192.0.2.80", 1000, asked.dport), f"{came!r}"
                quoted = changed(Ether(src=mac(1), dst=mac(2)) / IP(bytes(inner)))
                assert bytes(quoted[IP]) == bytes(changed(asked, ttl=63)[IP]), f"{quoted!r}\nshould be\n{asked!r}"
        # An error about an answer finds its way out.
        answer = udp(*back("198.51.100.10"), (53, 5001))
        sport = leaves(switch, "vm1", udp(*OUT, (1001, 53)), "198.51.100.10")
        answer = udp(*back("198.51.100.10"), (53, sport))
        came = across(switch, answer, ("uplink", "vm1"), (1, 1), dst="10.0.0.1", dport=1001)
        refused = error_about((1, 0xF1), "10.0.0.1", came, (3, 3))
        switch.send("vm1", refused)
        left = switch.receive("uplink")
        verify(left)
        assert (left[IP].src, left[IP].dst) == ("198.51.100.10", "192.0.2.80"), f"{left!r}"
        assert (left[IPerror].src, left[IPerror].dst, left[UDPerror].dport) == ("192.0.2.80", "198.51.100.10", sport), f"{left!r}"


FLOATING = [
    insert("source_nat4", {"vrf": 1, "interface": 9, "source": "10.0.0.2/32"}, "one_to_one", {"address": "198.51.100.20"}),
    insert("public_addresses", {"vrf": 9, "address": "198.51.100.20"}, "inside", {"vrf": 1, "zone": 1, "address": "10.0.0.2"}),
    insert("public_addresses", {"vrf": 1, "address": "198.51.100.20"}, "inside", {"vrf": 1, "zone": 1, "address": "10.0.0.2"}),
    insert(
        "source_nat4",
        {"vrf": 1, "interface": 1, "source": "10.0.0.0/24"},
        "masquerade",
        {"low": "10.0.0.254", "high": "10.0.0.254", "low_port": 0, "high_port": 0},
    ),
]


def test_one_to_one_holds_from_inside_and_outside(binary):
    with network(binary, *OPEN, *MASQUERADE, *FLOATING) as switch:
        inside = ((2, 0xF1), "10.0.0.2", "192.0.2.80")
        across(switch, udp(*inside, (500, 53)), ("vm2", "uplink"), (9, 9), src="198.51.100.20")
        across(switch, udp(*back("198.51.100.20"), (53, 500)), ("uplink", "vm2"), (1, 2), dst="10.0.0.2")
        across(switch, tcp(*back("198.51.100.20"), (4000, 22), "S"), ("uplink", "vm2"), (1, 2), dst="10.0.0.2")
        across(switch, tcp(*inside, (22, 4000), "SA", (7, 2)), ("vm2", "uplink"), (9, 9), src="198.51.100.20")
        # Rules see both ends as they are.
        switch.batch(delete("ingress_rules", {"policy": 1}, priority=1))
        syn = tcp(*back("198.51.100.20"), (4001, 22), "S")
        switch.dropped("uplink", syn, "acl_denied")
        switch.batch(rule("ingress_rules", 1, {"policy": 1, "source": "192.0.2.0/24", "protocol": 6, "destination_port": "22"}))
        across(switch, syn, ("uplink", "vm2"), (1, 2), dst="10.0.0.2")


def test_a_neighbour_is_reached_by_its_public_address(binary):
    with network(binary, *OPEN, *MASQUERADE, *FLOATING) as switch:
        asked = udp((1, 0xF1), "10.0.0.1", "198.51.100.20", (1000, 53))
        for _ in range(2):
            switch.send("vm1", asked)
            came = switch.receive("vm2")
            verify(came)
            assert bytes(came) == bytes(routed(asked, (0xF1, 2), src="10.0.0.254", dst="10.0.0.2", sport=came[UDP].sport)), f"{came!r}"
            answer = udp((2, 0xF1), "10.0.0.2", "10.0.0.254", (53, came[UDP].sport))
            across(switch, answer, ("vm2", "vm1"), (1, 1), src="198.51.100.20", dst="10.0.0.1", dport=1000)


def test_a_forwarded_port_leads_to_another(binary):
    forward = insert(
        *("virtual_services", {"vrf": 1, "address": "198.51.100.10", "protocol": 6, "port": 8080}),
        *("forward", {"address": "10.0.1.3", "port": 80}),
    )
    with network(binary, *OPEN, *MASQUERADE, forward) as switch:
        syn = tcp(*back("198.51.100.10"), (4000, 8080), "S")
        came = across(switch, syn, ("uplink", "vm3"), (2, 3), dst="10.0.1.3", dport=80)
        answer = tcp((3, 0xF2), "10.0.1.3", "192.0.2.80", (80, 4000), "SA", (7, 2))
        across(switch, answer, ("vm3", "uplink"), (9, 9), src="198.51.100.10", sport=8080)
        switch.send("vm3", error_about((3, 0xF2), "10.0.1.3", came, (3, 3)))
        left = switch.receive("uplink")
        verify(left)
        assert (left[IP].src, left[IPerror].dst, left[TCPerror].dport) == ("198.51.100.10", "198.51.100.10", 8080), f"{left!r}"


def test_ports_that_are_all_taken_refuse_a_connection(binary):
    narrow = insert(
        *("source_nat4", {"vrf": 1, "interface": 9}, "masquerade"),
        {"low": "198.51.100.10", "high": "198.51.100.10", "low_port": 5000, "high_port": 5001},
    )
    with network(binary, *OPEN, narrow) as switch:
        taken = {leaves(switch, "vm1", udp(*OUT, (port, 53)), "198.51.100.10") for port in (1, 2)}
        assert taken == {5000, 5001}
        switch.dropped("vm1", udp(*OUT, (3, 53)), "nat_ports_exhausted", explained=False)


def test_ipv6_is_translated_too(binary):
    entries = [
        insert(
            *("source_nat6", {"vrf": 1, "interface": 9, "source": "fd00::/16"}, "masquerade"),
            {"low": "2001:db8::10", "high": "2001:db8::10", "low_port": 0, "high_port": 0},
        ),
        insert("public_addresses", {"vrf": 9, "address": "2001:db8::10"}, "tenant", {"vrf": 1, "zone": 1}),
    ]
    with network(binary, *OPEN, *entries) as switch:
        asked = udp((1, 0xF1), "fd00::1", "2001:db8:8::1", (1000, 53))
        switch.send("vm1", asked)
        left = switch.receive("uplink")
        verify(left)
        assert bytes(left) == bytes(routed(asked, (0xF9, 9), src="2001:db8::10", sport=left[UDP].sport)), f"{left!r}"
        answer = udp((9, 0xF9), "2001:db8:8::1", "2001:db8::10", (53, left[UDP].sport))
        across(switch, answer, ("uplink", "vm1"), (1, 1), dst="fd00::1", dport=1000)
        switch.send("uplink", error_about((9, 0xF9), "2001:db8:8::1", left, (1, 4)))
        came = switch.receive("vm1")
        verify(came)
        assert came[IPv6].dst == "fd00::1" and came[IPerror6].src == "fd00::1" and came[UDPerror].sport == 1000, f"{came!r}"
        quoted = changed(Ether(src=mac(1), dst=mac(2)) / IPv6(bytes(came[IPerror6])))
        assert bytes(quoted[IPv6]) == bytes(changed(asked, ttl=63)[IPv6]), f"{quoted!r}"


def back_ends(*members):
    values = [{"weight": weight, "values": {"address": address, "port": 8080}} for address, weight in members]
    return {"set_group": {"selector": "back_ends", "group": 4, "members": values}}


SERVICE = insert("virtual_services", {"vrf": 1, "address": "10.9.9.9", "protocol": 6, "port": 80}, "balance", {"group": 4})


def chosen(switch, ports):
    """Which back-end each connection goes to."""
    frames = [tcp((1, 0xF1), "10.0.0.1", "10.9.9.9", (port, 80), "S") for port in ports]
    for frame in frames:
        switch.send("vm1", frame)
    choice = {}
    for port, frame in zip(ports, frames):
        came = switch.receive("vm3")
        assert bytes(came) == bytes(routed(frame, (0xF2, 3), dst=came[IP].dst, dport=8080)), f"{came!r}"
        choice[port] = came[IP].dst
    return choice


def test_a_service_shares_connections_by_weight_and_each_stays(binary):
    hosts = [neighbor(2, f"10.0.1.{last}", 3, "vm3") for last in (4, 5, 6)]
    four, five, six = (f"10.0.1.{last}" for last in (4, 5, 6))
    with network(binary, *OPEN, *hosts, SERVICE, back_ends((four, 1), (five, 3))) as switch:
        first = chosen(switch, range(1000, 1080))
        share = list(first.values()).count(four)
        assert 5 < share < 38 and set(first.values()) == {four, five}, f"{share}"
        # One that goes keeps its connections; new ones go to the others. One that comes takes its share of new ones.
        switch.batch(back_ends((five, 3)))
        assert chosen(switch, range(1000, 1080)) == first
        assert set(chosen(switch, range(2000, 2020)).values()) == {five}
        switch.batch(back_ends((five, 1), (six, 1)))
        share = list(chosen(switch, range(3000, 3060)).values()).count(six)
        assert 14 < share < 46, f"{share}"
        assert chosen(switch, range(1000, 1080)) == first
        switch.batch(back_ends())
        switch.dropped("vm1", tcp((1, 0xF1), "10.0.0.1", "10.9.9.9", (4000, 80), "S"), "no_backend")


def test_a_service_answers_under_its_own_address(binary):
    with network(binary, *OPEN, SERVICE, back_ends(("10.0.1.3", 1))) as switch:
        to, answers = ((1, 0xF1), "10.0.0.1", "10.9.9.9"), ((3, 0xF2), "10.0.1.3", "10.0.0.1")
        inward, outward = {"dst": "10.0.1.3", "dport": 8080}, {"src": "10.9.9.9", "sport": 80}
        across(switch, tcp(*to, (1000, 80), "S", (1, 0)), ("vm1", "vm3"), (2, 3), **inward)
        across(switch, tcp(*answers, (8080, 1000), "SA", (9, 2)), ("vm3", "vm1"), (1, 1), **outward)
        for number in range(3):
            across(switch, tcp(*to, (1000, 80), "PA", (2 + 3 * number, 10 + 4 * number), b"get"), ("vm1", "vm3"), (2, 3), **inward)
            across(switch, tcp(*answers, (8080, 1000), "PA", (10 + 4 * number, 5 + 3 * number), b"page"), ("vm3", "vm1"), (1, 1), **outward)


def test_a_directly_returning_back_end_gets_the_packet_as_it_is(binary):
    entries = [
        insert("virtual_services", {"vrf": 1, "address": "10.9.9.8", "protocol": 6, "port": 80}, "balance_direct", {"group": 5}),
        insert("direct_servers", {"vrf": 1, "id": 33}, "back_end", {"interface": 2, "address": "10.0.1.3"}),
        insert("port_security", {"port": "vm3", "mac": mac(3), "address": "10.9.9.8"}, "permit"),
        {"set_group": {"selector": "direct_back_ends", "group": 5, "members": [{"values": {"id": 33}}]}},
    ]
    with network(binary, *OPEN, *entries) as switch:
        syn = tcp((1, 0xF1), "10.0.0.1", "10.9.9.8", (1000, 80), "S")
        switch.passes("vm1", syn, "vm3", changed(syn, src_mac=mac(0xF2), dst_mac=mac(3)))
        across(switch, tcp((3, 0xF2), "10.9.9.8", "10.0.0.1", (80, 1000), "SA", (9, 2)), ("vm3", "vm1"), (1, 1))
        switch.batch({"set_group": {"selector": "direct_back_ends", "group": 5, "members": []}})
        ack = tcp((1, 0xF1), "10.0.0.1", "10.9.9.8", (1000, 80), "A", (2, 10))
        switch.passes("vm1", ack, "vm3", changed(ack, src_mac=mac(0xF2), dst_mac=mac(3)))
        switch.dropped("vm1", tcp((1, 0xF1), "10.0.0.1", "10.9.9.8", (1001, 80), "S"), "no_backend")
