//! What the switch answers by itself, as guests see it: ARP, ping, next hops that are looked for, DHCP, ICMP errors. The programs are
//! `router.json`, which is made for this, and `vpc`. Frames are made and read by etherparse, and by hand where it has nothing.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use etherparse::{
    Icmpv4Slice, Icmpv4Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, icmpv4,
};
use guest_sim::bench::daemon::PortArgument;
use guest_sim::frame::{MacAddr, checksum};
use guest_sim::{Frame, Nic};
use serde_json::{Value, json};
use vmm_sys_util::tempdir::TempDir;

use crate::rig::{Switch, WITHIN, arrival, guest_options, mac, verify_quiet};

const ROUTER_1: MacAddr = [2, 0, 0, 0, 0, 0xf1];
const ROUTER_2: MacAddr = [2, 0, 0, 0, 0, 0xf2];
const BROADCAST: MacAddr = [0xff; 6];
const VM1: [u8; 4] = [10, 0, 0, 2];
const VM2: [u8; 4] = [10, 0, 1, 2];

fn configuration() -> Value {
    json!({"interfaces": [
        {
            "id": 1, "domain": 10, "mac": "02:00:00:00:00:f1", "addresses": ["10.0.0.1/24"], "mtu": 9216,
            "dhcp4": {"pool": {"first": "10.0.0.100", "last": "10.0.0.199"}, "router": "10.0.0.1", "dns": ["10.0.0.53"], "lease_s": 600}
        },
        {"id": 2, "domain": 20, "mac": "02:00:00:00:00:f2", "addresses": ["10.0.1.1/24"], "mtu": 1500}
    ]})
}

/// A router with vm1 in one network, and three ports in the other: vm2, vm3 which wants a tag, and vm4, a trunk without that network.
struct Lab {
    switch: Switch,
    folder: TempDir,
}

impl Lab {
    fn new() -> Self {
        Self::of(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/end_to_end/router.json"
        ))
    }

    fn of(program: &str) -> Self {
        Self::kept(program, true)
    }

    /// With tables that outlive a restart, or not.
    fn kept(program: &str, durable: bool) -> Self {
        let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-services-"));
        let folder = folder.unwrap();
        let state = folder.as_path().join("state");
        let ports = ["vm1", "vm2", "vm3", "vm4"].map(PortArgument::named);
        let arguments = ["--program", program, "--state-dir", state.to_str().unwrap()];
        let arguments = if durable {
            &arguments[..]
        } else {
            &arguments[..2]
        };
        let switch = Switch::new(&ports, arguments);
        let lab = Self { switch, folder };
        lab.set(&configuration());
        lab.switch.command(&["multicast", "set", "10", "vm1"]);
        lab.switch
            .command(&["multicast", "set", "2000", "vm2", "vm3", "vm4"]);
        lab
    }

    /// The same network in the tables of `vpc`.
    fn vpc(program: &str) -> Self {
        let lab = Self::of(program);
        lab.fill_vpc();
        lab
    }

    fn socket(&self, port: &str) -> String {
        self.folder
            .as_path()
            .join(port)
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn fill_vpc(&self) {
        let lab = self;
        let updates: Vec<Value> = [
            ("ports", json!({"port": "vm1"}), "attach", json!({"domain": 10})),
            ("ports", json!({"port": "vm2"}), "attach", json!({"domain": 20})),
            ("ports", json!({"port": "vm3"}), "trunk", json!({"features": 0})),
            ("ports", json!({"port": "vm4"}), "trunk", json!({"features": 0})),
            ("tags_out", json!({"port": "vm3", "domain": 20}), "tag", json!({"vid": 77, "policy": 0})),
            ("domains", json!({"domain": 10}), "describe", json!({"vrf": 1, "zone": 0, "flood": 10, "options": 0})),
            ("domains", json!({"domain": 20}), "describe", json!({"vrf": 1, "zone": 0, "flood": 2000, "options": 0})),
            ("interfaces", json!({"interface": 1}), "interface", json!({"domain": 10, "mac": "02:00:00:00:00:f1", "mtu": 9216, "translates": 0})),
            ("interfaces", json!({"interface": 2}), "interface", json!({"domain": 20, "mac": "02:00:00:00:00:f2", "mtu": 1500, "translates": 0})),
            ("router_macs", json!({"domain": 10, "mac": "02:00:00:00:00:f1"}), "enter", json!({"interface": 1})),
            ("router_macs", json!({"domain": 20, "mac": "02:00:00:00:00:f2"}), "enter", json!({"interface": 2})),
            ("answered", json!({"domain": 10, "address": "10.0.0.1"}), "answer", json!({"interface": 1})),
            ("answered", json!({"domain": 20, "address": "10.0.1.1"}), "answer", json!({"interface": 2})),
            ("services", json!({"domain": 10, "protocol": 17, "destination_port": 67}), "dhcp4", json!({"interface": 1})),
            ("routes4", json!({"vrf": 1, "destination": "10.0.0.1/32"}), "local", json!({})),
            ("routes4", json!({"vrf": 1, "destination": "10.0.1.1/32"}), "local", json!({})),
            ("routes4", json!({"vrf": 1, "destination": "10.0.0.0/24"}), "direct", json!({"interface": 1})),
            ("routes4", json!({"vrf": 1, "destination": "10.0.1.0/24"}), "direct", json!({"interface": 2})),
        ]
        .into_iter()
        .map(|(table, key, action, params)| {
            json!({"insert": {"table": table, "key": key, "action": action, "params": params}})
        })
        .collect();
        let file = lab.folder.as_path().join("batch.json");
        std::fs::write(&file, json!({"updates": updates}).to_string()).unwrap();
        lab.switch
            .command(&["table", "batch", file.to_str().unwrap()]);
    }

    fn file(&self) -> PathBuf {
        self.folder.as_path().join("services.json")
    }

    fn set(&self, config: &Value) -> String {
        std::fs::write(self.file(), config.to_string()).unwrap();
        let file = self.file();
        self.switch
            .command(&["services", "set", file.to_str().unwrap()])
    }

    fn ask(&self, what: &str) -> Value {
        let text = self.switch.command(&["services", what, "--json"]);
        serde_json::from_str(&text).unwrap()
    }

    fn guest(&self, port: &str) -> Nic {
        self.switch.guest(port, guest_options())
    }
}

