//! `ringswitch port capture`: a port's frames as they pass, as lines for people, as JSON, or as pcapng for tools.
mod blocks;
mod line;

use super::arguments::CaptureArguments;
use super::client::{Client, Stream};
use super::commands::{Format, port_path};
use super::exit::CliError;
use super::reach::percent_encoded;
use crate::config::InvalidField;
use crate::control::frames::encoding::to_hex;
use crate::datapath::capture::filter::Filter;
use blocks::{Block, Blocks, SeenFrame};
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tokio::signal::unix::{SignalKind, signal};

/// What is written of each frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A line for people.
    Lines,
    /// A JSON object on a line.
    Json,
    /// The daemon's bytes, whole blocks of them.
    Pcapng,
}

/// A frame as JSON.
#[derive(Serialize)]
struct FrameLine<'a> {
    at_ns: u64,
    direction: &'static str,
    fate: &'a str,
    frame_bytes: u32,
    frame: String,
}

/// What came of it.
#[derive(Debug, Default)]
struct Tally {
    frames: u64,
    missed: u64,
}

/// Captures until there are as many frames as were wanted, the port goes, or SIGINT or SIGTERM comes.
pub async fn capture(
    asked: &CaptureArguments,
    client: &Client,
    format: Format,
) -> Result<(), CliError> {
    let path = request(asked)?;
    let form = form(asked, format)?;
    let io = |action| move |source| CliError::Io { action, source };
    let mut interrupted = signal(SignalKind::interrupt()).map_err(io("catch SIGINT"))?;
    let mut terminated = signal(SignalKind::terminate()).map_err(io("catch SIGTERM"))?;
    let mut stream = client.stream(&path).await?;
    // Only now: a capture that is refused leaves an older file as it is.
    let mut out = output(asked.write.as_deref()).map_err(io("write the capture"))?;
    let (mut blocks, mut tally) = (Blocks::default(), Tally::default());
    loop {
        tokio::select! {
            more = next(&mut stream, &mut blocks) => if !more? { break },
            _ = interrupted.recv() => break,
            _ = terminated.recv() => break,
        }
        match write(&mut blocks, (form, &mut *out), &mut tally) {
            // Whoever read it has seen enough.
            Err(CliError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => break,
            written => written?,
        }
    }
    let Tally { frames, missed } = tally;
    eprintln!("{frames} frames captured, {missed} missed for want of room");
    Ok(())
}

/// More of the answer; `false`: it is complete.
async fn next(stream: &mut Stream, blocks: &mut Blocks) -> Result<bool, CliError> {
    match stream.next().await? {
        Some(bytes) => {
            blocks.add(&bytes);
            Ok(true)
        }
        None => Ok(false),
    }
}

/// Writes every whole block.
fn write(
    blocks: &mut Blocks,
    (form, out): (Form, &mut dyn Write),
    tally: &mut Tally,
) -> Result<(), CliError> {
    let failed = |source| CliError::Io {
        action: "write the capture",
        source,
    };
    while let Some((bytes, block)) = blocks.next().map_err(|source| CliError::Io {
        action: "read the capture",
        source,
    })? {
        match &block {
            Block::Frame(frame) => {
                tally.frames += 1;
                tally.missed = tally.missed.max(frame.missed_so_far);
                match form {
                    Form::Lines => writeln!(out, "{}", line::of(frame)).map_err(failed)?,
                    Form::Json => writeln!(out, "{}", json(frame)?).map_err(failed)?,
                    Form::Pcapng => {}
                }
            }
            Block::Statistics { missed } => tally.missed = tally.missed.max(*missed),
            Block::Other => {}
        }
        if form == Form::Pcapng {
            out.write_all(&bytes).map_err(failed)?;
        }
    }
    out.flush().map_err(failed)
}

fn json(frame: &SeenFrame) -> Result<String, CliError> {
    let line = FrameLine {
        at_ns: frame.at_ns,
        direction: frame.direction,
        fate: &frame.comment,
        frame_bytes: frame.frame_bytes,
        frame: to_hex(&frame.bytes),
    };
    serde_json::to_string(&line).map_err(|error| CliError::Io {
        action: "write the frame",
        source: error.into(),
    })
}

/// What the daemon is asked. A slip in the filter is told without it.
fn request(asked: &CaptureArguments) -> Result<String, CliError> {
    let mut path = format!("{}/capture?", port_path(&asked.name)?);
    if let Some(filter) = &asked.filter {
        if let Err(error) = Filter::parse(filter) {
            return Err(CliError::Argument(InvalidField::new(
                "filter",
                error.to_string(),
                "docs/cli.md has the language: host 10.0.0.1 and tcp port 80, dropped rx_ring_full",
            )));
        }
        path += &format!("filter={}&", percent_encoded(filter));
    }
    if let Some(snaplen) = asked.snaplen {
        path += &format!("snaplen={snaplen}&");
    }
    if let Some(count) = asked.count {
        path += &format!("count={count}&");
    }
    path.pop();
    Ok(path)
}

fn form(asked: &CaptureArguments, format: Format) -> Result<Form, CliError> {
    let to_file = asked.write.is_some();
    match format {
        Format::Json if to_file => Err(CliError::Argument(InvalidField::new(
            "json",
            "a capture file is pcapng, not JSON",
            "leave --json or -w out",
        ))),
        Format::Json => Ok(Form::Json),
        Format::Text if !to_file && io::stdout().is_terminal() => Ok(Form::Lines),
        Format::Text => Ok(Form::Pcapng),
    }
}

fn output(file: Option<&Path>) -> io::Result<Box<dyn Write>> {
    Ok(match file {
        // Whoever reads it sees what was said.
        Some(path) if path != Path::new("-") => Box::new(
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(path)?,
        ),
        _ => Box::new(io::stdout()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_carries_what_was_asked_for() {
        let asked = CaptureArguments {
            name: "vm1".into(),
            filter: Some("host 10.0.0.1 or (drop)".into()),
            write: None,
            count: Some(3),
            snaplen: None,
        };
        assert_eq!(
            request(&asked).unwrap(),
            "/v1/ports/vm1/capture?filter=host%2010.0.0.1%20or%20%28drop%29&count=3"
        );
        let plain = CaptureArguments {
            filter: None,
            count: None,
            ..asked.clone()
        };
        assert_eq!(request(&plain).unwrap(), "/v1/ports/vm1/capture");
        let slip = CaptureArguments {
            filter: Some("hots 1.1.1.1".into()),
            ..asked
        };
        assert_eq!(request(&slip).unwrap_err().exit_code(), 2);
    }
}
