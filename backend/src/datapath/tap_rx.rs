//! Frames to the host: straight from the sender's memory into the TAP's write.
//!
//! The kernel takes every offload that a guest can have left undone, so nothing is finished in software here.

use super::frame::{Outgoing, PrivateHeader, VNET_HEADER_BYTES};
use super::guest_rx::retagged;
use crate::port::tap::Tap;
use crate::ring::segment::Payload;
use std::io;

/// Writes one frame; its length. `joined` is scratch space for a payload in many pieces.
pub fn write(tap: &Tap, out: Outgoing<'_>, joined: &mut Vec<u8>) -> io::Result<u64> {
    let mut staging = PrivateHeader::EMPTY;
    let Outgoing {
        payload,
        payload_bytes,
        ..
    } = out;
    let (header, offload) = retagged(out.header, out.edit, out.offload, &mut staging);
    let bytes = header.frame().len() as u64 + u64::from(payload_bytes);
    let start = header.with_vnet(&offload.header(), VNET_HEADER_BYTES);
    match tap.write(start, payload, payload_bytes as usize) {
        Err(error) if error.raw_os_error() == Some(libc::E2BIG) => {
            let mut pieces = payload;
            joined.resize(payload_bytes as usize, 0);
            pieces.read(joined);
            tap.write(start, Payload::Local(joined).cursor(), joined.len())?;
        }
        result => result?,
    }
    Ok(bytes)
}
