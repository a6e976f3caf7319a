//! The harness's end of an agent's channel: typed questions, awaited answers.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guest_agent::protocol::{Job, Line, Outcome, Progress, Question, Reply, Request};

use crate::artefacts::Artefacts;
use crate::await_::{PATIENCE, SOON, eventually};
use crate::error::Doing;
use crate::switch::join_network_options;
use crate::{Error, Result};

/// Someone who pings, transfers and looks on our behalf: inside a guest, or on the host in some network namespace.
#[derive(Clone)]
pub struct Agent {
    name: String,
    busybox: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    writer: Mutex<Box<dyn Write + Send>>,
    inbox: Mutex<Inbox>,
    changed: Condvar,
    /// The host's agent is our own child; a guest's lives in QEMU.
    child: Mutex<Option<Child>>,
}

#[derive(Default)]
struct Inbox {
    last_id: u64,
    /// The channel that questions go to. Only its end is the agent's.
    channel: u64,
    /// The last one that was opened.
    last_channel: u64,
    boots: Vec<String>,
    replies: BTreeMap<u64, Reply>,
    closed: bool,
}

/// Another way to the same agent, not used yet: the serial port of a QEMU that its guest may move to.
pub struct Channel {
    number: u64,
    writer: UnixStream,
}

/// A job under way at an agent.
#[derive(Clone)]
pub struct RunningJob {
    agent: Agent,
    job: u64,
}

