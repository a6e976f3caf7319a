//! QEMU's machine protocol: commands and answers as lines of JSON, with events between them.
//!
//! One command at a time; its answer is told from others by its id. Events that nobody asked about are counted and forgotten, whatever they
//! say. Reading may be given up at any point without losing a byte, so that a task can wait for an event and for something else at once.
use super::{ANSWER, HypervisorError, connect};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// Longest line. What QEMU answers to the questions asked here is a few kilobytes for a large VM.
const MAX_LINE_BYTES: usize = 1024 * 1024;
/// Bytes taken from the socket at a time.
const READ_BYTES: usize = 16 * 1024;
/// Messages that may come before an answer does.
const MAX_BEFORE_ANSWER: usize = 10_000;
/// Events read in a row before a pause, so that a QEMU that sends nothing but events takes no CPU worth mentioning.
const EVENTS_IN_A_ROW: usize = 64;
const PAUSE: Duration = Duration::from_millis(50);
/// Devices whose guests' refusals are remembered until somebody asks.
const MAX_REFUSALS: usize = 64;

/// A monitor, past negotiation.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    received: Vec<u8>,
    /// Of `received`, what is known to have no end of line.
    searched: usize,
    next_id: u64,
    version: (u64, u64),
    news: News,
}

/// What events said since somebody last asked.
#[derive(Debug, Default)]
struct News {
    /// Something that a device's fate hangs on.
    of_devices: bool,
    /// Devices that their guest would not let go of.
    refused: BTreeSet<String>,
}

impl Qmp {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// Nobody listens, nobody greets in time (a monitor serves one client at a time), or it is no monitor.
    pub async fn connect(socket: &Path) -> Result<Self, HypervisorError> {
        let mut qmp = Self {
            stream: connect(socket).await?,
            received: Vec::new(),
            searched: 0,
            next_id: 0,
            version: (0, 0),
            news: News::default(),
        };
        let greeting = in_time("with its greeting", qmp.message("its greeting")).await?;
        let number = |name: &str| {
            let path = format!("/QMP/version/qemu/{name}");
            greeting.pointer(&path).and_then(Value::as_u64)
        };
        match (number("major"), number("minor")) {
            (Some(major), Some(minor)) => qmp.version = (major, minor),
            _ => {
                return Err(HypervisorError::Protocol(
                    "what greets is not a QEMU machine monitor".to_owned(),
                ));
            }
        }
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// QEMU's version, major and minor.
    pub fn version(&self) -> (u64, u64) {
        self.version
    }

    /// Runs a command and returns what it returns.
    ///
    /// # Errors
    /// QEMU refused it; or any other, after which the connection is of no more use.
    pub async fn execute(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<Value, HypervisorError> {
        let id = self.next_id;
        self.next_id += 1;
        let line = json!({ "execute": command, "arguments": arguments, "id": id });
        let exchange = async {
            self.send(format!("{line}\n").as_bytes(), command).await?;
            self.answer(id, command).await
        };
        in_time(command, exchange).await
    }

    /// Waits until something happened to a device. Returns at once when it has since this was last called.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub async fn device_event(&mut self) -> Result<(), HypervisorError> {
        let mut in_a_row = 0;
        while !std::mem::take(&mut self.news.of_devices) {
            let message = self.message("events").await?;
            self.note(&message);
            in_a_row += 1;
            if in_a_row % EVENTS_IN_A_ROW == 0 {
                sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Whether the guest has said that it does not let go of a device. Forgets it.
    pub fn take_guest_refusal(&mut self, device: &str) -> bool {
        self.news.refused.remove(device)
    }

    async fn answer(&mut self, id: u64, command: &str) -> Result<Value, HypervisorError> {
        for _ in 0..MAX_BEFORE_ANSWER {
            let mut message = self.message(command).await?;
            if self.note(&message) || message.get("id").and_then(Value::as_u64) != Some(id) {
                continue;
            }
            if let Some(error) = message.get("error") {
                let text = |name: &str| {
                    let text = error.get(name).and_then(Value::as_str);
                    bounded_text(text.unwrap_or("it gave no reason"))
                };
                return Err(HypervisorError::Refused {
                    what: command.to_owned(),
                    class: text("class"),
                    reason: text("desc"),
                });
            }
            let Some(returned) = message.get_mut("return") else {
                let what = format!("what it answers to {command} is neither a result nor an error");
                return Err(HypervisorError::Protocol(what));
            };
            return Ok(returned.take());
        }
        Err(HypervisorError::Protocol(format!(
            "{MAX_BEFORE_ANSWER} other messages came instead of an answer to {command}"
        )))
    }

    /// Takes notice of an event; whether it was one.
    fn note(&mut self, message: &Value) -> bool {
        let Some(event) = message.get("event").and_then(Value::as_str) else {
            return false;
        };
        let device = message.pointer("/data/device").and_then(Value::as_str);
        match (event, device) {
            // The first of two names only the virtio device within, by its path.
            ("DEVICE_DELETED", Some(_)) => self.news.of_devices = true,
            ("DEVICE_UNPLUG_GUEST_ERROR", Some(device)) => {
                self.news.of_devices = true;
                if self.news.refused.len() < MAX_REFUSALS {
                    self.news.refused.insert(bounded_text(device));
                }
            }
            _ => {}
        }
        true
    }

    async fn send(&self, mut bytes: &[u8], what: &str) -> Result<(), HypervisorError> {
        while !bytes.is_empty() {
            let ready = self.stream.writable().await;
            match ready.and_then(|()| self.stream.try_write(bytes)) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(HypervisorError::of_io(&error, what)),
            }
        }
        Ok(())
    }

    /// The next message. What was read of one is kept if this is given up.
    async fn message(&mut self, what: &str) -> Result<Value, HypervisorError> {
        loop {
            if let Some(line) = self.take_line()? {
                return serde_json::from_slice(&line).map_err(|_| {
                    HypervisorError::Protocol("a line it sent is not JSON".to_owned())
                });
            }
            let mut buffer = [0; READ_BYTES];
            let ready = self.stream.readable().await;
            match ready.and_then(|()| self.stream.try_read(&mut buffer)) {
                Ok(0) => return Err(HypervisorError::Closed(what.to_owned())),
                Ok(read) => self
                    .received
                    .extend_from_slice(buffer.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(HypervisorError::of_io(&error, what)),
            }
        }
    }

    fn take_line(&mut self) -> Result<Option<Vec<u8>>, HypervisorError> {
        let unsearched = self.received.get(self.searched..).unwrap_or_default();
        if let Some(end) = unsearched.iter().position(|&byte| byte == b'\n') {
            let rest = self.received.split_off(self.searched + end + 1);
            self.searched = 0;
            return Ok(Some(std::mem::replace(&mut self.received, rest)));
        }
        self.searched = self.received.len();
        if self.searched > MAX_LINE_BYTES {
            return Err(HypervisorError::Protocol(format!(
                "a line it sent is longer than {MAX_LINE_BYTES} bytes"
            )));
        }
        Ok(None)
    }
}

async fn in_time<T>(
    what: &str,
    exchange: impl Future<Output = Result<T, HypervisorError>>,
) -> Result<T, HypervisorError> {
    match timeout(ANSWER, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(HypervisorError::Silent {
            what: what.to_owned(),
            within: ANSWER,
        }),
    }
}

/// A hypervisor's words, as long as they are worth keeping and showing, without control characters.
pub(super) fn bounded_text(text: &str) -> String {
    const MOST_CHARS: usize = 300;
    text.chars()
        .take(MOST_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
