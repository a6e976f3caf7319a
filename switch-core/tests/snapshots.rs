//! What a switch has learned and counted goes on in another one, whose clock differs.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod conntrack_packets;

use std::sync::Arc;

use conntrack_packets::{
    ZONE, commit, establish, host, ip, open, port, segment, table, tcp, tcp_tuple, udp, udp_tuple,
};
use switch_core::conntrack::{
    ConnRecord, Conntrack, ConntrackConfig, ConntrackStats, Direction, NatSpec, Packet, PortRange,
    Refreshed, SourceNat, SourcePorts, Tuple,
};
use switch_core::engine::control::{EntryCounters, EntryName, PortNames, Update};
use switch_core::engine::model::Program;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::engine::seen::EntrySeen;
use switch_core::{
    Decide, FrameInfo, HeaderEdit, MacAddress, MacRecord, MacStats, MacsRestored, Millis, Pipeline,
    PortId, Switch, SwitchConfig, Verdict, VlanPolicy,
};

const NOW: Millis = Millis(1_000_000);
/// Another host's clock.
const THERE: Millis = Millis(77_000_000);

fn mac(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number])
}

fn frame(destination: MacAddress, source: MacAddress) -> Vec<u8> {
    [&destination.0[..], &source.0, &[0x08, 0x00, 1, 2, 3, 4]].concat()
}

fn switch(config: SwitchConfig) -> (Arc<Switch>, Pipeline) {
    let switch = Arc::new(Switch::new(config));
    for index in 0..3 {
        let added = switch.add_port(port(index), VlanPolicy::Transparent);
        added.expect("a new port");
    }
    let pipeline = Pipeline::new(Arc::clone(&switch));
    (switch, pipeline)
}

fn stations(switch: &Switch, of: Option<PortId>, now: Millis) -> Vec<MacRecord> {
    let page = switch.mac_page(of, 0, now);
    assert_eq!(page.next, None);
    let mut stations = page.stations;
    stations.sort_by_key(|station| station.mac);
    stations
}

fn station(number: u8, port: u16, age_ms: u64) -> MacRecord {
    MacRecord {
        domain: 0,
        mac: mac(number),
        port,
        age_ms,
    }
}

#[test]
fn stations_go_on_in_another_switch_and_age_as_they_would_have() {
    let (here, mut worker) = switch(SwitchConfig::default());
    for number in 1..=3 {
        worker.begin_batch(Millis::from_secs(u64::from(number) * 10));
        worker.classify(port(1), &frame(MacAddress::BROADCAST, mac(number)));
    }
    worker.classify(port(2), &frame(MacAddress::BROADCAST, mac(9)));
    let now = Millis::from_secs(110);
    let known = stations(&here, Some(port(1)), now);
    let json = serde_json::to_string(&known).expect("plain data");
    let known: Vec<MacRecord> = serde_json::from_str(&json).expect("reads back");
    assert_eq!(
        known,
        [
            station(1, 1, 100_000),
            station(2, 1, 90_000),
            station(3, 1, 80_000)
        ]
    );
    assert_eq!(stations(&here, None, now).len(), 4);

    let (there, mut worker) = switch(SwitchConfig::default());
    worker.begin_batch(THERE);
    let flood = worker.classify(port(0), &frame(mac(1), mac(7)));
    assert!(matches!(flood, Verdict::Flood(_)));
    let restored = there.restore_macs(&known, THERE);
    assert_eq!(
        restored,
        MacsRestored {
            taken: 3,
            ..Default::default()
        }
    );
    assert_eq!(stations(&there, Some(port(1)), THERE), known);
    // The verdict that was cached before no longer holds.
    worker.begin_batch(THERE);
    let verdict = worker.classify(port(0), &frame(mac(1), mac(7)));
    let edit = HeaderEdit::NONE;
    assert_eq!(
        verdict,
        Verdict::Output {
            port: port(1),
            edit
        }
    );
    // The oldest is forgotten 300 seconds after it was seen, and takes no room then.
    let later = THERE.after(Millis::from_secs(200));
    there.expire(later);
    assert_eq!(stations(&there, Some(port(1)), later).len(), 2);
    assert_eq!(there.mac_stats().aged, 1);
    // Nothing older than that is taken in.
    let aged = there.restore_macs(&[station(1, 1, 300_000)], later);
    assert_eq!(aged.too_old, 1);
}

