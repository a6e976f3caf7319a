//! The JSON Schema, against what is valid and what is not.

use serde_json::{Value, json};
use switch_core::engine::model::Program;
use switch_core::engine::schema::json_schema;

use super::schema_reader::faults;
use super::{EVERYTHING, json as parsed, programs};

#[test]
fn every_program_fits_the_schema_also_as_it_is_written_out() {
    let schema = json_schema().unwrap();
    for (name, text) in programs() {
        assert_eq!(
            faults(&schema, &parsed(text)),
            Vec::<String>::new(),
            "{name}"
        );
        let valid = Program::from_json(text).unwrap();
        for program in [valid.source(), valid.program()] {
            let written = serde_json::to_value(program).unwrap();
            assert_eq!(faults(&schema, &written), Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn what_is_misspelt_or_of_the_wrong_kind_does_not_fit() {
    let schema = json_schema().unwrap();
    let damages: [(&str, Value); 16] = [
        ("/name", json!(3)),
        ("/name", json!("a b")),
        ("/ingress", json!({})),
        ("/tables/0/size", json!(0)),
        ("/tables/0/size", json!("many")),
        ("/tables/0/key/0/match", json!("prefix")),
        ("/tables/0/key/0/field", json!("port")),
        ("/actions/0/do/0", json!({"assign": {}})),
        ("/actions/0/do/0", json!({"set": {"field": "meta.a"}})),
        (
            "/actions/0/do/0",
            json!({"set": {"field": "meta.a", "to": 1, "by": 2}}),
        ),
        (
            "/actions/0/do/0",
            json!({"set": {"field": "meta.a", "to": -1}}),
        ),
        ("/ingress/0", json!("leave")),
        ("/ingress/0", json!({"apply": {"table": "exact"}, "do": []})),
        ("/ingress/3/if/if", json!({"eq": [1]})),
        ("/ingress/3/if/if", json!({"all": []})),
        ("/metadata/0/bits", json!(129)),
    ];
    for (place, value) in damages {
        let mut program = parsed(EVERYTHING);
        *program.pointer_mut(place).unwrap() = value.clone();
        assert!(!faults(&schema, &program).is_empty(), "{place} {value}");
        let text = program.to_string();
        assert!(Program::from_json(&text).is_err(), "{place} {value}");
    }
}
