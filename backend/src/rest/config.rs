//! What runs beside the configuration file.
use super::problem::Problem;
use super::routes::Admin;
use super::wire::{ConfigDiff, ConfigReport};
use crate::config::ConfigFile;
use crate::control::ControlHandle;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Paths below `/v1/config`.
pub fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default()
        .routes(routes!(report))
        .routes(routes!(diff))
        .routes(routes!(saved))
}

/// What runs, by name.
#[utoipa::path(
    get,
    path = "/v1/config",
    responses(
        (status = 200, body = ConfigReport, description = "What runs")
    )
)]
async fn report(State(control): State<ControlHandle>) -> Result<Json<ConfigReport>, Problem> {
    Ok(Json(control.config().await?.into()))
}

/// What runs otherwise than the configuration file has it.
#[utoipa::path(
    get,
    path = "/v1/config/diff",
    responses(
        (status = 200, body = ConfigDiff, description = "Every difference")
    )
)]
async fn diff(State(admin): State<Admin>) -> Result<Json<ConfigDiff>, Problem> {
    difference(&admin).await.map(Json)
}

/// But for the ports that come and go with their devices, which the file has nothing to say about.
async fn difference(admin: &Admin) -> Result<ConfigDiff, Problem> {
    let mut view = admin.control.config().await?;
    if let Some(devices) = &admin.devices {
        for device in devices.list().await? {
            view.leave_to_its_device(device.device.name());
        }
    }
    Ok(view.into())
}

/// Reads the file again, beside the thread that serves everybody: what it has now is what ports are compared with.
#[utoipa::path(
    post,
    path = "/v1/config/saved",
    responses(
        (status = 200, body = ConfigDiff, description = "What differs still"),
        (status = 409, description = "The daemon was started without a configuration file"),
        (status = 422, description = "The file is refused")
    )
)]
async fn saved(State(admin): State<Admin>) -> Result<Json<ConfigDiff>, Problem> {
    let control = &admin.control;
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
    difference(&admin).await.map(Json)
}
