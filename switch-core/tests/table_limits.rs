//! What a table refuses and what it says then, how narrowly a lookup looks and a change disturbs, and what an entry costs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::Arc;

use switch_core::table::{
    ChangeCounters, CounterRange, Dependencies, EntryKey, Epoch, KeyField, MatchKind, Matcher,
    ShapeError, Table, TableError, TableShape,
};

const AT: Epoch = Epoch(1);

fn fields(key: &[(u16, MatchKind)]) -> Vec<KeyField> {
    key.iter()
        .map(|&(bits, kind)| KeyField { bits, kind })
        .collect()
}

fn table_of(shape: TableShape) -> (Table<u64>, Arc<ChangeCounters>) {
    let counters = Arc::new(ChangeCounters::new(1 << 12));
    let range = CounterRange {
        first: 0,
        count: 1 << 12,
    };
    (
        Table::new(shape, Arc::clone(&counters), range, 9).unwrap(),
        counters,
    )
}

fn table(key: &[(u16, MatchKind)], max_entries: usize) -> (Table<u64>, Arc<ChangeCounters>) {
    table_of(TableShape::new(fields(key), max_entries).unwrap())
}

fn key(matchers: &[Matcher], priority: i32) -> EntryKey {
    EntryKey {
        matchers: matchers.to_vec(),
        priority,
    }
}

fn prefix(value: u128, bits: u16) -> Matcher {
    Matcher::Prefix { value, bits }
}

/// The bits looked at and the dependencies of a lookup.
fn trace(table: &Table<u64>, values: &[u128]) -> (Vec<u128>, Dependencies) {
    let mut looked_at = vec![0; values.len()];
    let mut on = Dependencies::new();
    let _ = table.lookup(values, AT, &mut looked_at, &mut on);
    (looked_at, on)
}

#[test]
fn shapes_that_no_table_can_have_are_refused() {
    use MatchKind::{Exact, Lpm};
    let refused = |key: &[_], entries| TableShape::new(fields(key), entries).unwrap_err();
    assert_eq!(refused(&[(8, Exact); 13], 1), ShapeError::TooManyFields(13));
    for bits in [0, 129] {
        let error = ShapeError::FieldWidth { field: 1, bits };
        assert_eq!(refused(&[(8, Exact), (bits, Exact)], 1), error);
    }
    assert_eq!(refused(&[(128, Exact); 9], 1), ShapeError::KeyWidth(1152));
    assert_eq!(
        refused(&[(8, Lpm), (8, Exact), (8, Lpm)], 1),
        ShapeError::TwoPrefixes {
            first: 0,
            second: 2
        }
    );
    assert_eq!(refused(&[(8, Exact)], 0), ShapeError::MaxEntries(0));

    let counters = Arc::new(ChangeCounters::new(10));
    for (first, count) in [(0, 0), (5, 6), (u32::MAX, 2)] {
        let shape = TableShape::new(fields(&[(8, Exact)]), 1).unwrap();
        let range = CounterRange { first, count };
        let table = Table::<u64>::new(shape, Arc::clone(&counters), range, 1);
        assert!(matches!(table, Err(ShapeError::Counters { .. })));
    }
}

