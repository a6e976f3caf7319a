//! The program under test, run as a process of its own.
//!
//! Used by benches and whole-program tests. Keeps true: its sockets are in a folder of its own, and neither it nor the folder outlives the
//! [`Daemon`] value.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use vmm_sys_util::tempdir::TempDir;

use crate::driver::wait::Patience;
use crate::error::{Doing, Error};

/// Names the program under test.
pub const BINARY_VARIABLE: &str = "RINGSWITCH_BIN";

/// Where the program under test is: `$RINGSWITCH_BIN`, or `ringswitch` in the build folder that the calling test or program is in, or in the
/// release or debug folder beside it.
///
/// # Errors
/// When there is none.
pub fn binary() -> Result<PathBuf, Error> {
    if let Some(named) = std::env::var_os(BINARY_VARIABLE).filter(|named| !named.is_empty()) {
        return Ok(named.into());
    }
    let own = std::env::current_exe().doing("asking for the path of this program")?;
    // target/<profile>/deps/<test>, or target/<profile>/<program>.
    let near = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("ringswitch"));
    let target = own.ancestors().nth(3).into_iter();
    let profiles = target.flat_map(|folder| {
        ["release", "debug"].map(|profile| folder.join(profile).join("ringswitch"))
    });
    near.chain(profiles)
        .find(|path| path.is_file())
        .ok_or(Error::Options(
            "no ringswitch binary: run `cargo build -p ringswitch`, or name one in RINGSWITCH_BIN",
        ))
}

/// A running `ringswitch run`.
#[derive(Debug)]
pub struct Daemon {
    binary: PathBuf,
    arguments: Vec<String>,
    folder: TempDir,
    child: Child,
    /// The process that took over from `child`, which is gone then.
    successor: Option<Successor>,
}

/// A process that is not a child of this one.
#[derive(Debug)]
struct Successor {
    pid: Pid,
    /// Names it for good, also once it is gone.
    handle: OwnedFd,
}

impl Successor {
    fn is_running(&self) -> bool {
        let mut handles = [PollFd::new(&self.handle, PollFlags::IN)];
        // Readable once it is gone (pidfd_open(2)).
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut handles, Some(&now)) == Ok(0)
    }

    fn end(&self, signal: Signal, within: Duration) -> Result<(), Error> {
        // It may be gone already.
        let _gone = pidfd_send_signal(&self.handle, signal);
        self.await_end(within)
    }

    fn await_end(&self, within: Duration) -> Result<(), Error> {
        let mut handles = [PollFd::new(&self.handle, PollFlags::IN)];
        let within = Timespec {
            tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: 0,
        };
        match poll(&mut handles, Some(&within)) {
            Ok(1..) => Ok(()),
            _ => Err(Error::Options("the daemon does not end")),
        }
    }
}

