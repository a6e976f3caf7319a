//! A walk through a cache, by steps that are bounded and allocate nothing.

use super::listed::ListedFlow;
use crate::engine::cache::MOST_KEY_WORDS;
use crate::engine::control::PortNames;
use crate::engine::listed::FoundInProgram;
use crate::engine::runtime::Engine;
use crate::flow_key::FlowKey;
use crate::port::PortId;
use crate::time::Millis;
use crate::verdict::Verdict;

/// Places of a cache that one step looks at, at most: one cache line each, one after the other.
pub const PLACES_PER_STEP: usize = 256;
/// Flows that one step asks whether they still hold, at most: for that, some lines more are read, from anywhere in memory.
pub const FLOWS_PER_STEP: usize = 16;

/// A walk through one worker's cache, and what it has found since that was last [taken](Self::take).
#[derive(Debug)]
pub struct FlowWalk {
    /// The port whose flows are wanted; none: those of all.
    wanted: Option<PortId>,
    next: usize,
    has_ended: bool,
    /// Of the step in hand.
    places_left: usize,
    flows_left: usize,
    room: usize,
    found: Vec<FoundFlow>,
    words: Vec<(u64, u64)>,
}

/// A flow, as much of it as is copied on the worker.
#[derive(Debug)]
pub(crate) struct FoundFlow {
    pub in_port: PortId,
    /// None: as long as nothing changes.
    pub valid_for: Option<Millis>,
    pub what: Found,
}

/// Which frames are meant, and what becomes of them.
#[derive(Debug)]
pub(crate) enum Found {
    /// Of the default program.
    Default(FlowKey, Verdict),
    /// Of any other.
    Program(FoundInProgram),
}

impl FlowWalk {
    /// A walk from the beginning, for flows of one port or of all; it stops for being emptied whenever it has found `room` of them.
    pub fn new(wanted: Option<PortId>, room: usize) -> Self {
        let room = room.max(1);
        Self {
            wanted,
            next: 0,
            has_ended: false,
            places_left: 0,
            flows_left: 0,
            room,
            found: Vec::with_capacity(room),
            words: Vec::with_capacity(room * MOST_KEY_WORDS),
        }
    }

    /// Whether the whole cache was looked at.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether steps lead nowhere, because it has ended or has to be emptied.
    pub fn rests(&self) -> bool {
        self.has_ended || self.found.len() >= self.room
    }

    /// How many flows it has found and not told.
    pub fn found(&self) -> usize {
        self.found.len()
    }

    /// Tells what was found, and makes room. `engine`: what the worker runs, unless it is the default program.
    pub fn take(
        &mut self,
        engine: Option<&Engine>,
        names: &dyn PortNames,
    ) -> Vec<(PortId, ListedFlow)> {
        let words = &self.words;
        let listed = self.found.drain(..).map(|flow| {
            let in_port = flow.in_port;
            (in_port, ListedFlow::new(&flow, words, engine, names))
        });
        let listed = listed.collect();
        self.words.clear();
        listed
    }

    /// There is nothing, or nothing more.
    pub(crate) fn end(&mut self) {
        self.has_ended = true;
    }

    pub(crate) fn begin_step(&mut self) {
        self.places_left = PLACES_PER_STEP;
        self.flows_left = FLOWS_PER_STEP;
    }

    /// The place to look at next, of so many; `None`: that was enough for this step.
    #[inline]
    pub(crate) fn next_place(&mut self, places: usize) -> Option<usize> {
        if self.next >= places {
            self.end();
        }
        if self.places_left == 0 || self.flows_left == 0 || self.rests() {
            return None;
        }
        self.places_left -= 1;
        let place = self.next;
        self.next += 1;
        Some(place)
    }

    /// Whether a port's flow is to be looked at closely, which the step is charged for.
    #[inline]
    pub(crate) fn wants(&mut self, in_port: u16) -> bool {
        let wants = self.wanted.is_none_or(|wanted| wanted.get() == in_port);
        self.flows_left = self.flows_left.saturating_sub(usize::from(wants));
        wants
    }

    /// Notes words of a key, each with its mask; where the first of them is.
    pub(crate) fn add_words(&mut self, words: impl Iterator<Item = (u64, u64)>) -> usize {
        let first = self.words.len();
        let room = self.words.capacity() - first;
        self.words.extend(words.take(room.min(MOST_KEY_WORDS)));
        first
    }

    pub(crate) fn add(&mut self, flow: FoundFlow) {
        self.found.push(flow);
    }
}
