//! A QEMU: what NICs of ours it has, whether it can take another, and the commands that give and take one.
//!
//! Everything of one device has one id, in QEMU's three name spaces (chardev, netdev, device), with a prefix that tells it from what others
//! put there. What exists is read from QEMU each time and never remembered.
use super::HypervisorError;
use super::qmp::Qmp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What ids of ours begin with.
pub const ID_PREFIX: &str = "rsw-";
/// `chardev-add` and netdevs take `reconnect-ms` from here on, whole seconds before.
const RECONNECT_MS_SINCE: (u64, u64) = (9, 2);
const RECONNECT_MS: u64 = 500;
/// Slots of a conventional PCI bus.
const PCI_SLOTS: usize = 32;
/// Objects of ours, and root ports, that are looked at: more than a VM can have.
const MOST_OBJECTS: usize = 1024;

/// A QEMU we are connected to.
#[derive(Debug)]
pub struct Qemu {
    qmp: Qmp,
}

/// What it has of one id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QemuObjects {
    /// The NIC.
    pub nic: bool,
    /// The chardev's socket path, if there is a chardev.
    pub chardev: Option<PathBuf>,
}

/// Whether a VM can take another NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QemuFacts {
    /// Whether other processes see the guest's memory; `None`: QEMU does not say.
    pub memory_is_shared: Option<bool>,
    /// Its CPUs.
    pub vcpus: usize,
    /// A bus with room for a NIC that is plugged in.
    pub free_bus: Option<String>,
    /// Why there is none, in words.
    pub no_bus: &'static str,
}

/// How a NIC's netdev is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Netdev {
    /// Over a chardev of the same id.
    VhostUser {
        /// Pairs of rings.
        queue_pairs: u16,
    },
    /// QEMU's own framing over a stream socket.
    Stream {
        /// Where the switch listens.
        socket: PathBuf,
    },
}

/// A NIC to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// QEMU's driver: `virtio-net-pci`, `e1000`...
    pub driver: &'static str,
    /// Its address.
    pub mac: String,
    /// What only a virtio NIC has.
    pub virtio: Option<VirtioNic>,
}

/// What only a virtio NIC has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioNic {
    /// Pairs of rings.
    pub queue_pairs: u16,
    /// Packed rings.
    pub packed: bool,
    /// Offered to the guest.
    pub mtu: Option<u16>,
}

impl Qemu {
    /// Connects to its monitor.
    ///
    /// # Errors
    /// See [`Qmp::connect`].
    pub async fn connect(socket: &Path) -> Result<Self, HypervisorError> {
        Ok(Self {
            qmp: Qmp::connect(socket).await?,
        })
    }