#[test]
fn keys_that_do_not_fit_are_refused_with_the_field_and_what_to_send() {
    use MatchKind::{Exact, Lpm, Optional, Range, Ternary};
    let kinds = [Exact, Lpm, Ternary, Range, Optional];
    let (table, _) = table(&kinds.map(|kind| (8, kind)), 10);
    let any = [
        Matcher::Exact(1),
        Matcher::Any,
        Matcher::Any,
        Matcher::Any,
        Matcher::Any,
    ];
    let refused = |field: usize, matcher: Matcher| {
        let mut matchers = any;
        matchers[field] = matcher;
        table.stage_insert(&key(&matchers, 1), 1, AT).unwrap_err()
    };
    for (field, matcher, value) in [
        (0, Matcher::Exact(256), 256),
        (1, prefix(256, 8), 256),
        (1, prefix(0, 9), 9),
        (
            2,
            Matcher::Ternary {
                value: 0,
                mask: 0x1ff,
            },
            0x1ff,
        ),
        (3, Matcher::Range { low: 1, high: 256 }, 256),
        (4, Matcher::Exact(1 << 127), 1 << 127),
    ] {
        let error = TableError::TooWide {
            field,
            bits: 8,
            value,
        };
        assert_eq!(refused(field, matcher), error);
    }
    for (field, matcher) in [
        (1, prefix(0x81, 7)),
        (1, prefix(0x80, 0)),
        (
            2,
            Matcher::Ternary {
                value: 0x81,
                mask: 0xf0,
            },
        ),
    ] {
        let error = refused(field, matcher);
        assert!(matches!(error, TableError::NotCanonical { .. }), "{error}");
    }
    let error = refused(
        2,
        Matcher::Ternary {
            value: 0x81,
            mask: 0xf0,
        },
    )
    .to_string();
    assert!(
        error.contains("field 2") && error.contains("send 0x80"),
        "{error}"
    );
    for (field, matcher) in [
        (0, Matcher::Any),
        (0, prefix(1, 8)),
        (1, Matcher::Ternary { value: 1, mask: 1 }),
        (1, Matcher::Range { low: 1, high: 2 }),
        (2, Matcher::Range { low: 1, high: 2 }),
        (3, prefix(1, 8)),
        (3, Matcher::Ternary { value: 1, mask: 1 }),
        (4, prefix(1, 8)),
        (4, Matcher::Ternary { value: 1, mask: 1 }),
    ] {
        let error = refused(field, matcher);
        assert!(matches!(error, TableError::WrongMatcher { .. }), "{error}");
    }
    let empty = TableError::EmptyRange {
        field: 3,
        low: 2,
        high: 1,
    };
    assert_eq!(refused(3, Matcher::Range { low: 2, high: 1 }), empty);
    let count = TableError::FieldCount {
        expected: 5,
        given: 4,
    };
    let too_few = table.stage_insert(&key(&any[1..], 1), 1, AT);
    assert_eq!(too_few.unwrap_err(), count);
    assert_eq!(table.len(AT), 0);
}

#[test]
fn only_tables_that_need_a_priority_take_one() {
    for kind in [MatchKind::Exact, MatchKind::Lpm] {
        let (table, _) = table(&[(8, kind)], 10);
        let refused = table.stage_insert(&key(&[Matcher::Exact(1)], 7), 1, AT);
        assert_eq!(refused, Err(TableError::PriorityUnused(7)));
    }
}

#[test]
fn an_epoch_that_has_passed_takes_no_changes() {
    let (table, _) = table(&[(8, MatchKind::Exact)], 10);
    let insert = |value, at| table.stage_insert(&key(&[Matcher::Exact(value)], 0), 1, at);
    insert(1, Epoch(5)).unwrap();
    let passed = TableError::EpochPassed {
        at: Epoch(4),
        newest: Epoch(5),
    };
    assert_eq!(insert(2, Epoch(4)), Err(passed.clone()));
    table.collect(Epoch(5));
    assert_eq!(insert(2, Epoch(4)), Err(passed));
    insert(2, Epoch(5)).unwrap();
}

#[test]
fn another_mask_is_refused_when_there_are_as_many_as_may_be() {
    let shape = TableShape::new(fields(&[(8, MatchKind::Ternary)]), 100).unwrap();
    let (table, _) = table_of(shape.with_max_masks(2));
    let masked = |mask| key(&[Matcher::Ternary { value: 0, mask }], 1);
    table.stage_insert(&masked(1), 1, AT).unwrap();
    table.stage_insert(&masked(2), 1, AT).unwrap();
    let refused = table.stage_insert(&masked(4), 1, AT);
    assert_eq!(refused, Err(TableError::TooManyMasks { limit: 2 }));
    // Once the last entry of a mask is freed, there is room for another.
    table.stage_remove(&masked(1), Epoch(2)).unwrap();
    table.collect(Epoch(2));
    table.stage_insert(&masked(4), 1, Epoch(2)).unwrap();
}

