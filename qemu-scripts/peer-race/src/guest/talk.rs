//! Simulated guests that talk as a network's rules allow, and one that attacks.
//!
//! Called by `sim` on the guest's core. Keeps true: whatever is sent between the two was seen to be allowed by a plain check of the rules
//! (the tests of `network`), and connections are opened by the client before the server says anything.

use std::time::{Duration, Instant};

use guest_sim::bench::{Bounce, Flow, Flows, Source};
use guest_sim::{Frame, GuestMemory, Nic};

use super::Rate;
use super::sim::{bounce_beside, frame, mac, stalled, start_bouncing};
use crate::case::About;
use crate::error::{Error, Result};
use crate::network::{OPENED_PORTS, conversations, first_opened, lists};

/// Of every frame.
const FRAME_BYTES: usize = 64;
/// Of the guests' buffers.
const BUFFER_BYTES: usize = 2048;
/// Frames of each side that are on their way.
const IN_FLIGHT: usize = 256;
/// Frames that a guest handles at a time.
const BURST: usize = 64;
/// Frames that the attacker sends at a time, if it can.
const ATTACK_BURST: usize = 32;
/// How long a switch may take to have seen every conversation: each may have to be asked about.
const LED_WITHIN: Duration = Duration::from_secs(60);
/// When nothing arrives for so long, everything that was on its way is lost.
const LOST_AFTER: Duration = Duration::from_millis(200);
/// The MAC address that attacks are for: nobody's.
const NOBODY: usize = 0xfd;

/// Two guests that talk, and maybe one that attacks.
pub(super) struct Talk {
    guests: Vec<(Nic, Bounce)>,
    attacker: Option<(Nic, Source)>,
    /// Held open, and silent.
    _silent: Option<Nic>,
}

/// What each of the two sends: its first frame, and the flows of those that follow.
fn sides(about: About, count: u32) -> Result<[(Frame, Flows); 2]> {
    let flows = match about {
        About::OwnRules | About::Connections => conversations(count),
        About::AllRules => lists::spread(&lists::access_list(), count as usize),
    };
    let first = *flows
        .first()
        .ok_or_else(|| Error::Invalid("no flows to talk in".into()))?;
    let back: Vec<Flow> = flows.iter().map(|flow| flow.reversed()).collect();
    let side = |port: usize, first: Flow, flows: &[Flow]| -> Result<(Frame, Flows)> {
        let mut frame = frame(FRAME_BYTES, port, mac(1 - port));
        first.mark(&mut frame)?;
        let flows = Flows::listed(&frame, flows)?;
        Ok((frame, flows))
    };
    Ok(match about {
        About::OwnRules => [side(0, first, &flows)?, side(1, first.reversed(), &back)?],
        // Rules are about flows, whoever sends them.
        About::AllRules => [side(0, first, &flows)?, side(1, first, &flows)?],
        About::Connections => {
            let (frame, _) = side(1, first.reversed(), &back)?;
            [side(0, first, &flows)?, (frame, Flows::Answers)]
        }
    })
}

/// A frame that opens a connection, and what makes another of each that follows.
pub(super) fn opening() -> Result<(Frame, Flows)> {
    let mut frame = frame(FRAME_BYTES, 0, mac(1));
    first_opened().mark(&mut frame)?;
    let flows = Flows::opening(&frame, first_opened(), OPENED_PORTS)?;
    Ok((frame, flows))
}

impl Talk {
    pub(super) fn new(
        memory: &GuestMemory,
        nics: Vec<Nic>,
        (about, count): (About, u32),
        attack: bool,
    ) -> Result<Self> {
        let mut nics = nics.into_iter();
        let mut guests = Vec::new();
        let mut frames = Vec::new();
        for ((frame, flows), mut nic) in sides(about, count)?.into_iter().zip(nics.by_ref()) {
            let mut bounce =
                Bounce::new(memory, &mut nic, BUFFER_BYTES, FRAME_BYTES, 2 * IN_FLIGHT)?;
            bounce.set_batch(BURST);
            bounce.set_flows(flows);
            guests.push((nic, bounce));
            frames.push(frame);
        }
        let frames = frames
            .try_into()
            .map_err(|_| Error::Invalid("two have to talk".into()))?;
        start_bouncing(&mut guests, &frames, IN_FLIGHT)?;
        go_through(&mut guests, &frames, count)?;
        let third = nics.next();
        let (attacker, silent) = match third {
            Some(mut nic) if attack => {
                let mut template = frame(FRAME_BYTES, 2, mac(NOBODY));
                conversations(1)
                    .first()
                    .map_or(Ok(()), |flow| flow.mark(&mut template))?;
                let mut source = Source::new(memory, &mut nic, &[template.clone()])?;
                source.set_flows(Flows::random(&template)?);
                (Some((nic, source)), None)
            }
            other => (None, other),
        };
        Ok(Self {
            guests,
            attacker,
            _silent: silent,
        })
    }

    pub(super) fn run(&mut self, time: Duration) -> Result<Rate> {
        let attacker = &mut self.attacker;
        bounce_beside(&mut self.guests, time, || {
            if let Some((nic, source)) = attacker {
                source.turn(nic, ATTACK_BURST)?;
            }
            Ok(())
        })
    }
}

/// Until every conversation was led, both ways. A switch may lose frames of flows that are new to it: when none are left, others go.
fn go_through(guests: &mut [(Nic, Bounce)], frames: &[Frame; 2], count: u32) -> Result<()> {
    let start = Instant::now();
    let wanted: Vec<u64> = guests
        .iter()
        .map(|(_, bounce)| bounce.counts().frames + 2 * u64::from(count) + 4 * IN_FLIGHT as u64)
        .collect();
    let mut last_frame = start;
    loop {
        let mut arrived = 0;
        for (nic, bounce) in guests.iter_mut() {
            arrived += bounce.turn(nic)?;
        }
        let now = Instant::now();
        if arrived > 0 {
            last_frame = now;
        } else if now - last_frame > LOST_AFTER {
            start_bouncing(guests, frames, IN_FLIGHT)?;
            last_frame = Instant::now();
        }
        let mut all = guests.iter().zip(&wanted);
        if all.all(|((_, bounce), &wanted)| bounce.counts().frames >= wanted) {
            return Ok(());
        }
        if start.elapsed() > LED_WITHIN {
            return Err(stalled("every conversation to be led", LED_WITHIN));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_frames_are_of_the_first_conversation_to_and_fro() {
        for about in [About::OwnRules, About::Connections] {
            let [(forth, _), (back, _)] = sides(about, 10).unwrap();
            let (forth, back) = (forth.bytes, back.bytes);
            assert_eq!(forth.len(), FRAME_BYTES);
            assert_eq!(forth[..6], back[6..12]);
            assert_eq!(forth[26..30], back[30..34]);
            assert_eq!(forth[34..36], back[36..38]);
            assert_eq!(forth[36..38], 7_000u16.to_be_bytes());
        }
    }

    #[test]
    fn a_server_only_answers_where_connections_are_tracked() {
        let flows = |about| sides(about, 10).unwrap().map(|(_, flows)| flows);
        assert!(matches!(
            flows(About::Connections),
            [Flows::Listed { .. }, Flows::Answers]
        ));
        assert!(matches!(
            flows(About::OwnRules),
            [Flows::Listed { .. }, Flows::Listed { .. }]
        ));
        assert!(matches!(opening(), Ok((_, Flows::Opening { .. }))));
    }
}
