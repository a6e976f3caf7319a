//! INTERFACE SKETCH (the integrator replaces this file): guest memory and rings.
#![allow(missing_docs)]
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// One entry of SET_MEM_TABLE / ADD_MEM_REG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RegionLayout {
    pub guest_phys_addr: u64,
    pub size_bytes: u64,
    /// Address in the front-end's own address space: what ring addresses refer to.
    pub user_addr: u64,
    pub mmap_offset: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("memory sketch")]
    Sketch,
}

/// An immutable map of a VM's memory. Cheap to derive a changed one from (mappings are shared).
#[derive(Debug)]
pub struct GuestMemory {}

impl GuestMemory {
    /// Maps every region. Refuses overlaps, files too short, file systems that can block a reader (FUSE, NFS), zero sizes, overflow.
    pub fn map(_regions: Vec<(RegionLayout, OwnedFd)>) -> Result<Arc<Self>, MemoryError> {
        unimplemented!()
    }
    pub fn with_region(
        &self,
        _layout: RegionLayout,
        _file: OwnedFd,
    ) -> Result<Arc<Self>, MemoryError> {
        unimplemented!()
    }
    pub fn without_region(&self, _layout: RegionLayout) -> Result<Arc<Self>, MemoryError> {
        unimplemented!()
    }
    pub fn regions(&self) -> Vec<RegionLayout> {
        unimplemented!()
    }
    /// True once any of its files was truncated under us (the SIGBUS guard put zero pages there): the port must be detached.
    pub fn is_lost(&self) -> bool {
        unimplemented!()
    }
}

/// An eventfd from a front-end, verified to be an eventfd and made non-blocking. Never read: it is watched edge-triggered.
#[derive(Debug)]
pub struct EventSource(pub OwnedFd);
/// An eventfd from a front-end that we signal; verified, non-blocking.
#[derive(Debug)]
pub struct EventSink(pub OwnedFd);
impl EventSource {
    pub fn new(_fd: OwnedFd) -> std::io::Result<Self> {
        unimplemented!()
    }
}
impl EventSink {
    pub fn new(_fd: OwnedFd) -> std::io::Result<Self> {
        unimplemented!()
    }
    pub fn signal(&self) {
        unimplemented!()
    }
}

/// Addresses of a ring's three parts, in the front-end's address space (SET_VRING_ADDR).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RingAddresses {
    pub descriptor_table: u64,
    pub available_ring: u64,
    pub used_ring: u64,
    /// Guest-physical address of the used ring for the migration log, when flags bit 0 asks for logging.
    pub used_log: Option<u64>,
}

#[derive(Debug)]
pub struct RingConfig {
    pub size: u16,
    pub addresses: RingAddresses,
    /// From SET_VRING_BASE: next available index. When the used index in memory disagrees, that one wins.
    pub base: u16,
    /// Acked virtio features.
    pub features: u64,
    pub kick: Option<Arc<EventSource>>,
    pub call: Option<Arc<EventSink>>,
    pub error: Option<Arc<EventSink>>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    #[error("ring sketch")]
    Sketch,
}
