//! `ringswitch table load`: a file of entries, one as JSON on each line, in batches.
//!
//! A few batches are under way at a time, so that the daemon reads one while it stores another. Lines are passed on as they are.
use super::client::{Client, ClientError};
use super::commands::{Format, print};
use super::exit::CliError;
use crate::config::InvalidField;
use crate::rest::wire::BatchDone;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::Instant;
use tokio::task::JoinSet;

/// Batches under way at one time.
const UNDER_WAY: usize = 3;
/// Longest batch: what the daemon takes, with room for what goes around the lines.
const MAX_BYTES: usize = 60 * 1024 * 1024;
/// Longest line: no entry comes near it.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Lines of the file, made into a request.
struct LineBatch {
    body: Vec<u8>,
    /// The line of each update.
    lines: Vec<usize>,
}

impl LineBatch {
    fn new() -> Self {
        Self {
            body: br#"{"updates":["#.to_vec(),
            lines: vec![],
        }
    }

    fn add(&mut self, line: &[u8], number: usize) {
        if !self.lines.is_empty() {
            self.body.push(b',');
        }
        self.body.extend(br#"{"put":"#);
        self.body.extend(line);
        self.body.push(b'}');
        self.lines.push(number);
    }
}

/// Puts every entry of a file, `batch` at a time.
pub async fn load(
    client: &Client,
    format: Format,
    (file, batch): (&Path, usize),
) -> Result<(), CliError> {
    let unreadable = |error: io::Error| {
        InvalidField::new(
            "file",
            format!("{}: {error}", file.display()),
            "name a readable file of JSON lines",
        )
    };
    let mut reader: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(file).map_err(unreadable)?;
        Box::new(BufReader::with_capacity(1024 * 1024, file))
    };
    let started = Instant::now();
    let mut under_way = JoinSet::new();
    let mut total = Loaded::default();
    let (mut number, mut ended) = (0, false);
    while !ended {
        let mut lines = LineBatch::new();
        while lines.lines.len() < batch && lines.body.len() < MAX_BYTES {
            let mut line = vec![];
            number += 1;
            let mut bounded = io::Read::take(&mut reader, MAX_LINE_BYTES as u64);
            if bounded.read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
                ended = true;
                break;
            }
            let line = line.trim_ascii();
            if !line.is_empty() {
                lines.add(line, number);
            }
        }
        if lines.lines.is_empty() {
            continue;
        }
        while under_way.len() >= UNDER_WAY {
            total.add(under_way.join_next().await)?;
        }
        under_way.spawn(send(client.clone(), lines));
        // Let it be written before the next is read.
        tokio::task::yield_now().await;
    }
    while !under_way.is_empty() {
        total.add(under_way.join_next().await)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    match format {
        Format::Json => print(&format!(
            "{{\"updates\":{},\"durable\":{},\"seconds\":{seconds:.3}}}\n",
            total.updates, total.durable
        )),
        Format::Text => print(&format!(
            "{} entries in {seconds:.2} s{}\n",
            total.updates,
            if total.durable {
                ""
            } else {
                ", not durable: the daemon has no state_dir"
            }
        )),
    }
}

#[derive(Debug, Default)]
struct Loaded {
    updates: usize,
    durable: bool,
}

impl Loaded {
    fn add(
        &mut self,
        ended: Option<Result<Result<BatchDone, CliError>, tokio::task::JoinError>>,
    ) -> Result<(), CliError> {
        match ended {
            None => Ok(()),
            Some(Ok(Ok(done))) => {
                self.updates += done.updates;
                self.durable = done.durable;
                Ok(())
            }
            Some(Ok(Err(error))) => Err(error),
            Some(Err(error)) => Err(CliError::Io {
                action: "send a batch",
                source: io::Error::other(error),
            }),
        }
    }
}

async fn send(client: Client, batch: LineBatch) -> Result<BatchDone, CliError> {
    let mut body = batch.body;
    body.extend(b"]}");
    let answer = client.post("/v1/tables/batch", body).await;
    match answer {
        Ok(answer) => Ok(client.decode(&answer)?),
        Err(ClientError::Refused(mut problem)) => {
            let (first, last) = (batch.lines.first(), batch.lines.last());
            let line = problem.update.and_then(|index| batch.lines.get(index));
            let bounds = format!(
                "lines {} to {} are not loaded, other batches may be",
                first.copied().unwrap_or(0),
                last.copied().unwrap_or(0)
            );
            problem.detail = match line {
                Some(line) => format!("line {line}: {}; {bounds}", problem.detail),
                None => format!("{}; {bounds}", problem.detail),
            };
            Err(ClientError::Refused(problem).into())
        }
        Err(other) => Err(other.into()),
    }
}
