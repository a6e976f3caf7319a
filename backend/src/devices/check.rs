//! Whether a VM can take a NIC, decided before anything is done: what a hypervisor would accept and leave silently dead, spin on for ever,
//! or refuse half-way, is refused here with what to do about it.
use super::backend::{Facts, Obstacle};
use super::device::{Device, HypervisorKind};
use super::status::Fault;

/// Why a NIC is not plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It will be possible, without anybody doing anything about the device.
    NotNow(Fault),
    /// Somebody has to do something.
    NotSo(Fault),
}

/// Where the NIC goes.
///
/// # Errors
/// See [`Refusal`].
pub fn check(device: &Device, facts: &Facts) -> Result<String, Refusal> {
    if let Some(obstacle) = &facts.obstacle {
        return Err(Refusal::NotNow(obstacle_fault(obstacle)));
    }
    if device.model.is_virtio() && facts.memory_is_shared == Some(false) {
        let remedy = match device.vm.hypervisor {
            HypervisorKind::Qemu => {
                "start QEMU with -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem"
            }
            HypervisorKind::CloudHypervisor => "start the VM with --memory size=SIZE,shared=on",
        };
        let reason = "the VM's memory is not shared, so the switch could not see it and the NIC would be dead";
        return Err(Refusal::NotSo(Fault::of("vm", reason, remedy)));
    }
    let pairs = u64::from(device.queue_pairs().get());
    if pairs > facts.vcpus {
        let reason = format!(
            "{pairs} queue pairs are more than the VM's {} CPUs",
            facts.vcpus
        );
        let remedy = format!(
            "use queue_pairs of at most {}, or give the VM more CPUs",
            facts.vcpus
        );
        return Err(Refusal::NotSo(Fault::of("queue_pairs", reason, remedy)));
    }
    facts.bus.clone().map_err(|reason| {
        let remedy = "remove a device that the VM does not need, or start QEMU with more ports: -device pcie-root-port,id=ID,chassis=N";
        Refusal::NotSo(Fault::of("vm", reason, remedy))
    })
}

fn obstacle_fault(obstacle: &Obstacle) -> Fault {
    match obstacle {
        Obstacle::Migration(phase) => Fault::of(
            "vm",
            format!("the VM is migrating ({phase}), and takes no device meanwhile"),
            "wait until that has ended, or cancel it",
        ),
        Obstacle::State(state) => Fault::of(
            "vm",
            format!("the VM is {state}, and takes a device while it is Running only"),
            "boot or resume it: PUT vm.boot, or vm.resume",
        ),
        Obstacle::NoVm => Fault::of(
            "vm",
            "the hypervisor has no VM yet",
            "create and boot one: PUT vm.create, then vm.boot",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::DeviceFields;
    use super::super::device::tests::{device, fields};
    use super::*;

    fn facts() -> Facts {
        Facts {
            obstacle: None,
            memory_is_shared: Some(true),
            vcpus: 2,
            bus: Ok("rp1".to_owned()),
        }
    }

    #[test]
    fn each_reason_to_refuse_names_its_field_and_says_what_to_do() {
        let two = device(&DeviceFields {
            queue_pairs: Some(2),
            ..fields("a")
        })
        .unwrap();
        assert_eq!(check(&two, &facts()).unwrap(), "rp1");
        let not_so = |facts: Facts| match check(&two, &facts) {
            Err(Refusal::NotSo(fault)) => fault,
            other => panic!("{other:?}"),
        };
        let fault = not_so(Facts {
            memory_is_shared: Some(false),
            ..facts()
        });
        assert!(
            fault.field == Some("vm") && fault.remedy.contains("share=on"),
            "{fault}"
        );
        let fault = not_so(Facts {
            vcpus: 1,
            ..facts()
        });
        assert!(
            fault.field == Some("queue_pairs") && fault.remedy.contains("at most 1"),
            "{fault}"
        );
        let fault = not_so(Facts {
            bus: Err("every PCIe root port of the VM is taken"),
            ..facts()
        });
        assert!(fault.remedy.contains("pcie-root-port"), "{fault}");
    }

    #[test]
    fn what_passes_by_itself_is_waited_for() {
        let one = device(&fields("a")).unwrap();
        for obstacle in [
            Obstacle::Migration("active".to_owned()),
            Obstacle::State("Paused".to_owned()),
            Obstacle::NoVm,
        ] {
            let facts = Facts {
                obstacle: Some(obstacle),
                // Not looked at: it may be otherwise by then.
                vcpus: 0,
                ..facts()
            };
            assert!(matches!(check(&one, &facts), Err(Refusal::NotNow(_))));
        }
    }
}
