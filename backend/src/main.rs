//! The Ringswitch daemon and its command line.
fn main() {}
