//! What frames look like whose parse takes a known path: a few words to compare, where a parse would go from header to header.
//!
//! A pattern is sufficient, not necessary: a frame that fits takes the path, one that does not is parsed. Paths that end in an error,
//! and some with rare conditions, have none.

use super::compile::{
    Case, Comparison, Compiled, Field, Header, HeaderField, HeaderKind, Length, Next, State, Test,
    Value,
};
use super::layout::Layout;
use super::packet::PACKET_BYTES;
use super::parse::holds;
use super::paths::word_at;

/// Some bits of a word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Masked {
    pub mask: u64,
    /// Zero in the other bits.
    pub value: u64,
}

impl Masked {
    /// These bits of a word.
    pub(crate) fn of(word: u64, mask: u64) -> Self {
        let value = word & mask;
        Self { mask, value }
    }
}

/// Some bits of the word that begins at this byte.
type MaskedAt = (u16, Masked);

/// A length that a frame states, which has to fit into what is around it.
#[derive(Debug)]
struct Stated {
    /// Where what it is the length of begins.
    at: u16,
    /// The eight bytes that hold it, and where in them: it is `(word >> shift & mask) * unit_bytes + plus_bytes`.
    word: u16,
    shift: u8,
    mask: u64,
    unit_bytes: u16,
    plus_bytes: u32,
    least: u16,
    most: u32,
    /// Whether what follows lies within, as headers do within an IP packet.
    is_around: bool,
}

impl Stated {
    /// The length; what is not stated is 0.
    #[inline]
    fn bytes(&self, frame: &[u8]) -> u64 {
        let word = frame.get(usize::from(self.word)..).unwrap_or_default();
        let word = match word.first_chunk::<8>() {
            Some(word) => u64::from_be_bytes(*word),
            None => word_at(frame, self.word.into()).swap_bytes(),
        };
        let units = word >> self.shift & self.mask;
        if units == 0 && self.is_around {
            return 0;
        }
        // Fewer than 49 bits.
        units * u64::from(self.unit_bytes) + u64::from(self.plus_bytes)
    }
}

/// What makes a frame one of a path's, beside bits that are the same in all of them.
#[derive(Debug)]
pub(crate) struct Pattern {
    /// What would have led elsewhere, by a word's first byte.
    different: Box<[MaskedAt]>,
    /// Of each of these something.
    among: Box<[Box<[MaskedAt]>]>,
    /// From the outermost on.
    stated: Box<[Stated]>,
    tests: Box<[Test]>,
    /// For `tests`.
    layout: Box<Layout>,
    /// Where the last header ends at least.
    bytes: u16,
}

impl Pattern {
    /// What the frames look like that are parsed as this one was, without an error: its states, header lengths and what followed. Also
    /// the bits that are the same in all of them.
    pub(crate) fn new(
        program: &Compiled,
        trail: &[(u16, u16, Next)],
        layout: &Layout,
    ) -> Option<(Self, [u8; PACKET_BYTES])> {
        let mut maker = Maker {
            places: Vec::new(),
            mask: [0; PACKET_BYTES],
            different: Vec::new(),
            among: Vec::new(),
            stated: Vec::new(),
            last_length: None,
            tests: Vec::new(),
            end: 0,
        };
        for &(number, header_bytes, next) in trail {
            let state = program.states.get(usize::from(number))?;
            maker.state(program, state, (header_bytes, next))?;
        }
        let pattern = Self {
            different: maker.different.into(),
            among: maker.among.into(),
            stated: maker.stated.into(),
            tests: maker.tests.into(),
            layout: Box::new(layout.clone()),
            bytes: maker.end,
        };
        Some((pattern, maker.mask))
    }

    /// Whether a frame is one of these, when it is the same in the bits in which all are.
    #[inline]
    pub(crate) fn fits(&self, bytes: &[u8], frame_bytes: usize) -> bool {
        let is = |(at, word): &MaskedAt| word_at(bytes, usize::from(*at)) & word.mask == word.value;
        bytes.len().min(frame_bytes) >= usize::from(self.bytes)
            && !self.different.iter().any(is)
            && self.among.iter().all(|words| words.iter().any(is))
            && self.lengths_fit(bytes, frame_bytes)
            && (self.tests.is_empty()
                || (self.tests.iter()).all(|test| holds(test, bytes, &self.layout)))
    }

