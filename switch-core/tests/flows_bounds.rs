//! What a port can do to the flow cache, and what it cannot do to other ports: CVE-2019-25076 and its relatives, played.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use switch_core::engine::cache::{
    CacheConfig, CacheStats, FlowCache, FlowKey, Inserted, NotInserted, Refusal, RememberedUnder,
};
use switch_core::{Millis, RateLimit};

const VICTIM: u64 = 1;
const ATTACKER: u64 = 2;
const WHOLE: [u64; 4] = [u64::MAX; 4];

type Words = [u64; 4];

fn frame(port: u64, number: u64) -> Words {
    [
        port,
        number,
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        !number,
    ]
}

fn insert(
    cache: &mut FlowCache<u64>,
    words: &Words,
    mask: &Words,
) -> Result<Inserted<u64>, NotInserted<u64>> {
    cache.insert(&FlowKey::new(1, words), mask, words[1], 0)
}

fn finds(cache: &mut FlowCache<u64>, words: &Words) -> bool {
    cache.lookup(&FlowKey::new(1, words)).is_some()
}

fn config(max_flows: usize) -> CacheConfig {
    CacheConfig {
        max_flows,
        insert_rate: RateLimit::UNLIMITED,
        ..CacheConfig::default()
    }
}

/// Pseudo-random numbers.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A mask that an attacker gets by varying which rules its frames nearly match: one of some thousand.
fn hostile_mask(number: u64) -> Words {
    [
        u64::MAX,
        u64::MAX << (number % 64),
        u64::MAX << (number / 64 % 64),
        u64::MAX,
    ]
}

fn probes_of(cache: &mut FlowCache<u64>, frames: impl Iterator<Item = Words>) -> u64 {
    let before = cache.stats().probes;
    for words in frames {
        cache.lookup(&FlowKey::new(1, &words));
    }
    cache.stats().probes - before
}

#[test]
fn a_hit_under_a_mask_that_is_not_the_only_one_is_promoted() {
    let mut cache = FlowCache::new(config(100), 1);
    insert(&mut cache, &frame(VICTIM, 1), &[u64::MAX, u64::MAX, 0, 0]).unwrap();
    insert(&mut cache, &frame(VICTIM, 2), &[u64::MAX, 0, u64::MAX, 0]).unwrap();
    let mut third = frame(VICTIM, 1);
    third[3] = 99;
    assert!(finds(&mut cache, &third));
    let first = cache.stats();
    assert_eq!((first.masked_hits, first.front_hits), (1, 0));
    // Another flow's frame in between, or the latest flow would answer.
    assert!(finds(&mut cache, &frame(VICTIM, 2)));
    assert!(finds(&mut cache, &third));
    let second = cache.stats();
    assert_eq!((second.masked_hits, second.front_hits), (1, 2));
    assert_eq!(second.probes, first.probes);
    // After two frames of one flow in a row, it is asked first.
    assert!(finds(&mut cache, &third));
    assert_eq!(cache.stats().latest_hits, 0);
    assert!(finds(&mut cache, &third));
    assert_eq!(cache.stats().latest_hits, 1);
}

#[test]
fn under_the_only_mask_a_lookup_is_one_probe_and_takes_no_slot_of_the_front() {
    let mut cache = FlowCache::new(config(100), 1);
    let l2 = [u64::MAX, u64::MAX, 0, 0];
    insert(&mut cache, &frame(VICTIM, 1), &l2).unwrap();
    insert(&mut cache, &frame(VICTIM, 2), &l2).unwrap();
    for connection in 0..100_000 {
        let mut words = frame(VICTIM, connection % 2 + 1);
        words[3] = connection;
        assert!(finds(&mut cache, &words));
    }
    let expected = CacheStats {
        flows: 2,
        masked_hits: 99_999 + 1,
        probes: 99_999 + 1,
        ..CacheStats::default()
    };
    assert_eq!(cache.stats(), expected);
}

#[test]
fn the_mask_that_hit_last_is_tried_first() {
    let mut cache = FlowCache::new(config(100), 1);
    for number in 0..20 {
        insert(&mut cache, &frame(VICTIM, number), &hostile_mask(number)).unwrap();
    }
    // Like the flow of the last mask, but in the bits that this one does not look at.
    let near = |number: u64| {
        let mut words = frame(VICTIM, 19);
        words[1] ^= number;
        words
    };
    // The latest flow would answer.
    assert!(finds(&mut cache, &frame(VICTIM, 3)));
    assert!(probes_of(&mut cache, [near(1)].into_iter()) >= 19);
    for number in 2..1000 {
        assert_eq!(
            probes_of(&mut cache, [frame(VICTIM, 3), near(number)].into_iter()),
            1
        );
    }
}

