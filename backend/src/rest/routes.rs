//! Paths and methods. Every request becomes one command; nothing is decided here.
use super::body::parse;
use super::config::routes as config_routes;
use super::devices::routes as devices_routes;
use super::explain::routes as explain_routes;
use super::port_state::routes as port_state_routes;
use super::problem::Problem;
use super::services::routes as services_routes;
use super::tables::routes as tables_routes;
use super::upgrade::routes as upgrade_routes;
use super::wire::{Fdb, Health, MoveRequest, Moved, Port, PortList, StatsReport, WorkerList};
use crate::config::{PortConfig, PortFields, PortName};
use crate::control::services::ServicesHandle;
use crate::control::tables::Tables;
use crate::control::{AddOutcome, ControlHandle};
use crate::devices::DevicesHandle;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, FromRef, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Largest request body.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// What requests are answered from.
#[derive(Clone)]
pub struct Admin {
    /// Ports and workers.
    pub control: ControlHandle,
    /// The program's tables.
    pub tables: Option<Tables>,
    /// What answers its frames for the controller.
    pub services: Option<ServicesHandle>,
    /// Which NICs VMs shall have.
    pub devices: Option<DevicesHandle>,
    /// For bodies above [`MAX_BODY_BYTES`]: so many in memory at one time.
    pub large_bodies: Arc<Semaphore>,
}

impl FromRef<Admin> for ControlHandle {
    fn from_ref(admin: &Admin) -> Self {
        admin.control.clone()
    }
}

/// Large bodies in memory at one time.
const LARGE_BODIES: usize = 4;

/// Every route, over the control thread behind `control`, the tables, the services and the device table.
pub fn router(
    control: ControlHandle,
    tables: Option<Tables>,
    services: Option<ServicesHandle>,
    devices: Option<DevicesHandle>,
) -> Router {
    let admin = Admin {
        control,
        tables,
        services,
        devices,
        large_bodies: Arc::new(Semaphore::new(LARGE_BODIES)),
    };
    Router::new()
        .route("/healthz", get(health))
        .route("/v1/ports", get(list_ports).post(add_port))
        .route("/v1/ports/{name}", get(show_port).delete(remove_port))
        .route("/v1/ports/{name}/move", post(move_port))
        .route("/v1/workers", get(list_workers))
        .route("/v1/stats", get(stats))
        .route("/v1/fdb", get(fdb))
        .merge(tables_routes())
        .merge(explain_routes())
        .merge(services_routes())
        .merge(port_state_routes())
        .merge(upgrade_routes())
        .merge(config_routes())
        .merge(devices_routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(admin)
}

/// Healthy means that the control thread answers; a worker that dies takes the process with it.
async fn health(State(control): State<ControlHandle>) -> Result<Json<Health>, Problem> {
    control.ping().await?;
    Ok(Json(Health {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }))
}

async fn list_ports(State(control): State<ControlHandle>) -> Result<Json<PortList>, Problem> {
    let ports = control.list_ports().await?;
    Ok(Json(PortList {
        ports: ports.into_iter().map(Port::from).collect(),
    }))
}

async fn add_port(
    State(control): State<ControlHandle>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let port = PortConfig::from_fields(parse::<PortFields>(&headers, body)?)?;
    let location = format!("/v1/ports/{}", port.name);
    Ok(match control.add_port(port).await? {
        AddOutcome::Added(view) => (
            StatusCode::CREATED,
            [(header::LOCATION, location)],
            Json(Port::from(view)),
        )
            .into_response(),
        AddOutcome::AlreadyThere(view) => Json(Port::from(view)).into_response(),
    })
}

async fn show_port(
    State(control): State<ControlHandle>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Port>, Problem> {
    let view = control.show_port(port_name(name)?).await?;
    Ok(Json(view.into()))
}

async fn remove_port(
    State(control): State<ControlHandle>,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    control.remove_port(port_name(name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn move_port(
    State(control): State<ControlHandle>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Moved>, Problem> {
    let MoveRequest { pair, worker } = parse(&headers, body)?;
    let moved = control.move_port(port_name(name)?, pair, worker).await?;
    Ok(Json(Moved {
        sources: moved.into_iter().map(Into::into).collect(),
    }))
}

async fn list_workers(State(control): State<ControlHandle>) -> Result<Json<WorkerList>, Problem> {
    Ok(Json(control.list_workers().await?.into()))
}

async fn stats(State(control): State<ControlHandle>) -> Result<Json<StatsReport>, Problem> {
    Ok(Json(control.stats().await?.into()))
}

async fn fdb(State(control): State<ControlHandle>) -> Result<Json<Fdb>, Problem> {
    let entries = control.fdb().await?;
    Ok(Json(Fdb {
        entries: entries.into_iter().map(Into::into).collect(),
    }))
}

async fn no_such_path(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is nothing at {}", uri.path()),
    )
    .remedy(
        "use one of the paths that docs/rest.md lists, such as /healthz, /v1/ports or /v1/tables",
    )
}

async fn no_such_method(method: Method, uri: Uri) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", uri.path()),
    )
    .remedy("use one of the methods in the Allow header")
}

/// A name that cannot be a port's is the name of no port.
pub(super) fn port_name(name: Result<Path<String>, PathRejection>) -> Result<PortName, Problem> {
    let Path(name) = name.map_err(|rejection| {
        Problem::new(StatusCode::BAD_REQUEST, rejection.body_text())
            .about("name")
            .remedy("percent-encode UTF-8")
    })?;
    PortName::parse(&name).map_err(|invalid| Problem::with_status(StatusCode::NOT_FOUND, invalid))
}
