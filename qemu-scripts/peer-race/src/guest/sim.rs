//! guest-sim as a guest: it plays what testpmd cannot, on the guest's core, in this process.
//!
//! Its traffic moves only while it is asked to: between turns it costs nothing. Keeps true: every wait ends, and says what did not come.

use std::time::{Duration, Instant};

use guest_sim::bench::bounce::Counts;
use guest_sim::bench::{Bounce, Sink, Source, cores};
use guest_sim::frame::{FrameBuilder, build::BROADCAST, build::MacAddr};
use guest_sim::{Features, Frame, GuestMemory, GuestMemoryLayout, Nic, NicOptions, Refill};

use super::{Delay, Fairness, Guest, Rate, Seen};
use crate::case::{Frames, Load, Rig, Ring};
use crate::error::{Error, Result};
use crate::machine::{Machine, on_a_thread};
use crate::switch::Switch;

/// Nothing arrives for so long: it has stopped.
const STALLED: Duration = Duration::from_secs(2);
/// How long a switch may take to serve new ports.
const ATTACHED_WITHIN: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_millis(20);
/// A frame that did not arrive by then was lost.
const LOST_AFTER: Duration = Duration::from_millis(5);
/// Frames a sender sends, and a receiver takes, at a time.
const BURST: usize = 32;
/// Frames on their way where the guest limits them.
const WINDOW: u64 = 256;
/// Turns between two looks at the clock.
const TURNS: usize = 64;

/// A simulated guest.
pub struct SimGuest {
    core: usize,
    rig: Rig,
    sockets: Vec<std::path::PathBuf>,
    play: Option<Play>,
    /// Held open, and silent.
    _idle: Vec<Nic>,
}

/// NICs with what they do.
enum Play {
    Bounce(Vec<(Nic, Bounce)>),
    Stream(Stream),
    Ping { ends: Vec<End>, idle: Duration },
}

/// A NIC that sends, receives, or both.
struct End {
    nic: Nic,
    source: Option<Source>,
    sink: Sink,
}

struct Stream {
    ends: Vec<End>,
    /// Receivers of each frame.
    copies: u64,
    /// Frames on their way at most; `None`: as many as the rings hold.
    window: Option<u64>,
    sent: u64,
    /// Given up as lost.
    lost: u64,
    last_arrival: Instant,
}

/// What a simulated NIC takes of what it is offered.
pub fn options(rig: &Rig) -> NicOptions {
    let tso = match rig.frames {
        Frames::Tso => Features::HOST_TSO4 | Features::GUEST_TSO4,
        Frames::Standard | Frames::Jumbo => Features::NONE,
    };
    let packed = match rig.ring {
        Ring::Split => Features::NONE,
        Ring::Packed | Ring::PackedVectorised => Features::RING_PACKED | Features::IN_ORDER,
    };
    let ring = if rig.ports > 2 { 256 } else { 1024 };
    NicOptions {
        features: Features::VERSION_1 | Features::MRG_RXBUF | tso | packed,
        optional_features: Features::LINUX,
        guest_rx_ring_size: ring,
        guest_tx_ring_size: ring,
        refill: Refill::Manual,
        ..NicOptions::bench()
    }
}

fn mac(port: usize) -> MacAddr {
    [0x52, 0x54, 0, 0, 0, port as u8 + 1]
}

fn frame(bytes: usize, from: usize, to: MacAddr) -> Frame {
    let builder = if bytes > 9216 {
        FrameBuilder::tcp4(0).segment(1448)
    } else {
        FrameBuilder::udp4(0)
    };
    let mut frame = builder.frame_bytes(bytes).macs(mac(from), to).build();
    if bytes <= 9216
        && let Some(checksum) = frame.bytes.get_mut(40..42)
    {
        // None (RFC 768): flows are told apart by ports, which change on the way.
        checksum.fill(0);
    }
    frame
}

impl SimGuest {
    /// Remembers where to connect: it does when it is given a load.
    ///
    /// # Errors
    /// Idle ports cannot be connected.
    pub fn start(machine: &Machine, rig: &Rig, switch: &dyn Switch) -> Result<Self> {
        Ok(Self {
            core: machine.guest_core,
            rig: *rig,
            sockets: (0..rig.ports).map(|port| switch.socket(port)).collect(),
            play: None,
            _idle: super::idle_ports(rig, switch)?,
        })
    }