    /// Waits until something happened to a device.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub async fn device_event(&mut self) -> Result<(), HypervisorError> {
        self.qmp.device_event().await
    }

    /// Whether the guest has said that it does not let go of a device. Forgets it.
    pub fn take_guest_refusal(&mut self, id: &str) -> bool {
        self.qmp.take_guest_refusal(id)
    }

    /// What it has of ours, by id.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub async fn objects(&mut self) -> Result<BTreeMap<String, QemuObjects>, HypervisorError> {
        let mut objects: BTreeMap<String, QemuObjects> = BTreeMap::new();
        let chardevs = self.qmp.execute("query-chardev", json!({})).await?;
        for chardev in list(&chardevs) {
            let id = text(chardev, "label");
            if id.starts_with(ID_PREFIX) && objects.len() < MOST_OBJECTS {
                let socket = socket_of(text(chardev, "filename"));
                objects.entry(id.to_owned()).or_default().chardev = Some(socket);
            }
        }
        let devices = self.children("/machine/peripheral").await?;
        for (id, _) in devices {
            if id.starts_with(ID_PREFIX) && objects.len() < MOST_OBJECTS {
                objects.entry(id).or_default().nic = true;
            }
        }
        Ok(objects)
    }

    /// The phase of a migration that keeps devices from being plugged, if one is under way.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub async fn migration(&mut self) -> Result<Option<String>, HypervisorError> {
        const AT_REST: [&str; 5] = ["", "none", "cancelled", "failed", "completed"];
        let migration = self.qmp.execute("query-migrate", json!({})).await?;
        let status = text(&migration, "status");
        Ok((!AT_REST.contains(&status)).then(|| super::qmp::bounded_text(status)))
    }

    /// Whether it can take another NIC.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub async fn facts(&mut self) -> Result<QemuFacts, HypervisorError> {
        let cpus = self.qmp.execute("query-cpus-fast", json!({})).await?;
        let (free_bus, no_bus) = self.free_bus().await?;
        Ok(QemuFacts {
            memory_is_shared: self.memory_is_shared().await?,
            vcpus: list(&cpus).len(),
            free_bus,
            no_bus,
        })
    }

    /// The backends of the machine's memory: its own, or those of its NUMA nodes.
    async fn memory_is_shared(&mut self) -> Result<Option<bool>, HypervisorError> {
        let backends = self.qmp.execute("query-memdev", json!({})).await?;
        let named = self.property("/machine", "memory-backend").await?;
        let own = named
            .as_ref()
            .and_then(Value::as_str)
            .and_then(|path| path.strip_prefix("/objects/"));
        let shares: Vec<bool> = list(&backends)
            .iter()
            .filter(|backend| own.is_none_or(|own| text(backend, "id") == own))
            .filter_map(|backend| backend.get("share").and_then(Value::as_bool))
            .collect();
        // With NUMA nodes QEMU names none as the machine's own: all of them count.
        Ok((!shares.is_empty()).then(|| shares.iter().all(|&shared| shared)))
    }

    /// A root port that nothing is plugged into; where there are none, the conventional bus while it has a free slot.
    async fn free_bus(&mut self) -> Result<(Option<String>, &'static str), HypervisorError> {
        const ROOT_PORTS: [&str; 3] = [
            "child<pcie-root-port>",
            "child<ioh3420>",
            "child<xio3130-downstream>",
        ];
        let mut has_ports = false;
        for (id, kind) in self.children("/machine/peripheral").await? {
            if !ROOT_PORTS.contains(&kind.as_str()) {
                continue;
            }
            let port = format!("/machine/peripheral/{id}");
            let hotplug = self.property(&port, "hotplug").await?;
            if hotplug == Some(Value::Bool(false)) {
                continue;
            }
            has_ports = true;
            let plugged = self.children(&format!("{port}/{id}")).await?;
            if !plugged.iter().any(|(name, _)| name.starts_with("child[")) {
                return Ok((Some(id), ""));
            }
        }
        if has_ports {
            return Ok((None, "every PCIe root port of the VM is taken"));
        }
        if self.property("/machine/i440fx", "type").await?.is_none() {
            return Ok((None, "the VM has no PCIe root port to plug a NIC into"));
        }
        let buses = self.qmp.execute("query-pci", json!({})).await?;
        let devices = list(&buses)
            .iter()
            .find(|bus| bus.get("bus").and_then(Value::as_u64) == Some(0))
            .and_then(|bus| bus.get("devices"));
        let slots: std::collections::BTreeSet<u64> = devices
            .map(list)
            .unwrap_or_default()
            .iter()
            .filter_map(|device| device.get("slot").and_then(Value::as_u64))
            .collect();
        Ok(if slots.len() < PCI_SLOTS {
            (Some("pci.0".to_owned()), "")
        } else {
            (None, "every slot of the VM's PCI bus is taken")
        })
    }

    /// Makes the chardev that the switch is reached through. The switch listens there already.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub async fn add_chardev(&mut self, id: &str, socket: &Path) -> Result<(), HypervisorError> {
        let mut data = json!({
            "addr": { "type": "unix", "data": { "path": socket } },
            "server": false,
        });
        self.set_reconnect(&mut data);
        let backend = json!({ "type": "socket", "data": data });
        self.run("chardev-add", json!({ "id": id, "backend": backend }))
            .await
    }

    /// Makes a netdev. QEMU does nothing else until a vhost-user back-end has answered.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub async fn add_netdev(&mut self, id: &str, netdev: &Netdev) -> Result<(), HypervisorError> {
        let arguments = match netdev {
            Netdev::VhostUser { queue_pairs } => {
                json!({ "type": "vhost-user", "id": id, "chardev": id, "queues": queue_pairs })
            }
            Netdev::Stream { socket } => {
                let mut arguments = json!({
                    "type": "stream", "id": id, "server": false, "addr": { "type": "unix", "path": socket },
                });
                self.set_reconnect(&mut arguments);
                arguments
            }
        };
        self.run("netdev_add", arguments).await
    }

    /// Plugs a NIC in.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub async fn add_nic(&mut self, id: &str, nic: &Nic, bus: &str) -> Result<(), HypervisorError> {
        let mut arguments =
            json!({ "driver": nic.driver, "id": id, "netdev": id, "bus": bus, "mac": nic.mac });
        if let (Some(virtio), Some(object)) = (&nic.virtio, arguments.as_object_mut()) {
            virtio.properties(object);
        }
        self.run("device_add", arguments).await
    }

    /// Asks the guest to let go of a NIC. Being asked already, or having let go, is no error.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub async fn ask_for_release(&mut self, id: &str) -> Result<(), HypervisorError> {
        match self.run("device_del", json!({ "id": id })).await {
            Err(HypervisorError::Refused { reason, .. })
                if reason.contains("already in the process of unplug") =>
            {
                Ok(())
            }
            other => absent_is_fine(other),
        }
    }

    /// Takes a netdev away, and with it its chardev once no NIC uses it. That there is none is no error.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub async fn delete_netdev(&mut self, id: &str) -> Result<(), HypervisorError> {
        absent_is_fine(self.run("netdev_del", json!({ "id": id })).await)
    }

    /// Takes a chardev away. That there is none is no error.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub async fn delete_chardev(&mut self, id: &str) -> Result<(), HypervisorError> {
        absent_is_fine(self.run("chardev-remove", json!({ "id": id })).await)
    }

    fn set_reconnect(&self, arguments: &mut Value) {
        let (name, value) = if self.qmp.version() >= RECONNECT_MS_SINCE {
            ("reconnect-ms", RECONNECT_MS)
        } else {
            ("reconnect", 1)
        };
        if let Some(arguments) = arguments.as_object_mut() {
            arguments.insert(name.to_owned(), value.into());
        }
    }

    async fn run(&mut self, command: &str, arguments: Value) -> Result<(), HypervisorError> {
        self.qmp.execute(command, arguments).await.map(drop)
    }

    /// Names and types of what is below a path of QEMU's object tree; nothing when there is no such path.
    async fn children(&mut self, path: &str) -> Result<Vec<(String, String)>, HypervisorError> {
        let listed = self.qmp.execute("qom-list", json!({ "path": path })).await;
        match listed {
            Ok(listed) => Ok(list(&listed)
                .iter()
                .take(MOST_OBJECTS)
                .map(|child| {
                    (
                        text(child, "name").to_owned(),
                        text(child, "type").to_owned(),
                    )
                })
                .collect()),
            Err(HypervisorError::Refused { .. }) => Ok(vec![]),
            Err(error) => Err(error),
        }
    }

    /// `None`: there is no such object or property.
    async fn property(
        &mut self,
        path: &str,
        property: &str,
    ) -> Result<Option<Value>, HypervisorError> {
        let arguments = json!({ "path": path, "property": property });
        match self.qmp.execute("qom-get", arguments).await {
            Ok(value) => Ok(Some(value)),
            Err(HypervisorError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl VirtioNic {
    fn properties(&self, nic: &mut Map<String, Value>) {
        let pairs = self.queue_pairs;
        nic.insert("mq".to_owned(), (pairs > 1).into());
        // One for each ring, one for changes of configuration, one for the control ring.
        nic.insert("vectors".to_owned(), (2 * u32::from(pairs) + 2).into());
        nic.insert("rx_queue_size".to_owned(), 1024.into());
        nic.insert("tx_queue_size".to_owned(), 1024.into());
        // QEMU does not forward what the guest changes of its offloads.
        nic.insert("ctrl_guest_offloads".to_owned(), false.into());
        if self.packed {
            nic.insert("packed".to_owned(), true.into());
        }
        if let Some(mtu) = self.mtu {
            nic.insert("host_mtu".to_owned(), mtu.into());
        }
    }
}

fn absent_is_fine(done: Result<(), HypervisorError>) -> Result<(), HypervisorError> {
    match done {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// `disconnected:unix:/run/vm1.sock,server=on`: the path alone.
fn socket_of(filename: &str) -> PathBuf {
    let path = filename.strip_prefix("disconnected:").unwrap_or(filename);
    let path = path.strip_prefix("unix:").unwrap_or(path);
    path.strip_suffix(",server=on").unwrap_or(path).into()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chardevs_socket_is_read_whether_or_not_it_is_connected() {
        for filename in [
            "unix:/run/a,b.sock",
            "disconnected:unix:/run/a,b.sock",
            "unix:/run/a,b.sock,server=on",
        ] {
            assert_eq!(
                socket_of(filename),
                Path::new("/run/a,b.sock"),
                "{filename}"
            );
        }
    }
}
