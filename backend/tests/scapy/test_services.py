"""DHCP and router advertisements, as scapy speaks them."""

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import (
    DHCP6_Advertise,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptDNSServers,
    DHCP6OptElapsedTime,
    DHCP6OptIA_NA,
    DHCP6OptIAAddress,
    DHCP6OptOptReq,
    DHCP6OptServerId,
    DUID_LL,
)
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether

from frames import BROADCAST, mac, verify, whole
from network import OPEN, network, services

DHCP4 = {"pool": {"first": "10.0.0.100", "last": "10.0.0.109"}, "router": "10.0.0.254", "dns": ["10.0.0.53"], "lease_s": 600}
DHCP6 = {"pool": {"first": "fd00::100", "last": "fd00::1ff"}, "dns": ["fd00::53"], "lease_s": 600}
RA = {"interval_s": 1800, "lifetime_s": 1800, "managed": True, "other": True, "dns": ["fd00::53"]}


def serving(binary):
    switch = network(binary, *OPEN)
    try:
        config = services()
        config["interfaces"][0].update(dhcp4=DHCP4, dhcp6=DHCP6)
        switch.ask("PUT", "/v1/services", config)
        return switch
    except BaseException:
        switch.close()
        raise


def next_with(switch, port, layer):
    """The next frame of a kind; the routers announce themselves in between."""
    while True:
        came = switch.receive(port)
        if layer in came:
            verify(came)
            return came
        assert ARP in came or IPv6 in came, f"{came!r}"


def emptied(switch):
    for station in switch.stations.values():
        while station.take(0):
            pass


def discover(kind, *options, last=1, xid=0x1234):
    hardware = bytes.fromhex(mac(last).replace(":", ""))
    message = BOOTP(chaddr=hardware + bytes(10), xid=xid, flags=0) / DHCP(options=[("message-type", kind), *options, "end"])
    return whole(Ether(src=mac(last), dst=BROADCAST) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / message)


def options_of(frame):
    return {option[0]: option[1:] for option in frame[DHCP].options if isinstance(option, tuple)}


def test_dhcp4_lends_an_address_and_keeps_to_it(binary):
    with serving(binary) as switch:
        switch.send("vm1", discover("discover", ("param_req_list", [1, 3, 6, 51])))
        offer = next_with(switch, "vm1", DHCP)
        told = options_of(offer)
        assert told["message-type"] == (2,) and told["server_id"] == ("10.0.0.254",), f"{told}"
        assert (told["subnet_mask"], told["router"], told["name_server"]) == (("255.255.255.0",), ("10.0.0.254",), ("10.0.0.53",)), f"{told}"
        assert told["lease_time"] == (600,) and offer[BOOTP].xid == 0x1234 and offer[BOOTP].op == 2, f"{offer!r}"
        address = offer[BOOTP].yiaddr
        assert address in [f"10.0.0.{last}" for last in range(100, 110)], address
        assert (offer.src, offer[IP].src, offer[UDP].sport, offer[UDP].dport) == (mac(0xF1), "10.0.0.254", 67, 68), f"{offer!r}"
        for _ in range(2):
            switch.send("vm1", discover("request", ("requested_addr", address), ("server_id", "10.0.0.254")))
            ack = next_with(switch, "vm1", DHCP)
            assert options_of(ack)["message-type"] == (5,) and ack[BOOTP].yiaddr == address, f"{ack!r}"
        leases = switch.ask("GET", "/v1/services/leases")["dhcp4"]
        assert [(lease["address"], lease["mac"], lease["port"]) for lease in leases] == [(address, mac(1), "vm1")], f"{leases}"
        # Another client gets another, and an address of elsewhere is refused.
        switch.send("vm2", discover("discover", last=2))
        assert next_with(switch, "vm2", DHCP)[BOOTP].yiaddr != address
        switch.send("vm2", discover("request", ("requested_addr", "10.77.0.1"), last=2))
        assert options_of(next_with(switch, "vm2", DHCP))["message-type"] == (6,)
        emptied(switch)


def test_dhcp6_lends_an_address(binary):
    with serving(binary) as switch:
        client = DHCP6OptClientId(duid=DUID_LL(lladdr=mac(1)))

        def ask(*message):
            frame = Ether(src=mac(1), dst="33:33:00:01:00:02") / IPv6(src="fe80::1", dst="ff02::1:2") / UDP(sport=546, dport=547)
            for part in message:
                frame = frame / part
            switch.send("vm1", whole(frame))

        ask(DHCP6_Solicit(trid=7), client, DHCP6OptElapsedTime(), DHCP6OptOptReq(reqopts=[23]), DHCP6OptIA_NA(iaid=5, T1=0, T2=0))
        offer = next_with(switch, "vm1", DHCP6_Advertise)
        assert offer[DHCP6_Advertise].trid == 7 and offer[IPv6].dst == "fe80::1" and offer.src == mac(0xF1), f"{offer!r}"
        address = offer[DHCP6OptIA_NA].ianaopts[0]
        assert address.addr.startswith("fd00::1") and address.validlft == 600, f"{offer!r}"
        assert offer[DHCP6OptDNSServers].dnsservers == ["fd00::53"] and offer[DHCP6OptIA_NA].iaid == 5, f"{offer!r}"
        wanted = DHCP6OptIA_NA(iaid=5, T1=0, T2=0, ianaopts=[DHCP6OptIAAddress(addr=address.addr)])
        server = DHCP6OptServerId(duid=offer[DHCP6OptServerId].duid)
        ask(DHCP6_Request(trid=8), client, server, DHCP6OptElapsedTime(), wanted)
        reply = next_with(switch, "vm1", DHCP6_Reply)
        assert reply[DHCP6_Reply].trid == 8 and reply[DHCP6OptIA_NA].ianaopts[0].addr == address.addr, f"{reply!r}"
        emptied(switch)


def test_a_router_advertises_itself_when_asked(binary):
    with serving(binary) as switch:
        emptied(switch)
        config = services()
        config["interfaces"][0].update(ra=RA)
        switch.ask("PUT", "/v1/services", config)
        asked = Ether(src=mac(1), dst="33:33:00:00:00:02") / IPv6(src="fe80::1", dst="ff02::2", hlim=255) / ICMPv6ND_RS()
        switch.send("vm1", whole(asked / ICMPv6NDOptSrcLLAddr(lladdr=mac(1))))
        while True:
            told = next_with(switch, "vm1", ICMPv6ND_RA)
            if told.dst == mac(1):
                break  # else: unasked
        assert (told.src, told[IPv6].src, told[IPv6].dst, told[IPv6].hlim) == (mac(0xF1), "fe80::ff:fe00:f1", "fe80::1", 255), f"{told!r}"
        said = told[ICMPv6ND_RA]
        assert (said.M, said.O, said.routerlifetime, said.chlim) == (1, 1, 1800, 64), f"{told!r}"
        prefix = told[ICMPv6NDOptPrefixInfo]
        assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("fd00::", 64, 1, 1), f"{told!r}"
        assert told[ICMPv6NDOptSrcLLAddr].lladdr == mac(0xF1) and told[ICMPv6NDOptRDNSS].dns == ["fd00::53"], f"{told!r}"
        assert ICMPv6NDOptMTU not in told or told[ICMPv6NDOptMTU].mtu == 1500
        emptied(switch)
