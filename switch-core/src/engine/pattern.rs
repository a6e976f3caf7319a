//! What frames look like whose parse takes a known path: a few words to compare, where a parse would go from header to header.
//!
//! A pattern is sufficient, not necessary: a frame that fits takes the path, one that does not is parsed. Paths that end in an error,
//! and some with rare conditions, have none.

use super::compile::{
    Case, Comparison, Compiled, Field, Header, HeaderField, HeaderKind, Length, Next, State, Test,
    Value,
};
use super::layout::{Layout, read_word};
use super::packet::PACKET_BYTES;
use super::parse::holds;
use super::paths::word_at;

/// A frame's word under a mask.
#[derive(Clone, Copy, Debug)]
struct Masked {
    /// Its first byte.
    at: u16,
    mask: u64,
    value: u64,
}

/// A length that a frame states, which has to fit into what is around it.
#[derive(Debug)]
enum Stated {
    /// That of an IP packet, in the two bytes at `field`; further headers lie within.
    Packet {
        at: u16,
        field: u16,
        plus: u16,
        least: u16,
    },
    /// That of the last header.
    Header {
        at: u16,
        field: HeaderField,
        length: Length,
        least: u16,
    },
}

/// A path's frames.
#[derive(Debug)]
pub(crate) struct Pattern {
    same: Box<[Masked]>,
    /// What would have led elsewhere.
    different: Box<[Masked]>,
    /// From the outermost on.
    stated: Box<[Stated]>,
    tests: Box<[Test]>,
    /// For `tests`.
    layout: Box<Layout>,
    /// Where the last header ends at least.
    bytes: u16,
}

impl Pattern {
    /// What the frames look like that are parsed as this one was, without an error: its states, header lengths and what followed.
    pub(crate) fn new(
        program: &Compiled,
        trail: &[(u16, u16, Next)],
        (bytes, layout): (&[u8], &Layout),
    ) -> Option<Self> {
        let mut maker = Maker {
            places: Vec::new(),
            mask: [0; PACKET_BYTES],
            different: Vec::new(),
            stated: Vec::new(),
            tests: Vec::new(),
            end: 0,
        };
        for &(number, header_bytes, next) in trail {
            let state = program.states.get(usize::from(number))?;
            maker.state(program, state, (header_bytes, next))?;
        }
        let same = maker.mask.chunks_exact(8).enumerate();
        let same = same.filter_map(|(number, mask)| {
            let mask = u64::from_le_bytes(*mask.first_chunk()?);
            let at = (number * 8) as u16;
            let value = word_at(bytes, at) & mask;
            (mask != 0).then_some(Masked { at, mask, value })
        });
        Some(Self {
            same: same.collect(),
            different: maker.different.into(),
            stated: maker.stated.into(),
            tests: maker.tests.into(),
            layout: Box::new(layout.clone()),
            bytes: maker.end,
        })
    }

    /// Whether a frame is one of these.
    #[inline]
    pub(crate) fn fits(&self, bytes: &[u8], frame_bytes: usize) -> bool {
        let reach = bytes.len().min(frame_bytes);
        if reach < usize::from(self.bytes) {
            return false;
        }
        let differing = self.same.iter().fold(0, |all, word| {
            all | (word_at(bytes, word.at) & word.mask ^ word.value)
        });
        let leads_elsewhere = |word: &Masked| word_at(bytes, word.at) & word.mask == word.value;
        differing == 0
            && !self.different.iter().any(leads_elsewhere)
            && self.lengths_fit(bytes, frame_bytes)
            && (self.tests.is_empty()
                || (self.tests.iter()).all(|test| holds(test, bytes, &self.layout)))
    }

    #[inline]
    fn lengths_fit(&self, bytes: &[u8], frame_bytes: usize) -> bool {
        let mut end = frame_bytes;
        for stated in &self.stated {
            match stated {
                Stated::Packet {
                    at,
                    field,
                    plus,
                    least,
                } => {
                    let from = bytes.get(usize::from(*field)..);
                    let Some(length) = from.and_then(|from| from.first_chunk::<2>()) else {
                        return false;
                    };
                    let length = u16::from_be_bytes(*length);
                    let packet = usize::from(length) + usize::from(*plus);
                    // Zero is a length that is not stated.
                    if length == 0
                        || packet < usize::from(*least)
                        || usize::from(*at) + packet > end
                    {
                        return false;
                    }
                    end = usize::from(*at) + packet;
                }
                Stated::Header {
                    at,
                    field,
                    length,
                    least,
                } => {
                    let at = usize::from(*at);
                    let units = read_word(bytes, at, field.bit, field.bits);
                    let header = units
                        .checked_add(length.plus.into())
                        .and_then(|units| units.checked_mul(length.unit_bytes.into()));
                    let in_range = u64::from(*least)..=u64::from(length.max_bytes);
                    let fits = |header: &u64| {
                        in_range.contains(header) && at + *header as usize <= end.min(bytes.len())
                    };
                    if !header.as_ref().is_some_and(fits) {
                        return false;
                    }
                }
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
    different: Vec<Masked>,
    stated: Vec<Stated>,
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
        if let Some(length) = header.length {
            if length.field.bits > 32 {
                return None;
            }
            if leads_on {
                self.mark(length.field, u128::MAX)?;
                self.end = at.checked_add(bytes)?;
            }
        }
        let (field, plus) = match header.kind {
            HeaderKind::Ipv4 => (2, 0),
            HeaderKind::Ipv6 => (4, 40),
            _ => (0, 0),
        };
        if field != 0 {
            self.stated.push(Stated::Packet {
                at,
                field: at + field,
                plus,
                least: self.end - at,
            });
        }
        if let Some(length) = header.length.filter(|_| !leads_on) {
            self.stated.push(Stated::Header {
                at,
                field: length.field,
                length,
                least: header.bytes,
            });
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
        let Some(Stated::Header {
            field,
            length,
            least,
            ..
        }) = self.stated.last_mut()
        else {
            return false;
        };
        let bytes = units
            .checked_add(length.plus.into())
            .and_then(|units| units.checked_mul(length.unit_bytes.into()))
            .and_then(|bytes| u16::try_from(bytes).ok());
        match bytes {
            Some(bytes) if *field == wanted => {
                *least = bytes.max(*least);
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
        // Which case it was is not noted; where several lead to the same state, that of the default is not taken for theirs.
        let mut leading = state.cases.iter().filter(|case| case.next == next);
        let (taken, is_only) = (leading.next(), leading.next().is_none());
        if taken.is_some() && (!is_only || state.default == next) {
            return fields
                .iter()
                .try_for_each(|field| self.mark(*field, u128::MAX));
        }
        for case in &state.cases {
            if taken.is_some_and(|taken| std::ptr::eq(taken, case)) {
                break;
            }
            if !taken.is_some_and(|taken| excludes(taken, case, &fields)) {
                self.exclude(&fields, case)?;
            }
        }
        let values = taken.map(|taken| taken.values.as_slice());
        let mut values = fields.iter().zip(values.unwrap_or_default());
        values.try_for_each(|(field, &(_, mask))| self.mark(*field, mask))
    }

    /// Frames of this case are none of the path's.
    fn exclude(&mut self, fields: &[HeaderField], case: &Case) -> Option<()> {
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
        self.different.push(Masked {
            at: u16::try_from(first / 8).ok()?,
            mask: u64::from_le_bytes(mask),
            value: u64::from_le_bytes(value),
        });
        Some(())
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
