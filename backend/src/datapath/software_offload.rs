//! What a sender left undone and a receiver did not ack: checksums finished and frames cut, in software; and what is put around each
//! frame that comes out of that.
//!
//! Called while a frame is being written to its guest. Works on the private header; payload bytes are read where they are, and a
//! sender that changes them meanwhile spoils nothing but its own checksum.

use super::frame::PrivateHeader;
use super::vnet_header::{Fit, GsoKind, PartialChecksum, Segmentation, UDP_CHECKSUM_OFFSET};
use crate::ring::segment::PayloadCursor;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use switch_core::DropReason;
use switch_core::checksum::Sum;
use switch_core::engine::edit::Edit;
use switch_core::parse::Headers;
use switch_core::segment::{Gso, SegmentPlan};

/// Even, so that sums of consecutive windows add up as they are.
const WINDOW_BYTES: usize = 4096;

/// A worker's working memory for this.
#[derive(Debug)]
pub struct SoftwareOffload {
    piece: PrivateHeader,
    /// A piece with something around it.
    enclosed: PrivateHeader,
    window: Box<[u8; WINDOW_BYTES]>,
    /// What the fragments of one datagram share. Workers start at different places: two of them may serve the same two guests.
    identification: u32,
}

impl Default for SoftwareOffload {
    fn default() -> Self {
        Self {
            piece: PrivateHeader::EMPTY,
            enclosed: PrivateHeader::EMPTY,
            window: Box::new([0; WINDOW_BYTES]),
            identification: RandomState::new().build_hasher().finish() as u32,
        }
    }
}

/// A frame: its private start and the rest.
#[derive(Clone, Copy, Debug)]
pub struct Whole<'a> {
    /// The private start.
    pub header: &'a [u8],
    /// The rest.
    pub payload: PayloadCursor<'a>,
    /// Length of the rest.
    pub payload_bytes: u32,
}

