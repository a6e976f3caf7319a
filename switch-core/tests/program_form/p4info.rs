//! P4Info, read by a reader of protobuf's text form that knows nothing of the writer.

use std::collections::BTreeSet;

use switch_core::engine::ids::{IdKind, Ids};
use switch_core::engine::model::Program;
use switch_core::engine::p4info::{p4info, reason_number};

use super::{EVERYTHING, programs};

/// A message: its fields in order.
type Message = Vec<(String, Field)>;

#[derive(Debug, PartialEq)]
enum Field {
    Message(Message),
    Scalar(String),
    Text(String),
}

/// Reads a message up to its closing brace or the end.
fn message(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Message {
    let mut fields = Message::new();
    loop {
        skip_space(rest);
        match rest.peek() {
            None => return fields,
            Some('}') => {
                rest.next();
                return fields;
            }
            Some(_) => {}
        }
        let name = word(rest);
        assert!(!name.is_empty(), "a field has a name");
        skip_space(rest);
        let value = match rest.next() {
            Some('{') => Field::Message(message(rest)),
            Some(':') => {
                skip_space(rest);
                if rest.peek() == Some(&'"') {
                    Field::Text(string(rest))
                } else {
                    Field::Scalar(word(rest))
                }
            }
            other => panic!("{other:?} after {name}"),
        };
        fields.push((name, value));
    }
}

fn skip_space(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while rest.next_if(|c| c.is_whitespace()).is_some() {}
}

fn word(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    let mut word = String::new();
    while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        word.push(c);
    }
    word
}

fn string(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    assert_eq!(rest.next(), Some('"'));
    let mut text = String::new();
    loop {
        match rest.next().unwrap() {
            '"' => return text,
            '\\' => match rest.next().unwrap() {
                first @ '0'..='7' => {
                    let digits: String = [first, rest.next().unwrap(), rest.next().unwrap()]
                        .into_iter()
                        .collect();
                    text.push(char::from(u8::from_str_radix(&digits, 8).unwrap()));
                }
                escaped => text.push(escaped),
            },
            c => {
                assert!(!c.is_control());
                text.push(c);
            }
        }
    }
}

fn all<'m>(message: &'m Message, name: &str) -> Vec<&'m Message> {
    message
        .iter()
        .filter(|(found, _)| found == name)
        .map(|(_, field)| match field {
            Field::Message(message) => message,
            other => panic!("{name}: {other:?}"),
        })
        .collect()
}

fn numbers(message: &Message, name: &str) -> Vec<u32> {
    message
        .iter()
        .filter(|(found, _)| found == name)
        .map(|(_, field)| match field {
            Field::Scalar(number) => number.parse().unwrap(),
            other => panic!("{name}: {other:?}"),
        })
        .collect()
}

fn text<'m>(message: &'m Message, name: &str) -> &'m str {
    match message.iter().find(|(found, _)| found == name) {
        Some((_, Field::Text(text) | Field::Scalar(text))) => text,
        other => panic!("{name}: {other:?}"),
    }
}

fn named<'m>(info: &'m Message, list: &str, name: &str) -> &'m Message {
    all(info, list)
        .into_iter()
        .find(|found| text(all(found, "preamble")[0], "name") == name)
        .unwrap()
}

fn info(program: &str) -> Message {
    let valid = Program::from_json(program).unwrap();
    let written = p4info(&valid);
    message(&mut written.chars().peekable())
}

#[test]
fn every_reference_leads_to_an_object_of_the_right_kind() {
    for (program, source) in programs() {
        let info = info(source);
        let ids = |list: &str, prefix: u32| -> BTreeSet<u32> {
            let found = all(&info, list);
            let ids: BTreeSet<u32> = found
                .iter()
                .map(|object| numbers(all(object, "preamble")[0], "id")[0])
                .collect();
            assert_eq!(ids.len(), found.len(), "{program}: {list}");
            assert!(
                ids.iter()
                    .all(|id| id >> 24 == prefix && id & 0xff_ffff != 0),
                "{list}"
            );
            ids
        };
        // The prefixes are those of P4Runtime's p4info.proto.
        let (tables, actions) = (ids("tables", 0x02), ids("actions", 0x01));
        let direct = ids("direct_counters", 0x13);
        ids("action_profiles", 0x11);
        ids("counters", 0x12);
        ids("meters", 0x14);
        assert_eq!(ids("controller_packet_metadata", 0x04).len(), 2);
        for table in all(&info, "tables") {
            for action in all(table, "action_refs") {
                assert!(actions.contains(&numbers(action, "id")[0]));
            }
            for action in numbers(table, "const_default_action_id") {
                assert!(actions.contains(&action));
            }
            for resource in numbers(table, "direct_resource_ids") {
                assert!(direct.contains(&resource));
            }
        }
        for counter in all(&info, "direct_counters") {
            assert!(tables.contains(&numbers(counter, "direct_table_id")[0]));
        }
    }
}

