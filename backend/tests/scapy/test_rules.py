"""Access lists, and security rules over connections."""

from scapy.layers.inet import ICMP, IP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether

from frames import echo, error_about, mac, tcp, udp, verify, whole
from network import delete, insert, modify, network, rule, serving

FORTH = ((1, 2), "10.0.0.1", "10.0.0.2")
BACK = ((2, 1), "10.0.0.2", "10.0.0.1")
FORTH6 = ((1, 2), "fd00::1", "fd00::2")
BACK6 = ((2, 1), "fd00::2", "fd00::1")
BOTH = ((FORTH, BACK), (FORTH6, BACK6))
#: Red's guests may open anything, and be asked on TCP port 80.
WEB = (rule("egress_rules", 1, {"policy": 1}), rule("ingress_rules", 9, {"policy": 1, "protocol": 6, "destination_port": "80"}))


def with_lists(*entries):
    """Both of red's first guests have access lists."""
    ports = [modify("ports", {"port": port}, "custom", {"domain": 10, "policy": 0, "features": 3}) for port in ("vm1", "vm2")]
    return [*ports, *entries]


def test_access_lists_in_by_prefix_ports_and_flags(binary):
    entries = with_lists(
        rule("acl_in", 10, {"port": "vm1", "destination": "10.0.0.0/30", "protocol": 17, "destination_port": "50..60"}, "deny"),
        rule("acl_in", 20, {"port": "vm1", "destination": "10.0.0.2", "protocol": 17, "destination_port": "55"}, "allow"),
        rule("acl_in", 10, {"protocol": 6, "tcp_flags": "2&18"}, "deny"),
        rule("acl_in", 10, {"destination6": "fd00::/64", "protocol": 58, "destination_port": "128"}, "deny"),
    )
    with network(binary, *entries) as switch:
        for port, denied in ((49, False), (50, True), (54, True), (55, False), (60, True), (61, False)):
            frame = udp(*FORTH, (1000, port))
            if denied:
                switch.dropped("vm1", frame, "acl_denied")
            else:
                switch.passes("vm1", frame, "vm2")
        # Of another port, the same may pass.
        switch.passes("vm2", udp(*BACK, (1000, 50)), "vm1")
        # Stateless: who opens is told by the flags alone.
        switch.dropped("vm1", tcp(*FORTH, (1, 80), "S"), "acl_denied")
        switch.passes("vm1", tcp(*FORTH, (1, 80), "SA"), "vm2")
        switch.passes("vm1", tcp(*FORTH, (1, 80), "A", data=b"x"), "vm2")
        switch.dropped("vm1", echo(*FORTH6), "acl_denied")
        switch.passes("vm1", echo(*FORTH6, reply=True), "vm2")


def test_access_lists_out_by_sender(binary):
    entries = with_lists(
        rule("acl_out", 10, {"port": "vm2", "source": "10.0.0.0/24", "protocol": 17}, "deny"),
        rule("acl_out", 20, {"port": "vm2", "protocol": 17, "source_port": "1000..1999"}, "allow"),
        rule("acl_out", 5, {"port": "vm2", "source_mac": mac(1), "source6": "fd00::1"}, "deny"),
    )
    with network(binary, *entries) as switch:
        switch.passes("vm1", udp(*FORTH, (1500, 53)), "vm2")
        switch.dropped("vm1", udp(*FORTH, (2000, 53)), "acl_denied")
        switch.dropped("vm1", tcp(*FORTH6, (1, 2), "S"), "acl_denied")
        switch.passes("vm2", udp(*BACK, (2000, 53)), "vm1")
        counted = switch.cli("table", "entries", "acl_out")
        assert "acl_out" in counted or "deny" in counted, counted


def opened(switch, forth=FORTH, back=BACK, ports=(1000, 80)):
    """A TCP connection from vm1 to vm2; what comes next are sequence numbers 1001 and 5001."""
    switch.passes("vm1", tcp(*forth, ports, "S", (1000, 0)), "vm2")
    switch.passes("vm2", tcp(*back, ports[::-1], "SA", (5000, 1001)), "vm1")
    switch.passes("vm1", tcp(*forth, ports, "A", (1001, 5001)), "vm2")


def states(switch):
    return [connection["state"] for connection in switch.ask("GET", "/v1/connections")["connections"]]