    #[inline]
    fn lengths_fit(&self, bytes: &[u8], frame_bytes: usize) -> bool {
        let mut end = frame_bytes;
        for stated in &self.stated {
            let stated_bytes = stated.bytes(bytes);
            let its_end = stated_bytes + u64::from(stated.at);
            let around = if stated.is_around {
                end
            } else {
                end.min(bytes.len())
            };
            if stated_bytes < stated.least.into()
                || stated_bytes > stated.most.into()
                || its_end > around as u64
            {
                return false;
            }
            if stated.is_around {
                end = its_end as usize;
            }
        }
        usize::from(self.bytes) <= end
    }
}

struct Maker {
    /// Headers, and the first byte of each.
    places: Vec<(u16, u16)>,
    /// Bits that are the same in all frames of the path.
    mask: [u8; PACKET_BYTES],
    different: Vec<MaskedAt>,
    among: Vec<Box<[MaskedAt]>>,
    stated: Vec<Stated>,
    /// Of the last header, if it states one.
    last_length: Option<Length>,
    tests: Vec<Test>,
    /// Of the headers so far.
    end: u16,
}

impl Maker {
    /// `None` when there is no pattern for this.
    fn state(
        &mut self,
        program: &Compiled,
        state: &State,
        (header_bytes, next): (u16, Next),
    ) -> Option<()> {
        let leads_on = matches!(next, Next::State(_));
        if let Some(number) = state.extract {
            let header = program.headers.get(usize::from(number))?;
            self.header((number, header), header_bytes, leads_on)?;
        }
        for test in &state.verify {
            self.test(test)?;
        }
        self.select(state, next)
    }

    fn header(
        &mut self,
        (number, header): (u16, &Header),
        bytes: u16,
        leads_on: bool,
    ) -> Option<()> {
        let at = self.end;
        // A header that is found again moves, and with it what conditions would be read from.
        if self.place(number).is_some() {
            return None;
        }
        self.places.push((number, at));
        self.end = at.checked_add(header.bytes)?;
        if let Some(length) = header.length.filter(|_| leads_on) {
            self.mark(length.field, u128::MAX)?;
            self.end = at.checked_add(bytes)?;
        }
        let packet = match header.kind {
            HeaderKind::Ipv4 => Some((2, 0)),
            HeaderKind::Ipv6 => Some((4, 40)),
            _ => None,
        };
        if let Some((field, plus_bytes)) = packet {
            self.stated.push(Stated {
                at,
                word: at + field,
                shift: 48,
                mask: 0xffff,
                unit_bytes: 1,
                plus_bytes,
                // A length of 0 is one that is not stated.
                least: (self.end - at).max(1),
                most: u32::MAX,
                is_around: true,
            });
        }
        if let Some(length) = header.length.filter(|_| !leads_on) {
            let (field, skipped) = (length.field, length.field.bit % 8);
            if field.bits > 32 {
                return None;
            }
            self.stated.push(Stated {
                at,
                word: at + field.bit / 8,
                shift: (64 - skipped - field.bits) as u8,
                mask: (1 << field.bits) - 1,
                unit_bytes: length.unit_bytes,
                plus_bytes: u32::from(length.plus) * u32::from(length.unit_bytes),
                least: header.bytes,
                most: length.max_bytes.into(),
                is_around: false,
            });
            self.last_length = Some(length);
        }
        Some(())
    }

    fn place(&self, header: u16) -> Option<u16> {
        let found = self.places.iter().find(|(found, _)| *found == header);
        found.map(|&(_, at)| at)
    }

    /// These bits of a field are the same in all frames.
    fn mark(&mut self, field: HeaderField, bits: u128) -> Option<()> {
        let first = u32::from(self.place(field.header)?) * 8 + u32::from(field.bit);
        for bit in set_bits(field, bits) {
            let at = first + u32::from(bit);
            *self.mask.get_mut(at as usize / 8)? |= 0x80 >> (at % 8);
        }
        Some(())
    }

