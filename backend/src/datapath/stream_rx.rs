//! Frames to a stream port: framed into its buffer, which goes to the peer's socket once a batch.
//!
//! Called by the worker that read the frames, with the port's outbound half locked for the run. The framing has no virtio-net header,
//! so whatever the sender left undone is done here in software.

use super::edited::{Edited, edited};
use super::frame::{Outgoing, PrivateHeader};
use super::software_offload::{SoftwareOffload, Whole};
use super::stream_port::Sender;
use super::vnet_header::{Fit, NetFeatures};
use crate::ring::segment::PayloadCursor;
use switch_core::DropReason;

/// A worker's working memory for writing frames to stream ports.
#[derive(Debug)]
pub struct StreamWriter {
    /// The start of an edited frame.
    staging: PrivateHeader,
    software: SoftwareOffload,
}

impl Default for StreamWriter {
    fn default() -> Self {
        Self {
            staging: PrivateHeader::EMPTY,
            software: SoftwareOffload::default(),
        }
    }
}

impl StreamWriter {
    /// Adds one frame to what `sender` sends, and its first pieces also when a later one does not go.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn write(
        &mut self,
        (sender, max_frame_bytes): (&mut Sender<'_>, u32),
        out: Outgoing<'_>,
    ) -> Result<(), DropReason> {
        let Self { staging, software } = self;
        let (payload, payload_bytes) = (out.payload, out.payload_bytes);
        let Edited {
            header,
            offload,
            around,
            growth,
        } = edited(out.header, payload_bytes, out.edit, out.offload, staging)?;
        let len_bytes = header.frame().len() as u32 + payload_bytes;
        let wire_bytes = offload
            .wire_bytes(len_bytes)
            .saturating_add_signed(growth as i32);
        if wire_bytes > max_frame_bytes {
            return Err(DropReason::MtuExceeded);
        }
        // Before sums are made of a frame that nobody takes.
        sender.check(wire_bytes as usize)?;
        let fit = offload.fit(NetFeatures::NONE);
        let mut add = |start: &[u8], payload: PayloadCursor<'_>, payload_bytes: u32| {
            sender.add(start, (payload, payload_bytes as usize))
        };
        if fit == Fit::AsIs && around.is_empty() {
            return add(header.frame(), payload, payload_bytes);
        }
        let frame = Whole {
            header: header.frame(),
            payload,
            payload_bytes,
        };
        software.finish(frame, fit, around, |piece, rest, rest_bytes| {
            add(piece.frame(), rest, rest_bytes)
        })
    }
}
