//! Ping and ICMP errors, over IPv4 and IPv6.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod service_lab;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder};
use service_lab::*;
use switch_core::checksum::Sum;
use switch_core::service::{NO_INTERFACE, PacketMetadata, PuntReason, ServiceDrop};

fn ping4(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(VM, ROUTER)
        .ipv4(v4(source).octets(), v4(destination).octets(), 9)
        .icmpv4_echo_request(77, 5);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

fn ping6(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(VM, ROUTER)
        .ipv6(v6(source).octets(), v6(destination).octets(), 9)
        .icmpv6_echo_request(77, 5);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

fn local(lab: &mut Lab, frame: &[u8]) -> Vec<u8> {
    lab.answer(3, PuntReason::LocalInput, frame)
}

#[test]
fn a_ping_of_any_size_is_answered() {
    let mut lab = Lab::new("");
    for bytes in [0, 1, 56, 1472, 9000, 65_507] {
        let payload: Vec<u8> = (0..bytes).map(|byte| byte as u8).collect();
        let reply = see(&local(&mut lab, &ping4("10.0.0.9", "10.0.0.1", &payload)));
        assert_eq!((reply.from, reply.to), (ROUTER, VM));
        assert_eq!(
            (reply.source, reply.destination),
            (ip("10.0.0.1"), ip("10.0.0.9"))
        );
        assert_eq!(
            (reply.selector, reply.rest, reply.ttl),
            ((0, 0), [0, 77, 0, 5], 64)
        );
        assert_eq!(reply.payload, payload);
    }
    for bytes in [0, 1, 1452, 65_495] {
        let payload: Vec<u8> = (0..bytes).map(|byte| byte as u8).collect();
        let reply = see(&local(&mut lab, &ping6("fd00:1::9", "fd00:1::1", &payload)));
        assert_eq!((reply.from, reply.to), (ROUTER, VM));
        assert_eq!(
            (reply.source, reply.destination),
            (ip("fd00:1::1"), ip("fd00:1::9"))
        );
        assert_eq!(
            (reply.selector, reply.rest, reply.ttl),
            ((129, 0), [0, 77, 0, 5], 64)
        );
        assert_eq!(reply.payload, payload);
    }
    assert_eq!(lab.services.stats().echo_replies, 10);
}

#[test]
fn a_short_ping_is_answered_without_its_padding() {
    let mut lab = Lab::new("");
    let mut frame = ping4("10.0.0.9", "10.0.0.1", b"abc");
    frame.resize(60, 0xee);
    assert_eq!(see(&local(&mut lab, &frame)).payload, b"abc");
}

#[test]
fn a_checksum_left_to_us_is_made_whole() {
    let mut lab = Lab::new("");
    let mut frame = ping4("10.0.0.9", "10.0.0.1", &[1; 100]);
    frame[36..38].copy_from_slice(&[0xde, 0xad]);
    assert_eq!(
        lab.refusal(PuntReason::LocalInput, &frame),
        ServiceDrop::BadChecksum
    );
    let metadata = PacketMetadata {
        interface: 1,
        domain: 10,
        ..PacketMetadata::default()
    };
    for flag in [1, 2] {
        let vnet_header = [flag, 0, 0, 0, 0, 0, 34, 0, 2, 0, 0, 0];
        let actions = lab.punt_with(3, PuntReason::LocalInput, (metadata, vnet_header), &frame);
        assert_eq!(see(&sent(3, actions)).payload, [1; 100]);
    }
}

#[test]
fn other_interfaces_of_the_vrf_and_link_local_addresses_answer_too() {
    let mut lab = Lab::new("");
    for (source, destination) in [("fe80::9", ROUTER_LINK_LOCAL), ("fd00:1::9", "fd00:2::1")] {
        let reply = see(&local(&mut lab, &ping6(source, destination, b"x")));
        assert_eq!(
            (reply.source, reply.destination),
            (ip(destination), ip(source))
        );
    }
    let reply = see(&local(&mut lab, &ping4("10.0.0.9", "10.0.1.1", b"x")));
    assert_eq!((reply.from, reply.source), (ROUTER, ip("10.0.1.1")));
    for refused in [
        ping4("10.0.0.9", "10.0.2.1", b"x"),
        ping6("fe80::9", "fe80::ff:fe00:fd", b"x"),
        ping6("fe80::9", "ff02::1", b"x"),
    ] {
        assert_eq!(
            lab.refusal(PuntReason::LocalInput, &refused),
            ServiceDrop::NotForRouter
        );
    }
    // An interface of another VRF does not.
    let mut config = config("");
    config.interfaces[1].vrf = 5;
    let mut lab = Lab::with(config);
    assert_eq!(
        lab.refusal(PuntReason::LocalInput, &ping4("10.0.0.9", "10.0.1.1", b"x")),
        ServiceDrop::NotForRouter
    );
}

#[test]
fn nobody_is_answered_who_is_no_station() {
    let mut lab = Lab::new("");
    for source in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        assert_eq!(
            lab.refusal(PuntReason::LocalInput, &ping4(source, "10.0.0.1", b"x")),
            ServiceDrop::InvalidSource,
            "{source}"
        );
    }
    for source in ["::", "::1", "ff02::1"] {
        assert_eq!(
            lab.refusal(PuntReason::LocalInput, &ping6(source, "fd00:1::1", b"x")),
            ServiceDrop::InvalidSource,
            "{source}"
        );
    }
}

/// Puts the answers to all fragments together again.
fn reassembled(frames: &[Vec<u8>], header_bytes: usize) -> Vec<u8> {
    frames
        .iter()
        .flat_map(|frame| frame[14 + header_bytes..].to_vec())
        .collect()
}

#[test]
fn a_ping_in_fragments_is_answered_in_fragments() {
    let mut lab = Lab::new("");
    let payload: Vec<u8> = (0..3000).map(|byte| byte as u8).collect();
    let whole = ping4("10.0.0.9", "10.0.0.1", &payload);
    let pieces: Vec<Vec<u8>> = whole[34..]
        .chunks(1480)
        .enumerate()
        .map(|(index, piece)| {
            let mut header = etherparse::Ipv4Header::new(
                piece.len() as u16,
                9,
                etherparse::IpNumber::ICMP,
                [10, 0, 0, 9],
                [10, 0, 0, 1],
            )
            .unwrap();
            header.dont_fragment = false;
            header.identification = 0x1234;
            header.more_fragments = (index + 1) * 1480 < whole.len() - 34;
            header.fragment_offset = etherparse::IpFragOffset::try_new(index as u16 * 185).unwrap();
            header.header_checksum = header.calc_header_checksum();
            [&whole[..14], &header.to_bytes(), piece].concat()
        })
        .collect();
    assert_eq!(pieces.len(), 3);
    let answers: Vec<_> = pieces.iter().map(|piece| local(&mut lab, piece)).collect();
    for (piece, answer) in pieces.iter().zip(&answers) {
        let (header, _) = etherparse::Ipv4Header::from_slice(&answer[14..]).unwrap();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(
            (header.source, header.destination),
            ([10, 0, 0, 1], [10, 0, 0, 9])
        );
        assert_eq!(header.time_to_live, 64);
        // Identification, flags, offset and length stay.
        assert_eq!(answer[16..22], piece[16..22]);
        assert_eq!((&answer[..6], &answer[6..12]), (&VM[..], &ROUTER[..]));
    }
    let message = reassembled(&answers, 20);
    assert!(Sum::of(&message).verifies());
    let icmp = etherparse::Icmpv4Slice::from_slice(&message).unwrap();
    assert!(matches!(icmp.icmp_type(), Icmpv4Type::EchoReply(_)));
    assert_eq!(icmp.payload(), payload);
}

#[test]
fn a_ping6_in_fragments_is_answered_in_fragments() {
    let mut lab = Lab::new("");
    let payload: Vec<u8> = (0..2000).map(|byte| byte as u8).collect();
    let whole = ping6("fd00:1::9", "fd00:1::1", &payload);
    let pieces: Vec<Vec<u8>> = whole[54..]
        .chunks(1024)
        .enumerate()
        .map(|(index, piece)| {
            let place = (index as u16 * 1024) | u16::from(index == 0);
            let mut frame = whole[..54].to_vec();
            frame[18..20].copy_from_slice(&(8 + piece.len() as u16).to_be_bytes());
            frame[20] = 44;
            frame.extend([58, 0]);
            frame.extend(place.to_be_bytes());
            frame.extend([1, 2, 3, 4]);
            frame.extend(piece);
            frame
        })
        .collect();
    let answers: Vec<_> = pieces.iter().map(|piece| local(&mut lab, piece)).collect();
    let message = reassembled(&answers, 48);
    let icmp = etherparse::Icmpv6Slice::from_slice(&message).unwrap();
    assert!(icmp.is_checksum_valid(v6("fd00:1::1").octets(), v6("fd00:1::9").octets()));
    assert!(matches!(icmp.icmp_type(), Icmpv6Type::EchoReply(_)));
    assert_eq!(icmp.payload(), payload);
    for (piece, answer) in pieces.iter().zip(&answers) {
        assert_eq!(answer[54..62], piece[54..62], "the fragment header stays");
        assert_eq!(answer[14..21], piece[14..21]);
        assert_eq!(answer[22..38], v6("fd00:1::1").octets());
    }
}

#[test]
fn traceroute_sees_the_router() {
    let mut lab = Lab::new("");
    let probe = udp4("10.0.0.9", "8.8.8.8", 1, &[7; 32]);
    let error = see(&lab.answer(3, PuntReason::TtlExceeded, &probe));
    assert_eq!((error.from, error.to), (ROUTER, VM));
    assert_eq!(
        (error.source, error.destination),
        (ip("10.0.0.1"), ip("10.0.0.9"))
    );
    assert_eq!((error.selector, error.rest), ((11, 0), [0; 4]));
    assert_eq!(error.payload, probe[14..]);
    let probe = udp6("fd00:1::9", "2001:db8::1", 1, &[7; 32]);
    let error = see(&lab.answer(3, PuntReason::TtlExceeded, &probe));
    assert_eq!(
        (error.source, error.destination),
        (ip("fd00:1::1"), ip("fd00:1::9"))
    );
    assert_eq!((error.selector, error.rest), ((3, 0), [0; 4]));
    assert_eq!(error.payload, probe[14..]);
    // The last hop of a traceroute to the router itself: nobody serves the port.
    for (probe, selector) in [
        (udp4("10.0.0.9", "10.0.1.1", 1, b"x"), (3, 3)),
        (udp6("fd00:1::9", "fd00:2::1", 1, b"x"), (1, 4)),
    ] {
        let error = see(&local(&mut lab, &probe));
        assert_eq!(error.selector, selector);
    }
    assert_eq!(lab.services.stats().icmp_errors, 4);
}

#[test]
fn each_reason_has_its_type_and_code() {
    let mut lab = Lab::new("");
    for (reason, four, six) in [
        (PuntReason::TtlExceeded, (11, 0), (3, 0)),
        (PuntReason::NoRoute, (3, 0), (1, 0)),
        (PuntReason::HostUnreachable, (3, 1), (1, 3)),
        (PuntReason::AdminProhibited, (3, 13), (1, 1)),
        (PuntReason::PortUnreachable, (3, 3), (1, 4)),
    ] {
        let frame = udp4("10.0.0.9", "8.8.8.8", 9, b"x");
        assert_eq!(see(&lab.answer(3, reason, &frame)).selector, four);
        let frame = udp6("fd00:1::9", "2001:db8::1", 9, b"x");
        assert_eq!(see(&lab.answer(3, reason, &frame)).selector, six);
    }
}

#[test]
fn a_rejected_frame_between_two_stations_is_answered_by_the_domain_s_only_router() {
    let mut lab = Lab::new("");
    let mut frame = udp4("10.0.0.9", "10.0.0.8", 9, b"x");
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x88]);
    let metadata = PacketMetadata {
        domain: 10,
        ..PacketMetadata::default()
    };
    assert_eq!(metadata.interface, NO_INTERFACE);
    let told = lab.punt_with(3, PuntReason::AdminProhibited, (metadata, [0; 12]), &frame);
    let told = see(&sent(3, told));
    assert_eq!((told.from, told.to, told.selector), (ROUTER, VM, (3, 13)));
    assert_eq!(told.payload, frame[14..]);
}

