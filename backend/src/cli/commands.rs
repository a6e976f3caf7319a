//! Each subcommand: ask the daemon, then print. `run` and `check` need none.
use super::arguments::{Arguments, Command, PortCommand, Reach, Settings, WorkerCommand};
use super::client::{Client, ClientError};
use super::exit::CliError;
use super::page_arguments::with_next;
use super::{render, table_commands};
use crate::config::{self, Configuration, PortConfig, PortName, flags};
use crate::daemon::{self, DaemonError, Ending};
use crate::rest::wire::{
    Fdb, MoveRequest, Moved, Port, PortList, StatsReport, UpgradeReport, UpgradeStart, WorkerList,
};
use hyper::body::Bytes;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Tables for people.
    Text,
    /// The daemon's JSON as it is.
    Json,
}

/// Does what the arguments say.
pub fn execute(arguments: &Arguments) -> Result<(), CliError> {
    match &arguments.command {
        Command::Run(settings) => run(settings, &arguments.reach),
        Command::Check(settings) => {
            let checked = load(settings, &arguments.reach)?;
            checked.switch.program.load()?;
            daemon::lifecycle::initial_services(&checked.switch).map_err(DaemonError::from)?;
            daemon::lifecycle::state_key(&checked.switch).map_err(DaemonError::from)?;
            daemon::lifecycle::remote(&checked.switch).map_err(DaemonError::from)?;
            print(&format!(
                "ok: {} ports, {} workers\n",
                checked.ports.len(),
                checked.switch.workers
            ))
        }
        Command::Program { command } if super::program::is_local(command) => {
            super::program::local(command)
        }
        Command::DropReasons => {
            let reasons = crate::rest::explain::all_reasons();
            match arguments.json {
                true => print_json(&encode(&reasons)?),
                false => print(&super::render_tables::reasons(&reasons)),
            }
        }
        Command::Completions { shell } => {
            let written = super::completions::script(*shell);
            print(&String::from_utf8_lossy(&written))
        }
        Command::Man { directory } => super::man::write(directory.as_deref()),
        Command::PostcopyPager => crate::pager::process::run().map_err(|source| CliError::Io {
            action: "fetch pages",
            source,
        }),
        command => {
            let format = if arguments.json {
                Format::Json
            } else {
                Format::Text
            };
            let client = Client::new(&arguments.reach)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.map_err(|source| CliError::Io {
                action: "start a runtime",
                source,
            })?;
            match command {
                Command::Doctor { port } => {
                    let socket = arguments.reach.admin_socket();
                    let what = (port.as_deref(), socket.as_path());
                    runtime.block_on(super::doctor::doctor(what, &client, format))
                }
                _ => runtime.block_on(ask(command, &client, format)),
            }
        }
    }
}

fn load(settings: &Settings, reach: &Reach) -> Result<Configuration, CliError> {
    let online = config::load::online_cpus().map_err(|source| CliError::Io {
        action: "read the list of online CPUs",
        source,
    })?;
    Ok(config::load(
        settings.config.as_deref(),
        settings.overrides(reach),
        &online,
    )?)
}

fn run(settings: &Settings, reach: &Reach) -> Result<(), CliError> {
    daemon::logging::start();
    match daemon::run(&load(settings, reach)?)? {
        Ending::Drained | Ending::HandedOver => Ok(()),
        Ending::CutShort => Err(CliError::CutShort),
    }
}

