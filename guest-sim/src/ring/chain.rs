//! What the driver puts into a ring, and what comes back.
//!
//! Made by `guest_tx`, `guest_rx`, `bounce` and tests; the same for split and packed rings.

use super::raw;
use crate::error::DeviceFault;

/// Who may do what with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads it.
    DeviceReads,
    /// The device writes it.
    DeviceWrites,
}

impl Direction {
    /// The descriptor flag it is.
    #[inline]
    pub(super) fn flag(self) -> u16 {
        match self {
            Self::DeviceReads => 0,
            Self::DeviceWrites => raw::WRITE,
        }
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Who may do what.
    pub direction: Direction,
}

impl Segment {
    /// Bytes that the device may write.
    #[inline]
    pub(super) fn writable(&self) -> u32 {
        match self.direction {
            Direction::DeviceReads => 0,
            Direction::DeviceWrites => self.len,
        }
    }
}

/// Where a chain's descriptors are put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DescriptorTable {
    /// In the ring's own table.
    #[default]
    Direct,
    /// In a table of its own, one descriptor of the ring pointing at it. Needs INDIRECT_DESC.
    Indirect,
    /// Like `Direct`, except for chains of more than one descriptor.
    IndirectWhenMany,
}

impl DescriptorTable {
    /// Whether a chain of this many segments gets a table of its own.
    #[inline]
    pub(super) fn is_indirect(self, segments: usize) -> bool {
        match self {
            Self::Direct => false,
            Self::Indirect => true,
            Self::IndirectWhenMany => segments > 1,
        }
    }
}

/// A chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// What the caller gave with the chain.
    pub token: u32,
    /// Bytes the device says it wrote. For a chain that IN_ORDER skipped: all of its writable bytes (VIRTIO 1.3 §2.7.9, §2.8.8).
    pub written: u32,
    /// The chain's writable bytes.
    pub writable: u32,
}

/// A chain in the ring.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    /// Descriptors of the ring that it takes.
    pub descriptors: u16,
    /// Bytes that the device may write.
    pub writable: u32,
    /// The caller's.
    pub token: u32,
}

/// A chain that the device says it is done with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    /// Head of the chain (split) or its buffer id (packed).
    pub id: u16,
    /// Bytes written; `None` when IN_ORDER skipped it.
    pub written: Option<u32>,
    pub chain: Chain,
}

impl Used {
    /// What the caller gets of it.
    ///
    /// # Errors
    /// The device says it wrote more than the chain of `ring` has room for.
    #[inline]
    pub fn completion(&self, ring: u16) -> Result<Completion, DeviceFault> {
        let writable = self.chain.writable;
        let written = self.written.unwrap_or(writable);
        if written > writable {
            return Err(DeviceFault::WrittenTooLong {
                ring,
                id: self.id,
                written,
                writable,
            });
        }
        Ok(Completion {
            token: self.chain.token,
            written,
            writable,
        })
    }
}
