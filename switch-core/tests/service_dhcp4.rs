//! DHCPv4, with messages made and read by `dhcproto`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod service_lab;

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use etherparse::PacketBuilder;
use proptest::prelude::*;
use service_lab::*;
use switch_core::Millis;
use switch_core::service::{PuntReason, ServiceAction, ServiceDrop};

const SERVING: &str = r#", "dhcp4": {
    "pool": { "first": "10.0.0.100", "last": "10.0.0.103" },
    "reservations": [
        { "mac": "52:54:00:00:00:02", "address": "10.0.0.20", "hostname": "db-1" },
        { "mac": "52:54:00:00:00:03", "port": 3, "address": "10.0.0.30" },
        { "mac": "52:54:00:00:00:03", "address": "10.0.0.31" } ],
    "router": "10.0.0.1", "dns": ["10.0.0.53", "9.9.9.9"], "domain_name": "tenant.example",
    "ntp": ["10.0.0.123"], "lease_s": 600, "mtu": 1450,
    "routes": [ { "to": "10.9.0.0/16", "via": "10.0.0.2" }, { "to": "192.168.7.128/25", "via": "10.0.0.3" } ] }"#;

const ZERO: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn message(mac: [u8; 6], kind: MessageType) -> Message {
    let mut message = Message::default();
    message
        .set_xid(0xdead_beef)
        .set_chaddr(&mac)
        .opts_mut()
        .insert(DhcpOption::MessageType(kind));
    message
}

/// The message as a client without an address sends it.
fn frame(message: &Message) -> Vec<u8> {
    frame_between(message, ("0.0.0.0", "255.255.255.255"))
}

fn frame_between(message: &Message, (source, destination): (&str, &str)) -> Vec<u8> {
    let mac: [u8; 6] = message.chaddr()[..6].try_into().unwrap();
    raw(&message.to_vec().unwrap(), mac, (source, destination))
}

fn raw(payload: &[u8], mac: [u8; 6], (source, destination): (&str, &str)) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac, BROADCAST)
        .ipv4(v4(source).octets(), v4(destination).octets(), 64)
        .udp(68, 67);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

fn read(seen: &Seen) -> Message {
    assert_eq!(
        (seen.from, seen.source, seen.selector),
        (ROUTER, ip("10.0.0.1"), (67, 68))
    );
    assert!(seen.payload.len() >= 300 && seen.ip_bytes <= 576);
    let message = Message::decode(&mut Decoder::new(&seen.payload)).unwrap();
    assert_eq!(
        (message.opcode(), message.xid()),
        (Opcode::BootReply, 0xdead_beef)
    );
    assert_eq!(
        message.opts().get(OptionCode::ServerIdentifier),
        Some(&DhcpOption::ServerIdentifier(v4("10.0.0.1")))
    );
    message
}

fn ask(lab: &mut Lab, from: u16, message: &Message) -> (Seen, Message) {
    let seen = see(&lab.answer(from, PuntReason::Dhcp4, &frame(message)));
    let reply = read(&seen);
    (seen, reply)
}

fn kind(message: &Message) -> MessageType {
    message.opts().msg_type().unwrap()
}

fn discover(lab: &mut Lab, from: u16, mac: [u8; 6]) -> Ipv4Addr {
    let (_, offer) = ask(lab, from, &message(mac, MessageType::Discover));
    assert_eq!(kind(&offer), MessageType::Offer);
    offer.yiaddr()
}

fn request(mac: [u8; 6], address: Ipv4Addr, server: Option<&str>) -> Message {
    let mut request = message(mac, MessageType::Request);
    request
        .opts_mut()
        .insert(DhcpOption::RequestedIpAddress(address));
    if let Some(server) = server {
        request
            .opts_mut()
            .insert(DhcpOption::ServerIdentifier(v4(server)));
    }
    request
}

/// Gets the client an address, as it would.
fn bind(lab: &mut Lab, from: u16, mac: [u8; 6]) -> Ipv4Addr {
    let address = discover(lab, from, mac);
    let (_, ack) = ask(lab, from, &request(mac, address, Some("10.0.0.1")));
    assert_eq!((kind(&ack), ack.yiaddr()), (MessageType::Ack, address));
    address
}

