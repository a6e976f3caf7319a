//! Entity tags (RFC 9110 §8.8.3, §13.1): what a client has seen is changed only if it is still so, and sent again only if it is not.
//!
//! A port's and a device's tag is of its configuration, a table's of its entries and default, so that traffic does not change it. Such a
//! tag is for `If-Match` alone: the answer has counters beside, and is always sent whole. All other answers have the tag of their bytes.
use super::problem::Problem;
use super::server::Lasting;
use crate::control::tags::{IfMatch, tag_of_bytes};
use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, MatchedPath, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Largest answer that is given a tag of its bytes.
const MAX_TAGGED_BYTES: u64 = 1024 * 1024;
/// Paths whose changes take `If-Match`.
const CONDITIONAL: [&str; 9] = [
    "/v1/devices/{name}",
    "/v1/groups/{selector}/{group}",
    "/v1/meters/{meter}/{index}",
    "/v1/multicast/{group}",
    "/v1/ports/{name}",
    "/v1/services",
    "/v1/tables/{table}/clear",
    "/v1/tables/{table}/default",
    "/v1/tables/{table}/entries",
];

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        if_match(&parts.headers)
    }
}

/// One of a list of tags.
struct EntityTag<'a> {
    /// `W/`: of which only the meaning is told.
    is_weak: bool,
    /// What is between the quotes; there may be commas in it.
    text: &'a str,
}

/// A list of tags. Its empty places mean nothing (§5.6.1.2).
fn entity_tags(list: &str) -> Option<Vec<EntityTag<'_>>> {
    const BETWEEN: [char; 3] = [' ', '\t', ','];
    let mut tags = vec![];
    let mut rest = list.trim_start_matches(BETWEEN);
    while !rest.is_empty() {
        let strong = rest.strip_prefix("W/");
        let (text, behind) = strong.unwrap_or(rest).strip_prefix('"')?.split_once('"')?;
        let is_weak = strong.is_some();
        tags.push(EntityTag { is_weak, text });
        rest = behind.trim_start_matches(BETWEEN);
        let is_apart = behind.trim_start().starts_with(',') || rest.is_empty();
        is_apart.then_some(())?;
    }
    Some(tags)
}

/// A weak tag matches nothing (§13.1.1).
fn if_match(headers: &HeaderMap) -> Result<IfMatch, Problem> {
    let mut tags = vec![];
    let mut is_said = false;
    for value in headers.get_all(header::IF_MATCH) {
        is_said = true;
        let text = value.to_str().map_err(|_| malformed())?;
        if text.trim() == "*" {
            return Ok(IfMatch::default());
        }
        let said = entity_tags(text).ok_or_else(malformed)?;
        let strong = said.into_iter().filter(|tag| !tag.is_weak);
        tags.extend(strong.map(|tag| tag.text.to_owned()));
    }
    Ok(match is_said {
        true => IfMatch::one_of(tags),
        false => IfMatch::default(),
    })
}

fn malformed() -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "If-Match is no list of entity tags",
    )
    .about("If-Match")
    .remedy("send what GET answered in ETag, with its quotes, or *")
}

/// Gives an answer the tag of what it shows.
pub fn with_tag(tag: &str, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    if let Ok(value) = HeaderValue::from_str(&format!("\"{tag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// Refuses conditions that nobody would look at; tags what is read, and says that it has not changed where that is so.
pub async fn conditions(request: Request, next: Next) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return match unheeded(&request) {
            Some(header) => not_heeded(header).into_response(),
            None => next.run(request).await,
        };
    }
    let seen = request.headers().get(header::IF_NONE_MATCH).cloned();
    let response = next.run(request).await;
    if response.headers().contains_key(header::ETAG) {
        return response;
    }
    let response = tagged_by_bytes(response).await;
    let (Some(seen), Some(tag)) = (seen, response.headers().get(header::ETAG)) else {
        return response;
    };
    if !has_seen(&seen, tag) {
        return response;
    }
    let mut unchanged = StatusCode::NOT_MODIFIED.into_response();
    unchanged.headers_mut().insert(header::ETAG, tag.clone());
    unchanged
}

/// A change that was to depend on something is not made without looking at it.
fn unheeded(request: &Request) -> Option<&'static str> {
    let has = |name| request.headers().contains_key(name);
    let path = request.extensions().get::<MatchedPath>();
    let is_conditional = path.is_some_and(|path| CONDITIONAL.contains(&path.as_str()));
    if has(header::IF_MATCH) && !is_conditional {
        return Some("If-Match");
    }
    [
        (header::IF_NONE_MATCH, "If-None-Match"),
        (header::IF_UNMODIFIED_SINCE, "If-Unmodified-Since"),
    ]
    .into_iter()
    .find_map(|(name, text)| has(name).then_some(text))
}

