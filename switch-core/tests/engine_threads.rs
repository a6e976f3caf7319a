//! A writer changes tables at full speed while pipelines on other threads decide: nobody sees half a batch, and nothing that was
//! acknowledged is served as it was before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use switch_core::engine::control::{PortNames, Update};
use switch_core::engine::model::Program;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{Decide, FrameInfo, Millis, PortId, Target, Verdict};

/// The first table gives a number, the second and a default give ports, a group gives one more: all of one batch or none.
const PROGRAM: &str = r#"{
    "name": "pair",
    "metadata": [{"name": "first", "bits": 16}, {"name": "second", "bits": 16}],
    "selectors": [{"name": "pool", "member": [{"name": "number", "bits": 16}], "max_groups": 4, "max_members": 4}],
    "actions": [
        {"name": "first", "params": [{"name": "number", "bits": 16}], "do": [{"set": {"field": "meta.first", "to": "$number"}}]},
        {"name": "second", "params": [{"name": "number", "bits": 16}], "do": [{"set": {"field": "meta.second", "to": "$number"}}]}],
    "tables": [
        {"name": "one", "key": [{"field": "ethernet.dst", "match": "exact"}], "actions": ["first"], "size": 64},
        {"name": "other", "key": [{"field": "ethernet.src", "match": "ternary"}], "actions": ["second"], "size": 64},
        {"name": "last", "key": [{"field": "ethernet.src", "match": "lpm"}], "actions": ["second"], "size": 64}],
    "ingress": [
        {"apply": {"table": "one"}}, {"do": [{"output": {"port": "meta.first"}}]},
        {"apply": {"table": "other"}}, {"do": [{"mirror": {"port": "meta.second"}}]},
        {"apply": {"table": "last"}}, {"do": [{"mirror": {"port": "meta.second"}}]},
        {"do": [{"select": {"selector": "pool", "group": 1, "hash": ["ethernet.dst"], "into": ["meta.second"]}}, {"mirror": {"port": "meta.second"}}]}]
}"#;

struct Numbers;

impl PortNames for Numbers {
    fn id(&self, _: &str) -> Option<PortId> {
        None
    }

    fn name(&self, _: PortId) -> Option<String> {
        None
    }
}

fn batch(number: u64) -> Vec<Update> {
    serde_json::from_str(&format!(
        r#"[{{"put": {{"table": "one", "key": {{"ethernet.dst": 1}}, "action": "first", "params": {{"number": {number}}}}}}},
            {{"put": {{"table": "other", "key": {{"ethernet.src": "0x2&0xff"}}, "priority": 1, "action": "second", "params": {{"number": {number}}}}}}},
            {{"set_default": {{"table": "last", "default": {{"action": "second", "params": {{"number": {number}}}}}}}}},
            {{"set_group": {{"selector": "pool", "group": 1, "members": [{{"values": {{"number": {number}}}}}]}}}}]"#
    ))
    .unwrap()
}

/// The number that all copies of a frame agree in.
fn number_of(pipeline: &mut EnginePipeline) -> u64 {
    let mut frame = [0u8; 60];
    frame[5] = 1;
    frame[11] = 2;
    pipeline.begin_batch(Millis(1));
    let info = FrameInfo {
        header: &frame,
        frame_bytes: 60,
        wire_bytes: 60,
        partial_checksum: None,
    };
    let verdict = pipeline.decide(PortId::new(9).unwrap(), &info);
    let Verdict::Copies(copies) = verdict else {
        panic!("{verdict:?}");
    };
    let ports: Vec<u16> = pipeline
        .outcomes()
        .copies(copies)
        .iter()
        .map(|copy| match copy.target {
            Target::Port(port) => port.get(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ports.len(), 4);
    assert!(
        ports.iter().all(|port| *port == ports[0]),
        "half a batch: {ports:?}"
    );
    ports[0].into()
}

#[test]
fn no_frame_sees_half_a_batch_and_none_what_was_before_an_acknowledgement() {
    const BATCHES: u64 = 1_000;
    let valid = Program::from_json(PROGRAM).unwrap_or_else(|errors| panic!("{errors}"));
    let engine = Arc::new(Engine::new(valid, EngineConfig::default()).unwrap());
    engine.write(&batch(1), &Numbers, Millis(1)).unwrap();
    let acknowledged = AtomicU64::new(1);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut pipeline = EnginePipeline::new(Arc::clone(&engine));
                    let (mut last, mut frames) = (0, 0u64);
                    while !is_over.load(Ordering::Relaxed) {
                        let before = acknowledged.load(Ordering::Acquire);
                        let number = number_of(&mut pipeline);
                        frames += 1;
                        assert!(number >= before, "{number} after {before} was acknowledged");
                        assert!(number >= last, "{number} after {last}");
                        last = number;
                    }
                    assert_eq!(number_of(&mut pipeline), BATCHES);
                    (frames, frames - pipeline.stats().misses.min(frames))
                })
            })
            .collect();
        for number in 2..=BATCHES {
            engine.write(&batch(number), &Numbers, Millis(1)).unwrap();
            acknowledged.store(number, Ordering::Release);
            if number % 64 == 0 {
                // So that verdicts are remembered and served in between.
                for _ in 0..4 {
                    std::thread::yield_now();
                }
            }
        }
        is_over.store(true, Ordering::Relaxed);
        let totals = workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        assert!(totals.1 > 0, "nothing was served from memory: {totals:?}");
    });
}
