//! Arbitrary bytes and descriptors as a vhost-user connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringswitch::fuzzing::session::run(data));
