//! An entry of the table, from the fields an operator wrote to a typed value.
//!
//! This is the one place that knows which model needs which type of port and which hypervisor.
use crate::config::value::quoted;
use crate::config::{
    InvalidField, Mtu, PortConfig, PortFields, PortKind, PortName, QueuePairs, SocketPath,
    VlanFields,
};
use crate::control::tags::tag_of;
use crate::hypervisor::qemu::ID_PREFIX;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;
use switch_core::MacAddress;

/// The fields of a device as written, types checked but nothing else. As JSON: in requests, in answers, and in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceFields {
    /// Unique among devices; its port's name too.
    pub name: String,
    /// The VM it belongs to.
    pub vm: VmFields,
    /// `virtio-net`, ...
    pub model: String,
    /// Its address; chosen from the name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// virtio-net only: pairs of rings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_pairs: Option<i64>,
    /// virtio-net only: whether packed rings are offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<bool>,
    /// The MTU offered to the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// The port's VLANs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanFields>,
    /// The port's socket; chosen beside the admin socket when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// The fields of `vm` as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmFields {
    /// `qemu` or `cloud-hypervisor`.
    pub hypervisor: String,
    /// Its QMP or API socket.
    pub socket: String,
}

/// What runs a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HypervisorKind {
    /// QEMU.
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
}

/// Where a VM is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmAddress {
    /// What runs it.
    pub hypervisor: HypervisorKind,
    /// Its QMP or API socket.
    pub socket: SocketPath,
}

/// The NICs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// virtio-net, over vhost-user.
    VirtioNet,
    /// VMware's paravirtual NIC, which QEMU itself is, over a stream.
    Vmxnet3,
    /// Intel's 82540EM, likewise.
    E1000,
    /// Intel's 82574L, likewise.
    E1000e,
    /// Realtek's, likewise.
    Rtl8139,
}

/// A NIC as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The VM it belongs to.
    pub vm: VmAddress,
    /// Which NIC.
    pub model: Model,
    /// Its address.
    pub mac: MacAddress,
    /// The port it owns, of its own name.
    pub port: PortConfig,
    /// Told apart from an earlier device with all of the above equal, of which its VM still has something.
    pub generation: u32,
}

/// What is chosen for a device that does not say.
#[derive(Clone, Copy)]
pub struct Choices<'a> {
    /// The folder that sockets are put into.
    pub folder: &'a Path,
    /// Whether another device has an address.
    pub is_taken: &'a dyn Fn(MacAddress) -> bool,
}

impl HypervisorKind {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }

    fn parse(text: &str) -> Result<Self, InvalidField> {
        [Self::Qemu, Self::CloudHypervisor]
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                InvalidField::new(
                    "vm.hypervisor",
                    format!(
                        "{} is not a hypervisor that NICs are plugged into",
                        quoted(text)
                    ),
                    "use \"qemu\" or \"cloud-hypervisor\"",
                )
            })
    }
}

impl Model {
    const ALL: [Self; 5] = [
        Self::VirtioNet,
        Self::Vmxnet3,
        Self::E1000,
        Self::E1000e,
        Self::Rtl8139,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::VirtioNet => "virtio-net",
            Self::Vmxnet3 => "vmxnet3",
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
            Self::Rtl8139 => "rtl8139",
        }
    }

    /// Whether it is a virtio device, whose rings the switch serves itself.
    pub fn is_virtio(self) -> bool {
        self == Self::VirtioNet
    }

    /// QEMU's driver.
    pub fn qemu_driver(self) -> &'static str {
        match self {
            Self::VirtioNet => "virtio-net-pci",
            other => other.name(),
        }
    }

    fn port_type(self) -> &'static str {
        match self {
            Self::VirtioNet => "vhost-user",
            _ => "stream",
        }
    }

    fn parse(text: &str, hypervisor: HypervisorKind) -> Result<Self, InvalidField> {
        let fits = |model: &Self| hypervisor == HypervisorKind::Qemu || *model == Self::VirtioNet;
        let found = Self::ALL.into_iter().find(|model| model.name() == text);
        found.filter(fits).ok_or_else(|| {
            let supported: Vec<&str> = Self::ALL.into_iter().filter(fits).map(Self::name).collect();
            InvalidField::new(
                "model",
                format!(
                    "{} is not a NIC that {} can be given",
                    quoted(text),
                    hypervisor.name()
                ),
                format!("use {}", supported.join(", ")),
            )
        })
    }
}