fn mac(last: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 1, last]
}

#[test]
fn a_client_gets_an_address_and_all_that_goes_with_it() {
    let mut lab = Lab::new(SERVING);
    let address = discover(&mut lab, 3, VM);
    assert_eq!(address, v4("10.0.0.100"));
    let (seen, ack) = ask(&mut lab, 3, &request(VM, address, Some("10.0.0.1")));
    // Without the broadcast flag it goes to the new address (RFC 2131 §4.1).
    assert_eq!((seen.to, seen.destination), (VM, ip("10.0.0.100")));
    assert_eq!(
        (kind(&ack), ack.yiaddr(), ack.ciaddr()),
        (MessageType::Ack, address, ZERO)
    );
    assert_eq!(&ack.chaddr()[..6], &VM);
    let options = ack.opts();
    let routes: Vec<_> = match options.get(OptionCode::ClasslessStaticRoute) {
        Some(DhcpOption::ClasslessStaticRoute(routes)) => routes
            .iter()
            .map(|(to, via)| format!("{to} {via}"))
            .collect(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        routes,
        [
            "10.9.0.0/16 10.0.0.2",
            "192.168.7.128/25 10.0.0.3",
            "0.0.0.0/0 10.0.0.1"
        ]
    );
    for option in [
        DhcpOption::AddressLeaseTime(600),
        DhcpOption::Renewal(300),
        DhcpOption::Rebinding(525),
        DhcpOption::SubnetMask(v4("255.255.255.0")),
        DhcpOption::Router(vec![v4("10.0.0.1")]),
        DhcpOption::DomainNameServer(vec![v4("10.0.0.53"), v4("9.9.9.9")]),
        DhcpOption::DomainName("tenant.example".into()),
        DhcpOption::InterfaceMtu(1450),
        DhcpOption::BroadcastAddr(v4("10.0.0.255")),
        DhcpOption::NtpServers(vec![v4("10.0.0.123")]),
    ] {
        assert_eq!(options.get(OptionCode::from(&option)), Some(&option));
    }
    let stats = lab.services.stats();
    assert_eq!((stats.dhcp4_offers, stats.dhcp4_acks), (1, 1));
    let lease = lab.services.dhcp4_leases(lab.now).next().unwrap();
    assert_eq!(
        (lease.port.get(), lease.mac.0, lease.address),
        (3, VM, address)
    );
    assert_eq!(lease.until, lab.now.after(Millis(600_000)));
}

#[test]
fn a_client_that_wants_broadcast_gets_it_and_its_identifier_back() {
    let mut lab = Lab::new(SERVING);
    let mut discover = message(VM, MessageType::Discover);
    let identifier = [&[1][..], &VM].concat();
    discover.set_flags(Flags::default().set_broadcast());
    let options = discover.opts_mut();
    options.insert(DhcpOption::ClientIdentifier(identifier.clone()));
    options.insert(DhcpOption::MaxMessageSize(576));
    options.insert(DhcpOption::ClassIdentifier(b"udhcp 1.36.1".to_vec()));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
    ]));
    let (seen, offer) = ask(&mut lab, 3, &discover);
    assert_eq!(
        (seen.to, seen.destination),
        (BROADCAST, ip("255.255.255.255"))
    );
    assert!(offer.flags().broadcast());
    assert_eq!(
        offer.opts().get(OptionCode::ClientIdentifier),
        Some(&DhcpOption::ClientIdentifier(identifier))
    );
}

