//! A Cloud Hypervisor: what NICs of ours it has, whether it can take another, and the requests that give and take one.
//!
//! Its API is HTTP/1.1 over a UNIX socket, one VM a socket. There are no events: what became of a removal is seen in `vm.info`. Each request
//! has a connection of its own, so that one that hangs takes nothing with it.
use super::qmp::bounded_text;
use super::{ANSWER, HypervisorError, connect};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokio::time::timeout;

/// Largest answer. `vm.info` of a VM with every device it can have is some 100 KiB.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// Ring entries, as Cloud Hypervisor's own default.
const QUEUE_SIZE: u16 = 256;

/// A Cloud Hypervisor's API.
#[derive(Clone, Debug)]
pub struct CloudHypervisor {
    socket: PathBuf,
}

/// What `vm.info` says, as far as it concerns NICs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmInfo {
    /// `Running`, `Paused`, `Created`, `Shutdown`; `None`: no VM has been made yet.
    pub state: Option<String>,
    /// Ids of devices that exist, configured or waiting for the guest to eject them, with their vhost-user sockets where they are known.
    pub devices: BTreeMap<String, Option<PathBuf>>,
    /// Whether other processes see the guest's memory.
    pub memory_is_shared: bool,
    /// Its CPUs.
    pub vcpus: u64,
}

/// A NIC to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// Its id.
    pub id: String,
    /// Where the switch listens.
    pub socket: PathBuf,
    /// Its address.
    pub mac: String,
    /// Pairs of rings.
    pub queue_pairs: u16,
    /// Offered to the guest.
    pub mtu: Option<u16>,
}

impl CloudHypervisor {
    /// The API behind a socket.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// How its VM is.
    ///
    /// # Errors
    /// It does not say.
    pub async fn info(&self) -> Result<VmInfo, HypervisorError> {
        let answer = self.request(Method::GET, "vm.info", None).await;
        match answer {
            Ok(answer) => Ok(VmInfo::read(&answer)),
            Err(HypervisorError::Refused { reason, .. }) if is_not_created(&reason) => {
                Ok(VmInfo::default())
            }
            Err(error) => Err(error),
        }
    }

    /// Plugs a NIC in.
    ///
    /// # Errors
    /// It refused; nothing is left of it then.
    pub async fn add_net(&self, net: &Net) -> Result<(), HypervisorError> {
        let mut body = json!({
            "id": net.id,
            "vhost_user": true,
            "vhost_socket": net.socket,
            "vhost_mode": "Client",
            // Rings, not pairs.
            "num_queues": 2 * u32::from(net.queue_pairs),
            "queue_size": QUEUE_SIZE,
            "mac": net.mac,
        });
        if let (Some(mtu), Some(body)) = (net.mtu, body.as_object_mut()) {
            body.insert("mtu".to_owned(), mtu.into());
        }
        self.request(Method::PUT, "vm.add-net", Some(body))
            .await
            .map(drop)
    }

    /// Asks the guest to eject a device. That there is none is no error.
    ///
    /// # Errors
    /// It refused.
    pub async fn remove_device(&self, id: &str) -> Result<(), HypervisorError> {
        let body = Some(json!({ "id": id }));
        match self.request(Method::PUT, "vm.remove-device", body).await {
            Err(HypervisorError::Refused { reason, .. }) if is_unknown_device(&reason) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn request(
        &self,
        method: Method,
        action: &str,
        body: Option<Value>,
    ) -> Result<Value, HypervisorError> {
        match timeout(ANSWER, self.exchange(method, action, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(HypervisorError::Silent {
                what: action.to_owned(),
                within: ANSWER,
            }),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        action: &str,
        body: Option<Value>,
    ) -> Result<Value, HypervisorError> {
        let wrong = |error: &dyn std::fmt::Display| {
            HypervisorError::Protocol(bounded_text(&format!("{action}: {error}")))
        };
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{action}"))
            .header(HOST, "localhost")
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| wrong(&error))?;
        let stream = connect(&self.socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| wrong(&error))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| {
                if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
                    HypervisorError::Closed(action.to_owned())
                } else {
                    wrong(&error)
                }
            })?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await
                .map_err(|error| wrong(&error))?
                .to_bytes();
            read_answer(action, status, &body)
        };
        // The connection is driven here rather than by a task: it ends with this call, however that ends.
        let mut exchange = std::pin::pin!(exchange);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            _ = &mut connection => exchange.await,
        }
    }
}

