//! What a lookup in a table costs, by kind and number of entries, and how fast tables are loaded and changed while others look up.
//! Run alone on a quiet machine: `cargo bench -p switch-core --bench tables`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a bench fails by panicking"
)]

mod measure;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{criterion_group, criterion_main};
use measure::{TimeAndCycles, bench};
use switch_core::table::{
    ChangeCounters, CounterRange, Dependencies, EntryKey, Epoch, KeyField, MatchKind, Matcher,
    Table, TableShape,
};

/// As large as an action with a port and a MAC address.
type Action = [u64; 2];

/// Keys looked up, one after the other: far more than caches hold.
const LOOKED_UP: usize = 1 << 20;
/// The first epoch that is looked at.
const LOADED: Epoch = Epoch(1);

/// xorshift64*, the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A loaded table, keys that it has, and values to look up.
struct Loaded {
    table: Table<Action>,
    keys: Vec<EntryKey>,
    values: Vec<[u128; 5]>,
    fields: usize,
}

fn key(matchers: Vec<Matcher>, priority: i32) -> EntryKey {
    EntryKey { matchers, priority }
}

fn load(
    fields: &[(u16, MatchKind)],
    keys: Vec<EntryKey>,
    values: Vec<[u128; 5]>,
) -> (Loaded, String) {
    let fields: Vec<_> = fields
        .iter()
        .map(|&(bits, kind)| KeyField { bits, kind })
        .collect();
    let count = fields.len();
    let shape = TableShape::new(fields, keys.len() + 1000).expect("a shape");
    let counters = Arc::new(ChangeCounters::new(1 << 16));
    let range = CounterRange {
        first: 0,
        count: 1 << 14,
    };
    let table = Table::new(shape, counters, range, 0x5eed).expect("counters");
    let started = Instant::now();
    let held = allocation_counter::measure(|| {
        for (number, key) in keys.iter().enumerate() {
            let action = [number as u64, 7];
            table
                .stage_insert(key, action, LOADED)
                .expect("a new entry");
        }
        table.bump_staged(LOADED);
        table.collect(LOADED);
    });
    let report = format!(
        "loaded in {:.2} s, {:.0} bytes an entry",
        started.elapsed().as_secs_f64(),
        held.bytes_current as f64 / keys.len() as f64
    );
    let loaded = Loaded {
        table,
        keys,
        values,
        fields: count,
    };
    (loaded, report)
}

/// Two exact fields: a domain and an address.
fn exact(entries: usize) -> (Loaded, String) {
    let mut random = Random(1);
    let values: Vec<_> = (0..entries)
        .map(|number| {
            let domain = u128::from(random.below(1 << 16));
            [domain, (number as u128) << 8 | domain & 0xff, 0, 0, 0]
        })
        .collect();
    let keys = values.iter().map(|&[domain, address, ..]| {
        key(vec![Matcher::Exact(domain), Matcher::Exact(address)], 0)
    });
    let keys = keys.collect();
    let looked_up = LOOKED_UP.min(16 * entries);
    let values = (0..looked_up)
        .map(|_| values[random.below(entries as u64) as usize])
        .collect();
    load(
        &[(16, MatchKind::Exact), (48, MatchKind::Exact)],
        keys,
        values,
    )
}

/// A VRF and prefixes with lengths as in the Internet's tables.
fn routes(entries: usize, bits: u16) -> (Loaded, String) {
    let mut random = Random(2);
    let lengths: &[(u64, u16)] = match bits {
        32 => &[
            (60, 24),
            (10, 23),
            (12, 22),
            (5, 21),
            (5, 20),
            (3, 19),
            (2, 18),
            (2, 16),
            (1, 14),
        ],
        _ => &[
            (47, 48),
            (10, 44),
            (10, 40),
            (10, 36),
            (15, 32),
            (5, 29),
            (3, 64),
        ],
    };
    let mut seen = std::collections::HashSet::new();
    let mut prefixes = Vec::new();
    while prefixes.len() < entries {
        let mut pick = random.below(100);
        let mut length = bits;
        for &(share, of) in lengths {
            length = of;
            if pick < share {
                break;
            }
            pick -= share;
        }
        let address = match bits {
            32 => u128::from(random.below(223 << 24) + (1 << 24)),
            _ => 1 << 125 | u128::from(random.next()) << 69 | u128::from(random.next()),
        };
        let value = address >> (bits - length) << (bits - length);
        if seen.insert((value, length)) {
            prefixes.push((value, length));
        }
    }
    let keys = prefixes
        .iter()
        .map(|&(value, bits)| key(vec![Matcher::Exact(1), Matcher::Prefix { value, bits }], 0))
        .collect();
    let values = (0..LOOKED_UP)
        .map(|_| {
            let (value, length) = prefixes[random.below(entries as u64) as usize];
            let host = u128::from(random.next()) & ((1 << (bits - length).min(40)) - 1);
            [1, value | host, 0, 0, 0]
        })
        .collect();
    load(
        &[(16, MatchKind::Exact), (bits, MatchKind::Lpm)],
        keys,
        values,
    )
}

