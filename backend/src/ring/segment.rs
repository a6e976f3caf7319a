//! Descriptor chains as host memory, and the only functions that read or write what guests share with us.
//!
//! A worker owns one [`SegmentArena`] for the chains of the batch it has taken from a guest-tx ring and one for the
//! chains it fills on a guest-rx ring. An arena keeps the memory map of its chains alive for as long as it holds them, and
//! hands out segments only by reference, so that no host address outlives its mapping.
//!
//! The guest may change any byte at any moment. So nothing here makes a Rust reference to guest memory: bytes are copied,
//! with raw copies that tolerate a concurrent writer and an overlap of source and destination (a guest may point both
//! at the same page).

use super::chain::{Chain, ChainHead};
use super::copy::{copy, prefetch_read, prefetch_write};
use super::dirty_log::Marks;
use super::guest_memory::GuestMemory;
use std::ptr::NonNull;
use std::sync::Arc;

/// Segments an arena has room for, and so the most that one batch makes a worker walk: whatever shape a guest gives its
/// chains, its turn stays short. At least one chain of the longest kind fits.
pub const ARENA_SEGMENTS: usize = 4_096;

/// From the first byte of a short frame's buffer to its last: the shortest Ethernet frame and the header before it. A buffer
/// seldom starts with a cache line, so that is another line.
const SHORT_FRAME_BYTES: usize = 75;

/// A piece of one descriptor's buffer that is contiguous in this process.
#[derive(Debug)]
pub struct Segment {
    host: NonNull<u8>,
    len: u32,
}

impl Segment {
    /// The caller (a chain walk) has translated `len` bytes at `host` in the map that its arena holds.
    pub(super) fn new(host: NonNull<u8>, len: u32) -> Self {
        Self { host, len }
    }

    /// Asks the caches for the lines in which a short frame at its start is read, or written.
    #[inline(always)]
    pub(super) fn prefetch(&self, to_write: bool) {
        let start = self.host.as_ptr();
        let end = start.wrapping_add(SHORT_FRAME_BYTES);
        if to_write {
            prefetch_write(start);
            prefetch_write(end);
        } else {
            prefetch_read(start);
            prefetch_read(end);
        }
    }

    fn len_bytes(&self) -> u64 {
        self.len.into()
    }
}

/// Which segments of an arena make up one chain.
#[derive(Clone, Copy, Debug, Default)]
pub struct SegmentRange {
    /// Index of the first.
    pub start: u32,
    /// Index after the last.
    pub end: u32,
}

/// The chains of one batch. Its capacity is fixed: a guest cannot make it grow.
#[derive(Debug)]
pub struct SegmentArena {
    segments: Vec<Segment>,
    memory: Option<Arc<GuestMemory>>,
}

// SAFETY: the segments point into the shared mappings that `memory` keeps alive; access through them is by raw copies that
// allow for concurrent writers, on whichever thread owns the arena.
unsafe impl Send for SegmentArena {}

impl Default for SegmentArena {
    fn default() -> Self {
        Self {
            segments: Vec::with_capacity(ARENA_SEGMENTS),
            memory: None,
        }
    }
}

impl SegmentArena {
    /// Forgets all chains; their memory is kept for the next ones of the same ring.
    #[inline]
    pub fn clear(&mut self) {
        self.segments.clear();
    }

    /// Forgets all chains and lets go of their memory: once a batch, so that a VM that left is not kept mapped.
    pub fn release(&mut self) {
        self.segments.clear();
        self.memory = None;
    }

    /// Copies the first bytes of a chain into `out`; the number copied.
    #[inline(always)]
    pub fn read_start(&self, range: SegmentRange, out: &mut [u8]) -> usize {
        match self.chain(range) {
            [segment] if segment.len as usize >= out.len() => {
                // SAFETY: the segment is mapped for as long as the arena holds it and has as many bytes as `out`, which is ours.
                unsafe { copy(segment.host.as_ptr(), out.as_mut_ptr(), out.len()) };
                out.len()
            }
            chain => Payload::Guest {
                chain,
                skip_bytes: 0,
            }
            .cursor()
            .read(out),
        }
    }

