//! The REST interface through a real UNIX socket: every route, every error, and clients that misbehave.

use crate::recorder::{Answer, TestSwitch};
use ringswitch::control::plan::Step;
use ringswitch::rest::Limits;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::time::Duration;

fn switch() -> TestSwitch {
    TestSwitch::start(Limits::default())
}

fn vm(number: u8) -> Value {
    json!({"name": format!("vm{number}"), "type": "vhost-user", "socket": format!("/run/vm{number}.sock")})
}

fn with(mut port: Value, field: &str, value: Value) -> Value {
    port[field] = value;
    port
}

#[test]
fn a_healthy_daemon_says_so() {
    let answer = switch().get("/healthz");
    assert_eq!(
        (answer.status, &answer.json()["status"]),
        (200, &json!("ok"))
    );
}

#[test]
fn a_new_port_is_created_at_its_location() {
    let switch = switch();
    let port = with(
        with(vm(1), "queue_pairs", json!(2)),
        "vlan",
        json!({"trunk": [20, 10], "native": 1}),
    );
    let answer = switch.post(&port);
    assert_eq!(answer.status, 201, "{answer:?}");
    assert!(
        answer.head.contains("location: /v1/ports/vm1"),
        "{answer:?}"
    );
    let shown = switch.get("/v1/ports/vm1").json();
    assert_eq!(shown, answer.json());
    for (field, value) in [
        ("id", json!(0)),
        ("mode", json!("server")),
        ("queue_pairs", json!(2)),
        ("vlan", json!({"trunk": [10, 20], "native": 1})),
        ("state", json!("listening")),
        ("reason", json!("no front-end yet")),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }
}

#[test]
fn the_same_port_again_changes_nothing() {
    let switch = switch();
    assert_eq!(switch.post(&vm(1)).status, 201);
    let steps = switch.record.steps();
    assert_eq!(switch.post(&vm(1)).status, 200);
    assert_eq!(switch.record.steps(), steps);
}

