//! Tables against an obviously right model: lists of entries by epoch, searched from end to end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use switch_core::table::{
    ChangeCounters, CounterRange, Dependencies, EntryHandle, EntryKey, Epoch, KeyField, MatchKind,
    Matcher, Table, TableError, TableShape,
};

/// A small generator: what a step does is drawn from it, so that a failing case is a seed and a number of steps.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

fn ones(bits: u16) -> u128 {
    u128::MAX >> (128 - bits)
}

/// One of few values, so that keys meet: a constant with a bit or two turned over.
fn value(draw: &mut Draw, bits: u16) -> u128 {
    let mut value = draw.of(&[0, u128::MAX, 0x0a0a_0a0a_0a0a_0a0a_0a0a_0a0a_0a0a_0a0a]);
    for _ in 0..draw.below(3) {
        value ^= 1 << draw.below(usize::from(bits));
    }
    value & ones(bits)
}

fn shape(draw: &mut Draw) -> TableShape {
    use MatchKind::{Exact, Lpm, Optional, Range, Ternary};
    let kinds: &[MatchKind] = draw.of(&[
        &[Exact],
        &[Exact, Exact, Exact],
        &[Lpm],
        &[Lpm],
        &[Exact, Lpm],
        &[Lpm, Exact, Exact],
        &[Ternary],
        &[Exact, Ternary, Ternary],
        &[Optional, Lpm],
        &[Range],
        &[Exact, Range, Range],
        &[Ternary, Lpm, Range, Optional, Exact],
        &[Range, Range, Range],
    ]);
    let mut key = Vec::new();
    for &kind in kinds {
        let bits = draw.of(&[1, 3, 8, 13, 16, 32, 48, 64, 65, 128]);
        key.push(KeyField { bits, kind });
    }
    TableShape::new(key, draw.of(&[20, 60, 400]))
        .unwrap()
        .with_max_masks(100_000)
}

fn matcher(draw: &mut Draw, field: KeyField) -> Matcher {
    let drawn = value(draw, field.bits);
    let any = draw.below(6) == 0;
    match field.kind {
        MatchKind::Exact => Matcher::Exact(drawn),
        _ if any => Matcher::Any,
        MatchKind::Optional => Matcher::Exact(drawn),
        MatchKind::Lpm => {
            let bits = draw.below(usize::from(field.bits) + 1) as u16;
            let mask = (0..bits).fold(0, |mask, bit| mask | 1 << (field.bits - 1 - bit));
            Matcher::Prefix {
                value: drawn & mask,
                bits,
            }
        }
        MatchKind::Ternary => {
            let mask = value(draw, field.bits);
            Matcher::Ternary {
                value: drawn & mask,
                mask,
            }
        }
        MatchKind::Range => {
            let other = value(draw, field.bits);
            Matcher::Range {
                low: drawn.min(other),
                high: drawn.max(other),
            }
        }
    }
}

fn entry_key(draw: &mut Draw, shape: &TableShape) -> EntryKey {
    let matchers = shape.key().iter().map(|&field| matcher(draw, field));
    let matchers = matchers.collect();
    let priority = if shape.has_priority() {
        draw.of(&[1, 1, 2, 3, -7])
    } else {
        0
    };
    EntryKey { matchers, priority }
}

fn matches(matcher: Matcher, value: u128, bits: u16) -> bool {
    match matcher {
        Matcher::Exact(wanted) => value == wanted,
        Matcher::Prefix { bits: 0, .. } | Matcher::Any => true,
        Matcher::Prefix {
            value: wanted,
            bits: length,
        } => (value ^ wanted) >> (bits - length) == 0,
        Matcher::Ternary {
            value: wanted,
            mask,
        } => value & mask == wanted,
        Matcher::Range { low, high } => low <= value && value <= high,
    }
}

/// How many bits a matcher fixes; a range as many as the smallest power of two that holds it leaves.
fn specificity(matcher: Matcher, bits: u16) -> u32 {
    match matcher {
        Matcher::Exact(_) => bits.into(),
        Matcher::Prefix { bits, .. } => bits.into(),
        Matcher::Ternary { mask, .. } => mask.count_ones(),
        Matcher::Range { low, high } => {
            let mut open = 0;
            while open < bits && (high - low) >> open != 0 {
                open += 1;
            }
            u32::from(bits - open)
        }
        Matcher::Any => 0,
    }
}

#[derive(Clone)]
struct ModelEntry {
    key: EntryKey,
    value: u32,
    handle: EntryHandle,
}

type Content = Vec<ModelEntry>;

