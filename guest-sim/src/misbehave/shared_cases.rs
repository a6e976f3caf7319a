//! What a guest must not do, whatever the format of its rings: with addresses, directions, tables, lengths and headers.
//!
//! Part of the tables in `chains`.

use super::chains::{Hostile, HostileChain, Piece, Stage, TABLE_BYTES, rx, tx};
use crate::error::Error;
use crate::frame::FrameBuilder;
use crate::frame::vnet_header::{GsoType, NEEDS_CSUM, VnetHeader};
use crate::ring::raw::{INDIRECT, NEXT, WRITE};

pub(super) fn cases<R: Hostile>() -> Vec<HostileChain<R>> {
    let mut all = addresses();
    all.extend(directions());
    all.extend(indirect_tables());
    all.extend(lengths());
    all.extend(headers());
    all.extend(receive());
    all
}

impl<R: Hostile> Stage<'_, R> {
    fn post_header(&self, header: VnetHeader) -> Result<(), Error> {
        self.post_frame_with(header, &FrameBuilder::tcp4(60_000))
    }

    fn post_frame_with(&self, header: VnetHeader, frame: &FrameBuilder) -> Result<(), Error> {
        let mut image = header.to_bytes().to_vec();
        image.extend_from_slice(&frame.build().bytes);
        self.buffer.slice(0, image.len())?.copy_from(&image);
        self.post(&[self.sized(image.len() as u32)])
    }
}

/// A header that asks for TCP segmentation as it should be for `FrameBuilder::tcp4`.
fn tso() -> VnetHeader {
    VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GsoType::Tcp4.code(),
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    }
}

fn addresses<R: Hostile>() -> Vec<HostileChain<R>> {
    vec![
        tx("an address outside memory", |s| {
            s.post(&[s.at(1 << 45, 100)])
        }),
        tx(
            "an address near 2^64, so that address and length wrap",
            |s| s.post(&[s.at(u64::MAX - 8, 4096)]),
        ),
        tx("an address of 2^64 - 1", |s| s.post(&[s.at(u64::MAX, 1)])),
        tx("an address just past a region", |s| {
            s.post(&[s.at(s.end_of_region, 100)])
        }),
        tx("a length past its region", |s| {
            s.post(&[s.at(s.end_of_region - 64, 128)])
        }),
        tx("a length of 2^32 - 1", |s| s.post(&[s.sized(u32::MAX)])),
        tx("a good header and data outside memory", |s| {
            s.post(&[s.sized(12), s.at(1 << 45, 1400)])
        }),
        tx("good headers and data past a region", |s| {
            s.post(&[s.good(), s.at(s.end_of_region - 8, 1400)])
        }),
        rx("a receive buffer outside memory", |s| {
            s.post(&[s.at(1 << 45, 2048)])
        }),
        rx("a receive buffer whose address and length wrap", |s| {
            s.post(&[s.at(u64::MAX - 8, 4096)])
        }),
        rx("a receive buffer past its region", |s| {
            s.post(&[s.at(s.end_of_region - 64, 2048)])
        }),
        rx("a receive buffer of 2^32 - 1 bytes", |s| {
            s.post(&[s.sized(u32::MAX)])
        }),
        rx(
            "a receive chain whose second buffer is outside memory",
            |s| s.post(&[s.sized(64), s.at(1 << 45, 2048)]),
        ),
    ]
}

fn directions<R: Hostile>() -> Vec<HostileChain<R>> {
    vec![
        tx("write-only where readable is due", |s| {
            s.post(&[s.flagged(WRITE)])
        }),
        tx("a write-only tail", |s| {
            s.post(&[s.good(), s.flagged(WRITE)])
        }),
        tx("readable behind write-only", |s| {
            s.post(&[s.flagged(WRITE), s.good()])
        }),
        tx("unknown flags", |s| s.post(&[s.flagged(0xfff8)])),
        rx("readable where write-only is due", |s| {
            s.post(&[s.flagged(0)])
        }),
        rx("a readable head", |s| {
            s.post(&[s.flagged(0), s.sized(2048)])
        }),
    ]
}

