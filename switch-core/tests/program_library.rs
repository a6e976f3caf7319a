//! The built-in headers and parser states, and how a program's own are put over them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use switch_core::engine::library::{self, merge};
use switch_core::engine::literal::Literal;
use switch_core::engine::model::{CaseValue, ParserCase, Program};

fn program(json: &str) -> Program {
    serde_json::from_str(json).unwrap()
}

#[test]
fn an_empty_program_is_valid_and_has_everything_built_in() {
    let valid = Program::from_json(r#"{"name": "empty", "ingress": []}"#).unwrap();
    let merged = valid.program();
    assert_eq!(merged.header_types, library::header_types());
    assert_eq!(merged.headers, library::headers());
    assert_eq!(merged.parser.states, library::parser_states());
    for (field, bits) in [
        ("ethernet.dst", 48),
        ("vlan_inner.vid", 12),
        ("inner_ipv6.src", 128),
        ("outer_udp.valid", 1),
        ("std.in_port", 16),
        ("ct.data3", 32),
    ] {
        assert_eq!(valid.field(field).unwrap().bits, bits, "{field}");
    }
}

#[test]
fn merging_again_changes_nothing() {
    let once = merge(&program(
        r#"{"name": "x", "ingress": [], "parser": {"extend": [{"state": "udp", "cases": [{"values": [4789], "next": "vxlan"}]}]}}"#,
    ));
    assert_eq!(merge(&once), once);
}

#[test]
fn what_a_program_declares_replaces_what_is_built_in() {
    let merged = merge(&program(
        r#"{"name": "x", "ingress": [],
            "header_types": [{"name": "gre", "fields": [{"name": "word", "bits": 32}]}, {"name": "own", "fields": [{"name": "a", "bits": 8}]}],
            "headers": [{"name": "vlan", "type": "own"}],
            "parser": {"states": [{"name": "udp", "extract": "udp"}]}}"#,
    ));
    let types: Vec<_> = merged
        .header_types
        .iter()
        .filter(|found| found.name == "gre")
        .collect();
    assert_eq!(types.len(), 1);
    assert_eq!(types[0].fields[0].name, "word");
    assert_eq!(merged.header_types[1].name, "own");
    assert_eq!(merged.headers[0].header_type, "own");
    assert_eq!(
        merged
            .headers
            .iter()
            .filter(|found| found.name == "vlan")
            .count(),
        1
    );
    let udp: Vec<_> = merged
        .parser
        .states
        .iter()
        .filter(|found| found.name == "udp")
        .collect();
    assert_eq!(udp.len(), 1);
    assert!(udp[0].select.is_empty());
}

#[test]
fn extensions_come_before_the_cases_of_their_state_in_order() {
    let merged = merge(&program(
        r#"{"name": "x", "ingress": [], "parser": {"extend": [
            {"state": "ethernet", "cases": [{"values": [1], "next": "accept"}, {"values": [2], "next": "accept"}]},
            {"state": "udp", "cases": [{"values": [4789], "next": "vxlan"}]},
            {"state": "ethernet", "cases": [{"values": [3], "next": "accept"}]}]}}"#,
    ));
    assert!(merged.parser.extend.is_empty());
    let ethernet = merged
        .parser
        .states
        .iter()
        .find(|found| found.name == "ethernet")
        .unwrap();
    let built_in = library::parser_states();
    let built_in = built_in
        .iter()
        .find(|found| found.name == "ethernet")
        .unwrap();
    let own = [1, 2, 3].map(|number| ParserCase {
        values: vec![CaseValue::Exact(Literal::Number(number))],
        next: "accept".to_owned(),
    });
    assert_eq!(ethernet.cases[..3], own);
    assert_eq!(ethernet.cases[3..], built_in.cases);
}
