//! Paths and methods. Every request becomes one command; nothing is decided here.
use super::problem::Problem;
use super::wire::{
    Fdb, Health, MoveRequest, Moved, NewPort, Port, PortList, StatsReport, WorkerList,
};
use crate::config::{PortConfig, PortName};
use crate::control::{AddOutcome, ControlHandle};
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;

/// Largest request body.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// Every route, over the control thread behind `control`.
pub fn router(control: ControlHandle) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/v1/ports", get(list_ports).post(add_port))
        .route("/v1/ports/{name}", get(show_port).delete(remove_port))
        .route("/v1/ports/{name}/move", post(move_port))
        .route("/v1/workers", get(list_workers))
        .route("/v1/stats", get(stats))
        .route("/v1/fdb", get(fdb))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(control)
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
    let port = PortConfig::from_fields(parse::<NewPort>(&headers, body)?.into())?;
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
    .remedy("use /healthz, /v1/ports, /v1/ports/{name}, /v1/ports/{name}/move, /v1/workers, /v1/stats or /v1/fdb")
}

async fn no_such_method(method: Method, uri: Uri) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", uri.path()),
    )
    .remedy("use one of the methods in the Allow header")
}

/// A name that cannot be a port's is the name of no port.
fn port_name(name: Result<Path<String>, PathRejection>) -> Result<PortName, Problem> {
    let Path(name) = name.map_err(|rejection| {
        Problem::new(StatusCode::BAD_REQUEST, rejection.body_text())
            .about("name")
            .remedy("percent-encode UTF-8")
    })?;
    PortName::parse(&name).map_err(|invalid| Problem::with_status(StatusCode::NOT_FOUND, invalid))
}

/// A request's body.
fn parse<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<T, Problem> {
    if !is_json(headers) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body is not declared as JSON",
        )
        .remedy("send the header Content-Type: application/json"));
    }
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is larger than 64 KiB",
        )
        .remedy("what a request asks for is a few hundred bytes: send that alone"),
        status => Problem::new(status, rejection.body_text()).remedy("send the whole body"),
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        let status = match error.classify() {
            serde_json::error::Category::Data => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::BAD_REQUEST,
        };
        let problem = Problem::new(status, error.to_string())
            .remedy("send one JSON object as docs/rest.md describes it");
        match field_at_fault::<T>(&body) {
            Some(field) => problem.about(field),
            None => problem,
        }
    })
}

/// The first field that is unknown or of a wrong type by itself; `None` when the object as a whole is at fault.
fn field_at_fault<T: DeserializeOwned>(body: &[u8]) -> Option<String> {
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body).ok()?;
    fields.into_iter().find_map(|(name, value)| {
        let alone = serde_json::Map::from_iter([(name.clone(), value)]);
        serde_json::from_value::<T>(alone.into())
            .is_err()
            .then_some(name)
    })
}

/// JSON, or nothing said: RFC 9110 §8.3 lets the recipient assume.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else {
        return true;
    };
    let media_type = content_type
        .to_str()
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    media_type.eq_ignore_ascii_case("application/json")
}