#[test]
fn a_packet_too_big_is_told_the_mtu_of_its_way_out() {
    let mut lab = Lab::new("");
    for (mtu_bytes, told4, told6) in [
        (0, 1400_u16, 1400_u32),
        (1300, 1300, 1300),
        (600, 600, 1280),
    ] {
        let metadata = PacketMetadata {
            interface: 1,
            egress_interface: 2,
            domain: 10,
            mtu_bytes,
            ..PacketMetadata::default()
        };
        let about = |lab: &mut Lab, frame: &[u8]| {
            see(&sent(
                3,
                lab.punt_with(3, PuntReason::PacketTooBig, (metadata, [0; 12]), frame),
            ))
        };
        let frame = udp4("10.0.0.9", "10.0.1.9", 9, &[5; 1472]);
        let error = about(&mut lab, &frame);
        let [high, low] = told4.to_be_bytes();
        assert_eq!((error.selector, error.rest), ((3, 4), [0, 0, high, low]));
        // As much as fits into 576 bytes.
        assert_eq!(error.ip_bytes, 576);
        assert_eq!(error.payload, frame[14..14 + 548]);
        let frame = udp6("fd00:1::9", "fd00:2::9", 9, &[5; 1452]);
        let error = about(&mut lab, &frame);
        assert_eq!((error.selector, error.rest), ((2, 0), told6.to_be_bytes()));
        assert_eq!(error.ip_bytes, 1280);
        assert_eq!(error.payload, frame[14..14 + 1232]);
    }
}

