//! Where a packed ring goes on when it starts: the front-end's base, or the record's (docs/adr/0006).

use super::super::record::{Position, State, UsedElement};
use super::super::virtqueue::RingConfig;
use super::{AVAIL, NEXT, PackedRing, USED, Word, offered, used};
use std::sync::atomic::{Ordering, compiler_fence};

/// The first place in a lap with wrap counter 0; as half of a base it is 0.
const FIRST_OF_SECOND_LAP: Position = Position(0);

/// Whether a base's upper half of 0 may say that the ring goes on at [`FIRST_OF_SECOND_LAP`]: the lower half is at most a ring further on. It
/// does if that place is on offer in such a lap: what lies before a lower half that counts alone was given back, or is on offer in a later lap.
fn may_be_first(base: u32) -> bool {
    let avail = Position(base as u16);
    base >> 16 == 0 && (!avail.wrap() || avail.index() == 0)
}

/// The places that the front-end gave back by itself while nobody served the ring.
///
/// QEMU does so with a guest-tx ring: a driver that kicks while the switch is away is given back all that is on offer from where QEMU
/// believes the device to be, which is where it was last started (hw/virtio/virtio.c: virtqueue_packed_drop_all). The next base says how
/// far that came.
#[derive(Clone, Copy)]
struct Discarded {
    from: Position,
    to: Position,
    /// Entries of the ring.
    size: u16,
}

impl Discarded {
    fn places(self) -> u32 {
        self.from.distance_to(self.to, self.size)
    }

    fn contains(self, position: Position) -> bool {
        self.from.distance_to(position, self.size) < self.places()
    }
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
            self.record.recall(identity)
        };
        let Some(state) = recalled.and_then(|(state, from)| self.settle(state, from, origin))
        else {
            return self.record.begin(identity, origin, self.state.position);
        };
        self.state = state;
        self.record.set_state(state);
        self.record.set_origin(origin);
        log::debug!(
            "packed ring: going on from {:#x}, where it was left, instead of base {:#x}",
            state.position.0,
            config.base
        );
    }

    /// The state to go on from, if the ring in memory is still the one that the record tells of. The front-end believed it to be started
    /// at `from` when that was written, and says `origin` now.
    fn settle(&mut self, state: State, from: Position, origin: Position) -> Option<State> {
        let size = self.size;
        let State {
            position, writing, ..
        } = state;
        let after = match writing {
            0 => state,
            _ => self.after(position, writing),
        };
        let discarded = Discarded {
            from,
            to: origin,
            size,
        };
        if discarded.places() > 0 {
            let is_ahead_of = |at| self.chains_until(at, discarded, |_, _| {}).is_some();
            let is_unwritten = writing > 0 && self.is_offered(position);
            if is_ahead_of(after.position) {
                if is_unwritten {
                    self.write_used(position, writing);
                }
                return self.give_back_until(after, discarded);
            }
            if is_unwritten && is_ahead_of(position) {
                // It began inside of what is being written.
                self.write_used(position, writing);
                let ends = [after.position, origin];
                let further = ends
                    .into_iter()
                    .max_by_key(|end| position.distance_to(*end, size));
                return further.map(|position| State { position, ..after });
            }
            if position == from {
                // It began where the driver waited, and went on for as long as that offered anything; but for the end of a batch in its way.
                let batch = position.distance_to(after.position, size);
                let is_in_batch = position.distance_to(origin, size) < batch;
                let was_in_its_way =
                    self.is_used(origin) || self.is_offered(origin.advanced(size, size));
                return (is_in_batch && was_in_its_way).then_some(after);
            }
        }
        // The first element is written last: all of them were, and the driver may have used their places again.
        let is_written = writing > 0 && self.is_given_back(position);
        let seen = if is_written { after } else { state };
        // Before anything was given back there is nothing to be seen, and nothing to be mistaken about.
        let is_known = !is_written && position == from
            || !discarded.contains(seen.last_used)
                && (self.shows(seen) || !is_written && self.shows_beginning(seen));
        if !is_known {
            return None;
        }
        if writing > 0 && !is_written {
            if !self.is_offered(position) {
                return None;
            }
            self.write_used(position, writing);
        }
        // Old descriptors, as there are inside chains and batches that were given back: the driver does not look there any more.
        let behind = from.distance_to(after.position, size);
        let is_behind = discarded.places() <= behind && behind <= size.into();
        (discarded.places() == 0 || is_behind).then_some(after)
    }

    /// Gives back unread what lies before the front-end's own: it is on offer, but what comes after it is gone, and a chain that reaches
    /// across is damaged. The state after all of it.
    fn give_back_until(&mut self, state: State, discarded: Discarded) -> Option<State> {
        // The log is needed anew.
        self.record.set_state(state);
        let count = self.chains_until(state.position, discarded, |at, element| {
            self.record.set_element(at, element);
        })?;
        let mut after = state;
        if count > 0 {
            self.record.set_state(State {
                writing: count,
                ..state
            });
            compiler_fence(Ordering::SeqCst);
            after = self.write_used(state.position, count);
        }
        self.unread = count;
        Some(State {
            position: discarded.to,
            ..after
        })
    }

    /// Visits the chains on offer from `at` until the front-end's own; how many they are, or `None` if it is not as it is after a front-end
    /// that gave back what lies further on.
    fn chains_until(
        &self,
        mut at: Position,
        discarded: Discarded,
        mut visit: impl FnMut(u16, UsedElement),
    ) -> Option<u16> {
        let lap = u32::from(self.size);
        let is_ahead = at.distance_to(discarded.from, self.size) < lap
            && at.distance_to(discarded.to, self.size) <= lap
            && discarded.places() <= lap;
        if !is_ahead || !self.is_used(discarded.from) {
            return None;
        }
        let (mut count, mut places) = (0, 0);
        while at != discarded.from || places > 0 {
            let is_theirs = discarded.contains(at);
            if !is_theirs && !self.is_offered(at) {
                return None;
            }
            let word = Word(self.word(at.index()).load(Ordering::Relaxed));
            places += 1;
            at = at.advanced(1, self.size);
            // The front-end took the rest of a chain that reaches across for one of its own, and what comes after it for the next.
            let is_last = if is_theirs {
                at == discarded.to || self.is_used(at)
            } else {
                word.flags() & NEXT == 0
            };
            if is_last {
                visit(count, UsedElement::new(word.id(), places, 0));
                count += 1;
                places = 0;
                if is_theirs {
                    break;
                }
            }
        }
        Some(count)
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

    /// Whether the driver was given this place back, and has not offered it anew.
    fn is_used(&self, position: Position) -> bool {
        let flags = Word(self.word(position.index()).load(Ordering::Acquire)).flags();
        flags & (AVAIL | USED) == used(position.wrap())
    }

    fn is_given_back(&self, position: Position) -> bool {
        let flags = Word(self.word(position.index()).load(Ordering::Acquire)).flags();
        (flags & USED != 0) == position.wrap()
    }
}
