//! Two guests that talk to each other as fast as they may, and notice every byte that is lost, repeated or changed.
//!
//! Each queue pair of each guest sends one stream of TCP segments, small ones and such that the device may have to cut; the other checks
//! every frame and that the streams go on where they were. Driven on the threads that own the queue pairs. Keeps true: never more frames
//! are on their way than the receiver has buffers for, so that a frame which does not arrive was lost by the device, or was on its way
//! while the receiver was stopped ([`Talker::pardon`]). Such a frame may also lie in another of its rings, where it went when the
//! stream's own had stopped already: it may then come late, once.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::dice::Dice;
use crate::driver::wait::Patience;
use crate::error::Error;
use crate::frame::verify::{self, FrameError};
use crate::frame::{FrameBuilder, MacAddr, Transport};
use crate::nic::QueuePair;

/// TCP port of the first stream; the others follow.
const FIRST_PORT: u16 = 21_000;
/// TCP port they go to.
const PORT: u16 = 80;
/// A guest with nothing to do waits this long for a call.
const NAP: Duration = Duration::from_millis(1);
/// Longest pause in which a guest lets its rings fall idle.
const PAUSE: Duration = Duration::from_micros(400);

/// What is sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// Frames of each stream that may be on their way.
    pub window: usize,
    /// Payload bytes of the frames, in turn; those above 1460 are left to the device to cut.
    pub payloads: Vec<usize>,
    /// Every so many turns a guest pauses, so that its rings fall idle; 0: never.
    pub pause_one_in: u64,
}

impl Load {
    /// Frames of all sizes up to 60 KB, for rings of 256 and more with mergeable buffers.
    pub fn offloaded() -> Self {
        Self {
            window: 4,
            payloads: vec![18, 1460, 20_000, 700, 4, 60_000, 1000],
            ..Self::plain()
        }
    }

    /// Frames that need no offload and one buffer each.
    pub fn plain() -> Self {
        Self {
            window: 16,
            payloads: vec![18, 1460, 240, 700, 1, 1000],
            pause_one_in: 40,
        }
    }
}

/// What went wrong between two guests.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// The driver or the device.
    #[error(transparent)]
    Nic(#[from] Error),
    /// A frame arrived wrong.
    #[error("a frame arrived wrong: {0}")]
    Frame(#[from] FrameError),
    /// A stream did not go on where it was.
    #[error("stream {stream}: byte {expected} is due, and byte {found} came: {what}")]
    Order {
        /// Which.
        stream: usize,
        /// Sequence number due.
        expected: u32,
        /// Sequence number that came.
        found: u32,
        /// What that means.
        what: &'static str,
    },
    /// A frame that nobody sent.
    #[error("a frame that nobody sent")]
    Stray,
}

/// What a talker is to do; shared with whoever directs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Send and receive.
    Talk = 0,
    /// Receive only.
    Listen = 1,
    /// Leave off.
    Stop = 2,
}

/// Where the phase stands.
#[derive(Debug, Default)]
pub struct Stage(AtomicU8);

impl Stage {
    /// Everybody's next turn is of this phase.
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }

    fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Talk,
            1 => Phase::Listen,
            _ => Phase::Stop,
        }
    }
}

/// Sequence numbers of a frame.
type Bytes = Range<u32>;

/// A pardoned frame that a later one of its stream has overtaken. Known again only as a whole: a receiver with several rings has to take
/// what is left to be cut.
#[derive(Debug, PartialEq, Eq)]
struct Missed {
    bytes: Bytes,
    /// The ring that the later one came on. One ring keeps its order.
    ring: usize,
}

/// One direction: how far each stream has been sent and received.
#[derive(Debug)]
struct Direction {
    streams: Vec<Stream>,
}

#[derive(Debug, Default)]
struct Stream {
    sent_to: AtomicU32,
    received_to: AtomicU32,
    /// Frames that may be lost, or late.
    pardoned: Mutex<Vec<Bytes>>,
}

impl Direction {
    fn new(streams: usize) -> Arc<Self> {
        let streams = (0..streams).map(|_| Stream::default()).collect();
        Arc::new(Self { streams })
    }
}

