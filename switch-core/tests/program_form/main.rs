//! The form of programs: what is accepted, what is refused and where, and what is printed of it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod broken;
mod p4info;
mod round_trip;
mod schema;
mod schema_reader;

use serde_json::Value;

/// A program that uses every construct.
const EVERYTHING: &str = include_str!("everything.json");

/// What is shipped, by name.
const SHIPPED: [(&str, &str); 2] = [
    ("tunnel", include_str!("../../programs/tunnel.json")),
    ("acl", include_str!("../../programs/acl.json")),
];

fn programs() -> impl Iterator<Item = (&'static str, &'static str)> {
    SHIPPED.into_iter().chain([("everything", EVERYTHING)])
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}
