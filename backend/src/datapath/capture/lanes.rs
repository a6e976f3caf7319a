//! Frames on their way from workers to whoever reads a capture: a buffer of fixed size for each worker, so that workers never wait for each other.
//!
//! A worker locks its own buffer for as long as it copies a frame; the reader takes all buffers by putting empty ones in their place, which is a
//! moment. A worker that meets the reader looks again a few times and then gives the frame up, as it does when its buffer is full.

use super::{Direction, Fate};
use std::sync::{Mutex, PoisonError, TryLockError};
use switch_core::{DropReason, PortId};

/// Memory of a capture in one set of buffers; there are two sets.
pub const CAPTURE_BYTES: usize = 4 << 20;
/// Smallest buffer: a longest frame fits.
pub const LANE_BYTES_MIN: usize = 128 << 10;
/// How often a worker looks at a buffer that the reader is about to take.
const LOOKS: u32 = 32;
/// Bytes of [`Meta`] before each frame.
const META_BYTES: usize = 20;

/// What is known of a captured frame beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// When its batch was switched: nanoseconds since 1970 by the host's clock.
    pub at_ns: u64,
    /// Its length.
    pub frame_bytes: u32,
    /// Where it went, seen from the switch.
    pub direction: Direction,
    /// What became of it.
    pub fate: Fate,
}

/// A captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured<'a> {
    /// What is known of it.
    pub meta: Meta,
    /// Its first bytes, as many as were wanted.
    pub bytes: &'a [u8],
}

/// A buffer of frames, oldest first.
#[derive(Debug)]
pub struct Lane {
    bytes: Box<[u8]>,
    used: usize,
}

impl Lane {
    /// An empty one of a set of `lanes`.
    pub fn new(lanes: usize) -> Self {
        let bytes = (CAPTURE_BYTES / lanes.max(1)).max(LANE_BYTES_MIN);
        Self {
            bytes: vec![0; bytes].into(),
            used: 0,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Adds a frame of which `fill` writes at most `most` bytes and says how many. `false`: there is no room.
    fn push(&mut self, meta: &Meta, most: usize, fill: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let end = self.used + META_BYTES + most;
        let Some((head, room)) = self
            .bytes
            .get_mut(self.used..end)
            .and_then(<[u8]>::split_first_chunk_mut)
        else {
            return false;
        };
        let filled = fill(room).min(most);
        *head = meta.to_bytes(filled as u32);
        self.used += META_BYTES + filled;
        true
    }

    /// The frame that starts at `at`, and where the next one does.
    fn read(&self, at: usize) -> Option<(Captured<'_>, usize)> {
        let used = self.bytes.get(..self.used)?;
        let (head, rest) = used.get(at..)?.split_first_chunk()?;
        let (meta, captured) = Meta::from_bytes(head)?;
        let bytes = rest.get(..captured as usize)?;
        Some((Captured { meta, bytes }, at + META_BYTES + bytes.len()))
    }
}

/// Adds a frame to a worker's buffer; of it `fill` writes at most `most` bytes and says how many.
pub fn push(
    lane: &Mutex<Lane>,
    (meta, most): (&Meta, usize),
    fill: impl FnOnce(&mut [u8]) -> usize,
) -> Pushed {
    for _ in 0..LOOKS {
        let mut lane = match lane.try_lock() {
            Ok(lane) => lane,
            Err(TryLockError::Poisoned(lane)) => lane.into_inner(),
            Err(TryLockError::WouldBlock) => {
                std::hint::spin_loop();
                continue;
            }
        };
        let was_empty = lane.is_empty();
        return match lane.push(meta, most, fill) {
            false => Pushed::Missed,
            true if was_empty => Pushed::First,
            true => Pushed::Behind,
        };
    }
    Pushed::Missed
}

/// What came of a frame for a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is the first that waits.
    First,
    /// Others wait before it.
    Behind,
    /// There was no room, or the buffer was in use.
    Missed,
}

/// A set of buffers that were taken, and how far each is read.
#[derive(Debug)]
pub struct Taken {
    lanes: Vec<(Lane, usize)>,
}

impl Taken {
    /// Empty ones, to be put in the place of the workers' `count`.
    pub fn new(count: usize) -> Self {
        Self {
            lanes: (0..count).map(|_| (Lane::new(count), 0)).collect(),
        }
    }

    /// Takes the workers' buffers and gives them these, with whatever they hold forgotten.
    pub fn swap(&mut self, lanes: &[Mutex<Lane>]) {
        for (lane, (taken, at)) in lanes.iter().zip(&mut self.lanes) {
            taken.used = 0;
            *at = 0;
            let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut *lane, taken);
        }
    }

    /// The oldest frame that was not read, which then is. Of each worker's they come in their order.
    pub fn next_frame(&mut self) -> Option<Captured<'_>> {
        let heads = self.lanes.iter_mut().filter_map(|(lane, at)| {
            let (captured, next) = lane.read(*at)?;
            Some((captured, next, at))
        });
        let (captured, next, at) = heads.min_by_key(|(captured, ..)| captured.meta.at_ns)?;
        *at = next;
        Some(captured)
    }

    /// Whether every frame was read.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|(lane, at)| *at >= lane.used)
    }
}