fn send(nic: &mut Nic, bytes: Vec<u8>) {
    nic.send(&Frame::plain(bytes))
        .unwrap_or_else(|fault| panic!("{fault}"));
}

/// The next frame that is no announcement of a router's own address.
fn next(nic: &mut Nic) -> Vec<u8> {
    loop {
        let frame = arrival(nic);
        assert_eq!((frame.header.flags, frame.header.gso_type), (0, 0));
        let untagged = if frame.bytes[12..14] == [0x81, 0] {
            &frame.bytes[16..]
        } else {
            &frame.bytes[12..]
        };
        let announces = untagged[..2] == [8, 6] && untagged[16..20] == untagged[26..30];
        if !announces {
            return frame.bytes;
        }
    }
}

/// RFC 826, by hand.
fn arp(operation: u8, from: (MacAddr, [u8; 4]), to: (MacAddr, [u8; 4])) -> Vec<u8> {
    let destination = if operation == 1 { BROADCAST } else { to.0 };
    let target = if operation == 1 { [0; 6] } else { to.0 };
    [
        &destination[..],
        &from.0,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation],
        &from.0,
        &from.1,
        &target,
        &to.1,
    ]
    .concat()
}

/// The ARP packet of a frame, without what pads it.
fn arp_of(frame: &[u8]) -> &[u8] {
    assert_eq!(frame[12..14], [8, 6]);
    &frame[..42]
}

/// With Don't Fragment, which etherparse sets by itself.
fn udp(ttl: u8, number: u16, payload_bytes: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac(1), ROUTER_1)
        .ipv4(VM1, VM2, ttl)
        .udp(number, 9);
    let mut bytes = vec![];
    builder
        .write(&mut bytes, &vec![0x5a; payload_bytes])
        .unwrap();
    bytes
}

fn assert_ip_is_sound(frame: &[u8]) {
    let header = 14..14 + usize::from(frame[14] & 15) * 4;
    assert_eq!(checksum::finish(checksum::sum(&frame[header], 0)), 0);
}