impl Stream {
    fn pardoned(&self) -> MutexGuard<'_, Vec<Bytes>> {
        self.pardoned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of two guests that talk to each other.
#[derive(Debug)]
pub struct Talker {
    own: MacAddr,
    peer: MacAddr,
    load: Load,
    dice: Dice,
    outward: Arc<Direction>,
    inward: Arc<Direction>,
    /// Per outward stream, frames that were sent and not received.
    on_their_way: Vec<VecDeque<Bytes>>,
    /// Per inward stream, pardoned frames that did not arrive yet.
    missed: Vec<Vec<Missed>>,
    /// Frames sent, which says what the next is like.
    turns: usize,
}

/// Two guests with these MAC addresses and numbers of queue pairs.
pub fn conversation(
    (one, one_pairs): (MacAddr, usize),
    (other, other_pairs): (MacAddr, usize),
    load: &Load,
    dice: &mut Dice,
) -> (Talker, Talker) {
    let (there, back) = (Direction::new(one_pairs), Direction::new(other_pairs));
    let mut talker = |own, peer, outward: &Arc<Direction>, inward: &Arc<Direction>| Talker {
        own,
        peer,
        load: load.clone(),
        dice: Dice::new(dice.throw()),
        outward: outward.clone(),
        inward: inward.clone(),
        on_their_way: vec![VecDeque::new(); outward.streams.len()],
        missed: inward.streams.iter().map(|_| Vec::new()).collect(),
        turns: 0,
    };
    let first = talker(one, other, &there, &back);
    (first, talker(other, one, &back, &there))
}

impl Talker {
    /// One guest, whose frames the device sends back to it as they are.
    pub fn alone(own: MacAddr, pairs: usize, load: &Load, dice: &mut Dice) -> Self {
        let (mut talker, _) = conversation((own, pairs), (own, pairs), load, dice);
        talker.inward = talker.outward.clone();
        talker
    }

    /// Talks on these queue pairs until the phase is [`Phase::Stop`].
    ///
    /// # Errors
    /// What goes wrong first.
    pub fn talk(&mut self, pairs: &mut [QueuePair], stage: &Stage) -> Result<(), TalkError> {
        loop {
            let phase = stage.phase();
            if phase == Phase::Stop {
                return Ok(());
            }
            let busy = self.turn(pairs, phase)?;
            if !busy && let Some(pair) = pairs.first_mut() {
                // Asks for a call, as a driver does that has nothing to do.
                if let Some(frame) = pair.guest_rx.receive(NAP)? {
                    self.arrived(0, &frame)?;
                }
            }
            if self.load.pause_one_in > 0 && self.dice.one_in(self.load.pause_one_in) {
                self.dice.pause(PAUSE);
            }
        }
    }

    /// Receives what there is and sends what may be sent; whether there was anything to do.
    ///
    /// # Errors
    /// What goes wrong first.
    pub fn turn(&mut self, pairs: &mut [QueuePair], phase: Phase) -> Result<bool, TalkError> {
        let mut busy = false;
        for (number, pair) in pairs.iter_mut().enumerate() {
            while let Some(frame) = pair.guest_rx.try_receive()? {
                self.arrived(number, &frame)?;
                busy = true;
            }
            pair.guest_tx.reclaim()?;
            if phase == Phase::Talk {
                busy |= self.send(number, pair)?;
            }
        }
        Ok(busy)
    }

    fn send(&mut self, stream: usize, pair: &mut QueuePair) -> Result<bool, TalkError> {
        let received_to = self.outward.streams[stream]
            .received_to
            .load(Ordering::Acquire);
        let on_their_way = &mut self.on_their_way[stream];
        while on_their_way
            .front()
            .is_some_and(|frame| is_past(received_to, frame.end))
        {
            on_their_way.pop_front();
        }
        let mut sent = false;
        while self.on_their_way[stream].len() < self.load.window {
            let sequence = self.outward.streams[stream].sent_to.load(Ordering::Relaxed);
            let payload = self.load.payloads[self.turns % self.load.payloads.len()];
            let frame = self.builder(stream, payload).sequence(sequence).build();
            match pair.guest_tx.queue(&frame) {
                Ok(()) => {}
                Err(Error::RingFull) => break,
                Err(other) => return Err(other.into()),
            }
            self.turns += 1;
            let end = sequence.wrapping_add(payload as u32);
            // Before the frame can arrive.
            self.outward.streams[stream]
                .sent_to
                .store(end, Ordering::Release);
            self.on_their_way[stream].push_back(sequence..end);
            sent = true;
        }
        pair.guest_tx.publish()?;
        Ok(sent)
    }

