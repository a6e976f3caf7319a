//! What the match-action engine costs. Run alone on a quiet core: `cargo bench -p switch-core --bench engine`.
//!
//! A figure is that of one frame. Frames of many flows come in an order that no prefetcher foresees. What a hit costs beyond parsing is
//! the difference to `engine/parse` over the same frames.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a bench fails by panicking"
)]

mod measure;

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Throughput, criterion_group, criterion_main};
use measure::{Group, bench};
use switch_core::conntrack::ConntrackConfig;
use switch_core::engine::cache::CacheConfig;
use switch_core::engine::control::{PortNames, Update};
use switch_core::engine::model::Program;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{Decide, FrameInfo, Millis, PortId, RateLimit, Verdict};

type Bench = criterion::Criterion<measure::TimeAndCycles>;
type Frame = [u8; 64];

/// Frames of one iteration.
const BURST: usize = 256;

/// A learning switch with VLANs, as `l2` has it: port to domain, source, destination.
const SWITCH: &str = r#"{
    "name": "switch",
    "metadata": [{"name": "domain", "bits": 16}, {"name": "port", "bits": 16}],
    "learning": [{"name": "stations"}],
    "actions": [{"name": "access", "params": [{"name": "domain", "bits": 16}],
                 "do": [{"set": {"field": "meta.domain", "to": "$domain"}}]},
                {"name": "refuse", "do": [{"drop": {"reason": "port_not_configured"}}]}],
    "tables": [{"name": "ports", "key": [{"field": "std.in_port", "match": "exact", "name": "port"}, {"field": "vlan.valid", "match": "exact", "name": "tagged"}],
                "actions": ["access"], "default_action": {"action": "refuse"}, "size": 1024}],
    "ingress": [
        {"apply": {"table": "ports"}},
        {"do": [{"learn": {"table": "stations", "domain": "meta.domain", "address": "ethernet.src"}}]},
        {"find": {"table": "stations", "domain": "meta.domain", "address": "ethernet.dst", "port": "meta.port",
                  "hit": [{"do": [{"output": {"port": "meta.port"}}]}], "miss": [{"do": [{"multicast": {"group": 1}}]}]}}]
}"#;

/// A tenant's way: port, spoofing, rules, route, neighbour, rules, egress: eight tables and a header rewritten.
const TENANT: &str = r#"{
    "name": "tenant",
    "metadata": [{"name": "domain", "bits": 16}, {"name": "vrf", "bits": 16}, {"name": "hop", "bits": 32}, {"name": "group", "bits": 16},
                 {"name": "to_group", "bits": 16}, {"name": "interface", "bits": 16}],
    "actions": [
        {"name": "allow", "do": []},
        {"name": "deny", "do": [{"drop": {"reason": "acl_denied"}}]},
        {"name": "port", "params": [{"name": "domain", "bits": 16}, {"name": "vrf", "bits": 16}, {"name": "group", "bits": 16}],
         "do": [{"set": {"field": "meta.domain", "to": "$domain"}}, {"set": {"field": "meta.vrf", "to": "$vrf"}}, {"set": {"field": "meta.group", "to": "$group"}}]},
        {"name": "route", "params": [{"name": "interface", "bits": 16}, {"name": "hop", "bits": 32}],
         "do": [{"set": {"field": "meta.interface", "to": "$interface"}}, {"set": {"field": "meta.hop", "to": "$hop"}}, {"subtract": {"field": "ipv4.ttl", "value": 1}}]},
        {"name": "neighbour", "params": [{"name": "mac", "bits": 48}, {"name": "own", "bits": 48}, {"name": "port", "bits": 16}],
         "do": [{"set": {"field": "ethernet.dst", "to": "$mac"}}, {"set": {"field": "ethernet.src", "to": "$own"}}, {"output": {"port": "$port"}}]},
        {"name": "member", "params": [{"name": "group", "bits": 16}], "do": [{"set": {"field": "meta.to_group", "to": "$group"}}]}],
    "tables": [
        {"name": "ports", "key": [{"field": "std.in_port", "match": "exact"}], "actions": ["port"], "size": 1024},
        {"name": "spoofing", "key": [{"field": "std.in_port", "match": "exact"}, {"field": "ethernet.src", "match": "exact"}, {"field": "ipv4.src", "match": "optional"}],
         "actions": ["allow", "deny"], "default_action": {"action": "deny"}, "size": 1024},
        {"name": "routers", "key": [{"field": "meta.domain", "match": "exact"}, {"field": "ethernet.dst", "match": "exact"}], "actions": ["allow"], "size": 1024},
        {"name": "members", "key": [{"field": "meta.vrf", "match": "exact"}, {"field": "ipv4.dst", "match": "lpm"}], "actions": ["member"], "size": 65536},
        {"name": "out_rules", "key": [{"field": "meta.group", "match": "exact"}, {"field": "ipv4.dst", "match": "ternary"}, {"field": "ipv4.protocol", "match": "optional"},
          {"field": "tcp.dst_port", "match": "range"}], "actions": ["allow", "deny"], "size": 65536},
        {"name": "routes", "key": [{"field": "meta.vrf", "match": "exact"}, {"field": "ipv4.dst", "match": "lpm"}], "actions": ["route", "deny"],
         "default_action": {"action": "deny"}, "size": 65536},
        {"name": "neighbours", "key": [{"field": "meta.interface", "match": "exact"}, {"field": "meta.hop", "match": "exact"}], "actions": ["neighbour"], "size": 65536},
        {"name": "in_rules", "key": [{"field": "meta.to_group", "match": "exact"}, {"field": "ipv4.src", "match": "ternary"}, {"field": "tcp.dst_port", "match": "range"}],
         "actions": ["allow", "deny"], "size": 65536}],
    "ingress": [
        {"apply": {"table": "ports"}}, {"apply": {"table": "spoofing"}},
        {"if": {"if": {"valid": "ipv4"}, "then": [
            {"if": {"if": {"le": ["ipv4.ttl", 1]}, "then": [{"do": [{"drop": {"reason": "ttl_expired"}}]}]}},
            {"apply": {"table": "members"}}, {"apply": {"table": "out_rules"}},
            {"apply": {"table": "routers", "hit": [{"apply": {"table": "routes"}}, {"apply": {"table": "neighbours"}}]}},
            {"apply": {"table": "in_rules"}}]}}]
}"#;

