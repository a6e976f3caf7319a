//! What a guest must not do with a packed ring's wrap counters, with lists that have no end, and with its event suppression structure.
//!
//! Part of the tables in `chains`. Some of it only a device can tell from an honest guest that remembers more than the ring shows.

use super::chains::{HostileChain, Piece, Stage, packed, rx, tx};
use crate::error::Error;
use crate::ring::position::Position;
use crate::ring::raw::{INDIRECT, NEXT, WRITE};
use crate::ring::raw_packed::{AVAIL, EventSuppression, PackedDescriptor, RawPackedRing, USED};

pub(super) fn cases() -> Vec<HostileChain<RawPackedRing>> {
    [ENDLESS, TURNS, IDS, TABLES, EVENTS].concat()
}

impl Stage<'_, RawPackedRing> {
    fn chained(&self) -> Piece {
        self.flagged(self.direction | NEXT)
    }

    /// As they are, with the AVAIL and USED due at each place.
    fn post_raw(&self, pieces: &[Piece]) -> Result<(), Error> {
        let descriptors: Vec<_> = pieces.iter().map(|piece| packed(*piece)).collect();
        self.ring.post(&descriptors)
    }

    /// A good descriptor with exactly these of AVAIL and USED.
    fn set(&self, place: Position, turn: u16) -> Result<(), Error> {
        let good = packed(self.good());
        let flags = good.flags | turn;
        self.ring
            .set_descriptor(place.offset, PackedDescriptor { flags, ..good })
    }

    /// `count` good chains of one descriptor, all with this buffer id.
    fn post_with_id(&self, count: usize, id: u16) -> Result<(), Error> {
        let one = PackedDescriptor {
            id,
            ..packed(self.good())
        };
        self.ring.post(&vec![one; count])
    }

    /// A good chain, and this as the wish for notifications.
    fn post_with_event(&self, position: u16, flags: u16) -> Result<(), Error> {
        self.ring
            .set_driver_event(EventSuppression { position, flags })?;
        self.post_raw(&[self.good()])
    }

    fn behind(&self, count: u16) -> Position {
        self.ring.next().advance(count, self.size())
    }
}

const ENDLESS: &[HostileChain<RawPackedRing>] = &[
    tx("a chain as long as the ring that goes on", |s| {
        s.post_raw(&vec![s.chained(); usize::from(s.size())])
    }),
    tx("an endless chain of empty descriptors", |s| {
        let empty = Piece {
            len: 0,
            ..s.chained()
        };
        s.post_raw(&vec![empty; usize::from(s.size())])
    }),
    tx("a chain that goes on where nothing is available", |s| {
        s.post_raw(&[s.chained()])
    }),
    tx("two descriptors of a chain whose third is missing", |s| {
        s.post_raw(&[s.chained(), s.chained()])
    }),
    rx("a receive chain as long as the ring that goes on", |s| {
        s.post_raw(&vec![s.chained(); usize::from(s.size())])
    }),
    rx(
        "a receive chain that goes on where nothing is available",
        |s| s.post_raw(&[s.chained()]),
    ),
];

const TURNS: &[HostileChain<RawPackedRing>] = &[
    tx("a descriptor of the turn that is to come", |s| {
        s.set(s.ring.next(), s.behind(s.size()).available_flags())
    }),
    tx("a descriptor the guest says the device has used", |s| {
        s.set(s.ring.next(), s.ring.next().used_flags())
    }),
    tx("a whole ring of descriptors already used", |s| {
        for offset in 0..s.size() {
            let place = Position {
                offset,
                ..s.ring.next()
            };
            s.set(place, AVAIL | USED)?;
        }
        Ok(())
    }),
    tx("a chain whose second descriptor is of another turn", |s| {
        s.set(s.behind(1), s.behind(s.size()).available_flags())?;
        s.post_raw(&[s.chained()])
    }),
    tx("a chain whose second descriptor is already used", |s| {
        s.set(s.behind(1), s.ring.next().used_flags())?;
        s.post_raw(&[s.chained()])
    }),
    tx("a descriptor taken back after the kick", |s| {
        s.post_raw(&[s.good()])?;
        s.ring.kick()?;
        s.ring.set_descriptor(0, PackedDescriptor::default())?;
        s.post_raw(&[s.good()])
    }),
    tx("more descriptors than the ring has", |s| {
        s.post_raw(&vec![s.good(); usize::from(s.size()) + 1])
    }),
    tx("two turns at once", |s| {
        s.post_raw(&vec![s.good(); 2 * usize::from(s.size())])
    }),
    tx("a gap of one descriptor, and good ones behind it", |s| {
        s.ring.set_next(s.behind(1));
        s.post_raw(&[s.good(), s.good()])
    }),
    rx("a receive buffer of the turn that is to come", |s| {
        s.set(s.ring.next(), s.behind(s.size()).available_flags())
    }),
    rx("a receive buffer the guest says is used", |s| {
        s.set(s.ring.next(), s.ring.next().used_flags())
    }),
    rx("more receive buffers than the ring has", |s| {
        s.post_raw(&vec![s.good(); usize::from(s.size()) + 1])
    }),
    rx(
        "a receive chain whose second descriptor is of another turn",
        |s| {
            s.set(s.behind(1), s.behind(s.size()).available_flags())?;
            s.post_raw(&[s.chained()])
        },
    ),
];

const IDS: &[HostileChain<RawPackedRing>] = &[
    tx("a buffer id just past the ring", |s| {
        s.post_with_id(1, s.size())
    }),
    tx("a buffer id of 65,535", |s| s.post_with_id(1, u16::MAX)),
    tx("a whole ring with the same buffer id", |s| {
        s.post_with_id(s.size().into(), 1)
    }),
    rx("a receive buffer id of 65,535", |s| {
        s.post_with_id(1, u16::MAX)
    }),
    rx("every receive buffer with the same id", |s| {
        s.post_with_id(s.size().into(), 1)
    }),
];

const TABLES: &[HostileChain<RawPackedRing>] = &[
    tx("an indirect table whose entries have every flag", |s| {
        let every = s.flagged(NEXT | INDIRECT | AVAIL | USED | 0x7f78);
        s.post_table(&[every, every], 32, 0)
    }),
    tx("an indirect table on top of the ring", |s| {
        let ring = s.ring.memory().descriptors();
        let bytes = ring.len() as u32;
        s.post_raw(&[Piece {
            flags: INDIRECT,
            ..s.at(ring.guest_address(), bytes)
        }])
    }),
    rx("a receive table whose entries have every flag", |s| {
        let every = s.flagged(WRITE | NEXT | INDIRECT | AVAIL | USED | 0x7f78);
        s.post_table(&[every, every], 32, 0)
    }),
];

const EVENTS: &[HostileChain<RawPackedRing>] = &[
    tx("reserved event flags", |s| s.post_with_event(0, 3)),
    tx("event flags with reserved bits", |s| {
        s.post_with_event(0, 0xfffc | EventSuppression::DESC)
    }),
    tx("an event offset past the ring", |s| {
        s.post_with_event(0x7fff, EventSuppression::DESC)
    }),
    tx("an event offset past the ring in the other turn", |s| {
        s.post_with_event(s.size() & 0x7fff, EventSuppression::DESC)
    }),
    rx("a receive event offset past the ring", |s| {
        s.post_with_event(u16::MAX, EventSuppression::DESC)
    }),
    rx("reserved receive event flags", |s| {
        s.post_with_event(0, u16::MAX)
    }),
];
