//! Frames into a guest-rx ring: the last step of a batch.
//!
//! Called by the worker that read the frames, with the destination's ring locked for the batch. Offloads that the receiver did
//! not ack are done here in software. A frame that finds no buffer is dropped, never waited for: a guest that does not
//! read must not hold up the others.

use super::edited::{Edited, edited};
use super::frame::{BATCH_FRAMES, Batch, Outgoing, PrivateHeader, VNET_HEADER_BYTES};
use super::outbox::Parcel;
use super::queue::ActiveRing;
use super::software_offload::{SoftwareOffload, Whole};
use super::vnet_header::{Fit, NetFeatures, Offload, set_num_buffers};
use crate::ring::dirty_log::Marks;
use crate::ring::segment::{ChainWriter, PayloadCursor};
use crate::ring::{BurstEnd, BurstLimit, Chain, RingError, SegmentArena, SegmentRange};
use switch_core::{DropReason, Outcomes};

/// Guest-rx chains one frame may be spread over. A frame of 64 KiB needs 64 of 1 KiB or 1,024 of 64 bytes; smaller buffers
/// would only make a worker walk rings for somebody's amusement.
const MAX_CHAINS_PER_FRAME: usize = 2_048;

/// Chains taken and not yet forgotten: those of a run, and those of its last frame.
const TAKEN_AT_MOST: usize = BATCH_FRAMES + MAX_CHAINS_PER_FRAME;

/// The header of a frame of which nothing is left to be done, in one guest-rx chain.
const PLAIN_VNET: [u8; VNET_HEADER_BYTES] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Chains taken at a time once a run turned out to need more than one for each of its frames.
const SPARE_CHAINS: u64 = 4;

/// What reached a guest so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Frames: several for one that was cut.
    pub frames: u64,
    /// Their bytes, without virtio-net headers.
    pub bytes: u64,
}

/// Why a frame did not reach the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// It was dropped; the ring goes on.
    Dropped(DropReason),
    /// The guest broke its ring, which must be stopped.
    Broken(RingError),
}

impl From<DropReason> for Undelivered {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

impl From<RingError> for Undelivered {
    fn from(error: RingError) -> Self {
        Self::Broken(error)
    }
}

/// A worker's working memory for writing frames to guests.
#[derive(Debug)]
pub struct Writer {
    /// The start of an edited frame.
    staging: PrivateHeader,
    software: SoftwareOffload,
    chains: ChainSet,
    /// Longest frame that the guest of the run in hand is sent.
    max_frame_bytes: u32,
}

impl Default for Writer {
    fn default() -> Self {
        Self {
            staging: PrivateHeader::EMPTY,
            software: SoftwareOffload::default(),
            chains: ChainSet::default(),
            max_frame_bytes: 0,
        }
    }
}

impl Writer {
    /// After [`DropReason::RxRingFull`]: how many bytes, virtio-net headers included, the buffers left over hold.
    pub fn room_bytes(&self) -> u64 {
        self.chains.room_bytes
    }

    /// Begins a run of `frames` frames for one guest, each (each piece of it, if it is to be cut) of at most `max_frame_bytes`.
    pub fn expect(&mut self, frames: usize, max_frame_bytes: u32) {
        self.chains.expected = frames as u64;
        self.max_frame_bytes = max_frame_bytes;
    }

    /// Ends it: gives back what was not needed, and lets go of the guest's memory.
    pub fn finish(&mut self, active: &mut ActiveRing) {
        self.chains.put_back(active);
        self.chains.arena.release();
    }

