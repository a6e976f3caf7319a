//! QEMU's framing of frames on a stream: 4 bytes of length, big-endian, then the frame, which carries no virtio-net header.
//!
//! Source: QEMU `net/stream.c` and `net/net.c` (`net_fill_rstate`); lengths are bounded by its `NET_BUFSIZE`, 4,096 + 65,536 bytes.
//! No I/O: a worker reads into the port's one buffer and asks here where frames lie in it. Kept true: whatever a peer sends, no
//! byte outside what it sent is looked at, and the buffer never grows.

use crate::datapath::frame::MAX_FRAME_BYTES;
use std::ops::Range;

/// Bytes of a frame's length before it.
pub const PREFIX_BYTES: usize = 4;
/// Of the buffer that a port's stream is read into: several frames a system call, and always room for the longest.
pub const READ_BUFFER_BYTES: usize = 128 * 1024;

const _: () = assert!(READ_BUFFER_BYTES >= PREFIX_BYTES + MAX_FRAME_BYTES);

/// A length that no frame has: the stream cannot be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it announced a frame of {0} bytes, and frames have 1 to {MAX_FRAME_BYTES}")]
pub struct BadLength(pub u32);

/// Where in a buffer the bytes are that were read of a stream and are not used up yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    start: usize,
    end: usize,
}

impl Unread {
    /// The next whole frame's place in `buffer`, which is used up by this; `None`: there is none yet.
    ///
    /// # Errors
    /// [`BadLength`], again and again.
    pub fn next(&mut self, buffer: &[u8]) -> Result<Option<Range<usize>>, BadLength> {
        let unread = buffer.get(self.start..self.end).unwrap_or_default();
        let Some((prefix, rest)) = unread.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let announced = u32::from_be_bytes(*prefix);
        let frame_bytes = announced as usize;
        if frame_bytes == 0 || frame_bytes > MAX_FRAME_BYTES {
            return Err(BadLength(announced));
        }
        if rest.len() < frame_bytes {
            return Ok(None);
        }
        let from = self.start + PREFIX_BYTES;
        self.start = from + frame_bytes;
        Ok(Some(from..self.start))
    }

    /// Room in `buffer` for more of the stream, for when there is no whole frame: what is left of the last read goes to the front.
    pub fn room<'a>(&mut self, buffer: &'a mut [u8]) -> &'a mut [u8] {
        if self.start > 0 {
            let end = self.end.min(buffer.len());
            buffer.copy_within(self.start.min(end)..end, 0);
            self.end = end - self.start.min(end);
            self.start = 0;
        }
        buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Notes that so many bytes were read into [`Self::room`].
    pub fn filled(&mut self, bytes: usize) {
        self.end += bytes;
    }

    /// The bytes themselves.
    pub fn bytes<'a>(&self, buffer: &'a [u8]) -> &'a [u8] {
        buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// These bytes in `buffer`, as far as they fit, as if they had been read.
    pub fn of(bytes: &[u8], buffer: &mut [u8]) -> Self {
        let end = bytes.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..end), bytes.get(..end)) {
            to.copy_from_slice(from);
        }
        Self { start: 0, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a stream that arrives in pieces of these sizes, over and over, as a worker does; its frames, and how it ended.
    fn read(stream: &[u8], pieces: &[usize]) -> (Vec<Vec<u8>>, Result<(), BadLength>) {
        let mut buffer = vec![0xee; READ_BUFFER_BYTES];
        let (mut unread, mut frames, mut rest) = (Unread::default(), Vec::new(), stream);
        let mut sizes = pieces.iter().cycle();
        loop {
            match unread.next(&buffer) {
                Ok(Some(place)) => frames.push(buffer[place].to_vec()),
                Ok(None) if rest.is_empty() => return (frames, Ok(())),
                Ok(None) => {
                    let room = unread.room(&mut buffer);
                    assert!(!room.is_empty());
                    let bytes = sizes
                        .next()
                        .unwrap()
                        .min(&room.len())
                        .min(&rest.len())
                        .to_owned();
                    room[..bytes].copy_from_slice(&rest[..bytes]);
                    unread.filled(bytes);
                    rest = &rest[bytes..];
                }
                Err(error) => {
                    assert_eq!(unread.next(&buffer), Err(error), "it stays so");
                    return (frames, Err(error));
                }
            }
        }
    }

    fn stream_of(frames: &[Vec<u8>]) -> Vec<u8> {
        let framed = frames.iter().map(|frame| {
            let prefix = u32::try_from(frame.len()).unwrap().to_be_bytes();
            [prefix.as_slice(), frame].concat()
        });
        framed.collect::<Vec<_>>().concat()
    }

    fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let length = prop_oneof![
            8 => 1..200usize,
            3 => 1400..9100usize,
            1 => MAX_FRAME_BYTES - 2..=MAX_FRAME_BYTES,
        ];
        let frame = (length, any::<u8>()).prop_map(|(length, seed)| {
            let bytes = (0..length).map(|at| (at as u8).wrapping_mul(31) ^ seed);
            bytes.collect::<Vec<u8>>()
        });
        prop::collection::vec(frame, 0..20)
    }

    proptest! {
        #[test]
        fn a_stream_cut_anywhere_gives_the_same_frames(
            frames in frames(),
            pieces in prop::collection::vec(1..70_000usize, 1..8),
        ) {
            prop_assert_eq!(read(&stream_of(&frames), &pieces), (frames, Ok(())));
        }

        #[test]
        fn a_stream_byte_by_byte_gives_the_same_frames(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..90), 0..9)) {
            prop_assert_eq!(read(&stream_of(&frames), &[1]), (frames, Ok(())));
        }

        #[test]
        fn a_length_that_cannot_be_ends_the_stream_behind_the_frames_before_it(
            frames in frames(),
            announced in prop_oneof![Just(0u32), MAX_FRAME_BYTES as u32 + 1..=u32::MAX],
            rest in prop::collection::vec(any::<u8>(), 0..50),
            pieces in prop::collection::vec(1..70_000usize, 1..4),
        ) {
            let stream = [stream_of(&frames), announced.to_be_bytes().to_vec(), rest].concat();
            prop_assert_eq!(read(&stream, &pieces), (frames, Err(BadLength(announced))));
        }

        #[test]
        fn whatever_comes_is_frames_or_an_error(
            stream in prop::collection::vec(any::<u8>(), 0..5000),
            pieces in prop::collection::vec(1..900usize, 1..4),
        ) {
            let (frames, _) = read(&stream, &pieces);
            let framed = stream_of(&frames);
            prop_assert!(stream.starts_with(&framed));
        }
    }

    #[test]
    fn a_half_frame_waits_for_the_rest() {
        let (frames, end) = read(&[0, 0, 0, 9, 1, 2, 3], &[100]);
        assert_eq!((frames.len(), end), (0, Ok(())));
    }
}
