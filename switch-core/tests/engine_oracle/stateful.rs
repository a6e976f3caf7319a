//! What meters and stations make of frames: there the oracle is the same engine without a memory.

use std::sync::Arc;

use proptest::prelude::*;
use switch_core::engine::control::Update;
use switch_core::engine::model::Program;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{Decide, FrameInfo, Millis, PortId};

use crate::world::{Numbers, Seen, observe};

const METERED: &str = r#"{
    "name": "metered",
    "meters": [{"name": "in", "size": 8}, {"name": "out", "size": 8}],
    "actions": [
        {"name": "limit", "params": [{"name": "index", "bits": 8}], "do": [{"meter": {"meter": "in", "index": "$index"}}]},
        {"name": "limit_out", "params": [{"name": "index", "bits": 8}],
         "do": [{"meter": {"meter": "out", "index": "$index"}}, {"set": {"field": "ethernet.src", "to": 7}}]}],
    "tables": [
        {"name": "sources", "key": [{"field": "ethernet.src", "match": "ternary"}], "actions": ["limit"], "size": 64},
        {"name": "ports", "key": [{"field": "std.out_port", "match": "exact"}], "actions": ["limit_out"], "size": 64}],
    "ingress": [
        {"if": {"if": {"eq": ["ethernet.dst", 2]}, "then": [{"do": [{"mirror": {"port": 9}}]}]}},
        {"apply": {"table": "sources"}},
        {"if": {"if": {"eq": ["ethernet.dst", 3]}, "then": [{"do": [{"output": {"port": 3}}]}], "else": [{"do": [{"multicast": {"group": 1}}]}]}}],
    "egress": [{"apply": {"table": "ports"}}]
}"#;

const METERED_ENTRIES: &str = r#"[
    {"set_multicast": {"group": 1, "ports": [2, 3, 4]}},
    {"set_meter": {"meter": "in", "index": 1, "rate": {"frames_per_second": 100, "burst_frames": 5}}},
    {"set_meter": {"meter": "out", "index": 1, "rate": {"frames_per_second": 50, "burst_frames": 3}}},
    {"set_meter": {"meter": "out", "index": 2, "rate": {"bytes_per_second": 3000, "burst_bytes": 200}}},
    {"insert": {"table": "sources", "key": {"ethernet.src": "0x1&0x1"}, "priority": 1, "action": "limit", "params": {"index": 1}}},
    {"insert": {"table": "ports", "key": {"std.out_port": 3}, "action": "limit_out", "params": {"index": 1}}},
    {"insert": {"table": "ports", "key": {"std.out_port": 4}, "action": "limit_out", "params": {"index": 2}}}]"#;

const LEARNING: &str = r#"{
    "name": "learning",
    "metadata": [{"name": "port", "bits": 16}],
    "learning": [{"name": "stations"}],
    "ingress": [
        {"do": [{"learn": {"table": "stations", "domain": "vlan.vid", "address": "ethernet.src"}}]},
        {"find": {"table": "stations", "domain": "vlan.vid", "address": "ethernet.dst", "port": "meta.port",
            "hit": [{"do": [{"output": {"port": "meta.port"}}]}], "miss": [{"do": [{"multicast": {"group": 1}}]}]}}]
}"#;

/// Two engines of the same content: one is asked through a memory, one is not.
struct Twins {
    remembers: EnginePipeline,
    forgets: EnginePipeline,
    hits: u64,
}

impl Twins {
    fn new(program: &str, entries: &str) -> Self {
        let engine = || {
            let valid = Program::from_json(program).unwrap_or_else(|errors| panic!("{errors}"));
            let config = EngineConfig {
                conntrack: switch_core::conntrack::ConntrackConfig {
                    capacity: 64,
                    ..Default::default()
                },
                mac_ageing: Millis(60_000),
                seed: 5,
                ..EngineConfig::default()
            };
            let engine = Engine::new(valid, config).expect("a valid program");
            for number in 1..8 {
                engine.attach_port(PortId::new(number).expect("a port"));
            }
            let updates: Vec<Update> = serde_json::from_str(entries).expect("updates");
            engine
                .write(&updates, &Numbers, Millis(1))
                .unwrap_or_else(|error| panic!("{error}"));
            Arc::new(engine)
        };
        Self {
            remembers: EnginePipeline::new(engine()),
            forgets: EnginePipeline::new(engine()),
            hits: 0,
        }
    }

    fn send(&mut self, port: u16, frame: &[u8], now: Millis) -> (Seen, Seen) {
        let before = self.remembers.stats().misses;
        let remembered = decide(&mut self.remembers, port, frame, now);
        self.hits += u64::from(self.remembers.stats().misses == before);
        self.forgets.forget();
        (remembered, decide(&mut self.forgets, port, frame, now))
    }
}

fn decide(pipeline: &mut EnginePipeline, port: u16, frame: &[u8], now: Millis) -> Seen {
    pipeline.begin_batch(now);
    let info = FrameInfo {
        header: frame,
        frame_bytes: frame.len() as u32,
        wire_bytes: frame.len() as u32,
        partial_checksum: None,
    };
    let verdict = pipeline.decide(PortId::new(port).expect("a port"), &info);
    observe(pipeline, verdict, frame, None)
}

fn frame(destination: u8, source: u8, vlan: u8) -> Vec<u8> {
    let mut frame = vec![
        0,
        0,
        0,
        0,
        0,
        destination,
        0,
        0,
        0,
        0,
        0,
        source,
        0x81,
        0,
        0,
        vlan,
        0x90,
        0,
    ];
    frame.extend([0; 46]);
    frame
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn meters_stop_the_same_copies_from_memory(
        frames in prop::collection::vec((1..5u8, 1..5u8, 0..30u64), 20..120),
    ) {
        let mut twins = Twins::new(METERED, METERED_ENTRIES);
        let mut now = 1;
        for (destination, source, later) in frames {
            now += later;
            let (remembered, evaluated) = twins.send(1, &frame(destination, source, 1), Millis(now));
            prop_assert_eq!(remembered, evaluated);
        }
        prop_assert!(twins.hits > 0);
    }

    #[test]
    fn stations_are_found_where_they_are_from_memory(
        frames in prop::collection::vec((1..5u8, 1..5u8, 1..3u8, 1..4u16, 0..50u64), 20..120),
        pause in 10..100usize,
    ) {
        let entries = r#"[{"set_multicast": {"group": 1, "ports": [1, 2, 3]}}]"#;
        let mut twins = Twins::new(LEARNING, entries);
        let mut now = 1;
        for (at, (destination, source, vlan, port, later)) in frames.into_iter().enumerate() {
            // All stations age out at once: close to their end, one that was refreshed a moment later may outlive the other.
            now += if at % pause == pause - 1 { 200_000 } else { later };
            let (remembered, evaluated) = twins.send(port, &frame(destination, source, vlan), Millis(now));
            prop_assert_eq!(remembered, evaluated);
        }
    }
}
