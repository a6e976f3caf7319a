//! `GET /v1/flows` of a daemon without frames, and what it refuses. With frames: `end_to_end/flows.rs`.
use crate::process::Home;
use serde_json::{Value, json};

#[test]
fn flows_of_a_silent_switch_are_none_and_what_cannot_be_is_refused() {
    for program in ["l2", "vpc"] {
        let home = Home::forgetful();
        let _daemon = home.start(&["--program", program, "--workers", "2"]);
        home.told(&["port", "add", &home.vm("vm1")]);
        let nothing = json!({"flows": [], "truncated": false});
        for path in ["/v1/flows", "/v1/flows?port=vm1&limit=10000"] {
            assert_eq!(home.get(path), nothing);
        }
        for (query, status, field) in [
            ("limit=0", 400, Some("limit")),
            ("limit=10001", 400, Some("limit")),
            ("limit=many", 400, None),
            ("ports=vm1", 400, None),
            ("port=vm2", 404, Some("port")),
            ("port=", 404, Some("port")),
        ] {
            let path = format!("/v1/flows?{query}");
            let (refused, body) = home.request("GET", &path, "").unwrap();
            let problem: Value = serde_json::from_str(&body).unwrap();
            let of = problem["field"].as_str();
            assert_eq!((refused, of), (status, field), "{path}: {body}");
            assert!(problem["remedy"].is_string(), "{body}");
        }
        let text = home.told(&["flow", "list"]);
        assert_eq!(text, "WORKER  PORT  MATCH  DECISION  VALID_S\n");
        for (arguments, code) in [
            (["--port", "vm2"], 1),
            (["--port", "not a name"], 2),
            (["--limit", "0"], 2),
        ] {
            let output = home.ask(&[&["flow", "list"][..], &arguments].concat());
            assert_eq!(output.status.code(), Some(code), "{output:?}");
        }
    }
}
