//! A guest: one QEMU process, the monitor that steers it and the agent inside it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::Result;
use crate::agent::{Agent, Channel};
use crate::artefacts::{Artefacts, QEMU};
use crate::process::Process;
use crate::qmp::Qmp;
use crate::run_dir::RunDir;

/// Guest memory at boot.
pub const MEMORY_MIB: u32 = 256;

/// Quiet, quick under emulation, and back by itself after a panic.
const KERNEL_COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=1 no_timer_check nokaslr mitigations=off cryptomgr.notests";

/// The model of NIC that a vhost-user back-end is for.
pub const VIRTIO_NIC: &str = "virtio-net-pci";

/// Which end of a socket QEMU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QemuEnd {
    /// QEMU connects, and connects again when the other end goes.
    Connects,
    /// QEMU listens.
    Listens,
}

/// What a guest's NIC hangs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A vhost-user back-end.
    VhostUser(QemuEnd, PathBuf),
    /// QEMU's own stream netdev: to a stream port, or two guests back to back, no switch at all.
    Stream(QemuEnd, PathBuf),
    /// A TAP interface that exists already, in the network QEMU is started in. QEMU gives it a guest-tx ring of 256 entries at most.
    Tap(String),
}

/// A guest to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSpec {
    /// Unique in its lab; also its port's name.
    pub name: String,
    /// Its place in the subnet: MAC 52:54:00:00:00:NN, address 10.0.0.NN.
    pub number: u8,
    /// Queue pairs of its NIC, and vCPUs.
    pub queue_pairs: u16,
    /// What its NIC hangs on.
    pub backend: Backend,
    /// The NIC's model, as QEMU names it: [`VIRTIO_NIC`], or another on a stream.
    pub nic_model: String,
    /// Further properties of the NIC, as after `-device virtio-net-pci,`.
    pub nic_properties: Vec<String>,
    /// Further arguments of QEMU's command line, after all others.
    pub arguments: Vec<String>,
    /// What QEMU's command line is given to, such as `taskset --cpu-list 0`; nothing for most.
    pub launcher: Vec<String>,
}

impl GuestSpec {
    /// The NIC's MAC address.
    #[must_use]
    pub fn mac(&self) -> String {
        format!("52:54:00:00:00:{:02x}", self.number)
    }

    /// The guest's IPv4 address in the lab's subnet.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, self.number)
    }

    fn is_behind_iommu(&self) -> bool {
        let named = |property: &String| property.contains("iommu_platform=on");
        self.nic_properties.iter().any(named)
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn address_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(self.number))
    }
}

/// A QEMU that waits for a guest that runs in another one. Dropping it ends it.
pub struct Incoming {
    spec: GuestSpec,
    process: Process,
    qmp: Qmp,
    channel: Channel,
}

impl Incoming {
    /// Starts it, to become what `guest` is now; `spec` differs from that guest's in its name and what the NIC hangs on only.
    ///
    /// # Errors
    /// QEMU does not start; what it said is in the error.
    pub fn start(
        artefacts: &Artefacts,
        folder: &RunDir,
        spec: &GuestSpec,
        guest: &Agent,
    ) -> Result<Self> {
        let mut command = command(artefacts, folder, spec);
        command.args(["-incoming", "defer"]);
        let (process, qmp, channel) =
            launch(folder, spec, &command, |socket| guest.open_channel(socket))?;
        Ok(Self {
            spec: spec.clone(),
            process,
            qmp,
            channel,
        })
    }

    /// QEMU's monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The QEMU process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The guest is here now, and so is its agent.
    #[must_use]
    pub fn arrived(self, agent: &Agent) -> Guest {
        agent.move_to(self.channel);
        Guest {
            spec: self.spec,
            process: self.process,
            qmp: self.qmp,
            agent: agent.clone(),
        }
    }
}

/// A running guest. Dropping it ends QEMU.
pub struct Guest {
    spec: GuestSpec,
    process: Process,
    qmp: Qmp,
    agent: Agent,
}

impl Guest {
    /// Starts QEMU and connects to it; the guest boots meanwhile: see [`Guest::wait_booted`].
    ///
    /// # Errors
    /// QEMU does not start; what it said is in the error.
    pub fn start(artefacts: &Artefacts, folder: &RunDir, spec: &GuestSpec) -> Result<Self> {
        let command = command(artefacts, folder, spec);
        let (process, qmp, agent) = launch(folder, spec, &command, |socket| {
            Agent::in_guest(&spec.name, socket)
        })?;
        Ok(Self {
            spec: spec.clone(),
            process,
            qmp,
            agent,
        })
    }

