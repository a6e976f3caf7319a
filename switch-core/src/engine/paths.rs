//! The paths that parses take, by dense numbers, and for each what a flow-cache key is gathered from.
//!
//! Two frames take the same path when the parser went through the same states, found headers of the same lengths in front of others,
//! and ended alike. So under one path every header that a program can look at lies at the same place, and the words of the frame that
//! matter are known beforehand.

use std::sync::Arc;

use super::cache::{FlowKey, HEAD_WORDS, MOST_KEY_WORDS};
use super::compile::{
    Compiled, Field, HeaderField, HeaderKind, Next, Prim, PushedHeader, Step, Test, Value,
};
use super::evaluate::TcpPlace;
use super::known::Known;
use super::layout::{Layout, Place};
use super::packet::{PACKET_BYTES, for_each_byte};
use super::parse::{ParseError, Watch};
use super::pattern::{Masked, Pattern};

/// Most nodes that one port may add to the tree of paths: hostile frames then find theirs used up, and nobody else's.
const MOST_NODES_PER_PORT: u16 = 256;
/// Most paths.
const MOST_PATHS: usize = u16::MAX as usize;

/// Ports whose last paths are remembered.
const LIKELY: usize = 64;

/// What is known of a path.
#[derive(Debug)]
pub(crate) struct Path {
    pub number: u16,
    /// Words of the key behind the port, in order; those that fit into its head, and the others.
    head: Box<[Word]>,
    rest: Box<[Word]>,
    /// Words that are the same in all frames, and not in the key.
    beside: Box<[Word]>,
    /// Where to read a TCP segment.
    pub tcp: Option<TcpPlace>,
    /// What its frames look like.
    pattern: Option<Pattern>,
    /// Its headers in order, unless its parse ends with an error; the last one's length is each frame's own.
    pub headers: Option<Box<[(u16, Place)]>>,
    /// For people.
    pub shape: Arc<Shape>,
}

/// What the words of a path's keys are parts of.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Its headers in order.
    pub headers: Box<[(u16, Place)]>,
    /// The words behind the port: their places in the frame, in words, and the bits that the program can look at.
    pub words: Box<[(u16, u64)]>,
}

/// A word of a frame.
#[derive(Clone, Copy, Debug)]
struct Word {
    /// Its first byte, in words.
    index: u16,
    /// The bits that the program can look at.
    mask: u64,
    /// The bits that are the same in all frames of the path that has a pattern, and what they are.
    same: Masked,
}

impl Path {
    /// Reads a frame's key, as of this path. Says in which bits the frame is not like those of the path.
    #[inline]
    pub(crate) fn read(&self, in_port: u16, bytes: &[u8], key: &mut FlowKey) -> u64 {
        key.path = self.number;
        key.length = (1 + self.head.len() + self.rest.len()) as u8;
        key.head = [0; HEAD_WORDS];
        let [first, head @ ..] = &mut key.head;
        *first = in_port.into();
        let frame = Words::new(bytes);
        let mut differing = 0;
        for (place, word) in head.iter_mut().zip(&*self.head) {
            let read = frame.get(word.index);
            *place = read & word.mask;
            differing |= read & word.same.mask ^ word.same.value;
        }
        for (place, word) in key.rest.iter_mut().zip(&*self.rest) {
            let read = frame.get(word.index);
            *place = read & word.mask;
            differing |= read & word.same.mask ^ word.same.value;
        }
        for word in &self.beside {
            differing |= frame.get(word.index) & word.same.mask ^ word.same.value;
        }
        differing
    }

    /// The words of its frames' keys behind the port, and under which mask each is part of it: by their places in the frame, in words.
    pub(crate) fn words(&self) -> impl Iterator<Item = (u16, u64)> {
        let words = self.head.iter().chain(&*self.rest);
        words.map(|word| (word.index, word.mask))
    }
}

/// A frame's words, those beyond its end being zero.
pub(crate) struct Words<'a> {
    whole: &'a [[u8; 8]],
    /// What is left behind them.
    last: u64,
}

