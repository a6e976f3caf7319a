//! The daemon's pcapng (draft-ietf-opsawg-pcapng, little-endian) block by block, as it arrives.
use std::io;

/// Longest block: the longest frame with all that is said of it is far shorter.
const MAX_BLOCK_BYTES: usize = 1 << 20;

const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

/// Bytes that arrived, and what of them was read.
#[derive(Debug, Default)]
pub struct Blocks {
    bytes: Vec<u8>,
    at: usize,
    missed: u64,
}

/// What matters of a block here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// A frame.
    Frame(SeenFrame),
    /// What was counted so far.
    Statistics {
        /// Frames that are not captured.
        missed: u64,
    },
    /// Anything else.
    Other,
}

/// A frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenFrame {
    /// Nanoseconds since 1970.
    pub at_ns: u64,
    /// `in` or `out`, seen from the switch.
    pub direction: &'static str,
    /// What became of it.
    pub comment: String,
    /// Its length.
    pub frame_bytes: u32,
    /// Its first bytes.
    pub bytes: Vec<u8>,
    /// Frames that are not captured, of those before it.
    pub missed_so_far: u64,
}

impl Blocks {
    /// Takes more of the stream.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole block, as it is and as it reads.
    ///
    /// # Errors
    /// It is no pcapng.
    pub fn next(&mut self) -> io::Result<Option<(Vec<u8>, Block)>> {
        let waiting = self.bytes.get(self.at..).unwrap_or_default();
        let (Some(kind), Some(length)) = (number(waiting, 0), number(waiting, 4)) else {
            return Ok(None);
        };
        let length = length as usize;
        if !(12..=MAX_BLOCK_BYTES).contains(&length) || !length.is_multiple_of(4) {
            let what = format!("a block of {length} bytes is none");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let Some(block) = waiting.get(..length) else {
            return Ok(None);
        };
        let block = block.to_vec();
        self.at += length;
        let body = block.get(8..length - 4).unwrap_or_default();
        let read = match kind {
            ENHANCED_PACKET => self.frame(body),
            INTERFACE_STATISTICS => self.statistics(body),
            _ => Some(Block::Other),
        };
        let read = read.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "a block ends in its middle")
        })?;
        Ok(Some((block, read)))
    }

    fn frame(&mut self, body: &[u8]) -> Option<Block> {
        let at_ns = time(body, 4)?;
        let captured = number(body, 12)? as usize;
        let frame_bytes = number(body, 16)?;
        let bytes = body.get(20..)?.get(..captured)?.to_vec();
        let mut frame = SeenFrame {
            at_ns,
            frame_bytes,
            bytes,
            ..SeenFrame::default()
        };
        for (code, value) in options(body, 20 + captured.next_multiple_of(4)) {
            match code {
                1 => frame.comment = String::from_utf8_lossy(value).into_owned(),
                2 => frame.direction = direction(number(value, 0)?),
                4 => self.missed = self.missed.saturating_add(long(value)?),
                _ => {}
            }
        }
        frame.missed_so_far = self.missed;
        Some(Block::Frame(frame))
    }

    fn statistics(&mut self, body: &[u8]) -> Option<Block> {
        let mut missed = 0;
        for (code, value) in options(body, 12) {
            if code == 5 {
                missed = long(value)?;
            }
        }
        Some(Block::Statistics { missed })
    }
}

fn direction(flags: u32) -> &'static str {
    match flags & 0b11 {
        0b01 => "in",
        0b10 => "out",
        _ => "-",
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*four))
}

fn long(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.first_chunk()?))
}

/// High half first.
fn time(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(number(bytes, at)?) << 32 | u64::from(number(bytes, at + 4)?))
}

/// The options from `at` on.
fn options(body: &[u8], at: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(at..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (head, after) = rest.split_first_chunk::<4>()?;
        let [c0, c1, l0, l1] = *head;
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        let value = after.get(..length)?;
        rest = after.get(length.next_multiple_of(4)..)?;
        Some((u16::from_le_bytes([c0, c1]), value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame of three bytes, dropped behind two that were missed.
    fn frame() -> Vec<u8> {
        let mut block = 6u32.to_le_bytes().to_vec();
        block.extend([0; 8]);
        block.extend([1, 0, 0, 0, 2, 0, 0, 0]);
        block.extend([3, 0, 0, 0, 60, 0, 0, 0]);
        block.extend([7, 8, 9, 0]);
        block.extend([2, 0, 4, 0, 2, 0, 0, 0]);
        block.extend([4, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        block.extend([1, 0, 2, 0, b'h', b'i', 0, 0]);
        block.extend([0; 4]);
        let length = (block.len() + 4) as u32;
        block.extend(length.to_le_bytes());
        block[4..8].copy_from_slice(&length.to_le_bytes());
        block
    }

    #[test]
    fn a_frame_reads_the_same_however_it_arrives() {
        let block = frame();
        for cut in 0..block.len() {
            let mut blocks = Blocks::default();
            blocks.add(&block[..cut]);
            assert_eq!(blocks.next().unwrap(), None, "{cut}");
            blocks.add(&block[cut..]);
            let (bytes, read) = blocks.next().unwrap().unwrap();
            assert_eq!(bytes, block);
            let expected = SeenFrame {
                at_ns: (1 << 32) + 2,
                direction: "out",
                comment: "hi".into(),
                frame_bytes: 60,
                bytes: vec![7, 8, 9],
                missed_so_far: 2,
            };
            assert_eq!(read, Block::Frame(expected));
        }
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_an_error_at_worst(
            change in 0usize..72, value in any::<u8>(), more in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            let mut bytes = frame();
            let change = change % bytes.len();
            bytes[change] = value;
            bytes.extend(more);
            let mut blocks = Blocks::default();
            blocks.add(&bytes);
            while let Ok(Some(_)) = blocks.next() {}
        }
    }
}
