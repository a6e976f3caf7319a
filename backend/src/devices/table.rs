//! The table itself: every device as it shall be and as it fares. Owned by the owner's task; decides, and does nothing.
use super::MAX_DEVICES;
use super::device::{Choices, Device, DeviceFields, VmAddress};
use super::handle::DeviceError;
use super::reconcile::{Report, Wanted};
use super::rows::DeviceRow;
use super::status::{Actual, Change, DeviceState, DeviceView, Removal, Status};
use crate::config::{InvalidField, PortName};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Ids that VMs still have something of, at most; the oldest by name are forgotten first.
const MAX_LEFT_BEHIND: usize = 4096;

/// Every device.
#[derive(Debug, Default)]
pub struct Table {
    entries: BTreeMap<PortName, Entry>,
    /// Ids of devices that were removed although their guests had not let go of them.
    left_behind: BTreeSet<String>,
    /// Where sockets are put that nobody named.
    folder: PathBuf,
}

/// One device.
#[derive(Clone, Debug)]
struct Entry {
    device: Device,
    removal: Option<Removal>,
    actual: Actual,
}

/// What is to be done about a request to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addition {
    /// It is new.
    New(Device),
    /// The very same is there.
    AlreadyThere,
}

impl Table {
    /// An empty table.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            ..Self::default()
        }
    }

    /// What adding a device comes to.
    ///
    /// # Errors
    /// A field cannot be accepted, or another device has what it claims.
    pub fn addition(&self, fields: &DeviceFields) -> Result<Addition, DeviceError> {
        let present = PortName::parse(&fields.name)
            .ok()
            .and_then(|name| self.entries.get(&name));
        if let Some(present) = present {
            return self.same(present, fields);
        }
        let mut device = self.typed(fields)?;
        if self.entries.len() >= MAX_DEVICES {
            return Err(DeviceError::Full);
        }
        for entry in self.entries.values() {
            refuse_what_both_claim(&device, &entry.device)?;
        }
        while self.left_behind.contains(&device.id()) {
            device.generation = device.generation.wrapping_add(1);
        }
        Ok(Addition::New(device))
    }

    fn typed(&self, fields: &DeviceFields) -> Result<Device, InvalidField> {
        let is_taken = |mac| self.entries.values().any(|entry| entry.device.mac == mac);
        Device::from_fields(
            fields,
            Choices {
                folder: &self.folder,
                is_taken: &is_taken,
            },
        )
    }

    /// What the request leaves out is as it was chosen for the device that is there.
    fn same(&self, present: &Entry, fields: &DeviceFields) -> Result<Addition, DeviceError> {
        let chosen = present.device.fields();
        let filled = DeviceFields {
            mac: fields.mac.clone().or(chosen.mac),
            socket: fields.socket.clone().or(chosen.socket),
            ..fields.clone()
        };
        let mut asked = self.typed(&filled)?;
        asked.generation = present.device.generation;
        let name = present.device.name();
        if asked != present.device {
            return Err(DeviceError::Conflict {
                field: "name",
                reason: format!("device {name} is there already, with another configuration"),
                remedy: format!("choose another name, or remove device {name} first"),
            });
        }
        if present.removal.is_some() {
            return Err(DeviceError::Conflict {
                field: "name",
                reason: format!("device {name} is being removed"),
                remedy: "wait until it is gone".to_owned(),
            });
        }
        Ok(Addition::AlreadyThere)
    }

    /// Takes a device in, as it was decided or as it was kept.
    pub fn insert(&mut self, device: Device, removal: Option<Removal>) {
        let state = match removal {
            Some(_) => DeviceState::Unplugging,
            None => DeviceState::Pending,
        };
        let entry = Entry {
            actual: Actual::new(Status::plain(state)),
            device,
            removal,
        };
        self.entries.insert(entry.device.name().clone(), entry);
    }

    /// A device that was kept.
    ///
    /// # Errors
    /// It is not as this version writes it.
    pub fn read(&self, row: &DeviceRow) -> Result<(Device, Option<Removal>), InvalidField> {
        let mut device = self.typed(&row.device)?;
        device.generation = row.generation;
        Ok((device, row.removal.map(Removal::from)))
    }

    /// As a device is kept, with another removal.
    pub fn row(&self, name: &PortName, removal: Option<Removal>) -> Option<DeviceRow> {
        let entry = self.entries.get(name)?;
        Some(DeviceRow {
            device: entry.device.fields(),
            generation: entry.device.generation,
            removal: removal.map(Into::into),
        })
    }

    /// A device shall go; whether that is news.
    pub fn set_removal(&mut self, name: &PortName, removal: Removal) -> bool {
        let Some(entry) = self.entries.get_mut(name) else {
            return false;
        };
        let was_going = entry.removal.replace(removal).is_some();
        !was_going && entry.actual.set(Status::plain(DeviceState::Unplugging)) != Change::Nothing
    }

    /// What a report comes to: `Some`, when the device is gone.
    pub fn report(&mut self, name: &PortName, id: &str, report: Report) -> Reported {
        // Its device may have gone, and another may have come under its name.
        let Some(entry) = self
            .entries
            .get_mut(name)
            .filter(|entry| entry.device.id() == id)
        else {
            return Reported::Nothing;
        };
        match report {
            // It was on its way when the removal was asked for.
            Report::Status(status)
                if entry.removal.is_some()
                    && !matches!(status.state, DeviceState::Unplugging | DeviceState::Failed) =>
            {
                Reported::Nothing
            }
            Report::Status(status) => match entry.actual.set(status) {
                Change::Nothing => Reported::Nothing,
                Change::Reason => Reported::Reason,
                Change::State => Reported::News,
            },
            Report::Gone { .. } if entry.removal.is_none() => Reported::Nothing,
            Report::Gone { left_behind } => {
                if left_behind {
                    self.left_behind.insert(id.to_owned());
                    while self.left_behind.len() > MAX_LEFT_BEHIND {
                        self.left_behind.pop_first();
                    }
                }
                Reported::Gone(entry.device.vm.clone())
            }
        }
    }

    /// Forgets a device.
    pub fn remove(&mut self, name: &PortName) {
        self.entries.remove(name);
    }

    /// What a VM shall have.
    pub fn wanted(&self, vm: &VmAddress) -> Vec<Wanted> {
        let of_vm = self.entries.values().filter(|entry| entry.device.vm == *vm);
        of_vm
            .map(|entry| Wanted {
                device: entry.device.clone(),
                removal: entry.removal,
            })
            .collect()
    }

    /// Every VM that shall have something.
    pub fn vms(&self) -> BTreeSet<VmAddress> {
        let vms = self.entries.values().map(|entry| entry.device.vm.clone());
        vms.collect()
    }

    /// One device.
    pub fn view(&self, name: &PortName, durable: bool) -> Option<DeviceView> {
        let entry = self.entries.get(name)?;
        Some(DeviceView {
            device: entry.device.clone(),
            removal: entry.removal,
            actual: entry.actual.clone(),
            durable,
        })
    }

    /// Every device, by name.
    pub fn views(&self, durable: bool) -> Vec<DeviceView> {
        let names = self.entries.keys();
        names.filter_map(|name| self.view(name, durable)).collect()
    }
}

