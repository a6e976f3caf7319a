//! A request's body: JSON, declared as such or not declared, without unknown fields.
use super::problem::Problem;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

/// A request's body.
pub fn parse<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<T, Problem> {
    refuse_other_media(headers)?;
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is larger than 64 KiB",
        )
        .remedy("what a request asks for is a few hundred bytes: send that alone"),
        status => Problem::new(status, rejection.body_text()).remedy("send the whole body"),
    })?;
    let read = serde_json::from_slice(&body).map_err(|error| {
        let problem = not_what_was_asked(&error);
        match field_at_fault::<T>(&body).or_else(|| missing(&error)) {
            Some(field) => problem.about(field),
            None => problem,
        }
    })?;
    refuse_lists(&body)?;
    Ok(read)
}

/// Serde would take a list of an object's values, in the order of its fields, for the object (`[null, 1]`).
pub fn refuse_lists(body: &[u8]) -> Result<(), Problem> {
    if body.trim_ascii_start().starts_with(b"[") {
        let detail = "the body is a list, not an object";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
            .remedy("send one JSON object as docs/rest.md describes it"));
    }
    Ok(())
}

/// JSON that does not read as what the path takes.
pub fn not_what_was_asked(error: &serde_json::Error) -> Problem {
    let status = match error.classify() {
        serde_json::error::Category::Data => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::BAD_REQUEST,
    };
    Problem::new(status, error.to_string())
        .remedy("send one JSON object as docs/rest.md describes it")
}

/// A body that is declared as something other than JSON.
pub fn refuse_other_media(headers: &HeaderMap) -> Result<(), Problem> {
    if is_json(headers) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "the body is not declared as JSON",
    )
    .remedy("send the header Content-Type: application/json"))
}

/// The first field that is unknown or of a wrong type by itself; `None` when the object as a whole is at fault.
fn field_at_fault<T: DeserializeOwned>(body: &[u8]) -> Option<String> {
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body).ok()?;
    fields.into_iter().find_map(|(name, value)| {
        let alone = serde_json::Map::from_iter([(name.clone(), value)]);
        let error = serde_json::from_value::<T>(alone.into()).err()?;
        missing(&error).is_none().then_some(name)
    })
}

/// The field that an object lacks, if that is the fault.
fn missing(error: &serde_json::Error) -> Option<String> {
    let text = error.to_string();
    let (field, _) = text.strip_prefix("missing field `")?.split_once('`')?;
    Some(field.to_owned())
}

/// JSON, or nothing said: RFC 9110 §8.3 lets the recipient assume.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else {
        return true;
    };
    let media_type = content_type
        .to_str()
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    media_type.eq_ignore_ascii_case("application/json")
}