fn indirect_tables<R: Hostile>() -> Vec<HostileChain<R>> {
    vec![
        tx("an indirect table of 17 bytes", |s| {
            s.post_table(&[s.good()], 17, 0)
        }),
        tx("an indirect table of 15 bytes", |s| {
            s.post_table(&[s.good()], 15, 0)
        }),
        tx("an empty indirect table", |s| {
            s.post_table(&[s.good()], 0, 0)
        }),
        tx("an indirect table of 2^32 - 16 bytes", |s| {
            s.post_table(&[s.good()], u32::MAX - 15, 0)
        }),
        tx("an indirect table longer than the ring", |s| {
            let mut entries = vec![s.sized(16); TABLE_BYTES / 16 - 1];
            entries.push(s.good());
            s.post_table(&entries, TABLE_BYTES as u32, 0)
        }),
        tx("an indirect table inside an indirect table", |s| {
            s.post_table(&[s.table(32, 0), s.good()], 32, 0)
        }),
        tx("an indirect descriptor with a successor", |s| {
            s.post_table(&[s.good()], 16, NEXT)
        }),
        tx("an indirect descriptor that is write-only", |s| {
            s.post_table(&[s.good()], 16, WRITE)
        }),
        tx("an indirect descriptor behind a direct one", |s| {
            s.post(&[s.good(), s.table(32, 0)])
        }),
        tx("an indirect table outside memory", |s| {
            s.post(&[Piece {
                flags: INDIRECT,
                ..s.at(1 << 45, 32)
            }])
        }),
        tx("an indirect table past its region", |s| {
            s.post(&[Piece {
                flags: INDIRECT,
                ..s.at(s.end_of_region - 16, 64)
            }])
        }),
        tx("an indirect table at an odd address", |s| {
            s.post(&[Piece {
                flags: INDIRECT,
                ..s.at(s.table.guest_address() + 3, 32)
            }])
        }),
        rx("a receive table of 17 bytes", |s| {
            s.post_table(&[s.good()], 17, 0)
        }),
        rx("a receive table inside a receive table", |s| {
            s.post_table(&[s.table(32, 0)], 16, 0)
        }),
    ]
}

fn lengths<R: Hostile>() -> Vec<HostileChain<R>> {
    vec![
        tx("a chain of no bytes", |s| s.post(&[s.sized(0)])),
        tx("less than a header", |s| s.post(&[s.sized(5)])),
        tx("a header and no frame", |s| s.post(&[s.sized(12)])),
        tx("a frame of 13 bytes", |s| s.post(&[s.sized(25)])),
        tx("empty descriptors all over a frame", |s| {
            s.post(&[s.sized(0), s.good()])
        }),
        tx("a chain of many times 64 KiB", |s| {
            s.post(&vec![s.sized(1 << 16); usize::from(s.size())])
        }),
        tx("a chain whose lengths add up past 2^32", |s| {
            s.post(&[s.sized(u32::MAX), s.sized(u32::MAX)])
        }),
    ]
}

fn headers<R: Hostile>() -> Vec<HostileChain<R>> {
    vec![
        tx("a checksum past the frame", |s| {
            s.post_header(VnetHeader {
                csum_start: u16::MAX,
                ..tso()
            })
        }),
        tx("a checksum offset past the frame", |s| {
            s.post_header(VnetHeader {
                csum_offset: u16::MAX,
                ..tso()
            })
        }),
        tx("a checksum over the Ethernet header", |s| {
            s.post_header(VnetHeader {
                csum_start: 0,
                csum_offset: 0,
                ..tso()
            })
        }),
        tx("segments of 0 bytes", |s| {
            s.post_header(VnetHeader {
                gso_size: 0,
                ..tso()
            })
        }),
        tx("segments of 1 byte: 60,000 of them", |s| {
            s.post_header(VnetHeader {
                gso_size: 1,
                ..tso()
            })
        }),
        tx("a header length past the frame", |s| {
            s.post_header(VnetHeader {
                hdr_len: u16::MAX,
                ..tso()
            })
        }),
        tx("a segmentation type that does not exist", |s| {
            s.post_header(VnetHeader {
                gso_type: 0x7f,
                ..tso()
            })
        }),
        tx("segmentation without a checksum", |s| {
            s.post_header(VnetHeader { flags: 0, ..tso() })
        }),
        tx("IPv6 segmentation of an IPv4 frame", |s| {
            s.post_header(VnetHeader {
                gso_type: GsoType::Tcp6.code(),
                ..tso()
            })
        }),
        tx("TCP segmentation of a UDP frame", |s| {
            s.post_frame_with(tso(), &FrameBuilder::udp4(60_000))
        }),
        tx("segmentation of what is not IP", |s| {
            s.post_frame_with(tso(), &FrameBuilder::raw(0x88b5, 2000))
        }),
        tx("unknown header flags", |s| {
            s.post_header(VnetHeader {
                flags: 0xfe,
                ..tso()
            })
        }),
        tx("a frame cut off inside its IP header", |s| {
            s.post_frame_with(tso(), &FrameBuilder::tcp4(0).frame_bytes(20))
        }),
    ]
}

fn receive<R: Hostile>() -> Vec<HostileChain<R>> {
    vec![
        rx("a receive buffer of no bytes", |s| s.post(&[s.sized(0)])),
        rx("a receive buffer of 1 byte", |s| s.post(&[s.sized(1)])),
        rx("a receive buffer smaller than the header", |s| {
            s.post(&[s.sized(11)])
        }),
        rx("a receive buffer of just the header", |s| {
            s.post(&[s.sized(12)])
        }),
        rx("a receive buffer on top of the device area", |s| {
            s.post(&[s.at(s.ring.memory().used().guest_address(), 2048)])
        }),
        rx("a receive buffer on top of the driver area", |s| {
            s.post(&[s.at(s.ring.memory().avail().guest_address(), 2048)])
        }),
        rx("a receive buffer on top of the descriptors", |s| {
            s.post(&[s.at(s.ring.memory().descriptors().guest_address(), 2048)])
        }),
    ]
}
