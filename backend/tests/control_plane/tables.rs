//! Tables and explanations over the real admin socket; the engine behind it only keeps what it is told.
use crate::fake_engine::FakeEngine;
use crate::recorder::{Answer, TestSwitch};
use ringswitch::rest::Limits;
use serde_json::{Value, json};
use std::sync::Arc;
use switch_core::DropReason;

fn switch() -> TestSwitch {
    TestSwitch::with_tables(Arc::new(FakeEngine::default()))
}

fn send(switch: &TestSwitch, method: &str, path: &str, body: &Value) -> Answer {
    switch.request(method, path, &body.to_string())
}

fn rule(dst_port: &str) -> Value {
    json!({"key": {"port": "vm1", "dst_port": dst_port}, "priority": 10, "action": "allow", "params": {"mark": 5}})
}

const ACL: &str = "/v1/tables/acl/entries";
/// A capture of frames 01020304 and 05, in base64.
const TWO_FRAMES: &str =
    "1MOyoQIABAAAAAAAAAAAAP//AAABAAAAAAAAAAAAAAAEAAAABAAAAAECAwQAAAAAAAAAAAEAAAABAAAABQ==";

#[test]
fn the_program_and_its_tables_are_told() {
    let switch = switch();
    let program = switch.get("/v1/program").json();
    assert_eq!(
        (&program["name"], &program["table_ids"]["routes"]),
        (&json!("fake"), &json!(2))
    );
    assert_eq!(program["program"]["tables"][0]["name"], "acl");
    let p4info = switch.get("/v1/program/p4info");
    assert!(p4info.head.contains("text/plain") && p4info.body.starts_with("pkg_info"));
    let list = switch.get("/v1/tables").json();
    assert_eq!(
        (&list["durable"], &list["aside"]),
        (&json!(false), &json!(0))
    );
    let acl = switch.get("/v1/tables/acl").json();
    assert_eq!(list["tables"][0], acl);
    assert_eq!(
        acl["key"][1],
        json!({"name": "protocol", "match": "ternary"})
    );
    assert_eq!(
        switch.get("/v1/tables/acl/count").json(),
        json!({"entries": 0, "size": 1000})
    );
}

#[test]
fn an_entry_is_added_listed_changed_and_deleted() {
    let switch = switch();
    let answer = send(&switch, "POST", ACL, &rule("80..443"));
    assert_eq!(
        (answer.status, answer.json()),
        (201, json!({"updates": 1, "durable": false}))
    );
    let again = send(&switch, "POST", ACL, &rule("80..443"));
    assert_eq!(
        (again.status, &again.problem()["field"]),
        (409, &json!("key"))
    );
    assert_eq!(again.json()["update"], Value::Null);
    let mut changed = rule("80..443");
    changed["params"]["mark"] = json!(6);
    for method in ["PUT", "PATCH"] {
        assert_eq!(send(&switch, method, ACL, &changed).status, 200);
    }
    let listed = switch.get(ACL).json();
    assert_eq!(listed["entries"][0]["params"]["mark"], 6);
    assert_eq!(listed["entries"][0]["key"]["dst_port"], "80..443");
    assert_eq!(listed["next"], Value::Null);
    let name = json!({"key": rule("80..443")["key"], "priority": 10});
    assert_eq!(send(&switch, "DELETE", ACL, &name).status, 200);
    assert_eq!(send(&switch, "DELETE", ACL, &name).status, 404);
    assert_eq!(send(&switch, "PATCH", ACL, &changed).status, 404);
}

