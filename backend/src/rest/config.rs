//! What runs beside the configuration file.
use super::problem::Problem;
use super::routes::Admin;
use super::wire::{ConfigDiff, ConfigReport};
use crate::config::ConfigFile;
use crate::control::ControlHandle;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};

/// Paths below `/v1/config`.
pub fn routes() -> Router<Admin> {
    Router::new()
        .route("/v1/config", get(report))
        .route("/v1/config/diff", get(diff))
        .route("/v1/config/saved", post(saved))
}

async fn report(State(control): State<ControlHandle>) -> Result<Json<ConfigReport>, Problem> {
    Ok(Json(control.config().await?.into()))
}

async fn diff(State(control): State<ControlHandle>) -> Result<Json<ConfigDiff>, Problem> {
    Ok(Json(control.config().await?.into()))
}

/// Reads the file again, beside the thread that serves everybody: what it has now is what ports are compared with.
async fn saved(State(control): State<ControlHandle>) -> Result<Json<ConfigDiff>, Problem> {
    let Some(path) = control.config().await?.file else {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "the daemon was started without a configuration file",
        )
        .remedy("start it with --config FILE"));
    };
    let file = tokio::task::spawn_blocking(move || ConfigFile::read(&path))
        .await
        .map_err(|error| {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
                .remedy("report this as a fault of Ringswitch")
        })?
        .map_err(|error| {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
                .remedy("correct the file; `ringswitch check` says when it can be read")
        })?;
    control.config_saved(file).await?;
    Ok(Json(control.config().await?.into()))
}