impl<'a> Words<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let (whole, _) = bytes.as_chunks();
        let last = word_at(bytes, 8 * whole.len());
        Self { whole, last }
    }

    #[inline]
    pub(crate) fn get(&self, index: u16) -> u64 {
        let index = usize::from(index);
        match self.whole.get(index) {
            Some(word) => u64::from_le_bytes(*word),
            None if index == self.whole.len() => self.last,
            None => 0,
        }
    }
}

#[derive(Debug, Default)]
struct Node {
    /// By state and length of its header, in order: hostile frames may add many beside those that matter.
    children: Vec<((u16, u16), u32)>,
    /// By how the parse ended.
    ends: [Option<u16>; 5],
}

/// Children that are looked through one by one.
const FEW: usize = 8;

impl Node {
    #[inline]
    fn child(&self, step: (u16, u16)) -> Option<u32> {
        if self.children.len() <= FEW {
            let mut children = self.children.iter();
            return children
                .find(|(known, _)| *known == step)
                .map(|&(_, child)| child);
        }
        let at = self
            .children
            .binary_search_by_key(&step, |&(known, _)| known);
        self.children.get(at.ok()?).map(|&(_, child)| child)
    }
}

/// All paths seen.
#[derive(Debug)]
pub(crate) struct Paths {
    nodes: Vec<Node>,
    paths: Vec<Path>,
    /// Those that frames of a port took last, for ports whose numbers end alike.
    likely: [[u16; 2]; LIKELY],
    /// Nodes that each port has added.
    added: Vec<u16>,
    relevance: Relevance,
}

/// A walk along the tree while a frame is parsed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk<'a> {
    paths: &'a Paths,
    at: Option<u32>,
}

impl Watch for Walk<'_> {
    #[inline]
    fn step(&mut self, state: u16, bytes: u16, next: Next) {
        let step = (state, behind_it(bytes, next));
        self.at = self.at.and_then(|at| {
            let node = self.paths.nodes.get(at as usize)?;
            node.child(step)
        });
    }
}

/// The length of the last header makes no difference to what is in front of its end. Whether there is one does: a header that is
/// refused for what it says is still part of the frame, one that could not be taken out is not.
#[inline]
fn behind_it(bytes: u16, next: Next) -> u16 {
    match next {
        Next::State(_) => bytes,
        Next::Accept => 0,
        Next::Reject if bytes == 0 => u16::MAX,
        Next::Reject => u16::MAX - 1,
    }
}

impl Paths {
    pub(crate) fn new(program: &Compiled, known: &Known) -> Self {
        Self {
            nodes: vec![Node::default()],
            paths: Vec::new(),
            likely: [[u16::MAX; 2]; LIKELY],
            added: Vec::new(),
            relevance: Relevance::new(program, known),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.paths.len()
    }

    /// The path that a frame takes, where a glance tells, because its port's frames took it just before; `key` is read then.
    #[inline]
    pub(crate) fn likely(
        &mut self,
        in_port: u16,
        (bytes, frame_bytes): (&[u8], u32),
        key: &mut FlowKey,
    ) -> Option<&Path> {
        let &[first, second] = self.likely.get(usize::from(in_port) % LIKELY)?;
        let mut fits = |path: u16| {
            let path = self.paths.get(usize::from(path))?;
            let pattern = path.pattern.as_ref()?;
            let differing = path.read(in_port, bytes, key);
            (differing == 0 && pattern.fits(bytes, frame_bytes as usize)).then_some(())
        };
        let taken = match fits(first) {
            Some(()) => first,
            None => {
                fits(second)?;
                self.expect(in_port, second);
                second
            }
        };
        self.by_number(taken)
    }

    /// Notes which path a port's frame took.
    pub(crate) fn expect(&mut self, in_port: u16, path: u16) {
        let has_pattern = |path: &Path| path.pattern.is_some();
        if self.by_number(path).is_some_and(has_pattern)
            && let Some(likely) = self.likely.get_mut(usize::from(in_port) % LIKELY)
        {
            let [first, _] = *likely;
            *likely = [path, first];
        }
    }

    /// Begins a walk.
    #[inline]
    pub(crate) fn walk(&self) -> Walk<'_> {
        Walk {
            paths: self,
            at: Some(0),
        }
    }

