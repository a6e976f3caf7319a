//! The services' configuration through the admin socket, over the real engine, data path and store.
use crate::recorder::TestSwitch;
use ringswitch::config::ProgramSource;
use ringswitch::control::services::document::parse;
use ringswitch::control::services::{ServicesHandle, ServicesOptions};
use ringswitch::control::tables::{Store, Tables, TablesOptions};
use ringswitch::datapath::{Datapath, Program, WorkerOptions};
use ringswitch::rest::Limits;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use switch_core::Switch;
use switch_core::engine::runtime::{Engine, EngineConfig};
use vmm_sys_util::tempdir::TempDir;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/end_to_end/router.json");

/// A daemon's parts, without ports.
struct Parts {
    switch: Option<TestSwitch>,
    services: ServicesHandle,
    tables: Tables,
}

impl Parts {
    fn open(folder: Option<&Path>, initial: Option<&Value>) -> Self {
        let program = ProgramSource::File(PROGRAM.into()).load().unwrap();
        let engine = Arc::new(Engine::new(program, EngineConfig::default()).unwrap());
        let options = TablesOptions {
            store: folder.map(|folder| Arc::new(Store::open(folder).unwrap())),
            ..TablesOptions::default()
        };
        let tables = Tables::start(engine.clone(), options).unwrap();
        let workers = WorkerOptions {
            workers: 1,
            cpus: vec![],
            poll_us: 0,
        };
        let switch = Arc::new(Switch::new(switch_core::SwitchConfig::default()));
        let program = Program::Engine(engine.clone());
        let datapath = Datapath::start(&workers, (switch, program), Arc::new(|_| {})).unwrap();
        let services = ServicesHandle::start(ServicesOptions {
            datapath,
            engine,
            tables: tables.clone(),
            initial: initial.map(|initial| parse(initial.to_string().as_bytes()).unwrap()),
        })
        .unwrap();
        let switch = TestSwitch::with_services(
            Limits::default(),
            Some(tables.clone()),
            Some(services.clone()),
        );
        Self {
            switch: Some(switch),
            services,
            tables,
        }
    }

    fn switch(&self) -> &TestSwitch {
        self.switch.as_ref().unwrap()
    }

    fn address(&self) -> Value {
        let config = self.switch().get("/v1/services").json();
        config["interfaces"][0]["addresses"][0].clone()
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.switch.take();
        self.services.stop();
        self.tables.stop();
    }
}

fn configuration(address: &str) -> Value {
    json!({"interfaces": [{"id": 1, "domain": 10, "mac": "02:00:00:00:00:fe", "addresses": [address]}]})
}

#[test]
fn a_configuration_is_set_whole_or_not_at_all_and_outlives_a_restart() {
    let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-services-"));
    let folder = folder.unwrap();
    let parts = Parts::open(Some(folder.as_path()), None);
    let put = |body: &str| parts.switch().request("PUT", "/v1/services", body);
    let empty = parts.switch().get("/v1/services").json();
    assert_eq!(empty["interfaces"], json!([]));
    let set = put(&configuration("10.0.0.1/24").to_string());
    assert_eq!(
        (set.status, set.json()),
        (200, json!({"interfaces": 1, "durable": true}))
    );
    assert_eq!(parts.address(), "10.0.0.1/24");
    let mut backwards = configuration("10.0.0.7/24");
    backwards["interfaces"][0]["dhcp4"] =
        json!({"pool": {"first": "10.0.0.9", "last": "10.0.0.3"}});
    let mut wrong_mac = configuration("10.0.0.7/24");
    wrong_mac["interfaces"][0]["mac"] = json!("02:00");
    let mut unknown = configuration("10.0.0.7/24");
    unknown["interfaces"][0]["colour"] = json!("red");
    for (body, status, field) in [
        (
            backwards.to_string(),
            422,
            json!("interfaces[0].dhcp4.pool"),
        ),
        (wrong_mac.to_string(), 422, json!("interfaces[0].mac")),
        (unknown.to_string(), 422, json!("interfaces[0].colour")),
        ("{".to_owned(), 400, Value::Null),
    ] {
        let refused = put(&body);
        assert_eq!(
            (refused.status, &refused.problem()["field"]),
            (status, &field),
            "{refused:?}"
        );
    }
    let report = parts.switch().get("/v1/services/stats").json();
    assert_eq!(report["frames"]["frames_received"], 0);
    for (what, list) in [("leases", "dhcp4"), ("neighbors", "neighbors")] {
        let answer = parts.switch().get(&format!("/v1/services/{what}")).json();
        assert_eq!(answer[list], json!([]), "{answer}");
    }
    drop(parts);
    // What was set goes before what the file says.
    let initial = configuration("10.0.0.8/24");
    let parts = Parts::open(Some(folder.as_path()), Some(&initial));
    assert_eq!(parts.address(), "10.0.0.1/24");
    drop(parts);
    let parts = Parts::open(None, Some(&initial));
    assert_eq!(parts.address(), "10.0.0.8/24");
    let set = parts
        .switch()
        .request("PUT", "/v1/services", &initial.to_string());
    assert_eq!(set.json()["durable"], false);
}

#[test]
fn a_configuration_is_replaced_only_as_the_client_saw_it() {
    let parts = Parts::open(None, None);
    let seen = || {
        let answer = parts.switch().get("/v1/services");
        let line = answer.head.lines().find(|line| line.starts_with("etag: "));
        line.expect(&answer.head)["etag: ".len()..].to_owned()
    };
    let put = |tag: &str, address: &str| {
        let body = configuration(address).to_string();
        let request = format!(
            "PUT /v1/services HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIf-Match: {tag}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        parts.switch().send(request.as_bytes()).status
    };
    let first = seen();
    assert_eq!(put(&first, "10.0.0.1/24"), 200);
    assert_eq!(put(&first, "10.0.0.2/24"), 412);
    assert_eq!(parts.address(), "10.0.0.1/24");
    assert_eq!(put(&seen(), "10.0.0.2/24"), 200);
}

#[test]
fn the_default_program_says_that_it_has_no_services() {
    let switch = TestSwitch::start(Limits::default());
    for (method, path) in [
        ("GET", "/v1/services"),
        ("PUT", "/v1/services"),
        ("GET", "/v1/services/leases"),
        ("GET", "/v1/services/neighbors"),
        ("GET", "/v1/services/stats"),
    ] {
        let problem = switch.request(method, path, "{}").problem();
        assert_eq!(problem["status"], 404, "{path}");
        assert!(problem["detail"].as_str().unwrap().contains("l2"));
        assert!(problem["remedy"].as_str().unwrap().contains("--program"));
    }
}

#[test]
fn a_file_of_services_is_checked_with_the_rest_of_the_configuration() {
    let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-services-"));
    let folder = folder.unwrap();
    let file = folder.as_path().join("services.json");
    let check = |program: &str, content: &Value| {
        std::fs::write(&file, content.to_string()).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_ringswitch"))
            .args(["check", "--program", program, "--services"])
            .arg(&file)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let good = configuration("10.0.0.1/24");
    assert_eq!(check(PROGRAM, &good).0, Some(0));
    let (code, said) = check("l2", &good);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("program l2 has no services"), "{said}");
    let (code, said) = check(PROGRAM, &configuration("10.0.0.0/24"));
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("services.json: interfaces[0].addresses"),
        "{said}"
    );
}
