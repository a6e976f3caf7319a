//! What helps at a terminal: `top`, `doctor`, completions, manual pages, and the document that lists every command.
use crate::command_line::{ask, ringswitch, stderr, stdout, succeeded};
use crate::process::{Home, WITHIN};
use crate::recorder::TestSwitch;
use clap::CommandFactory;
use ringswitch::cli::Arguments;
use ringswitch::rest::Limits;
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::process::{Command, Stdio};
use std::time::Instant;
use vmm_sys_util::tempdir::TempDir;

fn folder() -> TempDir {
    TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-tools-")).unwrap()
}

/// Every command that is not hidden, by its whole name.
fn commands(command: &clap::Command, name: &str, all: &mut Vec<String>) {
    let children: Vec<_> = command
        .get_subcommands()
        .filter(|child| !child.is_hide_set() && child.get_name() != "help")
        .collect();
    if children.is_empty() {
        all.push(name.to_owned());
    }
    for child in children {
        commands(child, &format!("{name} {}", child.get_name()), all);
    }
}

fn all_commands() -> Vec<String> {
    let mut all = vec![];
    commands(&Arguments::command(), "ringswitch", &mut all);
    all
}

#[test]
fn the_document_lists_every_command_and_no_other() {
    let document = include_str!("../../../docs/cli.md");
    let mut listed: Vec<String> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `ringswitch "))
        .filter_map(|line| line.split('`').next())
        .map(|line| {
            let words = line
                .split(' ')
                .take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
            format!("ringswitch {}", words.collect::<Vec<_>>().join(" "))
        })
        .collect();
    let mut all = all_commands();
    listed.sort();
    all.sort();
    assert_eq!(listed, all);
}

#[test]
fn the_document_and_the_help_have_the_same_exit_codes() {
    let document = include_str!("../../../docs/cli.md");
    let help = ringswitch(&["--help"]).output().unwrap();
    for code in 0..=6 {
        assert!(document.contains(&format!("| {code} | ")), "{code}");
        assert!(stdout(&help).contains(&format!(" {code} ")), "{code}");
    }
    assert!(!document.contains("| 7 | ") && !stdout(&help).contains("; 7 "));
}

