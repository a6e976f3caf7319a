//! Captured frames as pcapng (draft-ietf-opsawg-pcapng): one section, one interface, which is the port.
//!
//! | block | of |
//! |---|---|
//! | Section Header (§4.1) | the start |
//! | Interface Description (§4.2) | the port: its name, the filter |
//! | Enhanced Packet (§4.3) | each frame: its direction, and in a comment what became of it |
//! | Interface Statistics (§4.6) | the end, and whenever frames were missed |
use crate::config::PortName;
use crate::control::PortId;
use crate::datapath::capture::lanes::Captured;
use crate::datapath::capture::{CaptureCounts, Direction, Fate};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;

/// Option codes: of all blocks, then of each (§3.5, §4).
mod option {
    pub const END: u16 = 0;
    pub const COMMENT: u16 = 1;
    pub const SECTION_APPLICATION: u16 = 4;
    pub const INTERFACE_NAME: u16 = 2;
    pub const INTERFACE_RESOLUTION: u16 = 9;
    pub const INTERFACE_FILTER: u16 = 11;
    pub const PACKET_FLAGS: u16 = 2;
    pub const PACKET_DROP_COUNT: u16 = 4;
    pub const STATISTICS_START: u16 = 2;
    pub const STATISTICS_END: u16 = 3;
    pub const STATISTICS_RECEIVED: u16 = 4;
    pub const STATISTICS_DROPPED: u16 = 5;
    pub const STATISTICS_ACCEPTED: u16 = 6;
}

/// Writes the blocks of one capture.
#[derive(Debug)]
pub struct Writer {
    /// What nobody has taken yet.
    waiting: Vec<u8>,
    /// Frames left to be written; none: as many as there are.
    left: Option<u64>,
    started_ns: u64,
    /// Frames that were missed, as far as was said in statistics, and as far as frames' own options say.
    missed: (u64, u64),
}

impl Writer {
    /// The start of a capture of `port` that ends after `count` frames.
    pub fn begin(
        port: &PortName,
        filter: Option<&str>,
        snap_bytes: u32,
        count: Option<u64>,
    ) -> Self {
        let mut writer = Self {
            waiting: Vec::new(),
            left: count,
            started_ns: now_ns(),
            missed: (0, 0),
        };
        writer.block(SECTION_HEADER, |body| {
            put(body, &0x1a2b_3c4d_u32.to_le_bytes());
            put(body, &1u16.to_le_bytes());
            put(body, &0u16.to_le_bytes());
            // The section's length is not known.
            put(body, &u64::MAX.to_le_bytes());
            let program = concat!("ringswitch ", env!("CARGO_PKG_VERSION"));
            put_option(body, option::SECTION_APPLICATION, program.as_bytes());
            put_option(body, option::END, &[]);
        });
        writer.block(INTERFACE_DESCRIPTION, |body| {
            put(body, &ETHERNET.to_le_bytes());
            put(body, &0u16.to_le_bytes());
            put(body, &snap_bytes.to_le_bytes());
            put_option(body, option::INTERFACE_NAME, port.as_str().as_bytes());
            // 10 to the -9 seconds.
            put_option(body, option::INTERFACE_RESOLUTION, &[9]);
            if let Some(filter) = filter {
                // Its first byte: it is a string.
                let text = [&[0], filter.as_bytes()].concat();
                put_option(body, option::INTERFACE_FILTER, &text);
            }
            put_option(body, option::END, &[]);
        });
        writer
    }

