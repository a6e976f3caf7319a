//! A lab: one switch, its guests, and the folder they share. Booted as a whole, gone as a whole.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::Value;

use crate::agent::Agent;
use crate::artefacts::{Artefacts, ringswitch};
use crate::await_::{SOON, eventually};
use crate::guest::{Backend, Guest, GuestSpec, QemuEnd, VIRTIO_NIC};
use crate::process::tail;
use crate::run_dir::RunDir;
use crate::switch::{Network, PortKind, PortSpec, Switch, SwitchEnd, SwitchOptions, Vlan};
use crate::{Error, Result, traffic};

/// A guest and the port it hangs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Station {
    name: String,
    queue_pairs: u16,
    vlan: Vlan,
    mtu: Option<u16>,
    qemu_end: QemuEnd,
    packed: bool,
    nic_model: Option<String>,
    nic_properties: Vec<String>,
    arguments: Vec<String>,
}

impl Station {
    /// One queue pair, untagged, QEMU connects, everything else as QEMU has it.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            queue_pairs: 1,
            vlan: Vlan::Untagged,
            mtu: None,
            qemu_end: QemuEnd::Connects,
            packed: false,
            nic_model: None,
            nic_properties: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// With as many vCPUs.
    #[must_use]
    pub fn queue_pairs(self, queue_pairs: u16) -> Self {
        Self {
            queue_pairs,
            ..self
        }
    }

    /// The port's VLAN membership.
    #[must_use]
    pub fn vlan(self, vlan: Vlan) -> Self {
        Self { vlan, ..self }
    }

    /// The MTU offered to the guest.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = Some(mtu);
        self.nic(&format!("host_mtu={mtu}"))
    }

    /// QEMU listens; the port is in client mode.
    #[must_use]
    pub fn qemu_listens(self) -> Self {
        Self {
            qemu_end: QemuEnd::Listens,
            ..self
        }
    }

    /// A NIC of a model that is not virtio, on a stream port.
    #[must_use]
    pub fn nic_model(self, model: &str) -> Self {
        Self {
            nic_model: Some(model.to_owned()),
            ..self
        }
    }

    /// Packed rings, on the port and in the guest.
    #[must_use]
    pub fn packed(mut self) -> Self {
        self.packed = true;
        self.nic("packed=on")
    }

    /// With an IOMMU between the NIC and the guest's memory; the driver may have the device keep translations (ATS) or not.
    #[must_use]
    pub fn behind_iommu(self, ats: Ats) -> Self {
        let station = self.nic("iommu_platform=on,disable-legacy=on,bus=iommu-port");
        match ats {
            Ats::On => station.nic("ats=on"),
            Ats::Off => station,
        }
    }

    /// Further properties of the NIC.
    #[must_use]
    pub fn nic(mut self, property: &str) -> Self {
        self.nic_properties.push(property.to_owned());
        self
    }

    /// Further arguments of QEMU's command line, split at white space.
    #[must_use]
    pub fn qemu(mut self, arguments: &str) -> Self {
        self.arguments
            .extend(arguments.split_whitespace().map(str::to_owned));
        self
    }

    fn socket(&self, folder: &RunDir) -> PathBuf {
        folder.join(&format!("{}.sock", self.name))
    }

    /// The port of the switch.
    #[must_use]
    pub fn port(&self, folder: &RunDir) -> PortSpec {
        let mode = match self.qemu_end {
            QemuEnd::Connects => SwitchEnd::Listens,
            QemuEnd::Listens => SwitchEnd::Connects,
        };
        let socket = self.socket(folder);
        let kind = match &self.nic_model {
            Some(_) => PortKind::Stream { socket, mode },
            None => PortKind::VhostUser {
                socket,
                mode,
                queue_pairs: self.queue_pairs,
                packed: self.packed,
            },
        };
        PortSpec {
            name: self.name.clone(),
            kind,
            vlan: self.vlan.clone(),
            mtu: self.mtu,
        }
    }

    fn guest(&self, folder: &RunDir, number: u8, wiring: Wiring) -> GuestSpec {
        let backend = match (wiring, number) {
            (Wiring::Switch, _) if self.nic_model.is_some() => {
                Backend::Stream(self.qemu_end, self.socket(folder))
            }
            (Wiring::Switch, _) => Backend::VhostUser(self.qemu_end, self.socket(folder)),
            (Wiring::BackToBack, 1) => Backend::Stream(QemuEnd::Listens, folder.join("wire.sock")),
            (Wiring::BackToBack, _) => Backend::Stream(QemuEnd::Connects, folder.join("wire.sock")),
        };
        GuestSpec {
            name: self.name.clone(),
            number,
            queue_pairs: self.queue_pairs,
            backend,
            nic_model: self.nic_model.as_deref().unwrap_or(VIRTIO_NIC).to_owned(),
            nic_properties: self.nic_properties.clone(),
            arguments: self.arguments.clone(),
            launcher: Vec::new(),
        }
    }
}

