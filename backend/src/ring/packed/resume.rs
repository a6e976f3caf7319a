//! Where a packed ring goes on when it starts: the front-end's base, or the record's (docs/adr/0006).

use super::super::record::{Position, State};
use super::super::virtqueue::RingConfig;
use super::{AVAIL, PackedRing, USED, Word, offered};
use std::sync::atomic::Ordering;

/// The first place in a lap with wrap counter 0; as half of a base it is 0.
const FIRST_OF_SECOND_LAP: Position = Position(0);

/// Whether a base's upper half of 0 may say that the ring goes on at [`FIRST_OF_SECOND_LAP`]: the lower half is at most a ring further on. It
/// does if that place is on offer in such a lap: what lies before a lower half that counts alone was given back, or is on offer in a later lap.
fn may_be_first(base: u32) -> bool {
    let avail = Position(base as u16);
    base >> 16 == 0 && (!avail.wrap() || avail.index() == 0)
}

impl PackedRing {
    /// Decides between the front-end's base and the record (docs/adr/0006), and finishes what a kill interrupted.
    pub(super) fn resume(&mut self, config: &RingConfig, origin: Position) {
        if may_be_first(config.base) && self.is_offered(FIRST_OF_SECOND_LAP) {
            self.state = State::at(FIRST_OF_SECOND_LAP);
        }
        let ring = config.addresses.descriptor_table;
        let Some(identity) = self.chains.memory().identify_part(ring) else {
            return;
        };
        let recalled = if config.base_is_final {
            None
        } else {
            self.record.recall(identity, origin)
        };
        match recalled.and_then(|state| self.settle(state, origin)) {
            Some(state) => {
                if let Some(before) = recalled {
                    // What a kill interrupted was written just now, or by who was killed before it could be marked.
                    let places = (0..before.writing).map(|at| self.record.element(at).places());
                    self.mark_used(before.position, places.sum());
                }
                self.state = state;
                self.record.set_state(state);
                log::debug!(
                    "packed ring: going on from {:#x}, where it was left, instead of base {:#x}",
                    state.position.0,
                    config.base
                );
            }
            None => self.record.begin(identity, origin, self.state.position),
        }
    }

    /// The state to go on from, if the ring in memory is still the one that the record tells of.
    fn settle(&self, state: State, origin: Position) -> Option<State> {
        let State {
            position, writing, ..
        } = state;
        if writing > 0 && self.is_given_back(position) {
            // The first element is written last: all of them were, and the driver may have used their places again.
            let after = self.after(position, writing);
            return self.shows(after).then_some(after);
        }
        // Before anything was given back there is nothing to be seen, and nothing to be mistaken about.
        if position != origin && !self.shows(state) && !self.shows_beginning(state) {
            return None;
        }
        match writing {
            0 => Some(state),
            _ if self.is_offered(position) => Some(self.write_used(position, writing)),
            _ => None,
        }
    }

    /// Whether the ring still shows the last used element of `state`, which it does until the device is there again: the USED bit of a
    /// descriptor given back stays when the driver offers it anew. A driver that begins anew clears the ring, and its first lap
    /// has no USED bit.
    fn shows(&self, state: State) -> bool {
        let last = state.last_used;
        let word = Word(self.word(last.index()).load(Ordering::Acquire));
        let (used, avail) = (word.flags() & USED != 0, word.flags() & AVAIL != 0);
        if used != last.wrap() {
            return false;
        }
        if last.wrap() {
            return true;
        }
        if !avail {
            // As in a ring that was cleared, but for what else the descriptor has.
            return word.id() == state.last_id && self.address(last.index()) != 0;
        }
        // Offered anew, so everything up to it is on offer, too.
        let next = Word(self.word(state.position.index()).load(Ordering::Acquire));
        state.position.wrap() || next.flags() & USED != 0
    }

    /// Whether the ring shows elements of a batch whose first one was not written: they may have replaced what [`Self::shows`] looks for.
    fn shows_beginning(&self, state: State) -> bool {
        let mut at = State::at(state.position);
        (0..state.writing).any(|index| {
            let element = self.record.element(index);
            let position = at.position;
            at = at.past(element, self.size);
            index > 0
                && self.word(position.index()).load(Ordering::Acquire)
                    == self.used_word(position, element)
                && self.address(position.index()) != 0
        })
    }

    fn is_offered(&self, position: Position) -> bool {
        let flags = Word(self.word(position.index()).load(Ordering::Acquire)).flags();
        flags & (AVAIL | USED) == offered(position.wrap())
    }

    fn is_given_back(&self, position: Position) -> bool {
        let flags = Word(self.word(position.index()).load(Ordering::Acquire)).flags();
        (flags & USED != 0) == position.wrap()
    }
}
