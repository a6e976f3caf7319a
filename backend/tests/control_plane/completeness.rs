//! Nothing that only curl can do: for each operation of the OpenAPI document there is a command, which is run against a daemon that only
//! writes down what it is asked; parts of queries and fields of bodies can all be said.

use crate::command_line::{ringswitch, stdout, succeeded};
use crate::recorder::TestSwitch;
use ringswitch::rest::Limits;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use vmm_sys_util::tempdir::TempDir;

const ENTRY: &str =
    "t k=1 p=2 --action a --priority 3 --idle-timeout-ms 4 --hard-timeout-ms 5 --tenant x";

/// Each operation with the commands that use it. `@NAME` is a file of [`files`].
fn commands() -> Vec<(&'static str, Vec<String>)> {
    let mut rows: Vec<(&str, Vec<String>)> = [
        ("GET /healthz", "doctor"),
        ("GET /metrics", "metrics"),
        ("DELETE /v1/aside", "table aside --discard"),
        ("GET /v1/aside", "table aside"),
        ("POST /v1/batch", "batch @whole"),
        ("GET /v1/config", "config show"),
        ("GET /v1/config/diff", "config diff"),
        ("POST /v1/config/saved", "config save"),
        ("GET /v1/connections", "connection list --limit 5 --after 1"),
        ("GET /v1/counters/{counter}", "counter list c --from 3 --limit 5"),
        ("GET /v1/devices", "device list --vm /q --state ready --model e1000 --limit 1 --after d"),
        (
            "POST /v1/devices",
            "device add d --vm qemu:/q --model virtio-net --mac 52:54:00:00:00:01 --queue-pairs 2 --packed --mtu 1500 --vlan 10 --socket /s",
        ),
        ("DELETE /v1/devices/{name}", "device remove d --force --timeout 5"),
        ("GET /v1/devices/{name}", "device show d"),
        ("GET /v1/events", "events --after a-1"),
        ("GET /v1/fdb", "fdb --limit 1 --after none-52:54:00:00:00:01"),
        ("GET /v1/flows", "flow list --port vm1 --limit 5"),
        ("GET /v1/groups", "group list"),
        ("PUT /v1/groups/{selector}/{group}", "group set s 1 --member port=vm1"),
        ("GET /v1/meters", "meter list"),
        ("DELETE /v1/meters/{meter}/{index}", "meter set m 3"),
        (
            "PUT /v1/meters/{meter}/{index}",
            "meter set m 3 --bytes-per-second 1 --burst-bytes 2 --frames-per-second 3 --burst-frames 4",
        ),
        ("GET /v1/multicast", "multicast list"),
        ("PUT /v1/multicast/{group}", "multicast set 5 vm1"),
        ("GET /v1/ports", "port list --limit 1 --after 0"),
        ("DELETE /v1/ports/{name}", "port remove vm1"),
        ("GET /v1/ports/{name}", "port show vm1"),
        (
            "GET /v1/ports/{name}/capture",
            "port capture vm1 --filter drop --snaplen 64 --count 1",
        ),
        ("GET /v1/ports/{name}/last-drops", "port show vm1 --last-drops"),
        ("POST /v1/ports/{name}/move", "worker move vm1/3 1"),
        ("GET /v1/ports/{name}/state", "port export vm1 -o @exported"),
        ("PUT /v1/ports/{name}/state", "port import vm1 @batch --replace"),
        ("GET /v1/program", "program show"),
        ("GET /v1/program/p4info", "program info"),
        ("GET /v1/services", "services show"),
        ("PUT /v1/services", "services set @services"),
        ("GET /v1/services/leases", "services leases"),
        ("GET /v1/services/neighbors", "services neighbors"),
        ("GET /v1/services/stats", "services stats"),
        ("GET /v1/stats", "stats"),
        ("GET /v1/tables", "table list"),
        ("POST /v1/tables/batch", "table batch @batch"),
        ("GET /v1/tables/{table}", "table show t"),
        ("POST /v1/tables/{table}/clear", "table clear t"),
        ("GET /v1/tables/{table}/count", "table count t"),
        ("DELETE /v1/tables/{table}/default", "table default t"),
        ("PUT /v1/tables/{table}/default", "table default t a p=1"),
        ("DELETE /v1/tables/{table}/entries", "table delete t k=1 --priority 3"),
        ("GET /v1/tables/{table}/entries", "table entries t --limit 1"),
        ("POST /v1/upgrade", "upgrade --binary /none --timeout 100"),
        ("GET /v1/workers", "worker list"),
    ]
    .map(|(operation, line)| (operation, vec![line.to_owned()]))
    .into();
    let vhost = "port add name=a,type=vhost-user,socket=/s,mode=server,queue_pairs=2,packed=true,device_state=true,mtu=1500,vlan=10";
    let tap = "port add name=b,type=tap,interface=x";
    rows.push(("POST /v1/ports", [vhost, tap].map(str::to_owned).into()));
    let explained = [
        "explain --port vm1 --frame 00 --what-if @batch",
        "explain --port vm1 flow",
        "explain --port vm1 --pcap @batch",
    ];
    rows.push(("POST /v1/explain", explained.map(str::to_owned).into()));
    for (method, verb) in [("POST", "add"), ("PATCH", "modify"), ("PUT", "put")] {
        let operation = match method {
            "POST" => "POST /v1/tables/{table}/entries",
            "PATCH" => "PATCH /v1/tables/{table}/entries",
            _ => "PUT /v1/tables/{table}/entries",
        };
        rows.push((operation, vec![format!("table {verb} {ENTRY}")]));
    }
    rows
}

