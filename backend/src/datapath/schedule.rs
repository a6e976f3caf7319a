//! Who is served next: the ports with polled sources on one worker, in rounds.
//!
//! Called by the worker, which runs the batches. A round visits each port once and runs one batch of it, whichever of its
//! sources is next. As long as what was offered fits, that is all.
//!
//! A batch that ended at a bound leaves frames behind: its port is backlogged and owes the bytes it was served. Who owes
//! sits out; after each round what the smallest debtor owes is forgiven all. So of any two ports that stay backlogged
//! neither is ever ahead of the other by more than one batch ([`BATCH_BYTES`] and a frame), whatever the size of their
//! frames, batches and number of queues. A port that is served to the last frame owes nothing, and a lone debtor is
//! forgiven at once: work is never held back for the sake of fairness.
//!
//! A frame that has to be decided by tables takes as long as dozens of others, whatever its bytes. Each port may keep the tables busy
//! for so long a second (`TABLES_NS_PER_SECOND`) whoever waits; one that has used that up sits out while another, which has most of it
//! left, had frames within the last milliseconds. So whoever fills flow caches with nonsense (CVE-2019-25076) takes a thirtieth of a
//! worker from others, and new connections are made at full speed when nobody else wants the worker.
//!
//! This is start-time fair queueing (Goyal, Vin, Cheng 1997) in rounds, so that a turn costs the same however many wait.

use super::batch::Served;
use switch_core::{Millis, PortId};

/// A batch ends behind the frame that passes this: a port's turn is bounded in bytes.
pub const BATCH_BYTES: u32 = 256 * 1024;
/// What all ports together may move in a round. While one has its turn the others' rings fill up: a guest with short frames in
/// a ring of 256 is through with it after 16 KiB, and would wait for those with long ones.
const ROUND_BYTES: u32 = 512 * 1024;
/// What a frame counts for at least: the shortest that Ethernet carries, without its check sequence (IEEE 802.3). Refused frames have
/// no bytes; whoever sends those, or runts, would otherwise owe next to nothing, and the others' debts would never be forgiven.
const MIN_FRAME_BYTES: u64 = 60;
/// Time with the tables that a port may take however busy others are: a thirtieth of a worker.
const TABLES_NS_PER_SECOND: u64 = 30_000_000;
/// How much of it at once.
const TABLES_BURST_NS: u64 = 3_000_000;
/// What a port that has used up half of that is served at once, for others not to wait long: some twenty short frames.
const COSTLY_BATCH_BYTES: u32 = 1200;
/// How long after somebody else's frames a port that has used it up sits out: between two of their bursts is no time to be filled.
const SIT_OUT: Millis = Millis(2);
/// Smaller turns would cost more than the bytes in them.
const MIN_BATCH_BYTES: u32 = 32 * 1024;

/// One port's polled sources.
#[derive(Debug, Default)]
struct Turns {
    /// The port's index.
    port: usize,
    /// Of its sources.
    tokens: Vec<u32>,
    /// The source whose turn is next.
    next: usize,
    /// Bytes it is ahead of others that wait.
    debt_bytes: u64,
}

/// The ports with polled sources, and what each is owed.
#[derive(Debug, Default)]
pub struct Schedule {
    ports: Vec<Turns>,
    /// Where each port is in `ports`, by its index.
    places: Vec<Option<u16>>,
    /// Lists of ports that are not polled now: polling one again allocates nothing.
    spare: Vec<Vec<u32>>,
    /// Ports that had frames in the last round.
    busy: u32,
    /// When a port last had frames that has most of its time with the tables left.
    frugal_at: Option<Millis>,
    /// What each port has used of that time, by its index; also while it is not polled.
    tables_ns: Vec<u64>,
    /// Until when it was given back.
    refilled_at: Millis,
    /// As far as the clock was looked at.
    now: Millis,
}

impl Schedule {
    /// Whether nobody is polled.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// Takes a port's source, which is not in here, into the rounds.
    pub fn add(&mut self, port: PortId, token: u32) {
        let index = port.index();
        if self.places.len() <= index {
            self.places.resize(index + 1, None);
            self.tables_ns.resize(index + 1, 0);
        }
        let Some(place) = self.places.get_mut(index) else {
            return;
        };
        let known = place.and_then(|place| self.ports.get_mut(usize::from(place)));
        if let Some(turns) = known {
            turns.tokens.push(token);
            return;
        }
        let mut tokens = self.spare.pop().unwrap_or_default();
        tokens.push(token);
        *place = Some(self.ports.len() as u16);
        self.ports.push(Turns {
            port: index,
            tokens,
            ..Turns::default()
        });
    }

