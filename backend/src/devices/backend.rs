//! A hypervisor of either kind, as reconciling sees it.
use super::device::{Device, HypervisorKind, VmAddress};
use crate::hypervisor::HypervisorError;
use crate::hypervisor::cloud_hypervisor::{CloudHypervisor, Net};
use crate::hypervisor::qemu::{ID_PREFIX, Netdev, Nic, Qemu, VirtioNic};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A hypervisor we are connected to.
#[derive(Debug)]
pub enum Backend {
    /// QEMU, over a connection that lasts.
    Qemu(Box<Qemu>),
    /// Cloud Hypervisor, a connection each request.
    CloudHypervisor(CloudHypervisor),
}

/// What a hypervisor has under one id of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// The NIC, also one that the guest is yet to let go of.
    pub nic: bool,
    /// The socket it reaches the switch through, where that is known. QEMU: of the chardev.
    pub socket: Option<PathBuf>,
}

/// Why a VM cannot be given a NIC just now, although nothing is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It migrates.
    Migration(String),
    /// It is in another state than running.
    State(String),
    /// The hypervisor has no VM yet.
    NoVm,
}

/// Whether a VM can take a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Why not now.
    pub obstacle: Option<Obstacle>,
    /// Whether other processes see the guest's memory; `None`: it does not say.
    pub memory_is_shared: Option<bool>,
    /// CPUs the guest has.
    pub vcpus: u64,
    /// Where a NIC can be plugged in, or why nowhere. Cloud Hypervisor chooses itself.
    pub bus: Result<String, &'static str>,
}

/// Everything a hypervisor has of ours, by id.
pub type Sight = BTreeMap<String, Objects>;

impl Backend {
    /// Connects; when it returns, the hypervisor has answered.
    ///
    /// # Errors
    /// It has not.
    pub async fn connect(vm: &VmAddress) -> Result<Self, HypervisorError> {
        let socket = vm.socket.as_path();
        match vm.hypervisor {
            HypervisorKind::Qemu => {
                let mut qemu = Qemu::connect(socket).await?;
                // One that greets may hang all the same.
                qemu.objects().await?;
                Ok(Self::Qemu(Box::new(qemu)))
            }
            HypervisorKind::CloudHypervisor => {
                let api = CloudHypervisor::new(socket);
                api.info().await?;
                Ok(Self::CloudHypervisor(api))
            }
        }
    }

    /// What it has of ours.
    ///
    /// # Errors
    /// It does not say.
    pub async fn look(&mut self) -> Result<Sight, HypervisorError> {
        match self {
            Self::Qemu(qemu) => {
                let objects = qemu.objects().await?;
                let objects = objects.into_iter().map(|(id, objects)| {
                    let (nic, socket) = (objects.nic, objects.chardev);
                    (id, Objects { nic, socket })
                });
                Ok(objects.collect())
            }
            Self::CloudHypervisor(api) => {
                let info = api.info().await?;
                let ours = info.devices.into_iter();
                let ours = ours.filter(|(id, _)| id.starts_with(ID_PREFIX));
                Ok(ours
                    .map(|(id, socket)| (id, Objects { nic: true, socket }))
                    .collect())
            }
        }
    }

    /// Whether it can take a NIC.
    ///
    /// # Errors
    /// It does not say.
    pub async fn facts(&mut self) -> Result<Facts, HypervisorError> {
        match self {
            Self::Qemu(qemu) => {
                let obstacle = qemu.migration().await?.map(Obstacle::Migration);
                let facts = qemu.facts().await?;
                Ok(Facts {
                    obstacle,
                    memory_is_shared: facts.memory_is_shared,
                    vcpus: u64::try_from(facts.vcpus).unwrap_or(u64::MAX),
                    bus: facts.free_bus.ok_or(facts.no_bus),
                })
            }
            Self::CloudHypervisor(api) => {
                let info = api.info().await?;
                let obstacle = match info.state {
                    None => Some(Obstacle::NoVm),
                    Some(state) if state == "Running" => None,
                    Some(state) => Some(Obstacle::State(state)),
                };
                Ok(Facts {
                    obstacle,
                    memory_is_shared: Some(info.memory_is_shared),
                    vcpus: info.vcpus,
                    bus: Ok(String::new()),
                })
            }
        }
    }

    /// Waits until something happened to a device; for ever where there are no events.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub async fn changed(&mut self) -> Result<(), HypervisorError> {
        match self {
            Self::Qemu(qemu) => qemu.device_event().await,
            Self::CloudHypervisor(_) => std::future::pending().await,
        }
    }

    /// Whether it says by itself when something happens.
    pub fn has_events(&self) -> bool {
        matches!(self, Self::Qemu(_))
    }

    /// Whether the guest has said that it does not let go of a device. Forgets it.
    pub fn take_guest_refusal(&mut self, id: &str) -> bool {
        match self {
            Self::Qemu(qemu) => qemu.take_guest_refusal(id),
            Self::CloudHypervisor(_) => false,
        }
    }
}

/// The netdev of a device in QEMU.
pub fn netdev(device: &Device) -> Netdev {
    if !device.model.is_virtio() {
        return Netdev::Stream {
            socket: socket_of(device),
        };
    }
    Netdev::VhostUser {
        queue_pairs: device.queue_pairs().get(),
    }
}

/// Where the switch listens for a device.
pub fn socket_of(device: &Device) -> PathBuf {
    let socket = device.port.socket();
    socket
        .map(|socket| socket.as_path().to_owned())
        .unwrap_or_default()
}

/// A device as QEMU is given it.
pub fn nic(device: &Device) -> Nic {
    let virtio = device.model.is_virtio().then(|| VirtioNic {
        queue_pairs: device.queue_pairs().get(),
        packed: device.packed(),
        mtu: device.mtu().map(crate::config::Mtu::get),
    });
    Nic {
        driver: device.model.qemu_driver(),
        mac: device.mac.to_string(),
        virtio,
    }
}

/// A device as Cloud Hypervisor is given it.
pub fn net(device: &Device, id: &str) -> Net {
    Net {
        id: id.to_owned(),
        socket: socket_of(device),
        mac: device.mac.to_string(),
        queue_pairs: device.queue_pairs().get(),
        mtu: device.mtu().map(crate::config::Mtu::get),
    }
}
