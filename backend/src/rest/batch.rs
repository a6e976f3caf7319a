//! Ports and table entries in one go, all or nothing.
use super::body::{not_what_was_asked, refuse_lists, refuse_other_media};
use super::problem::Problem;
use super::routes::Admin;
use super::tables::MAX_BATCH_BYTES;
use super::wire::{AtomicBatch, AtomicBatchDone, PortOperation};
use crate::config::{InvalidField, PortConfig, PortName};
use crate::control::batch::{Batch, BatchError, MAX_PORT_CHANGES, PortStep};
use crate::control::tables::MAX_BATCH_UPDATES;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// `/v1/batch`.
pub fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default().routes(routes!(batch))
}

/// Adds and removes ports and changes tables: all of it, as one durable transaction, or nothing.
#[utoipa::path(
    post,
    path = "/v1/batch",
    request_body = AtomicBatch,
    responses(
        (status = 200, body = AtomicBatchDone, description = "All of it is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such port, table, entry or array; nothing has changed"),
        (status = 409, description = "Something is there already, is another's, or is full; nothing has changed")
    )
)]
async fn batch(
    State(admin): State<Admin>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<AtomicBatchDone>, Problem> {
    refuse_other_media(&headers)?;
    let permit = admin.large_bodies.clone().acquire_owned().await.ok();
    let body = axum::body::to_bytes(body, MAX_BATCH_BYTES)
        .await
        .map_err(|_| {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the body is larger than 64 MiB, or did not come whole",
            )
            .remedy("send several batches, if they need not be one")
        })?;
    let read = move || {
        let _permit = permit;
        read(&body)
    };
    let batch = tokio::task::spawn_blocking(read).await.map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            .remedy("report this as a fault of Ringswitch")
    })??;
    let done = admin.control.batch(batch).await?;
    Ok(Json(done.into()))
}

fn read(body: &[u8]) -> Result<Batch, Problem> {
    let AtomicBatch { ports, updates } =
        serde_json::from_slice(body).map_err(|error| not_what_was_asked(&error))?;
    refuse_lists(body)?;
    let too_many = |field: &str, count: usize, most: usize| {
        let detail = format!("{count} are more than {most}");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
            .about(field)
            .remedy("send several batches, if they need not be one")
    };
    if ports.len() > MAX_PORT_CHANGES {
        return Err(too_many("ports", ports.len(), MAX_PORT_CHANGES));
    }
    if updates.len() > MAX_BATCH_UPDATES {
        return Err(too_many("updates", updates.len(), MAX_BATCH_UPDATES));
    }
    let ports = ports.into_iter().enumerate().map(|(index, operation)| {
        let (kind, step) = match operation {
            PortOperation::Add(fields) => {
                ("add", PortConfig::from_fields(fields).map(PortStep::Add))
            }
            PortOperation::Remove { name } => {
                ("remove", PortName::parse(&name).map(PortStep::Remove))
            }
        };
        step.map_err(|invalid: InvalidField| {
            let field = format!("ports[{index}].{kind}.{}", invalid.field);
            Problem::from(invalid).about(field)
        })
    });
    Ok(Batch {
        ports: ports.collect::<Result<_, _>>()?,
        updates,
    })
}

impl From<BatchError> for Problem {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Port(index, error) => {
                let problem = Self::from(error);
                let field = problem.field.clone().unwrap_or_default();
                problem.about(format!("ports[{index}].{field}"))
            }
            BatchError::Twice(index) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "another operation of the batch names the same port",
            )
            .about(format!("ports[{index}]"))
            .remedy("name each port once; replace a port with two batches"),
            BatchError::Tables(refusal) => refusal.into(),
            BatchError::NoTables => Self::new(StatusCode::NOT_FOUND, error.to_string())
                .about("updates")
                .remedy("start it with --program"),
            BatchError::Whole(error) => error.into(),
        }
    }
}
