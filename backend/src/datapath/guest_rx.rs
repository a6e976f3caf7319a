//! Frames into a guest-rx ring: the last step of a batch.
//!
//! Called by the worker that read the frames, with the destination's ring locked for the batch. Offloads that the receiver did
//! not ack are done here in software. A frame that finds no buffer is dropped, never waited for: a guest that does not
//! read must not hold up the others.

use super::frame::{Outgoing, PrivateHeader};
use super::queue::ActiveRing;
use super::software_offload::{SoftwareOffload, Whole};
use super::vnet_header::{Fit, Offload, Segmentation, set_num_buffers};
use crate::ring::segment::{ChainWriter, PayloadCursor};
use crate::ring::{ChainHead, RingError, SegmentArena, SegmentRange, Taken};
use switch_core::{DropReason, VlanEdit};

/// Guest-rx chains one frame may be spread over. A frame of 64 KiB needs 64 of 1 KiB or 1,024 of 64 bytes; smaller buffers
/// would only make a worker walk rings for somebody's amusement.
const MAX_CHAINS_PER_FRAME: usize = 2_048;

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
}

impl Default for Writer {
    fn default() -> Self {
        Self {
            staging: PrivateHeader::EMPTY,
            software: SoftwareOffload::default(),
            chains: ChainSet::default(),
        }
    }
}

impl Writer {
    /// After [`DropReason::RxRingFull`]: how many bytes, virtio-net headers included, the buffers left over hold.
    pub fn room_bytes(&self) -> u64 {
        self.chains.room_bytes
    }

    /// Ends a run of frames for one guest: lets go of its memory.
    pub fn finish(&mut self) {
        self.chains.arena.release();
    }

    /// Writes one frame of at most `max_frame_bytes` (each piece of it, if it is to be cut) and adds what arrives to `written`, also
    /// when a later piece does not. The driver does not see it before the ring's used elements are published.
    pub fn write(
        &mut self,
        active: &mut ActiveRing,
        out: Outgoing<'_>,
        max_frame_bytes: u32,
        written: &mut Written,
    ) -> Result<(), Undelivered> {
        let Outgoing {
            payload,
            payload_bytes,
            edit,
            ..
        } = out;
        let (header, offload) = retagged(out.header, edit, out.offload, &mut self.staging);
        let len_bytes = header.frame().len() as u32 + payload_bytes;
        if on_the_wire(len_bytes, offload.segmentation) > max_frame_bytes {
            return Err(DropReason::MtuExceeded.into());
        }
        let Self {
            chains, software, ..
        } = self;
        let complete = Offload::NONE.header();
        match offload.fit(active.features) {
            Fit::AsIs => {
                let rest = (payload, payload_bytes);
                chains.place(active, (header, rest), offload.header(), written)
            }
            Fit::Checksum(checksum) => {
                let frame = Whole {
                    header: header.frame(),
                    payload,
                    payload_bytes,
                };
                let header = software.with_checksum(frame, checksum)?;
                let rest = (payload, payload_bytes);
                chains.place(active, (header, rest), complete, written)
            }
            Fit::Segment(segmentation) => {
                let frame = Whole {
                    header: header.frame(),
                    payload,
                    payload_bytes,
                };
                software.cut(frame, segmentation, |piece, rest, rest_bytes| {
                    chains.place(active, (piece, (rest, rest_bytes)), complete, written)
                })
            }
        }
    }
}

/// The frame with its tag edited: in `staging` when there is something to edit, as it is otherwise.
#[inline(always)]
pub fn retagged<'a>(
    header: &'a mut PrivateHeader,
    edit: VlanEdit,
    offload: Offload,
    staging: &'a mut PrivateHeader,
) -> (&'a mut PrivateHeader, Offload) {
    if edit == VlanEdit::None {
        return (header, offload);
    }
    let rewrite = edit.rewrite(header.frame());
    staging.compose(
        rewrite.prefix(),
        header.frame().get(rewrite.skip()..).unwrap_or_default(),
    );
    (staging, offload.shifted(edit.length_delta()))
}