    /// Writes one frame of the run and adds what arrives to `written`, also when a later piece does not. The driver does not see
    /// it before the ring's used elements are published.
    #[inline(always)]
    pub fn write(
        &mut self,
        active: &mut ActiveRing,
        (batch, outcomes): (&mut Batch, &Outcomes),
        parcel: Parcel,
        written: &mut Written,
    ) -> Result<(), Undelivered> {
        let (Some(frame), Some(header)) = (
            batch.frames.get(parcel.frame),
            batch.headers.get(parcel.frame),
        ) else {
            return Ok(());
        };
        let is_plain = parcel.edit.is_none() && frame.offload.is_none();
        if is_plain && frame.len_bytes <= self.max_frame_bytes {
            let header_bytes = active.features.header_bytes();
            let needed = frame.len_bytes + header_bytes as u32;
            if let Some(chain) = self.chains.lone(needed) {
                let mut writer = self.chains.writer(chain.segments, active.ring.marks());
                writer.write(PLAIN_VNET.get(..header_bytes).unwrap_or_default());
                writer.write(header.frame());
                if frame.rest_bytes > 0 {
                    let mut rest = frame.rest(&batch.arena, &batch.local);
                    writer.copy_from(&mut rest, frame.rest_bytes as usize);
                }
                drop(writer);
                active.ring.push_used(chain.head, needed);
                self.chains.filled += 1;
                written.frames += 1;
                written.bytes += u64::from(frame.len_bytes);
                return Ok(());
            }
        }
        match batch.outgoing(parcel, outcomes) {
            Some(out) => self.write_any(active, out, written),
            None => Ok(()),
        }
    }

    /// [`Self::write`] for a frame whose header is edited, of which something is left to be done, or that finds no chain of its size.
    #[inline(never)]
    fn write_any(
        &mut self,
        active: &mut ActiveRing,
        out: Outgoing<'_>,
        written: &mut Written,
    ) -> Result<(), Undelivered> {
        let Outgoing {
            header,
            payload,
            payload_bytes,
            offload,
            edit,
            ..
        } = out;
        let Edited {
            header,
            offload,
            around,
            growth,
        } = edited(header, payload_bytes, edit, offload, &mut self.staging)?;
        let len_bytes = header.frame().len() as u32 + payload_bytes;
        let wire_bytes = offload.wire_bytes(len_bytes);
        if wire_bytes.saturating_add_signed(growth as i32) > self.max_frame_bytes {
            return Err(DropReason::MtuExceeded.into());
        }
        let Self {
            chains, software, ..
        } = self;
        let fit = if around.is_empty() {
            offload.fit(active.features)
        } else {
            offload.fit(NetFeatures::NONE)
        };
        if fit == Fit::AsIs && around.is_empty() {
            let rest = (payload, payload_bytes);
            return chains.place(active, (header, rest), offload.header(), written);
        }
        let frame = Whole {
            header: header.frame(),
            payload,
            payload_bytes,
        };
        let complete = Offload::NONE.header();
        software.finish(frame, fit, around, |piece, rest, rest_bytes| {
            chains.place(active, (piece, (rest, rest_bytes)), complete, written)
        })
    }
}

/// Guest-rx chains: as many as a run of frames is expected to need are taken at once, those left over are put back.
#[derive(Debug)]
struct ChainSet {
    arena: SegmentArena,
    /// Taken, in order, all in the arena.
    taken: Vec<Chain>,
    /// How many of them are filled and pushed.
    filled: usize,
    /// Frames in the run.
    expected: u64,
    /// What the chains hold that were there for a frame which found too little.
    room_bytes: u64,
}

impl Default for ChainSet {
    fn default() -> Self {
        Self {
            arena: SegmentArena::default(),
            taken: Vec::with_capacity(TAKEN_AT_MOST),
            filled: 0,
            expected: 0,
            room_bytes: 0,
        }
    }
}

impl ChainSet {
    /// The next chain, if it is there and alone holds `needed` bytes.
    #[inline(always)]
    fn lone(&self, needed: u32) -> Option<Chain> {
        let chain = self.taken.get(self.filled)?;
        (chain.len_bytes >= u64::from(needed)).then_some(*chain)
    }

    #[inline(always)]
    fn writer<'a>(&'a self, segments: SegmentRange, marks: &'a mut Marks) -> ChainWriter<'a> {
        ChainWriter::new(self.arena.chain(segments), marks)
    }