    /// A stream is of one IP version, so that it stays on one of the receiver's rings.
    fn builder(&self, stream: usize, payload: usize) -> FrameBuilder {
        let builder = match stream % 2 {
            0 => FrameBuilder::tcp4(payload),
            _ => FrameBuilder::tcp6(payload),
        };
        let builder = builder
            .macs(self.own, self.peer)
            .ports(FIRST_PORT + stream as u16, PORT);
        match payload {
            1461.. => builder.segment(1400),
            _ => builder,
        }
    }

    fn arrived(&mut self, ring: usize, frame: &crate::Frame) -> Result<(), TalkError> {
        let parsed = verify::check(frame)?;
        if parsed.source != self.peer || parsed.destination != self.own {
            // What the switch floods, and announcements.
            return Ok(());
        }
        let Transport::Tcp {
            ports, sequence, ..
        } = parsed.transport
        else {
            return Err(TalkError::Stray);
        };
        let stream = usize::from(ports.0.wrapping_sub(FIRST_PORT));
        let known = self.inward.streams.get(stream).ok_or(TalkError::Stray)?;
        let expected = known.received_to.load(Ordering::Relaxed);
        let out_of_order = |what| TalkError::Order {
            stream,
            expected,
            found: sequence,
            what,
        };
        let length = parsed.payload(&frame.bytes).len() as u32;
        let bytes = sequence..sequence.wrapping_add(length);
        let missed = &mut self.missed[stream];
        if !is_past(sequence, expected) {
            let late = |missed: &Missed| missed.bytes == bytes && missed.ring != ring;
            let at = missed.iter().position(late);
            missed.swap_remove(at.ok_or(out_of_order("bytes came twice, or late"))?);
            return Ok(());
        }
        let overtaken = known.overtaken(expected, sequence);
        let overtaken = overtaken.ok_or(out_of_order("bytes were lost"))?;
        missed.extend(overtaken.into_iter().map(|bytes| Missed { bytes, ring }));
        known.received_to.store(bytes.end, Ordering::Release);
        Ok(())
    }

    /// The other guest was stopped: what this one has on its way may be lost, or come late on another ring, as whole frames.
    pub fn pardon(&mut self) {
        for (stream, on_their_way) in self.on_their_way.iter_mut().enumerate() {
            let mut pardoned = self.outward.streams[stream].pardoned();
            pardoned.extend(on_their_way.drain(..));
        }
    }

    /// Frames that were pardoned and did not arrive, though later ones did.
    pub fn lost_frames(&self) -> usize {
        self.missed.iter().map(Vec::len).sum()
    }

    /// Shared with nothing: where both directions stand, for a thread that waits for them.
    pub fn progress(&self) -> Progress {
        Progress {
            directions: [self.outward.clone(), self.inward.clone()],
        }
    }
}

impl Stream {
    /// The pardoned frames from here to there, if those are all that is between.
    fn overtaken(&self, from: u32, to: u32) -> Option<Vec<Bytes>> {
        if from == to {
            return Some(Vec::new());
        }
        let mut pardoned = self.pardoned();
        let between = |frame: &&Bytes| is_past(frame.start, from) && is_past(to, frame.end);
        let between: Vec<Bytes> = pardoned.iter().filter(between).cloned().collect();
        pardoned.retain(|frame| !is_past(to, frame.end));
        let bytes = between
            .iter()
            .map(|frame| frame.end.wrapping_sub(frame.start));
        (bytes.sum::<u32>() == to.wrapping_sub(from)).then_some(between)
    }
}

/// Whether sequence number `at` is `mark` or behind it.
fn is_past(at: u32, mark: u32) -> bool {
    at.wrapping_sub(mark) < 1 << 31
}

/// Where both directions of a conversation stand.
#[derive(Clone, Debug)]
pub struct Progress {
    directions: [Arc<Direction>; 2],
}

impl Progress {
    /// Bytes received, of each stream in each direction.
    pub fn received(&self) -> Vec<u32> {
        self.streams()
            .map(|stream| stream.received_to.load(Ordering::Acquire))
            .collect()
    }