struct Numbers;

impl PortNames for Numbers {
    fn id(&self, name: &str) -> Option<PortId> {
        PortId::new(name.parse().ok()?)
    }

    fn name(&self, id: PortId) -> Option<String> {
        Some(id.to_string())
    }
}

fn engine(program: &str) -> Arc<Engine> {
    let valid = Program::from_json(program).unwrap_or_else(|errors| panic!("{errors}"));
    let config = EngineConfig {
        conntrack: ConntrackConfig {
            capacity: 1024,
            ..ConntrackConfig::default()
        },
        mac_table_capacity: 1 << 20,
        mac_limit_per_port: 1 << 20,
        learn_rate: RateLimit::UNLIMITED,
        ..EngineConfig::default()
    };
    let engine = Engine::new(valid, config).expect("a valid program");
    for number in 1..4 {
        engine.attach_port(PortId::new(number).expect("a port"));
    }
    Arc::new(engine)
}

fn write(engine: &Engine, updates: &str) {
    let updates: Vec<Update> = serde_json::from_str(updates).expect("updates");
    if let Err(error) = engine.write(&updates, &Numbers, Millis(1)) {
        panic!("{error}");
    }
}

fn pipeline(engine: &Arc<Engine>, max_flows: usize) -> EnginePipeline {
    let config = CacheConfig {
        max_flows,
        max_exact: (4 * max_flows).max(1 << 19),
        insert_rate: RateLimit::UNLIMITED,
        ..CacheConfig::default()
    };
    EnginePipeline::with_cache(Arc::clone(engine), config)
}

/// A frame between two stations, of a TCP connection from port `1024 + connection`.
fn frame((source, destination): (u32, u32), connection: u32) -> Frame {
    let mut frame = [0u8; 64];
    frame[..2].copy_from_slice(&[2, 0]);
    frame[2..6].copy_from_slice(&destination.to_be_bytes());
    frame[6..8].copy_from_slice(&[2, 0]);
    frame[8..12].copy_from_slice(&source.to_be_bytes());
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 6]);
    frame[26..28].copy_from_slice(&[10, 0]);
    frame[28..30].copy_from_slice(&(source as u16).to_be_bytes());
    frame[30..32].copy_from_slice(&[10, 1]);
    frame[32..34].copy_from_slice(&(destination as u16).to_be_bytes());
    let ports = 1024 + (connection % 60_000) as u16;
    frame[34..36].copy_from_slice(&ports.to_be_bytes());
    frame[36..38].copy_from_slice(&(80 + (connection / 60_000) as u16).to_be_bytes());
    frame[46..48].copy_from_slice(&[0x50, 0x10]);
    frame
}

