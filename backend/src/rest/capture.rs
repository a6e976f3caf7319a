//! A port's frames as pcapng, for as long as somebody reads them: `GET /v1/ports/{name}/capture`.
//!
//! A task for each capture owns it and writes its blocks into a channel of one chunk; the connection reads that. The capture ends when the client
//! is gone, has read nothing for `STALL` while frames wait, has as many frames as it wanted, or when the port goes.
mod pcapng;

use super::openapi::Octets;
use super::problem::Problem;
use super::routes::{Admin, port_name};
use super::server::Lasting;
use super::wire::PortPath;
use crate::config::{InvalidField, PortName};
use crate::control::{ControlHandle, PortId};
use crate::datapath::capture::filter::Filter;
use crate::datapath::capture::{Bell, Capture, CaptureOptions, MIN_SNAP_BYTES};
use crate::datapath::frame::MAX_FRAME_BYTES;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use pcapng::Writer;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The media type, as the IETF draft of pcapng registers it under another name; tools know this one.
const MEDIA_TYPE: &str = "application/x-pcapng";
/// How long a client may read nothing while there is something for it.
const STALL: Duration = Duration::from_secs(60);
/// About how much is handed to the connection at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// How old the names of ports may be.
const NAMES_AGE: Duration = Duration::from_secs(1);

/// Paths of captures.
pub fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default().routes(routes!(capture_frames))
}

/// What is wanted.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    /// Which frames (docs/cli.md); absent or empty: all.
    filter: Option<String>,
    /// How many bytes of each, at most.
    snaplen: Option<u32>,
    /// How many frames, until it ends.
    count: Option<u64>,
}

/// A port's frames, as they come, for as long as they are read.
#[utoipa::path(
    get,
    path = "/v1/ports/{name}/capture",
    params(PortPath, Wanted),
    responses(
        (status = 200, body = Octets, content_type = "application/x-pcapng", description = "pcapng, frame after frame"),
        (status = 404, description = "There is no such port"),
        (status = 422, description = "The filter is none, or a number is out of bounds")
    )
)]
async fn capture_frames(
    State(admin): State<Admin>,
    name: Result<Path<String>, PathRejection>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Problem> {
    let name = port_name(name)?;
    let Query(wanted) = wanted.map_err(|rejection| {
        Problem::new(StatusCode::BAD_REQUEST, rejection.body_text())
            .remedy("use filter=EXPRESSION, snaplen=BYTES and count=FRAMES, percent-encoded")
    })?;
    let (options, text) = options(&wanted)?;
    let rung = Arc::new(Notify::new());
    let ringing = Arc::clone(&rung);
    let bell = Bell(Arc::new(move || ringing.notify_one()));
    let control = admin.control;
    let capture = control.capture(name.clone(), options, bell).await?;
    let (sender, chunks) = mpsc::channel(1);
    let header = Writer::begin(&name, text.as_deref(), capture.snap_bytes(), wanted.count);
    let stream = Stream {
        capture,
        rung,
        chunks: sender,
        writer: header,
        names: Names::new(control),
    };
    tokio::spawn(stream.run());
    let mut response = (
        [(header::CONTENT_TYPE, MEDIA_TYPE)],
        Body::new(Chunks(chunks)),
    )
        .into_response();
    response.extensions_mut().insert(Lasting);
    Ok(response)
}

/// The same, checked, and the text of its filter.
fn options(wanted: &Wanted) -> Result<(CaptureOptions, Option<String>), InvalidField> {
    let most = MAX_FRAME_BYTES as u32;
    let snap_bytes = wanted.snaplen.unwrap_or(most);
    if !(MIN_SNAP_BYTES..=most).contains(&snap_bytes) {
        return Err(InvalidField::new(
            "snaplen",
            format!("{snap_bytes} is out of bounds"),
            format!("use a number of bytes from {MIN_SNAP_BYTES} to {most}"),
        ));
    }
    if wanted.count == Some(0) {
        return Err(InvalidField::new(
            "count",
            "0 is out of bounds",
            "use a number of frames from 1 on, or leave it out",
        ));
    }
    let text = wanted
        .filter
        .as_ref()
        .filter(|text| !text.trim().is_empty());
    let filter = text.map(|text| Filter::parse(text)).transpose();
    let filter = filter.map_err(|error| {
        InvalidField::new(
            "filter",
            error.to_string(),
            "docs/cli.md has the language: host 10.0.0.1 and tcp port 80, dropped rx_ring_full",
        )
    })?;
    Ok((CaptureOptions { filter, snap_bytes }, text.cloned()))
}

/// A running capture.
struct Stream {
    capture: Capture,
    /// A permit for each time that the bell rang since it was last waited for.
    rung: Arc<Notify>,
    chunks: mpsc::Sender<Bytes>,
    writer: Writer,
    names: Names,
}

impl Stream {
    async fn run(mut self) {
        let Self {
            capture,
            rung,
            chunks,
            writer,
            names,
        } = &mut self;
        loop {
            // Looked at before the last frames are taken: none comes after it.
            let has_ended = capture.has_ended();
            loop {
                names.refresh().await;
                let none_waits = fill(capture, writer, &names.known);
                if !send(chunks, writer.take()).await {
                    return;
                }
                if none_waits || writer.is_done() {
                    break;
                }
            }
            writer.statistics(capture.counts());
            if has_ended || writer.is_done() {
                writer.end(capture.counts());
                send(chunks, writer.take()).await;
                return;
            }
            if !send(chunks, writer.take()).await {
                return;
            }
            tokio::select! {
                () = chunks.closed() => return,
                () = rung.notified() => {}
            }
        }
    }
}

/// Writes frames that wait, up to a chunk; `true`: there were no more.
fn fill(capture: &mut Capture, writer: &mut Writer, names: &BTreeMap<PortId, PortName>) -> bool {
    while writer.waiting_bytes() < CHUNK_BYTES && !writer.is_done() {
        match capture.next_frame() {
            Some(captured) => writer.frame(&captured, names),
            None => return true,
        }
    }
    false
}

/// Hands a chunk to the connection; `false`: nobody takes it.
async fn send(chunks: &mpsc::Sender<Bytes>, chunk: Vec<u8>) -> bool {
    if chunk.is_empty() {
        return !chunks.is_closed();
    }
    let sent = tokio::time::timeout(STALL, chunks.send(chunk.into()));
    matches!(sent.await, Ok(Ok(())))
}

/// What ports are called, as of late.
struct Names {
    control: ControlHandle,
    known: BTreeMap<PortId, PortName>,
    asked: Option<Instant>,
}

impl Names {
    fn new(control: ControlHandle) -> Self {
        Self {
            control,
            known: BTreeMap::new(),
            asked: None,
        }
    }

    /// Asks again, once what is known is old. A control thread that is busy leaves it as it is.
    async fn refresh(&mut self) {
        if self.asked.is_some_and(|asked| asked.elapsed() < NAMES_AGE) {
            return;
        }
        self.asked = Some(Instant::now());
        if let Ok(names) = self.control.port_names().await {
            self.known = names;
        }
    }
}

/// The connection's end of the channel.
struct Chunks(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = self.0.poll_recv(context);
        chunk.map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}