    /// Waits until the agent inside has said hello.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_booted(&mut self) -> Result<()> {
        self.agent
            .wait_boot(1)
            .map_err(|error| self.process.check_running().err().unwrap_or(error))
    }

    /// Gives the NIC its addresses and brings it up. To be repeated after a reboot.
    ///
    /// # Errors
    /// There is no NIC, or it has the addresses already.
    pub fn configure_network(&self) -> Result<()> {
        let (address, address_v6) = (self.spec.address(), self.spec.address_v6());
        // Its address is its own: no seconds spent on asking around.
        self.agent.shell(&format!(
            "sysctl -w net.ipv6.conf.eth0.accept_dad=0
             ip addr add {address}/24 dev eth0
             ip addr add {address_v6}/64 dev eth0
             ip link set eth0 up"
        ))?;
        Ok(())
    }

    /// Takes its addresses from the NIC, what it knows of its neighbours, and VLAN interfaces.
    ///
    /// # Errors
    /// There is no NIC.
    pub fn forget_network(&self) -> Result<()> {
        self.agent.shell(
            "for vlan in /sys/class/net/eth0.*; do
                 if [ -e $vlan ]; then ip link del ${vlan##*/}; fi
             done
             ip link set eth0 down
             ip addr flush dev eth0",
        )?;
        Ok(())
    }

    /// Did device and driver agree on this feature?
    ///
    /// # Errors
    /// There is no NIC.
    pub fn negotiated(&self, feature_bit: usize) -> Result<bool> {
        // One character a bit, bit 0 first.
        let features = self.agent.run("cat /sys/class/net/eth0/device/features")?;
        Ok(features.as_bytes().get(feature_bit) == Some(&b'1'))
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &GuestSpec {
        &self.spec
    }

    /// Who lives inside.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// QEMU's monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The QEMU process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Plugs the NIC's cable out or in.
    ///
    /// # Errors
    /// QEMU refused.
    pub fn set_link(&mut self, link: Link) -> Result<()> {
        self.qmp
            .execute(
                "set_link",
                json!({ "name": "nic0", "up": link == Link::Up }),
            )
            .map(drop)
    }

    /// Adds a memory module while the guest runs: it can use the memory at once.
    ///
    /// # Errors
    /// QEMU refused: no free slot.
    pub fn plug_memory(&mut self, id: &str, mib: u64) -> Result<()> {
        let backend = format!("{id}-backend");
        let size = mib << 20;
        let memory = json!({ "qom-type": "memory-backend-memfd", "id": backend, "size": size, "share": true });
        self.qmp.execute("object-add", memory)?;
        let module = json!({ "driver": "pc-dimm", "id": id, "memdev": backend });
        match self.qmp.execute("device_add", module) {
            Ok(_) => Ok(()),
            Err(refusal) => {
                self.qmp.execute("object-del", json!({ "id": backend }))?;
                Err(refusal)
            }
        }
    }

    /// Takes a memory module out again, once the guest has let go of it.
    ///
    /// # Errors
    /// QEMU or the guest refused.
    pub fn unplug_memory(&mut self, id: &str) -> Result<()> {
        self.qmp.clear_events();
        self.qmp.execute("device_del", json!({ "id": id }))?;
        self.qmp.wait_event("DEVICE_DELETED", |data| {
            data.get("device").is_some_and(|device| device == id)
        })?;
        self.qmp
            .execute("object-del", json!({ "id": format!("{id}-backend") }))
            .map(drop)
    }
}

/// A NIC's cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Plugged in.
    Up,
    /// Pulled out.
    Down,
}

/// Where a guest's agent answers.
#[must_use]
pub fn agent_socket(folder: &RunDir, name: &str) -> PathBuf {
    folder.join(&format!("{name}.agent"))
}

fn qmp_socket(folder: &RunDir, name: &str) -> PathBuf {
    folder.join(&format!("{name}.qmp"))
}

/// Starts QEMU and connects to its monitor, and with `connect` to its guest's agent.
fn launch<T>(
    folder: &RunDir,
    spec: &GuestSpec,
    command: &Command,
    connect: impl FnOnce(&Path) -> Result<T>,
) -> Result<(Process, Qmp, T)> {
    let mut process = Process::spawn(folder, &spec.name, command)?;
    let connected = Qmp::connect(&qmp_socket(folder, &spec.name))
        .and_then(|qmp| Ok((qmp, connect(&agent_socket(folder, &spec.name))?)));
    match connected {
        Ok((qmp, agent)) => Ok((process, qmp, agent)),
        // If QEMU ended, why it did says more than that its socket is not there.
        Err(error) => Err(process.check_running().err().unwrap_or(error)),
    }
}

