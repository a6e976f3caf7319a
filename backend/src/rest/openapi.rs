//! The interface as an OpenAPI 3.1 document, made from the routes and the wire types themselves; docs/openapi.json is a copy of it.
//!
//! Each handler says what is its own: path, parameters, body, answers. `finished` adds what holds for all of them, so that no handler can
//! forget it: the problems that any request may come to, the bounds of every integer, how one proves who one is.
use super::problem::{MEDIA_TYPE, Problem};
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
use serde_json::{Map, Value, json};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder, schema};
use utoipa::{PartialSchema, ToSchema};

/// Bytes that are no JSON.
pub struct Octets;

impl PartialSchema for Octets {
    fn schema() -> utoipa::openapi::RefOr<schema::Schema> {
        schema::ObjectBuilder::new()
            .schema_type(schema::Type::String)
            .format(Some(schema::SchemaFormat::KnownFormat(
                schema::KnownFormat::Binary,
            )))
            .into()
    }
}

impl ToSchema for Octets {}

/// What the document begins with, before any route.
pub fn opening() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Ringswitch")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The admin interface of a Ringswitch daemon. docs/rest.md describes it in words.",
        ));
    OpenApiBuilder::new()
        .info(info)
        .components(Some(
            ComponentsBuilder::new()
                .schema(Problem::name(), Problem::schema())
                .build(),
        ))
        .build()
}

/// Serves the document: the copy, which is the same and already made, so that no daemon takes megabytes to make its own.
pub fn served<S: Clone + Send + Sync + 'static>() -> MethodRouter<S> {
    const TEXT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json"));
    get(|| async { ([(header::CONTENT_TYPE, "application/json")], TEXT).into_response() })
}

/// The text of the finished document.
pub fn text(document: &OpenApi) -> String {
    // Neither can fail: the keys are strings.
    let whole = serde_json::to_value(document).unwrap_or_default();
    serde_json::to_string_pretty(&finished(whole)).unwrap_or_default() + "\n"
}

/// With all that holds for every operation and every integer.
fn finished(mut document: Value) -> Value {
    if let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) {
        for (path, item) in paths {
            let operations = item.as_object_mut().into_iter().flatten();
            for (method, operation) in operations {
                finish_operation(&format!("{method} {path}"), operation);
            }
        }
    }
    bound_integers(&mut document);
    if let Some(components) = document
        .get_mut("components")
        .and_then(Value::as_object_mut)
    {
        components.insert("securitySchemes".to_owned(), security_schemes());
        components.insert("responses".to_owned(), common_responses());
    }
    document["servers"] = json!([{"url": "/"}]);
    // On the UNIX socket who one is is seen from being able to open it.
    document["security"] = json!([{}, {"token": []}, {"certificate": []}]);
    document
}

fn security_schemes() -> Value {
    json!({
        "token": {"type": "http", "scheme": "bearer", "description": "Over TCP, where the daemon has a token file: one of its tokens."},
        "certificate": {"type": "mutualTLS", "description": "Over TCP, where the daemon has a client CA: a certificate of it."},
    })
}

/// When an operation may answer with a problem.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    HasParameters,
    HasPath,
    HasBody,
}

/// What may come of any request, by what it has.
const PROBLEMS: [(&str, When, &str); 10] = [
    (
        "400",
        When::HasParameters,
        "A part of the path, the query or the body cannot be read",
    ),
    (
        "400",
        When::HasBody,
        "A part of the path, the query or the body cannot be read",
    ),
    (
        "401",
        When::Always,
        "Over TCP: there is no token, or it is not known",
    ),
    (
        "403",
        When::Always,
        "The token or certificate is for reading only",
    ),
    ("404", When::HasPath, "There is no such thing"),
    ("408", When::Always, "The request took too long"),
    ("413", When::HasBody, "The body is too large"),
    (
        "415",
        When::HasBody,
        "The body is declared as something else",
    ),
    (
        "422",
        When::HasBody,
        "A field is unknown, of a wrong type, or out of bounds; nothing has changed",
    ),
    (
        "503",
        When::Always,
        "The daemon is busy or stopping, or cannot make a change durable; it has not made it",
    ),
];

fn finish_operation(name: &str, operation: &mut Value) {
    let has = |part: &str| operation.get(part).is_some();
    let applies = |when: &When| match when {
        When::Always => true,
        When::HasParameters => has("parameters"),
        When::HasPath => name.contains('{'),
        When::HasBody => has("requestBody"),
    };
    let common: Vec<&str> = PROBLEMS
        .iter()
        .filter(|(_, when, _)| applies(when))
        .map(|(status, _, _)| *status)
        .collect();
    let Some(operation) = operation.as_object_mut() else {
        return;
    };
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    operation.insert("operationId".to_owned(), words.join("_").into());
    let Some(responses) = operation
        .get_mut("responses")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    for (status, response) in responses.iter_mut() {
        if status.starts_with(['4', '5']) {
            response["content"] = problem_content();
        }
    }
    for status in common {
        responses
            .entry(status)
            .or_insert_with(|| json!({"$ref": format!("#/components/responses/Problem{status}")}));
    }
}

