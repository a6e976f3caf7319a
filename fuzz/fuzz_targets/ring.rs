//! Arbitrary bytes as a virtqueue.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringswitch::fuzzing::ring::run(data));
