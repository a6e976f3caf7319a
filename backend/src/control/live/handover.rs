//! Everything that runs, handed over to another process or taken over from one.

use super::{LiveEngine, device_refused, stream_spec};
use crate::config::{PortConfig, PortKind};
use crate::control::PortId;
use crate::control::engine::{Kept, StepError};
use crate::control::services::ServicesHandle;
use crate::control::tables::Tables;
use crate::daemon::notify;
use crate::device::HandedPort;
use crate::device::state::DeviceState;
use crate::handover::content::{Learned, neighbor_key};
use crate::handover::descriptors::Incoming;
use crate::handover::give::{Giver, UpgradeError, UpgradeRequest, Upgraded};
use crate::port::stream::handover::{HandedStream, StreamRest};
use crate::port::tap::Tap;
use crate::rest::ListeningSocket;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::Notify;

/// What else is handed over, that others own.
pub struct Beside {
    /// What operators put into tables.
    pub tables: Option<Tables>,
    /// The listening admin socket.
    pub admin: OwnedFd,
    /// The listening socket of the admin interface over TCP.
    pub remote: Option<ListeningSocket>,
    /// The program's name, as it is configured.
    pub program: String,
    /// Told when the other process serves everything, so that this one ends.
    pub left: Arc<Notify>,
}

/// A port that was handed over: what there is of it, by its kind.
pub struct Handed {
    /// The device of a vhost-user port.
    pub device: Option<HandedPort>,
    /// The interface of a TAP port.
    pub tap: Option<OwnedFd>,
    /// The sockets of a stream port.
    pub stream: Option<HandedStream>,
}

impl LiveEngine {
    /// Makes upgrades possible.
    #[must_use]
    pub fn with_beside(self, beside: Beside) -> Self {
        if let Some(carriers) = &self.carriers {
            let _ = carriers.tables.set(beside.tables.clone());
        }
        Self {
            beside: Some(beside),
            ..self
        }
    }

    /// What was learned, wherever it is kept.
    pub fn learned(&self) -> Learned {
        Learned {
            switch: Arc::clone(&self.switch),
            engine: self.engine.clone(),
        }
    }

    /// Makes a port that was handed over, without serving it.
    ///
    /// # Errors
    /// It cannot be served; nothing of it is left.
    pub fn adopt(
        &mut self,
        id: PortId,
        port: &PortConfig,
        (handed, descriptors): (Handed, &mut Incoming),
    ) -> Result<(), StepError> {
        self.join(id, &port.vlan)?;
        let adopted = match (&port.kind, handed) {
            (
                PortKind::VhostUser { .. },
                Handed {
                    device: Some(device),
                    ..
                },
            ) => match self.spec(id, port)? {
                Some(spec) => self
                    .devices
                    .adopt_port(&self.datapath, spec, (device, descriptors))
                    .map_err(|error| device_refused(&error)),
                None => Ok(()),
            },
            (PortKind::Tap { interface }, Handed { tap: Some(tap), .. }) => {
                self.datapath.hold_taps();
                let tap = Tap::adopt(tap, interface.as_str());
                self.datapath.add_tap_port(id, tap);
                self.taps.insert(id);
                Ok(())
            }
            (
                PortKind::Stream { socket, mode },
                Handed {
                    stream: Some(stream),
                    ..
                },
            ) => {
                let spec = stream_spec(id, port, (socket, *mode));
                self.streams
                    .adopt_port(&self.datapath, spec, (stream, descriptors))
                    .map_err(|error| device_refused(&error))
            }
            _ => Err(StepError {
                field: "name",
                reason: "it was not handed over".to_owned(),
                remedy: "restart instead of upgrading".to_owned(),
            }),
        };
        adopted.inspect_err(|_| drop(self.leave(id)))
    }

    /// Serves every port that was adopted.
    pub fn take_up(
        &self,
        devices: HashMap<PortId, DeviceState>,
        (rests, bytes): (&[StreamRest], &[u8]),
    ) {
        // Sent to first, read last: what is under way to a port that is not there yet would be lost.
        self.streams.take_up(rests, bytes);
        self.devices.take_up(devices);
        self.streams.go();
        self.datapath.release_taps();
    }

    pub(super) fn hand_over(
        &self,
        request: &UpgradeRequest,
        kept: Kept,
        leave: &mut dyn FnMut(Upgraded),
    ) -> Result<(), UpgradeError> {
        let beside = self.beside.as_ref();
        let beside = beside.ok_or(UpgradeError::Channel(io::ErrorKind::Unsupported.into()))?;
        let remote = beside.remote.as_ref().and_then(|socket| socket.get());
        let remote = remote.map(OwnedFd::try_clone);
        let services = self.services.as_ref();
        let giver = Giver {
            devices: &self.devices,
            streams: &self.streams,
            datapath: &self.datapath,
            learned: self.learned(),
            tables: beside.tables.as_ref(),
            ports: kept.ports,
            program: beside.program.clone(),
            admin: beside.admin.try_clone().map_err(UpgradeError::Channel)?,
            remote: remote.transpose().map_err(UpgradeError::Channel)?,
            control: kept.control,
            services: services.and_then(|services| serde_json::to_value(services.config()).ok()),
            looked_up: services
                .map(ServicesHandle::neighbors)
                .unwrap_or_default()
                .iter()
                .map(|neighbor| neighbor_key(neighbor.interface, neighbor.address))
                .collect(),
        };
        giver.hand_over(request, &mut |upgraded| {
            notify::service_manager(&format!("MAINPID={}", upgraded.pid));
            beside.left.notify_one();
            leave(upgraded);
        })
    }
}
