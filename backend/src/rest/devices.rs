//! The virtual-device table: which NICs which VM shall have.
use super::body::parse;
use super::page;
use super::problem::Problem;
use super::routes::Admin;
use super::tags::with_tag;
use super::wire::{DeviceList, DevicePath, DeviceReport, IfMatchHeader};
use crate::config::{InvalidField, PortName};
use crate::control::tags::IfMatch;
use crate::devices::handle::{AddOutcome, RemoveOrder};
use crate::devices::status::Removal;
use crate::devices::{DeviceFields, DeviceState, DeviceView, DevicesHandle};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::time::Duration;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// How long a guest may take to let go of a device, unless said otherwise, and at most.
const TIMEOUT_MS: (i64, i64) = (10_000, 600_000);
/// How long an answer waits for a removal: longer than a guest may usually take, and less than a request may.
const WAIT: Duration = Duration::from_secs(12);

/// Every route of devices.
pub fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default()
        .routes(routes!(list, add))
        .routes(routes!(show, remove))
}

/// Which devices are listed.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Those of the VM behind this socket.
    vm: Option<String>,
    /// Those in this state.
    state: Option<String>,
    /// Those of this model.
    model: Option<String>,
    /// Those whose names are behind this one: `next` of the page before.
    after: Option<String>,
    /// How many; all when absent.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<u32>,
}

/// How a device goes.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RemoveQuery {
    /// Whether it goes although its guest does not let go of it in time.
    force: Option<bool>,
    /// How long the guest may take, 0 to 600,000; 10,000 when absent.
    #[param(minimum = 0, maximum = 600_000)]
    timeout_ms: Option<i64>,
}

/// Devices, as they shall be and as they fare.
#[utoipa::path(
    get,
    path = "/v1/devices",
    params(Filter),
    responses(
        (status = 200, body = DeviceList, description = "Those that were asked for, by name"),
        (status = 422, description = "There is no such state")
    )
)]
async fn list(
    State(admin): State<Admin>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<DeviceList>, Problem> {
    let Query(filter) = filter.map_err(|error| bad_query(&error))?;
    if let Some(state) = &filter.state
        && !DeviceState::ALL.iter().any(|known| known.name() == state)
    {
        let names: Vec<&str> = DeviceState::ALL.iter().map(|state| state.name()).collect();
        return Err(
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "there is no such state")
                .about("state")
                .remedy(format!("use one of {}", names.join(", "))),
        );
    }
    let views = devices(&admin)?.list().await?;
    let listed = views.into_iter().filter(|view| filter.has(view));
    let name = |view: &DeviceView| view.device.name().to_string();
    let (listed, next) = page::cut(listed, filter.limit, name)?;
    Ok(Json(DeviceList {
        devices: listed.into_iter().map(Into::into).collect(),
        next,
    }))
}

impl Filter {
    fn has(&self, view: &DeviceView) -> bool {
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == found)
        };
        is(&self.vm, &view.device.vm.socket.to_string())
            && is(&self.state, view.actual.status().state.name())
            && is(&self.model, view.device.model.name())
            && self
                .after
                .as_ref()
                .is_none_or(|after| view.device.name().as_str() > after.as_str())
    }
}

/// Adds a device: its VM is given it as soon as it runs. The very same one is there once.
#[utoipa::path(
    post,
    path = "/v1/devices",
    request_body = DeviceFields,
    responses(
        (status = 201, body = DeviceReport, description = "It is in the table", headers(("Location" = String, description = "Where it is shown"))),
        (status = 200, body = DeviceReport, description = "The very same was there"),
        (status = 409, description = "Another of that name, address, socket or port is there")
    )
)]
async fn add(
    State(admin): State<Admin>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let fields: DeviceFields = parse(&headers, body)?;
    Ok(match devices(&admin)?.add(fields).await? {
        AddOutcome::Added(view) => {
            let location = format!("/v1/devices/{}", view.device.name());
            let report = Json(DeviceReport::from(view));
            (StatusCode::CREATED, [(header::LOCATION, location)], report).into_response()
        }
        AddOutcome::AlreadyThere(view) => Json(DeviceReport::from(view)).into_response(),
    })
}

/// A device, as it shall be and as it fares.
#[utoipa::path(
    get,
    path = "/v1/devices/{name}",
    params(DevicePath),
    responses(
        (status = 200, body = DeviceReport, description = "The device"),
        (status = 404, description = "There is no such device")
    )
)]
async fn show(
    State(admin): State<Admin>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let view = devices(&admin)?.show(device_name(name)?).await?;
    let tag = view.device.tag();
    Ok(with_tag(&tag, Json(DeviceReport::from(view))))
}

/// Removes a device: its guest is asked to let go of it.
#[utoipa::path(
    delete,
    path = "/v1/devices/{name}",
    params(DevicePath, RemoveQuery, IfMatchHeader),
    responses(
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 204, description = "Nothing of it is left"),
        (status = 202, body = DeviceReport, description = "It takes longer: how it fares"),
        (status = 404, description = "There is no such device"),
        (status = 422, description = "The time is out of bounds")
    )
)]
async fn remove(
    State(admin): State<Admin>,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<RemoveQuery>, QueryRejection>,
    if_match: IfMatch,
) -> Result<Response, Problem> {
    let name = device_name(name)?;
    let Query(query) = query.map_err(|error| bad_query(&error))?;
    let removal = removal(&query)?;
    let devices = devices(&admin)?;
    let order = RemoveOrder {
        name: name.clone(),
        removal,
        if_match,
    };
    devices.remove(order).await?;
    Ok(match devices.wait_gone(&name, WAIT).await? {
        None => StatusCode::NO_CONTENT.into_response(),
        Some(view) => (StatusCode::ACCEPTED, Json(DeviceReport::from(view))).into_response(),
    })
}

fn removal(query: &RemoveQuery) -> Result<Removal, Problem> {
    let (usual, most) = TIMEOUT_MS;
    let timeout_ms = query.timeout_ms.unwrap_or(usual);
    let timeout = u64::try_from(timeout_ms)
        .ok()
        .filter(|_| timeout_ms <= most)
        .ok_or_else(|| {
            InvalidField::new(
                "timeout_ms",
                format!("{timeout_ms} is out of bounds"),
                format!("use a whole number from 0 to {most}"),
            )
        })?;
    Ok(Removal {
        force: query.force.unwrap_or(false),
        timeout: Duration::from_millis(timeout),
    })
}

fn devices(admin: &Admin) -> Result<&DevicesHandle, Problem> {
    admin.devices.as_ref().ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "this daemon has no device table")
            .remedy("ask another one")
    })
}

/// A name that cannot be a device's is the name of none.
fn device_name(name: Result<Path<String>, PathRejection>) -> Result<PortName, Problem> {
    super::routes::port_name(name)
}

fn bad_query(error: &QueryRejection) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, error.body_text())
        .remedy("use the parameters that docs/rest.md lists")
}
