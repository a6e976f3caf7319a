//! Frames of a port for whoever looks on: what its guest sends, what is delivered to it, and what is dropped at it.
//!
//! Workers look once a batch whether anybody captures ([`Captures::current`], one relaxed load). If so they put a copy of each frame that a
//! capture's [`filter`] wants into their own buffer of it ([`lanes`]); a frame that finds no room is counted and not captured, and nobody waits.
//! One task of the control side owns the [`Capture`], takes the buffers and ends it by dropping it.
//!
//! A payload is read from the sender's memory, once more than it is delivered: a guest that changes a frame while it is sent may be seen to have
//! sent another than it did. Nothing but the capture looks at that copy.

pub mod filter;
pub mod lanes;

use super::edited::edited;
use super::frame::{Batch, Frame, OutgoingEdit, PrivateHeader};
use super::outbox::Parcel;
use crate::ring::segment::{Payload, PayloadCursor};
use arc_swap::ArcSwap;
use filter::{Filter, Subject};
use lanes::{Captured, Lane, Meta, Pushed, Taken, push};
use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use switch_core::{DropReason, Outcomes, PortId, Target, Verdict};

/// Most captures at a time.
pub const MAX_CAPTURES: usize = 4;
/// Fewest bytes of a frame that can be asked for: its Ethernet header.
pub const MIN_SNAP_BYTES: u32 = 14;

/// Which way a frame went, seen from the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The port's guest sent it.
    In,
    /// It was for the port's guest.
    Out,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It reached the port's guest.
    Passed {
        /// The port it came from; `None`: the control side.
        from: Option<PortId>,
    },
    /// It goes to one port.
    Sent {
        /// Which.
        to: PortId,
    },
    /// It goes to all others of its broadcast domain.
    Flooded,
    /// Copies of it go to so many ports.
    Copied {
        /// How many.
        ports: u16,
    },
    /// The control side gets it, and so many ports do.
    Punted {
        /// How many.
        ports: u16,
    },
    /// It, or a copy of it, ended here.
    Dropped(DropReason),
}

impl Fate {
    /// Why it was dropped.
    pub fn dropped(self) -> Option<DropReason> {
        match self {
            Self::Dropped(reason) => Some(reason),
            _ => None,
        }
    }
}

/// What is wanted of a port.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// Which frames; none: all.
    pub filter: Option<Filter>,
    /// How many bytes of each at most.
    pub snap_bytes: u32,
}

/// Called when frames wait that nobody was told of, or the capture ends. On a worker, so it must not block.
#[derive(Clone)]
pub struct Bell(pub Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bell")
    }
}

/// There are as many captures as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_CAPTURES} captures already, which is the most")]
pub struct TooManyCaptures;

/// What a capture has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureCounts {
    /// Frames of the port, wanted or not.
    pub seen: u64,
    /// Those that the filter wanted.
    pub wanted: u64,
    /// Those of them that are not captured, for want of room.
    pub missed: u64,
}

/// A capture, as workers see it.
#[derive(Debug)]
pub struct Session {
    port: PortId,
    options: CaptureOptions,
    /// By worker; the first is the control side's.
    lanes: Box<[Mutex<Lane>]>,
    seen: AtomicU64,
    wanted: AtomicU64,
    missed: AtomicU64,
    bell: Bell,
    /// Its port is gone.
    ended: AtomicBool,
}

/// All captures of a data path.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Captures {
    /// How many there are. On cache lines of its own, which are rarely written: every worker reads it once a batch.
    active: AtomicUsize,
    sessions: ArcSwap<Vec<Arc<Session>>>,
    /// Buffers handed out to workers.
    workers: AtomicUsize,
    /// Serialises starts and ends.
    changing: Mutex<()>,
}

/// The buffer that is the control side's.
const CONTROL_LANE: usize = 0;