/// Length of the longest frame that the receiver's link carries for this one.
#[inline]
fn on_the_wire(len_bytes: u32, segmentation: Option<Segmentation>) -> u32 {
    segmentation.map_or(len_bytes, |s| {
        len_bytes.min(u32::from(s.header_bytes) + u32::from(s.segment_bytes))
    })
}

/// The guest-rx chains that one frame goes into.
#[derive(Debug)]
struct ChainSet {
    arena: SegmentArena,
    /// Head and length of each.
    chains: Vec<(ChainHead, u64)>,
    /// Sum of the lengths.
    room_bytes: u64,
}

impl Default for ChainSet {
    fn default() -> Self {
        Self {
            arena: SegmentArena::default(),
            chains: Vec::with_capacity(MAX_CHAINS_PER_FRAME),
            room_bytes: 0,
        }
    }
}

impl ChainSet {
    /// Writes a frame with its virtio-net header into as many chains as it needs, or leaves the ring as it was.
    #[inline]
    fn place(
        &mut self,
        active: &mut ActiveRing,
        (header, (mut payload, payload_bytes)): (&mut PrivateHeader, (PayloadCursor<'_>, u32)),
        mut vnet: [u8; 12],
        written: &mut Written,
    ) -> Result<(), Undelivered> {
        let header_bytes = active.features.header_bytes();
        let bytes = header.frame().len() as u64 + u64::from(payload_bytes);
        let needed = bytes + header_bytes as u64;
        self.arena.clear();
        let lone = match active.ring.take(&mut self.arena) {
            Ok(Taken::Chain(chain)) if chain.len_bytes >= needed => Some(chain.head),
            first => {
                self.reserve(active, first, needed)?;
                None
            }
        };
        set_num_buffers(
            &mut vnet,
            if lone.is_some() {
                1
            } else {
                self.chains.len() as u16
            },
        );
        let all = SegmentRange {
            start: 0,
            end: self.arena.len() as u32,
        };
        let mut writer = ChainWriter::new(self.arena.chain(all));
        writer.write(header.with_vnet(vnet.get(..header_bytes).unwrap_or_default()));
        if payload_bytes > 0 {
            writer.copy_from(&mut payload, payload_bytes as usize);
        }
        match lone {
            Some(head) => active.ring.push_used(head, needed as u32),
            None => self.give_back(active, needed),
        }
        written.frames += 1;
        written.bytes += bytes;
        Ok(())
    }

    /// Gives back the chains that a frame of `left` bytes was spread over.
    fn give_back(&self, active: &mut ActiveRing, mut left: u64) {
        for &(head, room) in &self.chains {
            let used = left.min(room);
            active.ring.push_used(head, used as u32);
            left -= used;
        }
    }

    /// Takes more chains until there is room for `needed` bytes, `first` being what came of taking one. The driver must merge
    /// buffers for that.
    #[inline(never)]
    fn reserve(
        &mut self,
        active: &mut ActiveRing,
        first: Result<Taken, RingError>,
        needed: u64,
    ) -> Result<(), Undelivered> {
        self.chains.clear();
        self.room_bytes = 0;
        let mut taken = first;
        let undelivered = loop {
            match taken {
                Ok(Taken::Chain(chain)) => {
                    self.chains.push((chain.head, chain.len_bytes));
                    self.room_bytes += chain.len_bytes;
                    if self.room_bytes >= needed {
                        return Ok(());
                    }
                    if !active.features.has_mergeable_buffers()
                        || self.chains.len() == MAX_CHAINS_PER_FRAME
                    {
                        break DropReason::RxBufferTooSmall.into();
                    }
                }
                Ok(Taken::Empty) => break DropReason::RxRingFull.into(),
                Ok(Taken::ArenaFull) => break DropReason::RxBufferTooSmall.into(),
                Err(error) => break Undelivered::Broken(error),
            }
            taken = active.ring.take(&mut self.arena);
        };
        let places = self.chains.iter().map(|(head, _)| head.places).sum();
        active.ring.undo_take(places);
        Err(undelivered)
    }
}
