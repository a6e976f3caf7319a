//! What each step of a frame's way through the core costs. Run alone on a quiet core: `cargo bench -p switch-core`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a bench fails by panicking"
)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use switch_core::checksum::Sum;
use switch_core::parse::{EthernetHeader, Headers};
use switch_core::segment::{Gso, SegmentPlan};
use switch_core::{
    MacAddress, Millis, Pipeline, PortId, RateLimit, Switch, SwitchConfig, VlanId, VlanPolicy,
};

const STATIONS_PER_PORT: u32 = 4;

fn port(index: u16) -> PortId {
    PortId::new(index).expect("a small index")
}

/// A switch with `ports` ports of one VLAN, and a pipeline whose time is set.
fn pipeline(ports: u16) -> Pipeline {
    let config = SwitchConfig {
        learn_rate: RateLimit::UNLIMITED,
        flow_rate: RateLimit::UNLIMITED,
        ..Default::default()
    };
    let switch = Arc::new(Switch::new(config));
    for index in 0..ports {
        switch
            .add_port(
                port(index),
                VlanPolicy::Access(VlanId::new(10).expect("valid")),
            )
            .expect("a new port");
    }
    let mut pipeline = Pipeline::new(switch);
    pipeline.begin_batch(Millis(1));
    pipeline
}

fn mac(number: u32) -> MacAddress {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddress([0x52, 0x54, a, b, c, d])
}

fn frame(destination: MacAddress, source: MacAddress) -> [u8; 64] {
    let mut frame = [0; 64];
    frame[..6].copy_from_slice(&destination.0);
    frame[6..12].copy_from_slice(&source.0);
    frame[12] = 0x08;
    frame
}

/// `flows` frames between two ports' stations, each a flow of its own, all of whose stations are known.
fn known_flows(pipeline: &mut Pipeline, flows: u32) -> Vec<[u8; 64]> {
    let destinations: Vec<_> = (0..STATIONS_PER_PORT)
        .map(|number| mac(0x0100_0000 | number))
        .collect();
    for &destination in &destinations {
        pipeline.classify(port(1), &frame(MacAddress::BROADCAST, destination));
    }
    let frames: Vec<_> = (0..flows)
        .map(|flow| {
            frame(
                destinations[(flow % STATIONS_PER_PORT) as usize],
                mac(flow / STATIONS_PER_PORT),
            )
        })
        .collect();
    for frame in &frames {
        pipeline.classify(port(0), frame);
    }
    frames
}

fn classify(c: &mut Criterion) {
    let mut group = c.benchmark_group("classify");
    group.throughput(Throughput::Elements(1));
    for flows in [1, 1_000, 8_000] {
        let mut pipeline = pipeline(2);
        let frames = known_flows(&mut pipeline, flows);
        let mut next = 0;
        group.bench_function(format!("cached hit, {flows} flows"), |b| {
            b.iter(|| {
                next = if next + 1 == frames.len() {
                    0
                } else {
                    next + 1
                };
                pipeline.classify(port(0), black_box(&frames[next]))
            });
        });
    }
    {
        let mut pipeline = pipeline(2);
        let frames = known_flows(&mut pipeline, 65_536);
        let mut next = 0;
        group.bench_function("miss, known stations", |b| {
            b.iter(|| {
                next = if next + 1 == frames.len() {
                    0
                } else {
                    next + 1
                };
                pipeline.classify(port(0), black_box(&frames[next]))
            });
        });
    }
    {
        let mut pipeline = pipeline(8);
        let mut source = 0;
        group.bench_function("learn flood, random sources", |b| {
            b.iter(|| {
                source += 1;
                pipeline.classify(
                    port(0),
                    black_box(&frame(MacAddress::BROADCAST, mac(source))),
                )
            });
        });
    }
    {
        let mut pipeline = pipeline(8);
        let broadcast = frame(MacAddress::BROADCAST, mac(1));
        group.bench_function("flood to 7 ports, cached", |b| {
            b.iter(|| match pipeline.classify(port(0), black_box(&broadcast)) {
                switch_core::Verdict::Flood(flood) => pipeline
                    .flood_members(flood)
                    .map(|(port, _)| usize::from(port.get()))
                    .sum(),
                _ => 0,
            });
        });
    }
    group.finish();
}

fn tcp_frame(payload_bytes: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1234, 80, 1, 1000)
        .write(&mut bytes, &vec![0x5a; payload_bytes])
        .expect("a vector takes any frame");
    bytes
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    let frame = tcp_frame(100);
    group.bench_function("Ethernet", |b| {
        b.iter(|| EthernetHeader::parse(black_box(&frame)))
    });
    group.bench_function("all headers, IPv4 TCP", |b| {
        b.iter(|| Headers::parse(black_box(&frame), frame.len()))
    });
    group.finish();
}

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [64, 1460, 9000] {
        let bytes = vec![0x5a; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len} bytes"), |b| {
            b.iter(|| Sum::of(black_box(&bytes)).checksum())
        });
    }
    group.finish();
}

fn segment(c: &mut Criterion) {
    let mut group = c.benchmark_group("segment");
    let frame = tcp_frame(65_000);
    let header = &frame[..256];
    let headers = Headers::parse(header, frame.len()).expect("a valid frame");
    let gso = Gso::TcpV4 {
        segment_bytes: 1448,
    };
    group.bench_function("plan", |b| {
        b.iter(|| {
            SegmentPlan::new(black_box(header), &headers, gso, frame.len()).map(|plan| plan.count())
        });
    });
    let plan = SegmentPlan::new(header, &headers, gso, frame.len()).expect("a valid plan");
    let mut buffer = [0; 264];
    group.bench_function("headers of one TCPv4 segment", |b| {
        b.iter(|| plan.write(black_box(7), &mut buffer))
    });
    group.finish();
}

criterion_group!(benches, classify, parse, checksum, segment);
criterion_main!(benches);
