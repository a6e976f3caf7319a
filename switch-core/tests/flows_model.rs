//! The flow cache against a plain list: what it answers was inserted, is still there and matches, and whatever is there is found.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use proptest::prelude::*;
use switch_core::engine::cache::{
    CacheConfig, FlowCache, FlowKey, NotInserted, Refusal, RememberedUnder,
};
use switch_core::{Millis, RateLimit};

#[derive(Clone, Debug)]
enum Step {
    Lookup(Frame),
    Insert(Frame, Vec<u64>),
    /// Removes what the lookup of a frame finds.
    Remove(Frame),
    /// Removes all whose value leaves this remainder by seven.
    Sweep(usize, u64),
    Clear,
    Advance(u64),
}

#[derive(Clone, Debug)]
struct Frame {
    path: u16,
    words: Vec<u64>,
}

impl Frame {
    fn key(&self) -> FlowKey {
        FlowKey::new(self.path, &self.words)
    }
}

/// A flow that should be in the cache.
#[derive(Debug)]
struct Known {
    frame: Frame,
    mask: Vec<u64>,
    value: u64,
}

impl Known {
    fn is(&self, frame: &Frame) -> bool {
        let words = frame.words.iter().zip(&self.frame.words).zip(&self.mask);
        self.frame.path == frame.path
            && self.frame.words.len() == frame.words.len()
            && words
                .into_iter()
                .all(|((one, other), mask)| one & mask == other & mask)
    }
}

/// Few different words, so that flows meet; of any length, also of those that no flow can have.
fn frame() -> impl Strategy<Value = Frame> {
    let lengths = prop_oneof![
        8 => 1..=3_usize,
        2 => 7..=9_usize,
        1 => 22..=26_usize,
        1 => Just(0_usize),
    ];
    let word = prop_oneof![0..4_u64, Just(1 << 40), Just(0x10001_u64), any::<u64>()];
    let words =
        lengths.prop_flat_map(move |length| prop::collection::vec(word.clone(), length..=length));
    (0..3_u16, words).prop_map(|(path, words)| Frame { path, words })
}

fn mask(length: usize) -> impl Strategy<Value = Vec<u64>> {
    let word = prop_oneof![
        Just(0_u64),
        Just(u64::MAX),
        Just(1_u64),
        Just(2_u64),
        Just(0xffff_0000)
    ];
    let length = prop_oneof![30 => Just(length), 1 => 0..30_usize];
    length.prop_flat_map(move |length| prop::collection::vec(word.clone(), length..=length))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => frame().prop_map(Step::Lookup),
        6 => frame().prop_flat_map(|frame| {
            let length = frame.words.len();
            (Just(frame), mask(length)).prop_map(|(frame, mask)| Step::Insert(frame, mask))
        }),
        1 => frame().prop_map(Step::Remove),
        1 => (0..400_usize, 0..7_u64).prop_map(|(budget, rest)| Step::Sweep(budget, rest)),
        1 => (0..500_u64).prop_map(Step::Advance),
        1 => (0..20_u8).prop_map(|dice| match dice {
            0 => Step::Clear,
            _ => Step::Advance(1),
        }),
    ]
}

fn config() -> impl Strategy<Value = CacheConfig> {
    (0..40_usize, 0..6_usize, 0..30_u32).prop_map(|(max_flows, masks, rate)| CacheConfig {
        max_flows,
        max_exact: 0,
        max_masks_per_port: masks,
        insert_rate: RateLimit {
            per_second: rate * 10,
            burst: rate,
        },
    })
}

struct Model {
    cache: FlowCache<u64>,
    config: CacheConfig,
    known: Vec<Known>,
    now: Millis,
    next_value: u64,
}

impl Model {
    fn check(&mut self, frame: &Frame) {
        let found = self.cache.lookup(&frame.key());
        match found {
            Some(flow) => {
                let value = self.cache.entry(flow).unwrap().value;
                let known = self.known.iter().find(|known| known.value == value);
                assert!(known.unwrap().is(frame), "another flow's verdict");
            }
            None => assert!(!self.known.iter().any(|known| known.is(frame)), "not found"),
        }
    }

    fn forget(&mut self, value: u64) {
        let before = self.known.len();
        self.known.retain(|known| known.value != value);
        assert_eq!(self.known.len() + 1, before, "a flow that was not there");
    }

    fn insert(&mut self, frame: &Frame, mask: &[u64]) {
        let value = self.next_value;
        self.next_value += 1;
        let words = frame.words.len();
        let is_bad = words == 0 || words > 24 || mask.len() != words;
        match self.cache.insert(&frame.key(), mask, value, value) {
            Ok(inserted) => {
                assert!(!is_bad);
                if let Some(gone) = inserted.pushed_out {
                    self.forget(gone.value);
                }
                let mut mask = match inserted.under {
                    RememberedUnder::Mask => mask.to_vec(),
                    RememberedUnder::ExactKey => vec![u64::MAX; words],
                };
                mask[0] |= 0xffff;
                let flow = self.cache.entry(inserted.flow).unwrap();
                assert_eq!((flow.value, flow.stamp), (value, value));
                let frame = frame.clone();
                self.known.push(Known { frame, mask, value });
            }
            Err(NotInserted { value: back, why }) => {
                assert_eq!(back, value);
                assert_eq!(is_bad, why == Refusal::BadKey);
                let full = self.known.len() >= self.config.max_flows.max(1);
                assert!(is_bad || full && why == Refusal::OverRate);
            }
        }
        assert!(self.known.len() <= self.config.max_flows.max(1));
    }

    fn play(&mut self, step: &Step) {
        match step {
            Step::Lookup(frame) => self.check(frame),
            Step::Insert(frame, mask) => {
                self.insert(frame, mask);
                self.check(frame);
            }
            Step::Remove(frame) => {
                if let Some(flow) = self.cache.lookup(&frame.key()) {
                    let gone = self.cache.remove(flow).unwrap();
                    self.forget(gone.value);
                    assert_eq!(self.cache.remove(flow), None);
                    assert_eq!(self.cache.entry(flow), None);
                }
                self.check(frame);
            }
            Step::Sweep(budget, rest) => {
                let mut gone = Vec::new();
                let swept = self.cache.sweep(*budget, |flow| {
                    let goes = flow.value % 7 == *rest;
                    gone.extend(goes.then_some(flow.value));
                    !goes
                });
                assert_eq!(swept.removed, gone.len());
                gone.into_iter().for_each(|value| self.forget(value));
            }
            Step::Clear => {
                self.cache.clear();
                self.known.clear();
            }
            Step::Advance(ms) => {
                self.now = self.now.after(Millis(*ms));
                self.cache.set_time(self.now);
            }
        }
        assert_eq!(self.cache.stats().flows, self.known.len());
        for port in 0..4 {
            let flows = self
                .known
                .iter()
                .filter(|known| known.frame.words[0] as u16 == port);
            assert_eq!(self.cache.flows_of_port(port), flows.count());
            assert!(self.cache.masks_of_port(port) <= self.config.max_masks_per_port);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn it_answers_as_a_list_of_its_flows_would(
        config in config(),
        steps in prop::collection::vec(step(), 1..300),
        seed: u64,
    ) {
        let mut model = Model {
            cache: FlowCache::new(config, seed),
            config,
            known: Vec::new(),
            now: Millis(0),
            next_value: 0,
        };
        for step in &steps {
            model.play(step);
        }
        let frames: Vec<_> = model.known.iter().map(|known| known.frame.clone()).collect();
        for frame in &frames {
            model.check(frame);
        }
    }
}
