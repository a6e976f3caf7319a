//! The daemon as a process with a state folder, to be killed and started again.
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use vmm_sys_util::tempdir::TempDir;

/// Longest wait for anything: far more than it takes, so that a slow machine does not matter.
pub const WITHIN: Duration = Duration::from_secs(60);

/// A folder with all that a daemon has: sockets, state, configuration file.
pub struct Home {
    folder: TempDir,
    /// Without a state folder.
    forgetful: bool,
}

impl Home {
    pub fn new() -> Self {
        let prefix = std::env::temp_dir().join("ringswitch-home-");
        Self {
            folder: TempDir::new_with_prefix(prefix).unwrap(),
            forgetful: false,
        }
    }

    pub fn forgetful() -> Self {
        Self {
            forgetful: true,
            ..Self::new()
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.as_path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A vhost-user port in the words of `port add`.
    pub fn vm(&self, name: &str) -> String {
        format!(
            "name={name},type=vhost-user,socket={}",
            self.text(&format!("{name}.sock"))
        )
    }

    /// The same as a section of the configuration file.
    pub fn section(&self, name: &str) -> String {
        format!(
            "[[port]]\nname = \"{name}\"\ntype = \"vhost-user\"\nsocket = \"{}\"\n",
            self.text(&format!("{name}.sock"))
        )
    }

    pub fn write(&self, text: &str) {
        std::fs::write(self.path("switch.toml"), text).unwrap();
    }

    pub fn read(&self) -> String {
        std::fs::read_to_string(self.path("switch.toml")).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringswitch"));
        command
            .args(arguments)
            .arg("--admin")
            .arg(self.path("admin.sock"))
            .env_remove("RUST_LOG")
            .env_remove("JOURNAL_STREAM")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null());
        command
    }

    /// `ringswitch` to its end, without a word about an admin socket.
    pub fn ask_anywhere(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringswitch"));
        command
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// `ringswitch` to its end.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The same; its output, when it succeeds.
    #[track_caller]
    pub fn told(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the daemon on the file, if there is one, and the state folder; does not wait for it.
    pub fn launch(&self, arguments: &[&str]) -> Daemon {
        let _ = std::fs::remove_file(self.path("notify"));
        let ready = UnixDatagram::bind(self.path("notify")).unwrap();
        let log = std::fs::File::create(self.path("log")).unwrap();
        let mut command = self.command(&["run"]);
        if !self.forgetful {
            command.arg("--state-dir").arg(self.path("state"));
        }
        command.args(arguments);
        if self.path("switch.toml").exists() {
            command.arg("--config").arg(self.path("switch.toml"));
        }
        command.env("NOTIFY_SOCKET", self.path("notify"));
        let process = command.stderr(log).spawn().unwrap();
        Daemon { process, ready }
    }

    /// Starts it and waits until it is ready.
    pub fn start(&self, arguments: &[&str]) -> Daemon {
        let mut daemon = self.launch(arguments);
        daemon
            .ready
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let deadline = Instant::now() + WITHIN;
        let mut told = [0; 16];
        while daemon.ready.recv(&mut told).is_err() {
            let ended = daemon.process.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{ended:?}: {}",
                self.log()
            );
        }
        daemon
    }

    /// What it logged since its start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// One request; `None`: it was not answered.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        exchange(&self.path("admin.sock"), (method, path), body).ok()
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let (status, body) = self.request("GET", path, "").unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}

fn exchange(
    socket: &Path,
    (method, path): (&str, &str),
    body: &str,
) -> std::io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(WITHIN))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    // What came before the connection broke still is an answer.
    let read = stream.read_to_string(&mut answer);
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    match (status, read) {
        (Some(status), _) => Ok((status, body.to_owned())),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    process: Child,
    ready: UnixDatagram,
}

impl Daemon {
    /// SIGKILL.
    pub fn kill(&mut self) {
        // It may have been killed before.
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
