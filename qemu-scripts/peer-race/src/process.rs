//! Processes of the race: they end with it whatever happens, and can be frozen while another side has its turn.
//!
//! Called by the switches and guests on the main thread, which must be the one that starts processes: the kernel ends them when the thread
//! that started them ends. Keeps true: no process outlives the race, not even when it is killed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Doing, Error, Result};

/// For what happens at once on an idle machine.
pub const SOON: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Looks until `look` finds something; what it says otherwise is shown when time runs out.
///
/// # Errors
/// [`Error::Deadline`], or what `look` fails with.
pub fn eventually<T>(
    within: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<std::result::Result<T, String>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match look()? {
            Ok(found) => return Ok(found),
            Err(last) if start.elapsed() >= within => {
                let said = if last.is_empty() {
                    last
                } else {
                    format!(" ({last})")
                };
                let what = what.to_owned();
                return Err(Error::Deadline { what, within, said });
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Becomes the program, unless the parent that `$0` names has ended before it could be tied to it.
const UNLESS_ORPHANED: &str = r#"[ "$PPID" = "$0" ] && exec "$@""#;

/// `command`, killed by the kernel when this thread ends, and out of reach of the terminal's signals.
fn ends_with_us(command: &Command) -> Command {
    let mut outer = Command::new("setpriv");
    outer.args(["--pdeathsig", "KILL", "--", "sh", "-c", UNLESS_ORPHANED]);
    outer.arg(std::process::id().to_string());
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

/// A running child. Dropping it kills and collects it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// `None`: its output goes to a terminal that somebody else reads.
    log: Option<PathBuf>,
}

impl Process {
    /// Starts `command` with its output in `NAME.log` of a folder.
    ///
    /// # Errors
    /// There is no such program.
    pub fn start(folder: &Path, name: &str, command: &Command) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log).doing(|| format!("creating {}", log.display()))?;
        let errors = output
            .try_clone()
            .doing(|| format!("opening {}", log.display()))?;
        let child = ends_with_us(command)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .doing(|| format!("starting {name} (with setpriv, of util-linux)"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: Some(log),
        })
    }

    /// Starts `command` on a terminal.
    ///
    /// # Errors
    /// There is no such program.
    pub fn start_on(terminal: &File, name: &str, command: &Command) -> Result<Self> {
        let end = || {
            terminal
                .try_clone()
                .doing(|| format!("opening a terminal for {name}"))
        };
        let child = ends_with_us(command)
            .stdin(end()?)
            .stdout(end()?)
            .stderr(end()?)
            .spawn()
            .doing(|| format!("starting {name} (with setpriv, of util-linux)"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: None,
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Errs when it has ended.
    ///
    /// # Errors
    /// [`Error::Ended`].
    pub fn check_running(&mut self) -> Result<()> {
        let status = self
            .child
            .try_wait()
            .doing(|| format!("looking after {}", self.name))?;
        match status {
            None => Ok(()),
            Some(status) => Err(self.ended(status)),
        }
    }

    fn ended(&self, status: ExitStatus) -> Error {
        Error::Ended {
            name: self.name.clone(),
            how: how_it_ended(status),
            said: self.said(),
        }
    }

    /// The end of its log.
    pub fn said(&self) -> String {
        let text = self
            .log
            .as_ref()
            .and_then(|log| fs::read(log).ok())
            .unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&text))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .doing(|| format!("signalling {}", self.name))
    }

    /// Takes it off its cores, as it is, until [`Self::thaw`].
    ///
    /// # Errors
    /// It has ended, or does not stop.
    pub fn freeze(&mut self) -> Result<()> {
        self.check_running()?;
        self.signal(Signal::STOP)?;
        let what = format!("{} to be stopped", self.name);
        eventually(SOON, &what, || Ok(self.all_threads_stopped()))
    }

    fn all_threads_stopped(&self) -> std::result::Result<(), String> {
        let threads =
            fs::read_dir(format!("/proc/{}/task", self.id())).map_err(|e| e.to_string())?;
        for thread in threads.flatten() {
            // A thread that has ended meanwhile runs no more.
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The state follows the name, which is in brackets and may hold anything (proc(5)).
            let state = stat.rsplit_once(") ").map_or("T", |(_, rest)| rest);
            if !state.starts_with(['T', 't', 'Z', 'X']) {
                return Err(format!(
                    "thread {} still runs",
                    thread.file_name().display()
                ));
            }
        }
        Ok(())
    }

    /// Lets it run on.
    ///
    /// # Errors
    /// It has ended.
    pub fn thaw(&mut self) -> Result<()> {
        self.check_running()?;
        self.signal(Signal::CONT)
    }

    /// Asks it to end, insists when it does not, and collects it.
    ///
    /// # Errors
    /// It cannot be signalled.
    pub fn end(&mut self, within: Duration) -> Result<()> {
        if self.check_running().is_err() {
            return Ok(());
        }
        self.signal(Signal::TERM)?;
        self.signal(Signal::CONT)?;
        let gone = self.wait(within);
        if gone.is_err() {
            self.child
                .kill()
                .doing(|| format!("killing {}", self.name))?;
        }
        self.child
            .wait()
            .doing(|| format!("waiting for {}", self.name))
            .map(drop)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub fn wait(&mut self, within: Duration) -> Result<()> {
        let what = format!("{} to end", self.name);
        eventually(within, &what, || {
            Ok(self.check_running().err().map(drop).ok_or(String::new()))
        })
    }

    /// CPU time it has used so far, all threads together.
    ///
    /// # Errors
    /// It is gone.
    pub fn threads_cpu_time(&self) -> Result<Vec<(String, Duration)>> {
        Ok(guest_sim::bench::cores::threads_cpu_time(self.id())?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; there is nobody to tell.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Runs a program to its end; its standard output.
///
/// # Errors
/// It cannot be started, ends with a status other than 0, or does not end in time.
pub fn run(command: &mut Command, within: Duration) -> Result<String> {
    let line = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words
            .map(OsStr::to_string_lossy)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let program = line();
    let mut child = ends_with_us(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| format!("starting {program}"))?;
    // What is run here says less than a pipe holds.
    let ended = eventually(within, &program, || {
        let status = child
            .try_wait()
            .doing(|| format!("waiting for {program}"))?;
        Ok(status.ok_or_else(|| "it still runs".to_owned()))
    });
    if ended.is_err() {
        let _gone = child.kill();
    }
    let output = child
        .wait_with_output()
        .doing(|| format!("reading from {program}"))?;
    let status = ended?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if status.success() {
        return Ok(text);
    }
    let said = text + &String::from_utf8_lossy(&output.stderr);
    let how = how_it_ended(status);
    Err(Error::Program { program, how, said })
}

fn how_it_ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

/// The end of a text: what a person wants to see of a log.
pub fn last_lines(text: &str) -> String {
    const LINES: usize = 15;
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(LINES);
    lines.get(start..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Process {
        let mut command = Command::new("sleep");
        command.arg("600");
        let folder = std::env::temp_dir();
        let name = format!(
            "peer-race-test-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let process = Process::start(&folder, &name, &command).unwrap();
        fs::remove_file(folder.join(format!("{name}.log"))).unwrap();
        process
    }

    #[test]
    fn a_frozen_process_is_stopped_and_goes_on_when_thawed() {
        let mut process = sleeper();
        process.freeze().unwrap();
        assert_eq!(process.all_threads_stopped(), Ok(()));
        process.thaw().unwrap();
        eventually(SOON, "it to run on", || {
            Ok(process.all_threads_stopped().err().ok_or(String::new()))
        })
        .unwrap();
    }

    #[test]
    fn a_frozen_process_ends_when_told_to() {
        let mut process = sleeper();
        process.freeze().unwrap();
        process.end(SOON).unwrap();
        assert!(matches!(process.check_running(), Err(Error::Ended { .. })));
    }

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        let id = std::thread::spawn(|| {
            let process = sleeper();
            let id = process.id();
            // It is tied to this thread before it becomes what it is to be.
            eventually(SOON, "it to be itself", || {
                let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
                Ok(if name == "sleep\n" { Ok(()) } else { Err(name) })
            })
            .unwrap();
            // As when this program is killed: nobody runs the clean-up.
            std::mem::forget(process);
            id
        })
        .join()
        .unwrap();
        let state = || fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        eventually(SOON, "it to be killed", || {
            let state = state();
            let dead = state.is_empty() || state.contains(") Z");
            Ok(if dead { Ok(()) } else { Err(state) })
        })
        .unwrap();
    }

    #[test]
    fn a_program_that_fails_or_hangs_is_an_error_with_its_output() {
        let failed = run(
            Command::new("sh").args(["-c", "echo why >&2; exit 3"]),
            SOON,
        );
        let text = failed.unwrap_err().to_string();
        assert!(text.contains("status 3") && text.contains("why"), "{text}");
        let hung = run(Command::new("sleep").arg("600"), Duration::from_millis(50));
        assert!(matches!(hung, Err(Error::Deadline { .. })), "{hung:?}");
    }
}
