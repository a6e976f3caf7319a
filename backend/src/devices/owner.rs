//! The owner of the table: one task on a thread of its own, which takes requests and reports and starts a task for each hypervisor.
//!
//! ```text
//! add, remove: checks -> durable -> table -> the hypervisor's task -> answer
//! report: gone -> durable -> table
//! ```
use super::device::{Device, VmAddress};
use super::handle::{AddOutcome, Command, DeviceError, DevicesHandle, QUEUE_CAPACITY, RemoveOrder};
use super::reconcile::{Reconciler, Report, Reported as Message, Wanted};
use super::rows::{DeviceRow, DeviceRows};
use super::status::DeviceView;
use super::table::{Addition, Reported, Table};
use crate::config::PortName;
use crate::control::ControlHandle;
use crate::control::events::Event;
use crate::control::tables::StoreError;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{mpsc, watch};

/// Reports that may wait.
const REPORTS: usize = 256;
/// What is told of a device that is in the table no more.
const GONE: &str = "gone";

/// What the table is started with.
pub struct DevicesOptions {
    /// The switch.
    pub control: ControlHandle,
    /// What shall be.
    pub rows: Arc<DeviceRows>,
    /// Where sockets are put that nobody names: that of the admin socket.
    pub folder: PathBuf,
}

