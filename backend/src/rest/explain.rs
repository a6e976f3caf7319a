//! What would happen to a frame, what lately happened to frames of a port, and what every drop reason means.
use super::body::parse;
use super::problem::Problem;
use super::routes::{Admin, port_name};
use super::tables::TheTables;
use super::wire::{ExplainBody, Explained, LastDrops, PortPath, Reason, ReasonList, TracedFrame};
use crate::config::PortName;
use crate::control::frames::encoding::{from_base64, from_hex, to_hex};
use crate::control::frames::{MAX_FRAME_BYTES, capture, flow};
use crate::control::tables::Tables;
use crate::control::{ControlHandle, PortId};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use switch_core::DropReason;
use switch_core::engine::control::Update;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

/// Largest request: a capture of some hundred frames, and a batch to try.
pub const MAX_EXPLAIN_BYTES: usize = 1024 * 1024;
/// Frames of a capture that are explained.
pub const MAX_EXPLAINED: usize = 100;
/// Updates that are tried for one request: those of the batch, for each frame anew.
const MAX_WORK: usize = 50_000;

/// Paths below `/v1` that explain.
pub fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default()
        .routes(routes!(explain).layer(DefaultBodyLimit::max(MAX_EXPLAIN_BYTES)))
        .routes(routes!(last_drops))
        .routes(routes!(reasons))
}

/// What would happen to a frame, step by step.
#[utoipa::path(
    post,
    path = "/v1/explain",
    request_body = ExplainBody,
    responses(
        (status = 200, body = Explained, description = "The way of each frame"),
        (status = 404, description = "There is no such port, or no program with tables"),
        (status = 409, description = "The batch to try cannot be; nothing has changed")
    )
)]
async fn explain(
    State(admin): State<Admin>,
    TheTables(tables): TheTables,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Explained>, Problem> {
    let request: ExplainBody = parse(&headers, body)?;
    let port = port_id(&admin.control, PortName::parse(&request.port)?).await?;
    let frames = frames_of(&request)?;
    let work = frames.len().saturating_mul(request.what_if.len());
    if work > MAX_WORK {
        let detail =
            format!("{work} updates to try, for all frames together, are more than {MAX_WORK}");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
            .about("what_if")
            .remedy("try fewer updates, or fewer frames at a time"));
    }
    // Beside the thread that serves everybody, and one after the other: each takes the tables for a moment.
    let _permit = admin.explanations.acquire().await;
    let traced = move || explained(&tables, port, &frames, &request.what_if);
    let done = tokio::task::spawn_blocking(traced).await;
    let traces = done.map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            .remedy("report this as a fault of Ringswitch")
    })??;
    Ok(Json(Explained { traces }))
}

fn explained(
    tables: &Tables,
    port: PortId,
    frames: &[Vec<u8>],
    what_if: &[Update],
) -> Result<Vec<TracedFrame>, Problem> {
    let traced = frames.iter().map(|frame| {
        let trace = tables.explain(port, frame, what_if);
        let trace = trace.map_err(|error| Problem {
            field: Some(format!("what_if.{}", error.place)),
            ..Problem::from(error)
        })?;
        let frame = to_hex(frame);
        Ok(TracedFrame { frame, trace })
    });
    traced.collect()
}

/// Exactly one of the ways to give frames.
fn frames_of(request: &ExplainBody) -> Result<Vec<Vec<u8>>, Problem> {
    let refuse = |field: &'static str, reason: String, remedy: &str| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, reason)
            .about(field)
            .remedy(remedy)
    };
    match (&request.frame, &request.flow, &request.pcap) {
        (Some(hex), None, None) => match from_hex(hex) {
            Some(frame) if frame.len() <= MAX_FRAME_BYTES => Ok(vec![frame]),
            _ => Err(refuse(
                "frame",
                "it is not a frame in hex".to_owned(),
                "write two hex digits for each byte, from the destination address on",
            )),
        },
        (None, Some(text), None) => flow::frame(text)
            .map(|frame| vec![frame])
            .map_err(|error| refuse("flow", error.to_string(), "docs/tables.md shows every form")),
        (None, None, Some(coded)) => {
            let file = from_base64(coded).ok_or_else(|| {
                refuse(
                    "pcap",
                    "it is not base64".to_owned(),
                    "send the file as RFC 4648 base64, with its padding",
                )
            })?;
            let frames = capture::frames(&file, MAX_EXPLAINED).map_err(|error| {
                refuse(
                    "pcap",
                    error.to_string(),
                    "send a capture of Ethernet frames",
                )
            })?;
            Ok(frames.into_iter().map(<[u8]>::to_vec).collect())
        }
        _ => Err(refuse(
            "frame",
            "there is none, or more than one, of frame, flow and pcap".to_owned(),
            "send exactly one of them",
        )),
    }
}

/// The latest frames that were dropped at a port.
#[utoipa::path(
    get,
    path = "/v1/ports/{name}/last-drops",
    params(PortPath),
    responses(
        (status = 200, body = LastDrops, description = "Newest first")
    )
)]
async fn last_drops(
    State(control): State<ControlHandle>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<LastDrops>, Problem> {
    let drops = control.last_drops(port_name(name)?).await?;
    Ok(Json(LastDrops {
        drops: drops.into_iter().map(Into::into).collect(),
    }))
}

async fn port_id(control: &ControlHandle, name: PortName) -> Result<PortId, Problem> {
    Ok(control.show_port(name).await.map(|view| view.id)?)
}

/// Every reason to drop a frame, with what to do about it.
#[utoipa::path(
    get,
    path = "/v1/drop-reasons",
    responses(
        (status = 200, body = ReasonList, description = "Every reason")
    )
)]
async fn reasons() -> Json<ReasonList> {
    Json(all_reasons())
}

/// Every reason to drop a frame.
pub fn all_reasons() -> ReasonList {
    let reason = |reason: DropReason| Reason {
        name: reason.name().to_owned(),
        meaning: reason.meaning().to_owned(),
        advice: reason.advice().to_owned(),
    };
    ReasonList {
        reasons: DropReason::ALL.into_iter().map(reason).collect(),
    }
}