#[test]
fn an_attackers_masks_cost_other_ports_not_one_probe() {
    let mut cache = FlowCache::new(config(10_000), 1);
    let known = || (0..500).map(|number| frame(VICTIM, number));
    for words in known() {
        insert(&mut cache, &words, &WHOLE).unwrap();
        insert(&mut cache, &words, &[u64::MAX, u64::MAX, 0, 0]).unwrap();
    }
    let unknown = || (5000..5500).map(|number| frame(VICTIM, number));
    let hits_before = probes_of(&mut cache, known());
    let misses_before = probes_of(&mut cache, unknown());
    for number in 0..100_000 {
        let words = frame(ATTACKER, number);
        let _ = insert(&mut cache, &words, &hostile_mask(number));
    }
    assert_eq!(cache.masks_of_port(ATTACKER as u16), 32);
    assert_eq!(cache.flows_of_port(VICTIM as u16), 1000);
    // The front may have forgotten some of them, but not their flows; lines that overflowed go on in another one.
    assert!(known().all(|words| finds(&mut cache, &words)));
    let hits = probes_of(&mut cache, known());
    let misses = probes_of(&mut cache, unknown());
    assert!(hits <= hits_before + 500 / 10, "{hits} {hits_before}");
    assert!(
        misses <= misses_before + misses_before / 10,
        "{misses} {misses_before}"
    );
}

#[test]
fn a_port_without_masks_left_gets_exact_flows_and_bounded_lookups() {
    let mut cache = FlowCache::new(config(10_000), 1);
    for number in 0..4000 {
        let inserted = insert(&mut cache, &frame(ATTACKER, number), &hostile_mask(number)).unwrap();
        let expected = match number {
            0..32 => RememberedUnder::Mask,
            _ => RememberedUnder::ExactKey,
        };
        if number < 64 {
            assert_eq!(inserted.under, expected);
        }
    }
    assert!((0..4000).all(|number| finds(&mut cache, &frame(ATTACKER, number))));
    let frames = 1000;
    let probes = probes_of(
        &mut cache,
        (9000..9000 + frames).map(|number| frame(ATTACKER, number)),
    );
    // So many masks and the exact one; a tenth more for lines that overflowed.
    assert!(probes <= frames * 33 * 11 / 10, "{probes}");
}

#[test]
fn masks_come_back_when_their_flows_are_gone() {
    let mut cache = FlowCache::new(config(10_000), 1);
    for round in 0..10 {
        for number in 0..32 {
            let number = 32 * round + number;
            let inserted = insert(&mut cache, &frame(ATTACKER, number), &hostile_mask(number));
            assert_eq!(inserted.unwrap().under, RememberedUnder::Mask);
        }
        assert_eq!(cache.masks_of_port(ATTACKER as u16), 32);
        cache.sweep(usize::MAX, |_| false);
        assert_eq!(cache.masks_of_port(ATTACKER as u16), 0);
    }
}

#[test]
fn a_port_at_its_share_pushes_out_its_own_flows_only() {
    let mut cache = FlowCache::new(config(1000), 1);
    for number in 0..400 {
        insert(&mut cache, &frame(VICTIM, number), &WHOLE).unwrap();
    }
    for number in 0..50_000 {
        insert(&mut cache, &frame(ATTACKER, number), &WHOLE).unwrap();
        assert_eq!(cache.flows_of_port(VICTIM as u16), 400);
    }
    assert_eq!(cache.stats().flows, 1000);
    assert!((0..400).all(|number| finds(&mut cache, &frame(VICTIM, number))));
}

#[test]
fn a_port_below_its_share_takes_from_the_one_with_the_most() {
    let mut cache = FlowCache::new(config(900), 1);
    for number in 0..5000 {
        insert(&mut cache, &frame(ATTACKER, number), &WHOLE).unwrap();
    }
    assert_eq!(cache.flows_of_port(ATTACKER as u16), 900);
    for port in [VICTIM, 3] {
        for number in 0..300 {
            let inserted = insert(&mut cache, &frame(port, number), &WHOLE).unwrap();
            assert!(inserted.pushed_out.is_some());
        }
        for number in 0..5000 {
            insert(&mut cache, &frame(ATTACKER, number), &WHOLE).unwrap();
        }
    }
    let flows = [VICTIM, ATTACKER, 3].map(|port| cache.flows_of_port(port as u16));
    assert_eq!(flows, [300, 300, 300]);
}

#[test]
fn what_is_used_stays_and_what_is_not_goes() {
    let mut cache = FlowCache::new(config(100), 1);
    let mut now = Millis(0);
    for number in 0..2000 {
        now = now.after(Millis(1));
        cache.set_time(now);
        insert(&mut cache, &frame(VICTIM, number), &WHOLE).unwrap();
        for busy in 0..10.min(number + 1) {
            let words = frame(VICTIM, busy);
            let flow = cache.lookup(&FlowKey::new(1, &words));
            let flow = flow.and_then(|flow| cache.entry_mut(flow)).unwrap();
            flow.count(100);
        }
    }
    assert_eq!(cache.stats().flows, 100);
}

