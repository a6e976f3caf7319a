//! Frames on their way to the peer, framed: those of a batch go with one system call, and what the peer does not take stays here.
//!
//! A worker that delivers to the port uses it with the port's outbound half locked. Kept true: the peer gets whole frames in order or
//! none of a frame, whatever part of a write its socket takes; the buffer never grows.

use super::framing::PREFIX_BYTES;
use crate::datapath::frame::MAX_FRAME_BYTES;
use crate::ring::segment::PayloadCursor;
use serde::{Deserialize, Serialize};
use std::io;

/// Of the buffer: some segments of 64 KiB, or a batch of jumbo frames.
pub const UNSENT_BUFFER_BYTES: usize = 256 * 1024;

const _: () = assert!(UNSENT_BUFFER_BYTES >= PREFIX_BYTES + MAX_FRAME_BYTES);

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// There is no room for it now.
    Full,
    /// Not all of its bytes can be read.
    Unreadable,
}

/// How much of the first frame that waits has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Bytes of it that have not, its prefix included; 0: nothing of it has gone.
    left_bytes: usize,
    /// Its length.
    frame_bytes: usize,
}

impl Begun {
    /// Nobody knows where frames begin in so many bytes: they count as one.
    pub fn unknown(bytes: usize) -> Self {
        Self {
            left_bytes: bytes,
            frame_bytes: 0,
        }
    }
}

/// What went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames of which the last byte did.
    pub frames: u64,
    /// Their bytes, without prefixes.
    pub bytes: u64,
}

/// Framed bytes that wait for the peer's socket.
#[derive(Debug)]
pub struct Unsent {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    begun: Begun,
}

impl Default for Unsent {
    fn default() -> Self {
        Self {
            // The kernel gives the pages once they are used: a port that never has much to send costs little.
            buffer: vec![0; UNSENT_BUFFER_BYTES],
            start: 0,
            end: 0,
            begun: Begun::default(),
        }
    }
}

impl Unsent {
    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// Whether a frame of so many bytes has room.
    pub fn has_room(&self, frame_bytes: usize) -> bool {
        UNSENT_BUFFER_BYTES - self.len() >= PREFIX_BYTES + frame_bytes
    }