fn not_heeded(header: &str) -> Problem {
    let detail = format!("{header} is not heeded here, and nothing was changed");
    Problem::new(StatusCode::BAD_REQUEST, detail)
        .about(header)
        .remedy("docs/rest.md says which changes take If-Match; leave it out elsewhere")
}

async fn tagged_by_bytes(response: Response) -> Response {
    let size = response.body().size_hint().exact();
    let lasts = response.extensions().get::<Lasting>().is_some();
    let is_small = size.is_some_and(|bytes| bytes <= MAX_TAGGED_BYTES);
    if response.status() != StatusCode::OK || lasts || !is_small {
        return response;
    }
    let (head, body) = response.into_parts();
    // It is in memory already.
    let Ok(bytes) = axum::body::to_bytes(body, usize::MAX).await else {
        return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer broke off")
            .remedy("report this as a fault of Ringswitch")
            .into_response();
    };
    let tag = tag_of_bytes(&bytes);
    with_tag(&tag, Response::from_parts(head, Body::from(bytes)))
}

/// Whether one of `If-None-Match` is the tag: by the weak comparison (§13.1.2).
fn has_seen(seen: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(seen), Ok(tag)) = (seen.to_str(), tag.to_str()) else {
        return false;
    };
    let tag = tag.trim_matches('"');
    let has_tag = |tags: Vec<EntityTag<'_>>| tags.iter().any(|seen| seen.text == tag);
    seen.trim() == "*" || entity_tags(seen).is_some_and(has_tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<IfMatch, u16> {
        let header = |value: &&str| (header::IF_MATCH, HeaderValue::from_str(value).unwrap());
        if_match(&values.iter().map(header).collect()).map_err(|problem| problem.status)
    }

    #[test]
    fn if_match_is_a_list_of_strong_tags_or_anything() {
        let tags = |tags: &[&str]| {
            Ok(IfMatch::one_of(
                tags.iter().map(ToString::to_string).collect(),
            ))
        };
        assert_eq!(read(&[]), Ok(IfMatch::default()));
        assert_eq!(read(&["*"]), Ok(IfMatch::default()));
        assert_eq!(read(&["\"a\""]), tags(&["a"]));
        assert_eq!(
            read(&["\"a\", W/\"b\" ,\"c\"", "\"d\""]),
            tags(&["a", "c", "d"])
        );
        assert_eq!(read(&["\"a\", ,"]), tags(&["a"]));
        assert_eq!(read(&["W/\"x, \",\"a,b\""]), tags(&["a,b"]));
        assert_eq!(read(&["W/\"a\""]), tags(&[]));
        assert_eq!(read(&[""]), tags(&[]));
        for bad in ["a", "\"a", "a\"", "\"a\",b", "\"a\" \"b\"", "w/\"a\""] {
            assert_eq!(read(&[bad]), Err(400), "{bad}");
        }
    }

    #[test]
    fn what_has_been_seen_is_told_by_any_of_the_tags() {
        let seen = |text: &str| {
            let tag = HeaderValue::from_static("\"a\"");
            has_seen(&HeaderValue::from_str(text).unwrap(), &tag)
        };
        for yes in ["\"a\"", "W/\"a\"", "*", "\"b\", \"a\""] {
            assert!(seen(yes), "{yes}");
        }
        for no in ["", "a", "\"b\"", "\"A\""] {
            assert!(!seen(no), "{no}");
        }
    }
}