#[test]
fn reservations_go_by_mac_address_and_port() {
    let mut lab = Lab::new(SERVING);
    let (_, offer) = ask(&mut lab, 7, &message(VM_2, MessageType::Discover));
    assert_eq!(offer.yiaddr(), v4("10.0.0.20"));
    assert_eq!(
        offer.opts().get(OptionCode::Hostname),
        Some(&DhcpOption::Hostname("db-1".into()))
    );
    let third = [0x52, 0x54, 0, 0, 0, 3];
    assert_eq!(discover(&mut lab, 3, third), v4("10.0.0.30"));
    assert_eq!(discover(&mut lab, 4, third), v4("10.0.0.31"));
    // They take no room in the pool, and others cannot have them.
    assert_eq!(lab.services.dhcp4_leases(lab.now).count(), 0);
    let (_, nak) = ask(&mut lab, 3, &request(VM, v4("10.0.0.20"), None));
    assert_eq!(kind(&nak), MessageType::Nak);
    let (_, nak) = ask(&mut lab, 3, &request(VM_2, v4("10.0.0.21"), None));
    assert_eq!(kind(&nak), MessageType::Nak);
    let (_, ack) = ask(&mut lab, 3, &request(VM_2, v4("10.0.0.20"), None));
    assert_eq!(kind(&ack), MessageType::Ack);
}

#[test]
fn the_same_client_gets_the_same_address_and_others_do_not() {
    let mut lab = Lab::new(SERVING);
    let first = bind(&mut lab, 3, mac(1));
    assert_eq!(discover(&mut lab, 3, mac(1)), first);
    // The same MAC address behind another port is another client.
    let other = bind(&mut lab, 4, mac(1));
    assert_ne!(other, first);
    let mut taken = vec![
        first,
        other,
        bind(&mut lab, 3, mac(2)),
        bind(&mut lab, 3, mac(3)),
    ];
    taken.sort();
    taken.dedup();
    assert_eq!(taken.len(), 4);
    let refused = frame(&message(mac(4), MessageType::Discover));
    assert_eq!(
        lab.refusal(PuntReason::Dhcp4, &refused),
        ServiceDrop::NoFreeAddress
    );
}

#[test]
fn an_offer_lapses_and_a_lease_runs_out_unless_renewed() {
    let mut lab = Lab::new(SERVING);
    for last in 1..=4 {
        discover(&mut lab, 3, mac(last));
    }
    let more = frame(&message(mac(5), MessageType::Discover));
    assert_eq!(
        lab.refusal(PuntReason::Dhcp4, &more),
        ServiceDrop::NoFreeAddress
    );
    lab.wait(60_000);
    let address = bind(&mut lab, 3, mac(5));
    // Half its time later it is renewed, by unicast.
    lab.wait(300_000);
    let mut renewal = message(mac(5), MessageType::Request);
    renewal.set_ciaddr(address);
    let unicast = frame_between(&renewal, (&address.to_string(), "10.0.0.1"));
    let seen = see(&lab.answer(3, PuntReason::LocalInput, &unicast));
    assert_eq!((seen.to, seen.destination), (mac(5), address.into()));
    let ack = read(&seen);
    assert_eq!(
        (kind(&ack), ack.ciaddr(), ack.yiaddr()),
        (MessageType::Ack, address, address)
    );
    lab.wait(599_999);
    assert_eq!(lab.services.dhcp4_leases(lab.now).count(), 1);
    lab.wait(1);
    assert_eq!(lab.services.dhcp4_leases(lab.now).count(), 0);
    // After that another client may have it.
    let mut wish = message(mac(6), MessageType::Discover);
    wish.opts_mut()
        .insert(DhcpOption::RequestedIpAddress(address));
    assert_eq!(ask(&mut lab, 3, &wish).1.yiaddr(), address);
}

#[test]
fn a_client_that_comes_back_after_a_restart_keeps_its_address() {
    let mut lab = Lab::new(SERVING);
    // The switch knows nothing of this lease, but nobody else has the address.
    let (_, ack) = ask(&mut lab, 3, &request(mac(1), v4("10.0.0.102"), None));
    assert_eq!(
        (kind(&ack), ack.yiaddr()),
        (MessageType::Ack, v4("10.0.0.102"))
    );
    let (seen, nak) = ask(&mut lab, 4, &request(mac(2), v4("10.0.0.102"), None));
    assert_eq!((kind(&nak), nak.yiaddr()), (MessageType::Nak, ZERO));
    assert_eq!(
        (seen.to, seen.destination),
        (BROADCAST, ip("255.255.255.255"))
    );
    assert!(nak.opts().get(OptionCode::AddressLeaseTime).is_none());
    // Addresses of another network, or outside the pool, are refused.
    for address in ["192.168.0.9", "10.0.0.99", "10.0.0.1"] {
        let (_, nak) = ask(&mut lab, 3, &request(mac(3), v4(address), None));
        assert_eq!(kind(&nak), MessageType::Nak, "{address}");
    }
    assert_eq!(lab.services.stats().dhcp4_naks, 4);
}

