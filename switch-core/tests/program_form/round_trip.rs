//! Programs as JSON and back, and what becomes of damaged ones.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use switch_core::engine::model::Program;
use switch_core::engine::validate::validate;

use super::{EVERYTHING, programs};

#[test]
fn every_program_is_valid() {
    for (name, text) in programs() {
        if let Err(errors) = Program::from_json(text) {
            panic!("{name}:\n{errors}");
        }
    }
}

#[test]
fn a_program_comes_back_from_json_as_it_was() {
    for (name, text) in programs() {
        let program: Program = serde_json::from_str(text).unwrap();
        let written = serde_json::to_string(&program).unwrap();
        assert_eq!(
            serde_json::from_str::<Program>(&written).unwrap(),
            program,
            "{name}"
        );
    }
}

#[test]
fn the_program_of_everything_has_every_construct() {
    let primitives = [
        "set",
        "add",
        "subtract",
        "push_vlan",
        "pop_vlan",
        "push_mpls",
        "pop_mpls",
        "output",
        "multicast",
        "mirror",
        "resubmit",
        "recirculate",
        "drop",
        "controller",
        "meter",
        "count",
        "track",
        "commit",
        "nat",
        "learn",
        "select",
        "encapsulate",
        "decapsulate",
    ];
    let conditions = [
        "valid", "eq", "ne", "lt", "le", "gt", "ge", "masked", "all", "any", "not",
    ];
    let statements = ["apply", "if", "do", "find"];
    for word in primitives.iter().chain(&conditions).chain(&statements) {
        assert!(EVERYTHING.contains(&format!("\"{word}\":")), "{word}");
    }
}

#[test]
fn a_merged_program_is_valid_and_merges_to_itself() {
    for (name, text) in programs() {
        let valid = Program::from_json(text).unwrap();
        // The built-in headers count as the program's own then; they are within the limits too.
        let again = validate(valid.program()).unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
        assert_eq!(again.program(), valid.program());
        assert_eq!(again.ids(), valid.ids());
    }
}

#[test]
fn json_nested_without_end_is_an_error() {
    for deep in [
        format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!(
            r#"{{"name": "x", "ingress": [{{"if": {{"if": {}{{"valid": "tcp"}}{}}}}}]}}"#,
            r#"{"not": "#.repeat(50_000),
            "}".repeat(50_000)
        ),
    ] {
        let errors = Program::from_json(&deep).unwrap_err();
        assert_eq!(errors.0.len(), 1);
        assert!(errors.0[0].place.starts_with("line 1 column"), "{errors}");
    }
}

/// Every place in a JSON value, as the steps that lead to it.
fn places(value: &Value, here: &str, found: &mut Vec<String>) {
    found.push(here.to_owned());
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                places(item, &format!("{here}/{index}"), found);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                places(field, &format!("{here}/{name}"), found);
            }
        }
        _ => {}
    }
}

#[derive(Clone, Debug)]
enum Damage {
    Replace(Index, Value),
    /// The value at one place is put at another.
    Exchange(Index, Index),
    Remove(Index),
    Repeat(Index, usize),
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_u64..300).prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        "[a-z_.$0-9:/&]{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "std.out_port",
            "std.frame_bytes",
            "ct.new",
            "meta.a",
            "ipv4.dst",
            "own",
            "accept",
            "start",
            "$x",
            "0..5",
            "5..0",
            "1/200",
            "::/0",
            "é",
            "ethernet",
            "exact",
            "hop.valid",
            "🦀",
        ])
        .prop_map(Value::from),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<Index>(), any_value()).prop_map(|(at, value)| Damage::Replace(at, value)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Exchange(from, to)),
        any::<Index>().prop_map(Damage::Remove),
        (any::<Index>(), 0_usize..40).prop_map(|(at, times)| Damage::Repeat(at, times)),
    ]
}

fn apply(program: &mut Value, damage: Damage) {
    let mut all = Vec::new();
    places(program, "", &mut all);
    match damage {
        Damage::Replace(at, value) => {
            if let Some(target) = program.pointer_mut(at.get::<String>(&all)) {
                *target = value;
            }
        }
        Damage::Exchange(from, to) => {
            let copy = program.pointer(from.get::<String>(&all)).cloned();
            if let (Some(copy), Some(target)) = (copy, program.pointer_mut(to.get::<String>(&all)))
            {
                *target = copy;
            }
        }
        Damage::Remove(at) => {
            let place = at.get(&all);
            let Some((parent, last)) = place.rsplit_once('/') else {
                return;
            };
            match program.pointer_mut(parent) {
                Some(Value::Object(fields)) => {
                    fields.remove(last);
                }
                Some(Value::Array(items)) => {
                    items.remove(last.parse().unwrap());
                }
                _ => {}
            }
        }
        Damage::Repeat(at, times) => {
            let place = at.get(&all);
            if let Some(Value::Array(items)) = program.pointer_mut(place.as_str())
                && let Some(first) = items.first().cloned()
            {
                items.extend(std::iter::repeat_n(first, times));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// What is damaged is valid still, or refused with a place and a remedy; and what is valid comes back from JSON.
    #[test]
    fn a_damaged_program_is_valid_or_refused(
        which in any::<Index>(),
        damages in prop::collection::vec(damage(), 1..4),
    ) {
        let all: Vec<_> = programs().collect();
        let mut program = super::json(which.get(&all).1);
        for damage in damages {
            apply(&mut program, damage);
        }
        match Program::from_json(&program.to_string()) {
            Ok(valid) => {
                let written = serde_json::to_string(valid.source()).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Program>(&written).unwrap(), valid.source());
                prop_assert!(!switch_core::engine::p4info::p4info(&valid).is_empty());
            }
            Err(errors) => {
                prop_assert!(!errors.0.is_empty());
                prop_assert_eq!(errors.to_string().lines().count(), errors.0.len(), "{}", errors);
                for error in &errors.0 {
                    prop_assert!(!error.place.is_empty() && !error.reason.is_empty() && !error.remedy.is_empty());
                }
            }
        }
    }

    /// Bytes that are no program at all.
    #[test]
    fn any_text_is_valid_or_refused(text in "\\PC{0,200}") {
        let _ = Program::from_json(&text);
    }
}
