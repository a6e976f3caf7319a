//! What a guest can put into its rings that it must not.
//!
//! Walked through by tests on a raw ring that no well-behaved driver uses at the same time. Keeps true: each case leaves the ring with at
//! least one chain made available and kicked.

use crate::error::Error;
use crate::frame::FrameBuilder;
use crate::frame::vnet_header::{GsoType, NEEDS_CSUM, VnetHeader};
use crate::memory::{Block, GuestMemory};
use crate::ring::raw::{Descriptor, INDIRECT, NEXT, RawRing, WRITE};

/// For which ring a case is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A guest-tx ring: the device reads.
    GuestTx,
    /// A guest-rx ring: the device writes; what happens, happens when a frame for this guest arrives.
    GuestRx,
}

/// One thing a guest must not do.
#[derive(Clone, Copy)]
pub struct HostileChain {
    /// What is wrong.
    pub name: &'static str,
    /// On which ring.
    pub side: Side,
    act: fn(&Stage<'_>) -> Result<(), Error>,
}

impl std::fmt::Debug for HostileChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.side, self.name)
    }
}

impl HostileChain {
    /// Does it: writes the ring and kicks. The memory it uses stays allocated as long as `memory`.
    ///
    /// # Errors
    /// When guest memory has no room.
    pub fn play(&self, ring: &RawRing, memory: &GuestMemory) -> Result<(), Error> {
        let stage = Stage::new(ring, memory, self.side)?;
        (self.act)(&stage)?;
        let kicked = ring.kick();
        // The device may look at the buffers at any later time.
        std::mem::forget(stage.buffer);
        std::mem::forget(stage.table);
        kicked
    }
}

/// A ring, a good buffer that holds a good frame with its header, and room for an indirect table.
struct Stage<'a> {
    ring: &'a RawRing,
    buffer: Block,
    table: Block,
    /// WRITE on a guest-rx ring.
    direction: u16,
    frame_bytes: u32,
    end_of_region: u64,
}

const TABLE_BYTES: usize = 1 << 14;

impl<'a> Stage<'a> {
    fn new(ring: &'a RawRing, memory: &GuestMemory, side: Side) -> Result<Self, Error> {
        let buffer = memory.allocate(0, 1 << 16, 4096)?;
        let table = memory.allocate(0, TABLE_BYTES, 16)?;
        let frame = FrameBuilder::udp4(100).build();
        let mut image = frame.header.to_bytes().to_vec();
        image.extend_from_slice(&frame.bytes);
        buffer.slice(0, image.len())?.copy_from(&image);
        let layout = buffer.region().layout();
        let end_of_region = layout.guest_base + layout.size_bytes;
        let direction = if side == Side::GuestRx { WRITE } else { 0 };
        Ok(Self {
            ring,
            buffer,
            table,
            direction,
            frame_bytes: image.len() as u32,
            end_of_region,
        })
    }

    fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The good descriptor, in the direction that is due.
    fn good(&self) -> Descriptor {
        Descriptor {
            address: self.buffer.guest_address(),
            len: self.frame_bytes,
            flags: self.direction,
            next: 0,
        }
    }

    fn at(&self, address: u64, len: u32) -> Descriptor {
        Descriptor {
            address,
            len,
            ..self.good()
        }
    }

    fn chained(&self, next: u16) -> Descriptor {
        let good = self.good();
        Descriptor {
            flags: good.flags | NEXT,
            next,
            ..good
        }
    }

    fn post(&self, descriptors: &[Descriptor]) -> Result<(), Error> {
        self.ring.post(0, descriptors)
    }

    /// One good chain in each slot, then the index moved as told.
    fn jump(&self, by: u16) -> Result<(), Error> {
        self.ring.set_descriptor(0, self.good())?;
        for slot in 0..self.size() {
            self.ring.set_avail_entry(slot, 0)?;
        }
        let index = self.ring.avail_index()?;
        self.ring.set_avail_index(index.wrapping_add(by))
    }

    fn post_head(&self, head: u16) -> Result<(), Error> {
        self.ring.set_descriptor(0, self.good())?;
        let index = self.ring.avail_index()?;
        self.ring.set_avail_entry(index, head)?;
        self.ring.set_avail_index(index.wrapping_add(1))
    }

    fn post_table(&self, entries: &[Descriptor], len: u32, flags: u16) -> Result<(), Error> {
        for (at, entry) in entries.iter().enumerate() {
            self.table.slice(16 * at, 16)?.copy_from(&entry.to_bytes());
        }
        let address = self.table.guest_address();
        self.post(&[Descriptor {
            address,
            len,
            flags: INDIRECT | flags,
            next: 1,
        }])
    }

    fn post_header(&self, header: VnetHeader) -> Result<(), Error> {
        self.post_frame_with(header, &FrameBuilder::tcp4(60_000))
    }

    fn post_frame_with(&self, header: VnetHeader, frame: &FrameBuilder) -> Result<(), Error> {
        let mut image = header.to_bytes().to_vec();
        image.extend_from_slice(&frame.build().bytes);
        self.buffer.slice(0, image.len())?.copy_from(&image);
        self.post(&[self.at(self.buffer.guest_address(), image.len() as u32)])
    }
}

