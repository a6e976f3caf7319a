//! The operators' guide to the `vpc` program does what it says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod vpc;

use std::collections::{BTreeMap, HashSet};

use switch_core::DropReason;
use switch_core::engine::control::{TableEntry, Update};
use switch_core::engine::literal::Literal;
use switch_core::engine::model::{KeyMatch, Program};
use vpc::frames::{ACK, SYN, ip, seen, tcp, udp, way};
use vpc::{Lab, Names};

const GUIDE: &str = include_str!("../../docs/vpc.md");

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    GUIDE
        .split(fence.as_str())
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .collect()
}

/// `a=1,b=2`.
fn pairs<T>(text: &str, value: impl Fn(Literal) -> T) -> BTreeMap<String, T> {
    text.split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, text) = pair.split_once('=').unwrap();
            (name.to_owned(), value(Literal::parse(text)))
        })
        .collect()
}

/// A line `ringswitch table add TABLE 'KEY' [--priority N] --action ACTION ['PARAMS']`.
fn command(line: &str) -> Update {
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["ringswitch", "table", "add", table, key, options @ ..] = words.as_slice() else {
        panic!("{line}");
    };
    let (priority, rest) = match options {
        ["--priority", priority, rest @ ..] => (Some(priority.parse().unwrap()), rest),
        rest => (None, rest),
    };
    let ["--action", action, params @ ..] = rest else {
        panic!("{line}");
    };
    Update::Insert(TableEntry {
        table: (*table).to_owned(),
        key: pairs(key.trim_matches('\''), KeyMatch::Text),
        priority,
        action: (*action).to_owned(),
        params: pairs(
            params.first().unwrap_or(&"").trim_matches('\''),
            |literal| literal,
        ),
        idle_timeout_ms: 0,
        hard_timeout_ms: 0,
        tenant: None,
    })
}

/// The network of the guide, with every neighbour known.
fn worked() -> Lab {
    let lab = Lab::empty();
    for block in blocks("sh") {
        let updates: Vec<Update> = block.lines().map(command).collect();
        lab.engine.write(&updates, &Names, lab.now).unwrap();
    }
    for block in blocks("json") {
        let batch: serde_json::Value = serde_json::from_str(block).unwrap();
        lab.write(&batch["updates"].to_string());
    }
    for (interface, address, mac, port) in [
        (1, "10.0.0.1", "01", "vm1"),
        (1, "10.0.0.2", "02", "vm2"),
        (2, "10.0.1.3", "03", "vm3"),
        (3, "10.0.0.1", "04", "vm4"),
        (9, "198.51.100.254", "09", "uplink"),
    ] {
        lab.insert(
            "neighbors",
            &format!(r#""interface": {interface}, "address": "{address}""#),
            "neighbor",
            &format!(r#""mac": "02:00:00:00:00:{mac}", "port": "{port}""#),
        );
    }
    lab
}

#[test]
fn every_table_and_action_is_in_the_guide() {
    let json = switch_core::programs::builtin("vpc").unwrap();
    let valid = Program::from_json(json).unwrap();
    let program = valid.source();
    let told: HashSet<&str> = GUIDE.split('`').collect();
    let defaults: HashSet<&str> = program
        .tables
        .iter()
        .filter_map(|table| Some(table.default_action.as_ref()?.action.as_str()))
        .collect();
    for table in &program.tables {
        assert!(told.contains(table.name.as_str()), "table {}", table.name);
        for action in &table.actions {
            assert!(told.contains(action.as_str()), "action {action}");
            let declared = program
                .actions
                .iter()
                .find(|declared| declared.name == *action);
            assert!(!declared.unwrap().description.is_empty(), "{action}");
        }
    }
    let used: HashSet<&str> = program
        .tables
        .iter()
        .flat_map(|table| table.actions.iter().map(String::as_str))
        .collect();
    for action in &program.actions {
        let name = action.name.as_str();
        assert!(
            used.contains(name) || defaults.contains(name),
            "{name} is of no use"
        );
    }
}

#[test]
fn the_front_is_open_to_the_world_and_the_back_to_the_front() {
    let mut lab = worked();
    let world = way((9, 0xf9), "192.0.2.1", "198.51.100.20");
    let (port, came) = lab.passes(9, &tcp(world, (5000, 443), SYN, (1, 0), &[]));
    assert_eq!((port, seen(&came).to), (1, ip("10.0.0.1")));
    lab.drops(
        9,
        &tcp(world, (5000, 22), SYN, (1, 0), &[]),
        DropReason::AclDenied,
    );
    let to_back = way((1, 2), "10.0.0.1", "10.0.0.2");
    assert_eq!(
        lab.passes(1, &tcp(to_back, (6000, 8080), SYN, (1, 0), &[]))
            .0,
        2
    );
    lab.drops(
        1,
        &tcp(to_back, (6000, 22), SYN, (1, 0), &[]),
        DropReason::AclDenied,
    );
    // The back asks nobody of the back, and nobody outside.
    let aside = way((2, 0xf1), "10.0.0.2", "10.0.1.3");
    lab.drops(
        2,
        &tcp(aside, (6000, 8080), SYN, (1, 0), &[]),
        DropReason::AclDenied,
    );
    let outside = way((2, 0xf1), "10.0.0.2", "192.0.2.1");
    lab.drops(
        2,
        &tcp(outside, (6000, 80), SYN, (1, 0), &[]),
        DropReason::AclDenied,
    );
}

#[test]
fn the_front_leaves_by_its_own_address_and_blue_by_a_shared_one() {
    let mut lab = worked();
    let (port, left) = lab.passes(1, &udp(way((1, 0xf1), "10.0.0.1", "192.0.2.1"), 1000, 53));
    assert_eq!((port, seen(&left).from), (9, ip("198.51.100.20")));
    let (port, left) = lab.passes(4, &udp(way((4, 0xf3), "10.0.0.1", "192.0.2.1"), 1000, 53));
    let left = seen(&left);
    assert_eq!(port, 9);
    assert!([ip("198.51.100.11"), ip("198.51.100.12")].contains(&left.from));
    let back = udp(
        way((9, 0xf9), "192.0.2.1", &left.from.to_string()),
        53,
        left.ports.0,
    );
    assert_eq!(lab.passes(9, &back).0, 4);
}

#[test]
fn the_service_reaches_both_of_its_back_ends() {
    let mut lab = worked();
    let service = way((1, 0xf1), "10.0.0.1", "10.0.9.9");
    let mut reached = HashSet::new();
    for own in 7000..7050 {
        let (port, came) = lab.passes(1, &tcp(service, (own, 80), SYN, (1, 0), &[]));
        let came = seen(&came);
        assert_eq!(came.ports.1, 8080);
        reached.insert(port);
        // A back-end in the client's own network answers by the router.
        let client = if port == 2 { "10.0.0.254" } else { "10.0.0.1" };
        assert_eq!(came.from, ip(client));
        let (router, own_address) = if port == 2 {
            (0xf1, "10.0.0.2")
        } else {
            (0xf2, "10.0.1.3")
        };
        let back = way((port as u8, router), own_address, client);
        let ports = (8080, came.ports.0);
        let (to, answer) = lab.passes(port, &tcp(back, ports, SYN | ACK, (9, 2), &[]));
        let answer = seen(&answer);
        assert_eq!(
            (to, answer.from, answer.ports),
            (1, ip("10.0.9.9"), (80, own))
        );
        assert_eq!(answer.dscp, if port == 2 { 26 } else { 0 });
    }
    assert_eq!(reached, HashSet::from([2, 3]));
}