#[test]
fn a_station_seen_since_stays_where_it_was_seen() {
    let (there, mut worker) = switch(SwitchConfig::default());
    worker.begin_batch(THERE);
    worker.classify(port(2), &frame(MacAddress::BROADCAST, mac(1)));
    let now = THERE.after(Millis(5_000));
    let restored = there.restore_macs(&[station(1, 1, 5_000), station(2, 1, 0)], now);
    assert_eq!((restored.known_since, restored.taken), (1, 1));
    assert_eq!(stations(&there, Some(port(2)), now), [station(1, 2, 5_000)]);
    // One that was seen later than here moves.
    let restored = there.restore_macs(&[station(1, 1, 4_999)], now);
    assert_eq!(restored.taken, 1);
    assert_eq!(stations(&there, Some(port(2)), now), []);
}

#[test]
fn restoring_stations_takes_no_more_room_than_there_is() {
    let (there, mut worker) = switch(SwitchConfig {
        mac_table_capacity: 5,
        mac_limit_per_port: 3,
        ..SwitchConfig::default()
    });
    worker.begin_batch(THERE);
    worker.classify(port(1), &frame(MacAddress::BROADCAST, mac(200)));
    let many: Vec<_> = (1..=4).map(|number| station(number, 1, 10)).collect();
    let restored = there.restore_macs(&many, THERE);
    assert_eq!((restored.taken, restored.refused), (2, 2));
    let many: Vec<_> = (11..=14).map(|number| station(number, 2, 10)).collect();
    let restored = there.restore_macs(&many, THERE);
    assert_eq!((restored.taken, restored.refused), (2, 2));
    // Neither on a port that is not there, nor what no station can have as its address.
    let broadcast = MacRecord {
        mac: MacAddress::BROADCAST,
        ..station(1, 0, 0)
    };
    let strangers = [station(21, 7, 0), station(22, u16::MAX, 0), broadcast];
    assert_eq!(there.restore_macs(&strangers, THERE).refused, 3);
    // What was seen here is the last to go.
    worker.begin_batch(THERE.after(Millis(1)));
    worker.classify(port(1), &frame(MacAddress::BROADCAST, mac(201)));
    let left = stations(&there, Some(port(1)), THERE.after(Millis(1)));
    assert!(left.iter().any(|station| station.mac == mac(200)));
}

#[test]
fn what_was_counted_goes_on() {
    let (there, _) = switch(SwitchConfig::default());
    there.restore_macs(&[station(1, 1, 0)], THERE);
    let earlier = MacStats {
        entries: 9,
        capacity: 9,
        learned: 1,
        moved: 2,
        aged: 3,
        evicted: 4,
        withheld: 5,
    };
    there.add_mac_stats(&earlier);
    there.add_mac_stats(&earlier);
    let expected = MacStats {
        entries: 1,
        capacity: 65_536,
        learned: 2,
        moved: 4,
        aged: 6,
        evicted: 8,
        withheld: 10,
    };
    assert_eq!(there.mac_stats(), expected);
    let connections = table(ConntrackConfig::default());
    let earlier = ConntrackStats {
        connections: 9,
        opened: 1,
        expired: 2,
        early_dropped: 3,
        ..Default::default()
    };
    connections.add_stats(&earlier);
    let stats = connections.stats();
    let counted = (stats.opened, stats.expired, stats.early_dropped);
    assert_eq!((stats.connections, counted), (0, (1, 2, 3)));
}

fn from_port(number: u16, packet: Packet) -> Packet {
    Packet {
        port: port(number),
        ..packet
    }
}

fn records(table: &Conntrack, of: PortId, now: Millis) -> Vec<ConnRecord> {
    let page = table.list_matching(|record| record.is_bound_to(of), (0, 100), now);
    page.connections
        .into_iter()
        .map(|(_, record)| record)
        .collect()
}

#[test]
fn a_connection_is_bound_to_the_ports_at_its_two_ends() {
    let here = table(ConntrackConfig::default());
    open(&here, &udp(udp_tuple(1)), NOW);
    assert_eq!(records(&here, port(1), NOW)[0].answered_by, None);
    here.track(&from_port(5, udp(udp_tuple(1).inverse())), NOW);
    // Where later answers come from does not matter: an address that is spoofed binds nothing.
    here.track(&from_port(6, udp(udp_tuple(1).inverse())), NOW);
    for (number, bound) in [(1, 1), (5, 1), (6, 0), (2, 0)] {
        assert_eq!(records(&here, port(number), NOW).len(), bound, "{number}");
    }
    // The next connection in the same place begins without.
    here.delete_port(port(1), NOW);
    for flow in 0..2000 {
        open(&here, &udp(udp_tuple(flow)), NOW);
    }
    assert_eq!(records(&here, port(5), NOW), []);
}