fn model_lookup<'a>(
    shape: &TableShape,
    content: &'a Content,
    values: &[u128],
) -> Option<&'a ModelEntry> {
    let matching = content.iter().filter(|entry| {
        let fields = entry.key.matchers.iter().zip(values).zip(shape.key());
        fields
            .into_iter()
            .all(|((&matcher, &value), field)| matches(matcher, value, field.bits))
    });
    matching.max_by_key(|entry| {
        let fields = entry.key.matchers.iter().zip(shape.key());
        let bits: u32 = fields
            .map(|(&matcher, field)| specificity(matcher, field.bits))
            .sum();
        (entry.key.priority, bits, entry.key.matchers.clone())
    })
}

/// A result that a cache remembers.
struct Remembered {
    values: Vec<u128>,
    on: Dependencies,
    result: Option<u32>,
}

struct Run {
    draw: Draw,
    shape: TableShape,
    table: Table<u32>,
    counters: Arc<ChangeCounters>,
    /// By epoch, those that can be looked at; the last is staged.
    contents: BTreeMap<u64, Content>,
    published: u64,
    remembered: Vec<Remembered>,
    next_value: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut draw = Draw(seed | 1);
        let shape = shape(&mut draw);
        let counters = Arc::new(ChangeCounters::new(100));
        let count = draw.of(&[1, 2, 64]);
        let range = CounterRange { first: 7, count };
        let table = Table::new(shape.clone(), Arc::clone(&counters), range, seed).unwrap();
        Self {
            draw,
            shape,
            table,
            counters,
            contents: BTreeMap::from([(0, Vec::new()), (1, Vec::new())]),
            published: 0,
            remembered: Vec::new(),
            next_value: 0,
        }
    }

    fn staged(&mut self) -> &mut Content {
        self.contents.entry(self.published + 1).or_default()
    }

    /// A key that is there, or a new one.
    fn some_key(&mut self) -> EntryKey {
        let keys: Vec<_> = self
            .staged()
            .iter()
            .map(|entry| entry.key.clone())
            .collect();
        if keys.is_empty() || self.draw.below(4) == 0 {
            return entry_key(&mut self.draw, &self.shape);
        }
        keys[self.draw.below(keys.len())].clone()
    }

    /// Field values near those of an entry.
    fn some_values(&mut self) -> Vec<u128> {
        let near = self.some_key();
        let fields = self.shape.key().iter().zip(near.matchers);
        let draw = &mut self.draw;
        let values = fields.map(|(field, matcher)| {
            let noise = value(draw, field.bits);
            match matcher {
                _ if draw.below(8) == 0 => noise,
                Matcher::Exact(value) => value,
                Matcher::Prefix { value, bits } if bits < field.bits => {
                    let low = ones(field.bits - bits);
                    let turned = draw.of(&[0, 0, 1u128]) << (field.bits - bits).min(127);
                    (value | noise & low) ^ turned & ones(field.bits)
                }
                Matcher::Prefix { value, .. } => value,
                Matcher::Ternary { value, mask } => value | noise & !mask,
                Matcher::Range { low, high } => draw.of(&[low, high, low + (high - low) / 2]),
                Matcher::Any => noise,
            }
        });
        values.collect()
    }

    fn insert(&mut self) {
        let key = self.some_key();
        let canonical = self.shape.normalize(&key).unwrap();
        let at = Epoch(self.published + 1);
        self.next_value += 1;
        let value = self.next_value;
        let there = self.staged().iter().any(|entry| entry.key == canonical);
        let full = self.staged().len() >= self.shape.max_entries();
        match self.table.stage_insert(&key, value, at) {
            Err(refused) if there => assert_eq!(refused, TableError::AlreadyExists),
            Err(TableError::Full { limit }) if full => assert_eq!(limit, self.shape.max_entries()),
            Err(TableError::TooManyVersions { .. }) => {}
            inserted => {
                let handle = inserted.unwrap();
                assert!(!there && !full);
                assert!(self.staged().iter().all(|entry| entry.handle != handle));
                self.staged().push(ModelEntry {
                    key: canonical,
                    value,
                    handle,
                });
            }
        }
    }

    fn replace(&mut self) {
        let key = self.some_key();
        let canonical = self.shape.normalize(&key).unwrap();
        let at = Epoch(self.published + 1);
        self.next_value += 1;
        let value = self.next_value;
        let replaced = self.table.stage_replace(&key, value, at);
        let mut entries = self.staged().iter_mut();
        match entries.find(|entry| entry.key == canonical) {
            None => assert_eq!(replaced, Err(TableError::NotFound)),
            Some(_) if matches!(replaced, Err(TableError::TooManyVersions { .. })) => {}
            Some(entry) => {
                assert_eq!(replaced, Ok(entry.handle));
                entry.value = value;
            }
        }
    }

    fn remove(&mut self) {
        let key = self.some_key();
        let canonical = self.shape.normalize(&key).unwrap();
        let at = Epoch(self.published + 1);
        let removed = self.table.stage_remove(&key, at);
        match self
            .staged()
            .iter()
            .position(|entry| entry.key == canonical)
        {
            None => assert_eq!(removed, Err(TableError::NotFound)),
            Some(place) => {
                let entry = self.staged().remove(place);
                assert_eq!(removed, Ok(entry.handle));
            }
        }
    }

    fn publish(&mut self) {
        self.published += 1;
        self.table.bump_staged(Epoch(self.published));
        let content = self.contents[&self.published].clone();
        self.contents.insert(self.published + 1, content);
        // Whatever a cache would still serve is still so.
        let remembered = std::mem::take(&mut self.remembered);
        for one in remembered {
            let (now, on) = self.result(&one.values, self.published);
            assert!(on.can_be_remembered());
            if one.on.is_current(&self.counters) {
                assert_eq!(now, one.result, "{:?} {:x?}", self.shape, one.values);
                self.remembered.push(one);
            }
        }
    }

    fn unstage(&mut self) {
        self.table.unstage(Epoch(self.published + 1));
        let content = self.contents[&self.published].clone();
        self.contents.insert(self.published + 1, content);
    }

    fn collect(&mut self) {
        let published = self.published;
        self.table.collect(Epoch(published));
        self.contents.retain(|&epoch, _| epoch >= published);
    }

    fn result(&self, values: &[u128], at: u64) -> (Option<u32>, Dependencies) {
        let mut on = Dependencies::new();
        let mut looked_at = vec![0; values.len()];
        let hit = self
            .table
            .lookup(values, Epoch(at), &mut looked_at, &mut on);
        (hit.map(|hit| *hit.value), on)
    }

    fn look_up(&mut self) {
        let values = self.some_values();
        let epochs: Vec<u64> = self.contents.keys().copied().collect();
        let at = epochs[self.draw.below(epochs.len())];
        let content = &self.contents[&at];
        let mut looked_at = vec![0; values.len()];
        let mut on = Dependencies::new();
        let hit = self
            .table
            .lookup(&values, Epoch(at), &mut looked_at, &mut on);
        let wanted = model_lookup(&self.shape, content, &values);
        assert_eq!(
            hit.as_ref().map(|hit| (hit.handle, *hit.value)),
            wanted.map(|entry| (entry.handle, entry.value)),
            "{:?} {values:x?} {:?}",
            self.shape,
            wanted.map(|entry| &entry.key)
        );
        for (looked_at, field) in looked_at.iter().zip(self.shape.key()) {
            assert_eq!(looked_at & !ones(field.bits), 0);
        }
        // Other values with the same bits where it looked.
        for _ in 0..4 {
            let others = self.some_values();
            let alike: Vec<_> = values
                .iter()
                .zip(&others)
                .zip(&looked_at)
                .map(|((value, other), mask)| value & mask | other & !mask)
                .collect();
            let (same, _) = self.result(&alike, at);
            assert_eq!(
                same,
                hit.as_ref().map(|hit| *hit.value),
                "{:?} {values:x?} {alike:x?} looked at {looked_at:x?}",
                self.shape
            );
        }
        if at == self.published {
            assert!(on.can_be_remembered());
            self.remembered.push(Remembered {
                values,
                on,
                result: hit.map(|hit| *hit.value),
            });
        }
    }

    fn compare_contents(&mut self) {
        for (&at, content) in &self.contents {
            let at = Epoch(at);
            assert_eq!(self.table.len(at), content.len());
            let page = 1 + self.draw.below(9);
            let mut after = None;
            let mut found = Vec::new();
            loop {
                let entries = self.table.scan(after, page, at);
                let is_last = entries.len() < page;
                after = entries.last().map(|entry| entry.handle);
                found.extend(entries);
                if is_last {
                    break;
                }
            }
            assert!(found.is_sorted_by(|one, other| one.handle < other.handle));
            assert_eq!(found.len(), content.len());
            for entry in content {
                let by_key = self.table.find(&entry.key, at).unwrap().unwrap();
                let by_handle = self.table.entry(entry.handle, at).unwrap();
                for seen in found
                    .iter()
                    .filter(|seen| seen.handle == entry.handle)
                    .chain([&by_key, &by_handle])
                {
                    assert_eq!(seen.key, entry.key);
                    assert_eq!(*seen.value, entry.value);
                    assert_eq!(seen.handle, entry.handle);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Lookups at any epoch, the bits looked at, the counters, listings: all as the model has them.
    #[test]
    fn a_table_is_what_its_model_is(seed in any::<u64>(), steps in 1usize..800) {
        let mut run = Run::new(seed);
        for _ in 0..steps {
            match run.draw.below(40) {
                0..=11 => run.insert(),
                12..=14 => run.replace(),
                15..=18 => run.remove(),
                19..=20 => run.publish(),
                21 if run.draw.below(2) == 0 => run.unstage(),
                22 => run.collect(),
                23 => run.compare_contents(),
                _ => run.look_up(),
            }
        }
        run.compare_contents();
    }
}