#[test]
fn entries_are_listed_in_pages() {
    let switch = switch();
    for port in 0..5 {
        send(&switch, "POST", ACL, &rule(&port.to_string()));
    }
    let (mut seen, mut path) = (vec![], format!("{ACL}?limit=2"));
    loop {
        let page = switch.get(&path).json();
        for entry in page["entries"].as_array().unwrap() {
            seen.push(entry["key"]["dst_port"].clone());
        }
        match page["next"].as_u64() {
            Some(next) => path = format!("{ACL}?limit=2&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, [0, 1, 2, 3, 4].map(|port| json!(port)));
    for bad in ["limit=0", "limit=10001", "limit=x", "page=1", "after=-1"] {
        assert_eq!(
            switch.get(&format!("{ACL}?{bad}")).problem()["status"],
            400,
            "{bad}"
        );
    }
}

#[test]
fn a_batch_takes_effect_whole_or_not_at_all_and_names_the_update_at_fault() {
    let switch = switch();
    let insert = |port: &str| {
        let mut entry = rule(port);
        entry["table"] = json!("acl");
        json!({"insert": entry})
    };
    let batch = |updates: &[Value]| {
        send(
            &switch,
            "POST",
            "/v1/tables/batch",
            &json!({"updates": updates}),
        )
    };
    let count = || switch.get("/v1/tables/acl/count").json()["entries"].clone();
    let refused = batch(&[insert("1"), insert("2"), insert("2"), insert("3")]);
    assert_eq!(
        (refused.status, &refused.problem()["update"]),
        (409, &json!(2))
    );
    assert_eq!(count(), 0);
    assert_eq!(
        batch(&[
            insert("1"),
            insert("2"),
            json!({"clear": {"table": "acl"}}),
            insert("3")
        ])
        .json()["updates"],
        4
    );
    assert_eq!(count(), 1);
    for (bad, field) in [
        (json!({"inset": {}}), "updates"),
        (json!({"clear": {"table": "acl", "colour": 1}}), "updates"),
        (json!({"clear": {}}), "updates"),
        (
            json!({"set_multicast": {"group": 70000, "ports": []}}),
            "updates",
        ),
        (insert("99999"), "key.dst_port"),
        (
            json!({"insert": {"table": "nowhere", "action": "allow"}}),
            "table",
        ),
        (
            json!({"insert": {"table": "acl", "key": {"colour": 1}, "action": "allow"}}),
            "key.colour",
        ),
    ] {
        let answer = batch(&[insert("4"), bad.clone()]);
        let problem = answer.problem();
        assert!(matches!(answer.status, 422 | 404), "{bad}: {answer:?}");
        assert_eq!(
            (&problem["update"], &problem["field"]),
            (&json!(1), &json!(field)),
            "{bad}"
        );
    }
    assert_eq!(count(), 1);
    for (body, status) in [
        ("", 400),
        ("[]", 422),
        ("{}", 422),
        (r#"{"updates": [], "x": 1}"#, 422),
        (r#"{"updates": [], "updates": []}"#, 422),
    ] {
        assert_eq!(
            switch.request("POST", "/v1/tables/batch", body).problem()["status"],
            status,
            "{body}"
        );
    }
}

#[test]
fn a_large_batch_is_taken_here_and_nowhere_else() {
    let switch = switch();
    let updates: Vec<Value> = (0..20_000)
        .map(|number| json!({"put": {"table": "routes", "key": {"dst": format!("10.0.{}.{}", number >> 8, number & 255)}, "action": "forward", "params": {"port": 1}}}))
        .collect();
    let body = json!({"updates": updates}).to_string();
    assert!(body.len() > 1_000_000);
    let answer = switch.request("POST", "/v1/tables/batch", &body);
    assert_eq!(answer.json()["updates"], 20_000, "{answer:?}");
    assert_eq!(switch.request("POST", ACL, &body).problem()["status"], 413);
    let many = json!({"updates": vec![json!({"clear": {"table": "acl"}}); 100_001]}).to_string();
    let answer = switch.request("POST", "/v1/tables/batch", &many);
    assert_eq!(
        (answer.status, &answer.problem()["field"]),
        (413, &json!("updates"))
    );
}

#[test]
fn what_is_no_entry_is_refused_with_its_field() {
    let switch = switch();
    let with = |field: &str, value: Value| {
        let mut rule = rule("80");
        rule[field] = value;
        rule
    };
    for (body, field) in [
        (with("colour", json!(1)), "colour"),
        (with("table", json!("acl")), "table"),
        (with("priority", json!("high")), "priority"),
        (with("key", json!([])), "key"),
        (with("key", json!({"dst_port": "1..x"})), "key.dst_port"),
        (with("key", json!({"dst": -1})), "key"),
        (with("action", json!("fly")), "action"),
        (with("idle_timeout_ms", json!(-1)), "idle_timeout_ms"),
    ] {
        let answer = send(&switch, "POST", ACL, &body);
        assert_eq!(
            (answer.status, &answer.problem()["field"]),
            (422, &json!(field)),
            "{body}"
        );
    }
    assert_eq!(
        send(&switch, "POST", "/v1/tables/none/entries", &rule("80")).problem()["status"],
        404
    );
    for path in [
        "/v1/tables/none",
        "/v1/tables/none/count",
        "/v1/tables/none/entries",
    ] {
        assert_eq!(switch.get(path).problem()["field"], "table", "{path}");
    }
}

#[test]
fn defaults_groups_meters_and_multicast_are_set_and_taken_back() {
    let switch = switch();
    for (method, path, body, list, expected) in [
        (
            "PUT",
            "/v1/tables/acl/default",
            json!({"action": "allow", "params": {"mark": 1}}),
            "/v1/tables/acl",
            json!({"action": "allow", "params": {"mark": 1}}),
        ),
        (
            "PUT",
            "/v1/groups/s/7",
            json!({"members": [{"values": {"port": "vm1"}}]}),
            "/v1/groups",
            json!([{"selector": "s", "group": 7, "members": [{"weight": 1, "values": {"port": "vm1"}}]}]),
        ),
        (
            "PUT",
            "/v1/multicast/5",
            json!({"ports": ["vm1", 2]}),
            "/v1/multicast",
            json!([{"group": 5, "ports": ["vm1", 2]}]),
        ),
        (
            "PUT",
            "/v1/meters/m/3",
            json!({"bytes_per_second": 1000}),
            "/v1/meters",
            json!([{"meter": "m", "index": 3, "rate": {"bytes_per_second": 1000}}]),
        ),
    ] {
        let answer = send(&switch, method, path, &body);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let listed = switch.get(list).json();
        let listed = listed
            .get("default_action")
            .or(listed.get("groups"))
            .or(listed.get("meters"));
        assert_eq!(listed, Some(&expected), "{path}");
    }
    for (method, path, body) in [
        ("DELETE", "/v1/tables/acl/default", ""),
        ("PUT", "/v1/groups/s/7", r#"{"members": []}"#),
        ("PUT", "/v1/multicast/5", r#"{"ports": []}"#),
        ("DELETE", "/v1/meters/m/3", ""),
        ("POST", "/v1/tables/acl/clear", ""),
    ] {
        assert_eq!(switch.request(method, path, body).status, 200, "{path}");
    }
    assert_eq!(switch.get("/v1/groups").json(), json!({"groups": []}));
    assert_eq!(switch.get("/v1/multicast").json(), json!({"groups": []}));
    assert_eq!(switch.get("/v1/meters").json(), json!({"meters": []}));
    assert_eq!(
        switch.get("/v1/tables/acl").json().get("default_action"),
        None
    );
    for path in ["/v1/groups/s/x", "/v1/multicast/65536", "/v1/meters/m/-1"] {
        assert_eq!(
            send(&switch, "PUT", path, &json!({})).problem()["status"],
            400,
            "{path}"
        );
    }
}

#[test]
fn counters_and_connections_are_listed() {
    let switch = switch();
    let counters = switch.get("/v1/counters/c?from=1").json();
    assert_eq!(counters["counters"].as_array().unwrap().len(), 2);
    assert_eq!(
        switch.get("/v1/counters/none").problem()["field"],
        "counter"
    );
    let connection = &switch.get("/v1/connections").json()["connections"][0];
    assert_eq!(connection["state"], "established");
    let mut zones = vec![];
    let mut path = "/v1/connections?limit=2".to_owned();
    loop {
        let page = switch.get(&path).json();
        let connections = page["connections"].as_array().unwrap();
        zones.extend(connections.iter().map(|one| one["zone"].as_u64().unwrap()));
        let Some(next) = page["next"].as_u64() else {
            break;
        };
        path = format!("/v1/connections?limit=2&after={next}");
    }
    assert_eq!(zones, [0, 1, 2]);
    assert_eq!(switch.get("/v1/connections?after=x").status, 400);
}

fn vm1(switch: &TestSwitch) {
    switch.post(&json!({"name": "vm1", "type": "vhost-user", "socket": "/run/vm1.sock"}));
}

#[test]
fn a_frame_is_explained_from_hex_words_or_a_capture_and_against_a_batch_not_committed() {
    let switch = switch();
    vm1(&switch);
    let flow = "udp 10.0.0.5:1 > 10.0.1.9:2 mac 52:54:00:00:00:01 > 52:54:00:00:00:02";
    let by_flow = send(
        &switch,
        "POST",
        "/v1/explain",
        &json!({"port": "vm1", "flow": flow}),
    );
    assert_eq!(by_flow.status, 200, "{by_flow:?}");
    let trace = &by_flow.json()["traces"][0];
    let frame = trace["frame"].as_str().unwrap();
    assert!(
        frame.starts_with("525400000002525400000001080045"),
        "{frame}"
    );
    assert_eq!(
        (&trace["outcome"]["outcome"], &trace["outcome"]["reason"]),
        (&json!("drop"), &json!("no_destination"))
    );
    assert_eq!(trace["steps"][2]["holds"], false);
    let by_hex = send(
        &switch,
        "POST",
        "/v1/explain",
        &json!({"port": "vm1", "frame": frame}),
    );
    assert_eq!(by_hex.json(), by_flow.json());
    let by_pcap = send(
        &switch,
        "POST",
        "/v1/explain",
        &json!({"port": "vm1", "pcap": TWO_FRAMES}),
    );
    let frames: Vec<_> = by_pcap.json()["traces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|trace| trace["frame"].clone())
        .collect();
    assert_eq!(frames, ["01020304", "05"]);
    let mut entry = rule("80");
    entry["table"] = json!("acl");
    let what_if = json!({"port": "vm1", "flow": flow, "what_if": [{"insert": entry}]});
    let tried = send(&switch, "POST", "/v1/explain", &what_if).json();
    assert_eq!(tried["traces"][0]["steps"][2]["holds"], true);
    assert_eq!(switch.get("/v1/tables/acl/count").json()["entries"], 0);
}

#[test]
fn what_cannot_be_explained_is_refused_with_the_field() {
    let switch = switch();
    vm1(&switch);
    for (body, status, field) in [
        (json!({"port": "vm9", "frame": "00"}), 404, "name"),
        (json!({"port": "vm1"}), 422, "frame"),
        (
            json!({"port": "vm1", "frame": "00", "flow": "x"}),
            422,
            "frame",
        ),
        (json!({"port": "vm1", "frame": "0"}), 422, "frame"),
        (json!({"port": "vm1", "flow": "tcp"}), 422, "flow"),
        (json!({"port": "vm1", "pcap": "!"}), 422, "pcap"),
        (json!({"port": "vm1", "pcap": "AAAA"}), 422, "pcap"),
        (
            json!({"port": "vm1", "frame": "00", "what_if": [{"insert": {"table": "acl", "action": "fly"}}]}),
            422,
            "what_if.action",
        ),
        (
            // Tried for each of two frames.
            json!({"port": "vm1", "pcap": TWO_FRAMES, "what_if": vec![json!({"clear": {"table": "acl"}}); 26_000]}),
            422,
            "what_if",
        ),
        (
            json!({"port": "vm1", "frame": "00", "colour": 1}),
            422,
            "colour",
        ),
    ] {
        let answer = send(&switch, "POST", "/v1/explain", &body);
        assert_eq!(
            (answer.status, &answer.problem()["field"]),
            (status, &json!(field)),
            "{body}"
        );
    }
}

#[test]
fn the_latest_drops_and_every_reason_come_with_advice() {
    let switch = switch();
    vm1(&switch);
    let drop = &switch.get("/v1/ports/vm1/last-drops").json()["drops"][0];
    assert_eq!(drop["reason"], "no_destination");
    assert!(drop["advice"].as_str().unwrap().ends_with('.'));
    assert_eq!(
        switch.get("/v1/ports/vm9/last-drops").problem()["status"],
        404
    );
    let reasons = switch.get("/v1/drop-reasons").json();
    assert_eq!(
        reasons["reasons"].as_array().unwrap().len(),
        DropReason::COUNT
    );
}

#[test]
fn a_daemon_without_tables_says_so() {
    let switch = TestSwitch::start(Limits::default());
    for path in ["/v1/tables", "/v1/program", "/v1/groups"] {
        assert_eq!(switch.get(path).problem()["status"], 404, "{path}");
    }
}

#[test]
fn a_port_has_the_number_that_entries_know_it_by() {
    let switch = switch();
    send(&switch, "POST", ACL, &rule("80"));
    for name in ["vm2", "vm1", "vm3"] {
        let socket = format!("/run/{name}.sock");
        assert_eq!(
            switch
                .post(&json!({"name": name, "type": "vhost-user", "socket": socket}))
                .status,
            201
        );
    }
    let id = |name: &str| switch.get(&format!("/v1/ports/{name}")).json()["id"].clone();
    assert_eq!(
        (id("vm1"), id("vm2"), id("vm3")),
        (json!(1), json!(2), json!(3))
    );
    switch.request("DELETE", "/v1/ports/vm2", "");
    switch.post(&json!({"name": "vm4", "type": "vhost-user", "socket": "/run/vm4.sock"}));
    assert_eq!(id("vm4"), json!(4));
}

/// docs/drop-reasons.md, as it has to be.
fn drop_reasons() -> String {
    let mut text = String::from(
        "# Why frames are dropped\n\n\
         Each dropped frame has one reason. `ringswitch stats` and `ringswitch port show` count them; `ringswitch explain --port vm1 --last-drops`\n\
         shows the latest. This list is checked against the code by a test; `GET /v1/drop-reasons` answers the same.\n\n\
         | reason | what happened | what to do |\n|---|---|---|\n",
    );
    for reason in DropReason::ALL {
        text += &format!(
            "| `{}` | {} | {} |\n",
            reason.name(),
            reason.meaning(),
            reason.advice()
        );
    }
    text
}

#[test]
fn the_documentation_has_every_drop_reason() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/drop-reasons.md");
    if std::env::var_os("RINGSWITCH_WRITE_DOCS").is_some() {
        std::fs::write(path, drop_reasons()).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(path).unwrap(),
        drop_reasons(),
        "write it anew: RINGSWITCH_WRITE_DOCS=1 cargo test -p ringswitch --test control_plane drop_reason"
    );
}