#[test]
fn connections_go_on_in_another_table() {
    let here = table(ConntrackConfig::default());
    let conn = establish(&here, tcp_tuple(1), NOW).conn.expect("open");
    here.set_mark(conn, 9).expect("live");
    let outside = std::net::Ipv4Addr::new(192, 0, 2, 1);
    let nat = NatSpec {
        source: Some(SourceNat {
            first: ip(outside),
            last: ip(outside),
            ports: SourcePorts::PreferOwn(PortRange {
                first: 5000,
                last: 6000,
            }),
        }),
        destination: None,
    };
    let packet = udp(udp_tuple(7));
    let translated = here.commit(&packet, &commit(1, nat), NOW).expect("room");
    let exported = records(&here, port(1), NOW.after(Millis(640)));
    let json = serde_json::to_string(&exported).expect("plain data");
    let exported: Vec<ConnRecord> = serde_json::from_str(&json).expect("reads back");
    assert_eq!(exported.len(), 2);

    for now in [THERE, Millis(1)] {
        let there = Conntrack::new(ConntrackConfig::default(), 777);
        let restored = there.restore(&exported, now);
        assert_eq!((restored.taken, there.stats().opened), (2, 0));
        let again = records(&there, port(1), now);
        assert_eq!(again, exported, "at {now:?}: idle and left as long");
        let ack = tcp(tcp_tuple(1), segment("A", 101, 501, 0));
        let tracked = there.track(&ack, now);
        assert!(tracked.cacheable && tracked.mark == 9, "{tracked:?}");
        let again = there.track(&packet, now);
        assert_eq!(again.translation, translated.translation);
        // It is quiet for as long as it would have been.
        let left = Millis(
            exported
                .iter()
                .map(|record| record.expires_in_ms)
                .min()
                .expect("two"),
        );
        assert!(left < Millis::from_secs(30));
    }
}

#[test]
fn a_connection_that_is_there_already_is_bound_to_where_its_ends_are_now() {
    let both = table(ConntrackConfig {
        per_port_limit: 3,
        ..Default::default()
    });
    establish(&both, tcp_tuple(1), NOW);
    let conn = establish(&both, tcp_tuple(2), NOW).conn.expect("open");
    // The guest of port 1 migrates to port 4 of the same switch.
    let moved = |record: ConnRecord| ConnRecord {
        port: 4,
        answered_by: Some(2),
        packets: [0, 0],
        ..record
    };
    let exported: Vec<_> = records(&both, port(1), NOW)
        .into_iter()
        .map(moved)
        .collect();
    assert_eq!(both.restore(&exported, NOW).known, 2);
    assert_eq!(both.port_connections(port(1)), 0);
    assert_eq!(both.port_connections(port(4)), 2);
    assert_eq!(records(&both, port(2), NOW).len(), 2);
    let ack = segment("A", 101, 501, 0);
    let refreshed = both.refresh(conn, Direction::Original, (Some(&ack), 60), NOW);
    assert_eq!(refreshed, Refreshed::Valid, "frames do not notice");
    assert_ne!(both.export(conn, NOW).expect("live").packets, [0, 0]);
    // One that only shares a tuple is another connection.
    let other = ConnRecord {
        reply: Tuple::v4(6, (host(2), 80), (host(3), 9)),
        ..exported[0]
    };
    assert_eq!(both.restore(&[other], NOW).in_the_way, 1);
    // A port that is full keeps out what is new, and leaves what is known where it is.
    open(&both, &from_port(4, udp(udp_tuple(1))), NOW);
    let third = records(&both, port(1), NOW).into_iter().map(moved);
    assert_eq!(both.restore(&third.collect::<Vec<_>>(), NOW).known, 1);
    let fourth = ConnRecord {
        original: udp_tuple(50),
        reply: udp_tuple(50).inverse(),
        ..records(&both, port(4), NOW)
            .into_iter()
            .find(|record| record.original.protocol == 17)
            .expect("listed")
    };
    let unassured = both.restore(&[fourth], NOW);
    assert_eq!(unassured.taken, 1, "in place of one that nobody answered");
    assert_eq!(both.zone_connections(ZONE), 3);
}