def test_a_tcp_connection_opens_talks_and_closes(binary):
    with network(binary, *WEB) as switch:
        switch.dropped("vm1", tcp(*FORTH, (1000, 22), "S"), "acl_denied")
        switch.dropped("vm2", tcp(*BACK, (80, 1000), "SA", (5000, 1001)), "connection_invalid")
        switch.dropped("vm2", tcp(*BACK, (80, 1000), "A", (5000, 1001), b"x"), "connection_invalid")
        assert states(switch) == []
        for forth, back in BOTH:
            opened(switch, forth, back)
            for number in range(3):
                switch.passes("vm1", tcp(*forth, (1000, 80), "PA", (1001 + 3 * number, 5001 + 4 * number), b"get"), "vm2")
                switch.passes("vm2", tcp(*back, (80, 1000), "PA", (5001 + 4 * number, 1004 + 3 * number), b"page"), "vm1")
            # Far outside the window, in either direction.
            switch.dropped("vm2", tcp(*back, (80, 1000), "A", (0x70000000, 1010), b"x"), "connection_invalid")
            switch.dropped("vm1", tcp(*forth, (1000, 80), "A", (0x70000000, 5013), b"x"), "connection_invalid")
            switch.dropped("vm2", tcp(*back, (80, 1000), "R", (0x70000000, 0)), "connection_invalid")
            switch.passes("vm2", tcp(*back, (80, 1000), "A", (5013, 1010), b"more"), "vm1")
            # Both sides close.
            switch.passes("vm1", tcp(*forth, (1000, 80), "FA", (1010, 5017)), "vm2")
            switch.passes("vm2", tcp(*back, (80, 1000), "FA", (5017, 1011)), "vm1")
            switch.passes("vm1", tcp(*forth, (1000, 80), "A", (1011, 5018)), "vm2")
        said = states(switch)
        assert len(said) == 2 and "established" not in said, f"{said}"


def test_a_reset_ends_a_connection(binary):
    with network(binary, *WEB) as switch:
        opened(switch)
        assert "established" in states(switch)[0].lower(), f"{states(switch)}"
        switch.passes("vm1", tcp(*FORTH, (1000, 80), "R", (1001, 0)), "vm2")
        assert "established" not in states(switch)[0].lower(), f"{states(switch)}"
        # Its ports may be used anew.
        switch.passes("vm1", tcp(*FORTH, (1000, 80), "S", (90000, 0)), "vm2")


def test_security_group_opened_and_closed_under_a_live_connection(binary):
    with network(binary, WEB[0]) as switch:
        switch.dropped("vm1", tcp(*FORTH, (1000, 80), "S", (1000, 0)), "acl_denied")
        switch.cli("table", "add", "ingress_rules", "policy=1,protocol=6,destination_port=80", "--priority", "9", "--action", "allow")
        opened(switch)
        request = tcp(*FORTH, (1000, 80), "PA", (1001, 5001), b"get")
        answer = tcp(*BACK, (80, 1000), "PA", (5001, 1004), b"page")
        switch.passes("vm1", request, "vm2")
        switch.passes("vm2", answer, "vm1")
        switch.cli("table", "delete", "ingress_rules", "policy=1,protocol=6,destination_port=80", "--priority", "9")
        switch.dropped("vm1", request, "acl_denied")
        switch.dropped("vm2", answer, "acl_denied")


def test_udp_and_echoes_are_answered_but_not_asked_back(binary):
    allowed = [
        rule(table, 5, {"policy": 1, "protocol": protocol, "destination_port": str(port), **more})
        for protocol, port in ((17, 53), (1, 8), (58, 128))
        for table, more in (("egress_rules", {}), ("ingress_rules", {}))
    ]
    with network(binary, *allowed) as switch:
        for forth, back in BOTH:
            switch.dropped("vm2", udp(*back, (53, 1000)), "acl_denied")
            for _ in range(2):
                switch.passes("vm1", udp(*forth, (1000, 53)), "vm2")
                switch.passes("vm2", udp(*back, (53, 1000)), "vm1")
            switch.dropped("vm2", udp(*back, (53, 1001)), "acl_denied")
            switch.dropped("vm2", echo(*back, reply=True), "connection_invalid")
            for _ in range(2):
                switch.passes("vm1", echo(*forth), "vm2")
                switch.passes("vm2", echo(*back, reply=True), "vm1")
            switch.dropped("vm2", echo(*back, identifier=8, reply=True), "connection_invalid")


