//! `ringswitch events` as a program: what it prints, and how it ends.

use crate::command_line::{ask, ringswitch, stderr, stdout, succeeded};
use crate::events::place;
use crate::process::WITHIN;
use crate::recorder::TestSwitch;
use ringswitch::rest::Limits;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

/// A switch on which things have happened since the place.
fn eventful() -> (TestSwitch, String) {
    let switch = TestSwitch::start(Limits::default());
    let place = place(&switch);
    for name in ["vm1", "vm2"] {
        let port =
            json!({"name": name, "type": "vhost-user", "socket": format!("/run/{name}.sock")});
        assert_eq!(switch.post(&port).status, 201);
    }
    assert_eq!(switch.request("DELETE", "/v1/ports/vm1", "").status, 204);
    (switch, place)
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn each_event_is_a_line_and_what_is_wanted_is_picked() {
    let (switch, place) = eventful();
    let heard = |more: &[&str]| {
        let arguments = [&["events", "--after", &place, "--count"], more].concat();
        let output = ask(&switch, &arguments);
        succeeded(&output);
        stdout(&output).to_owned()
    };
    let all = heard(&["3"]);
    let lines: Vec<_> = all.lines().map(words).collect();
    assert_eq!(lines.len(), 3, "{all}");
    for (line, expected) in lines.iter().zip([
        ["port_added", "vm1"],
        ["port_added", "vm2"],
        ["port_removed", "vm1"],
    ]) {
        assert_eq!(line[2..], expected, "{all}");
        // A date and a time.
        assert!(
            line[0].starts_with("20") && line[1].matches(':').count() == 2,
            "{all}"
        );
    }
    let one = heard(&["1", "--port", "vm2"]);
    assert_eq!(words(&one)[2..], ["port_added", "vm2"]);
    let one = heard(&["1", "--kind", "port_removed", "--kind", "port_up", "--json"]);
    let one: Value = serde_json::from_str(&one).unwrap();
    let expected =
        json!({"id": one["id"], "at_ms": one["at_ms"], "event": "port_removed", "port": "vm1"});
    assert_eq!(one, expected);
    // Its place is one to go on from.
    let next = ["--count", "1", "--after", one["id"].as_str().unwrap()];
    switch.post(&json!({"name": "vm3", "type": "vhost-user", "socket": "/run/vm3.sock"}));
    let next = ask(&switch, &[&["events"], &next[..]].concat());
    assert_eq!(words(stdout(&next))[2..], ["port_added", "vm3"]);
}

#[test]
fn what_was_missed_is_told_whatever_is_picked_and_does_not_count() {
    let (switch, _) = eventful();
    let arguments = [
        "events",
        "--after",
        "1-7",
        "--count",
        "1",
        "--kind",
        "port_removed",
    ];
    let heard = ask(&switch, &arguments);
    succeeded(&heard);
    let lines: Vec<_> = stdout(&heard).lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].ends_with("an unknown number of events were missed"),
        "{lines:?}"
    );
    assert_eq!(words(lines[1])[2..], ["port_removed", "vm1"]);
}

/// Listening, with all that has happened heard; killed when dropped.
struct Listening {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Listening {
    fn start(switch: &TestSwitch, place: &str) -> Self {
        let mut child = ringswitch(&["events", "--json", "--after", place])
            .env("RINGSWITCH_ADMIN", switch.socket())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The place of the third event.
    fn heard_all(&mut self) -> String {
        let mut line = String::new();
        for _ in 0..3 {
            line.clear();
            self.lines.read_line(&mut line).unwrap();
        }
        let event: Value = serde_json::from_str(&line).unwrap();
        event["id"].as_str().unwrap().to_owned()
    }

    fn ends(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + WITHIN;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut said = String::new();
        let stderr = self.child.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_daemon_that_goes_away_ends_it_and_it_says_where_to_go_on() {
    let (switch, place) = eventful();
    let mut listening = Listening::start(&switch, &place);
    let last = listening.heard_all();
    drop(switch);
    let (code, said) = listening.ends();
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.starts_with("ringswitch: the stream has ended: the daemon")
            && said.contains(&format!("`ringswitch events --after {last}`")),
        "{said}"
    );
}

#[test]
fn signals_end_it_without_complaint() {
    let (switch, place) = eventful();
    for signal in [Signal::INT, Signal::TERM] {
        let mut listening = Listening::start(&switch, &place);
        listening.heard_all();
        let pid = i32::try_from(listening.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        assert_eq!(listening.ends(), (Some(0), String::new()));
    }
}

#[test]
fn a_refusal_is_told_as_of_any_command() {
    let switch = TestSwitch::start(Limits::default());
    let refused = ask(&switch, &["events", "--port", "a/b"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let absent = ringswitch(&["events", "--admin", "/nonexistent/admin.sock"])
        .output()
        .unwrap();
    assert_eq!(absent.status.code(), Some(3), "{}", stderr(&absent));
}
