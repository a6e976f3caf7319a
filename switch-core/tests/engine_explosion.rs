//! Tuple-space explosion (after CVE-2019-25076): frames that each leave another mask behind in a flow cache, until looking anything up
//! takes as long as the masks are many. Here one port plays it against an access list of many masks.

use std::fmt::Write as _;
use std::sync::Arc;

use switch_core::engine::cache::CacheConfig;
use switch_core::engine::control::{PortNames, Update};
use switch_core::engine::model::Program;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{Decide, FrameInfo, Millis, PortId, Verdict};

const PROGRAM: &str = r#"{
    "name": "list",
    "actions": [{"name": "deny", "do": [{"drop": {"reason": "acl_denied"}}]}, {"name": "send", "do": [{"output": {"port": 3}}]}],
    "tables": [{"name": "access", "key": [{"field": "ipv4.src", "match": "ternary"}, {"field": "ipv4.dst", "match": "ternary"},
                                          {"field": "tcp.src_port", "match": "ternary"}, {"field": "tcp.dst_port", "match": "ternary"}],
                "actions": ["deny", "send"], "default_action": {"action": "send"}, "size": 4096}],
    "ingress": [{"apply": {"table": "access"}}]
}"#;

const ATTACKER: u16 = 1;
const VICTIM: u16 = 2;
const VICTIM_FLOWS: u32 = 1000;

struct Numbers;

impl PortNames for Numbers {
    fn id(&self, _: &str) -> Option<PortId> {
        None
    }

    fn name(&self, _: PortId) -> Option<String> {
        None
    }
}

/// An access list under as many masks as its prefixes make. The widest go first, so each frame is told after another number of bits.
fn engine() -> Arc<Engine> {
    let valid = Program::from_json(PROGRAM).unwrap_or_else(|errors| panic!("{errors}"));
    let engine = Arc::new(Engine::new(valid, EngineConfig::default()).unwrap());
    let mut updates = String::from("[");
    let mut priority = 0;
    for bits in 1..=16 {
        for port_bits in 1..=16 {
            priority += 1;
            let comma = if priority == 1 { "" } else { "," };
            let (address, port) = (1u32 << (32 - bits), 1u16 << (16 - port_bits));
            write!(
                updates,
                r#"{comma}{{"insert": {{"table": "access", "priority": {}, "action": "deny", "key": {{
                    "ipv4.src": {{"value": {address}, "prefix_bits": {bits}}},
                    "tcp.dst_port": {{"value": {port}, "prefix_bits": {port_bits}}}}}}}}}"#,
                1000 - priority
            )
            .unwrap();
        }
    }
    updates.push(']');
    let updates: Vec<Update> = serde_json::from_str(&updates).unwrap();
    let mut written = Ok(());
    // A table takes so many masks; the rules beyond are refused alone.
    for update in updates {
        let one = engine.write(&[update], &Numbers, Millis(1));
        written = written.and(one);
    }
    assert!(engine.count("access").unwrap() >= 32, "{written:?}");
    engine
}

