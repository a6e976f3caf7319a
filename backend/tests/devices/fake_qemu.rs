//! A double of QEMU's monitor: keeps chardevs, netdevs and NICs by QEMU's rules, as QEMU 10.0.2 was seen to keep them, and misbehaves when told.
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As QEMU.
    Proper,
    /// Takes everything and says nothing after the greeting.
    Silent,
    /// Does not even greet, as while another client is connected.
    Mute,
    /// Lines that are no JSON.
    Garbage,
    /// A line without an end.
    EndlessLine,
    /// The beginning of an answer, and then nobody.
    ClosesMidAnswer,
    /// Greets as something else.
    NoMonitor,
    /// Events for ever instead of an answer.
    Flood,
}

/// What it has, and how it is.
#[derive(Debug)]
pub struct Vm {
    pub manner: Manner,
    pub chardevs: BTreeMap<String, PathBuf>,
    pub netdevs: BTreeSet<String>,
    /// NICs with their buses.
    pub nics: BTreeMap<String, String>,
    pub arguments: BTreeMap<String, Value>,
    pub root_ports: Vec<String>,
    pub memory_is_shared: bool,
    pub vcpus: usize,
    pub migration: Option<&'static str>,
    /// Whether the guest lets go of what it is asked for.
    pub guest_releases: bool,
    /// A command that is refused.
    pub refuses: Option<&'static str>,
    /// Commands that change something, in their order.
    pub commands: Vec<String>,
    /// What would have hung or killed a real QEMU.
    pub violations: Vec<String>,
    connections: Vec<UnixStream>,
}

/// A running double. Dropping it ends it as a QEMU that is killed.
pub struct FakeQemu {
    pub socket: PathBuf,
    vm: Arc<Mutex<Vm>>,
    ending: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl FakeQemu {
    pub fn start(socket: &Path) -> Self {
        Self::in_manner(socket, Manner::Proper)
    }

    pub fn in_manner(socket: &Path, manner: Manner) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let vm = Arc::new(Mutex::new(Vm {
            manner,
            chardevs: BTreeMap::new(),
            netdevs: BTreeSet::new(),
            nics: BTreeMap::new(),
            arguments: BTreeMap::new(),
            root_ports: (1..=4).map(|port| format!("rp{port}")).collect(),
            memory_is_shared: true,
            vcpus: 2,
            migration: None,
            guest_releases: true,
            refuses: None,
            commands: vec![],
            violations: vec![],
            connections: vec![],
        }));
        let ending = Arc::new(AtomicBool::new(false));
        let (shared, end) = (Arc::clone(&vm), Arc::clone(&ending));
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let vm = Arc::clone(&shared);
                vm.lock()
                    .unwrap()
                    .connections
                    .push(stream.try_clone().unwrap());
                std::thread::spawn(move || serve(&vm, stream));
            }
        });
        Self {
            socket: socket.to_owned(),
            vm,
            ending,
            acceptor: Some(acceptor),
        }
    }

    pub fn vm(&self) -> MutexGuard<'_, Vm> {
        self.vm.lock().unwrap()
    }

    /// The guest lets go of everything it was asked for.
    pub fn guest_releases_late(&self) {
        let mut vm = self.vm();
        vm.guest_releases = true;
        let asked: Vec<String> = vm.nics.keys().cloned().collect();
        let mut connections: Vec<UnixStream> = vm
            .connections
            .iter()
            .map(|c| c.try_clone().unwrap())
            .collect();
        for id in asked {
            vm.nics.remove(&id);
            for connection in &mut connections {
                // One of them may have gone.
                let _ = connection.write_all(deleted(&id).as_bytes());
            }
        }
    }

    /// Nothing of ours is there, and nothing was done that a real QEMU dies of.
    pub fn assert_clean(&self) {
        let vm = self.vm();
        assert!(
            vm.chardevs.is_empty() && vm.netdevs.is_empty() && vm.nics.is_empty(),
            "{vm:?}"
        );
        assert!(vm.violations.is_empty(), "{:?}", vm.violations);
    }
}