/// The ICMP message of a frame, whose checksums are right.
fn icmp_of(frame: &[u8]) -> (Ipv4Addr, Ipv4Addr, Icmpv4Slice<'_>) {
    assert_ip_is_sound(frame);
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &packet.net else {
        panic!("{packet:?}")
    };
    let (from, to) = (ip.header().source_addr(), ip.header().destination_addr());
    let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else {
        panic!("{packet:?}")
    };
    let sum = checksum::sum(icmp.slice(), 0);
    assert_eq!(checksum::finish(sum), 0, "ICMP checksum");
    (from, to, icmp)
}

/// The router answers ARP, and pings of 1 to 9,000 bytes.
fn ask_the_router(vm1: &mut Nic) {
    send(vm1, arp(1, (mac(1), VM1), (BROADCAST, [10, 0, 0, 1])));
    let answer = next(vm1);
    let expected = arp(2, (ROUTER_1, [10, 0, 0, 1]), (mac(1), VM1));
    assert_eq!(arp_of(&answer), expected);
    for (payload_bytes, target) in [
        (1, [10, 0, 0, 1]),
        (56, [10, 0, 1, 1]),
        (9000, [10, 0, 0, 1]),
    ] {
        let payload: Vec<u8> = (0..payload_bytes).map(|at: u32| (at % 251) as u8).collect();
        let mut ping = vec![];
        PacketBuilder::ethernet2(mac(1), ROUTER_1)
            .ipv4(VM1, target, 64)
            .icmpv4_echo_request(7, payload_bytes as u16)
            .write(&mut ping, &payload)
            .unwrap();
        send(vm1, ping);
        let answer = next(vm1);
        assert_eq!((&answer[..6], &answer[6..12]), (&mac(1)[..], &ROUTER_1[..]));
        let (from, to, icmp) = icmp_of(&answer);
        assert_eq!((from.octets(), to.octets()), (target, VM1));
        let header = match icmp.icmp_type() {
            Icmpv4Type::EchoReply(header) => header,
            other => panic!("{other:?}"),
        };
        assert_eq!((header.id, header.seq), (7, payload_bytes as u16));
        assert_eq!(icmp.payload(), payload);
    }
}

#[test]
fn the_router_answers_arp_and_ping_of_any_size() {
    let lab = Lab::new();
    let mut vm1 = lab.guest("vm1");
    ask_the_router(&mut vm1);
    // A stranger asks for another's address: nothing to answer or to learn, and the port's counter says so.
    let stranger = (mac(1), [10, 0, 0, 9]);
    send(&mut vm1, arp(1, stranger, (BROADCAST, [10, 0, 0, 77])));
    // Nor does anything know this program's own reason.
    let mut strange = [&ROUTER_1[..], &mac(1), &[0x88, 0xb5]].concat();
    strange.resize(60, 0);
    send(&mut vm1, strange);
    crate::rig::until("both to be refused", || {
        (lab.switch.drops("vm1", "service_refused") == 2).then_some(())
    });
    verify_quiet(&mut [&mut vm1]);
    let stats = lab.ask("stats");
    assert_eq!(stats["services"]["echo_replies"], 3, "{stats}");
    assert_eq!(stats["frames"]["unknown_reasons"], 1, "{stats}");
    assert_eq!(stats["drops"][0]["reason"], "service_not_for_router");
    let last = lab
        .switch
        .command(&["port", "show", "vm1", "--last-drops", "--json"]);
    assert!(last.contains("service_refused"), "{last}");
    lab.switch.finish();
}

/// Frames to vm2 wait until it says who it is, and then arrive once and in order.
fn wait_for_vm2(lab: &Lab, vm1: &mut Nic) {
    let mut vm2 = lab.guest("vm2");
    let mut vm3 = lab.guest("vm3");
    let mut vm4 = lab.guest("vm4");
    for number in 1..=5 {
        send(vm1, udp(64, number, 100));
    }
    let question = arp(1, (ROUTER_2, [10, 0, 1, 1]), (BROADCAST, VM2));
    let asked = next(&mut vm2);
    assert_eq!(arp_of(&asked), question);
    // Everybody in the domain is asked, as each wants frames.
    let asked = next(&mut vm3);
    assert_eq!(
        (&asked[..12], &asked[12..16]),
        (&question[..12], &[0x81, 0, 0, 77][..])
    );
    assert_eq!(asked[16..46], question[12..42]);
    send(&mut vm2, arp(2, (mac(2), VM2), (ROUTER_2, [10, 0, 1, 1])));
    for number in 1..=8 {
        if number > 5 {
            // Now the table has it.
            send(vm1, udp(64, number, 100));
        }
        let frame = next(&mut vm2);
        assert_eq!((&frame[..6], &frame[6..12]), (&mac(2)[..], &ROUTER_2[..]));
        assert_ip_is_sound(&frame);
        let mut expected = udp(63, number, 100);
        expected[..6].copy_from_slice(&mac(2));
        expected[6..12].copy_from_slice(&ROUTER_2);
        assert_eq!(frame, expected);
    }
    verify_quiet(&mut [vm1, &mut vm2, &mut vm3, &mut vm4]);
}

