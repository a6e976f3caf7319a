//! Paths and methods. Every request becomes one command; nothing is decided here.
use super::batch::routes as batch_routes;
use super::body::parse;
use super::capture::routes as capture_routes;
use super::config::routes as config_routes;
use super::devices::routes as devices_routes;
use super::events::{MAX_STREAMS, routes as events_routes};
use super::explain::routes as explain_routes;
use super::flows::routes as flows_routes;
use super::metrics::{BusyRatios, routes as metrics_routes};
use super::openapi;
use super::page::{self, FdbPlace};
use super::port_state::routes as port_state_routes;
use super::problem::Problem;
use super::services::routes as services_routes;
use super::tables::routes as tables_routes;
use super::tags::{conditions, with_tag};
use super::upgrade::routes as upgrade_routes;
use super::web_page::routes as page_routes;
use super::wire::{
    Fdb, FdbPage, Health, IfMatchHeader, MoveRequest, Moved, Port, PortList, PortPath, PortsPage,
    StatsReport, WorkerList,
};
use crate::config::{PortConfig, PortFields, PortName};
use crate::control::services::ServicesHandle;
use crate::control::tables::Tables;
use crate::control::tags::IfMatch;
use crate::control::{AddOutcome, ControlHandle, FdbEntry};
use crate::devices::DevicesHandle;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRef, Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use std::sync::Arc;
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

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
    /// For streams of events: so many at one time.
    pub streams: Arc<Semaphore>,
    /// What workers' busy ratios are measured against.
    pub busy_ratios: Arc<BusyRatios>,
    /// Which NICs VMs shall have.
    pub devices: Option<DevicesHandle>,
    /// For bodies above [`MAX_BODY_BYTES`]: so many in memory at one time.
    pub large_bodies: Arc<Semaphore>,
    /// For answers as large, until they are sent.
    pub large_answers: Arc<Semaphore>,
    /// For what takes the tables for as long as a frame's explanation.
    pub explanations: Arc<Semaphore>,
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
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        busy_ratios: Arc::default(),
        devices,
        large_bodies: Arc::new(Semaphore::new(LARGE_BODIES)),
        large_answers: Arc::new(Semaphore::new(LARGE_BODIES)),
        explanations: Arc::new(Semaphore::new(1)),
    };
    let (routes, _) = every_route().split_for_parts();
    routes
        .merge(page_routes())
        .route("/openapi.json", openapi::served())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(axum::middleware::from_fn(conditions))
        .with_state(admin)
}

/// The interface as an OpenAPI document, of which docs/openapi.json is a copy.
pub fn openapi() -> String {
    openapi::text(every_route().get_openapi())
}

/// Every path that is described.
fn every_route() -> OpenApiRouter<Admin> {
    OpenApiRouter::with_openapi(openapi::opening())
        .routes(routes!(health))
        .routes(routes!(list_ports, add_port))
        .routes(routes!(show_port, remove_port))
        .routes(routes!(move_port))
        .routes(routes!(list_workers))
        .routes(routes!(stats))
        .routes(routes!(fdb))
        .merge(tables_routes())
        .merge(explain_routes())
        .merge(flows_routes())
        .merge(services_routes())
        .merge(port_state_routes())
        .merge(upgrade_routes())
        .merge(config_routes())
        .merge(events_routes())
        .merge(metrics_routes())
        .merge(capture_routes())
        .merge(devices_routes())
        .merge(batch_routes())
}

/// Whether the daemon is at work: the control thread answers; a worker that dies takes the process with it.
#[utoipa::path(
    get,
    path = "/healthz",
    responses(
        (status = 200, body = Health, description = "The control thread answers")
    )
)]
async fn health(State(control): State<ControlHandle>) -> Result<Json<Health>, Problem> {
    control.ping().await?;
    Ok(Json(Health {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }))
}

