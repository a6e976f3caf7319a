//! Rates, marks and mirrors in the `vpc` program.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod vpc;

use switch_core::DropReason;
use vpc::frames::{BROADCAST, Way, arp, mac, seen, tagged, udp, udp_of, way};
use vpc::{Copy, Lab, open, ports};

fn forth() -> Way {
    way((1, 2), "10.0.0.1", "10.0.0.2")
}

fn meter(lab: &Lab, array: &str, index: u16, rate: &str) {
    lab.write(&format!(
        r#"[{{"set_meter": {{"meter": "{array}", "index": {index}, "rate": {{{rate}}}}}}}]"#
    ));
}

/// How many of a hundred frames pass at once.
fn passing(lab: &mut Lab, port: u16, frame: &[u8]) -> usize {
    passing_or(lab, (port, frame), DropReason::RateExceeded)
}

fn passing_or(lab: &mut Lab, (port, frame): (u16, &[u8]), expected: DropReason) -> usize {
    (0..100)
        .filter(|_| match lab.once(port, frame).as_slice() {
            [Copy::Drop(reason)] => {
                assert_eq!(*reason, expected);
                false
            }
            _ => true,
        })
        .count()
}

#[test]
fn a_port_s_frames_are_limited_in_each_direction() {
    for (array, port) in [("port_in", 1), ("port_out", 2)] {
        let mut lab = open();
        let frame = udp(forth(), 1000, 53);
        assert_eq!(passing(&mut lab, 1, &frame), 100);
        meter(
            &lab,
            array,
            port,
            r#""frames_per_second": 100, "burst_frames": 10"#,
        );
        assert_eq!(passing(&mut lab, 1, &frame), 10);
        lab.wait(200);
        assert_eq!(passing(&mut lab, 1, &frame), 10);
        lab.wait(50);
        assert_eq!(passing(&mut lab, 1, &frame), 5);
        lab.write(&format!(
            r#"[{{"set_meter": {{"meter": "{array}", "index": {port}}}}}]"#
        ));
        assert_eq!(passing(&mut lab, 1, &frame), 100);
    }
}

#[test]
fn a_port_s_bytes_are_limited() {
    let mut lab = open();
    let frame = udp_of(forth(), (1000, 53), 64, &[0; 958]);
    assert_eq!(frame.len(), 1000);
    meter(
        &lab,
        "port_in",
        1,
        r#""bytes_per_second": 100000, "burst_bytes": 20000"#,
    );
    assert_eq!(passing(&mut lab, 1, &frame), 20);
    lab.wait(100);
    assert_eq!(passing(&mut lab, 1, &frame), 10);
}

#[test]
fn an_entry_limits_what_it_allows() {
    let mut lab = open();
    lab.write(
        r#"[{"insert": {"table": "ingress_rules", "key": {"policy": 1, "protocol": 17, "destination_port": 53}, "priority": 9,
             "action": "allow_limited", "params": {"meter": 5}}},
            {"set_meter": {"meter": "rules", "index": 5, "rate": {"frames_per_second": 10, "burst_frames": 3}}}]"#,
    );
    assert_eq!(passing(&mut lab, 1, &udp(forth(), 1000, 53)), 3);
    assert_eq!(passing(&mut lab, 1, &udp(forth(), 1000, 54)), 100);
}

