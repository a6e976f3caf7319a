//! Frames to the host: straight from the sender's memory into the TAP's write.
//!
//! The kernel takes every offload that a guest can have left undone, so nothing is finished in software here but what goes into a
//! tunnel.

use super::edited::{Edited, edited};
use super::frame::{Outgoing, PrivateHeader, VNET_HEADER_BYTES};
use super::software_offload::{SoftwareOffload, Whole};
use super::vnet_header::{NetFeatures, Offload};
use crate::port::tap::Tap;
use crate::ring::segment::{Payload, PayloadCursor};
use std::io;
use switch_core::DropReason;

/// A worker's working memory for writing frames to TAPs.
#[derive(Debug)]
pub struct TapWriter {
    /// The start of an edited frame.
    staging: PrivateHeader,
    software: SoftwareOffload,
    /// A frame in too many pieces for one system call.
    joined: Vec<u8>,
}

impl Default for TapWriter {
    fn default() -> Self {
        Self {
            staging: PrivateHeader::EMPTY,
            software: SoftwareOffload::default(),
            joined: Vec::new(),
        }
    }
}

/// What reached the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ToHost {
    /// Frames: several for one that was cut.
    pub frames: u64,
    /// Their bytes, without virtio-net headers.
    pub bytes: u64,
}

impl TapWriter {
    /// Writes one frame and adds what arrives to `written`, also when a later piece does not.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn write(
        &mut self,
        tap: &Tap,
        out: Outgoing<'_>,
        written: &mut ToHost,
    ) -> Result<(), DropReason> {
        let Self {
            staging,
            software,
            joined,
        } = self;
        let (payload, payload_bytes) = (out.payload, out.payload_bytes);
        let Edited {
            header,
            offload,
            around,
            ..
        } = edited(out.header, payload_bytes, out.edit, out.offload, staging)?;
        let mut write = |header: &mut PrivateHeader,
                         payload: PayloadCursor<'_>,
                         payload_bytes: u32,
                         vnet: &[u8; VNET_HEADER_BYTES]| {
            let bytes = header.frame().len() as u64 + u64::from(payload_bytes);
            let start = header.with_vnet(vnet, VNET_HEADER_BYTES);
            write_pieces(tap, start, (payload, payload_bytes as usize), joined)
                .map_err(|_| DropReason::UplinkError)?;
            written.frames += 1;
            written.bytes += bytes;
            Ok(())
        };
        if around.is_empty() {
            return write(header, payload, payload_bytes, &offload.header());
        }
        let frame = Whole {
            header: header.frame(),
            payload,
            payload_bytes,
        };
        let complete = Offload::NONE.header();
        let fit = offload.fit(NetFeatures::NONE);
        software.finish(frame, fit, around, |piece, rest, rest_bytes| {
            write(piece, rest, rest_bytes, &complete)
        })
    }
}

fn write_pieces(
    tap: &Tap,
    start: &[u8],
    (payload, payload_bytes): (PayloadCursor<'_>, usize),
    joined: &mut Vec<u8>,
) -> io::Result<()> {
    match tap.write(start, payload, payload_bytes) {
        Err(error) if error.raw_os_error() == Some(libc::E2BIG) => {
            let mut pieces = payload;
            joined.resize(payload_bytes, 0);
            pieces.read(joined);
            tap.write(start, Payload::Local(joined).cursor(), joined.len())?;
        }
        result => {
            result?;
        }
    }
    Ok(())
}