    /// Waits until every stream has received `bytes` more; false when one did not.
    pub fn advance(&self, bytes: u32, within: Duration) -> bool {
        let start = self.received();
        let patience = Patience::of(within);
        loop {
            let now = self.received();
            if now
                .iter()
                .zip(&start)
                .all(|(now, start)| now.wrapping_sub(*start) >= bytes)
            {
                return true;
            }
            if patience.is_over() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until all that was sent has been received, while nobody sends more; false when it was not.
    pub fn settle(&self, within: Duration) -> bool {
        let patience = Patience::of(within);
        let settled = |stream: &Stream| {
            stream.sent_to.load(Ordering::Acquire) == stream.received_to.load(Ordering::Acquire)
        };
        while !self.streams().all(settled) {
            if patience.is_over() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn streams(&self) -> impl Iterator<Item = &Stream> {
        self.directions
            .iter()
            .flat_map(|direction| &direction.streams)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talkers() -> (Talker, Talker) {
        let load = Load::plain();
        conversation(([2; 6], 1), ([4; 6], 1), &load, &mut Dice::new(1))
    }

    fn frame(talker: &Talker, sequence: u32, payload: usize) -> crate::Frame {
        talker.builder(0, payload).sequence(sequence).build()
    }

    #[test]
    fn what_is_lost_repeated_or_changed_is_noticed() {
        let (one, mut other) = talkers();
        let first = frame(&one, 0, 100);
        other.arrived(0, &first).unwrap();
        let again = other.arrived(0, &first).unwrap_err();
        assert!(again.to_string().contains("came twice"), "{again}");
        let later = other.arrived(0, &frame(&one, 200, 100)).unwrap_err();
        assert!(later.to_string().contains("lost"), "{later}");
        let mut changed = frame(&one, 100, 100);
        changed.bytes[80] ^= 1;
        assert!(matches!(
            other.arrived(0, &changed),
            Err(TalkError::Frame(_))
        ));
        other.arrived(0, &frame(&one, 100, 50)).unwrap();
        // Of somebody else.
        other.arrived(0, &frame(&other, 0, 50)).unwrap();
        assert_eq!(one.progress().received(), [150, 0]);
    }

    /// Ends of frames that were on their way when the other guest was stopped.
    fn stopped_with(one: &mut Talker, ends: &[u32]) {
        let starts = [0].iter().chain(ends);
        let frames = starts.zip(ends).map(|(&start, &end)| start..end);
        one.on_their_way[0].extend(frames);
        one.pardon();
    }

    #[test]
    fn whole_frames_are_pardoned_once() {
        let (mut one, mut other) = talkers();
        stopped_with(&mut one, &[100, 200, 300]);
        other.arrived(0, &frame(&one, 0, 100)).unwrap();
        let part = other.arrived(0, &frame(&one, 150, 150)).unwrap_err();
        assert!(part.to_string().contains("lost"), "{part}");
        other.arrived(0, &frame(&one, 300, 100)).unwrap();
        assert_eq!(other.lost_frames(), 2);
        assert!(other.arrived(0, &frame(&one, 500, 100)).is_err());
    }

    #[test]
    fn a_pardoned_frame_may_come_late_on_another_ring_and_once() {
        let (mut one, mut other) = talkers();
        stopped_with(&mut one, &[100, 200, 300]);
        other.arrived(1, &frame(&one, 0, 100)).unwrap();
        other.arrived(0, &frame(&one, 300, 100)).unwrap();
        let late = frame(&one, 100, 100);
        // One ring keeps its order, and what came in time does not come again.
        for (ring, again) in [
            (0, &late),
            (1, &frame(&one, 0, 100)),
            (1, &frame(&one, 100, 50)),
        ] {
            let twice = other.arrived(ring, again).unwrap_err();
            assert!(twice.to_string().contains("came twice"), "{twice}");
        }
        other.arrived(1, &late).unwrap();
        assert_eq!(other.lost_frames(), 1);
        assert!(other.arrived(1, &late).is_err());
        other.arrived(0, &frame(&one, 400, 100)).unwrap();
        assert_eq!(other.progress().received(), [0, 500]);
    }
}
