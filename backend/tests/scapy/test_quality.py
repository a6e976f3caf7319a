"""Rates, marks and mirrors."""

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from frames import arp, changed, mac, tagged, udp, verify
from network import OPEN, delete, insert, modify, network, rule

FORTH = ((1, 2), "10.0.0.1", "10.0.0.2")
#: So slow that nothing is added while a test runs.
RATE = {"frames_per_second": 1, "burst_frames": 10}


def number_of(switch, port):
    return switch.ask("GET", f"/v1/ports/{port}")["id"]


def metered(switch, port, frame, to, reason, sent=30):
    """How many of these frames come; the others are dropped for this reason."""
    before, counted = switch.drops(port).get(reason, 0), 0
    for _ in range(sent):
        switch.send(port, frame)
    while counted < sent:
        taken = switch.stations[to].take(0.01)
        if taken is None:
            if counted + switch.drops(port).get(reason, 0) - before >= sent:
                break
            continue
        assert taken[1] == bytes(frame)
        counted += 1
    switch.await_that("all were counted", lambda: counted + switch.drops(port).get(reason, 0) - before == sent)
    switch.quiet()
    return counted


def test_rates_of_ports_and_entries(binary):
    limited = rule("ingress_rules", 9, {"policy": 1, "protocol": 17, "destination_port": "54"}, "allow_limited", {"meter": 5})
    with network(binary, *OPEN, limited) as switch:
        frame = udp(*FORTH)
        for array, port in (("port_in", "vm1"), ("port_out", "vm2")):
            index = number_of(switch, port)
            assert metered(switch, "vm1", frame, "vm2", "rate_exceeded") == 30
            switch.batch({"set_meter": {"meter": array, "index": index, "rate": RATE}})
            assert metered(switch, "vm1", frame, "vm2", "rate_exceeded") in (10, 11, 12)
            switch.batch({"set_meter": {"meter": array, "index": index}})
            assert metered(switch, "vm1", frame, "vm2", "rate_exceeded") == 30
        # Bytes are those of the whole frame.
        long = udp(*FORTH, (1000, 53), bytes(958))
        assert len(long) == 1000
        rate = {"bytes_per_second": 1000, "burst_bytes": 7000}
        switch.batch({"set_meter": {"meter": "port_in", "index": number_of(switch, "vm1"), "rate": rate}})
        assert metered(switch, "vm1", long, "vm2", "rate_exceeded") in (7, 8, 9)
        switch.batch({"set_meter": {"meter": "port_in", "index": number_of(switch, "vm1")}})
        switch.cli("meter", "list")
        # An entry's rate is about what it allows alone.
        switch.batch({"set_meter": {"meter": "rules", "index": 5, "rate": RATE}})
        assert metered(switch, "vm1", udp(*FORTH, (1000, 54)), "vm2", "rate_exceeded") in (10, 11, 12)
        assert metered(switch, "vm1", frame, "vm2", "rate_exceeded") == 30


def test_storms_are_limited_and_nothing_else(binary):
    with network(binary, *OPEN) as switch:
        switch.batch({"set_meter": {"meter": "broadcast_in", "index": number_of(switch, "vm1"), "rate": RATE}})
        request = arp((1, None), 1, "10.0.0.1", "10.0.0.77")
        assert metered(switch, "vm1", request, "vm2", "storm_control") in (10, 11, 12)
        assert metered(switch, "vm1", udp(*FORTH), "vm2", "storm_control") == 30
        assert metered(switch, "vm2", arp((2, None), 1, "10.0.0.2", "10.0.0.77"), "vm1", "storm_control") == 30


def with_features(port, features):
    return modify("ports", {"port": port}, "custom", {"domain": 10, "policy": 1, "features": features})