    /// The path at the end of a walk, if it was seen before.
    #[inline]
    pub(crate) fn known(&self, walk: Walk<'_>, error: ParseError) -> Option<&Path> {
        let node = self.nodes.get(walk.at? as usize)?;
        let path = (*node.ends.get(error as usize)?)?;
        self.paths.get(usize::from(path))
    }

    /// A path by its number.
    pub(crate) fn by_number(&self, number: u16) -> Option<&Path> {
        self.paths.get(usize::from(number))
    }

    /// Notes a path; `None` when there is no room for it.
    pub(crate) fn learn(
        &mut self,
        in_port: u16,
        (trail, error): (&[(u16, u16, Next)], ParseError),
        (program, known): (&Compiled, &Known),
        (bytes, layout): (&[u8], &Layout),
    ) -> Option<&Path> {
        let index = usize::from(in_port);
        if self.added.len() <= index {
            self.added.resize(index + 1, 0);
        }
        let mut at = 0u32;
        for &(state, bytes, next) in trail {
            let step = (state, behind_it(bytes, next));
            let node = self.nodes.get(at as usize)?;
            at = match node.child(step) {
                Some(child) => child,
                None => {
                    let added = self.added.get_mut(index)?;
                    if *added >= MOST_NODES_PER_PORT {
                        return None;
                    }
                    *added += 1;
                    let child = u32::try_from(self.nodes.len()).ok()?;
                    self.nodes.push(Node::default());
                    let children = &mut self.nodes.get_mut(at as usize)?.children;
                    let place = children.partition_point(|(known, _)| *known < step);
                    children.insert(place, (step, child));
                    child
                }
            };
        }
        let end = self
            .nodes
            .get_mut(at as usize)?
            .ends
            .get_mut(error as usize)?;
        if let Some(path) = *end {
            return self.paths.get(usize::from(path));
        }
        if self.paths.len() >= MOST_PATHS {
            return None;
        }
        // Before a number is given: one that no path has would be that of the next.
        let gather = self.relevance.gather(layout)?;
        let number = self.paths.len() as u16;
        *end = Some(number);
        let pattern = match error {
            ParseError::None => Pattern::new(program, trail, layout),
            _ => None,
        };
        let (pattern, same) = pattern.unzip();
        let same_at = |index: u16| (same.as_ref()).map_or(0, |same| Words::new(same).get(index));
        let word = |(index, mask)| Word {
            index,
            mask,
            same: Masked::of(Words::new(bytes).get(index), same_at(index)),
        };
        let in_key = |index: u16| gather.iter().any(|(other, _)| *other == index);
        let beside = (0..PACKET_BYTES as u16 / 8).filter(|at| same_at(*at) != 0 && !in_key(*at));
        let (head, rest) = gather.split_at(gather.len().min(HEAD_WORDS - 1));
        let headers = layout.order().iter();
        let headers: Box<[_]> = headers
            .map(|&header| (header, layout.place(header)))
            .collect();
        self.paths.push(Path {
            number,
            head: head.iter().copied().map(word).collect(),
            rest: rest.iter().copied().map(word).collect(),
            beside: beside.map(|index| word((index, 0))).collect(),
            tcp: TcpPlace::of(known, layout),
            pattern,
            headers: (error == ParseError::None).then(|| headers.clone()),
            shape: Arc::new(Shape {
                headers,
                words: gather,
            }),
        });
        self.paths.last()
    }
}

/// Which bits of each header a program can look at.
#[derive(Debug)]
struct Relevance {
    /// By header, by byte.
    masks: Vec<Vec<u8>>,
}

