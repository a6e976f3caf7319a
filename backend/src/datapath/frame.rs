//! A batch of frames on their way through a worker.
//!
//! Each frame's first bytes are copied once into private memory; parsing, decisions and edits see only that copy, so a guest
//! that rewrites its buffer meanwhile changes nothing that was decided. The rest of the frame stays where its sender put it
//! until it is copied to its destination.

use super::outbox::Parcel;
use super::vnet_header::Offload;
use crate::ring::segment::{Payload, PayloadCursor};
use crate::ring::{Chain, ChainHead, SegmentArena, SegmentRange};
use switch_core::engine::edit::{
    self, Edit, EditList, EditedFrame, MAX_GROWTH_BYTES, PartialChecksum,
};
use switch_core::{DropReason, FrameInfo, HeaderEdit, Outcomes, PortId, Verdict, VlanEdit};

/// Frames in a batch.
pub const BATCH_FRAMES: usize = 64;
/// Bytes copied of a frame whose virtio-net header asks for something, that header included: all its headers have to be read.
pub const HEADER_BYTES: usize = 256;
/// Bytes copied of any other: of those only the start is looked at.
pub const PLAIN_HEADER_BYTES: usize = 128;
/// Bytes of such a frame that are copied, however long its virtio-net header is.
pub const PLAIN_FRAME_HEADER_BYTES: usize = PLAIN_HEADER_BYTES - VNET_HEADER_BYTES;
/// Longest virtio-net header (VIRTIO 1.3 §5.1.6).
pub const VNET_HEADER_BYTES: usize = 12;
/// Where a frame starts in its private bytes; a header for its receiver fits before it.
const FRAME_START: usize = 14;
/// Bytes an edit may add: what a list does, a VLAN tag, and the fragment header that cutting a UDP datagram adds.
const EDIT_BYTES: usize = MAX_GROWTH_BYTES + 4 + switch_core::segment::MAX_HEADER_GROWTH_BYTES;
/// Size of a private header: whole cache lines, an odd number of them, for the starts of a batch's headers to lie in all sets of a
/// cache alike.
const PRIVATE_HEADER_BYTES: usize = 7 * 64;
/// All of it but the length.
const ROOM_BYTES: usize = PRIVATE_HEADER_BYTES - 2;
/// Bytes of the frame itself that are copied.
pub const FRAME_HEADER_BYTES: usize = HEADER_BYTES - VNET_HEADER_BYTES;
/// Longest frame carried: 64 KiB of segmented payload with the longest headers, as QEMU's socket netdev allows.
pub const MAX_FRAME_BYTES: usize = 69_632;
/// Shortest frame carried: an Ethernet header.
pub const MIN_FRAME_BYTES: usize = 14;

/// The first bytes of a frame, with room for a virtio-net header before them.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct PrivateHeader {
    /// In the same cache line as the bytes that are looked at.
    frame_bytes: u16,
    bytes: [u8; ROOM_BYTES],
}

const _: () = assert!(ROOM_BYTES >= FRAME_START + FRAME_HEADER_BYTES + EDIT_BYTES);

impl PrivateHeader {
    /// No frame.
    pub const EMPTY: Self = Self {
        bytes: [0; ROOM_BYTES],
        frame_bytes: 0,
    };

    /// The copied part of the frame.
    #[inline(always)]
    pub fn frame(&self) -> &[u8] {
        self.bytes
            .get(FRAME_START..FRAME_START + usize::from(self.frame_bytes))
            .unwrap_or_default()
    }

    /// The same, to edit.
    #[inline]
    pub fn frame_mut(&mut self) -> &mut [u8] {
        self.bytes
            .get_mut(FRAME_START..FRAME_START + usize::from(self.frame_bytes))
            .unwrap_or_default()
    }

