//! A million entries through the whole engine: the memory they take, and (ignored: it measures) how fast they come.
//!
//! `cargo test --release -p switch-core --test engine_load -- --ignored --nocapture`
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use switch_core::engine::control::{PortNames, Update};
use switch_core::engine::model::Program;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{Decide, FrameInfo, Millis, PortId};

struct NoNames;

impl PortNames for NoNames {
    fn id(&self, _: &str) -> Option<PortId> {
        None
    }

    fn name(&self, _: PortId) -> Option<String> {
        None
    }
}

const PROGRAM: &str = r#"{
    "name": "load",
    "actions": [
        {"name": "forward", "params": [{"name": "port", "bits": 16}], "do": [{"output": {"port": "$port"}}]},
        {"name": "translate", "params": [{"name": "to", "bits": 32, "format": "ipv4"}, {"name": "port", "bits": 16}],
         "do": [{"set": {"field": "ipv4.dst", "to": "$to"}}, {"output": {"port": "$port"}}]},
        {"name": "deny", "do": [{"drop": {"reason": "acl_denied"}}]}
    ],
    "tables": [
        {"name": "routes", "key": [{"field": "ipv4.dst", "match": "lpm"}], "actions": ["forward", "translate"], "size": 1048576},
        {"name": "stations", "key": [{"field": "ethernet.dst", "match": "exact"}], "actions": ["forward", "translate"], "size": 1048576},
        {"name": "access", "key": [{"field": "ipv4.src", "match": "ternary"}, {"field": "ipv4.dst", "match": "ternary"}],
         "actions": ["deny"], "size": 131072}
    ],
    "ingress": [{"apply": {"table": "access"}}, {"apply": {"table": "stations"}}, {"apply": {"table": "routes"}}]
}"#;

fn engine() -> Arc<Engine> {
    let valid = Program::from_json(PROGRAM).unwrap_or_else(|errors| panic!("{errors}"));
    Arc::new(Engine::new(valid, EngineConfig::default()).unwrap())
}

/// Different for each number, in no order.
fn scattered(number: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1)
}