/// Ports are called by their numbers.
struct Numbers;

impl PortNames for Numbers {
    fn id(&self, name: &str) -> Option<PortId> {
        PortId::new(name.strip_prefix("vm")?.parse().ok()?)
    }

    fn name(&self, id: PortId) -> Option<String> {
        Some(format!("vm{id}"))
    }
}

const COUNTING: &str = r#"{
    "name": "counting",
    "counters": [{"name": "seen", "size": 4}],
    "actions": [
        {"name": "send", "params": [{"name": "port", "bits": 16, "format": "port"}],
         "do": [{"count": {"counter": "seen", "index": 2}}, {"output": {"port": "$port"}}]}
    ],
    "tables": [
        {"name": "forward", "key": [{"field": "ethernet.dst", "match": "exact"}], "actions": ["send"], "size": 64,
         "counters": true, "timeouts": true}
    ],
    "ingress": [{"apply": {"table": "forward"}}]
}"#;

fn engine() -> Arc<Engine> {
    let valid = Program::from_json(COUNTING).unwrap_or_else(|errors| panic!("{errors}"));
    let engine = Engine::new(valid, EngineConfig::default()).expect("a program that runs");
    Arc::new(engine)
}

const ENTRIES: &str = r#"[
    {"insert": {"table": "forward", "key": {"ethernet.dst": "02:00:00:00:00:01"}, "action": "send", "params": {"port": "vm1"},
                "idle_timeout_ms": 50000}},
    {"insert": {"table": "forward", "key": {"ethernet.dst": "02:00:00:00:00:02"}, "action": "send", "params": {"port": "vm2"},
                "hard_timeout_ms": 60000}}
]"#;

#[test]
fn entries_count_on_and_time_out_as_they_would_have() {
    let updates: Vec<Update> = serde_json::from_str(ENTRIES).expect("updates");
    let here = engine();
    here.write(&updates, &Numbers, Millis(0)).expect("fits");
    let mut worker = EnginePipeline::new(Arc::clone(&here));
    let bytes = frame(mac(1), mac(9));
    for at in [10_000, 20_000] {
        worker.begin_batch(Millis(at));
        let info = FrameInfo {
            header: &bytes,
            frame_bytes: 60,
            wire_bytes: 60,
            partial_checksum: None,
        };
        worker.decide(port(0), &info);
        while worker.rest() {}
    }
    let now = Millis(40_000);
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = here.entries_seen("forward", (after, 1), (&Numbers, now));
        let page = page.expect("a table");
        seen.extend(page.entries);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let json = serde_json::to_string(&seen).expect("plain data");
    let read: Vec<EntrySeen> = serde_json::from_str(&json).expect("reads back");
    let ages: Vec<_> = seen
        .iter()
        .map(|entry| (entry.counted.frames, entry.idle_ms, entry.age_ms))
        .collect();
    assert_eq!(ages, [(2, 20_000, 40_000), (0, 40_000, 40_000)]);

    let there = engine();
    there.write(&updates, &Numbers, THERE).expect("fits");
    let mut stranger = read[0].clone();
    stranger.entry.table = "none".to_owned();
    let unknown = [stranger];
    assert_eq!(there.restore_seen(&unknown, (&Numbers, THERE)), 0);
    assert_eq!(there.restore_seen(&read, (&Numbers, THERE)), 2);
    let page = there.entries_seen("forward", (None, 9), (&Numbers, THERE));
    assert_eq!(page.expect("a table").entries, seen);
    let expired =
        |after_ms| -> Vec<EntryName> { there.expire(THERE.after(Millis(after_ms)), &Numbers) };
    assert_eq!(expired(19_999), []);
    assert_eq!(expired(20_000), [seen[1].entry.clone()]);
    assert_eq!(expired(29_999), []);
    assert_eq!(expired(30_000), [seen[0].entry.clone()]);

    let counted = here.counters("seen", 0, 9).expect("an array");
    let each = EntryCounters {
        frames: 2,
        bytes: 120,
    };
    assert_eq!(counted, [(2, each)]);
    assert_eq!(there.counter_arrays().collect::<Vec<_>>(), ["seen"]);
    assert!(there.add_counters("seen", &counted) && there.add_counters("seen", &[(9, each)]));
    assert_eq!(there.counters("seen", 0, 9).expect("an array"), counted);
    assert!(!there.add_counters("none", &counted));
}
