//! guest-sim as a guest: it plays what testpmd cannot, on the guest's core, in this process.
//!
//! Its traffic moves only while it is asked to: between turns it costs nothing. Keeps true: every wait ends, and says what did not come.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use guest_sim::bench::bounce::Counts;
use guest_sim::bench::{Bounce, Flows, cores};
use guest_sim::frame::{FrameBuilder, build::BROADCAST, build::MacAddr};
use guest_sim::nic::session::connect;
use guest_sim::{
    Features, Frame, GuestMemory, GuestMemoryLayout, Listener, Nic, NicOptions, Refill,
};

use super::stream::{End, Stream, ends, introduce, ping_for};
use super::talk::{self, Talk};
use super::{Guest, Rate, Seen};
use crate::case::{Frames, Load, Rig, Ring};
use crate::error::{Error, Result};
use crate::machine::{Machine, on_a_thread};
use crate::switch::Switch;

/// Nothing arrives for so long: it has stopped.
pub(super) const STALLED: Duration = Duration::from_secs(2);
/// How long a switch may take to serve new ports.
pub(super) const ATTACHED_WITHIN: Duration = Duration::from_secs(30);
pub(super) const PROBE_EVERY: Duration = Duration::from_millis(20);
/// Frames on their way where the guest limits them.
const WINDOW: u64 = 256;
/// Turns between two looks at the clock.
const TURNS: usize = 64;

/// A simulated guest.
pub struct SimGuest {
    core: usize,
    rig: Rig,
    ports: Vec<Socket>,
    play: Option<Play>,
    /// Held open, and silent.
    _idle: Vec<Nic>,
}

/// How a port is reached.
enum Socket {
    /// The switch listens here.
    Connect(PathBuf),
    /// The switch connects here.
    Accept(Listener),
}

/// NICs with what they do.
enum Play {
    Bounce(Vec<(Nic, Bounce)>),
    Talk(Box<Talk>),
    Stream(Stream),
    Ping { ends: Vec<End>, idle: Duration },
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
    let (mergeable, refused) = match rig.ring {
        Ring::Split | Ring::Packed => (Features::MRG_RXBUF, Features::NONE),
        Ring::PackedVectorised => (Features::NONE, Features::MRG_RXBUF),
    };
    let ring = if rig.ports > 3 { 256 } else { 1024 };
    NicOptions {
        features: Features::VERSION_1 | mergeable | tso | packed,
        optional_features: Features::LINUX - refused,
        guest_rx_ring_size: ring,
        guest_tx_ring_size: ring,
        refill: Refill::Manual,
        ..NicOptions::bench()
    }
}

pub(super) fn mac(port: usize) -> MacAddr {
    [0x52, 0x54, 0, 0, 0, port as u8 + 1]
}

