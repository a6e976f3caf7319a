"""A protocol that no parser has heard of, from a JSON file alone."""

import os

from scapy.fields import BitField, ByteField, ShortField, ThreeBytesField, XStrLenField
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw, bind_layers

from frames import mac, udp, whole
from rig import Switch

PROGRAM = os.path.join(os.path.dirname(__file__), "../../../switch-core/programs/tunnel.json")


class Hop(Packet):
    """The made-up tunnel, as scapy sees it."""

    name = "Hop"
    fields_desc = [
        BitField("version", 1, 4),
        BitField("words", 2, 4),
        ByteField("next", 1),
        ShortField("flow", 0),
        ThreeBytesField("tenant", 0),
        ByteField("ttl", 16),
        XStrLenField("options", b"", length_from=lambda hop: hop.words * 4 - 8),
    ]


bind_layers(Ether, Hop, type=0x88B5)
bind_layers(Hop, Ether, next=1)


def lab(binary):
    switch = Switch(binary, ["net", "vm1", "vm2"], os.path.realpath(PROGRAM))
    switch.cli("table", "add", "tenants", "tenant=7", "--priority", "1", "--action", "leave_tunnel", "port=vm1,counter=7")
    switch.cli(
        *("table", "add", "tenants", f"tenant=7,station={mac(2)}", "--priority", "2"),
        *("--action", "leave_tunnel", "port=vm2,counter=7"),
    )
    switch.cli(
        *("table", "add", "tenants", "tenant=9", "--priority", "1"),
        *("--action", "relay", f"port=net,next_hop={mac(0x99)},flow=0xbeef"),
    )
    switch.cli(
        *("table", "add", "stations", f"station={mac(0x50)}"),
        *("--action", "enter_tunnel", f"port=net,local={mac(0xA1)},remote={mac(0xA2)},tenant=7"),
    )
    return switch


def test_frames_enter_and_leave_it(binary):
    with lab(binary) as switch:
        inner = udp((1, 0x50), "10.0.0.1", "10.0.0.2", data=b"inside")
        switch.passes("vm1", inner, "net", whole(Ether(src=mac(0xA1), dst=mac(0xA2), type=0x88B5) / Hop(tenant=7) / inner))
        for station, port in ((1, "vm1"), (2, "vm2")):
            inner = udp((0x50, station), "fd00::1", "fd00::2", data=bytes(200))
            for options in (b"", b"abcd" * 3):
                hop = Hop(tenant=7, words=2 + len(options) // 4, options=options)
                outer = whole(Ether(src=mac(0xA2), dst=mac(0xA1), type=0x88B5) / hop / inner)
                switch.passes("net", outer, port, inner)
        counters = switch.ask("GET", "/v1/counters/tenant_frames")["counters"]
        assert [(counter["index"], counter["frames"]) for counter in counters] == [(7, 4)], f"{counters}"
        entries = switch.ask("GET", "/v1/tables/tenants/entries")["entries"]
        counted = {entry["key"].get("station", "any"): entry["frames"] for entry in entries if entry["key"]["tenant"] in (7, "7")}
        assert counted == {"any": 2, mac(2): 2}, f"{entries}"


def test_it_is_edited_on_its_way_and_refused_where_it_is_wrong(binary):
    with lab(binary) as switch:
        inner = udp((0x50, 1), "10.0.0.2", "10.0.0.1")
        outer = Ether(src=mac(0xA2), dst=mac(0xA1), type=0x88B5)
        relayed = Ether(src=mac(0xA1), dst=mac(0x99), type=0x88B5)
        switch.passes(
            *("vm1", whole(outer / Hop(tenant=9, flow=3, ttl=5) / inner), "net"),
            whole(relayed / Hop(tenant=9, flow=0xBEEF, ttl=4) / inner),
        )
        switch.dropped("vm1", whole(outer / Hop(tenant=9, ttl=1) / inner), "no_destination")
        switch.dropped("vm1", whole(outer / Hop(tenant=8) / inner), "no_destination")
        # Another version is refused; a header shorter than its fields, or than its length, is none.
        switch.dropped("vm1", whole(outer / Hop(tenant=9, version=2) / inner), "parse_error")
        switch.dropped("vm1", whole(outer / Hop(tenant=9, words=1) / inner), "no_destination")
        switch.dropped("vm1", whole(outer / Raw(b"\x12\x01")), "no_destination")
