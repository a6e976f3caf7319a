//! The running daemon, replaced by another version.
use super::body::parse;
use super::problem::Problem;
use super::routes::Admin;
use super::wire::{UpgradeReport, UpgradeStart};
use crate::control::ControlHandle;
use crate::handover::give::UpgradeRequest;
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use std::path::PathBuf;
use std::time::Duration;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// How long the new process may take, unless said otherwise, and at most: less than a request may.
const PATIENCE_MS: (i64, i64) = (5_000, 10_000);

/// `/v1/upgrade`.
pub fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default().routes(routes!(upgrade))
}

/// Replaces the running daemon by another version.
#[utoipa::path(
    post,
    path = "/v1/upgrade",
    request_body = UpgradeStart,
    responses(
        (status = 200, body = UpgradeReport, description = "Another process serves everything"),
        (status = 409, description = "The new process did not take over; this one goes on")
    )
)]
async fn upgrade(
    State(control): State<ControlHandle>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<UpgradeReport>, Problem> {
    let request = read(parse(&headers, body)?)?;
    Ok(Json(control.upgrade(request).await?.into()))
}

fn read(body: UpgradeStart) -> Result<UpgradeRequest, Problem> {
    let (usual, most) = PATIENCE_MS;
    let invalid = |field, reason: String, remedy: &str| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, reason)
            .about(field)
            .remedy(remedy)
    };
    let timeout_ms = body.timeout_ms.unwrap_or(usual);
    let Some(patience) = u64::try_from(timeout_ms)
        .ok()
        .filter(|_| (1..=most).contains(&timeout_ms))
    else {
        let reason = format!("{timeout_ms} ms is not between 1 and {most}");
        return Err(invalid("timeout_ms", reason, "leave it out for 5000"));
    };
    let binary = body.binary.map(PathBuf::from);
    if binary.as_ref().is_some_and(|binary| !binary.is_absolute()) {
        let reason = "the path does not begin with /".to_owned();
        return Err(invalid(
            "binary",
            reason,
            "name the program by its absolute path",
        ));
    }
    Ok(UpgradeRequest {
        binary,
        patience: Duration::from_millis(patience),
    })
}
