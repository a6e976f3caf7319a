//! A browser that a test tells what to do, step by step (drive.py), and how it gets at an admin socket.

use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};

/// Where the driver is, below the project's folder.
const DRIVER: &str = "backend/tests/page/drive.py";

pub struct Browser {
    driver: Child,
    steps: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Browser {
    /// Opens the page; `None` where there is no browser or nothing to drive it with.
    pub fn open(address: &str) -> Option<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut above = here.ancestors();
        let root = above.find(|folder| folder.join(DRIVER).exists()).unwrap();
        let python = root.join("target/vm-lab/browser-python");
        let browser = PathBuf::from("/usr/bin/chromium");
        if !python.exists() || !browser.exists() {
            eprintln!("skipped: no Chromium or no Playwright (qemu-scripts/setup installs them)");
            return None;
        }
        let mut driver = Command::new(python)
            .arg(root.join(DRIVER))
            .arg(address)
            .arg(browser)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Some(Self {
            steps: driver.stdin.take(),
            answers: BufReader::new(driver.stdout.take().unwrap()),
            driver,
        })
    }

    /// Takes a step; what it tells.
    pub fn step(&mut self, step: &[&str]) -> Value {
        self.take(json!(step))
    }

    #[allow(dead_code, reason = "not every test of the page needs it")]
    /// Opens the page anew in a window of this many pixels.
    pub fn resize(&mut self, width: u32, height: u32) {
        self.take(json!(["open", width, height]));
    }

    fn take(&mut self, step: Value) -> Value {
        writeln!(self.steps.as_mut().unwrap(), "{step}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("{step}: {line}"));
        assert!(answer["error"].is_null(), "{}", answer["error"]);
        answer["ok"].clone()
    }

    #[allow(dead_code, reason = "not every test of the page needs it")]
    pub fn text(&mut self, selector: &str) -> String {
        self.step(&["text", selector]).as_str().unwrap().to_owned()
    }

    /// Waits until an element has this text.
    pub fn sees(&mut self, selector: &str, part: &str) {
        self.step(&["sees", selector, part]);
    }

    /// Keeps what the page looks like, where `$RINGSWITCH_SCREENSHOTS` says; for the README.
    pub fn picture(&mut self, name: &str) {
        if let Some(folder) = std::env::var_os("RINGSWITCH_SCREENSHOTS") {
            let file = Path::new(&folder).join(name);
            self.step(&["picture", file.to_str().unwrap()]);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends when there are no more steps, and its browser with it.
        self.steps = None;
        let _ = self.driver.wait();
    }
}

/// The admin socket for browsers, which know TCP only.
pub struct Door {
    address: String,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    pub fn open(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let thread = thread::spawn(move || {
            for client in listener.incoming() {
                // Whoever says nothing at all closes the door.
                if !admit(&client.unwrap(), &socket) {
                    return;
                }
            }
        });
        Self {
            address,
            thread: Some(thread),
        }
    }

    /// As a URL.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let address = self
            .address
            .trim_start_matches("http://")
            .trim_end_matches('/');
        if let Ok(last) = TcpStream::connect(address) {
            let _ = last.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn admit(client: &TcpStream, socket: &Path) -> bool {
    let mut first = [0];
    if !matches!(client.peek(&mut first), Ok(1)) {
        return false;
    }
    let Ok(daemon) = UnixStream::connect(socket) else {
        return true;
    };
    let (mut from_client, mut to_client) =
        (client.try_clone().unwrap(), client.try_clone().unwrap());
    let (mut from_daemon, mut to_daemon) = (daemon.try_clone().unwrap(), daemon);
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_daemon);
        let _ = to_daemon.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        let _ = io::copy(&mut from_daemon, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    true
}