#[test]
fn a_storm_is_limited_and_nothing_else() {
    let mut lab = open();
    let storm = DropReason::StormControl;
    let request = arp((mac(1), BROADCAST), 1, (mac(1), "10.0.0.1"), "10.0.0.77");
    meter(
        &lab,
        "broadcast_in",
        1,
        r#""frames_per_second": 10, "burst_frames": 4"#,
    );
    assert_eq!(passing_or(&mut lab, (1, &request), storm), 4);
    assert_eq!(
        passing(
            &mut lab,
            2,
            &arp((mac(2), BROADCAST), 1, (mac(2), "10.0.0.2"), "10.0.0.77")
        ),
        100
    );
    assert_eq!(passing(&mut lab, 1, &udp(forth(), 1, 2)), 100);
    let group = Way {
        macs: (mac(1), [1, 0, 0x5e, 0, 0, 5]),
        ..way((1, 1), "10.0.0.1", "239.0.0.5")
    };
    assert_eq!(passing(&mut lab, 1, &udp(group, 1, 2)), 100);
    meter(
        &lab,
        "multicast_in",
        1,
        r#""frames_per_second": 10, "burst_frames": 6"#,
    );
    assert_eq!(passing_or(&mut lab, (1, &udp(group, 1, 2)), storm), 6);
    lab.write(r#"[{"modify": {"table": "domains", "key": {"domain": 10}, "action": "describe", "params": {"vrf": 1, "zone": 1, "flood": 10, "options": 31}}}]"#);
    meter(
        &lab,
        "unknown_in",
        1,
        r#""frames_per_second": 10, "burst_frames": 7"#,
    );
    assert_eq!(
        passing_or(
            &mut lab,
            (1, &udp(way((1, 0x77), "10.0.0.1", "10.0.0.77"), 1, 2)),
            storm
        ),
        7
    );
}

fn with_features(lab: &Lab, vm: u8, features: u8) {
    lab.write(&format!(
        r#"[{{"modify": {{"table": "ports", "key": {{"port": "vm{vm}"}}, "action": "custom", "params": {{"domain": 10, "policy": 1, "features": {features}}}}}}}]"#
    ));
}

#[test]
fn a_port_is_mirrored_in_either_direction() {
    let mut lab = open();
    for vm in [1, 2] {
        with_features(&lab, vm, 5);
    }
    lab.insert(
        "mirrors_in",
        r#""port": "vm1""#,
        "mirror_to",
        r#""port": "vm30""#,
    );
    lab.insert(
        "mirrors_out",
        r#""port": "vm2""#,
        "mirror_to",
        r#""port": "vm31""#,
    );
    let frame = udp(forth(), 1000, 53);
    let copies = lab.send(1, &frame);
    let expected = [2, 30, 31].map(|port| Copy::Port(port, frame.clone()));
    assert_eq!(copies, expected);
    // From the cache, too.
    lab.send(2, &udp(way((2, 1), "10.0.0.2", "10.0.0.1"), 53, 1000));
    assert_eq!(lab.send(1, &frame), expected);
    lab.is_cached(1, &frame);
    // What is dropped was still seen.
    let spoofed = udp(forth(), 1000, 54);
    lab.remove_rule("egress_rules", 1, r#""policy": 1"#);
    let copies = lab.send(1, &spoofed);
    assert_eq!(ports(&copies), [30]);
    assert_eq!(copies.last(), Some(&Copy::Drop(DropReason::AclDenied)));
}

#[test]
fn priorities_become_classes_and_classes_priorities() {
    let mut lab = open();
    lab.insert("ports", r#""port": "vm8""#, "trunk", r#""features": 16"#);
    lab.insert(
        "subports",
        r#""port": "vm8", "vid": 100"#,
        "subport",
        r#""domain": 10, "policy": 0"#,
    );
    lab.insert(
        "tags_out",
        r#""port": "vm8", "domain": 10"#,
        "tag",
        r#""vid": 100, "policy": 0"#,
    );
    lab.insert(
        "stations",
        r#""domain": 10, "mac": "02:00:00:00:00:08""#,
        "station",
        r#""port": "vm8""#,
    );
    lab.insert(
        "priorities_in",
        r#""port": "vm8", "pcp": 5"#,
        "priority",
        r#""dscp": 46"#,
    );
    lab.insert(
        "dscp_out4",
        r#""port": "vm8", "dscp": 46"#,
        "remark",
        r#""dscp": 34, "pcp": 6"#,
    );
    lab.insert(
        "dscp_out6",
        r#""port": "vm8", "dscp": 0"#,
        "remark",
        r#""dscp": 8, "pcp": 1"#,
    );
    let inward = udp(way((8, 2), "10.0.0.8", "10.0.0.2"), 1000, 53);
    let (port, came) = lab.passes(8, &tagged(&inward, 5, 100));
    assert_eq!((port, seen(&came).vlan, seen(&came).dscp), (2, None, 46));
    let (_, came) = lab.passes(8, &tagged(&inward, 4, 100));
    assert_eq!(seen(&came).dscp, 0);
    let mut outward = udp(way((2, 8), "10.0.0.2", "10.0.0.8"), 53, 1001);
    assert_eq!(seen(&lab.passes(2, &outward).1).vlan, Some((0, 100)));
    outward[15] = 46 << 2;
    let header = etherparse::Ipv4Header::from_slice(&outward[14..])
        .unwrap()
        .0;
    outward[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    let (_, left) = lab.passes(2, &outward);
    assert_eq!((seen(&left).vlan, seen(&left).dscp), (Some((6, 100)), 34));
    let (_, left) = lab.passes(2, &udp(way((2, 8), "fd00::2", "fd00::8"), 1, 2));
    assert_eq!((seen(&left).vlan, seen(&left).dscp), (Some((1, 100)), 8));
}

#[test]
fn a_rate_at_one_receiver_of_many_stops_its_copy_alone() {
    let mut lab = open();
    lab.write(r#"[{"set_multicast": {"group": 10, "ports": [1, 2, 6]}},
        {"insert": {"table": "ports", "key": {"port": "vm6"}, "action": "attach", "params": {"domain": 10}}}]"#);
    meter(
        &lab,
        "port_out",
        6,
        r#""frames_per_second": 10, "burst_frames": 3"#,
    );
    let request = arp((mac(1), BROADCAST), 1, (mac(1), "10.0.0.1"), "10.0.0.77");
    let sent: Vec<_> = (0..6).map(|_| ports(&lab.once(1, &request))).collect();
    assert_eq!(sent[..3], [[2, 6], [2, 6], [2, 6]]);
    assert_eq!(sent[3..], [[2], [2], [2]]);
}
