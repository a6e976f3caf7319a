//! Moving a guest from one QEMU to another while it runs: the steps, over the monitors of both.
//!
//! The target is told to wait (`migrate-incoming`) on a socket beside its own, the source to go there (`migrate`). The guest's agent
//! must not be asked anything from [`Migration::start`] to the end of it: bytes in a serial port do not travel.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::await_::{SOON, eventually};
use crate::guest::{Guest, Incoming};
use crate::qmp::Qmp;
use crate::{Error, Result};

/// When memory is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// All of it before the guest moves, in rounds.
    Precopy,
    /// What is missing after it moved, page by page as it is touched.
    Postcopy,
    /// As [`Manner::Precopy`], but it goes no further than to the point where the guest is stopped to be moved.
    Unfinished,
}

/// What a migration may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of what is sent.
    pub bytes_per_second: u64,
    /// How long the guest should stand still at most. QEMU's guess decides, not a clock.
    pub downtime_ms: u64,
}

/// A migration under way. Dropping it ends the target, and with it the migration.
pub struct Migration<'a> {
    source: &'a mut Guest,
    target: Incoming,
    /// Of postcopy: when the guest ran at the target.
    resumed: Option<SystemTime>,
    manner: Manner,
}

/// QEMU's own account of a migration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Account {
    /// From the stop at the source until the target said that it has everything; of postcopy, until the guest ran at the target.
    pub downtime_ms: u64,
    /// Of postcopy: how long no virtual CPU ran at the target because each waited for a page (QEMU: postcopy-blocktime). Of the whole
    /// phase: QEMU adds it up at its end.
    pub blocked_ms: u64,
    /// From the command to the end.
    pub total_ms: u64,
    /// Times that the dirty pages were asked for.
    pub rounds: u64,
}

impl<'a> Migration<'a> {
    /// Starts to move `source` to `target`.
    ///
    /// # Errors
    /// One of both refuses, and says why: among the reasons is a back-end that cannot track dirty pages.
    pub fn start(
        source: &'a mut Guest,
        mut target: Incoming,
        socket: PathBuf,
        manner: Manner,
        limits: Limits,
    ) -> Result<Self> {
        let uri = format!("unix:{}", socket.display());
        for qmp in [source.qmp(), target.qmp()] {
            set_capabilities(qmp, manner)?;
            qmp.clear_events();
        }
        let parameters = json!({
            "max-bandwidth": limits.bytes_per_second,
            "downtime-limit": limits.downtime_ms,
        });
        source.qmp().execute("migrate-set-parameters", parameters)?;
        target
            .qmp()
            .execute("migrate-incoming", json!({ "uri": uri }))?;
        source.qmp().execute("migrate", json!({ "uri": uri }))?;
        Ok(Self {
            source,
            target,
            resumed: None,
            manner,
        })
    }

    /// Waits until memory is copied for the `round`-th time, or the guest is stopped to be moved.
    ///
    /// # Errors
    /// The migration ended before.
    pub fn wait_round(&mut self, round: u64) -> Result<()> {
        let what = format!("round {round} of the migration");
        let source = self.source.qmp();
        eventually(SOON, &what, || {
            let state = source.execute("query-migrate", json!({}));
            match state {
                Ok(state) if number(&state, "/ram/dirty-sync-count") >= round => Ok(Ok(())),
                Ok(state) => match status(&state) {
                    "pre-switchover" => Ok(Ok(())),
                    "completed" | "failed" | "cancelled" => Ok(Err(ended(&state))),
                    _ => Err(state.to_string()),
                },
                Err(error) => Ok(Err(error)),
            }
        })?
    }

