//! Verdicts as a worker remembers them, what they depend on, and what they are for a frame.

use std::ops::Range;
use std::sync::Arc;

use super::cache::Flow;
use super::edit::EditList;
use super::evaluate::{Evaluation, Metered, OutCopy, Target as OutTarget};
use super::runtime::Engine;
use super::state::Seen;
use crate::conntrack::{ConnId, Leg};
use crate::drop_reason::DropReason;
use crate::mac_table::EpochBucket;
use crate::outcomes::Outcomes;
use crate::port::PortId;
use crate::time::Millis;
use crate::verdict::{FrameCopy, HeaderEdit, Punt, PuntReason, Target, Verdict};

/// Lengths that every frame is of.
pub(super) const ANY_LENGTH: (u32, u32) = (0, u32::MAX);

/// What is remembered of an evaluation.
#[derive(Clone, Debug)]
pub(super) enum Decision {
    Drop(DropReason),
    Output(PortId, Option<Arc<EditList>>),
    Copies(Arc<[OutCopy]>, Option<DropReason>),
}

/// The decisions that fit beside the key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Short {
    Drop(DropReason),
    Output(PortId),
    /// It is a longer one.
    None,
}

/// A remembered verdict: what is needed for each frame, to be read with the key's cache lines.
#[derive(Debug)]
pub(super) struct Remembered {
    pub(super) rest: Box<Rest>,
    pub(super) valid_until: Millis,
    /// Of the connection, if the verdict depends on one.
    pub(super) leg: Option<Leg>,
    pub(super) has_frame_lengths: bool,
    pub(super) has_meters: bool,
    pub(super) counts_something: bool,
    pub(super) decision: Short,
    pub(super) connection: ConnId,
    pub(super) wire_lengths: (u32, u32),
}

impl Remembered {
    /// How long it holds from `now` on; `None`: as long as nothing changes.
    pub(super) fn left(&self, now: Millis) -> Option<Millis> {
        (self.valid_until != Millis(u64::MAX)).then(|| self.valid_until.since(now))
    }
}

/// What the promise of cache lines counts on.
const _: () = assert!(size_of::<Flow<Remembered>>() <= 56);

/// What of it is not needed for each frame, or not for most.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) decision: Decision,
    pub(super) frame_lengths: (u32, u32),
    /// Change counters of tables, and their sum.
    pub(super) counters: Box<[u32]>,
    pub(super) sum: u32,
    pub(super) stations: Box<[EpochBucket]>,
    pub(super) station_sum: u32,
    pub(super) meters: Box<[Metered]>,
    pub(super) sends: usize,
    pub(super) seen: Box<[Arc<Seen>]>,
    pub(super) counts: Box<[(u16, u32)]>,
}

impl Rest {
    /// Offers a frame to the meters, in order; which of its copies are not made, and why. Where a copy's way ends, so do its meters.
    pub(super) fn refused(&self, frame_bytes: u32, now: Millis) -> Vec<Refused> {
        let mut refused: Vec<Refused> = Vec::new();
        for metered in &self.meters {
            if refused
                .last()
                .is_some_and(|last| metered.from < last.copies.end)
            {
                continue;
            }
            if !metered.setting.passes(frame_bytes, now) {
                refused.push(Refused {
                    copies: metered.from..metered.to.unwrap_or(usize::MAX),
                    reason: metered.reason,
                });
            }
        }
        refused
    }
}

/// Copies that a meter stopped.
pub(super) struct Refused {
    pub(super) copies: Range<usize>,
    pub(super) reason: DropReason,
}

impl Rest {
    pub(super) fn new(
        (decision, frame_lengths): (Decision, (u32, u32)),
        evaluation: &mut Evaluation,
    ) -> Self {
        let conditions = &evaluation.conditions;
        Self {
            decision,
            frame_lengths,
            counters: conditions.tables.counters().into(),
            sum: conditions.tables.sum(),
            stations: conditions.stations.as_slice().into(),
            station_sum: conditions.station_sum,
            meters: evaluation.meters.drain(..).collect(),
            sends: evaluation.sends,
            seen: evaluation.seen.drain(..).collect(),
            counts: evaluation.counts.as_slice().into(),
        }
    }
}

/// Whether nothing has changed that a verdict depends on.
pub(super) fn holds(engine: &Engine, rest: &Rest) -> bool {
    let epochs = engine.state.macs.epochs();
    let stations = rest
        .stations
        .iter()
        .fold(0u32, |sum, &bucket| sum.wrapping_add(epochs.get(bucket)));
    engine.state.changes.sum(&rest.counters) == rest.sum && stations == rest.station_sum
}

