//! What the match-action engine's flow cache costs. Run alone on a quiet core: `cargo bench -p switch-core --bench flows`.
//!
//! Keys have seven words, as many as an Ethernet, an IPv4 and a TCP header have. Frames come in an order that no prefetcher foresees;
//! the verdict is shared, as the engine's are, and every hit checks its stamp and counts the frame.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a bench fails by panicking"
)]

mod measure;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Throughput, criterion_group, criterion_main};
use measure::{Group, bench, bench_after};
use switch_core::engine::cache::{CacheConfig, FlowCache, FlowKey};
use switch_core::{Millis, RateLimit};

type Bench = criterion::Criterion<measure::TimeAndCycles>;
type Verdict = Arc<[u64; 4]>;

const WORDS: usize = 7;
const STAMP: u64 = 1;
/// A mask of the whole key.
const WHOLE: [u64; WORDS] = [u64::MAX; WORDS];
/// Keys that one iteration looks up.
const BURST: usize = 256;

type Words = [u64; WORDS];

/// A frame of one of many connections.
fn words(port: u16, connection: u64) -> Words {
    let spread = connection.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    [
        u64::from(port),
        0x0000_0800_5254_0012,
        0x3456_5254_00ab_cdef,
        0x4500_0000_4006_0000,
        0x0a00_0000_0000 | spread & 0xffff_ffff,
        0x0a01_0000_0050_0000 | connection & 0xffff,
        connection >> 16,
    ]
}

fn config(max_flows: usize) -> CacheConfig {
    CacheConfig {
        max_flows,
        max_exact: (4 * max_flows).max(1 << 19),
        insert_rate: RateLimit::UNLIMITED,
        ..Default::default()
    }
}

fn cache(max_flows: usize) -> FlowCache<Verdict> {
    let mut cache = FlowCache::new(config(max_flows), 1);
    cache.set_time(Millis(1));
    cache
}

fn add(cache: &mut FlowCache<Verdict>, words: &Words, mask: &Words) {
    let key = FlowKey::new(1, words);
    cache
        .insert(&key, mask, Arc::new([1; 4]), STAMP)
        .expect("there is room");
}

/// What the engine does with a frame.
#[inline]
fn frame(cache: &mut FlowCache<Verdict>, words: &Words) -> u64 {
    let flow = cache
        .lookup(&FlowKey::new(1, words))
        .and_then(|flow| cache.entry_mut(flow));
    match flow {
        Some(flow) if flow.stamp == STAMP => {
            flow.count(64);
            flow.is_full().into()
        }
        _ => panic!("a hit"),
    }
}

/// So many numbers below `below`, in no order that a prefetcher knows.
fn numbers(count: usize, below: u64) -> Vec<u64> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((u128::from(state) * u128::from(below)) >> 64) as u64
    };
    (0..count).map(|_| next()).collect()
}

/// Looks up a burst of `frames` after the other.
fn bench_frames(
    group: &mut Group<'_>,
    name: &str,
    cache: &mut FlowCache<Verdict>,
    frames: &[Words],
) {
    for words in frames {
        frame(cache, words);
    }
    let mut bursts = frames.chunks_exact(BURST).cycle();
    group.throughput(Throughput::Elements(BURST as u64));
    bench(group, name, || {
        let burst = bursts.next().expect("an endless supply");
        burst
            .iter()
            .fold(0, |sum, words| sum ^ frame(cache, black_box(words)))
    });
}

fn latest(bencher: &mut Bench) {
    let mut group = bencher.benchmark_group("flows/hit");
    let mut cache = cache(100);
    add(&mut cache, &words(1, 5), &WHOLE);
    bench_frames(&mut group, "latest", &mut cache, &[words(1, 5); BURST]);
    group.finish();
}

/// Each flow under the whole key. With `masks`, the port has a second mask, so that frames are looked up in the front.
fn flows(bencher: &mut Bench, group: &str, masks: usize) {
    let mut group = bencher.benchmark_group(group);
    for flows in [1_000, 8_000, 100_000, 1_000_000] {
        let mut cache = cache(flows + 10);
        for other in 1..masks {
            let mut mask = WHOLE;
            mask[1] = other as u64;
            add(&mut cache, &words(1, u64::MAX), &mask);
        }
        for flow in 0..flows as u64 {
            add(&mut cache, &words(1, flow), &WHOLE);
        }
        let frames = numbers(4 * flows.max(BURST), flows as u64);
        let frames: Vec<_> = frames.into_iter().map(|flow| words(1, flow)).collect();
        bench_frames(&mut group, &flows.to_string(), &mut cache, &frames);
    }
    group.finish();
}

fn one_mask(bencher: &mut Bench) {
    flows(bencher, "flows/hit/one mask", 1);
}

fn front(bencher: &mut Bench) {
    flows(bencher, "flows/hit/front", 2);
}

/// A frame of one of many connections of one of eight stations, and the mask under which a station's are all the same.
fn station_words(connection: u64) -> Words {
    let mut words = words(1, connection);
    words[1] = connection % 8;
    words
}

const STATION: Words = [u64::MAX, u64::MAX, 0, 0, 0, 0, 0];

