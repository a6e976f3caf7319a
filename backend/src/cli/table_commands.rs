//! Tables, groups, meters, connections, explanations: ask the daemon, then print.
use super::client::Client;
use super::commands::{Format, encode, print, print_json, show};
use super::entry_text::{parse_key, parse_params};
use super::exit::CliError;
use super::page_arguments::with_next;
use super::render_tables as render;
use super::table_arguments::{
    ConnectionCommand, CounterCommand, EntryArguments, ExplainArguments, GroupCommand,
    MeterCommand, MulticastCommand, TableCommand,
};
use crate::config::{InvalidField, PortName};
use crate::control::frames::encoding::to_base64;
use crate::rest::explain::MAX_EXPLAIN_BYTES;
use crate::rest::tables::MAX_BATCH_BYTES;
use crate::rest::wire::{
    AsideList, Batch, BatchDone, ConnectionList, CountRow, CounterList, Discarded, EntryBody,
    EntryNameBody, EntryPage, ExplainBody, GroupBody, GroupList, LastDrops, MeterList,
    MulticastBody, MulticastList, Table, TableList,
};
use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use switch_core::engine::control::{GroupMember, MeterRate};
use switch_core::engine::literal::{Literal, is_name};
use switch_core::engine::model::ActionCall;

/// Entries asked for at a time.
const PAGE: usize = 10_000;

/// `ringswitch table ...`
pub async fn table(
    command: &TableCommand,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    match command {
        TableCommand::List => {
            let body = client.get("/v1/tables").await?;
            show(client, format, &body, |list: &TableList| {
                render::table_list(list)
            })
        }
        TableCommand::Show { table } => {
            let body = client.get(&path_of(table, "")?).await?;
            show(client, format, &body, |table: &Table| render::table(table))
        }
        TableCommand::Entries { table, limit } => entries(client, format, table, *limit).await,
        TableCommand::Count { table } => {
            let body = client.get(&path_of(table, "/count")?).await?;
            show(client, format, &body, |count: &CountRow| {
                format!("{} of {}\n", count.entries, count.size)
            })
        }
        TableCommand::Add(entry) => write_entry(client, format, Method::POST, entry).await,
        TableCommand::Modify(entry) => write_entry(client, format, Method::PATCH, entry).await,
        TableCommand::Put(entry) => write_entry(client, format, Method::PUT, entry).await,
        TableCommand::Delete {
            table,
            key,
            priority,
        } => {
            let name = EntryNameBody {
                key: parse_key(key)?,
                priority: *priority,
            };
            let path = path_of(table, "/entries")?;
            change(client, format, (Method::DELETE, &path), &name).await
        }
        TableCommand::Clear { table } => {
            let path = path_of(table, "/clear")?;
            change(client, format, (Method::POST, &path), &()).await
        }
        TableCommand::Default {
            table,
            action,
            params,
        } => {
            let path = path_of(table, "/default")?;
            match action {
                None => change(client, format, (Method::DELETE, &path), &()).await,
                Some(action) => {
                    let call = ActionCall {
                        action: action.clone(),
                        params: parse_params(params)?,
                    };
                    change(client, format, (Method::PUT, &path), &call).await
                }
            }
        }
        TableCommand::Batch { file } => {
            let body = client.post("/v1/tables/batch", read(file)?).await?;
            done(client, format, &body)
        }
        TableCommand::Load { file, batch } => {
            super::load::load(client, format, (file, *batch as usize)).await
        }
        TableCommand::Aside { discard: false } => {
            let body = client.get("/v1/aside").await?;
            show(client, format, &body, |list: &AsideList| {
                render::aside(list)
            })
        }
        TableCommand::Aside { discard: true } => {
            let body = client.delete("/v1/aside").await?;
            show(client, format, &body, |gone: &Discarded| {
                format!("{} discarded\n", gone.discarded)
            })
        }
    }
}