impl Device {
    /// Types and checks the fields of a device, and chooses what they leave out.
    ///
    /// # Errors
    /// The first field that cannot be accepted.
    pub fn from_fields(fields: &DeviceFields, choices: Choices<'_>) -> Result<Self, InvalidField> {
        let vm = VmAddress {
            hypervisor: HypervisorKind::parse(&fields.vm.hypervisor)?,
            socket: SocketPath::parse("vm.socket", &fields.vm.socket)?,
        };
        let model = Model::parse(&fields.model, vm.hypervisor)?;
        if vm.hypervisor == HypervisorKind::CloudHypervisor && fields.packed == Some(true) {
            return Err(InvalidField::new(
                "packed",
                "Cloud Hypervisor has no packed rings",
                "leave it out",
            ));
        }
        let name = PortName::parse(&fields.name)?;
        let port = PortConfig::from_fields(PortFields {
            name: Some(fields.name.clone()),
            kind: Some(model.port_type().to_owned()),
            socket: Some(match &fields.socket {
                Some(socket) => socket.clone(),
                None => chosen_socket(choices.folder, &name)?,
            }),
            queue_pairs: fields.queue_pairs,
            packed: fields.packed,
            mtu: fields.mtu,
            vlan: fields.vlan.clone(),
            ..PortFields::default()
        })?;
        if port.socket() == Some(&vm.socket) {
            return Err(InvalidField::new(
                "socket",
                "it is the hypervisor's own socket",
                "leave it out, or name another path for the port's socket",
            ));
        }
        let mac = match &fields.mac {
            Some(text) => parse_mac(text)?,
            None => chosen_mac(&name, choices.is_taken),
        };
        Ok(Self {
            vm,
            model,
            mac,
            port,
            generation: 0,
        })
    }

    /// Its name, which is its port's.
    pub fn name(&self) -> &PortName {
        &self.port.name
    }

    /// Pairs of rings; 1 for a NIC without any.
    pub fn queue_pairs(&self) -> QueuePairs {
        match &self.port.kind {
            PortKind::VhostUser { queue_pairs, .. } => *queue_pairs,
            _ => QueuePairs::default(),
        }
    }

    /// Whether packed rings are offered.
    pub fn packed(&self) -> bool {
        matches!(self.port.kind, PortKind::VhostUser { packed: true, .. })
    }

    /// The MTU offered to the guest.
    pub fn mtu(&self) -> Option<Mtu> {
        self.port.mtu
    }

    /// What the hypervisor knows it by. It follows from all that the device is, so that the same entry finds its NIC again whatever was
    /// restarted, and another under the same name never takes an old NIC for its own.
    pub fn id(&self) -> String {
        let fields = serde_json::to_string(&self.fields()).unwrap_or_default();
        let digest = Sha256::new()
            .chain_update(fields)
            .chain_update(self.generation.to_be_bytes())
            .finalize();
        let tag: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
        format!("{ID_PREFIX}{tag}-{}", self.name())
    }

    /// Tells it from every other; not how it fares.
    pub fn tag(&self) -> String {
        tag_of(&(self.fields(), self.generation))
    }

    /// As an operator would write it, with everything that was chosen.
    pub fn fields(&self) -> DeviceFields {
        let port = PortFields::from(&self.port);
        DeviceFields {
            name: self.name().to_string(),
            vm: VmFields {
                hypervisor: self.vm.hypervisor.name().to_owned(),
                socket: self.vm.socket.to_string(),
            },
            model: self.model.name().to_owned(),
            mac: Some(self.mac.to_string()),
            queue_pairs: port.queue_pairs,
            packed: port.packed,
            mtu: port.mtu,
            vlan: port.vlan,
            socket: port.socket,
        }
    }
}

/// The device's name out of an id of ours.
pub fn name_in_id(id: &str) -> Option<&str> {
    let (_, name) = id.strip_prefix(ID_PREFIX)?.split_once('-')?;
    Some(name)
}

fn chosen_socket(folder: &Path, name: &PortName) -> Result<String, InvalidField> {
    let path = folder.join(format!("device-{name}.sock"));
    match path.to_str() {
        Some(text) if text.len() <= SocketPath::MAX_BYTES => Ok(text.to_owned()),
        _ => Err(InvalidField::new(
            "socket",
            format!("no path for it can be chosen in {}", folder.display()),
            "name one of at most 107 bytes",
        )),
    }
}

fn parse_mac(text: &str) -> Result<MacAddress, InvalidField> {
    let mac: MacAddress = text.parse().map_err(|_| {
        InvalidField::new(
            "mac",
            format!("{} is not a MAC address", quoted(text)),
            "write six pairs of hexadecimal digits separated by colons, such as 52:54:00:12:34:56",
        )
    })?;
    if mac.is_multicast() || mac.is_zero() {
        return Err(InvalidField::new(
            "mac",
            format!("{mac} is not the address of one station"),
            "use one whose first byte is even, such as 52:54:00:12:34:56",
        ));
    }
    Ok(mac)
}