    /// A frame.
    pub fn frame(&mut self, captured: &Captured<'_>, names: &BTreeMap<PortId, PortName>) {
        let meta = &captured.meta;
        let comment = comment(meta.fate, names);
        let (said, known) = self.missed;
        self.missed.0 = known;
        self.left = self.left.map(|left| left.saturating_sub(1));
        self.block(ENHANCED_PACKET, |body| {
            put(body, &0u32.to_le_bytes());
            put_time(body, meta.at_ns);
            put(body, &(captured.bytes.len() as u32).to_le_bytes());
            put(body, &meta.frame_bytes.to_le_bytes());
            put(body, captured.bytes);
            pad(body);
            // §4.3.1: the two lowest bits are the direction.
            let flags: u32 = match meta.direction {
                Direction::In => 0b01,
                Direction::Out => 0b10,
            };
            put_option(body, option::PACKET_FLAGS, &flags.to_le_bytes());
            if known > said {
                let count = (known - said).to_le_bytes();
                put_option(body, option::PACKET_DROP_COUNT, &count);
            }
            put_option(body, option::COMMENT, comment.as_bytes());
            put_option(body, option::END, &[]);
        });
    }

    /// How many frames are missed so far: the next frame says it, and so do statistics if it has changed.
    pub fn statistics(&mut self, counts: CaptureCounts) {
        let (said, known) = self.missed;
        self.missed = (said, counts.missed);
        if counts.missed != known {
            self.write_statistics(counts);
        }
    }

    /// The last block.
    pub fn end(&mut self, counts: CaptureCounts) {
        self.write_statistics(counts);
    }

    fn write_statistics(&mut self, counts: CaptureCounts) {
        let (start, now) = (self.started_ns, now_ns());
        self.block(INTERFACE_STATISTICS, |body| {
            put(body, &0u32.to_le_bytes());
            put_time(body, now);
            for (code, at) in [
                (option::STATISTICS_START, start),
                (option::STATISTICS_END, now),
            ] {
                let mut time = Vec::with_capacity(8);
                put_time(&mut time, at);
                put_option(body, code, &time);
            }
            for (code, number) in [
                (option::STATISTICS_RECEIVED, counts.seen),
                (option::STATISTICS_DROPPED, counts.missed),
                (option::STATISTICS_ACCEPTED, counts.wanted),
            ] {
                put_option(body, code, &number.to_le_bytes());
            }
            put_option(body, option::END, &[]);
        });
    }

    /// Whether there are as many frames as were wanted.
    pub fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    /// How much was written and not taken.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.len()
    }

    /// Takes it: whole blocks.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.waiting)
    }

    /// A block (§3.1): type, length, body, length.
    fn block(&mut self, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.waiting.len();
        put(&mut self.waiting, &kind.to_le_bytes());
        put(&mut self.waiting, &[0; 4]);
        // Bodies are padded from here, which is a multiple of 4.
        body(&mut self.waiting);
        let length = (self.waiting.len() - start + 4) as u32;
        put(&mut self.waiting, &length.to_le_bytes());
        if let Some(first) = self.waiting.get_mut(start + 4..start + 8) {
            first.copy_from_slice(&length.to_le_bytes());
        }
    }
}

/// What became of a frame, in words.
fn comment(fate: Fate, names: &BTreeMap<PortId, PortName>) -> String {
    let name = |port: PortId| {
        let name = names.get(&port).map(PortName::to_string);
        name.unwrap_or_else(|| format!("port number {port}"))
    };
    match fate {
        Fate::Passed { from: Some(port) } => format!("from {}", name(port)),
        Fate::Passed { from: None } => "from the switch itself".to_owned(),
        Fate::Sent { to } => format!("to {}", name(to)),
        Fate::Flooded => "flooded".to_owned(),
        Fate::Copied { ports } => format!("to {ports} ports"),
        Fate::Punted { ports: 0 } => "to the switch itself".to_owned(),
        Fate::Punted { ports } => format!("to the switch itself and {ports} ports"),
        Fate::Dropped(reason) => format!("dropped: {reason}"),
    }
}

fn put(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend_from_slice(bytes);
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A time in units of the interface's resolution, high half first.
fn put_time(body: &mut Vec<u8>, at_ns: u64) {
    put(body, &((at_ns >> 32) as u32).to_le_bytes());
    put(body, &(at_ns as u32).to_le_bytes());
}

/// An option (§3.5): code, length without padding, value, padding.
fn put_option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    put(body, &code.to_le_bytes());
    put(body, &(value.len() as u16).to_le_bytes());
    put(body, value);
    pad(body);
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}
