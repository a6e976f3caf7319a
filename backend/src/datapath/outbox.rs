//! Groups a batch's frames by destination, so that each destination's ring is locked, published and notified once.
//!
//! Frames for one port keep their order. Fixed arrays: nothing is allocated and nothing is sorted.

use super::frame::BATCH_FRAMES;
use switch_core::{PortId, VlanEdit};

const END: u8 = u8::MAX;

#[derive(Clone, Copy, Debug)]
struct List {
    port: PortId,
    first: u8,
    last: u8,
}

/// A frame on its way to a port: its number in the batch and the change to its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// Its number in the batch.
    pub frame: usize,
    /// The change its outer VLAN tag undergoes.
    pub edit: VlanEdit,
}

/// Frames of one batch, waiting for delivery.
#[derive(Debug)]
pub struct Outbox {
    lists: Vec<List>,
    next: [u8; BATCH_FRAMES],
    edits: [VlanEdit; BATCH_FRAMES],
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            lists: Vec::with_capacity(BATCH_FRAMES),
            next: [END; BATCH_FRAMES],
            edits: [VlanEdit::None; BATCH_FRAMES],
        }
    }
}

impl Outbox {
    /// Adds the batch's frame number `frame`, below [`BATCH_FRAMES`].
    #[inline]
    pub fn add(&mut self, port: PortId, frame: usize, edit: VlanEdit) {
        let (Some(next), Some(slot)) = (self.next.get_mut(frame), self.edits.get_mut(frame)) else {
            return;
        };
        *next = END;
        *slot = edit;
        let frame = frame as u8;
        // Bursts mostly go to one place: the destination used last comes first.
        match self.lists.iter_mut().rev().find(|list| list.port == port) {
            Some(list) => {
                let last = std::mem::replace(&mut list.last, frame);
                if let Some(next) = self.next.get_mut(usize::from(last)) {
                    *next = frame;
                }
            }
            None => self.lists.push(List {
                port,
                first: frame,
                last: frame,
            }),
        }
    }

    /// Takes out one destination and puts its frames into `run`, in order, instead of what is there.
    pub fn pop(&mut self, run: &mut Vec<Parcel>) -> Option<PortId> {
        let list = self.lists.pop()?;
        run.clear();
        let mut at = list.first;
        while let (Some(&next), Some(&edit)) = (
            self.next.get(usize::from(at)),
            self.edits.get(usize::from(at)),
        ) {
            let frame = usize::from(at);
            run.push(Parcel { frame, edit });
            at = next;
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
                outbox.add(
                    PortId::new((frame % 3) as u16).unwrap(),
                    frame,
                    VlanEdit::None,
                );
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
}
