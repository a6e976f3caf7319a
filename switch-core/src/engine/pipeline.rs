//! A worker's way through an engine: parse, flow cache, and on a miss the tables.
//!
//! Each worker owns one. Kept true: a verdict from the cache is the one that evaluation would have given. It is remembered under the
//! path of the parse, the port, the bits that were looked at, ranges of lengths, counters of all that operators and stations can
//! change, and a time; and where a connection is part of it, that is asked about every frame.

use std::sync::Arc;

use super::cache::{CacheConfig, CacheStats, Flow, FlowCache, FlowKey, FlowRef, MOST_KEY_WORDS};
use super::compile::Next;
use super::evaluate::{Effects, Evaluation, Evaluator, Frame, Unobserved};
use super::foreseen::{Foreseen, ForeseenFrame, Reader, as_it_came, start_of};
use super::layout::Layout;
use super::listed::FoundInProgram;
use super::packet::Packet;
use super::parse::{ParseError, parse};
use super::paths::{Paths, Words};
use super::remembered::{
    ANY_LENGTH, Decision, Remembered, Rest, Short, count, decision, give, holds, over_rate,
};
use super::runtime::Engine;
use super::state::Snapshot;
use crate::conntrack::{ConnId, Refreshed};
use crate::decide::{CacheUse, Decide, FrameInfo};
use crate::flow_list::{FlowWalk, Found, FoundFlow};
use crate::outcomes::Outcomes;
use crate::port::PortId;
use crate::rate_limit::TokenBucket;
use crate::time::Millis;
use crate::verdict::{Flood, HeaderEdit, Verdict};
use crate::vlan_edit::VlanEdit;

/// How often an evaluation is begun again because tables changed faster than it could read them.
const ATTEMPTS: usize = 8;
/// Flows that a batch's sweep looks at.
const SWEPT_PER_BATCH: usize = 4;
/// Flows with frames that are not yet counted in their entries, at most, and how long they are not: a busy port's flows have several
/// frames by then. Those of more flows are counted when the sweep comes by.
const MOST_UNCOUNTED: usize = 1024;
const UNCOUNTED_FOR: Millis = Millis(16);
/// Places that are looked at for those at a time when no frames come: some tens of microseconds.
const COUNTED_AT_REST: usize = 4096;

/// Flows that are at hand without being foreseen.
const FEW_FLOWS: usize = 128;

/// How a pipeline came to its verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Frames that were decided by the tables rather than from the cache.
    pub misses: u64,
    /// Verdicts put into the cache.
    pub remembered: u64,
    /// Verdicts that hold for their frame alone.
    pub unrepeatable: u64,
    /// Frames with more different headers than a path is kept for.
    pub pathless: u64,
}

/// One worker's view of an [`Engine`].
pub struct EnginePipeline {
    engine: Arc<Engine>,
    snapshot: Arc<Snapshot>,
    cache: FlowCache<Remembered>,
    reader: Reader,
    /// Of the frame in hand, when it was not foreseen.
    key: FlowKey,
    foreseen: Foreseen,
    packet: Box<Packet>,
    evaluation: Evaluation,
    outcomes: Outcomes,
    budgets: Vec<TokenBucket>,
    uncounted: Vec<FlowRef>,
    /// There are more of them: how often the sweep has to come to its end until all are counted.
    unnoted_laps: u8,
    trail: Vec<(u16, u16, Next)>,
    now: Millis,
    /// When flows were counted for having waited.
    counted_at: Millis,
    /// Since that was last asked for.
    has_missed: bool,
    stats: EngineStats,
}