    /// The segments of one chain.
    #[inline]
    pub fn chain(&self, range: SegmentRange) -> &[Segment] {
        self.segments
            .get(range.start as usize..range.end as usize)
            .unwrap_or_default()
    }

    /// How many segments are held.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether no chain is held.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Drops the segments after the first `len`: a chain that is given back.
    pub fn truncate(&mut self, len: usize) {
        self.segments.truncate(len);
    }

    /// Adds a segment; `false` when there is no room.
    #[inline]
    pub(super) fn push(&mut self, segment: Segment) -> bool {
        let len = self.segments.len();
        let room = len < ARENA_SEGMENTS;
        if room {
            // SAFETY: the vector was made with room for ARENA_SEGMENTS and never shrinks. Written out, because `push` asks about
            // its capacity once more for each frame.
            unsafe {
                self.segments.as_mut_ptr().add(len).write(segment);
                self.segments.set_len(len + 1);
            }
        }
        room
    }

    /// Adds up to `count` chains of one segment each, for as long as `next` has one and there is room.
    #[inline(always)]
    pub(super) fn push_lone(
        &mut self,
        chains: &mut Vec<Chain>,
        count: usize,
        mut next: impl FnMut() -> Option<(ChainHead, Segment)>,
    ) {
        let (first, first_chain) = (self.segments.len(), chains.len());
        let room = (ARENA_SEGMENTS - first).min(count);
        chains.reserve(room);
        let places = self.segments.spare_capacity_mut().iter_mut();
        let places = places.zip(chains.spare_capacity_mut()).take(room);
        let mut added = 0;
        for (segment_place, chain_place) in places {
            let Some((head, segment)) = next() else { break };
            let start = (first + added) as u32;
            chain_place.write(Chain {
                head,
                segments: SegmentRange {
                    start,
                    end: start + 1,
                },
                len_bytes: segment.len_bytes(),
            });
            segment_place.write(segment);
            added += 1;
        }
        // SAFETY: as many places as that were written just now, from the first free one on.
        unsafe {
            self.segments.set_len(first + added);
            chains.set_len(first_chain + added);
        }
    }

    /// Asks the caches for where a short frame in the chain that starts with segment `start` begins.
    pub(super) fn prefetch(&self, start: u32, to_write: bool) {
        if let Some(segment) = self.segments.get(start as usize) {
            segment.prefetch(to_write);
        }
    }

    /// Makes the arena keep `memory` alive. Chains of another map are forgotten: they could outlive it.
    #[inline]
    pub(super) fn hold(&mut self, memory: &Arc<GuestMemory>) {
        if !self
            .memory
            .as_ref()
            .is_some_and(|held| Arc::ptr_eq(held, memory))
        {
            self.segments.clear();
            self.memory = Some(Arc::clone(memory));
        }
    }
}

/// The bytes of a frame that were not copied to its private header: still in the sender's memory, or in a buffer of ours.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// A descriptor chain; the first `skip_bytes` of it are headers that were copied already.
    Guest {
        /// The whole chain.
        chain: &'a [Segment],
        /// Bytes at its start that do not belong to the payload.
        skip_bytes: u32,
    },
    /// A frame that came from a file descriptor or from the control thread.
    Local(&'a [u8]),
}

impl<'a> Payload<'a> {
    /// Nothing.
    pub const EMPTY: Self = Self::Local(&[]);

    /// A cursor at the payload's first byte.
    #[inline]
    pub fn cursor(&self) -> PayloadCursor<'a> {
        let mut cursor = match *self {
            Payload::Guest {
                chain,
                skip_bytes: _,
            } => PayloadCursor {
                chain,
                offset: 0,
                local: &[],
            },
            Payload::Local(local) => PayloadCursor {
                chain: &[],
                offset: 0,
                local,
            },
        };
        if let Payload::Guest { skip_bytes, .. } = *self {
            cursor.skip(skip_bytes as usize);
        }
        cursor
    }
}

