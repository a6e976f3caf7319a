//! Ringswitch with one worker, on the switch's core.
//!
//! Busy time is taken from `GET /v1/stats`: `busy_ns` of the worker where the build reports it, else what it was awake.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Side, Spent, Switch};
use crate::case::Rig;
use crate::error::{Doing, Error, Result};
use crate::guest::mac_text;
use crate::machine::Machine;
use crate::network::{Network, vpc};
use crate::process::{Process, SOON, eventually, run};

/// Ports whose frames may not be lost.
const RACED_PORTS: usize = 2;
/// Connections listed at a time, at most.
const LISTED: usize = 10_000;
/// Entries take seconds to load on a machine that is busy otherwise.
const LOADED_WITHIN: Duration = Duration::from_secs(60);

/// A running `ringswitch run`.
pub struct Ringswitch {
    side: Side,
    process: Process,
    folder: PathBuf,
    /// The default program has no tables, and does not answer about them.
    has_tables: bool,
    clock_ghz: f64,
    start: Counters,
}

/// Counters of all workers, since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    frames: f64,
    awake_ns: f64,
    busy_ns: Option<f64>,
    /// Of the ports that are raced.
    dropped: f64,
}

impl Ringswitch {
    /// Starts it with the rig's ports and network; as its own reference with the rig's reference network.
    ///
    /// # Errors
    /// It ends: what it said. A port it refuses is [`Error::NotOffered`].
    pub fn start(machine: &Machine, folder: &Path, rig: &Rig, side: Side) -> Result<Self> {
        let network = rig.network_for(side);
        let admin = folder.join("admin.sock");
        let mut command = Command::new(&machine.ringswitch);
        command.arg("run").arg("--admin").arg(&admin);
        command.args(["--workers", "1", "--cpus", &machine.switch_core.to_string()]);
        if network != Network::Plain {
            command.args(["--program", &machine.vpc]);
        }
        for port in 0..rig.ports + rig.idle {
            let mut text = format!(
                "name=vm{port},type=vhost-user,socket={}",
                socket(folder, port).display()
            );
            if rig.ring.is_packed() {
                let _ = write!(text, ",packed=true");
            }
            command.arg("--port").arg(text);
        }
        let mut process = Process::start(folder, "ringswitch", &command)?;
        let ready = eventually(SOON, "ringswitch to serve its admin socket", || {
            process.check_running()?;
            Ok(UnixStream::connect(&admin)
                .map(drop)
                .map_err(|error| error.to_string()))
        });
        match ready {
            Err(Error::Ended { said, .. }) if rig.ring.is_packed() && said.contains("packed") => {
                return Err(Error::NotOffered(format!(
                    "packed rings, by this build: {said}"
                )));
            }
            other => other?,
        }
        if rig.ring.is_packed() {
            let answer = ask(folder, "/v1/ports/vm0")?;
            expect_packed(&answer)?;
        }
        if let Some(entries) = vpc::entries(network, rig.ports, mac_text) {
            let file = folder.join("entries.jsonl");
            fs::write(&file, entries).doing(|| format!("writing {}", file.display()))?;
            let mut load = Command::new(&machine.ringswitch);
            load.args(["table", "load", "--admin"])
                .arg(&admin)
                .arg(&file);
            run(&mut load, LOADED_WITHIN)?;
        }
        Ok(Self {
            side,
            process,
            folder: folder.to_owned(),
            has_tables: network != Network::Plain,
            clock_ghz: machine.clock_ghz,
            start: Counters::default(),
        })
    }

    fn counters(&self) -> Result<Counters> {
        let text = ask(&self.folder, "/v1/stats")?;
        parse(&text).ok_or(Error::Unparsed {
            what: "the workers' counters",
            text,
        })
    }
}

/// Head and body of the answer to `GET path`.
fn ask(folder: &Path, path: &str) -> Result<String> {
    let doing = || format!("asking ringswitch for {path}");
    let mut stream = UnixStream::connect(folder.join("admin.sock")).doing(doing)?;
    stream.set_read_timeout(Some(SOON)).doing(doing)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: ringswitch\r\n\r\n").doing(doing)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).doing(doing)?;
    Ok(text)
}

fn body(answer: &str) -> Option<Value> {
    let (_, body) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(body).ok()
}

/// A guest that asks for packed rings and is not offered any takes split ones without a word, and they would be raced as packed.
fn expect_packed(answer: &str) -> Result<()> {
    let port = body(answer);
    let device = port.as_ref().and_then(|port| port.get("device"));
    let list = |name| device.and_then(|device| device.get(name)?.as_array());
    let offered = list("features_offered").ok_or_else(|| Error::Unparsed {
        what: "the features a port offers",
        text: answer.to_owned(),
    })?;
    if offered.iter().any(|feature| feature == "RING_PACKED") {
        return Ok(());
    }
    let notes = list("notes").into_iter().flatten();
    let notes: Vec<_> = notes.filter_map(Value::as_str).collect();
    Err(Error::NotOffered(notes.join("; ")))
}

