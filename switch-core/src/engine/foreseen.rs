//! What is found out about frames before they are decided on: their keys, and which flows they most likely are of.

use super::cache::{FlowKey, FlowRef};
use super::compile::Compiled;
use super::layout::Layout;
use super::packet::PACKET_BYTES;
use super::parse::{Input, Origin, ParseError, parse};
use super::paths::Paths;
use crate::decide::FrameInfo;
use crate::port::PortId;

/// Frames that are foreseen at most: a worker's batch.
const MOST_FORESEEN: usize = 64;

/// Frames that will be decided on in this batch.
pub(super) struct Foreseen {
    pub(super) in_port: Option<PortId>,
    pub(super) frames: Vec<ForeseenFrame>,
    /// How many of them are of this batch, and which is the next.
    pub(super) end: usize,
    pub(super) next: usize,
    /// What became of reading ahead: it means nothing, but that somebody has read.
    pub(super) touched: u64,
}

pub(super) struct ForeseenFrame {
    /// Where its start is, and how long that is: what tells that it is the one.
    pub(super) start: (usize, usize),
    pub(super) is_known: bool,
    pub(super) key: FlowKey,
    pub(super) flow: Option<FlowRef>,
}

impl ForeseenFrame {
    pub(super) fn start(bytes: &[u8]) -> (usize, usize) {
        (bytes.as_ptr().addr(), bytes.len())
    }
}

impl Foreseen {
    pub(super) fn new() -> Self {
        let nothing = || ForeseenFrame {
            start: (0, 0),
            is_known: false,
            key: FlowKey::new(0, &[]),
            flow: None,
        };
        Self {
            in_port: None,
            frames: std::iter::repeat_with(nothing)
                .take(MOST_FORESEEN)
                .collect(),
            end: 0,
            next: 0,
            touched: 0,
        }
    }

    /// What was found out about this frame, if it is the next that was foreseen.
    #[inline]
    pub(super) fn take(&mut self, in_port: PortId, bytes: &[u8]) -> Option<&ForeseenFrame> {
        let frame = self.frames.get(..self.end)?.get(self.next)?;
        self.next += 1;
        let is_it = Some(in_port) == self.in_port && frame.start == ForeseenFrame::start(bytes);
        (is_it && frame.is_known).then_some(frame)
    }
}

/// Finds out which headers frames have.
pub(super) struct Reader {
    pub(super) paths: Paths,
    pub(super) layout: Layout,
}

impl Reader {
    /// Reads a frame's key; or says how the parse ended that took a path which is not known.
    #[inline]
    pub(super) fn read(
        &mut self,
        program: &Compiled,
        (in_port, bytes, frame_bytes): (PortId, &[u8], u32),
        key: &mut FlowKey,
    ) -> Result<(), ParseError> {
        let frame = (in_port, bytes, frame_bytes);
        let likely = (self.paths).likely(in_port.get(), (bytes, frame_bytes), key);
        if likely.is_none() {
            self.parse_whole(program, frame, key)?;
        }
        debug_assert_eq!(
            self.parse_whole(program, frame, &mut key.clone()),
            Ok(key.path)
        );
        Ok(())
    }

    #[inline(never)]
    fn parse_whole(
        &mut self,
        program: &Compiled,
        (in_port, bytes, frame_bytes): (PortId, &[u8], u32),
        key: &mut FlowKey,
    ) -> Result<u16, ParseError> {
        self.layout.clear();
        let mut walk = self.paths.walk();
        let input = as_it_came(bytes, frame_bytes);
        let error = parse(program, input, &mut self.layout, &mut walk);
        let path = self.paths.known(walk, error).ok_or(error)?;
        path.read(in_port.get(), bytes, key);
        let path = path.number;
        self.paths.expect(in_port.get(), path);
        Ok(path)
    }
}

/// The part of a frame that programs can look at.
#[inline]
pub(super) fn start_of<'a>(frame: &FrameInfo<'a>) -> &'a [u8] {
    frame.header.get(..PACKET_BYTES).unwrap_or(frame.header)
}

/// What a first parse reads.
#[inline]
pub(super) fn as_it_came(bytes: &[u8], frame_bytes: u32) -> Input<'_> {
    Input {
        bytes,
        frame_bytes: frame_bytes as usize,
        origin: Origin::AsItCame,
    }
}