    /// Room for `header_bytes` bytes of virtio-net header and as much of a frame as is copied: what `fill` writes, and how
    /// many bytes it wrote, is the header and the frame's start. Returns how many frame bytes that was.
    #[inline]
    pub fn fill(&mut self, header_bytes: usize, fill: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let from = FRAME_START - header_bytes.min(FRAME_START);
        let filled = self
            .bytes
            .get_mut(from..FRAME_START + FRAME_HEADER_BYTES)
            .map_or(0, fill);
        let frame_bytes = filled.saturating_sub(header_bytes);
        self.frame_bytes = frame_bytes as u16;
        frame_bytes
    }

    /// Adds to the frame's copied part what `fill` writes into the room behind it; the bytes that were added.
    pub fn extend(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let end = FRAME_START + usize::from(self.frame_bytes);
        let added = self
            .bytes
            .get_mut(end..FRAME_START + FRAME_HEADER_BYTES)
            .map_or(0, fill);
        self.frame_bytes += added as u16;
        added
    }

    /// Makes this the frame that `write` puts into the room it is given; it returns how many bytes that was.
    pub fn write_frame(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        self.frame_bytes = self.bytes.get_mut(FRAME_START..).map_or(0, write) as u16;
    }

    /// The `header_bytes` bytes before the frame: its virtio-net header.
    #[inline]
    pub fn vnet(&self, header_bytes: usize) -> &[u8] {
        self.bytes
            .get(FRAME_START - header_bytes.min(FRAME_START)..FRAME_START)
            .unwrap_or_default()
    }

    /// Puts the first `header_bytes` bytes of `vnet`, 10 or 12, before the frame; both together.
    #[inline(always)]
    pub fn with_vnet(&mut self, vnet: &[u8; VNET_HEADER_BYTES], header_bytes: usize) -> &[u8] {
        let room = self.bytes.first_chunk_mut::<FRAME_START>();
        // Lengths known beforehand need no call to copy.
        if header_bytes == VNET_HEADER_BYTES {
            if let Some([_, _, room @ ..]) = room {
                *room = *vnet;
            }
        } else if let (Some([_, _, _, _, room @ ..]), Some(short)) = (room, vnet.first_chunk()) {
            *room = *short;
        }
        self.bytes
            .get(
                FRAME_START - header_bytes.min(FRAME_START)
                    ..FRAME_START + usize::from(self.frame_bytes),
            )
            .unwrap_or_default()
    }

    /// Makes this the frame that starts with `prefix` and goes on with `rest`; what does not fit is left out.
    pub fn compose(&mut self, prefix: &[u8], rest: &[u8]) {
        let mut at = FRAME_START;
        for part in [prefix, rest] {
            let len = part.len().min(self.bytes.len() - at);
            if let (Some(to), Some(from)) = (self.bytes.get_mut(at..at + len), part.get(..len)) {
                to.copy_from_slice(from);
            }
            at += len;
        }
        self.frame_bytes = (at - FRAME_START) as u16;
    }

    /// Edits the frame, of which `rest_bytes` are elsewhere; what becomes of a checksum that is not finished.
    ///
    /// # Errors
    /// See [`edit::apply`].
    #[inline]
    pub fn edit(
        &mut self,
        edits: &[Edit],
        rest_bytes: u32,
        partial_checksum: Option<PartialChecksum>,
    ) -> Result<Option<PartialChecksum>, DropReason> {
        let header_bytes = usize::from(self.frame_bytes);
        let mut frame = EditedFrame {
            buffer: self.bytes.get_mut(FRAME_START..).unwrap_or_default(),
            header_bytes,
            frame_bytes: header_bytes + rest_bytes as usize,
            partial_checksum,
        };
        edit::apply(edits, &mut frame)?;
        let partial_checksum = frame.partial_checksum;
        self.frame_bytes = frame.header_bytes as u16;
        Ok(partial_checksum)
    }
}