async fn ask(command: &Command, client: &Client, format: Format) -> Result<(), CliError> {
    match command {
        Command::Run(_)
        | Command::Check(_)
        | Command::DropReasons
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Doctor { .. }
        | Command::PostcopyPager => Ok(()),
        Command::Top {
            interval,
            sort,
            once,
        } => {
            let interval = Duration::from_secs_f64(*interval);
            super::top::top((interval, *sort, *once), client, format).await
        }
        Command::Program { command } => super::program::ask(command, client, format).await,
        Command::Table { command } => table_commands::table(command, client, format).await,
        Command::Group { command } => table_commands::group(command, client, format).await,
        Command::Multicast { command } => table_commands::multicast(command, client, format).await,
        Command::Meter { command } => table_commands::meter(command, client, format).await,
        Command::Counter { command } => table_commands::counter(command, client, format).await,
        Command::Flow { command } => super::flow_commands::ask(command, client, format).await,
        Command::Connection { command } => {
            table_commands::connection(command, client, format).await
        }
        Command::Services { command } => super::services::ask(command, client, format).await,
        Command::Explain(arguments) => table_commands::explain(arguments, client, format).await,
        Command::Stats {
            watch: Some(seconds),
        } => watch(client, format, Duration::from_secs_f64(*seconds)).await,
        Command::Metrics => {
            let body = client.get("/metrics").await?;
            io::stdout()
                .lock()
                .write_all(&body)
                .map_err(|source| CliError::Io {
                    action: "write the metrics",
                    source,
                })
        }
        Command::Stats { watch: None } => {
            let body = client.get("/v1/stats").await?;
            show(client, format, &body, |stats: &StatsReport| {
                render::stats(stats)
            })
        }
        Command::Fdb(page) => {
            let body = client.get(&page.of("/v1/fdb")).await?;
            show(client, format, &body, |fdb: &Fdb| {
                with_next(render::fdb(fdb), fdb.next.as_ref())
            })
        }
        Command::Events(asked) => super::events::events(asked, client, format).await,
        Command::Batch { file } => super::batch::batch(file, client, format).await,
        Command::Openapi => {
            let body = client.get("/openapi.json").await?;
            print(&String::from_utf8_lossy(&body))
        }
        Command::Upgrade { binary, timeout } => {
            upgrade(binary.as_deref(), *timeout, client, format).await
        }
        Command::Device { command } => super::device_commands::ask(command, client, format).await,
        Command::Port { command } => port(command, client, format).await,
        Command::Config { command } => super::config_commands::ask(command, client, format).await,
        Command::Worker { command } => worker(command, client, format).await,
    }
}

async fn upgrade(
    binary: Option<&Path>,
    timeout_ms: i64,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    let binary = binary.map(std::path::absolute).transpose();
    let binary = binary.map_err(|source| CliError::Io {
        action: "find the program",
        source,
    })?;
    let start = UpgradeStart {
        binary: binary.map(|binary| binary.to_string_lossy().into_owned()),
        timeout_ms: Some(timeout_ms),
    };
    let body = client.post("/v1/upgrade", encode(&start)?).await?;
    show(client, format, &body, |report: &UpgradeReport| {
        format!(
            "process {} serves all ports; nobody did for {}.{:03} ms\n",
            report.pid,
            report.gap_us / 1000,
            report.gap_us % 1000
        )
    })
}

async fn worker(command: &WorkerCommand, client: &Client, format: Format) -> Result<(), CliError> {
    match command {
        WorkerCommand::List => {
            let body = client.get("/v1/workers").await?;
            show(client, format, &body, |list: &WorkerList| {
                render::worker_list(list)
            })
        }
        WorkerCommand::Move {
            source: (name, pair),
            worker,
            ..
        } => {
            let request = MoveRequest {
                pair: *pair,
                worker: *worker,
            };
            let path = format!("{}/move", port_path(name)?);
            let body = client.post(&path, encode(&request)?).await?;
            show(client, format, &body, |moved: &Moved| {
                render::sources(&moved.sources)
            })
        }
    }
}

