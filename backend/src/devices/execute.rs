//! Carries out a plan: the one place where devices have effects.
//!
//! A step that the hypervisor or the switch refuses is taken back with every step before it. When the hypervisor does not answer at all,
//! nothing is taken back: it may be waiting for the very port that would be closed. What it then has is seen at the next look.
use super::backend::{self, Backend};
use super::device::Device;
use super::plan::Step;
use super::status::Fault;
use crate::control::command::port_tag;
use crate::control::tags::IfMatch;
use crate::control::{CommandError, ControlHandle, PortView};
use crate::hypervisor::HypervisorError;
use std::time::Duration;
use tokio::time::timeout;

/// How long the switch may take to do something about a port.
const PORT_ANSWER: Duration = Duration::from_secs(10);

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepFault {
    /// The switch refused it.
    #[error("the port: {0}")]
    Port(#[from] CommandError),
    /// The switch did not answer.
    #[error("the port: the switch did not answer within {} s", PORT_ANSWER.as_secs())]
    PortSilent,
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
}

impl StepFault {
    /// Whether a port of the device's name is somebody else's.
    pub fn is_others_port(&self) -> bool {
        matches!(self, Self::Port(CommandError::Conflict { .. }))
    }

    /// In words that a person can act on.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Port(CommandError::Conflict {
                field,
                reason,
                remedy,
            }) => Fault::of(field, reason.clone(), remedy.clone()),
            Self::Port(CommandError::Refused(refused)) => Fault::of(
                refused.field,
                refused.reason.clone(),
                refused.remedy.clone(),
            ),
            Self::Port(CommandError::Full) => Fault::new(self.to_string(), "remove a port"),
            Self::Port(_) | Self::PortSilent => {
                Fault::new(self.to_string(), "see the daemon's log; it is tried again")
            }
            Self::Hypervisor(error) => {
                Fault::of("vm", format!("the hypervisor: {error}"), error.remedy())
            }
        }
    }

    /// Whether the connection to the hypervisor is of no more use.
    fn ends_connection(&self) -> bool {
        matches!(self, Self::Hypervisor(error) if error.ends_connection())
    }
}

/// Everything that can be done about one device.
pub struct Hands<'a> {
    /// The switch.
    pub control: &'a ControlHandle,
    /// The device.
    pub device: &'a Device,
    /// What the hypervisor knows it by.
    pub id: &'a str,
}

impl Hands<'_> {
    /// All steps, or none.
    ///
    /// # Errors
    /// The step that failed.
    pub async fn execute(&self, backend: &mut Backend, steps: &[Step]) -> Result<(), StepFault> {
        for (done, step) in steps.iter().enumerate() {
            let Err(fault) = self.apply(backend, step).await else {
                continue;
            };
            if !fault.ends_connection() {
                let done = steps.get(..done).unwrap_or_default();
                self.take_back(backend, done).await;
            }
            return Err(fault);
        }
        Ok(())
    }

    /// Every inverse, whatever fails on the way: the rest still has to go.
    async fn take_back(&self, backend: &mut Backend, done: &[Step]) {
        for step in done.iter().rev().filter_map(Step::inverse) {
            if let Err(fault) = self.apply(backend, &step).await {
                log::warn!(
                    "device {}: while taking back what was done: {fault}",
                    self.device.name()
                );
                if fault.ends_connection() {
                    return;
                }
            }
        }
    }

    async fn apply(&self, backend: &mut Backend, step: &Step) -> Result<(), StepFault> {
        let id = self.id;
        match (step, backend) {
            (Step::OpenPort, _) => {
                let opened = self.control.add_port(self.device.port.clone());
                return in_time(opened).await.map(drop);
            }
            (Step::ClosePort, _) => return close_port(self.control, self.device).await,
            (Step::AddChardev, Backend::Qemu(qemu)) => {
                qemu.add_chardev(id, &backend::socket_of(self.device)).await
            }
            (Step::AddNetdev, Backend::Qemu(qemu)) => {
                qemu.add_netdev(id, &backend::netdev(self.device)).await
            }
            (Step::AddNic { bus }, Backend::Qemu(qemu)) => {
                qemu.add_nic(id, &backend::nic(self.device), bus).await
            }
            (Step::AskForRelease, Backend::Qemu(qemu)) => qemu.ask_for_release(id).await,
            (Step::DeleteNetdev, Backend::Qemu(qemu)) => qemu.delete_netdev(id).await,
            (Step::DeleteChardev, Backend::Qemu(qemu)) => qemu.delete_chardev(id).await,
            (Step::AddNet, Backend::CloudHypervisor(api)) => {
                api.add_net(&backend::net(self.device, id)).await
            }
            (Step::AskForRelease, Backend::CloudHypervisor(api)) => api.remove_device(id).await,
            (step, _) => {
                let what = format!("{step:?} is nothing that this hypervisor has");
                Err(HypervisorError::Protocol(what))
            }
        }
        .map_err(StepFault::from)
    }
}

/// Closes a device's port. That there is none, or one that is somebody else's, is no error.
///
/// # Errors
/// The switch refused, or does not answer.
pub async fn close_port(control: &ControlHandle, device: &Device) -> Result<(), StepFault> {
    let ours = IfMatch::one_of(vec![port_tag(&device.port)]);
    match in_time(control.remove_port_if(device.name().clone(), ours)).await {
        Err(StepFault::Port(CommandError::NotFound(_) | CommandError::Changed(_))) => Ok(()),
        other => other,
    }
}

/// A device's port, if it is there.
///
/// # Errors
/// The switch does not answer; or a port of that name is there that is none of this device's.
pub async fn port_of(
    control: &ControlHandle,
    device: &Device,
) -> Result<Option<PortView>, StepFault> {
    match in_time(control.show_port(device.name().clone())).await {
        Ok(view) if view.config == device.port => Ok(Some(view)),
        Ok(_) => Err(StepFault::Port(CommandError::Conflict {
            field: "name",
            reason: format!(
                "port {} is there already, with another configuration",
                device.name()
            ),
            remedy: "remove that port, or add the device under another name".to_owned(),
        })),
        Err(StepFault::Port(CommandError::NotFound(_))) => Ok(None),
        Err(fault) => Err(fault),
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, CommandError>>) -> Result<T, StepFault> {
    match timeout(PORT_ANSWER, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(StepFault::PortSilent),
    }
}