#[test]
fn entries_that_differ_in_nothing_but_priority_are_bounded() {
    let (table, _) = table(&[(8, MatchKind::Ternary)], 1000);
    let insert = |priority| table.stage_insert(&key(&[Matcher::Any], priority), 1, AT);
    for priority in 0..256 {
        insert(priority).unwrap();
    }
    let refused = insert(256);
    assert_eq!(refused, Err(TableError::TooManyOverlaps { limit: 256 }));
}

#[test]
fn ten_thousand_ranges_in_otherwise_equal_keys_fit_and_few_are_compared() {
    let (table, _) = table(&[(16, MatchKind::Range), (8, MatchKind::Exact)], 10_000);
    let range = |low, high| [Matcher::Range { low, high }, Matcher::Exact(6)];
    for low in 0..10_000 {
        let high = 6 * low + 3;
        table
            .stage_insert(&key(&range(6 * low, high), 1), low as u64, AT)
            .unwrap();
    }
    for port in 0..60_000 {
        let hit = table.lookup(&[port, 6], AT, &mut [0, 0], &mut Dependencies::new());
        let wanted = (port % 6 <= 3).then_some(port as u64 / 6);
        assert_eq!(hit.map(|hit| *hit.value), wanted);
    }
}

#[test]
fn a_longest_prefix_lookup_looks_no_further_than_needed() {
    let (table, _) = table(&[(8, MatchKind::Exact), (32, MatchKind::Lpm)], 100);
    for (value, bits) in [
        (0, 0),
        (0x0a00_0000, 8),
        (0x0a01_0000, 16),
        (0x0a01_0200, 24),
    ] {
        let matchers = [Matcher::Exact(1), prefix(value, bits)];
        table.stage_insert(&key(&matchers, 0), 1, AT).unwrap();
    }
    let looked_at = |address: u128| trace(&table, &[1, address]).0[1];
    // The default route, and 10/8: no fewer bits than tell which change counter is asked.
    assert_eq!(looked_at(0xc0a8_0101), 0xffff_0000);
    assert_eq!(looked_at(0x0b00_0001), 0xffff_0000);
    assert_eq!(looked_at(0x0a80_0001), 0xffff_0000);
    assert_eq!(looked_at(0x0a00_0001), 0xffff_0000);
    assert_eq!(looked_at(0x0a01_0301), 0xffff_ff00);
    assert_eq!(looked_at(0x0a01_0201), 0xffff_ff00);
    // Where nothing is, so much is told as well.
    assert_eq!(trace(&table, &[0x81, 0x0a01_0201]).0, [0xff, 0xffff_0000]);
}

#[test]
fn twenty_thousand_routes_come_and_go_and_are_found_as_maps_by_length_find_them() {
    const ROUTES: u128 = 20_000;
    let (table, _) = table(&[(32, MatchKind::Lpm)], ROUTES as usize);
    let scattered = |number: u128| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20 & 0xffff_ffff;
    let mut by_length: Vec<HashMap<u128, u64>> = vec![HashMap::new(); 33];
    let route = |number: u128| {
        let bits = 8 + (number % 25) as u16;
        // Half of them in one /12.
        let address = match number % 2 {
            0 => scattered(number),
            _ => 0x0ab0_0000 | scattered(number) >> 12,
        };
        (address >> (32 - bits) << (32 - bits), bits)
    };
    let check = |by_length: &[HashMap<u128, u64>], at| {
        for number in 0..2 * ROUTES {
            let (near, _) = route(number);
            let address = near | scattered(number) >> 20;
            let mut lengths = (0..=32).rev();
            let wanted = lengths.find_map(|bits| by_length[bits].get(&(address >> (32 - bits))));
            let hit = table.lookup(&[address], at, &mut [0], &mut Dependencies::new());
            assert_eq!(hit.map(|hit| *hit.value), wanted.copied(), "{address:x}");
        }
    };
    let mut added = Vec::new();
    for number in 0..ROUTES {
        let (value, bits) = route(number);
        let route = key(&[prefix(value, bits)], 0);
        if table.stage_insert(&route, number as u64, AT).is_ok() {
            by_length[usize::from(bits)].insert(value >> (32 - bits), number as u64);
            added.push((route, value, bits));
        }
    }
    check(&by_length, AT);
    // A question that touches all of it leaves nothing behind.
    for (route, ..) in &added {
        table.stage_remove(route, Epoch(2)).unwrap();
    }
    assert!(table.is_empty(Epoch(2)));
    table.unstage(Epoch(2));
    check(&by_length, Epoch(2));
    for (number, (route, value, bits)) in added.iter().enumerate() {
        if number % 3 != 0 {
            table.stage_remove(route, Epoch(2)).unwrap();
            by_length[usize::from(*bits)].remove(&(value >> (32 - bits)));
        }
    }
    check(&by_length, Epoch(2));
    table.collect(Epoch(2));
    check(&by_length, Epoch(2));
    let left = by_length.iter().map(HashMap::len).sum::<usize>();
    assert_eq!(table.len(Epoch(2)), left);
    assert_eq!(table.scan(None, usize::MAX, Epoch(2)).len(), left);
}

