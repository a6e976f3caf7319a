//! The program, its tables, and what belongs to them: paths and methods. A change becomes one batch; nothing is decided here.
use super::body::{not_what_was_asked, parse, refuse_other_media};
use super::problem::Problem;
use super::routes::{Admin, MAX_BODY_BYTES};
use super::wire::{
    AsideList, Batch, BatchDone, ConnectionList, CountRow, CounterList, Discarded, EntryBody,
    EntryNameBody, EntryPage, GroupBody, GroupList, MeterList, MulticastBody, MulticastList, Page,
    ProgramInfo, TableList,
};
use crate::control::tables::{MAX_BATCH_UPDATES, StoreError, Tables, Written};
use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use switch_core::engine::control::{MeterRate, Update};
use switch_core::engine::model::ActionCall;

/// Largest body of a batch.
pub const MAX_BATCH_BYTES: usize = 64 * 1024 * 1024;
/// Most rows of one answer.
pub const MAX_PAGE: usize = 10_000;
const DEFAULT_PAGE: usize = 1_000;

type Body1 = Result<Bytes, BytesRejection>;
type PathOf<T> = Result<Path<T>, PathRejection>;

/// Paths below `/v1` that are about the program.
pub fn routes() -> Router<Admin> {
    Router::new()
        .route("/v1/program", get(program))
        .route("/v1/program/p4info", get(p4info))
        .route("/v1/tables", get(list))
        .route("/v1/tables/batch", post(batch))
        .route("/v1/tables/{table}", get(show))
        .route("/v1/tables/{table}/count", get(count))
        .route("/v1/tables/{table}/clear", post(clear))
        .route(
            "/v1/tables/{table}/entries",
            get(entries)
                .post(insert)
                .put(put_entry)
                .patch(modify)
                .delete(delete),
        )
        .route(
            "/v1/tables/{table}/default",
            put(set_default).delete(reset_default),
        )
        .route("/v1/aside", get(aside).delete(discard_aside))
        .route("/v1/groups", get(groups))
        .route("/v1/groups/{selector}/{group}", put(set_group))
        .route("/v1/multicast", get(multicast))
        .route("/v1/multicast/{group}", put(set_multicast))
        .route("/v1/meters", get(meters))
        .route(
            "/v1/meters/{meter}/{index}",
            put(set_meter).delete(reset_meter),
        )
        .route("/v1/counters/{counter}", get(counters))
        .route("/v1/connections", get(connections))
}

/// The tables of a daemon that has some.
pub struct TheTables(pub Tables);

impl FromRequestParts<Admin> for TheTables {
    type Rejection = Problem;

    async fn from_request_parts(_: &mut Parts, admin: &Admin) -> Result<Self, Problem> {
        admin.tables.clone().map(Self).ok_or_else(|| {
            Problem::new(
                StatusCode::NOT_FOUND,
                "this daemon runs no program with tables",
            )
            .remedy("start it with --program")
        })
    }
}

async fn program(TheTables(tables): TheTables) -> Json<ProgramInfo> {
    let program = tables.program();
    Json(ProgramInfo {
        name: program.name.clone(),
        description: program.description.clone(),
        table_ids: tables
            .tables()
            .into_iter()
            .map(|table| (table.name, table.id))
            .collect(),
        program: program.clone(),
    })
}

async fn p4info(TheTables(tables): TheTables) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        tables.p4info(),
    )
}

async fn list(TheTables(tables): TheTables) -> Result<Json<TableList>, Problem> {
    Ok(Json(TableList {
        aside: tables.aside().map_err(unreadable)?.len(),
        durable: tables.durable(),
        tables: tables.tables().into_iter().map(Into::into).collect(),
    }))
}

async fn show(
    TheTables(tables): TheTables,
    name: PathOf<String>,
) -> Result<Json<super::wire::Table>, Problem> {
    Ok(Json(existing(&tables, name)?.into()))
}

async fn count(
    TheTables(tables): TheTables,
    name: PathOf<String>,
) -> Result<Json<CountRow>, Problem> {
    let table = existing(&tables, name)?;
    Ok(Json(CountRow {
        entries: table.entries,
        size: table.size,
    }))
}