#[test]
fn bash_completes_commands_and_their_arguments() {
    let folder = folder();
    let script = folder.as_path().join("ringswitch.bash");
    let written = ringswitch(&["completions", "bash"]).output().unwrap();
    succeeded(&written);
    std::fs::write(&script, &written.stdout).unwrap();
    let complete = |words: &[&str]| {
        let line = words.join(" ");
        let test = format!(
            "source {} || exit 9; COMP_WORDS=({}); COMP_CWORD={}; _ringswitch ringswitch '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display(),
            words
                .iter()
                .map(|word| format!("'{word}' "))
                .collect::<String>(),
            words.len() - 1,
            words.last().unwrap(),
            words[words.len() - 2],
        );
        let output = Command::new("bash")
            .args(["--norc", "-c", &test])
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(complete(&["ringswitch", "doc"]).trim(), "doctor");
    assert_eq!(complete(&["ringswitch", "port", "capt"]).trim(), "capture");
    assert!(complete(&["ringswitch", "port", "capture", "vm1", "--"]).contains("--filter"));
}

#[test]
fn other_shells_accept_their_scripts_where_they_are() {
    for shell in ["zsh", "fish"] {
        let written = ringswitch(&["completions", shell]).output().unwrap();
        succeeded(&written);
        assert!(stdout(&written).contains("capture"));
        let folder = folder();
        let script = folder.as_path().join("script");
        std::fs::write(&script, &written.stdout).unwrap();
        match Command::new(shell).arg("-n").arg(&script).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("skipped: there is no {shell}");
            }
            output => assert!(output.as_ref().unwrap().status.success(), "{output:?}"),
        }
    }
    assert_eq!(
        ringswitch(&["completions", "sh"])
            .output()
            .unwrap()
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = folder();
    let path = folder.as_path().to_str().unwrap();
    succeeded(&ringswitch(&["man", path]).output().unwrap());
    for command in all_commands() {
        let page = folder
            .as_path()
            .join(format!("{}.1", command.replace(' ', "-")));
        let text = std::fs::read_to_string(&page)
            .unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(
            text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"),
            "{command}"
        );
    }
    assert!(
        !folder
            .as_path()
            .join("ringswitch-postcopy-pager.1")
            .exists()
    );
    let first = ringswitch(&["man"]).output().unwrap();
    succeeded(&first);
    assert!(stdout(&first).contains("Exit codes: 0 done"));
    let missing = ringswitch(&["man", "/nonexistent"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    let page = folder.as_path().join("ringswitch-port-capture.1");
    let mut man = Command::new("man");
    match man
        .args(["--warnings", "-l"])
        .arg(&page)
        .env("MANPAGER", "cat")
        .env("LC_ALL", "C.UTF-8")
        .output()
    {
        Err(error) if error.kind() == ErrorKind::NotFound => eprintln!("skipped: there is no man"),
        output => {
            let output = output.unwrap();
            assert!(output.status.success(), "{output:?}");
            assert_eq!(stderr(&output), "");
            assert!(
                stdout(&output).contains("ringswitch-port-capture"),
                "{output:?}"
            );
        }
    }
}

#[test]
fn top_prints_one_page_where_there_is_no_terminal() {
    let switch = TestSwitch::start(Limits::default());
    ask(
        &switch,
        &[
            "port",
            "add",
            "name=vm1,type=vhost-user,socket=/run/vm1.sock",
        ],
    );
    let page = ask(&switch, &["top", "--interval", "0.1"]);
    succeeded(&page);
    assert!(stdout(&page).starts_with("PORT  GUEST_TX/S"), "{page:?}");
    assert!(stdout(&page).contains("\nvm1  ") && !stdout(&page).contains('\x1b'));
    let json = ask(&switch, &["top", "--once", "--interval", "0.1", "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["ports"][0]["name"], "vm1");
    assert_eq!(
        ask(&switch, &["top", "--interval", "0"]).status.code(),
        Some(2)
    );
}

/// `ringswitch top` on a terminal of its own, made by script(1); what it shows comes out of a pipe.
struct OnTerminal {
    child: std::process::Child,
    shown: String,
}

impl OnTerminal {
    /// `None`: there is no script(1).
    fn start(switch: &TestSwitch, command: &str) -> Option<Self> {
        let binary = env!("CARGO_BIN_EXE_ringswitch");
        let line = format!("stty rows 20 cols 60; {command}; echo \"[ended $?]\"; stty -a")
            .replace("RINGSWITCH", binary);
        let child = Command::new("script")
            .args(["-qefc", &line, "/dev/null"])
            .env("RINGSWITCH_ADMIN", switch.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        match child {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("skipped: there is no script to make a terminal with");
                None
            }
            child => Some(Self {
                child: child.unwrap(),
                shown: String::new(),
            }),
        }
    }

    /// Reads on until it shows `text`; what came up to there.
    fn until(&mut self, text: &str) -> String {
        let deadline = Instant::now() + WITHIN;
        let mut bytes = [0; 4096];
        while !self.shown.contains(text) {
            assert!(
                Instant::now() < deadline,
                "{text} is not shown: {}",
                self.shown
            );
            let read = self
                .child
                .stdout
                .as_mut()
                .unwrap()
                .read(&mut bytes)
                .unwrap();
            assert!(read > 0, "it ended before it showed {text}: {}", self.shown);
            self.shown += &String::from_utf8_lossy(&bytes[..read]);
        }
        let end = self.shown.find(text).unwrap() + text.len();
        let rest = self.shown.split_off(end);
        std::mem::replace(&mut self.shown, rest)
    }

    fn press(&mut self, keys: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(keys.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Lets go of the terminal as it was found, with this exit code.
    fn is_given_back(&mut self, code: &str) {
        self.until("\x1b[?25h\x1b[?1049l");
        self.until(&format!("[ended {code}]"));
        let settings = self.until("iutf8") + &self.until("echoke");
        let words: Vec<&str> = settings.split_whitespace().collect();
        assert!(
            words.contains(&"icanon") && words.contains(&"echo"),
            "{settings}"
        );
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn top_on_a_terminal_obeys_its_keys_and_gives_the_terminal_back() {
    let switch = TestSwitch::start(Limits::default());
    ask(
        &switch,
        &[
            "port",
            "add",
            "name=vm1,type=vhost-user,socket=/run/vm1.sock",
        ],
    );
    let Some(mut top) = OnTerminal::start(&switch, "RINGSWITCH top --interval 0.1") else {
        return;
    };
    top.until("\x1b[?1049h");
    top.until("sorted by tx");
    top.until("vm1");
    top.press("s");
    top.until("sorted by rx");
    top.press("p");
    top.until("paused");
    top.press("p");
    top.until("sorted by rx    q quit");
    top.press("q");
    top.is_given_back("0");
}

#[test]
fn top_gives_the_terminal_back_when_a_signal_ends_it() {
    let switch = TestSwitch::start(Limits::default());
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        // Ctrl-C is for the shell around it too.
        let command = "trap : INT; sh -c 'echo \"[pid $$]\"; exec RINGSWITCH top --interval 0.1'";
        let Some(mut top) = OnTerminal::start(&switch, command) else {
            return;
        };
        top.until("[pid ");
        let pid = top.until("]");
        let pid = pid.trim_end_matches(']').parse().unwrap();
        top.until("sorted by tx");
        if signal == rustix::process::Signal::INT {
            top.press("\x03");
        } else {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
        }
        top.is_given_back("0");
    }
}

#[test]
fn top_follows_the_size_of_its_terminal() {
    let switch = TestSwitch::start(Limits::default());
    let command = "echo \"[tty $(tty)]\"; RINGSWITCH top --interval 0.1";
    let Some(mut top) = OnTerminal::start(&switch, command) else {
        return;
    };
    top.until("[tty ");
    let tty = top.until("]");
    let mut width = || {
        top.until("\x1b[7m");
        top.until("\x1b[0m")
            .trim_end_matches("\x1b[0m")
            .chars()
            .count()
    };
    assert_eq!(width(), 60);
    let mut stty = Command::new("stty");
    let resized = stty
        .args(["-F", tty.trim_end_matches(']'), "cols", "40"])
        .status();
    assert!(resized.unwrap().success());
    let deadline = Instant::now() + WITHIN;
    while width() != 40 {
        assert!(Instant::now() < deadline);
    }
    top.press("q");
    top.is_given_back("0");
}

#[test]
fn doctor_looks_a_host_over_and_its_exit_code_says_how_it_is() {
    let home = Home::forgetful();
    let absent = home.ask(&["doctor"]);
    assert_eq!(absent.status.code(), Some(6), "{absent:?}");
    assert!(
        stdout(&absent).contains("problem  host: admin_socket: "),
        "{absent:?}"
    );
    assert!(stdout(&absent).contains("-> start the daemon with `ringswitch run`"));
    let _daemon = home.start(&[]);
    home.told(&["port", "add", &home.vm("vm1")]);
    let report = home.ask(&["doctor", "--json"]);
    assert_eq!(report.status.code(), Some(5), "{report:?}");
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["worst"], "warning");
    let found = |about: &str, check: &str| {
        let findings = report["findings"].as_array().unwrap();
        let found = findings
            .iter()
            .find(|found| found["about"] == about && found["check"] == check);
        found
            .unwrap_or_else(|| panic!("{check} is not in {report}"))
            .clone()
    };
    assert_eq!(found("host", "daemon")["level"], "ok");
    assert_eq!(found("host", "admin_socket")["level"], "ok");
    assert_eq!(found("host", "descriptors")["level"], "ok");
    assert_eq!(found("host", "workers")["level"], "ok");
    assert_eq!(found("host", "state")["level"], "warning");
    assert_eq!(found("vm1", "state")["level"], "warning");
    assert!(
        found("vm1", "state")["finding"]
            .as_str()
            .unwrap()
            .contains("waiting for a front-end")
    );
    assert_eq!(found("vm1", "socket")["level"], "ok");
    // Somebody removes the socket.
    std::fs::remove_file(home.path("vm1.sock")).unwrap();
    let one = home.ask(&["doctor", "vm1"]);
    assert_eq!(one.status.code(), Some(6), "{one:?}");
    assert!(stdout(&one).contains("problem  vm1: socket: "), "{one:?}");
    let unknown = home.ask(&["doctor", "vm9"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
}
