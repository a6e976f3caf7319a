//! What is to be done about one device, as a list of steps: a value, from what shall be and what was seen.
use super::device::{Device, HypervisorKind};

/// One step. Its device is that of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The switch listens, before any hypervisor is told of the socket.
    OpenPort,
    /// Nothing of the port is left.
    ClosePort,
    /// QEMU: the connection to the port.
    AddChardev,
    /// QEMU: what the NIC hangs on. Needs the chardev, for vhost-user.
    AddNetdev,
    /// QEMU: the NIC itself.
    AddNic {
        /// Where it is plugged in.
        bus: String,
    },
    /// Cloud Hypervisor: all of it.
    AddNet,
    /// The guest is asked to let go of the NIC.
    AskForRelease,
    /// QEMU: also ends what a NIC that is still there hangs on.
    DeleteNetdev,
    /// QEMU: in case that the netdev did not take it along.
    DeleteChardev,
}

impl Step {
    /// What takes a step back when a later one fails. `None`: it leaves nothing that has to be.
    pub fn inverse(&self) -> Option<Self> {
        match self {
            Self::OpenPort => Some(Self::ClosePort),
            Self::AddChardev => Some(Self::DeleteChardev),
            Self::AddNetdev => Some(Self::DeleteNetdev),
            _ => None,
        }
    }
}

/// What is wanted of a device now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// It is there. If its VM has to be given it: on that bus.
    Present {
        /// See [`Step::AddNic`].
        bus: String,
    },
    /// It goes, when the guest lets it.
    Absent,
    /// It goes, and what the guest does with the NIC is the guest's business.
    Abandoned,
}

/// What was seen of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The switch has its port.
    pub port: bool,
    /// Its VM has the NIC.
    pub nic: bool,
    /// QEMU has the chardev.
    pub chardev: bool,
}

impl Seen {
    /// Whether its VM has all of it.
    pub fn is_plugged(&self, device: &Device) -> bool {
        self.nic && (self.chardev || !uses_chardev(device))
    }
}

/// The steps from what was seen to what is wanted.
pub fn plan(device: &Device, intent: &Intent, seen: Seen) -> Vec<Step> {
    let is_qemu = device.vm.hypervisor == HypervisorKind::Qemu;
    match intent {
        Intent::Present { .. } if seen.is_plugged(device) => {
            (!seen.port).then_some(Step::OpenPort).into_iter().collect()
        }
        // What is left of one that lost its connection to the switch for good: it has to go before it can come again.
        Intent::Present { .. } if seen.nic => vec![Step::AskForRelease],
        Intent::Present { bus } => {
            let mut steps = if is_qemu {
                remains(device, seen)
            } else {
                vec![]
            };
            if !seen.port {
                steps.push(Step::OpenPort);
            }
            if !is_qemu {
                steps.push(Step::AddNet);
                return steps;
            }
            if uses_chardev(device) {
                steps.push(Step::AddChardev);
            }
            steps.extend([Step::AddNetdev, Step::AddNic { bus: bus.clone() }]);
            steps
        }
        Intent::Absent if seen.nic => vec![Step::AskForRelease],
        Intent::Absent | Intent::Abandoned => {
            let mut steps = match (is_qemu, seen.nic) {
                (true, true) => vec![Step::DeleteNetdev],
                (true, false) => remains(device, seen),
                (false, _) => vec![],
            };
            if seen.port {
                steps.push(Step::ClosePort);
            }
            steps
        }
    }
}

/// What QEMU has once the NIC is gone. A netdev without a chardev cannot be seen: it is taken away in any case.
fn remains(device: &Device, seen: Seen) -> Vec<Step> {
    match (uses_chardev(device), seen.chardev) {
        (true, true) => vec![Step::DeleteNetdev, Step::DeleteChardev],
        (true, false) => vec![],
        (false, _) => vec![Step::DeleteNetdev],
    }
}