    fn test(&mut self, test: &Test) -> Option<()> {
        match *test {
            Test::Compare(
                Comparison::Eq,
                Value::Field(Field::Header(field)),
                Value::Constant(_),
            ) => self.mark(field, u128::MAX),
            Test::Masked(Value::Field(Field::Header(field)), mask, _) => self.mark(field, mask),
            Test::Compare(
                Comparison::Ge,
                Value::Field(Field::Header(field)),
                Value::Constant(units),
            ) if self.is_at_least(field, units) => Some(()),
            _ => {
                self.are_known(test)?;
                self.tests.push(test.clone());
                Some(())
            }
        }
    }

    /// Makes it so that a header that is the last and states its length states so much at least, or finds that it is the same anyway.
    fn is_at_least(&mut self, wanted: HeaderField, units: u128) -> bool {
        if self.is_marked(wanted) {
            return true;
        }
        let (Some(stated), Some(length)) = (self.stated.last_mut(), self.last_length) else {
            return false;
        };
        let bytes = units
            .checked_add(length.plus.into())
            .and_then(|units| units.checked_mul(length.unit_bytes.into()))
            .and_then(|bytes| u16::try_from(bytes).ok());
        match bytes {
            Some(bytes) if length.field == wanted => {
                stated.least = bytes.max(stated.least);
                true
            }
            _ => false,
        }
    }

    /// Whether a field is the same in all frames.
    fn is_marked(&self, field: HeaderField) -> bool {
        let Some(place) = self.place(field.header) else {
            return false;
        };
        let first = u32::from(place) * 8 + u32::from(field.bit);
        (0..u32::from(field.bits)).all(|bit| {
            let at = first + bit;
            let byte = self.mask.get(at as usize / 8);
            byte.is_some_and(|byte| byte & 0x80 >> (at % 8) != 0)
        })
    }

    /// Whether all that a test looks at has its place.
    fn are_known(&self, test: &Test) -> Option<()> {
        let value = |value: &Value| match *value {
            Value::Field(Field::Header(field)) => self.place(field.header).map(|_| ()),
            Value::Constant(_) => Some(()),
            _ => None,
        };
        match test {
            Test::Compare(_, a, b) => value(a).and(value(b)),
            Test::Masked(a, _, _) => value(a),
            Test::All(tests) | Test::Any(tests) => {
                tests.iter().try_for_each(|test| self.are_known(test))
            }
            Test::Not(test) => self.are_known(test),
        }
    }

    fn select(&mut self, state: &State, next: Next) -> Option<()> {
        let fields = state.select.iter().map(|field| match field {
            Field::Header(field) => Some(*field),
            _ => None,
        });
        let fields = fields.collect::<Option<Vec<HeaderField>>>()?;
        let Some(first) = fields.first() else {
            return Some(());
        };
        self.place(first.header)?;
        // Which case it was is not noted: all that lead there, against all that lead elsewhere.
        let leading: Vec<&Case> = state
            .cases
            .iter()
            .filter(|case| case.next == next)
            .collect();
        let is_default = state.default == next;
        for (at, case) in state.cases.iter().enumerate() {
            let is_told_apart = !is_default
                && leading.iter().all(|leading| {
                    let is_later = (state.cases.get(at..).unwrap_or_default().iter())
                        .any(|later| std::ptr::eq(later, *leading));
                    !is_later || excludes(leading, case, &fields)
                });
            if case.next != next && !is_told_apart {
                let other = self.of_case(&fields, case)?;
                self.different.push(other);
            }
        }
        match leading.as_slice() {
            _ if is_default => Some(()),
            [case] => {
                let mut values = fields.iter().zip(&case.values);
                values.try_for_each(|(field, &(_, mask))| self.mark(*field, mask))
            }
            cases => {
                let cases = cases.iter().map(|case| self.of_case(&fields, case));
                self.among.push(cases.collect::<Option<_>>()?);
                Some(())
            }
        }
    }