#[test]
fn tables_actions_and_externs_are_described_as_they_are_declared() {
    let info = info(EVERYTHING);
    let program = all(&info, "pkg_info")[0];
    assert_eq!(text(program, "name"), "everything");
    assert_eq!(
        text(all(program, "doc")[0], "brief"),
        "Every construct \"once\",\nat least."
    );

    let exact = named(&info, "tables", "exact");
    assert_eq!(numbers(all(exact, "preamble")[0], "id"), [0x0200_0001]);
    assert_eq!(
        text(all(all(exact, "preamble")[0], "doc")[0], "brief"),
        "By \\ port."
    );
    assert_eq!(numbers(exact, "size"), [4_194_304]);
    assert_eq!(text(exact, "idle_timeout_behavior"), "NOTIFY_CONTROL");
    assert_eq!(numbers(exact, "const_default_action_id"), [0x0100_0001]);
    assert_eq!(
        numbers(exact, "direct_resource_ids"),
        [Ids::direct_counter(0x0200_0001)]
    );
    let keys: Vec<_> = all(exact, "match_fields")
        .into_iter()
        .map(|key| {
            (
                numbers(key, "id")[0],
                text(key, "name"),
                numbers(key, "bitwidth")[0],
                text(key, "match_type"),
            )
        })
        .collect();
    assert_eq!(
        keys,
        [(1, "std.in_port", 16, "EXACT"), (2, "station", 48, "EXACT")]
    );

    let rules = named(&info, "tables", "rules");
    let kinds: Vec<_> = all(rules, "match_fields")
        .into_iter()
        .map(|key| text(key, "match_type"))
        .collect();
    assert_eq!(kinds, ["TERNARY", "RANGE", "OPTIONAL", "LPM"]);
    let default = all(rules, "action_refs").pop().unwrap();
    assert_eq!(text(default, "scope"), "DEFAULT_ONLY");
    assert_eq!(numbers(default, "id"), [IdKind::Action.id_of_name("stop")]);
    assert!(numbers(rules, "const_default_action_id").is_empty());

    let out = named(&info, "actions", "out");
    let params: Vec<_> = all(out, "params")
        .into_iter()
        .map(|param| {
            (
                numbers(param, "id")[0],
                text(param, "name"),
                numbers(param, "bitwidth")[0],
            )
        })
        .collect();
    assert_eq!(params, [(1, "port", 16), (2, "limit", 32)]);

    let paths = named(&info, "action_profiles", "paths");
    assert_eq!(text(paths, "with_selector"), "true");
    assert_eq!(
        (numbers(paths, "size"), numbers(paths, "max_group_size")),
        (vec![6_400], vec![64])
    );
    assert_eq!(numbers(paths, "table_ids"), [0x0200_0001]);
    assert_eq!(
        numbers(named(&info, "counters", "seen"), "size"),
        [1_048_576]
    );
    assert_eq!(
        numbers(all(named(&info, "meters", "rates"), "preamble")[0], "id"),
        [0x1400_0007]
    );

    let packet_in = named(&info, "controller_packet_metadata", "packet_in");
    let fields: Vec<_> = all(packet_in, "metadata")
        .into_iter()
        .map(|field| text(field, "name"))
        .collect();
    assert_eq!(
        fields,
        ["ingress_port", "reason", "arg0", "arg1", "arg2", "arg3"]
    );
    for reason in ["unknown_neighbour", "sample", "too_big"] {
        let annotation = format!("@reason({}, \"{reason}\")", reason_number(reason));
        let found = all(packet_in, "preamble")[0]
            .iter()
            .any(|(_, field)| *field == Field::Text(annotation.clone()));
        assert!(found, "{reason}");
    }
}

#[test]
fn ids_do_not_depend_on_what_else_a_program_declares() {
    let valid = Program::from_json(EVERYTHING).unwrap();
    let mut fewer = valid.source().clone();
    let kept = fewer
        .actions
        .iter()
        .position(|action| action.name == "mark")
        .unwrap();
    let id = valid.ids().actions()[kept];
    fewer.actions = vec![fewer.actions[kept].clone()];
    fewer.tables.clear();
    fewer.ingress.clear();
    fewer.egress.clear();
    let fewer = switch_core::engine::validate::validate(&fewer).unwrap();
    assert_eq!(fewer.ids().actions(), [id]);
    // What was printed once stays so: a controller may have kept it.
    assert_eq!(IdKind::Action.id_of_name("mark"), 0x017a_e467);
}
