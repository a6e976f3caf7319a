//! Any bytes as a frame: parsed, switched, edited, cut. `cargo fuzz run parser`, on a stable toolchain with
//! `RUSTC_BOOTSTRAP=1`. What it found is kept in `corpus/parser`, which an ordinary test of `switch-core` replays.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../switch-core/tests/parser_corpus/body.rs"]
mod body;

fuzz_target!(|input: &[u8]| body::run(input));
