//! What each step of a frame's way through the core costs. Run alone on a quiet core: `cargo bench -p switch-core`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a bench fails by panicking"
)]

mod measure;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use measure::{Group, bench};
use switch_core::checksum::Sum;
use switch_core::parse::{EthernetHeader, Headers};
use switch_core::segment::{Gso, SegmentPlan};
use switch_core::{
    MacAddress, Millis, Pipeline, PortId, RateLimit, Switch, SwitchConfig, VlanId, VlanPolicy,
};

/// The number of the station that frames go to.
const STATION: u32 = 0x0100_0000;

type Bench = criterion::Criterion<measure::TimeAndCycles>;

fn port(index: u16) -> PortId {
    PortId::new(index).expect("a small index")
}

/// A switch with `ports` ports of one VLAN and room for all stations that come up here, and a pipeline whose time is set.
fn pipeline(ports: u16) -> Pipeline {
    limited_pipeline(
        ports,
        SwitchConfig {
            mac_table_capacity: 1 << 18,
            mac_limit_per_port: 1 << 18,
            learn_rate: RateLimit::UNLIMITED,
            flow_rate: RateLimit::UNLIMITED,
            ..Default::default()
        },
    )
}

fn limited_pipeline(ports: u16, config: SwitchConfig) -> Pipeline {
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

/// Frames of a batch.
const BATCH: usize = 32;

/// Classifies batches of frames, the `flow`th of which `write` makes of a frame between two known stations. Frames lie where a worker
/// has them: in a few private headers, not in as much memory as there are flows.
fn classify_flows(
    group: &mut Group<'_>,
    name: &str,
    flows: u32,
    write: impl Fn(&mut [u8; 64], u32),
) {
    let mut pipeline = pipeline(2);
    let plain = frame(mac(STATION), mac(0));
    pipeline.classify(port(1), &frame(MacAddress::BROADCAST, mac(STATION)));
    let mut headers = [plain; BATCH];
    let mut next = 0;
    let mut frames = 0;
    let mut batch = || {
        frames += BATCH as u64;
        pipeline.begin_batch(Millis(1));
        for header in &mut headers {
            write(header, next);
            next = if next + 1 == flows { 0 } else { next + 1 };
        }
        for header in black_box(&headers) {
            black_box(pipeline.classify(port(0), header));
        }
    };
    // Until the cache holds what it will hold.
    for _ in 0..8 * (flows as usize).div_ceil(BATCH) {
        batch();
    }
    bench(group, name, batch);
    let misses = pipeline.stats().misses as f64 / frames as f64;
    println!("{:24}decided by the tables: {:.2} %", "", 100.0 * misses);
}

fn classify(c: &mut Bench) {
    let mut group = c.benchmark_group("lookup");
    group.throughput(Throughput::Elements(BATCH as u64));
    for flows in [1, 1_000, 100_000] {
        // IPv4 source address and UDP source port.
        let write = |header: &mut [u8; 64], flow: u32| {
            header[26..30].copy_from_slice(&(0x0a00_0000 | flow >> 4).to_be_bytes());
            header[34..36].copy_from_slice(&(flow as u16).to_be_bytes());
        };
        classify_flows(
            &mut group,
            &format!("cached, {flows} flows by IP and port"),
            flows,
            write,
        );
    }
    for flows in [1, 2, 1_000, 8_000, 100_000] {
        let write = |header: &mut [u8; 64], flow: u32| {
            header[6..12].copy_from_slice(&mac(flow).0);
        };
        classify_flows(
            &mut group,
            &format!("cached, {flows} source MACs"),
            flows,
            write,
        );
    }
    {
        // Each pass comes when the sources are due to be noted as seen again, so no verdict holds any more.
        const FLOWS: u32 = 4096;
        let mut pipeline = pipeline(2);
        pipeline.classify(port(1), &frame(MacAddress::BROADCAST, mac(STATION)));
        let frames: Vec<_> = (0..FLOWS)
            .map(|flow| frame(mac(STATION), mac(flow)))
            .collect();
        let mut now = Millis(1);
        let mut next = 0;
        bench(&mut group, "uncached, known stations", || {
            if next == frames.len() {
                next = 0;
                now = now.after(Millis(1000));
                pipeline.begin_batch(now);
                pipeline.classify(port(1), &frame(MacAddress::BROADCAST, mac(STATION)));
            }
            for frame in &frames[next..next + BATCH] {
                black_box(pipeline.classify(port(0), black_box(frame)));
            }
            next += BATCH;
        });
    }
    // Without limits each is learned and remembered; with the default ones hardly any is, nor does it push others out.
    for (name, mut pipeline) in [
        ("uncached, every source new, no limits", pipeline(8)),
        (
            "uncached, every source new, default limits",
            limited_pipeline(8, SwitchConfig::default()),
        ),
    ] {
        let mut source = 0;
        bench(&mut group, name, || {
            for _ in 0..BATCH {
                source += 1;
                let frame = frame(MacAddress::BROADCAST, mac(source));
                black_box(pipeline.classify(port(0), black_box(&frame)));
            }
        });
    }
    group.throughput(Throughput::Elements(1));
    {
        let mut pipeline = pipeline(8);
        let broadcast = frame(MacAddress::BROADCAST, mac(1));
        bench(&mut group, "flood to 7 ports, cached", || {
            match pipeline.classify(port(0), black_box(&broadcast)) {
                switch_core::Verdict::Flood(flood) => pipeline
                    .flood_members(flood)
                    .map(|(port, _)| usize::from(port.get()))
                    .sum(),
                _ => 0,
            }
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

fn parse(c: &mut Bench) {
    let mut group = c.benchmark_group("parse");
    let frame = tcp_frame(100);
    bench(&mut group, "Ethernet", || {
        EthernetHeader::parse(black_box(&frame))
    });
    bench(&mut group, "all headers, IPv4 TCP", || {
        Headers::parse(black_box(&frame), frame.len())
    });
    group.finish();
}

fn checksum(c: &mut Bench) {
    let mut group = c.benchmark_group("checksum");
    for len in [64, 1460, 9000] {
        let bytes = vec![0x5a; len];
        group.throughput(Throughput::Bytes(len as u64));
        bench(&mut group, &format!("{len} bytes"), || {
            Sum::of(black_box(&bytes)).checksum()
        });
    }
    group.finish();
}

fn segment(c: &mut Bench) {
    let mut group = c.benchmark_group("segment");
    let frame = tcp_frame(65_000);
    let header = &frame[..256];
    let headers = Headers::parse(header, frame.len()).expect("a valid frame");
    let gso = Gso::TcpV4 {
        segment_bytes: 1448,
    };
    bench(&mut group, "plan", || {
        SegmentPlan::new(black_box(header), &headers, gso, frame.len()).map(|plan| plan.count())
    });
    let plan = SegmentPlan::new(header, &headers, gso, frame.len()).expect("a valid plan");
    let mut buffer = [0; 264];
    bench(&mut group, "headers of one TCPv4 segment", || {
        plan.write(black_box(7), &mut buffer).is_some()
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = measure::criterion();
    targets = classify, parse, checksum, segment
}
criterion_main!(benches);
