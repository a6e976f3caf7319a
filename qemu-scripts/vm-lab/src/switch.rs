//! The `ringswitch` daemon as a child process, and its command line as a person would use it.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Signal, geteuid};
use serde_json::{Value, json};

use crate::await_::{SOON, eventually};
use crate::error::Doing;
use crate::process::{Process, run};
use crate::run_dir::RunDir;
use crate::{Error, Result};

/// A port's VLAN membership.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Vlan {
    /// One broadcast domain of all such ports.
    #[default]
    Untagged,
    /// Untagged frames of one VLAN.
    Access(u16),
    /// Tagged frames of these VLANs.
    Trunk(Vec<u16>),
}

/// A port as an operator would configure it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// Its name.
    pub name: String,
    /// What is at its other end.
    pub kind: PortKind,
    /// Its VLANs.
    pub vlan: Vlan,
    /// The MTU offered to the guest.
    pub mtu: Option<u16>,
}

/// The types of port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortKind {
    /// A guest's NIC.
    VhostUser {
        /// Where it is attached.
        socket: PathBuf,
        /// Whether the switch listens or connects.
        mode: SwitchEnd,
        /// Pairs of rings offered.
        queue_pairs: u16,
        /// Whether packed rings are offered.
        packed: bool,
    },
    /// A guest's NIC of any model, over QEMU's stream netdev.
    Stream {
        /// Where it is attached.
        socket: PathBuf,
        /// Whether the switch listens or connects.
        mode: SwitchEnd,
    },
    /// An interface of the host, or of the network namespace the switch runs in.
    Tap {
        /// Its name.
        interface: String,
    },
}

/// Which end of a port's socket the switch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwitchEnd {
    /// It listens.
    Listens,
    /// It connects.
    Connects,
}

impl PortSpec {
    /// One `[[port]]` of the configuration file.
    fn toml(&self) -> String {
        let mut text = format!("\n[[port]]\nname = {:?}\n", self.name);
        // Writing to a String cannot fail.
        let _ = match &self.kind {
            PortKind::VhostUser {
                socket,
                mode,
                queue_pairs,
                packed,
            } => write!(
                text,
                "type = \"vhost-user\"\nsocket = {socket:?}\nmode = \"{}\"\nqueue_pairs = {queue_pairs}\npacked = {packed}\n",
                mode.word()
            ),
            PortKind::Stream { socket, mode } => write!(
                text,
                "type = \"stream\"\nsocket = {socket:?}\nmode = \"{}\"\n",
                mode.word()
            ),
            PortKind::Tap { interface } => {
                write!(text, "type = \"tap\"\ninterface = {interface:?}\n")
            }
        };
        let _ = match &self.vlan {
            Vlan::Untagged => Ok(()),
            Vlan::Access(id) => writeln!(text, "vlan = {{ access = {id} }}"),
            Vlan::Trunk(ids) => writeln!(text, "vlan = {{ trunk = {ids:?} }}"),
        };
        if let Some(mtu) = self.mtu {
            let _ = writeln!(text, "mtu = {mtu}");
        }
        text
    }

    /// The same as `--port` and `port add` take it.
    fn flag(&self) -> String {
        let mut text = format!("name={}", self.name);
        let _ = match &self.kind {
            PortKind::VhostUser {
                socket,
                mode,
                queue_pairs,
                packed,
            } => write!(
                text,
                ",type=vhost-user,socket={},mode={},queue_pairs={queue_pairs},packed={packed}",
                socket.display(),
                mode.word()
            ),
            PortKind::Stream { socket, mode } => write!(
                text,
                ",type=stream,socket={},mode={}",
                socket.display(),
                mode.word()
            ),
            PortKind::Tap { interface } => write!(text, ",type=tap,interface={interface}"),
        };
        match &self.vlan {
            Vlan::Untagged => {}
            Vlan::Access(id) => text += &format!(",vlan={id}"),
            Vlan::Trunk(ids) => {
                let ids: Vec<String> = ids.iter().map(u16::to_string).collect();
                text += &format!(",vlan=trunk:{}", ids.join("+"));
            }
        }
        if let Some(mtu) = self.mtu {
            text += &format!(",mtu={mtu}");
        }
        text
    }
}

impl SwitchEnd {
    fn word(self) -> &'static str {
        match self {
            Self::Listens => "server",
            Self::Connects => "client",
        }
    }
}

/// Whose network the switch sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The machine's.
    Machine,
    /// One of its own, which goes when the switch does, with every interface in it.
    Private,
    /// That of a process that has its own, such as another switch.
    Of(u32),
}

