//! The program, its tables, and what belongs to them: paths and methods. A change becomes one batch; nothing is decided here.
use super::body::{not_what_was_asked, parse, refuse_lists, refuse_other_media};
use super::page;
use super::problem::Problem;
use super::routes::{Admin, MAX_BODY_BYTES};
use super::tags::with_tag;
use super::wire::{
    AsideList, Batch, BatchDone, ConnectionList, ConnectionsPage, CountRow, CounterList,
    CounterPath, CountersPage, Discarded, EntriesPage, EntryBody, EntryNameBody, EntryPage,
    GroupBody, GroupList, GroupPath, IfMatchHeader, MeterList, MeterPath, MulticastBody,
    MulticastList, MulticastPath, ProgramInfo, TableList, TablePath,
};
use crate::control::tables::{MAX_BATCH_UPDATES, StoreError, Tables, Versioned, Written};
use crate::control::tags::IfMatch;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use switch_core::engine::control::{MeterRate, Update};
use switch_core::engine::model::ActionCall;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Largest body of a batch.
pub const MAX_BATCH_BYTES: usize = 64 * 1024 * 1024;

type Body1 = Result<Bytes, BytesRejection>;
type PathOf<T> = Result<Path<T>, PathRejection>;

/// Paths below `/v1` that are about the program.
pub fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::default()
        .routes(routes!(program))
        .routes(routes!(p4info))
        .routes(routes!(list))
        .routes(routes!(batch))
        .routes(routes!(show))
        .routes(routes!(count))
        .routes(routes!(clear))
        .routes(routes!(entries, insert, put_entry, modify, delete))
        .routes(routes!(set_default, reset_default))
        .routes(routes!(aside, discard_aside))
        .routes(routes!(groups))
        .routes(routes!(set_group))
        .routes(routes!(multicast))
        .routes(routes!(set_multicast))
        .routes(routes!(meters))
        .routes(routes!(set_meter, reset_meter))
        .routes(routes!(counters))
        .routes(routes!(connections))
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

/// The program that runs.
#[utoipa::path(
    get,
    path = "/v1/program",
    responses(
        (status = 200, body = ProgramInfo, description = "The program"),
        (status = 404, description = "The daemon runs no program with tables")
    )
)]
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

/// The program as P4Info.
#[utoipa::path(
    get,
    path = "/v1/program/p4info",
    responses(
        (status = 200, body = String, content_type = "text/plain; charset=utf-8", description = "P4Info in protobuf text form"),
        (status = 404, description = "The daemon runs no program with tables")
    )
)]
async fn p4info(TheTables(tables): TheTables) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        tables.p4info(),
    )
}

/// The tables of the program.
#[utoipa::path(
    get,
    path = "/v1/tables",
    responses(
        (status = 200, body = TableList, description = "Every table"),
        (status = 404, description = "The daemon runs no program with tables")
    )
)]
async fn list(TheTables(tables): TheTables) -> Result<Json<TableList>, Problem> {
    Ok(Json(TableList {
        aside: tables.aside().map_err(unreadable)?.len(),
        durable: tables.durable(),
        tables: tables.tables().into_iter().map(Into::into).collect(),
    }))
}

/// One table.
#[utoipa::path(
    get,
    path = "/v1/tables/{table}",
    params(TablePath),
    responses(
        (status = 200, body = super::wire::Table, description = "The table")
    )
)]
async fn show(TheTables(tables): TheTables, name: PathOf<String>) -> Result<Response, Problem> {
    let name = text(name)?;
    let tag = tables.tag(&Versioned::Table(name.clone()));
    let table = super::wire::Table::from(existing(&tables, name)?);
    Ok(with_tag(&tag, Json(table)))
}

/// How many entries a table has.
#[utoipa::path(
    get,
    path = "/v1/tables/{table}/count",
    params(TablePath),
    responses(
        (status = 200, body = CountRow, description = "How many")
    )
)]
async fn count(
    TheTables(tables): TheTables,
    name: PathOf<String>,
) -> Result<Json<CountRow>, Problem> {
    let table = existing(&tables, text(name)?)?;
    Ok(Json(CountRow {
        entries: table.entries,
        size: table.size,
    }))
}

