//! The switch's own services: their configuration, leases, neighbours and counters.
use super::body::{refuse_lists, refuse_other_media};
use super::problem::Problem;
use super::routes::Admin;
use super::tags::with_tag;
use super::wire::{IfMatchHeader, LeaseList, Neighbor, NeighborList, ServicesReport, ServicesSet};
use crate::control::services::document::{self, MAX_DOCUMENT_BYTES};
use crate::control::services::{DocumentFault, ServicesError, ServicesHandle};
use crate::control::tags::{IfMatch, tag_of};
use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use switch_core::service::ServicesConfig;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Paths below `/v1/services`.
pub fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default()
        .routes(routes!(config, set_config))
        .routes(routes!(leases))
        .routes(routes!(neighbors))
        .routes(routes!(stats))
}

/// The services of a daemon that has some.
pub struct TheServices(pub ServicesHandle);

impl FromRequestParts<Admin> for TheServices {
    type Rejection = Problem;

    async fn from_request_parts(_: &mut Parts, admin: &Admin) -> Result<Self, Problem> {
        admin.services.clone().map(Self).ok_or_else(|| {
            Problem::new(
                StatusCode::NOT_FOUND,
                "this daemon runs program l2, which has no services",
            )
            .remedy("start it with another --program, such as vpc")
        })
    }
}

/// What the switch answers by itself.
#[utoipa::path(
    get,
    path = "/v1/services",
    responses(
        (status = 200, body = ServicesConfig, description = "The configuration in effect"),
        (status = 404, description = "The daemon's program has no services")
    )
)]
async fn config(TheServices(services): TheServices) -> Response {
    let config = services.config();
    with_tag(&tag_of(&config), Json(config))
}

/// Reads, checks, stores and sets beside the thread that serves everybody; of such bodies only a few are in memory at one time.
#[utoipa::path(
    put,
    path = "/v1/services",
    params(IfMatchHeader),
    request_body = ServicesConfig,
    responses(
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 200, body = ServicesSet, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "The daemon's program has no services")
    )
)]
async fn set_config(
    State(admin): State<Admin>,
    TheServices(services): TheServices,
    if_match: IfMatch,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ServicesSet>, Problem> {
    refuse_other_media(&headers)?;
    let _permit = admin.large_bodies.acquire().await;
    let body = axum::body::to_bytes(body, MAX_DOCUMENT_BYTES)
        .await
        .map_err(|_| {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the body is larger than 8 MiB, or did not come whole",
            )
            .remedy("configure fewer interfaces, proxies or reservations")
        })?;
    let set = move || -> Result<ServicesSet, Problem> {
        refuse_lists(&body)?;
        let config = document::parse(&body)?;
        let interfaces = config.interfaces.len();
        let durable = services.set(config, &if_match)?;
        Ok(ServicesSet {
            interfaces,
            durable,
        })
    };
    let done = tokio::task::spawn_blocking(set).await.map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            .remedy("report this as a fault of Ringswitch")
    })??;
    Ok(Json(done))
}

/// DHCP leases.
#[utoipa::path(
    get,
    path = "/v1/services/leases",
    responses(
        (status = 200, body = LeaseList, description = "Leases and offers"),
        (status = 404, description = "The daemon's program has no services")
    )
)]
async fn leases(TheServices(services): TheServices) -> Json<LeaseList> {
    let leases = services.leases();
    Json(LeaseList::new(&leases, &|port| services.port_name(port)))
}

/// Neighbours of router interfaces.
#[utoipa::path(
    get,
    path = "/v1/services/neighbors",
    responses(
        (status = 200, body = NeighborList, description = "Neighbours of router interfaces"),
        (status = 404, description = "The daemon's program has no services")
    )
)]
async fn neighbors(TheServices(services): TheServices) -> Json<NeighborList> {
    let name_of = |port| services.port_name(port);
    let neighbors = services.neighbors();
    Json(NeighborList {
        neighbors: neighbors
            .iter()
            .map(|info| Neighbor::new(info, &name_of))
            .collect(),
    })
}

/// Counters of the services.
#[utoipa::path(
    get,
    path = "/v1/services/stats",
    responses(
        (status = 200, body = ServicesReport, description = "Counters of the services"),
        (status = 404, description = "The daemon's program has no services")
    )
)]
async fn stats(TheServices(services): TheServices) -> Json<ServicesReport> {
    let (stats, frames) = services.stats();
    Json(ServicesReport::new(&stats, frames))
}

const REMEDY: &str = "send a configuration as docs/services.md describes it";

impl From<DocumentFault> for Problem {
    fn from(fault: DocumentFault) -> Self {
        match fault {
            DocumentFault::Syntax(reason) => {
                Self::new(StatusCode::BAD_REQUEST, reason).remedy(REMEDY)
            }
            DocumentFault::Form { place, reason } => Self {
                field: place,
                ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, reason).remedy(REMEDY)
            },
            DocumentFault::Config(error) => ServicesError::Config(error).into(),
        }
    }
}

impl From<ServicesError> for Problem {
    fn from(error: ServicesError) -> Self {
        let detail = error.to_string();
        match error {
            ServicesError::Config(error) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.problem)
                    .about(error.place)
                    .remedy(REMEDY)
            }
            ServicesError::Store(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
                .remedy("look at the disk and at the daemon's log, then start it again"),
            ServicesError::Changed => Self::changed_since(detail),
            ServicesError::Busy => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).remedy("try again")
            }
        }
    }
}