/// How a switch is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchOptions {
    /// Whose network it sees.
    pub network: Network,
    /// Its program, a name or a file; its own when absent.
    pub program: Option<String>,
    /// The key that signs what it knows of its guests' ports, which migrates with them then.
    pub device_state_key: Option<PathBuf>,
}

impl Network {
    /// May we have one of our own? Root may; others where the kernel lets them be root in a user namespace.
    #[must_use]
    pub fn private_is_allowed() -> bool {
        run("unshare", private_network_options().iter().chain(&["true"])).is_ok()
    }
}

/// What `unshare` is told.
fn private_network_options() -> &'static [&'static str] {
    if geteuid().is_root() {
        &["--net"]
    } else {
        &["--user", "--map-root-user", "--net"]
    }
}

/// What `nsenter` is told to join the network of a switch that has its own.
pub(crate) fn join_network_options(pid: u32) -> Vec<String> {
    let mut options = vec![format!("--net=/proc/{pid}/ns/net")];
    if !geteuid().is_root() {
        options.extend([
            format!("--user=/proc/{pid}/ns/user"),
            "--preserve-credentials".to_owned(),
        ]);
    }
    options
}

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub struct Switch {
    binary: PathBuf,
    command: Command,
    process: Process,
    admin: PathBuf,
    ready: UnixDatagram,
}

impl Switch {
    /// Writes the configuration, starts the daemon and waits until it says it is ready.
    ///
    /// # Errors
    /// It does not get there; what it said is in the error.
    pub fn start(
        binary: &Path,
        folder: &RunDir,
        ports: &[PortSpec],
        options: &SwitchOptions,
    ) -> Result<Self> {
        let admin = folder.join("admin.sock");
        let config = folder.join("ringswitch.toml");
        let ring_state = folder.in_memory();
        let mut text =
            format!("[switch]\nworkers = 1\nadmin = {admin:?}\nring_state = {ring_state:?}\n");
        if let Some(program) = &options.program {
            let _ = writeln!(text, "program = {program:?}");
        }
        if let Some(key) = &options.device_state_key {
            let _ = writeln!(text, "device_state_key_file = {key:?}");
        }
        for port in ports {
            text += &port.toml();
            if let (Some(_), PortKind::VhostUser { .. }) = (&options.device_state_key, &port.kind) {
                text += "device_state = true\n";
            }
        }
        fs::write(&config, text).doing(|| format!("writing {}", config.display()))?;
        let notify = folder.join("notify.sock");
        // An earlier switch of this folder had its own there.
        let _ = fs::remove_file(&notify);
        let ready =
            UnixDatagram::bind(&notify).doing(|| format!("binding {}", notify.display()))?;
        ready
            .set_nonblocking(true)
            .doing(|| "setting up a socket".to_owned())?;
        let mut command = match options.network {
            Network::Machine => Command::new(binary),
            Network::Private => {
                let mut command = Command::new("unshare");
                command
                    .args(private_network_options())
                    .arg("--")
                    .arg(binary);
                command
            }
            Network::Of(pid) => {
                let mut command = Command::new("nsenter");
                command
                    .args(join_network_options(pid))
                    .arg("--")
                    .arg(binary);
                command
            }
        };
        command
            .arg("run")
            .arg("--config")
            .arg(&config)
            .env("NOTIFY_SOCKET", &notify);
        let process = Process::spawn(folder, "ringswitch", &command)?;
        let mut switch = Self {
            binary: binary.to_path_buf(),
            command,
            process,
            admin,
            ready,
        };
        switch.wait_ready()?;
        Ok(switch)
    }

    /// Waits for `READY=1`, as systemd would.
    fn wait_ready(&mut self) -> Result<()> {
        let mut message = [0; 256];
        eventually(SOON, "ringswitch to say it is ready", || {
            if let Err(ended) = self.process.check_running() {
                return Ok(Err(ended));
            }
            let length = self.ready.recv(&mut message).map_err(|_| String::new())?;
            let text =
                String::from_utf8_lossy(message.get(..length).unwrap_or_default()).into_owned();
            if text.lines().any(|line| line == "READY=1") {
                Ok(Ok(()))
            } else {
                Err(text)
            }
        })?
    }

    /// Ends it as a crash would: no clean-up, no goodbye.
    ///
    /// # Errors
    /// It has ended before.
    pub fn crash(&mut self) -> Result<()> {
        self.process.check_running()?;
        self.process.kill()
    }