#[test]
fn who_chooses_another_server_is_left_to_it() {
    let mut lab = Lab::new(SERVING);
    let message = request(mac(1), v4("10.0.0.100"), Some("10.0.0.77"));
    assert_eq!(
        lab.refusal(PuntReason::Dhcp4, &frame(&message)),
        ServiceDrop::OtherServer
    );
}

#[test]
fn a_released_address_is_free_and_a_declined_one_is_not() {
    let mut lab = Lab::new(SERVING);
    let address = bind(&mut lab, 3, mac(1));
    let mut release = message(mac(1), MessageType::Release);
    release.set_ciaddr(address);
    release
        .opts_mut()
        .insert(DhcpOption::ServerIdentifier(v4("10.0.0.1")));
    // Nobody else can release it.
    let mut foreign = release.clone();
    foreign.set_chaddr(&mac(2));
    assert_eq!(lab.punt(3, PuntReason::Dhcp4, &frame(&foreign)), []);
    assert_eq!(lab.punt(4, PuntReason::Dhcp4, &frame(&release)), []);
    assert_eq!(lab.services.dhcp4_leases(lab.now).count(), 1);
    assert_eq!(lab.punt(3, PuntReason::Dhcp4, &frame(&release)), []);
    assert_eq!(lab.services.dhcp4_leases(lab.now).count(), 0);
    assert_eq!(bind(&mut lab, 3, mac(2)), address);
    let mut decline = message(mac(2), MessageType::Decline);
    decline
        .opts_mut()
        .insert(DhcpOption::ServerIdentifier(v4("10.0.0.1")));
    decline
        .opts_mut()
        .insert(DhcpOption::RequestedIpAddress(address));
    assert_eq!(lab.punt(3, PuntReason::Dhcp4, &frame(&decline)), []);
    for last in 3..6 {
        assert_ne!(bind(&mut lab, 3, mac(last)), address);
    }
    let more = frame(&message(mac(6), MessageType::Discover));
    assert_eq!(
        lab.refusal(PuntReason::Dhcp4, &more),
        ServiceDrop::NoFreeAddress
    );
    lab.wait(600_000);
    let mut wish = message(mac(6), MessageType::Discover);
    wish.opts_mut()
        .insert(DhcpOption::RequestedIpAddress(address));
    assert_eq!(ask(&mut lab, 3, &wish).1.yiaddr(), address);
}

#[test]
fn who_has_an_address_is_informed() {
    let mut lab = Lab::new(SERVING);
    let mut inform = message(VM, MessageType::Inform);
    inform.set_ciaddr(v4("10.0.0.77"));
    let between = ("10.0.0.77", "255.255.255.255");
    let seen = see(&lab.answer(3, PuntReason::Dhcp4, &frame_between(&inform, between)));
    assert_eq!((seen.to, seen.destination), (VM, ip("10.0.0.77")));
    let ack = read(&seen);
    assert_eq!((kind(&ack), ack.yiaddr()), (MessageType::Ack, ZERO));
    assert!(ack.opts().get(OptionCode::AddressLeaseTime).is_none());
    assert!(ack.opts().get(OptionCode::DomainNameServer).is_some());
    inform.set_ciaddr(v4("10.1.0.77"));
    assert_eq!(
        lab.refusal(PuntReason::Dhcp4, &frame(&inform)),
        ServiceDrop::NotOnLink
    );
}