/// Security rules over an IPv4 five-tuple with 64 distinct masks. Half of the values match a rule, half none.
fn rules(entries: usize, misses: bool) -> (Loaded, String) {
    let mut random = Random(3);
    let prefix = |length: u64| u128::from(u32::MAX << (32 - length));
    let masks: Vec<[u128; 5]> = (0..64)
        .map(|number| {
            let source = prefix(8 + number % 8 * 3 + 1);
            let destination = prefix(14 + number / 8 * 2);
            [
                source,
                destination,
                0xff,
                0,
                [0, 0xffff][number as usize % 2],
            ]
        })
        .collect();
    let mut seen = std::collections::HashSet::new();
    let mut keys = Vec::new();
    let mut values = Vec::new();
    while keys.len() < entries {
        let mask = masks[keys.len() % masks.len()];
        let value = [
            u128::from(random.below(1 << 31)) & mask[0],
            u128::from(random.below(1 << 32)) & mask[1],
            [6, 17][random.below(2) as usize],
            0,
            u128::from(random.below(1 << 16)) & mask[4],
        ];
        if !seen.insert((value, mask)) {
            continue;
        }
        let matchers = value
            .iter()
            .zip(mask)
            .map(|(&value, mask)| Matcher::Ternary { value, mask });
        keys.push(key(matchers.collect(), 1 + random.below(1000) as i32));
        let mut value = value;
        if misses {
            value[0] |= 1 << 31;
        }
        value[3] = u128::from(random.below(1 << 16));
        values.push(value);
    }
    let looked_up = (0..LOOKED_UP)
        .map(|_| values[random.below(entries as u64) as usize])
        .collect();
    let fields = [32, 32, 8, 16, 16].map(|bits| (bits, MatchKind::Ternary));
    load(&fields, keys, looked_up)
}

/// Rules over a domain, a source prefix and a destination port range.
fn ranges(entries: usize) -> (Loaded, String) {
    let mut random = Random(4);
    let mut keys = Vec::new();
    let mut values = Vec::new();
    while keys.len() < entries {
        let low = u128::from(random.below(60_000));
        let high = low + u128::from(random.below(5_000));
        let matchers = vec![
            Matcher::Exact(1),
            Matcher::Any,
            Matcher::Range { low, high },
        ];
        keys.push(key(matchers, keys.len() as i32));
        values.push([1, 0x0a00_0001, u128::from(random.below(1 << 16)), 0, 0]);
    }
    let fields = [
        (16, MatchKind::Exact),
        (32, MatchKind::Ternary),
        (16, MatchKind::Range),
    ];
    load(&fields, keys, values)
}

/// Flows of which a worker's caches hold all that a lookup needs.
const FEW_FLOWS: usize = 1000;

fn lookups(group: &mut measure::Group<'_>, name: &str, (loaded, report): &(Loaded, String)) {
    look_up(
        group,
        &format!("{name}, any flow"),
        loaded,
        loaded.values.len(),
    );
    look_up(group, &format!("{name}, 1k flows"), loaded, FEW_FLOWS);
    println!("{:24}{report}", "");
}