    /// What frames of a case are like: a word's first byte, and its bits.
    fn of_case(&self, fields: &[HeaderField], case: &Case) -> Option<MaskedAt> {
        let mut places = Vec::new();
        for field in fields {
            places.push(u32::from(self.place(field.header)?) * 8 + u32::from(field.bit));
        }
        let first = places.iter().min()? / 8 * 8;
        let (mut mask, mut value) = ([0u8; 8], [0u8; 8]);
        for ((field, place), &(wanted, bits)) in fields.iter().zip(&places).zip(&case.values) {
            for bit in set_bits(*field, bits) {
                let at = (place - first + u32::from(bit)) as usize;
                let one = 0x80 >> (at % 8);
                *mask.get_mut(at / 8)? |= one;
                if wanted >> (field.bits - 1 - bit) & 1 == 1 {
                    *value.get_mut(at / 8)? |= one;
                }
            }
        }
        let masked = Masked {
            mask: u64::from_le_bytes(mask),
            value: u64::from_le_bytes(value),
        };
        Some((u16::try_from(first / 8).ok()?, masked))
    }
}

/// Which bits of a field, the first being 0, are set in a mask that is as wide.
fn set_bits(field: HeaderField, mask: u128) -> impl Iterator<Item = u16> {
    (0..field.bits).filter(move |bit| mask >> (field.bits - 1 - bit) & 1 == 1)
}

