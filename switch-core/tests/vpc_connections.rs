//! Access lists, and security rules over connections.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod vpc;

use switch_core::{DropReason, Millis};
use vpc::frames::{
    ACK, FIN, RST, SYN, Way, echo_reply, echo_request, extended, fragments, fragments6, icmp_error,
    quoted, seen, tcp, udp, udp_of, way,
};
use vpc::{Copy, Lab, open, ports, two_tenants};

const DENIED: DropReason = DropReason::AclDenied;
const INVALID: DropReason = DropReason::ConnectionInvalid;

fn forth() -> Way {
    way((1, 2), "10.0.0.1", "10.0.0.2")
}

fn back() -> Way {
    way((2, 1), "10.0.0.2", "10.0.0.1")
}

fn forth6() -> Way {
    way((1, 2), "fd00::1", "fd00::2")
}

fn back6() -> Way {
    way((2, 1), "fd00::2", "fd00::1")
}

/// Red's guests may open anything, and be asked on TCP port 80 by red's.
fn web() -> Lab {
    let lab = two_tenants();
    lab.rule("egress_rules", 1, r#""policy": 1"#, "allow");
    lab.rule(
        "ingress_rules",
        100,
        r#""policy": 1, "protocol": 6, "destination_port": 80"#,
        "allow",
    );
    lab
}

/// Opens a TCP connection from vm1 to vm2, port 80; what comes next are sequence numbers 1001 and 5001.
fn handshake(lab: &mut Lab, forth: Way, back: Way) {
    let ports = (1000, 80);
    let syn = tcp(forth, ports, SYN, (1000, 0), &[]);
    assert_eq!(lab.passes(1, &syn), (2, syn.clone()));
    let answer = tcp(back, (80, 1000), SYN | ACK, (5000, 1001), &[]);
    assert_eq!(lab.passes(2, &answer), (1, answer.clone()));
    let ack = tcp(forth, ports, ACK, (1001, 5001), &[]);
    assert_eq!(lab.passes(1, &ack), (2, ack.clone()));
}

fn established(forth: Way, back: Way) {
    let mut lab = web();
    handshake(&mut lab, forth, back);
    let request = tcp(forth, (1000, 80), ACK, (1001, 5001), b"get");
    lab.passes(1, &request);
    lab.is_cached(1, &request);
    let answer = tcp(back, (80, 1000), ACK, (5001, 1004), b"page");
    lab.passes(2, &answer);
    lab.is_cached(2, &answer);
}

#[test]
fn what_no_rule_allows_is_denied() {
    let mut lab = two_tenants();
    lab.drops(1, &udp(forth(), 1000, 53), DENIED);
    lab.rule("egress_rules", 1, r#""policy": 1"#, "allow");
    lab.drops(1, &udp(forth(), 1000, 53), DENIED);
    lab.rule("ingress_rules", 1, r#""policy": 1"#, "allow");
    lab.passes(1, &udp(forth(), 1000, 53));
    // Blue's rules are blue's.
    lab.drops(
        4,
        &udp(way((4, 5), "10.0.0.1", "10.0.0.2"), 1000, 53),
        DENIED,
    );
}

#[test]
fn a_tcp_connection_opens_and_its_segments_are_decided_from_the_cache() {
    established(forth(), back());
}

#[test]
fn a_tcp_connection_over_ipv6_too() {
    established(forth6(), back6());
}

#[test]
fn what_belongs_to_no_connection_is_denied() {
    let mut lab = web();
    lab.drops(
        2,
        &tcp(back(), (80, 1000), ACK, (5001, 1001), b"x"),
        INVALID,
    );
    lab.drops(
        2,
        &tcp(back(), (80, 1000), SYN | ACK, (5000, 1001), &[]),
        INVALID,
    );
    lab.drops(1, &tcp(forth(), (1000, 22), SYN, (1, 0), &[]), DENIED);
    lab.drops(1, &echo_reply(forth(), 5), INVALID);
    handshake(&mut lab, forth(), back());
    // Far outside the window.
    lab.drops(
        2,
        &tcp(back(), (80, 1000), ACK, (0x7000_0000, 1001), b"x"),
        INVALID,
    );
}

#[test]
fn a_reset_ends_a_connection() {
    let mut lab = web();
    handshake(&mut lab, forth(), back());
    lab.passes_once(1, &tcp(forth(), (1000, 80), RST, (1001, 5001), &[]));
    // For as long as segments may still be under way.
    lab.wait(Millis::from_secs(11).0);
    let late = tcp(back(), (80, 1000), ACK, (5001, 1001), b"x");
    assert_eq!(lab.once(2, &late), [Copy::Drop(INVALID)]);
}

#[test]
fn a_connection_that_both_sides_have_closed_is_forgotten_and_another_takes_its_ports() {
    let mut lab = web();
    handshake(&mut lab, forth(), back());
    lab.passes_once(1, &tcp(forth(), (1000, 80), FIN | ACK, (1001, 5001), &[]));
    lab.passes_once(2, &tcp(back(), (80, 1000), FIN | ACK, (5001, 1002), &[]));
    lab.passes_once(1, &tcp(forth(), (1000, 80), ACK, (1002, 5002), &[]));
    lab.wait(Millis::from_secs(125).0);
    let late = tcp(back(), (80, 1000), ACK, (5002, 1002), b"x");
    assert_eq!(lab.once(2, &late), [Copy::Drop(INVALID)]);
    handshake(&mut lab, forth(), back());
}

#[test]
fn an_echo_is_answered_but_not_asked_back() {
    for (forth, back) in [(forth(), back()), (forth6(), back6())] {
        let mut lab = two_tenants();
        let (protocol, kind) = if forth.from.is_ipv4() {
            (1, 8)
        } else {
            (58, 128)
        };
        lab.rule(
            "egress_rules",
            1,
            &format!(r#""policy": 1, "protocol": {protocol}, "destination_port": {kind}"#),
            "allow",
        );
        let ask = format!(
            r#""policy": 1, "protocol": {protocol}, "destination_port": {kind}, "source": "10.0.0.1", "source6": "*""#
        );
        let ask6 = format!(
            r#""policy": 1, "protocol": {protocol}, "destination_port": {kind}, "source6": "fd00::1""#
        );
        lab.rule(
            "ingress_rules",
            1,
            if forth.from.is_ipv4() { &ask } else { &ask6 },
            "allow",
        );
        lab.drops(2, &echo_reply(back, 7), INVALID);
        lab.passes(1, &echo_request(forth, 7));
        lab.passes(2, &echo_reply(back, 7));
        lab.is_cached(1, &echo_request(forth, 7));
        lab.is_cached(2, &echo_reply(back, 7));
        lab.drops(2, &echo_request(back, 7), DENIED);
        lab.drops(2, &echo_reply(back, 8), INVALID);
    }
}

#[test]
fn what_nobody_answers_is_cached_until_somebody_does() {
    let mut lab = web();
    lab.rule(
        "ingress_rules",
        1,
        r#""policy": 1, "protocol": 17, "destination_port": 514"#,
        "allow",
    );
    let (asking, answer) = (udp(forth(), 1000, 514), udp(back(), 514, 1000));
    lab.passes(1, &asking);
    lab.is_cached(1, &asking);
    // Unanswered, it is forgotten soon unless it goes on; what comes from the cache counts.
    for _ in 0..9 {
        lab.wait(Millis::from_secs(20).0);
        lab.once(1, &asking);
    }
    lab.is_cached(1, &asking);
    lab.passes(2, &answer);
    let before = lab.stats().misses;
    // A verdict from when it was new would hold for new ones' rules.
    lab.passes(1, &asking);
    assert!(lab.stats().misses > before);
    lab.is_cached(1, &asking);
    lab.is_cached(2, &answer);
    lab.remove_rule(
        "ingress_rules",
        1,
        r#""policy": 1, "protocol": 17, "destination_port": 514"#,
    );
    lab.drops(1, &asking, DENIED);
}

#[test]
fn udp_is_answered_until_it_is_quiet_for_long() {
    let mut lab = two_tenants();
    lab.rule(
        "egress_rules",
        1,
        r#""policy": 1, "protocol": 17, "destination_port": 53"#,
        "allow",
    );
    lab.rule(
        "ingress_rules",
        1,
        r#""policy": 1, "protocol": 17, "destination_port": 53"#,
        "allow",
    );
    lab.drops(2, &udp(back(), 53, 1000), DENIED);
    lab.passes(1, &udp(forth(), 1000, 53));
    lab.passes(2, &udp(back(), 53, 1000));
    lab.passes(1, &udp(forth(), 1000, 53));
    lab.is_cached(1, &udp(forth(), 1000, 53));
    lab.is_cached(2, &udp(back(), 53, 1000));
    lab.drops(2, &udp(back(), 53, 1001), DENIED);
    lab.wait(Millis::from_secs(121).0);
    lab.drops(2, &udp(back(), 53, 1000), DENIED);
}

#[test]
fn errors_about_a_connection_pass_and_others_do_not() {
    for (forth, back, kind) in [(forth(), back(), (3, 3)), (forth6(), back6(), (1, 4))] {
        let mut lab = two_tenants();
        lab.rule("egress_rules", 1, r#""policy": 1, "protocol": 17"#, "allow");
        lab.rule(
            "ingress_rules",
            1,
            r#""policy": 1, "protocol": 17"#,
            "allow",
        );
        let asked = udp(forth, 1000, 53);
        lab.drops(2, &icmp_error(back, kind, &asked), INVALID);
        lab.passes(1, &asked);
        let (port, error) = lab.passes(2, &icmp_error(back, kind, &asked));
        assert_eq!(port, 1);
        assert_eq!(quoted(&error), (forth.from, forth.to, (1000, 53)));
        let other = udp(forth, 1001, 53);
        lab.drops(2, &icmp_error(back, kind, &other), INVALID);
    }
}

#[test]
fn fragments_go_with_their_first() {
    let mut lab = two_tenants();
    lab.rule(
        "egress_rules",
        1,
        r#""policy": 1, "protocol": 17, "destination_port": 53"#,
        "allow",
    );
    lab.rule(
        "ingress_rules",
        1,
        r#""policy": 1, "protocol": 17, "destination_port": 53"#,
        "allow",
    );
    let whole = udp_of(forth(), (1000, 53), 64, &[7; 2000]);
    let parts = fragments(&whole, 1000);
    lab.drops(1, &parts[1], INVALID);
    for part in &parts {
        assert_eq!(lab.passes(1, part), (2, part.clone()));
    }
    let denied = udp_of(forth(), (1000, 54), 64, &[7; 2000]);
    let mut denied = fragments(&denied, 1000);
    for part in &mut denied {
        // Another datagram.
        part[18] = 9;
        let header = etherparse::Ipv4Header::from_slice(&part[14..]).unwrap().0;
        part[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    }
    lab.drops(1, &denied[0], DENIED);
    lab.drops(1, &denied[1], INVALID);
}

#[test]
fn taking_a_rule_away_ends_the_connections_it_allowed() {
    for table in ["egress_rules", "ingress_rules"] {
        let mut lab = two_tenants();
        let key = r#""policy": 1, "protocol": 6, "destination_port": 80"#;
        for table in ["egress_rules", "ingress_rules"] {
            lab.rule(table, 5, key, "allow");
        }
        handshake(&mut lab, forth(), back());
        let request = tcp(forth(), (1000, 80), ACK, (1001, 5001), b"get");
        let answer = tcp(back(), (80, 1000), ACK, (5001, 1004), b"page");
        lab.passes(1, &request);
        lab.passes(2, &answer);
        lab.is_cached(1, &request);
        lab.is_cached(2, &answer);
        lab.remove_rule(table, 5, key);
        lab.drops(1, &request, DENIED);
        lab.drops(2, &answer, DENIED);
        // Brought back in time, the connection goes on.
        lab.rule(table, 7, key, "allow");
        lab.passes(1, &request);
        lab.passes(2, &answer);
    }
}

#[test]
fn rules_name_peers_by_prefix_and_by_group() {
    let mut lab = two_tenants();
    lab.rule("egress_rules", 1, r#""policy": 1"#, "allow");
    lab.rule(
        "ingress_rules",
        10,
        r#""policy": 1, "source": "10.0.0.0/25", "protocol": 17, "destination_port": "1000..1999""#,
        "allow",
    );
    lab.rule(
        "ingress_rules",
        20,
        r#""policy": 1, "source": "10.0.0.0/25", "protocol": 17, "destination_port": 1500"#,
        "deny",
    );
    let frame = |port| udp(forth(), 7, port);
    lab.passes(1, &frame(1000));
    lab.passes(1, &frame(1999));
    lab.drops(1, &frame(2000), DENIED);
    lab.drops(1, &frame(1500), DENIED);
    lab.rule(
        "ingress_rules",
        5,
        r#""policy": 1, "source_groups": "4&4""#,
        "allow",
    );
    lab.drops(1, &frame(2000), DENIED);
    lab.insert(
        "groups4",
        r#""vrf": 1, "address": "10.0.0.1""#,
        "member",
        r#""groups": 6"#,
    );
    lab.passes(1, &frame(2000));
    lab.insert(
        "groups6",
        r#""vrf": 1, "address": "fd00::/64""#,
        "member",
        r#""groups": 4"#,
    );
    lab.passes(1, &udp(forth6(), 7, 2000));
    // Blue's 10.0.0.1 is no member.
    lab.rule("egress_rules", 1, r#""policy": 2"#, "allow");
    lab.rule(
        "ingress_rules",
        5,
        r#""policy": 2, "source_groups": "4&4""#,
        "allow",
    );
    lab.drops(
        4,
        &udp(way((4, 5), "10.0.0.1", "10.0.0.2"), 7, 2000),
        DENIED,
    );
    lab.remove("groups4", r#""vrf": 1, "address": "10.0.0.1""#);
    lab.drops(1, &frame(2000), DENIED);
}

#[test]
fn one_connection_of_each_port_counts_and_rules_count_frames() {
    let mut lab = web();
    handshake(&mut lab, forth(), back());
    assert_eq!(
        lab.engine
            .conntrack()
            .port_connections(switch_core::PortId::new(1).unwrap()),
        1
    );
    lab.warm.count_all();
    let listed = lab
        .engine
        .entries("ingress_rules", (None, 9), &vpc::Names)
        .unwrap();
    assert!(listed[0].counters.unwrap().frames > 6);
}

/// vm1 and vm2 with access lists and no rules, untracked.
fn stateless() -> Lab {
    let lab = two_tenants();
    for vm in [1, 2] {
        lab.write(&format!(
            r#"[{{"modify": {{"table": "ports", "key": {{"port": "vm{vm}"}}, "action": "custom", "params": {{"domain": 10, "policy": 0, "features": 3}}}}}}]"#
        ));
    }
    lab
}

#[test]
fn an_access_list_decides_on_each_frame_alone() {
    for table in ["acl_in", "acl_out"] {
        let mut lab = stateless();
        let port = if table == "acl_in" { "vm1" } else { "vm2" };
        let rule = |priority, key: &str, action| {
            lab.rule(
                table,
                priority,
                &format!(r#""port": "{port}", {key}"#),
                action,
            );
        };
        rule(1, r#""domain": 10"#, "deny");
        rule(2, r#""ether_type": "0x0806""#, "allow");
        rule(
            10,
            r#""source": "10.0.0.0/24", "destination": "10.0.0.2", "protocol": 6, "destination_port": "80..443""#,
            "allow",
        );
        rule(
            11,
            r#""protocol": 17, "source_port": "1024..65535", "destination_port": 53"#,
            "allow",
        );
        rule(
            12,
            r#""source6": "fd00::/64", "protocol": 58, "destination_port": 128"#,
            "allow",
        );
        rule(
            13,
            r#""protocol": 6, "destination_port": 81, "tcp_flags": "2&18""#,
            "deny",
        );
        lab.passes(1, &tcp(forth(), (1, 80), SYN, (1, 0), &[]));
        lab.passes(1, &tcp(forth(), (1, 443), SYN, (1, 0), &[]));
        lab.drops(1, &tcp(forth(), (1, 444), SYN, (1, 0), &[]), DENIED);
        lab.drops(1, &tcp(forth(), (1, 81), SYN, (1, 0), &[]), DENIED);
        lab.passes(1, &udp(forth(), 1024, 53));
        lab.drops(1, &udp(forth(), 1023, 53), DENIED);
        lab.passes(1, &echo_request(forth6(), 3));
        lab.drops(1, &echo_request(forth(), 3), DENIED);
        lab.is_cached(1, &udp(forth(), 1023, 53));
        lab.is_cached(1, &tcp(forth(), (1, 444), SYN, (1, 0), &[]));
    }
}

#[test]
fn a_rejected_sender_is_told_by_the_control_side() {
    let mut lab = stateless();
    lab.rule("acl_in", 1, r#""protocol": 17"#, "reject");
    let args = lab.punts(1, &udp(forth(), 1, 2), "admin_prohibited");
    assert_eq!(args, [0, 10, 0, 0]);
}

#[test]
fn an_access_list_marks_and_mirrors() {
    let mut lab = stateless();
    let entry = |key: &str, action: &str, params: &str| {
        lab.write(&format!(
            r#"[{{"insert": {{"table": "acl_in", "key": {{{key}}}, "priority": 5, "action": "{action}", "params": {{{params}}}}}}}]"#
        ));
    };
    entry(
        r#""protocol": 17, "destination_port": 10"#,
        "allow_marked4",
        r#""dscp": 46"#,
    );
    entry(
        r#""protocol": 17, "destination_port": 11"#,
        "allow_marked6",
        r#""dscp": 46"#,
    );
    entry(
        r#""protocol": 17, "destination_port": 12"#,
        "allow_mirrored",
        r#""port": "vm5""#,
    );
    assert_eq!(seen(&lab.passes(1, &udp(forth(), 1, 10)).1).dscp, 46);
    assert_eq!(seen(&lab.passes(1, &udp(forth6(), 1, 11)).1).dscp, 46);
    let frame = udp(forth(), 1, 12);
    let copies = lab.send(1, &frame);
    assert_eq!(
        copies,
        [Copy::Port(2, frame.clone()), Copy::Port(5, frame.clone())]
    );
}

#[test]
fn group_addressed_packets_are_asked_about_copy_by_copy() {
    let mut lab = two_tenants();
    let frame = Way {
        macs: (vpc::frames::mac(1), [1, 0, 0x5e, 0, 0, 5]),
        ..way((1, 1), "10.0.0.1", "239.0.0.5")
    };
    let frame = udp(frame, 1, 5000);
    lab.drops(1, &frame, DENIED);
    lab.rule(
        "egress_rules",
        1,
        r#""policy": 1, "destination": "239.0.0.0/8""#,
        "allow",
    );
    lab.drops(1, &frame, DENIED);
    lab.rule(
        "ingress_rules",
        1,
        r#""policy": 1, "protocol": 17, "destination_port": 5000"#,
        "allow",
    );
    assert_eq!(ports(&lab.send(1, &frame)), [2]);
    lab.is_cached(1, &frame);
}

#[test]
fn what_is_open_between_tenants_is_still_closed() {
    let mut lab = open();
    lab.passes(1, &udp(forth(), 1000, 53));
    // The same five-tuple in the other tenant opens its own connection; an answer there belongs to nobody yet.
    lab.passes(5, &udp(way((5, 4), "10.0.0.2", "10.0.0.1"), 53, 1000));
    lab.passes(2, &udp(back(), 53, 1000));
    let zones = [1, 2].map(|zone| {
        lab.engine
            .conntrack()
            .zone_connections(switch_core::conntrack::Zone(zone))
    });
    assert_eq!(zones, [1, 1]);
}

#[test]
fn fragments_of_ipv6_go_with_their_first() {
    let mut lab = two_tenants();
    for table in ["egress_rules", "ingress_rules"] {
        let key = r#""policy": 1, "protocol": 17, "destination_port": 53"#;
        lab.rule(table, 1, key, "allow");
    }
    let whole = udp_of(forth6(), (1000, 53), 64, &[7; 2000]);
    let parts = fragments6(&whole, 1000);
    lab.drops(1, &parts[1], INVALID);
    for _ in 0..2 {
        for part in &parts {
            assert_eq!(lab.send(1, part), [Copy::Port(2, part.clone())]);
        }
    }
}

#[test]
fn rules_see_the_protocol_behind_extension_headers() {
    const SCTP: u8 = 132;
    let mut lab = two_tenants();
    for table in ["egress_rules", "ingress_rules"] {
        lab.rule(table, 1, r#""policy": 1, "protocol": 132"#, "allow");
    }
    let mut plain = udp(forth6(), 1000, 53);
    plain[20] = SCTP;
    let options = extended(&plain, 60, &[0, 1, 4, 0, 0, 0, 0]);
    let fragment = extended(&plain, 44, &[0, 0, 1, 0, 0, 0, 9]);
    for frame in [plain, options, fragment] {
        assert_eq!(lab.send(1, &frame), [Copy::Port(2, frame.clone())]);
    }
    let denied = extended(&udp(forth6(), 1000, 53), 60, &[0, 1, 4, 0, 0, 0, 0]);
    lab.drops(1, &denied, DENIED);
}

#[test]
fn rules_name_destinations_of_either_family() {
    let mut lab = two_tenants();
    lab.rule("ingress_rules", 1, r#""policy": 1"#, "allow");
    lab.rule(
        "egress_rules",
        2,
        r#""policy": 1, "destination6": "fd00::2""#,
        "allow",
    );
    lab.passes(1, &udp(forth6(), 1000, 53));
    lab.drops(1, &udp(forth(), 1000, 53), DENIED);
    lab.rule(
        "egress_rules",
        2,
        r#""policy": 1, "destination": "10.0.0.0/30", "family": 4"#,
        "allow",
    );
    lab.passes(1, &udp(forth(), 1000, 53));
    lab.passes(2, &udp(back6(), 53, 1000));
    lab.drops(2, &udp(back6(), 54, 1000), DENIED);
}