/// The same frame with bytes changed and the IPv4 header's checksum right again.
fn with(frame: &[u8], changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for (offset, bytes) in changes {
        frame[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    if frame[12..14] == [8, 0] {
        frame[24..26].copy_from_slice(&[0, 0]);
        let sum = Sum::of(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

#[test]
fn no_error_is_sent_about_what_rfc_1812_forbids() {
    let mut lab = Lab::new("");
    let good = udp4("10.0.0.9", "8.8.8.8", 1, &[7; 32]);
    lab.answer(3, PuntReason::TtlExceeded, &good);
    let icmp = ping4("10.0.0.9", "8.8.8.8", b"abc");
    lab.answer(3, PuntReason::TtlExceeded, &icmp);
    for (what, frame) in [
        (
            "to the broadcast MAC address",
            with(&good, &[(0, &BROADCAST)]),
        ),
        ("to broadcast", with(&good, &[(30, &[255; 4])])),
        (
            "to the network's broadcast",
            with(&good, &[(30, &[10, 0, 0, 255])]),
        ),
        ("to a group", with(&good, &[(30, &[224, 0, 0, 5])])),
        ("from nowhere", with(&good, &[(26, &[0; 4])])),
        ("from loopback", with(&good, &[(26, &[127, 0, 0, 1])])),
        ("from a group", with(&good, &[(26, &[224, 0, 0, 1])])),
        ("from broadcast", with(&good, &[(26, &[255; 4])])),
        (
            "from the network's broadcast",
            with(&good, &[(26, &[10, 0, 0, 255])]),
        ),
        ("from ourselves", with(&good, &[(26, &[10, 0, 0, 1])])),
        ("a later fragment", with(&good, &[(20, &[0, 9])])),
        ("an ICMP error", with(&icmp, &[(34, &[3])])),
        ("an ICMP redirect", with(&icmp, &[(34, &[5])])),
        ("ICMP of an unknown type", with(&icmp, &[(34, &[99])])),
        ("ICMP that cannot be read", with(&icmp, &[(16, &[0, 24])])),
    ] {
        assert_eq!(
            lab.refusal(PuntReason::TtlExceeded, &frame),
            ServiceDrop::ErrorNotAllowed,
            "{what}"
        );
    }
    let mut wrong = good.clone();
    wrong[24] ^= 1;
    assert_eq!(
        lab.refusal(PuntReason::TtlExceeded, &wrong),
        ServiceDrop::BadChecksum
    );
    // The first fragment is answered.
    lab.answer(
        3,
        PuntReason::TtlExceeded,
        &with(&good, &[(20, &[0x20, 0])]),
    );
}

#[test]
fn no_error_is_sent_about_what_rfc_4443_forbids() {
    let mut lab = Lab::new("");
    let good = udp6("fd00:1::9", "2001:db8::1", 1, &[7; 32]);
    lab.answer(3, PuntReason::NoRoute, &good);
    let icmp = ping6("fd00:1::9", "2001:db8::1", b"abc");
    lab.answer(3, PuntReason::NoRoute, &icmp);
    let group = v6("ff0e::1").octets();
    let to_group = with(&good, &[(38, &group), (0, &[0x33, 0x33, 0, 0, 0, 1])]);
    for (what, frame) in [
        ("to a group", to_group.clone()),
        ("from nowhere", with(&good, &[(22, &[0; 16])])),
        ("from a group", with(&good, &[(22, &group)])),
        (
            "from ourselves",
            with(&good, &[(22, &v6("fd00:1::1").octets())]),
        ),
        ("an ICMPv6 error", with(&icmp, &[(54, &[1])])),
        ("a redirect", with(&icmp, &[(54, &[137])])),
    ] {
        assert_eq!(
            lab.refusal(PuntReason::NoRoute, &frame),
            ServiceDrop::ErrorNotAllowed,
            "{what}"
        );
    }
    // But path MTU discovery works for groups (RFC 4443 §2.4 e.3).
    let metadata = PacketMetadata {
        interface: 1,
        egress_interface: 2,
        domain: 10,
        ..PacketMetadata::default()
    };
    let actions = lab.punt_with(3, PuntReason::PacketTooBig, (metadata, [0; 12]), &to_group);
    assert_eq!(see(&sent(3, actions)).selector, (2, 0));
}

#[test]
fn errors_have_a_budget_of_their_own() {
    let mut lab = Lab::new("");
    let frame = udp4("10.0.0.9", "8.8.8.8", 1, b"x");
    for _ in 0..lab.services.limits().icmp_errors_burst {
        lab.answer(3, PuntReason::TtlExceeded, &frame);
    }
    assert_eq!(
        lab.refusal(PuntReason::TtlExceeded, &frame),
        ServiceDrop::RateLimited
    );
    lab.answer(4, PuntReason::TtlExceeded, &frame);
    local(&mut lab, &ping4("10.0.0.9", "10.0.0.1", b"x"));
    lab.wait(10);
    lab.answer(3, PuntReason::TtlExceeded, &frame);
    let reasons = lab.services.stats().drops(ServiceDrop::RateLimited);
    assert_eq!(reasons, 1);
}

#[test]
fn an_error_needs_an_interface_and_an_address() {
    let mut lab = Lab::new("");
    let metadata = PacketMetadata {
        interface: NO_INTERFACE,
        domain: 10,
        ..PacketMetadata::default()
    };
    // Found by domain and MAC address.
    let frame = udp4("10.0.0.9", "8.8.8.8", 1, b"x");
    let actions = lab.punt_with(3, PuntReason::NoRoute, (metadata, [0; 12]), &frame);
    assert_eq!(see(&sent(3, actions)).source, ip("10.0.0.1"));
    let mut config = config("");
    config.interfaces[0].addresses.remove(0);
    let mut lab = Lab::with(config);
    assert_eq!(
        lab.refusal(PuntReason::NoRoute, &frame),
        ServiceDrop::NoAddress
    );
}

#[test]
fn other_protocols_to_the_router_are_not_served() {
    let mut lab = Lab::new("");
    let builder = PacketBuilder::ethernet2(VM, ROUTER)
        .ipv4([10, 0, 0, 9], [10, 0, 0, 1], 9)
        .tcp(1234, 22, 1, 1000);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"").unwrap();
    assert_eq!(
        lab.refusal(PuntReason::LocalInput, &frame),
        ServiceDrop::NotServed
    );
}
