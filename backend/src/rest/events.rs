//! What happens, as server-sent events (WHATWG HTML §9.2).
//!
//! A stream is its connection's: it ends with it, waits for the client without holding anything but its place among the events, and has a
//! heartbeat, so that a client that is gone is noticed. How many there are is bounded.
use super::page;
use super::problem::Problem;
use super::routes::Admin;
use super::server::Lasting;
use super::wire::EventsQuery;
use crate::control::events::{Listener, Told};
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Streams at one time: half of the connections of the admin socket.
pub const MAX_STREAMS: usize = 32;
/// How long a stream may be silent.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client waits before it comes again.
const RETRY_MS: u64 = 2_000;
/// What a client says it has heard last.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// `/v1/events`.
pub fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default().routes(routes!(events))
}

/// What happens, from now on, as it happens.
#[utoipa::path(
    get,
    path = "/v1/events",
    params(EventsQuery),
    responses(
        (status = 200, body = String, content_type = "text/event-stream", description = "Server-sent events, for as long as the client listens; docs/rest.md lists them")
    )
)]
async fn events(
    State(admin): State<Admin>,
    query: Result<Query<EventsQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let EventsQuery { after } = page::query(query)?;
    let permit = admin.streams.clone().try_acquire_owned().map_err(|_| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{MAX_STREAMS} clients listen already"),
        )
        .remedy("end one of them, or try again")
    })?;
    let said = headers.get(LAST_EVENT_ID);
    let after = after.or_else(|| said?.to_str().ok().map(str::to_owned));
    let bus = admin.control.events();
    let (listener, is_elsewhere) = match after.as_deref() {
        None => (bus.listen_after(bus.latest()), false),
        Some(id) => match number(id, bus.process()) {
            Some(heard) => (bus.listen_after(heard), false),
            None => (bus.listen_after(0), true),
        },
    };
    let opening = opening(bus.process(), &listener, is_elsewhere);
    let stream = Stream {
        next: Box::pin(async move { (listener, opening) }),
        process: bus.process(),
        _permit: permit,
    };
    let mut response = Body::new(stream).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.extensions_mut().insert(Lasting);
    Ok(response)
}

/// The place of an event, as `id` of this process has it.
fn number(id: &str, process: u64) -> Option<u64> {
    let (of, number) = id.split_once('-')?;
    let is_ours = u64::from_str_radix(of, 16) == Ok(process);
    is_ours.then(|| number.parse().ok()).flatten()
}

fn id(process: u64, number: u64) -> String {
    format!("{process:x}-{number}")
}

/// Sent at once: where the client is, so that one that heard nothing yet can go on from here.
fn opening(process: u64, listener: &Listener, is_elsewhere: bool) -> Bytes {
    let place = id(process, listener.heard());
    let lost = if is_elsewhere {
        lagged(None)
    } else {
        String::new()
    };
    format!("retry: {RETRY_MS}\nid: {place}\n\n{lost}").into()
}

/// Events that the client does not get; `None`: nobody knows how many.
fn lagged(missed: Option<u64>) -> String {
    format!("event: lagged\ndata: {}\n\n", json!({ "missed": missed }))
}

/// The next piece of a stream.
async fn next(mut listener: Listener, process: u64) -> (Listener, Bytes) {
    let text = match tokio::time::timeout(HEARTBEAT, listener.next()).await {
        Err(_) => ":\n\n".to_owned(),
        Ok(Told::Lagged(missed)) => lagged(Some(missed)),
        Ok(Told::Event(published)) => {
            let mut data = serde_json::to_value(&published.event).unwrap_or_default();
            let name = data.as_object_mut().and_then(|data| {
                data.insert("at_ms".to_owned(), published.at_ms.into());
                data.remove("event")
            });
            let name = name.as_ref().and_then(Value::as_str).unwrap_or_default();
            let id = id(process, published.number);
            format!("id: {id}\nevent: {name}\ndata: {data}\n\n")
        }
    };
    (listener, text.into())
}

type Next = Pin<Box<dyn Future<Output = (Listener, Bytes)> + Send>>;

/// The body: piece after piece, each made when the one before is on its way.
struct Stream {
    next: Next,
    process: u64,
    _permit: OwnedSemaphorePermit,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.next.as_mut().poll(context).map(|(listener, piece)| {
            let process = self.process;
            self.next = Box::pin(next(listener, process));
            Some(Ok(Frame::data(piece)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_another_process_is_no_place_here() {
        assert_eq!(number(&id(0xabc, 7), 0xabc), Some(7));
        for other in [
            "abd-7",
            "abc",
            "abc-",
            "abc-x",
            "-7",
            "abc--7",
            "",
            "abc-18446744073709551616",
        ] {
            assert_eq!(number(other, 0xabc), None, "{other}");
        }
    }
}
