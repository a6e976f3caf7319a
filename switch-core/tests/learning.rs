//! What the switch learns, how long it believes it, and what a port that learns too much can do to others.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::sync::Arc;

use switch_core::{
    DropReason, HeaderEdit, MacAddress, Millis, Pipeline, PortId, RateLimit, SourceAction, Step,
    Switch, SwitchConfig, Verdict, VlanPolicy,
};

fn port(index: u16) -> PortId {
    PortId::new(index).expect("a small index")
}

fn mac(number: u32) -> MacAddress {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddress([2, 0, a, b, c, d])
}

fn frame(destination: MacAddress, source: MacAddress) -> Vec<u8> {
    [&destination.0[..], &source.0, &[0x08, 0x00, 1, 2, 3, 4]].concat()
}

/// A switch with ports 0 to 3 that know no VLANs, and a worker.
fn switch(config: SwitchConfig) -> (Arc<Switch>, Pipeline) {
    let switch = Arc::new(Switch::new(config));
    for index in 0..4 {
        switch
            .add_port(port(index), VlanPolicy::Transparent)
            .expect("a new port");
    }
    let pipeline = Pipeline::new(Arc::clone(&switch));
    (switch, pipeline)
}

fn send(
    pipeline: &mut Pipeline,
    from: u16,
    destination: MacAddress,
    source: MacAddress,
) -> Verdict {
    pipeline.classify(port(from), &frame(destination, source))
}

fn to(index: u16) -> Verdict {
    Verdict::Output {
        port: port(index),
        edit: HeaderEdit::NONE,
    }
}

fn is_flood(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Flood(_))
}

fn stations_of(switch: &Switch, index: u16) -> usize {
    switch
        .mac_entries(Millis(0))
        .iter()
        .filter(|entry| entry.port == port(index))
        .count()
}

#[test]
fn a_flooded_frame_reaches_every_other_port_once() {
    let (_, mut pipeline) = switch(SwitchConfig::default());
    let Verdict::Flood(flood) = send(&mut pipeline, 1, MacAddress::BROADCAST, mac(1)) else {
        panic!("a broadcast floods");
    };
    let ports: Vec<_> = pipeline
        .flood_members(flood)
        .map(|(port, _)| port.get())
        .collect();
    assert_eq!(ports, [0, 2, 3]);
}

#[test]
fn a_cached_verdict_ends_when_its_destination_ages_out() {
    let config = SwitchConfig {
        mac_ageing: Millis(9_000),
        ..SwitchConfig::default()
    };
    let (_, mut pipeline) = switch(config);
    pipeline.begin_batch(Millis(100));
    send(&mut pipeline, 1, MacAddress::BROADCAST, mac(1));
    // Thrice: from the tables, from the cache, and as the latest verdict.
    for at in [8_900, 9_099] {
        pipeline.begin_batch(Millis(at));
        for _ in 0..3 {
            assert_eq!(send(&mut pipeline, 0, mac(1), mac(0)), to(1));
        }
    }
    pipeline.begin_batch(Millis(9_100));
    assert!(is_flood(send(&mut pipeline, 0, mac(1), mac(0))));
}

#[test]
fn a_port_that_joins_gets_the_next_batchs_floods() {
    let (switch, mut pipeline) = switch(SwitchConfig::default());
    for index in 1..4 {
        switch.remove_port(port(index)).expect("it is there");
    }
    pipeline.begin_batch(Millis(0));
    for _ in 0..3 {
        let alone = send(&mut pipeline, 0, MacAddress::BROADCAST, mac(0));
        assert_eq!(alone, Verdict::Drop(DropReason::NoDestination));
    }
    switch
        .add_port(port(1), VlanPolicy::Transparent)
        .expect("a new port");
    pipeline.begin_batch(Millis(0));
    assert!(is_flood(send(
        &mut pipeline,
        0,
        MacAddress::BROADCAST,
        mac(0)
    )));
}

#[test]
fn a_flow_that_only_hits_the_cache_keeps_its_source_alive() {
    let (switch, mut pipeline) = switch(SwitchConfig::default());
    for second in 0..1_000 {
        pipeline.begin_batch(Millis::from_secs(second));
        send(&mut pipeline, 1, MacAddress::BROADCAST, mac(1));
        switch.expire(Millis::from_secs(second));
    }
    assert_eq!(switch.mac_entries(Millis::from_secs(999)).len(), 1);
    assert_eq!(switch.mac_stats().learned, 1);
}

#[test]
fn a_cache_hit_writes_nothing() {
    let (_, mut pipeline) = switch(SwitchConfig::default());
    send(&mut pipeline, 1, MacAddress::BROADCAST, mac(1));
    send(&mut pipeline, 0, mac(1), mac(0));
    let before = pipeline.stats();
    for _ in 0..1_000 {
        assert_eq!(send(&mut pipeline, 0, mac(1), mac(0)), to(1));
    }
    assert_eq!(pipeline.stats(), before);
}