fn read_answer(action: &str, status: StatusCode, body: &[u8]) -> Result<Value, HypervisorError> {
    if status.is_success() {
        if body.is_empty() {
            return Ok(Value::Null);
        }
        return serde_json::from_slice(body).map_err(|_| {
            HypervisorError::Protocol(format!("what it answers to {action} is not JSON"))
        });
    }
    // A chain of causes, the outermost first.
    let reason = match serde_json::from_slice::<Value>(body) {
        Ok(Value::Array(causes)) => {
            let causes: Vec<&str> = causes.iter().filter_map(Value::as_str).collect();
            causes.join(": ")
        }
        Ok(Value::String(reason)) => reason,
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    Err(HypervisorError::Refused {
        what: action.to_owned(),
        class: status.as_u16().to_string(),
        reason: bounded_text(&reason),
    })
}

impl VmInfo {
    fn read(info: &Value) -> Self {
        let config = info.get("config").unwrap_or(&Value::Null);
        let nets = config.get("net").and_then(Value::as_array);
        let ids = nets.into_iter().flatten();
        let configured = ids.filter_map(|net| {
            let socket = net.get("vhost_socket").and_then(Value::as_str);
            Some((net.get("id")?.as_str()?, socket.map(PathBuf::from)))
        });
        let tree = info.get("device_tree").and_then(Value::as_object);
        let existing = tree
            .into_iter()
            .flat_map(|tree| tree.keys().map(|id| (id.as_str(), None)));
        let state = info.get("state").and_then(Value::as_str);
        let vcpus = config.pointer("/cpus/boot_vcpus").and_then(Value::as_u64);
        Self {
            state: Some(bounded_text(state.unwrap_or("unknown"))),
            // What is configured comes last, since it says more.
            devices: existing
                .chain(configured)
                .map(|(id, socket)| (id.to_owned(), socket))
                .collect(),
            memory_is_shared: memory_is_shared(config),
            vcpus: vcpus.unwrap_or(1),
        }
    }
}

/// As Cloud Hypervisor itself checks it: the memory as a whole, or every zone when it has only those.
fn memory_is_shared(config: &Value) -> bool {
    let shared = |memory: &Value| {
        let is = |name| memory.get(name).and_then(Value::as_bool) == Some(true);
        is("shared") || is("hugepages")
    };
    let Some(memory) = config.get("memory") else {
        return false;
    };
    let zones = memory.get("zones").and_then(Value::as_array);
    let only_zones = memory.get("size").and_then(Value::as_u64) == Some(0);
    shared(memory) || (only_zones && zones.is_some_and(|zones| zones.iter().all(shared)))
}

fn is_not_created(reason: &str) -> bool {
    reason.contains("not created")
}

fn is_unknown_device(reason: &str) -> bool {
    reason.contains("Failed to find device") || reason.contains("No device with id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_exists_until_the_guest_has_ejected_it() {
        let info = json!({
            "state": "Running",
            "config": {
                "cpus": { "boot_vcpus": 2, "max_vcpus": 4 },
                "memory": { "size": 1 << 28, "shared": true },
                "net": [{ "id": "rsw-1" }, { "id": null }],
            },
            "device_tree": { "rsw-2": {}, "_virtio-pci-rsw-2": {} },
        });
        let read = VmInfo::read(&info);
        assert!(read.devices.contains_key("rsw-1") && read.devices.contains_key("rsw-2"));
        assert!(read.memory_is_shared);
        assert_eq!((read.vcpus, read.state.as_deref()), (2, Some("Running")));
    }

    #[test]
    fn memory_is_shared_as_a_whole_or_in_every_zone() {
        for (memory, shared) in [
            (json!({ "size": 1, "shared": false }), false),
            (json!({ "size": 1, "hugepages": true }), true),
            (json!({ "size": 1, "zones": [{ "shared": true }] }), false),
            (
                json!({ "size": 0, "zones": [{ "shared": true }, { "hugepages": true }] }),
                true,
            ),
            (
                json!({ "size": 0, "zones": [{ "shared": true }, { "shared": false }] }),
                false,
            ),
        ] {
            assert_eq!(
                memory_is_shared(&json!({ "memory": memory })),
                shared,
                "{memory}"
            );
        }
    }

    #[test]
    fn a_refusal_is_the_chain_of_its_causes() {
        let body = br#"["The device could not be added to the VM","Using vhost-user requires using shared memory or huge pages"]"#;
        let refused =
            read_answer("vm.add-net", StatusCode::INTERNAL_SERVER_ERROR, body).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "it refused vm.add-net: The device could not be added to the VM: Using vhost-user requires using shared memory or huge pages"
        );
    }
}
