//! Who may fill a guest-rx ring that is short of buffers.
//!
//! Called by the courier with the ring's slot locked. Several senders whose frames find no room compete for every buffer that the
//! guest gives out. Without more, each would get buffers in proportion to the frames it tries, and long frames that need
//! many at once next to none. So while somebody's frames are dropped for want of buffers, whoever got [`SLACK_BYTES`] more
//! than the one who got least has to drop its own, and what it leaves is there for the others.
//!
//! Kept true: at most half of the ring is held back like this, so a sender that was wronged and does not come back costs the others
//! nothing but that; a sender whose frames all arrive holds nobody back; a ring with room for everybody is not slowed by more
//! than a look at one number.

use switch_core::PortId;

/// How far one sender may be ahead of another that wants more.
const SLACK_BYTES: u64 = 16 * 1024;
/// Senders that are told apart; beyond, who has not come for longest is forgotten.
const SENDERS: usize = 16;
/// Runs that all arrive until a sender has enough: a ring is served in several batches, of which the first ones may find room.
const CONTENT_RUNS: u32 = 64;
/// Runs of other senders after which one that wanted more has given up.
const PATIENCE_RUNS: u64 = 256;

/// What one sender got.
#[derive(Clone, Copy, Debug)]
struct Sender {
    port: PortId,
    /// Bytes, counted from where the least served was when this one came.
    got_bytes: u64,
    /// Frames of its last runs were dropped for want of buffers.
    wants_more: bool,
    /// Runs since then that arrived whole.
    content_runs: u32,
    /// The run in which it came last.
    seen: u64,
}

/// The senders to one guest-rx ring.
#[derive(Debug, Default)]
pub struct FairShare {
    senders: [Option<Sender>; SENDERS],
    /// Of them want more.
    wanting: u32,
    runs: u64,
}

impl FairShare {
    /// How many bytes a run of `from` may bring while the ring is short: all it has, if nobody else wants more.
    #[inline]
    pub fn allowance(&mut self, from: PortId) -> u64 {
        if self.wanting == 0 {
            return u64::MAX;
        }
        self.allowance_beside_others(from)
    }

    #[cold]
    fn allowance_beside_others(&mut self, from: PortId) -> u64 {
        self.runs += 1;
        let runs = self.runs;
        for sender in self.senders.iter_mut().flatten() {
            if sender.wants_more && runs - sender.seen > PATIENCE_RUNS {
                sender.wants_more = false;
                self.wanting -= 1;
            }
        }
        let Some(least) = self.least() else {
            return u64::MAX;
        };
        let got_bytes = self
            .sender(from, least)
            .map_or(least, |sender| sender.got_bytes);
        (least + SLACK_BYTES).saturating_sub(got_bytes)
    }

    /// Notes what came of a run: what arrived, and whether some of it was dropped for want of buffers.
    #[inline]
    pub fn note(&mut self, from: PortId, arrived_bytes: u64, outcome: Outcome) {
        if self.wanting > 0 || outcome == Outcome::Short {
            self.note_beside_others(from, arrived_bytes, outcome);
        }
    }

    #[cold]
    fn note_beside_others(&mut self, from: PortId, arrived_bytes: u64, outcome: Outcome) {
        let least = self.least().unwrap_or(0);
        let Some(sender) = self.sender(from, least) else {
            return;
        };
        sender.got_bytes += arrived_bytes;
        sender.content_runs = match outcome {
            Outcome::Short => 0,
            Outcome::Room => sender.content_runs.saturating_add(1),
        };
        let wants_more =
            outcome == Outcome::Short || sender.wants_more && sender.content_runs < CONTENT_RUNS;
        let wanted_more = std::mem::replace(&mut sender.wants_more, wants_more);
        self.wanting = self.wanting + u32::from(wants_more) - u32::from(wanted_more);
    }

    /// What the one who got least has, of those who want more.
    fn least(&self) -> Option<u64> {
        let wanting = self
            .senders
            .iter()
            .flatten()
            .filter(|sender| sender.wants_more);
        wanting.map(|sender| sender.got_bytes).min()
    }

    /// The sender, who comes now. One that wanted nothing has no claim from before.
    fn sender(&mut self, port: PortId, least: u64) -> Option<&mut Sender> {
        let known = |slot: &Option<Sender>| slot.is_some_and(|sender| sender.port == port);
        let seen = |slot: &Option<Sender>| slot.map_or(0, |sender| sender.seen + 1);
        let at = self.senders.iter().position(known).unwrap_or_else(|| {
            let oldest = (0..SENDERS).min_by_key(|&at| self.senders.get(at).map_or(0, seen));
            oldest.unwrap_or(0)
        });
        let runs = self.runs;
        let slot = self.senders.get_mut(at)?;
        if !known(slot) {
            let forgotten = slot.is_some_and(|sender| sender.wants_more);
            self.wanting -= u32::from(forgotten);
            *slot = None;
        }
        let sender = slot.get_or_insert(Sender {
            port,
            got_bytes: least,
            wants_more: false,
            content_runs: 0,
            seen: runs,
        });
        sender.seen = runs;
        if !sender.wants_more {
            sender.got_bytes = sender.got_bytes.max(least);
        }
        Some(sender)
    }
}

/// What came of a run of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All had room.
    Room,
    /// Some were dropped for want of buffers.
    Short,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16) -> PortId {
        PortId::new(number).unwrap()
    }

    #[test]
    fn nobody_is_limited_while_there_is_room() {
        let mut share = FairShare::default();
        for number in 0..100 {
            assert_eq!(share.allowance(port(number % 20)), u64::MAX);
            share.note(port(number % 20), 100_000, Outcome::Room);
        }
    }

    #[test]
    fn who_is_ahead_waits_for_those_who_want_more_and_for_nobody_else() {
        let mut share = FairShare::default();
        share.note(port(1), 0, Outcome::Short);
        assert_eq!(share.allowance(port(2)), SLACK_BYTES);
        share.note(port(2), SLACK_BYTES, Outcome::Room);
        assert_eq!(share.allowance(port(2)), 0);
        // The other catches up, and then has enough.
        share.allowance(port(1));
        share.note(port(1), 10_000, Outcome::Short);
        assert_eq!(share.allowance(port(2)), 10_000);
        for _ in 0..CONTENT_RUNS {
            assert_ne!(share.allowance(port(2)), u64::MAX);
            share.note(port(1), 10, Outcome::Room);
        }
        assert_eq!(share.allowance(port(2)), u64::MAX);
    }

    #[test]
    fn who_does_not_come_back_is_not_waited_for() {
        let mut share = FairShare::default();
        share.note(port(1), 0, Outcome::Short);
        let mut runs = 0;
        while share.allowance(port(2)) != u64::MAX {
            share.note(port(2), SLACK_BYTES, Outcome::Room);
            runs += 1;
            assert!(runs <= PATIENCE_RUNS + 1);
        }
    }

    #[test]
    fn more_senders_than_are_told_apart_do_no_harm() {
        let mut share = FairShare::default();
        for run in 0..10_000u32 {
            let from = port((run.wrapping_mul(2_654_435_761) >> 20) as u16 % 100);
            share.allowance(from);
            let outcome = if run % 3 == 0 {
                Outcome::Short
            } else {
                Outcome::Room
            };
            share.note(from, 1000, outcome);
            let wanting = share
                .senders
                .iter()
                .flatten()
                .filter(|sender| sender.wants_more);
            assert_eq!(wanting.count(), share.wanting as usize);
        }
    }
}