def test_errors_about_a_connection_pass_and_others_do_not(binary):
    allowed = [rule(table, 1, {"policy": 1, "protocol": 17}) for table in ("egress_rules", "ingress_rules")]
    with network(binary, *allowed) as switch:
        for (forth, back), kind in zip(BOTH, ((3, 3), (1, 4))):
            asked = udp(*forth, (1000, 53))
            error = error_about((2, 1), back[1], asked, kind)
            switch.dropped("vm2", error, "connection_invalid")
            switch.passes("vm1", asked, "vm2")
            switch.passes("vm2", error, "vm1")
            other = error_about((2, 1), back[1], udp(*forth, (1001, 53)), kind)
            switch.dropped("vm2", other, "connection_invalid")


def test_fragments_go_with_their_first(binary):
    allowed = [rule(table, 1, {"policy": 1, "protocol": 17, "destination_port": "53"}) for table in ("egress_rules", "ingress_rules")]
    with network(binary, *allowed) as switch:
        for number, port in ((1, 53), (2, 54)):
            packet = IP(bytes(udp(*FORTH, (1000, port), bytes(3000), id=number)[IP]))
            parts = [whole(Ether(src=mac(1), dst=mac(2)) / part) for part in fragment(packet, 1000)]
            assert len(parts) > 2
            six = IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrFragment(id=number) / udp(*FORTH6, (1000, port), bytes(3000))[IPv6].payload
            parts6 = [whole(Ether(src=mac(1), dst=mac(2)) / part) for part in fragment6(IPv6(bytes(six)), 1280)]
            assert len(parts6) > 2
            for pieces in (parts, parts6):
                # Later ones alone are nobody's.
                switch.dropped("vm1", pieces[1], "connection_invalid")
                for piece in pieces:
                    if port == 53:
                        switch.passes("vm1", piece, "vm2")
                    else:
                        switch.dropped("vm1", piece, "acl_denied" if piece is pieces[0] else "connection_invalid")


def test_rules_name_peers_by_prefix_and_group(binary):
    entries = (
        rule("egress_rules", 1, {"policy": 1}),
        rule("ingress_rules", 10, {"policy": 1, "source": "10.0.0.0/25", "protocol": 17, "destination_port": "1000..1999"}),
        rule("ingress_rules", 20, {"policy": 1, "source": "10.0.0.0/25", "protocol": 17, "destination_port": "1500"}, "deny"),
        rule("ingress_rules", 5, {"policy": 1, "source_groups": "4&4"}),
    )
    with network(binary, *entries) as switch:
        for port, passes in ((999, False), (1000, True), (1500, False), (1999, True), (2000, False)):
            frame = udp(*FORTH, (7, port))
            if passes:
                switch.passes("vm1", frame, "vm2")
            else:
                switch.dropped("vm1", frame, "acl_denied")
        for forth, table, address in ((FORTH, "groups4", "10.0.0.1"), (FORTH6, "groups6", "fd00::/127")):
            frame = udp(*forth, (7, 2000))
            switch.dropped("vm1", frame, "acl_denied")
            switch.batch(insert(table, {"vrf": 1, "address": address}, "member", {"groups": 6}))
            switch.passes("vm1", frame, "vm2")
            switch.batch(delete(table, {"vrf": 1, "address": address}))
            switch.dropped("vm1", frame, "acl_denied")


def test_a_rejected_frame_s_sender_is_told(binary):
    entries = with_lists(rule("acl_in", 10, {"port": "vm1", "protocol": 6}, "reject"))
    with serving(binary, *entries) as switch:
        frame = tcp(*FORTH, (1, 2), "S")
        switch.send("vm1", frame)
        told = switch.receive("vm1")
        verify(told)
        assert (told.src, told.dst) == (mac(0xF1), mac(1)), f"{told!r}"
        assert (told[IP].src, told[IP].dst, told[ICMP].type, told[ICMP].code) == ("10.0.0.254", "10.0.0.1", 3, 13), f"{told!r}"
        assert bytes(told[ICMP].payload) == bytes(frame[IP]), f"{told!r}"
        switch.quiet()