fn mac(number: u32) -> String {
    let [a, b, c, d] = scattered(number).to_be_bytes();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

fn route(number: u32) -> String {
    let [a, b, c, d] = scattered(number).to_be_bytes();
    format!("{a}.{b}.{c}.{d}/32")
}

/// Two prefixes, 64 pairs of lengths.
fn access_key(number: u32) -> String {
    let (source, destination) = (13 + number % 8, 25 + number / 8 % 8);
    let (value, mask) = (number / 64 % 4096, |bits: u32| !0 << (32 - bits));
    let source_value = scattered(value + 1) & mask(source);
    let destination_value = scattered(number) & mask(destination);
    format!(
        r#""ipv4.src": {{"value": {source_value}, "mask": {}}}, "ipv4.dst": {{"value": {destination_value}, "mask": {}}}"#,
        mask(source),
        mask(destination)
    )
}

fn put(json: &str) -> Update {
    serde_json::from_str(&format!(r#"{{"put": {json}}}"#)).unwrap()
}

fn put_route(number: u32, rest: &str) -> Update {
    let key = route(number);
    put(&format!(
        r#"{{"table": "routes", "key": {{"ipv4.dst": "{key}"}}, {rest}}}"#
    ))
}

fn put_station(number: u32, rest: &str) -> Update {
    let key = mac(number);
    put(&format!(
        r#"{{"table": "stations", "key": {{"ethernet.dst": "{key}"}}, {rest}}}"#
    ))
}

fn put_access(number: u32) -> Update {
    let key = access_key(number);
    put(&format!(
        r#"{{"table": "access", "key": {{{key}}}, "priority": {}, "action": "deny"}}"#,
        number + 1
    ))
}

/// Writes `count` entries, in batches.
fn fill(engine: &Engine, count: u32, batch: u32, update: impl Fn(u32) -> Update) {
    for first in (0..count).step_by(batch as usize) {
        let updates: Vec<Update> = (first..count.min(first + batch)).map(&update).collect();
        engine.write(&updates, &NoNames, Millis(1)).unwrap();
    }
}

/// Bytes an entry takes, with what an allocator adds to each piece of memory.
fn bytes_per_entry(update: impl Fn(u32) -> Update) -> f64 {
    // A little less than a power of two, as a million is.
    const ENTRIES: u32 = 125_000;
    const OF_ALLOCATOR: i64 = 8;
    let engine = engine();
    let taken = allocation_counter::measure(|| fill(&engine, ENTRIES, 5_000, &update));
    let bytes = taken.bytes_current + taken.count_current * OF_ALLOCATOR;
    bytes as f64 / f64::from(ENTRIES)
}

#[test]
fn an_entry_takes_no_more_than_200_bytes_beyond_its_key() {
    const PLAIN: &str = r#""action": "forward", "params": {"port": 7}"#;
    const OF_TENANT: &str = r#""action": "translate", "params": {"to": "10.1.2.3", "port": 443}, "tenant": "a tenant with a long name""#;
    // A MAC address and an IPv4 prefix lie in 8 bytes, two prefixes with their masks in 16.
    for (what, key_bytes, bytes) in [
        ("exact", 8.0, bytes_per_entry(|n| put_station(n, PLAIN))),
        (
            "exact, tenant",
            8.0,
            bytes_per_entry(|n| put_station(n, OF_TENANT)),
        ),
        ("LPM", 8.0, bytes_per_entry(|n| put_route(n, PLAIN))),
        (
            "LPM, tenant",
            8.0,
            bytes_per_entry(|n| put_route(n, OF_TENANT)),
        ),
        ("ternary", 16.0, bytes_per_entry(put_access)),
    ] {
        println!("{what}: {bytes:.1} bytes an entry with a key of {key_bytes}");
        assert!(bytes <= 200.0 + key_bytes, "{what}: {bytes}");
    }
}

/// Longest and typical time of one frame, for as long as entries are loaded.
struct Stalls {
    longest: Duration,
    per_thousand_over_1ms: f64,
}

fn classify_until(engine: Arc<Engine>, end: &AtomicBool) -> Stalls {
    let mut pipeline = EnginePipeline::new(engine);
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for number in 0..4096 {
        let mut frame = vec![0; 64];
        let [a, b, c, d] = scattered(number).to_be_bytes();
        frame[..12].copy_from_slice(&[2, 0, a, b, c, d, 2, 0, 0, 0, 0, 9]);
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[17] = 50;
        frame[22..24].copy_from_slice(&[64, 17]);
        frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
        frame[30..34].copy_from_slice(&[a, b, c, d]);
        frames.push(frame);
    }
    let (mut longest, mut over, mut calls) = (Duration::ZERO, 0u64, 0u64);
    let started = Instant::now();
    while !end.load(Ordering::Relaxed) {
        pipeline.begin_batch(Millis(started.elapsed().as_millis() as u64));
        for frame in &frames {
            let info = FrameInfo {
                header: frame,
                frame_bytes: 64,
                wire_bytes: 64,
                partial_checksum: None,
            };
            let began = Instant::now();
            let _ = pipeline.decide(PortId::new(1).unwrap(), &info);
            let took = began.elapsed();
            longest = longest.max(took);
            over += u64::from(took > Duration::from_millis(1));
            calls += 1;
        }
    }
    Stalls {
        longest,
        per_thousand_over_1ms: over as f64 * 1000.0 / calls as f64,
    }
}

#[test]
#[ignore = "measures: run it alone, in release"]
fn figures() {
    const RULE: &str = r#""action": "forward", "params": {"port": 7}"#;
    const MILLION: u32 = 1_000_000;
    // Made beforehand: what is measured is the engine.
    let timed = |what: &str, count: u32, batch: u32, update: &dyn Fn(u32) -> Update| {
        let engine = engine();
        let end = AtomicBool::new(false);
        let (mut spent, mut stalls) = (Duration::ZERO, None);
        std::thread::scope(|scope| {
            let pipeline = Arc::clone(&engine);
            let classifier = scope.spawn(|| classify_until(pipeline, &end));
            for first in (0..count).step_by(batch as usize) {
                let updates: Vec<Update> = (first..count.min(first + batch)).map(update).collect();
                let began = Instant::now();
                engine.write(&updates, &NoNames, Millis(1)).unwrap();
                spent += began.elapsed();
            }
            end.store(true, Ordering::Relaxed);
            stalls = classifier.join().ok();
        });
        let stalls = stalls.unwrap();
        println!(
            "{what}, batches of {batch}: {:.2} s, {:.0} updates a second; longest frame {:?}, {:.4} of 1000 over 1 ms",
            spent.as_secs_f64(),
            f64::from(count) / spent.as_secs_f64(),
            stalls.longest,
            stalls.per_thousand_over_1ms,
        );
    };
    timed("nothing", 0, 1, &|n| put_station(n, RULE));
    timed("exact", MILLION, 5_000, &|n| put_station(n, RULE));
    timed("LPM", MILLION, 5_000, &|n| put_route(n, RULE));
    timed("LPM", MILLION, 1_000, &|n| put_route(n, RULE));
    timed("ternary, 64 masks", 100_000, 5_000, &put_access);
}
