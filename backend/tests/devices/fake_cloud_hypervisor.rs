//! A double of Cloud Hypervisor's API: `vm.info`, `vm.add-net` and `vm.remove-device` as its own source has them, of a VM that is in whichever
//! state a test says. Errors are chains of causes; a removed device is there until the guest has ejected it.
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// What it has, and how it is.
#[derive(Debug)]
pub struct Vm {
    /// `None`: `vm.create` is still to come.
    pub state: Option<&'static str>,
    pub memory: Value,
    pub vcpus: u64,
    /// NICs as they were asked for.
    pub nets: BTreeMap<String, Value>,
    /// Whether the guest ejects what it is asked for.
    pub guest_ejects: bool,
    /// Whether requests are answered at all.
    pub hangs: bool,
    /// An answer instead of all others.
    pub instead: Option<&'static str>,
    /// Requests that change something, in their order.
    pub requests: Vec<String>,
    pub violations: Vec<String>,
}

/// A running double.
pub struct FakeCloudHypervisor {
    pub socket: PathBuf,
    vm: Arc<Mutex<Vm>>,
    ending: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl FakeCloudHypervisor {
    pub fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let vm = Arc::new(Mutex::new(Vm {
            state: Some("Running"),
            memory: json!({ "size": 1 << 28, "shared": true, "hugepages": false, "zones": null }),
            vcpus: 2,
            nets: BTreeMap::new(),
            guest_ejects: true,
            hangs: false,
            instead: None,
            requests: vec![],
            violations: vec![],
        }));
        let ending = Arc::new(AtomicBool::new(false));
        let (shared, end) = (Arc::clone(&vm), Arc::clone(&ending));
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let vm = Arc::clone(&shared);
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
}

impl Drop for FakeCloudHypervisor {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then lets go of the listener.
        drop(UnixStream::connect(&self.socket));
        let _ = self.acceptor.take().unwrap().join();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn serve(vm: &Mutex<Vm>, mut stream: UnixStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    let mut length = 0;
    reader.read_line(&mut first).unwrap();
    let mut line = first.clone();
    while !line.trim().is_empty() {
        line.clear();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (hangs, instead) = {
        let vm = vm.lock().unwrap();
        (vm.hangs, vm.instead)
    };
    if hangs {
        // Until the other side has gone.
        let _ = reader.read(&mut [0]);
        return;
    }
    if let Some(instead) = instead {
        let _ = stream.write_all(instead.as_bytes());
        return;
    }
    let request = first.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let (status, answer) = vm.lock().unwrap().answer(&request, &body);
    let text = if answer.is_null() {
        String::new()
    } else {
        answer.to_string()
    };
    let head = format!(
        "HTTP/1.1 {status} \r\nServer: Cloud Hypervisor API\r\nContent-Length: {}\r\n",
        text.len()
    );
    let _ =
        stream.write_all(format!("{head}Content-Type: application/json\r\n\r\n{text}").as_bytes());
}

impl Vm {
    fn answer(&mut self, request: &str, body: &Value) -> (u16, Value) {
        let error = |causes: &[&str]| (500, json!(causes));
        let action = request.strip_prefix("PUT /api/v1/vm.");
        if let Some(action) = action {
            self.requests.push(action.to_owned());
        }
        let Some(state) = self.state else {
            return error(&["The VM info is not available", "VM is not created"]);
        };
        match request {
            "GET /api/v1/vm.info" => (200, self.info(state)),
            "PUT /api/v1/vm.add-net" => {
                let id = body["id"].as_str().unwrap().to_owned();
                if self.nets.contains_key(&id) {
                    return error(&[
                        "The network device could not be added to the VM",
                        "Error validating VM configuration",
                        &format!("Identifier {id} is not unique"),
                    ]);
                }
                let socket = body["vhost_socket"].as_str().unwrap();
                if UnixStream::connect(socket).is_err() {
                    self.violations
                        .push(format!("vm.add-net with nobody on {socket}"));
                }
                self.nets.insert(id.clone(), body.clone());
                (200, json!({ "id": id, "bdf": "0000:00:05.0" }))
            }
            "PUT /api/v1/vm.remove-device" => {
                let id = body["id"].as_str().unwrap();
                if !self.nets.contains_key(id) {
                    let cause = format!(
                        "Failed to find device corresponding to the given identifier: {id}"
                    );
                    return error(&[
                        "The device could not be removed from the VM",
                        "Error from device manager",
                        &cause,
                    ]);
                }
                if self.guest_ejects {
                    self.nets.remove(id);
                }
                (204, Value::Null)
            }
            other => error(&[other]),
        }
    }

    fn info(&self, state: &str) -> Value {
        let tree = self.nets.keys().flat_map(|id| {
            let pci = format!("_virtio-pci-{id}");
            let own = (
                id.clone(),
                json!({ "id": id, "resources": [], "parent": pci, "children": [] }),
            );
            let above =
                json!({ "id": pci, "resources": [], "children": [id], "pci_bdf": "0000:00:05.0" });
            [own, (pci.clone(), above)]
        });
        let tree: serde_json::Map<String, Value> = tree.collect();
        json!({
            "config": {
                "cpus": { "boot_vcpus": self.vcpus, "max_vcpus": self.vcpus },
                "memory": self.memory,
                "net": self.nets.values().collect::<Vec<_>>(),
            },
            "state": state,
            "memory_actual_size": 1 << 28,
            "device_tree": tree,
        })
    }
}