#[test]
fn a_ternary_lookup_stops_at_a_winner() {
    let (table, _) = table(&[(8, MatchKind::Ternary)], 100);
    for (value, mask, priority) in [(0xf0, 0xf0, 3), (0x0c, 0x0c, 2), (0x03, 0x03, 1)] {
        let matcher = Matcher::Ternary { value, mask };
        table
            .stage_insert(&key(&[matcher], priority), 1, AT)
            .unwrap();
    }
    let looked_at = |value: u128| trace(&table, &[value]).0[0];
    assert_eq!(looked_at(0xff), 0xf0);
    assert_eq!(looked_at(0x0f), 0xfc);
    assert_eq!(looked_at(0x00), 0xff);
}

#[test]
fn a_change_disturbs_only_what_is_near_it() {
    let (table, counters) = table(&[(8, MatchKind::Exact), (32, MatchKind::Lpm)], 1000);
    // What is added to an empty table disturbs all.
    let other = key(&[Matcher::Exact(9), prefix(7 << 24, 8)], 0);
    table.stage_insert(&other, 1, Epoch(0)).unwrap();
    table.bump_staged(Epoch(0));
    let flows: Vec<_> = (0..200)
        .map(|net: u128| trace(&table, &[1, net << 16 | 7]).1)
        .collect();
    let current = || flows.iter().filter(|on| on.is_current(&counters)).count();
    let route = |value, bits| key(&[Matcher::Exact(1), prefix(value, bits)], 0);
    table
        .stage_insert(&route(3 << 16 | 9 << 8, 24), 1, AT)
        .unwrap();
    table.bump_staged(AT);
    // Its own /16, and what shares its counter by chance.
    assert!(!flows[3].is_current(&counters));
    assert!(current() >= 195, "{}", current());
    table.stage_insert(&route(0, 8), 1, Epoch(2)).unwrap();
    table.bump_staged(Epoch(2));
    assert_eq!(current(), 0);
}

#[test]
fn rules_of_one_tenant_disturb_no_other() {
    let (table, counters) = table(&[(16, MatchKind::Exact), (32, MatchKind::Ternary)], 1000);
    let other = key(&[Matcher::Exact(999), Matcher::Any], 1);
    table.stage_insert(&other, 1, Epoch(0)).unwrap();
    table.bump_staged(Epoch(0));
    let flows: Vec<_> = (0..200)
        .map(|tenant: u128| trace(&table, &[tenant, 1]).1)
        .collect();
    let rule = key(&[Matcher::Exact(3), Matcher::Any], 1);
    table.stage_insert(&rule, 1, AT).unwrap();
    table.bump_staged(AT);
    assert!(!flows[3].is_current(&counters));
    let current = flows.iter().filter(|on| on.is_current(&counters)).count();
    assert!(current >= 195, "{current}");
}

#[test]
fn a_result_of_an_overtaken_epoch_cannot_be_remembered() {
    let (table, _) = table(&[(8, MatchKind::Exact)], 10);
    table
        .stage_insert(&key(&[Matcher::Exact(1)], 0), 1, Epoch(2))
        .unwrap();
    assert!(trace(&table, &[1]).1.can_be_remembered());
    table.bump_staged(Epoch(2));
    assert!(!trace(&table, &[1]).1.can_be_remembered());
}

