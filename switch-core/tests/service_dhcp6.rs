//! DHCPv6, with messages made and read by `dhcproto`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod service_lab;

use std::net::Ipv6Addr;

use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, ORO, OptionCode, Status,
};
use dhcproto::{Decodable, Decoder, Encodable};
use etherparse::PacketBuilder;
use service_lab::*;
use switch_core::Millis;
use switch_core::service::{PuntReason, ServiceDrop};

const SERVING: &str = r#", "dhcp6": {
    "pool": { "first": "fd00:1::100", "last": "fd00:1::102" },
    "reservations": [ { "mac": "52:54:00:00:00:02", "address": "fd00:1::20" } ],
    "dns": ["fd00:1::53"], "search": ["tenant.example", "example.org"], "lease_s": 600, "rapid_commit": true }"#;
const SERVERS_MAC: [u8; 6] = [0x33, 0x33, 0, 1, 0, 2];
/// A DUID of the link-layer address of [`ROUTER`].
const SERVER_DUID: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 0xfe];

fn duid(last: u8) -> Vec<u8> {
    vec![
        0, 4, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, last,
    ]
}

fn message(kind: MessageType, client: u8) -> Message {
    let mut message = Message::new_with_id(kind, [1, 2, 3]);
    message
        .opts_mut()
        .insert(DhcpOption::ClientId(duid(client)));
    message.opts_mut().insert(DhcpOption::ElapsedTime(0));
    message.opts_mut().insert(DhcpOption::ORO(ORO {
        opts: vec![OptionCode::DomainNameServers],
    }));
    message
}

fn to_us(mut message: Message) -> Message {
    message
        .opts_mut()
        .insert(DhcpOption::ServerId(SERVER_DUID.to_vec()));
    message
}

/// With an identity association that names these addresses.
fn with_ia(mut message: Message, id: u32, addresses: &[Ipv6Addr]) -> Message {
    let mut opts = DhcpOptions::new();
    for &addr in addresses {
        opts.insert(DhcpOption::IAAddr(IAAddr {
            addr,
            preferred_life: 0,
            valid_life: 0,
            opts: DhcpOptions::new(),
        }));
    }
    message.opts_mut().insert(DhcpOption::IANA(IANA {
        id,
        t1: 0,
        t2: 0,
        opts,
    }));
    message
}

fn raw(payload: &[u8], mac: [u8; 6], addresses: (&str, &str)) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac, SERVERS_MAC)
        .ipv6(v6(addresses.0).octets(), v6(addresses.1).octets(), 1)
        .udp(546, 547);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

fn frame_from(mac: [u8; 6], message: &Message) -> Vec<u8> {
    raw(&message.to_vec().unwrap(), mac, ("fe80::9", "ff02::1:2"))
}

fn frame(message: &Message) -> Vec<u8> {
    frame_from(VM, message)
}

fn ask(lab: &mut Lab, message: &Message) -> Message {
    ask_from(lab, VM, message)
}

fn ask_from(lab: &mut Lab, mac: [u8; 6], message: &Message) -> Message {
    let seen = see(&lab.answer(3, PuntReason::Dhcp6, &frame_from(mac, message)));
    assert_eq!((seen.from, seen.to), (ROUTER, mac));
    assert_eq!(
        (seen.source, seen.destination),
        (ip(ROUTER_LINK_LOCAL), ip("fe80::9"))
    );
    assert_eq!(seen.selector, (547, 546));
    assert!(seen.ip_bytes <= 1280);
    let reply = Message::decode(&mut Decoder::new(&seen.payload)).unwrap();
    assert_eq!(reply.xid(), [1, 2, 3]);
    assert_eq!(
        reply.opts().get(OptionCode::ServerId),
        Some(&DhcpOption::ServerId(SERVER_DUID.to_vec()))
    );
    assert_eq!(
        reply.opts().get(OptionCode::ClientId),
        message.opts().get(OptionCode::ClientId)
    );
    reply
}

