//! `config diff` and `config save`: what runs beside the configuration file.
//!
//! The file is written here, with the rights of whoever calls: the daemon may have none to its own configuration. It then reads the
//! file again and tells what differs still.
use super::arguments::ConfigCommand;
use super::client::Client;
use super::commands::{Format, print, print_json, show};
use super::exit::CliError;
use super::table::{Align, Table, printable};
use crate::config::edit::{PortEdit, edited};
use crate::config::flags::port_text;
use crate::config::{PortConfig, PortFields, PortName};
use crate::control::PortOrigin;
use crate::rest::wire::{ConfigDiff, ConfigReport, PortDifference};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Asks, prints, writes.
pub async fn ask(command: &ConfigCommand, client: &Client, format: Format) -> Result<(), CliError> {
    if let ConfigCommand::Show = command {
        let body = client.get("/v1/config").await?;
        return show(client, format, &body, config_text);
    }
    let body = client.get("/v1/config/diff").await?;
    let diff: ConfigDiff = client.decode(&body)?;
    match command {
        ConfigCommand::Show => Ok(()),
        ConfigCommand::Diff => {
            match format {
                Format::Json => print_json(&body)?,
                Format::Text => print(&diff_text(&diff))?,
            }
            if diff.differences.is_empty() {
                Ok(())
            } else {
                Err(CliError::Differs)
            }
        }
        ConfigCommand::Save { file } => save(&diff, file.as_deref(), client, format).await,
    }
}

async fn save(
    diff: &ConfigDiff,
    file: Option<&Path>,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    let own = diff.file.as_ref().map(PathBuf::from);
    let target = file.or(own.as_deref()).ok_or(CliError::NoFile)?;
    let edits = edits_of(&diff.differences)?;
    let text = match &own {
        Some(own) => fs::read_to_string(own).map_err(|source| CliError::Io {
            action: "read the configuration file",
            source,
        })?,
        None => String::new(),
    };
    let edited = edited(&text, &edits).map_err(|fault| CliError::Edit {
        path: own.clone().unwrap_or_default(),
        fault,
    })?;
    let is_own = own.as_deref().is_some_and(|own| is_same(own, target));
    if !is_own || edited != text {
        replace_file(target, &edited).map_err(|source| CliError::Io {
            action: "write the configuration file",
            source,
        })?;
    }
    let after = if is_own {
        let body = client.post("/v1/config/saved", vec![]).await?;
        client.decode(&body)?
    } else {
        diff.clone()
    };
    match format {
        Format::Json => print_json(&super::commands::encode(&after)?),
        Format::Text => print(&saved_text(target, edits.len(), &after, is_own)),
    }
}

fn saved_text(target: &Path, ports: usize, after: &ConfigDiff, is_own: bool) -> String {
    let mut text = format!("{}: {ports} ports written\n", target.display());
    if is_own && !after.differences.is_empty() {
        text.push_str("the file says more, which holds from the next start on:\n");
        text.push_str(&diff_text(after));
    }
    text
}

fn edits_of(differences: &[PortDifference]) -> Result<Vec<PortEdit>, CliError> {
    differences
        .iter()
        .filter(|difference| difference.cause != PortOrigin::File)
        .map(|difference| {
            let port = difference.running.clone().map(PortConfig::from_fields);
            Ok((PortName::parse(&difference.name)?, port.transpose()?))
        })
        .collect()
}

/// Each port as the text that `port add` takes.
fn config_text(config: &ConfigReport) -> String {
    let file = config.file.as_deref().unwrap_or("none");
    let durable = match config.durable {
        true => "outlive the daemon",
        false => "end with the daemon (there is no --state-dir)",
    };
    let mut table = Table::new(&[
        ("ORIGIN", Align::Left),
        ("PORT", Align::Left),
        ("FAULT", Align::Left),
    ]);
    for port in &config.ports {
        table.row([
            port.origin.name().to_owned(),
            port_text(&port.port),
            port.fault.clone().unwrap_or_default(),
        ]);
    }
    let file = printable(file);
    format!(
        "configuration file: {file}\nchanges at run time: {durable}\n\n{}",
        table.render()
    )
}

/// As `diff -u` shows it, each port as the text that `port add` takes.
fn diff_text(diff: &ConfigDiff) -> String {
    let file = diff.file.as_deref().unwrap_or("(no configuration file)");
    let mut lines = vec![];
    if !diff.differences.is_empty() {
        lines.push(format!("--- {file}"));
        lines.push("+++ what runs".to_owned());
    }
    for difference in &diff.differences {
        lines.push(format!(
            "# {}: {}",
            difference.name,
            cause_text(difference, diff.durable)
        ));
        for (sign, port) in [('-', &difference.file), ('+', &difference.running)] {
            lines.extend(port.iter().map(|port| format!("{sign}{}", port_text(port))));
        }
    }
    for change in &diff.overridden {
        let wanted = change.port.as_ref().map_or_else(
            || "removed".to_owned(),
            |port: &PortFields| format!("made {}", port_text(port)),
        );
        lines.push(format!(
            "# {}: was {wanted} at run time; the file was edited since and holds. `ringswitch config save` forgets this",
            change.name
        ));
    }
    for fault in &diff.faults {
        lines.push(format!(
            "# {}: cannot be opened: {}",
            fault.name, fault.reason
        ));
    }
    lines
        .iter()
        .map(|line| format!("{}\n", printable(line)))
        .collect()
}

fn cause_text(difference: &PortDifference, durable: bool) -> &'static str {
    let until = (difference.cause, durable);
    match (until, &difference.file, &difference.running) {
        ((PortOrigin::File, _), ..) => {
            "the file was written since; it holds from the next start on"
        }
        ((PortOrigin::Flag, _), ..) => "by a flag of the daemon",
        ((_, true), None, _) => "added at run time",
        ((_, true), _, None) => "removed at run time",
        ((_, true), ..) => "changed at run time",
        ((_, false), None, _) => {
            "added at run time, until the daemon ends (there is no --state-dir)"
        }
        ((_, false), _, None) => {
            "removed at run time, until the daemon ends (there is no --state-dir)"
        }
        ((_, false), ..) => "changed at run time, until the daemon ends (there is no --state-dir)",
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// Puts a text in a file's place, whole or not at all. A link stays one, and the owner and mode of a file that was there stay.
fn replace_file(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path).or_else(|_| std::path::absolute(path))?;
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", std::process::id()));
    let beside = folder.join(beside);
    let written = write_beside(&beside, &path, text).and_then(|()| fs::rename(&beside, &path));
    if written.is_err() {
        // What failed may have left nothing to remove.
        let _ = fs::remove_file(&beside);
        return written;
    }
    fs::File::open(folder)?.sync_all()
}

fn write_beside(beside: &Path, path: &Path, text: &str) -> io::Result<()> {
    let before = fs::metadata(path);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(before.as_ref().map_or(0o644, |_| 0o600))
        .open(beside)?;
    file.write_all(text.as_bytes())?;
    if let Ok(before) = before {
        // Only root may give a file away; another owner of the configuration is rare, and no reason to fail.
        let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
        file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o7777))?;
    }
    file.sync_all()
}