impl Meta {
    fn to_bytes(self, captured: u32) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        let (number, arg): (u8, u16) = match self.fate {
            Fate::Passed { from: None } => (0, 0),
            Fate::Passed { from: Some(port) } => (1, port.get()),
            Fate::Sent { to } => (2, to.get()),
            Fate::Flooded => (3, 0),
            Fate::Copied { ports } => (4, ports),
            Fate::Punted { ports } => (5, ports),
            Fate::Dropped(reason) => (6, reason.index() as u16),
        };
        let direction = match self.direction {
            Direction::In => 0,
            Direction::Out => 1,
        };
        let parts: [&[u8]; 6] = [
            &self.at_ns.to_ne_bytes(),
            &self.frame_bytes.to_ne_bytes(),
            &captured.to_ne_bytes(),
            &arg.to_ne_bytes(),
            &[number],
            &[direction],
        ];
        let mut rest = &mut bytes[..];
        for part in parts {
            let Some((to, after)) = rest.split_at_mut_checked(part.len()) else {
                break;
            };
            to.copy_from_slice(part);
            rest = after;
        }
        bytes
    }

    /// And how many bytes of the frame follow.
    fn from_bytes(bytes: &[u8; META_BYTES]) -> Option<(Self, u32)> {
        let (at_ns, rest) = bytes.split_first_chunk()?;
        let (frame_bytes, rest) = rest.split_first_chunk()?;
        let (captured, rest) = rest.split_first_chunk()?;
        let (arg, rest) = rest.split_first_chunk()?;
        let arg = u16::from_ne_bytes(*arg);
        let [number, direction, ..] = rest else {
            return None;
        };
        let fate = match number {
            0 => Fate::Passed { from: None },
            1 => Fate::Passed {
                from: PortId::new(arg),
            },
            2 => Fate::Sent {
                to: PortId::new(arg)?,
            },
            3 => Fate::Flooded,
            4 => Fate::Copied { ports: arg },
            5 => Fate::Punted { ports: arg },
            _ => Fate::Dropped(*DropReason::ALL.get(usize::from(arg))?),
        };
        let meta = Self {
            at_ns: u64::from_ne_bytes(*at_ns),
            frame_bytes: u32::from_ne_bytes(*frame_bytes),
            direction: if *direction == 0 {
                Direction::In
            } else {
                Direction::Out
            },
            fate,
        };
        Some((meta, u32::from_ne_bytes(*captured)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(at_ns: u64, fate: Fate) -> Meta {
        Meta {
            at_ns,
            frame_bytes: 1500,
            direction: Direction::Out,
            fate,
        }
    }

    fn add(lane: &Mutex<Lane>, meta: &Meta, bytes: &[u8]) -> Pushed {
        push(lane, (meta, bytes.len()), |room| {
            room.copy_from_slice(bytes);
            bytes.len()
        })
    }

    #[test]
    fn frames_come_out_as_they_went_in_and_by_time() {
        let port = PortId::new(7).unwrap();
        let fates = [
            Fate::Passed { from: None },
            Fate::Passed { from: Some(port) },
            Fate::Sent { to: port },
            Fate::Flooded,
            Fate::Copied { ports: 3 },
            Fate::Punted { ports: 0 },
            Fate::Dropped(DropReason::RxRingFull),
        ];
        let lanes = [Lane::new(2), Lane::new(2)].map(Mutex::new);
        for (number, fate) in (0..).zip(fates) {
            let lane = &lanes[number % 2];
            let at = 1000 - number as u64;
            let pushed = add(lane, &meta(at, fate), &[number as u8; 5]);
            assert_eq!(pushed == Pushed::First, number < 2, "{number}");
        }
        let mut taken = Taken::new(2);
        taken.swap(&lanes);
        let mut seen = Vec::new();
        while let Some(captured) = taken.next_frame() {
            let number = usize::from(captured.bytes[0]);
            assert_eq!(captured.bytes, [number as u8; 5]);
            assert_eq!(captured.meta, meta(1000 - number as u64, fates[number]));
            seen.push(number);
        }
        assert!(taken.is_empty() && lanes.iter().all(|lane| lane.lock().unwrap().is_empty()));
        // Each lane keeps its order, whatever its clock says.
        assert_eq!(seen, [1, 3, 5, 0, 2, 4, 6]);
    }

    #[test]
    fn a_full_or_taken_buffer_takes_no_frame_and_stays_whole() {
        let lane = Mutex::new(Lane::new(1000));
        let frame = vec![1; 60_000];
        let meta = meta(1, Fate::Flooded);
        assert_eq!(add(&lane, &meta, &frame), Pushed::First);
        assert_eq!(add(&lane, &meta, &frame), Pushed::Behind);
        assert_eq!(add(&lane, &meta, &frame), Pushed::Missed);
        assert_eq!(add(&lane, &meta, &[2; 100]), Pushed::Behind);
        let held = lane.lock().unwrap();
        assert_eq!(add(&lane, &meta, &[2; 100]), Pushed::Missed);
        drop(held);
        let mut taken = Taken::new(1);
        taken.swap(std::slice::from_ref(&lane));
        let mut lengths = Vec::new();
        while let Some(captured) = taken.next_frame() {
            lengths.push(captured.bytes.len());
        }
        assert_eq!(lengths, [60_000, 60_000, 100]);
    }
}