impl Relevance {
    fn new(program: &Compiled, known: &Known) -> Self {
        let mut relevance = Self {
            masks: vec![Vec::new(); program.headers.len()],
        };
        for table in &program.tables {
            for key in &table.key {
                relevance.field(key.field);
            }
        }
        for action in &program.actions {
            relevance.primitives(&action.body, program);
        }
        relevance.steps(&program.ingress, program);
        relevance.steps(&program.egress, program);
        // Whether a transport protocol that carries headers has a checksum decides on what follows their changes.
        for state in &program.states {
            let leads_on = state
                .cases
                .iter()
                .map(|case| case.next)
                .chain([state.default])
                .any(|next| matches!(next, Next::State(_)));
            let udp = state
                .extract
                .and_then(|header| program.headers.get(usize::from(header)))
                .filter(|header| leads_on && header.kind == HeaderKind::Udp);
            if let Some(field) = udp.and_then(|header| header.field("checksum")) {
                relevance.header_field(field);
            }
        }
        if program.tracks {
            let fields = &known.fields;
            for field in [
                fields.ipv4_protocol,
                fields.ipv4_src,
                fields.ipv4_dst,
                fields.ipv4_fragment_offset,
                fields.ipv4_more_fragments,
                fields.ipv6_next_header,
                fields.ipv6_src,
                fields.ipv6_dst,
                fields.extension_next_header,
                fields.fragment_next_header,
                fields.fragment_offset,
                fields.fragment_more,
                fields.tcp_src_port,
                fields.tcp_dst_port,
                fields.udp_src_port,
                fields.udp_dst_port,
                fields.icmp_type,
                fields.icmp_identifier,
                fields.icmpv6_type,
                fields.icmpv6_identifier,
            ]
            .into_iter()
            .flatten()
            {
                relevance.header_field(field);
            }
        }
        relevance
    }

    fn header_field(&mut self, field: HeaderField) {
        // Whole bytes: what is written beside a field counts as well.
        let (first, last) = (field.bit / 8, (field.bit + field.bits).div_ceil(8));
        if let Some(mask) = self.masks.get_mut(usize::from(field.header)) {
            let end = usize::from(last);
            if mask.len() < end {
                mask.resize(end, 0);
            }
            for_each_byte(first * 8, (last - first) * 8, |byte, bits| {
                if let Some(slot) = mask.get_mut(byte) {
                    *slot |= bits;
                }
            });
        }
    }

    fn field(&mut self, field: Field) {
        if let Field::Header(field) = field {
            self.header_field(field);
        }
    }

    fn value(&mut self, value: Value) {
        if let Value::Field(field) = value {
            self.field(field);
        }
    }

    /// Every field of this name, in whichever header.
    fn named(&mut self, program: &Compiled, name: &str) {
        for header in &program.headers {
            if let Some(field) = header.field(name) {
                self.header_field(field);
            }
        }
    }

    fn test(&mut self, test: &Test) {
        match test {
            Test::Compare(_, a, b) => {
                self.value(*a);
                self.value(*b);
            }
            Test::Masked(a, _, _) => self.value(*a),
            Test::All(tests) | Test::Any(tests) => tests.iter().for_each(|test| self.test(test)),
            Test::Not(test) => self.test(test),
        }
    }

    fn steps(&mut self, steps: &[Step], program: &Compiled) {
        for step in steps {
            match step {
                Step::Apply {
                    hit, miss, actions, ..
                } => {
                    self.steps(hit, program);
                    self.steps(miss, program);
                    for (_, steps) in actions {
                        self.steps(steps, program);
                    }
                }
                Step::If {
                    test,
                    then,
                    otherwise,
                    ..
                } => {
                    self.test(test);
                    self.steps(then, program);
                    self.steps(otherwise, program);
                }
                Step::Do(primitives) => self.primitives(primitives, program),
                Step::Find {
                    domain,
                    address,
                    hit,
                    miss,
                    ..
                } => {
                    self.value(*domain);
                    self.value(*address);
                    self.steps(hit, program);
                    self.steps(miss, program);
                }
                Step::Exit => {}
            }
        }
    }