    fn attach(&self) -> Result<(GuestMemory, Vec<Nic>)> {
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(1 << 30))
            .map_err(guest_sim::Error::from)?;
        let options = options(&self.rig);
        let nics = self
            .sockets
            .iter()
            .map(|socket| Ok(Nic::attach(&memory, options.clone(), socket)?))
            .collect::<Result<_>>()?;
        Ok((memory, nics))
    }

    fn play(&self, load: &Load) -> Result<Play> {
        let (memory, nics) = self.attach()?;
        Ok(match *load {
            Load::Bounce {
                frame_bytes,
                burst,
                flows,
                buffer_bytes,
            } => {
                let per_frame = (frame_bytes + 12).div_ceil(buffer_bytes);
                let ring = usize::from(options(&self.rig).guest_rx_ring_size);
                // However they gather at one end, its receive ring has buffers for all of them.
                let in_flight = (ring / per_frame / 4).clamp(1, 256);
                let mut guests = Vec::new();
                for mut nic in nics {
                    let mut bounce =
                        Bounce::new(&memory, &mut nic, buffer_bytes, frame_bytes, 2 * in_flight)?;
                    bounce.set_batch(burst);
                    guests.push((nic, bounce));
                }
                start_bouncing(&mut guests, frame_bytes, in_flight)?;
                guests
                    .iter_mut()
                    .for_each(|(_, bounce)| bounce.set_flows(flows));
                Play::Bounce(guests)
            }
            Load::OneWay { frame_bytes } => {
                let frames = [vec![frame(frame_bytes, 0, mac(1))]];
                Play::Stream(Stream::new(&memory, nics, &frames, 1, Some(WINDOW))?)
            }
            Load::FanOut { frame_bytes } => {
                let to_each = (1..nics.len()).map(|port| frame(frame_bytes, 0, mac(port)));
                let frames = [to_each.collect()];
                Play::Stream(Stream::new(&memory, nics, &frames, 1, Some(WINDOW))?)
            }
            Load::FanIn { frame_bytes } => {
                let mut frames = vec![Vec::new()];
                let sizes = frame_bytes.iter().cycle();
                frames.extend(
                    (1..nics.len())
                        .zip(sizes)
                        .map(|(port, &bytes)| vec![frame(bytes, port, mac(0))]),
                );
                Play::Stream(Stream::new(&memory, nics, &frames, 1, None)?)
            }
            Load::Flood { frame_bytes } => {
                let copies = nics.len() as u64 - 1;
                let frames = [vec![frame(frame_bytes, 0, BROADCAST)]];
                Play::Stream(Stream::new(
                    &memory,
                    nics,
                    &frames,
                    copies,
                    Some(WINDOW / 4),
                )?)
            }
            Load::Ping { frame_bytes, idle } => {
                let frames = [0, 1].map(|port| vec![frame(frame_bytes, port, mac(1 - port))]);
                let mut ends = ends(&memory, nics, &frames)?;
                introduce(&mut ends)?;
                Play::Ping { ends, idle }
            }
        })
    }

    fn run(&mut self, time: Duration) -> Result<Seen> {
        let core = self.core;
        let play = self
            .play
            .as_mut()
            .ok_or_else(|| Error::Invalid("no load yet".into()))?;
        on_a_thread(move || {
            cores::pin(core)?;
            match play {
                Play::Bounce(guests) => bounce_for(guests, time).map(Seen::Rate),
                Play::Stream(stream) => stream.run(time).map(Seen::Rate),
                Play::Ping { ends, idle } => ping_for(ends, *idle, time).map(Seen::Delay),
            }
        })
    }
}

impl Guest for SimGuest {
    fn freeze(&mut self) -> Result<()> {
        Ok(())
    }

    fn thaw(&mut self) -> Result<()> {
        Ok(())
    }

    fn load(&mut self, load: &Load) -> Result<()> {
        // The old NICs hang up before new ones connect to the same sockets.
        self.play = None;
        let core = self.core;
        let this = &*self;
        let play = on_a_thread(move || {
            cores::pin(core)?;
            this.play(load)
        })?;
        self.play = Some(play);
        Ok(())
    }

