//! Every input that a fuzzer ever found worth keeping runs in the ordinary tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::path::Path;

fn replay(target: &str, body: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&corpus).unwrap() {
        body(&std::fs::read(entry.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", corpus.display());
}

#[test]
fn the_ring_corpus_passes() {
    replay("ring", ringswitch::fuzzing::ring::run);
}

#[test]
fn the_session_corpus_passes() {
    replay("session", ringswitch::fuzzing::session::run);
}

#[test]
fn the_stream_corpus_passes() {
    replay("stream", ringswitch::fuzzing::stream::run);
}
