//! Threads that look up while batches across two tables are committed: nobody ever sees half of a batch.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use switch_core::table::{
    ChangeCounters, CounterRange, Dependencies, EntryKey, Epoch, KeyField, MatchKind, Matcher,
    Table, TableShape,
};

const BATCHES: u64 = 3_000;
const KEYS: u64 = 16;

fn tables(counters: &Arc<ChangeCounters>) -> [Table<u64>; 3] {
    let range = |first| CounterRange { first, count: 64 };
    let field = |kind| KeyField { bits: 32, kind };
    let shape = |key| TableShape::new(key, 64).unwrap();
    [
        (vec![field(MatchKind::Exact)], 0),
        (vec![field(MatchKind::Lpm)], 64),
        (vec![field(MatchKind::Ternary)], 128),
    ]
    .map(|(key, first)| Table::new(shape(key), Arc::clone(counters), range(first), 5).unwrap())
}

fn keys(number: u64) -> [EntryKey; 3] {
    let value = u128::from(number) << 8;
    let ternary = Matcher::Ternary {
        value,
        mask: 0xffff_ff00,
    };
    [
        (Matcher::Exact(value), 0),
        (Matcher::Prefix { value, bits: 24 }, 0),
        (ternary, 1),
    ]
    .map(|(matcher, priority)| EntryKey {
        matchers: vec![matcher],
        priority,
    })
}

/// What a worker remembers of a key.
struct Remembered {
    result: Option<u64>,
    on: Dependencies,
}

#[test]
fn workers_see_all_of_a_batch_or_nothing_and_caches_never_serve_what_was_replaced() {
    let counters = Arc::new(ChangeCounters::new(192));
    let tables = tables(&counters);
    let published = AtomicU64::new(0);
    let oldest = AtomicU64::new(0);
    // The epoch of the last batch that was said to be done.
    let acknowledged = AtomicU64::new(0);
    let stop = AtomicBool::new(false);

    let worker = |mut number: u64| {
        let mut seen = 0;
        let mut cache: Vec<Option<Remembered>> = (0..KEYS).map(|_| None).collect();
        while !stop.load(Ordering::Relaxed) {
            number = (number * 5 + 3) % KEYS;
            let slot = &mut cache[number as usize];
            let done = acknowledged.load(Ordering::Acquire);
            if let Some(one) = slot
                && one.on.is_current(&counters)
            {
                // Every batch changes every key, and says in which epoch.
                assert!(one.result.unwrap_or(done) >= done);
            }
            let at = published.load(Ordering::Acquire);
            let mut on = Dependencies::new();
            let results = tables.each_ref().map(|table| {
                let values = [u128::from(number) << 8];
                let hit = table.lookup(&values, Epoch(at), &mut [0], &mut on);
                hit.map(|hit| *hit.value)
            });
            if oldest.load(Ordering::Acquire) > at {
                // What it looked at may have been freed meanwhile: it has to look again.
                continue;
            }
            assert!(
                results.iter().all(|&result| result == results[0]),
                "{at} {results:?}"
            );
            assert!(
                results[0].is_none_or(|value| value == at),
                "{at} {results:?}"
            );
            if on.can_be_remembered() {
                let result = results[0];
                *slot = Some(Remembered { result, on });
            }
            seen += 1;
        }
        seen
    };

    let seen: Vec<u64> = thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|number| scope.spawn(move || worker(number)))
            .collect();
        for epoch in 1..=BATCHES {
            let at = Epoch(epoch);
            for number in 0..KEYS {
                for (table, key) in tables.iter().zip(keys(number)) {
                    // There in two of three epochs.
                    match (epoch + number) % 3 {
                        0 => {
                            let _ = table.stage_remove(&key, at);
                        }
                        1 => {
                            let _ = table.stage_insert(&key, epoch, at);
                        }
                        _ => {
                            let _ = table.stage_replace(&key, epoch, at);
                        }
                    }
                }
            }
            // A question about what would be, answered before.
            let next = Epoch(epoch + 1);
            if epoch % 16 == 0 {
                tables[1].stage_replace(&keys(0)[1], 0, next).ok();
                tables[1].unstage(next);
            }
            published.store(epoch, Ordering::Release);
            for table in &tables {
                table.bump_staged(at);
            }
            acknowledged.store(epoch, Ordering::Release);
            if epoch % 4 == 0 {
                oldest.store(epoch, Ordering::Release);
                for table in &tables {
                    table.collect(at);
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    });
    assert!(seen.iter().sum::<u64>() > 0);
}