const fn tx(name: &'static str, act: fn(&Stage<'_>) -> Result<(), Error>) -> HostileChain {
    HostileChain {
        name,
        side: Side::GuestTx,
        act,
    }
}

const fn rx(name: &'static str, act: fn(&Stage<'_>) -> Result<(), Error>) -> HostileChain {
    HostileChain {
        name,
        side: Side::GuestRx,
        act,
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

/// Everything a guest must not do with a chain, an index or a header.
pub fn chains() -> Vec<HostileChain> {
    [
        LOOPS_AND_LINKS,
        ADDRESSES,
        DIRECTIONS,
        INDIRECT_TABLES,
        INDICES,
        LENGTHS,
        HEADERS,
        RECEIVE,
    ]
    .concat()
}

const LOOPS_AND_LINKS: &[HostileChain] = &[
    tx("a descriptor that is its own successor", |s| {
        s.post(&[s.chained(0)])
    }),
    tx("two descriptors that follow each other", |s| {
        s.post(&[s.chained(1), s.chained(0)])
    }),
    tx("a loop behind a good start", |s| {
        s.post(&[s.chained(1), s.chained(2), s.chained(1)])
    }),
    tx("a successor just past the table", |s| {
        s.post(&[s.chained(s.size())])
    }),
    tx("a successor of 65,535", |s| s.post(&[s.chained(u16::MAX)])),
    tx("unknown flags", |s| {
        s.post(&[Descriptor {
            flags: 0xfff8,
            ..s.good()
        }])
    }),
    rx("a receive chain that loops", |s| s.post(&[s.chained(0)])),
    rx("a receive successor past the table", |s| {
        s.post(&[s.chained(s.size())])
    }),
];

const ADDRESSES: &[HostileChain] = &[
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
    tx("a length of 2^32 - 1", |s| {
        s.post(&[s.at(s.buffer.guest_address(), u32::MAX)])
    }),
    tx("a good header and data outside memory", |s| {
        s.post(&[
            Descriptor {
                len: 12,
                ..s.chained(1)
            },
            s.at(1 << 45, 1400),
        ])
    }),
    tx("good headers and data past a region", |s| {
        s.post(&[s.chained(1), s.at(s.end_of_region - 8, 1400)])
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
        s.post(&[s.at(s.buffer.guest_address(), u32::MAX)])
    }),
    rx(
        "a receive chain whose second buffer is outside memory",
        |s| {
            s.post(&[
                Descriptor {
                    len: 64,
                    ..s.chained(1)
                },
                s.at(1 << 45, 2048),
            ])
        },
    ),
];

const DIRECTIONS: &[HostileChain] = &[
    tx("write-only where readable is due", |s| {
        s.post(&[Descriptor {
            flags: WRITE,
            ..s.good()
        }])
    }),
    tx("a write-only tail", |s| {
        s.post(&[
            s.chained(1),
            Descriptor {
                flags: WRITE,
                ..s.good()
            },
        ])
    }),
    tx("readable behind write-only", |s| {
        s.post(&[
            Descriptor {
                flags: WRITE | NEXT,
                next: 1,
                ..s.good()
            },
            s.good(),
        ])
    }),
    rx("readable where write-only is due", |s| {
        s.post(&[Descriptor {
            flags: 0,
            ..s.good()
        }])
    }),
    rx("a readable head", |s| {
        s.post(&[
            Descriptor {
                flags: NEXT,
                next: 1,
                ..s.good()
            },
            s.at(s.buffer.guest_address(), 2048),
        ])
    }),
];

const INDIRECT_TABLES: &[HostileChain] = &[
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
        let count = (TABLE_BYTES / 16) as u16;
        let mut entries: Vec<_> = (1..count)
            .map(|next| Descriptor {
                len: 16,
                ..s.chained(next)
            })
            .collect();
        entries.push(s.good());
        s.post_table(&entries, TABLE_BYTES as u32, 0)
    }),
    tx("an indirect table inside an indirect table", |s| {
        let inner = Descriptor {
            address: s.table.guest_address(),
            len: 32,
            flags: INDIRECT,
            next: 0,
        };
        s.post_table(&[inner, s.good()], 32, 0)
    }),
    tx("an indirect descriptor with a successor", |s| {
        s.post_table(&[s.good()], 16, NEXT)
    }),
    tx("an indirect descriptor that is write-only", |s| {
        s.post_table(&[s.good()], 16, WRITE)
    }),
    tx("a loop inside an indirect table", |s| {
        s.post_table(&[s.chained(1), s.chained(0)], 32, 0)
    }),
    tx("a successor past an indirect table", |s| {
        s.post_table(&[s.chained(2), s.good()], 32, 0)
    }),
    tx("an indirect table outside memory", |s| {
        s.post(&[Descriptor {
            address: 1 << 45,
            len: 32,
            flags: INDIRECT,
            next: 0,
        }])
    }),
    tx("an indirect table past its region", |s| {
        s.post(&[Descriptor {
            address: s.end_of_region - 16,
            len: 64,
            flags: INDIRECT,
            next: 0,
        }])
    }),
    tx("an indirect table at an odd address", |s| {
        s.post(&[Descriptor {
            address: s.table.guest_address() + 3,
            len: 32,
            flags: INDIRECT,
            next: 0,
        }])
    }),
    rx("a receive table of 17 bytes", |s| {
        s.post_table(&[s.good()], 17, 0)
    }),
    rx("a receive table inside a receive table", |s| {
        let inner = Descriptor {
            address: s.table.guest_address(),
            len: 32,
            flags: INDIRECT,
            next: 0,
        };
        s.post_table(&[inner], 16, 0)
    }),
];

