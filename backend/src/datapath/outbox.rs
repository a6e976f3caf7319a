//! Groups a batch's frames by destination, so that each destination's ring is locked, published and notified once.
//!
//! Frames for one port keep their order; a frame may be there several times. Fixed arrays: nothing is allocated and nothing is
//! sorted, and what does not fit any more waits until the rest was delivered.

use super::frame::BATCH_FRAMES;
use switch_core::{HeaderEdit, PortId};

/// Parcels that wait at a time: every frame of a batch, or as many copies.
pub const PARCELS: usize = 2 * BATCH_FRAMES;
/// Destinations that they are for.
const DESTINATIONS: usize = BATCH_FRAMES;

const END: u8 = u8::MAX;

// A parcel's number, and the end.
const _: () = assert!(PARCELS <= END as usize);

#[derive(Clone, Copy, Debug)]
struct List {
    port: PortId,
    first: u8,
    last: u8,
}

/// A frame on its way to a port: its number in the batch and how its header changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// Its number in the batch.
    pub frame: usize,
    /// How its header changes.
    pub edit: HeaderEdit,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    parcel: Parcel,
    next: u8,
}

/// Frames of one batch, waiting for delivery.
#[derive(Debug)]
pub struct Outbox {
    lists: Vec<List>,
    slots: Vec<Slot>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            lists: Vec::with_capacity(DESTINATIONS),
            slots: Vec::with_capacity(PARCELS),
        }
    }
}

impl Outbox {
    /// Whether everything has to be taken out before more can be added.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.slots.len() >= PARCELS || self.lists.len() >= DESTINATIONS
    }

    /// Adds a parcel; without effect when it [is full](Self::is_full).
    #[inline]
    pub fn add(&mut self, port: PortId, parcel: Parcel) {
        if self.is_full() {
            return;
        }
        let slot = self.slots.len() as u8;
        self.slots.push(Slot { parcel, next: END });
        // Bursts mostly go to one place: the destination used last comes first.
        match self.lists.iter_mut().rev().find(|list| list.port == port) {
            Some(list) => {
                let last = std::mem::replace(&mut list.last, slot);
                if let Some(last) = self.slots.get_mut(usize::from(last)) {
                    last.next = slot;
                }
            }
            None => self.lists.push(List {
                port,
                first: slot,
                last: slot,
            }),
        }
    }

    /// Takes out one destination and puts its frames into `run`, in order, instead of what is there. To be called until there is none
    /// before anything is added again.
    pub fn pop(&mut self, run: &mut Vec<Parcel>) -> Option<PortId> {
        let Some(list) = self.lists.pop() else {
            self.slots.clear();
            return None;
        };
        run.clear();
        let mut at = list.first;
        while let Some(slot) = self.slots.get(usize::from(at)) {
            run.push(slot.parcel);
            at = slot.next;
        }
        Some(list.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_destination_keep_their_order() {
        let mut outbox = Outbox::default();
        for round in 0..2 {
            for frame in 0..BATCH_FRAMES {
                let port = PortId::new((frame % 3) as u16).unwrap();
                let edit = HeaderEdit::NONE;
                outbox.add(port, Parcel { frame, edit });
            }
            let mut seen = 0;
            let mut run = Vec::new();
            while let Some(port) = outbox.pop(&mut run) {
                let frames: Vec<usize> = run.iter().map(|parcel| parcel.frame).collect();
                let expected: Vec<usize> = (port.index()..BATCH_FRAMES).step_by(3).collect();
                assert_eq!(frames, expected, "round {round}");
                seen += frames.len();
            }
            assert_eq!(seen, BATCH_FRAMES);
        }
    }

    #[test]
    fn a_full_outbox_has_room_again_once_it_was_emptied() {
        let (mut outbox, mut run) = (Outbox::default(), Vec::new());
        let parcel = Parcel {
            frame: 5,
            edit: HeaderEdit::NONE,
        };
        // The same frame to one port, and to many.
        for (ports, expected) in [(1, PARCELS), (1000, DESTINATIONS)] {
            let mut added = 0;
            while !outbox.is_full() {
                outbox.add(PortId::new((added % ports) as u16).unwrap(), parcel);
                added += 1;
            }
            assert_eq!(added, expected);
            let mut popped = 0;
            while outbox.pop(&mut run).is_some() {
                popped += run.len();
            }
            assert_eq!(popped, added);
        }
    }
}