/// What a report comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reported {
    /// It is as it was.
    Nothing,
    /// Why it is in its state is different.
    Reason,
    /// Its state is different.
    News,
    /// The device is gone from that VM, and to be forgotten.
    Gone(VmAddress),
}

fn refuse_what_both_claim(new: &Device, present: &Device) -> Result<(), DeviceError> {
    let name = present.name();
    let conflict = |field, what: &str| {
        Err(DeviceError::Conflict {
            field,
            reason: format!("device {name} has {what} already"),
            remedy: format!("choose another, or remove device {name} first"),
        })
    };
    if new.port.claims_of_both(&present.port).is_some() {
        return conflict("socket", "this socket");
    }
    if new.mac == present.mac {
        return conflict("mac", "this address");
    }
    if new.vm.socket == present.vm.socket && new.vm != present.vm {
        return conflict(
            "vm.hypervisor",
            "this socket, as that of another kind of hypervisor,",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::device::tests::fields;
    use super::*;
    use std::time::Duration;

    fn table() -> Table {
        Table::new("/run/ringswitch".into())
    }

    fn add(table: &mut Table, fields: &DeviceFields) -> Device {
        match table.addition(fields).unwrap() {
            Addition::New(device) => {
                table.insert(device.clone(), None);
                device
            }
            Addition::AlreadyThere => panic!("{fields:?} is there"),
        }
    }

    fn conflict(table: &Table, fields: &DeviceFields) -> &'static str {
        match table.addition(fields) {
            Err(DeviceError::Conflict { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    const REMOVAL: Removal = Removal {
        force: true,
        timeout: Duration::ZERO,
    };

    #[test]
    fn the_same_device_twice_is_one_however_much_of_it_was_left_out() {
        let mut table = table();
        let device = add(&mut table, &fields("a"));
        assert_eq!(
            table.addition(&fields("a")).unwrap(),
            Addition::AlreadyThere
        );
        assert_eq!(
            table.addition(&device.fields()).unwrap(),
            Addition::AlreadyThere
        );
        assert_eq!(table.views(false).len(), 1);
    }

    #[test]
    fn what_another_device_has_is_a_conflict_that_names_the_field() {
        let mut table = table();
        let device = add(&mut table, &fields("a"));
        let other = |change: &dyn Fn(&mut DeviceFields)| {
            let mut fields = fields("b");
            change(&mut fields);
            fields
        };
        let mut same_name = fields("a");
        same_name.mtu = Some(1400);
        assert_eq!(conflict(&table, &same_name), "name");
        let mac = Some(device.mac.to_string());
        assert_eq!(conflict(&table, &other(&|f| f.mac.clone_from(&mac))), "mac");
        let socket = device.fields().socket;
        assert_eq!(
            conflict(&table, &other(&|f| f.socket.clone_from(&socket))),
            "socket"
        );
        let other_kind = other(&|f| f.vm.hypervisor = "cloud-hypervisor".to_owned());
        assert_eq!(conflict(&table, &other_kind), "vm.hypervisor");
        table.set_removal(device.name(), REMOVAL);
        assert_eq!(conflict(&table, &fields("a")), "name");
    }

    #[test]
    fn a_device_that_comes_again_is_not_taken_for_what_its_guest_has_kept() {
        let mut table = table();
        let first = add(&mut table, &fields("a"));
        table.set_removal(first.name(), REMOVAL);
        let gone = table.report(
            first.name(),
            &first.id(),
            Report::Gone { left_behind: true },
        );
        assert_eq!(gone, Reported::Gone(first.vm.clone()));
        table.remove(first.name());
        let second = add(&mut table, &fields("a"));
        assert_ne!(second.id(), first.id());
        assert_eq!(second.mac, first.mac);
    }

    #[test]
    fn reports_of_a_device_that_is_another_now_are_ignored() {
        let mut table = table();
        let device = add(&mut table, &fields("a"));
        let ready = || Report::Status(Status::plain(DeviceState::Ready));
        assert_eq!(
            table.report(device.name(), "rsw-old-a", ready()),
            Reported::Nothing
        );
        assert_eq!(
            table.report(device.name(), &device.id(), ready()),
            Reported::News
        );
        assert_eq!(
            table.report(device.name(), &device.id(), ready()),
            Reported::Nothing
        );
        let gone = Report::Gone { left_behind: false };
        assert_eq!(
            table.report(device.name(), &device.id(), gone),
            Reported::Nothing
        );
        table.set_removal(device.name(), REMOVAL);
        assert_eq!(
            table.report(device.name(), &device.id(), ready()),
            Reported::Nothing
        );
    }

    #[test]
    fn a_table_is_the_same_after_it_was_kept_and_read() {
        let mut table = table();
        let device = add(&mut table, &fields("a"));
        let row = table.row(device.name(), Some(REMOVAL)).unwrap();
        let text = serde_json::to_string(&row).unwrap();
        let row = serde_json::from_str(&text).unwrap();
        assert_eq!(table.read(&row).unwrap(), (device, Some(REMOVAL)));
    }
}