/// Entries of a table, by ascending handle.
#[utoipa::path(
    get,
    path = "/v1/tables/{table}/entries",
    params(TablePath, EntriesPage),
    responses(
        (status = 200, body = EntryPage, description = "A page of them")
    )
)]
async fn entries(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    page: Result<Query<EntriesPage>, QueryRejection>,
) -> Result<Response, Problem> {
    let name = text(name)?;
    let tag = tables.tag(&Versioned::Table(name.clone()));
    let table = existing(&tables, name)?.name;
    let EntriesPage { after, limit } = page::query(page)?;
    let limit = page::limit(limit)?;
    let entries = tables.entries(&table, after, limit)?;
    let next = entries
        .last()
        .filter(|_| entries.len() == limit)
        .map(|last| last.handle);
    let entries = entries.into_iter().map(Into::into).collect();
    Ok(with_tag(&tag, Json(EntryPage { entries, next })))
}

/// Adds an entry.
#[utoipa::path(
    post,
    path = "/v1/tables/{table}/entries",
    params(TablePath, IfMatchHeader),
    request_body = EntryBody,
    responses(
        (status = 201, body = BatchDone, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such table, entry or array; nothing has changed"),
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 409, description = "It is there already, belongs to the program, or something is full; nothing has changed")
    )
)]
async fn insert(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    if_match: IfMatch,
    headers: HeaderMap,
    body: Body1,
) -> Result<Response, Problem> {
    let entry = parse::<EntryBody>(&headers, body)?.into_entry(text(name)?);
    let done = write_one(&tables, if_match, Update::Insert(entry)).await?;
    Ok((StatusCode::CREATED, done).into_response())
}

/// Adds an entry, or gives the one that is there another action.
#[utoipa::path(
    put,
    path = "/v1/tables/{table}/entries",
    params(TablePath, IfMatchHeader),
    request_body = EntryBody,
    responses(
        (status = 200, body = BatchDone, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such table, entry or array; nothing has changed"),
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 409, description = "It is there already, belongs to the program, or something is full; nothing has changed")
    )
)]
async fn put_entry(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    if_match: IfMatch,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let entry = parse::<EntryBody>(&headers, body)?.into_entry(text(name)?);
    write_one(&tables, if_match, Update::Put(entry)).await
}

/// Gives an entry another action.
#[utoipa::path(
    patch,
    path = "/v1/tables/{table}/entries",
    params(TablePath, IfMatchHeader),
    request_body = EntryBody,
    responses(
        (status = 200, body = BatchDone, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such table, entry or array; nothing has changed"),
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 409, description = "It is there already, belongs to the program, or something is full; nothing has changed")
    )
)]
async fn modify(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    if_match: IfMatch,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let entry = parse::<EntryBody>(&headers, body)?.into_entry(text(name)?);
    write_one(&tables, if_match, Update::Modify(entry)).await
}

/// Removes an entry.
#[utoipa::path(
    delete,
    path = "/v1/tables/{table}/entries",
    params(TablePath, IfMatchHeader),
    request_body = EntryNameBody,
    responses(
        (status = 200, body = BatchDone, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such table, entry or array; nothing has changed"),
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 409, description = "It is there already, belongs to the program, or something is full; nothing has changed")
    )
)]
async fn delete(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    if_match: IfMatch,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let named = parse::<EntryNameBody>(&headers, body)?.into_name(text(name)?);
    write_one(&tables, if_match, Update::Delete(named)).await
}

/// Removes every entry of a table, but those of the program.
#[utoipa::path(
    post,
    path = "/v1/tables/{table}/clear",
    params(TablePath, IfMatchHeader),
    responses(
        (status = 200, body = BatchDone, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such table, entry or array; nothing has changed"),
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 409, description = "It is there already, belongs to the program, or something is full; nothing has changed"),
        (status = 422, description = "The table cannot be changed by itself")
    )
)]
async fn clear(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    if_match: IfMatch,
) -> Result<Json<BatchDone>, Problem> {
    let table = existing(&tables, text(name)?)?.name;
    write_one(&tables, if_match, Update::Clear { table }).await
}

/// Sets what happens when no entry matches.
#[utoipa::path(
    put,
    path = "/v1/tables/{table}/default",
    params(TablePath, IfMatchHeader),
    request_body = ActionCall,
    responses(
        (status = 200, body = BatchDone, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such table, entry or array; nothing has changed"),
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 409, description = "It is there already, belongs to the program, or something is full; nothing has changed")
    )
)]
async fn set_default(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    if_match: IfMatch,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let default = Some(parse::<ActionCall>(&headers, body)?);
    let table = text(name)?;
    write_one(&tables, if_match, Update::SetDefault { table, default }).await
}