async fn entries(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<EntryPage>, Problem> {
    let table = existing(&tables, name)?.name;
    let Page { after, limit, .. } = parsed_page(page)?;
    let limit = limit.unwrap_or(DEFAULT_PAGE);
    let entries = tables.entries(&table, after, limit)?;
    let next = entries
        .last()
        .filter(|_| entries.len() == limit)
        .map(|last| last.handle);
    Ok(Json(EntryPage {
        entries: entries.into_iter().map(Into::into).collect(),
        next,
    }))
}

async fn insert(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    headers: HeaderMap,
    body: Body1,
) -> Result<Response, Problem> {
    let entry = parse::<EntryBody>(&headers, body)?.into_entry(text(name)?);
    let done = write_one(&tables, Update::Insert(entry)).await?;
    Ok((StatusCode::CREATED, done).into_response())
}

async fn put_entry(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let entry = parse::<EntryBody>(&headers, body)?.into_entry(text(name)?);
    write_one(&tables, Update::Put(entry)).await
}

async fn modify(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let entry = parse::<EntryBody>(&headers, body)?.into_entry(text(name)?);
    write_one(&tables, Update::Modify(entry)).await
}

async fn delete(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let named = parse::<EntryNameBody>(&headers, body)?.into_name(text(name)?);
    write_one(&tables, Update::Delete(named)).await
}

async fn clear(
    TheTables(tables): TheTables,
    name: PathOf<String>,
) -> Result<Json<BatchDone>, Problem> {
    let table = existing(&tables, name)?.name;
    write_one(&tables, Update::Clear { table }).await
}

async fn set_default(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let default = Some(parse::<ActionCall>(&headers, body)?);
    let table = text(name)?;
    write_one(&tables, Update::SetDefault { table, default }).await
}

async fn reset_default(
    TheTables(tables): TheTables,
    name: PathOf<String>,
) -> Result<Json<BatchDone>, Problem> {
    let (table, default) = (text(name)?, None);
    write_one(&tables, Update::SetDefault { table, default }).await
}

/// Many updates at once. A small body is read at once; of large ones only a few are in memory at one time, and they are read as JSON
/// beside the thread that serves everybody.
async fn batch(
    State(admin): State<Admin>,
    TheTables(tables): TheTables,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<BatchDone>, Problem> {
    refuse_other_media(&headers)?;
    let small = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .is_some_and(|length: usize| length <= MAX_BODY_BYTES);
    let (most, _permit) = if small {
        (MAX_BODY_BYTES, None)
    } else {
        let permit = admin.large_bodies.acquire().await;
        (MAX_BATCH_BYTES, permit.ok())
    };
    let body = axum::body::to_bytes(body, most).await.map_err(|_| {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is larger than 64 MiB, or did not come whole",
        )
        .remedy("send several batches")
    })?;
    let updates = if small {
        parse_batch(&body)?
    } else {
        tokio::task::spawn_blocking(move || parse_batch(&body))
            .await
            .map_err(|error| {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
                    .remedy("report this as a fault of Ringswitch")
            })??
    };
    Ok(Json(tables.write(updates).await?.into()))
}

fn parse_batch(body: &[u8]) -> Result<Vec<Update>, Problem> {
    let Batch { updates } = serde_json::from_slice(body).map_err(|error| {
        let problem = not_what_was_asked(&error);
        match update_at_fault(body) {
            Some((index, error)) => Problem {
                detail: error.to_string(),
                ..problem.of_update(index).about("updates")
            },
            None => problem,
        }
    })?;
    if updates.len() > MAX_BATCH_UPDATES {
        let reason = format!(
            "{} updates are more than {MAX_BATCH_UPDATES}",
            updates.len()
        );
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, reason)
            .about("updates")
            .remedy("send several batches"));
    }
    Ok(updates)
}

/// The first update that does not read as one by itself.
fn update_at_fault(body: &[u8]) -> Option<(usize, serde_json::Error)> {
    let batch: serde_json::Value = serde_json::from_slice(body).ok()?;
    let updates = batch.get("updates")?.as_array()?;
    let mut read = updates
        .iter()
        .map(serde::Deserialize::deserialize)
        .enumerate();
    read.find_map(|(index, update): (usize, Result<Update, _>)| Some((index, update.err()?)))
}

async fn aside(TheTables(tables): TheTables) -> Result<Json<AsideList>, Problem> {
    Ok(Json(AsideList {
        aside: tables.aside().map_err(unreadable)?,
    }))
}

async fn discard_aside(TheTables(tables): TheTables) -> Result<Json<Discarded>, Problem> {
    Ok(Json(Discarded {
        discarded: tables.discard_aside().await?,
    }))
}

