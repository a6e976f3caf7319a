//! Ports and table entries in one go: all of it or nothing, and durable as one.

use crate::command_line::{ask, ringswitch, stderr, stdout, succeeded};
use crate::fake_engine::FakeEngine;
use crate::process::Home;
use crate::recorder::{Answer, TestSwitch};
use ringswitch::rest::Limits;
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;
use vmm_sys_util::tempdir::TempDir;

fn vm(name: &str) -> Value {
    json!({"name": name, "type": "vhost-user", "socket": format!("/run/{name}.sock")})
}

fn add(name: &str) -> Value {
    json!({ "add": vm(name) })
}

fn remove(name: &str) -> Value {
    json!({"remove": {"name": name}})
}

fn batch(switch: &TestSwitch, body: &Value) -> Answer {
    switch.request("POST", "/v1/batch", &body.to_string())
}

fn names(switch: &TestSwitch) -> Vec<String> {
    let list = switch.get("/v1/ports").json();
    let ports = list["ports"].as_array().unwrap().iter();
    ports
        .map(|port| port["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn ports_come_and_go_together() {
    let switch = TestSwitch::start(Limits::default());
    switch.post(&vm("vm1"));
    let done = batch(
        &switch,
        &json!({"ports": [add("vm2"), remove("vm1"), add("vm3")]}),
    );
    assert_eq!(done.status, 200, "{done:?}");
    assert_eq!(
        done.json(),
        json!({"added": 2, "removed": 1, "updates": 0, "durable": false})
    );
    assert_eq!(names(&switch), ["vm2", "vm3"]);
    // What is there already is no change.
    let again = batch(&switch, &json!({"ports": [add("vm2")]}));
    assert_eq!((again.status, &again.json()["added"]), (200, &json!(0)));
    assert_eq!(batch(&switch, &json!({})).status, 200);
}

#[test]
fn one_that_cannot_be_leaves_nothing_and_disturbs_nothing() {
    let switch = TestSwitch::start(Limits::default());
    switch.post(&vm("vm1"));
    for (ports, status, field) in [
        (
            json!([add("vm2"), add("refused"), remove("vm1")]),
            422,
            "ports[1].socket",
        ),
        (json!([add("vm2"), remove("vm9")]), 404, "ports[1].name"),
        (
            json!([add("vm2"), {"add": {"name": "vm3", "type": "vhost-user", "socket": "/run/vm2.sock"}}]),
            409,
            "ports[1].socket",
        ),
        (
            json!([add("vm2"), {"add": {"name": "vm1", "type": "tap", "interface": "x"}}]),
            409,
            "ports[1].name",
        ),
        (json!([remove("vm1"), add("vm1")]), 422, "ports[1]"),
        (
            json!([add("vm2"), {"add": {"name": "vm3", "type": "veth"}}]),
            422,
            "ports[1].add.type",
        ),
    ] {
        let answer = batch(&switch, &json!({ "ports": ports }));
        let problem = answer.problem();
        assert_eq!(
            (answer.status, &problem["field"]),
            (status, &json!(field)),
            "{ports}: {problem}"
        );
        assert_eq!(names(&switch), ["vm1"], "{ports}");
    }
    // Of the port that stayed nothing was done but what brought it up.
    let of_vm1 = switch.record.steps();
    assert!(
        of_vm1
            .iter()
            .filter(|step| format!("{step:?}").contains("vm1"))
            .count()
            <= 2,
        "{of_vm1:?}"
    );
}

#[test]
fn what_is_no_batch_is_refused() {
    let switch = TestSwitch::start(Limits::default());
    for (body, status) in [
        (json!({"port": []}), 422),
        (
            json!({"ports": [{"add": vm("vm1"), "remove": {"name": "x"}}]}),
            400,
        ),
        (json!({"ports": [{"replace": vm("vm1")}]}), 422),
        (
            json!({"ports": [{"remove": {"name": "vm1", "force": true}}]}),
            422,
        ),
        (json!({"updates": [{"clear": {"table": "t"}}]}), 404),
        (json!({"ports": vec![remove("x"); 257]}), 413),
    ] {
        assert_eq!(batch(&switch, &body).problem()["status"], status, "{body}");
    }
}

#[test]
fn a_change_of_tables_that_cannot_be_takes_the_ports_along() {
    let switch = TestSwitch::with_tables(FakeEngine::default().into());
    let entry =
        |table: &str| json!({"insert": {"table": table, "key": {"port": "vm1"}, "action": "drop"}});
    let refused = batch(
        &switch,
        &json!({"ports": [add("vm1")], "updates": [entry("no-such-table")]}),
    );
    let problem = refused.problem();
    assert_eq!(
        (refused.status, &problem["update"]),
        (404, &json!(0)),
        "{problem}"
    );
    assert!(names(&switch).is_empty());
    let steps = switch.record.steps();
    assert!(
        !steps.is_empty() && steps.len().is_multiple_of(2),
        "what was opened is closed: {steps:?}"
    );
}

#[test]
fn ports_and_entries_outlive_a_kill_together() {
    let home = Home::new();
    let mut daemon = home.start(&["--program", "vpc"]);
    let port = |name: &str| json!({"add": {"name": name, "type": "vhost-user", "socket": home.text(&format!("{name}.sock"))}});
    let set = json!({"set_multicast": {"group": 7, "ports": ["vm1", "vm2"]}});
    let body = json!({"ports": [port("vm1"), port("vm2")], "updates": [set]});
    let (status, done) = home
        .request("POST", "/v1/batch", &body.to_string())
        .unwrap();
    assert_eq!(status, 200, "{done}");
    assert!(done.contains("\"durable\":true"), "{done}");
    let bad = json!({"ports": [port("vm3"), {"remove": {"name": "vm1"}}], "updates": [{"clear": {"table": "nothing"}}]});
    let (status, refused) = home.request("POST", "/v1/batch", &bad.to_string()).unwrap();
    assert_eq!(status, 404, "{refused}");
    let kept = |home: &Home| {
        let ports = home.get("/v1/ports");
        let names: Vec<String> = ports["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|port| port["name"].as_str().unwrap().to_owned())
            .collect();
        (names, home.get("/v1/multicast")["groups"].clone())
    };
    let expected = (
        vec!["vm1".to_owned(), "vm2".to_owned()],
        json!([{"group": 7, "ports": ["vm1", "vm2"]}]),
    );
    assert_eq!(kept(&home), expected);
    assert!(!home.path("vm3.sock").exists());
    daemon.kill();
    let _daemon = home.start(&["--program", "vpc"]);
    assert_eq!(kept(&home), expected);
}

#[test]
fn the_command_sends_a_file_and_says_what_was_done() {
    let switch = TestSwitch::start(Limits::default());
    switch.post(&vm("vm1"));
    let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-batch-")).unwrap();
    let path = folder.as_path().join("file");
    let run = |body: &Value, more: &[&str]| {
        std::fs::write(&path, body.to_string()).unwrap();
        let arguments = [&["batch", path.to_str().unwrap()], more].concat();
        ask(&switch, &arguments)
    };
    let body = json!({"ports": [add("vm2"), remove("vm1"), add("vm3")]});
    let done = run(&body, &[]);
    succeeded(&done);
    assert_eq!(
        stdout(&done),
        "2 ports added, 1 removed, 0 changes of tables, not durable: the daemon has no state_dir\n"
    );
    let again = run(&json!({"ports": [add("vm2")]}), &[]);
    assert_eq!(stdout(&again), "nothing had to be done\n");
    let refused = run(&json!({"ports": [add("vm4"), add("refused")]}), &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        stderr(&refused),
        "ringswitch: `ports[1].socket`: the directory is missing; create it\n"
    );
    let refused = run(
        &json!({"updates": [{"clear": {"table": "t"}}]}),
        &["--json"],
    );
    let problem: Value = serde_json::from_str(stderr(&refused)).unwrap();
    assert_eq!(
        (&problem["status"], &problem["field"]),
        (&json!(404), &json!("updates"))
    );
    assert_eq!(names(&switch), ["vm2", "vm3"]);
    let missing = ask(&switch, &["batch", "/nonexistent/file"]);
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    assert!(stderr(&missing).contains("name a readable file"));
}

#[test]
fn the_command_reads_standard_input() {
    let switch = TestSwitch::start(Limits::default());
    let mut child = ringswitch(&["batch", "-", "--json"])
        .env("RINGSWITCH_ADMIN", switch.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let body = json!({"ports": [add("vm1")]}).to_string();
    stdin.write_all(body.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        done,
        json!({"added": 1, "removed": 0, "updates": 0, "durable": false})
    );
    assert_eq!(names(&switch), ["vm1"]);
}