#[test]
fn a_station_that_turns_up_elsewhere_moves_at_once_and_is_counted() {
    let (switch, mut pipeline) = switch(SwitchConfig::default());
    let mut other = Pipeline::new(Arc::clone(&switch));
    send(&mut pipeline, 1, MacAddress::BROADCAST, mac(1));
    assert_eq!(send(&mut other, 0, mac(1), mac(0)), to(1));
    send(&mut pipeline, 2, MacAddress::BROADCAST, mac(1));
    assert_eq!(send(&mut other, 0, mac(1), mac(0)), to(2));
    assert_eq!(switch.mac_stats().moved, 1);
}

#[test]
fn a_frame_for_a_station_on_its_own_port_goes_nowhere() {
    let (_, mut pipeline) = switch(SwitchConfig::default());
    send(&mut pipeline, 1, MacAddress::BROADCAST, mac(1));
    assert_eq!(
        send(&mut pipeline, 1, mac(1), mac(2)),
        Verdict::Drop(DropReason::SamePort)
    );
}

#[test]
fn aged_stations_make_room_when_the_switch_expires_them() {
    let (switch, mut pipeline) = switch(SwitchConfig::default());
    for number in 0..2_000 {
        send(
            &mut pipeline,
            (number % 3) as u16,
            MacAddress::BROADCAST,
            mac(number),
        );
    }
    switch.expire(Millis::from_secs(299));
    assert_eq!(switch.mac_stats().entries, 2_000);
    switch.expire(Millis::from_secs(300));
    assert_eq!(
        (switch.mac_stats().entries, switch.mac_stats().aged),
        (0, 2_000)
    );
}

#[test]
fn a_port_at_its_limit_gives_up_its_own_oldest_station() {
    let (switch, mut pipeline) = switch(SwitchConfig {
        mac_limit_per_port: 3,
        ..SwitchConfig::default()
    });
    send(&mut pipeline, 1, MacAddress::BROADCAST, mac(100));
    for number in 0..5 {
        pipeline.begin_batch(Millis(number.into()));
        send(&mut pipeline, 0, MacAddress::BROADCAST, mac(number));
    }
    let mut known: Vec<_> = switch
        .mac_entries(Millis(5))
        .iter()
        .map(|entry| entry.mac)
        .collect();
    known.sort();
    assert_eq!(known, [mac(2), mac(3), mac(4), mac(100)]);
}

#[test]
fn a_flood_of_source_addresses_displaces_no_other_ports_stations() {
    let config = SwitchConfig {
        mac_table_capacity: 100,
        mac_limit_per_port: 100,
        learn_rate: RateLimit::UNLIMITED,
        ..SwitchConfig::default()
    };
    let (switch, mut pipeline) = switch(config);
    for number in 0..20 {
        send(&mut pipeline, 1, MacAddress::BROADCAST, mac(number));
    }
    for number in 0..10_000 {
        send(
            &mut pipeline,
            0,
            MacAddress::BROADCAST,
            mac(1_000_000 + number),
        );
    }
    assert_eq!((stations_of(&switch, 0), stations_of(&switch, 1)), (80, 20));
    for number in 0..20 {
        assert_eq!(
            send(&mut pipeline, 2, mac(number), mac(500)),
            to(1),
            "station {number}"
        );
    }
}

#[test]
fn a_full_table_shares_itself_out_among_those_who_flood_it() {
    let config = SwitchConfig {
        mac_table_capacity: 90,
        mac_limit_per_port: 90,
        learn_rate: RateLimit::UNLIMITED,
        ..SwitchConfig::default()
    };
    let (switch, mut pipeline) = switch(config);
    for number in 0..9_000 {
        let flooder = if number < 3_000 { 0 } else { number % 3 };
        send(
            &mut pipeline,
            flooder as u16,
            MacAddress::BROADCAST,
            mac(number),
        );
    }
    for flooder in 0..3 {
        assert!(
            (29..=31).contains(&stations_of(&switch, flooder)),
            "port {flooder}"
        );
    }
}

#[test]
fn a_port_over_its_learning_rate_is_forwarded_but_not_learned() {
    let config = SwitchConfig {
        learn_rate: RateLimit {
            per_second: 10,
            burst: 5,
        },
        ..SwitchConfig::default()
    };
    let (switch, mut pipeline) = switch(config);
    for number in 0..100 {
        assert!(is_flood(send(
            &mut pipeline,
            0,
            MacAddress::BROADCAST,
            mac(number)
        )));
    }
    assert_eq!(
        (stations_of(&switch, 0), switch.mac_stats().withheld),
        (5, 95)
    );
    // Another port still learns, and the first does again later.
    send(&mut pipeline, 1, MacAddress::BROADCAST, mac(500));
    pipeline.begin_batch(Millis(100));
    send(&mut pipeline, 0, MacAddress::BROADCAST, mac(600));
    assert_eq!((stations_of(&switch, 0), stations_of(&switch, 1)), (6, 1));
}