fn info(frame: &Frame) -> FrameInfo<'_> {
    FrameInfo {
        header: frame,
        frame_bytes: 64,
        wire_bytes: 64,
        partial_checksum: None,
    }
}

fn port(number: u16) -> PortId {
    PortId::new(number).expect("a port")
}

fn numbers(count: usize, below: usize) -> Vec<usize> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((u128::from(state) * below as u128) >> 64) as usize
    };
    (0..count).map(|_| next()).collect()
}

/// One batch; how many frames are dropped.
#[inline(never)]
fn decide_all(pipeline: &mut EnginePipeline, burst: &[Frame]) -> usize {
    pipeline.begin_batch(Millis(2));
    let dropped = burst.iter().filter(|frame| {
        let verdict = pipeline.decide(port(1), &info(black_box(frame)));
        matches!(verdict, Verdict::Drop(_))
    });
    dropped.count()
}

/// Decides on a burst of `frames` after the other, having done so for each at least once.
fn bench_hits(group: &mut Group<'_>, name: &str, pipeline: &mut EnginePipeline, frames: &[Frame]) {
    pipeline.begin_batch(Millis(2));
    for burst in frames.chunks(BURST) {
        pipeline.begin_batch(Millis(2));
        for frame in burst {
            pipeline.decide(port(1), &info(frame));
        }
    }
    let before = pipeline.stats().misses;
    let mut bursts = frames.chunks_exact(BURST).cycle();
    group.throughput(Throughput::Elements(BURST as u64));
    bench(group, name, || {
        decide_all(pipeline, bursts.next().expect("an endless supply"))
    });
    let missed = pipeline.stats().misses - before;
    assert!(missed < 100_000, "{missed} misses");
}

fn switch() -> Arc<Engine> {
    let engine = engine(SWITCH);
    let entry = |port: u16| {
        format!(
            r#"{{"insert": {{"table": "ports", "key": {{"port": {port}, "tagged": 0}}, "action": "access", "params": {{"domain": 1}}}}}}"#
        )
    };
    write(&engine, &format!("[{}, {}]", entry(1), entry(2)));
    engine
}

fn parsing(bencher: &mut Bench) {
    let mut group = bencher.benchmark_group("engine/parse");
    let engine = switch();
    let mut pipeline = pipeline(&engine, 1000);
    for flows in [1, 8_000, 1_000_000] {
        let frames = switch_frames(flows);
        for frame in &frames {
            pipeline.decide(port(1), &info(frame));
        }
        let mut bursts = frames.chunks_exact(BURST).cycle();
        group.throughput(Throughput::Elements(BURST as u64));
        bench(&mut group, &flows.to_string(), || {
            let burst = bursts.next().expect("an endless supply");
            burst
                .iter()
                .filter_map(|frame| pipeline.parse(port(1), &info(black_box(frame))))
                .count()
        });
    }
    group.finish();
}

/// Frames of so many flows between stations of port 1 and of port 2.
fn switch_frames(flows: usize) -> Vec<Frame> {
    let stations = (flows as f64).sqrt().ceil() as usize;
    numbers(4 * flows.max(BURST), flows)
        .into_iter()
        .map(|flow| {
            let (source, destination) = (flow % stations, flow / stations);
            frame((source as u32, 0x10000 + destination as u32), 1)
        })
        .collect()
}

fn switch_hits(bencher: &mut Bench) {
    let mut group = bencher.benchmark_group("engine/switch hit");
    for flows in [1, 1_000, 8_000, 1_000_000] {
        let engine = switch();
        let mut pipeline = pipeline(&engine, flows + 10_000);
        let stations = (flows as f64).sqrt().ceil() as u32;
        for station in 0..stations {
            for (at, from) in [(1, station), (2, 0x10000 + station)] {
                let frame = frame((from, 0x20000), 1);
                pipeline.begin_batch(Millis(2));
                pipeline.decide(port(at), &info(&frame));
            }
        }
        pipeline.forget();
        let frames = switch_frames(flows);
        bench_hits(&mut group, &flows.to_string(), &mut pipeline, &frames);
    }
    group.finish();
}