async fn groups(TheTables(tables): TheTables) -> Json<GroupList> {
    Json(GroupList {
        groups: tables.groups(),
    })
}

async fn set_group(
    TheTables(tables): TheTables,
    path: PathOf<(String, u32)>,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let (selector, group) = parsed_path(path)?;
    let GroupBody { members } = parse(&headers, body)?;
    let update = Update::SetGroup {
        selector,
        group,
        members,
    };
    write_one(&tables, update).await
}

async fn multicast(TheTables(tables): TheTables) -> Json<MulticastList> {
    Json(MulticastList {
        groups: tables.multicast(),
    })
}

async fn set_multicast(
    TheTables(tables): TheTables,
    path: PathOf<u16>,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let group = parsed_path(path)?;
    let MulticastBody { ports } = parse(&headers, body)?;
    write_one(&tables, Update::SetMulticast { group, ports }).await
}

async fn meters(TheTables(tables): TheTables) -> Json<MeterList> {
    Json(MeterList {
        meters: tables.meters(),
    })
}

async fn set_meter(
    TheTables(tables): TheTables,
    path: PathOf<(String, u32)>,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let (meter, index) = parsed_path(path)?;
    let rate = Some(parse::<MeterRate>(&headers, body)?);
    write_one(&tables, Update::SetMeter { meter, index, rate }).await
}

async fn reset_meter(
    TheTables(tables): TheTables,
    path: PathOf<(String, u32)>,
) -> Result<Json<BatchDone>, Problem> {
    let (meter, index) = parsed_path(path)?;
    let rate = None;
    write_one(&tables, Update::SetMeter { meter, index, rate }).await
}

async fn counters(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<CounterList>, Problem> {
    let name = text(name)?;
    let Page { from, limit, .. } = parsed_page(page)?;
    let limit = limit.unwrap_or(DEFAULT_PAGE);
    let counters = tables.counters(&name, from.unwrap_or(0), limit);
    let counters = counters.ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            format!("the program has no counters {name}"),
        )
        .about("counter")
        .remedy("GET /v1/program, or `ringswitch program info`, shows those there are")
    })?;
    Ok(Json(CounterList { counters }))
}

async fn connections(
    TheTables(tables): TheTables,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<ConnectionList>, Problem> {
    let limit = parsed_page(page)?.limit.unwrap_or(DEFAULT_PAGE);
    Ok(Json(ConnectionList {
        connections: tables.connections(limit),
    }))
}

async fn write_one(tables: &Tables, update: Update) -> Result<Json<BatchDone>, Problem> {
    let written = tables.write(vec![update]).await.map_err(|refusal| {
        let problem = Problem::from(refusal);
        Problem {
            update: None,
            ..problem
        }
    })?;
    Ok(Json(written.into()))
}

impl From<Written> for BatchDone {
    fn from(written: Written) -> Self {
        Self {
            updates: written.updates,
            durable: written.durable,
        }
    }
}

fn existing(
    tables: &Tables,
    name: PathOf<String>,
) -> Result<switch_core::engine::control::ListedTable, Problem> {
    let name = text(name)?;
    tables.table(&name).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, format!("there is no table {name:?}"))
            .about("table")
            .remedy("GET /v1/tables, or `ringswitch table list`, shows those there are")
    })
}

fn text(name: PathOf<String>) -> Result<String, Problem> {
    parsed_path(name)
}

/// A part of a path that is no number where one is due names nothing.
fn parsed_path<T>(path: PathOf<T>) -> Result<T, Problem> {
    path.map(|Path(value)| value).map_err(|rejection| {
        Problem::new(StatusCode::BAD_REQUEST, rejection.body_text())
            .remedy("write names in UTF-8, percent-encoded, and numbers in digits")
    })
}

fn parsed_page(page: Result<Query<Page>, QueryRejection>) -> Result<Page, Problem> {
    let Query(page) = page.map_err(|rejection| {
        Problem::new(StatusCode::BAD_REQUEST, rejection.body_text())
            .remedy("use after, from and limit, each a whole number")
    })?;
    match page.limit {
        Some(limit) if !(1..=MAX_PAGE).contains(&limit) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            format!("{limit} is out of bounds"),
        )
        .about("limit")
        .remedy(format!("use 1 to {MAX_PAGE}, and ask for the next page"))),
        _ => Ok(page),
    }
}

#[allow(clippy::needless_pass_by_value)] // As map_err calls it.
fn unreadable(error: StoreError) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        .remedy("look at the disk and at the daemon's log")
}