impl Drop for FakeQemu {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then lets go of the listener.
        drop(UnixStream::connect(&self.socket));
        let _ = self.acceptor.take().unwrap().join();
        // A failing test has poisoned it, perhaps.
        let vm = self
            .vm
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        for connection in &vm.connections {
            let _ = connection.shutdown(Shutdown::Both);
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn deleted(id: &str) -> String {
    let within = json!({ "event": "DEVICE_DELETED", "data": { "path": format!("/machine/peripheral/{id}/virtio-backend") } });
    let whole = json!({ "event": "DEVICE_DELETED", "data": { "device": id, "path": format!("/machine/peripheral/{id}") } });
    format!("{within}\n{whole}\n")
}

fn serve(vm: &Mutex<Vm>, mut stream: UnixStream) {
    let manner = vm.lock().unwrap().manner;
    let greeting = match manner {
        Manner::Mute => {
            // Until the other side has gone.
            let _ = BufReader::new(&stream).lines().last();
            return;
        }
        Manner::NoMonitor => json!({ "hello": "world" }),
        _ => {
            json!({ "QMP": { "version": { "qemu": { "micro": 2, "minor": 0, "major": 10 }, "package": "" }, "capabilities": ["oob"] } })
        }
    };
    let _ = stream.write_all(format!("{greeting}\n").as_bytes());
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        let request: Value = serde_json::from_str(&line).unwrap();
        let command = request["execute"].as_str().unwrap().to_owned();
        let manner = vm.lock().unwrap().manner;
        let answer = match manner {
            _ if command == "qmp_capabilities" => Ok(json!({})),
            Manner::Silent => continue,
            Manner::Garbage => {
                let _ = stream.write_all(b"\xff\xfe{]\n");
                continue;
            }
            Manner::EndlessLine => {
                while stream.write_all(&[b'['; 4096]).is_ok() {}
                return;
            }
            Manner::ClosesMidAnswer => {
                let _ = stream.write_all(b"{\"return\": [");
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
            Manner::Flood => {
                let event = b"{\"event\": \"SOMETHING_NEW\", \"data\": {\"device\": 7}}\n";
                while stream.write_all(event).is_ok() {}
                return;
            }
            _ => vm.lock().unwrap().execute(&command, &request["arguments"]),
        };
        // Events that nobody knows come between everything.
        let mut text = format!(
            "{}\n",
            json!({ "event": "NETDEV_VHOST_USER_CONNECTED", "data": { "netdev-id": "x" } })
        );
        text += &match &answer {
            Ok(value) => json!({ "return": value, "id": request["id"] }),
            Err((class, reason)) => {
                json!({ "error": { "class": class, "desc": reason }, "id": request["id"] })
            }
        }
        .to_string();
        text.push('\n');
        if command == "device_del" && answer.is_ok() && vm.lock().unwrap().guest_releases {
            text += &deleted(request["arguments"]["id"].as_str().unwrap());
        }
        if stream.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

type Answer = Result<Value, (&'static str, String)>;

impl Vm {
    fn execute(&mut self, command: &str, arguments: &Value) -> Answer {
        let id = arguments["id"].as_str().unwrap_or_default().to_owned();
        if command.contains("add") || command.contains("del") || command.contains("remove") {
            self.commands.push(command.to_owned());
        }
        if self.refuses == Some(command) {
            return Err(("GenericError", format!("{command} is refused in this test")));
        }
        match command {
            "query-chardev" => Ok(self
                .chardevs
                .iter()
                .map(|(id, path)| json!({ "label": id, "filename": format!("unix:{}", path.display()), "frontend-open": true }))
                .collect()),
            "qom-list" => Ok(self.children(arguments["path"].as_str().unwrap())),
            "qom-get" => self.property(arguments),
            "query-memdev" => Ok(json!([
                { "id": "mem", "share": self.memory_is_shared },
                { "id": "other", "share": false },
            ])),
            "query-cpus-fast" => Ok((0..self.vcpus).map(|cpu| json!({ "cpu-index": cpu })).collect()),
            "query-migrate" => Ok(match self.migration {
                Some(status) => json!({ "status": status }),
                None => json!({}),
            }),
            "chardev-add" => {
                let path = arguments["backend"]["data"]["addr"]["data"]["path"].as_str().unwrap();
                if self.chardevs.insert(id.clone(), path.into()).is_some() {
                    return Err(("GenericError", format!("Chardev with id '{id}' already exists")));
                }
                Ok(json!({}))
            }
            "chardev-remove" => match (self.netdevs.contains(&id), self.chardevs.remove(&id)) {
                (true, _) => Err(("GenericError", format!("Chardev '{id}' is busy"))),
                (false, None) => Err(("GenericError", format!("Chardev '{id}' not found"))),
                (false, Some(_)) => Ok(json!({})),
            },
            "netdev_add" => self.add_netdev(id, arguments),
            "netdev_del" => {
                if !self.netdevs.remove(&id) {
                    return Err(("DeviceNotFound", format!("Device '{id}' not found")));
                }
                if !self.nics.contains_key(&id) {
                    self.chardevs.remove(&id);
                }
                Ok(json!({}))
            }
            "device_add" => self.add_nic(id, arguments),
            "device_del" => {
                if !self.nics.contains_key(&id) {
                    return Err(("DeviceNotFound", format!("Device '{id}' not found")));
                }
                if self.guest_releases {
                    self.nics.remove(&id);
                }
                Ok(json!({}))
            }
            other => Err(("CommandNotFound", format!("The command {other} has not been found"))),
        }
    }

    fn add_netdev(&mut self, id: String, arguments: &Value) -> Answer {
        if arguments["type"] == "vhost-user" {
            let Some(path) = self.chardevs.get(arguments["chardev"].as_str().unwrap()) else {
                return Err(("GenericError", "chardev not found".to_owned()));
            };
            // A real one does nothing else until somebody answers.
            if UnixStream::connect(path).is_err() {
                self.violations
                    .push(format!("netdev_add {id} with nobody on {path:?}"));
            }
        }
        if !self.netdevs.insert(id.clone()) {
            return Err(("GenericError", format!("Duplicate ID '{id}'")));
        }
        Ok(json!({}))
    }

    fn add_nic(&mut self, id: String, arguments: &Value) -> Answer {
        let bus = arguments["bus"].as_str().unwrap().to_owned();
        if self.migration.is_some() {
            self.violations
                .push("device_add while migrating".to_owned());
        }
        if self.nics.values().any(|taken| *taken == bus) || !self.root_ports.contains(&bus) {
            return Err(("GenericError", format!("Bus '{bus}' not found or full")));
        }
        if !self.netdevs.contains(arguments["netdev"].as_str().unwrap()) {
            return Err(("GenericError", "netdev not found".to_owned()));
        }
        self.nics.insert(id.clone(), bus);
        self.arguments.insert(id, arguments.clone());
        Ok(json!({}))
    }

    fn children(&self, path: &str) -> Value {
        if path == "/machine/peripheral" {
            let ports = self
                .root_ports
                .iter()
                .map(|id| json!({ "name": id, "type": "child<pcie-root-port>" }));
            let nics = self
                .nics
                .keys()
                .map(|id| json!({ "name": id, "type": "child<virtio-net-pci>" }));
            return ports.chain(nics).collect();
        }
        let bus = path.rsplit('/').next().unwrap();
        let taken = self.nics.values().any(|taken| taken == bus);
        taken
            .then(|| json!({ "name": "child[0]", "type": "link<virtio-net-pci>" }))
            .into_iter()
            .collect()
    }

    fn property(&self, arguments: &Value) -> Answer {
        match (arguments["path"].as_str(), arguments["property"].as_str()) {
            (Some("/machine"), Some("memory-backend")) => Ok(json!("/objects/mem")),
            (Some(port), Some("hotplug")) if port.starts_with("/machine/peripheral/rp") => {
                Ok(json!(true))
            }
            _ => Err(("DeviceNotFound", "Device not found".to_owned())),
        }
    }
}

/// So that a test can say how long nothing happens.
pub const A_WHILE: Duration = Duration::from_millis(300);