pub(super) fn frame(bytes: usize, from: usize, to: MacAddr) -> Frame {
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
            ports: (0..rig.ports)
                .map(|port| {
                    let path = switch.socket(port);
                    Ok(if switch.connects() {
                        Socket::Accept(Listener::bind(&path)?)
                    } else {
                        Socket::Connect(path)
                    })
                })
                .collect::<Result<_>>()?,
            play: None,
            _idle: super::idle_ports(rig, switch)?,
        })
    }

    fn attach(&self) -> Result<(GuestMemory, Vec<Nic>)> {
        let memory = GuestMemory::new(&GuestMemoryLayout::one_region(1 << 30))
            .map_err(guest_sim::Error::from)?;
        let options = options(&self.rig);
        let nics = self
            .ports
            .iter()
            .map(|port| {
                let stream = match port {
                    Socket::Connect(path) => connect(path, options.deadline)?,
                    Socket::Accept(listener) => listener.accept(options.deadline)?,
                };
                let mut nic = Nic::introduce(&memory, options.clone(), stream)?;
                nic.start()?;
                Ok(nic)
            })
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
                let frames = [0, 1].map(|port| frame(frame_bytes, port, mac(1 - port)));
                start_bouncing(&mut guests, &frames, in_flight)?;
                if flows > 1 {
                    guests.iter_mut().for_each(|(_, bounce)| {
                        bounce.set_flows(Flows::Ports {
                            count: flows,
                            next: 0,
                        });
                    });
                }
                Play::Bounce(guests)
            }
            Load::Talk {
                about,
                flows,
                attack,
            } => Play::Talk(Box::new(Talk::new(&memory, nics, (about, flows), attack)?)),
            Load::Open => {
                let (first, flows) = talk::opening()?;
                let mut stream = Stream::new(&memory, nics, &[vec![first]], 1, Some(WINDOW))?;
                stream.set_flows(flows);
                Play::Stream(stream)
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
                Play::Talk(talk) => talk.run(time).map(Seen::Rate),
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

pub(super) fn stalled(what: &str, within: Duration) -> Error {
    Error::Deadline {
        what: what.to_owned(),
        within,
        said: String::new(),
    }
}

/// Frames between both ends, once the switch serves both and knows their addresses.
pub(super) fn start_bouncing(
    guests: &mut [(Nic, Bounce)],
    frames: &[Frame; 2],
    in_flight: usize,
) -> Result<()> {
    let start = Instant::now();
    let counts = |guests: &[(Nic, Bounce)]| -> Vec<u64> {
        guests.iter().map(|(_, b)| b.counts().frames).collect()
    };
    // Ports that are new to a switch lose frames: single ones go ahead until they come back again and again.
    loop {
        for ((nic, bounce), frame) in guests.iter_mut().zip(frames) {
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
    for ((nic, bounce), frame) in guests.iter_mut().zip(frames) {
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

pub(super) fn sum(counts: impl Iterator<Item = Counts>) -> Counts {
    counts.fold(Counts::default(), |sum, one| Counts {
        frames: sum.frames + one.frames,
        bytes: sum.bytes + one.bytes,
    })
}

pub(super) fn rate(before: Counts, after: Counts, elapsed: Duration) -> Rate {
    let seconds = elapsed.as_secs_f64();
    Rate {
        frames_per_s: (after.frames - before.frames) as f64 / seconds,
        bits_per_s: (after.bytes - before.bytes) as f64 * 8.0 / seconds,
        arrived: Some(after.frames - before.frames),
        fairness: None,
    }
}

/// Turns until the time is over; `turn` says how many frames came.
pub(super) fn run_for(time: Duration, mut turn: impl FnMut() -> Result<usize>) -> Result<Duration> {
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
    bounce_beside(guests, time, || Ok(()))
}

/// The same, with something else to do at every turn.
pub(super) fn bounce_beside(
    guests: &mut [(Nic, Bounce)],
    time: Duration,
    mut beside: impl FnMut() -> Result<()>,
) -> Result<Rate> {
    let counts = |guests: &[(Nic, Bounce)]| sum(guests.iter().map(|(_, bounce)| bounce.counts()));
    let before = counts(guests);
    let elapsed = run_for(time, || {
        let mut frames = 0;
        for (nic, bounce) in guests.iter_mut() {
            frames += bounce.turn(nic)?;
        }
        beside()?;
        Ok(frames)
    })?;
    Ok(rate(before, counts(guests), elapsed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case;

    #[test]
    fn the_rig_decides_on_rings_and_mergeable_buffers() {
        let wanted = |name: &str| {
            let case = case::all().into_iter().find(|case| case.name == name);
            let options = options(&case.unwrap().rig);
            options.features | options.optional_features
        };
        let packed = Features::RING_PACKED | Features::IN_ORDER;
        assert!((wanted("64") & packed).is_empty());
        assert!(wanted("64").contains(Features::MRG_RXBUF));
        assert!(wanted("packed-64").contains(packed | Features::MRG_RXBUF));
        assert!(wanted("packed-64-vectorised").contains(packed));
        assert!(!wanted("packed-64-vectorised").contains(Features::MRG_RXBUF));
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
