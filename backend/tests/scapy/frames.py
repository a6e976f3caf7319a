"""Frames, made and checked by scapy."""

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

BROADCAST = "ff:ff:ff:ff:ff:ff"


def mac(last):
    """The MAC address that ends in this byte."""
    return f"02:00:00:00:00:{last:02x}"


def whole(frame):
    """The frame with everything that scapy fills in, as it reads it back."""
    return Ether(bytes(frame))


def internet(source, destination, **fields):
    """An IP header of the addresses' family. `ttl` is the hop limit, too."""
    if ":" not in source:
        return IP(src=source, dst=destination, **fields)
    if "ttl" in fields:
        fields["hlim"] = fields.pop("ttl")
    return IPv6(src=source, dst=destination, **fields)


def ether(macs, payload):
    return whole(Ether(src=mac(macs[0]), dst=mac(macs[1])) / payload)


def udp(macs, source, destination, ports=(1000, 53), data=b"data", **fields):
    header = internet(source, destination, **fields)
    return ether(macs, header / UDP(sport=ports[0], dport=ports[1]) / Raw(data))


def tcp(macs, source, destination, ports, flags, numbers=(1, 0), data=b""):
    segment = TCP(sport=ports[0], dport=ports[1], flags=flags, seq=numbers[0], ack=numbers[1])
    segment.window = 8192
    packet = internet(source, destination) / segment
    return ether(macs, packet / Raw(data) if data else packet)


def echo(macs, source, destination, identifier=7, reply=False, data=b"data", **fields):
    if ":" in source:
        kind = ICMPv6EchoReply if reply else ICMPv6EchoRequest
        message = kind(id=identifier, seq=1, data=data)
    else:
        message = ICMP(type=0 if reply else 8, id=identifier, seq=1) / Raw(data)
    return ether(macs, internet(source, destination, **fields) / message)


def arp(macs, operation, sender, target, sender_mac=None):
    return whole(
        Ether(src=mac(macs[0]), dst=BROADCAST if macs[1] is None else mac(macs[1]))
        / ARP(
            op=operation,
            hwsrc=sender_mac or mac(macs[0]),
            psrc=sender,
            hwdst="00:00:00:00:00:00" if macs[1] is None else mac(macs[1]),
            pdst=target,
        )
    )


def error_about(macs, source, packet, kind):
    """An ICMP error of this type and code, that quotes the packet of a frame to its sender."""
    quoted = packet.getlayer(IP) or packet.getlayer(IPv6)
    if isinstance(quoted, IPv6):
        of_type = {1: ICMPv6DestUnreach, 2: ICMPv6PacketTooBig, 3: ICMPv6TimeExceeded}
        message = of_type[kind[0]](code=kind[1])
    else:
        message = ICMP(type=kind[0], code=kind[1])
    return ether(macs, internet(source, quoted.src) / message / Raw(bytes(quoted)))


def rebuilt(frame):
    """The frame with every length and checksum made anew by scapy. Quotes of ICMP errors keep their inner ones but the header's."""
    frame = whole(frame)
    fragment = (IP in frame and (frame[IP].flags.MF or frame[IP].frag)) or IPv6ExtHdrFragment in frame
    layer = frame
    quoted = False
    while layer:
        quoted = quoted or isinstance(layer, IPerror) or layer.name.endswith("in ICMPv6")
        if isinstance(layer, IP):
            del layer.chksum
            if not quoted:
                del layer.len
        elif isinstance(layer, IPv6):
            if not quoted:
                del layer.plen
        elif not quoted and not fragment:
            for field in ("chksum", "cksum", "len"):
                if isinstance(layer, (TCP, UDP, ICMP)) or layer.name.startswith("ICMPv6"):
                    if field in layer.fields and not (layer.name.startswith("ICMPv6") and field == "len"):
                        layer.delfieldval(field)
        layer = layer.payload
    return whole(frame)


def verify(frame):
    """Lengths and checksums are those that scapy comes to."""
    expected = rebuilt(frame)
    assert bytes(frame) == bytes(expected), f"{whole(frame)!r}\nshould be\n{expected!r}"


def changed(frame, **fields):
    """The same frame with other fields: `src_mac`, `dst_mac`, `src`, `dst`, `sport`, `dport`, `ttl`, `dscp`, `id`."""
    frame = whole(frame)
    packet = frame.getlayer(IP) or frame.getlayer(IPv6)
    six = isinstance(packet, IPv6)
    for name, value in fields.items():
        if name in ("src_mac", "dst_mac"):
            setattr(frame, name[:3], value)
        elif name in ("src", "dst"):
            setattr(packet, name, value)
        elif name == "ttl":
            setattr(packet, "hlim" if six else "ttl", value)
        elif name == "dscp":
            octet = "tc" if six else "tos"
            setattr(packet, octet, value << 2 | getattr(packet, octet) & 3)
        else:
            setattr(packet.payload, name, value)
    return rebuilt(frame)


def routed(frame, macs, **fields):
    """The frame as a router sends it on."""
    packet = frame.getlayer(IP) or frame.getlayer(IPv6)
    ttl = packet.hlim if isinstance(packet, IPv6) else packet.ttl
    fields.setdefault("ttl", ttl - 1)
    return changed(frame, src_mac=mac(macs[0]), dst_mac=mac(macs[1]), **fields)


def tagged(frame, *tags):
    """The frame behind VLAN tags (vid, priority[, TPID]), the outermost first."""
    frame = whole(frame)
    kind, inner = frame.type, frame.payload
    kinds = [tag[2] if len(tag) > 2 else 0x8100 for tag in tags] + [kind]
    stack = None
    for index, tag in enumerate(tags):
        layer = Dot1Q(vlan=tag[0], prio=tag[1], type=kinds[index + 1])
        stack = layer if stack is None else stack / layer
    return whole(Ether(src=frame.src, dst=frame.dst, type=kinds[0]) / stack / inner)
