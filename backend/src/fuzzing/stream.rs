//! A stream port's peer that sends anything: the first byte says in what pieces it arrives, the rest is the stream.
//!
//! Kept true: frames are what lies between their lengths, in order, and the reader stops where a length cannot be.

use crate::port::stream::framing::{BadLength, READ_BUFFER_BYTES, Unread};

/// Runs one input.
///
/// # Panics
/// When the frames are not what the bytes say: that is what fuzzing is to find.
pub fn run(input: &[u8]) {
    let Some((first, stream)) = input.split_first() else {
        return;
    };
    let piece_bytes = usize::from(*first).max(1);
    let whole = read(stream, READ_BUFFER_BYTES);
    assert!(
        read(stream, piece_bytes) == whole,
        "it matters how a stream arrives"
    );
    let framed = whole.0.iter().flat_map(|frame| {
        let prefix = (frame.len() as u32).to_be_bytes();
        prefix.into_iter().chain(frame.iter().copied())
    });
    assert!(
        framed.eq(stream.iter().copied().take(whole.1)),
        "frames are not what was sent"
    );
}

/// Frames of a stream that arrives in such pieces, how many bytes they took, and why it ended.
fn read(stream: &[u8], piece_bytes: usize) -> (Vec<Vec<u8>>, usize, Option<BadLength>) {
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut unread = Unread::default();
    let (mut frames, mut used, mut rest) = (Vec::new(), 0, stream);
    loop {
        match unread.next(&buffer) {
            Ok(Some(place)) => {
                let frame = buffer.get(place).unwrap_or_default();
                used += 4 + frame.len();
                frames.push(frame.to_vec());
            }
            Ok(None) if rest.is_empty() => return (frames, used, None),
            Ok(None) => {
                let room = unread.room(&mut buffer);
                let bytes = piece_bytes.min(room.len()).min(rest.len());
                assert!(bytes > 0, "no room");
                let (piece, later) = rest.split_at(bytes);
                room.iter_mut()
                    .zip(piece)
                    .for_each(|(to, from)| *to = *from);
                unread.filled(bytes);
                rest = later;
            }
            Err(error) => return (frames, used, Some(error)),
        }
    }
}