impl Daemon {
    /// Starts it with one worker and a listening vhost-user port for each name; `extra` arguments come last.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(binary: &Path, ports: &[PortArgument<'_>], extra: &[&str]) -> Result<Self, Error> {
        Self::start_in(folder()?, binary, ports, extra, None)
    }

    /// Like [`Self::start`], and waits until the daemon tells its service manager that it is ready: also how long that took.
    ///
    /// # Errors
    /// When it cannot be started, or does not say so in time.
    pub fn start_timed(
        binary: &Path,
        ports: &[PortArgument<'_>],
        extra: &[&str],
        within: Duration,
    ) -> Result<(Self, Duration), Error> {
        let folder = folder()?;
        let path = folder.as_path().join("notify");
        let manager = UnixDatagram::bind(&path).doing("binding a notification socket")?;
        // Long enough to cost nothing, short enough to notice a daemon that ended instead.
        manager
            .set_read_timeout(Some(Duration::from_millis(100)))
            .doing("setting a time-out")?;
        let started = Instant::now();
        let mut daemon = Self::start_in(folder, binary, ports, extra, Some(&path))?;
        let patience = Patience::of(within);
        let mut state = [0; 16];
        loop {
            match manager.recv(&mut state) {
                Ok(length) if state.get(..length) == Some(b"READY=1") => {
                    return Ok((daemon, started.elapsed()));
                }
                Ok(_) => {}
                Err(_) if !daemon.is_running()? => {
                    return Err(Error::Options("the daemon ended before it was ready"));
                }
                Err(_) if patience.is_over() => {
                    return Err(patience.timeout("the daemon to be ready"));
                }
                Err(_) => {}
            }
        }
    }

    fn start_in(
        folder: TempDir,
        binary: &Path,
        ports: &[PortArgument<'_>],
        extra: &[&str],
        notify: Option<&Path>,
    ) -> Result<Self, Error> {
        let mut arguments = vec![
            "run".to_owned(),
            "--admin".into(),
            in_folder(&folder, "admin"),
        ];
        for port in ports {
            let socket = in_folder(&folder, port.name);
            arguments.push("--port".into());
            arguments.push(format!(
                "name={},type=vhost-user,socket={socket},queue_pairs={}{}{}",
                port.name,
                port.queue_pairs,
                if port.more.is_empty() { "" } else { "," },
                port.more
            ));
        }
        arguments.extend(extra.iter().map(|&argument| argument.to_owned()));
        let child = spawn(binary, &arguments, &folder, notify)?;
        Ok(Self {
            binary: binary.to_owned(),
            arguments,
            folder,
            child,
            successor: None,
        })
    }

    /// The process `pid` took everything over (`ringswitch upgrade`) and is meant from now on. Waits for the end of the one before.
    ///
    /// # Errors
    /// When it is not there.
    pub fn succeed_by(&mut self, pid: u32) -> Result<(), Error> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(Error::Options("no process has such a number"))?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).doing("finding the new daemon")?;
        match self.successor.replace(Successor { pid, handle }) {
            Some(before) => before.await_end(Duration::from_secs(20)),
            None => self
                .child
                .wait()
                .doing("waiting for the old daemon's end")
                .map(drop),
        }
    }

    /// Starts it again with the same arguments, in the same folder; the old process must be gone.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.child = spawn(&self.binary, &self.arguments, &self.folder, None)?;
        self.successor = None;
        Ok(())
    }

    /// The socket of a port.
    pub fn socket(&self, port: &str) -> PathBuf {
        in_folder(&self.folder, port).into()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        let successor = self.successor.as_ref();
        successor.map_or(self.child.id(), |successor| {
            successor.pid.as_raw_nonzero().get().unsigned_abs()
        })
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn is_running(&mut self) -> Result<bool, Error> {
        if let Some(successor) = &self.successor {
            return Ok(successor.is_running());
        }
        Ok(self
            .child
            .try_wait()
            .doing("asking for the daemon's state")?
            .is_none())
    }

    /// SIGKILL, and waits for its end.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<ExitStatus, Error> {
        if let Some(successor) = &self.successor {
            successor.end(Signal::KILL, Duration::from_secs(20))?;
        }
        self.child.kill().doing("killing the daemon")?;
        self.child.wait().doing("waiting for the daemon's end")
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it does not end.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus, Error> {
        if let Some(successor) = &self.successor {
            successor.end(Signal::TERM, within)?;
            return self.child.wait().doing("waiting for the daemon's end");
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).doing("asking the daemon to end")?;
        }
        let patience = Patience::of(within);
        loop {
            if let Some(status) = self
                .child
                .try_wait()
                .doing("waiting for the daemon's end")?
            {
                return Ok(status);
            }
            if patience.is_over() {
                return Err(patience.timeout("the daemon to end after SIGTERM"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has said on standard error, restarts included.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_file(&self.folder)).unwrap_or_default()
    }

    /// Runs a client command against it, such as `["port", "show", "vm1", "--json"]`; its output on success.
    ///
    /// # Errors
    /// When it fails; the text is what it said.
    pub fn command(&self, arguments: &[&str]) -> Result<String, Error> {
        let output = Command::new(&self.binary)
            .arg("--admin")
            .arg(in_folder(&self.folder, "admin"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .doing("running a ringswitch command")?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Error::Io {
            doing: "running a ringswitch command",
            source: std::io::Error::other(text),
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already; there is nobody to tell.
        if let Some(successor) = &self.successor {
            let _gone = successor.end(Signal::KILL, Duration::from_secs(20));
        }
        let _gone = self.child.kill();
        let status = self.child.wait();
        let killed = |status: &ExitStatus| status.signal() == Some(Signal::KILL.as_raw());
        if std::thread::panicking()
            || !status
                .as_ref()
                .is_ok_and(|status| status.success() || killed(status))
        {
            eprintln!("ringswitch ended: {status:?}; it said:\n{}", self.log());
        }
    }
}

/// A vhost-user port on the command line.
#[derive(Clone, Copy, Debug)]
pub struct PortArgument<'a> {
    /// Its name, and that of its socket.
    pub name: &'a str,
    /// Queue pairs it offers.
    pub queue_pairs: u16,
    /// More `key=value` pairs, such as `vlan=10`; empty for none.
    pub more: &'a str,
}

impl<'a> PortArgument<'a> {
    /// A port with one queue pair and nothing special.
    pub const fn named(name: &'a str) -> Self {
        Self {
            name,
            queue_pairs: 1,
            more: "",
        }
    }
}

fn folder() -> Result<TempDir, Error> {
    TempDir::new()
        .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))
        .doing("making a folder")
}

fn spawn(
    binary: &Path,
    arguments: &[String],
    folder: &TempDir,
    notify: Option<&Path>,
) -> Result<Child, Error> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log_file(folder))
        .doing("opening the daemon's log")?;
    let mut command = Command::new(binary);
    command.args(arguments).stdin(Stdio::null()).stderr(log);
    if let Some(socket) = notify {
        command.env("NOTIFY_SOCKET", socket);
    }
    command.spawn().doing("starting ringswitch")
}

fn log_file(folder: &TempDir) -> PathBuf {
    folder.as_path().join("log")
}

fn in_folder(folder: &TempDir, name: &str) -> String {
    folder
        .as_path()
        .join(name)
        .with_extension("sock")
        .to_string_lossy()
        .into_owned()
}