/// Where the bytes of a frame are that its private header does not hold.
#[derive(Clone, Copy, Debug)]
pub enum Rest {
    /// In the sender's memory, after the chain's first bytes.
    Chain {
        /// The chain.
        range: SegmentRange,
        /// Header bytes at its start.
        skip_bytes: u32,
    },
    /// In the batch's own buffer, from this byte on.
    Local {
        /// Index of the first byte.
        start: u32,
    },
}

/// A frame of a batch, beside its private header.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Name of its chain in the used ring; meaningless for a frame of another source.
    pub head: ChainHead,
    /// Length of the frame, without virtio-net header.
    pub len_bytes: u32,
    /// How many of them the private header does not hold.
    pub rest_bytes: u32,
    /// Where those are.
    pub rest: Rest,
    /// What its sender left to be done.
    pub offload: Offload,
    /// What the switch decided.
    pub verdict: Verdict,
}

impl Frame {
    const NONE: Self = Self {
        head: ChainHead { id: 0, places: 0 },
        len_bytes: 0,
        rest_bytes: 0,
        rest: Rest::Local { start: 0 },
        offload: Offload::NONE,
        verdict: Verdict::Drop(DropReason::FrameTooShort),
    };

    /// What it is decided on, its private start being `header`.
    #[inline(always)]
    pub fn info<'a>(&self, header: &'a PrivateHeader) -> FrameInfo<'a> {
        FrameInfo {
            header: header.frame(),
            frame_bytes: self.len_bytes,
            wire_bytes: self.offload.wire_bytes(self.len_bytes),
            partial_checksum: self.offload.partial_checksum(),
        }
    }

    /// The bytes that the private header does not hold.
    #[inline(always)]
    pub fn rest<'a>(&self, arena: &'a SegmentArena, local: &'a [u8]) -> PayloadCursor<'a> {
        let payload = match self.rest {
            _ if self.rest_bytes == 0 => Payload::EMPTY,
            Rest::Chain { range, skip_bytes } => Payload::Guest {
                chain: arena.chain(range),
                skip_bytes,
            },
            Rest::Local { start } => {
                let start = start as usize;
                let end = start + self.rest_bytes as usize;
                Payload::Local(local.get(start..end).unwrap_or_default())
            }
        };
        payload.cursor()
    }
}

/// Up to [`BATCH_FRAMES`] frames. Their places are there from the start and are filled field by field: a frame that is made
/// elsewhere and moved in stalls the processor, which cannot load at once what it has just stored in pieces.
#[derive(Debug)]
pub struct Frames {
    places: Box<[Frame; BATCH_FRAMES]>,
    len: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            places: Box::new([Frame::NONE; BATCH_FRAMES]),
            len: 0,
        }
    }
}

impl Frames {
    /// Makes it `len` frames, which are still what the places held before; all of them.
    pub fn refill(&mut self, len: usize) -> &mut [Frame] {
        self.len = len.min(BATCH_FRAMES);
        self.places.get_mut(..self.len).unwrap_or_default()
    }