#[test]
fn a_full_cache_is_inserted_into_at_the_ports_rate() {
    let mut cache = FlowCache::new(
        CacheConfig {
            max_flows: 100,
            insert_rate: RateLimit {
                per_second: 1000,
                burst: 10,
            },
            ..CacheConfig::default()
        },
        1,
    );
    let flood = |cache: &mut FlowCache<u64>, port: u64, first: u64| {
        let outcomes =
            (first..first + 500).map(|number| insert(cache, &frame(port, number), &WHOLE));
        outcomes.filter(|outcome| outcome.is_ok()).count()
    };
    assert_eq!(flood(&mut cache, ATTACKER, 0), 110);
    assert_eq!(flood(&mut cache, ATTACKER, 1000), 0);
    let outcome = insert(&mut cache, &frame(ATTACKER, 2000), &WHOLE);
    assert_eq!(outcome.unwrap_err().why, Refusal::OverRate);
    // The other port's rate is its own.
    assert_eq!(flood(&mut cache, VICTIM, 0), 10);
    cache.set_time(Millis(5));
    assert_eq!(flood(&mut cache, ATTACKER, 3000), 5);
    assert_eq!(cache.stats().flows, 100);
}

#[test]
fn hostile_streams_stay_within_all_bounds() {
    let config = CacheConfig {
        max_flows: 3000,
        max_exact: 0,
        max_masks_per_port: 7,
        insert_rate: RateLimit::UNLIMITED,
    };
    let mut cache = FlowCache::new(config, 1);
    let mut state = 1;
    let mut probes_before = 0;
    for _ in 0..200_000 {
        let dice = random(&mut state);
        let port = [dice % 3, dice % 300, u64::from(u16::MAX)][(dice >> 20) as usize % 3];
        let length = (dice >> 24) as usize % 27;
        let words: Vec<_> = (0..length)
            .map(|at| {
                if at == 0 {
                    port
                } else {
                    random(&mut state) % 5
                }
            })
            .collect();
        let mask: Vec<_> = (0..length)
            .map(|_| random(&mut state) >> (dice >> 32 & 63))
            .collect();
        let key = FlowKey::new((dice >> 40) as u16, &words);
        if cache.lookup(&key).is_none() {
            let _ = cache.insert(&key, &mask, 0, 0);
        }
        let stats = cache.stats();
        assert!(stats.flows <= config.max_flows);
        assert!(cache.masks_of_port(port as u16) <= config.max_masks_per_port);
        // One line for each mask and the exact one; a bucket has six at the very most.
        assert!(stats.probes - probes_before <= 8 * 6);
        probes_before = stats.probes;
        assert!(cache.places() < config.max_flows + 256);
    }
}

#[test]
fn a_sweep_shows_every_flow_once_in_as_many_calls_as_it_has_places() {
    let mut cache = FlowCache::new(config(10_000), 1);
    for number in 0..5000 {
        insert(&mut cache, &frame(VICTIM, number), &WHOLE).unwrap();
    }
    let mut shown = vec![0; 5000];
    for call in 1..=cache.places().div_ceil(100) {
        let swept = cache.sweep(100, |flow| {
            shown[flow.value as usize] += 1;
            true
        });
        assert!(swept.visited <= 100);
        assert_eq!(swept.wrapped, call == cache.places().div_ceil(100));
    }
    assert!(shown.iter().all(|times| *times == 1));
}

#[test]
fn counts_of_a_flow_that_is_pushed_out_are_handed_back() {
    let mut cache = FlowCache::new(config(1), 1);
    let inserted = insert(&mut cache, &frame(VICTIM, 1), &WHOLE).unwrap();
    let flow = cache.entry_mut(inserted.flow).unwrap();
    flow.count(60);
    flow.count(1500);
    let inserted = insert(&mut cache, &frame(VICTIM, 2), &WHOLE).unwrap();
    let mut gone = inserted.pushed_out.unwrap();
    assert_eq!(gone.value, 1);
    assert_eq!(gone.take_counts(), (2, 1560));
    assert_eq!(gone.take_counts(), (0, 0));
}

#[test]
fn defaults_hold_what_was_promised_and_an_idle_cache_is_small() {
    // As large as a pointer to a verdict.
    type Verdict = std::num::NonZeroU64;
    let taken = |work: &mut dyn FnMut()| allocation_counter::measure(work).bytes_current;
    let put = |cache: &mut FlowCache<Verdict>, number: u64| {
        let words = frame(number % 4, number);
        let mask = match number % 4 {
            0 => WHOLE,
            _ => [u64::MAX, u64::MAX, 0, number % 2],
        };
        let key = FlowKey::new(1, &words);
        cache.insert(&key, &mask, Verdict::MIN, 0).unwrap();
    };
    let mut cache = None;
    let idle = taken(&mut || cache = Some(FlowCache::new(CacheConfig::default(), 1)));
    let mut cache = cache.unwrap();
    let few = taken(&mut || (0..100).for_each(|number| put(&mut cache, number)));
    assert!(idle + few < 100 << 10, "{idle} {few}");
    let full = taken(&mut || (100..265_536).for_each(|number| put(&mut cache, number)));
    assert_eq!(cache.stats().flows, 265_536);
    assert!(full < 172 * 265_536, "{full}");
    let front = taken(&mut || {
        for number in 0..265_536 {
            let words = frame(number % 4, number);
            let key = FlowKey::new(1, &words);
            assert!(cache.lookup(&key).is_some());
        }
    });
    assert!(front <= 4 << 20, "{front}");
}