    /// Writes a frame with its virtio-net header into as many chains as it needs, or leaves the ring as it was.
    fn place(
        &mut self,
        active: &mut ActiveRing,
        (header, (mut payload, payload_bytes)): (&mut PrivateHeader, (PayloadCursor<'_>, u32)),
        mut vnet: [u8; VNET_HEADER_BYTES],
        written: &mut Written,
    ) -> Result<(), Undelivered> {
        let header_bytes = active.features.header_bytes();
        let bytes = header.frame().len() as u64 + u64::from(payload_bytes);
        let needed = bytes + header_bytes as u64;
        let to_come = self.expected.saturating_sub(written.frames);
        let (end, segments) = self.reserve(active, needed, to_come)?;
        set_num_buffers(&mut vnet, (end - self.filled) as u16);
        let mut writer = self.writer(segments, active.ring.marks());
        writer.write(header.with_vnet(&vnet, header_bytes));
        if payload_bytes > 0 {
            writer.copy_from(&mut payload, payload_bytes as usize);
        }
        drop(writer);
        let mut left = needed;
        for chain in self.taken.get(self.filled..end).unwrap_or_default() {
            let used = left.min(chain.len_bytes);
            active.ring.push_used(chain.head, used as u32);
            left -= used;
        }
        self.filled = end;
        written.frames += 1;
        written.bytes += bytes;
        Ok(())
    }

    /// Takes chains until those that are not filled have room for `needed` bytes, the driver merging buffers if it takes more
    /// than one; where they end, and their segments. `to_come` frames, this one among them, are expected to need one each.
    fn reserve(
        &mut self,
        active: &mut ActiveRing,
        needed: u64,
        to_come: u64,
    ) -> Result<(usize, SegmentRange), Undelivered> {
        let mergeable = active.features.has_mergeable_buffers();
        if self.filled == self.taken.len() {
            self.put_back(active);
        }
        self.room_bytes = 0;
        let mut end = self.filled;
        loop {
            while let Some(chain) = self.taken.get(end) {
                end += 1;
                self.room_bytes += chain.len_bytes;
                if self.room_bytes >= needed {
                    let first = self.taken.get(self.filled).unwrap_or(chain);
                    let segments = SegmentRange {
                        start: first.segments.start,
                        end: chain.segments.end,
                    };
                    return Ok((end, segments));
                }
                if !mergeable || end - self.filled == MAX_CHAINS_PER_FRAME {
                    return Err(DropReason::RxBufferTooSmall.into());
                }
            }
            let chains = match self.taken.get(self.filled..) {
                // A frame in several chains: as many as the rest of it takes if they are all like those.
                Some(mine @ [.., _]) => {
                    let one = (self.room_bytes / mine.len() as u64).max(1);
                    (needed - self.room_bytes).div_ceil(one)
                }
                _ => to_come.max(SPARE_CHAINS),
            };
            let limit = BurstLimit {
                chains: chains.clamp(1, BATCH_FRAMES as u64) as usize,
                bytes: u64::MAX,
            };
            let before = self.taken.len();
            let full = before + limit.chains > TAKEN_AT_MOST;
            let ended = if full {
                BurstEnd::ArenaFull
            } else {
                active
                    .ring
                    .take_burst(&mut self.arena, &mut self.taken, limit)?
            };
            if self.taken.len() > before {
                continue;
            }
            match ended {
                // The frames before this one have taken the room: once more without theirs.
                BurstEnd::ArenaFull if self.filled > 0 => {
                    self.put_back(active);
                    self.room_bytes = 0;
                    end = 0;
                }
                BurstEnd::ArenaFull => return Err(DropReason::RxBufferTooSmall.into()),
                BurstEnd::Pending => return Err(DropReason::RxRingNotReady.into()),
                BurstEnd::Limit | BurstEnd::Empty => return Err(DropReason::RxRingFull.into()),
            }
        }
    }

    /// Gives the chains that were not filled back to the ring, unused, and forgets all.
    fn put_back(&mut self, active: &mut ActiveRing) {
        let unused = self.taken.get(self.filled..).unwrap_or_default();
        let places = unused.iter().map(|chain| chain.head.places).sum();
        active.ring.undo_take(places);
        self.taken.clear();
        self.arena.clear();
        self.filled = 0;
    }
}
