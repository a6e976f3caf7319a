//! QEMU's monitor: commands in, answers and events out. Events that are not known are kept like any other.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::await_::{SOON, eventually};
use crate::error::Doing;
use crate::{Error, Result};

/// A monitor connection. One command at a time.
#[derive(Debug)]
pub struct Qmp {
    writer: UnixStream,
    inbox: Arc<Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    received: Mutex<Received>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Received {
    answers: VecDeque<Value>,
    events: Vec<Value>,
    closed: bool,
}

impl Qmp {
    /// Connects, once QEMU listens, and leaves negotiation behind.
    ///
    /// # Errors
    /// Nobody listens there, or it is not a monitor.
    pub fn connect(socket: &Path) -> Result<Self> {
        let writer = eventually(SOON, "QEMU's monitor socket", || {
            UnixStream::connect(socket).map_err(|e| e.to_string())
        })?;
        let reader = BufReader::new(
            writer
                .try_clone()
                .doing(|| "duplicating a socket".to_owned())?,
        );
        let inbox = Arc::new(Inbox::default());
        let theirs = Arc::clone(&inbox);
        std::thread::Builder::new()
            .name("qmp".to_owned())
            .spawn(move || theirs.fill(reader))
            .doing(|| "starting a thread".to_owned())?;
        let mut qmp = Self { writer, inbox };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returns.
    ///
    /// # Errors
    /// QEMU refused it, or is gone.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = format!(
            "{}\n",
            json!({ "execute": command, "arguments": arguments })
        );
        self.writer
            .write_all(line.as_bytes())
            .doing(|| format!("sending {command} to QEMU"))?;
        let what = format!("QEMU's answer to {command}");
        let answer = self
            .inbox
            .wait(SOON, &what, |received| received.answers.pop_front())?;
        if let Some(reason) = answer.pointer("/error/desc") {
            let reason = reason.as_str().unwrap_or_default().to_owned();
            return Err(Error::Qmp {
                command: command.to_owned(),
                reason,
            });
        }
        Ok(answer.get("return").cloned().unwrap_or_default())
    }

    /// Forgets the events so far: the next [`Qmp::wait_event`] is about what happens from now on.
    pub fn clear_events(&mut self) {
        self.inbox.lock().events.clear();
    }

    /// Waits for an event of that name whose data `matches`, and takes it.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_event(
        &mut self,
        name: &str,
        mut matches: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let what = format!("QEMU's event {name}");
        self.inbox.wait(SOON, &what, |received| {
            let wanted = |event: &Value| {
                event.get("event").and_then(Value::as_str) == Some(name)
                    && matches(event.get("data").unwrap_or(&Value::Null))
            };
            let index = received.events.iter().position(wanted)?;
            Some(received.events.remove(index))
        })
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs on its own thread until QEMU goes.
    fn fill(&self, reader: impl BufRead) {
        for line in reader.lines().map_while(std::result::Result::ok) {
            let Ok(message) = serde_json::from_str::<Value>(&line) else {
                continue;
            };
            let mut received = self.lock();
            if message.get("event").is_some() {
                received.events.push(message);
            } else if message.get("return").is_some() || message.get("error").is_some() {
                received.answers.push_back(message);
            }
            self.changed.notify_all();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn wait<T>(
        &self,
        within: Duration,
        what: &str,
        mut take: impl FnMut(&mut Received) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + within;
        let mut received = self.lock();
        loop {
            if let Some(found) = take(&mut received) {
                return Ok(found);
            }
            if received.closed {
                return Err(Error::Unexpected(format!(
                    "QEMU went while the lab waited for {what}"
                )));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Deadline {
                    what: what.to_owned(),
                    waited: within,
                    last: None,
                });
            }
            received = self
                .changed
                .wait_timeout(received, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::run_dir::RunDir;

    /// A monitor that greets, and answers each line with the next of `answers`.
    fn monitor(folder: &RunDir, answers: &'static [&'static str]) -> Qmp {
        let socket = folder.join("qmp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            writeln!(
                stream,
                r#"{{"QMP": {{"version": {{}}, "capabilities": []}}}}"#
            )
            .unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for (_, answer) in lines.zip(answers) {
                writeln!(stream, "{answer}").unwrap();
            }
        });
        Qmp::connect(&socket).unwrap()
    }

    #[test]
    fn unknown_events_and_noise_between_answers_do_no_harm() {
        let folder = RunDir::create("test").unwrap();
        let mut qmp = monitor(
            &folder,
            &[
                r#"{"return": {}}"#,
                "{\"event\": \"NETDEV_VHOST_USER_CONNECTED\", \"data\": {\"x\": 1}}\nnoise\n{\"return\": {\"status\": \"running\"}}",
            ],
        );
        assert_eq!(
            qmp.execute("query-status", json!({})).unwrap(),
            json!({ "status": "running" })
        );
        qmp.wait_event("NETDEV_VHOST_USER_CONNECTED", |data| data["x"] == 1)
            .unwrap();
    }

    #[test]
    fn a_refusal_carries_qemus_reason() {
        let folder = RunDir::create("test").unwrap();
        let mut qmp = monitor(
            &folder,
            &[
                r#"{"return": {}}"#,
                r#"{"error": {"class": "GenericError", "desc": "no such"}}"#,
            ],
        );
        let error = qmp
            .execute("device_del", json!({ "id": "nic9" }))
            .unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused device_del: no such");
    }
}