#[test]
fn what_was_not_bumped_is_bumped_before_it_is_forgotten() {
    let (table, counters) = table(&[(8, MatchKind::Exact)], 10);
    let (_, on) = trace(&table, &[1]);
    let added = table.stage_insert(&key(&[Matcher::Exact(1)], 0), 1, AT);
    assert!(added.is_ok() && on.is_current(&counters));
    table.collect(AT);
    assert!(!on.is_current(&counters));
}

/// Bytes an entry, all in all, with values of 8 bytes in an `Arc`; without what an allocator adds to each block.
fn bytes_per_entry(shape: TableShape, keys: &[EntryKey]) -> u64 {
    let (table, _) = table_of(shape);
    let held = allocation_counter::measure(|| {
        for key in keys {
            table.stage_insert(key, 1, AT).unwrap();
        }
        table.collect(AT);
    });
    assert_eq!(table.len(AT), keys.len());
    held.bytes_current as u64 / keys.len() as u64
}

#[test]
fn an_entry_costs_at_most_200_bytes_beyond_its_key() {
    const ENTRIES: u128 = 150_000;
    use MatchKind::{Exact, Lpm, Ternary};
    // An allocator's header and rounding for an entry's value.
    const ALLOCATOR: u64 = 16;
    let scattered = |number: u128| number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let limit = ENTRIES as usize;
    for (name, key_bytes, shape, keys) in [
        (
            "exact, 8 bytes",
            8,
            &[(16, Exact), (48, Exact)][..],
            (0..ENTRIES)
                .map(|number| key(&[Matcher::Exact(1), Matcher::Exact(number)], 0))
                .collect::<Vec<_>>(),
        ),
        (
            "IPv4 routes",
            6,
            &[(16, Exact), (32, Lpm)],
            (0..ENTRIES)
                .map(|number| {
                    key(
                        &[Matcher::Exact(1), prefix(scattered(number) >> 104 << 8, 24)],
                        0,
                    )
                })
                .collect(),
        ),
        (
            "IPv4 host routes, neighbours",
            6,
            &[(16, Exact), (32, Lpm)],
            (0..ENTRIES)
                .map(|number| key(&[Matcher::Exact(number >> 4), prefix(number & 15, 32)], 0))
                .collect(),
        ),
        (
            "IPv6 host routes",
            18,
            &[(16, Exact), (128, Lpm)],
            (0..ENTRIES)
                .map(|number| key(&[Matcher::Exact(1), prefix(scattered(number), 128)], 0))
                .collect(),
        ),
        (
            "pairs of IPv6 routes that need a node each",
            18,
            &[(16, Exact), (128, Lpm)],
            (0..ENTRIES)
                .map(|number| {
                    let site = scattered(number / 2) >> 64 << 64;
                    key(&[Matcher::Exact(1), prefix(site | (number % 2), 128)], 0)
                })
                .collect(),
        ),
        (
            "IPv4 five-tuples with 64 masks",
            26,
            &[
                (32, Ternary),
                (32, Ternary),
                (8, Ternary),
                (16, Ternary),
                (16, Ternary),
            ],
            (0..ENTRIES)
                .map(|number| {
                    let mask = u128::MAX << 96 >> (96 + number % 64 / 8) & 0xffff_ffff;
                    let ports = 0xffff >> (number % 8);
                    let all = |value, mask| Matcher::Ternary {
                        value: value & mask,
                        mask,
                    };
                    let matchers = [
                        all(scattered(number) >> 96, mask),
                        all(scattered(number), 0xffff_ffff),
                        all(6, 0xff),
                        Matcher::Any,
                        all(number, ports),
                    ];
                    key(&matchers, 1 + (number % 1000) as i32)
                })
                .collect(),
        ),
    ] {
        let shape = TableShape::new(fields(shape), limit).unwrap();
        let bytes = bytes_per_entry(shape, &keys) + ALLOCATOR;
        println!("{name}: {bytes} bytes, {key_bytes} of them the key");
        assert!(bytes <= 200 + key_bytes, "{name}: {bytes}");
    }
}