    /// Keeps those sources for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) {
        let mut at = 0;
        while let Some(turns) = self.ports.get_mut(at) {
            turns.tokens.retain(|&token| keep(token));
            if turns.tokens.is_empty() {
                self.leave(at);
            } else {
                at += 1;
            }
        }
    }

    /// One round. `serve` runs a batch of a source, of about so many bytes at most; `None` takes the source out of the rounds.
    /// The answer is the number of batches that had frames.
    #[inline]
    pub fn round(&mut self, mut serve: impl FnMut(u32, u32) -> Option<Served>) -> u32 {
        let share = ROUND_BYTES / self.busy.max(1);
        let limit_bytes = share.clamp(MIN_BATCH_BYTES, BATCH_BYTES);
        let (mut busy, mut waiting, mut frugal, mut gone) = (0, 0, false, false);
        let holds_back = self
            .frugal_at
            .is_some_and(|at| self.now.since(at) <= SIT_OUT);
        for turns in &mut self.ports {
            let used = self.tables_ns.get_mut(turns.port);
            let used_ns = used.as_ref().map_or(0, |used| **used);
            if holds_back && used_ns >= TABLES_BURST_NS {
                continue;
            }
            // A port near its bound would hold itself back as often as it is given something.
            let is_frugal = used_ns < TABLES_BURST_NS / 2;
            if turns.debt_bytes == 0 {
                let limit_bytes = if holds_back && !is_frugal {
                    COSTLY_BATCH_BYTES
                } else {
                    limit_bytes
                };
                let served = turns.serve_next(limit_bytes, &mut serve);
                if let (Some(served), Some(used)) = (served, used) {
                    *used = (*used + served.tables_ns).min(2 * TABLES_BURST_NS);
                }
                busy += u32::from(served.is_some());
                frugal |= served.is_some() && is_frugal;
            }
            waiting += u32::from(turns.debt_bytes > 0);
            frugal |= turns.debt_bytes > 0 && is_frugal;
            gone |= turns.tokens.is_empty();
        }
        if waiting > 0 {
            self.forgive();
        }
        if gone {
            self.retain(|_| true);
        }
        // Who sits out is busy, too.
        self.busy = busy.max(waiting);
        if frugal {
            self.frugal_at = Some(self.now);
        }
        busy
    }

    /// Tells the time, and gives back time with the tables.
    pub fn refill(&mut self, now: Millis) {
        self.now = now;
        let given = now
            .since(self.refilled_at)
            .0
            .saturating_mul(TABLES_NS_PER_SECOND)
            / 1000;
        if given > 0 {
            self.refilled_at = now;
            for used in &mut self.tables_ns {
                *used = used.saturating_sub(given);
            }
        }
    }

    /// Takes from everybody's debt what the smallest debtor owes.
    fn forgive(&mut self) {
        let debts = self.ports.iter().map(|turns| turns.debt_bytes);
        let least = debts.filter(|&debt| debt > 0).min().unwrap_or(0);
        for turns in &mut self.ports {
            turns.debt_bytes = turns.debt_bytes.saturating_sub(least);
        }
    }

    /// Takes a port that is not polled any more out of the list.
    fn leave(&mut self, at: usize) {
        let mut gone = self.ports.swap_remove(at);
        gone.tokens.clear();
        self.spare.push(gone.tokens);
        if let Some(place) = self.places.get_mut(gone.port) {
            *place = None;
        }
        let moved = self.ports.get(at).map(|turns| turns.port);
        if let Some(place) = moved.and_then(|port| self.places.get_mut(port)) {
            *place = Some(at as u16);
        }
    }
}