fn uses_chardev(device: &Device) -> bool {
    device.vm.hypervisor == HypervisorKind::Qemu && device.model.is_virtio()
}

#[cfg(test)]
mod tests {
    use super::super::device::tests::{device, fields};
    use super::*;

    fn on(hypervisor: &str) -> Device {
        let mut fields = fields("a");
        fields.vm.hypervisor = hypervisor.to_owned();
        device(&fields).unwrap()
    }

    fn seen(text: &str) -> Seen {
        Seen {
            port: text.contains("port"),
            nic: text.contains("nic"),
            chardev: text.contains("chardev"),
        }
    }

    fn present() -> Intent {
        Intent::Present {
            bus: "rp1".to_owned(),
        }
    }

    fn nic() -> Step {
        Step::AddNic {
            bus: "rp1".to_owned(),
        }
    }

    #[test]
    fn plans_for_qemu() {
        use Step::*;
        let device = on("qemu");
        for (intent, before, steps) in [
            (present(), "", vec![OpenPort, AddChardev, AddNetdev, nic()]),
            (present(), "port", vec![AddChardev, AddNetdev, nic()]),
            (
                present(),
                "port chardev",
                vec![DeleteNetdev, DeleteChardev, AddChardev, AddNetdev, nic()],
            ),
            (present(), "port chardev nic", vec![]),
            (present(), "chardev nic", vec![OpenPort]),
            (present(), "port nic", vec![AskForRelease]),
            (Intent::Absent, "port chardev nic", vec![AskForRelease]),
            (
                Intent::Absent,
                "port chardev",
                vec![DeleteNetdev, DeleteChardev, ClosePort],
            ),
            (Intent::Absent, "port", vec![ClosePort]),
            (Intent::Absent, "", vec![]),
            (
                Intent::Abandoned,
                "port chardev nic",
                vec![DeleteNetdev, ClosePort],
            ),
            (Intent::Abandoned, "port", vec![ClosePort]),
        ] {
            assert_eq!(
                plan(&device, &intent, seen(before)),
                steps,
                "{intent:?}, {before}"
            );
        }
    }

    #[test]
    fn plans_for_cloud_hypervisor() {
        use Step::*;
        let device = on("cloud-hypervisor");
        for (intent, before, steps) in [
            (present(), "", vec![OpenPort, AddNet]),
            (present(), "port nic", vec![]),
            (present(), "nic", vec![OpenPort]),
            (Intent::Absent, "port nic", vec![AskForRelease]),
            (Intent::Absent, "port", vec![ClosePort]),
            (Intent::Abandoned, "port nic", vec![ClosePort]),
        ] {
            assert_eq!(
                plan(&device, &intent, seen(before)),
                steps,
                "{intent:?}, {before}"
            );
        }
    }

    #[test]
    fn plans_for_a_nic_over_a_stream() {
        use Step::*;
        let mut fields = fields("a");
        fields.model = "e1000".to_owned();
        let device = device(&fields).unwrap();
        for (intent, before, steps) in [
            (
                present(),
                "",
                vec![DeleteNetdev, OpenPort, AddNetdev, nic()],
            ),
            (present(), "port nic", vec![]),
            (Intent::Absent, "port nic", vec![AskForRelease]),
            (Intent::Absent, "port", vec![DeleteNetdev, ClosePort]),
            (Intent::Abandoned, "port nic", vec![DeleteNetdev, ClosePort]),
        ] {
            assert_eq!(
                plan(&device, &intent, seen(before)),
                steps,
                "{intent:?}, {before}"
            );
        }
    }

    #[test]
    fn what_is_taken_back_is_what_was_made_and_in_a_way_that_leaves_nothing() {
        let made = plan(&on("qemu"), &present(), Seen::default());
        let back: Vec<Step> = made.iter().rev().filter_map(Step::inverse).collect();
        use Step::*;
        assert_eq!(back, [DeleteNetdev, DeleteChardev, ClosePort]);
    }
}
