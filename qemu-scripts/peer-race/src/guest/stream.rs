//! Simulated ports that send and receive: streams of frames, and pings.
//!
//! Called by `sim` on the guest's core. Keeps true: every port is served by the switch, and known to it, before anything is measured.

use std::time::{Duration, Instant};

use guest_sim::bench::bounce::Counts;
use guest_sim::bench::{Flows, Sink, Source};
use guest_sim::frame::build::BROADCAST;
use guest_sim::{Frame, GuestMemory, Nic};

use super::sim::{ATTACHED_WITHIN, PROBE_EVERY, STALLED, frame, mac, rate, run_for, stalled, sum};
use super::{Delay, Fairness, Rate};
use crate::error::{Error, Result};

/// A frame that did not arrive by then was lost.
const LOST_AFTER: Duration = Duration::from_millis(5);
/// Frames a sender sends, and a receiver takes, at a time.
const BURST: usize = 32;

/// A NIC that sends, receives, or both.
pub(super) struct End {
    nic: Nic,
    source: Option<Source>,
    sink: Sink,
}

pub(super) struct Stream {
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

/// Each NIC with what it sends, if anything.
pub(super) fn ends(
    memory: &GuestMemory,
    nics: Vec<Nic>,
    frames: &[Vec<Frame>],
) -> Result<Vec<End>> {
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
pub(super) fn introduce(ends: &mut [End]) -> Result<()> {
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
    pub(super) fn new(
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

    /// Every sender sends frames as these flows from now on.
    pub(super) fn set_flows(&mut self, flows: Flows) {
        let sources = self.ends.iter_mut().filter_map(|end| end.source.as_mut());
        sources.for_each(|source| source.set_flows(flows.clone()));
    }

    fn received(&self) -> Counts {
        sum(self.ends.iter().map(|end| end.sink.received()))
    }

    pub(super) fn run(&mut self, time: Duration) -> Result<Rate> {
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

pub(super) fn ping_for(ends: &mut [End], idle: Duration, time: Duration) -> Result<Delay> {
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
                if looks.is_multiple_of(4096) && sent.elapsed() > STALLED {
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
}