/// Every port.
#[utoipa::path(
    get,
    path = "/v1/ports",
    params(PortsPage),
    responses(
        (status = 200, body = PortList, description = "Every port, by id")
    )
)]
async fn list_ports(
    State(control): State<ControlHandle>,
    page: Result<Query<PortsPage>, QueryRejection>,
) -> Result<Json<PortList>, Problem> {
    let PortsPage { after, limit } = page::query(page)?;
    let ports = control.list_ports().await?.into_iter().map(Port::from);
    let rest = ports.filter(|port| after.is_none_or(|after| port.id > after));
    let (ports, next) = page::cut(rest, limit, |port: &Port| port.id)?;
    Ok(Json(PortList { ports, next }))
}

/// Adds a port. The same port again changes nothing.
#[utoipa::path(
    post,
    path = "/v1/ports",
    request_body = PortFields,
    responses(
        (status = 201, body = Port, description = "The port is there now"),
        (status = 200, body = Port, description = "The very same port was there already"),
        (status = 409, description = "Another port has this name, socket or interface, or there are 1024 ports; nothing has changed")
    )
)]
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

/// One port.
#[utoipa::path(
    get,
    path = "/v1/ports/{name}",
    params(PortPath),
    responses(
        (status = 200, body = Port, description = "The port")
    )
)]
async fn show_port(
    State(control): State<ControlHandle>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let view = control.show_port(port_name(name)?).await?;
    Ok(with_tag(&view.tag(), Json(Port::from(view))))
}

/// Removes a port.
#[utoipa::path(
    delete,
    path = "/v1/ports/{name}",
    params(PortPath, IfMatchHeader),
    responses(
        (status = 204, description = "Nothing of the port is left"),
        (status = 412, description = "If-Match: the port is not as it was; nothing has changed")
    )
)]
async fn remove_port(
    State(control): State<ControlHandle>,
    name: Result<Path<String>, PathRejection>,
    if_match: IfMatch,
) -> Result<StatusCode, Problem> {
    control.remove_port_if(port_name(name)?, if_match).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has a port, or one of its queue pairs, served by another worker.
#[utoipa::path(
    post,
    path = "/v1/ports/{name}/move",
    params(PortPath),
    request_body = MoveRequest,
    responses(
        (status = 200, body = Moved, description = "What was meant, and where it is now")
    )
)]
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

/// The workers and what they serve.
#[utoipa::path(
    get,
    path = "/v1/workers",
    responses(
        (status = 200, body = WorkerList, description = "Every worker, and every source")
    )
)]
async fn list_workers(State(control): State<ControlHandle>) -> Result<Json<WorkerList>, Problem> {
    Ok(Json(control.list_workers().await?.into()))
}

/// The counters of ports and workers.
#[utoipa::path(
    get,
    path = "/v1/stats",
    responses(
        (status = 200, body = StatsReport, description = "Every counter")
    )
)]
async fn stats(State(control): State<ControlHandle>) -> Result<Json<StatsReport>, Problem> {
    Ok(Json(control.stats().await?.into()))
}

/// Learnt addresses.
#[utoipa::path(
    get,
    path = "/v1/fdb",
    params(FdbPage),
    responses(
        (status = 200, body = Fdb, description = "Every learnt address")
    )
)]
async fn fdb(
    State(control): State<ControlHandle>,
    page: Result<Query<FdbPage>, QueryRejection>,
) -> Result<Json<Fdb>, Problem> {
    let FdbPage { after, limit } = page::query(page)?;
    let after = after.as_deref().map(FdbPlace::parse).transpose()?;
    let mut entries = control.fdb().await?;
    entries.sort_by_key(FdbPlace::of);
    let rest = entries
        .into_iter()
        .filter(|entry| after.is_none_or(|after| FdbPlace::of(entry) > after));
    let place = |entry: &FdbEntry| FdbPlace::of(entry).to_string();
    let (entries, next) = page::cut(rest, limit, place)?;
    let entries = entries.into_iter().map(Into::into).collect();
    Ok(Json(Fdb { entries, next }))
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