    fn warm_up(&mut self, time: Duration) -> Result<()> {
        self.run(time).map(drop)
    }

    fn measure(&mut self, time: Duration) -> Result<Seen> {
        self.run(time)
    }

    fn flows_by_itself(&self) -> bool {
        false
    }

    fn stop(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

fn stalled(what: &str, within: Duration) -> Error {
    Error::Deadline {
        what: what.to_owned(),
        within,
        said: String::new(),
    }
}

/// Frames between both ends, once the switch serves both and knows their addresses.
fn start_bouncing(
    guests: &mut [(Nic, Bounce)],
    frame_bytes: usize,
    in_flight: usize,
) -> Result<()> {
    let frames = [0, 1].map(|port| frame(frame_bytes, port, mac(1 - port)));
    let start = Instant::now();
    let counts = |guests: &[(Nic, Bounce)]| -> Vec<u64> {
        guests.iter().map(|(_, b)| b.counts().frames).collect()
    };
    // Ports that are new to a switch lose frames: single ones go ahead until they come back again and again.
    loop {
        for ((nic, bounce), frame) in guests.iter_mut().zip(&frames) {
            match bounce.inject(nic, frame, 1) {
                Ok(()) | Err(guest_sim::Error::RingFull) => {}
                Err(other) => return Err(other.into()),
            }
        }
        let (before, probe) = (counts(guests), Instant::now());
        while probe.elapsed() < PROBE_EVERY {
            for (nic, bounce) in guests.iter_mut() {
                bounce.turn(nic)?;
            }
        }
        let flows = counts(guests)
            .iter()
            .zip(&before)
            .all(|(now, then)| now - then >= 10);
        if flows {
            break;
        }
        if start.elapsed() > ATTACHED_WITHIN {
            return Err(stalled("frames between two new ports", ATTACHED_WITHIN));
        }
    }
    for ((nic, bounce), frame) in guests.iter_mut().zip(&frames) {
        for _ in 0..in_flight {
            match bounce.inject(nic, frame, 1) {
                Ok(()) => {}
                // The probes took some of the room.
                Err(guest_sim::Error::RingFull) => break,
                Err(other) => return Err(other.into()),
            }
        }
    }
    Ok(())
}

fn sum(counts: impl Iterator<Item = Counts>) -> Counts {
    counts.fold(Counts::default(), |sum, one| Counts {
        frames: sum.frames + one.frames,
        bytes: sum.bytes + one.bytes,
    })
}

fn rate(before: Counts, after: Counts, elapsed: Duration) -> Rate {
    let seconds = elapsed.as_secs_f64();
    Rate {
        frames_per_s: (after.frames - before.frames) as f64 / seconds,
        bits_per_s: (after.bytes - before.bytes) as f64 * 8.0 / seconds,
        fairness: None,
    }
}

/// Turns until the time is over; `turn` says how many frames came.
fn run_for(time: Duration, mut turn: impl FnMut() -> Result<usize>) -> Result<Duration> {
    let start = Instant::now();
    let mut last_frame = start;
    loop {
        let mut frames = 0;
        for _ in 0..TURNS {
            frames += turn()?;
        }
        let now = Instant::now();
        if frames > 0 {
            last_frame = now;
        } else if now - last_frame > STALLED {
            return Err(stalled("frames to arrive", STALLED));
        }
        if now - start >= time {
            return Ok(now - start);
        }
    }
}

fn bounce_for(guests: &mut [(Nic, Bounce)], time: Duration) -> Result<Rate> {
    let counts = |guests: &[(Nic, Bounce)]| sum(guests.iter().map(|(_, bounce)| bounce.counts()));
    let before = counts(guests);
    let elapsed = run_for(time, || {
        let mut frames = 0;
        for (nic, bounce) in guests.iter_mut() {
            frames += bounce.turn(nic)?;
        }
        Ok(frames)
    })?;
    Ok(rate(before, counts(guests), elapsed))
}

/// Each NIC with what it sends, if anything.
fn ends(memory: &GuestMemory, nics: Vec<Nic>, frames: &[Vec<Frame>]) -> Result<Vec<End>> {
    let none = Vec::new();
    let frames = frames.iter().chain(std::iter::repeat(&none));
    nics.into_iter()
        .zip(frames)
        .map(|(mut nic, frames)| {
            let source = if frames.is_empty() {
                None
            } else {
                Some(Source::new(memory, &mut nic, frames)?)
            };
            let sink = Sink::new(memory, &mut nic, 2048)?;
            Ok(End { nic, source, sink })
        })
        .collect()
}

/// Every sender sends single frames until some arrived from each: the switch serves all ports.
fn introduce(ends: &mut [End]) -> Result<()> {
    let start = Instant::now();
    loop {
        let probe = Instant::now();
        for end in ends.iter_mut() {
            if let Some(source) = &mut end.source {
                source.turn(&mut end.nic, 1)?;
            }
        }
        while probe.elapsed() < PROBE_EVERY {
            for end in ends.iter_mut() {
                end.sink.turn(&mut end.nic, BURST)?;
            }
        }
        let heard = |port: usize| {
            let last_byte = mac(port).last().copied().unwrap_or_default();
            let mut sinks = ends.iter().map(|end| &end.sink);
            sinks.any(|sink| sink.received_from(last_byte).frames >= 3)
        };
        let all_heard = ends
            .iter()
            .enumerate()
            .all(|(port, end)| end.source.is_none() || heard(port));
        let silent = ends.iter().filter(|end| end.source.is_none());
        let all_hear = silent.clone().count() == 0
            || silent.into_iter().all(|end| end.sink.received().frames > 0);
        if all_heard && all_hear {
            return Ok(());
        }
        if start.elapsed() > ATTACHED_WITHIN {
            return Err(stalled("frames between new ports", ATTACHED_WITHIN));
        }
    }
}

impl Stream {
    fn new(
        memory: &GuestMemory,
        nics: Vec<Nic>,
        frames: &[Vec<Frame>],
        copies: u64,
        window: Option<u64>,
    ) -> Result<Self> {
        let mut ends = ends(memory, nics, frames)?;
        teach(memory, &mut ends)?;
        introduce(&mut ends)?;
        Ok(Self {
            ends,
            copies,
            window,
            sent: 0,
            lost: 0,
            last_arrival: Instant::now(),
        })
    }

    fn received(&self) -> Counts {
        sum(self.ends.iter().map(|end| end.sink.received()))
    }

    fn run(&mut self, time: Duration) -> Result<Rate> {
        // Frames of the time before are no part of this one's window.
        let (start, served) = (self.received(), self.served());
        let senders: Vec<u8> = self.senders();
        let from = |this: &Self| -> Vec<u64> {
            senders
                .iter()
                .map(|&last| sum(this.ends.iter().map(|e| e.sink.received_from(last))).bytes)
                .collect()
        };
        let before = from(self);
        (self.sent, self.lost) = (0, 0);
        self.last_arrival = Instant::now();
        let elapsed = run_for(time, || self.turn(start.frames))?;
        let end = self.received();
        let mut rate = rate(start, end, elapsed);
        if senders.len() > 1 {
            let difference = |after: Vec<u64>, before: Vec<u64>| -> Vec<u64> {
                after.iter().zip(&before).map(|(a, b)| a - b).collect()
            };
            rate.fairness = Some(Fairness {
                delivered: evenness(&difference(from(self), before)),
                served: evenness(&difference(self.served(), served)),
            });
        }
        Ok(rate)
    }

    fn senders(&self) -> Vec<u8> {
        let numbered = self.ends.iter().enumerate();
        numbered
            .filter(|(_, end)| end.source.is_some())
            .filter_map(|(port, _)| mac(port).last().copied())
            .collect()
    }

    fn served(&self) -> Vec<u64> {
        let sources = self.ends.iter().filter_map(|end| end.source.as_ref());
        sources.map(|source| source.served().bytes).collect()
    }

    fn turn(&mut self, received_at_start: u64) -> Result<usize> {
        let arrived = (self.received().frames - received_at_start) / self.copies;
        let room = match self.window {
            None => BURST as u64,
            Some(window) => {
                let on_the_way = self.sent.saturating_sub(arrived + self.lost);
                if on_the_way >= window && self.last_arrival.elapsed() > LOST_AFTER {
                    self.lost += on_the_way;
                    self.last_arrival = Instant::now();
                }
                window.saturating_sub(on_the_way).min(BURST as u64)
            }
        };
        let mut frames = 0;
        for end in &mut self.ends {
            if let Some(source) = &mut end.source {
                self.sent += source.turn(&mut end.nic, room as usize)? as u64;
            }
            frames += end.sink.turn(&mut end.nic, BURST)?;
        }
        if frames > 0 && self.window.is_some() {
            self.last_arrival = Instant::now();
        }
        Ok(frames)
    }
}

/// The least as a share of the most.
fn evenness(bytes: &[u64]) -> f64 {
    let (least, most) = (bytes.iter().min(), bytes.iter().max());
    match (least, most) {
        (Some(&least), Some(&most)) if most > 0 => least as f64 / most as f64,
        _ => 0.0,
    }
}

/// Every port that only receives sends one frame, so that the switch knows where it is.
fn teach(memory: &GuestMemory, ends: &mut [End]) -> Result<()> {
    for (port, end) in ends.iter_mut().enumerate() {
        if end.source.is_none() {
            let hello = [frame(64, port, BROADCAST)];
            let mut source = Source::new(memory, &mut end.nic, &hello)?;
            let start = Instant::now();
            source.turn(&mut end.nic, 1)?;
            // Its buffers go with it: the switch must be done with them.
            while source.served().frames == 0 {
                source.turn(&mut end.nic, 0)?;
                end.sink.turn(&mut end.nic, BURST)?;
                if start.elapsed() > ATTACHED_WITHIN {
                    return Err(stalled("a new port to be served", ATTACHED_WITHIN));
                }
            }
        }
    }
    Ok(())
}

fn ping_for(ends: &mut [End], idle: Duration, time: Duration) -> Result<Delay> {
    let [here, there] = ends else {
        return Err(Error::Invalid("a ping needs two ends".into()));
    };
    // What is still on its way is not the answer to a ping.
    let settle = Instant::now();
    while settle.elapsed() < LOST_AFTER {
        here.sink.turn(&mut here.nic, BURST)?;
        there.sink.turn(&mut there.nic, BURST)?;
    }
    let start = Instant::now();
    let mut samples = Vec::with_capacity(1 << 20);
    while start.elapsed() < time {
        for (from, to) in [(0, 1), (1, 0)] {
            let ends: &mut [&mut End; 2] = &mut [&mut *here, &mut *there];
            if !idle.is_zero() {
                std::thread::sleep(idle);
            }
            let sent = Instant::now();
            let [first, second] = ends;
            let (from, to) = if from < to {
                (first, second)
            } else {
                (second, first)
            };
            if let Some(source) = &mut from.source {
                source.turn(&mut from.nic, 1)?;
            }
            let mut looks = 0u32;
            while to.sink.turn(&mut to.nic, 1)? == 0 {
                looks = looks.wrapping_add(1);
                if looks % 4096 == 0 && sent.elapsed() > STALLED {
                    return Err(stalled("a ping to arrive", STALLED));
                }
            }
            samples.push(u32::try_from(sent.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
    }
    Delay::of(&mut samples, start.elapsed())
        .ok_or_else(|| Error::Invalid("no ping was sent".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evenness_is_the_least_share_of_the_most() {
        assert_eq!(evenness(&[50, 100, 75]), 0.5);
        assert_eq!(evenness(&[5, 5]), 1.0);
        assert_eq!(evenness(&[0, 5]), 0.0);
        assert_eq!(evenness(&[]), 0.0);
    }

    #[test]
    fn frames_that_change_ports_on_the_way_carry_no_checksum() {
        let plain = frame(64, 0, mac(1));
        assert_eq!(plain.bytes.len(), 64);
        assert_eq!(plain.bytes.get(40..42), Some(&[0, 0][..]));
        assert_eq!(
            plain.bytes.get(..12),
            Some(&[0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1][..])
        );
        let large = frame(65_000, 0, mac(1));
        assert_eq!(large.header.gso_size, 1448);
    }
}