    /// Has another process of the same program take everything over; what the command says of it.
    ///
    /// # Errors
    /// It does not, or the process before does not end.
    pub fn upgrade(&mut self, folder: &RunDir) -> Result<Value> {
        let report = self.cli_json(&["upgrade"])?;
        let pid = report.get("pid").and_then(Value::as_u64);
        let pid = pid.and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| Error::Unexpected(format!("upgrade: {report}")))?;
        self.process.succeed_by(pid, folder.path())?;
        Ok(report)
    }

    /// Starts it again, with the same configuration, after a crash.
    ///
    /// # Errors
    /// It does not come up.
    pub fn restart(&mut self, folder: &RunDir) -> Result<()> {
        self.process = Process::spawn(folder, "ringswitch", &self.command)?;
        self.wait_ready()
    }

    /// Asks it to end, and waits until it has, in good order.
    ///
    /// # Errors
    /// It does not end, or not with status 0.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        let status = self.process.wait(SOON)?;
        if status.success() {
            return Ok(());
        }
        let status = status.code().unwrap_or(-1);
        Err(Error::Program {
            program: "ringswitch run".to_owned(),
            status,
            output: self.process.log_tail(),
        })
    }

    /// Runs a command of its command line and returns what it prints.
    ///
    /// # Errors
    /// The command fails.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let admin = self.admin.to_string_lossy();
        run(
            &self.binary,
            arguments.iter().copied().chain(["--admin", &admin]),
        )
    }

    /// The same with `--json`, parsed.
    ///
    /// # Errors
    /// The command fails, or prints something else.
    pub fn cli_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.cli(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text)
            .map_err(|error| Error::Unexpected(format!("{arguments:?} --json: {error}: {text}")))
    }

    /// Carries out a batch of updates of the program's tables, whole or not at all.
    ///
    /// # Errors
    /// It is refused.
    pub fn batch(&self, updates: &[Value]) -> Result<()> {
        let file = self.admin.with_file_name("batch.json");
        fs::write(&file, json!({ "updates": updates }).to_string())
            .doing(|| format!("writing {}", file.display()))?;
        self.cli(&["table", "batch", &file.to_string_lossy()])
            .map(drop)
    }

    /// Puts `body` there, and returns what that is answered.
    ///
    /// # Errors
    /// The answer is not 200.
    pub fn put(&self, path: &str, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let headers = format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
        self.request(&format!("PUT {path}"), &headers, &body)
    }

    /// Returns what is there.
    ///
    /// # Errors
    /// The answer is not 200.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.request(&format!("GET {path}"), "", "")
    }

    /// Sends a request to the admin socket.
    fn request(&self, what: &str, headers: &str, body: &str) -> Result<Value> {
        let request = format!(
            "{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n{body}"
        );
        let doing = || format!("asking {} to {what}", self.admin.display());
        let mut stream = UnixStream::connect(&self.admin).doing(doing)?;
        stream.set_read_timeout(Some(SOON)).doing(doing)?;
        stream.write_all(request.as_bytes()).doing(doing)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).doing(doing)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => serde_json::from_str(body)
                .map_err(|error| Error::Unexpected(format!("{what} is answered {body}: {error}"))),
            _ => Err(Error::Unexpected(format!("{what} is answered {answer}"))),
        }
    }

    /// Adds a port to the running switch.
    ///
    /// # Errors
    /// It is refused.
    pub fn add_port(&self, port: &PortSpec) -> Result<()> {
        self.cli(&["port", "add", &port.flag()]).map(drop)
    }

    /// Removes a port from the running switch.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn remove_port(&self, name: &str) -> Result<()> {
        self.cli(&["port", "remove", name]).map(drop)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its binary.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Its admin socket.
    #[must_use]
    pub fn admin(&self) -> &Path {
        &self.admin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_written_as_the_daemon_reads_it() {
        let port = PortSpec {
            name: "vm1".to_owned(),
            kind: PortKind::VhostUser {
                socket: "/x/vm1.sock".into(),
                mode: SwitchEnd::Connects,
                queue_pairs: 2,
                packed: true,
            },
            vlan: Vlan::Trunk(vec![10, 20]),
            mtu: Some(9000),
        };
        assert_eq!(
            port.flag(),
            "name=vm1,type=vhost-user,socket=/x/vm1.sock,mode=client,queue_pairs=2,packed=true,vlan=trunk:10+20,mtu=9000"
        );
        assert_eq!(
            port.toml(),
            "\n[[port]]\nname = \"vm1\"\ntype = \"vhost-user\"\nsocket = \"/x/vm1.sock\"\nmode = \"client\"\n\
             queue_pairs = 2\npacked = true\nvlan = { trunk = [10, 20] }\nmtu = 9000\n"
        );
    }
}
