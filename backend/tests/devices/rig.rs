//! A daemon with its folder, asked over its admin socket.
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vmm_sys_util::tempdir::TempDir;

/// Longest wait for anything: far more than it takes, so that a slow machine does not matter.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A running daemon; killed when dropped.
pub struct Switch {
    pub folder: TempDir,
    process: Child,
    arguments: Vec<String>,
}

impl Switch {
    /// One that forgets everything when it ends.
    pub fn start() -> Self {
        Self::with(|_| vec![])
    }

    /// One with a state folder.
    pub fn durable() -> Self {
        Self::with(|folder| {
            let state = folder.join("state").display().to_string();
            vec!["--state-dir".to_owned(), state]
        })
    }

    fn with(arguments: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let prefix = std::env::temp_dir().join("ringswitch-devices-");
        let folder = TempDir::new_with_prefix(prefix).unwrap();
        let arguments = arguments(folder.as_path());
        Self {
            process: spawn(folder.as_path(), &arguments),
            folder,
            arguments,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.as_path().join(name)
    }

    /// Ends it as a crash would, and starts it again.
    pub fn crash_and_restart(&mut self) {
        self.crash();
        self.restart();
    }

    pub fn crash(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.process = spawn(self.folder.as_path(), &self.arguments);
    }

    pub fn get(&self, path: &str) -> Value {
        let (status, body) = self.request("GET", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub fn post(&self, body: &Value) -> (u16, Value) {
        self.request("POST", "/v1/devices", &body.to_string())
    }

    /// Adds a device that is new.
    pub fn add(&self, body: &Value) -> Value {
        let (status, device) = self.post(body);
        assert_eq!(status, 201, "{device}");
        device
    }

    pub fn delete(&self, name: &str, query: &str) -> (u16, Value) {
        self.request("DELETE", &format!("/v1/devices/{name}{query}"), "")
    }

    pub fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (_, status, body) = self.exchange(method, path, "", body);
        (status, body)
    }

    /// With further headers, each with its line end; the answer's head, status and body.
    pub fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> (String, u16, Value) {
        let mut stream = UnixStream::connect(self.path("admin.sock")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(body).unwrap_or(Value::Null);
        (head.to_owned(), status, body)
    }

    pub fn device(&self, name: &str) -> Value {
        self.get(&format!("/v1/devices/{name}"))
    }

    /// Waits until a device is in a state, and returns it.
    pub fn wait_state(&self, name: &str, state: &str) -> Value {
        self.wait(|| {
            let device = self.device(name);
            if device["state"] == state {
                Ok(device)
            } else {
                Err(format!("{name} is not {state}: {device}"))
            }
        })
    }

    /// Waits until nothing of a device is left in the switch.
    pub fn wait_gone(&self, name: &str) {
        self.wait(
            || match self.request("GET", &format!("/v1/devices/{name}"), "") {
                (404, _) => Ok(()),
                (_, device) => Err(device.to_string()),
            },
        );
        let ports = self.get("/v1/ports").to_string();
        assert!(!ports.contains(&format!("\"{name}\"")), "{ports}");
    }

    pub fn wait<T>(&self, mut look: impl FnMut() -> Result<T, String>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            match look() {
                Ok(found) => return found,
                Err(reason) => assert!(Instant::now() < until, "{reason}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(folder: &Path, arguments: &[String]) -> Child {
    let mut process = Command::new(env!("CARGO_BIN_EXE_ringswitch"))
        .arg("run")
        .args(arguments)
        .arg("--admin")
        .arg(folder.join("admin.sock"))
        .env_remove("NOTIFY_SOCKET")
        .env_remove("JOURNAL_STREAM")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(process.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("ready: ") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended");
    }
    // So that it is never held up by a pipe that nobody empties; shown when a test fails.
    std::thread::spawn(move || {
        log.lines()
            .map_while(Result::ok)
            .for_each(|line| eprintln!("{line}"))
    });
    process
}

/// A virtio-net device of a QEMU.
pub fn on_qemu(name: &str, monitor: &Path) -> Value {
    json!({ "name": name, "vm": { "hypervisor": "qemu", "socket": monitor }, "model": "virtio-net" })
}

/// The same with more fields.
pub fn with(mut device: Value, more: Value) -> Value {
    let fields = device.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    device
}
