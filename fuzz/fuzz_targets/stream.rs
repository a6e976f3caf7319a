//! Arbitrary bytes as what a stream port's peer sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringswitch::fuzzing::stream::run(data));
