//! Lists in pages, and changes that depend on what the client saw.
use crate::fake_engine::FakeEngine;
use crate::recorder::{Answer, TestSwitch};
use ringswitch::rest::Limits;
use serde_json::{Value, json};
use std::sync::Arc;

fn switch() -> TestSwitch {
    TestSwitch::with_tables(Arc::new(FakeEngine::default()))
}

fn vm(number: u8) -> Value {
    json!({"name": format!("vm{number}"), "type": "vhost-user", "socket": format!("/run/vm{number}.sock")})
}

fn rule(dst_port: &str) -> Value {
    json!({"key": {"port": "vm1", "dst_port": dst_port}, "priority": 10, "action": "allow", "params": {"mark": 5}})
}

fn tag(answer: &Answer) -> String {
    let line = answer.head.lines().find(|line| line.starts_with("etag: "));
    line.expect(&answer.head)["etag: ".len()..].to_owned()
}

fn seen(switch: &TestSwitch, path: &str) -> String {
    let answer = switch.get(path);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    tag(&answer)
}

fn send(switch: &TestSwitch, (method, path): (&str, &str), header: &str, body: &str) -> Answer {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    switch.send(request.as_bytes())
}

/// A change under `If-Match`.
fn change_if(switch: &TestSwitch, change: (&str, &str), tag: &str, body: &Value) -> u16 {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let answer = send(switch, change, &format!("If-Match: {tag}"), &body);
    if answer.status >= 400 {
        assert_eq!(answer.problem()["field"], "If-Match", "{change:?}");
    }
    answer.status
}

/// Pages of one row each: what their rows are called.
fn pages(switch: &TestSwitch, path: &str, list: &str, name: &str) -> Vec<Value> {
    let mut found = vec![];
    let mut page = switch.get(&format!("{path}?limit=1")).json();
    loop {
        let rows = page[list].as_array().unwrap();
        assert_eq!(rows.len(), 1, "{page}");
        found.push(rows[0][name].clone());
        let next = match &page["next"] {
            Value::Null => return found,
            Value::String(text) => text.clone(),
            number => number.to_string(),
        };
        page = switch.get(&format!("{path}?limit=1&after={next}")).json();
    }
}

#[test]
fn long_lists_come_in_pages() {
    let switch = TestSwitch::start(Limits::default());
    (1..=3).for_each(|number| assert_eq!(switch.post(&vm(number)).status, 201));
    assert_eq!(
        pages(&switch, "/v1/ports", "ports", "name"),
        ["vm1", "vm2", "vm3"]
    );
    assert_eq!(
        pages(&switch, "/v1/fdb", "entries", "mac"),
        ["52:54:00:00:00:01", "52:54:00:00:00:02"]
    );
    // Where nothing is said, all.
    let all = switch.get("/v1/ports").json();
    assert_eq!(
        (all["ports"].as_array().unwrap().len(), &all["next"]),
        (3, &Value::Null)
    );
    let behind = switch.get("/v1/ports?after=0").json();
    assert_eq!(behind["ports"].as_array().unwrap().len(), 2);
    for query in [
        "limit=0",
        "limit=10001",
        "limit=-1",
        "limit=x",
        "after=x",
        "page=2",
        "limit=1&limit=2",
    ] {
        for path in ["/v1/ports", "/v1/fdb"] {
            let answer = switch.get(&format!("{path}?{query}"));
            assert_eq!(answer.status, 400, "{path}?{query}");
            assert!(answer.problem()["remedy"].is_string());
        }
    }
    for after in [
        "10",
        "x-52:54:00:00:00:01",
        "4095-52:54:00:00:00:01",
        "10-52",
    ] {
        let answer = switch.get(&format!("/v1/fdb?after={after}"));
        assert_eq!(answer.status, 400, "{after}");
        assert_eq!(answer.problem()["field"], "after");
    }
}

#[test]
fn a_port_is_removed_only_as_the_client_saw_it() {
    let switch = switch();
    switch.post(&vm(1));
    let first = seen(&switch, "/v1/ports/vm1");
    // Its counters and its state are no part of it.
    assert_eq!(seen(&switch, "/v1/ports/vm1"), first);
    let mut other = vm(1);
    other["mtu"] = json!(1400);
    assert_eq!(switch.request("DELETE", "/v1/ports/vm1", "").status, 204);
    assert_eq!(switch.post(&other).status, 201);
    let second = seen(&switch, "/v1/ports/vm1");
    assert_ne!(first, second);
    let remove = ("DELETE", "/v1/ports/vm1");
    assert_eq!(change_if(&switch, remove, &first, &Value::Null), 412);
    assert_eq!(change_if(&switch, remove, "W/\"x\"", &Value::Null), 412);
    assert_eq!(change_if(&switch, remove, "x", &Value::Null), 400);
    assert_eq!(switch.get("/v1/ports/vm1").json()["mtu"], 1400);
    let either = format!("{first}, {second}");
    assert_eq!(change_if(&switch, remove, &either, &Value::Null), 204);
    let gone = send(&switch, remove, &format!("If-Match: {second}"), "");
    assert_eq!(gone.status, 404);
    switch.post(&vm(1));
    assert_eq!(change_if(&switch, remove, "*", &Value::Null), 204);
}