/// Whether no frame is of both cases.
fn excludes(one: &Case, other: &Case, fields: &[HeaderField]) -> bool {
    let mut values = one.values.iter().zip(&other.values).zip(fields);
    values.any(|((one, other), field)| {
        let width = u128::MAX >> (128 - u32::from(field.bits.clamp(1, 128)));
        (one.0 ^ other.0) & one.1 & other.1 & width != 0
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use etherparse::PacketBuilder;

    use crate::decide::{Decide, FrameInfo};
    use crate::engine::cache::FlowKey;
    use crate::engine::model::Program;
    use crate::engine::paths::Paths;
    use crate::engine::pipeline::EnginePipeline;
    use crate::engine::runtime::{Engine, EngineConfig};
    use crate::engine::{layout::Layout, parse};
    use crate::port::PortId;

    /// Frames of usual kinds, and how many bytes each has.
    fn frames() -> Vec<Vec<u8>> {
        let written = |finish: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = Vec::new();
            finish(&mut frame);
            frame
        };
        let link = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let (v4, v6) = (([10, 0, 0, 1], [10, 0, 0, 2]), ([1; 16], [2; 16]));
        let mut frames = vec![
            written(&|to| {
                link()
                    .ipv4(v4.0, v4.1, 9)
                    .tcp(80, 9000, 7, 100)
                    .ack(8)
                    .write(to, &[])
                    .unwrap()
            }),
            written(&|to| {
                link()
                    .ipv4(v4.0, v4.1, 9)
                    .udp(80, 53)
                    .write(to, &[1; 30])
                    .unwrap()
            }),
            written(&|to| {
                link()
                    .ipv4(v4.0, v4.1, 9)
                    .icmpv4_echo_request(1, 2)
                    .write(to, &[1; 30])
                    .unwrap()
            }),
            written(&|to| {
                link()
                    .single_vlan(5.try_into().unwrap())
                    .ipv4(v4.0, v4.1, 9)
                    .udp(80, 53)
                    .write(to, &[1; 30])
                    .unwrap()
            }),
            written(&|to| {
                link()
                    .double_vlan(5.try_into().unwrap(), 6.try_into().unwrap())
                    .ipv6(v6.0, v6.1, 9)
                    .tcp(80, 9000, 7, 100)
                    .write(to, &[2; 9])
                    .unwrap();
            }),
            written(&|to| {
                link()
                    .ipv6(v6.0, v6.1, 9)
                    .udp(80, 4789)
                    .write(to, &[0; 60])
                    .unwrap()
            }),
            written(&|to| {
                link()
                    .ipv6(v6.0, v6.1, 9)
                    .icmpv6_echo_request(1, 2)
                    .write(to, &[1; 9])
                    .unwrap()
            }),
        ];
        // An unknown kind, an answer to an ARP request, a TCP header with options, a later fragment, and a protocol without a header.
        frames.push([vec![6; 12], vec![0x88, 0xb5], vec![1; 50]].concat());
        let arp = [&[6; 12][..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &[5; 20]].concat();
        frames.push(arp);
        let mut options = frames[0].clone();
        options.extend([1; 12]);
        (options[46], options[17]) = (0x80, 52);
        frames.push(options);
        let mut fragment = frames[1].clone();
        fragment[21] = 9;
        frames.push(fragment);
        let mut other = frames[1].clone();
        other[23] = 132;
        frames.push(other);
        frames
    }

    struct Parser {
        engine: Arc<Engine>,
        paths: Paths,
        key: FlowKey,
    }

    impl Parser {
        /// The number of the path, and whether the frame's end was reached without an error.
        fn path(&mut self, bytes: &[u8], frame_bytes: usize) -> (u16, bool) {
            let state = &self.engine.state;
            let input = parse::Input {
                bytes,
                frame_bytes,
                origin: parse::Origin::AsItCame,
            };
            let (mut layout, mut trail) = (Layout::default(), Vec::new());
            let error = parse::parse(
                &state.program,
                input,
                &mut layout,
                &mut |state, bytes, next| {
                    trail.push((state, bytes, next));
                },
            );
            let known = (&state.program, &state.known);
            // As many ports as it takes: each may add so many paths.
            let path = (1..64).find_map(|port| {
                let path = self
                    .paths
                    .learn(port, (&trail, error), known, (bytes, &layout))?;
                Some(path.number)
            });
            (path.unwrap(), error == parse::ParseError::None)
        }
    }

    #[test]
    fn a_frame_that_fits_takes_the_path_and_frames_of_usual_kinds_do() {
        let (mut fitting, mut others) = (0, 0);
        for name in crate::programs::names() {
            let program = Program::from_json(crate::programs::builtin(name).unwrap()).unwrap();
            let engine = Arc::new(Engine::new(program, EngineConfig::default()).unwrap());
            let state = &engine.state;
            let mut parser = Parser {
                paths: Paths::new(&state.program, &state.known),
                key: FlowKey::new(0, &[]),
                engine: Arc::clone(&engine),
            };
            for frame in frames() {
                let (path, is_whole) = parser.path(&frame, frame.len());
                parser.paths.expect(1, path);
                let likely = |parser: &mut Parser, bytes: &[u8], frame_bytes: usize| {
                    parser.paths.expect(1, path);
                    let likely =
                        parser
                            .paths
                            .likely(1, (bytes, frame_bytes as u32), &mut parser.key);
                    likely.map(|likely| likely.number)
                };
                let found = likely(&mut parser, &frame, frame.len());
                assert_eq!(found, is_whole.then_some(path), "{name}: {frame:02x?}");
                for bit in 0..8 * frame.len() {
                    for (keep, cut) in [(0, 0), (0, 1), (0, 9), (1, 9), (9, 9)] {
                        let mut frame = frame.clone();
                        frame[bit / 8] ^= 1 << (bit % 8);
                        let (kept, frame_bytes) = (frame.len() - cut, frame.len() - keep);
                        let taken = parser.path(&frame[..kept], frame_bytes);
                        match likely(&mut parser, &frame[..kept], frame_bytes) {
                            // Another may be likely still, and fit.
                            Some(fits) => {
                                assert_eq!((fits, true), taken, "{name}, bit {bit}: {frame:02x?}");
                                fitting += 1;
                            }
                            None => others += 1,
                        }
                    }
                }
            }
        }
        assert!(fitting > 20_000 && others > 5_000, "{fitting} {others}");
    }

    #[test]
    fn a_pipeline_knows_the_path_of_a_second_frame() {
        let program = Program::from_json(crate::programs::builtin("vpc").unwrap()).unwrap();
        let engine = Arc::new(Engine::new(program, EngineConfig::default()).unwrap());
        let mut pipeline = EnginePipeline::new(engine);
        let port = PortId::new(1).unwrap();
        for frame in frames() {
            let info = FrameInfo {
                header: &frame,
                frame_bytes: frame.len() as u32,
                wire_bytes: frame.len() as u32,
                partial_checksum: None,
            };
            pipeline.decide(port, &info);
            assert!(pipeline.parse(port, &info).is_some());
        }
    }
}