/// What happens when no entry matches is what the program says again.
#[utoipa::path(
    delete,
    path = "/v1/tables/{table}/default",
    params(TablePath, IfMatchHeader),
    responses(
        (status = 200, body = BatchDone, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such table, entry or array; nothing has changed"),
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 409, description = "It is there already, belongs to the program, or something is full; nothing has changed"),
        (status = 422, description = "It cannot be changed")
    )
)]
async fn reset_default(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    if_match: IfMatch,
) -> Result<Json<BatchDone>, Problem> {
    let (table, default) = (text(name)?, None);
    write_one(&tables, if_match, Update::SetDefault { table, default }).await
}

/// Many updates at once. A small body is read at once; of large ones only a few are in memory at one time, and they are read as JSON
/// beside the thread that serves everybody.
#[utoipa::path(
    post,
    path = "/v1/tables/batch",
    request_body = Batch,
    responses(
        (status = 200, body = BatchDone, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such table, entry or array; nothing has changed"),
        (status = 409, description = "It is there already, belongs to the program, or something is full; nothing has changed")
    )
)]
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
    refuse_lists(body)?;
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

/// Stored entries and settings that do not fit the program.
#[utoipa::path(
    get,
    path = "/v1/aside",
    responses(
        (status = 200, body = AsideList, description = "What does not fit"),
        (status = 404, description = "The daemon runs no program with tables")
    )
)]
async fn aside(TheTables(tables): TheTables) -> Result<Json<AsideList>, Problem> {
    Ok(Json(AsideList {
        aside: tables.aside().map_err(unreadable)?,
    }))
}

/// Forgets them.
#[utoipa::path(
    delete,
    path = "/v1/aside",
    responses(
        (status = 200, body = Discarded, description = "It is forgotten"),
        (status = 404, description = "The daemon runs no program with tables")
    )
)]
async fn discard_aside(TheTables(tables): TheTables) -> Result<Json<Discarded>, Problem> {
    Ok(Json(Discarded {
        discarded: tables.discard_aside().await?,
    }))
}

/// Weighted groups.
#[utoipa::path(
    get,
    path = "/v1/groups",
    responses(
        (status = 200, body = GroupList, description = "Those that have members"),
        (status = 404, description = "The daemon runs no program with tables")
    )
)]
async fn groups(TheTables(tables): TheTables) -> Response {
    let tag = tables.tag(&Versioned::Groups);
    let groups = tables.groups();
    with_tag(&tag, Json(GroupList { groups }))
}

/// Sets the members of a weighted group.
#[utoipa::path(
    put,
    path = "/v1/groups/{selector}/{group}",
    params(GroupPath, IfMatchHeader),
    request_body = GroupBody,
    responses(
        (status = 200, body = BatchDone, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such table, entry or array; nothing has changed"),
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 409, description = "It is there already, belongs to the program, or something is full; nothing has changed")
    )
)]
async fn set_group(
    TheTables(tables): TheTables,
    path: PathOf<(String, u32)>,
    if_match: IfMatch,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let (selector, group) = parsed_path(path)?;
    if group == 0 {
        return Err(
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "groups begin with 1")
                .about("group")
                .remedy("use 1 or more"),
        );
    }
    let GroupBody { members } = parse(&headers, body)?;
    let update = Update::SetGroup {
        selector,
        group,
        members,
    };
    write_one(&tables, if_match, update).await
}

/// Multicast groups.
#[utoipa::path(
    get,
    path = "/v1/multicast",
    responses(
        (status = 200, body = MulticastList, description = "Those that have ports"),
        (status = 404, description = "The daemon runs no program with tables")
    )
)]
async fn multicast(TheTables(tables): TheTables) -> Response {
    let tag = tables.tag(&Versioned::Multicast);
    let groups = tables.multicast();
    with_tag(&tag, Json(MulticastList { groups }))
}

