//! Frames out of a guest-tx ring: the first step of a batch.
//!
//! Called by the worker that owns the ring. Afterwards the batch holds up to 64 frames whose headers are private; their chains
//! stay taken until [`complete`].

use super::frame::{
    BATCH_FRAMES, Batch, Frame, MAX_FRAME_BYTES, MIN_FRAME_BYTES, PLAIN_HEADER_BYTES,
    PrivateHeader, Rest,
};
use super::queue::{ActiveRing, Queue};
use super::vnet_header::{NetFeatures, Offload};
use crate::ring::segment::Payload;
use crate::ring::{BurstEnd, BurstLimit, Chain, RingError, SegmentArena};
use switch_core::{Decide, DropReason, PortId, Verdict};

/// Takes what waits, up to a batch, which ends at the latest behind the frame that passes `limit_bytes`; `pipeline` decides on each
/// frame by its private header. Why the batch ended. Frames before a broken chain are in
/// the batch also when the chain's error is returned.
pub fn take_batch(
    active: &mut ActiveRing,
    batch: &mut Batch,
    limit_bytes: u32,
    (port, pipeline): (PortId, &mut impl Decide),
) -> Result<BurstEnd, RingError> {
    batch.clear();
    let limit = BurstLimit {
        chains: BATCH_FRAMES,
        bytes: limit_bytes.into(),
    };
    let taken = active
        .ring
        .take_burst(&mut batch.arena, &mut batch.chains, limit);
    let frames = batch.frames.refill(batch.chains.len());
    // In two passes, for the processor to have each short loop's state in registers.
    let mut refused = 0u64;
    let copies = batch.chains.iter().zip(batch.headers.iter_mut());
    for (index, ((chain, header), frame)) in copies.zip(frames.iter_mut()).enumerate() {
        if let Err(reason) = copy_header(chain, active.features, &batch.arena, header, frame) {
            frame.verdict = Verdict::Drop(reason);
            refused |= 1 << index;
        }
    }
    let is_taken = |index: usize| refused & 1 << index == 0;
    let infos = batch.headers.iter().zip(&*frames).enumerate();
    let infos = infos.filter(|(index, _)| is_taken(*index));
    pipeline.foresee(port, infos.map(|(_, (header, frame))| frame.info(header)));
    for (index, (header, frame)) in batch.headers.iter().zip(frames).enumerate() {
        if is_taken(index) {
            frame.verdict = pipeline.decide(port, &frame.info(header));
        }
    }
    taken
}

// A bit for each frame.
const _: () = assert!(BATCH_FRAMES <= u64::BITS as usize);

/// Makes `frame` the one in `chain`: copies its start and reads its virtio-net header.
#[inline(always)]
fn copy_header(
    chain: &Chain,
    features: NetFeatures,
    arena: &SegmentArena,
    header: &mut PrivateHeader,
    frame: &mut Frame,
) -> Result<(), DropReason> {
    frame.head = chain.head;
    frame.len_bytes = 0;
    frame.rest_bytes = 0;
    frame.offload = Offload::NONE;
    let header_bytes = features.header_bytes();
    let len_bytes = chain.len_bytes.saturating_sub(header_bytes as u64);
    if len_bytes < MIN_FRAME_BYTES as u64 {
        return Err(DropReason::FrameTooShort);
    }
    if len_bytes > MAX_FRAME_BYTES as u64 {
        return Err(DropReason::FrameTooLong);
    }
    let copied = header.fill(header_bytes, |room| {
        let wanted = PLAIN_HEADER_BYTES.min(chain.len_bytes as usize);
        arena.read_start(chain.segments, room.get_mut(..wanted).unwrap_or_default())
    });
    frame.len_bytes = len_bytes as u32;
    frame.rest_bytes = frame.len_bytes.saturating_sub(copied as u32);
    frame.rest = Rest::Chain {
        range: chain.segments,
        skip_bytes: (header_bytes + copied) as u32,
    };
    if Offload::is_asked_for(header.vnet(header_bytes)) {
        read_offload(arena, features, header, frame)
    } else {
        Ok(())
    }
}

/// Copies the rest of the headers of a frame that was left unfinished, and reads what is to be done.
fn read_offload(
    arena: &SegmentArena,
    features: NetFeatures,
    header: &mut PrivateHeader,
    frame: &mut Frame,
) -> Result<(), DropReason> {
    if let Rest::Chain { range, skip_bytes } = &mut frame.rest {
        let mut rest = Payload::Guest {
            chain: arena.chain(*range),
            skip_bytes: *skip_bytes,
        }
        .cursor();
        let added = header.extend(|room| {
            let wanted = room.len().min(frame.rest_bytes as usize);
            rest.read(room.get_mut(..wanted).unwrap_or_default())
        }) as u32;
        frame.rest_bytes = frame.rest_bytes.saturating_sub(added);
        *skip_bytes += added;
    }
    frame.offload = Offload::parse(
        header.vnet(features.header_bytes()),
        header.frame(),
        frame.len_bytes,
        features,
    )?;
    Ok(())
}

/// Gives every chain of the batch back and notifies the driver if it wants that.
pub fn complete(active: &mut ActiveRing, queue: &Queue, batch: &Batch) {
    let mut bytes = 0;
    for frame in batch.frames.iter() {
        // Nothing was written to a device-readable chain (VIRTIO 1.3 §2.7.8.2).
        active.ring.push_used(frame.head, 0);
        bytes += u64::from(frame.len_bytes);
    }
    queue.counters.frames.add(batch.frames.len() as u64);
    queue.counters.bytes.add(bytes);
    super::notify::publish(&mut active.ring, &queue.counters);
}