impl EnginePipeline {
    /// A pipeline with an empty cache.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self::with_cache(engine, CacheConfig::default())
    }

    /// A pipeline with an empty cache of another size.
    pub fn with_cache(engine: Arc<Engine>, config: CacheConfig) -> Self {
        let state = &engine.state;
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        Self {
            snapshot: engine.snapshot(),
            cache: FlowCache::new(config, seed),
            reader: Reader {
                paths: Paths::new(&state.program, &state.known),
                layout: Layout::default(),
            },
            key: FlowKey::new(0, &[]),
            foreseen: Foreseen::new(),
            packet: Box::new(Packet::new(&[], state.program.metadata.len())),
            evaluation: Evaluation::default(),
            outcomes: Outcomes::new(),
            budgets: Vec::new(),
            uncounted: Vec::new(),
            unnoted_laps: 0,
            trail: Vec::new(),
            now: Millis(0),
            counted_at: Millis(0),
            has_missed: false,
            stats: EngineStats::default(),
            engine,
        }
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// How the verdicts so far came about.
    pub fn stats(&self) -> EngineStats {
        self.stats
    }

    /// What is in the cache and what was asked of it.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// Flows that are remembered of a port.
    pub fn flows_of_port(&self, port: PortId) -> usize {
        self.cache.flows_of_port(port.get())
    }

    /// Masks that a port's flows are remembered under.
    pub fn masks_of_port(&self, port: PortId) -> usize {
        self.cache.masks_of_port(port.get())
    }

    /// How many paths of the parser are known.
    pub fn paths(&self) -> usize {
        self.reader.paths.len()
    }

    /// Finds out a frame's headers as [`decide`](Decide::decide) does at first: the number of the path that its parse takes, if that
    /// is known.
    pub fn parse(&mut self, in_port: PortId, frame: &FrameInfo<'_>) -> Option<u16> {
        let Self { engine, key, .. } = self;
        let frame = (in_port, start_of(frame), frame.frame_bytes);
        self.reader.read(&engine.state.program, frame, key).ok()?;
        Some(key.path)
    }

    /// Decides on a frame by the tables, whatever is remembered, and remembers that.
    pub fn evaluate_anew(&mut self, in_port: PortId, frame: &FrameInfo<'_>) -> Verdict {
        let path = self.parse(in_port, frame);
        self.miss(in_port, frame, path)
    }

    /// Forgets all verdicts: every frame is evaluated again.
    pub fn forget(&mut self) {
        self.count_all();
        self.cache.clear();
    }

    /// Adds what was counted here to entries and counters: before the worker sleeps, that nothing waits for the next frame.
    pub fn count_all(&mut self) {
        while self.count_more() {}
    }

    /// Counts what is noted, and some of what is not; whether there is more.
    fn count_more(&mut self) -> bool {
        self.count_noted();
        let Self {
            cache, engine, now, ..
        } = self;
        if self.unnoted_laps > 0 {
            let swept = cache.sweep(COUNTED_AT_REST, |flow| {
                count(engine, flow, *now);
                true
            });
            self.unnoted_laps -= u8::from(swept.wrapped);
        }
        self.unnoted_laps > 0
    }

    fn count_noted(&mut self) {
        let Self {
            cache,
            uncounted,
            engine,
            now,
            ..
        } = self;
        for flow in uncounted.drain(..) {
            if let Some(flow) = cache.entry_mut(flow) {
                count(engine, flow, *now);
            }
        }
    }

    /// The sum of all change counters: while it stands still, what held just before holds again.
    #[inline]
    fn generation(engine: &Engine) -> u64 {
        let state = &engine.state;
        state
            .changes
            .changes()
            .wrapping_add(state.macs.epochs().changes())
    }

    /// Decides on a frame.
    #[inline]
    fn classify(&mut self, in_port: PortId, frame: &FrameInfo<'_>) -> Verdict {
        let bytes = start_of(frame);
        let Self {
            engine,
            cache,
            reader,
            key,
            foreseen,
            outcomes,
            now,
            ..
        } = self;
        let (engine, now) = (&**engine, *now);
        let generation = Self::generation(engine);
        let (number, found) = match foreseen.take(in_port, bytes) {
            Some(foreseen) => {
                let found = match foreseen.flow {
                    Some(flow) => cache.lookup_foreseen(&foreseen.key, flow),
                    None => cache.lookup(&foreseen.key),
                };
                (foreseen.key.path, found)
            }
            None => {
                let whole = (in_port, bytes, frame.frame_bytes);
                if let Err(error) = reader.read(&engine.state.program, whole, key) {
                    return self.decide_new_path(in_port, frame, error);
                }
                (key.path, cache.lookup(key))
            }
        };
        let Some(found) = found else {
            return self.miss(in_port, frame, Some(number));
        };
        let Some(flow) = cache.entry_mut(found) else {
            return self.miss(in_port, frame, Some(number));
        };
        let remembered = &flow.value;
        let within = |(low, high): (u32, u32), length: u32| low <= length && length <= high;
        if !within(remembered.wire_lengths, frame.wire_bytes)
            || (remembered.has_frame_lengths
                && !within(remembered.rest.frame_lengths, frame.frame_bytes))
        {
            // What is remembered is right, for other lengths.
            return self.miss(in_port, frame, None);
        }
        if now >= remembered.valid_until
            || (flow.stamp != generation && !holds(engine, &remembered.rest))
        {
            if let Some(mut gone) = cache.remove(found) {
                count(engine, &mut gone, now);
            }
            return self.miss(in_port, frame, Some(number));
        }
        flow.stamp = generation;
        if let Some(leg) = remembered.leg {
            let tcp = reader.paths.by_number(number).and_then(|path| path.tcp);
            let segment = tcp.and_then(|tcp| tcp.read(bytes, frame.frame_bytes));
            let packet = (segment.as_ref(), frame.frame_bytes);
            let conntrack = &engine.state.conntrack;
            let refreshed = conntrack.refresh(remembered.connection, leg, packet, now);
            if refreshed == Refreshed::Changed {
                return self.miss(in_port, frame, Some(number));
            }
        }
        if remembered.has_meters {
            let refused = remembered.rest.refused(frame.frame_bytes, now);
            if !refused.is_empty() {
                return over_rate(outcomes, &remembered.rest, &refused);
            }
        }
        let is_to_be_counted = remembered.counts_something && {
            let is_first = !flow.has_counted();
            flow.count(frame.frame_bytes);
            if flow.is_full() {
                count(engine, flow, now);
            }
            is_first
        };
        let verdict = match flow.value.decision {
            Short::Drop(reason) => Verdict::Drop(reason),
            Short::Output(port) => Verdict::Output {
                port,
                edit: HeaderEdit::NONE,
            },
            Short::None => give(outcomes, &flow.value.rest.decision),
        };
        if is_to_be_counted {
            self.note_uncounted(found);
        }
        verdict
    }

    fn note_uncounted(&mut self, flow: FlowRef) {
        if self.uncounted.len() < MOST_UNCOUNTED {
            self.uncounted.push(flow);
        } else {
            // From where the sweep is to the end, and from the beginning.
            self.unnoted_laps = 2;
        }
    }

    /// A frame whose path was not seen before.
    #[cold]
    #[inline(never)]
    fn decide_new_path(
        &mut self,
        in_port: PortId,
        frame: &FrameInfo<'_>,
        error: ParseError,
    ) -> Verdict {
        let engine = Arc::clone(&self.engine);
        let state = &engine.state;
        let mut trail = std::mem::take(&mut self.trail);
        trail.clear();
        let (bytes, program) = (start_of(frame), &state.program);
        let mut layout = Layout::default();
        parse(
            program,
            as_it_came(bytes, frame.frame_bytes),
            &mut layout,
            &mut |state, bytes, next| trail.push((state, bytes, next)),
        );
        let (taken, found) = ((&*trail, error), (bytes, &layout));
        let path = self
            .reader
            .paths
            .learn(in_port.get(), taken, (program, &state.known), found)
            .map(|path| path.number);
        if let Some(path) = path {
            self.reader.paths.expect(in_port.get(), path);
        }
        self.trail = trail;
        if path.is_none() {
            self.stats.pathless += 1;
        }
        self.miss(in_port, frame, path)
    }

    /// Asks the tables.
    #[cold]
    #[inline(never)]
    fn miss(&mut self, in_port: PortId, frame: &FrameInfo<'_>, path: Option<u16>) -> Verdict {
        self.stats.misses += 1;
        self.has_missed = true;
        let engine = Arc::clone(&self.engine);
        // Before anything is read that a change may concern.
        let mut generation = Self::generation(&engine);
        self.evaluate(&engine, in_port, frame, path);
        for _ in 0..ATTEMPTS {
            if engine.is_readable(&self.snapshot) {
                break;
            }
            generation = Self::generation(&engine);
            self.evaluate(&engine, in_port, frame, path);
        }
        let frame_bytes = frame.frame_bytes;
        let evaluation = &mut self.evaluation;
        let decision = decision(evaluation.drop, &mut evaluation.copies);
        for seen in &evaluation.seen {
            seen.add(1, frame_bytes.into(), self.now);
        }
        for &(counter, index) in &evaluation.counts {
            if let Some(counts) = engine.state.counts.get(usize::from(counter)) {
                counts.add(index, 1, frame_bytes.into());
            }
        }
        match path.filter(|_| evaluation.is_repeatable) {
            Some(path) if engine.is_readable(&self.snapshot) => {
                let conditions = &evaluation.conditions;
                let (connection, leg) = match conditions.connection {
                    Some((connection, leg)) => (connection, Some(leg)),
                    None => (ConnId::from_bits(0), None),
                };
                let frame_lengths = self.packet.frame_lengths;
                let counts_something = !evaluation.seen.is_empty() || !evaluation.counts.is_empty();
                let remembered = Remembered {
                    valid_until: conditions.valid_until,
                    leg,
                    has_frame_lengths: frame_lengths != ANY_LENGTH,
                    has_meters: !evaluation.meters.is_empty(),
                    counts_something,
                    decision: Short::of(&decision),
                    connection,
                    wire_lengths: self.packet.wire_lengths,
                    rest: Box::new(Rest::new((decision.clone(), frame_lengths), evaluation)),
                };
                self.remember((in_port, frame.header), path, remembered, generation);
            }
            _ => self.stats.unrepeatable += 1,
        }
        give(&mut self.outcomes, &decision)
    }

    /// Goes on with a walk through the flow cache, by one step: shows the verdicts that a frame which changes no connection's state would get
    /// from it at `now`.
    pub fn list_flows(&self, walk: &mut FlowWalk, now: Millis) {
        walk.begin_step();
        let engine = &*self.engine;
        // Before anything is read that a change may concern.
        let generation = Self::generation(engine);
        while let Some(place) = walk.next_place(self.cache.places()) {
            let Some(shown) = self.cache.shown(place) else {
                continue;
            };
            if !walk.wants(shown.in_port) {
                continue;
            }
            let Flow { value, stamp, .. } = shown.flow;
            let holds = now < value.valid_until
                && (*stamp == generation || holds(engine, &value.rest))
                && value.leg.is_none_or(|leg| {
                    let conntrack = &engine.state.conntrack;
                    conntrack.still_holds(value.connection, leg, now)
                });
            let (Some(path), Some(in_port), true) = (
                self.reader.paths.by_number(shown.path),
                PortId::new(shown.in_port),
                holds,
            ) else {
                continue;
            };
            let words = self.cache.words_of(&shown);
            let first_word = walk.add_words(words);
            walk.add(FoundFlow {
                in_port,
                valid_for: value.left(now),
                what: Found::Program(FoundInProgram::new(value, &path.shape, first_word)),
            });
        }
    }

    fn evaluate(
        &mut self,
        engine: &Engine,
        in_port: PortId,
        frame: &FrameInfo<'_>,
        path: Option<u16>,
    ) {
        if !engine.is_published(&self.snapshot) {
            self.snapshot = engine.snapshot();
        }
        let index = in_port.index();
        if self.budgets.len() <= index {
            let full = TokenBucket::full(engine.config().learn_rate, self.now);
            self.budgets.resize(index + 1, full);
        }
        let mut spare = TokenBucket::full(engine.config().learn_rate, self.now);
        let budget = self.budgets.get_mut(index).unwrap_or(&mut spare);
        let frame = Frame {
            in_port,
            header: frame.header,
            frame_bytes: frame.frame_bytes,
            wire_bytes: frame.wire_bytes,
            now: self.now,
            headers: path.and_then(|path| self.reader.paths.by_number(path)?.headers.as_deref()),
        };
        Evaluator::new(
            (&engine.state, &self.snapshot),
            frame,
            Effects::Live(budget),
            &mut Unobserved,
            (&mut self.packet, &mut self.evaluation),
        )
        .run();
    }

    fn remember(
        &mut self,
        (in_port, header): (PortId, &[u8]),
        path: u16,
        remembered: Remembered,
        generation: u64,
    ) {
        let Some(path) = self.reader.paths.by_number(path) else {
            return;
        };
        path.read(in_port.get(), header, &mut self.key);
        let mut masks = [0u64; MOST_KEY_WORDS];
        let looked_at = self.packet.looked_at();
        let (mut covered, mut words) = (0, 1);
        if let Some(first) = masks.first_mut() {
            *first = u64::MAX;
        }
        let bits = Words::new(looked_at);
        for (mask, (index, relevant)) in masks.iter_mut().skip(1).zip(path.words()) {
            let bits = bits.get(index);
            *mask = bits & relevant;
            covered += mask.count_ones();
            words += 1;
        }
        // What the key does not have cannot be compared: what only a second parse came to, as a rule.
        if self.packet.bits_looked_at() != covered {
            return;
        }
        let masks = masks.get(..words).unwrap_or_default();
        if let Ok(inserted) = self.cache.insert(&self.key, masks, remembered, generation) {
            self.stats.remembered += 1;
            if let Some(mut gone) = inserted.pushed_out {
                count(&self.engine, &mut gone, self.now);
            }
        }
    }
}