/// Whether a device behind an IOMMU may keep translations (PCIe Address Translation Services).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ats {
    /// The guest tells it when they end.
    On,
    /// It is the IOMMU's own business.
    Off,
}

/// What is between the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// Ringswitch.
    Switch,
    /// Nothing: two guests joined by QEMU itself. What fails here too is not the switch's fault.
    BackToBack,
}

/// A lab to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabSpec {
    /// The guests, numbered from 1.
    pub stations: Vec<Station>,
    /// TAP ports. With any, the switch runs in a network namespace of its own.
    pub taps: Vec<String>,
    /// The switch's program, a name or a file; its own when absent.
    pub program: Option<String>,
    /// What is between them.
    pub wiring: Wiring,
    /// Whether tests other than the next one want its guests too: see [`crate::pool`].
    pub kept: bool,
}

impl LabSpec {
    /// Guests on a switch.
    #[must_use]
    pub fn of(stations: impl IntoIterator<Item = Station>) -> Self {
        Self {
            stations: stations.into_iter().collect(),
            taps: Vec::new(),
            program: None,
            wiring: Wiring::Switch,
            kept: false,
        }
    }

    /// Its guests stay for tests to come.
    #[must_use]
    pub fn kept(self) -> Self {
        Self { kept: true, ..self }
    }

    fn start_switch(&self, folder: &RunDir) -> Result<Option<Switch>> {
        if self.wiring == Wiring::BackToBack {
            return Ok(None);
        }
        let network = if self.taps.is_empty() {
            Network::Machine
        } else {
            Network::Private
        };
        let stations = self.stations.iter().map(|station| station.port(folder));
        let taps = self.taps.iter().map(|interface| tap_port(interface));
        let ports: Vec<PortSpec> = stations.chain(taps).collect();
        let options = SwitchOptions {
            network,
            program: self.program.clone(),
            device_state_key: None,
        };
        Switch::start(&ringswitch()?, folder, &ports, &options).map(Some)
    }
}

/// A running lab. Fields are dropped in this order: guests first, their folder last.
pub struct Lab {
    spec: LabSpec,
    guests: Vec<Guest>,
    switch: Option<Switch>,
    artefacts: Artefacts,
    folder: RunDir,
}

impl Lab {
    /// Starts the switch, boots all guests at once and gives their NICs addresses.
    ///
    /// # Errors
    /// Something does not come up; what it said is in the error.
    pub fn start(name: &str, spec: &LabSpec) -> Result<Self> {
        let folder = RunDir::create(name)?;
        let mut lab = Self {
            spec: spec.clone(),
            guests: Vec::new(),
            switch: spec.start_switch(&folder)?,
            artefacts: Artefacts::find()?,
            folder,
        };
        lab.populate()?;
        Ok(lab)
    }