/// The tenant's tables with so many rules, none of which is for the port that frames go to.
fn tenant(rules: usize) -> Arc<Engine> {
    let engine = engine(TENANT);
    write(
        &engine,
        r#"[{"insert": {"table": "ports", "key": {"std.in_port": 1}, "action": "port", "params": {"domain": 1, "vrf": 1, "group": 1}}},
            {"insert": {"table": "routers", "key": {"meta.domain": 1, "ethernet.dst": "02:00:00:01:00:00"}, "action": "allow"}},
            {"insert": {"table": "members", "key": {"meta.vrf": 1, "ipv4.dst": "10.1.0.0/16"}, "action": "member", "params": {"group": 2}}},
            {"insert": {"table": "routes", "key": {"meta.vrf": 1, "ipv4.dst": "10.1.0.0/24"}, "action": "route", "params": {"interface": 3, "hop": 7}}},
            {"insert": {"table": "neighbours", "key": {"meta.interface": 3, "meta.hop": 7}, "action": "neighbour",
                        "params": {"mac": "02:00:00:00:00:99", "own": "02:00:00:00:00:98", "port": 2}}},
            {"insert": {"table": "spoofing", "key": {"std.in_port": 1, "ethernet.src": "02:00:00:00:00:05"}, "priority": 1, "action": "allow"}}]"#,
    );
    for (table, group, address) in [
        ("out_rules", "meta.group", "ipv4.dst"),
        ("in_rules", "meta.to_group", "ipv4.src"),
    ] {
        let mut updates = String::from("[");
        for rule in 0..rules / 2 {
            let comma = if rule == 0 { "" } else { "," };
            let bits = 16 + rule % 16;
            let net = (rule as u32).wrapping_mul(0x9e37_79b9) >> 12;
            let prefix = (0xac10_0000 | net) & (u32::MAX << (32 - bits));
            let (low, high) = (8000 + rule % 7, 9000 + rule);
            let of = 1 + rule % 2;
            write!(
                updates,
                r#"{comma}{{"insert": {{"table": "{table}", "priority": {}, "action": "deny",
                   "key": {{"{group}": {of}, "{address}": {{"value": {prefix}, "prefix_bits": {bits}}}, "tcp.dst_port": "{low}..{high}"}}}}}}"#,
                rule + 1
            )
            .expect("a string");
        }
        updates.push(']');
        write(&engine, &updates);
    }
    engine
}

fn tenant_hits(bencher: &mut Bench) {
    let mut group = bencher.benchmark_group("engine/tenant hit, 1000 connections, by rules");
    for rules in [10, 100, 10_000] {
        let engine = tenant(rules);
        let mut pipeline = pipeline(&engine, 20_000);
        let frames: Vec<Frame> = numbers(8192, 1000)
            .into_iter()
            .map(|connection| frame((5, 0x10000), connection as u32))
            .collect();
        bench_hits(&mut group, &rules.to_string(), &mut pipeline, &frames);
    }
    group.finish();
}

/// Every frame is evaluated, and its verdict remembered.
fn misses(bencher: &mut Bench) {
    let mut group = bencher.benchmark_group("engine/miss");
    group.throughput(Throughput::Elements(1));
    let engine_of = [
        ("switch", switch()),
        ("tenant, 100 rules", tenant(100)),
        ("tenant, 10000 rules", tenant(10_000)),
    ];
    for (name, engine) in engine_of {
        let mut pipeline = pipeline(&engine, 1000);
        pipeline.begin_batch(Millis(2));
        pipeline.decide(port(2), &info(&frame((0x10000, 5), 1)));
        let frame = frame((5, 0x10000), 1);
        let verdict = pipeline.decide(port(1), &info(&frame));
        assert!(matches!(verdict, Verdict::Output { .. }), "{verdict:?}");
        let before = pipeline.stats().misses;
        let mut frames = 0u64;
        bench(&mut group, name, || {
            pipeline.begin_batch(Millis(2));
            frames += 1;
            pipeline.evaluate_anew(port(1), &info(black_box(&frame)))
        });
        assert!(pipeline.stats().misses - before >= frames);
    }
    group.finish();
}

fn learning(bencher: &mut Bench) {
    let mut group = bencher.benchmark_group("engine/learning");
    let engine = switch();
    let mut pipeline = pipeline(&engine, 1000);
    let mut station = 0u32;
    group.throughput(Throughput::Elements(1));
    bench(&mut group, "a new station", || {
        pipeline.begin_batch(Millis(2));
        station = (station + 1) % (1 << 19);
        let frame = frame((station, 0x10_0000), 1);
        pipeline.decide(port(1), &info(&frame))
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = measure::criterion();
    targets = parsing, switch_hits, tenant_hits, misses, learning
}
criterion_main!(benches);
