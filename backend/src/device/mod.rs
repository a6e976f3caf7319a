//! INTERFACE SKETCH: what `control` calls; the owner of `device/` fills it in.
#![allow(missing_docs)]
use crate::datapath::Datapath;
use crate::datapath::switch_core_sketch::PortId;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketMode {
    Server,
    Client,
}

#[derive(Clone, Debug)]
pub struct VhostPortSpec {
    pub id: PortId,
    pub name: String,
    pub socket: PathBuf,
    pub mode: SocketMode,
    pub queue_pairs: u16,
    pub mtu: Option<u16>,
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("device sketch")]
    Sketch,
}

/// A port's state for `port show`, serialised as is by REST.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceStatus {
    /// listening | connecting | negotiating | up | failed ...
    pub state: String,
    pub reason: Option<String>,
}

/// The thread that serves every port's vhost-user socket.
pub struct DeviceThread {}
impl DeviceThread {
    pub fn start() -> std::io::Result<Arc<Self>> {
        unimplemented!()
    }
    /// The sink to give to `Datapath::start` (posts to this thread).
    pub fn datapath_events(&self) -> Arc<dyn Fn(crate::datapath::DatapathEvent) + Send + Sync> {
        unimplemented!()
    }
    /// Listens (or starts connecting) before it returns.
    pub fn add_port(&self, _datapath: &Arc<Datapath>, _spec: VhostPortSpec) -> Result<(), DeviceError> {
        unimplemented!()
    }
    /// Closes the session, removes the socket, removes the rings.
    pub fn remove_port(&self, _id: PortId) -> Result<(), DeviceError> {
        unimplemented!()
    }
    pub fn status(&self, _id: PortId) -> Option<DeviceStatus> {
        unimplemented!()
    }
    pub fn stop(&self) {}
}