#[test]
fn a_port_has_only_so_many_leases() {
    let mut config = config(SERVING);
    config.limits.leases_per_port = 2;
    let mut lab = Lab::with(config);
    bind(&mut lab, 3, mac(1));
    bind(&mut lab, 3, mac(2));
    let more = frame(&message(mac(3), MessageType::Discover));
    assert_eq!(
        lab.refusal(PuntReason::Dhcp4, &more),
        ServiceDrop::NoFreeAddress
    );
    bind(&mut lab, 4, mac(3));
    // The leases of a port go with it.
    lab.services.forget_port(port(3), lab.now, &mut Vec::new());
    assert_eq!(lab.services.dhcp4_leases(lab.now).count(), 1);
}

#[test]
fn replies_stay_within_what_the_client_takes_and_keep_what_matters() {
    let routes: Vec<String> = (0..16)
        .map(|index| format!(r#"{{ "to": "10.9.{index}.4/32", "via": "10.0.0.2" }}"#))
        .collect();
    let many = r#""10.0.0.2","10.0.0.3","10.0.0.4","10.0.0.5","10.0.0.6","10.0.0.7","10.0.0.8","10.0.0.9""#;
    let label = "abcdefghi-abcdefghi-abcdefghi-abcdefghi-abcdefghi-abcdefghi";
    let mut lab = Lab::new(&format!(
        r#", "dhcp4": {{ "pool": {{ "first": "10.0.0.100", "last": "10.0.0.103" }}, "router": "10.0.0.1",
            "dns": [{many}], "ntp": [{many}], "domain_name": "{label}.{label}.{label}", "routes": [{}] }}"#,
        routes.join(",")
    ));
    let mut discover = message(VM, MessageType::Discover);
    discover
        .opts_mut()
        .insert(DhcpOption::ClientIdentifier(vec![7; 100]));
    let (_, offer) = ask(&mut lab, 3, &discover);
    for code in [
        OptionCode::AddressLeaseTime,
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::ClasslessStaticRoute,
    ] {
        assert!(offer.opts().get(code).is_some(), "{code:?}");
    }
    assert!(
        offer.opts().get(OptionCode::NtpServers).is_none(),
        "there is no room for all"
    );
    discover.opts_mut().insert(DhcpOption::MaxMessageSize(1400));
    let seen = see(&lab.answer(3, PuntReason::Dhcp4, &frame(&discover)));
    let offer = Message::decode(&mut Decoder::new(&seen.payload)).unwrap();
    assert!(offer.opts().get(OptionCode::NtpServers).is_some());
}

