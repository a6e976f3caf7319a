"""The default program: a learning switch with VLANs."""

from scapy.layers.l2 import Ether
from scapy.packet import Raw

from frames import BROADCAST, arp, mac, tagged, tcp, udp, whole
from rig import Switch


def test_addresses_are_learned_and_unknown_ones_flooded(binary):
    with Switch(binary, ["vm1", "vm2", "vm3"]) as switch:
        request = arp((1, None), 1, "10.0.0.1", "10.0.0.2")
        switch.becomes("vm1", request, {"vm2": request, "vm3": request})
        unknown = udp((1, 2), "10.0.0.1", "10.0.0.2")
        switch.becomes("vm1", unknown, {"vm2": unknown, "vm3": unknown})
        for answer in (arp((2, 1), 2, "10.0.0.2", "10.0.0.1"), udp((2, 1), "fd00::2", "fd00::1")):
            switch.becomes("vm2", answer, {"vm1": answer})
        switch.becomes("vm1", unknown, {"vm2": unknown})
        learned = {entry["mac"]: entry["port"] for entry in switch.ask("GET", "/v1/fdb")["entries"]}
        assert learned == {mac(1): "vm1", mac(2): "vm2"}, f"{learned}"
        # A station that moved is found where it is.
        moved = arp((2, None), 1, "10.0.0.2", "10.0.0.2")
        switch.becomes("vm3", moved, {"vm1": moved, "vm2": moved})
        switch.becomes("vm1", unknown, {"vm3": unknown})
        assert mac(2) in switch.cli("fdb")


def test_what_no_bridge_relays_is_dropped(binary):
    with Switch(binary, ["vm1", "vm2"]) as switch:
        def frame(source, destination):
            return whole(Ether(src=source, dst=destination, type=0x88B6) / Raw(bytes(46)))

        switch.dropped("vm1", frame("03:00:00:00:00:01", BROADCAST), "source_multicast")
        switch.dropped("vm1", frame("00:00:00:00:00:00", BROADCAST), "source_zero")
        switch.dropped("vm1", frame(mac(1), "01:80:c2:00:00:0e"), "bridge_reserved")
        learning = frame(mac(2), BROADCAST)
        switch.becomes("vm2", learning, {"vm1": learning})
        switch.dropped("vm2", frame(mac(3), mac(2)), "same_port")
        drops = switch.cli("port", "show", "vm1", "--last-drops")
        for reason in ("source_multicast", "source_zero", "bridge_reserved"):
            assert reason in drops, drops


def vlans(binary):
    ports = {
        "a10": "vlan=access:10",
        "b10": "vlan=access:10",
        "c20": "vlan=access:20",
        "trunk": "vlan=trunk:10+20,native=10",
        "tagged": "vlan=trunk:10+20",
    }
    return Switch(binary, ports)


def test_vlans_are_apart_and_tags_are_those_of_each_port(binary):
    with vlans(binary) as switch:
        frame = arp((1, None), 1, "10.0.0.1", "10.0.0.2")
        copies = {"b10": frame, "trunk": frame, "tagged": tagged(frame, (10, 0))}
        switch.becomes("a10", frame, copies)
        copies = {"trunk": tagged(frame, (20, 0)), "tagged": tagged(frame, (20, 0))}
        switch.becomes("c20", frame, copies)
        # Untagged from the trunk is of its native VLAN; a priority stays in the tag.
        frame = tcp((5, 1), "10.0.0.5", "10.0.0.1", (1, 2), "S")
        switch.becomes("trunk", frame, {"a10": frame})
        frame = udp((6, 5), "fd00::6", "fd00::5")
        switch.becomes("tagged", tagged(frame, (10, 5)), {"trunk": frame})
        frame = udp((6, 5), "fd00::6", "fd00::5")
        copies = {"c20": frame, "trunk": tagged(frame, (20, 5))}
        switch.becomes("tagged", tagged(frame, (20, 5)), copies)


def test_vlans_that_a_port_has_not_are_dropped(binary):
    with vlans(binary) as switch:
        frame = udp((1, 2), "10.0.0.1", "10.0.0.2")
        switch.dropped("a10", tagged(frame, (10, 0)), "vlan_tag_on_access_port")
        switch.dropped("trunk", tagged(frame, (30, 0)), "vlan_not_allowed")
        switch.dropped("tagged", tagged(frame, (4095, 0)), "vlan_reserved")
        switch.dropped("tagged", frame, "no_native_vlan")


def test_stacked_tags_pass_as_payload(binary):
    with Switch(binary, ["vm1", "vm2"]) as switch:
        for outer in (0x8100, 0x88A8):
            for frame in (udp((1, 2), "10.0.0.1", "10.0.0.2"), tcp((1, 2), "fd00::1", "fd00::2", (1, 2), "S")):
                stacked = tagged(frame, (7, 3, outer), (9, 1))
                switch.becomes("vm1", stacked, {"vm2": stacked})


def test_stacked_tags_cross_trunks_and_hop_no_vlans(binary):
    ports = {"in": "vlan=trunk:10+20,native=10", "out": "vlan=trunk:10+20", "end": "vlan=access:20", "native": "vlan=trunk:20,native=10"}
    with Switch(binary, ports) as switch:
        frame = udp((1, 2), "10.0.0.1", "10.0.0.2")
        stacked = tagged(frame, (20, 3), (9, 1))
        copies = {"out": stacked, "end": tagged(frame, (9, 1)), "native": stacked}
        switch.becomes("in", stacked, copies)
        # The outer tag would go on the way out by a native VLAN, and the inner one choose.
        learning = udp((3, 2), "10.0.0.3", "10.0.0.2")
        switch.becomes("in", learning, {"out": tagged(learning, (10, 0)), "native": learning})
        hopping = tagged(udp((2, 3), "10.0.0.2", "10.0.0.3"), (10, 0), (20, 0))
        switch.dropped("out", hopping, "inner_tag_exposed")
