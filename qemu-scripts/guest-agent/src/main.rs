//! The test guest's init process.
fn main() {}