/// Page by page, so that a large table does not have to be held.
async fn entries(
    client: &Client,
    format: Format,
    table: &str,
    limit: Option<usize>,
) -> Result<(), CliError> {
    let mut left = limit.unwrap_or(usize::MAX);
    let mut after = String::new();
    let mut first = true;
    while left > 0 {
        let path = path_of(table, &format!("/entries?limit={}{after}", left.min(PAGE)))?;
        let body = client.get(&path).await?;
        let page: EntryPage = client.decode(&body)?;
        match format {
            Format::Json => print_json(&body)?,
            Format::Text => print(&render::entries(&page.entries, first))?,
        }
        first = false;
        left -= page.entries.len().min(left);
        match page.next {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    Ok(())
}

async fn write_entry(
    client: &Client,
    format: Format,
    method: Method,
    entry: &EntryArguments,
) -> Result<(), CliError> {
    let body = EntryBody {
        key: parse_key(&entry.key)?,
        priority: entry.priority,
        action: entry.action.clone(),
        params: parse_params(&entry.params)?,
        idle_timeout_ms: entry.idle_timeout_ms,
        hard_timeout_ms: entry.hard_timeout_ms,
        tenant: entry.tenant.clone(),
    };
    let path = path_of(&entry.table, "/entries")?;
    change(client, format, (method, &path), &body).await
}

async fn change(
    client: &Client,
    format: Format,
    (method, path): (Method, &str),
    body: &impl serde::Serialize,
) -> Result<(), CliError> {
    let answer = client.request(method, path, encode(body)?).await?;
    done(client, format, &answer)
}

fn done(client: &Client, format: Format, answer: &Bytes) -> Result<(), CliError> {
    show(client, format, answer, |done: &BatchDone| {
        render::done(*done)
    })
}

/// `ringswitch group ...`
pub async fn group(
    command: &GroupCommand,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    match command {
        GroupCommand::List => {
            let body = client.get("/v1/groups").await?;
            show(client, format, &body, |list: &GroupList| {
                render::groups(list)
            })
        }
        GroupCommand::Set {
            selector,
            group,
            members,
        } => {
            let members = members.iter().map(|text| member(text));
            let body = GroupBody {
                members: members.collect::<Result<_, _>>()?,
            };
            let path = format!("/v1/groups/{}/{group}", name("selector", selector)?);
            change(client, format, (Method::PUT, &path), &body).await
        }
    }
}

fn member(text: &str) -> Result<GroupMember, InvalidField> {
    let mut values = parse_params(text)?;
    let weight = match values.remove("weight") {
        None => 1,
        Some(weight) => weight
            .number()
            .and_then(|weight| u16::try_from(weight).ok())
            .filter(|weight| *weight > 0)
            .ok_or_else(|| {
                InvalidField::new(
                    "weight",
                    format!("{weight} is out of bounds"),
                    "use 1 to 65535",
                )
            })?,
    };
    Ok(GroupMember { weight, values })
}

/// `ringswitch multicast ...`
pub async fn multicast(
    command: &MulticastCommand,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    match command {
        MulticastCommand::List => {
            let body = client.get("/v1/multicast").await?;
            show(client, format, &body, |list: &MulticastList| {
                render::multicast(list)
            })
        }
        MulticastCommand::Set { group, ports } => {
            let ports = ports.iter().map(|port| Literal::parse(port)).collect();
            let path = format!("/v1/multicast/{group}");
            change(
                client,
                format,
                (Method::PUT, &path),
                &MulticastBody { ports },
            )
            .await
        }
    }
}

/// `ringswitch meter ...`
pub async fn meter(
    command: &MeterCommand,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    match command {
        MeterCommand::List => {
            let body = client.get("/v1/meters").await?;
            show(client, format, &body, |list: &MeterList| {
                render::meters(list)
            })
        }
        MeterCommand::Set {
            meter,
            index,
            bytes_per_second,
            burst_bytes,
            frames_per_second,
            burst_frames,
        } => {
            let path = format!("/v1/meters/{}/{index}", name("meter", meter)?);
            if bytes_per_second.is_none() && frames_per_second.is_none() {
                return change(client, format, (Method::DELETE, &path), &()).await;
            }
            let rate = MeterRate {
                bytes_per_second: *bytes_per_second,
                burst_bytes: *burst_bytes,
                frames_per_second: *frames_per_second,
                burst_frames: *burst_frames,
            };
            change(client, format, (Method::PUT, &path), &rate).await
        }
    }
}

/// `ringswitch counter ...`
pub async fn counter(
    CounterCommand::List {
        counter,
        from,
        limit,
    }: &CounterCommand,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    let name = name("counter", counter)?;
    let (mut from, mut left) = (*from, limit.unwrap_or(u32::MAX));
    let mut is_first = true;
    loop {
        let limit = left.min(PAGE as u32);
        let path = format!("/v1/counters/{name}?from={from}&limit={limit}");
        let body = client.get(&path).await?;
        let page: CounterList = client.decode(&body)?;
        let last = page.counters.last().map(|counter| counter.index);
        // A whole number of pages ends with an empty one, which is no news.
        if is_first || last.is_some() {
            match format {
                Format::Json => print_json(&body)?,
                Format::Text => print(&render::counters(&page, is_first))?,
            }
        }
        is_first = false;
        let count = page.counters.len();
        left = left.saturating_sub(count as u32);
        match last.and_then(|last| last.checked_add(1)) {
            Some(next) if left > 0 && count >= limit as usize => from = next,
            _ => return Ok(()),
        }
    }
}

/// `ringswitch connection ...`
pub async fn connection(
    ConnectionCommand::List(page): &ConnectionCommand,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    let body = client.get(&page.of("/v1/connections")).await?;
    show(client, format, &body, |list: &ConnectionList| {
        let next = list.next.map(|next| next.to_string());
        with_next(render::connections(list), next.as_ref())
    })
}

/// `ringswitch explain ...`
pub async fn explain(
    arguments: &ExplainArguments,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    if arguments.last_drops {
        return last_drops(&arguments.port, client, format).await;
    }
    let what_if = match &arguments.what_if {
        None => vec![],
        Some(file) => {
            let batch: Batch = serde_json::from_slice(&read(file)?).map_err(|error| {
                InvalidField::new(
                    "what-if",
                    format!("{}: {error}", file.display()),
                    "write {\"updates\": [...]} as docs/rest.md describes it",
                )
            })?;
            batch.updates
        }
    };
    let pcap = match &arguments.pcap {
        None => None,
        Some(file) => Some(to_base64(&read(file)?)),
    };
    let request = ExplainBody {
        port: PortName::parse(&arguments.port)?.to_string(),
        frame: arguments.frame.clone(),
        flow: arguments.flow.clone(),
        pcap,
        what_if,
    };
    let body = encode(&request)?;
    if body.len() > MAX_EXPLAIN_BYTES {
        return Err(InvalidField::new(
            "pcap",
            "capture and batch together are larger than 1 MiB",
            "cut the capture, such as with editcap or tcpdump -c",
        )
        .into());
    }
    let answer = client.post("/v1/explain", body).await?;
    show(client, format, &answer, |explained: &Value| {
        render::explained(explained)
    })
}

/// `ringswitch port show NAME --last-drops`
pub async fn last_drops(port: &str, client: &Client, format: Format) -> Result<(), CliError> {
    let path = format!("/v1/ports/{}/last-drops", PortName::parse(port)?);
    let body = client.get(&path).await?;
    show(client, format, &body, |drops: &LastDrops| {
        render::last_drops(drops)
    })
}

/// Names of tables and arrays need no escaping in a path: only their own characters pass.
fn name<'a>(field: &'static str, text: &'a str) -> Result<&'a str, InvalidField> {
    if is_name(text) {
        return Ok(text);
    }
    Err(InvalidField::new(
        field,
        format!("{text:?} is no name"),
        "use letters, digits and '_'; `ringswitch table list` shows the tables there are",
    ))
}

fn path_of(table: &str, rest: &str) -> Result<String, InvalidField> {
    Ok(format!("/v1/tables/{}{rest}", name("table", table)?))
}

/// Reads a file that a request is made of, which is no larger than any request; `-` is standard input.
pub fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let mut bytes = vec![];
    let most = MAX_BATCH_BYTES as u64 + 1;
    let reading = if path == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    let refused = |reason: String, remedy| {
        let reason = format!("{}: {reason}", path.display());
        Err(InvalidField::new("file", reason, remedy).into())
    };
    match reading {
        Ok(_) if bytes.len() > MAX_BATCH_BYTES => refused(
            "it is larger than 64 MiB".to_owned(),
            "cut it into several, if it need not be one",
        ),
        Ok(_) => Ok(bytes),
        Err(error) => refused(error.to_string(), "name a readable file"),
    }
}
