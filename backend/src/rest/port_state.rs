//! A port's state as bytes: read, and given to a port.
use super::openapi::Octets;
use super::problem::Problem;
use super::routes::{Admin, port_name};
use super::wire::PortPath;
use crate::control::port_state::{BlobError, Conflicts, ImportError, Imported, MAX_BYTES, blob};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::Full;
use hyper::body::{Frame, SizeHint};
use serde::Deserialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The media type: its format is `control::port_state::blob`'s.
const MEDIA_TYPE: &str = "application/octet-stream";

/// Paths of ports' states.
pub fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default().routes(routes!(export, import))
}

/// How a state is imported.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct How {
    /// What becomes of entries that are there and say something else.
    #[param(inline)]
    conflicts: ConflictsText,
}

/// See [`Conflicts`].
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ConflictsText {
    #[default]
    Refuse,
    Replace,
    Keep,
}

/// A body that counts for as long as it is being sent.
struct Sent {
    whole: Full<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.whole).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.whole.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.whole.size_hint()
    }
}

/// What the switch knows of a port.
#[utoipa::path(
    get,
    path = "/v1/ports/{name}/state",
    params(PortPath),
    responses(
        (status = 200, body = Octets, content_type = "application/octet-stream", description = "The state, to be given to another port"),
        (status = 413, description = "It is larger than 64 MiB")
    )
)]
async fn export(
    State(admin): State<Admin>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let (port, states) = admin.control.port_states(port_name(name)?).await?;
    let permit = admin.large_answers.clone().try_acquire_owned();
    let permit = permit.map_err(|_| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "as many states as may be in memory are on their way to clients",
        )
        .remedy("try again")
    })?;
    let tables = admin.tables.clone();
    let written = apart(move || blob::write(&states.export(&port, tables.as_ref()))).await?;
    let bytes = Bytes::from(written.map_err(ImportError::from)?);
    let body = Body::new(Sent {
        whole: Full::new(bytes),
        _permit: permit,
    });
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response())
}

/// Gives a port what another had: all of it or nothing.
#[utoipa::path(
    put,
    path = "/v1/ports/{name}/state",
    params(PortPath, How),
    request_body(content = Octets, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = Imported, description = "What was done with it"),
        (status = 409, description = "Something is there and says something else; nothing has changed")
    )
)]
async fn import(
    State(admin): State<Admin>,
    name: Result<Path<String>, PathRejection>,
    how: Result<Query<How>, QueryRejection>,
    body: Body,
) -> Result<Json<Imported>, Problem> {
    let Query(how) = how.map_err(|rejection| {
        Problem::new(StatusCode::BAD_REQUEST, rejection.body_text())
            .about("conflicts")
            .remedy("use conflicts=refuse, replace or keep")
    })?;
    let conflicts = match how.conflicts {
        ConflictsText::Refuse => Conflicts::Refuse,
        ConflictsText::Replace => Conflicts::Replace,
        ConflictsText::Keep => Conflicts::Keep,
    };
    let (port, states) = admin.control.port_states(port_name(name)?).await?;
    let _permit = admin.large_bodies.acquire().await.ok();
    let bytes = axum::body::to_bytes(body, MAX_BYTES).await.map_err(|_| {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is larger than 64 MiB, or did not come whole",
        )
        .remedy("send what was exported, at once")
    })?;
    let tables = admin.tables.clone();
    let imported = apart(move || {
        let state = blob::read(&bytes)?;
        drop(bytes);
        states.import(&port, &state, (tables.as_ref(), conflicts))
    });
    Ok(Json(imported.await??))
}

/// On a thread of its own: it may take a while.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            .remedy("report this as a fault of Ringswitch")
    })
}

impl From<ImportError> for Problem {
    fn from(error: ImportError) -> Self {
        let status = match &error {
            ImportError::Blob(BlobError::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            ImportError::Blob(_) | ImportError::Connection(_) => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::CONFLICT,
        };
        let (detail, remedy) = (error.to_string(), error.remedy());
        match error {
            // An update of the batch is none that the client has sent.
            ImportError::Refused(refusal) => Self {
                update: None,
                ..refusal.into()
            },
            _ => Self::new(status, detail).remedy(remedy),
        }
    }
}
