//! Frames: what a guest sends and receives, built and verified by code of this crate's own.
//!
//! `vnet_header` (what travels before a frame) -> `checksum` -> `build` (frames of any size and kind) -> `parse` (what a frame says) ->
//! `verify` (whether what arrived is right).

pub mod build;
pub mod checksum;
pub mod parse;
pub mod verify;
pub mod vnet_header;

pub use build::{FrameBuilder, MacAddr};
pub use parse::{Parsed, Transport};
pub use verify::FrameError;
pub use vnet_header::{GsoType, VnetHeader};

/// A frame with the header that travels before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Offload instructions. `num_buffers` is 0 when sent, and when received what the device wrote (1 for a header without that field).
    pub header: VnetHeader,
    /// The frame from its destination MAC on, without FCS.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// A frame without offloads.
    pub fn plain(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            header: VnetHeader::default(),
            bytes: bytes.into(),
        }
    }
}