/// What commands read; the configuration file that `config save` writes.
fn files(folder: &Path) {
    let updates = json!([{"clear": {"table": "t"}}]);
    for (name, value) in [
        (
            "whole",
            json!({"ports": [{"remove": {"name": "a"}}], "updates": updates}),
        ),
        ("batch", json!({ "updates": updates })),
        ("services", json!({"interfaces": [], "limits": {}})),
    ] {
        std::fs::write(folder.join(name), value.to_string()).unwrap();
    }
    std::fs::write(folder.join("switch.toml"), "").unwrap();
}

/// A request as it came: method, path, and what was said in its query and in the fields of its body.
#[derive(Clone, Debug)]
struct Asked {
    method: String,
    path: String,
    said: BTreeSet<String>,
}

impl Asked {
    /// `None`: somebody who only looks who listens here, as `doctor` does.
    fn read(stream: &UnixStream) -> Option<Self> {
        let mut lines = BufReader::new(stream);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_ascii_lowercase()),
            }
            if head.len() == 1 {
                head[0] = line.trim_end().to_owned();
            }
        }
        let length = head
            .iter()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        lines.read_exact(&mut body).unwrap();
        let mut words = head.first()?.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let parts = query.split('&').filter(|part| !part.is_empty());
        let parts = parts.map(|part| part.split('=').next().unwrap().to_owned());
        let body: Option<BTreeMap<String, Value>> = serde_json::from_slice(&body).ok();
        Some(Self {
            method: method.to_owned(),
            path: path.to_owned(),
            said: parts.chain(body.unwrap_or_default().into_keys()).collect(),
        })
    }

    /// Whether it is one of `GET /v1/ports/{name}`.
    fn is(&self, operation: &str) -> bool {
        let (method, template) = operation.split_once(' ').unwrap();
        let is_part = |(part, of): (&str, &str)| part == of || of.starts_with('{');
        let (path, template) = (self.path.split('/'), template.split('/'));
        self.method == method
            && path.clone().count() == template.clone().count()
            && path.zip(template).all(is_part)
    }

    /// What leads on, where a command asks twice.
    fn answer(&self, folder: &Path) -> Value {
        match self.path.as_str() {
            "/v1/config/diff" => {
                let file = folder.join("switch.toml");
                json!({"file": file, "durable": true, "differences": [], "overridden": [], "faults": []})
            }
            "/v1/tables/t/entries" if self.method == "GET" && !self.said.contains("after") => {
                json!({"entries": [], "next": 5})
            }
            "/v1/tables/t/entries" if self.method == "GET" => json!({"entries": []}),
            _ => json!({}),
        }
    }
}