fn socket(folder: &Path, port: usize) -> PathBuf {
    folder.join(format!("vm{port}.sock"))
}

/// The answer to `GET /v1/stats`.
fn parse(answer: &str) -> Option<Counters> {
    let report = body(answer)?;
    let mut spent = Counters {
        busy_ns: Some(0.0),
        ..Counters::default()
    };
    for worker in report.get("workers")?.as_array()? {
        spent.frames += worker.get("frames")?.as_f64()?;
        spent.awake_ns += worker.get("awake_ns")?.as_f64()?;
        let busy = worker.get("busy_ns").and_then(Value::as_f64);
        spent.busy_ns = spent.busy_ns.zip(busy).map(|(sum, one)| sum + one);
    }
    for port in report.get("ports")?.as_array()?.iter().take(RACED_PORTS) {
        for drops in port.get("drops")?.as_array()? {
            spent.dropped += drops.get("frames")?.as_f64()?;
        }
    }
    Some(spent)
}

impl Counters {
    fn since(&self, start: &Self, clock_ghz: f64) -> Spent {
        let busy_ns = self.busy_ns.zip(start.busy_ns).map(|(a, b)| a - b);
        Spent {
            cycles: busy_ns.unwrap_or(self.awake_ns - start.awake_ns) * clock_ghz,
            frames: self.frames - start.frames,
            exact: busy_ns.is_some(),
            dropped: Some(self.dropped - start.dropped),
        }
    }
}

impl Switch for Ringswitch {
    fn side(&self) -> Side {
        self.side
    }

    fn socket(&self, port: usize) -> PathBuf {
        socket(&self.folder, port)
    }

    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn connections(&mut self, most: usize) -> Result<Option<usize>> {
        if !self.has_tables {
            return Ok(None);
        }
        let path = format!("/v1/connections?limit={}", most.clamp(1, LISTED));
        let answer = ask(&self.folder, &path)?;
        let list = body(&answer).and_then(|body| Some(body.get("connections")?.as_array()?.len()));
        match list {
            // A full page says only that there are as many, or more.
            Some(LISTED) => Ok(Some(most)),
            Some(count) => Ok(Some(count)),
            None => Err(Error::Unparsed {
                what: "the connections",
                text: answer,
            }),
        }
    }

    fn begin(&mut self) -> Result<()> {
        self.start = self.counters()?;
        Ok(())
    }

    fn end(&mut self) -> Result<Spent> {
        Ok(self.counters()?.since(&self.start, self.clock_ghz))
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        self.process.end(SOON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(frames: u64, busy: &str) -> String {
        format!(
            "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{{\"uptime_us\":1,\"ports\":[{{\"name\":\"vm0\",\"drops\":[{{\"reason\":\"acl_denied\",\"frames\":{}}}]}},{{\"name\":\"vm1\",\"drops\":[]}}],\"workers\":[{{\"worker\":0,\
             \"frames\":{frames},\"batches\":3,\"sleeps\":0,\"awake_ns\":{}{busy},\"sources\":2}}]}}",
            frames / 10,
            frames * 100
        )
    }

    #[test]
    fn busy_time_is_preferred_and_its_absence_is_told() {
        let start = parse(&answer(0, ",\"busy_ns\":0")).unwrap();
        let end = parse(&answer(1000, ",\"busy_ns\":50000")).unwrap();
        let expected = Spent {
            cycles: 100_000.0,
            frames: 1000.0,
            exact: true,
            dropped: Some(100.0),
        };
        assert_eq!(end.since(&start, 2.0), expected);
        let (start, end) = (
            parse(&answer(0, "")).unwrap(),
            parse(&answer(1000, "")).unwrap(),
        );
        let expected = Spent {
            cycles: 200_000.0,
            frames: 1000.0,
            exact: false,
            dropped: Some(100.0),
        };
        assert_eq!(end.since(&start, 2.0), expected);
    }

    #[test]
    fn split_rings_are_not_raced_as_packed_ones() {
        let answer = |offered: &str, notes: &str| {
            format!(
                "HTTP/1.0 200 OK\r\n\r\n{{\"device\":{{\"features_offered\":[{offered}],\"notes\":[{notes}]}}}}"
            )
        };
        let packed = answer("\"VERSION_1\",\"RING_PACKED\"", "");
        assert!(expect_packed(&packed).is_ok());
        let refused = expect_packed(&answer("\"VERSION_1\"", "\"not in memory\"")).unwrap_err();
        assert!(
            matches!(&refused, Error::NotOffered(why) if why == "not in memory"),
            "{refused}"
        );
        let other = expect_packed("HTTP/1.0 404 Not Found\r\n\r\n{}");
        assert!(matches!(other, Err(Error::Unparsed { .. })));
    }

    #[test]
    fn another_answer_is_not_zero_frames() {
        assert_eq!(parse("HTTP/1.0 404 Not Found\r\n\r\n{}"), None);
    }
}
