//! One truth: a cached verdict, an evaluation, an explanation, and a plain interpreter that shares no code with them agree on every
//! frame, for random programs, entries and frames, while entries change.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod bytes;
mod choices;
mod frames;
mod oracle;
mod programs;
mod stateful;
mod world;

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use choices::Choices;
use world::{Totals, World};

/// Cases: as many as the environment asks for.
fn cases() -> u32 {
    std::env::var("ENGINE_ORACLE_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(2000)
}

fn case(numbers: &[u32]) -> Totals {
    let mut choices = Choices::new(numbers);
    let made = programs::program(&mut choices);
    let mut world = World::new(made);
    let mut pool: Vec<frames::Made> = (0..8).map(|_| frames::frame(&mut choices)).collect();
    for _ in 0..4 {
        for _ in 0..1 + choices.below(3) {
            world.change(&mut choices, &pool);
        }
        for _ in 0..10 {
            let port = 1 + choices.below(3) as u16;
            let at = choices.below(pool.len());
            let frame = if choices.chance(30) {
                frames::mutated(&mut choices, &pool[at])
            } else {
                pool[at].clone()
            };
            let whole = frame.bytes.len() as u32;
            let wire = if choices.chance(10) {
                whole.min(60)
            } else {
                whole
            };
            world.send(port, &frame, wire);
            if pool.len() < 12 && choices.chance(20) {
                pool.push(frame);
            }
        }
    }
    world.check_counts();
    world.totals
}

#[test]
fn cache_evaluation_explanation_and_oracle_agree() {
    let config = Config {
        cases: cases(),
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..Config::default()
    };
    let totals = Cell::new(Totals::default());
    let numbers = prop::collection::vec(any::<u32>(), 200..4000);
    let result = TestRunner::new(config).run(&numbers, |numbers| {
        let one = case(&numbers);
        let all = totals.get();
        totals.set(Totals {
            frames: all.frames + one.frames,
            hits: all.hits + one.hits,
            masked_hits: all.masked_hits + one.masked_hits,
            copies: all.copies + one.copies,
            edited: all.edited + one.edited,
            drops: all.drops + one.drops,
            batches: all.batches + one.batches,
            refused: all.refused + one.refused,
            unfinished: all.unfinished + one.unfinished,
        });
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // What was compared was worth it.
    let totals = totals.get();
    println!("{totals:?}");
    assert!(
        totals.hits * 5 > totals.frames,
        "hardly any hits: {totals:?}"
    );
    assert!(
        totals.masked_hits * 100 > totals.frames,
        "masks are all exact: {totals:?}"
    );
    assert!(totals.edited * 10 > totals.copies, "{totals:?}");
    assert!(totals.unfinished > 0 && totals.refused > 0 && totals.drops > 0);
}

/// Plays one case again: the numbers that a failure above has told, separated by commas, in a file.
#[test]
fn a_case_that_was_told_is_played_again() {
    let Ok(path) = std::env::var("ENGINE_ORACLE_REPLAY") else {
        return;
    };
    let text = std::fs::read_to_string(path).expect("a file");
    let numbers: Vec<u32> = text
        .split(',')
        .map(|number| number.trim().parse().expect("a number"))
        .collect();
    case(&numbers);
}