    /// Boots the guests that are not there yet, all at once, and gives all of them addresses.
    fn populate(&mut self) -> Result<()> {
        let missing = self.spec.stations.clone().into_iter();
        for station in missing.skip(self.guests.len()) {
            self.start_guest(&station)?;
        }
        for guest in &mut self.guests {
            guest.wait_booted()?;
            guest.configure_network()?;
        }
        Ok(())
    }

    /// Whether [`Lab::rewire`] can make that of it: its guests are what that one's first guests are to be.
    #[must_use]
    pub fn can_become(&self, spec: &LabSpec) -> bool {
        let wired = self.spec.wiring == Wiring::Switch && spec.wiring == Wiring::Switch;
        let same = |(guest, station): (&Guest, &Station)| {
            *guest.spec() == station.guest(&self.folder, guest.spec().number, spec.wiring)
        };
        wired
            && self.guests.len() <= spec.stations.len()
            && self.guests.iter().zip(&spec.stations).all(same)
    }

    /// Makes another lab of it: its guests go on, with nothing but their addresses on a switch that is that one's, and those that
    /// are missing are booted.
    ///
    /// # Errors
    /// The switch before does not end in good order, or something does not come up.
    pub fn rewire(&mut self, spec: &LabSpec) -> Result<()> {
        for guest in &self.guests {
            guest.forget_network()?;
        }
        if let Some(mut switch) = self.switch.take() {
            switch.terminate()?;
        }
        self.switch = spec.start_switch(&self.folder)?;
        self.spec = spec.clone();
        self.populate()?;
        self.wait_ports_up()
    }

    /// Waits until the ports of all guests that it was made with are up.
    ///
    /// # Errors
    /// They do not get there.
    pub fn wait_ports_up(&mut self) -> Result<()> {
        let wanted = self.spec.stations.len();
        let is_up = |port: &&Value| {
            let is = |key, value| port.get(key).is_some_and(|found| found == value);
            (is("type", "vhost-user") || is("type", "stream")) && is("state", "up")
        };
        eventually(SOON, "all ports to be up", || {
            match self.switch().and_then(|switch| switch.get("/v1/ports")) {
                Ok(ports) => {
                    let listed = ports.get("ports").and_then(Value::as_array);
                    let up = listed.into_iter().flatten().filter(is_up).count();
                    if up >= wanted {
                        Ok(())
                    } else {
                        Err(ports.to_string())
                    }
                }
                Err(error) => Err(error.to_string()),
            }
        })
    }

    /// Starts one more guest, without waiting for it. Its port has to be there.
    ///
    /// # Errors
    /// QEMU does not start.
    pub fn start_guest(&mut self, station: &Station) -> Result<&mut Guest> {
        let number = u8::try_from(self.guests.len() + 1)
            .map_err(|_| Error::Unexpected("too many guests".to_owned()))?;
        let spec = station.guest(&self.folder, number, self.spec.wiring);
        self.guests
            .push(Guest::start(&self.artefacts, &self.folder, &spec)?);
        self.guest_mut(usize::from(number))
    }

    /// Kills a guest's QEMU and boots a new one on the same port.
    ///
    /// # Errors
    /// It does not come up.
    pub fn replace_guest(&mut self, number: usize) -> Result<()> {
        let old = self.guest_mut(number)?;
        old.process().kill()?;
        let spec = old.spec().clone();
        let mut fresh = Guest::start(&self.artefacts, &self.folder, &spec)?;
        fresh.wait_booted()?;
        fresh.configure_network()?;
        *self.guest_mut(number)? = fresh;
        Ok(())
    }

    /// Ends the guest that was started last.
    pub fn stop_last_guest(&mut self) {
        self.guests.pop();
    }

    /// A guest, counted from 1.
    ///
    /// # Errors
    /// There is none of that number.
    pub fn guest(&self, number: usize) -> Result<&Guest> {
        self.guests
            .get(number.wrapping_sub(1))
            .ok_or_else(|| Error::Unexpected(format!("no guest {number}")))
    }