#[test]
fn a_table_is_changed_only_as_the_client_saw_it() {
    const ACL: &str = "/v1/tables/acl/entries";
    let switch = switch();
    let entry = rule("80");
    for (change, body) in [
        (("POST", ACL), &entry),
        (("PATCH", ACL), &entry),
        (("PUT", ACL), &entry),
        (
            ("DELETE", ACL),
            &json!({"key": entry["key"], "priority": 10}),
        ),
        (
            ("PUT", "/v1/tables/acl/default"),
            &json!({"action": "allow", "params": {"mark": 1}}),
        ),
        (("DELETE", "/v1/tables/acl/default"), &Value::Null),
        (("POST", "/v1/tables/acl/clear"), &Value::Null),
    ] {
        let before = seen(&switch, "/v1/tables/acl");
        assert_eq!(
            seen(&switch, ACL),
            before,
            "one tag for a table and its entries"
        );
        assert_eq!(change_if(&switch, change, "\"0\"", body), 412, "{change:?}");
        assert_eq!(seen(&switch, ACL), before, "{change:?} was refused");
        let status = change_if(&switch, change, &before, body);
        assert!(matches!(status, 200 | 201), "{change:?}: {status}");
        assert_ne!(seen(&switch, ACL), before, "{change:?}");
        assert_eq!(change_if(&switch, change, &before, body), 412, "{change:?}");
    }
    // Another table is another matter, and a change without a condition needs none.
    let routes = seen(&switch, "/v1/tables/routes");
    let acl = seen(&switch, ACL);
    assert_eq!(switch.request("POST", ACL, &entry.to_string()).status, 201);
    assert_eq!(seen(&switch, "/v1/tables/routes"), routes);
    assert_ne!(seen(&switch, ACL), acl);
}

#[test]
fn groups_multicast_and_meters_are_changed_only_as_the_client_saw_them() {
    let switch = switch();
    for (list, path, body) in [
        (
            "/v1/multicast",
            "/v1/multicast/7",
            json!({"ports": ["vm1"]}),
        ),
        (
            "/v1/groups",
            "/v1/groups/s/7",
            json!({"members": [{"values": {"port": "vm1"}}]}),
        ),
        (
            "/v1/meters",
            "/v1/meters/m/3",
            json!({"bytes_per_second": 1000}),
        ),
    ] {
        let before = seen(&switch, list);
        assert_eq!(
            change_if(&switch, ("PUT", path), "\"0\"", &body),
            412,
            "{path}"
        );
        let changed = send(
            &switch,
            ("PUT", path),
            &format!("If-Match: {before}"),
            &body.to_string(),
        );
        assert_eq!(changed.status, 200, "{path}: {changed:?}");
        assert_ne!(seen(&switch, list), before, "{path}");
    }
}

#[test]
fn a_condition_that_nobody_looks_at_is_refused() {
    let switch = switch();
    for (method, path) in [
        ("POST", "/v1/ports"),
        ("POST", "/v1/batch"),
        ("POST", "/v1/tables/batch"),
        ("POST", "/v1/ports/vm1/move"),
        ("DELETE", "/v1/aside"),
    ] {
        assert_eq!(
            change_if(&switch, (method, path), "\"0\"", &vm(1)),
            400,
            "{path}"
        );
    }
    let headers = [
        ("If-None-Match: *", "If-None-Match"),
        (
            "If-Unmodified-Since: Sun, 22 Nov 2026 10:00:00 GMT",
            "If-Unmodified-Since",
        ),
    ];
    for (header, field) in headers {
        let answer = send(&switch, ("POST", "/v1/ports"), header, &vm(1).to_string());
        assert_eq!(
            (answer.status, &answer.problem()["field"]),
            (400, &json!(field))
        );
    }
    assert_eq!(switch.get("/v1/ports").json()["ports"], json!([]));
}

#[test]
fn what_a_client_has_is_not_sent_again_and_what_counts_always_is() {
    let switch = TestSwitch::start(Limits::default());
    switch.post(&vm(1));
    let known = seen(&switch, "/v1/drop-reasons");
    let get = |path: &str, tag: &str| {
        let header = format!("If-None-Match: {tag}");
        send(&switch, ("GET", path), &header, "")
    };
    for tags in [
        known.clone(),
        format!("W/{known}"),
        format!("\"x\", {known}"),
        "*".to_owned(),
    ] {
        let answer = get("/v1/drop-reasons", &tags);
        assert_eq!((answer.status, answer.body.as_str()), (304, ""), "{tags}");
        assert_eq!(tag(&answer), known);
    }
    assert_eq!(get("/v1/drop-reasons", "\"x\"").status, 200);
    let port = seen(&switch, "/v1/ports/vm1");
    assert_eq!(get("/v1/ports/vm1", &port).status, 200);
}