impl Turns {
    /// One batch of the first source that has frames, from the one whose turn it is, if there is one.
    #[inline]
    fn serve_next(
        &mut self,
        limit_bytes: u32,
        serve: &mut impl FnMut(u32, u32) -> Option<Served>,
    ) -> Option<Served> {
        let mut left = self.tokens.len();
        while left > 0 {
            left -= 1;
            if self.next >= self.tokens.len() {
                self.next = 0;
            }
            let &token = self.tokens.get(self.next)?;
            let Some(served) = serve(token, limit_bytes) else {
                self.tokens.remove(self.next);
                continue;
            };
            self.next += 1;
            if served.frames > 0 {
                // Another of its sources may have frames left, too: it comes to light in that one's turn.
                let least_bytes = MIN_FRAME_BYTES * u64::from(served.frames);
                self.debt_bytes = if served.more {
                    served.bytes.max(least_bytes)
                } else {
                    0
                };
                return Some(served);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A source that always has frames of one size.
    #[derive(Clone, Copy)]
    struct Endless {
        port: u16,
        frame_bytes: u64,
        /// Frames after which its driver has to add more: a batch ends there at the latest.
        burst: u32,
    }

    /// Bytes each port was served in so many rounds.
    fn served(sources: &[Endless], rounds: u32) -> BTreeMap<u16, u64> {
        let mut schedule = Schedule::default();
        for (token, source) in (0..).zip(sources) {
            schedule.add(PortId::new(source.port).unwrap(), token);
        }
        let mut bytes = BTreeMap::new();
        for _ in 0..rounds {
            schedule.round(|token, limit_bytes| {
                let source = sources[token as usize];
                let fits = u64::from(limit_bytes).div_ceil(source.frame_bytes);
                let frames = u64::from(source.burst.min(64)).min(fits);
                *bytes.entry(source.port).or_default() += frames * source.frame_bytes;
                Some(Served {
                    frames: frames as u32,
                    bytes: frames * source.frame_bytes,
                    more: true,
                    is_pending: false,
                    tables_ns: 0,
                })
            });
        }
        bytes
    }

    fn assert_equal(bytes: &BTreeMap<u16, u64>) {
        let (least, most) = (bytes.values().min().unwrap(), bytes.values().max().unwrap());
        assert!(most - least <= most / 10, "{bytes:?}");
    }

    fn endless(port: u16, frame_bytes: u64) -> Endless {
        Endless {
            port,
            frame_bytes,
            burst: 64,
        }
    }

    #[test]
    fn backlogged_ports_are_served_equal_bytes_whatever_the_size_of_their_frames() {
        let sizes = [60, 64, 128, 590, 1514, 9014, 65_550, 64];
        let sources: Vec<_> = (0..)
            .zip(sizes)
            .map(|(port, size)| endless(port, size))
            .collect();
        assert_equal(&served(&sources, 400_000));
        for sizes in [[60, 65_550], [1514, 64], [64, 64]] {
            let sources: Vec<_> = (0..)
                .zip(sizes)
                .map(|(port, size)| endless(port, size))
                .collect();
            assert_equal(&served(&sources, 100_000));
        }
    }

    /// Frames that a port whose frames all ask tables, 64 in 200 us, and another were served in a second of rounds.
    fn with_tables(others: impl Fn(u64) -> u32) -> (u64, u64) {
        let mut schedule = Schedule::default();
        schedule.add(PortId::new(0).unwrap(), 0);
        schedule.add(PortId::new(1).unwrap(), 1);
        let mut frames = (0, 0);
        for round in 0..20_000 {
            schedule.refill(Millis(round / 20));
            schedule.round(|token, _| {
                let (of, offered, tables_ns) = match token {
                    0 => (&mut frames.0, 64, 200_000),
                    _ => (&mut frames.1, others(round), 0),
                };
                *of += u64::from(offered);
                Some(Served {
                    frames: offered,
                    bytes: u64::from(offered) * 64,
                    more: offered > 0,
                    is_pending: false,
                    tables_ns,
                })
            });
        }
        frames
    }

    #[test]
    fn a_port_whose_frames_ask_tables_has_its_time_while_others_have_frames_and_all_of_it_alone() {
        let of_a_second = (TABLES_NS_PER_SECOND + TABLES_BURST_NS) / 200_000 * 64;
        // Others that always have frames, and others that have some now and then.
        for pause in [1, 15] {
            let offered = |round| if round % pause == 0 { 64 } else { 0 };
            let (asking, others) = with_tables(offered);
            assert!(asking <= of_a_second + 2 * 64, "{pause}: {asking}");
            assert!(asking >= of_a_second / 2, "{pause}: {asking}");
            assert!(others >= 19_000 / pause * 64 * 9 / 10, "{pause}: {others}");
        }
        let (alone, _) = with_tables(|_| 0);
        assert!(alone > 19_000 * 64, "{alone}");
    }

    #[test]
    fn many_queues_give_a_port_no_more_than_one() {
        let mut sources = vec![endless(0, 1514); 8];
        sources.push(endless(1, 1514));
        sources.push(endless(2, 64));
        assert_equal(&served(&sources, 50_000));
    }

    #[test]
    fn the_size_of_bursts_makes_no_difference() {
        let burst = |port, burst| Endless {
            burst,
            ..endless(port, 500)
        };
        assert_equal(&served(&[burst(0, 4), burst(1, 32), burst(2, 64)], 50_000));
    }

    #[test]
    fn who_sends_nothing_but_refused_frames_does_not_keep_others_waiting() {
        let mut schedule = Schedule::default();
        (0..2).for_each(|port| schedule.add(PortId::new(port).unwrap(), port.into()));
        let mut turns = [0u32; 2];
        for _ in 0..10_000 {
            schedule.round(|token, _| {
                turns[token as usize] += 1;
                Some(Served {
                    frames: 64,
                    bytes: if token == 0 { 0 } else { 64 * 1514 },
                    more: true,
                    is_pending: false,
                    tables_ns: 0,
                })
            });
        }
        assert!(turns[1] > 10_000 / 30, "{turns:?}");
    }

    #[test]
    fn each_queue_of_a_port_has_its_turn() {
        let mut schedule = Schedule::default();
        (0..5).for_each(|token| schedule.add(PortId::new(3).unwrap(), token));
        schedule.add(PortId::new(4).unwrap(), 5);
        let mut turns = [0; 6];
        for _ in 0..1000 {
            schedule.round(|token, _| {
                turns[token as usize] += 1;
                let bytes = if token == 0 { 60_000 } else { 1000 };
                Some(Served {
                    frames: 1,
                    bytes,
                    more: true,
                    is_pending: false,
                    tables_ns: 0,
                })
            });
        }
        let (least, most) = (turns[..5].iter().min(), turns[..5].iter().max());
        assert!(most.unwrap() - least.unwrap() <= 1, "{turns:?}");
    }

    #[test]
    fn a_lone_backlogged_port_is_served_in_every_round() {
        let mut schedule = Schedule::default();
        for port in 0..3 {
            schedule.add(PortId::new(port).unwrap(), port.into());
        }
        let mut turns = 0;
        for _ in 0..100 {
            schedule.round(|token, _| {
                // The others send now and then and leave nothing behind.
                turns += u32::from(token == 0);
                Some(Served {
                    frames: 5,
                    bytes: 300,
                    more: token == 0,
                    is_pending: false,
                    tables_ns: 0,
                })
            });
        }
        assert_eq!(turns, 100);
    }

    #[test]
    fn who_comes_to_a_worker_under_load_is_served_at_once() {
        let mut schedule = Schedule::default();
        let backlogged = |_: u32, _: u32| {
            Some(Served {
                frames: 64,
                bytes: 97_000,
                more: true,
                is_pending: false,
                tables_ns: 0,
            })
        };
        schedule.add(PortId::new(0).unwrap(), 0);
        schedule.add(PortId::new(1).unwrap(), 1);
        for _ in 0..10 {
            schedule.round(backlogged);
        }
        schedule.add(PortId::new(2).unwrap(), 2);
        let mut seen = false;
        schedule.round(|token, limit| {
            seen |= token == 2;
            backlogged(token, limit)
        });
        assert!(seen);
    }

    #[test]
    fn sources_leave_and_come_back_in_any_order() {
        let mut schedule = Schedule::default();
        let port = |token: u32| PortId::new((token / 2) as u16).unwrap();
        let mut polled: Vec<u32> = Vec::new();
        let mut random = 1u32;
        for _ in 0..2000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let token = (random >> 16) % 20;
            if polled.contains(&token) {
                polled.retain(|&other| other != token);
                if random & 1 == 0 {
                    schedule.retain(|other| other != token);
                } else {
                    while schedule_has(&mut schedule, token) {}
                }
            } else {
                polled.push(token);
                schedule.add(port(token), token);
            }
            let mut seen = Vec::new();
            schedule.round(|token, _| {
                seen.push(token);
                Some(Served::default())
            });
            seen.sort_unstable();
            polled.sort_unstable();
            assert_eq!(seen, polled);
            assert_eq!(schedule.is_empty(), polled.is_empty());
        }
    }

    /// Takes `token` out by way of a round; whether it was there.
    fn schedule_has(schedule: &mut Schedule, token: u32) -> bool {
        let mut was = false;
        schedule.round(|other, _| {
            was |= other == token;
            (other != token).then(Served::default)
        });
        was
    }
}