async fn port(command: &PortCommand, client: &Client, format: Format) -> Result<(), CliError> {
    match command {
        PortCommand::List(page) => {
            let body = client.get(&page.of("/v1/ports")).await?;
            show(client, format, &body, |list: &PortList| {
                let next = list.next.map(|next| next.to_string());
                with_next(render::port_list(list), next.as_ref())
            })
        }
        PortCommand::Show {
            name,
            last_drops: true,
        } => table_commands::last_drops(name, client, format).await,
        PortCommand::Show { name, .. } => {
            let body = client.get(&port_path(name)?).await?;
            show(client, format, &body, |port: &Port| render::port(port))
        }
        PortCommand::Add { port } => {
            let fields = flags::parse_port(port)?;
            // Checked here too, so that a slip is a usage error even when the daemon is away.
            PortConfig::from_fields(fields.clone())?;
            let body = client.post("/v1/ports", encode(&fields)?).await?;
            show(client, format, &body, |port: &Port| {
                format!("port {} is {}\n", port.name, port.state)
            })
        }
        PortCommand::Capture(asked) => super::capture::capture(asked, client, format).await,
        PortCommand::Export { name, output } => {
            super::port_state::export(name, output.as_deref(), client).await
        }
        PortCommand::Import {
            name,
            file,
            replace,
            keep,
        } => {
            let conflicts = match (replace, keep) {
                (true, _) => "replace",
                (_, true) => "keep",
                _ => "refuse",
            };
            let what = (name.as_str(), file.as_deref(), conflicts);
            super::port_state::import(what, client, format).await
        }
        PortCommand::Remove { name } => {
            client.delete(&port_path(name)?).await?;
            match format {
                Format::Text => print(&format!("port {name} is removed\n")),
                Format::Json => Ok(()),
            }
        }
    }
}

/// A port's name needs no escaping in a path: only its own characters pass.
pub(super) fn port_path(name: &str) -> Result<String, CliError> {
    Ok(format!("/v1/ports/{}", PortName::parse(name)?))
}

pub(super) fn encode(request: &impl serde::Serialize) -> Result<Vec<u8>, CliError> {
    serde_json::to_vec(request).map_err(|error| CliError::Io {
        action: "write the request",
        source: error.into(),
    })
}

/// Rates from each answer to the next, until interrupted. As JSON: each answer on a line.
async fn watch(client: &Client, format: Format, interval: Duration) -> Result<(), CliError> {
    let mut before: Option<StatsReport> = None;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let body = client.get("/v1/stats").await?;
        let now: StatsReport = client.decode(&body)?;
        match (format, &before) {
            (Format::Json, _) => print_json(&body)?,
            (Format::Text, Some(before)) => print(&page(&render::rates(before, &now)))?,
            (Format::Text, None) => {}
        }
        before = Some(now);
    }
}

/// A page of a watch: on a terminal it takes the place of the page before.
fn page(text: &str) -> String {
    const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J";
    if io::stdout().is_terminal() {
        format!("{CLEAR_SCREEN}{text}")
    } else {
        format!("{text}\n")
    }
}

pub(super) fn show<T: serde::de::DeserializeOwned>(
    client: &Client,
    format: Format,
    body: &Bytes,
    render: impl FnOnce(&T) -> String,
) -> Result<(), CliError> {
    match format {
        Format::Json => print_json(body),
        Format::Text => print(&render(&client.decode::<T>(body)?)),
    }
}

pub(super) fn print_json(body: &[u8]) -> Result<(), CliError> {
    print(&format!("{}\n", String::from_utf8_lossy(body)))
}

/// Prints to standard output. A reader that has seen enough (`| head`) ends the call, without an error.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(source) => Err(CliError::Io {
            action: "print",
            source,
        }),
        Ok(()) => Ok(()),
    }
}

/// An error as it is printed: in JSON the daemon's own problem description, else one line.
pub fn error_text(error: &CliError, arguments: &Arguments) -> String {
    match error {
        CliError::Client(ClientError::Refused(problem)) if arguments.json => {
            serde_json::to_string(problem).unwrap_or_else(|_| error.to_string())
        }
        _ => format!("ringswitch: {error}"),
    }
}