/// A place in a payload, moving forward.
#[derive(Clone, Copy, Debug)]
pub struct PayloadCursor<'a> {
    /// What is left of the chain, from the segment the cursor is in.
    chain: &'a [Segment],
    /// Bytes consumed of the first segment.
    offset: u32,
    local: &'a [u8],
}

impl<'a> PayloadCursor<'a> {
    /// Moves forward by `bytes`, or to the end.
    pub fn skip(&mut self, bytes: usize) {
        self.consume(bytes, |_, _| {});
    }

    /// Copies into `out` as far as bytes are left; the number copied.
    #[inline(always)]
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        let mut done = 0;
        let len = out.len();
        self.consume(len, |host, bytes| {
            let Some(rest) = out.get_mut(done..done + bytes) else {
                return;
            };
            // SAFETY: `host` has `bytes` bytes mapped for as long as the arena holds them (see `consume`); `rest` is
            // exclusively ours and as long.
            unsafe { copy(host, rest.as_mut_ptr(), bytes) };
            done += bytes;
        });
        done
    }

    /// What is left, piece by piece, for vectored I/O.
    pub(super) fn iovecs(self) -> impl Iterator<Item = libc::iovec> + 'a {
        let local = (!self.local.is_empty()).then(|| libc::iovec {
            iov_base: self.local.as_ptr().cast_mut().cast(),
            iov_len: self.local.len(),
        });
        let mut offset = self.offset as usize;
        local
            .into_iter()
            .chain(self.chain.iter().map(move |segment| {
                let skip = std::mem::take(&mut offset);
                libc::iovec {
                    iov_base: segment.host.as_ptr().wrapping_add(skip).cast(),
                    iov_len: segment.len as usize - skip,
                }
            }))
    }

    /// Calls `take(address, bytes)` for each contiguous piece of the next `bytes` bytes.
    #[inline]
    fn consume(&mut self, mut bytes: usize, mut take: impl FnMut(*const u8, usize)) {
        if !self.local.is_empty() {
            let (now, later) = self.local.split_at(bytes.min(self.local.len()));
            take(now.as_ptr(), now.len());
            self.local = later;
            return;
        }
        while bytes > 0 {
            let Some((segment, rest)) = self.chain.split_first() else {
                return;
            };
            let left = (segment.len - self.offset) as usize;
            let now = left.min(bytes);
            // SAFETY: offset <= len, so the address is inside the segment or one past its end.
            take(
                unsafe { segment.host.as_ptr().add(self.offset as usize) },
                now,
            );
            bytes -= now;
            if now == left {
                self.chain = rest;
                self.offset = 0;
            } else {
                self.offset += now as u32;
            }
        }
    }
}

/// Writes forward through a chain of guest-rx buffers: the one way by which frame bytes reach a guest. What it wrote it marks when it is
/// dropped, so before the driver is shown the chain.
#[derive(Debug)]
pub struct ChainWriter<'a> {
    whole: &'a [Segment],
    /// What is left of it, from the segment in hand.
    chain: &'a [Segment],
    /// Bytes written of that segment.
    offset: u32,
    marks: &'a mut Marks,
}

impl<'a> ChainWriter<'a> {
    /// Starts at the chain's first byte. The segments come from device-writable descriptors of the ring that `marks` are of.
    pub fn new(chain: &'a [Segment], marks: &'a mut Marks) -> Self {
        Self {
            whole: chain,
            chain,
            offset: 0,
            marks,
        }
    }

    #[inline(never)]
    fn mark(&mut self) {
        let full = self.whole.len() - self.chain.len();
        for segment in self.whole.iter().take(full) {
            self.marks
                .wrote(segment.host.as_ptr(), segment.len as usize);
        }
        if let Some(segment) = self.chain.first() {
            self.marks
                .wrote(segment.host.as_ptr(), self.offset as usize);
        }
    }