    /// Adds a frame; without effect on a full batch.
    pub fn push(&mut self, frame: Frame) {
        if let Some(place) = self.places.get_mut(self.len) {
            *place = frame;
            self.len += 1;
        }
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

impl std::ops::Deref for Frames {
    type Target = [Frame];

    #[inline(always)]
    fn deref(&self) -> &[Frame] {
        self.places.get(..self.len).unwrap_or_default()
    }
}

/// A frame on its way out.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Its length.
    pub len_bytes: u32,
    /// Its private start.
    pub header: &'a mut PrivateHeader,
    /// The rest.
    pub payload: PayloadCursor<'a>,
    /// Length of the rest.
    pub payload_bytes: u32,
    /// What is left to be done.
    pub offload: Offload,
    /// How its header changes.
    pub edit: OutgoingEdit<'a>,
}

/// A [`HeaderEdit`], with the list it names.
#[derive(Clone, Copy, Debug)]
pub enum OutgoingEdit<'a> {
    /// In its outer VLAN tag at most.
    Vlan(VlanEdit),
    /// Like this.
    List(&'a EditList),
}

impl<'a> OutgoingEdit<'a> {
    /// What `edit` names; `None` when there is no such list.
    #[inline(always)]
    pub fn of(edit: HeaderEdit, outcomes: &'a Outcomes) -> Option<Self> {
        Some(match edit {
            HeaderEdit::Vlan(edit) => Self::Vlan(edit),
            HeaderEdit::List(id) => Self::List(outcomes.edit_list(id)?),
        })
    }
}

/// Up to [`BATCH_FRAMES`] frames of one source.
#[derive(Debug)]
pub struct Batch {
    /// Chains of the frames that are in guest memory.
    pub arena: SegmentArena,
    /// Private headers, by frame.
    pub headers: Box<[PrivateHeader; BATCH_FRAMES]>,
    /// The chains taken, in order; none for frames that came from elsewhere.
    pub chains: Vec<Chain>,
    /// The frames taken, in order.
    pub frames: Frames,
    /// Frames that came from a file descriptor, one after the other. Keeps its length between batches: growing it again would
    /// zero it again.
    pub local: Vec<u8>,
    /// How many bytes of `local` this batch's frames take.
    pub local_bytes: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            arena: SegmentArena::default(),
            headers: Box::new([PrivateHeader::EMPTY; BATCH_FRAMES]),
            chains: Vec::with_capacity(BATCH_FRAMES),
            frames: Frames::default(),
            local: Vec::new(),
            local_bytes: 0,
        }
    }
}

impl Batch {
    /// Room for the longest frame with its virtio-net header, behind the frames that are there.
    pub fn local_room(&mut self) -> &mut [u8] {
        let end = self.local_bytes + VNET_HEADER_BYTES + MAX_FRAME_BYTES;
        if self.local.len() < end {
            self.local.resize(end, 0);
        }
        self.local
            .get_mut(self.local_bytes..end)
            .unwrap_or_default()
    }

    /// A frame to be delivered with its header edited; `None` when there is no such frame or edit.
    pub fn outgoing<'a>(
        &'a mut self,
        parcel: Parcel,
        outcomes: &'a Outcomes,
    ) -> Option<Outgoing<'a>> {
        let edit = OutgoingEdit::of(parcel.edit, outcomes)?;
        let header = self.headers.get_mut(parcel.frame)?;
        let frame = self.frames.get(parcel.frame)?;
        let payload = frame.rest(&self.arena, &self.local);
        Some(Outgoing {
            len_bytes: frame.len_bytes,
            header,
            payload,
            payload_bytes: frame.rest_bytes,
            offload: frame.offload,
            edit,
        })
    }

    /// Writes the first bytes of a frame as it came; how many there were.
    pub fn read_start(&self, frame: usize, to: &mut [u8]) -> usize {
        let (Some(header), Some(frame)) = (self.headers.get(frame), self.frames.get(frame)) else {
            return 0;
        };
        let wanted = to.len().min(frame.len_bytes as usize);
        // What a refused frame's private header holds may be another frame's.
        let private = header.frame();
        let private = private.get(..wanted).unwrap_or(private);
        let Some((start, left)) = to
            .get_mut(..wanted)
            .and_then(|to| to.split_at_mut_checked(private.len()))
        else {
            return 0;
        };
        start.copy_from_slice(private);
        let read = if left.is_empty() {
            0
        } else {
            frame.rest(&self.arena, &self.local).read(left)
        };
        private.len() + read
    }

    /// The one port that all frames go to, if it is one.
    #[inline]
    pub fn lone_destination(&self) -> Option<PortId> {
        let to = |frame: &Frame| match frame.verdict {
            Verdict::Output { port, .. } => Some(port),
            _ => None,
        };
        let (first, rest) = self.frames.split_first()?;
        let port = to(first)?;
        rest.iter()
            .all(|frame| to(frame) == Some(port))
            .then_some(port)
    }

    /// Forgets its frames.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.chains.clear();
        self.arena.release();
        self.local_bytes = 0;
    }
}
