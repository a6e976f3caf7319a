//! `ringswitch port export` and `port import`: a port's state from the daemon to a file, and back.
use super::client::Client;
use super::commands::{Format, port_path, show};
use super::exit::CliError;
use crate::config::InvalidField;
use crate::control::port_state::{Imported, MAX_BYTES};
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes a port's state to a file, or to standard output.
pub async fn export(name: &str, file: Option<&Path>, client: &Client) -> Result<(), CliError> {
    let path = format!("{}/state", port_path(name)?);
    if file.is_none() && io::stdout().is_terminal() {
        return Err(CliError::Argument(InvalidField::new(
            "output",
            "a port's state is not text, and standard output is a terminal",
            "name a file with -o FILE, or redirect it",
        )));
    }
    let state = client.get(&path).await?;
    match file {
        // Whoever reads it sees who talked to whom.
        Some(file) => OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(file)
            .and_then(|mut file| file.write_all(&state)),
        None => io::stdout().lock().write_all(&state),
    }
    .map_err(|source| CliError::Io {
        action: "write the state",
        source,
    })
}

/// Gives a port the state of a file, or of standard input.
pub async fn import(
    (name, file, conflicts): (&str, Option<&Path>, &str),
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    let path = format!("{}/state?conflicts={conflicts}", port_path(name)?);
    let state = read(file).map_err(|source| CliError::Io {
        action: "read the state",
        source,
    })?;
    let body = client.upload(&path, state).await?;
    show(client, format, &body, |imported| render(name, imported))
}

fn read(file: Option<&Path>) -> io::Result<Vec<u8>> {
    let mut state = Vec::new();
    // One byte too many is for the daemon to refuse.
    let most = MAX_BYTES as u64 + 1;
    match file {
        Some(file) => std::fs::File::open(file)?
            .take(most)
            .read_to_end(&mut state)?,
        None => io::stdin().lock().take(most).read_to_end(&mut state)?,
    };
    Ok(state)
}

fn render(name: &str, imported: &Imported) -> String {
    let (stations, connections) = (&imported.stations, &imported.connections);
    let durable = match (imported.written, imported.durable) {
        (1.., false) => " (not durable: the daemon has no state_dir)",
        _ => "",
    };
    let passed_over = connections.in_the_way + connections.no_room + connections.inconsistent;
    format!(
        "port {name} has the state of {}: {} entries and settings written, {} unchanged{durable}; {} stations, {} not taken; {} connections, {} not taken\n",
        imported.from,
        imported.written,
        imported.unchanged,
        stations.taken + stations.known_since,
        stations.too_old + stations.refused,
        connections.taken + connections.known,
        passed_over,
    )
}