fn problem_content() -> Value {
    json!({MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}})
}

/// What all operations answer alike.
fn common_responses() -> Value {
    let response = |(status, _, text): (&str, When, &str)| {
        let mut response = json!({"description": text, "content": problem_content()});
        if matches!(status, "401" | "403") {
            response["headers"] = json!({
                "WWW-Authenticate": {"description": "How to prove who one is (RFC 6750)", "schema": {"type": "string"}},
            });
        }
        (format!("Problem{status}"), response)
    };
    PROBLEMS.into_iter().map(response).collect()
}

/// Bounds of the integers of a type, by its format.
const BOUNDS: [(&str, i64, u64); 8] = [
    ("int8", i8::MIN as i64, i8::MAX as u64),
    ("int16", i16::MIN as i64, i16::MAX as u64),
    ("int32", i32::MIN as i64, i32::MAX as u64),
    ("int64", i64::MIN, i64::MAX as u64),
    ("u-int8", 0, u8::MAX as u64),
    ("u-int16", 0, u16::MAX as u64),
    ("u-int32", 0, u32::MAX as u64),
    ("u-int64", 0, u64::MAX),
];

/// Gives every integer that has none the bounds of its type.
fn bound_integers(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if is_integer(object) {
                bound(object);
            }
            object.values_mut().for_each(bound_integers);
        }
        Value::Array(items) => items.iter_mut().for_each(bound_integers),
        _ => {}
    }
}

fn is_integer(schema: &Map<String, Value>) -> bool {
    match schema.get("type") {
        Some(Value::String(name)) => name == "integer",
        Some(Value::Array(names)) => names.iter().any(|name| name == "integer"),
        _ => false,
    }
}

fn bound(schema: &mut Map<String, Value>) {
    let format = schema.get("format").and_then(Value::as_str);
    // What has none is a size of this machine.
    let (_, low, high) = BOUNDS
        .into_iter()
        .find(|(name, _, _)| Some(*name) == format)
        .unwrap_or(("", 0, u64::MAX));
    schema.entry("minimum").or_insert_with(|| low.into());
    schema.entry("maximum").or_insert_with(|| high.into());
    // The registry of formats writes them otherwise: https://spec.openapis.org/registry/format/
    if let Some(Value::String(format)) = schema.get_mut("format") {
        *format = format.replace("u-int", "uint");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Value {
        serde_json::from_str(&super::super::routes::openapi()).unwrap()
    }

    /// Every object of a document with a test, and the way to it.
    fn each(value: &Value, way: &str, see: &mut dyn FnMut(&str, &Map<String, Value>)) {
        match value {
            Value::Object(object) => {
                see(way, object);
                for (name, part) in object {
                    each(part, &format!("{way}/{name}"), see);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| each(item, way, see)),
            _ => {}
        }
    }

    #[test]
    fn every_integer_is_bounded_and_every_reference_leads_somewhere() {
        let document = document();
        let mut integers = 0;
        each(&document, "#", &mut |way, object| {
            if is_integer(object) {
                integers += 1;
                assert!(
                    object.contains_key("minimum") && object.contains_key("maximum"),
                    "{way}"
                );
            }
            if let Some(Value::String(to)) = object.get("$ref") {
                let place = to.strip_prefix('#').unwrap();
                assert!(document.pointer(place).is_some(), "{way}: {to}");
            }
        });
        assert!(integers > 50, "{integers}");
    }

    #[test]
    fn every_response_is_described_and_every_error_a_problem() {
        let document = document();
        let mut names = std::collections::BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let name = operation["operationId"].as_str().unwrap();
                assert!(names.insert(name.to_owned()), "{name} twice");
                assert!(operation.get("summary").is_some(), "{method} {path}");
                for (status, response) in operation["responses"].as_object().unwrap() {
                    let response = match response.get("$ref") {
                        Some(to) => document.pointer(&to.as_str().unwrap()[1..]).unwrap(),
                        None => response,
                    };
                    let text = response["description"].as_str().unwrap();
                    assert!(!text.is_empty(), "{method} {path} {status}");
                    let is_problem = response["content"].get(MEDIA_TYPE).is_some();
                    assert_eq!(
                        is_problem,
                        status.starts_with(['4', '5']),
                        "{method} {path} {status}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_copy_in_the_documentation_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let text = super::super::routes::openapi();
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let copy = std::fs::read_to_string(path).unwrap();
        assert!(
            copy == text,
            "docs/openapi.json is out of date: run this test with UPDATE_OPENAPI=1 and commit what it writes"
        );
    }
}
