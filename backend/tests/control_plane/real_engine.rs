//! Tables over the real engine and its store, through the admin socket.
use crate::recorder::TestSwitch;
use ringswitch::config::ProgramSource;
use ringswitch::control::tables::{Store, Tables, TablesOptions};
use ringswitch::rest::Limits;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use switch_core::engine::runtime::{Engine, EngineConfig};
use vmm_sys_util::tempdir::TempDir;

const PROGRAM: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../switch-core/programs/acl.json"
);

fn open(folder: &Path) -> (Tables, TestSwitch) {
    let program = ProgramSource::File(PROGRAM.into()).load().unwrap();
    let engine = Engine::new(program, EngineConfig::default()).unwrap();
    let options = TablesOptions {
        store: Some(Arc::new(Store::open(folder).unwrap())),
        ..TablesOptions::default()
    };
    let tables = Tables::start(Arc::new(engine), options).unwrap();
    let switch = TestSwitch::start_with(Limits::default(), Some(tables.clone()));
    for name in ["vm1", "vm2"] {
        let port =
            json!({"name": name, "type": "vhost-user", "socket": format!("/run/{name}.sock")});
        assert_eq!(switch.post(&port).status, 201);
    }
    (tables, switch)
}

/// Every table's entries, without what changes by itself.
fn listing(switch: &TestSwitch) -> Vec<Value> {
    let tables = switch.get("/v1/tables").json();
    let names = tables["tables"].as_array().unwrap().iter();
    names
        .flat_map(|table| {
            let path = format!("/v1/tables/{}/entries", table["name"].as_str().unwrap());
            let mut page = switch.get(&path).json();
            for entry in page["entries"].as_array_mut().unwrap() {
                entry["handle"] = Value::Null;
            }
            page["entries"].as_array().unwrap().clone()
        })
        .collect()
}

/// An entry of the first table that takes one, made from what the daemon says of it.
fn an_entry(switch: &TestSwitch) -> (String, Value) {
    let tables = switch.get("/v1/tables").json();
    let table = &tables["tables"][0];
    let mut key = json!({});
    let mut priority = Value::Null;
    for field in table["key"].as_array().unwrap() {
        match field["match"].as_str().unwrap() {
            "exact" => key[field["name"].as_str().unwrap()] = json!(1),
            "lpm" => {}
            _ => priority = json!(10),
        }
    }
    let mut entry = json!({"key": key, "action": table["actions"][0]});
    if !priority.is_null() {
        entry["priority"] = priority;
    }
    (table["name"].as_str().unwrap().to_owned(), entry)
}

#[test]
fn entries_of_the_real_engine_outlive_a_restart_and_are_explained() {
    let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-engine-")).unwrap();
    let (tables, switch) = open(folder.as_path());
    let (table, entry) = an_entry(&switch);
    let path = format!("/v1/tables/{table}/entries");
    let before = listing(&switch).len();
    let added = switch.request("POST", &path, &entry.to_string());
    assert_eq!(
        (added.status, &added.json()["durable"]),
        (201, &json!(true)),
        "{added:?}"
    );
    assert_eq!(
        switch.request("POST", &path, &entry.to_string()).status,
        409
    );
    let listed = listing(&switch);
    assert_eq!(listed.len(), before + 1);
    let question = json!({"port": "vm1", "flow": "tcp 10.0.0.5:1234 > 10.0.1.9:443"});
    let explained = switch.request("POST", "/v1/explain", &question.to_string());
    assert_eq!(explained.status, 200, "{explained:?}");
    let steps = explained.json()["traces"][0]["steps"].to_string();
    assert!(steps.contains(&format!("\"table\":\"{table}\"")), "{steps}");
    drop(switch);
    tables.stop();
    drop(tables);
    let (tables, switch) = open(folder.as_path());
    assert_eq!((tables.restored().entries, tables.restored().aside), (1, 0));
    assert_eq!(listing(&switch), listed);
    let info = switch.get("/v1/program/p4info");
    assert!(info.body.contains(&table), "{}", info.body);
    drop(switch);
    tables.stop();
}