/// Locally administered (IEEE 802-2014 §8.4), the same for the same name unless another device has it.
fn chosen_mac(name: &PortName, is_taken: &dyn Fn(MacAddress) -> bool) -> MacAddress {
    let candidate = |attempt: u32| {
        let digest = Sha256::new()
            .chain_update(b"ringswitch device ")
            .chain_update(name.as_str())
            .chain_update(attempt.to_be_bytes())
            .finalize();
        let mut bytes = [0; 6];
        for (byte, digest) in bytes.iter_mut().zip(digest) {
            *byte = digest;
        }
        bytes[0] = bytes[0] & 0xfc | 0x02;
        MacAddress(bytes)
    };
    // There are fewer devices than attempts, so one of them is free.
    let attempts = 0..=u32::try_from(super::MAX_DEVICES).unwrap_or(u32::MAX);
    attempts
        .map(candidate)
        .find(|mac| !is_taken(*mac))
        .unwrap_or_else(|| candidate(0))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn fields(name: &str) -> DeviceFields {
        DeviceFields {
            name: name.to_owned(),
            vm: VmFields {
                hypervisor: "qemu".to_owned(),
                socket: "/run/vms/vm7.qmp".to_owned(),
            },
            model: "virtio-net".to_owned(),
            ..DeviceFields::default()
        }
    }

    pub(crate) fn device(fields: &DeviceFields) -> Result<Device, InvalidField> {
        Device::from_fields(
            fields,
            Choices {
                folder: Path::new("/run/ringswitch"),
                is_taken: &|_| false,
            },
        )
    }

    #[test]
    fn what_is_left_out_is_chosen_stably() {
        let chosen = device(&fields("vm7-eth1")).unwrap();
        assert_eq!(chosen, device(&fields("vm7-eth1")).unwrap());
        assert_eq!(chosen.mac.0[0] & 3, 2, "locally administered, one station");
        assert_ne!(chosen.mac, device(&fields("vm7-eth2")).unwrap().mac);
        let socket = chosen.port.socket().unwrap().to_string();
        assert_eq!(socket, "/run/ringswitch/device-vm7-eth1.sock");
    }

    #[test]
    fn an_address_that_another_device_has_is_not_chosen() {
        let first = device(&fields("a")).unwrap().mac;
        let is_taken = |mac| mac == first;
        let choices = Choices {
            folder: Path::new("/run"),
            is_taken: &is_taken,
        };
        let second = Device::from_fields(&fields("a"), choices).unwrap();
        assert_ne!(second.mac, first);
    }

    #[test]
    fn an_entry_is_the_same_after_it_was_written_and_read() {
        let written = DeviceFields {
            mac: Some("52:54:00:12:34:56".to_owned()),
            queue_pairs: Some(2),
            mtu: Some(1500),
            packed: Some(true),
            vlan: Some(VlanFields {
                access: Some(10),
                ..VlanFields::default()
            }),
            socket: Some("/run/x.sock".to_owned()),
            ..fields("vm7-eth1")
        };
        let typed = device(&written).unwrap();
        assert_eq!(typed.fields(), written);
        assert_eq!(device(&typed.fields()).unwrap(), typed);
    }

    #[test]
    fn an_id_names_its_device_and_all_that_it_is() {
        let one = device(&fields("vm7-eth.1")).unwrap();
        let mut other = one.clone();
        other.mac = MacAddress([2; 6]);
        let mut later = one.clone();
        later.generation = 1;
        assert_eq!(name_in_id(&one.id()), Some("vm7-eth.1"));
        assert_eq!(one.id(), one.clone().id());
        assert!(one.id() != other.id() && one.id() != later.id());
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_field() {
        let qemu = fields("a");
        let mut ch = qemu.clone();
        ch.vm.hypervisor = "cloud-hypervisor".to_owned();
        let with = |change: &dyn Fn(&mut DeviceFields)| {
            let mut fields = qemu.clone();
            change(&mut fields);
            fields
        };
        for (fields, field) in [
            (with(&|f| f.name = "a/b".to_owned()), "name"),
            (
                with(&|f| f.vm.hypervisor = "xen".to_owned()),
                "vm.hypervisor",
            ),
            (with(&|f| f.vm.socket = "vm.qmp".to_owned()), "vm.socket"),
            (with(&|f| f.model = "ne2k".to_owned()), "model"),
            (
                with(&|f| f.mac = Some("01:00:5e:00:00:01".to_owned())),
                "mac",
            ),
            (
                with(&|f| f.mac = Some("00:00:00:00:00:00".to_owned())),
                "mac",
            ),
            (with(&|f| f.mac = Some("52:54".to_owned())), "mac"),
            (
                with(&|f| (f.model, f.queue_pairs) = ("e1000".to_owned(), Some(1))),
                "queue_pairs",
            ),
            (
                with(&|f| (f.model, f.packed) = ("vmxnet3".to_owned(), Some(true))),
                "packed",
            ),
            (
                DeviceFields {
                    model: "e1000".to_owned(),
                    ..ch.clone()
                },
                "model",
            ),
            (with(&|f| f.queue_pairs = Some(0)), "queue_pairs"),
            (with(&|f| f.mtu = Some(1)), "mtu"),
            (with(&|f| f.socket = Some(f.vm.socket.clone())), "socket"),
            (
                DeviceFields {
                    packed: Some(true),
                    ..ch.clone()
                },
                "packed",
            ),
        ] {
            assert_eq!(device(&fields).unwrap_err().field, field, "{fields:?}");
        }
    }
}
