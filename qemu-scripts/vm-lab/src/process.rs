//! A child process of the lab: logged, ended with its owner, and known to the reaper from its first instruction.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::await_::{SOON, eventually};
use crate::error::Doing;
use crate::run_dir::RunDir;
use crate::{Error, Result};

/// Writes its own id for the reaper, then becomes the program: no moment in which nobody knows of it.
const LISTED: &str = r#"echo $$ >>"$0" && exec "$@""#;

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// The process that took over from `child`, which is gone then; a pidfd names it.
    successor: Option<(u32, OwnedFd)>,
    log: PathBuf,
    kept: bool,
}

impl Process {
    /// Starts `command` with its output in `NAME.log` of the folder, appended to what an earlier one left there.
    ///
    /// # Errors
    /// There is no such program, or no room for the log.
    pub fn spawn(folder: &RunDir, name: &str, command: &Command) -> Result<Self> {
        let log = folder.join(&format!("{name}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .doing(|| format!("opening {}", log.display()))?;
        let errors = output
            .try_clone()
            .doing(|| format!("opening {}", log.display()))?;
        let child = listed(folder.path(), command)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .doing(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            successor: None,
            log,
            kept: false,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.successor
            .as_ref()
            .map_or(self.child.id(), |(id, _)| *id)
    }

    /// The process `id` took over and is meant from now on; the reaper of `folder` is told. Waits for the end of the one before.
    ///
    /// # Errors
    /// There is no such process, or the one before does not end.
    pub fn succeed_by(&mut self, id: u32, folder: &Path) -> Result<()> {
        let doing = || format!("finding process {id}");
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Error::Unexpected(format!("no process is {id}")))?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).doing(doing)?;
        let mut list = File::options()
            .append(true)
            .open(folder.join("pids"))
            .doing(doing)?;
        writeln!(list, "{id}").doing(doing)?;
        match self.successor.replace((id, handle)) {
            Some((_, before)) => await_end(&before, &self.name),
            None => self.wait_child(SOON).map(drop),
        }
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Errs when it has ended.
    ///
    /// # Errors
    /// It has ended: how, and the end of its output.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some((id, handle)) = &self.successor {
            return if has_ended(handle) {
                Err(Error::Unexpected(format!(
                    "{}, process {id}, has ended",
                    self.name
                )))
            } else {
                Ok(())
            };
        }
        match self
            .child
            .try_wait()
            .doing(|| format!("looking after {}", self.name))?
        {
            None => Ok(()),
            Some(status) => Err(self.ended(status)),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if let Some((_, handle)) = &self.successor {
            return pidfd_send_signal(handle, signal).doing(|| format!("signalling {}", self.name));
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).doing(|| format!("signalling {}", self.name))
    }

    /// Ends it at once, as a crash would, and collects it.
    ///
    /// # Errors
    /// It cannot be signalled.
    pub fn kill(&mut self) -> Result<()> {
        if let Some((_, handle)) = &self.successor {
            self.signal(Signal::KILL)?;
            return await_end(handle, &self.name);
        }
        self.child
            .kill()
            .doing(|| format!("killing {}", self.name))?;
        self.child
            .wait()
            .doing(|| format!("waiting for {}", self.name))
            .map(drop)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It does not within the time.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        if let Some((_, handle)) = &self.successor {
            // Nobody's child of ours: how it ended is not told.
            await_end(handle, &self.name)?;
            return Ok(ExitStatus::from_raw(0));
        }
        self.wait_child(within)
    }

    fn wait_child(&mut self, within: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        eventually(within, &what, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it still runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Leaves it running when the owner goes.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// The end of its output.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    fn ended(&self, status: ExitStatus) -> Error {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown".to_owned(),
        };
        Error::Ended {
            name: self.name.clone(),
            how,
            log: self.log_tail(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kept {
            if let Some((_, handle)) = &self.successor {
                let _ = pidfd_send_signal(handle, Signal::KILL);
                let _ = await_end(handle, &self.name);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Readable once the process is gone (pidfd_open(2)).
fn has_ended(handle: &OwnedFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&now)) != Ok(0)
}

fn await_end(handle: &OwnedFd, name: &str) -> Result<()> {
    eventually(SOON, &format!("{name} to end"), || {
        if has_ended(handle) {
            Ok(())
        } else {
            Err("it still runs".to_owned())
        }
    })
}

/// `command`, started in its own process group so that the terminal's signals pass it by, and listed for the reaper.
#[must_use]
pub fn listed(folder: &Path, command: &Command) -> Command {
    let mut outer = Command::new("sh");
    outer
        .args([OsStr::new("-c"), OsStr::new(LISTED)])
        .arg(folder.join("pids"));
    outer.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer.process_group(0);
    outer
}

/// Runs a program to its end.
///
/// # Errors
/// It cannot be started, or ends with a status other than 0.
pub fn run(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = impl Into<OsString>>,
) -> Result<String> {
    let program = program.as_ref();
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let line = || {
        let words = std::iter::once(program).chain(arguments.iter().map(OsString::as_os_str));
        words
            .map(OsStr::to_string_lossy)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let output = Command::new(program)
        .args(&arguments)
        .stdin(Stdio::null())
        .output()
        .doing(|| format!("starting {}", line()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let status = output
        .status
        .code()
        .unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    let output = text + &String::from_utf8_lossy(&output.stderr);
    Err(Error::Program {
        program: line(),
        status,
        output,
    })
}

/// The last lines of a log.
#[must_use]
pub fn tail(log: &Path) -> String {
    const LINES: usize = 20;
    let text = fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(LINES)..)
        .unwrap_or_default()
        .join("\n")
}