#[test]
fn ports_are_listed_by_id_and_an_id_is_used_again() {
    let switch = switch();
    (1..=3).for_each(|number| assert_eq!(switch.post(&vm(number)).status, 201));
    assert_eq!(switch.request("DELETE", "/v1/ports/vm2", "").status, 204);
    assert_eq!(switch.post(&vm(4)).status, 201);
    let list = switch.get("/v1/ports").json();
    let names: Vec<_> = list["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| (&port["name"], &port["id"]))
        .collect();
    assert_eq!(
        names,
        [
            (&json!("vm1"), &json!(0)),
            (&json!("vm4"), &json!(1)),
            (&json!("vm3"), &json!(2))
        ]
    );
}

#[test]
fn a_removed_port_has_closed_and_left() {
    let switch = switch();
    switch.post(&vm(1));
    let answer = switch.request("DELETE", "/v1/ports/vm1", "");
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    assert!(matches!(
        switch.record.steps().as_slice(),
        [.., Step::Close { .. }, Step::Leave { .. }]
    ));
    assert_eq!(switch.get("/v1/ports/vm1").status, 404);
}

#[test]
fn stats_count_per_port_and_worker_and_explain_drops() {
    let switch = switch();
    switch.post(&vm(1));
    let stats = switch.get("/v1/stats").json();
    assert_eq!(
        (
            &stats["ports"][0]["name"],
            &stats["ports"][0]["guest_tx_frames"]
        ),
        (&json!("vm1"), &json!(7))
    );
    let drop = &stats["ports"][0]["drops"][0];
    assert_eq!(
        (&drop["reason"], &drop["frames"]),
        (&json!("vlan_not_allowed"), &json!(3))
    );
    assert!(
        drop["advice"].as_str().unwrap().contains("trunk list"),
        "{drop}"
    );
    assert_eq!(stats["workers"][0]["batches"], 2);
    assert!(stats["uptime_us"].is_u64());
}

#[test]
fn workers_are_listed_with_what_they_serve() {
    let switch = switch();
    switch.post(&vm(1));
    let list = switch.get("/v1/workers").json();
    assert_eq!(list["workers"][0]["frames"], 7);
    let expected = json!([{"port": "vm1", "pair": 0, "worker": 1, "pinned": true, "busy_permille": 125, "busy_ns": 700, "frames": 7}]);
    assert_eq!(list["sources"], expected);
}

#[test]
fn a_port_is_moved_to_a_worker_and_left_to_its_load_again() {
    let switch = switch();
    switch.post(&vm(1));
    for (body, worker, pinned) in [
        (r#"{"worker": 1}"#, 1, true),
        (r#"{"pair": 0, "worker": 0}"#, 0, true),
        ("{}", 0, false),
    ] {
        let answer = switch.request("POST", "/v1/ports/vm1/move", body);
        assert_eq!(answer.status, 200, "{answer:?}");
        let moved = &answer.json()["sources"][0];
        assert_eq!(
            (&moved["worker"], &moved["pinned"]),
            (&json!(worker), &json!(pinned))
        );
    }
}

#[test]
fn a_move_that_cannot_be_is_refused_with_the_field() {
    let switch = switch();
    switch.post(&vm(1));
    for (path, body, status, field) in [
        ("vm1", r#"{"worker": 2}"#, 422, "worker"),
        ("vm1", r#"{"worker": -1}"#, 422, "worker"),
        ("vm1", r#"{"worker": 0, "pair": 1}"#, 422, "pair"),
        ("vm1", r#"{"worker": 0, "queue": 1}"#, 422, "queue"),
        ("vm2", r#"{"worker": 0}"#, 404, "name"),
    ] {
        let answer = switch.request("POST", &format!("/v1/ports/{path}/move"), body);
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        assert_eq!(answer.problem()["field"], field, "{body}");
    }
    assert_eq!(switch.get("/v1/ports/vm1/move").status, 405);
}

#[test]
fn the_fdb_names_ports_and_leaves_out_those_that_are_gone() {
    let switch = switch();
    switch.post(&vm(1));
    let expected = json!({"entries": [
        {"vlan": 10, "mac": "52:54:00:00:00:01", "port": "vm1", "age_s": 2},
        {"vlan": null, "mac": "52:54:00:00:00:02", "port": "vm1", "age_s": 2},
    ]});
    assert_eq!(switch.get("/v1/fdb").json(), expected);
}

#[test]
fn a_port_that_collides_is_a_conflict_that_names_the_field() {
    let switch = switch();
    let tap = |name: &str| json!({"name": name, "type": "tap", "interface": "tap0"});
    switch.post(&vm(1));
    switch.post(&tap("host0"));
    let admin = switch.socket().display().to_string();
    for (field, port) in [
        ("name", with(vm(1), "mtu", json!(1500))),
        ("socket", with(vm(1), "name", json!("other"))),
        ("socket", with(vm(2), "socket", json!(admin))),
        ("interface", tap("host1")),
    ] {
        let answer = switch.post(&port);
        assert_eq!(
            (answer.status, &answer.problem()["field"]),
            (409, &json!(field)),
            "{port}"
        );
    }
    assert_eq!(
        switch.get("/v1/ports").json()["ports"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn an_invalid_port_is_refused_by_field_before_anything_happens() {
    let switch = switch();
    for (field, port) in [
        ("name", json!({"type": "tap", "interface": "tap0"})),
        ("name", with(vm(1), "name", json!("a/b"))),
        ("name", with(vm(1), "name", json!(7))),
        ("type", with(vm(1), "type", json!("veth"))),
        ("socket", with(vm(1), "socket", json!("vm1.sock"))),
        ("mode", with(vm(1), "mode", json!("listen"))),
        ("queue_pairs", with(vm(1), "queue_pairs", json!(0))),
        ("queue_pairs", with(vm(1), "queue_pairs", json!(1.5))),
        ("queue_pairs", with(vm(1), "queue_pairs", json!("2"))),
        ("mtu", with(vm(1), "mtu", json!(67))),
        ("vlan", with(vm(1), "vlan", json!({}))),
        (
            "vlan",
            with(vm(1), "vlan", json!({"access": 1, "extra": 2})),
        ),
        ("vlan.access", with(vm(1), "vlan", json!({"access": 4095}))),
        ("interface", with(vm(1), "interface", json!("tap0"))),
        ("sokcet", with(vm(1), "sokcet", json!("/x"))),
    ] {
        let answer = switch.post(&port);
        assert_eq!(
            (answer.status, &answer.problem()["field"]),
            (422, &json!(field)),
            "{port}"
        );
    }
    assert!(switch.record.steps().is_empty());
}

#[test]
fn a_body_that_is_not_a_json_object_is_refused() {
    let switch = switch();
    for body in [
        "",
        "{",
        "{\"name\": \"a\",}",
        "\u{0}",
        "{\"name\":\"a\"} x",
        "\"\\ud800\"",
    ] {
        assert_eq!(
            switch.request("POST", "/v1/ports", body).problem()["status"],
            400,
            "{body:?}"
        );
    }
    for body in ["[]", "null", "7", "{\"name\":\"a\",\"name\":\"b\"}"] {
        assert_eq!(
            switch.request("POST", "/v1/ports", body).problem()["status"],
            422,
            "{body:?}"
        );
    }
    // A list of the values of an object's fields is not the object.
    switch.post(&vm(1));
    for body in ["[]", "[null, null]", " [0, 0]"] {
        let answer = switch.request("POST", "/v1/ports/vm1/move", body);
        assert_eq!(answer.problem()["status"], 422, "{body:?}");
    }
    let deep = "[".repeat(20_000);
    assert_eq!(
        switch.request("POST", "/v1/ports", &deep).problem()["status"],
        422
    );
}

#[test]
fn a_body_that_is_declared_as_something_else_is_refused() {
    let request = "POST /v1/ports HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}";
    assert_eq!(switch().send(request.as_bytes()).problem()["status"], 415);
}

#[test]
fn a_body_past_its_limit_is_refused_whether_its_length_is_told_or_not() {
    let switch = switch();
    let body = format!("{{\"name\": \"{}\"}}", "x".repeat(70_000));
    assert_eq!(
        switch.request("POST", "/v1/ports", &body).problem()["status"],
        413
    );
    let chunked = format!(
        "POST /v1/ports HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    assert_eq!(switch.send(chunked.as_bytes()).problem()["status"], 413);
}

#[test]
fn a_port_that_cannot_be_opened_is_refused_and_leaves_nothing() {
    let switch = switch();
    let answer = switch.post(&with(vm(1), "name", json!("refused-1")));
    let problem = answer.problem();
    assert_eq!(
        (answer.status, &problem["field"], &problem["remedy"]),
        (422, &json!("socket"), &json!("create it"))
    );
    assert!(matches!(
        switch.record.steps().as_slice(),
        [Step::Join { .. }, Step::Open { .. }, Step::Leave { .. }]
    ));
    assert_eq!(switch.get("/v1/ports").json(), json!({"ports": []}));
    assert_eq!(switch.post(&vm(1)).status, 201);
}

#[test]
fn what_is_not_there_is_not_found() {
    let switch = switch();
    for path in [
        "/index.html",
        "/v1",
        "/v1/port",
        "/v1/ports/",
        "/v1/ports/vm9",
        "/v1/ports/a%2Fb",
        "/v1/ports/a%00",
        "/v1/ports/%20",
        "/v1/ports/vm9/x",
    ] {
        assert_eq!(switch.get(path).problem()["status"], 404, "{path}");
    }
    assert_eq!(
        switch.request("DELETE", "/v1/ports/vm9", "").problem()["status"],
        404
    );
    assert_eq!(switch.get("/v1/ports/%ff").problem()["status"], 400);
}

#[test]
fn a_method_that_a_path_lacks_is_answered_with_those_it_has() {
    let switch = switch();
    for (method, path, allowed) in [
        ("POST", "/healthz", "get,head"),
        ("DELETE", "/v1/ports", "get,head,post"),
        ("PUT", "/v1/ports/vm1", "get,head,delete"),
        ("POST", "/v1/stats", "get,head"),
        ("PATCH", "/v1/fdb", "get,head"),
    ] {
        let answer = switch.request(method, path, "");
        assert_eq!(answer.problem()["status"], 405, "{method} {path}");
        assert!(
            answer.head.contains(&format!("allow: {allowed}")),
            "{answer:?}"
        );
    }
}

#[test]
fn what_is_not_http_is_turned_away() {
    let switch = switch();
    for request in [
        &b"\r\n\r\n\r\n\r\nx\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"\xff\xfe\x00\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ] {
        let status = switch.send(request).status;
        assert!(status == 400 || status == 505, "{request:?}: {status}");
    }
    assert_eq!(switch.get("/healthz").status, 200);
}

#[test]
fn an_endless_head_is_cut_off() {
    let switch = switch();
    let head = format!(
        "GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}",
        "x".repeat(1 << 20)
    );
    assert_eq!(switch.send(head.as_bytes()).status, 431);
}

#[test]
fn one_connection_serves_request_after_request() {
    let switch = switch();
    let mut stream = switch.connect();
    for _ in 0..3 {
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut answer = vec![];
        while !answer.ends_with(b"}") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
    }
}

#[test]
fn a_client_that_does_not_finish_its_head_is_cut_off() {
    let switch = TestSwitch::start(Limits {
        head: Duration::from_millis(100),
        ..Limits::default()
    });
    let mut slow = switch.connect();
    slow.write_all(b"GET /healthz HT").unwrap();
    assert_eq!(switch.get("/healthz").status, 200);
    // Ends when the server closes: the test's own limit is far longer.
    Answer::read(&mut slow);
}

#[test]
fn a_client_that_does_not_finish_its_body_is_told_so() {
    let switch = TestSwitch::start(Limits {
        request: Duration::from_millis(100),
        ..Limits::default()
    });
    let mut slow = switch.connect();
    slow.write_all(b"POST /v1/ports HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        .unwrap();
    assert_eq!(switch.get("/healthz").status, 200);
    assert_eq!(Answer::read(&mut slow).problem()["status"], 408);
}

#[test]
fn more_dead_clients_than_connections_cost_nobody_anything() {
    let switch = TestSwitch::start(Limits {
        connections: 8,
        ..Limits::default()
    });
    let dead: Vec<_> = (0..40)
        .map(|number| {
            let mut stream = switch.connect();
            let part: &[u8] = match number % 3 {
                0 => b"",
                1 => b"GET /v1/st",
                // Asks much and reads nothing.
                _ => &b"GET /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n".repeat(500),
            };
            // The server may have closed it already.
            let _ = stream.write_all(part);
            stream
        })
        .collect();
    assert_eq!(switch.get("/healthz").status, 200);
    drop(dead);
}

#[test]
fn a_connection_has_an_end_whatever_it_does() {
    let switch = TestSwitch::start(Limits {
        connection: Duration::from_millis(100),
        ..Limits::default()
    });
    Answer::read(&mut switch.connect());
}

#[test]
fn an_answer_that_lasts_outlives_the_limit_and_makes_no_room_for_others() {
    let switch = TestSwitch::start(Limits {
        connection: Duration::from_millis(100),
        connections: 4,
        ..Limits::default()
    });
    switch.post(&json!({"name": "vm1", "type": "vhost-user", "socket": "/run/vm1.sock"}));
    let mut capture = switch.connect();
    capture
        .write_all(b"GET /v1/ports/vm1/capture HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut head = [0; 12];
    capture.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    // Younger ones meet the limit, one after the other, and are more than there may be.
    for _ in 0..3 {
        let mut young: Vec<_> = (0..8).map(|_| switch.connect()).collect();
        young.iter_mut().for_each(|stream| {
            Answer::read(stream);
        });
    }
    capture.set_nonblocking(true).unwrap();
    let mut rest = Vec::new();
    let open = capture.read_to_end(&mut rest).unwrap_err();
    assert_eq!(open.kind(), std::io::ErrorKind::WouldBlock);
    let text = String::from_utf8_lossy(&rest);
    assert!(text.contains("application/x-pcapng"), "{text}");
}