fn look_up(group: &mut measure::Group<'_>, name: &str, loaded: &Loaded, flows: usize) {
    let mut at = 0;
    let mut on = Dependencies::new();
    bench(group, name, || {
        at = (at + 1) % flows;
        let values = loaded.values.get(at).expect("a value");
        let mut looked_at = [0; 5];
        on.clear();
        black_box(loaded.table.lookup(
            &values[..loaded.fields],
            LOADED,
            &mut looked_at[..loaded.fields],
            &mut on,
        ))
    });
}

/// Replaces, removes and adds entries, so many in a batch, while another thread looks up.
fn changes(name: &str, (loaded, _): &(Loaded, String), batch: usize) {
    let stop = AtomicBool::new(false);
    let published = AtomicU64::new(LOADED.0);
    let looked_up = AtomicU64::new(0);
    let table = &loaded.table;
    let mut epoch = table_epoch(loaded);
    published.store(epoch, Ordering::Release);
    let mut done = 0;
    let elapsed = thread::scope(|scope| {
        scope.spawn(|| {
            let mut on = Dependencies::new();
            for values in loaded.values.iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let at = Epoch(published.load(Ordering::Acquire));
                on.clear();
                let mut looked_at = [0; 5];
                black_box(table.lookup(
                    &values[..loaded.fields],
                    at,
                    &mut looked_at[..loaded.fields],
                    &mut on,
                ));
                looked_up.fetch_add(1, Ordering::Relaxed);
            }
        });
        let started = Instant::now();
        let mut random = Random(5);
        while started.elapsed() < Duration::from_secs(1) {
            epoch += 1;
            let at = Epoch(epoch);
            for _ in 0..batch {
                let key = &loaded.keys[random.below(loaded.keys.len() as u64) as usize];
                if done % 3 == 0 {
                    table.stage_replace(key, [1, 1], at).expect("an entry");
                } else if done % 3 == 1 {
                    table.stage_remove(key, at).expect("an entry");
                    table.stage_insert(key, [2, 2], at).expect("a new entry");
                    done += 1;
                }
                done += 1;
            }
            published.store(epoch, Ordering::Release);
            table.bump_staged(at);
            table.collect(at);
        }
        let elapsed = started.elapsed();
        stop.store(true, Ordering::Relaxed);
        elapsed
    });
    println!(
        "{name}: {:.0} changes a second in batches of {batch}, {:.0} lookups a second meanwhile",
        done as f64 / elapsed.as_secs_f64(),
        looked_up.load(Ordering::Relaxed) as f64 / elapsed.as_secs_f64()
    );
}

/// An epoch beyond all that were used.
fn table_epoch(loaded: &Loaded) -> u64 {
    let first = loaded.table.scan(None, usize::MAX, Epoch(u64::MAX - 1));
    let latest = first.iter().map(|entry| entry.changed_at.0).max();
    latest.unwrap_or(1) + 1
}

fn tables(criterion: &mut criterion::Criterion<TimeAndCycles>) {
    let mut group = criterion.benchmark_group("tables");
    for (name, entries) in [("exact 1k", 1_000), ("exact 1M", 1_000_000)] {
        lookups(&mut group, name, &exact(entries));
    }
    for (name, entries, bits) in [
        ("lpm v4 100k", 100_000, 32),
        ("lpm v4 1M", 1_000_000, 32),
        ("lpm v6 1M", 1_000_000, 128),
    ] {
        lookups(&mut group, name, &routes(entries, bits));
    }
    for (name, entries, misses) in [
        ("ternary 100", 100, false),
        ("ternary 10k", 10_000, false),
        ("ternary 100k", 100_000, false),
        ("ternary 100 miss", 100, true),
        ("ternary 10k miss", 10_000, true),
        ("ternary 100k miss", 100_000, true),
    ] {
        lookups(&mut group, name, &rules(entries, misses));
    }
    lookups(&mut group, "range 10k", &ranges(10_000));
    group.finish();
    for (name, loaded) in [
        ("exact 1M", exact(1_000_000)),
        ("lpm v4 1M", routes(1_000_000, 32)),
        ("ternary 100k", rules(100_000, false)),
    ] {
        for batch in [1, 64] {
            changes(name, &loaded, batch);
        }
    }
}

criterion_group! {
    name = benches;
    config = measure::criterion();
    targets = tables
}
criterion_main!(benches);