fn command(artefacts: &Artefacts, folder: &RunDir, spec: &GuestSpec) -> Command {
    let name = &spec.name;
    let pairs = spec.queue_pairs;
    let listening = |socket: PathBuf| format!("path={},server=on,wait=off", socket.display());
    let mut command = match spec.launcher.split_first() {
        None => Command::new(QEMU),
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(QEMU);
            command
        }
    };
    command.args([
        "-name",
        name,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ]);
    // Interrupts pass an IOMMU only if QEMU itself delivers them.
    let machine = if spec.is_behind_iommu() {
        "q35,memory-backend=mem,kernel-irqchip=split"
    } else {
        "q35,memory-backend=mem"
    };
    command.args(["-machine", machine, "-accel", &artefacts.accelerator]);
    let mut kernel_command_line = KERNEL_COMMAND_LINE.to_owned();
    if spec.is_behind_iommu() {
        command.args(["-device", "intel-iommu,intremap=on,device-iotlb=on"]);
        // ATS is for devices behind a port.
        command.args(["-device", "pcie-root-port,id=iommu-port,chassis=1"]);
        // Every unmapped buffer is unmapped at once: as often as can be.
        kernel_command_line += " intel_iommu=on iommu.strict=1";
    }
    command.args([
        "-smp",
        &pairs.to_string(),
        "-m",
        &format!("{MEMORY_MIB}M,slots=2,maxmem=1G"),
    ]);
    // Without share=on the back-end sees other memory than the guest: a NIC that is silently dead.
    command.args([
        "-object",
        &format!("memory-backend-memfd,id=mem,size={MEMORY_MIB}M,share=on"),
    ]);
    command
        .arg("-kernel")
        .arg(&artefacts.kernel)
        .arg("-initrd")
        .arg(&artefacts.initramfs);
    command.args(["-append", &kernel_command_line]);
    command.args([
        "-serial",
        &format!("file:{}", folder.join(&format!("{name}.console")).display()),
    ]);
    command.args([
        "-chardev",
        &format!("socket,id=agent,{}", listening(agent_socket(folder, name))),
    ]);
    command.args(["-serial", "chardev:agent"]);
    command.args([
        "-chardev",
        &format!("socket,id=qmp,{}", listening(qmp_socket(folder, name))),
    ]);
    command.args(["-mon", "chardev=qmp,mode=control"]);
    let mut nic = format!("{},id=nic0,netdev=net0,mac={}", spec.nic_model, spec.mac());
    match &spec.backend {
        Backend::VhostUser(end, socket) => {
            let chardev = match end {
                QemuEnd::Connects => {
                    format!("path={},{}", socket.display(), artefacts.reconnect_option())
                }
                QemuEnd::Listens => listening(socket.clone()),
            };
            command.args(["-chardev", &format!("socket,id=net0-socket,{chardev}")]);
            command.args([
                "-netdev",
                &format!("vhost-user,id=net0,chardev=net0-socket,queues={pairs}"),
            ]);
            // A vector for each ring, one for configuration changes, one for the control ring.
            let vectors = 2 * pairs + 2;
            nic += &format!(
                ",mq=on,vectors={vectors},rx_queue_size=1024,tx_queue_size=1024,ctrl_guest_offloads=off"
            );
        }
        Backend::Stream(end, socket) => {
            let end = match end {
                QemuEnd::Connects => format!("server=off,{}", artefacts.reconnect_option()),
                QemuEnd::Listens => "server=on".to_owned(),
            };
            let path = socket.display();
            command.args([
                "-netdev",
                &format!("stream,id=net0,addr.type=unix,addr.path={path},{end}"),
            ]);
        }
        Backend::Tap(interface) => {
            command.args([
                "-netdev",
                &format!("tap,id=net0,ifname={interface},script=no,downscript=no,vhost=off"),
            ]);
            nic += ",rx_queue_size=1024,ctrl_guest_offloads=off";
        }
    }
    for property in &spec.nic_properties {
        nic.push(',');
        nic += property;
    }
    command.args(["-device", &nic]).args(&spec.arguments);
    command
}