    /// Adds a frame: `start` is its first bytes, `payload` the rest.
    ///
    /// # Errors
    /// See [`NotTaken`]; nothing of it was added.
    pub fn add(
        &mut self,
        start: &[u8],
        (mut payload, payload_bytes): (PayloadCursor<'_>, usize),
    ) -> Result<(), NotTaken> {
        let frame_bytes = start.len() + payload_bytes;
        if frame_bytes > MAX_FRAME_BYTES || !self.has_room(frame_bytes) {
            return Err(NotTaken::Full);
        }
        let framed_bytes = PREFIX_BYTES + frame_bytes;
        if self.buffer.len() - self.end < framed_bytes {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let room = self.buffer.get_mut(self.end..self.end + framed_bytes);
        let (prefix, frame) = room
            .and_then(|room| room.split_first_chunk_mut::<PREFIX_BYTES>())
            .ok_or(NotTaken::Full)?;
        *prefix = (frame_bytes as u32).to_be_bytes();
        let (first, rest) = frame
            .split_at_mut_checked(start.len())
            .ok_or(NotTaken::Full)?;
        first.copy_from_slice(start);
        if payload.read(rest) < rest.len() {
            return Err(NotTaken::Unreadable);
        }
        self.end += framed_bytes;
        Ok(())
    }

    /// Gives all that waits to `send`, which says how much of it went.
    ///
    /// # Errors
    /// Those of `send`.
    pub fn send(&mut self, send: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<Sent> {
        let mut sent = Sent::default();
        if !self.is_empty() {
            let bytes = send(self.bytes())?;
            sent = self.advance(bytes.min(self.len()));
        }
        if self.is_empty() {
            self.clear();
        }
        Ok(sent)
    }

    fn advance(&mut self, mut bytes: usize) -> Sent {
        let mut sent = Sent::default();
        while bytes > 0 {
            if self.begun.left_bytes == 0 {
                let prefix = self.bytes().first_chunk().copied().unwrap_or_default();
                let frame_bytes = u32::from_be_bytes(prefix) as usize;
                self.begun = Begun {
                    left_bytes: PREFIX_BYTES + frame_bytes,
                    frame_bytes,
                };
            }
            let step = bytes.min(self.begun.left_bytes);
            bytes -= step;
            self.start += step;
            self.begun.left_bytes -= step;
            if self.begun.left_bytes == 0 {
                sent.frames += 1;
                sent.bytes += self.begun.frame_bytes as u64;
            }
        }
        sent
    }

    /// What waits: whole frames, but for the first, which may have gone in part.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// How much of the first of them has.
    pub fn begun(&self) -> Begun {
        self.begun
    }

    /// Instead of what waits, these bytes, as far as they fit: what another process was about to send.
    pub fn refill(&mut self, bytes: &[u8], begun: Begun) {
        let end = bytes.len().min(self.buffer.len());
        if let (Some(to), Some(from)) = (self.buffer.get_mut(..end), bytes.get(..end)) {
            to.copy_from_slice(from);
        }
        (self.start, self.end) = (0, end);
        // Of a frame that has gone in part, or that is not there at all, no more is left than there is.
        let left_bytes = begun.left_bytes.min(end);
        self.begun = Begun {
            left_bytes,
            ..begun
        };
    }

    /// Forgets it: so many frames will never have gone as a whole.
    pub fn clear(&mut self) -> u64 {
        let lost = self.advance(self.len());
        (self.start, self.end, self.begun) = (0, 0, Begun::default());
        lost.frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::segment::Payload;
    use proptest::prelude::*;

    fn add(unsent: &mut Unsent, frame: &[u8]) -> Result<(), NotTaken> {
        let (start, rest) = frame.split_at(frame.len().min(20));
        unsent.add(start, (Payload::Local(rest).cursor(), rest.len()))
    }

    proptest! {
        /// A socket that takes as much as it likes of each write, frames that are added meanwhile, and those that found no room: the peer
        /// reads exactly those that were taken, in order.
        #[test]
        fn a_peer_reads_the_frames_that_were_taken(
            steps in prop::collection::vec((1..=MAX_FRAME_BYTES, any::<u8>(), 0..200_000usize), 1..40),
        ) {
            let (mut unsent, mut sent, mut expected) = (Unsent::default(), Vec::new(), Vec::new());
            let (mut counted, mut frames) = (Sent::default(), 0);
            let mut count = |more: Sent| {
                counted.frames += more.frames;
                counted.bytes += more.bytes;
                counted
            };
            for (frame_bytes, seed, room_bytes) in steps {
                let frame = vec![seed; frame_bytes];
                let fits = unsent.has_room(frame_bytes);
                prop_assert_eq!(add(&mut unsent, &frame).is_ok(), fits);
                if fits {
                    expected.extend((frame_bytes as u32).to_be_bytes());
                    expected.extend(frame);
                    frames += 1;
                }
                let mut take = |bytes: &[u8]| {
                    let taken = bytes.len().min(room_bytes);
                    sent.extend_from_slice(&bytes[..taken]);
                    Ok(taken)
                };
                let so_far = count(unsent.send(&mut take).unwrap());
                // What would be lost now, were it not for another that goes on.
                let mut next = Unsent::default();
                next.refill(unsent.bytes(), unsent.begun());
                let mut lost = Unsent::default();
                lost.refill(unsent.bytes(), unsent.begun());
                prop_assert_eq!(lost.clear() + so_far.frames, frames);
                unsent = next;
            }
            let all = count(unsent.send(|bytes| { sent.extend_from_slice(bytes); Ok(bytes.len()) }).unwrap());
            prop_assert!(unsent.is_empty());
            prop_assert!(sent == expected, "{} bytes instead of {}", sent.len(), expected.len());
            prop_assert_eq!(all.frames, frames);
            prop_assert_eq!(all.bytes as usize, expected.len() - frames as usize * PREFIX_BYTES);
        }
    }

    #[test]
    fn a_frame_whose_bytes_cannot_all_be_read_is_not_added() {
        let mut unsent = Unsent::default();
        let short = Payload::Local(&[1, 2, 3]).cursor();
        assert_eq!(unsent.add(&[0; 14], (short, 4)), Err(NotTaken::Unreadable));
        assert!(unsent.is_empty());
        assert_eq!(unsent.add(&[0; 14], (short, 3)), Ok(()));
    }
}