#[test]
fn frames_wait_for_a_next_hop_and_arrive_once_and_in_order() {
    let lab = Lab::new();
    let mut vm1 = lab.guest("vm1");
    wait_for_vm2(&lab, &mut vm1);
    let neighbors = lab.ask("neighbors");
    let expected = json!([{
        "interface": 2, "address": "10.0.1.2", "state": "known", "mac": "52:54:00:00:00:02", "port": "vm2", "queued_frames": 0
    }]);
    assert_eq!(neighbors["neighbors"], expected);
    let text = lab.switch.command(&["services", "neighbors"]);
    assert!(text.contains("10.0.1.2") && text.contains("vm2"), "{text}");
    let entries = lab
        .switch
        .command(&["table", "entries", "neighbors", "--json"]);
    assert!(entries.contains("\"vm2\""), "{entries}");
    let stats = lab.ask("stats");
    let frames = &stats["frames"];
    assert_eq!(frames["neighbors_installed"], 1, "{stats}");
    assert_eq!(frames["frames_given_back"], 5, "{stats}");
    // A port that goes takes its neighbours with it.
    lab.switch.command(&["port", "remove", "vm2"]);
    crate::rig::until("the neighbour to be forgotten", || {
        let entries = lab
            .switch
            .command(&["table", "count", "neighbors", "--json"]);
        entries.contains("\"entries\":0").then_some(())
    });
    lab.switch.finish();
}

#[test]
fn an_operators_neighbour_is_left_alone() {
    let lab = Lab::new();
    let mut vm1 = lab.guest("vm1");
    let mut vm2 = lab.guest("vm2");
    let (key, mac_2) = (
        "interface=2,address=10.0.1.2",
        "mac=02:aa:aa:aa:aa:aa,port=vm2",
    );
    lab.switch.command(&[
        "table",
        "add",
        "neighbors",
        key,
        "--action",
        "neighbor",
        mac_2,
    ]);
    // It asks for the router's address: it would be learned.
    send(&mut vm2, arp(1, (mac(2), VM2), (BROADCAST, [10, 0, 1, 1])));
    assert_eq!(
        arp_of(&next(&mut vm2)),
        arp(2, (ROUTER_2, [10, 0, 1, 1]), (mac(2), VM2))
    );
    send(&mut vm1, udp(64, 1, 20));
    assert_eq!(next(&mut vm2)[..6], [2, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa]);
    assert_eq!(lab.ask("stats")["frames"]["neighbors_left_alone"], 1);
    lab.switch.finish();
}

/// Who sends what cannot be routed is told why.
fn provoke_errors(vm1: &mut Nic) {
    let told = |vm1: &mut Nic, packet: Vec<u8>| {
        send(vm1, packet.clone());
        let answer = next(vm1);
        let (from, to, icmp) = icmp_of(&answer);
        assert_eq!((from.octets(), to.octets()), ([10, 0, 0, 1], VM1));
        let quoted = icmp.payload();
        assert_eq!(quoted, &packet[14..14 + quoted.len()]);
        assert!(quoted.len() >= 28);
        icmp.icmp_type()
    };
    assert_eq!(
        told(vm1, udp(1, 33434, 32)),
        Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit)
    );
    let header = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1500 };
    assert_eq!(
        told(vm1, udp(64, 1, 3000)),
        Icmpv4Type::DestinationUnreachable(header)
    );
    let mut elsewhere = vec![];
    PacketBuilder::ethernet2(mac(1), ROUTER_1)
        .ipv4(VM1, [192, 0, 2, 1], 64)
        .udp(1, 2)
        .write(&mut elsewhere, &[0; 32])
        .unwrap();
    assert_eq!(
        told(vm1, elsewhere),
        Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Network)
    );
    verify_quiet(&mut [vm1]);
}