#[test]
fn a_port_over_its_flow_rate_does_not_push_others_out_of_the_cache() {
    let config = SwitchConfig {
        flow_rate: RateLimit {
            per_second: 1,
            burst: 10,
        },
        learn_rate: RateLimit::UNLIMITED,
        ..SwitchConfig::default()
    };
    let (_, mut pipeline) = switch(config);
    for number in 0..100 {
        send(&mut pipeline, 1, mac(500), mac(number));
    }
    for number in 0..200_000 {
        send(&mut pipeline, 0, mac(1_000_000 + number), mac(999));
    }
    assert!(pipeline.stats().over_rate > 100_000);
    let before = pipeline.stats().misses;
    for number in 0..100 {
        send(&mut pipeline, 1, mac(500), mac(number));
    }
    // Those that the other pushed out, and those that these push out coming back.
    assert!(pipeline.stats().misses - before <= 20);
}

#[test]
fn a_removed_port_takes_its_stations_along() {
    let (switch, mut pipeline) = switch(SwitchConfig::default());
    send(&mut pipeline, 1, MacAddress::BROADCAST, mac(1));
    assert_eq!(send(&mut pipeline, 0, mac(1), mac(0)), to(1));
    switch.remove_port(port(1)).expect("it is there");
    // Within the batch under way the port is gone from the table; a late frame of its own teaches nothing.
    assert!(is_flood(send(&mut pipeline, 0, mac(1), mac(0))));
    send(&mut pipeline, 1, MacAddress::BROADCAST, mac(7));
    assert_eq!(stations_of(&switch, 1), 0);
    pipeline.begin_batch(Millis(1));
    assert_eq!(
        send(&mut pipeline, 1, mac(0), mac(1)),
        Verdict::Drop(DropReason::PortGone)
    );
}

#[test]
fn the_last_port_has_nowhere_to_send() {
    let switch = Arc::new(Switch::new(SwitchConfig::default()));
    switch
        .add_port(port(0), VlanPolicy::Transparent)
        .expect("a new port");
    let mut pipeline = Pipeline::new(switch);
    let verdict = send(&mut pipeline, 0, MacAddress::BROADCAST, mac(1));
    assert_eq!(verdict, Verdict::Drop(DropReason::NoDestination));
}

#[test]
fn short_frames_are_dropped_with_their_reason() {
    let (_, mut pipeline) = switch(SwitchConfig::default());
    let mut tagged = frame(mac(1), mac(2));
    tagged[12..14].copy_from_slice(&[0x81, 0x00]);
    for len in 0..18 {
        let short = pipeline.classify(port(0), &frame(mac(1), mac(2))[..len]);
        let cut = pipeline.classify(port(0), &tagged[..len]);
        if len < 14 {
            assert_eq!(short, Verdict::Drop(DropReason::FrameTooShort), "{len}");
            assert_eq!(cut, Verdict::Drop(DropReason::FrameTooShort), "{len}");
        } else {
            assert!(is_flood(short), "{len}");
            assert_eq!(cut, Verdict::Drop(DropReason::VlanTagTruncated), "{len}");
        }
    }
}

#[test]
fn a_clock_that_starts_over_does_not_revive_old_verdicts() {
    let (switch, mut pipeline) = switch(SwitchConfig::default());
    let late = Millis(1 << 40);
    pipeline.begin_batch(late);
    send(&mut pipeline, 1, MacAddress::BROADCAST, mac(1));
    for _ in 0..3 {
        assert_eq!(send(&mut pipeline, 0, mac(1), mac(0)), to(1));
    }
    // As many milliseconds later as make the low 32 bits of the time the same.
    let later = late.after(Millis(1 << 32));
    pipeline.begin_batch(later);
    assert!(is_flood(send(&mut pipeline, 0, mac(1), mac(0))));
    assert_eq!(switch.mac_entries(later).len(), 1);
}

#[test]
fn an_explanation_names_every_table_and_changes_nothing() {
    let (switch, mut pipeline) = switch(SwitchConfig::default());
    send(&mut pipeline, 1, MacAddress::BROADCAST, mac(1));
    let explanation = switch.explain(port(0), &frame(mac(1), mac(0)), Millis(0));
    let tables: Vec<_> = explanation.steps.iter().map(Step::table).collect();
    assert_eq!(
        tables,
        [
            "ingress_port",
            "reserved_destination",
            "source_address",
            "mac_source",
            "mac_destination",
            "vlan_members",
            "egress_tag"
        ]
    );
    let learned = explanation.steps.iter().find_map(|step| match step {
        Step::MacSource { action, .. } => Some(*action),
        _ => None,
    });
    assert_eq!(learned, Some(SourceAction::Learned));
    assert_eq!(explanation.verdict, to(1));
    assert_eq!(switch.mac_entries(Millis(0)).len(), 1);
}