const INDICES: &[HostileChain] = &[
    tx("a head just past the table", |s| s.post_head(s.size())),
    tx("a head of 65,535", |s| s.post_head(u16::MAX)),
    tx("an available index one too far", |s| {
        s.jump(s.size().wrapping_add(1))
    }),
    tx("an available index 32,768 further", |s| s.jump(32768)),
    tx("an available index that goes back", |s| s.jump(u16::MAX)),
    tx("every slot with the same head", |s| s.jump(s.size())),
    rx("a receive head past the table", |s| s.post_head(s.size())),
    rx("a receive index one too far", |s| {
        s.jump(s.size().wrapping_add(1))
    }),
    rx("a receive index that goes back", |s| s.jump(u16::MAX)),
    rx("every receive slot with the same head", |s| {
        s.jump(s.size())
    }),
];

const LENGTHS: &[HostileChain] = &[
    tx("a chain of no bytes", |s| {
        s.post(&[s.at(s.buffer.guest_address(), 0)])
    }),
    tx("less than a header", |s| {
        s.post(&[s.at(s.buffer.guest_address(), 5)])
    }),
    tx("a header and no frame", |s| {
        s.post(&[s.at(s.buffer.guest_address(), 12)])
    }),
    tx("a frame of 13 bytes", |s| {
        s.post(&[s.at(s.buffer.guest_address(), 25)])
    }),
    tx("empty descriptors all over a frame", |s| {
        let empty = |next| Descriptor {
            len: 0,
            ..s.chained(next)
        };
        s.post(&[empty(1), s.good()])
    }),
    tx("a chain of many times 64 KiB", |s| {
        let last = s.size() - 1;
        let mut all: Vec<_> = (1..=last)
            .map(|next| Descriptor {
                len: 1 << 16,
                ..s.chained(next)
            })
            .collect();
        all.push(s.at(s.buffer.guest_address(), 1 << 16));
        s.post(&all)
    }),
    tx("a chain whose lengths add up past 2^32", |s| {
        let huge = |next| Descriptor {
            len: u32::MAX,
            ..s.chained(next)
        };
        s.post(&[huge(1), s.at(s.buffer.guest_address(), u32::MAX)])
    }),
];

const HEADERS: &[HostileChain] = &[
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
];

const RECEIVE: &[HostileChain] = &[
    rx("a receive buffer of no bytes", |s| {
        s.post(&[s.at(s.buffer.guest_address(), 0)])
    }),
    rx("a receive buffer of 1 byte", |s| {
        s.post(&[s.at(s.buffer.guest_address(), 1)])
    }),
    rx("a receive buffer smaller than the header", |s| {
        s.post(&[s.at(s.buffer.guest_address(), 11)])
    }),
    rx("a receive buffer of just the header", |s| {
        s.post(&[s.at(s.buffer.guest_address(), 12)])
    }),
    rx("a receive buffer on top of the used ring", |s| {
        s.post(&[s.at(s.ring.memory().used().guest_address(), 2048)])
    }),
    rx("a receive buffer on top of the available ring", |s| {
        s.post(&[s.at(s.ring.memory().avail().guest_address(), 2048)])
    }),
    rx("a receive buffer on top of the descriptors", |s| {
        s.post(&[s.at(s.ring.memory().descriptors().guest_address(), 2048)])
    }),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::Features;
    use crate::memory::GuestMemoryLayout;
    use crate::ring::Virtqueue;

    #[test]
    fn every_case_makes_something_available_and_kicks() {
        let mut names = HashSet::new();
        for case in chains() {
            assert!(names.insert(case.name), "{} twice", case.name);
            let memory = GuestMemory::new(&GuestMemoryLayout::one_region(1 << 20)).unwrap();
            let ring = Virtqueue::new(0, &memory, 0, 256, Features::LINUX).unwrap();
            case.play(&ring.raw().unwrap(), &memory)
                .unwrap_or_else(|error| panic!("{}: {error}", case.name));
            assert_ne!(
                ring.raw().unwrap().avail_index().unwrap(),
                0,
                "{}",
                case.name
            );
            assert!(ring.kick_eventfd().read().is_ok(), "{}", case.name);
        }
    }

    #[test]
    fn every_case_fits_a_ring_of_four() {
        for case in chains() {
            let memory = GuestMemory::new(&GuestMemoryLayout::one_region(1 << 20)).unwrap();
            let ring = Virtqueue::new(0, &memory, 0, 4, Features::LINUX).unwrap();
            case.play(&ring.raw().unwrap(), &memory)
                .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        }
    }
}