/// Adds what a flow has counted to its entries and counters; the last frame of it came at `last`.
pub(super) fn count(engine: &Engine, flow: &mut Flow<Remembered>, last: Millis) {
    if !flow.has_counted() {
        return;
    }
    let (frames, bytes) = flow.take_counts();
    for seen in &flow.value.rest.seen {
        seen.add(frames, bytes, last);
    }
    for &(counter, index) in &flow.value.rest.counts {
        if let Some(counts) = engine.state.counts.get(usize::from(counter)) {
            counts.add(index, frames, bytes);
        }
    }
}

/// The verdict that a decision is, in this batch.
#[inline]
pub(super) fn give(outcomes: &mut Outcomes, decision: &Decision) -> Verdict {
    match decision {
        Decision::Drop(reason) => Verdict::Drop(*reason),
        Decision::Output(port, None) => Verdict::Output {
            port: *port,
            edit: HeaderEdit::NONE,
        },
        Decision::Output(port, Some(edits)) => match outcomes.add_list(edits) {
            Ok(list) => Verdict::Output {
                port: *port,
                edit: HeaderEdit::List(list),
            },
            Err(reason) => Verdict::Drop(reason),
        },
        Decision::Copies(copies, drop) => copies_verdict(outcomes, copies, *drop),
    }
}

/// The verdict without the copies that meters refused.
#[cold]
pub(super) fn over_rate(outcomes: &mut Outcomes, rest: &Rest, refused: &[Refused]) -> Verdict {
    let reason = refused
        .last()
        .map_or(DropReason::RateExceeded, |last| last.reason);
    let Decision::Copies(copies, drop) = &rest.decision else {
        return Verdict::Drop(reason);
    };
    let kept: Vec<OutCopy> = copies
        .iter()
        .enumerate()
        .filter(|(at, _)| !refused.iter().any(|range| range.copies.contains(at)))
        .map(|(_, copy)| copy.clone())
        .collect();
    let is_dropped =
        refused.iter().any(|range| range.copies.end == usize::MAX) || refused.len() >= rest.sends;
    let drop = if is_dropped { Some(reason) } else { *drop };
    match drop {
        Some(reason) if kept.is_empty() => Verdict::Drop(reason),
        drop => copies_verdict(outcomes, &kept, drop),
    }
}

impl Short {
    pub(super) fn of(decision: &Decision) -> Self {
        match decision {
            Decision::Drop(reason) => Self::Drop(*reason),
            Decision::Output(port, None) => Self::Output(*port),
            Decision::Output(_, Some(_)) | Decision::Copies(..) => Self::None,
        }
    }
}

/// Takes what is to be done to a single copy along.
pub(super) fn decision(drop: Option<DropReason>, copies: &mut [OutCopy]) -> Decision {
    match (drop, copies) {
        (Some(reason), []) => Decision::Drop(reason),
        (None, []) => Decision::Drop(DropReason::NoDestination),
        (
            None,
            [
                OutCopy {
                    target: OutTarget::Port(port),
                    edits,
                },
            ],
        ) => match PortId::new(*port) {
            Some(port) => Decision::Output(port, edits.take()),
            None => Decision::Drop(DropReason::NoDestination),
        },
        (drop, copies) => Decision::Copies((&*copies).into(), drop),
    }
}

pub(super) fn copies_verdict(
    outcomes: &mut Outcomes,
    copies: &[OutCopy],
    drop: Option<DropReason>,
) -> Verdict {
    let mut listed = Vec::with_capacity(copies.len() + 1);
    for copy in copies {
        let edit = match copy.edits.as_ref().map(|edits| outcomes.add_list(edits)) {
            None => HeaderEdit::NONE,
            Some(Ok(list)) => HeaderEdit::List(list),
            Some(Err(reason)) => return Verdict::Drop(reason),
        };
        let target = match &copy.target {
            OutTarget::Port(port) => match PortId::new(*port) {
                Some(port) => Target::Port(port),
                None => continue,
            },
            OutTarget::Controller { reason, args } => {
                let punt = Punt {
                    reason: PuntReason(*reason),
                    args: *args,
                };
                match outcomes.add_punt(punt) {
                    Ok(punt) => Target::Controller(punt),
                    Err(reason) => return Verdict::Drop(reason),
                }
            }
        };
        listed.push(FrameCopy { target, edit });
    }
    if let Some(reason) = drop {
        listed.push(FrameCopy {
            target: Target::Drop(reason),
            edit: HeaderEdit::NONE,
        });
    }
    match outcomes.add_copies(listed) {
        Ok(copies) => Verdict::Copies(copies),
        Err(reason) => Verdict::Drop(reason),
    }
}