impl SoftwareOffload {
    /// Does what `fit` says is to be done here, and then applies the edits `around` to each frame that comes out; `place` gets each
    /// one's start, the rest of it, and the rest's length.
    ///
    /// # Errors
    /// Why it cannot be done, or the first error of `place`: pieces before that are on their way.
    pub fn finish<E: From<DropReason>>(
        &mut self,
        frame: Whole<'_>,
        fit: Fit,
        around: &[Edit],
        mut place: impl FnMut(&mut PrivateHeader, PayloadCursor<'_>, u32) -> Result<(), E>,
    ) -> Result<(), E> {
        let (payload, payload_bytes) = (frame.payload, frame.payload_bytes);
        match fit {
            Fit::Segment(segmentation) => return self.cut(frame, segmentation, around, place),
            Fit::Checksum(checksum) => {
                self.with_checksum(frame, checksum)?;
            }
            Fit::AsIs => self.piece.compose(frame.header, &[]),
        }
        let Self {
            piece, enclosed, ..
        } = self;
        let header = enclose(piece, payload_bytes, around, enclosed)?;
        place(header, payload, payload_bytes)
    }

    /// A copy of the frame's start with the checksum finished: the original may have receivers that finish it themselves.
    ///
    /// # Errors
    /// [`DropReason::HeadersTooLong`] when the checksum field is not in the private start.
    pub fn with_checksum(
        &mut self,
        frame: Whole<'_>,
        checksum: PartialChecksum,
    ) -> Result<&mut PrivateHeader, DropReason> {
        let start = usize::from(checksum.start);
        let covered = frame
            .header
            .get(start..)
            .ok_or(DropReason::HeadersTooLong)?;
        // The field holds the pseudo-header's sum already (VIRTIO 1.3 §5.1.6.2.1).
        let mut sum = Sum::of(covered);
        let mut payload = frame.payload;
        sum = sum.then(sum_payload(
            &mut payload,
            frame.payload_bytes as usize,
            &mut self.window,
        ));
        let value = if checksum.offset == UDP_CHECKSUM_OFFSET {
            sum.udp_checksum()
        } else {
            sum.checksum()
        };
        self.piece.compose(frame.header, &[]);
        put_checksum(
            self.piece.frame_mut(),
            start + usize::from(checksum.offset),
            value,
        )?;
        Ok(&mut self.piece)
    }

    /// Cuts the frame and applies the edits `around` to each piece; `place` gets its start, the rest of it, and the rest's length.
    ///
    /// # Errors
    /// Why it cannot be cut, or the first error of `place`: pieces before that are on their way.
    pub fn cut<E: From<DropReason>>(
        &mut self,
        frame: Whole<'_>,
        segmentation: Segmentation,
        around: &[Edit],
        mut place: impl FnMut(&mut PrivateHeader, PayloadCursor<'_>, u32) -> Result<(), E>,
    ) -> Result<(), E> {
        let frame_bytes = frame.header.len() + frame.payload_bytes as usize;
        let headers = Headers::parse(frame.header, frame_bytes)?;
        let gso = self.gso(segmentation);
        let plan = SegmentPlan::new(frame.header, &headers, gso, frame_bytes)?;
        // Where the next piece's payload starts: pieces come in order, so the chain is walked once.
        let mut at = (frame.header.len(), frame.payload);
        for index in 0..plan.count() {
            let mut segment = None;
            self.piece.write_frame(|room| {
                segment = plan.write(index, room);
                let Some(written) = &segment else { return 0 };
                written.header_bytes
                    + put_private(room, written.header_bytes, frame.header, &written.payload)
            });
            let segment = segment.ok_or(DropReason::HeadersTooLong)?;
            if let Some(pending) = &segment.checksum {
                let sum = self.sum_range(frame.header, at, &pending.covers);
                put_checksum(
                    self.piece.frame_mut(),
                    pending.position,
                    pending.finish(sum),
                )?;
            }
            let from = segment.payload.start.max(frame.header.len());
            let bytes = segment.payload.end.saturating_sub(from);
            at.1.skip(from.saturating_sub(at.0));
            let header = enclose(&mut self.piece, bytes as u32, around, &mut self.enclosed)?;
            place(header, at.1, bytes as u32)?;
            at.1.skip(bytes);
            at.0 = from + bytes;
        }
        Ok(())
    }

    fn gso(&mut self, segmentation: Segmentation) -> Gso {
        let segment_bytes = segmentation.segment_bytes;
        match segmentation.kind {
            GsoKind::Tcp4 => Gso::TcpV4 { segment_bytes },
            GsoKind::Tcp6 => Gso::TcpV6 { segment_bytes },
            GsoKind::Udp => {
                self.identification = self.identification.wrapping_add(1);
                Gso::Udp {
                    fragment_bytes: segment_bytes,
                    identification: self.identification,
                }
            }
        }
    }

    /// Sum of the frame's bytes in `range`, which starts in the private `header` or not before the cursor `at`.
    fn sum_range(
        &mut self,
        header: &[u8],
        at: (usize, PayloadCursor<'_>),
        range: &Range<usize>,
    ) -> Sum {
        let private = header
            .get(range.start.min(header.len())..range.end.min(header.len()))
            .unwrap_or_default();
        let from = range.start.max(header.len());
        let (position, mut payload) = at;
        payload.skip(from.saturating_sub(position));
        let rest = sum_payload(
            &mut payload,
            range.end.saturating_sub(from),
            &mut self.window,
        );
        Sum::of(private).then(rest)
    }
}

/// The piece with edits applied: in `enclosed` when there are some.
fn enclose<'a>(
    piece: &'a mut PrivateHeader,
    rest_bytes: u32,
    around: &[Edit],
    enclosed: &'a mut PrivateHeader,
) -> Result<&'a mut PrivateHeader, DropReason> {
    if around.is_empty() {
        return Ok(piece);
    }
    enclosed.compose(piece.frame(), &[]);
    enclosed.edit(around, rest_bytes, None)?;
    Ok(enclosed)
}

/// Appends to a piece's headers what of its payload is in the frame's private start; how many bytes that was.
fn put_private(room: &mut [u8], at: usize, header: &[u8], payload: &Range<usize>) -> usize {
    let end = payload.end.min(header.len());
    let private = header.get(payload.start.min(end)..end).unwrap_or_default();
    match room.get_mut(at..at + private.len()) {
        Some(to) => {
            to.copy_from_slice(private);
            private.len()
        }
        None => 0,
    }
}

fn put_checksum(frame: &mut [u8], at: usize, value: u16) -> Result<(), DropReason> {
    let field = frame
        .get_mut(at..at + 2)
        .ok_or(DropReason::HeadersTooLong)?;
    field.copy_from_slice(&value.to_be_bytes());
    Ok(())
}

fn sum_payload(
    payload: &mut PayloadCursor<'_>,
    mut bytes: usize,
    window: &mut [u8; WINDOW_BYTES],
) -> Sum {
    let mut sum = Sum::new();
    while bytes > 0 {
        let wanted = bytes.min(WINDOW_BYTES);
        let read = payload.read(window.get_mut(..wanted).unwrap_or_default());
        if read == 0 {
            break;
        }
        sum = sum.then(Sum::of(window.get(..read).unwrap_or_default()));
        bytes -= read;
    }
    sum
}