def test_ports_and_matching_frames_are_mirrored_as_they_came(binary):
    entries = [
        with_features("vm1", 5),
        with_features("vm2", 5),
        insert("mirrors_in", {"port": "vm1"}, "mirror_to", {"port": "spare"}),
        insert("mirrors_out", {"port": "vm2"}, "mirror_to", {"port": "vm5"}),
    ]
    with network(binary, *OPEN, *entries) as switch:
        frame = udp(*FORTH)
        for _ in range(3):
            switch.becomes("vm1", frame, {"vm2": frame, "spare": frame, "vm5": frame})
        back = udp((2, 1), "10.0.0.2", "10.0.0.1", (53, 1000))
        switch.passes("vm2", back, "vm1")
        # What is dropped was still seen, and what is routed is seen as it came.
        switch.batch(delete("egress_rules", {"policy": 1}, priority=1))
        denied = udp(*FORTH, (1000, 99))
        switch.becomes("vm1", denied, {"spare": denied}, explained=False)
        assert switch.drops("vm1") == {"acl_denied": 1}
        switch.batch(rule("egress_rules", 1, {"policy": 1}))
        routed_ = udp((1, 0xF1), "10.0.0.1", "10.0.1.3")
        expected = changed(routed_, src_mac=mac(0xF2), dst_mac=mac(3), ttl=63)
        switch.becomes("vm1", routed_, {"vm3": expected, "spare": routed_})
        # By a rule.
        switch.batch(
            delete("mirrors_in", {"port": "vm1"}),
            rule("ingress_rules", 9, {"policy": 1, "protocol": 17, "destination_port": "60"}, "allow_mirrored", {"port": "spare"}),
        )
        chosen = udp(*FORTH, (1, 60))
        switch.becomes("vm1", chosen, {"vm2": chosen, "spare": chosen, "vm5": chosen})
        other = udp(*FORTH, (1, 61))
        switch.becomes("vm1", other, {"vm2": other, "vm5": other})


def test_priorities_become_classes_and_classes_priorities(binary):
    entries = [
        insert("ports", {"port": "spare"}, "trunk", {"features": 16}),
        insert("subports", {"port": "spare", "vid": 100}, "subport", {"domain": 10, "policy": 0}),
        insert("tags_out", {"port": "spare", "domain": 10}, "tag", {"vid": 100, "policy": 0}),
        insert("stations", {"domain": 10, "mac": mac(8)}, "station", {"port": "spare"}),
        insert("priorities_in", {"port": "spare", "pcp": 5}, "priority", {"dscp": 46}),
        insert("dscp_out4", {"port": "spare", "dscp": 46}, "remark", {"dscp": 34, "pcp": 6}),
        insert("dscp_out6", {"port": "spare", "dscp": 0}, "remark", {"dscp": 8, "pcp": 1}),
    ]
    with network(binary, *OPEN, *entries) as switch:
        for source, target in (("10.0.0.8", "10.0.0.2"), ("fd00::8", "fd00::2")):
            inward = udp((8, 2), source, target)
            switch.passes("spare", tagged(inward, (100, 5)), "vm2", changed(inward, dscp=46))
            switch.passes("spare", tagged(inward, (100, 4)), "vm2", inward)
        outward = udp((2, 8), "10.0.0.2", "10.0.0.8")
        switch.passes("vm2", outward, "spare", tagged(outward, (100, 0)))
        urgent = changed(outward, dscp=46)
        # The bits for congestion stay.
        urgent[IP].tos |= 1
        urgent = changed(urgent)
        switch.passes("vm2", urgent, "spare", tagged(changed(urgent, dscp=34), (100, 6)))
        outward = udp((2, 8), "fd00::2", "fd00::8")
        marked = tagged(changed(outward, dscp=8), (100, 1))
        verify(marked)
        assert marked[IPv6].tc == 32
        switch.passes("vm2", outward, "spare", marked)


def test_access_lists_mark_and_limit(binary):
    entries = [
        modify("ports", {"port": "vm1"}, "custom", {"domain": 10, "policy": 0, "features": 3}),
        modify("ports", {"port": "vm2"}, "attach", {"domain": 10}),
        rule("acl_in", 9, {"protocol": 17, "ether_type": "0x0800"}, "allow_marked4", {"dscp": 10}),
        rule("acl_in", 9, {"protocol": 17, "ether_type": "0x86dd"}, "allow_marked6", {"dscp": 12}),
    ]
    with network(binary, *entries) as switch:
        frame = udp(*FORTH)
        switch.passes("vm1", frame, "vm2", changed(frame, dscp=10))
        frame = udp((1, 2), "fd00::1", "fd00::2")
        switch.passes("vm1", frame, "vm2", changed(frame, dscp=12))
