//! The command line as a program: what it prints, and its exit codes. The daemon it talks to is the recorder's.

use crate::recorder::TestSwitch;
use ringswitch::rest::Limits;
use serde_json::{Value, json};
use std::process::{Command, Output, Stdio};
use vmm_sys_util::tempdir::TempDir;

pub fn ringswitch(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringswitch"));
    command
        .args(arguments)
        .env_remove("RINGSWITCH_ADMIN")
        .stdin(Stdio::null());
    command
}

fn switch() -> TestSwitch {
    TestSwitch::start(Limits::default())
}

pub fn ask(switch: &TestSwitch, arguments: &[&str]) -> Output {
    ringswitch(arguments)
        .env("RINGSWITCH_ADMIN", switch.socket())
        .output()
        .unwrap()
}

pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[track_caller]
pub fn succeeded(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(stderr(output), "");
}

const VM1: &str = "name=vm1,type=vhost-user,socket=/run/vm1.sock,vlan=trunk:10+20,native=1";

#[test]
fn a_port_is_added_listed_shown_and_removed() {
    let switch = switch();
    let added = ask(&switch, &["port", "add", VM1]);
    succeeded(&added);
    assert_eq!(stdout(&added), "port vm1 is listening\n");
    let listed = ask(&switch, &["port", "list"]);
    succeeded(&listed);
    let expected = "\
NAME  TYPE        ORIGIN   STATE      VLAN                  GUEST_TX  GUEST_RX  DROPS  AT
vm1   vhost-user  runtime  listening  trunk:10+20 native=1         7         0      3  /run/vm1.sock
";
    assert_eq!(stdout(&listed), expected);
    let shown = ask(&switch, &["port", "show", "vm1"]);
    succeeded(&shown);
    for line in [
        "origin: runtime",
        "reason: no front-end yet",
        "  guest tx: 7 frames, 700 bytes",
        "  vlan_not_allowed: 3 frames. The frame's VLAN",
    ] {
        assert!(stdout(&shown).contains(line), "{line}\n{}", stdout(&shown));
    }
    succeeded(&ask(&switch, &["port", "remove", "vm1"]));
    assert_eq!(
        ask(&switch, &["port", "show", "vm1"]).status.code(),
        Some(1)
    );
}

#[test]
fn stats_and_fdb_are_tables() {
    let switch = switch();
    ask(&switch, &["port", "add", VM1]);
    let stats = ask(&switch, &["stats"]);
    succeeded(&stats);
    assert!(
        stdout(&stats).contains("vm1   vlan_not_allowed       3\n"),
        "{}",
        stdout(&stats)
    );
    let fdb = ask(&switch, &["fdb"]);
    succeeded(&fdb);
    let expected = "\
VLAN  MAC                PORT  AGE_S
  10  52:54:00:00:00:01  vm1       2
   -  52:54:00:00:00:02  vm1       2
";
    assert_eq!(stdout(&fdb), expected);
    let page = ask(&switch, &["fdb", "--limit", "1"]);
    succeeded(&page);
    let expected = "\
VLAN  MAC                PORT  AGE_S
  10  52:54:00:00:00:01  vm1       2
more: --after 10-52:54:00:00:00:01
";
    assert_eq!(stdout(&page), expected);
    let last = ask(&switch, &["fdb", "--after", "10-52:54:00:00:00:01"]);
    assert!(!stdout(&last).contains("00:01") && stdout(&last).contains("00:02"));
}

#[test]
fn programs_get_the_daemons_json_as_it_is() {
    let switch = switch();
    succeeded(&ask(&switch, &["--json", "port", "add", VM1]));
    for (arguments, path) in [
        (&["port", "list", "--json"][..], "/v1/ports"),
        (&["port", "show", "vm1", "--json"], "/v1/ports/vm1"),
        (&["fdb", "--json"], "/v1/fdb"),
    ] {
        let output = ask(&switch, arguments);
        succeeded(&output);
        assert_eq!(
            serde_json::from_slice::<Value>(&output.stdout).unwrap(),
            switch.get(path).json()
        );
    }
    let refused = ask(&switch, &["port", "show", "vm9", "--json"]);
    assert_eq!((refused.status.code(), stdout(&refused)), (Some(1), ""));
    assert_eq!(
        serde_json::from_str::<Value>(stderr(&refused)).unwrap()["status"],
        json!(404)
    );
}

#[test]
fn a_watch_prints_until_its_reader_has_seen_enough() {
    use std::io::{BufRead, BufReader};
    let switch = switch();
    ask(&switch, &["port", "add", VM1]);
    let arguments = ["stats", "--watch", "0.1"];
    let mut watch = ringswitch(&arguments)
        .arg("--admin")
        .arg(switch.socket())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert!(
        lines
            .next()
            .unwrap()
            .unwrap()
            .starts_with("PORT  GUEST_TX/S")
    );
    assert!(
        lines
            .next()
            .unwrap()
            .unwrap()
            .starts_with("vm1            0")
    );
    drop(lines);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[test]
fn a_refusal_says_what_to_do() {
    let switch = switch();
    let refused = ask(
        &switch,
        &[
            "port",
            "add",
            "name=refused,type=vhost-user,socket=/none/vm.sock",
        ],
    );
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        stderr(&refused),
        "ringswitch: `socket`: the directory is missing; create it\n"
    );
}

#[test]
fn an_absent_daemon_is_exit_code_3() {
    let output = ringswitch(&["port", "list", "--admin", "/nonexistent/admin.sock"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output).contains("ringswitch run") && stderr(&output).contains("--admin"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_dead_daemons_socket_is_exit_code_3() {
    let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-cli-")).unwrap();
    let socket = folder.as_path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let output = ringswitch(&["fdb", "--admin", socket.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output).contains("start it again"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn wrong_usage_is_exit_code_2_with_or_without_a_daemon() {
    for arguments in [
        &["port", "add", "name=vm1"][..],
        &["port", "add", "vm1"],
        &["port", "show", "a/b"],
        &["port", "remove", ".."],
        &["stats", "--watch", "0"],
        &["nonsense"],
        &["check", "--config", "/nonexistent.toml"],
        &["run", "--workers", "0"],
        &["run", "--port", "name=a"],
    ] {
        let output = ringswitch(arguments).output().unwrap();
        assert_eq!(
            (output.status.code(), stdout(&output)),
            (Some(2), ""),
            "{arguments:?}"
        );
        assert!(!stderr(&output).is_empty());
    }
}

#[test]
fn check_accepts_what_run_would_and_changes_nothing() {
    let output = ringswitch(&[
        "check",
        "--port",
        VM1,
        "--admin",
        "/nonexistent/folder/admin.sock",
    ])
    .output()
    .unwrap();
    succeeded(&output);
    assert_eq!(stdout(&output), "ok: 1 ports, 1 workers\n");
}

#[test]
fn help_explains_the_syntax_of_a_port() {
    let output = ringswitch(&["port", "add", "--help"]).output().unwrap();
    succeeded(&output);
    assert!(
        stdout(&output).contains("vlan=trunk:ID+ID") && stdout(&output).contains("queue_pairs=N")
    );
}