    /// Moves the guest now, with the rest of its memory to follow.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn start_postcopy(&mut self) -> Result<()> {
        self.source
            .qmp()
            .execute("migrate-start-postcopy", json!({}))
            .map(drop)
    }

    /// Waits until the guest runs at the target, and says since when.
    ///
    /// # Errors
    /// It never does; why is in the error.
    pub fn wait_resumed(&mut self) -> Result<SystemTime> {
        match self.target.qmp().wait_event("RESUME", |_| true) {
            Ok(event) => Ok(*self.resumed.insert(time_of(&event))),
            Err(error) => {
                let state = self.source.qmp().execute("query-migrate", json!({}))?;
                self.target.process().check_running()?;
                Err(Error::Unexpected(format!(
                    "{error}; the source says {state}"
                )))
            }
        }
    }

    /// Waits until the source has nothing left to do, and gives the guest as it is at the target. The source's QEMU is `source` still.
    ///
    /// # Errors
    /// The migration failed.
    pub fn finish(mut self) -> Result<(Guest, Account)> {
        wait_end(self.source.qmp(), "completed")?;
        let state = self.source.qmp().execute("query-migrate", json!({}))?;
        let mut downtime_ms = number(&state, "/downtime");
        let mut blocked_ms = 0;
        if self.manner == Manner::Postcopy {
            // What QEMU calls downtime ends there before the target has the device's state.
            let stopped = time_of(&self.source.qmp().wait_event("STOP", |_| true)?);
            let resumed = self.resumed.map_or_else(|| self.wait_resumed(), Ok)?;
            let stood = resumed.duration_since(stopped).unwrap_or_default();
            downtime_ms = u64::try_from(stood.as_millis()).unwrap_or(u64::MAX);
            let state = self.target.qmp().execute("query-migrate", json!({}))?;
            blocked_ms = number(&state, "/postcopy-blocktime");
        }
        let account = Account {
            downtime_ms,
            blocked_ms,
            total_ms: number(&state, "/total-time"),
            rounds: number(&state, "/ram/dirty-sync-count"),
        };
        let agent = self.source.agent().clone();
        Ok((self.target.arrived(&agent), account))
    }

    /// Calls it off: the guest goes on at the source.
    ///
    /// # Errors
    /// The migration ends in another way.
    pub fn cancel(self) -> Result<()> {
        self.source.qmp().execute("migrate_cancel", json!({}))?;
        wait_end(self.source.qmp(), "cancelled")?;
        wait_running(self.source.qmp())
    }

    /// Kills the target: the guest goes on at the source.
    ///
    /// # Errors
    /// The migration ends in another way.
    pub fn kill_target(mut self) -> Result<()> {
        self.target.process().kill()?;
        wait_end(self.source.qmp(), "failed")?;
        wait_running(self.source.qmp())
    }
}

fn set_capabilities(qmp: &mut Qmp, manner: Manner) -> Result<()> {
    let capabilities = [
        ("events", true),
        // As libvirt has it: the source is told that the target has everything, and counts its downtime until then.
        ("return-path", true),
        ("postcopy-ram", manner == Manner::Postcopy),
        ("postcopy-blocktime", manner == Manner::Postcopy),
        ("pause-before-switchover", manner == Manner::Unfinished),
    ]
    .map(|(capability, state)| json!({ "capability": capability, "state": state }));
    qmp.execute(
        "migrate-set-capabilities",
        json!({ "capabilities": capabilities }),
    )
    .map(drop)
}

fn wait_end(qmp: &mut Qmp, wanted: &str) -> Result<()> {
    let event = qmp.wait_event("MIGRATION", |data| {
        matches!(status(data), "completed" | "failed" | "cancelled")
    })?;
    if event.pointer("/data/status").and_then(Value::as_str) == Some(wanted) {
        return Ok(());
    }
    Err(ended(&qmp.execute("query-migrate", json!({}))?))
}

fn wait_running(qmp: &mut Qmp) -> Result<()> {
    eventually(SOON, "the guest to run on at the source", || {
        match qmp.execute("query-status", json!({})) {
            Ok(state) if status(&state) == "running" => Ok(Ok(())),
            Ok(state) => Err(state.to_string()),
            Err(error) => Ok(Err(error)),
        }
    })?
}

fn ended(state: &Value) -> Error {
    Error::Unexpected(format!("the migration ended: QEMU says {state}"))
}

fn status(state: &Value) -> &str {
    state
        .get("status")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn number(state: &Value, pointer: &str) -> u64 {
    state
        .pointer(pointer)
        .and_then(Value::as_u64)
        .unwrap_or_default()
}

/// When QEMU saw it, by the clock of the machine.
fn time_of(event: &Value) -> SystemTime {
    SystemTime::UNIX_EPOCH
        + Duration::from_secs(number(event, "/timestamp/seconds"))
        + Duration::from_micros(number(event, "/timestamp/microseconds"))
}