    /// A guest, counted from 1.
    ///
    /// # Errors
    /// There is none of that number.
    pub fn guest_mut(&mut self, number: usize) -> Result<&mut Guest> {
        self.guests
            .get_mut(number.wrapping_sub(1))
            .ok_or_else(|| Error::Unexpected(format!("no guest {number}")))
    }

    /// A guest's agent and address.
    ///
    /// # Errors
    /// There is none of that number.
    pub fn host(&self, number: usize) -> Result<(Agent, IpAddr)> {
        let guest = self.guest(number)?;
        Ok((guest.agent().clone(), guest.spec().address().into()))
    }

    /// Waits until guests 1 and `number` reach each other.
    ///
    /// # Errors
    /// They never do.
    pub fn wait_connected(&self, number: usize) -> Result<()> {
        traffic::wait_reachable(&self.host(1)?.0, self.host(number)?.1)
    }

    /// The switch.
    ///
    /// # Errors
    /// The guests are wired back to back.
    pub fn switch(&mut self) -> Result<&mut Switch> {
        self.switch
            .as_mut()
            .ok_or_else(|| Error::Unexpected("there is no switch in this lab".to_owned()))
    }

    /// Starts the switch again after it ended, one way or another.
    ///
    /// # Errors
    /// It does not come back.
    pub fn restart_switch(&mut self) -> Result<()> {
        let switch = self
            .switch
            .as_mut()
            .ok_or_else(|| Error::Unexpected("the switch is gone".to_owned()))?;
        switch.restart(&self.folder)
    }

    /// Has another process take over from the switch; what `ringswitch upgrade` says of it.
    ///
    /// # Errors
    /// It does not.
    pub fn upgrade_switch(&mut self) -> Result<Value> {
        let switch = self
            .switch
            .as_mut()
            .ok_or_else(|| Error::Unexpected("the switch is gone".to_owned()))?;
        switch.upgrade(&self.folder)
    }

    /// An agent on the host, in the network the switch's TAP ports are in.
    ///
    /// # Errors
    /// There is no switch, or its namespace may not be entered.
    pub fn host_agent(&mut self) -> Result<Agent> {
        let pid = self.switch()?.process().id();
        Agent::on_host(&self.artefacts, Some(pid))
    }

    /// The process ids of its guests and its switch.
    #[must_use]
    pub fn processes(&mut self) -> Vec<u32> {
        let guests = self.guests.iter_mut().map(|guest| guest.process().id());
        let switch = self.switch.iter_mut().map(|switch| switch.process().id());
        guests.chain(switch).collect()
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &LabSpec {
        &self.spec
    }

    /// Where its sockets and logs are.
    #[must_use]
    pub fn folder(&self) -> &RunDir {
        &self.folder
    }

    /// The ends of all logs, for whoever has to find out what went wrong.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let guests = self.guests.iter().flat_map(|guest| {
            let name = &guest.spec().name;
            [format!("{name}.log"), format!("{name}.console")]
        });
        for name in std::iter::once("ringswitch.log".to_owned()).chain(guests) {
            let end = tail(&self.folder.join(&name));
            if !end.is_empty() {
                text += &format!("--- {name}\n{end}\n");
            }
        }
        text
    }

    /// Leaves everything running, and says where.
    pub fn keep(mut self) -> PathBuf {
        for guest in &mut self.guests {
            guest.process().keep();
        }
        if let Some(switch) = &mut self.switch {
            switch.process().keep();
        }
        let Self {
            guests,
            switch,
            folder,
            ..
        } = self;
        drop((guests, switch));
        folder.keep()
    }
}

/// A TAP port named after its interface.
#[must_use]
pub fn tap_port(interface: &str) -> PortSpec {
    let kind = PortKind::Tap {
        interface: interface.to_owned(),
    };
    PortSpec {
        name: interface.to_owned(),
        kind,
        vlan: Vlan::Untagged,
        mtu: None,
    }
}