impl Agent {
    /// Connects to the serial port of a guest, as soon as QEMU listens.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn in_guest(name: &str, socket: &Path) -> Result<Self> {
        let (reader, stream) = connect(socket)?;
        Self::over((name, Path::new("/bin/busybox")), reader, stream, None)
    }

    /// Starts one on the host, in the network namespace of process `neighbour` or in our own.
    ///
    /// # Errors
    /// The agent was not built, or the namespace may not be entered.
    pub fn on_host(artefacts: &Artefacts, neighbour: Option<u32>) -> Result<Self> {
        let mut command = match neighbour {
            None => Command::new(&artefacts.guest_agent),
            Some(pid) => {
                let mut command = Command::new("nsenter");
                command
                    .args(join_network_options(pid))
                    .arg("--")
                    .arg(&artefacts.guest_agent);
                command
            }
        };
        // It ends when its input closes: with us, however we end.
        let mut child = command
            .arg("--stdio")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .doing(|| "starting the host's agent".to_owned())?;
        match (child.stdout.take(), child.stdin.take()) {
            (Some(reader), Some(writer)) => {
                Self::over(("host", &artefacts.busybox), reader, writer, Some(child))
            }
            _ => Err(Error::Unexpected(
                "the host's agent has no pipes".to_owned(),
            )),
        }
    }

    fn over(
        (name, busybox): (&str, &Path),
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        child: Option<Child>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            writer: Mutex::new(Box::new(writer)),
            inbox: Mutex::default(),
            changed: Condvar::new(),
            child: Mutex::new(child),
        });
        shared.listen(name, 0, reader)?;
        Ok(Self {
            name: name.to_owned(),
            busybox: busybox.to_path_buf(),
            shared,
        })
    }

    /// Connects to where the guest may be soon, as soon as QEMU listens. What comes from there is heard from now on; questions go
    /// there after [`Agent::move_to`].
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn open_channel(&self, socket: &Path) -> Result<Channel> {
        let (reader, writer) = connect(socket)?;
        let number = {
            let mut inbox = lock(&self.shared.inbox);
            inbox.last_channel += 1;
            inbox.last_channel
        };
        self.shared.listen(&self.name, number, reader)?;
        Ok(Channel { number, writer })
    }

    /// The guest is there now: everyone who holds this agent, or a job of it, reaches it there.
    pub fn move_to(&self, channel: Channel) {
        {
            let mut inbox = lock(&self.shared.inbox);
            // Where it was before may have gone already.
            (inbox.channel, inbox.closed) = (channel.number, false);
        }
        *lock(&self.shared.writer) = Box::new(channel.writer);
    }

    /// Whose agent this is.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Busybox, as seen from there.
    #[must_use]
    pub fn busybox(&self) -> String {
        self.busybox.to_string_lossy().into_owned()
    }

    /// Waits for the guest's `nth` boot since we connected, counted from 1.
    ///
    /// # Errors
    /// It does not come up.
    pub fn wait_boot(&self, nth: usize) -> Result<()> {
        let what = format!("boot {nth} of {}", self.name);
        self.wait(PATIENCE, &what, |inbox| {
            (inbox.boots.len() >= nth).then_some(())
        })
    }

    /// Boots seen since we connected.
    #[must_use]
    pub fn boots(&self) -> usize {
        lock(&self.shared.inbox).boots.len()
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The agent could not do it, or does not answer in time.
    pub fn ask(&self, request: Request, within: Duration) -> Result<Reply> {
        let id = {
            let mut inbox = lock(&self.shared.inbox);
            inbox.last_id += 1;
            inbox.last_id
        };
        let what = format!("an answer of {} to {request:?}", self.name);
        let mut line = serde_json::to_vec(&Question { id, request })
            .map_err(|error| Error::Unexpected(error.to_string()))?;
        line.push(b'\n');
        let written = {
            let mut writer = lock(&self.shared.writer);
            writer.write_all(&line).and_then(|()| writer.flush())
        };
        written.doing(|| format!("asking {}", self.name))?;
        match self.wait(within, &what, |inbox| inbox.replies.remove(&id))? {
            Reply::Failed(reason) => Err(Error::Agent {
                agent: self.name.clone(),
                reason,
            }),
            reply => Ok(reply),
        }
    }

    /// Runs a command line, split at white space, and returns what it printed.
    ///
    /// # Errors
    /// It ended with a status other than 0.
    pub fn run(&self, command_line: &str) -> Result<String> {
        match self.exec(command_line.split_whitespace())? {
            (0, output) => Ok(output),
            (status, output) => Err(Error::Program {
                program: format!("{}: {command_line}", self.name),
                status,
                output,
            }),
        }
    }

    /// Runs a script to its end, or to its first fault, and returns what it printed.
    ///
    /// # Errors
    /// A command in it failed.
    pub fn shell(&self, script: &str) -> Result<String> {
        match self.exec([&self.busybox(), "sh", "-ec", script])? {
            (0, output) => Ok(output),
            (status, output) => Err(Error::Program {
                program: format!("{}: {script}", self.name),
                status,
                output,
            }),
        }
    }

    /// Runs a program to its end and returns its status and what it printed.
    ///
    /// # Errors
    /// It could not be started.
    pub fn exec<'a>(&self, argv: impl IntoIterator<Item = &'a str>) -> Result<(i32, String)> {
        let argv = argv.into_iter().map(str::to_owned).collect();
        match self.ask(Request::Exec { argv }, PATIENCE)? {
            Reply::Exec { status, output } => Ok((status, output)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Starts a job.
    ///
    /// # Errors
    /// Its sockets could not be opened.
    pub fn start(&self, job: Job) -> Result<RunningJob> {
        match self.ask(Request::Start(job), SOON)? {
            Reply::Started { job } => Ok(RunningJob {
                agent: self.clone(),
                job,
            }),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Counts frames with `text` in them from now until stopped.
    ///
    /// # Errors
    /// No packet sockets there.
    pub fn sniff(&self, text: &str) -> Result<RunningJob> {
        self.start(Job::Sniff {
            text: text.to_owned(),
        })
    }

    /// Sends `text` in UDP datagrams.
    ///
    /// # Errors
    /// There is no way there.
    pub fn shout(&self, to: SocketAddr, text: &str, datagrams: u32) -> Result<()> {
        self.start(Job::Shout {
            to,
            text: text.to_owned(),
            datagrams,
        })?
        .wait()
        .map(drop)
    }

    /// Restarts the guest and waits until it is back.
    ///
    /// # Errors
    /// It does not come back.
    pub fn reboot(&self) -> Result<()> {
        self.boot_anew(Request::Reboot)
    }

    /// Has the guest start the kernel that it made ready, and waits until it is back.
    ///
    /// # Errors
    /// It does not come back.
    pub fn kexec(&self) -> Result<()> {
        self.boot_anew(Request::Kexec)
    }

    fn boot_anew(&self, how: Request) -> Result<()> {
        let boots = self.boots();
        self.ask(how, SOON)?;
        self.wait_boot(boots + 1)
    }

    fn unexpected(&self, reply: &Reply) -> Error {
        Error::Agent {
            agent: self.name.clone(),
            reason: format!("answered {reply:?}"),
        }
    }

    fn wait<T>(
        &self,
        within: Duration,
        what: &str,
        mut take: impl FnMut(&mut Inbox) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + within;
        let mut inbox = lock(&self.shared.inbox);
        loop {
            if let Some(found) = take(&mut inbox) {
                return Ok(found);
            }
            if inbox.closed {
                return Err(Error::Unexpected(format!(
                    "{} went while the lab waited for {what}",
                    self.name
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
            inbox = self
                .shared
                .changed
                .wait_timeout(inbox, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl RunningJob {
    /// How far it is.
    ///
    /// # Errors
    /// It failed.
    pub fn poll(&self) -> Result<Progress> {
        match self.agent.ask(Request::Poll { job: self.job }, SOON)? {
            Reply::Progress(progress) => Ok(progress),
            other => Err(self.agent.unexpected(&other)),
        }
    }

    /// Waits until it has come as far as `count`.
    ///
    /// # Errors
    /// It failed, ended before, or does not get there.
    pub fn wait_count(&self, count: u64) -> Result<()> {
        let what = format!("{} to reach {count}", self.agent.name);
        let progress = eventually(PATIENCE, &what, || match self.poll() {
            Ok(progress) if progress.count >= count || progress.ended => Ok(Ok(progress)),
            Ok(progress) => Err(format!("{} so far", progress.count)),
            Err(error) => Ok(Err(error)),
        })??;
        if progress.count >= count {
            return Ok(());
        }
        let reason = format!("ended after {} of {count}", progress.count);
        Err(Error::Agent {
            agent: self.agent.name.clone(),
            reason,
        })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It failed, or does not end.
    pub fn wait(&self) -> Result<Outcome> {
        match self.agent.ask(Request::Wait { job: self.job }, PATIENCE)? {
            Reply::Outcome(outcome) => Ok(outcome),
            other => Err(self.agent.unexpected(&other)),
        }
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// It failed, or does not end.
    pub fn stop(&self) -> Result<Outcome> {
        self.agent.ask(Request::Stop { job: self.job }, SOON)?;
        self.wait()
    }
}

fn connect(socket: &Path) -> Result<(UnixStream, UnixStream)> {
    let stream = eventually(SOON, "QEMU's serial socket", || {
        UnixStream::connect(socket).map_err(|e| e.to_string())
    })?;
    let reader = stream
        .try_clone()
        .doing(|| "duplicating a socket".to_owned())?;
    Ok((reader, stream))
}

impl Shared {
    /// Takes what comes over a channel, on a thread of its own, until the channel ends.
    fn listen(
        self: &Arc<Self>,
        name: &str,
        channel: u64,
        reader: impl Read + Send + 'static,
    ) -> Result<()> {
        // The thread holds no strong reference: an agent nobody asks any more may go.
        let theirs = Arc::downgrade(self);
        std::thread::Builder::new()
            .name(format!("agent-{name}"))
            .spawn(move || {
                let mut reader = BufReader::new(reader);
                let mut line = Vec::new();
                while reader
                    .read_until(b'\n', &mut line)
                    .is_ok_and(|read| read > 0)
                {
                    let Some(shared) = theirs.upgrade() else {
                        return;
                    };
                    // A guest that reboots mid-line leaves half of one: skipped.
                    if let Ok(line) = serde_json::from_slice(&line) {
                        shared.take(line);
                    }
                    line.clear();
                }
                if let Some(shared) = theirs.upgrade() {
                    let mut inbox = lock(&shared.inbox);
                    inbox.closed |= inbox.channel == channel;
                    shared.changed.notify_all();
                }
            })
            .doing(|| "starting a thread".to_owned())
            .map(drop)
    }

    fn take(&self, line: Line) {
        let mut inbox = lock(&self.inbox);
        match line {
            Line::Hello { boot_id } => inbox.boots.push(boot_id),
            Line::Answer { id, reply } => {
                inbox.replies.insert(id, reply);
            }
        }
        self.changed.notify_all();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(child) = lock(&self.child).as_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