/// 100,000 connections, which are eight flows of the only mask, and which are eight of the second's and in the front.
fn connections(bencher: &mut Bench) {
    let mut group = bencher.benchmark_group("flows/100000 connections");
    let frames = numbers(400_000, 100_000);
    let frames: Vec<_> = frames.into_iter().map(station_words).collect();
    let mut cache = cache(1000);
    for station in 0..8 {
        add(&mut cache, &station_words(station), &STATION);
    }
    bench_frames(&mut group, "under the only mask", &mut cache, &frames);
    add(&mut cache, &[1, 20, 3, 4, 5, 6, 7], &WHOLE);
    bench_frames(&mut group, "in the front", &mut cache, &frames);
    group.finish();
}

/// Frames that are new to the front, and whose mask is the last that is tried: each is promoted.
fn masked(bencher: &mut Bench) {
    let mut group = bencher.benchmark_group("flows/masked hit");
    for masks in [1, 8, 32] {
        let mut cache = cache(1000);
        // With one mask, two flows take turns, or the latest would answer.
        for flow in 0..masks.max(2) {
            let mut mask = STATION;
            mask[2] = if masks > 1 { flow } else { 0 };
            add(&mut cache, &[1, flow, 3, 4, 5, 6, 7], &mask);
        }
        let mut connection = 0;
        group.throughput(Throughput::Elements(1));
        bench(&mut group, &format!("{masks} masks"), || {
            connection += 1;
            let flow = connection % masks.max(2);
            frame(&mut cache, &[1, flow, 3, connection, 5, 6, 7])
        });
    }
    group.finish();
}

/// Lookups that find nothing after all masks were tried.
fn misses(bencher: &mut Bench) {
    let mut group = bencher.benchmark_group("flows/miss");
    for masks in [1, 8, 32] {
        let mut cache = cache(1000);
        for other in 0..masks {
            let mut mask = WHOLE;
            mask[1] = other;
            add(&mut cache, &[1, 2, 3, 4, 5, 6, 7], &mask);
        }
        let mut connection = 0;
        group.throughput(Throughput::Elements(1));
        bench(&mut group, &format!("{masks} masks"), || {
            connection += 1;
            let words = words(1, connection);
            assert!(cache.lookup(&FlowKey::new(1, &words)).is_none());
        });
    }
    group.finish();
}

/// A thousand new flows, and their removal by a sweep.
fn insertions(bencher: &mut Bench) {
    const NEW: u64 = 1000;
    let mut group = bencher.benchmark_group("flows/insert");
    group.throughput(Throughput::Elements(NEW));
    let verdict = Arc::new([1; 4]);
    let put = |cache: &mut FlowCache<Verdict>, first: u64| {
        for flow in first..first + NEW {
            let words = words(1, flow);
            let key = FlowKey::new(1, &words);
            cache
                .insert(&key, &WHOLE, Arc::clone(&verdict), STAMP)
                .expect("there is room");
        }
    };
    let shared = std::cell::RefCell::new(cache(10_000));
    let empty = || {
        let mut cache = shared.borrow_mut();
        let places = cache.places();
        cache.sweep(places, |_| false);
    };
    bench_after(&mut group, "into an empty cache", empty, || {
        put(&mut shared.borrow_mut(), 0);
    });
    let mut full = cache(100_000);
    let mut next = 0;
    while next < 100_000 {
        put(&mut full, next);
        next += NEW;
    }
    bench(&mut group, "into a full cache of 100000", || {
        put(&mut full, next);
        next += NEW;
    });
    group.throughput(Throughput::Elements(full.places() as u64));
    bench(&mut group, "sweep of 100000", || {
        full.sweep(1 << 20, |flow| flow.stamp == STAMP)
    });
    group.finish();
}

/// What 1,000 flows of one port cost while another has all the masks and flows it may have and inserts at its rate.
fn attacked(bencher: &mut Bench) {
    let mut group = bencher.benchmark_group("flows/1000 flows of a port");
    let frames = numbers(4_000, 1_000);
    let frames: Vec<_> = frames.into_iter().map(|flow| words(1, flow)).collect();
    let mut cache = FlowCache::new(CacheConfig::default(), 1);
    cache.set_time(Millis(1));
    for flow in 0..1000 {
        add(&mut cache, &words(1, flow), &WHOLE);
        if flow == 0 {
            add(
                &mut cache,
                &[1, 2, 3, 4, 5, 6, 7],
                &[u64::MAX, 0, 0, 0, 0, 0, 0],
            );
        }
    }
    bench_frames(&mut group, "alone", &mut cache, &frames);
    for flow in 0..400_000_u64 {
        let mut mask = WHOLE;
        mask[4] = 1 << (flow % 40) | 0xff;
        let words = words(2, flow);
        let key = FlowKey::new((flow % 50) as u16, &words);
        let _ = cache.insert(&key, &mask, Arc::new([1; 4]), STAMP);
        let _ = cache.lookup(&key);
    }
    bench_frames(&mut group, "beside an attacker's", &mut cache, &frames);
    group.finish();
}

criterion_group! {
    name = benches;
    config = measure::criterion();
    targets = latest, one_mask, front, connections, masked, misses, insertions, attacked
}
criterion_main!(benches);