/// Sets the ports of a multicast group.
#[utoipa::path(
    put,
    path = "/v1/multicast/{group}",
    params(MulticastPath, IfMatchHeader),
    request_body = MulticastBody,
    responses(
        (status = 200, body = BatchDone, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such table, entry or array; nothing has changed"),
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 409, description = "It is there already, belongs to the program, or something is full; nothing has changed")
    )
)]
async fn set_multicast(
    TheTables(tables): TheTables,
    path: PathOf<u16>,
    if_match: IfMatch,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let group = parsed_path(path)?;
    let MulticastBody { ports } = parse(&headers, body)?;
    write_one(&tables, if_match, Update::SetMulticast { group, ports }).await
}

/// Rates of meters.
#[utoipa::path(
    get,
    path = "/v1/meters",
    responses(
        (status = 200, body = MeterList, description = "Those that have a rate"),
        (status = 404, description = "The daemon runs no program with tables")
    )
)]
async fn meters(TheTables(tables): TheTables) -> Response {
    let tag = tables.tag(&Versioned::Meters);
    let meters = tables.meters();
    with_tag(&tag, Json(MeterList { meters }))
}

/// Sets the rate of a meter.
#[utoipa::path(
    put,
    path = "/v1/meters/{meter}/{index}",
    params(MeterPath, IfMatchHeader),
    request_body = MeterRate,
    responses(
        (status = 200, body = BatchDone, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such table, entry or array; nothing has changed"),
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 409, description = "It is there already, belongs to the program, or something is full; nothing has changed")
    )
)]
async fn set_meter(
    TheTables(tables): TheTables,
    path: PathOf<(String, u32)>,
    if_match: IfMatch,
    headers: HeaderMap,
    body: Body1,
) -> Result<Json<BatchDone>, Problem> {
    let (meter, index) = parsed_path(path)?;
    let rate = Some(parse::<MeterRate>(&headers, body)?);
    write_one(&tables, if_match, Update::SetMeter { meter, index, rate }).await
}

/// Takes the rate of a meter away.
#[utoipa::path(
    delete,
    path = "/v1/meters/{meter}/{index}",
    params(MeterPath, IfMatchHeader),
    responses(
        (status = 200, body = BatchDone, description = "It is in effect and, when `durable`, on the disk"),
        (status = 404, description = "There is no such table, entry or array; nothing has changed"),
        (status = 412, description = "If-Match: it is not as it was; nothing has changed"),
        (status = 409, description = "It is there already, belongs to the program, or something is full; nothing has changed"),
        (status = 422, description = "There is no such one")
    )
)]
async fn reset_meter(
    TheTables(tables): TheTables,
    path: PathOf<(String, u32)>,
    if_match: IfMatch,
) -> Result<Json<BatchDone>, Problem> {
    let (meter, index) = parsed_path(path)?;
    let rate = None;
    write_one(&tables, if_match, Update::SetMeter { meter, index, rate }).await
}

/// Counters of the program.
#[utoipa::path(
    get,
    path = "/v1/counters/{counter}",
    params(CounterPath, CountersPage),
    responses(
        (status = 200, body = CounterList, description = "Those that are not zero")
    )
)]
async fn counters(
    TheTables(tables): TheTables,
    name: PathOf<String>,
    page: Result<Query<CountersPage>, QueryRejection>,
) -> Result<Json<CounterList>, Problem> {
    let name = text(name)?;
    let CountersPage { from, limit } = page::query(page)?;
    let limit = page::limit(limit)?;
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

/// Tracked connections.
#[utoipa::path(
    get,
    path = "/v1/connections",
    params(ConnectionsPage),
    responses(
        (status = 200, body = ConnectionList, description = "Tracked connections"),
        (status = 404, description = "The daemon runs no program with tables")
    )
)]
async fn connections(
    TheTables(tables): TheTables,
    page: Result<Query<ConnectionsPage>, QueryRejection>,
) -> Result<Json<ConnectionList>, Problem> {
    let ConnectionsPage { after, limit } = page::query(page)?;
    let (connections, next) = tables.connections(after.unwrap_or(0), page::limit(limit)?);
    Ok(Json(ConnectionList { connections, next }))
}

async fn write_one(
    tables: &Tables,
    if_match: IfMatch,
    update: Update,
) -> Result<Json<BatchDone>, Problem> {
    let written = tables.write_if(vec![update], if_match).await;
    let written = written.map_err(|refusal| {
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
    name: String,
) -> Result<switch_core::engine::control::ListedTable, Problem> {
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

#[allow(clippy::needless_pass_by_value)] // As map_err calls it.
fn unreadable(error: StoreError) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        .remedy("look at the disk and at the daemon's log")
}