    fn primitives(&mut self, primitives: &[Prim], program: &Compiled) {
        for primitive in primitives {
            match primitive {
                Prim::Set(field, value)
                | Prim::Add(field, value)
                | Prim::Subtract(field, value) => {
                    self.field(*field);
                    self.value(*value);
                }
                Prim::PushVlan { vid, pcp, tpid } => {
                    self.named(program, "ether_type");
                    [vid, pcp, tpid]
                        .into_iter()
                        .for_each(|value| self.value(*value));
                }
                Prim::PopVlan => self.named(program, "ether_type"),
                Prim::PushMpls { label, tc, ttl } => {
                    self.named(program, "ether_type");
                    [label, tc, ttl]
                        .into_iter()
                        .for_each(|value| self.value(*value));
                }
                Prim::PopMpls { ether_type } => {
                    self.named(program, "bottom");
                    self.named(program, "ether_type");
                    self.value(*ether_type);
                }
                Prim::Output(value)
                | Prim::Multicast(value)
                | Prim::Mirror(value)
                | Prim::Meter { index: value, .. }
                | Prim::Count { index: value, .. }
                | Prim::Track(value) => self.value(*value),
                // A second parse looks at what the first one went by.
                Prim::Recirculate(_) => {
                    for header in &program.headers {
                        for named in &header.fields {
                            self.header_field(named.field);
                        }
                    }
                }
                Prim::Resubmit(_) | Prim::Drop(_) | Prim::Nat | Prim::Decapsulate(_) => {}
                Prim::Controller { args, .. } => args.iter().for_each(|arg| self.value(*arg)),
                Prim::Commit(spec) => {
                    let values = spec.mark.iter().chain(&spec.data);
                    let source = spec.source.iter().flatten();
                    let destination = spec.destination.iter().flatten();
                    for value in values.chain(source).chain(destination) {
                        self.value(*value);
                    }
                }
                Prim::Learn { domain, address } => {
                    self.value(*domain);
                    self.value(*address);
                }
                Prim::Select {
                    group, hash, into, ..
                } => {
                    self.value(*group);
                    hash.iter().chain(into).for_each(|field| self.field(*field));
                }
                Prim::Encapsulate(headers) => headers.iter().for_each(|header| {
                    let PushedHeader { fields, .. } = header;
                    fields.iter().for_each(|(_, value)| self.value(*value));
                }),
            }
        }
    }

    /// The words that count in a frame with these headers, by their places, in words; `None` when they are too many.
    fn gather(&self, layout: &Layout) -> Option<Box<[(u16, u64)]>> {
        let mut bytes = [0u8; PACKET_BYTES];
        for &header in layout.order() {
            let place = layout.place(header);
            let mask = self.masks.get(usize::from(header))?;
            for (to, bits) in bytes
                .iter_mut()
                .skip(usize::from(place.at))
                .zip(mask.iter().take(place.bytes.into()))
            {
                *to |= bits;
            }
        }
        let words: Box<[(u16, u64)]> = bytes
            .chunks_exact(8)
            .enumerate()
            .filter_map(|(number, chunk)| {
                let mask = u64::from_le_bytes(*chunk.first_chunk()?);
                (mask != 0).then_some((number as u16, mask))
            })
            .collect();
        (words.len() < MOST_KEY_WORDS).then_some(words)
    }
}

/// The eight bytes at `at`, those beyond the end being zero.
#[inline]
pub(crate) fn word_at(bytes: &[u8], at: usize) -> u64 {
    let rest = bytes.get(at..).unwrap_or_default();
    match (rest.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        (Some(word), _) => u64::from_le_bytes(*word),
        (None, Some(_)) if rest.is_empty() => 0,
        // The end of what is there.
        (None, Some(word)) => u64::from_le_bytes(*word) >> (64 - 8 * rest.len()),
        (None, None) => {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(rest) {
                *to = *from;
            }
            u64::from_le_bytes(word)
        }
    }
}
