//! Runs a program's parser over a frame.

use super::compile::{
    Comparison, Compiled, Field, HeaderKind, MAX_PARSER_STATES, Next, State, Test, Value,
};
use super::layout::{Layout, Place, read_bits, read_word};

/// How a parse ended: the value of `std.parse_error`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ParseError {
    #[default]
    None = 0,
    BeyondCopy = 1,
    Truncated = 2,
    Malformed = 3,
    TooDeep = 4,
}

/// What is parsed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    /// The private copy of the frame's start.
    pub bytes: &'a [u8],
    /// The length of the frame.
    pub frame_bytes: usize,
    /// Whether the bytes are those that came, so that headers have an origin.
    pub origin: Origin,
}

/// Whether bytes are as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    AsItCame,
    Changed,
}

/// What watches a parse.
pub(crate) trait Watch {
    /// The parser took this step: from a state, with a header of so many bytes, to the next.
    fn step(&mut self, state: u16, bytes: u16, next: Next);
}

impl<F: FnMut(u16, u16, Next)> Watch for F {
    fn step(&mut self, state: u16, bytes: u16, next: Next) {
        self(state, bytes, next);
    }
}

/// Parses a frame: fills `layout`, which is empty.
#[inline]
pub(crate) fn parse(
    program: &Compiled,
    input: Input<'_>,
    layout: &mut Layout,
    watch: &mut impl Watch,
) -> ParseError {
    let mut at = 0;
    // No header reaches beyond what the outermost IP packet says it is long.
    let mut end = input.frame_bytes;
    let mut number = program.start;
    for _ in 0..MAX_PARSER_STATES {
        let Some(state) = program.states.get(usize::from(number)) else {
            return ParseError::Malformed;
        };
        let mut bytes = 0;
        if let Some(header) = state.extract {
            match extract(program, input, layout, header, (at, &mut end)) {
                Ok(found) => bytes = found,
                Err(error) => {
                    watch.step(number, 0, Next::Reject);
                    return error;
                }
            }
        }
        if !state.verify.is_empty()
            && !state
                .verify
                .iter()
                .all(|test| holds(test, input.bytes, layout))
        {
            watch.step(number, bytes, Next::Reject);
            return ParseError::Malformed;
        }
        let next = match &state.quick {
            Some(quick) => {
                let value = read_word(input.bytes, at, quick.bit, quick.bits);
                let mut cases = quick.cases.iter();
                cases
                    .find(|(wanted, mask, _)| (value ^ wanted) & mask == 0)
                    .map_or(state.default, |(_, _, next)| *next)
            }
            None => choose(state, input.bytes, layout),
        };
        at += usize::from(bytes);
        watch.step(number, bytes, next);
        match next {
            Next::State(next) => number = next,
            Next::Accept => return ParseError::None,
            Next::Reject => return ParseError::Malformed,
        }
    }
    ParseError::TooDeep
}

#[inline]
fn extract(
    program: &Compiled,
    input: Input<'_>,
    layout: &mut Layout,
    number: u16,
    (at, end): (usize, &mut usize),
) -> Result<u16, ParseError> {
    let Some(header) = program.headers.get(usize::from(number)) else {
        return Err(ParseError::Malformed);
    };
    let short = |needed: usize| {
        if needed > *end {
            ParseError::Truncated
        } else {
            ParseError::BeyondCopy
        }
    };
    let reach = input.bytes.len().min(*end);
    let mut bytes = header.bytes;
    if at + usize::from(bytes) > reach {
        return Err(short(at + usize::from(bytes)));
    }
    if let Some(length) = header.length {
        let units = read_bits(input.bytes, at, length.field.bit, length.field.bits).unwrap_or(0);
        let stated = u16::try_from(units)
            .ok()
            .and_then(|units| units.checked_add(length.plus))
            .and_then(|units| units.checked_mul(length.unit_bytes));
        match stated {
            Some(stated) if stated >= bytes && stated <= length.max_bytes => bytes = stated,
            _ => return Err(ParseError::Malformed),
        }
        if at + usize::from(bytes) > reach {
            return Err(short(at + usize::from(bytes)));
        }
    }
    // What an IP packet says of its own length: zero in frames that are to be cut.
    let stated = match header.kind {
        HeaderKind::Ipv4 => match read_bits(input.bytes, at, 16, 16) {
            Some(total) if total != 0 => Some(total as usize),
            _ => None,
        },
        HeaderKind::Ipv6 => match read_bits(input.bytes, at, 32, 16) {
            Some(payload) if payload != 0 => Some(payload as usize + 40),
            _ => None,
        },
        _ => None,
    };
    if let Some(stated) = stated {
        if at + stated > *end {
            return Err(ParseError::Truncated);
        }
        if stated < usize::from(bytes) {
            return Err(ParseError::Malformed);
        }
        *end = at + stated;
    }
    let origin = match input.origin {
        Origin::AsItCame => at as u16,
        Origin::Changed => super::layout::MADE_HERE,
    };
    let place = Place {
        at: at as u16,
        bytes,
        origin,
    };
    if layout.found(number, place) {
        Ok(bytes)
    } else {
        Err(ParseError::TooDeep)
    }
}

#[inline]
fn choose(state: &State, bytes: &[u8], layout: &Layout) -> Next {
    for case in &state.cases {
        let mut pairs = state.select.iter().zip(&case.values);
        if pairs
            .all(|(&field, &(wanted, mask))| (value_of(field, bytes, layout) ^ wanted) & mask == 0)
        {
            return case.next;
        }
    }
    state.default
}

#[inline]
fn value_of(field: Field, bytes: &[u8], layout: &Layout) -> u128 {
    match field {
        Field::Header(field) => {
            let place = layout.place(field.header);
            if !place.is_valid() {
                return 0;
            }
            read_bits(bytes, place.at.into(), field.bit, field.bits).unwrap_or(0)
        }
        Field::Valid(header) => layout.place(header).is_valid().into(),
        Field::Meta { .. } | Field::Std(_) | Field::Ct(_) => 0,
    }
}

/// Whether a parser's condition holds.
pub(crate) fn holds(test: &Test, bytes: &[u8], layout: &Layout) -> bool {
    let value = |value: &Value| match *value {
        Value::Constant(number) => number,
        Value::Field(field) => value_of(field, bytes, layout),
        Value::Param(_) => 0,
    };
    match test {
        Test::Compare(how, a, b) => compare(*how, value(a), value(b)),
        Test::Masked(a, mask, wanted) => value(a) & mask == *wanted,
        Test::All(tests) => tests.iter().all(|test| holds(test, bytes, layout)),
        Test::Any(tests) => tests.iter().any(|test| holds(test, bytes, layout)),
        Test::Not(test) => !holds(test, bytes, layout),
    }
}

/// Compares.
pub(crate) fn compare(how: Comparison, a: u128, b: u128) -> bool {
    match how {
        Comparison::Eq => a == b,
        Comparison::Ne => a != b,
        Comparison::Lt => a < b,
        Comparison::Le => a <= b,
        Comparison::Gt => a > b,
        Comparison::Ge => a >= b,
    }
}