/// What `line` asks a daemon for that knows nothing.
fn asks(line: &str, folder: &Path, requests: &Arc<Mutex<Vec<Asked>>>) -> Vec<Asked> {
    let words: Vec<String> = line
        .split(' ')
        .map(|word| match word.strip_prefix('@') {
            Some(name) => folder.join(name).to_str().unwrap().to_owned(),
            None => word.to_owned(),
        })
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = ringswitch(&words)
        .env("RINGSWITCH_ADMIN", folder.join("admin.sock"))
        .output()
        .unwrap();
    // It may find fault with the answer, but not with what it was told.
    assert_ne!(output.status.code(), Some(2), "{line}: {output:?}");
    std::mem::take(&mut *requests.lock().unwrap())
}

/// What can be said to an operation, by the document.
fn sayable(document: &Value, operation: &Value) -> BTreeSet<String> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let queries = parameters.filter(|parameter| parameter["in"] == "query");
    let mut all: BTreeSet<String> = queries
        .map(|parameter| parameter["name"].as_str().unwrap().to_owned())
        .collect();
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    if let Some(place) = body["$ref"].as_str() {
        let schema = document.pointer(&place[1..]).unwrap();
        all.extend(schema["properties"].as_object().unwrap().keys().cloned());
    }
    all
}

#[test]
fn every_operation_has_a_command_that_can_say_all_of_it() {
    let document: Value = serde_json::from_str(include_str!("../../../docs/openapi.json")).unwrap();
    let folder = TempDir::new_with_prefix(std::env::temp_dir().join("ringswitch-all-")).unwrap();
    let folder = folder.as_path();
    files(folder);
    let listener = UnixListener::bind(folder.join("admin.sock")).unwrap();
    let requests: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let written = Arc::clone(&requests);
    let place = folder.to_owned();
    // It lives as long as the test's process, and waits for nobody but its socket.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let Some(asked) = Asked::read(&stream) else {
                continue;
            };
            let body = asked.answer(&place).to_string();
            written.lock().unwrap().push(asked);
            let length = body.len();
            // Whoever asked may be content without.
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"
            );
        }
    });
    let mut commands: BTreeMap<_, _> = commands().into_iter().collect();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, described) in item.as_object().unwrap() {
            let operation = format!("{} {path}", method.to_uppercase());
            // Every program has them built in: the next test.
            if operation == "GET /v1/drop-reasons" {
                continue;
            }
            let lines = commands.remove(operation.as_str());
            let lines = lines.unwrap_or_else(|| {
                panic!("no command does {operation}: add one to the command line, and here")
            });
            let mut said = BTreeSet::new();
            for line in &lines {
                let asked = asks(line, folder, &requests);
                let fitting: Vec<_> = asked.iter().filter(|asked| asked.is(&operation)).collect();
                assert!(
                    !fitting.is_empty(),
                    "`{line}` does not {operation}: {asked:?}"
                );
                said.extend(fitting.into_iter().flat_map(|asked| asked.said.clone()));
            }
            let unsaid: Vec<_> = sayable(&document, described)
                .difference(&said)
                .cloned()
                .collect();
            assert!(
                unsaid.is_empty(),
                "{operation} takes {unsaid:?}, which {lines:?} cannot say"
            );
        }
    }
    assert!(commands.is_empty(), "no operations any more: {commands:?}");
}

#[test]
fn what_needs_no_daemon_says_what_a_daemon_says() {
    let switch = TestSwitch::start(Limits::default());
    let printed = ringswitch(&["drop-reasons", "--json"]).output().unwrap();
    succeeded(&printed);
    let printed: Value = serde_json::from_str(stdout(&printed)).unwrap();
    assert_eq!(printed, switch.get("/v1/drop-reasons").json());
    let printed = crate::command_line::ask(&switch, &["openapi"]);
    succeeded(&printed);
    assert_eq!(stdout(&printed), include_str!("../../../docs/openapi.json"));
}
