//! Sends requests to the owner of the table. Cheap to clone; never blocks the runtime that serves the admin socket.
use super::MAX_DEVICES;
use super::device::DeviceFields;
use super::status::{DeviceState, DeviceView, Removal};
use crate::config::{InvalidField, PortName};
use crate::control::tables::StoreError;
use crate::control::tags::IfMatch;
use crate::control::{CommandError, ControlHandle};
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// Requests that may wait at one time.
pub const QUEUE_CAPACITY: usize = 64;

/// Where a reply goes.
pub type Reply<T> = oneshot::Sender<Result<T, DeviceError>>;

/// What can be asked of the table's owner.
#[derive(Debug)]
pub enum Command {
    /// A device shall be there.
    Add(Box<DeviceFields>, Reply<AddOutcome>),
    /// A device shall not be there.
    Remove(RemoveOrder, Reply<DeviceView>),
    /// One device.
    Show(PortName, Reply<DeviceView>),
    /// Every device.
    List(Reply<Vec<DeviceView>>),
    /// End.
    Stop,
}

/// Which device shall go, and how.
#[derive(Clone, Debug)]
pub struct RemoveOrder {
    /// Which.
    pub name: PortName,
    /// How.
    pub removal: Removal,
    /// What it has to be like.
    pub if_match: IfMatch,
}

/// What adding a device came to.
#[derive(Clone, Debug)]
pub enum AddOutcome {
    /// It shall be there now.
    Added(DeviceView),
    /// The same device was there before.
    AlreadyThere(DeviceView),
}

/// Why a request was not taken. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// A field cannot be accepted.
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    /// Another device or port has this already.
    #[error("{reason}; {remedy}")]
    Conflict {
        /// The field.
        field: &'static str,
        /// Who has it.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// There is no such device.
    #[error("there is no device {0}")]
    NotFound(PortName),
    /// It is not as the client saw it.
    #[error("device {0} has changed since")]
    Changed(PortName),
    /// As many devices as there can be.
    #[error("there are {MAX_DEVICES} devices already, which is the most")]
    Full,
    /// What was asked for cannot be made durable.
    #[error("{0}")]
    Store(String),
    /// The switch does not say which ports it has.
    #[error(transparent)]
    Control(CommandError),
    /// Too many requests wait.
    #[error("the device table has {QUEUE_CAPACITY} requests waiting")]
    Busy,
    /// The daemon is on its way out.
    #[error("the daemon is stopping")]
    Stopping,
}

impl From<StoreError> for DeviceError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

/// Sends commands to the table's owner. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DevicesHandle {
    commands: mpsc::Sender<Command>,
    versions: watch::Receiver<u64>,
    control: ControlHandle,
}

impl DevicesHandle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        versions: watch::Receiver<u64>,
        control: ControlHandle,
    ) -> Self {
        Self {
            commands,
            versions,
            control,
        }
    }

    /// Adds a device: it is plugged in as soon as its VM takes it. The same device again is no error.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub async fn add(&self, fields: DeviceFields) -> Result<AddOutcome, DeviceError> {
        if let Ok(name) = PortName::parse(&fields.name)
            && matches!(self.show(name.clone()).await, Err(DeviceError::NotFound(_)))
        {
            self.refuse_what_ports_have(&name, fields.socket.as_deref())
                .await?;
        }
        self.ask(|reply| Command::Add(Box::new(fields), reply))
            .await
    }

    /// A port that is no device's keeps its name and its socket.
    async fn refuse_what_ports_have(
        &self,
        name: &PortName,
        socket: Option<&str>,
    ) -> Result<(), DeviceError> {
        let ports = self
            .control
            .list_ports()
            .await
            .map_err(DeviceError::Control)?;
        for port in ports {
            let has_socket = port.config.socket().map(ToString::to_string);
            let field = if port.config.name == *name {
                "name"
            } else if socket.is_some() && has_socket.as_deref() == socket {
                "socket"
            } else {
                continue;
            };
            let other = &port.config.name;
            return Err(DeviceError::Conflict {
                field,
                reason: format!("port {other} has this {field} already"),
                remedy: format!("choose another {field}, or remove port {other} first"),
            });
        }
        Ok(())
    }

    /// A device shall go. It is there until it has.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub async fn remove(&self, order: RemoveOrder) -> Result<DeviceView, DeviceError> {
        self.ask(|reply| Command::Remove(order, reply)).await
    }

    /// Waits until a device is gone, or cannot go, but no longer than that; `Some`: how it fares then.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub async fn wait_gone(
        &self,
        name: &PortName,
        at_most: Duration,
    ) -> Result<Option<DeviceView>, DeviceError> {
        let mut versions = self.versions.clone();
        let gone = async {
            loop {
                versions.mark_unchanged();
                match self.show(name.clone()).await {
                    Err(DeviceError::NotFound(_)) => return Ok(None),
                    Ok(view) if has_failed_to_go(&view) => return Ok(Some(view)),
                    other => other?,
                };
                if versions.changed().await.is_err() {
                    return Err(DeviceError::Stopping);
                }
            }
        };
        match timeout(at_most, gone).await {
            Ok(gone) => gone,
            Err(_) => match self.show(name.clone()).await {
                Err(DeviceError::NotFound(_)) => Ok(None),
                other => other.map(Some),
            },
        }
    }

    /// One device.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub async fn show(&self, name: PortName) -> Result<DeviceView, DeviceError> {
        self.ask(|reply| Command::Show(name, reply)).await
    }

    /// Every device, by name.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub async fn list(&self) -> Result<Vec<DeviceView>, DeviceError> {
        self.ask(Command::List).await
    }

    pub(super) async fn stop(&self) {
        // One that is closed has ended.
        let _ = self.commands.send(Command::Stop).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, DeviceError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .try_send(command(reply))
            .map_err(|error| match error {
                TrySendError::Full(_) => DeviceError::Busy,
                TrySendError::Closed(_) => DeviceError::Stopping,
            })?;
        answer.await.unwrap_or(Err(DeviceError::Stopping))
    }
}

/// One that is forced to go goes all the same.
fn has_failed_to_go(view: &DeviceView) -> bool {
    let is_asked = view.removal.is_some_and(|removal| !removal.force);
    is_asked && view.actual.status().state == DeviceState::Failed
}