    /// Writes all of `bytes`; the number that found room.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        self.put(bytes.as_ptr(), bytes.len())
    }

    /// Copies `bytes` bytes from `payload`; the number copied.
    #[inline]
    pub fn copy_from(&mut self, payload: &mut PayloadCursor<'_>, bytes: usize) -> usize {
        let mut copied = 0;
        payload.consume(bytes, |host, len| copied += self.put(host, len));
        copied
    }

    /// The only write of frame bytes to guest memory, but for [`Self::put_across`].
    #[inline(always)]
    fn put(&mut self, from: *const u8, bytes: usize) -> usize {
        match self.chain {
            [segment, ..] if bytes < (segment.len - self.offset) as usize => {
                // SAFETY: as in `put_across`.
                unsafe {
                    let to = segment.host.as_ptr().add(self.offset as usize);
                    copy(from, to, bytes);
                }
                self.offset += bytes as u32;
                bytes
            }
            _ => self.put_across(from, bytes),
        }
    }

    /// [`Self::put`] to the end of a segment, and beyond.
    #[inline(never)]
    fn put_across(&mut self, mut from: *const u8, bytes: usize) -> usize {
        let mut left = bytes;
        while left > 0 {
            let Some((segment, rest)) = self.chain.split_first() else {
                break;
            };
            let room = (segment.len - self.offset) as usize;
            let now = room.min(left);
            // SAFETY: `from` has `left` readable bytes (its callers pass a slice, or a piece that `consume` vouches for);
            // the segment is mapped writable for as long as its arena holds it and has `room` bytes after `offset`.
            // `copy` allows the two to overlap.
            unsafe {
                copy(from, segment.host.as_ptr().add(self.offset as usize), now);
                from = from.add(now);
            }
            left -= now;
            if now == room {
                self.chain = rest;
                self.offset = 0;
            } else {
                self.offset += now as u32;
            }
        }
        bytes - left
    }
}

impl Drop for ChainWriter<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.marks.are_on() {
            self.mark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(memory: &mut [u8], lengths: &[usize]) -> Vec<Segment> {
        let mut rest = memory;
        lengths
            .iter()
            .map(|&len| {
                let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
                rest = later;
                Segment::new(NonNull::new(now.as_mut_ptr()).unwrap(), len as u32)
            })
            .collect()
    }

    #[test]
    fn bytes_cross_between_chains_of_any_shape() {
        let original: Vec<u8> = (0..=255).collect();
        for (from, to) in [
            (&[256][..], &[256][..]),
            (&[1, 0, 13, 242], &[100, 100, 56]),
            (&[256], &[1, 255]),
        ] {
            let mut source = original.clone();
            let mut target = vec![0u8; 256];
            let source = segments(&mut source, from);
            let chain = segments(&mut target, to);
            let mut marks = Marks::default();
            let mut writer = ChainWriter::new(&chain, &mut marks);
            let mut header = [0u8; 20];
            let payload = Payload::Guest {
                chain: &source,
                skip_bytes: 0,
            };
            assert_eq!(payload.cursor().read(&mut header), 20);
            assert_eq!(writer.write(&header), 20);
            let mut rest = Payload::Guest {
                chain: &source,
                skip_bytes: 20,
            }
            .cursor();
            assert_eq!(writer.copy_from(&mut rest, 1000), 236);
            drop(writer);
            drop(chain);
            assert_eq!(target, original, "{from:?} -> {to:?}");
        }
    }

    #[test]
    fn a_writer_stops_at_the_chains_end() {
        let mut target = vec![0u8; 10];
        let chain = segments(&mut target, &[4, 6]);
        let mut marks = Marks::default();
        let mut writer = ChainWriter::new(&chain, &mut marks);
        assert_eq!(writer.write(&[7; 8]), 8);
        assert_eq!(
            writer.copy_from(&mut Payload::Local(&[9; 8]).cursor(), 8),
            2
        );
        drop(writer);
        drop(chain);
        assert_eq!(target, [7, 7, 7, 7, 7, 7, 7, 7, 9, 9]);
    }
}