fn tcp(source: u32, ports: (u16, u16)) -> Vec<u8> {
    let mut frame = vec![
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0,
    ];
    frame.extend(source.to_be_bytes());
    frame.extend([10, 0, 0, 1]);
    frame.extend(ports.0.to_be_bytes());
    frame.extend(ports.1.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    frame
}

fn decide(pipeline: &mut EnginePipeline, port: u16, frame: &[u8]) -> Verdict {
    let info = FrameInfo {
        header: frame,
        frame_bytes: frame.len() as u32,
        wire_bytes: frame.len() as u32,
        partial_checksum: None,
    };
    pipeline.decide(PortId::new(port).unwrap(), &info)
}

/// Lines of the index that the victim's frames take, and how many of them miss.
fn victim(pipeline: &mut EnginePipeline, now: Millis) -> (u64, u64) {
    let (probes, misses) = (pipeline.cache_stats().probes, pipeline.stats().misses);
    for flow in 0..VICTIM_FLOWS {
        pipeline.begin_batch(now);
        decide(
            pipeline,
            VICTIM,
            &tcp(
                flow.wrapping_mul(0x9e37_79b9),
                (1000 + flow as u16, flow as u16),
            ),
        );
    }
    (
        pipeline.cache_stats().probes - probes,
        pipeline.stats().misses - misses,
    )
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Plays `attack` between two turns of the victim, and compares them.
fn attacked(attack: impl Fn(&mut Random) -> Vec<u8>) -> EnginePipeline {
    let engine = engine();
    let config = CacheConfig {
        max_flows: 20_000,
        ..CacheConfig::default()
    };
    let mut pipeline = EnginePipeline::with_cache(engine, config);
    victim(&mut pipeline, Millis(1));
    // Once more: what follows the first hits is settled.
    victim(&mut pipeline, Millis(2));
    let (probes, misses) = victim(&mut pipeline, Millis(3));
    assert_eq!(misses, 0);
    let flows = pipeline.flows_of_port(PortId::new(VICTIM).unwrap());
    let mut random = Random(0x1234_5678_9abc_def1);
    for number in 0..100_000u64 {
        if number % 32 == 0 {
            pipeline.begin_batch(Millis(4 + number / 1000));
        }
        let frame = attack(&mut random);
        decide(&mut pipeline, ATTACKER, &frame);
    }
    let now = Millis(200);
    let after = victim(&mut pipeline, now);
    assert_eq!(after.1, 0, "the victim's flows are not pushed out");
    assert!(
        after.0 * 10 <= probes * 11 + u64::from(VICTIM_FLOWS) / 10,
        "{} probes after {probes}",
        after.0
    );
    assert_eq!(pipeline.flows_of_port(PortId::new(VICTIM).unwrap()), flows);
    assert!(pipeline.cache_stats().flows <= 20_000);
    let masks = pipeline.masks_of_port(PortId::new(ATTACKER).unwrap());
    assert!(
        masks <= CacheConfig::default().max_masks_per_port,
        "{masks}"
    );
    pipeline
}

#[test]
fn an_attacker_with_a_mask_for_each_frame_costs_others_nothing() {
    let pipeline = attacked(|random| {
        // One bit of each, as in the attack: each leaves as many bits looked at as it takes to tell it from the rules.
        let (bit, port_bit) = (random.next() % 32, random.next() % 16);
        let source = (1u32 << bit) ^ (random.next() as u32 & 0xff);
        tcp(source, (random.next() as u16, 1 << port_bit))
    });
    let masks = pipeline.masks_of_port(PortId::new(ATTACKER).unwrap());
    assert!(masks > 8, "the attack is one: {masks} masks");
}

#[test]
fn an_attacker_with_a_new_connection_for_each_frame_costs_others_nothing() {
    attacked(|random| {
        tcp(
            random.next() as u32,
            (random.next() as u16, random.next() as u16),
        )
    });
}

#[test]
fn an_attacker_with_a_new_stack_of_headers_for_each_frame_costs_others_nothing() {
    let pipeline = attacked(|random| {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for _ in 0..random.next() % 5 {
            frame.extend([0x81, 0, 0, random.next() as u8]);
        }
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(0u16.to_be_bytes());
        let next_at = frame.len();
        frame.extend([0, 64]);
        frame.extend([1; 32]);
        let mut next_at = next_at;
        for _ in 0..random.next() % 12 {
            let kind = [60, 43, 44, 51][(random.next() % 4) as usize];
            frame[next_at] = kind;
            next_at = frame.len();
            let words = (random.next() % 4) as u8;
            match kind {
                44 => frame.extend([6, 0, 0, 0, 0, 0, 0, 0]),
                _ => {
                    frame.extend([6, words]);
                    frame.extend(vec![0; 6 + 8 * usize::from(words)]);
                }
            }
        }
        frame[next_at] = 6;
        frame.extend([0; 20]);
        frame
    });
    assert!(pipeline.paths() <= 1500, "{} paths", pipeline.paths());
    assert!(pipeline.stats().pathless > 0, "paths are used up");
}
