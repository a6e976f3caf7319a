//! The daemon's life as a process: start, ready, signals, restart. Ports are real here, front-ends and frames are not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test that cannot go on fails.
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use vmm_sys_util::tempdir::TempDir;

/// Longest wait for anything: far more than it takes, so that a slow machine does not matter.
const DEADLINE: Duration = Duration::from_secs(60);

fn folder() -> TempDir {
    TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-daemon-")).unwrap()
}

fn path(folder: &TempDir, name: &str) -> PathBuf {
    folder.as_path().join(name)
}

fn ringswitch(folder: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringswitch"));
    command
        .args(arguments)
        .arg("--admin")
        .arg(path(folder, "admin.sock"));
    command
        .env_remove("RUST_LOG")
        .env_remove("NOTIFY_SOCKET")
        .env_remove("JOURNAL_STREAM")
        .stdin(Stdio::null());
    command
}

fn vm(folder: &TempDir, name: &str) -> String {
    format!(
        "name={name},type=vhost-user,socket={}",
        path(folder, &format!("{name}.sock")).display()
    )
}

/// A running daemon with its log so far; killed when dropped.
struct Daemon {
    process: Child,
    log: BufReader<std::process::ChildStderr>,
}

impl Daemon {
    /// Starts it and waits until it says that it is ready.
    fn start(folder: &TempDir, arguments: &[&str]) -> Self {
        Self::spawn(ringswitch(folder, &["run"]).args(arguments))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready: ") {
            line.clear();
            assert_ne!(
                log.read_line(&mut line).unwrap(),
                0,
                "it ended: {:?}",
                process.wait()
            );
        }
        Self { process, log }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; the rest of its log.
    fn wait(&mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.process);
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (status, rest)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn wait(process: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            process.kill().unwrap();
            panic!("the process does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs it to its end.
fn ask(folder: &TempDir, arguments: &[&str]) -> Output {
    let mut command = ringswitch(folder, arguments);
    let mut process = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait(&mut process);
    process.wait_with_output().unwrap()
}

fn port_names(folder: &TempDir) -> Vec<String> {
    let output = ask(folder, &["port", "list", "--json"]);
    let list: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    list["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| port["name"].as_str().unwrap().to_owned())
        .collect()
}

fn entries(folder: &TempDir) -> Vec<String> {
    let names = std::fs::read_dir(folder.as_path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

#[test]
fn a_daemon_serves_its_configured_ports_once_it_is_ready() {
    let folder = folder();
    let file = path(&folder, "switch.toml");
    let text = format!(
        "[[port]]\nname = \"vm1\"\ntype = \"vhost-user\"\nsocket = \"{}\"\n",
        path(&folder, "vm1.sock").display()
    );
    std::fs::write(&file, text).unwrap();
    let _daemon = Daemon::start(
        &folder,
        &[
            "--config",
            file.to_str().unwrap(),
            "--port",
            &vm(&folder, "vm2"),
        ],
    );
    assert_eq!(port_names(&folder), ["vm1", "vm2"]);
    assert!(answers(&path(&folder, "vm1.sock")) && answers(&path(&folder, "vm2.sock")));
}

#[test]
fn the_admin_socket_is_for_its_owner_alone() {
    let folder = folder();
    let _daemon = Daemon::start(&folder, &[]);
    let mode = std::fs::metadata(path(&folder, "admin.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn sigterm_and_sigint_drain_and_leave_nothing() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let folder = folder();
        let mut daemon = Daemon::start(&folder, &["--port", &vm(&folder, "vm1"), "--workers", "2"]);
        daemon.signal(signal);
        let (status, log) = daemon.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert_eq!(entries(&folder), Vec::<String>::new());
    }
}

#[test]
fn sighup_and_sigpipe_change_nothing() {
    let folder = folder();
    let daemon = Daemon::start(&folder, &["--port", &vm(&folder, "vm1")]);
    daemon.signal(rustix::process::Signal::HUP);
    daemon.signal(rustix::process::Signal::PIPE);
    assert_eq!(port_names(&folder), ["vm1"]);
}

#[test]
fn a_silent_client_of_the_admin_socket_does_not_delay_the_end() {
    let folder = folder();
    let mut daemon = Daemon::start(&folder, &[]);
    let _silent: Vec<_> = (0..10)
        .map(|_| UnixStream::connect(path(&folder, "admin.sock")).unwrap())
        .collect();
    daemon.signal(rustix::process::Signal::TERM);
    let (status, log) = daemon.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn after_sigkill_it_starts_again_at_once_on_the_same_sockets() {
    let folder = folder();
    let port = vm(&folder, "vm1");
    let mut daemon = Daemon::start(&folder, &["--port", &port]);
    daemon.process.kill().unwrap();
    daemon.wait();
    assert_eq!(
        entries(&folder).len(),
        2,
        "a killed daemon leaves its sockets"
    );
    let _again = Daemon::start(&folder, &["--port", &port]);
    assert_eq!(port_names(&folder), ["vm1"]);
    assert!(answers(&path(&folder, "vm1.sock")));
}

#[test]
fn a_second_daemon_leaves_the_first_alone() {
    let folder = folder();
    let first = Daemon::start(&folder, &["--port", &vm(&folder, "vm1")]);
    let second = ask(&folder, &["run", "--port", &vm(&folder, "vm2")]);
    let error = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{error}");
    assert!(
        error.contains(&format!(
            "another ringswitch (pid {}) serves",
            first.process.id()
        )),
        "{error}"
    );
    assert_eq!(port_names(&folder), ["vm1"]);
    assert!(answers(&path(&folder, "vm1.sock")) && !path(&folder, "vm2.sock").exists());
}

#[test]
fn a_port_socket_that_another_process_serves_is_left_alone() {
    let folder = folder();
    let _other = UnixListener::bind(path(&folder, "vm1.sock")).unwrap();
    let output = ask(&folder, &["run", "--port", &vm(&folder, "vm1")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(answers(&path(&folder, "vm1.sock")));
    assert!(!path(&folder, "admin.sock").exists());
}

#[test]
fn a_port_that_cannot_come_up_is_named_with_its_line_and_nothing_is_left() {
    let folder = folder();
    let file = path(&folder, "switch.toml");
    let port = |name: &str, socket: PathBuf| {
        format!(
            "[[port]]\nname = \"{name}\"\ntype = \"vhost-user\"\nsocket = \"{}\"\n",
            socket.display()
        )
    };
    let text =
        port("vm1", path(&folder, "vm1.sock")) + &port("vm2", path(&folder, "missing/vm2.sock"));
    std::fs::write(&file, text).unwrap();
    let output = ask(&folder, &["run", "--config", file.to_str().unwrap()]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains(&format!("{}:6: port vm2: `socket`: ", file.display())),
        "{error}"
    );
    assert_eq!(entries(&folder), ["switch.toml"]);
}

#[test]
fn a_refused_configuration_changes_nothing() {
    let folder = folder();
    let file = path(&folder, "switch.toml");
    std::fs::write(&file, "[switch]\nworkers = 0\n").unwrap();
    let output = ask(&folder, &["run", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(entries(&folder), ["switch.toml"]);
}

#[test]
fn the_service_manager_is_told_of_readiness_and_of_the_end() {
    let folder = folder();
    let notify = path(&folder, "notify.sock");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let told = || {
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let mut daemon = Daemon::spawn(ringswitch(&folder, &["run"]).env("NOTIFY_SOCKET", &notify));
    assert_eq!(told(), "READY=1");
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(daemon.wait().0.code(), Some(0));
}

#[test]
fn ports_come_and_go_and_can_come_again() {
    let folder = folder();
    let _daemon = Daemon::start(&folder, &["--port", &vm(&folder, "vm1")]);
    for _ in 0..20 {
        let added = ask(&folder, &["port", "add", &vm(&folder, "vm2")]);
        assert_eq!(added.status.code(), Some(0), "{added:?}");
        assert!(answers(&path(&folder, "vm2.sock")));
        let removed = ask(&folder, &["port", "remove", "vm2"]);
        assert_eq!(removed.status.code(), Some(0), "{removed:?}");
        assert!(!path(&folder, "vm2.sock").exists());
    }
    assert_eq!(port_names(&folder), ["vm1"]);
}

#[test]
fn a_tap_port_is_there_or_refused_with_the_reason() {
    let folder = folder();
    let _daemon = Daemon::start(&folder, &[]);
    let interface = format!("rs{}", std::process::id() % 10_000_000);
    let port = format!("name=host0,type=tap,interface={interface},mtu=9000");
    let added = ask(&folder, &["port", "add", &port]);
    if added.status.success() {
        let mtu = std::fs::read_to_string(format!("/sys/class/net/{interface}/mtu")).unwrap();
        assert_eq!(mtu.trim(), "9000");
        // Removed and added at once: the interface must be free again.
        assert!(ask(&folder, &["port", "remove", "host0"]).status.success());
        let again = ask(&folder, &["port", "add", &port]);
        assert!(again.status.success(), "{again:?}");
    } else {
        let error = String::from_utf8(added.stderr).unwrap();
        assert!(
            error.contains("`interface`: cannot") && error.contains("CAP_NET_ADMIN"),
            "{error}"
        );
        assert!(port_names(&folder).is_empty());
    }
}

#[test]
fn a_limit_of_descriptors_too_low_for_the_ports_is_said_at_the_start() {
    let folder = folder();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 70; exec \"$@\"", "sh"]);
    let plain = ringswitch(&folder, &["run"]);
    limited.arg(plain.get_program()).args(plain.get_args());
    limited.args(["--port", &vm(&folder, "vm1")]);
    limited.stdin(Stdio::null()).stderr(Stdio::piped());
    let mut process = limited.spawn().unwrap();
    let log = BufReader::new(process.stderr.take().unwrap());
    let warned = log
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.contains("ready: "))
        .any(|line| line.contains("70") && line.contains("raise its limit"));
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(warned);
}

#[test]
fn a_ports_state_goes_from_one_daemon_to_another_on_the_command_line() {
    let (here, there) = (folder(), folder());
    let start = |folder: &TempDir, name| {
        let port = vm(folder, name);
        Daemon::start(
            folder,
            &["--program", "vpc", "--workers", "1", "--port", &port],
        )
    };
    let _daemons = (start(&here, "vm1"), start(&there, "guest"));
    let entry = |folder, name, domain| {
        let (key, domain) = (format!("port={name}"), format!("domain={domain}"));
        let output = ask(
            folder,
            &["table", "add", "ports", &key, "--action", "attach", &domain],
        );
        assert!(output.status.success(), "{output:?}");
    };
    entry(&here, "vm1", 7);
    let file = path(&here, "vm1.state");
    let file = file.to_str().unwrap();
    let exported = ask(&here, &["port", "export", "vm1", "-o", file]);
    assert!(
        exported.status.success() && exported.stdout.is_empty(),
        "{exported:?}"
    );
    let mode = std::fs::metadata(file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let code = |arguments: &[&str]| {
        let output = ask(&there, arguments);
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    // A byte that is turned over; the file cut short; a port that is not there; a daemon that is not there.
    let state = std::fs::read(file).unwrap();
    let mut damaged = state.clone();
    damaged[40] ^= 1;
    let bad = path(&here, "bad.state");
    let bad = bad.to_str().unwrap();
    std::fs::write(bad, &damaged).unwrap();
    let (status, text) = code(&["port", "import", "guest", bad]);
    assert!(
        status == Some(1) && text.contains("damaged") && text.contains("again"),
        "{text}"
    );
    std::fs::write(bad, &state[..state.len() / 2]).unwrap();
    let (status, text) = code(&["port", "import", "guest", bad]);
    assert!(status == Some(1) && text.contains("cut short"), "{text}");
    let (status, text) = code(&["port", "import", "nobody", file]);
    assert!(
        status == Some(1) && text.contains("no port nobody"),
        "{text}"
    );
    assert_eq!(
        code(&["port", "import", "guest", file, "--replace", "--keep"]).0,
        Some(2)
    );
    assert_eq!(
        ask(&folder(), &["port", "export", "vm1"]).status.code(),
        Some(3)
    );

    // What is there and says something else is named, and replaced when that is asked for.
    entry(&there, "guest", 99);
    let (status, text) = code(&["port", "import", "guest", file]);
    assert!(
        status == Some(1) && text.contains("table ports") && text.contains("--replace"),
        "{text}"
    );
    let imported = ask(&there, &["port", "import", "guest", file, "--replace"]);
    let text = String::from_utf8(imported.stdout).unwrap();
    assert!(
        text.contains("the state of vm1: 1 entries and settings written"),
        "{text}"
    );
    let listed = ask(&there, &["table", "entries", "ports", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["entries"][0]["params"]["domain"], 7, "{listed}");
    // Through a pipe, and as JSON.
    let mut import = ringswitch(&there, &["port", "import", "guest", "--json"]);
    let output = import
        .stdin(std::fs::File::open(file).unwrap())
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["unchanged"], &report["from"]),
        (&Value::from(1), &Value::from("vm1"))
    );
}