#[test]
fn what_is_no_message_of_a_client_on_the_link_is_refused() {
    let mut lab = Lab::new(SERVING);
    let good = message(VM, MessageType::Discover);
    let bytes = good.to_vec().unwrap();
    let with = |offset: usize, value: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[offset..offset + value.len()].copy_from_slice(value);
        raw(&bytes, VM, ("0.0.0.0", "255.255.255.255"))
    };
    let options = |options: &[u8]| {
        let bytes = [&bytes[..240], options].concat();
        raw(&bytes, VM, ("0.0.0.0", "255.255.255.255"))
    };
    let mut bad_sum = frame(&good);
    bad_sum[41] ^= 0x55;
    let mut elsewhere = Message::default();
    elsewhere
        .set_chaddr(&VM_2)
        .opts_mut()
        .insert(DhcpOption::MessageType(MessageType::Discover));
    for (what, frame, reason) in [
        ("a reply", with(0, &[2]), ServiceDrop::Malformed),
        ("not Ethernet", with(1, &[6]), ServiceDrop::Malformed),
        ("a long address", with(2, &[16]), ServiceDrop::Malformed),
        ("no magic", with(236, &[0]), ServiceDrop::Malformed),
        ("BOOTP", options(&[255]), ServiceDrop::Malformed),
        ("no options", options(&[]), ServiceDrop::Malformed),
        (
            "a lying length",
            options(&[53, 1, 1, 12, 200, 1]),
            ServiceDrop::Malformed,
        ),
        (
            "half an option",
            options(&[53, 1, 1, 12]),
            ServiceDrop::Malformed,
        ),
        (
            "a message type of two bytes",
            options(&[53, 2, 1, 1, 255]),
            ServiceDrop::Malformed,
        ),
        (
            "an unknown message type",
            options(&[53, 1, 99, 255]),
            ServiceDrop::NotServed,
        ),
        (
            "a short address",
            options(&[53, 1, 3, 50, 3, 1, 2, 3, 255]),
            ServiceDrop::Malformed,
        ),
        (
            "a request for nothing",
            options(&[53, 1, 3, 255]),
            ServiceDrop::Malformed,
        ),
        (
            "a release from no server",
            options(&[53, 1, 7, 255]),
            ServiceDrop::Malformed,
        ),
        (
            "a truncated message",
            raw(&bytes[..239], VM, ("0.0.0.0", "255.255.255.255")),
            ServiceDrop::Malformed,
        ),
        (
            "a relayed message",
            with(24, &[10, 0, 0, 2]),
            ServiceDrop::Relayed,
        ),
        (
            "another's MAC address",
            with(28, &VM_2),
            ServiceDrop::InvalidSource,
        ),
        ("a wrong checksum", bad_sum, ServiceDrop::BadChecksum),
        (
            "to another station",
            raw(&bytes, VM, ("0.0.0.0", "10.0.0.7")),
            ServiceDrop::NotForRouter,
        ),
    ] {
        assert_eq!(lab.refusal(PuntReason::Dhcp4, &frame), reason, "{what}");
    }
    assert_eq!(lab.services.dhcp4_leases(lab.now).count(), 0);
    // Nothing wrong: pads, unknown options, an overload option, no end.
    let odd = options(&[0, 0, 53, 1, 1, 52, 1, 3, 224, 2, 9, 9]);
    lab.answer(3, PuntReason::Dhcp4, &odd);
    // An interface that serves none.
    let mut lab = Lab::new("");
    assert_eq!(
        lab.refusal(PuntReason::Dhcp4, &frame(&good)),
        ServiceDrop::NotConfigured
    );
}

proptest! {
    /// Whatever clients do, no two that were told they have an address at the same time have the same.
    #[test]
    fn no_address_is_lent_twice(steps in proptest::collection::vec((0..6_u8, 0..4_u8, 98..106_u8, 0..400_u64), 1..60)) {
        let mut lab = Lab::new(SERVING);
        let mut bound: std::collections::HashMap<Ipv4Addr, (u8, Millis)> = std::collections::HashMap::new();
        for (who, what, last, seconds) in steps {
            lab.wait(seconds * 1000);
            let address = Ipv4Addr::new(10, 0, 0, last);
            let sent = match what {
                0 => message(mac(who), MessageType::Discover),
                1 => request(mac(who), address, Some("10.0.0.1")),
                2 => {
                    let mut renewal = message(mac(who), MessageType::Request);
                    renewal.set_ciaddr(address);
                    renewal
                }
                _ => {
                    let mut release = message(mac(who), MessageType::Release);
                    release.set_ciaddr(address);
                    release.opts_mut().insert(DhcpOption::ServerIdentifier(v4("10.0.0.1")));
                    if bound.get(&address).is_some_and(|(holder, _)| *holder == who) {
                        bound.remove(&address);
                    }
                    release
                }
            };
            for action in lab.punt(3, PuntReason::Dhcp4, &frame(&sent)) {
                let ServiceAction::Send { frame, .. } = action else { continue };
                let reply = read(&see(&frame));
                if kind(&reply) != MessageType::Nak {
                    let given = reply.yiaddr();
                    prop_assert!((100..=103).contains(&given.octets()[3]));
                    let holder = bound.get(&given).filter(|(_, until)| *until > lab.now);
                    prop_assert!(holder.is_none_or(|(holder, _)| *holder == who), "{given} is {holder:?}'s, not {who}'s");
                    if kind(&reply) == MessageType::Ack {
                        bound.insert(given, (who, lab.now.after(Millis(600_000))));
                    }
                }
            }
        }
    }
}
