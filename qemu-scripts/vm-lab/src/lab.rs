//! A lab: one switch, its guests, and the folder they share. Booted as a whole, gone as a whole.

use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{FlockOperation, flock};

use serde_json::Value;

use crate::agent::Agent;
use crate::artefacts::{Artefacts, repository, ringswitch};
use crate::error::Doing;
use crate::guest::{Backend, Guest, GuestSpec, QemuEnd};
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
        let kind = PortKind::VhostUser {
            socket: self.socket(folder),
            mode,
            queue_pairs: self.queue_pairs,
            packed: self.packed,
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
            (Wiring::Switch, _) => Backend::VhostUser(self.qemu_end, self.socket(folder)),
            (Wiring::BackToBack, 1) => Backend::Stream(QemuEnd::Listens, folder.join("wire.sock")),
            (Wiring::BackToBack, _) => Backend::Stream(QemuEnd::Connects, folder.join("wire.sock")),
        };
        GuestSpec {
            name: self.name.clone(),
            number,
            queue_pairs: self.queue_pairs,
            backend,
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
        }
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
        let artefacts = Artefacts::find()?;
        let folder = RunDir::create(name)?;
        let network = if spec.taps.is_empty() {
            Network::Machine
        } else {
            Network::Private
        };
        let mut ports: Vec<PortSpec> = spec
            .stations
            .iter()
            .map(|station| station.port(&folder))
            .collect();
        ports.extend(spec.taps.iter().map(|interface| tap_port(interface)));
        let switch = match spec.wiring {
            Wiring::Switch => {
                let binary = ringswitch()?;
                let options = SwitchOptions {
                    network,
                    program: spec.program.clone(),
                    device_state_key: None,
                };
                Some(Switch::start(&binary, &folder, &ports, &options)?)
            }
            Wiring::BackToBack => None,
        };
        let mut lab = Self {
            spec: spec.clone(),
            guests: Vec::new(),
            switch,
            artefacts,
            folder,
        };
        for station in &spec.stations {
            lab.start_guest(station)?;
        }
        for guest in &mut lab.guests {
            guest.wait_booted()?;
            guest.configure_network()?;
        }
        Ok(lab)
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

/// The lab that the next test may use.
static LAB: Mutex<Option<Lab>> = Mutex::new(None);

// A poisoned lock is a failed test: it took its lab with it.
fn lab_slot() -> MutexGuard<'static, Option<Lab>> {
    LAB.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `test` on a lab of that shape, alone on this machine's emulated CPUs: one lab at a time, whatever runs the
/// tests. The lab stays for the next test that wants the same; one in which a test failed does not.
pub fn with_lab(spec: &LabSpec, test: impl FnOnce(&mut Lab) -> Result<()>) {
    let mut slot = lab_slot();
    let reusable = slot.take().filter(|lab| lab.spec == *spec);
    let outcome = only_lab_on_this_machine().and_then(|()| match reusable {
        Some(lab) => Ok(lab),
        None => Lab::start("lab", spec),
    });
    let mut lab = match outcome {
        Ok(lab) => lab,
        Err(error) => fail(&error, ""),
    };
    // A panic in the test drops the lab on its way out; so does an error.
    match test(&mut lab) {
        Ok(()) => *slot = Some(lab),
        Err(error) => fail(&error, &lab.logs()),
    }
}

/// Runs a test that boots what it needs by itself, alone on this machine's emulated CPUs too.
pub fn without_lab(test: impl FnOnce() -> Result<()>) {
    let mut slot = lab_slot();
    *slot = None;
    if let Err(error) = only_lab_on_this_machine().and_then(|()| test()) {
        fail(&error, "");
    }
}

#[allow(clippy::panic, reason = "this is how a test fails; only tests call it")]
fn fail(error: &Error, logs: &str) -> ! {
    panic!("{error}\n{logs}")
}

/// What would remain of a lab if it did not clean up.
#[derive(Debug)]
pub struct Traces {
    /// Its folder.
    pub folder: PathBuf,
    /// Its guests' and its switch's process ids.
    pub processes: Vec<u32>,
}

/// Ends the lab that [`with_lab`] holds for the next test, if there is one.
#[must_use]
pub fn drop_lab() -> Option<Traces> {
    let mut lab = lab_slot().take()?;
    let folder = lab.folder.path().to_path_buf();
    let guests = lab.guests.iter_mut().map(|guest| guest.process().id());
    let switch = lab.switch.iter_mut().map(|switch| switch.process().id());
    let processes = guests.chain(switch).collect();
    drop(lab);
    Some(Traces { folder, processes })
}

/// Held until this process ends.
fn only_lab_on_this_machine() -> Result<()> {
    static LOCK: OnceLock<File> = OnceLock::new();
    if LOCK.get().is_none() {
        let path = repository().join("target/vm-lab/lab.lock");
        let file = File::create(&path).doing(|| format!("opening {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive)
            .doing(|| format!("locking {}", path.display()))?;
        let _ = LOCK.set(file);
    }
    Ok(())
}
