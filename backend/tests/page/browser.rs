//! A browser that a test tells what to do, step by step (drive.py).

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub struct Browser {
    driver: Child,
    steps: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Browser {
    /// Opens the page; `None` where there is no browser or nothing to drive it with.
    pub fn open(address: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let python = root.join("target/vm-lab/browser-python");
        let browser = PathBuf::from("/usr/bin/chromium");
        if !python.exists() || !browser.exists() {
            eprintln!("skipped: no Chromium or no Playwright (qemu-scripts/setup installs them)");
            return None;
        }
        let mut driver = Command::new(python)
            .arg(root.join("backend/tests/page/drive.py"))
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
