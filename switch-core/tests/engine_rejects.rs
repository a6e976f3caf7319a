//! Frames that a program's parser rejects are decided from the cache as they are without it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::sync::Arc;

use switch_core::engine::model::Program;
use switch_core::engine::pipeline::EnginePipeline;
use switch_core::engine::runtime::{Engine, EngineConfig};
use switch_core::{Decide, DropReason, FrameInfo, Millis, PortId, Verdict};

/// A header of a version and a length in words; which of two reasons a frame is dropped for tells whether it has one.
const PROGRAM: &str = r#"{
    "name": "versions",
    "header_types": [{"name": "hop", "fields": [{"name": "version", "bits": 4}, {"name": "words", "bits": 4}, {"name": "next", "bits": 24}],
                      "length": {"field": "words", "unit_bytes": 4, "max_bytes": 60}}],
    "headers": [{"name": "hop", "type": "hop"}],
    "parser": {
        "states": [{"name": "hop", "extract": "hop", "verify": [{"eq": ["hop.version", 1]}]}],
        "extend": [{"state": "ethernet", "cases": [{"values": ["0x88b5"], "next": "hop"}]}]
    },
    "ingress": [{"if": {"if": {"valid": "hop"},
        "then": [{"do": [{"drop": {"reason": "denied_by_program"}}]}],
        "else": [{"do": [{"drop": {"reason": "no_destination"}}]}]}}]
}"#;

fn frame(version_and_words: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    frame.push(version_and_words);
    frame.resize(64, 0);
    frame
}

#[test]
fn a_refused_header_and_a_broken_one_are_not_taken_for_each_other() {
    let valid = Program::from_json(PROGRAM).unwrap_or_else(|errors| panic!("{errors}"));
    let engine = Arc::new(Engine::new(valid, EngineConfig::default()).unwrap());
    let good = (frame(0x11), DropReason::DeniedByProgram);
    // Of another version, and shorter than its fields.
    let refused = (frame(0x21), DropReason::DeniedByProgram);
    let broken = (frame(0x10), DropReason::NoDestination);
    for order in [
        [&good, &refused, &broken],
        [&broken, &refused, &good],
        [&refused, &broken, &good],
        [&broken, &good, &refused],
    ] {
        let mut pipeline = EnginePipeline::new(Arc::clone(&engine));
        for _ in 0..2 {
            for (bytes, reason) in order {
                pipeline.begin_batch(Millis(1));
                let info = FrameInfo {
                    header: bytes,
                    frame_bytes: bytes.len() as u32,
                    wire_bytes: bytes.len() as u32,
                    partial_checksum: None,
                };
                let verdict = pipeline.decide(PortId::new(1).unwrap(), &info);
                assert_eq!(verdict, Verdict::Drop(*reason), "{:#x}", bytes[14]);
            }
        }
    }
}