/// Why there is no device table.
#[derive(Debug, thiserror::Error)]
pub enum StartDevicesError {
    /// The thread.
    #[error("cannot start the thread of the device table: {0}; raise the limits of the process")]
    Thread(#[from] io::Error),
    /// What was kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The running device table.
#[derive(Debug)]
pub struct Devices {
    handle: DevicesHandle,
    thread: JoinHandle<()>,
}

impl Devices {
    /// Starts it with what was kept.
    ///
    /// # Errors
    /// See [`StartDevicesError`].
    pub fn start(options: DevicesOptions) -> Result<Self, StartDevicesError> {
        let mut table = Table::new(options.folder.clone());
        for row in options.rows.read()? {
            let (device, removal) = table.read(&row).map_err(|error| {
                StoreError::Content(format!("device {}: {error}", row.device.name))
            })?;
            table.insert(device, removal);
        }
        let (commands, received) = mpsc::channel(QUEUE_CAPACITY);
        let (version, versions) = watch::channel(0);
        let (reports, reported) = mpsc::channel(REPORTS);
        let handle = DevicesHandle::new(commands, versions, options.control.clone());
        let owner = Owner {
            table,
            options,
            version,
            reports,
            vms: HashMap::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("devices".to_owned())
            .spawn(move || runtime.block_on(owner.run(received, reported)))?;
        Ok(Self { handle, thread })
    }

    /// Sends requests to it.
    pub fn handle(&self) -> DevicesHandle {
        self.handle.clone()
    }

    /// Ends it. What VMs have stays there, and is found again by the next one.
    pub async fn stop(self) {
        self.handle.stop().await;
        // It waits for nothing any more.
        if self.thread.join().is_err() {
            log::error!("the thread of the device table panicked");
        }
    }
}

/// A hypervisor's task.
struct Vm {
    wanted: watch::Sender<Arc<Vec<Wanted>>>,
    task: tokio::task::JoinHandle<()>,
}

struct Owner {
    table: Table,
    options: DevicesOptions,
    /// Counts changes, for those who wait for one.
    version: watch::Sender<u64>,
    reports: mpsc::Sender<Message>,
    vms: HashMap<VmAddress, Vm>,
}

impl Owner {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut reports: mpsc::Receiver<Message>,
    ) {
        for vm in self.table.vms() {
            self.publish(&vm);
        }
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None | Some(Command::Stop) => return,
                    Some(command) => self.answer(command),
                },
                Some((name, id, report)) = reports.recv() => self.note(&name, &id, report),
            }
        }
    }

    /// A caller that has gone needs no answer.
    fn answer(&mut self, command: Command) {
        match command {
            Command::Add(fields, reply) => drop(reply.send(self.add(&fields))),
            Command::Remove(order, reply) => drop(reply.send(self.remove(&order))),
            Command::Show(name, reply) => drop(reply.send(self.show(&name))),
            Command::List(reply) => drop(reply.send(Ok(self.table.views(self.durable())))),
            Command::Stop => {}
        }
    }

    fn durable(&self) -> bool {
        self.options.rows.durable()
    }

    fn add(&mut self, fields: &super::DeviceFields) -> Result<AddOutcome, DeviceError> {
        let device: Device = match self.table.addition(fields)? {
            Addition::New(device) => device,
            Addition::AlreadyThere => {
                let name = PortName::parse(&fields.name)?;
                return Ok(AddOutcome::AlreadyThere(self.show(&name)?));
            }
        };
        let row = DeviceRow {
            device: device.fields(),
            generation: device.generation,
            removal: None,
        };
        let (name, vm) = (device.name().clone(), device.vm.clone());
        self.options.rows.set(name.as_str(), Some(&row))?;
        self.table.insert(device, None);
        self.publish(&vm);
        self.changed();
        self.tell(&name);
        log::info!("device {name} added");
        self.show(&name).map(AddOutcome::Added)
    }

    fn remove(&mut self, order: &RemoveOrder) -> Result<DeviceView, DeviceError> {
        let RemoveOrder {
            name,
            removal,
            if_match,
        } = order;
        let not_found = || DeviceError::NotFound(name.clone());
        let before = self.show(name)?;
        if !if_match.holds(|| before.device.tag()) {
            return Err(DeviceError::Changed(name.clone()));
        }
        let row = self.table.row(name, Some(*removal)).ok_or_else(not_found)?;
        self.options.rows.set(name.as_str(), Some(&row))?;
        if self.table.set_removal(name, *removal) {
            self.tell(name);
        }
        let view = self.show(name)?;
        self.publish(&view.device.vm);
        self.changed();
        Ok(view)
    }

    fn show(&self, name: &PortName) -> Result<DeviceView, DeviceError> {
        let view = self.table.view(name, self.durable());
        view.ok_or_else(|| DeviceError::NotFound(name.clone()))
    }

    fn note(&mut self, name: &PortName, id: &str, report: Report) {
        match self.table.report(name, id, report) {
            Reported::Nothing => {}
            Reported::Reason => self.changed(),
            Reported::News => {
                self.changed();
                self.tell(name);
            }
            Reported::Gone(vm) => {
                if let Err(error) = self.options.rows.set(name.as_str(), None) {
                    // It is reported once more at the next look.
                    log::error!("device {name} is gone and stays in the store: {error}");
                    return;
                }
                let before = self.table.view(name, self.durable());
                self.options.control.events().publish(Event::DeviceChanged {
                    device: name.to_string(),
                    state: GONE.to_owned(),
                    before: before.map(|view| view.actual.status().state.to_string()),
                    reason: None,
                });
                self.table.remove(name);
                self.publish(&vm);
                self.changed();
            }
        }
    }

    /// Tells whoever listens of a device's latest transition.
    fn tell(&self, name: &PortName) {
        let Some(view) = self.table.view(name, self.durable()) else {
            return;
        };
        let mut latest = view.actual.history().rev();
        let Some(now) = latest.next() else {
            return;
        };
        self.options.control.events().publish(Event::DeviceChanged {
            device: name.to_string(),
            state: now.state.to_string(),
            before: latest.next().map(|before| before.state.to_string()),
            reason: now.reason.clone(),
        });
    }

    /// Tells a hypervisor's task what it shall have; starts it with the first device, and ends it with the last.
    fn publish(&mut self, address: &VmAddress) {
        let wanted = Arc::new(self.table.wanted(address));
        if wanted.is_empty() {
            if let Some(vm) = self.vms.remove(address) {
                vm.task.abort();
            }
            return;
        }
        if let Some(vm) = self.vms.get(address) {
            vm.wanted.send_replace(wanted);
            return;
        }
        let (sender, receiver) = watch::channel(wanted);
        let reconciler = Reconciler {
            vm: address.clone(),
            wanted: receiver,
            control: self.options.control.clone(),
            reports: self.reports.clone(),
            folder: self.options.folder.clone(),
            progress: BTreeMap::new(),
        };
        let task = tokio::spawn(reconciler.run());
        let vm = Vm {
            wanted: sender,
            task,
        };
        self.vms.insert(address.clone(), vm);
    }

    fn changed(&self) {
        self.version
            .send_modify(|version| *version = version.wrapping_add(1));
    }
}
