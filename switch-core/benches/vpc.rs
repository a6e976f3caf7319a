//! What the `vpc` program costs. Run alone on a quiet core: `cargo bench -p switch-core --bench vpc`.
//!
//! Two guests with 10,000 security rules each way; a packet that is bridged, one that is routed, one that is routed and translated. A
//! cached packet is parsed, found and accounted to its connection; a miss goes through all tables. New connections are UDP, each from
//! a port of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a bench fails by panicking"
)]

mod measure;
#[path = "../tests/vpc/mod.rs"]
mod vpc;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{criterion_group, criterion_main};
use measure::bench;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::{Decide, FrameInfo, Millis, PortId, Verdict};
use vpc::Lab;
use vpc::frames::{ACK, SYN, Way, seen, tcp, udp, way};

type Bench = criterion::Criterion<measure::TimeAndCycles>;

const RULES: u32 = 10_000;
const CONNECTIONS: u16 = 1_000;
/// Frames of a batch.
const BURST: usize = 64;

/// Both tenants with many rules, of which the last allows everything, and red behind one public address.
fn network() -> Lab {
    let lab = vpc::open();
    for table in ["egress_rules", "ingress_rules"] {
        let peer = if table == "egress_rules" {
            "destination"
        } else {
            "source"
        };
        let rules: Vec<String> = (0..RULES)
            .map(|number| {
                let (a, b, bits) = (number >> 8, number & 255, 16 + 8 * (number % 2));
                let host = if bits == 24 { format!("172.{}.{b}.0", a & 15) } else { format!("{}.{b}.0.0", 11 + a) };
                let port = 1000 + number % 7;
                format!(r#"{{"put": {{"table": "{table}", "key": {{"policy": 1, "{peer}": "{host}/{bits}", "protocol": 6, "destination_port": {port}}}, "priority": {}, "action": "allow"}}}}"#, 10 + number)
            })
            .collect();
        lab.write(&format!("[{}]", rules.join(",")));
    }
    lab.insert(
        "source_nat4",
        r#""vrf": 1, "interface": 9, "source": "10.0.0.0/8""#,
        "masquerade",
        r#""low": "198.51.100.10", "high": "198.51.100.13", "low_port": 0, "high_port": 0"#,
    );
    for host in 10..14 {
        lab.insert(
            "public_addresses",
            &format!(r#""vrf": 9, "address": "198.51.100.{host}""#),
            "tenant",
            r#""vrf": 1, "zone": 1"#,
        );
    }
    lab
}

/// Frames of open connections, both ways, from vm1.
fn established(lab: &mut Lab, (forth, to): (Way, u16), connections: u16) -> Vec<(u16, Vec<u8>)> {
    let mut frames = Vec::new();
    for number in 0..connections {
        let own = 2000 + number;
        let (port, left) = lab.passes_once(1, &tcp(forth, (own, 80), SYN, (1000, 0), &[]));
        assert_eq!(port, to);
        let left = seen(&left);
        let router = if forth.macs.1 == vpc::frames::mac(2) {
            forth.macs.0
        } else {
            left.source_mac
        };
        let back = Way {
            macs: (left.destination_mac, router),
            from: left.to,
            to: left.from,
        };
        let ports = (left.ports.1, left.ports.0);
        lab.passes_once(to, &tcp(back, ports, SYN | ACK, (5000, 1001), &[]));
        let ack = tcp(forth, (own, 80), ACK, (1001, 5001), b"x");
        lab.passes_once(1, &ack);
        let data = tcp(back, ports, ACK, (5001, 1001), b"y");
        lab.passes_once(to, &data);
        frames.extend([(1, ack), (to, data)]);
    }
    frames
}

fn info(frame: &[u8]) -> FrameInfo<'_> {
    FrameInfo {
        header: frame.get(..256).unwrap_or(frame),
        frame_bytes: frame.len() as u32,
        wire_bytes: frame.len() as u32,
        partial_checksum: None,
    }
}

fn decide(pipeline: &mut EnginePipeline, now: Millis, (port, frame): (u16, &[u8])) -> Verdict {
    pipeline.begin_batch(now);
    pipeline.decide(PortId::new(port).unwrap(), &info(frame))
}

/// A port's frames side by side, as they lie when a batch was taken, and how long each is.
type Burst = (PortId, Vec<([u8; 64], u8)>);

/// Batches of both ports in turns, of connections in an order that no prefetcher foresees.
fn bursts(frames: &[(u16, Vec<u8>)]) -> Vec<Burst> {
    let bursts = frames.len().div_ceil(BURST).next_multiple_of(2);
    let connections = frames.len() / 2;
    let mut turns = [0; 2];
    let burst = |number: usize| {
        let way = number % 2;
        let taken = (0..BURST).map(|_| {
            turns[way] = (turns[way] + 389) % connections;
            let (_, frame) = &frames[2 * turns[way] + way];
            let mut padded = [0; 64];
            padded[..frame.len()].copy_from_slice(frame);
            (padded, frame.len() as u8)
        });
        (PortId::new(frames[way].0).unwrap(), taken.collect())
    };
    (0..bursts).map(burst).collect()
}

/// One batch, as a worker has it decided.
#[inline(never)]
fn decide_all(pipeline: &mut EnginePipeline, now: Millis, (port, frames): &Burst) {
    pipeline.begin_batch(now);
    let infos = frames
        .iter()
        .map(|(frame, bytes)| info(&frame[..usize::from(*bytes)]));
    pipeline.foresee(*port, infos.clone());
    for info in infos {
        black_box(pipeline.decide(*port, &info));
    }
}

fn ways() -> [(&'static str, Way, u16); 3] {
    [
        ("bridged", way((1, 2), "10.0.0.1", "10.0.0.2"), 2),
        ("routed", way((1, 0xf1), "10.0.0.1", "10.0.1.3"), 3),
        ("translated", way((1, 0xf1), "10.0.0.1", "192.0.2.80"), 9),
    ]
}

fn cached(criterion: &mut Bench) {
    let mut group = criterion.benchmark_group("vpc_cached_established");
    for (name, forth, to) in ways() {
        for connections in [1, CONNECTIONS] {
            let mut lab = network();
            let frames = established(&mut lab, (forth, to), connections);
            let mut pipeline = EnginePipeline::new(Arc::clone(&lab.engine));
            for _ in 0..3 {
                for (port, frame) in &frames {
                    decide(&mut pipeline, lab.now, (*port, frame));
                }
            }
            let misses = pipeline.stats().misses;
            let bursts = bursts(&frames);
            let mut bursts = bursts.iter().cycle();
            group.throughput(criterion::Throughput::Elements(BURST as u64));
            bench(&mut group, &format!("{name}/{connections}"), || {
                decide_all(&mut pipeline, lab.now, bursts.next().unwrap());
            });
            // A connection's counters are carried over by the tables' way, once in 2^23 packets.
            let missed = pipeline.stats().misses - misses;
            assert!(missed < 10_000, "{missed} misses: all is cached");
        }
    }
    group.finish();
}

fn misses(criterion: &mut Bench) {
    let mut group = criterion.benchmark_group("vpc_miss");
    for (name, forth, to) in ways() {
        let mut lab = network();
        let frames = established(&mut lab, (forth, to), 1);
        let mut pipeline = EnginePipeline::new(Arc::clone(&lab.engine));
        let (port, frame) = &frames[0];
        decide(&mut pipeline, lab.now, (*port, frame));
        // As after a change to what it depends on.
        bench(&mut group, &format!("established/{name}"), || {
            pipeline.begin_batch(lab.now);
            black_box(pipeline.evaluate_anew(PortId::new(*port).unwrap(), &info(frame)));
        });
        // Each from a port of its own; denied ones open nothing.
        let new: Vec<Vec<u8>> = (0..40_000u16).map(|port| udp(forth, port, 53)).collect();
        let mut at = 0;
        bench(&mut group, &format!("new/{name}"), || {
            if at == new.len() {
                at = 0;
                lab.engine
                    .conntrack()
                    .delete_port(PortId::new(1).unwrap(), lab.now);
            }
            black_box(decide(&mut pipeline, lab.now, (1, &new[at])));
            at += 1;
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = measure::criterion();
    targets = cached, misses
}
criterion_main!(benches);