#[test]
fn a_sender_is_told_why_its_packet_ended() {
    let lab = Lab::new();
    provoke_errors(&mut lab.guest("vm1"));
    lab.switch.finish();
}

/// A BOOTP message (RFC 951) with DHCP options (RFC 2132), by hand.
fn dhcp(kind: u8, more: &[u8]) -> Vec<u8> {
    let mut bootp = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef];
    bootp.resize(28, 0);
    bootp.extend(mac(1));
    bootp.resize(236, 0);
    bootp.extend([99, 130, 83, 99, 53, 1, kind]);
    bootp.extend(more);
    bootp.push(255);
    let mut bytes = vec![];
    PacketBuilder::ethernet2(mac(1), BROADCAST)
        .ipv4([0; 4], [255; 4], 64)
        .udp(68, 67)
        .write(&mut bytes, &bootp)
        .unwrap();
    bytes
}

/// The offered address and the value of an option, by number.
fn dhcp_answer(frame: &[u8]) -> ([u8; 4], impl Fn(u8) -> Vec<u8>) {
    assert_ip_is_sound(frame);
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        panic!("{packet:?}")
    };
    assert_eq!((udp.source_port(), udp.destination_port()), (67, 68));
    let bootp = udp.payload().to_vec();
    assert_eq!((bootp[0], &bootp[4..8]), (2, &[0xde, 0xad, 0xbe, 0xef][..]));
    let address = bootp[16..20].try_into().unwrap();
    let option = move |wanted: u8| {
        let mut at = 240;
        while bootp[at] != 255 {
            let value = at + 2..at + 2 + usize::from(bootp[at + 1]);
            if bootp[at] == wanted {
                return bootp[value].to_vec();
            }
            at = value.end;
        }
        panic!("no option {wanted}")
    };
    (address, option)
}

/// A client gets an address. Which, and what it chose it with.
fn get_an_address(lab: &Lab, vm1: &mut Nic) -> ([u8; 4], Vec<u8>) {
    send(vm1, dhcp(1, &[]));
    let offer = next(vm1);
    let (offered, option) = dhcp_answer(&offer);
    assert_eq!(option(53), [2]);
    assert_eq!(option(54), [10, 0, 0, 1]);
    assert!(offered[..3] == [10, 0, 0] && (100..=199).contains(&offered[3]));
    let choice = [&[50, 4][..], &offered, &[54, 4, 10, 0, 0, 1]].concat();
    send(vm1, dhcp(3, &choice));
    let acknowledged = next(vm1);
    let (address, option) = dhcp_answer(&acknowledged);
    assert_eq!((address, option(53)), (offered, vec![5]));
    assert_eq!(
        (option(1), option(3)),
        (vec![255, 255, 255, 0], vec![10, 0, 0, 1])
    );
    assert_eq!(
        (option(6), option(51)),
        (vec![10, 0, 0, 53], vec![0, 0, 2, 88])
    );
    let leases = lab.ask("leases");
    let lease = &leases["dhcp4"][0];
    assert_eq!(lease["address"], Ipv4Addr::from(offered).to_string());
    assert_eq!(
        (&lease["port"], &lease["mac"]),
        (&json!("vm1"), &json!("52:54:00:00:00:01"))
    );
    let left_ms = lease["expires_in_ms"].as_u64().unwrap();
    assert!((500_000..=600_000).contains(&left_ms), "{leases}");
    (offered, choice)
}

#[test]
fn a_guest_gets_an_address_by_dhcp_which_outlives_a_change_of_the_configuration() {
    let lab = Lab::new();
    let mut vm1 = lab.guest("vm1");
    let (offered, choice) = get_an_address(&lab, &mut vm1);
    let lease = Ipv4Addr::from(offered).to_string();
    let mut changed = configuration();
    changed["interfaces"][0]["dhcp4"]["dns"] = json!(["10.0.0.54"]);
    assert!(lab.set(&changed).contains("2 router interfaces"));
    assert_eq!(lab.ask("leases")["dhcp4"][0]["address"], lease);
    send(&mut vm1, dhcp(3, &choice));
    let renewed = next(&mut vm1);
    let (address, option) = dhcp_answer(&renewed);
    assert_eq!(
        (address, option(53), option(6)),
        (offered, vec![5], vec![10, 0, 0, 54])
    );
    lab.switch.finish();
}