impl Captures {
    /// The number of a new worker's buffer.
    pub fn add_worker(&self) -> usize {
        self.workers.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Those there are; `None` if there are none, which costs a load. Once a batch.
    #[inline]
    pub fn current(&self) -> Option<Arc<Vec<Arc<Session>>>> {
        // Relaxed: a batch sooner or later makes no difference, and the list itself is loaded in order.
        (self.active.load(Ordering::Relaxed) != 0).then(|| self.load())
    }

    #[cold]
    fn load(&self) -> Arc<Vec<Arc<Session>>> {
        self.sessions.load_full()
    }

    /// Starts a capture of a port; to be called where ports are added and removed.
    ///
    /// # Errors
    /// [`TooManyCaptures`].
    pub fn start(
        self: &Arc<Self>,
        port: PortId,
        options: CaptureOptions,
        bell: Bell,
    ) -> Result<Capture, TooManyCaptures> {
        let _changing = self.changing();
        let mut sessions = Vec::clone(&self.sessions.load());
        if sessions.len() >= MAX_CAPTURES {
            return Err(TooManyCaptures);
        }
        let count = self.workers.load(Ordering::Acquire) + 1;
        let session = Arc::new(Session {
            port,
            options,
            lanes: (0..count).map(|_| Mutex::new(Lane::new(count))).collect(),
            seen: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            bell,
            ended: AtomicBool::new(false),
        });
        sessions.push(Arc::clone(&session));
        self.replace(sessions);
        Ok(Capture {
            session,
            captures: Arc::clone(self),
            taken: Taken::new(count),
        })
    }

    /// Ends the captures of a port that goes: what has its number next is another.
    pub fn end_port(&self, port: PortId) {
        let _changing = self.changing();
        let sessions = self.sessions.load();
        let (ended, left): (Vec<_>, Vec<_>) = sessions
            .iter()
            .cloned()
            .partition(|session| session.port == port);
        if ended.is_empty() {
            return;
        }
        self.replace(left);
        for session in ended {
            session.ended.store(true, Ordering::Release);
            (session.bell.0)();
        }
    }

    fn end(&self, session: &Arc<Session>) {
        let _changing = self.changing();
        let mut sessions = Vec::clone(&self.sessions.load());
        sessions.retain(|other| !Arc::ptr_eq(other, session));
        self.replace(sessions);
    }

    fn replace(&self, sessions: Vec<Arc<Session>>) {
        let count = sessions.len();
        self.sessions.store(Arc::new(sessions));
        self.active.store(count, Ordering::Release);
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Captures a frame of the port, if it is wanted: `header` is its start, `rest` what comes behind that.
    fn capture(
        &self,
        (lane, meta): (usize, &Meta),
        header: &[u8],
        (mut rest, rest_bytes): (PayloadCursor<'_>, u32),
    ) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        let subject = Subject {
            header,
            frame_bytes: header.len() + rest_bytes as usize,
            direction: meta.direction,
            dropped: meta.fate.dropped(),
        };
        let filter = self.options.filter.as_ref();
        if filter.is_some_and(|filter| !filter.wants(&subject)) {
            return;
        }
        self.wanted.fetch_add(1, Ordering::Relaxed);
        let most = subject
            .frame_bytes
            .min(self.options.snap_bytes.max(MIN_SNAP_BYTES) as usize);
        let lane = self.lanes.get(lane).or(self.lanes.last());
        let pushed = lane.map(|lane| {
            push(lane, (meta, most), |room| {
                let start = header.get(..room.len()).unwrap_or(header);
                let Some((to, left)) = room.split_at_mut_checked(start.len()) else {
                    return 0;
                };
                to.copy_from_slice(start);
                start.len() + rest.read(left)
            })
        });
        match pushed {
            Some(Pushed::First) => (self.bell.0)(),
            Some(Pushed::Behind) => {}
            Some(Pushed::Missed) | None => {
                self.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A running capture, for its one reader. It ends when this is dropped.
#[derive(Debug)]
pub struct Capture {
    session: Arc<Session>,
    captures: Arc<Captures>,
    taken: Taken,
}

impl Capture {
    /// The next frame that waits, by time as far as that is known; each worker's are in their order. After `None` the bell rings again.
    pub fn next_frame(&mut self) -> Option<Captured<'_>> {
        if self.taken.is_empty() {
            self.taken.swap(&self.session.lanes);
        }
        self.taken.next_frame()
    }

    /// Whether its port is gone. What waits can still be taken.
    pub fn has_ended(&self) -> bool {
        self.session.ended.load(Ordering::Acquire)
    }

    /// What was counted so far.
    pub fn counts(&self) -> CaptureCounts {
        CaptureCounts {
            seen: self.session.seen.load(Ordering::Relaxed),
            wanted: self.session.wanted.load(Ordering::Relaxed),
            missed: self.session.missed.load(Ordering::Relaxed),
        }
    }

    /// How many bytes of a frame there are at most.
    pub fn snap_bytes(&self) -> u32 {
        self.session.options.snap_bytes
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.captures.end(&self.session);
    }
}

/// A batch of a worker, for the captures there are.
#[derive(Debug)]
pub struct Onlookers {
    sessions: Arc<Vec<Arc<Session>>>,
    /// The worker's.
    lane: usize,
    at_ns: u64,
}

impl Onlookers {
    /// Of a batch that is switched now.
    #[cold]
    pub fn new(sessions: Arc<Vec<Arc<Session>>>, lane: usize) -> Self {
        Self {
            sessions,
            lane,
            at_ns: real_ns(),
        }
    }

    /// Shows the frames of a batch that came from a port, with what was decided on them. Of a frame whose copies all end here each is shown
    /// when that happens ([`Self::dropped`]).
    #[cold]
    pub fn sent(&self, from: PortId, batch: &Batch, outcomes: &Outcomes) {
        for session in self.of(from) {
            for (index, frame) in batch.frames.iter().enumerate() {
                if let Some(fate) = fate(frame, outcomes) {
                    let meta = self.meta(frame, (Direction::In, fate));
                    self.show(session, &meta, (batch, index));
                }
            }
        }
    }

    /// Shows a frame of a batch that has ended at a port.
    #[cold]
    pub fn dropped(
        &self,
        at: (PortId, Direction),
        (batch, index): (&Batch, usize),
        reason: DropReason,
    ) {
        let (port, direction) = at;
        for session in self.of(port) {
            if let Some(frame) = batch.frames.get(index) {
                let meta = self.meta(frame, (direction, Fate::Dropped(reason)));
                self.show(session, &meta, (batch, index));
            }
        }
    }

    /// Shows a frame that was delivered, as it left: before it was cut, if it was.
    #[cold]
    pub fn delivered(
        &self,
        to: PortId,
        from: Option<PortId>,
        (batch, parcel): (&Batch, Parcel),
        outcomes: &Outcomes,
    ) {
        for session in self.of(to) {
            let (Some(frame), Some(header), Some(edit)) = (
                batch.frames.get(parcel.frame),
                batch.headers.get(parcel.frame),
                OutgoingEdit::of(parcel.edit, outcomes),
            ) else {
                continue;
            };
            let mut meta = self.meta(frame, (Direction::Out, Fate::Passed { from }));
            let (mut header, mut staging) = (header.clone(), PrivateHeader::EMPTY);
            let rest = (frame.rest(&batch.arena, &batch.local), frame.rest_bytes);
            let made = edited(
                &mut header,
                frame.rest_bytes,
                edit,
                frame.offload,
                &mut staging,
            );
            // It was delivered, so its edits can be made.
            if let Ok(made) = made {
                let start = made.header.frame();
                meta.frame_bytes = start.len() as u32 + frame.rest_bytes;
                session.capture((self.lane, &meta), start, rest);
            }
        }
    }

    /// Captures of a port.
    fn of(&self, port: PortId) -> impl Iterator<Item = &Session> {
        let sessions = self.sessions.iter().map(AsRef::as_ref);
        sessions.filter(move |session| session.port == port)
    }

    fn meta(&self, frame: &Frame, (direction, fate): (Direction, Fate)) -> Meta {
        Meta {
            at_ns: self.at_ns,
            frame_bytes: frame.len_bytes,
            direction,
            fate,
        }
    }

    /// A frame as it came.
    fn show(&self, session: &Session, meta: &Meta, (batch, index): (&Batch, usize)) {
        let (Some(header), Some(frame)) = (batch.headers.get(index), batch.frames.get(index))
        else {
            return;
        };
        // What a refused frame's private header holds may be another frame's.
        let copied = frame.len_bytes.saturating_sub(frame.rest_bytes) as usize;
        let start = header.frame().get(..copied).unwrap_or_default();
        let rest = frame.rest(&batch.arena, &batch.local);
        session.capture((self.lane, meta), start, (rest, frame.rest_bytes));
    }
}

/// What was decided on a frame; `None`: nothing of it goes anywhere, and each of its drops is shown by itself.
fn fate(frame: &Frame, outcomes: &Outcomes) -> Option<Fate> {
    Some(match frame.verdict {
        Verdict::Drop(reason) => Fate::Dropped(reason),
        Verdict::Output { port, .. } => Fate::Sent { to: port },
        Verdict::Flood(_) => Fate::Flooded,
        Verdict::Copies(id) => {
            let (mut ports, mut last, mut is_punted) = (0, None, false);
            for copy in outcomes.copies(id) {
                match copy.target {
                    Target::Port(port) => {
                        ports += 1;
                        last = Some(port);
                    }
                    Target::Controller(_) => is_punted = true,
                    Target::Drop(_) => {}
                }
            }
            match (last, ports) {
                _ if is_punted => Fate::Punted { ports },
                (None, _) => return None,
                (Some(to), 1) => Fate::Sent { to },
                _ => Fate::Copied { ports },
            }
        }
    })
}

/// Shows a frame from a port that has ended on the control side.
#[cold]
pub fn dropped_by_control(captures: &Captures, port: PortId, reason: DropReason, frame: &[u8]) {
    let Some(sessions) = captures.current() else {
        return;
    };
    let onlookers = Onlookers::new(sessions, CONTROL_LANE);
    for session in onlookers.of(port) {
        let meta = Meta {
            at_ns: onlookers.at_ns,
            frame_bytes: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            direction: Direction::In,
            fate: Fate::Dropped(reason),
        };
        session.capture((CONTROL_LANE, &meta), frame, (Payload::EMPTY.cursor(), 0));
    }
}

/// Nanoseconds since 1970.
fn real_ns() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