impl Decide for EnginePipeline {
    fn begin_batch(&mut self, now: Millis) {
        self.outcomes.clear();
        self.foreseen.end = 0;
        if now != self.now {
            // At a time when some of those frames came.
            if now.since(self.counted_at) >= UNCOUNTED_FOR {
                self.count_noted();
                self.counted_at = now;
            }
            self.now = now;
            self.cache.set_time(now);
        }
        let Self { cache, engine, .. } = self;
        cache.sweep(SWEPT_PER_BATCH, |flow| {
            count(engine, flow, now);
            now < flow.value.valid_until
        });
    }

    fn foresee<'a>(&mut self, in_port: PortId, frames: impl Iterator<Item = FrameInfo<'a>>) {
        let Self {
            engine,
            cache,
            reader,
            foreseen,
            ..
        } = self;
        (foreseen.in_port, foreseen.next) = (Some(in_port), 0);
        // In short loops, for the processor to fetch for many frames at a time.
        let mut end = 0;
        for (frame, place) in frames.zip(&mut foreseen.frames) {
            let bytes = start_of(&frame);
            let whole = (in_port, bytes, frame.frame_bytes);
            let read = reader.read(&engine.state.program, whole, &mut place.key);
            place.is_known = read.is_ok();
            place.start = ForeseenFrame::start(bytes);
            place.flow = None;
            end += 1;
        }
        foreseen.end = end;
        if cache.stats().flows < FEW_FLOWS {
            return;
        }
        let known = foreseen.frames.get_mut(..end).unwrap_or_default();
        let mut touched = 0;
        for frame in &mut *known {
            if frame.is_known {
                frame.flow = cache.foresee(&frame.key, &mut touched);
            }
        }
        for frame in &*known {
            let flow = frame.flow.and_then(|flow| cache.entry(flow));
            let Some(Flow { value, .. }) = flow else {
                continue;
            };
            if value.leg.is_some() {
                touched ^= engine.state.conntrack.touch(value.connection);
            }
            if matches!(value.decision, Short::None)
                && let Decision::Output(_, Some(edits)) = &value.rest.decision
            {
                touched ^= Arc::strong_count(edits) as u64;
            }
        }
        foreseen.touched = touched;
    }

    #[inline]
    fn decide(&mut self, in_port: PortId, frame: &FrameInfo<'_>) -> Verdict {
        self.classify(in_port, frame)
    }

    const HAS_COSTLY_FRAMES: bool = true;

    fn take_costly(&mut self) -> bool {
        std::mem::take(&mut self.has_missed)
    }

    fn rest(&mut self) -> bool {
        self.count_more()
    }

    fn flood_members(&self, _: Flood) -> impl Iterator<Item = (PortId, VlanEdit)> + '_ {
        // Programs flood to multicast groups.
        std::iter::empty()
    }

    fn outcomes(&self) -> &Outcomes {
        &self.outcomes
    }

    fn list_flows(&self, walk: &mut FlowWalk, now: Millis) {
        Self::list_flows(self, walk, now);
    }

    fn cache_use(&self) -> CacheUse {
        CacheUse {
            misses: self.stats.misses,
            flows: Some(self.cache.stats().flows as u64),
        }
    }
}