fn associations(message: &Message) -> Vec<IANA> {
    message
        .opts()
        .get_all(OptionCode::IANA)
        .unwrap_or_default()
        .iter()
        .map(|option| match option {
            DhcpOption::IANA(ia) => ia.clone(),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// The addresses of an association with their valid lifetimes.
fn addresses(ia: &IANA) -> Vec<(Ipv6Addr, u32)> {
    ia.opts
        .iter()
        .filter_map(|option| match option {
            DhcpOption::IAAddr(entry) => Some((entry.addr, entry.valid_life)),
            _ => None,
        })
        .collect()
}

fn status(options: &DhcpOptions) -> Option<Status> {
    match options.get(OptionCode::StatusCode) {
        Some(DhcpOption::StatusCode(code)) => Some(code.status),
        _ => None,
    }
}

/// Gets the client an address, as it would.
fn bind(lab: &mut Lab, client: u8) -> Ipv6Addr {
    let advertise = ask(lab, &with_ia(message(MessageType::Solicit, client), 7, &[]));
    assert_eq!(advertise.msg_type(), MessageType::Advertise);
    let (address, _) = addresses(&associations(&advertise)[0])[0];
    let reply = ask(
        lab,
        &with_ia(to_us(message(MessageType::Request, client)), 7, &[address]),
    );
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert_eq!(addresses(&associations(&reply)[0]), [(address, 600)]);
    address
}

#[test]
fn a_client_gets_an_address_and_all_that_goes_with_it() {
    let mut lab = Lab::new(SERVING);
    let advertise = ask(&mut lab, &with_ia(message(MessageType::Solicit, 1), 7, &[]));
    assert_eq!(advertise.msg_type(), MessageType::Advertise);
    let reply = ask(
        &mut lab,
        &with_ia(
            to_us(message(MessageType::Request, 1)),
            7,
            &[v6("fd00:1::100")],
        ),
    );
    assert_eq!(reply.msg_type(), MessageType::Reply);
    let ia = &associations(&reply)[0];
    assert_eq!((ia.id, ia.t1, ia.t2), (7, 150, 240));
    let Some(DhcpOption::IAAddr(entry)) = ia.opts.get(OptionCode::IAAddr) else {
        panic!("{ia:?}");
    };
    assert_eq!(
        (entry.addr, entry.preferred_life, entry.valid_life),
        (v6("fd00:1::100"), 300, 600)
    );
    assert_eq!(
        reply.opts().get(OptionCode::DomainNameServers),
        Some(&DhcpOption::DomainNameServers(vec![v6("fd00:1::53")]))
    );
    let Some(DhcpOption::DomainSearchList(names)) = reply.opts().get(OptionCode::DomainSearchList)
    else {
        panic!("{reply:?}");
    };
    let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
    assert_eq!(names, ["tenant.example.", "example.org."]);
    let stats = lab.services.stats();
    assert_eq!((stats.dhcp6_advertises, stats.dhcp6_replies), (1, 1));
    let lease = lab.services.dhcp6_leases(lab.now).next().unwrap();
    assert_eq!(
        (lease.port.get(), lease.duid, lease.address),
        (3, duid(1), v6("fd00:1::100"))
    );
}

#[test]
fn rapid_commit_saves_two_messages_where_both_want_it() {
    let mut lab = Lab::new(SERVING);
    let mut solicit = with_ia(message(MessageType::Solicit, 1), 7, &[]);
    solicit.opts_mut().insert(DhcpOption::RapidCommit);
    let reply = ask(&mut lab, &solicit);
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert!(reply.opts().get(OptionCode::RapidCommit).is_some());
    assert_eq!(addresses(&associations(&reply)[0]).len(), 1);
    let lease = lab.services.dhcp6_leases(lab.now).next().unwrap();
    assert_eq!(lease.until, lab.now.after(Millis(600_000)));
    let mut lab = Lab::new(&SERVING.replace("true", "false"));
    assert_eq!(ask(&mut lab, &solicit).msg_type(), MessageType::Advertise);
}

#[test]
fn a_reservation_goes_to_the_lowest_association_of_its_mac_address() {
    let mut lab = Lab::new(SERVING);
    let request = with_ia(
        with_ia(to_us(message(MessageType::Request, 1)), 1, &[]),
        2,
        &[],
    );
    let reply = ask_from(&mut lab, VM_2, &request);
    let mut given: Vec<_> = associations(&reply)
        .iter()
        .map(|ia| (ia.id, addresses(ia)[0].0))
        .collect();
    given.sort();
    assert_eq!(given, [(1, v6("fd00:1::20")), (2, v6("fd00:1::100"))]);
}

#[test]
fn the_pool_ends_and_says_so() {
    let mut lab = Lab::new(SERVING);
    let mut given: Vec<_> = (1..=3).map(|client| bind(&mut lab, client)).collect();
    given.sort();
    assert_eq!(
        given,
        [v6("fd00:1::100"), v6("fd00:1::101"), v6("fd00:1::102")]
    );
    let advertise = ask(&mut lab, &with_ia(message(MessageType::Solicit, 4), 7, &[]));
    let ia = &associations(&advertise)[0];
    assert_eq!(
        (addresses(ia), status(&ia.opts)),
        (vec![], Some(Status::NoAddrsAvail))
    );
    // The same client with another association is another.
    let advertise = ask(&mut lab, &with_ia(message(MessageType::Solicit, 1), 8, &[]));
    assert_eq!(
        status(&associations(&advertise)[0].opts),
        Some(Status::NoAddrsAvail)
    );
    lab.wait(600_000);
    bind(&mut lab, 4);
}

#[test]
fn leases_are_renewed_and_foreign_ones_are_not() {
    let mut lab = Lab::new(SERVING);
    let address = bind(&mut lab, 1);
    lab.wait(300_000);
    let renew = with_ia(to_us(message(MessageType::Renew, 1)), 7, &[address]);
    assert_eq!(
        addresses(&associations(&ask(&mut lab, &renew))[0]),
        [(address, 600)]
    );
    let rebind = with_ia(message(MessageType::Rebind, 1), 7, &[address]);
    assert_eq!(
        addresses(&associations(&ask(&mut lab, &rebind))[0]),
        [(address, 600)]
    );
    let until = lab.services.dhcp6_leases(lab.now).next().unwrap().until;
    assert_eq!(until, lab.now.after(Millis(600_000)));
    // Another client cannot have it: no binding, or for a rebind an end to its use.
    let renew = with_ia(to_us(message(MessageType::Renew, 2)), 7, &[address]);
    let ia = &associations(&ask(&mut lab, &renew))[0];
    assert_eq!(
        (addresses(ia), status(&ia.opts)),
        (vec![], Some(Status::NoBinding))
    );
    let rebind = with_ia(message(MessageType::Rebind, 2), 7, &[address]);
    let ia = &associations(&ask(&mut lab, &rebind))[0];
    assert_eq!(
        (addresses(ia), status(&ia.opts)),
        (vec![(address, 0)], None)
    );
    // After a restart a lease that nobody else has is taken as it is.
    let mut lab = Lab::new(SERVING);
    let renew = with_ia(
        to_us(message(MessageType::Renew, 2)),
        7,
        &[v6("fd00:1::102")],
    );
    assert_eq!(
        addresses(&associations(&ask(&mut lab, &renew))[0]),
        [(v6("fd00:1::102"), 600)]
    );
}

#[test]
fn a_released_address_is_free_and_a_declined_one_is_not() {
    let mut lab = Lab::new(SERVING);
    let address = bind(&mut lab, 1);
    let foreign = with_ia(to_us(message(MessageType::Release, 2)), 7, &[address]);
    assert_eq!(
        status(ask(&mut lab, &foreign).opts()),
        Some(Status::Success)
    );
    assert_eq!(lab.services.dhcp6_leases(lab.now).count(), 1);
    let release = with_ia(to_us(message(MessageType::Release, 1)), 7, &[address]);
    assert_eq!(
        status(ask(&mut lab, &release).opts()),
        Some(Status::Success)
    );
    assert_eq!(lab.services.dhcp6_leases(lab.now).count(), 0);
    assert_eq!(bind(&mut lab, 2), address);
    let decline = with_ia(to_us(message(MessageType::Decline, 2)), 7, &[address]);
    assert_eq!(
        status(ask(&mut lab, &decline).opts()),
        Some(Status::Success)
    );
    for client in 3..5 {
        assert_ne!(bind(&mut lab, client), address);
    }
    let advertise = ask(&mut lab, &with_ia(message(MessageType::Solicit, 5), 7, &[]));
    assert_eq!(
        status(&associations(&advertise)[0].opts),
        Some(Status::NoAddrsAvail)
    );
}

#[test]
fn a_client_may_ask_whether_it_is_still_on_the_link() {
    let mut lab = Lab::new(SERVING);
    let confirm = with_ia(message(MessageType::Confirm, 1), 7, &[v6("fd00:1::77")]);
    assert_eq!(
        status(ask(&mut lab, &confirm).opts()),
        Some(Status::Success)
    );
    let confirm = with_ia(message(MessageType::Confirm, 1), 7, &[v6("fd00:3::77")]);
    assert_eq!(
        status(ask(&mut lab, &confirm).opts()),
        Some(Status::NotOnLink)
    );
    let confirm = with_ia(message(MessageType::Confirm, 1), 7, &[]);
    assert_eq!(
        lab.refusal(PuntReason::Dhcp6, &frame(&confirm)),
        ServiceDrop::Malformed
    );
}

#[test]
fn who_only_asks_for_information_gets_it() {
    let mut lab = Lab::new(r#", "dhcp6": { "dns": ["fd00:1::53"] }"#);
    let mut ask_for = Message::new_with_id(MessageType::InformationRequest, [1, 2, 3]);
    ask_for.opts_mut().insert(DhcpOption::ElapsedTime(0));
    let reply = ask(&mut lab, &ask_for);
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert!(reply.opts().get(OptionCode::DomainNameServers).is_some());
    // There are no addresses here.
    let solicit = with_ia(message(MessageType::Solicit, 1), 7, &[]);
    assert_eq!(
        lab.refusal(PuntReason::Dhcp6, &frame(&solicit)),
        ServiceDrop::NotConfigured
    );
}

#[test]
fn only_so_many_associations_of_a_message_and_leases_of_a_port_count() {
    let mut config = config(&SERVING.replace("::102", "::1ff"));
    config.limits.leases_per_port = 5;
    let mut lab = Lab::with(config);
    let mut solicit = message(MessageType::Solicit, 1);
    for id in 0..20 {
        solicit = with_ia(solicit, id, &[]);
    }
    assert_eq!(associations(&ask(&mut lab, &solicit)).len(), 4);
    for client in 2..10 {
        ask(
            &mut lab,
            &with_ia(message(MessageType::Solicit, client), 7, &[]),
        );
    }
    assert_eq!(lab.services.dhcp6_leases(lab.now).count(), 5);
}

#[test]
fn messages_that_rfc_8415_calls_invalid_are_refused() {
    let mut lab = Lab::new(SERVING);
    let solicit = with_ia(message(MessageType::Solicit, 1), 7, &[]);
    let bytes = solicit.to_vec().unwrap();
    let link = ("fe80::9", "ff02::1:2");
    let other_server = {
        let mut request = with_ia(message(MessageType::Request, 1), 7, &[]);
        request
            .opts_mut()
            .insert(DhcpOption::ServerId(vec![0, 3, 0, 1, 9, 9, 9, 9, 9, 9]));
        request
    };
    let mut anonymous = Message::new_with_id(MessageType::Solicit, [1, 2, 3]);
    anonymous.opts_mut().insert(DhcpOption::ElapsedTime(0));
    let mut bad_sum = frame(&solicit);
    bad_sum[60] ^= 0x55;
    let mut no_sum = frame(&solicit);
    no_sum[60..62].copy_from_slice(&[0, 0]);
    let long = [&[1, 1, 2, 3, 0, 1, 0, 131][..], &[7; 131]].concat();
    for (what, frame, reason) in [
        ("no client", frame(&anonymous), ServiceDrop::Malformed),
        (
            "a solicit to one server",
            frame(&to_us(solicit.clone())),
            ServiceDrop::Malformed,
        ),
        (
            "a request to none",
            frame(&with_ia(message(MessageType::Request, 1), 7, &[])),
            ServiceDrop::Malformed,
        ),
        (
            "a request to another",
            frame(&other_server),
            ServiceDrop::OtherServer,
        ),
        (
            "information and an association",
            frame(&with_ia(
                message(MessageType::InformationRequest, 1),
                7,
                &[],
            )),
            ServiceDrop::Malformed,
        ),
        (
            "a reply",
            frame(&message(MessageType::Reply, 1)),
            ServiceDrop::NotServed,
        ),
        (
            "a relayed message",
            raw(&[12, 0, 0, 0], VM, link),
            ServiceDrop::Relayed,
        ),
        (
            "an empty message",
            raw(&[], VM, link),
            ServiceDrop::Malformed,
        ),
        (
            "a lying option",
            raw(&[1, 1, 2, 3, 0, 1, 0, 99, 1], VM, link),
            ServiceDrop::Malformed,
        ),
        (
            "half an option",
            raw(&[1, 1, 2, 3, 0, 1, 0], VM, link),
            ServiceDrop::Malformed,
        ),
        (
            "a short association",
            raw(&[&bytes[..], &[0, 3, 0, 4, 1, 2, 3, 4]].concat(), VM, link),
            ServiceDrop::Malformed,
        ),
        (
            "a short address",
            raw(
                &[
                    &bytes[..],
                    &[
                        0, 3, 0, 18, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 2, 1, 1,
                    ],
                ]
                .concat(),
                VM,
                link,
            ),
            ServiceDrop::Malformed,
        ),
        (
            "a DUID that is too long",
            raw(&long, VM, link),
            ServiceDrop::Malformed,
        ),
        (
            "from a global address",
            raw(&bytes, VM, ("fd00:1::9", "ff02::1:2")),
            ServiceDrop::InvalidSource,
        ),
        (
            "to one station",
            raw(&bytes, VM, ("fe80::9", "fd00:1::1")),
            ServiceDrop::NotForRouter,
        ),
        ("a wrong checksum", bad_sum, ServiceDrop::BadChecksum),
        ("no checksum", no_sum, ServiceDrop::BadChecksum),
    ] {
        assert_eq!(lab.refusal(PuntReason::Dhcp6, &frame), reason, "{what}");
    }
    assert_eq!(lab.services.dhcp6_leases(lab.now).count(), 0);
    let mut lab = Lab::new("");
    assert_eq!(
        lab.refusal(PuntReason::Dhcp6, &frame(&solicit)),
        ServiceDrop::NotConfigured
    );
}