#[test]
fn the_configuration_outlives_a_restart() {
    let mut lab = Lab::new();
    let before = lab.ask("show");
    assert_eq!(before["interfaces"].as_array().unwrap().len(), 2);
    assert!(lab.switch.daemon.terminate(WITHIN).unwrap().success());
    lab.switch.daemon.restart().unwrap();
    lab.switch.await_ready();
    assert_eq!(lab.ask("show"), before);
    let mut vm1 = lab.guest("vm1");
    send(&mut vm1, arp(1, (mac(1), VM1), (BROADCAST, [10, 0, 0, 1])));
    assert_eq!(
        arp_of(&next(&mut vm1)),
        arp(2, (ROUTER_1, [10, 0, 0, 1]), (mac(1), VM1))
    );
    lab.switch.finish();
}

#[test]
fn the_vpc_program_and_the_services_understand_each_other() {
    let program = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../switch-core/programs/vpc.json"
    );
    let program = std::fs::canonicalize(program).unwrap();
    let lab = Lab::vpc(program.to_str().unwrap());
    let mut vm1 = lab.guest("vm1");
    get_an_address(&lab, &mut vm1);
    ask_the_router(&mut vm1);
    wait_for_vm2(&lab, &mut vm1);
    provoke_errors(&mut vm1);
    lab.switch.finish();
}

/// What a router knows: its entries, the neighbours it found, its configuration.
fn router(lab: &Lab) -> Vec<Value> {
    let ask = |arguments: &[&str]| serde_json::from_str(&lab.switch.command(arguments)).unwrap();
    let entries: Vec<Value> = ["ports", "routes4", "interfaces", "answered"]
        .into_iter()
        .map(|table| {
            let listed: Value = ask(&["table", "entries", table, "--json"]);
            let entries = listed["entries"].as_array().unwrap().iter();
            let mut keys: Vec<String> = entries.map(|entry| entry["key"].to_string()).collect();
            keys.sort();
            json!(keys)
        })
        .collect();
    let rest = [
        ask(&["multicast", "list", "--json"]),
        ask(&["services", "show", "--json"]),
        ports(ask(&["port", "list", "--json"])),
    ];
    [entries, rest.to_vec()].concat()
}

/// Every port, its number, and where it comes from.
fn ports(listed: Value) -> Value {
    let ports = listed["ports"].as_array().unwrap().iter();
    ports
        .map(|port| json!([port["name"], port["id"], port["origin"]]))
        .collect()
}

/// The same router goes on in another process, whether or not its tables are durable, and may be changed there.
#[test]
fn tables_services_and_what_was_learned_outlive_an_upgrade() {
    let program = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../switch-core/programs/vpc.json"
    );
    let program = std::fs::canonicalize(program).unwrap();
    for durable in [true, false] {
        let mut lab = Lab::kept(program.to_str().unwrap(), durable);
        lab.fill_vpc();
        let mut vm1 = lab.guest("vm1");
        ask_the_router(&mut vm1);
        wait_for_vm2(&lab, &mut vm1);
        lab.switch.command(&[
            "port",
            "add",
            &format!("name=late,type=vhost-user,socket={}", lab.socket("late")),
        ]);
        let before = router(&lab);
        let drops = lab.switch.all_drops("vm1");
        for _ in 0..2 {
            lab.switch.upgrade(&[]);
            assert_eq!(router(&lab), before, "durable: {durable}");
        }
        assert_eq!(lab.switch.all_drops("vm1"), drops);
        ask_the_router(&mut vm1);
        // Neighbours are looked up again, so that they are looked after again.
        wait_for_vm2(&lab, &mut vm1);
        lab.switch.command(&["port", "remove", "late"]);
        lab.switch
            .command(&["multicast", "set", "10", "vm1", "vm2"]);
        if durable {
            let after = router(&lab);
            lab.switch.daemon.kill().unwrap();
            lab.switch.daemon.restart().unwrap();
            lab.switch.await_ready();
            assert_eq!(router(&lab), after);
        }
        lab.switch.finish();
    }
}
